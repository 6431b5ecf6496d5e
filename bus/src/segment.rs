//! Datagrams longer than a frame: ISO 15765-2 on CAN and CAN FD, numbered fragments on RS485.
//!
//! One [`Sender`] and one [`Receiver`] per direction and slave. No frame is sent twice by this
//! layer on CAN, whose controllers repeat: a missing one ends the datagram (the frames carry sequence numbers and blocks are
//! shorter than their range, so a gap is always seen), and who asked asks again.
//!
//! ```text
//! Sender    Idle -load-> First -first frame-> AwaitFlow -flow-> Run -last-> Idle
//!                          |                      ^              | end of block
//!                          '-single frame-> Idle  '--------------'
//! Receiver  Idle -first-> Run -last-> Done -take-> Idle
//!             '-single----------------^
//! ```
//! `AwaitFlow` and `Run` (of the receiver) fall back to `Idle` after [`TIMEOUT`], `First` after
//! [`STALLED`].
//!
//! On RS485 nobody repeats by itself, but every fragment is answered by one of the other side.
//! So [`Numbers`] alternate: a fragment stays until the other side expects the next.

use crate::Busy;
use crate::superframe::{FRAGMENT_DATA, Fragment};
use helio_units::{Duration, Instant};

/// Longest datagram.
pub const MAX_DATAGRAM: usize = 2048;
/// Neither a flow control nor a consecutive frame lets itself be waited for longer (N_Bs, N_Cr).
const TIMEOUT: Duration = Duration::from_millis(250);
/// A datagram that nobody takes is given up after so long.
const STALLED: Duration = Duration::from_millis(2_000);
/// Consecutive frames from one flow control to the next.
const BLOCK: u8 = 8;

/// Payload of one management frame.
pub type Pdu = heapless::Vec<u8, 64>;

/// A datagram and its length.
#[derive(Clone, Debug)]
pub struct Buffer {
    bytes: [u8; MAX_DATAGRAM],
    len: usize,
}

