//! How well an estimator follows a recording: it sees what sensors would show, and its answer is compared with the truth.
//!
//! The truth is only read to score (and, where a wrong start is asked for, to make the start that much wrong). Sensors can be
//! given an offset of the current, an offset of the temperature, steps of the voltage, a longer sampling period and lost
//! samples: the recipe of the McMaster blind benchmark (P. Kollmeyer, M. Naylor et al.) for state-of-charge estimators.

use crate::recording::Recording;
use helio_battery::{CellParams, Reading, SocFilter, SocInit};
use helio_units::Instant;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// What the sensors get wrong and how the estimator starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Measured current less the true one [A].
    pub offset_a: f64,
    /// Measured temperature less the true one [K].
    pub temp_offset_k: f64,
    /// Steps of the voltage [mV].
    pub step_mv: f64,
    /// 1 sigma of the voltage sensor [mV].
    pub noise_mv: f64,
    /// At least so many seconds between samples; 0 takes every row.
    pub period_s: f64,
    /// Share of samples that are lost.
    pub lost: f64,
    /// Wrong by this much at the start and every restart; `None` starts without knowledge.
    pub start_error: Option<f64>,
    /// What the estimator is told about the sigma of a stored start.
    pub start_sigma: f64,
    /// Restart this often [s].
    pub restart_s: Option<f64>,
    /// Errors count only so long after a start [s].
    pub settle_s: f64,
    /// Of everything random.
    pub seed: u64,
}

impl Default for Trial {
    fn default() -> Self {
        Self {
            offset_a: 0.0,
            temp_offset_k: 0.0,
            step_mv: 1.0,
            noise_mv: 0.0,
            period_s: 0.0,
            lost: 0.0,
            start_error: None,
            start_sigma: 0.15,
            restart_s: None,
            settle_s: 0.0,
            seed: 1,
        }
    }
}

/// What follows the state of charge.
pub trait Estimator {
    /// Starts anew, from a stored state of charge and its sigma or from nothing.
    fn start(&mut self, stored: Option<(f64, f64)>);
    /// Takes a sample at `t` seconds.
    fn take(&mut self, t: f64, reading: Reading);
    /// State of charge and its sigma.
    fn soc(&self) -> (f64, f64);
}

/// Heliograph's own filter.
#[derive(Debug)]
pub struct Helio<'a> {
    params: &'a CellParams,
    filter: SocFilter,
}

impl<'a> Helio<'a> {
    /// For this cell.
    pub fn new(params: &'a CellParams) -> Self {
        Self {
            params,
            filter: SocFilter::new(SocInit::Voltage),
        }
    }

    /// The filter as it stands.
    pub fn filter(&self) -> &SocFilter {
        &self.filter
    }
}

impl Estimator for Helio<'_> {
    fn start(&mut self, stored: Option<(f64, f64)>) {
        self.filter = SocFilter::new(match stored {
            Some((soc, sigma)) => SocInit::Stored {
                soc: soc as f32,
                sigma: sigma as f32,
            },
            None => SocInit::Voltage,
        });
    }
    fn take(&mut self, t: f64, reading: Reading) {
        self.filter
            .take(self.params, Instant::from_nanos((t * 1e9) as u64), reading);
    }
    fn soc(&self) -> (f64, f64) {
        (f64::from(self.filter.soc()), f64::from(self.filter.sigma()))
    }
}

/// Counting ampere-hours from the start, which is taken from the first voltage when nothing is stored.
#[derive(Debug)]
pub struct Counting<'a> {
    params: &'a CellParams,
    soc: Option<f64>,
    last: Option<(f64, f64)>,
}

impl<'a> Counting<'a> {
    /// For this cell.
    pub fn new(params: &'a CellParams) -> Self {
        Self {
            params,
            soc: None,
            last: None,
        }
    }
}

/// State of charge at which the cell at rest has this voltage.
fn at_rest(params: &CellParams, reading: Reading) -> f64 {
    let point = params.point(0.5, reading.temp_c);
    let mv = reading.mv + point.r0 * reading.ma;
    let (low, high) = params.soc_interval(mv, mv, reading.temp_c);
    f64::from(0.5 * (low + high))
}

