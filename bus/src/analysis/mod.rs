//! How late each message can be, and whether a rack fits its bus: the same arithmetic for the
//! master, which refuses a slave too many, for `helio analyse bus` and for the simulator, which
//! compares it with what it saw.
//!
//! [`Analysis::new`] takes the schedule, who is on the bus and what is assumed of the world;
//! [`Analysis::bounds`] has a bound per kind of message, [`Analysis::fits`] the verdict.
//!
//! ```text
//! CAN    SYNC |<- jitter ->| queued, waits for one frame under way and all more urgent ones, sent |
//!        event                                                                         response ---'
//! RS485  beacon | every place is fixed by it: the response is the end of the slot
//! ```
//!
//! On CAN what comes at SYNC (summary, detail, state) is looked at apart from the ranges, which
//! come half a cycle later and are less urgent. On CAN 2.0 a snapshot is looked at with them: all details of one
//! cycle, and what comes until the second SYNC after it.

pub mod can;
mod serial;

use crate::Schedule;
use crate::e2e::DataId;
use crate::join;
use crate::master::{ORDER_BURST, prompt_burst};
use crate::message::{BusKind, CanFrame, CanId, Capabilities, MAX_ANCHORS};
use crate::schedule::SNAPSHOT;
use crate::slave::ALARM_BURST;
use crate::wire::class;
use can::{CanErrors, Shape, Stream, Wire, load_ppm, longest, worst_response};
use core::fmt;
use helio_units::{Duration, NodeId, Uid};
pub(crate) use serial::JOINS;

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From the trip of a slave until the master hears of a trip.
    Trip,
    /// On CAN: all slaves trip and no two of their frames merge; until the last one is out.
    EveryTrip,
    /// From the alarm of a slave until the master has it, with its reason.
    Alarm,
    /// From the start of a cycle until the slaves have SYNC.
    Sync,
    /// From an order of the master until the slave has it.
    Order,
    /// From SYNC until the master has the summary.
    Summary,
    /// From SYNC until the master has this cycle's chunk of cells or temperatures.
    Detail,
    /// From the SYNC of a snapshot until the master has all cells and temperatures of it.
    Snapshot,
    /// From the instant of ranging until the master has the last range.
    Ranges,
    /// From SYNC until the master has summary, cells and temperatures.
    State,
}

impl Kind {
    /// As commands write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trip => "trip",
            Self::EveryTrip => "every-trip",
            Self::Alarm => "alarm",
            Self::Sync => "sync",
            Self::Order => "order",
            Self::Summary => "summary",
            Self::Detail => "detail",
            Self::Snapshot => "snapshot",
            Self::Ranges => "ranges",
            Self::State => "state",
        }
    }
}

/// A bound and what it must not exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Of what.
    pub kind: Kind,
    /// Messages of this kind that can come together.
    pub count: u32,
    /// From the event until receivers have the message; none when the bus is overloaded.
    pub response: Option<Duration>,
    /// Later is too late: for alarms by promise, for what is said every cycle because its successor
    /// would come; none for what no other message depends on.
    pub deadline: Option<Duration>,
}

impl Bound {
    /// Whether it is in time.
    pub fn holds(&self) -> bool {
        match (self.response, self.deadline) {
            (Some(response), Some(deadline)) => response <= deadline,
            (response, None) => response.is_some(),
            (None, _) => false,
        }
    }
}

/// The message that breaks the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overfull(pub Bound);

impl fmt::Display for Overfull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(Bound {
            kind,
            count,
            response,
            deadline,
        }) = self;
        write!(f, "{} ({count} of them) would ", kind.name())?;
        match response {
            Some(response) => write!(f, "take {} us", response.as_micros())?,
            None => f.write_str("have no bound")?,
        }
        match deadline {
            Some(deadline) => write!(f, ", and {} us is the most", deadline.as_micros()),
            None => Ok(()),
        }
    }
}

/// What is assumed of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assumptions {
    /// Slaves that raise an alarm at once; each its next one not before the next cycle.
    pub alarms: u16,
    /// Trip frames that come in one cycle, together: 1 when all that trip at once merge.
    pub trips: u16,
    /// Orders that the master gives at once, in each cycle; `u16::MAX`: as many as its budget lets it.
    pub orders: u16,
    /// Devices that are switched on in one cycle and claim a seat; the first two (CAN FD: one) get it promptly.
    pub plugs: u16,
    /// Slaves whose application asks for endless messages: their transmit budget is spent.
    pub babblers: u16,
    /// From SYNC until a slave has measured, at most.
    pub sampling: Duration,
    /// From the end of a frame until the next one is in the mailbox, at most. Below three bits no
    /// arbitration is missed.
    pub refill: Duration,
    /// Frames destroyed.
    pub errors: CanErrors,
    /// The slaves have the lowest seats, in order; else any, which costs some bits of stuffing.
    pub lowest_seats: bool,
}

impl Assumptions {
    /// A few alarms, trips that merge, nobody babbles, no errors, hardware that refills mailboxes
    /// by itself. What is said every cycle must be in time then.
    pub const fn calm(schedule: &Schedule) -> Self {
        Self {
            alarms: CALM_ALARMS,
            trips: 1,
            orders: ORDER_BURST,
            plugs: prompt_burst(schedule.kind),
            babblers: 0,
            sampling: schedule.sample_grace,
            refill: Duration::ZERO,
            errors: CanErrors::NONE,
            lowest_seats: true,
        }
    }

