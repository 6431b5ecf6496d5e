//! The ADC channel that the devicetree's node names.

use crate::{Errno, raw};
use core::marker::PhantomData;

/// One channel; needs `CONFIG_HELIO_ADC`, or the image does not link.
pub struct Adc(PhantomData<*mut ()>);

impl Adc {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }

    /// Sets the channel up.
    pub fn start(&mut self) -> Result<(), Errno> {
        // SAFETY: no arguments; the channel is this value's alone, which is handed out once.
        Errno::check(unsafe { raw::helio_adc_start() }).map(|_| ())
    }

    /// Millivolts at the pin; waits for the conversion.
    pub fn read_mv(&mut self) -> Result<i32, Errno> {
        let mut mv = 0;
        // SAFETY: C writes the integer before it returns and keeps no pointer to it.
        Errno::check(unsafe { raw::helio_adc_read_mv(&mut mv) })?;
        Ok(mv)
    }
}
