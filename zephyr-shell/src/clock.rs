//! Uptime, and sleeping until something is due or has happened.

use crate::raw;
use helio_units::Instant;

/// Time since boot.
pub fn now() -> Instant {
    // SAFETY: no arguments; C guards its state against interrupts.
    Instant::from_nanos(unsafe { raw::helio_now_ns() })
}

/// Sleeps until `deadline`, or until a driver has news. With `spin` the last tick or two are
/// spent awake, to be on time to the microsecond.
///
/// For the main loop alone: there is one sleeper that drivers wake.
pub fn wait_until(deadline: Instant, spin: bool) {
    // SAFETY: integers only; called from a thread, which may sleep.
    unsafe { raw::helio_wait_until(deadline.as_nanos(), spin.into()) }
}

/// Starts anew.
pub fn reboot() {
    // SAFETY: no arguments. Outputs fall back to their state at reset, which is off.
    unsafe { raw::helio_reboot() }
}

/// A number of this start, to be asked for once. It follows that of the start before unless power was off, which leaves anything.
pub fn session() -> u8 {
    // SAFETY: no arguments; called once, from the thread that starts the application.
    unsafe { raw::helio_session() as u8 }
}
