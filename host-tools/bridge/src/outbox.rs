//! Store and forward for one master: which record is said next, and what is known to be lost.
//!
//! Records go in by [`Outbox::push`] and stay, said or not, until newer ones need their room.
//! [`Outbox::poll_output`] hands out what to publish: new records in order, ranges a subscriber
//! asked for again, and the ranges nobody can have any more. It knows neither MQTT nor time.
//!
//! ```text
//!          oldest kept          cursor            newest
//!   dropped |  acknowledged ... | not yet said ... |        new:   cursor moves right
//!           |    ^-- from .. to asked for again    |        lost connection: cursor moves back
//!                                                                   to the oldest unacknowledged
//! ```
//!
//! Where the cursor steps over numbers that are not there, they are lost, whatever the reason:
//! dropped here unsaid, or gone from the master before we asked.

use std::collections::VecDeque;

use bytes::Bytes;

/// Names a record for ever: the start of its master (Unix time in ms) and its number since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// See [`crate::source`].
    pub boot: u64,
    /// The master's sequence number.
    pub seq: u64,
}

/// What to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// A record.
    Record {
        /// Its name.
        key: Key,
        /// `pack`, `slave`, `tag` or `event`.
        kind: String,
        /// As it is published.
        payload: Bytes,
    },
    /// The records `from..=to` of this boot cannot be had any more.
    Lost {
        /// Start of the master that made them.
        boot: u64,
        /// First number.
        from: u64,
        /// Last number.
        to: u64,
    },
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records taken in.
    pub taken: u64,
    /// Records said again because a connection was lost before they were acknowledged.
    pub repeated: u64,
    /// Records said again because a subscriber asked.
    pub resent: u64,
    /// Records that can never be said.
    pub lost: u64,
}

struct Record {
    key: Key,
    kind: String,
    payload: Bytes,
}

struct Boot {
    start: u64,
    /// First number that is ours to deliver.
    first: u64,
    /// One past the newest number.
    end: u64,
}

/// See the module.
pub struct Outbox {
    capacity: usize,
    records: VecDeque<Record>,
    /// The master's boots, oldest first.
    boots: VecDeque<Boot>,
    /// First record not yet said.
    cursor: Key,
    /// Losses below this are counted.
    counted: Key,
    /// Said and not acknowledged; `None` for what need not be repeated.
    unacked: VecDeque<Option<Key>>,
    /// Asked for again: boot, first and last number.
    asked: VecDeque<(u64, u64, u64)>,
    asked_turn: bool,
    counts: Counts,
}

impl Record {
    fn output(&self) -> Output {
        Output::Record {
            key: self.key,
            kind: self.kind.clone(),
            payload: self.payload.clone(),
        }
    }
}

/// Boots whose numbers are still known.
const BOOTS: usize = 4;
/// Ranges that may wait to be said again; a subscriber asks again anyway.
const ASKED: usize = 64;

