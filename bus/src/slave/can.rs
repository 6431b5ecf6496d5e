//! A slave on CAN and CAN FD.
//!
//! ```text
//! SYNC --> Waiting --sample or grace--> turn: summary + next detail (FD: state)
//!                                       ... + ranges_phase: RangeNow --set_ranges--> range chunks
//! ```
//!
//! In a snapshot all details are due, each encoded from the sample of that SYNC whenever it goes out. They go
//! by the mailbox of management: in that of the summaries one of them may still wait when the next summary is
//! due, which is more urgent than those of other slaves that it waits for.

use super::{Core, KEEP_AWAY, Seat, earliest};
use crate::budget::Budget;
use crate::e2e::{Receiver, Verdict};
use crate::join::{self, Extended};
use crate::message::*;
use crate::wire::{self, class};
use crate::{Schedule, segment::Pdu};
use helio_units::{Duration, Instant, NodeId, TagId, Uid};

#[cfg_attr(feature = "model", derive(Clone))]
pub(super) struct Can {
    /// SYNC has asked for a sample: until when the turn waits for it, and the SYNC itself.
    waiting: Option<(Instant, Instant)>,
    /// Ranges are to be taken then.
    range: Option<(Instant, TagId)>,
    /// Number of the cycle under way.
    cycle: u8,
    summary_due: bool,
    /// Details still to be sent, `from..to`: fours of cells, then temperatures.
    details: (u8, u8),
    /// What they say if they are those of a snapshot, and when it was measured.
    snapshot: Option<(Option<Instant>, State)>,
    /// One of those is in the mailbox of management.
    detail_out: bool,
    /// Pairs of ranges still to be sent, `from..to`; on FD one stands for all.
    pairs: (u8, u8),
    confirm_due: bool,
    /// The confirmation answers a prompt assignment.
    prompt: bool,
    /// The mailbox with our prompt confirmation.
    confirm_in: Option<Mailbox>,
    /// The mailbox with our trip.
    trip_in: Option<Mailbox>,
    /// What is in the mailbox of management is a claim, and not what is left from before we lost our seat.
    claiming: bool,
    counters: [u8; 16],
    sync: Receiver,
    orders: Receiver,
    orders_to_all: Receiver,
    budget: Budget,
    /// Times that we gave up a seat on which nothing of ours got through.
    drowned: u8,
}

/// Who gets nothing through keeps away for a random part of this, a few times; then of twice as
/// much each time.
const DROWNED: Duration = Duration::from_millis(50);

impl Can {
    pub(super) fn new(schedule: &Schedule, capabilities: Capabilities) -> Self {
        // Just above the schedule: one message more per cycle, two more at once.
        let frames = schedule.frames_per_cycle(capabilities);
        let share = schedule.cycle.as_nanos() / (u64::from(frames) + 1);
        Self {
            waiting: None,
            range: None,
            cycle: 1,
            summary_due: false,
            details: (0, 0),
            snapshot: None,
            detail_out: false,
            pairs: (0, 0),
            confirm_due: false,
            prompt: false,
            confirm_in: None,
            trip_in: None,
            claiming: false,
            counters: [0; 16],
            sync: Receiver::Nothing,
            orders: Receiver::Nothing,
            orders_to_all: Receiver::Nothing,
            budget: Budget::new(frames + 2, Duration::from_nanos(share)),
            drowned: 0,
        }
    }

    #[cfg(feature = "model")]
    pub(super) fn forget(&mut self) {
        self.counters = [0; 16];
        self.cycle = 1;
        self.sync = Receiver::Nothing;
        self.orders = Receiver::Nothing;
        self.orders_to_all = Receiver::Nothing;
    }

