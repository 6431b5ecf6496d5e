use super::*;
use crate::MAX_TEMPS;
use helio_units::{DeciCelsius, Milliamps, Millivolts};
use proptest::prelude::*;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// 16 cells at 3.7 V, 8 sensors at 25 °C, no current.
fn healthy() -> Sample {
    let mut sample = Sample {
        cell_count: 16,
        temp_count: 8,
        temps: [Some(DeciCelsius(250)); MAX_TEMPS],
        current: Some(Milliamps(0)),
        ..Sample::EMPTY
    };
    for cell in &mut sample.cells[..16] {
        *cell = Some(Millivolts(3_700));
    }
    sample
}

fn protection() -> Protection {
    Protection::new(Limits::nmc(5_000))
}

fn code(kind: Kind, severity: Severity) -> Code {
    Code::new(kind, severity)
}

fn drain(p: &mut Protection) -> Vec<ProtectionEvent> {
    core::iter::from_fn(|| p.poll_event()).collect()
}

#[test]
fn the_default_tables_pass_their_own_check() {
    for mah in [i32::MIN, 0, 1, 100, 2_500, 5_000, 280_000, i32::MAX] {
        assert_eq!(Limits::nmc(mah).check(), Ok(()), "{mah}");
        assert_eq!(Limits::lfp(mah).check(), Ok(()), "{mah}");
    }
}

#[test]
fn a_senseless_table_is_refused_with_the_place_and_the_remedy() {
    let refused = |change: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::nmc(5_000);
        change(&mut limits);
        limits.check().unwrap_err().to_string()
    };
    let rule = |kind, severity, change: fn(&mut Rule)| {
        refused(&|l: &mut Limits| change(l.rule_mut(kind, severity).as_mut().unwrap()))
    };
    assert_eq!(
        rule(Kind::Imbalance, Severity::Warn, |r| r.hysteresis = -1),
        "cell imbalance Warn: hysteresis is negative, give 0 or more"
    );
    assert_eq!(
        rule(Kind::CellUndervoltage, Severity::Trip, |r| r.threshold =
            2_801),
        "cell under-voltage Trip: threshold sets in before the milder severity, move it beyond"
    );
    assert_eq!(
        rule(Kind::FrozenClock, Severity::Derate, |r| r.delay = ms(1)),
        "frozen clock Derate: a delay would never end, give 0"
    );
    for (change, name) in [
        (
            (|l| l.plausible_mv = (5, 5)) as fn(&mut Limits),
            "plausible_mv",
        ),
        (|l| l.plausible_dc = (5, 4), "plausible_dc"),
        (|l| l.plausible_ma = 0, "plausible_ma"),
        (|l| l.rated_ma = 0, "rated_ma"),
        (|l| l.overload_tau = Duration::ZERO, "overload_tau"),
        (|l| l.rise_window = Duration::ZERO, "rise_window"),
        (|l| l.moving_ma = 0, "moving_ma"),
        (|l| l.jump_mv = 0, "jump_mv"),
        (|l| l.rest_ma = -1, "rest_ma"),
    ] {
        assert_eq!(
            refused(&change),
            std::format!("{name}: empty range or not positive")
        );
    }
}

#[test]
fn codes_are_stable_bytes_with_names() {
    assert_eq!(KINDS, 29);
    assert_eq!(CODE_COUNT, 87);
    assert_eq!(code(Kind::GateStuck, Severity::Trip).get(), 86);
    for raw in 0..=u8::MAX {
        let Some(code) = Code::from_raw(raw) else {
            assert!(raw >= 87);
            continue;
        };
        assert_eq!(Code::new(code.kind(), code.severity()), code);
        assert_eq!(code.get(), raw);
        let (kind, severity) = CODES[usize::from(raw)];
        assert_eq!(kind, code.kind().name());
        assert_eq!(code.to_string(), std::format!("{kind} ({severity})"));
    }
    let symbols: Vec<_> = Kind::ALL.iter().map(|k| k.unit().symbol()).collect();
    for unit in ["mV", "dK", "mA", "ms", "", "permille"] {
        assert!(symbols.contains(&unit));
    }
    let low: Vec<_> = Kind::ALL.into_iter().filter(|k| k.falls()).collect();
    assert_eq!(
        low,
        [
            Kind::CellUndervoltage,
            Kind::DeepDischarge,
            Kind::GroupUndervoltage,
            Kind::UndertempCharge,
            Kind::UndertempDischarge
        ]
    );
}

#[test]
fn the_gate_stays_off_until_a_sample_has_nothing_against_it() {
    let mut p = protection();
    assert!(p.must_open());
    p.handle_sample(at(0), &Sample::EMPTY);
    assert!(p.must_open(), "an empty sample says nothing");
    let mut broken = healthy();
    broken.cells[3] = None;
    p.handle_sample(at(10), &broken);
    assert!(p.must_open());
    p.handle_sample(at(20), &healthy());
    assert!(!p.must_open());
}

