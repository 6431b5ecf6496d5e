//! From a sample to one number per kind, higher being worse. Keeps what must be remembered between samples.
//!
//! The whole of this runs for every sample, 11 million times in a simulated hour of a rack, and on a healthy group it is all
//! that runs. So: fixed arrays with a filler for what is missing, no branches on values, places (which cell?) only when asked.

use super::kinds::{KINDS, Kind};
use super::limits::{Limits, oriented};
use crate::{MAX_CELLS, MAX_TEMPS, Sample};
use helio_units::{Duration, Instant};

/// No statement about the kind: neither begins nor ends anything.
pub const UNKNOWN: i32 = i32::MIN;

/// Length of the windows in which a cell must move when the current does.
const STUCK_WINDOW: Duration = Duration::from_secs(1);
/// Length of the windows in which sensors are compared with each other.
const TEMP_WINDOW: Duration = Duration::from_secs(600);

/// Jumps of all cells without a jump of the current count for so long.
const JUMPS_FORGOTTEN: Duration = Duration::from_secs(60);

/// The values of one sample, oriented.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    /// By kind.
    pub worse: [i32; KINDS],
    /// Kinds whose value may be too mild because a measurement is missing: must not end anything.
    pub incomplete: u32,
    /// Kinds that do not apply now (charging limits while discharging): must not begin anything.
    pub idle: u32,
}

impl Values {
    /// Whether any cell was measured: an empty sample must not close a gate.
    pub fn measured(&self) -> bool {
        self.worse[Kind::CellOvervoltage.index()] != UNKNOWN
    }
}

/// Memory between samples.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    last_at: Option<Instant>,
    mv: [u16; MAX_CELLS],
    dc: [i16; MAX_TEMPS],
    last_ma: Option<i32>,
    frozen: i32,
    heat: f32,
    // Stuck cells: what moved since the window began.
    window_at: Instant,
    moved: [u16; MAX_CELLS],
    lowest_ma: i32,
    highest_ma: i32,
    stuck_windows: [u16; MAX_CELLS],
    stuck_ms: i32,
    // Stuck current.
    jumps: i32,
    jumped_at: Instant,
    // Rising sensors: where they were one and two windows ago.
    rise_at: Instant,
    rise_from: [i16; MAX_TEMPS],
    rise_next: [i16; MAX_TEMPS],
    // Stuck sensors.
    temps_at: Instant,
    temps_from: [i16; MAX_TEMPS],
    temps_moved: [u16; MAX_TEMPS],
}

/// A missing temperature.
const NO_DC: i16 = i16::MIN;

impl Watch {
    pub const fn new() -> Self {
        Self {
            last_at: None,
            mv: [0; MAX_CELLS],
            dc: [NO_DC; MAX_TEMPS],
            last_ma: None,
            frozen: 0,
            heat: 0.0,
            window_at: Instant::ZERO,
            moved: [0; MAX_CELLS],
            lowest_ma: i32::MAX,
            highest_ma: i32::MIN,
            stuck_windows: [0; MAX_CELLS],
            stuck_ms: 0,
            jumps: 0,
            jumped_at: Instant::ZERO,
            rise_at: Instant::ZERO,
            rise_from: [NO_DC; MAX_TEMPS],
            rise_next: [NO_DC; MAX_TEMPS],
            temps_at: Instant::ZERO,
            temps_from: [NO_DC; MAX_TEMPS],
            temps_moved: [0; MAX_TEMPS],
        }
    }

