//! Quantities that carry their unit, shared by every core and by the host tools.
//!
//! All are plain integers, so that a bus frame, a C border and a file carry them unchanged.
//! Time saturates instead of panicking: cores may not stop because a peer or a file named an
//! absurd instant (this is why these are not `fugit`'s types, whose `+` and `-` panic).
//!
//! Sign of a current, everywhere in this project: **discharge is positive**, as in Plett,
//! *Battery Management Systems*, vol. 1 (2015) and in PyBaMM.
#![no_std]

use core::fmt;
use core::ops::{Add, AddAssign, Mul, Sub};

/// A point in time: nanoseconds since the owner of the clock started. Never wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

/// A span of time in nanoseconds, never negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(u64);

impl Instant {
    /// The clock's start.
    pub const ZERO: Self = Self(0);
    /// Later than anything that happens (584 years).
    pub const MAX: Self = Self(u64::MAX);

    /// `ns` nanoseconds after the clock's start.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }
    /// `us` microseconds after the clock's start.
    pub const fn from_micros(us: u64) -> Self {
        Self(us.saturating_mul(1_000))
    }
    /// `ms` milliseconds after the clock's start.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }
    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// Whole microseconds since the clock's start.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }
    /// Whole milliseconds since the clock's start.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }
    /// Time passed since `earlier`; zero when `earlier` is in fact later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0))
    }
}

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// A span of `ns` nanoseconds.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }
    /// A span of `us` microseconds.
    pub const fn from_micros(us: u64) -> Self {
        Self(us.saturating_mul(1_000))
    }
    /// A span of `ms` milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000_000))
    }
    /// A span of `s` seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1_000_000_000))
    }
    /// Nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
    /// Whole microseconds.
    pub const fn as_micros(self) -> u64 {
        self.0 / 1_000
    }
    /// Whole milliseconds.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }
    /// Seconds, for filters that integrate. Exact below 2^24 ns, then to 6 parts in 10^8.
    pub const fn as_secs_f32(self) -> f32 {
        (self.0 as f64 * 1e-9) as f32
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d.0))
    }
}
impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}
impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(d.0))
    }
}
impl Add for Duration {
    type Output = Self;
    fn add(self, d: Self) -> Self {
        Self(self.0.saturating_add(d.0))
    }
}
impl Sub for Duration {
    type Output = Self;
    fn sub(self, d: Self) -> Self {
        Self(self.0.saturating_sub(d.0))
    }
}
impl Mul<u64> for Duration {
    type Output = Self;
    fn mul(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06} s",
            self.0 / 1_000_000_000,
            self.0 / 1_000 % 1_000_000
        )
    }
}

/// Voltage of a cell or a small group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millivolts(pub u16);

/// Current; discharge is positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Milliamps(pub i32);

/// Temperature in tenths of a degree Celsius.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeciCelsius(pub i16);

/// Length or coordinate in millimetres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millimetres(pub i32);

/// A slave's 64-bit unique id, burnt in at manufacture. Never all zeros or all ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(u64);

impl Uid {
    /// Refuses the two values an erased memory would give.
    pub const fn new(raw: u64) -> Option<Self> {
        match raw {
            0 | u64::MAX => None,
            _ => Some(Self(raw)),
        }
    }
    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A seat on the bus, `1..=127`, given by the master. Whoever holds one need not check it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u8);

impl NodeId {
    /// The highest seat.
    pub const MAX: Self = Self(127);

    /// `None` outside `1..=127`.
    pub const fn new(raw: u8) -> Option<Self> {
        match raw {
            1..=127 => Some(Self(raw)),
            _ => None,
        }
    }
    /// The number itself, `1..=127`.
    pub const fn get(self) -> u8 {
        self.0
    }
    /// Place in an array with one element per seat, `0..=126`.
    pub const fn index(self) -> usize {
        self.0 as usize - 1
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Identity of a mobile tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagId(pub u16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_at_both_ends() {
        assert_eq!(Instant::MAX + Duration::from_secs(1), Instant::MAX);
        assert_eq!(Instant::ZERO.since(Instant::from_millis(1)), Duration::ZERO);
        assert_eq!(Instant::ZERO - Duration::from_nanos(1), Instant::ZERO);
        assert_eq!(
            Duration::from_secs(u64::MAX),
            Duration::from_nanos(u64::MAX)
        );
    }

    #[test]
    fn ids_outside_their_range_do_not_exist() {
        assert_eq!(NodeId::new(0), None);
        assert_eq!(NodeId::new(128), None);
        assert_eq!(NodeId::new(127).map(NodeId::index), Some(126));
        assert_eq!(Uid::new(0), None);
        assert_eq!(Uid::new(u64::MAX), None);
    }
}
