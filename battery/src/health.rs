//! State of health: capacity and resistance of an ageing cell from partial cycles, with bounds.
//!
//! A cell that ages does not only hold less: its open-circuit curve changes shape. Lost lithium slides the electrodes' curves
//! against each other, lost active material squeezes one of them. An estimator that divides the charge moved by the change of
//! state of charge *read from the curve of the new cell* takes much of this for capacity that is still there. So this filter
//! estimates what happens to the electrodes, and the capacity follows.
//!
//! ```text
//! V(c) = Up(c / ap) - Un((c - l) / an)          c  charge in the positive electrode's window, in capacities of the new cell
//!                                               ap active material left at the positive electrode, an at the negative
//!  Up(p) = OCV(p) + Un(p)                       l  lithium lost, in capacities of the new cell
//!
//! capacity = c(V = full) - c(V = empty)
//! ```
//!
//! `Un` is the negative electrode's potential ([`CellParams::negative_mv`]), `Up` what the new cell's curve leaves for the positive
//! one, so a new cell is described exactly whatever `Un`; an error of `Un` counts only by how far the curves have slid. (These
//! are the degradation modes of M. Dubarry, C. Truchot, B. Y. Liaw, *J. Power Sources* 219 (2012) 204; C. R. Birkl et al.,
//! *J. Power Sources* 341 (2017) 373.)
//!
//! A Kalman filter over `[c, l, an, ap, b, g, h]` with `b` the offset of the current sensor, `g` the loss of lithium per charge moved
//! and `h` the share of the file's hysteresis that is there at rest (slow tests take slow loss for hysteresis). It counts charge all the time and learns from the voltage only when the cell rests ([`REST_S`]): that is seldom, so it
//! costs nothing, and then the voltage says most.

use crate::cell::CellParams;
use crate::kalman::Gaussian;
use crate::math;
use crate::soc::{Reading, SocFilter};
use helio_units::{Duration, Instant};

const C: usize = 0;
const L: usize = 1;
const AN: usize = 2;
const AP: usize = 3;
const B: usize = 4;
const G: usize = 5;
const H: usize = 6;
const N: usize = 7;

/// A rest tells something when it has lasted this long [s].
pub const REST_S: f32 = 900.0;
/// At rest the current is below this share of 1C.
const REST_C: f32 = 0.025;
/// A rest that goes on tells again after this long [s].
const AGAIN_S: f32 = 14_400.0;
/// Sigma of the lithium lost and of the active material of a cell that is said to be new.
const NEW: f32 = 0.005;
/// Sigma of the current sensor's offset, as a share of 1C ...
const BIAS_C: f32 = 0.004;
/// ... which drifts by this much in a day.
const BIAS_DRIFT_C: f32 = 0.001;
/// Sigma of the current's scale: nothing contradicts it, so it is part of the bounds.
const SCALE: f32 = 0.003;
/// Random walk of `l`, `an` and `ap` per root of capacity moved ...
const WALK: [f32; 3] = [0.0006, 0.0006, 0.0004];
/// ... and per root of a year at rest.
const WALK_YEAR: f32 = 0.02;
/// Sigma of the lithium lost per capacity moved; half of it is what one expects.
const RATE: f32 = 0.0003;
/// Sigma of counted charge per root of capacity moved.
const COUNTING: f32 = 0.002;
/// Sigma of the voltage sensor's offset and the curve's error that stays from rest to rest [mV].
const CURVE_MV: f32 = 3.0;
/// Sigma of the curve along its axis.
const CURVE: f32 = 0.003;
/// Errors stay the same from rest to rest: one tells as much as so many of them.
const REPEATED: f32 = 6.0;
/// What can be at all. A cell has no more lithium than new, but for the curve's errors.
const LIMITS: [(usize, f32, f32); 5] = [
    (L, -0.002, 0.6),
    (AN, 0.4, 1.1),
    (AP, 0.4, 1.1),
    (C, -0.1, 1.2),
    (H, 0.0, 1.5),
];
/// Steps to the place that a rest tells.
const STEPS: usize = 4;
/// Share of the hysteresis that its open-loop state gets wrong (1 sigma).
const HYSTERESIS: f32 = 0.2;
/// Share of the file's hysteresis that is expected at rest, give or take as much.
const HYSTERESIS_SHARE: f32 = 0.5;
/// Share of the overvoltage left at the end of a rest that is not known (1 sigma).
const RELAXING: f32 = 0.3;
/// Longer without a sample, and the charge moved meanwhile is unknown.
const GAP: Duration = Duration::from_secs(3_600);
/// The resistance's error stays alike from rest to rest.
const RESISTANCE_REPEATED: f32 = 8.0;
/// Sigma of the resistance's drift per capacity moved.
const RESISTANCE_WALK: f32 = 0.003;

