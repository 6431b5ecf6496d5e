//! Joining on CAN, and the 29-bit identifiers of joining and management.
//!
//! ```text
//! slave                        master
//!   | claim: hash in id, uid  -->|   any number of slaves at once; arbitration sorts them
//!   |<-- assign: seat in id, uid |   by uid: one receiver, whoever else thinks it
//!   |                            |   has this seat gives it up
//!   | confirm: seat, abilities ->|   from now on a member
//!   |<-- release: reason, uid    |   seat lost, or none to be had
//! ```
//!
//! They start with class 15, so they lose arbitration against every cyclic message, or, when prompt,
//! with what only SYNC's class has left free, and pass before orders and everything cyclic. Prompt are
//! the first claim after power on, one assignment per cycle that answers such a claim, and its
//! confirmation.
//!
//! ```text
//! pppp 0 00 000cccccccc rrrr nnnnnnn   assign (r = 0, c = number of the cycle), release (r = reason, c = 0); p = 15, or 2 and
//! pppp 0 01 0000000000000000 nnnnnnn   confirm                              1 instead of the first 0
//! pppp 0 1h hhhhhhhhhhhhhhhh hhhhhhh   claim (23 bits of hash)              behind it when prompt
//! 1111 1 00 000000000000000d nnnnnnn   management, d = 0 to the slave, 1 to the master
//! ```

use crate::bits::{Reader, Writer};
use crate::e2e::{DataId, check8};
use crate::message::{CanFrame, CanId, Capabilities, LeaveReason};
use crate::wire::class;
use helio_units::{NodeId, Uid};

/// Version of everything in this crate that two devices must agree on, `0..=15`.
pub const PROTOCOL_VERSION: u8 = 3;

const JOIN: u32 = 0xf << 25;
/// Prompt frames have this instead. The seat bits of SYNC's class, which are 0 in SYNC, begin with 1.
const PROMPT: u32 = (class::SYNC as u32) << 25 | 1 << 24;
/// Identifiers of prompt claims, assignments and confirmations: where they begin, and how many of
/// their lowest bits differ.
pub const PROMPT_IDS: [(u32, u32); 3] = [
    (PROMPT | CLAIM & BODY, HASH_BITS),
    (PROMPT, ASSIGN_BITS),
    (PROMPT | CONFIRM & BODY, 7),
];
/// Seat, reason and cycle of an assignment.
const ASSIGN_BITS: u32 = 19;
/// Bits that tell the kind and whose it is.
const BODY: u32 = (1 << 24) - 1;
/// The most urgent 29-bit identifier; the lower 25 bits tell what and whose.
pub const FIRST_EXTENDED: u32 = JOIN;
const CONFIRM: u32 = JOIN | 1 << 22;
const CLAIM: u32 = JOIN | 1 << 23;
const HASH_MASK: u32 = (1 << 23) - 1;
const MANAGEMENT: u32 = JOIN | 1 << 24;

