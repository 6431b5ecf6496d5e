//! When a group of cells must be disconnected, decided on every sample by the slave alone.
//!
//! Samples go in through [`Protection::handle_sample`], time through [`Protection::handle_timeout`];
//! [`Protection::must_open`] is the decision, at once; [`Protection::poll_event`] tells what began or ended. What is bad
//! stands in a table ([`Limits`]): kind by kind, for each of three severities a rule with threshold, hysteresis, delay and
//! reset. Every rule is its own little machine:
//!
//! ```text
//!                beyond           `delay` over                back by `hysteresis`
//!       Idle ----------> Pending --------------> Active -----------------------------> Clearing
//!        ^  ^---------------'      (at once       ^  ^-------------------------------------' |
//!        |     not beyond          without delay) |             not back any more            |
//!        |                                        | not back any more                        |
//!        |      clear_latch, clear_service     Latched <---- Active, when reset is not Auto  |
//!        '----------------------------------------'                                          |
//!        '-------------------------- back for the time of `Reset::Auto` ---------------------'
//! ```
//!
//! The event is active in `Active`, `Clearing` and `Latched`. A value that cannot be known (no valid cell) leaves every
//! machine where it is; a value that may look too mild because one of its measurements is missing can begin an event but not
//! end one. A delay that is over is decided by the timer, without waiting for one more sample.
//!
//! Off is the safe state: `must_open` holds from the start until a sample has come with nothing pending or active at trip.

mod diagnostics;
mod kinds;
mod limits;
mod watch;

pub use diagnostics::{Diagnostics, FRAMES, FreezeFrame, MAX_BYTES, Record, RestoreError, Stamp};
pub use kinds::{CODE_COUNT, CODES, Code, KINDS, Kind, Severity, Unit};
pub use limits::{Limits, LimitsError, Reset, Rule};

use crate::Sample;
use helio_units::{Duration, Instant};
use limits::oriented;
use watch::{UNKNOWN, Values, Watch};

/// Something began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtectionEvent {
    /// What and how bad.
    pub code: Code,
    /// Began or ended.
    pub active: bool,
    /// Cell or sensor concerned; 0 where no single one is.
    pub index: u8,
    /// The value that began it, in the unit of the kind.
    pub value: i32,
    /// When.
    pub at: Instant,
}

impl ProtectionEvent {
    /// The value in 16 bits for the bus: currents in 0.1 A, all else as it is; saturates.
    pub fn wire_value(&self) -> i16 {
        let value = match self.code.kind().unit() {
            Unit::Milliamps => self.value / 100,
            _ => self.value,
        };
        value.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Pending {
        due: Instant,
    },
    Active,
    Clearing {
        due: Instant,
    },
    Latched {
        /// Only after somebody has looked at the cells.
        service: bool,
    },
}

/// The protection of one group.
#[derive(Clone, Debug)]
pub struct Protection {
    limits: Limits,
    /// By kind: the mildest threshold, oriented. Below all of them a sample is healthy.
    alert: [i32; KINDS],
    watch: Watch,
    states: [[State; 3]; KINDS],
    /// Kinds with a state that is not idle.
    busy: u32,
    /// By severity: kinds whose event is active.
    active: [u32; 3],
    /// Newest value and place by kind, for decisions of the timer.
    seen: [(i32, u8); KINDS],
    sample: Sample,
    gate_on: Option<bool>,
    /// A sample has come with nothing against closing the gate.
    armed: bool,
    /// When the newest sample came, or else when time was first told: from then on data can be stale.
    heard: Option<Instant>,
    /// The nearest moment at which the timer decides something.
    due: Option<Instant>,
    began: [u32; 3],
    ended: [u32; 3],
    diagnostics: Diagnostics,
}

impl Protection {
    /// Watches with these limits. A table that does not pass [`Limits::check`] is used as it is.
    pub const fn new(limits: Limits) -> Self {
        Self {
            alert: alerts(&limits),
            limits,
            watch: Watch::new(),
            states: [[State::Idle; 3]; KINDS],
            busy: 0,
            active: [0; 3],
            seen: [(0, 0); KINDS],
            sample: Sample::EMPTY,
            gate_on: None,
            armed: false,
            heard: None,
            due: Some(Instant::ZERO),
            began: [0; 3],
            ended: [0; 3],
            diagnostics: Diagnostics::new(),
        }
    }

    /// As [`Self::new`] with these limits for so many cells and sensors, in place: where there is no
    /// room for a second one on the stack. For before the first sample.
    pub fn set_limits(&mut self, limits: &Limits, cells: u8, temps: u8) {
        self.alert = alerts(limits);
        self.limits = *limits;
        self.limits.cells = cells;
        self.limits.temps = temps;
    }

    /// As [`Self::new`] after a reset: goes on counting, and what was latched still is.
    pub fn resume(limits: Limits, diagnostics: Diagnostics) -> Self {
        let mut new = Self::new(limits);
        new.diagnostics = diagnostics;
        new.go_on();
        new
    }

