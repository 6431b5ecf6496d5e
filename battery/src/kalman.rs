//! A small Gaussian belief and its two moves, prediction and scalar measurement. Knows nothing about batteries.
//!
//! The transition is diagonal plus one column (every state fades by itself; one state, here the current sensor's bias,
//! leaks into the others), which a battery filter always is and which costs n² instead of n³. Measurements are scalar and
//! take from the covariance what they tell, and never more than Joseph's form would (Bucy and Joseph 1968), so it stays
//! positive although numbers are rounded. Only the upper triangle is computed and then mirrored, so the covariance is
//! symmetric to the bit.

// Row and column numbers are what these formulas are made of.
#![allow(clippy::needless_range_loop)]

use core::ops::{Add, Div, Mul, Sub};

/// The arithmetic that the filter needs; `f32` on target, `f64` to compare with others.
pub trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
}
impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}
impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// Mean and covariance of N quantities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian<F, const N: usize> {
    /// Mean.
    pub x: [F; N],
    /// Covariance, symmetric.
    pub p: [[F; N]; N],
}

impl<F: Real, const N: usize> Gaussian<F, N> {
    /// Independent quantities with these means and variances.
    pub fn new(x: [F; N], variance: [F; N]) -> Self {
        let mut p = [[F::ZERO; N]; N];
        for i in 0..N {
            p[i][i] = variance[i];
        }
        Self { x, p }
    }

    /// Covariance after x' = diag(d) x + noise with variances q. The caller moves the mean, which may be nonlinear.
    #[inline]
    pub fn predict(&mut self, d: &[F; N], q: &[F; N]) {
        for i in 0..N {
            for j in i..N {
                let v = self.p[i][j] * (d[i] * d[j]);
                self.p[i][j] = v;
                self.p[j][i] = v;
            }
            self.p[i][i] = self.p[i][i] + q[i];
        }
    }

    /// Covariance after state `from` has leaked into the others: x' = x + c x\[from\]. `c[from]` must be 0.
    #[inline]
    pub fn leak(&mut self, from: usize, c: &[F; N]) {
        let Some(&row) = self.p.get(from) else { return };
        let var = row.get(from).copied().unwrap_or(F::ZERO);
        for i in 0..N {
            for j in i..N {
                let v = self.p[i][j] + c[i] * row[j] + c[j] * row[i] + c[i] * c[j] * var;
                self.p[i][j] = v;
                self.p[j][i] = v;
            }
        }
    }

    /// P h and its product with h, the variance of the scalar h·x.
    #[inline]
    pub fn project(&self, h: &[F; N]) -> ([F; N], F) {
        let mut g = self.p[0].map(|p| p * h[0]);
        for j in 1..N {
            for i in 0..N {
                // The covariance is symmetric, and its rows lie in one piece.
                g[i] = g[i] + self.p[j][i] * h[j];
            }
        }
        let mut s = h[0] * g[0];
        for i in 1..N {
            s = s + h[i] * g[i];
        }
        (g, s)
    }

    /// Takes in a measurement y = h·x + noise of variance `r`, of which `innovation` is what the mean did not foresee.
    /// Does nothing when `r` plus the variance of h·x is not positive.
    #[inline]
    pub fn update(&mut self, h: &[F; N], innovation: F, r: F) {
        let (g, variance) = self.project(h);
        self.update_projected(&g, variance, innovation, r);
    }

    /// [`Self::update`] for a caller who has looked at `project(h)` before.
    #[inline]
    pub fn update_projected(&mut self, g: &[F; N], variance: F, innovation: F, r: F) {
        let s = variance + r;
        if s.partial_cmp(&F::ZERO) != Some(core::cmp::Ordering::Greater) {
            return;
        }
        let inverse = F::ONE / s;
        let (pull, least) = (innovation * inverse, r * inverse * inverse);
        for j in 0..N {
            self.x[j] = self.x[j] + g[j] * pull;
            for i in 0..=j {
                let both = g[i] * g[j];
                let mut v = self.p[i][j] - both * inverse;
                // Where rounding ate what is left, Joseph's form says how little it can be: (I - k h') P (I - k h')' + k r k'.
                if i == j && v < both * least {
                    v = both * least;
                }
                self.p[i][j] = v;
                self.p[j][i] = v;
            }
        }
    }

    /// [`Self::update_projected`] that leaves state `kept` and its variance as they are and reckons with its uncertainty all the same
    /// (a "consider" parameter: S. F. Schmidt, *Advances in Control Systems* 3 (1966) 293).
    #[inline]
    pub fn update_considering(
        &mut self,
        kept: usize,
        (g, variance): (&[F; N], F),
        innovation: F,
        r: F,
    ) {
        let s = variance + r;
        if s.partial_cmp(&F::ZERO) != Some(core::cmp::Ordering::Greater) {
            return;
        }
        let inverse = F::ONE / s;
        let mut k = g.map(|g| g * inverse);
        if let Some(k) = k.get_mut(kept) {
            *k = F::ZERO;
        }
        self.apply(g, &k, innovation, s);
    }

