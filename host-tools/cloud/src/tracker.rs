//! Sees which records of a master have not come and asks for them until they come or are known
//! to be lost.
//!
//! ```text
//!        number above the next one             300 ms            1 s, 2 s .. 8 s
//! whole ---------------------------> gap ------------------> asked <----------.
//!   ^                                 |                        | '------------'
//!   '----- all came, or are lost -----'------------------------'
//! ```
//!
//! A broker that dies takes along what it had acknowledged and not yet delivered; the bridge
//! cannot know, only the end of the line can.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use helio_bridge::source::APART_MS;
use helio_bridge::topic::Range;

/// What a record is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// The first of its number.
    New,
    /// Came before.
    Duplicate,
}

/// Totals over all runs of the master since the first contact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Different records that came.
    pub received: u64,
    /// Came again.
    pub duplicates: u64,
    /// Found missing and came later.
    pub recovered: u64,
    /// Missing now.
    pub missing: u64,
    /// The bridge said that nobody can have them.
    pub lost: u64,
}

/// The records of one master.
#[derive(Default)]
pub struct Tracker {
    /// Oldest first.
    runs: VecDeque<Run>,
    received: u64,
    duplicates: u64,
    recovered: u64,
    lost: u64,
}

/// From one start of the master to the next.
struct Run {
    /// Its name when we first heard it; orders the runs.
    boot: u64,
    /// Its name as the bridge says it now. A bridge that starts anew reckons it again.
    told: u64,
    /// One past the newest number that we know of.
    next: u64,
    /// The first number that we heard; what is missing below is history that we ask for, not loss.
    first: u64,
    /// In order, not touching.
    gaps: Vec<Gap>,
}

#[derive(Clone, Copy)]
struct Gap {
    from: u64,
    to: u64,
    ask_at: Instant,
    asked: u32,
}

/// Runs that are still completed.
const RUNS: usize = 4;
/// How much history is asked for at first contact.
const HISTORY: u64 = 2_000;
/// Gaps per run; the oldest is given up for one more.
const GAPS: usize = 1_000;
/// What overtook may still come.
const GRACE: Duration = Duration::from_millis(300);
/// First wait for an answer; it doubles up to the eightfold.
const PATIENCE: Duration = Duration::from_secs(1);
/// Records per request.
const CHUNK: u64 = 500;

impl Tracker {
    /// A record came. The second value is the name under which its run is known here.
    pub fn handle_record(&mut self, now: Instant, boot: u64, seq: u64) -> (Arrival, u64) {
        let Some(i) = self.run(boot, seq) else {
            self.duplicates += 1;
            return (Arrival::Duplicate, boot);
        };
        let run = &mut self.runs[i];
        let arrival = if seq >= run.next {
            run.extend(now, seq);
            run.next = seq.saturating_add(1);
            Arrival::New
        } else if run.close(seq, seq) > 0 {
            self.recovered += u64::from(seq >= run.first);
            Arrival::New
        } else {
            Arrival::Duplicate
        };
        match arrival {
            Arrival::New => self.received += 1,
            Arrival::Duplicate => self.duplicates += 1,
        }
        (arrival, run.boot)
    }

    /// The bridge has delivered all below `next`. Gives the name under which the run is known
    /// here; `None`: it is long over.
    pub fn handle_forwarded(&mut self, now: Instant, boot: u64, next: u64) -> Option<u64> {
        let i = self.run(boot, next)?;
        self.runs[i].extend(now, next);
        Some(self.runs[i].boot)
    }

    /// The bridge cannot give these.
    pub fn handle_lost(&mut self, now: Instant, range: Range) {
        let Some(i) = self.runs.iter().position(|run| run.is(range.boot)) else {
            return;
        };
        let run = &mut self.runs[i];
        if range.from <= run.next && range.to >= run.next {
            run.extend(now, range.to.saturating_add(1));
        }
        let before = run.missing();
        run.close(range.from, range.to);
        self.lost += before - run.missing();
    }

    /// What to ask the bridge for.
    pub fn poll_request(&mut self, now: Instant) -> Option<Range> {
        for run in &mut self.runs {
            let Some(i) = run.gaps.iter().position(|gap| gap.ask_at <= now) else {
                continue;
            };
            let gap = run.gaps[i];
            if gap.to - gap.from >= CHUNK {
                // The rest stays due.
                run.gaps[i].to = gap.from + CHUNK - 1;
                let rest = Gap {
                    from: gap.from + CHUNK,
                    ..gap
                };
                run.gaps.insert(i + 1, rest);
            }
            let gap = &mut run.gaps[i];
            gap.ask_at = now + PATIENCE * (1 << gap.asked.min(3));
            gap.asked += 1;
            return Some(Range {
                boot: run.told,
                from: gap.from,
                to: gap.to,
            });
        }
        None
    }

