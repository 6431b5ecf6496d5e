//! A small master for tests: answers every command of the northbound interface from tables,
//! with the encoder that the real master uses. Drives nothing.

use std::sync::{Arc, Mutex};

use helio_link::types::{Anchor, Node, NodeState, Severity};
use helio_link::{Inbox, Question};
use helio_smp::heliograph::{self as group, Fault};
use helio_smp::standard::{self, Stat};
use helio_smp::tunnel::SlaveTunnel;
use helio_smp::{Body, MAX_DATAGRAM, Op, Rc, Request, Written, accept, list, read_map};
use helio_units::Instant;

const STATS: &[Stat<'static>] = &[Stat {
    name: "bus",
    fields: &[("frames", 123_456_789_012), ("rejected", 0)],
}];

/// State of the small master.
pub struct Master {
    pub nodes: Vec<Node>,
    pub anchors: Vec<Anchor>,
    pub version: u32,
    pub staged: Vec<Anchor>,
    /// Records kept: `first..next`.
    pub first: u64,
    pub next: u64,
    /// Bodies of the commands that came.
    pub commands: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Questions to leave unanswered before answering again.
    pub deaf: u32,
}

impl Default for Master {
    fn default() -> Self {
        Self {
            nodes: (1..=127).map(node).collect(),
            anchors: Vec::new(),
            version: 0,
            staged: Vec::new(),
            first: 1,
            next: 6,
            commands: Arc::default(),
            deaf: 0,
        }
    }
}

pub fn node(seat: u8) -> Node {
    Node {
        node: seat,
        uid: format!("{:016x}", 0xa000_0000_0000_0000_u64 + u64::from(seat)),
        state: NodeState::Active,
        severity: Severity::None,
        cells: 16,
        temps: 4,
        anchors: 0,
        gate_on: true,
    }
}

pub fn anchor(id: u16) -> Anchor {
    Anchor {
        id,
        node: (id / 16) as u8,
        index: (id % 16) as u8,
        x_mm: i32::from(id) * 1_000_000,
        y_mm: -2_000_000_000,
        z_mm: 3_000,
        bias_mm: -120,
    }
}

impl Master {
    /// Answers until all servers have gone.
    pub fn run(mut self, mut inbox: Inbox) {
        while let Some(question) = inbox.wait() {
            self.handle(question);
        }
    }

    fn handle(&mut self, question: Question) {
        if self.deaf > 0 {
            self.deaf -= 1;
            return;
        }
        let mut out = [0; MAX_DATAGRAM];
        let n = match accept(&question.request, &mut out) {
            Ok(request) => standard::handle(&request, &mut out, MAX_DATAGRAM as u16, STATS)
                .unwrap_or_else(|| self.ours(&request, &mut out)),
            Err(n) => n,
        };
        question.answer(&out[..n]);
    }

    fn ours(&mut self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let header = request.header;
        match (header.group, header.id, header.op) {
            (group::GROUP, group::STATUS, Op::Read) => self.status(request, out),
            (group::GROUP, group::TELEMETRY, Op::Read) => self.telemetry(request, out),
            (group::GROUP, group::MAP, Op::Read) => self.map(request, out),
            (group::GROUP, group::MAP, Op::Write) => self.map_write(request, out),
            (group::GROUP, group::COMMAND, Op::Write) => self.command(request, out),
            (group::GROUP, group::TUNNEL, Op::Write) => self.tunnel(request, out),
            _ => request.reply(out).rc(Rc::NotSupported),
        }
    }

    fn status(&self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let Some([off]) = numbers(request, ["off"]) else {
            return request.reply(out).fault(Fault::Malformed);
        };
        let off = off.unwrap_or(0);
        request.reply(out).body(|e| {
            e.map(11)?.str("name")?.str("m1")?;
            e.str("uptime_ms")?.u32(5_000)?;
            e.str("seq_first")?.u64(self.first)?;
            e.str("seq_next")?.u64(self.next)?;
            e.str("bus")?.str("can-1m")?;
            e.str("load_ppm")?.u32(412_000)?;
            e.str("latency_max_us")?.null()?;
            e.str("pack")?.map(18)?;
            self.pack(e)?;
            e.str("total")?.u64(self.nodes.len() as u64)?;
            e.str("off")?.u64(off)?.str("nodes")?;
            list(e, 0, |e, i| {
                let Some(n) = self.nodes.get(off as usize + i) else {
                    return Ok(false);
                };
                e.array(8)?.u8(n.node)?.str(&n.uid)?.str("active")?;
                e.str("none")?.u8(n.cells)?.u8(n.temps)?;
                e.u8(n.anchors)?.bool(n.gate_on)?;
                Ok(true)
            })?;
            Ok(())
        })
    }

