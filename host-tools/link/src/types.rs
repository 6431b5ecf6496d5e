//! Answers and records of the northbound interface, as `docs/northbound.md` has them.
//!
//! The same types read CBOR from a master and write JSON with the same keys for the bridge, the
//! cloud and the command line. Units stand in the field names; `None` is a missing measurement.
//! Keys that are not known here are ignored, records of unknown kind are kept as they are.

use std::collections::BTreeMap;

use ciborium::Value;
use serde::{Deserialize, Serialize};

/// Life of a node as the master sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Expected, not on the bus.
    Absent,
    /// Joined, no complete measurement yet.
    Init,
    /// Measuring, gate off.
    Standby,
    /// Measuring, gate on.
    Active,
    /// Its protection opened the gate.
    Tripped,
    /// Told to keep its gate off.
    Isolated,
    /// Told to be silent.
    Quarantined,
    /// A state that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// State of the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackState {
    /// No slave.
    Empty,
    /// All expected slaves are there and well.
    Ready,
    /// Some are not.
    Degraded,
    /// Some slave tripped.
    Tripped,
    /// It rests: all open, the bus quiet; what is told of it was so when it fell asleep.
    Asleep,
    /// A state that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How bad, in order of urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to report.
    #[default]
    None,
    /// Worth a look.
    Warn,
    /// Power must be reduced.
    Derate,
    /// The gate is off.
    Trip,
    /// A severity that this version does not know: take it as bad.
    #[serde(other)]
    Unknown,
}

/// The pack as one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// State of the whole.
    pub state: PackState,
    /// Sum over the string.
    pub voltage_mv: Option<u32>,
    /// Discharge positive.
    pub current_ma: Option<i32>,
    /// State of charge, mean of all cells.
    pub soc_ppm: Option<u32>,
    /// Of the emptiest cell.
    pub soc_min_ppm: Option<u32>,
    /// Of the fullest cell.
    pub soc_max_ppm: Option<u32>,
    /// State of health, capacity over that of the new cells: mean of the slaves of which it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soh_ppm: Option<u32>,
    /// Of the smallest cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soh_min_ppm: Option<u32>,
    /// Lowest cell.
    pub cell_min_mv: Option<u16>,
    /// Highest cell.
    pub cell_max_mv: Option<u16>,
    /// Warmest sensor, tenths of °C.
    pub temp_max_dc: Option<i16>,
    /// Slaves on the bus.
    pub members: u16,
    /// Slaves that should be.
    pub expected: u16,
    /// Strings of slaves in series that are whole and connected.
    #[serde(default)]
    pub strings_connected: u16,
    /// Where the main contactors stand: `none`, `open`, `precharging`, `closed`, `opening`, `cooling down` or a fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contactors: Option<String>,
    /// Voltage behind the contactors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_mv: Option<u32>,
    /// Power that can be drawn for 2, 10 and 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discharge_w: Option<[u32; 3]>,
    /// Power that can be fed for 2, 10 and 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charge_w: Option<[u32; 3]>,
}

/// One line of the table of nodes; on the wire an array in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "NodeRow", into = "NodeRow")]
pub struct Node {
    /// Seat, `1..=127`.
    pub node: u8,
    /// Unique id, 16 hex digits.
    pub uid: String,
    /// Life.
    pub state: NodeState,
    /// Worst active severity.
    pub severity: Severity,
    /// Cells in series.
    pub cells: u8,
    /// Temperature sensors.
    pub temps: u8,
    /// Luminaires or receivers.
    pub anchors: u8,
    /// Whether the gate is on.
    pub gate_on: bool,
}

type NodeRow = (u8, String, NodeState, Severity, u8, u8, u8, bool);

impl From<NodeRow> for Node {
    fn from((node, uid, state, severity, cells, temps, anchors, gate_on): NodeRow) -> Self {
        Self {
            node,
            uid,
            state,
            severity,
            cells,
            temps,
            anchors,
            gate_on,
        }
    }
}

impl From<Node> for NodeRow {
    fn from(n: Node) -> Self {
        (
            n.node, n.uid, n.state, n.severity, n.cells, n.temps, n.anchors, n.gate_on,
        )
    }
}

