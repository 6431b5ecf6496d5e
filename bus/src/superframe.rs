//! RS485: how frames are spelt, and where in the superframe everything has its place.
//!
//! ```text
//! beacon+orders |m| asks |m| call |m| state 1 |m| ... | call |m| to slave |m| to master |m| ranges 1 |m| ... | more pairs
//! master         |  '- if any '- whoever is not itself     '- a pair of windows, or asks          | join |m| join |m| idle |m|
//!                '- minislot: whoever trips holds the line low                                    '- claim, answer
//! ```
//!
//! Minislots come so often that a trip is heard in time whoever speaks: what is longer than a piece ([`Timing::piece`])
//! is cut, with a minislot behind each piece, and the time that is left at the end is cut, too.
//!
//! A call is for a slave whose core asks for more than its share: it says so a few ms later and need not wait for its
//! own slot.
//!
//! Who was silent in its slot is asked at the next opportunity, in the pair between states and ranges or behind
//! the beacon, and answers at once, even if it heard no beacon: `ask | guard | here | guard`.
//!
//! The beacon tells which seats speak and how long they are, so everyone who heard it knows
//! every place until the next one; who did not hear it is silent. Between two senders lies a
//! guard time for switching drivers and for crystals that differ by 100 ppm.
//!
//! A frame is `type 8 | node 8 | counter 8 | payload | CRC-32C 32`. It has no length: the type
//! fixes it. A receiver that lost its place tries every byte as the first of a frame.

use crate::Schedule;
use crate::bits::{Reader, Writer};
use crate::e2e::{DataId, check32};
use crate::join::{Description, reason, reason_code};
use crate::message::*;
use crate::schedule::part;
use crate::wire::{self, class};
use helio_units::{Duration, Instant, NodeId, Uid};

/// Type bytes: the class, marked; then what only RS485 has.
mod kind {
    use crate::wire::class;
    pub const BEACON: u8 = 0xa0 | class::SYNC;
    pub const ORDER: u8 = 0xa0 | class::COMMAND;
    pub const SUMMARY: u8 = 0xa0 | class::SUMMARY;
    pub const FEW_RANGES: u8 = 0xa0 | class::RANGES;
    pub const STATE: u8 = 0xa0 | class::STATE;
    pub const ALL_RANGES: u8 = 0xa0 | class::ALL_RANGES;
    pub const CLAIM: u8 = 0xc1;
    pub const ANSWER: u8 = 0xc2;
    pub const ASK: u8 = 0xd1;
    pub const HERE: u8 = 0xd2;
    pub const CALL: u8 = 0xd3;
    pub const TO_SLAVE: u8 = 0xc4;
    pub const TO_MASTER: u8 = 0xc8;
}

const HEAD: usize = 3;
const CHECK: usize = 4;
const ORDER_LEN: usize = HEAD + 5 + CHECK;
const SUMMARY_LEN: usize = HEAD + 11 + CHECK;
const STATE_LEN: usize = HEAD + 48 + CHECK;
const FEW_RANGES_LEN: usize = HEAD + 10 + CHECK;
const ALL_RANGES_LEN: usize = HEAD + 34 + CHECK;
const CLAIM_LEN: usize = HEAD + 11 + CHECK;
const ANSWER_LEN: usize = HEAD + 8 + CHECK;
const ASK_LEN: usize = HEAD + CHECK;
const HERE_LEN: usize = HEAD + 1 + CHECK;
const FRAGMENT_LEN: usize = STATE_LEN;
/// What a slave says: summary or state, and ranges of few anchors or all.
pub const LENGTHS: [usize; 4] = [SUMMARY_LEN, STATE_LEN, FEW_RANGES_LEN, ALL_RANGES_LEN];
/// Anchors in a short frame of ranges.
const FEW: usize = 4;
/// Data bytes of a fragment.
pub const FRAGMENT_DATA: usize = FRAGMENT_LEN - HEAD - CHECK - 4;
/// Orders that follow a beacon at most.
pub const MAX_ORDERS: usize = 2;
/// Most asks behind a beacon. They take the place of a join slot, or where guards are long of two.
const HEAD_ASKS: u8 = 2;
/// A trip is shown in so many minislots.
pub const TRIP_REPEATS: u8 = 2;
/// So late a trip may be; twice at 115200 baud.
const TRIP: Duration = Duration::from_millis(1);
/// A call is never cut.
const LEAST_PIECE: usize = HERE_LEN;
/// A call is due after so many slots for states, or so long if that is more: then calls take 3 % at most.
const CALL_SLOTS: u64 = 16;
const CALL_EVERY: Duration = Duration::from_micros(9_400);
/// Fewer join slots than this are too short a time for a call between them.
const CALL_JOINS: u16 = 4;
/// Window pairs that a beacon can announce.
pub const MAX_PAIRS: u8 = 15;
/// A stretched superframe in hundredths of a cycle: enough for nearly every 32 that claim at once.
const STRETCH: u64 = 140;
/// Largest depth at which joining starts.
pub const MAX_DEPTH: u8 = 7;

/// Bytes on their way to or from the line.
pub type Bytes = heapless::Vec<u8, MAX_SERIAL>;

/// What one seat says in a superframe; four bits of the beacon. 0 is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role(u8);

impl Role {
    /// A seat that is offered: who takes it says so, with its id.
    pub const OFFERED: Self = Self(3);

    /// What a slave with these capabilities says.
    pub fn of(c: Capabilities) -> Self {
        let state = if c.cells > 0 || c.temps > 0 { 2 } else { 1 };
        let ranges = match usize::from(c.anchors) {
            0 => 0,
            1..=FEW => 1,
            _ => 2,
        };
        Self(state | ranges << 2)
    }
    fn state_len(self) -> Option<usize> {
        match self.0 & 3 {
            1 => Some(SUMMARY_LEN),
            2 => Some(STATE_LEN),
            3 => Some(CLAIM_LEN),
            _ => None,
        }
    }
    /// Whether ranges go in the short frame.
    pub fn few(self) -> bool {
        self.0 >> 2 == 1
    }
    fn ranges_len(self) -> Option<usize> {
        match self.0 >> 2 {
            1 => Some(FEW_RANGES_LEN),
            2 => Some(ALL_RANGES_LEN),
            _ => None,
        }
    }
}

