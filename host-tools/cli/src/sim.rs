//! `helio sim`: a scenario in virtual time.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result};
use helio_bus::BusKind;
use helio_sim::World;
use helio_sim::media::log::{CanLog, LogFormat};
use helio_sim::scenario::{BusWanted, InputError, Scenario};

/// Arguments of `helio sim`.
#[derive(clap::Args)]
pub struct Args {
    /// Scenario file, for example scenarios/rack-32.toml
    scenario: PathBuf,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    /// Run on this bus instead of the scenario's
    #[arg(long, value_parser = bus)]
    bus: Option<BusKind>,
    /// Run so many virtual seconds instead of the scenario's
    #[arg(long)]
    seconds: Option<f64>,
    /// Use this seed instead of the scenario's
    #[arg(long)]
    seed: Option<u64>,
    /// Write what the first master's CAN buses carry as candump's log
    #[arg(long, value_name = "FILE")]
    candump: Option<PathBuf>,
    /// Write what the first master's CAN buses carry as Vector's ASC
    #[arg(long, value_name = "FILE")]
    asc: Option<PathBuf>,
}

/// Logs being written, and what went wrong with them.
type Logs = Arc<Mutex<(Vec<CanLog<BufWriter<File>>>, std::io::Result<()>)>>;

/// Begins the logs that are asked for.
fn begin_logs(args: &Args, buses: &[BusWanted], world: &mut World) -> Result<Option<Logs>> {
    let wanted = [
        (&args.candump, LogFormat::Candump),
        (&args.asc, LogFormat::Asc),
    ];
    let mut logs = Vec::new();
    for (path, format) in wanted {
        let Some(path) = path else { continue };
        if buses.iter().all(|bus| bus.kind.is_serial()) {
            let names: Vec<_> = buses.iter().map(|bus| bus.kind.name()).collect();
            let what = format!(
                "{} is not CAN, so there is nothing to write to {}; add --bus can-1m or another CAN bus",
                names.join("+"),
                path.display()
            );
            return Err(crate::BadInput::new(what).into());
        }
        logs.push(new_log(path, format)?);
    }
    if logs.is_empty() {
        return Ok(None);
    }
    let logs: Logs = Arc::new(Mutex::new((logs, Ok(()))));
    if let Some(rack) = world.racks.first_mut() {
        let logs = Arc::clone(&logs);
        rack.tap_can(Box::new(move |bus, event| {
            if let Ok(mut both) = logs.lock() {
                let (logs, result) = &mut *both;
                for log in logs {
                    if result.is_ok() {
                        *result = log.record(bus, event);
                    }
                }
            }
        }));
    }
    Ok(Some(logs))
}

fn new_log(path: &Path, format: LogFormat) -> Result<CanLog<BufWriter<File>>> {
    let file = File::create(path).map_err(|e| {
        crate::BadInput::new(format!(
            "{} cannot be written: {e}; choose another place",
            path.display()
        ))
    })?;
    Ok(CanLog::new(format, BufWriter::new(file))?)
}

fn end_logs(logs: &Logs) -> Result<()> {
    if let Ok(mut both) = logs.lock() {
        let (logs, result) = &mut *both;
        std::mem::replace(result, Ok(())).context("the log could not be written")?;
        for log in logs.drain(..) {
            log.finish().context("the log could not be written")?;
        }
    }
    Ok(())
}

/// Reads a bus's name for clap.
pub fn bus(name: &str) -> Result<BusKind, String> {
    let names = BusKind::ALL.map(BusKind::name).join(", ");
    BusKind::from_name(name).ok_or_else(|| format!("choose one of {names}"))
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let mut scenario = Scenario::load(&args.scenario)?;
    if let Some(kind) = args.bus {
        scenario.set_bus(kind);
    }
    if let Some(seconds) = args.seconds {
        if !(seconds > 0.0 && seconds <= 1e7) {
            let what = format!("--seconds {seconds} is no length of time; give a number above 0");
            return Err(InputError {
                file: args.scenario,
                line: None,
                what,
            }
            .into());
        }
        scenario.set_duration_s(seconds);
    }
    scenario.seed = args.seed.unwrap_or(scenario.seed);
    let buses = scenario.buses();
    let mut world = World::new(scenario)?;
    let logs = begin_logs(&args, &buses, &mut world)?;
    let mut progress = Progress::new();
    let end = helio_sim::plant::seconds(world.end());
    let report = world.run(|now| progress.show(now, end));
    progress.finish();
    if let Some(logs) = logs {
        end_logs(&logs)?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// How far it is, on a terminal only.
pub struct Progress {
    started: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// Starts the clock.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            shown: None,
        }
    }

    /// Shows `now` of `end` virtual seconds, a few times a second.
    pub fn show(&mut self, now: f64, end: f64) {
        let recent = self.shown.is_some_and(|at| at.elapsed().as_millis() < 250);
        if recent || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(Instant::now());
        let speed = now / self.started.elapsed().as_secs_f64().max(1e-3);
        eprint!("\r{now:.0} of {end:.0} s virtual, {speed:.0} times real time ");
    }

    /// Clears the line.
    pub fn finish(&self) {
        if self.shown.is_some() {
            eprint!("\r{:60}\r", "");
        }
    }
}
