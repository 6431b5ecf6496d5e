//! Which cells of a group to bleed. The simple plan, by voltage, for a slave that is on its own; a master that knows the
//! states of charge sends a mask instead.

use helio_units::Millivolts;

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

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            threshold: Millivolts(10),
            floor: Millivolts(3_000),
            max_cells: 8,
            neighbours: false,
        }
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
        for (k, v) in cells.iter().enumerate() {
            let Some(Millivolts(v)) = *v else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
