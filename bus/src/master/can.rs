//! The master on CAN and CAN FD.

use super::{Core, OrderCounters};
use crate::Schedule;
use crate::budget::Budget;
use crate::join::{self, Extended, PROTOCOL_VERSION};
use crate::message::*;
use crate::segment::Pdu;
use crate::wire::{self, DecodeError};
use heapless::Deque;
use helio_units::{Duration, Instant, NodeId, Uid};

#[cfg_attr(feature = "model", derive(Clone))]
pub(super) struct Can<const SEATS: usize> {
    sync_due: bool,
    sync_in_flight: bool,
    /// Our clock when the last SYNC was on the wire, µs.
    previous_us: u32,
    sync_counter: u8,
    order_counters: OrderCounters<SEATS>,
    /// Orders may not push cyclic data over its bounds.
    order_budget: Budget,
    /// Nor may prompt assignments, once there is cyclic data.
    prompt_budget: Budget,
    /// Whose assignment, or question, is in the mailbox for prompt ones.
    assigning: Option<NodeId>,
    /// Devices that are told promptly that there is no room, as they take themselves for members.
    turned_away: Deque<Uid, 4>,
    /// The mailbox with a trip of another bus.
    trip_in: Option<Mailbox>,
}

impl<const SEATS: usize> Can<SEATS> {
    pub(super) fn new(schedule: &Schedule) -> Self {
        let prompts = super::prompt_burst(schedule.kind);
        let share = schedule.cycle.as_nanos() / u64::from(prompts);
        let eighth = Duration::from_nanos(schedule.cycle.as_nanos() / 8);
        Self {
            sync_due: false,
            sync_in_flight: false,
            previous_us: 0,
            sync_counter: 0,
            order_counters: OrderCounters::new(),
            order_budget: Budget::new(super::ORDER_BURST, eighth),
            assigning: None,
            turned_away: Deque::new(),
            trip_in: None,
            prompt_budget: Budget::new(prompts, Duration::from_nanos(share)),
        }
    }

    #[cfg(feature = "model")]
    pub(super) fn forget(&mut self) {
        self.previous_us = 0;
        self.sync_counter = 0;
        self.order_counters = OrderCounters::new();
    }

    #[cfg(feature = "model")]
    pub(super) fn print(&self, p: &mut crate::model::Print) {
        let Self {
            sync_due,
            sync_in_flight,
            previous_us: _,
            sync_counter,
            order_counters,
            order_budget,
            prompt_budget,
            assigning,
            turned_away,
            trip_in,
        } = self;
        turned_away.iter().for_each(|uid| p.value(uid.get()));
        p.value(assigning.map_or(0, |node| node.get().into()));
        p.value(trip_in.map_or(0, |mailbox| mailbox as u64 + 1));
        p.value(u64::from(*sync_due) << 1 | u64::from(*sync_in_flight));
        p.value((*sync_counter).into());
        order_counters.iter().for_each(|c| p.value(c.into()));
        p.budget(order_budget);
        p.budget(prompt_budget);
    }

    pub(super) fn start_cycle(&mut self, core: &mut Core<SEATS>) {
        core.stats.overwritten += u64::from(self.sync_due);
        self.sync_due = true;
    }

    pub(super) fn handle_sent(&mut self, core: &mut Core<SEATS>, now: Instant, mailbox: Mailbox) {
        if self.trip_in == Some(mailbox) {
            self.trip_in = None;
            return;
        }
        // Only a prompt question has a prompt answer; the others may wait for everything cyclic.
        let told = match mailbox {
            Mailbox::Cyclic => self.assigning.take(),
            Mailbox::Urgent | Mailbox::Management | Mailbox::Trip => None,
        };
        if let Some(node) = told {
            core.seats.told(now, &core.schedule, node);
        }
        if mailbox == Mailbox::Urgent && self.sync_in_flight {
            self.sync_in_flight = false;
            self.previous_us = (now.as_micros() & 0xfff_ffff) as u32;
        }
    }

    pub(super) fn handle_frame(&mut self, core: &mut Core<SEATS>, now: Instant, frame: &CanFrame) {
        if matches!(frame.id, CanId::Extended(_)) {
            return self.handle_extended(core, now, frame);
        }
        let decoded = match wire::decode(frame) {
            Ok(decoded) => decoded,
            Err(DecodeError::Check(id)) => {
                if let Some(node) = NodeId::new(id.node()) {
                    core.reject(node, E2eFault::Check);
                }
                return;
            }
            Err(DecodeError::Foreign) => return,
        };
        match decoded.message {
            Message::Trip => core.event(MasterEvent::Trip),
            // Another master; the slaves' counters will tell.
            Message::Sync(_) | Message::Command(_) => {}
            message => {
                let counter = (decoded.counter, decoded.counter_mask);
                core.receive(now, decoded.id, counter, message);
            }
        }
    }

    fn handle_extended(&mut self, core: &mut Core<SEATS>, now: Instant, frame: &CanFrame) {
        match join::decode(frame) {
            Some(Extended::Claim { uid, prompt }) => {
                // Who is a member already is asked instead, which takes from the same budget.
                if let Some(node) = core.seats.claim(now, &core.schedule, uid)
                    && prompt
                    && self.may_be_prompt(core, now)
                {
                    core.seats.answer_promptly(node);
                }
            }
            Some(Extended::Confirm {
                node,
                uid_low,
                description,
            }) => {
                let offered = core.seats.offered_to(node);
                let new = offered.filter(|uid| join::uid_low(*uid) == uid_low);
                if let Some(uid) = new.filter(|_| description.version == PROTOCOL_VERSION)
                    && !core.admits(core.census(), uid, description.capabilities)
                {
                    core.seats.turn_away(now, node);
                    if !self.may_be_prompt(core, now) || self.turned_away.push_back(uid).is_err() {
                        core.seats.refuse(uid, LeaveReason::Full);
                    }
                    return;
                }
                let seats = &mut core.seats;
                if let Some(event) = seats.confirm(now, &core.schedule, node, uid_low, description)
                {
                    core.event(event);
                }
            }
            Some(Extended::ToMaster(node, pdu)) => core.handle_pdu(now, node, pdu),
            _ => {}
        }
    }

