//! A plant that is made up: 32 slaves of 16 cells, 32 anchors and 10 tags, in real time, behind
//! the interface of a master. For tests of what lies between a master and the page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use helio_bridge::source::Source;
use helio_link::AskError;
use helio_link::types::{
    Anchor, Data, EventRecord, Map, Node, NodeState, Pack, PackRecord, PackState, Record, Severity,
    SlaveRecord, Status, TagRecord, Telemetry,
};

const SLAVES: u8 = 32;
const CELLS: usize = 16;
const TAGS: u16 = 10;
/// Records that the master keeps.
const KEPT: usize = 4_096;
/// As many as fit a datagram.
const BATCH: usize = 8;

/// Steers the plant from outside.
#[derive(Clone, Default)]
pub struct Control {
    /// No further records.
    pub stopped: Arc<AtomicBool>,
    /// Starts anew.
    pub restart: Arc<AtomicBool>,
    /// Number of the newest record.
    pub made: Arc<AtomicU64>,
}

pub struct Plant {
    name: String,
    start: Instant,
    seed: u64,
    records: VecDeque<Record>,
    next: u64,
    tick: u64,
    control: Control,
}

impl Plant {
    pub fn new(name: &str, control: Control) -> Self {
        Self {
            name: name.into(),
            start: Instant::now(),
            seed: name.bytes().fold(7, |h, b| h * 31 + u64::from(b)),
            records: VecDeque::new(),
            next: 1,
            tick: 0,
            control,
        }
    }

