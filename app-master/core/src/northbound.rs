//! Group 64 of the northbound interface: how status, telemetry, map and commands look in CBOR.
//!
//! The layouts are specified in `docs/northbound.md`. Nothing here decides; [`crate::Master`] hands
//! over what is to be said and carries out what was asked.

use helio_battery::protection::Code;
use helio_bus::Severity;
use helio_bus::analysis::Overfull;
use helio_smp::heliograph::Fault;
use helio_smp::{Body, Malformed, Request, Written, list, read_map};
use helio_units::{DeciCelsius, Millivolts, NodeId, Uid};
use minicbor::Decoder;

use crate::contactor::ContactorEvent;
use crate::map::{AnchorMap, MapAnchor};
use crate::pack::{NodeState, PackFigures, PackState};
use crate::telemetry::{Entry, Event, Log, Record, SlaveFigures, TagFigures, What};

/// The body cannot be read.
pub const MALFORMED: fn(Malformed) -> Fault = |Malformed| Fault::Malformed;

/// Name of a severity as clients read it.
pub fn severity(s: Severity) -> &'static str {
    match s {
        Severity::None => "none",
        Severity::Warn => "warn",
        Severity::Derate => "derate",
        Severity::Trip => "trip",
    }
}

/// Name of a slave's state as clients read it.
pub fn node_state(s: NodeState) -> &'static str {
    match s {
        NodeState::Absent => "absent",
        NodeState::Init => "init",
        NodeState::Standby => "standby",
        NodeState::Active => "active",
        NodeState::Tripped => "tripped",
        NodeState::Isolated => "isolated",
        NodeState::Quarantined => "quarantined",
    }
}

/// Name of a pack's state as clients read it.
pub fn pack_state(s: PackState) -> &'static str {
    match s {
        PackState::Empty => "empty",
        PackState::Ready => "ready",
        PackState::Degraded => "degraded",
        PackState::Tripped => "tripped",
        PackState::Asleep => "asleep",
    }
}

/// Name of an event as clients read it.
pub fn what(w: What) -> &'static str {
    match w {
        What::Joined => "joined",
        What::Replaced => "replaced",
        What::Left => "left",
        What::Quarantined => "quarantined",
        What::Isolated => "isolated",
        What::Released => "released",
        What::Duplicate => "duplicate",
        What::Refused(_) => "refused",
        What::Trip => "trip",
        What::Alarm => "alarm",
        What::Command => "command",
        What::Map => "map",
        What::Asleep => "asleep",
        What::Awake => "awake",
        What::Contactors(event) => match event {
            ContactorEvent::Precharging => "precharging",
            ContactorEvent::Closed => "contactors-closed",
            ContactorEvent::Opened => "contactors-opened",
            ContactorEvent::Dropped => "contactors-dropped",
            ContactorEvent::Retrying(_) => "contactors-retry",
            ContactorEvent::Failed(_) => "contactors-failed",
        },
    }
}

/// Name of a diagnostic event by its number on the bus.
pub fn code_name(code: u8) -> &'static str {
    Code::from_raw(code).map_or("unknown event", |code| code.kind().name())
}

fn opt_mv(e: &mut Body<'_>, v: Option<Millivolts>) -> Written {
    match v {
        Some(v) => e.u16(v.0)?,
        None => e.null()?,
    };
    Ok(())
}

fn opt_dc(e: &mut Body<'_>, v: Option<DeciCelsius>) -> Written {
    match v {
        Some(v) => e.i16(v.0)?,
        None => e.null()?,
    };
    Ok(())
}

fn opt_u32(e: &mut Body<'_>, v: Option<u32>) -> Written {
    match v {
        Some(v) => e.u32(v)?,
        None => e.null()?,
    };
    Ok(())
}

fn uid(e: &mut Body<'_>, uid: u64) -> Written {
    let mut text = [0u8; 16];
    for (i, place) in text.iter_mut().enumerate() {
        let nibble = (uid >> (60 - 4 * i)) as u8 & 0xf;
        *place = if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + nibble - 10
        };
    }
    e.str(core::str::from_utf8(&text).unwrap_or(""))?;
    Ok(())
}

