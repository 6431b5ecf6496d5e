//! A recorded run judged against motion capture: ranges of eight anchors to a tag on a trolley.
//!
//! The recording is not part of the project. It is looked for at `../shared/data` beside the
//! repository; without it the test says so and passes. Calibration sees the first third, the
//! figures are those of the rest.

use helio_positioning::{
    Anchor, AnchorMap, Calibration, FaultModel, Options, Tracker, TrackerConfig, locate_robust_2d,
};
use helio_units::Instant;
use std::path::{Path, PathBuf};

/// From the data set's description.
const ANCHORS: [[f32; 3]; 8] = [
    [-3.4203, 3.0053, 1.0442],
    [0.0016, 3.0110, 1.0446],
    [3.6056, 2.9795, 1.0463],
    [3.6011, -0.0008, 1.0422],
    [3.5674, -3.0087, 1.0443],
    [-0.0072, -2.9652, 1.0444],
    [-3.4673, -2.9587, 1.0445],
    [-3.4858, -0.0098, 1.0457],
];
const TAG: [f64; 3] = [-0.0689, -0.1423, 0.0011];

struct Row {
    seconds: f64,
    values: Vec<f64>,
}

/// Seconds of the day and the other columns; an empty field is not a number.
fn read(path: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(path).expect("readable");
    let row = |line: &str| {
        let (stamp, rest) = line.split_once(',')?;
        let clock = stamp.split_once(' ')?.1;
        let mut parts = clock.split(':').map(str::parse::<f64>);
        let (h, m, s) = (
            parts.next()?.ok()?,
            parts.next()?.ok()?,
            parts.next()?.ok()?,
        );
        let values = rest.split(',').map(|x| x.parse().unwrap_or(f64::NAN));
        Some(Row {
            seconds: h * 3600.0 + m * 60.0 + s,
            values: values.collect(),
        })
    };
    text.lines().filter_map(row).collect()
}

/// The tag's true position over time.
struct Truth {
    seconds: Vec<f64>,
    position: Vec<[f64; 3]>,
}

impl Truth {
    /// The quaternion columns hold x, w, z, y: only so the trolley stays upright and its three
    /// tags fit one set of ranges.
    fn read(path: &Path) -> Self {
        let (mut seconds, mut position) = (Vec::new(), Vec::new());
        for row in read(path) {
            let [x, y, z, _, w, qz, ..] = row.values[..] else {
                continue;
            };
            let (sin, cos) = (2.0 * qz.atan2(w)).sin_cos();
            let [a, b, c] = TAG;
            if seconds.last().is_none_or(|last| row.seconds > *last) {
                seconds.push(row.seconds);
                position.push([x + cos * a - sin * b, y + sin * a + cos * b, z + c]);
            }
        }
        Self { seconds, position }
    }

    fn at(&self, t: f64) -> Option<[f64; 3]> {
        let next = self.seconds.partition_point(|s| *s < t);
        let (t0, t1) = (
            self.seconds.get(next.checked_sub(1)?)?,
            self.seconds.get(next)?,
        );
        let (p0, p1) = (self.position[next - 1], self.position[next]);
        let share = (t - t0) / (t1 - t0);
        Some(std::array::from_fn(|k| p0[k] + share * (p1[k] - p0[k])))
    }

    fn velocity(&self, t: f64) -> Option<[f64; 3]> {
        let (a, b) = (self.at(t - 0.1)?, self.at(t + 0.1)?);
        Some(std::array::from_fn(|k| (b[k] - a[k]) / 0.2))
    }
}

fn percentiles(errors: &mut [f64]) -> (f64, f64) {
    errors.sort_by(f64::total_cmp);
    let at = |p: f64| errors[(p * (errors.len() - 1) as f64) as usize];
    (at(0.5), at(0.95))
}

fn folder() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let folder = root.parent()?.join("shared/data/positioning/uwb-planar");
    folder.is_dir().then_some(folder)
}

