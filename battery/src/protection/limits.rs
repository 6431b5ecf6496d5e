//! The table of limits: data that a file, a command or a default fills, checked before it is used.

use super::kinds::{KINDS, Kind, Severity};
use core::fmt;
use helio_units::Duration;

/// How an event that is active ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// By itself, when every sample for so long was back beyond the hysteresis.
    Auto(Duration),
    /// By [`clear_latch`](super::Protection::clear_latch), once the cause is gone.
    Command,
    /// By [`clear_service`](super::Protection::clear_service), once the cause is gone and somebody has looked at the cells.
    Service,
}

/// When one severity of one kind becomes active and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Active at this value and beyond, in the unit of the kind.
    pub threshold: i32,
    /// Distance back from the threshold at which the cause counts as gone.
    pub hysteresis: i32,
    /// The value must have been beyond the threshold for so long, at every sample. Zero: decided on the sample itself.
    pub delay: Duration,
    /// How it ends.
    pub reset: Reset,
}

/// Everything protection needs to know about a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// By [`Kind::index`] and [`Severity::index`]; `None` never becomes active.
    pub rules: [[Option<Rule>; 3]; KINDS],
    /// Cells that a sample must have; 0 does not care.
    pub cells: u8,
    /// Temperature sensors that a sample must have; 0 does not care.
    pub temps: u8,
    /// Whether a sample without current is a fault.
    pub current: bool,
    /// Currents up to this are rest, neither charge nor discharge [mA].
    pub rest_ma: i32,
    /// Cell voltages that can be true [mV], lowest and highest.
    pub plausible_mv: (u16, u16),
    /// Temperatures that can be true [0.1 °C], lowest and highest.
    pub plausible_dc: (i16, i16),
    /// Largest current that the sensor can measure [mA].
    pub plausible_ma: i32,
    /// Current that the group bears for ever; [`Kind::Overload`] is 1000 there [mA].
    pub rated_ma: i32,
    /// Thermal time constant of [`Kind::Overload`].
    pub overload_tau: Duration,
    /// Length of the rise window of [`Kind::TempRise`].
    pub rise_window: Duration,
    /// A span of current that must move every cell's voltage by one step [mA], for [`Kind::CellStuck`].
    pub moving_ma: i32,
    /// A jump that cells never make together unless the current jumps [mV], for [`Kind::CurrentStuck`] ...
    pub jump_mv: u16,
    /// ... from one sample to a next one within this time.
    pub jump_within: Duration,
}

/// Why a table of limits cannot be used. `Display` is one sentence with the remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitsError {
    /// A negative hysteresis would end an event before it began.
    Hysteresis(Kind, Severity),
    /// A severity sets in before the milder one.
    Order(Kind, Severity),
    /// A frozen clock cannot be waited for.
    FrozenClockDelay(Severity),
    /// A range is empty, or a current or time that is divided by is not positive.
    Range(&'static str),
}

impl fmt::Display for LimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hysteresis(k, s) => write!(
                f,
                "{} {s:?}: hysteresis is negative, give 0 or more",
                k.name()
            ),
            Self::Order(k, s) => write!(
                f,
                "{} {s:?}: threshold sets in before the milder severity, move it beyond",
                k.name()
            ),
            Self::FrozenClockDelay(s) => {
                write!(f, "frozen clock {s:?}: a delay would never end, give 0")
            }
            Self::Range(what) => write!(f, "{what}: empty range or not positive"),
        }
    }
}

impl core::error::Error for LimitsError {}

impl Limits {
    /// Whether the table makes sense.
    pub fn check(&self) -> Result<(), LimitsError> {
        for (kind, rules) in Kind::ALL.into_iter().zip(&self.rules) {
            let mut milder = i32::MIN;
            for (severity, rule) in Severity::ALL.into_iter().zip(rules) {
                let Some(rule) = rule else { continue };
                if rule.hysteresis < 0 {
                    return Err(LimitsError::Hysteresis(kind, severity));
                }
                let threshold = oriented(kind, rule.threshold);
                if threshold < milder {
                    return Err(LimitsError::Order(kind, severity));
                }
                milder = threshold;
                if kind == Kind::FrozenClock && rule.delay != Duration::ZERO {
                    return Err(LimitsError::FrozenClockDelay(severity));
                }
            }
        }
        let positive = [
            ("plausible_mv", self.plausible_mv.0 < self.plausible_mv.1),
            ("plausible_dc", self.plausible_dc.0 < self.plausible_dc.1),
            ("plausible_ma", self.plausible_ma > 0),
            ("rated_ma", self.rated_ma > 0),
            ("overload_tau", self.overload_tau > Duration::ZERO),
            ("rise_window", self.rise_window > Duration::ZERO),
            ("moving_ma", self.moving_ma > 0),
            ("jump_mv", self.jump_mv > 0),
            ("rest_ma", self.rest_ma >= 0),
        ];
        for (what, good) in positive {
            if !good {
                return Err(LimitsError::Range(what));
            }
        }
        Ok(())
    }