/// The pack's fields, without the surrounding map.
fn pack_fields(e: &mut Body<'_>, p: &PackFigures) -> Written {
    e.str("state")?.str(pack_state(p.state))?;
    e.str("voltage_mv")?.u32(p.voltage_mv)?;
    e.str("current_ma")?.i32(p.current.0)?;
    e.str("soc_ppm")?;
    opt_u32(e, p.soc_ppm)?;
    e.str("soc_min_ppm")?;
    opt_u32(e, p.soc_min_ppm)?;
    e.str("soc_max_ppm")?;
    opt_u32(e, p.soc_max_ppm)?;
    e.str("soh_ppm")?;
    opt_u32(e, p.soh_ppm)?;
    e.str("soh_min_ppm")?;
    opt_u32(e, p.soh_min_ppm)?;
    e.str("cell_min_mv")?;
    opt_mv(e, p.cell_min)?;
    e.str("cell_max_mv")?;
    opt_mv(e, p.cell_max)?;
    e.str("temp_max_dc")?;
    opt_dc(e, p.temp_max)?;
    e.str("members")?.u8(p.members)?;
    e.str("expected")?.u8(p.expected)?;
    e.str("strings_connected")?.u8(p.strings_connected)?;
    e.str("contactors")?.str(p.contactors.name())?;
    e.str("link_mv")?;
    opt_u32(e, p.link_mv)?;
    let p = &p.power;
    for (key, values) in [
        ("discharge_w", &p.discharge_w),
        ("charge_w", &p.charge_w),
        ("discharge_ma", &p.discharge_ma),
        ("charge_ma", &p.charge_ma),
    ] {
        e.str(key)?.array(values.len() as u64)?;
        for &value in values {
            e.u32(value)?;
        }
    }
    Ok(())
}

/// How many pairs [`pack_fields`] writes.
const PACK_FIELDS: u64 = 20;

/// What the status answer needs of a seat.
#[derive(Clone, Copy, Debug)]
pub struct SeatStatus {
    /// Seat.
    pub node: NodeId,
    /// Device.
    pub uid: u64,
    /// State.
    pub state: NodeState,
    /// Severity.
    pub severity: Severity,
    /// Cells, temperatures, anchors.
    pub parts: [u8; 3],
    /// Gate.
    pub gate_on: bool,
}

/// Head of the status answer.
#[derive(Clone, Copy, Debug)]
pub struct StatusHead<'a> {
    /// Name of the master.
    pub name: &'a str,
    /// Since start.
    pub uptime_ms: u64,
    /// Oldest record.
    pub seq_first: u64,
    /// Next record.
    pub seq_next: u64,
    /// Kinds of its buses, in order, with a + between two.
    pub bus: &'a str,
    /// Figures.
    pub pack: &'a PackFigures,
    /// The device that was refused last and has no seat yet, and what it would break.
    pub refused: Option<(Uid, Overfull)>,
}

/// Body of the status answer: as many seats as fit, from place `off` on.
pub fn status(
    e: &mut Body<'_>,
    head: &StatusHead<'_>,
    off: u64,
    seats: impl Iterator<Item = SeatStatus> + Clone,
) -> Written {
    e.map(12)?;
    e.str("name")?.str(head.name)?;
    e.str("uptime_ms")?.u64(head.uptime_ms)?;
    e.str("seq_first")?.u64(head.seq_first)?;
    e.str("seq_next")?.u64(head.seq_next)?;
    e.str("bus")?.str(head.bus)?;
    e.str("load_ppm")?.u32(head.pack.load_ppm)?;
    e.str("latency_max_us")?.u32(head.pack.latency_max_us)?;
    e.str("pack")?.map(PACK_FIELDS)?;
    pack_fields(e, head.pack)?;
    e.str("refused")?;
    match head.refused {
        Some((device, Overfull(b))) => {
            e.array(4)?;
            uid(e, device.get())?;
            e.str(b.kind.name())?;
            for span in [b.response, b.deadline] {
                opt_u32(e, span.and_then(|d| u32::try_from(d.as_micros()).ok()))?;
            }
        }
        None => {
            e.null()?;
        }
    }
    e.str("total")?.u64(seats.clone().count() as u64)?;
    e.str("off")?.u64(off)?;
    e.str("nodes")?;
    let mut rest = seats.skip(usize::try_from(off).unwrap_or(usize::MAX));
    list(e, 0, |e, _| {
        let Some(s) = rest.next() else {
            return Ok(false);
        };
        e.array(8)?.u8(s.node.get())?;
        uid(e, s.uid)?;
        e.str(node_state(s.state))?.str(severity(s.severity))?;
        for n in s.parts {
            e.u8(n)?;
        }
        e.bool(s.gate_on)?;
        Ok(true)
    })?;
    Ok(())
}

