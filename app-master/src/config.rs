//! Kconfig as the core wants it.

use helio_battery::CellParams;
use helio_battery::defaults::{LFP_2500MAH, NMC_5000MAH};
use helio_bus::Schedule;
use helio_master::pack::Topology;
use helio_master::{MAX_BUSES, MasterConfig};
use helio_units::Duration;
use zephyr::kconfig::*;
use zephyr_shell::BUSES;

/// Seats that the core has room for, on all buses together.
pub const SEATS: usize = CONFIG_HELIO_MASTER_SEATS as usize;
/// Records kept for clients.
pub const RECORDS: usize = if SEATS > 12 { 46 } else { 32 };

#[cfg(CONFIG_HELIO_STORE)]
const _: () = assert!(
    helio_master::keep::size(SEATS) <= CONFIG_HELIO_STORE_SIZE as usize,
    "CONFIG_HELIO_STORE_SIZE is less than 8 bytes and 58 for every one of CONFIG_HELIO_MASTER_SEATS"
);

const _: () = assert!(
    BUSES <= MAX_BUSES,
    "`bus` of the heliograph,node names more than four buses"
);

/// Both ends of an RS485 bus must know of as many seats, so that none can be given less.
#[cfg(CONFIG_HELIO_BUS_RS485)]
const _: () = assert!(
    BUSES == 1 || BUSES * CONFIG_HELIO_BUS_SEATS as usize <= SEATS,
    "CONFIG_HELIO_MASTER_SEATS is less than CONFIG_HELIO_BUS_SEATS for each RS485 bus: give each bus fewer, at both ends"
);

/// In flash.
static CELL: CellParams = match cfg!(CONFIG_HELIO_CHEMISTRY_LFP) {
    true => LFP_2500MAH,
    false => NMC_5000MAH,
};

/// Timing of one of several equal buses. On CAN a slave does not care how many seats there are, so that each bus may
/// have its share of the memory.
pub fn share(schedule: Schedule) -> Schedule {
    let seats = match cfg!(CONFIG_HELIO_BUS_RS485) {
        true => schedule.seats,
        false => schedule.seats.min((SEATS / BUSES) as u8),
    };
    Schedule { seats, ..schedule }
}

/// What this master is. Clients may have given it another name.
pub fn master(schedule: Schedule, name: Option<&str>) -> MasterConfig {
    MasterConfig {
        // Too long a name is no reason not to start.
        name: name
            .unwrap_or(CONFIG_HELIO_MASTER_NAME)
            .try_into()
            .unwrap_or_default(),
        buses: [schedule; BUSES].into_iter().collect(),
        topology: Topology {
            expected: CONFIG_HELIO_EXPECTED as u8,
            strings: CONFIG_HELIO_STRINGS as u8,
            match_mv: 5_000,
            settle: Duration::from_millis(500),
        },
        cell: &CELL,
        balance: Default::default(),
        tag_height_mm: None,
        range_sigma_mm: 50,
        slave_period: Duration::from_secs(1),
        pack_period: Duration::from_millis(500),
    }
}