    /// Between -1 and 1, always the same for the same arguments.
    fn noise(&self, a: u64, b: u64) -> f64 {
        let mut x = self.seed ^ a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.rotate_left(32);
        for _ in 0..3 {
            x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        }
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn current_a(t: f64) -> f64 {
        let drive = 55.0 * (t / 17.0).sin() + 30.0 * (t / 5.3).sin() + 12.0 * (t / 1.9).sin();
        (28.0 + drive).clamp(-70.0, 140.0)
    }

    fn soc(&self, node: u8, cell: usize, t: f64) -> f64 {
        let own = self.noise(node.into(), cell as u64);
        let weak = if (node, cell) == (21, 11) { 0.09 } else { 0.0 };
        let base = 0.74 - 0.02 * (self.seed % 9) as f64;
        (base - t / 9_000.0 + 0.012 * own + 0.012 * self.noise(node.into(), 99) - weak).max(0.05)
    }

    fn cell_mv(&self, node: u8, cell: usize, t: f64) -> u16 {
        let soc = self.soc(node, cell, t);
        let ohm = 1.1e-3 * (1.0 + 0.15 * self.noise(node.into(), 50 + cell as u64));
        (3_250.0 + 900.0 * soc - 1_000.0 * ohm * Self::current_a(t)) as u16
    }

    fn temp_dc(node: u8, sensor: usize, t: f64) -> i16 {
        let hot = if node == 11 { 95.0 } else { 0.0 };
        let place = 25.0 * (f64::from(node) / 32.0 * 3.0).sin() + 9.0 * (sensor as f64).sin();
        (262.0 + place + hot * (1.0 - (-t / 60.0).exp()) + 6.0 * (t / 40.0).sin()) as i16
    }

    fn state(node: u8, t: f64) -> (NodeState, Severity) {
        match node {
            11 if t > 8.0 => (NodeState::Active, Severity::Warn),
            26 if t > 12.0 => (NodeState::Tripped, Severity::Trip),
            29 => (NodeState::Absent, Severity::None),
            _ => (NodeState::Active, Severity::None),
        }
    }

    fn slave(&self, node: u8, t: f64) -> SlaveRecord {
        let (state, severity) = Self::state(node, t);
        SlaveRecord {
            node,
            uid: format!("{:016x}", 0x4e11_0000_0000_0000 + u64::from(node) * 7_919),
            state,
            severity,
            gate_on: state == NodeState::Active,
            balancing: node % 7 == 3,
            current_ma: Some((Self::current_a(t) * 1_000.0) as i32),
            cells_mv: (0..CELLS).map(|c| Some(self.cell_mv(node, c, t))).collect(),
            soc_ppm: (0..CELLS)
                .map(|c| Some((self.soc(node, c, t) * 1e6) as u32))
                .collect(),
            temps_dc: (0..8).map(|s| Some(Self::temp_dc(node, s, t))).collect(),
            health: None,
        }
    }

    fn pack(&self, t: f64) -> Pack {
        let nodes = (1..=SLAVES).filter(|n| *n != 29);
        let all: Vec<(u16, f64)> = nodes
            .flat_map(|n| (0..CELLS).map(move |c| (n, c)))
            .map(|(n, c)| (self.cell_mv(n, c, t), self.soc(n, c, t)))
            .collect();
        let soc = all.iter().map(|c| c.1);
        let ppm = |soc: f64| Some((soc * 1e6) as u32);
        Pack {
            state: if t > 12.0 {
                PackState::Degraded
            } else {
                PackState::Ready
            },
            voltage_mv: Some(all.iter().map(|c| u32::from(c.0)).sum()),
            current_ma: Some((Self::current_a(t) * 1_000.0) as i32),
            soc_ppm: ppm(soc.clone().sum::<f64>() / all.len() as f64),
            soc_min_ppm: ppm(soc.clone().fold(1.0, f64::min)),
            soc_max_ppm: ppm(soc.fold(0.0, f64::max)),
            cell_min_mv: all.iter().map(|c| c.0).min(),
            cell_max_mv: all.iter().map(|c| c.0).max(),
            temp_max_dc: (1..=SLAVES).map(|n| Self::temp_dc(n, 0, t)).max(),
            members: 31,
            expected: 32,
            ..Pack::default()
        }
    }

    fn tag(&self, tag: u16, t: f64) -> TagRecord {
        let k = f64::from(tag);
        let (rx, ry) = (4_000.0 + 900.0 * (k % 4.0), 2_200.0 + 500.0 * (k % 3.0));
        let phase = t / (9.0 + 1.7 * k) + 1.3 * k;
        TagRecord {
            tag,
            x_mm: (10_000.0 + 3_000.0 * (k - 4.5).sin() + rx * phase.cos()) as i32,
            y_mm: (6_000.0 + ry * (phase * (1.0 + (k % 2.0))).sin()) as i32,
            z_mm: 1_100,
            sigma_mm: (140.0 + 90.0 * self.noise(tag.into(), 5).abs() + 60.0 * phase.sin()) as u32,
            anchors: 8 + (tag % 5) as u8,
            residual_mm: 70,
            excluded: None,
            protection_mm: None,
            track_mm: None,
            track_sigma_mm: None,
            velocity_mm_s: None,
        }
    }

    fn event(what: &str, node: Option<u8>, severity: Severity, text: &str) -> EventRecord {
        EventRecord {
            what: what.into(),
            node,
            uid: None,
            severity: Some(severity),
            code: None,
            index: None,
            value: None,
            active: (what == "alarm").then_some(true),
            text: text.into(),
        }
    }

    fn push(&mut self, t_us: u64, data: Data) {
        self.records.push_back(Record {
            seq: self.next,
            t_us,
            data,
        });
        self.control.made.store(self.next, Ordering::Relaxed);
        self.next += 1;
        if self.records.len() > KEPT {
            self.records.pop_front();
        }
    }

    /// Ticks of 25 ms: each slave twice, each tag five times, the pack four times a second.
    fn advance(&mut self) {
        if self.control.restart.swap(false, Ordering::Relaxed) {
            *self = Self::new(&self.name, self.control.clone());
        }
        if self.control.stopped.load(Ordering::Relaxed) {
            return;
        }
        let now = self.start.elapsed().as_micros() as u64 / 25_000;
        while self.tick < now {
            self.tick += 1;
            let (tick, t_us) = (self.tick, self.tick * 25_000);
            let t = t_us as f64 * 1e-6;
            for node in (1..=SLAVES).filter(|n| *n != 29) {
                if (tick + u64::from(node)) % 20 == 0 {
                    let slave = self.slave(node, t);
                    self.push(t_us, Data::Slave(slave));
                }
            }
            for tag in 1..=TAGS {
                if (tick + u64::from(tag)) % 8 == 0 {
                    let tag = self.tag(tag, t);
                    self.push(t_us, Data::Tag(tag));
                }
            }
            if tick % 10 == 0 {
                let wave = (t / 11.0).sin() + 0.6 * self.noise(tick, 1);
                let record = PackRecord {
                    pack: self.pack(t),
                    load_ppm: (412_000.0 + 22_000.0 * wave) as u32,
                    latency_max_us: Some((6_100.0 + 700.0 * self.noise(tick, 2)) as u32),
                };
                self.push(t_us, Data::Pack(record));
            }
            if tick % 40 == 0 {
                self.stories(tick / 40, t_us);
            }
        }
    }

    fn stories(&mut self, second: u64, t_us: u64) {
        let event = match second {
            1..=4 => {
                let node = second as u8 * 8;
                let text = format!("slave {node} joined");
                Self::event("joined", Some(node), Severity::None, &text)
            }
            5 => Self::event(
                "left",
                Some(29),
                Severity::Warn,
                "slave 29 fell silent and left",
            ),
            6 => Self::event(
                "map",
                None,
                Severity::None,
                "map version 7 took effect, 32 anchors",
            ),
            8 => Self::event(
                "alarm",
                Some(11),
                Severity::Warn,
                "temperature 3 is 35.2 °C, above 35.0 °C",
            ),
            12 => Self::event(
                "trip",
                Some(26),
                Severity::Trip,
                "cell 4 is 4251 mV, above 4250 mV; gate opened after 0.4 ms",
            ),
            13 => Self::event(
                "isolated",
                Some(26),
                Severity::Warn,
                "slave 26 was isolated",
            ),
            s if s % 45 == 0 => {
                Self::event("command", None, Severity::None, "balancing was switched on")
            }
            _ => return,
        };
        self.push(t_us, Data::Event(event));
    }
}

impl Source for Plant {
    async fn status(&mut self) -> Result<Status, AskError> {
        self.advance();
        let t = self.start.elapsed().as_secs_f64();
        let nodes: Vec<Node> = (1..=SLAVES)
            .map(|node| {
                let slave = self.slave(node, t);
                Node {
                    node,
                    uid: slave.uid,
                    state: slave.state,
                    severity: slave.severity,
                    cells: CELLS as u8,
                    temps: 8,
                    anchors: 1,
                    gate_on: slave.gate_on,
                }
            })
            .collect();
        Ok(Status {
            name: self.name.clone(),
            uptime_ms: self.start.elapsed().as_millis() as u64,
            seq_first: self.records.front().map_or(self.next, |r| r.seq),
            seq_next: self.next,
            bus: "can-1m".into(),
            load_ppm: 412_000,
            latency_max_us: Some(6_100),
            pack: self.pack(t),
            refused: None,
            total: nodes.len() as u32,
            off: 0,
            nodes,
        })
    }

    async fn telemetry(&mut self, since: u64, max: u32) -> Result<Telemetry, AskError> {
        self.advance();
        let records: Vec<Record> = self
            .records
            .iter()
            .skip_while(|r| r.seq < since)
            .take(BATCH.min(max as usize))
            .cloned()
            .collect();
        Ok(Telemetry {
            first: self.records.front().map_or(self.next, |r| r.seq),
            next: records.last().map_or(self.next, |r| r.seq + 1),
            records,
        })
    }

    async fn map(&mut self) -> Result<Map, AskError> {
        let anchors: Vec<Anchor> = (0..32u16)
            .map(|i| Anchor {
                id: i + 1,
                node: i as u8 + 1,
                index: 0,
                x_mm: 1_250 + 2_500 * i32::from(i % 8),
                y_mm: 1_500 + 3_000 * i32::from(i / 8),
                z_mm: 2_800,
                bias_mm: 0,
            })
            .collect();
        Ok(Map {
            version: 7,
            crc: 0,
            total: 32,
            off: 0,
            anchors,
        })
    }
}