/// A quantity and its standard deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Mean.
    pub mean: f32,
    /// 1 sigma.
    pub sigma: f32,
}

impl Estimate {
    /// The 95 % bounds.
    pub fn bounds(&self) -> (f32, f32) {
        (self.mean - 1.96 * self.sigma, self.mean + 1.96 * self.sigma)
    }
}

/// What has become of the electrodes, in shares of the new cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modes {
    /// Lithium lost.
    pub lithium_lost: f32,
    /// Active material left at the negative electrode.
    pub negative_left: f32,
    /// Active material left at the positive electrode.
    pub positive_left: f32,
}

impl Modes {
    /// A new cell's.
    pub const NEW: Self = Self {
        lithium_lost: 0.0,
        negative_left: 1.0,
        positive_left: 1.0,
    };

    /// The mean of several; `None` of none.
    pub fn mean(all: impl Iterator<Item = Self>) -> Option<Self> {
        let (mut sum, mut n) = ([0.0; 3], 0.0f32);
        for m in all {
            let [l, an, ap] = sum;
            sum = [
                l + m.lithium_lost,
                an + m.negative_left,
                ap + m.positive_left,
            ];
            n += 1.0;
        }
        let [lithium_lost, negative_left, positive_left] = sum.map(|x| x / n);
        (n > 0.0).then_some(Self {
            lithium_lost,
            negative_left,
            positive_left,
        })
    }

    /// Open-circuit voltage [mV] at the charge `c`.
    fn mv(&self, params: &CellParams, c: f32, temp_c: f32) -> f32 {
        let (p, n) = self.places(c);
        params.ocv_mv(p, temp_c) + params.negative_mv(p) - params.negative_mv(n)
    }

    /// Where the electrodes stand, each on its own scale of the new cell.
    fn places(&self, c: f32) -> (f32, f32) {
        (
            c / self.positive_left,
            (c - self.lithium_lost) / self.negative_left,
        )
    }

    /// The charges at which the cell at rest is empty and full.
    fn ends(&self, params: &CellParams) -> (f32, f32) {
        const TEMP_C: f32 = crate::cell::OCV_TEMP_C;
        let at = |mv: f32, mut low: f32, mut high: f32| {
            for _ in 0..20 {
                let mid = 0.5 * (low + high);
                if self.mv(params, mid, TEMP_C) < mv {
                    low = mid;
                } else {
                    high = mid;
                }
            }
            0.5 * (low + high)
        };
        (
            at(params.ocv_mv(0.0, TEMP_C), -0.2, 0.6),
            at(params.ocv_mv(1.0, TEMP_C), 0.3, 1.2),
        )
    }

    fn capacity(&self, params: &CellParams) -> f32 {
        let (empty, full) = self.ends(params);
        full - empty
    }

    /// The cell as it is now, of which `params` are the new one's: its capacity, and its curve over its own state of charge.
    pub fn aged(&self, params: &CellParams) -> CellParams {
        let mut now = *params;
        self.age(params, &mut now);
        now
    }

    /// [`Self::aged`] in place: `now` are the parameters of the new cell or of this cell at another age.
    pub fn age(&self, params: &CellParams, now: &mut CellParams) {
        let (empty, full) = self.ends(params);
        now.age((full - empty) * params.capacity_mah(), |soc| {
            self.mv(
                params,
                empty + soc * (full - empty),
                crate::cell::OCV_TEMP_C,
            ) - params.shift_mv(soc, crate::cell::OCV_TEMP_C)
        });
    }
}

