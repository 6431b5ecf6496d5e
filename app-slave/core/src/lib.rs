//! Slave core: decides when to measure, whether the gate of its group may be on, which cells are
//! bled, and what is said on the bus about it.
//!
//! A shell owns the measuring chip, the gate, the bus controller and the clock. It hands in what
//! happens (`handle_*`), carries out [`Slave::poll_output`] until that is empty, asks
//! [`Slave::poll_can`] (or [`Slave::poll_serial`]) what to send, and sleeps until
//! [`Slave::poll_timeout`]. Protection is decided inside [`Slave::handle_sample`], with the sample
//! in hand, needs neither bus nor master, and its `Gate(false)` is the first output after it.
//!
//! ```text
//!         complete sample,            Gate(true), last sample
//!         nothing wrong               complete
//! Init --------------------> Standby ------------------------> Active
//!  |  \                       | ^ ^                            |  |  |
//!  |   \ protection           | | '----------------------------'  |  |
//!  |    \                     | |   Gate(false), master lost      |  |
//!  |     '---------.          | |                                 |  |
//!  |                v  prot.  | | cause gone and latch cleared    |  |
//!  |              Tripped <---' |                                 |  |
//!  |                | ^ '-------'   protection, data stale        |  |
//!  |                | '-------------------------------------------'  |
//!  v                v                                                |
//! Isolated <---------------------- Isolate(true) in any state -------'
//!    '--- Isolate(false) ---> Tripped, Standby or Init, as the newest sample demands
//! ```
//!
//! The gate is on in `Active` and nowhere else. Whatever leaves `Active` forgets the order that
//! led there. `Gate(true)` in `Init` is remembered until the first complete sample, in `Tripped`
//! and `Isolated` it is refused.
//!
//! What waits for [`Slave::poll_output`] is no queue but one place per kind, so nothing overflows:
//! a newer decision replaces an older one that nobody fetched, except that a `Gate(false)` is
//! always delivered, and first.
//!
//! Management datagrams that the core cannot answer, since they are about the device (images,
//! settings, reset), come out of [`Slave::poll_request`] and their answers go in through
//! [`Slave::handle_answer`], if [`SlaveConfig::device`] says that somebody is there to answer.
#![no_std]

mod balance;
mod grid;
mod management;

pub use balance::BleedConfig;
pub use helio_positioning::{CHIP_RATE_HZ, FRAME_CHIPS, LightCode, PATTERN_BYTES};
pub use management::{DIAGNOSTICS, MAX_ANSWER};

use balance::Balancer;
use grid::Grid;
use helio_battery::protection::{
    self, Code, Kind, Limits, Protection, ProtectionEvent, RestoreError,
};
use helio_battery::{BalanceConfig, Sample};
use helio_bus::{
    Alarm, CanFrame, CanId, CanOut, Capabilities, Cells, Mailbox, Order, Ranges, Schedule,
    SerialOut, Severity, SlaveEvent, SlaveLink, SlaveState, State as Said, Station, Temperatures,
    slave_accepts,
};
use helio_units::{DeciCelsius, Duration, Instant, Millivolts, NodeId, TagId, Uid};
use management::{Answer, Counters, View, bump};

/// Everything a slave has to know about itself.
#[derive(Clone, Debug)]
pub struct SlaveConfig {
    /// The device.
    pub uid: Uid,
    /// What is connected. A slave without cells and sensors never measures and never has its
    /// gate on; it only lights and ranges.
    pub capabilities: Capabilities,
    /// Time between samples, at least 100 µs.
    pub sample_period: Duration,
    /// When protection warns, derates and trips, and how long the shell may leave
    /// [`SlaveOutput::SampleNow`] unanswered ([`Kind::StaleData`]). How many cells and sensors a
    /// sample must have is taken from `capabilities`.
    pub limits: Limits,
    /// The slave's own plan of which cells to bleed; its floor holds for the master's orders too.
    pub balance: BalanceConfig,
    /// When bleeding is allowed.
    pub bleed: BleedConfig,
    /// What happens to a gate that is on when the master falls silent.
    pub on_master_loss: OnMasterLoss,
    /// Identity that luminaire 0 blinks, those of the others follow it; `None`: sixteen times the
    /// seat. Give one where two masters light one room.
    pub light_id: Option<u16>,
    /// How it saves current while the pack rests; `None`: never.
    pub sleep: Option<SlaveSleep>,
    /// Somebody carries out [`Slave::poll_request`]; else such requests are refused.
    pub device: bool,
    /// Somebody asks [`Slave::poll_store`].
    pub stores: bool,
}

