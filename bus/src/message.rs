//! What is said on the bus, free of how each medium spells it.
//!
//! A slave says: [`Trip`](Message::Trip), [`Alarm`], [`Summary`], [`Cells`], [`Temperatures`],
//! [`Ranges`]. The master says: [`Sync`], [`Command`]. CAN 2.0 carries them as classes of 8-byte
//! frames (52 payload bits behind the end-to-end header); CAN FD and RS485 carry summary, cells
//! and temperatures together as one [`State`].

use crate::analysis::Overfull;
use helio_units::{
    DeciCelsius, Duration, Instant, Milliamps, Millimetres, Millivolts, NodeId, TagId, Uid,
};

/// Most cells that one slave measures.
pub const MAX_CELLS: usize = 18;
/// Most temperature sensors of one slave.
pub const MAX_TEMPS: usize = 8;
/// Most luminaires or receivers that one slave runs.
pub const MAX_ANCHORS: usize = 16;

/// What a slave can do; announced when it joins, fixed until it leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Cells in series, `0..=18`.
    pub cells: u8,
    /// Temperature sensors, `0..=8`.
    pub temps: u8,
    /// Anchors, `0..=16`.
    pub anchors: u8,
}

impl Capabilities {
    /// Frames that cells and temperatures take on CAN 2.0: four cells and a temperature each, then six
    /// temperatures each.
    pub const fn details(self) -> u8 {
        let fours = self.fours();
        fours + self.temps.saturating_sub(fours).div_ceil(6)
    }

    /// Those of them with cells.
    pub(crate) const fn fours(self) -> u8 {
        self.cells.div_ceil(4)
    }
}

/// Life of a slave as it states it in every summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlaveState {
    /// No complete measurement yet; gate off.
    #[default]
    Init,
    /// Measuring, gate off because the master has not asked for it.
    Standby,
    /// Measuring, gate on.
    Active,
    /// Protection opened the gate and holds it.
    Tripped,
    /// Told to keep its gate off and its bus traffic to the summary.
    Isolated,
}

/// How bad it is; the order is the order of urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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
}

/// Sent every cycle by every slave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Life of the slave.
    pub state: SlaveState,
    /// Worst severity now active.
    pub severity: Severity,
    /// Whether the gate is on.
    pub gate_on: bool,
    /// Whether any cell is being balanced.
    pub balancing: bool,
    /// Current through the group, on the wire in steps of 10 mA up to ±1310 A;
    /// `None` when not measured or beyond that.
    pub current: Option<Milliamps>,
    /// Lowest cell; `None` when there is no valid cell.
    pub min: Option<Millivolts>,
    /// Highest cell.
    pub max: Option<Millivolts>,
}

/// All cell voltages of a group. `None` is an invalid measurement or a cell that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cells(pub [Option<Millivolts>; MAX_CELLS]);

/// All temperatures of a group, on the wire in whole degrees from -60 to 194 °C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Temperatures(pub [Option<DeciCelsius>; MAX_TEMPS]);

impl State {
    /// What [`Default`] gives: nothing measured.
    pub const EMPTY: Self = Self {
        summary: Summary {
            state: SlaveState::Init,
            severity: Severity::None,
            gate_on: false,
            balancing: false,
            current: None,
            min: None,
            max: None,
        },
        cells: Cells([None; MAX_CELLS]),
        temps: Temperatures([None; MAX_TEMPS]),
    };
}

impl Default for Cells {
    fn default() -> Self {
        Self([None; MAX_CELLS])
    }
}
impl Default for Temperatures {
    fn default() -> Self {
        Self([None; MAX_TEMPS])
    }
}

/// Everything cyclic that a group of cells says, one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Sent every cycle.
    pub summary: Summary,
    /// Sent every cycle on CAN FD and RS485; in turn, and now and then all at once, on CAN 2.0.
    pub cells: Cells,
    /// As `cells`.
    pub temps: Temperatures,
}

