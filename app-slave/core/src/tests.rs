//! The core alone: what the link announces is handed in as events, what goes out on the bus is
//! tested in `tests/with_master.rs`.

extern crate std;

use super::*;
use helio_bus::{BusKind, LeaveReason, MAX_ANCHORS};
use helio_units::{Milliamps, Millimetres};
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const HOUR: Duration = Duration::from_secs(3_600);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn config() -> SlaveConfig {
    let capabilities = Capabilities {
        cells: 16,
        temps: 4,
        anchors: 0,
    };
    SlaveConfig::new(Uid::new(7).unwrap(), capabilities, Limits::nmc(5_000))
}

/// 16 cells at 3.7 V and 25 °C, at rest.
fn healthy() -> Sample {
    let mut sample = Sample::EMPTY;
    sample.cell_count = 16;
    sample.temp_count = 4;
    sample.cells[..16].fill(Some(Millivolts(3_700)));
    sample.temps[..4].fill(Some(DeciCelsius(250)));
    sample.current = Some(Milliamps(0));
    sample
}

fn with_cell(index: usize, mv: u16) -> Sample {
    let mut sample = healthy();
    sample.cells[index] = Some(Millivolts(mv));
    sample
}

/// Trips at once.
fn over_voltage() -> Sample {
    with_cell(3, 4_300)
}

fn with_temp(dc: i16) -> Sample {
    let mut sample = healthy();
    sample.temps[2] = Some(DeciCelsius(dc));
    sample
}

/// A wire that has just broken: protection waits before it trips.
fn incomplete() -> Sample {
    let mut sample = healthy();
    sample.cells[5] = None;
    sample
}

/// One temperature is missing, which is no reason to trip.
fn blind() -> Sample {
    let mut sample = healthy();
    sample.temps[3] = None;
    sample
}

/// A slave, its clock and what a shell would have switched.
struct Rig {
    slave: Slave,
    now: Instant,
    gate: bool,
    bled: u32,
    /// Whether the next samples are answered by this.
    answer: Option<Sample>,
}

impl Rig {
    fn new(config: SlaveConfig) -> Self {
        Self {
            slave: Slave::new(config, Schedule::for_bus(BusKind::Can1M)),
            now: Instant::ZERO,
            gate: true,
            bled: u32::MAX,
            answer: Some(healthy()),
        }
    }

    /// Booted, measured once, not ordered yet.
    fn standby() -> Self {
        let mut rig = Self::new(config());
        rig.run(ms(1));
        assert_eq!(rig.slave.state(), SlaveState::Standby);
        rig
    }

    fn active() -> Self {
        Self::active_with(config())
    }

    fn active_with(config: SlaveConfig) -> Self {
        let mut rig = Self::new(config);
        rig.run(ms(1));
        rig.order(Order::Gate(true));
        assert!(rig.gate && rig.slave.state() == SlaveState::Active);
        rig
    }

    fn tripped() -> Self {
        let mut rig = Self::active();
        rig.sample(&over_voltage());
        assert_eq!(rig.slave.state(), SlaveState::Tripped);
        rig
    }

    fn event(&mut self, event: SlaveEvent) -> Vec<SlaveOutput> {
        self.slave.handle_event(self.now, event);
        self.drain()
    }

    fn order(&mut self, order: Order) -> Vec<SlaveOutput> {
        self.event(SlaveEvent::Order(order))
    }

    fn sync(&mut self) -> Vec<SlaveOutput> {
        self.event(SlaveEvent::Sync {
            cycle: 0,
            tag: None,
        })
    }

    fn sample(&mut self, sample: &Sample) -> Vec<SlaveOutput> {
        self.slave.handle_sample(self.now, sample);
        self.drain()
    }

    /// Lets time pass, timer by timer, answering as `self.answer` says.
    fn run(&mut self, time: Duration) -> Vec<(Instant, SlaveOutput)> {
        let end = self.now + time;
        let mut all = Vec::new();
        loop {
            let due = self.slave.poll_timeout().unwrap_or(Instant::MAX);
            if due > end {
                self.now = end;
                return all;
            }
            self.now = self.now.max(due);
            self.slave.handle_timeout(self.now);
            let next = self.slave.poll_timeout();
            assert!(next.is_none_or(|t| t > self.now), "the timer stands still");
            all.extend(self.drain().into_iter().map(|o| (self.now, o)));
        }
    }

    /// Carries out every output.
    fn drain(&mut self) -> Vec<SlaveOutput> {
        let mut all = Vec::new();
        while let Some(output) = self.slave.poll_output() {
            all.push(output);
            match output {
                SlaveOutput::Gate(on) => self.gate = on,
                SlaveOutput::Balance(mask) => self.bled = mask,
                SlaveOutput::SampleNow => {
                    assert_eq!(self.bled, 0, "bleeding while sampling");
                    if let Some(sample) = self.answer {
                        self.slave.handle_sample(self.now, &sample);
                    }
                }
                SlaveOutput::RangeNow(_) | SlaveOutput::Light(_) | SlaveOutput::Identify(_) => {}
            }
        }
        all
    }
}