/// State of a master.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The master's own name.
    pub name: String,
    /// Time since it started.
    pub uptime_ms: u64,
    /// Oldest record still kept.
    pub seq_first: u64,
    /// Number that the next record will get.
    pub seq_next: u64,
    /// Kind of the bus, as `can-1m`.
    pub bus: String,
    /// Share of the last second in which the bus was busy.
    pub load_ppm: u32,
    /// Longest time from sample to master lately.
    pub latency_max_us: Option<u32>,
    /// The pack as one.
    pub pack: Pack,
    /// The device that got no seat last, because with it the bus would be too full: its id, the message
    /// that would come too late, when that would come and when it must, µs. Older masters do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<(String, String, Option<u32>, Option<u32>)>,
    /// Number of nodes known.
    #[serde(default)]
    pub total: u32,
    /// Place of the first one listed here.
    #[serde(default)]
    pub off: u32,
    /// As many as fit the datagram, from `off` on; [`crate::Client::status`] joins them.
    pub nodes: Vec<Node>,
}

/// A batch of records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Oldest sequence number still kept; above what was asked for, records are lost.
    pub first: u64,
    /// What to ask for next.
    pub next: u64,
    /// Oldest first.
    pub records: Vec<Record>,
}

/// Something that was so at some time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Rises by one from record to record; starts at 1 with the master.
    pub seq: u64,
    /// Time since the master started.
    pub t_us: u64,
    /// The rest, by `kind`.
    #[serde(flatten)]
    pub data: Data,
}

/// What a record says. A record of known kind whose fields are not as expected is kept as
/// [`Data::Other`] too: one such record must not hold up all later ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Data {
    /// The pack as one.
    Pack(PackRecord),
    /// A slave and its cells.
    Slave(SlaveRecord),
    /// Position of a tag.
    Tag(TagRecord),
    /// Something happened.
    Event(EventRecord),
    /// Of a kind that this version does not know; the fields with `kind` among them.
    #[serde(untagged)]
    Other(BTreeMap<String, Value>),
}

impl Record {
    /// The kind as on the wire.
    pub fn kind(&self) -> &str {
        match &self.data {
            Data::Pack(_) => "pack",
            Data::Slave(_) => "slave",
            Data::Tag(_) => "tag",
            Data::Event(_) => "event",
            Data::Other(fields) => fields.get("kind").and_then(Value::as_text).unwrap_or(""),
        }
    }
}

/// The pack and its bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRecord {
    /// The pack as one.
    #[serde(flatten)]
    pub pack: Pack,
    /// As in [`Status`].
    pub load_ppm: u32,
    /// As in [`Status`].
    pub latency_max_us: Option<u32>,
}

/// All of a slave's cells at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlaveRecord {
    /// Seat.
    pub node: u8,
    /// Unique id, 16 hex digits.
    pub uid: String,
    /// Life.
    pub state: NodeState,
    /// Worst active severity.
    pub severity: Severity,
    /// Whether the gate is on.
    pub gate_on: bool,
    /// Whether any cell is being bled.
    pub balancing: bool,
    /// Discharge positive.
    pub current_ma: Option<i32>,
    /// Cell voltages.
    pub cells_mv: Vec<Option<u16>>,
    /// State of charge of each cell.
    pub soc_ppm: Vec<Option<u32>>,
    /// Temperatures, tenths of °C.
    pub temps_dc: Vec<Option<i16>>,
    /// State of health of its cells, when something is known of it.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// State of health of a slave's cells, as parts per million of the new cell's; sigma is one standard deviation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Capacity of the mean cell.
    pub soh_ppm: u32,
    /// How sure.
    pub soh_sigma_ppm: u32,
    /// Capacity of the smallest cell.
    pub soh_min_ppm: u32,
    /// Series resistance of the mean cell.
    pub resistance_ppm: u32,
    /// How sure.
    pub resistance_sigma_ppm: u32,
}

