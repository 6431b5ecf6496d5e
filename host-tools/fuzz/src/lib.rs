//! Entries for fuzzing: every decoder that takes octets from outside, each as a function of octets.
//!
//! Nothing may panic, whatever comes; where a decoder has a counterpart, what was taken and written again
//! must be taken as the same. `fuzz/fuzz_targets` gives each to libFuzzer (`fuzz/run`); the tests below
//! run them briefly over [`seeds`] and mutations of them, in every `cargo test`.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};

use helio_bus::{
    BusKind, CanFrame, CanId, Capabilities, Mailbox, MasterLink, Schedule, SlaveLink, decode_can,
    decode_serial, encode_can, encode_serial, slave_accepts,
};
use helio_units::{Duration, Instant, NodeId, Uid};

/// Name of a decoder and what feeds it.
pub type Entry = (&'static str, fn(&[u8]));

/// Name and function of every entry.
pub const ENTRIES: [Entry; 13] = [
    ("can", can),
    ("rs485", rs485),
    ("segments", segments),
    ("smp", smp),
    ("smp_serial", smp_serial),
    ("map_cbor", map_cbor),
    ("map_toml", map_toml),
    ("cell", cell),
    ("scenario", scenario),
    ("trace_csv", trace_csv),
    ("ranges_csv", ranges_csv),
    ("cellfit_csv", cellfit_csv),
    ("hub", hub),
];

const SLAVE: Capabilities = Capabilities {
    cells: 16,
    temps: 4,
    anchors: 2,
};

fn uid() -> Uid {
    Uid::new(0x0123_4567_89ab_cdef).expect("a valid id")
}

/// The next octet, or 0.
fn take(data: &mut &[u8]) -> u8 {
    match data.split_first() {
        Some((first, rest)) => {
            *data = rest;
            *first
        }
        None => 0,
    }
}

/// A frame from octets: format and kind of identifier, identifier, length, data.
fn frame(data: &mut &[u8]) -> Option<CanFrame> {
    let flags = take(data);
    let raw = u32::from_le_bytes([take(data), take(data), take(data), take(data)]);
    let (fd, extended) = (flags & 1 != 0, flags & 2 != 0);
    let id = if extended {
        // Half of them in the range of joining and management.
        let ours = if flags & 4 != 0 { 0xf << 25 } else { 0 };
        CanId::Extended(raw & 0x1fff_ffff | ours)
    } else {
        CanId::Standard(raw as u16 & 0x7ff)
    };
    let lengths = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64];
    let code = usize::from(take(data) & 0xf);
    let len = lengths[if fd { code } else { code.min(8) }].min(data.len());
    let (body, rest) = data.split_at(len);
    *data = rest;
    CanFrame::new(id, fd, body)
}

/// Frames of CAN and CAN FD, as they come, at both ends; and the layouts there and back.
pub fn can(mut data: &[u8]) {
    let fd = take(&mut data) & 1 != 0;
    let kind = if fd { BusKind::CanFd } else { BusKind::Can1M };
    let mut master = <MasterLink>::new(Schedule::for_bus(kind));
    let mut slave = SlaveLink::new(Schedule::for_bus(kind), uid(), SLAVE);
    let mut now = Instant::from_millis(1);
    while !data.is_empty() {
        now += Duration::from_micros(u64::from(take(&mut data)) * 100);
        let Some(frame) = frame(&mut data) else {
            continue;
        };
        if let Ok(told) = decode_can(&frame) {
            let again = encode_can(&told.message, told.counter, frame.fd).expect("it was a frame");
            let back = decode_can(&again).expect("our own");
            assert_eq!(back.message, told.message);
        }
        master.handle_can(now, &frame);
        if slave_accepts(frame.id, slave.node()) {
            slave.handle_can(now, &frame);
        }
        for mailbox in Mailbox::ALL {
            if master.poll_can(now, mailbox).is_some() {
                master.handle_sent(now, mailbox);
            }
            if slave.poll_can(now, mailbox).is_some() {
                slave.handle_sent(now, mailbox);
            }
        }
        while master.poll_event().is_some() {}
        while slave.poll_event().is_some() {}
    }
}

