//! Who sits where: the master's table of seats.
//!
//! ```text
//!          claim            confirmed               silent, removed
//! Free ------------> Offered ----------> Member ------------------------> Vacant
//!   ^                 |  ^  ^              | babbles                        |  |
//!   '--- no answer ---'  |  |              v                                |  |
//!                        |  '-- claim -- Quarantined -- time over ----------^  |
//!                        '--- claim of the same, or of a successor ------------'
//! ```
//!
//! Rule of seats: a device gets the seat it had. A new device takes the lowest vacant seat whose
//! last occupant had equal capabilities, else the lowest free one, else the lowest vacant one.
//! Capabilities are known only from the confirmation; so a claim is first offered the lowest
//! vacant seat and moved if that turns out wrong.

use crate::Schedule;
use crate::e2e::{Receiver, Verdict};
use crate::join::{Description, PROTOCOL_VERSION};
use crate::message::{BusKind, Capabilities, E2eFault, LeaveReason, MasterEvent};
use crate::schedule::part;
use crate::wire::class;
use heapless::{Deque, Vec};
use helio_units::{Duration, Instant, NodeId, Uid};

/// Assignments sent before a device counts as gone.
const TRIES: u8 = 4;
/// An offer on RS485 stands for so many cycles.
pub const OFFER_CYCLES: u64 = 3;
/// Times that a member was promptly asked for a sign of life before it is gone. On CAN FD it has
/// missed two cycles by then, and the question is the third.
const fn asked(kind: BusKind) -> u8 {
    match kind {
        BusKind::CanFd => 1,
        _ => 2,
    }
}
/// When it is asked first and how long after that again, hundredths of its silence: later than a
/// healthy slave is silent between what it says in a cycle, and twice before the end.
const PROBE: u64 = 80;
const PROBE_AGAIN: u64 = 9;
/// Times that a member is promptly asked whether it is there, when somebody claims a seat with its id.
const QUESTIONS: u8 = 2;
/// While summaries come, the next one is no longer away, hundredths of a cycle.
const PASS: u64 = 3;
/// A member that has said nothing for so long has missed a turn, hundredths of a cycle.
const MISSED: u64 = 120;
/// Signs of life that count while nothing cyclic comes.
const PROBES: u8 = 8;
/// A seat that was left more lately than that is given to another only when there is no other: who hears SYNC but neither is
/// heard nor hears that its seat is gone speaks on. Nobody changes a module by hand faster.
const REST: Duration = Duration::from_millis(150);
/// RS485: who was silent in so many of its slots, and did not answer as many asks, is gone.
const SILENT: u8 = 2;
/// So many that are silent at once are victims of a disturbance, and left to their silence.
const DISTURBED: usize = 4;
/// Answers that count while nothing cyclic comes: two beacons may be lost.
const HERE: u8 = 4;
/// Asks without an answer, after which no more are needed.
const ASKED: u8 = 3;
/// Longest quarantine.
const LONGEST_QUARANTINE: Duration = Duration::from_secs(60);
/// A device that behaved for so long starts again with the shortest quarantine.
const FORGIVEN: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug)]
struct Seat {
    state: State,
    /// Doublings of the next quarantine.
    level: u8,
    /// End of the last quarantine.
    released: Instant,
    /// Counters of what slaves say, see [`receiver_of`].
    receivers: [Receiver; RECEIVERS],
    /// Last sign of life.
    heard: Instant,
    /// RS485: slots and asks since then in which nothing came.
    silent: u8,
    unanswered: u8,
    /// Enough of both, while hardly anybody else was silent.
    gone: bool,
    /// It has answered an ask: its hardware is quick enough, so that no answer means something.
    answers: bool,
    /// Asks meant to find that out.
    tried: u8,
    /// It was silent in its slot for ranges, and perhaps has none: from then on those slots tell nothing,
    /// until one is used.
    mute: bool,
    /// When its last occupant was given up. For as long as a slave lives without the master, it may not know.
    vacated: Option<Instant>,
    /// The cycle in which its member joined: it says nothing cyclic before the next.
    joined: Option<u8>,
    /// What came in the cycle `window`.
    window: u8,
    states: u8,
    alarms: u8,
    frames: u16,
}

/// A device and what it can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    pub uid: Uid,
    pub capabilities: Capabilities,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Offered {
        uid: Uid,
        /// Who sat here before, perhaps the same.
        before: Option<Device>,
        /// Known already if it said so in its claim (RS485).
        capabilities: Option<Capabilities>,
        retry_at: Instant,
        tries: u8,
    },
    Member {
        device: Device,
        /// Somebody claims a seat with this uid: what is heard from then on tells who. That is a cycle
        /// after the claim on CAN, where whoever sits there with another id is told to go.
        challenged: Option<Instant>,
        /// Last time that it was asked for a sign of life.
        probed: Instant,
        /// How often since its last cyclic message.
        probes: u8,
        /// How often that was on the wire since its last sign of life, and when it last was.
        told: (u8, Instant),
    },
    Vacant {
        device: Device,
    },
    Quarantined {
        device: Device,
        until: Instant,
        /// Last time that the order was repeated.
        told: Instant,
    },
}

/// What the master has to say to establish what the table says.
#[derive(Debug, Default)]
#[cfg_attr(feature = "model", derive(Clone))]
pub struct Duties {
    /// Seats whose occupant is to be told its seat.
    assign: u128,
    /// Those of them that are told promptly.
    prompt: u128,
    /// Those that are to be told promptly as soon as that may be.
    soon: u128,
    /// Members that are asked whether they are there: who sits on a seat with their id answers, and who
    /// claims one does not.
    question: u128,
    /// Seats on which somebody speaks who should join anew.
    release: u128,
    /// Devices that are told to go, or that there is nothing for them.
    refuse: Deque<(Uid, LeaveReason), 16>,
    /// Seats to be told to be silent.
    quarantine: u128,
}

