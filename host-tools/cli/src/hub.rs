//! `helio hub`: one RS485 or CAN bus for firmwares in emulation, until it is interrupted.
//!
//! It says where members connect as soon as they can, and what it saw when it ends; with `--json`
//! each is one line.

use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use helio_hub::{Address, SetupError, can, serial};
use serde_json::json;

use crate::BadInput;
use crate::broker::interruption;

/// Arguments of `helio hub`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  helio hub --ptys 33 --dir /tmp/bus             RS485 of 33 native_sim: zephyr.exe --rs485_port=/tmp/bus/0 ...
  helio hub --listen 127.0.0.1:2000              RS485 of QEMU: -chardev socket,id=bus,host=127.0.0.1,port=2000
  helio hub --ptys 2 --tty /dev/ttyUSB0:1000000  firmware in emulation and a real bus
  helio hub --can 127.0.0.1:29500                CAN of native_sim: zephyr.exe --can-hub=127.0.0.1:29500")]
pub struct Args {
    /// RS485: make so many pseudo-terminals
    #[arg(long, value_name = "N", default_value_t = 0)]
    ptys: usize,
    /// Put links to the pseudo-terminals here, named 0, 1 and so on
    #[arg(long, requires = "ptys")]
    dir: Option<PathBuf>,
    /// RS485: let members connect to 127.0.0.1:PORT or to a socket file (repeat for more)
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<Address>,
    /// RS485: open this serial device (repeat for more)
    #[arg(long, value_name = "PATH[:BAUD]")]
    tty: Vec<String>,
    /// RS485: a sender hears itself, too
    #[arg(long)]
    echo: bool,
    /// CAN: let controllers connect to 127.0.0.1:PORT or to a socket file (repeat for more)
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["ptys", "listen", "tty", "echo"])]
    can: Vec<Address>,
    /// End after so long; without it, when interrupted
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Print JSON: one line when members can connect, one with the figures at the end
    #[arg(long)]
    json: bool,
}

/// Runs the command until it is interrupted or its time is over.
pub fn run(args: Args) -> Result<()> {
    let time = match args.seconds.map(Duration::try_from_secs_f64) {
        Some(Err(_)) => {
            return Err(BadInput::new("--seconds is no time; give a number from 0").into());
        }
        Some(Ok(time)) => Some(time),
        None => None,
    };
    if args.can.is_empty() {
        run_serial(&args, time)
    } else {
        run_can(&args, time)
    }
}

fn run_serial(args: &Args, time: Option<Duration>) -> Result<()> {
    let config = serial::Config {
        ptys: args.ptys,
        dir: args.dir.clone(),
        listen: args.listen.clone(),
        ttys: args.tty.iter().map(|t| tty(t)).collect::<Result<_>>()?,
        echo: args.echo,
    };
    if config.ptys == 0 && config.listen.is_empty() && config.ttys.is_empty() {
        let how =
            "nobody could connect; give --ptys, --listen or --tty for RS485, or --can for CAN";
        return Err(BadInput::new(how).into());
    }
    let stop = interrupts()?;
    let mut hub = serial::Hub::open(&config).map_err(refused)?;
    let (ptys, listen) = (hub.ptys().to_vec(), texts(&hub.addresses()));
    if args.json {
        say(&json!({"ready": "rs485", "ptys": ptys, "listen": listen}).to_string())?;
    } else {
        for pty in &ptys {
            say(&format!("rs485 {}", pty.display()))?;
        }
        for at in listen {
            say(&format!("rs485 {at}"))?;
        }
    }
    hub.run(stop.as_fd(), time)?;
    let report = hub.report();
    if args.json {
        return say(&serde_json::to_string(&report)?);
    }
    say(&format!(
        "{:.1} s\n{:>12} {:>12} {:>12}  bytes of",
        report.seconds, "sent", "received", "lost"
    ))?;
    for m in &report.members {
        say(&format!(
            "{:>12} {:>12} {:>12}  {}",
            m.sent_bytes, m.received_bytes, m.lost_bytes, m.name
        ))?;
    }
    Ok(())
}

fn run_can(args: &Args, time: Option<Duration>) -> Result<()> {
    let stop = interrupts()?;
    let mut hub = can::Hub::open(&args.can).map_err(refused)?;
    let listen = texts(&hub.addresses());
    if args.json {
        say(&json!({"ready": "can", "listen": listen}).to_string())?;
    } else {
        for at in listen {
            say(&format!("can {at}"))?;
        }
    }
    hub.run(stop.as_fd(), time)?;
    let report = hub.report();
    if args.json {
        return say(&serde_json::to_string(&report)?);
    }
    say(&format!(
        "{:.1} s, {} frames, {} errors, load {:.1} %\n{:>10} {:>10} {:>10} {:>10} {:>10}  frames of",
        report.seconds,
        report.frames,
        report.errors,
        report.load_ppm as f64 / 1e4,
        "sent",
        "received",
        "lost",
        "errors",
        "bus-off"
    ))?;
    for m in &report.members {
        say(&format!(
            "{:>10} {:>10} {:>10} {:>10} {:>10}  {}",
            m.sent_frames, m.received_frames, m.lost_frames, m.errors, m.bus_off, m.name
        ))?;
    }
    Ok(())
}

/// A line that a script waits for must not wait in a buffer.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        // Whoever closed the pipe does not want it.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => Ok(done?),
    }
}

fn texts(addresses: &[Address]) -> Vec<String> {
    addresses.iter().map(Address::to_string).collect()
}

/// `PATH` or `PATH:BAUD`.
fn tty(text: &str) -> Result<(PathBuf, Option<u32>)> {
    let Some((path, baud)) = text.rsplit_once(':') else {
        return Ok((text.into(), None));
    };
    let baud = baud.parse().map_err(|_| {
        BadInput::new(format!(
            "--tty {text}: {baud:?} is no baud rate; write PATH or PATH:BAUD, such as /dev/ttyUSB0:1000000"
        ))
    })?;
    Ok((path.into(), Some(baud)))
}

fn refused(error: SetupError) -> anyhow::Error {
    let remedy = match error.error.kind() {
        ErrorKind::AddrInUse => "another program has it; choose another",
        ErrorKind::NotFound => "check the path",
        ErrorKind::PermissionDenied => "choose another, or ask for the right to use it",
        ErrorKind::AlreadyExists => "something else has this name; choose another folder",
        _ => return error.into(),
    };
    BadInput::new(format!("{error}; {remedy}")).into()
}

/// Becomes readable when the process is told to end.
fn interrupts() -> Result<UnixStream> {
    let (mut told, stop) = UnixStream::pair().context("a socket pair")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime did not start")?;
    let interrupted = {
        let _inside = runtime.enter();
        interruption()?
    };
    std::thread::spawn(move || {
        let _ = runtime.block_on(interrupted);
        // Nobody listens any more: it ends anyway.
        let _ = told.write_all(b"x");
    });
    Ok(stop)
}
