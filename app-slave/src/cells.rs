//! Where samples come from: a BQ76952 that the devicetree names, or simulated cells.

use helio_battery::Sample;
use helio_slave::SlaveConfig;
use zephyr_shell::{Errno, Peripherals};

#[cfg(CONFIG_HELIO_CELLS_BQ76952)]
pub use chip::Monitor;
#[cfg(not(any(CONFIG_HELIO_CELLS_BQ76952, CONFIG_HELIO_CELLS_SIMULATED)))]
pub use none::Monitor;
#[cfg(CONFIG_HELIO_CELLS_SIMULATED)]
pub use simulated::Monitor;

/// What the slave has; everything unknown.
fn unknown(config: &SlaveConfig) -> Sample {
    Sample {
        cell_count: config.capabilities.cells,
        temp_count: config.capabilities.temps,
        ..Sample::EMPTY
    }
}

#[cfg(CONFIG_HELIO_CELLS_BQ76952)]
mod chip {
    use super::*;
    use helio_bq76952::Bq76952;
    use zephyr::printkln;
    use zephyr_shell::I2c;

    /// The chip, and what to say when it does not answer.
    pub struct Monitor {
        chip: Bq76952<I2c>,
        unknown: Sample,
    }

    impl Monitor {
        /// A chip that does not answer now may do so later; until then nothing is known.
        pub fn new(config: &SlaveConfig, parts: &mut Peripherals) -> Result<Self, &'static str> {
            let mut i2c = parts.i2c.take().ok_or("the I2C bus has been taken")?;
            let address = i2c.start();
            let address = address.map_err(|_| "the I2C bus of the cell monitor does not start")?;
            let mut chip = Bq76952::new(i2c, address);
            if let Err(error) = chip.check() {
                printkln!("heliograph slave: cell monitor: {:?}", error);
            }
            let unknown = unknown(config);
            Ok(Self { chip, unknown })
        }

        /// Measures. What cannot be read is missing, and protection knows what that means.
        pub fn sample(&mut self) -> Sample {
            let Sample {
                cell_count,
                temp_count,
                ..
            } = self.unknown;
            self.chip
                .sample(cell_count, temp_count)
                .unwrap_or(self.unknown)
        }

        /// Bleeds these cells and no others.
        pub fn balance(&mut self, _parts: &mut Peripherals, mask: u32) -> Result<(), Errno> {
            self.chip.balance(mask).map_err(|error| match error {
                helio_bq76952::Error::Bus(errno) => errno,
                _ => Errno::INVALID,
            })
        }
    }
}

#[cfg(CONFIG_HELIO_CELLS_SIMULATED)]
mod simulated {
    use super::*;
    use helio_units::{DeciCelsius, Milliamps, Millivolts};
    use zephyr_shell::simulated_over_voltage;

    /// At rest, a little noise, and the faults that someone plays.
    pub struct Monitor {
        sample: Sample,
        noise: u32,
    }

    impl Monitor {
        /// As many as the slave has.
        pub fn new(config: &SlaveConfig, _parts: &mut Peripherals) -> Result<Self, &'static str> {
            Ok(Self {
                sample: unknown(config),
                noise: config.uid.get() as u32 | 1,
            })
        }

        /// Measures.
        pub fn sample(&mut self) -> Sample {
            let noise = &mut self.noise;
            // Marsaglia 2003, "Xorshift RNGs", 32 bits.
            let mut next = || {
                *noise ^= *noise << 13;
                *noise ^= *noise >> 17;
                *noise ^= *noise << 5;
                *noise
            };
            let s = &mut self.sample;
            for (n, cell) in (0..s.cell_count).zip(&mut s.cells) {
                *cell = Some(Millivolts(3_650 + u16::from(n) + (next() % 4) as u16));
            }
            if simulated_over_voltage()
                && let Some(cell) = s.cells.first_mut()
            {
                *cell = Some(Millivolts(4_400));
            }
            for (n, temp) in (0..s.temp_count).zip(&mut s.temps) {
                *temp = Some(DeciCelsius(250 + i16::from(n) + (next() % 3) as i16));
            }
            s.current = Some(Milliamps((next() % 21) as i32 - 10));
            *s
        }

        /// Nothing to bleed.
        pub fn balance(&mut self, _parts: &mut Peripherals, _mask: u32) -> Result<(), Errno> {
            Ok(())
        }
    }
}

#[cfg(not(any(CONFIG_HELIO_CELLS_BQ76952, CONFIG_HELIO_CELLS_SIMULATED)))]
mod none {
    use super::*;

    const _: () = assert!(
        zephyr::kconfig::CONFIG_HELIO_CELLS == 0,
        "CONFIG_HELIO_CELLS is not 0, but nothing measures cells: give the heliograph,node a \
         `cell-monitor` that is a ti,bq76952, or set CONFIG_HELIO_CELLS_SIMULATED to play one"
    );

    /// A slave that only runs anchors.
    pub struct Monitor {
        unknown: Sample,
    }

    impl Monitor {
        /// Nothing to start.
        pub fn new(config: &SlaveConfig, _parts: &mut Peripherals) -> Result<Self, &'static str> {
            let unknown = unknown(config);
            Ok(Self { unknown })
        }

        /// Nothing to measure.
        pub fn sample(&mut self) -> Sample {
            self.unknown
        }

        /// Bleeds these cells and no others.
        pub fn balance(&mut self, parts: &mut Peripherals, mask: u32) -> Result<(), Errno> {
            parts.balance.set(mask)
        }
    }
}