    /// As [`Self::calm`], but every slave trips and raises an alarm at once. What is urgent must be
    /// in time even then.
    pub const fn storm(schedule: &Schedule) -> Self {
        Self {
            alarms: u16::MAX,
            orders: u16::MAX,
            ..Self::calm(schedule)
        }
    }
}

/// Slaves that raise an alarm in the same cycle while all is otherwise calm.
pub const CALM_ALARMS: u16 = 4;

/// Promise on CAN: the master hears of a trip within this.
pub const TRIP_DEADLINE: Duration = Duration::from_micros(500);
/// Promise on CAN: when every slave raises one alarm at once, the master has all of them, with
/// their reasons, within this.
pub const ALARM_DEADLINE: Duration = Duration::from_millis(10);
/// Kinds that one bus has at most.
const KINDS: usize = 10;
/// Bits that receivers have a frame before the end of intermission: one of EOF and three.
const AHEAD: u64 = 4;
/// Bits of intermission, in which a mailbox can be filled without missing the next arbitration.
const INTERMISSION: u64 = 3;
/// Cycles after which a busy period counts as endless.
const HORIZON: u64 = 16;

/// Nominal and data-phase bit time; `None` for RS485.
pub const fn bit_times(kind: BusKind) -> Option<(Duration, Duration)> {
    let ns = Duration::from_nanos;
    match kind {
        BusKind::Can500k => Some((ns(2_000), ns(2_000))),
        BusKind::Can1M => Some((ns(1_000), ns(1_000))),
        BusKind::CanFd => Some((ns(1_000), ns(200))),
        BusKind::Rs485At1M | BusKind::Rs485At4M | BusKind::Rs485At115k => None,
    }
}

/// Identifier of management frames, for who has to know how long they can be.
pub fn management_id(node: NodeId, to_master: bool) -> CanId {
    join::management_id(node, to_master)
}

/// What a device says that is switched on and gets this seat promptly, and the answer to it.
pub fn prompt_frames(node: NodeId, uid: Uid, c: Capabilities) -> [Option<CanFrame>; 3] {
    let description = join::Description {
        version: join::PROTOCOL_VERSION,
        capabilities: c,
    };
    [
        join::claim(uid, 0),
        join::assign(node, uid, 0, true),
        join::confirm(node, uid, description, true),
    ]
}

/// Bounds of one bus.
#[derive(Clone, Debug)]
pub struct Analysis {
    bounds: heapless::Vec<Bound, KINDS>,
    load_ppm: u32,
}

impl Analysis {
    /// Looks at a bus with these slaves, in the order of their seats.
    pub fn new(
        schedule: &Schedule,
        slaves: impl Iterator<Item = Capabilities> + Clone,
        assumptions: &Assumptions,
    ) -> Self {
        match bit_times(schedule.kind) {
            Some(_) => {
                let lengths = Lengths::of(schedule.kind);
                CanModel::new(schedule, assumptions, &lengths, slaves).analyse()
            }
            None => serial::analyse(schedule, slaves),
        }
    }

    /// Most urgent first.
    pub fn bounds(&self) -> &[Bound] {
        &self.bounds
    }

    /// The bound of this kind; none when there is no such message.
    pub fn bound(&self, kind: Kind) -> Option<&Bound> {
        self.bounds.iter().find(|b| b.kind == kind)
    }

    /// Share of the bus that cyclic messages take, parts per million.
    pub fn load_ppm(&self) -> u32 {
        self.load_ppm
    }

    /// Whether every message is in time; else the most urgent one that is not.
    pub fn fits(&self) -> Result<(), Overfull> {
        match self.bounds.iter().find(|b| !b.holds()) {
            Some(bound) => Err(Overfull(*bound)),
            None => Ok(()),
        }
    }
}

/// Whether these slaves fit, on whatever seats: when all is calm every message is in time, and in a
/// storm of alarms trips, alarms and SYNC are. Else the message that is not.
pub fn fits(
    schedule: &Schedule,
    slaves: impl Iterator<Item = Capabilities>,
) -> Result<(), Overfull> {
    let census = slaves.fold(Census::default(), Census::with);
    Admission::new(schedule).judge(schedule, census)
}

/// What a master asks before it takes one slave more. What does not depend on who is there is
/// computed at the start.
// At most one: an `Option` may say `None` by something else than zeros, and a master at rest is all zeros.
#[derive(Clone, Debug)]
pub struct Admission(heapless::Vec<Lengths, 1>);

impl Admission {
    /// Of no bus.
    pub(crate) const NONE: Self = Self(heapless::Vec::new());

    /// For one bus; takes as long as some thirty verdicts.
    pub fn new(schedule: &Schedule) -> Self {
        let lengths = schedule.can().then(|| Lengths::of(schedule.kind));
        Self(lengths.into_iter().collect())
    }

    /// Whether these slaves fit the bus, on whatever seats; else the message that breaks the schedule.
    pub fn judge(&self, schedule: &Schedule, census: Census) -> Result<(), Overfull> {
        let Some(lengths) = self.0.first() else {
            return serial::judge(schedule, census);
        };
        let analyse = |assumed: Assumptions| {
            let assumed = Assumptions {
                lowest_seats: false,
                ..assumed
            };
            CanModel::anywhere(schedule, &assumed, lengths, census).analyse()
        };
        let urgent = [Kind::Trip, Kind::Alarm, Kind::Sync];
        let late = |b: &&Bound| urgent.contains(&b.kind) && !b.holds();
        let storm = analyse(Assumptions::storm(schedule));
        match storm.bounds().iter().find(late) {
            Some(bound) => Err(Overfull(*bound)),
            None => analyse(Assumptions::calm(schedule)).fits(),
        }
    }
}

