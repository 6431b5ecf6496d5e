//! Reflections among eight anchors: accuracy, right fault sets, time.

use crate::world::{CORNERS, World, distance, percentile};
use helio_positioning::{FaultModel, Options, locate_3d, locate_robust_3d};
use std::time::Instant;

const SIGMA: f64 = 0.05;

pub fn reflections() {
    for faults in 0..=3 {
        let mut world = World::new(10 + faults);
        let n = 50_000;
        let (mut ours, mut oracle, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let (mut right, mut refused) = (0, 0);
        for _ in 0..n {
            let tag = world.point([1.0, 1.0, 0.5], [7.0, 7.0, 3.0]);
            let mut ranges = world.ranges(tag, &CORNERS, SIGMA);
            let mut faulty = 0u32;
            while u64::from(faulty.count_ones()) < faults {
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
                Err(_) => {
                    refused += 1;
                    ours.push(f64::INFINITY);
                }
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
        let share = right as f64 / n as f64;
        let half = 1.96 * (share * (1.0 - share) / n as f64).sqrt();
        println!(
            "reflections {faults} of 8: P50 {:.2} (oracle {:.2}) P95 {:.2} cm; fault set right {:.2} ± {:.2} %; refused {refused} of {n}; time P50 {:.1} P99 {:.1} µs   goal P50 5.7/6.4/7.8, P95 12/15/-, right 99/97/-, <= 60 µs",
            percentile(&mut ours, 0.5) * 100.0,
            percentile(&mut oracle, 0.5) * 100.0,
            percentile(&mut ours, 0.95) * 100.0,
            share * 100.0,
            half * 100.0,
            percentile(&mut times, 0.5) * 1e6,
            percentile(&mut times, 0.99) * 1e6,
        );
    }
}