#[test]
fn a_recorded_trolley_is_found_within_ten_and_tracked_within_eight_centimetres() {
    let Some(folder) = folder() else {
        println!("skipped: no recording at ../shared/data/positioning/uwb-planar");
        return;
    };
    let truth = Truth::read(&folder.join("mocap_fast.csv"));
    let rows: Vec<_> = read(&folder.join("ranges_fast.csv"))
        .into_iter()
        .filter(|row| truth.velocity(row.seconds).is_some())
        .collect();
    let (first, rest) = rows.split_at(rows.len() / 3);

    let mut map = AnchorMap::<8>::new(1);
    for (id, position_m) in (0..).zip(ANCHORS) {
        let anchor = Anchor {
            id,
            position_m,
            ..Anchor::default()
        };
        map.insert(anchor).expect("eight anchors fit");
    }
    // Ranges of tag 0 stand in every third column.
    let ranges = |row: &Row, map: &AnchorMap<8>| -> Vec<(u16, _)> {
        let all = map.anchors().iter().map(|a| {
            let measured = row.values[3 * usize::from(a.id)];
            (a.id, a.observe::<f64>(measured), measured)
        });
        let there = all.filter(|(.., measured)| measured.is_finite());
        there.map(|(id, range, _)| (id, range)).collect()
    };

    let mut calibration = Calibration::<f64, 8>::default();
    let mut height = 0.0;
    for row in first {
        let place = truth.at(row.seconds).expect("filtered");
        let velocity = truth.velocity(row.seconds).expect("filtered");
        height += place[2] / first.len() as f64;
        for (id, range) in ranges(row, &map) {
            calibration.handle_sample(id, &range, place, velocity);
        }
    }
    assert_eq!(calibration.apply(&mut map), 8);
    let offset = calibration.clock_offset().expect("it moved");

    let mut tracker = Tracker::<f64, 8>::new(TrackerConfig {
        accel_psd: [0.3, 0.3, 0.0],
        height_m: Some((height, 0.02)),
        ..TrackerConfig::default()
    });
    let (mut fixes, mut tracked, mut refused) = (Vec::new(), Vec::new(), 0);
    let start = rest[0].seconds;
    for row in rest {
        let Some([x, y, _]) = truth.at(row.seconds + offset) else {
            continue;
        };
        let off = |p: [f64; 3]| (p[0] - x).hypot(p[1] - y);
        let now = Instant::from_micros(((row.seconds - start) * 1e6) as u64);
        let observations = ranges(row, &map);
        let plain: Vec<_> = observations.iter().map(|(_, range)| *range).collect();
        match locate_robust_2d(&plain, height, &Options::default(), &FaultModel::default()) {
            Ok(fix) => fixes.push(off(fix.position_m)),
            Err(_) => refused += 1,
        }
        for (id, range) in observations {
            tracker.handle_range(now, id, range);
        }
        if let Some(track) = tracker.at(now) {
            tracked.push(off(track.position_m));
        }
    }
    let ((fix50, fix95), (track50, track95)) = (percentiles(&mut fixes), percentiles(&mut tracked));
    println!(
        "{} fixes P50 {:.1} P95 {:.1} cm, {refused} refused; {} tracked P50 {:.1} P95 {:.1} cm; clock offset {:.0} ms",
        fixes.len(),
        100.0 * fix50,
        100.0 * fix95,
        tracked.len(),
        100.0 * track50,
        100.0 * track95,
        1e3 * offset,
    );
    for id in 0..8 {
        println!(
            "anchor {id}: {:.3?}",
            calibration.anchor(id).expect("calibrated")
        );
    }
    assert!(refused * 100 < rest.len(), "{refused} refused");
    assert!(fix50 <= 0.10 && fix95 <= 0.20, "{fix50} {fix95}");
    assert!(track50 <= 0.08 && track95 <= 0.15, "{track50} {track95}");
}
