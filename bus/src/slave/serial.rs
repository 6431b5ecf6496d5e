//! A slave on RS485: it hears the beacon, and from then on knows when it may speak.
//!
//! ```text
//!           beacon                        own slots                 next beacon
//! (silent) -------> plan: trip in any minislot, state, ranges, answer to the master -------> ...
//!                   '-- without a seat: claim in the join slots
//! ```
//!
//! Joining is a splitting of groups (Capetanakis 1979): who waits for `turns` claims when none
//! are left; every slot without a collision lets all come one nearer; a collision sends half of
//! the colliding ones, chosen by the next bit of their hash, one back.

use super::{Core, earliest};
use crate::e2e::{Receiver, Verdict};
use crate::message::*;
use crate::seats::OFFER_CYCLES;
use crate::segment::Numbers;
use crate::superframe::{
    self, Answer, Beacon, Bytes, Decoded, Extra, Fragment, Frame, Parser, Plan, Role, TRIP_REPEATS,
    Timing,
};
use heapless::Deque;
use helio_units::{Duration, Instant, NodeId, TagId};

/// Who was not heard in its first slots claims in one of `1 << SCATTER` places, so as not to meet again a device with its id.
const SCATTER: u32 = 3;
/// The second time it also keeps away for up to twice as long, and then doubles it.
const UNHEARD: Duration = Duration::from_millis(50);
/// Ranges are taken so long before the first slot for them.
pub(crate) const RANGING: Duration = Duration::from_micros(300);

#[cfg_attr(feature = "model", derive(Clone))]
pub(super) struct Serial {
    timing: Timing,
    parser: Parser,
    /// Of the superframe under way.
    plan: Option<Plan>,
    state_at: Option<Instant>,
    ranges_at: Option<Instant>,
    /// Ranges are to be taken then.
    range: Option<(Instant, TagId)>,
    /// When it is known whether an order explains that the table leaves us out.
    dismissed_at: Option<Instant>,
    /// When we got our seat.
    joined: Instant,
    /// A beacon has counted us as a member since.
    confirmed: bool,
    /// A beacon was missed since, and so our slot.
    missed: bool,
    /// Seats in a row that were lost before the master ever heard us.
    unheard: u32,
    /// The master has asked us: our half of the window.
    answer: Option<(Instant, Fragment)>,
    /// It has asked whether we are there; the answer needs no plan.
    here_at: Option<Instant>,
    claiming: Option<Claiming>,
    /// We have claimed in this superframe and heard no answer in time.
    unanswered: bool,
    /// Next minislot in which to show a trip, and how many are left.
    trip: Option<(Instant, u8)>,
    /// The alarm of the last frame; it is said twice, as nobody repeats a lost frame.
    told: Option<Alarm>,
    numbers: Numbers,
    counters: [u8; 16],
    beacons: Receiver,
    orders: Receiver,
    orders_to_all: Receiver,
    out: Deque<SerialOut, 2>,
    /// What is left of the frame under way, and when its next piece is due.
    rest: Option<(Instant, Bytes, Option<Instant>)>,
    /// When to tell the master that the core above asks for too much, and that this was done in this superframe.
    call_at: Option<Instant>,
    called: bool,
}

/// Our part in the join slots of this superframe.
#[derive(Clone, Copy, Debug)]
struct Claiming {
    /// The next slot.
    slot: u16,
    /// Slots without collision until ours.
    turns: u32,
    hash: u64,
    /// Next bit of the hash.
    bit: u32,
    /// We have spoken in the slot under way.
    spoken: bool,
    /// What the master said in it.
    heard: Heard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    Split,
    Other,
}

impl Serial {
    pub(super) const fn new(timing: Timing) -> Self {
        Self {
            timing,
            parser: Parser::new(),
            plan: None,
            state_at: None,
            ranges_at: None,
            range: None,
            dismissed_at: None,
            joined: Instant::ZERO,
            confirmed: false,
            missed: false,
            unheard: 0,
            answer: None,
            here_at: None,
            claiming: None,
            unanswered: false,
            trip: None,
            told: None,
            numbers: Numbers::new(),
            counters: [0; 16],
            beacons: Receiver::Nothing,
            orders: Receiver::Nothing,
            orders_to_all: Receiver::Nothing,
            out: Deque::new(),
            rest: None,
            call_at: None,
            called: false,
        }
    }

