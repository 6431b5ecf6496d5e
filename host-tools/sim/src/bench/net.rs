//! Links on a bus in virtual time: one master, any number of slaves, each with a crystal of its own
//! and a place on the cable. The cores above the links are left out; what they would ask for is
//! asked by whoever measures.
//!
//! ```text
//!            +---------- next of bus, links, deliveries on their way ----------+
//!            v                                                                 |
//!  now := earliest --> bus events --(5 ns/m)--> links --> news into `log`, frames onto the bus
//! ```

use std::collections::BinaryHeap;

use helio_bus::{
    CanFrame, Capabilities, Mailbox, MasterEvent, MasterLink, Ranges, Schedule, SlaveEvent,
    SlaveLink, State, slave_accepts,
};
use helio_units::{DeciCelsius, Duration, Instant, Millimetres, Millivolts, NodeId, TagId, Uid};

use crate::media::Port;
use crate::media::can::{CanBus, CanEvent, CanTiming};
use crate::media::rs485::{Level, Line, LineEvent, LineTiming};
use crate::plant::{Clock, Noise};

/// Propagation along the cable, per metre.
const NS_PER_METRE: f64 = 5.0;

/// The medium of a [`Net`].
pub enum Medium {
    /// CAN or CAN FD.
    Can(Box<CanBus>),
    /// RS485.
    Serial(Box<Line>),
}

/// One slave's link and what surrounds it.
pub struct Unit {
    /// The link; its time is the unit's own, see [`Net::local`].
    pub link: SlaveLink,
    /// Device.
    pub uid: Uid,
    /// Powered.
    pub alive: bool,
    /// Since then, world's time.
    pub booted: Instant,
    capabilities: Capabilities,
    port: Port,
    clock: Clock,
    place_m: f64,
    /// Counters of earlier lives.
    overwritten: u64,
    /// Asks for more than its share: done anew whenever it runs.
    babble: bool,
}

