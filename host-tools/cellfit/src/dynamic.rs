//! The circuit at one temperature from recordings with a lively current.
//!
//! ```text
//! v - OCV(z, T) = M(z) h + J s + D(z) - R0(z) i - Rk(z) Ik asinh(i / Ik) - v1 - v2 - v3,   vk' = (Rk(z) i - vk) / tauk
//! ```
//!
//! Given `tau1..3`, `Ik` and the rate of `h`, the right side is linear in everything else, so those few numbers are searched
//! and the many follow by linear least squares with resistances and hysteresis held at zero or above. The search starts
//! anywhere sensible and cannot end in a bad corner of fifty dimensions. Neighbours in state of charge are made alike where
//! the recording says little.

use crate::lsq::Normal;
use crate::recording::Recording;

/// Pairs of resistance and capacitance.
pub const PAIRS: usize = 3;
/// What the filter reckons with by itself is no part of the model's sigma.
const ALONG: f64 = helio_battery::soc::CURVE as f64;
/// A cell's temperature does not jump by so much from row to row unless it was moved [K].
const CHAMBER_K: f64 = 4.0;
/// Most that a circuit moves the curve by [V].
const MOST_SHIFT_V: f64 = 0.4;
/// 0 °C in K.
pub const KELVIN: f64 = 273.15;

/// A recording made ready: thinned to about a second, state of charge known.
#[derive(Clone, Debug)]
pub struct Run {
    /// Name of its file.
    pub name: String,
    /// Seconds since the row before.
    pub dt: Vec<f64>,
    /// Current now [A].
    pub i: Vec<f64>,
    /// Mean current since the row before [A].
    pub mean_i: Vec<f64>,
    /// Voltage [V].
    pub v: Vec<f64>,
    /// Temperature [°C].
    pub temp: Vec<f64>,
    /// State of charge.
    pub soc: Vec<f64>,
}

impl Run {
    /// Thins a recording; `soc` has one value per row of it.
    pub fn new(r: &Recording, soc: &[f64]) -> Self {
        let mut run = Self {
            name: r.name.clone(),
            dt: vec![],
            i: vec![],
            mean_i: vec![],
            v: vec![],
            temp: vec![],
            soc: vec![],
        };
        let (mut last, mut charge) = (0, 0.0);
        for k in 0..r.t.len() {
            if k > 0 {
                charge += 0.5 * (r.i[k] + r.i[k - 1]) * (r.t[k] - r.t[k - 1]);
            }
            let dt = r.t[k] - r.t[last];
            if k > 0 && dt < 0.9 {
                continue;
            }
            run.dt.push(dt);
            run.mean_i.push(if dt > 0.0 { charge / dt } else { r.i[k] });
            run.i.push(r.i[k]);
            run.v.push(r.v[k]);
            run.temp.push(r.temp[k]);
            run.soc.push(soc[k]);
            (last, charge) = (k, 0.0);
        }
        run
    }

    /// Mean temperature [°C], until the cell is carried into another chamber: its temperature jumps from one row to the next.
    pub fn mean_temp(&self) -> f64 {
        let jump = |pair: &[f64]| (pair[1] - pair[0]).abs() > CHAMBER_K;
        let many = match self.temp.windows(2).position(jump) {
            Some(last) => last + 1,
            None => self.temp.len(),
        };
        self.temp[..many].iter().sum::<f64>() / many.max(1) as f64
    }
}

/// What is given to a fit.
#[derive(Clone)]
pub struct Given<'a> {
    /// Open-circuit voltage [V] by state of charge and temperature.
    pub ocv: &'a dyn Fn(f64, f64) -> f64,
    /// Capacity [Ah].
    pub capacity_ah: f64,
    /// States of charge of the grid.
    pub grid: &'a [f64],
    /// What the slow test says of the hysteresis at each of them [V].
    pub hysteresis: &'a [f64],
    /// Share of `h` that a full capacity moves, as e-folds.
    pub rate: f64,
    /// Activation of the resistances [K], to make up for warming during the recording.
    pub activation: f64,
}