/// Who is on the bus, as far as it matters where seats do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    slaves: u32,
    /// With cells or temperatures.
    detailed: u32,
    /// Frames of a snapshot on CAN 2.0.
    details: u32,
    most_details: u32,
    /// Frames of ranges per cycle on CAN 2.0, and slaves that send them.
    pairs: u32,
    ranging: u32,
    /// Those whose ranges fill more than a short frame.
    many: u32,
    most_pairs: u32,
}

impl Census {
    /// One slave more.
    #[must_use]
    pub fn with(mut self, c: Capabilities) -> Self {
        let pairs = pairs(c);
        self.slaves += 1;
        self.detailed += u32::from(c.details() > 0);
        self.details += u32::from(c.details());
        self.most_details = self.most_details.max(c.details().into());
        self.pairs += pairs;
        self.ranging += u32::from(pairs > 0);
        self.many += u32::from(pairs > 2);
        self.most_pairs = self.most_pairs.max(pairs);
        self
    }
}

fn pairs(c: Capabilities) -> u32 {
    u32::from(c.anchors.min(MAX_ANCHORS as u8)).div_ceil(2)
}

/// Lengths of the frames of one kind.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    longest: Duration,
    least: Duration,
    total: Duration,
}

impl Sizes {
    const NONE: Self = Self {
        longest: Duration::ZERO,
        least: Duration::from_nanos(u64::MAX),
        total: Duration::ZERO,
    };

    fn add(&mut self, length: Duration, count: u32) {
        if count > 0 {
            self.longest = self.longest.max(length);
            self.least = self.least.min(length);
            self.total = self.total + length * count.into();
        }
    }

    /// All of so many but the one where that is shortest.
    fn others(&self, count: u32) -> Duration {
        let some = self.longest * u64::from(count.saturating_sub(1));
        let all = self.total.as_nanos().saturating_sub(self.least.as_nanos());
        some.min(Duration::from_nanos(all))
    }
}

/// Kinds of frames whose length depends on the seat.
const SEATED: [u8; 6] = [
    class::ALARM,
    class::SUMMARY,
    class::TEMPS,
    class::RANGES,
    class::STATE,
    class::ALL_RANGES,
];

/// How many frames of those kinds there are.
fn counts(census: Census) -> [u32; SEATED.len()] {
    let Census {
        slaves,
        detailed,
        pairs,
        ranging,
        ..
    } = census;
    [slaves, slaves, detailed, pairs, slaves, ranging]
}

/// The longest frames of a bus, from whatever seat.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    bit: Duration,
    fast: Duration,
    fd: bool,
    /// By class.
    any: [Duration; class::ALL_RANGES as usize + 1],
    /// Ranges on CAN FD that go in a short frame.
    few: Duration,
    /// Prompt claim, assignment, confirmation.
    prompt: [Duration; 3],
    /// Less urgent than everything cyclic.
    background: Duration,
}

impl Lengths {
    /// Of a CAN bus; nothing has a length on RS485.
    fn of(kind: BusKind) -> Self {
        let (bit, fast) = bit_times(kind).unwrap_or_default();
        let fd = kind == BusKind::CanFd;
        let mut lengths = Self {
            bit,
            fast,
            fd,
            any: [Duration::ZERO; class::ALL_RANGES as usize + 1],
            few: Duration::ZERO,
            prompt: [Duration::ZERO; 3],
            background: Duration::ZERO,
        };
        for class in 0..=class::ALL_RANGES {
            let said = lengths.says(class);
            let length = said.then(|| lengths.length(class, None, false));
            if let Some(any) = lengths.any.get_mut(usize::from(class)) {
                *any = length.unwrap_or_default();
            }
        }
        lengths.few = lengths.length(class::ALL_RANGES, None, true);
        let extended = |(id, free_id), fd, bytes| {
            let shape = Shape {
                free_id,
                ..Shape::any(CanId::Extended(id), fd, bytes)
            };
            longest(&shape, bit, fast).unwrap_or(Duration::ZERO)
        };
        let [claim, assign, confirm] = join::PROMPT_IDS;
        lengths.prompt =
            [(claim, 6), (assign, 8), (confirm, 6)].map(|(id, bytes)| extended(id, false, bytes));
        // Joining is always classic; management fills a frame of the bus's format.
        let first = (join::FIRST_EXTENDED, 25);
        lengths.background = match fd {
            true => extended(first, false, 8).max(extended(first, true, 64)),
            false => extended(first, false, 8),
        };
        lengths
    }

    /// Whether there are frames of this class on a bus of this format.
    fn says(&self, of: u8) -> bool {
        match of {
            class::STATE | class::ALL_RANGES => self.fd,
            class::TRIP | class::ALARM | class::SYNC | class::COMMAND => true,
            _ => !self.fd,
        }
    }

    fn any(&self, of: u8, few: bool) -> Duration {
        match of {
            class::ALL_RANGES if few => self.few,
            _ => self.any.get(usize::from(of)).copied().unwrap_or_default(),
        }
    }

