//! What Zephyr's drivers answer when they refuse.

use core::fmt;

/// A negative errno value of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// No such device, or it has not started.
    pub const NO_DEVICE: Self = Self(-19);
    /// A value that the driver does not take.
    pub const INVALID: Self = Self(-22);
    /// Still at work with what came before.
    pub const BUSY: Self = Self(-16);

    /// A driver's result: 0 and above is good.
    pub(crate) fn check(rc: i32) -> Result<u32, Self> {
        u32::try_from(rc).map_err(|_| Self(rc))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            -5 => "input or output failed",
            -11 => "nothing there yet",
            -12 => "no memory",
            -16 => "busy",
            -19 => "no such device, or it has not started",
            -22 => "invalid value",
            -61 => "no data",
            -95 | -134 => "not supported",
            -90 | -122 => "too long",
            -100 => "network is down",
            -110 | -116 => "timed out",
            _ => return write!(f, "error {}", self.0),
        };
        f.write_str(name)
    }
}

impl core::error::Error for Errno {}

impl embedded_io::Error for Errno {
    fn kind(&self) -> embedded_io::ErrorKind {
        match self.0 {
            -19 => embedded_io::ErrorKind::NotFound,
            -22 => embedded_io::ErrorKind::InvalidInput,
            -110 | -116 => embedded_io::ErrorKind::TimedOut,
            _ => embedded_io::ErrorKind::Other,
        }
    }
}