/// How a slave saves current: with its gate off, nothing to bleed and no master on the bus it measures seldom. It protects as
/// ever, and is awake with the next SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlaveSleep {
    /// How long the master has been silent by then.
    pub after: Duration,
    /// Time between samples.
    pub period: Duration,
}

impl SlaveConfig {
    /// The usual: a sample every 10 ms; without a master the gate stays as it is, protected.
    pub fn new(uid: Uid, capabilities: Capabilities, limits: Limits) -> Self {
        Self {
            uid,
            capabilities,
            sample_period: Duration::from_millis(10),
            limits,
            balance: BalanceConfig::default(),
            bleed: BleedConfig::default(),
            on_master_loss: OnMasterLoss::Keep,
            light_id: None,
            sleep: None,
            device: false,
            stores: false,
        }
    }
}

/// What happens to a gate that is on when the master falls silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMasterLoss {
    /// It stays on; the slave protects its group without help. For loads that must not drop.
    Keep,
    /// It goes off when so much time has passed since the last word of the master.
    OpenAfter(Duration),
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlaveOutput {
    /// Switch the gate.
    Gate(bool),
    /// Let these bleed resistors conduct and no others, bit 0 is cell 0.
    Balance(u32),
    /// Measure now and call [`Slave::handle_sample`].
    SampleNow,
    /// Take the distances to this tag now and call [`Slave::handle_ranges`].
    RangeNow(TagId),
    /// Let these luminaires shine and no others, bit 0 is anchor 0.
    Light(u16),
    /// Let each luminaire that shines repeat the chips of [`light_code`] of this identity and its
    /// own number at [`CHIP_RATE_HZ`] ([`light_pattern`] has them as bytes). Until then they shine
    /// steadily.
    Identify(u16),
}

/// What luminaire `anchor` of a slave repeats for ever, given what [`SlaveOutput::Identify`] said.
pub fn light_code(first: u16, anchor: u8) -> LightCode {
    LightCode::new(first.wrapping_add(u16::from(anchor)))
}

/// The same as bytes for a shell whose timer and DMA, or SPI, shift them out by themselves: most
/// significant bit first, one bit a chip, [`CHIP_RATE_HZ`] of them a second, round and round.
pub fn light_pattern(first: u16, anchor: u8) -> [u8; PATTERN_BYTES] {
    light_code(first, anchor).pattern()
}

/// The core of one slave.
pub struct Slave {
    uid: Uid,
    capabilities: Capabilities,
    on_master_loss: OnMasterLoss,
    light_id: Option<u16>,
    sleep: Option<SlaveSleep>,
    device: bool,
    /// `None`: nobody stores.
    store: Option<Store>,
    link: SlaveLink,
    protection: Protection,
    grid: Grid,
    balancer: Balancer,
    counters: Counters,
    state: State,
    /// Every expected value of the newest sample was there, and it is not stale.
    complete: bool,
    /// First of the samples asked for that have not come.
    asked: Option<Instant>,
    range_asked: Option<Instant>,
    /// Last word of the master.
    heard: Option<Instant>,
    /// The master knows us, so that it takes our alarms: a SYNC has come since the seat.
    introduced: bool,
    said: Said,
    /// Of the measurement in `said`.
    sampled_at: Option<Instant>,
    waiting: Waiting,
    /// An answer while it is written, or the first `request` octets for the device.
    reply: [u8; MAX_ANSWER],
    request: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Init { gate_ordered: bool },
    Standby,
    Active,
    Tripped,
    Isolated,
}