#[test]
fn an_overvoltage_opens_the_gate_on_the_very_sample() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    assert!(!p.must_open());
    assert_eq!(p.severity(), None);
    let mut high = healthy();
    high.cells[5] = Some(Millivolts(4_250));
    p.handle_sample(at(10), &high);
    assert!(p.must_open());
    assert_eq!(p.severity(), Some(Severity::Trip));
    assert!(p.is_active(code(Kind::CellOvervoltage, Severity::Trip)));
    let event = p.poll_event().unwrap();
    assert_eq!(event.code, code(Kind::CellOvervoltage, Severity::Trip));
    assert_eq!(
        (event.active, event.index, event.value, event.at),
        (true, 5, 4_250, at(10))
    );
    let frame = p.diagnostics().freeze_frames().next().unwrap();
    assert_eq!((frame.event, frame.sample), (event, high));
}

#[test]
fn a_latched_trip_stays_until_it_is_cleared_and_its_cause_is_gone() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    let mut high = healthy();
    high.cells[5] = Some(Millivolts(4_250));
    p.handle_sample(at(10), &high);
    assert!(!p.clear_latch(at(11)) && p.must_open());
    p.handle_sample(at(20), &healthy());
    assert!(p.must_open());
    p.handle_sample(at(30), &high);
    assert!(!p.clear_latch(at(31)), "the cause is back");
    p.handle_sample(at(40), &healthy());
    assert!(p.clear_latch(at(41)) && !p.must_open());
    assert!(!p.clear_latch(at(42)), "there is nothing more to clear");
    assert_eq!(
        p.record(code(Kind::CellOvervoltage, Severity::Trip)).count,
        1
    );
}

#[test]
fn a_deep_discharge_is_not_cleared_from_afar() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    let mut low = healthy();
    low.cells[15] = Some(Millivolts(1_900));
    for k in 1..150 {
        p.handle_sample(at(k * 10), &low);
    }
    for k in 150..160 {
        p.handle_sample(at(k * 10), &healthy());
    }
    p.clear_latch(at(1_600));
    assert!(p.must_open() && p.is_active(code(Kind::DeepDischarge, Severity::Trip)));
    assert!(p.clear_service(at(1_600)));
    assert!(!p.must_open());
}

#[test]
fn silence_trips_by_the_timer() {
    let mut p = protection();
    assert_eq!(p.poll_timeout(), Some(Instant::ZERO));
    p.handle_timeout(at(0));
    p.handle_sample(at(5), &healthy());
    assert!(!p.must_open());
    let mut calls = 0;
    while !p.must_open() {
        let due = p.poll_timeout().unwrap();
        assert!(due <= at(205));
        p.handle_timeout(due);
        calls += 1;
    }
    assert_eq!(calls, 3);
    assert_eq!(
        p.record(code(Kind::StaleData, Severity::Trip)).last.at,
        at(205)
    );
    assert_eq!(
        p.poll_timeout(),
        None,
        "nothing more can happen without a sample"
    );
}

#[test]
fn silence_from_the_start_is_noticed_too() {
    let mut p = protection();
    p.handle_timeout(at(1_000));
    assert_eq!(p.poll_timeout(), Some(at(1_050)));
    p.handle_timeout(at(1_200));
    assert!(p.is_active(code(Kind::StaleData, Severity::Trip)));
}

#[test]
fn a_delay_ends_by_the_timer_without_one_more_sample() {
    let mut p = protection();
    let mut pull = healthy();
    p.handle_sample(at(0), &pull);
    pull.current = Some(Milliamps(31_000));
    p.handle_sample(at(10), &pull);
    assert!(!p.must_open());
    // The stale-data warning comes first, then the over-current trip at 10 + 100 ms.
    assert_eq!(p.poll_timeout(), Some(at(60)));
    p.handle_timeout(at(60));
    assert_eq!(p.poll_timeout(), Some(at(110)));
    p.handle_timeout(at(109));
    assert!(!p.must_open());
    p.handle_timeout(at(110));
    assert!(p.must_open());
}

#[test]
fn a_missing_cell_can_begin_an_event_but_not_end_one() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    let mut high = healthy();
    high.cells[5] = Some(Millivolts(4_211));
    p.handle_sample(at(10), &high);
    let warn = code(Kind::CellOvervoltage, Severity::Warn);
    let mut lost = healthy();
    lost.cells[5] = None;
    for k in 2..11 {
        p.handle_sample(at(k * 10), &lost);
        assert!(!p.is_active(warn));
    }
    p.handle_sample(at(110), &lost);
    assert!(p.is_active(warn), "nobody has seen the cell come back");
    p.handle_sample(at(120), &healthy());
    p.handle_sample(at(1_119), &healthy());
    assert!(p.is_active(warn));
    p.handle_sample(at(1_120), &healthy());
    assert!(!p.is_active(warn));
}

