//! What the slaves' sensors feel: cells, the current through them, and the ways of light in a hall.
//!
//! Cells follow an equivalent-circuit model or a recording; tags follow a geometry or a recording.
//! Cells are stepped when they are looked at, so that a slave which never samples costs nothing.

use std::sync::Arc;

use helio_battery::{CellModel, CellParams, MAX_CELLS, MAX_TEMPS, Sample};
use helio_bus::MAX_ANCHORS;
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millimetres, Millivolts, TagId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::files::CellTrace;

/// Numbers that look random and are the same every time.
#[derive(Clone, Debug)]
pub struct Noise(ChaCha8Rng);

impl Noise {
    /// One stream per user, so that adding one does not change the others.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Zero mean, unit variance: the count of ones in 64 fair bits, which is normal to 1 % in the
    /// tails that matter here and exact in its two moments.
    pub fn normal(&mut self) -> f64 {
        (f64::from(self.0.next_u64().count_ones()) - 32.0) / 4.0
    }

    /// Even in `0..1`.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Any value.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// Current through every string when its gates are on.
#[derive(Clone, Debug)]
pub enum Load {
    /// Always the same, mA.
    Constant(f64),
    /// By the second, repeated from its end; mA, linear in between.
    Trace {
        /// Rising from 0.
        time_s: Vec<f64>,
        /// As many.
        current_ma: Vec<f64>,
    },
}

impl Load {
    /// Current at `now`, mA.
    pub fn at(&self, now: Instant) -> f64 {
        match self {
            Self::Constant(ma) => *ma,
            Self::Trace { time_s, current_ma } => {
                let t = seconds(now);
                let end = time_s.last().copied().unwrap_or(0.0);
                interpolate(time_s, current_ma, if end > 0.0 { t % end } else { 0.0 })
            }
        }
    }
}

/// Seconds of virtual time.
pub fn seconds(t: Instant) -> f64 {
    t.as_nanos() as f64 * 1e-9
}

/// Linear between rows, held at both ends.
pub fn interpolate(x: &[f64], y: &[f64], at: f64) -> f64 {
    let next = x.partition_point(|&v| v <= at);
    match (
        next.checked_sub(1)
            .and_then(|i| Some((*x.get(i)?, *y.get(i)?))),
        x.get(next).zip(y.get(next)),
    ) {
        (Some((x0, y0)), Some((&x1, &y1))) => y0 + (y1 - y0) * (at - x0) / (x1 - x0),
        (Some((_, y0)), None) => y0,
        (None, Some((_, &y1))) => y1,
        (None, None) => 0.0,
    }
}

/// Where a group's readings come from.
#[derive(Clone, Debug)]
enum Cells {
    Model {
        params: Arc<CellParams>,
        cells: Vec<CellModel>,
        stepped: Instant,
    },
    Recording(Arc<CellTrace>),
}

/// How a slave's sensors are made.
#[derive(Clone, Copy, Debug)]
pub struct Sensors {
    /// 1-sigma.
    pub noise_mv: f64,
    /// 1-sigma.
    pub noise_ma: f64,
    /// Sensors.
    pub temps: u8,
    /// °C; recordings bring their own.
    pub temp_c: f64,
}

/// The cells that one slave guards.
#[derive(Clone, Debug)]
pub struct Group {
    cells: Cells,
    count: u8,
    sensors: Sensors,
    noise: Noise,
    /// Cells whose reading stays where it is.
    stuck: [Option<Millivolts>; MAX_CELLS],
    stuck_wanted: u32,
    /// Cells that a fault holds at a voltage.
    forced: [Option<Millivolts>; MAX_CELLS],
    /// Cells being bled.
    bleeding: u32,
    /// What the resistors have warmed the board by [K].
    warmer_k: f64,
    /// Cells, bit 0 is cell 0, whose wires are broken.
    open: u32,
    temps_open: bool,
    /// Temperatures that a fault makes sensors show.
    shown: [Option<DeciCelsius>; MAX_TEMPS],
    current_lost: bool,
    current_stuck: bool,
    /// Where it got stuck.
    stuck_ma: Option<Milliamps>,
    silent: bool,
    /// Sum of the cells at the last look [mV], faults of sensors apart.
    true_mv: f64,
}

/// A board with its resistors: so many kelvin a watt, after so many seconds.
const BOARD_K_PER_W: f64 = 4.0;
const BOARD_S: f64 = 300.0;

/// Current of a bleeding resistor, mA: 4 V over 40 Ω.
const BLEED_MA: f64 = 100.0;

impl Group {
    /// Cells of the same kind that start near `soc`.
    pub fn of_model(
        params: Arc<CellParams>,
        count: u8,
        soc: f64,
        soc_sigma: f64,
        sensors: Sensors,
        mut noise: Noise,
    ) -> Self {
        let cells = (0..count).map(|_| {
            let soc = (soc + soc_sigma * noise.normal()).clamp(0.0, 1.0);
            CellModel::new(soc)
        });
        let cells = Cells::Model {
            params,
            cells: cells.collect(),
            stepped: Instant::ZERO,
        };
        Self::new(cells, count, sensors, noise)
    }