    /// Looks at a sample. `gate_on`: `None` when nobody said.
    #[inline]
    pub fn look(
        &mut self,
        limits: &Limits,
        now: Instant,
        sample: &Sample,
        gate_on: Option<bool>,
    ) -> Values {
        let mut worse = [UNKNOWN; KINDS];
        let mut incomplete = 0;
        let mut idle = 0;
        let mut set = |kind: Kind, value: i32| worse[kind.index()] = oriented(kind, value);

        // Time.
        let elapsed = self.last_at.map(|last| now.since(last));
        self.frozen = match elapsed {
            Some(Duration::ZERO) => self.frozen.saturating_add(1),
            _ => 0,
        };
        set(Kind::FrozenClock, self.frozen);
        set(Kind::StaleData, 0);

        // Cells.
        let cells = usize::from(sample.cell_count).min(MAX_CELLS);
        let mut mv = [0u16; MAX_CELLS];
        let mut there = [0u16; MAX_CELLS];
        for ((mv, there), cell) in mv.iter_mut().zip(&mut there).zip(sample.cells()) {
            if let Some(v) = cell {
                *mv = v.0;
                *there = u16::MAX;
            }
        }
        let (mut lowest, mut highest, mut sum, mut valid) = (u16::MAX, 0u16, 0u32, 0u32);
        let (mut up, mut down) = (0u16, 0u16);
        for k in 0..MAX_CELLS {
            let (v, t, last) = (mv[k], there[k], self.mv[k]);
            lowest = lowest.min(v | !t);
            highest = highest.max(v);
            sum += u32::from(v);
            valid += u32::from(t & 1);
            let both = if last == 0 { 0 } else { t & 1 };
            up += both & u16::from(v.saturating_sub(last) >= limits.jump_mv);
            down += both & u16::from(last.saturating_sub(v) >= limits.jump_mv);
            self.moved[k] |= v ^ last;
            self.mv[k] = v;
        }
        let valid = valid as i32;
        let open = cells as i32 - valid;
        set(Kind::CellOpen, open);
        let mut missing = i32::from(limits.cells).saturating_sub(cells as i32).max(0);
        if open > 0 || missing > 0 {
            incomplete |= CELL_KINDS;
        }
        if valid > 0 {
            let (lowest, highest) = (i32::from(lowest), i32::from(highest));
            let mean = sum as i32 / valid;
            set(Kind::CellOvervoltage, highest);
            set(Kind::CellUndervoltage, lowest);
            set(Kind::DeepDischarge, lowest);
            set(Kind::GroupOvervoltage, mean);
            set(Kind::GroupUndervoltage, mean);
            set(Kind::Imbalance, highest - lowest);
            let (lo, hi) = limits.plausible_mv;
            set(
                Kind::CellImplausible,
                (highest - i32::from(hi)).max(i32::from(lo) - lowest).max(0),
            );
        }

        // Temperatures.
        let temps = usize::from(sample.temp_count).min(MAX_TEMPS);
        let mut dc = [NO_DC; MAX_TEMPS];
        for (dc, temp) in dc.iter_mut().zip(sample.temps()) {
            if let Some(t) = temp {
                *dc = t.0.max(NO_DC + 1);
            }
        }
        if elapsed.is_none() || now.since(self.rise_at) >= limits.rise_window {
            self.rise_from = if elapsed.is_none() {
                dc
            } else {
                self.rise_next
            };
            self.rise_next = dc;
            self.rise_at = now;
        }
        if elapsed.is_none() || now.since(self.temps_at) >= TEMP_WINDOW {
            self.temps_from = dc;
            self.temps_moved = [0; MAX_TEMPS];
            self.temps_at = now;
        }
        let (mut coldest, mut hottest, mut known) = (i32::MAX, i32::from(NO_DC), 0);
        let mut rise = 0;
        let (mut fastest, mut second, mut still) = (0, 0, false);
        for (k, &t) in dc.iter().enumerate() {
            let from = self.temps_from[k];
            if t == NO_DC {
                continue;
            }
            known += 1;
            coldest = coldest.min(i32::from(t));
            hottest = hottest.max(i32::from(t));
            if self.rise_from[k] != NO_DC {
                rise = rise.max(i32::from(t) - i32::from(self.rise_from[k]));
            }
            self.temps_moved[k] |= (t ^ from).cast_unsigned();
            if from == NO_DC {
                continue;
            }
            let way = (i32::from(t) - i32::from(from)).abs();
            still |= self.temps_moved[k] == 0;
            second = second.max(way.min(fastest));
            fastest = fastest.max(way);
        }
        self.dc = dc;
        let unread = temps as i32 - known;
        set(Kind::TempOpen, unread * 1000 / (temps as i32).max(1));
        let absent = i32::from(limits.temps).saturating_sub(temps as i32).max(0);
        missing += absent;
        if unread > 0 || absent > 0 {
            incomplete |= TEMP_KINDS;
        }
        if known > 0 {
            set(Kind::OvertempCharge, hottest);
            set(Kind::OvertempDischarge, hottest);
            set(Kind::UndertempCharge, coldest);
            set(Kind::UndertempDischarge, coldest);
            set(Kind::TempSpread, hottest - coldest);
            set(Kind::TempRise, rise);
            set(Kind::TempStuck, if still { second } else { 0 });
            let (lo, hi) = limits.plausible_dc;
            set(
                Kind::TempImplausible,
                (hottest - i32::from(hi))
                    .max(i32::from(lo) - coldest)
                    .max(0),
            );
        }
        set(Kind::Layout, missing);

        // Current.
        let current = sample.current.map(|i| i.0);
        set(
            Kind::CurrentLost,
            i32::from(current.is_none() && limits.current),
        );
        if let Some(ma) = current {
            let size = ma.saturating_abs();
            set(Kind::OvercurrentDischarge, ma);
            set(Kind::OvercurrentCharge, ma.saturating_neg());
            set(Kind::ShortCircuit, size);
            set(
                Kind::CurrentImplausible,
                size.saturating_sub(limits.plausible_ma).max(0),
            );
            set(
                Kind::GateStuck,
                if gate_on == Some(false) { size } else { 0 },
            );
            if ma < -limits.rest_ma {
                idle |= DISCHARGE_KINDS;
            } else {
                idle |= CHARGE_KINDS;
            }
            let load = ma as f32 / limits.rated_ma.max(1) as f32;
            if let Some(elapsed) = elapsed {
                let x = elapsed.as_nanos() as f32 / limits.overload_tau.as_nanos().max(1) as f32;
                self.heat += x / (1.0 + x) * (load * load - self.heat);
            }
            set(Kind::Overload, (self.heat * 1000.0) as i32);

            let quick = elapsed.is_some_and(|e| e <= limits.jump_within);
            let half = (valid / 2).max(1) as u16;
            let together = up > half || down > half || (valid == 1 && up + down > 0);
            if self.last_ma != Some(ma) || now.since(self.jumped_at) >= JUMPS_FORGOTTEN {
                self.jumps = 0;
                self.jumped_at = now;
            }
            if self.last_ma == Some(ma) && quick && together {
                self.jumps = self.jumps.saturating_add(1);
                self.jumped_at = now;
            }
            set(Kind::CurrentStuck, self.jumps);
            self.lowest_ma = self.lowest_ma.min(ma);
            self.highest_ma = self.highest_ma.max(ma);
        }
        self.last_ma = current;

        if elapsed.is_none() {
            self.begin_window(now, current);
        } else if now.since(self.window_at) >= STUCK_WINDOW {
            self.end_window(limits, now, &there, current);
        }
        set(Kind::CellStuck, self.stuck_ms);

        self.last_at = Some(now);
        Values {
            worse,
            incomplete,
            idle,
        }
    }

