//! What the bus did beside what the analysis promised: real links on bit-exact media, every
//! message timed from its event, the worst of each kind next to its bound.
//!
//! ```text
//! chaos     alarms, trips, orders, samples and datagrams at random times, as dense as assumed
//! critical  pass 1: no stimulus; note when frames of the background start
//!           pass 2: the same to the nanosecond, and a bit behind such a start everything at once,
//!           with payloads that stuff as much as any that were tried
//! ```
//!
//! Same plan, same figures.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use helio_bus::analysis::{Analysis, Assumptions, Kind, management_id, prompt_frames};
use helio_bus::{
    Alarm, BusKind, CanFrame, CanId, Capabilities, Command, MAX_ANCHORS, Mailbox, MasterEvent,
    MasterLink, Message, Order, Ranges, Schedule, SerialSignal, Severity, SlaveEvent, SlaveLink,
    SlaveState, State, Summary, decode_can, encode_can, slave_accepts,
};
use helio_units::{
    DeciCelsius, Duration, Instant, Milliamps, Millimetres, Millivolts, NodeId, TagId, Uid,
};

use crate::media::Port;
use crate::media::can::{CanBus, CanEvent, CanTiming};
use crate::media::rs485::{Line, LineEvent, LineTiming};
use crate::plant::Noise;
use crate::uid;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Timing of the bus.
    pub schedule: Schedule,
    /// Who is on it.
    pub slaves: Vec<Capabilities>,
    /// Of everything random.
    pub seed: u64,
    /// Payloads tried for each frame of a critical instant, to find one that stuffs much; 100 000
    /// come within 5 % of the longest frame, 2 000 within 7 %.
    pub tries: usize,
}

/// The worst of one kind, and its bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// `chaos` or `critical`.
    pub run: &'static str,
    /// Of what.
    pub kind: Kind,
    /// Messages that were timed.
    pub count: u64,
    /// The latest of them.
    pub worst: Duration,
    /// None could be later, under the assumptions of the run.
    pub bound: Duration,
    /// Messages that were.
    pub violations: u64,
}

impl Row {
    /// Worst over bound.
    pub fn ratio(&self) -> f64 {
        self.worst.as_nanos() as f64 / self.bound.as_nanos().max(1) as f64
    }
}

/// Both sides.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Frames, or runs of characters, that crossed the bus.
    pub frames: u64,
    /// By run and kind.
    pub rows: Vec<Row>,
}

/// The rack did not come up, so nothing was compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJoined {
    /// Members after ten virtual seconds.
    pub members: usize,
}

impl std::fmt::Display for NotJoined {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members = self.members;
        write!(
            f,
            "only {members} slaves joined within 10 s; this bus is too full to compare"
        )
    }
}

impl std::error::Error for NotJoined {}

/// Random times, as dense as [`Assumptions::calm`] allows, until so many frames have crossed the
/// bus. `progress` hears how many, now and then.
pub fn chaos(
    plan: &Plan,
    frames: u64,
    mut progress: impl FnMut(u64),
) -> Result<Comparison, NotJoined> {
    let assumed = Assumptions::calm(&plan.schedule);
    let mut rig = Rig::joined(plan)?;
    rig.mode = Mode::Chaos;
    rig.start_streams(&assumed);
    let before = rig.frames;
    while rig.frames - before < frames {
        rig.run_until(rig.now + Duration::from_millis(500));
        progress(rig.frames - before);
    }
    Ok(Comparison {
        frames: rig.frames - before,
        rows: rig.rows("chaos", plan, &assumed, |_| true),
    })
}

/// The worst instants that could be found: for trips and alarms under [`Assumptions::storm`], for
/// summaries and states under [`Assumptions::calm`]. CAN only; on RS485 the slots are as they are
/// and chaos meets them.
pub fn critical(plan: &Plan) -> Result<Comparison, NotJoined> {
    let mut all = Comparison::default();
    if CanTiming::of(plan.schedule.kind).is_none() {
        return Ok(all);
    }
    let storm = Assumptions::storm(&plan.schedule);
    let calm = Assumptions::calm(&plan.schedule);
    let urgent = |kind| matches!(kind, Kind::Trip | Kind::Alarm);
    let cyclic = |kind| matches!(kind, Kind::Summary | Kind::State);
    for (assumed, keep) in [(storm, &urgent as &dyn Fn(Kind) -> bool), (calm, &cyclic)] {
        // Where the background stands, without any stimulus.
        let mut rig = Rig::joined(plan)?;
        rig.mode = Mode::Critical;
        rig.saturate = true;
        let from = rig.now + plan.schedule.cycle * 4;
        rig.run_until(from + plan.schedule.cycle * CRITICAL_CYCLES);
        let grace = assumed.sampling;
        let late = |start: Instant| {
            let since = rig.syncs.iter().rev().find(|at| **at <= start);
            since.map(|at| start.since(*at)).filter(|d| *d < grace)
        };
        let starts = rig.background.iter().filter(|(start, _)| *start > from);
        let best = starts.max_by_key(|(start, length)| {
            let waited = late(*start).unwrap_or(Duration::ZERO);
            match assumed.alarms {
                // Whatever the time, the longest frame.
                u16::MAX => (*length, Duration::ZERO),
                // The longest from SYNC to its end.
                _ => (*length + waited, waited),
            }
        });
        let Some((start, _)) = best.copied() else {
            continue;
        };
        // Slaves that take as long to measure as it is from SYNC to there.
        let assumed = Assumptions {
            sampling: match assumed.alarms {
                u16::MAX => assumed.sampling,
                _ => late(start).unwrap_or(assumed.sampling) + rig.bit,
            },
            ..assumed
        };
        // The same again, and now a bit later all at once.
        let mut rig = Rig::joined(plan)?;
        rig.mode = Mode::Critical;
        rig.saturate = true;
        rig.stuff = true;
        rig.strike = Some(start + rig.bit);
        rig.schedule_strike(start + rig.bit, &assumed);
        rig.run_until(start + plan.schedule.cycle * 2);
        all.frames += rig.frames;
        all.rows.extend(rig.rows("critical", plan, &assumed, keep));
    }
    Ok(all)
}

