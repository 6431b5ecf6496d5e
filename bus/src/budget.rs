//! Transmit budget: a token bucket that bounds what a slave can put on the bus, whatever the
//! core above it asks for.

use helio_units::{Duration, Instant};

/// Lets `burst` messages through at once and one more per `interval`.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    interval: Duration,
    burst: u16,
    tokens: u16,
    /// When the newest token came in.
    filled: Instant,
}

impl Budget {
    /// Starts full. An `interval` of zero means no limit.
    pub const fn new(burst: u16, interval: Duration) -> Self {
        Self {
            interval,
            burst,
            tokens: burst,
            filled: Instant::ZERO,
        }
    }

    /// Takes a token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        has
    }

    /// When there is a token again; `None` when there is one.
    pub fn next(&self) -> Option<Instant> {
        (self.tokens == 0).then_some(self.filled + self.interval)
    }

    /// Tokens, when the newest came in, and after how long they are surely all there.
    #[cfg(feature = "model")]
    pub fn parts(&self) -> (u16, Instant, Duration) {
        let burst = u64::from(self.burst) + 1;
        (self.tokens, self.filled, self.interval * burst)
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.since(self.filled).as_nanos();
        let Some(came) = elapsed.checked_div(self.interval.as_nanos()) else {
            self.tokens = self.burst;
            return;
        };
        if came >= u64::from(self.burst - self.tokens.min(self.burst)) {
            // Full: time counts again from the first token taken.
            self.tokens = self.burst;
            self.filled = now;
        } else {
            self.tokens += came as u16;
            self.filled += self.interval * came;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(
            burst in 1..8u16, steps in proptest::collection::vec(0..3_000u64, 1..300),
        ) {
            let interval = Duration::from_nanos(1_000);
            let mut budget = Budget::new(burst, interval);
            let (mut now, mut sent) = (Instant::from_nanos(0), vec![]);
            for step in steps {
                now += Duration::from_nanos(step);
                if budget.take(now) {
                    sent.push(now);
                } else {
                    prop_assert!(budget.next().is_some_and(|t| t > now && t <= now + interval));
                }
            }
            for (i, from) in sent.iter().enumerate() {
                for (j, to) in sent.iter().enumerate().skip(i) {
                    let allowed = u64::from(burst) + to.since(*from).as_nanos() / 1_000;
                    prop_assert!((j - i + 1) as u64 <= allowed);
                }
            }
        }
    }
}
