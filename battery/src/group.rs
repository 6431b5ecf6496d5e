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
use helio_units::{Instant, Millivolts};

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
/// Sigma of the distance after one second, because cells leak charge inside: a soft short is found in minutes ...
const LEAK: f32 = 1e-5;
/// ... and because a cell is being bled, by a resistor that this filter does not know.
const BLED: f32 = 3e-4;
/// Innovations are averaged over this time to notice that a cell went its own way [s].
const LOST_S: f32 = 20.0;
/// Mean squared innovation over its variance at which it has; 1 is normal ...
const LOST: f32 = 3.0;
/// ... and how far (1 sigma).
const LOST_BY: f32 = 0.02;
/// The voltage difference fades to 1/e over this much state of charge.
const OFFSET_SOC: f32 = 0.5;
/// What the dynamics leave unexplained counts as new only so often [s].
const CORRELATION_S: f32 = 10.0;
/// Standard deviation of the difference of two groups' means as a part of one's: one model and one current make 0.9 of the
/// variance common to both, which leaves √(2 (1 - 0.9)).
const OTHERS: f32 = 0.447;
/// Temperature where no sensor says anything [°C].
const ASSUMED_C: f32 = 25.0;

/// The cells of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupFilter {
    mean: SocFilter,
    deltas: [Delta; MAX_CELLS],
    round: Round,
    last: Option<(Instant, f32)>,
}

/// A cell's distance to the mean; of its symmetric covariance one triangle, because there are many.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Delta {
    x: [f32; N],
    p: [f32; N * (N + 1) / 2],
    /// Running mean of squared innovation over its variance; 1 is normal.
    strain: f32,
}

impl Delta {
    const UNKNOWN: Self = {
        let square = [
            DISTANCE * DISTANCE,
            RESISTANCE * RESISTANCE,
            OFFSET_MV * OFFSET_MV,
            CAPACITY * CAPACITY,
        ];
        let [z, r, e, q] = square;
        Self {
            x: [0.0; N],
            p: [z, 0.0, 0.0, 0.0, r, 0.0, 0.0, e, 0.0, q],
            strain: 1.0,
        }
    };

    fn whole(&self) -> Gaussian<f32, N> {
        let [zz, zr, ze, zq, rr, re, rq, ee, eq, qq] = self.p;
        Gaussian {
            x: self.x,
            p: [
                [zz, zr, ze, zq],
                [zr, rr, re, rq],
                [ze, re, ee, eq],
                [zq, rq, eq, qq],
            ],
        }
    }

    fn keep(&mut self, belief: &Gaussian<f32, N>) {
        let [
            [zz, zr, ze, zq],
            [_, rr, re, rq],
            [_, _, ee, eq],
            [_, _, _, qq],
        ] = belief.p;
        self.x = belief.x;
        self.p = [zz, zr, ze, zq, rr, re, rq, ee, eq, qq];
    }

    fn variance(&self, state: usize) -> f32 {
        let place = [0, 4, 7, 9];
        let place = place.get(state).copied().unwrap_or(0);
        self.p.get(place).copied().unwrap_or(0.0)
    }
}

/// What has come of the cells since the filters took in something. A bus may bring them in pieces, each measured at
/// another current.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Round {
    /// Terminal voltage without the instant drop of its own current [mV]; only of cells in `measured`.
    mv: [f32; MAX_CELLS],
    measured: u32,
    /// Cells that have come, measured or not.
    came: u32,
}

impl Round {
    const EMPTY: Self = Self {
        mv: [0.0; MAX_CELLS],
        measured: 0,
        came: 0,
    };
}

impl GroupFilter {
    /// Before the first sample; `initial` is about the mean of the cells.
    pub const fn new(initial: SocInit) -> Self {
        Self {
            mean: SocFilter::new(initial),
            deltas: [Delta::UNKNOWN; MAX_CELLS],
            round: Round::EMPTY,
            last: None,
        }
    }

    /// The filter of the mean.
    pub fn mean(&self) -> &SocFilter {
        &self.mean
    }

