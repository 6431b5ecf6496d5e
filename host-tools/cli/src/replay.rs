//! `helio replay`: recordings through slaves, bus and master.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use helio_bus::BusKind;
use helio_sim::replay::{BatteryReplay, PositionReplay, TrackPoint};

use crate::BadInput;
use crate::sim::{Progress, bus};

/// What to replay.
#[derive(clap::Subcommand)]
pub enum Command {
    /// A cell's recording; compares state of charge
    Battery(Battery),
    /// Ranges of anchors to tags; compares positions
    Positions(Positions),
}

/// Arguments of `helio replay battery`.
#[derive(clap::Args)]
pub struct Battery {
    /// Cell parameter file, for example data/cells/lgm50.toml
    #[arg(long)]
    cell: PathBuf,
    /// CSV with time_s, current_a, voltage_v and, where known, temperature_c and soc
    #[arg(long)]
    trace: PathBuf,
    /// State of charge at the start (0 to 1), for traces that count ampere-hours instead of soc
    #[arg(long)]
    start_soc: Option<f64>,
    /// The trace counts charge positive (by default discharge is)
    #[arg(long)]
    charge_positive: bool,
    /// Seconds that the filter may settle before its error counts
    #[arg(long, default_value_t = 60.0)]
    settle: f64,
    /// Which bus the recording crosses
    #[arg(long, value_parser = bus, default_value = "can-1m")]
    bus: BusKind,
    /// Write estimate and truth, once a second, to this CSV file
    #[arg(long)]
    track: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio replay positions`.
#[derive(clap::Args)]
pub struct Positions {
    /// Anchor map file, for example data/maps/uwb-planar.toml
    #[arg(long)]
    map: PathBuf,
    /// CSV of ranges in metres: time, then a column per anchor and tag
    #[arg(long)]
    ranges: PathBuf,
    /// CSV of the truth: time, x, y, z in metres and the attitude where the map asks for it
    #[arg(long)]
    truth: PathBuf,
    /// Known height of the tags in millimetres (default: the map's tag_height_m, else 3D)
    #[arg(long, allow_hyphen_values = true)]
    height_mm: Option<i32>,
    /// Which bus the recording crosses
    #[arg(long, value_parser = bus, default_value = "canfd")]
    bus: BusKind,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    let mut progress = Progress::new();
    let text = match command {
        Command::Battery(args) => {
            let replay = BatteryReplay {
                cell: &args.cell,
                trace: &args.trace,
                bus: args.bus,
                start_soc: args.start_soc,
                charge_positive: args.charge_positive,
                settle_s: args.settle,
            };
            let report = replay.run(|now, end| progress.show(now, end))?;
            if let Some(file) = &args.track {
                write_track(file, &report.track)?;
            }
            if args.json {
                serde_json::to_string_pretty(&report)? + "\n"
            } else {
                report.to_text()
            }
        }
        Command::Positions(args) => {
            let replay = PositionReplay {
                map: &args.map,
                ranges: &args.ranges,
                truth: &args.truth,
                bus: args.bus,
                height_mm: args.height_mm,
            };
            let report = replay.run(|now, end| progress.show(now, end))?;
            if args.json {
                serde_json::to_string_pretty(&report)? + "\n"
            } else {
                report.to_text()
            }
        }
    };
    progress.finish();
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn write_track(file: &Path, track: &[TrackPoint]) -> Result<()> {
    let mut text = String::from("time_s,soc,sigma,truth\n");
    for p in track {
        text += &format!(
            "{:.3},{:.5},{:.5},{:.5}\n",
            p.time_s, p.soc, p.sigma, p.truth
        );
    }
    std::fs::write(file, text).map_err(|e| {
        BadInput::new(format!(
            "{}: {e}; name a file that can be written",
            file.display()
        ))
    })?;
    Ok(())
}
