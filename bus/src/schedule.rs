//! When everything is said: cycle, phases and limits of each bus.
//!
//! ```text
//!      SYNC                            SYNC + ranges_phase              next SYNC
//! CAN   | sample | summary, one detail     | range | range chunks           |
//!       | sample | summary, all details                                     |   now and then
//! FD    | sample | state                   | range | all ranges             |
//! ```
//!
//! RS485 has a superframe instead; see [`crate::superframe`].

use crate::message::{BusKind, Capabilities};
use crate::superframe::{Timing, shortest};
use core::ops::Range;
use helio_units::Duration;

/// CAN 2.0: from one cycle in which slaves say everything to the next. It divides the 256 numbers of
/// cycles. What a snapshot tells is up to a cycle old; this seldom, of all values that the master gets
/// fewer than 1 % are. No tag is ranged in such a cycle, and no datagram goes on from the cycle before to
/// the next.
pub(crate) const SNAPSHOT: u8 = 128;

/// Timing of one bus; equal at the master and all slaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Medium and bit rate.
    pub kind: BusKind,
    /// Seats, `1..=127`. On RS485 the beacon has a place for each, so it must be equal at both ends.
    pub seats: u8,
    /// From SYNC to SYNC; on RS485 the length of the superframe.
    pub cycle: Duration,
    /// RS485: from the end of one sender to the start of the next. Equal at both ends.
    pub guard: Duration,
    /// From SYNC to the instant at which anchors range. RS485 ranges just before its pass of ranges.
    pub ranges_phase: Duration,
    /// After SYNC a slave waits so long for the sample that SYNC asked for, then sends its last.
    pub sample_grace: Duration,
    /// A slave unheard for so long is gone. On CAN it is asked for a sign of life first.
    pub silence: Duration,
    /// The same for a slave that ranges, because it speaks twice in a cycle.
    pub ranging_silence: Duration,
    /// A slave that has not heard the master for so long gives up its seat.
    pub master_silence: Duration,
    /// From an unanswered claim to the next (up to twice as long at random), and from an
    /// unconfirmed assignment to the next.
    pub join_retry: Duration,
    /// First quarantine of a babbler; each further one is twice as long, up to a minute.
    pub quarantine: Duration,
    /// CAN 2.0: now and then slaves say all their details at once. Equal at the master and all slaves.
    pub snapshots: bool,
}

impl Schedule {
    /// Of no bus; all zeros.
    pub(crate) const NONE: Self = Self {
        kind: BusKind::Can500k,
        seats: 0,
        cycle: Duration::ZERO,
        guard: Duration::ZERO,
        ranges_phase: Duration::ZERO,
        sample_grace: Duration::ZERO,
        silence: Duration::ZERO,
        ranging_silence: Duration::ZERO,
        master_silence: Duration::ZERO,
        join_retry: Duration::ZERO,
        quarantine: Duration::ZERO,
        snapshots: false,
    };

    /// The defaults of each bus.
    pub fn for_bus(kind: BusKind) -> Self {
        let us = Duration::from_micros;
        let (cycle, ranges_phase, seats) = match kind {
            BusKind::Can500k => (us(40_000), us(20_000), 127),
            BusKind::Can1M => (us(20_000), us(10_000), 127),
            BusKind::CanFd => (us(10_000), us(5_000), 127),
            // As short as 32 slots of cells and a few anchors allow, with two places to join.
            BusKind::Rs485At1M => (us(28_100), us(20_000), 32),
            BusKind::Rs485At4M => (us(10_000), us(5_000), 32),
            // The same; fewer slaves want a shorter one.
            BusKind::Rs485At115k => (us(264_000), us(190_000), 32),
        };
        Self {
            kind,
            seats,
            cycle,
            guard: Timing::guard_of(kind, cycle),
            ranges_phase,
            sample_grace: us(300),
            silence: silence(kind, cycle),
            ranging_silence: match kind {
                // It says something after SYNC and half a cycle later, and answers promptly when asked.
                BusKind::Can500k => part(cycle, 73),
                BusKind::Can1M => part(cycle, 140),
                BusKind::CanFd => part(cycle, 220),
                _ => part(cycle, 250),
            },
            master_silence: master_silence(kind, cycle),
            join_retry: us(if kind == BusKind::Can500k {
                20_000
            } else {
                10_000
            }),
            quarantine: Duration::from_millis(100),
            snapshots: false,
        }
    }

    /// The same bus with [`Self::snapshots`]: all values of one instant, for which those of a snapshot are up to a cycle old
    /// when they come, instead of less than 10 ms on `can-1m`.
    pub fn with_snapshots(self) -> Self {
        Self {
            snapshots: true,
            ..self
        }
    }