/// The circuit at one temperature; lists have one value per state of charge of the grid; Ω, s, V, A.
#[derive(Clone, Debug)]
pub struct Circuit {
    /// Temperature for which it holds [°C].
    pub temp_c: f64,
    /// Series resistance.
    pub r0: Vec<f64>,
    /// Charge transfer at small currents.
    pub rk: Vec<f64>,
    /// Current at which it saturates.
    pub ik: f64,
    /// Resistances of the pairs.
    pub r: [Vec<f64>; PAIRS],
    /// Their time constants.
    pub tau: [f64; PAIRS],
    /// Hysteresis.
    pub hysteresis: Vec<f64>,
    /// Hysteresis at once.
    pub jump: f64,
    /// What the dynamic recordings show beyond the slow curve.
    pub shift: Vec<f64>,
    /// RMS of what is left over beyond [`helio_battery::soc::CURVE`], by state of charge.
    pub sigma: Vec<f64>,
    /// Relative sigma of the resistances.
    pub doubt: f64,
    /// RMS of what is left over, all in all above 8 % state of charge.
    pub rms: f64,
}

/// Weights of neighbours: `(index, weight of index, weight of index + 1)`.
fn place(grid: &[f64], z: f64) -> (usize, f64) {
    let k = grid.partition_point(|g| *g <= z);
    if k == 0 {
        return (0, 0.0);
    }
    if k == grid.len() {
        return (k - 1, 0.0);
    }
    (k - 1, (z - grid[k - 1]) / (grid[k] - grid[k - 1]))
}

/// Linear in the grid, the edge beyond.
pub fn along(grid: &[f64], values: &[f64], z: f64) -> f64 {
    let (k, w) = place(grid, z);
    let a = values[k];
    a + w * (values.get(k + 1).copied().unwrap_or(a) - a)
}

#[derive(Clone, Copy, Debug)]
struct Nonlinear {
    tau: [f64; PAIRS],
    ik: f64,
    rate: f64,
}

/// How many unknowns stand for what, in order: R0, Rk, R1..R3, M, D (each one per grid point), J.
fn layout(n: usize) -> usize {
    n * (2 + PAIRS + 2) + 1
}

/// Calls `take(row, target, weight)` for every row of a run.
fn rows(
    run: &Run,
    given: &Given<'_>,
    temp0: f64,
    x: &Nonlinear,
    every: usize,
    mut take: impl FnMut(usize, &[f64], f64, f64),
) {
    let n = given.grid.len();
    let mut state = vec![0.0; PAIRS * n];
    let (mut h, mut s) = (0.0, 0.0);
    let mut row = vec![0.0; layout(n)];
    for k in 0..run.v.len() {
        let (z, temp) = (run.soc[k], run.temp[k]);
        let (at, w) = place(given.grid, z);
        let hats = [(at, 1.0 - w), ((at + 1).min(n - 1), w)];
        let heat = (given.activation * (1.0 / (temp + KELVIN) - 1.0 / (temp0 + KELVIN))).exp();
        let i = run.i[k] * heat;
        if k > 0 {
            let dt = run.dt[k];
            let mean = run.mean_i[k] * heat;
            for (pair, tau) in x.tau.iter().enumerate() {
                let fade = -(-dt / tau).exp_m1();
                let states = &mut state[pair * n..(pair + 1) * n];
                states.iter_mut().for_each(|v| *v -= fade * *v);
                for (at, w) in hats {
                    states[at] += fade * w * mean;
                }
            }
            let moved = run.mean_i[k] * dt / 3600.0 / given.capacity_ah;
            h -= -(-x.rate * moved.abs()).exp_m1() * (moved.signum() + h);
        }
        if run.i[k].abs() > 0.01 * given.capacity_ah {
            s = -run.i[k].signum();
        }
        if k % every != 0 || !(-0.01..=1.01).contains(&z) {
            continue;
        }
        row.iter_mut().for_each(|r| *r = 0.0);
        let saturated = heat * x.ik * (run.i[k] / x.ik).asinh();
        for (at, w) in hats {
            row[at] -= w * i;
            row[n + at] -= w * saturated;
            row[(2 + PAIRS) * n + at] += w * h;
            row[(3 + PAIRS) * n + at] += w;
        }
        for (to, from) in row[2 * n..(2 + PAIRS) * n].iter_mut().zip(&state) {
            *to = -from;
        }
        if let Some(last) = row.last_mut() {
            *last = s;
        }
        let weight = if z < 0.08 { 0.2 } else { 1.0 };
        take(k, &row, run.v[k] - (given.ocv)(z, temp), weight);
    }
}

