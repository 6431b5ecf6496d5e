//! Fault injection into the protection, and recordings that must not trip it.
//!
//! ```text
//! cargo run --release -p helio-battery --example protection -- [--faults N] [--seed N] [--no-recordings] [--json]
//!   --faults N        how many faults (100000)
//!   --seed N          other faults (1)
//!   --json            for machines
//! ```
//!
//! Recordings are those of `data/traces` and, where they lie beside the repository, of `../shared/data/battery`: each is
//! given to 16 cells, one reading every 50 ms, linear between rows, with the limits of its chemistry and capacity, unchanged.
//! A trip counts as due when the recording itself goes beyond the limit (cyclers discharge to the very end), for the kinds
//! whose value stands in the recording; any other is false.
//!
//! Exit codes: 0 nothing missed, late or false; 1 something was; 2 wrong arguments.

mod campaign;

use campaign::Tally;
use helio_battery::Sample;
use helio_battery::protection::{Code, Kind, Limits, Protection, Severity, Unit};
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let (mut n, mut seed, mut recordings, mut json) = (100_000, 1, true, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|v| v.parse().ok());
        match arg.as_str() {
            "--faults" | "--seed" => match number() {
                Some(value) if arg == "--faults" => n = value,
                Some(value) => seed = value,
                None => {
                    eprintln!("protection: {arg} needs a whole number, such as {arg} 1000000");
                    return ExitCode::from(2);
                }
            },
            "--no-recordings" => recordings = false,
            "--json" => json = true,
            _ => {
                eprintln!(
                    "protection: there is no option {arg}; give --faults, --seed, --no-recordings or --json"
                );
                return ExitCode::from(2);
            }
        }
    }
    let tallies = campaign::faults(n, seed, |done| {
        if done % 50_000 == 0 {
            eprint!("\r{done} of {n} faults");
        }
    });
    eprintln!("\r{n} of {n} faults");
    let runs = if recordings { replay_all() } else { Vec::new() };
    if json {
        print_json(&tallies, &runs);
    } else {
        print_table(&tallies, &runs);
    }
    let bad = tallies
        .iter()
        .any(|t| t.missed + t.late + t.false_trips > 0)
        || runs.iter().any(|r| r.false_trips() > 0);
    ExitCode::from(u8::from(bad))
}

/// One recording and what it tripped.
struct Run {
    name: String,
    hours: f64,
    /// By kind: trips that the recording demands, others.
    trips: BTreeMap<Kind, (u32, u32)>,
}

impl Run {
    fn false_trips(&self) -> u32 {
        self.trips.values().map(|(_, other)| other).sum()
    }
}

struct Row {
    t_s: f64,
    a: f64,
    v: f64,
    c: f64,
}

fn replay_all() -> Vec<Run> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<(PathBuf, Limits)> = Vec::new();
    let mut of = |folder: PathBuf, limits: Limits, filter: fn(&str) -> bool| {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            eprintln!("{}: not there, skipped", folder.display());
            return;
        };
        let csv = entries.filter_map(|e| Some(e.ok()?.path()));
        let csv = csv.filter(|p| p.extension().is_some_and(|e| e == "csv"));
        files.extend(
            csv.filter(|p| filter(&p.to_string_lossy()))
                .map(|p| (p, limits)),
        );
    };
    of(root.join("data/traces"), Limits::nmc(5_000), |name| {
        name.contains("lgm50")
    });
    let shared = root.join("../shared/data/battery");
    of(shared.join("a123-lfp"), Limits::lfp(2_500), |_| true);
    of(
        shared.join("about-energy/NMC/data/validation"),
        Limits::nmc(12_500),
        |_| true,
    );
    of(
        shared.join("about-energy/LFP/data/validation"),
        Limits::lfp(2_000),
        |_| true,
    );
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let runs = files.iter().map(|(file, limits)| {
        eprint!(
            "\r{:<60}",
            file.file_name().unwrap_or_default().to_string_lossy()
        );
        replay(file, *limits)
    });
    let runs = runs.collect();
    eprintln!();
    runs
}