    /// State of charge of a cell, 0 to 1.
    pub fn soc(&self, cell: usize) -> f32 {
        (self.mean.soc() + self.soc_to_mean(cell)).clamp(0.0, 1.0)
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
        self.deltas
            .get(cell)
            .map_or(0.0, |d| math::sqrt(d.variance(Z)))
    }

    /// Standard deviation of the difference between a cell's state of charge and that of a cell of another group, which has the
    /// same model and feels the same current.
    pub fn sigma_to_others(&self, cell: usize) -> f32 {
        let (own, mean) = (self.sigma_to_mean(cell), OTHERS * self.mean.sigma());
        math::sqrt(own * own + mean * mean)
    }

    /// Resistance of a cell as a multiple of the mean's, and its standard deviation.
    pub fn resistance(&self, cell: usize) -> (f32, f32) {
        self.deltas
            .get(cell)
            .map_or((1.0, 0.0), |d| (1.0 + d.x[R], math::sqrt(d.variance(R))))
    }

    /// Capacity of a cell as a multiple of the mean's, and its standard deviation. With the mean's own capacity
    /// ([`crate::HealthFilter`]) this is the cell's.
    pub fn capacity(&self, cell: usize) -> (f32, f32) {
        self.deltas.get(cell).map_or((1.0, 0.0), |d| {
            (1.0 / (1.0 + d.x[Q]), math::sqrt(d.variance(Q)))
        })
    }

    /// A cell's state for predictions. `None` before the first sample.
    pub fn state(&self, params: &CellParams, cell: usize) -> Option<CellState> {
        let delta = self.deltas.get(cell)?;
        let mean = self.mean.state(params)?;
        let [_, r, _, _] = delta.x;
        Some(CellState {
            soc: self.soc(cell),
            sigma: self.sigma(cell),
            v1_mv: mean.v1_mv * (1.0 + r),
            v2_mv: mean.v2_mv * (1.0 + r),
            v3_mv: mean.v3_mv * (1.0 + r),
            r0_scale: mean.r0_scale * (1.0 + r),
            ..mean
        })
    }

    /// Takes in one sample. Without a current or without any cell it is ignored; a cell that is not measured keeps its
    /// distance. Every cell is taken to be as warm as the mean of the sensors.
    pub fn update(&mut self, params: &CellParams, now: Instant, sample: &Sample) {
        let Some(current) = sample.current else {
            return;
        };
        let (mut temps, mut sensors) = (0.0, 0.0);
        for t in sample.temps().iter().flatten() {
            temps += f32::from(t.0) * 0.1;
            sensors += 1.0;
        }
        let now_and_here = Moment {
            now,
            ma: current.0 as f32,
            temp_c: if sensors > 0.0 {
                temps / sensors
            } else {
                ASSUMED_C
            },
            bled: 0,
        };
        let count = sample.cells().len();
        self.handle(params, &now_and_here, count, 0, sample.cells());
    }

    /// Takes in the voltages of the cells from `first` on, measured together; the group has `count`. What comes in pieces
    /// is one sample when all have come, or when a cell comes that was there already, because a piece is missing.
    /// Returns what the mean cell then showed.
    pub fn handle(
        &mut self,
        params: &CellParams,
        moment: &Moment,
        count: usize,
        first: usize,
        cells: &[Option<Millivolts>],
    ) -> Option<Reading> {
        let count = count.min(MAX_CELLS);
        let piece = cells.len().min(count.saturating_sub(first));
        let these = bits(first + piece) & !bits(first);
        let mut taken = None;
        let mut drop = self.drop_mv(params, moment);
        if self.round.came & these != 0 {
            taken = self.take(params, moment, count, drop);
            drop = self.drop_mv(params, moment);
        }
        for ((place, cell), mv) in (first..)
            .zip(cells)
            .zip(self.round.mv.iter_mut().skip(first))
            .take(piece)
        {
            if let Some(v) = cell {
                *mv = f32::from(v.0) + drop;
                self.round.measured |= 1 << place;
            }
        }
        self.round.came |= these;
        if self.round.came == bits(count) {
            taken = self.take(params, moment, count, drop);
        }
        taken
    }