#[test]
fn at_boot_the_gate_goes_off_before_anything_else() {
    let mut rig = Rig::new(config());
    rig.answer = None;
    assert_eq!(
        rig.drain(),
        [SlaveOutput::Gate(false), SlaveOutput::Balance(0)]
    );
    assert_eq!(rig.slave.state(), SlaveState::Init);
    assert_eq!(rig.slave.poll_timeout(), Some(Instant::ZERO));
}

fn sleeper() -> SlaveConfig {
    SlaveConfig {
        sleep: Some(SlaveSleep {
            after: Duration::from_secs(5),
            period: Duration::from_secs(1),
        }),
        ..config()
    }
}

fn samples(outputs: &[(Instant, SlaveOutput)]) -> usize {
    let asked = outputs.iter().filter(|(_, o)| *o == SlaveOutput::SampleNow);
    asked.count()
}

#[test]
fn asleep_it_measures_seldom_and_nothing_counts_as_stale() {
    let mut rig = Rig::new(sleeper());
    assert_eq!(samples(&rig.run(Duration::from_secs(4))), 401);
    rig.run(Duration::from_secs(2));
    assert_eq!(samples(&rig.run(Duration::from_secs(60))), 60);
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    assert_eq!(rig.slave.protection().severity(), None);
    // Awake with the next SYNC, at once and at the usual pace.
    rig.run(ms(500));
    assert!(rig.sync().contains(&SlaveOutput::SampleNow));
    assert_eq!(samples(&rig.run(Duration::from_secs(1))), 100);
    assert_eq!(rig.slave.protection().severity(), None);
}

#[test]
fn asleep_it_protects_on_its_sample_and_notices_a_silent_sensor() {
    let mut rig = Rig::new(sleeper());
    rig.run(Duration::from_secs(10));
    rig.answer = Some(over_voltage());
    rig.run(Duration::from_secs(1));
    assert_eq!(rig.slave.state(), SlaveState::Tripped);

    let mut rig = Rig::new(sleeper());
    rig.run(Duration::from_secs(10));
    rig.answer = None;
    rig.run(ms(2_300));
    assert!(rig.slave.protection().is_active(STALE));

    // Woken by a SYNC that nobody measures at, silence counts from there.
    let mut rig = Rig::new(sleeper());
    rig.run(ms(10_050));
    rig.answer = None;
    rig.sync();
    rig.run(ms(190));
    assert!(!rig.slave.protection().is_active(STALE));
    rig.run(ms(20));
    assert!(rig.slave.protection().is_active(STALE));
}

#[test]
fn whoever_conducts_or_bleeds_stays_awake() {
    let mut rig = Rig::active_with(sleeper());
    rig.run(Duration::from_secs(20));
    assert_eq!(samples(&rig.run(Duration::from_secs(1))), 100);

    let mut rig = Rig::new(sleeper());
    rig.run(Duration::from_secs(1));
    rig.answer = Some(with_cell(3, 4_000));
    rig.order(Order::Balance(1 << 3));
    for _ in 0..20 {
        rig.run(Duration::from_secs(1));
        rig.order(Order::Balance(1 << 3));
    }
    assert_ne!(rig.bled, 0);
    assert_eq!(samples(&rig.run(Duration::from_secs(1))), 100);
}

#[test]
fn an_order_before_the_first_sample_waits_for_it() {
    let mut rig = Rig::new(config());
    rig.drain();
    assert_eq!(rig.order(Order::Gate(true)), []);
    rig.sample(&incomplete());
    assert!(!rig.gate);
    rig.now += ms(10);
    assert_eq!(rig.sample(&healthy()), [SlaveOutput::Gate(true)]);
    assert_eq!(rig.slave.state(), SlaveState::Active);
}

#[test]
fn an_order_taken_back_before_the_first_sample_is_forgotten() {
    let mut rig = Rig::new(config());
    rig.order(Order::Gate(true));
    rig.order(Order::Gate(false));
    rig.sample(&healthy());
    assert!(!rig.gate && rig.slave.state() == SlaveState::Standby);
}

#[test]
fn an_incomplete_sample_does_not_end_init() {
    let mut without_current = healthy();
    without_current.current = None;
    let mut too_few_cells = healthy();
    too_few_cells.cell_count = 15;
    for sample in [incomplete(), without_current, blind(), too_few_cells] {
        let mut config = config();
        *config
            .limits
            .rule_mut(Kind::Layout, protection::Severity::Trip) = None;
        let mut rig = Rig::new(config);
        rig.sample(&sample);
        assert_eq!(rig.slave.state(), SlaveState::Init, "{sample:?}");
        rig.order(Order::Gate(true));
        assert!(!rig.gate);
    }
}

