//! Which anchor is not where, or not who, the map says.
//!
//! Robust fixes go in through [`Diagnosis::handle_fix`]; [`Diagnosis::finding`] tells what they
//! agree on. For each anchor the residuals left when it has no say in the fix are explained by
//! one displacement, least squares over all fixes in memory:
//!
//! ```text
//! residual = -u . displacement + noise        u: direction anchor -> tag
//! evidence = displacement' (covariance + systematic² I)^-1 displacement     chi-square, 3
//! ```
//!
//! Two anchors that bear each other's name are left out of fixes again and again, and their
//! ranges fit once exchanged. Where two pairs do so, whole fixes with one and with the other exchanged
//! are compared until one of them is clearly the worse.

use crate::locate::{Fix, MAX_OBSERVATIONS, Options, Problem, RangeObs, Side};
use crate::math::{Real, Sym3, chi2_limit};
use nalgebra::Vector3;

/// One of two pairs is named when the other is worse by so much in chi-square: wrong once in 10⁴.
const MARGIN: f64 = 20.0;
/// Chi-square of a fix that makes no sense.
const FAILED: f64 = 40.0;

/// What counts as evidence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiagnosisConfig<T> {
    /// Older fixes fade with this many fixes.
    pub memory: T,
    /// Errors of the map and of ranges that do not average out, metres.
    pub systematic_m: T,
    /// Evidence must be as rare as a normal deviate beyond so many sigmas.
    pub surely: T,
}

impl<T: Real> Default for DiagnosisConfig<T> {
    fn default() -> Self {
        Self {
            memory: T::of(400.0),
            systematic_m: T::of(0.003),
            surely: T::of(3.7),
        }
    }
}

/// What is wrong with the map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finding<T> {
    /// Fixes agree with the map, or have not yet said otherwise.
    Nothing,
    /// Something is wrong, with one of these two anchors first of all; gather more fixes.
    Suspect {
        /// Most likely.
        first: u16,
        /// Next.
        second: u16,
    },
    /// This anchor is elsewhere: survey it again or correct the map.
    Moved {
        /// Which.
        id: u16,
        /// By how much, room frame, metres.
        by_m: [T; 3],
    },
    /// These two anchors bear each other's identity.
    Swapped {
        /// One.
        a: u16,
        /// The other.
        b: u16,
    },
}

/// Evidence about up to `N` anchors.
#[derive(Clone, Debug)]
pub struct Diagnosis<T, const N: usize> {
    config: DiagnosisConfig<T>,
    anchors: [Option<Evidence<T>>; N],
    /// Of a pair of slots: in the row of the lower how often its ranges were left out and fit once
    /// exchanged, in that of the higher how much worse the whole fix then was than with the other
    /// candidate exchanged, as chi-square.
    swaps: [[T; N]; N],
    fixes: T,
}

#[derive(Clone, Copy, Debug)]
struct Evidence<T> {
    id: u16,
    info: Sym3<T>,
    pull: Vector3<T>,
    /// Fixes that had a range to this anchor, and those that left it out.
    seen: T,
    excluded: T,
}

/// A pair of slots that may bear each other's name.
#[derive(Clone, Copy, Debug)]
struct Pair<T> {
    places: Option<(usize, usize)>,
    times: T,
    regret: T,
}

/// Evidence as chi-square, whose, and the displacement that explains it.
type Ranked<'a, T> = (T, &'a Evidence<T>, Vector3<T>);

impl<T: Real, const N: usize> Diagnosis<T, N> {
    /// Knows of no anchor yet.
    pub fn new(config: DiagnosisConfig<T>) -> Self {
        Self {
            config,
            anchors: [None; N],
            swaps: [[T::zero(); N]; N],
            fixes: T::zero(),
        }
    }