    /// Longest frame of a class from, or to, this seat; from any when there is none.
    fn length(&self, of: u8, node: Option<NodeId>, few: bool) -> Duration {
        let fd = self.fd;
        let seat = node.map_or(0, NodeId::get);
        let node_free = |class| Shape {
            free_id: if node.is_some() { 0 } else { 7 },
            ..Shape::any(CanId::Standard(DataId::new(class, seat).0), fd, 8)
        };
        // Check and counter, then as many payload bits as docs/bus.md has for the class.
        let shape = match of {
            class::TRIP => Shape::any(CanId::Standard(0), false, 0),
            class::SYNC => Shape::any(CanId::Standard(DataId::new(of, 0).0), fd, 8),
            class::ALARM => Shape {
                used: 12 + 32,
                ..node_free(of)
            },
            class::COMMAND => Shape {
                used: 12 + 36,
                ..node_free(of)
            },
            class::SUMMARY => Shape {
                spare: Some(12 + 7),
                ..node_free(of)
            },
            class::STATE => Shape {
                bytes: 48,
                used: 24 + 350,
                spare: Some(24 + 7),
                ..node_free(of)
            },
            // Its slaves have no more anchors than the short frame holds, or it is not short.
            class::ALL_RANGES => Shape {
                bytes: if few { 16 } else { 48 },
                used: 24 + if few { 80 } else { 272 },
                ..node_free(of)
            },
            // Whichever chunk is in turn.
            class::TEMPS => {
                let each = class::CELLS..=class::TEMPS;
                let lengths = each.map(|c| longest(&node_free(c), self.bit, self.fast));
                return lengths.flatten().max().unwrap_or(Duration::ZERO);
            }
            _ => node_free(of),
        };
        longest(&shape, self.bit, self.fast).unwrap_or(Duration::ZERO)
    }
}

/// The streams of CAN, ready for [`worst_response`].
struct CanModel<'a> {
    schedule: &'a Schedule,
    assumed: &'a Assumptions,
    lengths: &'a Lengths,
    census: Census,
    sizes: [Sizes; SEATED.len()],
    /// Of the details of a snapshot.
    snapshot: Sizes,
    wire: Wire,
}

/// Keys of the streams: the order of urgency. What a babbler says more than others stands first in
/// its class; SYNC stands behind the orders because it can wait for one in the same mailbox.
mod key {
    pub const TRIP: u32 = 0;
    pub const BABBLED_ALARM: u32 = 1;
    pub const ALARM: u32 = 2;
    pub const PROMPT: u32 = 3;
    pub const QUARANTINE: u32 = 4;
    pub const ORDER: u32 = 5;
    pub const SYNC: u32 = 6;
    pub const BABBLED_SUMMARY: u32 = 7;
    pub const SUMMARY: u32 = 8;
    pub const DETAIL: u32 = 9;
    pub const RANGES: u32 = 10;
    pub const BABBLED_STATE: u32 = 11;
    pub const STATE: u32 = 12;
    pub const ALL_RANGES: u32 = 13;
}

type Streams = heapless::Vec<Stream, 16>;

impl<'a> CanModel<'a> {
    /// Slaves on the lowest seats, in order, or on whatever seats, as it is assumed.
    fn new(
        schedule: &'a Schedule,
        assumed: &'a Assumptions,
        lengths: &'a Lengths,
        slaves: impl Iterator<Item = Capabilities> + Clone,
    ) -> Self {
        let census = slaves.clone().fold(Census::default(), Census::with);
        let mut model = Self::anywhere(schedule, assumed, lengths, census);
        if !assumed.lowest_seats {
            return model;
        }
        model.sizes = [Sizes::NONE; SEATED.len()];
        model.snapshot = Sizes::NONE;
        let nodes = (1..=NodeId::MAX.get()).filter_map(NodeId::new);
        for (node, c) in nodes.zip(slaves) {
            let counts = counts(Census::default().with(c));
            for ((class, count), sizes) in SEATED.iter().zip(counts).zip(&mut model.sizes) {
                // On one format or the other.
                if count > 0 && lengths.says(*class) {
                    let few = census.many == 0;
                    let length = lengths.length(*class, Some(node), few);
                    sizes.add(length, count);
                    if *class == class::TEMPS {
                        model.snapshot.add(length, c.details().into());
                    }
                }
            }
        }
        model
    }

    fn anywhere(
        schedule: &'a Schedule,
        assumed: &'a Assumptions,
        lengths: &'a Lengths,
        census: Census,
    ) -> Self {
        let mut sizes = [Sizes::NONE; SEATED.len()];
        for ((class, count), sizes) in SEATED.iter().zip(counts(census)).zip(&mut sizes) {
            if lengths.says(*class) {
                sizes.add(lengths.any(*class, census.many == 0), count);
            }
        }
        let mut snapshot = Sizes::NONE;
        snapshot.add(lengths.any(class::TEMPS, false), census.details);
        Self {
            schedule,
            assumed,
            lengths,
            census,
            sizes,
            snapshot,
            wire: Wire {
                bit: lengths.bit,
                background: lengths.background,
                errors: assumed.errors,
                horizon: schedule.cycle * HORIZON,
            },
        }
    }

    fn sizes(&self, of: u8) -> Sizes {
        if of == class::JOIN {
            let plugs = u32::from(self.assumed.plugs);
            let answers = plugs.min(prompt_burst(self.schedule.kind).into());
            let [claim, assign, confirm] = self.lengths.prompt;
            let mut sizes = Sizes::NONE;
            sizes.add(claim, plugs);
            sizes.add(assign, answers);
            sizes.add(confirm, answers);
            // Nobody waits for them as one of them.
            sizes.least = sizes.longest;
            return sizes;
        }
        let found = SEATED.iter().position(|class| *class == of);
        match found.and_then(|i| self.sizes.get(i)) {
            Some(sizes) => *sizes,
            None => Sizes {
                longest: self.lengths.any(of, false),
                least: Duration::ZERO,
                total: Duration::from_nanos(u64::MAX),
            },
        }
    }

