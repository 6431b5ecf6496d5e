//! The master on RS485: beats time with the beacon, listens in the slots, answers who wants to join.
//!
//! ```text
//! beacon + orders, then for each pair of windows: word to a slave -- its answer
//!                  then for each join slot in which something is heard: assign, release or split
//! ```
//!
//! Who was silent in its slot for ranges is asked behind the next beacon, who was in its slot for the state in
//! the pair of windows behind the states. Another silent slot after that, and it is gone.

use super::{Core, OrderCounters};
use crate::Schedule;
use crate::analysis::JOINS;
use crate::join::Description;
use crate::message::*;
use crate::segment::Numbers;
use crate::slave::signal;
use crate::superframe::{
    self, Answer, Beacon, Bytes, Decoded, Extra, Frame, MAX_DEPTH, MAX_ORDERS, MAX_PAIRS, Parser,
    Place, Plan, Role, TRIP_REPEATS, Timing,
};
use heapless::Vec;
use helio_units::{Duration, Instant, NodeId, Uid};

/// Depth at which a cold rack starts to join.
const COLD: u8 = 5;
/// Members are asked for answers at every turn for so long after the last fragment.
const LIVELY: Duration = Duration::from_millis(1_000);

#[cfg_attr(feature = "model", derive(Clone))]
pub(super) struct Serial<const SEATS: usize> {
    timing: Timing,
    parser: Parser,
    beacon_due: bool,
    /// At most one. (An `Option` of it would say that there is none by other than zeros, and take flash for all of a master.)
    plan: Vec<Plan, 1>,
    /// Next pair of windows.
    pair: u8,
    /// Places of the plan that were looked at, when they were over, for who was silent.
    examined: usize,
    /// End of a slot that decides whether somebody is gone.
    watch: Option<Instant>,
    /// Next ask behind the beacon; then, of so many, in the first pair of windows.
    head_ask: u8,
    pair_ask: (u8, u8),
    /// A tag is ranged in this superframe.
    tagged: bool,
    /// Whom the last pair asked.
    turn: usize,
    /// Members with whom datagrams were exchanged up to then: they are asked first, because an
    /// answer follows a question.
    lively: (u128, Instant),
    /// When to answer what was heard in the join slot under way.
    joining: Option<Instant>,
    /// Who asked in it, if that could be understood.
    claim: Option<(Uid, Description)>,
    /// Groups of claims that are still to be resolved, and the slot up to which that counts.
    groups: (u32, u16),
    split: bool,
    /// There were more claims than join slots can resolve in one superframe.
    crowded: bool,
    depth: u8,
    numbers: [Numbers; SEATS],
    /// Our clock at the end of the last beacon, µs.
    previous_us: u32,
    beacon_counter: u8,
    order_counters: OrderCounters<SEATS>,
    /// What is left of the run under way, and when its next piece is due.
    rest: Option<(Instant, Bytes)>,
    /// Next minislot in which to show a trip of another bus, and how many are left. Without a plan, or behind the
    /// last minislot of one, none is known ([`Instant::MAX`]): the next beacon brings them.
    trip: Option<(Instant, u8)>,
    /// When the last one was shown that we might hear ourselves.
    shown: Option<Instant>,
}

impl<const SEATS: usize> Serial<SEATS> {
    pub(super) fn new(schedule: &Schedule) -> Self {
        Self {
            timing: Timing::of(schedule),
            depth: COLD,
            ..Self::vacant()
        }
    }

    /// Of no bus; all zeros.
    pub(super) const fn vacant() -> Self {
        Self {
            timing: Timing::NONE,
            parser: Parser::new(),
            beacon_due: false,
            plan: Vec::new(),
            pair: 0,
            examined: 0,
            watch: None,
            head_ask: 0,
            pair_ask: (0, 0),
            tagged: false,
            turn: 0,
            lively: (0, Instant::ZERO),
            joining: None,
            claim: None,
            groups: (0, 0),
            split: false,
            crowded: false,
            depth: 0,
            numbers: [const { Numbers::new() }; SEATS],
            previous_us: 0,
            beacon_counter: 0,
            order_counters: OrderCounters::new(),
            rest: None,
            trip: None,
            shown: None,
        }
    }

    pub(super) fn start_cycle(&mut self, core: &mut Core<SEATS>) {
        core.stats.overwritten += u64::from(self.beacon_due);
        self.beacon_due = true;
        self.joining = None;
        self.parser.clear();
        self.close_joining();
    }

