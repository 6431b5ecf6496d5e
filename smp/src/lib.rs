//! SMP, the management protocol of Zephyr's mcumgr: what is in a datagram and how to answer one.
//!
//! A server core hands every datagram to [`accept`], offers the request to
//! [`standard::handle`], answers its own groups through [`Request::reply`], and refuses the rest
//! with [`Rc::NotSupported`]. Nothing here keeps state except [`serial::Decoder`] and
//! [`tunnel::SlaveTunnel`].
//!
//! ```text
//! octet 0        1      2   3   4   5   6    7
//!       RRR VV OOO flags  length  group  seq  id   then `length` octets of CBOR
//! ```
//!
//! R reserved, V version (0 is the first, 1 the second), O operation; numbers are big endian.
//! Sources: Zephyr's *SMP Protocol Specification* and *SMP Transport Specification* (4.2), and
//! where these are silent, what Zephyr's server does.
#![no_std]

pub mod heliograph;
pub mod serial;
pub mod standard;
pub mod tunnel;

use minicbor::data::Type;
use minicbor::encode::{Encoder, Write};
use minicbor::{Decoder, decode, encode};

/// Longest datagram that a server of this project takes or gives, header included, in octets.
pub const MAX_DATAGRAM: usize = 2048;

/// Who says what to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Request that changes nothing.
    Read,
    /// Answer to [`Op::Read`].
    ReadReply,
    /// Request that may change something.
    Write,
    /// Answer to [`Op::Write`].
    WriteReply,
}

/// Shape of error bodies; a server answers in the version it was asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Errors are `{rc}`.
    V1,
    /// Errors of a group are `{err: {group, rc}}`, those of SMP itself `{rc}`.
    V2,
}

/// The first eight octets of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request or answer.
    pub op: Op,
    /// Shape of errors.
    pub version: Version,
    /// None is defined; sent as 0.
    pub flags: u8,
    /// Octets of body behind the header.
    pub length: u16,
    /// Command group; 64 and above are free for applications.
    pub group: u16,
    /// An answer carries its request's.
    pub seq: u8,
    /// Command within the group.
    pub id: u8,
}

/// Why a datagram is not a well-formed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer than eight octets: there is nobody to answer, drop it.
    Short,
    /// Operation 4 to 7: answer [`Rc::NotSupported`].
    Op(u8),
    /// The peer is newer than this code: answer [`Rc::TooNew`].
    Version(u8),
    /// The body is shorter or longer than the header says: answer [`Rc::Corrupt`].
    Length {
        /// According to the header.
        said: u16,
        /// In the datagram.
        found: usize,
    },
}

impl Header {
    /// Octets that a header takes.
    pub const SIZE: usize = 8;

    /// Reads the header alone; the reserved bits are ignored, as Zephyr does.
    pub fn decode(datagram: &[u8]) -> Result<Self, HeaderError> {
        let Some(&[first, flags, l1, l0, g1, g0, seq, id]) = datagram.first_chunk() else {
            return Err(HeaderError::Short);
        };
        Ok(Self {
            op: match first & 7 {
                0 => Op::Read,
                1 => Op::ReadReply,
                2 => Op::Write,
                3 => Op::WriteReply,
                op => return Err(HeaderError::Op(op)),
            },
            version: match first >> 3 & 3 {
                0 => Version::V1,
                1 => Version::V2,
                version => return Err(HeaderError::Version(version)),
            },
            flags,
            length: u16::from_be_bytes([l1, l0]),
            group: u16::from_be_bytes([g1, g0]),
            seq,
            id,
        })
    }

    /// The octets on the wire.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let op = match self.op {
            Op::Read => 0,
            Op::ReadReply => 1,
            Op::Write => 2,
            Op::WriteReply => 3,
        };
        let version = match self.version {
            Version::V1 => 0,
            Version::V2 => 1,
        };
        let [l1, l0] = self.length.to_be_bytes();
        let [g1, g0] = self.group.to_be_bytes();
        [
            version << 3 | op,
            self.flags,
            l1,
            l0,
            g1,
            g0,
            self.seq,
            self.id,
        ]
    }

    /// Header of the answer to a request with this header; its `length` is still 0.
    pub fn reply(&self) -> Self {
        Self {
            op: match self.op {
                Op::Read | Op::ReadReply => Op::ReadReply,
                Op::Write | Op::WriteReply => Op::WriteReply,
            },
            flags: 0,
            length: 0,
            ..*self
        }
    }
}