/// The health of one cell, or of the mean of a group. Holds no reference to the parameters, which are those of the new cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HealthFilter {
    belief: Gaussian<f32, N>,
    /// Whether `c` is known at all.
    placed: bool,
    /// Charge moved since the newest prediction: net, and regardless of direction, in capacities of the new cell.
    moved: f32,
    carry: f32,
    throughput: f32,
    /// Time since then [s].
    waited: f32,
    /// How long the cell has rested [s], and when it told last.
    rested: f32,
    told: f32,
    /// The newest moment of rest.
    resting: Option<Resting>,
    resistance: Estimate,
    rests: u32,
    last: Option<(Instant, f32)>,
}

/// What a filter has learnt that is worth more than a new beginning, for who keeps it over a reset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learnt {
    /// What has become of the electrodes.
    pub modes: Modes,
    /// Covariance of lithium lost, negative and positive active material left: rows of the upper triangle.
    pub covariance: [f32; 6],
    /// Series resistance as a multiple of the new cell's.
    pub resistance: Estimate,
    /// Rests that have told something.
    pub rests: u32,
}

impl Learnt {
    /// Whether a cell can be so.
    pub fn is_sane(&self) -> bool {
        let Modes {
            lithium_lost,
            negative_left,
            positive_left,
        } = self.modes;
        let [ll, _, _, nn, _, pp] = self.covariance;
        let left = 0.3..=1.2;
        (-0.2..=0.7).contains(&lithium_lost)
            && left.contains(&negative_left)
            && left.contains(&positive_left)
            && [ll, nn, pp].iter().all(|v| (1e-9..=0.1).contains(v))
            && self.covariance.iter().all(|v| v.abs() <= 0.1)
            && (0.1..=20.0).contains(&self.resistance.mean)
            && (0.0..=20.0).contains(&self.resistance.sigma)
    }
}

/// What a rest tells at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Resting {
    mv: f32,
    hysteresis_mv: f32,
    variance: f32,
    temp_c: f32,
    soc: f32,
    sigma: f32,
    resistance: Estimate,
}

impl HealthFilter {
    /// A new cell.
    pub const NEW: Self = Self::since(Modes::NEW, NEW);

    /// A cell of which is known what has become of it, with this sigma of the lithium and half of it for either active material,
    /// of which cells lose less (C. R. Birkl et al., *J. Power Sources* 341 (2017) 373). Larger than 0.3 counts as 0.3.
    pub const fn since(modes: Modes, sigma: f32) -> Self {
        let mut p = [[0.0; N]; N];
        let sigma = if sigma < 0.3 { sigma } else { 0.3 };
        p[C][C] = 0.09;
        p[L][L] = sigma * sigma;
        p[AN][AN] = 0.25 * sigma * sigma;
        p[AP][AP] = 0.25 * sigma * sigma;
        p[B][B] = BIAS_C * BIAS_C;
        p[G][G] = RATE * RATE;
        p[H][H] = HYSTERESIS_SHARE * HYSTERESIS_SHARE;
        Self {
            belief: Gaussian {
                x: [
                    0.5,
                    modes.lithium_lost,
                    modes.negative_left,
                    modes.positive_left,
                    0.0,
                    0.5 * RATE,
                    HYSTERESIS_SHARE,
                ],
                p,
            },
            placed: false,
            moved: 0.0,
            carry: 0.0,
            throughput: 0.0,
            waited: 0.0,
            rested: 0.0,
            told: 0.0,
            resting: None,
            resistance: Estimate {
                mean: 1.0,
                sigma: 0.1,
            },
            rests: 0,
            last: None,
        }
    }

    /// What is worth keeping. Where the cell stands now, the sensor's offset and the rate of ageing are found anew.
    pub fn learnt(&self) -> Learnt {
        let p = &self.belief.p;
        Learnt {
            modes: self.modes(),
            covariance: [p[L][L], p[L][AN], p[L][AP], p[AN][AN], p[AN][AP], p[AP][AP]],
            resistance: self.resistance,
            rests: self.rests,
        }
    }

    /// Goes on with what was kept.
    pub fn resume(kept: &Learnt) -> Self {
        let mut filter = Self::since(kept.modes, 0.0);
        let [ll, ln, lp, nn, np, pp] = kept.covariance;
        let p = &mut filter.belief.p;
        for (row, column, v) in [
            (L, L, ll),
            (L, AN, ln),
            (L, AP, lp),
            (AN, AN, nn),
            (AN, AP, np),
            (AP, AP, pp),
        ] {
            p[row][column] = v;
            p[column][row] = v;
        }
        filter.resistance = kept.resistance;
        filter.rests = kept.rests;
        filter
    }

