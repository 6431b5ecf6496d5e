extern crate std;

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Strings, contactors, link and load, and what can break of them.
struct Plant {
    core: Contactors,
    now: Instant,
    /// What the coils are fed.
    drive: Drive,
    pack_mv: f64,
    link_mv: f64,
    /// Contacts that conduct whatever their coil says.
    welded: Drive,
    /// Contacts that do not.
    stuck: Drive,
    /// Resistance at the link besides the load [Ω]; a short is small, a bleeder large.
    link_ohm: f64,
    /// Constant current that the load draws while the link is up and it may.
    load_ma: f64,
    greedy: bool,
    current_ma: f64,
    measured: bool,
    feedback: bool,
    /// Largest difference between pack and link at which both poles became one [mV].
    worst_step_mv: f64,
    events: Vec<ContactorEvent>,
}

const RESISTOR_OHM: f64 = 50.0;
const LINK_F: f64 = 1e-3;

impl Plant {
    fn new() -> Self {
        Self::with(ContactorConfig::default())
    }

    fn with(config: ContactorConfig) -> Self {
        assert_eq!(config.check(), Ok(()));
        Self {
            core: Contactors::new(config),
            now: Instant::ZERO,
            drive: Drive::default(),
            pack_mv: 400_000.0,
            link_mv: 0.0,
            welded: Drive::default(),
            stuck: Drive::default(),
            link_ohm: 2_000.0,
            load_ma: 20_000.0,
            greedy: false,
            current_ma: 0.0,
            measured: true,
            feedback: false,
            worst_step_mv: 0.0,
            events: Vec::new(),
        }
    }

    /// Wanted and permitted.
    fn on() -> Self {
        let mut plant = Self::new();
        plant.order(true);
        plant
    }

    fn order(&mut self, on: bool) {
        self.core.set_permit(self.now, true);
        self.core.set_wanted(self.now, on);
        self.drain();
    }

    fn conducts(&self) -> Drive {
        let one = |fed: bool, stuck: bool, welded: bool| (fed && !stuck) || welded;
        Drive {
            negative: one(
                self.drive.negative,
                self.stuck.negative,
                self.welded.negative,
            ),
            precharge: one(
                self.drive.precharge,
                self.stuck.precharge,
                self.welded.precharge,
            ),
            positive: one(
                self.drive.positive,
                self.stuck.positive,
                self.welded.positive,
            ),
        }
    }

    /// Other contacts do not conduct from now on. One that comes back although its coil was fed all along joins the poles by
    /// itself: nothing was commanded, so that is no step of the core's.
    fn stick(&mut self, stuck: Drive) {
        let joined = |c: Drive| c.negative && c.positive;
        let before = joined(self.conducts());
        self.stuck = stuck;
        if !before && joined(self.conducts()) {
            self.link_mv = self.pack_mv;
        }
    }

    fn drain(&mut self) {
        while let Some(drive) = self.core.poll_drive() {
            self.drive = drive;
        }
        while let Some(event) = self.core.poll_event() {
            self.events.push(event);
        }
        assert_eq!(self.core.is_open(), self.drive == Drive::default());
    }

    /// One millisecond; measured every fifth.
    fn tick(&mut self) {
        self.now += ms(1);
        let c = self.conducts();
        let load = match self.core.load_allowed() || self.greedy {
            true if self.link_mv > 50_000.0 => self.load_ma,
            _ => 0.0,
        };
        let leak_ma = self.link_mv / self.link_ohm;
        if c.negative && c.positive {
            self.worst_step_mv = self.worst_step_mv.max((self.pack_mv - self.link_mv).abs());
            self.link_mv = self.pack_mv;
            self.current_ma = load + leak_ma;
        } else {
            let through = match c.negative && c.precharge {
                true => (self.pack_mv - self.link_mv) / RESISTOR_OHM,
                false => 0.0,
            };
            self.current_ma = through;
            // A shorted link settles within the millisecond.
            let tau_ms =
                LINK_F * 1e3 / (1.0 / self.link_ohm + f64::from(through != 0.0) / RESISTOR_OHM);
            let end = (through + self.link_mv / RESISTOR_OHM * f64::from(through != 0.0) - load)
                / (1.0 / self.link_ohm + f64::from(through != 0.0) / RESISTOR_OHM);
            self.link_mv = (end + (self.link_mv - end) * (-1.0 / tau_ms).exp()).max(0.0);
        }
        if self.core.poll_timeout().is_some_and(|t| t <= self.now) {
            self.core.handle_timeout(self.now);
            self.drain();
        }
        if self.measured && self.now.as_millis().is_multiple_of(5) {
            let t = self.terminals();
            self.core.handle_terminals(self.now, &t);
            self.drain();
        }
    }