impl Buffer {
    pub const fn new() -> Self {
        Self {
            bytes: [0; MAX_DATAGRAM],
            len: 0,
        }
    }
    pub fn clear(&mut self) {
        self.len = 0;
    }
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
    /// `from..from + up to count`.
    pub fn part(&self, from: usize, count: usize) -> &[u8] {
        let to = self.len.min(from.saturating_add(count));
        self.bytes.get(from..to).unwrap_or(&[])
    }
    /// Appends what fits.
    pub fn extend(&mut self, more: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(more) {
            *to = *from;
            self.len += 1;
        }
    }
    /// Takes a whole datagram.
    pub fn load(&mut self, datagram: &[u8]) -> Result<(), Busy> {
        if datagram.is_empty() || datagram.len() > MAX_DATAGRAM {
            return Err(Busy);
        }
        self.clear();
        self.extend(datagram);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    Idle,
    First {
        until: Instant,
    },
    AwaitFlow {
        until: Instant,
    },
    Run {
        /// Frames left in the block; `None` is no limit.
        block: Option<u8>,
        /// Minimum gap that the receiver asks for.
        gap: Duration,
        /// Not before.
        at: Instant,
    },
}

/// Sends one datagram at a time.
#[derive(Clone, Debug)]
pub struct Sender {
    buffer: Buffer,
    sent: usize,
    sequence: u8,
    /// The part at `sent` was given out as a fragment.
    shown: bool,
    state: Sending,
}

impl Sender {
    pub const fn new() -> Self {
        Self {
            buffer: Buffer::new(),
            sent: 0,
            sequence: 0,
            shown: false,
            state: Sending::Idle,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.state == Sending::Idle
    }

    pub fn abort(&mut self) {
        self.state = Sending::Idle;
    }

    /// Starts a datagram.
    pub fn load(&mut self, now: Instant, datagram: &[u8]) -> Result<(), Busy> {
        if !self.is_idle() {
            return Err(Busy);
        }
        self.buffer.load(datagram)?;
        self.sent = 0;
        self.sequence = 0;
        self.shown = false;
        self.state = Sending::First {
            until: now + STALLED,
        };
        Ok(())
    }

    /// The next frame, if one may go now. `fd` allows 64 bytes.
    pub fn poll(&mut self, now: Instant, fd: bool) -> Option<Pdu> {
        let room = if fd { 64 } else { 8 };
        let total = self.buffer.len();
        let mut pdu = Pdu::new();
        match self.state {
            Sending::First { .. } if total <= 7 => {
                pdu.push(total as u8).ok()?;
                pdu.extend_from_slice(self.buffer.bytes()).ok()?;
                self.state = Sending::Idle;
            }
            Sending::First { .. } if fd && total <= 62 => {
                pdu.extend_from_slice(&[0, total as u8]).ok()?;
                pdu.extend_from_slice(self.buffer.bytes()).ok()?;
                self.state = Sending::Idle;
            }
            Sending::First { .. } => {
                let [high, low] = (total as u16).to_be_bytes();
                pdu.extend_from_slice(&[0x10 | high & 0xf, low]).ok()?;
                self.fill(&mut pdu, room);
                self.state = Sending::AwaitFlow {
                    until: now + TIMEOUT,
                };
            }
            Sending::Run { block, gap, at } if now >= at => {
                self.sequence = (self.sequence + 1) & 0xf;
                pdu.push(0x20 | self.sequence).ok()?;
                self.fill(&mut pdu, room);
                let block = block.map(|b| b.saturating_sub(1));
                self.state = if self.sent >= total {
                    Sending::Idle
                } else if block == Some(0) {
                    Sending::AwaitFlow {
                        until: now + TIMEOUT,
                    }
                } else {
                    let at = now + gap;
                    Sending::Run { block, gap, at }
                };
            }
            _ => return None,
        }
        pad(&mut pdu);
        Some(pdu)
    }

    /// A frame came. What is not flow control belongs to a datagram of the other side.
    pub fn handle_flow(&mut self, now: Instant, pdu: &[u8]) {
        let (Sending::AwaitFlow { .. }, [pci @ 0x30..=0x3f, block, gap, ..]) = (self.state, pdu)
        else {
            return;
        };
        self.state = match pci {
            0x30 => Sending::Run {
                block: (*block > 0).then_some(*block),
                gap: match gap {
                    0..=0x7f => Duration::from_millis((*gap).into()),
                    0xf1..=0xf9 => Duration::from_micros(u64::from(*gap - 0xf0) * 100),
                    _ => Duration::from_millis(127),
                },
                at: now,
            },
            0x31 => Sending::AwaitFlow {
                until: now + TIMEOUT,
            },
            _ => Sending::Idle,
        };
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if let Sending::AwaitFlow { until } | Sending::First { until } = self.state
            && now >= until
        {
            self.state = Sending::Idle;
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            Sending::AwaitFlow { until } | Sending::First { until } => Some(until),
            Sending::Run { at, .. } => Some(at),
            Sending::Idle => None,
        }
    }

    /// The part that waits to be acknowledged, and the length of the datagram if it is the first.
    pub fn fragment(&mut self, room: usize) -> Option<(Option<u16>, &[u8])> {
        if self.is_idle() {
            return None;
        }
        self.shown = true;
        let first = (self.sent == 0).then_some(self.buffer.len() as u16);
        Some((first, self.buffer.part(self.sent, room)))
    }

    /// The other side has that part.
    pub fn acknowledge(&mut self, now: Instant, room: usize) {
        if !core::mem::take(&mut self.shown) {
            return; // it was a part of a datagram that was given up
        }
        self.sent += room;
        self.state = if self.sent >= self.buffer.len() {
            Sending::Idle
        } else {
            Sending::First {
                until: now + STALLED,
            }
        };
    }

    fn fill(&mut self, pdu: &mut Pdu, room: usize) {
        let part = self.buffer.part(self.sent, room.saturating_sub(pdu.len()));
        if pdu.extend_from_slice(part).is_ok() {
            self.sent += part.len();
        }
    }
}

/// Alternating numbers of one pair of stations on RS485.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Of the fragment that we send.
    sending: bool,
    /// It was sent at least once.
    outstanding: bool,
    /// Expected from the other side.
    expecting: bool,
    /// The other side said that it cannot take any.
    refused: bool,
}

impl Numbers {
    pub const fn new() -> Self {
        Self {
            sending: false,
            outstanding: false,
            expecting: false,
            refused: false,
        }
    }

    /// What to say next. `sender` and `ready` are our two directions.
    pub fn poll(&mut self, sender: Option<&mut Sender>, ready: bool) -> Fragment {
        let mut fragment = Fragment {
            expects: self.expecting,
            ready,
            ..Fragment::default()
        };
        if let Some((first, data)) = sender.and_then(|s| s.fragment(FRAGMENT_DATA))
            && !self.refused
            && fragment.data.extend_from_slice(data).is_ok()
        {
            fragment.sequence = Some(self.sending);
            fragment.first = first;
            self.outstanding = true;
        }
        fragment
    }