#[test]
fn an_event_that_comes_back_while_clearing_does_not_end() {
    let mut p = protection();
    let warn = code(Kind::TempSpread, Severity::Warn);
    let with = |dc: i16| {
        let mut s = healthy();
        s.temps[2] = Some(DeciCelsius(dc));
        s
    };
    for k in 0..=500 {
        p.handle_sample(at(k * 10), &with(340));
    }
    assert!(p.is_active(warn));
    p.handle_sample(at(5_100), &with(250));
    p.handle_sample(at(5_600), &with(320));
    p.handle_sample(at(6_110), &with(250));
    assert!(p.is_active(warn), "back beyond the hysteresis at 5.6 s");
    p.handle_sample(at(7_110), &with(250));
    assert!(!p.is_active(warn));
    assert_eq!(p.record(warn).count, 1);
}

#[test]
fn charging_limits_count_only_while_charging() {
    let mut p = protection();
    let mut cold = healthy();
    cold.temps = [Some(DeciCelsius(-60)); MAX_TEMPS];
    let trip = code(Kind::UndertempCharge, Severity::Trip);
    for k in 0..300 {
        cold.current = Some(Milliamps(5_000));
        p.handle_sample(at(k * 10), &cold);
    }
    assert!(!p.is_active(trip) && !p.must_open());
    // Half the delay charging, a moment of rest, half the delay charging again: not continuous.
    for k in 300..500 {
        cold.current = Some(Milliamps(if k == 350 || k == 440 { 0 } else { -1_000 }));
        p.handle_sample(at(k * 10), &cold);
    }
    assert!(!p.is_active(trip));
    for k in 500..600 {
        p.handle_sample(at(k * 10), &cold);
    }
    assert!(p.is_active(trip));
}

#[test]
fn without_a_current_both_sets_of_temperature_limits_hold() {
    let mut p = protection();
    let mut hot = healthy();
    hot.temps[0] = Some(DeciCelsius(510));
    hot.current = None;
    for k in 0..30 {
        p.handle_sample(at(k * 10), &hot);
    }
    assert!(p.is_active(code(Kind::OvertempCharge, Severity::Trip)));
}

#[test]
fn the_wire_gets_currents_in_tenths_of_an_ampere_and_never_wraps() {
    let event = |kind, value| ProtectionEvent {
        code: code(kind, Severity::Warn),
        active: true,
        index: 0,
        value,
        at: at(0),
    };
    assert_eq!(event(Kind::ShortCircuit, 123_456).wire_value(), 1_234);
    assert_eq!(event(Kind::CellOvervoltage, 4_250).wire_value(), 4_250);
    assert_eq!(event(Kind::StaleData, i32::MAX).wire_value(), i16::MAX);
    assert_eq!(
        event(Kind::UndertempCharge, i32::MIN).wire_value(),
        i16::MIN
    );
}

#[test]
fn a_rule_that_is_none_never_speaks() {
    let mut limits = Limits::nmc(5_000);
    for severity in Severity::ALL {
        *limits.rule_mut(Kind::CellOvervoltage, severity) = None;
        *limits.rule_mut(Kind::GroupOvervoltage, severity) = None;
        *limits.rule_mut(Kind::StaleData, severity) = None;
    }
    let mut p = Protection::new(limits);
    assert_eq!(p.limits(), &limits);
    let mut high = healthy();
    high.cells[..16].fill(Some(Millivolts(4_900)));
    p.handle_sample(at(0), &high);
    p.handle_sample(at(100_000), &high);
    assert!(!p.must_open() && p.severity().is_none());
    assert_eq!(p.poll_timeout(), None);
}

#[test]
fn each_severity_stands_alone() {
    let mut limits = Limits::nmc(5_000);
    *limits.rule_mut(Kind::CellOvervoltage, Severity::Warn) = None;
    *limits.rule_mut(Kind::CellOvervoltage, Severity::Derate) = None;
    let mut p = Protection::new(limits);
    let mut high = healthy();
    high.cells[0] = Some(Millivolts(4_249));
    p.handle_sample(at(0), &high);
    assert_eq!(p.severity(), None);
    high.cells[0] = Some(Millivolts(4_250));
    p.handle_sample(at(10), &high);
    assert_eq!(p.severity(), Some(Severity::Trip));
}

#[test]
fn a_frozen_clock_is_not_waited_for_whatever_the_table_says() {
    let mut limits = Limits::nmc(5_000);
    limits
        .rule_mut(Kind::FrozenClock, Severity::Trip)
        .as_mut()
        .unwrap()
        .delay = ms(50);
    let mut p = Protection::new(limits);
    for _ in 0..6 {
        p.handle_sample(at(5), &healthy());
    }
    assert!(p.is_active(code(Kind::FrozenClock, Severity::Trip)));
}

