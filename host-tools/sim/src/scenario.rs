//! Scenario files: what plant to build, what to feed it, what to break and when.
//!
//! Every error is one sentence that names the file, the line and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};

use helio_bus::BusKind;
use helio_master::MAX_BUSES;
use helio_master::sleep::SleepConfig;
use helio_slave::SlaveSleep;
use helio_units::{Duration, NodeId};
use serde::Deserialize;
use toml::Spanned;

use crate::terminals::{Part, Parts};

/// A scenario as read from its file, checked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Shown in the report.
    pub name: String,
    /// Seed of everything random.
    #[serde(default = "one")]
    pub seed: u64,
    /// Virtual time to run.
    pub duration_s: Spanned<f64>,
    /// Which bus, or several.
    #[serde(default = "default_bus")]
    pub bus: Spanned<Buses>,
    /// From SYNC to SYNC; what the bus has for its usual number of slaves when absent. Of several buses each has its own.
    pub cycle_ms: Option<Spanned<f64>>,
    /// CAN 2.0: now and then slaves say all their cells at once, all measured at one SYNC.
    #[serde(default)]
    pub snapshots: bool,
    /// Racks, each with its own master and buses.
    #[serde(default = "one_spanned")]
    pub masters: Spanned<u32>,
    /// Slaves and cells of each rack.
    #[serde(default)]
    pub pack: Pack,
    /// Anchors and tags of each rack.
    #[serde(default)]
    pub hall: Hall,
    /// Main contactors, precharge and link of each rack; without it the slaves' gates are all there is.
    pub contactors: Option<Spanned<Parts>>,
    /// When racks rest; without it only when told.
    pub sleep: Option<Spanned<Rest>>,
    /// What an operator orders.
    #[serde(default, rename = "command")]
    pub commands: Vec<Spanned<Command>>,
    /// What breaks.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Spanned<Fault>>,
    /// Where the file lies; relative paths in it start there.
    #[serde(skip)]
    pub dir: PathBuf,
}

fn one() -> u64 {
    1
}
fn one_spanned() -> Spanned<u32> {
    Spanned::new(0..0, 1)
}
fn default_bus() -> Spanned<Buses> {
    bare(Buses::One("can-1m".into()))
}

/// `bus = "can-1m"`, or a table `[[bus]]` for each of several.
#[derive(Clone, Debug)]
pub enum Buses {
    /// All slaves of the rack are on it.
    One(String),
    /// The slaves of the rack are on them in order.
    Several(Vec<Spanned<Bus>>),
}

/// `[[bus]]`: one of several buses of a master.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// Which.
    pub kind: Spanned<String>,
    /// Slaves on it.
    pub slaves: Spanned<u8>,
    /// From SYNC to SYNC; what the bus has for its usual number of slaves when absent.
    pub cycle_ms: Option<Spanned<f64>>,
}

impl<'de> Deserialize<'de> for Buses {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = Buses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a bus, or a table [[bus]] for each of several")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Buses, E> {
                Ok(Buses::One(name.into()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut all: A,
            ) -> Result<Buses, A::Error> {
                let mut buses = Vec::new();
                while let Some(bus) = all.next_element()? {
                    buses.push(bus);
                }
                Ok(Buses::Several(buses))
            }
        }

        from.deserialize_any(Either)
    }
}

/// What a scenario wants of one bus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BusWanted {
    /// Which.
    pub kind: BusKind,
    /// Slaves on it.
    pub slaves: usize,
    /// From SYNC to SYNC, if not the usual.
    pub cycle: Option<Duration>,
    /// It is one of several, with a seat for each of its slaves and no more.
    pub shared: bool,
}