    pub(super) fn handle_bytes(&mut self, core: &mut Core<SEATS>, now: Instant, bytes: &[u8]) {
        if let Some(plan) = self.plan.first()
            && let Some(slot) = plan.join_at(now)
            && let Some(start) = plan.join(slot)
        {
            let at = start + self.timing.answer();
            if self.joining != Some(at) {
                self.claim = None;
            }
            self.joining = Some(at);
        }
        self.parser.push(&self.timing, now, bytes);
        while let Some((decoded, _)) = self.parser.next(&self.timing, core.schedule.seats) {
            self.handle_frame(core, now, decoded);
        }
    }

    fn handle_frame(&mut self, core: &mut Core<SEATS>, now: Instant, decoded: Decoded) {
        let Decoded { id, counter, frame } = decoded;
        match frame {
            Frame::Claim { uid, description } => {
                if self.joining.is_some() {
                    self.claim = Some((uid, description));
                }
            }
            Frame::Confirm { node, uid, .. } => {
                if let Some(event) = core.seats.taken(now, &core.schedule, node, uid) {
                    if let Some(numbers) = self.numbers.get_mut(node.index()) {
                        *numbers = Numbers::default();
                    }
                    core.event(event);
                }
            }
            Frame::State(node, state, extra) => {
                let message = Message::State(node, state);
                self.handle_state(core, now, (id, counter), node, message, extra);
            }
            Frame::Summary(node, summary, extra) => {
                let message = Message::Summary(node, summary);
                self.handle_state(core, now, (id, counter), node, message, extra);
            }
            Frame::Ranges { node, ranges, .. } => {
                core.receive(now, id, (counter, 0xff), Message::Ranges(node, ranges));
            }
            Frame::ToMaster(node, fragment) => {
                if core.seats.member(node).is_none() {
                    return;
                }
                let Some(numbers) = self.numbers.get_mut(node.index()) else {
                    return;
                };
                let sender = core.senders.iter_mut().find(|(of, _)| *of == Some(node));
                let sender = sender.map(|(_, sender)| sender);
                let receiver = super::receiver(&mut core.receivers, node);
                let wants = fragment.sequence.is_some();
                let receiver = receiver.filter(|_| wants).map(|(of, receiver)| {
                    *of = Some(node);
                    receiver
                });
                if numbers.handle(now, &fragment, sender, receiver) {
                    core.event(MasterEvent::Datagram(node));
                }
            }
            Frame::Here(node, uid) => core.seats.here(now, node, uid),
            Frame::Call(node, uid) => {
                let device = core.seats.member(node);
                if device.is_some_and(|device| device.uid.get() as u16 == uid) {
                    core.quarantine(now, node, None);
                }
            }
            // Our own kind: another master, or an echo.
            Frame::Beacon(_)
            | Frame::Order(_)
            | Frame::Answer(_)
            | Frame::Ask(_)
            | Frame::ToSlave(..) => {}
        }
    }

    fn handle_state(
        &mut self,
        core: &mut Core<SEATS>,
        now: Instant,
        (id, counter): (crate::e2e::DataId, u8),
        node: NodeId,
        message: Message,
        extra: Extra,
    ) {
        let Some(lost) = core.receive(now, id, (counter, 0xff), message) else {
            return;
        };
        // Said twice: the second one counts when the first is missing.
        if let Some(alarm) = extra.alarm.filter(|_| !extra.repeated || lost > 0) {
            core.event(MasterEvent::Message(Message::Alarm(node, alarm)));
        }
        if extra.over_budget {
            core.quarantine(now, node, None);
        }
    }

    pub(super) fn handle_break(&mut self, core: &mut Core<SEATS>, now: Instant) {
        let Some(plan) = self.plan.first() else {
            return self.parser.clear();
        };
        if plan.in_minislot(now) {
            self.parser.cut(&self.timing);
            // Our own, if the transceiver hears itself: it has been told where it came from.
            let over = self.timing.brk + self.timing.guard;
            if self.shown.is_none_or(|at| now > at + over) {
                core.event(MasterEvent::Trip);
            }
        } else if let Some(start) = plan.join_at(now).and_then(|slot| plan.join(slot)) {
            // Claims that met can look like a break.
            let at = start + self.timing.answer();
            self.parser.clear();
            if now <= at && self.joining.is_none() {
                self.joining = Some(at);
                self.claim = None;
            }
        } else {
            self.parser.clear();
        }
    }

