//! When the whole pack rests: gates and contactors open, the bus quiet, the processor free to stop its clock.
//!
//! [`crate::Master`] tells what it sees ([`Sleep::update`]) and keeps the bus quiet while [`Sleep::is_asleep`]. Now and then the
//! pack is looked at: the bus runs for a moment, all slaves join, their cells at rest correct the states of charge, and what went
//! wrong meanwhile is told north. Without a master slaves go on protecting, at their own slower pace.
//!
//! ```text
//!           told, or open for `after`                    `check_every` over
//!    Awake ---------------------------> Asleep ------------------------------> Checking
//!      ^                                 |  ^                                    | |
//!      '------ switched on, woken -------'  '------ `check_for` over, idle ------' |
//!      '---------------------- switched on, woken ---------------------------------'
//! ```

use helio_units::{Duration, Instant};

/// When to rest and how often to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepConfig {
    /// Falls asleep by itself when the pack has been switched off and idle for so long; `None`: only when told.
    pub after: Option<Duration>,
    /// How often the sleeping pack is looked at.
    pub check_every: Duration,
    /// How long a look takes: all slaves must join and measure in it.
    pub check_for: Duration,
}

impl Default for SleepConfig {
    /// Only when told; a look of 2 s every 10 minutes.
    fn default() -> Self {
        Self {
            after: None,
            check_every: Duration::from_secs(600),
            check_for: Duration::from_secs(2),
        }
    }
}

/// What the master sees of its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Somebody wants the pack on.
    pub wanted: bool,
    /// No gate and no contactor is closed.
    pub open: bool,
    /// Something is left to do, such as balancing.
    pub busy: bool,
}

/// What has just changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The bus is to be quiet from now on.
    Asleep,
    /// The bus runs again, for good.
    Awake,
    /// The bus runs for a look.
    Looking,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Awake { idle_since: Option<Instant> },
    Asleep { look_at: Instant },
    Checking { until: Instant },
}

/// Decides whether the pack rests.
#[derive(Clone, Debug)]
pub struct Sleep {
    config: SleepConfig,
    state: State,
    /// Told to sleep, and not woken since.
    told: bool,
    /// Told to wake up.
    woken: bool,
}

impl Sleep {
    /// Awake.
    pub const fn new(config: SleepConfig) -> Self {
        Self {
            config,
            state: State::Awake { idle_since: None },
            told: false,
            woken: false,
        }
    }

    /// Told to sleep as soon as everything is open, or to wake up.
    pub fn tell(&mut self, sleep: bool) {
        self.told = sleep;
        self.woken = !sleep;
    }

    /// Whether the bus must be quiet.
    pub fn is_asleep(&self) -> bool {
        matches!(self.state, State::Asleep { .. })
    }

    /// Whether the pack is only being looked at.
    pub fn is_checking(&self) -> bool {
        matches!(self.state, State::Checking { .. })
    }

    /// Looks at the pack; early and repeated calls are harmless.
    pub fn update(&mut self, now: Instant, seen: Seen) -> Option<Change> {
        let idle = seen.open && !seen.wanted;
        self.told &= !seen.wanted;
        let woken = core::mem::take(&mut self.woken) || !idle;
        match self.state {
            // Who is told to sleep does not go on balancing.
            State::Awake { .. } if idle && self.told => Some(self.sleep(now)),
            State::Awake { .. } if !idle || seen.busy => {
                self.state = State::Awake { idle_since: None };
                None
            }
            State::Awake { idle_since } => {
                let since = idle_since.unwrap_or(now);
                self.state = State::Awake {
                    idle_since: Some(since),
                };
                let over = |after| now.since(since) >= after;
                self.config.after.is_some_and(over).then(|| self.sleep(now))
            }
            State::Asleep { .. } if woken => Some(self.wake()),
            State::Asleep { look_at } if now >= look_at => {
                self.state = State::Checking {
                    until: now + self.config.check_for,
                };
                Some(Change::Looking)
            }
            State::Asleep { .. } => None,
            State::Checking { .. } if woken => Some(self.wake()),
            State::Checking { until } if now >= until && seen.busy && !self.told => {
                Some(self.wake())
            }
            State::Checking { until } if now >= until => Some(self.sleep(now)),
            State::Checking { .. } => None,
        }
    }