impl Estimator for Counting<'_> {
    fn start(&mut self, stored: Option<(f64, f64)>) {
        *self = Self {
            params: self.params,
            soc: stored.map(|s| s.0),
            last: None,
        };
    }
    fn take(&mut self, t: f64, reading: Reading) {
        let mut soc = self.soc.unwrap_or_else(|| at_rest(self.params, reading));
        let ma = f64::from(reading.ma);
        if let Some((then, before)) = self.last {
            soc -=
                0.5 * (ma + before) * (t - then) / (3600.0 * f64::from(self.params.capacity_mah()));
        }
        (self.soc, self.last) = (Some(soc), Some((t, ma)));
    }
    fn soc(&self) -> (f64, f64) {
        (self.soc.unwrap_or(0.5).clamp(0.0, 1.0), 0.0)
    }
}

/// An extended Kalman filter over `[soc, v1, v2]` as a textbook has it (Plett, *Battery Management Systems*, vol. 2, 2015,
/// ch. 3): fixed noise, no bias, no error of the model.
#[derive(Debug)]
pub struct PlainEkf<'a> {
    params: &'a CellParams,
    stored: Option<(f64, f64)>,
    x: [f64; 3],
    p: [[f64; 3]; 3],
    last: Option<(f64, f64)>,
}

impl<'a> PlainEkf<'a> {
    /// For this cell.
    pub fn new(params: &'a CellParams) -> Self {
        Self {
            params,
            stored: None,
            x: [0.5, 0.0, 0.0],
            p: [[0.0; 3]; 3],
            last: None,
        }
    }
}

impl Estimator for PlainEkf<'_> {
    fn start(&mut self, stored: Option<(f64, f64)>) {
        *self = Self {
            stored,
            ..Self::new(self.params)
        };
    }
    fn take(&mut self, t: f64, reading: Reading) {
        let Some((then, before)) = self.last else {
            let (soc, sigma) = self
                .stored
                .unwrap_or_else(|| (at_rest(self.params, reading), 0.05));
            self.x = [soc, 0.0, 0.0];
            self.p = [
                [sigma * sigma, 0.0, 0.0],
                [0.0, 100.0, 0.0],
                [0.0, 0.0, 100.0],
            ];
            self.last = Some((t, f64::from(reading.ma)));
            return;
        };
        let dt = t - then;
        let ma = f64::from(reading.ma);
        let mean = 0.5 * (ma + before);
        let point = self.params.point(self.x[0] as f32, reading.temp_c);
        let f = [
            1.0,
            (-dt / f64::from(point.tau1)).exp(),
            (-dt / f64::from(point.tau2)).exp(),
        ];
        let r = [
            f64::from(point.r1 + point.rk),
            f64::from(point.r2 + point.r3),
        ];
        self.x[0] -= mean * dt / (3600.0 * f64::from(self.params.capacity_mah()));
        for k in 0..2 {
            self.x[k + 1] = f[k + 1] * self.x[k + 1] + (1.0 - f[k + 1]) * r[k] * mean;
        }
        let q = [1e-10 * dt, 0.01 * dt, 0.01 * dt];
        for a in 0..3 {
            for b in 0..3 {
                self.p[a][b] *= f[a] * f[b];
            }
            self.p[a][a] += q[a];
        }
        let ocv = |z: f64| f64::from(self.params.ocv_mv(z as f32, reading.temp_c));
        let slope = f64::from(self.params.ocv_slope_mv(
            self.x[0].clamp(0.0, 1.0) as f32,
            reading.temp_c,
            0.01,
        ));
        let h = [slope, -1.0, -1.0];
        let g: [f64; 3] = std::array::from_fn(|a| (0..3).map(|b| self.p[a][b] * h[b]).sum());
        let sigma = 3.0 * f64::from(self.params.sigma_mv());
        let s = (0..3).map(|a| h[a] * g[a]).sum::<f64>() + sigma * sigma;
        let foreseen = ocv(self.x[0]) - self.x[1] - self.x[2] - f64::from(point.r0) * ma;
        let innovation = f64::from(reading.mv) - foreseen;
        for a in 0..3 {
            self.x[a] += g[a] / s * innovation;
        }
        for a in 0..3 {
            for b in 0..3 {
                self.p[a][b] -= g[a] * g[b] / s;
            }
        }
        self.x[0] = self.x[0].clamp(-0.05, 1.05);
        self.last = Some((t, ma));
    }
    fn soc(&self) -> (f64, f64) {
        (self.x[0].clamp(0.0, 1.0), self.p[0][0].max(0.0).sqrt())
    }
}