    /// One cell that was recorded; all `count` cells show the same.
    pub fn of_recording(trace: Arc<CellTrace>, count: u8, sensors: Sensors, noise: Noise) -> Self {
        Self::new(Cells::Recording(trace), count, sensors, noise)
    }

    fn new(cells: Cells, count: u8, sensors: Sensors, noise: Noise) -> Self {
        let none = [None; MAX_CELLS];
        Self {
            cells,
            count,
            sensors,
            noise,
            stuck: none,
            stuck_wanted: 0,
            forced: none,
            bleeding: 0,
            warmer_k: 0.0,
            open: 0,
            temps_open: false,
            shown: [None; MAX_TEMPS],
            current_lost: false,
            current_stuck: false,
            stuck_ma: None,
            silent: false,
            true_mv: 0.0,
        }
    }

    /// Measures everything at once, `load_ma` flowing since the last time.
    pub fn sample(&mut self, now: Instant, load_ma: f64) -> Sample {
        let mut sample = Sample {
            cell_count: self.count,
            temp_count: self.sensors.temps,
            ..Sample::EMPTY
        };
        let (mut current_ma, mut temp_c) = (load_ma, self.sensors.temp_c);
        match &mut self.cells {
            Cells::Model {
                params,
                cells,
                stepped,
            } => {
                // Whole milliseconds, the rest next time: a cell looks its parameters up again
                // whenever the length of its step changes.
                let dt = Duration::from_millis(now.since(*stepped).as_millis());
                *stepped += dt;
                let (mut heat_w, mut sum_mv) = (0.0, 0.0);
                for (n, (cell, place)) in cells.iter_mut().zip(&mut sample.cells).enumerate() {
                    let bleed = if self.bleeding >> n & 1 == 1 {
                        BLEED_MA
                    } else {
                        0.0
                    };
                    let mv = cell.step(params, dt, (load_ma + bleed) as f32, temp_c as f32);
                    heat_w += f64::from(mv) * bleed * 1e-6;
                    sum_mv += f64::from(mv);
                    *place =
                        millivolts(f64::from(mv) + self.sensors.noise_mv * self.noise.normal());
                }
                self.true_mv = sum_mv;
                let share = 1.0 - (-(dt.as_nanos() as f64) * 1e-9 / BOARD_S).exp();
                self.warmer_k += share * (heat_w * BOARD_K_PER_W - self.warmer_k);
            }
            Cells::Recording(trace) => {
                let at = |values: &[f64]| interpolate(&trace.time_s, values, seconds(now));
                (current_ma, temp_c) = (at(&trace.current_a) * 1e3, at(&trace.temp_c));
                let mv = at(&trace.voltage_v) * 1e3;
                for place in sample.cells.iter_mut().take(usize::from(self.count)) {
                    *place = millivolts(mv + self.sensors.noise_mv * self.noise.normal());
                }
            }
        }
        for (n, place) in sample.cells.iter_mut().enumerate() {
            if let Some(Some(mv)) = self.forced.get(n) {
                *place = Some(*mv);
            }
            if self.stuck_wanted >> n & 1 == 1 {
                let held = self
                    .stuck
                    .get_mut(n)
                    .map(|held| *held.get_or_insert(place.unwrap_or_default()));
                *place = held;
            }
            if self.open >> n & 1 == 1 {
                *place = None;
            }
        }
        let temps = usize::from(self.sensors.temps).min(MAX_TEMPS);
        for (place, shown) in sample.temps.iter_mut().zip(self.shown).take(temps) {
            let felt = (temp_c + self.warmer_k) * 10.0 + self.noise.normal();
            let felt = shown.unwrap_or(DeciCelsius(felt.round() as i16));
            *place = (!self.temps_open).then_some(felt);
        }
        let mut current =
            Milliamps((current_ma + self.sensors.noise_ma * self.noise.normal()).round() as i32);
        if self.current_stuck {
            current = *self.stuck_ma.get_or_insert(current);
        }
        sample.current = (!self.current_lost).then_some(current);
        sample
    }

