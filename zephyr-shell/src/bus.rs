//! Between a core and the buses that the devicetree names: what master and slave do alike.
//!
//! ```text
//! driver --> Buses::receive --> Station::handle_*    Station::poll_* --> Buses::transmit --> driver
//! ```
//!
//! Kind and timing are Kconfig's, and those of all buses: [`schedule`] is equal in every image that
//! shares a configuration.

use crate::Peripherals;
use helio_bus::{BusKind, Schedule, Station};
use helio_units::{Duration, Instant};
use zephyr::kconfig::*;

/// How long the main loop may be silent.
pub const WATCHDOG: Duration = Duration::from_millis(CONFIG_HELIO_WATCHDOG_MS as u64);

/// Timing of every bus; equal at the master and all slaves.
pub fn schedule() -> Schedule {
    let seats = CONFIG_HELIO_BUS_SEATS as u8;
    let guard = Duration::from_micros(CONFIG_HELIO_BUS_GUARD_US as u64);
    let usual = Schedule::for_bus(KIND).with_guard(seats, guard);
    let usual = Schedule {
        snapshots: cfg!(CONFIG_HELIO_BUS_SNAPSHOTS),
        ..usual
    };
    match Duration::from_micros(CONFIG_HELIO_BUS_CYCLE_US as u64) {
        // On RS485 guard and seats make the cycle.
        cycle if cycle > Duration::ZERO && cfg!(not(CONFIG_HELIO_BUS_RS485)) => {
            usual.with_cycle(cycle)
        }
        _ => usual,
    }
}

/// Bit rate of the bus, of CAN FD that of the arbitration.
const BITRATE: u32 = CONFIG_HELIO_BUS_BITRATE as u32;

#[cfg(CONFIG_HELIO_BUS_RS485)]
const KIND: BusKind = match CONFIG_HELIO_BUS_BITRATE {
    1_000_000 => BusKind::Rs485At1M,
    4_000_000 => BusKind::Rs485At4M,
    115_200 => BusKind::Rs485At115k,
    _ => panic!("CONFIG_HELIO_BUS_BITRATE of RS485 is 115200, 1000000 or 4000000"),
};
#[cfg(CONFIG_HELIO_BUS_CAN)]
const KIND: BusKind = match CONFIG_HELIO_BUS_BITRATE {
    500_000 => BusKind::Can500k,
    1_000_000 => BusKind::Can1M,
    _ => panic!("CONFIG_HELIO_BUS_BITRATE of CAN is 500000 or 1000000"),
};
#[cfg(CONFIG_HELIO_BUS_CAN_FD)]
const KIND: BusKind = match CONFIG_HELIO_BUS_BITRATE {
    1_000_000 => BusKind::CanFd,
    _ => panic!("CONFIG_HELIO_BUS_BITRATE of CAN FD is 1000000"),
};

/// The running buses.
pub struct Buses {
    #[cfg(CONFIG_HELIO_BUS_RS485)]
    bytes: [u8; 256],
}

#[cfg(CONFIG_HELIO_BUS_RS485)]
impl Buses {
    /// Starts the UARTs.
    pub fn start(parts: &mut Peripherals) -> Result<Self, &'static str> {
        for line in &mut parts.rs485 {
            let started = line.start(BITRATE);
            started.map_err(|_| "the UART of a bus does not start")?;
        }
        Ok(Self { bytes: [0; 256] })
    }

    /// Everything that was heard on one of them goes to the core.
    pub fn receive(&mut self, bus: usize, parts: &mut Peripherals, core: &mut impl Station) {
        let Some(line) = parts.rs485.get_mut(bus) else {
            return;
        };
        while let Some(heard) = line.receive(&mut self.bytes) {
            match heard {
                crate::Heard::Bytes(count, end) => {
                    core.handle_serial(end, self.bytes.get(..count).unwrap_or(&[]));
                }
                crate::Heard::Break(end) => core.handle_break(end),
            }
        }
    }

    /// What the core has to say goes to the bus.
    // What is to be sent shall not lie under everything else on the stack.
    #[inline(never)]
    pub fn transmit(&mut self, bus: usize, parts: &mut Peripherals, core: &mut impl Station) {
        let Some(line) = parts.rs485.get_mut(bus) else {
            return;
        };
        while let Some(out) = core.poll_serial(crate::now()) {
            // The line is busy only when the core is late, and then the slot is lost anyhow.
            let _ = match &out.what {
                helio_bus::SerialSignal::Bytes { buffer, len } => {
                    let bytes = buffer.get(..usize::from(*len)).unwrap_or(&[]);
                    line.send(bytes)
                }
                helio_bus::SerialSignal::Break(length) => line.send_break(*length),
            };
        }
    }

    /// Sleeps until then or until something is heard. A slot is missed by a tick.
    pub fn wait_until(&self, deadline: Instant) {
        crate::wait_until(deadline, true);
    }
}

#[cfg(not(CONFIG_HELIO_BUS_RS485))]
impl Buses {
    /// Starts the controllers, which pass everything: the core picks.
    pub fn start(parts: &mut Peripherals) -> Result<Self, &'static str> {
        let fd = cfg!(CONFIG_HELIO_BUS_CAN_FD);
        for can in &mut parts.can {
            let started = can.start(BITRATE, fd, (0, 0));
            started.map_err(|_| "a CAN controller does not start at this bit rate")?;
        }
        Ok(Self {})
    }

    /// Everything that was heard on one of them goes to the core.
    pub fn receive(&mut self, bus: usize, parts: &mut Peripherals, core: &mut impl Station) {
        let Some(can) = parts.can.get_mut(bus) else {
            return;
        };
        // A controller that cannot be brought back now is tried again in the next turn.
        let _ = can.tend();
        while let Some(mailbox) = can.poll_sent() {
            core.handle_sent(crate::now(), mailbox);
        }
        while let Some((end, frame)) = can.receive_at() {
            if core.accepts(frame.id) {
                core.handle_can(end, &frame);
            }
        }
    }

    /// What the core has to say goes to the mailboxes that are free.
    // What is to be sent shall not lie under everything else on the stack.
    #[inline(never)]
    pub fn transmit(&mut self, bus: usize, parts: &mut Peripherals, core: &mut impl Station) {
        let Some(can) = parts.can.get_mut(bus) else {
            return;
        };
        for mailbox in can.free() {
            if let Some(out) = core.poll_can(crate::now(), mailbox) {
                // What does not get in was never confirmed, so the core gives it again.
                let _ = can.send(mailbox, &out.frame);
            }
        }
    }

    /// Sleeps until then or until something is heard.
    pub fn wait_until(&self, deadline: Instant) {
        crate::wait_until(deadline, false);
    }
}