    pub(super) fn handle_bytes(&mut self, core: &mut Core, now: Instant, bytes: &[u8]) {
        // Most of what is on the line is for the master and comes in one piece. What looks so may be the next piece of a frame.
        let seats = core.schedule.seats;
        if let Some(kind) = bytes.first()
            && self.parser.is_empty()
            && superframe::is_for_master(*kind)
            && superframe::length(*kind, seats) == Some(bytes.len())
        {
            return self.parser.clear();
        }
        self.parser.push(&self.timing, now, bytes);
        while let Some((decoded, end)) = self.parser.next(&self.timing, seats) {
            self.handle_frame(core, now, end, decoded);
        }
    }

    fn handle_frame(&mut self, core: &mut Core, now: Instant, end: Instant, decoded: Decoded) {
        match decoded.frame {
            Frame::Beacon(beacon) => {
                if core.new_session(end, &beacon.sync) {
                    self.beacons = Receiver::Nothing; // perhaps another master
                }
                if fresh(core, &mut self.beacons, decoded.counter) {
                    self.handle_beacon(core, end, &beacon);
                }
            }
            Frame::Order(Command { to, order }) => {
                let receiver = match to {
                    None => &mut self.orders_to_all,
                    Some(to) if Some(to) == core.node() => &mut self.orders,
                    Some(_) => return,
                };
                if fresh(core, receiver, decoded.counter) {
                    core.order(now, order);
                }
            }
            Frame::Answer(answer) => self.handle_answer(core, now, answer),
            Frame::ToSlave(node, fragment) if Some(node) == core.node() => {
                let window = self.plan.as_ref().and_then(|p| {
                    let pairs = (0..=superframe::MAX_PAIRS).map_while(|i| p.pair(i));
                    // The half that starts when this one and its minislot are over.
                    pairs.map(|(_, ours)| ours).find(|ours| *ours >= end)
                });
                self.answer = window.map(|at| (at, fragment));
            }
            Frame::Ask(node) if Some(node) == core.node() => {
                self.here_at = Some(end + self.timing.guard);
            }
            // For the master, or for others.
            _ => {}
        }
    }

    fn handle_beacon(&mut self, core: &mut Core, end: Instant, beacon: &Beacon) {
        let schedule = core.schedule;
        let plan = Plan::new(&schedule, beacon, end);
        core.stats.overwritten += u64::from(self.state_at.is_some());
        core.stats.overwritten += u64::from(self.ranges_at.is_some());
        self.leave_superframe();
        let last = core.clock.last.map(|(_, cycle)| cycle);
        self.missed |= last.is_some_and(|last| beacon.sync.cycle.wrapping_sub(last) > 1);
        core.sync(end, &beacon.sync);
        if let Some(node) = core.node() {
            // No longer than the offer stands: after that the seat may be another's.
            let offered = !self.confirmed && end.since(self.joined) < schedule.cycle * OFFER_CYCLES;
            if plan.role(node) == Role::OFFERED && offered {
                self.state_at = plan.slots(node).0;
            } else if plan.role(node) == Role::of(core.capabilities) {
                self.confirmed = true;
                (self.state_at, self.ranges_at) = plan.slots(node);
                match beacon
                    .sync
                    .tag
                    .filter(|_| self.ranges_at.is_some() && !core.isolated)
                {
                    Some(tag) => {
                        // A long way from the beacon on a slow line: crystals count.
                        let after = (plan.ranges - RANGING).since(end);
                        self.range = Some((end + core.clock.stretch(after), tag));
                    }
                    None => self.ranges_at = None,
                }
            } else {
                self.dismissed_at = Some(plan.origin());
            }
        }
        self.plan = Some(plan);
        self.start_claiming(core, end);
    }

    /// Without a seat: a claim in the join slots of this superframe, if they are still to come.
    fn start_claiming(&mut self, core: &Core, now: Instant) {
        if core.node().is_some() {
            return;
        }
        if let Some(plan) = &self.plan
            && let Some(at) = core.claim_at(now)
            && plan.join(0).is_some_and(|first| at <= first)
        {
            let (_, cycle) = core.clock.last.unwrap_or_default();
            let hash = core.noise(cycle.into());
            let mut depth = u32::from(plan.depth.min(31));
            if self.unheard > 0 {
                depth = depth.max(SCATTER.min(plan.joins.checked_ilog2().unwrap_or(0)));
            }
            self.claiming = Some(Claiming {
                slot: 0,
                turns: hash as u32 & ((1 << depth) - 1),
                hash,
                bit: depth,
                spoken: false,
                heard: Heard::Nothing,
            });
        }
    }

    /// What was planned for the superframe that is over.
    fn leave_superframe(&mut self) {
        self.plan = None;
        self.state_at = None;
        self.ranges_at = None;
        self.range = None;
        self.dismissed_at = None;
        self.answer = None;
        self.claiming = None;
        self.unanswered = false;
        self.call_at = None;
        self.called = false;
    }

