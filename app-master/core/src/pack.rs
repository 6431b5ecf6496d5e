//! Aggregates slaves to strings and strings to a pack, and decides which gates may be on.
//!
//! A pack is a set of strings in parallel; a string is a row of seats in series. A string conducts
//! only when every seat in it is taken by a healthy slave whose cells are all known and whose values
//! are not old: one faulty segment opens its own string and leaves the others running. When nothing
//! conducts yet, the strings that match most others are the first.
//!
//! ```text
//!            member missing, tripped or quarantined
//! Connected ---------------------------------------> Open (isolated)
//!     ^                                                 |
//!     '--- every seat healthy again, voltage matched ---'
//! ```

use crate::keep::Kept;
use helio_battery::balance::{BalanceConfig, CellCharge, ChargeBalance, plan_by_charge};
use helio_battery::power::PowerLimits;
use helio_battery::{CellParams, Estimate, GroupFilter, HealthFilter, Modes, Moment, SocInit};
use helio_bus::{
    BusKind, Capabilities, Cells, MAX_CELLS, Order, Severity, SlaveState, Summary, Temperatures,
};
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts, NodeId, Uid};

use crate::contactor::ContactorState;
use crate::power::{PackPower, Series, parallel};

/// Life of a seat as the master sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeState {
    /// Nobody there.
    #[default]
    Absent,
    /// Joined, no complete measurement yet.
    Init,
    /// Measuring, gate off.
    Standby,
    /// Measuring, gate on.
    Active,
    /// Its protection holds the gate off.
    Tripped,
    /// Told to keep its gate off.
    Isolated,
    /// Silenced for sending too much.
    Quarantined,
}

/// The pack in one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackFigures {
    /// Overall state.
    pub state: PackState,
    /// Mean of the connected strings' voltages, mV; of all measured strings when none is connected.
    pub voltage_mv: u32,
    /// Sum of the strings' currents, discharge positive.
    pub current: Milliamps,
    /// Mean state of charge of all cells, parts per million.
    pub soc_ppm: Option<u32>,
    /// Lowest cell's.
    pub soc_min_ppm: Option<u32>,
    /// Highest cell's.
    pub soc_max_ppm: Option<u32>,
    /// Capacity as a share of the new one's, mean of the slaves of which it is known, parts per million.
    pub soh_ppm: Option<u32>,
    /// Smallest cell's.
    pub soh_min_ppm: Option<u32>,
    /// Lowest cell.
    pub cell_min: Option<Millivolts>,
    /// Highest cell.
    pub cell_max: Option<Millivolts>,
    /// Hottest sensor.
    pub temp_max: Option<DeciCelsius>,
    /// Slaves that have a seat.
    pub members: u8,
    /// Slaves that there should be.
    pub expected: u8,
    /// Strings whose gates are all on.
    pub strings_connected: u8,
    /// Share of the last second in which the bus was busy, parts per million.
    pub load_ppm: u32,
    /// Worst time from sample to value in the last second, microseconds.
    pub latency_max_us: u32,
    /// Where the main contactors stand, if the master has any.
    pub contactors: ContactorState,
    /// Voltage behind them, mV.
    pub link_mv: Option<u32>,
    /// What the pack can give and take for the next seconds; nothing while it is not connected.
    pub power: PackPower,
}

impl PackFigures {
    /// Of no pack.
    pub(crate) const NONE: Self = Self {
        state: PackState::Empty,
        voltage_mv: 0,
        current: Milliamps(0),
        soc_ppm: None,
        soc_min_ppm: None,
        soc_max_ppm: None,
        soh_ppm: None,
        soh_min_ppm: None,
        cell_min: None,
        cell_max: None,
        temp_max: None,
        members: 0,
        expected: 0,
        strings_connected: 0,
        load_ppm: 0,
        latency_max_us: 0,
        contactors: ContactorState::None,
        link_mv: None,
        power: PackPower::NONE,
    };
}

/// Overall state of a pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PackState {
    /// No slaves.
    #[default]
    Empty,
    /// Everybody here and healthy.
    Ready,
    /// Some string is open or some seat empty.
    Degraded,
    /// No string conducts because of a fault.
    Tripped,
    /// It rests; everything else is as it was when it fell asleep.
    Asleep,
}

/// Sigma of the lithium and of the active material that a device's cells have lost when it joins: it may be a new one or an old one.
const UNKNOWN_AGE: f32 = 0.08;

/// By so much a kept state of charge is less sure: it was kept some time before the reset, and nobody counted since.
const AWAY: f32 = 0.05;

/// What the voltages and the current of a device have told about its cells.
#[derive(Clone, Copy, Debug)]
struct Charge {
    cells: GroupFilter,
    /// Of the mean cell.
    health: HealthFilter,
    /// Capacity by `health`, which costs more to read than to learn; `None` until a rest has told something.
    capacity: Option<Estimate>,
}

impl Charge {
    const UNKNOWN: Self = Self {
        cells: GroupFilter::new(SocInit::Voltage),
        health: HealthFilter::since(Modes::NEW, UNKNOWN_AGE),
        capacity: None,
    };
}

/// State of health of a slave's cells, as shares of the new cell's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Health {
    /// Capacity of the mean cell.
    pub capacity: Estimate,
    /// Capacity of the smallest cell.
    pub least: f32,
    /// Series resistance of the mean cell.
    pub resistance: Estimate,
}

/// The parameters of the cells, new and as they are now.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    /// As new.
    pub new: &'a CellParams,
    /// With the capacity and the curve that they have now.
    pub now: &'a CellParams,
}

