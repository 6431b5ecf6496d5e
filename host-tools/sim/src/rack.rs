//! One rack in virtual time: a master, its slaves, the buses between them and what their sensors feel.
//!
//! ```text
//!           +------------------ next of all poll_timeout() ------------------+
//!           v                                                                |
//!  now := earliest --> faults --> bus events --> cores whose time has come --+
//!                                     |                 |
//!                                     v                 v
//!                              handle_can/serial   outputs: sample, range, gate, frames --> bus
//! ```
//!
//! Nothing happens between two such moments, so time jumps. Every slave has a crystal of its own
//! and knows no other time; the buses and the master keep the world's.

use std::ops::Range;

use helio_battery::CellParams;
use helio_battery::power::PowerLimits;
use helio_battery::protection::{Kind, Limits, Severity};
use helio_bus::{BusKind, Capabilities, Mailbox, Ranges, Schedule, slave_accepts};
use helio_master::contactor::{ContactorConfig, ContactorEvent, Drive};
use helio_master::map::MapAnchor;
use helio_master::pack::Topology;
use helio_master::sleep::SleepConfig;
use helio_master::telemetry::{Event, Record, What};
use helio_master::{CLASSES, MAX_BUSES, Master, MasterConfig, PackControl, keep, northbound};
use helio_slave::{Slave, SlaveConfig, SlaveOutput, SlaveSleep};
use helio_units::{DeciCelsius, Duration, Instant, Millivolts, NodeId, TagId, Uid};

use crate::media::Port;
use crate::media::can::{CanBus, CanEvent, CanTiming};
use crate::media::rs485::{Line, LineEvent, LineTiming};
use crate::plant::{Clock, Group, Load, Noise, Room, distance, seconds};
use crate::report::{
    Affected, ContactorFigures, Estimates, Happening, Histogram, Latency, Loss, RackReport, Trips,
    quantile,
};
use crate::scenario::FaultKind;
use crate::terminals::{Link, Part, Parts};

/// Seats of a simulated master.
pub const SEATS: usize = 127;
/// Records that a simulated master keeps: about 20 s of a full rack.
pub const LOG: usize = 4096;

/// The simulated master.
pub type SimMaster = Master<SEATS, LOG, MAX_BUSES>;

/// What to build.
pub struct RackPlan {
    /// From 1.
    pub number: u32,
    /// Its buses; slaves sit on them in order.
    pub buses: Vec<BusPlan>,
    /// Seed of everything random in this rack.
    pub seed: u64,
    /// Strings in parallel.
    pub strings: u8,
    /// Cell as the master believes it to be.
    pub cell: &'static CellParams,
    /// Protection of every slave.
    pub limits: Limits,
    /// Main contactors, if there are any.
    pub contactors: Option<Parts>,
    /// When the pack rests.
    pub sleep: SleepConfig,
    /// When its slaves do.
    pub slave_sleep: Option<SlaveSleep>,
    /// What is ordered, in any order.
    pub commands: Vec<RackCommand>,
    /// Time between samples.
    pub sample_period: Duration,
    /// Crystals differ by up to this.
    pub crystal_ppm: f64,
    /// Per slave, in order: what it guards.
    pub slaves: Vec<SlavePlan>,
    /// Current through each string.
    pub load: Load,
    /// Anchors and tags.
    pub room: Room,
    /// The master's map.
    pub map: Vec<MapAnchor>,
    /// Tags `0..tags` are ranged.
    pub tags: u16,
    /// Known height of the tags, mm; `None`: 3D.
    pub tag_height_mm: Option<i32>,
    /// 1-sigma of a range, as the master believes.
    pub range_sigma_mm: u32,
}

/// One bus of a rack.
#[derive(Clone, Copy, Debug)]
pub struct BusPlan {
    /// Which, and its timing.
    pub schedule: Schedule,
    /// How many of the slaves are on it.
    pub slaves: usize,
}

impl BusPlan {
    /// The only one, with its usual timing.
    pub fn only(kind: BusKind, slaves: usize) -> Vec<Self> {
        vec![Self {
            schedule: Schedule::for_bus(kind),
            slaves,
        }]
    }
}

/// One slave and its sensors.
pub struct SlavePlan {
    /// Device.
    pub uid: Uid,
    /// Parts.
    pub capabilities: Capabilities,
    /// Its cells.
    pub group: Group,
}

/// A fault of this rack.
#[derive(Clone, Debug)]
pub struct RackFault {
    /// When.
    pub at: Instant,
    /// Until then; `None`: for good.
    pub until: Option<Instant>,
    /// What.
    pub kind: FaultKind,
    /// Index of the slave, from 0; `None`: all.
    pub slave: Option<usize>,
    /// Cell, from 0.
    pub cell: u8,
    /// Voltage.
    pub mv: Millivolts,
    /// Share of frames.
    pub share: f64,
    /// Anchor; `None`: all of the slave.
    pub anchor: Option<u8>,
    /// Temperature.
    pub dc: DeciCelsius,
    /// Contact.
    pub part: Option<Part>,
}

/// An operator's order to this rack.
#[derive(Clone, Debug)]
pub struct RackCommand {
    /// When.
    pub at: Instant,
    /// As in the northbound interface.
    pub cmd: String,
    /// Switch.
    pub on: Option<bool>,
}

enum Medium {
    Can(Box<CanBus>),
    Serial(Box<Line>),
}

/// A bus and who is on it.
struct Bus {
    medium: Medium,
    schedule: Schedule,
    master: Port,
    /// Its units among all.
    units: Range<usize>,
    busy_before: Duration,
}

struct Unit {
    core: Slave,
    config: SlaveConfig,
    bus: usize,
    port: Port,
    clock: Clock,
    /// When the crystal was started, world's time: a core's clock begins at its boot.
    booted: Instant,
    group: Group,
    alive: bool,
    gate_on: bool,
    /// The sample being decided on.
    sampled_at: Instant,
    /// Luminaires that shine.
    lit: u16,
    /// When the fault that works on it began.
    fault_at: Option<Instant>,
    tripped: bool,
    /// Sample of the trip that the master has not heard of yet.
    tripped_at: Option<Instant>,
    /// Sample of another's trip that it has not heard of yet.
    unheard: Option<Instant>,
    /// Share of its frames that do not arrive at the master.
    loss: f64,
    /// A fault touched this slave at some time.
    faulty: bool,
    /// Its seat, or the last one.
    seat: Option<NodeId>,
    /// Messages of it that the master accepted.
    received: u64,
    /// Not sent in time, in earlier lives.
    overwritten: u64,
}

