//! Seeded worlds for tests: anchors, noise, ranges.

use crate::RangeObs;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::vec::Vec;

pub struct World {
    rng: ChaCha8Rng,
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.rng.random_range(low..high)
    }

    /// Standard normal deviate (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let u: f64 = 1.0 - self.rng.random::<f64>();
        let v: f64 = self.rng.random();
        (-2.0 * u.ln()).sqrt() * (core::f64::consts::TAU * v).cos()
    }

    /// A point in the box between two corners.
    pub fn point(&mut self, low: [f64; 3], high: [f64; 3]) -> [f64; 3] {
        core::array::from_fn(|k| self.uniform(low[k], high[k]))
    }

    /// Ranges from `tag` to every anchor with normal noise.
    pub fn ranges(
        &mut self,
        tag: [f64; 3],
        anchors: &[[f64; 3]],
        sigma: f64,
    ) -> Vec<RangeObs<f64>> {
        anchors
            .iter()
            .map(|&anchor_m| RangeObs {
                anchor_m,
                range_m: (distance(tag, anchor_m) + sigma * self.normal()).max(0.0),
                sigma_m: sigma,
            })
            .collect()
    }
}

pub fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// The same observations in single precision.
pub fn single(observations: &[RangeObs<f64>]) -> Vec<RangeObs<f32>> {
    observations
        .iter()
        .map(|o| RangeObs {
            anchor_m: o.anchor_m.map(|x| x as f32),
            range_m: o.range_m as f32,
            sigma_m: o.sigma_m as f32,
        })
        .collect()
}