/// What the master knows of one seat.
#[derive(Clone, Debug, Default)]
pub struct Seat {
    /// Who sits there or sat there last.
    pub uid: Option<Uid>,
    present: bool,
    /// What it can do.
    pub capabilities: Capabilities,
    quarantined: bool,
    /// Newest summary.
    pub summary: Summary,
    /// Newest voltages.
    pub cells: Cells,
    /// Newest temperatures.
    pub temps: Temperatures,
    charge: Option<Charge>,
    /// When the newest voltages came.
    seen: Option<Instant>,
    /// What its cells allow, and since when that is known.
    power: Option<Series>,
    /// Balancing order now wanted.
    pub balance_mask: u32,
    /// Messages found missing by their counters, from whoever sat here.
    pub lost: u32,
    /// Messages that failed their check.
    pub rejected: u32,
}

impl Seat {
    /// State as shown to clients.
    pub fn state(&self) -> NodeState {
        match (self.present, self.quarantined, self.summary.state) {
            (_, true, _) => NodeState::Quarantined,
            (false, ..) => NodeState::Absent,
            (_, _, SlaveState::Init) => NodeState::Init,
            (_, _, SlaveState::Standby) => NodeState::Standby,
            (_, _, SlaveState::Active) => NodeState::Active,
            (_, _, SlaveState::Tripped) => NodeState::Tripped,
            (_, _, SlaveState::Isolated) => NodeState::Isolated,
        }
    }

    /// Whether somebody sits there.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// A device sits down. A predecessor's charge is not its own, so the filters start anew;
    /// a device that comes back keeps them.
    pub fn join(&mut self, uid: Uid, capabilities: Capabilities) {
        if self.uid != Some(uid) {
            self.charge = None;
        }
        self.uid = Some(uid);
        self.capabilities = capabilities;
        self.present = true;
        self.quarantined = false;
        self.forget();
    }

    /// What is worth keeping of its cells over a reset; `None` while their state of charge is unknown.
    pub fn kept(&self) -> Option<Kept> {
        let Charge { cells, health, .. } = self.charge.as_ref()?;
        let mean = cells.mean();
        Some(Kept {
            uid: self.uid?,
            soc: Estimate {
                mean: mean.soc(),
                sigma: mean.sigma(),
            },
            learnt: health.learnt(),
        })
    }

    /// Of a device that is not here yet.
    // Its filters take room on the stack.
    #[inline(never)]
    pub fn recall(&mut self, kept: &Kept, new: &CellParams) {
        let health = HealthFilter::resume(&kept.learnt);
        self.uid = Some(kept.uid);
        self.charge = Some(Charge {
            cells: GroupFilter::new(SocInit::Stored {
                soc: kept.soc.mean,
                sigma: kept.soc.sigma + AWAY,
            }),
            capacity: (kept.learnt.rests > 0).then(|| health.capacity(new)),
            health,
        });
    }

    /// The device is gone or silenced; its last values are no longer true.
    pub fn leave(&mut self, quarantined: bool) {
        self.present = false;
        self.quarantined = quarantined;
        self.forget();
    }

    fn forget(&mut self) {
        self.summary = Summary::default();
        self.cells = Cells::default();
        self.temps = Temperatures::default();
        self.seen = None;
        self.power = None;
        self.balance_mask = 0;
    }

    /// Range messages that it sends per cycle.
    pub fn range_pieces(&self, bus: BusKind) -> usize {
        let anchors = usize::from(self.capabilities.anchors);
        match bus {
            _ if !self.present => 0,
            BusKind::Can500k | BusKind::Can1M => anchors.div_ceil(2),
            _ => anchors.min(1),
        }
    }

    /// Whether its string may conduct through it.
    pub fn is_healthy(&self) -> bool {
        matches!(self.state(), NodeState::Standby | NodeState::Active)
            && self.summary.severity < Severity::Trip
    }

    /// The order that brings it from what it reports to what is wanted, and whether it switches
    /// something off, which cannot wait.
    pub fn order(&self, isolate: bool, gate: bool) -> Option<(Order, bool)> {
        let said = &self.summary;
        if !self.present {
            None
        } else if isolate != (said.state == SlaveState::Isolated) {
            Some((Order::Isolate(isolate), isolate))
        } else if gate != said.gate_on && (!gate || said.state == SlaveState::Standby) {
            Some((Order::Gate(gate), !gate))
        } else if self.balance_mask != 0 || said.balancing {
            // Repeated while it lasts: a slave stops bleeding when it hears nothing.
            Some((Order::Balance(self.balance_mask), false))
        } else {
            None
        }
    }

    /// New voltages of cells `first..`, measured with the current of the newest summary. Returns whether more is known now about
    /// the health of the cells.
    // Its filters take room on the stack that whoever calls it may want for something else.
    #[inline(never)]
    pub fn handle_cells(
        &mut self,
        now: Instant,
        params: Params<'_>,
        first: usize,
        cells: &[Option<Millivolts>],
    ) -> bool {
        let count = usize::from(self.capabilities.cells);
        self.seen = Some(now);
        let places = self.cells.0.iter_mut().take(count).skip(first);
        for (place, &cell) in places.zip(cells) {
            *place = cell;
        }
        let moment = Moment {
            now,
            // Without a sensor the current is unknown; the filter then rests on the voltage alone.
            ma: self.summary.current.unwrap_or_default().0 as f32,
            temp_c: f32::from(self.temperature().0) * 0.1,
            bled: if self.summary.balancing {
                self.balance_mask
            } else {
                0
            },
        };
        let Charge {
            cells: group,
            health,
            capacity,
        } = self.charge.get_or_insert(Charge::UNKNOWN);
        let Some(reading) = group.handle(params.now, &moment, count, first, cells) else {
            return false;
        };
        let told = health.take(params.new, now, reading, group.mean(), params.now);
        if told {
            *capacity = Some(health.capacity(params.new));
        }
        told
    }

