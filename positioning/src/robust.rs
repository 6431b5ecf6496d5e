//! Lateration when some ranges lie: reflections, blocked light, a wrong identity.
//!
//! Each range is either honest (normal, its own sigma) or faulty (uniform over a span, mostly too
//! long). The most likely division into both minimises
//!
//! ```text
//! J(S) = chi2(S) + sum over ranges left out of their penalty
//! penalty = -2 ln( p / (1 - p) * sigma * sqrt(2 pi) / span )      p: share of faulty ranges
//! ```
//!
//! Up to [`EXHAUSTIVE`] ranges every division is tried, fewest exclusions first, until no larger
//! one can win: `J` grows by at least one penalty per exclusion. Beyond, graduated non-convexity
//! for truncated least squares finds a division (H. Yang, P. Antonante, V. Tzoumas, L. Carlone,
//! IEEE Robotics and Automation Letters 5 (2020) 1127), which single changes then improve.

use crate::locate::{
    Fix, LocateError, MAX_OBSERVATIONS, Minimum, Options, Problem, RangeObs, Term,
};
use crate::math::{Real, chi2_limit};
use nalgebra::Vector3;

/// Up to so many ranges all divisions into honest and faulty are searched.
pub const EXHAUSTIVE: usize = 10;
/// Rounds of graduated non-convexity: the control parameter grows by 1.4 each.
const MAX_ROUNDS: usize = 60;

/// What is believed about faulty ranges before seeing any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaultModel<T> {
    /// Share of ranges that are faulty, between 0 and 1 (exclusive).
    pub share: T,
    /// Faulty ranges spread over so many metres.
    pub span_m: T,
    /// How many times likelier a fault is to lengthen a range than to shorten it.
    pub longer: T,
}

impl<T: Real> Default for FaultModel<T> {
    fn default() -> Self {
        Self {
            share: T::of(0.1),
            span_m: T::of(3.0),
            longer: T::of(10.0),
        }
    }
}

/// [`crate::locate_3d`] without the faulty ranges, which [`Fix::excluded`] names.
pub fn locate_robust_3d<T: Real>(
    observations: &[RangeObs<T>],
    options: &Options<T>,
    faults: &FaultModel<T>,
) -> Result<Fix<T>, LocateError> {
    Problem::pose(observations, None, options, |problem| {
        Search::new(problem, observations, options, faults).run()
    })
}

/// [`crate::locate_2d`] without the faulty ranges, which [`Fix::excluded`] names.
pub fn locate_robust_2d<T: Real>(
    observations: &[RangeObs<T>],
    height_m: T,
    options: &Options<T>,
    faults: &FaultModel<T>,
) -> Result<Fix<T>, LocateError> {
    Problem::pose(observations, Some(height_m), options, |problem| {
        Search::new(problem, observations, options, faults).run()
    })
}

/// A division and its merit.
#[derive(Clone, Copy)]
struct Division<T> {
    mask: u32,
    minimum: Minimum<T>,
    merit: T,
}

struct Search<'a, T> {
    problem: &'a Problem<'a, T>,
    options: &'a Options<T>,
    /// What leaving out costs when the range is too long.
    penalty: [T; MAX_OBSERVATIONS],
    /// What it costs more when it is too short.
    shorter: T,
    least: T,
}

impl<'a, T: Real> Search<'a, T> {
    fn new(
        problem: &'a Problem<'a, T>,
        observations: &[RangeObs<T>],
        options: &'a Options<T>,
        faults: &FaultModel<T>,
    ) -> Self {
        let two = T::of(2.0);
        let share = faults.share.max(T::of(1e-6)).min(T::of(0.5));
        let odds = share / (T::one() - share);
        let density = odds * T::of(2.506_628_3) / faults.span_m.max(T::of(1e-3));
        let mut penalty = [T::zero(); MAX_OBSERVATIONS];
        let mut least = T::infinity();
        for (p, o) in penalty.iter_mut().zip(observations) {
            // Never below the square of two sigmas: beyond that a vague range is no fault.
            *p = (-two * (density * o.sigma_m).ln()).max(T::of(4.0));
            least = least.min(*p);
        }
        Self {
            problem,
            options,
            penalty,
            shorter: two * faults.longer.max(T::one()).ln(),
            least,
        }
    }

