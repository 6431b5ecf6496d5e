//! When to measure: decides the instants of the samples, driven by [`crate::Slave`].
//!
//! The grid is the receipt of the last SYNC plus whole periods. Clocks drift, so the tick that
//! would fall next to the coming SYNC is held back for it: the SYNC itself takes the sample, and
//! all slaves of a bus measure at one instant. If that SYNC fails to come, the tick is made up
//! [`Grid::hold`] after it was due. Without any SYNC the grid runs on freely.
//!
//! ```text
//!   SYNC        tick        SYNC        tick      (lost)+hold   tick        SYNC
//!    |-----------|-----------|-----------|-----------:--|--------|-----------|
//!    0         period      cycle                   2 cycles
//! ```
//!
//! Two samples are never closer than a quarter of a period, whatever the master does, so it
//! cannot use up a slave's computing time; and never further apart than 1.5 periods plus hold.
//! Only the first SYNC after a silence may follow a sample by as little as 100 µs: what is said
//! in its cycle would else be up to a quarter of a period older than in any other.

use helio_units::{Duration, Instant};

/// Shortest period that is accepted; a shorter one would leave no time to work.
const SHORTEST: Duration = Duration::from_micros(100);

/// The instants of the samples.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    period: Duration,
    /// What two samples keep apart; also the room that the jitter of SYNC gets.
    quarter: Duration,
    /// Half a period: a tick less than this ahead of the next SYNC waits for it.
    half: Duration,
    hold: Duration,
    cycle: Duration,
    patience: Duration,
    next: Instant,
    sync: Option<Expected>,
    asked: Option<Instant>,
    /// The last SYNC, however long ago.
    synced: Instant,
}

/// The SYNC that should come next.
#[derive(Clone, Copy, Debug)]
struct Expected {
    heard: Instant,
    due: Instant,
}

impl Grid {
    /// A grid of `period` for a master that says SYNC every `cycle` and is silent after
    /// `patience` without one. The first sample is due at once.
    pub fn new(period: Duration, cycle: Duration, patience: Duration) -> Self {
        let period = period.max(SHORTEST);
        let part = |n| Duration::from_nanos(period.as_nanos() / n);
        Self {
            period,
            quarter: part(4),
            half: part(2),
            hold: part(8),
            cycle: cycle.max(SHORTEST),
            patience,
            ..Self::NONE
        }
    }

    /// Of no bus.
    pub const NONE: Self = Self {
        period: SHORTEST,
        quarter: SHORTEST,
        half: SHORTEST,
        hold: SHORTEST,
        cycle: SHORTEST,
        patience: SHORTEST,
        next: Instant::ZERO,
        sync: None,
        asked: None,
        synced: Instant::ZERO,
    };

    /// When the last SYNC came; zero before the first.
    pub fn synced(&self) -> Instant {
        self.synced
    }

    /// When the next sample is due if no SYNC comes before.
    pub fn due(&self) -> Instant {
        match self.sync {
            Some(s) if self.next + self.half > s.due && self.next <= s.due + self.hold => {
                s.due + self.hold
            }
            _ => self.next,
        }
    }

    /// The earliest instant at which the next sample is to be reckoned with, SYNC included.
    pub fn earliest(&self) -> Instant {
        match self.sync {
            Some(s) => self.next.min(s.due),
            None => self.next,
        }
    }

    /// No sample before `at`, unless a SYNC comes.
    pub fn skip(&mut self, at: Instant) {
        self.next = self.next.max(at);
        self.sync = None;
    }

    /// A SYNC has come: the grid starts anew here. Whether to measure now.
    pub fn handle_sync(&mut self, now: Instant) -> bool {
        self.next = now + self.period;
        self.synced = now;
        let apart = match self.sync {
            Some(_) => self.quarter,
            None => SHORTEST,
        };
        self.sync = Some(Expected {
            heard: now,
            due: now + self.cycle,
        });
        let ask = self.asked.is_none_or(|asked| now.since(asked) >= apart);
        if ask {
            self.asked = Some(now);
        }
        ask
    }

    /// Whether to measure now.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if now < self.due() {
            return false;
        }
        self.asked = Some(now);
        self.next = after(self.next, self.period, now);
        self.sync = self.sync.and_then(|s| {
            let alive = now.since(s.heard) < self.patience;
            alive.then(|| Expected {
                due: after(s.due, self.cycle, now),
                ..s
            })
        });
        true
    }
}

