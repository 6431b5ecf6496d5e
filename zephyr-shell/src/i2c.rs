//! The I2C bus of the cell monitor, for drivers written over `embedded-hal`.

use crate::{Errno, raw};
use core::marker::PhantomData;
use embedded_hal::i2c::{ErrorType, Operation};

/// Parts of one transaction; more are refused.
const PARTS: usize = 8;

/// The bus; needs `CONFIG_HELIO_CELLS_BQ76952`, or the image does not link.
pub struct I2c(PhantomData<*mut ()>);

impl I2c {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Address at which the devicetree says that the cell monitor is.
    pub fn start(&mut self) -> Result<u8, Errno> {
        // SAFETY: no arguments; looks whether the bus is there.
        let address = Errno::check(unsafe { raw::helio_i2c_start() })?;
        u8::try_from(address).map_err(|_| Errno::INVALID)
    }
}

impl ErrorType for I2c {
    type Error = Errno;
}

impl embedded_hal::i2c::I2c for I2c {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), Errno> {
        let mut parts = [core::ptr::null_mut(); PARTS];
        let mut sizes = [0; PARTS];
        let mut reads = 0;
        let count = operations.len();
        if count > PARTS {
            return Err(Errno::INVALID);
        }
        let slots = parts.iter_mut().zip(&mut sizes).enumerate();
        for ((n, (part, size)), operation) in slots.zip(operations) {
            (*part, *size) = match operation {
                Operation::Read(to) => {
                    reads |= 1 << n;
                    (to.as_mut_ptr(), to.len())
                }
                // Never written to: its bit in `reads` is clear.
                Operation::Write(from) => (from.as_ptr().cast_mut(), from.len()),
            };
        }
        // SAFETY: each of the `count` parts points to as many bytes as its size says, borrowed for
        // the whole call; C writes only to those with a bit in `reads`, which were borrowed
        // mutably, and keeps no pointer. `&mut self` of a value handed out once: no other user.
        let rc = unsafe {
            raw::helio_i2c_transfer(address.into(), parts.as_ptr(), sizes.as_ptr(), count, reads)
        };
        Errno::check(rc).map(|_| ())
    }
}

impl embedded_hal::i2c::Error for Errno {
    fn kind(&self) -> embedded_hal::i2c::ErrorKind {
        match *self {
            // Zephyr's drivers say this of an address or a byte that nobody acknowledged.
            Errno(-5) => embedded_hal::i2c::ErrorKind::NoAcknowledge(
                embedded_hal::i2c::NoAcknowledgeSource::Unknown,
            ),
            _ => embedded_hal::i2c::ErrorKind::Other,
        }
    }
}
