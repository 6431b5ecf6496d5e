//! Driver of TI's BQ76952 battery monitor (16 cells; BQ76942 and BQ769142 are the same with fewer)
//! on I2C: reads a [`Sample`], bleeds cells. It decides nothing: protection is the slave core's, and
//! the chip's own may stay on behind it.
//!
//! ```text
//! sample:  0x14.. 16 voltages | 0x70.. TS1 TS2 TS3 | 0x3a CC2 current      three reads, 40 bytes
//! balance: subcommand 0x0083 CB_ACTIVE_CELLS, 16 bits, checksum and length
//! ```
//!
//! Numbers are from the technical reference manual (TI, SLUUBY2), sections 4.1 (direct commands),
//! 4.3 (subcommands) and 12 (command tables). Used are its defaults: no CRC, address 0x08,
//! user amperes of 1 mA, thermistors of 10 kΩ on TS1 and TS3.
#![no_std]

use embedded_hal::i2c::I2c;
use helio_battery::{MAX_TEMPS, Sample};
use helio_units::{DeciCelsius, Milliamps, Millivolts};

/// Address at delivery.
pub const ADDRESS: u8 = 0x08;
/// Cells of a BQ76952.
pub const CELLS: usize = 16;
/// External thermistors that are read: TS1, TS2, TS3.
pub const THERMISTORS: usize = 3;

const CELL1_VOLTAGE: u8 = 0x14;
const CC2_CURRENT: u8 = 0x3a;
const SUBCOMMAND: u8 = 0x3e;
const TRANSFER_BUFFER: u8 = 0x40;
const CHECKSUM: u8 = 0x60;
const TS1_TEMPERATURE: u8 = 0x70;
const CB_ACTIVE_CELLS: u16 = 0x0083;
const DEVICE_NUMBER: u16 = 0x0001;

/// Thermistor reading that means "not measured": 0 K is not a temperature of a cell.
const NO_TEMPERATURE: i16 = 0;
/// 0 °C in tenths of kelvin.
const ZERO_CELSIUS_DK: i16 = 2_732;

/// Why a call did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error<E> {
    /// The bus; try again with the next sample.
    Bus(E),
    /// Something answers at this address, but it is no BQ769x2.
    NotThisChip {
        /// What its device number reads.
        device: u16,
    },
    /// The chip's answer does not fit its own checksum.
    Checksum,
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Self::Bus(error)
    }
}

/// One chip.
pub struct Bq76952<I> {
    i2c: I,
    address: u8,
}

impl<I: I2c> Bq76952<I> {
    /// A chip at this address ([`ADDRESS`] at delivery); nothing is sent yet.
    pub fn new(i2c: I, address: u8) -> Self {
        Self { i2c, address }
    }

    /// Whether the chip is there and one of the family.
    pub fn check(&mut self) -> Result<(), Error<I::Error>> {
        let mut number = [0; 2];
        self.read_subcommand(DEVICE_NUMBER, &mut number)?;
        match u16::from_le_bytes(number) {
            0x7694 | 0x7695 => Ok(()),
            0x9142 => Ok(()),
            device => Err(Error::NotThisChip { device }),
        }
    }

    /// Reads the first `cells` cells (at most 16), the first `temps` thermistors (at most 3) and
    /// the current, discharge positive. What cannot be a measurement is `None`.
    pub fn sample(&mut self, cells: u8, temps: u8) -> Result<Sample, Error<I::Error>> {
        let mut sample = Sample {
            cell_count: cells.min(CELLS as u8),
            temp_count: temps.min(THERMISTORS as u8).min(MAX_TEMPS as u8),
            ..Sample::EMPTY
        };
        let mut raw = [0; CELLS * 2];
        let wanted = raw.get_mut(..usize::from(sample.cell_count) * 2);
        if let Some(wanted) = wanted.filter(|w| !w.is_empty()) {
            self.read(CELL1_VOLTAGE, wanted)?;
        }
        let count = usize::from(sample.cell_count);
        for (cell, mv) in sample.cells.iter_mut().zip(words(&raw)).take(count) {
            // A negative voltage is a broken wire.
            *cell = u16::try_from(mv).ok().map(Millivolts);
        }
        let mut raw = [0; THERMISTORS * 2];
        let wanted = raw.get_mut(..usize::from(sample.temp_count) * 2);
        if let Some(wanted) = wanted.filter(|w| !w.is_empty()) {
            self.read(TS1_TEMPERATURE, wanted)?;
        }
        let count = usize::from(sample.temp_count);
        for (temp, dk) in sample.temps.iter_mut().zip(words(&raw)).take(count) {
            let known = dk != NO_TEMPERATURE;
            *temp = known.then(|| DeciCelsius(dk.saturating_sub(ZERO_CELSIUS_DK)));
        }
        let mut raw = [0; 2];
        self.read(CC2_CURRENT, &mut raw)?;
        // The chip counts what flows into the pack as positive.
        sample.current = Some(Milliamps(-i32::from(i16::from_le_bytes(raw))));
        Ok(sample)
    }

    /// Bleeds these cells and no others, bit 0 is cell 0. The chip refuses neighbours on its own
    /// and stops by itself after 60 s (`Cell Balance Interval`), so repeat it while it shall last.
    pub fn balance(&mut self, mask: u32) -> Result<(), Error<I::Error>> {
        let data = (mask as u16).to_le_bytes();
        let [low, high] = CB_ACTIVE_CELLS.to_le_bytes();
        let [a, b] = data;
        self.i2c
            .write(self.address, &[SUBCOMMAND, low, high, a, b])?;
        let sum = [low, high, a, b].into_iter().fold(0u8, u8::wrapping_add);
        // The length counts the subcommand, checksum and itself.
        Ok(self.i2c.write(self.address, &[CHECKSUM, !sum, 6])?)
    }

