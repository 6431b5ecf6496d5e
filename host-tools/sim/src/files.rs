//! Files that users hand over besides scenarios: cells, traces, anchor maps.
//!
//! Every error is one sentence that names the file, the line and the remedy.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use helio_battery::{CellData, CellExtra, CellParams};
use helio_locate::SiteMap;
use helio_master::map::MapAnchor;
use helio_units::NodeId;
use serde::Deserialize;

use crate::scenario::{InputError, parse_toml, read_text};

#[derive(Deserialize)]
#[serde(untagged)]
enum Table {
    One(f32),
    Row(Vec<f32>),
    Grid(Vec<Vec<f32>>),
}

impl Table {
    fn flat(self) -> Vec<f32> {
        match self {
            Self::One(v) => vec![v],
            Self::Row(row) => row,
            Self::Grid(rows) => rows.concat(),
        }
    }
}

/// A cell parameter file, laid out as `docs/battery.md` tells.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CellFile {
    name: String,
    chemistry: Chemistry,
    capacity_mah: f32,
    ocv_mv: Vec<f32>,
    #[serde(default)]
    ocv_mv_per_k: Vec<f32>,
    temps_c: Vec<f32>,
    #[serde(default)]
    soc_grid: Vec<f32>,
    r0_mohm: Table,
    r1_mohm: Table,
    tau1_s: Table,
    r2_mohm: Option<Table>,
    tau2_s: Option<Table>,
    hysteresis_mv: Option<Table>,
    #[serde(default = "hysteresis_rate")]
    hysteresis_rate: f32,
    sigma_mv: Option<Table>,
    r3_mohm: Option<Table>,
    tau3_s: Option<Table>,
    rk_mohm: Option<Table>,
    ik_ma: Option<Table>,
    jump_mv: Option<Table>,
    shift_mv: Option<Table>,
    resistance_doubt: Option<Table>,
    coulombic_efficiency: Option<f32>,
    #[serde(default)]
    negative_mv: Vec<f32>,
    #[serde(default)]
    negative_window: Vec<f32>,
}

fn hysteresis_rate() -> f32 {
    30.0
}

/// Family of a cell; picks its default protection limits.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Chemistry {
    /// Nickel manganese cobalt oxide and its kin, 4.2 V.
    Nmc,
    /// Lithium iron phosphate, 3.65 V.
    Lfp,
}

/// A cell as its parameter file tells.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Family.
    pub chemistry: Chemistry,
    /// Checked parameters.
    pub params: CellParams,
}

/// The parameters for as long as the program runs, as masters want them. Equal ones take memory once.
pub fn lasting(params: &CellParams) -> &'static CellParams {
    static KEPT: Mutex<Vec<&CellParams>> = Mutex::new(Vec::new());
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = kept.iter().find(|p| **p == params) {
        return same;
    }
    let params: &'static CellParams = Box::leak(Box::new(*params));
    kept.push(params);
    params
}

/// Reads and checks a cell parameter file.
pub fn load_cell(file: &Path) -> Result<Cell, InputError> {
    let text = read_text(file)?;
    let cell: CellFile = parse_toml(file, &text)?;
    let flat = |t: Option<Table>| t.map(Table::flat).unwrap_or_default();
    let (r0, r1, tau1) = (cell.r0_mohm.flat(), cell.r1_mohm.flat(), cell.tau1_s.flat());
    let (r2, tau2, hysteresis) = (
        flat(cell.r2_mohm),
        flat(cell.tau2_s),
        flat(cell.hysteresis_mv),
    );
    let [sigma, r3, tau3, rk, ik, jump, shift, doubt] = [
        cell.sigma_mv,
        cell.r3_mohm,
        cell.tau3_s,
        cell.rk_mohm,
        cell.ik_ma,
        cell.jump_mv,
        cell.shift_mv,
        cell.resistance_doubt,
    ]
    .map(flat);
    let rms = |l: &[f32]| (l.iter().map(|s| s * s).sum::<f32>() / l.len().max(1) as f32).sqrt();
    let data = CellData {
        name: &cell.name,
        capacity_mah: cell.capacity_mah,
        ocv_mv: &cell.ocv_mv,
        ocv_mv_per_k: &cell.ocv_mv_per_k,
        temps_c: &cell.temps_c,
        soc_grid: &cell.soc_grid,
        r0_mohm: &r0,
        r1_mohm: &r1,
        tau1_s: &tau1,
        r2_mohm: &r2,
        tau2_s: &tau2,
        hysteresis_mv: &hysteresis,
        hysteresis_rate: cell.hysteresis_rate,
        sigma_mv: match sigma.as_slice() {
            [] => 5.0,
            [one] => *one,
            table => rms(table),
        },
    };
    let extra = CellExtra {
        rk_mohm: &rk,
        ik_ma: &ik,
        r3_mohm: &r3,
        tau3_s: &tau3,
        jump_mv: &jump,
        shift_mv: &shift,
        resistance_doubt: &doubt,
        sigma_mv: if sigma.len() > 1 { &sigma } else { &[] },
        coulombic_efficiency: cell.coulombic_efficiency.unwrap_or(1.0),
        negative_mv: &cell.negative_mv,
        negative_window: &cell.negative_window,
    };
    let params = CellParams::new(&data).and_then(|p| p.with_extra(&extra));
    let params = params.map_err(|e| {
        // The sentence starts with the key; its line is where the user has to look.
        let what = e.to_string();
        let key: String = what
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        let starts = |line: &str| {
            line.trim_start()
                .strip_prefix(&key)
                .is_some_and(|l| l.trim_start().starts_with('='))
        };
        let line = text.lines().position(starts).map(|n| n + 1);
        InputError {
            file: file.into(),
            line,
            what,
        }
    })?;
    Ok(Cell {
        chemistry: cell.chemistry,
        params,
    })
}