    /// All that is sent around SYNC (`at_sync`) or around the ranges (`at_ranges`), when SYNC comes
    /// up to `drift` after its beat.
    fn streams(&self, drift: Duration, at_sync: bool, at_ranges: bool) -> Streams {
        self.streams_of(drift, at_sync, at_ranges, false)
    }

    /// The same with every detail at once (`snapshot`), or with one of each slave.
    fn streams_of(
        &self,
        drift: Duration,
        at_sync: bool,
        at_ranges: bool,
        snapshot: bool,
    ) -> Streams {
        let Self {
            schedule, assumed, ..
        } = *self;
        let cycle = schedule.cycle;
        let part = |n: u64| Duration::from_nanos(cycle.as_nanos() / n);
        let n = self.census.slaves;
        let bit = self.lengths.bit;
        let slow = assumed.refill.as_nanos() > bit.as_nanos() * INTERMISSION;
        let mut all = Streams::new();
        let mut add = |key, count: u32, class, period, jitter: Duration, early, behind: u32| {
            let behind = if slow { behind } else { 0 };
            let sizes = match key {
                key::DETAIL if snapshot => self.snapshot,
                _ => self.sizes(class),
            };
            let stream = Stream {
                key,
                count,
                length: sizes.longest,
                others: sizes.others(count),
                period,
                jitter: jitter + assumed.refill * behind.into() + bit,
                early,
                missed: behind,
            };
            if count > 0 {
                let _ = all.push(stream);
            }
        };
        let zero = Duration::ZERO;
        let babblers = u32::from(assumed.babblers).min(n);
        let trips = u32::from(assumed.trips).clamp(1, n.max(1));
        add(key::TRIP, trips, class::TRIP, cycle, zero, zero, 0);
        // The whole budget of a babbler, less what every slave is granted below.
        let granted = if u32::from(assumed.alarms) >= n { 2 } else { 1 };
        let spent = part(4) * u64::from(ALARM_BURST.saturating_sub(granted));
        add(
            key::BABBLED_ALARM,
            babblers,
            class::ALARM,
            part(4),
            zero,
            spent,
            0,
        );
        // Behind the trip in one mailbox.
        let alarms = u32::from(assumed.alarms).min(n);
        add(key::ALARM, alarms, class::ALARM, cycle, zero, zero, 1);
        // Claims, prompt assignments and their confirmations, or members that are asked for a sign of
        // life. One after the other, so the last of them may come together with those of the next cycle.
        let plugs = u32::from(assumed.plugs);
        let answers = plugs.min(prompt_burst(self.schedule.kind).into());
        let frames = plugs + 2 * answers;
        add(key::PROMPT, frames, class::JOIN, cycle, zero, part(4), 0);
        // A babbler is told once a millisecond.
        let told = Duration::from_millis(1);
        add(
            key::QUARANTINE,
            babblers,
            class::COMMAND,
            told,
            zero,
            zero,
            0,
        );
        // The budget: two at once, then one per eighth of a cycle.
        match assumed.orders {
            u16::MAX => {
                let early = part(8) * u64::from(ORDER_BURST - 1);
                add(key::ORDER, 1, class::COMMAND, part(8), zero, early, 1);
            }
            orders => add(
                key::ORDER,
                orders.into(),
                class::COMMAND,
                cycle,
                zero,
                zero,
                1,
            ),
        }
        add(key::SYNC, 1, class::SYNC, cycle, zero, zero, 2);
        // Just above the schedule: one message more per cycle, two more at once.
        let sampling = assumed.sampling;
        let (fd, pairs) = (schedule.fd(), u64::from(self.census.most_pairs));
        let share = part(if fd { 3 } else { 3 + pairs });
        let burst = share * if fd { 3 } else { 3 + pairs };
        let detailed = self.census.detailed;
        if fd {
            add(
                key::BABBLED_STATE,
                babblers,
                class::STATE,
                share,
                zero,
                burst,
                0,
            );
        } else {
            add(
                key::BABBLED_SUMMARY,
                babblers,
                class::SUMMARY,
                share,
                zero,
                burst,
                0,
            );
        }
        match (at_sync, fd) {
            // Behind a prompt confirmation in one mailbox.
            (true, true) => add(key::STATE, n, class::STATE, cycle, sampling, drift, 1),
            (true, false) => {
                add(key::SUMMARY, n, class::SUMMARY, cycle, sampling, drift, 1);
                let (count, period, behind) = match snapshot {
                    true => {
                        let census = self.census;
                        (census.details, cycle * SNAPSHOT.into(), census.most_details)
                    }
                    false => (detailed, cycle, 2),
                };
                add(
                    key::DETAIL,
                    count,
                    class::TEMPS,
                    period,
                    sampling,
                    drift,
                    behind,
                );
            }
            (false, _) => {}
        }
        let (ranging, most) = (self.census.ranging, self.census.most_pairs);
        match (at_ranges, fd) {
            (true, true) => add(
                key::ALL_RANGES,
                ranging,
                class::ALL_RANGES,
                cycle,
                sampling,
                drift,
                1,
            ),
            (true, false) => {
                add(
                    key::RANGES,
                    self.census.pairs,
                    class::RANGES,
                    cycle,
                    sampling,
                    drift,
                    most,
                );
            }
            (false, _) => {}
        }
        all
    }

