//! Recordings: they enter at the slaves' sensors, cross the bus, and the master's estimate is
//! compared with the truth.

use std::path::Path;
use std::sync::Arc;

use helio_bus::{BusKind, Capabilities};
use helio_units::{Duration, Instant, TagId};
use serde::Serialize;

use crate::files::{CellTrace, MapSource, load_cell, load_map};
use crate::plant::{Group, Load, Noise, RangeTrace, Room, Sensors, distance, interpolate, seconds};
use crate::rack::{Rack, RackPlan, SlavePlan};
use crate::report::quantile;
use crate::scenario::{InputError, read_text};
use crate::{limits, luminaires, uid};

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
            bus: self.bus,
            seed: 1,
            strings: 1,
            cell: cell.params,
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

/// Motion of the body that carries the tags.
struct Truth {
    time_s: Vec<f64>,
    position_m: [Vec<f64>; 3],
    /// Rotates body to room, x, y, z, w.
    attitude: Option<[Vec<f64>; 4]>,
}

impl PositionReplay<'_> {
    /// Runs it; `progress` hears virtual seconds and the length of the recording.
    pub fn run(&self, mut progress: impl FnMut(f64, f64)) -> Result<PositionReport, InputError> {
        let map = load_map(self.map)?;
        let (start_s, traces) = load_ranges(self.ranges, &map)?;
        let truth = Truth::load(self.truth, &map)?;
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
            bus: self.bus,
            seed: 1,
            strings: 1,
            cell: helio_battery::defaults::NMC_5000MAH,
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
                .or(map.recording.tag_height_m.map(|m| (m * 1e3) as i32)),
            range_sigma_mm: 100,
        };
        let mut rack = Rack::new(plan, Vec::new());
        run(&mut rack, end_s, &mut progress);

        let reports = (0..tags as u16).filter_map(|tag| {
            let lever = map
                .recording
                .lever_arm_m
                .get(usize::from(tag))
                .copied()
                .unwrap_or_default();
            let mine = rack.fixes().iter().filter(|f| f.tag == TagId(tag));
            let mut errors: Vec<f64> = mine
                .filter_map(|fix| {
                    let t = start_s + seconds(fix.at) + map.recording.time_offset_s;
                    let [x, y, _] = truth.at(t, lever)?;
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

/// Seconds of a field that is a number or `YYYY-MM-DD hh:mm:ss[.fff]` (of the day then, plus whole
/// days since 1970, so that a recording may cross midnight).
fn time_field(field: &str) -> Option<f64> {
    let field = field.trim();
    if let Ok(seconds) = field.parse() {
        return Some(seconds);
    }
    let (date, time) = field.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, '-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time
        .trim_end_matches('Z')
        .splitn(3, ':')
        .map(|p| p.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    // Days from civil (Hinnant 2013), for the Gregorian calendar.
    let y = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100
        + day_of_year
        - 719_468;
    Some(days as f64 * 86_400.0 + hour * 3_600.0 + minute * 60.0 + second)
}

/// Rows of numbers behind a time, with the line they stand in.
struct TimedRows {
    file: std::path::PathBuf,
    /// `None` when the file starts with numbers at once.
    header: Option<Vec<String>>,
    rows: Vec<(usize, f64, Vec<f64>)>,
}

impl TimedRows {
    fn load(file: &Path) -> Result<Self, InputError> {
        let text = read_text(file)?;
        let wrong = |line, what: String| InputError {
            file: file.into(),
            line: Some(line),
            what,
        };
        let (mut header, mut rows) = (None, Vec::<(usize, f64, Vec<f64>)>::new());
        for (line, text) in (1..).zip(text.lines()) {
            if text.trim().is_empty() || text.starts_with('#') {
                continue;
            }
            let mut fields = text.split(',').map(str::trim);
            let first = fields.next().unwrap_or("");
            let Some(time) = time_field(first) else {
                if rows.is_empty() && header.is_none() {
                    header = Some(text.split(',').map(|h| h.trim().to_string()).collect());
                    continue;
                }
                let what =
                    format!("\"{first}\" is no time; give seconds or YYYY-MM-DD hh:mm:ss.fff");
                return Err(wrong(line, what));
            };
            let number = |field: &str| match field {
                "" => Ok(f64::NAN),
                _ => field.parse::<f64>().map_err(|_| {
                    wrong(
                        line,
                        format!("\"{field}\" is not a number; correct or remove the row"),
                    )
                }),
            };
            let values = fields.map(number).collect::<Result<Vec<_>, _>>()?;
            if let Some((_, before, row)) = rows.last() {
                if time < *before {
                    return Err(wrong(
                        line,
                        "the time is before that of the row above; sort the rows by time".into(),
                    ));
                }
                if row.len() != values.len() {
                    let what = format!(
                        "the row has {} numbers where the row above has {}; correct or remove it",
                        values.len(),
                        row.len()
                    );
                    return Err(wrong(line, what));
                }
            }
            rows.push((line, time, values));
        }
        if rows.is_empty() {
            return Err(wrong(
                1,
                "there are no rows of numbers; give at least one".into(),
            ));
        }
        Ok(Self {
            file: file.into(),
            header,
            rows,
        })
    }
}

/// Ranges of each tag and the time of the first row. Columns behind the time are named
/// `a<anchor id>-t<tag>` or, without a header, run through all anchors of the map in order, each
/// with all tags. Metres; empty, NaN or 0 where there is none.
fn load_ranges(file: &Path, map: &MapSource) -> Result<(f64, Vec<RangeTrace>), InputError> {
    let rows = TimedRows::load(file)?;
    let (first_line, start_s, width) = rows
        .rows
        .first()
        .map_or((1, 0.0, 0), |(l, t, r)| (*l, *t, r.len()));
    let wrong = |line, what| InputError {
        file: rows.file.clone(),
        line: Some(line),
        what,
    };
    let anchors = map.anchors.len();
    // Per column: place of the anchor in the map, and tag.
    let columns: Vec<(usize, usize)> = match &rows.header {
        Some(names) => {
            let place = |name: &String| {
                let (a, t) = name.strip_prefix('a')?.split_once("-t")?;
                let id: u16 = a.parse().ok()?;
                Some((
                    map.anchors.iter().position(|m| m.id == id)?,
                    t.parse().ok()?,
                ))
            };
            let parse = |name| {
                place(name).ok_or_else(|| {
                    wrong(1, format!("column \"{name}\" is no a<anchor id>-t<tag> with an anchor of the map; rename it"))
                })
            };
            names.iter().skip(1).map(parse).collect::<Result<_, _>>()?
        }
        None if width > 0 && width % anchors == 0 => {
            let tags = width / anchors;
            (0..width).map(|c| (c / tags, c % tags)).collect()
        }
        None => {
            let what = format!(
                "the rows have {width} ranges, no multiple of the map's {anchors} anchors; name the columns a<id>-t<tag>"
            );
            return Err(wrong(first_line, what));
        }
    };
    let tags = columns.iter().map(|(_, tag)| tag + 1).max().unwrap_or(0);
    if tags > 64 {
        return Err(wrong(
            1,
            format!("there are {tags} tags; a master ranges up to 64"),
        ));
    }
    let mut traces = vec![RangeTrace::default(); tags];
    for (line, time, values) in &rows.rows {
        for trace in &mut traces {
            trace.time_s.push(time - start_s);
            trace.range_m.push(vec![f64::NAN; anchors]);
        }
        for (&(anchor, tag), &metres) in columns.iter().zip(values) {
            if metres.is_finite() && !(0.0..=65.0).contains(&metres) {
                return Err(wrong(
                    *line,
                    format!("a range of {metres} m is outside 0 to 65 m; correct or empty it"),
                ));
            }
            if let Some(place) = traces[tag]
                .range_m
                .last_mut()
                .and_then(|row| row.get_mut(anchor))
            {
                *place = metres;
            }
        }
    }
    Ok((start_s, traces))
}

impl Truth {
    /// Columns: time, x, y, z in metres in the frame of the map, and where the map tells the order
    /// of the quaternion, four more that turn the body into the room.
    fn load(file: &Path, map: &MapSource) -> Result<Self, InputError> {
        let rows = TimedRows::load(file)?;
        let order = map.recording.quaternion.as_str();
        let turns = match order {
            "xyzw" => Some([3, 4, 5, 6]),
            "wxyz" => Some([4, 5, 6, 3]),
            _ => None,
        };
        let need = if turns.is_some() { 7 } else { 3 };
        if let Some((line, _, row)) = rows
            .rows
            .iter()
            .find(|(_, _, r)| r.len() < need || r[..need].iter().any(|v| !v.is_finite()))
        {
            let what = format!(
                "the row has {} numbers behind the time; give {need}: x, y, z and what the map's quaternion order asks for",
                row.len()
            );
            return Err(InputError {
                file: file.into(),
                line: Some(*line),
                what,
            });
        }
        let column = |c: usize| rows.rows.iter().map(|(_, _, r)| r[c]).collect::<Vec<f64>>();
        Ok(Self {
            time_s: rows.rows.iter().map(|(_, t, _)| *t).collect(),
            position_m: [0, 1, 2].map(column),
            attitude: turns.map(|t| t.map(column)),
        })
    }

    /// Where a point of the body is; `None` outside the recording.
    fn at(&self, t: f64, lever: [f64; 3]) -> Option<[f64; 3]> {
        if t < *self.time_s.first()? || t > *self.time_s.last()? {
            return None;
        }
        let [px, py, pz] = self
            .position_m
            .each_ref()
            .map(|p| interpolate(&self.time_s, p, t));
        let Some(attitude) = &self.attitude else {
            return Some([px, py, pz]);
        };
        // Of neighbouring rows, a few milliseconds apart: the nearer one.
        let row = self
            .time_s
            .partition_point(|&s| s < t)
            .min(self.time_s.len() - 1);
        let [x, y, z, w] = attitude.each_ref().map(|q| q[row]);
        let [a, b, c] = lever;
        // v' = v + 2 q x (q x v + w v)
        let u = [
            y * c - z * b + w * a,
            z * a - x * c + w * b,
            x * b - y * a + w * c,
        ];
        let r = [
            y * u[2] - z * u[1],
            z * u[0] - x * u[2],
            x * u[1] - y * u[0],
        ];
        Some([
            px + a + 2.0 * r[0],
            py + b + 2.0 * r[1],
            pz + c + 2.0 * r[2],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_seconds_or_dates() {
        assert_eq!(time_field("12.5"), Some(12.5));
        assert_eq!(time_field("1970-01-02 00:00:01.5"), Some(86_401.5));
        assert_eq!(
            time_field("2022-08-15 9:42:24.766"),
            Some(1_660_556_544.766)
        );
        assert_eq!(time_field("yesterday"), None);
        assert_eq!(time_field("2022-08-15"), None);
    }

    #[test]
    fn a_quarter_turn_about_the_vertical_carries_the_lever_arm_along() {
        let h = std::f64::consts::FRAC_1_SQRT_2;
        let truth = Truth {
            time_s: vec![0.0, 1.0],
            position_m: [vec![1.0, 1.0], vec![2.0, 2.0], vec![3.0, 3.0]],
            attitude: Some([vec![0.0; 2], vec![0.0; 2], vec![h; 2], vec![h; 2]]),
        };
        let [x, y, z] = truth.at(0.5, [0.1, 0.0, 0.0]).expect("within");
        assert!((x - 1.0).abs() < 1e-9 && (y - 2.1).abs() < 1e-9 && (z - 3.0).abs() < 1e-9);
        assert_eq!(truth.at(1.5, [0.0; 3]), None);
    }
}
