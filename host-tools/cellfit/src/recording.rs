//! What a cell tester wrote: a CSV file of any layout, read by a column map.
//!
//! ```text
//! head:  name = column[:unit], for example  time=Test_Time(s),current=I:mA,voltage=U,temperature=T1
//! sign:  found by how the voltage answers a step of the current, unless it is told
//! file:  path[@°C]; without a temperature column and without @ the name is searched (…_25degC, …_N05_…, …_-10c)
//! ```
//!
//! Names that are usual need no map. Everything inside is in s, A (discharge positive), V, °C, Ah.

use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with a file, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Which file.
    pub file: PathBuf,
    /// Line from 1, where one is to blame.
    pub line: Option<usize>,
    /// One sentence with the remedy.
    pub what: String,
}

impl Wrong {
    /// About a file as a whole.
    pub fn file(file: &Path, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: None,
            what: what.into(),
        }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for Wrong {}

/// Which way a file counts its current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sign {
    /// Found from the data.
    #[default]
    Auto,
    /// Positive when the cell is discharged.
    Discharge,
    /// Positive when the cell is charged.
    Charge,
}

/// A quantity that a column can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    Time,
    Current,
    Voltage,
    Temperature,
    ChargeAh,
    DischargeAh,
    NetAh,
    Soc,
}

use Quantity::{ChargeAh, Current, DischargeAh, NetAh, Soc, Temperature, Time, Voltage};

/// Every quantity, the key of the map, and the names known without a map (letters and digits only).
const KNOWN: [(Quantity, &str, &[&str]); 8] = [
    (
        Time,
        "time",
        &[
            "times",
            "time",
            "testtimes",
            "testtime",
            "progtime",
            "progtimes",
            "totaltimes",
            "totaltime",
            "elapsedtimes",
            "t",
            "ts",
        ],
    ),
    (
        Current,
        "current",
        &[
            "currenta",
            "current",
            "i",
            "ia",
            "iamps",
            "currentamps",
            "imeasured",
            "currentmeasured",
        ],
    ),
    (
        Voltage,
        "voltage",
        &[
            "voltagev",
            "voltage",
            "v",
            "u",
            "uv",
            "vv",
            "terminalvoltagev",
            "terminalvoltage",
            "voltagemeasured",
        ],
    ),
    (
        Temperature,
        "temperature",
        &[
            "temperaturec",
            "temperature",
            "tempc",
            "temp",
            "temperaturedegc",
            "celltemperature",
            "celltemperaturec",
            "batterytempdegc",
            "batttemp",
            "battempc",
            "tc",
            "t1",
            "auxtemperature1c",
        ],
    ),
    (
        ChargeAh,
        "charge-ah",
        &[
            "chargeah",
            "chargecapacityah",
            "chgah",
            "chacapah",
            "chargecapacity",
        ],
    ),
    (
        DischargeAh,
        "discharge-ah",
        &[
            "dischargeah",
            "dischargecapacityah",
            "disah",
            "dchcapah",
            "dischargecapacity",
        ],
    ),
    (NetAh, "ah", &["ah", "capacityah", "netah"]),
    (
        Soc,
        "soc",
        &["soc", "soctrue", "soctruth", "stateofcharge", "truesoc"],
    ),
];

/// Which column holds what.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    named: Vec<(Quantity, String, f64, f64)>,
}

