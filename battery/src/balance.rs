//! Which cells of a group to bleed: [`plan`] by voltage, for a slave that is on its own; [`plan_by_charge`] by state of
//! charge and within what heat the board bears, for a master that knows both.

use helio_units::{DeciCelsius, Millivolts};

/// When a cell is worth bleeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalanceConfig {
    /// Bleed cells at least this far above the lowest.
    pub threshold: Millivolts,
    /// Never bleed below this voltage.
    pub floor: Millivolts,
    /// Bleed at most so many cells at once; their heat lands on one board.
    pub max_cells: u8,
    /// Whether neighbours may bleed together. Most measuring chips must not: the shared wire spoils both readings.
    pub neighbours: bool,
}

impl BalanceConfig {
    /// What [`Default`] gives.
    pub const DEFAULT: Self = Self {
        threshold: Millivolts(10),
        floor: Millivolts(3_000),
        max_cells: 8,
        neighbours: false,
    };
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Cells to bleed, bit 0 is cell 0: the highest first, until the limits of `config` are reached.
/// Nothing while any cell is unmeasured (`None`), because the lowest is then unknown.
pub fn plan(cells: &[Option<Millivolts>], config: &BalanceConfig) -> u32 {
    let cells = cells.get(..32).unwrap_or(cells);
    let mut lowest = u16::MAX;
    for cell in cells {
        match cell {
            Some(v) => lowest = lowest.min(v.0),
            None => return 0,
        }
    }
    let bound = lowest
        .saturating_add(config.threshold.0)
        .max(config.floor.0.saturating_add(1));
    let mut mask = 0u32;
    for _ in 0..config.max_cells {
        let mut best: Option<(usize, u16)> = None;
        // None is missing, so places are cells.
        for (k, &Millivolts(v)) in cells.iter().flatten().enumerate() {
            let bit = 1u32 << k;
            let beside = !config.neighbours && mask & (bit << 1 | bit >> 1) != 0;
            if v >= bound && mask & bit == 0 && !beside && best.is_none_or(|(_, b)| v > b) {
                best = Some((k, v));
            }
        }
        match best {
            Some((k, _)) => mask |= 1 << k,
            None => break,
        }
    }
    mask
}

/// How a master balances by state of charge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChargeBalance {
    /// Begin with cells that are fuller than the emptiest one of the string by this much state of charge ...
    pub start: f32,
    /// ... and go on until they are down to this.
    pub stop: f32,
    /// How many standard deviations of the difference must be beyond doubt on top.
    pub sigmas: f32,
    /// Bleeding resistor of one cell.
    pub resistor_ohm: u16,
    /// Heat that all resistors of one slave may make while it is cool.
    pub budget_mw: u32,
    /// Hottest sensor up to which the whole budget holds; from there it falls linearly ...
    pub cool: DeciCelsius,
    /// ... to nothing here.
    pub hot: DeciCelsius,
}

impl Default for ChargeBalance {
    /// From 1 % down to 0.3 %, 3 W of 40 Ω resistors at each slave up to 40 °C, none from 55 °C.
    fn default() -> Self {
        Self {
            start: 0.01,
            stop: 0.003,
            sigmas: 2.0,
            resistor_ohm: 40,
            budget_mw: 3_000,
            cool: DeciCelsius(400),
            hot: DeciCelsius(550),
        }
    }
}

impl ChargeBalance {
    /// Heat that the resistors of one slave may make at this temperature of its hottest sensor [mW]. A group without a
    /// sensor is never bled.
    pub fn budget_mw(&self, hottest: Option<DeciCelsius>) -> u32 {
        let (cool, hot) = (i64::from(self.cool.0), i64::from(self.hot.0));
        match hottest.map(|t| i64::from(t.0)) {
            None => 0,
            Some(t) if t <= cool => self.budget_mw,
            Some(t) if t >= hot => 0,
            // The range is not empty: t lies inside it.
            Some(t) => (i64::from(self.budget_mw) * (hot - t) / (hot - cool)) as u32,
        }
    }
}

/// What is known of one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellCharge {
    /// Voltage now.
    pub mv: Millivolts,
    /// State of charge, `0..=1`.
    pub soc: f32,
    /// Standard deviation of its difference to another cell of the string (not of `soc` itself: errors that all cells share
    /// do not matter here).
    pub sigma: f32,
}

