//! Holds the bus that is paid for per frame against one that steps every bit.
//!
//! Here controllers know nothing but the level of each bit: they arbitrate, stuff, count, notice
//! errors and answer them as ISO 11898-1 says, error active, classic frames. Both buses get the
//! same frames and disturbances and must tell the same story at the same microseconds.

use helio_bus::{CanFrame, CanId, Mailbox};
use helio_sim::media::Port;
use helio_sim::media::can::{CanBus, CanEvent, CanTiming, ControllerState};
use helio_sim::media::wire::{Encoded, arbitration_key};
use helio_units::Instant;
use proptest::collection::vec;
use proptest::prelude::*;

/// A bit lasts a microsecond.
const BIT: u64 = 1_000;

/// What both buses tell: who, what and at which bit boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Story {
    Delivered { at: u64, receiver: usize, key: u32 },
    Sent { at: u64, sender: usize, key: u32 },
    Destroyed { at: u64 },
}

/// A receiver's view of a frame, bit by bit.
#[derive(Clone, Debug)]
struct Receiver {
    plain: Vec<bool>,
    run: usize,
    last: bool,
    /// Bits seen behind the CRC; `None` before.
    trailer: Option<usize>,
    crc_good: bool,
}

enum Seen {
    Nothing,
    Error,
    Valid,
    /// Dominant in the last bit of EOF.
    Overload,
    End,
}

impl Receiver {
    fn new() -> Self {
        Self {
            plain: Vec::new(),
            run: 0,
            last: true,
            trailer: None,
            crc_good: false,
        }
    }

    /// Stuffed bits that the frame has in all, once its header is here.
    fn content_len(&self) -> Option<usize> {
        let extended = *self.plain.get(13)?;
        let dlc_at = if extended { 35 } else { 15 };
        let dlc = self.plain.get(dlc_at..dlc_at + 4)?;
        let bytes = dlc.iter().fold(0, |n, &bit| n << 1 | usize::from(bit));
        Some(dlc_at + 4 + 8 * bytes.min(8) + 15)
    }

    fn crc_is_good(&self) -> bool {
        let crc = self.plain.iter().fold(0u16, |crc, &bit| {
            let feedback = (crc >> 14 & 1 == 1) != bit;
            (crc << 1 & 0x7fff) ^ if feedback { 0x4599 } else { 0 }
        });
        crc == 0
    }

    /// The level to drive: dominant in the ACK slot of a good frame.
    fn drive(&self) -> bool {
        !(self.trailer == Some(1) && self.crc_good)
    }

    fn sample(&mut self, level: bool) -> Seen {
        if let Some(seen) = &mut self.trailer {
            *seen += 1;
            // 1 delimiter, 2 ACK slot, 3 delimiter, 4..=10 EOF.
            return match (*seen, level) {
                (1 | 3 | 4..=9, false) => Seen::Error,
                // A bit error: this receiver drives its acknowledgement.
                (2, true) if self.crc_good => Seen::Error,
                (3, true) if !self.crc_good => Seen::Error,
                (9, true) => Seen::Valid,
                (10, false) => Seen::Overload,
                (10, true) => Seen::End,
                _ => Seen::Nothing,
            };
        }
        let stuff = self.run == 5;
        if stuff && level == self.last {
            return Seen::Error;
        }
        self.run = if level == self.last { self.run + 1 } else { 1 };
        self.last = level;
        if !stuff {
            self.plain.push(level);
        }
        // After five equal bits at the very end a stuff bit is still to come.
        if self.content_len() == Some(self.plain.len()) && self.run < 5 {
            self.trailer = Some(0);
            self.crc_good = self.crc_is_good();
        }
        Seen::Nothing
    }
}

enum Mode {
    Idle,
    Frame {
        receiver: Receiver,
        /// For who still does.
        sending: Option<(CanFrame, Encoded)>,
        position: usize,
    },
    /// Error flag, bits left.
    Flag(usize),
    /// Flag sent, waiting for the first recessive bit.
    Wait,
    /// Recessive bits left of delimiter and intermission.
    Tail(usize),
}

struct Node {
    mode: Mode,
    pending: Vec<CanFrame>,
    alive: bool,
    tec: u32,
    rec: u32,
}

