//! Every step of an extended Kalman filter over a bent curve, by this crate and by PyPI's filterpy. Runs where `python3` (or what
//! `HELIO_PYTHON` names) has the module `filterpy`; says so and passes where it has not.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use helio_battery::defaults::NMC_5000MAH;
use helio_battery::kalman::Gaussian;

/// A step a line: current, where the curve is looked at, its slope and value there, voltage in; state and covariance out, both with all their digits.
const PEER: &str = r"
import sys
import numpy as np
from filterpy.kalman import ExtendedKalmanFilter
first, *lines = sys.stdin.read().splitlines()
fade, gain, noise, start, (reading,) = [np.array(eval(part)) for part in first.split(';')]
kf = ExtendedKalmanFilter(dim_x=3, dim_z=1)
kf.x = np.array([[0.5], [0.0], [0.0]])
kf.P, kf.Q, kf.R = np.diag(start), np.diag(noise), np.array([[reading]])
kf.F = np.diag(fade)
for line in lines:
    ma, z, slope, curve, mv = map(float, line.split())
    kf.x = kf.F @ kf.x + gain.reshape(3, 1) * ma
    kf.P = kf.F @ kf.P @ kf.F.T + kf.Q
    h = np.array([[slope, -1.0, -1.0]])
    kf.update(np.array([[mv]]), lambda x: h, lambda x: np.array([[curve + slope * (x[0, 0] - z) - x[1, 0] - x[2, 0]]]))
    print(*(repr(float(v)) for v in [*kf.x.ravel(), *kf.P.ravel()]))
";

const FADE: [f64; 3] = [1.0, 0.990_049_833_7, 0.999_000_499_8];
const GAIN: [f64; 3] = [-5.555_555_6e-9, 9.950_166_3e-6, 1.999_000_4e-6];
const NOISE: [f64; 3] = [1e-12, 1e-4, 1e-5];
const START: [f64; 3] = [0.01, 100.0, 100.0];
const READING: f64 = 4.0;

#[test]
fn every_step_is_the_one_that_filterpy_makes() {
    let python = std::env::var("HELIO_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python)
        .args(["-c", "import filterpy.kalman"])
        .output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("not run: {python} has no module `filterpy`");
        return;
    }

    // Half an hour of driving at 10 Hz, from a state of charge that is 20 points off.
    let ocv = |z: f64| f64::from(NMC_5000MAH.ocv_mv(z as f32, 25.0));
    let mut filter = Gaussian::<f64, 3>::new([0.5, 0.0, 0.0], START);
    let (mut input, mut mine) = (String::new(), Vec::new());
    let _ = writeln!(input, "{FADE:?};{GAIN:?};{NOISE:?};{START:?};[{READING:?}]");
    let mut cell = [0.7, 0.0, 0.0];
    for k in 0..18_000 {
        let ma = [7_500.0, 2_000.0, -3_000.0, 0.0, 4_000.0][k / 150 % 5];
        for n in 0..3 {
            cell[n] = FADE[n] * cell[n] + GAIN[n] * ma;
            filter.x[n] = FADE[n] * filter.x[n] + GAIN[n] * ma;
        }
        let noise = ((k * 7_919) % 97) as f64 / 24.0 - 2.0;
        let mv = ocv(cell[0]) - cell[1] - cell[2] + noise;
        filter.predict(&FADE, &NOISE);
        let z = filter.x[0];
        let slope = (ocv(z + 0.01) - ocv(z - 0.01)) / 0.02;
        let _ = writeln!(input, "{ma:?} {z:?} {slope:?} {:?} {mv:?}", ocv(z));
        let innovation = mv - (ocv(z) - filter.x[1] - filter.x[2]);
        filter.update(&[slope, -1.0, -1.0], innovation, READING);
        mine.push((filter.x, filter.p));
    }

    let mut peer = Command::new(&python)
        .args(["-c", PEER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it was there just now");
    // It reads all before it answers.
    let mut stdin = peer.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = peer.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("numbers");
    let theirs: Vec<Vec<f64>> = text
        .lines()
        .map(|l| l.split(' ').map(|v| v.parse().expect("a number")).collect())
        .collect();
    assert_eq!(theirs.len(), mine.len());
    for (k, ((x, p), peer)) in mine.iter().zip(&theirs).enumerate() {
        for r in 0..3 {
            let sigma = p[r][r].sqrt();
            let apart = (x[r] - peer[r]).abs() / sigma.max(x[r].abs());
            assert!(
                apart < 1e-6,
                "step {k}, state {r}: {} and {}",
                x[r],
                peer[r]
            );
            for c in 0..3 {
                let apart = (p[r][c] - peer[3 + 3 * r + c]).abs() / (p[r][r] * p[c][c]).sqrt();
                assert!(apart < 1e-6, "step {k}, covariance {r} {c}: {apart}");
            }
        }
    }
    let error = mine.last().expect("steps").0[0] - cell[0];
    assert!(error.abs() < 0.02, "the state of charge was found: {error}");
}