    /// When every group of claims is resolved. Nobody says anything but seats are given: then the
    /// next beacon, which lets them be taken, need not wait for the end of the superframe.
    fn early_at(&self, core: &Core<SEATS>) -> Option<Instant> {
        let plan = self.plan.first()?;
        let slot = u32::from(self.groups.1).saturating_add(self.groups.0);
        let at = plan.join(u16::try_from(slot).ok()?)?;
        (!self.beacon_due && self.joining.is_none() && core.seats.only_offers()).then_some(at)
    }

    pub(super) fn handle_timeout(&mut self, core: &mut Core<SEATS>, now: Instant) {
        if self.early_at(core).is_some_and(|at| now >= at) {
            core.cycle_at = core.cycle_at.min(Some(now));
        }
        if self.watch.is_some_and(|at| now >= at) {
            self.examine(core, now);
        }
        if self.trip.is_none() && core.take_trip(now) {
            self.trip = Some((self.minislot(now), TRIP_REPEATS));
        }
    }

    fn minislot(&self, now: Instant) -> Instant {
        let plan = self.plan.first();
        plan.and_then(|plan| plan.next_minislot(now))
            .unwrap_or(Instant::MAX)
    }

    fn poll_trip(&mut self, now: Instant) -> Option<SerialOut> {
        let (at, left) = self.trip.filter(|(at, _)| now >= *at)?;
        if !self.in_time(at, now) {
            self.trip = Some((self.minislot(now), left));
            return None;
        }
        let next = self.minislot(at + self.timing.brk);
        self.trip = (left > 1).then_some((next, left - 1));
        self.shown = Some(at);
        Some(SerialOut {
            at,
            what: SerialSignal::Break(self.timing.brk),
            sampled_at: None,
        })
    }

    /// Looks for who was silent in the slots that are over.
    fn examine(&mut self, core: &mut Core<SEATS>, now: Instant) {
        self.watch = None;
        let Some(plan) = self.plan.first() else {
            return;
        };
        let (mut index, before) = (0, self.examined);
        plan.places(&mut |place, start, minislot| {
            index += 1;
            if index <= before {
                return false;
            }
            let over = minislot + self.timing.guard;
            let (node, ranges) = match place {
                Place::State(node) => (Some(node), false),
                Place::Ranges(node) => (Some(node).filter(|_| self.tagged), true),
                _ => (None, false),
            };
            if now < over {
                // The next one on which it depends.
                let depends = node.is_some_and(|node| core.seats.is_critical(node));
                if depends {
                    self.watch = Some(over);
                }
                return depends;
            }
            self.examined += 1;
            if let Some(node) = node {
                core.seats.slot_over(now, node, start, ranges);
            }
            false
        });
    }

    /// When to ask next.
    fn ask_at(&self) -> Option<Instant> {
        let plan = self.plan.first()?;
        let (next, end) = self.pair_ask;
        plan.ask(self.head_ask)
            .or_else(|| plan.ask_in_pair(next).filter(|_| next < end))
    }

    /// The next ask, whomever it is for.
    fn poll_ask(&mut self, core: &mut Core<SEATS>, now: Instant) -> Option<SerialOut> {
        let at = self.ask_at().filter(|at| now >= *at)?;
        let seats = core.schedule.seats;
        let is_head = self.plan.first()?.ask(self.head_ask).is_some();
        match is_head {
            true => self.head_ask += 1,
            false => self.pair_ask.0 += 1,
        }
        if !self.in_time(at, now) {
            return None;
        }
        let untried = || core.seats.untried().filter(|_| !is_head);
        let node = core.seats.suspect().or_else(untried)?;
        core.seats.asked(node);
        self.parser.clear();
        // Perhaps the next slot decides now.
        self.examine(core, now);
        let bytes = superframe::encode(&Frame::Ask(node), 0, seats);
        Some(signal(at, &bytes, None))
    }

    pub(super) fn poll_timeout(&self, core: &Core<SEATS>) -> Option<Instant> {
        let window = self.plan.first().and_then(|p| p.pair(self.pair));
        let window = window.map(|(ours, _)| ours);
        crate::slave::earliest([
            window,
            self.joining,
            self.early_at(core),
            self.watch,
            self.ask_at(),
            self.rest.as_ref().map(|(at, _)| *at),
            self.trip.map(|(at, _)| at).filter(|at| *at < Instant::MAX),
        ])
    }