#[test]
fn a_first_sample_that_is_bad_trips_from_init() {
    let mut rig = Rig::new(config());
    rig.order(Order::Gate(true));
    let out = rig.sample(&over_voltage());
    assert_eq!(out.first(), Some(&SlaveOutput::Gate(false)));
    assert!(!out.contains(&SlaveOutput::Gate(true)));
    assert_eq!(rig.slave.state(), SlaveState::Tripped);
}

#[test]
fn the_master_switches_a_healthy_group_on_and_off() {
    let mut rig = Rig::standby();
    assert_eq!(rig.order(Order::Gate(true)), [SlaveOutput::Gate(true)]);
    assert_eq!(rig.slave.state(), SlaveState::Active);
    assert_eq!(rig.order(Order::Gate(true)), [], "already on");
    assert_eq!(rig.order(Order::Gate(false)), [SlaveOutput::Gate(false)]);
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    rig.run(HOUR);
    assert!(!rig.gate, "on without an order");
}

#[test]
fn with_the_master_absent_the_gate_is_off_on_the_very_sample() {
    let mut rig = Rig::active();
    rig.event(SlaveEvent::Left(LeaveReason::Silence));
    rig.run(ms(10_000));
    assert!(rig.gate);
    rig.slave.handle_sample(rig.now, &over_voltage());
    assert_eq!(rig.slave.poll_output(), Some(SlaveOutput::Gate(false)));
    assert_eq!(rig.slave.state(), SlaveState::Tripped);
    assert!(rig.slave.is_tripped());
}

#[test]
fn a_delay_that_ends_between_two_samples_opens_the_gate_by_the_timer() {
    let mut rig = Rig::active();
    let start = rig.now;
    let low = with_cell(0, 2_400); // trip below 2500 mV, after 100 ms
    rig.sample(&low);
    rig.answer = None;
    rig.run(ms(99));
    assert!(rig.gate);
    let out = rig.run(ms(1));
    let off = out.iter().find(|(_, o)| *o == SlaveOutput::Gate(false));
    assert_eq!(off.map(|(t, _)| *t), Some(start + ms(100)));
}

#[test]
fn a_tripped_slave_refuses_the_gate_until_it_is_cleared_and_ordered_anew() {
    let mut rig = Rig::tripped();
    assert!(!rig.gate);
    rig.order(Order::ClearLatch);
    assert_eq!(rig.slave.state(), SlaveState::Tripped, "cause still there");
    rig.now += ms(10);
    rig.sample(&healthy());
    assert_eq!(rig.slave.state(), SlaveState::Tripped, "latched");
    rig.order(Order::Gate(true));
    assert!(!rig.gate);
    rig.order(Order::ClearLatch);
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    rig.run(ms(1_000));
    assert!(!rig.gate, "the order from before the trip came back");
    rig.order(Order::Gate(true));
    assert!(rig.gate && rig.slave.state() == SlaveState::Active);
}

#[test]
fn a_latch_cleared_while_a_value_is_missing_leads_to_init() {
    let mut rig = Rig::tripped();
    rig.now += ms(10);
    rig.sample(&blind());
    rig.order(Order::ClearLatch);
    assert_eq!(rig.slave.state(), SlaveState::Init);
    rig.now += ms(10);
    rig.sample(&healthy());
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    assert!(!rig.gate);
}

#[test]
fn a_trip_that_ends_by_itself_leaves_the_gate_off() {
    let mut config = config();
    let rule = config
        .limits
        .rule_mut(Kind::CellOvervoltage, protection::Severity::Trip);
    rule.as_mut().unwrap().reset = protection::Reset::Auto(ms(50));
    *config
        .limits
        .rule_mut(Kind::Imbalance, protection::Severity::Trip) = None;
    let mut rig = Rig::active_with(config);
    rig.sample(&over_voltage());
    assert_eq!(rig.slave.state(), SlaveState::Tripped);
    rig.run(ms(200));
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    assert!(!rig.gate);
}

#[test]
fn a_latched_trip_outlives_a_reset() {
    let rig = Rig::tripped();
    let stored = stored(&rig.slave);
    let schedule = Schedule::for_bus(BusKind::Can1M);
    let mut rig = Rig::new(config());
    rig.slave = Slave::vacant();
    assert_eq!(rig.slave.recall(&config(), &stored), Ok(()));
    rig.slave.start(&config(), schedule);
    assert_eq!(rig.slave.state(), SlaveState::Tripped);
    rig.run(ms(50));
    rig.order(Order::Gate(true));
    assert!(!rig.gate && rig.slave.state() == SlaveState::Tripped);
    rig.order(Order::ClearLatch);
    assert_eq!(rig.slave.state(), SlaveState::Init, "one good sample first");
    rig.run(ms(20));
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    rig.order(Order::Gate(true));
    assert!(rig.gate);
}

