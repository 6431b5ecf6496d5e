//! The CAN controller of the bus, with one mailbox for each urgency.

use crate::{Errno, raw};
use core::marker::PhantomData;
use helio_bus::{CanFrame, CanId, Mailbox};
use helio_units::{Duration, Instant};

/// Frames in, frames out, and the state of the controller.
pub struct Can {
    _thread: PhantomData<*mut ()>,
    /// In the C half; less than [`crate::BUSES`].
    bus: u32,
    sent: u8,
    failed: u8,
    fd: bool,
}

/// How the controller stands to the bus (ISO 11898-1, fault confinement).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Takes part.
    ErrorActive,
    /// Takes part, with more than 96 errors.
    ErrorWarning,
    /// Listens, and sends without disturbing others: more than 127 errors.
    ErrorPassive,
    /// Takes no part; [`Can::tend`] brings it back.
    BusOff,
    /// Not started.
    Stopped,
}

/// State and error counters of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanState {
    /// How it stands.
    pub health: Health,
    /// Transmit error counter.
    pub transmit_errors: u8,
    /// Receive error counter.
    pub receive_errors: u8,
}

/// In the C half.
fn index(mailbox: Mailbox) -> u32 {
    match mailbox {
        Mailbox::Urgent => 0,
        Mailbox::Cyclic => 1,
        Mailbox::Management => 2,
        Mailbox::Trip => 3,
    }
}

impl Can {
    pub(crate) const fn new(bus: usize) -> Self {
        Self {
            _thread: PhantomData,
            bus: bus as u32,
            sent: 0,
            failed: 0,
            fd: false,
        }
    }

    /// Goes on the bus, listening to those 11-bit identifiers that equal `id` in the bits of
    /// `mask`, and to all 29-bit ones.
    pub fn start(&mut self, bitrate: u32, fd: bool, (id, mask): (u16, u16)) -> Result<(), Errno> {
        self.fd = fd;
        let (bus, fd) = (self.bus, fd.into());
        // SAFETY: integers; there is a bus of this number. C installs its callbacks on a device that
        // only this value, handed out once, gives access to.
        let rc = unsafe { raw::helio_can_start(bus, bitrate, fd, id.into(), mask.into()) };
        Errno::check(rc).map(|_| ())
    }

    /// The next frame that was received, and its end.
    pub fn receive_at(&mut self) -> Option<(Instant, CanFrame)> {
        let (mut id, mut flags, mut at_ns) = (0, 0, 0);
        let mut data = [0; 64];
        let to = data.as_mut_ptr();
        // SAFETY: there is a bus of this number. C writes at most 64 bytes to `data` and the three
        // integers before it returns, and keeps none of the pointers. It takes its lock against the
        // interrupt.
        let count =
            unsafe { raw::helio_can_receive(self.bus, &mut id, &mut flags, to, &mut at_ns) };
        let data = data.get(..usize::try_from(count).ok()?)?;
        let id = match flags & 1 {
            0 => CanId::Standard(u16::try_from(id).ok()?),
            _ => CanId::Extended(id),
        };
        let frame = CanFrame::new(id, flags & 2 != 0, data)?;
        Some((Instant::from_nanos(at_ns), frame))
    }

    /// Puts a frame into a mailbox, which must be free.
    pub fn send(&mut self, mailbox: Mailbox, frame: &CanFrame) -> Result<(), Errno> {
        let (id, extended) = match frame.id {
            CanId::Standard(id) => (u32::from(id), 0),
            CanId::Extended(id) => (id, 1),
        };
        let flags = extended | if frame.fd { 2 } else { 0 };
        let (bus, mailbox, data) = (self.bus, index(mailbox), frame.data());
        // SAFETY: there is a bus of this number. C copies the `data.len()` bytes before it returns.
        let rc = unsafe { raw::helio_can_send(bus, mailbox, id, flags, data.as_ptr(), data.len()) };
        Errno::check(rc).map(|_| ())
    }

    fn look(&mut self) -> u32 {
        // SAFETY: there is a bus of this number; C takes its lock against the interrupt.
        let bits = unsafe { raw::helio_can_mailboxes(self.bus) };
        self.sent |= bits as u8;
        self.failed |= (bits >> 8) as u8;
        bits >> 16
    }

