//! Balancing: decides which bleed resistors conduct, driven by [`crate::Slave`].
//!
//! Bleeding current makes a drop in the sense wires, so it pauses [`BleedConfig::settle`] ahead of
//! a sample and goes on after it. The mask is the master's, for [`BleedConfig::order_limit`] at
//! most (a dead man's handle), or the slave's own plan when that is allowed. A cell that was not
//! measured or is below the floor, a group that is too warm or of unknown temperature, and one that
//! is neither in `Standby` nor in `Active` are not bled.
//!
//! ```text
//!         sample, mask              earliest next sample - settle
//! Paused ---------------> Bleeding -------------------------------> Paused
//!    ^                        |
//!    '------------------------'  trip, isolation, loss of data, order run out
//! ```

use helio_battery::balance::{BalanceConfig, plan};
use helio_bus::MAX_CELLS;
use helio_units::{DeciCelsius, Duration, Instant, Millivolts};

/// When bleeding is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BleedConfig {
    /// Whether the slave follows its own plan while it has no order from the master.
    pub own_plan: bool,
    /// How long an order holds; the master repeats it while it is meant.
    pub order_limit: Duration,
    /// How long before a sample bleeding pauses.
    pub settle: Duration,
    /// Hottest sensor at which bleeding still goes on.
    pub max_temp: DeciCelsius,
}

impl BleedConfig {
    /// Orders only, for 60 s; 1 ms to settle (five time constants of 2 kΩ and 100 nF in the sense
    /// line); up to 50 °C.
    pub const DEFAULT: Self = Self {
        own_plan: false,
        order_limit: Duration::from_secs(60),
        settle: Duration::from_millis(1),
        max_temp: DeciCelsius(500),
    };
}

impl Default for BleedConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How often the own plan is made anew.
const REPLAN: Duration = Duration::from_secs(1);

/// The state of the bleed resistors.
#[derive(Clone, Debug)]
pub(crate) struct Balancer {
    config: BleedConfig,
    plan_config: BalanceConfig,
    order: Option<Order>,
    plan: Option<Plan>,
    /// Cells to bleed between samples, by the newest sample.
    mask: u32,
    bleeding: Option<Bleeding>,
}

#[derive(Clone, Copy, Debug)]
struct Order {
    mask: u32,
    until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    mask: u32,
    made: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Bleeding {
    pause: Instant,
    mask: u32,
}

impl Balancer {
    pub const fn new(config: BleedConfig, plan_config: BalanceConfig) -> Self {
        Self {
            config,
            plan_config,
            order: None,
            plan: None,
            mask: 0,
            bleeding: None,
        }
    }

    /// The master's mask. It takes effect with the next sample; an empty one does at once.
    /// What to drive now, if that changes.
    pub fn handle_order(&mut self, now: Instant, mask: u32) -> Option<u32> {
        let until = now + self.config.order_limit;
        self.order = Some(Order { mask, until });
        self.mask &= mask;
        match self.bleeding {
            Some(b) => self.drive(b.pause),
            None => None,
        }
    }

    /// A healthy sample of a group that may be bled. What to drive now, if that changes.
    pub fn handle_sample(
        &mut self,
        now: Instant,
        cells: &[Option<Millivolts>],
        hottest: Option<DeciCelsius>,
        next_sample: Instant,
    ) -> Option<u32> {
        let cool = hottest.is_some_and(|t| t <= self.config.max_temp);
        self.mask = match self.wanted(now, cells) {
            0 => 0,
            _ if !cool => 0,
            wanted => wanted & above(cells, self.plan_config.floor),
        };
        let pause = next_sample - self.config.settle;
        if pause <= now {
            return self.pause();
        }
        self.drive(pause)
    }

    /// Pauses in time for the next sample. What to drive now, if that changes.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<u32> {
        if self.order.is_some_and(|o| now >= o.until) {
            self.order = None;
            self.mask = 0;
            return self.pause();
        }
        match self.bleeding {
            Some(b) if now >= b.pause => self.pause(),
            _ => None,
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let pause = self.bleeding.map(|b| b.pause);
        // While paused an order may run out unseen: the next sample looks.
        pause.map(|p| self.order.map_or(p, |o| o.until.min(p)))
    }

    /// Bleeds nothing from now on until the next sample. What to drive now, if that changes.
    pub fn pause(&mut self) -> Option<u32> {
        self.bleeding.take().map(|_| 0)
    }

    /// Bleeds nothing and forgets why it did. What to drive now, if that changes.
    pub fn stop(&mut self) -> Option<u32> {
        self.order = None;
        self.plan = None;
        self.suspend()
    }

    /// Bleeds nothing until a healthy sample comes. What to drive now, if that changes.
    pub fn suspend(&mut self) -> Option<u32> {
        self.mask = 0;
        self.pause()
    }

    /// Whether any cell is being balanced, pauses included.
    pub fn is_balancing(&self) -> bool {
        self.mask != 0
    }

    /// Bleeds the cells of `mask` until `pause`.
    fn drive(&mut self, pause: Instant) -> Option<u32> {
        let mask = self.mask;
        if mask == 0 {
            return self.pause();
        }
        let before = self.bleeding.replace(Bleeding { pause, mask });
        before.is_none_or(|b| b.mask != mask).then_some(mask)
    }

    fn wanted(&mut self, now: Instant, cells: &[Option<Millivolts>]) -> u32 {
        if let Some(order) = self.order {
            if now < order.until {
                return order.mask;
            }
            self.order = None;
        }
        if !self.config.own_plan {
            return 0;
        }
        match self.plan {
            Some(p) if now.since(p.made) < REPLAN => p.mask,
            _ => {
                let mask = plan(cells, &self.plan_config);
                self.plan = Some(Plan { mask, made: now });
                mask
            }
        }
    }
}

/// Cells whose voltage is known and above `floor`.
fn above(cells: &[Option<Millivolts>], floor: Millivolts) -> u32 {
    cells
        .iter()
        .take(MAX_CELLS)
        .enumerate()
        .filter(|(_, v)| v.is_some_and(|v| v > floor))
        .fold(0, |mask, (i, _)| mask | 1 << i)
}