impl Unit {
    fn local(&self, now: Instant) -> Instant {
        self.clock.local(Instant::ZERO + now.since(self.booted))
    }
    fn global(&self, local: Instant) -> Instant {
        self.booted + self.clock.global(local).since(Instant::ZERO)
    }
    /// It was told something, having seen so many trips before.
    fn heard(&mut self, now: Instant, seen: u32, stats: &mut Stats) {
        if self.core.trips_seen() != seen
            && let Some(sampled_at) = self.unheard.take()
        {
            let ns = now.since(sampled_at).as_nanos();
            stats.heard_max_ns = stats.heard_max_ns.max(Some(ns));
        }
    }

    /// Moment at which the core wants to be called, world's time.
    fn due(&self) -> Instant {
        match self.core.poll_timeout() {
            Some(local) if self.alive => self.global(local),
            _ => Instant::MAX,
        }
    }
}

/// A fix of a tag, for comparison with the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TagFix {
    /// When the ranges were taken.
    pub at: Instant,
    /// Which tag.
    pub tag: TagId,
    /// Master's estimate, metres.
    pub position_m: [f64; 3],
}

/// A rack in virtual time.
pub struct Rack {
    plan: Settings,
    now: Instant,
    buses: Vec<Bus>,
    master: Box<SimMaster>,
    /// Moment at which the master wants to be called.
    master_due: Instant,
    master_alive: bool,
    /// Starts of the master before this one.
    sessions: u8,
    /// What the master keeps over a reset.
    kept: Vec<u8>,
    units: Vec<Unit>,
    /// When each unit wants to be called; apart from the units, because it is looked at all the time.
    due: Vec<Instant>,
    closed: Vec<bool>,
    link: Option<Link>,
    next_link: Instant,
    /// Soonest last.
    commands: Vec<RackCommand>,
    load: Load,
    room: Room,
    noise: Noise,
    /// Beginnings and ends of faults, soonest last.
    faults: Vec<(Instant, bool, RackFault)>,
    next_second: Instant,
    seen_seq: u64,
    /// When each tag was ranged last.
    ranged_at: Vec<Instant>,
    inbox: Vec<CanEvent>,
    lines: Vec<LineEvent>,
    stats: Stats,
    /// Hears everything that CAN buses tell.
    tap: Option<CanTap>,
}

/// Hears what CAN buses tell, and which.
pub type CanTap = Box<dyn FnMut(usize, &CanEvent) + Send>;

/// What is needed again after the rack has been built.
struct Settings {
    number: u32,
    per_string: usize,
    master: MasterConfig,
    control: PackControl,
    map: Vec<MapAnchor>,
    tags: Vec<TagId>,
    /// Who belongs on which seat, in order.
    roster: Vec<(Uid, Capabilities)>,
}

#[derive(Default)]
struct Stats {
    latency: [Histogram; CLASSES.len()],
    /// Worst of the second that runs.
    latency_max_ns: u64,
    /// Frames and runs of characters that were delivered.
    frames: u64,
    /// Runs that arrived damaged.
    damaged: u64,
    trips: u64,
    decision_max_ns: Option<u64>,
    reaction_max_ns: Option<u64>,
    master_max_ns: Option<u64>,
    heard_max_ns: Option<u64>,
    all_joined: Option<Instant>,
    happenings: Vec<Happening>,
    affected: Vec<(usize, Affected)>,
    soc_errors: (f64, u64, f64),
    soc_track: Vec<(Instant, f32, f32)>,
    fixes: Vec<TagFix>,
    errors_mm: Vec<f64>,
}

/// The filters may settle for so long before their error counts.
const SETTLING: Duration = Duration::from_secs(60);