/// Start of a superframe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beacon {
    pub sync: Sync,
    /// Orders that follow at once, `0..=2`.
    pub orders: u8,
    /// Pairs of management windows.
    pub pairs: u8,
    /// Asks behind the orders.
    pub asks: u8,
    /// Slaves that want to join start in one of `2^depth` groups.
    pub depth: u8,
    /// Nobody has a seat yet: this superframe is longer, for more places to join.
    pub stretched: bool,
    /// By seat.
    pub roles: [Role; 127],
}

/// What slaves say in their slot besides their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    pub alarm: Option<Alarm>,
    /// The same alarm as in the frame before.
    pub repeated: bool,
    /// The application above asks for more than its budget.
    pub over_budget: bool,
}

/// Part of a datagram, and what was received of the other direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// There is data in it, and this is its number modulo 2.
    pub sequence: Option<bool>,
    /// Number that is expected next from the other side.
    pub expects: bool,
    /// The other side may send data.
    pub ready: bool,
    /// Length of the datagram if this is its first part.
    pub first: Option<u16>,
    pub data: heapless::Vec<u8, FRAGMENT_DATA>,
}

/// The master's word in a join slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Assign {
        node: NodeId,
        uid: Uid,
    },
    Release {
        uid: Uid,
        reason: LeaveReason,
    },
    /// Several claims met.
    Split,
}

/// Any frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "lives on the stack for one call; there is no heap"
)]
pub enum Frame {
    Beacon(Beacon),
    Order(Command),
    Summary(NodeId, Summary, Extra),
    State(NodeId, State, Extra),
    Ranges {
        node: NodeId,
        ranges: Ranges,
        /// In the short frame, which has room for four anchors.
        few: bool,
    },
    Claim {
        uid: Uid,
        description: Description,
    },
    /// The seat is taken: a claim in its own slot.
    Confirm {
        node: NodeId,
        uid: Uid,
        description: Description,
    },
    Answer(Answer),
    /// A member is asked for a sign of life.
    Ask(NodeId),
    /// Its answer, with the lowest part of its id.
    Here(NodeId, u16),
    /// A member, with the lowest part of its id: its core asks for more than its share.
    Call(NodeId, u16),
    ToSlave(NodeId, Fragment),
    ToMaster(NodeId, Fragment),
}

/// Bytes of a frame by its type; `None` for what starts no frame.
pub fn length(kind: u8, seats: u8) -> Option<usize> {
    Some(match kind {
        kind::BEACON => beacon_len(seats),
        kind::ORDER => ORDER_LEN,
        kind::SUMMARY => SUMMARY_LEN,
        kind::STATE => STATE_LEN,
        kind::FEW_RANGES => FEW_RANGES_LEN,
        kind::ALL_RANGES => ALL_RANGES_LEN,
        kind::CLAIM => CLAIM_LEN,
        kind::ANSWER => ANSWER_LEN,
        kind::ASK => ASK_LEN,
        kind::HERE | kind::CALL => HERE_LEN,
        kind::TO_SLAVE | kind::TO_MASTER => FRAGMENT_LEN,
        _ => return None,
    })
}

/// Whether this type is only for the master.
pub fn is_for_master(kind: u8) -> bool {
    matches!(
        kind,
        kind::SUMMARY
            | kind::STATE
            | kind::FEW_RANGES
            | kind::ALL_RANGES
            | kind::CLAIM
            | kind::HERE
            | kind::CALL
            | kind::TO_MASTER
    )
}

fn beacon_len(seats: u8) -> usize {
    HEAD + 8 + usize::from(seats.div_ceil(2)) + CHECK
}

/// Class and node under which a frame is checked and counted.
fn data_id(kind: u8, node: u8) -> DataId {
    match kind >> 4 {
        0xa => DataId::new(kind & 0xf, node),
        _ => DataId::new(class::JOIN, node),
    }
}

