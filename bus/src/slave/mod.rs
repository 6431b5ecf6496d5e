//! One slave's end of the bus: seat, what there is to say, and when.
//!
//! The shell feeds frames, confirmations and time, and asks for a frame whenever a mailbox (or
//! on RS485 the line) is free; the core above sets the newest values, which are encoded at that
//! last moment. The medium's own part is in `can` and `serial`.
//!
//! ```text
//!            claim, assigned
//! Seeking --------------------> Member
//!    ^  ^                         |  |
//!    |  '--- master silent, ------'  | quarantine, duplicate, no seat, told to go
//!    |       seat given away         v
//!    '------------------------- Held until
//! ```
//!
//! Only a member speaks cyclically; a trip goes out from everywhere, in quarantine when it is over.

mod can;
mod serial;

use crate::budget::Budget;
use crate::join::{self, Description, PROTOCOL_VERSION};
use crate::message::*;
use crate::schedule::part;
pub(crate) use serial::{RANGING, signal};

use crate::segment::{Receiver as DatagramReceiver, Sender as DatagramSender};
use crate::superframe::Timing;
use crate::{Busy, Schedule};
use heapless::{Deque, Vec};
use helio_units::{Duration, Instant, NodeId, Uid};

/// What a slave's link has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlaveStats {
    /// Cyclic and urgent frames sent (on CAN: confirmed by the controller).
    pub sent: u64,
    /// Cyclic messages whose next turn came before they were sent.
    pub overwritten: u64,
    /// Times that the transmit budget held a message back.
    pub over_budget: u64,
    /// Received messages that failed their end-to-end check.
    pub rejected: u64,
    /// Alarms dropped because the queue was full.
    pub alarms_dropped: u64,
}

/// One slave's end of the bus.
#[cfg_attr(feature = "model", derive(Clone))]
pub struct SlaveLink {
    core: Core,
    medium: Medium,
}

#[allow(
    clippy::large_enum_variant,
    reason = "there is one, and no heap to box it"
)]
#[cfg_attr(feature = "model", derive(Clone))]
enum Medium {
    Can(can::Can),
    Serial(serial::Serial),
}

/// What the link is, independent of the medium.
#[cfg_attr(feature = "model", derive(Clone))]
struct Core {
    schedule: Schedule,
    uid: Uid,
    capabilities: Capabilities,
    seat: Seat,
    /// The latest time we were told.
    now: Option<Instant>,
    /// End of the last SYNC.
    heard: Option<Instant>,
    /// CAN: number of the cycle in which the master gave us our seat.
    seated: Option<u8>,
    clock: MasterClock,
    state: Option<(Instant, State)>,
    ranges: Option<(Instant, Ranges)>,
    trip: bool,
    trip_budget: Budget,
    alarms: Vec<Alarm, 16>,
    alarm_budget: Budget,
    /// Told to say nothing but summaries.
    isolated: bool,
    /// Found the bus full since it last had a seat at a SYNC.
    refused: bool,
    babbling: bool,
    sender: DatagramSender,
    receiver: DatagramReceiver,
    events: Deque<SlaveEvent, 16>,
    stats: SlaveStats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// Wants a seat.
    Seeking {
        /// Not before.
        claim_at: Instant,
        /// Claims sent since the seat was lost. The first needs no master, so that a cold
        /// rack does not wait for the first SYNC.
        attempt: u32,
        /// A claim went out, so an assignment may be the answer and not meant for a twin.
        asked: bool,
    },
    Member {
        node: NodeId,
        /// Since when a cyclic frame of ours tries to get through.
        trying: Option<Instant>,
    },
    /// Says nothing until then, but that it trips, unless it is in quarantine.
    Held { until: Instant, quarantine: bool },
}

/// What a link is called that has not been started.
const NOBODY: Uid = Uid::new(1).expect("1 is not 0");

/// A master that is there answers a claim within this.
const ANSWER: Duration = Duration::from_millis(2);
/// How long a slave keeps away that was refused a seat or told to go.
const KEEP_AWAY: Duration = Duration::from_millis(1_000);
/// On CAN who finds the bus full asks once more when whoever was there before it must be given up, hundredths of a slave's
/// silence. (On RS485 the few places to join are for those who have not asked yet.)
const FULL: u64 = 110;

