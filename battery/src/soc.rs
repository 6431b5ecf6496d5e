//! State of charge of one cell, with an honest standard deviation, from current, voltage and temperature.
//!
//! An extended Kalman filter over [`CellParams`] with five states:
//!
//! | state | unit | what |
//! |---|---|---|
//! | `z` | 1 | state of charge |
//! | `v1`, `v2` | mV | the two RC pairs |
//! | `b` | mA | offset of the current sensor: measured minus true |
//! | `e` | mV | what the model gets wrong at the moment: OCV, hysteresis, parameters |
//!
//! `e` is why the stated sigma can be believed. A model's error is not noise: it stays for hours. A filter without `e` averages
//! it away in its books and ends up certain of a wrong answer. Here `e` fades only as charge moves, so at rest a hundred
//! thousand samples say no more about `z` than `e` allows.
//!
//! The OCV curve enters by its chord over ±√3 sigma and not by its tangent (second-order central differences, Nørgaard,
//! Poulsen and Ravn, *Automatica* 36 (2000) 1627), so a wide belief on the flat LFP plateau sees the steep ends.

use crate::cell::{CellParams, Point};
use crate::kalman::Gaussian;
use crate::math;
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts};

const Z: usize = 0;
const V1: usize = 1;
const V2: usize = 2;
const B: usize = 3;
const E: usize = 4;

/// Sigma of the current sensor's offset, as a share of the current that empties the cell in one hour.
const BIAS_C: f32 = 0.02;
/// The offset drifts by its own sigma in this time [s].
const BIAS_DRIFT_S: f32 = 36_000.0;
/// Relative sigma of the resistances.
const RESISTANCE: f32 = 0.15;
/// Sigma of the state of charge after one full capacity has moved: error of capacity and of the current's scale.
const THROUGHPUT: f32 = 0.01;
/// Sigma of one voltage reading [mV].
const READING_MV: f32 = 2.0;
/// Reading noise and series-resistance error count as new information only so often [s].
const CORRELATION_S: f32 = 10.0;
/// The model's error fades to 1/e over this much state of charge ...
const ERROR_SOC: f32 = 0.1;
/// ... or this long [s].
const ERROR_S: f32 = 20_000.0;
/// Share of the hysteresis that the open-loop hysteresis state may get wrong (1 sigma).
const HYSTERESIS: f32 = 0.3;
/// Innovations are averaged over this time to notice that the filter is lost [s].
const LOST_S: f32 = 20.0;
/// Mean squared innovation over its variance at which it is; 1 is normal.
const LOST: f32 = 6.0;
/// Longer gaps between samples count as a restart from what is known.
const GAP: Duration = Duration::from_secs(600);

/// What is known before the first sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SocInit {
    /// Nothing: take it from the first voltage, with the uncertainty that the curve's slope implies.
    Voltage,
    /// A remembered value. It is given up where the first voltage contradicts it.
    Stored {
        /// State of charge, 0 to 1.
        soc: f32,
        /// Its standard deviation.
        sigma: f32,
    },
}

/// The filter of one cell: 168 bytes of state, no reference to its parameters, which many cells share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SocFilter {
    belief: Gaussian<f32, 5>,
    /// What rounding has cut off `z` so far; 24 bits do not hold a tenth of a second at C/100.
    carry: f32,
    /// Hysteresis state, open loop.
    h: f32,
    current_ma: f32,
    last: Option<Instant>,
    lost: f32,
}

impl SocFilter {
    /// Before the first sample.
    pub fn new(initial: SocInit) -> Self {
        let (soc, sigma) = match initial {
            SocInit::Voltage => (0.5, 0.3),
            SocInit::Stored { soc, sigma } if soc.is_finite() && sigma.is_finite() => {
                (soc.clamp(0.0, 1.0), sigma.clamp(0.005, 0.3))
            }
            SocInit::Stored { .. } => (0.5, 0.3),
        };
        Self {
            belief: Gaussian::new(
                [soc, 0.0, 0.0, 0.0, 0.0],
                [sigma * sigma, 0.0, 0.0, 0.0, 0.0],
            ),
            carry: 0.0,
            h: 0.0,
            current_ma: 0.0,
            last: None,
            lost: 1.0,
        }
    }

    /// State of charge, 0 to 1.
    pub fn soc(&self) -> f32 {
        self.belief.x[Z].clamp(0.0, 1.0)
    }