/// Reads by the names of the columns; discharge positive, whatever the file thinks.
fn read(file: &Path) -> Vec<Row> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut lines = text.lines();
    let head: Vec<String> = lines
        .next()
        .unwrap_or("")
        .split(',')
        .map(|c| c.trim().to_lowercase())
        .collect();
    let column = |names: &[&str]| {
        head.iter()
            .position(|c| names.iter().any(|n| c.starts_with(n)))
    };
    let (t, a, v) = (
        column(&["time", "test_time"]),
        column(&["current", "i["]),
        column(&["voltage", "u["]),
    );
    let c = column(&["temperature"]);
    // about-energy and the A123 OCV tests count charge as positive.
    let charge_positive = head.iter().any(|h| h == "i[a]" || h == "test_time(s)");
    let sign = if charge_positive { -1.0 } else { 1.0 };
    let mut rows: Vec<Row> = lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let number = |place: Option<usize>| fields.get(place?)?.parse::<f64>().ok();
            Some(Row {
                t_s: number(t)?,
                a: sign * number(a)?,
                v: number(v)?,
                c: number(c).unwrap_or(25.0),
            })
        })
        .collect();
    // A cycler that was stopped and started again sometimes tells a second twice.
    rows.dedup_by(|next, before| next.t_s <= before.t_s);
    rows
}

const STEP_MS: u64 = 50;

fn replay(file: &Path, mut limits: Limits) -> Run {
    limits.cells = 16;
    limits.temps = 4;
    let rows = read(file);
    let mut run = Run {
        name: file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        hours: 0.0,
        trips: BTreeMap::new(),
    };
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        eprintln!("{}: no rows with time, current and voltage", file.display());
        run.trips.insert(Kind::Layout, (0, 1));
        return run;
    };
    run.hours = (last.t_s - first.t_s) / 3_600.0;
    let mut protection = Protection::new(limits);
    protection.set_gate(true);
    // How long the recording itself has been beyond each trip threshold, plainly.
    let (mut beyond, mut heat) = (BTreeMap::new(), 0.0);
    let (mut row, mut now) = (0, Instant::ZERO);
    let end = ((last.t_s - first.t_s) * 1e3) as u64;
    for ms in (0..=end).step_by(STEP_MS as usize) {
        let t = first.t_s + ms as f64 * 1e-3;
        while rows.get(row + 1).is_some_and(|r| r.t_s <= t) {
            row += 1;
        }
        let (a, b) = (&rows[row], rows.get(row + 1).unwrap_or(&rows[row]));
        let x = if b.t_s > a.t_s {
            (t - a.t_s) / (b.t_s - a.t_s)
        } else {
            0.0
        };
        let mix = |from: f64, to: f64| from + (to - from) * x;
        let (ma, mv, dc) = (
            mix(a.a, b.a) * 1e3,
            mix(a.v, b.v) * 1e3,
            mix(a.c, b.c) * 10.0,
        );
        let mut sample = Sample {
            cell_count: 16,
            temp_count: 4,
            current: Some(Milliamps(ma.round() as i32)),
            ..Sample::EMPTY
        };
        sample.cells[..16].fill(Some(Millivolts(mv.round() as u16)));
        sample.temps[..4].fill(Some(DeciCelsius(dc.round() as i16)));
        now += Duration::from_millis(STEP_MS);
        protection.handle_sample(now, &sample);
        // A delay that is over at the moment of a sample is decided by the samples before it.
        let before = beyond.clone();
        let load = ma / f64::from(limits.rated_ma);
        let tau_ms = limits.overload_tau.as_millis() as f64;
        heat += (1.0 - (-(STEP_MS as f64) / tau_ms).exp()) * (load * load - heat);
        for kind in Kind::ALL {
            let Some(rule) = limits.rule(kind, Severity::Trip) else {
                continue;
            };
            let value = match kind {
                Kind::CellOvervoltage
                | Kind::CellUndervoltage
                | Kind::DeepDischarge
                | Kind::GroupOvervoltage
                | Kind::GroupUndervoltage => mv.round() as i32,
                Kind::OvercurrentDischarge => ma.round() as i32,
                Kind::OvercurrentCharge => -ma.round() as i32,
                Kind::ShortCircuit => ma.abs().round() as i32,
                Kind::OvertempDischarge | Kind::UndertempDischarge => dc.round() as i32,
                Kind::OvertempCharge | Kind::UndertempCharge if ma < -f64::from(limits.rest_ma) => {
                    dc.round() as i32
                }
                // The lag is stepped otherwise here, to a per mille.
                Kind::Overload => (heat * 1_001.0).ceil() as i32,
                _ => continue,
            };
            let is = if kind.falls() {
                value <= rule.threshold
            } else {
                value >= rule.threshold
            };
            if !is {
                beyond.remove(&kind);
            } else {
                beyond.entry(kind).or_insert(now);
            }
        }
        while let Some(event) = protection.poll_event() {
            let (kind, trip) = (event.code.kind(), event.code.severity() == Severity::Trip);
            if !(trip && event.active) {
                continue;
            }
            let delay = limits
                .rule(kind, Severity::Trip)
                .map_or(Duration::ZERO, |r| r.delay);
            let due = [&beyond, &before]
                .iter()
                .any(|b| b.get(&kind).is_some_and(|since| now.since(*since) >= delay));
            let (demanded, other) = run.trips.entry(kind).or_default();
            *(if due { demanded } else { other }) += 1;
        }
        if protection.is_active(Code::new(Kind::StaleData, Severity::Trip))
            || protection.must_open()
        {
            protection.clear_service(now);
        }
    }
    run
}

