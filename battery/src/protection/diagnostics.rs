//! What is remembered of every event: how often, when first and last, what the world looked like at a trip. Survives a
//! reset as bytes that the shell stores.

use super::kinds::{CODE_COUNT, Code, Severity};
use super::{KINDS, ProtectionEvent};
use crate::{MAX_CELLS, MAX_TEMPS, Sample};
use core::fmt;
use helio_units::{DeciCelsius, Instant, Milliamps, Millivolts};

/// Trips whose circumstances are kept, newest only.
pub const FRAMES: usize = 4;

/// A time that still means something after a reset: the clock starts anew, the number of the start does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Number of the start, from 0.
    pub boot: u16,
    /// Time since that start.
    pub at: Instant,
}

/// What is remembered of one code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// How often it began; stays at the top instead of wrapping.
    pub count: u16,
    /// When it first began.
    pub first: Stamp,
    /// When it last began.
    pub last: Stamp,
    /// When it last ended.
    pub cleared: Stamp,
    /// The value that last began it.
    pub value: i32,
    /// The cell or sensor that last began it.
    pub index: u8,
}

impl Record {
    const NONE: Self = Self {
        count: 0,
        first: Stamp {
            boot: 0,
            at: Instant::ZERO,
        },
        last: Stamp {
            boot: 0,
            at: Instant::ZERO,
        },
        cleared: Stamp {
            boot: 0,
            at: Instant::ZERO,
        },
        value: 0,
        index: 0,
    };
}

/// What the world looked like at a trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeFrame {
    /// The event.
    pub event: ProtectionEvent,
    /// Number of the start in which it happened.
    pub boot: u16,
    /// The newest sample at that moment.
    pub sample: Sample,
}

/// The memory of one group's protection. A [`Code`] is below [`CODE_COUNT`], so indexing by one cannot fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    boot: u16,
    /// Events active now, by severity, a bit per kind.
    pub(super) active: [u32; 3],
    records: [Record; CODE_COUNT],
    /// A ring; the newest is at `trips - 1`.
    frames: [Option<FreezeFrame>; FRAMES],
    trips: u32,
}

impl Default for Diagnostics {
    fn default() -> Self {
        Self::new()
    }
}

impl Diagnostics {
    /// Nothing has ever happened.
    pub const fn new() -> Self {
        Self {
            boot: 0,
            active: [0; 3],
            records: [Record::NONE; CODE_COUNT],
            frames: [None; FRAMES],
            trips: 0,
        }
    }

    /// Number of this start, from 0.
    pub fn boot(&self) -> u16 {
        self.boot
    }

    /// Trips ever.
    pub fn trips(&self) -> u32 {
        self.trips
    }

    /// What is remembered of a code.
    pub fn record(&self, code: Code) -> Record {
        self.records[usize::from(code.get())]
    }

    /// The circumstances of the last [`FRAMES`] trips, newest first.
    pub fn freeze_frames(&self) -> impl Iterator<Item = &FreezeFrame> {
        (1..=FRAMES as u32)
            .filter_map(|back| self.trips.checked_sub(back))
            .filter_map(|n| self.frames[n as usize % FRAMES].as_ref())
    }

    pub(super) fn was_active(&self, code: Code) -> bool {
        self.active[code.severity().index()] & code.kind().bit() != 0
    }

    pub(super) fn next_boot(&mut self) {
        self.boot = self.boot.saturating_add(1);
    }

    pub(super) fn began(&mut self, event: ProtectionEvent, sample: &Sample) {
        let now = Stamp {
            boot: self.boot,
            at: event.at,
        };
        let record = &mut self.records[usize::from(event.code.get())];
        *record = Record {
            count: record.count.saturating_add(1),
            first: if record.count == 0 { now } else { record.first },
            last: now,
            cleared: record.cleared,
            value: event.value,
            index: event.index,
        };
        if event.code.severity() == Severity::Trip {
            let frame = FreezeFrame {
                event,
                boot: self.boot,
                sample: *sample,
            };
            self.frames[self.trips as usize % FRAMES] = Some(frame);
            self.trips = self.trips.wrapping_add(1);
        }
    }

    pub(super) fn ended(&mut self, code: Code, at: Instant) {
        self.records[usize::from(code.get())].cleared = Stamp {
            boot: self.boot,
            at,
        };
    }

    /// Writes everything to `out` and returns how many bytes; `None` if it is shorter than needed. [`MAX_BYTES`] always do.
    pub fn store(&self, out: &mut [u8]) -> Option<usize> {
        let mut w = Writer { out, at: 0 };
        w.put([MAGIC, VERSION])?;
        w.put([0; 2])?; // length, filled in below
        w.put(self.boot.to_le_bytes())?;
        w.put(self.trips.to_le_bytes())?;
        for mask in self.active {
            w.put(mask.to_le_bytes())?;
        }
        for (code, record) in (0u8..).zip(&self.records) {
            if record.count == 0 {
                continue;
            }
            w.put([code, record.index])?;
            w.put(record.count.to_le_bytes())?;
            w.put(record.value.to_le_bytes())?;
            for stamp in [record.first, record.last, record.cleared] {
                w.put(stamp.boot.to_le_bytes())?;
                w.put(stamp.at.as_nanos().to_le_bytes())?;
            }
        }
        w.put([END])?;
        for frame in &self.frames {
            let Some(FreezeFrame {
                event,
                boot,
                sample,
            }) = frame
            else {
                w.put([0])?;
                continue;
            };
            w.put([
                1,
                event.code.get(),
                event.index,
                sample.cell_count,
                sample.temp_count,
            ])?;
            w.put(event.value.to_le_bytes())?;
            w.put(boot.to_le_bytes())?;
            w.put(event.at.as_nanos().to_le_bytes())?;
            for cell in sample.cells {
                w.put(cell.map_or(u16::MAX, |v| v.0).to_le_bytes())?;
            }
            for temp in sample.temps {
                w.put(temp.map_or(i16::MIN, |t| t.0).to_le_bytes())?;
            }
            w.put(sample.current.map_or(i32::MIN, |i| i.0).to_le_bytes())?;
        }
        let (len, out) = (w.at, w.out);
        out.get_mut(2..4)?
            .copy_from_slice(&(len as u16 + 4).to_le_bytes());
        let crc = crc32(out.get(..len)?);
        out.get_mut(len..len + 4)?
            .copy_from_slice(&crc.to_le_bytes());
        Some(len + 4)
    }

