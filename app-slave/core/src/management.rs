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
pub const MAX_ANSWER: usize = MAX_TUNNELLED;

/// Group 64, read: what happened at this slave. Command number.
pub const DIAGNOSTICS: u8 = 5;

/// What a slave counts. They wrap.
#[derive(Clone, Copy, Debug)]
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

impl Counters {
    pub const NONE: Self = Self {
        samples: 0,
        stale: 0,
        trips: 0,
        trips_seen: 0,
        syncs: 0,
        orders: 0,
        refused: 0,
        left: 0,
        master_lost: 0,
        datagrams: 0,
        unanswered: 0,
    };
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
    /// Somebody answers for the device.
    pub device: bool,
    /// The gate is on.
    pub gate_on: bool,
    pub capabilities: Capabilities,
    pub said: &'a State,
    pub sampled_at: Option<Instant>,
    pub counters: &'a Counters,
    pub link: &'a SlaveStats,
    pub protection: &'a Protection,
}

/// Who answers a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The core, with so many octets; 0: nothing to answer.
    Core(usize),
    /// The device: images, settings, reset.
    Device,
}

/// Writes the answer to `datagram` into `out`, unless it is for the device.
pub(crate) fn answer(datagram: &[u8], out: &mut [u8], view: &View<'_>) -> Answer {
    let request = match accept(datagram, out) {
        Ok(request) => request,
        Err(refusal) => return Answer::Core(refusal),
    };
    if view.device && standard::is_for_device(&request.header) {
        // A reset opens the gate, whatever hangs on it.
        return match standard::reset(&request) {
            Some(false) if view.gate_on => Answer::Core(request.reply(out).rc(Rc::BadState)),
            _ => Answer::Device,
        };
    }
    Answer::Core(own(&request, out, view))
}

