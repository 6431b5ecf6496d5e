//! How CAN spells the messages: identifiers, and fields into bits. `docs/bus.md` is the same in prose.
//!
//! ```text
//! 11-bit identifier   class (4) | node (7)
//! 8-byte frame        check 8 | counter 4 | payload 52
//! 48-byte FD frame    check 16 | counter 8 | payload 360
//! 16-byte FD frame    check 16 | counter 8 | payload 104   (ranges when anchors 4 and up have none)
//! ```

use crate::bits::{Reader, Writer};
use crate::e2e::{DataId, check8, check16};
use crate::message::*;
use helio_units::{DeciCelsius, Duration, Milliamps, Millimetres, Millivolts, NodeId, TagId};

/// Classes of cyclic messages in order of urgency; the upper four bits of an 11-bit identifier
/// and of a data id.
pub mod class {
    /// Shared by all slaves, no payload.
    pub const TRIP: u8 = 0;
    /// Per slave.
    pub const ALARM: u8 = 1;
    /// Node 0 only.
    pub const SYNC: u8 = 2;
    /// Node is the receiver, 0 is everybody.
    pub const COMMAND: u8 = 3;
    /// Per slave; from here on cyclic.
    pub const SUMMARY: u8 = 4;
    /// Cells 0 to 3 and a temperature; the four classes that follow carry the next.
    pub const CELLS: u8 = 5;
    /// Temperatures for which there are too few cells.
    pub const TEMPS: u8 = 10;
    /// Pairs of ranges.
    pub const RANGES: u8 = 11;
    /// All of a group (CAN FD, RS485).
    pub const STATE: u8 = 12;
    /// All ranges of a slave (CAN FD, RS485).
    pub const ALL_RANGES: u8 = 13;
    /// Reserved for one firmware image to all slaves.
    #[allow(dead_code)]
    pub const BULK: u8 = 14;
    /// Joining and management: 29-bit identifiers that start with these four bits; on RS485
    /// the data id of their frames.
    pub const JOIN: u8 = 15;
}

const INVALID_CELL: u32 = 0x1fff;
/// Cells of a chunk count in mV from one of 15 windows, half a volt apart.
const WINDOW_MV: u16 = 512;
const WINDOWS: u16 = 15;
/// Stands for a window where they do not fit into one: then they count in steps of this.
const COARSE: u32 = 15;
const COARSE_MV: u16 = 8;
const INVALID_IN_CHUNK: u32 = 0x3ff;
const INVALID_TEMP: u32 = 0xff;
const INVALID_CURRENT: i32 = -0x2_0000;
const BLOCKED: u32 = 0xffff;
const NO_TAG: u32 = 0xffff;

/// Bytes of the two FD frames.
const FD_LEN: usize = 48;
/// Bytes of ranges in which only the first [`FEW`] anchors have one.
const FD_FEW_LEN: usize = 16;
/// Anchors in a short frame of ranges.
const FEW: usize = 4;

/// A message taken from a frame whose check is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Who says what.
    pub id: DataId,
    /// For [`crate::e2e::Receiver::check`].
    pub counter: u8,
    /// The highest counter: 15 or 255.
    pub counter_mask: u8,
    /// What is said.
    pub message: Message,
}

/// Why no message came out of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Not a cyclic message of this protocol; ignore it.
    Foreign,
    /// Length or check is wrong: drop the frame and blame this data id.
    Check(DataId),
}

/// Class and node of a message.
pub fn data_id(message: &Message) -> DataId {
    let to = |node: &NodeId| node.get();
    match message {
        Message::Trip => DataId::new(class::TRIP, 0),
        Message::Alarm(node, _) => DataId::new(class::ALARM, to(node)),
        Message::Sync(_) => DataId::new(class::SYNC, 0),
        Message::Command(c) => DataId::new(class::COMMAND, c.to.map_or(0, NodeId::get)),
        Message::Summary(node, _) => DataId::new(class::SUMMARY, to(node)),
        Message::CellChunk { node, first, .. } => {
            DataId::new(class::CELLS + (first / 4).min(4), to(node))
        }
        Message::TempChunk { node, .. } => DataId::new(class::TEMPS, to(node)),
        Message::RangeChunk { node, .. } => DataId::new(class::RANGES, to(node)),
        Message::State(node, _) => DataId::new(class::STATE, to(node)),
        Message::Ranges(node, _) => DataId::new(class::ALL_RANGES, to(node)),
    }
}