    /// The same bus with fewer or more seats and, on RS485, a guard that this end's hardware can
    /// keep: a sender that cannot start within half a guard of its time misses its slot. The
    /// superframe becomes as long as every seat with 18 cells, 8 temperatures and a few anchors
    /// needs, with two places to join. No guard is shorter than that of [`Self::for_bus`], and
    /// at most 127 seats and 1 s are taken.
    pub fn with_guard(self, seats: u8, guard: Duration) -> Self {
        let guard = guard.clamp(
            Timing::guard_of(self.kind, self.cycle),
            Duration::from_secs(1),
        );
        let seats = seats.clamp(1, 127);
        let least = Self {
            seats,
            guard,
            ..self
        };
        if least.can() {
            return least;
        }
        let rack = Capabilities {
            cells: 18,
            temps: 8,
            anchors: 4,
        };
        let cycle = part(shortest(&least, rack, seats, 2), 102).max(Duration::from_millis(5));
        least.with_cycle(cycle)
    }

    /// The same bus with a longer cycle, and every span that is a multiple of it. For lines that
    /// are slower than their bit rate, such as processes of one machine that play a bus.
    pub fn with_cycle(self, cycle: Duration) -> Self {
        let scale = |span: Duration| {
            let long = u128::from(span.as_nanos()) * u128::from(cycle.as_nanos());
            let long = long.checked_div(self.cycle.as_nanos().into()).unwrap_or(0);
            Duration::from_nanos(u64::try_from(long).unwrap_or(u64::MAX))
        };
        Self {
            cycle,
            guard: self.guard.max(Timing::guard_of(self.kind, cycle)),
            ranges_phase: scale(self.ranges_phase),
            sample_grace: scale(self.sample_grace),
            silence: silence(self.kind, cycle),
            ranging_silence: scale(self.ranging_silence),
            master_silence: master_silence(self.kind, cycle),
            join_retry: scale(self.join_retry),
            ..self
        }
    }

    /// Whether the bus is CAN FD.
    pub(crate) fn fd(&self) -> bool {
        self.kind == BusKind::CanFd
    }

    /// Whether slaves say all their details in the cycle of this number, all measured at its SYNC
    /// (CAN 2.0 with [`Self::snapshots`]; on other buses they always do, in one frame).
    pub const fn is_snapshot(&self, cycle: u8) -> bool {
        self.snapshots
            && matches!(self.kind, BusKind::Can500k | BusKind::Can1M)
            && cycle.is_multiple_of(SNAPSHOT)
    }

    /// From one of those cycles to the next.
    pub const fn snapshot_cycles(&self) -> u8 {
        SNAPSHOT
    }

    /// Whether what was measured at a snapshot's SYNC may still be under way: in that cycle and the next.
    pub(crate) const fn after_snapshot(&self, cycle: u8) -> bool {
        self.is_snapshot(cycle) || self.is_snapshot(cycle.wrapping_sub(1))
    }

    /// Whether nothing of management may be begun in the cycle of this number: what is in a mailbox when a
    /// snapshot begins would wait for everybody's details, and those of its slave behind it. The cycle before
    /// has no details, so that all of it gets out.
    pub(crate) const fn is_reserved(&self, cycle: u8) -> bool {
        self.after_snapshot(cycle) || self.is_snapshot(cycle.wrapping_add(1))
    }

    /// Those of its `count` details that a slave says in the cycle of this number: one in turn. With snapshots
    /// after one of those and a pause for its end, until the cycle before the next one; a round that would not
    /// be complete by then is left out.
    pub(crate) fn details_in(&self, cycle: u8, count: u8) -> Range<u8> {
        let place = cycle % SNAPSHOT;
        let turn = place.saturating_sub(2);
        let rounds = (SNAPSHOT - 3).checked_div(count).unwrap_or(0);
        match place {
            _ if self.fd() || !self.can() || count == 0 => 0..0,
            _ if !self.snapshots => cycle % count..cycle % count + 1,
            0 => 0..count,
            1 => 0..0,
            _ if turn >= rounds * count => 0..0,
            _ => turn % count..turn % count + 1,
        }
    }

    /// Cyclic frames that a slave sends in one cycle on CAN, but for a snapshot.
    pub(crate) fn frames_per_cycle(&self, c: Capabilities) -> u16 {
        if self.fd() {
            1 + u16::from(c.anchors > 0)
        } else {
            let detail = c.details() > 0;
            1 + u16::from(detail) + u16::from(c.anchors.min(16)).div_ceil(2)
        }
    }

