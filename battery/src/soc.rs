//! State of charge of one cell, with an honest standard deviation, from current, voltage and temperature.
//!
//! An extended Kalman filter over [`CellParams`] with seven states:
//!
//! | state | unit | what |
//! |---|---|---|
//! | `z` | 1 | state of charge |
//! | `v1`, `v2` | mV | the two RC pairs |
//! | `b` | mA | offset of the current sensor: measured minus true |
//! | `v3` | mV | the slowest pair |
//! | `e` | its own sigma | what the model gets wrong at the moment: OCV, hysteresis, parameters |
//! | `r` | 1 | series resistance over that of the file, less one |
//!
//! `e` is why the stated sigma can be believed. A model's error is not noise: it stays for hours. A filter without `e` averages
//! it away in its books and ends up certain of a wrong answer. Here `e` fades only as charge moves, so at rest a hundred
//! thousand samples say no more about `z` than `e` allows.
//!
//! A belief that is one bell curve cannot say "somewhere between 30 and 95 %", which is what a first voltage on the flat LFP
//! curve means. So the filter begins with an interval, cut smaller by every sample, and becomes a Kalman filter when the curve
//! is straight enough over what is left:
//!
//! ```text
//!             first sample              interval small, or the curve straight in it
//!   New ----------------------> Acquiring --------------------------> Tracking
//!                                   ^                                     |
//!                                   '-------------------------------------'
//!                                     innovations too large for too long
//! ```
//!
//! When tracking, the curve enters not by its tangent but by its chords over ±√3 sigma (the points of second-order central
//! differences: Nørgaard, Poulsen and Ravn, *Automatica* 36 (2000) 1627), and of the two the flatter one counts.

use crate::cell::{CellParams, DOUBT, Point};
use crate::health::Estimate;
use crate::kalman::Gaussian;
use crate::math;
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts};

const Z: usize = 0;
const V1: usize = 1;
const V2: usize = 2;
const V3: usize = 3;
const B: usize = 4;
const E: usize = 5;
const R: usize = 6;
const N: usize = 7;

/// Sigma of the current sensor's offset, as a share of the current that empties the cell in one hour.
const OFFSET_C: f32 = 0.0126;
/// Of which the filter looks for so much where the curve is flat: there it would find the model's errors instead. The rest is only
/// considered: what it would do to the state of charge is part of the sigma.
const SOUGHT_C: f32 = 0.004;
/// Where the model's errors are worth so much state of charge, half of the offset's variance is looked for.
const TELLING_SOC: f32 = 0.04;
/// At this current, of 1C: what the resistances' doubt makes of it is one of them.
const TELLING_C: f32 = 0.5;
/// The offset drifts by its own sigma in this time [s].
const BIAS_DRIFT_S: f32 = 36_000.0;
/// Sigma of the state of charge after one full capacity has moved: error of capacity and of the current's scale.
const THROUGHPUT: f32 = 0.01;
/// The series resistance drifts by the sigma it began with in this time [s].
const R0_DRIFT_S: f32 = 36_000.0;
/// Sigma of one voltage reading [mV].
const READING_MV: f32 = 2.0;
/// The series resistance's error counts as new only so often [s].
const CORRELATION_S: f32 = 60.0;
/// The model's error fades to 1/e over this much state of charge ...
const ERROR_SOC: f32 = 0.3;
/// ... or this long [s].
const ERROR_S: f32 = 20_000.0;
/// Sigma of the open-circuit curve along its axis, as state of charge: capacity, age, ends of the slow test.
pub const CURVE: f32 = 0.008;
/// Share of the hysteresis that the open-loop hysteresis state may get wrong (1 sigma).
const HYSTERESIS: f32 = 0.3;
/// Innovations are averaged over this time to notice that the filter is lost [s].
const LOST_S: f32 = 20.0;
/// Mean squared innovation over its variance at which it is; 1 is normal.
const LOST: f32 = 3.0;
/// And no error of the model that is to be expected explains the voltage at this share of the time: a pull of minutes is what a model
/// gets most wrong, and on a flat curve nothing else would tell.
const AGAINST: f32 = 0.8;
/// That time is forgotten with this constant [s].
const AGAINST_S: f32 = 200.0;
/// Sigma of a state of charge of which nothing is known.
const NOTHING_KNOWN: f32 = 0.3;
/// Where the curve rises by so much, the voltage is asked afresh whatever was stored [mV per unit].
const TELLING: f32 = 400.0;
/// Share of the hysteresis that an unknown past leaves open (1 sigma).
const HYSTERESIS_START: f32 = 0.6;
/// Shares of the end values that the pairs are taken to have at the first sample, fast to slow: the slower one is, the less it has to do
/// with the current of this moment.
const SEEN: [f32; 3] = [0.5, 0.3, 0.2];
/// A voltage excludes what is more than so many sigmas away.
const REACH: f32 = 2.5;
/// Sigma of the state of charge as a share of the interval that is left, in which all places are alike: 1/√12.
const SHARE: f32 = 0.289;
/// An interval that comes from a stored value reaches so many of its sigmas to both sides.
const STORED: f32 = 2.0;
/// A voltage cuts the interval with this time constant [s], because a model is wrong for seconds by more than it says.
const CUT_S: f32 = 5.0;
/// Track when the interval is this narrow, or four times this and the curve is straight in it.
const NARROW: f32 = 0.1;
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

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    New(SocInit),
    Acquiring(Interval),
    Tracking {
        /// Running mean of squared innovation over its variance; 1 is normal.
        strain: f32,
        /// Share of the time in which the voltage contradicted.
        against: f32,
    },
}