/// Spells a frame. `seats` fixes the length of a beacon. The reason of a release travels as the
/// counter, and a part of the id of who is here.
pub fn encode(frame: &Frame, counter: u8, seats: u8) -> Bytes {
    let counter = match frame {
        Frame::Answer(Answer::Release { reason, .. }) => reason_code(*reason),
        Frame::Answer(_) => 0,
        Frame::Here(_, uid) | Frame::Call(_, uid) => *uid as u8,
        _ => counter,
    };
    let (kind, node) = match frame {
        Frame::Beacon(_) => (kind::BEACON, 0),
        Frame::Order(command) => (kind::ORDER, command.to.map_or(0, NodeId::get)),
        Frame::Summary(node, ..) => (kind::SUMMARY, node.get()),
        Frame::State(node, ..) => (kind::STATE, node.get()),
        Frame::Ranges {
            node, few: true, ..
        } => (kind::FEW_RANGES, node.get()),
        Frame::Ranges { node, .. } => (kind::ALL_RANGES, node.get()),
        Frame::Claim { .. } => (kind::CLAIM, 0),
        Frame::Confirm { node, .. } => (kind::CLAIM, node.get()),
        Frame::Answer(Answer::Assign { node, .. }) => (kind::ANSWER, node.get()),
        Frame::Answer(_) => (kind::ANSWER, 0),
        Frame::Ask(node) => (kind::ASK, node.get()),
        Frame::Here(node, _) => (kind::HERE, node.get()),
        Frame::Call(node, _) => (kind::CALL, node.get()),
        Frame::ToSlave(node, _) => (kind::TO_SLAVE, node.get()),
        Frame::ToMaster(node, _) => (kind::TO_MASTER, node.get()),
    };
    seal(kind, node, counter, seats, |w| match frame {
        Frame::Beacon(beacon) => {
            wire::put_sync(w, &beacon.sync);
            w.put(beacon.orders.into(), 2);
            w.put(beacon.pairs.into(), 4);
            w.put(beacon.depth.into(), 3);
            w.put(beacon.stretched.into(), 1);
            w.put(beacon.asks.into(), 2);
            let roles = beacon.roles.iter().take(seats.into());
            roles.for_each(|role| w.put(role.0.into(), 4));
        }
        Frame::Order(command) => wire::put_order(w, command.order),
        Frame::Summary(_, summary, extra) => {
            wire::put_summary(w, summary, extra.alarm.is_some());
            put_extra(w, extra);
        }
        Frame::State(_, state, extra) => {
            wire::put_state(w, state, extra.alarm.is_some());
            put_extra(w, extra);
        }
        Frame::Ranges { ranges, few, .. } => {
            wire::put_ranges(w, ranges, if *few { FEW } else { MAX_ANCHORS });
        }
        Frame::Claim { uid, description }
        | Frame::Confirm {
            uid, description, ..
        } => {
            put_uid(w, Some(*uid));
            description.put(w);
        }
        Frame::Answer(Answer::Assign { uid, .. } | Answer::Release { uid, .. }) => {
            put_uid(w, Some(*uid));
        }
        Frame::Answer(Answer::Split) => put_uid(w, None),
        Frame::Ask(_) => {}
        Frame::Here(_, uid) | Frame::Call(_, uid) => w.put((*uid >> 8).into(), 8),
        Frame::ToSlave(_, fragment) | Frame::ToMaster(_, fragment) => put_fragment(w, fragment),
    })
}

fn seal(kind: u8, node: u8, counter: u8, seats: u8, payload: impl FnOnce(&mut Writer)) -> Bytes {
    let mut bytes = Bytes::new();
    let len = length(kind, seats).unwrap_or(0).min(MAX_SERIAL);
    let _ = bytes.resize(len, 0);
    let (body, check) = bytes.split_at_mut(len.saturating_sub(CHECK));
    let mut w = Writer::new(body);
    w.put(kind.into(), 8);
    w.put(node.into(), 8);
    w.put(counter.into(), 8);
    payload(&mut w);
    w.finish();
    let sum = check32(data_id(kind, node), body).to_le_bytes();
    for (to, from) in check.iter_mut().zip(sum) {
        *to = from;
    }
    bytes
}

/// A frame whose check is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    pub id: DataId,
    pub counter: u8,
    pub frame: Frame,
}

/// Reads exactly one frame.
pub fn decode(bytes: &[u8], seats: u8) -> Option<Decoded> {
    let (body, check) = bytes.split_last_chunk::<CHECK>()?;
    let [kind, node, counter, payload @ ..] = body else {
        return None;
    };
    if length(*kind, seats)? != bytes.len() {
        return None;
    }
    let id = data_id(*kind, *node);
    if check32(id, body) != u32::from_le_bytes(*check) {
        return None;
    }
    let seat = NodeId::new(*node);
    let mut r = Reader::new(payload);
    let r = &mut r;
    let frame = match *kind {
        kind::BEACON if seat.is_none() => {
            let mut beacon = Beacon {
                sync: wire::take_sync(r),
                orders: r.take(2) as u8,
                pairs: r.take(4) as u8,
                depth: r.take(3) as u8,
                stretched: r.flag(),
                asks: r.take(2) as u8,
                roles: [Role(0); 127],
            };
            let roles = beacon.roles.iter_mut().take(seats.into());
            roles.for_each(|role| *role = Role(r.take(4) as u8));
            Frame::Beacon(beacon)
        }
        kind::ORDER => Frame::Order(Command {
            to: seat,
            order: wire::take_order(r)?,
        }),
        kind::SUMMARY => {
            let (summary, alarm) = wire::take_summary(r)?;
            Frame::Summary(seat?, summary, take_extra(r, alarm))
        }
        kind::STATE => {
            let (state, alarm) = wire::take_state(r)?;
            Frame::State(seat?, state, take_extra(r, alarm))
        }
        kind::FEW_RANGES => Frame::Ranges {
            node: seat?,
            ranges: wire::take_ranges(r, FEW),
            few: true,
        },
        kind::ALL_RANGES => Frame::Ranges {
            node: seat?,
            ranges: wire::take_ranges(r, MAX_ANCHORS),
            few: false,
        },
        kind::CLAIM => {
            let (uid, description) = (take_uid(r)?, Description::take(r));
            match seat {
                None => Frame::Claim { uid, description },
                Some(node) => Frame::Confirm {
                    node,
                    uid,
                    description,
                },
            }
        }
        kind::ANSWER => Frame::Answer(match (take_uid(r), seat, reason(*counter)) {
            (Some(uid), Some(node), None) => Answer::Assign { node, uid },
            (Some(uid), None, Some(reason)) => Answer::Release { uid, reason },
            (None, None, None) => Answer::Split,
            _ => return None,
        }),
        kind::ASK => Frame::Ask(seat?),
        kind::HERE => Frame::Here(seat?, u16::from_le_bytes([*counter, r.take(8) as u8])),
        kind::CALL => Frame::Call(seat?, u16::from_le_bytes([*counter, r.take(8) as u8])),
        kind::TO_SLAVE => Frame::ToSlave(seat?, take_fragment(r)?),
        kind::TO_MASTER => Frame::ToMaster(seat?, take_fragment(r)?),
        _ => return None,
    };
    Some(Decoded {
        id,
        counter: *counter,
        frame,
    })
}

fn put_uid(w: &mut Writer, uid: Option<Uid>) {
    let raw = uid.map_or(0, Uid::get);
    w.put(raw as u32, 32);
    w.put((raw >> 32) as u32, 32);
}

