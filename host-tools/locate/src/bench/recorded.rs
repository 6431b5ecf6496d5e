//! The recorded trolley (data set uwb-planar): calibrated on one part, judged on another, and its map
//! spoiled on purpose.

use std::path::{Path, PathBuf};

use super::{Figure, Goal, Plan, Report};
use crate::calibrate::calibrate;
use crate::check::follow;
use crate::locate::{Errors, Settings, run};
use crate::recording::{Ranges, Truth};
use crate::{InputError, SiteMap};
use helio_positioning::Finding;

/// Anchors and tags as the data set's own tables have them. The quaternion columns of its motion
/// capture hold x, w, z, y: only so do all three tags fit.
const MAP: &str = "
[recording]
quaternion = \"xwzy\"
lever_arm_m = [[-0.0689, -0.1423, 0.0011], [-0.0750, 0.1402, 0.0016], [0.2034, 0.1451, -0.0008]]
[[anchor]]
id = 0
x_m = -3.4203
y_m = 3.0053
z_m = 1.0442
[[anchor]]
id = 1
x_m = 0.0016
y_m = 3.0110
z_m = 1.0446
[[anchor]]
id = 2
x_m = 3.6056
y_m = 2.9795
z_m = 1.0463
[[anchor]]
id = 3
x_m = 3.6011
y_m = -0.0008
z_m = 1.0422
[[anchor]]
id = 4
x_m = 3.5674
y_m = -3.0087
z_m = 1.0443
[[anchor]]
id = 5
x_m = -0.0072
y_m = -2.9652
z_m = 1.0444
[[anchor]]
id = 6
x_m = -3.4673
y_m = -2.9587
z_m = 1.0445
[[anchor]]
id = 7
x_m = -3.4858
y_m = -0.0098
z_m = 1.0457
";
/// Where the trolley stood in the static runs: x, y in metres, yaw in degrees.
const STOOD: [(&str, [f64; 3]); 3] = [
    ("static_pos1_deg_0.csv", [-1.9298, -1.2368, -0.019]),
    ("static_pos3_deg_0.csv", [1.7362, 1.2086, 1.375]),
    ("static_pos5_deg_0.csv", [-0.0475, -0.0122, 0.233]),
];
/// Height of the body when it stands, as in the fast run, metres.
const BODY_M: f64 = 0.97;

/// The part of a recording between two shares of its time.
pub fn between(ranges: &Ranges, from: f64, to: f64) -> Ranges {
    let mut part = ranges.clone();
    if let (Some(a), Some(b)) = (ranges.samples.first(), ranges.samples.last()) {
        let at = |share: f64| a.time_s + share * (b.time_s - a.time_s);
        part.samples
            .retain(|s| s.time_s >= at(from) && s.time_s <= at(to));
    }
    part
}

/// Accuracy of fixes and tracks, and the spoiled maps.
pub fn trolley(plan: &Plan, report: &mut Report) {
    let folder = plan.data.join("positioning/uwb-planar");
    if !folder.is_dir() {
        let note = format!("no recording at {}: give --data", folder.display());
        report.notes.push(note);
        return;
    }
    if let Err(e) = judge(&folder, plan, report) {
        report
            .notes
            .push(format!("the recording could not be judged: {e}"));
    }
}

fn accuracy(report: &mut Report, how: &str, fix: Option<Errors>, track: Option<Errors>) {
    let goals = [[10.0, 20.0], [8.0, 15.0]];
    for ((name, errors), goal) in [("fix", fix), ("track", track)].into_iter().zip(goals) {
        let Some(e) = errors else { continue };
        for ((q, value), most) in [("P50", e.p50_m), ("P95", e.p95_m)].into_iter().zip(goal) {
            let cm = 100.0 * value;
            report.figures.push(Figure::new(
                "recording",
                &format!("trolley, tag 0, {how}: {name} {q}"),
                "cm",
                Goal::AtMost(most),
                [cm; 3],
                e.points,
            ));
        }
    }
}

