//! The master's end of the bus: the beat, the seats, and what comes in.
//!
//! Every cycle starts with SYNC. Everything that slaves say goes through the seats' end-to-end
//! check and rate check to [`MasterLink::poll_event`]. The medium's own part is in `can` and
//! `serial`; who sits where is decided in `seats`.

mod can;
mod serial;

use crate::analysis::{Admission, Census};
use crate::e2e::DataId;
use crate::message::*;
use crate::seats::{Device, Heard, Seats};
use crate::segment::{Receiver as DatagramReceiver, Sender as DatagramSender};
use crate::slave::earliest;
use crate::{Busy, Schedule};
use heapless::{Deque, Vec};
use helio_units::{Duration, Instant, NodeId, TagId, Uid};

/// What the master's link has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasterStats {
    /// Messages delivered.
    pub received: u64,
    /// Messages found missing by their counters.
    pub lost: u64,
    /// Messages that failed their end-to-end check.
    pub rejected: u64,
    /// SYNCs whose successor came before they were sent.
    pub overwritten: u64,
    /// Events dropped because nobody polled.
    pub events_dropped: u64,
}

impl MasterStats {
    const NONE: Self = Self {
        received: 0,
        lost: 0,
        rejected: 0,
        overwritten: 0,
        events_dropped: 0,
    };
}

/// Datagrams that can be under way at once in each direction.
const SESSIONS: usize = 2;

/// Refused devices that are remembered, so that what each is refused for is said once.
const REFUSED: usize = 16;

/// Orders at once on CAN; then one per eighth of a cycle.
pub(crate) const ORDER_BURST: u16 = 2;

/// Prompt assignments at once on CAN, and in each cycle.
pub(crate) const fn prompt_burst(kind: BusKind) -> u16 {
    match kind {
        // There the cycle is short, and these frames are classic ones.
        BusKind::CanFd => 1,
        _ => 2,
    }
}

/// News that can wait to be polled: more than one call brings. Members' news wait in the table.
const EVENTS: usize = 16;

/// The master's end of the bus, with room for `SEATS` slaves: `size_of` grows by some 150 octets for each.
/// Where the schedule has more seats, those above stay empty.
#[cfg_attr(feature = "model", derive(Clone))]
pub struct MasterLink<const SEATS: usize = 127> {
    core: Core<SEATS>,
    medium: Medium<SEATS>,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one, and no heap to box it"
)]
#[cfg_attr(feature = "model", derive(Clone))]
enum Medium<const SEATS: usize> {
    Can(can::Can<SEATS>),
    Serial(serial::Serial<SEATS>),
}

#[cfg_attr(feature = "model", derive(Clone))]
struct Core<const SEATS: usize> {
    schedule: Schedule,
    seats: Seats<SEATS>,
    admission: Admission,
    /// Devices that were refused and that it was said of, the newest last.
    refused: Vec<Uid, REFUSED>,
    tags: Vec<TagId, 64>,
    next_tag: usize,
    /// Number of the cycle under way.
    cycle: u8,
    /// Start of the next cycle; `None` before the first call.
    cycle_at: Option<Instant>,
    now: Option<Instant>,
    commands: Deque<Command, 64>,
    senders: [(Option<NodeId>, DatagramSender); SESSIONS],
    receivers: [(Option<NodeId>, DatagramReceiver); SESSIONS],
    events: Deque<MasterEvent, EVENTS>,
    stats: MasterStats,
    /// A trip is to be said here, and when it may be at the earliest.
    trip: bool,
    trip_from: Instant,
}

impl<const SEATS: usize> MasterLink<SEATS> {
    /// A link without members; it sends its first SYNC at once.
    pub fn new(schedule: Schedule) -> Self {
        let mut link = Self::vacant();
        link.start(schedule);
        link
    }

    /// To be started by [`Self::start`]. All zeros, so that as a static it takes no flash.
    pub const fn vacant() -> Self {
        Self {
            medium: Medium::Serial(serial::Serial::vacant()),
            core: Core {
                schedule: Schedule::NONE,
                seats: Seats::vacant(),
                admission: Admission::NONE,
                refused: Vec::new(),
                tags: Vec::new(),
                next_tag: 0,
                cycle: 0,
                cycle_at: None,
                now: None,
                commands: Deque::new(),
                senders: [const { (None, DatagramSender::new()) }; SESSIONS],
                receivers: [const { (None, DatagramReceiver::new()) }; SESSIONS],
                events: Deque::new(),
                stats: MasterStats::NONE,
                trip: false,
                trip_from: Instant::ZERO,
            },
        }
    }

