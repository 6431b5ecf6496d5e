//! When everything is said.
use crate::message::BusKind;
use helio_units::Duration;

/// Timing of one bus; equal at the master and all slaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Medium and bit rate.
    pub kind: BusKind,
    /// Seats, `1..=127`.
    pub seats: u8,
    /// From SYNC to SYNC.
    pub cycle: Duration,
    /// From SYNC to the instant at which anchors range.
    pub ranges_phase: Duration,
    /// Master: a slave unheard for so long is gone.
    pub silence: Duration,
    /// Slave: a master unheard for so long is gone.
    pub master_silence: Duration,
}

impl Schedule {
    /// The defaults of each bus.
    pub fn for_bus(kind: BusKind) -> Self {
        let (cycle, phase, seats) = match kind {
            BusKind::Can500k => (40, 20, 127),
            BusKind::Can1M => (20, 10, 127),
            BusKind::CanFd => (10, 5, 127),
            BusKind::Rs485At1M => (30, 20, 32),
            BusKind::Rs485At4M => (10, 5, 32),
        };
        Self {
            kind,
            seats,
            cycle: Duration::from_millis(cycle),
            ranges_phase: Duration::from_millis(phase),
            silence: Duration::from_millis(3 * cycle),
            master_silence: Duration::from_millis(3 * cycle),
        }
    }
}