    fn run(&self) -> Result<Fix<T>, LocateError> {
        let all = self.problem.all();
        let full = |minimum: Minimum<T>| Division {
            mask: all,
            minimum,
            merit: minimum.chi2,
        };
        let (one, two) = self.problem.roots(all, true)?;
        let (one, two) = (full(one), two.map(full));
        let mut best = match two {
            Some(two) if two.merit < one.merit => two,
            _ => one,
        };
        if best.merit > self.least {
            if all.count_ones() as usize <= EXHAUSTIVE {
                best = self.exhaust(best);
            } else {
                // From both sides of thin anchors, unless both are alike.
                let alike = |two: &Division<T>| {
                    (two.merit - one.merit).abs() <= T::of(0.01) * one.merit + T::one()
                };
                for side in [Some(one), two.filter(|two| !alike(two))] {
                    let found = side.map(|side| self.improve(self.graduate(side)));
                    if let Some(found) = found.filter(|f| f.merit < best.merit) {
                        best = found;
                    }
                }
            }
        }
        // The division stands; solve it globally, as the start came from faulty ranges too.
        let (minimum, mirror) = self.problem.solve(best.mask, self.options)?;
        let dof = (best.mask.count_ones() as usize).saturating_sub(self.problem.dimensions());
        // Picked as the best of many, what is left must agree better than by chance.
        let consistency = if best.mask == all {
            self.options.consistency
        } else {
            self.options.consistency.min(T::of(3.5))
        };
        if minimum.chi2 > chi2_limit(dof, consistency) {
            return Err(LocateError::Inconsistent {
                chi2: minimum.chi2.as_f32(),
                dof: dof as u8,
            });
        }
        self.problem.fix(best.mask, &minimum, mirror)
    }

    /// Whether a division that keeps `used` ranges confirms anything: one more than unknowns
    /// must agree, two more once several are left out.
    fn confirms(&self, used: usize) -> bool {
        let all = self.problem.all().count_ones() as usize;
        let spare = used.saturating_sub(self.problem.dimensions());
        spare >= all.saturating_sub(used).min(2)
    }

    /// The division `mask`, refined from `near`, if it can beat `limit`.
    fn divide(&self, mask: u32, near: Vector3<T>, limit: T) -> Option<Division<T>> {
        let mut cost = T::zero();
        for (i, p) in self.penalty.iter().enumerate() {
            if self.problem.all() & !mask & (1 << i) != 0 {
                cost += *p;
            }
        }
        let budget = limit - cost;
        if budget <= T::zero() {
            return None;
        }
        let minimum = self.problem.refine_within(mask, near, budget)?;
        let left_out = self.problem.terms(self.problem.all() & !mask);
        for term in left_out {
            if term.residual(minimum.x) < T::zero() {
                cost += self.shorter;
            }
        }
        Some(Division {
            mask,
            minimum,
            merit: minimum.chi2 + cost,
        })
    }

    /// The best of all divisions, each solved from its own global start: from the best of the size
    /// before, still drawn by a reflection, some would not find their minimum.
    fn exhaust(&self, mut best: Division<T>) -> Division<T> {
        let all = best.mask;
        let count = all.count_ones() as usize;
        let mut bound = self.least;
        for left_out in 1..count {
            if best.merit <= bound || !self.confirms(count - left_out) {
                break;
            }
            bound += self.least;
            let mut faulty: u32 = (1 << left_out) - 1;
            while faulty & !all == 0 {
                let mask = all & !faulty;
                for start in self.problem.starts(mask).into_iter().flatten() {
                    if let Some(d) = self.divide(mask, start, best.merit)
                        && d.merit < best.merit
                    {
                        best = d;
                    }
                }
                faulty = next_of_same_size(faulty);
            }
        }
        best
    }

