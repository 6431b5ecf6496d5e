//! Zephyr's management of the device: images, settings, reset.

use crate::{Errno, raw};
use core::marker::PhantomData;

/// Answers those SMP datagrams that are for the device. Without `CONFIG_HELIO_MANAGEMENT` nobody
/// does, and [`Self::request`] says [`Errno::NO_DEVICE`].
pub struct Management(PhantomData<*mut ()>);

impl Management {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Takes a request, header included, and works on it in a thread of its own. [`Errno::BUSY`]
    /// while the one before is at work: whoever sent it asks again.
    pub fn request(&mut self, datagram: &[u8]) -> Result<(), Errno> {
        // SAFETY: C copies the `datagram.len()` bytes into a buffer of its own before it returns.
        let rc = unsafe { raw::helio_management_request(datagram.as_ptr(), datagram.len()) };
        Errno::check(rc).map(|_| ())
    }

    /// Lends the answer, if there is one. The main loop is woken for it.
    pub fn answer(&mut self, take: impl FnOnce(&[u8])) {
        let mut from = core::ptr::null();
        // SAFETY: C writes a pointer to a buffer and returns how much of it is filled. The answer
        // passes from the working thread to this one by an atomic exchange, so nobody else has its
        // buffer until it is given back.
        let count = unsafe { raw::helio_management_answer(&mut from) };
        if let Some(count) = usize::try_from(count).ok().filter(|n| *n > 0) {
            // SAFETY: as many bytes as C has filled, which it neither writes nor frees before it
            // is done; `take` keeps none of them.
            take(unsafe { core::slice::from_raw_parts(from, count) });
            // SAFETY: no arguments; frees what was lent above.
            unsafe { raw::helio_management_done() };
        }
    }
}