impl SlaveLink {
    /// A link without a seat; it starts to claim one at once.
    pub fn new(schedule: Schedule, uid: Uid, capabilities: Capabilities) -> Self {
        let mut link = Self::vacant();
        link.start(schedule, uid, capabilities);
        link
    }

    /// Makes of a [`Self::vacant`] link what [`Self::new`] gives, in place: where there is no room
    /// for a second one on the stack.
    pub fn start(&mut self, schedule: Schedule, uid: Uid, capabilities: Capabilities) {
        let capabilities = Capabilities {
            cells: capabilities.cells.min(MAX_CELLS as u8),
            temps: capabilities.temps.min(MAX_TEMPS as u8),
            anchors: capabilities.anchors.min(MAX_ANCHORS as u8),
        };
        let quarter = Duration::from_nanos(schedule.cycle.as_nanos() / 4);
        self.medium = if schedule.can() {
            Medium::Can(can::Can::new(&schedule, capabilities))
        } else {
            Medium::Serial(serial::Serial::new(Timing::of(&schedule)))
        };
        let core = &mut self.core;
        core.schedule = schedule;
        core.uid = uid;
        core.capabilities = capabilities;
        core.trip_budget = Budget::new(4, schedule.cycle);
        core.alarm_budget = Budget::new(ALARM_BURST, quarter);
    }

    /// On no bus and of no device, until [`Self::start`].
    pub const fn vacant() -> Self {
        Self {
            medium: Medium::Serial(serial::Serial::new(Timing::NONE)),
            core: Core {
                schedule: Schedule::NONE,
                uid: NOBODY,
                capabilities: Capabilities {
                    cells: 0,
                    temps: 0,
                    anchors: 0,
                },
                seat: Seat::Seeking {
                    claim_at: Instant::ZERO,
                    attempt: 0,
                    asked: false,
                },
                now: None,
                heard: None,
                seated: None,
                clock: MasterClock::new(),
                state: None,
                ranges: None,
                trip: false,
                trip_budget: Budget::new(0, Duration::ZERO),
                alarms: Vec::new(),
                alarm_budget: Budget::new(0, Duration::ZERO),
                isolated: false,
                refused: false,
                babbling: false,
                sender: DatagramSender::new(),
                receiver: DatagramReceiver::new(),
                events: Deque::new(),
                stats: SlaveStats {
                    sent: 0,
                    overwritten: 0,
                    over_budget: 0,
                    rejected: 0,
                    alarms_dropped: 0,
                },
            },
        }
    }

    /// A frame that passed [`crate::slave_accepts`] came; `now` is its end.
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
    pub fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {
        self.handle_timeout(now);
        if let Medium::Serial(serial) = &mut self.medium {
            serial.handle_bytes(&mut self.core, now, bytes);
        }
    }

    /// The line was held at the start-bit level for longer than a character.
    pub fn handle_break(&mut self, now: Instant) {
        self.handle_timeout(now);
        if let Medium::Serial(serial) = &mut self.medium {
            serial.handle_break(&mut self.core, now);
        }
    }