    /// The rule of a kind at a severity, to look at or change.
    pub fn rule_mut(&mut self, kind: Kind, severity: Severity) -> &mut Option<Rule> {
        // Both indices come from enums that the array is as long as.
        &mut self.rules[kind.index()][severity.index()]
    }

    /// The rule of a kind at a severity.
    pub const fn rule(&self, kind: Kind, severity: Severity) -> Option<Rule> {
        self.rules[kind.index()][severity.index()]
    }

    /// Cautious limits for NMC, NCA and LCO cells of this capacity, charged to 4.20 V.
    pub const fn nmc(capacity_mah: i32) -> Self {
        Self::common(capacity_mah)
            .with(
                Kind::CellOvervoltage,
                [4_210, 4_230, 4_250],
                50,
                [100, 100, 0],
                LATCH,
            )
            .with(
                Kind::CellUndervoltage,
                [3_000, 2_800, 2_500],
                200,
                [1_000, 500, 100],
                LATCH,
            )
            .with(
                Kind::DeepDischarge,
                [2_300, 2_200, 2_000],
                100,
                [1_000, 1_000, 1_000],
                SERVICE,
            )
            .with(
                Kind::GroupOvervoltage,
                [4_205, 4_220, 4_240],
                50,
                [100, 100, 0],
                LATCH,
            )
            .with(
                Kind::GroupUndervoltage,
                [3_050, 2_850, 2_600],
                200,
                [1_000, 500, 100],
                LATCH,
            )
            .with(
                Kind::Imbalance,
                [100, 250, 800],
                30,
                [5_000, 5_000, 10_000],
                LATCH,
            )
    }

    /// Cautious limits for LFP cells of this capacity, charged to 3.60 V.
    pub const fn lfp(capacity_mah: i32) -> Self {
        Self::common(capacity_mah)
            .with(
                Kind::CellOvervoltage,
                [3_620, 3_680, 3_750],
                100,
                [100, 100, 0],
                LATCH,
            )
            .with(
                Kind::CellUndervoltage,
                [2_500, 2_300, 2_000],
                300,
                [1_000, 500, 100],
                LATCH,
            )
            .with(
                Kind::DeepDischarge,
                [1_800, 1_700, 1_500],
                100,
                [1_000, 1_000, 1_000],
                SERVICE,
            )
            .with(
                Kind::GroupOvervoltage,
                [3_610, 3_650, 3_720],
                100,
                [100, 100, 0],
                LATCH,
            )
            .with(
                Kind::GroupUndervoltage,
                [2_550, 2_350, 2_050],
                300,
                [1_000, 500, 100],
                LATCH,
            )
            .with(
                Kind::Imbalance,
                [150, 400, 1_000],
                50,
                [5_000, 5_000, 10_000],
                LATCH,
            )
    }