fn take_uid(r: &mut Reader) -> Option<Uid> {
    let (low, high) = (r.take(32), r.take(32));
    Uid::new(u64::from(high) << 32 | u64::from(low))
}

/// 34 bits; whether there is an alarm stands in the summary.
fn put_extra(w: &mut Writer, extra: &Extra) {
    w.put(extra.repeated.into(), 1);
    w.put(extra.over_budget.into(), 1);
    match &extra.alarm {
        Some(alarm) => wire::put_alarm(w, alarm),
        None => w.put(0, 32),
    }
}

fn take_extra(r: &mut Reader, alarm: bool) -> Extra {
    let (repeated, over_budget) = (r.flag(), r.flag());
    let told = wire::take_alarm(r);
    Extra {
        alarm: alarm.then_some(told),
        repeated,
        over_budget,
    }
}

fn put_fragment(w: &mut Writer, f: &Fragment) {
    w.put(f.sequence.is_some().into(), 1);
    w.put((f.sequence == Some(true)).into(), 1);
    w.put(f.expects.into(), 1);
    w.put(f.ready.into(), 1);
    w.put(f.first.is_some().into(), 1);
    w.put(0, 3);
    w.put(f.data.len() as u32, 8);
    w.put(f.first.unwrap_or(0).into(), 16);
    f.data.iter().for_each(|byte| w.put((*byte).into(), 8));
}

fn take_fragment(r: &mut Reader) -> Option<Fragment> {
    let (some, sequence, expects, ready) = (r.flag(), r.flag(), r.flag(), r.flag());
    let first = r.flag();
    r.take(3);
    let (len, total) = (r.take(8), r.take(16));
    let mut data = heapless::Vec::new();
    for _ in 0..len {
        data.push(r.take(8) as u8).ok()?;
    }
    Some(Fragment {
        sequence: some.then_some(sequence),
        expects,
        ready,
        first: first.then_some(total as u16),
        data,
    })
}

/// Spells a message as an RS485 frame: SYNC as the beacon of a bus without members. `None` for what
/// RS485 says otherwise: a trip is a break, an alarm travels in the state, chunks do not exist.
pub fn encode_message(message: &Message, counter: u8, seats: u8) -> Option<Bytes> {
    let frame = match *message {
        Message::Sync(sync) => Frame::Beacon(Beacon {
            sync,
            orders: 0,
            pairs: 0,
            asks: 0,
            depth: 0,
            stretched: false,
            roles: [Role::default(); 127],
        }),
        Message::Command(command) => Frame::Order(command),
        Message::Summary(node, summary) => Frame::Summary(node, summary, Extra::default()),
        Message::State(node, state) => Frame::State(node, state, Extra::default()),
        Message::Ranges(node, ranges) => Frame::Ranges {
            node,
            ranges,
            few: ranges.range.iter().skip(FEW).all(Option::is_none),
        },
        _ => return None,
    };
    Some(encode(&frame, counter, seats))
}

/// Reads exactly one RS485 frame; `None` when anything is wrong with it, or when it belongs to joining or
/// management. The alarm that may travel in a state is left out.
pub fn decode_message(bytes: &[u8], seats: u8) -> Option<wire::Decoded> {
    let Decoded { id, counter, frame } = decode(bytes, seats)?;
    let message = match frame {
        Frame::Beacon(beacon) => Message::Sync(beacon.sync),
        Frame::Order(command) => Message::Command(command),
        Frame::Summary(node, summary, _) => Message::Summary(node, summary),
        Frame::State(node, state, _) => Message::State(node, state),
        Frame::Ranges { node, ranges, .. } => Message::Ranges(node, ranges),
        Frame::Claim { .. }
        | Frame::Confirm { .. }
        | Frame::Answer(_)
        | Frame::Ask(_)
        | Frame::Here(..)
        | Frame::Call(..)
        | Frame::ToSlave(..)
        | Frame::ToMaster(..) => return None,
    };
    Some(wire::Decoded {
        id,
        counter,
        counter_mask: 0xff,
        message,
    })
}

/// Finds frames in what the UART gives.
#[derive(Clone, Debug)]
pub struct Parser {
    bytes: Bytes,
    /// No frame starts before this byte.
    from: usize,
    /// End of the last byte.
    last: Instant,
    /// Bytes since the last pause.
    run: usize,
}

impl Parser {
    pub const fn new() -> Self {
        Self {
            bytes: Bytes::new(),
            from: 0,
            last: Instant::ZERO,
            run: 0,
        }
    }

    /// Bytes came; `now` is the end of the last one.
    pub fn push(&mut self, timing: &Timing, now: Instant, bytes: &[u8]) {
        let start = now - timing.bytes(bytes.len());
        // A frame has no gaps but behind a piece: what any other pause cut off is not continued. Where the
        // guard is long, a receiver may be so late, too.
        let gap = Duration::from_nanos(timing.guard.as_nanos() / 2).max(timing.bytes(2));
        let pause = start.since(self.last);
        if pause > gap {
            if !self.at_cut(timing) || pause > timing.mini() + gap {
                self.clear();
            }
            self.run = 0;
        }
        self.last = now;
        self.run += bytes.len();
        for byte in bytes {
            if self.bytes.is_full() {
                self.drop_front((self.bytes.len() / 2).max(1));
            }
            let _ = self.bytes.push(*byte);
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.from = 0;
        self.run = 0;
    }

    /// Whether nothing came that may be the beginning of a frame.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A break came in a minislot, which may be one behind a piece.
    pub fn cut(&mut self, timing: &Timing) {
        if !self.at_cut(timing) {
            self.clear();
        }
    }

    /// Whether what came last was a whole piece, so that more of its frame may follow.
    fn at_cut(&self, timing: &Timing) -> bool {
        self.run > 0 && self.run.is_multiple_of(timing.piece.max(1))
    }

    /// The next frame, and its end.
    pub fn next(&mut self, timing: &Timing, seats: u8) -> Option<(Decoded, Instant)> {
        let mut at = self.from;
        while at < self.bytes.len() {
            let rest = self.bytes.get(at..).unwrap_or(&[]);
            let len = rest.first().and_then(|kind| length(*kind, seats));
            let whole = len.and_then(|len| rest.get(..len));
            if let Some(decoded) = whole.and_then(|bytes| decode(bytes, seats)) {
                let behind = rest.len() - len.unwrap_or(0);
                self.drop_front(self.bytes.len() - behind);
                return Some((decoded, self.last - timing.bytes(behind)));
            }
            let ruled_out = len.is_none() || whole.is_some();
            if ruled_out && at == self.from {
                self.from += 1;
            }
            at += 1;
        }
        None
    }

    fn drop_front(&mut self, count: usize) {
        let len = self.bytes.len();
        let count = count.min(len);
        self.bytes.copy_within(count.., 0);
        self.bytes.truncate(len - count);
        self.from = self.from.saturating_sub(count);
    }
}

/// Bit rate and the spaces between senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    bit_ns: u64,
    /// From the end of one sender to the start of the next.
    pub guard: Duration,
    /// How long a tripping slave holds the line low.
    pub brk: Duration,
    /// Most characters between two minislots.
    pub piece: usize,
}