impl Node {
    fn first(&self) -> Option<CanFrame> {
        let key = |frame: &&CanFrame| arbitration_key(frame.id);
        self.pending.iter().min_by_key(key).copied()
    }

    fn drive(&self) -> bool {
        match &self.mode {
            Mode::Idle | Mode::Wait | Mode::Tail(_) => true,
            Mode::Flag(_) => false,
            Mode::Frame {
                sending: Some((_, wire)),
                position,
                ..
            } => wire.bits[*position],
            Mode::Frame { receiver, .. } => receiver.drive(),
        }
    }

    /// Looks at the bus at the end of a bit; tells what ended with that bit.
    fn sample(&mut self, me: usize, at: u64, level: bool, story: &mut Vec<Story>) {
        self.mode = match std::mem::replace(&mut self.mode, Mode::Idle) {
            Mode::Idle if level => Mode::Idle,
            Mode::Idle => {
                let mut receiver = Receiver::new();
                receiver.sample(level);
                Mode::Frame {
                    receiver,
                    sending: None,
                    position: 1,
                }
            }
            Mode::Flag(1) => Mode::Wait,
            Mode::Flag(left) => Mode::Flag(left - 1),
            Mode::Wait if level => Mode::Tail(7 + 3),
            Mode::Wait => Mode::Wait,
            Mode::Tail(_) if !level => panic!("dominant within a delimiter or intermission"),
            Mode::Tail(1) => Mode::Idle,
            Mode::Tail(left) => Mode::Tail(left - 1),
            Mode::Frame {
                mut receiver,
                mut sending,
                position,
            } => {
                let seen = receiver.sample(level);
                if let Some((frame, wire)) = &sending {
                    let driven = wire.bits[position];
                    let ack = wire.crc_delimiter + 1;
                    let error = if position == ack {
                        level
                    } else {
                        driven != level
                    };
                    if error && position < wire.control {
                        sending = None;
                    } else if error {
                        story.push(Story::Destroyed { at });
                        self.tec += 8;
                        self.mode = Mode::Flag(6);
                        return;
                    } else if position + 1 == wire.bits.len() {
                        self.pending.retain(|other| other != frame);
                        self.tec = self.tec.saturating_sub(1);
                        let key = arbitration_key(frame.id);
                        story.push(Story::Sent {
                            at,
                            sender: me,
                            key,
                        });
                        self.mode = Mode::Tail(3);
                        return;
                    }
                }
                if sending.is_none() {
                    match seen {
                        Seen::Nothing => {}
                        Seen::Valid => {
                            self.rec = self.rec.saturating_sub(1);
                            let id = receiver.plain[1..12]
                                .iter()
                                .fold(0, |n, &bit| n << 1 | u32::from(bit));
                            let key = if receiver.plain[13] {
                                let rest = receiver.plain[14..32]
                                    .iter()
                                    .fold(0, |n, &bit| n << 1 | u32::from(bit));
                                id << 21 | 0b11 << 19 | rest << 1
                            } else {
                                id << 21
                            };
                            story.push(Story::Delivered {
                                at,
                                receiver: me,
                                key,
                            });
                        }
                        Seen::Error => {
                            story.push(Story::Destroyed { at });
                            self.rec += 1;
                            self.mode = Mode::Flag(6);
                            return;
                        }
                        Seen::Overload => {
                            self.mode = Mode::Flag(6);
                            return;
                        }
                        Seen::End => {
                            self.mode = Mode::Tail(3);
                            return;
                        }
                    }
                }
                Mode::Frame {
                    receiver,
                    sending,
                    position: position + 1,
                }
            }
        };
    }
}

/// When, who, what.
type Plan = Vec<(u64, usize, CanFrame)>;

/// TEC and REC of each controller.
type Counters = Vec<(u32, u32)>;

/// When a controller dies, and which.
type Death = Option<(u64, usize)>;

