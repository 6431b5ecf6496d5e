//! SMP over a serial line that a console may share: datagrams as lines of base64 text.
//!
//! [`Lines`] cuts a datagram into lines, [`Decoder`] puts lines together again, one octet at a
//! time; it skips whatever else is said on the line.
//!
//! ```text
//! 06 09 base64(length+2, first octets)     LF     the packet: u16 length of body and check,
//! 04 14 base64(more octets)                LF     body (the datagram), u16 CRC-16/XMODEM of
//! 04 14 base64(last octets, check)         LF     the body; cut into lines of at most 127
//!
//!              06 09               LF, more to come
//! Noise ----------------> Line <----------------> Between
//!   ^  ^----- damage -----'  |        04 14          |
//!   |                        | LF, complete          |
//!   '-- datagram handed out -'     06 09: start anew from anywhere
//! ```
//!
//! The markers are control characters, which base64 does not use, so a marker means the start of
//! a line even where the end of the line before was lost. Stray ones are skipped.

use crc::{CRC_16_XMODEM, Crc};

/// Longest line, with marker and line feed, in octets.
pub const MAX_LINE: usize = 127;

const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);
const FIRST: [u8; 2] = [0x06, 0x09];
const NEXT: [u8; 2] = [0x04, 0x14];
/// Octets of a packet in a full line: 31 groups of four characters between marker and line feed.
const RAW_PER_LINE: usize = (MAX_LINE - 3) / 4 * 3;

/// A datagram as lines.
pub struct Lines<'a> {
    datagram: &'a [u8],
    length: [u8; 2],
    check: [u8; 2],
    /// Octets of the packet already given.
    at: usize,
}

impl<'a> Lines<'a> {
    /// `None` when the datagram is longer than the length field can say (65 533 octets).
    pub fn new(datagram: &'a [u8]) -> Option<Self> {
        let length = u16::try_from(datagram.len()).ok()?.checked_add(2)?;
        Some(Self {
            datagram,
            length: length.to_be_bytes(),
            check: CRC.checksum(datagram).to_be_bytes(),
            at: 0,
        })
    }

    /// Writes the next line and says how long it is; `None` after the last.
    pub fn next_line(&mut self, out: &mut [u8; MAX_LINE]) -> Option<usize> {
        let total = self.datagram.len() + 4;
        let left = total.checked_sub(self.at).filter(|left| *left > 0)?;
        let take = match left.saturating_sub(RAW_PER_LINE) {
            0 => left,
            // The check may be neither torn apart nor alone: like Zephyr, leave it some company.
            1 | 2 => RAW_PER_LINE - 3,
            _ => RAW_PER_LINE,
        };
        let marker = if self.at == 0 { FIRST } else { NEXT };
        let (mark, text) = out.split_at_mut_checked(2)?;
        mark.copy_from_slice(&marker);
        let mut n = 2;
        let end = self.at + take;
        for place in text.chunks_exact_mut(4) {
            if self.at >= end {
                break;
            }
            let len = (end - self.at).min(3);
            let mut raw = [0; 3];
            for (i, octet) in raw.iter_mut().take(len).enumerate() {
                *octet = self.octet(self.at + i);
            }
            place.copy_from_slice(&encode(raw, len));
            self.at += len;
            n += 4;
        }
        *out.get_mut(n)? = b'\n';
        Some(n + 1)
    }

    fn octet(&self, at: usize) -> u8 {
        let octet = match at.checked_sub(2) {
            None => self.length.get(at),
            Some(i) => match i.checked_sub(self.datagram.len()) {
                None => self.datagram.get(i),
                Some(i) => self.check.get(i),
            },
        };
        octet.copied().unwrap_or(0)
    }
}

/// Why a packet was dropped. The next one is not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialError {
    /// A character that is not base64, or a line that is not whole groups of four.
    Base64,
    /// More octets than its length says, or a length without room for the check.
    Length,
    /// The datagram is longer than the decoder's buffer.
    TooLong,
    /// Damaged on the way.
    Checksum {
        /// Computed from the body.
        expected: u16,
        /// In the packet.
        found: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not in a packet; console text may come.
    Noise,
    /// Between two lines of a packet.
    Between,
    /// In a line, with the characters of an unfinished group of four.
    Line { group: [u8; 4], chars: usize },
}

/// Puts datagrams of up to `N` octets together.
pub struct Decoder<const N: usize> {
    state: State,
    /// First octet of a marker, seen just now.
    marker: Option<u8>,
    /// Length field: how many of its octets have come, and their value.
    length_octets: u8,
    length: u16,
    buffer: [u8; N],
    /// Octets of body and check so far.
    len: usize,
    check: [u8; 2],
}

impl<const N: usize> Default for Decoder<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Decoder<N> {
    /// Waits for the start of a packet.
    pub const fn new() -> Self {
        Self {
            state: State::Noise,
            marker: None,
            length_octets: 0,
            length: 0,
            buffer: [0; N],
            len: 0,
            check: [0; 2],
        }
    }