impl Timing {
    /// Of no bus.
    pub const NONE: Self = Self {
        bit_ns: 0,
        guard: Duration::ZERO,
        brk: Duration::ZERO,
        // All zeros: a link at rest takes no flash.
        piece: 0,
    };

    /// Of an RS485 bus; that of 1 Mbaud for any other.
    pub fn of(schedule: &Schedule) -> Self {
        let us = Duration::from_micros;
        let (bit_ns, brk, goal) = match schedule.kind {
            BusKind::Rs485At4M => (250, us(6), TRIP),
            BusKind::Rs485At115k => (8_681, us(113), TRIP * 2),
            _ => (1_000, us(20), TRIP),
        };
        let guard = schedule.guard;
        // A trip waits for the end of a minislot that it just missed, a piece and the guards about both, of which a beacon
        // has one more; then the line is held and clocks differ.
        let around = (brk * 2 + guard * 5).as_nanos();
        let piece = goal.as_nanos().saturating_sub(around) / (10 * bit_ns);
        Self {
            bit_ns,
            guard,
            brk,
            // Where hardware asks for longer guards, it sets the pace, and cuts would take more time than they give.
            piece: match guard <= brk * 2 {
                true => (piece as usize).clamp(LEAST_PIECE, MAX_SERIAL),
                false => MAX_SERIAL,
            },
        }
    }

    /// The shortest guard that transceivers and, in a cycle, crystals allow that differ by 100 ppm.
    pub fn guard_of(kind: BusKind, cycle: Duration) -> Duration {
        let switching = Duration::from_micros(match kind {
            BusKind::Rs485At4M => 2,
            BusKind::Rs485At115k => 15,
            _ => 3,
        });
        let crystals = Duration::from_micros((cycle.as_nanos() / 10_000).div_ceil(1_000));
        switching + crystals
    }

    /// Duration of so many characters of 10 bits.
    pub fn bytes(&self, count: usize) -> Duration {
        Duration::from_nanos(self.bit_ns * 10 * count as u64)
    }

    /// Of a frame, or of several back to back, with the minislots in it.
    pub fn run(&self, len: usize) -> Duration {
        self.bytes(len) + self.mini() * self.cuts(len)
    }

    /// Minislots in a run.
    fn cuts(&self, len: usize) -> u64 {
        (len.div_ceil(self.piece.max(1)) as u64).saturating_sub(1)
    }

    /// Those minislots, of a run that starts at an instant.
    fn minislots_in(self, start: Instant, len: usize) -> impl Iterator<Item = Instant> {
        let t = self;
        let each = t.bytes(t.piece) + t.mini();
        (0..t.cuts(len)).map(move |cut| start + each * cut + t.bytes(t.piece) + t.guard)
    }

