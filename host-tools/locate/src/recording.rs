//! Recorded ranges and the truth beside them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nalgebra::{Quaternion, UnitQuaternion, Vector3};

use crate::input::{InputError, Table, unit};
use crate::map::SiteMap;

/// Longer ranges are taken for a wrong unit, metres.
const LONGEST_M: f64 = 2_000.0;
/// Truth is not interpolated over longer gaps, seconds.
const GAP_S: f64 = 1.0;

/// One measured distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// In the recording's clock.
    pub time_s: f64,
    /// Whose.
    pub tag: u16,
    /// To which anchor.
    pub anchor: u16,
    /// As measured, metres.
    pub range_m: f64,
}

/// What the numbers of a recording are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    /// Metres.
    Range,
    /// Received power, in any unit that is linear.
    Power,
}

/// A recording of ranges, or of powers with `range_m` holding the power.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Where it was read.
    pub file: PathBuf,
    /// By rising time.
    pub samples: Vec<Sample>,
    /// What was left out, for people.
    pub notes: Vec<String>,
}

/// Reads `a3-t0`, `anchor_3`, `range_a3_tag0`, `t0-a3`, `3`: anchor and tag.
fn place_of(name: &str) -> Option<(u16, u16)> {
    let (base, _) = unit(name);
    let (mut anchor, mut tag) = (None, None);
    let mut rest = base;
    while !rest.is_empty() {
        let letters = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let (word, tail) = rest.split_at(letters);
        let digits = tail
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (number, tail) = tail.split_at(digits);
        let number = number.parse::<u16>().ok()?;
        let words = word.split(['-', '_']).filter(|w| !w.is_empty());
        let known = |w: &&str| {
            !matches!(
                *w,
                "range" | "ranges" | "dist" | "distance" | "to" | "from" | "uwb" | "power" | "lux"
            )
        };
        match words.filter(known).collect::<Vec<_>>()[..] {
            ["t" | "tag"] => tag = Some(number),
            ["a" | "anchor" | "anc" | "r" | "d" | "luminaire" | "lamp"] | []
                if anchor.is_none() =>
            {
                anchor = Some(number);
            }
            _ => return None,
        }
        rest = tail;
    }
    Some((anchor?, tag.unwrap_or(0)))
}

impl Ranges {
    /// Reads ranges. `map` names the columns of a file without a head.
    pub fn load(file: &Path, map: &SiteMap) -> Result<Self, InputError> {
        Self::read(file, map, Quantity::Range)
    }

    /// Reads received powers, in the same layouts; a column of rows is named `power`.
    pub fn load_powers(file: &Path, map: &SiteMap) -> Result<Self, InputError> {
        Self::read(file, map, Quantity::Power)
    }

    fn read(file: &Path, map: &SiteMap, quantity: Quantity) -> Result<Self, InputError> {
        let table = Table::load(file)?;
        let mut ranges = Self {
            file: file.into(),
            samples: Vec::new(),
            notes: Vec::new(),
        };
        let anchor = table.column(&["anchor", "anchor_id", "a"]);
        let value = match quantity {
            Quantity::Range => table.column(&["range", "distance", "dist", "measured"]),
            Quantity::Power => table
                .column(&["power", "received_power", "intensity", "lux"])
                .map(|(column, _)| (column, 1.0)),
        };
        if let (Some((anchor, _)), Some(value)) = (anchor, value) {
            ranges.read_long(&table, anchor, value, quantity)?;
        } else {
            ranges.read_wide(&table, map, quantity)?;
        }
        if ranges.samples.is_empty() {
            let what =
                "there is no number above zero in the file; check its columns and their units";
            return Err(InputError::whole(file, what));
        }
        if !ranges.samples.is_sorted_by_key(|s| s.time_s) {
            ranges.note("rows were not in order of time and have been sorted".into());
            ranges.samples.sort_by(|a, b| a.time_s.total_cmp(&b.time_s));
        }
        let heard: BTreeSet<u16> = ranges.samples.iter().map(|s| s.anchor).collect();
        let known = map.ids();
        let strangers: Vec<_> = heard.difference(&known).map(u16::to_string).collect();
        if strangers.len() == heard.len() && !known.is_empty() {
            let what = format!(
                "no anchor of the recording ({}) is in the map; give the map of this room",
                strangers.join(", ")
            );
            return Err(InputError::whole(file, what));
        }
        if !strangers.is_empty() && !known.is_empty() {
            ranges.note(format!("anchors not in the map: {}", strangers.join(", ")));
        }
        Ok(ranges)
    }