fn judge(folder: &Path, plan: &Plan, report: &mut Report) -> Result<(), InputError> {
    let file = |name: &str| -> PathBuf { folder.join(name) };
    let raw = SiteMap::parse(Path::new("uwb-planar"), MAP)?;
    let fast = Ranges::load(&file("ranges_fast.csv"), &raw)?;
    let truth = Truth::load(&file("mocap_fast.csv"), &raw.recording.quaternion)?;
    let rest = between(&fast, 1.0 / 3.0, 1.0);
    let only = |map: &SiteMap| Settings {
        tag: Some(0),
        ..Settings::of(map)
    };

    let mut map = raw.clone();
    calibrate(
        &mut map,
        &[(between(&fast, 0.0, 1.0 / 3.0), truth.clone())],
        None,
        true,
    )?;
    let found = run(&map, &rest, Some(&truth), &only(&map), |_, _| {})?;
    accuracy(
        report,
        "calibrated on the first third",
        found.tags[0].fix_error,
        found.tags[0].track_error,
    );

    let mut still = raw.clone();
    let mut stood = Vec::new();
    for (name, [x, y, yaw]) in STOOD {
        let ranges = Ranges::load(&file(name), &still)?;
        stood.push((ranges, Truth::standing([x, y, BODY_M], yaw.to_radians())));
    }
    calibrate(&mut still, &stood, None, false)?;
    still.recording.tag_height_m = Some(BODY_M);
    let found = run(&still, &fast, Some(&truth), &only(&still), |_, _| {})?;
    accuracy(
        report,
        "calibrated standing",
        found.tags[0].fix_error,
        found.tags[0].track_error,
    );
    spoiled(&map, &rest, plan, report);
    Ok(())
}

/// Displaces each anchor of the map by 10 cm along each axis, and swaps every pair.
fn spoiled(map: &SiteMap, rest: &Ranges, plan: &Plan, report: &mut Report) {
    let runs = std::slice::from_ref(rest);
    let settings = Settings::of(map);
    let judged = |map: &SiteMap, right: &dyn Fn(&Finding<f64>) -> bool| {
        let (mut found, mut named) = (None, None);
        follow(map, runs, &settings, |n, finding| {
            if *finding != Finding::Nothing {
                found = found.or(Some(n));
            }
            if right(finding) {
                named = named.or(Some(n));
            }
        });
        (
            found.is_some_and(|n| n <= 50),
            named.is_some_and(|n| n <= 200),
        )
    };
    let step = if plan.quick { 3 } else { 1 };
    let mut cases: [Vec<(bool, bool)>; 2] = Default::default();
    let count = map.anchors.len();
    for (at, [x, y]) in (0..count)
        .flat_map(|a| [[0.1, 0.0], [-0.1, 0.0], [0.0, 0.1], [0.0, -0.1]].map(|d| (a, d)))
        .step_by(step)
    {
        let mut wrong = map.clone();
        wrong.anchors[at].position_m[0] += x;
        wrong.anchors[at].position_m[1] += y;
        let id = map.anchors[at].id;
        cases[0].push(judged(
            &wrong,
            &|f| matches!(f, Finding::Moved { id: i, .. } if *i == id),
        ));
    }
    let pairs: Vec<(usize, usize)> = (0..count)
        .flat_map(|a| (a + 1..count).map(move |b| (a, b)))
        .collect();
    for (a, b) in pairs.into_iter().step_by(step) {
        let mut wrong = map.clone();
        let (p, q) = (map.anchors[a].position_m, map.anchors[b].position_m);
        wrong.anchors[a].position_m = q;
        wrong.anchors[b].position_m = p;
        let ids = [map.anchors[a].id, map.anchors[b].id];
        cases[1].push(judged(
            &wrong,
            &|f| matches!(f, Finding::Swapped { a, b } if ids.contains(a) && ids.contains(b)),
        ));
    }
    for (what, cases) in ["anchor moved 10 cm", "swapped pair"]
        .into_iter()
        .zip(cases)
    {
        let found = cases.iter().filter(|c| c.0).count();
        let named = cases.iter().filter(|c| c.1).count();
        let mut push = |f: Figure| report.figures.push(f);
        let told = |end: &str| format!("trolley, {what}: {end}");
        push(Figure::share(
            "recording",
            &told("found in 50 fixes"),
            Goal::AtLeast(100.0),
            found,
            cases.len(),
        ));
        push(Figure::share(
            "recording",
            &told("named in 200 fixes"),
            Goal::AtLeast(95.0),
            named,
            cases.len(),
        ));
    }
    let healthy = judged(map, &|f| {
        matches!(f, Finding::Moved { .. } | Finding::Swapped { .. })
    });
    let accused = usize::from(healthy.0 || healthy.1);
    let what = "trolley, right map: something found in 50 or accused in 200 fixes";
    report.figures.push(Figure::count(
        "recording",
        what,
        Goal::AtMost(0.0),
        accused,
        1,
    ));
}
