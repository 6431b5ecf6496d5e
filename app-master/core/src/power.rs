//! How much power the pack can give and take for 2, 10 and 30 s: from the weakest cell of every slave to a string, from the
//! strings that conduct to the pack.
//!
//! A string can carry what its weakest cell can, and every cell carries the same current. Of a slave's cells only those that
//! can be the weakest are looked at: emptiest, lowest, fullest and highest. Strings in parallel share the current evenly
//! enough to be counted as so many times the weakest one. While a slave asks for derating, its string carries a part only.

use helio_battery::power::{HORIZONS, PowerLimits, limits};
use helio_battery::{CellParams, CellState};

/// How many horizons there are.
pub const TIMES: usize = HORIZONS.len();

/// What can be drawn and fed for the whole of 2, 10 and 30 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackPower {
    /// Discharge current [mA].
    pub discharge_ma: [u32; TIMES],
    /// Discharge power at the end of the time [W].
    pub discharge_w: [u32; TIMES],
    /// Charge current [mA].
    pub charge_ma: [u32; TIMES],
    /// Charge power at the beginning of the time [W].
    pub charge_w: [u32; TIMES],
}

impl PackPower {
    pub(crate) const NONE: Self = Self {
        discharge_ma: [0; TIMES],
        discharge_w: [0; TIMES],
        charge_ma: [0; TIMES],
        charge_w: [0; TIMES],
    };
}

/// The limits of cells in series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Series([Ends; TIMES]);

/// Current that the weakest cell allows, and the sum of the voltages that are then reckoned with.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ends {
    discharge: (f32, f32),
    charge: (f32, f32),
}

impl Series {
    /// No cells: whatever they shall carry, they make no voltage.
    pub const NONE: Self = Self(
        [Ends {
            discharge: (f32::MAX, 0.0),
            charge: (f32::MAX, 0.0),
        }; TIMES],
    );

    /// `count` cells of which the weakest are among `cells`; nothing is allowed when there are none.
    pub fn of_cells(
        params: &CellParams,
        bounds: &PowerLimits,
        cells: impl Iterator<Item = CellState> + Clone,
        count: usize,
    ) -> Self {
        Self(HORIZONS.map(|horizon| {
            let mut ends = Ends {
                discharge: (f32::MAX, 0.0),
                charge: (f32::MAX, 0.0),
            };
            for state in cells.clone() {
                let p = limits(params, &state, bounds, horizon);
                ends.discharge = weaker(
                    ends.discharge,
                    (p.discharge_ma, voltage(p.discharge_mw, p.discharge_ma)),
                );
                ends.charge = weaker(
                    ends.charge,
                    (p.charge_ma, voltage(p.charge_mw, p.charge_ma)),
                );
            }
            let all = |(ma, mv): (f32, f32)| match ma < f32::MAX {
                true => (ma, mv * count as f32),
                false => (0.0, 0.0),
            };
            Ends {
                discharge: all(ends.discharge),
                charge: all(ends.charge),
            }
        }))
    }

    /// Both in a row.
    pub fn and(mut self, other: &Self) -> Self {
        let join = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1 + b.1);
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            a.discharge = join(a.discharge, b.discharge);
            a.charge = join(a.charge, b.charge);
        }
        self
    }

    /// The same with a part of the current.
    pub fn derated(mut self, part: f32) -> Self {
        for ends in &mut self.0 {
            ends.discharge.0 *= part;
            ends.charge.0 *= part;
        }
        self
    }
}

/// Strings in parallel that conduct.
pub fn parallel(strings: impl Iterator<Item = Series>) -> PackPower {
    let (mut n, mut weakest) = (0.0f32, Series::NONE);
    for string in strings {
        n += 1.0;
        for (a, b) in weakest.0.iter_mut().zip(&string.0) {
            a.discharge = weaker(a.discharge, b.discharge);
            a.charge = weaker(a.charge, b.charge);
        }
    }
    let mut power = PackPower::default();
    if n == 0.0 {
        return power;
    }
    for (k, ends) in weakest.0.iter().enumerate() {
        let (ma, mv) = ends.discharge;
        power.discharge_ma[k] = (ma * n) as u32;
        power.discharge_w[k] = (ma * n * mv * 1e-6) as u32;
        let (ma, mv) = ends.charge;
        power.charge_ma[k] = (ma * n) as u32;
        power.charge_w[k] = (ma * n * mv * 1e-6) as u32;
    }
    power
}