    fn note(&mut self, what: String) {
        self.notes.push(format!("{}: {what}", self.file.display()));
    }

    /// A row per range.
    fn read_long(
        &mut self,
        table: &Table,
        anchor: usize,
        (range, factor): (usize, f64),
        quantity: Quantity,
    ) -> Result<(), InputError> {
        let (time, per) = table.time_column();
        let tag = table.column(&["tag", "tag_id"]);
        for row in 0..table.rows.len() {
            let tag = match tag {
                Some((column, _)) => table.identity(row, column)?,
                None => 0,
            };
            let metres = table.number(row, range)? * factor;
            let sample = Sample {
                time_s: table.time(row, time, per)?,
                tag,
                anchor: table.identity(row, anchor)?,
                range_m: metres,
            };
            self.push(table, row, sample, quantity)?;
        }
        Ok(())
    }

    /// A column per anchor and tag.
    fn read_wide(
        &mut self,
        table: &Table,
        map: &SiteMap,
        quantity: Quantity,
    ) -> Result<(), InputError> {
        let (time, per) = table.time_column();
        let mut columns: Vec<(usize, u16, u16, f64)> = Vec::new();
        match &table.head {
            Some(head) => {
                let mut unused = Vec::new();
                for (at, (name, written)) in head.iter().enumerate() {
                    if at == time {
                        continue;
                    }
                    match place_of(name) {
                        Some((anchor, tag)) => {
                            let factor = match quantity {
                                Quantity::Range => unit(name).1,
                                Quantity::Power => 1.0,
                            };
                            columns.push((at, anchor, tag, factor));
                        }
                        None if written.is_empty() => {}
                        None => unused.push(written.clone()),
                    }
                }
                if columns.is_empty() {
                    let what = format!(
                        "no column is a range ({}); name them a<anchor id>-t<tag>, or give rows of time_s, tag, anchor, range_m",
                        unused.join(", ")
                    );
                    return Err(InputError::at(&table.file, 1, what));
                }
                if let Some(twin) = columns
                    .iter()
                    .enumerate()
                    .find(|(i, c)| columns[..*i].iter().any(|d| (d.1, d.2) == (c.1, c.2)))
                {
                    let what = format!(
                        "anchor {} and tag {} stand in two columns; name each once",
                        twin.1.1, twin.1.2
                    );
                    return Err(InputError::at(&table.file, 1, what));
                }
                if !unused.is_empty() {
                    self.note(format!("columns not used: {}", unused.join(", ")));
                }
            }
            None => {
                let (anchors, width) = (map.anchors.len(), table.width().saturating_sub(1));
                if anchors == 0 || width == 0 || width % anchors != 0 {
                    let line = table.rows.first().map_or(1, |(line, _)| *line);
                    let what = format!(
                        "the rows have {width} ranges, no multiple of the map's {anchors} anchors; name the columns a<anchor id>-t<tag>"
                    );
                    return Err(InputError::at(&table.file, line, what));
                }
                let tags = width / anchors;
                for at in 0..width {
                    let id = map.anchors[at / tags].id;
                    columns.push((at + 1, id, (at % tags) as u16, 1.0));
                }
            }
        }
        for row in 0..table.rows.len() {
            let time_s = table.time(row, time, per)?;
            for &(column, anchor, tag, factor) in &columns {
                let range_m = table.number(row, column)? * factor;
                let sample = Sample {
                    time_s,
                    tag,
                    anchor,
                    range_m,
                };
                self.push(table, row, sample, quantity)?;
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        table: &Table,
        row: usize,
        sample: Sample,
        quantity: Quantity,
    ) -> Result<(), InputError> {
        if quantity == Quantity::Range && sample.range_m > LONGEST_M {
            let line = table.rows.get(row).map_or(1, |(line, _)| *line);
            let what = format!(
                "a range of {} m is no range; name the column's unit (for example a1-t0_mm) or empty the field",
                sample.range_m
            );
            return Err(InputError::at(&table.file, line, what));
        }
        // Zero and below is how rangers say that they heard nothing.
        if sample.range_m > 0.0 {
            self.samples.push(sample);
        }
        Ok(())
    }

    /// Tags that were heard.
    pub fn tags(&self) -> BTreeSet<u16> {
        self.samples.iter().map(|s| s.tag).collect()
    }

    /// Ranges of one tag grouped to be solved together: an epoch ends when an anchor comes again
    /// or `window_s` after its first range.
    pub fn epochs(&self, tag: u16, window_s: f64) -> Vec<Epoch> {
        let mut epochs: Vec<Epoch> = Vec::new();
        for s in self.samples.iter().filter(|s| s.tag == tag) {
            match epochs.last_mut() {
                Some(e)
                    if s.time_s - e.samples[0].time_s <= window_s
                        && e.samples.iter().all(|o| o.anchor != s.anchor) =>
                {
                    e.samples.push(*s);
                }
                _ => epochs.push(Epoch { samples: vec![*s] }),
            }
        }
        epochs
    }
}

/// Ranges of one tag at nearly one time.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// Each to another anchor; never empty.
    pub samples: Vec<Sample>,
}

impl Epoch {
    /// Mean time of its ranges.
    pub fn time_s(&self) -> f64 {
        let first = self.samples[0].time_s;
        let past: f64 = self.samples.iter().map(|s| s.time_s - first).sum();
        first + past / self.samples.len() as f64
    }
}

/// Motion of the body that carries the tags, or of the tag itself.
#[derive(Clone, Debug)]
pub struct Truth {
    /// Where it was read.
    pub file: PathBuf,
    /// Motion by tag; one without tag holds for all.
    paths: Vec<(Option<u16>, Path3)>,
    /// Whether it has heights.
    pub has_height: bool,
    /// Whether it has an attitude.
    pub has_attitude: bool,
}

#[derive(Clone, Debug, Default)]
struct Path3 {
    time_s: Vec<f64>,
    position: Vec<Vector3<f64>>,
    /// Body to room; empty when unknown.
    attitude: Vec<UnitQuaternion<f64>>,
}

/// Where something truly was.
#[derive(Clone, Copy, Debug)]
pub struct Pose {
    /// Of the body, room frame, metres.
    pub position: Vector3<f64>,
    /// Body to room.
    pub attitude: UnitQuaternion<f64>,
}

impl Pose {
    /// A point of the body, in the room.
    pub fn point(&self, lever: [f64; 3]) -> Vector3<f64> {
        self.position + self.attitude * Vector3::from(lever)
    }
}

impl Truth {
    /// Reads the truth; `order` says what four columns of attitude hold (`wxyz`), unless their
    /// names do. Without one, those columns are passed over.
    pub fn load(file: &Path, order: &str) -> Result<Self, InputError> {
        let table = Table::load(file)?;
        let (time, per) = table.time_column();
        let axis = |names: [&str; 3]| table.column(&names);
        let named = [
            axis(["x", "pos_x", "px"]),
            axis(["y", "pos_y", "py"]),
            axis(["z", "pos_z", "pz"]),
        ];
        let (columns, third) = match named {
            [Some(x), Some(y), z] => ([x, y], z),
            _ if table.width() >= 3 && table.head.is_none() => {
                let z = (table.width() >= 4).then_some((3, 1.0));
                ([(1, 1.0), (2, 1.0)], z)
            }
            _ => {
                let what = "the truth needs columns named time_s, x_m, y_m and, where known, z_m; name them so";
                return Err(InputError::at(file, 1, what));
            }
        };
        let turns = Self::turns(&table, order, third.map_or(2, |(c, _)| c))?;
        let yaw = table.column(&["yaw", "heading_ccw"]);
        let tag = table.column(&["tag", "tag_id"]);
        let mut truth = Self {
            file: file.into(),
            paths: Vec::new(),
            has_height: third.is_some(),
            has_attitude: turns.is_some() || yaw.is_some(),
        };
        for row in 0..table.rows.len() {
            let t = table.time(row, time, per)?;
            let mut p = Vector3::zeros();
            for (k, column) in columns.iter().chain(&third).enumerate() {
                p[k] = table.number(row, column.0)? * column.1;
            }
            let turn = match (turns, yaw) {
                (Some(columns), _) => {
                    let mut q = [0.0; 4];
                    for (q, column) in q.iter_mut().zip(columns) {
                        *q = table.number(row, column)?;
                    }
                    let [w, x, y, z] = q;
                    let q = Quaternion::new(w, x, y, z);
                    (q.norm() > 0.5).then(|| UnitQuaternion::from_quaternion(q))
                }
                (None, Some((column, factor))) => {
                    let yaw = table.number(row, column)? * factor;
                    yaw.is_finite()
                        .then(|| UnitQuaternion::from_axis_angle(&Vector3::z_axis(), yaw))
                }
                _ => Some(UnitQuaternion::identity()),
            };
            // Where the tracker of the truth lost sight there is none.
            let Some(turn) = turn.filter(|_| p.iter().all(|x| x.is_finite())) else {
                continue;
            };
            let tag = match tag {
                Some((column, _)) => Some(table.identity(row, column)?),
                None => None,
            };
            let at = truth.paths.iter().position(|(whose, _)| *whose == tag);
            let at = at.unwrap_or_else(|| {
                truth.paths.push((tag, Path3::default()));
                truth.paths.len() - 1
            });
            let path = &mut truth.paths[at].1;
            match path.time_s.last() {
                Some(last) if t < *last => {
                    let line = table.rows[row].0;
                    let what = "the time is before that of the row above; sort the rows by time";
                    return Err(InputError::at(file, line, what));
                }
                Some(last) if t == *last => continue,
                _ => {}
            }
            path.time_s.push(t);
            path.position.push(p);
            path.attitude.push(turn);
        }
        if truth.paths.is_empty() {
            let what = "no row has a finite position; check the columns";
            return Err(InputError::whole(file, what));
        }
        Ok(truth)
    }

