//! States of charge of all cells of a group for little more than the price of one.
//!
//! One [`SocFilter`] follows the mean of the cells; a small filter per cell follows what makes the cell different: its
//! distance in state of charge, its resistance and its capacity against the mean's, and a difference of voltage that is neither
//! (sensor, curve). A cell that holds less runs away from the mean while charge moves, and so its capacity is known.
//! Differences change slowly and do not feel the errors that all cells share, so a cell is known relative to its neighbours
//! far better than absolutely. After Plett's bar-delta filter (*Battery Management Systems*, vol. 2 (2016), ch. 5.4).

use crate::cell::CellParams;
use crate::kalman::Gaussian;
use crate::math;
use crate::soc::{CellState, Reading, SocFilter, SocInit};
use crate::{MAX_CELLS, Sample};
use helio_units::Instant;

const Z: usize = 0;
const R: usize = 1;
const E: usize = 2;
const Q: usize = 3;
const N: usize = 4;

/// Sigma of a cell's distance from the mean, before anything was measured.
const DISTANCE: f32 = 0.05;
/// Relative sigma of a cell's resistance against the mean's.
const RESISTANCE: f32 = 0.1;
/// ... and of what stays unexplained of an overvoltage from one sample to the next.
const DYNAMICS: f32 = 0.05;
/// Sigma of the difference between two sensors or two cells' curves [mV].
const OFFSET_MV: f32 = 2.0;
/// Sigma of one reading [mV].
const READING_MV: f32 = 2.0;
/// Relative sigma of a cell's capacity against the mean's ...
const CAPACITY: f32 = 0.03;
/// ... which walks by so much per root of capacity moved.
const CAPACITY_WALK: f32 = 0.001;
/// Sigma of the distance after one full capacity has moved, beyond what the capacities explain: leakage, bleeding.
const DRIFT: f32 = 0.005;
/// The voltage difference fades to 1/e over this much state of charge.
const OFFSET_SOC: f32 = 0.5;
/// What the dynamics leave unexplained counts as new only so often [s].
const CORRELATION_S: f32 = 10.0;
/// Temperature where no sensor says anything [°C].
const ASSUMED_C: f32 = 25.0;

/// The cells of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupFilter {
    mean: SocFilter,
    deltas: [Gaussian<f32, N>; MAX_CELLS],
    last: Option<(Instant, f32)>,
}

impl GroupFilter {
    /// Before the first sample; `initial` is about the mean of the cells.
    pub fn new(initial: SocInit) -> Self {
        let square = |x: f32| x * x;
        let delta = Gaussian::new(
            [0.0; N],
            [
                square(DISTANCE),
                square(RESISTANCE),
                square(OFFSET_MV),
                square(CAPACITY),
            ],
        );
        Self {
            mean: SocFilter::new(initial),
            deltas: [delta; MAX_CELLS],
            last: None,
        }
    }

    /// The filter of the mean.
    pub fn mean(&self) -> &SocFilter {
        &self.mean
    }

    /// State of charge of a cell, 0 to 1.
    pub fn soc(&self, cell: usize) -> f32 {
        let delta = self.deltas.get(cell).map_or(0.0, |d| d.x[Z]);
        (self.mean.soc() + delta).clamp(0.0, 1.0)
    }

    /// Standard deviation of [`Self::soc`].
    pub fn sigma(&self, cell: usize) -> f32 {
        let (mean, delta) = (self.mean.sigma(), self.sigma_to_mean(cell));
        math::sqrt(mean * mean + delta * delta)
    }

    /// Distance of a cell's state of charge from the mean's, for balancing.
    pub fn soc_to_mean(&self, cell: usize) -> f32 {
        self.deltas.get(cell).map_or(0.0, |d| d.x[Z])
    }

    /// Standard deviation of [`Self::soc_to_mean`].
    pub fn sigma_to_mean(&self, cell: usize) -> f32 {
        self.deltas.get(cell).map_or(0.0, |d| math::sqrt(d.p[Z][Z]))
    }

    /// Resistance of a cell as a multiple of the mean's, and its standard deviation.
    pub fn resistance(&self, cell: usize) -> (f32, f32) {
        self.deltas
            .get(cell)
            .map_or((1.0, 0.0), |d| (1.0 + d.x[R], math::sqrt(d.p[R][R])))
    }

    /// Capacity of a cell as a multiple of the mean's, and its standard deviation. With the mean's own capacity
    /// ([`crate::HealthFilter`]) this is the cell's.
    pub fn capacity(&self, cell: usize) -> (f32, f32) {
        self.deltas.get(cell).map_or((1.0, 0.0), |d| {
            (1.0 / (1.0 + d.x[Q]), math::sqrt(d.p[Q][Q]))
        })
    }

