//! What is wrong with a map: by itself, and against a recording of ranges.
//!
//! By itself: too few anchors, anchors in one line or plane, on top of each other, far away from
//! the rest, not calibrated; how well the floor is seen. Against a recording: anchors that are not
//! heard, that are left out again and again, that moved, that bear each other's identity. No truth is
//! needed: ranges to the other anchors are the witness.
//!
//! Errors of ranges last (`error_lasts_s` of a calibrated map), so only fixes so far apart count as
//! independent; and they depend on the direction (`systematic_m`), which bounds how small a
//! displacement can be told.

use std::collections::BTreeMap;

use helio_positioning::{Diagnosis, DiagnosisConfig, Finding};
use nalgebra::{Matrix3, Vector3};
use serde::Serialize;

use crate::dop::{self, Area};
use crate::input::InputError;
use crate::locate::{Settings, fix, observe, quantile};
use crate::map::{MAX_ANCHORS, SiteMap};
use crate::recording::{Epoch, Ranges};

/// Anchors closer than this are taken for one that stands twice, metres.
const TWIN_M: f64 = 0.1;
/// An anchor so many times farther from its neighbour than usual has a wrong unit or sign.
const LONELY: f64 = 8.0;
/// Anchors are flat when they leave their plane by less than this share of their extent.
const FLAT: f64 = 0.15;
/// Dilution above which a floor is badly seen.
const HDOP: f64 = 2.5;
/// Fixes that a verdict on an anchor needs.
const LEAST: usize = 30;
/// Displacements that do not come from moving, metres, for a map that was not calibrated.
const SYSTEMATIC_M: f64 = 0.003;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Positions suffer.
    Warning,
    /// Positions are wrong.
    Fault,
}

/// One complaint.
#[derive(Clone, Debug, Serialize)]
pub struct Complaint {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind, for programs.
    pub kind: &'static str,
    /// Anchors concerned.
    pub anchors: Vec<u16>,
    /// What is wrong and what to do.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The map.
    pub map: String,
    /// Its version.
    pub version: u32,
    /// CRC of its canonical content.
    pub crc: String,
    /// How many anchors it has.
    pub anchors: usize,
    /// The worst first.
    pub complaints: Vec<Complaint>,
    /// Against the recording, where there is one.
    pub recording: Option<Against>,
}

/// A map against a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Against {
    /// Fixes that counted as independent.
    pub fixes: usize,
    /// Seconds between them at least.
    pub apart_s: f64,
    /// Displacements that are not told from errors of ranges, metres.
    pub systematic_m: f64,
    /// After how many fixes something was found.
    pub found_after: Option<usize>,
    /// Per anchor heard.
    pub anchors: Vec<Heard>,
}

/// One anchor in a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Heard {
    /// Which.
    pub id: u16,
    /// Fixes with a range to it.
    pub fixes: usize,
    /// Of which it was left out as faulty, percent.
    pub excluded_pct: f64,
    /// Median of measured minus computed range, metres.
    pub median_m: f64,
    /// Robust spread about it, metres.
    pub spread_m: f64,
}

/// Checks a map, perhaps against recordings.
pub fn check(map: &SiteMap, runs: &[Ranges], settings: &Settings) -> Result<Report, InputError> {
    let mut report = Report {
        map: map.file.display().to_string(),
        version: map.version,
        crc: format!("{:08x}", map.crc()),
        anchors: map.anchors.len(),
        complaints: Vec::new(),
        recording: None,
    };
    report.geometry(map, settings);
    report.floor(map, settings)?;
    if !runs.is_empty() {
        report.recording(map, runs, settings);
    }
    report
        .complaints
        .sort_by_key(|c| std::cmp::Reverse(c.severity));
    Ok(report)
}

/// What came of following a recording.
pub struct Followed {
    /// Independent fixes.
    pub fixes: usize,
    /// Epochs that gave no position.
    pub refused: usize,
    /// Seconds between fixes of one tag at least.
    pub apart_s: f64,
    /// Displacements that are not told from errors of ranges, metres.
    pub systematic_m: f64,
    /// What all fixes agree on.
    pub finding: Finding<f64>,
    /// Of each anchor: residuals, and how often it was left out.
    residuals: BTreeMap<u16, (Vec<f64>, usize)>,
}