/// Slaves and their cells.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pack {
    /// Slaves, `1..=127`; with `[[bus]]` as many as those have.
    pub slaves: Spanned<u8>,
    /// Cells in series at each slave, `0..=18`.
    pub cells: Spanned<u8>,
    /// Temperature sensors at each slave, `0..=8`.
    pub temps: Spanned<u8>,
    /// Strings in parallel.
    pub strings: Spanned<u8>,
    /// Cell parameter file; built-in NMC cell when absent.
    pub cell: Option<Spanned<PathBuf>>,
    /// What has become of the cells' electrodes; new cells when absent.
    pub aged: Aged,
    /// State of charge at the start, `0..=1`.
    pub soc: Spanned<f64>,
    /// 1-sigma of the cells' state of charge at the start.
    pub soc_sigma: f64,
    /// Current through each string, discharge positive, when there is no trace.
    pub current_a: f64,
    /// CSV with columns `time_s,current_a` that drives each string, repeated from its end.
    pub current_trace: Option<Spanned<PathBuf>>,
    /// Factor on the trace's current.
    pub current_scale: f64,
    /// Ambient and cell temperature.
    pub temp_c: f64,
    /// How often a slave measures.
    pub sample_period_ms: Spanned<u32>,
    /// 1-sigma of the voltage measurement.
    pub noise_mv: f64,
    /// 1-sigma of the current measurement.
    pub noise_ma: f64,
    /// Slaves' crystals differ by up to this from the master's.
    pub crystal_ppm: f64,
}

impl Default for Pack {
    fn default() -> Self {
        Self {
            slaves: bare(32),
            cells: bare(16),
            temps: bare(4),
            strings: bare(2),
            cell: None,
            aged: Aged::default(),
            soc: bare(0.8),
            soc_sigma: 0.01,
            current_a: 2.0,
            current_trace: None,
            current_scale: 1.0,
            temp_c: 25.0,
            sample_period_ms: bare(10),
            noise_mv: 0.5,
            noise_ma: 10.0,
            crystal_ppm: 50.0,
        }
    }
}

/// `[pack.aged]`: the cells of the plant have aged and the master is told of new ones. Shares of the new cell.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aged {
    /// Lithium lost, `0..=0.5`.
    pub lithium_lost: Spanned<f32>,
    /// Active material left at the negative electrode, `0.5..=1`.
    pub negative_left: Spanned<f32>,
    /// Active material left at the positive electrode, `0.5..=1`.
    pub positive_left: Spanned<f32>,
}

impl Default for Aged {
    fn default() -> Self {
        Self {
            lithium_lost: bare(0.0),
            negative_left: bare(1.0),
            positive_left: bare(1.0),
        }
    }
}

/// A cycle as a file has it.
fn cycle(ms: &Option<Spanned<f64>>) -> Option<Duration> {
    Some(Duration::from_nanos((ms.as_ref()?.get_ref() * 1e6) as u64))
}

fn bare<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

/// Anchors and tags.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hall {
    /// Anchors, dealt out to the slaves in turn, at most 16 each.
    pub anchors: Spanned<u16>,
    /// Anchor map file; without it anchors hang in a grid over the hall.
    pub map: Option<Spanned<PathBuf>>,
    /// Tags that move about.
    pub tags: Spanned<u16>,
    /// Floor, metres east.
    pub length_m: f64,
    /// Floor, metres north.
    pub width_m: f64,
    /// Height of the anchors, metres.
    pub ceiling_m: f64,
    /// Height of the tags, metres.
    pub tag_height_m: f64,
    /// 1-sigma of a range.
    pub noise_mm: f64,
    /// Anchors see no farther.
    pub sight_m: f64,
    /// Speed of the tags.
    pub speed_m_per_s: f64,
}

impl Default for Hall {
    fn default() -> Self {
        Self {
            anchors: bare(0),
            map: None,
            tags: bare(0),
            length_m: 40.0,
            width_m: 20.0,
            ceiling_m: 6.0,
            tag_height_m: 1.2,
            noise_mm: 50.0,
            sight_m: 15.0,
            speed_m_per_s: 1.0,
        }
    }
}

/// Something that breaks at a given time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Virtual time.
    pub at_s: f64,
    /// What.
    pub kind: FaultKind,
    /// Which rack, from 1.
    #[serde(default = "first_rack")]
    pub master: u32,
    /// Which slave, counted from 1 in the order of the rack (not the seat).
    pub slave: Option<u8>,
    /// For how long; to the end when absent.
    pub for_s: Option<f64>,
    /// Which cell, from 0 (sensor-stuck, cell-over-voltage).
    pub cell: Option<u8>,
    /// Voltage at the cell (cell-over-voltage).
    pub mv: Option<u16>,
    /// Share of frames that do not arrive (frame-loss), `0..=1`.
    pub share: Option<f64>,
    /// Which anchor of the slave, from 0 (anchor-blocked).
    pub anchor: Option<u8>,
    /// Temperature that a sensor shows (temperature).
    pub temp_c: Option<f64>,
    /// Which contact (contactor-welded, contactor-stuck).
    pub part: Option<Part>,
}

