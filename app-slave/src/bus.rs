//! Between the core and the bus that Kconfig chose.

use crate::config;
use helio_slave::Slave;
use helio_units::Instant;
use zephyr_shell::{Peripherals, now};

#[cfg(CONFIG_HELIO_BUS_RS485)]
use helio_bus::SerialSignal;
#[cfg(CONFIG_HELIO_BUS_RS485)]
use zephyr_shell::Heard;

/// The running bus.
pub struct Bus {
    #[cfg(CONFIG_HELIO_BUS_RS485)]
    bytes: [u8; 256],
}

#[cfg(CONFIG_HELIO_BUS_RS485)]
impl Bus {
    /// Starts the UART.
    pub fn start(parts: &mut Peripherals) -> Result<Self, &'static str> {
        let started = parts.rs485.start(config::BITRATE);
        started.map_err(|_| "the UART of the bus does not start")?;
        Ok(Self { bytes: [0; 256] })
    }

    /// Everything that was heard goes to the core.
    pub fn receive(&mut self, parts: &mut Peripherals, slave: &mut Slave) {
        while let Some(heard) = parts.rs485.receive(&mut self.bytes) {
            match heard {
                Heard::Bytes(count, end) => {
                    slave.handle_serial(end, self.bytes.get(..count).unwrap_or(&[]));
                }
                Heard::Break(end) => slave.handle_break(end),
            }
        }
    }

    /// What the core has to say goes to the bus.
    pub fn transmit(&mut self, parts: &mut Peripherals, slave: &mut Slave) {
        while let Some(out) = slave.poll_serial(now()) {
            // The line is busy only when the core is late, and then the slot is lost anyhow.
            let _ = match &out.what {
                SerialSignal::Bytes { buffer, len } => {
                    let bytes = buffer.get(..usize::from(*len)).unwrap_or(&[]);
                    parts.rs485.send(bytes)
                }
                SerialSignal::Break(length) => parts.rs485.send_break(*length),
            };
        }
    }

    /// Sleeps until then or until something is heard. A slot is missed by a tick.
    pub fn wait_until(&self, deadline: Instant) {
        zephyr_shell::wait_until(deadline, true);
    }
}

#[cfg(not(CONFIG_HELIO_BUS_RS485))]
impl Bus {
    /// Starts the controller, which passes everything: the core picks.
    pub fn start(parts: &mut Peripherals) -> Result<Self, &'static str> {
        let fd = cfg!(CONFIG_HELIO_BUS_CAN_FD);
        let started = parts.can.start(config::BITRATE, fd, (0, 0));
        started.map_err(|_| "the CAN controller does not start at this bit rate")?;
        Ok(Self {})
    }

    /// Everything that was heard goes to the core.
    pub fn receive(&mut self, parts: &mut Peripherals, slave: &mut Slave) {
        // A controller that cannot be brought back now is tried again in the next turn.
        let _ = parts.can.tend();
        while let Some(mailbox) = parts.can.poll_sent() {
            slave.handle_sent(now(), mailbox);
        }
        while let Some((end, frame)) = parts.can.receive_at() {
            if helio_bus::slave_accepts(frame.id, slave.node()) {
                slave.handle_can(end, &frame);
            }
        }
    }

    /// What the core has to say goes to the mailboxes that are free.
    pub fn transmit(&mut self, parts: &mut Peripherals, slave: &mut Slave) {
        for mailbox in parts.can.free() {
            if let Some(out) = slave.poll_can(now(), mailbox) {
                // What does not get in was never confirmed, so the core gives it again.
                let _ = parts.can.send(mailbox, &out.frame);
            }
        }
    }

    /// Sleeps until then or until something is heard.
    pub fn wait_until(&self, deadline: Instant) {
        zephyr_shell::wait_until(deadline, false);
    }
}