/// Cells to bleed, bit 0 is cell 0: the fullest first, as many as the heat budget and `config` allow. `lowest` is the state
/// of charge of the emptiest cell of the whole string, `bleeding` the mask in force.
pub fn plan_by_charge(
    cells: &[Option<CellCharge>],
    lowest: f32,
    hottest: Option<DeciCelsius>,
    bleeding: u32,
    config: &BalanceConfig,
    charge: &ChargeBalance,
) -> u32 {
    let cells = cells.get(..32).unwrap_or(cells);
    let mut budget_mw = charge.budget_mw(hottest);
    let mut mask = 0u32;
    for _ in 0..config.max_cells {
        let mut best: Option<(u32, f32, u32)> = None;
        for (bit, cell) in (0..cells.len()).map(|k| 1u32 << k).zip(cells) {
            let Some(cell) = cell else { continue };
            let excess = cell.soc - lowest;
            let bound = match bleeding & bit {
                0 => charge.start + charge.sigmas * cell.sigma,
                _ => charge.stop,
            };
            let mv = u32::from(cell.mv.0);
            let heat_mw = mv * mv / 1_000 / u32::from(charge.resistor_ohm.max(1));
            let beside = !config.neighbours && mask & (bit << 1 | bit >> 1) != 0;
            let wanted = excess > bound && cell.mv > config.floor && heat_mw <= budget_mw;
            if wanted && mask & bit == 0 && !beside && best.is_none_or(|(_, e, _)| excess > e) {
                best = Some((bit, excess, heat_mw));
            }
        }
        let Some((bit, _, heat_mw)) = best else { break };
        mask |= bit;
        budget_mw -= heat_mw;
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn charge(soc: f32) -> Option<CellCharge> {
        Some(CellCharge {
            mv: Millivolts(3_700),
            soc,
            sigma: 0.001,
        })
    }

    fn by_charge(cells: &[Option<CellCharge>], hottest: i16, bleeding: u32) -> u32 {
        let lowest = cells.iter().flatten().map(|c| c.soc).fold(1.0, f32::min);
        let hottest = Some(DeciCelsius(hottest));
        plan_by_charge(
            cells,
            lowest,
            hottest,
            bleeding,
            &BalanceConfig::default(),
            &ChargeBalance::default(),
        )
    }

    #[test]
    fn the_fullest_cells_bleed_until_they_are_close_to_the_emptiest() {
        let cells = [0.50, 0.52, 0.50, 0.515, 0.503].map(charge);
        assert_eq!(by_charge(&cells, 250, 0), 0b01010);
        // What bleeds goes on below the start, and what does not waits for it.
        let cells = [0.50, 0.506, 0.50, 0.506, 0.50].map(charge);
        assert_eq!(by_charge(&cells, 250, 0b01000), 0b01000);
        let cells = [0.50, 0.506, 0.50, 0.5025, 0.50].map(charge);
        assert_eq!(by_charge(&cells, 250, 0b01000), 0);
    }

    #[test]
    fn a_difference_within_its_doubt_is_left_alone_and_so_is_an_unknown_cell() {
        let mut cells = [0.50, 0.53, 0.50].map(charge);
        cells[1].as_mut().unwrap().sigma = 0.02;
        assert_eq!(by_charge(&cells, 250, 0), 0);
        cells[1] = None;
        assert_eq!(by_charge(&cells, 250, 0), 0);
        cells[1] = charge(0.53);
        assert_eq!(by_charge(&cells, 250, 0), 0b010);
        cells[1].as_mut().unwrap().mv = Millivolts(3_000);
        assert_eq!(by_charge(&cells, 250, 0), 0, "at the floor");
    }

    #[test]
    fn the_hotter_the_board_the_fewer_cells_bleed() {
        let mut cells = [charge(0.60); 18];
        cells[17] = charge(0.50);
        // 3.7 V over 40 Ohm make 342 mW; every second cell of 18, at most 8.
        let count = |dc| by_charge(&cells, dc, 0).count_ones();
        assert_eq!(
            [250, 400, 430, 475, 520, 549, 550, 900].map(count),
            [8, 8, 7, 4, 1, 0, 0, 0]
        );
        let config = BalanceConfig::default();
        let blind = plan_by_charge(&cells, 0.5, None, 0, &config, &ChargeBalance::default());
        assert_eq!(blind, 0, "of unknown temperature");
        let together = BalanceConfig {
            neighbours: true,
            ..config
        };
        let mask = plan_by_charge(
            &cells,
            0.5,
            Some(DeciCelsius(250)),
            0,
            &together,
            &ChargeBalance::default(),
        );
        assert_eq!(mask, 0xff);
    }

    fn mv<const N: usize>(cells: [u16; N]) -> [Option<Millivolts>; N] {
        cells.map(|v| Some(Millivolts(v)))
    }

    #[test]
    fn the_highest_cells_bleed_and_neighbours_wait() {
        let c = BalanceConfig::default();
        assert_eq!(plan(&mv([4000, 4030, 4050, 4020, 4000]), &c), 0b00100);
        assert_eq!(
            plan(&mv([4040, 4030, 4050, 4020, 4010]), &c),
            0b10101 & !0b10000
        );
        let together = BalanceConfig {
            neighbours: true,
            ..c
        };
        assert_eq!(
            plan(&mv([4000, 4030, 4050, 4020, 4000]), &together),
            0b01110
        );
        assert_eq!(
            plan(
                &mv([4000, 4030, 4050, 4020, 4000]),
                &BalanceConfig {
                    max_cells: 2,
                    ..together
                }
            ),
            0b00110
        );
    }

    #[test]
    fn an_unmeasured_cell_stops_all_bleeding() {
        let mut cells = mv([4000, 4050, 4000]);
        cells[2] = None;
        assert_eq!(plan(&cells, &BalanceConfig::default()), 0);
    }

    proptest! {
        #[test]
        fn no_cell_bleeds_below_the_floor_or_within_the_threshold(
            cells in proptest::collection::vec(2_980u16..3_040, 0..32),
            max in 0u8..20, neighbours: bool,
        ) {
            let config = BalanceConfig { max_cells: max, neighbours, ..Default::default() };
            let values: std::vec::Vec<_> = cells.iter().map(|&v| Some(Millivolts(v))).collect();
            let mask = plan(&values, &config);
            let lowest = cells.iter().copied().min().unwrap_or(0);
            prop_assert!(mask.count_ones() <= u32::from(max));
            prop_assert!(neighbours || mask & (mask << 1) == 0);
            for (k, &v) in cells.iter().enumerate() {
                prop_assert!(mask & (1 << k) == 0 || (v > 3_000 && v >= lowest + 10));
            }
        }
    }
}