/// What a seat makes of a frame with a good check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Deliver it; this many are missing before it.
    Fresh(u8),
    /// Drop it and say why.
    Fault(E2eFault),
    /// Not from a member.
    Stranger,
    /// One too many: the seat is quarantined now.
    Babble,
}

/// The table, with room for so many seats.
#[cfg_attr(feature = "model", derive(Clone))]
pub struct Seats<const SEATS: usize> {
    /// All of them, from [`Self::start`] on.
    seats: Vec<Seat, SEATS>,
    duties: Duties,
    /// When [`Self::scan`] has something to do, at the earliest.
    scan_at: Instant,
    /// Number of the cycle under way.
    pub cycle: u8,
    /// Anchors range now, so their slaves speak twice per cycle.
    pub ranging: bool,
    pass: Pass,
}

/// Summaries come in the order of seats.
#[derive(Clone, Copy, Debug)]
struct Pass {
    /// In which cycle they came last.
    cycle: u8,
    /// The highest seat of them.
    highest: u8,
    /// When the first and the newest came.
    since: Instant,
    at: Instant,
    /// When the first of the pass before came.
    before: Instant,
}

impl Pass {
    const NONE: Self = Self {
        cycle: 0,
        highest: 0,
        since: Instant::ZERO,
        at: Instant::ZERO,
        before: Instant::ZERO,
    };

    /// A summary came.
    fn hear(&mut self, now: Instant, cycle: u8, node: NodeId) {
        if self.cycle != cycle {
            *self = Self {
                cycle,
                highest: 0,
                since: now,
                at: now,
                before: self.since,
            };
        }
        self.highest = self.highest.max(node.get());
        self.at = now;
    }

    /// Whether it was this one's turn since it was heard.
    fn missed(&self, now: Instant, schedule: &Schedule, node: NodeId, heard: Instant) -> bool {
        let over = self.highest > node.get() || now.since(self.at) >= part(schedule.cycle, PASS);
        heard < self.before || heard < self.since && over
    }
}

const EMPTY: Seat = Seat {
    state: State::Free,
    level: 0,
    released: Instant::ZERO,
    receivers: [Receiver::Nothing; RECEIVERS],
    heard: Instant::ZERO,
    silent: 0,
    unanswered: 0,
    gone: false,
    answers: false,
    tried: 0,
    mute: false,
    vacated: None,
    joined: None,
    window: 0,
    states: 0,
    alarms: 0,
    frames: 0,
};

impl<const SEATS: usize> Seats<SEATS> {
    /// To be started by [`Self::start`]; all zeros.
    pub const fn vacant() -> Self {
        Self {
            seats: Vec::new(),
            duties: Duties {
                assign: 0,
                prompt: 0,
                soon: 0,
                question: 0,
                release: 0,
                refuse: Deque::new(),
                quarantine: 0,
            },
            scan_at: Instant::ZERO,
            cycle: 0,
            ranging: false,
            pass: Pass::NONE,
        }
    }

    /// All seats are free, and there are no more than so many.
    pub fn start(&mut self, room: usize) {
        while self.seats.len() < room && !self.seats.is_full() {
            let _ = self.seats.push(EMPTY);
        }
        self.scan_at = Instant::MAX;
    }

    /// Seats that there are.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// The member on a seat.
    pub fn member(&self, node: NodeId) -> Option<Device> {
        match self.seats.get(node.index())?.state {
            State::Member { device, .. } => Some(device),
            _ => None,
        }
    }

    /// Keeps a free seat for the device that is known to belong there.
    pub fn reserve(&mut self, node: NodeId, device: Device) {
        if let Some(seat) = self.seats.get_mut(node.index())
            && matches!(seat.state, State::Free)
        {
            seat.state = State::Vacant { device };
        }
    }

    /// A device asks for a seat.
    pub fn claim(&mut self, now: Instant, schedule: &Schedule, uid: Uid) -> Option<NodeId> {
        if let Some(node) = self.find(uid) {
            let seat = self.seats.get_mut(node.index())?;
            match &mut seat.state {
                State::Offered { .. } => self.duties.assign |= bit(node),
                State::Vacant { .. } | State::Free => {
                    self.offer(now, schedule, node, uid);
                }
                State::Member {
                    challenged, told, ..
                } => {
                    // Either it restarted, and is silent from now on, or this is another one. It
                    // would answer when it is asked, and speaks in every cycle.
                    if challenged.is_none() {
                        *challenged = Some(now + courtesy(schedule));
                        // A turn missed before is worth a question: where many restarted at once, those take long.
                        let missed = now.since(seat.heard) > part(schedule.cycle, MISSED);
                        *told = (missed.into(), now);
                        self.duties.release |= bit(node);
                        self.duties.question |= bit(node);
                        if schedule.can() {
                            self.scan_by(now + challenge(schedule));
                        }
                    }
                    return None;
                }
                State::Quarantined { .. } => return None,
            }
            return Some(node);
        }
        let node = self.lowest(now, schedule, |_| true);
        match node {
            Some(node) => self.offer(now, schedule, node, uid),
            // A seat will be had soon: who is not answered asks again.
            None if self.any_warm(now, schedule) => {}
            None => self.refuse(uid, LeaveReason::Full),
        }
        node
    }

    /// Whether the last occupant of a seat may still believe that it is a member: nobody else sits
    /// down there before it has heard of it, or heard nothing for so long that it gave up by itself.
    fn warm(now: Instant, vacated: Option<Instant>, pause: Duration) -> bool {
        vacated.is_some_and(|at| now < at + pause)
    }