    /// A mailbox whose frame is on the wire, completely and acknowledged; each frame once.
    pub fn poll_sent(&mut self) -> Option<Mailbox> {
        self.look();
        // What was given up is asked for again by the core, since it was never confirmed.
        self.failed = 0;
        let mailbox = Mailbox::ALL
            .into_iter()
            .find(|m| self.sent >> index(*m) & 1 != 0)?;
        self.sent &= !(1 << index(mailbox));
        Some(mailbox)
    }

    /// Mailboxes that take a frame now.
    pub fn free(&mut self) -> impl Iterator<Item = Mailbox> + use<> {
        let full = self.look();
        Mailbox::ALL
            .into_iter()
            .filter(move |m| full >> index(*m) & 1 == 0)
    }

    /// Brings the controller back when it has gone off the bus, after a pause that doubles with
    /// each time in a row, 10 ms to 1 s. Call now and then.
    pub fn tend(&mut self) -> Result<(), Errno> {
        // SAFETY: there is a bus of this number.
        Errno::check(unsafe { raw::helio_can_tend(self.bus) }).map(|_| ())
    }

    /// How the controller stands to the bus.
    pub fn state(&self) -> CanState {
        // SAFETY: there is a bus of this number; reads registers.
        let bits = unsafe { raw::helio_can_state(self.bus) };
        CanState {
            health: match bits & 0xff {
                0 => Health::ErrorActive,
                1 => Health::ErrorWarning,
                2 => Health::ErrorPassive,
                3 => Health::BusOff,
                _ => Health::Stopped,
            },
            transmit_errors: (bits >> 8) as u8,
            receive_errors: (bits >> 16) as u8,
        }
    }

    /// Frames lost since the start because nobody fetched them in time.
    pub fn lost(&self) -> u32 {
        // SAFETY: there is a bus of this number; reads one word.
        unsafe { raw::helio_can_lost(self.bus) }
    }

    /// Times that the controller was brought back to the bus.
    pub fn recoveries(&self) -> u32 {
        // SAFETY: there is a bus of this number; reads one word.
        unsafe { raw::helio_can_recoveries(self.bus) }
    }
}

/// A classic data frame, for code that is written over `embedded-can`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame(pub CanFrame);

impl embedded_can::Frame for Frame {
    fn new(id: impl Into<embedded_can::Id>, data: &[u8]) -> Option<Self> {
        let id = match id.into() {
            embedded_can::Id::Standard(id) => CanId::Standard(id.as_raw()),
            embedded_can::Id::Extended(id) => CanId::Extended(id.as_raw()),
        };
        CanFrame::new(id, false, data)
            .filter(|f| f.data().len() <= 8)
            .map(Self)
    }

    /// The bus has no remote frames.
    fn new_remote(_id: impl Into<embedded_can::Id>, _dlc: usize) -> Option<Self> {
        None
    }

    fn is_extended(&self) -> bool {
        matches!(self.0.id, CanId::Extended(_))
    }

    fn is_remote_frame(&self) -> bool {
        false
    }

    fn id(&self) -> embedded_can::Id {
        match self.0.id {
            CanId::Standard(id) => embedded_can::StandardId::new(id)
                .unwrap_or(embedded_can::StandardId::MAX)
                .into(),
            CanId::Extended(id) => embedded_can::ExtendedId::new(id)
                .unwrap_or(embedded_can::ExtendedId::MAX)
                .into(),
        }
    }

    fn dlc(&self) -> usize {
        self.0.data().len()
    }

    fn data(&self) -> &[u8] {
        self.0.data()
    }
}

impl embedded_can::Error for Errno {
    fn kind(&self) -> embedded_can::ErrorKind {
        embedded_can::ErrorKind::Other
    }
}

impl embedded_can::blocking::Can for Can {
    type Frame = Frame;
    type Error = Errno;

    /// Waits until the management mailbox is free, and puts the frame there.
    fn transmit(&mut self, frame: &Frame) -> Result<(), Errno> {
        loop {
            match self.send(Mailbox::Management, &frame.0) {
                Err(Errno::BUSY) => {
                    self.tend()?;
                    crate::wait_until(crate::now() + Duration::from_millis(1), false);
                }
                done => return done,
            }
        }
    }

    /// Waits for a classic frame.
    fn receive(&mut self) -> Result<Frame, Errno> {
        loop {
            match self.receive_at() {
                Some((_, frame)) if !frame.fd => return Ok(Frame(frame)),
                Some(_) => {}
                None => {
                    self.tend()?;
                    crate::wait_until(crate::now() + Duration::from_millis(1), false);
                }
            }
        }
    }
}