/// `[sleep]` of a scenario: how racks and their slaves save current.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rest {
    /// A rack that is switched off and idle falls asleep after so long; only when told if left out.
    pub after_s: Option<f64>,
    /// How often a sleeping rack is looked at.
    pub check_every_s: f64,
    /// How long a look takes.
    pub check_for_s: f64,
    /// A slave sleeps when the master has been silent for so long; never if left out.
    pub slave_after_s: Option<f64>,
    /// Time between samples of a sleeping slave.
    pub slave_period_s: f64,
}

impl Default for Rest {
    fn default() -> Self {
        let master = SleepConfig::default();
        Self {
            after_s: None,
            check_every_s: master.check_every.as_millis() as f64 * 1e-3,
            check_for_s: master.check_for.as_millis() as f64 * 1e-3,
            slave_after_s: None,
            slave_period_s: 1.0,
        }
    }
}

impl Rest {
    /// That of a scenario.
    pub fn of(scenario: &Scenario) -> Self {
        scenario
            .sleep
            .as_ref()
            .map(|s| *s.get_ref())
            .unwrap_or_default()
    }

    /// What the masters do.
    pub fn master(&self) -> SleepConfig {
        SleepConfig {
            after: self.after_s.map(seconds),
            check_every: seconds(self.check_every_s),
            check_for: seconds(self.check_for_s),
        }
    }

    /// What the slaves do.
    pub fn slave(&self) -> Option<SlaveSleep> {
        Some(SlaveSleep {
            after: seconds(self.slave_after_s?),
            period: seconds(self.slave_period_s),
        })
    }

    /// The number that cannot be, if there is one.
    fn wrong(&self) -> Option<&'static str> {
        let numbers = [
            ("after_s", self.after_s.unwrap_or(1.0)),
            ("check_every_s", self.check_every_s),
            ("check_for_s", self.check_for_s),
            ("slave_after_s", self.slave_after_s.unwrap_or(1.0)),
            ("slave_period_s", self.slave_period_s),
        ];
        let bad = |(_, v): &&(&str, f64)| !(*v >= 0.001 && *v <= 1e7);
        numbers.iter().find(bad).map(|(name, _)| *name)
    }
}

fn seconds(s: f64) -> Duration {
    Duration::from_micros((s * 1e6) as u64)
}

/// Something that an operator orders at a given time.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Virtual time.
    pub at_s: f64,
    /// Which rack, from 1.
    #[serde(default = "first_rack")]
    pub master: u32,
    /// A command of the northbound interface that concerns the whole: `gate`, `balance`, `sleep`, `clear`.
    pub cmd: String,
    /// Switch (gate, balance, sleep).
    pub on: Option<bool>,
}

/// Commands that a scenario may give.
pub const COMMANDS: [&str; 4] = ["gate", "balance", "sleep", "clear"];

fn first_rack() -> u32 {
    1
}

/// The faults that the simulator knows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// Power lost; comes back after `for_s` as if just switched on.
    SlaveDead,
    /// Its application asks for endless messages.
    SlaveBabbling,
    /// Frames of this slave (or of all) do not arrive at the master.
    FrameLoss,
    /// A cell's measurement stays where it is.
    SensorStuck,
    /// A cell's voltage is raised to `mv`.
    CellOverVoltage,
    /// Pulled out, and after `for_s` (1 s when absent) another module sits there.
    ModuleSwapped,
    /// Light does not get through to an anchor (or all of a slave).
    AnchorBlocked,
    /// The master stops.
    MasterDead,
    /// The wire of a cell breaks: no valid measurement of it.
    CellOpen,
    /// All temperatures of a slave are not measured any more.
    TemperatureOpen,
    /// A sensor shows `temp_c` (`cell` is its number).
    Temperature,
    /// The current is not measured any more.
    CurrentLost,
    /// The current stays where it is.
    CurrentStuck,
    /// The measuring chip gives no more answers.
    SensorsSilent,
    /// A contact of the master's contactors conducts for good.
    ContactorWelded,
    /// A contact of the master's contactors does not close.
    ContactorStuck,
    /// The link is shorted.
    LinkShort,
}