    pub(super) fn poll(&mut self, core: &mut Core<SEATS>, now: Instant) -> Option<SerialOut> {
        if self.beacon_due {
            self.beacon_due = false;
            let bytes = self.compose_beacon(core, now);
            return Some(self.put(now, &bytes));
        }
        if let Some(trip) = self.poll_trip(now) {
            return Some(trip);
        }
        let seats = core.schedule.seats;
        if let Some((at, rest)) = self.rest.take_if(|(at, _)| now >= *at) {
            // Late, what is left is lost, and with it the frame.
            return self.in_time(at, now).then(|| self.put(at, &rest));
        }
        if let Some(at) = self.joining.filter(|at| now >= *at) {
            self.joining = None;
            let claim = self.claim.take();
            self.parser.clear();
            let answer = self.answer(core, now, at, claim)?;
            let bytes = superframe::encode(&Frame::Answer(answer), 0, seats);
            return self.in_time(at, now).then(|| self.put(at, &bytes));
        }
        if let Some(ask) = self.poll_ask(core, now) {
            return Some(ask);
        }
        let (at, _) = self.plan.first()?.pair(self.pair).filter(|p| now >= p.0)?;
        self.pair += 1;
        if self.pair == 1 {
            self.examine(core, now);
            let idle = self.lively.0 == 0 && !core.has_datagrams();
            if core.seats.suspect().is_some() || idle && core.seats.untried().is_some() {
                self.pair_ask = (0, self.timing.asks_in_pair());
            }
            if self.pair_ask.1 > 0 {
                return self.poll_ask(core, now);
            }
        }
        if !self.in_time(at, now) {
            return None;
        }
        let node = self.next_turn(core, now)?;
        let ready = super::receiver(&mut core.receivers, node).is_some_and(|(_, r)| r.ready());
        let sender = core.senders.iter_mut().find(|(of, _)| *of == Some(node));
        let sender = sender.map(|(_, sender)| sender);
        let fragment = self.numbers.get_mut(node.index())?.poll(sender, ready);
        let bytes = superframe::encode(&Frame::ToSlave(node, fragment), 0, seats);
        Some(self.put(at, &bytes))
    }

    /// The first piece goes out, the others follow behind minislots.
    fn put(&mut self, at: Instant, run: &[u8]) -> SerialOut {
        let (piece, rest) = self.timing.split(at, run);
        self.rest = rest;
        signal(at, piece, None)
    }

    fn in_time(&self, at: Instant, now: Instant) -> bool {
        now.since(at).as_nanos() * 2 <= self.timing.guard.as_nanos()
    }

    /// Beacon and orders, and the plan that follows from them.
    fn compose_beacon(&mut self, core: &mut Core<SEATS>, now: Instant) -> Bytes {
        let schedule = core.schedule;
        self.examine(core, now);
        let mut roles = [Role::default(); 127];
        let mut members = false;
        for index in 0..schedule.seats {
            let node = NodeId::new(index + 1);
            let (Some(node), Some(role)) = (node, roles.get_mut(usize::from(index))) else {
                continue;
            };
            if let Some(device) = core.seats.member(node) {
                *role = Role::of(device.capabilities);
                members = true;
            } else if core.seats.is_offered(node) {
                *role = Role::OFFERED;
            }
        }
        let mut orders = heapless::Vec::<Command, MAX_ORDERS>::new();
        while !orders.is_full() {
            let quarantine = core.seats.next_quarantine(now).map(|(node, hold)| Command {
                to: Some(node),
                order: Order::Quarantine(hold),
            });
            let Some(order) = quarantine.or_else(|| core.commands.pop_front()) else {
                break;
            };
            let _ = orders.push(order);
        }
        let mut beacon = Beacon {
            sync: Sync {
                cycle: core.cycle,
                tag: core.tag(),
                previous_us: self.previous_us,
            },
            orders: orders.len() as u8,
            pairs: 0,
            asks: match core.seats.suspect() {
                Some(_) => self.timing.head_asks(),
                None => 0,
            },
            depth: self.depth,
            stretched: false,
            roles,
        };
        let end = now + self.timing.beacon(schedule.seats);
        let plan = |beacon: &Beacon| Plan::new(&schedule, beacon, end);
        // One pair keeps asking round; all that fit when there is something to carry.
        if members {
            if now >= self.lively.1 {
                self.lively.0 = 0;
            }
            let busy = self.lively.0 != 0 || core.has_datagrams();
            beacon.pairs = if busy { MAX_PAIRS } else { 1 };
            while beacon.pairs > 1 && plan(&beacon).joins < JOINS {
                beacon.pairs -= 1;
            }
        }
        beacon.stretched = roles == [Role::default(); 127] && self.depth == COLD;
        let mut next = plan(&beacon);
        if let Some(at) = &mut core.cycle_at {
            *at = *at + next.length - schedule.cycle;
        }
        // More groups than slots only where fewer were too few: most of them then wait for another superframe.
        while !self.crowded && beacon.depth > 0 && 1u32 << beacon.depth > next.joins.into() {
            beacon.depth -= 1;
            next.depth = beacon.depth;
        }
        self.previous_us = (end.as_micros() & 0xfff_ffff) as u32;
        self.beacon_counter = self.beacon_counter.wrapping_add(1);
        self.pair = 0;
        self.examined = 0;
        self.watch = None;
        self.head_ask = 0;
        self.pair_ask = (0, 0);
        self.tagged = beacon.sync.tag.is_some();
        self.groups = (1 << beacon.depth, 0);
        self.split = false;
        self.plan.clear();
        let _ = self.plan.push(next);
        if let Some((_, left)) = self.trip {
            self.trip = Some((self.minislot(now), left));
        }
        let seats = schedule.seats;
        let mut bytes = superframe::encode(&Frame::Beacon(beacon), self.beacon_counter, seats);
        for order in orders {
            let count = self.order_counters.next(order.to);
            let frame = superframe::encode(&Frame::Order(order), count, seats);
            let _ = bytes.extend_from_slice(&frame);
        }
        bytes
    }