    /// Whether a seat is empty that cannot be given away yet.
    fn any_warm(&self, now: Instant, schedule: &Schedule) -> bool {
        let mut seats = self.seats.iter().take(schedule.seats.into());
        seats.any(|seat| {
            matches!(seat.state, State::Free | State::Vacant { .. })
                && Self::warm(now, seat.vacated, schedule.master_silence)
        })
    }

    /// A device that describes itself at once asks for a seat (RS485). The answer is given at
    /// once too, so there is nothing to repeat: the offer stands for three cycles.
    pub fn claim_described(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        uid: Uid,
        description: Description,
    ) -> Result<NodeId, Option<LeaveReason>> {
        if let Some((_, reason)) = self.duties.refuse.iter().find(|(u, _)| *u == uid) {
            let reason = *reason;
            self.duties.refuse.retain(|(u, _)| *u != uid);
            return Err(Some(reason));
        }
        if description.version != PROTOCOL_VERSION {
            return Err(Some(LeaveReason::Version));
        }
        let capabilities = description.capabilities;
        let known = self.find(uid).is_some();
        let best = || self.best(now, schedule, capabilities);
        let node = match (!known).then(best).flatten() {
            Some(node) => {
                self.offer(now, schedule, node, uid);
                node
            }
            None => match self.claim(now, schedule, uid) {
                Some(node) => node,
                None if known || self.any_warm(now, schedule) => return Err(None),
                None => return Err(Some(LeaveReason::Full)),
            },
        };
        self.duties.assign = 0;
        if let Some(State::Offered {
            capabilities: told,
            retry_at,
            tries,
            ..
        }) = self.seats.get_mut(node.index()).map(|s| &mut s.state)
        {
            *told = Some(capabilities);
            *retry_at = now + schedule.cycle * OFFER_CYCLES;
            *tries = TRIES;
            self.scan_by(now + schedule.cycle * OFFER_CYCLES);
        }
        Ok(node)
    }

    /// What the member on a seat can do, or whom it is offered to: it has, or will have, its slots (RS485).
    pub fn slots_of(&self, node: NodeId) -> Option<Capabilities> {
        match self.seats.get(node.index())?.state {
            State::Member { device, .. } => Some(device.capabilities),
            State::Offered { capabilities, .. } => capabilities,
            _ => None,
        }
    }

    /// Whether a device is among those.
    pub fn has_slots(&self, uid: Uid) -> bool {
        let node = self.find(uid);
        node.is_some_and(|node| self.slots_of(node).is_some())
    }

    /// Whether seats are offered and none is taken.
    pub fn only_offers(&self) -> bool {
        let mut states = self.seats.iter().map(|seat| &seat.state);
        let taken = |s: &State| matches!(s, State::Member { .. });
        let offered = |s: &State| matches!(s, State::Offered { .. });
        !states.clone().any(taken) && states.any(offered)
    }

    /// Whether somebody may take this seat: it has a slot to say so on RS485.
    pub fn is_offered(&self, node: NodeId) -> bool {
        let seat = self.seats.get(node.index());
        seat.is_some_and(|seat| matches!(seat.state, State::Offered { .. }))
    }

    /// The device that is offered this seat.
    pub fn offered_to(&self, node: NodeId) -> Option<Uid> {
        match self.seats.get(node.index())?.state {
            State::Offered { uid, .. } => Some(uid),
            _ => None,
        }
    }

    /// There is no room for the device that is offered this seat and believes by now that it has it.
    pub fn turn_away(&mut self, now: Instant, node: NodeId) {
        self.revert(node);
        if let Some(seat) = self.seats.get_mut(node.index()) {
            seat.vacated = Some(now);
        }
    }

    /// A device says in the slot of its seat that it has taken it (RS485).
    pub fn taken(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        node: NodeId,
        from: Uid,
    ) -> Option<MasterEvent> {
        let State::Offered {
            uid,
            capabilities: Some(capabilities),
            ..
        } = self.seats.get(node.index())?.state
        else {
            return None;
        };
        if from != uid {
            return None;
        }
        self.seat(now, schedule, node, Device { uid, capabilities })
    }

    /// A device says that it has taken its seat. `uid_low` is the lower part of its id.
    pub fn confirm(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        node: NodeId,
        uid_low: u32,
        description: Description,
    ) -> Option<MasterEvent> {
        let seat = self.seats.get_mut(node.index())?;
        match &mut seat.state {
            &mut State::Offered { uid, before, .. } if crate::join::uid_low(uid) == uid_low => {
                if description.version != PROTOCOL_VERSION {
                    self.revert(node);
                    self.refuse(uid, LeaveReason::Version);
                    return None;
                }
                let capabilities = description.capabilities;
                if before.is_some_and(|b| b.uid != uid && b.capabilities != capabilities)
                    && let Some(better) = self.best(now, schedule, capabilities)
                {
                    self.revert(node);
                    self.offer(now, schedule, better, uid);
                    return None;
                }
                self.seat(now, schedule, node, Device { uid, capabilities })
            }
            State::Member {
                device,
                probes,
                told,
                ..
            } if crate::join::uid_low(device.uid) == uid_low => {
                if *probes <= PROBES {
                    told.0 = 0;
                    seat.heard = now;
                }
                None
            }
            _ => {
                self.duties.release |= bit(node);
                None
            }
        }
    }

