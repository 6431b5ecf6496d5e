//! `helio bench`: what must hold, measured in virtual time and on recordings.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use helio_bus::BusKind;
use helio_sim::bench;

use crate::sim::bus;

/// What to measure.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Trips, alarms, joins, dead and babbling slaves, skew, throughput: each figure beside its goal.
    Bus(BusArgs),
    /// State of charge and of health on recordings, under sensor errors, beside other estimators: each figure beside its goal.
    Battery(crate::bench_battery::Args),
}

/// Arguments of `helio bench bus`.
#[derive(clap::Args)]
pub struct BusArgs {
    /// Only this bus
    #[arg(long, value_parser = bus)]
    bus: Option<BusKind>,
    /// Thousands of trials instead of dozens: minutes instead of seconds
    #[arg(long)]
    full: bool,
    /// Seed of the first trial
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Bus(args) => run_bus(args),
        Command::Battery(args) => crate::bench_battery::run(&args),
    }
}

fn run_bus(args: BusArgs) -> Result<()> {
    let plan = bench::Plan {
        buses: args.bus.map_or(BusKind::ALL.to_vec(), |kind| vec![kind]),
        full: args.full,
        seed: args.seed,
    };
    let report = bench::run(&plan, show);
    if std::io::stderr().is_terminal() {
        eprint!("\r{:60}\r", "");
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let missed = report.figures.iter().filter(|f| !f.holds()).count();
    anyhow::ensure!(
        missed == 0,
        "{missed} of {} figures miss their goal",
        report.figures.len()
    );
    Ok(())
}

/// What runs now, on a terminal only.
fn show(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{what:60}\r");
    }
}