    /// Standard deviation of [`Self::soc`].
    pub fn sigma(&self) -> f32 {
        math::sqrt(self.belief.p[Z][Z])
    }

    /// Estimated offset of the current sensor [mA], measured minus true, and its standard deviation.
    pub fn current_bias_ma(&self) -> (f32, f32) {
        (self.belief.x[B], math::sqrt(self.belief.p[B][B]))
    }

    /// Whether the first sample has been seen.
    pub fn started(&self) -> bool {
        self.last.is_some()
    }

    /// Takes in one sample. The current is taken to have changed linearly since the previous one.
    /// A sample that is not later than the previous one is ignored.
    pub fn update(
        &mut self,
        params: &CellParams,
        now: Instant,
        current: Milliamps,
        v: Millivolts,
        temp: DeciCelsius,
    ) {
        let (i_now, v, temp_c) = (current.0 as f32, f32::from(v.0), f32::from(temp.0) * 0.1);
        let Some(last) = self.last else {
            return self.start(params, now, i_now, v, temp_c);
        };
        let elapsed = now.since(last);
        if elapsed == Duration::ZERO {
            return;
        }
        if elapsed > GAP {
            // What flowed meanwhile is unknown; the old belief is worth a little, the voltage decides.
            *self = Self {
                belief: Gaussian::new(
                    [self.soc(), 0.0, 0.0, self.belief.x[B], 0.0],
                    [self.belief.p[Z][Z] + 0.01, 0.0, 0.0, 0.0, 0.0],
                ),
                ..*self
            };
            return self.start(params, now, i_now, v, temp_c);
        }
        let dt = elapsed.as_secs_f32();
        let point = params.point(self.belief.x[Z], temp_c);
        self.predict(params, &point, dt, 0.5 * (self.current_ma + i_now));
        self.correct(params, &point, dt, i_now, v, temp_c, None);
        self.current_ma = i_now;
        self.last = Some(now);
    }

    fn start(&mut self, params: &CellParams, now: Instant, i: f32, v: f32, temp_c: f32) {
        let one_c = params.capacity_mah();
        let square = |x: f32| x * x;
        // Overvoltages depend on a past that nobody saw: guess half way to their end value, with as much doubt.
        let mut z = self.belief.x[Z];
        let mut point = params.point(z, temp_c);
        let mut interval = (0.0, 1.0);
        let mut doubt = [0.0; 5];
        for _ in 0..2 {
            let past = 0.5 * i.abs() + 0.02 * one_c;
            doubt = [
                0.0,
                square(point.r1 * past),
                square(point.r2 * past),
                square(BIAS_C * one_c),
                square(params.sigma_mv()) + square(0.6 * point.hysteresis_mv),
            ];
            self.belief.x[V1] = 0.5 * point.r1 * i;
            self.belief.x[V2] = 0.5 * point.r2 * i;
            let ocv = v + point.r0 * i + self.belief.x[V1] + self.belief.x[V2];
            let sigma = math::sqrt(
                doubt[V1]
                    + doubt[V2]
                    + doubt[E]
                    + square(READING_MV)
                    + square(RESISTANCE * point.r0 * i),
            );
            interval = params.soc_interval(ocv - 2.0 * sigma, ocv + 2.0 * sigma, temp_c);
            z = 0.5 * (interval.0 + interval.1);
            point = params.point(z, temp_c);
        }
        let (lo, hi) = interval;
        let stored = self.sigma();
        let known = self.belief.x[Z];
        let contradicted = known < lo - 3.0 * stored || known > hi + 3.0 * stored;
        if stored >= 0.3 || contradicted {
            self.belief.x[Z] = z;
            doubt[Z] = square(0.3);
        } else {
            doubt[Z] = square(stored);
        }
        self.belief = Gaussian::new(self.belief.x, doubt);
        self.carry = 0.0;
        self.h = 0.0;
        self.lost = 1.0;
        self.current_ma = i;
        self.last = Some(now);
        // Without this the whole first reading would count as if the curve were straight.
        self.correct(params, &point, CORRELATION_S, i, v, temp_c, Some(interval));
    }