/// Shows the independent fixes of all tags to a diagnosis, in order of time; `each` hears its finding
/// after every fix, counted from 1.
pub fn follow(
    map: &SiteMap,
    runs: &[Ranges],
    settings: &Settings,
    mut each: impl FnMut(usize, &Finding<f64>),
) -> Followed {
    let apart_s = 2.0 * map.recording.error_lasts_s.unwrap_or(0.0);
    let systematic_m = map.recording.systematic_m.unwrap_or(0.0).max(SYSTEMATIC_M);
    let config = DiagnosisConfig {
        systematic_m,
        ..DiagnosisConfig::default()
    };
    let mut diagnosis = Box::new(Diagnosis::<f64, MAX_ANCHORS>::new(config));
    let mut residuals: BTreeMap<u16, (Vec<f64>, usize)> = BTreeMap::new();
    let (mut fixes, mut refused) = (0, 0);
    for ranges in runs {
        let tags = ranges
            .tags()
            .into_iter()
            .filter(|t| settings.tag.is_none_or(|o| o == *t));
        let mut epochs: Vec<(u16, Epoch)> = tags
            .flat_map(|tag| {
                ranges
                    .epochs(tag, settings.window_s)
                    .into_iter()
                    .map(move |e| (tag, e))
            })
            .collect();
        epochs.sort_by(|a, b| a.1.time_s().total_cmp(&b.1.time_s()));
        let mut last: BTreeMap<u16, f64> = BTreeMap::new();
        for (tag, epoch) in &epochs {
            let time_s = epoch.time_s();
            if last.get(tag).is_some_and(|last| time_s - last < apart_s) {
                continue;
            }
            let (ids, observations) = observe(map, epoch);
            let Ok(fix) = fix(&observations, settings) else {
                refused += 1;
                continue;
            };
            last.insert(*tag, time_s);
            fixes += 1;
            diagnosis.handle_fix(&ids, &observations, &fix);
            for (i, (id, o)) in ids.iter().zip(&observations).enumerate() {
                let d = Vector3::from(fix.position_m) - Vector3::from(o.anchor_m);
                let heard = residuals.entry(*id).or_default();
                heard.0.push(o.range_m - d.norm());
                heard.1 += usize::from(fix.excluded >> i & 1 == 1);
            }
            each(fixes, &diagnosis.finding());
        }
    }
    Followed {
        fixes,
        refused,
        apart_s,
        systematic_m,
        finding: diagnosis.finding(),
        residuals,
    }
}

impl Report {
    fn say(&mut self, severity: Severity, kind: &'static str, anchors: &[u16], what: String) {
        self.complaints.push(Complaint {
            severity,
            kind,
            anchors: anchors.to_vec(),
            what,
        });
    }

