//! The management plane of a slave: decides the answer to one SMP datagram, driven by
//! [`crate::Slave`]. Bodies are those of `docs/slave.md`.

use core::fmt::Write;

use helio_battery::protection::{CODES, Code, FreezeFrame, Protection};
use helio_bus::{Capabilities, Severity, SlaveState, SlaveStats, State};
use helio_smp::heliograph::{Fault, GROUP, MAX_TUNNELLED, STATUS};
use helio_smp::standard::{self, Stat};
use helio_smp::{Body, Malformed, Op, Rc, Request, Written, accept, list, read_map};
use helio_units::{DeciCelsius, Instant, Millivolts, NodeId, Uid};

/// Octets of the longest answer, and of the longest request that makes sense.
pub(crate) const REPLY: usize = MAX_TUNNELLED;

/// Group 64, read: what happened at this slave. Command number.
pub const DIAGNOSTICS: u8 = 5;

/// What a slave counts. They wrap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub samples: u32,
    pub stale: u32,
    pub trips: u32,
    pub trips_seen: u32,
    pub syncs: u32,
    pub orders: u32,
    pub refused: u32,
    pub left: u32,
    pub master_lost: u32,
    pub datagrams: u32,
    pub unanswered: u32,
}

/// Adds one.
pub(crate) fn bump(counter: &mut u32) {
    *counter = counter.wrapping_add(1);
}

/// What the answers are made of.
pub(crate) struct View<'a> {
    pub now: Instant,
    pub uid: Uid,
    pub node: Option<NodeId>,
    pub capabilities: Capabilities,
    pub said: &'a State,
    pub sampled_at: Option<Instant>,
    pub counters: &'a Counters,
    pub link: &'a SlaveStats,
    pub protection: &'a Protection,
}

/// Writes the answer to `datagram` into `out` and says how long it is; 0: nothing to answer.
pub(crate) fn answer(datagram: &[u8], out: &mut [u8], view: &View<'_>) -> usize {
    let request = match accept(datagram, out) {
        Ok(request) => request,
        Err(refusal) => return refusal,
    };
    let c = view.counters;
    let l = view.link;
    let stats = [
        Stat {
            name: "link",
            fields: &[
                ("sent", l.sent),
                ("overwritten", l.overwritten),
                ("over_budget", l.over_budget),
                ("rejected", l.rejected),
            ],
        },
        Stat {
            name: "slave",
            fields: &[
                ("samples", c.samples.into()),
                ("stale", c.stale.into()),
                ("trips", c.trips.into()),
                ("trips_seen", c.trips_seen.into()),
                ("syncs", c.syncs.into()),
                ("orders", c.orders.into()),
                ("refused", c.refused.into()),
                ("left", c.left.into()),
                ("master_lost", c.master_lost.into()),
                ("datagrams", c.datagrams.into()),
                ("unanswered", c.unanswered.into()),
            ],
        },
    ];
    if let Some(length) = standard::handle(&request, out, REPLY as u16, &stats) {
        return length;
    }
    let reply = request.reply(out);
    match (request.header.group, request.header.id, request.header.op) {
        (GROUP, STATUS, Op::Read) => reply.body(|e| status(e, view)),
        (GROUP, DIAGNOSTICS, Op::Read) => match from(&request) {
            Ok(from) => reply.body(|e| diagnostics(e, view.protection, from)),
            Err(fault) => reply.fault(fault),
        },
        _ => reply.rc(Rc::NotSupported),
    }
}

fn status(e: &mut Body<'_>, view: &View<'_>) -> Written {
    let (said, summary) = (view.said, &view.said.summary);
    let mut uid = heapless::String::<16>::new();
    // Sixteen hex digits fit.
    let _ = write!(uid, "{}", view.uid);
    e.map(14)?;
    e.str("name")?.str("heliograph slave")?;
    e.str("uid")?.str(&uid)?;
    e.str("uptime_ms")?.u64(view.now.as_millis())?;
    e.str("node")?.encode(view.node.map(NodeId::get))?;
    e.str("state")?.str(state(summary.state))?;
    e.str("severity")?.str(severity(summary.severity))?;
    e.str("gate_on")?.bool(summary.gate_on)?;
    e.str("balancing")?.bool(summary.balancing)?;
    e.str("current_ma")?.encode(summary.current.map(|i| i.0))?;
    e.str("cell_min_mv")?.encode(summary.min.map(|v| v.0))?;
    e.str("cell_max_mv")?.encode(summary.max.map(|v| v.0))?;
    e.str("age_ms")?
        .encode(view.sampled_at.map(|t| view.now.since(t).as_millis()))?;
    e.str("cells_mv")?;
    cells(e, &said.cells.0, view.capabilities.cells)?;
    e.str("temps_dc")?;
    temps(e, &said.temps.0, view.capabilities.temps)
}