fn stored(slave: &Slave) -> Vec<u8> {
    let mut bytes = [0; helio_battery::protection::MAX_BYTES];
    let len = slave.protection().diagnostics().store(&mut bytes);
    bytes[..len.expect("room for all")].to_vec()
}

#[test]
fn what_cannot_be_recalled_is_as_if_nothing_had_been() {
    let schedule = Schedule::for_bus(BusKind::Can1M);
    let mut damaged = stored(&Rig::tripped().slave);
    damaged[10] ^= 1;
    let mut slave = Slave::vacant();
    assert!(slave.recall(&config(), &damaged).is_err());
    assert!(slave.recall(&config(), &[]).is_err());
    slave.start(&config(), schedule);
    assert_eq!(slave.state(), SlaveState::Init);
    assert_eq!(slave.protection().diagnostics(), &Default::default());
}

#[test]
fn a_trip_is_stored_at_once_and_what_comes_and_goes_once_a_minute() {
    let config = SlaveConfig {
        stores: true,
        ..config()
    };
    let mut rig = Rig::active_with(config);
    assert!(!rig.slave.poll_store(rig.now), "nothing has happened");
    rig.sample(&over_voltage());
    assert!(rig.slave.poll_timeout().expect("stores") <= rig.now);
    assert!(rig.slave.poll_store(rig.now) && !rig.slave.poll_store(rig.now));
    rig.slave.handle_not_stored(rig.now);
    let again = rig.now + ms(1_000);
    assert!(!rig.slave.poll_store(again - ms(1)) && rig.slave.poll_store(again));
    // What ended by itself, and the latch.
    rig.run(ms(2_000));
    rig.order(Order::ClearLatch);
    rig.run(ms(50));
    let later = again + ms(60_000);
    assert!(!rig.slave.poll_store(later - ms(1)));
    assert!(rig.slave.poll_store(later));
}

#[test]
fn isolation_opens_the_gate_in_every_state_and_refuses_it() {
    for mut rig in [
        Rig::new(config()),
        Rig::standby(),
        Rig::active(),
        Rig::tripped(),
    ] {
        let out = rig.order(Order::Isolate(true));
        assert_eq!(out.first(), Some(&SlaveOutput::Gate(false)));
        assert_eq!(rig.slave.state(), SlaveState::Isolated);
        rig.order(Order::Gate(true));
        rig.run(ms(100));
        assert!(!rig.gate && rig.slave.state() == SlaveState::Isolated);
    }
}

#[test]
fn a_released_slave_goes_where_its_newest_sample_says() {
    for (sample, state) in [
        (healthy(), SlaveState::Standby),
        (over_voltage(), SlaveState::Tripped),
        (incomplete(), SlaveState::Init),
    ] {
        let mut rig = Rig::active();
        rig.order(Order::Isolate(true));
        rig.now += ms(10);
        rig.sample(&sample);
        assert_eq!(rig.slave.state(), SlaveState::Isolated);
        rig.order(Order::Isolate(false));
        assert_eq!(rig.slave.state(), state);
        rig.order(Order::Isolate(false));
        assert_eq!(rig.slave.state(), state, "released twice");
        assert!(!rig.gate);
    }
}

#[test]
fn a_shell_that_does_not_answer_loses_the_gate_and_what_was_known() {
    let mut rig = Rig::active();
    let last = rig.slave.sampled_at.unwrap();
    rig.answer = None;
    let out = rig.run(ms(300));
    let off = out.iter().find(|(_, o)| *o == SlaveOutput::Gate(false));
    assert_eq!(off.map(|(t, _)| *t), Some(last + ms(200)));
    assert_eq!(rig.slave.state(), SlaveState::Tripped);
    assert_eq!(rig.slave.said.summary.min, None);
    assert_eq!(rig.slave.said.cells, Cells::default());

    rig.order(Order::ClearLatch);
    assert_eq!(rig.slave.state(), SlaveState::Tripped, "still stale");
    rig.answer = Some(healthy());
    rig.run(ms(20));
    assert_eq!(rig.slave.said.summary.min, Some(Millivolts(3_700)));
    rig.answer = None;
    rig.run(ms(30));
    assert_eq!(rig.slave.said.summary.min, None, "stale while latched");
    rig.answer = Some(healthy());
    rig.run(ms(20));
    rig.order(Order::ClearLatch);
    assert_eq!(rig.slave.state(), SlaveState::Standby);
}

#[test]
fn a_gate_that_conducts_although_it_was_opened_is_noticed() {
    let mut welded = healthy();
    welded.current = Some(Milliamps(2_000));
    let mut rig = Rig::active();
    rig.answer = Some(welded);
    rig.run(ms(1_000));
    assert_eq!(rig.slave.state(), SlaveState::Active);
    rig.order(Order::Gate(false));
    rig.run(ms(1_000));
    let stuck = Code::new(Kind::GateStuck, protection::Severity::Trip);
    assert!(rig.slave.protection().is_active(stuck));
    assert_eq!(rig.slave.state(), SlaveState::Tripped);
}

