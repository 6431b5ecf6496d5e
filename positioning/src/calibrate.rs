//! What each anchor's ranges are off by, and how noisy they are, from a walk whose truth is known.
//!
//! Samples go in one by one through [`Calibration::handle_sample`]; [`Calibration::anchor`] and
//! [`Calibration::clock_offset`] tell the result at any time. A range is modelled as
//!
//! ```text
//! range - |truth - anchor| = bias + (u . velocity) offset + noise
//! ```
//!
//! where `u` points from anchor to tag and `offset` is by how much the ranges' clock is behind
//! the truth's. Each anchor's median and spread (streaming quantiles: R. Jain, I. Chlamtac,
//! Communications of the ACM 28 (1985) 1076) keep reflections out of the least squares.

use crate::locate::RangeObs;
use crate::map::{Anchor, AnchorMap};
use crate::math::Real;

/// Samples of an anchor before its spread is known well enough to judge by.
const WARM_UP: u32 = 64;
/// Samples further from the median than so many spreads are reflections.
const GATE: f64 = 4.0;
/// Median and the points one sigma below and above.
const SHARES: [f64; 3] = [0.158_655, 0.5, 0.841_345];

/// Collects a walk past up to `N` anchors.
#[derive(Clone, Debug)]
pub struct Calibration<T, const N: usize> {
    anchors: [Option<Sums<T>>; N],
}

/// Result for one anchor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Calibrated<T> {
    /// Measured minus true distance, metres.
    pub bias_m: T,
    /// Standard deviation of a range about its bias, metres, reflections left out.
    pub sigma_m: T,
    /// Standard error of the bias, metres, if samples were independent.
    pub bias_sigma_m: T,
    /// Samples used.
    pub samples: u32,
}

/// Least squares of one anchor.
#[derive(Clone, Copy, Debug)]
struct Sums<T> {
    id: u16,
    quantiles: [Quantile<T>; 3],
    n: u32,
    /// Means, and second moments about them.
    residual: T,
    /// Speed away from the anchor.
    speed: T,
    residual2: T,
    speed2: T,
    cross: T,
}

impl<T: Real, const N: usize> Default for Calibration<T, N> {
    fn default() -> Self {
        Self { anchors: [None; N] }
    }
}

impl<T: Real, const N: usize> Calibration<T, N> {
    /// A range to anchor `id` while the tag truly was at `truth_m` and moved at
    /// `velocity_m_s`. What is not finite or past the `N`th anchor is left out.
    pub fn handle_sample(
        &mut self,
        id: u16,
        range: &RangeObs<T>,
        truth_m: [T; 3],
        velocity_m_s: [T; 3],
    ) {
        let (mut d2, mut along) = (T::zero(), T::zero());
        for ((t, a), v) in truth_m.iter().zip(range.anchor_m).zip(velocity_m_s) {
            d2 += (*t - a) * (*t - a);
            along += (*t - a) * v;
        }
        let distance = d2.sqrt().max(T::of(1e-6));
        let (residual, speed) = (range.range_m - distance, along / distance);
        if !(residual.is_finite() && speed.is_finite()) {
            return;
        }
        let mine = |a: &Option<Sums<T>>| match a {
            Some(s) if s.id == id => 0,
            None => 1,
            Some(_) => 2,
        };
        let Some(place) = self.anchors.iter_mut().min_by_key(|a| mine(a)) else {
            return;
        };
        if mine(place) < 2 {
            place
                .get_or_insert_with(|| Sums::new(id))
                .add(residual, speed);
        }
    }

    /// Bias and noise of an anchor; `None` before enough samples have come.
    pub fn anchor(&self, id: u16) -> Option<Calibrated<T>> {
        let sums = self.anchors.iter().flatten().find(|s| s.id == id)?;
        let n = T::of(f64::from(sums.n));
        let offset = self.clock_offset().unwrap_or(T::zero());
        // What remains of the scatter once the clock has explained its part.
        let rest = sums.residual2 - offset * (T::of(2.0) * sums.cross - offset * sums.speed2);
        let sigma_m = (rest.max(T::zero()) / n.max(T::one())).sqrt();
        (sums.n > 0).then(|| Calibrated {
            bias_m: sums.residual - offset * sums.speed,
            sigma_m,
            bias_sigma_m: sigma_m / n.sqrt(),
            samples: sums.n,
        })
    }

