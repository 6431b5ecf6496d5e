//! Kconfig as the core wants it.

use helio_battery::defaults::{LFP_2500MAH, NMC_5000MAH};
use helio_bus::{BusKind, Schedule};
use helio_master::MasterConfig;
use helio_master::pack::Topology;
use helio_units::Duration;
use zephyr::kconfig::*;

/// How long the main loop may be silent.
pub const WATCHDOG: Duration = Duration::from_millis(CONFIG_HELIO_WATCHDOG_MS as u64);

/// Bit rate of the bus, of CAN FD that of the arbitration.
pub const BITRATE: u32 = CONFIG_HELIO_BUS_BITRATE as u32;

/// Timing of the bus; the slaves' must be the same.
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

/// Seats that the core has room for.
pub const SEATS: usize = 32;
/// Records kept for clients.
pub const RECORDS: usize = 64;

/// What this master is.
pub fn master(schedule: Schedule) -> MasterConfig {
    MasterConfig {
        // Too long a name is no reason not to start.
        name: CONFIG_HELIO_MASTER_NAME.try_into().unwrap_or_default(),
        schedule,
        topology: Topology {
            expected: CONFIG_HELIO_EXPECTED as u8,
            strings: CONFIG_HELIO_STRINGS as u8,
            match_mv: 5_000,
            settle: Duration::from_millis(500),
        },
        cell: match cfg!(CONFIG_HELIO_CHEMISTRY_LFP) {
            true => LFP_2500MAH,
            false => NMC_5000MAH,
        },
        balance: Default::default(),
        tag_height_mm: None,
        range_sigma_mm: 50,
        slave_period: Duration::from_secs(1),
        pack_period: Duration::from_millis(500),
    }
}
