//! Light codes: profiles of a rolling shutter by the million, and whole images.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Figure, Goal, Plan, Report};
use crate::light::{Mode, Readout, Scene, Shutter, Source, decode, profile, read_image, render};

/// A phone's sensor: 100 000 rows a second, exposed for 30 µs, lamps at 25 000 chips a second.
const SHUTTER: Shutter = Shutter {
    row_rate_hz: 100_000.0,
    exposure_s: 30e-6,
    chip_rate_hz: 25_000.0,
};
/// Focal length, pixels; edge of the lamp, metres.
const FOCAL_PX: f64 = 3_000.0;
const LAMP_M: f64 = 0.6;
/// Rows of the sensor.
const ROWS: f64 = 3_000.0;

/// Identities right, wrong and missing.
pub fn codes(plan: &Plan, report: &mut Report) {
    let n = plan.trials(500_000);
    let mut rng = ChaCha8Rng::seed_from_u64(30);
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..n {
        let id: u16 = rng.random();
        let distance = 0.5 + 5.5 * rng.random::<f64>();
        let rows = (LAMP_M * FOCAL_PX / distance).min(ROWS) as usize;
        let blur = 0.5 + rng.random::<f64>();
        let noise = 0.06 * rng.random::<f64>();
        let ppm = 400.0 * (rng.random::<f64>() - 0.5);
        let y = profile(id, &SHUTTER, rows, blur, noise, ppm, &mut rng);
        if let Ok(code) = decode(&y, &SHUTTER) {
            right += usize::from(code.id == id);
            wrong += usize::from(code.id != id);
        }
    }
    let mut push = |f: Figure| report.figures.push(f);
    let what = "profiles of lamps at 0.5 to 6 m: identity right";
    push(Figure::share("light", what, Goal::AtLeast(99.9), right, n));
    // What is no frame of ours, or hardly one any more.
    let (mut accepted, mut heard) = (0, 0);
    for k in 0..n {
        let rows = 280 + (rng.random::<f64>() * 1_200.0) as usize;
        let id: u16 = rng.random();
        let y = match k % 4 {
            0 => (0..rows).map(|_| 0.2 + rng.random::<f64>()).collect(),
            1 => {
                // Another lamp: pulses of its own rate.
                let period = 3.0 + 20.0 * rng.random::<f64>();
                let duty = 0.2 + 0.6 * rng.random::<f64>();
                let on = |r: usize| ((r as f64 / period).fract() < duty) as u8;
                (0..rows)
                    .map(|r| 0.2 + f64::from(on(r)) + 0.2 * rng.random::<f64>())
                    .collect()
            }
            2 => profile(id, &SHUTTER, rows, 3.0, 0.4, 0.0, &mut rng),
            _ => profile(id, &SHUTTER, rows, 1.0, 0.25, 3_000.0, &mut rng),
        };
        if let Ok(code) = decode(&y, &SHUTTER) {
            let ours = k % 4 >= 2 && code.id == id;
            heard += usize::from(ours);
            accepted += usize::from(!ours);
        }
    }
    let (accepted, all) = (accepted + wrong, 2 * n);
    let what = "same, noise, other lamps, drowned frames: wrong accepted";
    push(Figure::count(
        "light",
        what,
        Goal::AtMost(0.0),
        accepted,
        all,
    ));
    push(Figure::share(
        "light",
        "same: read all the same, and right",
        Goal::Told,
        heard,
        n,
    ));
    let n = plan.trials(2_000);
    let (mut right, mut wrong) = (0, 0);
    for k in 0..n {
        let id: u16 = rng.random();
        let distance = 0.5 + 5.5 * rng.random::<f64>();
        let source = Source {
            id,
            place_m: [0.0, 0.0, distance],
            size_m: LAMP_M,
            round: k % 5 == 4 && distance < 4.0,
        };
        let scene = Scene {
            size_px: [320, 1_200],
            focal_px: FOCAL_PX,
            sources: vec![source],
            brightness: 0.4 + 0.5 * rng.random::<f64>(),
            background: 0.05 * rng.random::<f64>(),
            noise: 0.01 + 0.05 * rng.random::<f64>(),
            blur_px: 0.5 + rng.random::<f64>(),
            clock_ppm: 400.0 * (rng.random::<f64>() - 0.5),
        };
        let image = render(&scene, &SHUTTER, &Mode::Frame, rng.random());
        let lamps = read_image(&image, &SHUTTER, &Mode::Frame, Readout::Down);
        let mut read = lamps.iter().filter_map(|l| l.code).map(|c| c.id);
        right += usize::from(read.clone().any(|found| found == id));
        wrong += usize::from(read.any(|found| found != id));
    }
    push(Figure::share(
        "light",
        "whole images, noise and blur, 0.5 to 6 m: identity right",
        Goal::AtLeast(99.9),
        right,
        n,
    ));
    push(Figure::count(
        "light",
        "same: wrong identity accepted",
        Goal::AtMost(0.0),
        wrong,
        n,
    ));
}
