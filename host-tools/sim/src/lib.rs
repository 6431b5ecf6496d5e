//! A world of cores in virtual time: the same slaves and masters that are flashed, on buses exact to
//! the bit, with cells, anchors, tags and faults. Same scenario and seed, same report, byte for byte.
//!
//! [`World`] runs a [`scenario::Scenario`]; [`replay`] feeds recordings to the slaves' sensors.

pub mod bench;
pub mod bounds;
pub mod corruption;
pub mod dbc;
pub mod files;
pub mod media;
pub mod plant;
pub mod rack;
pub mod replay;
pub mod report;
pub mod scenario;
pub mod soak;
pub mod terminals;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use helio_battery::protection::Limits;
use helio_battery::{CellParams, Modes};
use helio_bus::{BusKind, Capabilities, Schedule};
use helio_master::map::MapAnchor;
use helio_units::{DeciCelsius, Duration, Instant, Millivolts, NodeId, Uid};

use files::{Cell, Chemistry, lasting, load_cell, load_current, load_map};
use plant::{Group, Load, Luminaire, Noise, Room, Sensors};
use rack::{BusPlan, Rack, RackCommand, RackFault, RackPlan, SlavePlan};
use report::Report;
use scenario::{BusWanted, Hall, InputError, Rest, Scenario};

/// All racks of a scenario.
pub struct World {
    /// One per master.
    pub racks: Vec<Rack>,
    scenario: Scenario,
}

impl World {
    /// Builds what the scenario describes. Errors name the file that is wrong.
    pub fn new(scenario: Scenario) -> Result<Self, InputError> {
        let pack = &scenario.pack;
        let file = |path: &Path| scenario.dir.join(path);
        let cell = match &pack.cell {
            Some(path) => load_cell(&file(path.get_ref()))?,
            None => Cell {
                chemistry: Chemistry::Nmc,
                params: helio_battery::defaults::NMC_5000MAH,
            },
        };
        let load = match &pack.current_trace {
            Some(path) => {
                let (time_s, current_a) = load_current(&file(path.get_ref()))?;
                let scale = pack.current_scale * 1e3;
                Load::Trace {
                    time_s,
                    current_ma: current_a.iter().map(|a| a * scale).collect(),
                }
            }
            None => Load::Constant(pack.current_a * 1e3),
        };
        let slaves = scenario.slaves();
        let map = scenario_map(&scenario)?;
        let aged = Modes {
            lithium_lost: *pack.aged.lithium_lost.get_ref(),
            negative_left: *pack.aged.negative_left.get_ref(),
            positive_left: *pack.aged.positive_left.get_ref(),
        };
        let params = Arc::new(if aged == Modes::NEW {
            cell.params
        } else {
            aged.aged(&cell.params)
        });
        let masters = *scenario.masters.get_ref();
        let racks = (1..=masters).map(|number| {
            let seed = scenario
                .seed
                .wrapping_mul(1_000_003)
                .wrapping_add(u64::from(number));
            let slaves = (0..slaves).map(|i| plan_slave(&scenario, &params, &map, seed, number, i));
            let noise = Noise::new(seed, 1);
            let plan = RackPlan {
                number,
                buses: buses(&scenario),
                seed,
                strings: *pack.strings.get_ref(),
                cell: lasting(&cell.params),
                limits: limits(&cell),
                contactors: scenario.contactors.as_ref().map(|c| *c.get_ref()),
                sleep: Rest::of(&scenario).master(),
                slave_sleep: Rest::of(&scenario).slave(),
                commands: commands(&scenario, number),
                sample_period: Duration::from_millis(u64::from(*pack.sample_period_ms.get_ref())),
                crystal_ppm: pack.crystal_ppm,
                slaves: slaves.collect(),
                load: load.clone(),
                room: Room::of_hall(luminaires(&map), &scenario.hall, noise),
                map: map.clone(),
                tags: *scenario.hall.tags.get_ref(),
                tag_height_mm: Some((scenario.hall.tag_height_m * 1e3) as i32),
                range_sigma_mm: (scenario.hall.noise_mm as u32).max(1),
            };
            Rack::new(plan, faults(&scenario, number))
        });
        Ok(Self {
            racks: racks.collect(),
            scenario,
        })
    }

    /// Lets all racks live until then.
    pub fn run_until(&mut self, end: Instant) {
        for rack in &mut self.racks {
            rack.run_until(end);
        }
    }

    /// When the scenario is over.
    pub fn end(&self) -> Instant {
        Instant::from_nanos((self.scenario.duration_s.get_ref() * 1e9) as u64)
    }