    /// Takes one octet from the line; gives a datagram when it was the last of one.
    pub fn handle_octet(&mut self, octet: u8) -> Result<Option<&[u8]>, SerialError> {
        match self.step(octet) {
            Ok(true) => {
                self.state = State::Noise;
                let end = self.len.saturating_sub(2).min(N);
                Ok(self.buffer.get(..end))
            }
            Ok(false) => Ok(None),
            Err(error) => {
                self.state = State::Noise;
                Err(error)
            }
        }
    }

    /// Whether the packet is complete.
    fn step(&mut self, octet: u8) -> Result<bool, SerialError> {
        let marker = self.marker.take();
        match (marker, octet) {
            (Some(a), b) if [a, b] == FIRST => {
                (self.length_octets, self.length, self.len) = (0, 0, 0);
                self.state = State::LINE_START;
                return Ok(false);
            }
            (Some(a), b) if [a, b] == NEXT => {
                if self.state != State::Noise {
                    self.state = State::LINE_START;
                }
                return Ok(false);
            }
            (_, a) if a == FIRST[0] || a == NEXT[0] => {
                self.marker = Some(a);
                return Ok(false);
            }
            _ => {}
        }
        let State::Line { mut group, chars } = self.state else {
            return Ok(false);
        };
        match octet {
            b'\r' => return Ok(false),
            b'\n' if chars != 0 => return Err(SerialError::Base64),
            b'\n' => {
                self.state = State::Between;
                return self.is_complete();
            }
            _ => {}
        }
        *group.get_mut(chars).ok_or(SerialError::Base64)? = octet;
        let chars = chars + 1;
        if chars < 4 {
            self.state = State::Line { group, chars };
            return Ok(false);
        }
        self.state = State::LINE_START;
        let (raw, len) = decode(group).ok_or(SerialError::Base64)?;
        raw.iter()
            .take(len)
            .try_for_each(|octet| self.store(*octet))?;
        Ok(false)
    }

    fn store(&mut self, octet: u8) -> Result<(), SerialError> {
        if self.length_octets < 2 {
            self.length_octets += 1;
            self.length = self.length << 8 | u16::from(octet);
            if self.length_octets == 2 {
                if self.length < 2 {
                    return Err(SerialError::Length);
                }
                if usize::from(self.length) > N.saturating_add(2) {
                    return Err(SerialError::TooLong);
                }
            }
            return Ok(());
        }
        let body = usize::from(self.length).saturating_sub(2);
        let place = match self.len.checked_sub(body) {
            None => self.buffer.get_mut(self.len),
            Some(i) => self.check.get_mut(i),
        };
        *place.ok_or(SerialError::Length)? = octet;
        self.len += 1;
        Ok(())
    }

    fn is_complete(&self) -> Result<bool, SerialError> {
        if self.length_octets < 2 || self.len < usize::from(self.length) {
            return Ok(false);
        }
        let body = self.buffer.get(..self.len.saturating_sub(2));
        let expected = CRC.checksum(body.unwrap_or_default());
        let found = u16::from_be_bytes(self.check);
        if expected == found {
            Ok(true)
        } else {
            Err(SerialError::Checksum { expected, found })
        }
    }
}

impl State {
    const LINE_START: Self = Self::Line {
        group: [0; 4],
        chars: 0,
    };
}

/// Up to three octets as four characters.
fn encode(raw: [u8; 3], len: usize) -> [u8; 4] {
    let [a, b, c] = raw;
    let bits = u32::from_be_bytes([0, a, b, c]);
    let digit = |shift: u32| character((bits >> shift & 63) as u8);
    [
        digit(18),
        digit(12),
        if len > 1 { digit(6) } else { b'=' },
        if len > 2 { digit(0) } else { b'=' },
    ]
}

/// Four characters as one to three octets.
fn decode(group: [u8; 4]) -> Option<([u8; 3], usize)> {
    let [a, b, c, d] = group;
    let (len, c, d) = match (c, d) {
        (b'=', b'=') => (1, b'A', b'A'),
        (c, b'=') => (2, c, b'A'),
        (c, d) => (3, c, d),
    };
    let bits = [a, b, c, d]
        .into_iter()
        .try_fold(0u32, |bits, ch| Some(bits << 6 | u32::from(value(ch)?)))?;
    let [_, x, y, z] = bits.to_be_bytes();
    Some(([x, y, z], len))
}

fn character(value: u8) -> u8 {
    match value & 63 {
        v @ 0..=25 => b'A' + v,
        v @ 26..=51 => b'a' + (v - 26),
        v @ 52..=61 => b'0' + (v - 52),
        62 => b'+',
        _ => b'/',
    }
}

fn value(character: u8) -> Option<u8> {
    Some(match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}