    /// When to call [`Self::poll_request`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let gaps = self.runs.iter().flat_map(|run| &run.gaps);
        gaps.map(|gap| gap.ask_at).min()
    }

    /// Totals.
    pub fn counts(&self) -> Counts {
        Counts {
            received: self.received,
            duplicates: self.duplicates,
            recovered: self.recovered,
            missing: self.runs.iter().map(Run::missing).sum(),
            lost: self.lost,
        }
    }

    /// Place of the run that has this name, a new one if need be; `None` for one long over.
    fn run(&mut self, boot: u64, seq: u64) -> Option<usize> {
        if let Some(i) = self.runs.iter().position(|run| run.is(boot)) {
            self.runs[i].told = boot;
            return Some(i);
        }
        let i = self.runs.partition_point(|run| run.boot < boot);
        if i == 0 && !self.runs.is_empty() {
            return None;
        }
        let run = Run {
            boot,
            told: boot,
            next: seq.saturating_sub(HISTORY).max(1),
            first: seq,
            gaps: Vec::new(),
        };
        self.runs.insert(i, run);
        if self.runs.len() <= RUNS {
            return Some(i);
        }
        let over = self.runs.pop_front();
        self.lost += over.map_or(0, |run| run.missing());
        Some(i - 1)
    }
}

impl Run {
    fn is(&self, boot: u64) -> bool {
        self.boot.abs_diff(boot) <= APART_MS || self.told.abs_diff(boot) <= APART_MS
    }

    /// All below `to` should have come.
    fn extend(&mut self, now: Instant, to: u64) {
        if self.next >= to {
            return;
        }
        if self.gaps.len() >= GAPS {
            self.gaps.remove(0);
        }
        self.gaps.push(Gap {
            from: self.next,
            to: to - 1,
            ask_at: now + GRACE,
            asked: 0,
        });
        self.next = to;
    }

    /// `from..=to` need not be waited for any more; gives how many were.
    fn close(&mut self, from: u64, to: u64) -> u64 {
        let mut closed = 0;
        let mut left = Vec::with_capacity(self.gaps.len() + 1);
        for gap in self.gaps.drain(..) {
            let (a, b) = (gap.from.max(from), gap.to.min(to));
            if a > b {
                left.push(gap);
                continue;
            }
            closed += b - a + 1;
            if gap.from < a {
                left.push(Gap { to: a - 1, ..gap });
            }
            if b < gap.to {
                left.push(Gap { from: b + 1, ..gap });
            }
        }
        self.gaps = left;
        closed
    }