    /// When to call [`Self::update`] next, whatever else happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Awake { idle_since } => Some(idle_since? + self.config.after?),
            State::Asleep { look_at } => Some(look_at),
            State::Checking { until } => Some(until),
        }
    }

    fn sleep(&mut self, now: Instant) -> Change {
        self.state = State::Asleep {
            look_at: now + self.config.check_every,
        };
        Change::Asleep
    }

    fn wake(&mut self) -> Change {
        self.state = State::Awake { idle_since: None };
        Change::Awake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Seen = Seen {
        wanted: false,
        open: true,
        busy: false,
    };
    const ON: Seen = Seen {
        wanted: true,
        open: false,
        busy: false,
    };

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1_000)
    }

    fn sleeper() -> Sleep {
        Sleep::new(SleepConfig {
            after: Some(Duration::from_secs(60)),
            ..SleepConfig::default()
        })
    }

    #[test]
    fn falls_asleep_when_it_has_been_idle_long_enough_and_looks_now_and_then() {
        let mut s = sleeper();
        assert_eq!(s.update(at(0), ON), None);
        assert_eq!(s.poll_timeout(), None);
        assert_eq!(s.update(at(10), IDLE), None);
        assert_eq!(s.poll_timeout(), Some(at(70)));
        assert_eq!(s.update(at(69), IDLE), None);
        assert_eq!(s.update(at(70), IDLE), Some(Change::Asleep));
        assert!(s.is_asleep());
        assert_eq!(s.update(at(669), IDLE), None);
        assert_eq!(s.poll_timeout(), Some(at(670)));
        assert_eq!(s.update(at(670), IDLE), Some(Change::Looking));
        assert_eq!((s.is_checking(), s.is_asleep()), (true, false));
        assert_eq!(s.update(at(671), IDLE), None);
        assert_eq!(s.poll_timeout(), Some(at(672)));
        assert_eq!(s.update(at(672), IDLE), Some(Change::Asleep));
    }

    #[test]
    fn balancing_or_a_short_use_puts_sleep_off() {
        let mut s = sleeper();
        let busy = Seen { busy: true, ..IDLE };
        s.update(at(0), IDLE);
        assert_eq!(s.update(at(59), busy), None);
        assert_eq!(s.update(at(60), IDLE), None, "the minute begins anew");
        assert_eq!(s.update(at(119), ON), None);
        assert_eq!(s.update(at(120), IDLE), None);
        assert_eq!(s.update(at(180), IDLE), Some(Change::Asleep));
        // A look finds cells to balance, and stays for it.
        assert_eq!(s.update(at(780), IDLE), Some(Change::Looking));
        assert_eq!(s.update(at(782), busy), Some(Change::Awake));
    }

    #[test]
    fn an_order_sends_it_to_sleep_as_soon_as_everything_is_open() {
        let mut s = Sleep::new(SleepConfig::default());
        let closed = Seen {
            open: false,
            ..IDLE
        };
        assert_eq!(s.update(at(100_000), IDLE), None, "not by itself");
        assert_eq!(s.poll_timeout(), None);
        s.tell(true);
        assert_eq!(s.update(at(100_001), closed), None);
        let busy = Seen { busy: true, ..IDLE };
        assert_eq!(s.update(at(100_002), busy), Some(Change::Asleep));
        // Nor does a look end in balancing then.
        assert_eq!(s.update(at(100_602), busy), Some(Change::Looking));
        assert_eq!(s.update(at(100_604), busy), Some(Change::Asleep));
    }

    #[test]
    fn it_wakes_when_told_or_wanted_asleep_or_looking() {
        for looking in [false, true] {
            for told in [false, true] {
                let mut s = Sleep::new(SleepConfig::default());
                s.tell(true);
                assert_eq!(s.update(at(0), IDLE), Some(Change::Asleep));
                if looking {
                    assert_eq!(s.update(at(600), IDLE), Some(Change::Looking));
                }
                if told {
                    s.tell(false);
                }
                let seen = if told { IDLE } else { ON };
                assert_eq!(s.update(at(601), seen), Some(Change::Awake));
                // The old order is forgotten.
                assert_eq!(s.update(at(700), IDLE), None);
                assert!(!s.is_asleep());
            }
        }
    }
}