    fn pack(&self, e: &mut Body<'_>) -> Written {
        e.str("state")?.str("ready")?;
        e.str("voltage_mv")?.u32(52_000)?;
        e.str("current_ma")?.i32(-1_200)?;
        e.str("soc_ppm")?.u32(512_000)?;
        e.str("soc_min_ppm")?.u32(500_000)?;
        e.str("soc_max_ppm")?.u32(520_000)?;
        e.str("cell_min_mv")?.u16(3_601)?;
        e.str("cell_max_mv")?.u16(3_645)?;
        e.str("temp_max_dc")?.null()?;
        e.str("members")?.u64(self.nodes.len() as u64)?;
        e.str("expected")?.u8(127)?;
        e.str("strings_connected")?.u8(1)?;
        e.str("contactors")?.str("closed")?;
        e.str("link_mv")?.u32(51_990)?;
        for key in ["discharge_w", "charge_w", "discharge_ma", "charge_ma"] {
            e.str(key)?.array(3)?.u32(3_000)?.u32(2_000)?.u32(1_000)?;
        }
        Ok(())
    }

    fn telemetry(&self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let Some([Some(since), Some(max)]) = numbers(request, ["since", "max"]) else {
            return request.reply(out).fault(Fault::Malformed);
        };
        let since = since.max(self.first);
        request.reply(out).body(|e| {
            e.map(3)?.str("first")?.u64(self.first)?;
            e.str("records")?;
            let n = list(e, 14, |e, i| {
                let seq = since + i as u64;
                if i as u64 >= max || seq >= self.next {
                    return Ok(false);
                }
                self.record(e, seq)?;
                Ok(true)
            })?;
            e.str("next")?.u64(since + n as u64)?.ok()
        })
    }

    /// One of each kind in turn, and one that nobody knows.
    fn record(&self, e: &mut Body<'_>, seq: u64) -> Written {
        let mut head = |fields: u64, kind: &str| -> Written {
            e.map(fields + 3)?.str("seq")?.u64(seq)?;
            e.str("t_us")?
                .u64(seq * 1_000)?
                .str("kind")?
                .str(kind)?
                .ok()
        };
        match seq % 5 {
            1 => {
                head(20, "pack")?;
                self.pack(e)?;
                e.str("load_ppm")?.u32(1)?;
                e.str("latency_max_us")?.u32(2_500)?.ok()
            }
            2 => {
                head(10, "slave")?;
                e.str("node")?.u8(3)?.str("uid")?.str("a000000000000003")?;
                e.str("state")?.str("tripped")?.str("severity")?;
                e.str("trip")?.str("gate_on")?.bool(false)?;
                e.str("balancing")?.bool(true)?.str("current_ma")?.null()?;
                e.str("cells_mv")?
                    .array(3)?
                    .u16(3_700)?
                    .null()?
                    .u16(4_301)?;
                e.str("soc_ppm")?.array(3)?.u32(1_000_000)?.null()?.u8(0)?;
                e.str("temps_dc")?.array(2)?.i16(-101)?.null()?.ok()
            }
            3 => {
                head(7, "tag")?;
                e.str("tag")?.u16(9)?.str("x_mm")?.i32(-1_500)?;
                e.str("y_mm")?.i32(2_500)?.str("z_mm")?.i32(900)?;
                e.str("sigma_mm")?.u8(21)?.str("anchors")?.u8(7)?;
                e.str("residual_mm")?.u8(12)?.ok()
            }
            4 => {
                head(4, "event")?;
                e.str("what")?.str("alarm")?.str("node")?.null()?;
                e.str("severity")?.str("warn")?;
                e.str("text")?.str("bus load above 80 %")?.ok()
            }
            _ => {
                head(2, "weather")?;
                e.str("rain")?.array(2)?.f32(0.5)?.map(1)?;
                e.str("deep")?.bool(true)?;
                e.str("raw")?.bytes(&[1, 2, 3])?.ok()
            }
        }
    }