    fn terminals(&self) -> Terminals {
        Terminals {
            pack_mv: Some(self.pack_mv as u32),
            link_mv: Some(self.link_mv as u32),
            current: Some(Milliamps(self.current_ma as i32)),
            feedback: self.feedback.then(|| self.conducts()),
        }
    }

    fn run(&mut self, millis: u64) {
        for _ in 0..millis {
            self.tick();
        }
    }

    /// Runs until that state, or says where it got stuck.
    fn until(&mut self, state: ContactorState) {
        for _ in 0..60_000 {
            if self.core.state() == state {
                return;
            }
            self.tick();
        }
        panic!(
            "never {state:?}, but {:?} after {:?}",
            self.core.state(),
            self.events
        );
    }

    fn closed() -> Self {
        let mut plant = Self::on();
        plant.until(ContactorState::Closed);
        plant
    }
}

const NEGATIVE: Drive = Drive {
    negative: true,
    precharge: false,
    positive: false,
};
const PRECHARGE: Drive = Drive {
    negative: false,
    precharge: true,
    positive: false,
};
const POSITIVE: Drive = Drive {
    negative: false,
    precharge: false,
    positive: true,
};
const POLES: Drive = Drive {
    negative: true,
    precharge: false,
    positive: true,
};

#[test]
fn everything_is_off_at_boot_and_told_so() {
    let mut core = Contactors::new(ContactorConfig::default());
    assert_eq!(core.poll_drive(), Some(Drive::default()));
    assert_eq!(core.poll_drive(), None);
    assert_eq!(
        (core.state(), core.poll_timeout()),
        (ContactorState::Open, None)
    );
    core.handle_timeout(Instant::from_millis(5));
    assert!(core.is_open() && core.allows_strings() && !core.load_allowed());
}

#[test]
fn the_link_is_charged_through_the_resistor_before_the_positive_contactor_closes() {
    let mut plant = Plant::closed();
    assert_eq!(
        plant.events,
        [ContactorEvent::Precharging, ContactorEvent::Closed]
    );
    assert_eq!(plant.drive, POLES, "the relay is released");
    // 3 % of 400 V, as configured.
    assert!(
        plant.worst_step_mv <= 12_000.0,
        "{} mV",
        plant.worst_step_mv
    );
    assert!(plant.now < Instant::from_millis(700), "{}", plant.now);
    plant.run(60_000);
    assert_eq!(plant.core.state(), ContactorState::Closed);
    assert_eq!(plant.core.link_mv(plant.now), Some(400_000));
}

#[test]
fn nothing_moves_without_a_permit_an_order_or_a_pack() {
    for (wanted, permit, pack_mv, measured) in [
        (false, true, 400_000.0, true),
        (true, false, 400_000.0, true),
        (true, true, 4_000.0, true),
        (true, true, 400_000.0, false),
    ] {
        let mut plant = Plant::new();
        (plant.pack_mv, plant.measured) = (pack_mv, measured);
        plant.core.set_wanted(plant.now, wanted);
        plant.core.set_permit(plant.now, permit);
        for _ in 0..3_000 {
            plant.tick();
            assert_eq!(plant.drive, Drive::default());
        }
        assert_eq!(plant.core.link_mv(plant.now).is_some(), measured);
    }
}

#[test]
fn the_load_lets_go_before_the_contactors_open() {
    let mut plant = Plant::closed();
    plant.run(100);
    plant.order(false);
    assert!(!plant.core.load_allowed());
    assert_eq!(plant.core.state(), ContactorState::Opening);
    assert_eq!(plant.drive, POLES);
    plant.until(ContactorState::Open);
    assert_eq!(plant.core.openings_under_load(), 0);
    assert_eq!(plant.events.last(), Some(&ContactorEvent::Opened));
}