impl Rack {
    /// Builds everything, nobody switched on before the first [`Self::run_until`].
    pub fn new(plan: RackPlan, faults: Vec<RackFault>) -> Self {
        let mut noise = Noise::new(plan.seed, 0);
        let mut first = 0;
        let mut buses: Vec<Bus> = Vec::new();
        for BusPlan { schedule, slaves } in &plan.buses {
            let mut medium = Medium::new(schedule.kind, noise.bits());
            buses.push(Bus {
                master: medium.attach(),
                medium,
                schedule: *schedule,
                units: first..first + slaves,
                busy_before: Duration::ZERO,
            });
            first += slaves;
        }
        let expected = u8::try_from(plan.slaves.len()).unwrap_or(u8::MAX);
        let tags: Vec<TagId> = (0..plan.tags).map(TagId).collect();
        let name = format!("master-{}", plan.number);
        let config = MasterConfig {
            name: name.as_str().try_into().unwrap_or_default(),
            buses: buses.iter().map(|bus| bus.schedule).collect(),
            topology: Topology {
                expected,
                strings: plan.strings,
                // 20 mV a cell for a string of 256.
                match_mv: 5_000,
                settle: Duration::from_millis(500),
            },
            cell: plan.cell,
            balance: Default::default(),
            tag_height_mm: plan.tag_height_mm,
            range_sigma_mm: plan.range_sigma_mm,
            slave_period: Duration::from_secs(1),
            pack_period: Duration::from_millis(500),
        };
        let places = (0..buses.len()).flat_map(|b| vec![b; plan.buses[b].slaves]);
        let units: Vec<Unit> = (1..)
            .zip(plan.slaves)
            .zip(places)
            .map(|((stream, slave), place)| {
                let bus = &mut buses[place];
                let mut own = Noise::new(plan.seed, 1_000 + stream);
                let limits = plan.limits;
                let config = SlaveConfig {
                    sample_period: plan.sample_period,
                    sleep: plan.slave_sleep,
                    ..SlaveConfig::new(slave.uid, slave.capabilities, limits)
                };
                // People plug modules in one after the other; a rack is powered at once, but
                // regulators and oscillators take their time.
                let booted =
                    Instant::ZERO + Duration::from_micros((own.uniform() * 20_000.0) as u64);
                let ppm = (2.0 * own.uniform() - 1.0) * plan.crystal_ppm;
                Unit {
                    core: Slave::new(config.clone(), bus.schedule),
                    config,
                    bus: place,
                    port: bus.medium.attach(),
                    clock: Clock::new(ppm),
                    booted,
                    group: slave.group,
                    alive: false,
                    gate_on: false,
                    lit: u16::MAX,
                    sampled_at: booted,
                    fault_at: None,
                    tripped: false,
                    tripped_at: None,
                    unheard: None,
                    loss: 0.0,
                    faulty: false,
                    seat: None,
                    received: 0,
                    overwritten: 0,
                }
            })
            .collect();
        let mut timeline: Vec<_> = faults.iter().map(|f| (f.at, true, f.clone())).collect();
        timeline.extend(
            faults
                .iter()
                .filter_map(|f| Some((f.until?, false, f.clone()))),
        );
        timeline.sort_by_key(|(at, begins, _)| core::cmp::Reverse((*at, !*begins)));
        let control = PackControl {
            contactors: plan.contactors.map(|_| ContactorConfig::default()),
            power: power_limits(&plan.limits),
            sleep: plan.sleep,
            ..PackControl::new(plan.cell)
        };
        let mut commands = plan.commands;
        commands.sort_by_key(|c| core::cmp::Reverse(c.at));
        let settings = Settings {
            number: plan.number,
            per_string: units.len() / usize::from(plan.strings).max(1),
            master: config,
            control,
            map: plan.map,
            tags,
            roster: units
                .iter()
                .map(|u| (u.config.uid, u.config.capabilities))
                .collect(),
        };
        for unit in &units {
            buses[unit.bus].medium.kill(Instant::ZERO, unit.port);
        }
        let strings = usize::from(plan.strings);
        Self {
            now: Instant::ZERO,
            buses,
            master: settings.new_master(0),
            master_due: Instant::ZERO,
            master_alive: true,
            sessions: 0,
            kept: Vec::new(),
            closed: vec![false; strings],
            link: plan.contactors.map(Link::new),
            next_link: Instant::ZERO,
            commands,
            load: plan.load,
            room: plan.room,
            noise,
            faults: timeline,
            next_second: Instant::from_millis(1_000),
            seen_seq: 1,
            ranged_at: vec![Instant::ZERO; settings.tags.len()],
            inbox: Vec::new(),
            lines: Vec::new(),
            stats: Stats::default(),
            tap: None,
            due: units.iter().map(|u| u.booted).collect(),
            units,
            plan: settings,
        }
    }

    /// The master, to ask it anything between two runs.
    pub fn master_mut(&mut self) -> &mut SimMaster {
        &mut self.master
    }

    /// From now on this hears everything that CAN buses tell, in order.
    pub fn tap_can(&mut self, tap: CanTap) {
        self.tap = Some(tap);
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Answers a client's datagram as the master's shell does; 0 when the master is dead, or when
    /// the answer will come from [`Self::poll_smp`] under the same ticket.
    pub fn handle_smp(&mut self, ticket: u32, request: &[u8], answer: &mut [u8]) -> usize {
        if !self.master_alive {
            return 0;
        }
        let len = self.master.handle_smp(self.now, ticket, request, answer);
        self.drain_master();
        len
    }

    /// An answer of a slave that has become due: ticket and length.
    pub fn poll_smp(&mut self, answer: &mut [u8]) -> Option<(u32, usize)> {
        let due = self.master.poll_smp(self.now, answer)?;
        Some((due.ticket, due.length))
    }

    /// Whether an answer under this ticket may still come.
    pub fn is_waiting(&self, ticket: u32) -> bool {
        self.master_alive && self.master.is_waiting(ticket)
    }

    /// Lets everything happen that happens until then.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            let mut now = self.next_second.min(self.master_due);
            for bus in &self.buses {
                now = now.min(bus.medium.poll_timeout().unwrap_or(Instant::MAX));
            }
            if let Some((at, ..)) = self.faults.last() {
                now = now.min(*at);
            }
            if let Some(command) = self.commands.last() {
                now = now.min(command.at);
            }
            if self.link.is_some() {
                now = now.min(self.next_link);
            }
            now = self.due.iter().fold(now, |now, &due| now.min(due));
            if now > end {
                self.now = self.now.max(end);
                return;
            }
            // A core that asks for the past is called now; time never goes back.
            self.now = self.now.max(now);
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while self.faults.last().is_some_and(|(at, ..)| *at <= now) {
            if let Some((_, begins, fault)) = self.faults.pop() {
                self.apply(&fault, begins);
            }
        }
        while self.commands.last().is_some_and(|c| c.at <= now) {
            if let Some(command) = self.commands.pop() {
                self.order(&command);
            }
        }
        if self.link.is_some() && now >= self.next_link {
            self.next_link = now + LINK_PERIOD;
            self.measure_link();
        }
        if now >= self.next_second {
            self.next_second = now + Duration::from_secs(1);
            self.each_second();
        }
        self.deliver();
        if now >= self.master_due {
            self.master.handle_timeout(now);
            if self.master.poll_store(now) {
                self.kept.resize(keep::size(SEATS), 0);
                let length = self.master.store(&mut self.kept).unwrap_or(0);
                self.kept.truncate(length);
            }
            self.drain_master();
        }
        for i in 0..self.units.len() {
            if self.due[i] <= now {
                let unit = &mut self.units[i];
                if !unit.alive {
                    // Its supply is up: now it boots.
                    unit.alive = true;
                    self.buses[unit.bus].medium.revive(now, unit.port);
                }
                let local = unit.local(now);
                unit.core.handle_timeout(local);
                self.drain(i);
            }
        }
    }