    /// As [`Self::resume`] with the bytes that were stored, in place and with the limits that are set. For before the first
    /// sample; in case of an error it is as if there had been none.
    pub fn restore(&mut self, stored: &[u8]) -> Result<(), RestoreError> {
        self.diagnostics.load(stored)?;
        self.go_on();
        Ok(())
    }

    fn go_on(&mut self) {
        self.diagnostics.next_boot();
        for kind in Kind::ALL {
            for severity in Severity::ALL {
                let service = match self.limits.rule(kind, severity).map(|r| r.reset) {
                    Some(Reset::Command) => false,
                    Some(Reset::Service) => true,
                    Some(Reset::Auto(_)) | None => continue,
                };
                if self.diagnostics.was_active(Code::new(kind, severity)) {
                    self.states[kind.index()][severity.index()] = State::Latched { service };
                    self.active[severity.index()] |= kind.bit();
                }
            }
            self.mark_busy(kind);
        }
        self.diagnostics.active = self.active;
    }

    /// The table in use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes in a measurement; when it returns, [`Self::must_open`] has taken it into account.
    pub fn handle_sample(&mut self, now: Instant, sample: &Sample) {
        if self.due.is_some_and(|due| now >= due) {
            self.handle_timeout(now);
        }
        let values = self.watch.look(&self.limits, now, sample, self.gate_on);
        self.heard = Some(now);
        self.sample = *sample;
        let healthy = values
            .worse
            .iter()
            .zip(&self.alert)
            .all(|(v, alert)| v < alert);
        if !healthy || self.busy != 0 {
            self.judge(now, &values);
        } else {
            self.armed |= values.measured();
        }
        self.due = self.next_due(now);
    }

    /// Whether the gate is on, as far as the caller knows; for [`Kind::GateStuck`].
    pub fn set_gate(&mut self, on: bool) {
        self.gate_on = Some(on);
    }

    /// No sample comes before `at`, and that is meant so: silence counts from there.
    pub fn expect_sample(&mut self, at: Instant) {
        self.heard = Some(at);
        self.due = self.next_due(at);
    }

    /// Lets time pass: ends delays, notices that samples have ceased. Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        let heard = *self.heard.get_or_insert(now);
        let silence = now.since(heard).as_millis().min(i32::MAX as u64) as i32;
        self.seen[Kind::StaleData.index()] = (silence, 0);
        if silence >= self.alert[Kind::StaleData.index()] {
            self.step(now, Kind::StaleData, silence, false, true);
        }
        for kind in self.busy_kinds() {
            for severity in Severity::ALL {
                match self.states[kind.index()][severity.index()] {
                    State::Pending { due } if now >= due => self.begin(now, kind, severity),
                    _ => {}
                }
            }
        }
        self.due = self.next_due(heard);
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the gate must be off.
    pub fn must_open(&self) -> bool {
        !self.armed || self.active[Severity::Trip.index()] != 0
    }

    /// The worst severity that is active; `None` when all is well.
    pub fn severity(&self) -> Option<Severity> {
        Severity::ALL
            .into_iter()
            .rev()
            .find(|s| self.active[s.index()] != 0)
    }

    /// Whether the event of this code is active.
    pub fn is_active(&self, code: Code) -> bool {
        self.active[code.severity().index()] & code.kind().bit() != 0
    }

    /// Ends latched events whose cause is gone, except those that need a look at the cells. True if any ended.
    pub fn clear_latch(&mut self, now: Instant) -> bool {
        self.unlatch(now, false)
    }

    /// Ends all latched events whose cause is gone. True if any ended.
    pub fn clear_service(&mut self, now: Instant) -> bool {
        self.unlatch(now, true)
    }

    /// What began or ended since the last call, worst first, beginnings before ends. Nothing is ever lost, but an event that
    /// came and went several times between two calls is told once each way; its record has the count.
    pub fn poll_event(&mut self) -> Option<ProtectionEvent> {
        for severity in Severity::ALL.into_iter().rev() {
            let s = severity.index();
            let active = self.began[s] != 0;
            let mask = if active {
                &mut self.began[s]
            } else {
                &mut self.ended[s]
            };
            let Some(&kind) = Kind::ALL.get(mask.trailing_zeros() as usize) else {
                continue;
            };
            *mask &= !kind.bit();
            let code = Code::new(kind, severity);
            let record = self.record(code);
            let stamp = if active { record.last } else { record.cleared };
            return Some(ProtectionEvent {
                code,
                active,
                index: record.index,
                value: record.value,
                at: stamp.at,
            });
        }
        None
    }

    /// What is remembered of a code.
    pub fn record(&self, code: Code) -> Record {
        self.diagnostics.record(code)
    }

    /// All that is remembered: counters, times, circumstances of trips. Store its bytes and give them to [`Self::resume`].
    pub fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// Puts a sample's values before the rules.
    #[cold]
    fn judge(&mut self, now: Instant, values: &Values) {
        for kind in Kind::ALL {
            let k = kind.index();
            let value = values.worse[k];
            if value == UNKNOWN || (value < self.alert[k] && self.busy & kind.bit() == 0) {
                continue;
            }
            let place = self.watch.place(&self.limits, &self.sample, kind);
            self.seen[k] = (oriented(kind, value), place);
            let may_end = values.incomplete & kind.bit() == 0;
            let may_begin = values.idle & kind.bit() == 0;
            self.step(now, kind, value, may_end, may_begin);
        }
        self.armed |= values.measured()
            && Kind::ALL
                .iter()
                .all(|k| self.states[k.index()][Severity::Trip.index()] == State::Idle);
    }