#[test]
fn a_load_that_does_not_let_go_is_cut_off_and_counted() {
    let mut plant = Plant::with(ContactorConfig {
        decay: None,
        ..ContactorConfig::default()
    });
    plant.order(true);
    plant.until(ContactorState::Closed);
    plant.greedy = true;
    plant.run(100);
    let from = plant.now;
    plant.order(false);
    plant.until(ContactorState::Open);
    assert!(plant.now.since(from) >= ms(500) && plant.now.since(from) <= ms(510));
    assert_eq!(plant.core.openings_under_load(), 1);
}

#[test]
fn without_a_permit_everything_is_off_at_once_and_closes_again_when_it_is_back() {
    let mut plant = Plant::closed();
    plant.run(100);
    plant.core.set_permit(plant.now, false);
    plant.drain();
    assert_eq!(plant.drive, Drive::default());
    assert_eq!(plant.events.last(), Some(&ContactorEvent::Dropped));
    assert_eq!(plant.core.openings_under_load(), 1);
    plant.run(5_000);
    assert_eq!(plant.core.state(), ContactorState::Open);
    plant.core.set_permit(plant.now, true);
    plant.until(ContactorState::Closed);
}

#[test]
fn an_order_taken_back_on_the_way_opens_at_once() {
    for millis in [20, 120, 220, 390] {
        let mut plant = Plant::on();
        plant.run(millis);
        assert_eq!(
            plant.core.state(),
            ContactorState::Precharging,
            "{millis} ms"
        );
        plant.order(false);
        assert_eq!(
            (plant.drive, plant.core.state()),
            (Drive::default(), ContactorState::Open)
        );
        assert_eq!(plant.events.last(), Some(&ContactorEvent::Opened));
    }
}

/// A fault, and whether the strings may stay on with it.
fn found(plant: &mut Plant, fault: ContactorFault) {
    plant.until(ContactorState::Faulted(fault));
    assert_eq!(plant.drive, Drive::default());
    assert_eq!(plant.events.last(), Some(&ContactorEvent::Failed(fault)));
    assert_eq!(plant.core.allows_strings(), !fault.is_weld());
    assert!(!plant.core.load_allowed() && !fault.name().is_empty());
}

/// Once the fault is gone and cleared, it closes.
fn cleared(plant: &mut Plant) {
    plant.run(3_000);
    assert!(matches!(plant.core.state(), ContactorState::Faulted(_)));
    plant.core.clear(plant.now);
    plant.drain();
    plant.until(ContactorState::Closed);
}

fn retries(plant: &Plant) -> usize {
    let retry = |e: &&ContactorEvent| matches!(e, ContactorEvent::Retrying(_));
    plant.events.iter().filter(retry).count()
}

#[test]
fn every_fault_is_found_by_its_cause_and_cleared_when_that_is_gone() {
    use ContactorFault as F;
    type Cause = fn(&mut Plant);
    let causes: [(F, Cause, usize); 7] = [
        (F::WeldedNegative, |p| p.welded = NEGATIVE, 0),
        (F::WeldedPositive, |p| p.welded = POSITIVE, 0),
        (F::WeldedPositive, |p| p.welded = PRECHARGE, 0),
        (F::PrechargeOpen, |p| p.stuck = PRECHARGE, 2),
        (F::PrechargeOpen, |p| p.stuck = NEGATIVE, 2),
        (F::PrechargeShort, |p| p.link_ohm = 0.5, 2),
        // Half the voltage at the link: a load is on that should not be.
        (F::PrechargeTimeout, |p| p.link_ohm = 50.0, 2),
    ];
    for (fault, cause, again) in causes {
        let mut plant = Plant::new();
        cause(&mut plant);
        plant.order(true);
        found(&mut plant, fault);
        assert_eq!(retries(&plant), again, "{fault:?}");
        plant.welded = Drive::default();
        plant.stuck = Drive::default();
        plant.link_ohm = 2_000.0;
        cleared(&mut plant);
    }
}