    /// Whether the measuring chip answers at all.
    pub fn answers(&self) -> bool {
        !self.silent
    }

    /// Sum of the cells at the last look, mV.
    pub fn true_mv(&self) -> f64 {
        self.true_mv
    }

    /// Breaks the wire of a cell, or mends it.
    pub fn open_cell(&mut self, cell: u8, on: bool) {
        let bit = 1u32.checked_shl(u32::from(cell)).unwrap_or(0);
        self.open = if on {
            self.open | bit
        } else {
            self.open & !bit
        };
    }

    /// Takes away the temperatures, or gives them back.
    pub fn open_temps(&mut self, on: bool) {
        self.temps_open = on;
    }

    /// Makes a sensor show this, or the truth again.
    pub fn show_temp(&mut self, sensor: u8, dc: Option<DeciCelsius>) {
        if let Some(place) = self.shown.get_mut(usize::from(sensor)) {
            *place = dc;
        }
    }

    /// Takes away the current, or gives it back.
    pub fn lose_current(&mut self, on: bool) {
        self.current_lost = on;
    }

    /// Freezes the current, or lets it go.
    pub fn stick_current(&mut self, on: bool) {
        self.current_stuck = on;
        self.stuck_ma = None;
    }

    /// Silences the measuring chip, or not.
    pub fn silence(&mut self, on: bool) {
        self.silent = on;
    }

    /// Which cells the slave bleeds.
    pub fn set_bleeding(&mut self, mask: u32) {
        self.bleeding = mask;
    }

    /// Holds a cell's voltage, or lets it go.
    pub fn force(&mut self, cell: u8, mv: Option<Millivolts>) {
        if let Some(place) = self.forced.get_mut(usize::from(cell)) {
            *place = mv;
        }
    }

    /// Freezes a cell's reading, or lets it go.
    pub fn stick(&mut self, cell: u8, on: bool) {
        let bit = 1u32.checked_shl(u32::from(cell)).unwrap_or(0);
        self.stuck_wanted = if on {
            self.stuck_wanted | bit
        } else {
            self.stuck_wanted & !bit
        };
        if let Some(place) = self.stuck.get_mut(usize::from(cell)) {
            *place = None;
        }
    }

    /// True state of charge of each cell of a modelled group at its last sample.
    pub fn true_socs(&self) -> impl Iterator<Item = f64> {
        let cells: &[CellModel] = match &self.cells {
            Cells::Model { cells, .. } => cells,
            Cells::Recording(_) => &[],
        };
        cells.iter().map(|c| c.soc)
    }