#[test]
fn fewer_sensors_than_configured_is_a_fault() {
    let mut limits = Limits::nmc(5_000);
    limits.temps = 8;
    let mut p = Protection::new(limits);
    let mut s = healthy();
    s.temp_count = 7;
    p.handle_sample(at(0), &s);
    assert!(p.is_active(code(Kind::Layout, Severity::Trip)));
}

#[test]
fn more_cells_than_there_is_room_for_do_no_harm() {
    let mut p = protection();
    let mut s = healthy();
    s.cells = [Some(Millivolts(3_700)); crate::MAX_CELLS];
    s.cell_count = 200;
    s.temp_count = 200;
    p.handle_sample(at(0), &s);
    assert!(!p.must_open());
}

#[test]
fn an_event_that_flickers_between_two_polls_is_told_once_each_way_and_counted() {
    let mut p = protection();
    let mut limits = *p.limits();
    limits
        .rule_mut(Kind::CellOpen, Severity::Warn)
        .as_mut()
        .unwrap()
        .reset = Reset::Auto(Duration::ZERO);
    p = Protection::new(limits);
    let mut broken = healthy();
    broken.cells[7] = None;
    for k in 0..10 {
        p.handle_sample(at(k * 20), &broken);
        p.handle_sample(at(k * 20 + 10), &healthy());
    }
    let warn = code(Kind::CellOpen, Severity::Warn);
    let events = drain(&mut p);
    assert_eq!(events.len(), 2);
    assert!(events[0].active && events[0].at == at(180) && events[0].index == 7);
    assert!(!events[1].active && events[1].at == at(190));
    assert!(events.iter().all(|e| e.code == warn));
    assert_eq!(p.record(warn).count, 10);
    assert_eq!(p.record(warn).first.at, at(0));
}

// --- every event, set and cleared by injecting its fault ------------------------------------------------------------

/// A group sampled every 10 ms whose faults are injected by changing the sample or the clock.
struct Rig {
    p: Protection,
    now: u64,
    sample: Sample,
    /// 0: the clock stands.
    tick: u64,
    /// Whether samples come at all.
    alive: bool,
    /// What the current sensor and the cells show after `k` ticks: needed by faults that are about change.
    play: fn(&mut Sample, u64),
    played: u64,
}

impl Rig {
    fn new() -> Self {
        let mut limits = Limits::nmc(5_000);
        limits.cells = 16;
        limits.temps = 8;
        let mut rig = Self {
            p: Protection::new(limits),
            now: 0,
            sample: healthy(),
            tick: 10,
            alive: true,
            play: |_, _| {},
            played: 0,
        };
        rig.p.set_gate(true);
        rig.run(5);
        assert!(!rig.p.must_open());
        drain(&mut rig.p);
        rig
    }