    /// Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.core.handle_timeout(now);
        match &mut self.medium {
            Medium::Can(can) => can.handle_timeout(&mut self.core, now),
            Medium::Serial(serial) => serial.handle_timeout(&mut self.core, now),
        }
    }

    /// The newest measurement; sent at its next turn.
    pub fn set_state(&mut self, sampled_at: Instant, state: &State) {
        self.core.state = Some((sampled_at, *state));
        if let Medium::Can(can) = &mut self.medium {
            can.handle_sample(&mut self.core, sampled_at);
        }
    }

    /// The ranges that [`SlaveEvent::RangeNow`] asked for.
    pub fn set_ranges(&mut self, sampled_at: Instant, ranges: &Ranges) {
        self.core.ranges = Some((sampled_at, *ranges));
        if let Medium::Can(can) = &mut self.medium {
            can.handle_ranges(&mut self.core);
        }
    }

    /// This slave has opened its gate: tell everybody.
    pub fn trip(&mut self, now: Instant) {
        self.handle_timeout(now);
        self.core.trip = true;
        self.core.event(SlaveEvent::TripSeen);
    }

    /// Queues an alarm. The most severe goes first, among equals the oldest; when the queue is
    /// full the least severe is dropped.
    pub fn alarm(&mut self, now: Instant, alarm: Alarm) {
        self.handle_timeout(now);
        self.core.alarm(alarm);
    }

    /// Sends up to 2048 bytes to the master.
    pub fn send_datagram(&mut self, datagram: &[u8]) -> Result<(), Busy> {
        match self.core.seat {
            Seat::Member { .. } => {
                let now = self.core.now.unwrap_or_default();
                self.core.sender.load(now, datagram)
            }
            Seat::Seeking { .. } | Seat::Held { .. } => Err(Busy),
        }
    }

    /// The datagram announced by [`SlaveEvent::Datagram`], handed over once.
    pub fn datagram(&mut self) -> Option<&[u8]> {
        self.core.receiver.take()
    }

    /// The next frame for a mailbox, which must be free. A frame given out before and neither
    /// confirmed nor refused is taken as given up.
    pub fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        self.handle_timeout(now);
        match &mut self.medium {
            Medium::Can(can) => can.poll(&mut self.core, now, mailbox),
            Medium::Serial(_) => None,
        }
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
    pub fn poll_event(&mut self) -> Option<SlaveEvent> {
        self.core.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`], and then the polls, next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let Some(now) = self.core.now else {
            return Some(Instant::ZERO);
        };
        earliest([
            self.core.poll_timeout(now),
            match &self.medium {
                Medium::Can(can) => can.poll_timeout(&self.core, now),
                Medium::Serial(serial) => serial.poll_timeout(&self.core, now),
            },
        ])
    }

    /// The seat, while there is one.
    pub fn node(&self) -> Option<NodeId> {
        self.core.node()
    }

    /// Fault injection: the core above asks for summaries and alarms as fast as mailboxes drain.
    /// What the transmit budget lets through goes out.
    pub fn babble(&mut self, on: bool) {
        self.core.babbling = on;
    }

    /// The master's clock at `now`, known from the second SYNC on, within 2 µs on CAN at 1 Mbit/s.
    /// The wire carries it modulo 2^28 µs (268 s): the absolute value is continuous from the
    /// first SYNC heard, and equal to the master's if that was within its first 268 s.
    pub fn master_time(&self, now: Instant) -> Option<Instant> {
        self.core.clock.at(now)
    }

    /// Counters since the start.
    pub fn stats(&self) -> SlaveStats {
        self.core.stats
    }

    /// Sets message counters back: the next message of each kind is believed.
    #[cfg(feature = "model")]
    pub fn forget(&mut self) {
        self.core.clock = MasterClock::default();
        self.core.seated = None;
        self.core.stats = SlaveStats::default();
        if let Medium::Can(can) = &mut self.medium {
            can.forget();
        }
    }

    /// What decides about membership on CAN, between two messages to and from it.
    #[cfg(feature = "model")]
    pub fn print(&self, p: &mut crate::model::Print) {
        let Core {
            schedule,
            uid,
            capabilities: _,
            seat,
            now: _,
            heard,
            seated,
            clock: _,
            state,
            ranges: _,
            trip,
            trip_budget,
            alarms,
            alarm_budget,
            isolated,
            refused,
            babbling,
            sender: _,
            receiver: _,
            events,
            stats: _,
        } = &self.core;
        p.value(uid.get());
        match *seat {
            Seat::Seeking {
                claim_at,
                attempt,
                asked,
            } => {
                p.value(0);
                p.time(claim_at, Duration::ZERO);
                p.value(u64::from(attempt) << 1 | u64::from(asked));
            }
            Seat::Member { node, trying } => {
                p.value(1);
                p.value(node.get().into());
                p.maybe(trying, schedule.silence * 2);
            }
            Seat::Held { until, quarantine } => {
                p.value(2 | u64::from(quarantine) << 2);
                p.time(until, Duration::ZERO);
            }
        }
        p.maybe(*heard, schedule.master_silence);
        p.value(seated.map_or(0, |cycle| 1 + u64::from(cycle)));
        p.value(state.is_some().into());
        let flags = [trip, isolated, babbling, refused].map(|f| u64::from(*f));
        p.value(flags[0] | flags[1] << 1 | flags[2] << 2 | flags[3] << 3);
        p.budget(trip_budget);
        p.value(alarms.len() as u64);
        p.budget(alarm_budget);
        p.value(events.len() as u64);
        if let Medium::Can(can) = &self.medium {
            can.print(p, schedule);
        }
    }

    /// What this slave says it can do.
    pub fn capabilities(&self) -> Capabilities {
        self.core.capabilities
    }

    /// The timing in use.
    pub fn schedule(&self) -> &Schedule {
        &self.core.schedule
    }
}

/// An assignment may have waited in its mailbox for so many SYNCs.
const WAITED: u8 = 4;
/// Alarms at once; then one per quarter of a cycle.
pub(crate) const ALARM_BURST: u16 = 4;

impl Core {
    fn node(&self) -> Option<NodeId> {
        match self.seat {
            Seat::Member { node, .. } => Some(node),
            Seat::Seeking { .. } | Seat::Held { .. } => None,
        }
    }

    fn event(&mut self, event: SlaveEvent) {
        // A core that does not poll loses news; it cannot stop the link.
        let _ = self.events.push_back(event);
    }

    fn description(&self) -> Description {
        Description {
            version: PROTOCOL_VERSION,
            capabilities: self.capabilities,
        }
    }

    fn alarm(&mut self, alarm: Alarm) {
        if self.alarms.is_full() {
            self.stats.alarms_dropped += 1;
            let least = self.alarms.iter().enumerate().rev();
            let least = least.min_by_key(|(_, a)| a.severity);
            match least.map(|(i, a)| (i, a.severity)) {
                Some((i, severity)) if severity < alarm.severity => {
                    self.alarms.remove(i);
                }
                _ => return,
            }
        }
        let _ = self.alarms.push(alarm);
    }

    /// The most severe alarm, the oldest of its kind.
    fn next_alarm(&mut self) -> Option<Alarm> {
        let mut best: Option<(usize, Severity)> = None;
        for (i, alarm) in self.alarms.iter().enumerate() {
            if best.is_none_or(|(_, severity)| alarm.severity > severity) {
                best = Some((i, alarm.severity));
            }
        }
        best.map(|(i, _)| self.alarms.remove(i))
    }

    /// Not even a trip may be said.
    fn quarantined(&self) -> bool {
        matches!(
            self.seat,
            Seat::Held {
                quarantine: true,
                ..
            }
        )
    }

    /// Whether the master was heard a short while ago.
    fn master_alive(&self, now: Instant) -> bool {
        self.heard
            .is_some_and(|heard| now < heard + self.schedule.master_silence)
    }

    /// An assignment to our unique id; false when it is not for us after all.
    fn join(&mut self, node: NodeId) -> bool {
        match self.seat {
            Seat::Held { .. } | Seat::Seeking { asked: false, .. } => return false,
            Seat::Member { node: was, .. } if was == node => return true,
            _ => {}
        }
        self.seat = Seat::Member { node, trying: None };
        self.sender.abort();
        self.receiver.abort();
        self.event(SlaveEvent::Joined(node));
        true
    }

    /// Gives up the seat or the wish for one, and says nothing for `hold`.
    fn leave(&mut self, now: Instant, reason: LeaveReason, hold: Duration) {
        self.seat = if hold == Duration::ZERO {
            Seat::Seeking {
                claim_at: now,
                attempt: 1,
                asked: false,
            }
        } else {
            let until = now + hold;
            let quarantine = reason == LeaveReason::Babbling;
            Seat::Held { until, quarantine }
        };
        self.isolated = false;
        self.sender.abort();
        self.receiver.abort();
        self.event(SlaveEvent::Left(reason));
    }

    /// The master tells us, or whoever has our unique id, to go.
    fn released(&mut self, now: Instant, reason: LeaveReason) {
        match (reason, self.seat) {
            // A member is the first of the two: the other one is meant.
            (LeaveReason::DuplicateUid, Seat::Member { .. }) | (_, Seat::Held { .. }) => {}
            (LeaveReason::Silence, Seat::Seeking { .. }) => {}
            (LeaveReason::Silence, _) => self.leave(now, reason, Duration::ZERO),
            (LeaveReason::Full, _) if self.schedule.can() && !self.refused => {
                self.refused = true;
                self.leave(now, reason, part(self.schedule.silence, FULL));
            }
            _ => self.leave(now, reason, KEEP_AWAY),
        }
    }

    /// An order that passed its end-to-end check.
    fn order(&mut self, now: Instant, order: Order) {
        if self.node().is_none() {
            return;
        }
        match order {
            Order::Quarantine(hold) => {
                let hold = hold.max(Duration::from_millis(1));
                return self.leave(now, LeaveReason::Babbling, hold);
            }
            Order::Isolate(on) => self.isolated = on,
            _ => {}
        }
        self.event(SlaveEvent::Order(order));
    }

    /// Before a SYNC's counter is judged: whether it comes from another session of the master than
    /// what we heard so far, or from the first. Who restarted knows no members: the seat is lost.
    fn new_session(&mut self, now: Instant, sync: &Sync) -> bool {
        let cycle = self.schedule.cycle;
        let follows = match self.heard.filter(|_| self.master_alive(now)) {
            None => false,
            // Seated without a SYNC heard: it comes within a cycle, or its number counts on as time passes.
            Some(heard) if self.clock.last.is_none() => {
                let elapsed = now.since(heard);
                match self.seated.map(|seated| sync.cycle.wrapping_sub(seated)) {
                    None => elapsed < part(cycle, 110),
                    Some(ahead) => {
                        let passed = elapsed.as_nanos().checked_div(cycle.as_nanos());
                        let waited = u64::from(ahead).checked_sub(passed.unwrap_or(0));
                        waited.is_some_and(|n| n <= WAITED.into())
                    }
                }
            }
            Some(_) => self.clock.follows(now, sync, cycle),
        };
        if follows {
            return false;
        }
        self.clock = MasterClock::default();
        self.heard = None;
        self.seated = None;
        if self.node().is_some() {
            self.leave(now, LeaveReason::Silence, Duration::ZERO);
        }
        true
    }

    /// The master gave us a seat in the cycle of this number. Whether the SYNCs that we heard were of another session, so that
    /// the next one need not follow from them.
    fn forget_other_session(&mut self, now: Instant, number: u8) -> bool {
        let other = !self.clock.counts_to(now, number, self.schedule.cycle);
        if other {
            self.clock = MasterClock::default();
        }
        other
    }

    /// A SYNC that passed its check; `now` is its end.
    fn sync(&mut self, now: Instant, sync: &Sync) {
        let first = !self.master_alive(now);
        self.heard = Some(now);
        self.clock.sync(now, sync);
        self.refused &= self.node().is_none();
        if let Seat::Seeking {
            claim_at,
            attempt,
            asked,
        } = &mut self.seat
            && first
            && *attempt > 0
        {
            // The answer to a claim that is out may be on its way.
            let answer = if *asked { ANSWER } else { Duration::ZERO };
            *claim_at = (*claim_at).min(now + answer);
        }
        self.event(SlaveEvent::Sync {
            cycle: sync.cycle,
            tag: sync.tag,
        });
    }

    /// When a claim may go out.
    fn claim_at(&self, now: Instant) -> Option<Instant> {
        match self.seat {
            Seat::Seeking {
                claim_at, attempt, ..
            } if attempt == 0 || self.master_alive(now) => Some(claim_at),
            _ => None,
        }
    }

    /// A claim goes out under a hash of its own; no other until it is on the wire.
    fn claim(&mut self) -> u32 {
        let Seat::Seeking {
            claim_at,
            attempt,
            asked,
        } = &mut self.seat
        else {
            return 0;
        };
        let this = *attempt;
        *asked = true;
        *claim_at = Instant::MAX;
        *attempt = this.saturating_add(1);
        this
    }

    /// The claim is on the wire: the next one a random while later. What the cells measure makes
    /// two devices differ whose ids are the same.
    fn claimed(&mut self, now: Instant) {
        let Seat::Seeking { attempt, .. } = self.seat else {
            return;
        };
        let retry = self.schedule.join_retry;
        let next = now + retry + self.random(attempt.into(), retry);
        if let Seat::Seeking { claim_at, .. } = &mut self.seat {
            *claim_at = next;
        }
    }

    /// A claim goes out in a join slot: the next one in the next superframe.
    fn claimed_in_slot(&mut self, now: Instant) {
        self.claim();
        if let Seat::Seeking { claim_at, .. } = &mut self.seat {
            *claim_at = now;
        }
    }

    /// A span below `limit`.
    fn random(&self, salt: u64, limit: Duration) -> Duration {
        let ns = self.noise(salt).checked_rem(limit.as_nanos());
        Duration::from_nanos(ns.unwrap_or(0))
    }

    /// What the cells measure makes two devices differ whose ids are the same.
    fn noise(&self, salt: u64) -> u64 {
        let cells = self.state.iter().flat_map(|(_, s)| s.cells.0);
        let seed = join::mix(self.uid.get() ^ join::mix(salt));
        cells.fold(seed, |h, mv| join::mix(h ^ mv.map_or(0, |mv| mv.0.into())))
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(Some(now));
        match self.seat {
            Seat::Member { .. } if !self.master_alive(now) => {
                self.leave(now, LeaveReason::Silence, Duration::ZERO);
            }
            Seat::Held { until, .. } if now >= until => {
                self.seat = Seat::Seeking {
                    claim_at: now,
                    attempt: 1,
                    asked: false,
                };
            }
            _ => {}
        }
        self.sender.handle_timeout(now);
        self.receiver.handle_timeout(now);
    }

    /// What is due already waits for a mailbox, not for time.
    fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let seat = match self.seat {
            Seat::Member { .. } => self.heard.map(|h| h + self.schedule.master_silence),
            Seat::Held { until, .. } => Some(until),
            Seat::Seeking { .. } => self.claim_at(now),
        };
        let times = [
            seat,
            self.sender.poll_timeout(),
            self.receiver.poll_timeout(),
        ];
        earliest(times.map(|t| t.filter(|t| *t > now)))
    }
}

/// The earliest of several instants.
pub(crate) fn earliest<const N: usize>(times: [Option<Instant>; N]) -> Option<Instant> {
    times.into_iter().flatten().min()
}

/// SYNC carries the master's clock modulo this, µs.
const CLOCK_WRAP: u64 = 1 << 28;

/// Follows the master's clock: each SYNC tells when the one before was on the wire.
#[derive(Clone, Copy, Debug, Default)]
struct MasterClock {
    last: Option<(Instant, u8)>,
    /// The same instant on our clock and, in µs, on the master's.
    pair: Option<(Instant, u64)>,
    /// Older ones, the oldest first: they tell how our crystal differs from the master's.
    older: [Option<(Instant, u64)>; 2],
}

/// Pairs so far apart tell it to some parts per million, as each is known to a microsecond.
const BASELINE: Duration = Duration::from_millis(500);
/// Less tells nothing.
const LEAST_BASELINE: Duration = Duration::from_millis(100);
/// No two crystals differ by more, parts per million: the master's clock was set.
const MOST_PPM: i64 = 500;

impl MasterClock {
    const fn new() -> Self {
        Self {
            last: None,
            pair: None,
            older: [None; 2],
        }
    }

    fn sync(&mut self, now: Instant, sync: &Sync) {
        const WRAP: u64 = CLOCK_WRAP;
        if let Some((at, cycle)) = self.last
            && sync.cycle == cycle.wrapping_add(1)
        {
            let told = u64::from(sync.previous_us);
            // The value that is nearest to what our own clock expects.
            let expected = self.at(at).map_or(told, |t| t.as_micros());
            let ahead = told.wrapping_sub(expected) % WRAP;
            let us = if ahead < WRAP / 2 {
                expected.wrapping_add(ahead)
            } else {
                expected.wrapping_sub(WRAP - ahead)
            };
            self.pair = Some((at, us));
            match self.older {
                [_, Some((since, _))] if at.since(since) < BASELINE => {}
                [_, newer] => self.older = [newer.or(self.pair), self.pair],
            }
        }
        self.last = Some((now, sync.cycle));
    }

    /// Whether a SYNC can be of the master that we heard last: it counts on, no faster than time
    /// passes, and by its clock the SYNC before it was not before the last one we heard, give or take
    /// two that the master did not see go out. A repeated one is left to the counter.
    fn follows(&self, now: Instant, sync: &Sync, cycle: Duration) -> bool {
        let Some((at, last)) = self.last else {
            return true;
        };
        let elapsed = now.since(at);
        let half = part(cycle, 50);
        let step = sync.cycle.wrapping_sub(last);
        if step == 0 {
            return elapsed < half;
        }
        let in_time = cycle * step.into() <= elapsed + cycle; // either may have been late
        let Some(known) = self.at(at).filter(|_| in_time) else {
            // Its clock not known yet: then the numbers have to keep up with time, too.
            return in_time && elapsed <= cycle * step.into() + half;
        };
        let early = cycle * 2 + half;
        let known = known.as_micros().wrapping_sub(early.as_micros());
        let ahead = u64::from(sync.previous_us).wrapping_sub(known) % CLOCK_WRAP;
        ahead <= (early + elapsed + half).as_micros()
    }

    /// Whether the SYNC of this number can have been on the wire a short while ago.
    fn counts_to(&self, now: Instant, number: u8, cycle: Duration) -> bool {
        let Some((at, last)) = self.last else {
            return true;
        };
        let passed = now.since(at).as_nanos().checked_div(cycle.as_nanos());
        let newest = last.wrapping_add(passed.unwrap_or(0) as u8).wrapping_add(1);
        newest.wrapping_sub(number) <= WAITED + 1
    }

    /// A span of the master's, on our clock.
    // Once, not in every medium.
    #[inline(never)]
    fn stretch(&self, span: Duration) -> Duration {
        let more = self.drift(span).unwrap_or(0);
        Duration::from_nanos(span.as_nanos().saturating_add_signed(more))
    }

    /// By how many nanoseconds our crystal is ahead after so long, if that is known.
    fn drift(&self, span: Duration) -> Option<i64> {
        let ((at, us), (since, from)) = self.pair.zip(self.older[0])?;
        let ours = at.since(since);
        let master = i64::try_from(us.checked_sub(from)?.checked_mul(1_000)?).ok()?;
        let ahead = i64::try_from(ours.as_nanos()).ok()? - master;
        if ours < LEAST_BASELINE || ahead.abs() > master / 1_000_000 * MOST_PPM {
            return None;
        }
        let span = i64::try_from(span.as_nanos()).ok()?;
        ahead.checked_mul(span)?.checked_div(master)
    }

    fn at(&self, now: Instant) -> Option<Instant> {
        let (local, us) = self.pair?;
        let master = Instant::from_micros(us);
        Some(if now >= local {
            master + now.since(local)
        } else {
            master - local.since(now)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_of_the_masters_is_stretched_by_what_our_crystal_is_off() {
        for (ppm, cycle_us) in [
            (-100i64, 10_000u64),
            (73, 20_000),
            (100, 264_000),
            (0, 28_100),
        ] {
            let mut clock = MasterClock::default();
            let ours = |us: u64| us * 1_000_000u64.saturating_add_signed(ppm) / 1_000;
            let local = |us: u64| Instant::from_nanos(ours(us));
            for n in 0..3_000_000 / cycle_us {
                let sync = Sync {
                    cycle: n as u8,
                    tag: None,
                    previous_us: (n.saturating_sub(1) * cycle_us + 7_777) as u32,
                };
                clock.sync(local(1_000_000 + n * cycle_us), &sync);
            }
            let stretched = clock.stretch(Duration::from_millis(200));
            let wrong = stretched.as_nanos().abs_diff(ours(200_000));
            assert!(wrong < 1_000, "{ppm} {cycle_us}: {wrong} ns");
            // The master's clock is set: nothing is known until that is some time ago.
            clock.pair = clock.pair.map(|(at, us)| (at, us + 60_000));
            let span = Duration::from_millis(200);
            assert_eq!(clock.stretch(span), span);
        }
    }

    #[test]
    fn master_time_is_followed_over_the_wrap() {
        let mut clock = MasterClock::default();
        let offset = 5_000_000u64; // our clock is 5 s behind the master's
        let mut previous = 0;
        for n in 0..30_000u64 {
            let us = n * 20_000;
            let sync = Sync {
                cycle: n as u8,
                tag: None,
                previous_us: (previous % (1 << 28)) as u32,
            };
            clock.sync(Instant::from_micros(us), &sync);
            previous = us + offset;
            let at = clock.at(Instant::from_micros(us));
            assert_eq!(at.is_some(), n > 0);
            assert!(at.is_none_or(|at| at == Instant::from_micros(us + offset)));
        }
    }
}