    /// Whom the next pair of windows is for: who has a datagram under way or had a moment ago,
    /// else all in turn.
    fn next_turn(&mut self, core: &Core<SEATS>, now: Instant) -> Option<NodeId> {
        let seats = usize::from(core.schedule.seats);
        let mut fallback = None;
        for step in 1..=seats {
            let index = (self.turn + step).checked_rem(seats)?;
            let Some(node) = NodeId::new(index as u8 + 1) else {
                continue;
            };
            if core.seats.member(node).is_none() {
                continue;
            }
            let busy = core.has_datagram_of(node);
            if busy {
                self.lively.0 |= 1 << index;
                self.lively.1 = now + LIVELY.max(core.schedule.cycle * 8);
            }
            if busy || self.lively.0 >> index & 1 != 0 {
                self.turn = index;
                return Some(node);
            }
            fallback = fallback.or(Some((index, node)));
        }
        let (index, node) = fallback?;
        self.turn = index;
        Some(node)
    }

    /// What to say to the claim, or the mixture of claims, in a join slot.
    fn answer(
        &mut self,
        core: &mut Core<SEATS>,
        now: Instant,
        at: Instant,
        claim: Option<(Uid, Description)>,
    ) -> Option<Answer> {
        let slot = self.plan.first().and_then(|p| p.join_at(at)).unwrap_or(0);
        let idle = u32::from(slot.saturating_sub(self.groups.1));
        self.groups.0 = self.groups.0.saturating_sub(idle);
        self.groups.1 = slot + 1;
        let Some((uid, description)) = claim else {
            self.groups.0 += 1;
            self.split = true;
            return Some(Answer::Split);
        };
        self.groups.0 = self.groups.0.saturating_sub(1);
        let schedule = core.schedule;
        // As much as the analysis allows: one slot more than fits would push the others over the end.
        let new = !core.seats.has_slots(uid);
        self.examine(core, now);
        core.seats.returns(now, uid);
        core.scan(now);
        let capabilities = description.capabilities;
        // Whose predecessor, or former life, was given up in this superframe takes that place.
        if new && !core.admits(core.census(), uid, capabilities) {
            let reason = LeaveReason::Full;
            return Some(Answer::Release { uid, reason });
        }
        match core.seats.claim_described(now, &schedule, uid, description) {
            Ok(node) => Some(Answer::Assign { node, uid }),
            Err(Some(reason)) => Some(Answer::Release { uid, reason }),
            Err(None) => None,
        }
    }

    /// The superframe is over: how finely the next one divides those who want to join.
    fn close_joining(&mut self) {
        let Some(plan) = self.plan.first() else {
            return;
        };
        let idle = u32::from(plan.joins.saturating_sub(self.groups.1));
        let unresolved = self.groups.0 > idle;
        self.crowded = unresolved && (self.split || self.crowded);
        self.depth = match (unresolved, self.split) {
            (true, true) => (plan.depth + 1).min(MAX_DEPTH),
            (true, false) => plan.depth.saturating_sub(1),
            (false, true) => plan.depth,
            (false, false) => plan.depth.saturating_sub(2),
        };
    }
}