    fn step(&mut self) {
        self.now += self.tick;
        while let Some(due) = self.p.poll_timeout()
            && due <= at(self.now)
            && self.tick > 0
        {
            self.p.handle_timeout(due);
        }
        (self.play)(&mut self.sample, self.played);
        self.played += 1;
        if self.alive {
            self.p.handle_sample(at(self.now), &self.sample);
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
    }
}

/// Makes a fault of just this kind and severity.
fn inject(rig: &mut Rig, kind: Kind, severity: Severity) {
    let threshold = rig.p.limits().rule(kind, severity).unwrap().threshold;
    let mv = Some(Millivolts(threshold as u16));
    let dc = Some(DeciCelsius(threshold as i16));
    let s = &mut rig.sample;
    match kind {
        Kind::CellOvervoltage | Kind::CellUndervoltage | Kind::DeepDischarge => s.cells[9] = mv,
        Kind::GroupOvervoltage | Kind::GroupUndervoltage => s.cells[..16].fill(mv),
        Kind::Imbalance => s.cells[9] = Some(Millivolts(3_700 - threshold as u16)),
        Kind::OvertempCharge | Kind::UndertempCharge => {
            s.current = Some(Milliamps(-500));
            s.temps = [dc; MAX_TEMPS];
        }
        Kind::OvertempDischarge | Kind::UndertempDischarge => s.temps = [dc; MAX_TEMPS],
        Kind::TempSpread | Kind::TempRise => s.temps[3] = Some(DeciCelsius(250 + threshold as i16)),
        Kind::OvercurrentCharge => s.current = Some(Milliamps(-threshold)),
        Kind::OvercurrentDischarge | Kind::ShortCircuit => s.current = Some(Milliamps(threshold)),
        Kind::Overload => s.current = Some(Milliamps(rig.p.limits().rated_ma * 6 / 5)),
        Kind::CellOpen => s.cells[9] = None,
        Kind::TempOpen => s.temps[..(threshold as usize * 8).div_ceil(1_000)].fill(None),
        Kind::CurrentLost => s.current = None,
        Kind::CellImplausible => s.cells[9] = Some(Millivolts(499)),
        Kind::TempImplausible => s.temps[3] = Some(DeciCelsius(-451)),
        Kind::CurrentImplausible => s.current = Some(Milliamps(-100_001)),
        Kind::CellStuck => {
            rig.play = |s, k| {
                let high = k % 40 < 20;
                s.current = Some(Milliamps(if high { 6_000 } else { 0 }));
                s.cells[..16].fill(Some(Millivolts(if high { 3_600 } else { 3_700 })));
                s.cells[9] = Some(Millivolts(3_650));
            }
        }
        Kind::TempStuck => {
            for (k, t) in s.temps.iter_mut().enumerate() {
                *t = Some(DeciCelsius(250 + if k == 3 { 0 } else { threshold as i16 }));
            }
        }
        Kind::CurrentStuck => {
            rig.play = |s, k| {
                s.cells[..16].fill(Some(Millivolts(if k % 2 == 0 { 3_600 } else { 3_700 })));
            }
        }
        Kind::StaleData => rig.alive = false,
        Kind::FrozenClock => rig.tick = 0,
        Kind::Layout => s.cell_count = 15,
        Kind::GateStuck => {
            rig.p.set_gate(false);
            s.current = Some(Milliamps(-threshold));
        }
    }
}

#[test]
fn every_event_is_set_by_its_fault_and_cleared_when_the_fault_is_gone() {
    for kind in Kind::ALL {
        for severity in Severity::ALL {
            let code = code(kind, severity);
            let mut rig = Rig::new();
            if kind == Kind::Overload && severity == Severity::Trip {
                // Needs 14 A; over-current has other thresholds.
                rig.p = Protection::new({
                    let mut l = *rig.p.limits();
                    l.rated_ma = 8_000;
                    l
                });
            }
            inject(&mut rig, kind, severity);
            let mut steps = 0;
            while !rig.p.is_active(code) {
                rig.step();
                steps += 1;
                assert!(steps < 60_000, "{code} is never set");
            }
            let record = rig.p.record(code);
            let shown = drain(&mut rig.p)
                .into_iter()
                .find(|e| e.code == code)
                .unwrap();
            assert!(shown.active && shown.value == record.value, "{code}");
            let threshold = rig.p.limits().rule(kind, severity).unwrap().threshold;
            let beyond = if kind.falls() {
                shown.value <= threshold
            } else {
                shown.value >= threshold
            };
            assert!(beyond, "{code}: {}", shown.value);
            let place = match kind {
                Kind::CellOvervoltage
                | Kind::CellUndervoltage
                | Kind::DeepDischarge
                | Kind::Imbalance
                | Kind::CellOpen
                | Kind::CellImplausible
                | Kind::CellStuck => 9,
                Kind::TempSpread | Kind::TempRise | Kind::TempImplausible | Kind::TempStuck => 3,
                _ => 0,
            };
            assert_eq!(shown.index, place, "{code}");
            assert_eq!(
                rig.p.must_open(),
                rig.p.severity() == Some(Severity::Trip),
                "{code}"
            );
            if severity == Severity::Trip {
                assert!(
                    rig.p
                        .diagnostics()
                        .freeze_frames()
                        .any(|f| f.event.code == code),
                    "{code}"
                );
            }

            rig.sample = healthy();
            rig.play = |_, _| {};
            rig.tick = 10;
            rig.alive = true;
            rig.p.set_gate(true);
            let mut steps = 0;
            while rig.p.is_active(code) {
                rig.run(10);
                let now = at(rig.now);
                rig.p.clear_latch(now);
                rig.p.clear_service(now);
                steps += 1;
                assert!(steps < 10_000, "{code} is never cleared");
            }
            assert!(
                drain(&mut rig.p)
                    .iter()
                    .any(|e| e.code == code && !e.active),
                "{code}"
            );
            assert_eq!(rig.p.record(code).count, 1, "{code}");
        }
    }
}

#[path = "../../examples/protection/campaign.rs"]
mod campaign;

/// A million: `cargo run --release -p helio-battery --example protection -- --faults 1000000`.
#[test]
fn injected_faults_are_never_missed_or_late_and_healthy_groups_never_trip() {
    for (kind, tally) in Kind::ALL
        .into_iter()
        .zip(campaign::faults(5_000, 1, |_| {}))
    {
        let name = kind.name();
        assert!(tally.injected > 0, "{name}");
        let bad = (tally.missed, tally.late, tally.false_trips);
        assert_eq!(bad, (0, 0, 0), "{name}: missed, late, false trips");
    }
}

#[test]
fn sensors_that_only_look_stuck_are_left_alone() {
    // At rest nothing moves; that is no fault, for however long.
    let mut rig = Rig::new();
    rig.run(70_000);
    assert_eq!(drain(&mut rig.p), []);
    // One sensor warms, the others do not: that is a local fault, not many stuck sensors.
    rig.sample.temps[0] = Some(DeciCelsius(265));
    rig.run(2_000);
    assert!(
        drain(&mut rig.p)
            .iter()
            .all(|e| e.code.kind() != Kind::TempStuck)
    );
    // A steady load with cells that fall slowly, and a step of the current that moves all cells.
    rig.play = |s, k| {
        let step = (k / 500 % 2) as i32;
        s.current = Some(Milliamps(4_000 * step));
        let sag = (k / 100) as u16 + 60 * step as u16;
        s.cells[..16].fill(Some(Millivolts(3_700 - sag.min(600))));
    };
    rig.run(3_000);
    assert!(
        drain(&mut rig.p)
            .iter()
            .all(|e| e.code.kind() != Kind::CurrentStuck && e.code.kind() != Kind::CellStuck)
    );
}

#[test]
fn a_single_cell_can_show_that_the_current_is_stuck() {
    let mut p = protection();
    let mut s = healthy();
    s.cell_count = 1;
    for k in 0..20 {
        s.cells[0] = Some(Millivolts(if k % 2 == 0 { 3_600 } else { 3_700 }));
        p.handle_sample(at(k * 10), &s);
    }
    assert!(p.is_active(code(Kind::CurrentStuck, Severity::Trip)));
}

#[test]
fn a_sensor_that_comes_back_has_no_past() {
    let mut rig = Rig::new();
    rig.sample.temps[3] = None;
    rig.run(3_000);
    rig.sample.temps[3] = Some(DeciCelsius(300));
    rig.run(10);
    assert!(
        drain(&mut rig.p)
            .iter()
            .all(|e| e.code.kind() != Kind::TempRise && e.code.kind() != Kind::TempStuck)
    );
}

#[test]
fn a_clock_that_goes_back_counts_as_frozen() {
    let mut p = protection();
    for k in 0..10u64 {
        p.handle_sample(at(1_000 - k * 10), &healthy());
    }
    assert!(p.is_active(code(Kind::FrozenClock, Severity::Trip)));
}

// --- memory over a reset ---------------------------------------------------------------------------------------------

fn with_history() -> Protection {
    let mut rig = Rig::new();
    for kind in [
        Kind::CellOvervoltage,
        Kind::CellOpen,
        Kind::StaleData,
        Kind::TempSpread,
        Kind::CurrentLost,
    ] {
        inject(&mut rig, kind, Severity::Trip);
        rig.run(150);
        rig.sample = healthy();
        rig.alive = true;
        rig.run(150);
    }
    rig.p
}

#[test]
fn counters_frames_and_latches_survive_a_reset() {
    let p = with_history();
    let mut bytes = [0u8; MAX_BYTES + 100];
    let len = p.diagnostics().store(&mut bytes).unwrap();
    assert!(len <= MAX_BYTES);
    let restored = Diagnostics::restore(&bytes).unwrap();
    assert_eq!(&restored, p.diagnostics());
    assert!(restored.trips() > 4 && restored.freeze_frames().count() == FRAMES);

    let mut again = Protection::resume(*p.limits(), restored);
    assert_eq!(again.diagnostics().boot(), 1);
    again.handle_sample(at(0), &healthy());
    assert!(again.must_open(), "a latched trip is not cured by a reset");
    assert!(
        !again.is_active(code(Kind::CellOvervoltage, Severity::Warn)),
        "what ends by itself is"
    );
    assert!(again.clear_latch(at(1)) && again.must_open());
    again.handle_sample(at(5), &healthy());
    assert!(!again.must_open());
    let mut high = healthy();
    high.cells[1] = Some(Millivolts(4_300));
    again.handle_sample(at(10), &high);
    let record = again.record(code(Kind::CellOvervoltage, Severity::Trip));
    assert_eq!(
        (record.count, record.first.boot, record.last.boot),
        (2, 0, 1)
    );
    assert_eq!(again.diagnostics().freeze_frames().next().unwrap().boot, 1);
}

#[test]
fn a_latch_that_the_new_table_does_not_know_is_dropped() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    let mut bad = healthy();
    bad.cells[0] = Some(Millivolts(1_000));
    for k in 1..200 {
        p.handle_sample(at(k * 10), &bad);
    }
    let mut limits = *p.limits();
    *limits.rule_mut(Kind::CellUndervoltage, Severity::Trip) = None;
    let again = Protection::resume(limits, p.diagnostics().clone());
    assert!(!again.is_active(code(Kind::CellUndervoltage, Severity::Trip)));
    assert!(again.is_active(code(Kind::DeepDischarge, Severity::Trip)));
}