    /// The offer is taken: from now on a member.
    pub fn seat(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        node: NodeId,
        device: Device,
    ) -> Option<MasterEvent> {
        let seat = self.seats.get_mut(node.index())?;
        let State::Offered { before, .. } = seat.state else {
            return None;
        };
        let replaces = before.map(|b| b.uid).filter(|b| *b != device.uid);
        if replaces.is_some() || now.since(seat.released) > FORGIVEN {
            seat.level = 0;
        }
        seat.state = State::Member {
            device,
            challenged: None,
            probed: now,
            probes: 0,
            told: (0, now),
        };
        seat.heard = now;
        (seat.silent, seat.unanswered) = (0, 0);
        (seat.gone, seat.mute) = (false, false);
        (seat.answers, seat.tried) = (false, 0);
        seat.joined = Some(self.cycle);
        seat.receivers = [Receiver::Nothing; RECEIVERS];
        seat.frames = 0;
        seat.states = 0;
        seat.alarms = 0;
        self.duties.assign &= !bit(node);
        self.duties.release &= !bit(node);
        self.duties.quarantine &= !bit(node);
        self.scan_by(now + schedule.silence_of(device.capabilities, self.ranging));
        Some(MasterEvent::Joined {
            node,
            uid: device.uid,
            capabilities: device.capabilities,
            replaces,
        })
    }

    /// A cyclic message with a good check came from a seat.
    pub fn hear(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        node: NodeId,
        class: u8,
        counter: (u8, u8),
    ) -> Heard {
        let Some(seat) = self.seats.get_mut(node.index()) else {
            return Heard::Stranger;
        };
        let device = match &mut seat.state {
            State::Member {
                device,
                probes,
                told,
                ..
            } => {
                (*probes, told.0) = (0, 0);
                device
            }
            State::Offered { .. } => {
                // It took the seat, but its confirmation is lost: ask again.
                return Heard::Stranger;
            }
            State::Quarantined { told, .. } => {
                if now.since(*told) > Duration::from_millis(1) {
                    *told = now;
                    self.duties.quarantine |= bit(node);
                }
                return Heard::Stranger;
            }
            State::Free | State::Vacant { .. } => {
                self.duties.release |= bit(node);
                // Whoever was given up has not heard of it: for as long as it may not, nobody else sits down there.
                seat.vacated = seat.vacated.map(|at| at.max(now));
                return Heard::Stranger;
            }
        };
        // Who speaks already was there before, perhaps under another master, and has not heard of it.
        if seat.joined != Some(self.cycle) {
            seat.joined = None;
        } else if class != class::ALARM {
            self.duties.release |= bit(node);
            return Heard::Stranger;
        }
        if seat.window != self.cycle {
            seat.window = self.cycle;
            seat.frames = 0;
            seat.states = 0;
            seat.alarms = 0;
        }
        let place = receiver_of(class);
        let Some(receiver) = place.and_then(|place| seat.receivers.get_mut(place)) else {
            return Heard::Stranger;
        };
        let verdict = receiver.check(counter.0, counter.1);
        // A controller repeats a frame in whose last bits it saw an error, though we may have had it: that is no babbling.
        if verdict == Verdict::Repeated {
            return Heard::Fault(E2eFault::Repeated);
        }
        // In one of our cycles an honest slave speaks at most twice, once late and once in time.
        let nominal = schedule.frames_per_cycle(device.capabilities);
        let all = match schedule.after_snapshot(self.cycle) {
            true => device.capabilities.details().into(),
            false => 0,
        };
        let babbles = match class {
            class::ALARM => {
                seat.alarms = seat.alarms.saturating_add(1);
                u16::from(seat.alarms) > 3 * crate::slave::ALARM_BURST
            }
            class::SUMMARY | class::STATE => {
                seat.states = seat.states.saturating_add(1);
                seat.frames = seat.frames.saturating_add(1);
                seat.states > 2
            }
            _ => {
                seat.frames = seat.frames.saturating_add(1);
                seat.frames > 2 * nominal + 2 + all
            }
        };
        if babbles {
            return Heard::Babble;
        }
        match verdict {
            Verdict::Fresh { lost } => {
                seat.heard = now;
                (seat.silent, seat.unanswered, seat.gone) = (0, 0, false);
                match class {
                    class::RANGES | class::ALL_RANGES => seat.mute = false,
                    class::SUMMARY | class::STATE => self.pass.hear(now, self.cycle, node),
                    _ => {}
                }
                Heard::Fresh(lost)
            }
            Verdict::Repeated => Heard::Fault(E2eFault::Repeated),
            Verdict::Sequence => Heard::Fault(E2eFault::Sequence),
        }
    }

    /// RS485: a slot that began at `since` is over; it was one for ranges, or for the state.
    pub fn slot_over(&mut self, now: Instant, node: NodeId, since: Instant, ranges: bool) {
        let Some(seat) = self.seats.get_mut(node.index()) else {
            return;
        };
        // Somebody claimed its seat before, with its id: this slot tells whether it restarted.
        if let State::Member {
            challenged: Some(claimed),
            ..
        } = seat.state
            && claimed < since
            && !ranges
        {
            seat.gone |= seat.heard < since;
            self.scan_by(now);
        }
        let Some(seat) = self.seats.get_mut(node.index()) else {
            return;
        };
        // Who never was heard in its slot is left to its silence: perhaps two devices speak there at once.
        let member = matches!(seat.state, State::Member { .. }) && seat.joined.is_none();
        if member && seat.heard < since && !(ranges && seat.mute) {
            seat.silent = seat.silent.saturating_add(1);
            seat.mute |= ranges && seat.silent == 1;
            let gone = seat.answers && seat.silent >= SILENT && seat.unanswered >= SILENT;
            if gone
                && !self.is_disturbed()
                && let Some(seat) = self.seats.get_mut(node.index())
            {
                seat.gone = true;
                self.scan_by(now);
            }
        }
    }