fn slave(e: &mut Body<'_>, s: &SlaveFigures) -> Written {
    e.str("node")?.u8(s.node.get())?;
    e.str("uid")?;
    uid(e, s.uid.get())?;
    e.str("state")?.str(node_state(s.state))?;
    e.str("severity")?.str(severity(s.severity))?;
    e.str("gate_on")?.bool(s.gate_on)?;
    e.str("balancing")?.bool(s.balancing)?;
    e.str("current_ma")?;
    match s.current {
        Some(c) => e.i32(c.0)?,
        None => e.null()?,
    };
    let cells = usize::from(s.cell_count).min(s.cells.len());
    e.str("cells_mv")?.array(cells as u64)?;
    for &v in s.cells.iter().take(cells) {
        opt_mv(e, v)?;
    }
    e.str("soc_ppm")?.array(cells as u64)?;
    for &soc in s.soc_e4.iter().take(cells) {
        opt_u32(e, (soc != u16::MAX).then_some(u32::from(soc) * 100))?;
    }
    let temps = usize::from(s.temp_count).min(s.temps.len());
    e.str("temps_dc")?.array(temps as u64)?;
    for &t in s.temps.iter().take(temps) {
        opt_dc(e, t)?;
    }
    if let Some(h) = &s.health {
        e.str("soh_ppm")?.u32(h.capacity_ppm)?;
        e.str("soh_sigma_ppm")?.u32(h.capacity_sigma_ppm)?;
        e.str("soh_min_ppm")?.u32(h.capacity_min_ppm)?;
        e.str("resistance_ppm")?.u32(h.resistance_ppm)?;
        e.str("resistance_sigma_ppm")?.u32(h.resistance_sigma_ppm)?;
    }
    Ok(())
}

fn tag(e: &mut Body<'_>, t: &TagFigures) -> Written {
    let [x, y, z] = t.position_mm;
    e.str("tag")?.u16(t.tag.0)?;
    e.str("x_mm")?
        .i32(x)?
        .str("y_mm")?
        .i32(y)?
        .str("z_mm")?
        .i32(z)?;
    e.str("sigma_mm")?.u32(t.sigma_mm)?;
    e.str("anchors")?.u8(t.anchors)?;
    e.str("residual_mm")?.u32(t.residual_mm)?;
    e.str("excluded")?.u8(t.excluded)?;
    if let Some(mm) = t.protection_mm {
        e.str("protection_mm")?.u32(mm)?;
    }
    if let Some(track) = &t.track {
        e.str("track_mm")?.array(3)?;
        for mm in track.position_mm {
            e.i32(mm)?;
        }
        e.str("track_sigma_mm")?.u32(track.sigma_mm)?;
        e.str("velocity_mm_s")?.array(3)?;
        for v in track.velocity_mm_s {
            e.i32(v)?;
        }
    }
    Ok(())
}

/// A sentence for people; the fields say the same for machines.
fn sentence(v: &Event, out: &mut heapless::String<96>) {
    use core::fmt::Write;
    // A sentence that does not fit is cut; the fields are whole.
    let _ = match (v.what, v.node) {
        (What::Joined, Some(n)) => write!(out, "slave {n} joined"),
        (What::Replaced, Some(n)) => write!(out, "slave {n} was replaced by another module"),
        (What::Left, Some(n)) => write!(out, "slave {n} fell silent"),
        (What::Quarantined, Some(n)) => {
            write!(out, "slave {n} sent more than its share and was silenced")
        }
        (What::Isolated, Some(n)) => {
            write!(out, "the string of slave {n} was opened because of it")
        }
        (What::Released, Some(n)) => {
            write!(out, "the string of slave {n} is whole and connected again")
        }
        (What::Duplicate, Some(n)) => write!(
            out,
            "another device has the unique id of slave {n} and gets no seat"
        ),
        (What::Refused(breaks), _) => write!(out, "a device gets no seat: {breaks}"),
        (What::Trip, _) => write!(out, "a slave opened its gate"),
        (What::Alarm, Some(n)) => match v.alarm {
            Some(a) => {
                let name = code_name(a.code);
                let end = if a.active { "" } else { " is over" };
                write!(
                    out,
                    "slave {n}: {name}, place {}, value {}{end}",
                    a.index, a.value
                )
            }
            None => write!(out, "slave {n}: alarm"),
        },
        (What::Map, _) => write!(out, "the anchor map was replaced"),
        (What::Asleep, _) => write!(out, "the pack fell asleep"),
        (What::Awake, _) => write!(out, "the pack woke up"),
        (What::Command, _) => write!(out, "an operator's command was taken"),
        (What::Contactors(event), _) => match event {
            ContactorEvent::Precharging => write!(out, "the link is being precharged"),
            ContactorEvent::Closed => write!(out, "the contactors are closed, the load may draw"),
            ContactorEvent::Opened => write!(out, "the contactors are open"),
            ContactorEvent::Dropped => {
                write!(out, "the contactors opened at once: no string may conduct")
            }
            ContactorEvent::Retrying(fault) => {
                write!(out, "{}, another attempt follows", fault.name())
            }
            ContactorEvent::Failed(fault) => {
                write!(out, "{}; clear it once it is mended", fault.name())
            }
        },
        _ => Ok(()),
    };
}

