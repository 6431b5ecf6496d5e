//! Recordings: they enter at the slaves' sensors, cross the bus, and the master's estimate is
//! compared with the truth.

use std::path::Path;
use std::sync::Arc;

use helio_bus::{BusKind, Capabilities};
use helio_units::{Duration, Instant, TagId};
use serde::Serialize;

use crate::files::{CellTrace, MapSource, lasting, load_cell, load_map};
use crate::plant::{Group, Load, Noise, RangeTrace, Room, Sensors, distance, interpolate, seconds};
use crate::rack::{BusPlan, Rack, RackPlan, SlavePlan};
use crate::report::quantile;
use crate::scenario::InputError;
use crate::{limits, luminaires, uid};
use helio_locate::{Ranges, Truth};

/// Estimate against truth of a replayed cell.
#[derive(Clone, Debug, Serialize)]
pub struct BatteryReport {
    /// Cell file.
    pub cell: String,
    /// Trace file.
    pub trace: String,
    /// Which bus it crossed.
    pub bus: &'static str,
    /// Length of the recording.
    pub duration_s: f64,
    /// Comparisons, one per second.
    pub points: usize,
    /// Where the truth comes from.
    pub truth: &'static str,
    /// Root mean square error of the state of charge, percentage points.
    pub rmse_pct: f64,
    /// Largest error, percentage points.
    pub max_pct: f64,
    /// Share of time in which the truth lay within the stated 2-sigma.
    pub within_2_sigma_pct: f64,
    /// Estimate at the end.
    pub final_soc_pct: f64,
    /// Truth at the end.
    pub final_truth_pct: f64,
    /// Estimate and truth, once a second; not part of the report.
    #[serde(skip)]
    pub track: Vec<TrackPoint>,
}

/// Estimate and truth at one second of a recording.
#[derive(Clone, Copy, Debug)]
pub struct TrackPoint {
    /// Since the recording's start, seconds.
    pub time_s: f64,
    /// The master's estimate, `0..=1`.
    pub soc: f64,
    /// Its 1-sigma.
    pub sigma: f64,
    /// The truth, `0..=1`.
    pub truth: f64,
}

impl BatteryReport {
    /// As text for people.
    pub fn to_text(&self) -> String {
        format!(
            "{} over {} ({:.0} s): state of charge RMSE {:.2} points, max {:.2}, truth within 2 sigma {:.1} % of the time\n\
             at the end: estimated {:.2} %, true {:.2} % (truth: {})\n",
            self.trace,
            self.bus,
            self.duration_s,
            self.rmse_pct,
            self.max_pct,
            self.within_2_sigma_pct,
            self.final_soc_pct,
            self.final_truth_pct,
            self.truth,
        )
    }
}

/// What to replay through one cell.
#[derive(Clone, Debug)]
pub struct BatteryReplay<'a> {
    /// Parameter file.
    pub cell: &'a Path,
    /// Recording.
    pub trace: &'a Path,
    /// Which bus it crosses.
    pub bus: BusKind,
    /// State of charge at the recording's start, for files that count ampere-hours only.
    pub start_soc: Option<f64>,
    /// The file counts charge positive.
    pub charge_positive: bool,
    /// Compare from here on, seconds: a filter that starts from a voltage under load has to settle.
    pub settle_s: f64,
}

