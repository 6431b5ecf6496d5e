//! Kconfig as the core wants it.

use helio_battery::protection::{Kind, Limits, Severity};
use helio_bus::Capabilities;
use helio_slave::{OnMasterLoss, SlaveConfig};
use helio_units::{Duration, Uid};
use zephyr::kconfig::*;

/// A constant, since reckoning it takes dozens of copies on the stack.
const LIMITS: Limits = match cfg!(CONFIG_HELIO_CHEMISTRY_LFP) {
    true => Limits::lfp(CONFIG_HELIO_CAPACITY_MAH as i32),
    false => Limits::nmc(CONFIG_HELIO_CAPACITY_MAH as i32),
};

/// What this slave is.
pub fn slave(uid: Uid) -> SlaveConfig {
    let capabilities = Capabilities {
        cells: CONFIG_HELIO_CELLS as u8,
        temps: CONFIG_HELIO_TEMPS as u8,
        anchors: CONFIG_HELIO_ANCHORS as u8,
    };
    SlaveConfig {
        sample_period: Duration::from_millis(CONFIG_HELIO_SAMPLE_MS as u64),
        on_master_loss: match CONFIG_HELIO_MASTER_LOSS_MS {
            0 => OnMasterLoss::Keep,
            ms => OnMasterLoss::OpenAfter(Duration::from_millis(ms as u64)),
        },
        device: cfg!(CONFIG_HELIO_MANAGEMENT),
        ..SlaveConfig::new(uid, capabilities, LIMITS)
    }
}

/// In place, since each copy of limits takes 3 kB of stack.
pub fn limit_silence(limits: &mut Limits) {
    for (severity, parts) in [
        (Severity::Warn, 4),
        (Severity::Derate, 2),
        (Severity::Trip, 1),
    ] {
        if let Some(rule) = limits.rule_mut(Kind::StaleData, severity) {
            rule.threshold = CONFIG_HELIO_STALE_MS as i32 / parts;
        }
    }
}