    /// Carries out an operator's order as it would come from a client.
    fn order(&mut self, command: &RackCommand) {
        if !self.master_alive {
            return;
        }
        let (now, on) = (self.now, command.on.unwrap_or(false));
        match command.cmd.as_str() {
            "gate" => self.master.set_gate(now, on),
            "balance" => self.master.set_balance(on),
            "sleep" => self.master.set_sleep(now, on),
            // The queue of orders is empty at the moment between two cycles; if not, the operator would have to repeat it, too.
            _ => drop(self.master.clear(now, None)),
        }
        self.drain_master();
    }

    /// Voltage of the strings that conduct, and how many do.
    fn strings_mv(&self) -> (Option<f64>, usize) {
        let per = self.plan.per_string.max(1);
        let strings = self.closed.iter().zip(self.units.chunks(per));
        let closed = strings.filter(|(closed, _)| **closed);
        let (sum, n) = closed.fold((0.0, 0), |(sum, n), (_, units)| {
            (
                sum + units.iter().map(|u| u.group.true_mv()).sum::<f64>(),
                n + 1,
            )
        });
        ((n > 0).then(|| sum / n as f64), n)
    }

    /// Lets the link live until now and tells the master what its sensors show.
    fn measure_link(&mut self) {
        self.advance_link();
        let (pack_mv, _) = self.strings_mv();
        if let Some(link) = &self.link
            && self.master_alive
        {
            self.master
                .handle_terminals(self.now, &link.terminals(pack_mv));
            self.drain_master();
        }
    }

    fn advance_link(&mut self) {
        let (pack_mv, conducting) = self.strings_mv();
        let allowed = self.master_alive && self.master.load_allowed();
        let load_ma = if allowed {
            self.load.at(self.now) * self.closed.len() as f64
        } else {
            0.0
        };
        if let Some(link) = &mut self.link {
            link.advance(self.now, pack_mv, conducting, load_ma);
        }
    }

