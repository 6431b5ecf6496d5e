//! Seeded rooms, tags and noise.

use helio_positioning::RangeObs;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A seeded world.
pub struct World {
    /// Its chance.
    pub rng: ChaCha8Rng,
}

impl World {
    /// With its seed.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// Between two numbers.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        self.rng.random_range(low..high)
    }

    /// A whole number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    /// Standard normal deviate (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let u: f64 = 1.0 - self.rng.random::<f64>();
        let v: f64 = self.rng.random();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// In the box between two corners.
    pub fn point(&mut self, low: [f64; 3], high: [f64; 3]) -> [f64; 3] {
        std::array::from_fn(|k| self.uniform(low[k], high[k]))
    }

    /// Ranges to all anchors with normal noise.
    pub fn ranges(
        &mut self,
        tag: [f64; 3],
        anchors: &[[f64; 3]],
        sigma: f64,
    ) -> Vec<RangeObs<f64>> {
        let range = |&anchor_m: &[f64; 3]| RangeObs {
            anchor_m,
            range_m: (distance(tag, anchor_m) + sigma * self.normal()).max(0.0),
            sigma_m: sigma,
        };
        anchors.iter().map(range).collect()
    }
}

/// Between two points.
pub fn distance(a: [f64; 3], b: [f64; 3]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| (a - b).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Six anchors on walls and ceiling of a 10 x 8 x 3 m room.
pub const SPREAD: [[f64; 3]; 6] = [
    [0.0, 0.0, 2.8],
    [10.0, 0.0, 0.4],
    [10.0, 8.0, 2.9],
    [0.0, 8.0, 0.3],
    [5.0, 0.0, 1.5],
    [5.0, 8.0, 1.2],
];

/// Eight anchors in the corners of a 8 x 8 x 4 m hall, heights uneven.
pub const CORNERS: [[f64; 3]; 8] = [
    [0.0, 0.0, 4.0],
    [8.0, 0.0, 3.7],
    [8.0, 8.0, 3.9],
    [0.0, 8.0, 3.6],
    [0.0, 0.0, 0.0],
    [8.0, 0.0, 0.3],
    [8.0, 8.0, 0.1],
    [0.0, 8.0, 0.4],
];

/// `columns` x `rows` luminaires `pitch` metres apart at 3 m, heights alternating by `stagger`.
pub fn ceiling(columns: usize, rows: usize, pitch: f64, stagger: f64) -> Vec<[f64; 3]> {
    let place = |i: usize| {
        let (c, r) = (i % columns, i / columns);
        let z = if (c + r) % 2 == 0 { stagger } else { -stagger };
        [1.0 + pitch * c as f64, 1.0 + pitch * r as f64, 3.0 + z]
    };
    (0..columns * rows).map(place).collect()
}

/// Eight anchors in the corners of a 10 x 8 x 3 m room, heights uneven.
pub const ROOM: [[f64; 3]; 8] = [
    [0.0, 0.0, 2.9],
    [10.0, 0.0, 2.6],
    [10.0, 8.0, 2.8],
    [0.0, 8.0, 2.7],
    [0.0, 0.0, 0.3],
    [10.0, 0.0, 0.5],
    [10.0, 8.0, 0.2],
    [0.0, 8.0, 0.4],
];