    /// Voltage that this moment's current takes at once from the mean cell [mV].
    fn drop_mv(&self, params: &CellParams, moment: &Moment) -> f32 {
        let point = params.point(self.mean.soc(), moment.temp_c);
        point.instant_mv(moment.ma) * self.mean.resistance().mean
    }

    /// Ends the round: the filters take in what has come, as if all had been measured at this moment's current, which takes `drop`
    /// at once.
    fn take(
        &mut self,
        params: &CellParams,
        moment: &Moment,
        count: usize,
        drop: f32,
    ) -> Option<Reading> {
        let round = core::mem::replace(&mut self.round, Round::EMPTY);
        let (mut sum, mut n) = (0.0, 0.0);
        for (cell, mv) in round.mv.iter().enumerate() {
            if round.measured & 1 << cell != 0 {
                (sum, n) = (sum + mv - drop, n + 1.0);
            }
        }
        if n == 0.0 {
            return None;
        }
        let &Moment {
            now,
            ma,
            temp_c,
            bled,
        } = moment;
        let reading = Reading {
            ma,
            mv: sum / n,
            temp_c,
        };
        self.mean.take(params, now, reading);
        let mean = self.mean.state(params)?;

        let (dt, moved) = match self.last {
            Some((last, before)) => {
                let dt = now.since(last).as_secs_f32();
                (
                    dt,
                    0.5 * (before + ma) * dt / (3_600.0 * params.capacity_mah()),
                )
            }
            None => (CORRELATION_S, 0.0),
        };
        if dt == 0.0 {
            return None;
        }
        self.last = Some((now, ma));

        let square = |x: f32| x * x;
        let instant = params.point(mean.soc, temp_c).instant_mv(mean.current_ma);
        let over = mean.v1_mv + mean.v2_mv + mean.v3_mv + instant * mean.r0_scale;
        let here = params.ocv_mv(mean.soc, temp_c);
        let fade = math::one_minus_exp(moved.abs() / OFFSET_SOC);
        let noise = square(READING_MV) + square(DYNAMICS * over) * (CORRELATION_S / dt).max(1.0);
        for (cell, kept) in self.deltas.iter_mut().enumerate().take(count) {
            let mut delta = kept.whole();
            let leak = if bled & 1 << cell != 0 { BLED } else { LEAK };
            // Charge is a larger share of a smaller cell.
            delta.x[Z] -= moved * delta.x[Q];
            delta.predict(
                &[1.0, 1.0, 1.0 - fade, 1.0],
                &[
                    square(DRIFT) * moved.abs() + square(leak) * dt,
                    0.0,
                    fade * (2.0 - fade) * square(OFFSET_MV),
                    square(CAPACITY_WALK) * moved.abs(),
                ],
            );
            delta.leak(Q, &[-moved, 0.0, 0.0, 0.0]);
            if round.measured & 1 << cell != 0 {
                let z = (mean.soc + delta.x[Z]).clamp(0.0, 1.0);
                let half = math::sqrt(3.0 * delta.p[Z][Z] + square(mean.sigma)).clamp(0.005, 0.3);
                let own = params.ocv_mv(z, temp_c);
                let (left, right) = ((z - half).max(-0.02), (z + half).min(1.02));
                let slope = ((own - params.ocv_mv(left, temp_c)) / (z - left))
                    .min((params.ocv_mv(right, temp_c) - own) / (right - z));
                let foreseen = own - here - delta.x[R] * over;
                let mv = round.mv.get(cell).copied().unwrap_or_default() - drop;
                let mut innovation = mv - reading.mv - foreseen;
                let h = [slope, -over, 1.0, 0.0];
                let (mut g, mut variance) = delta.project(&h);
                let surprise = innovation * innovation / (variance + noise);
                kept.strain +=
                    math::one_minus_exp(dt / LOST_S) * (surprise.min(50.0) - kept.strain);
                if kept.strain > LOST {
                    // What should not happen did: a leak, a resistor that bleeds, another cell.
                    delta.p[Z][Z] += square(LOST_BY);
                    (g, variance) = delta.project(&h);
                    kept.strain = 1.0;
                }
                // The flatter chord is careful with what a voltage tells, and would step too far where the curve is steep.
                let to = z + innovation * g[Z] / (variance + noise);
                let step_mv = params.ocv_mv(to, temp_c) - own;
                if step_mv.abs() > innovation.abs() {
                    innovation *= (innovation / step_mv).abs();
                }
                // Whether the curve, which bends, or the sensor makes a difference of voltage, no sample tells.
                delta.update_considering(E, (&g, variance), innovation, noise);
            }
            kept.keep(&delta);
        }
        Some(reading)
    }
}