impl Columns {
    /// Reads `time=NAME[:unit],current=NAME[:unit],…`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut named = Vec::new();
        for part in text.split(',').filter(|p| !p.trim().is_empty()) {
            let keys = || KNOWN.map(|k| k.1).join(", ");
            let Some((key, name)) = part.split_once('=') else {
                return Err(format!(
                    "\"{part}\" is no key=COLUMN; write for example time=t,current=I (keys: {})",
                    keys()
                ));
            };
            let key = key.trim();
            let Some((quantity, ..)) = KNOWN.iter().find(|k| k.1 == key) else {
                return Err(format!("\"{key}\" is no key; use one of: {}", keys()));
            };
            let (name, scale, zero) = match name.rsplit_once(':') {
                Some((name, unit)) => match unit_of(*quantity, unit.trim()) {
                    Some((scale, zero)) => (name, scale, zero),
                    None => {
                        return Err(format!(
                            "\"{unit}\" is no unit of {key}; use s, ms, min, h; A, mA; V, mV; C, K, F; Ah, mAh; 1, %"
                        ));
                    }
                },
                None => (name, 1.0, 0.0),
            };
            named.push((*quantity, name.trim().to_string(), scale, zero));
        }
        Ok(Self { named })
    }
}

/// Factor and zero point so that `(value - zero) * factor` is in our unit.
fn unit_of(quantity: Quantity, unit: &str) -> Option<(f64, f64)> {
    let plain = |factor| Some((factor, 0.0));
    match (quantity, unit) {
        (Time, "s") | (Current, "A") | (Voltage, "V") | (Temperature, "C") | (Soc, "1") => {
            plain(1.0)
        }
        (ChargeAh | DischargeAh | NetAh, "Ah") => plain(1.0),
        (Time, "ms") | (Current, "mA") | (Voltage, "mV") => plain(1e-3),
        (ChargeAh | DischargeAh | NetAh, "mAh") => plain(1e-3),
        (Time, "min") => plain(60.0),
        (Time, "h") => plain(3600.0),
        (Soc, "%") => plain(0.01),
        (Temperature, "K") => Some((1.0, 273.15)),
        (Temperature, "F") => Some((5.0 / 9.0, 32.0)),
        _ => None,
    }
}

/// A file to read and what is told about it.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where.
    pub path: PathBuf,
    /// Temperature if the file has no column for it [°C].
    pub temp_c: Option<f64>,
}

impl Source {
    /// Reads `path[@°C]`.
    pub fn parse(text: &str) -> Self {
        if let Some((path, temp)) = text.rsplit_once('@')
            && let Ok(temp_c) = temp.parse()
        {
            return Self {
                path: path.into(),
                temp_c: Some(temp_c),
            };
        }
        Self {
            path: text.into(),
            temp_c: None,
        }
    }
}

/// A recording in our units.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// File name.
    pub name: String,
    /// Seconds, rising strictly.
    pub t: Vec<f64>,
    /// Amperes, discharge positive.
    pub i: Vec<f64>,
    /// Volts.
    pub v: Vec<f64>,
    /// °C.
    pub temp: Vec<f64>,
    /// Charge taken out since the first row, less what came in [Ah]: by the tester's counters, else by its current.
    pub out_ah: Vec<f64>,
    /// Charge put in since the first row [Ah].
    pub in_ah: Vec<f64>,
    /// State of charge where the file tells it.
    pub soc: Option<Vec<f64>>,
    /// The column asked for as truth, as it stands.
    pub extra: Option<Vec<f64>>,
    /// What the reader should be told about how the file was understood.
    pub notes: Vec<String>,
}

