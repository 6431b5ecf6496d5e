//! Injects faults of every kind into healthy groups and looks whether the gate opens in the time that the table of limits
//! demands. Shared by the example that runs a million and by the test that runs some thousands.

use helio_battery::protection::{Code, KINDS, Kind, Limits, Protection, Severity};
use helio_battery::{MAX_TEMPS, Sample};
use helio_units::{DeciCelsius, Instant, Milliamps, Millivolts};

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
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
    sample.cells[..16].fill(Some(Millivolts(3_700)));
    sample
}

/// When a fault that begins with the sample at `from` must have opened the gate, by the definition of its kind.
fn deadline(limits: &Limits, kind: Kind, from: u64, period: u64) -> u64 {
    let rule = limits.rule(kind, Severity::Trip).unwrap();
    let delay = rule.delay.as_millis();
    match kind {
        // Windows of a second, of which the first may be half over and the last must be over.
        Kind::CellStuck => from + rule.threshold as u64 + 2_000 + 2 * period,
        // The first sample of the fault moves the current, once.
        Kind::CurrentStuck => from + rule.threshold as u64 * period,
        Kind::FrozenClock => from + (rule.threshold as u64 - 1) * period,
        Kind::StaleData => from - period + rule.threshold as u64,
        Kind::Overload => {
            // heat(t) = load² (1 - e^(-t / tau))
            let load = 5.5 * 5_000.0 / f64::from(limits.rated_ma);
            let share = f64::from(rule.threshold) * 1e-3 / (load * load);
            let t = -(1.0 - share).ln() * limits.overload_tau.as_millis() as f64;
            from + (t * 1.002) as u64 + 2 * period
        }
        _ => from + delay,
    }
}

/// What became of the faults of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub injected: u64,
    /// The gate never opened.
    pub missed: u64,
    /// It opened after the moment that the table demands.
    pub late: u64,
    /// It opened before the fault.
    pub false_trips: u64,
}