    /// Columns of w, x, y, z.
    fn turns(table: &Table, order: &str, last: usize) -> Result<Option<[usize; 4]>, InputError> {
        let names = [["qw", "q_w"], ["qx", "q_x"], ["qy", "q_y"], ["qz", "q_z"]];
        let found = names.map(|n| table.column(&n).map(|(c, _)| c));
        if let [Some(w), Some(x), Some(y), Some(z)] = found {
            return Ok(Some([w, x, y, z]));
        }
        if order.is_empty() {
            return Ok(None);
        }
        if table.width() < last + 5 {
            let what = format!(
                "the map says that four columns of attitude ({order}) follow the position; give them or remove quaternion from the map"
            );
            return Err(InputError::whole(&table.file, what));
        }
        let place = |letter| order.find(letter).map_or(0, |at| last + 1 + at);
        Ok(Some(['w', 'x', 'y', 'z'].map(place)))
    }

    /// A body at rest at a known place.
    pub fn standing(position: [f64; 3], yaw_rad: f64) -> Self {
        let turn = UnitQuaternion::from_axis_angle(&Vector3::z_axis(), yaw_rad);
        let path = Path3 {
            time_s: vec![0.0],
            position: vec![position.into()],
            attitude: vec![turn],
        };
        Self {
            file: PathBuf::from("--at"),
            paths: vec![(None, path)],
            has_height: true,
            has_attitude: true,
        }
    }

