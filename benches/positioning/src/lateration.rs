//! Plain lateration against the Cramer-Rao bound, a peer, flat ceilings and garbage.

use crate::world::{SPREAD, World, ceiling, distance, percentile};
use helio_positioning::{LocateError, Options, RangeObs, locate_2d, locate_3d};
use nalgebra::{Matrix3, Vector3};
use std::hint::black_box;
use std::time::Instant;

const SIGMA: f64 = 0.05;

fn crlb(tag: [f64; 3], anchors: &[[f64; 3]], sigma: f64) -> f64 {
    let mut info = Matrix3::zeros();
    for &a in anchors {
        let u = (Vector3::from(tag) - Vector3::from(a)).normalize();
        info += u * u.transpose() / (sigma * sigma);
    }
    info.try_inverse().map_or(f64::INFINITY, |c| c.trace())
}

pub fn bound() {
    let mut world = World::new(1);
    let n = 400_000;
    let (mut ours, mut bounds) = (0.0, 0.0);
    let mut batch = Vec::new();
    for _ in 0..n {
        let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.5]);
        let ranges = world.ranges(tag, &SPREAD, SIGMA);
        let any = Options {
            consistency: f64::INFINITY,
            ..Options::default()
        };
        let fix = locate_3d(&ranges, &any);
        let e = fix.map_or(f64::INFINITY, |f| distance(f.position_m, tag).powi(2));
        let b = crlb(tag, &SPREAD, SIGMA);
        ours += e;
        bounds += b;
        batch.push(e / b);
    }
    let mean = batch.iter().sum::<f64>() / n as f64;
    let var = batch.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n as f64;
    let half = 1.96 * (var / n as f64).sqrt() / 2.0;
    println!(
        "bound       6 anchors 3D, 5 cm: RMSE / CRLB = {:.4} ± {half:.4} (95 %, {n} fixes)   goal <= 1.01",
        (ours / bounds).sqrt()
    );
}

/// Mean seconds per call over all inputs, best of 200 rounds.
fn seconds<I>(inputs: &[I], mut call: impl FnMut(&I)) -> f64 {
    let round = |_| {
        let start = Instant::now();
        inputs.iter().for_each(&mut call);
        start.elapsed().as_secs_f64() / inputs.len() as f64
    };
    (0..200).map(round).fold(f64::INFINITY, f64::min)
}

pub fn speed() {
    use heapless::FnvIndexMap;
    use locate_rs::LocationSolver;
    let mut world = World::new(2);
    let mut known = FnvIndexMap::<u8, Vector3<f64>, 8>::new();
    for (i, &a) in SPREAD.iter().enumerate() {
        let _ = known.insert(i as u8, Vector3::from(a));
    }
    let inputs: Vec<_> = (0..1_000)
        .map(|_| {
            let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.5]);
            let ranges = world.ranges(tag, &SPREAD, SIGMA);
            let mut map = FnvIndexMap::<u8, f64, 8>::new();
            for (i, r) in ranges.iter().enumerate() {
                let _ = map.insert(i as u8, r.range_m);
            }
            (ranges, map)
        })
        .collect();
    let options = Options::default();
    let ours = seconds(&inputs, |(r, _)| {
        let _ = black_box(locate_3d(black_box(r), &options));
    });
    let line = |tolerance: f64| {
        let mut solver = LocationSolver::new(&known, tolerance);
        let peer = seconds(&inputs, |(_, m)| {
            let _ = black_box(solver.trilateration_fast(black_box(m.clone()), None));
        });
        let clone = seconds(&inputs, |(_, m)| {
            black_box(black_box(m).clone());
        });
        println!(
            "speed       6 anchors f64: ours with covariance {:.0} ns, locate-rs fast (tolerance {tolerance:.0e}) {:.0} ns (its input copy of {:.0} ns taken off): {:.2} times   goal >= 2",
            ours * 1e9,
            (peer - clone) * 1e9,
            clone * 1e9,
            (peer - clone) / ours
        );
    };
    line(1e-6);
    line(1e-3);
    let flat = ceiling(8, 4, 1.2, 0.0);
    let many: Vec<_> = (0..200)
        .map(|_| {
            let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.0]);
            world.ranges(tag, &flat, SIGMA)
        })
        .collect();
    let three = seconds(&many, |r| {
        let _ = black_box(locate_3d(black_box(r), &options));
    });
    let two = seconds(&many, |r| {
        let _ = black_box(locate_2d(black_box(r), 1.0, &options));
    });
    println!(
        "speed       32 flat anchors f64: 3D with mirror {:.2} µs, known height {:.2} µs   goal < 10 µs",
        three * 1e6,
        two * 1e6
    );
}

