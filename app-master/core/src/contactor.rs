//! Decides when the pack's two main contactors and its precharge relay close and open, and what is broken when they do not.
//!
//! What the shell measures at the terminals goes in through [`Contactors::handle_terminals`], what is wanted and allowed
//! through [`Contactors::set_wanted`] and [`Contactors::set_permit`], time through [`Contactors::handle_timeout`];
//! [`Contactors::poll_drive`] tells what to drive and [`Contactors::poll_event`] what happened.
//!
//! ```text
//!  strings --+--[ positive ]--+-- link --[ load ]        All off is the safe state and the one at boot.
//!            '-[ precharge ]R-'    = C
//!  strings -----[ negative ]------ link
//!
//!        wanted,           precharge         negative         link within `match` of the pack,
//!        permitted         relay alone       alone            hardly any current
//!  Open ---------> TestNegative --> TestPositive --> Precharge ---------------------> Close --settle--> Closed
//!   ^ ^ ^               |                |               |     all three                |                 |
//!   | | |               |                '-- fault ------+------------------------------+-----------------+
//!   | | '-- clear ---- Faulted <-- welded, or retries spent --'  '--> CoolDown -- again --> TestNegative  |
//!   | |                                                                                                   |
//!   | '--- permit lost, from everywhere, at once                                                          |
//!   '----- link has fallen ----- TestOpen <---- no current, or patience over ---- Unload <-- not wanted --'
//! ```
//!
//! A weld shows as a link that rises when only the other pole is closed, as one that does not fall when the positive
//! contactor has opened, or as current when nothing is closed. A weld is never retried; whoever cleared it is not believed,
//! since every closing tests anew. While anything is welded the strings themselves are kept open
//! ([`Contactors::allows_strings`]), so that the pack is still cut off twice.

use heapless::Deque;
use helio_units::{Duration, Instant, Milliamps};

/// Times and limits of one set of contactors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContactorConfig {
    /// In so much time a contactor has moved and stopped bouncing.
    pub settle: Duration,
    /// How long one pole alone is closed to see whether the other one is welded.
    pub test: Duration,
    /// A link that rises (or fails to fall) by this share of the pack's voltage tells of a weld, thousandths. The same
    /// share is what precharging must have reached by `precharge_min`.
    pub weld_permille: u16,
    /// The link is charged when it is within this share of the pack's voltage, thousandths ...
    pub match_permille: u16,
    /// ... and no more than this flows [mA].
    pub end_ma: i32,
    /// Earliest end of precharging; by then a link that does not rise is given up.
    pub precharge_min: Duration,
    /// Latest end of precharging.
    pub precharge_max: Duration,
    /// Further attempts after a failed one.
    pub retries: u8,
    /// What the resistor needs to cool before the next attempt.
    pub cool_down: Duration,
    /// Contactors open without wear up to this current [mA]; above it with nothing closed, both are welded.
    pub open_ma: i32,
    /// How long the load has to let go before the contactors open anyway.
    pub unload: Duration,
    /// In so much time the link falls by `weld_permille` once it is cut off; `None`: nothing discharges it.
    pub decay: Option<Duration>,
    /// Measurements older than this say nothing.
    pub stale: Duration,
    /// A pack below this is not measured, or has no string connected [mV].
    pub least_mv: u32,
}

impl Default for ContactorConfig {
    /// For a link with a time constant of about 50 ms, measured at least every 20 ms, and a bleeder.
    fn default() -> Self {
        Self {
            settle: Duration::from_millis(30),
            test: Duration::from_millis(80),
            weld_permille: 100,
            match_permille: 30,
            end_ma: 500,
            precharge_min: Duration::from_millis(100),
            precharge_max: Duration::from_millis(1_000),
            retries: 2,
            cool_down: Duration::from_secs(5),
            open_ma: 2_000,
            unload: Duration::from_millis(500),
            decay: Some(Duration::from_secs(2)),
            stale: Duration::from_millis(200),
            least_mv: 5_000,
        }
    }
}

