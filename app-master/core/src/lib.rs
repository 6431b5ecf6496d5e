//! Master core: joins the slaves of its buses to a pack and an anchor field, and answers clients.
//!
//! Frames go in through `handle_can` or `handle_serial`, time through [`Master::handle_timeout`],
//! client datagrams through [`Master::handle_smp`]; frames come out of `poll_can` or `poll_serial`.
//! It owns no clock, pin or thread, so firmware and simulator run the same code.
//!
//! ```text
//!  bus --> Trunk --events--> Seat[n] --> Strings --orders--> Trunk --> bus
//!                      |        |  GroupFilter, HealthFilter
//!                      |        '--> PackFigures --.
//!                      '--> Epoch --> locate ------+--> Log --> handle_smp --> clients
//!                             AnchorMap -'         '
//! ```
//!
//! Where the pack has main contactors and a precharge relay ([`PackControl`]), what is measured there
//! goes in through [`Master::handle_terminals`] and [`Master::poll_drive`] tells which coils to feed.
//!
//! Orders are levels, not edges: what a slave reports is compared with what is wanted, and the
//! order is repeated until they agree, so a lost frame costs a cycle and nothing else.
#![no_std]
#![forbid(unsafe_code)]

pub mod contactor;
pub mod keep;
mod locate;
pub mod map;
pub mod northbound;
pub mod pack;
pub mod power;
pub mod sleep;
pub mod telemetry;

use helio_battery::balance::{BalanceConfig, ChargeBalance};
use helio_battery::power::PowerLimits;
use helio_battery::{CellParams, Modes};
use helio_bus::analysis::Overfull;
use helio_bus::{
    Busy, CanFrame, CanId, CanOut, Capabilities, Cells, Command, E2eFault, LeaveReason, Mailbox,
    MasterEvent, Message, Order, Schedule, SerialOut, Severity, State, Station, Trunk,
};
use helio_smp::heliograph::{self, Fault};
use helio_smp::standard::{self, Stat};
use helio_smp::tunnel::{Due, SlaveTunnel};
use helio_smp::{MAX_DATAGRAM, Op, Rc, Reply, Request};
use helio_units::{DeciCelsius, Duration, Instant, Millimetres, Millivolts, NodeId, TagId, Uid};

use contactor::{ContactorConfig, ContactorState, Contactors, Drive, Terminals};
use keep::{Keep, RecallError};
use locate::{Beforehand, Locator};
use map::{AnchorMap, Epoch, MapAnchor};
use northbound::{MapPiece, SeatStatus, StatusHead};
use pack::{PackFigures, PackState, Params, Seat, StringDecision, Strings, Topology};
use sleep::{Change, Seen, Sleep, SleepConfig};
use telemetry::{Event, HealthFigures, Log, Record, SlaveFigures, What};

/// Most buses of one master.
pub const MAX_BUSES: usize = 4;

/// What an integrator decides.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Shown to clients.
    pub name: heapless::String<24>,
    /// Timing of each bus, in order; seats are numbered through ([`Trunk`]).
    pub buses: heapless::Vec<Schedule, MAX_BUSES>,
    /// How seats form strings.
    pub topology: Topology,
    /// The kind of cell in this pack, as new.
    pub cell: &'static CellParams,
    /// When and what to balance.
    pub balance: BalanceConfig,
    /// Height at which tags move, for anchors that cannot tell it (a flat ceiling); `None`: 3D.
    pub tag_height_mm: Option<i32>,
    /// 1-sigma of a range, millimetres.
    pub range_sigma_mm: u32,
    /// How often each slave is recorded.
    pub slave_period: Duration,
    /// How often the pack is recorded.
    pub pack_period: Duration,
}

/// How the pack as a whole is guarded and used; see [`Master::control_pack`].
#[derive(Clone, Copy, Debug)]
pub struct PackControl {
    /// Main contactors and precharge; `None`: the slaves' gates are all there is.
    pub contactors: Option<ContactorConfig>,
    /// What no cell shall leave when power is promised.
    pub power: PowerLimits,
    /// How to balance by state of charge.
    pub balance: ChargeBalance,
    /// When the pack rests.
    pub sleep: SleepConfig,
}

impl PackControl {
    /// No contactors, and limits from the cell's parameters.
    pub fn new(cell: &CellParams) -> Self {
        Self {
            contactors: None,
            power: power::default_limits(cell),
            balance: ChargeBalance::default(),
            sleep: SleepConfig::default(),
        }
    }
}

/// The master of up to `BUSES` buses with up to `SEATS` slaves in all, remembering `LOG` records.
///
/// What carries frames names the bus, counted from 0.
pub struct Master<const SEATS: usize, const LOG: usize, const BUSES: usize = 1> {
    name: heapless::String<24>,
    /// `None` before [`Self::start`].
    new_cell: Option<&'static CellParams>,
    /// The cells as they are now, by the mean of what is known of their health.
    cell: CellParams,
    balance: BalanceConfig,
    charge_balance: ChargeBalance,
    power: PowerLimits,
    tag_height_mm: Option<i32>,
    range_sigma_mm: u32,
    slave_period: Duration,
    pack_period: Duration,
    trunk: Trunk<BUSES, SEATS>,
    /// All of them, from the start on.
    seats: heapless::Vec<Seat, SEATS>,
    strings: Strings,
    /// At most one: an `Option` may say `None` by something else than zeros; see [`Self::vacant`].
    contactors: heapless::Vec<Contactors, 1>,
    sleep: Sleep,
    /// The pack as it was when it fell asleep.
    rested: PackFigures,
    /// Who was there when it fell asleep, and until when they may take to come back.
    returning: Option<(u128, Instant)>,
    log: Log<LOG>,
    map: AnchorMap,
    /// One for all buses that are in step, else one for each.
    epochs: [Epoch; BUSES],
    locator: Locator,
    gate_wanted: bool,
    balance_wanted: bool,
    isolate_wanted: [bool; SEATS],
    next_pack: Instant,
    next_slave: Instant,
    next_tick: Instant,
    slave_cursor: usize,
    /// Place at which the next orders that may wait are looked for.
    order_cursor: usize,
    load_ppm: u32,
    latency_max_us: u32,
    counters: Counters,
    tunnel: SlaveTunnel<TUNNELS>,
    left: heapless::Deque<NodeId, TUNNELS>,
    /// When to store what is known of the cells.
    keep: Keep,
    /// The device that was refused last and has no seat yet; at most one, as of the contactors.
    refused: heapless::Vec<(Uid, Overfull), 1>,
}

