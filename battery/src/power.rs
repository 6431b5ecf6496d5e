//! How much current and power a cell can give or take for the next seconds without leaving its limits: state of power.
//!
//! The equivalent circuit under a constant current for a time T, from its present state (Plett, *Battery Management Systems*,
//! vol. 2 (2016), ch. 6; first in *IEEE Trans. Veh. Technol.* 53 (2004) 1586):
//!
//! ```text
//! v(T) = OCV(z - i T / Q) + shift - v1 e^(-T/tau1) - v2 e^(-T/tau2) - i (R1 (1 - e^(-T/tau1)) + R2 (1 - e^(-T/tau2)))
//!        - R0 i - Rk Ik asinh(i / Ik)
//! ```
//!
//! v(T) falls with i, so the current that just reaches a voltage is found by bisection. The state of charge enters two sigma
//! on the careful side: low for discharge, high for charge.

use crate::cell::{CellParams, Point};
use crate::math;
use crate::soc::CellState;
use helio_units::Duration;

/// Horizons that a vehicle or inverter asks for.
pub const HORIZONS: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
];

/// What a cell must not leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerLimits {
    /// Lowest terminal voltage [mV].
    pub min_mv: f32,
    /// Highest terminal voltage [mV].
    pub max_mv: f32,
    /// Largest discharge current [mA].
    pub discharge_ma: f32,
    /// Largest charge current, as a positive number [mA].
    pub charge_ma: f32,
    /// State of charge not to go below.
    pub min_soc: f32,
    /// State of charge not to go above.
    pub max_soc: f32,
}

/// What a cell can do for the whole of a horizon. All numbers are positive or zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Power {
    /// Discharge current [mA].
    pub discharge_ma: f32,
    /// Discharge power at the end of the horizon, where it is smallest [mW].
    pub discharge_mw: f32,
    /// Charge current [mA].
    pub charge_ma: f32,
    /// Charge power at the beginning of the horizon, where it is smallest [mW].
    pub charge_mw: f32,
}

/// The state of power of one cell. A series group can do what its weakest cell can: take the smallest currents.
pub fn limits(
    params: &CellParams,
    state: &CellState,
    limits: &PowerLimits,
    horizon: Duration,
) -> Power {
    let seconds = horizon.as_secs_f32();
    let hours = (seconds / 3_600.0).max(1e-9);
    let low = Ahead::new(
        params,
        state,
        (state.soc - 2.0 * state.sigma).max(0.0),
        seconds,
    );
    let high = Ahead::new(
        params,
        state,
        (state.soc + 2.0 * state.sigma).min(1.0),
        seconds,
    );

    let by_soc = (low.soc - limits.min_soc).max(0.0) * params.capacity_mah() / hours;
    let most = limits.discharge_ma.min(by_soc).max(0.0);
    let discharge_ma = largest(most, |i| {
        low.voltage(i) >= limits.min_mv && low.at_once(i) >= limits.min_mv
    });

    let by_soc = (limits.max_soc - high.soc).max(0.0) * params.capacity_mah() / hours;
    let most = limits.charge_ma.min(by_soc).max(0.0);
    let charge_ma = largest(most, |i| {
        high.voltage(-i) <= limits.max_mv && high.at_once(-i) <= limits.max_mv
    });

    Power {
        discharge_ma,
        discharge_mw: discharge_ma
            * low
                .voltage(discharge_ma)
                .min(low.at_once(discharge_ma))
                .max(0.0)
            * 1e-3,
        charge_ma,
        charge_mw: charge_ma
            * high
                .voltage(-charge_ma)
                .min(high.at_once(-charge_ma))
                .max(0.0)
            * 1e-3,
    }
}

/// The circuit at the end of a constant current.
struct Ahead<'a> {
    params: &'a CellParams,
    soc: f32,
    temp_c: f32,
    soc_per_ma: f32,
    /// Voltage that is there whatever the current: shift and what the pairs keep [mV].
    offset_now: f32,
    offset_then: f32,
    point: Point,
    r0_scale: f32,
    /// Resistance of the pairs at the end [Ω].
    pairs: f32,
}

impl<'a> Ahead<'a> {
    fn new(params: &'a CellParams, state: &CellState, soc: f32, seconds: f32) -> Self {
        let point = params.point(soc, state.temp_c);
        let gone1 = math::one_minus_exp(seconds / point.tau1);
        let gone2 = math::one_minus_exp(seconds / point.tau2);
        let gone3 = math::one_minus_exp(seconds / point.tau3);
        Self {
            params,
            soc,
            temp_c: state.temp_c,
            soc_per_ma: seconds / (3_600.0 * params.capacity_mah()),
            offset_now: state.shift_mv - state.v1_mv - state.v2_mv - state.v3_mv,
            offset_then: state.shift_mv
                - state.v1_mv * (1.0 - gone1)
                - state.v2_mv * (1.0 - gone2)
                - state.v3_mv * (1.0 - gone3),
            r0_scale: state.r0_scale,
            point,
            pairs: point.r1 * gone1 + point.r2 * gone2 + point.r3 * gone3,
        }
    }

    /// Terminal voltage at the end [mV].
    fn voltage(&self, ma: f32) -> f32 {
        self.params
            .ocv_mv(self.soc - ma * self.soc_per_ma, self.temp_c)
            + self.offset_then
            - ma * self.pairs
            - self.point.instant_mv(ma) * self.r0_scale
    }