/// Steps `nodes` controllers through every bit up to `end`, inverting those of `flips`.
fn bitwise(
    nodes: usize,
    plan: &Plan,
    flips: &[u64],
    death: Death,
    end: u64,
) -> (Vec<Story>, Counters) {
    let mut nodes: Vec<Node> = (0..nodes)
        .map(|_| Node {
            mode: Mode::Idle,
            pending: Vec::new(),
            alive: true,
            tec: 0,
            rec: 0,
        })
        .collect();
    let mut story = Vec::new();
    for now in 0..end {
        for &(_, node, frame) in plan.iter().filter(|&&(at, ..)| at == now) {
            nodes[node].pending.push(frame);
        }
        if let Some((_, dead)) = death.filter(|&(at, _)| at == now) {
            nodes[dead].alive = false;
        }
        for node in nodes.iter_mut().filter(|node| node.alive) {
            if matches!(node.mode, Mode::Idle)
                && let Some(frame) = node.first()
            {
                node.mode = Mode::Frame {
                    receiver: Receiver::new(),
                    sending: Some((frame, Encoded::of(&frame, false))),
                    position: 0,
                };
            }
        }
        let driven = nodes.iter().all(|node| !node.alive || node.drive());
        let level = driven != flips.contains(&now);
        for (i, node) in nodes.iter_mut().enumerate().filter(|(_, n)| n.alive) {
            node.sample(i, now + 1, level, &mut story);
        }
    }
    story.sort();
    // The first to notice an error tells it; the others follow within a flag and its answer.
    story.dedup_by(|later, first| match (later, first) {
        (Story::Destroyed { at }, Story::Destroyed { at: first }) => *at < *first + 12,
        _ => false,
    });
    let counters = nodes.iter().map(|node| (node.tec, node.rec)).collect();
    (story, counters)
}

/// The same by frames. Also tells in which bits errors were noticed and whether all stayed active.
fn framewise(
    nodes: usize,
    plan: &Plan,
    corruption: f64,
    seed: u64,
    death: Death,
    end: u64,
) -> (Vec<Story>, Counters, Vec<u64>, bool) {
    let timing = CanTiming::new(1_000_000, 1_000_000).expect("whole nanoseconds");
    let mut bus = CanBus::new(timing, seed);
    bus.set_corruption(corruption);
    let ports: Vec<Port> = (0..nodes).map(|_| bus.attach().expect("room")).collect();
    let (mut story, mut errors, mut active) = (Vec::new(), Vec::new(), true);
    let bits = |at: Instant| {
        assert_eq!(at.as_nanos() % BIT, 0);
        at.as_nanos() / BIT
    };
    let mut drive = |bus: &mut CanBus, until: u64| {
        while let Some(due) = bus
            .poll_timeout()
            .filter(|due| due.as_nanos() < until * BIT)
        {
            bus.handle_timeout(due, &mut |event| match event {
                CanEvent::Delivered {
                    frame,
                    receivers,
                    at,
                    ..
                } => story.extend(receivers.into_iter().map(|p| Story::Delivered {
                    at: bits(at),
                    receiver: p.index(),
                    key: arbitration_key(frame.id),
                })),
                CanEvent::Sent { port, meta, at, .. } => story.push(Story::Sent {
                    at: bits(at),
                    sender: port.index(),
                    key: meta as u32,
                }),
                CanEvent::Error { at, .. } => {
                    errors.push(bits(at) - 1);
                    story.push(Story::Destroyed { at: bits(at) });
                }
                CanEvent::State { .. } => active = false,
            });
        }
    };
    let mut actions: Vec<(u64, usize, Option<CanFrame>)> = plan
        .iter()
        .map(|&(at, node, frame)| (at, node, Some(frame)))
        .chain(death.map(|(at, node)| (at, node, None)))
        .collect();
    actions.sort_by_key(|&(at, ..)| at);
    for (at, node, frame) in actions {
        drive(&mut bus, at);
        let (now, port) = (Instant::from_nanos(at * BIT), ports[node]);
        let free = [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management]
            .into_iter()
            .find(|&mailbox| bus.is_free(port, mailbox));
        match (frame, free) {
            (Some(frame), Some(mailbox)) => bus
                .submit(now, port, mailbox, &frame, arbitration_key(frame.id).into())
                .expect("free"),
            (Some(_), None) => assert_eq!(bus.state(port), ControllerState::Off),
            (None, _) => bus.kill(now, port),
        }
    }
    drive(&mut bus, end + 1);
    story.sort();
    let counters = ports.iter().map(|&port| bus.error_counters(port)).collect();
    (story, counters, errors, active)
}