/// Classes of cyclic messages that carry measurements; places in [`Counters::accepted`].
pub const CLASSES: [&str; 5] = ["summary", "cells", "temperatures", "ranges", "state"];

fn class_of(message: &Message) -> Option<usize> {
    Some(match message {
        Message::Summary(..) => 0,
        Message::CellChunk { .. } => 1,
        Message::TempChunk { .. } => 2,
        Message::RangeChunk { .. } | Message::Ranges(..) => 3,
        Message::State(..) => 4,
        Message::Trip | Message::Alarm(..) | Message::Sync(_) | Message::Command(_) => return None,
    })
}

/// What the master counted since it started, for the stat group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Cyclic messages that passed their end-to-end check, by class.
    pub accepted: [u32; CLASSES.len()],
    /// Those that did not.
    pub rejected: u32,
    /// Messages found missing by their counters.
    pub lost: u32,
    /// Trips heard.
    pub trips: u32,
    /// Slaves that joined.
    pub joins: u32,
    /// Slaves that left.
    pub leaves: u32,
    /// Position fixes.
    pub fixes: u32,
    /// Epochs from which no position could be computed.
    pub no_fixes: u32,
}

impl Counters {
    const NONE: Self = Self {
        accepted: [0; CLASSES.len()],
        rejected: 0,
        lost: 0,
        trips: 0,
        joins: 0,
        leaves: 0,
        fixes: 0,
        no_fixes: 0,
    };
}

/// The longest name of a bus and a sign between two, for each.
const BUS_NAMES: usize = MAX_BUSES * 11;

/// Slaves that clients may ask at the same time.
const TUNNELS: usize = 8;

/// Orders that may wait, per level check.
const ORDERS_PER_TICK: usize = 4;

/// How long slaves may take to come back from a rest.
const RETURN: Duration = Duration::from_secs(1);

/// Level checks: often enough that a lost order is repeated within a few cycles.
const TICK: Duration = Duration::from_millis(50);

impl<const SEATS: usize, const LOG: usize, const BUSES: usize> Master<SEATS, LOG, BUSES> {
    /// Starts with nobody on the bus, all strings open and the pack wanted on.
    pub fn new(config: &MasterConfig) -> Self {
        let mut master = Self::vacant();
        master.start(config);
        master
    }

    /// To be started by [`Self::start`]. All zeros, so that as a static it takes memory, but neither flash nor,
    /// for a moment, as much stack.
    pub const fn vacant() -> Self {
        Self {
            name: heapless::String::new(),
            new_cell: None,
            cell: CellParams::BLANK,
            balance: BalanceConfig {
                threshold: Millivolts(0),
                floor: Millivolts(0),
                max_cells: 0,
                neighbours: false,
            },
            charge_balance: ChargeBalance {
                start: 0.0,
                stop: 0.0,
                sigmas: 0.0,
                resistor_ohm: 0,
                budget_mw: 0,
                cool: DeciCelsius(0),
                hot: DeciCelsius(0),
            },
            power: PowerLimits {
                min_mv: 0.0,
                max_mv: 0.0,
                discharge_ma: 0.0,
                charge_ma: 0.0,
                min_soc: 0.0,
                max_soc: 0.0,
            },
            tag_height_mm: None,
            range_sigma_mm: 0,
            slave_period: Duration::ZERO,
            pack_period: Duration::ZERO,
            trunk: Trunk::vacant(),
            seats: heapless::Vec::new(),
            strings: Strings::NONE,
            contactors: heapless::Vec::new(),
            sleep: Sleep::new(SleepConfig {
                after: None,
                check_every: Duration::ZERO,
                check_for: Duration::ZERO,
            }),
            rested: PackFigures::NONE,
            returning: None,
            log: Log::new(),
            map: AnchorMap::new(),
            epochs: [const { Epoch::new() }; BUSES],
            locator: Locator::new(),
            gate_wanted: false,
            balance_wanted: false,
            isolate_wanted: [false; SEATS],
            next_pack: Instant::ZERO,
            next_slave: Instant::ZERO,
            next_tick: Instant::ZERO,
            slave_cursor: 0,
            order_cursor: 0,
            load_ppm: 0,
            latency_max_us: 0,
            counters: Counters::NONE,
            tunnel: SlaveTunnel::new(),
            left: heapless::Deque::new(),
            keep: Keep::new(),
            refused: heapless::Vec::new(),
        }
    }

    /// Makes of a [`Self::vacant`] master, in place, what [`Self::new`] gives.
    pub fn start(&mut self, config: &MasterConfig) {
        let MasterConfig {
            name,
            buses,
            topology,
            cell,
            balance,
            tag_height_mm,
            range_sigma_mm,
            slave_period,
            pack_period,
        } = config;
        self.name.clone_from(name);
        self.new_cell = Some(cell);
        self.cell.clone_from(cell);
        self.balance = *balance;
        self.tag_height_mm = *tag_height_mm;
        self.range_sigma_mm = *range_sigma_mm;
        self.slave_period = *slave_period;
        self.pack_period = *pack_period;
        self.trunk.start(buses);
        self.strings = Strings::new(*topology);
        self.control_pack(PackControl::new(cell));
        self.log.start();
        self.gate_wanted = true;
        self.balance_wanted = true;
        self.next_pack = Instant::ZERO + *pack_period;
        self.next_slave = Instant::ZERO + *slave_period;
        self.next_tick = Instant::ZERO + TICK;
        // One by one in their place: all of them at once would be on the stack first.
        while !self.seats.is_full() {
            let _ = self.seats.push(Seat::default());
        }
    }

    /// A frame that the CAN controller received.
    pub fn handle_can(&mut self, bus: usize, now: Instant, frame: &CanFrame) {
        if !self.sleep.is_asleep() {
            self.trunk.handle_can(bus, now, frame);
            self.drain(now);
        }
    }

    /// The frame in this mailbox is on the wire.
    pub fn handle_sent(&mut self, bus: usize, now: Instant, mailbox: Mailbox) {
        if !self.sleep.is_asleep() {
            self.trunk.handle_sent(bus, now, mailbox);
        }
    }