/// Steps of one climb to a payload that stuffs much.
const CLIMB: usize = 5_000;
/// First byte of a beacon: 0xa0 and the class of SYNC.
const BEACON: u8 = 0xa2;
/// Places for devices that come and go.
const SPARES: usize = 2;
/// Cycles in which a worst instant is looked for.
const CRITICAL_CYCLES: u64 = 500;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing but joining.
    Quiet,
    Chaos,
    Critical,
}

/// Something that happens to a link at a given time; ordered by kind for equal times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stimulus {
    /// A measurement is there.
    Sample(usize),
    /// Ranges are there.
    Ranged(usize),
    /// A stream of alarms: its number, and how many there are.
    AlarmStream(usize, usize),
    TripStream,
    OrderStream,
    /// A device is switched on that was not there, and switched off when it has its seat.
    PlugStream,
    Plug,
    TripAll,
    Alarm(usize),
    Order,
}

struct Unit {
    link: SlaveLink,
    port: Port,
    /// Powered.
    on: bool,
    due: Instant,
    synced: Option<Instant>,
    ranged: Option<Instant>,
    alarmed: Option<Instant>,
    /// SYNC of the last snapshot, and how many details of it are to come.
    snapshot: (Instant, u8),
    /// Counters of the last frames, to know the next: alarm, summary or state.
    counters: [u8; 2],
}

impl Unit {
    /// Since when a message of this kind was to be said.
    fn since(&mut self, kind: Kind) -> Option<Instant> {
        match kind {
            Kind::Alarm => self.alarmed.take(),
            Kind::Ranges => self.ranged,
            _ => self.synced,
        }
    }
}

enum Medium {
    Can(Box<CanBus>, CanTiming),
    Serial(Box<Line>),
}

#[derive(Clone, Copy, Default)]
struct Tally {
    count: u64,
    worst: Duration,
    violations: u64,
    bound: Option<Duration>,
}

struct Rig {
    now: Instant,
    /// Index of the first unit that is plugged and unplugged.
    spare: usize,
    schedule: Schedule,
    bit: Duration,
    master: MasterLink,
    master_port: Port,
    master_due: Instant,
    units: Vec<Unit>,
    /// Index of the unit on each seat.
    seats: [Option<usize>; 128],
    medium: Medium,
    queue: BinaryHeap<Reverse<(Instant, Stimulus)>>,
    noise: Noise,
    mode: Mode,
    /// Datagrams wherever a link takes one.
    saturate: bool,
    /// Payloads that stuff much.
    stuff: bool,
    /// When everything happens at once.
    strike: Option<Instant>,
    tries: usize,
    started: Instant,
    tripped: Option<Instant>,
    ordered: Vec<(NodeId, Instant)>,
    tallies: [Tally; KINDS.len()],
    frames: u64,
    /// Start and length of frames with a 29-bit identifier.
    background: Vec<(Instant, Duration)>,
    /// Of the last order to each seat.
    order_counters: [u8; 128],
    /// When slaves had SYNC.
    syncs: Vec<Instant>,
    /// Datagrams that stuff much, by seat: to the slave, to the master.
    datagrams: Vec<(Vec<u8>, Vec<u8>)>,
    inbox: Vec<CanEvent>,
    lines: Vec<LineEvent>,
}

const KINDS: [Kind; 9] = [
    Kind::Trip,
    Kind::Alarm,
    Kind::Sync,
    Kind::Order,
    Kind::Summary,
    Kind::Detail,
    Kind::Snapshot,
    Kind::Ranges,
    Kind::State,
];