    /// The other side's word; true when it completed a datagram.
    pub fn handle(
        &mut self,
        now: Instant,
        fragment: &Fragment,
        sender: Option<&mut Sender>,
        receiver: Option<&mut Receiver>,
    ) -> bool {
        self.refused = !fragment.ready;
        if self.outstanding && fragment.expects != self.sending {
            self.outstanding = false;
            self.sending = !self.sending;
            if let Some(sender) = sender {
                sender.acknowledge(now, FRAGMENT_DATA);
            }
        }
        match (fragment.sequence, receiver) {
            (Some(number), Some(receiver)) if number == self.expecting && receiver.ready() => {
                self.expecting = !self.expecting;
                receiver.fragment(now, fragment.first, &fragment.data)
            }
            _ => false,
        }
    }
}

/// Fills up to a length that CAN FD can express.
fn pad(pdu: &mut Pdu) {
    let len = match pdu.len() {
        n @ 0..=8 => n,
        9..=12 => 12,
        13..=16 => 16,
        17..=20 => 20,
        21..=24 => 24,
        25..=32 => 32,
        33..=48 => 48,
        _ => 64,
    };
    while pdu.len() < len && pdu.push(0).is_ok() {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Idle,
    Run {
        total: usize,
        sequence: u8,
        block: u8,
        until: Instant,
    },
    Done,
}

/// Collects one datagram at a time.
#[derive(Clone, Debug)]
pub struct Receiver {
    buffer: Buffer,
    state: Receiving,
    flow: Option<u8>,
}

impl Receiver {
    pub const fn new() -> Self {
        Self {
            buffer: Buffer::new(),
            state: Receiving::Idle,
            flow: None,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.state == Receiving::Idle && self.flow.is_none()
    }

    pub fn abort(&mut self) {
        self.state = Receiving::Idle;
        self.flow = None;
    }

    /// Takes a frame; true when it completed a datagram.
    pub fn handle(&mut self, now: Instant, pdu: &[u8]) -> bool {
        match (pdu, self.state) {
            ([0x30..=0x3f, ..], _) => false, // for the sender
            ([pci @ 0x20..=0x2f, data @ ..], Receiving::Run { .. }) => {
                self.consecutive(now, pci & 0xf, data)
            }
            (_, Receiving::Done) => {
                // The last one was not read yet: refuse the start of another.
                if matches!(pdu, [0x10..=0x1f, ..]) {
                    self.flow = Some(0x32);
                }
                false
            }
            ([0, len, data @ ..], _) => self.single(data, (*len).into()),
            ([len @ 1..=7, data @ ..], _) => self.single(data, (*len).into()),
            ([pci @ 0x10..=0x1f, low, data @ ..], _) => {
                let total = usize::from(pci & 0xf) << 8 | usize::from(*low);
                if total > MAX_DATAGRAM || total <= data.len() {
                    self.flow = Some(0x32);
                    self.state = Receiving::Idle;
                    return false;
                }
                self.buffer.clear();
                self.buffer.extend(data);
                self.flow = Some(0x30);
                self.state = Receiving::Run {
                    total,
                    sequence: 0,
                    block: BLOCK,
                    until: now + TIMEOUT,
                };
                false
            }
            _ => false,
        }
    }

    /// The flow control frame that is due.
    pub fn poll(&mut self) -> Option<Pdu> {
        let flow = self.flow.take()?;
        Pdu::from_slice(&[flow, BLOCK, 0]).ok()
    }

    /// Whether a fragment would be taken.
    pub fn ready(&self) -> bool {
        self.state != Receiving::Done
    }

    /// Takes a fragment that came in order; true when it completed a datagram. `first` is the
    /// length of the datagram that starts with it.
    pub fn fragment(&mut self, now: Instant, first: Option<u16>, data: &[u8]) -> bool {
        let total = match (first, self.state) {
            (_, Receiving::Done) => return false,
            (Some(total), _) => {
                self.buffer.clear();
                usize::from(total)
            }
            (None, Receiving::Run { total, .. }) => total,
            (None, Receiving::Idle) => return false,
        };
        self.buffer.extend(data);
        if total == 0 || total > MAX_DATAGRAM || self.buffer.len() > total {
            self.abort();
            return false;
        }
        let whole = self.buffer.len() == total;
        self.state = if whole {
            Receiving::Done
        } else {
            Receiving::Run {
                total,
                sequence: 0,
                block: BLOCK,
                until: now + STALLED,
            }
        };
        whole
    }

    /// The completed datagram, once.
    pub fn take(&mut self) -> Option<&[u8]> {
        if self.state != Receiving::Done {
            return None;
        }
        self.state = Receiving::Idle;
        Some(self.buffer.bytes())
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if matches!(self.state, Receiving::Run { until, .. } if now >= until) {
            self.abort();
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            Receiving::Run { until, .. } => Some(until),
            Receiving::Idle | Receiving::Done => None,
        }
    }

    fn single(&mut self, data: &[u8], len: usize) -> bool {
        let Some(data) = data.get(..len).filter(|d| !d.is_empty()) else {
            return false;
        };
        self.buffer.clear();
        self.buffer.extend(data);
        self.flow = None;
        self.state = Receiving::Done;
        true
    }

    fn consecutive(&mut self, now: Instant, number: u8, data: &[u8]) -> bool {
        let Receiving::Run {
            total,
            sequence,
            block,
            ..
        } = self.state
        else {
            return false;
        };
        let expected = (sequence + 1) & 0xf;
        if number != expected {
            self.abort();
            return false;
        }
        let missing = total.saturating_sub(self.buffer.len());
        self.buffer
            .extend(data.get(..missing.min(data.len())).unwrap_or(&[]));
        if self.buffer.len() >= total {
            self.flow = None;
            self.state = Receiving::Done;
            return true;
        }
        let block = match block {
            0 | 1 => {
                self.flow = Some(0x30);
                BLOCK
            }
            more => more - 1,
        };
        self.state = Receiving::Run {
            total,
            sequence: expected,
            block,
            until: now + TIMEOUT,
        };
        false
    }
}