/// Distances from a slave's anchors to one tag, all of one instant. `None`: blocked or not there.
/// On the wire in millimetres up to 65 m.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// The tag that was ranged.
    pub tag: TagId,
    /// By anchor index at this slave.
    pub range: [Option<Millimetres>; MAX_ANCHORS],
}

/// A diagnostic event becoming active or inactive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Which event; the numbers are those of the slave core's table of diagnostics.
    pub code: u8,
    /// How bad.
    pub severity: Severity,
    /// `false` when the condition has cleared.
    pub active: bool,
    /// Cell, sensor or anchor concerned, `0..=31`.
    pub index: u8,
    /// The offending value in the unit of the event (mV, 0.1 °C, 0.1 A).
    pub value: i16,
}

/// Sent by the master at the start of every cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Cycle number, modulo 256.
    pub cycle: u8,
    /// The tag that anchors range to in this cycle; `None` when there is none.
    pub tag: Option<TagId>,
    /// Master's clock when the *previous* sync was on the wire, microseconds modulo 2^28.
    pub previous_us: u32,
}

/// An order from the master to one slave or, without `to`, to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// `None`: all slaves.
    pub to: Option<NodeId>,
    /// What to do.
    pub order: Order,
}

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Whether the gate may be on. Protection still has the last word.
    Gate(bool),
    /// Cells to bleed, bit 0 is cell 0.
    Balance(u32),
    /// Forget latched trips whose cause is gone.
    ClearLatch,
    /// Keep the gate off and say nothing but summaries.
    Isolate(bool),
    /// Say nothing at all for so long (up to 65 s, whole milliseconds), then join anew.
    Quarantine(Duration),
    /// Luminaires that shine, bit 0 is anchor 0.
    Light(u16),
}

/// Any cyclic message. Who said it is known from the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Some slave has opened its gate. All slaves send the same frame.
    Trip,
    /// Reason of a trip, or a lesser event.
    Alarm(NodeId, Alarm),
    /// Time and cycle.
    Sync(Sync),
    /// Order.
    Command(Command),
    /// Every cycle.
    Summary(NodeId, Summary),
    /// Cells `first..first + 4` and the sensor `first / 4` (CAN 2.0). Of four that differ by more than half a
    /// volt the wire carries steps of 8 mV.
    CellChunk {
        /// Who.
        node: NodeId,
        /// `0, 4, 8, 12, 16`.
        first: u8,
        /// In order; past the last cell `None`.
        cells: [Option<Millivolts>; 4],
        /// `None` where there is no such sensor, too.
        temp: Option<DeciCelsius>,
    },
    /// Sensors `first..first + 6`, which no chunk of cells has (CAN 2.0).
    TempChunk {
        /// Who.
        node: NodeId,
        /// `0..=7`.
        first: u8,
        /// In order; past the last sensor `None`.
        temps: [Option<DeciCelsius>; 6],
    },
    /// Anchors `first..first + 2` (CAN 2.0).
    RangeChunk {
        /// Who.
        node: NodeId,
        /// The tag ranged.
        tag: TagId,
        /// Even, `0..=14`.
        first: u8,
        /// In order.
        range: [Option<Millimetres>; 2],
    },
    /// All of a group at once (CAN FD, RS485).
    State(NodeId, State),
    /// All anchors at once (CAN FD, RS485).
    Ranges(NodeId, Ranges),
}

impl Message {
    /// The slave that says it.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Command(_) => None,
            _ => NodeId::new(crate::wire::data_id(self).node()),
        }
    }

    fn node_mut(&mut self) -> Option<&mut NodeId> {
        match self {
            Self::Alarm(node, _)
            | Self::Summary(node, _)
            | Self::CellChunk { node, .. }
            | Self::TempChunk { node, .. }
            | Self::RangeChunk { node, .. }
            | Self::State(node, _)
            | Self::Ranges(node, _) => Some(node),
            Self::Trip | Self::Sync(_) | Self::Command(_) => None,
        }
    }
}

