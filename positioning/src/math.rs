//! The little linear algebra that lateration needs, bounded and without panics.
//!
//! nalgebra's decompositions are generic and iterate without a bound by default; symmetric
//! 3×3 systems are solved here in straight-line code instead.

use nalgebra::{RealField, Vector3, convert};

/// `f32` on the target, `f64` on the host.
pub trait Real: RealField + Copy {
    /// The nearest value to `x`.
    fn of(x: f64) -> Self;
    /// For reports and limits.
    fn as_f32(self) -> f32;
    /// Above every number.
    fn infinity() -> Self;
    /// For constants.
    const ZERO: Self;
    /// Square root, for callers without the standard library.
    fn root(self) -> Self {
        self.sqrt()
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;

    fn infinity() -> Self {
        Self::INFINITY
    }
    fn of(x: f64) -> Self {
        x as f32
    }
    fn as_f32(self) -> f32 {
        self
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;

    fn infinity() -> Self {
        Self::INFINITY
    }
    fn of(x: f64) -> Self {
        x
    }
    fn as_f32(self) -> f32 {
        self as f32
    }
}

/// A whole number as a real.
pub(crate) fn count<T: Real>(n: usize) -> T {
    convert(n as f64)
}

/// A symmetric 3×3 matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sym3<T> {
    pub xx: T,
    pub xy: T,
    pub xz: T,
    pub yy: T,
    pub yz: T,
    pub zz: T,
}

impl<T: Real> Sym3<T> {
    pub fn zero() -> Self {
        Self::diagonal(T::zero())
    }

    pub fn diagonal(d: T) -> Self {
        let o = T::zero();
        Self {
            xx: d,
            xy: o,
            xz: o,
            yy: d,
            yz: o,
            zz: d,
        }
    }

    /// `self += w * u * u'`
    pub fn add_outer(&mut self, w: T, u: &Vector3<T>) {
        let (wx, wy, wz) = (w * u.x, w * u.y, w * u.z);
        self.xx += wx * u.x;
        self.xy += wx * u.y;
        self.xz += wx * u.z;
        self.yy += wy * u.y;
        self.yz += wy * u.z;
        self.zz += wz * u.z;
    }

    /// `self * k + d * I`
    pub fn scaled_plus(&self, k: T, d: T) -> Self {
        Self {
            xx: self.xx * k + d,
            xy: self.xy * k,
            xz: self.xz * k,
            yy: self.yy * k + d,
            yz: self.yz * k,
            zz: self.zz * k + d,
        }
    }

    /// `self + other + d * I`
    pub fn plus(&self, other: &Self, d: T) -> Self {
        Self {
            xx: self.xx + other.xx + d,
            xy: self.xy + other.xy,
            xz: self.xz + other.xz,
            yy: self.yy + other.yy + d,
            yz: self.yz + other.yz,
            zz: self.zz + other.zz + d,
        }
    }

    pub fn trace(&self) -> T {
        self.xx + self.yy + self.zz
    }

    /// A bound below the smallest eigenvalue of a positive semidefinite matrix with `more` added to
    /// its last entry: the determinant over the most that the product of the other two can be.
    pub fn weakest(&self, more: T) -> T {
        let zz = self.zz + more;
        let trace = self.xx + self.yy + zz;
        let det = self.xx * (self.yy * zz - self.yz * self.yz)
            - self.xy * (self.xy * zz - self.yz * self.xz)
            + self.xz * (self.xy * self.yz - self.yy * self.xz);
        T::of(4.0) * (det / trace) / trace
    }

    /// The same of the upper left two rows and columns.
    pub fn weakest_flat(&self) -> T {
        (self.xx * self.yy - self.xy * self.xy) / (self.xx + self.yy)
    }

    pub fn mul(&self, v: &Vector3<T>) -> Vector3<T> {
        Vector3::new(
            self.xx * v.x + self.xy * v.y + self.xz * v.z,
            self.xy * v.x + self.yy * v.y + self.yz * v.z,
            self.xz * v.x + self.yz * v.y + self.zz * v.z,
        )
    }

