//! Reflections among eight anchors; integrity of fixes at a known height.

use std::time::Instant;

use helio_positioning::{FaultModel, Options, Risk, locate_3d, locate_robust_3d, protect_2d};

use super::world::{CORNERS, ROOM, World, ceiling, distance};
use super::{Figure, Goal, Plan, Report};

const SIGMA: f64 = 0.05;

/// Accuracy, right fault sets, time; beside an oracle that knows which ranges are faulty.
pub fn reflections(plan: &Plan, report: &mut Report) {
    let goals = [
        (Goal::Told, Goal::Told, Goal::Told),
        (Goal::AtMost(5.7), Goal::AtMost(12.0), Goal::AtLeast(99.0)),
        (Goal::AtMost(6.4), Goal::AtMost(15.0), Goal::AtLeast(97.0)),
        (Goal::AtMost(7.8), Goal::Told, Goal::Told),
    ];
    for (faults, goal) in goals.into_iter().enumerate() {
        one(
            plan,
            report,
            ("hall 8 x 8 x 4 m", &CORNERS, [7.0, 7.0, 3.0]),
            faults,
            goal,
        );
    }
    // The same where anchors are elsewhere: what the geometry does to the figures.
    for faults in 1..=3 {
        let told = (Goal::Told, Goal::Told, Goal::Told);
        one(
            plan,
            report,
            ("room 10 x 8 x 3 m", &ROOM, [9.0, 7.0, 2.2]),
            faults,
            told,
        );
    }
}

fn one(
    plan: &Plan,
    report: &mut Report,
    (name, anchors, far): (&str, &[[f64; 3]; 8], [f64; 3]),
    faults: usize,
    (p50, p95, set): (Goal, Goal, Goal),
) {
    let mut world = World::new(10 + faults as u64);
    let n = plan.trials(50_000);
    let (mut ours, mut oracle, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let mut right = 0;
    for _ in 0..n {
        let tag = world.point([1.0, 1.0, 0.5], far);
        let mut ranges = world.ranges(tag, anchors, SIGMA);
        let mut faulty = 0u32;
        while (faulty.count_ones() as usize) < faults {
            faulty |= 1 << world.below(8);
        }
        for (i, r) in ranges.iter_mut().enumerate() {
            if faulty >> i & 1 == 1 {
                r.range_m += world.uniform(0.5, 3.0);
            }
        }
        let start = Instant::now();
        let fix = locate_robust_3d(&ranges, &Options::default(), &FaultModel::default());
        times.push(start.elapsed().as_secs_f64());
        match fix {
            Ok(fix) => {
                right += usize::from(fix.excluded == faulty);
                ours.push(distance(fix.position_m, tag));
            }
            Err(_) => ours.push(f64::INFINITY),
        }
        let mut i = 0;
        ranges.retain(|_| {
            i += 1;
            faulty >> (i - 1) & 1 == 0
        });
        if let Ok(fix) = locate_3d(&ranges, &Options::default()) {
            oracle.push(distance(fix.position_m, tag));
        }
    }
    let told = |what: &str| format!("{name}, {faults} of 8 NLOS: {what}");
    let mut push = |f: Figure| report.figures.push(f);
    push(Figure::quantile(
        "reflections",
        &told("P50"),
        "cm",
        p50,
        &mut ours,
        0.5,
        100.0,
    ));
    push(Figure::quantile(
        "reflections",
        &told("P50 of the oracle"),
        "cm",
        Goal::Told,
        &mut oracle,
        0.5,
        100.0,
    ));
    push(Figure::quantile(
        "reflections",
        &told("P95"),
        "cm",
        p95,
        &mut ours,
        0.95,
        100.0,
    ));
    push(Figure::quantile(
        "reflections",
        &told("P95 of the oracle"),
        "cm",
        Goal::Told,
        &mut oracle,
        0.95,
        100.0,
    ));
    push(Figure::share(
        "reflections",
        &told("fault set right"),
        set,
        right,
        n,
    ));
    let limit = if p50 == Goal::Told {
        Goal::Told
    } else {
        Goal::AtMost(60.0)
    };
    push(Figure::quantile(
        "reflections",
        &told("time P50"),
        "µs",
        limit,
        &mut times,
        0.5,
        1e6,
    ));
    push(Figure::quantile(
        "reflections",
        &told("time P99"),
        "µs",
        Goal::Told,
        &mut times,
        0.99,
        1e6,
    ));
}

/// False alarms, hazardous misleading information, detection, protection level.
pub fn integrity(plan: &Plan, report: &mut Report) {
    let lamps = ceiling(4, 2, 3.0, 0.0);
    let mut world = World::new(20);
    let (options, risk) = (Options::default(), Risk::default());
    let mut trial = |bias: f64| {
        let tag = world.point([1.0, 1.0, 1.0], [10.0, 4.0, 1.000_001]);
        let mut ranges = world.ranges(tag, &lamps, SIGMA);
        ranges[world.below(8)].range_m += bias;
        let found = protect_2d(&ranges, tag[2], &options, &risk);
        found.map(|p| (distance(p.fix.position_m, tag), p))
    };
    let n = plan.trials(200_000);
    let (mut alarms, mut hazards, mut levels) = (0, 0, Vec::new());
    for _ in 0..n {
        match trial(0.0) {
            Ok((error, p)) => {
                alarms += usize::from(p.alarm);
                hazards += usize::from(error > p.horizontal_m);
                levels.push(p.horizontal_m);
            }
            Err(_) => alarms += 1,
        }
    }
    let mut missed = 0;
    for step in 0..n {
        let bias = -1.0 + 2.0 * (step % 1000) as f64 / 999.0;
        if let Ok((error, p)) = trial(bias) {
            missed += usize::from(error > p.horizontal_m);
        }
    }
    let detected = (0..n)
        .filter(|_| trial(0.4).map_or(true, |(_, p)| p.alarm))
        .count();
    let mut push = |f: Figure| report.figures.push(f);
    let zero = Goal::AtMost(0.0);
    push(Figure::share(
        "integrity",
        "false alarm (8 luminaires, known height)",
        Goal::AtMost(0.1),
        alarms,
        n,
    ));
    push(Figure::count(
        "integrity",
        "error above its level, healthy",
        zero,
        hazards,
        n,
    ));
    push(Figure::count(
        "integrity",
        "error above its level, one bias of -1 to 1 m",
        zero,
        missed,
        n,
    ));
    push(Figure::share(
        "integrity",
        "a bias of 0.4 m detected",
        Goal::AtLeast(98.0),
        detected,
        n,
    ));
    push(Figure::quantile(
        "integrity",
        "protection level P50",
        "m",
        Goal::AtMost(0.32),
        &mut levels,
        0.5,
        1.0,
    ));
}