fn own(request: &Request<'_>, out: &mut [u8], view: &View<'_>) -> usize {
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
    if let Some(length) = standard::handle(request, out, MAX_ANSWER as u16, &stats) {
        return length;
    }
    let reply = request.reply(out);
    match (request.header.group, request.header.id, request.header.op) {
        (GROUP, STATUS, Op::Read) => reply.body(|e| status(e, view)),
        (GROUP, DIAGNOSTICS, Op::Read) => match from(request) {
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
    let mut frames = protection.diagnostics().freeze_frames();
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
    e.u64(record.first.at.as_millis())?
        .u64(record.last.at.as_millis())?;
    e.u64(record.cleared.at.as_millis())?.ok()
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

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use helio_battery::Sample;
    use helio_battery::protection::{Kind, Limits, Severity as Bad};
    use helio_smp::{Header, MAX_DATAGRAM, Version, split};
    use helio_units::Milliamps;
    use minicbor::Decoder;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn request(op: Op, group: u16, id: u8, body: &[u8]) -> Vec<u8> {
        let header = Header {
            op,
            version: Version::V2,
            flags: 0,
            length: body.len() as u16,
            group,
            seq: 42,
            id,
        };
        [&header.encode()[..], body].concat()
    }

    fn map(pairs: &[(&str, u32)]) -> Vec<u8> {
        let mut out = [0; 64];
        let mut e = minicbor::Encoder::new(&mut out[..]);
        e.map(pairs.len() as u64).unwrap();
        for (key, value) in pairs {
            e.str(key).unwrap().u32(*value).unwrap();
        }
        let left = e.writer().len();
        out[..64 - left].to_vec()
    }

    /// Asks a slave whose protection has seen these samples, 10 ms apart.
    fn ask(datagram: &[u8], samples: &[Sample]) -> Vec<u8> {
        decide(datagram, samples, Shell::Alone).expect("the core answers this")
    }

    /// Who is around the core.
    #[derive(PartialEq)]
    enum Shell {
        Alone,
        Device { gate_on: bool },
    }

    const RESTING: Shell = Shell::Device { gate_on: false };
    const LOADED: Shell = Shell::Device { gate_on: true };

    /// What the core answers; `None` when that is left to the device.
    fn decide(datagram: &[u8], samples: &[Sample], shell: Shell) -> Option<Vec<u8>> {
        let mut limits = Limits::nmc(5_000);
        limits.current = false;
        let mut protection = Protection::new(limits);
        let mut now = Instant::from_millis(1_000);
        for sample in samples {
            protection.handle_sample(now, sample);
            now += helio_units::Duration::from_millis(10);
        }
        let view = View {
            now,
            uid: Uid::new(0x0123_4567_89ab_cdef).unwrap(),
            node: NodeId::new(5),
            device: shell != Shell::Alone,
            gate_on: shell == LOADED,
            capabilities: Capabilities {
                cells: 3,
                temps: 1,
                anchors: 0,
            },
            said: &State::default(),
            sampled_at: None,
            link: &SlaveStats::default(),
            counters: &Counters {
                samples: 77,
                ..Counters::NONE
            },
            protection: &protection,
        };
        let mut out = [0; MAX_ANSWER];
        match answer(datagram, &mut out, &view) {
            Answer::Core(n) => Some(out[..n].to_vec()),
            Answer::Device => None,
        }
    }

    fn three(mv: [u16; 3]) -> Sample {
        let mut sample = Sample::EMPTY;
        sample.cell_count = 3;
        sample.temp_count = 1;
        for (to, mv) in sample.cells.iter_mut().zip(mv) {
            *to = Some(Millivolts(mv));
        }
        sample.temps[0] = Some(DeciCelsius(251));
        sample.current = Some(Milliamps(-3));
        sample
    }

    /// The answer as CBOR diagnostic notation; checks the header.
    fn body(reply: &[u8]) -> String {
        let (header, body) = split(reply).unwrap();
        assert!(matches!(header.op, Op::ReadReply | Op::WriteReply));
        assert_eq!(header.seq, 42);
        minicbor::display(body).to_string()
    }

    #[test]
    fn an_echo_comes_back() {
        let body_in = [0xa1, 0x61, b'd', 0x62, b'h', b'i'];
        let reply = ask(&request(Op::Write, 0, 0, &body_in), &[]);
        assert_eq!(body(&reply), r#"{"r": "hi"}"#);
    }

    #[test]
    fn images_and_settings_are_the_devices_echo_and_statistics_are_not() {
        for (op, group, id) in [
            (Op::Read, 1, 0),
            (Op::Write, 1, 1),
            (Op::Read, 3, 0),
            (Op::Read, 0, 7),
            (Op::Write, 0, 5),
        ] {
            let decided = decide(&request(op, group, id, &[0xa0]), &[], RESTING);
            assert_eq!(decided, None, "group {group} id {id}");
        }
        for (op, group, id) in [
            (Op::Read, 0, 6),
            (Op::Read, 2, 1),
            (Op::Read, GROUP, STATUS),
        ] {
            assert!(decide(&request(op, group, id, &[]), &[], RESTING).is_some());
        }
    }

    #[test]
    fn a_reset_that_would_open_the_gate_must_be_forced() {
        let asked = request(Op::Write, 0, 5, &[0xa0]);
        let refused = decide(&asked, &[], LOADED).expect("refused by the core");
        assert_eq!(body(&refused), r#"{"rc": 6}"#);
        for force in [&b"\xa1\x65force\xf5"[..], b"\xa1\x65force\x01"] {
            assert_eq!(decide(&request(Op::Write, 0, 5, force), &[], LOADED), None);
        }
        for mild in [
            &b"\xa1\x65force\xf4"[..],
            b"\xa1\x65force\x00",
            b"\xa1\x65force",
        ] {
            assert!(decide(&request(Op::Write, 0, 5, mild), &[], LOADED).is_some());
        }
        assert_eq!(decide(&asked, &[], RESTING), None);
    }

    #[test]
    fn the_longest_datagram_is_what_fits_the_tunnel() {
        let reply = ask(&request(Op::Read, 0, 6, &[]), &[]);
        let expected = std::format!(r#"{{"buf_size": {MAX_TUNNELLED}, "buf_count": 1}}"#);
        assert_eq!(body(&reply), expected);
    }

    #[test]
    fn the_counters_are_listed_and_shown() {
        let reply = ask(&request(Op::Read, 2, 1, &[]), &[]);
        assert_eq!(body(&reply), r#"{"stat_list": ["link", "slave"]}"#);
        let name = b"\xa1\x64name\x65slave";
        let reply = body(&ask(&request(Op::Read, 2, 0, name), &[]));
        assert!(reply.contains(r#""samples": 77"#), "{reply}");
    }

    #[test]
    fn the_status_names_the_slave_and_what_it_measures() {
        let reply = body(&ask(&request(Op::Read, GROUP, STATUS, &[]), &[]));
        assert_eq!(
            reply,
            r#"{"name": "heliograph slave", "uid": "0123456789abcdef", "uptime_ms": 1000, "node": 5, "state": "init", "severity": "none", "gate_on": false, "balancing": false, "current_ma": null, "cell_min_mv": null, "cell_max_mv": null, "age_ms": null, "cells_mv": [null, null, null], "temps_dc": [null]}"#
        );
    }

    #[test]
    fn the_diagnostics_tell_what_tripped_and_what_was_measured_then() {
        let samples = [three([3_700; 3]), three([3_700, 4_300, 3_700])];
        let reply = body(&ask(&request(Op::Read, GROUP, DIAGNOSTICS, &[]), &samples));
        let frame = r#"{"t_ms": 1010, "code": 2, "index": 1, "value": 4300, "current_ma": -3, "cells_mv": [3700, 4300, 3700], "temps_dc": [251]}"#;
        let event = r#"[2, "cell over-voltage", "trip", true, 1, 1, 4300, 1010, 1010, 0]"#;
        assert!(reply.contains(frame), "{reply}");
        assert!(reply.contains(event), "{reply}");
        assert!(reply.ends_with(r#""next": null}"#), "{reply}");
    }

    #[test]
    fn diagnostics_that_do_not_fit_one_answer_come_in_pages_none_left_out() {
        // Everything wrong that a sample can be wrong at once.
        let mut samples = Vec::new();
        let mut limits = Limits::nmc(5_000);
        for kind in Kind::ALL {
            for severity in Bad::ALL {
                if let Some(rule) = limits.rule_mut(kind, severity) {
                    rule.delay = helio_units::Duration::ZERO;
                    rule.threshold = 0;
                }
            }
        }
        let mut full = Sample::EMPTY;
        full.cell_count = 18;
        full.temp_count = 8;
        full.cells.fill(Some(Millivolts(60_000)));
        full.temps.fill(Some(DeciCelsius(2_000)));
        full.current = Some(Milliamps(-2_000_000_000));
        samples.push(full);
        full.current = Some(Milliamps(2_000_000_000));
        full.cells[0] = Some(Millivolts(0));
        full.temps[0] = None;
        samples.push(full);
        let mut protection = Protection::new(limits);
        for (i, sample) in samples.iter().enumerate() {
            protection.handle_sample(Instant::from_millis(10 + i as u64), sample);
        }
        let happened: Vec<u8> = (0..=u8::MAX)
            .filter_map(Code::from_raw)
            .filter(|c| protection.record(*c).count > 0)
            .map(Code::get)
            .collect();
        assert!(happened.len() > 40, "{}", happened.len());

        let (mut from, mut got, mut pages) = (0, Vec::new(), 0);
        loop {
            let view = View {
                now: Instant::from_millis(100),
                uid: Uid::new(1).unwrap(),
                node: None,
                device: false,
                gate_on: false,
                capabilities: Capabilities::default(),
                said: &State::default(),
                sampled_at: None,
                link: &SlaveStats::default(),
                counters: &Counters::NONE,
                protection: &protection,
            };
            let datagram = request(Op::Read, GROUP, DIAGNOSTICS, &map(&[("from", from)]));
            let mut out = [0; MAX_ANSWER];
            let Answer::Core(n) = answer(&datagram, &mut out, &view) else {
                panic!("diagnostics are the core's");
            };
            let (_, body) = split(&out[..n]).unwrap();
            let (page, next) = events(body);
            assert!(!page.is_empty(), "a page without events at {from}");
            got.extend(page);
            pages += 1;
            match next {
                Some(next) => from = next.into(),
                None => break,
            }
        }
        assert_eq!(got, happened);
        assert!(pages > 1, "one page: the test shows nothing");
    }

    /// Codes and `next` of a page.
    fn events(body: &[u8]) -> (Vec<u8>, Option<u8>) {
        let mut d = Decoder::new(body);
        let (mut codes, mut next) = (Vec::new(), None);
        for _ in 0..d.map().unwrap().unwrap() {
            match d.str().unwrap() {
                "events" => {
                    for _ in 0..d.array().unwrap().unwrap() {
                        let fields = d.array().unwrap().unwrap();
                        codes.push(d.u8().unwrap());
                        (1..fields).for_each(|_| d.skip().unwrap());
                    }
                }
                "next" => next = d.decode().unwrap(),
                _ => d.skip().unwrap(),
            }
        }
        (codes, next)
    }

    #[test]
    fn what_a_slave_does_not_know_is_refused_in_words_of_smp() {
        for (op, group, id) in [
            (Op::Write, GROUP, STATUS),
            (Op::Read, GROUP, 200),
            (Op::Read, 1, 0),
        ] {
            assert_eq!(
                body(&ask(&request(op, group, id, &[]), &[])),
                r#"{"rc": 8}"#
            );
        }
        let malformed = request(Op::Read, GROUP, DIAGNOSTICS, &[0x80]);
        assert_eq!(
            body(&ask(&malformed, &[])),
            r#"{"err": {"group": 64, "rc": 5}}"#
        );
        let beyond = request(Op::Read, GROUP, DIAGNOSTICS, &map(&[("from", 256)]));
        assert_eq!(
            body(&ask(&beyond, &[])),
            r#"{"err": {"group": 64, "rc": 3}}"#
        );
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_stops_the_slave(
            datagram in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80),
            group in proptest::sample::select(std::vec![0u16, 2, 64]),
            id in 0u8..8,
        ) {
            ask(&datagram, &[]);
            let n = datagram.len();
            let reply = ask(&request(Op::Read, group, id, &datagram), &[three([0, 1, 2])]);
            proptest::prop_assert!(n < MAX_DATAGRAM && reply.len() >= Header::SIZE);
        }
    }
}