/// What a slave tells of itself when it joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// [`PROTOCOL_VERSION`] of the slave.
    pub version: u8,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// A frame with a 29-bit identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extended<'a> {
    /// A slave without a seat asks for one.
    Claim { uid: Uid, prompt: bool },
    /// The master gives a seat.
    Assign {
        node: NodeId,
        uid: Uid,
        /// Number of the cycle under way: by it the slave tells whether the next SYNC is of the same session.
        cycle: u8,
        prompt: bool,
    },
    /// The master takes a seat back: from `uid`, from whoever sits on `node`, or with both from
    /// whoever sits on `node` and is not `uid`.
    Release {
        node: Option<NodeId>,
        uid: Option<Uid>,
        reason: LeaveReason,
        /// Then `uid`, if it sits on `node`, says so at once.
        prompt: bool,
    },
    /// The slave has taken its seat.
    Confirm {
        node: NodeId,
        uid_low: u32,
        description: Description,
    },
    /// Part of a datagram to a slave.
    ToSlave(NodeId, &'a [u8]),
    /// Part of a datagram to the master.
    ToMaster(NodeId, &'a [u8]),
}

/// A bijection of 64 bits that leaves no pattern (finaliser of SplitMix64, Steele et al. 2014).
/// As it is one to one, two different ids always differ somewhere in their hash.
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Inverse of [`mix`].
const fn unmix(x: u64) -> u64 {
    let x = (x ^ x >> 31 ^ x >> 62).wrapping_mul(0x3196_42b2_d24d_8ec3);
    let x = (x ^ x >> 27 ^ x >> 54).wrapping_mul(0x96de_1b17_3f11_9089);
    x ^ x >> 30 ^ x >> 60
}

/// What makes one attempt differ from another.
const fn salt(attempt: u8) -> u64 {
    (attempt as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Bits of a hash in the identifier of a claim.
const HASH_BITS: u32 = HASH_MASK.count_ones();
/// Lower bits of an id in a confirmation.
const UID_BITS: u32 = 22;
/// Attempts that differ: 7 bits.
const ATTEMPTS: u32 = 1 << 7;

/// What a confirmation tells of an id.
pub const fn uid_low(uid: Uid) -> u32 {
    uid.get() as u32 & ((1 << UID_BITS) - 1)
}

/// A reason as a number; 0 is an assignment.
pub const fn reason_code(reason: LeaveReason) -> u8 {
    match reason {
        LeaveReason::Silence => 1,
        LeaveReason::Babbling => 2,
        LeaveReason::DuplicateUid => 3,
        LeaveReason::Commanded => 4,
        LeaveReason::Full => 5,
        LeaveReason::Version => 6,
    }
}

/// Inverse of [`reason_code`].
pub const fn reason(code: u8) -> Option<LeaveReason> {
    Some(match code {
        1 => LeaveReason::Silence,
        2 => LeaveReason::Babbling,
        3 => LeaveReason::DuplicateUid,
        4 => LeaveReason::Commanded,
        5 => LeaveReason::Full,
        6 => LeaveReason::Version,
        _ => return None,
    })
}

impl Description {
    /// 18 bits.
    pub fn put(&self, w: &mut Writer) {
        w.put(self.version.into(), 4);
        w.put(self.capabilities.cells.into(), 5);
        w.put(self.capabilities.temps.into(), 4);
        w.put(self.capabilities.anchors.into(), 5);
    }

    /// Inverse of [`Self::put`].
    pub fn take(r: &mut Reader) -> Self {
        Self {
            version: r.take(4) as u8,
            capabilities: Capabilities {
                cells: r.take(5) as u8,
                temps: r.take(4) as u8,
                anchors: r.take(5) as u8,
            },
        }
    }
}

fn urgency(id: u32, prompt: bool) -> u32 {
    if prompt { PROMPT | id & BODY } else { id }
}

/// Frame of a claim; the first one after power on is prompt. Classic format: devices with one uid send it at the same time, and
/// identical frames merge only at the arbitration bit rate.
///
/// A hash of all 64 bits of id, different for each attempt, is cut in two: the lower 23 bits go into
/// the identifier, so that few claims meet in arbitration; the other 41 and the attempt are the data.
pub fn claim(uid: Uid, attempt: u32) -> Option<CanFrame> {
    let salted = (attempt % ATTEMPTS) as u8;
    let hash = mix(uid.get() ^ salt(salted));
    let id = urgency(CLAIM | hash as u32 & HASH_MASK, attempt == 0);
    let rest = (hash >> HASH_BITS) << 7 | u64::from(salted);
    let [data @ .., _, _] = rest.to_le_bytes();
    CanFrame::new(CanId::Extended(id), false, &data)
}

fn claimed_by(id: u32, data: &[u8]) -> Option<Uid> {
    let [a, b, c, d, e, f] = *data else {
        return None;
    };
    let rest = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    let hash = (rest >> 7) << HASH_BITS | u64::from(id & HASH_MASK);
    Uid::new(unmix(hash) ^ salt(a & 0x7f))
}

/// Frame of an assignment.
pub fn assign(node: NodeId, uid: Uid, cycle: u8, prompt: bool) -> Option<CanFrame> {
    let id = urgency(
        JOIN | u32::from(cycle) << 11 | u32::from(node.get()),
        prompt,
    );
    CanFrame::new(CanId::Extended(id), false, &uid.get().to_le_bytes())
}

/// Frame of a release.
pub fn release(
    node: Option<NodeId>,
    uid: Option<Uid>,
    reason: LeaveReason,
    prompt: bool,
) -> Option<CanFrame> {
    let node = node.map_or(0, NodeId::get);
    let id = JOIN | u32::from(reason_code(reason)) << 7 | u32::from(node);
    let id = urgency(id, prompt);
    let uid = uid.map_or(0, Uid::get);
    CanFrame::new(CanId::Extended(id), false, &uid.to_le_bytes())
}

/// Frame of a confirmation.
pub fn confirm(node: NodeId, uid: Uid, description: Description, prompt: bool) -> Option<CanFrame> {
    let mut data = [0; 6];
    let mut w = Writer::new(&mut data);
    w.put(0, 8);
    description.put(&mut w);
    w.put(uid_low(uid), UID_BITS);
    w.finish();
    let (head, body) = data.split_at_mut(1);
    head.copy_from_slice(&[check8(DataId::new(class::JOIN, node.get()), body)]);
    let id = urgency(CONFIRM | u32::from(node.get()), prompt);
    CanFrame::new(CanId::Extended(id), false, &data)
}

/// Identifier of management frames.
pub fn management_id(node: NodeId, to_master: bool) -> CanId {
    CanId::Extended(MANAGEMENT | u32::from(to_master) << 7 | u32::from(node.get()))
}

/// Reads a frame with a 29-bit identifier; `None` when it is not one of ours.
pub fn decode(frame: &CanFrame) -> Option<Extended<'_>> {
    let CanId::Extended(id) = frame.id else {
        return None;
    };
    let node = NodeId::new(id as u8 & 0x7f);
    let uid = || Some(Uid::new(u64::from_le_bytes(frame.data().try_into().ok()?)));
    let prompt = id & !BODY == PROMPT;
    let id = if prompt { JOIN | id & BODY } else { id };
    if id & MANAGEMENT == MANAGEMENT {
        return match id & !MANAGEMENT & !0x7f {
            0 => Some(Extended::ToSlave(node?, frame.data())),
            0x80 => Some(Extended::ToMaster(node?, frame.data())),
            _ => None,
        };
    }
    if id & JOIN != JOIN {
        return None;
    }
    if id & CLAIM == CLAIM {
        let uid = claimed_by(id, frame.data())?;
        return Some(Extended::Claim { uid, prompt });
    }
    if id & CONFIRM == CONFIRM {
        let node = node.filter(|_| id & !CONFIRM & !0x7f == 0)?;
        let [check, body @ ..] = frame.data() else {
            return None;
        };
        if body.len() != 5 || check8(DataId::new(class::JOIN, node.get()), body) != *check {
            return None;
        }
        let mut r = Reader::new(body);
        let description = Description::take(&mut r);
        return Some(Extended::Confirm {
            node,
            uid_low: r.take(UID_BITS),
            description,
        });
    }
    let uid = uid()?;
    let cycle = u8::try_from((id & !JOIN) >> 11).ok()?;
    match (id >> 7 & 0xf, cycle) {
        (0, _) => Some(Extended::Assign {
            node: node?,
            uid: uid?,
            cycle,
            prompt,
        }),
        (code, 0) => Some(Extended::Release {
            node,
            uid,
            reason: reason(u8::try_from(code).ok()?)?,
            prompt,
        }),
        _ => None,
    }
}

/// What a slave's CAN controller must let through: trips, SYNC, orders to it or to all,
/// assignments and releases, its own management, and whatever claims to come from its own seat.
pub fn slave_accepts(frame_id: CanId, own: Option<NodeId>) -> bool {
    match frame_id {
        CanId::Standard(raw) => {
            let id = DataId(raw);
            let to_all = matches!(id.class(), class::TRIP | class::SYNC | class::COMMAND);
            (to_all && id.node() == 0) || own.is_some_and(|own| own.get() == id.node())
        }
        CanId::Extended(id) if id & MANAGEMENT == MANAGEMENT => {
            own.is_some_and(|own| management_id(own, false) == frame_id)
        }
        CanId::Extended(id) => matches!(id >> ASSIGN_BITS << ASSIGN_BITS, JOIN | PROMPT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).expect("in range")
    }

    #[test]
    fn every_kind_of_frame_is_read_as_written() {
        let uid = Uid::new(0x0123_4567_89ab_cdef).expect("valid");
        let description = Description {
            version: PROTOCOL_VERSION,
            capabilities: Capabilities {
                cells: 18,
                temps: 8,
                anchors: 16,
            },
        };
        let read = |frame: &Option<CanFrame>| {
            decode(frame.as_ref().expect("a frame")).map(|e| match e {
                Extended::Claim { uid, prompt } => (u8::from(prompt) << 7, 0, uid.get()),
                Extended::Assign {
                    node,
                    uid,
                    cycle,
                    prompt,
                } => (
                    1 | u8::from(prompt) << 7,
                    node.get(),
                    uid.get() ^ u64::from(cycle),
                ),
                Extended::Release {
                    node, uid, reason, ..
                } => (
                    10 + reason_code(reason),
                    node.map_or(0, NodeId::get),
                    uid.map_or(0, Uid::get),
                ),
                Extended::Confirm {
                    node,
                    uid_low,
                    description: d,
                } => {
                    assert_eq!(d, description);
                    (2, node.get(), uid_low.into())
                }
                Extended::ToSlave(node, data) => (3, node.get(), data.len() as u64),
                Extended::ToMaster(node, data) => (4, node.get(), data.len() as u64),
            })
        };
        assert_eq!(read(&claim(uid, 0)), Some((0x80, 0, uid.get())));
        assert_eq!(read(&claim(uid, 7)), Some((0, 0, uid.get())));
        for (prompt, kind) in [(false, 1), (true, 0x81)] {
            for cycle in [0, 1, 255] {
                let out = assign(node(127), uid, cycle, prompt);
                assert_eq!(read(&out), Some((kind, 127, uid.get() ^ u64::from(cycle))));
                let heard = out.is_some_and(|frame| slave_accepts(frame.id, None));
                assert!(heard);
            }
        }
        let out = release(None, Some(uid), LeaveReason::Full, true);
        assert_eq!(read(&out), Some((15, 0, uid.get())));
        let out = release(Some(node(3)), None, LeaveReason::Silence, false);
        assert_eq!(read(&out), Some((11, 3, 0)));
        for prompt in [false, true] {
            let out = confirm(node(9), uid, description, prompt);
            assert_eq!(read(&out), Some((2, 9, 0x2b_cdef)));
        }
        for (to_master, kind) in [(false, 3), (true, 4)] {
            let out = CanFrame::new(management_id(node(5), to_master), false, &[1, 2]);
            assert_eq!(read(&out), Some((kind, 5, 2)));
        }
    }

    #[test]
    fn joining_never_wins_against_a_cyclic_message_unless_it_is_prompt() {
        // An extended frame loses against a standard one with the same first 11 bits.
        let lowest_extended = JOIN >> 18;
        let highest_cyclic = u32::from(DataId::new(class::BULK, 127).0);
        assert!(lowest_extended > highest_cyclic);
        // What is prompt passes behind SYNC and before orders, whatever its hash.
        let of = |class, n| u32::from(DataId::new(class, n).0);
        assert!(PROMPT >> 18 > of(class::SYNC, 0));
        assert!((PROMPT | BODY) >> 18 < of(class::COMMAND, 0));
    }

    #[test]
    fn a_slave_hears_what_concerns_it_and_no_more() {
        let own = Some(node(5));
        let std = |class, n| CanId::Standard(DataId::new(class, n).0);
        for (id, heard) in [
            (std(class::TRIP, 0), true),
            (std(class::SYNC, 0), true),
            (std(class::COMMAND, 0), true),
            (std(class::COMMAND, 5), true),
            (std(class::COMMAND, 6), false),
            (std(class::SUMMARY, 5), true),
            (std(class::SUMMARY, 6), false),
            (std(class::ALARM, 6), false),
            (CanId::Extended(JOIN | 6), true),
            (CanId::Extended(JOIN | 5 << 7), true),
            (CanId::Extended(PROMPT | 6), true),
            (CanId::Extended(PROMPT | CLAIM & BODY | 6), false),
            (CanId::Extended(CONFIRM | 6), false),
            (CanId::Extended(CLAIM | 6), false),
            (management_id(node(5), false), true),
            (management_id(node(5), true), false),
            (management_id(node(6), false), false),
        ] {
            assert_eq!(slave_accepts(id, own), heard, "{id:x?}");
        }
        assert!(!slave_accepts(std(class::COMMAND, 5), None));
    }

    proptest! {
        #[test]
        fn a_claim_tells_the_whole_id(raw in 1..=u64::MAX, attempt in 0..300u32) {
            let uid = Uid::new(raw).expect("not 0");
            let frame = claim(uid, attempt).expect("fits");
            let read = matches!(decode(&frame), Some(Extended::Claim { uid: u, prompt })
                if u == uid && prompt == (attempt == 0));
            prop_assert!(read);
            prop_assert_eq!(mix(unmix(raw)), raw);
        }

        #[test]
        fn any_identifier_and_data_is_read_without_panic(
            id in 0..1u32 << 29, data in proptest::collection::vec(any::<u8>(), 0..=8),
        ) {
            for id in [id, id | JOIN, id | MANAGEMENT] {
                let frame = CanFrame::new(CanId::Extended(id), false, &data).expect("fits");
                let _ = decode(&frame);
            }
        }
    }
}