impl Rig {
    /// All slaves on the bus, joined, the figures cleared.
    fn joined(plan: &Plan) -> Result<Self, NotJoined> {
        let schedule = plan.schedule;
        let mut noise = Noise::new(plan.seed, 7);
        let timing = CanTiming::of(schedule.kind);
        let mut medium = match (timing, LineTiming::of(schedule.kind)) {
            (Some(timing), _) => Medium::Can(Box::new(CanBus::new(timing, noise.bits())), timing),
            (None, Some(timing)) => Medium::Serial(Box::new(Line::new(timing, noise.bits()))),
            (None, None) => unreachable!("every kind of bus is one or the other"),
        };
        let mut attach = || {
            let port = match &mut medium {
                Medium::Can(bus, _) => bus.attach(),
                Medium::Serial(line) => line.attach(),
            };
            port.expect("at most 127 slaves and a master")
        };
        let master_port = attach();
        let units: Vec<Unit> = (plan.slaves.iter().take(127).enumerate())
            .map(|(i, capabilities)| Unit {
                link: SlaveLink::new(schedule, uid(1, i), *capabilities),
                port: attach(),
                on: true,
                due: Instant::ZERO,
                synced: None,
                ranged: None,
                alarmed: None,
                snapshot: (Instant::ZERO, 0),
                counters: [0; 2],
            })
            .collect();
        let bit = match schedule.kind {
            BusKind::Can500k => Duration::from_nanos(2_000),
            BusKind::Rs485At4M => Duration::from_nanos(250),
            BusKind::Rs485At115k => Duration::from_nanos(8_680),
            _ => Duration::from_nanos(1_000),
        };
        let mut master = <MasterLink>::new(schedule);
        master.set_tags(&[TagId(1), TagId(2)]);
        let nodes = (1..=127).filter_map(NodeId::new);
        for (i, (node, capabilities)) in nodes.zip(&plan.slaves).enumerate() {
            master.reserve(node, uid(1, i), *capabilities);
        }
        let mut rig = Self {
            now: Instant::ZERO,
            spare: units.len(),
            schedule,
            bit,
            master,
            master_port,
            master_due: Instant::ZERO,
            units,
            seats: [None; 128],
            medium,
            queue: BinaryHeap::new(),
            noise,
            mode: Mode::Quiet,
            saturate: false,
            stuff: false,
            strike: None,
            tries: plan.tries,
            started: Instant::ZERO,
            tripped: None,
            ordered: Vec::new(),
            tallies: [Tally::default(); KINDS.len()],
            frames: 0,
            background: Vec::new(),
            order_counters: [0; 128],
            syncs: Vec::new(),
            datagrams: Vec::new(),
            inbox: Vec::new(),
            lines: Vec::new(),
        };
        let limit = Instant::from_millis(10_000);
        while rig.members() < rig.units.len() {
            if rig.now >= limit {
                let members = rig.members();
                return Err(NotJoined { members });
            }
            rig.run_until(rig.now + schedule.cycle);
        }
        rig.run_until(rig.now + schedule.cycle * 6);
        for (i, unit) in rig.units.iter().enumerate() {
            if let Some(node) = unit.link.node() {
                rig.seats[usize::from(node.get())] = Some(i);
            }
        }
        (0..SPARES).for_each(|_| rig.add_spare());
        rig.tallies = [Tally::default(); KINDS.len()];
        rig.background.clear();
        rig.syncs.clear();
        rig.datagrams = rig.stuffed_datagrams();
        Ok(rig)
    }

    /// A place for one device more, which is empty most of the time. CAN only: on RS485 a seat more
    /// moves every slot.
    fn add_spare(&mut self) {
        let Medium::Can(bus, _) = &mut self.medium else {
            return;
        };
        let free = self.units.len() < usize::from(self.schedule.seats);
        if let (true, Some(port)) = (free, bus.attach()) {
            let capabilities = self.units.first().map(|unit| unit.link.capabilities());
            let capabilities = capabilities.unwrap_or_default();
            self.units.push(Unit {
                link: SlaveLink::new(self.schedule, uid(2, 0), capabilities),
                port,
                on: false,
                due: Instant::MAX,
                synced: None,
                ranged: None,
                alarmed: None,
                snapshot: (Instant::ZERO, 0),
                counters: [0; 2],
            });
        }
    }

    /// A spare is switched on, as another device than before.
    fn plug(&mut self) {
        let of = |bytes: &[u8]| Uid::new(bytes.iter().fold(0, |id, b| id << 8 | u64::from(*b)));
        let (now, schedule) = (self.now, self.schedule);
        let mut spares = self.units.iter().enumerate().skip(self.spare);
        let Some((i, unit)) = spares.find(|(_, unit)| !unit.on) else {
            return;
        };
        let node = u8::try_from(i + 1).ok().and_then(NodeId::new);
        let capabilities = unit.link.capabilities();
        let mut bytes = self.noise.bits().to_be_bytes().to_vec();
        if self.stuff {
            // Three frames from one id: the search is harder.
            bytes = self.climb(8, self.tries * 4, |rig, bytes| {
                let frames = of(bytes).zip(node);
                let frames = frames.map(|(uid, node)| prompt_frames(node, uid, capabilities));
                let frames = frames.into_iter().flatten();
                frames.fold(Duration::ZERO, |all, frame| all + rig.time_of(frame))
            });
        }
        if let Some(uid) = of(&bytes) {
            let unit = &mut self.units[i];
            unit.link = SlaveLink::new(schedule, uid, capabilities);
            unit.on = true;
            unit.due = now;
        }
    }