impl BatteryReplay<'_> {
    /// Runs it; `progress` hears virtual seconds and the length of the recording.
    pub fn run(&self, mut progress: impl FnMut(f64, f64)) -> Result<BatteryReport, InputError> {
        let cell = load_cell(self.cell)?;
        let capacity = f64::from(cell.params.capacity_mah());
        let sign = if self.charge_positive { -1.0 } else { 1.0 };
        let trace = CellTrace::load(self.trace, capacity, self.start_soc, sign)?;
        let Some(soc) = trace.soc.clone() else {
            let what = "there is no truth to compare with; add a column soc (0 to 1), or give --start-soc \
                        to count it from the tester's ampere-hours or current";
            return Err(InputError {
                file: self.trace.into(),
                line: Some(1),
                what: what.into(),
            });
        };
        let end_s = trace.duration_s();
        let sensors = Sensors {
            noise_mv: 0.0,
            noise_ma: 0.0,
            temps: 1,
            temp_c: 25.0,
        };
        let trace = Arc::new(trace);
        let group = Group::of_recording(trace.clone(), 1, sensors, Noise::new(1, 100));
        let capabilities = Capabilities {
            cells: 1,
            temps: 1,
            anchors: 0,
        };
        let plan = RackPlan {
            number: 1,
            buses: BusPlan::only(self.bus, 1),
            seed: 1,
            strings: 1,
            cell: lasting(&cell.params),
            limits: limits(&cell),
            contactors: None,
            sleep: Default::default(),
            slave_sleep: None,
            commands: Vec::new(),
            sample_period: Duration::from_millis(10),
            crystal_ppm: 50.0,
            slaves: vec![SlavePlan {
                uid: uid(1, 0),
                capabilities,
                group,
            }],
            load: Load::Constant(0.0),
            room: Room::of_recording(Vec::new(), Vec::new(), Noise::new(1, 1)),
            map: Vec::new(),
            tags: 0,
            tag_height_mm: None,
            range_sigma_mm: 1,
        };
        let mut rack = Rack::new(plan, Vec::new());
        run(&mut rack, end_s, &mut progress);

        let (mut sum, mut n, mut max, mut inside) = (0.0, 0usize, 0.0f64, 0usize);
        let mut last = (0.0, 0.0);
        let mut track = Vec::new();
        for (at, estimate, sigma) in rack.soc_track() {
            let t = seconds(*at);
            let truth = interpolate(&trace.time_s, &soc, t);
            track.push(TrackPoint {
                time_s: t,
                soc: f64::from(*estimate),
                sigma: f64::from(*sigma),
                truth,
            });
            if t < self.settle_s || t > end_s {
                continue;
            }
            let error = (f64::from(*estimate) - truth) * 100.0;
            (sum, n, max) = (sum + error * error, n + 1, max.max(error.abs()));
            inside += usize::from(error.abs() <= 200.0 * f64::from(*sigma));
            last = (f64::from(*estimate) * 100.0, truth * 100.0);
        }
        if n == 0 {
            let what = format!(
                "the recording is {end_s:.0} s long; give more than the {} s of settling",
                self.settle_s
            );
            return Err(InputError {
                file: self.trace.into(),
                line: None,
                what,
            });
        }
        Ok(BatteryReport {
            cell: self.cell.display().to_string(),
            trace: self.trace.display().to_string(),
            bus: self.bus.name(),
            duration_s: end_s,
            points: n,
            truth: if self.start_soc.is_some() {
                "counted by the recording's tester"
            } else {
                "column soc"
            },
            rmse_pct: (sum / n as f64).sqrt(),
            max_pct: max,
            within_2_sigma_pct: inside as f64 / n as f64 * 100.0,
            final_soc_pct: last.0,
            final_truth_pct: last.1,
            track,
        })
    }
}

/// Estimate against truth of replayed positions.
#[derive(Clone, Debug, Serialize)]
pub struct PositionReport {
    /// Map file.
    pub map: String,
    /// Ranges file.
    pub ranges: String,
    /// Truth file.
    pub truth: String,
    /// Which bus they crossed.
    pub bus: &'static str,
    /// Length of the recording.
    pub duration_s: f64,
    /// Per tag.
    pub tags: Vec<TagReport>,
}

/// One tag of a recording.
#[derive(Clone, Debug, Serialize)]
pub struct TagReport {
    /// Which.
    pub tag: u16,
    /// Fixes with a truth to compare with.
    pub fixes: usize,
    /// Median horizontal error, mm.
    pub p50_mm: f64,
    /// 95 % of the fixes are better, mm.
    pub p95_mm: f64,
    /// Largest, mm.
    pub max_mm: f64,
    /// Root mean square, mm.
    pub rmse_mm: f64,
}