/// Octets behind the list of events: `next` and its value.
const TAIL: usize = 8;

fn diagnostics(e: &mut Body<'_>, protection: &Protection, from: u8) -> Written {
    e.map(3)?;
    e.str("frames")?;
    let mut frames = protection.freeze_frames();
    list(e, TAIL, |e, _| match frames.next() {
        Some(frame) => freeze_frame(e, frame).map(|()| true),
        None => Ok(false),
    })?;
    e.str("events")?;
    let happened = |raw: &u8| Code::from_raw(*raw).is_some_and(|c| protection.record(c).count > 0);
    let mut codes = (from..=u8::MAX)
        .filter(happened)
        .filter_map(Code::from_raw)
        .peekable();
    list(e, TAIL, |e, _| match codes.peek() {
        Some(&code) => {
            event(e, protection, code)?;
            codes.next();
            Ok(true)
        }
        None => Ok(false),
    })?;
    e.str("next")?.encode(codes.next().map(Code::get))?.ok()
}

fn event(e: &mut Body<'_>, protection: &Protection, code: Code) -> Written {
    let record = protection.record(code);
    let (kind, severity) = CODES
        .get(usize::from(code.get()))
        .copied()
        .unwrap_or_default();
    e.array(10)?;
    e.u8(code.get())?.str(kind)?.str(severity)?;
    e.bool(protection.is_active(code))?.u16(record.count)?;
    e.u8(record.index)?.i32(record.value)?;
    e.u64(record.first.as_millis())?
        .u64(record.last.as_millis())?;
    e.u64(record.cleared.as_millis())?.ok()
}

fn freeze_frame(e: &mut Body<'_>, frame: &FreezeFrame) -> Written {
    let (event, sample) = (&frame.event, &frame.sample);
    e.map(7)?;
    e.str("t_ms")?.u64(event.at.as_millis())?;
    e.str("code")?.u8(event.code.get())?;
    e.str("index")?.u8(event.index)?;
    e.str("value")?.i32(event.value)?;
    e.str("current_ma")?.encode(sample.current.map(|i| i.0))?;
    e.str("cells_mv")?;
    cells(e, &sample.cells, sample.cell_count)?;
    e.str("temps_dc")?;
    temps(e, &sample.temps, sample.temp_count)
}

fn cells(e: &mut Body<'_>, cells: &[Option<Millivolts>], count: u8) -> Written {
    let cells = cells.get(..usize::from(count)).unwrap_or(cells);
    e.array(cells.len() as u64)?;
    cells
        .iter()
        .try_for_each(|v| e.encode(v.map(|v| v.0))?.ok())
}

fn temps(e: &mut Body<'_>, temps: &[Option<DeciCelsius>], count: u8) -> Written {
    let temps = temps.get(..usize::from(count)).unwrap_or(temps);
    e.array(temps.len() as u64)?;
    temps
        .iter()
        .try_for_each(|t| e.encode(t.map(|t| t.0))?.ok())
}

/// `from` in the body, 0 without it.
fn from(request: &Request<'_>) -> Result<u8, Fault> {
    let mut from = 0u32;
    read_map(request.body, |key, d| {
        match key {
            "from" => from = d.u32()?,
            _ => d.skip()?,
        }
        Ok(())
    })
    .map_err(|Malformed| Fault::Malformed)?;
    u8::try_from(from).map_err(|_| Fault::OutOfRange)
}

fn state(state: SlaveState) -> &'static str {
    match state {
        SlaveState::Init => "init",
        SlaveState::Standby => "standby",
        SlaveState::Active => "active",
        SlaveState::Tripped => "tripped",
        SlaveState::Isolated => "isolated",
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::None => "none",
        Severity::Warn => "warn",
        Severity::Derate => "derate",
        Severity::Trip => "trip",
    }
}