impl ContactorConfig {
    /// Whether the numbers make sense together; if not, the one to change.
    pub fn check(&self) -> Result<(), &'static str> {
        for (good, remedy) in [
            (
                self.settle > Duration::ZERO,
                "settle: give the time in which a contactor moves",
            ),
            (
                self.test > self.settle,
                "test: give more than settle, or nothing has moved when it ends",
            ),
            (
                self.precharge_min < self.precharge_max,
                "precharge_max: give more than precharge_min",
            ),
            (
                (1..500).contains(&self.weld_permille),
                "weld_permille: give 1 to 499",
            ),
            (
                self.match_permille > 0 && self.match_permille < self.weld_permille,
                "match_permille: give 1 or more, and less than weld_permille",
            ),
            (
                self.end_ma > 0 && self.open_ma > 0,
                "end_ma and open_ma: give more than 0",
            ),
            (
                self.stale > Duration::ZERO && self.least_mv > 0,
                "stale and least_mv: give more than 0",
            ),
        ] {
            if !good {
                return Err(remedy);
            }
        }
        Ok(())
    }
}

/// What is measured at the contactors, all of one instant. `None`: no such sensor, or it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terminals {
    /// On the side of the strings [mV].
    pub pack_mv: Option<u32>,
    /// On the side of the load [mV].
    pub link_mv: Option<u32>,
    /// Through the contactors, discharge positive.
    pub current: Option<Milliamps>,
    /// Auxiliary contacts.
    pub feedback: Option<Drive>,
}

/// Which coils are fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// Main contactor of the negative pole.
    pub negative: bool,
    /// Relay in series with the precharge resistor, beside `positive`.
    pub precharge: bool,
    /// Main contactor of the positive pole.
    pub positive: bool,
}

/// Why the contactors do not close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContactorFault {
    /// The negative contactor conducts although it is off.
    WeldedNegative,
    /// The positive contactor or the precharge relay conducts although it is off.
    WeldedPositive,
    /// Both poles conduct although nothing is driven.
    WeldedBoth,
    /// Precharging moved no current: relay, resistor or negative contactor does not conduct.
    PrechargeOpen,
    /// Precharging moved current but the link stayed low: something at the link is a short.
    PrechargeShort,
    /// The link came up, but not far enough in time: a load is on, or the link is larger than planned.
    PrechargeTimeout,
    /// The link fell away from the pack: a main contactor does not conduct.
    NotClosed,
    /// The voltages are not measured.
    NoMeasurement,
}

impl ContactorFault {
    /// As clients read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WeldedNegative => "negative contactor welded",
            Self::WeldedPositive => "positive contactor or precharge relay welded",
            Self::WeldedBoth => "both contactors welded",
            Self::PrechargeOpen => "precharge path open",
            Self::PrechargeShort => "short circuit at the link",
            Self::PrechargeTimeout => "precharge too slow",
            Self::NotClosed => "contactor did not close",
            Self::NoMeasurement => "terminal voltage not measured",
        }
    }

    /// Whether a contactor is welded: no further attempt, and the strings stay open.
    pub const fn is_weld(self) -> bool {
        matches!(
            self,
            Self::WeldedNegative | Self::WeldedPositive | Self::WeldedBoth
        )
    }
}

/// Something an operator would want to know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContactorEvent {
    /// Precharging has begun.
    Precharging,
    /// The load may draw.
    Closed,
    /// All off, as wanted.
    Opened,
    /// All off at once, because no string may conduct any more.
    Dropped,
    /// An attempt failed and another will follow.
    Retrying(ContactorFault),
    /// Given up until somebody clears it.
    Failed(ContactorFault),
}

/// Where it stands, for clients.
// A tag of its own, so that `None` is zero: see `Master::vacant`.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContactorState {
    /// Nobody told the master of any.
    #[default]
    None,
    /// All off.
    Open,
    /// On the way to closed.
    Precharging,
    /// The load may draw.
    Closed,
    /// On the way to open.
    Opening,
    /// Waiting for another attempt.
    CoolingDown,
    /// Given up until somebody clears it.
    Faulted(ContactorFault),
}