/// A CSV file of numbers with named columns.
#[derive(Clone, Debug)]
pub struct Csv {
    file: PathBuf,
    header: Vec<String>,
    rows: Vec<Vec<f64>>,
    /// Line of each row, for errors.
    lines: Vec<usize>,
}

impl Csv {
    /// Reads a file whose first line names the columns. Lines that are empty or start with `#` are
    /// passed over; an empty field is not a number (NaN).
    pub fn load(file: &Path) -> Result<Self, InputError> {
        let text = read_text(file)?;
        let wrong = |line, what| InputError {
            file: file.into(),
            line: Some(line),
            what,
        };
        let mut lines = (1..)
            .zip(text.lines())
            .filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#'));
        let Some((_, head)) = lines.next() else {
            return Err(wrong(
                1,
                "the file is empty; give a header line and rows of numbers".into(),
            ));
        };
        let header: Vec<String> = head
            .split(',')
            .map(|c| c.trim().trim_matches('"').to_string())
            .collect();
        let (mut rows, mut numbers) = (Vec::new(), Vec::new());
        for (line, text) in lines {
            let mut row = Vec::with_capacity(header.len());
            for (column, field) in text.split(',').enumerate() {
                let field = field.trim();
                let value = match field {
                    "" => Ok(f64::NAN),
                    _ => field.parse::<f64>(),
                };
                row.push(value.map_err(|_| {
                    let name = header.get(column).map_or("past the last", String::as_str);
                    wrong(line, format!("\"{field}\" in column {name} is not a number; correct or remove the row"))
                })?);
            }
            if row.len() != header.len() {
                let (found, want) = (row.len(), header.len());
                return Err(wrong(
                    line,
                    format!(
                        "the row has {found} fields where the header has {want}; correct or remove it"
                    ),
                ));
            }
            rows.push(row);
            numbers.push(line);
        }
        if rows.is_empty() {
            return Err(wrong(
                1,
                "there is a header but no rows; give at least one row of numbers".into(),
            ));
        }
        Ok(Self {
            file: file.into(),
            header,
            rows,
            lines: numbers,
        })
    }

    /// The values of the first of `names` that is a column.
    pub fn column(&self, names: &[&str]) -> Result<Vec<f64>, InputError> {
        self.optional(names).ok_or_else(|| {
            let (want, have) = (names.join(" or "), self.header.join(", "));
            InputError {
                file: self.file.clone(),
                line: Some(1),
                what: format!("there is no column {want}; rename one of: {have}"),
            }
        })
    }

    /// As [`Self::column`], `None` when there is none.
    pub fn optional(&self, names: &[&str]) -> Option<Vec<f64>> {
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let place = names
            .iter()
            .find_map(|n| self.header.iter().position(|h| same(h, n)))?;
        Some(
            self.rows
                .iter()
                .filter_map(|r| r.get(place))
                .copied()
                .collect(),
        )
    }

    /// Column names as in the file.
    pub fn header(&self) -> &[String] {
        &self.header
    }