    /// By how many seconds the ranges' clock is behind the truth's: the truth belonging to a
    /// range is that of so much later. `None` if the tag never moved.
    pub fn clock_offset(&self) -> Option<T> {
        let (mut cross, mut speed2) = (T::zero(), T::zero());
        for s in self.anchors.iter().flatten() {
            cross += s.cross;
            speed2 += s.speed2;
        }
        // A millimetre per second of spread over one sample is no movement.
        (speed2 > T::of(1e-6)).then(|| cross / speed2)
    }

    /// Enters what was found into a map; anchors without result keep what they had. Returns how
    /// many were calibrated.
    pub fn apply<const M: usize>(&self, map: &mut AnchorMap<M>) -> usize {
        let mut done = 0;
        for s in self.anchors.iter().flatten() {
            if let (Some(found), Some(anchor)) = (self.anchor(s.id), map.get(s.id)) {
                let calibrated = Anchor {
                    bias_m: found.bias_m.as_f32(),
                    sigma_m: found.sigma_m.as_f32().max(0.001),
                    ..*anchor
                };
                done += usize::from(map.insert(calibrated).is_ok());
            }
        }
        done
    }
}

impl<T: Real> Sums<T> {
    fn new(id: u16) -> Self {
        Self {
            id,
            quantiles: SHARES.map(Quantile::new),
            n: 0,
            residual: T::zero(),
            speed: T::zero(),
            residual2: T::zero(),
            speed2: T::zero(),
            cross: T::zero(),
        }
    }

    fn spread(&self) -> Option<T> {
        let [low, _, high] = &self.quantiles;
        Some((high.value()? - low.value()?) / T::of(2.0))
    }

    fn add(&mut self, residual: T, speed: T) {
        for q in &mut self.quantiles {
            q.add(residual);
        }
        let [_, median, _] = &self.quantiles;
        let (Some(median), Some(spread)) = (median.value(), self.spread()) else {
            return;
        };
        let far = (residual - median).abs() > spread * T::of(GATE);
        if self.quantiles.iter().any(|q| q.n < WARM_UP) || far {
            return;
        }
        // Welford's updates of means and second moments.
        self.n += 1;
        let n = T::of(f64::from(self.n));
        let (dr, ds) = (residual - self.residual, speed - self.speed);
        self.residual += dr / n;
        self.speed += ds / n;
        let rest = speed - self.speed;
        self.residual2 += dr * (residual - self.residual);
        self.speed2 += ds * rest;
        self.cross += dr * rest;
    }
}

/// One quantile of a stream in five markers (P² algorithm).
#[derive(Clone, Copy, Debug)]
struct Quantile<T> {
    share: T,
    n: u32,
    heights: [T; 5],
    places: [T; 5],
}

impl<T: Real> Quantile<T> {
    fn new(share: f64) -> Self {
        Self {
            share: T::of(share),
            n: 0,
            heights: [T::zero(); 5],
            places: [0.0, 1.0, 2.0, 3.0, 4.0].map(T::of),
        }
    }

    fn value(&self) -> Option<T> {
        let [_, _, middle, _, _] = self.heights;
        (self.n >= 5).then_some(middle)
    }

    fn add(&mut self, x: T) {
        let n = self.n as usize;
        self.n = self.n.saturating_add(1);
        if let Some(place) = self.heights.get_mut(n) {
            *place = x;
            if n == 4 {
                sort(&mut self.heights);
            }
            return;
        }
        let [h0, .., h4] = &mut self.heights;
        *h0 = h0.min(x);
        *h4 = h4.max(x);
        for (height, place) in self.heights.iter().zip(&mut self.places).skip(1) {
            if x < *height {
                *place += T::one();
            }
        }
        // The last marker counts all samples whether or not this one was the highest.
        let last = T::of(f64::from(self.n - 1));
        let [.., p4] = &mut self.places;
        *p4 = last;
        let half = self.share / T::of(2.0);
        let wanted = [half, self.share, (T::one() + self.share) / T::of(2.0)];
        for (i, share) in wanted.into_iter().enumerate() {
            self.adjust(i, last * share);
        }
    }