    #[cfg(feature = "model")]
    pub(super) fn print(&self, p: &mut crate::model::Print, schedule: &Schedule) {
        let Self {
            waiting,
            range,
            cycle,
            summary_due,
            details,
            snapshot,
            detail_out,
            pairs,
            confirm_due,
            prompt,
            confirm_in,
            trip_in,
            claiming,
            counters,
            sync,
            orders,
            orders_to_all,
            budget,
            drowned,
        } = self;
        p.value((*drowned).min(8).into());
        let due = [*summary_due, *detail_out, *confirm_due].map(u64::from);
        let prompt = u64::from(*confirm_due && *prompt);
        p.value(due[0] | due[1] << 1 | due[2] << 2 | prompt << 3 | u64::from(*claiming) << 4);
        let all = snapshot.is_some().into();
        p.value(u64::from_le_bytes([
            *cycle, details.0, details.1, all, pairs.0, pairs.1, 0, 0,
        ]));
        for place in [trip_in, confirm_in] {
            p.value(place.map_or(0, |mailbox| 1 + mailbox as u64));
        }
        p.maybe(waiting.map(|(until, _)| until), schedule.cycle);
        p.maybe(waiting.map(|(_, sync)| sync), schedule.cycle);
        p.maybe(range.map(|(at, _)| at), schedule.cycle);
        counters.iter().for_each(|c| p.value((*c).into()));
        for receiver in [sync, orders, orders_to_all] {
            p.receiver(receiver);
        }
        p.budget(budget);
    }

    pub(super) fn handle_frame(&mut self, core: &mut Core, now: Instant, frame: &CanFrame) {
        match frame.id {
            CanId::Standard(_) => self.handle_standard(core, now, frame),
            CanId::Extended(_) => match join::decode(frame) {
                Some(Extended::Assign {
                    node,
                    uid,
                    cycle,
                    prompt,
                }) => {
                    self.handle_assign(core, now, (node, cycle), uid);
                    self.prompt = prompt;
                }
                Some(Extended::Release {
                    node,
                    uid,
                    reason,
                    prompt,
                }) => match (node, uid) {
                    (None, Some(uid)) if uid == core.uid => core.released(now, reason),
                    // Others are to leave our seat, or somebody claims it who has our id: here we are.
                    (Some(node), Some(uid)) if core.node() == Some(node) && uid == core.uid => {
                        core.heard = core.heard.max(Some(now));
                        self.prompt = prompt || self.confirm_due && self.prompt;
                        self.confirm_due = true;
                    }
                    (Some(node), uid) if core.node() == Some(node) && uid != Some(core.uid) => {
                        core.released(now, reason);
                    }
                    _ => {}
                },
                Some(Extended::ToSlave(node, pdu)) if core.node() == Some(node) => {
                    core.sender.handle_flow(now, pdu);
                    if core.receiver.handle(now, pdu) {
                        core.event(SlaveEvent::Datagram);
                    }
                }
                _ => {}
            },
        }
    }

    fn handle_standard(&mut self, core: &mut Core, now: Instant, frame: &CanFrame) {
        let decoded = match wire::decode(frame) {
            Ok(decoded) => decoded,
            Err(wire::DecodeError::Check(_)) => {
                core.stats.rejected += 1;
                return;
            }
            Err(wire::DecodeError::Foreign) => return,
        };
        let receiver = match decoded.message {
            Message::Trip => return core.event(SlaveEvent::TripSeen),
            Message::Sync(sync) => {
                if core.new_session(now, &sync) {
                    // Perhaps another master, with other counters.
                    self.sync = Receiver::Nothing;
                    self.reset();
                }
                &mut self.sync
            }
            Message::Command(Command { to: None, .. }) => &mut self.orders_to_all,
            Message::Command(Command { to, .. }) if to == core.node() => &mut self.orders,
            Message::Command(_) => return,
            // Somebody speaks as if it sat on our seat.
            _ => {
                if core.node().map(NodeId::get) == Some(decoded.id.node()) {
                    self.reset();
                    // Perhaps a device with our id, which hears us, too, and is not to meet us again.
                    let hold = core.random(now.as_nanos(), DROWNED);
                    core.leave(now, LeaveReason::DuplicateUid, hold);
                }
                return;
            }
        };
        if !matches!(
            receiver.check(decoded.counter, decoded.counter_mask),
            Verdict::Fresh { .. }
        ) {
            core.stats.rejected += 1;
            return;
        }
        match decoded.message {
            Message::Sync(sync) => {
                core.sync(now, &sync);
                self.start_cycle(core, now, &sync);
            }
            Message::Command(command) => {
                core.order(now, command.order);
                if core.node().is_none() {
                    self.reset();
                }
            }
            _ => {}
        }
    }