/// Injects `n` random faults, every kind in turn, into healthy and noisy groups.
pub fn faults(n: u64, seed: u64, mut progress: impl FnMut(u64)) -> [Tally; KINDS] {
    let mut seed = seed.wrapping_mul(2).wrapping_add(1) ^ 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: u64| {
        // xorshift64*
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    };
    let mut count = [Tally::default(); KINDS];
    for k in 0..n {
        if k % 1_000 == 0 {
            progress(k);
        }
        let kind = Kind::ALL[(k % KINDS as u64) as usize];
        let tally = &mut count[kind.index()];
        let mut limits = if random(2) == 0 {
            Limits::nmc(5_000)
        } else {
            Limits::lfp(5_000)
        };
        let lfp = limits
            .rule(Kind::CellOvervoltage, Severity::Trip)
            .unwrap()
            .threshold
            < 4_000;
        limits.cells = 16;
        limits.temps = 8;
        let rest_mv = if lfp { 3_300 } else { 3_700 };
        let period = 1 + random(20);
        let rule = limits.rule(kind, Severity::Trip).unwrap();
        let excess = random(20) as i32;
        let beyond = rule.threshold + if kind.falls() { -excess } else { excess };
        let (cell, sensor) = (random(16) as usize, random(8) as usize);
        let mut p = Protection::new(limits);
        p.set_gate(true);
        let mut now = random(1_000_000);
        p.handle_timeout(at(now));
        let mut base = healthy();
        base.cells[..16].fill(Some(Millivolts(rest_mv)));
        base.current = Some(Milliamps(if random(2) == 0 { 2_000 } else { -2_000 }));
        for _ in 0..3 + random(20) {
            now += period;
            let mut s = base;
            for v in s.cells[..16].iter_mut().flatten() {
                v.0 += random(20) as u16;
            }
            s.current = s.current.map(|i| Milliamps(i.0 + random(50) as i32));
            p.handle_sample(at(now), &s);
        }
        if p.must_open() {
            tally.false_trips += 1;
            continue;
        }
        tally.injected += 1;
        let from = now + period;
        let until = deadline(&limits, kind, from, period);
        let own = Code::new(kind, Severity::Trip);
        let tripped = |p: &Protection| p.is_active(own) && p.must_open();
        let mut play = 0;
        let mut opened = None;
        let mut clock = now;
        while opened.is_none() && clock <= until + 2_000 {
            // The timer between the samples.
            clock += period;
            if kind != Kind::FrozenClock {
                now = clock;
                while let Some(due) = p.poll_timeout()
                    && due <= at(clock)
                    && opened.is_none()
                {
                    p.handle_timeout(due);
                    opened = tripped(&p).then_some(due.as_millis());
                }
            }
            let mut s = base;
            let mv = Some(Millivolts(beyond.max(0) as u16));
            let dc = Some(DeciCelsius(beyond as i16));
            match kind {
                Kind::CellOvervoltage | Kind::CellUndervoltage | Kind::DeepDischarge => {
                    s.cells[cell] = mv
                }
                Kind::GroupOvervoltage | Kind::GroupUndervoltage => s.cells[..16].fill(mv),
                Kind::Imbalance => s.cells[cell] = Some(Millivolts(rest_mv - beyond as u16)),
                Kind::OvertempCharge | Kind::UndertempCharge => {
                    s.current = Some(Milliamps(-500));
                    s.temps[sensor] = dc;
                }
                Kind::OvertempDischarge | Kind::UndertempDischarge => {
                    s.current = Some(Milliamps(500));
                    s.temps[sensor] = dc;
                }
                Kind::TempSpread | Kind::TempRise => {
                    s.temps[sensor] = Some(DeciCelsius(250 + beyond as i16))
                }
                Kind::OvercurrentCharge => s.current = Some(Milliamps(-beyond)),
                Kind::OvercurrentDischarge | Kind::ShortCircuit => {
                    s.current = Some(Milliamps(beyond))
                }
                Kind::Overload => s.current = Some(Milliamps(27_500)),
                Kind::CellOpen => s.cells[cell] = None,
                Kind::TempOpen => s.temps[..5].fill(None),
                Kind::CurrentLost => s.current = None,
                Kind::CellImplausible => s.cells[cell] = Some(Millivolts(5_000 + beyond as u16)),
                Kind::TempImplausible => s.temps[sensor] = Some(DeciCelsius(1_250 + beyond as i16)),
                Kind::CurrentImplausible => s.current = Some(Milliamps(100_000 + beyond)),
                Kind::CellStuck => {
                    let high = play % 2 == 0;
                    s.current = Some(Milliamps(if high { 6_000 } else { 0 }));
                    s.cells[..16].fill(Some(Millivolts(if high { rest_mv - 60 } else { rest_mv })));
                    s.cells[cell] = Some(Millivolts(rest_mv));
                }
                Kind::TempStuck => {
                    s.temps.fill(Some(DeciCelsius(250 + beyond as i16)));
                    s.temps[sensor] = Some(DeciCelsius(250));
                }
                Kind::CurrentStuck => {
                    let high = play % 2 == 0;
                    s.current = Some(Milliamps(1_234));
                    s.cells[..16].fill(Some(Millivolts(if high {
                        rest_mv - 100
                    } else {
                        rest_mv
                    })));
                }
                Kind::StaleData => {
                    continue;
                }
                Kind::FrozenClock => {}
                Kind::Layout => s.cell_count = 15,
                Kind::GateStuck => {
                    p.set_gate(false);
                    s.current = Some(Milliamps(beyond));
                }
            }
            play += 1;
            if opened.is_none() {
                p.handle_sample(at(now), &s);
                opened = tripped(&p).then_some(clock);
            }
        }
        match opened {
            None => tally.missed += 1,
            Some(t) => tally.late += u64::from(t > until),
        }
    }
    count
}