#[test]
fn outputs_come_off_first_then_measuring_then_on_then_light() {
    let mut config = config();
    config.capabilities.anchors = 4;
    let mut rig = Rig::active_with(config);
    rig.run(ms(4));
    let s = &mut rig.slave;
    for event in [
        SlaveEvent::Order(Order::Light(0b0101_0101)),
        SlaveEvent::Order(Order::Gate(false)),
        SlaveEvent::Order(Order::Gate(true)),
        SlaveEvent::RangeNow(TagId(9)),
        SlaveEvent::Sync {
            cycle: 1,
            tag: None,
        },
    ] {
        s.handle_event(rig.now, event);
    }
    rig.answer = None;
    assert_eq!(
        rig.drain(),
        [
            SlaveOutput::Gate(false),
            SlaveOutput::SampleNow,
            SlaveOutput::RangeNow(TagId(9)),
            SlaveOutput::Gate(true),
            SlaveOutput::Light(0b0101),
        ]
    );
}

#[test]
fn a_gate_on_that_nobody_fetched_is_withdrawn_by_a_trip() {
    let mut rig = Rig::standby();
    rig.slave
        .handle_event(rig.now, SlaveEvent::Order(Order::Gate(true)));
    rig.now += ms(1);
    let out = rig.sample(&over_voltage());
    assert_eq!(out, [SlaveOutput::Gate(false)]);
}

#[test]
fn gate_on_is_refused_while_the_newest_sample_is_incomplete() {
    let mut rig = Rig::standby();
    rig.now += ms(10);
    rig.sample(&incomplete());
    assert_eq!(rig.order(Order::Gate(true)), []);
    rig.now += ms(10);
    rig.sample(&healthy());
    assert!(!rig.gate);
    assert_eq!(rig.order(Order::Gate(true)), [SlaveOutput::Gate(true)]);
}

#[test]
fn without_a_master_the_gate_stays_on_by_default() {
    let mut rig = Rig::active();
    rig.run(HOUR);
    assert!(rig.gate);
}

#[test]
fn without_a_master_the_gate_opens_after_the_time_given() {
    let mut config = config();
    config.on_master_loss = OnMasterLoss::OpenAfter(ms(500));
    let mut rig = Rig::active_with(config);
    rig.run(ms(400));
    rig.order(Order::Light(0));
    let heard = rig.now;
    let out = rig.run(ms(1_000));
    let off = out.iter().find(|(_, o)| *o == SlaveOutput::Gate(false));
    assert_eq!(off.map(|(t, _)| *t), Some(heard + ms(500)));
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    rig.sync();
    rig.run(ms(100));
    assert!(!rig.gate, "on again without a new order");
}

#[test]
fn an_order_that_waits_for_the_first_sample_is_void_when_its_master_is_gone() {
    let mut config = config();
    config.on_master_loss = OnMasterLoss::OpenAfter(ms(5));
    let mut rig = Rig::new(config);
    rig.order(Order::Gate(true));
    rig.now += ms(5);
    rig.sample(&healthy());
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    assert!(!rig.gate);
}

#[test]
fn a_sync_takes_a_sample_and_starts_the_grid_anew() {
    let mut rig = Rig::standby();
    rig.run(ms(6));
    let sync = rig.now;
    assert_eq!(rig.sync(), [SlaveOutput::SampleNow]);
    let out = rig.run(ms(10));
    assert_eq!(out, [(sync + ms(10), SlaveOutput::SampleNow)]);
}

#[test]
fn a_measurement_is_as_old_as_the_question() {
    let mut rig = Rig::standby();
    rig.answer = None;
    rig.run(ms(8));
    let asked = rig.now;
    assert_eq!(rig.sync(), [SlaveOutput::SampleNow]);
    rig.now += ms(2);
    rig.sample(&healthy());
    assert_eq!(rig.slave.sampled_at, Some(asked));
    rig.now += ms(1);
    rig.sample(&healthy());
    assert_eq!(rig.slave.sampled_at, Some(rig.now), "not asked for");
}

#[test]
fn bleeding_pauses_ahead_of_every_sample() {
    let mut rig = Rig::standby();
    rig.order(Order::Balance(0b110));
    let t0 = rig.now + ms(9); // the next sample
    let mut t = t0;
    let out = rig.run(ms(9 + 21));
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push((t, SlaveOutput::SampleNow));
        expected.push((t, SlaveOutput::Balance(0b110)));
        expected.push((t + ms(9), SlaveOutput::Balance(0)));
        t += ms(10);
    }
    expected.truncate(out.len());
    assert_eq!(out, expected);
    assert!(out.len() >= 7);
}