    /// What has become of the electrodes of its mean cell; `None` until a rest has told something.
    pub fn modes(&self) -> Option<Modes> {
        let charge = self.charge.as_ref()?;
        charge.capacity.map(|_| charge.health.modes())
    }

    /// State of health of its cells; `None` until a rest has told something.
    pub fn health(&self) -> Option<Health> {
        let charge = self.charge.as_ref()?;
        let capacity = charge.capacity?;
        let cells = 0..usize::from(self.capabilities.cells);
        let least = cells.map(|cell| charge.cells.capacity(cell).0);
        Some(Health {
            capacity,
            least: capacity.mean * least.reduce(f32::min)?,
            resistance: charge.health.resistance(),
        })
    }

    /// Whether every cell is known and the values are not old. A seat without cells has nothing to be old.
    pub fn is_valid(&self, now: Instant) -> bool {
        let count = usize::from(self.capabilities.cells);
        let cells = self.cells.0.get(..count).unwrap_or(&self.cells.0);
        count == 0
            || (cells.iter().all(Option::is_some)
                && self.seen.is_some_and(|at| now.since(at) <= VALID))
    }

    /// Reckons anew what its cells allow.
    pub fn update_power(&mut self, params: &CellParams, bounds: &PowerLimits) {
        let count = usize::from(self.capabilities.cells).min(MAX_CELLS);
        let group = self.charge.as_ref().map(|c| &c.cells);
        let bound = |sign: f32| {
            move |cell: &usize| group.map_or(0.0, |g| sign * g.soc(*cell) - 2.0 * g.sigma(*cell))
        };
        let lowest = |of: &dyn Fn(&usize) -> f32| (0..count).min_by(|a, b| of(a).total_cmp(&of(b)));
        // Where the voltage is an end, the state of charge may be an average one: a cell of high resistance.
        let known = |(cell, mv): (usize, &Option<Millivolts>)| Some((cell, (*mv)?));
        let cells = || {
            self.cells
                .0
                .iter()
                .take(count)
                .enumerate()
                .filter_map(known)
        };
        let ends = [cells().min_by_key(|c| c.1), cells().max_by_key(|c| c.1)];
        let weakest = [
            lowest(&bound(1.0)),
            lowest(&bound(-1.0)),
            ends[0].map(|c| c.0),
            ends[1].map(|c| c.0),
        ];
        let weakest = weakest.map(|cell| group?.state(params, cell?));
        let weakest = weakest.iter().flatten().copied();
        self.power = match count {
            0 => Some(Series::NONE),
            _ => Some(Series::of_cells(params, bounds, weakest.clone(), count)),
        };
    }

    /// State of charge of a cell, `0..=1`, with its 1-sigma.
    pub fn soc(&self, cell: usize) -> Option<(f32, f32)> {
        let known = cell < usize::from(self.capabilities.cells).min(MAX_CELLS);
        let group = &self.charge.as_ref().filter(|_| known)?.cells;
        Some((group.soc(cell), group.sigma(cell)))
    }

    /// Its cells for balancing.
    fn charges(&self) -> impl Iterator<Item = Option<CellCharge>> {
        let count = usize::from(self.capabilities.cells);
        let cells = self.cells.0.iter().take(count).enumerate();
        cells.map(|(cell, mv)| {
            let group = &self.charge.as_ref()?.cells;
            Some(CellCharge {
                mv: (*mv)?,
                soc: group.soc(cell),
                sigma: group.sigma_to_others(cell),
            })
        })
    }

    /// Mean of the valid sensors; 25 °C when there is none, as the parameters were measured there.
    fn temperature(&self) -> DeciCelsius {
        let (sum, n) = (self.temps.0.iter().flatten())
            .fold((0i32, 0i32), |(s, n), t| (s + i32::from(t.0), n + 1));
        match n {
            0 => DeciCelsius(250),
            _ => DeciCelsius(i16::try_from(sum / n).unwrap_or(250)),
        }
    }

    /// What its cells would show at rest, by their state of charge; `None` while one is unknown.
    /// Strings are matched by this: a string under load sags by volts.
    fn rest_mv(&self, params: &CellParams) -> Option<u32> {
        let temp_c = f32::from(self.temperature().0) * 0.1;
        let mut cells = (0..usize::from(self.capabilities.cells)).map(|cell| self.soc(cell));
        let sum = cells.try_fold(0.0, |sum, soc| Some(sum + params.ocv_mv(soc?.0, temp_c)))?;
        Some(sum as u32)
    }

    /// Sum of the cells; `None` while one is missing.
    fn voltage_mv(&self) -> Option<u32> {
        let cells = self.cells.0.get(..usize::from(self.capabilities.cells))?;
        cells
            .iter()
            .try_fold(0u32, |sum, c| Some(sum + u32::from((*c)?.0)))
    }
}

/// Cells older than this are not known.
const VALID: Duration = Duration::from_secs(1);

/// A string in which a slave asks for derating carries this part of what it could.
const DERATED: f32 = 0.5;

/// How seats form strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Slaves that there should be, seats `1..=expected`.
    pub expected: u8,
    /// Strings in parallel; seats are dealt out in order, `expected / strings` each, the last
    /// string takes the rest.
    pub strings: u8,
    /// A string is connected only if its voltage at rest is within this of the connected ones'.
    pub match_mv: u32,
    /// How long a string must have been whole before it is connected again.
    pub settle: Duration,
}

impl Topology {
    /// The string of a seat.
    fn of(&self, node: NodeId) -> usize {
        let strings = usize::from(self.strings).max(1);
        let per = (usize::from(self.expected) / strings).max(1);
        (node.index() / per).min(strings - 1)
    }

    fn members<'a>(
        self,
        string: usize,
        seats: &'a [Seat],
    ) -> impl Iterator<Item = (NodeId, &'a Seat)> + use<'a> {
        let expected = (1..=self.expected).filter_map(NodeId::new);
        expected
            .zip(seats)
            .filter(move |(node, _)| self.of(*node) == string)
    }
}