    fn unplug(&mut self, i: usize) {
        self.units[i].on = false;
        self.units[i].due = Instant::MAX;
    }

    fn members(&self) -> usize {
        let nodes = (1..=127).filter_map(NodeId::new);
        nodes.filter(|n| self.master.member(*n).is_some()).count()
    }

    fn rows(
        &self,
        run: &'static str,
        plan: &Plan,
        assumed: &Assumptions,
        keep: impl Fn(Kind) -> bool,
    ) -> Vec<Row> {
        let analysis = Analysis::new(&plan.schedule, plan.slaves.iter().copied(), assumed);
        let rows = KINDS.iter().zip(&self.tallies).filter_map(|(kind, tally)| {
            let bound = analysis.bound(*kind)?.response?;
            // Tallies that know no bound while they run are judged by their worst.
            let late = tally.worst > bound;
            (keep(*kind) && tally.count > 0).then_some(Row {
                run,
                kind: *kind,
                count: tally.count,
                worst: tally.worst,
                bound,
                violations: tally.violations.max(u64::from(late)),
            })
        });
        rows.collect()
    }

    fn start_streams(&mut self, assumed: &Assumptions) {
        let slaves = self
            .units
            .iter()
            .take(self.spare)
            .map(|u| u.link.capabilities());
        let analysis = Analysis::new(&self.schedule, slaves, assumed);
        for (kind, tally) in KINDS.iter().zip(&mut self.tallies) {
            tally.bound = analysis.bound(*kind).and_then(|b| b.response);
        }
        let streams = usize::from(assumed.alarms).min(self.spare);
        for stream in 0..streams {
            let at = self.now + self.random(self.schedule.cycle);
            self.push(at, Stimulus::AlarmStream(stream, streams));
        }
        let at = self.now + self.random(self.schedule.cycle);
        self.push(at, Stimulus::TripStream);
        for _ in 0..assumed.orders {
            let at = self.now + self.random(self.schedule.cycle);
            self.push(at, Stimulus::OrderStream);
        }
        for _ in 0..assumed.plugs {
            let at = self.now + self.random(self.schedule.cycle);
            self.push(at, Stimulus::PlugStream);
        }
    }

    /// Everything at once.
    fn schedule_strike(&mut self, at: Instant, assumed: &Assumptions) {
        self.push(at, Stimulus::TripAll);
        let alarms = usize::from(assumed.alarms).min(self.spare);
        for i in (0..self.spare).rev().take(alarms) {
            self.push(at, Stimulus::Alarm(i));
        }
        let orders = match assumed.orders {
            u16::MAX => 16,
            orders => orders,
        };
        for _ in 0..orders {
            self.push(at, Stimulus::Order);
        }
        for _ in 0..assumed.plugs {
            self.push(at, Stimulus::Plug);
        }
    }

    fn push(&mut self, at: Instant, what: Stimulus) {
        self.queue.push(Reverse((at, what)));
    }

    fn random(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos((self.noise.uniform() * limit.as_nanos() as f64) as u64)
    }

    fn pick(&mut self, below: usize) -> usize {
        ((self.noise.uniform() * below as f64) as usize).min(below.saturating_sub(1))
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            let mut now = self.master_due;
            now = self.units.iter().fold(now, |now, unit| now.min(unit.due));
            let medium = match &self.medium {
                Medium::Can(bus, _) => bus.poll_timeout(),
                Medium::Serial(line) => line.poll_timeout(),
            };
            now = now.min(medium.unwrap_or(Instant::MAX));
            if let Some(Reverse((at, _))) = self.queue.peek() {
                now = now.min(*at);
            }
            if now > end {
                self.now = self.now.max(end);
                return;
            }
            self.now = self.now.max(now);
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        while let Some(Reverse((at, what))) = self.queue.peek().copied()
            && at <= now
        {
            self.queue.pop();
            self.stimulate(what);
        }
        if now >= self.master_due {
            if self.master_due == Instant::ZERO {
                self.started = now;
            }
            self.master.handle_timeout(now);
            self.drain_master();
        }
        for i in 0..self.units.len() {
            if self.units[i].due <= now {
                self.units[i].link.handle_timeout(now);
                self.drain(i);
            }
        }
        // Last at each instant, so that nothing misses an arbitration of this very instant.
        match &mut self.medium {
            Medium::Can(bus, _) => {
                let mut inbox = std::mem::take(&mut self.inbox);
                bus.handle_timeout(now, &mut |event| inbox.push(event));
                inbox
                    .drain(..)
                    .for_each(|event| self.handle_can_event(event));
                self.inbox = inbox;
            }
            Medium::Serial(line) => {
                let mut lines = std::mem::take(&mut self.lines);
                line.handle_timeout(now, &mut |event| lines.push(event));
                lines
                    .drain(..)
                    .for_each(|event| self.handle_line_event(event));
                self.lines = lines;
            }
        }
    }