/// A stream of characters in pieces, with pauses and breaks between, at both ends of an RS485 line.
pub fn rs485(mut data: &[u8]) {
    let kind = match take(&mut data) % 3 {
        0 => BusKind::Rs485At1M,
        1 => BusKind::Rs485At4M,
        _ => BusKind::Rs485At115k,
    };
    let schedule = Schedule::for_bus(kind);
    if let Some(told) = decode_serial(data, schedule.seats)
        && let Some(again) = encode_serial(&told.message, told.counter, schedule.seats)
    {
        let back = decode_serial(&again, schedule.seats).expect("our own");
        assert_eq!(back.message, told.message);
    }
    let mut master = <MasterLink>::new(schedule);
    let mut slave = SlaveLink::new(schedule, uid(), SLAVE);
    let mut now = Instant::from_millis(1);
    while !data.is_empty() {
        let head = take(&mut data);
        now += Duration::from_micros(u64::from(head >> 4) * 200);
        if head & 0xf == 0xf {
            master.handle_break(now);
            slave.handle_break(now);
        } else {
            let len = usize::from(take(&mut data)).min(data.len());
            let (piece, rest) = data.split_at(len);
            data = rest;
            now += Duration::from_micros(len as u64 * 10);
            master.handle_serial(now, piece);
            slave.handle_serial(now, piece);
        }
        // What one says the other hears, so that more than the first frame has a meaning.
        if let Some(helio_bus::SerialOut {
            what: helio_bus::SerialSignal::Bytes { buffer, len },
            ..
        }) = master.poll_serial(now)
        {
            let bytes = &buffer[..usize::from(len)];
            now += Duration::from_micros(bytes.len() as u64 * 10);
            slave.handle_serial(now, bytes);
        }
        let _ = slave.poll_serial(now);
        while master.poll_event().is_some() {}
        while slave.poll_event().is_some() {}
    }
}

/// Management frames to a member and from it, whatever is in them.
pub fn segments(mut data: &[u8]) {
    let fd = take(&mut data) & 1 != 0;
    let kind = if fd { BusKind::CanFd } else { BusKind::Can500k };
    let mut master = <MasterLink>::new(Schedule::for_bus(kind));
    let mut slave = SlaveLink::new(Schedule::for_bus(kind), uid(), SLAVE);
    let mut now = Instant::from_millis(1);
    // Until it is seated.
    for _ in 0..8 {
        for mailbox in Mailbox::ALL {
            if let Some(out) = slave.poll_can(now, mailbox) {
                slave.handle_sent(now, mailbox);
                master.handle_can(now, &out.frame);
            }
            if let Some(out) = master.poll_can(now, mailbox) {
                master.handle_sent(now, mailbox);
                slave.handle_can(now, &out.frame);
            }
        }
        now += Duration::from_micros(500);
    }
    let node = slave.node().expect("nobody is in its way");
    let long = [0x5a; 300];
    while !data.is_empty() {
        let head = take(&mut data);
        now += Duration::from_micros(u64::from(head >> 4) * 100);
        if head & 8 != 0 {
            let _ = slave.send_datagram(&long[..1 + usize::from(take(&mut data))]);
            let _ = master.send_datagram(node, &long[..1 + usize::from(take(&mut data))]);
        }
        let len = usize::from(take(&mut data) % if fd { 9 } else { 8 } + 1).min(data.len());
        let len = if fd && len == 9 && data.len() >= 64 {
            64
        } else {
            len.min(8)
        };
        let (pdu, rest) = data.split_at(len);
        data = rest;
        let to_master = u32::from(head & 1) << 7;
        let id = CanId::Extended(0x1f00_0000 | to_master | u32::from(node.get()));
        if let Some(frame) = CanFrame::new(id, fd, pdu) {
            if head & 1 == 0 {
                slave.handle_can(now, &frame);
            } else {
                master.handle_can(now, &frame);
            }
        }
        for mailbox in Mailbox::ALL {
            if slave.poll_can(now, mailbox).is_some() {
                slave.handle_sent(now, mailbox);
            }
            if master.poll_can(now, mailbox).is_some() {
                master.handle_sent(now, mailbox);
            }
        }
        assert!(
            slave
                .datagram()
                .is_none_or(|d| d.len() <= helio_bus::MAX_DATAGRAM)
        );
        assert!(
            master
                .datagram()
                .is_none_or(|(_, d)| d.len() <= helio_bus::MAX_DATAGRAM)
        );
        while master.poll_event().is_some() {}
        while slave.poll_event().is_some() {}
    }
}

type Master = helio_master::Master<8, 64>;

thread_local! {
    static MASTER: RefCell<Box<Master>> = RefCell::new(new_master());
}

