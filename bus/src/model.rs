//! For the model checker only (feature `model`): a link's state as a number in which times count
//! from now, so that two moments at which a link will decide alike are one state.
//!
//! Left out is what decides nothing about membership: statistics, measured values, the master's
//! clock, datagrams. [`MasterLink::forget`](crate::MasterLink::forget) and its like at the slave
//! set message counters back, which would else tell every cycle from the one before: from one cycle
//! to the next the next message is believed. Within a cycle repetitions are still found.

use crate::budget::Budget;
use crate::e2e::Receiver;
use crate::join::mix;
use helio_units::{Duration, Instant};

/// A hash that takes times relative to now, in whole ticks.
pub struct Print {
    now: Instant,
    tick: Duration,
    hash: u64,
}

impl Print {
    /// Nothing happens between two ticks, so a time to come counts as the tick at which it will
    /// have come.
    pub fn new(now: Instant, tick: Duration) -> Self {
        Self { now, tick, hash: 0 }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Adds a value.
    pub fn value(&mut self, value: u64) {
        self.hash = mix(self.hash ^ mix(value ^ 0x9e37_79b9_7f4a_7c15));
    }

    /// Adds a time. Ages of `limit` and more are one.
    pub fn time(&mut self, at: Instant, limit: Duration) {
        let tick = self.tick.as_nanos().max(1);
        if at == Instant::MAX {
            self.value(1);
        } else if at > self.now {
            self.value(2 + at.since(self.now).as_nanos().div_ceil(tick) * 2);
        } else {
            self.value(3 + self.now.since(at).min(limit).as_nanos() / tick * 2);
        }
    }

    /// Adds a time that may be missing.
    pub fn maybe(&mut self, at: Option<Instant>, limit: Duration) {
        match at {
            Some(at) => self.time(at, limit),
            None => self.value(0),
        }
    }

    /// The state as a number.
    pub fn finish(&self) -> u64 {
        self.hash
    }

    pub(crate) fn receiver(&mut self, receiver: &Receiver) {
        self.value(match *receiver {
            Receiver::Nothing => 0,
            Receiver::Counting { last } => 1 << 8 | u64::from(last),
            Receiver::Doubting { last, strange } => {
                2 << 16 | u64::from(last) << 8 | u64::from(strange)
            }
        });
    }

    pub(crate) fn budget(&mut self, budget: &Budget) {
        let (tokens, filled, full_after) = budget.parts();
        self.value(tokens.into());
        self.time(filled, full_after);
    }
}