    /// Makes of a [`Self::vacant`] link, in place, what [`Self::new`] gives.
    pub fn start(&mut self, schedule: Schedule) {
        self.start_with(schedule, SEATS);
    }

    /// The same with room for fewer slaves.
    pub(crate) fn start_with(&mut self, schedule: Schedule, room: usize) {
        let schedule = Schedule {
            seats: schedule.seats.clamp(1, NodeId::MAX.get()),
            ..schedule
        };
        self.core.schedule = schedule;
        self.core.seats.start(room);
        self.core.admission = Admission::new(&schedule);
        self.medium = if schedule.can() {
            Medium::Can(can::Can::new(&schedule))
        } else {
            Medium::Serial(serial::Serial::new(&schedule))
        };
    }

    /// A frame came; `now` is its end.
    // What it takes of the stack is given back before the core above looks at what came of it.
    #[inline(never)]
    pub fn handle_can(&mut self, now: Instant, frame: &CanFrame) {
        self.handle_timeout(now);
        if let Medium::Can(can) = &mut self.medium {
            can.handle_frame(&mut self.core, now, frame);
        }
    }

    /// The frame in this mailbox is on the wire, completely and acknowledged.
    pub fn handle_sent(&mut self, now: Instant, mailbox: Mailbox) {
        self.handle_timeout(now);
        if let Medium::Can(can) = &mut self.medium {
            can.handle_sent(&mut self.core, now, mailbox);
        }
    }

    /// Bytes came over RS485; `now` is the end of the last one's stop bit.
    // As above.
    #[inline(never)]
    pub fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {
        self.handle_timeout(now);
        if let Medium::Serial(serial) = &mut self.medium {
            serial.handle_bytes(&mut self.core, now, bytes);
        }
    }

    /// The line was held at the start-bit level for longer than a character.
    // As above.
    #[inline(never)]
    pub fn handle_break(&mut self, now: Instant) {
        self.handle_timeout(now);
        if let Medium::Serial(serial) = &mut self.medium {
            serial.handle_break(&mut self.core, now);
        }
    }