impl ContactorState {
    /// As clients read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Open => "open",
            Self::Precharging => "precharging",
            Self::Closed => "closed",
            Self::Opening => "opening",
            Self::CoolingDown => "cooling down",
            Self::Faulted(fault) => fault.name(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The precharge relay alone. `base_mv`: the link before; `None` when it is too high for the test to tell anything.
    TestNegative {
        until: Instant,
        base_mv: Option<u32>,
    },
    /// The negative contactor alone.
    TestPositive {
        until: Instant,
        base_mv: Option<u32>,
    },
    /// `good`: the first measurement of a row that found the link charged; one alone may be an outlier.
    Precharge {
        from: Instant,
        until: Instant,
        good: Option<Instant>,
    },
    /// All three, until the positive contactor has settled.
    Close {
        until: Instant,
    },
    /// `low_since`: the link is away from the pack.
    Closed {
        low_since: Option<Instant>,
    },
    /// Closed still; the load is asked to let go.
    Unload {
        until: Instant,
    },
    /// The negative contactor alone; the link must fall from `base_mv`.
    TestOpen {
        until: Instant,
        base_mv: u32,
    },
    CoolDown {
        until: Instant,
    },
    Faulted(ContactorFault),
}

/// One set of contactors.
#[derive(Clone, Debug)]
pub struct Contactors {
    config: ContactorConfig,
    phase: Phase,
    /// When the coils last changed.
    moved: Instant,
    drive: Drive,
    told: Option<Drive>,
    wanted: bool,
    permit: bool,
    seen: Option<(Instant, Terminals)>,
    /// Attempts in a row that failed.
    failures: u8,
    under_load: u32,
    events: Deque<ContactorEvent, 4>,
}

impl Contactors {
    /// All off and nothing wanted.
    pub fn new(config: ContactorConfig) -> Self {
        Self {
            config,
            phase: Phase::Open,
            moved: Instant::ZERO,
            drive: Drive::default(),
            told: None,
            wanted: false,
            permit: false,
            seen: None,
            failures: 0,
            under_load: 0,
            events: Deque::new(),
        }
    }

    /// Whether the load is wanted to be fed.
    pub fn set_wanted(&mut self, now: Instant, wanted: bool) {
        if self.wanted && !wanted {
            self.failures = 0;
        }
        self.wanted = wanted;
        self.advance(now);
    }

    /// Whether at least one string conducts and its data are valid. Without it everything is off at once.
    pub fn set_permit(&mut self, now: Instant, permit: bool) {
        self.permit = permit;
        self.advance(now);
    }

    /// A measurement has come.
    pub fn handle_terminals(&mut self, now: Instant, terminals: &Terminals) {
        self.seen = Some((now, *terminals));
        self.advance(now);
    }