    /// What of a run is sent at once, and when what is left of it is due.
    pub fn split<'a>(&self, at: Instant, run: &'a [u8]) -> (&'a [u8], Option<(Instant, Bytes)>) {
        let (piece, rest) = run.split_at(run.len().min(self.piece));
        let rest = Bytes::from_slice(rest).ok().filter(|rest| !rest.is_empty());
        (
            piece,
            rest.map(|rest| (at + self.bytes(self.piece) + self.mini(), rest)),
        )
    }

    /// From the start of a frame to the start of the next: minislot between two guards.
    pub fn slot(&self, len: usize) -> Duration {
        self.run(len) + self.mini()
    }

    /// A minislot between its guards.
    pub fn mini(&self) -> Duration {
        self.guard * 2 + self.brk
    }

    /// An ask, its answer and the guard behind each.
    pub fn ask(&self) -> Duration {
        self.bytes(ASK_LEN + HERE_LEN) + self.guard * 2
    }

    /// Asks that fit into a run of so many characters, as none goes over a minislot.
    fn asks_in(&self, len: usize) -> u8 {
        let each = (self.bytes(len).as_nanos()).checked_div(self.ask().as_nanos());
        u8::try_from(each.unwrap_or(0)).unwrap_or(u8::MAX)
    }

    /// When each of the asks in one half of a pair begins, from the start of that half.
    fn asks_in_half(self) -> impl Iterator<Item = Duration> {
        let t = self;
        let pieces = (0..=t.cuts(FRAGMENT_LEN)).zip((0..FRAGMENT_LEN).step_by(t.piece.max(1)));
        pieces.flat_map(move |(cut, from)| {
            let start = t.bytes(from) + t.mini() * cut;
            let asks = t.asks_in(t.piece.min(FRAGMENT_LEN - from));
            (0..asks).map(move |ask| start + t.ask() * ask.into())
        })
    }

    /// Asks that fit into a pair of windows, in each half the same. None where the guard is long: there only
    /// silence tells.
    pub fn asks_in_pair(&self) -> u8 {
        2 * self.asks_in_half().count() as u8
    }

    /// Asks that fit behind a beacon.
    pub fn head_asks(&self) -> u8 {
        match self.asks_in_pair() {
            0 => 0,
            _ => HEAD_ASKS.min(self.asks_in(self.piece)),
        }
    }

    /// A join slot: claim, guard (a minislot, where both are longer than a piece), answer, minislot.
    fn join(&self) -> Duration {
        self.answer() + self.slot(ANSWER_LEN)
    }

    /// A pair of windows.
    pub fn pair(&self) -> Duration {
        self.slot(FRAGMENT_LEN) * 2
    }

    /// From the start of a join slot to the master's answer.
    pub fn answer(&self) -> Duration {
        match self.is_join_cut() {
            true => self.slot(CLAIM_LEN),
            false => self.bytes(CLAIM_LEN) + self.guard,
        }
    }

    fn is_join_cut(&self) -> bool {
        CLAIM_LEN + ANSWER_LEN > self.piece
    }

    /// A place for a call.
    pub fn call(&self) -> Duration {
        self.slot(HERE_LEN)
    }

    /// So many of something come between two calls.
    fn between_calls(&self, each: Duration, room: Duration) -> u64 {
        let fit = room.as_nanos().checked_div(each.as_nanos());
        fit.unwrap_or(0).max(CALL_SLOTS)
    }

    /// Calls before and behind so many states.
    pub fn calls_at_states(&self, states: u32) -> u64 {
        let between = self.between_calls(self.slot(STATE_LEN), CALL_EVERY);
        u64::from(states).div_ceil(between) + 1
    }

    /// Calls in the pass of so many ranges.
    pub fn calls_at_ranges(&self, ranges: u32) -> u64 {
        u64::from(ranges.saturating_sub(1)) / self.ranges_between_calls()
    }

    fn ranges_between_calls(&self) -> u64 {
        let room = CALL_EVERY.as_nanos().saturating_sub(self.pair().as_nanos());
        self.between_calls(self.slot(ALL_RANGES_LEN), Duration::from_nanos(room))
    }

    /// What a superframe needs behind its slots: a pair of windows, so many places to join, and the
    /// next beacon.
    pub fn tail(&self, joins: u16, seats: u8) -> Duration {
        self.pair() + self.join() * joins.into() + self.mini() + self.beacon(seats) + self.guard * 2
    }

    /// Beacon alone.
    pub fn beacon(&self, seats: u8) -> Duration {
        self.run(beacon_len(seats))
    }

    /// Beacon and so many orders.
    pub fn head(&self, seats: u8, orders: usize) -> Duration {
        self.run(beacon_len(seats) + orders * ORDER_LEN)
    }

    /// The most orders behind a beacon, with the minislots that they make necessary.
    pub fn orders(&self, seats: u8) -> Duration {
        let all = self.head(seats, MAX_ORDERS);
        Duration::from_nanos(all.as_nanos() - self.beacon(seats).as_nanos())
    }
}

/// Shortest superframe for `count` slaves of one kind, with one pair of management windows and
/// `joins` places to join.
pub fn shortest(schedule: &Schedule, c: Capabilities, count: u8, joins: u64) -> Duration {
    let t = Timing::of(schedule);
    let role = Role::of(c);
    let of = |len: Option<usize>| len.map_or(Duration::ZERO, |len| t.slot(len));
    let slaves = (of(role.state_len()) + of(role.ranges_len())) * count.into();
    let ranging = if c.anchors > 0 { count } else { 0 };
    let calls = t.calls_at_states(count.into()) + t.calls_at_ranges(ranging.into());
    let head = t.head(schedule.seats, MAX_ORDERS) + t.mini() + t.call() * calls;
    head + slaves + t.pair() + t.join() * joins + t.mini() + t.guard * 2
}

/// A place in the superframe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Beacon and orders are over.
    Head,
    Asks,
    /// For any member whose core asks for more than its share.
    Call,
    State(NodeId),
    Ranges(NodeId),
    ToSlave,
    ToMaster,
    Join,
    /// Nobody speaks, but trips are shown.
    Idle,
}

/// Takes a place and the length of what is said in it; true when that is enough.
type Put<'a> = dyn FnMut(Place, Duration) -> bool + 'a;

/// Where everything is until the next beacon.
#[derive(Clone, Debug)]
pub struct Plan {
    pub timing: Timing,
    /// End of the beacon.
    pub beacon: Instant,
    /// From there to the end of the next one, if that does not come earlier.
    pub length: Duration,
    /// End of the orders behind it, and how many there are.
    origin: Instant,
    orders: u8,
    roles: [Role; 127],
    seats: u8,
    /// Somebody has a seat, so there are calls.
    calls: bool,
    pairs: u8,
    asks: u8,
    /// Start of the first pair of management windows, behind the states.
    middle: Instant,
    /// Start of the pass of ranges.
    pub ranges: Instant,
    /// Start of the other pairs.
    windows: Instant,
    /// Start of the first join slot, and how many there are.
    joins_at: Instant,
    pub joins: u16,
    /// Join slots between two calls; none where there are no calls.
    group: Option<u16>,
    pub depth: u8,
}

