//! Positions from a recording: a fix for every epoch, a track through all ranges, and both
//! compared with the truth where there is one.

use std::collections::BTreeMap;

pub use helio_positioning::Side;
use helio_positioning::{
    FaultModel, LocateError, Options, RangeObs, Risk, Tracker, TrackerConfig, Verdict,
    locate_robust_2d, locate_robust_3d, protect_2d, protect_3d,
};
use helio_units::Instant;
use serde::Serialize;

use crate::input::InputError;
use crate::map::SiteMap;
use crate::recording::{Epoch, Ranges, Truth};

/// How to locate.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Height at which tags move, metres; `None`: three dimensions.
    pub height_m: Option<f64>,
    /// Standard deviation of that height, metres.
    pub height_sigma_m: f64,
    /// Ranges within such a time make one fix, seconds.
    pub window_s: f64,
    /// Side of a flat field of anchors.
    pub side: Side<f64>,
    /// Spectral density of acceleration, m²/s³.
    pub accel_psd: [f64; 3],
    /// Errors of ranges are alike within such a time, seconds.
    pub error_lasts_s: f64,
    /// Only this tag.
    pub tag: Option<u16>,
}

/// Spectral density of acceleration of people and vehicles indoors, m²/s³.
pub const ACCEL_PSD: [f64; 3] = [0.3, 0.3, 0.03];

impl Settings {
    /// What the map says, defaults otherwise.
    pub fn of(map: &SiteMap) -> Self {
        Self {
            height_m: map.recording.tag_height_m,
            height_sigma_m: 0.02,
            window_s: 0.1,
            side: Side::Below,
            accel_psd: map.recording.accel_psd.unwrap_or(ACCEL_PSD),
            error_lasts_s: map.recording.error_lasts_s.unwrap_or(0.0),
            tag: None,
        }
    }
}

/// A position at a time.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Recording's clock.
    pub time_s: f64,
    /// Whose.
    pub tag: u16,
    /// Fix of one epoch.
    pub fix: Option<FixRow>,
    /// Track after this epoch.
    pub track: Option<TrackRow>,
    /// Truth at this time, metres.
    pub truth_m: Option<[f64; 3]>,
}

/// A fix.
#[derive(Clone, Debug, Serialize)]
pub struct FixRow {
    /// Room frame, metres.
    pub position_m: [f64; 3],
    /// 1-sigma horizontally, metres.
    pub sigma_horizontal_m: f64,
    /// 1-sigma of the height, metres.
    pub sigma_vertical_m: f64,
    /// The horizontal error stays below this, metres; `None` when ranges contradict each other.
    pub protection_horizontal_m: Option<f64>,
    /// Ranges used.
    pub used: u8,
    /// Anchors left out as faulty.
    pub excluded: Vec<u16>,
    /// The mirror image that fits as well.
    pub mirror_m: Option<[f64; 3]>,
}

/// A point of the track.
#[derive(Clone, Debug, Serialize)]
pub struct TrackRow {
    /// Room frame, metres.
    pub position_m: [f64; 3],
    /// Metres per second.
    pub velocity_m_s: [f64; 3],
    /// 1-sigma horizontally, metres.
    pub sigma_horizontal_m: f64,
}

/// What came of a recording.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Map file and the CRC of its content.
    pub map: String,
    /// See there.
    pub map_crc: String,
    /// Ranges file.
    pub ranges: String,
    /// Truth file.
    pub truth: Option<String>,
    /// Known height, metres.
    pub height_m: Option<f64>,
    /// Per tag.
    pub tags: Vec<TagReport>,
    /// What was left out while reading.
    pub notes: Vec<String>,
    /// Every epoch; not part of the report.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

/// One tag.
#[derive(Clone, Debug, Serialize)]
pub struct TagReport {
    /// Which.
    pub tag: u16,
    /// From first to last range, seconds.
    pub duration_s: f64,
    /// Groups of ranges.
    pub epochs: usize,
    /// Of which so many gave a position.
    pub fixes: usize,
    /// The others, by reason.
    pub refused: BTreeMap<&'static str, usize>,
    /// Share of ranges left out as faulty, percent.
    pub excluded_pct: f64,
    /// Median of the horizontal protection level, metres.
    pub protection_p50_m: Option<f64>,
    /// Fixes against truth.
    pub fix_error: Option<Errors>,
    /// Tracks against truth.
    pub track_error: Option<Errors>,
    /// How often the truth was within the protection level, percent of fixes with both.
    pub within_protection_pct: Option<f64>,
}