impl Recording {
    /// Reads a file. `extra` is the name of one more column, or of two with a minus between.
    pub fn load(
        source: &Source,
        columns: &Columns,
        sign: Sign,
        extra: Option<&str>,
    ) -> Result<Self, Wrong> {
        let path = &source.path;
        let bytes = std::fs::read(path)
            .map_err(|e| Wrong::file(path, format!("{e}; name a CSV file that can be read")))?;
        let text = String::from_utf8_lossy(&bytes);
        let at = |line: usize, what: String| Wrong {
            file: path.clone(),
            line: Some(line),
            what,
        };
        let (head_line, delimiter, head) = find_head(path, &text, columns)?;
        let clean = |s: &str| s.trim().trim_matches('"').trim().to_string();
        let place = |name: &str| {
            head.iter()
                .position(|h| *h == name)
                .or_else(|| head.iter().position(|h| h.eq_ignore_ascii_case(name)))
        };
        let mut places: [Option<(usize, f64, f64)>; 8] = [None; 8];
        for (slot, (quantity, key, known)) in places.iter_mut().zip(KNOWN) {
            if let Some((_, name, scale, zero)) = columns.named.iter().find(|n| n.0 == quantity) {
                let Some(column) = place(name) else {
                    return Err(at(
                        head_line,
                        format!(
                            "there is no column \"{name}\" for {key}; the file has: {}",
                            head.join(", ")
                        ),
                    ));
                };
                *slot = Some((column, *scale, *zero));
            } else {
                let found = known
                    .iter()
                    .find_map(|k| head.iter().position(|h| letters(h) == *k));
                *slot = found.map(|column| (column, 1.0, 0.0));
            }
        }
        for (slot, (_, key, _)) in places.iter().zip(KNOWN).take(3) {
            if slot.is_none() {
                return Err(at(
                    head_line,
                    format!(
                        "no column is known as {key}; add {key}=NAME to --columns, with one of: {}",
                        head.join(", ")
                    ),
                ));
            }
        }
        let extra_places: Vec<(usize, f64)> = match extra {
            None => Vec::new(),
            Some(name) => match place(name) {
                Some(column) => vec![(column, 1.0)],
                None => {
                    let both = name.split_once('-').and_then(|(a, b)| {
                        Some(vec![(place(a.trim())?, 1.0), (place(b.trim())?, -1.0)])
                    });
                    both.ok_or_else(|| {
                        at(
                            head_line,
                            format!(
                                "there is no column \"{name}\" for the truth; the file has: {}",
                                head.join(", ")
                            ),
                        )
                    })?
                }
            },
        };

        let mut out = Self {
            name: path
                .file_name()
                .map_or_else(String::new, |n| n.to_string_lossy().into()),
            ..Self::default()
        };
        let mut values: [Vec<f64>; 8] = Default::default();
        let mut truth = Vec::new();
        let (mut holes, mut repeats) = (0usize, 0usize);
        for (line, row) in (1..).zip(text.lines()).skip(head_line) {
            if row.trim().is_empty() || row.starts_with('#') {
                continue;
            }
            let fields: Vec<&str> = row.split(delimiter).collect();
            let number = |column: usize, is_time: bool| -> Result<f64, String> {
                let field = fields.get(column).map(|f| clean(f)).unwrap_or_default();
                if field.is_empty() {
                    return Ok(f64::NAN);
                }
                let plain = if delimiter == ';' {
                    field.replace(',', ".")
                } else {
                    field.clone()
                };
                plain
                    .parse()
                    .ok()
                    .or_else(|| if is_time { clock(&plain) } else { None })
                    .ok_or(field)
            };
            let mut now = [f64::NAN; 8];
            let mut broken = None;
            for (n, slot) in places.iter().enumerate() {
                if let Some((column, scale, zero)) = slot {
                    match number(*column, n == 0) {
                        Ok(v) => now[n] = (v - zero) * scale,
                        Err(field) => broken = Some((field, *column)),
                    }
                }
            }
            let mut this_truth = 0.0;
            for (column, factor) in &extra_places {
                match number(*column, false) {
                    Ok(v) => this_truth += factor * v,
                    Err(field) => broken = Some((field, *column)),
                }
            }
            if let Some((field, column)) = broken {
                if line == head_line + 1 {
                    continue; // A line of units under the head.
                }
                let name = head.get(column).map_or("?", String::as_str);
                return Err(at(
                    line,
                    format!(
                        "\"{field}\" in column {name} is not a number; correct or remove the row"
                    ),
                ));
            }
            let [t, i, v, ..] = now;
            if !(t.is_finite() && i.is_finite() && v.is_finite()) {
                holes += 1;
                continue;
            }
            if let Some(&last) = values[0].last() {
                if t < last {
                    return Err(at(
                        line,
                        format!(
                            "the time {t} is before that of the row above ({last}); sort the rows by time, or map time to a column that never starts anew"
                        ),
                    ));
                }
                if t == last {
                    repeats += 1;
                    values.iter_mut().for_each(|v| {
                        v.pop();
                    });
                    truth.pop();
                }
            }
            if !(0.0..=6.0).contains(&v) {
                return Err(at(
                    line,
                    format!(
                        "the voltage {v} V is not that of one cell; give volts of a single cell, or a unit as in voltage=NAME:mV"
                    ),
                ));
            }
            for (column, value) in values.iter_mut().zip(now) {
                column.push(value);
            }
            truth.push(this_truth);
        }
        let [t, mut i, v, temp, charge, discharge, net, soc] = values;
        if t.len() < 10 {
            return Err(Wrong::file(
                path,
                format!("there are {} rows of numbers; give at least 10", t.len()),
            ));
        }
        if holes > 0 {
            out.notes.push(format!(
                "{holes} rows without time, current or voltage passed over"
            ));
        }
        if repeats > 0 {
            out.notes.push(format!(
                "{repeats} rows with the time of the row above: the later one counts"
            ));
        }
        let has = |list: &[f64]| list.iter().any(|x| x.is_finite());
        let positive = match sign {
            Sign::Discharge => true,
            Sign::Charge => false,
            Sign::Auto => {
                let Some(found) = discharge_positive(&t, &i, &v) else {
                    return Err(Wrong::file(
                        path,
                        "no step of the current shows whether it counts charge or discharge positive; say --sign charge or --sign discharge",
                    ));
                };
                out.notes.push(format!(
                    "current taken to be positive when {}",
                    if found { "discharging" } else { "charging" }
                ));
                found
            }
        };
        if !positive {
            i.iter_mut().for_each(|i| *i = -*i);
        }
        let (mut by_current, mut into) = (vec![0.0], vec![0.0]);
        for k in 1..t.len() {
            let moved = 0.5 * (i[k] + i[k - 1]) * (t[k] - t[k - 1]) / 3600.0;
            by_current.push(by_current[k - 1] + moved);
            into.push(into[k - 1] + (-moved).max(0.0));
        }
        if has(&charge) && has(&discharge) {
            let first = (charge[0], discharge[0]);
            // Some testers count discharged ampere-hours down.
            let way = if discharge.last() < discharge.first() {
                -1.0
            } else {
                1.0
            };
            into = charge.iter().map(|c| c - first.0).collect();
            by_current = discharge
                .iter()
                .zip(&into)
                .map(|(d, c)| way * (d - first.1) - c)
                .collect();
        } else if has(&net) {
            let same: f64 = net
                .iter()
                .zip(&by_current)
                .map(|(n, b)| (n - net[0]) * b)
                .sum();
            let way = if same < 0.0 { -1.0 } else { 1.0 };
            by_current = net.iter().map(|n| way * (n - net[0])).collect();
        }
        fill_holes(&mut by_current);
        fill_holes(&mut into);
        out.temp = if has(&temp) {
            let mut temp = temp;
            fill_holes(&mut temp);
            temp
        } else {
            let told = source.temp_c.or_else(|| temperature_in(&out.name));
            if source.temp_c.is_none() {
                out.notes.push(match told {
                    Some(c) => format!("{c} °C taken from the file's name"),
                    None => "no temperature: 25 °C assumed; add @°C to the file's name to tell it"
                        .into(),
                });
            }
            vec![told.unwrap_or(25.0); t.len()]
        };
        if has(&soc) {
            let mut soc = soc;
            fill_holes(&mut soc);
            if soc.iter().cloned().fold(0.0, f64::max) > 1.5 {
                soc.iter_mut().for_each(|s| *s *= 0.01);
            }
            out.soc = Some(soc);
        }
        if extra.is_some() {
            fill_holes(&mut truth);
            out.extra = Some(truth);
        }
        (out.t, out.i, out.v, out.out_ah, out.in_ah) = (t, i, v, by_current, into);
        Ok(out)
    }