    /// A fix made by [`crate::locate_robust_3d`] or [`crate::locate_robust_2d`] of these
    /// observations, with the identity of each.
    pub fn handle_fix(&mut self, ids: &[u16], observations: &[RangeObs<T>], fix: &Fix<T>) {
        let keep = T::one() - T::one() / self.config.memory.max(T::of(10.0));
        self.fixes = self.fixes * keep + T::one();
        for e in self.anchors.iter_mut().flatten() {
            e.info = e.info.scaled_plus(keep, T::zero());
            e.pull *= keep;
            e.seen *= keep;
            e.excluded *= keep;
        }
        for pair in self.swaps.iter_mut().flatten() {
            *pair *= keep;
        }
        let x = Vector3::from(fix.position_m);
        let covariance = Sym3::of_rows(&fix.covariance_m2);
        for (i, (id, o)) in ids.iter().zip(observations).enumerate() {
            let Some(place) = self.place(*id) else {
                continue;
            };
            let excluded = fix.excluded >> i.min(31) & 1 == 1;
            let d = x - Vector3::from(o.anchor_m);
            let distance = d.norm().max(T::of(1e-6));
            let u = d / distance;
            let (variance, shared) = (o.sigma_m * o.sigma_m, covariance.quadratic(&u));
            // What the range would be off if it had no say: residual over redundancy.
            let (residual, variance) = if excluded {
                (o.range_m - distance, variance + shared)
            } else {
                let redundancy = (T::one() - shared / variance).max(T::of(0.05));
                ((o.range_m - distance) / redundancy, variance / redundancy)
            };
            // One reflection must not outweigh many honest ranges.
            let far = residual.abs() / (T::of(3.0) * variance.sqrt());
            let weight = T::one() / (variance * far.max(T::one()));
            if let Some(Some(e)) = self.anchors.get_mut(place) {
                e.info.add_outer(weight, &u);
                e.pull -= u * (weight * residual);
                e.seen += T::one();
                if excluded {
                    e.excluded += T::one();
                }
            }
            if !excluded {
                continue;
            }
            for (j, (other_id, other)) in ids.iter().zip(observations).enumerate().skip(i + 1) {
                let fits = |range: &RangeObs<T>, place: &RangeObs<T>| {
                    let d = x - Vector3::from(place.anchor_m);
                    let distance = d.norm().max(T::of(1e-6));
                    let u = d / distance;
                    let off = range.range_m - distance;
                    let variance = range.sigma_m * range.sigma_m + covariance.quadratic(&u);
                    off * off < T::of(12.0) * variance
                };
                let out = fix.excluded >> j.min(31) & 1 == 1;
                if out
                    && fits(o, other)
                    && fits(other, o)
                    && let Some(other) = self.place(*other_id)
                {
                    let (low, high) = (place.min(other), place.max(other));
                    if let Some(pair) = self.swaps.get_mut(low).and_then(|r| r.get_mut(high)) {
                        *pair += T::one();
                    }
                }
            }
        }
        // Both candidates are tried on the whole fix; the worse of them regrets the difference.
        let [first, second] = self.pairs().map(|pair| {
            let places = pair.places.filter(|_| pair.times > T::of(2.0))?;
            let of = |place: usize| {
                let id = self.at(place)?.id;
                ids.iter().position(|i| *i == id)
            };
            Some((places, of(places.0)?, of(places.1)?))
        });
        let (Some((one, a, b)), Some((two, c, d))) = (first, second) else {
            return;
        };
        // What else the fix left out stays out.
        let doubted = [a, b, c, d]
            .iter()
            .fold(0u32, |mask, at| mask | 1 << at.min(&31));
        let out = fix.excluded & !doubted;
        let cost = misfit_exchanged(observations, fix, out, a, b);
        let other = misfit_exchanged(observations, fix, out, c, d);
        let (worse, more) = if cost > other {
            (one, cost - other)
        } else {
            (two, other - cost)
        };
        if let Some(regret) = self.swaps.get_mut(worse.1).and_then(|r| r.get_mut(worse.0)) {
            *regret += more;
        }
    }

    /// The two pairs most often left out and right once exchanged.
    fn pairs(&self) -> [Pair<T>; 2] {
        let none = Pair {
            places: None,
            times: T::zero(),
            regret: T::zero(),
        };
        let mut pairs = [none; 2];
        for (low, row) in self.swaps.iter().enumerate() {
            for (high, times) in row.iter().enumerate().skip(low + 1) {
                let [first, second] = &mut pairs;
                if *times <= second.times {
                    continue;
                }
                if *times > first.times {
                    *second = *first;
                }
                let slot = if *times > first.times { first } else { second };
                let regret = self.swaps.get(high).and_then(|r| r.get(low));
                *slot = Pair {
                    places: Some((low, high)),
                    times: *times,
                    regret: regret.copied().unwrap_or(T::zero()),
                };
            }
        }
        pairs
    }