    /// `v' * self * v`
    pub fn quadratic(&self, v: &Vector3<T>) -> T {
        v.dot(&self.mul(v))
    }

    /// The upper right half of these rows.
    pub fn of_rows(rows: &[[T; 3]; 3]) -> Self {
        let [[xx, xy, xz], [_, yy, yz], [_, _, zz]] = *rows;
        Self {
            xx,
            xy,
            xz,
            yy,
            yz,
            zz,
        }
    }

    pub fn rows(&self) -> [[T; 3]; 3] {
        [
            [self.xx, self.xy, self.xz],
            [self.xy, self.yy, self.yz],
            [self.xz, self.yz, self.zz],
        ]
    }

    /// `None` when the matrix is not positive definite in this precision.
    pub fn factor(&self) -> Option<Factor3<T>> {
        let floor = self.trace() * T::default_epsilon();
        let positive = |d: T| (d > floor).then(|| T::one() / d);
        let i0 = positive(self.xx)?;
        let l10 = self.xy * i0;
        let l20 = self.xz * i0;
        let i1 = positive(self.yy - l10 * self.xy)?;
        let t = self.yz - l20 * self.xy;
        let l21 = t * i1;
        let i2 = positive(self.zz - l20 * self.xz - l21 * t)?;
        Some(Factor3 {
            l10,
            l20,
            l21,
            i0,
            i1,
            i2,
        })
    }

    /// The two smaller invariants decide how flat a cloud of points is: eigenvalues in rising
    /// order. The smallest by a step of Laguerre's from 0 and then Newton's on the characteristic
    /// polynomial, which rise monotonically to it because the matrix is positive semidefinite; the
    /// others from the quadratic that remains.
    pub fn eigenvalues(&self) -> [T; 3] {
        let (half, two, four) = (T::of(0.5), T::of(2.0), T::of(4.0));
        let c2 = self.trace();
        let m_x = self.yy * self.zz - self.yz * self.yz;
        let m_y = self.xx * self.zz - self.xz * self.xz;
        let m_z = self.xx * self.yy - self.xy * self.xy;
        let c1 = m_x + m_y + m_z;
        let c0 = (self.xx * m_x - self.xy * (self.xy * self.zz - self.yz * self.xz)
            + self.xz * (self.xy * self.yz - self.yy * self.xz))
            .max(T::zero());
        let bend = (c1 * c1 - T::of(3.0) * c0 * c2).max(T::zero());
        let slope = c1 + two * bend.sqrt();
        let mut s1 = if slope > T::zero() {
            T::of(3.0) * c0 / slope
        } else {
            T::zero()
        };
        for _ in 0..12 {
            let p = c0 - s1 * (c1 - s1 * (c2 - s1));
            let slope = c1 - s1 * (two * c2 - T::of(3.0) * s1);
            if !(p > T::zero() && slope > T::zero()) {
                break;
            }
            let step = p / slope;
            s1 += step;
            if step <= s1 * T::of(1e-3) {
                break;
            }
        }
        let sum = c2 - s1;
        let product = (c1 - s1 * sum).max(T::zero());
        let s3 = half * (sum + (sum * sum - four * product).max(T::zero()).sqrt());
        let s2 = if s3 > T::zero() {
            product / s3
        } else {
            T::zero()
        };
        [s1, s2, s3]
    }

    /// Unit eigenvector of the smallest eigenvalue `s1`, when that one stands apart.
    pub fn thin_direction(&self, s1: T) -> Option<Vector3<T>> {
        let [r0, r1, r2] = self.scaled_plus(T::one(), -s1).rows().map(Vector3::from);
        let mut best = r0.cross(&r1);
        for other in [r0.cross(&r2), r1.cross(&r2)] {
            if other.norm_squared() > best.norm_squared() {
                best = other;
            }
        }
        let norm = best.norm();
        (norm > T::zero()).then(|| best / norm)
    }
}

/// `L * D * L'` of a positive definite [`Sym3`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor3<T> {
    l10: T,
    l20: T,
    l21: T,
    i0: T,
    i1: T,
    i2: T,
}