/// Which buses there are. The numbers of the demo's `--bus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BusKind {
    /// CAN 2.0B, 500 kbit/s.
    Can500k,
    /// CAN 2.0B, 1 Mbit/s.
    Can1M,
    /// CAN FD, 1 Mbit/s arbitration and 5 Mbit/s data.
    CanFd,
    /// RS485, 1 Mbaud, 8N1.
    Rs485At1M,
    /// RS485, 4 Mbaud, 8N1.
    Rs485At4M,
    /// RS485, 115200 baud, 8N1.
    Rs485At115k,
}

impl BusKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Can500k,
        Self::Can1M,
        Self::CanFd,
        Self::Rs485At1M,
        Self::Rs485At4M,
        Self::Rs485At115k,
    ];

    /// As commands, scenario files and clients write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Can500k => "can-500k",
            Self::Can1M => "can-1m",
            Self::CanFd => "canfd",
            Self::Rs485At1M => "rs485-1m",
            Self::Rs485At4M => "rs485-4m",
            Self::Rs485At115k => "rs485-115k",
        }
    }

    /// Whether it is RS485, not CAN.
    pub const fn is_serial(self) -> bool {
        matches!(self, Self::Rs485At1M | Self::Rs485At4M | Self::Rs485At115k)
    }

    /// The bus of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// A CAN or CAN FD frame as controllers take it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CanFrame {
    /// Identifier.
    pub id: CanId,
    /// FD format with bit-rate switch.
    pub fd: bool,
    len: u8,
    data: [u8; 64],
}

/// An 11-bit or 29-bit identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CanId {
    /// `0..=0x7ff`.
    Standard(u16),
    /// `0..=0x1fff_ffff`.
    Extended(u32),
}

impl CanFrame {
    /// `None` if `data` has a length that the format cannot express
    /// (classic `0..=8`; FD also 12, 16, 20, 24, 32, 48, 64) or the identifier is out of range.
    pub fn new(id: CanId, fd: bool, data: &[u8]) -> Option<Self> {
        let ok_len = match data.len() {
            0..=8 => true,
            12 | 16 | 20 | 24 | 32 | 48 | 64 => fd,
            _ => false,
        };
        let ok_id = match id {
            CanId::Standard(id) => id <= 0x7ff,
            CanId::Extended(id) => id <= 0x1fff_ffff,
        };
        if !(ok_len && ok_id) {
            return None;
        }
        let mut copy = [0; 64];
        copy.get_mut(..data.len())?.copy_from_slice(data);
        Some(Self {
            id,
            fd,
            len: data.len() as u8,
            data: copy,
        })
    }

    /// Payload.
    pub fn data(&self) -> &[u8] {
        self.data.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl core::fmt::Debug for CanFrame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "CanFrame({:?}, fd {}, {:02x?})",
            self.id,
            self.fd,
            self.data()
        )
    }
}

/// Which of a CAN controller's transmit buffers a frame goes to. They must be arbitrated by
/// identifier, so that a waiting management frame never holds up a trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mailbox {
    /// A slave's trip alone, so that no other frame of its own is ahead of it. A controller of three transmit buffers does
    /// without: a trip takes whichever of the others is free.
    Trip,
    /// Alarm; at the master sync and commands.
    Urgent,
    /// Cyclic data; at the master prompt assignments.
    Cyclic,
    /// Joining, management, and what waits for everything else that is cyclic.
    Management,
}

impl Mailbox {
    /// All, in the order in which they are to be filled.
    pub const ALL: [Self; 4] = [Self::Trip, Self::Urgent, Self::Cyclic, Self::Management];
}

/// A CAN frame ready for a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanOut {
    /// What to send.
    pub frame: CanFrame,
    /// When the measurement inside was taken; `None` for frames without one.
    pub sampled_at: Option<Instant>,
}

/// Most bytes of one RS485 frame, check included.
pub const MAX_SERIAL: usize = 128;

