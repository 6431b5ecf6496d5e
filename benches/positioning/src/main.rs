//! Positioning beside its peers, in one run: `cargo run --release [-- --json] [--quick] [PART...]`.
//!
//! Without a part only the peers are measured; that is what `helio bench positioning` calls this
//! program for. Named parts of ours (`all` for all of them) are measured, too. The peers' code is
//! linked here and nowhere else: `locate-rs` is LGPL.

use std::hint::black_box;
use std::time::Instant;

use heapless::FnvIndexMap;
use helio_locate::bench::world::SPREAD;
use helio_locate::bench::{Figure, Goal, Plan, Report, inputs, run, speed};
use locate_rs::LocationSolver;
use nalgebra::Vector3;

/// Rounds over all inputs; the best counts.
const ROUNDS: usize = 200;

fn seconds<I>(inputs: &[I], mut call: impl FnMut(&I)) -> f64 {
    let round = |_| {
        let start = Instant::now();
        inputs.iter().for_each(&mut call);
        start.elapsed().as_secs_f64() / inputs.len() as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

/// `locate-rs` fast on the very ranges that ours gets.
fn locate_rs(report: &mut Report) {
    let mut known = FnvIndexMap::<u8, Vector3<f64>, 8>::new();
    for (i, &a) in SPREAD.iter().enumerate() {
        let _ = known.insert(i as u8, Vector3::from(a));
    }
    let ranges = inputs();
    let maps: Vec<_> = ranges
        .iter()
        .map(|r| {
            let mut map = FnvIndexMap::<u8, f64, 8>::new();
            for (i, r) in r.iter().enumerate() {
                let _ = map.insert(i as u8, r.range_m);
            }
            map
        })
        .collect();
    for (tolerance, goal) in [(1e-6, Goal::AtLeast(2.0)), (1e-3, Goal::Told)] {
        // Turn and turn about, so that both see the same machine.
        let mut solver = LocationSolver::new(&known, tolerance);
        let (mut ours, mut peer, mut clone) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
        let mut ratios = Vec::new();
        for _ in 0..10 {
            let o = speed(&ranges, ROUNDS / 10);
            let p = seconds(&maps, |m| {
                let _ = black_box(solver.trilateration_fast(black_box(m.clone()), None));
            });
            let c = seconds(&maps, |m| {
                black_box(black_box(m).clone());
            });
            ratios.push((p - c) / o);
            (ours, peer, clone) = (ours.min(o), peer.min(p), clone.min(c));
        }
        ratios.sort_by(f64::total_cmp);
        let ratio = (peer - clone) / ours;
        let what = format!(
            "times faster than locate-rs fast at its tolerance {tolerance:.0e}, with covariance"
        );
        let value = [ratio, ratios[0], ratios[ratios.len() - 1]];
        report
            .figures
            .push(Figure::new("peers", &what, "", goal, value, ROUNDS));
        for (what, time) in [
            ("ours, f64, with covariance", ours),
            ("locate-rs fast, its input copy taken off", peer - clone),
        ] {
            let what = format!("6 anchors 3D at {tolerance:.0e}: {what}");
            report.figures.push(Figure::new(
                "peers",
                &what,
                "ns",
                Goal::Told,
                [time * 1e9; 3],
                ROUNDS,
            ));
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|a| a == name);
    let parts: Vec<String> = args
        .iter()
        .filter(|a| !a.starts_with("--"))
        .cloned()
        .collect();
    let mut report = Report::default();
    if !parts.is_empty() {
        let plan = Plan {
            quick: has("--quick"),
            parts: if has("all") {
                Vec::new()
            } else {
                parts.clone()
            },
            data: "../../../shared/data".into(),
        };
        report = run(&plan, |part| eprintln!("{part}"));
    }
    if parts.is_empty() || has("all") {
        locate_rs(&mut report);
    }
    if has("--json") {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(e) => eprintln!("{e}"),
        }
    } else {
        print!("{}", report.to_text());
    }
}