fn solve(runs: &[Run], given: &Given<'_>, temp0: f64, x: &Nonlinear) -> (Vec<f64>, f64) {
    let n = given.grid.len();
    let many = layout(n);
    let mut normal = Normal::new(many);
    let (mut weight, mut square) = (0.0, 0.0);
    for run in runs {
        let every = (run.v.len() / 5000).max(1);
        rows(run, given, temp0, x, every, |k, row, y, w| {
            normal.add(row, y, w);
            weight += w;
            square += w * run.i[k] * run.i[k];
        });
    }
    let rms = (square / f64::max(weight, 1.0)).sqrt().max(1e-6);
    let mut like = |a: usize, b: Option<usize>, size: f64, y: f64, share: f64| {
        let mut row = vec![0.0; many];
        row[a] = size;
        if let Some(b) = b {
            row[b] = -size;
        }
        normal.add(&row, y, share * weight);
    };
    for block in 0..2 + PAIRS {
        for k in 0..n {
            // Of neighbours 10 % apart; closer ones are more alike.
            if k + 1 < n {
                let gap = (given.grid[k + 1] - given.grid[k]) / 0.1;
                like(block * n + k, Some(block * n + k + 1), rms, 0.0, 2e-3 / gap);
            }
            like(block * n + k, None, rms, 0.0, 1e-5);
        }
    }
    for k in 0..n {
        let m = (2 + PAIRS) * n + k;
        let d = (3 + PAIRS) * n + k;
        like(m, None, 1.0, given.hysteresis[k], 0.05);
        like(d, None, 1.0, 0.0, 0.01);
        if k + 1 < n {
            let gap = (given.grid[k + 1] - given.grid[k]) / 0.1;
            like(m, Some(m + 1), 1.0, 0.0, 0.02 / gap);
            like(d, Some(d + 1), 1.0, 0.0, 0.01 / gap);
        }
    }
    like(many - 1, None, 1.0, 0.0, 0.05);
    let mut signed = vec![false; many];
    signed[(3 + PAIRS) * n..(4 + PAIRS) * n]
        .iter_mut()
        .for_each(|s| *s = true);
    normal.solve(&signed)
}