/// When to store what protection remembers. Flash wears out, so that what comes and goes is stored
/// seldom; a trip at once, as a reset is no way round it.
#[derive(Clone, Copy, Debug)]
struct Store {
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Store {
    const IDLE: Self = Self {
        due: None,
        last: None,
    };

    fn note(&mut self, now: Instant, event: &ProtectionEvent) {
        let trip = event.active && event.code.severity() == protection::Severity::Trip;
        let pause = if trip { STORE_TRIP } else { STORE };
        let at = self.last.map_or(now, |last| now.max(last + pause));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

/// Least time between two times that what is remembered is stored ...
const STORE: Duration = Duration::from_secs(60);
/// ... and when something tripped, or when it could not be stored.
const STORE_TRIP: Duration = Duration::from_secs(1);

/// One place for each kind of output.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    gate_off: bool,
    gate_on: bool,
    balance: Option<u32>,
    sample: bool,
    range: Option<TagId>,
    light: Option<u16>,
    identify: Option<u16>,
}

impl Waiting {
    const NONE: Self = Self {
        gate_off: false,
        gate_on: false,
        balance: None,
        sample: false,
        range: None,
        light: None,
        identify: None,
    };
}

/// What a slave is called that has not been started.
const NOBODY: Uid = Uid::new(1).expect("1 is not 0");

impl Slave {
    /// A slave that has just booted: gate off, nothing bled, all luminaires shining.
    /// [`Self::handle_timeout`] is due at once.
    pub fn new(config: SlaveConfig, schedule: Schedule) -> Self {
        let mut slave = Self::vacant();
        slave.start(&config, schedule);
        slave
    }

    /// To a [`Self::vacant`] slave before its start: the bytes that [`Self::poll_store`] had stored
    /// before the reset. Counts go on, and what was latched still is.
    // Not a part of what has the configuration on its stack.
    #[inline(never)]
    pub fn recall(&mut self, config: &SlaveConfig, stored: &[u8]) -> Result<(), RestoreError> {
        self.set_limits(config);
        self.protection.restore(stored)
    }

    fn set_limits(&mut self, config: &SlaveConfig) {
        let Capabilities { cells, temps, .. } = config.capabilities;
        self.protection.set_limits(&config.limits, cells, temps);
    }

    /// No slave yet: what [`Self::start`] makes one of. The compiler can lay it out, so that a
    /// shell may have it in a static and needs no stack for a second one.
    pub const fn vacant() -> Self {
        Self {
            uid: NOBODY,
            capabilities: Capabilities {
                cells: 0,
                temps: 0,
                anchors: 0,
            },
            on_master_loss: OnMasterLoss::Keep,
            light_id: None,
            sleep: None,
            device: false,
            store: None,
            link: SlaveLink::vacant(),
            protection: Protection::new(Limits::nmc(0)),
            grid: Grid::NONE,
            balancer: Balancer::new(BleedConfig::DEFAULT, BalanceConfig::DEFAULT),
            counters: Counters::NONE,
            state: State::Standby,
            complete: false,
            asked: None,
            range_asked: None,
            heard: None,
            introduced: false,
            said: Said::EMPTY,
            sampled_at: None,
            waiting: Waiting::NONE,
            reply: [0; MAX_ANSWER],
            request: 0,
        }
    }

    /// Makes of a [`Self::vacant`] slave, in place, what [`Self::new`] gives.
    pub fn start(&mut self, config: &SlaveConfig, schedule: Schedule) {
        let SlaveConfig {
            uid,
            capabilities,
            on_master_loss,
            light_id,
            sleep,
            device,
            stores,
            ..
        } = *config;
        let lit = capabilities.anchors > 0;
        self.set_limits(config);
        let tripped = self.protection.severity() == Some(protection::Severity::Trip);
        self.uid = uid;
        self.capabilities = capabilities;
        self.on_master_loss = on_master_loss;
        self.light_id = light_id;
        self.sleep = sleep;
        self.device = device;
        self.store = stores.then_some(Store::IDLE);
        self.link.start(schedule, uid, capabilities);
        self.grid = Grid::new(
            config.sample_period,
            schedule.cycle,
            schedule.master_silence,
        );
        self.balancer = Balancer::new(config.bleed, config.balance);
        self.state = match (measures(&capabilities), tripped) {
            (true, true) => State::Tripped,
            (true, false) => State::Init {
                gate_ordered: false,
            },
            (false, _) => State::Standby,
        };
        self.waiting = Waiting {
            gate_off: true,
            balance: Some(0),
            light: lit.then(|| mask(capabilities.anchors)),
            identify: light_id.filter(|_| lit),
            ..Waiting::NONE
        };
    }

    /// A measurement has come, asked for or not. The gate is decided when this returns.
    ///
    /// The measurement counts as taken when it was asked for, which is never later than it was:
    /// ages reckoned from that are upper bounds.
    pub fn handle_sample(&mut self, now: Instant, sample: &Sample) {
        if !measures(&self.capabilities) {
            return;
        }
        self.sampled_at = Some(self.asked.take().unwrap_or(now).min(now));
        bump(&mut self.counters.samples);
        self.complete = self.is_complete(sample);
        self.protection.handle_sample(now, sample);
        self.decide(now);
        if let Some(period) = self.pace(now) {
            self.protection.expect_sample(now + period);
        }

        let hottest = self.note(sample);
        let change = match self.state {
            State::Standby | State::Active if self.complete => {
                let next = self.grid.earliest();
                self.balancer
                    .handle_sample(now, sample.cells(), hottest, next)
            }
            _ => self.balancer.suspend(),
        };
        self.bleed(change);
        self.report(now);
        self.publish(now);
    }

    /// The distances that [`SlaveOutput::RangeNow`] asked for.
    pub fn handle_ranges(&mut self, now: Instant, ranges: &Ranges) {
        let asked = self.range_asked.take().unwrap_or(now).min(now);
        if self.state != State::Isolated {
            self.link.set_ranges(asked, ranges);
        }
    }

    /// A CAN frame has been received.
    pub fn handle_can(&mut self, now: Instant, frame: &CanFrame) {
        self.link.handle_can(now, frame);
        self.handle_events(now);
    }

    /// The frame taken from [`Self::poll_can`] for `mailbox` is on the wire.
    pub fn handle_sent(&mut self, now: Instant, mailbox: Mailbox) {
        self.link.handle_sent(now, mailbox);
        self.handle_events(now);
    }

    /// Characters have come on RS485; `now` is the end of the last one's stop bit.
    pub fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {
        self.link.handle_serial(now, bytes);
        self.handle_events(now);
    }

    /// A break has come on RS485.
    pub fn handle_break(&mut self, now: Instant) {
        self.link.handle_break(now);
        self.handle_events(now);
    }

    /// Time has passed. Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.guard_at().is_some_and(|t| now >= t) {
            self.protection.handle_timeout(now);
            self.decide(now);
            self.report(now);
            self.publish(now);
        }
        if self.drop_at().is_some_and(|t| now >= t) {
            bump(&mut self.counters.master_lost);
            self.switch_off(State::Standby);
            self.publish(now);
        }
        let change = self.balancer.handle_timeout(now);
        self.bleed(change);
        self.link.handle_timeout(now);
        self.handle_events(now);
        if measures(&self.capabilities) && self.grid.handle_timeout(now) {
            self.ask(now);
            if let Some(period) = self.pace(now) {
                self.grid.skip(now + period);
            }
        }
    }

