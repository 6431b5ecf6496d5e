//! Records between a CAN controller in emulation and the hub, over a stream socket.
//!
//! Every record begins with its size in octets, itself included, and its kind. Integers are little
//! endian. The other end is
//! `zephyr/drivers/can/can_heliograph_native_loopback.c`.
//!
//! ```text
//! to the hub      START    20, 1, version, flags, nominal bit/s u32, data bit/s u32, 0 u64
//!                 STOP      2, 2
//!                 SEND   8+n, 3, mailbox, flags, identifier u32, data
//!                 RECOVER   2, 4
//!                 CORRUPT   6, 5, frames u32
//! to the member   STARTED   4, 16, sender, 0
//!                 FRAME 8+n, 17, sender, flags, identifier u32, data
//!                 SENT      4, 18, mailbox, 0
//!                 STATE     8, 19, state, 0, TEC u16, REC u16
//!                 REFUSED 2+n, 20, a sentence in UTF-8
//! ```
//!
//! | flags | of a frame | of START |
//! |---|---|---|
//! | 1 | 29-bit identifier | takes FD frames |
//! | 2 | FD format | listens only |
//! | 4 | bit-rate switch | bus-off lasts until RECOVER |

use helio_bus::{CanFrame, CanId};

/// What `START` must say.
pub const VERSION: u8 = 1;
/// Octets of the longest record.
pub const MAX: usize = 255;

const START: u8 = 1;
const STOP: u8 = 2;
const SEND: u8 = 3;
const RECOVER: u8 = 4;
const CORRUPT: u8 = 5;
const STARTED: u8 = 16;
const FRAME: u8 = 17;
const SENT: u8 = 18;
const STATE: u8 = 19;
const REFUSED: u8 = 20;

const EXTENDED: u8 = 1;
const FD: u8 = 2;
const SWITCH: u8 = 4;

/// How a controller takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Takes and sends FD frames.
    pub fd: bool,
    /// Neither sends nor acknowledges.
    pub listen_only: bool,
    /// Stays bus-off until it says [`Request::Recover`].
    pub manual_recovery: bool,
    /// Rate of the arbitration phase, bit/s.
    pub nominal_bps: u32,
    /// Rate of the data phase of FD frames, bit/s.
    pub data_bps: u32,
}

/// A frame, and whether an FD one switches its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framed {
    /// The frame.
    pub frame: CanFrame,
    /// The rate is switched in its data phase.
    pub switch: bool,
}

/// What a member asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take part, with cleared counters and empty mailboxes.
    Start(Start),
    /// Take part no more.
    Stop,
    /// Send from this mailbox, `0..=3`, which must be empty.
    Send(u8, Framed),
    /// End bus-off.
    Recover,
    /// Destroy the next frames on the bus, whoever sends them.
    Corrupt(u32),
}

/// What the hub tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Taking part, under this number, which its frames carry.
    Started(u8),
    /// A frame of another member.
    Frame(u8, Framed),
    /// The frame in this mailbox was sent and acknowledged.
    Sent(u8),
    /// The fault confinement's state (0 active, 1 passive, 2 bus-off), TEC and REC.
    State(u8, u16, u16),
    /// Not taking part, and why.
    Refused(String),
}

/// Why octets are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// Read more, then try again.
    Incomplete,
    /// The peer speaks something else, or another version: hang up.
    Malformed,
}

/// Takes the record at the front; gives how many octets it had.
fn split(octets: &[u8]) -> Result<(u8, &[u8], usize), RecordError> {
    let size = usize::from(*octets.first().ok_or(RecordError::Incomplete)?);
    if size < 2 {
        return Err(RecordError::Malformed);
    }
    let record = octets.get(..size).ok_or(RecordError::Incomplete)?;
    Ok((record[1], &record[2..], size))
}