    /// Temperature at the start, which is that of the chamber [°C].
    pub fn start_temp(&self) -> f64 {
        self.temp.first().copied().unwrap_or(25.0)
    }

    /// Length [s].
    pub fn duration_s(&self) -> f64 {
        self.t.last().copied().unwrap_or(0.0) - self.t.first().copied().unwrap_or(0.0)
    }
}

/// Parts of one test that stand in files of their own, put together: names that differ only in a number at their end
/// (`…_S1`, `…_S2`), in that order.
pub fn join(recordings: Vec<Recording>) -> Vec<Recording> {
    let mut groups: Vec<(String, Vec<Recording>)> = Vec::new();
    for recording in recordings {
        let stem = recording
            .name
            .rsplit_once('.')
            .map_or(recording.name.as_str(), |s| s.0);
        let base = stem.trim_end_matches(|c: char| c.is_ascii_digit());
        // Only a part's number counts: `_s1`, `_part2`, not the 10 of `US06_10`.
        let part = ["_s", "_part", "_script", "-s"]
            .iter()
            .any(|p| base.to_ascii_lowercase().ends_with(p))
            && base != stem;
        let key = if part {
            base.to_ascii_lowercase()
        } else {
            recording.name.clone()
        };
        match groups.iter_mut().find(|g| g.0 == key) {
            Some(group) => group.1.push(recording),
            None => groups.push((key, vec![recording])),
        }
    }
    groups
        .into_iter()
        .map(|(_, mut parts)| {
            parts.sort_by(|a, b| a.name.cmp(&b.name));
            let mut parts = parts.into_iter();
            let mut whole = parts.next().unwrap_or_default();
            for part in parts {
                let last = |list: &[f64]| list.last().copied().unwrap_or(0.0);
                // Clocks may start anew or go on; time between parts does not matter, rows at the same time would.
                let start = last(&whole.t) + 60.0 - part.t.first().copied().unwrap_or(0.0);
                let (out, into) = (last(&whole.out_ah), last(&whole.in_ah));
                whole.t.extend(part.t.iter().map(|t| t + start));
                whole.out_ah.extend(part.out_ah.iter().map(|a| a + out));
                whole.in_ah.extend(part.in_ah.iter().map(|a| a + into));
                whole.i.extend(part.i);
                whole.v.extend(part.v);
                whole.temp.extend(part.temp);
                whole.soc = whole.soc.zip(part.soc).map(|(mut a, b)| {
                    a.extend(b);
                    a
                });
                whole.notes.extend(part.notes);
                whole.name = format!("{} + {}", whole.name, part.name);
            }
            whole
        })
        .collect()
}