    /// Early and repeated calls are harmless.
    // As above.
    #[inline(never)]
    pub fn handle_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
        if let Medium::Serial(serial) = &mut self.medium {
            serial.handle_timeout(&mut self.core, now);
        }
        let at = *self.core.cycle_at.get_or_insert(now);
        if now >= at {
            self.core.start_cycle(now, at);
            match &mut self.medium {
                Medium::Can(can) => can.start_cycle(&mut self.core),
                Medium::Serial(serial) => serial.start_cycle(&mut self.core),
            }
        }
    }

    /// Before the first call for time: the cycles are counted from this number on. Best is one that
    /// differs from start to start, so that slaves tell by the next SYNC that the master restarted even
    /// if it did so at once.
    pub fn set_session(&mut self, number: u8) {
        self.core.cycle = number;
    }

    /// Keeps a free seat for a device, as if it had sat there before: the roster of a commissioned
    /// plant, in which a seat is a place on the wall. Another device of the same kind may still
    /// replace it.
    pub fn reserve(&mut self, node: NodeId, uid: Uid, capabilities: Capabilities) {
        self.core.seats.reserve(node, Device { uid, capabilities });
    }

    /// The tags to range, in turn, one per cycle; at most 64.
    pub fn set_tags(&mut self, tags: &[TagId]) {
        self.core.tags.clear();
        self.core.tags.extend(tags.iter().copied().take(64));
        self.core.seats.ranging = !tags.is_empty();
    }

    /// Says on this bus that some slave tripped, as the slaves do: what a master passes on from another bus.
    /// At most once a cycle; of more that come meanwhile one is said after it.
    pub fn trip(&mut self, now: Instant) {
        self.handle_timeout(now);
        self.core.trip = true;
    }

    /// Queues an order. Orders are paced so that cyclic data keeps its bounds.
    pub fn command(&mut self, command: Command) -> Result<(), Busy> {
        self.core.commands.push_back(command).map_err(|_| Busy)
    }

    /// Whether one order more can be queued.
    pub(crate) fn has_room(&self) -> bool {
        !self.core.commands.is_full()
    }

    /// Silences a member for a while; afterwards it joins anew and gets its seat back.
    /// The link does so by itself with a member that exceeds its rate.
    pub fn quarantine(&mut self, now: Instant, node: NodeId, for_: Duration) {
        self.handle_timeout(now);
        self.core.quarantine(now, node, Some(for_));
    }

    /// Takes a member's seat back; the device keeps away for a second.
    pub fn remove(&mut self, now: Instant, node: NodeId) {
        self.handle_timeout(now);
        if let Some(event) = self.core.remove(now, node) {
            self.core.event(event);
        }
    }

    /// The same without news of it: the core above was not told that it had joined.
    pub(crate) fn turn_out(&mut self, node: NodeId) {
        let core = &mut self.core;
        let _ = core.remove(core.now.unwrap_or_default(), node);
        // Nor of what it said since.
        for _ in 0..core.events.len() {
            if let Some(mut event) = core.events.pop_front()
                && event.node_mut().is_none_or(|its| *its != node)
            {
                let _ = core.events.push_back(event);
            }
        }
    }

    /// Sends up to 2048 bytes to a member.
    pub fn send_datagram(&mut self, node: NodeId, datagram: &[u8]) -> Result<(), Busy> {
        if self.core.seats.member(node).is_none() {
            return Err(Busy);
        }
        let busy = |(of, s): &(Option<NodeId>, DatagramSender)| *of == Some(node) && !s.is_idle();
        if self.core.senders.iter().any(busy) {
            return Err(Busy);
        }
        let free = self.core.senders.iter_mut().find(|(_, s)| s.is_idle());
        let (of, sender) = free.ok_or(Busy)?;
        sender.load(self.core.now.unwrap_or_default(), datagram)?;
        *of = Some(node);
        Ok(())
    }

    /// A datagram announced by [`MasterEvent::Datagram`], handed over once.
    pub fn datagram(&mut self) -> Option<(NodeId, &[u8])> {
        let receivers = self.core.receivers.iter_mut();
        receivers
            .filter_map(|(of, r)| Some((*of)?).zip(r.take()))
            .next()
    }

    /// The next frame for a mailbox, which must be free. A frame given out before and neither
    /// confirmed nor refused is taken as given up.
    pub fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        self.handle_timeout(now);
        let Medium::Can(can) = &mut self.medium else {
            return None;
        };
        let frame = can.poll(&mut self.core, now, mailbox)?;
        Some(CanOut {
            frame,
            sampled_at: None,
        })
    }

    /// What to put on the RS485 line; ask until there is nothing.
    pub fn poll_serial(&mut self, now: Instant) -> Option<SerialOut> {
        self.handle_timeout(now);
        match &mut self.medium {
            Medium::Can(_) => None,
            Medium::Serial(serial) => serial.poll(&mut self.core, now),
        }
    }

    /// News for the core above; ask until there are none.
    pub fn poll_event(&mut self) -> Option<MasterEvent> {
        if self.core.events.is_empty()
            && let Some(now) = self.core.now
        {
            self.core.scan(now);
        }
        self.core.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and then the polls, next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let core = &self.core;
        let Some(now) = core.now else {
            return Some(Instant::ZERO);
        };
        let later = |t: Option<Instant>| t.filter(|t| *t > now);
        earliest([
            later(core.cycle_at),
            later(Some(core.seats.scan_at()).filter(|t| *t < Instant::MAX)),
            later(core.sessions_timeout()),
            later(core.trip.then_some(core.trip_from)),
            later(match &self.medium {
                Medium::Can(can) => can.poll_timeout(core),
                Medium::Serial(serial) => serial.poll_timeout(core),
            }),
        ])
    }

    /// Who sits there, once confirmed.
    pub fn member(&self, node: NodeId) -> Option<(Uid, Capabilities)> {
        let device = self.core.seats.member(node)?;
        Some((device.uid, device.capabilities))
    }

    /// Counters since the start.
    pub fn stats(&self) -> MasterStats {
        self.core.stats
    }

    /// Sets message counters back: the next message of each kind is believed.
    #[cfg(feature = "model")]
    pub fn forget(&mut self) {
        self.core.cycle = 0;
        self.core.seats.cycle = 0;
        self.core.next_tag = 0;
        self.core.stats = MasterStats::default();
        self.core.seats.forget();
        if let Medium::Can(can) = &mut self.medium {
            can.forget();
        }
    }

    /// What decides about membership on CAN, between two messages to and from it.
    #[cfg(feature = "model")]
    pub fn print(&self, p: &mut crate::model::Print) {
        let Core {
            schedule,
            seats,
            admission: _,
            refused: _,
            tags,
            next_tag: _,
            cycle,
            cycle_at,
            now: _,
            commands,
            senders: _,
            receivers: _,
            events,
            stats: _,
            trip,
            trip_from: _,
        } = &self.core;
        seats.print(p, schedule);
        p.maybe(*cycle_at, schedule.cycle);
        p.value((*cycle).into());
        p.value((tags.len() + commands.len() + events.len()) as u64 + u64::from(*trip));
        if let Medium::Can(can) = &self.medium {
            can.print(p);
        }
    }

    /// The newest time that it was told.
    pub(crate) fn now(&self) -> Option<Instant> {
        self.core.now
    }

    /// Seats that there are on this bus, for which there is room.
    pub(crate) fn seats(&self) -> usize {
        self.core.seats.len().min(self.core.schedule.seats.into())
    }

    /// The timing in use.
    pub fn schedule(&self) -> &Schedule {
        &self.core.schedule
    }
}

