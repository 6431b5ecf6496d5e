//! One slave's end of the bus (signatures; the bodies follow).
#![allow(unused_variables)]
use crate::{Busy, Schedule, message::*};
use helio_units::{Instant, NodeId, Uid};

/// What a slave's link has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlaveStats {
    /// Cyclic frames handed to the controller.
    pub sent: u64,
    /// Cyclic messages whose next turn came before they were sent.
    pub overwritten: u64,
    /// Messages refused by the transmit budget.
    pub over_budget: u64,
    /// Received messages that failed their end-to-end check.
    pub rejected: u64,
}

/// One slave's end of the bus.
pub struct SlaveLink {
    schedule: Schedule,
}

/// What a slave's CAN controller must let through.
pub fn slave_accepts(frame_id: CanId, own: Option<NodeId>) -> bool {
    true
}

#[allow(missing_docs)]
impl SlaveLink {
    pub fn new(schedule: Schedule, uid: Uid, capabilities: Capabilities) -> Self {
        Self { schedule }
    }
    pub fn handle_can(&mut self, now: Instant, frame: &CanFrame) {}
    pub fn handle_sent(&mut self, now: Instant, mailbox: Mailbox) {}
    pub fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {}
    pub fn handle_break(&mut self, now: Instant) {}
    pub fn handle_timeout(&mut self, now: Instant) {}
    pub fn set_state(&mut self, sampled_at: Instant, state: &State) {}
    pub fn set_ranges(&mut self, sampled_at: Instant, ranges: &Ranges) {}
    pub fn trip(&mut self, now: Instant) {}
    pub fn alarm(&mut self, now: Instant, alarm: Alarm) {}
    pub fn send_datagram(&mut self, datagram: &[u8]) -> Result<(), Busy> {
        Err(Busy)
    }
    pub fn datagram(&mut self) -> Option<&[u8]> {
        None
    }
    pub fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        None
    }
    pub fn poll_serial(&mut self, now: Instant) -> Option<SerialOut> {
        None
    }
    pub fn poll_event(&mut self) -> Option<SlaveEvent> {
        None
    }
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    pub fn node(&self) -> Option<NodeId> {
        None
    }
    pub fn babble(&mut self, on: bool) {}
    /// The master's clock now, once two beats of SYNC were heard.
    pub fn master_time(&self, now: Instant) -> Option<Instant> {
        None
    }
    pub fn stats(&self) -> SlaveStats {
        SlaveStats::default()
    }
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