    fn handle_assign(
        &mut self,
        core: &mut Core,
        now: Instant,
        (node, cycle): (NodeId, u8),
        uid: Uid,
    ) {
        if uid == core.uid {
            let was = core.node();
            if !core.join(node) {
                return;
            }
            // A seat outlives the silence of the master only if it was heard; this is it.
            core.heard = core.heard.max(Some(now));
            core.seated = Some(cycle);
            if was != Some(node) {
                if core.forget_other_session(now, cycle) {
                    self.sync = Receiver::Nothing;
                }
                self.reset();
                self.orders = Receiver::Nothing;
                self.orders_to_all = Receiver::Nothing;
            }
            self.confirm_due = true;
        } else if core.node() == Some(node) {
            self.reset();
            core.leave(now, LeaveReason::Silence, Duration::ZERO);
        }
    }

    /// Nothing of the old seat is to be said any more.
    fn reset(&mut self) {
        self.waiting = None;
        self.range = None;
        self.summary_due = false;
        self.details = (0, 0);
        self.snapshot = None;
        self.pairs = (0, 0);
        self.confirm_due = false;
    }

    fn start_cycle(&mut self, core: &mut Core, now: Instant, sync: &Sync) {
        self.cycle = sync.cycle;
        let Seat::Member { trying, .. } = core.seat else {
            return;
        };
        // Nothing of ours gets through: the master cannot count us as a member for longer.
        if trying.is_some_and(|since| now.since(since) > core.schedule.master_silence) {
            self.reset();
            // Whoever drowns us out, perhaps a device with our id, is not to meet us again.
            self.drowned = self.drowned.saturating_add(1);
            let limit = DROWNED * (1 << self.drowned.saturating_sub(3).min(5));
            let hold = core.random(now.as_nanos(), limit.min(KEEP_AWAY));
            return core.leave(now, LeaveReason::Silence, hold);
        }
        self.waiting = Some((now + core.schedule.sample_grace, now));
        self.range = match sync.tag {
            Some(tag) if core.capabilities.anchors > 0 && !core.isolated => {
                Some((now + core.clock.stretch(core.schedule.ranges_phase), tag))
            }
            _ => None,
        };
    }

    /// It is our turn: the summary is due, and what details this cycle has. What is left of a snapshot
    /// goes on in the next cycle, which has none.
    fn start_turn(&mut self, core: &mut Core) {
        self.waiting = None;
        core.stats.overwritten += u64::from(self.summary_due);
        self.summary_due = true;
        let details = match core.isolated {
            true => 0..0,
            false => (core.schedule).details_in(self.cycle, core.capabilities.details()),
        };
        if core.isolated || !details.is_empty() {
            core.stats.overwritten += u64::from(self.details.1 - self.details.0);
            self.details = (details.start, details.end);
            let all = !details.is_empty() && core.schedule.is_snapshot(self.cycle);
            self.snapshot = all.then(|| newest(core));
        }
    }

    pub(super) fn handle_sample(&mut self, core: &mut Core, sampled_at: Instant) {
        if matches!(self.waiting, Some((_, sync)) if sampled_at >= sync) {
            self.start_turn(core);
        }
    }

    pub(super) fn handle_ranges(&mut self, core: &mut Core) {
        if core.node().is_none() || core.isolated || core.capabilities.anchors == 0 {
            return;
        }
        core.stats.overwritten += u64::from(self.pairs.1 - self.pairs.0.min(self.pairs.1));
        let pairs = if core.schedule.fd() {
            1
        } else {
            core.capabilities.anchors.div_ceil(2)
        };
        self.pairs = (0, pairs);
    }

    pub(super) fn handle_sent(&mut self, core: &mut Core, now: Instant, mailbox: Mailbox) {
        if self.trip_in == Some(mailbox) {
            self.trip_in = None;
            core.stats.sent += 1;
            return;
        }
        // Two devices of one id may have sent it together: nothing cyclic got through yet.
        if self.confirm_in == Some(mailbox) {
            self.confirm_in = None;
            return;
        }
        let claimed = mailbox == Mailbox::Management && core::mem::take(&mut self.claiming);
        if mailbox != Mailbox::Management || core::mem::take(&mut self.detail_out) {
            core.stats.sent += 1;
        }
        match &mut core.seat {
            Seat::Member { trying, .. } if mailbox == Mailbox::Cyclic => {
                *trying = None;
                self.drowned = 0;
            }
            Seat::Seeking { .. } if claimed => core.claimed(now),
            _ => {}
        }
    }