impl<const SEATS: usize> Core<SEATS> {
    /// Who has, or will have, its share of the bus.
    fn census(&self) -> Census {
        let nodes = (1..=self.schedule.seats).filter_map(NodeId::new);
        let there = nodes.filter_map(|node| self.seats.slots_of(node));
        there.fold(Census::default(), Census::with)
    }

    /// Whether there is room for one device more, beside those counted; if not, that is said.
    fn admits(&mut self, census: Census, uid: Uid, capabilities: Capabilities) -> bool {
        let census = census.with(capabilities);
        let Err(breaks) = self.admission.judge(&self.schedule, census) else {
            return true;
        };
        if !self.refused.contains(&uid) {
            if self.refused.is_full() {
                self.refused.remove(0);
            }
            let _ = self.refused.push(uid);
            self.event(MasterEvent::Refused {
                uid,
                capabilities,
                breaks,
            });
        }
        false
    }

    fn event(&mut self, event: MasterEvent) {
        if let MasterEvent::Joined { uid, .. } = event {
            self.refused.retain(|known| *known != uid);
        }
        if self.events.push_back(event).is_err() {
            self.stats.events_dropped += 1;
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(Some(now));
        self.scan(now);
        for (_, sender) in &mut self.senders {
            sender.handle_timeout(now);
        }
        for (_, receiver) in &mut self.receivers {
            receiver.handle_timeout(now);
        }
    }

    /// What time has decided of members. News of that are never dropped: they wait in the table for room
    /// in the queue.
    fn scan(&mut self, now: Instant) {
        while self.events.len() < self.events.capacity() / 2
            && let Some(event) = self.seats.scan(now, &self.schedule)
        {
            if let MasterEvent::Left { node, .. } = event {
                self.left(node);
            }
            self.event(event);
        }
    }

    fn start_cycle(&mut self, now: Instant, at: Instant) {
        let next = at + self.schedule.cycle;
        self.cycle_at = Some(if next > now {
            next
        } else {
            now + self.schedule.cycle
        });
        self.cycle = self.cycle.wrapping_add(1);
        self.seats.cycle = self.cycle;
        if !self.schedule.is_snapshot(self.cycle) {
            self.next_tag = self.next_tag.wrapping_add(1);
        }
    }

    /// The tag of this cycle. In a snapshot there is no room for ranges.
    fn tag(&self) -> Option<TagId> {
        if self.schedule.is_snapshot(self.cycle) {
            return None;
        }
        let turn = self.next_tag.checked_rem(self.tags.len())?;
        self.tags.get(turn).copied()
    }

    fn quarantine(&mut self, now: Instant, node: NodeId, for_: Option<Duration>) {
        if let Some(event) = self.seats.quarantine(now, &self.schedule, node, for_) {
            self.left(node);
            self.event(event);
        }
    }

    fn remove(&mut self, now: Instant, node: NodeId) -> Option<MasterEvent> {
        let event = self.seats.remove(now, node)?;
        self.left(node);
        Some(event)
    }

    /// Takes the trip that is to be said, if it may be now.
    fn take_trip(&mut self, now: Instant) -> bool {
        let take = self.trip && now >= self.trip_from;
        if take {
            self.trip = false;
            self.trip_from = now + self.schedule.cycle;
        }
        take
    }

    /// Nothing is owed any more to who sat there.
    fn left(&mut self, node: NodeId) {
        for (of, sender) in &mut self.senders {
            if *of == Some(node) {
                sender.abort();
            }
        }
        for (of, receiver) in &mut self.receivers {
            if *of == Some(node) {
                receiver.abort();
            }
        }
    }

    /// A slave's message whose check is good. When it is delivered: how many are missing before it.
    fn receive(
        &mut self,
        now: Instant,
        id: DataId,
        counter: (u8, u8),
        message: Message,
    ) -> Option<u8> {
        let node = NodeId::new(id.node())?;
        let seats = &mut self.seats;
        match seats.hear(now, &self.schedule, node, id.class(), counter) {
            Heard::Fresh(lost) => {
                if lost > 0 {
                    self.stats.lost += u64::from(lost);
                    self.event(MasterEvent::Rejected {
                        node,
                        fault: E2eFault::Lost(lost),
                    });
                }
                self.stats.received += 1;
                self.event(MasterEvent::Message(message));
                return Some(lost);
            }
            Heard::Fault(fault) => self.reject(node, fault),
            Heard::Babble => self.quarantine(now, node, None),
            Heard::Stranger => {}
        }
        None
    }

    /// A message that failed its check, from a seat that has a member.
    fn reject(&mut self, node: NodeId, fault: E2eFault) {
        if self.seats.member(node).is_some() {
            self.stats.rejected += 1;
            self.event(MasterEvent::Rejected { node, fault });
        }
    }

    /// Whether any datagram is under way, or one that came waits to be read.
    fn has_datagrams(&self) -> bool {
        self.senders.iter().any(|(_, s)| !s.is_idle())
            || self.receivers.iter().any(|(_, r)| !r.is_idle())
    }

    fn has_datagram_of(&self, node: NodeId) -> bool {
        let mut senders = self.senders.iter();
        let mut receivers = self.receivers.iter();
        senders.any(|(of, s)| *of == Some(node) && !s.is_idle())
            || receivers.any(|(of, r)| *of == Some(node) && !r.is_idle())
    }

    fn sessions_timeout(&self) -> Option<Instant> {
        let senders = self.senders.iter().filter_map(|(_, s)| s.poll_timeout());
        let receivers = self.receivers.iter().filter_map(|(_, r)| r.poll_timeout());
        senders.chain(receivers).min()
    }
}

/// Counters of orders, by receiver.
#[cfg_attr(feature = "model", derive(Clone))]
struct OrderCounters<const SEATS: usize> {
    to_all: u8,
    to_one: [u8; SEATS],
}

impl<const SEATS: usize> OrderCounters<SEATS> {
    const fn new() -> Self {
        Self {
            to_all: 0,
            to_one: [0; SEATS],
        }
    }