#[test]
fn an_empty_memory_is_stored_and_restored() {
    let mut bytes = [0u8; 64];
    assert_eq!(Diagnostics::new().store(&mut bytes), Some(31));
    assert_eq!(Diagnostics::restore(&bytes), Ok(Diagnostics::new()));
}

#[test]
fn a_full_memory_fits_the_stated_size() {
    let mut d = Diagnostics::default();
    for raw in 0..CODE_COUNT as u8 {
        let code = Code::from_raw(raw).unwrap();
        let event = ProtectionEvent {
            code,
            active: true,
            index: 3,
            value: -7,
            at: at(u64::from(raw)),
        };
        d.began(event, &Sample::EMPTY);
    }
    let mut bytes = [0u8; MAX_BYTES];
    assert_eq!(d.store(&mut bytes), Some(MAX_BYTES));
    assert_eq!(Diagnostics::restore(&bytes).unwrap(), d);
    for short in [
        0,
        3,
        10,
        25,
        100,
        MAX_BYTES - 500,
        MAX_BYTES - 140,
        MAX_BYTES - 5,
        MAX_BYTES - 1,
    ] {
        assert_eq!(d.store(&mut bytes[..short]), None, "{short}");
    }
}

#[test]
fn bytes_that_are_not_what_was_stored_are_refused() {
    let p = with_history();
    let mut bytes = [0u8; MAX_BYTES];
    let len = p.diagnostics().store(&mut bytes).unwrap();
    for at in 0..len {
        let mut broken = bytes;
        broken[at] ^= 0x10;
        let error = Diagnostics::restore(&broken).unwrap_err();
        match at {
            0 => assert_eq!(error, RestoreError::Empty),
            1 => assert_eq!(error, RestoreError::Version(0x11)),
            _ => assert_eq!(error, RestoreError::Damaged),
        }
    }
    assert_eq!(
        Diagnostics::restore(&bytes[..len - 1]),
        Err(RestoreError::Damaged)
    );
    assert_eq!(Diagnostics::restore(&[0xff; 64]), Err(RestoreError::Empty));
    assert_eq!(Diagnostics::restore(&[]), Err(RestoreError::Empty));
    for error in [
        RestoreError::Empty,
        RestoreError::Version(9),
        RestoreError::Damaged,
    ] {
        assert!(!error.to_string().is_empty());
    }
}

