//! Kconfig as the core wants it.

use helio_battery::protection::Limits;
use helio_bus::{BusKind, Capabilities, Schedule};
use helio_slave::{OnMasterLoss, SlaveConfig};
use helio_units::Duration;
use zephyr::kconfig::*;

/// How long the main loop may be silent.
pub const WATCHDOG: Duration = Duration::from_millis(CONFIG_HELIO_WATCHDOG_MS as u64);

/// Bit rate of the bus, of CAN FD that of the arbitration.
pub const BITRATE: u32 = CONFIG_HELIO_BUS_BITRATE as u32;

/// Timing of the bus; the master's must be the same.
pub fn schedule() -> Schedule {
    let usual = Schedule::for_bus(KIND);
    let seats = CONFIG_HELIO_BUS_SEATS as u8;
    let guard = Duration::from_micros(CONFIG_HELIO_BUS_GUARD_US as u64);
    match Duration::from_micros(CONFIG_HELIO_BUS_CYCLE_US as u64) {
        Duration::ZERO => usual.with_guard(seats, guard),
        _ if cfg!(CONFIG_HELIO_BUS_RS485) => usual.with_guard(seats, guard),
        cycle => usual.with_guard(seats, guard).with_cycle(cycle),
    }
}

#[cfg(CONFIG_HELIO_BUS_RS485)]
const KIND: BusKind = match CONFIG_HELIO_BUS_BITRATE {
    1_000_000 => BusKind::Rs485At1M,
    4_000_000 => BusKind::Rs485At4M,
    _ => panic!("CONFIG_HELIO_BUS_BITRATE of RS485 is 1000000 or 4000000"),
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

/// What this slave is.
pub fn slave() -> Result<SlaveConfig, &'static str> {
    let uid = zephyr_shell::uid().ok_or(
        "no unique id: set CONFIG_HELIO_UID or CONFIG_HELIO_UID_ADDRESS, on native_sim --uid=...",
    )?;
    let capabilities = Capabilities {
        cells: CONFIG_HELIO_CELLS as u8,
        temps: CONFIG_HELIO_TEMPS as u8,
        anchors: CONFIG_HELIO_ANCHORS as u8,
    };
    let capacity_mah = CONFIG_HELIO_CAPACITY_MAH as i32;
    let limits = match cfg!(CONFIG_HELIO_CHEMISTRY_LFP) {
        true => Limits::lfp(capacity_mah),
        false => Limits::nmc(capacity_mah),
    };
    Ok(SlaveConfig {
        sample_period: Duration::from_millis(CONFIG_HELIO_SAMPLE_MS as u64),
        on_master_loss: match CONFIG_HELIO_MASTER_LOSS_MS {
            0 => OnMasterLoss::Keep,
            ms => OnMasterLoss::OpenAfter(Duration::from_millis(ms as u64)),
        },
        device: cfg!(CONFIG_HELIO_MANAGEMENT),
        ..SlaveConfig::new(uid, capabilities, limits)
    })
}