    /// Whether the bus is CAN, classic or FD.
    pub(crate) fn can(&self) -> bool {
        !self.kind.is_serial()
    }

    /// A slave with these capabilities is gone after so long.
    pub(crate) fn silence_of(&self, c: Capabilities, ranging: bool) -> Duration {
        if ranging && c.anchors > 0 {
            self.ranging_silence
        } else {
            self.silence
        }
    }
}

/// A slave unheard for so long is gone.
fn silence(kind: BusKind, cycle: Duration) -> Duration {
    match kind {
        // Three missing, and the third had its chance to come. On CAN it was asked meanwhile.
        _ if kind.is_serial() => part(cycle, 320),
        _ => cycle * 2,
    }
}

/// A slave that has not heard the master for so long gives up its seat: two SYNCs may be lost, and the third
/// comes when it comes by a clock that is a little slower.
fn master_silence(kind: BusKind, cycle: Duration) -> Duration {
    match kind {
        _ if kind.is_serial() => part(cycle, 310),
        _ => cycle * 3,
    }
}

/// So many hundredths of a span.
pub(crate) fn part(span: Duration, hundredths: u64) -> Duration {
    Duration::from_nanos(span.as_nanos() / 100 * hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::println;

    const SERIAL: [BusKind; 3] = [BusKind::Rs485At1M, BusKind::Rs485At4M, BusKind::Rs485At115k];

    #[test]
    fn superframes_fit_32_slaves_with_cells_and_a_few_anchors() {
        let rack = Capabilities {
            cells: 18,
            temps: 8,
            anchors: 4,
        };
        for kind in SERIAL {
            let schedule = Schedule::for_bus(kind);
            let least = shortest(&schedule, rack, 32, 2);
            println!("{kind:?}: shortest superframe {} us", least.as_micros());
            assert!(least <= schedule.cycle);
            if kind == BusKind::Rs485At1M {
                assert!(schedule.cycle - least < Duration::from_micros(500));
            }
        }
    }

    #[test]
    fn a_longer_guard_gives_a_longer_superframe_in_which_all_seats_still_have_a_place() {
        let rack = Capabilities {
            cells: 18,
            temps: 8,
            anchors: 4,
        };
        for kind in SERIAL {
            for (seats, guard_us) in [(1, 0), (4, 100), (32, 60), (32, 5_000), (127, 5_000)] {
                let guard = Duration::from_micros(guard_us);
                let schedule = Schedule::for_bus(kind).with_guard(seats, guard);
                assert!(
                    schedule.guard >= guard
                        && schedule.guard >= Timing::guard_of(kind, schedule.cycle)
                );
                assert!(schedule.cycle >= shortest(&schedule, rack, seats, 2));
                assert!(schedule.silence > schedule.cycle * 3);
                assert!(schedule.ranges_phase < schedule.cycle);
            }
        }
    }

    #[test]
    fn from_one_snapshot_to_the_next_every_detail_comes_equally_often_in_whole_rounds() {
        let schedule = Schedule::for_bus(BusKind::Can1M).with_snapshots();
        for count in 1..=6 {
            let mut said = std::vec![];
            for cycle in 0..=255u8 {
                let details = schedule.details_in(cycle, count);
                match (schedule.is_snapshot(cycle), details.len()) {
                    (true, len) => assert_eq!(len, usize::from(count)),
                    (false, 1) => assert!(!schedule.is_reserved(cycle)),
                    (false, len) => assert_eq!(len, 0),
                }
                said.extend(details);
            }
            let rounds = said.chunks(count.into());
            assert!(
                rounds
                    .clone()
                    .all(|round| round.iter().copied().eq(0..count))
            );
            assert!(rounds.len() >= 2 * (1 + 120 / usize::from(count)));
        }
        assert!(schedule.details_in(7, 0).is_empty() && schedule.details_in(0, 0).is_empty());
        let plain = Schedule::for_bus(BusKind::Can1M);
        assert!((0..=255).all(|cycle| !plain.is_snapshot(cycle)));
        assert_eq!(plain.details_in(0, 4), 0..1);
        assert_eq!(plain.details_in(255, 4), 3..4);
        let fd = Schedule::for_bus(BusKind::CanFd).with_snapshots();
        assert!(!fd.is_snapshot(0) && fd.details_in(0, 4).is_empty());
    }

    #[test]
    fn a_cycle_of_the_same_length_changes_nothing() {
        for kind in BusKind::ALL {
            let schedule = Schedule::for_bus(kind);
            assert_eq!(schedule.with_cycle(schedule.cycle), schedule);
        }
    }
}