    /// Terminal voltage at once: under a relaxing overvoltage the beginning can be the harder end [mV].
    fn at_once(&self, ma: f32) -> f32 {
        self.params.ocv_mv(self.soc, self.temp_c) + self.offset_now
            - self.point.instant_mv(ma) * self.r0_scale
    }
}

/// The largest number in `0..=most` that is still good, where all good ones are below all bad ones; 0 if none is.
fn largest(most: f32, good: impl Fn(f32) -> bool) -> f32 {
    if good(most) {
        return most;
    }
    let (mut lo, mut hi) = (0.0, most);
    if !good(lo) {
        return 0.0;
    }
    // 20 halvings: to a millionth of the limit.
    for _ in 0..20 {
        let mid = 0.5 * (lo + hi);
        if good(mid) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    lo
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::CellModel;
    use crate::defaults::{LFP_2500MAH, NMC_5000MAH};
    use proptest::prelude::*;

    const LIMITS: PowerLimits = PowerLimits {
        min_mv: 2_800.0,
        max_mv: 4_200.0,
        discharge_ma: 50_000.0,
        charge_ma: 15_000.0,
        min_soc: 0.05,
        max_soc: 1.0,
    };

    proptest! {
        /// The circuit itself, driven with the promised current, touches a limit at the end and not before.
        #[test]
        fn a_promised_current_just_reaches_a_limit(
            lfp: bool, percent in 6..99u32, temp in -20..45i32, past in -100..100i32, horizon in 0..3usize, charge: bool,
        ) {
            let params = if lfp { LFP_2500MAH } else { NMC_5000MAH };
            let limits_ = PowerLimits { max_mv: if lfp { 3_600.0 } else { 4_200.0 }, min_mv: 2_600.0, ..LIMITS };
            let temp_c = temp as f32;
            let mut cell = CellModel::new(f64::from(percent) / 100.0);
            for _ in 0..20 {
                cell.step(&params, Duration::from_secs(1), past as f32 * 0.01 * params.capacity_mah(), temp_c);
            }
            let soc = cell.soc as f32;
            let state = CellState {
                soc, sigma: 0.0, v1_mv: cell.v1_mv, v2_mv: cell.v2_mv, v3_mv: cell.v3_mv, r0_scale: 1.0,
                shift_mv: params.point(soc, temp_c).hysteresis_mv * cell.h, current_ma: 0.0, temp_c,
            };
            let time = HORIZONS[horizon];
            let power = limits(&params, &state, &limits_, time);
            let ma = if charge { -power.charge_ma } else { power.discharge_ma };
            let (mut low, mut high) = (f32::MAX, 0.0f32);
            for _ in 0..time.as_millis() / 10 {
                let v = cell.step(&params, Duration::from_millis(10), ma, temp_c);
                low = low.min(v);
                high = high.max(v);
            }
            // Hysteresis and resistances move a little within the horizon; the prediction holds them.
            let slack = 4.0 + 2.0 * params.point(soc, temp_c).hysteresis_mv;
            if charge && ma != 0.0 {
                prop_assert!(high <= limits_.max_mv + slack && cell.soc <= 1.0 + 1e-3);
                let touched = high > limits_.max_mv - slack || cell.soc > 0.999 || power.charge_ma == limits_.charge_ma;
                prop_assert!(touched, "{high} {}", cell.soc);
            }
            if !charge && ma != 0.0 {
                prop_assert!(low >= limits_.min_mv - slack && cell.soc >= 0.05 - 1e-3);
                let touched = low < limits_.min_mv + slack || cell.soc < 0.051 || power.discharge_ma == limits_.discharge_ma;
                prop_assert!(touched, "{low} {}", cell.soc);
            }
        }
    }

    #[test]
    fn doubt_and_time_make_the_promise_smaller() {
        let state = CellState {
            soc: 0.3,
            sigma: 0.0,
            v1_mv: 10.0,
            v2_mv: 20.0,
            v3_mv: 0.0,
            r0_scale: 1.0,
            shift_mv: 0.0,
            current_ma: 0.0,
            temp_c: 10.0,
        };
        let now = HORIZONS.map(|h| limits(&NMC_5000MAH, &state, &LIMITS, h));
        assert!(
            now[0].discharge_ma > now[1].discharge_ma && now[1].discharge_ma > now[2].discharge_ma
        );
        assert!(now[0].charge_ma >= now[1].charge_ma && now[1].charge_ma >= now[2].charge_ma);
        let doubtful = limits(
            &NMC_5000MAH,
            &CellState {
                sigma: 0.05,
                ..state
            },
            &LIMITS,
            HORIZONS[1],
        );
        assert!(
            doubtful.discharge_ma < now[1].discharge_ma && doubtful.charge_ma <= now[1].charge_ma
        );
        assert!((now[1].discharge_mw / now[1].discharge_ma - 2.8).abs() < 0.01);
    }

    #[test]
    fn an_empty_cell_gives_nothing_and_a_full_one_takes_nothing() {
        let mut state = CellState {
            soc: 0.04,
            sigma: 0.0,
            v1_mv: 0.0,
            v2_mv: 0.0,
            v3_mv: 0.0,
            r0_scale: 1.0,
            shift_mv: 0.0,
            current_ma: 0.0,
            temp_c: 25.0,
        };
        let empty = limits(&NMC_5000MAH, &state, &LIMITS, HORIZONS[0]);
        assert_eq!((empty.discharge_ma, empty.discharge_mw), (0.0, 0.0));
        state.soc = 1.0;
        state.shift_mv = 20.0;
        assert_eq!(
            limits(&NMC_5000MAH, &state, &LIMITS, HORIZONS[0]).charge_ma,
            0.0
        );
    }
}