impl PositionReport {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = format!(
            "{} over {} ({:.0} s), horizontal error\n",
            self.ranges, self.bus, self.duration_s
        );
        t += "  tag    fixes    P50 mm    P95 mm    max mm   RMSE mm\n";
        for g in &self.tags {
            t += &format!(
                "  {:>3} {:>8} {:>9.1} {:>9.1} {:>9.1} {:>9.1}\n",
                g.tag, g.fixes, g.p50_mm, g.p95_mm, g.max_mm, g.rmse_mm
            );
        }
        t
    }
}

/// What to replay through a master's map.
#[derive(Clone, Debug)]
pub struct PositionReplay<'a> {
    /// Map file.
    pub map: &'a Path,
    /// Ranges, columns as `docs/files.md` tells.
    pub ranges: &'a Path,
    /// Truth.
    pub truth: &'a Path,
    /// Which bus it crosses.
    pub bus: BusKind,
    /// Known height of the tags, mm; `None`: 3D.
    pub height_mm: Option<i32>,
}

impl PositionReplay<'_> {
    /// Runs it; `progress` hears virtual seconds and the length of the recording.
    pub fn run(&self, mut progress: impl FnMut(f64, f64)) -> Result<PositionReport, InputError> {
        let map = load_map(self.map)?;
        let (start_s, traces) = load_ranges(self.ranges, &map)?;
        let recording = &map.site.recording;
        let truth = Truth::load(self.truth, &recording.quaternion)?;
        let end_s = traces
            .iter()
            .filter_map(|t| t.time_s.last())
            .copied()
            .fold(0.0, f64::max);
        let slaves = map
            .anchors
            .iter()
            .map(|a| a.node.index() + 1)
            .max()
            .unwrap_or(0);
        let sensors = Sensors {
            noise_mv: 0.0,
            noise_ma: 0.0,
            temps: 0,
            temp_c: 25.0,
        };
        let slaves = (0..slaves).map(|i| {
            let anchors = map
                .anchors
                .iter()
                .filter(|a| a.node.index() == i)
                .map(|a| a.index + 1)
                .max();
            let trace = CellTrace {
                time_s: vec![0.0],
                current_a: vec![0.0],
                voltage_v: vec![0.0],
                temp_c: vec![25.0],
                soc: None,
            };
            SlavePlan {
                uid: uid(1, i),
                capabilities: Capabilities {
                    cells: 0,
                    temps: 0,
                    anchors: anchors.unwrap_or(0),
                },
                group: Group::of_recording(
                    Arc::new(trace),
                    0,
                    sensors,
                    Noise::new(1, 100 + i as u64),
                ),
            }
        });
        let tags = traces.len();
        let plan = RackPlan {
            number: 1,
            buses: BusPlan::only(self.bus, slaves.len()),
            seed: 1,
            strings: 1,
            cell: &helio_battery::defaults::NMC_5000MAH,
            limits: helio_battery::protection::Limits::nmc(5_000),
            contactors: None,
            sleep: Default::default(),
            slave_sleep: None,
            commands: Vec::new(),
            sample_period: Duration::from_millis(10),
            crystal_ppm: 50.0,
            slaves: slaves.collect(),
            load: Load::Constant(0.0),
            room: Room::of_recording(luminaires(&map.anchors), traces, Noise::new(1, 1)),
            map: map.anchors.clone(),
            tags: tags as u16,
            tag_height_mm: self
                .height_mm
                .or(recording.tag_height_m.map(|m| (m * 1e3) as i32)),
            range_sigma_mm: sigma_mm(&map),
        };
        let mut rack = Rack::new(plan, Vec::new());
        run(&mut rack, end_s, &mut progress);

        let reports = (0..tags as u16).filter_map(|tag| {
            let lever = map.site.lever(tag);
            let mine = rack.fixes().iter().filter(|f| f.tag == TagId(tag));
            let mut errors: Vec<f64> = mine
                .filter_map(|fix| {
                    let t = start_s + seconds(fix.at) + recording.time_offset_s;
                    let [x, y, _] = truth.at(tag, t)?.point(lever).into();
                    let [ex, ey, _] = fix.position_m;
                    Some(distance([x, y, 0.0], [ex, ey, 0.0]) * 1e3)
                })
                .collect();
            let rmse =
                (errors.iter().map(|e| e * e).sum::<f64>() / errors.len().max(1) as f64).sqrt();
            Some(TagReport {
                tag,
                fixes: errors.len(),
                p50_mm: quantile(&mut errors, 0.5)?,
                p95_mm: quantile(&mut errors, 0.95)?,
                max_mm: quantile(&mut errors, 1.0)?,
                rmse_mm: rmse,
            })
        });
        let tags: Vec<TagReport> = reports.collect();
        if tags.is_empty() {
            let what = "no fix has a truth of the same time; check that both files are of one run and the map's time_offset_s";
            return Err(InputError {
                file: self.truth.into(),
                line: None,
                what: what.into(),
            });
        }
        Ok(PositionReport {
            map: self.map.display().to_string(),
            ranges: self.ranges.display().to_string(),
            truth: self.truth.display().to_string(),
            bus: self.bus.name(),
            duration_s: end_s,
            tags,
        })
    }
}