/// Distances from the truth.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Errors {
    /// Compared positions.
    pub points: usize,
    /// Median of the horizontal error, metres.
    pub p50_m: f64,
    /// 95 % are better.
    pub p95_m: f64,
    /// Largest.
    pub max_m: f64,
    /// Root mean square.
    pub rmse_m: f64,
    /// Median of the absolute error of the height, metres; `None` when it was known.
    pub vertical_p50_m: Option<f64>,
    /// 95 % are better.
    pub vertical_p95_m: Option<f64>,
}

/// The value that a share of the values does not exceed.
pub fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    values.get((share * last as f64).round() as usize).copied()
}

impl Errors {
    fn of(pairs: &[([f64; 3], [f64; 3])], vertical: bool) -> Option<Self> {
        let flat = |(p, t): &([f64; 3], [f64; 3])| (p[0] - t[0]).hypot(p[1] - t[1]);
        let mut across: Vec<f64> = pairs.iter().map(flat).collect();
        let squares: f64 = across.iter().map(|e| e * e).sum();
        let mut up: Vec<f64> = pairs.iter().map(|(p, t)| (p[2] - t[2]).abs()).collect();
        Some(Self {
            points: pairs.len(),
            p50_m: quantile(&mut across, 0.5)?,
            p95_m: quantile(&mut across, 0.95)?,
            max_m: quantile(&mut across, 1.0)?,
            rmse_m: (squares / pairs.len() as f64).sqrt(),
            vertical_p50_m: quantile(&mut up, 0.5).filter(|_| vertical),
            vertical_p95_m: quantile(&mut up, 0.95).filter(|_| vertical),
        })
    }
}

/// Observations of an epoch with the identity of each; anchors that the map does not have are
/// passed over.
pub fn observe(map: &SiteMap, epoch: &Epoch) -> (Vec<u16>, Vec<RangeObs<f64>>) {
    let most = helio_positioning::MAX_OBSERVATIONS;
    let mut all: Vec<_> = epoch
        .samples
        .iter()
        .filter_map(|s| {
            let anchor = map.get(s.anchor)?;
            Some((s.anchor, anchor.observe(s.range_m, map.tag_bias(s.tag))))
        })
        .collect();
    if all.len() > most {
        // Of too many the shortest, which are the least disturbed.
        all.sort_by(|a, b| a.1.range_m.total_cmp(&b.1.range_m));
        all.truncate(most);
    }
    all.into_iter().unzip()
}

/// Why a fix was refused, in a word.
fn reason(e: &LocateError) -> &'static str {
    match e {
        LocateError::TooFew { .. } => "too few ranges",
        LocateError::TooMany => "too many ranges",
        LocateError::Invalid { .. } => "invalid range",
        LocateError::Coincident => "anchors coincide",
        LocateError::Collinear => "anchors in one line",
        LocateError::Ambiguous => "two positions fit",
        LocateError::Inconsistent { .. } => "ranges contradict each other",
        LocateError::NotConverged => "no convergence",
    }
}

/// One robust fix.
pub fn fix(
    observations: &[RangeObs<f64>],
    settings: &Settings,
) -> Result<helio_positioning::Fix<f64>, LocateError> {
    let options = Options {
        side: settings.side,
        height_sigma_m: settings.height_sigma_m,
        ..Options::default()
    };
    let faults = FaultModel::default();
    match settings.height_m {
        Some(h) => locate_robust_2d(observations, h, &options, &faults),
        None => locate_robust_3d(observations, &options, &faults),
    }
}

fn protection(observations: &[RangeObs<f64>], settings: &Settings) -> Option<f64> {
    let options = Options {
        side: settings.side,
        height_sigma_m: settings.height_sigma_m,
        ..Options::default()
    };
    let found = match settings.height_m {
        Some(h) => protect_2d(observations, h, &options, &Risk::default()),
        None => protect_3d(observations, &options, &Risk::default()),
    };
    found.ok().map(|p| p.horizontal_m)
}

/// The tracker for these settings.
pub fn tracker(settings: &Settings) -> Tracker<f64, 1> {
    let [x, y, z] = settings.accel_psd;
    let options = Options {
        side: settings.side,
        ..Options::default()
    };
    Tracker::new(TrackerConfig {
        accel_psd: [x, y, if settings.height_m.is_some() { 0.0 } else { z }],
        height_m: settings.height_m.map(|h| (h, settings.height_sigma_m)),
        window: helio_units::Duration::from_micros((settings.window_s * 2e6) as u64),
        options,
        ..TrackerConfig::default()
    })
}