    /// Runs the whole scenario; `progress` hears virtual seconds now and then.
    pub fn run(&mut self, mut progress: impl FnMut(f64)) -> Report {
        let end = self.end();
        let mut now = Instant::ZERO;
        while now < end {
            now = (now + Duration::from_secs(10)).min(end);
            self.run_until(now);
            progress(plant::seconds(now));
        }
        self.report()
    }

    /// Figures so far.
    pub fn report(&mut self) -> Report {
        let racks: Vec<_> = self.racks.iter_mut().map(Rack::report).collect();
        let affected = self
            .racks
            .iter()
            .flat_map(Rack::affected)
            .cloned()
            .collect();
        let mut happenings: Vec<_> = self
            .racks
            .iter()
            .flat_map(|r| r.happenings().to_vec())
            .collect();
        happenings.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
        Report {
            scenario: self.scenario.name.clone(),
            bus: names(&self.scenario),
            seed: self.scenario.seed,
            duration_s: *self.scenario.duration_s.get_ref(),
            racks,
            affected,
            happenings,
        }
    }
}

/// Anchors of a rack: from the scenario's map, or a grid.
fn scenario_map(scenario: &Scenario) -> Result<Vec<MapAnchor>, InputError> {
    let slaves = scenario.slaves();
    let path = scenario.hall.map.as_ref();
    let path = path.map(|path| scenario.dir.join(path.get_ref()));
    let map = match &path {
        Some(path) => load_map(path)?.anchors,
        None => grid_map(&scenario.hall, slaves),
    };
    check_map(&map, slaves, path)?;
    Ok(map)
}

/// The timing of a bus with so many slaves: its defaults, on RS485 with a place for each of them in the
/// beacon, and with this cycle if there is one.
pub fn schedule(kind: BusKind, slaves: usize, cycle: Option<Duration>) -> Schedule {
    let usual = Schedule::for_bus(kind);
    let seats = u8::try_from(slaves)
        .unwrap_or(u8::MAX)
        .min(NodeId::MAX.get());
    let schedule = Schedule {
        seats: usual.seats.max(seats),
        ..usual
    };
    cycle.map_or(schedule, |cycle| schedule.with_cycle(cycle))
}

/// The timing of a scenario's bus with so many slaves.
pub fn schedule_of(scenario: &Scenario, bus: &BusWanted, slaves: usize) -> Schedule {
    let schedule = schedule(bus.kind, slaves, bus.cycle);
    let schedule = Schedule {
        // Seats are numbered through: those that nobody has would be missing elsewhere.
        seats: match (bus.shared, u8::try_from(slaves)) {
            (true, Ok(slaves)) => slaves,
            _ => schedule.seats,
        },
        ..schedule
    };
    if scenario.snapshots {
        schedule.with_snapshots()
    } else {
        schedule
    }
}

/// The buses of each rack of a scenario.
pub fn buses(scenario: &Scenario) -> Vec<BusPlan> {
    let each = scenario.buses().into_iter().map(|bus| BusPlan {
        schedule: schedule_of(scenario, &bus, bus.slaves),
        slaves: bus.slaves,
    });
    each.collect()
}

/// Names of a scenario's buses, with a + between two.
fn names(scenario: &Scenario) -> String {
    let names: Vec<_> = scenario.buses().iter().map(|b| b.kind.name()).collect();
    names.join("+")
}

/// The buses of each rack of a scenario, and what the slaves on them can do, in order.
pub fn capabilities(
    scenario: &Scenario,
) -> Result<Vec<(BusWanted, Vec<Capabilities>)>, InputError> {
    let map = scenario_map(scenario)?;
    let mut all = (0..scenario.slaves()).map(|i| slave_capabilities(scenario, &map, i));
    let each = scenario.buses().into_iter();
    Ok(each
        .map(|bus| (bus, all.by_ref().take(bus.slaves).collect()))
        .collect())
}

fn slave_capabilities(s: &Scenario, map: &[MapAnchor], i: usize) -> Capabilities {
    let mine = map.iter().filter(|a| a.node.index() == i);
    Capabilities {
        cells: *s.pack.cells.get_ref(),
        temps: *s.pack.temps.get_ref(),
        anchors: mine.map(|a| a.index + 1).max().unwrap_or(0),
    }
}

/// Protection of a cell by default.
pub fn limits(cell: &Cell) -> Limits {
    let capacity_mah = cell.params.capacity_mah() as i32;
    match cell.chemistry {
        Chemistry::Nmc => Limits::nmc(capacity_mah),
        Chemistry::Lfp => Limits::lfp(capacity_mah),
    }
}