    /// Time has passed. Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.phase {
            Phase::TestNegative { until, .. }
            | Phase::TestPositive { until, .. }
            | Phase::Precharge { until, .. }
            | Phase::Close { until }
            | Phase::Unload { until }
            | Phase::TestOpen { until, .. }
            | Phase::CoolDown { until } => Some(until),
            Phase::Open | Phase::Closed { .. } | Phase::Faulted(_) => None,
        }
    }

    /// What to drive, when that has changed; first of all: everything off.
    pub fn poll_drive(&mut self) -> Option<Drive> {
        let new = (self.told != Some(self.drive)).then_some(self.drive);
        self.told = Some(self.drive);
        new
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<ContactorEvent> {
        self.events.pop_front()
    }

    /// Gives another chance to what was given up. What is welded is found again by the next attempt.
    pub fn clear(&mut self, now: Instant) {
        self.failures = 0;
        if let Phase::Faulted(_) | Phase::CoolDown { .. } = self.phase {
            self.enter(now, Phase::Open);
        }
        self.advance(now);
    }

    /// Where it stands.
    pub fn state(&self) -> ContactorState {
        match self.phase {
            Phase::Open => ContactorState::Open,
            Phase::TestNegative { .. }
            | Phase::TestPositive { .. }
            | Phase::Precharge { .. }
            | Phase::Close { .. } => ContactorState::Precharging,
            Phase::Closed { .. } => ContactorState::Closed,
            Phase::Unload { .. } | Phase::TestOpen { .. } => ContactorState::Opening,
            Phase::CoolDown { .. } => ContactorState::CoolingDown,
            Phase::Faulted(fault) => ContactorState::Faulted(fault),
        }
    }

    /// Whether the load may draw. Precharging never ends while it does.
    pub fn load_allowed(&self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }

    /// Whether the strings' own gates may be on: not with a welded contactor behind them.
    pub fn allows_strings(&self) -> bool {
        !matches!(self.phase, Phase::Faulted(fault) if fault.is_weld())
    }

    /// Whether nothing is driven.
    pub fn is_open(&self) -> bool {
        self.drive == Drive::default()
    }

    /// How often the contactors opened with more than `open_ma` flowing, which wears them.
    pub fn openings_under_load(&self) -> u32 {
        self.under_load
    }

    /// The newest link voltage, if it is not stale.
    pub fn link_mv(&self, now: Instant) -> Option<u32> {
        self.fresh(now)?.link_mv
    }

    fn advance(&mut self, now: Instant) {
        if !self.permit && !self.is_open() {
            self.tell(ContactorEvent::Dropped);
            self.open(now, Phase::Open);
        }
        // Each step leads on; none leads back within one call.
        while let Some(next) = self.step(now) {
            match next {
                Step::To(phase) => self.enter(now, phase),
                Step::Opened => {
                    self.tell(ContactorEvent::Opened);
                    self.open(now, Phase::Open);
                }
                Step::Fail(fault) => self.fail(now, fault),
            }
        }
    }

    fn step(&self, now: Instant) -> Option<Step> {
        let c = &self.config;
        if let Some(fault) = self.contradiction(now) {
            return Some(Step::Fail(fault));
        }
        let closing = matches!(
            self.phase,
            Phase::TestNegative { .. }
                | Phase::TestPositive { .. }
                | Phase::Precharge { .. }
                | Phase::Close { .. }
        );
        if closing && !self.wanted {
            return Some(Step::Opened);
        }
        match self.phase {
            Phase::Open if self.wanted && self.permit => {
                let (_, pack, link) = self.volts(now)?;
                let telling = pack.saturating_sub(2 * share(pack, c.weld_permille));
                let base_mv = (link < telling).then_some(link);
                let until = now + c.test;
                Some(Step::To(Phase::TestNegative { until, base_mv }))
            }
            Phase::CoolDown { until } if now >= until => Some(Step::To(Phase::Open)),
            Phase::TestNegative { until, base_mv } => self.test(
                now,
                until,
                base_mv,
                ContactorFault::WeldedNegative,
                |base_mv| Phase::TestPositive {
                    until: now + c.test,
                    base_mv,
                },
            ),
            Phase::TestPositive { until, base_mv } => {
                self.test(now, until, base_mv, ContactorFault::WeldedPositive, |_| {
                    Phase::Precharge {
                        from: now,
                        until: now + c.precharge_max,
                        good: None,
                    }
                })
            }
            Phase::Precharge { from, until, good } => self.precharge(now, from, until, good),
            Phase::Close { until } if now >= until => {
                Some(Step::To(Phase::Closed { low_since: None }))
            }
            Phase::Closed { .. } if !self.wanted => Some(Step::To(Phase::Unload {
                until: now + c.unload,
            })),
            Phase::Closed { low_since } => self.watch(now, low_since),
            Phase::Unload { until } => {
                let current = self.fresh(now).and_then(|t| t.current);
                let quiet = current.is_some_and(|i| size(i) <= c.open_ma);
                match (quiet || now >= until, c.decay, self.volts(now)) {
                    (false, ..) => None,
                    (true, Some(decay), Some((.., base_mv))) => Some(Step::To(Phase::TestOpen {
                        until: now + decay,
                        base_mv,
                    })),
                    // Nothing to be seen from here: both poles at once.
                    (true, ..) => Some(Step::Opened),
                }
            }
            Phase::TestOpen { until, base_mv } => {
                let seen = self.since_moved(now);
                let fallen =
                    |link: u32| link.saturating_add(share(base_mv, c.weld_permille)) <= base_mv;
                match (seen, now >= until) {
                    (Some((.., link)), _) if fallen(link) => Some(Step::Opened),
                    (_, false) => None,
                    (Some(_), true) => Some(Step::Fail(ContactorFault::WeldedPositive)),
                    // Nobody knows; the next closing tests.
                    (None, true) => Some(Step::Opened),
                }
            }
            Phase::Open | Phase::CoolDown { .. } | Phase::Close { .. } | Phase::Faulted(_) => None,
        }
    }

    /// One pole alone is closed: the link must stay where it was.
    fn test(
        &self,
        now: Instant,
        until: Instant,
        base_mv: Option<u32>,
        weld: ContactorFault,
        next: impl FnOnce(Option<u32>) -> Phase,
    ) -> Option<Step> {
        let seen = self.since_moved(now);
        if let (Some((_, pack, link)), Some(base)) = (seen, base_mv)
            && link >= base.saturating_add(share(pack, self.config.weld_permille))
        {
            return Some(Step::Fail(weld));
        }
        match (now >= until, seen) {
            (false, _) => None,
            (true, Some(_)) => Some(Step::To(next(base_mv))),
            (true, None) => Some(Step::Fail(ContactorFault::NoMeasurement)),
        }
    }

    fn precharge(
        &self,
        now: Instant,
        from: Instant,
        until: Instant,
        good: Option<Instant>,
    ) -> Option<Step> {
        let c = &self.config;
        let over = now >= until;
        let Some((at, pack, link)) = self.since_moved(now) else {
            return over.then_some(Step::Fail(ContactorFault::NoMeasurement));
        };
        let current = self.fresh(now).and_then(|t| t.current);
        let quiet = current.is_none_or(|i| size(i) <= c.end_ma);
        let charged = pack.abs_diff(link) <= share(pack, c.match_permille) && quiet;
        let low = link < share(pack, c.weld_permille);
        let early = now.since(from) < c.precharge_min;
        match good {
            Some(first) if charged && at > first && !early => Some(Step::To(Phase::Close {
                until: now + c.settle,
            })),
            _ if low && !early => Some(Step::Fail(match quiet {
                true => ContactorFault::PrechargeOpen,
                false => ContactorFault::PrechargeShort,
            })),
            _ if over => Some(Step::Fail(ContactorFault::PrechargeTimeout)),
            None if charged => Some(Step::To(Phase::Precharge {
                from,
                until,
                good: Some(at),
            })),
            Some(_) if !charged => Some(Step::To(Phase::Precharge {
                from,
                until,
                good: None,
            })),
            _ => None,
        }
    }

    /// Closed: the link must follow the pack.
    fn watch(&self, now: Instant, low_since: Option<Instant>) -> Option<Step> {
        // Without measurements a load that runs is not dropped.
        let (at, pack, link) = self.volts(now)?;
        let low = pack.abs_diff(link) > share(pack, self.config.weld_permille);
        match (low, low_since) {
            (true, None) => Some(Step::To(Phase::Closed {
                low_since: Some(at),
            })),
            (true, Some(since)) if at.since(since) >= self.config.settle => {
                Some(Step::Fail(ContactorFault::NotClosed))
            }
            (false, Some(_)) => Some(Step::To(Phase::Closed { low_since: None })),
            _ => None,
        }
    }

    /// Current where there can be none, and auxiliary contacts that contradict the coils.
    fn contradiction(&self, now: Instant) -> Option<ContactorFault> {
        if matches!(self.phase, Phase::Faulted(_)) {
            return None;
        }
        let (at, t) = self.seen?;
        if at <= self.moved + self.config.settle || now.since(at) > self.config.stale {
            return None;
        }
        if self.is_open() && t.current.is_some_and(|i| size(i) > self.config.open_ma) {
            return Some(ContactorFault::WeldedBoth);
        }
        let f = t.feedback?;
        let d = self.drive;
        let welded = (
            f.negative && !d.negative,
            (f.positive && !d.positive) || (f.precharge && !d.precharge),
        );
        match welded {
            (true, true) => Some(ContactorFault::WeldedBoth),
            (true, false) => Some(ContactorFault::WeldedNegative),
            (false, true) => Some(ContactorFault::WeldedPositive),
            (false, false) if f == d => None,
            (false, false) => Some(ContactorFault::NotClosed),
        }
    }

    fn fail(&mut self, now: Instant, fault: ContactorFault) {
        // Only what failed soon after the attempt before counts with it.
        if self.load_allowed() && now.since(self.moved) > self.config.cool_down {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        if fault.is_weld() || self.failures > self.config.retries {
            self.tell(ContactorEvent::Failed(fault));
            self.open(now, Phase::Faulted(fault));
        } else {
            self.tell(ContactorEvent::Retrying(fault));
            let until = now + self.config.cool_down;
            self.open(now, Phase::CoolDown { until });
        }
    }

    /// Everything off.
    fn open(&mut self, now: Instant, phase: Phase) {
        let current = self.fresh(now).and_then(|t| t.current);
        if self.drive.positive && current.is_some_and(|i| size(i) > self.config.open_ma) {
            self.under_load = self.under_load.saturating_add(1);
        }
        self.enter(now, phase);
    }

    fn enter(&mut self, now: Instant, phase: Phase) {
        match (self.phase, phase) {
            (Phase::TestPositive { .. }, Phase::Precharge { .. }) => {
                self.tell(ContactorEvent::Precharging)
            }
            (Phase::Close { .. }, Phase::Closed { .. }) => self.tell(ContactorEvent::Closed),
            _ => {}
        }
        self.phase = phase;
        let (negative, precharge, positive) = match phase {
            Phase::Open | Phase::CoolDown { .. } | Phase::Faulted(_) => (false, false, false),
            Phase::TestNegative { .. } => (false, true, false),
            Phase::TestPositive { .. } | Phase::TestOpen { .. } => (true, false, false),
            Phase::Precharge { .. } => (true, true, false),
            Phase::Close { .. } => (true, true, true),
            Phase::Closed { .. } | Phase::Unload { .. } => (true, false, true),
        };
        let drive = Drive {
            negative,
            precharge,
            positive,
        };
        if drive != self.drive {
            self.drive = drive;
            self.moved = now;
        }
    }

    fn tell(&mut self, event: ContactorEvent) {
        if self.events.is_full() {
            self.events.pop_front();
        }
        // There is room now.
        let _ = self.events.push_back(event);
    }

    fn fresh(&self, now: Instant) -> Option<Terminals> {
        let (at, terminals) = self.seen?;
        (now.since(at) <= self.config.stale).then_some(terminals)
    }

    /// When pack and link were measured and what they were, if that is not stale and the pack is there at all.
    fn volts(&self, now: Instant) -> Option<(Instant, u32, u32)> {
        let t = self.fresh(now)?;
        let (pack, link) = t.pack_mv.zip(t.link_mv)?;
        let at = self.seen.map_or(now, |(at, _)| at);
        (pack >= self.config.least_mv).then_some((at, pack, link))
    }

    /// The same, measured since the coils' last change has taken effect.
    fn since_moved(&self, now: Instant) -> Option<(Instant, u32, u32)> {
        self.volts(now)
            .filter(|(at, ..)| *at >= self.moved + self.config.settle)
    }
}

enum Step {
    To(Phase),
    Opened,
    Fail(ContactorFault),
}

/// So many thousandths of a voltage, at least 1 mV.
fn share(mv: u32, permille: u16) -> u32 {
    (u64::from(mv) * u64::from(permille) / 1_000).clamp(1, u64::from(u32::MAX / 4)) as u32
}

fn size(current: Milliamps) -> i32 {
    current.0.saturating_abs()
}

#[cfg(test)]
mod tests;