    fn stimulate(&mut self, what: Stimulus) {
        let now = self.now;
        let cycle = self.schedule.cycle;
        match what {
            Stimulus::Sample(i) => {
                let state = self.state(i);
                self.units[i].link.set_state(now, &state);
                self.drain(i);
            }
            Stimulus::Ranged(i) => {
                let ranges = self.ranges(i);
                self.units[i].link.set_ranges(now, &ranges);
                self.drain(i);
            }
            Stimulus::AlarmStream(stream, streams) => {
                // Streams share no slave, so nobody alarms twice within a period.
                let mine = (self.spare - stream).div_ceil(streams);
                let i = stream + streams * self.pick(mine);
                self.alarm(i);
                // On RS485 each is said twice.
                let apart = if self.is_can() { cycle } else { cycle * 2 };
                let next = now + apart + self.random(cycle);
                self.push(next, what);
            }
            Stimulus::TripStream => {
                let one = self.pick(self.spare);
                let some = self.pick(4);
                for i in 0..self.spare {
                    if some == 0 || i == one || (some == 1 && self.noise.uniform() < 0.3) {
                        self.units[i].link.trip(now);
                        self.drain(i);
                    }
                }
                self.tripped.get_or_insert(now);
                let next = now + cycle + self.random(cycle);
                self.push(next, what);
            }
            Stimulus::OrderStream => {
                self.order(true);
                let next = now + cycle + self.random(cycle);
                self.push(next, what);
            }
            Stimulus::PlugStream => {
                self.plug();
                let next = now + cycle * 6 + self.random(cycle * 4);
                self.push(next, what);
            }
            Stimulus::Plug => self.plug(),
            Stimulus::Alarm(i) => self.alarm(i),
            Stimulus::TripAll => {
                self.tripped.get_or_insert(now);
                for i in 0..self.spare {
                    self.units[i].link.trip(now);
                    self.drain(i);
                }
            }
            Stimulus::Order => self.order(false),
        }
    }

    fn is_can(&self) -> bool {
        matches!(self.medium, Medium::Can(..))
    }

    fn alarm(&mut self, i: usize) {
        if self.units[i].alarmed.is_some() {
            return;
        }
        let alarm = self.alarm_of(i);
        let now = self.now;
        self.units[i].alarmed = Some(now);
        self.units[i].link.alarm(now, alarm);
        self.drain(i);
    }

    fn order(&mut self, timed: bool) {
        let i = self.pick(self.spare);
        let Some(node) = self.units[i].link.node() else {
            return;
        };
        let of = |bytes: &[u8]| Command {
            to: Some(node),
            order: Order::Balance(bytes.iter().fold(0, |mask, b| mask << 8 | u32::from(*b))),
        };
        let mut bytes = (self.noise.bits() as u32).to_be_bytes().to_vec();
        if self.stuff {
            let fd = self.schedule.kind == BusKind::CanFd;
            let counter = self.order_counters[usize::from(node.get())].wrapping_add(1) & 0xf;
            bytes = self.climb(4, self.tries, |rig, bytes| {
                rig.time_of(encode_can(&Message::Command(of(bytes)), counter, fd))
            });
        }
        let command = of(&bytes);
        if self.master.command(command).is_ok() && timed {
            self.ordered.push((node, self.now));
        }
        self.drain_master();
    }

    fn handle_can_event(&mut self, event: CanEvent) {
        let now = self.now;
        match event {
            CanEvent::Delivered {
                frame,
                receivers,
                started,
                from,
                ..
            } => {
                self.frames += 1;
                self.note_counter(from, &frame);
                if let (CanId::Extended(_), Mode::Critical, Medium::Can(_, timing)) =
                    (frame.id, self.mode, &self.medium)
                {
                    self.background.push((started, timing.frame_time(&frame)));
                }
                if receivers.contains(self.master_port) {
                    self.master.handle_can(now, &frame);
                    self.drain_master();
                }
                for i in 0..self.units.len() {
                    let unit = &mut self.units[i];
                    if unit.on
                        && receivers.contains(unit.port)
                        && slave_accepts(frame.id, unit.link.node())
                    {
                        unit.link.handle_can(now, &frame);
                        self.drain(i);
                    }
                }
            }
            CanEvent::Sent { port, mailbox, .. } => match port.index().checked_sub(1) {
                Some(i) => {
                    self.units[i].link.handle_sent(now, mailbox);
                    // The spare has confirmed its seat, and is not to say anything on it.
                    if i >= self.spare && self.units[i].link.node().is_some() {
                        self.unplug(i);
                    }
                    self.drain(i);
                }
                None => {
                    self.master.handle_sent(now, mailbox);
                    self.drain_master();
                }
            },
            _ => {}
        }
    }

