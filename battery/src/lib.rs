//! Everything Heliograph knows about a battery cell: how it behaves ([`cell`]), what state it is in ([`soc`]),
//! when it must be disconnected ([`protection`]) and which cells to bleed ([`balance`]).
//!
//! Nothing here owns a clock, a pin or memory: slaves, masters and the simulator call the same code with the time in hand.
//! Voltages are mV, currents mA with **discharge positive**, temperatures °C, resistances Ω (which is mV per mA).
//! Formulas and their sources: `docs/battery.md`.
#![no_std]
#[cfg(test)]
extern crate self as helio_battery;
#[cfg(test)]
extern crate std;

pub mod balance;
pub mod cell;
pub mod defaults;
pub mod group;
pub mod health;
pub mod kalman;
mod math;
pub mod power;
pub mod protection;
pub mod soc;

pub use balance::{BalanceConfig, ChargeBalance};
pub use cell::{CellData, CellError, CellExtra, CellModel, CellParams};
pub use group::{GroupFilter, Moment};
pub use health::{Estimate, HealthFilter, Learnt, Modes};
pub use soc::{CellState, Reading, SocFilter, SocInit};

use helio_units::{DeciCelsius, Milliamps, Millivolts};

/// Most cells in series in one group.
pub const MAX_CELLS: usize = 18;
/// Most temperature sensors of one group.
pub const MAX_TEMPS: usize = 8;

/// One measurement of a group of cells, all values of one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Cell voltages from the negative end; `None` is an invalid measurement. Only the first `cell_count` count.
    pub cells: [Option<Millivolts>; MAX_CELLS],
    /// Cells in series, at most [`MAX_CELLS`].
    pub cell_count: u8,
    /// Temperatures; `None` is an invalid measurement. Only the first `temp_count` count.
    pub temps: [Option<DeciCelsius>; MAX_TEMPS],
    /// Sensors, at most [`MAX_TEMPS`].
    pub temp_count: u8,
    /// Current through the group, discharge positive.
    pub current: Option<Milliamps>,
}

impl Sample {
    /// A sample with nothing measured yet.
    pub const EMPTY: Self = Self {
        cells: [None; MAX_CELLS],
        cell_count: 0,
        temps: [None; MAX_TEMPS],
        temp_count: 0,
        current: None,
    };

    /// The cells that exist.
    pub fn cells(&self) -> &[Option<Millivolts>] {
        self.cells
            .get(..usize::from(self.cell_count))
            .unwrap_or(&self.cells)
    }

    /// The sensors that exist.
    pub fn temps(&self) -> &[Option<DeciCelsius>] {
        self.temps
            .get(..usize::from(self.temp_count))
            .unwrap_or(&self.temps)
    }
}