    /// Where the body is; `None` outside the recording and in its gaps. One single row holds for
    /// ever.
    pub fn at(&self, tag: u16, t: f64) -> Option<Pose> {
        let mine = self.paths.iter().find(|(whose, _)| *whose == Some(tag));
        let (_, path) = mine.or_else(|| self.paths.iter().find(|(whose, _)| whose.is_none()))?;
        if let ([position], [attitude]) = (&path.position[..], &path.attitude[..]) {
            return Some(Pose {
                position: *position,
                attitude: *attitude,
            });
        }
        let next = path.time_s.partition_point(|s| *s < t);
        let next = if next == 0 && path.time_s[0] == t {
            1
        } else {
            next
        };
        let before = next.checked_sub(1)?;
        let (t0, t1) = (path.time_s[before], *path.time_s.get(next)?);
        if t1 - t0 > GAP_S {
            return None;
        }
        let share = (t - t0) / (t1 - t0);
        let (a, b) = (path.attitude[before], path.attitude[next]);
        Some(Pose {
            position: path.position[before].lerp(&path.position[next], share),
            attitude: a.try_slerp(&b, share, 1e-9).unwrap_or(a),
        })
    }

    /// First and last time.
    pub fn span(&self) -> (f64, f64) {
        let times = self.paths.iter().flat_map(|(_, p)| &p.time_s);
        times.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), t| {
            (a.min(*t), b.max(*t))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> SiteMap {
        let anchor = |id: u16| format!("[[anchor]]\nid = {id}\nx_m = {id}\ny_m = 0\nz_m = 2\n");
        let text: String = [1, 2, 3].map(anchor).concat();
        SiteMap::parse(Path::new("m.toml"), &text).expect("right")
    }

    fn file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = dir.path().join("f.csv");
        std::fs::write(&path, text).expect("writable");
        path
    }