/// Fits the circuit at one temperature to all runs there.
pub fn fit(runs: &[Run], given: &Given<'_>) -> Circuit {
    let temp0 = runs.iter().map(Run::mean_temp).sum::<f64>() / runs.len().max(1) as f64;
    let mut steps: Vec<f64> = runs
        .iter()
        .flat_map(|r| r.dt.iter().skip(1).copied())
        .collect();
    steps.sort_by(f64::total_cmp);
    let step = steps.get(steps.len() / 2).copied().unwrap_or(1.0);
    let longest = runs
        .iter()
        .map(|r| r.dt.iter().sum::<f64>())
        .fold(0.0, f64::max);
    // What the sampling and the length of the recording can show at all.
    let floor = (2.0 * step).max(1.0);
    let ceiling = (0.4 * longest).clamp(20.0 * floor, 3_000.0);
    let bounds = [
        (floor, 0.1 * ceiling),
        (3.0 * floor, 0.4 * ceiling),
        (10.0 * floor, ceiling),
    ];
    let cold = (given.activation * (1.0 / (temp0 + KELVIN) - 1.0 / 298.15)).exp();
    let mut x = Nonlinear {
        tau: [10.0, 100.0, 1000.0],
        ik: given.capacity_ah / cold,
        rate: given.rate,
    };
    for (tau, (low, high)) in x.tau.iter_mut().zip(bounds) {
        *tau = tau.clamp(low, high);
    }
    let ik_bounds = (0.02 * given.capacity_ah, 20.0 * given.capacity_ah);
    let mut best = solve(runs, given, temp0, &x);
    let mut stride = 3.0f64;
    while stride > 1.25 {
        let mut better = false;
        for coordinate in 0..PAIRS + 1 {
            for factor in [stride, 1.0 / stride] {
                let mut y = x;
                if coordinate < PAIRS {
                    y.tau[coordinate] = (y.tau[coordinate] * factor)
                        .clamp(bounds[coordinate].0, bounds[coordinate].1);
                } else {
                    y.ik = (y.ik * factor).clamp(ik_bounds.0, ik_bounds.1);
                }
                let apart = y.tau.windows(2).all(|t| t[1] > 2.0 * t[0]);
                if !apart || (y.tau == x.tau && y.ik == x.ik) {
                    continue;
                }
                let found = solve(runs, given, temp0, &y);
                if found.1 < 0.999 * best.1 {
                    (best, x, better) = (found, y, true);
                    break;
                }
            }
        }
        if !better {
            stride = stride.sqrt();
        }
    }
    let n = given.grid.len();
    let part = |block: usize| best.0[block * n..(block + 1) * n].to_vec();
    let mut circuit = Circuit {
        temp_c: temp0,
        r0: part(0).iter().map(|r| r.max(1e-6)).collect(),
        rk: part(1),
        ik: x.ik,
        r: [part(2), part(3), part(4)],
        tau: x.tau,
        hysteresis: part(5),
        // Where a recording ends far below empty; a file holds no more.
        shift: part(6)
            .iter()
            .map(|d| d.clamp(-MOST_SHIFT_V, MOST_SHIFT_V))
            .collect(),
        jump: best.0.last().copied().unwrap_or(0.0),
        sigma: vec![0.0; n],
        doubt: 0.08,
        rms: 0.0,
    };
    let (mut square, mut count, mut all, mut many) = (vec![0.0; n], vec![1e-9; n], 0.0, 1e-9);
    for run in runs {
        rows(run, given, temp0, &x, 1, |k, row, y, _| {
            let left = y - row.iter().zip(&best.0).map(|(a, b)| a * b).sum::<f64>();
            let (at, w) = place(given.grid, run.soc[k]);
            let (low, high) = ((run.soc[k] - ALONG).max(0.0), (run.soc[k] + ALONG).min(1.0));
            let axis = 0.5 * ((given.ocv)(high, run.temp[k]) - (given.ocv)(low, run.temp[k])).abs();
            let left = (left * left - axis * axis).max(0.0).sqrt();
            square[at] += (1.0 - w) * left * left;
            count[at] += 1.0 - w;
            if at + 1 < n {
                square[at + 1] += w * left * left;
                count[at + 1] += w;
            }
            if run.soc[k] > 0.08 {
                all += left * left;
                many += 1.0;
            }
        });
    }
    circuit.rms = f64::sqrt(all / many);
    for k in 0..n {
        circuit.sigma[k] = if count[k] > 30.0 {
            f64::sqrt(square[k] / count[k])
        } else {
            f64::NAN
        };
    }
    crate::slow::continue_flat(&mut circuit.sigma);
    circuit
}

/// Measured less modelled voltage of every row of a run [V], by a circuit fitted to it or to another.
pub fn residual(run: &Run, given: &Given<'_>, circuit: &Circuit) -> Vec<f64> {
    let x = Nonlinear {
        tau: circuit.tau,
        ik: circuit.ik,
        rate: given.rate,
    };
    let mut unknowns = circuit.r0.clone();
    unknowns.extend(&circuit.rk);
    circuit.r.iter().for_each(|r| unknowns.extend(r));
    unknowns.extend(&circuit.hysteresis);
    unknowns.extend(&circuit.shift);
    unknowns.push(circuit.jump);
    let mut left = Vec::new();
    rows(run, given, circuit.temp_c, &x, 1, |_, row, y, _| {
        left.push(y - row.iter().zip(&unknowns).map(|(a, b)| a * b).sum::<f64>());
    });
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_has_the_temperature_of_its_first_chamber() {
        let run = Run {
            name: "x".into(),
            dt: vec![0.0, 1.0, 1.0, 60.0, 1.0],
            i: vec![1.0; 5],
            mean_i: vec![1.0; 5],
            v: vec![3.3; 5],
            temp: vec![-25.0, -24.5, -24.0, 25.0, 25.0],
            soc: vec![0.9, 0.8, 0.7, 0.6, 0.5],
        };
        assert!((run.mean_temp() + 24.5).abs() < 1e-9);
        let warms_itself = Run {
            temp: vec![-25.0, -22.0, -19.0, -16.0, -13.0],
            ..run
        };
        assert!((warms_itself.mean_temp() + 19.0).abs() < 1e-9);
    }
}