fn run(rack: &mut Rack, end_s: f64, progress: &mut impl FnMut(f64, f64)) {
    let end = Instant::from_nanos((end_s * 1e9) as u64);
    let mut now = Instant::ZERO;
    while now < end {
        now = (now + Duration::from_secs(10)).min(end);
        rack.run_until(now);
        progress(seconds(now), end_s);
    }
}

/// 1-sigma of a range as the map tells, millimetres: the middle one of its anchors.
fn sigma_mm(map: &MapSource) -> u32 {
    let told = map.site.anchors.iter().filter_map(|a| a.sigma_m);
    let mut told: Vec<f64> = told.collect();
    quantile(&mut told, 0.5).map_or(100, |m| ((m * 1e3) as u32).max(1))
}

/// Ranges of each tag and the time of the first one. What the map says of the tag itself is taken
/// off here: a master knows biases of anchors only.
fn load_ranges(file: &Path, map: &MapSource) -> Result<(f64, Vec<RangeTrace>), InputError> {
    let ranges = Ranges::load(file, &map.site)?;
    let wrong = |what| InputError {
        file: file.into(),
        line: None,
        what,
    };
    let start_s = ranges.samples.first().map_or(0.0, |s| s.time_s);
    let tags = ranges.tags().last().map_or(0, |t| usize::from(*t) + 1);
    if tags > 64 {
        let what = format!("there is a tag {}; a master ranges tags 0 to 63", tags - 1);
        return Err(wrong(what));
    }
    if let Some(far) = ranges.samples.iter().find(|s| s.range_m > 65.0) {
        let what = format!(
            "a range of {} m at {} s is outside 0 to 65 m, which is what the bus carries; empty it",
            far.range_m, far.time_s
        );
        return Err(wrong(what));
    }
    // Rows of a table share their time; ranges one by one are gathered as far as an anchor comes again.
    let rows = ranges.samples.chunk_by(|a, b| a.time_s == b.time_s).count();
    let window_s = if ranges.samples.len() >= 2 * rows {
        0.0
    } else {
        0.1
    };
    let mut traces = vec![RangeTrace::default(); tags];
    for (tag, trace) in (0u16..).zip(&mut traces) {
        for epoch in ranges.epochs(tag, window_s) {
            let mut row = vec![f64::NAN; map.anchors.len()];
            for s in &epoch.samples {
                let place = map.anchors.iter().position(|a| a.id == s.anchor);
                if let Some(m) = place.and_then(|p| row.get_mut(p)) {
                    *m = s.range_m - map.site.tag_bias(tag);
                }
            }
            trace.time_s.push(epoch.time_s() - start_s);
            trace.range_m.push(row);
        }
    }
    Ok((start_s, traces))
}
