//! `helio fw`: firmware of a master or, through it, of a slave: what is in its slots, a new image
//! uploaded, tried, confirmed.
//!
//! ```text
//! upload --> test --> reset --> confirm       the new image stays
//!                       '-----> reset         without confirm: MCUboot puts the old one back
//! ```

mod image;
mod tunnel;

use std::error::Error as _;
use std::io::{IsTerminal, Write};
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use helio_smp::heliograph::{Fault, GROUP, STATUS};
use image::Image;
use mcumgr_toolkit::MCUmgrClient;
use mcumgr_toolkit::client::MCUmgrClientError;
use mcumgr_toolkit::commands::McuMgrCommand;
use mcumgr_toolkit::commands::image::ImageState;
use mcumgr_toolkit::connection::ExecuteError;
use mcumgr_toolkit::smp_errors::{DeviceError, ImgMgmtErrCode, MCUmgrErr};
use mcumgr_toolkit::transport::{
    ReceiveError, Transport, serial::SerialTransport, udp::UdpTransport,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tunnel::{Tunnel, TunnelError};

use crate::BadInput;

/// The group of images, and that of the system itself.
const IMAGES: u16 = 1;

/// What to do with whose firmware.
#[derive(clap::Subcommand)]
#[command(after_help = "\
An update, step by step:
  helio fw upload zephyr.signed.bin --target slave:3
  helio fw test    --target slave:3     swap at the next reset, for one try
  helio fw reset   --target slave:3     and wait until it is back
  helio fw confirm --target slave:3     keep it; without this the next reset brings the old one back
A master is reached with --udp HOST:PORT or --serial PATH.")]
pub enum Command {
    /// What is in the slots
    List(Common),
    /// Send an image to the second slot
    Upload(Upload),
    /// Mark the image in the second slot to be tried at the next reset
    Test(Choose),
    /// Keep the running image
    Confirm(Choose),
    /// Start anew, and wait until it answers again
    Reset(Reset),
}

/// Whom to talk to.
#[derive(clap::Args)]
pub struct Common {
    /// Whose firmware: master, or slave:N with its seat
    #[arg(long, value_parser = target, default_value = "master")]
    target: Target,
    /// The master, SMP over UDP (127.0.0.1:1337 unless --serial is given)
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "serial")]
    udp: Option<String>,
    /// The master, SMP over a serial line
    #[arg(long, value_name = "PATH[:BAUD]")]
    serial: Option<String>,
    /// How long to wait for each answer
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    timeout: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio fw upload`.
#[derive(clap::Args)]
pub struct Upload {
    /// Signed image: zephyr.signed.bin
    file: PathBuf,
    /// Send it even if it is for another board or role, or says of neither
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `helio fw test` and `confirm`.
#[derive(clap::Args)]
pub struct Choose {
    /// The image by the start of its hash, where it is not obvious
    #[arg(long, value_name = "HEX")]
    hash: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `helio fw reset`.
#[derive(clap::Args)]
pub struct Reset {
    /// Even if its gate is on or its contactors are closed: whatever hangs on them goes off
    #[arg(long)]
    force: bool,
    /// How long it may take to come back; 0 not to wait
    #[arg(long, value_name = "S", default_value_t = 120.0)]
    wait: f64,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Master,
    Slave(u8),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Slave(node) => write!(f, "slave:{node}"),
        }
    }
}

impl Target {
    fn role(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave(_) => "slave",
        }
    }
}

fn target(text: &str) -> Result<Target, String> {
    if text == "master" {
        return Ok(Target::Master);
    }
    let node = text.strip_prefix("slave:").and_then(|n| n.parse().ok());
    match node {
        Some(node @ 1..=127) => Ok(Target::Slave(node)),
        _ => Err("give master or slave:N with a seat from 1 to 127".into()),
    }
}

/// Runs the command.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(common) => list(common),
        Command::Upload(args) => upload(args),
        Command::Test(args) => test(args),
        Command::Confirm(args) => confirm(args),
        Command::Reset(args) => reset(args),
    }
}

fn seconds(name: &str, s: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(s)
        .map_err(|_| BadInput::new(format!("{name} {s} is no time; give seconds")).into())
}

impl Common {
    fn timeout(&self) -> Result<Duration> {
        let timeout = seconds("--timeout", self.timeout)?;
        Ok(timeout.clamp(Duration::from_millis(50), Duration::from_secs(60)))
    }

    fn transport(&self, timeout: Duration) -> Result<Box<dyn Transport + Send>> {
        let Some(serial) = &self.serial else {
            let to = self.udp.as_deref().unwrap_or("127.0.0.1:1337");
            to.to_socket_addrs().map_err(|e| {
                BadInput::new(format!(
                    "--udp {to}: {e}; give a host that can be resolved and a port"
                ))
            })?;
            let udp = UdpTransport::new(to, timeout).with_context(|| format!("--udp {to}"))?;
            return Ok(Box::new(udp));
        };
        let (path, baud) = match serial.rsplit_once(':') {
            Some((path, baud)) => match baud.parse() {
                Ok(baud) => (path, baud),
                Err(_) => {
                    let what = format!("--serial {serial}: {baud} is no baud rate");
                    return Err(BadInput::new(what).into());
                }
            },
            None => (serial.as_str(), 115_200),
        };
        let port = serialport::new(path, baud)
            .timeout(timeout)
            .open()
            .map_err(|e| BadInput::new(format!("--serial {path}: {e}; give a serial port")))?;
        Ok(Box::new(SerialTransport::new(port)))
    }

    /// The master, whoever the target is.
    fn master(&self) -> Result<MCUmgrClient> {
        let timeout = self.timeout()?;
        Ok(MCUmgrClient::new_from_transport(self.transport(timeout)?))
    }

    fn client(&self) -> Result<MCUmgrClient> {
        let timeout = self.timeout()?;
        let client = match self.target {
            Target::Master => self.master()?,
            Target::Slave(node) => {
                let tunnel = Tunnel::new(self.transport(timeout)?, node, timeout)
                    .map_err(|e| anyhow!("the master's line takes no timeout: {e}"))?;
                MCUmgrClient::new_from_transport(tunnel)
            }
        };
        client
            .use_auto_frame_size()
            .map_err(|e| self.explain(e, "ask for its parameters"))?;
        Ok(client)
    }

    /// An error with what can be done about it.
    fn explain(&self, error: MCUmgrClientError, what: &str) -> anyhow::Error {
        let target = self.target;
        if let Some(refused) = cause::<TunnelError>(&error) {
            return match refused {
                TunnelError::Refused(Fault::NoSuchNode) => {
                    BadInput::new(format!("{target} is not there; {}", self.members())).into()
                }
                TunnelError::Refused(Fault::Busy) => anyhow!(
                    "{target} is busy with another client's request; try again when that is done"
                ),
                TunnelError::Rc(8) => {
                    anyhow!("whoever answers there has no tunnel to slaves; is it a master?")
                }
                other => anyhow!("cannot {what} of {target}: {other}"),
            };
        }
        if let MCUmgrClientError::ExecuteError(execute) = &error {
            match execute {
                ExecuteError::ReceiveFailed(ReceiveError::Timeout) => {
                    let way = self.serial.as_deref().or(self.udp.as_deref());
                    let way = way.unwrap_or("127.0.0.1:1337");
                    return match target {
                        Target::Master => anyhow!(
                            "no answer from {way}; is a master there? Give --udp or --serial"
                        ),
                        Target::Slave(_) => anyhow!(
                            "no answer from {target} through {way}; is the master there and the slave well? \
                             A longer --timeout may help on a slow bus"
                        ),
                    };
                }
                ExecuteError::ErrorResponse(device) => {
                    if let Some(remedy) = remedy(device) {
                        return anyhow!("cannot {what} of {target}: {remedy}");
                    }
                    return anyhow!("cannot {what} of {target}: it says {device}");
                }
                _ => {}
            }
        }
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(s) = source {
            text += &format!(": {s}");
            source = s.source();
        }
        anyhow!("cannot {what} of {target}: {text}")
    }

    /// Which slaves there are, for people who named one that is not.
    fn members(&self) -> String {
        let members = self.master().ok().and_then(|m| {
            let status = m.raw_command(&AskStatus::default()).ok()?;
            let here = status.nodes.iter().filter_map(|row| match &row[..] {
                [node, _, state, ..] if state.as_text() != Some("absent") => node.as_integer(),
                _ => None,
            });
            Some(here.map(|n| i128::from(n).to_string()).collect::<Vec<_>>())
        });
        match members {
            Some(m) if !m.is_empty() => format!("the master has slaves {}", m.join(", ")),
            _ => "the master has no slaves now".into(),
        }
    }
}

/// The first cause of this type.
fn cause<'e, E: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref() {
            return Some(found);
        }
        next = e.source();
    }
    None
}

/// What to do when a device says this.
fn remedy(error: &DeviceError) -> Option<&'static str> {
    use ImgMgmtErrCode as E;
    let is = |code: E, rc: i32| code as i32 == rc;
    match error {
        DeviceError::V2 { group: IMAGES, rc } => Some(match *rc {
            rc if is(E::IMG_MGMT_ERR_IMAGE_ALREADY_PENDING, rc)
                || is(E::IMG_MGMT_ERR_NO_FREE_SLOT, rc) =>
            {
                "both slots are in use: an image waits to be tried, or one is tried and not confirmed; reset it, or confirm the running one"
            }
            rc if is(E::IMG_MGMT_ERR_INVALID_IMAGE_TOO_LARGE, rc)
                || is(E::IMG_MGMT_ERR_INVALID_IMAGE_DATA_OVERRUN, rc) =>
            {
                "the image does not fit its slot; make it smaller or the partitions larger"
            }
            rc if is(E::IMG_MGMT_ERR_NO_IMAGE, rc) => "there is no image in that slot; upload one",
            rc if is(E::IMG_MGMT_ERR_CURRENT_VERSION_IS_NEWER, rc) => {
                "what runs there is newer; it takes no older image"
            }
            rc if is(E::IMG_MGMT_ERR_INVALID_IMAGE_HEADER_MAGIC, rc) => {
                "it is no MCUboot image; take zephyr.signed.bin"
            }
            _ => return None,
        }),
        DeviceError::V1 { rc, .. } if *rc == MCUmgrErr::MGMT_ERR_ENOTSUP as i32 => {
            Some("its firmware manages no images; build it with --sysbuild and MCUboot")
        }
        DeviceError::V1 { rc, .. } if *rc == MCUmgrErr::MGMT_ERR_EBADSTATE as i32 => Some(
            "its gate is on or its contactors are closed, and a reset would open them; open them first, or give --force",
        ),
        DeviceError::V1 { rc, .. } if *rc == MCUmgrErr::MGMT_ERR_EBUSY as i32 => {
            Some("it is busy with another request; try again")
        }
        _ => None,
    }
}

/// Group 64's status, as far as masters and slaves both tell it.
#[derive(Default)]
struct AskStatus(Empty);

#[derive(Default, Serialize)]
struct Empty {}

#[derive(Deserialize)]
struct Status {
    uptime_ms: u64,
    /// A master's: `[node, uid, state, ..]`.
    #[serde(default)]
    nodes: Vec<Vec<ciborium::Value>>,
}

impl McuMgrCommand for AskStatus {
    type Payload = Empty;
    type Response = Status;
    fn is_write_operation(&self) -> bool {
        false
    }
    fn group_id(&self) -> u16 {
        GROUP
    }
    fn command_id(&self) -> u8 {
        STATUS
    }
    fn data(&self) -> &Empty {
        &self.0
    }
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

fn short(slot: &ImageState) -> String {
    match &slot.hash {
        Some(hash) => hex(hash).chars().take(8).collect(),
        None => "-".into(),
    }
}

/// What a slot is to the boot loader, in words.
fn words(slot: &ImageState) -> String {
    let all = [
        (slot.active, "runs"),
        (slot.active && !slot.confirmed, "on trial"),
        (slot.confirmed, "confirmed"),
        (
            slot.pending && !slot.permanent,
            "to be tried at the next reset",
        ),
        (
            slot.pending && slot.permanent,
            "to stay from the next reset on",
        ),
    ];
    let all = all.iter().filter(|(is, _)| *is).map(|(_, word)| *word);
    all.collect::<Vec<_>>().join(", ")
}

fn slots_json(slots: &[ImageState]) -> serde_json::Value {
    let slot = |s: &ImageState| {
        json!({
            "slot": s.slot, "version": s.version, "hash": s.hash.as_deref().map(hex), "bootable": s.bootable,
            "active": s.active, "confirmed": s.confirmed, "pending": s.pending, "permanent": s.permanent,
        })
    };
    slots.iter().map(slot).collect()
}

fn print_slots(common: &Common, slots: &[ImageState]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if common.json {
        let all = json!({"target": common.target.to_string(), "slots": slots_json(slots)});
        writeln!(out, "{all}")?;
        return Ok(());
    }
    writeln!(out, "{}", common.target)?;
    write_slots(&mut out, slots)
}

/// A line for each slot, for people.
fn write_slots(out: &mut impl Write, slots: &[ImageState]) -> Result<()> {
    for s in slots {
        let hash = short(s);
        writeln!(
            out,
            "  slot {}  {:<12} {hash}  {}",
            s.slot,
            s.version,
            words(s)
        )?;
    }
    Ok(())
}

fn slots(common: &Common, client: &MCUmgrClient) -> Result<Vec<ImageState>> {
    let slots = client.image_get_state();
    slots.map_err(|e| common.explain(e, "read the slots"))
}

fn list(common: &Common) -> Result<()> {
    print_slots(common, &slots(common, &common.client()?)?)
}

fn upload(args: &Upload) -> Result<()> {
    let (common, file) = (&args.common, args.file.display());
    let bytes = std::fs::read(&args.file)
        .map_err(|e| BadInput::new(format!("{file}: {e}; give a readable zephyr.signed.bin")))?;
    let image = Image::parse(&bytes).map_err(|e| BadInput::new(format!("{file} {e}")))?;
    let client = common.client()?;
    if !args.force {
        is_for(common, &client, &image).map_err(|why| BadInput::new(format!("{file} {why}")))?;
    }
    let before = slots(common, &client)?;
    if before
        .iter()
        .any(|s| s.hash.as_deref() == Some(&image.hash))
    {
        let there = before
            .iter()
            .find(|s| s.hash.as_deref() == Some(&image.hash));
        let slot = there.map_or(0, |s| s.slot);
        return done(
            common,
            &image,
            0,
            Duration::ZERO,
            &format!("is there already, in slot {slot}"),
        );
    }
    let start = Instant::now();
    let mut progress = Progress::new(start);
    let mut show = |sent, total| progress.show(sent, total);
    let sent = client.image_upload(&bytes, None, None, false, Some(&mut show));
    progress.end();
    sent.map_err(|e| common.explain(e, "upload to the second slot"))?;
    done(
        common,
        &image,
        bytes.len(),
        start.elapsed(),
        "is in slot 1; next: helio fw test",
    )
}

fn done(common: &Common, image: &Image, sent: usize, took: Duration, what: &str) -> Result<()> {
    let rate = match took.as_secs_f64() {
        0.0 => 0.0,
        s => sent as f64 / s / 1e3,
    };
    let (target, version) = (common.target, &image.version);
    let mut out = std::io::stdout().lock();
    if common.json {
        let report = json!({
            "target": target.to_string(), "version": version, "hash": hex(&image.hash),
            "sent_bytes": sent, "took_s": took.as_secs_f64(), "rate_kbyte_s": rate,
        });
        writeln!(out, "{report}")?;
    } else {
        if sent > 0 {
            let s = took.as_secs_f64();
            writeln!(out, "{sent} bytes in {s:.1} s, {rate:.1} kB/s")?;
        }
        let hash: String = hex(&image.hash).chars().take(8).collect();
        writeln!(out, "{target}: {version} ({hash}) {what}")?;
    }
    Ok(())
}

/// Whether the image is for this target; else why not.
fn is_for(common: &Common, client: &MCUmgrClient, image: &Image) -> Result<(), String> {
    let role = common.target.role();
    let Some(mark) = &image.mark else {
        return Err("does not say what it is for: it is no image of ours; --force sends it".into());
    };
    if mark.role != role {
        return Err(format!(
            "is for a {}, not for a {role}; take the other application's or give --force",
            mark.role
        ));
    }
    // A device that does not tell its board has older firmware than this check.
    if let Ok(board) = client.os_application_info(Some("i"))
        && board.split(['/', '@']).next() != Some(mark.board_name())
    {
        return Err(format!(
            "is for {}, but {} is a {board}; take the image built for that or give --force",
            mark.board, common.target
        ));
    }
    Ok(())
}

/// How far an upload has come, on stderr when somebody looks.
struct Progress {
    start: Instant,
    shown: Option<Instant>,
    looking: bool,
}

impl Progress {
    fn new(start: Instant) -> Self {
        Self {
            start,
            shown: None,
            looking: std::io::stderr().is_terminal(),
        }
    }

    fn show(&mut self, sent: u64, total: u64) -> bool {
        // A log gets a line now and then, a terminal one that changes.
        let pause = Duration::from_millis(if self.looking { 100 } else { 5_000 });
        if self.shown.is_none_or(|t| t.elapsed() >= pause) || sent == total {
            self.shown = Some(Instant::now());
            let rate = sent as f64 / self.start.elapsed().as_secs_f64().max(1e-3) / 1e3;
            let percent = sent * 100 / total.max(1);
            let text = format!("{percent:3} %  {sent} of {total} bytes, {rate:.1} kB/s");
            match self.looking {
                true => eprint!("\r{text}  "),
                false => eprintln!("{text}"),
            }
        }
        true
    }

    fn end(&self) {
        if self.looking && self.shown.is_some() {
            eprintln!();
        }
    }
}

/// The slot whose hash starts like this.
fn by_hash<'s>(slots: &'s [ImageState], start: &str) -> Result<&'s ImageState> {
    let start = start.to_lowercase();
    let mut found = slots.iter().filter(|s| {
        s.hash
            .as_deref()
            .is_some_and(|h| hex(h).starts_with(&start))
    });
    match (found.next(), found.next()) {
        (Some(slot), None) => Ok(slot),
        _ => {
            let all: Vec<_> = slots.iter().map(short).collect();
            let what = format!("--hash {start}: give one of {}", all.join(", "));
            Err(BadInput::new(what).into())
        }
    }
}

fn test(args: &Choose) -> Result<()> {
    let (common, client) = (&args.common, args.common.client()?);
    let before = slots(common, &client)?;
    let slot = match &args.hash {
        Some(start) => by_hash(&before, start)?,
        None => before.iter().find(|s| !s.active).ok_or_else(|| {
            BadInput::new(format!(
                "there is one image on {}, the running one; upload another",
                common.target
            ))
        })?,
    };
    if slot.active {
        bail!("{} runs already; there is nothing to try", slot.version);
    }
    let now = client.image_set_state(slot.hash.as_deref(), false);
    let now = now.map_err(|e| common.explain(e, "mark the image"))?;
    print_slots(common, &now)
}

fn confirm(args: &Choose) -> Result<()> {
    let (common, client) = (&args.common, args.common.client()?);
    let hash = match &args.hash {
        Some(start) => by_hash(&slots(common, &client)?, start)?.hash.clone(),
        None => None,
    };
    let now = client.image_set_state(hash.as_deref(), true);
    let now = now.map_err(|e| common.explain(e, "confirm the image"))?;
    print_slots(common, &now)
}

/// A device that has run for less may come back from a reset older than it was, and its uptime would not tell.
const YOUNG: Duration = Duration::from_secs(60);
/// So it is given some time first, more than two starts differ in until they are heard of.
const AGEING: Duration = Duration::from_secs(3);

fn reset(args: &Reset) -> Result<()> {
    let common = &args.common;
    let wait = seconds("--wait", args.wait)?;
    let client = common.client()?;
    let uptime = |client: &MCUmgrClient| {
        let status = client.raw_command(&AskStatus::default());
        status.map(|s| Duration::from_millis(s.uptime_ms))
    };
    let uptime_now = || uptime(&client).map_err(|e| common.explain(e, "ask for the uptime"));
    let mut seen = uptime_now()?;
    if !wait.is_zero() && seen < YOUNG {
        std::thread::sleep(AGEING);
        seen = uptime_now()?;
    }
    let start = Instant::now();
    // Asked once: what was asked again for want of an answer would be a second reset, and MCUboot
    // takes back at the second what it has put on trial at the first.
    client.set_retries(0);
    for more in [true, true, false] {
        match client.os_system_reset(args.force, None) {
            // It did not get there.
            Err(e) if more && is_busy(&e) => continue,
            // The answer may be what was lost: the uptime tells.
            Err(MCUmgrClientError::ExecuteError(ExecuteError::ReceiveFailed(
                ReceiveError::Timeout,
            ))) if !wait.is_zero() => {}
            told => told.map_err(|e| common.explain(e, "reset the firmware"))?,
        }
        break;
    }
    if wait.is_zero() {
        return print_reset(common, None, &[]);
    }
    // While it swaps it is silent: ask often and shortly.
    let _ = client.set_timeout(Duration::from_secs(1));
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let elapsed = start.elapsed();
        if elapsed > wait {
            bail!(
                "{} was told to reset {:.0} s ago and has not come back; look at its console",
                common.target,
                elapsed.as_secs_f64()
            );
        }
        // Whatever its clock counts, it falls back only by a restart.
        match uptime(&client) {
            Ok(now) if now < seen => break,
            Ok(now) => seen = now,
            Err(_) => {}
        }
    }
    let back = start.elapsed();
    client.set_retries(3);
    let _ = client.set_timeout(common.timeout()?);
    // Without MCUboot there are no slots to tell of.
    let slots = client.image_get_state().unwrap_or_default();
    print_reset(common, Some(back), &slots)
}

/// The way to it was not free, so it was not asked.
fn is_busy(error: &MCUmgrClientError) -> bool {
    matches!(
        cause::<TunnelError>(error),
        Some(TunnelError::Refused(Fault::Busy))
    )
}

fn print_reset(common: &Common, back: Option<Duration>, slots: &[ImageState]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let back_s = back.map(|d| d.as_secs_f64());
    if common.json {
        let target = common.target.to_string();
        let all = json!({"target": target, "back_after_s": back_s, "slots": slots_json(slots)});
        writeln!(out, "{all}")?;
        return Ok(());
    }
    match back_s {
        None => writeln!(out, "{}: told to reset", common.target)?,
        Some(s) => writeln!(out, "{}: back after {s:.1} s", common.target)?,
    }
    write_slots(&mut out, slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_master_or_a_seat() {
        assert_eq!(target("master"), Ok(Target::Master));
        assert_eq!(target("slave:1"), Ok(Target::Slave(1)));
        assert_eq!(target("slave:127"), Ok(Target::Slave(127)));
        for wrong in [
            "",
            "slave",
            "slave:",
            "slave:0",
            "slave:128",
            "slave:x",
            "3",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }
}