    /// RS485: a device claims a seat. If it has one, said nothing in its slot of this superframe and did not answer when it
    /// was asked, then it restarted.
    pub fn returns(&mut self, now: Instant, uid: Uid) {
        let node = self.find(uid);
        let seat = node.and_then(|node| self.seats.get_mut(node.index()));
        if let Some(seat) = seat
            && seat.answers
            && seat.silent > 0
            && seat.unanswered > 0
            && matches!(seat.state, State::Member { .. })
        {
            seat.gone = true;
            self.scan_by(now);
        }
    }

    /// RS485: whether so many are silent that it is not for them.
    fn is_disturbed(&self) -> bool {
        let silent = |seat: &&Seat| seat.silent > 0 && matches!(seat.state, State::Member { .. });
        self.seats.iter().filter(silent).count() >= DISTURBED
    }

    /// RS485: the member to be asked next, as it was silent in a slot.
    pub fn suspect(&self) -> Option<NodeId> {
        let silent = |seat: &&Seat| {
            let member = matches!(seat.state, State::Member { .. });
            member && seat.silent > 0 && seat.unanswered < ASKED
        };
        let seats = self.seats.iter().zip(1..);
        let (_, raw) = seats
            .filter(|(seat, _)| silent(seat))
            .min_by_key(|(seat, _)| seat.unanswered)?;
        NodeId::new(raw)
    }

    /// RS485: a member of which it is not known yet whether it can answer.
    pub fn untried(&self) -> Option<NodeId> {
        let untried = |seat: &Seat| {
            let member = matches!(seat.state, State::Member { .. }) && seat.joined.is_none();
            member && !seat.answers && seat.tried < ASKED
        };
        let index = self.seats.iter().position(untried)?;
        NodeId::new(index as u8 + 1)
    }

    /// RS485: whether one more silent slot means that this member is gone.
    pub fn is_critical(&self, node: NodeId) -> bool {
        let seat = self.seats.get(node.index());
        seat.is_some_and(|seat| seat.unanswered >= SILENT && seat.silent + 1 >= SILENT)
    }

    /// RS485: a member was asked.
    pub fn asked(&mut self, node: NodeId) {
        if let Some(seat) = self.seats.get_mut(node.index()) {
            seat.unanswered = seat.unanswered.saturating_add(1);
            seat.tried = seat.tried.saturating_add(1);
        }
    }

    /// RS485: a member answers that it is there.
    pub fn here(&mut self, now: Instant, node: NodeId, uid: u16) {
        if let Some(seat) = self.seats.get_mut(node.index())
            && let State::Member { device, probes, .. } = &mut seat.state
            && device.uid.get() as u16 == uid
            && *probes < HERE
        {
            *probes += 1;
            seat.answers = true;
            seat.heard = now;
            (seat.silent, seat.unanswered, seat.gone) = (0, 0, false);
        }
    }

    /// Tells a member to be silent for so long, or for as long as its record asks for.
    pub fn quarantine(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        node: NodeId,
        for_: Option<Duration>,
    ) -> Option<MasterEvent> {
        let seat = self.seats.get_mut(node.index())?;
        let (State::Member { device, .. } | State::Quarantined { device, .. }) = seat.state else {
            return None;
        };
        let was_member = matches!(seat.state, State::Member { .. });
        let hold = for_.unwrap_or_else(|| {
            let hold = schedule.quarantine * (1 << seat.level.min(20));
            seat.level = seat.level.saturating_add(1);
            hold.min(LONGEST_QUARANTINE)
        });
        let until = now + hold;
        seat.state = State::Quarantined {
            device,
            until,
            told: now,
        };
        seat.released = until;
        self.duties.quarantine |= bit(node);
        self.scan_by(until);
        was_member.then_some(MasterEvent::Left {
            node,
            uid: device.uid,
            reason: LeaveReason::Babbling,
        })
    }

    /// Takes a seat back on the operator's word.
    pub fn remove(&mut self, now: Instant, node: NodeId) -> Option<MasterEvent> {
        let seat = self.seats.get_mut(node.index())?;
        let State::Member { device, .. } = seat.state else {
            return None;
        };
        seat.state = State::Vacant { device };
        seat.vacated = Some(now);
        self.refuse(device.uid, LeaveReason::Commanded);
        Some(MasterEvent::Left {
            node,
            uid: device.uid,
            reason: LeaveReason::Commanded,
        })
    }

    /// Looks for what time has decided. Gives one event at a time: call until there is none.
    pub fn scan(&mut self, now: Instant, schedule: &Schedule) -> Option<MasterEvent> {
        if now < self.scan_at {
            return None;
        }
        let mut next = Instant::MAX;
        for index in 0..SEATS {
            let node = NodeId::new(index as u8 + 1)?;
            let Some(seat) = self.seats.get_mut(index) else {
                break;
            };
            match &mut seat.state {
                State::Offered { retry_at, .. } if now < *retry_at => next = next.min(*retry_at),
                State::Offered { tries, .. } if *tries >= TRIES => {
                    // It may have taken the seat, and we did not hear of it.
                    seat.vacated = Some(now);
                    self.revert(node);
                }
                State::Offered {
                    retry_at, tries, ..
                } => {
                    *tries += 1;
                    *retry_at = now + schedule.join_retry;
                    next = next.min(*retry_at);
                    self.duties.assign |= bit(node);
                }
                State::Member { .. } => {
                    let (at, event) = self.scan_member(now, schedule, node);
                    if event.is_some() {
                        return event;
                    }
                    next = next.min(at);
                }
                State::Quarantined { device, until, .. } if now >= *until => {
                    seat.state = State::Vacant { device: *device };
                    seat.vacated = Some(now);
                }
                State::Quarantined { until, .. } => next = next.min(*until),
                State::Free | State::Vacant { .. } => {}
            }
        }
        self.scan_at = next;
        None
    }

