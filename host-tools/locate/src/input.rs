//! Text that users hand over: tables with a line for every complaint.
//!
//! Columns say what they hold by name, their unit behind the last underscore: `time_ms`, `x_mm`,
//! `a3-t0_cm`. Without a unit lengths are metres and times seconds.

use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong with a file, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub what: String,
}

impl InputError {
    /// About a whole file.
    pub fn whole(file: &Path, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: None,
            what: what.into(),
        }
    }

    /// About one line.
    pub fn at(file: &Path, line: usize, what: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: Some(line),
            what: what.into(),
        }
    }
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.what),
            None => write!(f, "{}: {}", self.file.display(), self.what),
        }
    }
}

impl std::error::Error for InputError {}

/// Reads a file, or says how it could not be.
pub fn read_bytes(file: &Path) -> Result<Vec<u8>, InputError> {
    std::fs::read(file).map_err(|e| {
        let what = match e.kind() {
            std::io::ErrorKind::NotFound => "there is no such file; check the path".to_string(),
            _ => format!("{e}; check that the file can be read"),
        };
        InputError::whole(file, what)
    })
}

/// Reads a text file, or says how it could not be.
pub fn read_text(file: &Path) -> Result<String, InputError> {
    String::from_utf8(read_bytes(file)?).map_err(|_| {
        let what = "this is not a text file in UTF-8; check that it is the right one";
        InputError::whole(file, what)
    })
}

/// Line, from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    1 + before.filter(|&&b| b == b'\n').count()
}

/// A table of fields with, perhaps, a head.
#[derive(Clone, Debug)]
pub struct Table {
    /// Where it came from.
    pub file: PathBuf,
    /// Names in normal form (see [`normal`]) and as written; `None` when numbers start at once.
    pub head: Option<Vec<(String, String)>>,
    /// Line and fields of each row.
    pub rows: Vec<(usize, Vec<String>)>,
}

impl Table {
    /// Reads comma, semicolon or tab separated rows; `#` begins a comment.
    pub fn load(file: &Path) -> Result<Self, InputError> {
        Self::parse(file, &read_text(file)?)
    }

    /// As [`Table::load`] from text in memory.
    pub fn parse(file: &Path, text: &str) -> Result<Self, InputError> {
        let text = text.trim_start_matches('\u{feff}');
        let (mut head, mut rows) = (None, Vec::<(usize, Vec<String>)>::new());
        let mut separator = None;
        for (line, text) in (1..).zip(text.lines()) {
            if text.trim().is_empty() || text.trim_start().starts_with('#') {
                continue;
            }
            let separator = *separator.get_or_insert_with(|| {
                let most = [',', ';', '\t'].map(|c| (text.matches(c).count(), c));
                most.into_iter().max_by_key(|m| m.0).map_or(',', |m| m.1)
            });
            let field = |f: &str| f.trim().trim_matches('"').trim().to_string();
            let fields: Vec<String> = text.split(separator).map(field).collect();
            let first = fields.first().map_or("", String::as_str);
            if head.is_none() && rows.is_empty() && time_of(first).is_none() {
                let named = fields.into_iter().map(|f| (normal(&f), f));
                head = Some(named.collect::<Vec<_>>());
                continue;
            }
            if let Some((before, row)) = rows.last()
                && row.len() != fields.len()
            {
                let what = format!(
                    "the row has {} fields where line {before} has {}; correct or remove it",
                    fields.len(),
                    row.len()
                );
                return Err(InputError::at(file, line, what));
            }
            rows.push((line, fields));
        }
        if rows.is_empty() {
            let what = "there are no rows of numbers; give at least one";
            return Err(InputError::whole(file, what));
        }
        Ok(Self {
            file: file.into(),
            head,
            rows,
        })
    }

    /// Columns of a row.
    pub fn width(&self) -> usize {
        self.rows.first().map_or(0, |(_, r)| r.len())
    }

    /// The first column whose name without unit is one of these, and the factor of its unit to
    /// metres or seconds.
    pub fn column(&self, names: &[&str]) -> Option<(usize, f64)> {
        let head = self.head.as_ref()?;
        names.iter().find_map(|wanted| {
            head.iter().enumerate().find_map(|(at, (name, _))| {
                let (base, factor) = unit(name);
                (base == *wanted || name == wanted).then_some((at, factor))
            })
        })
    }

    /// A number, NaN where the field is empty or says that there is none.
    pub fn number(&self, row: usize, column: usize) -> Result<f64, InputError> {
        let Some((line, fields)) = self.rows.get(row) else {
            return Ok(f64::NAN);
        };
        let field = fields.get(column).map_or("", String::as_str);
        match field.to_ascii_lowercase().as_str() {
            "" | "nan" | "null" | "none" | "na" | "n/a" | "-" => Ok(f64::NAN),
            _ => field.parse().map_err(|_| {
                let what = format!("\"{field}\" is not a number; correct it or leave it empty");
                InputError::at(&self.file, *line, what)
            }),
        }
    }

    /// A whole number, perhaps behind letters as in `tag3`.
    pub fn identity(&self, row: usize, column: usize) -> Result<u16, InputError> {
        let Some((line, fields)) = self.rows.get(row) else {
            return Ok(0);
        };
        let field = fields.get(column).map_or("", String::as_str);
        let digits = field.trim_start_matches(|c: char| !c.is_ascii_digit());
        let digits = digits.strip_suffix(".0").unwrap_or(digits);
        digits.parse().map_err(|_| {
            let what = format!("\"{field}\" is no identity; give a number from 0 to 65535");
            InputError::at(&self.file, *line, what)
        })
    }