/// Spells a message as a CAN frame. `fd` chooses the format of 8-byte frames; [`Message::State`]
/// and [`Message::Ranges`] are always FD, and a trip is always classic, because frames that
/// several slaves send at once merge only at the arbitration bit rate.
pub fn encode(message: &Message, counter: u8, fd: bool) -> Option<CanFrame> {
    let id = data_id(message);
    let can_id = CanId::Standard(id.0);
    match message {
        Message::Trip => CanFrame::new(can_id, false, &[]),
        Message::State(..) | Message::Ranges(..) => {
            let few = matches!(message, Message::Ranges(_, r) if is_few(r));
            let len = if few { FD_FEW_LEN } else { FD_LEN };
            let mut data = [0; FD_LEN];
            let data = data.get_mut(..len)?;
            let mut w = Writer::new(data);
            w.put(0, 16);
            w.put(counter.into(), 8);
            match message {
                Message::State(_, state) => put_state(&mut w, state, false),
                Message::Ranges(_, ranges) if few => put_ranges(&mut w, ranges, FEW),
                Message::Ranges(_, ranges) => put_ranges(&mut w, ranges, MAX_ANCHORS),
                _ => {}
            }
            w.finish();
            let (head, body) = data.split_at_mut(2);
            head.copy_from_slice(&check16(id, body).to_le_bytes());
            CanFrame::new(can_id, true, data)
        }
        _ => {
            let mut data = [0; 8];
            let mut w = Writer::new(&mut data);
            w.put(0, 8);
            w.put(counter.into(), 4);
            put_short(&mut w, message);
            w.finish();
            let (head, body) = data.split_at_mut(1);
            head.copy_from_slice(&[check8(id, body)]);
            CanFrame::new(can_id, fd, &data)
        }
    }
}

/// Reads a frame with an 11-bit identifier.
pub fn decode(frame: &CanFrame) -> Result<Decoded, DecodeError> {
    let CanId::Standard(raw) = frame.id else {
        return Err(DecodeError::Foreign);
    };
    let id = DataId(raw);
    let bad = Err(DecodeError::Check(id));
    let (bits, counter_mask) = match id.class() {
        class::TRIP if id.node() == 0 && frame.data().is_empty() && !frame.fd => {
            return Ok(Decoded {
                id,
                counter: 0,
                counter_mask: 0,
                message: Message::Trip,
            });
        }
        class::ALARM..=class::RANGES => {
            let [check, body @ ..] = frame.data() else {
                return bad;
            };
            if body.len() != 7 || check8(id, body) != *check {
                return bad;
            }
            (4, 0xf)
        }
        class::STATE | class::ALL_RANGES => {
            let [low, high, body @ ..] = frame.data() else {
                return bad;
            };
            let few = id.class() == class::ALL_RANGES && body.len() == FD_FEW_LEN - 2;
            if !(few || body.len() == FD_LEN - 2)
                || check16(id, body) != u16::from_le_bytes([*low, *high])
            {
                return bad;
            }
            (8, 0xff)
        }
        _ => return Err(DecodeError::Foreign),
    };
    let mut r = Reader::new(frame.data());
    r.take(if bits == 4 { 8 } else { 16 });
    let counter = r.take(bits) as u8;
    let Some(message) = take_message(&mut r, id, frame.data().len()) else {
        return bad;
    };
    Ok(Decoded {
        id,
        counter,
        counter_mask,
        message,
    })
}

/// Whether the first few anchors are all that have a range.
fn is_few(ranges: &Ranges) -> bool {
    ranges.range.iter().skip(FEW).all(Option::is_none)
}

fn put_short(w: &mut Writer, message: &Message) {
    match message {
        Message::Alarm(_, alarm) => put_alarm(w, alarm),
        Message::Sync(sync) => put_sync(w, sync),
        Message::Command(command) => put_order(w, command.order),
        Message::Summary(_, summary) => put_summary(w, summary, false),
        Message::CellChunk { cells, temp, .. } => {
            put_temp(w, *temp);
            put_chunk(w, cells);
        }
        Message::TempChunk { first, temps, .. } => {
            temps.iter().for_each(|t| put_temp(w, *t));
            w.put((*first).into(), 4);
        }
        Message::RangeChunk {
            tag, first, range, ..
        } => {
            w.put(tag.0.into(), 16);
            w.put(u32::from(first / 2), 4);
            range.iter().for_each(|r| put_range(w, *r));
        }
        Message::Trip | Message::State(..) | Message::Ranges(..) => {}
    }
}

