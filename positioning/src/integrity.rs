//! How far the position can be wrong without anybody noticing.
//!
//! [`protect_3d`] and [`protect_2d`] test every range against the others, leave out what fails,
//! and bound the error that one undetected fault may still cause: the protection level, by
//! solution separation as in satellite navigation (M. Joerger, F.-C. Chan, B. Pervan,
//! NAVIGATION 61 (2014) 273). With `C` the covariance, `u` the direction to anchor `i`, `w` its
//! weight, `v = C u`, the redundancy `ρ = 1 - w u'v` says how much of a bias stays in its own
//! residual, and the fix without that anchor is apart from the full one by `√(w / ρ) v` per
//! sigma:
//!
//! ```text
//! test      |residual| √(w / ρ) <= K_fa
//! level     max over i of  max over t of  (K_fa + t) √(w / ρ) |v| + K(missed / Q(t)) σ_0
//!           but no more than  w |v| max_bias + K_md σ_0        the floor where ρ -> 0: blind
//!           and no less than  K_md σ_0                         no fault
//! ```
//!
//! The test and the error of the full fix being independent, a bias `K_fa + t` times what its
//! test can carry passes with probability `Q(t)`, and only then has the fix to stay within the
//! level: the worst `t` counts.
//!
//! One fault at a time is covered; several at once are what [`crate::locate_robust_3d`] is for.

use crate::locate::{Fix, LocateError, Options, Problem, RangeObs};
use crate::math::{Real, Sym3, count};

/// Redundancy below which a range is called unchecked: a bias must then exceed seven times the
/// usual before it shows.
const BLIND: f64 = 0.02;

/// `t` and the probability `Q(t)` that a standard normal deviate exceeds it.
const PASSING: [(f64, f64); 11] = [
    (-1.0, 0.8413),
    (-0.5, 0.6915),
    (0.0, 0.5),
    (0.5, 0.3085),
    (1.0, 0.1587),
    (1.5, 0.0668),
    (2.0, 0.02275),
    (2.5, 0.00621),
    (3.0, 0.00135),
    (3.5, 2.33e-4),
    (4.0, 3.17e-5),
];

/// What risks are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Risk<T> {
    /// Share of healthy fixes that may raise an alarm.
    pub false_alarm: T,
    /// Share of faulty fixes that may exceed the protection level.
    pub missed: T,
    /// No fault is larger than this, metres. Matters only where geometry leaves a range
    /// unchecked.
    pub max_bias_m: T,
}

impl<T: Real> Default for Risk<T> {
    fn default() -> Self {
        Self {
            false_alarm: T::of(1e-3),
            missed: T::of(1e-4),
            max_bias_m: T::of(3.0),
        }
    }
}

/// A fix with a bound on its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Protected<T> {
    /// The fix, without ranges that failed the test ([`Fix::excluded`]).
    pub fix: Fix<T>,
    /// A range failed the test.
    pub alarm: bool,
    /// The horizontal error is below this, metres, but for the risk given.
    pub horizontal_m: T,
    /// The same for the vertical error, metres. Zero when the height is known exactly.
    pub vertical_m: T,
    /// Bit `i`: nothing checks range `i`, the level rests on `max_bias_m`.
    pub unchecked: u32,
}

/// [`crate::locate_3d`] with fault detection, exclusion and a protection level. The test here
/// replaces [`Options::consistency`].
pub fn protect_3d<T: Real>(
    observations: &[RangeObs<T>],
    options: &Options<T>,
    risk: &Risk<T>,
) -> Result<Protected<T>, LocateError> {
    Problem::pose(observations, None, options, |p| protect(p, options, risk))
}

/// [`crate::locate_2d`] with fault detection, exclusion and a protection level.
pub fn protect_2d<T: Real>(
    observations: &[RangeObs<T>],
    height_m: T,
    options: &Options<T>,
    risk: &Risk<T>,
) -> Result<Protected<T>, LocateError> {
    let height = Some(height_m);
    Problem::pose(observations, height, options, |p| protect(p, options, risk))
}

fn protect<T: Real>(
    problem: &Problem<'_, T>,
    options: &Options<T>,
    risk: &Risk<T>,
) -> Result<Protected<T>, LocateError> {
    let all = problem.all();
    let mut mask = all;
    let passing = PASSING.map(|(t, q)| {
        let k = quantile(risk.missed / T::of(2.0 * q));
        (T::of(t), k)
    });
    loop {
        let used = mask.count_ones() as usize;
        let (minimum, mirror) = problem.solve(mask, options)?;
        let covariance = problem.covariance(&minimum.info);
        let covariance = covariance.ok_or(LocateError::NotConverged)?;
        let k_fa = quantile(risk.false_alarm / count(2 * used.max(1)));
        let k_md = quantile(risk.missed / T::of(2.0));
        let sigma = longest(&covariance);
        let sigma_z = covariance.zz.max(T::zero()).sqrt();
        let (clean, vertical_clean) = (k_md * sigma, k_md * sigma_z);
        let (mut horizontal, mut vertical) = (clean, vertical_clean);
        let mut unchecked = 0;
        let mut worst = (T::zero(), 0);
        for (i, term) in problem.numbered(mask) {
            let u = term.direction(minimum.x);
            let v = covariance.mul(&u);
            let w = term.weight;
            let redundancy = T::one() - w * u.dot(&v);
            let floor = |along: T, clean: T| w * along * risk.max_bias_m + clean;
            let across = (v.x * v.x + v.y * v.y).sqrt();
            let (mut h, mut z) = (floor(across, clean), floor(v.z.abs(), vertical_clean));
            if redundancy > T::of(BLIND) {
                let gain = (w / redundancy).sqrt();
                let test = term.residual(minimum.x).abs() * gain;
                if test > worst.0 {
                    worst = (test, i);
                }
                let level = |along: T, sigma: T| {
                    let mut level = T::zero();
                    for (t, k) in &passing {
                        level = level.max((k_fa + *t) * gain * along + *k * sigma);
                    }
                    level
                };
                h = h.min(level(across, sigma));
                z = z.min(level(v.z.abs(), sigma_z));
            } else {
                unchecked |= 1 << i;
            }
            horizontal = horizontal.max(h);
            vertical = vertical.max(z);
        }
        let spare = used.saturating_sub(problem.dimensions());
        if worst.0 > k_fa {
            // With one spare range all tests are one and the same: a fault, but whose?
            if spare < 2 {
                return Err(LocateError::Inconsistent {
                    chi2: minimum.chi2.as_f32(),
                    dof: spare as u8,
                });
            }
            mask &= !(1 << worst.1);
            continue;
        }
        return Ok(Protected {
            fix: problem.fix(mask, &minimum, mirror)?,
            alarm: mask != all,
            horizontal_m: horizontal,
            vertical_m: vertical,
            unchecked,
        });
    }
}