    #[test]
    fn columns_may_be_named_in_many_ways() {
        for (name, wanted) in [
            ("a3-t0", Some((3, 0))),
            ("a3-t1_mm", Some((3, 1))),
            ("anchor_3", Some((3, 0))),
            ("range_a3_tag2_m", Some((3, 2))),
            ("t4-a3", Some((3, 4))),
            ("3", Some((3, 0))),
            ("x_m", None),
            ("rssi3", None),
            ("a", None),
        ] {
            assert_eq!(place_of(name), wanted, "{name}");
        }
    }

    #[test]
    fn wide_long_and_headless_files_give_the_same_samples() {
        let dir = tempfile::tempdir().expect("room");
        let read = |text: &str| Ranges::load(&file(&dir, text), &map()).map(|r| r.samples);
        let wide = read("time_ms,a2_mm,a1_mm,temp\n1500,2000,1000,20\n").expect("wide");
        let long = read("anchor,time_s,range_cm\na2,1.5,200\na1,1.5,100\n").expect("long");
        let bare = read("1.5,1,2,\n").expect("headless");
        assert_eq!(wide, long);
        let mut sorted = wide;
        sorted.sort_by_key(|s| s.anchor);
        assert_eq!(sorted, bare);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused_in_a_sentence() {
        let dir = tempfile::tempdir().expect("room");
        let e = |text: &str| {
            let e = Ranges::load(&file(&dir, text), &map()).expect_err("wrong");
            e.to_string().split_once("f.csv").map(|e| e.1.to_string())
        };
        let huge = e("time_s,a1\n0,4210\n").expect("named");
        assert!(
            huge.starts_with(":2: a range of 4210 m is no range; name"),
            "{huge}"
        );
        let width = e("0,1,2\n").expect("named");
        assert!(
            width.contains("2 ranges, no multiple of the map's 3"),
            "{width}"
        );
        let foreign = e("time_s,a8\n0,1\n").expect("named");
        assert!(
            foreign.contains("no anchor of the recording (8)"),
            "{foreign}"
        );
        let none = e("time_s,rssi\n0,1\n").expect("named");
        assert!(none.contains("no column is a range"), "{none}");
    }

    #[test]
    fn asynchronous_ranges_become_epochs_that_hold_each_anchor_once() {
        let dir = tempfile::tempdir().expect("room");
        let text =
            "time_s,anchor,range_m\n0.00,1,1\n0.02,2,1\n0.04,3,1\n0.06,1,1\n0.08,2,1\n0.5,3,1\n";
        let ranges = Ranges::load(&file(&dir, text), &map()).expect("right");
        let sizes: Vec<_> = ranges
            .epochs(0, 0.1)
            .iter()
            .map(|e| e.samples.len())
            .collect();
        assert_eq!(sizes, [3, 2, 1]);
    }

    #[test]
    fn truth_is_interpolated_turned_and_not_made_up() {
        let dir = tempfile::tempdir().expect("room");
        let text = "t,x_cm,y,z,qw,qx,qy,qz\n0,0,0,1,1,0,0,0\n1,200,0,1,0.70710678,0,0,0.70710678\n9,0,0,0,1,0,0,0\n";
        let truth = Truth::load(&file(&dir, text), "").expect("right");
        let half = truth.at(0, 0.5).expect("within");
        assert!((half.position.x - 1.0).abs() < 1e-9);
        let end = truth.at(0, 1.0).expect("within").point([1.0, 0.0, 0.0]);
        assert!((end - Vector3::new(2.0, 1.0, 1.0)).norm() < 1e-6, "{end}");
        assert!(truth.at(0, 5.0).is_none() && truth.at(0, -1.0).is_none());
    }
}