    fn next(&mut self, to: Option<NodeId>) -> u8 {
        let counter = match to {
            None => Some(&mut self.to_all),
            Some(node) => self.to_one.get_mut(node.index()),
        };
        // Nobody sits where there is no counter.
        counter.map_or(0, |counter| {
            *counter = counter.wrapping_add(1);
            *counter
        })
    }

    #[cfg(feature = "model")]
    fn iter(&self) -> impl Iterator<Item = u8> {
        core::iter::once(self.to_all).chain(self.to_one)
    }
}

/// The receiver that a slave's datagram is in, or a free one.
fn receiver(
    receivers: &mut [(Option<NodeId>, DatagramReceiver); SESSIONS],
    node: NodeId,
) -> Option<&mut (Option<NodeId>, DatagramReceiver)> {
    let index = receivers
        .iter()
        .position(|(of, r)| *of == Some(node) && !r.is_idle())
        .or_else(|| receivers.iter().position(|(_, r)| r.is_idle()))?;
    receivers.get_mut(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::println;

    #[test]
    fn a_master_pays_only_for_its_own_seats() {
        let (of_8, of_32) = (size_of::<MasterLink<8>>(), size_of::<MasterLink<32>>());
        let of_127 = size_of::<MasterLink>();
        println!("octets with 8 seats: {of_8}, 32: {of_32}, 127: {of_127}");
        // Four datagrams at once and 16 events are most of what is left.
        assert!(of_32 < 20_000);
        assert!(of_127 < of_32 + 95 * 160 && of_32 < of_8 + 24 * 160);
    }

    #[test]
    fn a_schedule_with_more_seats_than_the_table_fills_the_table_and_no_more() {
        let schedule = Schedule::for_bus(BusKind::Can1M);
        let mut link = MasterLink::<2>::new(schedule);
        let now = Instant::ZERO;
        for raw in 1..=3 {
            let claim = crate::join::claim(Uid::new(raw).expect("not 0"), 0).expect("a frame");
            link.handle_can(now, &claim);
        }
        let mut answers = std::vec![];
        for mailbox in [Mailbox::Cyclic, Mailbox::Management] {
            while let Some(out) = link.poll_can(now, mailbox) {
                answers.push(match crate::join::decode(&out.frame) {
                    Some(crate::join::Extended::Assign { node, .. }) => Ok(node.get()),
                    Some(crate::join::Extended::Release { reason, .. }) => Err(reason),
                    other => panic!("{other:?}"),
                });
            }
        }
        assert_eq!(answers, [Ok(1), Ok(2), Err(LeaveReason::Full)]);
    }
}