/// The line of the head (from 1), the delimiter and the names: the first line with a name for time, current and voltage.
fn find_head(
    path: &Path,
    text: &str,
    columns: &Columns,
) -> Result<(usize, char, Vec<String>), Wrong> {
    for (line, row) in (1..).zip(text.lines().take(200)) {
        let delimiter = [',', ';', '\t']
            .into_iter()
            .max_by_key(|d| row.matches(*d).count())
            .unwrap_or(',');
        let head: Vec<String> = row
            .trim_start_matches('\u{feff}')
            .split(delimiter)
            .map(|c| c.trim().trim_matches('"').trim().to_string())
            .collect();
        let has = |quantity: Quantity| match columns.named.iter().find(|n| n.0 == quantity) {
            Some((_, name, ..)) => head.iter().any(|h| h.eq_ignore_ascii_case(name)),
            None => KNOWN
                .iter()
                .filter(|k| k.0 == quantity)
                .any(|k| head.iter().any(|h| k.2.contains(&letters(h).as_str()))),
        };
        if has(Time) && has(Current) && has(Voltage) {
            return Ok((line, delimiter, head));
        }
    }
    let first = text.lines().next().unwrap_or("nothing");
    Err(Wrong {
        file: path.into(),
        line: Some(1),
        what: format!(
            "no line names columns for time, current and voltage (the first is: {first}); map them with --columns time=NAME,current=NAME,voltage=NAME"
        ),
    })
}

