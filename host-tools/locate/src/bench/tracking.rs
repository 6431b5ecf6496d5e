//! Consistency of the tracker; poses from a camera.

use helio_positioning::{Camera, PixelObs, Tracker, TrackerConfig, Verdict, locate_camera};
use helio_units::Instant;
use nalgebra::{Rotation3, Vector3, Vector6};

use super::world::{CORNERS, World, distance};
use super::{Figure, Goal, Plan, Report};

const SIGMA: f64 = 0.05;

/// Walks of white acceleration past eight anchors heard in turn.
pub fn tracker(plan: &Plan, report: &mut Report) {
    let config = TrackerConfig::<f64> {
        accel_psd: [0.5, 0.5, 0.05],
        ..TrackerConfig::default()
    };
    let walks = plan.trials(500);
    let (mut nis, mut used, mut nees, mut all) = (0, 0, 0, 0);
    let (mut squares, mut spent, mut steps) = (0.0, 0.0, 0);
    for seed in 0..walks as u64 {
        let mut world = World::new(100 + seed);
        let mut tracker = Tracker::<f64, 8>::new(config);
        let (mut p, mut v) = ([4.0, 4.0, 1.8], [0.0f64; 3]);
        for step in 1..=800u64 {
            let dt: f64 = 0.012;
            for k in 0..3 {
                let q = config.accel_psd[k];
                let dv = (q * dt).sqrt() * world.normal();
                p[k] += dt * v[k] + dt * dv / 2.0 + (q * dt.powi(3) / 12.0).sqrt() * world.normal();
                v[k] += dv;
            }
            let i = (step % 8) as usize;
            let range = world.ranges(p, &CORNERS[i..=i], SIGMA)[0];
            let now = Instant::from_millis(12 * step);
            let start = std::time::Instant::now();
            let verdict = tracker.handle_range(now, i as u16, range);
            if step < 200 {
                continue;
            }
            spent += start.elapsed().as_secs_f64();
            steps += 1;
            if let Verdict::Used { nis: n } = verdict {
                used += 1;
                nis += usize::from((0.000_982..5.024).contains(&n));
            }
            if let Some(track) = tracker.at(now) {
                let told = track.position_m.into_iter().chain(track.velocity_m_s);
                let e =
                    Vector6::from_iterator(told.zip(p.into_iter().chain(v)).map(|(a, b)| a - b));
                let inverse = track.covariance.try_inverse();
                let n = inverse.map_or(f64::NAN, |i| e.dot(&(i * e)));
                all += 1;
                nees += usize::from((1.237..14.449).contains(&n));
                squares += distance(track.position_m, p).powi(2);
            }
        }
    }
    let goal = Goal::Within(93.0, 97.0);
    let mut push = |f: Figure| report.figures.push(f);
    push(Figure::share(
        "tracker",
        "NIS inside its 95 % bounds (8 anchors in turn, 83 Hz)",
        goal,
        nis,
        used,
    ));
    push(Figure::share(
        "tracker",
        "NEES inside its 95 % bounds",
        goal,
        nees,
        all,
    ));
    let rmse = 100.0 * (squares / all.max(1) as f64).sqrt();
    push(Figure::new(
        "tracker",
        "RMSE",
        "cm",
        Goal::Told,
        [rmse; 3],
        all,
    ));
    let time = 1e6 * spent / f64::from(steps.max(1));
    push(Figure::new(
        "tracker",
        "time of one range",
        "µs",
        Goal::Told,
        [time; 3],
        all,
    ));
}

/// Poses from three to eight luminaires.
pub fn camera(plan: &Plan, report: &mut Report) {
    let camera = Camera {
        focal: [800.0, 810.0],
        centre: [640.0, 360.0],
        radial: [-0.12, 0.03, 0.001],
        tangential: [0.0008, -0.0005],
    };
    let lamps = [
        [1.0, 1.0, 3.0],
        [4.5, 1.2, 3.0],
        [2.8, 4.0, 3.0],
        [1.2, 3.6, 3.0],
        [4.2, 3.5, 3.0],
        [2.6, 0.4, 3.0],
        [0.4, 2.2, 3.0],
        [5.2, 2.4, 3.0],
    ];
    for n in 3..=8 {
        let mut world = World::new(40 + n as u64);
        let trials = plan.trials(20_000);
        let (mut ratios, mut several, mut all) = (Vec::new(), 0, 0);
        let (mut squares, mut told) = (0.0, 0.0);
        while all < trials {
            let turn = Vector3::new(0.3 * world.normal(), 0.3 * world.normal(), world.normal());
            let rotation = Rotation3::new(turn).into_inner();
            let position = world.point([2.0, 1.5, 0.3], [3.5, 3.0, 0.8]);
            let mut image = |anchor_m: [f64; 3]| {
                let p = rotation * (Vector3::from(anchor_m) - Vector3::from(position));
                let [u, v] = camera.project(&p).filter(|_| p.xy().norm() < 1.2 * p.z)?;
                Some(PixelObs {
                    anchor_m,
                    pixel: [u + world.normal(), v + world.normal()],
                    sigma_px: 1.0,
                })
            };
            let seen: Option<Vec<_>> = lamps[..n].iter().map(|l| image(*l)).collect();
            let Some(seen) = seen else { continue };
            all += 1;
            let Ok(fix) = locate_camera(&seen, &camera, 5.0) else {
                continue;
            };
            several += usize::from(fix.others[0].is_some());
            let near = |p: [f64; 3]| distance(p, position);
            let poses = fix.others.into_iter().flatten();
            let best = poses.fold(fix.pose, |a, b| {
                if near(b.position_m) < near(a.position_m) {
                    b
                } else {
                    a
                }
            });
            let bound: f64 = (0..3).map(|k| best.covariance[(k, k)]).sum();
            squares += near(best.position_m).powi(2);
            told += bound;
            ratios.push(near(best.position_m).powi(2) / bound);
        }
        let mean = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
        let var =
            ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / ratios.len().max(1) as f64;
        let half = 1.96 * (var / ratios.len().max(1) as f64).sqrt() / 2.0;
        let ratio = (squares / told).sqrt();
        let what = format!("{n} luminaires, 1 px: RMSE / bound, of the poses told");
        let value = [ratio, ratio - half, ratio + half];
        report.figures.push(Figure::new(
            "camera",
            &what,
            "",
            Goal::AtMost(1.05),
            value,
            all,
        ));
        if n == 3 {
            let what = "3 luminaires: more than one pose fits and is told";
            report
                .figures
                .push(Figure::share("camera", what, Goal::Told, several, all));
        }
    }
}