    /// True capacity of the cells of a modelled group.
    pub fn true_capacity_mah(&self) -> Option<f64> {
        match &self.cells {
            Cells::Model { params, .. } => Some(f64::from(params.capacity_mah())),
            Cells::Recording(_) => None,
        }
    }
}

fn millivolts(mv: f64) -> Option<Millivolts> {
    Some(Millivolts(mv.round().clamp(0.0, 65_535.0) as u16))
}

/// One anchor as the plant knows it.
#[derive(Clone, Copy, Debug)]
pub struct Luminaire {
    /// Index of the slave that runs it, from 0, in the order of the rack.
    pub slave: usize,
    /// Number at that slave.
    pub index: u8,
    /// Metres, room frame.
    pub position_m: [f64; 3],
    /// Light does not get through.
    pub blocked: bool,
}

/// Ranges of one tag to all anchors, as recorded.
#[derive(Clone, Debug, Default)]
pub struct RangeTrace {
    /// Rising from 0.
    pub time_s: Vec<f64>,
    /// `[row][anchor in the order of the map]`, metres; NaN where there is none.
    pub range_m: Vec<Vec<f64>>,
}

/// Where tags are.
#[derive(Clone, Debug)]
enum Tags {
    /// Lissajous figures within the hall, each tag its own.
    Moving {
        length_m: f64,
        width_m: f64,
        height_m: f64,
        speed_m_per_s: f64,
    },
    /// Recorded ranges, one trace per tag.
    Recording(Vec<RangeTrace>),
}

/// Anchors and tags of one rack.
#[derive(Clone, Debug)]
pub struct Room {
    /// All anchors.
    pub luminaires: Vec<Luminaire>,
    tags: Tags,
    noise: Noise,
    noise_m: f64,
    sight_m: f64,
}

impl Room {
    /// Tags that move about in a hall.
    pub fn of_hall(luminaires: Vec<Luminaire>, hall: &crate::scenario::Hall, noise: Noise) -> Self {
        let tags = Tags::Moving {
            length_m: hall.length_m,
            width_m: hall.width_m,
            height_m: hall.tag_height_m,
            speed_m_per_s: hall.speed_m_per_s,
        };
        Self {
            luminaires,
            tags,
            noise,
            noise_m: hall.noise_mm / 1e3,
            sight_m: hall.sight_m,
        }
    }

    /// Recorded ranges; `traces[tag].range_m[row]` runs in the order of `luminaires`.
    pub fn of_recording(luminaires: Vec<Luminaire>, traces: Vec<RangeTrace>, noise: Noise) -> Self {
        Self {
            luminaires,
            tags: Tags::Recording(traces),
            noise,
            noise_m: 0.0,
            sight_m: f64::INFINITY,
        }
    }

    /// True position of a tag, metres; `None` for recordings.
    pub fn tag_position(&self, tag: TagId, now: Instant) -> Option<[f64; 3]> {
        let Tags::Moving {
            length_m,
            width_m,
            height_m,
            speed_m_per_s,
        } = self.tags
        else {
            return None;
        };
        let (t, n) = (seconds(now), f64::from(tag.0));
        // Frequencies whose ratio differs from tag to tag; the mean speed is about the wanted one.
        let (a, b) = (length_m * 0.42, width_m * 0.40);
        let ratio = 2.0 + 0.25 * (n % 4.0);
        let rate = speed_m_per_s / (a.hypot(b * ratio) * std::f64::consts::FRAC_1_SQRT_2).max(1e-6);
        let phase = n * 2.399_963; // golden angle: tags start spread out
        let x = length_m / 2.0 + a * (rate * t + phase).sin();
        let y = width_m / 2.0 + b * (rate * ratio * t + 1.7 * phase).cos();
        Some([x, y, height_m])
    }

    /// What a slave's anchors measure to a tag.
    pub fn ranges(
        &mut self,
        slave: usize,
        tag: TagId,
        now: Instant,
    ) -> [Option<Millimetres>; MAX_ANCHORS] {
        let mut ranges = [None; MAX_ANCHORS];
        let position = self.tag_position(tag, now);
        let row = match &self.tags {
            Tags::Recording(traces) => traces.get(usize::from(tag.0)).and_then(|trace| {
                let row = trace
                    .time_s
                    .partition_point(|&t| t <= seconds(now))
                    .checked_sub(1)?;
                // After the recording's end nothing is seen.
                (row + 1 < trace.time_s.len()).then(|| trace.range_m.get(row))?
            }),
            Tags::Moving { .. } => None,
        };
        for (n, l) in self
            .luminaires
            .iter()
            .enumerate()
            .filter(|(_, l)| l.slave == slave)
        {
            let metres = match (position, row) {
                (Some(p), _) => {
                    let d = distance(p, l.position_m);
                    (d <= self.sight_m).then(|| d + self.noise_m * self.noise.normal())
                }
                (None, Some(row)) => row.get(n).copied().filter(|m| m.is_finite() && *m > 0.0),
                (None, None) => None,
            };
            if let (Some(m), Some(place), false) =
                (metres, ranges.get_mut(usize::from(l.index)), l.blocked)
            {
                *place = Some(Millimetres((m * 1e3).round().clamp(0.0, 65_534.0) as i32));
            }
        }
        ranges
    }
}

/// Euclidean, same unit as the points.
pub fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b) * (a - b))
        .sum::<f64>()
        .sqrt()
}