    /// Takes in what a gain `k` makes of an innovation of variance `s`, when `g` is P h. Joseph's form, which holds for any gain:
    /// (I - k h') P (I - k h')' + k r k', multiplied out, so that one triangle is enough.
    #[inline]
    fn apply(&mut self, g: &[F; N], k: &[F; N], innovation: F, s: F) {
        for i in 0..N {
            self.x[i] = self.x[i] + k[i] * innovation;
        }
        for j in 0..N {
            // 0 but for rounding, or for a gain that is not the best.
            let rest = g[j] - s * k[j];
            for i in 0..=j {
                let v = self.p[i][j] - g[i] * k[j] - k[i] * rest;
                self.p[i][j] = v;
                self.p[j][i] = v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_measurement_weighs_by_variance() {
        let mut g = Gaussian::<f64, 2>::new([1.0, 0.0], [4.0, 9.0]);
        g.update(&[1.0, 0.0], 5.0, 1.0);
        assert!((g.x[0] - 5.0).abs() < 1e-12 && g.x[1] == 0.0);
        assert!((g.p[0][0] - 0.8).abs() < 1e-12 && g.p[1][1] == 9.0);
    }

    #[test]
    fn a_reading_a_million_times_sharper_than_the_belief_leaves_its_own_variance() {
        let mut g = Gaussian::<f32, 1>::new([0.0], [1e4]);
        g.update(&[1.0], 1.0, 1e-8);
        assert!((g.p[0][0] / 1e-8 - 1.0).abs() < 1e-6, "{:?}", g.p);
        assert!((g.x[0] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn a_considered_state_stays_and_limits_what_any_number_of_measurements_can_tell() {
        let mut g = Gaussian::<f64, 2>::new([0.0; 2], [100.0, 4.0]);
        for _ in 0..100_000 {
            let innovation = 3.0 - g.x[0] - g.x[1];
            let (projected, variance) = g.project(&[1.0, 1.0]);
            g.update_considering(1, (&projected, variance), innovation, 1.0);
        }
        assert!((g.x[0] - 3.0).abs() < 0.01 && g.x[1] == 0.0, "{:?}", g.x);
        assert!(
            g.p[1][1] == 4.0 && (g.p[0][0] - 4.0).abs() < 0.01,
            "{:?}",
            g.p
        );
    }

    #[test]
    fn a_leak_correlates_source_and_target() {
        let mut g = Gaussian::<f64, 2>::new([0.0, 0.0], [1.0, 4.0]);
        g.leak(1, &[0.5, 0.0]);
        assert_eq!(g.p, [[2.0, 2.0], [2.0, 4.0]]);
    }

    /// The numbers are those of PyPI's filterpy (`KalmanFilter`, Joseph's form) for the same drive; every step of a nonlinear
    /// one is compared by `tests/filterpy.rs`.
    #[test]
    fn five_hundred_steps_end_where_filterpy_ends() {
        let mut g = Gaussian::<f64, 3>::new([0.0; 3], [0.01, 100.0, 100.0]);
        let d = [1.0, 0.99, 0.999];
        for k in 0..500u32 {
            let i = (f64::from(k * 37 % 101) - 30.0) * 100.0;
            for (n, b) in [-5e-9, 1.2e-4, 1.8e-5].into_iter().enumerate() {
                g.x[n] = d[n] * g.x[n] + b * i;
            }
            g.predict(&d, &[1e-11, 1e-3, 1e-4]);
            let h = [700.0 + f64::from(k % 50) * 10.0, -1.0, -1.0];
            let foreseen = h[0] * g.x[0] - g.x[1] - g.x[2];
            g.update(&h, f64::from(k * 53 % 97) - 48.0 - foreseen, 25.0);
        }
        let x = [
            0.006_802_068_171_672_118,
            23.809_045_089_088_57,
            -8.568_129_045_171_927,
        ];
        let p = [
            [
                1.947_701_516_153_713e-6,
                2.140_124_750_208_045_3e-5,
                1.593_593_786_460_689_2e-3,
            ],
            [
                2.140_124_750_208_045_3e-5,
                0.048_670_910_121_967_954,
                0.003_318_708_084_132_587,
            ],
            [
                1.593_593_786_460_689_2e-3,
                0.003_318_708_084_132_587,
                1.391_051_240_731_782_5,
            ],
        ];
        for n in 0..3 {
            assert!((g.x[n] - x[n]).abs() < 1e-9, "{:?}", g.x);
            for m in 0..3 {
                assert!((g.p[n][m] - p[n][m]).abs() < 1e-9, "{:?}", g.p);
            }
        }
    }

    proptest! {
        #[test]
        fn f32_covariance_never_goes_indefinite(
            steps in proptest::collection::vec((-15i8..15, -50i8..50, 1u32..100_000), 1..3000),
        ) {
            let mut g = Gaussian::<f32, 3>::new([0.0; 3], [0.1, 100.0, 1e4]);
            for (slope, innovation, r) in steps {
                let (slope, innovation) = (f32::from(slope) * 0.1, f32::from(innovation) * 0.1);
                let r = r as f32 * 1e-4;
                g.predict(&[1.0, 0.9, 0.999], &[1e-12, 1e-4, 1e-4]);
                g.leak(2, &[1e-5, 0.1, 0.0]);
                g.update(&[slope * 1000.0, -1.0, 1.0], innovation, r);
                let p = g.p;
                for i in 0..3 {
                    prop_assert!(p[i][i] > 0.0);
                    for j in 0..i {
                        prop_assert_eq!(p[i][j], p[j][i]);
                        prop_assert!(p[i][j] * p[i][j] <= p[i][i] * p[j][j] * 1.001);
                    }
                }
            }
        }
    }
}