/// Position of a tag in the room frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// Which tag.
    pub tag: u16,
    /// First horizontal axis.
    pub x_mm: i32,
    /// Second horizontal axis.
    pub y_mm: i32,
    /// Up.
    pub z_mm: i32,
    /// One standard deviation, horizontal.
    pub sigma_mm: u32,
    /// Anchors used.
    pub anchors: u8,
    /// Root mean square of what the fix leaves unexplained.
    pub residual_mm: u32,
    /// Ranges left out as faulty; older masters do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excluded: Option<u8>,
    /// The horizontal error stays below this, even with one undetected fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protection_mm: Option<u32>,
    /// Where the tag is by all ranges so far, when it is followed: x, y, z.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_mm: Option<[i32; 3]>,
    /// One standard deviation of the track, horizontal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_sigma_mm: Option<u32>,
    /// Velocity of the track.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub velocity_mm_s: Option<[i32; 3]>,
}

/// Something happened. Fields that mean nothing for the event are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// `joined`, `left`, `replaced`, `duplicate`, `refused`, `quarantined`, `isolated`, `released`,
    /// `trip`, `alarm`, `command`, `map`, `asleep`, `awake` or what the contactors did.
    pub what: String,
    /// Whom it concerns; `None` is the whole.
    pub node: Option<u8>,
    /// Unique id of the device, 16 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// How bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Diagnostic code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u32>,
    /// Cell, sensor or anchor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// The offending value, in the unit of the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<i64>,
    /// Set or cleared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<bool>,
    /// The event as a sentence.
    #[serde(default)]
    pub text: String,
}

/// An anchor of the map; on the wire an array in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "AnchorRow", into = "AnchorRow")]
pub struct Anchor {
    /// Identity.
    pub id: u16,
    /// Seat of the slave that runs it.
    pub node: u8,
    /// Place at that slave.
    pub index: u8,
    /// First horizontal axis of the room frame.
    pub x_mm: i32,
    /// Second horizontal axis.
    pub y_mm: i32,
    /// Up.
    pub z_mm: i32,
    /// What its ranges are too long by.
    pub bias_mm: i32,
}

type AnchorRow = (u16, u8, u8, i32, i32, i32, i32);

impl From<AnchorRow> for Anchor {
    fn from((id, node, index, x_mm, y_mm, z_mm, bias_mm): AnchorRow) -> Self {
        Self {
            id,
            node,
            index,
            x_mm,
            y_mm,
            z_mm,
            bias_mm,
        }
    }
}

impl From<Anchor> for AnchorRow {
    fn from(a: Anchor) -> Self {
        (a.id, a.node, a.index, a.x_mm, a.y_mm, a.z_mm, a.bias_mm)
    }
}

/// The anchors of a room, or one piece of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Rises with every change.
    pub version: u32,
    /// Of the whole map.
    pub crc: u32,
    /// Number of anchors.
    pub total: u32,
    /// Place of the first one listed here.
    pub off: u32,
    /// As many as fit the datagram, from `off` on; [`crate::Client::map`] joins them.
    pub anchors: Vec<Anchor>,
}

/// An order to a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
pub enum Command {
    /// Whether gates may be on.
    Gate {
        /// They may.
        on: bool,
    },
    /// Keep a slave's gate off.
    Isolate {
        /// Its seat.
        node: u8,
        /// `false` releases it.
        on: bool,
    },
    /// Forget latched trips whose cause has gone.
    Clear {},
    /// Whether cells may be balanced.
    Balance {
        /// They may.
        on: bool,
    },
    /// Silence a slave.
    Quarantine {
        /// Its seat.
        node: u8,
        /// For so many milliseconds.
        #[serde(rename = "value")]
        ms: u32,
    },
    /// Choose the luminaires that shine.
    Light {
        /// The slave's seat.
        node: u8,
        /// Bit 0 is anchor 0.
        #[serde(rename = "value")]
        mask: u16,
    },
    /// Put the map that is held in force.
    Map {
        /// Its CRC.
        #[serde(rename = "value")]
        crc: u32,
    },
}

/// What a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Longest datagram, header included.
    pub buf_size: u32,
    /// How many at once.
    pub buf_count: u32,
}