    /// A time in seconds: a number, or `YYYY-MM-DD hh:mm:ss.fff`.
    pub fn time(&self, row: usize, column: usize, factor: f64) -> Result<f64, InputError> {
        let Some((line, fields)) = self.rows.get(row) else {
            return Ok(f64::NAN);
        };
        let field = fields.get(column).map_or("", String::as_str);
        let dated = field.contains(':');
        match time_of(field) {
            Some(t) => Ok(if dated { t } else { t * factor }),
            None => {
                let what =
                    format!("\"{field}\" is no time; give seconds or YYYY-MM-DD hh:mm:ss.fff");
                Err(InputError::at(&self.file, *line, what))
            }
        }
    }

    /// Place and unit of the time: the column of that name, else the first.
    pub fn time_column(&self) -> (usize, f64) {
        let names = [
            "time",
            "t",
            "timestamp",
            "stamp",
            "datetime",
            "date",
            "seconds",
        ];
        self.column(&names).unwrap_or((0, 1.0))
    }
}

/// A column's name with lower case letters, digits, `-` and `_` only: `Time [ms]` is `time_ms`.
pub fn normal(name: &str) -> String {
    let mut out = String::new();
    for c in name.trim().to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '-' => out.push(c),
            'µ' | 'μ' => out.push('u'),
            _ if !out.ends_with('_') && !out.is_empty() => out.push('_'),
            _ => {}
        }
    }
    out.trim_end_matches('_').to_string()
}

/// A normal name without its unit, and the unit's factor to metres, seconds or radians.
pub fn unit(name: &str) -> (&str, f64) {
    let units = [
        ("_m", 1.0),
        ("_cm", 1e-2),
        ("_mm", 1e-3),
        ("_um", 1e-6),
        ("_km", 1e3),
        ("_s", 1.0),
        ("_sec", 1.0),
        ("_ms", 1e-3),
        ("_us", 1e-6),
        ("_ns", 1e-9),
        ("_rad", 1.0),
        ("_deg", std::f64::consts::PI / 180.0),
    ];
    let found = units
        .iter()
        .find_map(|(end, factor)| Some((name.strip_suffix(end)?, *factor)));
    found
        .filter(|(base, _)| !base.is_empty())
        .unwrap_or((name, 1.0))
}

/// Seconds of a field that is a number or `YYYY-MM-DD hh:mm:ss[.fff]`, the latter since 1970.
pub fn time_of(field: &str) -> Option<f64> {
    let field = field.trim();
    if let Ok(seconds) = field.parse::<f64>() {
        return Some(seconds).filter(|s| s.is_finite());
    }
    let (date, time) = field.split_once([' ', 'T'])?;
    let mut date = date.splitn(3, ['-', '/']).map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.trim_end_matches('Z').trim_end_matches("+00:00");
    let mut time = time.splitn(3, ':').map(|p| p.parse::<f64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next().flatten()?);
    if !((1..=12).contains(&month) && (1..=31).contains(&day)) {
        return None;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<Table, InputError> {
        Table::parse(Path::new("t.csv"), text)
    }

    #[test]
    fn names_carry_their_unit() {
        assert_eq!(normal(" Time [ms] "), "time_ms");
        assert_eq!(unit("time_ms"), ("time", 1e-3));
        assert_eq!(unit("a3-t0"), ("a3-t0", 1.0));
        assert_eq!(unit(&normal("Range (µs)")), ("range", 1e-6));
    }

    #[test]
    fn separators_heads_and_missing_values_are_read() {
        let t = table("\u{feff}# note\ntime_ms;x_cm;\"y\"\n1000;;3\n2000;5;nan\n").expect("fine");
        assert_eq!(t.column(&["x"]), Some((1, 0.01)));
        assert_eq!(t.time(1, 0, 1e-3), Ok(2.0));
        assert!(t.number(0, 1).expect("empty").is_nan());
        assert!(t.number(1, 2).expect("none").is_nan());
        assert_eq!(t.number(0, 2), Ok(3.0));
    }

    #[test]
    fn what_is_wrong_is_named_by_line_with_its_remedy() {
        let short = table("0,1,2\n1,2\n").expect_err("short row").to_string();
        assert_eq!(
            short,
            "t.csv:2: the row has 2 fields where line 1 has 3; correct or remove it"
        );
        let t = table("0,1\n1,x\n").expect("read as text");
        let e = t.number(1, 1).expect_err("a letter").to_string();
        assert_eq!(
            e,
            "t.csv:2: \"x\" is not a number; correct it or leave it empty"
        );
        assert!(table("time,x\n").is_err());
    }

    #[test]
    fn times_may_be_seconds_or_dates() {
        assert_eq!(time_of("12.5"), Some(12.5));
        assert_eq!(time_of("1970-01-02 00:00:01.5"), Some(86_401.5));
        assert_eq!(time_of("2022-08-15 9:42:24.766"), Some(1_660_556_544.766));
        for wrong in [
            "yesterday",
            "2022-08-15",
            "nan",
            "2022-13-01 00:00:00",
            "1:2",
        ] {
            assert_eq!(time_of(wrong), None, "{wrong}");
        }
    }
}
