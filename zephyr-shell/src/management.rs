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

    /// The answer, if there is one: it stands in front in `to`. The main loop is woken for it.
    pub fn answer<'a>(&mut self, to: &'a mut [u8]) -> Option<&'a [u8]> {
        // SAFETY: C writes at most `to.len()` bytes to `to` before it returns and keeps no
        // pointer. The answer passes from the working thread to this one by an atomic exchange,
        // so nobody else has its buffer.
        let count = unsafe { raw::helio_management_answer(to.as_mut_ptr(), to.len()) };
        to.get(..usize::try_from(count).ok()?).filter(|a| !a.is_empty())
    }
}