/// The one that allows less; of equals the one with less voltage, so that no more is promised than both keep.
fn weaker(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    match () {
        () if b.0 < a.0 => b,
        () if b.0 == a.0 && b.1 < a.1 => b,
        () => a,
    }
}

/// mV of one cell.
fn voltage(mw: f32, ma: f32) -> f32 {
    if ma > 0.0 { mw / ma * 1e3 } else { 0.0 }
}

/// What a cell of these parameters bears when nobody says otherwise: from its empty to its full voltage, 2C out and 1C in.
pub fn default_limits(params: &CellParams) -> PowerLimits {
    PowerLimits {
        min_mv: params.ocv_mv(0.0, 25.0),
        max_mv: params.ocv_mv(1.0, 25.0),
        discharge_ma: 2.0 * params.capacity_mah(),
        charge_ma: params.capacity_mah(),
        min_soc: 0.02,
        max_soc: 1.0,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use helio_battery::defaults::NMC_5000MAH;

    fn cell(soc: f32, temp_c: f32) -> CellState {
        CellState {
            soc,
            sigma: 0.0,
            v1_mv: 0.0,
            v2_mv: 0.0,
            v3_mv: 0.0,
            r0_scale: 1.0,
            shift_mv: 0.0,
            current_ma: 0.0,
            temp_c,
        }
    }

    fn group(cells: &[CellState], count: usize) -> Series {
        Series::of_cells(
            &NMC_5000MAH,
            &default_limits(&NMC_5000MAH),
            cells.iter().copied(),
            count,
        )
    }

    fn alone(series: Series) -> PackPower {
        parallel([series].into_iter())
    }

    #[test]
    fn a_string_carries_what_its_weakest_cell_does_at_the_voltage_of_all() {
        let good = alone(group(&[cell(0.6, 25.0)], 16));
        let weak = alone(group(&[cell(0.04, -10.0)], 16));
        let both = alone(group(&[cell(0.6, 25.0)], 16).and(&group(&[cell(0.04, -10.0)], 16)));
        for k in 0..TIMES {
            assert!(weak.discharge_ma[k] < good.discharge_ma[k]);
            assert_eq!(both.discharge_ma[k], weak.discharge_ma[k]);
            assert!(both.discharge_w[k] > weak.discharge_w[k]);
            assert!(both.discharge_w[k] < 2 * good.discharge_w[k]);
            let volts = good.discharge_w[k] as f32 / good.discharge_ma[k] as f32 * 1e3;
            assert!((40.0..64.0).contains(&volts), "{volts} V");
        }
        assert!(good.discharge_ma[0] >= good.discharge_ma[2]);
        let mixed = alone(group(&[cell(0.6, 25.0), cell(0.04, -10.0)], 16));
        assert_eq!(mixed.discharge_ma, weak.discharge_ma);
        let full = alone(group(&[cell(1.0, 25.0)], 16));
        assert_eq!((full.charge_ma, full.charge_w), ([0; 3], [0; 3]));
    }

    #[test]
    fn parallel_strings_give_so_many_times_the_weakest_and_none_gives_nothing() {
        let (good, weak) = (group(&[cell(0.6, 25.0)], 16), group(&[cell(0.3, 0.0)], 16));
        let one = alone(weak);
        for order in [[good, weak], [weak, good]] {
            let two = parallel(order.into_iter());
            for k in 0..TIMES {
                assert!(two.discharge_ma[k].abs_diff(2 * one.discharge_ma[k]) <= 1);
                assert!(two.charge_w[k].abs_diff(2 * one.charge_w[k]) <= 1);
            }
        }
        assert_eq!(parallel(core::iter::empty()), PackPower::default());
        let half = alone(good.derated(0.5));
        assert!(half.discharge_ma[1].abs_diff(alone(good).discharge_ma[1] / 2) <= 1);
    }

    #[test]
    fn cells_of_which_nothing_is_known_carry_nothing() {
        assert_eq!(alone(group(&[], 16)), PackPower::default());
        // Slaves without cells do not limit the others.
        let good = group(&[cell(0.6, 25.0)], 16);
        assert_eq!(alone(Series::NONE.and(&good)), alone(good));
    }

    #[test]
    fn of_equal_currents_the_lower_voltage_counts() {
        assert_eq!(weaker((1.0, 4.0), (1.0, 3.0)), (1.0, 3.0));
        assert_eq!(weaker((1.0, 3.0), (1.0, 4.0)), (1.0, 3.0));
        assert_eq!(weaker((2.0, 3.0), (1.0, 4.0)), (1.0, 4.0));
    }
}