proptest! {
    #[test]
    fn no_bytes_with_a_good_check_can_hurt(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = vec![0xd1, 1];
        bytes.extend((body.len() as u16 + 8).to_le_bytes());
        bytes.extend(&body);
        let crc = super::diagnostics::crc32(&bytes);
        bytes.extend(crc.to_le_bytes());
        if let Ok(d) = Diagnostics::restore(&bytes) {
            let mut p = Protection::resume(Limits::nmc(5_000), d);
            p.handle_sample(at(0), &healthy());
            let _ = drain(&mut p);
        }
    }
}

// --- against an oracle ----------------------------------------------------------------------------------------------

/// What the documentation says about one rule, written down plainly: the whole history is looked at anew every time.
struct Oracle {
    rule: Rule,
    falls: bool,
    /// Time and value of every sample.
    history: Vec<(u64, i32)>,
    active_since: Option<u64>,
}

impl Oracle {
    fn beyond(&self, value: i32) -> bool {
        if self.falls {
            value <= self.rule.threshold
        } else {
            value >= self.rule.threshold
        }
    }
    fn back(&self, value: i32) -> bool {
        let Rule {
            threshold,
            hysteresis,
            ..
        } = self.rule;
        if self.falls {
            value > threshold + hysteresis
        } else {
            value < threshold - hysteresis
        }
    }
    /// Since when has `what` held at every sample up to the newest?
    fn since(&self, what: impl Fn(i32) -> bool) -> Option<u64> {
        self.history
            .iter()
            .rev()
            .take_while(|(_, v)| what(*v))
            .last()
            .map(|(t, _)| *t)
    }
    /// Whether the event is active at time `t`, no sample having come since the newest.
    fn at(&mut self, t: u64, sampled: bool) -> bool {
        let delay = self.rule.delay.as_millis();
        if self.active_since.is_none() {
            if let Some(since) = self.since(|v| self.beyond(v))
                && t >= since + delay
            {
                self.active_since = Some(t);
            }
        } else if let Reset::Auto(hold) = self.rule.reset
            && sampled
            && let Some(since) = self.since(|v| self.back(v))
            && t >= since.max(self.active_since.unwrap_or(0)) + hold.as_millis()
        {
            self.active_since = None;
        }
        self.active_since.is_some()
    }
}

/// Kinds whose value is set by one sample alone, and how.
fn put(kind: Kind, value: i32) -> Sample {
    let mut s = healthy();
    s.cell_count = 3;
    s.temp_count = 2;
    let mv = Some(Millivolts(value as u16));
    let dc = Some(DeciCelsius(value as i16));
    match kind {
        Kind::CellOvervoltage | Kind::CellUndervoltage | Kind::DeepDischarge => {
            s.cells[..3].fill(mv)
        }
        Kind::GroupOvervoltage | Kind::GroupUndervoltage => s.cells[..3].fill(mv),
        Kind::Imbalance => s.cells[1] = Some(Millivolts((3_700 + value) as u16)),
        Kind::OvertempDischarge | Kind::UndertempDischarge => s.temps[..2].fill(dc),
        Kind::OvertempCharge | Kind::UndertempCharge => {
            s.current = Some(Milliamps(-1_000));
            s.temps[..2].fill(dc);
        }
        Kind::TempSpread => s.temps[1] = Some(DeciCelsius(250 - value as i16)),
        Kind::OvercurrentCharge => s.current = Some(Milliamps(-value)),
        _ => s.current = Some(Milliamps(value)),
    }
    s
}