    /// Once a second: which cells have not moved although the current has?
    #[cold]
    fn end_window(
        &mut self,
        limits: &Limits,
        now: Instant,
        there: &[u16; MAX_CELLS],
        current: Option<i32>,
    ) {
        let excited =
            i64::from(self.highest_ma) - i64::from(self.lowest_ma) >= i64::from(limits.moving_ma);
        let length = (now.since(self.window_at).as_millis()).min(10_000) as u16;
        let mut worst = 0;
        for ((ms, &moved), &there) in self.stuck_windows.iter_mut().zip(&self.moved).zip(there) {
            if moved != 0 || there == 0 {
                *ms = 0;
            } else if excited {
                *ms = ms.saturating_add(length);
            }
            worst = worst.max(i32::from(*ms));
        }
        self.stuck_ms = worst;
        self.begin_window(now, current);
    }

    fn begin_window(&mut self, now: Instant, current: Option<i32>) {
        self.window_at = now;
        self.moved = [0; MAX_CELLS];
        // The window's first current counts in both windows: a step on the border must not get lost.
        self.lowest_ma = current.unwrap_or(i32::MAX);
        self.highest_ma = current.unwrap_or(i32::MIN);
    }

    /// Which cell or sensor gave the value of a kind; 0 where no single one did.
    pub fn place(&self, limits: &Limits, sample: &Sample, kind: Kind) -> u8 {
        let cells = self.mv.get(..sample.cells().len()).unwrap_or(&[]);
        let temps = self.dc.get(..sample.temps().len()).unwrap_or(&[]);
        let seen_cells = || {
            cells
                .iter()
                .map(|&v| i32::from(v))
                .zip(sample.cells())
                .map(|(v, c)| c.map(|_| v))
        };
        let seen_temps = || temps.iter().map(|&t| (t != NO_DC).then_some(i32::from(t)));
        match kind {
            Kind::CellOvervoltage => highest(seen_cells()),
            Kind::CellUndervoltage | Kind::DeepDischarge => {
                highest(seen_cells().map(|v| v.map(|v| -v)))
            }
            Kind::Imbalance => {
                let mean = seen_cells().flatten().sum::<i32>()
                    / (seen_cells().flatten().count().max(1) as i32);
                highest(seen_cells().map(|v| v.map(|v| (v - mean).abs())))
            }
            Kind::CellImplausible => {
                let (lo, hi) = limits.plausible_mv;
                highest(seen_cells().map(|v| v.map(|v| (v - i32::from(hi)).max(i32::from(lo) - v))))
            }
            Kind::CellOpen => highest(sample.cells().iter().map(|c| Some(i32::from(c.is_none())))),
            Kind::CellStuck => highest(self.stuck_windows.iter().map(|&ms| Some(i32::from(ms)))),
            Kind::OvertempCharge | Kind::OvertempDischarge | Kind::TempSpread => {
                highest(seen_temps())
            }
            Kind::UndertempCharge | Kind::UndertempDischarge => {
                highest(seen_temps().map(|t| t.map(|t| -t)))
            }
            Kind::TempRise => highest(
                seen_temps()
                    .zip(&self.rise_from)
                    .map(|(t, &from)| t.map(|t| t - i32::from(from))),
            ),
            Kind::TempImplausible => {
                let (lo, hi) = limits.plausible_dc;
                highest(seen_temps().map(|t| t.map(|t| (t - i32::from(hi)).max(i32::from(lo) - t))))
            }
            Kind::TempOpen => highest(sample.temps().iter().map(|t| Some(i32::from(t.is_none())))),
            Kind::TempStuck => highest(
                seen_temps()
                    .zip(&self.temps_moved)
                    .map(|(t, &moved)| t.map(|_| i32::from(moved == 0))),
            ),
            _ => 0,
        }
    }
}