    /// Numbers missing that count as missing.
    fn missing(&self) -> u64 {
        let counted = self.gaps.iter().filter(|gap| gap.to >= self.first);
        counted
            .map(|gap| gap.to - gap.from.max(self.first) + 1)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helio_bridge::outbox::{Outbox, Output};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const BOOT: u64 = 1_700_000_000_000;

    /// One that has seen record 1.
    fn tracker() -> (Tracker, Instant) {
        let (mut t, now) = (Tracker::default(), Instant::now());
        t.handle_record(now, BOOT, 1);
        (t, now)
    }

    fn requests(t: &mut Tracker, now: Instant) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| t.poll_request(now))
            .map(|r| (r.from, r.to))
            .collect()
    }

    #[test]
    fn a_gap_is_asked_for_after_the_grace_and_again_until_it_closes() {
        let (mut t, now) = tracker();
        t.handle_record(now, BOOT, 5);
        assert_eq!(requests(&mut t, now), []);
        let at = now + GRACE;
        assert_eq!(t.poll_timeout(), Some(at));
        assert_eq!(requests(&mut t, at), [(2, 4)]);
        assert_eq!(requests(&mut t, at), []);
        assert_eq!(t.handle_record(at, BOOT, 3).0, Arrival::New);
        assert_eq!(t.counts().missing, 2);
        assert_eq!(requests(&mut t, at + PATIENCE), [(2, 2), (4, 4)]);
        t.handle_record(at, BOOT, 2);
        t.handle_record(at, BOOT, 4);
        assert_eq!(t.poll_timeout(), None);
        assert_eq!(
            t.counts(),
            Counts {
                received: 5,
                recovered: 3,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_record_counts_once() {
        let (mut t, now) = tracker();
        assert_eq!(t.handle_record(now, BOOT, 1).0, Arrival::Duplicate);
        t.handle_record(now, BOOT, 3);
        t.handle_record(now, BOOT, 2);
        assert_eq!(t.handle_record(now, BOOT, 2).0, Arrival::Duplicate);
        assert_eq!(t.counts().received, 3);
    }

    #[test]
    fn silence_after_a_loss_does_not_hide_it() {
        let (mut t, now) = tracker();
        t.handle_forwarded(now, BOOT, 4);
        assert_eq!(requests(&mut t, now + GRACE), [(2, 3)]);
    }

    #[test]
    fn what_the_bridge_cannot_give_is_lost_and_not_asked_for_any_more() {
        let (mut t, now) = tracker();
        t.handle_record(now, BOOT, 5);
        t.handle_lost(
            now,
            Range {
                boot: BOOT,
                from: 1,
                to: 3,
            },
        );
        // A loss may be told before anything newer comes.
        t.handle_lost(
            now,
            Range {
                boot: BOOT,
                from: 6,
                to: 9,
            },
        );
        assert_eq!(requests(&mut t, now + GRACE), [(4, 4)]);
        assert_eq!(
            t.counts(),
            Counts {
                received: 2,
                missing: 1,
                lost: 6,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn history_before_the_first_contact_is_asked_for_but_not_missing() {
        let (mut t, now) = (Tracker::default(), Instant::now());
        t.handle_record(now, BOOT, 801);
        assert_eq!(t.counts().missing, 0);
        assert_eq!(requests(&mut t, now + GRACE), [(1, 500), (501, 800)]);
        t.handle_lost(
            now,
            Range {
                boot: BOOT,
                from: 1,
                to: 700,
            },
        );
        t.handle_record(now, BOOT, 750);
        assert_eq!(
            t.counts(),
            Counts {
                received: 2,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_bridge_that_starts_anew_names_the_same_run_a_little_differently() {
        let (mut t, now) = tracker();
        assert_eq!(
            t.handle_record(now, BOOT + 700, 1),
            (Arrival::Duplicate, BOOT)
        );
        t.handle_record(now, BOOT + 700, 3);
        let request = t.poll_request(now + GRACE).expect("a gap");
        assert_eq!(request.boot, BOOT + 700);
    }

    #[test]
    fn a_restarted_master_does_not_repeat_its_numbers() {
        let (mut t, now) = tracker();
        t.handle_record(now, BOOT, 3);
        assert_eq!(t.handle_record(now, 2 * BOOT, 1).0, Arrival::New);
        // The old run is completed all the same.
        assert_eq!(requests(&mut t, now + GRACE), [(2, 2)]);
        assert_eq!(t.handle_record(now, BOOT, 2).0, Arrival::New);
        // But nothing from before the first contact is.
        assert_eq!(t.handle_record(now, BOOT / 2, 9).0, Arrival::Duplicate);
        assert_eq!(t.counts().missing, 0);
    }

    proptest! {
        /// Bridge and subscriber with a broker between them that dies at will, taking along any
        /// number of messages that it had acknowledged.
        #[test]
        fn nothing_is_missing_in_the_end_whatever_the_broker_does(
            steps in vec((0u8..8, 1u64..12), 1..120),
        ) {
            let mut outbox = Outbox::new(100_000);
            let (mut t, mut now) = (Tracker::default(), Instant::now());
            let (mut broker, mut made, mut had) = (VecDeque::new(), 0, BTreeSet::new());
            outbox.begin(BOOT, 1);
            let mut deliver = |t: &mut Tracker, now, output| match output {
                Output::Record { key, .. } => {
                    let (arrival, _) = t.handle_record(now, key.boot, key.seq);
                    // New exactly when it is.
                    assert_eq!(arrival == Arrival::New, had.insert(key.seq));
                }
                Output::Lost { .. } => panic!("the store was large enough"),
            };
            // First contact, so that everything counts.
            for (what, n) in std::iter::once((0, 1)).chain(steps) {
                match what {
                    0..=2 => for _ in 0..n {
                        made += 1;
                        outbox.push(made, "pack", Default::default());
                    },
                    3..=5 => for _ in 0..n {
                        if let Some(output) = outbox.poll_output() {
                            broker.push_back(output);
                            if what > 3 { outbox.handle_ack(); }
                        }
                        if what > 4 && let Some(output) = broker.pop_front() {
                            deliver(&mut t, now, output);
                        }
                    },
                    6 => { broker.clear(); outbox.handle_disconnect(); }
                    _ => {
                        now += GRACE;
                        while let Some(r) = t.poll_request(now) {
                            outbox.handle_resend(r.boot, r.from, r.to);
                        }
                    }
                }
            }
            outbox.handle_disconnect();
            broker.clear();
            for _ in 0..3 {
                while let Some(output) = outbox.poll_output() {
                    outbox.handle_ack();
                    deliver(&mut t, now, output);
                }
                t.handle_forwarded(now, BOOT, outbox.forwarded().seq);
                now += Duration::from_secs(60);
                while let Some(r) = t.poll_request(now) {
                    outbox.handle_resend(r.boot, r.from, r.to);
                }
            }
            prop_assert_eq!(t.counts().missing, 0);
            prop_assert_eq!(t.counts().received, made);
            prop_assert_eq!(t.poll_timeout(), None);
        }
    }
}