    /// Payloads that are to stuff much must know the counter that goes with them.
    fn note_counter(&mut self, from: Port, frame: &CanFrame) {
        if self.mode != Mode::Critical {
            return;
        }
        if let Some(unit) = from
            .index()
            .checked_sub(1)
            .and_then(|i| self.units.get_mut(i))
            && let Ok(decoded) = decode_can(frame)
        {
            match decoded.message {
                Message::Alarm(..) => unit.counters[0] = decoded.counter,
                Message::Summary(..) | Message::State(..) => unit.counters[1] = decoded.counter,
                _ => {}
            }
        }
    }

    fn handle_line_event(&mut self, event: LineEvent) {
        let now = self.now;
        match event {
            LineEvent::Bytes {
                bytes, receivers, ..
            } => {
                self.frames += 1;
                if receivers.contains(self.master_port) {
                    self.master.handle_serial(now, &bytes);
                    self.drain_master();
                }
                for i in 0..self.units.len() {
                    if receivers.contains(self.units[i].port) {
                        self.units[i].link.handle_serial(now, &bytes);
                        self.drain(i);
                    }
                }
            }
            LineEvent::Break { receivers, .. } => {
                if receivers.contains(self.master_port) {
                    self.master.handle_break(now);
                    self.drain_master();
                }
                for i in 0..self.units.len() {
                    if receivers.contains(self.units[i].port) {
                        self.units[i].link.handle_break(now);
                        self.drain(i);
                    }
                }
            }
            LineEvent::Collision { .. } => {}
        }
    }

    fn see(&mut self, kind: Kind, since: Option<Instant>) {
        let (Some(since), false) = (since, self.mode == Mode::Quiet) else {
            return;
        };
        // What was there before the strike is not its doing.
        if self.strike.is_some_and(|at| {
            since < at && !matches!(kind, Kind::Summary | Kind::State)
                || since + self.schedule.sample_grace < at
        }) || (self.mode == Mode::Critical && self.strike.is_none())
        {
            return;
        }
        let took = self.now.since(since);
        let index = KINDS.iter().position(|k| *k == kind).unwrap_or(0);
        let tally = &mut self.tallies[index];
        tally.count += 1;
        tally.worst = tally.worst.max(took);
        tally.violations += u64::from(tally.bound.is_some_and(|bound| took > bound));
    }

    fn drain_master(&mut self) {
        let now = self.now;
        while let Some(event) = self.master.poll_event() {
            match event {
                MasterEvent::Trip => {
                    let at = self.tripped.take();
                    self.see(Kind::Trip, at);
                }
                MasterEvent::Message(message) => self.handle_message(message),
                MasterEvent::Datagram(_) => while self.master.datagram().is_some() {},
                _ => {}
            }
        }
        if self.mode == Mode::Chaos && self.noise.uniform() < 0.01 || self.saturate {
            let i = self.pick(self.spare);
            if let (Some(node), Some((to_slave, _))) =
                (self.units[i].link.node(), self.datagrams.get(i))
            {
                let _ = self.master.send_datagram(node, to_slave);
            }
        }
        match &mut self.medium {
            Medium::Can(bus, _) => {
                for mailbox in Mailbox::ALL {
                    while bus.is_free(self.master_port, mailbox)
                        && let Some(out) = self.master.poll_can(now, mailbox)
                    {
                        let _ = bus.submit(now, self.master_port, mailbox, &out.frame, 0);
                    }
                }
            }
            Medium::Serial(line) => {
                while let Some(out) = self.master.poll_serial(now) {
                    // While seats are only offered a superframe is longer or ends early; the beat that
                    // counts is that of the last one before the figures.
                    let beacon = matches!(out.what, SerialSignal::Bytes { buffer, .. }
                        if buffer.first() == Some(&BEACON));
                    if self.mode == Mode::Quiet && beacon {
                        self.started = now;
                    }
                    let _ = line.transmit(self.master_port, out.at.max(now), &out.what, 0);
                }
            }
        }
        self.master_due = self.master.poll_timeout().unwrap_or(Instant::MAX);
    }

    fn handle_message(&mut self, message: Message) {
        let (kind, node) = match message {
            Message::Alarm(node, _) => (Kind::Alarm, node),
            Message::Summary(node, _) if self.is_can() => (Kind::Summary, node),
            // A slave without cells says no more on RS485.
            Message::Summary(node, _) | Message::State(node, _) => (Kind::State, node),
            Message::CellChunk { node, .. } | Message::TempChunk { node, .. } => {
                (Kind::Detail, node)
            }
            Message::RangeChunk { node, .. } | Message::Ranges(node, _) => (Kind::Ranges, node),
            Message::Trip | Message::Sync(_) | Message::Command(_) => return,
        };
        let Some(i) = self.seats[usize::from(node.get())] else {
            return;
        };
        let unit = &mut self.units[i];
        let (kind, since) = match kind {
            // What is left of a snapshot is said before anything that is in turn.
            Kind::Detail if unit.snapshot.1 > 0 => {
                unit.snapshot.1 -= 1;
                (Kind::Snapshot, Some(unit.snapshot.0))
            }
            _ => (kind, unit.since(kind)),
        };
        self.see(kind, since);
    }