/// What a slave's anchors look like in the plant.
pub fn luminaires(map: &[MapAnchor]) -> Vec<Luminaire> {
    let each = map.iter().map(|a| Luminaire {
        slave: a.node.index(),
        index: a.index,
        position_m: a.position_mm.map(|mm| f64::from(mm) / 1e3),
        blocked: false,
    });
    each.collect()
}

fn plan_slave(
    s: &Scenario,
    params: &Arc<CellParams>,
    map: &[MapAnchor],
    seed: u64,
    number: u32,
    i: usize,
) -> SlavePlan {
    let pack = &s.pack;
    let sensors = Sensors {
        noise_mv: pack.noise_mv,
        noise_ma: pack.noise_ma,
        temps: *pack.temps.get_ref(),
        temp_c: pack.temp_c,
    };
    let cells = *pack.cells.get_ref();
    let noise = Noise::new(seed, 100 + i as u64);
    SlavePlan {
        uid: uid(number, i),
        capabilities: slave_capabilities(s, map, i),
        group: Group::of_model(
            params.clone(),
            cells,
            *pack.soc.get_ref(),
            pack.soc_sigma,
            sensors,
            noise,
        ),
    }
}

/// Unique ids as a factory would give them: scattered, never the same twice.
pub fn uid(number: u32, i: usize) -> Uid {
    // SplitMix64 (Steele, Lea, Flood 2014): a bijection, so different inputs give different ids.
    let mut z = (u64::from(number) << 32 | i as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    Uid::new(z ^ z >> 31).unwrap_or(Uid::new(1).expect("1 is a valid unique id"))
}

/// Anchors in a grid over the hall, dealt out to the slaves in turn, at slightly different heights:
/// a perfectly flat ceiling cannot tell a tag's height.
fn grid_map(hall: &Hall, slaves: usize) -> Vec<MapAnchor> {
    let count = usize::from(*hall.anchors.get_ref());
    if count == 0 || slaves == 0 {
        return Vec::new();
    }
    let columns =
        ((count as f64 * hall.length_m / hall.width_m).sqrt().round() as usize).clamp(1, count);
    let rows = count.div_ceil(columns);
    let place =
        |n: usize, of: usize, length: f64| (length * (n as f64 + 0.5) / of as f64 * 1e3) as i32;
    let anchors = (0..count).filter_map(|n| {
        let (column, row) = (n % columns, n / columns);
        let drop_mm = ((n * 7) % 5) as i32 * 150;
        Some(MapAnchor {
            id: n as u16,
            node: NodeId::new(u8::try_from(n % slaves + 1).ok()?)?,
            index: u8::try_from(n / slaves).ok()?,
            position_mm: [
                place(column, columns, hall.length_m),
                place(row, rows, hall.width_m),
                (hall.ceiling_m * 1e3) as i32 - drop_mm,
            ],
            bias_mm: 0,
        })
    });
    anchors.collect()
}

fn check_map(map: &[MapAnchor], slaves: usize, file: Option<PathBuf>) -> Result<(), InputError> {
    match (map.iter().find(|a| a.node.index() >= slaves), file) {
        (Some(a), Some(file)) => Err(InputError {
            file,
            line: None,
            what: format!(
                "anchor {} is at slave {} but there are {slaves}; raise [pack] slaves or correct the map",
                a.id, a.node
            ),
        }),
        _ => Ok(()),
    }
}

fn faults(scenario: &Scenario, number: u32) -> Vec<RackFault> {
    let time = |s: f64| Instant::from_nanos((s * 1e9) as u64);
    let mine = scenario
        .faults
        .iter()
        .map(|f| f.get_ref())
        .filter(|f| f.master == number);
    let each = mine.map(|f| RackFault {
        at: time(f.at_s),
        until: match (f.kind, f.for_s) {
            (_, Some(s)) => Some(time(f.at_s + s)),
            (scenario::FaultKind::ModuleSwapped, None) => Some(time(f.at_s + 1.0)),
            (_, None) => None,
        },
        kind: f.kind,
        slave: f.slave.map(|s| usize::from(s) - 1),
        cell: f.cell.unwrap_or(0),
        mv: Millivolts(f.mv.unwrap_or(0)),
        share: f.share.unwrap_or(0.0),
        anchor: f.anchor,
        dc: DeciCelsius((f.temp_c.unwrap_or(0.0) * 10.0).round() as i16),
        part: f.part,
    });
    each.collect()
}

fn commands(scenario: &Scenario, number: u32) -> Vec<RackCommand> {
    let mine = scenario
        .commands
        .iter()
        .map(|c| c.get_ref())
        .filter(|c| c.master == number);
    let each = mine.map(|c| RackCommand {
        at: Instant::from_nanos((c.at_s * 1e9) as u64),
        cmd: c.cmd.clone(),
        on: c.on,
    });
    each.collect()
}
