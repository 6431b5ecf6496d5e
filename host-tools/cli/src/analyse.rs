//! `helio analyse bus`: how late each message of a scenario's bus can be, and whether it fits.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Result;
use helio_bus::analysis::can::CanErrors;
use helio_bus::analysis::{Analysis, Assumptions, Bound, Overfull, fits, most_slaves};
use helio_bus::{BusKind, Capabilities, Schedule};
use helio_sim::bounds::{self, Row};
use helio_sim::scenario::Scenario;
use helio_sim::{schedule, schedule_of};
use helio_units::Duration;
use serde_json::{Value, json};

use crate::BadInput;

/// What to analyse.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Bound of every message, load, margin, and how many slaves fit; refuses a bus that is too full
    Bus(Args),
}

/// Arguments of `helio analyse bus`.
#[derive(clap::Args)]
pub struct Args {
    /// Scenario file, for example scenarios/rack-32.toml
    scenario: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// This bus instead of the scenario's
    #[arg(long, value_parser = crate::sim::bus)]
    bus: Option<BusKind>,
    /// So many slaves, alike, instead of the scenario's
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=127))]
    slaves: Option<u8>,
    /// Microseconds until software refills a mailbox; with more than three bits it misses an arbitration
    #[arg(long, default_value_t = 0)]
    refill_us: u64,
    /// Also run the real links on the bit-exact bus and compare every message with its bound
    #[arg(long)]
    check: bool,
    /// Frames of the comparison at random times
    #[arg(long, default_value_t = 100_000)]
    frames: u64,
    /// A thousand million frames
    #[arg(long)]
    full: bool,
    /// Seed of the comparison
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What is believed of the world in each column.
const COLUMNS: [&str; 4] = ["calm", "storm", "babbler", "errors"];

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    let Command::Bus(args) = command;
    let mut scenario = Scenario::load(&args.scenario)?;
    if let Some(kind) = args.bus {
        scenario.set_bus(kind);
    }
    let kind = scenario.bus_kind();
    let mut slaves = helio_sim::capabilities(&scenario)?;
    if let Some(n) = args.slaves {
        let kinds = slaves.clone();
        slaves = kinds.into_iter().cycle().take(n.into()).collect();
    }
    let schedule = schedule_of(&scenario, slaves.len());
    let verdict = fits(&schedule, slaves.iter().copied());
    let most = most_slaves(&schedule, &slaves);
    let columns = columns(&schedule, &slaves, Duration::from_micros(args.refill_us));
    let remedy = verdict.as_ref().err().map(|_| remedy(kind, &slaves, most));
    let compared = match (args.check && verdict.is_ok(), args.full) {
        (false, _) => None,
        (true, full) => {
            let frames = if full { 1_000_000_000 } else { args.frames };
            Some(compare(&schedule, &slaves, args.seed, frames)?)
        }
    };
    let text = if args.json {
        let value = as_json(
            kind, &schedule, &slaves, &columns, most, &verdict, &compared,
        );
        serde_json::to_string_pretty(&value)? + "\n"
    } else {
        as_text(kind, &schedule, &slaves, &columns, most, &compared)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    if let (Err(overfull), Some(remedy)) = (verdict, remedy) {
        let file = args.scenario.display();
        let what = format!("{file}: this schedule does not fit: {overfull}; {remedy}");
        return Err(BadInput::new(what).into());
    }
    let late = compared.is_some_and(|(_, rows)| rows.iter().any(|r| r.violations > 0));
    if late {
        anyhow::bail!("a message was later than its bound: the analysis or the bus is wrong");
    }
    Ok(())
}

fn columns(schedule: &Schedule, slaves: &[Capabilities], refill: Duration) -> Vec<Analysis> {
    let calm = Assumptions {
        refill,
        ..Assumptions::calm(schedule)
    };
    let storm = Assumptions {
        refill,
        ..Assumptions::storm(schedule)
    };
    let each = [
        calm,
        storm,
        Assumptions {
            babblers: 1,
            ..storm
        },
        Assumptions {
            errors: CanErrors {
                burst: 1,
                interval: Duration::from_millis(10),
            },
            ..storm
        },
    ];
    let each = each.iter();
    each.map(|assumed| Analysis::new(schedule, slaves.iter().copied(), assumed))
        .collect()
}

/// What would help, best first.
fn remedy(kind: BusKind, slaves: &[Capabilities], most: u8) -> String {
    let mut ways = Vec::new();
    let faster = BusKind::ALL.into_iter().filter(|other| {
        *other != kind
            && fits(
                &schedule(*other, slaves.len(), None),
                slaves.iter().copied(),
            )
            .is_ok()
    });
    let faster: Vec<_> = faster.map(BusKind::name).collect();
    if !faster.is_empty() {
        ways.push(format!("bus = \"{}\"", faster.join("\" or \"")));
    }
    let usual = schedule(kind, slaves.len(), None);
    let longer = (11..=60u64).map(|tenth| {
        let cycle = Duration::from_nanos(usual.cycle.as_nanos() / 10 * tenth);
        usual.with_cycle(cycle)
    });
    if let Some(longer) = longer
        .into_iter()
        .find(|longer| fits(longer, slaves.iter().copied()).is_ok())
    {
        ways.push(format!(
            "cycle_ms = {}",
            longer.cycle.as_micros() as f64 / 1e3
        ));
    }
    if most > 0 {
        ways.push(format!(
            "at most {most} such slaves on one bus, the rest on another master"
        ));
    }
    match ways.is_empty() {
        true => "take fewer anchors or cells per slave".into(),
        false => format!("what would help: {}", ways.join(", or ")),
    }
}