    /// Moves marker `i + 1` towards its wanted place by parabolic interpolation.
    fn adjust(&mut self, i: usize, wanted: T) {
        let (Some(&[hl, h, hr]), Some(&[pl, p, pr])) = (
            self.heights.get(i..i + 3).and_then(|h| h.first_chunk()),
            self.places.get(i..i + 3).and_then(|p| p.first_chunk()),
        ) else {
            return;
        };
        let one = T::one();
        let step = if wanted - p >= one && pr - p > one {
            one
        } else if wanted - p <= -one && pl - p < -one {
            -one
        } else {
            return;
        };
        let right = (p - pl + step) * (hr - h) / (pr - p);
        let left = (pr - p - step) * (h - hl) / (p - pl);
        let curved = h + step / (pr - pl) * (right + left);
        let moved = if hl < curved && curved < hr {
            curved
        } else if step > T::zero() {
            h + (hr - h) / (pr - p)
        } else {
            h - (h - hl) / (p - pl)
        };
        if let (Some(h), Some(p)) = (self.heights.get_mut(i + 1), self.places.get_mut(i + 1)) {
            *h = moved;
            *p += step;
        }
    }
}

fn sort<T: Real>(values: &mut [T; 5]) {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(core::cmp::Ordering::Equal));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::World;
    use std::vec::Vec;

    #[test]
    fn streaming_quantiles_are_those_of_the_sorted_stream() {
        let mut world = World::new(1);
        let mut quantiles = SHARES.map(Quantile::<f64>::new);
        let mut all = Vec::new();
        for _ in 0..5_000 {
            let x = world.normal().exp(); // skewed
            all.push(x);
            quantiles.iter_mut().for_each(|q| q.add(x));
        }
        all.sort_by(f64::total_cmp);
        for (q, share) in quantiles.iter().zip(SHARES) {
            let exact = all[(share * 4_999.0) as usize];
            let found = q.value().expect("many samples");
            assert!(
                (found / exact - 1.0).abs() < 0.05,
                "{share}: {found} {exact}"
            );
        }
    }

    #[test]
    fn biases_noise_and_clock_are_found_among_reflections() {
        let anchors: Vec<[f64; 3]> = (0..6)
            .map(|i| [4.0 * f64::from(i % 3), 6.0 * f64::from(i / 3), 3.0])
            .collect();
        let mut world = World::new(2);
        let mut calibration = Calibration::<f64, 8>::default();
        for step in 0..6_000 {
            let t = f64::from(step) * 0.02;
            let at = |t: f64| {
                [
                    4.0 + 3.0 * (0.3 * t).sin(),
                    3.0 + 2.0 * (0.5 * t).cos(),
                    1.0,
                ]
            };
            let speed = [0.9 * (0.3 * t).cos(), -(0.5 * t).sin(), 0.0];
            for (i, anchor) in anchors.iter().enumerate() {
                let mut range = world.ranges(at(t + 0.15), &[*anchor], 0.05)[0];
                range.range_m += 0.1 + 0.02 * i as f64;
                if world.uniform(0.0, 1.0) < 0.1 {
                    range.range_m += world.uniform(0.5, 3.0);
                }
                calibration.handle_sample(i as u16, &range, at(t), speed);
            }
        }
        let offset = calibration.clock_offset().expect("it moved");
        assert!((offset - 0.15).abs() < 0.02, "{offset}");
        for i in 0..6 {
            let found = calibration.anchor(i).expect("many samples");
            let bias = 0.1 + 0.02 * f64::from(i);
            assert!((found.bias_m - bias).abs() < 0.01, "{i}: {found:?}");
            assert!((0.045..0.09).contains(&found.sigma_m), "{i}: {found:?}");
        }
        let mut map = AnchorMap::<8>::new(1);
        for (i, p) in anchors.iter().enumerate() {
            let anchor = Anchor {
                id: i as u16,
                position_m: p.map(|x| x as f32),
                ..Anchor::default()
            };
            assert_eq!(map.insert(anchor), Ok(()));
        }
        assert_eq!(calibration.apply(&mut map), 6);
        assert!(map.get(5).is_some_and(|a| (a.bias_m - 0.2).abs() < 0.01));
    }

    #[test]
    fn a_tag_at_rest_tells_biases_but_no_clock() {
        let mut world = World::new(3);
        let mut calibration = Calibration::<f64, 2>::default();
        for _ in 0..500 {
            let mut range = world.ranges([1.0, 2.0, 1.0], &[[0.0, 0.0, 3.0]], 0.02)[0];
            range.range_m += 0.3;
            calibration.handle_sample(9, &range, [1.0, 2.0, 1.0], [0.0; 3]);
        }
        assert_eq!(calibration.clock_offset(), None);
        let found = calibration.anchor(9).expect("many samples");
        assert!((found.bias_m - 0.3).abs() < 0.005, "{found:?}");
        assert_eq!(calibration.anchor(1), None);
    }
}
