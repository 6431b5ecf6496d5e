//! One Kalman filter of three states (state of charge, two RC voltages) computed by `helio_battery::kalman` and by the crate
//! `kfilter`: the same numbers in, so the same numbers out, and how long each took. Rounds alternate, the median of each counts.

use std::hint::black_box;
use std::time::Instant;

use helio_battery::kalman::{Gaussian, Real};
use kfilter::measurement::LinearMeasurement;
use kfilter::system::LinearSystem;
use kfilter::{Kalman, KalmanFilter, KalmanPredictInput, KalmanUpdate};
use nalgebra::{Matrix1, Matrix1x3, Matrix3, RealField, SMatrix, Vector1, Vector3};

/// What 1 mA does in 0.1 s, and what is left of each state: 5 Ah, 1 mΩ and 10 s, 2 mΩ and 100 s.
const FADE: [f64; 3] = [1.0, 0.990_049_833_7, 0.999_000_499_8];
const GAIN: [f64; 3] = [-5.555_555_6e-9, 9.950_166_3e-6, 1.999_000_4e-6];
const NOISE: [f64; 3] = [1e-12, 1e-4, 1e-5];
const START: [f64; 3] = [0.01, 100.0, 100.0];
const READING: f64 = 25.0;
const STEPS: usize = 20_000;
const ROUNDS: usize = 41;

/// One sample: current [mA], slope of the curve here [mV], voltage relative to the curve's value at 0 [mV].
#[derive(Clone, Copy)]
struct Step<F> {
    ma: F,
    slope: F,
    mv: F,
}

fn drive<F: Float>() -> Vec<Step<F>> {
    let mut z = 0.8;
    (0..STEPS)
        .map(|k| {
            let ma = [7_500.0, 2_000.0, -3_000.0, 0.0, 4_000.0][k / 150 % 5];
            z += GAIN[0] * ma;
            let slope = 700.0 + 300.0 * (9.0 * z).sin();
            let noise = ((k * 7_919) % 97) as f64 / 10.0 - 4.8;
            Step {
                ma: F::of(ma),
                slope: F::of(slope),
                mv: F::of(slope * z - 0.003 * ma + noise),
            }
        })
        .collect()
}

trait Float: Real + RealField + Copy {
    fn of(x: f64) -> Self;
    fn f64(self) -> f64;
}
impl Float for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }
    fn f64(self) -> f64 {
        self.into()
    }
}
impl Float for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn f64(self) -> f64 {
        self
    }
}

/// State and covariance at the end.
type End = ([f64; 3], [[f64; 3]; 3]);

fn ours<F: Float>(steps: &[Step<F>]) -> End {
    let of = |list: [f64; 3]| list.map(F::of);
    let (fade, gain, noise) = (of(FADE), of(GAIN), of(NOISE));
    let mut g = Gaussian::<F, 3>::new([F::ZERO; 3], of(START));
    let minus = F::of(-1.0);
    for s in black_box(steps) {
        for k in 0..3 {
            g.x[k] = fade[k] * g.x[k] + gain[k] * s.ma;
        }
        g.predict(&fade, &noise);
        let foreseen = s.slope * g.x[0] - g.x[1] - g.x[2];
        g.update(&[s.slope, minus, minus], s.mv - foreseen, F::of(READING));
    }
    (g.x.map(F::f64), g.p.map(|row| row.map(F::f64)))
}

fn peer<F: Float>(steps: &[Step<F>]) -> End {
    let of = |list: [f64; 3]| Vector3::from(list.map(F::of));
    let diagonal = |list| Matrix3::from_diagonal(&of(list));
    let system = LinearSystem::new(
        diagonal(FADE),
        diagonal(NOISE),
        SMatrix::<F, 3, 1>::from(of(GAIN)),
        Vector3::zeros(),
    );
    let mut filter = Kalman::new_custom(system, diagonal(START));
    let minus = F::of(-1.0);
    for s in black_box(steps) {
        let _ = filter.predict(Vector1::new(s.ma));
        let seen = LinearMeasurement::new(
            Matrix1x3::new(s.slope, minus, minus),
            Matrix1::new(F::of(READING)),
            Vector1::new(s.mv),
        );
        let _ = filter.update(&seen);
    }
    let (x, p) = (filter.state(), filter.covariance());
    let row = |r: usize| [0, 1, 2].map(|c| p[(r, c)].f64());
    ([0, 1, 2].map(|k| x[k].f64()), [0, 1, 2].map(row))
}

/// Nanoseconds per sample of both, and the largest relative difference of their results.
fn side_by_side<F: Float>() -> (f64, f64, f64) {
    let steps = drive::<F>();
    let timed = |of: fn(&[Step<F>]) -> End| {
        let begin = Instant::now();
        black_box(of(&steps));
        begin.elapsed().as_nanos() as f64 / STEPS as f64
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(timed(ours));
        b.push(timed(peer));
    }
    let median = |v: &mut Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let ((x, p), (px, pp)) = (ours(&steps), peer(&steps));
    let mut apart = 0.0f64;
    for r in 0..3 {
        apart = apart.max((x[r] - px[r]).abs() / px[r].abs().max(1e-3));
        for c in 0..3 {
            apart = apart.max((p[r][c] - pp[r][c]).abs() / (pp[r][r] * pp[c][c]).sqrt());
        }
    }
    (median(&mut a), median(&mut b), apart)
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    for (name, (own, other, apart)) in
        [("f64", side_by_side::<f64>()), ("f32", side_by_side::<f32>())]
    {
        if json {
            let line = serde_json::json!({
                "type": name, "ours_ns": own, "kfilter_ns": other, "ratio": other / own, "largest_difference": apart,
            });
            println!("{line}");
        } else {
            println!(
                "{name}: one sample ours {own:.1} ns, kfilter {other:.1} ns, {:.2} times; results differ by {apart:.1e}",
                other / own
            );
        }
    }
}