fn letters(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_ascii_alphanumeric())
        .collect::<String>()
        .to_ascii_lowercase()
}

/// `[days] hh:mm:ss[.fff]` in seconds.
fn clock(text: &str) -> Option<f64> {
    let (days, rest) = match text.split_once([' ', 'T']) {
        Some((d, rest)) => (d.trim_end_matches(['d', 'D']).parse::<f64>().ok()?, rest),
        None => (0.0, text),
    };
    let mut seconds = 0.0;
    for part in rest.trim().split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
    }
    rest.contains(':').then_some(days * 86_400.0 + seconds)
}

/// The resistance that steps of the current show must be positive.
fn discharge_positive(t: &[f64], i: &[f64], v: &[f64]) -> Option<bool> {
    let most = i.iter().fold(0.0f64, |m, i| m.max(i.abs()));
    let mut sum = 0.0;
    for k in 1..t.len() {
        let di = i[k] - i[k - 1];
        if di.abs() > 0.05 * most && t[k] - t[k - 1] < 130.0 {
            sum += di * (v[k] - v[k - 1]);
        }
    }
    if sum == 0.0 {
        // No step that is seen at once: the voltage falls while a discharge goes on.
        let steady = |k: &usize| (i[*k] - i[k - 1]).abs() < 0.05 * most;
        sum = (1..t.len())
            .filter(steady)
            .map(|k| i[k] * (v[k] - v[k - 1]))
            .sum();
    }
    (sum != 0.0).then_some(sum < 0.0)
}

/// A temperature in a file's name: `25degC`, `-10c`, `n20degC`, `P25`, `N05`.
fn temperature_in(name: &str) -> Option<f64> {
    let stem = name.rsplit_once('.').map_or(name, |s| s.0);
    // `1C` and `2C` are rates, `-10c` and `25C` are not.
    let read = |token: &str, sure: bool| {
        let lower = token.to_ascii_lowercase();
        let plett = lower.len() == 3 && lower.starts_with(['n', 'p']);
        let number = if sure {
            lower
                .strip_suffix("degc")
                .or_else(|| lower.strip_suffix("deg"))
                .or(plett.then_some(lower.as_str()))?
        } else {
            lower
                .strip_suffix('c')
                .filter(|n| token.ends_with('c') || n.len() > 1)?
        };
        let (sign, digits) = match number
            .strip_prefix("minus")
            .or_else(|| number.strip_prefix(['n', 'm', '-']))
        {
            Some(digits) => (-1.0, digits),
            None => (1.0, number.strip_prefix('p').unwrap_or(number)),
        };
        let value = digits
            .parse::<f64>()
            .ok()
            .filter(|_| digits.starts_with(|c: char| c.is_ascii_digit()))?;
        (value <= 90.0).then_some(sign * value)
    };
    let tokens = || stem.split(['_', ' ']);
    tokens()
        .find_map(|t| read(t, true))
        .or_else(|| tokens().find_map(|t| read(t, false)))
}