    /// Where the anchors are.
    fn geometry(&mut self, map: &SiteMap, settings: &Settings) {
        use Severity::{Fault, Note, Warning};
        let n = map.anchors.len();
        let place = |i: usize| Vector3::from(map.anchors[i].position_m);
        let mut nearest = vec![f64::INFINITY; n];
        for a in 0..n {
            for b in 0..n {
                if a == b {
                    continue;
                }
                let apart = (place(a) - place(b)).norm();
                nearest[a] = nearest[a].min(apart);
                if a < b && apart < TWIN_M {
                    let (a, b) = (map.anchors[a].id, map.anchors[b].id);
                    let what = format!(
                        "anchors {a} and {b} are {:.0} mm apart: one of them stands twice, or a place was copied; correct one",
                        apart * 1e3
                    );
                    self.say(Warning, "twins", &[a, b], what);
                }
            }
        }
        let usual = quantile(&mut nearest.clone(), 0.5).unwrap_or(0.0).max(1e-3);
        for (a, gap) in map.anchors.iter().zip(&nearest) {
            if n > 3 && *gap > LONELY * usual {
                let what = format!(
                    "anchor {} is {gap:.1} m from its nearest neighbour, the others {usual:.1} m: check its units and signs",
                    a.id
                );
                self.say(Warning, "far", &[a.id], what);
            }
        }
        let bare: Vec<u16> = map
            .anchors
            .iter()
            .filter(|a| a.sigma_m.is_none())
            .map(|a| a.id)
            .collect();
        if !bare.is_empty() {
            let what = format!(
                "{} of {n} anchors have no sigma: 50 mm is assumed; run helio map calibrate",
                bare.len()
            );
            self.say(Note, "uncalibrated", &bare, what);
        }
        let seatless: Vec<u16> = map
            .anchors
            .iter()
            .filter(|a| a.seat.is_none())
            .map(|a| a.id)
            .collect();
        if !seatless.is_empty() && map.file.extension().is_none_or(|e| e != "cbor") {
            let what = format!(
                "{} of {n} anchors have no node and index: good for recordings, but a master cannot use them",
                seatless.len()
            );
            self.say(Note, "seatless", &seatless, what);
        }
        if n < 3 {
            let what =
                format!("{n} anchors give no position; survey at least 3 (8 to detect faults)");
            return self.say(Fault, "few", &[], what);
        }
        if n < 5 {
            let what = format!(
                "{n} anchors give positions, but a faulty range cannot be told; 5 and more can"
            );
            self.say(Warning, "unchecked", &[], what);
        }
        let centre = (0..n).map(place).sum::<Vector3<f64>>() / n as f64;
        let scatter: Matrix3<f64> = (0..n)
            .map(|i| (place(i) - centre) * (place(i) - centre).transpose())
            .sum();
        let eigen = scatter.symmetric_eigen();
        let mut order = [0, 1, 2];
        order.sort_by(|a, b| eigen.eigenvalues[*a].total_cmp(&eigen.eigenvalues[*b]));
        let extent = order.map(|k| (eigen.eigenvalues[k].max(0.0) / n as f64).sqrt());
        if extent[1] < 0.01 * extent[2].max(1e-6) {
            let what =
                "all anchors are in one line: positions turn freely about it; hang one aside"
                    .to_string();
            return self.say(Fault, "collinear", &[], what);
        }
        if extent[0] < FLAT * extent[1] && settings.height_m.is_none() {
            let normal: Vector3<f64> = eigen.eigenvectors.column(order[0]).into();
            let lean = normal.z.abs().clamp(0.0, 1.0).acos().to_degrees();
            let what = if lean < 45.0 {
                format!(
                    "anchors leave their plane by {:.2} m (1 sigma) only: two mirrored positions fit and the one below is taken; give tag_height_m, or hang an anchor lower",
                    extent[0]
                )
            } else {
                "anchors are on one wall: two mirrored positions fit and neither is lower; hang an anchor on another wall".to_string()
            };
            let severity = if lean < 45.0 { Note } else { Warning };
            self.say(severity, "flat", &[], what);
        }
        if n > MAX_ANCHORS / 2 {
            let what =
                format!("{n} of at most {MAX_ANCHORS} anchors; split the site before it is full");
            self.say(Note, "large", &[], what);
        }
    }

    /// How well the floor is seen.
    fn floor(&mut self, map: &SiteMap, settings: &Settings) -> Result<(), InputError> {
        if map.anchors.len() < 3 {
            return Ok(());
        }
        let mut area = Area::of(map);
        area.known = settings.height_m.is_some();
        area.height_m = settings.height_m.unwrap_or(area.height_m);
        let dop = dop::compute(map, &area)?;
        if dop.covered_pct < 100.0 {
            let what = format!(
                "{:.1} % of the floor between the anchors have no position at a height of {:.2} m; see helio map dop --plot",
                100.0 - dop.covered_pct,
                area.height_m
            );
            self.say(Severity::Warning, "uncovered", &[], what);
        }
        if let Some([p50, p95]) = dop.hdop
            && p95 > HDOP
        {
            let what = format!(
                "horizontal dilution is {p50:.1} in the middle and {p95:.1} at the worst 5 % of the floor: errors of ranges grow by that; add anchors or spread them, see helio map dop --plot"
            );
            self.say(Severity::Warning, "dilution", &[], what);
        }
        Ok(())
    }