    fn graduate(&self, full: Division<T>) -> Division<T> {
        let one = T::one();
        let mut terms = [Term::NONE; MAX_OBSERVATIONS];
        let count = full.mask.count_ones() as usize;
        let mut x = full.minimum.x;
        let mut mu = T::zero();
        let mut mask = full.mask;
        for round in 0..MAX_ROUNDS {
            if round == 0 {
                let mut worst = one;
                for (term, p) in self.problem.terms(full.mask).zip(&self.penalty) {
                    worst = worst.max(term.chi2(x) / *p);
                }
                mu = one / (T::of(2.0) * worst - one);
            }
            mask = 0;
            let mut settled = true;
            for (i, (term, p)) in self.problem.terms(full.mask).zip(&self.penalty).enumerate() {
                let r2 = term.chi2(x) / *p;
                let weight = if r2 >= (mu + one) / mu {
                    T::zero()
                } else if r2 <= mu / (mu + one) {
                    one
                } else {
                    (mu * (mu + one) / r2).sqrt() - mu
                };
                settled &= weight <= T::of(1e-3) || weight >= T::of(0.999);
                if weight > T::of(0.5) {
                    mask |= 1 << i;
                }
                if let Some(t) = terms.get_mut(i) {
                    *t = *term;
                    t.weight *= weight.max(T::of(1e-6));
                }
            }
            if settled && round > 0 {
                break;
            }
            let problem = self.problem.with_terms(terms.get(..count).unwrap_or(&[]));
            match problem.refine(full.mask, x) {
                Some(minimum) => x = minimum.x,
                None => break,
            }
            mu *= T::of(1.4);
        }
        if !self.confirms(mask.count_ones() as usize) {
            return full; // nothing agrees
        }
        match self.divide(mask, x, T::infinity()) {
            Some(found) if found.merit < full.merit => found,
            _ => full,
        }
    }

    /// Takes in or leaves out single ranges as long as that helps.
    fn improve(&self, mut best: Division<T>) -> Division<T> {
        let all = self.problem.all();
        for _ in 0..MAX_OBSERVATIONS {
            let mut better: Option<Division<T>> = None;
            for i in 0..MAX_OBSERVATIONS {
                let mask = best.mask ^ (1 << i);
                if mask & !all != 0 || !self.confirms(mask.count_ones() as usize) {
                    continue;
                }
                let limit = better.map_or(best.merit, |b| b.merit);
                if let Some(d) = self.divide(mask, best.minimum.x, limit)
                    && d.merit < limit
                {
                    better = Some(d);
                }
            }
            match better {
                Some(d) => best = d,
                None => break,
            }
        }
        best
    }
}

