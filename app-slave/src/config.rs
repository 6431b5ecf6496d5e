//! Kconfig as the core wants it.

use helio_battery::protection::Limits;
use helio_bus::Capabilities;
use helio_slave::{OnMasterLoss, SlaveConfig};
use helio_units::Duration;
use zephyr::kconfig::*;

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
