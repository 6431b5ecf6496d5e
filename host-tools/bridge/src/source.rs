//! What the bridge asks of a master, and how it notices that the master started anew.
//!
//! A master counts its records from 1 each time it starts and has no wall clock. The bridge names
//! each start by the Unix time at which it must have been, in milliseconds: the *boot*. Boot and
//! sequence number together name a record for ever.

use std::future::Future;

use helio_link::types::{Map, Status, Telemetry};
use helio_link::{AskError, Client};

/// A master to read; [`helio_link::Client`] is one.
pub trait Source: Send + 'static {
    /// State of the master and all its nodes.
    fn status(&mut self) -> impl Future<Output = Result<Status, AskError>> + Send;
    /// Records from `since` on, oldest first, at most `max`.
    fn telemetry(
        &mut self,
        since: u64,
        max: u32,
    ) -> impl Future<Output = Result<Telemetry, AskError>> + Send;
    /// The map of anchors.
    fn map(&mut self) -> impl Future<Output = Result<Map, AskError>> + Send;
}

impl Source for Client {
    async fn status(&mut self) -> Result<Status, AskError> {
        Client::status(self).await
    }
    async fn telemetry(&mut self, since: u64, max: u32) -> Result<Telemetry, AskError> {
        Client::telemetry(self, since, max).await
    }
    async fn map(&mut self) -> Result<Map, AskError> {
        Client::map(self).await
    }
}

/// Where we are in a master's stream of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    boot: u64,
    /// Number to ask for next.
    since: u64,
    uptime_ms: u64,
    /// Newest record since the last status.
    newest_us: u64,
}

/// What a status told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The same run of the master.
    Same,
    /// A new one; records from `first` on are ours to deliver.
    New {
        /// Its name, later than any before.
        boot: u64,
        /// First number.
        first: u64,
    },
}

/// Names of two runs differ by more than this; those of one run, reckoned by two bridges, by less.
pub const APART_MS: u64 = 2_000;

/// Within one run a record may be older than the one before it by this much.
const DISORDER_US: u64 = 1_000_000;

impl Position {
    /// Number to ask for next.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// The run that is being read.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Takes in a status that came at `unix_ms`.
    pub fn handle_status(&mut self, unix_ms: u64, status: &Status) -> Seen {
        let known = self.boot != 0;
        let same = status.uptime_ms >= self.uptime_ms.max(self.newest_us / 1_000)
            && status.seq_next >= self.since;
        self.uptime_ms = status.uptime_ms;
        self.newest_us = 0;
        if known && same {
            return Seen::Same;
        }
        // Of a run that we saw begin, all is ours; of one that was going on, what it still has.
        self.since = if known { 1 } else { status.seq_first };
        self.boot = unix_ms
            .saturating_sub(status.uptime_ms)
            .max(self.boot + APART_MS + 1);
        Seen::New {
            boot: self.boot,
            first: self.since,
        }
    }

    /// Takes in a batch that answers [`Self::since`]. `false`: it looks as if from another run of
    /// the master, so drop it and ask for the status before anything else.
    pub fn handle_batch(&mut self, batch: &Telemetry) -> bool {
        let (mut next, mut newest_us) = (self.since, self.newest_us);
        for record in &batch.records {
            if record.seq < next || record.t_us.saturating_add(DISORDER_US) < newest_us {
                return false;
            }
            next = record.seq + 1;
            newest_us = newest_us.max(record.t_us);
        }
        if batch.next < next {
            return false;
        }
        (self.since, self.newest_us) = (batch.next, newest_us);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helio_link::types::{Data, Record};
    use std::collections::BTreeMap;

    const NOON: u64 = 1_700_000_000_000;

    fn status(uptime_ms: u64, seq_first: u64, seq_next: u64) -> Status {
        Status {
            uptime_ms,
            seq_first,
            seq_next,
            ..Status::default()
        }
    }

    fn batch(numbers: std::ops::Range<u64>, t_us: u64) -> Telemetry {
        let records = numbers.clone().map(|seq| Record {
            seq,
            t_us,
            data: Data::Other(BTreeMap::new()),
        });
        Telemetry {
            first: 1,
            next: numbers.end,
            records: records.collect(),
        }
    }

    #[test]
    fn a_master_that_was_running_is_read_from_its_oldest_record() {
        let mut p = Position::default();
        let seen = p.handle_status(NOON, &status(60_000, 40, 90));
        assert_eq!(
            seen,
            Seen::New {
                boot: NOON - 60_000,
                first: 40
            }
        );
        assert!(p.handle_batch(&batch(40..60, 20_000_000)));
        // The status is newer than the backlog that is still being read.
        assert_eq!(
            p.handle_status(NOON + 1_000, &status(61_000, 40, 95)),
            Seen::Same
        );
        assert!(p.handle_batch(&batch(60..95, 30_000_000)));
        assert_eq!(p.since(), 95);
    }

    #[test]
    fn a_restart_is_seen_by_uptime_or_by_numbers_and_begins_at_one() {
        for (uptime, seq_next) in [(59_000, 500), (70_000, 3)] {
            let mut p = Position::default();
            p.handle_status(NOON, &status(60_000, 1, 90));
            assert!(p.handle_batch(&batch(1..90, 60_000_000)));
            let seen = p.handle_status(NOON, &status(uptime, 1, seq_next));
            assert!(
                matches!(seen, Seen::New { boot, first: 1 } if boot > NOON - 60_000),
                "{seen:?}"
            );
        }
    }

    #[test]
    fn a_batch_of_another_run_is_not_mixed_in() {
        let mut p = Position::default();
        p.handle_status(NOON, &status(60_000, 1, 10));
        assert!(p.handle_batch(&batch(1..10, 60_000_000)));
        let before = p;
        // Its numbers would fit, its time does not.
        assert!(!p.handle_batch(&batch(10..20, 500_000)));
        // A master that counts anew has nothing that we ask for.
        assert!(!p.handle_batch(&batch(5..5, 0)));
        assert_eq!(p, before);
    }
}
