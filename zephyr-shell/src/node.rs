//! Gate, balancing, luminaires, watchdog and identity.

use crate::{Errno, raw};
use core::marker::PhantomData;
use helio_units::{Duration, Uid};

/// Not to be sent to another thread: the C half keeps no locks for it.
type OneThread = PhantomData<*mut ()>;

pub(crate) fn init() -> Result<(), Errno> {
    // SAFETY: no arguments; configures the outputs that the devicetree names, from one thread.
    Errno::check(unsafe { raw::helio_node_init() }).map(|_| ())
}

/// Unique id of this device; `None` where nothing knows one.
pub fn uid() -> Option<Uid> {
    // SAFETY: no arguments; reads the id registers, the command line or a constant.
    Uid::new(unsafe { raw::helio_uid() })
}

/// Whether someone plays over-voltage to simulated cells; hangs when asked to. Needs
/// `CONFIG_HELIO_CELLS_SIMULATED`, or the image does not link.
pub fn simulated_over_voltage() -> bool {
    // SAFETY: no arguments; reads two words of memory.
    unsafe { raw::helio_sim_over_voltage() != 0 }
}

macro_rules! output {
    ($(#[$doc:meta])* $name:ident, $set:ident, $arg:ident: $type:ty, $call:ident) => {
        $(#[$doc])*
        pub struct $name(OneThread);

        impl $name {
            pub(crate) const fn new() -> Self {
                Self(PhantomData)
            }

            /// Switches. An error where nothing is connected that could be switched on.
            pub fn $set(&mut self, $arg: $type) -> Result<(), Errno> {
                // SAFETY: one integer. The type is handed out once, so `&mut self` makes us the
                // only user of these outputs.
                Errno::check(unsafe { raw::$call($arg.into()) }).map(|_| ())
            }
        }
    };
}

output!(
    /// Contactor or gate transistor of the group; off after [`crate::Peripherals::take`].
    Gate, set, on: bool, helio_gate_set
);
output!(
    /// Bleed resistors, bit 0 is cell 0.
    Balance, set, mask: u32, helio_balance_set
);
output!(
    /// Luminaires, bit 0 is anchor 0.
    Luminaires, set, mask: u16, helio_luminaires_set
);

/// Hardware watchdog.
pub struct Watchdog {
    running: bool,
    _thread: OneThread,
}

impl Watchdog {
    pub(crate) const fn new() -> Self {
        Self {
            running: false,
            _thread: PhantomData,
        }
    }

    /// From now on a silence of [`Self::feed`] that is longer than `limit` resets the device.
    pub fn start(&mut self, limit: Duration) -> Result<(), Errno> {
        let ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        // SAFETY: one integer; called once per watchdog, as `&mut self` of a value handed out once.
        Errno::check(unsafe { raw::helio_watchdog_start(ms) })?;
        self.running = true;
        Ok(())
    }

    /// The main loop is alive.
    pub fn feed(&mut self) {
        if self.running {
            // SAFETY: no arguments; the channel was installed by `start`.
            let _ = unsafe { raw::helio_watchdog_feed() };
        }
    }
}