const PUT: [Kind; 14] = [
    Kind::CellOvervoltage,
    Kind::CellUndervoltage,
    Kind::DeepDischarge,
    Kind::GroupOvervoltage,
    Kind::GroupUndervoltage,
    Kind::Imbalance,
    Kind::OvertempCharge,
    Kind::OvertempDischarge,
    Kind::UndertempCharge,
    Kind::UndertempDischarge,
    Kind::TempSpread,
    Kind::OvercurrentCharge,
    Kind::OvercurrentDischarge,
    Kind::ShortCircuit,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 2_000, ..Default::default() })]

    /// Three rules at once, thresholds close together; values drawn around them; time by sample and by timer.
    #[test]
    fn events_begin_and_end_exactly_when_the_table_says(
        kind in proptest::sample::select(&PUT[..]),
        gaps in (0..4i32, 0..4i32),
        rules in proptest::array::uniform3((0..6i32, 0..60u64, prop_oneof![
            (0..60u64).prop_map(|h| Reset::Auto(ms(h))),
            Just(Reset::Command),
        ])),
        steps in proptest::collection::vec((1..40u64, -8..16i32), 1..120),
    ) {
        let sign = if kind.falls() { -1 } else { 1 };
        let base = 1_000;
        let thresholds = [base, base + sign * gaps.0, base + sign * (gaps.0 + gaps.1)];
        let mut limits = Limits::nmc(5_000);
        limits.rules = [[None; 3]; KINDS];
        let mut oracles = Vec::new();
        for severity in Severity::ALL {
            let (hysteresis, delay, reset) = rules[severity.index()];
            let rule = Rule { threshold: thresholds[severity.index()], hysteresis, delay: ms(delay), reset };
            *limits.rule_mut(kind, severity) = Some(rule);
            oracles.push(Oracle { rule, falls: kind.falls(), history: vec![], active_since: None });
        }
        prop_assert_eq!(limits.check(), Ok(()));
        let mut p = Protection::new(limits);
        let mut now = 0;
        for (dt, offset) in steps {
            let value = base + sign * offset;
            // Every millisecond between the samples, with the timer called only when it asks for it.
            for t in now + 1..now + dt {
                if p.poll_timeout().is_some_and(|due| due <= at(t)) {
                    p.handle_timeout(at(t));
                }
                for (severity, oracle) in Severity::ALL.into_iter().zip(&mut oracles) {
                    prop_assert_eq!(p.is_active(code(kind, severity)), oracle.at(t, false), "{} ms {:?}", t, severity);
                }
            }
            now += dt;
            p.handle_sample(at(now), &put(kind, value));
            for (severity, oracle) in Severity::ALL.into_iter().zip(&mut oracles) {
                // A timer that is due at this very moment comes before the sample.
                oracle.at(now, false);
                oracle.history.push((now, value));
                prop_assert_eq!(p.is_active(code(kind, severity)), oracle.at(now, true), "{} ms {:?}", now, severity);
            }
            let trip = oracles[2].active_since.is_some();
            prop_assert!(p.must_open() >= trip);
        }
    }

    /// Whatever comes, in whatever order, at whatever time.
    #[test]
    fn nothing_makes_it_panic_or_close_on_a_trip(
        steps in proptest::collection::vec((any::<u16>(), any::<[u16; 4]>(), any::<[i16; 3]>(), any::<i32>(), any::<u8>()), 1..60),
    ) {
        let mut p = protection();
        let mut now = 0u64;
        for (dt, mv, dc, ma, what) in steps {
            now = if what & 1 == 0 { now + u64::from(dt) } else { now.saturating_sub(u64::from(dt)) };
            let mut s = healthy();
            s.cell_count = what;
            s.temp_count = what.rotate_left(3);
            for (k, v) in mv.into_iter().enumerate() {
                s.cells[k * 4] = (v & 7 != 0).then_some(Millivolts(v));
            }
            for (k, t) in dc.into_iter().enumerate() {
                s.temps[k * 2] = (t & 7 != 0).then_some(DeciCelsius(t));
            }
            s.current = (what & 6 != 0).then_some(Milliamps(ma));
            match what % 5 {
                0 => p.handle_timeout(at(now)),
                1 => { p.clear_service(at(now)); }
                _ => p.handle_sample(Instant::from_nanos(u64::MAX - now), &s),
            }
            p.set_gate(what & 8 != 0);
            let tripped = Kind::ALL.into_iter().any(|k| p.is_active(code(k, Severity::Trip)));
            prop_assert!(p.must_open() || !tripped);
            let _ = (drain(&mut p), p.poll_timeout(), p.severity());
        }
    }
}