    /// Current through one string, mA.
    fn string_ma(&self, string: usize) -> f64 {
        let conducts = self.closed.get(string).copied().unwrap_or(false);
        match &self.link {
            _ if !conducts => 0.0,
            None => self.load.at(self.now),
            Some(link) => {
                link.current_ma() / self.closed.iter().filter(|c| **c).count().max(1) as f64
            }
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        for bus in 0..self.buses.len() {
            match &mut self.buses[bus].medium {
                Medium::Can(can) => {
                    let mut inbox = std::mem::take(&mut self.inbox);
                    can.handle_timeout(now, &mut |event| inbox.push(event));
                    for event in inbox.drain(..) {
                        self.handle_can_event(bus, event);
                    }
                    self.inbox = inbox;
                }
                Medium::Serial(line) => {
                    let mut lines = std::mem::take(&mut self.lines);
                    line.handle_timeout(now, &mut |event| lines.push(event));
                    for event in lines.drain(..) {
                        self.handle_line_event(bus, event);
                    }
                    self.lines = lines;
                }
            }
        }
    }

    fn handle_can_event(&mut self, bus: usize, event: CanEvent) {
        let now = self.now;
        if let Some(tap) = &mut self.tap {
            tap(bus, &event);
        }
        match event {
            CanEvent::Delivered {
                frame,
                meta,
                from,
                receivers,
                ..
            } => {
                self.stats.frames += 1;
                if receivers.contains(self.buses[bus].master) {
                    self.tell_master((bus, from), meta, |master| {
                        master.handle_can(bus, now, &frame)
                    });
                }
                for i in self.buses[bus].units.clone() {
                    let unit = &mut self.units[i];
                    if receivers.contains(unit.port) && slave_accepts(frame.id, unit.core.node()) {
                        let local = unit.local(now);
                        let seen = unit.core.trips_seen();
                        unit.core.handle_can(local, &frame);
                        unit.heard(now, seen, &mut self.stats);
                        self.drain(i);
                    }
                }
            }
            CanEvent::Sent { port, mailbox, .. } => match self.unit_of(bus, port) {
                Some(i) => {
                    let unit = &mut self.units[i];
                    let local = unit.local(now);
                    unit.core.handle_sent(local, mailbox);
                    self.drain(i);
                }
                None => {
                    self.master.handle_sent(bus, now, mailbox);
                    self.drain_master();
                }
            },
            _ => {}
        }
    }

    fn handle_line_event(&mut self, bus: usize, event: LineEvent) {
        let now = self.now;
        match event {
            LineEvent::Bytes {
                from,
                meta,
                bytes,
                damaged,
                receivers,
                ..
            } => {
                self.stats.frames += 1;
                self.stats.damaged += u64::from(damaged > 0);
                if receivers.contains(self.buses[bus].master) {
                    self.tell_master((bus, from), meta, |master| {
                        master.handle_serial(bus, now, &bytes)
                    });
                }
                for i in self.buses[bus].units.clone() {
                    let unit = &mut self.units[i];
                    if receivers.contains(unit.port) {
                        let local = unit.local(now);
                        unit.core.handle_serial(local, &bytes);
                        self.drain(i);
                    }
                }
            }
            LineEvent::Break {
                senders, receivers, ..
            } => {
                if receivers.contains(self.buses[bus].master)
                    && let Some(from) = senders.first()
                {
                    self.tell_master((bus, from), 0, |master| master.handle_break(bus, now));
                }
                for i in self.buses[bus].units.clone() {
                    let unit = &mut self.units[i];
                    if receivers.contains(unit.port) {
                        let local = unit.local(now);
                        let seen = unit.core.trips_seen();
                        unit.core.handle_break(local);
                        unit.heard(now, seen, &mut self.stats);
                        self.drain(i);
                    }
                }
            }
            LineEvent::Collision { .. } => {}
        }
    }

    /// Hands something to the master and measures what became of it.
    fn tell_master(
        &mut self,
        (bus, from): (usize, Port),
        meta: u64,
        hand: impl FnOnce(&mut SimMaster),
    ) {
        if !self.master_alive {
            return;
        }
        let sender = self.unit_of(bus, from);
        if let Some(unit) = sender.and_then(|i| self.units.get(i))
            && unit.loss > 0.0
            && self.noise.uniform() < unit.loss
        {
            return;
        }
        let before = self.master.counters();
        hand(&mut self.master);
        let after = self.master.counters();
        for (class, (old, new)) in before.accepted.iter().zip(after.accepted).enumerate() {
            if *old == new {
                continue;
            }
            if let Some(unit) = sender.and_then(|i| self.units.get_mut(i)) {
                unit.received += u64::from(new - *old);
            }
            // What a faulty slave says late is its fault's, not the bus's.
            if meta > 0
                && sender
                    .and_then(|i| self.units.get(i))
                    .is_none_or(|u| !u.faulty)
            {
                let ns = self.now.as_nanos().saturating_sub(meta);
                self.stats.latency[class].add(ns);
                self.stats.latency_max_ns = self.stats.latency_max_ns.max(ns);
            }
        }
        if before.trips != after.trips {
            for unit in &mut self.units {
                if let Some(sampled) = unit.tripped_at.take() {
                    let ns = self.now.since(sampled).as_nanos();
                    self.stats.master_max_ns = self.stats.master_max_ns.max(Some(ns));
                }
            }
        }
        self.drain_master();
    }

    fn unit_of(&self, bus: usize, port: Port) -> Option<usize> {
        // The master was attached first.
        Some(self.buses[bus].units.start + port.index().checked_sub(1)?)
    }

    /// Lets the master speak and notes what it decided.
    fn drain_master(&mut self) {
        let now = self.now;
        if !self.master_alive {
            self.master_due = Instant::MAX;
            return;
        }
        if let Some(drive) = self.master.poll_drive() {
            self.advance_link();
            if let Some(link) = &mut self.link {
                link.set_drive(drive);
            }
            self.advance_link();
        }
        for (at, bus) in self.buses.iter_mut().enumerate() {
            let port = bus.master;
            match &mut bus.medium {
                Medium::Can(can) => {
                    for mailbox in Mailbox::ALL {
                        while can.is_free(port, mailbox)
                            && let Some(out) = self.master.poll_can(at, now, mailbox)
                        {
                            // A free mailbox of a controller that is on takes any frame.
                            let _ = can.submit(now, port, mailbox, &out.frame, 0);
                        }
                    }
                }
                Medium::Serial(line) => {
                    while let Some(out) = self.master.poll_serial(at, now) {
                        // A driver that is still on loses the signal, as on hardware.
                        let _ = line.transmit(port, out.at.max(now), &out.what, 0);
                    }
                }
            }
        }
        self.master_due = self.master.poll_timeout().unwrap_or(Instant::MAX);
        if self.master.log().next() != self.seen_seq {
            self.read_log();
        }
    }

    fn read_log(&mut self) {
        let Self {
            master,
            stats,
            room,
            ranged_at,
            units,
            plan,
            ..
        } = self;
        for (_, entry) in master.log().since(self.seen_seq) {
            match &entry.record {
                Record::Tag(t) => {
                    let at = ranged_at
                        .get(usize::from(t.tag.0))
                        .copied()
                        .unwrap_or(entry.at);
                    let position_m = t.position_mm.map(|mm| f64::from(mm) / 1e3);
                    match room.tag_position(t.tag, at) {
                        Some([x, y, _]) => {
                            let [ex, ey, _] = position_m;
                            stats
                                .errors_mm
                                .push(distance([x, y, 0.0], [ex, ey, 0.0]) * 1e3);
                        }
                        None => stats.fixes.push(TagFix {
                            at,
                            tag: t.tag,
                            position_m,
                        }),
                    }
                }
                Record::Event(event) => note(stats, units, plan.number, entry.at, event),
                Record::Pack(_) | Record::Slave(_) => {}
            }
        }
        self.seen_seq = master.log().next();
        if stats.all_joined.is_none() {
            let expected = usize::from(plan.master.topology.expected);
            let taken = (1..=127)
                .filter_map(NodeId::new)
                .filter(|n| master.seat(*n).is_some_and(|s| s.is_present()));
            if taken.count() >= expected {
                stats.all_joined = Some(self.now);
            }
        }
    }

    /// Carries out what a slave decided and lets it speak.
    fn drain(&mut self, i: usize) {
        let now = self.now;
        let string = (i / self.plan.per_string.max(1)).min(self.closed.len().saturating_sub(1));
        let load_ma = self.string_ma(string);
        let Some(unit) = self.units.get_mut(i).filter(|u| u.alive) else {
            return;
        };
        let local = unit.local(now);
        let mut switched = false;
        while let Some(output) = unit.core.poll_output() {
            match output {
                SlaveOutput::Gate(on) => {
                    switched |= unit.gate_on != on;
                    unit.gate_on = on;
                }
                SlaveOutput::Balance(mask) => unit.group.set_bleeding(mask),
                SlaveOutput::Light(mask) => unit.lit = mask,
                // Ranges are simulated with their anchors known; no camera looks.
                SlaveOutput::Identify(_) => {}
                SlaveOutput::SampleNow if !unit.group.answers() => {}
                SlaveOutput::SampleNow => {
                    let sample = unit.group.sample(now, load_ma);
                    unit.sampled_at = now;
                    unit.core.handle_sample(local, &sample);
                }
                SlaveOutput::RangeNow(tag) => {
                    let mut range = self.room.ranges(i, tag, now);
                    for (n, place) in range.iter_mut().enumerate() {
                        if unit.lit >> n & 1 == 0 {
                            *place = None;
                        }
                    }
                    if let Some(at) = self.ranged_at.get_mut(usize::from(tag.0)) {
                        *at = now;
                    }
                    unit.core.handle_ranges(local, &Ranges { tag, range });
                }
            }
        }
        let tripped = unit.core.is_tripped();
        let trips = (tripped && !unit.tripped).then_some(unit.sampled_at);
        if trips.is_some() {
            unit.tripped_at = trips;
            self.stats.trips += 1;
            let decision = now.since(unit.sampled_at).as_nanos();
            self.stats.decision_max_ns = self.stats.decision_max_ns.max(Some(decision));
            if let Some(at) = unit.fault_at {
                let reaction = now.since(at).as_nanos();
                self.stats.reaction_max_ns = self.stats.reaction_max_ns.max(Some(reaction));
            }
        }
        unit.tripped = tripped;
        // In a rack, seats of one bus after those of another.
        let first = self.buses[unit.bus].units.start;
        let seat = unit.core.node().map(|seat| first + seat.index() + 1);
        let seat = seat.and_then(|n| NodeId::new(u8::try_from(n).ok()?));
        unit.seat = seat.or(unit.seat);
        let stamp =
            |unit: &Unit, at: Option<Instant>| at.map_or(0, |at| unit.global(at).as_nanos());
        match &mut self.buses[unit.bus].medium {
            Medium::Can(can) => {
                for mailbox in Mailbox::ALL {
                    while can.is_free(unit.port, mailbox)
                        && let Some(out) = unit.core.poll_can(local, mailbox)
                    {
                        let meta = stamp(unit, out.sampled_at);
                        // A free mailbox of a controller that is on takes any frame.
                        let _ = can.submit(now, unit.port, mailbox, &out.frame, meta);
                    }
                }
            }
            Medium::Serial(line) => {
                while let Some(out) = unit.core.poll_serial(local) {
                    let meta = stamp(unit, out.sampled_at);
                    let at = unit.global(out.at).max(now);
                    // A driver that is still on loses the signal, as on hardware.
                    let _ = line.transmit(unit.port, at, &out.what, meta);
                }
            }
        }
        self.due[i] = unit.due();
        if let Some(sampled_at) = trips {
            let others = self.units.iter_mut().enumerate();
            for (_, other) in others.filter(|(n, u)| *n != i && u.alive && u.core.node().is_some())
            {
                other.unheard.get_or_insert(sampled_at);
            }
        }
        if switched {
            self.refresh_strings();
        }
    }

    fn refresh_strings(&mut self) {
        let per = self.plan.per_string.max(1);
        for (closed, units) in self.closed.iter_mut().zip(self.units.chunks(per)) {
            *closed = units
                .iter()
                .all(|u| u.gate_on || u.config.capabilities.cells == 0);
        }
    }

    fn each_second(&mut self) {
        let now = self.now;
        let shares = self.buses.iter_mut().map(|bus| {
            let busy = bus.medium.busy(now);
            let before = std::mem::replace(&mut bus.busy_before, busy);
            busy.as_nanos().saturating_sub(before.as_nanos()) / 1_000
        });
        let share = shares.max().unwrap_or(0);
        let latency = std::mem::take(&mut self.stats.latency_max_ns) / 1_000;
        let small = |v: u64| u32::try_from(v).unwrap_or(u32::MAX);
        self.master.set_bus_figures(small(share), small(latency));
        let first = NodeId::new(1).and_then(|n| self.master.seat(n)?.soc(0));
        if let Some((soc, sigma)) = first {
            self.stats.soc_track.push((now, soc, sigma));
        }
        if now.since(Instant::ZERO) < SETTLING {
            return;
        }
        for unit in self
            .units
            .iter()
            .filter(|u| u.alive && u.core.node().is_some())
        {
            let Some(seat) = unit.seat.and_then(|n| self.master.seat(n)) else {
                continue;
            };
            for (cell, truth) in unit.group.true_socs().enumerate() {
                if let Some((soc, _)) = seat.soc(cell) {
                    let error = (f64::from(soc) - truth) * 100.0;
                    let (sum, n, max) = &mut self.stats.soc_errors;
                    (*sum, *n, *max) = (*sum + error * error, *n + 1, max.max(error.abs()));
                }
            }
        }
    }

    /// Of every slave with modelled cells of whose health something is known: estimated and true capacity, half the width of the 95 %
    /// bounds, all in percent of the new cell's.
    fn healths(&self) -> Vec<(f64, f64, f64)> {
        let new = f64::from(self.plan.master.cell.capacity_mah());
        let known = self.units.iter().filter_map(|u| {
            let seat = self.master.seat(u.seat?)?;
            let (told, truth) = (seat.health()?.capacity, u.group.true_capacity_mah()?);
            let half = 1.96 * f64::from(told.sigma);
            Some((
                f64::from(told.mean) * 100.0,
                truth / new * 100.0,
                half * 100.0,
            ))
        });
        known.collect()
    }

    fn apply(&mut self, fault: &RackFault, begins: bool) {
        let now = self.now;
        let all = 0..self.units.len();
        let chosen = match fault.slave {
            _ if fault.kind.is_of_master() => 0..0,
            Some(i) => i..i + 1,
            None => all,
        };
        for i in chosen.clone() {
            let Some(unit) = self.units.get_mut(i) else {
                continue;
            };
            let name = fault.kind.name();
            let what = if begins { "fault" } else { "fault-end" };
            unit.faulty = true;
            unit.fault_at = begins.then_some(now);
            self.stats.happenings.push(Happening {
                at_s: seconds(now),
                master: self.plan.number,
                what,
                node: unit.seat.map(NodeId::get),
                uid: Some(unit.config.uid.to_string()),
                text: name.to_string(),
            });
            if begins && let Some(seat) = unit.seat {
                self.stats.affected.push((
                    i,
                    Affected {
                        master: self.plan.number,
                        node: seat.get(),
                        fault: name,
                        fault_at_s: seconds(now),
                        isolated_at_s: None,
                        isolated_after_ms: None,
                        rejoined_at_s: None,
                        reconnected_at_s: None,
                    },
                ));
            }
            match (fault.kind, begins) {
                (FaultKind::SlaveDead | FaultKind::ModuleSwapped, true) => self.power_off(i),
                (FaultKind::SlaveDead, false) => self.power_on(i),
                (FaultKind::ModuleSwapped, false) => {
                    // Another device of the same kind, from the same stock.
                    let uid = Uid::new(unit.config.uid.get() ^ 0x5a5a_0000_0000_0000)
                        .unwrap_or(unit.config.uid);
                    unit.config.uid = uid;
                    self.power_on(i);
                }
                (FaultKind::SlaveBabbling, on) => {
                    unit.core.link_mut().babble(on);
                    self.drain(i);
                }
                (FaultKind::FrameLoss, on) => unit.loss = if on { fault.share } else { 0.0 },
                (FaultKind::SensorStuck, on) => unit.group.stick(fault.cell, on),
                (FaultKind::CellOverVoltage, on) => {
                    unit.group.force(fault.cell, on.then_some(fault.mv))
                }
                (FaultKind::AnchorBlocked, on) => {
                    let same = |l: &&mut crate::plant::Luminaire| {
                        l.slave == i && fault.anchor.is_none_or(|a| a == l.index)
                    };
                    self.room
                        .luminaires
                        .iter_mut()
                        .filter(same)
                        .for_each(|l| l.blocked = on);
                }
                (FaultKind::CellOpen, on) => unit.group.open_cell(fault.cell, on),
                (FaultKind::TemperatureOpen, on) => unit.group.open_temps(on),
                (FaultKind::Temperature, on) => {
                    unit.group.show_temp(fault.cell, on.then_some(fault.dc))
                }
                (FaultKind::CurrentLost, on) => unit.group.lose_current(on),
                (FaultKind::CurrentStuck, on) => unit.group.stick_current(on),
                (FaultKind::SensorsSilent, on) => unit.group.silence(on),
                (
                    FaultKind::MasterDead
                    | FaultKind::ContactorWelded
                    | FaultKind::ContactorStuck
                    | FaultKind::LinkShort,
                    _,
                ) => {}
            }
        }
        if fault.kind.is_of_master() && self.link.is_some() {
            self.advance_link();
        }
        if let Some(link) = &mut self.link {
            match (fault.kind, fault.part) {
                (FaultKind::ContactorWelded, Some(part)) => link.weld(part, begins),
                (FaultKind::ContactorStuck, Some(part)) => link.stick(part, begins),
                (FaultKind::LinkShort, _) => link.short(begins),
                // Coils of a master that is dead are not fed.
                (FaultKind::MasterDead, _) => link.set_drive(Drive::default()),
                _ => {}
            }
        }
        if fault.kind.is_of_master() {
            self.stats.happenings.push(Happening {
                at_s: seconds(now),
                master: self.plan.number,
                what: if begins { "fault" } else { "fault-end" },
                node: None,
                uid: None,
                text: fault.kind.name().to_string(),
            });
            if fault.kind != FaultKind::MasterDead {
                return;
            }
            self.master_alive = !begins;
            if begins {
                for bus in &mut self.buses {
                    bus.medium.kill(now, bus.master);
                }
            } else {
                for bus in &mut self.buses {
                    bus.medium.revive(now, bus.master);
                }
                self.sessions = self.sessions.wrapping_add(1);
                self.master = self.plan.new_master(self.sessions);
                if !self.kept.is_empty() {
                    // What a master stored it can read.
                    let _ = self.master.recall(&self.kept);
                }
                self.seen_seq = 1;
            }
            self.drain_master();
        }
    }

    fn power_off(&mut self, i: usize) {
        let Some(unit) = self.units.get_mut(i) else {
            return;
        };
        unit.overwritten += unit.core.link().stats().overwritten;
        unit.alive = false;
        unit.gate_on = false;
        unit.unheard = None;
        self.due[i] = Instant::MAX;
        unit.group.set_bleeding(0);
        self.buses[unit.bus].medium.kill(self.now, unit.port);
        self.refresh_strings();
    }

    fn power_on(&mut self, i: usize) {
        let Some(unit) = self.units.get_mut(i) else {
            return;
        };
        let bus = &mut self.buses[unit.bus];
        unit.core = Slave::new(unit.config.clone(), bus.schedule);
        unit.booted = self.now;
        unit.alive = true;
        unit.tripped = false;
        self.due[i] = self.now;
        bus.medium.revive(self.now, unit.port);
    }

    /// Fixes of recorded tags since the start.
    pub fn fixes(&self) -> &[TagFix] {
        &self.stats.fixes
    }

    /// The first cell's state of charge and 1-sigma as the master saw it, once a second.
    pub fn soc_track(&self) -> &[(Instant, f32, f32)] {
        &self.stats.soc_track
    }

    /// What has happened so far, in order.
    pub fn happenings(&self) -> &[Happening] {
        &self.stats.happenings
    }

    /// Slaves that faults touched.
    pub fn affected(&self) -> impl Iterator<Item = &Affected> {
        self.stats.affected.iter().map(|(_, a)| a)
    }

    /// Figures so far.
    pub fn report(&mut self) -> RackReport {
        let now = self.now;
        let us = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e3);
        let mut healthy = Loss::default();
        for unit in self.units.iter().filter(|u| !u.faulty) {
            healthy.received += unit.received;
            healthy.overwritten += unit.overwritten + unit.core.link().stats().overwritten;
            if let Some(seat) = unit.seat.and_then(|n| self.master.seat(n)) {
                healthy.lost += u64::from(seat.lost);
                healthy.rejected += u64::from(seat.rejected);
            }
        }
        let latency = CLASSES
            .iter()
            .zip(&self.stats.latency)
            .filter(|(_, h)| h.count() > 0);
        let latency = latency.map(|(class, h)| Latency {
            class,
            count: h.count(),
            p99_us: h.quantile_us(0.99),
            max_us: h.max_us(),
        });
        let (sum, n, max) = self.stats.soc_errors;
        let health = self.healths();
        let worst = |of: fn(&(f64, f64, f64)) -> f64| health.iter().map(of).reduce(f64::max);
        let estimates = Estimates {
            soh_pct: (!health.is_empty())
                .then(|| health.iter().map(|h| h.0).sum::<f64>() / health.len() as f64),
            soh_max_error_pct: worst(|h| (h.0 - h.1).abs()),
            soh_bound_pct: worst(|h| h.2),
            soc_rmse_pct: (n > 0).then(|| (sum / n as f64).sqrt()),
            soc_max_pct: (n > 0).then_some(max),
            fixes: (self.stats.errors_mm.len() + self.stats.fixes.len()) as u64,
            position_p50_mm: quantile(&mut self.stats.errors_mm, 0.5),
            position_p95_mm: quantile(&mut self.stats.errors_mm, 0.95),
        };
        let busy = self.buses.iter().map(|bus| bus.medium.busy(now));
        let busy = busy.max().unwrap_or(Duration::ZERO);
        let destroyed = self.buses.iter().map(|bus| bus.medium.error_frames(now));
        RackReport {
            master: self.plan.number,
            all_joined_at_s: self.stats.all_joined.map(seconds),
            members: self.master.figures().members,
            load_pct: busy.as_nanos() as f64 / now.as_nanos().max(1) as f64 * 100.0,
            frames: self.stats.frames,
            error_frames: destroyed.sum::<u64>() + self.stats.damaged,
            latency: latency.collect(),
            healthy,
            trips: Trips {
                count: self.stats.trips,
                decision_max_us: us(self.stats.decision_max_ns),
                reaction_max_us: us(self.stats.reaction_max_ns),
                master_max_us: us(self.stats.master_max_ns),
                heard_max_us: us(self.stats.heard_max_ns),
                unheard: self.units.iter().filter(|u| u.unheard.is_some()).count() as u64,
            },
            estimates,
            contactors: self.contactor_figures(),
        }
    }