    pub(super) fn handle_timeout(&mut self, core: &mut Core, now: Instant) {
        if core.node().is_none() {
            if self.waiting.is_some() || self.range.is_some() || self.summary_due {
                self.reset();
            }
            return;
        }
        if matches!(self.waiting, Some((until, _)) if now >= until) {
            self.start_turn(core);
        }
        if let Some((at, tag)) = self.range
            && now >= at
        {
            self.range = None;
            core.event(SlaveEvent::RangeNow(tag));
        }
    }

    pub(super) fn poll_timeout(&self, core: &Core, now: Instant) -> Option<Instant> {
        let blocked = |due: bool, budget: &Budget| budget.next().filter(|_| due);
        let cyclic = self.summary_due || self.detail_due() || self.pairs.0 < self.pairs.1;
        let times = [
            self.waiting.map(|(until, _)| until),
            self.range.map(|(at, _)| at),
            blocked(cyclic || core.babbling, &self.budget),
            blocked(!core.alarms.is_empty() || core.babbling, &core.alarm_budget),
            blocked(core.trip, &core.trip_budget),
        ];
        earliest(times.map(|t| t.filter(|t| *t > now)))
    }

    pub(super) fn poll(
        &mut self,
        core: &mut Core,
        now: Instant,
        mailbox: Mailbox,
    ) -> Option<CanOut> {
        if self.trip_in == Some(mailbox) {
            self.trip_in = None;
        }
        if self.confirm_in == Some(mailbox) {
            self.confirm_in = None;
        }
        // Mailboxes are arbitrated by identifier, so where none is kept for it a trip goes into whichever is free:
        // behind an alarm of ours it would wait for those of all others.
        if let Some(trip) = self.poll_trip(core, now) {
            self.trip_in = Some(mailbox);
            return Some(trip);
        }
        // So does a prompt answer, but not where an alarm would wait behind it.
        if matches!(mailbox, Mailbox::Cyclic | Mailbox::Management)
            && self.confirm_due
            && self.prompt
            && let Some(node) = core.node()
        {
            self.confirm_due = false;
            self.confirm_in = Some(mailbox);
            let frame = join::confirm(node, core.uid, core.description(), true)?;
            return Some(CanOut {
                frame,
                sampled_at: None,
            });
        }
        match mailbox {
            Mailbox::Trip => None,
            Mailbox::Urgent => self.poll_urgent(core, now),
            Mailbox::Cyclic => self.poll_cyclic(core, now),
            Mailbox::Management => {
                self.detail_out = false;
                self.claiming = false;
                if let Some(frame) = self.poll_joining(core, now) {
                    return Some(CanOut {
                        frame,
                        sampled_at: None,
                    });
                }
                let node = core.node()?;
                if let Some((sampled_at, state)) = self.snapshot {
                    self.detail_out = true;
                    let message = self.next_detail(core, node, &state);
                    return self.encode(core, &message, sampled_at);
                }
                let frame = self.poll_datagram(core, now, node)?;
                Some(CanOut {
                    frame,
                    sampled_at: None,
                })
            }
        }
    }

    fn poll_trip(&mut self, core: &mut Core, now: Instant) -> Option<CanOut> {
        if !core.trip || self.trip_in.is_some() || core.quarantined() {
            return None;
        }
        if !core.trip_budget.take(now) {
            core.stats.over_budget += 1;
            return None;
        }
        core.trip = false;
        self.encode(core, &Message::Trip, None)
    }

    fn poll_urgent(&mut self, core: &mut Core, now: Instant) -> Option<CanOut> {
        let node = core.node()?;
        if core.alarms.is_empty() && !core.babbling {
            return None;
        }
        if !core.alarm_budget.take(now) {
            core.stats.over_budget += 1;
            return None;
        }
        let alarm = core.next_alarm().unwrap_or(BABBLE);
        self.encode(core, &Message::Alarm(node, alarm), None)
    }

