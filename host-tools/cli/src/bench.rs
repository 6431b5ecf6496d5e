//! `helio bench`: what must hold, measured in virtual time and on recordings.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use helio_bus::BusKind;
use helio_sim::{bench, corruption, soak};

use crate::sim::bus;

/// What to measure.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Trips, alarms, joins, dead and babbling slaves, skew, throughput: each figure beside its goal.
    Bus(BusArgs),
    /// Fixes, faults, integrity, tracking, camera, diagnosis and light codes: each figure beside its goal.
    Positioning(crate::bench_positioning::Args),
    /// Random schedules of faults: nobody stays lost, no seat is shared, no trip is stuck.
    Soak(SoakArgs),
    /// Damaged frames of every format: what controllers and checks let pass, and how often that is.
    Corruption(CorruptionArgs),
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

/// Arguments of `helio bench soak`.
#[derive(clap::Args)]
pub struct SoakArgs {
    /// Only this bus
    #[arg(long, value_parser = bus)]
    bus: Option<BusKind>,
    /// A million schedules: minutes to an hour
    #[arg(long)]
    full: bool,
    /// So many schedules
    #[arg(long, conflicts_with = "full", value_parser = clap::value_parser!(u64).range(1..))]
    schedules: Option<u64>,
    /// Stop after so many seconds, however many have run
    #[arg(long)]
    seconds: Option<f64>,
    /// Seed of the first schedule; each further one is one more
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At once [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Tell what happens in the first schedule instead
    #[arg(long, requires = "bus")]
    tell: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

fn run_soak(args: SoakArgs) -> Result<()> {
    if let (true, Some(kind)) = (args.tell, args.bus) {
        std::io::stdout().write_all(soak::tell(kind, args.seed).as_bytes())?;
        return Ok(());
    }
    let one_each = || std::thread::available_parallelism().map_or(1, usize::from);
    let plan = soak::Plan {
        buses: args.bus.map_or(BusKind::ALL.to_vec(), |kind| vec![kind]),
        schedules: args
            .schedules
            .unwrap_or(if args.full { 1_000_000 } else { 2_000 }),
        seed: args.seed,
        threads: args.threads.unwrap_or_else(one_each),
        seconds: args.seconds,
    };
    let report = soak::run(&plan, |done| show(&format!("{done} of {}", plan.schedules)));
    if std::io::stderr().is_terminal() {
        eprint!("\r{:60}\r", "");
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    anyhow::ensure!(
        report.failed == 0,
        "{} of {} schedules failed",
        report.failed,
        report.schedules
    );
    Ok(())
}

/// Arguments of `helio bench corruption`.
#[derive(clap::Args)]
pub struct CorruptionArgs {
    /// 10^9 damaged frames: many minutes
    #[arg(long)]
    full: bool,
    /// Millions of damaged frames, half of them CAN, two fifths RS485, a tenth CAN FD
    #[arg(long, conflicts_with = "full")]
    millions: Option<u64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// At once [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Bit error rate for which rates are computed.
const BER: f64 = 1e-5;

fn run_corruption(args: &CorruptionArgs) -> Result<()> {
    let one_each = || std::thread::available_parallelism().map_or(1, usize::from);
    let millions = args.millions.unwrap_or(if args.full { 1_000 } else { 10 });
    let plan = corruption::Plan {
        frames: [500_000, 100_000, 400_000].map(|n| n * millions),
        seed: args.seed,
        threads: args.threads.unwrap_or_else(one_each),
    };
    let figures = corruption::run(&plan, show);
    let shifted = corruption::shifted_pairs_fd(500, args.seed);
    if std::io::stderr().is_terminal() {
        eprint!("\r{:60}\r", "");
    }
    let can = figures
        .iter()
        .find(|f| f.format == "can")
        .map(|f| f.tally)
        .unwrap_or_default();
    let share = can.passed_pairs as f64 / can.pairs.max(1) as f64;
    // Lines that carry nothing else; 8 data bytes take about 125 bits with intermission, FD's 48 about 138 us.
    let rates = [
        (
            "can-500k",
            corruption::residual(4_000.0, 115.0, BER, share, 1.0 / 256.0),
        ),
        (
            "can-1m",
            corruption::residual(8_000.0, 115.0, BER, share, 1.0 / 256.0),
        ),
        (
            "canfd",
            corruption::residual(
                7_250.0,
                480.0,
                BER,
                shifted / f64::from(1 << 21),
                1.0 / 65_536.0,
            ),
        ),
    ];
    let text = if args.json {
        let rates: Vec<_> = rates
            .iter()
            .map(|(bus, r)| serde_json::json!({ "bus": bus, "residual": r }))
            .collect();
        serde_json::to_string_pretty(&serde_json::json!({ "formats": figures, "residual": rates }))?
            + "\n"
    } else {
        let mut text = format!(
            "{:<8} {:>13} {:>13} {:>11} {:>9} {:>9} {:>8}\n",
            "format", "damaged", "pairs", "passed", "pairs", "accepted", "M/s"
        );
        for f in &figures {
            let t = f.tally;
            text += &format!(
                "{:<8} {:>13} {:>13} {:>11} {:>9} {:>9} {:>8.1}\n",
                f.format,
                t.frames,
                t.pairs,
                t.passed,
                t.passed_pairs,
                t.accepted,
                f.million_per_second
            );
        }
        text += "\nundetected on a line that carries nothing else, bit error rate 1e-5 at one receiver\n";
        for (bus, r) in &rates {
            text += &format!(
                "{bus:<8} {:.1e} frames/h, {:.1e} pairs/h, controller misses {:.1e}, then check {:.1e}: {:.1e} per hour\n",
                r.frames_per_hour, r.pairs_per_hour, r.share_controller, r.share_check, r.per_hour
            );
        }
        text
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let accepted: u64 = figures.iter().map(|f| f.tally.accepted).sum();
    anyhow::ensure!(accepted == 0, "{accepted} damaged frames were accepted");
    Ok(())
}

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Bus(args) => run_bus(args),
        Command::Positioning(args) => crate::bench_positioning::run(&args),
        Command::Soak(args) => run_soak(args),
        Command::Corruption(args) => run_corruption(&args),
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