    fn contactor_figures(&self) -> Option<ContactorFigures> {
        let (link, contactors) = (self.link.as_ref()?, self.master.contactors()?);
        let closed = |h: &&Happening| h.what == "contactors-closed";
        Some(ContactorFigures {
            state: contactors.state().name(),
            closed_at_s: self.stats.happenings.iter().find(closed).map(|h| h.at_s),
            inrush_max_a: link.inrush_max_a,
            openings_under_load: contactors.openings_under_load(),
        })
    }
}

/// How often voltages and current are measured at the master's contactors.
const LINK_PERIOD: Duration = Duration::from_millis(5);

/// What is promised stays clear of what the slaves' protection would ask to derate.
fn power_limits(limits: &Limits) -> PowerLimits {
    let threshold = |kind, severity| {
        limits
            .rule(kind, severity)
            .map_or(0.0, |r| r.threshold as f32)
    };
    PowerLimits {
        min_mv: threshold(Kind::CellUndervoltage, Severity::Derate),
        max_mv: threshold(Kind::CellOvervoltage, Severity::Warn),
        discharge_ma: threshold(Kind::OvercurrentDischarge, Severity::Warn),
        charge_ma: threshold(Kind::OvercurrentCharge, Severity::Warn),
        min_soc: 0.02,
        max_soc: 1.0,
    }
}