pub fn ceilings() {
    for (name, stagger) in [("flat", 0.0), ("±5 mm", 0.005), ("staggered ±25 cm", 0.25)] {
        let anchors = ceiling(3, 2, 3.0, stagger);
        let mut world = World::new(3);
        let n = 1_000_000;
        let (mut wrong, mut none) = (0, 0);
        let (mut xy, mut z) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for _ in 0..n {
            let tag = world.point([1.0, 1.0, 0.2], [7.0, 4.0, 2.0]);
            let ranges = world.ranges(tag, &anchors, SIGMA);
            let Ok(fix) = locate_3d(&ranges, &Options::default()) else {
                none += 1;
                continue;
            };
            let [x, y, h] = fix.position_m;
            wrong += usize::from(h > 3.0);
            xy.push(distance([x, y, 0.0], [tag[0], tag[1], 0.0]));
            z.push((h - tag[2]).abs());
        }
        println!(
            "ceilings    {name}: {wrong} wrong side, {none} refused of {n}; xy P50 {:.2} cm, z P95 {:.2} cm   goal 0; <= 5.1; <= 8.2",
            percentile(&mut xy, 0.5) * 100.0,
            percentile(&mut z, 0.95) * 100.0
        );
    }
}

pub fn fuzz() {
    let mut world = World::new(4);
    let n = 10_000_000;
    let (mut fixes, mut bad, mut slow) = (0u64, 0u64, 0u64);
    let mut kinds = std::collections::BTreeMap::<&str, u64>::new();
    let special = [
        0.0,
        -0.0,
        1.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e300,
        1e-300,
        1e4,
        -1e4,
        5e-324,
    ];
    let any = Options {
        consistency: f64::INFINITY,
        ..Options::default()
    };
    for _ in 0..n {
        let count = world.below(9);
        let odd = world.below(3) == 0;
        let observations: Vec<_> = (0..count)
            .map(|_| {
                let mut length = |scale: f64| match world.below(if odd { 8 } else { 200 }) {
                    0 => special[world.below(special.len())],
                    1 => scale.floor(),
                    2 => world.uniform(-1e4, 1e4),
                    _ => world.uniform(-1.0, 1.0) * scale,
                };
                RangeObs {
                    anchor_m: [length(10.0), length(10.0), length(3.0)],
                    range_m: length(10.0).abs(),
                    sigma_m: length(0.1).abs(),
                }
            })
            .collect();
        let start = Instant::now();
        let found = match world.below(2) {
            0 => locate_3d(&observations, &any),
            _ => locate_2d(&observations, 1.0, &any),
        };
        slow += u64::from(start.elapsed().as_micros() > 1_000);
        match found {
            Ok(f) => {
                fixes += 1;
                let finite = f.position_m.iter().all(|x| x.is_finite())
                    && f.covariance_m2.iter().flatten().all(|x| x.is_finite());
                bad += u64::from(!finite);
            }
            Err(e) => {
                let kind = match e {
                    LocateError::TooFew { .. } => "too few",
                    LocateError::Invalid { .. } => "invalid",
                    LocateError::NotConverged => "not converged",
                    LocateError::Ambiguous => "ambiguous",
                    LocateError::Coincident => "coincident",
                    LocateError::Collinear => "collinear",
                    _ => "other",
                };
                *kinds.entry(kind).or_default() += 1;
            }
        }
    }
    println!(
        "fuzz        {n} inputs: all returned, {fixes} fixes, {bad} not finite, {slow} above 1 ms; errors {kinds:?}   goal 0 not finite"
    );
}