    fn analyse(&self) -> Analysis {
        let cycle = self.schedule.cycle;
        let (drift, load_ppm) = self.drift();
        let until_next = |from: Duration| until_next(cycle, from, drift);
        let beat = until_next(Duration::ZERO);
        let phase = self.schedule.ranges_phase;
        let mut bounds = heapless::Vec::new();
        let mut add = |kind, count: u32, response, deadline| {
            if count > 0 {
                let _ = bounds.push(Bound {
                    kind,
                    count,
                    response,
                    deadline,
                });
            }
        };
        let n = self.census.slaves;
        let alarms = u32::from(self.assumed.alarms).min(n);
        let [any, every, alarm, sync] = self.urgent(drift);
        if n > 0 {
            add(Kind::Trip, 1, any, Some(TRIP_DEADLINE));
            add(Kind::EveryTrip, n, every, None);
        }
        add(Kind::Alarm, alarms, alarm, Some(ALARM_DEADLINE));
        add(Kind::Sync, 1, sync, Some(beat));
        add(Kind::Order, 2, sync, None);
        let ranging = Some(until_next(phase));
        let census = self.census;
        if self.schedule.fd() {
            let states = self.at_sync(drift, key::STATE);
            add(Kind::State, n, states, Some(beat));
            let ranges = self.ranges(drift, key::ALL_RANGES);
            add(Kind::Ranges, census.ranging, ranges, ranging);
        } else {
            let summaries = self.at_sync(drift, key::SUMMARY);
            add(Kind::Summary, n, summaries, Some(beat));
            let details = self.at_sync(drift, key::DETAIL);
            add(Kind::Detail, census.detailed, details, Some(beat));
            let mut ranges = self.ranges(drift, key::RANGES);
            if self.schedule.snapshots && census.details > 0 {
                let all = self.snapshot(drift, false, key::DETAIL);
                let end = self.snapshot_end(drift);
                add(Kind::Snapshot, census.details, all, Some(end));
                let after = self.snapshot(drift, true, key::RANGES).map(|out| {
                    let since = (cycle + phase).as_nanos();
                    Duration::from_nanos(out.as_nanos().saturating_sub(since))
                });
                ranges = ranges.zip(after).map(|(a, b)| a.max(b));
            }
            add(Kind::Ranges, census.pairs, ranges, ranging);
        }
        Analysis { bounds, load_ppm }
    }

    // Each of these has its own streams on the stack, and none of them while another one has.

    /// By what SYNC can be late, so that the next one is early; and the share of what is cyclic, ppm.
    #[inline(never)]
    fn drift(&self) -> (Duration, u32) {
        let cycle = self.schedule.cycle;
        let mut streams = self.streams(Duration::ZERO, true, true);
        let drift = self.response(&streams, key::SYNC).unwrap_or(cycle);
        streams.retain(|s| s.key >= key::SYNC && s.period == cycle);
        let load = u32::try_from(load_ppm(&streams)).unwrap_or(u32::MAX);
        (drift, load)
    }

    /// Any trip, the last of as many as there are slaves, alarms, SYNC.
    #[inline(never)]
    fn urgent(&self, drift: Duration) -> [Option<Duration>; 4] {
        let mut streams = self.streams(drift, true, true);
        let [alarm, sync] = [key::ALARM, key::SYNC].map(|key| self.response(&streams, key));
        let trips = [1, self.census.slaves].map(|n| self.trip_among(&mut streams, n));
        let [any, every] = trips;
        [any, every, alarm, sync]
    }

    /// What is over before the next SYNC meets everything cyclic once, and no SYNC.
    #[inline(never)]
    fn at_sync(&self, drift: Duration, key: u32) -> Option<Duration> {
        let cycle = self.schedule.cycle;
        let streams = |once: bool| {
            let streams = self.streams(drift, true, false);
            if once {
                only_once(streams, cycle)
            } else {
                streams
            }
        };
        let quick = self.response(&streams(true), key);
        quick
            .filter(|out| *out <= until_next(cycle, Duration::ZERO, drift))
            .or_else(|| self.response(&streams(false), key))
    }

    /// Ranges wait for what came at SYNC only if the bus was never free since then: all of it,
    /// and all ranges, as if they had come at SYNC too, bounds when the last of them is out.
    #[inline(never)]
    fn ranges(&self, drift: Duration, key: u32) -> Option<Duration> {
        let cycle = self.schedule.cycle;
        let phase = self.schedule.ranges_phase;
        let response = |at_sync: bool, once: bool| {
            let streams = self.streams(drift, at_sync, true);
            let streams = if once {
                only_once(streams, cycle)
            } else {
                streams
            };
            self.response(&streams, key)
        };
        let together = |once| {
            let out = response(true, once)?.as_nanos();
            let out = Duration::from_nanos(out.saturating_sub(phase.as_nanos()));
            Some(out.max(response(false, once)?))
        };
        together(true)
            .filter(|out| *out <= until_next(cycle, phase, drift))
            .or_else(|| together(false))
    }

    /// Its details may be under way until the second SYNC after its own. The next ranges come in the next
    /// cycle, and wait for what is left of it if the bus was never free since; they have to be out by then,
    /// too, so that they meet none of their kind.
    #[inline(never)]
    fn snapshot(&self, drift: Duration, at_ranges: bool, key: u32) -> Option<Duration> {
        let cycle = self.schedule.cycle;
        let mut streams = self.streams_of(drift, true, at_ranges, true);
        let ranges = streams.iter_mut().filter(|s| s.key == key::RANGES);
        ranges.for_each(|s| (s.period, s.early) = (cycle * SNAPSHOT.into(), Duration::ZERO));
        let out = self.response(&streams, key);
        out.filter(|out| *out <= self.snapshot_end(drift))
    }

    fn snapshot_end(&self, drift: Duration) -> Duration {
        let two = self.schedule.cycle * 2;
        Duration::from_nanos(two.as_nanos().saturating_sub(drift.as_nanos()))
    }