    /// The pace at which it measures because it sleeps.
    fn pace(&self, now: Instant) -> Option<Duration> {
        let sleep = self.sleep?;
        let silent = now.since(self.grid.synced()) >= sleep.after;
        let idle = self.state != State::Active && !self.balancer.is_balancing();
        (silent && idle).then_some(sleep.period)
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sample = measures(&self.capabilities).then(|| self.grid.due());
        [
            self.link.poll_timeout(),
            self.guard_at(),
            self.drop_at(),
            self.balancer.poll_timeout(),
            self.store.and_then(|store| store.due),
            sample,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next decision to carry out; call until `None`, before anything else.
    pub fn poll_output(&mut self) -> Option<SlaveOutput> {
        let w = &mut self.waiting;
        if core::mem::take(&mut w.gate_off) {
            return Some(SlaveOutput::Gate(false));
        }
        if let Some(mask) = w.balance.take() {
            return Some(SlaveOutput::Balance(mask));
        }
        if core::mem::take(&mut w.sample) {
            return Some(SlaveOutput::SampleNow);
        }
        if let Some(tag) = w.range.take() {
            return Some(SlaveOutput::RangeNow(tag));
        }
        if core::mem::take(&mut w.gate_on) {
            return Some(SlaveOutput::Gate(true));
        }
        if let Some(mask) = w.light.take() {
            return Some(SlaveOutput::Light(mask));
        }
        w.identify.take().map(SlaveOutput::Identify)
    }

    /// A datagram for the device that came over the bus, handed over once. Its answer, whenever
    /// there is one, goes to [`Self::handle_answer`]; a newer datagram replaces one that nobody
    /// fetched.
    pub fn poll_request(&mut self) -> Option<&[u8]> {
        let length = core::mem::take(&mut self.request);
        self.reply.get(..length).filter(|r| !r.is_empty())
    }

    /// Whether [`Diagnostics::store`](protection::Diagnostics::store) of `protection().diagnostics()` is to be stored now where it
    /// outlives a reset; said once. For [`Self::recall`].
    pub fn poll_store(&mut self, now: Instant) -> bool {
        let Some(store) = &mut self.store else {
            return false;
        };
        let due = store.due.is_some_and(|due| now >= due);
        if due {
            *store = Store {
                due: None,
                last: Some(now),
            };
        }
        due
    }

    /// It could not be stored, and is to be tried again.
    pub fn handle_not_stored(&mut self, now: Instant) {
        if let Some(store) = &mut self.store {
            store.due.get_or_insert(now + STORE_TRIP);
        }
    }

    /// What the device answers to a datagram from [`Self::poll_request`].
    pub fn handle_answer(&mut self, datagram: &[u8]) {
        if datagram.len() > MAX_ANSWER || self.link.send_datagram(datagram).is_err() {
            bump(&mut self.counters.unanswered);
        }
    }

    /// What to send from this CAN mailbox; call when it is free.
    pub fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        self.link.poll_can(now, mailbox)
    }

    /// What to send on RS485.
    pub fn poll_serial(&mut self, now: Instant) -> Option<SerialOut> {
        self.link.poll_serial(now)
    }

    /// The seat on the bus, if there is one.
    pub fn node(&self) -> Option<NodeId> {
        self.link.node()
    }

    /// Trips signalled on the bus since the start, its own among them.
    pub fn trips_seen(&self) -> u32 {
        self.counters.trips_seen
    }

    /// Whether protection holds the gate off, isolated or not.
    pub fn is_tripped(&self) -> bool {
        self.protection.severity() == Some(protection::Severity::Trip)
    }

    /// Life of the slave, as the bus is told.
    pub fn state(&self) -> SlaveState {
        match self.state {
            State::Init { .. } => SlaveState::Init,
            State::Standby => SlaveState::Standby,
            State::Active => SlaveState::Active,
            State::Tripped => SlaveState::Tripped,
            State::Isolated => SlaveState::Isolated,
        }
    }

    /// What protection watches and remembers.
    pub fn protection(&self) -> &Protection {
        &self.protection
    }

    /// This end of the bus.
    pub fn link(&self) -> &SlaveLink {
        &self.link
    }

    /// This end of the bus, for fault injection.
    pub fn link_mut(&mut self) -> &mut SlaveLink {
        &mut self.link
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.link.poll_event() {
            self.handle_event(now, event);
        }
    }

    fn handle_event(&mut self, now: Instant, event: SlaveEvent) {
        match event {
            SlaveEvent::Joined(node) => {
                self.heard = Some(now);
                self.introduced = false;
                if self.capabilities.anchors > 0 && self.light_id.is_none() {
                    self.waiting.identify = Some(16 * u16::from(node.get()));
                }
            }
            SlaveEvent::Left(_) => {
                self.introduced = false;
                bump(&mut self.counters.left);
            }
            SlaveEvent::Sync { .. } => self.handle_sync(now),
            SlaveEvent::RangeNow(tag) => {
                if self.capabilities.anchors > 0 && self.state != State::Isolated {
                    self.waiting.range = Some(tag);
                    self.range_asked = Some(now);
                }
            }
            SlaveEvent::Order(order) => {
                self.heard = Some(now);
                bump(&mut self.counters.orders);
                self.handle_order(now, order);
                self.publish(now);
            }
            SlaveEvent::TripSeen => {
                bump(&mut self.counters.trips_seen);
            }
            SlaveEvent::Datagram => self.answer(now),
        }
    }

    fn handle_sync(&mut self, now: Instant) {
        bump(&mut self.counters.syncs);
        if self.pace(now).is_some() {
            self.protection.expect_sample(now);
        }
        if self.link.node().is_some() {
            self.heard = Some(now);
            if !self.introduced {
                self.introduced = true;
                self.announce(now);
            }
        }
        if measures(&self.capabilities) && self.grid.handle_sync(now) {
            self.ask(now);
        }
        if self.sampled_at.is_none() {
            self.publish(now);
        }
    }

    fn handle_order(&mut self, now: Instant, order: Order) {
        match order {
            Order::Gate(true) => match &mut self.state {
                State::Init { gate_ordered } => *gate_ordered = true,
                State::Standby if self.complete && !self.protection.must_open() => {
                    self.switch_on();
                }
                State::Active => {}
                State::Standby | State::Tripped | State::Isolated => {
                    bump(&mut self.counters.refused)
                }
            },
            Order::Gate(false) => match &mut self.state {
                State::Init { gate_ordered } => *gate_ordered = false,
                State::Active => self.switch_off(State::Standby),
                State::Standby | State::Tripped | State::Isolated => {}
            },
            Order::Balance(mask) => match self.state {
                State::Standby | State::Active | State::Init { .. } => {
                    let change = self.balancer.handle_order(now, mask);
                    self.bleed(change);
                }
                State::Tripped | State::Isolated => bump(&mut self.counters.refused),
            },
            Order::ClearLatch => {
                self.protection.clear_latch(now);
                self.decide(now);
                self.report(now);
            }
            Order::Isolate(true) => self.switch_off(State::Isolated),
            Order::Isolate(false) => {
                if self.state == State::Isolated {
                    self.state = match self.is_tripped() {
                        true => State::Tripped,
                        false => self.rest(),
                    };
                    self.announce(now);
                }
            }
            Order::Light(lit) => {
                self.waiting.light = Some(lit & mask(self.capabilities.anchors));
            }
            // The link keeps silent by itself.
            Order::Quarantine(_) => {}
        }
    }

    /// The one place where protection meets the gate.
    fn decide(&mut self, now: Instant) {
        let tripped = self.is_tripped();
        match self.state {
            State::Init { .. } | State::Standby | State::Active if tripped => {
                self.switch_off(State::Tripped);
                bump(&mut self.counters.trips);
                self.link.trip(now);
            }
            State::Tripped if !tripped => self.state = self.rest(),
            State::Init { gate_ordered } if self.complete && !self.protection.must_open() => {
                self.state = State::Standby;
                if gate_ordered && self.lost_at().is_none_or(|t| now < t) {
                    self.switch_on();
                }
            }
            _ => {}
        }
    }

    /// Where to go when nothing is wrong and nothing is ordered.
    fn rest(&self) -> State {
        let known = self.complete && !self.protection.must_open();
        if known || !measures(&self.capabilities) {
            State::Standby
        } else {
            State::Init {
                gate_ordered: false,
            }
        }
    }

    fn switch_on(&mut self) {
        self.state = State::Active;
        self.waiting.gate_on = true;
        self.protection.set_gate(true);
    }

    /// Makes sure that the gate is off, and goes to `state`.
    fn switch_off(&mut self, state: State) {
        self.state = state;
        self.waiting.gate_off = true;
        self.waiting.gate_on = false;
        self.protection.set_gate(false);
        if state != State::Standby {
            let change = self.balancer.stop();
            self.bleed(change);
        }
    }

    fn bleed(&mut self, change: Option<u32>) {
        self.waiting.balance = change.or(self.waiting.balance);
    }

    fn ask(&mut self, now: Instant) {
        self.waiting.sample = true;
        let change = self.balancer.pause();
        self.bleed(change);
        if self.asked.is_some() && self.protection.is_active(STALE) {
            self.forget();
            self.publish(now);
        }
        self.asked.get_or_insert(now);
    }

    /// What was measured is of no use any more.
    fn forget(&mut self) {
        self.complete = false;
        self.said = Said::default();
    }

    /// When protection has something to decide by time.
    fn guard_at(&self) -> Option<Instant> {
        match measures(&self.capabilities) {
            true => self.protection.poll_timeout(),
            false => None,
        }
    }

    /// When the master has been silent for so long that no gate may be on.
    fn lost_at(&self) -> Option<Instant> {
        match self.on_master_loss {
            OnMasterLoss::Keep => None,
            OnMasterLoss::OpenAfter(d) => Some(self.heard.unwrap_or(Instant::ZERO) + d),
        }
    }

    /// When the gate goes off because the master is silent.
    fn drop_at(&self) -> Option<Instant> {
        match self.state {
            State::Active => self.lost_at(),
            _ => None,
        }
    }

    fn is_complete(&self, sample: &Sample) -> bool {
        let c = &self.capabilities;
        sample.cell_count >= c.cells
            && sample.temp_count >= c.temps
            && (sample.current.is_some() || !self.protection.limits().current)
            && sample.cells().iter().all(Option::is_some)
            && sample.temps().iter().all(Option::is_some)
    }

    /// Notes what the bus will be told of a sample; the hottest sensor.
    fn note(&mut self, sample: &Sample) -> Option<DeciCelsius> {
        let said = &mut self.said;
        said.cells = Cells::default();
        let (mut min, mut max) = (None::<Millivolts>, None::<Millivolts>);
        for (to, cell) in said.cells.0.iter_mut().zip(sample.cells()) {
            *to = *cell;
            if let Some(v) = *cell {
                min = Some(min.map_or(v, |m| m.min(v)));
                max = Some(max.map_or(v, |m| m.max(v)));
            }
        }
        said.temps = Temperatures::default();
        let mut hottest = None::<DeciCelsius>;
        for (to, temp) in said.temps.0.iter_mut().zip(sample.temps()) {
            *to = *temp;
            if let Some(t) = *temp {
                hottest = Some(hottest.map_or(t, |h| h.max(t)));
            }
        }
        said.summary.current = sample.current;
        said.summary.min = min;
        said.summary.max = max;
        hottest
    }

    /// Whether alarms are of use now; if not, what is active later is announced later.
    fn may_alarm(&self) -> bool {
        self.introduced && self.state != State::Isolated
    }

    /// Tells the master what began and ended.
    fn report(&mut self, now: Instant) {
        while let Some(event) = self.protection.poll_event() {
            if let Some(store) = &mut self.store {
                store.note(now, &event);
            }
            if event.code == STALE && event.active {
                bump(&mut self.counters.stale);
                self.forget();
            }
            if self.may_alarm() {
                self.link.alarm(now, alarm(&event));
            }
        }
    }

    /// Tells a master that cannot know all that is active.
    fn announce(&mut self, now: Instant) {
        for code in (0..=u8::MAX).map_while(Code::from_raw) {
            if self.may_alarm() && self.protection.is_active(code) {
                let record = self.protection.record(code);
                let event = ProtectionEvent {
                    code,
                    active: true,
                    index: record.index,
                    value: record.value,
                    at: record.last.at,
                };
                self.link.alarm(now, alarm(&event));
            }
        }
    }

    fn publish(&mut self, now: Instant) {
        let state = self.state();
        let summary = &mut self.said.summary;
        summary.state = state;
        summary.severity = self.protection.severity().map_or(Severity::None, severity);
        summary.gate_on = self.state == State::Active;
        summary.balancing = self.balancer.is_balancing();
        self.link
            .set_state(self.sampled_at.unwrap_or(now), &self.said);
    }

    /// Answers the management datagram that has come.
    fn answer(&mut self, now: Instant) {
        let node = self.link.node();
        let link = self.link.stats();
        let Some(request) = self.link.datagram() else {
            return;
        };
        bump(&mut self.counters.datagrams);
        let view = View {
            now,
            uid: self.uid,
            node,
            device: self.device,
            gate_on: self.state == State::Active,
            capabilities: self.capabilities,
            said: &self.said,
            sampled_at: self.sampled_at,
            counters: &self.counters,
            link: &link,
            protection: &self.protection,
        };
        self.request = 0;
        let length = match management::answer(request, &mut self.reply, &view) {
            Answer::Core(length) => length,
            Answer::Device => {
                match self.reply.get_mut(..request.len()) {
                    Some(place) => {
                        place.copy_from_slice(request);
                        self.request = request.len();
                    }
                    // Longer than we said we take.
                    None => bump(&mut self.counters.unanswered),
                }
                return;
            }
        };
        let reply = self.reply.get(..length).unwrap_or(&[]);
        // A client whose answer is lost asks again.
        if reply.is_empty() || self.link.send_datagram(reply).is_err() {
            bump(&mut self.counters.unanswered);
        }
    }
}

impl Station for Slave {
    fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {
        self.handle_serial(now, bytes);
    }