impl Outbox {
    /// Keeps at most `capacity` records, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            records: VecDeque::new(),
            boots: VecDeque::new(),
            cursor: Key { boot: 0, seq: 0 },
            counted: Key { boot: 0, seq: 0 },
            unacked: VecDeque::new(),
            asked: VecDeque::new(),
            asked_turn: false,
            counts: Counts::default(),
        }
    }

    /// The master started at `boot`, later than any before; its numbers from `first` on are to
    /// be delivered.
    pub fn begin(&mut self, boot: u64, first: u64) {
        if self.boots.is_empty() {
            self.cursor = Key { boot, seq: first };
        }
        if self.boots.len() >= BOOTS {
            self.boots.pop_front();
        }
        self.boots.push_back(Boot {
            start: boot,
            first,
            end: first,
        });
    }

    /// Takes in a record of the newest boot. One that is not newer than the last is ignored.
    pub fn push(&mut self, seq: u64, kind: &str, payload: Bytes) {
        let Some(boot) = self.boots.back_mut().filter(|boot| seq >= boot.end) else {
            return;
        };
        boot.end = seq.saturating_add(1);
        let key = Key {
            boot: boot.start,
            seq,
        };
        if self.records.len() >= self.capacity {
            self.records.pop_front();
        }
        self.records.push_back(Record {
            key,
            kind: kind.into(),
            payload,
        });
        self.counts.taken += 1;
    }

    /// A subscriber misses `from..=to`.
    pub fn handle_resend(&mut self, boot: u64, from: u64, to: u64) {
        if from <= to && self.asked.len() < ASKED && !self.asked.contains(&(boot, from, to)) {
            self.asked.push_back((boot, from, to));
        }
    }

    /// The oldest output that [`Self::poll_output`] gave was acknowledged.
    pub fn handle_ack(&mut self) {
        self.unacked.pop_front();
    }

    /// The connection is gone; what was not acknowledged will be said again.
    pub fn handle_disconnect(&mut self) {
        if let Some(oldest) = self.unacked.drain(..).flatten().min() {
            let again = self.index(self.cursor) - self.index(oldest);
            self.counts.repeated += again as u64;
            self.cursor = oldest;
        }
    }

    /// What to publish next. Each output wants one [`Self::handle_ack`].
    pub fn poll_output(&mut self) -> Option<Output> {
        // In turn, so that neither a backlog nor a subscriber's appetite starves the other.
        self.asked_turn = !self.asked_turn;
        let (again, new) = if self.asked_turn {
            let again = self.poll_asked();
            let new = again.is_none().then(|| self.poll_new()).flatten();
            (again, new)
        } else {
            let new = self.poll_new();
            let again = new.is_none().then(|| self.poll_asked()).flatten();
            (again, new)
        };
        self.unacked.push_back(match (&again, &new) {
            (None, None) => return None,
            (None, Some(Output::Record { key, .. })) => Some(*key),
            // Whoever misses these asks again.
            _ => None,
        });
        again.or(new)
    }

    fn poll_new(&mut self) -> Option<Output> {
        loop {
            let Key { boot, seq } = self.cursor;
            let end = self
                .boots
                .iter()
                .find(|b| b.start == boot)
                .map_or(seq, |b| b.end);
            let found = self.records.get(self.index(self.cursor));
            let found = found.filter(|record| record.key.boot == boot);
            let stop = found.map_or(end, |record| record.key.seq);
            if seq < stop {
                let output = Output::Lost {
                    boot,
                    from: seq,
                    to: stop - 1,
                };
                self.cursor.seq = stop;
                if self.counted < self.cursor {
                    let from = if self.counted.boot == boot {
                        seq.max(self.counted.seq)
                    } else {
                        seq
                    };
                    self.counts.lost += stop - from;
                    self.counted = self.cursor;
                }
                return Some(output);
            }
            if let Some(record) = found {
                self.cursor.seq = seq.saturating_add(1);
                return Some(record.output());
            }
            let next = self.boots.iter().find(|b| b.start > boot)?;
            self.cursor = Key {
                boot: next.start,
                seq: next.first,
            };
        }
    }

    fn poll_asked(&mut self) -> Option<Output> {
        loop {
            let &(boot, from, to) = self.asked.front()?;
            // What was not said yet is not said again.
            let known = self.boots.iter().find(|b| b.start == boot);
            let said = match known {
                Some(_) if boot > self.cursor.boot => from,
                Some(_) if boot == self.cursor.boot => self.cursor.seq,
                Some(known) => known.end,
                None => u64::MAX,
            };
            let to = to.min(said.saturating_sub(1));
            if from > to {
                self.asked.pop_front();
                continue;
            }
            let found = self.records.get(self.index(Key { boot, seq: from }));
            let found = found.filter(|r| r.key.boot == boot && r.key.seq <= to);
            let (output, next) = match found {
                Some(record) if record.key.seq == from => {
                    self.counts.resent += 1;
                    (record.output(), from.saturating_add(1))
                }
                Some(record) => {
                    let next = record.key.seq;
                    (
                        Output::Lost {
                            boot,
                            from,
                            to: next - 1,
                        },
                        next,
                    )
                }
                None => (Output::Lost { boot, from, to }, u64::MAX),
            };
            if let Some(front) = self.asked.front_mut() {
                front.1 = next;
            }
            return Some(output);
        }
    }

    /// Place of the first record that is not before `key`.
    fn index(&self, key: Key) -> usize {
        self.records.partition_point(|record| record.key < key)
    }

    /// The name of the first record that the broker may not have yet.
    pub fn forwarded(&self) -> Key {
        self.unacked
            .iter()
            .flatten()
            .min()
            .map_or(self.cursor, |oldest| self.cursor.min(*oldest))
    }

    /// The oldest record kept.
    pub fn kept_from(&self) -> Option<Key> {
        self.records.front().map(|r| r.key)
    }

    /// Number of records kept.
    pub fn kept(&self) -> usize {
        self.records.len()
    }

    /// Totals since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const BOOT: u64 = 1_000;

    fn outbox(capacity: usize, numbers: impl IntoIterator<Item = u64>) -> Outbox {
        let mut outbox = Outbox::new(capacity);
        outbox.begin(BOOT, 1);
        push(&mut outbox, numbers);
        outbox
    }

    fn push(outbox: &mut Outbox, numbers: impl IntoIterator<Item = u64>) {
        for seq in numbers {
            outbox.push(seq, "pack", Bytes::new());
        }
    }

    /// `Ok` a record, `Err` a lost range.
    fn said(outbox: &mut Outbox) -> Vec<Result<u64, (u64, u64)>> {
        std::iter::from_fn(|| outbox.poll_output())
            .map(|output| match output {
                Output::Record { key, .. } => Ok(key.seq),
                Output::Lost { from, to, .. } => Err((from, to)),
            })
            .collect()
    }

    #[test]
    fn what_was_not_acknowledged_is_said_again_in_order() {
        let mut o = outbox(100, 1..=5);
        assert_eq!(said(&mut o), [Ok(1), Ok(2), Ok(3), Ok(4), Ok(5)]);
        o.handle_ack();
        o.handle_ack();
        assert_eq!(o.forwarded().seq, 3);
        o.handle_disconnect();
        push(&mut o, [6]);
        assert_eq!(said(&mut o), [Ok(3), Ok(4), Ok(5), Ok(6)]);
        assert_eq!(o.counts().repeated, 3);
    }

    #[test]
    fn a_full_store_drops_the_oldest_and_says_so_once() {
        let mut o = outbox(3, 1..=10);
        assert_eq!(said(&mut o), [Err((1, 7)), Ok(8), Ok(9), Ok(10)]);
        assert_eq!(o.counts().lost, 7);
        // The loss is said again after a lost connection, but not counted again.
        o.handle_disconnect();
        push(&mut o, [11]);
        assert_eq!(said(&mut o), [Err((8, 8)), Ok(9), Ok(10), Ok(11)]);
        assert_eq!(o.counts().lost, 7 + 1);
    }

    #[test]
    fn numbers_the_master_had_dropped_already_are_lost() {
        let mut o = outbox(100, [1, 2, 7]);
        assert_eq!(said(&mut o), [Ok(1), Ok(2), Err((3, 6)), Ok(7)]);
        assert_eq!(o.counts().lost, 4);
    }

    #[test]
    fn acknowledged_records_can_be_had_again() {
        let mut o = outbox(100, 1..=9);
        said(&mut o);
        for _ in 1..=9 {
            o.handle_ack();
        }
        o.handle_resend(BOOT, 3, 5);
        o.handle_resend(BOOT, 9, 20);
        assert_eq!(said(&mut o), [Ok(3), Ok(4), Ok(5), Ok(9)]);
        assert_eq!(o.counts().resent, 4);
    }

    #[test]
    fn asking_for_what_is_gone_is_answered_with_lost() {
        let mut o = outbox(3, 1..=10);
        said(&mut o);
        o.handle_resend(BOOT, 5, 9);
        o.handle_resend(BOOT, 2, 3);
        o.handle_resend(7, 1, 2);
        assert_eq!(
            said(&mut o),
            [Err((5, 7)), Ok(8), Ok(9), Err((2, 3)), Err((1, 2))]
        );
    }

    #[test]
    fn a_restarted_master_counts_from_one_again_and_nothing_old_is_forgotten() {
        let mut o = outbox(100, 1..=3);
        o.begin(2 * BOOT, 1);
        push(&mut o, [1, 2]);
        assert_eq!(said(&mut o), [Ok(1), Ok(2), Ok(3), Ok(1), Ok(2)]);
        assert_eq!(o.forwarded(), Key { boot: BOOT, seq: 1 });
        o.handle_resend(BOOT, 2, 2);
        assert_eq!(said(&mut o), [Ok(2)]);
    }

    proptest! {
        /// A subscriber that asks for what it misses gets it, or hears that it is lost, through
        /// any sequence of lost connections, lost acknowledged messages and restarts.
        #[test]
        fn every_record_arrives_or_is_reported_lost(
            capacity in 1usize..40,
            steps in vec((0u8..10, 1u64..12), 1..80),
        ) {
            let mut o = Outbox::new(capacity);
            let mut made: Vec<(u64, u64)> = Vec::new();
            let mut known = std::collections::BTreeSet::new();
            let (mut boot, mut seq, mut boots) = (BOOT, 1, 1);
            o.begin(boot, 1);
            let mut learn = |output: Output| match output {
                Output::Record { key, .. } => { known.insert((key.boot, key.seq)); }
                Output::Lost { boot, from, to } => known.extend((from..=to).map(|s| (boot, s))),
            };
            for (what, n) in steps {
                match what {
                    // The last number of a push may be skipped: the master dropped it.
                    0..=3 => for _ in 0..n {
                        o.push(seq, "pack", Bytes::new());
                        made.push((boot, seq));
                        seq += if what == 3 { 2 } else { 1 };
                    },
                    // Delivered and acknowledged.
                    4 | 5 => for _ in 0..n {
                        if let Some(output) = o.poll_output() { learn(output); }
                        o.handle_ack();
                    },
                    // Delivered, the acknowledgement still under way.
                    6 => for _ in 0..n { o.poll_output().into_iter().for_each(&mut learn); },
                    // Acknowledged by a broker that then dies with it.
                    7 => for _ in 0..n { o.poll_output(); o.handle_ack(); },
                    8 => o.handle_disconnect(),
                    _ if boots < BOOTS => {
                        boots += 1;
                        boot += BOOT;
                        seq = 1;
                        o.begin(boot, 1);
                    }
                    _ => {}
                }
            }
            o.handle_disconnect();
            while let Some(output) = o.poll_output() { learn(output); o.handle_ack(); }
            prop_assert_eq!(o.forwarded().boot, boot);
            let missing: Vec<_> = made.iter().filter(|key| !known.contains(*key)).copied().collect();
            for (boot, seq) in missing {
                o.handle_resend(boot, seq, seq);
                let answer = o.poll_output();
                prop_assert!(answer.is_some(), "no answer for {:?}", (boot, seq));
                prop_assert_eq!(o.poll_output(), None);
            }
        }
    }
}