impl Unit {
    fn local(&self, now: Instant) -> Instant {
        self.clock.local(Instant::ZERO + now.since(self.booted))
    }
    fn global(&self, local: Instant) -> Instant {
        self.booted + self.clock.global(local).since(Instant::ZERO)
    }
    /// Cyclic messages that were not sent in time, in all lives.
    pub fn overwritten(&self) -> u64 {
        self.overwritten + self.link.stats().overwritten
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum News {
    /// The master's link said so; of a message: when it was measured.
    Master(MasterEvent, Option<Instant>),
    /// A slave's link said so.
    Slave(usize, SlaveEvent),
}

enum Cargo {
    Can(Box<CanFrame>),
    Sent(Mailbox),
    Bytes(Vec<u8>),
    Break,
}

struct Delivery {
    at: Instant,
    number: u64,
    /// `None`: the master.
    to: Option<usize>,
    meta: u64,
    cargo: Cargo,
}

impl PartialEq for Delivery {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Delivery {}
impl PartialOrd for Delivery {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delivery {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// How a [`Net`] is built.
#[derive(Clone, Debug)]
pub struct NetPlan {
    /// Timing of the bus.
    pub schedule: Schedule,
    /// What each slave can do.
    pub slaves: Vec<Capabilities>,
    /// Seed of ids, crystals and disturbances.
    pub seed: u64,
    /// Crystals of the slaves differ from the master's by up to this; the first two by exactly
    /// this, one each way.
    pub crystal_ppm: f64,
    /// Slaves sit evenly along so much cable, the master at its start.
    pub cable_m: f64,
    /// Slaves boot at random within this span after the master.
    pub boot: Duration,
    /// A tag is ranged in every cycle.
    pub ranging: bool,
}

/// One bus.
pub struct Net {
    /// World's time; the clock of the first master.
    pub now: Instant,
    /// Since when the master runs: its clock starts there.
    master_booted: Instant,
    /// Number of its first cycle.
    session: u8,
    /// Master's link.
    pub master: Box<MasterLink>,
    /// Whether it is powered.
    pub master_alive: bool,
    /// Slaves.
    pub units: Vec<Unit>,
    /// News since [`Net::take_log`].
    log: Vec<(Instant, News)>,
    /// Samples are told, too: SYNC and ranging at the slaves. Many.
    pub log_samples: bool,
    medium: Medium,
    schedule: Schedule,
    master_port: Port,
    master_due: Instant,
    due: Vec<Instant>,
    noise: Noise,
    ranging: bool,
    delivering: BinaryHeap<Delivery>,
    number: u64,
    can_inbox: Vec<CanEvent>,
    line_inbox: Vec<LineEvent>,
    /// Frames and runs of characters that were delivered.
    pub frames: u64,
    /// Share of deliveries to one receiver that it misses.
    pub loss: f64,
    next_uid: u64,
}

impl Net {
    /// Nobody is switched on before the first [`Self::run_until`].
    pub fn new(plan: &NetPlan) -> Self {
        let kind = plan.schedule.kind;
        let mut noise = Noise::new(plan.seed, 0);
        let mut medium = match (CanTiming::of(kind), LineTiming::of(kind)) {
            (Some(timing), _) => Medium::Can(Box::new(CanBus::new(timing, noise.bits()))),
            (_, Some(timing)) => Medium::Serial(Box::new(Line::new(timing, noise.bits()))),
            (None, None) => unreachable!("every kind of bus is one or the other"),
        };
        let master_port = medium.attach();
        let count = plan.slaves.len();
        let units: Vec<Unit> = plan
            .slaves
            .iter()
            .enumerate()
            .map(|(i, capabilities)| {
                let ppm = match i {
                    0 => plan.crystal_ppm,
                    1 => -plan.crystal_ppm,
                    _ => (2.0 * noise.uniform() - 1.0) * plan.crystal_ppm,
                };
                let uid = fresh_uid(&mut noise);
                let after = plan.boot.as_nanos() as f64 * noise.uniform();
                let port = medium.attach();
                medium.kill(Instant::ZERO, port);
                Unit {
                    link: SlaveLink::new(plan.schedule, uid, *capabilities),
                    uid,
                    alive: false,
                    booted: Instant::from_nanos(after as u64),
                    capabilities: *capabilities,
                    port,
                    clock: Clock::new(ppm),
                    place_m: plan.cable_m * (i + 1) as f64 / count.max(1) as f64,
                    overwritten: 0,
                    babble: false,
                }
            })
            .collect();
        Self {
            now: Instant::ZERO,
            master_booted: Instant::ZERO,
            session: 0,
            master: Self::new_master(&plan.schedule, plan.ranging),
            master_alive: true,
            due: units.iter().map(|u| u.booted).collect(),
            units,
            log: Vec::new(),
            log_samples: false,
            medium,
            schedule: plan.schedule,
            master_port,
            master_due: Instant::ZERO,
            noise,
            ranging: plan.ranging,
            delivering: BinaryHeap::new(),
            number: 0,
            can_inbox: Vec::new(),
            line_inbox: Vec::new(),
            frames: 0,
            loss: 0.0,
            next_uid: 0,
        }
    }

    fn new_master(schedule: &Schedule, ranging: bool) -> Box<MasterLink> {
        let mut master = Box::new(MasterLink::new(*schedule));
        if ranging {
            master.set_tags(&[TagId(1)]);
        }
        master
    }

    /// A slave's own time.
    pub fn local(&self, i: usize) -> Instant {
        self.units[i].local(self.now)
    }

    /// News since the last call.
    pub fn take_log(&mut self) -> Vec<(Instant, News)> {
        std::mem::take(&mut self.log)
    }

    /// A random number in `0.0..1.0` from the net's seed.
    pub fn uniform(&mut self) -> f64 {
        self.noise.uniform()
    }

    /// The medium, to disturb it.
    pub fn medium_mut(&mut self) -> &mut Medium {
        &mut self.medium
    }

    /// Slaves that are on and have a seat.
    pub fn members(&self) -> usize {
        let seated = |u: &&Unit| u.alive && u.link.node().is_some();
        self.units.iter().filter(seated).count()
    }

    /// Whether master and slaves agree: who is on is a member under its own id, and nobody else.
    pub fn agrees(&self) -> bool {
        let known = (1..=127).filter_map(NodeId::new);
        let known = known.filter(|n| self.master.member(*n).is_some()).count();
        let on = self.units.iter().filter(|u| u.alive);
        let right = |u: &&Unit| {
            let seat = u.link.node().and_then(|n| self.master.member(n));
            seat.is_some_and(|(uid, _)| uid == u.uid)
        };
        on.clone().count() == known && on.filter(right).count() == known
    }

    /// Busy time of the bus so far.
    pub fn busy(&self) -> Duration {
        match &self.medium {
            Medium::Can(can) => can.stats(self.now).busy,
            Medium::Serial(line) => line.busy(self.now),
        }
    }

    /// Lets a slave's core ask for this, at its own time.
    pub fn ask<T>(&mut self, i: usize, what: impl FnOnce(&mut SlaveLink, Instant) -> T) -> T {
        let local = self.units[i].local(self.now);
        let out = what(&mut self.units[i].link, local);
        self.drain(i);
        out
    }

    /// Lets the master's core ask for this.
    pub fn ask_master<T>(&mut self, what: impl FnOnce(&mut MasterLink, Instant) -> T) -> T {
        let local = self.master_local();
        let out = what(&mut self.master, local);
        self.drain_master(None);
        out
    }

    /// A slave's core runs wild.
    pub fn babble(&mut self, i: usize, on: bool) {
        self.units[i].link.babble(on);
        self.units[i].babble = on;
        self.drain(i);
    }

    /// From now on disturbances hit this share of frames (CAN) or characters (RS485).
    pub fn disturb(&mut self, share: f64) {
        match &mut self.medium {
            Medium::Can(can) => can.set_corruption(share),
            Medium::Serial(line) => line.set_corruption(share),
        }
    }

    /// A slave's driver does not let go of an RS485 line; on CAN its receiver misses everything.
    pub fn stick(&mut self, i: usize, level: Option<Level>) {
        let port = self.units[i].port;
        match &mut self.medium {
            Medium::Can(can) => {
                can.set_receive_loss(port, if level.is_some() { 1.0 } else { 0.0 });
            }
            Medium::Serial(line) => line.set_stuck(self.now, port, level),
        }
    }

    /// Cuts a slave's supply.
    pub fn power_off(&mut self, i: usize) {
        let unit = &mut self.units[i];
        unit.overwritten += unit.link.stats().overwritten;
        unit.alive = false;
        self.due[i] = Instant::MAX;
        self.medium.kill(self.now, unit.port);
    }

    /// Switches a slave on; it boots with empty memory. `uid`: another device in its place.
    pub fn power_on(&mut self, i: usize, uid: Option<Uid>) {
        let unit = &mut self.units[i];
        unit.uid = uid.unwrap_or(unit.uid);
        unit.link = SlaveLink::new(self.schedule, unit.uid, unit.capabilities);
        unit.booted = self.now;
        unit.alive = true;
        unit.babble = false;
        self.due[i] = self.now;
        self.medium.revive(self.now, unit.port);
    }

    /// From now on the slaves of another net, with all that they believe, are on this bus behind the
    /// others; their master is not.
    pub fn adopt(&mut self, other: Self) {
        self.run_until(self.now.max(other.now));
        let mut other = other;
        other.run_until(self.now);
        for mut unit in other.units {
            unit.port = self.medium.attach();
            self.medium.kill(self.now, unit.port);
            if unit.alive {
                self.medium.revive(self.now, unit.port);
            }
            self.due
                .push(if unit.alive { self.now } else { Instant::MAX });
            self.units.push(unit);
        }
    }

    /// Cuts the master's supply.
    pub fn master_off(&mut self) {
        self.master_alive = false;
        self.master_due = Instant::MAX;
        self.medium.kill(self.now, self.master_port);
    }

    /// Another master without memory takes over.
    pub fn master_on(&mut self) {
        self.master = Self::new_master(&self.schedule, self.ranging);
        self.master_booted = self.now;
        self.session = self.session.wrapping_add(91);
        self.master.set_session(self.session);
        self.master_alive = true;
        self.master_due = self.now;
        self.medium.revive(self.now, self.master_port);
    }

    /// An id that no device has yet.
    pub fn fresh_uid(&mut self) -> Uid {
        self.next_uid += 1;
        fresh_uid(&mut self.noise)
    }

    /// Lets everything happen that happens until then.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            let mut now = self.master_due;
            now = now.min(self.medium.poll_timeout().unwrap_or(Instant::MAX));
            now = now.min(self.delivering.peek().map_or(Instant::MAX, |d| d.at));
            now = self.due.iter().fold(now, |now, &due| now.min(due));
            if now > end {
                self.now = self.now.max(end);
                return;
            }
            self.now = self.now.max(now);
            self.step();
        }
    }

    /// The same, for so long.
    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    fn step(&mut self) {
        let now = self.now;
        self.listen();
        while self.delivering.peek().is_some_and(|d| d.at <= now) {
            if let Some(delivery) = self.delivering.pop() {
                self.deliver(delivery);
            }
        }
        if now >= self.master_due {
            let local = self.master_local();
            self.master.handle_timeout(local);
            self.drain_master(None);
        }
        for i in 0..self.units.len() {
            if self.due[i] <= now {
                if !self.units[i].alive {
                    self.units[i].alive = true;
                    self.medium.revive(now, self.units[i].port);
                }
                let local = self.units[i].local(now);
                self.units[i].link.handle_timeout(local);
                self.drain(i);
            }
        }
    }

    /// What the bus says goes on its way to those who hear it.
    fn listen(&mut self) {
        let now = self.now;
        match &mut self.medium {
            Medium::Can(can) => {
                let mut inbox = std::mem::take(&mut self.can_inbox);
                let mut ready = Vec::new();
                can.handle_timeout(now, &mut |event| inbox.push(event));
                for event in inbox.drain(..) {
                    match event {
                        CanEvent::Delivered {
                            frame,
                            meta,
                            from,
                            receivers,
                            ..
                        } => {
                            self.frames += 1;
                            for port in receivers {
                                let to = port.index().checked_sub(1);
                                let node = to.and_then(|i| self.units[i].link.node());
                                if to.is_none() || slave_accepts(frame.id, node) {
                                    let cargo = Cargo::Can(Box::new(frame));
                                    self.carry(from, to, meta, cargo);
                                }
                            }
                        }
                        CanEvent::Sent { port, mailbox, .. } => {
                            let to = port.index().checked_sub(1);
                            self.carry(port, to, 0, Cargo::Sent(mailbox));
                        }
                        CanEvent::State { port, .. } => ready.push(port),
                        _ => {}
                    }
                }
                self.can_inbox = inbox;
                // Who is on the bus at last: its mailboxes take frames from now on.
                for port in ready {
                    match port.index().checked_sub(1) {
                        Some(i) => self.drain(i),
                        None => self.drain_master(None),
                    }
                }
            }
            Medium::Serial(line) => {
                let mut inbox = std::mem::take(&mut self.line_inbox);
                line.handle_timeout(now, &mut |event| inbox.push(event));
                for event in inbox.drain(..) {
                    match event {
                        LineEvent::Bytes {
                            from,
                            meta,
                            bytes,
                            receivers,
                            ..
                        } => {
                            self.frames += 1;
                            for port in receivers {
                                let to = port.index().checked_sub(1);
                                self.carry(from, to, meta, Cargo::Bytes(bytes.clone()));
                            }
                        }
                        LineEvent::Break {
                            senders, receivers, ..
                        } => {
                            let from = senders.first().unwrap_or(self.master_port);
                            for port in receivers {
                                let to = port.index().checked_sub(1);
                                self.carry(from, to, 0, Cargo::Break);
                            }
                        }
                        LineEvent::Collision { .. } => {}
                    }
                }
                self.line_inbox = inbox;
            }
        }
    }

    fn carry(&mut self, from: Port, to: Option<usize>, meta: u64, cargo: Cargo) {
        if self.loss > 0.0 && !matches!(cargo, Cargo::Sent(_)) && self.noise.uniform() < self.loss {
            return;
        }
        let place = |i: Option<usize>| i.map_or(0.0, |i| self.units[i].place_m);
        let far = (place(from.index().checked_sub(1)) - place(to)).abs();
        let at = self.now + Duration::from_nanos((far * NS_PER_METRE) as u64);
        self.number += 1;
        let number = self.number;
        let delivery = Delivery {
            at,
            number,
            to,
            meta,
            cargo,
        };
        if at <= self.now {
            self.deliver(delivery);
        } else {
            self.delivering.push(delivery);
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        let Some(i) = delivery.to else {
            if self.master_alive {
                let now = self.master_local();
                match delivery.cargo {
                    Cargo::Can(frame) => self.master.handle_can(now, &frame),
                    Cargo::Sent(mailbox) => self.master.handle_sent(now, mailbox),
                    Cargo::Bytes(bytes) => self.master.handle_serial(now, &bytes),
                    Cargo::Break => self.master.handle_break(now),
                }
                let sampled = Instant::from_nanos(delivery.meta);
                self.drain_master((delivery.meta > 0).then_some(sampled));
            }
            return;
        };
        if !self.units[i].alive {
            return;
        }
        let local = self.units[i].local(self.now);
        let link = &mut self.units[i].link;
        match delivery.cargo {
            Cargo::Can(frame) => link.handle_can(local, &frame),
            Cargo::Sent(mailbox) => link.handle_sent(local, mailbox),
            Cargo::Bytes(bytes) => link.handle_serial(local, &bytes),
            Cargo::Break => link.handle_break(local),
        }
        self.drain(i);
    }

    fn master_local(&self) -> Instant {
        Instant::ZERO + self.now.since(self.master_booted)
    }

    fn drain_master(&mut self, sampled: Option<Instant>) {
        let now = self.now;
        let local = self.master_local();
        let booted = self.master_booted.since(Instant::ZERO);
        if !self.master_alive {
            return;
        }
        while let Some(event) = self.master.poll_event() {
            self.log.push((now, News::Master(event, sampled)));
        }
        match &mut self.medium {
            Medium::Can(can) => {
                for mailbox in Mailbox::ALL {
                    while can.is_free(self.master_port, mailbox)
                        && let Some(out) = self.master.poll_can(local, mailbox)
                    {
                        let _ = can.submit(now, self.master_port, mailbox, &out.frame, 0);
                    }
                }
            }
            Medium::Serial(line) => {
                while let Some(out) = self.master.poll_serial(local) {
                    let at = (out.at + booted).max(now);
                    let _ = line.transmit(self.master_port, at, &out.what, 0);
                }
            }
        }
        let due = self.master.poll_timeout();
        self.master_due = due.map_or(Instant::MAX, |due| due + booted);
    }

    fn drain(&mut self, i: usize) {
        let now = self.now;
        let unit = &mut self.units[i];
        if !unit.alive {
            return;
        }
        let local = unit.local(now);
        while let Some(event) = unit.link.poll_event() {
            let keep = match &event {
                SlaveEvent::Sync { .. } => {
                    unit.link.set_state(local, &state_of(i, &unit.capabilities));
                    self.log_samples
                }
                SlaveEvent::RangeNow(tag) => {
                    let mut range = [None; 16];
                    let anchors = usize::from(unit.capabilities.anchors);
                    for (n, range) in range.iter_mut().take(anchors).enumerate() {
                        *range = Some(Millimetres(1_000 + n as i32));
                    }
                    unit.link.set_ranges(local, &Ranges { tag: *tag, range });
                    self.log_samples
                }
                _ => true,
            };
            if keep {
                self.log.push((now, News::Slave(i, event)));
            }
        }
        let stamp =
            |unit: &Unit, at: Option<Instant>| at.map_or(0, |at| unit.global(at).as_nanos());
        match &mut self.medium {
            Medium::Can(can) => {
                for mailbox in Mailbox::ALL {
                    while can.is_free(unit.port, mailbox)
                        && let Some(out) = unit.link.poll_can(local, mailbox)
                    {
                        let meta = stamp(unit, out.sampled_at);
                        let _ = can.submit(now, unit.port, mailbox, &out.frame, meta);
                    }
                }
            }
            Medium::Serial(line) => {
                while let Some(out) = unit.link.poll_serial(local) {
                    let meta = stamp(unit, out.sampled_at);
                    let at = unit.global(out.at).max(now);
                    let _ = line.transmit(unit.port, at, &out.what, meta);
                }
            }
        }
        self.due[i] = match unit.link.poll_timeout() {
            Some(local) => unit.global(local),
            None => Instant::MAX,
        };
    }
}

impl Medium {
    fn attach(&mut self) -> Port {
        let port = match self {
            Self::Can(can) => can.attach(),
            Self::Serial(line) => line.attach(),
        };
        port.expect("a net has at most 127 slaves and one master")
    }
    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Can(can) => can.poll_timeout(),
            Self::Serial(line) => line.poll_timeout(),
        }
    }
    fn kill(&mut self, now: Instant, port: Port) {
        match self {
            Self::Can(can) => can.kill(now, port),
            Self::Serial(line) => line.kill(now, port),
        }
    }
    fn revive(&mut self, now: Instant, port: Port) {
        match self {
            Self::Can(can) => can.revive(now, port),
            Self::Serial(line) => line.revive(port),
        }
    }
}

fn fresh_uid(noise: &mut Noise) -> Uid {
    loop {
        if let Some(uid) = Uid::new(noise.bits()) {
            return uid;
        }
    }
}

/// Something for every part of a slave to measure.
fn state_of(i: usize, capabilities: &Capabilities) -> State {
    let mut state = State::default();
    let cells = usize::from(capabilities.cells);
    for (n, cell) in state.cells.0.iter_mut().take(cells).enumerate() {
        *cell = Some(Millivolts(3_600 + i as u16 + n as u16));
    }
    for t in state.temps.0.iter_mut().take(capabilities.temps.into()) {
        *t = Some(DeciCelsius(230 + i as i16 % 100));
    }
    state.summary.min = state.cells.0[0];
    state.summary.max = state.cells.0[cells.saturating_sub(1)];
    state
}