impl<T: Real> Factor3<T> {
    pub fn solve(&self, b: &Vector3<T>) -> Vector3<T> {
        let y0 = b.x;
        let y1 = b.y - self.l10 * y0;
        let y2 = b.z - self.l20 * y0 - self.l21 * y1;
        let z = y2 * self.i2;
        let y = y1 * self.i1 - self.l21 * z;
        let x = y0 * self.i0 - self.l10 * y - self.l20 * z;
        Vector3::new(x, y, z)
    }

    /// The rows of `L`⁻¹ and the variances of what they make of a vector of this covariance: three
    /// numbers without correlation.
    pub fn apart(&self) -> [(Vector3<T>, T); 3] {
        let (zero, one) = (T::zero(), T::one());
        [
            (Vector3::new(one, zero, zero), one / self.i0),
            (Vector3::new(-self.l10, one, zero), one / self.i1),
            (
                Vector3::new(self.l10 * self.l21 - self.l20, -self.l21, one),
                one / self.i2,
            ),
        ]
    }

    pub fn inverse(&self) -> Sym3<T> {
        let zz = self.i2;
        let yz = -self.l21 * zz;
        let xz = -self.l10 * yz - self.l20 * zz;
        let yy = self.i1 - self.l21 * yz;
        let xy = -self.l10 * yy - self.l20 * yz;
        let xx = self.i0 - self.l10 * xy - self.l20 * xz;
        Sym3 {
            xx,
            xy,
            xz,
            yy,
            yz,
            zz,
        }
    }
}

/// The value below which a chi-square variable of `dof` degrees of freedom stays as surely as
/// a normal one stays below `z`. Wilson and Hilferty (1931); within 4 % for `z` from 1 to 6.
pub(crate) fn chi2_limit<T: Real>(dof: usize, z: T) -> T {
    let k = count::<T>(dof.max(1));
    let a = T::of(2.0 / 9.0) / k;
    let t = (T::one() - a + z * a.sqrt()).max(T::zero());
    k * t * t * t
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::Matrix3;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn solve_inverse_and_eigenvalues_agree_with_a_general_solver(
            entries in prop::collection::vec(-3.0..3.0f64, 9),
            b in prop::array::uniform3(-5.0..5.0f64),
            thin in prop_oneof![Just(1.0), Just(1e-3), Just(0.0)],
        ) {
            let mut m = Matrix3::from_column_slice(&entries);
            m.row_mut(2).scale_mut(thin);
            let mut s = Sym3::zero();
            for c in m.column_iter() {
                s.add_outer(1.0, &c.into_owned());
            }
            let dense = m * m.transpose();
            let mut wanted: Vec<f64> = dense.symmetric_eigenvalues().iter().copied().collect();
            wanted.sort_by(f64::total_cmp);
            for (found, wanted) in s.eigenvalues().into_iter().zip(&wanted) {
                prop_assert!((found - wanted).abs() < 5e-3 * wanted.abs() + 1e-9 * s.trace());
            }
            let regular = s.scaled_plus(1.0, 0.1);
            let dense = dense + Matrix3::identity() * 0.1;
            let factor = regular.factor().expect("positive definite");
            let b = Vector3::from(b);
            prop_assert!((dense * factor.solve(&b) - b).norm() < 1e-8);
            let inverse = Matrix3::from_fn(|r, c| factor.inverse().rows()[r][c]);
            prop_assert!((dense * inverse - Matrix3::identity()).norm() < 1e-8);
            let apart = factor.apart();
            let rows = Matrix3::from_rows(&apart.map(|(row, _)| row.transpose()));
            let variances = Matrix3::from_diagonal(&Vector3::from(apart.map(|(_, v)| v)));
            prop_assert!((rows * dense * rows.transpose() - variances).norm() < 1e-8);
        }
    }

    #[test]
    fn chi_square_limits_are_those_of_the_tables() {
        // Upper points for the normal quantile 3.0902 (probability 1e-3).
        for (dof, table) in [(1, 10.828), (2, 13.816), (5, 20.515), (30, 59.703)] {
            let found = chi2_limit(dof, 3.0902f64);
            assert!((found / table - 1.0).abs() < 0.04, "{dof}: {found}");
        }
    }
}
