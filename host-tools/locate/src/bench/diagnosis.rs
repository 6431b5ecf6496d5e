//! Anchors that moved and pairs that bear each other's identity, in simulation.

use helio_positioning::{
    Diagnosis, DiagnosisConfig, FaultModel, Finding, Options, locate_robust_2d, locate_robust_3d,
};
use nalgebra::{Matrix3, Vector3};

use super::world::{CORNERS, World};
use super::{Figure, Goal, Plan, Report};

const SIGMA: f64 = 0.05;
const IDS: [u16; 8] = [10, 11, 12, 13, 14, 15, 16, 17];
/// Fixes of a run.
const FIXES: usize = 200;

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Swapped,
    Moved,
}

/// What a run showed: after how many fixes.
#[derive(Default)]
struct Shown {
    found: Option<usize>,
    named: Option<usize>,
    wrong: usize,
    /// Chance that somebody who knows anchor and direction sees the displacement in 50 fixes.
    clairvoyant: f64,
}

/// The upper tail of the normal distribution (C. Hastings 1955, 26.2.17 of Abramowitz and Stegun).
fn tail(x: f64) -> f64 {
    if x < 0.0 {
        return 1.0 - tail(-x);
    }
    let t = 1.0 / (1.0 + 0.231_641_9 * x);
    let poly = t
        * (0.319_381_53
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * poly
}

fn run(seed: u64, fault: Fault, known: bool) -> Shown {
    let mut world = World::new(1000 + seed);
    let mut truth = CORNERS;
    let a = world.below(8);
    let b = (a + 1 + world.below(7)) % 8;
    let angle = world.uniform(0.0, std::f64::consts::TAU);
    let by = Vector3::new(0.1 * angle.cos(), 0.1 * angle.sin(), 0.0);
    match fault {
        Fault::Swapped => truth.swap(a, b),
        Fault::Moved => {
            truth[a][0] += by.x;
            truth[a][1] += by.y;
        }
        Fault::None => {}
    }
    let mut diagnosis = Diagnosis::<f64, 8>::new(DiagnosisConfig::default());
    let mut shown = Shown::default();
    let options = Options::default();
    let model = FaultModel::default();
    let mut noncentrality = 0.0;
    for n in 1..=FIXES {
        let t = n as f64 * 0.2 + seed as f64;
        let z = if known { 1.2 } else { 1.5 + (0.4 * t).sin() };
        let tag = [4.0 + 3.0 * t.sin(), 4.0 + 3.0 * (0.7 * t).cos(), z];
        let mut ranges = world.ranges(tag, &truth, SIGMA);
        for (range, said) in ranges.iter_mut().zip(CORNERS) {
            range.anchor_m = said;
        }
        let fix = if known {
            locate_robust_2d(&ranges, 1.2, &options, &model)
        } else {
            locate_robust_3d(&ranges, &options, &model)
        };
        if let Ok(fix) = fix {
            diagnosis.handle_fix(&IDS, &ranges, &fix);
        }
        if n <= 50 {
            noncentrality += sees(tag, a, &by, known);
        }
        let finding = diagnosis.finding();
        if finding != Finding::Nothing {
            shown.found = shown.found.or(Some(n));
        }
        let right = match finding {
            Finding::Swapped { a: x, b: y } => {
                fault == Fault::Swapped && [x, y].iter().all(|id| [IDS[a], IDS[b]].contains(id))
            }
            Finding::Moved { id, .. } => fault == Fault::Moved && id == IDS[a],
            Finding::Nothing | Finding::Suspect { .. } => continue,
        };
        if right {
            shown.named = shown.named.or(Some(n));
        } else {
            shown.wrong += 1;
        }
    }
    shown.clairvoyant = 1.0 - tail(noncentrality.sqrt() - 3.09);
    shown
}

/// What one fix adds to the squared signal-to-noise ratio of a displacement that is known but for
/// its being there.
fn sees(tag: [f64; 3], moved: usize, by: &Vector3<f64>, known: bool) -> f64 {
    let mut info = Matrix3::zeros();
    let mut along = Vector3::zeros();
    for (i, anchor) in CORNERS.iter().enumerate() {
        let mut u = (Vector3::from(tag) - Vector3::from(*anchor)).normalize();
        if i == moved {
            along = u;
        }
        if known {
            u.z = 0.0;
        }
        info += u * u.transpose();
    }
    if known {
        info[(2, 2)] = 1.0;
    }
    let flat = if known {
        Vector3::new(along.x, along.y, 0.0)
    } else {
        along
    };
    let taken = info.try_inverse().map_or(0.0, |c| flat.dot(&(c * flat)));
    (1.0 - taken) * (along.dot(by) / SIGMA).powi(2)
}

/// Runs of two hundred fixes each, with a right map, a swapped pair, an anchor moved by 10 cm.
pub fn diagnosis(plan: &Plan, report: &mut Report) {
    let runs = plan.trials(1_000).max(30);
    for (name, known) in [("3D", false), ("known height", true)] {
        for fault in [Fault::None, Fault::Swapped, Fault::Moved] {
            let all: Vec<Shown> = (0..runs as u64).map(|s| run(s, fault, known)).collect();
            let within = |n: usize, of: fn(&Shown) -> Option<usize>| {
                all.iter()
                    .filter(|s| of(s).is_some_and(|at| at <= n))
                    .count()
            };
            let found: fn(&Shown) -> Option<usize> = |s| s.found;
            let named: fn(&Shown) -> Option<usize> = |s| s.named;
            let wrong: usize = all.iter().map(|s| s.wrong).sum();
            let mut share = |what: String, goal, hits, trials| {
                report
                    .figures
                    .push(Figure::share("diagnosis", &what, goal, hits, trials));
            };
            match fault {
                Fault::None => {
                    let what = format!("{name}, right map: something found in 200 fixes");
                    share(what, Goal::Told, within(FIXES, found), runs);
                    let what = format!("{name}, right map: an anchor accused by name, of fixes");
                    share(what, Goal::Told, wrong, runs * FIXES);
                }
                Fault::Swapped | Fault::Moved => {
                    let what = match fault {
                        Fault::Swapped => "swapped pair",
                        _ => "anchor moved 10 cm",
                    };
                    let all_goal = Goal::AtLeast(100.0);
                    share(
                        format!("{name}, {what}: found in 50 fixes"),
                        all_goal,
                        within(50, found),
                        runs,
                    );
                    share(
                        format!("{name}, {what}: named in 200 fixes"),
                        Goal::AtLeast(95.0),
                        within(FIXES, named),
                        runs,
                    );
                    share(
                        format!("{name}, {what}: another accused, of fixes"),
                        Goal::Told,
                        wrong,
                        runs * FIXES,
                    );
                    if fault == Fault::Moved {
                        share(
                            format!("{name}, {what}: found in 100 fixes"),
                            Goal::Told,
                            within(100, found),
                            runs,
                        );
                        let best =
                            100.0 * all.iter().map(|s| s.clairvoyant).sum::<f64>() / runs as f64;
                        report.figures.push(Figure::new(
                            "diagnosis",
                            &format!("{name}, {what}: best possible in 50 at 0.1 % false alarm"),
                            "%",
                            Goal::Told,
                            [best; 3],
                            runs,
                        ));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tail_is_that_of_the_tables() {
        for (x, q) in [
            (0.0, 0.5),
            (1.0, 0.158_655),
            (3.09, 0.001_001),
            (-2.0, 0.977_25),
        ] {
            assert!((super::tail(x) - q).abs() < 1e-5, "{x}");
        }
    }
}