#[test]
fn bleeding_pauses_ahead_of_an_expected_sync_too() {
    let mut rig = Rig::standby();
    rig.order(Order::Balance(1));
    rig.run(ms(6));
    let sync = rig.now;
    rig.sync(); // next one in 20 ms
    let out = rig.run(ms(20));
    assert!(out.contains(&(sync + ms(19), SlaveOutput::Balance(0))));
    assert_eq!(rig.bled, 0);
    assert_eq!(
        rig.sync(),
        [SlaveOutput::SampleNow, SlaveOutput::Balance(1)]
    );
}

#[test]
fn an_order_to_balance_runs_out_unless_repeated() {
    let mut config = config();
    config.bleed.order_limit = ms(1_000);
    let mut rig = Rig::active_with(config);
    rig.order(Order::Balance(1));
    rig.run(ms(900));
    rig.order(Order::Balance(1));
    rig.run(ms(900));
    assert!(rig.slave.said.summary.balancing);
    rig.run(ms(300));
    assert!(rig.bled == 0 && !rig.slave.said.summary.balancing);
}

#[test]
fn an_order_to_balance_that_ran_out_counts_no_more_even_before_the_timer_says_so() {
    let mut config = config();
    config.bleed.order_limit = ms(1_000);
    let mut rig = Rig::active_with(config);
    rig.order(Order::Balance(1));
    rig.run(ms(985));
    assert_eq!(rig.bled, 1);
    // Late, but not stale yet.
    rig.now += ms(30);
    rig.sample(&healthy());
    assert_eq!(rig.slave.state(), SlaveState::Active);
    assert_eq!(rig.bled, 0);
}

#[test]
fn nothing_is_bled_when_hot_or_of_unknown_temperature() {
    for (temp, bled) in [(Some(500), true), (Some(501), false), (None, false)] {
        let mut config = config();
        config.capabilities.temps = 4 * u8::from(temp.is_some());
        let mut warm = healthy();
        warm.temps[..4].fill(temp.map(DeciCelsius));
        warm.temp_count = config.capabilities.temps;
        let mut rig = Rig::new(config);
        rig.answer = Some(warm);
        rig.run(ms(1));
        assert_eq!(rig.slave.state(), SlaveState::Standby);
        rig.order(Order::Balance(1));
        rig.run(ms(12));
        assert_eq!(rig.bled != 0, bled, "{temp:?}");
    }
}

#[test]
fn a_cell_at_the_floor_is_not_bled() {
    let mut rig = Rig::standby();
    rig.order(Order::Balance(0b11));
    rig.answer = Some(with_cell(0, 3_000));
    rig.run(ms(12));
    assert_eq!(rig.bled, 0b10);
}

#[test]
fn a_trip_stops_bleeding_and_forgets_the_order() {
    let mut rig = Rig::active();
    rig.order(Order::Balance(0b11));
    rig.run(ms(12));
    assert_ne!(rig.bled, 0);
    let out = rig.sample(&over_voltage());
    assert_eq!(out, [SlaveOutput::Gate(false), SlaveOutput::Balance(0)]);
    rig.order(Order::Balance(0b11));
    rig.run(ms(30));
    rig.order(Order::ClearLatch);
    rig.run(ms(30));
    assert_eq!(rig.bled, 0);
}

#[test]
fn an_order_to_bleed_nothing_works_at_once() {
    let mut rig = Rig::standby();
    rig.order(Order::Balance(0b111));
    rig.run(ms(12));
    assert_eq!(rig.bled, 0b111);
    assert_eq!(rig.order(Order::Balance(0b010)), [SlaveOutput::Balance(2)]);
    assert_eq!(rig.order(Order::Balance(0)), [SlaveOutput::Balance(0)]);
    assert!(!rig.slave.said.summary.balancing);
}

#[test]
fn the_own_plan_is_followed_only_when_allowed_and_yields_to_orders() {
    for own_plan in [false, true] {
        let mut config = config();
        config.bleed.own_plan = own_plan;
        let mut rig = Rig::new(config);
        rig.answer = Some(with_cell(4, 3_750));
        rig.run(ms(15));
        assert_eq!(rig.bled, if own_plan { 1 << 4 } else { 0 });
        rig.order(Order::Balance(0));
        rig.run(ms(20));
        assert_eq!(rig.bled, 0);
    }
}

#[test]
fn luminaires_shine_from_boot_and_obey_within_what_is_there() {
    let mut config = config();
    config.capabilities = Capabilities {
        cells: 0,
        temps: 0,
        anchors: 10,
    };
    let mut rig = Rig::new(config);
    assert!(rig.drain().contains(&SlaveOutput::Light(0x3ff)));
    assert_eq!(rig.order(Order::Light(0xffff)), [SlaveOutput::Light(0x3ff)]);
}