#[test]
fn a_weld_that_was_cleared_by_hand_but_not_mended_is_found_again() {
    let mut plant = Plant::new();
    plant.welded = POSITIVE;
    plant.order(true);
    for _ in 0..3 {
        found(&mut plant, ContactorFault::WeldedPositive);
        plant.run(5_000);
        plant.core.clear(plant.now);
        plant.drain();
        assert_ne!(
            plant.core.state(),
            ContactorState::Faulted(ContactorFault::WeldedPositive)
        );
    }
}

#[test]
fn a_contactor_that_welds_while_closed_is_found_when_it_should_open() {
    let mut plant = Plant::closed();
    plant.welded = POSITIVE;
    plant.run(100);
    plant.order(false);
    found(&mut plant, ContactorFault::WeldedPositive);
    assert_eq!(plant.core.openings_under_load(), 0);
}

#[test]
fn current_with_nothing_closed_means_that_both_poles_are_welded() {
    let mut plant = Plant::closed();
    plant.welded = POLES;
    plant.greedy = true;
    plant.run(100);
    plant.core.set_permit(plant.now, false);
    plant.drain();
    found(&mut plant, ContactorFault::WeldedBoth);
    // The strings open for it, and it stays remembered.
    plant.current_ma = 0.0;
    plant.run(1_000);
    assert!(!plant.core.allows_strings());
}

#[test]
fn auxiliary_contacts_find_at_once_what_the_voltages_find_later() {
    use ContactorFault as F;
    for (welded, fault) in [
        (NEGATIVE, F::WeldedNegative),
        (POSITIVE, F::WeldedPositive),
        (PRECHARGE, F::WeldedPositive),
        (POLES, F::WeldedBoth),
    ] {
        let mut plant = Plant::new();
        (plant.feedback, plant.welded, plant.link_ohm) = (true, welded, 1e9);
        plant.run(100);
        found(&mut plant, fault);
    }
    for stuck in [NEGATIVE, POSITIVE, PRECHARGE] {
        let mut plant = Plant::new();
        (plant.feedback, plant.stuck) = (true, stuck);
        plant.order(true);
        found(&mut plant, F::NotClosed);
        plant.stuck = Drive::default();
        cleared(&mut plant);
    }
    let mut plant = Plant::new();
    plant.feedback = true;
    plant.order(true);
    plant.until(ContactorState::Closed);
    plant.run(5_000);
    plant.order(false);
    plant.until(ContactorState::Open);
    assert_eq!(retries(&plant), 0);
}

#[test]
fn a_positive_contactor_that_does_not_close_is_found_when_the_link_falls() {
    let mut plant = Plant::new();
    plant.stuck = POSITIVE;
    plant.order(true);
    found(&mut plant, ContactorFault::NotClosed);
    assert_eq!(retries(&plant), 2);
    // One that fails after a long time has all its attempts before it.
    let mut plant = Plant::closed();
    plant.run(20_000);
    for n in 1..=3 {
        plant.stuck = POSITIVE;
        plant.until(ContactorState::CoolingDown);
        assert_eq!(retries(&plant), n);
        plant.stuck = Drive::default();
        plant.until(ContactorState::Closed);
        plant.run(20_000);
    }
    // One reading astray is no reason to drop a load.
    let mut plant = Plant::closed();
    plant.run(100);
    let astray = Terminals {
        link_mv: Some(0),
        ..plant.terminals()
    };
    plant.now += ms(1);
    plant.core.handle_terminals(plant.now, &astray);
    plant.core.handle_timeout(plant.now + ms(100));
    plant.run(1_000);
    assert_eq!(plant.core.state(), ContactorState::Closed);
}