    /// One value, oriented, against the three rules of its kind.
    fn step(&mut self, now: Instant, kind: Kind, value: i32, may_end: bool, may_begin: bool) {
        for severity in Severity::ALL {
            let Some(rule) = self.limits.rule(kind, severity) else {
                continue;
            };
            let threshold = oriented(kind, rule.threshold);
            let beyond = value >= threshold && may_begin;
            let back = value < threshold.saturating_sub(rule.hysteresis) && may_end;
            let state = &mut self.states[kind.index()][severity.index()];
            match *state {
                // A clock that stands still cannot be waited for.
                State::Idle
                    if beyond && (rule.delay == Duration::ZERO || kind == Kind::FrozenClock) =>
                {
                    self.begin(now, kind, severity);
                }
                State::Idle if beyond => {
                    *state = State::Pending {
                        due: now + rule.delay,
                    }
                }
                State::Pending { .. } if !beyond && may_end => *state = State::Idle,
                State::Active if back => match rule.reset {
                    Reset::Auto(Duration::ZERO) => self.end(now, kind, severity),
                    Reset::Auto(hold) => *state = State::Clearing { due: now + hold },
                    Reset::Command => *state = State::Latched { service: false },
                    Reset::Service => *state = State::Latched { service: true },
                },
                State::Clearing { .. } | State::Latched { .. } if !back => *state = State::Active,
                State::Clearing { due } if now >= due => self.end(now, kind, severity),
                _ => {}
            }
        }
        self.mark_busy(kind);
    }

    fn mark_busy(&mut self, kind: Kind) {
        if self.states[kind.index()].iter().all(|s| *s == State::Idle) {
            self.busy &= !kind.bit();
        } else {
            self.busy |= kind.bit();
        }
    }

    fn begin(&mut self, now: Instant, kind: Kind, severity: Severity) {
        let s = severity.index();
        self.states[kind.index()][s] = State::Active;
        self.active[s] |= kind.bit();
        self.began[s] |= kind.bit();
        let (value, index) = self.seen[kind.index()];
        let code = Code::new(kind, severity);
        let event = ProtectionEvent {
            code,
            active: true,
            index,
            value,
            at: now,
        };
        self.diagnostics.began(event, &self.sample);
        self.diagnostics.active = self.active;
    }

    fn end(&mut self, now: Instant, kind: Kind, severity: Severity) {
        let s = severity.index();
        self.states[kind.index()][s] = State::Idle;
        self.active[s] &= !kind.bit();
        self.ended[s] |= kind.bit();
        self.diagnostics.ended(Code::new(kind, severity), now);
        self.diagnostics.active = self.active;
    }

    fn unlatch(&mut self, now: Instant, looked_at: bool) -> bool {
        let mut any = false;
        for kind in self.busy_kinds() {
            for severity in Severity::ALL {
                match self.states[kind.index()][severity.index()] {
                    State::Latched { service } if looked_at || !service => {
                        self.end(now, kind, severity);
                        any = true;
                    }
                    _ => {}
                }
            }
            self.mark_busy(kind);
        }
        any
    }

    fn busy_kinds(&self) -> impl Iterator<Item = Kind> + use<> {
        let busy = self.busy;
        Kind::ALL.into_iter().filter(move |k| busy & k.bit() != 0)
    }

    fn next_due(&self, heard: Instant) -> Option<Instant> {
        let stale = Kind::StaleData.index();
        let rules = self.limits.rules[stale].iter().zip(&self.states[stale]);
        let silent = rules.filter_map(|(rule, state)| match (rule, state) {
            (Some(rule), State::Idle) => {
                Some(heard + Duration::from_millis(rule.threshold.max(0) as u64))
            }
            _ => None,
        });
        let nearest = silent.min();
        if self.busy == 0 {
            return nearest;
        }
        let pending = self
            .busy_kinds()
            .flat_map(|k| self.states[k.index()])
            .filter_map(|s| match s {
                State::Pending { due } => Some(due),
                _ => None,
            });
        pending.chain(nearest).min()
    }
}

/// The mildest threshold of each kind, oriented: no value below it is any rule's.
const fn alerts(limits: &Limits) -> [i32; KINDS] {
    let mut alert = [i32::MAX; KINDS];
    let mut k = 0;
    while k < KINDS {
        let (kind, rules) = (Kind::ALL[k], &limits.rules[k]);
        let mut n = 0;
        while n < rules.len() {
            if let Some(rule) = rules[n] {
                let threshold = oriented(kind, rule.threshold);
                if threshold < alert[k] {
                    alert[k] = threshold;
                }
            }
            n += 1;
        }
        k += 1;
    }
    alert
}

#[cfg(test)]
mod tests;