    /// Until the receivers have the frame.
    fn response(&self, streams: &Streams, key: u32) -> Option<Duration> {
        let of = streams.iter().find(|s| s.key == key)?;
        let whole = worst_response(streams, of, &self.wire).ok()?.as_nanos();
        let ahead = self.lengths.bit.as_nanos() * AHEAD;
        Some(Duration::from_nanos(whole.saturating_sub(ahead)))
    }

    /// The last of so many trip frames; of one, any that starts after the event.
    fn trip_among(&self, streams: &mut Streams, count: u32) -> Option<Duration> {
        let trips = streams.iter_mut().find(|s| s.key == key::TRIP)?;
        trips.count = count;
        trips.others = trips.length * u64::from(count.saturating_sub(1));
        self.response(streams, key::TRIP)
    }
}

/// From an instant in a cycle until the next SYNC, when that comes early by `drift`.
fn until_next(cycle: Duration, from: Duration, drift: Duration) -> Duration {
    let gone = from.as_nanos().saturating_add(drift.as_nanos());
    Duration::from_nanos(cycle.as_nanos().saturating_sub(gone))
}

/// Everything cyclic once, and no SYNC.
fn only_once(mut streams: Streams, cycle: Duration) -> Streams {
    streams.retain(|s| s.key != key::SYNC);
    for stream in streams
        .iter_mut()
        .filter(|s| s.period == cycle && s.key > key::SYNC)
    {
        stream.period = cycle * HORIZON;
        stream.early = Duration::ZERO;
    }
    streams
}