fn u32_at(body: &[u8], at: usize) -> Result<u32, RecordError> {
    let four = body.get(at..at + 4).ok_or(RecordError::Malformed)?;
    Ok(u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
}

fn u16_at(body: &[u8], at: usize) -> Result<u16, RecordError> {
    let two = body.get(at..at + 2).ok_or(RecordError::Malformed)?;
    Ok(u16::from_le_bytes([two[0], two[1]]))
}

/// What stands before flags, then those, the identifier and the data.
fn framed(body: &[u8]) -> Result<(u8, Framed), RecordError> {
    let (place, flags, id) = (body.first(), body.get(1), u32_at(body, 2)?);
    let (Some(&place), Some(&flags)) = (place, flags) else {
        return Err(RecordError::Malformed);
    };
    let id = match flags & EXTENDED {
        0 => CanId::Standard(u16::try_from(id).map_err(|_| RecordError::Malformed)?),
        _ => CanId::Extended(id),
    };
    let data = body.get(6..).ok_or(RecordError::Malformed)?;
    let frame = CanFrame::new(id, flags & FD != 0, data).ok_or(RecordError::Malformed)?;
    let switch = flags & SWITCH != 0;
    Ok((place, Framed { frame, switch }))
}

fn put_framed(kind: u8, place: u8, framed: &Framed, out: &mut Vec<u8>) {
    let (extended, id) = match framed.frame.id {
        CanId::Standard(id) => (0, u32::from(id)),
        CanId::Extended(id) => (EXTENDED, id),
    };
    let fd = if framed.frame.fd { FD } else { 0 };
    let switch = if framed.switch { SWITCH } else { 0 };
    let data = framed.frame.data();
    out.extend([8 + data.len() as u8, kind, place, extended | fd | switch]);
    out.extend(id.to_le_bytes());
    out.extend(data);
}

impl Request {
    /// Takes the request at the front; gives how many octets it had.
    pub fn decode(octets: &[u8]) -> Result<(Self, usize), RecordError> {
        // A stranger's first letters, whatever size they seem to announce.
        if octets
            .get(1)
            .is_some_and(|kind| !(START..=CORRUPT).contains(kind))
        {
            return Err(RecordError::Malformed);
        }
        let (kind, body, size) = split(octets)?;
        let request = match kind {
            START => match body {
                [VERSION, flags, rates @ ..] if rates.len() >= 8 => Self::Start(Start {
                    fd: flags & 1 != 0,
                    listen_only: flags & 2 != 0,
                    manual_recovery: flags & 4 != 0,
                    nominal_bps: u32_at(rates, 0)?,
                    data_bps: u32_at(rates, 4)?,
                }),
                _ => return Err(RecordError::Malformed),
            },
            STOP => Self::Stop,
            SEND => {
                let (mailbox, framed) = framed(body)?;
                Self::Send(mailbox, framed)
            }
            RECOVER => Self::Recover,
            CORRUPT => Self::Corrupt(u32_at(body, 0)?),
            _ => return Err(RecordError::Malformed),
        };
        Ok((request, size))
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Start(start) => {
                let flags = u8::from(start.fd)
                    | u8::from(start.listen_only) << 1
                    | u8::from(start.manual_recovery) << 2;
                out.extend([20, START, VERSION, flags]);
                out.extend(start.nominal_bps.to_le_bytes());
                out.extend(start.data_bps.to_le_bytes());
                out.extend([0; 8]);
            }
            Self::Stop => out.extend([2, STOP]),
            Self::Send(mailbox, framed) => put_framed(SEND, *mailbox, framed, out),
            Self::Recover => out.extend([2, RECOVER]),
            Self::Corrupt(frames) => {
                out.extend([6, CORRUPT]);
                out.extend(frames.to_le_bytes());
            }
        }
    }
}

impl Told {
    /// Takes the record at the front; gives how many octets it had.
    pub fn decode(octets: &[u8]) -> Result<(Self, usize), RecordError> {
        let (kind, body, size) = split(octets)?;
        let first = body.first().copied().ok_or(RecordError::Malformed);
        let told = match kind {
            STARTED => Self::Started(first?),
            FRAME => {
                let (sender, framed) = framed(body)?;
                Self::Frame(sender, framed)
            }
            SENT => Self::Sent(first?),
            STATE => Self::State(first?, u16_at(body, 2)?, u16_at(body, 4)?),
            REFUSED => Self::Refused(String::from_utf8_lossy(body).into_owned()),
            _ => return Err(RecordError::Malformed),
        };
        Ok((told, size))
    }

    /// Appends the record. A sentence too long is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Started(sender) => out.extend([4, STARTED, *sender, 0]),
            Self::Frame(sender, framed) => put_framed(FRAME, *sender, framed, out),
            Self::Sent(mailbox) => out.extend([4, SENT, *mailbox, 0]),
            Self::State(state, tec, rec) => {
                out.extend([8, STATE, *state, 0]);
                out.extend(tec.to_le_bytes());
                out.extend(rec.to_le_bytes());
            }
            Self::Refused(why) => {
                let why = &why.as_bytes()[..why.len().min(MAX - 2)];
                out.extend([2 + why.len() as u8, REFUSED]);
                out.extend(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let framed = |id, fd, data: &[u8]| Framed {
            frame: CanFrame::new(id, fd, data).expect("a frame"),
            switch: fd,
        };
        vec![
            Request::Start(Start {
                fd: true,
                listen_only: false,
                manual_recovery: true,
                nominal_bps: 1_000_000,
                data_bps: 5_000_000,
            }),
            Request::Send(2, framed(CanId::Standard(0x7ff), false, &[1, 2, 3])),
            Request::Send(0, framed(CanId::Extended(0x1fff_ffff), true, &[9; 64])),
            Request::Recover,
            Request::Corrupt(70_000),
            Request::Stop,
        ]
    }

    #[test]
    fn what_was_encoded_comes_back_whole_and_never_before_its_last_octet() {
        for request in requests() {
            let mut octets = Vec::new();
            request.encode(&mut octets);
            assert_eq!(usize::from(octets[0]), octets.len());
            for n in 0..octets.len() {
                let part = Request::decode(&octets[..n]);
                assert_eq!(part, Err(RecordError::Incomplete), "{request:?} {n}");
            }
            assert_eq!(Request::decode(&octets), Ok((request, octets.len())));
        }
    }

    #[test]
    fn told_records_come_back_whole() {
        let frame = CanFrame::new(CanId::Extended(5), false, &[7; 8]).expect("a frame");
        let framed = Framed {
            frame,
            switch: false,
        };
        for told in [
            Told::Started(3),
            Told::Frame(127, framed),
            Told::Sent(1),
            Told::State(2, 256, 127),
            Told::Refused("no".into()),
        ] {
            let mut octets = Vec::new();
            told.encode(&mut octets);
            assert_eq!(Told::decode(&octets), Ok((told, octets.len())));
        }
    }

    #[test]
    fn an_identifier_or_length_that_no_frame_has_is_malformed() {
        for octets in [
            [8, SEND, 0, 0, 0x00, 0x08, 0, 0].as_slice(),
            &[8, SEND, 0, 1, 0, 0, 0, 0x20],
            &[17, SEND, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            &[4, START, 9, 0],
            &[1],
            &[2, 99],
        ] {
            assert_eq!(Request::decode(octets), Err(RecordError::Malformed));
        }
    }
}