impl FaultKind {
    /// As written in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::SlaveDead => "slave-dead",
            Self::SlaveBabbling => "slave-babbling",
            Self::FrameLoss => "frame-loss",
            Self::SensorStuck => "sensor-stuck",
            Self::CellOverVoltage => "cell-over-voltage",
            Self::ModuleSwapped => "module-swapped",
            Self::AnchorBlocked => "anchor-blocked",
            Self::MasterDead => "master-dead",
            Self::CellOpen => "cell-open",
            Self::TemperatureOpen => "temperature-open",
            Self::Temperature => "temperature",
            Self::CurrentLost => "current-lost",
            Self::CurrentStuck => "current-stuck",
            Self::SensorsSilent => "sensors-silent",
            Self::ContactorWelded => "contactor-welded",
            Self::ContactorStuck => "contactor-stuck",
            Self::LinkShort => "link-short",
        }
    }

    /// Whether it breaks something at the master and not at a slave.
    pub fn is_of_master(self) -> bool {
        matches!(
            self,
            Self::MasterDead | Self::ContactorWelded | Self::ContactorStuck | Self::LinkShort
        )
    }
}

/// One sentence: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1, where there is one.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub what: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.what),
            None => write!(f, "{}: {}", self.file.display(), self.what),
        }
    }
}

impl std::error::Error for InputError {}

/// Line, from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .as_bytes()
        .iter()
        .take(offset)
        .filter(|&&b| b == b'\n')
        .count()
}

/// Reads a text file, or says how it could not be.
pub fn read_text(file: &Path) -> Result<String, InputError> {
    std::fs::read_to_string(file).map_err(|e| {
        let remedy = match e.kind() {
            std::io::ErrorKind::NotFound => "there is no such file; check the path".to_string(),
            std::io::ErrorKind::InvalidData => {
                "this is not a text file in UTF-8; check that it is the right one".into()
            }
            _ => format!("{e}; check that the file can be read"),
        };
        InputError {
            file: file.into(),
            line: None,
            what: remedy,
        }
    })
}

/// Parses TOML, or says in which line it is wrong.
pub fn parse_toml<T: serde::de::DeserializeOwned>(
    file: &Path,
    text: &str,
) -> Result<T, InputError> {
    toml::from_str(text).map_err(|e| {
        // One sentence: the parser's own text may have line breaks.
        let message = e.message().lines().collect::<Vec<_>>().join(", ");
        let line = e.span().map(|s| line_of(text, s.start));
        InputError {
            file: file.into(),
            line,
            what: format!("{message}; correct this line"),
        }
    })
}

impl Scenario {
    /// Reads and checks a scenario file.
    pub fn load(file: &Path) -> Result<Self, InputError> {
        let text = read_text(file)?;
        let dir = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        Self::parse(file, &text, dir)
    }

    /// Checks a scenario's text; `file` is named in errors.
    pub fn parse(file: &Path, text: &str, dir: PathBuf) -> Result<Self, InputError> {
        let scenario = Self {
            dir,
            ..parse_toml(file, text)?
        };
        scenario.check().map_err(|(at, what)| InputError {
            file: file.into(),
            line: at.map(|offset| line_of(text, offset)),
            what,
        })?;
        Ok(scenario)
    }

    /// The buses of each rack, checked when the file was read.
    pub fn buses(&self) -> Vec<BusWanted> {
        let named = |name: &str| BusKind::from_name(name).unwrap_or(BusKind::Can1M);
        match self.bus.get_ref() {
            Buses::One(name) => vec![BusWanted {
                kind: named(name),
                slaves: usize::from(*self.pack.slaves.get_ref()),
                cycle: cycle(&self.cycle_ms),
                shared: false,
            }],
            Buses::Several(all) => {
                let each = all.iter().map(|bus| BusWanted {
                    kind: named(bus.get_ref().kind.get_ref()),
                    slaves: usize::from(*bus.get_ref().slaves.get_ref()),
                    cycle: cycle(&bus.get_ref().cycle_ms),
                    shared: true,
                });
                each.collect()
            }
        }
    }

    /// Slaves of each rack, on all buses.
    pub fn slaves(&self) -> usize {
        self.buses().iter().map(|bus| bus.slaves).sum()
    }

