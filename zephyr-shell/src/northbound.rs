//! The UART on which clients speak to a master.

use crate::{Errno, raw};
use core::marker::PhantomData;

/// A line of bytes both ways; needs `CONFIG_HELIO_NORTHBOUND`, or the image does not link.
pub struct Northbound(PhantomData<*mut ()>);

impl Northbound {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Starts to listen.
    pub fn start(&mut self) -> Result<(), Errno> {
        // SAFETY: no arguments. C installs its interrupt handler on a device that only this
        // value, handed out once, gives access to.
        Errno::check(unsafe { raw::helio_northbound_start() }).map(|_| ())
    }

    /// What has come, as far as it fits; 0 when nothing has.
    pub fn receive(&mut self, to: &mut [u8]) -> usize {
        // SAFETY: C writes at most `to.len()` bytes to `to` before it returns.
        let count = unsafe { raw::helio_northbound_read(to.as_mut_ptr(), to.len()) };
        usize::try_from(count).unwrap_or(0).min(to.len())
    }

    /// Queues all of `bytes`; [`Errno::BUSY`] while there is no room.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        // SAFETY: C copies the `bytes.len()` bytes before it returns.
        let rc = unsafe { raw::helio_northbound_write(bytes.as_ptr(), bytes.len()) };
        Errno::check(rc).map(|_| ())
    }
}