    fn handle_break(&mut self, now: Instant) {
        self.handle_break(now);
    }

    fn poll_serial(&mut self, now: Instant) -> Option<SerialOut> {
        self.poll_serial(now)
    }

    fn accepts(&self, id: CanId) -> bool {
        slave_accepts(id, self.node())
    }

    fn handle_can(&mut self, now: Instant, frame: &CanFrame) {
        self.handle_can(now, frame);
    }

    fn handle_sent(&mut self, now: Instant, mailbox: Mailbox) {
        self.handle_sent(now, mailbox);
    }

    fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        self.poll_can(now, mailbox)
    }
}

const STALE: Code = Code::new(Kind::StaleData, protection::Severity::Trip);

fn severity(severity: protection::Severity) -> Severity {
    match severity {
        protection::Severity::Warn => Severity::Warn,
        protection::Severity::Derate => Severity::Derate,
        protection::Severity::Trip => Severity::Trip,
    }
}

fn alarm(event: &ProtectionEvent) -> Alarm {
    Alarm {
        code: event.code.get(),
        severity: severity(event.code.severity()),
        active: event.active,
        index: event.index,
        value: event.wire_value(),
    }
}

fn measures(capabilities: &Capabilities) -> bool {
    capabilities.cells > 0 || capabilities.temps > 0
}

/// The lowest `count` bits.
fn mask(count: u8) -> u16 {
    1u16.checked_shl(u32::from(count))
        .map_or(u16::MAX, |bit| bit - 1)
}

#[cfg(test)]
mod tests;