#[test]
fn without_voltages_nothing_closes_further_and_a_load_that_runs_is_kept() {
    for millis in [20, 130, 230] {
        let mut plant = Plant::on();
        plant.run(millis);
        plant.measured = false;
        plant.until(ContactorState::CoolingDown);
        assert_eq!(
            plant.events.last(),
            Some(&ContactorEvent::Retrying(ContactorFault::NoMeasurement))
        );
        plant.run(20_000);
        assert_eq!((plant.drive, retries(&plant)), (Drive::default(), 1));
        plant.measured = true;
        plant.until(ContactorState::Closed);
    }
    let mut plant = Plant::closed();
    plant.measured = false;
    plant.run(10_000);
    assert_eq!(plant.core.state(), ContactorState::Closed);
    assert_eq!(plant.core.link_mv(plant.now), None);
    // Then nobody can see it fall, and it opens after the load's patience.
    plant.order(false);
    plant.until(ContactorState::Open);
    // Lost in the middle of opening.
    let mut plant = Plant::closed();
    plant.run(100);
    plant.order(false);
    plant.run(20);
    assert_eq!(plant.drive, NEGATIVE);
    plant.measured = false;
    plant.until(ContactorState::Open);
    assert_eq!(plant.events.last(), Some(&ContactorEvent::Opened));
}

#[test]
fn a_link_that_is_still_charged_is_closed_to_without_a_test_that_cannot_tell() {
    let mut plant = Plant::closed();
    plant.link_ohm = 1e9;
    plant.core.set_permit(plant.now, false);
    plant.run(100);
    plant.core.set_permit(plant.now, true);
    plant.until(ContactorState::Closed);
}

#[test]
fn one_reading_of_a_charged_link_is_not_believed() {
    let mut plant = Plant::on();
    plant.run(270);
    assert_eq!(
        plant.drive,
        Drive {
            precharge: true,
            ..NEGATIVE
        }
    );
    let charged = Terminals {
        link_mv: Some(400_000),
        current: None,
        ..plant.terminals()
    };
    plant.now += ms(1);
    plant.core.handle_terminals(plant.now, &charged);
    plant.core.handle_timeout(plant.now);
    plant.drain();
    assert!(!plant.drive.positive);
    plant.until(ContactorState::Closed);
    assert!(plant.worst_step_mv <= 12_000.0);
}

#[test]
fn failures_are_forgotten_with_the_order() {
    let mut plant = Plant::new();
    plant.stuck = PRECHARGE;
    plant.order(true);
    while retries(&plant) < 2 {
        plant.tick();
    }
    assert_eq!(plant.core.state(), ContactorState::CoolingDown);
    plant.order(false);
    plant.run(20_000);
    assert_eq!(plant.core.state(), ContactorState::Open);
    plant.order(true);
    plant.run(1_000);
    assert_eq!(plant.core.state(), ContactorState::CoolingDown);
    plant.stuck = Drive::default();
    plant.core.clear(plant.now);
    plant.drain();
    plant.until(ContactorState::Closed);
}

#[test]
fn events_that_nobody_fetches_make_room_for_newer_ones() {
    let mut core = Contactors::new(ContactorConfig::default());
    for n in 0..9u8 {
        core.tell(match n {
            8 => ContactorEvent::Dropped,
            _ => ContactorEvent::Opened,
        });
    }
    let all: Vec<_> = core::iter::from_fn(|| core.poll_event()).collect();
    assert_eq!((all.len(), all.last()), (4, Some(&ContactorEvent::Dropped)));
}

#[test]
fn a_senseless_configuration_is_refused_with_the_remedy() {
    let good = ContactorConfig::default();
    let (zero, long) = (Duration::ZERO, ms(9_999));
    for (bad, key) in [
        (
            ContactorConfig {
                settle: zero,
                ..good
            },
            "settle",
        ),
        (
            ContactorConfig {
                test: good.settle,
                ..good
            },
            "test",
        ),
        (
            ContactorConfig {
                precharge_min: long,
                ..good
            },
            "precharge_max",
        ),
        (
            ContactorConfig {
                weld_permille: 500,
                ..good
            },
            "weld_permille",
        ),
        (
            ContactorConfig {
                match_permille: 0,
                ..good
            },
            "match_permille",
        ),
        (
            ContactorConfig {
                match_permille: 100,
                ..good
            },
            "match_permille",
        ),
        (ContactorConfig { end_ma: 0, ..good }, "end_ma"),
        (ContactorConfig { open_ma: 0, ..good }, "end_ma"),
        (
            ContactorConfig {
                stale: zero,
                ..good
            },
            "stale",
        ),
        (
            ContactorConfig {
                least_mv: 0,
                ..good
            },
            "stale",
        ),
    ] {
        assert!(bad.check().unwrap_err().starts_with(key), "{key}");
    }
}