    /// A cell's state for predictions. `None` before the first sample.
    pub fn state(&self, params: &CellParams, cell: usize) -> Option<CellState> {
        let delta = self.deltas.get(cell)?;
        let mean = self.mean.state(params)?;
        let [_, r, e, _] = delta.x;
        Some(CellState {
            soc: self.soc(cell),
            sigma: self.sigma(cell),
            v1_mv: mean.v1_mv * (1.0 + r),
            v2_mv: mean.v2_mv * (1.0 + r),
            v3_mv: mean.v3_mv * (1.0 + r),
            r0_scale: mean.r0_scale * (1.0 + r),
            shift_mv: mean.shift_mv + e,
            ..mean
        })
    }

    /// Takes in one sample. Without a current or without any cell it is ignored; a cell that is not measured keeps its
    /// distance. Every cell is taken to be as warm as the mean of the sensors.
    pub fn update(&mut self, params: &CellParams, now: Instant, sample: &Sample) {
        let Some(current) = sample.current else {
            return;
        };
        let (mut sum, mut n) = (0.0, 0.0);
        for v in sample.cells().iter().flatten() {
            sum += f32::from(v.0);
            n += 1.0;
        }
        let (mut temps, mut sensors) = (0.0, 0.0);
        for t in sample.temps().iter().flatten() {
            temps += f32::from(t.0) * 0.1;
            sensors += 1.0;
        }
        if n == 0.0 {
            return;
        }
        let temp_c = if sensors > 0.0 {
            temps / sensors
        } else {
            ASSUMED_C
        };
        let reading = Reading {
            ma: current.0 as f32,
            mv: sum / n,
            temp_c,
        };
        self.mean.take(params, now, reading);
        let Some(mean) = self.mean.state(params) else {
            return;
        };

        let (dt, moved) = match self.last {
            Some((last, ma)) => {
                let dt = now.since(last).as_secs_f32();
                (
                    dt,
                    0.5 * (ma + reading.ma) * dt / (3_600.0 * params.capacity_mah()),
                )
            }
            None => (CORRELATION_S, 0.0),
        };
        if dt == 0.0 {
            return;
        }
        self.last = Some((now, reading.ma));

        let square = |x: f32| x * x;
        let instant = params.point(mean.soc, temp_c).instant_mv(mean.current_ma);
        let over = mean.v1_mv + mean.v2_mv + mean.v3_mv + instant * mean.r0_scale;
        let here = params.ocv_mv(mean.soc, temp_c);
        let fade = math::one_minus_exp(moved.abs() / OFFSET_SOC);
        let noise = square(READING_MV) + square(DYNAMICS * over) * (CORRELATION_S / dt).max(1.0);
        for (delta, v) in self.deltas.iter_mut().zip(sample.cells()) {
            delta.x[E] -= fade * delta.x[E];
            // Charge is a larger share of a smaller cell.
            delta.x[Z] -= moved * delta.x[Q];
            delta.predict(
                &[1.0, 1.0, 1.0 - fade, 1.0],
                &[
                    square(DRIFT) * moved.abs(),
                    0.0,
                    fade * (2.0 - fade) * square(OFFSET_MV),
                    square(CAPACITY_WALK) * moved.abs(),
                ],
            );
            delta.leak(Q, &[-moved, 0.0, 0.0, 0.0]);
            let Some(v) = v else { continue };
            let z = (mean.soc + delta.x[Z]).clamp(0.0, 1.0);
            let half = math::sqrt(3.0 * delta.p[Z][Z] + square(mean.sigma)).clamp(0.005, 0.3);
            let own = params.ocv_mv(z, temp_c);
            let (left, right) = ((z - half).max(-0.02), (z + half).min(1.02));
            let slope = ((own - params.ocv_mv(left, temp_c)) / (z - left))
                .min((params.ocv_mv(right, temp_c) - own) / (right - z));
            let foreseen = own - here - delta.x[R] * over + delta.x[E];
            let innovation = f32::from(v.0) - reading.mv - foreseen;
            delta.update(&[slope, -over, 1.0, 0.0], innovation, noise);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::CellModel;
    use crate::defaults::{LFP_2500MAH, NMC_5000MAH};
    use helio_units::{DeciCelsius, Duration, Milliamps, Millivolts};

    /// Eight cells with different states of charge, capacities and resistances; one hour of driving at 10 Hz.
    fn drive(params: &CellParams, start: f64) -> ([f64; 8], GroupFilter) {
        let spread = [0.0, 0.03, -0.02, 0.01, -0.04, 0.02, 0.0, -0.01];
        let weaker: [CellParams; 8] = core::array::from_fn(|k| {
            params.with_capacity_mah(params.capacity_mah() * (1.0 - 0.01 * (k % 3) as f32))
        });
        let mut cells: [CellModel; 8] = core::array::from_fn(|k| CellModel::new(start + spread[k]));
        let mut group = GroupFilter::new(SocInit::Voltage);
        for k in 0..36_000u64 {
            let share = [1.2, 0.3, -0.6, 0.8, 0.0][(k / 150 % 5) as usize];
            let ma = share * params.capacity_mah();
            let mut sample = Sample {
                cell_count: 8,
                temp_count: 1,
                ..Sample::EMPTY
            };
            sample.temps[0] = Some(DeciCelsius(250));
            sample.current = Some(Milliamps(ma as i32));
            for (n, cell) in cells.iter_mut().enumerate() {
                let p = &weaker[n];
                let before = cell.soc;
                let v = cell.step(p, Duration::from_millis(100), ma, 25.0);
                // One cell has 10 % more resistance, one sensor reads 1 mV high.
                let v = if n == 2 {
                    v - 0.1 * (p.ocv_mv(before as f32, 25.0) - v)
                } else {
                    v
                };
                let v = if n == 5 { v + 1.0 } else { v };
                sample.cells[n] = Some(Millivolts((v + 0.5) as u16));
            }
            // Cell 6 is lost for a while.
            if k % 1000 < 100 {
                sample.cells[6] = None;
            }
            group.update(params, Instant::from_millis(k * 100), &sample);
        }
        (cells.map(|c| c.soc), group)
    }

    #[test]
    fn every_cell_is_known_by_its_distance_to_the_mean() {
        let (truth, group) = drive(&NMC_5000MAH, 0.9);
        for (k, soc) in truth.into_iter().enumerate() {
            let error = group.soc(k) - soc as f32;
            assert!(
                error.abs() < 0.01 && error.abs() < 2.5 * group.sigma(k),
                "cell {k}: {error} sigma {}",
                group.sigma(k)
            );
        }
        // Cells 0, 1, 2 hold 1, 0.99 and 0.98 of the file's capacity, and so on.
        for k in 0..8 {
            let truth = (1.0 - 0.01 * (k % 3) as f32) / 0.99125;
            let (capacity, sigma) = group.capacity(k);
            assert!(
                (capacity - truth).abs() < 2.5 * sigma && sigma < 0.03,
                "cell {k}: {capacity} {truth} sigma {sigma}"
            );
        }
        let (r, sigma) = group.resistance(2);
        assert!((r - 1.1).abs() < 0.03 && sigma < 0.05, "{r} {sigma}");
    }

    #[test]
    fn on_the_plateau_the_distances_admit_what_they_do_not_know() {
        let (truth, group) = drive(&LFP_2500MAH, 0.85);
        let mean = truth.iter().sum::<f64>() / 8.0;
        for (k, soc) in truth.into_iter().enumerate() {
            let error = f64::from(group.soc_to_mean(k)) - (soc - mean);
            assert!(
                error.abs() < 2.5 * f64::from(group.sigma_to_mean(k)),
                "cell {k}: {error} sigma {}",
                group.sigma_to_mean(k)
            );
        }
    }

    #[test]
    fn samples_without_a_cell_or_current_or_later_time_change_nothing() {
        let p = NMC_5000MAH;
        let mut group = GroupFilter::new(SocInit::Voltage);
        assert!(group.state(&p, 0).is_none());
        let mut sample = Sample {
            cell_count: 2,
            ..Sample::EMPTY
        };
        sample.current = Some(Milliamps(0));
        let before = group;
        group.update(&p, Instant::ZERO, &sample);
        assert_eq!(group, before);
        sample.cells[..2].fill(Some(Millivolts(3_800)));
        sample.current = None;
        group.update(&p, Instant::ZERO, &sample);
        assert_eq!(group, before);
        sample.current = Some(Milliamps(0));
        group.update(&p, Instant::ZERO, &sample);
        let first = group;
        group.update(&p, Instant::ZERO, &sample);
        assert_eq!(group, first);
        assert!(group.state(&p, 1).is_some() && group.state(&p, 18).is_none());
        assert_eq!(
            (group.soc(99), group.sigma_to_mean(99)),
            (group.mean().soc(), 0.0)
        );
    }
}