/// Where the state of charge can be.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Interval {
    lo: f32,
    hi: f32,
    /// Time since it began [s].
    age: f32,
}

impl Interval {
    fn new(lo: f32, hi: f32) -> Self {
        Self { lo, hi, age: 0.0 }
    }
    fn mid(&self) -> f32 {
        0.5 * (self.lo + self.hi)
    }
    fn sigma(&self) -> f32 {
        SHARE * (self.hi - self.lo)
    }
}

/// One sample in the filter's units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Current, discharge positive [mA].
    pub ma: f32,
    /// Terminal voltage [mV].
    pub mv: f32,
    /// Cell temperature [°C].
    pub temp_c: f32,
}

/// What the filter believes at the time of its newest sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellState {
    /// State of charge, 0 to 1.
    pub soc: f32,
    /// Standard deviation of `soc`.
    pub sigma: f32,
    /// Voltage over the fast pair [mV].
    pub v1_mv: f32,
    /// Voltage over the slow pair [mV].
    pub v2_mv: f32,
    /// Voltage over the slowest pair [mV].
    pub v3_mv: f32,
    /// What the open-circuit curve does not explain: hysteresis and the model's error [mV].
    pub shift_mv: f32,
    /// Series resistance as a multiple of the file's.
    pub r0_scale: f32,
    /// Current, free of the sensor's estimated offset [mA].
    pub current_ma: f32,
    /// Temperature [°C].
    pub temp_c: f32,
}

/// The filter of one cell. Holds no reference to its parameters, which many cells share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SocFilter {
    mode: Mode,
    belief: Gaussian<f32, N>,
    /// What an offset of the current that is not looked for, one capacity per hour, would have done to the mean (a "consider"
    /// parameter: S. F. Schmidt, *Advances in Control Systems* 3 (1966) 293).
    felt: [f32; N],
    /// Sigma of the offset that is looked for, of 1C.
    sought: f32,
    /// What rounding has cut off `z` so far; 24 bits do not hold a tenth of a second at C/100.
    carry: f32,
    /// Hysteresis state, open loop.
    h: f32,
    /// Sign of the hysteresis that jumps.
    sign: f32,
    /// `v1` and `v2` by current alone, to fall back on.
    open: [f32; 3],
    current_ma: f32,
    temp_c: f32,
    last: Instant,
}