    fn handle_answer(&mut self, core: &mut Core, now: Instant, answer: Answer) {
        let spoken = self.claiming.is_some_and(|c| c.spoken);
        if let Some(claiming) = &mut self.claiming {
            claiming.heard = match answer {
                Answer::Split => Heard::Split,
                _ => Heard::Other,
            };
        }
        match answer {
            Answer::Assign { node, uid } if uid == core.uid && spoken => {
                self.claiming = None;
                self.joined = now;
                self.confirmed = false;
                self.missed = false;
                self.numbers = Numbers::default();
                self.orders = Receiver::Nothing;
                self.orders_to_all = Receiver::Nothing;
                self.told = None;
                core.join(node);
            }
            // Somebody else has asked with our id. Not so if it may be the answer to a claim of our own: before we restarted,
            // or in what was another slot for the master, as it restarted and we missed its beacon. Then we ask again.
            Answer::Assign { uid, .. }
                if uid == core.uid
                    && core.node().is_none()
                    && self.plan.is_some()
                    && !self.unanswered =>
            {
                core.released(now, LeaveReason::DuplicateUid);
            }
            Answer::Assign { node, uid } if uid != core.uid && core.node() == Some(node) => {
                core.leave(now, LeaveReason::Silence, Duration::ZERO);
            }
            Answer::Release { uid, reason } if uid == core.uid => core.released(now, reason),
            _ => {}
        }
    }

    pub(super) fn handle_break(&mut self, core: &mut Core, now: Instant) {
        let plan = self.plan.as_ref();
        match plan.map(|plan| plan.in_minislot(now)) {
            Some(true) => self.parser.cut(&self.timing),
            _ => self.parser.clear(),
        }
        // Without a plan the line is silent, and only a trip breaks the silence.
        if plan.is_none_or(|plan| plan.in_minislot(now)) {
            core.event(SlaveEvent::TripSeen);
        }
    }

    pub(super) fn handle_timeout(&mut self, core: &mut Core, now: Instant) {
        let over = |plan: &Plan| now.since(plan.beacon) > plan.length + plan.timing.brk;
        if self.plan.as_ref().is_some_and(over) {
            core.stats.overwritten += u64::from(self.state_at.is_some());
            self.leave_superframe();
        }
        if core.node().is_none() {
            self.here_at = None;
        }
        if core.node().is_none() && (self.state_at.is_some() || self.answer.is_some()) {
            self.state_at = None;
            self.ranges_at = None;
            self.range = None;
            self.answer = None;
        }
        if self.dismissed_at.is_some_and(|at| now >= at) {
            self.dismissed_at = None;
            if core.node().is_some() {
                // Never heard in our slot, though we heard every beacon: perhaps a device with our id speaks
                // there too, and is not to meet us again.
                let early = !self.missed && now.since(self.joined) < core.schedule.cycle * 5;
                self.unheard = if early { (self.unheard + 1).min(4) } else { 0 };
                let hold = match self.unheard {
                    0 | 1 => Duration::ZERO,
                    n => core.random(now.as_nanos(), UNHEARD * (1 << (n - 1))),
                };
                core.leave(now, LeaveReason::Silence, hold);
                // Places to join are still to come.
                self.start_claiming(core, now);
            }
        }
        if let Some((at, tag)) = self.range
            && now >= at
        {
            self.range = None;
            core.event(SlaveEvent::RangeNow(tag));
        }
        if core.trip && self.trip.is_none() && !core.quarantined() {
            self.start_trip(core, now);
        }
        if core.babbling && self.confirmed && !self.called && core.node().is_some() {
            let plan = self.plan.as_ref();
            self.call_at = plan.and_then(|plan| plan.next_call(now));
            self.called = self.call_at.is_some();
        }
    }

    /// A trip goes to the next minislots; when there is no master, and so silence, at once.
    fn start_trip(&mut self, core: &mut Core, now: Instant) {
        core.trip = false;
        if !core.trip_budget.take(now) {
            core.stats.over_budget += 1;
            return;
        }
        let at = match &self.plan {
            Some(plan) => plan.next_minislot(now),
            None if core.master_alive(now) => None,
            None => Some(now),
        };
        // Between the last join slot and the next beacon there is none: that beacon has one.
        self.trip = Some((at.unwrap_or(Instant::MAX), TRIP_REPEATS));
    }