/// `None` when a field has a value that no sender writes.
fn take_message(r: &mut Reader, id: DataId, data_len: usize) -> Option<Message> {
    let node = NodeId::new(id.node());
    Some(match id.class() {
        class::ALARM => Message::Alarm(node?, take_alarm(r)),
        class::SYNC if node.is_none() => Message::Sync(take_sync(r)),
        class::COMMAND => Message::Command(Command {
            to: node,
            order: take_order(r)?,
        }),
        class::SUMMARY => Message::Summary(node?, take_summary(r)?.0),
        chunk @ class::CELLS..class::TEMPS => {
            let temp = take_temp(r);
            Message::CellChunk {
                node: node?,
                first: (chunk - class::CELLS) * 4,
                cells: take_chunk(r),
                temp,
            }
        }
        class::TEMPS => {
            let mut temps = [None; 6];
            temps.iter_mut().for_each(|t| *t = take_temp(r));
            Message::TempChunk {
                node: node?,
                first: match r.take(4) as u8 {
                    first if first < MAX_TEMPS as u8 => first,
                    _ => return None,
                },
                temps,
            }
        }
        class::RANGES => {
            let tag = TagId(r.take(16) as u16);
            let first = match r.take(4) as u8 {
                pair @ 0..8 => pair * 2,
                _ => return None,
            };
            let mut range = [None; 2];
            range.iter_mut().for_each(|d| *d = take_range(r));
            Message::RangeChunk {
                node: node?,
                tag,
                first,
                range,
            }
        }
        class::STATE => Message::State(node?, take_state(r)?.0),
        class::ALL_RANGES => {
            let count = if data_len == FD_FEW_LEN {
                FEW
            } else {
                MAX_ANCHORS
            };
            Message::Ranges(node?, take_ranges(r, count))
        }
        _ => return None,
    })
}

fn put_cell(w: &mut Writer, cell: Option<Millivolts>) {
    let raw = cell.map_or(INVALID_CELL, |mv| u32::from(mv.0));
    w.put(raw.min(INVALID_CELL), 13);
}

fn take_cell(r: &mut Reader) -> Option<Millivolts> {
    match r.take(13) {
        INVALID_CELL => None,
        mv => Some(Millivolts(mv as u16)),
    }
}

/// 44 bits.
fn put_chunk(w: &mut Writer, cells: &[Option<Millivolts>; 4]) {
    let told = |cell: &Option<Millivolts>| cell.filter(|mv| u32::from(mv.0) < INVALID_CELL);
    let valid = || cells.iter().filter_map(told).map(|mv| mv.0);
    let (least, most) = (valid().min().unwrap_or(0), valid().max().unwrap_or(0));
    let window = (least / WINDOW_MV).min(WINDOWS - 1);
    let base = window * WINDOW_MV;
    let fits = u32::from(most - base) < INVALID_IN_CHUNK;
    w.put(if fits { window.into() } else { COARSE }, 4);
    for cell in cells {
        let raw = told(cell).map(|mv| match fits {
            true => u32::from(mv.0 - base),
            // To the nearest step.
            false => (u32::from(mv.0) + u32::from(COARSE_MV) / 2) / u32::from(COARSE_MV),
        });
        let raw = raw.map_or(INVALID_IN_CHUNK, |raw| raw.min(INVALID_IN_CHUNK - 1));
        w.put(raw, 10);
    }
}

fn take_chunk(r: &mut Reader) -> [Option<Millivolts>; 4] {
    let window = r.take(4);
    core::array::from_fn(|_| match r.take(10) {
        INVALID_IN_CHUNK => None,
        raw if window == COARSE => Some(Millivolts(raw as u16 * COARSE_MV)),
        raw => Some(Millivolts(raw as u16 + window as u16 * WINDOW_MV)),
    })
}