fn print_table(tallies: &[Tally], runs: &[Run]) {
    println!(
        "{:<32} {:>9} {:>7} {:>5} {:>12}",
        "kind", "injected", "missed", "late", "false trips"
    );
    let mut sum = Tally::default();
    for (kind, t) in Kind::ALL.into_iter().zip(tallies) {
        let name = match kind.unit() {
            Unit::Count | Unit::PerMille => kind.name().to_string(),
            unit => format!("{} [{}]", kind.name(), unit.symbol()),
        };
        println!(
            "{name:<32} {:>9} {:>7} {:>5} {:>12}",
            t.injected, t.missed, t.late, t.false_trips
        );
        sum.injected += t.injected;
        sum.missed += t.missed;
        sum.late += t.late;
        sum.false_trips += t.false_trips;
    }
    println!(
        "{:<32} {:>9} {:>7} {:>5} {:>12}",
        "all", sum.injected, sum.missed, sum.late, sum.false_trips
    );
    if runs.is_empty() {
        return;
    }
    println!(
        "\n{:<32} {:>9} {:>9} {:>12}",
        "recording", "hours", "due trips", "false trips"
    );
    for run in runs {
        let due: u32 = run.trips.values().map(|(due, _)| due).sum();
        println!(
            "{:<32} {:>9.1} {due:>9} {:>12}",
            run.name,
            run.hours,
            run.false_trips()
        );
        for (kind, (due, other)) in &run.trips {
            println!("    {}: {due} due, {other} false", kind.name());
        }
    }
    let (hours, wrong) = runs
        .iter()
        .fold((0.0, 0), |(h, n), r| (h + r.hours, n + r.false_trips()));
    println!(
        "{:<32} {hours:>9.1} {:>9} {wrong:>12}",
        format!("{} recordings", runs.len()),
        ""
    );
}

fn print_json(tallies: &[Tally], runs: &[Run]) {
    let kinds = Kind::ALL.into_iter().zip(tallies).map(|(kind, t)| {
        format!(
            r#"{{"kind":"{}","injected":{},"missed":{},"late":{},"false_trips":{}}}"#,
            kind.name(),
            t.injected,
            t.missed,
            t.late,
            t.false_trips
        )
    });
    let recordings = runs.iter().map(|run| {
        let due: u32 = run.trips.values().map(|(due, _)| due).sum();
        format!(
            r#"{{"recording":"{}","hours":{:.2},"due_trips":{due},"false_trips":{}}}"#,
            run.name,
            run.hours,
            run.false_trips()
        )
    });
    println!(
        r#"{{"faults":[{}],"recordings":[{}]}}"#,
        kinds.collect::<Vec<_>>().join(","),
        recordings.collect::<Vec<_>>().join(",")
    );
}