impl Settings {
    fn new_master(&self, session: u8) -> Box<SimMaster> {
        let mut master = Box::new(SimMaster::new(&self.master));
        master.set_session(session);
        master.control_pack(self.control);
        // A map that the loader accepted is accepted here.
        let _ = master.load_map(1, &self.map);
        master.set_tags(&self.tags);
        for (node, (uid, capabilities)) in (1..=127).filter_map(NodeId::new).zip(&self.roster) {
            master.reserve(node, *uid, *capabilities);
        }
        master
    }
}

/// Notes an event of the master and whether it concerns a slave that a fault touched.
fn note(stats: &mut Stats, units: &[Unit], number: u32, at: Instant, event: &Event) {
    let at_s = seconds(at);
    let what = northbound::what(event.what);
    let mut text = String::new();
    if let What::Contactors(ContactorEvent::Retrying(fault) | ContactorEvent::Failed(fault)) =
        event.what
    {
        text = fault.name().to_string();
    }
    if let What::Refused(breaks) = event.what {
        text = format!("no seat: {breaks}");
    }
    if let Some(alarm) = event.alarm {
        let state = if alarm.active { "active" } else { "over" };
        let severity = northbound::severity(alarm.severity);
        text = format!(
            "{severity}: {} {state}, place {}, value {}",
            northbound::code_name(alarm.code),
            alarm.index,
            alarm.value
        );
    }
    stats.happenings.push(Happening {
        at_s,
        master: number,
        what,
        node: event.node.map(NodeId::get),
        uid: event.uid.map(|u| u.to_string()),
        text,
    });
    let Some(node) = event.node else { return };
    for (i, affected) in &mut stats.affected {
        if units.get(*i).is_none_or(|u| u.seat != Some(node)) {
            continue;
        }
        match event.what {
            What::Left | What::Quarantined | What::Isolated => {
                affected.isolated_at_s.get_or_insert(at_s);
                affected
                    .isolated_after_ms
                    .get_or_insert((at_s - affected.fault_at_s) * 1e3);
                affected.rejoined_at_s = None;
            }
            What::Joined | What::Replaced if affected.isolated_at_s.is_some() => {
                affected.rejoined_at_s = Some(at_s);
            }
            What::Released if affected.isolated_at_s.is_some() => {
                affected.reconnected_at_s = Some(at_s);
            }
            _ => {}
        }
    }
}

impl Medium {
    fn new(kind: BusKind, seed: u64) -> Self {
        match (CanTiming::of(kind), LineTiming::of(kind)) {
            (Some(timing), _) => Self::Can(Box::new(CanBus::new(timing, seed))),
            (_, Some(timing)) => Self::Serial(Box::new(Line::new(timing, seed))),
            (None, None) => unreachable!("every kind of bus is one or the other"),
        }
    }

    fn attach(&mut self) -> Port {
        let port = match self {
            Self::Can(can) => can.attach(),
            Self::Serial(line) => line.attach(),
        };
        port.expect("a scenario has at most 127 slaves and one master")
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

    fn busy(&self, now: Instant) -> Duration {
        match self {
            Self::Can(can) => can.stats(now).busy,
            Self::Serial(line) => line.busy(now),
        }
    }

    /// Frames destroyed by errors so far; a serial line has none, its runs arrive damaged.
    fn error_frames(&self, now: Instant) -> u64 {
        match self {
            Self::Can(can) => can.stats(now).errors,
            Self::Serial(_) => 0,
        }
    }
}