    /// The time column made to start at 0; rows must not go back in time.
    pub fn times(&self, names: &[&str]) -> Result<Vec<f64>, InputError> {
        let mut times = self.column(names)?;
        self.finite(names, &times)?;
        if let Some(n) = times.windows(2).position(|w| w[1] < w[0]) {
            return Err(self.row_error(
                n + 1,
                "the time is before that of the row above; sort the rows by time",
            ));
        }
        let start = times.first().copied().unwrap_or(0.0);
        times.iter_mut().for_each(|t| *t -= start);
        Ok(times)
    }

    /// Refuses a column that has holes.
    pub fn finite(&self, names: &[&str], values: &[f64]) -> Result<(), InputError> {
        match values.iter().position(|v| !v.is_finite()) {
            Some(n) => Err(self.row_error(
                n,
                &format!(
                    "{} is missing; fill it in or remove the row",
                    names.join(" or ")
                ),
            )),
            None => Ok(()),
        }
    }

    /// An error about row `n`, from 0.
    pub fn row_error(&self, n: usize, what: &str) -> InputError {
        InputError {
            file: self.file.clone(),
            line: self.lines.get(n).copied(),
            what: what.into(),
        }
    }
}

/// What a cell went through: a recording, or the output of a detailed model.
#[derive(Clone, Debug)]
pub struct CellTrace {
    /// Since the start, seconds, rising.
    pub time_s: Vec<f64>,
    /// Discharge positive, amperes.
    pub current_a: Vec<f64>,
    /// Volts.
    pub voltage_v: Vec<f64>,
    /// °C; 25 where the file has none.
    pub temp_c: Vec<f64>,
    /// True state of charge, `0..=1`, where the file tells it or ampere-hours from which it follows.
    pub soc: Option<Vec<f64>>,
}

const TIME: [&str; 4] = ["time_s", "time", "Time [s]", "t"];
const CURRENT: [&str; 5] = ["current_a", "current", "Current [A]", "I[A]", "i"];

impl CellTrace {
    /// Reads `time_s, current_a, voltage_v[, temperature_c][, soc]`; common other names are known.
    /// Without a column `soc` the truth is counted from `soc_start` with `capacity_mah`: by the
    /// tester's `discharge_ah` and `charge_ah` where there are such columns, else by its current. `sign` is -1 for files that count charge positive.
    pub fn load(
        file: &Path,
        capacity_mah: f64,
        soc_start: Option<f64>,
        sign: f64,
    ) -> Result<Self, InputError> {
        let csv = Csv::load(file)?;
        let time_s = csv.times(&TIME)?;
        let mut current_a = csv.column(&CURRENT)?;
        csv.finite(&CURRENT, &current_a)?;
        current_a.iter_mut().for_each(|c| *c *= sign);
        const VOLTAGE: [&str; 5] = ["voltage_v", "voltage", "Voltage [V]", "U[V]", "v"];
        let voltage_v = csv.column(&VOLTAGE)?;
        csv.finite(&VOLTAGE, &voltage_v)?;
        if let Some(n) = voltage_v.iter().position(|v| !(0.0..=6.0).contains(v)) {
            return Err(csv.row_error(
                n,
                "the voltage is not that of one cell (0 to 6 V); give volts of a single cell",
            ));
        }
        let temp_c = csv.optional(&[
            "temperature_c",
            "temp_c",
            "temperature",
            "Temperature [degC]",
        ]);
        let temp_c = temp_c.unwrap_or_else(|| vec![25.0; time_s.len()]);
        csv.finite(&["temperature_c"], &temp_c)?;
        let counted = || {
            let out = csv.optional(&["discharge_ah", "disAh"])?;
            let into = csv.optional(&["charge_ah", "chgAh"])?;
            let start = soc_start?;
            let first = out.first()? - into.first()?;
            Some(
                out.iter()
                    .zip(&into)
                    .map(|(o, i)| start - (o - i - first) * 1e3 / capacity_mah)
                    .collect(),
            )
        };
        let integrated = || {
            let mut soc = soc_start?;
            let steps = time_s.windows(2).zip(current_a.windows(2));
            let rest = steps.map(|(t, i)| {
                soc -= (t[1] - t[0]) * (i[0] + i[1]) / 2.0 / (3.6 * capacity_mah);
                soc
            });
            Some(soc_start.into_iter().chain(rest).collect())
        };
        let soc = csv.optional(&["soc", "soc_true", "SOC"]);
        let soc = soc.or_else(counted).or_else(integrated);
        Ok(Self {
            time_s,
            current_a,
            voltage_v,
            temp_c,
            soc,
        })
    }

    /// Length in seconds.
    pub fn duration_s(&self) -> f64 {
        self.time_s.last().copied().unwrap_or(0.0)
    }
}

