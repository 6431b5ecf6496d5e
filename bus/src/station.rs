//! What a shell needs to know of a core that sits on a bus, whichever end it is.

use crate::{CanFrame, CanId, CanOut, Mailbox, SerialOut};
use helio_units::Instant;

/// A core on a bus: master or slave.
///
/// On RS485 the shell passes on what it hears by [`Self::handle_serial`] and [`Self::handle_break`]
/// and sends what [`Self::poll_serial`] gives; on CAN the other methods do the same.
pub trait Station {
    /// Characters have come on RS485; `now` is the end of the last one's stop bit.
    fn handle_serial(&mut self, now: Instant, bytes: &[u8]);
    /// A break has come on RS485.
    fn handle_break(&mut self, now: Instant);
    /// What to send on RS485.
    fn poll_serial(&mut self, now: Instant) -> Option<SerialOut>;

    /// Whether a frame with this identifier concerns this station: its acceptance filter.
    fn accepts(&self, id: CanId) -> bool;
    /// A frame that passed [`Self::accepts`] came; `now` is its end.
    fn handle_can(&mut self, now: Instant, frame: &CanFrame);
    /// The frame in this mailbox is on the wire.
    fn handle_sent(&mut self, now: Instant, mailbox: Mailbox);
    /// What to send from this CAN mailbox; call when it is free.
    fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut>;
}