    pub(super) fn poll_timeout(&self, core: &Core, now: Instant) -> Option<Instant> {
        let claim = self.claiming.and_then(|c| self.plan.as_ref()?.join(c.slot));
        let plan = self.plan.as_ref();
        let times = [
            self.state_at,
            self.ranges_at,
            self.range.map(|(at, _)| at),
            self.dismissed_at,
            self.answer.as_ref().map(|(at, _)| *at),
            self.here_at,
            self.call_at,
            self.rest.as_ref().map(|(at, ..)| *at),
            self.trip.and_then(|(at, _)| match at {
                Instant::MAX => core.heard.map(|h| h + core.schedule.master_silence),
                at => Some(at),
            }),
            claim.filter(|_| core.node().is_none()),
            plan.map(|p| p.beacon + p.length + p.timing.brk * 2),
        ];
        earliest(times.map(|t| t.filter(|t| *t > now)))
    }

    /// A slot is missed when it is more than half a guard late.
    fn due(&self, at: Option<Instant>, now: Instant) -> Option<bool> {
        let at = at.filter(|at| now >= *at)?;
        Some(now.since(at).as_nanos() * 2 <= self.timing.guard.as_nanos())
    }

    pub(super) fn poll(&mut self, core: &mut Core, now: Instant) -> Option<SerialOut> {
        self.poll_rest(now);
        self.poll_trip(core, now);
        if let Some(node) = core.node() {
            self.poll_slots(core, now, node);
        } else {
            self.poll_claim(core, now);
        }
        let out = self.out.pop_front();
        core.stats.sent += u64::from(out.is_some());
        out
    }

    fn poll_trip(&mut self, core: &mut Core, now: Instant) {
        if core.quarantined() {
            return;
        }
        let Some((at, left)) = self.trip else {
            return;
        };
        if at == Instant::MAX {
            // A plan came meanwhile, or all hope of one went.
            let next = match &self.plan {
                Some(plan) => plan.next_minislot(now),
                None if core.master_alive(now) => None,
                None => Some(now),
            };
            if let Some(next) = next {
                self.trip = Some((next, left));
            }
        }
        let Some((at, left)) = self.trip else {
            return;
        };
        match self.due(Some(at), now) {
            Some(true) => {
                let what = SerialSignal::Break(self.timing.brk);
                let _ = self.out.push_back(SerialOut {
                    at,
                    what,
                    sampled_at: None,
                });
                let after = at + self.timing.brk;
                let next = self.plan.as_ref().and_then(|p| p.next_minislot(after));
                self.trip = (left > 1).then_some((next.unwrap_or(Instant::MAX), left - 1));
            }
            Some(false) => self.trip = Some((Instant::MAX, left)),
            None => {}
        }
    }

    /// The next piece of a frame; the frame is given up when that is late.
    fn poll_rest(&mut self, now: Instant) {
        let at = self.rest.as_ref().map(|(at, ..)| *at);
        if let Some(in_time) = self.due(at, now)
            && let Some((at, bytes, sampled_at)) = self.rest.take()
            && in_time
        {
            self.put(at, bytes, sampled_at);
        }
    }

    fn poll_slots(&mut self, core: &mut Core, now: Instant, node: NodeId) {
        if let Some(in_time) = self.due(self.state_at, now) {
            let at = self.state_at.take().unwrap_or(now);
            if in_time && !self.confirmed {
                let (uid, description) = (core.uid, core.description());
                let frame = Frame::Confirm {
                    node,
                    uid,
                    description,
                };
                self.say(core, at, &frame, None);
            } else if in_time {
                self.say_state(core, node, at);
            } else {
                core.stats.overwritten += 1;
            }
        }
        if let Some(in_time) = self.due(self.ranges_at, now) {
            let at = self.ranges_at.take().unwrap_or(now);
            // Only ranges of this superframe: what nobody measured is not said.
            let heard = core.heard.unwrap_or_default();
            match core.ranges.filter(|(taken, _)| in_time && *taken >= heard) {
                Some((sampled_at, ranges)) => {
                    let few = Role::of(core.capabilities).few();
                    let frame = Frame::Ranges { node, ranges, few };
                    self.say(core, at, &frame, Some(sampled_at));
                }
                None => core.stats.overwritten += u64::from(!in_time),
            }
        }
        if let Some(in_time) = self.due(self.here_at, now) {
            let at = self.here_at.take().unwrap_or(now);
            if in_time {
                let frame = Frame::Here(node, core.uid.get() as u16);
                self.say(core, at, &frame, None);
            }
        }
        if let Some(in_time) = self.due(self.call_at, now) {
            let at = self.call_at.take().unwrap_or(now);
            if in_time {
                let frame = Frame::Call(node, core.uid.get() as u16);
                self.say(core, at, &frame, None);
            }
        }
        let window = self.answer.as_ref().map(|(at, _)| *at);
        if let Some(in_time) = self.due(window, now)
            && let Some((at, fragment)) = self.answer.take()
        {
            let (sender, receiver) = (&mut core.sender, &mut core.receiver);
            if self
                .numbers
                .handle(now, &fragment, Some(sender), Some(receiver))
            {
                core.event(SlaveEvent::Datagram);
            }
            if in_time {
                let ready = core.receiver.ready();
                let fragment = self.numbers.poll(Some(&mut core.sender), ready);
                self.say(core, at, &Frame::ToMaster(node, fragment), None);
            }
        }
    }

