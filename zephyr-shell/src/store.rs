//! What outlives a reset: one record of the core's, and the name that clients gave the device.

use crate::{Errno, raw};
use core::marker::PhantomData;

/// Longest name of a device, in bytes of UTF-8.
pub const NAME_BYTES: usize = 24;

/// A record in flash. Without `CONFIG_HELIO_STORE` there is none, and [`Self::start`] says
/// [`Errno::NO_DEVICE`].
pub struct Store(PhantomData<*mut ()>);

impl Store {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Reads what is in flash; once, before all else.
    pub fn start(&mut self) -> Result<(), Errno> {
        // SAFETY: no arguments; mounts the settings' partition and reads it, from one thread.
        Errno::check(unsafe { raw::helio_store_start() }).map(|_| ())
    }

    /// The record as it was read; empty when there is none.
    pub fn record(&mut self) -> &[u8] {
        let mut from = core::ptr::null();
        // SAFETY: C writes a pointer to a static buffer and returns how much of it is filled.
        let count = unsafe { raw::helio_store_record(&mut from) };
        match usize::try_from(count) {
            // SAFETY: the buffer is never freed. Nobody writes it before the next `save`, which
            // `&mut self` makes wait for the end of this borrow.
            Ok(count) if count > 0 => unsafe { core::slice::from_raw_parts(from, count) },
            _ => &[],
        }
    }

    /// Lets `fill` write a record, which says how long it is; it goes to flash in a thread of lower
    /// priority. [`Errno::BUSY`] while the one before is under way, [`Errno::INVALID`] when `fill`
    /// has no room for it.
    pub fn save(&mut self, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Result<(), Errno> {
        let mut to = core::ptr::null_mut();
        // SAFETY: C writes a pointer to a static buffer of as many bytes as it returns.
        let room = Errno::check(unsafe { raw::helio_store_open(&mut to) })?;
        let room = usize::try_from(room).map_err(|_| Errno::INVALID)?;
        // SAFETY: the buffer is never freed, and C does not touch it between open and close; `&mut
        // self` keeps out a second one.
        let buffer = unsafe { core::slice::from_raw_parts_mut(to, room) };
        let count = fill(buffer).filter(|n| *n <= room).ok_or(Errno::INVALID)?;
        // SAFETY: one integer, not more than the buffer holds, which is C's from here on.
        Errno::check(unsafe { raw::helio_store_close(count) }).map(|_| ())
    }

    /// Whether a record could not be written, told once.
    pub fn failed(&mut self) -> bool {
        // SAFETY: no arguments; swaps one word atomically.
        unsafe { raw::helio_store_failed() != 0 }
    }

    /// The name that clients gave this device.
    pub fn name<'a>(&mut self, to: &'a mut [u8; NAME_BYTES]) -> Option<&'a str> {
        // SAFETY: C writes at most `NAME_BYTES` bytes to `to` before it returns.
        let count = unsafe { raw::helio_store_name(to.as_mut_ptr(), NAME_BYTES) };
        let name = to.get(..usize::try_from(count).ok()?)?;
        core::str::from_utf8(name).ok().filter(|n| !n.is_empty())
    }
}