/// Something for the RS485 driver to send at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialOut {
    /// When the first start bit goes out. Not in the past by more than a bit when the shell
    /// calls at `poll_timeout`.
    pub at: Instant,
    /// What.
    pub what: SerialSignal,
    /// When the measurement inside was taken; `None` for frames without one.
    pub sampled_at: Option<Instant>,
}

/// What a UART can put on the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialSignal {
    /// Characters, back to back, 8N1.
    Bytes {
        /// Padded with zeros.
        buffer: [u8; MAX_SERIAL],
        /// Used bytes.
        len: u8,
    },
    /// Line held at the start-bit level for so long: a trip in a minislot.
    Break(Duration),
}

/// What a slave's link tells its application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlaveEvent {
    /// The master gave us a seat.
    Joined(NodeId),
    /// Seat lost (silence of the master, or told to go). The link joins anew by itself.
    Left(LeaveReason),
    /// Start of a cycle: sample now. `master_us` is the master's clock at this instant, if known.
    Sync {
        /// Cycle number.
        cycle: u8,
        /// The tag to range, `None` when there is none.
        tag: Option<TagId>,
    },
    /// Take the ranges to this tag now and hand them to `set_ranges`.
    RangeNow(TagId),
    /// Order for this slave.
    Order(Order),
    /// Another slave (or this one) signalled a trip.
    TripSeen,
    /// A whole management datagram has come; read it with `datagram()`.
    Datagram,
}

/// Why a slave is no longer a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// No valid message for too long.
    Silence,
    /// It sent more than its budget.
    Babbling,
    /// Another device with the same unique id is on the bus.
    DuplicateUid,
    /// The operator asked for it.
    Commanded,
    /// The bus has no free seat.
    Full,
    /// Master and slave speak different versions of the protocol.
    Version,
}

/// What the master's link tells its application. `sampled_at` is not on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterEvent {
    /// A slave has a seat and has confirmed it.
    Joined {
        /// The seat.
        node: NodeId,
        /// The device.
        uid: Uid,
        /// What it can do.
        capabilities: Capabilities,
        /// The device that sat there before, when this one replaces it.
        replaces: Option<Uid>,
    },
    /// A slave is no longer a member.
    Left {
        /// The seat, kept for a successor.
        node: NodeId,
        /// The device.
        uid: Uid,
        /// Why.
        reason: LeaveReason,
    },
    /// A device asks for a seat, and with it the bus would be too full: it gets none. Said once for
    /// each device, until it joins.
    Refused {
        /// The device.
        uid: Uid,
        /// What it can do.
        capabilities: Capabilities,
        /// The message that would come too late.
        breaks: Overfull,
    },
    /// A second device with the unique id of a member asks for a seat; it gets none.
    Duplicate {
        /// The seat of the member, which stays.
        node: NodeId,
        /// The id that both have.
        uid: Uid,
    },
    /// Some slave tripped.
    Trip,
    /// A cyclic message that passed its end-to-end check.
    Message(Message),
    /// A cyclic message that did not.
    Rejected {
        /// The seat it claims to come from.
        node: NodeId,
        /// Why.
        fault: E2eFault,
    },
    /// A whole management datagram has come from this slave; read it with `datagram()`.
    Datagram(NodeId),
}

impl MasterEvent {
    /// Whom it is about, if that has a seat.
    pub(crate) fn node_mut(&mut self) -> Option<&mut NodeId> {
        match self {
            Self::Joined { node, .. }
            | Self::Left { node, .. }
            | Self::Duplicate { node, .. }
            | Self::Rejected { node, .. }
            | Self::Datagram(node) => Some(node),
            Self::Message(message) => message.node_mut(),
            Self::Refused { .. } | Self::Trip => None,
        }
    }
}

/// What the end-to-end check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum E2eFault {
    /// The check does not fit: corruption, or another sender's or class's message.
    Check,
    /// Same counter again.
    Repeated,
    /// This many messages are missing before this one, which is itself good and was delivered.
    Lost(u8),
    /// Counter went back or jumped too far; not delivered.
    Sequence,
}