    pub(super) fn poll_timeout(&self, core: &Core<SEATS>) -> Option<Instant> {
        let prompt = core.seats.has_questions() || core.seats.has_hurry();
        let commands = !core.commands.is_empty();
        crate::slave::earliest([
            self.order_budget.next().filter(|_| commands),
            self.prompt_budget.next().filter(|_| prompt),
        ])
    }

    pub(super) fn poll(
        &mut self,
        core: &mut Core<SEATS>,
        now: Instant,
        mailbox: Mailbox,
    ) -> Option<CanFrame> {
        if self.trip_in == Some(mailbox) {
            self.trip_in = None;
        }
        // As a slave's: where no mailbox is kept for it, in whichever is free.
        if self.trip_in.is_none() && core.take_trip(now) {
            self.trip_in = Some(mailbox);
            return wire::encode(&Message::Trip, 0, core.schedule.fd());
        }
        match mailbox {
            Mailbox::Urgent => self.poll_urgent(core, now),
            // A mailbox of its own: in the last one a datagram may wait for everything cyclic.
            Mailbox::Cyclic => {
                if let Some(uid) = self.turned_away.pop_front() {
                    return join::release(None, Some(uid), LeaveReason::Full, true);
                }
                if core.seats.has_questions()
                    && self.may_be_prompt(core, now)
                    && let Some((node, uid)) = core.seats.next_question()
                {
                    self.assigning = Some(node);
                    return join::release(Some(node), Some(uid), LeaveReason::Silence, true);
                }
                // Without that an assignment goes by the other mailbox.
                if core.seats.has_hurry() && self.may_be_prompt(core, now) {
                    core.seats.hurry();
                }
                let (node, uid) = core.seats.next_prompt(now, &core.schedule)?;
                self.assigning = Some(node);
                join::assign(node, uid, core.cycle, true)
            }
            Mailbox::Management => poll_management(core, now),
            Mailbox::Trip => None,
        }
    }

    /// Prompt frames may not push cyclic data over its bounds, while there is any.
    fn may_be_prompt(&mut self, core: &Core<SEATS>, now: Instant) -> bool {
        core.seats.is_quiet(now, &core.schedule) || self.prompt_budget.take(now)
    }

    fn poll_urgent(&mut self, core: &mut Core<SEATS>, now: Instant) -> Option<CanFrame> {
        let fd = core.schedule.fd();
        self.sync_in_flight = self.sync_due;
        if self.sync_due {
            self.sync_due = false;
            self.sync_counter = self.sync_counter.wrapping_add(1) & 0xf;
            let sync = Sync {
                cycle: core.cycle,
                tag: core.tag(),
                previous_us: self.previous_us,
            };
            return wire::encode(&Message::Sync(sync), self.sync_counter, fd);
        }
        let command = match core.seats.next_quarantine(now) {
            Some((node, hold)) => Command {
                to: Some(node),
                order: Order::Quarantine(hold),
            },
            None if !core.commands.is_empty() && self.order_budget.take(now) => {
                core.commands.pop_front()?
            }
            None => return None,
        };
        let counter = self.order_counters.next(command.to) & 0xf;
        wire::encode(&Message::Command(command), counter, fd)
    }
}

fn poll_management<const SEATS: usize>(core: &mut Core<SEATS>, now: Instant) -> Option<CanFrame> {
    if core.seats.has_duties() {
        if let Some((node, uid)) = core.seats.next_assign(now, &core.schedule) {
            return join::assign(node, uid, core.cycle, false);
        }
        if let Some((uid, reason)) = core.seats.next_refusal() {
            return join::release(None, Some(uid), reason, false);
        }
        if let Some((node, uid)) = core.seats.next_release() {
            return join::release(Some(node), uid, LeaveReason::Silence, false);
        }
    }
    if core.schedule.is_reserved(core.cycle) {
        return None;
    }
    let (node, pdu) = core.next_pdu(now)?;
    CanFrame::new(join::management_id(node, false), core.schedule.fd(), &pdu)
}

impl<const SEATS: usize> Core<SEATS> {
    fn handle_pdu(&mut self, now: Instant, node: NodeId, pdu: &[u8]) {
        if self.seats.member(node).is_none() {
            return;
        }
        for (of, sender) in &mut self.senders {
            if *of == Some(node) {
                sender.handle_flow(now, pdu);
            }
        }
        if let Some((of, receiver)) = super::receiver(&mut self.receivers, node) {
            *of = Some(node);
            if receiver.handle(now, pdu) {
                self.event(MasterEvent::Datagram(node));
            }
        }
    }

    /// The next management frame: flow control first, so that no slave waits for us.
    fn next_pdu(&mut self, now: Instant) -> Option<(NodeId, Pdu)> {
        let fd = self.schedule.fd();
        for (of, receiver) in &mut self.receivers {
            if let (Some(node), Some(pdu)) = (*of, receiver.poll()) {
                return Some((node, pdu));
            }
        }
        for (of, sender) in &mut self.senders {
            if let (Some(node), Some(pdu)) = (*of, sender.poll(now, fd)) {
                return Some((node, pdu));
            }
        }
        None
    }
}