    /// What has become of the electrodes.
    pub fn modes(&self) -> Modes {
        modes(&self.belief.x)
    }

    /// Capacity as a share of the new cell's.
    pub fn capacity(&self, params: &CellParams) -> Estimate {
        let mean = self.modes().capacity(params);
        let slope = self.slopes(|modes| modes.capacity(params));
        // A wrong negative electrode misleads the more, the further the curves have slid.
        let slid = params.negative_doubt() * (1.0 - mean);
        let mut variance = square(SCALE * mean) + square(slid);
        for (a, row) in slope.iter().zip(&self.belief.p) {
            for (b, p) in slope.iter().zip(row) {
                variance += a * b * p;
            }
        }
        Estimate {
            mean,
            sigma: math::sqrt(variance),
        }
    }

    /// Series resistance as a multiple of the new cell's.
    pub fn resistance(&self) -> Estimate {
        self.resistance
    }

    /// Rests that have told something so far.
    pub fn rests(&self) -> u32 {
        self.rests
    }

    /// The cell as it is now: its capacity, and its curve over its own state of charge.
    pub fn aged(&self, params: &CellParams) -> CellParams {
        self.modes().aged(params)
    }

    /// Takes in one sample. `params` are the new cell's; `filter` has taken the same sample and knows what of the voltage is
    /// still relaxing. `filter` may use [`Self::aged`] parameters: give those as `now_params`.
    /// Returns whether the estimate has changed.
    pub fn take(
        &mut self,
        params: &CellParams,
        now: Instant,
        reading: Reading,
        filter: &SocFilter,
        now_params: &CellParams,
    ) -> bool {
        let one_c = params.capacity_mah();
        let Some((last, before)) = self.last else {
            self.last = Some((now, reading.ma));
            return false;
        };
        let elapsed = now.since(last);
        if elapsed == Duration::ZERO {
            return false;
        }
        self.last = Some((now, reading.ma));
        let dt = elapsed.as_secs_f32();
        if elapsed > GAP {
            let told = self.tell(params);
            self.waited += dt;
            self.predict();
            self.belief.p[C][C] += square(0.2);
            self.rested = 0.0;
            return told;
        }
        let rests = before.abs() < REST_C * one_c && reading.ma.abs() < REST_C * one_c;
        let mut told = false;
        if !rests {
            told = self.tell(params);
            self.rested = 0.0;
            self.told = 0.0;
        }
        let ma = 0.5 * (before + reading.ma);
        let efficiency = if ma < 0.0 {
            params.coulombic_efficiency()
        } else {
            1.0
        };
        let moved = efficiency * ma * dt / (3_600.0 * one_c);
        // Kahan's sum.
        let step = moved - self.carry;
        let sum = self.moved + step;
        self.carry = (sum - self.moved) - step;
        self.moved = sum;
        self.throughput += moved.abs();
        self.waited += dt;
        if !rests {
            return told;
        }
        self.rested += dt;
        if self.rested >= REST_S {
            let (over, variance) = filter.relaxing_mv();
            let (hysteresis, reach) = filter.hysteresis_mv(now_params);
            self.resting = Some(Resting {
                mv: reading.mv + over,
                hysteresis_mv: hysteresis,
                variance: square(RELAXING * over) + 0.25 * variance + square(HYSTERESIS * reach),
                temp_c: reading.temp_c,
                soc: filter.soc(),
                sigma: filter.sigma(),
                resistance: filter.resistance(),
            });
            if self.rested - self.told > AGAIN_S {
                told = self.tell(params);
            }
        }
        told
    }