/// How much wider a sigma has to be told to a filter that takes errors for independent, when they
/// last `lasts_s` and come every `every_s`: `sqrt(1 + 2 lasts / every)`.
pub fn widening(lasts_s: f64, every_s: f64) -> f64 {
    (1.0 + 2.0 * lasts_s / every_s.max(1e-3)).sqrt()
}

/// Locates every tag of a recording; `progress` hears epochs done and all of them.
pub fn run(
    map: &SiteMap,
    ranges: &Ranges,
    truth: Option<&Truth>,
    settings: &Settings,
    mut progress: impl FnMut(usize, usize),
) -> Result<Report, InputError> {
    let tags: Vec<u16> = match settings.tag {
        Some(tag) if ranges.tags().contains(&tag) => vec![tag],
        Some(tag) => {
            let what = format!("there is no range to tag {tag}; choose one that was heard");
            return Err(InputError::whole(&ranges.file, what));
        }
        None => ranges.tags().into_iter().collect(),
    };
    let first = ranges.samples.first().map_or(0.0, |s| s.time_s);
    let mut report = Report {
        map: map.file.display().to_string(),
        map_crc: format!("{:08x}", map.crc()),
        ranges: ranges.file.display().to_string(),
        truth: truth.map(|t| t.file.display().to_string()),
        height_m: settings.height_m,
        tags: Vec::new(),
        notes: ranges.notes.clone(),
        rows: Vec::new(),
    };
    let (mut done, mut compared) = (0, 0);
    for tag in tags {
        let epochs = ranges.epochs(tag, settings.window_s);
        let all = epochs.len();
        let mut tracker = tracker(settings);
        let mut refused = BTreeMap::new();
        let (mut heard, mut excluded) = (0, 0);
        let (mut fixes, mut tracks, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        let (mut fixed, mut within, mut bounded) = (0, 0, 0);
        let duration = epochs.last().map_or(0.0, Epoch::time_s) - epochs[0].samples[0].time_s;
        let widening = widening(settings.error_lasts_s, duration / all.max(1) as f64);
        for epoch in &epochs {
            done += 1;
            if done % 256 == 0 {
                progress(done, all);
            }
            let time_s = epoch.time_s();
            let (ids, observations) = observe(map, epoch);
            let found = fix(&observations, settings);
            let level = protection(&observations, settings);
            for s in &epoch.samples {
                if let Some(anchor) = map.get(s.anchor) {
                    let now = Instant::from_micros(((s.time_s - first).max(0.0) * 1e6) as u64);
                    let mut range = anchor.observe(s.range_m, map.tag_bias(tag));
                    range.sigma_m *= widening;
                    let _: Verdict<f64> = tracker.handle_range(now, s.anchor, range);
                }
            }
            let last = epoch.samples.last().map_or(time_s, |s| s.time_s);
            let now = Instant::from_micros(((last - first).max(0.0) * 1e6) as u64);
            let track = tracker.at(now).map(|t| TrackRow {
                position_m: t.position_m,
                velocity_m_s: t.velocity_m_s,
                sigma_horizontal_m: (t.covariance[(0, 0)] + t.covariance[(1, 1)]).sqrt(),
            });
            let true_at = |t: f64| {
                let pose = truth?.at(tag, t + map.recording.time_offset_s)?;
                let mut p: [f64; 3] = pose.point(map.lever(tag)).into();
                if !truth?.has_height {
                    p[2] = settings.height_m.unwrap_or(0.0);
                }
                Some(p)
            };
            let here = true_at(time_s);
            let fix_row = match &found {
                Ok(fix) => {
                    fixed += 1;
                    heard += ids.len();
                    excluded += fix.excluded.count_ones() as usize;
                    if let Some(level) = level {
                        levels.push(level);
                    }
                    if let Some(truth) = here {
                        fixes.push((fix.position_m, truth));
                        if let Some(level) = level {
                            let [x, y, _] = fix.position_m;
                            bounded += 1;
                            within += usize::from((x - truth[0]).hypot(y - truth[1]) <= level);
                        }
                    }
                    let left_out = ids.iter().enumerate();
                    let left_out = left_out.filter(|(i, _)| fix.excluded >> i & 1 == 1);
                    Some(FixRow {
                        position_m: fix.position_m,
                        sigma_horizontal_m: fix.sigma_horizontal_m(),
                        sigma_vertical_m: fix.sigma_vertical_m(),
                        protection_horizontal_m: level,
                        used: fix.used,
                        excluded: left_out.map(|(_, id)| *id).collect(),
                        mirror_m: fix.mirror,
                    })
                }
                Err(e) => {
                    *refused.entry(reason(e)).or_insert(0) += 1;
                    None
                }
            };
            if let (Some(track), Some(truth)) = (&track, true_at(last)) {
                tracks.push((track.position_m, truth));
            }
            report.rows.push(Row {
                time_s,
                tag,
                fix: fix_row,
                track,
                truth_m: here,
            });
        }
        compared += fixes.len();
        let vertical = settings.height_m.is_none() && truth.is_some_and(|t| t.has_height);
        report.tags.push(TagReport {
            tag,
            duration_s: duration,
            epochs: all,
            fixes: fixed,
            refused,
            excluded_pct: 100.0 * f64::from(excluded as u32) / f64::from(heard.max(1) as u32),
            protection_p50_m: quantile(&mut levels, 0.5),
            fix_error: Errors::of(&fixes, vertical),
            track_error: Errors::of(&tracks, vertical),
            within_protection_pct: (bounded > 0)
                .then(|| 100.0 * f64::from(within as u32) / f64::from(bounded as u32)),
        });
    }
    if let Some(truth) = truth
        && compared == 0
    {
        let what = format!(
            "no fix has a truth of the same time ({:.1} to {:.1} s against ranges from {first:.1} s); check that both are of one run and clock",
            truth.span().0,
            truth.span().1
        );
        return Err(InputError::whole(&truth.file, what));
    }
    Ok(report)
}

impl Report {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = String::new();
        for note in &self.notes {
            t += &format!("note: {note}\n");
        }
        let how = match self.height_m {
            Some(h) => format!("at the known height of {h:.3} m"),
            None => "in three dimensions".to_string(),
        };
        t += &format!(
            "{} with {} (CRC {}), {how}\n",
            self.ranges, self.map, self.map_crc
        );
        for g in &self.tags {
            t += &format!(
                "tag {}: {} fixes of {} epochs in {:.1} s; {:.2} % of ranges left out as faulty",
                g.tag, g.fixes, g.epochs, g.duration_s, g.excluded_pct
            );
            if let Some(level) = g.protection_p50_m {
                t += &format!("; protection level P50 {level:.2} m");
            }
            t += "\n";
            for (why, n) in &g.refused {
                t += &format!("  {n} epochs without a fix: {why}\n");
            }
            for (name, errors) in [("fixes", &g.fix_error), ("track", &g.track_error)] {
                if let Some(e) = errors {
                    t += &format!(
                        "  {name}: horizontal error P50 {:.1} cm, P95 {:.1} cm, RMSE {:.1} cm, max {:.1} cm of {}",
                        e.p50_m * 100.0,
                        e.p95_m * 100.0,
                        e.rmse_m * 100.0,
                        e.max_m * 100.0,
                        e.points
                    );
                    if let (Some(a), Some(b)) = (e.vertical_p50_m, e.vertical_p95_m) {
                        t += &format!("; height P50 {:.1} cm, P95 {:.1} cm", a * 100.0, b * 100.0);
                    }
                    t += "\n";
                }
            }
            if let Some(p) = g.within_protection_pct {
                t += &format!("  the truth was within the protection level in {p:.2} % of fixes\n");
            }
        }
        t
    }

    /// Positions as CSV.
    pub fn to_csv(&self) -> String {
        let mut t = String::from(
            "time_s,tag,fix_x_m,fix_y_m,fix_z_m,fix_sigma_m,protection_m,excluded,track_x_m,track_y_m,track_z_m,track_sigma_m,truth_x_m,truth_y_m,truth_z_m\n",
        );
        for r in &self.rows {
            let three = |p: Option<[f64; 3]>| match p {
                Some([x, y, z]) => format!("{x:.4},{y:.4},{z:.4}"),
                None => ",,".to_string(),
            };
            let one = |x: Option<f64>| x.map_or(String::new(), |x| format!("{x:.4}"));
            let fix = r.fix.as_ref();
            let excluded = fix.map_or(Vec::new(), |f| {
                f.excluded.iter().map(u16::to_string).collect::<Vec<_>>()
            });
            t += &format!(
                "{:.6},{},{},{},{},{},{},{},{}\n",
                r.time_s,
                r.tag,
                three(fix.map(|f| f.position_m)),
                one(fix.map(|f| f.sigma_horizontal_m)),
                one(fix.and_then(|f| f.protection_horizontal_m)),
                excluded.join(" "),
                three(r.track.as_ref().map(|t| t.position_m)),
                one(r.track.as_ref().map(|t| t.sigma_horizontal_m)),
                three(r.truth_m),
            );
        }
        t
    }
}
