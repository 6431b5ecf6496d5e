//! `helio analyse bus`: how late each message of a scenario's bus can be, and whether it fits.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Result;
use helio_bus::analysis::can::CanErrors;
use helio_bus::analysis::{Analysis, Assumptions, Bound, Kind, Overfull, fits, most_slaves};
use helio_bus::{BusKind, Capabilities, Schedule};
use helio_sim::bounds::{self, Row};
use helio_sim::scenario::{BusWanted, Scenario};
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
    let mut buses = Vec::new();
    for (bus, mut slaves) in helio_sim::capabilities(&scenario)? {
        if let Some(n) = args.slaves {
            let kinds = slaves.clone();
            slaves = kinds.into_iter().cycle().take(n.into()).collect();
        }
        buses.push(OneBus::new(&args, &scenario, &bus, slaves)?);
    }
    let text = if args.json {
        let mut each: Vec<Value> = buses.iter().map(OneBus::as_json).collect();
        let value = match each.len() {
            1 => each.remove(0),
            _ => json!({ "buses": each, "trips_us": trips(&buses) }),
        };
        serde_json::to_string_pretty(&value)? + "\n"
    } else {
        as_text(&buses)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let file = args.scenario.display();
    for (number, bus) in (1..).zip(&buses) {
        let Err(overfull) = &bus.verdict else {
            continue;
        };
        let which = match buses.len() {
            1 => "this schedule".to_string(),
            _ => format!("the schedule of bus {number}"),
        };
        let remedy = remedy(bus.schedule.kind, &bus.slaves, bus.most);
        let what = format!("{file}: {which} does not fit: {overfull}; {remedy}");
        return Err(BadInput::new(what).into());
    }
    let mut compared = buses.iter().filter_map(|bus| bus.compared.as_ref());
    if compared.any(|(_, rows)| rows.iter().any(|r| r.violations > 0)) {
        anyhow::bail!("a message was later than its bound: the analysis or the bus is wrong");
    }
    Ok(())
}

/// One of the buses, and what was found.
struct OneBus {
    schedule: Schedule,
    slaves: Vec<Capabilities>,
    columns: Vec<Analysis>,
    most: u8,
    verdict: Result<(), Overfull>,
    compared: Option<Compared>,
}

impl OneBus {
    fn new(
        args: &Args,
        scenario: &Scenario,
        bus: &BusWanted,
        slaves: Vec<Capabilities>,
    ) -> Result<Self> {
        let schedule = schedule_of(scenario, bus, slaves.len());
        let verdict = fits(&schedule, slaves.iter().copied());
        let compared = match (args.check && verdict.is_ok(), args.full) {
            (false, _) => None,
            (true, full) => {
                let frames = if full { 1_000_000_000 } else { args.frames };
                Some(compare(&schedule, &slaves, args.seed, frames)?)
            }
        };
        Ok(Self {
            columns: columns(&schedule, &slaves, Duration::from_micros(args.refill_us)),
            most: most_slaves(&schedule, &slaves),
            schedule,
            slaves,
            verdict,
            compared,
        })
    }

    /// Bound of a trip when all is calm.
    fn trip(&self) -> Option<Duration> {
        self.columns.first()?.bound(Kind::Trip)?.response
    }
}

/// Bounds of a trip from each bus to each other one, µs, without what the master itself takes.
fn trips(buses: &[OneBus]) -> Vec<Vec<Option<f64>>> {
    let of = |from: &OneBus, to: &OneBus| Some((from.trip()? + to.trip()?).as_nanos() as f64 / 1e3);
    let row = |from| buses.iter().map(|to| of(from, to)).collect();
    buses.iter().map(row).collect()
}

fn as_text(buses: &[OneBus]) -> String {
    let several = buses.len() > 1;
    let mut text = String::new();
    for (number, bus) in (1..).zip(buses) {
        if several {
            text += &format!("bus {number}: ");
        }
        text += &bus.as_text();
        text += if several { "\n" } else { "" };
    }
    if several {
        text += "a trip on one bus is said on all: bound in us, without the master's own time\nfrom \\ to";
        for to in 1..=buses.len() {
            text += &format!(" {to:>9}");
        }
        text += "\n";
        for (from, row) in trips(buses).iter().enumerate() {
            text += &format!("{:<9}", from + 1);
            for (to, us) in row.iter().enumerate() {
                let cell = us.filter(|_| to != from).map(|us| format!("{us:.0}"));
                text += &format!(" {:>9}", cell.unwrap_or("-".into()));
            }
            text += "\n";
        }
    }
    text
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

impl OneBus {
    fn as_text(&self) -> String {
        let Self {
            schedule,
            slaves,
            columns,
            most,
            compared,
            ..
        } = self;
        let Some(calm) = columns.first() else {
            return String::new();
        };
        let mut text = format!(
            "{}, {} slaves, cycle {:.1} ms, cyclic load {:.1} % (longest frames); at most {most} such slaves\n\n",
            schedule.kind.name(),
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

    fn as_json(&self) -> Value {
        let Self {
            schedule,
            slaves,
            columns,
            most,
            compared,
            verdict,
        } = self;
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
            "bus": schedule.kind.name(),
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
}
