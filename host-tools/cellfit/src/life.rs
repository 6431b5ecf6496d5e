//! How well the state of health is followed over a cell's life of partial cycles.
//!
//! Filters of state of charge and of health run together as in a master: the health tells what the cell is now, the state
//! of charge goes by that. Neither sees the truth.

use helio_battery::{CellParams, HealthFilter, Reading, SocFilter, SocInit};
use helio_units::Instant;
use serde::Serialize;

use crate::recording::Recording;

/// What the sensors get wrong.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sensors {
    /// Measured less true current [A].
    pub offset_a: f64,
    /// Measured over true current.
    pub scale: f64,
    /// Measured less true voltage [mV].
    pub offset_mv: f64,
    /// Steps of the voltage [mV].
    pub step_mv: f64,
    /// Measured less true temperature [K].
    pub offset_k: f64,
}

impl Sensors {
    /// Without error.
    pub const IDEAL: Self = Self {
        offset_a: 0.0,
        scale: 1.0,
        offset_mv: 0.0,
        step_mv: 1.0,
        offset_k: 0.0,
    };
    /// As good as a battery's usually are, erring either way.
    pub const USUAL: [Self; 2] = [
        Self {
            offset_a: 0.01,
            scale: 1.002,
            offset_mv: 1.5,
            step_mv: 1.0,
            offset_k: 1.0,
        },
        Self {
            offset_a: -0.01,
            scale: 0.998,
            offset_mv: -1.5,
            step_mv: 1.0,
            offset_k: -1.0,
        },
    ];
}

/// Estimate and truth after one rest; shares of the new cell's capacity.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LifePoint {
    /// Since the start [h].
    pub hours: f64,
    /// Estimated.
    pub capacity: f64,
    /// Its sigma.
    pub sigma: f64,
    /// True.
    pub truth: f64,
    /// Resistance over the new cell's.
    pub resistance: f64,
    /// Estimated less true state of charge.
    pub soc_error: f64,
    /// Lithium lost, negative and positive material left.
    pub modes: [f64; 3],
}

/// How it went. Percentages of the new cell's capacity.
#[derive(Clone, Debug, Serialize)]
pub struct LifeScore {
    /// Recording.
    pub life: String,
    /// Sensors.
    pub sensors: Sensors,
    /// Rests that were learnt from.
    pub rests: usize,
    /// True capacity at the end.
    pub end_pct: f64,
    /// Root mean square error.
    pub rmse_pct: f64,
    /// Largest error.
    pub max_error_pct: f64,
    /// Share of rests at which the truth was within the 95 % bounds.
    pub within_bounds_pct: f64,
    /// Mean half width of the bounds.
    pub half_width_pct: f64,
    /// Root mean square error of the state of charge at the rests, in points.
    pub soc_rmse_pct: f64,
}

/// A cell's file is made new again when its capacity has changed by this share.
const RENEW: f32 = 0.003;

/// Follows a life from a row on, of a cell of which `health` is known. `capacity_ah` is the truth, one per row, `soc` too.
pub fn follow(
    row: usize,
    mut health: HealthFilter,
    params: &CellParams,
    r: &Recording,
    capacity_ah: &[f64],
    soc: &[f64],
    sensors: &Sensors,
) -> (LifeScore, Vec<LifePoint>) {
    let mut filter = SocFilter::new(SocInit::Voltage);
    let mut aged = *params;
    let new_ah = f64::from(params.capacity_mah()) * 1e-3;
    let mut points = Vec::new();
    for k in row..r.t.len() {
        let step = sensors.step_mv.max(1e-6);
        let mv = 1e3 * r.v[k] + sensors.offset_mv;
        let reading = Reading {
            ma: (1e3 * (r.i[k] * sensors.scale + sensors.offset_a)).round() as f32,
            mv: ((mv / step).round() * step) as f32,
            temp_c: (r.temp[k] + sensors.offset_k) as f32,
        };
        let now = Instant::from_nanos((r.t[k] * 1e9) as u64);
        filter.take(&aged, now, reading);
        if health.take(params, now, reading, &filter, &aged) {
            let capacity = health.capacity(params);
            let modes = health.modes();
            points.push(LifePoint {
                hours: r.t[k] / 3600.0,
                capacity: f64::from(capacity.mean),
                sigma: f64::from(capacity.sigma),
                truth: capacity_ah[k] / new_ah,
                resistance: f64::from(health.resistance().mean),
                soc_error: f64::from(filter.soc()) - soc[k],
                modes: [modes.lithium_lost, modes.negative_left, modes.positive_left]
                    .map(f64::from),
            });
            if (capacity.mean * params.capacity_mah() / aged.capacity_mah() - 1.0).abs() > RENEW {
                aged = health.aged(params);
            }
        }
    }
    let n = points.len().max(1) as f64;
    let mean = |f: &dyn Fn(&LifePoint) -> f64| points.iter().map(f).sum::<f64>() / n;
    let error = |p: &LifePoint| 100.0 * (p.capacity - p.truth);
    let score = LifeScore {
        life: r.name.clone(),
        sensors: *sensors,
        rests: points.len(),
        end_pct: points.last().map_or(100.0, |p| 100.0 * p.truth),
        rmse_pct: mean(&|p| error(p).powi(2)).sqrt(),
        max_error_pct: points.iter().map(|p| error(p).abs()).fold(0.0, f64::max),
        within_bounds_pct: 100.0
            * mean(&|p| f64::from(u8::from((p.capacity - p.truth).abs() <= 1.96 * p.sigma))),
        half_width_pct: 196.0 * mean(&|p| p.sigma),
        soc_rmse_pct: 100.0 * mean(&|p| p.soc_error.powi(2)).sqrt(),
    };
    (score, points)
}