impl SocFilter {
    /// Before the first sample.
    pub const fn new(initial: SocInit) -> Self {
        Self {
            mode: Mode::New(initial),
            belief: Gaussian {
                x: [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                p: [[0.0; N]; N],
            },
            felt: [0.0; N],
            sought: SOUGHT_C,
            carry: 0.0,
            h: 0.0,
            sign: 0.0,
            open: [0.0; 3],
            current_ma: 0.0,
            temp_c: 25.0,
            last: Instant::ZERO,
        }
    }

    /// State of charge, 0 to 1. Before the first sample, what it was told.
    pub fn soc(&self) -> f32 {
        match self.mode {
            Mode::New(SocInit::Stored { soc, .. }) => soc.clamp(0.0, 1.0),
            Mode::New(SocInit::Voltage) => 0.5,
            Mode::Acquiring(interval) => interval.mid().clamp(0.0, 1.0),
            Mode::Tracking { .. } => self.belief.x[Z].clamp(0.0, 1.0),
        }
    }

    /// Standard deviation of [`Self::soc`].
    pub fn sigma(&self) -> f32 {
        match self.mode {
            Mode::New(SocInit::Stored { sigma, .. }) => sigma,
            Mode::New(SocInit::Voltage) => NOTHING_KNOWN,
            Mode::Acquiring(interval) => interval.sigma(),
            Mode::Tracking { .. } => math::sqrt(self.variance()),
        }
    }

    /// Variance of the state of charge with what an unseen offset of the current may have done to it.
    fn variance(&self) -> f32 {
        self.belief.p[Z][Z] + self.unseen() * square(self.felt[Z])
    }

    /// Variance of the offset that is not looked for, of 1C.
    fn unseen(&self) -> f32 {
        square(OFFSET_C) - square(self.sought)
    }

    /// Estimated offset of the current sensor [mA], measured minus true, and its standard deviation.
    pub fn current_bias_ma(&self) -> (f32, f32) {
        (self.belief.x[B], math::sqrt(self.belief.p[B][B]))
    }

    /// Series resistance as a multiple of the file's, and its standard deviation.
    pub fn resistance(&self) -> Estimate {
        Estimate {
            mean: 1.0 + self.belief.x[R],
            sigma: math::sqrt(self.belief.p[R][R]),
        }
    }

    /// Voltage that is still relaxing [mV], positive after a discharge, and its variance [mV²].
    pub fn relaxing_mv(&self) -> (f32, f32) {
        let Gaussian { x, p } = &self.belief;
        let pairs = [V1, V2, V3].map(|k| p[k][k]);
        (x[V1] + x[V2] + x[V3], pairs.iter().sum())
    }

    /// What hysteresis is taken to add to the voltage [mV], and how much it can add at most.
    pub fn hysteresis_mv(&self, params: &CellParams) -> (f32, f32) {
        let point = params.point(self.soc(), self.temp_c);
        (self.hysteresis(&point), point.hysteresis_mv + point.jump_mv)
    }

    /// Everything else that the filter believes, for who predicts from it. `None` before the first sample.
    pub fn state(&self, params: &CellParams) -> Option<CellState> {
        if matches!(self.mode, Mode::New(_)) {
            return None;
        }
        let x = &self.belief.x;
        let point = params.point(self.soc(), self.temp_c);
        Some(CellState {
            soc: self.soc(),
            sigma: self.sigma(),
            v1_mv: x[V1],
            v2_mv: x[V2],
            v3_mv: x[V3],
            shift_mv: x[E] * self.error_mv(params, &point) + self.hysteresis(&point),
            r0_scale: 1.0 + x[R],
            current_ma: self.current_ma - x[B],
            temp_c: self.temp_c,
        })
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
        let reading = Reading {
            ma: current.0 as f32,
            mv: f32::from(v.0),
            temp_c: f32::from(temp.0) * 0.1,
        };
        self.take(params, now, reading);
    }

    /// [`Self::update`] for values that are no whole millivolts, as the mean of a group.
    pub fn take(&mut self, params: &CellParams, now: Instant, reading: Reading) {
        let elapsed = now.since(self.last);
        match self.mode {
            Mode::New(initial) => self.start(params, reading, initial),
            _ if elapsed == Duration::ZERO => return,
            _ if elapsed > GAP => {
                // What flowed meanwhile is unknown: the old value is worth a little, the voltage decides.
                let stored = SocInit::Stored {
                    soc: self.soc(),
                    sigma: self.sigma() + 0.1,
                };
                self.start(params, reading, stored);
            }
            mode => {
                let dt = elapsed.as_secs_f32();
                let point = params.point(self.soc(), reading.temp_c);
                let moved = self.predict(params, &point, dt, 0.5 * (self.current_ma + reading.ma));
                match mode {
                    Mode::Acquiring(mut known) => {
                        let drift = 2.0 * (THROUGHPUT * moved.abs() + OFFSET_C * dt / 3_600.0);
                        known.lo -= moved + drift;
                        known.hi -= moved - drift;
                        known.age += dt;
                        let share = math::one_minus_exp(dt / CUT_S);
                        self.cut(params, &point, reading, known, share);
                    }
                    Mode::Tracking { strain, against } => {
                        self.correct(params, &point, dt, reading, strain, against)
                    }
                    Mode::New(_) => {}
                }
            }
        }
        self.current_ma = reading.ma;
        self.temp_c = reading.temp_c;
        self.last = now;
    }

    /// The first sample. Overvoltages depend on a past that nobody saw: guess a share of their end value, with much doubt.
    fn start(&mut self, params: &CellParams, reading: Reading, initial: SocInit) {
        let known = match initial {
            SocInit::Stored { soc, sigma } if soc.is_finite() && sigma.is_finite() => {
                let slope = params.ocv_slope_mv(soc.clamp(0.0, 1.0), reading.temp_c, 0.1);
                let least = if slope > TELLING {
                    NOTHING_KNOWN
                } else {
                    0.002
                };
                let half = STORED * sigma.clamp(least, NOTHING_KNOWN);
                let soc = soc.clamp(0.0, 1.0);
                Interval::new((soc - half).max(0.0), (soc + half).min(1.0))
            }
            _ => Interval::new(0.0, 1.0),
        };
        // Resistances depend a little on the state of charge that is sought: take the one the bare voltage suggests.
        let (a, b) = params.soc_interval(reading.mv, reading.mv, reading.temp_c);
        let point = params.point((0.5 * (a + b)).clamp(known.lo, known.hi), reading.temp_c);
        let one_c = params.capacity_mah();
        // Whoever wakes at rest has mostly rested.
        let at_rest = reading.ma.abs() < 0.02 * one_c;
        let unseen = if at_rest { 0.02 } else { 0.1 };
        let past = 0.5 * reading.ma.abs() + unseen * one_c;
        let [share1, share2, share3] = SEEN;
        self.open = [
            share1 * point.r1 * reading.ma,
            share2 * point.r2 * reading.ma,
            share3 * point.r3 * reading.ma,
        ];
        let past = |r: f32| square(r * past);
        self.sought = sought(params, reading.temp_c);
        self.belief = Gaussian::new(
            [
                known.mid(),
                self.open[0],
                self.open[1],
                self.open[2],
                self.belief.x[B],
                0.0,
                self.belief.x[R],
            ],
            [
                square(known.sigma()),
                past(point.r1),
                past(point.r2),
                past(point.r3),
                square(self.sought * one_c),
                1.0,
                square(point.doubt),
            ],
        );
        self.felt = [0.0; N];
        (self.h, self.sign) = (0.0, 0.0);
        self.cut(params, &point, reading, known, 1.0);
    }

    /// Cuts from the interval `known` a share of what this voltage excludes, and begins to track when it is small.
    fn cut(
        &mut self,
        params: &CellParams,
        point: &Point,
        reading: Reading,
        known: Interval,
        share: f32,
    ) {
        let Gaussian { x, p } = &self.belief;
        let Reading { ma, mv, temp_c } = reading;
        let instant = point.instant_mv(ma - x[B]);
        let ocv = mv + instant * (1.0 + x[R]) + x[V1] + x[V2] + x[V3] - self.hysteresis(point);
        let pairs = p[V1][V1] + p[V2][V2] + p[V3][V3];
        let error = square(point.sigma_mv) + square(HYSTERESIS_START * point.hysteresis_mv);
        let others = pairs + error + square(instant) * p[R][R];
        let noise = square(READING_MV) + square(point.doubt * instant);
        let reach = REACH * math::sqrt(others + noise);
        let (said_lo, said_hi) = params.soc_interval(ocv - reach, ocv + reach, temp_c);
        // The curve itself is only known so well along its axis.
        let (said_lo, said_hi) = (
            (said_lo - 2.0 * CURVE).max(0.0),
            (said_hi + 2.0 * CURVE).min(1.0),
        );
        let mut interval = Interval {
            lo: known.lo + share * (said_lo - known.lo).max(0.0),
            hi: known.hi - share * (known.hi - said_hi).max(0.0),
            ..known
        };
        // When little is left of both, they do not make one sharp value but contradict each other: believe the voltage.
        let width = interval.hi - interval.lo;
        if width < 0.5 * (known.hi - known.lo).min(said_hi - said_lo) || width < 2.0 * CURVE {
            interval = Interval {
                age: known.age,
                ..Interval::new(said_lo, said_hi)
            };
        }
        self.mode = Mode::Acquiring(interval);

        let Interval { lo, hi, age, .. } = interval;
        let z = interval.mid();
        let [below, here, above] = [lo, z, hi].map(|z| params.ocv_mv(z, temp_c));
        let straight = (above + below - 2.0 * here).abs() < 0.33 * (above - below);
        let narrow = hi - lo < NARROW || (straight && hi - lo < 4.0 * NARROW);
        // An overvoltage from an unseen past must not be what the interval rests on.
        let settled = pairs < error || age > 2.0 * point.tau2;
        if narrow && settled {
            // The voltage that made the interval is not news: it ties the other states to this one, but only by half.
            let slope = (above - below) / (hi - lo).max(1e-3);
            let variance = square(interval.sigma()).max(square(0.005));
            let tie = slope * variance / (others + slope * slope * variance).max(1e-3);
            let p = &mut self.belief.p;
            p.iter_mut().for_each(|row| row[Z] = 0.0);
            p[Z] = [0.0; N];
            p[Z][Z] = variance;
            for k in [V1, V2, V3, E] {
                p[Z][k] = if k == E {
                    -tie * math::sqrt(error)
                } else {
                    tie
                } * p[k][k];
                p[k][Z] = p[Z][k];
            }
            self.belief.x[Z] = z;
            self.felt = [0.0; N];
            self.carry = 0.0;
            self.mode = Mode::Tracking {
                strain: 1.0,
                against: 0.0,
            };
        }
    }

    /// Moves the belief by a constant current for `dt` seconds; returns by how much the state of charge fell.
    #[inline]
    fn predict(&mut self, params: &CellParams, point: &Point, dt: f32, measured_ma: f32) -> f32 {
        let x = &mut self.belief.x;
        let i = measured_ma - x[B];
        let efficiency = if i < 0.0 {
            params.coulombic_efficiency()
        } else {
            1.0
        };
        let soc_per_ma = efficiency * dt / (3_600.0 * params.capacity_mah());
        let moved = i * soc_per_ma;
        let pairs = [
            (V1, point.r1, point.tau1),
            (V2, point.r2, point.tau2),
            (V3, point.r3, point.tau3),
        ];
        let fades = pairs.map(|(_, _, tau)| math::one_minus_exp(dt / tau));
        for (((k, r, _), g), open) in pairs.into_iter().zip(fades).zip(&mut self.open) {
            x[k] += g * (r * i - x[k]);
            *open += g * (r * i - *open);
        }
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
        let [g1, g2, g3] = fades;
        let d = [1.0, 1.0 - g1, 1.0 - g2, 1.0 - g3, 1.0, 1.0 - fade_e, 1.0];
        let bias = square(self.sought * params.capacity_mah());
        // Noise that keeps a fading state's variance at its stationary value s: (1 - d²) s.
        let pair = |g: f32, r: f32| g * (2.0 - g) * square(point.doubt * r * i);
        let q = [
            square(THROUGHPUT) * moved.abs(),
            pair(g1, point.r1),
            pair(g2, point.r2),
            pair(g3, point.r3),
            bias * (dt / BIAS_DRIFT_S),
            fade_e * (2.0 - fade_e),
            square(point.doubt) * (dt / R0_DRIFT_S),
        ];
        self.belief.predict(&d, &q);
        self.belief.leak(
            B,
            &[
                soc_per_ma,
                -g1 * point.r1,
                -g2 * point.r2,
                -g3 * point.r3,
                0.0,
                0.0,
                0.0,
            ],
        );
        let one_c = params.capacity_mah();
        self.felt = [
            self.felt[Z] - soc_per_ma * one_c,
            d[V1] * self.felt[V1] + g1 * point.r1 * one_c,
            d[V2] * self.felt[V2] + g2 * point.r2 * one_c,
            d[V3] * self.felt[V3] + g3 * point.r3 * one_c,
            self.felt[B],
            d[E] * self.felt[E],
            self.felt[R],
        ];
        moved
    }

    /// Whether no error of the model that is to be expected explains this voltage at this state of charge.
    fn contradicted(&self, params: &CellParams, point: &Point, reading: Reading) -> bool {
        let Gaussian { x, p } = &self.belief;
        let instant = point.instant_mv(reading.ma - x[B]) * (1.0 + x[R]);
        let ocv = reading.mv + instant + x[V1] + x[V2] + x[V3] - self.hysteresis(point);
        let unknown = square(point.sigma_mv)
            + square(HYSTERESIS_START * point.hysteresis_mv)
            + square(
                point.doubt.max(DOUBT) * (instant.abs() + x[V1].abs() + x[V2].abs() + x[V3].abs()),
            )
            + square(READING_MV);
        let reach = REACH * math::sqrt(unknown);
        let (lo, hi) = params.soc_interval(ocv - reach, ocv + reach, reading.temp_c);
        let margin = 2.0 * CURVE + 2.0 * math::sqrt(p[Z][Z]);
        !(lo - margin..=hi + margin).contains(&x[Z])
    }

    /// One sigma of the model's error [mV].
    fn error_mv(&self, params: &CellParams, point: &Point) -> f32 {
        let slope = params.ocv_slope_mv(self.soc(), self.temp_c, 0.02).max(0.0);
        math::sqrt(
            square(point.sigma_mv)
                + square(HYSTERESIS * point.hysteresis_mv)
                + square(slope * CURVE),
        )
    }

    /// What hysteresis adds [mV].
    fn hysteresis(&self, point: &Point) -> f32 {
        point.hysteresis_mv * self.h + point.jump_mv * self.sign
    }

    #[inline]
    fn correct(
        &mut self,
        params: &CellParams,
        point: &Point,
        dt: f32,
        reading: Reading,
        strain: f32,
        against: f32,
    ) {
        let Gaussian { x, p } = &self.belief;
        let z = x[Z];
        let half = math::sqrt(3.0 * p[Z][Z]).clamp(0.005, 0.5);
        let (left, right) = ((z - half).max(-0.02), (z + half).min(1.02));
        let [below, here, above] = [left, z, right].map(|z| params.ocv_mv(z, reading.temp_c));
        // The flatter side: a curve that bends is trusted no more than its less telling half.
        let slope =
            ((here - below) / (z - left).max(1e-3)).min((above - here) / (right - z).max(1e-3));
        let slope = slope.max(0.0);
        let i = reading.ma - x[B];
        self.sign = params.sign(i, self.sign);
        let instant = point.instant_mv(i);
        // One sigma of the model's error here: of its voltage, and of its curve along the axis.
        let error = math::sqrt(
            square(point.sigma_mv)
                + square(HYSTERESIS * point.hysteresis_mv)
                + square(slope * CURVE),
        );
        let foreseen = here + self.hysteresis(point) + error * x[E]
            - x[V1]
            - x[V2]
            - x[V3]
            - instant * (1.0 + x[R]);
        let innovation = reading.mv - foreseen;
        let over = point.instant_slope(i) * (1.0 + x[R]);
        let h = [slope, -1.0, -1.0, -1.0, over, error, -instant];
        let (g, variance) = self.belief.project(&h);
        let resistance = square(0.3 * point.doubt * instant) + square(point.sigma_mv);
        let noise = square(READING_MV);
        let plain = innovation * innovation / (variance + noise + resistance);
        let strain = strain + math::one_minus_exp(dt / LOST_S) * (plain.min(50.0) - strain);
        let no = strain > LOST && self.contradicted(params, point, reading);
        let against =
            against + math::one_minus_exp(dt / AGAINST_S) * (if no { 1.0 } else { 0.0 } - against);
        if no && against > AGAINST {
            // Certain of something wrong: begin anew, near the old value if the voltage agrees.
            let reach = (6.0 * math::sqrt(p[Z][Z])).max(NARROW);
            let doubt = |r: f32, own: f32| {
                square(point.doubt * r * (i.abs() + 0.1 * params.capacity_mah())).max(own)
            };
            let variance = [
                p[Z][Z],
                doubt(point.r1, p[V1][V1]),
                doubt(point.r2, p[V2][V2]),
                doubt(point.r3, p[V3][V3]),
                p[B][B],
                p[E][E],
                p[R][R],
            ];
            let [open1, open2, open3] = self.open;
            let mean = [z, open1, open2, open3, x[B], 0.0, x[R]];
            self.belief = Gaussian::new(mean, variance);
            let near = Interval::new(z - reach, z + reach);
            return self.cut(params, point, reading, near, 1.0);
        }
        self.mode = Mode::Tracking { strain, against };
        let mut r = noise + resistance * (CORRELATION_S / dt).max(1.0);
        let s = variance + r;
        let ratio = innovation * innovation / s;
        if ratio > 9.0 {
            // One reading never pulls harder than one at three sigma (Huber).
            r += s * (math::sqrt(ratio / 9.0) - 1.0);
        }
        self.belief.update_projected(&g, variance, innovation, r);
        let mut felt = -over * params.capacity_mah();
        for (h, f) in h.iter().zip(&self.felt) {
            felt += h * f;
        }
        for (f, g) in self.felt.iter_mut().zip(&g) {
            *f -= g / (variance + r) * felt;
        }
        let z = self.belief.x[Z];
        if !(-0.02..=1.02).contains(&z) {
            self.belief.x[Z] = z.clamp(-0.02, 1.02);
            self.carry = 0.0;
        }
    }
}

/// How much of an offset of the current this cell's voltage can tell (1 sigma, of 1C): where its curve is flattest within the model's errors.
fn sought(params: &CellParams, temp_c: f32) -> f32 {
    let mut share = 1.0f32;
    for z in [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8] {
        let point = params.point(z, temp_c);
        let load = TELLING_C * params.capacity_mah();
        let over = point.instant_mv(load) + load * (point.r1 + point.r2 + point.r3);
        let error = square(point.sigma_mv)
            + square(HYSTERESIS * point.hysteresis_mv)
            + square(point.doubt * over);
        let worth = square(TELLING_SOC * params.ocv_slope_mv(z, temp_c, 0.1).max(0.0));
        share = share.min(worth / (worth + error).max(1e-6));
    }
    math::sqrt(square(SOUGHT_C) + share * (square(OFFSET_C) - square(SOUGHT_C)))
}

fn square(x: f32) -> f32 {
    x * x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::CellModel;
    use crate::defaults::{LFP_2500MAH, NMC_5000MAH};
    use std::vec::Vec;

    /// A repeating drive: pulls, coasts, regenerates. Share of 1C.
    fn drive(second: u64) -> f32 {
        match second % 60 {
            0..12 => 1.5,
            12..30 => 0.4,
            30..36 => -0.8,
            36..50 => 0.9,
            _ => 0.0,
        }
    }

    struct Run {
        truth: f32,
        estimate: f32,
        sigma: f32,
    }

    /// Runs cell and filter side by side at 10 Hz and reports every second.
    fn run(
        params: &CellParams,
        filter: &mut SocFilter,
        soc: f64,
        temp_c: f32,
        seconds: u64,
        offset_ma: f32,
    ) -> Vec<Run> {
        let mut cell = CellModel::new(soc);
        let mut out = Vec::new();
        for k in 0..seconds * 10 {
            let i = drive(k / 10) * params.capacity_mah();
            let v = cell.step(params, Duration::from_millis(100), i, temp_c);
            filter.update(
                params,
                Instant::from_millis(k * 100),
                Milliamps((i + offset_ma) as i32),
                Millivolts(v as u16),
                DeciCelsius((temp_c * 10.0) as i16),
            );
            if k % 10 == 9 {
                out.push(Run {
                    truth: cell.soc as f32,
                    estimate: filter.soc(),
                    sigma: filter.sigma(),
                });
            }
        }
        out
    }

    #[test]
    fn a_first_voltage_on_a_slope_says_much_and_on_a_plateau_little() {
        let start = |params: &CellParams, soc: f32| {
            let mut f = SocFilter::new(SocInit::Voltage);
            let v = Millivolts(params.ocv_mv(soc, 25.0) as u16);
            f.update(params, Instant::ZERO, Milliamps(0), v, DeciCelsius(250));
            (f.soc(), f.sigma())
        };
        let (soc, sigma) = start(&NMC_5000MAH, 0.6);
        assert!((soc - 0.6).abs() < 0.02 && sigma < 0.02, "{soc} {sigma}");
        let (soc, sigma) = start(&LFP_2500MAH, 0.5);
        assert!(
            (soc - 0.5).abs() < 2.0 * sigma && sigma > 0.08,
            "{soc} {sigma}"
        );
    }

    #[test]
    fn any_wrong_start_is_found_within_two_minutes() {
        for truth in [0.3f64, 0.5, 0.7, 0.95] {
            for wrong in [-0.3, -0.1, 0.1, 0.3] {
                let told = (truth + wrong).clamp(0.0, 1.0);
                let mut f = SocFilter::new(SocInit::Stored {
                    soc: told as f32,
                    sigma: 0.02,
                });
                let log = run(&NMC_5000MAH, &mut f, truth, 25.0, 240, 0.0);
                for r in &log[119..] {
                    assert!(
                        (r.estimate - r.truth).abs() < 0.05,
                        "{truth} told {told}: {} {}",
                        r.estimate,
                        r.truth
                    );
                }
            }
        }
    }

    #[test]
    fn a_current_offset_does_not_carry_the_estimate_away() {
        let offset = 0.02 * NMC_5000MAH.capacity_mah();
        let mut f = SocFilter::new(SocInit::Voltage);
        let log = run(&NMC_5000MAH, &mut f, 0.95, 25.0, 3_600, offset);
        // Counting alone would be 2 points off by now.
        let last = log.last().unwrap();
        assert!(
            (last.estimate - last.truth).abs() < 0.007,
            "{} {}",
            last.estimate,
            last.truth
        );
    }

    #[test]
    fn the_lfp_estimate_keeps_its_word() {
        for start in [1.0, 0.8] {
            let mut f = SocFilter::new(SocInit::Voltage);
            let log = run(&LFP_2500MAH, &mut f, start, 25.0, 3_600, 20.0);
            let inside = log
                .iter()
                .filter(|r| (r.estimate - r.truth).abs() < 2.0 * r.sigma)
                .count();
            assert!(inside * 100 >= log.len() * 90, "{inside} of {}", log.len());
        }
    }

    #[test]
    fn a_pull_that_the_model_gets_wrong_for_minutes_does_not_move_it_along_the_plateau() {
        let p = LFP_2500MAH;
        let mut cell = CellModel::new(0.7);
        let mut f = SocFilter::new(SocInit::Stored {
            soc: 0.7,
            sigma: 0.01,
        });
        for second in 0..900u64 {
            let pull = (300..540).contains(&second);
            let i = if pull { 2.0 } else { 0.3 } * p.capacity_mah();
            let v = cell.step(&p, Duration::from_secs(1), i, 25.0);
            let v = v - if pull { 120.0 } else { 0.0 };
            f.update(
                &p,
                Instant::from_millis(second * 1_000),
                Milliamps(i as i32),
                Millivolts(v as u16),
                DeciCelsius(250),
            );
            let error = (f.soc() - cell.soc as f32).abs();
            assert!(error < 0.05, "{second} s: {error} sigma {}", f.sigma());
        }
    }

    #[test]
    fn an_offset_is_looked_for_where_the_voltage_can_tell_it() {
        let nmc = sought(&NMC_5000MAH, 25.0);
        let lfp = sought(&LFP_2500MAH, 25.0);
        assert!(nmc > 1.5 * lfp, "{nmc} {lfp}");
        assert!(lfp >= SOUGHT_C && nmc <= OFFSET_C, "{nmc} {lfp}");
    }

    #[test]
    fn a_tiny_current_is_counted_although_f32_cannot_hold_one_step_of_it() {
        let p = NMC_5000MAH;
        let mut f = SocFilter::new(SocInit::Stored {
            soc: 0.9,
            sigma: 0.005,
        });
        let point = p.point(0.9, 25.0);
        f.update(
            &p,
            Instant::ZERO,
            Milliamps(10),
            Millivolts(p.ocv_mv(0.9, 25.0) as u16),
            DeciCelsius(250),
        );
        let before = f.belief.x[Z];
        for _ in 0..360_000 {
            f.predict(&p, &point, 0.01, 10.0 + f.belief.x[B]);
        }
        let moved = before - f.belief.x[Z];
        assert!((moved / (10.0 / 5_000.0) - 1.0).abs() < 1e-3, "{moved}");
    }

    #[test]
    fn a_repeated_instant_changes_nothing_and_a_long_gap_restarts() {
        let p = NMC_5000MAH;
        let mut f = SocFilter::new(SocInit::Voltage);
        let v = |soc: f32| Millivolts(p.ocv_mv(soc, 25.0) as u16);
        f.update(&p, Instant::ZERO, Milliamps(0), v(0.7), DeciCelsius(250));
        let before = f;
        f.update(
            &p,
            Instant::ZERO,
            Milliamps(9_999),
            v(0.1),
            DeciCelsius(250),
        );
        assert_eq!(f, before);
        f.update(
            &p,
            Instant::from_millis(86_400_000),
            Milliamps(0),
            v(0.3),
            DeciCelsius(250),
        );
        assert!((f.soc() - 0.3).abs() < 0.03, "{}", f.soc());
    }
}