fn put_temp(w: &mut Writer, temp: Option<DeciCelsius>) {
    // To the nearest degree; `i32` holds every sum.
    let raw = temp.map(|t| (i32::from(t.0) + 605).div_euclid(10));
    w.put(
        match raw {
            Some(degrees @ 0..=254) => degrees as u32,
            _ => INVALID_TEMP,
        },
        8,
    );
}

fn take_temp(r: &mut Reader) -> Option<DeciCelsius> {
    match r.take(8) {
        INVALID_TEMP => None,
        raw => Some(DeciCelsius(raw as i16 * 10 - 600)),
    }
}

fn put_current(w: &mut Writer, current: Option<Milliamps>) {
    // To the nearest 10 mA.
    let raw = current.map(|i| i.0.saturating_add(5).div_euclid(10));
    let raw = raw.filter(|raw| raw.abs() < -INVALID_CURRENT);
    w.put(raw.unwrap_or(INVALID_CURRENT) as u32, 18);
}

fn take_current(r: &mut Reader) -> Option<Milliamps> {
    let raw = (r.take(18) << 14) as i32 >> 14;
    (raw != INVALID_CURRENT).then_some(Milliamps(raw * 10))
}

fn put_range(w: &mut Writer, range: Option<Millimetres>) {
    w.put(
        match range {
            Some(Millimetres(mm @ 0..=0xfffe)) => mm as u32,
            _ => BLOCKED,
        },
        16,
    );
}

fn take_range(r: &mut Reader) -> Option<Millimetres> {
    match r.take(16) {
        BLOCKED => None,
        mm => Some(Millimetres(mm as i32)),
    }
}

fn severity(raw: u32) -> Severity {
    match raw & 3 {
        0 => Severity::None,
        1 => Severity::Warn,
        2 => Severity::Derate,
        _ => Severity::Trip,
    }
}

/// 52 bits; the spare one carries `flag` on RS485.
pub fn put_summary(w: &mut Writer, s: &Summary, flag: bool) {
    w.put(
        match s.state {
            SlaveState::Init => 0,
            SlaveState::Standby => 1,
            SlaveState::Active => 2,
            SlaveState::Tripped => 3,
            SlaveState::Isolated => 4,
        },
        3,
    );
    w.put(s.severity as u32, 2);
    w.put(s.gate_on.into(), 1);
    w.put(s.balancing.into(), 1);
    w.put(flag.into(), 1);
    put_current(w, s.current);
    put_cell(w, s.min);
    put_cell(w, s.max);
}

/// Inverse of [`put_summary`].
pub fn take_summary(r: &mut Reader) -> Option<(Summary, bool)> {
    let state = match r.take(3) {
        0 => SlaveState::Init,
        1 => SlaveState::Standby,
        2 => SlaveState::Active,
        3 => SlaveState::Tripped,
        4 => SlaveState::Isolated,
        _ => return None,
    };
    let severity = severity(r.take(2));
    let (gate_on, balancing, flag) = (r.flag(), r.flag(), r.flag());
    Some((
        Summary {
            state,
            severity,
            gate_on,
            balancing,
            current: take_current(r),
            min: take_cell(r),
            max: take_cell(r),
        },
        flag,
    ))
}

/// 350 bits; the summary's spare bit carries `flag`.
pub fn put_state(w: &mut Writer, state: &State, flag: bool) {
    put_summary(w, &state.summary, flag);
    state.cells.0.iter().for_each(|c| put_cell(w, *c));
    state.temps.0.iter().for_each(|t| put_temp(w, *t));
}

/// Inverse of [`put_state`].
pub fn take_state(r: &mut Reader) -> Option<(State, bool)> {
    let (summary, flag) = take_summary(r)?;
    let mut state = State {
        summary,
        ..State::default()
    };
    state.cells.0.iter_mut().for_each(|c| *c = take_cell(r));
    state.temps.0.iter_mut().for_each(|t| *t = take_temp(r));
    Some((state, flag))
}

/// 16 bits and 16 for each of the first `count` anchors.
pub fn put_ranges(w: &mut Writer, ranges: &Ranges, count: usize) {
    w.put(ranges.tag.0.into(), 16);
    let some = ranges.range.iter().take(count);
    some.for_each(|d| put_range(w, *d));
}