    fn poll_cyclic(&mut self, core: &mut Core, now: Instant) -> Option<CanOut> {
        let node = core.node()?;
        let ranges_due = self.pairs.0 < self.pairs.1;
        if !(self.summary_due || self.detail_due() || ranges_due || core.babbling) {
            return None;
        }
        // A SYNC grants a cycle. Who hears nothing may have lost its seat to another, and is silent from the
        // next cycle on, whatever the core above asks for.
        if core
            .heard
            .is_none_or(|heard| now.since(heard) >= core.schedule.cycle)
        {
            return None;
        }
        if !self.budget.take(now) {
            core.stats.over_budget += 1;
            return None;
        }
        if let Seat::Member { trying, .. } = &mut core.seat {
            trying.get_or_insert(now);
        }
        let (sampled_at, state) = newest(core);
        if self.summary_due || core.babbling {
            self.summary_due = false;
            let message = if core.schedule.fd() {
                Message::State(node, state)
            } else {
                Message::Summary(node, state.summary)
            };
            return self.encode(core, &message, sampled_at);
        }
        if self.detail_due() {
            let message = self.next_detail(core, node, &state);
            return self.encode(core, &message, sampled_at);
        }
        let first = self.pairs.0 * 2;
        self.pairs.0 += 1;
        let (at, ranges) = core.ranges?;
        let message = if core.schedule.fd() {
            Message::Ranges(node, ranges)
        } else {
            Message::RangeChunk {
                node,
                tag: ranges.tag,
                first,
                range: chunk(&ranges.range, first),
            }
        };
        self.encode(core, &message, Some(at))
    }

    /// Whether there is a detail that goes with the summaries.
    fn detail_due(&self) -> bool {
        self.snapshot.is_none() && self.details.0 < self.details.1
    }

    /// The detail whose turn it is; those of cells and sensors that are not there do not exist.
    fn next_detail(&mut self, core: &Core, node: NodeId, state: &State) -> Message {
        let fours = core.capabilities.fours();
        let this = self.details.0;
        self.details.0 += 1;
        if self.details.0 >= self.details.1 {
            self.snapshot = None;
        }
        if this < fours {
            let first = this * 4;
            let [temp] = chunk(&state.temps.0, this);
            Message::CellChunk {
                node,
                first,
                cells: chunk(&state.cells.0, first),
                temp,
            }
        } else {
            let first = fours + (this - fours) * 6;
            Message::TempChunk {
                node,
                first,
                temps: chunk(&state.temps.0, first),
            }
        }
    }

    fn poll_joining(&mut self, core: &mut Core, now: Instant) -> Option<CanFrame> {
        let Some(node) = core.node() else {
            // A claim that is polled for again was given up by the controller (bus off).
            let due = core.claim_at(now);
            let due = due.is_some_and(|at| now >= at || at == Instant::MAX);
            self.claiming = due;
            let uid = core.uid;
            return due.then(|| join::claim(uid, core.claim())).flatten();
        };
        core::mem::take(&mut self.confirm_due)
            .then(|| join::confirm(node, core.uid, core.description(), false))
            .flatten()
    }

    fn poll_datagram(&mut self, core: &mut Core, now: Instant, node: NodeId) -> Option<CanFrame> {
        if core.schedule.is_reserved(self.cycle) {
            return None;
        }
        let fd = core.schedule.fd();
        let pdu: Pdu = match core.receiver.poll() {
            Some(flow) => flow,
            None => core.sender.poll(now, fd)?,
        };
        CanFrame::new(join::management_id(node, true), fd, &pdu)
    }

    fn encode(
        &mut self,
        core: &Core,
        message: &Message,
        sampled_at: Option<Instant>,
    ) -> Option<CanOut> {
        let class = wire::data_id(message).class();
        let counter = self.counters.get_mut(usize::from(class))?;
        *counter = counter.wrapping_add(1);
        let mask = if class >= class::STATE { 0xff } else { 0xf };
        let frame = wire::encode(message, *counter & mask, core.schedule.fd())?;
        Some(CanOut { frame, sampled_at })
    }
}

/// What a babbling core asks to be sent.
const BABBLE: Alarm = Alarm {
    code: 0,
    severity: Severity::Warn,
    active: true,
    index: 0,
    value: 0,
};

/// The newest measurement.
fn newest(core: &Core) -> (Option<Instant>, State) {
    match &core.state {
        Some((at, state)) => (Some(*at), *state),
        None => (None, State::EMPTY),
    }
}

/// `N` values from `first` on; past the end there are none.
fn chunk<T: Copy, const N: usize>(values: &[Option<T>], first: u8) -> [Option<T>; N] {
    let mut out = [None; N];
    for (to, from) in out.iter_mut().zip(values.iter().skip(first.into())) {
        *to = *from;
    }
    out
}
