//! Clients that speak to a master over UDP.

use crate::{Errno, raw};
use core::marker::PhantomData;

/// Who sent a datagram; for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(pub u32);

/// A socket; needs `CONFIG_HELIO_NORTHBOUND_UDP`, or the image does not link.
pub struct Udp(PhantomData<*mut ()>);

impl Udp {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Starts to listen.
    pub fn start(&mut self) -> Result<(), Errno> {
        // SAFETY: no arguments. C starts a thread that lends what it hears to this one, which
        // alone has this value.
        Errno::check(unsafe { raw::helio_udp_start() }).map(|_| ())
    }

    /// Lends the next datagram, if one has come, and says who sent it; whether one had come.
    pub fn receive(&mut self, take: impl FnOnce(&mut Self, Client, &[u8])) -> bool {
        let (mut from, mut client) = (core::ptr::null(), 0);
        // SAFETY: C writes a pointer to a static buffer and a number, and returns how much of the
        // buffer is filled. The thread that fills it waits until it is given back.
        let count = unsafe { raw::helio_udp_receive(&mut from, &mut client) };
        let Some(count) = usize::try_from(count).ok().filter(|n| *n > 0) else {
            return false;
        };
        // SAFETY: as many bytes as C has filled, and nobody writes them before they are given back;
        // `take` keeps none of them.
        let datagram = unsafe { core::slice::from_raw_parts(from, count) };
        take(self, Client(client), datagram);
        // SAFETY: no arguments; gives back what was lent above.
        unsafe { raw::helio_udp_done() };
        true
    }

    /// Sends an answer; [`Errno`] where the network does not take it now.
    pub fn send(&mut self, to: Client, bytes: &[u8]) -> Result<(), Errno> {
        // SAFETY: C copies the `bytes.len()` bytes before it returns.
        let rc = unsafe { raw::helio_udp_send(to.0, bytes.as_ptr(), bytes.len()) };
        Errno::check(rc).map(|_| ())
    }
}