    /// Characters that the UART received; `now` is the end of the last one.
    pub fn handle_serial(&mut self, bus: usize, now: Instant, bytes: &[u8]) {
        if !self.sleep.is_asleep() {
            self.trunk.handle_serial(bus, now, bytes);
            self.drain(now);
        }
    }

    /// The UART saw a break.
    pub fn handle_break(&mut self, bus: usize, now: Instant) {
        if !self.sleep.is_asleep() {
            self.trunk.handle_break(bus, now);
            self.drain(now);
        }
    }

    /// Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.sleep.is_asleep() {
            if let Some(contactors) = self.contactors.first_mut() {
                contactors.handle_timeout(now);
            }
            self.note_contactors(now);
            self.rest(now);
            if self.sleep.is_asleep() {
                return;
            }
        }
        self.trunk.handle_timeout(now);
        self.drain(now);
        for place in 0..BUSES {
            let ends = self.epochs.get(place).and_then(Epoch::ends);
            if ends.is_some_and(|at| now >= at) {
                self.close_epoch(now, place);
            }
        }
        if let Some(contactors) = self.contactors.first_mut() {
            contactors.handle_timeout(now);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.decide(now);
            self.reconcile();
            self.rest(now);
        } else {
            self.note_contactors(now);
        }
        if now >= self.next_pack {
            self.record_pack(now);
        }
        if now >= self.next_slave {
            self.record_next_slave(now);
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let contactors = self.contactors.first().and_then(Contactors::poll_timeout);
        if self.sleep.is_asleep() {
            let look = self.sleep.poll_timeout();
            return [look, contactors].into_iter().flatten().min();
        }
        let own = self.next_tick.min(self.next_pack).min(self.next_slave);
        // Clients of slaves are told of a timeout by `poll_smp`, a level check late at most.
        [
            self.trunk.poll_timeout(),
            self.epochs.iter().filter_map(Epoch::ends).min(),
            contactors,
            Some(own),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next frame for this mailbox; call whenever it is free.
    pub fn poll_can(&mut self, bus: usize, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        if self.sleep.is_asleep() {
            return None;
        }
        self.trunk.poll_can(bus, now, mailbox)
    }

    /// The next transmission of the UART.
    pub fn poll_serial(&mut self, bus: usize, now: Instant) -> Option<SerialOut> {
        if self.sleep.is_asleep() {
            return None;
        }
        self.trunk.poll_serial(bus, now)
    }

    /// Keeps a seat for a device that is known to belong there; see [`helio_bus::MasterLink::reserve`].
    pub fn reserve(&mut self, node: NodeId, uid: Uid, capabilities: Capabilities) {
        self.trunk.reserve(node, uid, capabilities);
    }

    /// Tells this start from the one before; see [`helio_bus::MasterLink::set_session`].
    pub fn set_session(&mut self, number: u8) {
        self.trunk.set_session(number);
    }

    /// Tags that the anchors range to, in turn.
    pub fn set_tags(&mut self, tags: &[TagId]) {
        self.trunk.set_tags(tags);
    }

    /// What the shell measured of the bus in the last second: busy share, worst sample-to-value time.
    pub fn set_bus_figures(&mut self, load_ppm: u32, latency_max_us: u32) {
        self.load_ppm = load_ppm;
        self.latency_max_us = latency_max_us;
    }

    /// Says what the pack has besides its slaves; call it once, at the start.
    pub fn control_pack(&mut self, control: PackControl) {
        self.power = control.power;
        self.charge_balance = control.balance;
        self.contactors.clear();
        self.contactors
            .extend(control.contactors.map(Contactors::new));
        self.sleep = Sleep::new(control.sleep);
    }

    /// What was measured at the main contactors. Where the strings' side is not measured, the sum of the cells is taken.
    pub fn handle_terminals(&mut self, now: Instant, terminals: &Terminals) {
        let sum = || self.strings.voltage_mv(&self.seats);
        let pack_mv = terminals.pack_mv.or_else(sum);
        if let Some(contactors) = self.contactors.first_mut() {
            contactors.handle_terminals(
                now,
                &Terminals {
                    pack_mv,
                    ..*terminals
                },
            );
        }
        self.note_contactors(now);
    }

    /// Which coils to feed, when that has changed. Call after every `handle_*`.
    pub fn poll_drive(&mut self) -> Option<Drive> {
        self.contactors.first_mut()?.poll_drive()
    }

    /// Whether the load may draw.
    pub fn load_allowed(&self) -> bool {
        match self.contactors.first() {
            Some(contactors) => contactors.load_allowed(),
            None => self.strings.conducting(&self.seats) > 0,
        }
    }

    /// The main contactors, if there are any.
    pub fn contactors(&self) -> Option<&Contactors> {
        self.contactors.first()
    }

    /// Whether the pack shall conduct. Protection and isolation still have the last word.
    pub fn set_gate(&mut self, now: Instant, on: bool) {
        self.gate_wanted = on;
        self.rest(now);
        self.decide(now);
        self.reconcile();
    }

    /// Sends the pack to sleep, which switches it off first, or wakes it, which leaves it off.
    pub fn set_sleep(&mut self, now: Instant, on: bool) {
        self.sleep.tell(on);
        match on {
            true => self.set_gate(now, false),
            false => self.rest(now),
        }
    }

    /// The cells' parameters as they are now, by what is known of their health.
    pub fn cell(&self) -> &CellParams {
        &self.cell
    }

    /// Whether the bus is quiet because the pack rests; see [`sleep`].
    pub fn is_asleep(&self) -> bool {
        self.sleep.is_asleep()
    }

    /// Whether cells may be balanced.
    pub fn set_balance(&mut self, on: bool) {
        self.balance_wanted = on;
    }

    /// Ends latched trips whose cause is gone, of one slave or of all and the contactors.
    pub fn clear(&mut self, now: Instant, to: Option<NodeId>) -> Result<(), Busy> {
        let order = Order::ClearLatch;
        self.trunk.command(Command { to, order })?;
        if let Some(contactors) = self.contactors.first_mut()
            && to.is_none()
        {
            contactors.clear(now);
            self.decide(now);
        }
        Ok(())
    }

    /// Installs an anchor map at once, as a shell does with the one it has stored.
    pub fn load_map(&mut self, version: u32, anchors: &[MapAnchor]) -> Result<(), map::MapError> {
        for (off, anchor) in anchors.iter().enumerate() {
            self.map.stage(version, anchors.len(), off, *anchor)?;
        }
        Ok(())
    }

    /// The records kept for clients.
    pub fn log(&self) -> &Log<LOG> {
        &self.log
    }

    /// Counters since start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The map in force.
    pub fn map(&self) -> &AnchorMap {
        &self.map
    }

    /// What is known of a seat.
    pub fn seat(&self, node: NodeId) -> Option<&Seat> {
        self.seats.get(node.index())
    }

    /// The pack in one line, without the link's voltage, which grows old.
    pub fn figures(&self) -> PackFigures {
        match self.sleep.is_asleep() {
            true => self.rested,
            false => self.live_figures(),
        }
    }

    fn live_figures(&self) -> PackFigures {
        let mut figures = PackFigures {
            load_ppm: self.load_ppm,
            latency_max_us: self.latency_max_us,
            ..self.strings.figures(&self.seats)
        };
        if let Some(contactors) = self.contactors.first() {
            figures.contactors = contactors.state();
            if !contactors.load_allowed() {
                figures.power = power::PackPower::default();
            }
        }
        figures
    }

    /// The pack in one line.
    pub fn figures_at(&self, now: Instant) -> PackFigures {
        PackFigures {
            link_mv: self.contactors.first().and_then(|c| c.link_mv(now)),
            ..self.figures()
        }
    }

    /// The master's end of its buses.
    pub fn trunk(&self) -> &Trunk<BUSES, SEATS> {
        &self.trunk
    }

    /// The master as what sits on one of its buses.
    pub fn on(&mut self, bus: usize) -> OnBus<'_, SEATS, LOG, BUSES> {
        OnBus { master: self, bus }
    }

    fn drain(&mut self, now: Instant) {
        while let Some(event) = self.trunk.poll_event() {
            match event {
                MasterEvent::Message(message) => self.handle_message(now, &message),
                MasterEvent::Joined {
                    node,
                    uid,
                    capabilities,
                    replaces,
                } => {
                    self.refused.retain(|(refused, _)| *refused != uid);
                    // Who comes back from a rest never was away.
                    let back = self.returning.is_some()
                        && self.seat(node).is_some_and(|s| s.uid == Some(uid));
                    // What is known of its cells goes with a device to its new seat.
                    let was = self
                        .seats
                        .iter()
                        .position(|s| s.uid == Some(uid) && !s.is_present());
                    if let Some(was) = was.filter(|_| node.index() < self.seats.len()) {
                        self.seats.swap(was, node.index());
                    }
                    if let Some(seat) = self.seats.get_mut(node.index()) {
                        seat.join(uid, capabilities);
                    }
                    if back {
                        continue;
                    }
                    self.counters.joins = self.counters.joins.wrapping_add(1);
                    let what = if replaces.is_some() {
                        What::Replaced
                    } else {
                        What::Joined
                    };
                    self.log.push(
                        now,
                        Record::Event(Event {
                            what,
                            node: Some(node),
                            uid: Some(uid),
                            alarm: None,
                        }),
                    );
                }
                MasterEvent::Left { node, uid, reason } => {
                    // Whoever waits for its answer is told by `poll_smp`.
                    let _ = self.left.push_back(node);
                    let babbling = reason == LeaveReason::Babbling;
                    if let Some(seat) = self.seats.get_mut(node.index()) {
                        seat.leave(babbling);
                    }
                    if self.returning.is_some() && !babbling {
                        continue;
                    }
                    self.counters.leaves = self.counters.leaves.wrapping_add(1);
                    let what = if babbling {
                        What::Quarantined
                    } else {
                        What::Left
                    };
                    self.log.push(
                        now,
                        Record::Event(Event {
                            what,
                            node: Some(node),
                            uid: Some(uid),
                            alarm: None,
                        }),
                    );
                    self.decide(now);
                    self.reconcile();
                }
                MasterEvent::Trip => {
                    self.counters.trips = self.counters.trips.wrapping_add(1);
                    self.log.push(
                        now,
                        Record::Event(Event {
                            what: What::Trip,
                            node: None,
                            uid: None,
                            alarm: None,
                        }),
                    );
                }
                MasterEvent::Rejected { node, fault } => {
                    let (lost, rejected) = match fault {
                        E2eFault::Lost(n) => (u32::from(n), 0),
                        E2eFault::Check | E2eFault::Repeated | E2eFault::Sequence => (0, 1),
                    };
                    self.counters.lost = self.counters.lost.wrapping_add(lost);
                    self.counters.rejected = self.counters.rejected.wrapping_add(rejected);
                    if let Some(seat) = self.seats.get_mut(node.index()) {
                        seat.lost = seat.lost.wrapping_add(lost);
                        seat.rejected = seat.rejected.wrapping_add(rejected);
                    }
                }
                MasterEvent::Duplicate { node, uid } => {
                    let event = Event {
                        what: What::Duplicate,
                        node: Some(node),
                        uid: Some(uid),
                        alarm: None,
                    };
                    self.log.push(now, Record::Event(event));
                }
                MasterEvent::Refused { uid, breaks, .. } => {
                    self.refused.clear();
                    self.refused.extend([(uid, breaks)]);
                    let event = Event {
                        what: What::Refused(breaks),
                        node: None,
                        uid: Some(uid),
                        alarm: None,
                    };
                    self.log.push(now, Record::Event(event));
                }
                // `poll_smp` fetches it.
                MasterEvent::Datagram(_) => {}
            }
        }
    }

    fn handle_message(&mut self, now: Instant, message: &Message) {
        if let Some(count) =
            class_of(message).and_then(|class| self.counters.accepted.get_mut(class))
        {
            *count = count.wrapping_add(1);
        }
        match *message {
            Message::Summary(node, summary) => self.handle_summary(now, node, summary),
            Message::CellChunk {
                node,
                first,
                ref cells,
                temp,
            } => {
                let seat = self.seats.get_mut(node.index());
                if let Some(place) = seat.and_then(|s| s.temps.0.get_mut(usize::from(first / 4))) {
                    *place = temp;
                }
                self.handle_cells(now, node, first, cells);
            }
            Message::TempChunk { node, first, temps } => {
                if let Some(seat) = self.seats.get_mut(node.index()) {
                    for (place, temp) in seat.temps.0.iter_mut().skip(usize::from(first)).zip(temps)
                    {
                        *place = temp;
                    }
                }
            }
            Message::State(
                node,
                State {
                    summary,
                    cells: Cells(cells),
                    temps,
                },
            ) => {
                if let Some(seat) = self.seats.get_mut(node.index()) {
                    seat.temps = temps;
                }
                self.handle_summary(now, node, summary);
                self.handle_cells(now, node, 0, &cells);
            }
            Message::RangeChunk {
                node,
                tag,
                first,
                range,
            } => self.handle_ranges(now, node, tag, first, &range),
            Message::Ranges(node, ranges) => {
                self.handle_ranges(now, node, ranges.tag, 0, &ranges.range)
            }
            Message::Alarm(node, alarm) => {
                let uid = self.seats.get(node.index()).and_then(|s| s.uid);
                let event = Event {
                    what: What::Alarm,
                    node: Some(node),
                    uid,
                    alarm: Some(alarm),
                };
                self.log.push(now, Record::Event(event));
                if alarm.severity == Severity::Trip && alarm.active {
                    if let Some(seat) = self.seats.get_mut(node.index()) {
                        seat.summary.severity = Severity::Trip;
                    }
                    self.decide(now);
                    self.reconcile();
                }
            }
            Message::Trip | Message::Sync(_) | Message::Command(_) => {}
        }
    }

    fn handle_summary(&mut self, now: Instant, node: NodeId, summary: helio_bus::Summary) {
        let Some(seat) = self.seats.get_mut(node.index()) else {
            return;
        };
        let was = core::mem::replace(&mut seat.summary, summary);
        if was.state != summary.state || was.severity != summary.severity {
            self.decide(now);
        }
    }

    fn handle_cells(
        &mut self,
        now: Instant,
        node: NodeId,
        first: u8,
        cells: &[Option<Millivolts>],
    ) {
        let params = Params {
            new: self.new_cell.unwrap_or(&self.cell),
            now: &self.cell,
        };
        let seat = self.seats.get_mut(node.index());
        if seat.is_some_and(|s| s.handle_cells(now, params, usize::from(first), cells)) {
            self.keep.note_learnt();
            self.learn_health();
        }
    }

    /// The cells of a pack age together: what is followed from now on is a cell of their mean health.
    // Not a part of what lies under it on the stack.
    #[inline(never)]
    fn learn_health(&mut self) {
        let mean = Modes::mean(self.seats.iter().filter_map(Seat::modes));
        if let Some((mean, new)) = mean.zip(self.new_cell) {
            mean.age(new, &mut self.cell);
        }
    }

    fn handle_ranges(
        &mut self,
        now: Instant,
        node: NodeId,
        tag: TagId,
        first: u8,
        ranges: &[Option<Millimetres>],
    ) {
        let in_step = self.trunk.in_step();
        let Some(bus) = self.trunk.bus_of(node) else {
            return;
        };
        let place = if in_step { 0 } else { bus };
        let over = |epoch: &Epoch| epoch.is_over_at(node, tag, first);
        if self.epochs.get(place).is_some_and(over) {
            self.close_epoch(now, place);
        }
        let cycle = self.trunk.schedule(bus).map(|s| s.cycle);
        if let Some((epoch, cycle)) = self.epochs.get_mut(place).zip(cycle) {
            epoch.add(&self.map, node, tag, first, ranges);
            epoch.end_by(now + cycle);
        }
        let seats = (1..=127).filter_map(NodeId::new).zip(&self.seats);
        let pieces = seats.filter_map(|(node, seat)| {
            let bus = self.trunk.bus_of(node)?;
            let kind = self.trunk.schedule(bus)?.kind;
            (in_step || bus == place).then(|| seat.range_pieces(kind))
        });
        let expected: usize = pieces.sum();
        if self
            .epochs
            .get(place)
            .is_some_and(|e| e.pieces() >= expected)
        {
            self.close_epoch(now, place);
        }
    }

    fn close_epoch(&mut self, now: Instant, place: usize) {
        let Some((tag, ranges)) = self.epochs.get_mut(place).and_then(Epoch::take) else {
            return;
        };
        let before = Beforehand {
            height_mm: self.tag_height_mm,
            sigma_mm: self.range_sigma_mm,
        };
        let found = self
            .locator
            .handle_epoch(now, &self.map, tag, ranges, &before);
        match found {
            Some(fix) => {
                self.counters.fixes = self.counters.fixes.wrapping_add(1);
                self.log.push(now, Record::Tag(fix));
            }
            None => self.counters.no_fixes = self.counters.no_fixes.wrapping_add(1),
        }
    }

    /// Which strings may conduct, and whether the contactors may be closed on them.
    fn decide(&mut self, now: Instant) {
        let Self {
            strings,
            seats,
            log,
            gate_wanted,
            contactors,
            cell,
            ..
        } = self;
        // The strings go first when the pack is switched on and last when it is switched off.
        let contactors = contactors.first_mut();
        let wanted = match &contactors {
            Some(c) => (*gate_wanted || !c.is_open()) && c.allows_strings(),
            None => *gate_wanted,
        };
        strings.update(now, seats, cell, wanted, |decision| {
            let (what, node) = match decision {
                StringDecision::Isolated(node) => (What::Isolated, node),
                StringDecision::Released(node) => (What::Released, node),
            };
            let uid = seats.get(node.index()).and_then(|s| s.uid);
            log.push(
                now,
                Record::Event(Event {
                    what,
                    node: Some(node),
                    uid,
                    alarm: None,
                }),
            );
        });
        let conducts = strings.conducting(seats) > 0;
        if let Some(contactors) = contactors {
            contactors.set_wanted(now, *gate_wanted);
            contactors.set_permit(now, conducts);
        }
        self.note_contactors(now);
    }

    /// Falls asleep, looks or wakes, when it is time.
    fn rest(&mut self, now: Instant) {
        let contactors_open = self.contactors.first().is_none_or(Contactors::is_open);
        let mut seats = self.seats.iter().filter(|s| s.is_present());
        let seen = Seen {
            wanted: self.gate_wanted,
            open: contactors_open && seats.clone().all(|s| !s.summary.gate_on),
            busy: seats.any(|s| s.balance_mask != 0),
        };
        let checking = self.sleep.is_checking();
        let what = match self.sleep.update(now, seen) {
            Some(Change::Asleep) => {
                self.rested = PackFigures {
                    state: PackState::Asleep,
                    load_ppm: 0,
                    ..self.live_figures()
                };
                let there = self
                    .seats
                    .iter()
                    .enumerate()
                    .filter(|(_, s)| s.is_present());
                let mask = there.fold(0u128, |mask, (k, _)| {
                    mask | 1u128.checked_shl(k as u32).unwrap_or(0)
                });
                self.missing(now);
                self.returning = Some((mask, Instant::MAX));
                (!checking).then_some(What::Asleep)
            }
            Some(change @ (Change::Awake | Change::Looking)) => {
                if let Some((_, until)) = &mut self.returning {
                    *until = (*until).min(now + RETURN);
                }
                self.next_tick = now + TICK;
                (change == Change::Awake).then_some(What::Awake)
            }
            None => None,
        };
        if let Some(what) = what {
            self.log.push(
                now,
                Record::Event(Event {
                    what,
                    node: None,
                    uid: None,
                    alarm: None,
                }),
            );
        }
        if self.returning.is_some_and(|(_, until)| now >= until) {
            self.missing(now);
        }
    }

    /// Tells clients who did not come back from a rest.
    fn missing(&mut self, now: Instant) {
        let Some((mask, _)) = self.returning.take() else {
            return;
        };
        for (k, seat) in self.seats.iter().enumerate() {
            let node = u8::try_from(k + 1).ok().and_then(NodeId::new);
            let was = mask.checked_shr(k as u32).is_some_and(|m| m & 1 != 0);
            if was && !seat.is_present() && seat.state() != pack::NodeState::Quarantined {
                self.counters.leaves = self.counters.leaves.wrapping_add(1);
                self.log.push(
                    now,
                    Record::Event(Event {
                        what: What::Left,
                        node,
                        uid: seat.uid,
                        alarm: None,
                    }),
                );
            }
        }
    }

    /// Tells clients what the contactors did.
    fn note_contactors(&mut self, now: Instant) {
        let Some(contactors) = self.contactors.first_mut() else {
            return;
        };
        while let Some(event) = contactors.poll_event() {
            self.log.push(
                now,
                Record::Event(Event {
                    what: What::Contactors(event),
                    node: None,
                    uid: None,
                    alarm: None,
                }),
            );
        }
    }

    /// Orders what is wanted and not yet reported.
    ///
    /// Whatever switches off goes out at once; of the others a few per tick, so that they do not
    /// crowd out measurements, which are less urgent on the bus.
    fn reconcile(&mut self) {
        let mut may_wait = ORDERS_PER_TICK;
        let start = self.order_cursor;
        for k in 0..SEATS {
            let place = (start + k) % SEATS.max(1);
            let node = u8::try_from(place + 1).ok().and_then(NodeId::new);
            let (Some(node), Some(seat)) = (node, self.seats.get(place)) else {
                continue;
            };
            let isolate = self.isolate_wanted.get(place).copied().unwrap_or(false);
            let gate = !isolate && self.strings.may_conduct(node);
            let Some((order, urgent)) = seat.order(isolate, gate) else {
                continue;
            };
            if !urgent {
                if may_wait == 0 {
                    continue;
                }
                may_wait -= 1;
                self.order_cursor = place + 1;
            }
            let to = Some(node);
            // The next tick orders what does not fit the queue.
            if self.trunk.command(Command { to, order }).is_err() {
                return;
            }
        }
    }

    // Records are large, and shall not lie under what else time brings on the stack.
    #[inline(never)]
    fn record_pack(&mut self, now: Instant) {
        self.next_pack = now + self.pack_period;
        let Self {
            strings,
            seats,
            balance,
            charge_balance,
            balance_wanted,
            ..
        } = self;
        strings.balance(seats, *balance_wanted, balance, charge_balance);
        let figures = self.figures_at(now);
        self.keep.note_soc(figures.soc_ppm);
        self.log.push(now, Record::Pack(figures));
    }

    /// Whether [`Self::store`] is to be called now and what it gives to be kept where it outlives a reset; said once.
    pub fn poll_store(&mut self, now: Instant) -> bool {
        self.keep.poll(now)
    }

    /// It could not be kept: [`Self::poll_store`] says so once more.
    pub fn handle_not_stored(&mut self) {
        self.keep.retry();
    }

    /// What is known of the cells, for [`Self::recall`]; the bytes written, `None` when there is no room
    /// ([`keep::size`]).
    pub fn store(&self, to: &mut [u8]) -> Option<usize> {
        keep::store(self.seats.iter().filter_map(Seat::kept), to)
    }

    /// To a started master, before anybody joins: what [`Self::store`] gave before the reset.
    pub fn recall(&mut self, stored: &[u8]) -> Result<(), RecallError> {
        let kept = keep::recall(stored)?;
        let new = self.new_cell.unwrap_or(&self.cell);
        for (seat, kept) in self.seats.iter_mut().zip(kept) {
            seat.recall(&kept, new);
        }
        self.learn_health();
        Ok(())
    }

    // As the pack's.
    #[inline(never)]
    fn record_next_slave(&mut self, now: Instant) {
        let members = self.seats.iter().filter(|s| s.is_present()).count().max(1) as u64;
        self.next_slave = now + Duration::from_nanos(self.slave_period.as_nanos() / members);
        let start = self.slave_cursor;
        let next = (0..SEATS).map(|k| (start + 1 + k) % SEATS.max(1));
        let Some(place) = next
            .into_iter()
            .find(|&p| self.seats.get(p).is_some_and(Seat::is_present))
        else {
            return;
        };
        self.slave_cursor = place;
        if let Some(seat) = self.seats.get_mut(place) {
            seat.update_power(&self.cell, &self.power);
        }
        let node = u8::try_from(place + 1).ok().and_then(NodeId::new);
        let (Some(node), Some(seat)) = (node, self.seats.get(place)) else {
            return;
        };
        let Some(uid) = seat.uid else { return };
        let figures = SlaveFigures {
            node,
            uid,
            state: seat.state(),
            severity: seat.summary.severity,
            gate_on: seat.summary.gate_on,
            balancing: seat.summary.balancing,
            current: seat.summary.current,
            cell_count: seat.capabilities.cells,
            cells: seat.cells.0,
            soc_e4: core::array::from_fn(|c| {
                seat.soc(c).map_or(u16::MAX, |(soc, _)| (soc * 1e4) as u16)
            }),
            temp_count: seat.capabilities.temps,
            temps: seat.temps.0,
            health: seat.health().map(HealthFigures::from),
        };
        self.log.push(now, Record::Slave(figures));
    }

    /// Answers one SMP datagram into `answer`, which should hold [`MAX_DATAGRAM`] octets; 0 when there
    /// is nothing to say, or nothing yet: what a slave has to answer comes from [`Self::poll_smp`]
    /// under the same `ticket`.
    // Its answers are large, and nothing that happens on the bus lies under them on the stack.
    #[inline(never)]
    pub fn handle_smp(
        &mut self,
        now: Instant,
        ticket: u32,
        datagram: &[u8],
        answer: &mut [u8],
    ) -> usize {
        let request = match helio_smp::accept(datagram, answer) {
            Ok(request) => request,
            Err(refusal) => return refusal,
        };
        let c = self.counters;
        let master = [
            ("rejected", c.rejected),
            ("lost", c.lost),
            ("trips", c.trips),
            ("joins", c.joins),
            ("leaves", c.leaves),
            ("fixes", c.fixes),
            ("no_fixes", c.no_fixes),
        ]
        .map(|(name, n)| (name, u64::from(n)));
        let accepted: [(&str, u64); CLASSES.len()] =
            core::array::from_fn(|i| (CLASSES[i], c.accepted.get(i).map_or(0, |&n| u64::from(n))));
        let stats = [
            Stat {
                name: "master",
                fields: &master,
            },
            Stat {
                name: "accepted",
                fields: &accepted,
            },
        ];
        if let Some(len) = standard::handle(&request, answer, MAX_DATAGRAM as u16, &stats) {
            return len;
        }
        if request.header.group != heliograph::GROUP {
            let loaded = standard::reset(&request) == Some(false) && !self.may_reset();
            let rc = if loaded {
                Rc::BadState
            } else {
                Rc::NotSupported
            };
            return request.reply(answer).rc(rc);
        }
        match self.own_group(now, ticket, &request, answer) {
            Ok(len) => len,
            Err(fault) => request.reply(answer).fault(fault),
        }
    }

    /// Whether a datagram is for the device that the master runs on (images, settings, reset), and
    /// nothing speaks against passing it on. A reset drops the contactors' load: while they are
    /// closed it must be forced, else [`Self::handle_smp`] refuses it.
    pub fn is_for_device(&self, datagram: &[u8]) -> bool {
        helio_smp::accept(datagram, &mut []).is_ok_and(|request| {
            standard::is_for_device(&request.header)
                && (standard::reset(&request) != Some(false) || self.may_reset())
        })
    }

    /// An answer that became due since the last call. Call after `handle_*` until `None`.
    pub fn poll_smp(&mut self, now: Instant, answer: &mut [u8]) -> Option<Due> {
        while let Some((node, datagram)) = self.trunk.datagram() {
            if let Some(due) = self.tunnel.handle_answer(node, datagram, answer) {
                return Some(due);
            }
        }
        while let Some(&node) = self.left.front() {
            if let Some(due) = self.tunnel.handle_left(node, answer) {
                return Some(due);
            }
            self.left.pop_front();
        }
        self.tunnel.handle_timeout(now, answer)
    }

    /// Whether an answer under this ticket may still come from [`Self::poll_smp`].
    pub fn is_waiting(&self, ticket: u32) -> bool {
        self.tunnel.is_waiting(ticket)
    }

    /// Whether nothing is lost when everything the master drives goes off.
    fn may_reset(&self) -> bool {
        self.contactors.first().is_none_or(|c| {
            !matches!(
                c.state(),
                ContactorState::Precharging | ContactorState::Closed | ContactorState::Opening
            )
        })
    }

    /// Passes a request on to a slave.
    fn ask_slave(
        &mut self,
        now: Instant,
        ticket: u32,
        request: &Request<'_>,
    ) -> Result<usize, Fault> {
        if self.sleep.is_asleep() {
            return Err(Fault::NotNow);
        }
        let forward = self.tunnel.handle_request(now, ticket, request)?;
        let node = forward.node;
        if self.trunk.member(node).is_none() {
            self.tunnel.withdraw(node);
            return Err(Fault::NoSuchNode);
        }
        if self.trunk.send_datagram(node, forward.datagram).is_err() {
            self.tunnel.withdraw(node);
            return Err(Fault::Busy);
        }
        Ok(0)
    }

    fn own_group(
        &mut self,
        now: Instant,
        ticket: u32,
        request: &Request<'_>,
        answer: &mut [u8],
    ) -> Result<usize, Fault> {
        let number = |name, default| northbound::number(request, name, default);
        Ok(match (request.header.id, request.header.op) {
            (heliograph::STATUS, Op::Read) => {
                self.status(now, number("off", 0)?, request.reply(answer))
            }
            (heliograph::TUNNEL, Op::Write) => self.ask_slave(now, ticket, request)?,
            (heliograph::TELEMETRY, Op::Read) => {
                let (since, max) = (number("since", 0)?, number("max", u64::MAX)?);
                request
                    .reply(answer)
                    .body(|e| northbound::telemetry(e, &self.log, since, max))
            }
            (heliograph::MAP, Op::Read) => {
                let off = usize::try_from(number("off", 0)?).map_err(|_| Fault::OutOfRange)?;
                let staged = northbound::switch(request, "staged")?;
                request
                    .reply(answer)
                    .body(|e| northbound::map(e, &self.map, off, staged))
            }
            (heliograph::MAP, Op::Write) => {
                let next = self.write_map(now, &MapPiece::read(request.body)?)?;
                request
                    .reply(answer)
                    .body(|e| e.map(1)?.str("off")?.u64(next as u64)?.ok())
            }
            (heliograph::COMMAND, Op::Write) => {
                self.carry_out(now, &northbound::Order::read(request)?)?;
                request.reply(answer).empty()
            }
            _ => request.reply(answer).rc(Rc::NotSupported),
        })
    }

    fn status(&self, now: Instant, off: u64, reply: Reply<'_>) -> usize {
        let figures = self.figures_at(now);
        let bus = self.bus_names();
        let head = StatusHead {
            name: &self.name,
            uptime_ms: now.as_millis(),
            seq_first: self.log.first(),
            seq_next: self.log.next(),
            bus: &bus,
            pack: &figures,
            refused: self.refused.first().copied(),
        };
        let expected = usize::from(self.strings.topology().expected);
        let seats = (1..=127).filter_map(NodeId::new).zip(&self.seats);
        let shown = seats.filter(|(n, s)| n.index() < expected || s.uid.is_some());
        let status = shown.map(|(node, s)| SeatStatus {
            node,
            uid: s.uid.map_or(0, |u| u.get()),
            state: s.state(),
            severity: s.summary.severity,
            parts: [
                s.capabilities.cells,
                s.capabilities.temps,
                s.capabilities.anchors,
            ],
            gate_on: s.summary.gate_on,
        });
        reply.body(|e| northbound::status(e, &head, off, status))
    }

    /// The kinds of its buses in order, `can-1m+rs485-4m`.
    fn bus_names(&self) -> heapless::String<BUS_NAMES> {
        let mut names = heapless::String::new();
        for bus in 0..self.trunk.buses() {
            let name = self.trunk.schedule(bus).map_or("", |s| s.kind.name());
            let between = if bus > 0 { "+" } else { "" };
            // There is room for as many as there are.
            let _ = names.push_str(between).and_then(|()| names.push_str(name));
        }
        names
    }

    fn write_map(&mut self, now: Instant, piece: &MapPiece<'_>) -> Result<usize, Fault> {
        let (mut off, mut complete) = (piece.off, false);
        piece.each(|anchor| {
            let staged = if piece.hold {
                self.map
                    .hold(piece.version, piece.total, off, anchor)
                    .map(|_| false)
            } else {
                self.map.stage(piece.version, piece.total, off, anchor)
            };
            complete = staged.map_err(|_| Fault::OutOfRange)?;
            off += 1;
            Ok(())
        })?;
        if complete {
            self.note_map(now);
        }
        Ok(off)
    }

    /// Another map is in force: tracks of the old one are worth nothing.
    fn note_map(&mut self, now: Instant) {
        self.locator.clear();
        self.log.push(
            now,
            Record::Event(Event {
                what: What::Map,
                node: None,
                uid: None,
                alarm: None,
            }),
        );
    }

    fn commit_map(&mut self, now: Instant, crc: u64) -> Result<(), Fault> {
        let crc = u32::try_from(crc).map_err(|_| Fault::OutOfRange)?;
        self.map.commit(crc).map_err(|e| match e {
            map::MapError::NotHeld => Fault::NotNow,
            _ => Fault::OutOfRange,
        })?;
        self.note_map(now);
        Ok(())
    }

    fn carry_out(&mut self, now: Instant, order: &northbound::Order<'_>) -> Result<(), Fault> {
        let on = order.on.ok_or(Fault::Malformed);
        let present = |node: NodeId| match self.seats.get(node.index()) {
            Some(seat) if seat.is_present() => Ok(node),
            _ => Err(Fault::NoSuchNode),
        };
        let node = order.node.ok_or(Fault::Malformed).and_then(present);
        let busy = |_: Busy| Fault::NotNow;
        match order.cmd {
            "gate" => self.set_gate(now, on?),
            "map" => self.commit_map(now, order.value.ok_or(Fault::Malformed)?)?,
            "balance" => self.set_balance(on?),
            "sleep" => self.set_sleep(now, on?),
            "isolate" => {
                if let Some(wanted) = self.isolate_wanted.get_mut(node?.index()) {
                    *wanted = on?;
                }
                self.reconcile();
            }
            "clear" => {
                let to = order.node.map(present).transpose()?;
                self.clear(now, to).map_err(busy)?;
            }
            "quarantine" => {
                let ms = order
                    .value
                    .filter(|ms| (1..=65_000).contains(ms))
                    .ok_or(Fault::OutOfRange)?;
                self.trunk.quarantine(now, node?, Duration::from_millis(ms));
                self.drain(now);
            }
            "light" => {
                let mask = order
                    .value
                    .and_then(|v| u16::try_from(v).ok())
                    .ok_or(Fault::OutOfRange)?;
                self.trunk
                    .command(Command {
                        to: Some(node?),
                        order: Order::Light(mask),
                    })
                    .map_err(busy)?;
            }
            _ => return Err(Fault::Unknown),
        }
        let event = Event {
            what: What::Command,
            node: order.node,
            uid: None,
            alarm: None,
        };
        self.log.push(now, Record::Event(event));
        Ok(())
    }
}

/// A master as what sits on one of its buses.
pub struct OnBus<'a, const SEATS: usize, const LOG: usize, const BUSES: usize> {
    master: &'a mut Master<SEATS, LOG, BUSES>,
    bus: usize,
}

impl<const SEATS: usize, const LOG: usize, const BUSES: usize> Station
    for OnBus<'_, SEATS, LOG, BUSES>
{
    fn handle_serial(&mut self, now: Instant, bytes: &[u8]) {
        self.master.handle_serial(self.bus, now, bytes);
    }

    fn handle_break(&mut self, now: Instant) {
        self.master.handle_break(self.bus, now);
    }

    fn poll_serial(&mut self, now: Instant) -> Option<SerialOut> {
        self.master.poll_serial(self.bus, now)
    }

    /// The master hears everything.
    fn accepts(&self, _id: CanId) -> bool {
        true
    }

    fn handle_can(&mut self, now: Instant, frame: &CanFrame) {
        self.master.handle_can(self.bus, now, frame);
    }

    fn handle_sent(&mut self, now: Instant, mailbox: Mailbox) {
        self.master.handle_sent(self.bus, now, mailbox);
    }

    fn poll_can(&mut self, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        self.master.poll_can(self.bus, now, mailbox)
    }
}
