//! What the master remembers for its clients: a ring of numbered records.
//!
//! A client asks for everything since a number; the ring says from which number on it still knows.
//! Numbers rise by one and start at 1, so a client that sees a jump knows that it came too late.

use heapless::Deque;
use helio_units::{DeciCelsius, Instant, Milliamps, Millivolts, NodeId, TagId, Uid};

use helio_bus::analysis::Overfull;
use helio_bus::{MAX_CELLS, MAX_TEMPS, Severity};

use crate::pack::{NodeState, PackFigures};

/// One thing that happened or was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// When, by the master's clock.
    pub at: Instant,
    /// What.
    pub record: Record,
}

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Record {
    /// The pack as a whole.
    Pack(PackFigures),
    /// One slave with its cells.
    Slave(SlaveFigures),
    /// One position fix.
    Tag(TagFigures),
    /// A change that an operator would want to know of.
    Event(Event),
}

/// One slave with its cells, one instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlaveFigures {
    /// Seat.
    pub node: NodeId,
    /// Device.
    pub uid: Uid,
    /// Life of the slave as the master sees it.
    pub state: NodeState,
    /// Worst active severity.
    pub severity: Severity,
    /// Gate on.
    pub gate_on: bool,
    /// Bleeding at least one cell.
    pub balancing: bool,
    /// Current through the group.
    pub current: Option<Milliamps>,
    /// Cells that the slave has.
    pub cell_count: u8,
    /// Voltages.
    pub cells: [Option<Millivolts>; MAX_CELLS],
    /// State of charge in steps of 1/10 000; `u16::MAX` unknown.
    pub soc_e4: [u16; MAX_CELLS],
    /// Sensors that the slave has.
    pub temp_count: u8,
    /// Temperatures.
    pub temps: [Option<DeciCelsius>; MAX_TEMPS],
    /// How its cells have aged, when something is known.
    pub health: Option<HealthFigures>,
}

/// State of health of a slave's cells, in parts per million of the new cell's; sigma is one standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthFigures {
    /// Capacity of the mean cell ...
    pub capacity_ppm: u32,
    /// ... and its sigma.
    pub capacity_sigma_ppm: u32,
    /// Capacity of the smallest cell.
    pub capacity_min_ppm: u32,
    /// Series resistance of the mean cell ...
    pub resistance_ppm: u32,
    /// ... and its sigma.
    pub resistance_sigma_ppm: u32,
}

impl From<crate::pack::Health> for HealthFigures {
    fn from(h: crate::pack::Health) -> Self {
        let ppm = |x: f32| (x * 1e6) as u32;
        Self {
            capacity_ppm: ppm(h.capacity.mean),
            capacity_sigma_ppm: ppm(h.capacity.sigma),
            capacity_min_ppm: ppm(h.least),
            resistance_ppm: ppm(h.resistance.mean),
            resistance_sigma_ppm: ppm(h.resistance.sigma),
        }
    }
}

/// One position fix in the frame of the map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TagFigures {
    /// Which tag.
    pub tag: TagId,
    /// Position, millimetres.
    pub position_mm: [i32; 3],
    /// Horizontal 1-sigma, millimetres.
    pub sigma_mm: u32,
    /// Anchors used.
    pub anchors: u8,
    /// Root mean square of the range residuals, millimetres.
    pub residual_mm: u32,
    /// Ranges left out as faulty.
    pub excluded: u8,
    /// The horizontal error stays below this even with one undetected fault, millimetres; `None`
    /// when ranges contradict each other or are too few to tell.
    pub protection_mm: Option<u32>,
    /// Where the tag is by all ranges so far, when it is followed.
    pub track: Option<TrackFigures>,
}