    /// What does not depend on the chemistry. Currents in multiples of the capacity.
    const fn common(capacity_mah: i32) -> Self {
        let c = if capacity_mah > 0 { capacity_mah } else { 1 };
        Self {
            rules: [[None; 3]; KINDS],
            cells: 0,
            temps: 0,
            current: true,
            rest_ma: c / 50,
            plausible_mv: (500, 5_000),
            plausible_dc: (-450, 1_250),
            plausible_ma: c.saturating_mul(20),
            // Where over-current begins to warn: up to there a current may last.
            rated_ma: c.saturating_mul(3),
            overload_tau: Duration::from_secs(60),
            rise_window: Duration::from_secs(10),
            moving_ma: c,
            jump_mv: 40,
            jump_within: Duration::from_millis(200),
        }
        .with(
            Kind::OvertempCharge,
            [420, 450, 500],
            30,
            [1_000, 1_000, 200],
            LATCH,
        )
        .with(
            Kind::OvertempDischarge,
            [500, 550, 600],
            30,
            [1_000, 1_000, 200],
            LATCH,
        )
        .with(
            Kind::UndertempCharge,
            [50, 0, -50],
            20,
            [1_000, 1_000, 1_000],
            LATCH,
        )
        .with(
            Kind::UndertempDischarge,
            [-150, -200, -300],
            20,
            [1_000, 1_000, 1_000],
            LATCH,
        )
        .with(
            Kind::TempSpread,
            [80, 120, 250],
            20,
            [5_000, 5_000, 1_000],
            LATCH,
        )
        .with(Kind::TempRise, [20, 40, 80], 10, [0, 0, 0], LATCH)
        .with(
            Kind::OvercurrentCharge,
            [mul(c, 3, 2), mul(c, 2, 1), mul(c, 3, 1)],
            c / 10,
            [1_000, 500, 100],
            LATCH,
        )
        .with(
            Kind::OvercurrentDischarge,
            [mul(c, 3, 1), mul(c, 4, 1), mul(c, 6, 1)],
            c / 10,
            [1_000, 500, 100],
            LATCH,
        )
        .with(
            Kind::ShortCircuit,
            [mul(c, 8, 1), mul(c, 10, 1), mul(c, 12, 1)],
            c / 10,
            [0, 0, 0],
            LATCH,
        )
        .with(Kind::Overload, [900, 1_050, 1_300], 100, [0, 0, 0], LATCH)
        .with(Kind::CellOpen, [1, 1, 1], 0, [0, 50, 200], LATCH)
        .with(Kind::TempOpen, [1, 1, 501], 0, [0, 1_000, 1_000], LATCH)
        .with(Kind::CurrentLost, [1, 1, 1], 0, [0, 50, 200], LATCH)
        .with(Kind::CellImplausible, [1, 1, 1], 0, [0, 20, 50], LATCH)
        .with(Kind::TempImplausible, [1, 1, 1], 0, [0, 500, 2_000], LATCH)
        .with(Kind::CurrentImplausible, [1, 1, 1], 0, [0, 20, 50], LATCH)
        .with(
            Kind::CellStuck,
            [3_000, 5_000, 10_000],
            1_000,
            [0, 0, 0],
            LATCH,
        )
        .with(Kind::TempStuck, [50, 100, 150], 10, [0, 0, 0], LATCH)
        .with(Kind::CurrentStuck, [2, 4, 8], 1, [0, 0, 0], LATCH)
        .with(Kind::StaleData, [50, 100, 200], 0, [0, 0, 0], LATCH)
        .with(Kind::FrozenClock, [2, 3, 5], 0, [0, 0, 0], LATCH)
        .with(Kind::Layout, [1, 1, 1], 0, [0, 0, 0], LATCH)
        .with(
            Kind::GateStuck,
            [mul(c, 1, 20), mul(c, 1, 20), mul(c, 1, 20)],
            c / 100,
            [100, 200, 500],
            LATCH,
        )
    }

    /// Three rules at once: thresholds and delays [ms] for warn, derate, trip; one hysteresis; how a trip ends.
    /// Warn and derate end by themselves after a second.
    const fn with(
        mut self,
        kind: Kind,
        thresholds: [i32; 3],
        hysteresis: i32,
        delays_ms: [u64; 3],
        trip_reset: Reset,
    ) -> Self {
        let mut s = 0;
        while s < 3 {
            self.rules[kind.index()][s] = Some(Rule {
                threshold: thresholds[s],
                hysteresis,
                delay: Duration::from_millis(delays_ms[s]),
                reset: if s == 2 {
                    trip_reset
                } else {
                    Reset::Auto(Duration::from_secs(1))
                },
            });
            s += 1;
        }
        self
    }
}

const LATCH: Reset = Reset::Command;
const SERVICE: Reset = Reset::Service;

const fn mul(c: i32, by: i32, over: i32) -> i32 {
    c.saturating_mul(by) / over
}

/// The same number line for all kinds: higher is worse.
pub(crate) const fn oriented(kind: Kind, value: i32) -> i32 {
    if kind.falls() {
        value.saturating_neg()
    } else {
        value
    }
}