/// Takes a datagram apart, request or answer, into header and body.
pub fn split(datagram: &[u8]) -> Result<(Header, &[u8]), HeaderError> {
    let header = Header::decode(datagram)?;
    let body = datagram.get(Header::SIZE..).unwrap_or_default();
    if body.len() == usize::from(header.length) {
        Ok((header, body))
    } else {
        Err(HeaderError::Length {
            said: header.length,
            found: body.len(),
        })
    }
}

/// Takes a request, or writes its refusal to `out` and says how long that is. A length of 0 means
/// that there is nothing to answer: the datagram is no request at all.
pub fn accept<'a>(datagram: &'a [u8], out: &mut [u8]) -> Result<Request<'a>, usize> {
    let error = match split(datagram) {
        Ok((header, body)) => match header.op {
            Op::Read | Op::Write => return Ok(Request { header, body }),
            // Answering an answer would let two servers talk for ever.
            Op::ReadReply | Op::WriteReply => return Err(0),
        },
        Err(HeaderError::Short) => return Err(0),
        Err(HeaderError::Op(_)) => Rc::NotSupported,
        Err(HeaderError::Version(_)) => Rc::TooNew,
        Err(HeaderError::Length { .. }) => Rc::Corrupt,
    };
    let Some(&[first, _, _, _, g1, g0, seq, id]) = datagram.first_chunk() else {
        return Err(0);
    };
    let header = Header {
        op: match first & 7 {
            0 => Op::ReadReply,
            1 | 3 => return Err(0),
            _ => Op::WriteReply,
        },
        // Whoever is newer understands version 2.
        version: match first >> 3 & 3 {
            0 => Version::V1,
            _ => Version::V2,
        },
        flags: 0,
        length: 0,
        group: u16::from_be_bytes([g1, g0]),
        seq,
        id,
    };
    Err(Reply { header, out }.rc(error))
}

/// A well-formed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// What is asked; `op` is [`Op::Read`] or [`Op::Write`].
    pub header: Header,
    /// CBOR, not looked at yet; may be empty.
    pub body: &'a [u8],
}

impl Request<'_> {
    /// Starts the answer in `out`, which holds up to [`MAX_DATAGRAM`] octets.
    pub fn reply<'o>(&self, out: &'o mut [u8]) -> Reply<'o> {
        Reply {
            header: self.header.reply(),
            out,
        }
    }
}

/// The body is not a map of text keys with the values expected: answer `Invalid` or the group's
/// own code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl From<decode::Error> for Malformed {
    fn from(_: decode::Error) -> Self {
        Self
    }
}

/// Walks a body. `field` is called with every key and must consume the value; it skips what it
/// does not know with `d.skip()`. An absent body is an empty map.
///
/// A value that is skipped may nest definite lengths only, because skipping the other kind needs
/// an allocator.
pub fn read_map<'b>(
    body: &'b [u8],
    mut field: impl FnMut(&'b str, &mut Decoder<'b>) -> Result<(), decode::Error>,
) -> Result<(), Malformed> {
    if body.is_empty() {
        return Ok(());
    }
    let mut d = Decoder::new(body);
    let mut left = d.map()?;
    loop {
        match &mut left {
            Some(0) => break,
            Some(n) => *n -= 1,
            None if d.datatype()? == Type::Break => {
                d.set_position(d.position() + 1);
                break;
            }
            None => {}
        }
        let key = d.str()?;
        field(key, &mut d)?;
    }
    if d.position() == body.len() {
        Ok(())
    } else {
        Err(Malformed)
    }
}

/// SMP's own return codes (`mcumgr_err_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Rc {
    /// Anything without a better code.
    Unknown = 1,
    /// Out of memory.
    NoMemory = 2,
    /// A value is missing, of the wrong kind or out of range.
    Invalid = 3,
    /// It took too long.
    Timeout = 4,
    /// There is no such thing.
    NoEntry = 5,
    /// Not in this state.
    BadState = 6,
    /// The answer does not fit the datagram.
    TooLarge = 7,
    /// No such group, command or operation.
    NotSupported = 8,
    /// The datagram is damaged.
    Corrupt = 9,
    /// Ask again later.
    Busy = 10,
    /// Not for this client.
    Denied = 11,
    /// The request's version is no longer spoken.
    TooOld = 12,
    /// The request's version is not yet spoken.
    TooNew = 13,
}

/// An answer being built in the caller's buffer. Every way to finish it returns the length of
/// the datagram, or 0 if not even an error fits.
pub struct Reply<'o> {
    header: Header,
    out: &'o mut [u8],
}