fn new_master() -> Box<Master> {
    let cell = &helio_battery::defaults::NMC_5000MAH;
    let mut master = Box::new(Master::new(&helio_master::MasterConfig {
        name: "fuzz".try_into().unwrap_or_default(),
        buses: [Schedule::for_bus(BusKind::Can1M)].into_iter().collect(),
        topology: helio_master::pack::Topology {
            expected: 1,
            strings: 1,
            match_mv: 5_000,
            settle: Duration::from_millis(500),
        },
        cell,
        balance: Default::default(),
        tag_height_mm: None,
        range_sigma_mm: 100,
        slave_period: Duration::from_secs(1),
        pack_period: Duration::from_millis(500),
    }));
    master.control_pack(helio_master::PackControl::new(cell));
    master
}

/// SMP requests with whatever CBOR at a master: os, stat, its own group, the tunnel to slaves.
pub fn smp(data: &[u8]) {
    MASTER.with_borrow_mut(|master| {
        let mut answer = [0; helio_smp::MAX_DATAGRAM];
        let now = Instant::from_millis(5);
        let len = master.handle_smp(now, 1, data, &mut answer);
        assert!(len <= answer.len());
        // An answer is a datagram itself.
        if len > 0 {
            assert!(helio_smp::Header::decode(&answer[..len]).is_ok());
        }
        let _ = master.poll_smp(now, &mut answer);
    });
}

/// SMP over a serial line: base64 between markers, in pieces.
pub fn smp_serial(data: &[u8]) {
    let mut decoder = helio_smp::serial::Decoder::<{ helio_smp::MAX_DATAGRAM }>::new();
    for byte in data {
        if let Ok(Some(datagram)) = decoder.handle_octet(*byte) {
            assert!(datagram.len() <= helio_smp::MAX_DATAGRAM);
        }
    }
}

/// An anchor map in CBOR: what is taken is canonical, so it is written the same again.
pub fn map_cbor(data: &[u8]) {
    let Ok(map) = helio_positioning::AnchorMap::<64>::decode(data) else {
        return;
    };
    assert_eq!(written(&map, data.len() + 64), data);
}

fn written(map: &helio_positioning::AnchorMap<64>, room: usize) -> Vec<u8> {
    let mut out = vec![0; room];
    let mut rest = &mut out[..];
    let left = map.encode(&mut rest).map(|()| rest.len());
    out.truncate(room - left.unwrap_or(room));
    out
}

/// An anchor map as a file.
pub fn map_toml(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = helio_locate::SiteMap::parse(Path::new("fuzz.toml"), text);
    }
    with_file(data, |file| drop(helio_sim::files::load_map(file)));
}

/// A cell's parameter file.
pub fn cell(data: &[u8]) {
    with_file(data, |file| drop(helio_sim::files::load_cell(file)));
}

/// A scenario.
pub fn scenario(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let parsed =
            helio_sim::scenario::Scenario::parse(Path::new("fuzz.toml"), text, PathBuf::new());
        if let Ok(scenario) = parsed {
            let _ = helio_sim::capabilities(&scenario);
        }
    }
}

/// A recording of a cell.
pub fn trace_csv(data: &[u8]) {
    with_file(data, |file| {
        let _ = helio_sim::files::CellTrace::load(file, 5_000.0, Some(0.5), 1.0);
        let _ = helio_sim::files::load_current(file);
    });
}

/// Recordings of ranges and of the truth.
pub fn ranges_csv(data: &[u8]) {
    const MAP: &str = "[[anchor]]\nid = 0\nx_m = 0.0\ny_m = 0.0\nz_m = 2.0\n";
    let map = helio_locate::SiteMap::parse(Path::new("map.toml"), MAP).expect("a good map");
    with_file(data, |file| {
        let _ = helio_locate::Ranges::load(file, &map);
        let _ = helio_locate::Truth::load(file, "xyzw");
    });
}

/// A tester's recording of a cell.
pub fn cellfit_csv(data: &[u8]) {
    use helio_cellfit::recording::{Columns, Recording, Sign, Source};
    with_file(data, |file| {
        let source = Source {
            path: file.into(),
            temp_c: Some(25.0),
        };
        let _ = Recording::load(&source, &Columns::default(), Sign::default(), None);
    });
}

