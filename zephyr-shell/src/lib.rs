//! Safe Rust over Zephyr's drivers, for the shells of master and slave.
//!
//! The C half in `c/` talks to the drivers; this half makes its functions safe to call and gives
//! them the traits of `embedded-hal`, `embedded-can` and `embedded-io` where one fits. It decides
//! nothing: what to send and what to switch is for the cores.
//!
//! ```text
//! app --> Rs485, Can, Node, Store, ... --> raw (extern "C") --> c/*.c --> Zephyr's drivers
//!         handed out once by `take`        integers only
//! ```
//!
//! Everything that owns hardware is handed out once ([`Peripherals::take`]), so `&mut self` is
//! the proof that nobody else uses it. All of it is for the one thread that took it.
#![no_std]

mod adc;
mod bus;
mod can;
mod clock;
mod errno;
mod i2c;
mod management;
mod node;
mod northbound;
mod raw;
mod rs485;
mod store;
mod udp;

pub use adc::Adc;
pub use bus::{Buses, WATCHDOG, schedule};
pub use can::{Can, CanState, Frame, Health};
pub use clock::{now, reboot, session, wait_until};
pub use errno::Errno;
pub use i2c::I2c;
pub use management::Management;
pub use node::{Balance, Gate, Luminaires, Watchdog, simulated_over_voltage, uid};
pub use northbound::Northbound;
pub use rs485::{Heard, Rs485};
pub use store::{NAME_BYTES, Store};
pub use udp::{Client as UdpClient, Udp};

use core::sync::atomic::{AtomicBool, Ordering};

/// Buses that the devicetree's `heliograph,node` names. Each is known by its number, counted from 0.
pub const BUSES: usize = match usize::from_str_radix(env!("HELIO_BUSES"), 10) {
    Ok(count) => count,
    Err(_) => panic!("build.rs gives a number"),
};

/// Everything that the devicetree's `heliograph,node` is connected to, not yet started.
pub struct Peripherals {
    /// Contactor or gate transistor.
    pub gate: Gate,
    /// Bleed resistors.
    pub balance: Balance,
    /// Luminaires.
    pub luminaires: Luminaires,
    /// Watchdog.
    pub watchdog: Watchdog,
    /// The UART of each bus; with `CONFIG_HELIO_BUS_RS485` only.
    pub rs485: [Rs485; BUSES],
    /// The CAN controller of each bus; with `CONFIG_HELIO_BUS_CAN` or `_CAN_FD` only.
    pub can: [Can; BUSES],
    /// The I2C bus, for the driver of the cell monitor; with `CONFIG_HELIO_CELLS_BQ76952` only.
    pub i2c: Option<I2c>,
    /// The ADC channel of the current sensor; with `CONFIG_HELIO_ADC` only.
    pub adc: Adc,
    /// The UART of clients; with `CONFIG_HELIO_NORTHBOUND` only.
    pub northbound: Northbound,
    /// The socket of clients; with `CONFIG_HELIO_NORTHBOUND_UDP` only.
    pub udp: Udp,
    /// Images, settings and reset of this device; with `CONFIG_HELIO_MANAGEMENT` only.
    pub management: Management,
    /// What outlives a reset; with `CONFIG_HELIO_STORE` only.
    pub store: Store,
}

impl Peripherals {
    /// Puts every output at rest; `None` when they have been handed out before.
    pub fn take() -> Option<Result<Self, Errno>> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        // Load and store: Cortex-M0 has no swap, and there is one thread that starts.
        if TAKEN.load(Ordering::Relaxed) {
            return None;
        }
        TAKEN.store(true, Ordering::Relaxed);
        Some(node::init().map(|()| Self {
            gate: Gate::new(),
            balance: Balance::new(),
            luminaires: Luminaires::new(),
            watchdog: Watchdog::new(),
            rs485: core::array::from_fn(Rs485::new),
            can: core::array::from_fn(Can::new),
            i2c: Some(I2c::new()),
            adc: Adc::new(),
            northbound: Northbound::new(),
            udp: Udp::new(),
            management: Management::new(),
            store: Store::new(),
        }))
    }
}