#[test]
fn every_state_has_a_name_for_clients() {
    let mut plant = Plant::on();
    let mut names = std::vec![ContactorState::None.name(), plant.core.state().name()];
    plant.until(ContactorState::Precharging);
    names.push(plant.core.state().name());
    plant.until(ContactorState::Closed);
    names.push(plant.core.state().name());
    plant.order(false);
    names.push(plant.core.state().name());
    plant.until(ContactorState::Open);
    names.push(plant.core.state().name());
    plant.stuck = PRECHARGE;
    plant.order(true);
    plant.until(ContactorState::CoolingDown);
    names.push(plant.core.state().name());
    plant.until(ContactorState::Faulted(ContactorFault::PrechargeOpen));
    names.push(plant.core.state().name());
    assert_eq!(
        names,
        [
            "none",
            "open",
            "precharging",
            "closed",
            "opening",
            "open",
            "cooling down",
            "precharge path open"
        ]
    );
    let blind = ContactorState::Faulted(ContactorFault::NoMeasurement);
    assert_eq!(blind.name(), "terminal voltage not measured");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    /// Whatever breaks, is ordered or permitted, and when: contactors that are not welded never make an inrush, and without
    /// a permit nothing is driven.
    #[test]
    fn the_positive_contactor_never_closes_onto_an_empty_link(
        steps in proptest::collection::vec((0u64..700, 0u8..12), 1..40),
        decay in proptest::bool::ANY,
    ) {
        let config = ContactorConfig {
            decay: decay.then_some(ms(2_000)),
            cool_down: ms(300),
            ..ContactorConfig::default()
        };
        let mut plant = Plant::with(config);
        let mut permit = false;
        for (millis, what) in steps {
            match what {
                0 | 1 => plant.core.set_wanted(plant.now, true),
                2 => plant.core.set_wanted(plant.now, false),
                3 | 4 => permit = true,
                5 => permit = false,
                6 => plant.core.clear(plant.now),
                7 => plant.measured = !plant.measured,
                8 => plant.stick([NEGATIVE, PRECHARGE, POSITIVE, Drive::default()][millis as usize % 4]),
                9 => plant.link_ohm = [0.5, 50.0, 2_000.0][millis as usize % 3],
                10 => plant.greedy = !plant.greedy,
                _ => plant.stick(Drive::default()),
            }
            plant.core.set_permit(plant.now, permit);
            plant.drain();
            for _ in 0..millis {
                plant.tick();
                prop_assert!(permit || plant.drive == Drive::default());
                let due = plant.core.poll_timeout();
                prop_assert!(due.is_none_or(|t| t > plant.now), "the timer stands still");
            }
        }
        // 3 % to match, and what a bleeder or load takes while the positive contactor moves.
        prop_assert!(plant.worst_step_mv <= 20_000.0, "{} mV", plant.worst_step_mv);
    }

    /// Numbers that no sensor should give, at times that no clock should show.
    #[test]
    fn nothing_makes_it_panic(
        steps in proptest::collection::vec((any::<u16>(), any::<Option<u32>>(), any::<Option<u32>>(), any::<Option<i32>>(), any::<u8>()), 1..80),
        permilles in any::<(u16, u16)>(),
    ) {
        let mut core = Contactors::new(ContactorConfig {
            weld_permille: permilles.0, match_permille: permilles.1, test: Duration::ZERO, settle: Duration::ZERO,
            cool_down: Duration::ZERO, ..ContactorConfig::default()
        });
        for (at, pack_mv, link_mv, current, what) in steps {
            let now = Instant::from_millis(u64::from(at));
            core.set_permit(now, what & 1 == 0);
            core.set_wanted(now, what & 6 != 0);
            if what & 24 == 0 { core.clear(now); }
            core.handle_terminals(now, &Terminals { pack_mv, link_mv, current: current.map(Milliamps), feedback: None });
            let _ = (core.poll_drive(), core.poll_event(), core.poll_timeout());
        }
    }
}