    /// When to look at a member again, and what became of it.
    fn scan_member(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        node: NodeId,
    ) -> (Instant, Option<MasterEvent>) {
        let Some(seat) = self.seats.get_mut(node.index()) else {
            return (Instant::MAX, None);
        };
        let State::Member {
            device,
            challenged,
            probed,
            probes,
            told,
        } = &mut seat.state
        else {
            return (Instant::MAX, None);
        };
        let uid = device.uid;
        let silence = schedule.silence_of(device.capabilities, self.ranging);
        // It says nothing before the next cycle.
        if schedule.can() && seat.joined == Some(self.cycle) && challenged.is_none() {
            seat.heard = now;
            return (now + part(schedule.cycle, 25), None);
        }
        let dead_at = seat.heard + silence;
        // Who is kept beyond that has other times to be looked at.
        let mut next = if now < dead_at { dead_at } else { Instant::MAX };
        let mut restarted = false;
        if let Some(since) = *challenged {
            let claimed = since - courtesy(schedule);
            if seat.heard > since {
                *challenged = None;
                // That claim may have waited in a mailbox while its sender was given the seat. A second
                // device will claim again.
                if !schedule.can() || claimed >= *probed + schedule.cycle * 2 {
                    self.refuse(uid, LeaveReason::DuplicateUid);
                    return (now, Some(MasterEvent::Duplicate { node, uid }));
                }
                return (now, None);
            }
            // On RS485 its next slot tells.
            if schedule.can() {
                let at = claimed + challenge(schedule);
                let silent = seat.heard <= claimed;
                let answered_by = told.1 + part(silence, PROBE_AGAIN);
                restarted = now >= at || silent && told.0 >= QUESTIONS && now >= answered_by;
                if silent && told.0 > 0 && told.0 < QUESTIONS && now >= answered_by {
                    self.duties.question |= bit(node);
                } else if silent && now < answered_by {
                    next = next.min(answered_by);
                }
                next = next.min(at);
            }
        }
        // On CAN it was asked, and did not answer, unless nothing gets out at all.
        let again = part(silence, PROBE_AGAIN);
        // Who missed its turn needs one question less.
        let missed = self.pass.missed(now, schedule, node, seat.heard);
        let asked = asked(schedule.kind);
        let asked = if missed { asked.min(1) } else { asked };
        let unanswered = told.0 >= asked && now >= told.1 + again;
        let enough = !schedule.can() || unanswered || now >= dead_at + silence;
        if restarted || seat.gone || now >= dead_at && enough {
            seat.state = State::Vacant { device: *device };
            seat.vacated = Some(now);
            if restarted {
                self.offer(now, schedule, node, uid);
                self.duties.soon |= bit(node);
            }
            let reason = LeaveReason::Silence;
            return (now, Some(MasterEvent::Left { node, uid, reason }));
        }
        // Unheard for too long, but perhaps only twice by chance: asked, it confirms at once.
        if schedule.can() && challenged.is_none() {
            let probe_at = (seat.heard + part(silence, PROBE)).max(*probed + again);
            if now >= probe_at {
                *probed = now;
                *probes = probes.saturating_add(1);
                self.duties.release |= bit(node);
                // Promptly only as often as it counts: others may have to be asked, too.
                if told.0 < asked {
                    self.duties.question |= bit(node);
                }
                next = next.min(now + again);
            } else {
                next = next.min(probe_at);
            }
            if now >= dead_at {
                // Looked at again when an answer is overdue.
                next = (told.1 + again).max(now + part(again, 25)).min(probe_at);
            }
        }
        (next, None)
    }

    /// When to call [`Self::scan`].
    pub fn scan_at(&self) -> Instant {
        self.scan_at
    }

    /// The next seat whose occupant is to be told.
    pub fn next_assign(&mut self, now: Instant, schedule: &Schedule) -> Option<(NodeId, Uid)> {
        let mut set = self.duties.assign & !self.duties.prompt;
        let next = self.assign_of(now, schedule, &mut set);
        self.duties.assign = set | self.duties.assign & self.duties.prompt;
        next
    }

    /// The same for those that are told promptly.
    pub fn next_prompt(&mut self, now: Instant, schedule: &Schedule) -> Option<(NodeId, Uid)> {
        let mut set = core::mem::take(&mut self.duties.prompt) & self.duties.assign;
        let all = set;
        let next = self.assign_of(now, schedule, &mut set);
        self.duties.prompt = set;
        self.duties.assign &= !(all & !set);
        next
    }

    /// Whether nobody says anything cyclic: all members there are joined in this cycle, or have missed a turn.
    pub fn is_quiet(&self, now: Instant, schedule: &Schedule) -> bool {
        let turn = part(schedule.cycle, MISSED);
        self.seats.iter().all(|seat| {
            let member = matches!(seat.state, State::Member { .. });
            !member || seat.joined == Some(self.cycle) || now.since(seat.heard) > turn
        })
    }

    /// Whether an assignment is to be told promptly when that may be.
    pub fn has_hurry(&self) -> bool {
        self.duties.soon & self.duties.assign & !self.duties.prompt != 0
    }

    /// Whether a member is to be asked whether it is there.
    pub fn has_questions(&self) -> bool {
        self.duties.question != 0
    }

    /// The next of them: first those for whose seat somebody waits.
    pub fn next_question(&mut self) -> Option<(NodeId, Uid)> {
        let claimed = |index: &usize| {
            let state = self.seats.get(*index).map(|seat| seat.state);
            let Some(State::Member { challenged, .. }) = state else {
                return false;
            };
            challenged.is_some()
        };
        let all = self.duties.question;
        let claimed = (0..SEATS).filter(claimed);
        let claimed = claimed.fold(0, |set, index| set | 1 << index) & all;
        let mut first = if claimed == 0 { all } else { claimed };
        let node = pop(&mut first)?;
        self.duties.question &= !bit(node);
        self.duties.release &= !bit(node);
        match self.seats.get(node.index())?.state {
            State::Member { device, .. } => Some((node, device.uid)),
            _ => None,
        }
    }