/// Records between a hub and its firmwares, one behind the other.
pub fn hub(data: &[u8]) {
    use helio_hub::record::{Request, Told};
    let mut rest = data;
    while let Ok((request, size)) = Request::decode(rest) {
        assert!(size > 0 && size <= rest.len());
        let mut out = Vec::new();
        request.encode(&mut out);
        let (again, _) = Request::decode(&out).expect("our own");
        assert_eq!(format!("{again:?}"), format!("{request:?}"));
        rest = &rest[size..];
    }
    let mut rest = data;
    while let Ok((told, size)) = Told::decode(rest) {
        assert!(size > 0 && size <= rest.len());
        let mut out = Vec::new();
        told.encode(&mut out);
        assert!(Told::decode(&out).is_ok());
        rest = &rest[size..];
    }
}

/// For what is read by path.
fn with_file(data: &[u8], read: impl FnOnce(&Path)) {
    thread_local! {
        static FILE: PathBuf = {
            // In memory where there is such a place.
            let dir = Path::new("/dev/shm");
            let dir = if dir.is_dir() { dir.into() } else { std::env::temp_dir() };
            let thread = format!("{:?}", std::thread::current().id());
            let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
            dir.join(format!("helio-fuzz-{}-{thread}", std::process::id()))
        };
    }
    FILE.with(|file| {
        let written = std::fs::File::create(file).and_then(|mut f| f.write_all(data));
        if written.is_ok() {
            read(file);
        }
        let _ = std::fs::remove_file(file);
    });
}