    /// Runs on another bus; of several, on as many of that kind.
    pub fn set_bus(&mut self, kind: BusKind) {
        if self.buses().iter().any(|bus| bus.kind != kind) {
            self.cycle_ms = None;
        }
        let mut bus = self.bus.get_ref().clone();
        match &mut bus {
            Buses::One(name) => *name = kind.name().into(),
            Buses::Several(all) => {
                for bus in all.iter_mut().map(Spanned::get_mut) {
                    if bus.kind.get_ref() != kind.name() {
                        bus.cycle_ms = None;
                    }
                    bus.kind = bare(kind.name().into());
                }
            }
        }
        self.bus = bare(bus);
    }

    /// Runs in another cycle.
    pub fn set_cycle_ms(&mut self, ms: f64) {
        self.cycle_ms = Some(bare(ms));
    }

    /// Runs for another time.
    pub fn set_duration_s(&mut self, seconds: f64) {
        self.duration_s = bare(seconds);
    }

    fn check(&self) -> Result<(), (Option<usize>, String)> {
        fn wrong<T>(at: &Spanned<T>, what: String) -> Result<(), (Option<usize>, String)> {
            let span = at.span();
            // A default has no place in the file.
            Err(((span.end > 0).then_some(span.start), what))
        }
        fn within<T>(
            name: &str,
            v: &Spanned<T>,
            range: std::ops::RangeInclusive<T>,
        ) -> Result<(), (Option<usize>, String)>
        where
            T: PartialOrd + fmt::Display,
        {
            if range.contains(v.get_ref()) {
                return Ok(());
            }
            let (value, low, high) = (v.get_ref(), range.start(), range.end());
            wrong(
                v,
                format!("{name} is {value}; choose a value from {low} to {high}"),
            )
        }
        fn known<T>(at: &Spanned<T>, name: &str) -> Result<(), (Option<usize>, String)> {
            if BusKind::from_name(name).is_some() {
                return Ok(());
            }
            let names = BusKind::ALL.map(BusKind::name).join(", ");
            wrong(
                at,
                format!("there is no bus \"{name}\"; choose one of {names}"),
            )
        }
        match self.bus.get_ref() {
            Buses::One(name) => known(&self.bus, name)?,
            Buses::Several(all) => {
                if !(1..=MAX_BUSES).contains(&all.len()) {
                    let count = all.len();
                    wrong(
                        &self.bus,
                        format!(
                            "there are {count} buses; a master has 1 to {MAX_BUSES}, so leave some out or add a master"
                        ),
                    )?;
                }
                for bus in all.iter().map(Spanned::get_ref) {
                    known(&bus.kind, bus.kind.get_ref())?;
                    within("slaves", &bus.slaves, 1..=127)?;
                    if let Some(cycle_ms) = &bus.cycle_ms {
                        within("cycle_ms", cycle_ms, 1.0..=1e3)?;
                    }
                }
                if let Some(cycle_ms) = &self.cycle_ms {
                    let what = "cycle_ms is that of the only bus; give it to each [[bus]] that shall have it";
                    wrong(cycle_ms, what.into())?;
                }
                let sum = self.slaves();
                if sum > usize::from(NodeId::MAX.get()) {
                    wrong(
                        &self.bus,
                        format!(
                            "the buses have {sum} slaves; a master has at most 127, so take fewer or add a master"
                        ),
                    )?;
                }
                let slaves = &self.pack.slaves;
                if slaves.span().end > 0 && usize::from(*slaves.get_ref()) != sum {
                    wrong(
                        slaves,
                        format!(
                            "slaves is {} but the buses have {sum}; leave it out",
                            slaves.get_ref()
                        ),
                    )?;
                }
            }
        }
        within("duration_s", &self.duration_s, 0.001..=1e7)?;
        if let Some(cycle_ms) = &self.cycle_ms {
            within("cycle_ms", cycle_ms, 1.0..=1e3)?;
        }
        within("masters", &self.masters, 1..=64)?;
        let pack = &self.pack;
        within("slaves", &pack.slaves, 1..=127)?;
        within("cells", &pack.cells, 0..=18)?;
        within("temps", &pack.temps, 0..=8)?;
        within("soc", &pack.soc, 0.0..=1.0)?;
        within("lithium_lost", &pack.aged.lithium_lost, 0.0..=0.5)?;
        within("negative_left", &pack.aged.negative_left, 0.5..=1.0)?;
        within("positive_left", &pack.aged.positive_left, 0.5..=1.0)?;
        within("sample_period_ms", &pack.sample_period_ms, 1..=1000)?;
        let slaves = u8::try_from(self.slaves()).unwrap_or(u8::MAX);
        let strings = *pack.strings.get_ref();
        within("strings", &pack.strings, 1..=16)?;
        if slaves % strings != 0 {
            wrong(
                &pack.strings,
                format!(
                    "{slaves} slaves do not form {strings} equal strings; choose a divisor of {slaves}"
                ),
            )?;
        }
        let most = u16::from(slaves) * 16;
        within("anchors", &self.hall.anchors, 0..=most)?;
        within("tags", &self.hall.tags, 0..=64)?;
        if let Some(contactors) = &self.contactors
            && let Some(name) = contactors.get_ref().wrong()
        {
            wrong(
                contactors,
                format!("{name} must be above 0; correct it or leave it out"),
            )?;
        }
        if let Some(sleep) = &self.sleep
            && let Some(name) = sleep.get_ref().wrong()
        {
            wrong(
                sleep,
                format!("{name} must be from 0.001 to 10000000 s; correct it or leave it out"),
            )?;
        }
        for command in &self.commands {
            let c = command.get_ref();
            if !(c.at_s >= 0.0 && (1..=*self.masters.get_ref()).contains(&c.master)) {
                wrong(
                    command,
                    "command: at_s must be 0 or more and master one that there is".to_string(),
                )?;
            }
            if !COMMANDS.contains(&c.cmd.as_str()) {
                let names = COMMANDS.join(", ");
                wrong(
                    command,
                    format!(
                        "there is no command \"{}\" here; choose one of {names}",
                        c.cmd
                    ),
                )?;
            }
            if c.cmd != "clear" && c.on.is_none() {
                wrong(
                    command,
                    format!("command {} needs on = true or false", c.cmd),
                )?;
            }
        }
        for fault in &self.faults {
            let f = fault.get_ref();
            let name = f.kind.name();
            if !(f.at_s >= 0.0 && f.for_s.is_none_or(|s| s > 0.0)) {
                wrong(
                    fault,
                    format!("fault {name}: at_s must be 0 or more and for_s above 0"),
                )?;
            }
            if !(1..=*self.masters.get_ref()).contains(&f.master) {
                wrong(
                    fault,
                    format!(
                        "fault {name}: there is no master {}; choose 1 to {}",
                        f.master,
                        self.masters.get_ref()
                    ),
                )?;
            }
            let needs_slave = !f.kind.is_of_master() && f.kind != FaultKind::FrameLoss;
            if f.kind.is_of_master() && f.kind != FaultKind::MasterDead && self.contactors.is_none()
            {
                wrong(
                    fault,
                    format!("fault {name} needs contactors; add a table [contactors]"),
                )?;
            }
            if matches!(
                f.kind,
                FaultKind::ContactorWelded | FaultKind::ContactorStuck
            ) && f.part.is_none()
            {
                wrong(
                    fault,
                    format!(
                        "fault {name} needs part = \"negative\", \"precharge\" or \"positive\""
                    ),
                )?;
            }
            if f.kind == FaultKind::Temperature
                && !f.temp_c.is_some_and(|t| (-100.0..=300.0).contains(&t))
            {
                wrong(
                    fault,
                    format!("fault {name} needs temp_c, what the sensor shows, from -100 to 300"),
                )?;
            }
            match f.slave {
                None if needs_slave => {
                    wrong(fault, format!("fault {name} needs slave = 1 to {slaves}"))?
                }
                Some(s) if s == 0 || s > slaves => {
                    wrong(
                        fault,
                        format!("fault {name}: there is no slave {s}; choose 1 to {slaves}"),
                    )?;
                }
                _ => {}
            }
            let needs_cell = matches!(
                f.kind,
                FaultKind::SensorStuck | FaultKind::CellOverVoltage | FaultKind::CellOpen
            );
            let cells = *pack.cells.get_ref();
            if needs_cell && f.cell.is_none_or(|c| c >= cells) {
                wrong(
                    fault,
                    format!("fault {name} needs cell = 0 to {}", cells.saturating_sub(1)),
                )?;
            }
            if f.kind == FaultKind::CellOverVoltage && f.mv.is_none() {
                wrong(
                    fault,
                    format!("fault {name} needs mv, the voltage that the cell shall have"),
                )?;
            }
            if f.kind == FaultKind::FrameLoss && !f.share.is_some_and(|s| (0.0..=1.0).contains(&s))
            {
                wrong(fault, format!("fault {name} needs share, from 0 to 1"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Scenario::parse(Path::new("x.toml"), text, PathBuf::new())
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn a_scenario_that_cannot_run_is_refused_with_line_and_remedy() {
        let head = "name = \"x\"\nduration_s = 1\n";
        let cases = [
            (
                "bus = \"can-2m\"\n",
                "x.toml:3: there is no bus \"can-2m\"; choose one of can-500k, can-1m,",
            ),
            (
                "masters = 0\n",
                "x.toml:3: masters is 0; choose a value from 1 to 64",
            ),
            (
                "[pack]\nslaves = 200\n",
                "x.toml:4: slaves is 200; choose a value from 1 to 127",
            ),
            (
                "[pack]\nslaves = 10\nstrings = 3\n",
                "x.toml:5: 10 slaves do not form 3 equal strings",
            ),
            ("[pack]\ncels = 3\n", "x.toml:4: unknown field `cels`"),
            (
                "[[fault]]\nat_s = 1\nkind = \"gremlin\"\n",
                "x.toml:5: unknown variant `gremlin`",
            ),
            (
                "[[fault]]\nat_s = 1\nkind = \"slave-dead\"\nslave = 40\n",
                "there is no slave 40; choose 1 to 32",
            ),
            (
                "[[fault]]\nat_s = 1\nkind = \"cell-over-voltage\"\nslave = 4\ncell = 16\n",
                "needs cell = 0 to 15",
            ),
            (
                "[[fault]]\nat_s = 1\nkind = \"frame-loss\"\n",
                "needs share, from 0 to 1",
            ),
            (
                "[[fault]]\nat_s = 1\nkind = \"link-short\"\n",
                "needs contactors; add a table [contactors]",
            ),
            (
                "[contactors]\n[[fault]]\nat_s = 1\nkind = \"contactor-welded\"\n",
                "needs part = \"negative\"",
            ),
            (
                "[contactors]\nlink_mf = 0\n",
                "x.toml:3: link_mf must be above 0",
            ),
            (
                "[[fault]]\nat_s = 1\nkind = \"temperature\"\nslave = 1\n",
                "needs temp_c, what the sensor shows",
            ),
            (
                "[[command]]\nat_s = 1\ncmd = \"explode\"\n",
                "there is no command \"explode\" here; choose one of gate, balance, sleep, clear",
            ),
            (
                "[[command]]\nat_s = 1\ncmd = \"gate\"\n",
                "command gate needs on = true or false",
            ),
            (
                "[[command]]\nat_s = -1\ncmd = \"clear\"\n",
                "at_s must be 0 or more",
            ),
            (
                "[[bus]]\nkind = \"can-2m\"\nslaves = 2\n",
                "x.toml:4: there is no bus \"can-2m\"; choose one of",
            ),
            (
                "[[bus]]\nkind = \"can-1m\"\nslaves = 0\n",
                "x.toml:5: slaves is 0; choose a value from 1 to 127",
            ),
            (
                "[[bus]]\nkind = \"can-1m\"\n",
                "x.toml:3: missing field `slaves`",
            ),
            (
                "cycle_ms = 5\n[[bus]]\nkind = \"can-1m\"\nslaves = 2\n",
                "x.toml:3: cycle_ms is that of the only bus; give it to each [[bus]]",
            ),
            (
                "[[bus]]\nkind = \"can-1m\"\nslaves = 100\n[[bus]]\nkind = \"can-1m\"\nslaves = 100\n",
                "the buses have 200 slaves; a master has at most 127",
            ),
            (
                "[[bus]]\nkind = \"can-1m\"\nslaves = 4\n[pack]\nslaves = 8\n",
                "x.toml:7: slaves is 8 but the buses have 4; leave it out",
            ),
            (
                "bus = []\n",
                "x.toml:3: there are 0 buses; a master has 1 to 4",
            ),
            (
                "bus = 5\n",
                "x.toml:3: invalid type: integer `5`, expected the name of a bus, or a table [[bus]]",
            ),
        ];
        for (body, expected) in cases {
            let found = error(&format!("{head}{body}"));
            assert!(found.contains(expected), "{body:?} gave {found:?}");
            assert_eq!(found.lines().count(), 1, "{found}");
        }
        assert!(error("name = \"x\"\n").contains("duration_s"));
        assert!(error("name = \n").starts_with("x.toml:1: "));
    }
}