/// Missing values become the one before (the first known one at the start).
fn fill_holes(list: &mut [f64]) {
    let mut last = list.iter().copied().find(|x| x.is_finite()).unwrap_or(0.0);
    for x in list {
        if x.is_finite() {
            last = *x;
        } else {
            *x = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> Source {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        Source::parse(&path.to_string_lossy())
    }

    fn rows(sign: f64) -> String {
        (0..20)
            .map(|k| {
                format!(
                    "{k},{},{}\n",
                    sign * f64::from(k % 2),
                    3.7 - 0.05 * f64::from(k % 2)
                )
            })
            .collect()
    }

    #[test]
    fn both_signs_read_the_same_and_discharge_is_positive() {
        let dir = tempfile::tempdir().expect("a folder");
        for sign in [1.0, -1.0] {
            let s = file(
                &dir,
                "x_25degC.csv",
                &format!("Time [s],I[A],U[V]\n{}", rows(sign)),
            );
            let r = Recording::load(&s, &Columns::default(), Sign::Auto, None).expect("reads");
            assert_eq!(r.i[1], 1.0);
            assert_eq!(r.temp[0], 25.0);
            assert!(
                (r.out_ah[19] - 9.5 / 3600.0).abs() < 1e-12,
                "{}",
                r.out_ah[19]
            );
        }
    }

    #[test]
    fn units_preamble_and_a_line_of_units_are_understood() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut text = String::from("Digatron export\n\nstep;clock;I_cell;U\n;h:m:s;mA;mV\n");
        for k in 0..12 {
            text += &format!(
                "1;00:00:{k:02};{},0;{}\n",
                1000 * (k % 2),
                3700 - 50 * (k % 2)
            );
        }
        let s = file(&dir, "run.csv", &text);
        let map = Columns::parse("time=clock,current=I_cell:mA,voltage=U:mV").expect("a map");
        let r = Recording::load(&s, &map, Sign::Auto, None).expect("reads");
        assert_eq!((r.t.len(), r.i[1], r.v[0]), (12, 1.0, 3.7));
    }

    #[test]
    fn what_is_wrong_is_named_with_place_and_remedy() {
        let dir = tempfile::tempdir().expect("a folder");
        let cases = [
            (
                "a,b,c\n1,2,3\n",
                "",
                ":1: no line names columns for time, current and voltage",
            ),
            (
                &format!("time,current,voltage\n{}x,1,3.7\n", rows(1.0)),
                "",
                ":22: \"x\" in column time is not a number",
            ),
            (
                &format!("time,current,voltage\n{}5,1,3.7\n", rows(1.0)),
                "",
                ":22: the time 5 is before",
            ),
            (
                &format!("time,current,voltage\n{}50,1,37\n", rows(1.0)),
                "",
                ":22: the voltage 37 V is not that of one cell",
            ),
            (
                "time,current,voltage\n1,2,3\n",
                "",
                "there are 1 rows of numbers; give at least 10",
            ),
            (
                &format!("time,current,voltage\n{}", rows(1.0)),
                "temperature=T9",
                ":1: there is no column \"T9\" for temperature",
            ),
        ];
        for (text, map, expected) in cases {
            let s = file(&dir, "w.csv", text);
            let e = Recording::load(&s, &Columns::parse(map).expect("a map"), Sign::Auto, None)
                .expect_err("refused")
                .to_string();
            assert!(e.contains(expected), "{e}");
        }
        assert!(
            Columns::parse("amps=I")
                .expect_err("refused")
                .contains("is no key; use one of")
        );
        assert!(
            Columns::parse("current=I:kA")
                .expect_err("refused")
                .contains("is no unit of current")
        );
    }

    #[test]
    fn temperatures_are_found_in_names_and_numbers_that_are_none_are_not() {
        for (name, want) in [
            ("A123_OCV_N05_S1.csv", Some(-5.0)),
            ("A123_DYN_50_P25_s1.csv", Some(25.0)),
            ("lgm50_us06_-10c.csv", Some(-10.0)),
            ("NMC_25degC_Co20.csv", Some(25.0)),
            ("n20degC_US06.csv", Some(-20.0)),
            ("NMC_25degC_1C.csv", Some(25.0)),
            ("LFP_2C.csv", None),
            ("US06_run2.csv", None),
        ] {
            assert_eq!(temperature_in(name), want, "{name}");
        }
    }
}