#[test]
fn luminaires_say_who_they_are_by_their_seat_or_as_configured() {
    let mut config = config();
    config.capabilities.anchors = 3;
    let mut rig = Rig::new(config.clone());
    assert!(
        !rig.drain()
            .iter()
            .any(|o| matches!(o, SlaveOutput::Identify(_)))
    );
    let seat = NodeId::new(5).expect("valid");
    rig.slave.handle_event(rig.now, SlaveEvent::Joined(seat));
    assert!(rig.drain().contains(&SlaveOutput::Identify(80)));
    let frame: Vec<bool> = (0..FRAME_CHIPS)
        .map(|at| light_code(80, 2).chip(at))
        .collect();
    assert_eq!(helio_positioning::decode_chips(&frame), Some(82));

    config.light_id = Some(0x700);
    let mut rig = Rig::new(config);
    assert!(rig.drain().contains(&SlaveOutput::Identify(0x700)));
    rig.slave.handle_event(rig.now, SlaveEvent::Joined(seat));
    assert!(
        !rig.drain()
            .iter()
            .any(|o| matches!(o, SlaveOutput::Identify(_)))
    );
}

#[test]
fn a_slave_of_anchors_never_measures_and_never_has_its_gate_on() {
    let mut config = config();
    config.capabilities = Capabilities {
        cells: 0,
        temps: 0,
        anchors: 16,
    };
    let mut rig = Rig::new(config);
    rig.drain();
    assert_eq!(rig.run(HOUR), []);
    assert_eq!(rig.sync(), []);
    assert_eq!(rig.order(Order::Gate(true)), []);
    assert_eq!(rig.slave.state(), SlaveState::Standby);
    assert_eq!(
        rig.event(SlaveEvent::RangeNow(TagId(3))),
        [SlaveOutput::RangeNow(TagId(3))]
    );
}

#[test]
fn an_isolated_slave_takes_no_ranges() {
    let mut config = config();
    config.capabilities.anchors = 2;
    let mut rig = Rig::new(config);
    rig.order(Order::Isolate(true));
    assert_eq!(rig.event(SlaveEvent::RangeNow(TagId(3))), []);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Answer(Option<Sample>),
    Sample(Sample),
    Event(SlaveEvent),
    Frame(u32, Vec<u8>),
    Bytes(Vec<u8>),
    Ranges,
}

fn any_sample() -> impl Strategy<Value = Sample> {
    prop_oneof![
        6 => Just(healthy()),
        2 => (0..16usize, prop_oneof![2_480..2_520u16, 4_200..4_260u16, any::<u16>()])
            .prop_map(|(i, mv)| with_cell(i, mv)),
        1 => (-320..620i16).prop_map(with_temp),
        1 => Just(incomplete()),
        1 => (any::<u8>(), any::<u8>(), any::<Option<i32>>()).prop_map(|(cells, temps, ma)| {
            let mut sample = healthy();
            sample.cell_count = cells;
            sample.temp_count = temps;
            sample.current = ma.map(Milliamps);
            sample
        }),
    ]
}

fn any_order() -> impl Strategy<Value = Order> {
    prop_oneof![
        4 => Just(Order::Gate(true)),
        1 => Just(Order::Gate(false)),
        3 => any::<u32>().prop_map(Order::Balance),
        3 => Just(Order::ClearLatch),
        1 => Just(Order::Isolate(true)),
        2 => Just(Order::Isolate(false)),
        1 => any::<u16>().prop_map(Order::Light),
        1 => Just(Order::Quarantine(ms(5))),
    ]
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..25_000u64).prop_map(Step::Wait),
        1 => (150_000..1_500_000u64).prop_map(Step::Wait),
        1 => proptest::option::weighted(0.8, any_sample()).prop_map(Step::Answer),
        2 => Just(Step::Answer(Some(healthy()))),
        3 => any_sample().prop_map(Step::Sample),
        6 => any_order().prop_map(|o| Step::Event(SlaveEvent::Order(o))),
        4 => Just(Step::Event(SlaveEvent::Sync { cycle: 0, tag: None })),
        1 => prop::sample::select(vec![
            SlaveEvent::Joined(NodeId::MAX),
            SlaveEvent::Left(LeaveReason::Silence),
            SlaveEvent::RangeNow(TagId(1)),
            SlaveEvent::TripSeen,
            SlaveEvent::Datagram,
        ]).prop_map(Step::Event),
        1 => (any::<u32>(), prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(id, data)| Step::Frame(id, data)),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Step::Bytes),
        1 => Just(Step::Ranges),
    ]
}

/// What a slave may never do, checked against what it was told and shown, not against its state.
struct Witness {
    rig: Rig,
    /// A complete sample has come.
    shown: bool,
    /// The master wants the gate on, and nothing has revoked that.
    wanted: bool,
    isolated: bool,
}

