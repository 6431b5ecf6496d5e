//! Tracker consistency, camera pose, diagnosis of the map.

use crate::world::{CORNERS, World, distance};
use helio_positioning::{
    Camera, Diagnosis, DiagnosisConfig, FaultModel, Finding, Options, PixelObs, Tracker,
    TrackerConfig, Verdict, locate_camera, locate_robust_2d, locate_robust_3d,
};
use helio_units::Instant;
use nalgebra35::{Rotation3, Vector3, Vector6};

const SIGMA: f64 = 0.05;

pub fn tracker() {
    let config = TrackerConfig::<f64> {
        accel_psd: [0.5, 0.5, 0.05],
        ..TrackerConfig::default()
    };
    let (mut nis, mut used, mut nees, mut all) = (0u64, 0u64, 0u64, 0u64);
    let (mut squares, mut spent, mut steps) = (0.0, 0.0, 0u64);
    for seed in 0..500 {
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
                nis += u64::from((0.000_982..5.024).contains(&n));
            }
            if let Some(track) = tracker.at(now) {
                let told = track.position_m.into_iter().chain(track.velocity_m_s);
                let e =
                    Vector6::from_iterator(told.zip(p.into_iter().chain(v)).map(|(a, b)| a - b));
                let n = track
                    .covariance
                    .try_inverse()
                    .map_or(f64::NAN, |i| e.dot(&(i * e)));
                all += 1;
                nees += u64::from((1.237..14.449).contains(&n));
                squares += distance(track.position_m, p).powi(2);
            }
        }
    }
    println!(
        "tracker     8 anchors in turn at 83 Hz, 5 cm: NIS inside 95 % bounds {:.2} %, NEES {:.2} % (500 walks), RMSE {:.1} cm, {:.2} µs a range   goal 93 to 97 %",
        100.0 * nis as f64 / used as f64,
        100.0 * nees as f64 / all as f64,
        100.0 * (squares / all as f64).sqrt(),
        1e6 * spent / steps as f64,
    );
}

pub fn camera() {
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
        let (mut squares, mut told, mut both, mut refused, mut all) = (0.0, 0.0, 0, 0, 0);
        let mut spent = 0.0;
        while all < 20_000 {
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
            let start = std::time::Instant::now();
            let fix = locate_camera(&seen, &camera, 5.0);
            spent += start.elapsed().as_secs_f64();
            let Ok(fix) = fix else {
                refused += 1;
                continue;
            };
            both += usize::from(fix.others[0].is_some());
            let near = |p: [f64; 3]| distance(p, position);
            let others = fix.others.into_iter().flatten();
            let best = others.fold(fix.pose, |a, b| {
                if near(b.position_m) < near(a.position_m) {
                    b
                } else {
                    a
                }
            });
            squares += near(best.position_m).powi(2);
            told += (0..3).map(|k| best.covariance[(k, k)]).sum::<f64>();
        }
        println!(
            "camera      {n} luminaires, 1 px: RMSE / bound {:.3} ({:.2} cm) with the nearest of the poses told; more than one told in {:.1} %, refused {refused} of {all}; {:.0} µs   goal <= 1.05",
            (squares / told).sqrt(),
            100.0 * (squares / all as f64).sqrt(),
            100.0 * both as f64 / all as f64,
            1e6 * spent / all as f64,
        );
    }
}

pub fn diagnosis() {
    let ids: [u16; 8] = [10, 11, 12, 13, 14, 15, 16, 17];
    let options = Options::default();
    for (name, known) in [("3D", false), ("known height", true)] {
        for fault in ["none", "swapped", "moved"] {
            let runs = 300;
            let (mut soon, mut named, mut wrong) = (0, 0, 0);
            for seed in 0..runs {
                let mut world = World::new(1000 + seed);
                let mut truth = CORNERS;
                let a = world.below(8);
                let b = (a + 1 + world.below(7)) % 8;
                let angle = world.uniform(0.0, std::f64::consts::TAU);
                match fault {
                    "swapped" => truth.swap(a, b),
                    "moved" => {
                        truth[a][0] += 0.1 * angle.cos();
                        truth[a][1] += 0.1 * angle.sin();
                    }
                    _ => {}
                }
                let mut diagnosis = Diagnosis::<f64, 8>::new(DiagnosisConfig::default());
                let (mut found, mut isolated) = (None, None);
                for n in 1..=200 {
                    let t = n as f64 * 0.2 + seed as f64;
                    let z = if known { 1.2 } else { 1.5 + (0.4 * t).sin() };
                    let tag = [4.0 + 3.0 * t.sin(), 4.0 + 3.0 * (0.7 * t).cos(), z];
                    let mut ranges = world.ranges(tag, &truth, SIGMA);
                    for (range, said) in ranges.iter_mut().zip(CORNERS) {
                        range.anchor_m = said;
                    }
                    let model = FaultModel::default();
                    let fix = if known {
                        locate_robust_2d(&ranges, 1.2, &options, &model)
                    } else {
                        locate_robust_3d(&ranges, &options, &model)
                    };
                    if let Ok(fix) = fix {
                        diagnosis.handle_fix(&ids, &ranges, &fix);
                    }
                    let finding = diagnosis.finding();
                    if finding != Finding::Nothing {
                        found = found.or(Some(n));
                    }
                    let (ia, ib) = (10 + a as u16, 10 + b as u16);
                    match finding {
                        Finding::Swapped { a, b } if fault == "swapped" => {
                            let right = [ia, ib].contains(&a) && [ia, ib].contains(&b);
                            if right {
                                isolated = isolated.or(Some(n));
                            } else {
                                wrong += 1;
                            }
                        }
                        Finding::Moved { id, .. } if fault == "moved" => {
                            if id == ia {
                                isolated = isolated.or(Some(n));
                            } else {
                                wrong += 1;
                            }
                        }
                        _ => {}
                    }
                }
                soon += usize::from(found.is_some_and(|n| n <= 50));
                named += usize::from(isolated.is_some());
            }
            println!(
                "diagnosis   {name}, {fault}: something found within 50 fixes in {:.1} %, named within 200 in {:.1} %, wrongly named in {wrong} of {} fixes   goal 100 %, 95 %",
                100.0 * soon as f64 / runs as f64,
                100.0 * named as f64 / runs as f64,
                runs * 200,
            );
        }
    }
}