    fn map(&self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let Some([Some(off)]) = numbers(request, ["off"]) else {
            return request.reply(out).fault(Fault::Malformed);
        };
        request.reply(out).body(|e| {
            e.map(5)?.str("version")?.u32(self.version)?;
            e.str("crc")?.u32(0xffff_ffff)?;
            e.str("total")?.u64(self.anchors.len() as u64)?;
            e.str("off")?.u64(off)?.str("anchors")?;
            list(e, 0, |e, i| {
                let Some(a) = self.anchors.get(off as usize + i) else {
                    return Ok(false);
                };
                e.array(7)?.u16(a.id)?.u8(a.node)?.u8(a.index)?;
                e.i32(a.x_mm)?.i32(a.y_mm)?.i32(a.z_mm)?.i32(a.bias_mm)?;
                Ok(true)
            })?;
            Ok(())
        })
    }

    fn map_write(&mut self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let (mut version, mut total, mut off) = (0, 0, 0);
        let mut piece = Vec::new();
        let read = read_map(request.body, |key, d| {
            match key {
                "version" => version = d.u32()?,
                "total" => total = d.u64()?,
                "off" => off = d.u64()?,
                "anchors" => {
                    for _ in 0..d.array()?.unwrap_or(0) {
                        d.array()?;
                        piece.push(Anchor {
                            id: d.u16()?,
                            node: d.u8()?,
                            index: d.u8()?,
                            x_mm: d.i32()?,
                            y_mm: d.i32()?,
                            z_mm: d.i32()?,
                            bias_mm: d.i32()?,
                        });
                    }
                }
                _ => d.skip()?,
            }
            Ok(())
        });
        let reply = request.reply(out);
        if read.is_err() {
            return reply.fault(Fault::Malformed);
        }
        self.staged.truncate(off as usize);
        self.staged.extend(piece);
        let next = self.staged.len() as u64;
        if next == total {
            self.anchors = std::mem::take(&mut self.staged);
            self.version = version;
        }
        reply.body(|e| e.map(1)?.str("off")?.u64(next)?.ok())
    }

    fn command(&mut self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let Some([node]) = numbers(request, ["node"]) else {
            return request.reply(out).fault(Fault::Malformed);
        };
        if node.is_some_and(|node| self.nodes.iter().all(|n| u64::from(n.node) != node)) {
            return request.reply(out).fault(Fault::NoSuchNode);
        }
        self.commands.lock().unwrap().push(request.body.to_vec());
        request.reply(out).empty()
    }

    /// Slave 3 answers the standard groups, slave 4 nothing; the others do not exist.
    fn tunnel(&self, request: &Request<'_>, out: &mut [u8]) -> usize {
        let mut tunnel = SlaveTunnel::<1>::new();
        let forward = match tunnel.handle_request(Instant::ZERO, 0, request) {
            Ok(forward) => forward,
            Err(fault) => return request.reply(out).fault(fault),
        };
        let due = match forward.node.get() {
            3 => {
                let mut inner = [0; group::MAX_TUNNELLED];
                let n = match accept(forward.datagram, &mut inner) {
                    Ok(r) => standard::handle(&r, &mut inner, group::MAX_TUNNELLED as u16, &[])
                        .unwrap_or_else(|| r.reply(&mut inner).rc(Rc::NotSupported)),
                    Err(n) => n,
                };
                tunnel.handle_answer(forward.node, &inner[..n], out)
            }
            4 => tunnel.handle_timeout(Instant::MAX, out),
            _ => tunnel.handle_left(forward.node, out),
        };
        due.unwrap().length
    }
}

/// Numbers under these keys of the body, `None` where a key is absent; other keys are skipped.
fn numbers<const N: usize>(request: &Request<'_>, keys: [&str; N]) -> Option<[Option<u64>; N]> {
    let mut found = [None; N];
    read_map(request.body, |key, d| {
        match keys.iter().position(|k| *k == key) {
            Some(i) => found[i] = Some(d.u64()?),
            None => d.skip()?,
        }
        Ok(())
    })
    .ok()?;
    Some(found)
}
