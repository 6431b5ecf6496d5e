//! The UART of the bus, with the transceiver's driver switched on while it sends.

use crate::{Errno, raw};
use core::marker::PhantomData;
use helio_units::{Duration, Instant};

/// What was heard without a pause in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// So many characters; the instant is the end of the last one.
    Bytes(usize, Instant),
    /// The line was held down, as by a slave that trips.
    Break(Instant),
}

/// Half-duplex line of characters, 8N1.
pub struct Rs485 {
    _thread: PhantomData<*mut ()>,
    /// In the C half; less than [`crate::BUSES`].
    bus: u32,
}

impl Rs485 {
    pub(crate) const fn new(bus: usize) -> Self {
        Self {
            _thread: PhantomData,
            bus: bus as u32,
        }
    }

    /// Starts to listen.
    pub fn start(&mut self, baud: u32) -> Result<(), Errno> {
        // SAFETY: integers; there is a bus of this number. C installs its interrupt handler on a
        // device that only this value, handed out once, gives access to.
        Errno::check(unsafe { raw::helio_rs485_start(self.bus, baud) }).map(|_| ())
    }

    /// The next run of characters, into `to`; what does not fit comes with the next call.
    pub fn receive(&mut self, to: &mut [u8]) -> Option<Heard> {
        let (mut end_ns, mut is_break) = (0, 0);
        let (bus, size) = (self.bus, to.len());
        // SAFETY: there is a bus of this number. C writes at most `size` bytes to `to` and the two
        // integers before it returns, and keeps none of the pointers. It takes its lock against the
        // interrupt.
        let count = unsafe {
            raw::helio_rs485_read(bus, to.as_mut_ptr(), size, &mut end_ns, &mut is_break)
        };
        let count = usize::try_from(count).ok()?;
        let end = Instant::from_nanos(end_ns);
        Some(match is_break {
            0 => Heard::Bytes(count.min(to.len()), end),
            _ => Heard::Break(end),
        })
    }

    /// Starts to send; [`Errno::BUSY`] while the last words are still on their way.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        // SAFETY: there is a bus of this number. C copies the `bytes.len()` bytes before it returns.
        let rc = unsafe { raw::helio_rs485_send(self.bus, bytes.as_ptr(), bytes.len()) };
        Errno::check(rc).map(|_| ())
    }

    /// Holds the line down for about so long.
    pub fn send_break(&mut self, length: Duration) -> Result<(), Errno> {
        let us = u32::try_from(length.as_micros()).unwrap_or(u32::MAX);
        // SAFETY: integers; there is a bus of this number.
        Errno::check(unsafe { raw::helio_rs485_send_break(self.bus, us) }).map(|_| ())
    }

    /// Characters lost since the start because nobody fetched them in time.
    pub fn lost(&self) -> u32 {
        // SAFETY: there is a bus of this number; reads one word that the interrupt writes.
        unsafe { raw::helio_rs485_lost(self.bus) }
    }
}

impl embedded_io::ErrorType for Rs485 {
    type Error = Errno;
}

impl embedded_io::Read for Rs485 {
    /// Waits for characters; a break is passed over.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Errno> {
        while !buf.is_empty() {
            match self.receive(buf) {
                Some(Heard::Bytes(count, _)) if count > 0 => return Ok(count),
                Some(_) => {}
                None => crate::wait_until(crate::now() + Duration::from_millis(1), false),
            }
        }
        Ok(0)
    }
}

impl embedded_io::Write for Rs485 {
    fn write(&mut self, buf: &[u8]) -> Result<usize, Errno> {
        let Some(part) = buf.get(..buf.len().min(128)).filter(|p| !p.is_empty()) else {
            return Ok(0);
        };
        loop {
            match self.send(part) {
                Err(Errno::BUSY) => {
                    crate::wait_until(crate::now() + Duration::from_micros(100), false);
                }
                done => return done.map(|()| part.len()),
            }
        }
    }

    /// Nothing is held back.
    fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}
