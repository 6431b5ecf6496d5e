//! The master's end of the bus (signatures; the bodies follow).
#![allow(unused_variables)]
use crate::{Busy, Schedule, message::*};
use helio_units::{Duration, Instant, NodeId, TagId, Uid};

/// What the master's link has counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MasterStats {
    /// Cyclic messages delivered.
    pub received: u64,
    /// Messages found missing by their counters.
    pub lost: u64,
    /// Messages that failed their end-to-end check.
    pub rejected: u64,
    /// Events dropped because nobody polled.
    pub events_dropped: u64,
}

/// The master's end of the bus.
pub struct MasterLink {
    schedule: Schedule,
}

#[allow(missing_docs)]
impl MasterLink {
    pub fn new(schedule: Schedule) -> Self {
        Self { schedule }
    }
    pub fn handle_can(&mut self, now: Instant, frame: &CanFrame) {}
    pub fn handle_sent(&mut self, now: Instant, mailbox: Mailbox) {}
    pub fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {}
    pub fn handle_break(&mut self, now: Instant) {}
    pub fn handle_timeout(&mut self, now: Instant) {}
    pub fn set_tags(&mut self, tags: &[TagId]) {}
    pub fn command(&mut self, command: Command) -> Result<(), Busy> {
        Err(Busy)
    }
    pub fn quarantine(&mut self, now: Instant, node: NodeId, for_: Duration) {}
    pub fn remove(&mut self, now: Instant, node: NodeId) {}
    pub fn send_datagram(&mut self, node: NodeId, datagram: &[u8]) -> Result<(), Busy> {
        Err(Busy)
    }
    pub fn datagram(&mut self) -> Option<(NodeId, &[u8])> {
        None
    }
    pub fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        None
    }
    pub fn poll_serial(&mut self, now: Instant) -> Option<SerialOut> {
        None
    }
    pub fn poll_event(&mut self) -> Option<MasterEvent> {
        None
    }
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    pub fn member(&self, node: NodeId) -> Option<(Uid, Capabilities)> {
        None
    }
    pub fn stats(&self) -> MasterStats {
        MasterStats::default()
    }
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