    /// What the fixes so far agree on.
    pub fn finding(&self) -> Finding<T> {
        // A pair that keeps being left out and keeps fitting exchanged. In a symmetric hall another
        // pair may do so as well, as the room's mirror image is nearly the room: the name waits until
        // the whole fixes tell.
        let [one, two] = self.pairs();
        let (pair, rival) = if one.regret <= two.regret {
            (one, two)
        } else {
            (two, one)
        };
        let often = (self.fixes * T::of(0.2)).max(T::of(20.0));
        let alone = rival.times < pair.times * T::of(0.25);
        if let Some((i, j)) = pair.places
            && pair.times > often
            && (alone || rival.regret - pair.regret > T::of(MARGIN))
            && let (Some(a), Some(b)) = (self.at(i), self.at(j))
            && pair.times > a.excluded.max(b.excluded) * T::of(0.7)
        {
            return Finding::Swapped { a: a.id, b: b.id };
        }
        let mut ranking: [Option<Ranked<'_, T>>; 2] = [None; 2];
        for e in self.anchors.iter().flatten() {
            let Some((evidence, by)) = self.displacement(e) else {
                continue;
            };
            let [first, second] = &mut ranking;
            if first.is_none_or(|(most, ..)| evidence > most) {
                *second = *first;
                *first = Some((evidence, e, by));
            } else if second.is_none_or(|(most, ..)| evidence > most) {
                *second = Some((evidence, e, by));
            }
        }
        let [Some((most, first, by)), Some((next, second, _))] = ranking else {
            return Finding::Nothing;
        };
        let limit = chi2_limit(3, self.config.surely);
        let left_out = first.excluded > T::of(0.5) * first.seen && first.seen > T::of(15.0);
        if most <= limit && !left_out {
            return Finding::Nothing;
        }
        // The displaced anchor drags the fixes and so accuses others, but less than itself. One that
        // is left out may rather bear another's name, which takes longer to see.
        let early = first.seen < T::of(10.0);
        let misnamed = one.times > first.excluded.max(T::of(10.0)) * T::of(0.2);
        if most > next * T::of(1.5) + T::of(8.0) && !early && !misnamed {
            return Finding::Moved {
                id: first.id,
                by_m: by.into(),
            };
        }
        Finding::Suspect {
            first: first.id,
            second: second.id,
        }
    }

    fn displacement(&self, e: &Evidence<T>) -> Option<(T, Vector3<T>)> {
        // Nothing moves further than a few metres: keeps unseen directions finite.
        let covariance = e.info.scaled_plus(T::one(), T::of(0.1)).factor()?.inverse();
        let by = covariance.mul(&e.pull);
        let systematic = self.config.systematic_m * self.config.systematic_m;
        let unsure = covariance.scaled_plus(T::one(), systematic).factor()?;
        Some((by.dot(&unsure.solve(&by)), by))
    }

    fn at(&self, place: usize) -> Option<&Evidence<T>> {
        self.anchors.get(place)?.as_ref()
    }

    /// The place of an anchor; a new one takes a free place.
    fn place(&mut self, id: u16) -> Option<usize> {
        let known = |a: &Option<Evidence<T>>| a.as_ref().is_some_and(|e| e.id == id);
        if let Some(place) = self.anchors.iter().position(known) {
            return Some(place);
        }
        let place = self.anchors.iter().position(Option::is_none)?;
        *self.anchors.get_mut(place)? = Some(Evidence {
            id,
            info: Sym3::zero(),
            pull: Vector3::zeros(),
            seen: T::zero(),
            excluded: T::zero(),
        });
        Some(place)
    }
}

/// Chi-square of all ranges but those `out` once `i` and `j` are exchanged, at most [`FAILED`].
fn misfit_exchanged<T: Real>(
    observations: &[RangeObs<T>],
    fix: &Fix<T>,
    out: u32,
    i: usize,
    j: usize,
) -> T {
    let failed = T::of(FAILED);
    let mut room = [RangeObs::<T>::NONE; MAX_OBSERVATIONS];
    let Some(room) = room.get_mut(..observations.len()) else {
        return failed;
    };
    room.copy_from_slice(observations);
    for (one, other) in [(i, j), (j, i)] {
        if let (Some(o), Some(is)) = (room.get_mut(one), observations.get(other)) {
            o.anchor_m = is.anchor_m;
        }
    }
    let [.., [_, _, vertical]] = fix.covariance_m2;
    let [.., z] = fix.position_m;
    let height = (vertical <= T::zero()).then_some(z);
    let options = Options {
        side: Side::BestFit,
        ..Options::default()
    };
    let chi2 = Problem::pose(room, height, &options, |problem| {
        Ok(problem.solve(problem.all() & !out, &options)?.0.chi2)
    });
    chi2.map_or(failed, |chi2| chi2.min(failed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::robust::{FaultModel, locate_robust_3d};
    use crate::sample::World;
    use crate::{LocateError, Options};

    const SIGMA: f64 = 0.05;
    const CORNERS: [[f64; 3]; 8] = [
        [0.0, 0.0, 4.0],
        [8.0, 0.0, 3.7],
        [8.0, 8.0, 3.9],
        [0.0, 8.0, 3.6],
        [0.0, 0.0, 0.0],
        [8.0, 0.0, 0.3],
        [8.0, 8.0, 0.1],
        [0.0, 8.0, 0.4],
    ];
    const IDS: [u16; 8] = [10, 11, 12, 13, 14, 15, 16, 17];

    /// A tag wanders; `truth` are the anchors as they are, the map says [`CORNERS`]. Fixes until
    /// something was found and until it was isolated, of `fixes`.
    fn run(
        seed: u64,
        truth: &[[f64; 3]; 8],
        fixes: usize,
        right: impl Fn(&Finding<f64>) -> bool,
    ) -> (Option<usize>, Option<usize>) {
        let mut world = World::new(seed);
        let mut diagnosis = Diagnosis::<f64, 8>::new(DiagnosisConfig::default());
        let (mut found, mut isolated) = (None, None);
        for n in 1..=fixes {
            let t = n as f64 * 0.2 + seed as f64;
            let tag = [
                4.0 + 3.0 * t.sin(),
                4.0 + 3.0 * (0.7 * t).cos(),
                1.5 + (0.4 * t).sin(),
            ];
            let mut ranges = world.ranges(tag, truth, SIGMA);
            for (range, said) in ranges.iter_mut().zip(CORNERS) {
                range.anchor_m = said;
            }
            let fix: Result<_, LocateError> =
                locate_robust_3d(&ranges, &Options::default(), &FaultModel::default());
            if let Ok(fix) = fix {
                diagnosis.handle_fix(&IDS, &ranges, &fix);
            }
            match diagnosis.finding() {
                Finding::Nothing => {}
                finding => {
                    found = found.or(Some(n));
                    if right(&finding) {
                        isolated = isolated.or(Some(n));
                    }
                }
            }
        }
        (found, isolated)
    }

    #[test]
    fn a_right_map_is_not_accused() {
        let accused = (0..40)
            .filter(|seed| run(*seed, &CORNERS, 400, |_| false).0.is_some())
            .count();
        assert!(accused <= 1, "{accused} of 40");
    }

    #[test]
    fn a_pair_that_bears_each_others_name_is_named() {
        let (mut found, mut isolated) = (0, 0);
        let runs = 40;
        for seed in 0..runs {
            let (a, b) = ((seed % 8) as usize, ((seed / 8 + seed + 1) % 8) as usize);
            let b = if a == b { (b + 1) % 8 } else { b };
            let mut truth = CORNERS;
            truth.swap(a, b);
            let pair = [10 + a as u16, 10 + b as u16];
            let (at, named) = run(
                seed,
                &truth,
                200,
                |f| matches!(f, Finding::Swapped { a, b } if pair.contains(a) && pair.contains(b)),
            );
            found += u32::from(at.is_some_and(|n| n <= 50));
            isolated += u32::from(named.is_some());
        }
        assert_eq!(found, runs as u32, "found within 50 fixes");
        assert!(isolated >= 38, "{isolated} of {runs} isolated");
    }

    /// With the top pair of a diagonal exchanged this hall is nearly the mirror image of itself with the
    /// bottom pair exchanged: only ten centimetres of height tell them apart.
    #[test]
    fn no_other_name_stands_before_the_right_pair() {
        let (mut wrong, mut named) = (0, 0);
        let pairs = [(0, 2), (4, 6), (1, 3), (5, 7), (0, 5), (2, 7)];
        for seed in 0..36 {
            let (a, b) = pairs[seed as usize % pairs.len()];
            let mut truth = CORNERS;
            truth.swap(a, b);
            let pair = [10 + a as u16, 10 + b as u16];
            let count = core::cell::Cell::new(0);
            let (_, right) = run(seed, &truth, 200, |f| {
                let right =
                    matches!(f, Finding::Swapped { a, b } if pair.contains(a) && pair.contains(b));
                if !right && !matches!(f, Finding::Suspect { .. }) {
                    count.set(count.get() + 1);
                }
                right
            });
            wrong += count.get();
            named += u32::from(right.is_some());
        }
        assert!(
            named >= 35 && wrong <= 10,
            "{named} of 36, {wrong} of 7200 fixes"
        );
    }

    #[test]
    fn an_anchor_moved_by_a_hand_is_named_and_measured() {
        let (mut found, mut isolated) = (0, 0);
        let runs = 40;
        for seed in 0..runs {
            let moved = (seed % 8) as usize;
            let angle = seed as f64;
            let mut truth = CORNERS;
            truth[moved][0] += 0.1 * angle.cos();
            truth[moved][1] += 0.1 * angle.sin();
            let (at, named) = run(seed, &truth, 200, |f| {
                let Finding::Moved { id, by_m } = f else {
                    return false;
                };
                let off = (by_m[0] - 0.1 * angle.cos()).hypot(by_m[1] - 0.1 * angle.sin());
                usize::from(*id) == 10 + moved && off < 0.08
            });
            found += u32::from(at.is_some_and(|n| n <= 50));
            isolated += u32::from(named.is_some());
        }
        // Ten centimetres are two sigmas of a range; some walks show them late.
        assert!(
            found >= 32 && isolated >= 38,
            "{found} {isolated} of {runs}"
        );
    }
}