/// The next larger number with as many bits set (R. W. Gosper, HAKMEM item 175); zero, which
/// ends the search as all of it, never comes before `u32` overflows.
fn next_of_same_size(mask: u32) -> u32 {
    let lowest = mask & mask.wrapping_neg();
    let ripple = mask.wrapping_add(lowest);
    if lowest == 0 || ripple == 0 {
        return u32::MAX;
    }
    ripple | ((mask ^ ripple) >> (2 + lowest.trailing_zeros()).min(31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{World, distance};
    use std::vec::Vec;

    const SIGMA: f64 = 0.05;

    /// Eight anchors in the corners of a 10 x 8 x 3 m room, heights uneven.
    const CORNERS: [[f64; 3]; 8] = [
        [0.0, 0.0, 2.9],
        [10.0, 0.0, 2.6],
        [10.0, 8.0, 2.8],
        [0.0, 8.0, 2.7],
        [0.0, 0.0, 0.3],
        [10.0, 0.0, 0.5],
        [10.0, 8.0, 0.2],
        [0.0, 8.0, 0.4],
    ];

    fn some_of(world: &mut World, n: usize, of: usize) -> u32 {
        let mut mask: u32 = 0;
        while (mask.count_ones() as usize) < n {
            mask |= 1 << (world.uniform(0.0, of as f64) as usize);
        }
        mask
    }

    /// Shares of right fault sets and of errors above half a metre.
    fn trial(anchors: &[[f64; 3]], faults: usize, n: usize, known: bool) -> (f64, f64) {
        let mut world = World::new(faults as u64);
        let (mut right, mut far) = (0, 0);
        for _ in 0..n {
            let tag = world.point([1.0, 1.0, 0.5], [9.0, 7.0, 2.2]);
            let mut ranges = world.ranges(tag, anchors, SIGMA);
            let faulty = some_of(&mut world, faults, anchors.len());
            for (i, r) in ranges.iter_mut().enumerate() {
                if faulty >> i & 1 == 1 {
                    r.range_m += world.uniform(0.5, 3.0);
                }
            }
            let (options, model) = (Options::default(), FaultModel::default());
            let found = if known {
                locate_robust_2d(&ranges, tag[2], &options, &model)
            } else {
                locate_robust_3d(&ranges, &options, &model)
            };
            match found {
                Ok(fix) => {
                    right += usize::from(fix.excluded == faulty);
                    far += usize::from(distance(fix.position_m, tag) > 0.5);
                }
                Err(_) => far += 1,
            }
        }
        (right as f64 / n as f64, far as f64 / n as f64)
    }

    #[test]
    fn reflections_among_eight_anchors_are_found_and_left_out() {
        for (faults, least_right, most_far) in [
            (0, 0.98, 0.0),
            (1, 0.98, 0.002),
            (2, 0.95, 0.01),
            (3, 0.93, 0.07),
        ] {
            let (right, far) = trial(&CORNERS, faults, 1_000, false);
            assert!(
                right >= least_right && far <= most_far,
                "{faults}: {right} {far}"
            );
        }
    }

    #[test]
    fn at_a_known_height_half_of_eight_may_be_reflections() {
        for (faults, least_right) in [(1, 0.98), (2, 0.97), (3, 0.95)] {
            let (right, far) = trial(&CORNERS, faults, 1_000, true);
            assert!(
                right >= least_right && far <= 0.01,
                "{faults}: {right} {far}"
            );
        }
    }

    #[test]
    fn among_many_anchors_reflections_are_found_too() {
        let many: Vec<_> = (0..16)
            .map(|i| {
                [
                    3.0 * f64::from(i % 4),
                    2.5 * f64::from(i / 4),
                    3.0 + 0.2 * f64::from(i % 3),
                ]
            })
            .collect();
        for (faults, least_right) in [(0, 0.97), (2, 0.95), (5, 0.90)] {
            let (right, far) = trial(&many, faults, 300, false);
            assert!(
                right >= least_right && far <= 0.05,
                "{faults}: {right} {far}"
            );
        }
    }

    #[test]
    fn ranges_of_which_no_majority_agrees_are_refused() {
        let mut world = World::new(7);
        let mut refused = 0;
        for _ in 0..200 {
            let mut ranges = world.ranges([4.0, 3.0, 1.0], &CORNERS, SIGMA);
            for r in &mut ranges {
                r.range_m += world.uniform(0.5, 5.0);
            }
            let found = locate_robust_3d(&ranges, &Options::default(), &FaultModel::default());
            refused += usize::from(matches!(found, Err(LocateError::Inconsistent { .. })));
        }
        assert!(refused > 120, "{refused}");
    }

    #[test]
    fn subsets_of_one_size_come_each_once() {
        let mut seen = std::collections::BTreeSet::new();
        let mut mask = 0b111u32;
        while mask < 1 << 10 {
            assert_eq!(mask.count_ones(), 3);
            assert!(seen.insert(mask));
            mask = next_of_same_size(mask);
        }
        assert_eq!(seen.len(), 120);
    }
}