/// The first of `from`, `from + step`, ... that lies after `now`.
fn after(from: Instant, step: Duration, now: Instant) -> Instant {
    if from > now {
        return from;
    }
    let next = from + step;
    if next > now {
        return next; // the usual case, without a 64-bit division
    }
    let steps = now.since(from).as_nanos() / step.as_nanos().max(1);
    from + step * steps.saturating_add(1)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }
    fn us(n: u64) -> Instant {
        Instant::from_micros(n)
    }
    const PATIENCE: Duration = Duration::from_millis(100);

    fn grid(cycle: u64) -> Grid {
        Grid::new(ms(10), ms(cycle), PATIENCE)
    }

    /// Runs `grid` with SYNCs at these instants until `end`; the instants of the samples.
    fn samples(grid: &mut Grid, syncs: &[Instant], end: Instant) -> Vec<Instant> {
        let mut out = Vec::new();
        let mut syncs = syncs.iter().copied().peekable();
        loop {
            let due = grid.due();
            let (now, sync) = match syncs.peek() {
                Some(&s) if s <= due => (s, true),
                _ => (due, false),
            };
            if now > end {
                return out;
            }
            let ask = if sync {
                syncs.next();
                grid.handle_sync(now)
            } else {
                grid.handle_timeout(now)
            };
            if ask {
                out.push(now);
            }
            assert!(grid.due() > now, "the grid stands still at {now}");
        }
    }

    #[test]
    fn without_a_master_the_grid_runs_freely_from_the_first_call() {
        let got = samples(&mut grid(20), &[], us(35_000));
        assert_eq!(got, [0, 10_000, 20_000, 30_000].map(us));
    }

    #[test]
    fn a_sync_takes_the_sample_and_the_ticks_follow_it() {
        let got = samples(&mut grid(20), &[us(3_000), us(23_100)], us(40_000));
        assert_eq!(got, [0, 3_000, 13_000, 23_100, 33_100].map(us));
    }

    #[test]
    fn a_lost_sync_delays_its_sample_by_the_hold_only() {
        let got = samples(&mut grid(20), &[us(5_000)], us(60_000));
        assert_eq!(
            got,
            [0, 5_000, 15_000, 26_250, 35_000, 46_250, 55_000].map(us)
        );
    }

    #[test]
    fn a_master_silent_for_long_no_longer_holds_anything_back() {
        let got = samples(&mut grid(20), &[us(5_000)], us(300_000));
        let last: Vec<_> = got.iter().rev().take(10).collect();
        assert!(last.iter().all(|t| t.as_micros() % 10_000 == 5_000));
    }

    #[test]
    fn a_call_hours_late_asks_once_and_goes_on_in_the_future() {
        let mut g = grid(20);
        assert!(g.handle_timeout(us(0)));
        let late = Instant::from_millis(3 * 3_600_000 + 3);
        assert!(g.handle_timeout(late));
        assert!(!g.handle_timeout(late));
        assert_eq!(g.due(), Instant::from_millis(3 * 3_600_000 + 10));
    }

    proptest! {
        #[test]
        fn every_sync_of_a_drifting_master_takes_its_sample_at_once(
            cycle in prop::sample::select(std::vec![10u64, 20, 22, 25, 26, 40, 47]),
            ppm in -500i64..500,
            jitter in prop::collection::vec(0u64..1_000, 50),
        ) {
            let mut g = grid(cycle);
            let mut t = 7_000_000i64;
            let mut syncs = Vec::new();
            for j in jitter {
                t += cycle as i64 * 1_000_000 + cycle as i64 * ppm;
                syncs.push(Instant::from_nanos(t as u64 + j * 1_000));
            }
            let end = *syncs.last().unwrap();
            let got = samples(&mut g, &syncs, end);
            for s in &syncs[1..] {
                prop_assert!(got.contains(s), "no sample at the SYNC of {s}: {got:?}");
            }
            for t in &got {
                // Between two SYNCs a sample is on the grid of the first one.
                let Some(s) = syncs.iter().rev().find(|s| *s <= t) else { continue };
                prop_assert_eq!(t.since(*s).as_nanos() % ms(10).as_nanos(), 0);
            }
        }

        #[test]
        fn samples_are_never_crowded_and_never_far_apart(
            cycle in 1u64..60,
            gaps in prop::collection::vec(0u64..60_000, 1..200),
        ) {
            let mut t = 0;
            let syncs: Vec<_> = gaps.iter().map(|g| { t += g; us(t) }).collect();
            let got = samples(&mut grid(cycle), &syncs, us(t));
            for w in got.windows(2) {
                let gap = w[1].since(w[0]).as_micros();
                prop_assert!((100..=16_250 + 2_500).contains(&gap), "{gap} us");
                let before = syncs.iter().rev().find(|s| **s < w[1]);
                let first = before.is_none_or(|s| w[1].since(*s) >= PATIENCE);
                prop_assert!(gap >= 2_500 || first, "{gap} us");
            }
        }
    }
}