impl Witness {
    fn take(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Wait(us) => {
                let end = self.rig.now + Duration::from_micros(us);
                loop {
                    let due = self.rig.slave.poll_timeout().unwrap_or(Instant::MAX);
                    if due > end {
                        break;
                    }
                    self.rig.now = self.rig.now.max(due);
                    self.rig.slave.handle_timeout(self.rig.now);
                    self.look()?;
                    let next = self.rig.slave.poll_timeout();
                    prop_assert!(
                        next.is_none_or(|t| t > self.rig.now),
                        "the timer stands still at {}",
                        self.rig.now
                    );
                }
                self.rig.now = end;
            }
            Step::Answer(answer) => self.rig.answer = answer,
            Step::Sample(sample) => self.sample(&sample)?,
            Step::Event(event) => {
                if let SlaveEvent::Order(order) = event {
                    match order {
                        Order::Gate(on) => self.wanted = on && !self.isolated,
                        Order::Isolate(on) => {
                            self.isolated = on;
                            self.wanted &= !on;
                        }
                        _ => {}
                    }
                }
                self.rig.slave.handle_event(self.rig.now, event);
            }
            Step::Frame(id, data) => {
                let id = match id & 1 {
                    0 => helio_bus::CanId::Standard((id >> 1 & 0x7ff) as u16),
                    _ => helio_bus::CanId::Extended(id >> 3),
                };
                let frame = CanFrame::new(id, false, &data).unwrap();
                self.rig.slave.handle_can(self.rig.now, &frame);
            }
            Step::Bytes(bytes) => self.rig.slave.handle_serial(self.rig.now, &bytes),
            Step::Ranges => {
                let range = [Some(Millimetres(2_000)); MAX_ANCHORS];
                let tag = TagId(1);
                let ranges = Ranges { tag, range };
                self.rig.slave.handle_ranges(self.rig.now, &ranges);
            }
        }
        self.look()
    }

    fn sample(&mut self, sample: &Sample) -> Result<(), TestCaseError> {
        self.rig.slave.handle_sample(self.rig.now, sample);
        let high = sample.cells().iter().flatten().any(|v| v.0 >= 4_250);
        let first = self.rig.slave.poll_output();
        match first {
            Some(SlaveOutput::Gate(false)) => self.rig.gate = false,
            Some(SlaveOutput::Balance(mask)) => self.rig.bled = mask,
            Some(SlaveOutput::Gate(true)) => self.rig.gate = true,
            Some(SlaveOutput::SampleNow) => prop_assert_eq!(self.rig.bled, 0),
            _ => {}
        }
        prop_assert!(!(high && self.rig.gate), "on at 4.25 V, first {first:?}");
        let c = &self.rig.slave.capabilities;
        self.shown |= sample.cells().iter().flatten().count() >= c.cells.into()
            && sample.temps().iter().flatten().count() >= c.temps.into()
            && sample.current.is_some();
        Ok(())
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        loop {
            if self.rig.slave.is_tripped() {
                self.wanted = false;
            }
            let Some(output) = self.rig.slave.poll_output() else {
                break;
            };
            match output {
                SlaveOutput::Gate(on) => {
                    self.rig.gate = on;
                    prop_assert!(!on || self.shown, "on before the first sample");
                    prop_assert!(!on || self.wanted, "on without an order");
                }
                SlaveOutput::Balance(mask) => self.rig.bled = mask,
                SlaveOutput::SampleNow => {
                    prop_assert_eq!(self.rig.bled, 0, "bleeding while sampling");
                    if let Some(sample) = self.rig.answer {
                        self.sample(&sample)?;
                    }
                }
                SlaveOutput::RangeNow(_) | SlaveOutput::Light(_) | SlaveOutput::Identify(_) => {}
            }
        }
        let s = &self.rig.slave;
        let running = matches!(s.state(), SlaveState::Active | SlaveState::Standby);
        prop_assert!(!(self.rig.gate && s.is_tripped()), "on while tripped");
        prop_assert!(!(self.rig.bled != 0 && s.is_tripped()), "bleeding, tripped");
        prop_assert!(self.rig.bled == 0 || running, "bleeding in {:?}", s.state());
        prop_assert_eq!(self.rig.gate, s.state() == SlaveState::Active);
        Ok(())
    }
}

proptest! {
    #[test]
    fn the_gate_is_on_only_with_an_order_after_a_complete_sample_and_never_while_tripped(
        steps in prop::collection::vec(any_step(), 1..120),
        own_plan: bool,
        open_after in proptest::option::of(1_000u64..200_000),
    ) {
        let mut config = config();
        config.bleed.own_plan = own_plan;
        config.bleed.order_limit = ms(100);
        if let Some(us) = open_after {
            config.on_master_loss = OnMasterLoss::OpenAfter(Duration::from_micros(us));
        }
        let mut witness = Witness { rig: Rig::new(config), shown: false, wanted: false, isolated: false };
        witness.look()?;
        for step in steps {
            witness.take(step)?;
        }
    }
}