    fn say_state(&mut self, core: &mut Core, node: NodeId, at: Instant) {
        let (sampled_at, state) = match &core.state {
            Some((at, state)) => (Some(*at), *state),
            None => (None, State::default()),
        };
        let repeated = self.told.is_some();
        let alarm = self.told.take().or_else(|| core.next_alarm());
        if !repeated {
            self.told = alarm;
        }
        // Whatever the core asks for, one frame per slot goes out; the excess is reported.
        core.stats.over_budget += u64::from(core.babbling);
        let extra = Extra {
            alarm,
            repeated,
            over_budget: core.babbling,
        };
        let frame = if core.capabilities.cells > 0 || core.capabilities.temps > 0 {
            Frame::State(node, state, extra)
        } else {
            Frame::Summary(node, state.summary, extra)
        };
        self.say(core, at, &frame, sampled_at);
    }

    fn poll_claim(&mut self, core: &mut Core, now: Instant) {
        let Some(mut claiming) = self.claiming else {
            return;
        };
        let at = self.plan.as_ref().and_then(|p| p.join(claiming.slot));
        let Some(at) = at.filter(|at| now >= *at) else {
            return;
        };
        if claiming.slot > 0 {
            match (claiming.heard, claiming.spoken) {
                (Heard::Split, true) => {
                    let back = claiming.hash >> claiming.bit.min(63) & 1;
                    claiming.turns = back as u32;
                    claiming.bit += 1;
                }
                (Heard::Split, false) => claiming.turns += 1,
                // Our answer is lost: leave the others in order and wait for the next beacon.
                (_, true) => {
                    self.unanswered = true;
                    return self.claiming = None;
                }
                (_, false) => claiming.turns = claiming.turns.saturating_sub(1),
            }
        }
        claiming.slot += 1;
        claiming.heard = Heard::Nothing;
        claiming.spoken = claiming.turns == 0 && self.due(Some(at), now) == Some(true);
        if claiming.spoken {
            core.claimed_in_slot(now);
            let uid = core.uid;
            let description = core.description();
            self.say(core, at, &Frame::Claim { uid, description }, None);
        }
        self.claiming = Some(claiming);
    }

    fn say(&mut self, core: &Core, at: Instant, frame: &Frame, sampled_at: Option<Instant>) {
        let class = match frame {
            Frame::Summary(..) => crate::wire::class::SUMMARY,
            Frame::State(..) => crate::wire::class::STATE,
            Frame::Ranges { few: true, .. } => crate::wire::class::RANGES,
            Frame::Ranges { .. } => crate::wire::class::ALL_RANGES,
            _ => crate::wire::class::JOIN,
        };
        let mut count = 0;
        if let Some(counter) = self.counters.get_mut(usize::from(class)) {
            *counter = counter.wrapping_add(1);
            count = *counter;
        }
        let bytes = superframe::encode(frame, count, core.schedule.seats);
        self.put(at, bytes, sampled_at);
    }

    /// The first piece goes out, the others follow behind minislots.
    fn put(&mut self, at: Instant, bytes: Bytes, sampled_at: Option<Instant>) {
        let (piece, rest) = self.timing.split(at, &bytes);
        let _ = self.out.push_back(signal(at, piece, sampled_at));
        self.rest = rest.map(|(at, rest)| (at, rest, sampled_at));
    }
}

/// Bytes for the line.
pub(crate) fn signal(at: Instant, bytes: &[u8], sampled_at: Option<Instant>) -> SerialOut {
    let mut buffer = [0; MAX_SERIAL];
    for (to, from) in buffer.iter_mut().zip(bytes) {
        *to = *from;
    }
    SerialOut {
        at,
        what: SerialSignal::Bytes {
            buffer,
            len: bytes.len() as u8,
        },
        sampled_at,
    }
}

fn fresh(core: &mut Core, receiver: &mut Receiver, counter: u8) -> bool {
    let fresh = matches!(receiver.check(counter, 0xff), Verdict::Fresh { .. });
    core.stats.rejected += u64::from(!fresh);
    fresh
}
