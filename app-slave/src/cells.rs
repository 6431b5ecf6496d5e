//! Where samples come from.

use helio_battery::Sample;
use helio_slave::SlaveConfig;
use helio_units::{DeciCelsius, Instant, Milliamps, Millivolts};
use zephyr_shell::{Errno, Peripherals};

/// Simulated cells: at rest, a little noise, and what a client makes of them.
pub struct Monitor {
    sample: Sample,
    noise: u32,
}

impl Monitor {
    /// As many as the slave has.
    pub fn new(config: &SlaveConfig) -> Result<Self, &'static str> {
        if !cfg!(CONFIG_HELIO_CELLS_SIMULATED) && config.capabilities.cells > 0 {
            return Err("no cell monitor; set CONFIG_HELIO_CELLS_SIMULATED to play one");
        }
        Ok(Self {
            sample: Sample {
                cell_count: config.capabilities.cells,
                temp_count: config.capabilities.temps,
                ..Sample::EMPTY
            },
            noise: config.uid.get() as u32 | 1,
        })
    }

    /// Measures.
    pub fn sample(&mut self, _now: Instant) -> Sample {
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
        for (n, temp) in (0..s.temp_count).zip(&mut s.temps) {
            *temp = Some(DeciCelsius(250 + i16::from(n) + (next() % 3) as i16));
        }
        s.current = Some(Milliamps((next() % 21) as i32 - 10));
        *s
    }

    /// Bleeds these cells and no others.
    pub fn balance(&mut self, parts: &mut Peripherals, mask: u32) -> Result<(), Errno> {
        match cfg!(CONFIG_HELIO_CELLS_SIMULATED) {
            true => Ok(()),
            false => parts.balance.set(mask),
        }
    }
}