    /// It may be, for one of them.
    pub fn hurry(&mut self) {
        self.duties.soon &= self.duties.assign & !self.duties.prompt;
        if let Some(node) = pop(&mut self.duties.soon) {
            self.duties.prompt |= bit(node);
        }
    }

    /// An assignment is on the wire.
    pub fn told(&mut self, now: Instant, schedule: &Schedule, node: NodeId) {
        if let Some(State::Member {
            challenged, told, ..
        }) = self.seats.get_mut(node.index()).map(|seat| &mut seat.state)
        {
            let questions = match challenged {
                Some(_) => QUESTIONS,
                None => asked(schedule.kind),
            };
            // The answer to the last one that counts is waited for, not that to further ones.
            if told.0 < questions {
                *told = (told.0 + 1, now);
                let again = part(schedule.silence, PROBE_AGAIN);
                self.scan_by(now + again.min(part(schedule.ranging_silence, PROBE_AGAIN)));
            }
        }
    }

    /// The answer to a claim goes promptly.
    pub fn answer_promptly(&mut self, node: NodeId) {
        self.duties.prompt |= bit(node) & self.duties.assign;
    }

    fn assign_of(
        &mut self,
        now: Instant,
        schedule: &Schedule,
        set: &mut u128,
    ) -> Option<(NodeId, Uid)> {
        while let Some(node) = pop(set) {
            let seat = self.seats.get_mut(node.index());
            if let Some(State::Offered { uid, retry_at, .. }) = seat.map(|s| &mut s.state) {
                *retry_at = now + schedule.join_retry;
                return Some((node, *uid));
            }
        }
        None
    }

    /// The next device that is refused.
    pub fn next_refusal(&mut self) -> Option<(Uid, LeaveReason)> {
        self.duties.refuse.pop_front()
    }

    /// The next seat whose unknown occupant is to join anew.
    ///
    /// With an id: everybody on that seat but this device.
    pub fn next_release(&mut self) -> Option<(NodeId, Option<Uid>)> {
        let node = pop(&mut self.duties.release)?;
        let uid = match self.seats.get(node.index())?.state {
            State::Member { device, .. } => Some(device.uid),
            State::Offered { uid, .. } => Some(uid),
            _ => None,
        };
        Some((node, uid))
    }

    /// The next seat to be told to be silent, and for how long from now.
    pub fn next_quarantine(&mut self, now: Instant) -> Option<(NodeId, Duration)> {
        while let Some(node) = pop(&mut self.duties.quarantine) {
            if let Some(State::Quarantined { until, .. }) =
                self.seats.get(node.index()).map(|s| s.state)
                && until > now
            {
                return Some((node, until.since(now)));
            }
        }
        None
    }

    /// Whether any of the above would give something.
    pub fn has_duties(&self) -> bool {
        let d = &self.duties;
        d.assign | d.release | d.quarantine != 0 || !d.refuse.is_empty()
    }

    fn offer(&mut self, now: Instant, schedule: &Schedule, node: NodeId, uid: Uid) {
        // Its old seat, if that is offered to another meanwhile, is its own no longer: or it would have two
        // when the other one does not take it.
        for seat in &mut self.seats {
            if let State::Offered { before, .. } = &mut seat.state {
                *before = before.filter(|device| device.uid != uid);
            }
        }
        let Some(seat) = self.seats.get_mut(node.index()) else {
            return;
        };
        let before = match seat.state {
            State::Vacant { device } => Some(device),
            _ => None,
        };
        let retry_at = now + schedule.join_retry;
        seat.state = State::Offered {
            uid,
            before,
            capabilities: None,
            retry_at,
            tries: 1,
        };
        self.duties.assign |= bit(node);
        self.scan_by(retry_at);
    }

    /// The offer is void.
    fn revert(&mut self, node: NodeId) {
        if let Some(seat) = self.seats.get_mut(node.index())
            && let State::Offered { before, .. } = seat.state
        {
            seat.state = before.map_or(State::Free, |device| State::Vacant { device });
            self.duties.assign &= !bit(node);
        }
    }

    /// This device is to be told that there is nothing for it.
    pub fn refuse(&mut self, uid: Uid, reason: LeaveReason) {
        if !self.duties.refuse.iter().any(|(known, _)| *known == uid) {
            // When full: who is not answered asks again.
            let _ = self.duties.refuse.push_back((uid, reason));
        }
    }

    /// The seat that a new device with these capabilities takes, unless it is the lowest vacant.
    fn best(
        &self,
        now: Instant,
        schedule: &Schedule,
        capabilities: Capabilities,
    ) -> Option<NodeId> {
        self.lowest(now, schedule, |device| device.capabilities == capabilities)
    }

    /// The lowest seat whose device is gone and fits, else the lowest free one; those that were left a moment ago only
    /// where there are no others.
    fn lowest(
        &self,
        now: Instant,
        schedule: &Schedule,
        fits: impl Fn(&Device) -> bool,
    ) -> Option<NodeId> {
        let find = |pause, vacant: bool| {
            let mut seats = self.seats.iter().take(schedule.seats.into());
            seats.position(|seat| {
                let fits = match &seat.state {
                    State::Vacant { device } => vacant && fits(device),
                    State::Free => !vacant,
                    _ => false,
                };
                fits && !Self::warm(now, seat.vacated, pause)
            })
        };
        let pauses = [REST.max(schedule.master_silence), schedule.master_silence];
        let mut found = pauses
            .into_iter()
            .flat_map(|pause| [(pause, true), (pause, false)])
            .filter_map(|(pause, vacant)| find(pause, vacant));
        NodeId::new(found.next()? as u8 + 1)
    }