/// Estimate and truth at one time.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// [s].
    pub t: f64,
    /// Estimate.
    pub soc: f64,
    /// Its sigma.
    pub sigma: f64,
    /// Truth.
    pub truth: f64,
    /// Since the last start [s].
    pub age: f64,
}

/// How well it went. Percentages are percentage points of state of charge.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// Recording.
    pub trace: String,
    /// Temperature at its start, that of the chamber [°C].
    pub temperature_c: f64,
    /// Length [s].
    pub duration_s: f64,
    /// Comparisons that count.
    pub points: usize,
    /// Root mean square error.
    pub rmse_pct: f64,
    /// Mean error, estimate less truth.
    pub mean_error_pct: f64,
    /// Largest error.
    pub max_error_pct: f64,
    /// Error after one hour, where it lasts so long: the largest of the minute around it.
    pub error_at_1h_pct: Option<f64>,
    /// Error at the end.
    pub final_error_pct: f64,
    /// Share of the points whose truth is within two stated sigmas [%].
    pub within_2_sigma_pct: f64,
    /// Mean stated sigma.
    pub mean_sigma_pct: f64,
    /// After so many seconds of a start the error stays below 5 points; the slowest start. `None`: one never did.
    pub within_5_points_after_s: Option<f64>,
    /// Starts.
    pub starts: usize,
    /// Points more than 5 wrong whose truth the stated two sigmas did not admit [%].
    pub wrong_and_sure_pct: f64,
}

/// A start says nothing when the recording ends sooner after it, unless it was over by then [s].
const DECIDED_S: f64 = 600.0;

/// Runs an estimator over a recording whose truth has one value per row.
pub fn run(
    estimator: &mut dyn Estimator,
    r: &Recording,
    truth: &[f64],
    trial: &Trial,
) -> (Score, Vec<Point>) {
    let mut rng = ChaCha8Rng::seed_from_u64(trial.seed);
    let mut points: Vec<Point> = Vec::with_capacity(r.t.len());
    let (mut started, mut last) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    let mut starts: Vec<(f64, f64)> = Vec::new(); // When, and the last time that the error was above 5 points.
    let first = r.t.first().copied().unwrap_or(0.0);
    for k in 0..r.t.len() {
        let t = r.t[k] - first;
        if t - last < trial.period_s - 1e-6 {
            continue;
        }
        let begin = starts.is_empty() || trial.restart_s.is_some_and(|every| t - started >= every);
        if !begin && trial.lost > 0.0 && rng.random::<f64>() < trial.lost {
            continue;
        }
        last = t;
        if begin {
            let stored = trial
                .start_error
                .map(|e| ((truth[k] + e).clamp(0.0, 1.0), trial.start_sigma));
            estimator.start(stored);
            started = t;
            starts.push((t, t));
        }
        // Two uniform numbers make one normal enough for a sensor.
        let noise = if trial.noise_mv > 0.0 {
            let u: f64 = rng.random::<f64>().max(1e-12);
            trial.noise_mv
                * (-2.0 * u.ln()).sqrt()
                * (std::f64::consts::TAU * rng.random::<f64>()).cos()
        } else {
            0.0
        };
        let mv = 1e3 * r.v[k] + noise;
        let step = trial.step_mv.max(1e-6);
        let reading = Reading {
            ma: (1e3 * (r.i[k] + trial.offset_a)).round() as f32,
            mv: ((mv / step).round() * step) as f32,
            temp_c: (10.0 * (r.temp[k] + trial.temp_offset_k)).round() as f32 * 0.1,
        };
        estimator.take(t, reading);
        let (soc, sigma) = estimator.soc();
        let truth = truth[k].clamp(0.0, 1.0);
        if (soc - truth).abs() > 0.05
            && let Some(start) = starts.last_mut()
        {
            start.1 = t;
        }
        points.push(Point {
            t,
            soc,
            sigma,
            truth,
            age: t - started,
        });
    }
    let counted: Vec<&Point> = points.iter().filter(|p| p.age >= trial.settle_s).collect();
    let n = counted.len().max(1) as f64;
    let mean = |f: &dyn Fn(&Point) -> f64| 100.0 * counted.iter().map(|p| f(p)).sum::<f64>() / n;
    let error = |p: &Point| p.soc - p.truth;
    let end = points.last().map_or(0.0, |p| p.t);
    let mut slowest = Some(0.0f64);
    for (n, (from, wrong)) in starts.iter().enumerate() {
        let until = starts.get(n + 1).map_or(end, |s| s.0);
        slowest = if until - wrong < 2.0 {
            if until - from < DECIDED_S {
                continue;
            }
            None
        } else {
            slowest.map(|s| s.max(wrong - from))
        };
        if slowest.is_none() {
            break;
        }
    }
    let hour: Vec<f64> = points
        .iter()
        .filter(|p| (p.age - 3600.0).abs() < 30.0)
        .map(|p| error(p).abs())
        .collect();
    let score = Score {
        trace: r.name.clone(),
        temperature_c: r.start_temp(),
        duration_s: end,
        points: counted.len(),
        rmse_pct: 10.0 * mean(&|p| error(p) * error(p)).sqrt(),
        mean_error_pct: mean(&error),
        max_error_pct: 100.0 * counted.iter().map(|p| error(p).abs()).fold(0.0, f64::max),
        error_at_1h_pct: (!hour.is_empty())
            .then(|| 100.0 * hour.iter().copied().fold(0.0, f64::max)),
        final_error_pct: points.last().map_or(0.0, |p| 100.0 * error(p)),
        within_2_sigma_pct: mean(&|p| f64::from(u8::from(error(p).abs() <= 2.0 * p.sigma))),
        mean_sigma_pct: mean(&|p| p.sigma),
        within_5_points_after_s: slowest,
        starts: starts.len(),
        wrong_and_sure_pct: mean(&|p| {
            f64::from(u8::from(
                error(p).abs() > 0.05 && error(p).abs() > 2.0 * p.sigma,
            ))
        }),
    };
    (score, points)
}