fn any_frame(ids: impl Strategy<Value = CanId>) -> impl Strategy<Value = CanFrame> {
    let byte = prop_oneof![Just(0), Just(0xff), Just(0xf8), Just(0x07), any::<u8>()];
    (ids, vec(byte, 0..=8))
        .prop_map(|(id, data)| CanFrame::new(id, false, &data).expect("a valid classic frame"))
}

/// Identifiers that agree in many leading bits, standard and extended.
fn close_id() -> impl Strategy<Value = CanId> {
    let base = prop::sample::select(&[0x000u32, 0x001, 0x400, 0x7fe, 0x7ff, 0x0f8][..]);
    let rest = prop::sample::select(&[0u32, 1, 0x3ffff, 0x20000][..]);
    prop_oneof![
        base.clone().prop_map(|base| CanId::Standard(base as u16)),
        (base, rest).prop_map(|(base, rest)| CanId::Extended(base << 18 | rest)),
    ]
}

/// Up to three frames for each of `nodes` controllers, many of them at the same time.
fn any_plan(nodes: usize) -> impl Strategy<Value = Plan> {
    let at = prop_oneof![Just(5u64), 0..300u64];
    vec(vec((at, any_frame(close_id())), 0..=3), nodes).prop_map(|of_nodes| {
        let mut plan = Plan::new();
        for (node, frames) in of_nodes.into_iter().enumerate() {
            for (at, frame) in frames {
                // One mailbox never holds the same identifier as another of its controller.
                if !plan.iter().any(|(_, n, f)| *n == node && f.id == frame.id) {
                    plan.push((at, node, frame));
                }
            }
        }
        plan
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(300)
    })]

    #[test]
    fn both_arbitrate_merge_and_collide_alike(plan in any_plan(4)) {
        let (story, counters, _, active) = framewise(5, &plan, 0.0, 0, None, 1_500);
        if !active {
            return Ok(()); // passive controllers are beyond the model
        }
        let (expected, expected_counters) = bitwise(5, &plan, &[], None, 1_500);
        let sent = story.iter().filter(|s| matches!(s, Story::Sent { .. })).count();
        prop_assert_eq!(story, expected);
        if sent == plan.len() {
            prop_assert_eq!(counters, expected_counters);
        }
    }

    #[test]
    fn both_answer_disturbances_alike(mut plan in any_plan(4), seed: u64) {
        // Identifiers unlike any other: then every error is a disturbance.
        let mut ids = Vec::new();
        plan.retain(|(_, _, frame)| {
            let unique = !ids.contains(&frame.id);
            ids.push(frame.id);
            unique
        });
        let (story, counters, flips, active) = framewise(5, &plan, 0.3, seed, None, 5_000);
        if !active {
            return Ok(()); // passive controllers are beyond the model
        }
        let (expected, expected_counters) = bitwise(5, &plan, &flips, None, 5_000);
        let sent = story.iter().filter(|s| matches!(s, Story::Sent { .. })).count();
        prop_assert_eq!(story, expected);
        if sent == plan.len() {
            prop_assert_eq!(counters, expected_counters);
        }
    }

    #[test]
    fn both_see_a_controller_die_alike(
        mut plan in any_plan(4), at in 1..400u64, dead in 0..4usize,
    ) {
        let mut ids = Vec::new();
        plan.retain(|(_, _, frame)| {
            let unique = !ids.contains(&frame.id);
            ids.push(frame.id);
            unique
        });
        let death = Some((at, dead));
        let (story, mut counters, ..) = framewise(5, &plan, 0.0, 0, death, 5_000);
        let (expected, mut expected_counters) = bitwise(5, &plan, &[], death, 5_000);
        // Which comes first when a frame ends at that very instant is for the caller to say.
        let ends_at = |story: &Story| match *story {
            Story::Delivered { at, .. } | Story::Sent { at, .. } | Story::Destroyed { at } => at,
        };
        if expected.iter().any(|story| ends_at(story) == at) {
            return Ok(());
        }
        prop_assert_eq!(story, expected);
        counters.remove(dead);
        expected_counters.remove(dead);
        prop_assert_eq!(counters, expected_counters);
    }
}