    /// Moves the belief over the charge and time since it was moved last.
    fn predict(&mut self) {
        let hours = self.waited / 3_600.0;
        let throughput = self.throughput;
        let x = &mut self.belief.x;
        x[C] += -self.moved + x[B] * hours;
        x[L] += x[G] * throughput;
        let year = square(WALK_YEAR) * self.waited / 3.156e7;
        let [l, an, ap] = WALK.map(|w| square(w) * throughput + year);
        let q = [
            square(COUNTING) * throughput,
            l,
            an,
            ap,
            square(BIAS_DRIFT_C) * hours / 24.0,
            square(0.02 * RATE) * throughput,
            0.0,
        ];
        self.belief.predict(&[1.0; N], &q);
        self.belief.leak(B, &[hours, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        self.belief
            .leak(G, &[0.0, throughput, 0.0, 0.0, 0.0, 0.0, 0.0]);
        (self.moved, self.carry, self.throughput, self.waited) = (0.0, 0.0, 0.0, 0.0);
    }

    /// Learns from the rest that has just ended, if there was one.
    fn tell(&mut self, params: &CellParams) -> bool {
        let Some(rest) = self.resting.take() else {
            return false;
        };
        self.told = self.rested;
        let throughput = self.throughput;
        self.predict();
        self.learn_resistance(rest.resistance, throughput);
        if !self.placed {
            self.place(params, rest.soc, rest.sigma.max(0.01));
        }
        let before = self.belief.x;
        // Gauss and Newton's steps to the best place: the curve bends between where a cell of unknown age was expected and where it is.
        let mut x = before;
        for step in 1..=STEPS {
            let (h, slope, mv) = self.sensitivity(params, &x, &rest);
            let mut r = REPEATED * (rest.variance + square(CURVE_MV) + square(CURVE * slope));
            let (g, variance) = self.belief.project(&h);
            let back: f32 = (0..N).map(|k| h[k] * (before[k] - x[k])).sum();
            let innovation = rest.mv - mv - back;
            let s = variance + r;
            let ratio = innovation * innovation / s;
            if ratio > 9.0 {
                r += s * (math::sqrt(ratio / 9.0) - 1.0);
            }
            if step == STEPS {
                self.belief.update_projected(&g, variance, innovation, r);
                break;
            }
            (0..N).for_each(|k| x[k] = before[k] + g[k] * innovation / (variance + r));
            clamp(&mut x);
        }
        self.limit();
        self.rests = self.rests.saturating_add(1);
        true
    }

    /// What no cell can be is taken to its limit, and what hangs together with it, too (D. Simon, T. L. Chia, *IEEE Trans. Aerosp.
    /// Electron. Syst.* 38 (2002) 128).
    fn limit(&mut self) {
        let Gaussian { x, p } = &mut self.belief;
        for (k, low, high) in LIMITS {
            let over = x[k].clamp(low, high) - x[k];
            if over != 0.0 && p[k][k] > 0.0 {
                (0..N).for_each(|j| x[j] += p[j][k] / p[k][k] * over);
            }
        }
        // Each takes the others along, by so little that they stay what a cell can be.
        clamp(x);
    }

    /// Where the cell stands, by its state of charge: between two ends that are as uncertain as the electrodes are.
    fn place(&mut self, params: &CellParams, soc: f32, sigma: f32) {
        let at = |modes: Modes| {
            let (empty, full) = modes.ends(params);
            empty + soc * (full - empty)
        };
        let slope = self.slopes(at);
        let Gaussian { x, p } = &mut self.belief;
        x[C] = at(modes(x));
        let across: [f32; N] =
            core::array::from_fn(|k| [L, AN, AP].iter().map(|&m| slope[m] * p[m][k]).sum());
        let ends: f32 = [L, AN, AP].iter().map(|&m| slope[m] * across[m]).sum();
        p[C] = across;
        p[C][C] = square(sigma) + ends;
        (0..N).for_each(|k| p[k][C] = p[C][k]);
        self.placed = true;
    }

    /// By how much the voltage at rest changes with each state at `x`, its slope over the charge, and the voltage [mV].
    fn sensitivity(
        &self,
        params: &CellParams,
        x: &[f32; N],
        rest: &Resting,
    ) -> ([f32; N], f32, f32) {
        let (c, now) = (x[C], modes(x));
        let at = |c: f32| now.mv(params, c, rest.temp_c);
        // As the filter of the state of charge: chords over what is possible, the flatter counts.
        let half = math::sqrt(3.0 * self.belief.p[C][C]).clamp(0.01, 0.4);
        let here = at(c);
        let chord = |half: f32| (at(c + half) - here) / half;
        let (down, up) = (chord(-half), chord(half));
        let half = if down < up { -half } else { half };
        let slope = down.min(up).max(0.0);
        let (place_p, place_n) = now.places(c);
        // The negative electrode's own, over the same chord.
        let wide = half / now.negative_left;
        let un = (params.negative_mv(place_n + wide) - params.negative_mv(place_n)) / wide;
        let up = (slope + un / now.negative_left) * now.positive_left;
        let h = [
            slope,
            un / now.negative_left,
            un * place_n / now.negative_left,
            -up * place_p / now.positive_left,
            0.0,
            0.0,
            rest.hysteresis_mv,
        ];
        (h, slope, here + x[H] * rest.hysteresis_mv)
    }

    /// By how much a figure of the cell changes with what became of its electrodes.
    fn slopes(&self, of: impl Fn(Modes) -> f32) -> [f32; N] {
        // Towards an older cell: what a curve is beyond the ends of the new cell nobody knows.
        let here = of(self.modes());
        let mut slope = [0.0; N];
        for (k, step) in [(L, 0.01), (AN, -0.01), (AP, -0.01)] {
            let mut x = self.belief.x;
            x[k] += step;
            slope[k] = (of(modes(&x)) - here) / step;
        }
        slope
    }

    fn learn_resistance(&mut self, seen: Estimate, throughput: f32) {
        let Estimate { mean, sigma } = &mut self.resistance;
        let variance = square(*sigma) + square(RESISTANCE_WALK) * throughput;
        let r = RESISTANCE_REPEATED * square(seen.sigma.max(0.01));
        let gain = variance / (variance + r);
        *mean += gain * (seen.mean - *mean);
        *sigma = math::sqrt((1.0 - gain) * variance);
    }
}

fn clamp(x: &mut [f32; N]) {
    for (k, low, high) in LIMITS {
        x[k] = x[k].clamp(low, high);
    }
}

fn modes(x: &[f32; N]) -> Modes {
    Modes {
        lithium_lost: x[L],
        negative_left: x[AN],
        positive_left: x[AP],
    }
}

fn square(x: f32) -> f32 {
    x * x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::CellModel;
    use crate::defaults::{LFP_2500MAH, NMC_5000MAH};
    use crate::soc::SocInit;

    /// Partial cycles with rests, of a cell that is as `truth` says; the filters are told of a new one.
    fn cycles(params: &CellParams, truth: &CellParams, count: u32, offset_ma: f32) -> HealthFilter {
        let mut cell = CellModel::new(0.5);
        let mut filter = SocFilter::new(SocInit::Voltage);
        let mut health = HealthFilter::NEW;
        health.belief.p[L][L] = square(0.05);
        health.belief.p[AN][AN] = square(0.02);
        health.belief.p[AP][AP] = square(0.02);
        let mut now_params = *params;
        let mut seconds = 0u64;
        let one_c = truth.capacity_mah();
        let mut go = |health: &mut HealthFilter,
                      cell: &mut CellModel,
                      ma: f32,
                      until: &dyn Fn(&CellModel, u64) -> bool| {
            let begin = seconds;
            while !until(cell, seconds - begin) {
                let mv = cell.step(truth, Duration::from_secs(20), ma, 25.0);
                seconds += 20;
                let reading = Reading {
                    ma: ma + offset_ma,
                    mv: mv as i32 as f32,
                    temp_c: 25.0,
                };
                let now = Instant::from_millis(1_000 * seconds);
                filter.take(&now_params, now, reading);
                if health.take(params, now, reading, &filter, &now_params) {
                    now_params = health.aged(params);
                }
            }
        };
        for k in 0..count {
            let (high, low) = (0.72 + 0.04 * (k % 7) as f64, 0.12 + 0.05 * (k % 5) as f64);
            go(&mut health, &mut cell, -0.4 * one_c, &|c, _| c.soc >= high);
            go(&mut health, &mut cell, 0.0, &|_, t| t > 3_600);
            go(&mut health, &mut cell, 0.6 * one_c, &|c, _| c.soc <= low);
            go(&mut health, &mut cell, 0.0, &|_, t| t > 3_600);
        }
        health
    }

    fn old(params: &CellParams, modes: Modes) -> (CellParams, f32) {
        let mut filter = HealthFilter::NEW;
        filter.belief.x[L] = modes.lithium_lost;
        filter.belief.x[AN] = modes.negative_left;
        filter.belief.x[AP] = modes.positive_left;
        (filter.aged(params), modes.capacity(params))
    }

    #[test]
    fn a_new_cell_has_all_of_its_capacity_and_its_own_curve() {
        for p in [NMC_5000MAH, LFP_2500MAH] {
            let health = HealthFilter::NEW;
            let capacity = health.capacity(&p);
            assert!((capacity.mean - 1.0).abs() < 1e-3, "{capacity:?}");
            assert!(
                capacity.sigma > SCALE && capacity.sigma < 0.02,
                "{capacity:?}"
            );
            let same = health.aged(&p);
            for k in 1..100 {
                let z = k as f32 * 0.01;
                assert!(
                    (same.ocv_mv(z, 25.0) - p.ocv_mv(z, 25.0)).abs()
                        < 0.03 * p.ocv_slope_mv(z, 25.0, 0.01).max(20.0)
                );
            }
        }
    }

    #[test]
    fn lost_lithium_and_material_are_found_from_partial_cycles() {
        let p = NMC_5000MAH;
        for modes in [
            Modes {
                lithium_lost: 0.09,
                ..Modes::NEW
            },
            Modes {
                lithium_lost: 0.02,
                negative_left: 0.95,
                positive_left: 0.97,
            },
        ] {
            let (truth, capacity) = old(&p, modes);
            assert!(capacity < 0.965, "{capacity}");
            let health = cycles(&p, &truth, 30, 15.0);
            let found = health.capacity(&p);
            assert!(
                (found.mean - capacity).abs() < 0.015,
                "{found:?} {capacity}"
            );
            let (low, high) = found.bounds();
            assert!((low..high).contains(&capacity), "{found:?} {capacity}");
        }
    }

    #[test]
    fn a_cell_that_stays_new_is_not_made_old() {
        let health = cycles(&NMC_5000MAH, &NMC_5000MAH, 20, -15.0);
        let found = health.capacity(&NMC_5000MAH);
        assert!((found.mean - 1.0).abs() < 0.01, "{found:?}");
        let health = cycles(&LFP_2500MAH, &LFP_2500MAH, 10, 0.0);
        let found = health.capacity(&LFP_2500MAH);
        let (low, high) = found.bounds();
        assert!((low..high).contains(&1.0), "{found:?}");
    }

    #[test]
    fn a_cell_of_unknown_age_is_known_after_a_few_deep_cycles() {
        let p = NMC_5000MAH;
        for share in [1.0, 0.9, 0.8] {
            let truth = p.with_capacity_mah(share * 5_000.0);
            let mut cell = CellModel::new(0.95);
            let mut filter = SocFilter::new(SocInit::Voltage);
            let mut health = HealthFilter::since(Modes::NEW, 0.08);
            let mut seconds = 0;
            let rest = (0.0, 2_000);
            let cycle = [rest, (0.45, 6_000), rest, (-0.45, 6_000)];
            for (c, time) in cycle.into_iter().cycle().take(13) {
                let ma = c * truth.capacity_mah();
                for _ in 0..time / 4 {
                    seconds += 4;
                    let mv = cell.step(&truth, Duration::from_secs(4), ma, 25.0);
                    let (now, temp_c) = (Instant::from_millis(1_000 * seconds), 25.0);
                    let reading = Reading { ma, mv, temp_c };
                    filter.take(&p, now, reading);
                    health.take(&p, now, reading, &filter, &p);
                }
            }
            let found = health.capacity(&p);
            let off = (found.mean - share).abs();
            assert!(off < 0.05 && off < 2.5 * found.sigma, "{share}: {found:?}");
            assert!(
                found.sigma < 0.03 + 0.25 * (1.0 - share),
                "{share}: {found:?}"
            );
        }
    }

    #[test]
    fn repeated_instants_and_gaps_move_no_charge() {
        let p = NMC_5000MAH;
        let mut health = HealthFilter::NEW;
        let filter = SocFilter::new(SocInit::Voltage);
        let reading = Reading {
            ma: 5_000.0,
            mv: 3_700.0,
            temp_c: 25.0,
        };
        for seconds in [0, 0, 10, 10, 100_000] {
            health.take(
                &p,
                Instant::from_millis(1_000 * seconds),
                reading,
                &filter,
                &p,
            );
        }
        // Ten seconds of 1C were counted, a day without samples was not.
        assert!((health.belief.x[C] - (0.5 - 10.0 / 3_600.0)).abs() < 1e-4);
    }
}