fn event(e: &mut Body<'_>, v: &Event) -> Written {
    e.str("what")?.str(what(v.what))?;
    e.str("node")?;
    match v.node {
        Some(n) => e.u8(n.get())?,
        None => e.null()?,
    };
    if let Some(u) = v.uid {
        e.str("uid")?;
        uid(e, u.get())?;
    }
    if let Some(a) = v.alarm {
        e.str("severity")?.str(severity(a.severity))?;
        e.str("code")?.u8(a.code)?;
        e.str("index")?.u8(a.index)?;
        e.str("value")?.i16(a.value)?;
        e.str("active")?.bool(a.active)?;
    }
    let mut text = heapless::String::new();
    sentence(v, &mut text);
    e.str("text")?.str(&text)?;
    Ok(())
}

fn record(e: &mut Body<'_>, seq: u64, entry: &Entry) -> Written {
    e.begin_map()?;
    e.str("seq")?.u64(seq)?;
    e.str("t_us")?.u64(entry.at.as_micros())?;
    e.str("kind")?;
    match &entry.record {
        Record::Pack(p) => {
            e.str("pack")?;
            pack_fields(e, p)?;
            e.str("load_ppm")?.u32(p.load_ppm)?;
            e.str("latency_max_us")?.u32(p.latency_max_us)?;
        }
        Record::Slave(s) => {
            e.str("slave")?;
            slave(e, s)?;
        }
        Record::Tag(t) => {
            e.str("tag")?;
            tag(e, t)?;
        }
        Record::Event(v) => {
            e.str("event")?;
            event(e, v)?;
        }
    }
    e.end()?;
    Ok(())
}

/// Octets kept for what follows the records: `next` and its number.
const TAIL: usize = 16;

/// Body of the telemetry answer: as many records as fit.
pub fn telemetry<const N: usize>(e: &mut Body<'_>, log: &Log<N>, since: u64, max: u64) -> Written {
    e.map(3)?.str("first")?.u64(log.first())?.str("records")?;
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let mut entries = log.since(since).take(max);
    let sent = list(e, TAIL, |e, _| match entries.next() {
        Some((seq, entry)) => record(e, seq, entry).map(|()| true),
        None => Ok(false),
    })?;
    // An answer never points back, and a client that asks for the future is told where the present is.
    let from = since.clamp(log.first(), log.next());
    e.str("next")?.u64(from + sent as u64)?;
    Ok(())
}

/// Anchors in one answer; each takes at most 40 bytes.
const MAP_PIECE: usize = 40;

/// Body of the answer to reading the map in force, or the one being written (`staged`), from anchor
/// number `off` on. The version of one that is not yet whole is 0.
pub fn map(e: &mut Body<'_>, map: &AnchorMap, off: usize, staged: bool) -> Written {
    let (version, anchors, crc) = if staged {
        let (version, anchors, crc) = map.staged();
        (version.unwrap_or(0), anchors, crc)
    } else {
        (map.version(), map.anchors(), map.crc())
    };
    e.map(5)?
        .str("version")?
        .u32(version)?
        .str("crc")?
        .u32(crc)?;
    e.str("total")?
        .u64(anchors.len() as u64)?
        .str("off")?
        .u64(off as u64)?;
    let piece = anchors.get(off..).unwrap_or(&[]);
    let piece = piece.get(..MAP_PIECE.min(piece.len())).unwrap_or(&[]);
    e.str("anchors")?.array(piece.len() as u64)?;
    for a in piece {
        let [x, y, z] = a.position_mm;
        e.array(7)?
            .u16(a.id)?
            .u8(a.node.get())?
            .u8(a.index)?
            .i32(x)?
            .i32(y)?
            .i32(z)?
            .i32(a.bias_mm)?;
    }
    Ok(())
}