/// Most strings of one pack.
pub const MAX_STRINGS: usize = 16;

#[derive(Clone, Copy, Debug)]
struct StringState {
    connected: bool,
    healthy_since: Option<Instant>,
    /// The slave because of which the string was opened.
    culprit: Option<NodeId>,
}

impl StringState {
    const OPEN: Self = Self {
        connected: false,
        healthy_since: None,
        culprit: None,
    };
}

/// A decision about a string, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringDecision {
    /// Opened because of this slave.
    Isolated(NodeId),
    /// Closed; this slave had been the reason that it was open.
    Released(NodeId),
}

/// Decides which strings conduct.
#[derive(Debug)]
pub struct Strings {
    topology: Topology,
    states: [StringState; MAX_STRINGS],
}

impl Strings {
    /// Of no pack.
    pub(crate) const NONE: Self = Self {
        topology: Topology {
            expected: 0,
            strings: 0,
            match_mv: 0,
            settle: Duration::ZERO,
        },
        states: [StringState::OPEN; MAX_STRINGS],
    };

    /// All open.
    pub fn new(mut topology: Topology) -> Self {
        topology.strings = topology.strings.clamp(1, MAX_STRINGS as u8);
        Self {
            topology,
            ..Self::NONE
        }
    }

    /// How seats form strings.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The string of a seat.
    pub fn of(&self, node: NodeId) -> usize {
        self.topology.of(node)
    }

    /// Whether the gates of this seat may be on.
    pub fn may_conduct(&self, node: NodeId) -> bool {
        self.states.get(self.of(node)).is_some_and(|s| s.connected)
    }

    /// Looks at all seats; `decided` hears what changed. `wanted`: the operator wants the pack on.
    pub fn update(
        &mut self,
        now: Instant,
        seats: &[Seat],
        params: &CellParams,
        wanted: bool,
        mut decided: impl FnMut(StringDecision),
    ) {
        let mut bus_mv = self.mean(seats, |s| s.connected, |seat| seat.rest_mv(params));
        if bus_mv.is_none() && wanted {
            bus_mv = self.most_matched(now, seats, params);
        }
        let topology = self.topology;
        let strings = usize::from(topology.strings);
        for (string, state) in self.states.iter_mut().enumerate().take(strings) {
            let mut bad = None;
            let mut sum = Some(0);
            for (node, seat) in topology.members(string, seats) {
                if !(seat.is_healthy() && seat.is_valid(now)) && bad.is_none() {
                    bad = Some(node);
                }
                // Slaves that run anchors only have no cells and carry no current.
                sum = sum.zip(seat.rest_mv(params)).map(|(a, b)| a + b);
            }
            match bad {
                Some(node) => {
                    state.healthy_since = None;
                    if core::mem::take(&mut state.connected) {
                        state.culprit = Some(node);
                        decided(StringDecision::Isolated(node));
                    }
                }
                None => {
                    let since = *state.healthy_since.get_or_insert(now);
                    let matched = match (bus_mv, sum) {
                        (Some(bus), Some(own)) => bus.abs_diff(own) <= self.topology.match_mv,
                        _ => false,
                    };
                    let settled = now.since(since) >= self.topology.settle;
                    if wanted && settled && matched && !state.connected {
                        state.connected = true;
                        if let Some(node) = state.culprit.take() {
                            decided(StringDecision::Released(node));
                        }
                    } else if !wanted {
                        state.connected = false;
                    }
                }
            }
        }
    }

    /// With nothing connected, the voltage at rest of the ready string to which most others fit; of equals the highest.
    fn most_matched(&self, now: Instant, seats: &[Seat], params: &CellParams) -> Option<u32> {
        let mut rest = [None; MAX_STRINGS];
        let strings = usize::from(self.topology.strings);
        for ((string, place), state) in rest.iter_mut().enumerate().take(strings).zip(&self.states)
        {
            let settled = state
                .healthy_since
                .is_some_and(|since| now.since(since) >= self.topology.settle);
            let mut members = self.members(string, seats);
            *place = members
                .try_fold(0, |sum, (_, seat)| {
                    let fit = seat.is_healthy() && seat.is_valid(now);
                    Some(sum + fit.then(|| seat.rest_mv(params))??)
                })
                .filter(|_| settled);
        }
        let fitting = |mv: u32| {
            let others = rest.iter().flatten();
            others
                .filter(|other| other.abs_diff(mv) <= self.topology.match_mv)
                .count()
        };
        rest.iter()
            .flatten()
            .copied()
            .max_by_key(|&mv| (fitting(mv), mv))
    }

    /// Strings whose slaves have all reported their gates on.
    pub fn conducting(&self, seats: &[Seat]) -> usize {
        let whole = |string: &usize| {
            let state = self
                .states
                .get(*string)
                .copied()
                .unwrap_or(StringState::OPEN);
            let cells = |(_, seat): &(NodeId, &Seat)| seat.capabilities.cells > 0;
            let mut members = self.members(*string, seats).filter(cells).peekable();
            state.connected
                && members.peek().is_some()
                && members.all(|(_, seat)| seat.summary.gate_on)
        };
        (0..usize::from(self.topology.strings))
            .filter(whole)
            .count()
    }

    /// Mean voltage of the connected strings, mV.
    pub fn voltage_mv(&self, seats: &[Seat]) -> Option<u32> {
        self.mean(seats, |s| s.connected, Seat::voltage_mv)
    }

