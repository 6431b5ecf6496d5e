//! `helio fw` against a master whose tunnel is the real one and whose devices are played here: two
//! slots and a boot loader that swaps, tries and takes back as MCUboot does. The real ones run in
//! QEMU (`twister-tests/update`).

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as Clock};

use ciborium::{Value, cbor};
use helio_smp::heliograph::{GROUP, MAX_TUNNELLED, STATUS, TUNNEL};
use helio_smp::standard;
use helio_smp::tunnel::SlaveTunnel;
use helio_smp::{Header, MAX_DATAGRAM, Op, Rc, Request, accept};
use helio_units::{Instant, NodeId};
use sha2::{Digest, Sha256};

/// An image of this version with its mark, signed with nothing good.
fn image(mark: &str, patch: u8) -> Vec<u8> {
    let tlv = |kind: u16, value: &[u8]| {
        let head = [kind.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
        [&head, value].concat()
    };
    let list = |magic: u16, all: &[u8]| {
        let length = all.len() as u16 + 4;
        [&magic.to_le_bytes()[..], &length.to_le_bytes(), all].concat()
    };
    let protected = list(0x6908, &tlv(0xa0, mark.as_bytes()));
    let code: Vec<u8> = (0..20_000u32).map(|i| ((i * i) >> 3) as u8).collect();
    let mut bytes = vec![0; 32];
    bytes[..4].copy_from_slice(&0x96f3_b83du32.to_le_bytes());
    bytes[8..10].copy_from_slice(&32u16.to_le_bytes());
    bytes[10..12].copy_from_slice(&(protected.len() as u16).to_le_bytes());
    bytes[12..16].copy_from_slice(&(code.len() as u32).to_le_bytes());
    bytes[22] = patch;
    bytes.extend(code);
    bytes.extend(protected);
    let hash = Sha256::digest(&bytes);
    let both = [tlv(0x10, &hash), tlv(0x22, &[1; 71])].concat();
    bytes.extend(list(0x6907, &both));
    bytes
}

/// What a slot holds: version and hash.
#[derive(Clone, Debug, PartialEq)]
struct Slot {
    version: String,
    hash: Vec<u8>,
}

impl Slot {
    /// As the boot loader reads it.
    fn read(bytes: &[u8]) -> Self {
        let half = |at: usize| usize::from(bytes[at]) + 256 * usize::from(bytes[at + 1]);
        let covered = half(8) + half(10) + half(12);
        Self {
            version: format!("0.0.{}", bytes[22]),
            hash: Sha256::digest(&bytes[..covered]).to_vec(),
        }
    }
}

struct Device {
    board: &'static str,
    slots: [Option<Slot>; 2],
    /// Of the running image.
    confirmed: bool,
    /// The other one is tried at the next reset; or, confirmed, it stays.
    pending: Option<bool>,
    received: Vec<u8>,
    gate_on: bool,
    booted: Clock,
    /// Seconds of ours in one of the device's.
    slow: u32,
    /// How long after it was told it resets, and when that is.
    reset_after: Duration,
    reset_at: Option<Clock>,
    resets: u32,
    /// Answers that are lost on the way, for each to be asked again.
    lose: u32,
    /// The answer to the next reset is lost.
    lose_reset: bool,
}

impl Device {
    fn new(mark: &str, board: &'static str) -> Self {
        Self {
            board,
            slots: [Some(Slot::read(&image(mark, 1))), None],
            confirmed: true,
            pending: None,
            received: Vec::new(),
            gate_on: false,
            booted: Clock::now() - Duration::from_secs(100),
            slow: 1,
            reset_after: Duration::ZERO,
            reset_at: None,
            resets: 0,
            lose: 0,
            lose_reset: false,
        }
    }

    fn reset(&mut self) {
        let kept = std::mem::replace(&mut self.confirmed, true);
        if let Some(stays) = self.pending.take() {
            self.slots.swap(0, 1);
            self.confirmed = stays;
        } else if !kept {
            self.slots.swap(0, 1);
        }
        self.booted = Clock::now();
        self.reset_at = None;
        self.resets += 1;
        self.lose += u32::from(std::mem::take(&mut self.lose_reset));
    }

    fn images(&self) -> Value {
        let slots = self.slots.iter().enumerate();
        let rows = slots.filter_map(|(n, slot)| {
            let slot = slot.as_ref()?;
            let active = n == 0;
            Some(cbor!({
                "slot" => n, "version" => slot.version, "hash" => Value::Bytes(slot.hash.clone()),
                "bootable" => true, "active" => active, "confirmed" => active && self.confirmed,
                "pending" => !active && self.pending.is_some(), "permanent" => !active && self.pending == Some(true),
            }).unwrap())
        });
        cbor!({"images" => rows.collect::<Vec<_>>()}).unwrap()
    }

    fn upload(&mut self, body: &BTreeMap<String, Value>) -> Value {
        let data = body["data"].as_bytes().unwrap();
        let off: u64 = body["off"].as_integer().unwrap().try_into().unwrap();
        if off == 0 {
            self.received.clear();
        }
        // What comes twice is not taken twice.
        if off as usize == self.received.len() {
            self.received.extend(data);
        }
        self.slots[1] = (self.received.len() > 20_000).then(|| Slot::read(&self.received));
        cbor!({"off" => self.received.len()}).unwrap()
    }

    fn mark(&mut self, body: &BTreeMap<String, Value>) -> Option<Value> {
        let confirm = body["confirm"].as_bool().unwrap();
        match body.get("hash").map(|h| h.as_bytes().unwrap()) {
            None if confirm => self.confirmed = true,
            Some(hash) if self.slots[1].as_ref().is_some_and(|s| s.hash == *hash) => {
                self.pending = Some(confirm);
            }
            _ => return None,
        }
        Some(self.images())
    }

    fn answer(&mut self, datagram: &[u8], out: &mut [u8], nodes: Vec<Value>) -> usize {
        let request = match accept(datagram, out) {
            Ok(request) => request,
            Err(refusal) => return refusal,
        };
        if self.reset_at.is_some_and(|at| Clock::now() >= at) {
            self.reset();
        }
        if let Some(length) = standard::handle(&request, out, MAX_TUNNELLED as u16, &[]) {
            return length;
        }
        let body: BTreeMap<String, Value> = ciborium::from_reader(request.body).unwrap_or_default();
        let header = &request.header;
        let answer = match (header.group, header.id, header.op) {
            (0, 7, Op::Read) => Some(cbor!({"output" => self.board}).unwrap()),
            (0, 5, Op::Write) if self.gate_on && standard::reset(&request) == Some(false) => {
                return request.reply(out).rc(Rc::BadState);
            }
            (0, 5, Op::Write) => {
                match self.reset_after {
                    Duration::ZERO => self.reset(),
                    after => self.reset_at = Some(Clock::now() + after),
                }
                Some(cbor!({}).unwrap())
            }
            (1, 0, Op::Read) => Some(self.images()),
            (1, 0, Op::Write) => self.mark(&body),
            (1, 1, Op::Write) => Some(self.upload(&body)),
            (GROUP, STATUS, Op::Read) => {
                let ms = (self.booted.elapsed() / self.slow).as_millis() as u64;
                Some(cbor!({"uptime_ms" => ms, "nodes" => nodes}).unwrap())
            }
            _ => return request.reply(out).rc(Rc::NotSupported),
        };
        match answer {
            Some(answer) => reply(&request, out, &answer),
            // IMG_MGMT_ERR_NO_IMAGE
            None => request.reply(out).error(3, Rc::NoEntry),
        }
    }
}

fn reply(request: &Request<'_>, out: &mut [u8], body: &Value) -> usize {
    let mut octets = Vec::new();
    ciborium::into_writer(body, &mut octets).unwrap();
    let header = Header {
        length: octets.len() as u16,
        ..request.header.reply()
    };
    let datagram = [&header.encode()[..], &octets].concat();
    out[..datagram.len()].copy_from_slice(&datagram);
    datagram.len()
}

/// A master at a UDP port with one slave, in seat 3.
struct Plant {
    address: String,
    /// Seat 0 is the master itself.
    devices: Arc<Mutex<BTreeMap<u8, Device>>>,
    dir: tempfile::TempDir,
}

impl Plant {
    fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let devices = Arc::new(Mutex::new(BTreeMap::from([
            (0, Device::new("heliograph master mps2/an386", "mps2")),
            (3, Device::new("heliograph slave mps2/an386", "mps2")),
        ])));
        let plant = Self {
            address,
            devices: devices.clone(),
            dir: tempfile::tempdir().unwrap(),
        };
        std::thread::spawn(move || serve(&socket, &devices));
        plant
    }

    fn with<T>(&self, seat: u8, what: impl FnOnce(&mut Device) -> T) -> T {
        what(self.devices.lock().unwrap().get_mut(&seat).unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn fw(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_helio"));
        command.arg("fw").args(args);
        command.args(["--udp", &self.address, "--timeout", "0.3"]);
        command.output().unwrap()
    }

    /// Succeeds, and gives its JSON.
    fn json(&self, args: &[&str]) -> serde_json::Value {
        let out = self.fw(&[args, &["--json"]].concat());
        assert!(out.status.success(), "{args:?}: {out:?}");
        serde_json::from_slice(&out.stdout).unwrap()
    }

    /// Fails with this code; one line that says why.
    fn fails(&self, args: &[&str], code: i32) -> String {
        let out = self.fw(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {out:?}");
        let text = String::from_utf8(out.stderr).unwrap();
        let last = text.lines().last().unwrap().to_string();
        assert!(last.starts_with("helio: "), "{text}");
        last
    }
}

fn serve(socket: &UdpSocket, devices: &Mutex<BTreeMap<u8, Device>>) {
    let mut tunnel = SlaveTunnel::<4>::new();
    let (mut buffer, mut out) = ([0; MAX_DATAGRAM], [0; MAX_DATAGRAM]);
    while let Ok((n, from)) = socket.recv_from(&mut buffer) {
        let mut devices = devices.lock().unwrap();
        let datagram = &buffer[..n];
        let request = accept(datagram, &mut out);
        let length = match &request {
            Ok(r) if (r.header.group, r.header.id) == (GROUP, TUNNEL) => {
                let asked = tunnel.handle_request(Instant::ZERO, 1, r);
                let asked = asked.map(|f| (f.node, f.datagram.to_vec()));
                forward(&mut tunnel, &mut devices, asked, r, &mut out)
            }
            _ => {
                let seats = devices.keys().filter(|seat| **seat > 0);
                let row = |seat: &u8| cbor!([seat, "00", "standby"]).unwrap();
                let rows = seats.map(row).collect();
                let master = devices.get_mut(&0).unwrap();
                let length = master.answer(datagram, &mut out, rows);
                if std::mem::take(&mut master.lose) > 0 {
                    0
                } else {
                    length
                }
            }
        };
        if length > 0 {
            socket.send_to(&out[..length], from).unwrap();
        }
    }
}

fn forward(
    tunnel: &mut SlaveTunnel<4>,
    devices: &mut BTreeMap<u8, Device>,
    asked: Result<(NodeId, Vec<u8>), helio_smp::heliograph::Fault>,
    request: &Request<'_>,
    out: &mut [u8],
) -> usize {
    let (node, datagram) = match asked {
        Ok(asked) => asked,
        Err(fault) => return request.reply(out).fault(fault),
    };
    let Some(device) = devices.get_mut(&node.get()) else {
        tunnel.withdraw(node);
        let absent = helio_smp::heliograph::Fault::NoSuchNode;
        return request.reply(out).fault(absent);
    };
    let mut inner = [0; MAX_DATAGRAM];
    let length = device.answer(&datagram, &mut inner, vec![]);
    if device.lose > 0 {
        device.lose -= 1;
        // The master gives up, and says so.
        let far = Instant::from_millis(1_000_000);
        return tunnel.handle_timeout(far, out).unwrap().length;
    }
    tunnel
        .handle_answer(node, &inner[..length], out)
        .map_or(0, |due| due.length)
}

fn slot(report: &serde_json::Value, n: usize) -> &serde_json::Value {
    &report["slots"][n]
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_update_of_a_slave_is_uploaded_tried_and_confirmed_through_the_master() {
    let plant = Plant::new();
    let new = image("heliograph slave mps2/an386", 2);
    let file = plant.file("new.bin", &new);
    let to = ["--target", "slave:3"];

    // Answers get lost now and then: no chunk is missing or doubled for that.
    plant.with(3, |d| d.lose = 2);
    let sent = plant.json(&["upload", text(&file), to[0], to[1]]);
    assert_eq!(sent["sent_bytes"], new.len());
    assert!(plant.with(3, |d| d.received == new));
    assert_eq!(plant.with(0, |d| d.received.len()), 0);

    let tested = plant.json(&["test", to[0], to[1]]);
    assert_eq!(slot(&tested, 1)["pending"], true);
    let back = plant.json(&["reset", "--wait", "20", to[0], to[1]]);
    assert!(back["back_after_s"].as_f64().unwrap() < 20.0);
    assert_eq!(slot(&back, 0)["version"], "0.0.2");
    assert_eq!(slot(&back, 0)["confirmed"], false);
    let kept = plant.json(&["confirm", to[0], to[1]]);
    assert_eq!(slot(&kept, 0)["confirmed"], true);
    plant.json(&["reset", "--wait", "20", to[0], to[1]]);
    let list = plant.json(&["list", to[0], to[1]]);
    assert_eq!(slot(&list, 0)["version"], "0.0.2");
    assert_eq!(plant.with(3, |d| d.resets), 2);
    assert_eq!(plant.with(0, |d| d.resets), 0);
}

#[test]
fn an_image_that_is_not_confirmed_is_gone_after_the_next_reset() {
    let plant = Plant::new();
    let file = plant.file("new.bin", &image("heliograph master mps2/an386", 2));
    plant.json(&["upload", text(&file)]);
    plant.json(&["test"]);
    let tried = plant.json(&["reset", "--wait", "20"]);
    assert_eq!(slot(&tried, 0)["version"], "0.0.2");
    let back = plant.json(&["reset", "--wait", "20"]);
    assert_eq!(slot(&back, 0)["version"], "0.0.1");
    // It is still there to be tried again, by its hash.
    let hash = slot(&back, 1)["hash"].as_str().unwrap();
    let again = plant.json(&["test", "--hash", &hash[..8]]);
    assert_eq!(slot(&again, 1)["pending"], true);
}

#[test]
fn the_wrong_image_is_refused_before_a_byte_of_it_is_sent() {
    let plant = Plant::new();
    let right = image("heliograph slave mps2/an386", 2);
    let mut flipped = right.clone();
    flipped[9_000] ^= 1;
    let cases = [
        (image("heliograph master mps2/an386", 2), "for a master"),
        (image("heliograph slave nucleo_g474re", 2), "is a mps2"),
        (image("somebody else's", 2), "--force"),
        (flipped, "damaged"),
        (right[..9_000].to_vec(), "promises"),
        (b"\x7fELF and so on".to_vec(), "an ELF file"),
    ];
    for (n, (bytes, why)) in cases.iter().enumerate() {
        let file = plant.file(&format!("{n}.bin"), bytes);
        let said = plant.fails(&["upload", text(&file), "--target", "slave:3"], 2);
        assert!(said.contains(why), "{said}");
    }
    assert_eq!(plant.with(3, |d| d.received.len()), 0);
    let forced = plant.dir.path().join("1.bin");
    plant.json(&["upload", text(&forced), "--target", "slave:3", "--force"]);
    assert!(plant.with(3, |d| !d.received.is_empty()));
}

#[test]
fn who_names_a_slave_that_is_not_there_is_told_which_are() {
    let plant = Plant::new();
    let said = plant.fails(&["list", "--target", "slave:9"], 2);
    assert!(
        said.contains("slave:9 is not there") && said.contains("slaves 3"),
        "{said}"
    );
    let said = plant.fails(&["list", "--target", "9"], 2);
    assert!(said.contains("slave:N"), "{said}");
    let said = plant.fails(&["upload", "/nowhere.bin"], 2);
    assert!(said.contains("/nowhere.bin"), "{said}");
}

#[test]
fn where_nobody_answers_the_way_there_is_named() {
    // Bound and silent.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let out = Command::new(env!("CARGO_BIN_EXE_helio"))
        .args(["fw", "list", "--timeout", "0.1", "--udp", &address])
        .output()
        .unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&address) && said.contains("no answer"),
        "{said}"
    );
}

#[test]
fn a_slave_whose_gate_is_on_is_reset_only_by_force() {
    let plant = Plant::new();
    plant.with(3, |d| d.gate_on = true);
    let said = plant.fails(&["reset", "--target", "slave:3"], 1);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(plant.with(3, |d| d.resets), 0);
    plant.json(&["reset", "--target", "slave:3", "--force", "--wait", "20"]);
    assert_eq!(plant.with(3, |d| d.resets), 1);
}

#[test]
fn a_reset_whose_answer_is_lost_is_not_asked_for_again() {
    let plant = Plant::new();
    plant.with(3, |d| d.lose_reset = true);
    plant.json(&["reset", "--target", "slave:3", "--wait", "20"]);
    assert_eq!(plant.with(3, |d| d.resets), 1);
    plant.with(0, |d| d.lose_reset = true);
    plant.json(&["reset", "--target", "master", "--wait", "20"]);
    assert_eq!(plant.with(0, |d| d.resets), 1);
}

#[test]
fn a_device_with_a_slow_clock_is_not_back_before_it_was_away() {
    let plant = Plant::new();
    plant.with(3, |d| (d.slow, d.reset_after) = (4, Duration::from_secs(2)));
    let back = plant.json(&["reset", "--target", "slave:3", "--wait", "20"]);
    assert_eq!(plant.with(3, |d| d.resets), 1);
    assert!(back["back_after_s"].as_f64().unwrap() >= 2.0);
}

#[test]
fn a_device_that_has_just_started_is_seen_to_restart() {
    let plant = Plant::new();
    plant.with(3, |d| d.booted = Clock::now());
    plant.json(&["reset", "--target", "slave:3", "--wait", "20"]);
    assert_eq!(plant.with(3, |d| d.resets), 1);
}

#[test]
fn with_one_image_there_is_nothing_to_test() {
    let plant = Plant::new();
    let said = plant.fails(&["test", "--target", "slave:3"], 2);
    assert!(said.contains("upload another"), "{said}");
}