/// A piece of a map as read from its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapPiece<'b> {
    /// Of the map that is being written.
    pub version: u32,
    /// Anchors of the whole map.
    pub total: usize,
    /// Number of this piece's first anchor.
    pub off: usize,
    /// The map waits for its CRC when it is whole.
    pub hold: bool,
    /// The array, not looked at yet.
    anchors: &'b [u8],
}

impl<'b> MapPiece<'b> {
    /// Reads `{version, total, off, hold, anchors}`, in any order.
    pub fn read(body: &'b [u8]) -> Result<Self, Fault> {
        let mut piece = Self::default();
        let place = |v: u64| usize::try_from(v).unwrap_or(usize::MAX);
        read_map(body, |key, d| {
            match key {
                "version" => piece.version = d.u32()?,
                "total" => piece.total = place(d.u64()?),
                "off" => piece.off = place(d.u64()?),
                "hold" => piece.hold = d.bool()?,
                "anchors" => {
                    let start = d.position();
                    d.skip()?;
                    piece.anchors = body.get(start..d.position()).unwrap_or_default();
                }
                _ => d.skip()?,
            }
            Ok(())
        })
        .map_err(MALFORMED)?;
        Ok(piece)
    }

    /// Hands each anchor to `take` until it refuses one.
    pub fn each(&self, mut take: impl FnMut(MapAnchor) -> Result<(), Fault>) -> Result<(), Fault> {
        let malformed = |_| Fault::Malformed;
        let mut d = Decoder::new(self.anchors);
        for _ in 0..d.array().map_err(malformed)?.ok_or(Fault::Malformed)? {
            if d.array().map_err(malformed)? != Some(7) {
                return Err(Fault::Malformed);
            }
            let id = d.u16().map_err(malformed)?;
            let node = NodeId::new(d.u8().map_err(malformed)?).ok_or(Fault::OutOfRange)?;
            let index = d.u8().map_err(malformed)?;
            let mut mm = || d.i32().map_err(malformed);
            let position_mm = [mm()?, mm()?, mm()?];
            take(MapAnchor {
                id,
                node,
                index,
                position_mm,
                bias_mm: mm()?,
            })?;
        }
        Ok(())
    }
}

/// A command as read from its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order<'b> {
    /// Which.
    pub cmd: &'b str,
    /// Seat concerned.
    pub node: Option<NodeId>,
    /// Switch.
    pub on: Option<bool>,
    /// Number.
    pub value: Option<u64>,
}

impl<'b> Order<'b> {
    /// Reads `{cmd, node, on, value}`.
    pub fn read(request: &Request<'b>) -> Result<Self, Fault> {
        let mut order = Self::default();
        let mut node = None;
        read_map(request.body, |key, d| {
            match key {
                "cmd" => order.cmd = d.str()?,
                "node" => node = Some(d.u64()?),
                "on" => order.on = Some(d.bool()?),
                "value" => order.value = Some(d.u64()?),
                _ => d.skip()?,
            }
            Ok(())
        })
        .map_err(MALFORMED)?;
        if let Some(raw) = node {
            let raw = u8::try_from(raw).map_err(|_| Fault::NoSuchNode)?;
            order.node = Some(NodeId::new(raw).ok_or(Fault::NoSuchNode)?);
        }
        Ok(order)
    }
}

/// Reads one number from a body, `default` when it is not there.
pub fn number(request: &Request<'_>, wanted: &str, default: u64) -> Result<u64, Fault> {
    let mut found = default;
    read_map(request.body, |key, d| {
        if key == wanted {
            found = d.u64()?;
            return Ok(());
        }
        d.skip()
    })
    .map_err(MALFORMED)?;
    Ok(found)
}

/// Reads one switch from a body, off when it is not there.
pub fn switch(request: &Request<'_>, wanted: &str) -> Result<bool, Fault> {
    let mut found = false;
    read_map(request.body, |key, d| {
        if key == wanted {
            found = d.bool()?;
            return Ok(());
        }
        d.skip()
    })
    .map_err(MALFORMED)?;
    Ok(found)
}