impl Plan {
    /// From the end of a beacon; the next one ends a cycle later, or a little more.
    pub fn new(schedule: &Schedule, beacon: &Beacon, end: Instant) -> Self {
        let seats = schedule.seats;
        let cycle = match beacon.stretched {
            true => part(schedule.cycle, STRETCH),
            false => schedule.cycle,
        };
        let timing = Timing::of(schedule);
        // Its start may lie before the first instant of a slave that has just been switched on.
        let orders = timing.head(seats, beacon.orders.into()) - timing.beacon(seats);
        let member = |role: &Role| role.state_len().is_some() && *role != Role::OFFERED;
        let calls = beacon.roles.iter().take(seats.into()).any(member);
        let mut plan = Self {
            timing,
            beacon: end,
            length: cycle,
            origin: end + orders,
            orders: beacon.orders,
            roles: beacon.roles,
            seats,
            calls,
            pairs: beacon.pairs,
            asks: beacon.asks,
            middle: end,
            ranges: end,
            windows: end,
            joins_at: end,
            joins: 0,
            group: None,
            depth: beacon.depth,
        };
        let mut at = plan.asks_at();
        if let Some(length) = plan.asks_length() {
            at += length + timing.mini();
        }
        plan.state_pass(&mut |_, length| {
            at += length + timing.mini();
            false
        });
        let pair = timing.pair();
        let middle = at;
        at += pair * plan.pairs.min(1).into();
        let ranges = at;
        plan.range_pass(&mut |_, length| {
            at += length + timing.mini();
            false
        });
        let windows = at;
        plan.further_pairs(&mut |_, length| {
            at += length + timing.mini();
            false
        });
        let last = plan.stop() - timing.mini();
        let room = last.since(at).as_nanos();
        let join = timing.join().as_nanos().max(1);
        let count = |ns: u64| u16::try_from(ns / join).unwrap_or(u16::MAX);
        plan.joins = count(room);
        if calls && plan.joins >= CALL_JOINS {
            let group = timing.between_calls(timing.join(), CALL_EVERY) as u16;
            let call = timing.call().as_nanos();
            let all = join * u64::from(group) + call;
            let rest = count((room % all).saturating_sub(call)).min(group);
            plan.joins = (room / all) as u16 * group + rest;
            plan.group = Some(group);
        }
        plan.middle = middle;
        plan.ranges = ranges;
        plan.windows = windows;
        plan.joins_at = at;
        plan
    }

    /// When everything but the next beacon and the guards before it is over, the last minislot too.
    fn stop(&self) -> Instant {
        self.beacon + self.length - self.timing.beacon(self.seats) - self.timing.guard * 2
    }

    fn asks_at(&self) -> Instant {
        self.origin + self.timing.mini()
    }

    /// Of all asks behind the beacon, without the guard behind the last.
    fn asks_length(&self) -> Option<Duration> {
        let length = self.timing.ask() * self.asks.into();
        (self.asks > 0).then(|| length - self.timing.guard)
    }

    /// When to ask for the `index`th time behind the beacon.
    pub fn ask(&self, index: u8) -> Option<Instant> {
        (index < self.asks).then(|| self.asks_at() + self.timing.ask() * index.into())
    }

    /// And in the first pair of windows, when that is for asks.
    pub fn ask_in_pair(&self, index: u8) -> Option<Instant> {
        let (ours, theirs) = self.pair(0)?;
        let each = self.timing.asks_in_pair() / 2;
        let half = if index < each { ours } else { theirs };
        let place = usize::from(index.checked_rem(each)?);
        let after = self.timing.asks_in_half().nth(place)?;
        (index < 2 * each).then(|| half + after)
    }

    // Each of these puts its places, and is told by `put` when it is enough.

    fn call(&self, put: &mut Put<'_>) -> bool {
        self.calls && put(Place::Call, self.timing.run(HERE_LEN))
    }

    /// The pass of states, with the calls before and behind them.
    fn state_pass(&self, put: &mut Put<'_>) -> bool {
        let t = self.timing;
        let between = t.between_calls(t.slot(STATE_LEN), CALL_EVERY);
        let mut states = 0u64;
        for node in (1..=self.seats).filter_map(NodeId::new) {
            let Some(len) = self.role(node).state_len() else {
                continue;
            };
            let due = states.is_multiple_of(between);
            states += 1;
            if due && self.call(put) || put(Place::State(node), t.run(len)) {
                return true;
            }
        }
        self.call(put)
    }

    /// The pass of ranges, with the calls between them.
    fn range_pass(&self, put: &mut Put<'_>) -> bool {
        let t = self.timing;
        let between = t.ranges_between_calls();
        let mut ranges = 0u64;
        for node in (1..=self.seats).filter_map(NodeId::new) {
            let Some(len) = self.role(node).ranges_len() else {
                continue;
            };
            let due = ranges > 0 && ranges.is_multiple_of(between);
            ranges += 1;
            if due && self.call(put) || put(Place::Ranges(node), t.run(len)) {
                return true;
            }
        }
        false
    }

    /// Windows behind the ranges, with a call before the first of so many pairs.
    fn further_pairs(&self, put: &mut Put<'_>) -> bool {
        let between = self.pairs_between_calls();
        (0..self.pairs.saturating_sub(1))
            .any(|pair| pair.is_multiple_of(between) && self.call(put) || self.windows(put))
    }

    fn windows(&self, put: &mut Put<'_>) -> bool {
        let length = self.timing.run(FRAGMENT_LEN);
        put(Place::ToSlave, length) || put(Place::ToMaster, length)
    }

    fn pairs_between_calls(&self) -> u8 {
        let each = self.timing.pair();
        let fit = CALL_EVERY.as_nanos().checked_div(each.as_nanos());
        fit.unwrap_or(0).clamp(8, u64::from(MAX_PAIRS)) as u8
    }