    fn drain(&mut self, i: usize) {
        let now = self.now;
        if !self.units[i].on {
            return;
        }
        while let Some(event) = self.units[i].link.poll_event() {
            match event {
                SlaveEvent::Sync { cycle, .. } => {
                    let unit = &mut self.units[i];
                    unit.synced = Some(now);
                    if self.schedule.is_snapshot(cycle) {
                        unit.snapshot = (now, unit.link.capabilities().details());
                    }
                    if i == 0 && self.syncs.last() != Some(&now) {
                        self.syncs.push(now);
                    }
                    let cycle = self.schedule.cycle.as_nanos();
                    let late = now.since(self.started).as_nanos() % cycle;
                    let beat = now - Duration::from_nanos(late);
                    self.see(Kind::Sync, Some(beat));
                    let at = match (self.mode, self.strike) {
                        // Together, as late as the strike lets them.
                        (Mode::Critical, Some(strike))
                            if strike >= now && strike.since(now) < self.schedule.sample_grace =>
                        {
                            Some(strike)
                        }
                        (Mode::Critical, _) => None,
                        (Mode::Quiet, _) => Some(now),
                        (Mode::Chaos, _) => match self.pick(3) {
                            0 => Some(now),
                            1 => None, // the link goes on by itself
                            _ => Some(now + self.random(self.schedule.sample_grace)),
                        },
                    };
                    if let Some(at) = at {
                        self.push(at, Stimulus::Sample(i));
                    }
                }
                SlaveEvent::RangeNow(_) => {
                    self.units[i].ranged = Some(now);
                    let wait = match self.mode {
                        // The slots of RS485 do not wait.
                        Mode::Chaos if self.is_can() => self.random(self.schedule.sample_grace),
                        _ => Duration::ZERO,
                    };
                    self.push(now + wait, Stimulus::Ranged(i));
                }
                SlaveEvent::Order(_) => {
                    let node = self.units[i].link.node();
                    let found = self.ordered.iter().position(|(n, _)| Some(*n) == node);
                    let since = found.map(|k| self.ordered.remove(k).1);
                    self.see(Kind::Order, since);
                }
                SlaveEvent::Datagram => {
                    let _ = self.units[i].link.datagram();
                }
                _ => {}
            }
        }
        if self.mode == Mode::Chaos && self.noise.uniform() < 0.002
            || self.saturate && i.is_multiple_of(7)
        {
            let unit = &mut self.units[i];
            if let Some((_, to_master)) = self.datagrams.get(i) {
                let _ = unit.link.send_datagram(to_master);
            }
        }
        let unit = &mut self.units[i];
        match &mut self.medium {
            Medium::Can(bus, _) => {
                for mailbox in Mailbox::ALL {
                    while bus.is_free(unit.port, mailbox)
                        && let Some(out) = unit.link.poll_can(now, mailbox)
                    {
                        let _ = bus.submit(now, unit.port, mailbox, &out.frame, 0);
                    }
                }
            }
            Medium::Serial(line) => {
                while let Some(out) = unit.link.poll_serial(now) {
                    let _ = line.transmit(unit.port, out.at.max(now), &out.what, 0);
                }
            }
        }
        unit.due = unit.link.poll_timeout().unwrap_or(Instant::MAX);
    }

    // Payloads.

    /// Bytes with the long runs that cause stuffing.
    fn runs(&mut self) -> u8 {
        const RUNS: [u8; 16] = [
            0x0f, 0xf0, 0x1e, 0xe1, 0x83, 0x3c, 0x78, 0x87, 0x07, 0xf8, 0x1f, 0xe0, 0x00, 0xff,
            0xc3, 0x7c,
        ];
        RUNS[self.pick(RUNS.len())]
    }

    fn time_of(&self, frame: Option<CanFrame>) -> Duration {
        match (&self.medium, frame) {
            (Medium::Can(_, timing), Some(frame)) => timing.frame_time(&frame),
            _ => Duration::ZERO,
        }
    }

    /// Bytes for which `time` is long: from random ones every change that does not shorten it, and
    /// from other ones again, as the check makes many peaks.
    fn climb(
        &mut self,
        bytes: usize,
        tries: usize,
        time: impl Fn(&Self, &[u8]) -> Duration,
    ) -> Vec<u8> {
        let mut best = (Duration::ZERO, vec![0; bytes]);
        let mut here = best.clone();
        let mut next = best.1.clone();
        for attempt in 0..tries {
            match u8::try_from(attempt) {
                // The same byte throughout is often best where there are many.
                Ok(repeated) if bytes > 16 => next.fill(repeated),
                _ if attempt % CLIMB == 0 => {
                    here.0 = Duration::ZERO;
                    next.iter_mut().for_each(|b| *b = self.runs());
                }
                _ => {
                    next.copy_from_slice(&here.1);
                    let at = self.pick(bytes);
                    next[at] = match attempt % 4 {
                        0 => self.runs(),
                        1 => self.noise.bits() as u8,
                        _ => next[at] ^ 1 << self.pick(8),
                    };
                    if attempt % 4 == 3 {
                        let other = self.pick(bytes);
                        next[other] ^= 1 << self.pick(8);
                    }
                }
            }
            let took = time(self, &next);
            if took >= here.0 {
                here = (took, next.clone());
            }
            if here.0 >= best.0 {
                best.clone_from(&here);
            }
        }
        best.1
    }