/// When a group was measured, at what current and how warm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moment {
    /// When.
    pub now: Instant,
    /// Current, discharge positive [mA].
    pub ma: f32,
    /// Temperature of the cells [°C].
    pub temp_c: f32,
    /// Cells, bit 0 is cell 0, that are being bled.
    pub bled: u32,
}

/// The lowest `n` bits.
fn bits(n: usize) -> u32 {
    1u32.checked_shl(n as u32).map_or(u32::MAX, |b| b - 1)
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
    fn a_cell_that_begins_to_leak_after_a_day_at_rest_is_found_within_minutes() {
        let p = NMC_5000MAH;
        let mut cells = [CellModel::new(0.7); 4];
        let mut group = GroupFilter::new(SocInit::Voltage);
        let (mut found, mut truth) = (None, 0.0);
        for k in 0..90_000u64 {
            let mut mv = [None; 4];
            for (n, (cell, mv)) in cells.iter_mut().zip(&mut mv).enumerate() {
                if n == 2 && k >= 86_400 {
                    // 10 % of its charge in an hour, inside.
                    cell.soc -= 0.1 / 3_600.0;
                }
                let v = cell.step(&p, Duration::from_secs(1), 0.0, 25.0);
                *mv = Some(Millivolts((v + 0.5) as u16));
            }
            let moment = Moment {
                now: Instant::from_millis(k * 1_000),
                ma: 0.0,
                temp_c: 25.0,
                bled: 0,
            };
            group.handle(&p, &moment, 4, 0, &mv);
            truth = cells[2].soc as f32 - 0.7;
            if group.soc_to_mean(2) < -0.005 {
                found.get_or_insert(k - 86_400);
            }
        }
        let found = found.expect("found");
        assert!(found < 600, "{found} s");
        // The mean feels a quarter of it.
        let told = group.soc_to_mean(2) * 4.0 / 3.0;
        assert!((told - truth).abs() < 0.006, "{told} {truth}");
    }

    #[test]
    fn pieces_measured_at_other_currents_are_one_sample_and_a_lost_piece_costs_a_round() {
        let p = NMC_5000MAH;
        let mut cells: [CellModel; 4] =
            core::array::from_fn(|k| CellModel::new(0.7 + 0.02 * k as f64));
        let mut group = GroupFilter::new(SocInit::Voltage);
        let mut rounds = 0;
        for k in 0..60_000u64 {
            // One piece every 100 ms, while the current jumps from each to the next.
            let ma = [6_000.0, -2_000.0, 0.0, 3_000.0, 1_000.0][(k % 5) as usize];
            let first = (k % 2) as usize * 2;
            let mut mv = [None; 4];
            for (cell, mv) in cells.iter_mut().zip(&mut mv) {
                let v = cell.step(&p, Duration::from_millis(100), ma, 25.0);
                *mv = Some(Millivolts((v + 0.5) as u16));
            }
            if k % 7 == 3 {
                continue;
            }
            let moment = Moment {
                now: Instant::from_millis(k * 100),
                ma,
                temp_c: 25.0,
                bled: 0,
            };
            let taken = group.handle(&p, &moment, 4, first, &mv[first..first + 2]);
            rounds += u32::from(taken.is_some());
        }
        assert!((20_000..30_000).contains(&rounds), "{rounds}");
        for (k, cell) in cells.iter().enumerate() {
            let error = group.soc(k) - cell.soc as f32;
            assert!(error.abs() < 0.01, "cell {k}: {error}");
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