    /// What the connected strings can give and take together.
    pub fn power(&self, seats: &[Seat]) -> PackPower {
        let strings = 0..usize::from(self.topology.strings);
        let connected = strings.filter(|s| self.states.get(*s).is_some_and(|s| s.connected));
        parallel(connected.map(|string| {
            let mut derate = false;
            let unknown = Series::NONE.derated(0.0);
            let series = self
                .members(string, seats)
                .fold(Series::NONE, |sum, (_, seat)| {
                    derate |= seat.summary.severity >= Severity::Derate;
                    sum.and(seat.power.as_ref().unwrap_or(&unknown))
                });
            series.derated(if derate { DERATED } else { 1.0 })
        }))
    }

    /// Decides for every seat of a string which cells to bleed, by their distance to the string's emptiest.
    pub fn balance(
        &self,
        seats: &mut [Seat],
        wanted: bool,
        config: &BalanceConfig,
        charge: &ChargeBalance,
    ) {
        for string in 0..usize::from(self.topology.strings) {
            let lowest = self
                .members(string, seats)
                .flat_map(|(_, seat)| seat.charges());
            let lowest = lowest.flatten().map(|c| c.soc).reduce(f32::min);
            let nodes = (1..=self.topology.expected).filter_map(NodeId::new);
            for (_, seat) in nodes
                .zip(seats.iter_mut())
                .filter(|(n, _)| self.of(*n) == string)
            {
                seat.balance_mask = match lowest {
                    Some(lowest) if wanted && seat.is_healthy() => {
                        let mut cells = [None; MAX_CELLS];
                        for (place, cell) in cells.iter_mut().zip(seat.charges()) {
                            *place = cell;
                        }
                        let hottest = seat.temps.0.iter().flatten().max().copied();
                        plan_by_charge(&cells, lowest, hottest, seat.balance_mask, config, charge)
                    }
                    _ => 0,
                };
            }
        }
    }