    /// The seat that belongs to a device.
    fn find(&self, uid: Uid) -> Option<NodeId> {
        let index = self.seats.iter().position(|seat| match seat.state {
            State::Free => false,
            State::Offered { uid: u, .. } => u == uid,
            State::Member { device, .. }
            | State::Vacant { device }
            | State::Quarantined { device, .. } => device.uid == uid,
        })?;
        NodeId::new(index as u8 + 1)
    }

    /// Sets message counters back.
    #[cfg(feature = "model")]
    pub fn forget(&mut self) {
        for seat in &mut self.seats {
            seat.receivers = [Receiver::Nothing; RECEIVERS];
            (seat.window, seat.states, seat.alarms, seat.frames) = (0, 0, 0, 0);
            seat.joined = None;
        }
    }

    /// Who sits where, and what is to be said about it.
    #[cfg(feature = "model")]
    pub fn print(&self, p: &mut crate::model::Print, schedule: &Schedule) {
        let Pass {
            cycle,
            highest,
            since,
            at,
            before,
        } = self.pass;
        p.value(u64::from(cycle == self.cycle) << 8 | u64::from(highest));
        for at in [since, at, before] {
            p.time(at, schedule.cycle * 2);
        }
        let silence = schedule.silence.max(schedule.ranging_silence) * 2;
        let device = |p: &mut crate::model::Print, d: &Device| {
            let c = d.capabilities;
            p.value(d.uid.get());
            p.value(u64::from_le_bytes([
                c.cells, c.temps, c.anchors, 0, 0, 0, 0, 0,
            ]));
        };
        for seat in self.seats.iter().take(schedule.seats.into()) {
            let Seat {
                state,
                level,
                released,
                receivers,
                heard,
                // Always the same on CAN.
                silent: _,
                unanswered: _,
                gone: _,
                answers: _,
                tried: _,
                mute: _,
                vacated,
                joined,
                window,
                states,
                alarms,
                frames,
            } = seat;
            p.value(joined.map_or(0, |cycle| 1 + u64::from(cycle)));
            let warm = vacated.filter(|at| Self::warm(p.now(), Some(*at), schedule.master_silence));
            p.maybe(warm, schedule.master_silence);
            match state {
                State::Free => p.value(0),
                State::Offered {
                    uid,
                    before,
                    capabilities,
                    retry_at,
                    tries,
                } => {
                    p.value(1);
                    p.value(uid.get());
                    p.value(before.is_some().into());
                    before.iter().for_each(|b| device(p, b));
                    p.value(capabilities.is_some().into());
                    p.time(*retry_at, silence);
                    p.value((*tries).into());
                }
                State::Member {
                    device: d,
                    challenged,
                    probed,
                    probes,
                    told,
                } => {
                    p.value(told.0.into());
                    if told.0 > 0 {
                        p.time(told.1, silence);
                    }
                    p.value(2);
                    device(p, d);
                    p.maybe(*challenged, silence);
                    p.time(*probed, silence);
                    p.value((*probes).into());
                    p.time(*heard, silence);
                }
                State::Vacant { device: d } => {
                    p.value(3);
                    device(p, d);
                }
                State::Quarantined {
                    device: d,
                    until,
                    told,
                } => {
                    p.value(4);
                    device(p, d);
                    p.time(*until, silence);
                    p.time(*told, schedule.cycle);
                }
            }
            // With the shortest quarantine it does not matter when the last one was.
            p.value((*level).into());
            if *level > 0 {
                p.time(*released, silence);
            }
            receivers.iter().for_each(|r| p.receiver(r));
            p.value(u64::from(*window) << 32 | u64::from(*frames));
            p.value(u64::from(*states) << 32 | u64::from(*alarms));
        }
        let Duties {
            assign,
            prompt,
            soon,
            question,
            release,
            refuse,
            quarantine,
        } = &self.duties;
        for set in [assign, prompt, soon, question, release, quarantine] {
            p.value(*set as u64);
            p.value((*set >> 64) as u64);
        }
        for (uid, reason) in refuse {
            p.value(uid.get());
            p.value(crate::join::reason_code(*reason).into());
        }
        p.value(refuse.len() as u64);
        p.time(self.scan_at, silence);
        p.value(self.ranging.into());
    }

    fn scan_by(&mut self, at: Instant) {
        self.scan_at = self.scan_at.min(at);
    }
}

/// How long who sits on a seat with another id than its member's may take to hear that it is to go.
fn courtesy(schedule: &Schedule) -> Duration {
    match schedule.can() {
        true => schedule.cycle,
        false => Duration::ZERO,
    }
}

/// On CAN: a member with whose id somebody claims a seat, and of whom nothing is heard for so long after the
/// claim, has restarted.
fn challenge(schedule: &Schedule) -> Duration {
    part(schedule.cycle, 250)
}

/// Classes that slaves count.
const RECEIVERS: usize = 11;

/// The place of a class among those: cyclic ones, then alarms.
fn receiver_of(class: u8) -> Option<usize> {
    match class {
        class::ALARM => Some(RECEIVERS - 1),
        class::SUMMARY..=class::ALL_RANGES => Some(usize::from(class - class::SUMMARY)),
        _ => None,
    }
}

fn bit(node: NodeId) -> u128 {
    1 << node.index()
}

/// Takes the lowest seat out of a set.
fn pop(set: &mut u128) -> Option<NodeId> {
    let node = NodeId::new(set.trailing_zeros() as u8 + 1).filter(|_| *set != 0)?;
    *set &= *set - 1;
    Some(node)
}