    fn alarm_of(&mut self, i: usize) -> Alarm {
        let of = |b: &[u8]| Alarm {
            code: b[0],
            severity: Severity::Trip,
            active: b[1] & 1 == 1,
            index: b[1] >> 1 & 31,
            value: i16::from_le_bytes([b[2], b[3]]),
        };
        let (true, Some(node)) = (self.stuff, self.units[i].link.node()) else {
            return of(&self.noise.bits().to_le_bytes());
        };
        let counter = self.units[i].counters[0].wrapping_add(1) & 0xf;
        let fd = self.schedule.kind == BusKind::CanFd;
        of(&self.climb(4, self.tries, |rig, bytes| {
            rig.time_of(encode_can(&Message::Alarm(node, of(bytes)), counter, fd))
        }))
    }

    fn state(&mut self, i: usize) -> State {
        let (true, Some(node)) = (self.stuff, self.units[i].link.node()) else {
            return state_of(&self.noise.bits().to_le_bytes());
        };
        let fd = self.schedule.kind == BusKind::CanFd;
        let counter = self.units[i].counters[1].wrapping_add(1);
        let counter = if fd { counter } else { counter & 0xf };
        let bytes = if fd { 44 } else { 7 };
        state_of(&self.climb(bytes, self.tries, |rig, bytes| {
            let state = state_of(bytes);
            let message = match fd {
                true => Message::State(node, state),
                false => Message::Summary(node, state.summary),
            };
            rig.time_of(encode_can(&message, counter, fd))
        }))
    }

    fn ranges(&mut self, i: usize) -> Ranges {
        let anchors = usize::from(self.units[i].link.capabilities().anchors);
        let mut range = [None; MAX_ANCHORS];
        for place in range.iter_mut().take(anchors) {
            *place = Some(Millimetres((self.noise.bits() & 0x7fff) as i32));
        }
        Ranges {
            tag: TagId(1),
            range,
        }
    }

    /// For each seat a datagram each way; those of the first seat stuff much in every segment.
    fn stuffed_datagrams(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let fd = self.schedule.kind == BusKind::CanFd;
        let room = if fd { 63 } else { 7 };
        let plain = vec![0x0f; 1_200];
        let mut all = vec![(plain.clone(), plain); self.units.len()];
        if let (true, Some(first), Some(node)) = (
            self.is_can(),
            all.first_mut(),
            self.units.first().and_then(|unit| unit.link.node()),
        ) {
            for (datagram, to_master) in [(&mut first.0, false), (&mut first.1, true)] {
                let id = management_id(node, to_master);
                // What the first frame takes; then a whole number of segments.
                datagram.truncate(room - 1);
                for sequence in 1..=15 {
                    let segment = self.climb(room, self.tries, |rig, body| {
                        let mut data = vec![0x20 | sequence];
                        data.extend(body);
                        rig.time_of(CanFrame::new(id, fd, &data))
                    });
                    datagram.extend(segment);
                }
            }
        }
        all
    }
}

/// A state whose bits on the wire are these bytes, as far as a state can have them.
fn state_of(bytes: &[u8]) -> State {
    let (mut held, mut bits) = (0u64, 0u32);
    let mut rest = bytes.iter().cycle();
    let mut take = |count: u32| {
        while bits < count {
            held |= u64::from(rest.next().copied().unwrap_or(0)) << bits;
            bits += 8;
        }
        let value = held & ((1 << count) - 1);
        held >>= count;
        bits -= count;
        value as u32
    };
    let mut state = State::default();
    // The payload begins with these; a state of 5 to 7 does not exist.
    let life = [
        SlaveState::Init,
        SlaveState::Standby,
        SlaveState::Active,
        SlaveState::Tripped,
        SlaveState::Isolated,
    ];
    let cell = |raw: u32| (raw != 0x1fff).then_some(Millivolts(raw as u16));
    state.summary = Summary {
        state: life[(take(3) as usize).min(4)],
        severity: match take(2) {
            0 => Severity::None,
            1 => Severity::Warn,
            2 => Severity::Derate,
            _ => Severity::Trip,
        },
        gate_on: take(1) == 1,
        balancing: take(2) & 1 == 1,
        current: {
            let raw = (take(18) << 14) as i32 >> 14;
            (raw != -0x2_0000).then_some(Milliamps(raw * 10))
        },
        min: cell(take(13)),
        max: cell(take(13)),
    };
    state.cells.0.iter_mut().for_each(|c| *c = cell(take(13)));
    for t in &mut state.temps.0 {
        let raw = take(8);
        *t = (raw != 0xff).then_some(DeciCelsius(raw as i16 * 10 - 600));
    }
    state
}