    fn members<'a>(
        &self,
        string: usize,
        seats: &'a [Seat],
    ) -> impl Iterator<Item = (NodeId, &'a Seat)> + use<'a> {
        self.topology.members(string, seats)
    }

    /// Mean over the strings `of` which it is wanted; a string counts when all its seats do.
    fn mean(
        &self,
        seats: &[Seat],
        of: impl Fn(&StringState) -> bool,
        mv: impl Fn(&Seat) -> Option<u32>,
    ) -> Option<u32> {
        let (mut sum, mut n) = (0u64, 0u64);
        let strings = usize::from(self.topology.strings);
        for (string, state) in self.states.iter().enumerate().take(strings) {
            let mut members = self.members(string, seats);
            let whole = members.try_fold(0u32, |sum, (_, s)| Some(sum + mv(s)?));
            if let (true, Some(mv)) = (of(state), whole) {
                (sum, n) = (sum + u64::from(mv), n + 1);
            }
        }
        u32::try_from(sum.checked_div(n)?).ok()
    }

    /// The pack in one line.
    pub fn figures(&self, seats: &[Seat]) -> PackFigures {
        let mut f = PackFigures {
            expected: self.topology.expected,
            ..Default::default()
        };
        let (mut soc_sum, mut soc_n, mut soc_min, mut soc_max) = (0.0f32, 0u32, 1.0f32, 0.0f32);
        let (mut soh_sum, mut soh_n, mut soh_min) = (0.0f32, 0u32, f32::MAX);
        let mut fault = false;
        let mut currents = [(0i64, 0i64); MAX_STRINGS];
        for (node, seat) in (1..=127).filter_map(NodeId::new).zip(seats) {
            fault |= matches!(
                seat.state(),
                NodeState::Tripped | NodeState::Isolated | NodeState::Quarantined
            );
            if !seat.present {
                continue;
            }
            f.members += 1;
            if let (Some(c), Some(string)) = (seat.summary.current, currents.get_mut(self.of(node)))
            {
                *string = (string.0 + i64::from(c.0), string.1 + 1);
            }
            f.cell_min = [f.cell_min, seat.summary.min].into_iter().flatten().min();
            f.cell_max = f.cell_max.max(seat.summary.max);
            f.temp_max = f.temp_max.max(seat.temps.0.iter().flatten().max().copied());
            for (soc, _) in (0..usize::from(seat.capabilities.cells)).filter_map(|c| seat.soc(c)) {
                (soc_sum, soc_n) = (soc_sum + soc, soc_n + 1);
                (soc_min, soc_max) = (soc_min.min(soc), soc_max.max(soc));
            }
            if let Some(health) = seat.health() {
                (soh_sum, soh_n) = (soh_sum + health.capacity.mean, soh_n + 1);
                soh_min = soh_min.min(health.least);
            }
        }
        if soh_n > 0 {
            f.soh_ppm = Some((soh_sum / soh_n as f32 * 1e6) as u32);
            f.soh_min_ppm = Some((soh_min * 1e6) as u32);
        }
        if soc_n > 0 {
            f.soc_ppm = Some((soc_sum / soc_n as f32 * 1e6) as u32);
            f.soc_min_ppm = Some((soc_min * 1e6) as u32);
            f.soc_max_ppm = Some((soc_max * 1e6) as u32);
        }
        let amps: i64 = currents
            .iter()
            .filter_map(|&(sum, n)| sum.checked_div(n))
            .sum();
        f.current = Milliamps(i32::try_from(amps).unwrap_or(0));
        let strings = self
            .states
            .get(..usize::from(self.topology.strings))
            .unwrap_or(&[]);
        f.strings_connected = strings.iter().filter(|s| s.connected).count() as u8;
        f.power = self.power(seats);
        let connected = self.voltage_mv(seats);
        let any = || self.mean(seats, |_| true, Seat::voltage_mv);
        f.voltage_mv = connected.or_else(any).unwrap_or(0);
        f.state = match (f.members, f.strings_connected) {
            (0, _) => PackState::Empty,
            (_, 0) if fault => PackState::Tripped,
            (m, n) if m >= f.expected && n == self.topology.strings && !fault => PackState::Ready,
            _ => PackState::Degraded,
        };
        f
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use helio_battery::defaults::NMC_5000MAH;
    use std::vec::Vec;

    use super::*;

    const NOW: Instant = Instant::from_millis(1_000);
    const SETTLED: Instant = Instant::from_millis(1_500);
    const NEW: Params<'_> = Params {
        new: &NMC_5000MAH,
        now: &NMC_5000MAH,
    };

    fn seat(mv: u16) -> Seat {
        let mut seat = Seat::default();
        let capabilities = Capabilities {
            cells: 4,
            temps: 0,
            anchors: 0,
        };
        seat.join(Uid::new(7).expect("valid"), capabilities);
        seat.summary.state = SlaveState::Standby;
        seat.handle_cells(NOW, NEW, 0, &[Some(Millivolts(mv)); 4]);
        seat
    }

    fn strings() -> Strings {
        Strings::new(Topology {
            expected: 4,
            strings: 2,
            match_mv: 100,
            settle: Duration::from_millis(500),
        })
    }

    fn update(s: &mut Strings, now: Instant, seats: &[Seat]) -> Vec<StringDecision> {
        decide(s, now, seats, true)
    }

    fn decide(s: &mut Strings, now: Instant, seats: &[Seat], on: bool) -> Vec<StringDecision> {
        let mut decisions = Vec::new();
        s.update(now, seats, &NMC_5000MAH, on, |d| decisions.push(d));
        decisions
    }

    fn conducting(s: &Strings) -> [bool; 4] {
        [1, 2, 3, 4].map(|n| s.may_conduct(NodeId::new(n).expect("valid")))
    }

    #[test]
    fn a_string_is_connected_when_it_has_been_whole_for_long_enough() {
        let (mut s, seats) = (strings(), [3_900; 4].map(seat));
        update(&mut s, NOW, &seats);
        update(&mut s, SETTLED - Duration::from_nanos(1), &seats);
        assert_eq!(conducting(&s), [false; 4]);
        update(&mut s, SETTLED, &seats);
        assert_eq!(conducting(&s), [true; 4]);
        assert_eq!(s.figures(&seats).state, PackState::Ready);
    }

    #[test]
    fn a_faulty_segment_opens_its_own_string_and_no_other() {
        let (mut s, mut seats) = (strings(), [3_900; 4].map(seat));
        update(&mut s, NOW, &seats);
        update(&mut s, SETTLED, &seats);
        let node = NodeId::new(3).expect("valid");
        seats[2].summary.severity = Severity::Trip;
        assert_eq!(
            update(&mut s, SETTLED, &seats),
            [StringDecision::Isolated(node)]
        );
        assert_eq!(conducting(&s), [true, true, false, false]);
        assert_eq!(s.figures(&seats).state, PackState::Degraded);
        seats[2].summary.severity = Severity::None;
        assert_eq!(update(&mut s, SETTLED, &seats), []);
        let later = SETTLED + Duration::from_millis(500);
        assert_eq!(
            update(&mut s, later, &seats),
            [StringDecision::Released(node)]
        );
    }

    #[test]
    fn a_string_of_another_charge_is_not_connected_to_the_others() {
        let mut s = strings();
        let seats = [seat(3_900), seat(3_900), seat(3_700), seat(3_700)];
        update(&mut s, NOW, &seats);
        update(&mut s, SETTLED, &seats);
        assert_eq!(conducting(&s), [true, true, false, false]);
    }

    #[test]
    fn strings_that_fell_ill_or_old_since_they_were_whole_are_not_the_first_to_be_connected() {
        for old in [false, true] {
            let mut s = strings();
            let mut seats = [seat(3_900), seat(3_900), seat(3_700), seat(3_700)];
            update(&mut s, NOW, &seats);
            let now = match old {
                // All have become old but the lower string, which would not be the first otherwise.
                true => NOW + Duration::from_secs(2),
                false => SETTLED,
            };
            if old {
                for seat in &mut seats[2..] {
                    let cells = [Some(Millivolts(3_700)); 4];
                    seat.handle_cells(now, NEW, 0, &cells);
                }
            } else {
                seats[0].summary.severity = Severity::Trip;
            }
            update(&mut s, now, &seats);
            assert_eq!(conducting(&s), [false, false, true, true], "old: {old}");
        }
    }

    #[test]
    fn a_missing_cell_keeps_its_string_open() {
        let (mut s, mut seats) = (strings(), [3_900; 4].map(seat));
        seats[0] = seat(3_900);
        seats[0].capabilities.cells = 5;
        update(&mut s, NOW, &seats);
        update(&mut s, SETTLED, &seats);
        assert_eq!(conducting(&s), [false, false, true, true]);
    }

    #[test]
    fn a_seat_shows_what_its_slave_says_unless_it_is_gone_or_silenced() {
        let mut seat = seat(3_900);
        let shown = [
            (SlaveState::Init, NodeState::Init),
            (SlaveState::Standby, NodeState::Standby),
            (SlaveState::Active, NodeState::Active),
            (SlaveState::Tripped, NodeState::Tripped),
            (SlaveState::Isolated, NodeState::Isolated),
        ];
        for (said, state) in shown {
            seat.summary.state = said;
            assert_eq!(seat.state(), state);
            let healthy = matches!(state, NodeState::Standby | NodeState::Active);
            assert_eq!(seat.is_healthy(), healthy);
        }
        assert!(seat.is_present());
        seat.leave(true);
        assert_eq!(
            (seat.state(), seat.is_present()),
            (NodeState::Quarantined, false)
        );
    }

    #[test]
    fn an_order_is_repeated_until_the_slave_reports_it_and_what_switches_off_cannot_wait() {
        let mut seat = seat(3_900);
        assert_eq!(seat.order(false, false), None);
        assert_eq!(seat.order(false, true), Some((Order::Gate(true), false)));
        seat.summary.state = SlaveState::Init;
        assert_eq!(seat.order(false, true), None, "it is not ready");
        (seat.summary.state, seat.summary.gate_on) = (SlaveState::Active, true);
        assert_eq!(seat.order(false, true), None);
        assert_eq!(seat.order(false, false), Some((Order::Gate(false), true)));
        assert_eq!(seat.order(true, true), Some((Order::Isolate(true), true)));
        (seat.summary.state, seat.summary.gate_on) = (SlaveState::Isolated, false);
        assert_eq!(seat.order(true, false), None);
        assert_eq!(
            seat.order(false, false),
            Some((Order::Isolate(false), false))
        );
        seat.summary.state = SlaveState::Standby;
        seat.balance_mask = 4;
        assert_eq!(seat.order(false, false), Some((Order::Balance(4), false)));
        (seat.balance_mask, seat.summary.balancing) = (0, true);
        assert_eq!(seat.order(false, false), Some((Order::Balance(0), false)));
        seat.leave(false);
        assert_eq!(seat.order(true, true), None);
    }

    #[test]
    fn ranges_come_in_pairs_on_can_and_in_one_piece_elsewhere() {
        let mut seat = seat(3_900);
        seat.capabilities.anchors = 5;
        for (bus, pieces) in [
            (BusKind::Can500k, 3),
            (BusKind::Can1M, 3),
            (BusKind::CanFd, 1),
            (BusKind::Rs485At1M, 1),
            (BusKind::Rs485At4M, 1),
            (BusKind::Rs485At115k, 1),
        ] {
            assert_eq!(seat.range_pieces(bus), pieces, "{}", bus.name());
        }
        seat.leave(false);
        assert_eq!(seat.range_pieces(BusKind::CanFd), 0);
    }

    #[test]
    fn the_mean_of_the_valid_sensors_is_the_temperature_and_without_one_25_degrees() {
        let mut seat = seat(3_900);
        assert_eq!(seat.temperature(), DeciCelsius(250));
        seat.temps.0[..3].copy_from_slice(&[Some(DeciCelsius(100)), None, Some(DeciCelsius(200))]);
        assert_eq!(seat.temperature(), DeciCelsius(150));
    }

    fn connected() -> (Strings, [Seat; 4]) {
        let (mut s, seats) = (strings(), [3_900; 4].map(seat));
        update(&mut s, NOW, &seats);
        update(&mut s, SETTLED, &seats);
        (s, seats)
    }

    #[test]
    fn a_string_conducts_when_all_its_slaves_with_cells_have_their_gates_on() {
        let (mut s, mut seats) = connected();
        assert_eq!(s.conducting(&seats), 0);
        for seat in &mut seats {
            seat.summary.gate_on = true;
        }
        assert_eq!(s.conducting(&seats), 2);
        seats[1].summary.gate_on = false;
        assert_eq!(s.conducting(&seats), 1);
        // Slaves that run anchors only have no gate.
        seats[1].capabilities.cells = 0;
        assert_eq!(s.conducting(&seats), 2);
        seats[0].capabilities.cells = 0;
        assert_eq!(s.conducting(&seats), 1, "a string without cells");
        for _ in 0..2 {
            assert_eq!(decide(&mut s, SETTLED, &seats, false), []);
            assert_eq!((s.conducting(&seats), conducting(&s)), (0, [false; 4]));
        }
    }

    #[test]
    fn the_pack_promises_what_its_weakest_cells_bear_and_half_while_a_slave_asks_for_less() {
        let bounds = crate::power::default_limits(&NMC_5000MAH);
        let (s, mut seats) = connected();
        assert_eq!(
            s.power(&seats),
            PackPower::default(),
            "nothing is known yet"
        );
        for seat in &mut seats {
            seat.update_power(&NMC_5000MAH, &bounds);
        }
        let whole = s.power(&seats);
        assert!(whole.discharge_ma[0] > 10_000, "{whole:?}");
        seats[3].summary.severity = Severity::Derate;
        let derated = s.power(&seats);
        assert!(derated.discharge_ma[0].abs_diff(whole.discharge_ma[0] / 2) <= 2);
        seats[3].summary.severity = Severity::Warn;
        // One cell is nearly empty, and another shows a lower voltage although it is not: both count.
        let mut cells = [Some(Millivolts(3_900)); 4];
        cells[2] = Some(Millivolts(3_000));
        for k in 1..=20 {
            seats[3].handle_cells(NOW + Duration::from_millis(100 * k), NEW, 0, &cells);
        }
        seats[3].update_power(&NMC_5000MAH, &bounds);
        assert!(s.power(&seats).discharge_ma[2] < whole.discharge_ma[2]);
        // Without cells a slave limits nobody.
        seats[3].capabilities.cells = 0;
        seats[3].update_power(&NMC_5000MAH, &bounds);
        assert_eq!(s.power(&seats).discharge_ma, whole.discharge_ma);
        assert!(s.power(&seats).discharge_w[0] < whole.discharge_w[0]);
    }

    #[test]
    fn cells_fuller_than_the_emptiest_of_their_own_string_are_bled() {
        let (s, mut seats) = connected();
        for seat in &mut seats {
            seat.temps.0[0] = Some(DeciCelsius(250));
        }
        let full = Some(Millivolts(4_150));
        seats[1] = {
            let mut seat = seat(3_900);
            seat.join(Uid::new(9).expect("valid"), seat.capabilities);
            seat.summary.state = SlaveState::Standby;
            seat.temps.0[0] = Some(DeciCelsius(250));
            seat.handle_cells(NOW, NEW, 0, &[Some(Millivolts(3_900)), full, None, None]);
            seat
        };
        let (config, charge) = (BalanceConfig::default(), ChargeBalance::default());
        s.balance(&mut seats, true, &config, &charge);
        assert_eq!(seats.each_ref().map(|s| s.balance_mask), [0, 0b10, 0, 0]);
        seats[1].summary.state = SlaveState::Tripped;
        s.balance(&mut seats, true, &config, &charge);
        assert_eq!(seats[1].balance_mask, 0);
        seats[1].summary.state = SlaveState::Standby;
        s.balance(&mut seats, false, &config, &charge);
        assert_eq!(seats[1].balance_mask, 0);
    }

    #[test]
    fn the_figures_tell_who_is_there_what_flows_and_why_nothing_conducts() {
        let (mut s, mut seats) = connected();
        assert_eq!(s.topology().expected, 4);
        assert_eq!(s.of(NodeId::new(3).expect("valid")), 1);
        for (seat, ma) in seats.iter_mut().zip([1_000, 1_200, 2_000, 0]) {
            seat.summary.current = (ma != 0).then_some(Milliamps(ma));
        }
        assert_eq!(s.figures(&seats).current, Milliamps(1_100 + 2_000));
        seats[0].summary.state = SlaveState::Isolated;
        let state = s.figures(&seats).state;
        assert_eq!(state, PackState::Degraded, "before it is opened");
        seats[0].summary.state = SlaveState::Standby;
        seats[2].leave(false);
        let figures = s.figures(&seats);
        assert_eq!((figures.members, figures.expected), (3, 4));
        let fresh = strings().figures(&seats);
        assert_eq!(
            (fresh.state, fresh.strings_connected),
            (PackState::Degraded, 0)
        );
        for seat in &mut seats {
            seat.summary.state = SlaveState::Tripped;
        }
        update(&mut s, SETTLED, &seats);
        assert_eq!(s.figures(&seats).state, PackState::Tripped);
        assert!(s.figures(&seats).voltage_mv > 0, "what is measured is told");
        for seat in &mut seats {
            seat.leave(false);
        }
        assert_eq!(s.figures(&seats).state, PackState::Empty);
        assert_eq!(s.figures(&seats).soc_ppm, None);
    }

    #[test]
    fn a_device_that_comes_back_keeps_what_is_known_of_its_charge_and_another_does_not() {
        let mut seat = seat(3_900);
        let capabilities = seat.capabilities;
        seat.leave(false);
        assert_eq!(seat.state(), NodeState::Absent);
        seat.join(Uid::new(7).expect("valid"), capabilities);
        assert!(seat.soc(0).is_some());
        seat.leave(true);
        assert_eq!(seat.state(), NodeState::Quarantined);
        seat.join(Uid::new(8).expect("valid"), capabilities);
        assert!(seat.soc(0).is_none());
    }

    /// Three deep discharges and back, with rests, of four cells that have 4.5 of their 5 Ah left.
    fn aged() -> Seat {
        let old = NMC_5000MAH.with_capacity_mah(4_500.0);
        let mut cell = helio_battery::CellModel::new(0.95);
        let mut seat = seat(cell.step(&old, Duration::from_secs(1), 0.0, 25.0) as u16);
        seat.balance_mask = 0b10;
        seat.summary.balancing = true;
        let mut now = NOW;
        for (ma, seconds) in [(0, 1_000), (2_250, 6_000), (0, 2_000), (-2_250, 6_000)].repeat(3) {
            seat.summary.current = Some(Milliamps(ma));
            for _ in 0..seconds {
                now += Duration::from_secs(1);
                let mv = cell.step(&old, Duration::from_secs(1), ma as f32, 25.0);
                seat.handle_cells(now, NEW, 0, &[Some(Millivolts(mv as u16)); 4]);
            }
        }
        seat
    }

    #[test]
    fn rests_tell_the_health_of_the_cells_and_a_reset_does_not_forget_it() {
        let mut new = seat(3_900);
        assert_eq!((new.health(), new.modes()), (None, None));
        assert!(
            !new.handle_cells(SETTLED, NEW, 0, &[None; 4]),
            "nothing to learn from"
        );
        let aged = aged();
        let health = aged.health().expect("rests have told something");
        let off = (health.capacity.mean - 0.9).abs();
        assert!(off < 3.0 * health.capacity.sigma.max(0.01), "{health:?}");
        assert!(health.capacity.sigma < 0.05, "{health:?}");
        assert!(health.least <= health.capacity.mean + 1e-3, "{health:?}");
        let modes = aged.modes().expect("as the health");
        assert!(modes.lithium_lost > 0.0, "{modes:?}");
        assert_eq!(Seat::default().kept(), None);
        let kept = aged.kept().expect("it is known");
        assert!((kept.soc.mean - 0.95).abs() < 0.05, "{kept:?}");

        let mut back = Seat::default();
        back.recall(&kept, &NMC_5000MAH);
        back.join(kept.uid, aged.capabilities);
        assert_eq!(back.health().map(|h| h.capacity), Some(health.capacity));
        assert_eq!(back.modes(), Some(modes));
        let mv = NMC_5000MAH.ocv_mv(kept.soc.mean, 25.0);
        back.handle_cells(NOW, NEW, 0, &[Some(Millivolts(mv as u16)); 4]);
        let (soc, _) = back.soc(0).expect("it is remembered");
        assert!((soc - kept.soc.mean).abs() < 0.05, "{soc}");
        let unknown = new.kept().expect("its voltage told its charge");
        new.recall(&unknown, &NMC_5000MAH);
        assert_eq!(new.health(), None, "no rest had told anything");

        let s = strings();
        let figures = s.figures(&[aged, back, new]);
        let ppm = (health.capacity.mean * 1e6) as u32;
        assert!(figures.soh_ppm.is_some_and(|all| all.abs_diff(ppm) < 1_000));
        assert!(figures.soh_min_ppm <= figures.soh_ppm);
    }
}
