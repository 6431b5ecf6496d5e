//! Linear least squares from normal equations, with some unknowns held at zero or above.
//!
//! Lawson and Hanson's active set (*Solving Least Squares Problems*, 1974, ch. 23) on the Gram matrix, as R. Bro and S. de
//! Jong have it (*J. Chemometrics* 11 (1997) 393). Rows are summed up as they come, so a recording of any length costs the
//! memory of its unknowns squared.

use nalgebra::{DMatrix, DVector};

/// Sums of a least-squares problem.
#[derive(Clone, Debug)]
pub struct Normal {
    gram: DMatrix<f64>,
    right: DVector<f64>,
    square: f64,
    weight: f64,
}

impl Normal {
    /// For this many unknowns.
    pub fn new(unknowns: usize) -> Self {
        Self {
            gram: DMatrix::zeros(unknowns, unknowns),
            right: DVector::zeros(unknowns),
            square: 0.0,
            weight: 0.0,
        }
    }

    /// Takes in the equation `row · x = y`; zeros in `row` are skipped.
    pub fn add(&mut self, row: &[f64], y: f64, weight: f64) {
        let used: Vec<(usize, f64)> = row
            .iter()
            .copied()
            .enumerate()
            .filter(|r| r.1 != 0.0)
            .collect();
        for (n, &(a, va)) in used.iter().enumerate() {
            let va = va * weight;
            self.right[a] += va * y;
            for &(b, vb) in used.iter().skip(n) {
                self.gram[(b, a)] += va * vb;
            }
        }
        self.square += weight * y * y;
        self.weight += weight;
    }

    /// The solution and its mean squared misfit; `signed[k]` tells that unknown `k` may be negative.
    pub fn solve(&self, signed: &[bool]) -> (Vec<f64>, f64) {
        let n = self.right.len();
        let mut gram = self.gram.clone();
        for a in 0..n {
            for b in 0..a {
                gram[(b, a)] = gram[(a, b)];
            }
        }
        let ridge = 1e-12 * (0..n).map(|k| gram[(k, k)]).fold(0.0, f64::max).max(1e-30);
        for k in 0..n {
            gram[(k, k)] += ridge;
        }
        let mut free: Vec<bool> = signed.to_vec();
        let mut x = DVector::zeros(n);
        let sub = |free: &[bool]| -> DVector<f64> {
            let at: Vec<usize> = (0..n).filter(|k| free[*k]).collect();
            let small = DMatrix::from_fn(at.len(), at.len(), |a, b| gram[(at[a], at[b])]);
            let right = DVector::from_fn(at.len(), |a, _| self.right[at[a]]);
            let mut full = DVector::zeros(n);
            if let Some(found) = small.cholesky().map(|c| c.solve(&right)) {
                for (k, at) in at.iter().enumerate() {
                    full[*at] = found[k];
                }
            }
            full
        };
        if free.iter().any(|f| *f) {
            x = sub(&free);
        }
        let scale = self.right.amax().max(1e-300);
        for _ in 0..3 * n {
            let gradient = &self.right - &gram * &x;
            let best = (0..n)
                .filter(|k| !free[*k])
                .max_by(|a, b| gradient[*a].total_cmp(&gradient[*b]));
            let Some(enter) = best.filter(|k| gradient[*k] > 1e-9 * scale) else {
                break;
            };
            free[enter] = true;
            loop {
                let s = sub(&free);
                let bad: Vec<usize> = (0..n)
                    .filter(|k| free[*k] && !signed[*k] && s[*k] <= 0.0)
                    .collect();
                if bad.is_empty() {
                    x = s;
                    break;
                }
                let step = bad
                    .iter()
                    .map(|k| x[*k] / (x[*k] - s[*k]).max(1e-300))
                    .fold(1.0, f64::min);
                x += (s - &x) * step;
                for k in bad {
                    if x[k] <= 1e-12 * x.amax().max(1e-300) || step <= 0.0 {
                        x[k] = 0.0;
                        free[k] = false;
                    }
                }
            }
        }
        let misfit = self.square - 2.0 * self.right.dot(&x) + (&gram * &x).dot(&x);
        (
            x.iter().copied().collect(),
            (misfit / self.weight.max(1e-300)).max(0.0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_answer_is_held_at_zero_unless_it_may_be_negative() {
        let mut n = Normal::new(2);
        for k in 0..20 {
            let x = f64::from(k) * 0.1;
            n.add(&[1.0, x], 2.0 - 0.5 * x, 1.0);
        }
        let (x, _) = n.solve(&[true, true]);
        assert!(
            (x[0] - 2.0).abs() < 1e-6 && (x[1] + 0.5).abs() < 1e-6,
            "{x:?}"
        );
        let (x, misfit) = n.solve(&[false, false]);
        assert!(x[1] == 0.0 && (x[0] - (2.0 - 0.475)).abs() < 1e-6, "{x:?}");
        assert!(misfit > 0.05);
    }
}