    /// The bus back.
    pub fn release(self) -> I {
        self.i2c
    }

    fn read(&mut self, command: u8, to: &mut [u8]) -> Result<(), Error<I::Error>> {
        Ok(self.i2c.write_read(self.address, &[command], to)?)
    }

    fn read_subcommand(&mut self, command: u16, to: &mut [u8; 2]) -> Result<(), Error<I::Error>> {
        let [low, high] = command.to_le_bytes();
        self.i2c.write(self.address, &[SUBCOMMAND, low, high])?;
        self.read(TRANSFER_BUFFER, to)?;
        let mut check = [0; 2];
        self.read(CHECKSUM, &mut check)?;
        let [a, b] = *to;
        let sum = [low, high, a, b].into_iter().fold(0u8, u8::wrapping_add);
        match check {
            [found, _] if found == !sum => Ok(()),
            _ => Err(Error::Checksum),
        }
    }
}

/// Little-endian words of 16 bits.
fn words(raw: &[u8]) -> impl Iterator<Item = i16> + '_ {
    raw.chunks_exact(2)
        .map(|w| w.try_into().map_or(0, i16::from_le_bytes))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use embedded_hal::i2c::{ErrorKind, ErrorType, Operation};
    use std::vec::Vec;

    /// The chip's side of the bus, as the manual describes it.
    struct Chip {
        registers: [u8; 256],
        at: u8,
        bled: u16,
        deaf: bool,
    }

    impl Chip {
        fn new() -> Self {
            let mut chip = Self {
                registers: [0; 256],
                at: 0,
                bled: 0,
                deaf: false,
            };
            for n in 0..16u16 {
                chip.put(CELL1_VOLTAGE + 2 * n as u8, 3_600 + n as i16);
            }
            chip.put(TS1_TEMPERATURE, 2_982);
            chip.put(TS1_TEMPERATURE + 2, 0);
            chip.put(TS1_TEMPERATURE + 4, 2_632);
            chip.put(CC2_CURRENT, -1_500);
            chip
        }

        fn put(&mut self, at: u8, value: i16) {
            let at = usize::from(at);
            self.registers[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }

        fn write(&mut self, bytes: &[u8]) {
            self.at = bytes[0];
            for byte in &bytes[1..] {
                self.registers[usize::from(self.at)] = *byte;
                self.at = self.at.wrapping_add(1);
            }
            let command = u16::from_le_bytes([self.registers[0x3e], self.registers[0x3f]]);
            let data = [self.registers[0x40], self.registers[0x41]];
            let sum = |data: [u8; 2]| {
                let [l, h] = command.to_le_bytes();
                !(l.wrapping_add(h)
                    .wrapping_add(data[0])
                    .wrapping_add(data[1]))
            };
            match (bytes[0], command) {
                (SUBCOMMAND, DEVICE_NUMBER) => {
                    self.put(TRANSFER_BUFFER, 0x7695);
                    self.registers[0x60] = sum([0x95, 0x76]);
                    self.registers[0x61] = 6;
                }
                (CHECKSUM, CB_ACTIVE_CELLS) if self.registers[0x60] == sum(data) => {
                    assert_eq!(self.registers[0x61], 6, "length");
                    self.bled = u16::from_le_bytes(data);
                }
                _ => {}
            }
        }
    }

    impl ErrorType for Chip {
        type Error = ErrorKind;
    }

    impl I2c for Chip {
        fn transaction(&mut self, to: u8, ops: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
            if to != ADDRESS || self.deaf {
                return Err(ErrorKind::Other);
            }
            for op in ops {
                match op {
                    Operation::Write(bytes) => self.write(bytes),
                    Operation::Read(to) => {
                        for byte in to.iter_mut() {
                            *byte = self.registers[usize::from(self.at)];
                            self.at = self.at.wrapping_add(1);
                        }
                    }
                }
            }
            Ok(())
        }
    }

    #[test]
    fn a_sample_is_what_the_registers_say_in_the_units_of_the_core() {
        let sample = Bq76952::new(Chip::new(), ADDRESS).sample(16, 3).unwrap();
        let cells: Vec<_> = sample.cells().iter().map(|c| c.unwrap().0).collect();
        assert_eq!(cells, (3_600..3_616).collect::<Vec<u16>>());
        let temps = [Some(DeciCelsius(250)), None, Some(DeciCelsius(-100))];
        assert_eq!(sample.temps(), temps);
        assert_eq!(sample.current, Some(Milliamps(1_500)));
    }

    #[test]
    fn a_negative_cell_is_no_measurement() {
        let mut chip = Chip::new();
        chip.put(CELL1_VOLTAGE + 4, -3);
        let sample = Bq76952::new(chip, ADDRESS).sample(3, 0).unwrap();
        assert_eq!(sample.cells().last(), Some(&None));
        assert_eq!(sample.temp_count, 0);
    }

    #[test]
    fn the_chip_bleeds_exactly_the_cells_asked_for() {
        let mut driver = Bq76952::new(Chip::new(), ADDRESS);
        driver.balance(0x8005).unwrap();
        assert_eq!(driver.release().bled, 0x8005);
    }

    #[test]
    fn another_chip_at_the_address_is_told_from_none() {
        let mut driver = Bq76952::new(Chip::new(), ADDRESS);
        assert_eq!(driver.check(), Ok(()));
        let mut deaf = Chip::new();
        deaf.deaf = true;
        let mut driver = Bq76952::new(deaf, ADDRESS);
        assert_eq!(driver.check(), Err(Error::Bus(ErrorKind::Other)));
        assert!(driver.sample(16, 3).is_err());
    }
}