    /// Reads what [`Self::store`] wrote. Bytes behind it do not matter, so a whole flash page may be given.
    pub fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut new = Self::new();
        new.load(bytes)?;
        Ok(new)
    }

    /// As [`Self::restore`], in place; empty in case of an error.
    pub(super) fn load(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.forget();
        let Some(&[magic, version, lo, hi]) = bytes.first_chunk::<4>() else {
            return Err(RestoreError::Empty);
        };
        if magic != MAGIC {
            return Err(RestoreError::Empty);
        }
        if version != VERSION {
            return Err(RestoreError::Version(version));
        }
        let len = usize::from(u16::from_le_bytes([lo, hi]));
        let (body, crc) = bytes
            .get(..len)
            .and_then(|b| b.split_last_chunk::<4>())
            .ok_or(RestoreError::Damaged)?;
        if crc32(body) != u32::from_le_bytes(*crc) {
            return Err(RestoreError::Damaged);
        }
        let parsed = self.parse(body.get(4..).unwrap_or(&[]));
        if parsed.is_none() {
            self.forget();
        }
        parsed.ok_or(RestoreError::Damaged)
    }

    /// Bit by bit: a whole new one would be on the stack first.
    fn forget(&mut self) {
        self.boot = 0;
        self.active = [0; 3];
        self.records.fill(Record::NONE);
        self.frames.fill(None);
        self.trips = 0;
    }

    fn parse(&mut self, body: &[u8]) -> Option<()> {
        let mut r = Reader(body);
        self.boot = u16::from_le_bytes(r.take()?);
        self.trips = u32::from_le_bytes(r.take()?);
        for mask in &mut self.active {
            *mask = u32::from_le_bytes(r.take()?) & (u32::MAX >> (32 - KINDS));
        }
        loop {
            let [code] = r.take()?;
            if code == END {
                break;
            }
            let record = self.records.get_mut(usize::from(code))?;
            [record.index] = r.take()?;
            record.count = u16::from_le_bytes(r.take()?);
            record.value = i32::from_le_bytes(r.take()?);
            for stamp in [&mut record.first, &mut record.last, &mut record.cleared] {
                stamp.boot = u16::from_le_bytes(r.take()?);
                stamp.at = Instant::from_nanos(u64::from_le_bytes(r.take()?));
            }
        }
        for frame in &mut self.frames {
            let [present] = r.take()?;
            if present == 0 {
                continue;
            }
            let [code, index, cell_count, temp_count] = r.take()?;
            let value = i32::from_le_bytes(r.take()?);
            let boot = u16::from_le_bytes(r.take()?);
            let at = Instant::from_nanos(u64::from_le_bytes(r.take()?));
            let mut sample = Sample {
                cell_count,
                temp_count,
                ..Sample::EMPTY
            };
            for cell in &mut sample.cells {
                let v = u16::from_le_bytes(r.take()?);
                *cell = (v != u16::MAX).then_some(Millivolts(v));
            }
            for temp in &mut sample.temps {
                let t = i16::from_le_bytes(r.take()?);
                *temp = (t != i16::MIN).then_some(DeciCelsius(t));
            }
            let i = i32::from_le_bytes(r.take()?);
            sample.current = (i != i32::MIN).then_some(Milliamps(i));
            let code = Code::from_raw(code)?;
            let event = ProtectionEvent {
                code,
                active: true,
                index,
                value,
                at,
            };
            *frame = Some(FreezeFrame {
                event,
                boot,
                sample,
            });
        }
        Some(())
    }
}

/// Why stored diagnostics cannot be had back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// Nothing was ever stored here: begin with [`Diagnostics::new`].
    Empty,
    /// Written by another version of this code: begin anew.
    Version(u8),
    /// The bytes are not what was written: try an older copy, else begin anew and say so.
    Damaged,
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "no diagnostics stored yet"),
            Self::Version(v) => write!(
                f,
                "diagnostics of version {v} stored, this is version {VERSION}"
            ),
            Self::Damaged => write!(f, "stored diagnostics are damaged"),
        }
    }
}

impl core::error::Error for RestoreError {}

const MAGIC: u8 = 0xd1;
const VERSION: u8 = 1;
/// In place of a code: no more records.
const END: u8 = 0xff;

const HEAD_BYTES: usize = 4 + 2 + 4 + 12;
const RECORD_BYTES: usize = 2 + 2 + 4 + 3 * 10;
const FRAME_BYTES: usize = 5 + 4 + 2 + 8 + 2 * MAX_CELLS + 2 * MAX_TEMPS + 4;

/// Most bytes that [`Diagnostics::store`] writes.
pub const MAX_BYTES: usize = HEAD_BYTES + CODE_COUNT * RECORD_BYTES + 1 + FRAMES * FRAME_BYTES + 4;

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) -> Option<()> {
        self.out
            .get_mut(self.at..self.at + N)?
            .copy_from_slice(&bytes);
        self.at += N;
        Some(())
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
}

/// CRC-32 (IEEE 802.3), bit by bit: a few kilobytes, seldom.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_is_the_one_everybody_calls_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