/// Standard deviation in the horizontal direction where it is largest.
fn longest<T: Real>(covariance: &Sym3<T>) -> T {
    let half = (covariance.xx + covariance.yy) / T::of(2.0);
    let turn = (covariance.xx - covariance.yy) / T::of(2.0);
    let swing = (turn * turn + covariance.xy * covariance.xy).sqrt();
    (half + swing).max(T::zero()).sqrt()
}

/// The value that a standard normal deviate exceeds with probability `p`, for `p` up to 1/2.
/// Abramowitz and Stegun 26.2.23, error below 5e-4.
fn quantile<T: Real>(p: T) -> T {
    let p = p.max(T::of(1e-12)).min(T::of(0.5));
    let t = (T::of(-2.0) * p.ln()).sqrt();
    let above = T::of(2.515_517) + t * (T::of(0.802_853) + t * T::of(0.010_328));
    let below = T::one() + t * (T::of(1.432_788) + t * (T::of(0.189_269) + t * T::of(0.001_308)));
    t - above / below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{World, distance};
    use std::vec::Vec;

    const SIGMA: f64 = 0.05;

    fn lamps() -> Vec<[f64; 3]> {
        (0..8)
            .map(|i| {
                [
                    1.0 + 2.0 * f64::from(i % 4),
                    1.5 + 3.0 * f64::from(i / 4),
                    3.0,
                ]
            })
            .collect()
    }

    /// One fix with `bias` on a random range, at a known height.
    fn one(world: &mut World, bias: f64) -> ([f64; 3], Result<Protected<f64>, LocateError>) {
        let tag = world.point([0.5, 0.5, 1.0], [7.5, 5.5, 1.000_1]);
        let mut ranges = world.ranges(tag, &lamps(), SIGMA);
        ranges[world.uniform(0.0, 8.0) as usize].range_m += bias;
        (
            tag,
            protect_2d(&ranges, tag[2], &Options::default(), &Risk::default()),
        )
    }

    #[test]
    fn healthy_ranges_seldom_alarm() {
        let mut world = World::new(1);
        let alarms = (0..20_000)
            .filter(|_| one(&mut world, 0.0).1.is_ok_and(|p| p.alarm))
            .count();
        assert!((2..40).contains(&alarms), "{alarms} of 20000");
    }

    #[test]
    fn the_error_stays_below_the_level_whatever_the_fault() {
        let mut world = World::new(2);
        for step in 0..20_000 {
            let bias = f64::from(step % 20) * 0.1;
            let (tag, found) = one(&mut world, bias);
            let found = found.expect("eight lamps are enough");
            let error = distance(found.fix.position_m, tag);
            assert!(error <= found.horizontal_m, "{bias} {error} {found:?}");
        }
    }

    #[test]
    fn a_bias_of_eight_sigmas_is_detected_and_excluded() {
        let mut world = World::new(3);
        let found = (0..5_000)
            .filter(|_| one(&mut world, 0.4).1.is_ok_and(|p| p.alarm))
            .count();
        assert!(found > 4_900, "{found} of 5000");
    }

    #[test]
    fn without_spare_ranges_the_level_rests_on_the_largest_bias() {
        let mut world = World::new(4);
        let three = [[1.0, 1.0, 3.0], [7.0, 1.0, 3.0], [4.0, 5.0, 3.0]];
        let ranges = world.ranges([4.0, 2.0, 1.0], &three, SIGMA);
        let (options, risk) = (Options::default(), Risk::default());
        let flat = protect_2d(&ranges, 1.0, &options, &risk).expect("one spare range");
        assert_eq!(flat.unchecked, 0);
        let full = protect_3d(&ranges, &options, &risk).expect("no spare range");
        assert_eq!(full.unchecked, 0b111);
        assert!(full.horizontal_m > 1.0, "{full:?}");
        let careful = Risk {
            max_bias_m: 6.0,
            ..risk
        };
        let wider = protect_3d(&ranges, &options, &careful).expect("no spare range");
        assert!(wider.horizontal_m > 1.5 * full.horizontal_m);
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (p, table) in [(0.5f64, 0.0), (0.1, 1.2816), (1e-3, 3.0902), (1e-7, 5.1993)] {
            assert!((quantile(p) - table).abs() < 1e-3, "{p}: {}", quantile(p));
        }
    }
}