    /// Looks at all places in order, with the start of the frame and of the minislot behind it, until `look` says that it
    /// is enough.
    // Not an iterator: there is one of it in an image, however many look.
    #[inline(never)]
    pub fn places(&self, look: &mut dyn FnMut(Place, Instant, Instant) -> bool) {
        let t = self.timing;
        let mut at = self.origin;
        let mut put = |place, length| {
            let start = at;
            let minislot = start + length + t.guard;
            at = minislot + t.brk + t.guard;
            look(place, start, minislot)
        };
        let asks = self.asks_length();
        if put(Place::Head, Duration::ZERO)
            || asks.is_some_and(|length| put(Place::Asks, length))
            || self.state_pass(&mut put)
            || self.pairs > 0 && self.windows(&mut put)
            || self.range_pass(&mut put)
            || self.further_pairs(&mut put)
        {
            return;
        }
        let join = t.answer() + t.run(ANSWER_LEN);
        for index in 0..self.joins {
            let due = self.group.is_some_and(|group| index.is_multiple_of(group));
            if due && self.call(&mut put) || put(Place::Join, join) {
                return;
            }
        }
        // The last minislot ends just before the guards of the next beacon.
        let (mini, piece) = (t.mini().as_nanos(), t.bytes(t.piece).as_nanos());
        while let Some(left) = self.stop().since(at).as_nanos().checked_sub(mini) {
            let length = match left > piece {
                true => piece.min(left.saturating_sub(mini)),
                false => left,
            };
            let start = at;
            let minislot = start + Duration::from_nanos(length) + t.guard;
            at = minislot + t.brk + t.guard;
            if look(Place::Idle, start, minislot) {
                return;
            }
        }
    }

    /// Looks at the starts of all minislots in order, from the start of the beacon to the end of the next one, until `look`
    /// says that it is enough.
    // As above.
    #[inline(never)]
    pub fn minislots(&self, look: &mut dyn FnMut(Instant) -> bool) {
        let t = self.timing;
        let beacon = beacon_len(self.seats);
        let head = beacon + usize::from(self.orders) * ORDER_LEN;
        let length = t.beacon(self.seats);
        let mut within = |start, len| t.minislots_in(start, len).any(&mut *look);
        let mut enough = within(self.beacon - length, head);
        if enough {
            return;
        }
        self.places(&mut |place, start, minislot| {
            let is_join = place == Place::Join;
            let len = match place {
                Place::State(node) => self.role(node).state_len(),
                Place::Ranges(node) => self.role(node).ranges_len(),
                Place::ToSlave | Place::ToMaster => Some(FRAGMENT_LEN),
                Place::Join => Some(CLAIM_LEN),
                _ => None,
            };
            let claimed = start + t.run(CLAIM_LEN) + t.guard;
            let claimed = (is_join && t.is_join_cut()).then_some(claimed);
            let answer = if is_join { ANSWER_LEN } else { 0 };
            enough = t.minislots_in(start, len.unwrap_or(0)).any(&mut *look)
                || claimed.is_some_and(&mut *look)
                || t.minislots_in(start + t.answer(), answer).any(&mut *look)
                || look(minislot);
            enough
        });
        let _ = enough || {
            let next = self.beacon + self.length - length;
            t.minislots_in(next, beacon).any(&mut *look)
        };
    }

    /// The start of the first place of which `wanted` says so.
    fn find(&self, wanted: impl Fn(Place, Instant) -> bool) -> Option<Instant> {
        let mut found = None;
        self.places(&mut |place, at, _| {
            let hit = wanted(place, at);
            found = hit.then_some(at);
            hit
        });
        found
    }

    /// The first minislot of which `wanted` says so.
    fn find_minislot(&self, wanted: impl Fn(Instant) -> bool) -> Option<Instant> {
        let mut found = None;
        self.minislots(&mut |at| {
            let hit = wanted(at);
            found = hit.then_some(at);
            hit
        });
        found
    }

    /// The first call at or after an instant.
    pub fn next_call(&self, after: Instant) -> Option<Instant> {
        self.find(|place, at| place == Place::Call && at >= after)
    }

    /// When a seat's state and its ranges are due.
    pub fn slots(&self, node: NodeId) -> (Option<Instant>, Option<Instant>) {
        let of = |wanted| self.find(|place, _| place == wanted);
        (of(Place::State(node)), of(Place::Ranges(node)))
    }

    /// What this plan has for a seat.
    pub fn role(&self, node: NodeId) -> Role {
        self.roles.get(node.index()).copied().unwrap_or_default()
    }

    /// The first minislot that starts at or after an instant.
    pub fn next_minislot(&self, after: Instant) -> Option<Instant> {
        self.find_minislot(|at| at >= after)
    }

    /// Whether a break that is noticed now was sent in a minislot.
    pub fn in_minislot(&self, now: Instant) -> bool {
        let t = self.timing;
        // It may begin early by a guard and be noticed when it ends.
        let near = |at| now + t.guard >= at && now <= at + t.brk + t.guard;
        self.find_minislot(near).is_some()
    }

    /// End of the orders: when a seat that is not in the table is lost.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// Start of a pair of management windows: the master's half, the slave's half.
    pub fn pair(&self, index: u8) -> Option<(Instant, Instant)> {
        let slot = self.timing.slot(FRAGMENT_LEN);
        let at = match index.checked_sub(1) {
            None => self.middle,
            Some(further) => {
                let calls = match self.calls {
                    true => u64::from(further / self.pairs_between_calls()) + 1,
                    false => 0,
                };
                self.windows + slot * (2 * u64::from(further)) + self.timing.call() * calls
            }
        };
        (index < self.pairs).then_some((at, at + slot))
    }

    /// Start of a join slot.
    pub fn join(&self, index: u16) -> Option<Instant> {
        let calls = self
            .group
            .map_or(0, |group| u64::from(index / group.max(1)) + 1);
        let at = self.joins_at + self.timing.join() * index.into() + self.timing.call() * calls;
        (index < self.joins).then_some(at)
    }

    /// The join slot under way at an instant.
    pub fn join_at(&self, now: Instant) -> Option<u16> {
        if now < self.joins_at {
            return None;
        }
        let since = now.since(self.joins_at).as_nanos();
        let join = self.timing.join().as_nanos().max(1);
        let index = match self.group {
            None => since / join,
            Some(group) => {
                let call = self.timing.call().as_nanos();
                let all = join * u64::from(group) + call;
                let behind_call = (since % all).checked_sub(call)?;
                since / all * u64::from(group) + behind_call / join
            }
        };
        u16::try_from(index).ok().filter(|i| *i < self.joins)
    }
}