/// Good input for an entry, where fuzzing starts.
pub fn seeds(entry: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let files = |paths: &[&str]| -> Vec<Vec<u8>> {
        let read = |path: &&str| {
            // Long recordings only slow a fuzzer down.
            std::fs::read(root.join(path)).ok().map(|mut bytes| {
                bytes.truncate(4_096);
                bytes
            })
        };
        paths.iter().filter_map(read).collect()
    };
    let summary = |node: u8| {
        use helio_bus::{Message, Summary};
        let node = NodeId::new(node).unwrap_or(NodeId::MAX);
        encode_can(&Message::Summary(node, Summary::default()), 3, false)
    };
    match entry {
        "can" => {
            let mut bytes = vec![0];
            for frame in (1..4).filter_map(summary) {
                let CanId::Standard(id) = frame.id else {
                    continue;
                };
                bytes.extend([10, 0]);
                bytes.extend(u32::from(id).to_le_bytes());
                bytes.push(8);
                bytes.extend(frame.data());
            }
            // A claim, too.
            bytes.extend([10, 6, 1, 2, 0x80, 0x1e, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
            vec![bytes.clone(), [&[1], &bytes[1..]].concat()]
        }
        "rs485" => {
            use helio_bus::{Command, Message, Order, State, Sync};
            let node = NodeId::new(1).unwrap_or(NodeId::MAX);
            let messages = [
                Message::Sync(Sync {
                    cycle: 1,
                    tag: None,
                    previous_us: 77,
                }),
                Message::Command(Command {
                    to: Some(node),
                    order: Order::Gate(true),
                }),
                Message::State(node, State::default()),
            ];
            let mut all = vec![0];
            for message in &messages {
                let bytes = encode_serial(message, 1, 32).unwrap_or_default();
                all.extend([0x10, bytes.len() as u8]);
                all.extend(&bytes);
            }
            vec![all]
        }
        "segments" => vec![
            vec![
                0, 0, 7, 3, 1, 2, 3, 0x18, 40, 50, 2, 0x30, 8, 0, 1, 7, 0x10, 20, 1, 2, 3, 4, 5, 6,
            ],
            vec![
                1, 0, 7, 0x10, 64, 1, 2, 3, 4, 5, 6, 1, 7, 0x21, 2, 3, 4, 5, 6, 7, 8,
            ],
        ],
        "smp" => vec![
            // os echo, stat list, our status; then an empty map each.
            vec![
                2, 0, 0, 9, 0, 0, 1, 0, 0xa1, 0x61, 0x64, 0x65, b'h', b'e', b'l', b'l', b'o',
            ],
            vec![0, 0, 0, 1, 0, 2, 1, 1, 0xa0],
            vec![0, 0, 0, 1, 0, 64, 1, 0, 0xa0],
            vec![
                0, 0, 0, 12, 0, 64, 2, 1, 0xa2, 0x65, b's', b'i', b'n', b'c', b'e', 1, 0x63, b'm',
                b'a', b'x', 5,
            ],
            vec![
                2, 0, 0, 10, 0, 64, 3, 3, 0xa1, 0x63, b'c', b'm', b'd', 0x64, b'g', b'a', b't',
                b'e',
            ],
        ],
        "smp_serial" => vec![b"\x06\x09AAoAAAABAAEAAKAAAA==\n".to_vec()],
        "map_cbor" => {
            let mut map = helio_positioning::AnchorMap::<64>::new(3);
            let empty = written(&map, 256);
            let anchor = helio_positioning::Anchor {
                id: 1,
                ..Default::default()
            };
            let _ = map.insert(anchor);
            vec![empty, written(&map, 512)]
        }
        "map_toml" => vec![
            b"version = 2\n[[anchor]]\nid = 0\nnode = 1\nindex = 0\nx_mm = 1\ny_mm = 2\nz_mm = 3\n"
                .to_vec(),
            b"[[anchor]]\nid = 0\nx_m = 0.0\ny_m = 0.0\nz_m = 2.0\n".to_vec(),
        ],
        "cell" => files(&["data/cells/lg-m50.toml"]),
        "scenario" => files(&[
            "scenarios/over-voltage.toml",
            "scenarios/precharge.toml",
            "scenarios/sensor-faults.toml",
        ]),
        "trace_csv" => {
            let mut all = files(&["data/traces/lgm50_us06_25c.csv"]);
            all.push(b"time_s,current_a,voltage_v,soc\n0,1,3.6,0.5\n1,1,3.6,0.49\n".to_vec());
            all
        }
        "ranges_csv" => vec![
            b"t,tag,anchor,range_m\n0.0,0,0,1.5\n0.1,0,0,1.6\n".to_vec(),
            b"time,x,y,z,qx,qy,qz,qw\n0.0,1,2,3,0,0,0,1\n".to_vec(),
        ],
        "cellfit_csv" => vec![
            b"time_s,current_a,voltage_v,discharge_ah,charge_ah\n0,0,3.3,0,0\n10,1,3.2,0.003,0\n"
                .to_vec(),
            b"Test Time (s);Current (A);Voltage (V)\n0,0;1,5;3,6\n1,0;1,5;3,6\n".to_vec(),
        ],
        _ => vec![
            vec![
                20, 1, 1, 0, 0x40, 0x42, 0xf, 0, 0x40, 0x42, 0xf, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2,
            ],
            vec![16, 3, 0, 0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64 (Steele, Lea, Flood 2014).
    struct Rng(u64);
    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ x >> 31
        }
        fn below(&mut self, n: usize) -> usize {
            (self.next() % n.max(1) as u64) as usize
        }
    }

    fn mutate(rng: &mut Rng, data: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(data.len());
            match rng.below(7) {
                0 | 1 if !data.is_empty() => data[at] ^= 1 << rng.below(8),
                2 if !data.is_empty() => data[at] = rng.next() as u8,
                3 if !data.is_empty() => drop(data.remove(at)),
                4 => data.insert(at, rng.next() as u8),
                5 => data.truncate(at),
                _ => {
                    data.truncate(at);
                    let from = rng.below(other.len());
                    data.extend(other.get(from..).unwrap_or(&[]));
                }
            }
        }
    }

    fn briefly(entry: &str, times: usize) {
        let (_, run) = ENTRIES
            .iter()
            .find(|(name, _)| *name == entry)
            .expect("one of them");
        let seeds = seeds(entry);
        assert!(!seeds.is_empty(), "{entry}");
        seeds.iter().for_each(|seed| run(seed));
        let mut rng = Rng(1);
        for n in 0..times {
            let mut data = seeds[n % seeds.len()].clone();
            let other = &seeds[rng.below(seeds.len())];
            mutate(&mut rng, &mut data, other);
            run(&data);
        }
    }

    #[test]
    fn decoders_of_the_bus_take_anything_without_panic() {
        for entry in ["can", "rs485", "segments"] {
            briefly(entry, 2_000);
        }
    }

    #[test]
    fn decoders_of_the_northbound_interface_take_anything_without_panic() {
        for entry in ["smp", "smp_serial", "map_cbor", "hub"] {
            briefly(entry, 5_000);
        }
    }

    #[test]
    fn readers_of_files_take_anything_without_panic() {
        for entry in [
            "map_toml",
            "cell",
            "scenario",
            "trace_csv",
            "ranges_csv",
            "cellfit_csv",
        ] {
            briefly(entry, 300);
        }
    }
}
