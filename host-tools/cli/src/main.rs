//! `helio`: reads the command line, calls the room that does the work, prints, and exits with
//!
//! | code | |
//! |---|---|
//! | 0 | done |
//! | 1 | it was tried and failed |
//! | 2 | the input is wrong: arguments, a file, a port in use; the message says what to change |

mod analyse;
mod bench;
mod bench_battery;
mod bench_positioning;
mod bridge;
mod broker;
mod cell;
mod demo;
mod export;
mod fw;
mod hub;
mod light;
mod locate;
mod map;
mod replay;
mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Heliograph: distributed control of battery packs and optical positioning.
#[derive(Parser)]
#[command(
    version,
    about,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the whole plant in real time: slaves, bus, master, broker, bridge and a live page.
    Demo(demo::Args),
    /// Run a scenario in virtual time and report.
    Sim(sim::Args),
    /// Measure what must hold: each figure beside its goal.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Feed a recording to the slaves' sensors and compare the master's estimate with the truth.
    #[command(subcommand)]
    Replay(replay::Command),
    /// Locate tags from recorded ranges, and compare with the truth where there is one.
    Locate(locate::Args),
    /// Check, calibrate, survey, plot, compare and export anchor maps.
    #[command(subcommand)]
    Map(map::Command),
    /// Read light codes from images, or make such images.
    #[command(subcommand)]
    Light(light::Command),
    /// Make a cell's parameter file from test recordings, test an estimator on others, plot.
    #[command(subcommand)]
    Cell(cell::Command),
    /// Prove from a scenario's bus how late each message can be.
    #[command(subcommand)]
    Analyse(analyse::Command),
    /// Describe the plant for other people's tools: a DBC of its messages.
    #[command(subcommand)]
    Export(export::Command),
    /// Carry masters' telemetry to an MQTT broker over TLS 1.3.
    Bridge(bridge::Args),
    /// Run the demonstration's MQTT broker (TLS 1.3 only, client certificates required).
    Broker(broker::Args),
    /// Firmware of masters and slaves: list, upload, try, confirm, reset.
    #[command(subcommand)]
    Fw(fw::Command),
    /// Join firmwares in emulation (native_sim, QEMU) to one RS485 or CAN bus.
    Hub(hub::Args),
}

/// An error that the user can mend: exit code 2.
#[derive(Debug)]
pub struct BadInput(String);

impl BadInput {
    /// `what` is one sentence: where, what is wrong, what to do.
    pub fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl std::fmt::Display for BadInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HELIO_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,rumqttd=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return refuse(&e),
    };
    let done = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Sim(args) => sim::run(args),
        Command::Bench(command) => bench::run(command),
        Command::Replay(command) => replay::run(command),
        Command::Locate(args) => locate::run(&args),
        Command::Map(command) => map::run(&command),
        Command::Light(command) => light::run(&command),
        Command::Cell(command) => cell::run(command),
        Command::Analyse(command) => analyse::run(command),
        Command::Export(command) => export::run(command),
        Command::Bridge(args) => bridge::run(args),
        Command::Broker(args) => broker::run(args),
        Command::Fw(command) => fw::run(&command),
        Command::Hub(args) => hub::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("helio: {e:#}");
            let bad_input = e.chain().any(|cause| {
                cause.is::<BadInput>()
                    || cause.is::<helio_sim::scenario::InputError>()
                    || cause.is::<helio_locate::InputError>()
                    || cause
                        .downcast_ref::<std::io::Error>()
                        .is_some_and(|io| io.kind() == std::io::ErrorKind::AddrInUse)
            });
            ExitCode::from(if bad_input { 2 } else { 1 })
        }
    }
}

/// Says what is wrong with the arguments in one line, or prints the help that was asked for.
fn refuse(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as Bare;
    if !error.use_stderr() || error.kind() == Bare {
        // Whoever closed the pipe does not want it.
        let _ = error.print();
    } else {
        // The parser says what is wrong in its first paragraph; usage and tips follow.
        let text = error.to_string();
        let first: Vec<&str> = text
            .lines()
            .map(str::trim)
            .take_while(|l| !l.is_empty())
            .collect();
        let what = first.join(" ");
        eprintln!(
            "helio: {}; see helio help",
            what.strip_prefix("error: ").unwrap_or(&what)
        );
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