/// Current that drives a string, repeated from its end.
pub fn load_current(file: &Path) -> Result<(Vec<f64>, Vec<f64>), InputError> {
    let csv = Csv::load(file)?;
    let time_s = csv.times(&TIME)?;
    let current_a = csv.column(&CURRENT)?;
    csv.finite(&CURRENT, &current_a)?;
    Ok((time_s, current_a))
}

/// An anchor map file.
#[derive(Clone, Debug)]
pub struct MapSource {
    /// All that the file says.
    pub site: SiteMap,
    /// Its anchors as the master has them, by rising identity.
    pub anchors: Vec<MapAnchor>,
}

impl From<helio_locate::InputError> for InputError {
    fn from(e: helio_locate::InputError) -> Self {
        Self {
            file: e.file,
            line: e.line,
            what: e.what,
        }
    }
}

/// Reads and checks an anchor map file, TOML or CBOR. Where no anchor has a seat, each gets one of its
/// own, in order: a recording does not know which slave ran them.
pub fn load_map(file: &Path) -> Result<MapSource, InputError> {
    let site = SiteMap::load(file)?;
    let wrong = |what| InputError {
        file: file.into(),
        line: None,
        what,
    };
    let bare = site.anchors.iter().all(|a| a.seat.is_none());
    let mm = |m: f64| (m * 1e3).round() as i32;
    let mut anchors: Vec<MapAnchor> = Vec::new();
    for (place, a) in (0u8..).zip(&site.anchors) {
        let (node, index) = match a.seat {
            Some(seat) => seat,
            // 127 seats hold the 128 anchors of a map when each has two.
            None if bare => (1 + place / 2, place % 2),
            None => {
                let what = format!(
                    "anchor {}: node is missing; give node and index to all or none",
                    a.id
                );
                return Err(wrong(what));
            }
        };
        let Some(seat) = NodeId::new(node) else {
            let what = format!("anchor {}: node is {node}; choose 1 to 127", a.id);
            return Err(wrong(what));
        };
        anchors.push(MapAnchor {
            id: a.id,
            node: seat,
            index,
            position_mm: a.position_m.map(mm),
            bias_mm: mm(a.bias_m),
        });
    }
    Ok(MapSource { site, anchors })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("helio-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary folder");
        let path = dir.join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    #[test]
    fn a_trace_row_that_is_wrong_is_named_by_line() {
        let head = "time_s,current_a,voltage_v\n";
        let cases = [
            (
                "0,1,3.6\n1,x,3.6\n",
                ":3: \"x\" in column current_a is not a number",
            ),
            (
                "0,1,3.6\n1,1\n",
                ":3: the row has 2 fields where the header has 3",
            ),
            (
                "0,1,3.6\n# note\n1,1,36\n",
                ":4: the voltage is not that of one cell",
            ),
            (
                "5,1,3.6\n4,1,3.6\n",
                ":3: the time is before that of the row above",
            ),
            (
                "0,,3.6\n",
                ":2: current_a or current or Current [A] or I[A] or i is missing",
            ),
            ("", ":1: there is a header but no rows"),
        ];
        for (n, (rows, expected)) in cases.iter().enumerate() {
            let path = file(&format!("trace{n}.csv"), &format!("{head}{rows}"));
            let e = CellTrace::load(&path, 5000.0, None, 1.0)
                .expect_err("must be refused")
                .to_string();
            assert!(e.contains(expected), "{rows:?} gave {e}");
        }
        let e = CellTrace::load(&file("h.csv", "a,b\n1,2\n"), 1.0, None, 1.0)
            .expect_err("no such columns");
        assert!(
            e.to_string().contains("there is no column time_s or time"),
            "{e}"
        );
    }

    #[test]
    fn a_map_that_is_wrong_is_named_by_line() {
        let row = "[[anchor]]\nid = 1\nnode = 1\nindex = 0\nx_mm = 0\ny_mm = 0\nz_mm = 0\n";
        let e = load_map(&file("m1.toml", &format!("{row}{row}")))
            .expect_err("twice")
            .to_string();
        assert!(
            e.contains("m1.toml:8: anchor 1: the id stands twice"),
            "{e}"
        );
        let e = load_map(&file("m2.toml", &row.replace("node = 1", "node = 0")))
            .expect_err("seat")
            .to_string();
        assert!(
            e.contains("m2.toml:1: anchor 1: node is 0; choose 1 to 127"),
            "{e}"
        );
        let e = load_map(&file("m3.toml", "version = 2\n"))
            .expect_err("empty")
            .to_string();
        assert!(e.contains("the map has no [[anchor]]"), "{e}");
    }
}
