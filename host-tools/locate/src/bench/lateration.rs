//! Plain lateration against the Cramer-Rao bound, flat ceilings, garbage, time.

use std::hint::black_box;
use std::time::Instant;

use helio_positioning::{Options, RangeObs, locate_2d, locate_3d};
use nalgebra::{Matrix3, Vector3};

use super::world::{SPREAD, World, ceiling, distance};
use super::{Figure, Goal, Plan, Report};

const SIGMA: f64 = 0.05;

fn crlb(tag: [f64; 3], anchors: &[[f64; 3]], sigma: f64) -> f64 {
    let mut info = Matrix3::zeros();
    for &a in anchors {
        let u = (Vector3::from(tag) - Vector3::from(a)).normalize();
        info += u * u.transpose() / (sigma * sigma);
    }
    info.try_inverse().map_or(f64::INFINITY, |c| c.trace())
}

/// Error of six anchors in 3D against the bound.
pub fn bound(plan: &Plan, report: &mut Report) {
    let mut world = World::new(1);
    let n = plan.trials(400_000);
    let (mut squares, mut bounds) = (0.0, 0.0);
    let mut ratios = Vec::with_capacity(n);
    let any = Options {
        consistency: f64::INFINITY,
        ..Options::default()
    };
    for _ in 0..n {
        let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.5]);
        let ranges = world.ranges(tag, &SPREAD, SIGMA);
        let fix = locate_3d(&ranges, &any);
        let e = fix.map_or(f64::INFINITY, |f| distance(f.position_m, tag).powi(2));
        let b = crlb(tag, &SPREAD, SIGMA);
        squares += e;
        bounds += b;
        ratios.push(e / b);
    }
    let mean = ratios.iter().sum::<f64>() / n as f64;
    let var = ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / n as f64;
    let half = 1.96 * (var / n as f64).sqrt() / 2.0;
    let ratio = (squares / bounds).sqrt();
    report.figures.push(Figure::new(
        "bound",
        "6 anchors 3D, 5 cm: RMSE / Cramér-Rao bound",
        "",
        Goal::AtMost(1.01),
        [ratio, ratio - half, ratio + half],
        n,
    ));
}

/// Seconds per call, best of `rounds` rounds over all inputs.
fn seconds<I>(inputs: &[I], rounds: usize, mut call: impl FnMut(&I)) -> f64 {
    let round = |_| {
        let start = Instant::now();
        inputs.iter().for_each(&mut call);
        start.elapsed().as_secs_f64() / inputs.len().max(1) as f64
    };
    (0..rounds).map(round).fold(f64::INFINITY, f64::min)
}

/// Ranges of a thousand tags to the six anchors, as the peers get them, too.
pub fn inputs() -> Vec<Vec<RangeObs<f64>>> {
    let mut world = World::new(2);
    let one = |_| {
        let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.5]);
        world.ranges(tag, &SPREAD, SIGMA)
    };
    (0..1_000).map(one).collect()
}

/// Seconds of one fix of six anchors with its covariance.
pub fn speed(inputs: &[Vec<RangeObs<f64>>], rounds: usize) -> f64 {
    let options = Options::default();
    seconds(inputs, rounds, |r| {
        let _ = black_box(locate_3d(black_box(r), &options));
    })
}

/// Times of our own; ratios to peers are those of `benches/positioning`.
pub fn times(plan: &Plan, report: &mut Report) {
    let rounds = plan.trials(200).max(20);
    let ours = speed(&inputs(), rounds) * 1e9;
    let what = "one fix of 6 anchors 3D with covariance, f64";
    report.figures.push(Figure::new(
        "speed",
        what,
        "ns",
        Goal::Told,
        [ours; 3],
        rounds,
    ));
    let mut world = World::new(2);
    let flat = ceiling(8, 4, 1.2, 0.0);
    let one = |_| {
        let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.0]);
        world.ranges(tag, &flat, SIGMA)
    };
    let many: Vec<_> = (0..200).map(one).collect();
    let options = Options::default();
    let three = 1e6
        * seconds(&many, rounds, |r| {
            let _ = black_box(locate_3d(black_box(r), &options));
        });
    let two = 1e6
        * seconds(&many, rounds, |r| {
            let _ = black_box(locate_2d(black_box(r), 1.0, &options));
        });
    for (what, time) in [
        (
            "32 anchors under a flat ceiling, 3D with mirror image",
            three,
        ),
        ("32 anchors under a flat ceiling, known height", two),
    ] {
        report.figures.push(Figure::new(
            "speed",
            what,
            "µs",
            Goal::Told,
            [time; 3],
            rounds,
        ));
    }
}

/// Flat, nearly flat and staggered ceilings.
pub fn ceilings(plan: &Plan, report: &mut Report) {
    let n = plan.trials(1_000_000);
    for (name, stagger) in [("flat", 0.0), ("±5 mm", 0.005), ("staggered ±25 cm", 0.25)] {
        let anchors = ceiling(3, 2, 3.0, stagger);
        let mut world = World::new(3);
        let mut wrong = 0;
        let (mut xy, mut z) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for _ in 0..n {
            let tag = world.point([1.0, 1.0, 0.2], [7.0, 4.0, 2.0]);
            let ranges = world.ranges(tag, &anchors, SIGMA);
            let Ok(fix) = locate_3d(&ranges, &Options::default()) else {
                continue;
            };
            let [x, y, h] = fix.position_m;
            wrong += usize::from(h > 3.0);
            xy.push(distance([x, y, 0.0], [tag[0], tag[1], 0.0]));
            z.push((h - tag[2]).abs());
        }
        let told = |what: &str| format!("{name} ceiling: {what}");
        let what = told("fixes on the wrong side");
        report.figures.push(Figure::count(
            "ceilings",
            &what,
            Goal::AtMost(0.0),
            wrong,
            n,
        ));
        let what = told("xy P50");
        report.figures.push(Figure::quantile(
            "ceilings",
            &what,
            "cm",
            Goal::AtMost(5.1),
            &mut xy,
            0.5,
            100.0,
        ));
        let what = told("z P95");
        report.figures.push(Figure::quantile(
            "ceilings",
            &what,
            "cm",
            Goal::AtMost(8.2),
            &mut z,
            0.95,
            100.0,
        ));
    }
}

/// NaN, infinite, huge, tiny and coincident inputs.
pub fn fuzz(plan: &Plan, report: &mut Report) {
    let mut world = World::new(4);
    let n = plan.trials(10_000_000);
    let (mut bad, mut slow) = (0, 0);
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
        slow += usize::from(start.elapsed().as_micros() > 10_000);
        if let Ok(f) = found {
            let finite = f.position_m.iter().all(|x| x.is_finite())
                && f.covariance_m2.iter().flatten().all(|x| x.is_finite());
            bad += usize::from(!finite);
        }
    }
    let what = "garbage in: neither an error nor a finite answer";
    report
        .figures
        .push(Figure::count("fuzz", what, Goal::AtMost(0.0), bad, n));
    let what = "garbage in: calls above 10 ms (the cap is 24 evaluations)";
    report
        .figures
        .push(Figure::count("fuzz", what, Goal::Told, slow, n));
}