/// How many slaves with these capabilities (in turn) the bus takes; at most 127. On RS485 the beacon
/// has as many places as there are slaves.
pub fn most_slaves(schedule: &Schedule, kinds: &[Capabilities]) -> u8 {
    let fit = |n: u8| {
        let schedule = match schedule.can() {
            true => *schedule,
            false => Schedule {
                seats: n,
                ..*schedule
            },
        };
        let slaves = kinds.iter().copied().cycle().take(n.into());
        !kinds.is_empty() && fits(&schedule, slaves).is_ok()
    };
    // More slaves never make it fit: search by halves.
    let (mut low, mut high) = (0, NodeId::MAX.get());
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fit(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::println;
    use std::vec::Vec;

    const RACK: Capabilities = Capabilities {
        cells: 16,
        temps: 4,
        anchors: 1,
    };

    fn analysis(kind: BusKind, n: usize) -> Analysis {
        let schedule = Schedule::for_bus(kind);
        let slaves = core::iter::repeat_n(RACK, n);
        Analysis::new(&schedule, slaves, &Assumptions::calm(&schedule))
    }

    fn storm(kind: BusKind, n: usize) -> Analysis {
        let schedule = Schedule::for_bus(kind);
        let slaves = core::iter::repeat_n(RACK, n);
        Analysis::new(&schedule, slaves, &Assumptions::storm(&schedule))
    }

    fn show(a: &Analysis) {
        for b in a.bounds() {
            println!(
                "  {:<10} x{:<3} {:>6?} us, deadline {:?} us",
                b.kind.name(),
                b.count,
                b.response.map(|d| d.as_micros()),
                b.deadline.map(|d| d.as_micros()),
            );
        }
    }

    #[test]
    fn on_rs485_a_minislot_comes_in_time_for_a_trip_however_many_slaves_there_are() {
        for (kind, goal_us) in [
            (BusKind::Rs485At1M, 1_000),
            (BusKind::Rs485At4M, 1_000),
            (BusKind::Rs485At115k, 2_000),
        ] {
            let usual = Schedule::for_bus(kind);
            for (seats, count) in [(32, 0), (32, 1), (32, 32), (127, 1), (127, 127)] {
                let schedule = Schedule { seats, ..usual }
                    .with_cycle(usual.cycle * (1 + u64::from(seats) / 32));
                let slaves = core::iter::repeat_n(RACK, count);
                let a = Analysis::new(&schedule, slaves, &Assumptions::calm(&schedule));
                let trip = a.bound(Kind::Trip).and_then(|b| b.response);
                println!("{} {count} of {seats}: trip {trip:?}", kind.name());
                assert!(trip <= Some(Duration::from_micros(goal_us)));
            }
        }
    }

    #[test]
    fn the_rack_of_32_fits_every_bus_and_its_alarms_their_promise() {
        for kind in BusKind::ALL {
            let a = analysis(kind, 32);
            println!("{}: load {} ppm", kind.name(), a.load_ppm());
            show(&a);
            show(&storm(kind, 32));
            let schedule = Schedule::for_bus(kind);
            let slaves = core::iter::repeat_n(RACK, 32);
            assert_eq!(fits(&schedule, slaves), Ok(()), "{}", kind.name());
            let most = most_slaves(&Schedule::for_bus(kind), &[RACK]);
            println!("  at most {most} slaves");
            assert!(most >= 32);
        }
        // Without trips and orders the paper's formula gives 4.84, 2.19 and 9.49 ms for 32 alarms.
        let alarm = |kind| storm(kind, 32).bound(Kind::Alarm).and_then(|b| b.response);
        assert!(alarm(BusKind::Can1M) <= Some(Duration::from_micros(5_000)));
        assert!(alarm(BusKind::CanFd) <= Some(Duration::from_micros(2_500)));
        assert!(alarm(BusKind::Can500k) <= Some(Duration::from_micros(10_000)));
        // One babbler, whatever it sends, adds at most a tenth.
        for kind in [BusKind::Can500k, BusKind::Can1M] {
            let schedule = Schedule::for_bus(kind);
            let assumed = Assumptions {
                babblers: 1,
                ..Assumptions::storm(&schedule)
            };
            let a = Analysis::new(&schedule, core::iter::repeat_n(RACK, 32), &assumed);
            let babbled = a
                .bound(Kind::Alarm)
                .and_then(|b| b.response)
                .map(Duration::as_nanos);
            let alone = alarm(kind).map(Duration::as_nanos);
            assert!(
                babbled.zip(alone).is_some_and(|(b, c)| b * 10 <= c * 11),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn one_slave_more_than_the_most_is_refused_and_the_message_named() {
        for kind in BusKind::ALL {
            let schedule = Schedule::for_bus(kind);
            let most = most_slaves(&schedule, &[RACK]);
            let seats = |n| match schedule.can() {
                true => schedule,
                false => Schedule {
                    seats: n,
                    ..schedule
                },
            };
            if most == 127 {
                continue;
            }
            let all = |n: u8| core::iter::repeat_n(RACK, n.into());
            assert_eq!(fits(&seats(most), all(most)), Ok(()));
            let refused = fits(&seats(most + 1), all(most + 1));
            let Err(Overfull(bound)) = refused else {
                panic!("{kind:?} takes {}", most + 1);
            };
            println!("{}: {} slaves break {:?}", kind.name(), most + 1, bound);
            assert!(!bound.holds());
        }
    }

    /// The verdict is reckoned from how many there are, the analysis looks at each of them.
    fn judged_alike(schedule: &Schedule, slaves: &[Capabilities]) -> bool {
        let all = || slaves.iter().copied();
        let verdict = fits(schedule, all());
        let storm = Analysis::new(schedule, all(), &Assumptions::storm(schedule));
        let calm = Analysis::new(schedule, all(), &Assumptions::calm(schedule));
        let urgent = [Kind::Trip, Kind::Alarm, Kind::Sync];
        let mut urgent = storm.bounds().iter().filter(|b| urgent.contains(&b.kind));
        let whole = match urgent.find(|b| !b.holds()) {
            Some(bound) => Err(Overfull(*bound)),
            None => calm.fits(),
        };
        match schedule.can() {
            // On seats of which it is not known which they are, frames are longer by some bits.
            true => assert!(verdict.is_err() || whole.is_ok(), "{slaves:?}"),
            false => assert_eq!(verdict, whole, "{slaves:?}"),
        }
        let of = |kind| calm.bound(kind).map(|b| (b.count, b.deadline));
        if let Err(Overfull(bound)) = verdict
            && of(bound.kind).is_some()
        {
            assert!(!bound.holds());
            let storm = storm.bound(bound.kind).map(|b| b.count);
            assert!([of(bound.kind).map(|b| b.0), storm].contains(&Some(bound.count)));
        }
        verdict.is_ok()
    }

    proptest! {
        #[test]
        fn a_master_is_told_what_the_analysis_finds(
            bus in 0..BusKind::ALL.len(), hundredths in 20..130u64,
            slaves in proptest::collection::vec((0..19u8, 0..9u8, 0..17u8), 1..60),
        ) {
            let slave = |&(cells, temps, anchors)| Capabilities { cells, temps, anchors };
            let slaves: Vec<_> = slaves.iter().map(slave).collect();
            let schedule = Schedule::for_bus(BusKind::ALL[bus]);
            let schedule = schedule.with_cycle(crate::schedule::part(schedule.cycle, hundredths));
            let schedule = Schedule {
                seats: schedule.seats.max(slaves.len() as u8),
                ..schedule
            };
            // From nobody to one more than fit; nobody more makes it fit again.
            let fit = |n: usize| judged_alike(&schedule, &slaves[..n]);
            if let Some(most) = (0..=slaves.len()).find(|n| !fit(*n)) {
                prop_assert!(most > 0 && !fit(slaves.len()));
            }
        }
    }

    #[test]
    fn bounds_grow_with_slaves_babblers_and_errors() {
        for kind in [BusKind::Can500k, BusKind::Can1M, BusKind::CanFd] {
            let schedule = Schedule::for_bus(kind);
            let nominal = Assumptions::storm(&schedule);
            let of = |n, assumed: &Assumptions| -> Vec<_> {
                let a = Analysis::new(&schedule, core::iter::repeat_n(RACK, n), assumed);
                let bounds = a.bounds().iter();
                bounds
                    .map(|b| b.response.map_or(u64::MAX, Duration::as_nanos))
                    .collect()
            };
            let base = of(20, &nominal);
            let worse = [
                of(21, &nominal),
                of(
                    20,
                    &Assumptions {
                        babblers: 1,
                        ..nominal
                    },
                ),
                of(
                    20,
                    &Assumptions {
                        errors: CanErrors {
                            burst: 1,
                            interval: Duration::from_millis(10),
                        },
                        ..nominal
                    },
                ),
                of(
                    20,
                    &Assumptions {
                        refill: Duration::from_micros(20),
                        ..nominal
                    },
                ),
                of(
                    20,
                    &Assumptions {
                        trips: 20,
                        ..nominal
                    },
                ),
            ];
            for other in worse {
                assert_eq!(other.len(), base.len());
                assert!(base.iter().zip(&other).all(|(a, b)| a <= b));
                assert_ne!(base, other);
            }
        }
    }

    #[test]
    fn a_bus_of_nobody_fits() {
        for kind in BusKind::ALL {
            assert_eq!(analysis(kind, 0).fits(), Ok(()));
            assert_eq!(most_slaves(&Schedule::for_bus(kind), &[]), 0);
        }
    }
}
