//! `helio export`: descriptions of the plant for other people's tools.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use helio_bus::BusKind;
use helio_sim::scenario::Scenario;

use crate::BadInput;
use crate::sim::bus;

/// What to describe.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Every cyclic CAN message of a scenario's rack as a DBC, for cantools, SavvyCAN, CANalyzer.
    Dbc(DbcArgs),
}

/// Arguments of `helio export dbc`.
#[derive(clap::Args)]
pub struct DbcArgs {
    /// Scenario file, for example scenarios/rack-32.toml
    scenario: PathBuf,
    /// For this bus instead of the scenario's
    #[arg(long, value_parser = bus)]
    bus: Option<BusKind>,
    /// Of several buses of a master this one, from 1
    #[arg(long, default_value_t = 1)]
    number: usize,
    /// Write to this file instead of standard output
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    let Command::Dbc(args) = command;
    let mut scenario = Scenario::load(&args.scenario)?;
    if let Some(kind) = args.bus {
        scenario.set_bus(kind);
    }
    let buses = helio_sim::capabilities(&scenario)?;
    let wanted = args.number.checked_sub(1).and_then(|n| buses.get(n));
    let (bus, slaves) = wanted.ok_or_else(|| {
        let count = buses.len();
        BadInput::new(format!(
            "there is no bus {} in {}; --number is 1 to {count}",
            args.number,
            args.scenario.display()
        ))
    })?;
    let text = helio_sim::dbc::dbc(bus.kind, slaves).ok_or_else(|| {
        BadInput::new(format!(
            "{} is not CAN, and a DBC describes nothing else; add --bus can-1m or another CAN bus",
            bus.kind.name()
        ))
    })?;
    match args.out {
        Some(path) => std::fs::write(&path, text)
            .with_context(|| format!("{} cannot be written", path.display())),
        None => Ok(std::io::stdout().write_all(text.as_bytes())?),
    }
}
