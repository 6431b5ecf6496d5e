//! Tukey's biweight (J. W. Tukey; A. E. Beaton, J. W. Tukey, *Technometrics* 16 (1974) 147): what is far off has no weight.

/// Residuals beyond so many sigmas have none; 95 % efficient where errors are normal.
pub const REACH: f64 = 4.685;

/// Weight of a residual of `z` reaches.
pub fn weight(z: f64) -> f64 {
    (1.0 - z * z).max(0.0).powi(2)
}

/// Cost of a residual of `z` reaches, 1 from one on; its slope is `6 z` times the weight.
pub fn cost(z: f64) -> f64 {
    let z = z.abs().min(1.0);
    1.0 - (1.0 - z * z).powi(3)
}