/// What a truth column counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TruthUnit {
    /// State of charge, 0 to 1 or 0 to 100: told apart by the largest value.
    Soc,
    /// Ampere-hours taken out since the start.
    AhOut,
    /// Ampere-hours put in since the start (negative when discharged).
    AhIn,
}

/// One true state of charge per row, from the column that was asked for, else a `soc` column, else the ampere-hours
/// counted from `start`. The text says what it is.
pub fn truth(
    r: &Recording,
    unit: TruthUnit,
    start: Option<f64>,
    params: &CellParams,
) -> Result<(Vec<f64>, &'static str), String> {
    let capacity = f64::from(params.capacity_mah()) * 1e-3;
    let need = || {
        start.ok_or_else(|| "the truth counts ampere-hours; say with --start-soc where it starts (1 for a full cell)".to_string())
    };
    match (&r.extra, unit) {
        (Some(column), TruthUnit::Soc) => {
            let most = column.iter().copied().fold(f64::MIN, f64::max);
            let least = column.iter().copied().fold(f64::MAX, f64::min);
            let scale = if most > 1.5 { 0.01 } else { 1.0 };
            if most * scale > 1.1 || least * scale < -0.15 {
                return Err(format!("the truth column runs from {least} to {most}, which is no state of charge; say --truth-unit ah-out or ah-in if it counts ampere-hours"));
            }
            Ok((column.iter().map(|s| s * scale).collect(), "column"))
        }
        (Some(column), unit) => {
            let start = need()?;
            let sign = if unit == TruthUnit::AhOut { -1.0 } else { 1.0 };
            let first = column.first().copied().unwrap_or(0.0);
            Ok((column.iter().map(|a| start + sign * (a - first) / capacity).collect(), "ampere-hours of a column"))
        }
        (None, _) => match (&r.soc, start) {
            (Some(soc), None) => Ok((soc.clone(), "column")),
            (_, Some(start)) => {
                let lost = 1.0 - f64::from(params.coulombic_efficiency());
                let soc = r.out_ah.iter().zip(&r.in_ah).map(|(out, into)| start - (out + lost * into) / capacity).collect();
                Ok((soc, "ampere-hours counted from --start-soc"))
            }
            (None, None) => Err("there is no truth: name its column with --truth, or say --start-soc to count ampere-hours".into()),
        },
    }
}