/// Where a body is written: minicbor's encoder over a [`Buffer`].
pub type Body<'a> = Encoder<Buffer<'a>>;
/// What a function that writes a body returns; the error is that it does not fit.
pub type Written = Result<(), encode::Error<Full>>;

impl Reply<'_> {
    /// Writes the body with `write`. If it does not fit, the answer is [`Rc::TooLarge`].
    pub fn body(mut self, write: impl FnOnce(&mut Body<'_>) -> Written) -> usize {
        match self.try_body(write) {
            Some(n) => n,
            None => self.rc(Rc::TooLarge),
        }
    }

    /// Done, nothing to tell: `{}`.
    pub fn empty(self) -> usize {
        self.body(|e| e.map(0)?.ok())
    }

    /// An error of SMP itself: `{rc}` in either version.
    pub fn rc(mut self, rc: Rc) -> usize {
        self.try_body(|e| e.map(1)?.str("rc")?.u16(rc as u16)?.ok())
            .unwrap_or(0)
    }

    /// An error of the request's group: code `rc` to a version 2 request, and to version 1, which
    /// knows no others, the code of SMP that comes closest.
    pub fn error(mut self, rc: u16, v1: Rc) -> usize {
        let group = self.header.group;
        match self.header.version {
            Version::V1 => self.rc(v1),
            Version::V2 => self
                .try_body(|e| {
                    e.map(1)?.str("err")?.map(2)?;
                    e.str("group")?.u16(group)?.str("rc")?.u16(rc)?.ok()
                })
                .unwrap_or(0),
        }
    }

    fn try_body(&mut self, write: impl FnOnce(&mut Body<'_>) -> Written) -> Option<usize> {
        let (head, rest) = self.out.split_at_mut_checked(Header::SIZE)?;
        let limit = rest.len().min(MAX_DATAGRAM - Header::SIZE);
        let mut e = Encoder::new(Buffer::new(rest.get_mut(..limit)?));
        write(&mut e).ok()?;
        let length = e.writer().len();
        self.header.length = u16::try_from(length).ok()?;
        head.copy_from_slice(&self.header.encode());
        Some(Header::SIZE + length)
    }
}

/// The rest of an item does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A slice being filled, that can forget its newest part again.
pub struct Buffer<'a> {
    bytes: &'a mut [u8],
    len: usize,
    limit: usize,
}

impl<'a> Buffer<'a> {
    /// Empty, over the whole of `bytes`.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let limit = bytes.len();
        Self {
            bytes,
            len: 0,
            limit,
        }
    }

    /// Octets written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Write for Buffer<'_> {
    type Error = Full;

    fn write_all(&mut self, new: &[u8]) -> Result<(), Full> {
        let end = self.len.saturating_add(new.len());
        if end > self.limit {
            return Err(Full);
        }
        let place = self.bytes.get_mut(self.len..end).ok_or(Full)?;
        place.copy_from_slice(new);
        self.len = end;
        Ok(())
    }
}

/// Writes an array of as many items as fit, leaving `reserve` octets for what comes behind it.
///
/// `item` is called with 0, 1, 2... and writes one item each, until it says `false` (having
/// written nothing that counts) or the space is used up; an item that fits in part is taken back.
/// Returns how many items were written.
pub fn list(
    e: &mut Body<'_>,
    reserve: usize,
    mut item: impl FnMut(&mut Body<'_>, usize) -> Result<bool, encode::Error<Full>>,
) -> Result<usize, encode::Error<Full>> {
    // The count is not known yet: the three-octet form of the array header, filled in at the end.
    let count_at = e.writer().len + 1;
    let whole = e.writer().limit;
    let limit = whole.saturating_sub(reserve);
    e.writer_mut()
        .write_all(&[0x99, 0, 0])
        .map_err(encode::Error::write)?;
    e.writer_mut().limit = limit;
    let mut count: u16 = 0;
    while count < u16::MAX {
        let mark = e.writer().len;
        match item(e, usize::from(count)) {
            Ok(true) => count += 1,
            Ok(false) | Err(_) => {
                e.writer_mut().len = mark;
                break;
            }
        }
    }
    let buffer = e.writer_mut();
    buffer.limit = whole;
    if let Some(place) = buffer.bytes.get_mut(count_at..count_at + 2) {
        place.copy_from_slice(&count.to_be_bytes());
    }
    Ok(usize::from(count))
}