    /// What ranges say.
    fn recording(&mut self, map: &SiteMap, runs: &[Ranges], settings: &Settings) {
        use Severity::{Fault, Note, Warning};
        let mut found_after = None;
        let followed = follow(map, runs, settings, |n, finding| {
            if *finding != Finding::Nothing {
                found_after = found_after.or(Some(n));
            }
        });
        let Followed {
            fixes,
            refused,
            apart_s,
            systematic_m,
            finding,
            residuals,
        } = followed;
        let mut anchors = Vec::new();
        for (id, (mut off, excluded)) in residuals {
            let n = off.len();
            let median_m = quantile(&mut off, 0.5).unwrap_or(0.0);
            let mut about: Vec<f64> = off.iter().map(|x| (x - median_m).abs()).collect();
            let spread_m = 1.4826 * quantile(&mut about, 0.5).unwrap_or(0.0);
            let excluded_pct = 100.0 * excluded as f64 / n.max(1) as f64;
            if n >= LEAST && excluded_pct > 25.0 {
                let what = format!(
                    "anchor {id} contradicts the others in {excluded_pct:.0} % of fixes: it is blocked, moved or not the one the map says"
                );
                self.say(Warning, "excluded", &[id], what);
            }
            let told = map.get(id).map_or(0.0, crate::map::SiteAnchor::sigma);
            if n >= LEAST && told > 0.0 && spread_m > 2.0 * told {
                let what = format!(
                    "ranges of anchor {id} scatter by {:.0} mm where the map says {:.0} mm; run helio map calibrate",
                    spread_m * 1e3,
                    told * 1e3
                );
                self.say(Warning, "noisy", &[id], what);
            }
            anchors.push(Heard {
                id,
                fixes: n,
                excluded_pct,
                median_m,
                spread_m,
            });
        }
        let silent: Vec<u16> = map
            .ids()
            .into_iter()
            .filter(|id| !anchors.iter().any(|a| a.id == *id))
            .collect();
        if !silent.is_empty() {
            let what = format!(
                "{} anchors of the map are not heard in the recording: {}",
                silent.len(),
                silent
                    .iter()
                    .map(u16::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            self.say(Warning, "silent", &silent, what);
        }
        for note in runs.iter().flat_map(|r| &r.notes) {
            self.say(Note, "recording", &[], note.clone());
        }
        if refused > fixes {
            let what = format!(
                "{refused} of {} epochs give no position: ranges contradict each other more often than not; check identities, units and biases",
                refused + fixes
            );
            self.say(Fault, "refused", &[], what);
        }
        match finding {
            Finding::Nothing => {}
            Finding::Suspect { first, second } => {
                let what = format!(
                    "ranges disagree with the map about anchor {first} or {second}; record more, farther around them"
                );
                self.say(Warning, "suspect", &[first, second], what);
            }
            Finding::Moved {
                id,
                by_m: [x, y, z],
            } => {
                let what = format!(
                    "anchor {id} is not where the map says but {:.0} mm away ({:+.0}, {:+.0}, {:+.0} mm): survey it again, helio map survey --unknown {id}",
                    (x * x + y * y + z * z).sqrt() * 1e3,
                    x * 1e3,
                    y * 1e3,
                    z * 1e3
                );
                self.say(Fault, "moved", &[id], what);
            }
            Finding::Swapped { a, b } => {
                let what = format!(
                    "anchors {a} and {b} bear each other's identity: exchange their places in the map, or their names"
                );
                self.say(Fault, "swapped", &[a, b], what);
            }
        }
        self.recording = Some(Against {
            fixes,
            apart_s,
            systematic_m,
            found_after,
            anchors,
        });
    }

    /// The worst complaint.
    pub fn worst(&self) -> Option<Severity> {
        self.complaints.iter().map(|c| c.severity).max()
    }

    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = format!(
            "{}: version {}, {} anchors, CRC {}\n",
            self.map, self.version, self.anchors, self.crc
        );
        for c in &self.complaints {
            let how = match c.severity {
                Severity::Fault => "fault  ",
                Severity::Warning => "warning",
                Severity::Note => "note   ",
            };
            t += &format!("{how}  {}\n", c.what);
        }
        if let Some(r) = &self.recording {
            t += &format!(
                "{} independent fixes, {:.2} s apart; displacements below {:.0} mm are not told from errors of ranges\n",
                r.fixes,
                r.apart_s,
                r.systematic_m * 3e3
            );
            for a in &r.anchors {
                t += &format!(
                    "  anchor {}: {} fixes, left out in {:.1} %, residual {:+.0} ± {:.0} mm\n",
                    a.id,
                    a.fixes,
                    a.excluded_pct,
                    a.median_m * 1e3,
                    a.spread_m * 1e3
                );
            }
        }
        match self.worst() {
            None => t += "nothing to complain about\n",
            Some(Severity::Note) => t += "no fault and no warning\n",
            _ => {}
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::fmt::Write;
    use std::path::Path;

    const CORNERS: [[f64; 3]; 8] = [
        [0.0, 0.0, 4.0],
        [8.0, 0.0, 3.7],
        [8.0, 8.0, 3.9],
        [0.0, 8.0, 3.6],
        [0.0, 0.0, 0.0],
        [8.0, 0.0, 0.3],
        [8.0, 8.0, 0.1],
        [0.0, 8.0, 0.4],
    ];

    fn map(places: &[[f64; 3]]) -> SiteMap {
        let anchor = |(id, p): (usize, &[f64; 3])| {
            let [x, y, z] = p;
            format!("[[anchor]]\nid = {id}\nx_m = {x}\ny_m = {y}\nz_m = {z}\nsigma_m = 0.05\n")
        };
        let text: String = places.iter().enumerate().map(anchor).collect();
        SiteMap::parse(Path::new("m.toml"), &text).expect("right")
    }

    fn kinds(report: &Report) -> Vec<&str> {
        report.complaints.iter().map(|c| c.kind).collect()
    }

    fn bare(places: &[[f64; 3]]) -> Report {
        let map = map(places);
        check(&map, &[], &Settings::of(&map)).expect("checked")
    }

    #[test]
    fn geometry_that_gives_no_or_two_positions_is_complained_about() {
        assert_eq!(
            bare(&CORNERS).worst(),
            Some(Severity::Note),
            "{:?}",
            bare(&CORNERS)
        );
        assert!(kinds(&bare(&CORNERS[..2])).contains(&"few"));
        let line: Vec<_> = (0..5).map(|i| [f64::from(i), 0.0, 3.0]).collect();
        assert!(kinds(&bare(&line)).contains(&"collinear"));
        let flat: Vec<_> = CORNERS.iter().map(|p| [p[0] + p[2], p[1], 3.0]).collect();
        assert!(kinds(&bare(&flat)).contains(&"flat"));
        let mut twins = CORNERS;
        twins[3] = [0.0, 0.02, 4.0];
        assert!(kinds(&bare(&twins)).contains(&"twins"));
        let mut far = CORNERS;
        far[3] = [0.0, 8000.0, 4.0];
        let report = map(&far);
        let mut lonely = Report {
            map: String::new(),
            version: 1,
            crc: String::new(),
            anchors: 8,
            complaints: Vec::new(),
            recording: None,
        };
        lonely.geometry(&report, &Settings::of(&report));
        assert!(kinds(&lonely).contains(&"far"), "{lonely:?}");
    }

    fn walk(dir: &Path, truth: &[[f64; 3]; 8], map: &SiteMap) -> Ranges {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut text = String::from("time_s,a0,a1,a2,a3,a4,a5,a6,a7\n");
        for n in 0..300 {
            let t = f64::from(n) * 0.2;
            let tag = Vector3::new(
                4.0 + 3.0 * t.sin(),
                4.0 + 3.0 * (0.7 * t).cos(),
                1.5 + (0.4 * t).sin(),
            );
            let _ = write!(text, "{t:.2}");
            for a in truth {
                let noise = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                let _ = write!(
                    text,
                    ",{:.3}",
                    (tag - Vector3::from(*a)).norm() + 0.05 * noise
                );
            }
            text.push('\n');
        }
        let file = dir.join("walk.csv");
        std::fs::write(&file, text).expect("writable");
        Ranges::load(&file, map).expect("right")
    }

    #[test]
    fn a_recording_tells_moved_and_swapped_anchors_and_accuses_no_right_map() {
        let dir = tempfile::tempdir().expect("room");
        let map = map(&CORNERS);
        let against = |truth: &[[f64; 3]; 8]| {
            let runs = [walk(dir.path(), truth, &map)];
            check(&map, &runs, &Settings::of(&map)).expect("checked")
        };
        let right = against(&CORNERS);
        assert_eq!(right.worst(), Some(Severity::Note), "{right:?}");
        let mut moved = CORNERS;
        moved[2][0] += 0.1;
        let report = against(&moved);
        assert_eq!(report.complaints[0].kind, "moved", "{report:?}");
        assert_eq!(report.complaints[0].anchors, [2]);
        let mut swapped = CORNERS;
        swapped.swap(1, 6);
        let report = against(&swapped);
        assert_eq!(report.complaints[0].kind, "swapped", "{report:?}");
        assert_eq!(report.complaints[0].anchors, [1, 6]);
    }
}