/// Index of the highest; the first of equals; 0 when there is none.
fn highest(values: impl Iterator<Item = Option<i32>>) -> u8 {
    let mut best: Option<(u8, i32)> = None;
    for (k, value) in values.enumerate() {
        if let Some(v) = value
            && best.is_none_or(|(_, b)| v > b)
        {
            best = Some((k as u8, v));
        }
    }
    best.map_or(0, |(k, _)| k)
}

/// Kinds that speak about cells which may be missing.
const CELL_KINDS: u32 = Kind::CellOvervoltage.bit()
    | Kind::CellUndervoltage.bit()
    | Kind::DeepDischarge.bit()
    | Kind::GroupOvervoltage.bit()
    | Kind::GroupUndervoltage.bit()
    | Kind::Imbalance.bit()
    | Kind::CellImplausible.bit();
/// Kinds that speak about sensors which may be missing.
const TEMP_KINDS: u32 = Kind::OvertempCharge.bit()
    | Kind::OvertempDischarge.bit()
    | Kind::UndertempCharge.bit()
    | Kind::UndertempDischarge.bit()
    | Kind::TempSpread.bit()
    | Kind::TempRise.bit()
    | Kind::TempImplausible.bit();
const CHARGE_KINDS: u32 = Kind::OvertempCharge.bit() | Kind::UndertempCharge.bit();
const DISCHARGE_KINDS: u32 = Kind::OvertempDischarge.bit() | Kind::UndertempDischarge.bit();