/// The track of a tag in the frame of the map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackFigures {
    /// Position, millimetres.
    pub position_mm: [i32; 3],
    /// Horizontal 1-sigma, millimetres.
    pub sigma_mm: u32,
    /// Velocity, millimetres per second.
    pub velocity_mm_s: [i32; 3],
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A slave took a seat.
    Joined,
    /// A slave took the seat of another one.
    Replaced,
    /// A slave is gone.
    Left,
    /// A slave was silenced for sending too much.
    Quarantined,
    /// A string was opened because of this slave.
    Isolated,
    /// The string is whole again.
    Released,
    /// A second device with a member's unique id asked for a seat.
    Duplicate,
    /// A device got no seat, because with it the bus would be too full.
    Refused(Overfull),
    /// Some slave signalled a trip.
    Trip,
    /// A diagnostic event of a slave.
    Alarm,
    /// An operator's command was taken.
    Command,
    /// The anchor map was replaced.
    Map,
    /// The pack rests: all open, the bus quiet.
    Asleep,
    /// The pack is awake again.
    Awake,
    /// The main contactors.
    Contactors(crate::contactor::ContactorEvent),
}

/// A change that an operator would want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub what: What,
    /// Seat concerned, `None` for the whole.
    pub node: Option<NodeId>,
    /// Device concerned.
    pub uid: Option<Uid>,
    /// The alarm, where there is one.
    pub alarm: Option<helio_bus::Alarm>,
}

/// The ring itself.
#[derive(Debug)]
pub struct Log<const N: usize> {
    entries: Deque<Entry, N>,
    next: u64,
}

impl<const N: usize> Default for Log<N> {
    fn default() -> Self {
        let mut log = Self::new();
        log.start();
        log
    }
}

impl<const N: usize> Log<N> {
    /// To be started by [`Self::start`].
    pub(crate) const fn new() -> Self {
        Self {
            entries: Deque::new(),
            next: 0,
        }
    }

    /// From number 1 on.
    pub(crate) fn start(&mut self) {
        self.next = 1;
    }

    /// Adds a record; the oldest makes room.
    pub fn push(&mut self, at: Instant, record: Record) {
        if self.entries.is_full() {
            self.entries.pop_front();
        }
        if self.entries.push_back(Entry { at, record }).is_ok() {
            self.next += 1;
        }
    }

    /// Number that the next record will get.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Oldest number still known; equals [`Self::next`] when there is none.
    pub fn first(&self) -> u64 {
        self.next - self.entries.len() as u64
    }

    /// Records from number `since` on, each with its number, oldest first.
    pub fn since(&self, since: u64) -> impl Iterator<Item = (u64, &Entry)> {
        let first = self.first();
        let skip = usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX);
        // The deque is two slices; walking them from the right place keeps a late client cheap.
        let (a, b) = self.entries.as_slices();
        let a_tail = a.get(skip.min(a.len())..).unwrap_or(&[]);
        let b_tail = b
            .get(skip.saturating_sub(a.len()).min(b.len())..)
            .unwrap_or(&[]);
        let from = first + skip.min(self.entries.len()) as u64;
        (from..).zip(a_tail.iter().chain(b_tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> (Instant, Record) {
        let record = Record::Event(Event {
            what: What::Map,
            node: None,
            uid: None,
            alarm: None,
        });
        (Instant::from_millis(n), record)
    }

    #[test]
    fn a_late_client_is_told_from_where_the_ring_still_knows() {
        let mut log = Log::<4>::default();
        assert_eq!((log.first(), log.next()), (1, 1));
        for n in 1..=6 {
            let (at, record) = event(n);
            log.push(at, record);
        }
        assert_eq!((log.first(), log.next()), (3, 7));
        let seen: [u64; 4] =
            core::array::from_fn(|i| log.since(1).nth(i).map_or(0, |(seq, _)| seq));
        assert_eq!(seen, [3, 4, 5, 6]);
    }

    #[test]
    fn numbers_and_records_stay_together_wherever_the_ring_wraps() {
        let mut log = Log::<5>::default();
        for n in 1..=23 {
            let (at, record) = event(n);
            log.push(at, record);
            for since in 0..=n + 1 {
                for (seq, entry) in log.since(since) {
                    assert!(seq >= since);
                    assert_eq!(entry.at, Instant::from_millis(seq));
                }
            }
            assert_eq!(log.since(n).count(), 1);
            assert_eq!(log.since(n + 1).count(), 0);
        }
    }
}