/// A crystal that runs off by some parts per million, and the two ways between its time and ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Thousandths of a part per million, positive: fast.
    ppb: i64,
}

impl Clock {
    /// Off by `ppm`.
    pub fn new(ppm: f64) -> Self {
        Self {
            ppb: (ppm * 1e3).round() as i64,
        }
    }

    /// What the crystal shows.
    pub fn local(self, t: Instant) -> Instant {
        let t = t.as_nanos();
        Instant::from_nanos(t.saturating_add_signed(self.drift(t)))
    }

    /// The first moment at which the crystal shows `local` or later.
    pub fn global(self, local: Instant) -> Instant {
        if local == Instant::MAX {
            return local; // never
        }
        let l = local.as_nanos();
        // Wrong by the drift of the drift, which is a few nanoseconds in an hour.
        let mut t = l.saturating_add_signed(-self.drift(l));
        while self.local(Instant::from_nanos(t)) < local && t < u64::MAX {
            let short = local.since(self.local(Instant::from_nanos(t))).as_nanos();
            t = t.saturating_add(short);
        }
        while t > 0 && self.local(Instant::from_nanos(t - 1)) >= local {
            let far = self
                .local(Instant::from_nanos(t - 1))
                .since(local)
                .as_nanos();
            t -= 1 + far / 2;
        }
        Instant::from_nanos(t)
    }

    /// How far it has run ahead after `t` nanoseconds.
    fn drift(self, t: u64) -> i64 {
        const BILLION: i64 = 1_000_000_000;
        // Fits 64 bits for a day and a half at 50 ppm; beyond that seconds and rest go apart.
        match i64::try_from(t).ok().and_then(|t| t.checked_mul(self.ppb)) {
            Some(product) => product / BILLION,
            None => {
                (t / BILLION as u64) as i64 * self.ppb
                    + (t % BILLION as u64) as i64 * self.ppb / BILLION
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crystal_never_asks_to_be_called_before_its_time() {
        for ppm in [-50.0, -0.003, 0.0, 12.345, 50.0] {
            let clock = Clock::new(ppm);
            for local in [
                0,
                1,
                999,
                1_000_000_007,
                3_600_000_000_001,
                31_536_000_000_000_000,
            ] {
                let local = Instant::from_nanos(local);
                let t = clock.global(local);
                assert!(clock.local(t) >= local, "{ppm} {local}");
                assert!(t == Instant::ZERO || clock.local(t - Duration::from_nanos(1)) < local);
            }
        }
    }

    #[test]
    fn noise_has_the_moments_it_claims() {
        let mut noise = Noise::new(1, 2);
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|_| noise.normal()).collect();
        let mean = values.iter().sum::<f64>() / f64::from(n);
        let variance = values.iter().map(|v| v * v).sum::<f64>() / f64::from(n);
        assert!(
            mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02,
            "{mean} {variance}"
        );
    }

    #[test]
    fn tags_stay_in_the_hall_at_about_the_speed_asked_for() {
        let hall = crate::scenario::Hall::default();
        let room = Room::of_hall(Vec::new(), &hall, Noise::new(1, 0));
        for tag in (0..10).map(TagId) {
            let at = |ms| {
                room.tag_position(tag, Instant::from_millis(ms))
                    .expect("moving")
            };
            let mut way = 0.0;
            for ms in (0..600_000).step_by(100) {
                let [x, y, _] = at(ms);
                assert!((0.0..=40.0).contains(&x) && (0.0..=20.0).contains(&y));
                way += distance(at(ms), at(ms + 100));
            }
            let speed = way / 600.0;
            assert!((0.5..1.5).contains(&speed), "tag {} at {speed} m/s", tag.0);
        }
    }

    #[test]
    fn a_load_trace_is_linear_between_rows_and_starts_again_at_its_end() {
        let load = Load::Trace {
            time_s: vec![0.0, 10.0, 20.0],
            current_ma: vec![0.0, 100.0, 0.0],
        };
        for ms in [5_000, 15_000, 25_000] {
            assert!((load.at(Instant::from_millis(ms)) - 50.0).abs() < 1e-9);
        }
    }
}