type Compared = (u64, Vec<Row>);

fn compare(
    schedule: &Schedule,
    slaves: &[Capabilities],
    seed: u64,
    frames: u64,
) -> Result<Compared> {
    let plan = bounds::Plan {
        schedule: *schedule,
        slaves: slaves.to_vec(),
        seed,
        tries: 100_000,
    };
    let shown = std::io::stderr().is_terminal();
    let begin = std::time::Instant::now();
    let mut last = 0;
    let mut chaos = bounds::chaos(&plan, frames, |done| {
        let seconds = begin.elapsed().as_secs();
        if shown && seconds > last {
            last = seconds;
            eprint!("\r{done} of {frames} frames ");
        }
    })?;
    if shown {
        eprint!("\r{:40}\r", "");
    }
    let critical = bounds::critical(&plan)?;
    chaos.rows.extend(critical.rows);
    Ok((chaos.frames + critical.frames, chaos.rows))
}

/// Microseconds until 10 ms.
fn margin_us(bound: &Bound) -> Option<i64> {
    let response = i64::try_from(bound.response?.as_micros()).ok()?;
    Some(10_000 - response)
}

fn as_text(
    kind: BusKind,
    schedule: &Schedule,
    slaves: &[Capabilities],
    columns: &[Analysis],
    most: u8,
    compared: &Option<Compared>,
) -> String {
    let Some(calm) = columns.first() else {
        return String::new();
    };
    let mut text = format!(
        "{}, {} slaves, cycle {:.1} ms, cyclic load {:.1} % (longest frames); at most {most} such slaves\n\n",
        kind.name(),
        slaves.len(),
        schedule.cycle.as_micros() as f64 / 1e3,
        f64::from(calm.load_ppm()) / 1e4,
    );
    text += "bounds in us       of      calm     storm   babbler    errors  deadline  margin to 10 ms\n";
    for bound in calm.bounds() {
        text += &format!("{:<15} {:>5}", bound.kind.name(), bound.count);
        for column in columns {
            let response = column.bound(bound.kind).and_then(|b| b.response);
            let cell = response.map_or("none".into(), |d| d.as_micros().to_string());
            text += &format!(" {cell:>9}");
        }
        let deadline = bound
            .deadline
            .map_or("-".into(), |d| d.as_micros().to_string());
        let margin = margin_us(bound).map_or("none".into(), |us| us.to_string());
        text += &format!(" {deadline:>9} {margin:>16}\n");
    }
    text += "\ncalm: 4 alarms and 2 orders a cycle. storm: all slaves trip and alarm at once. babbler: and one\n\
             spends its whole budget. errors: storm, and a frame destroyed at once and every 10 ms.\n";
    if let Some((frames, rows)) = compared {
        text += &format!("\n{frames} frames simulated\n");
        text += "run       message     timed   worst us   bound us   ratio  violations\n";
        for row in rows {
            text += &format!(
                "{:<9} {:<8} {:>8} {:>10} {:>10} {:>7.3} {:>11}\n",
                row.run,
                row.kind.name(),
                row.count,
                row.worst.as_micros(),
                row.bound.as_micros(),
                row.ratio(),
                row.violations
            );
        }
    }
    text
}

fn as_json(
    kind: BusKind,
    schedule: &Schedule,
    slaves: &[Capabilities],
    columns: &[Analysis],
    most: u8,
    verdict: &Result<(), Overfull>,
    compared: &Option<Compared>,
) -> Value {
    let us = |d: Option<Duration>| d.map(|d| d.as_nanos() as f64 / 1e3);
    let calm = columns.first();
    let bounds = calm.iter().flat_map(|calm| calm.bounds()).map(|bound| {
        let mut value = json!({
            "message": bound.kind.name(),
            "count": bound.count,
            "deadline_us": us(bound.deadline),
            "margin_to_10_ms_us": margin_us(bound),
        });
        for (name, column) in COLUMNS.iter().zip(columns) {
            let response = column.bound(bound.kind).and_then(|b| b.response);
            value[format!("{name}_us")] = json!(us(response));
        }
        value
    });
    let bounds: Vec<Value> = bounds.collect();
    json!({
        "bus": kind.name(),
        "slaves": slaves.len(),
        "cycle_us": us(Some(schedule.cycle)),
        "load_ppm": calm.map(Analysis::load_ppm),
        "most_slaves": most,
        "fits": verdict.is_ok(),
        "breaks": verdict.as_ref().err().map(|Overfull(b)| b.kind.name()),
        "bounds": bounds,
        "simulated": compared.as_ref().map(|(frames, rows)| json!({
            "frames": frames,
            "rows": rows.iter().map(|row| json!({
                "run": row.run,
                "message": row.kind.name(),
                "timed": row.count,
                "worst_us": us(Some(row.worst)),
                "bound_us": us(Some(row.bound)),
                "ratio": row.ratio(),
                "violations": row.violations,
            })).collect::<Vec<_>>(),
        })),
    })
}
