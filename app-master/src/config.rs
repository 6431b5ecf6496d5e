//! Kconfig as the core wants it.

use helio_battery::CellParams;
use helio_battery::defaults::{LFP_2500MAH, NMC_5000MAH};
use helio_bus::Schedule;
use helio_master::MasterConfig;
use helio_master::pack::Topology;
use helio_units::Duration;
use zephyr::kconfig::*;

/// Seats that the core has room for.
pub const SEATS: usize = CONFIG_HELIO_MASTER_SEATS as usize;
/// Records kept for clients.
pub const RECORDS: usize = if SEATS > 12 { 46 } else { 32 };

#[cfg(CONFIG_HELIO_STORE)]
const _: () = assert!(
    helio_master::keep::size(SEATS) <= CONFIG_HELIO_STORE_SIZE as usize,
    "CONFIG_HELIO_STORE_SIZE is less than 8 bytes and 58 for every one of CONFIG_HELIO_MASTER_SEATS"
);

/// In flash.
static CELL: CellParams = match cfg!(CONFIG_HELIO_CHEMISTRY_LFP) {
    true => LFP_2500MAH,
    false => NMC_5000MAH,
};

/// What this master is. Clients may have given it another name.
pub fn master(schedule: Schedule, name: Option<&str>) -> MasterConfig {
    MasterConfig {
        // Too long a name is no reason not to start.
        name: name
            .unwrap_or(CONFIG_HELIO_MASTER_NAME)
            .try_into()
            .unwrap_or_default(),
        buses: [schedule].into_iter().collect(),
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