    #[inline]
    fn predict(&mut self, params: &CellParams, point: &Point, dt: f32, measured_ma: f32) {
        let x = &mut self.belief.x;
        let i = measured_ma - x[B];
        let soc_per_ma = dt / (3_600.0 * params.capacity_mah());
        let moved = i * soc_per_ma;
        let g1 = math::one_minus_exp(dt / point.tau1);
        let g2 = math::one_minus_exp(dt / point.tau2);
        x[V1] += g1 * (point.r1 * i - x[V1]);
        x[V2] += g2 * (point.r2 * i - x[V2]);
        // Kahan's sum.
        let step = -moved - self.carry;
        let z = x[Z] + step;
        self.carry = (z - x[Z]) - step;
        x[Z] = z;
        if point.hysteresis_mv > 0.0 {
            let s = params.hysteresis_rate() * moved;
            self.h -= math::one_minus_exp(s.abs()) * (if s > 0.0 { 1.0 } else { -1.0 } + self.h);
        }

        let fade_e = math::one_minus_exp(moved.abs() / ERROR_SOC + dt / ERROR_S);
        x[E] -= fade_e * x[E];
        let d = [1.0, 1.0 - g1, 1.0 - g2, 1.0, 1.0 - fade_e];
        let square = |x: f32| x * x;
        let bias = square(BIAS_C * params.capacity_mah());
        let error = square(params.sigma_mv()) + square(HYSTERESIS * point.hysteresis_mv);
        // Noise that keeps a fading state's variance at its stationary value s: (1 - d²) s.
        let q = [
            square(THROUGHPUT) * moved.abs(),
            g1 * (2.0 - g1) * square(RESISTANCE * point.r1 * i),
            g2 * (2.0 - g2) * square(RESISTANCE * point.r2 * i),
            bias * (dt / BIAS_DRIFT_S),
            fade_e * (2.0 - fade_e) * error,
        ];
        self.belief.predict(&d, &q);
        self.belief
            .leak(B, &[soc_per_ma, -g1 * point.r1, -g2 * point.r2, 0.0, 0.0]);
    }

    /// `interval`: where the first voltage says that the state of charge is; its chord is then the slope.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn correct(
        &mut self,
        params: &CellParams,
        point: &Point,
        dt: f32,
        measured_ma: f32,
        v: f32,
        temp_c: f32,
        interval: Option<(f32, f32)>,
    ) {
        let x = &self.belief.x;
        let z = x[Z];
        let half = match interval {
            Some((lo, hi)) => 0.5 * (hi - lo),
            None => math::sqrt(3.0 * self.belief.p[Z][Z]),
        }
        .clamp(0.005, 0.5);
        let (below, here, above) = (
            params.ocv_mv((z - half).max(-0.02), temp_c),
            params.ocv_mv(z, temp_c),
            params.ocv_mv((z + half).min(1.02), temp_c),
        );
        let width = (z + half).min(1.02) - (z - half).max(-0.02);
        let slope = (above - below) / width.max(1e-3);
        let bend = above + below - 2.0 * here;
        let i = measured_ma - x[B];
        let foreseen =
            here + bend / 6.0 + point.hysteresis_mv * self.h + x[E] - x[V1] - x[V2] - point.r0 * i;
        let h = [slope, -1.0, -1.0, point.r0, 1.0];
        let square = |x: f32| x * x;
        let mut r = (square(READING_MV) + square(RESISTANCE * point.r0 * i))
            * (CORRELATION_S / dt).max(1.0)
            + bend * bend / 18.0;
        let innovation = v - foreseen;
        let (g, variance) = self.belief.project(&h);
        let s = variance + r;
        let ratio = innovation * innovation / s;

        self.lost += math::one_minus_exp(dt / LOST_S) * (ratio.min(50.0) - self.lost);
        if self.lost > LOST {
            // Certain of something wrong: admit it, and let the next samples speak.
            self.lost = 1.0;
            self.belief.p[Z][Z] += 0.01;
            self.belief.p[E][E] += square(2.0 * params.sigma_mv());
        }
        if ratio > 9.0 {
            // One reading never pulls harder than three sigma.
            r += innovation * innovation / 9.0 - s;
        }
        self.belief
            .update_projected(&h, &g, variance, innovation, r);
        let z = self.belief.x[Z];
        if !(-0.02..=1.02).contains(&z) {
            self.belief.x[Z] = z.clamp(-0.02, 1.02);
            self.carry = 0.0;
        }
    }
}
