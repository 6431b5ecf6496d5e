//! Buses in virtual time, exact to the bit, yet paid for per frame.
//!
//! Both media are driven like a core: the owner of virtual time submits frames, asks
//! `poll_timeout` and calls `handle_timeout`, which hands out events. Same seed and same calls,
//! same events. Nothing here knows what a frame means.

pub mod can;
pub mod log;
pub mod receive;
pub mod rs485;
pub mod wire;

use helio_units::Duration;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Most controllers or transceivers on one bus: a master and 127 seats.
pub const MAX_PORTS: usize = 128;

/// One controller's or transceiver's place on a bus, given by `attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u8);

impl Port {
    /// Place in an array with one element per port, `0..=127`, in order of attachment.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    const fn bit(self) -> u128 {
        1 << self.0
    }
}

/// Some of a bus's ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PortSet(u128);

impl PortSet {
    /// No port.
    pub const EMPTY: Self = Self(0);

    /// Whether `port` is one of them.
    pub const fn contains(self, port: Port) -> bool {
        self.0 & port.bit() != 0
    }
    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    /// The lowest.
    pub fn first(self) -> Option<Port> {
        self.into_iter().next()
    }

    fn insert(&mut self, port: Port) {
        self.0 |= port.bit();
    }
    fn remove(&mut self, port: Port) {
        self.0 &= !port.bit();
    }
    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl From<Port> for PortSet {
    fn from(port: Port) -> Self {
        Self(port.bit())
    }
}

impl FromIterator<Port> for PortSet {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> Self {
        ports
            .into_iter()
            .fold(Self::EMPTY, |set, p| set.or(p.into()))
    }
}

/// Lowest first.
impl IntoIterator for PortSet {
    type Item = Port;
    type IntoIter = Ports;
    fn into_iter(self) -> Ports {
        Ports(self.0)
    }
}

/// Walks a [`PortSet`].
#[derive(Clone, Debug)]
pub struct Ports(u128);

impl Iterator for Ports {
    type Item = Port;
    fn next(&mut self) -> Option<Port> {
        if self.0 == 0 {
            return None;
        }
        let lowest = self.0.trailing_zeros() as u8;
        self.0 &= self.0 - 1;
        Some(Port(lowest))
    }
}

/// `None` unless it is a whole number of nanoseconds.
const fn bit_time(per_second: u32) -> Option<Duration> {
    if per_second == 0 || 1_000_000_000 % per_second != 0 {
        return None;
    }
    Some(Duration::from_nanos(1_000_000_000 / per_second as u64))
}

/// A probability as a bound for a uniform `u64`.
fn threshold(probability: f64) -> u64 {
    (probability * 18_446_744_073_709_551_616.0) as u64
}

/// Uniform in `0..n`.
fn below(rng: &mut ChaCha8Rng, n: u64) -> usize {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as usize
}