/// Inverse of [`put_ranges`].
pub fn take_ranges(r: &mut Reader, count: usize) -> Ranges {
    let tag = TagId(r.take(16) as u16);
    let mut range = [None; MAX_ANCHORS];
    let some = range.iter_mut().take(count);
    some.for_each(|d| *d = take_range(r));
    Ranges { tag, range }
}

/// 32 bits.
pub fn put_alarm(w: &mut Writer, a: &Alarm) {
    w.put(a.code.into(), 8);
    w.put(a.severity as u32, 2);
    w.put(a.active.into(), 1);
    w.put(a.index.into(), 5);
    w.put(a.value as u16 as u32, 16);
}

/// Inverse of [`put_alarm`].
pub fn take_alarm(r: &mut Reader) -> Alarm {
    Alarm {
        code: r.take(8) as u8,
        severity: severity(r.take(2)),
        active: r.flag(),
        index: r.take(5) as u8,
        value: r.take(16) as u16 as i16,
    }
}

/// 52 bits.
pub fn put_sync(w: &mut Writer, s: &Sync) {
    w.put(s.cycle.into(), 8);
    w.put(s.tag.map_or(NO_TAG, |t| t.0.into()), 16);
    w.put(s.previous_us, 28);
}

/// Inverse of [`put_sync`].
pub fn take_sync(r: &mut Reader) -> Sync {
    Sync {
        cycle: r.take(8) as u8,
        tag: match r.take(16) {
            NO_TAG => None,
            tag => Some(TagId(tag as u16)),
        },
        previous_us: r.take(28),
    }
}

/// 36 bits: what, and its argument.
pub fn put_order(w: &mut Writer, order: Order) {
    let (what, argument) = match order {
        Order::Gate(on) => (0, on.into()),
        Order::Balance(mask) => (1, mask),
        Order::ClearLatch => (2, 0),
        Order::Isolate(on) => (3, on.into()),
        Order::Quarantine(d) => (4, d.as_millis().min(0xffff) as u32),
        Order::Light(mask) => (5, mask.into()),
    };
    w.put(what, 4);
    w.put(argument, 32);
}

/// Inverse of [`put_order`].
pub fn take_order(r: &mut Reader) -> Option<Order> {
    let (what, argument) = (r.take(4), r.take(32));
    Some(match what {
        0 => Order::Gate(argument != 0),
        1 => Order::Balance(argument),
        2 => Order::ClearLatch,
        3 => Order::Isolate(argument != 0),
        4 => Order::Quarantine(Duration::from_millis(argument.into())),
        5 => Order::Light(argument as u16),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn there_and_back(cells: [Option<Millivolts>; 4]) -> [Option<Millivolts>; 4] {
        let mut bytes = [0; 6];
        let mut w = Writer::new(&mut bytes);
        put_chunk(&mut w, &cells);
        w.finish();
        take_chunk(&mut Reader::new(&bytes))
    }

    proptest! {
        #[test]
        fn cells_within_half_a_volt_come_to_the_millivolt_and_any_others_within_4_mv(
            least in 0..=8_190u16,
            above in [0..=511u16, 0..=511u16, 0..=511u16, 0..=8_190u16],
            valid: [bool; 4],
        ) {
            let mut cells = [0, 1, 2, 3].map(|i| {
                valid[i].then_some(Millivolts((least + above[i]).min(8_190)))
            });
            let back = there_and_back(cells);
            for (cell, back) in cells.iter().zip(back) {
                prop_assert_eq!(cell.is_some(), back.is_some());
                prop_assert!(cell.zip(back).is_none_or(|(a, b)| a.0.abs_diff(b.0) <= 14));
                let near = cell.zip(back).is_none_or(|(a, b)| a.0.abs_diff(b.0) <= 4);
                prop_assert!(near || cell.is_some_and(|mv| mv.0 > 8_180));
            }
            // Whatever was read is read again.
            prop_assert_eq!(there_and_back(back), back);
            cells[3] = cells[3].map(|mv| Millivolts(mv.0.min(least + 511)));
            prop_assert_eq!(there_and_back(cells), cells);
        }
    }

    #[test]
    fn a_cell_above_what_the_wire_knows_is_invalid() {
        let cells = [8_190, 8_191, 9_000, u16::MAX].map(|mv| Some(Millivolts(mv)));
        assert_eq!(there_and_back(cells), [cells[0], None, None, None]);
    }
}
