//! One parameter file for all temperatures, from slow and dynamic tests.
//!
//! 1. The slow test nearest to 25 °C gives capacity and curve; the others how the curve moves with temperature.
//! 2. Their gaps between charge and discharge fall apart into hysteresis, the same at all temperatures, and slow loss, which
//!    follows Arrhenius' law: so even slow tests tell how resistances rise in the cold.
//! 3. Dynamic tests give the circuit, each at its temperature ([`crate::dynamic`]).
//! 4. Where there are slow tests but no dynamic ones, the nearest circuit is carried over by Arrhenius' law, with more doubt.

use crate::bpx::Bpx;
use crate::dynamic::{self, Circuit, Given, KELVIN, Run, along};
use crate::electrodes::{self, Negative};
use crate::recording::{Recording, Wrong};
use crate::slow::{POINTS, SlowTest, continue_flat, soc_of};
use helio_battery::cell::NAME_BYTES;
use helio_battery::{CellData, CellError, CellExtra, CellParams};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;

/// Out of the recordings it was fitted to a model is this much worse.
const OUTSIDE: f64 = 1.5;
/// Smallest error of any model [V].
const FLOOR_V: f64 = 0.003;
/// Activation of a resistance where nothing tells it [K]; 30 kJ/mol.
const ACTIVATION: f64 = 3600.0;
/// Most that a doubt of the resistances can be: what is more is no circuit.
const MOST_DOUBT: f64 = 0.5;
/// Most temperatures of a file.
const MOST: usize = helio_battery::cell::GRID_TEMPS;

/// What is told about a cell.
#[derive(Clone, Debug)]
pub struct About {
    /// Name of the cell.
    pub name: String,
    /// `nmc` or `lfp`; found from the curve when not told.
    pub chemistry: Option<String>,
    /// State of charge at the start of the dynamic tests where it is not the one at rest.
    pub start_soc: Option<f64>,
    /// Electrodes from a BPX file: in place of slow tests where there are none; else for negative electrode and slope over
    /// temperature.
    pub bpx: Option<Bpx>,
}

/// The result.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// Name of the cell.
    pub name: String,
    /// `nmc` or `lfp`.
    pub chemistry: String,
    /// Charge between full and empty [Ah].
    pub capacity_ah: f64,
    /// Charge out over charge in, where a test shows it.
    pub efficiency: Option<f64>,
    /// Open-circuit voltage at 25 °C [V].
    pub ocv: Vec<f64>,
    /// Its slope over temperature [V/K].
    pub ocv_per_k: Vec<f64>,
    /// States of charge of the grid.
    pub grid: Vec<f64>,
    /// Circuits, from cold to warm.
    pub circuits: Vec<Circuit>,
    /// e-folds of the hysteresis state per capacity.
    pub rate: f64,
    /// Negative electrode, for the state of health.
    pub negative: Option<Negative>,
    /// RMS of the model's error [V].
    pub sigma: f64,
    /// State of charge and what the circuit leaves over [V], of every dynamic test by its name.
    pub left: Vec<(String, Vec<(f64, f64)>)>,
    /// What was done.
    pub report: Report,
}

/// What a fit did, for people and as JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Cell.
    pub name: String,
    /// Chemistry.
    pub chemistry: String,
    /// Capacity [Ah].
    pub capacity_ah: f64,
    /// Coulombic efficiency, where a test shows it.
    pub coulombic_efficiency: Option<f64>,
    /// Activation of the resistances [K].
    pub activation_k: f64,
    /// Negative electrode, and its stoichiometry in the empty and in the full cell.
    pub negative_electrode: &'static str,
    /// As told.
    pub negative_window: [f64; 2],
    /// Slow tests.
    pub ocv_tests: Vec<OcvLine>,
    /// Dynamic tests.
    pub dynamic_tests: Vec<DynamicLine>,
    /// Circuits of the file.
    pub circuits: Vec<CircuitLine>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A slow test in a report.
#[derive(Clone, Debug, Serialize)]
pub struct OcvLine {
    /// File.
    pub file: String,
    /// [°C].
    pub temperature_c: f64,
    /// [Ah].
    pub capacity_ah: f64,
    /// Median of half the gap between charge and discharge [mV].
    pub half_gap_mv: Option<f64>,
}

/// A dynamic test in a report.
#[derive(Clone, Debug, Serialize)]
pub struct DynamicLine {
    /// File.
    pub file: String,
    /// Mean [°C].
    pub temperature_c: f64,
    /// State of charge at its start and end.
    pub soc_from: f64,
    /// At its end.
    pub soc_to: f64,
    /// What the model leaves over above 10 % state of charge [mV].
    pub residual_rms_mv: f64,
    /// At most.
    pub residual_max_mv: f64,
}

/// A circuit in a report.
#[derive(Clone, Debug, Serialize)]
pub struct CircuitLine {
    /// [°C].
    pub temperature_c: f64,
    /// Whether it was carried over from another temperature.
    pub carried_over: bool,
    /// Series resistance in the middle [mΩ].
    pub r0_mohm: f64,
    /// Everything in the middle at small currents [mΩ].
    pub total_mohm: f64,
    /// Time constants [s].
    pub tau_s: [f64; 3],
    /// Hysteresis in the middle [mV].
    pub hysteresis_mv: f64,
}

fn median(list: &[f64]) -> f64 {
    let mut list: Vec<f64> = list.iter().copied().filter(|x| x.is_finite()).collect();
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied().unwrap_or(0.0)
}

/// What the slow tests say together.
struct Slow {
    ocv: Vec<f64>,
    per_k: Vec<f64>,
    hysteresis: Vec<f64>,
    activation: Option<f64>,
    /// Slow loss by temperature [V], median over the middle.
    loss: Vec<(f64, f64)>,
}

impl Slow {
    fn new(tests: &[SlowTest], reference: &SlowTest) -> Self {
        // In the cold the slow loss is too large for a mean of both ways to be a curve at rest.
        let warm: Vec<&SlowTest> = tests
            .iter()
            .filter(|t| t.temp_c > -12.0 && (t.half_gap.is_some() == reference.half_gap.is_some()))
            .collect();
        let span = warm.iter().map(|t| t.temp_c).fold(f64::MIN, f64::max)
            - warm.iter().map(|t| t.temp_c).fold(f64::MAX, f64::min);
        let mut per_k = vec![0.0; POINTS];
        if warm.len() > 1 && span > 8.0 {
            for (k, slope) in per_k.iter_mut().enumerate() {
                let n = warm.len() as f64;
                let (mt, mv) = (
                    warm.iter().map(|w| w.temp_c).sum::<f64>() / n,
                    warm.iter().map(|w| w.ocv[k]).sum::<f64>() / n,
                );
                let (mut a, mut b) = (0.0, 0.0);
                for w in &warm {
                    a += (w.temp_c - mt) * (w.ocv[k] - mv);
                    b += (w.temp_c - mt).powi(2);
                }
                *slope = (a / b).clamp(-0.002, 0.002);
            }
            // Near the ends the slow curves end early, which is no entropy.
            for k in 0..POINTS {
                per_k[k] = per_k[k.clamp(8, 92)];
            }
        }
        let ocv: Vec<f64> = reference
            .ocv
            .iter()
            .zip(&per_k)
            .map(|(v, p)| v + (25.0 - reference.temp_c) * p)
            .collect();
        let both: Vec<(&SlowTest, &Vec<f64>)> = tests
            .iter()
            .filter_map(|t| Some((t, t.half_gap.as_ref()?)))
            .collect();
        let mut hysteresis = vec![0.0; POINTS];
        let mut activation = None;
        let range = both.iter().map(|b| b.0.temp_c).fold(f64::MIN, f64::max)
            - both.iter().map(|b| b.0.temp_c).fold(f64::MAX, f64::min);
        if both.len() > 1 && range > 8.0 {
            let mut best = (f64::INFINITY, 0.0);
            for step in 2..24 {
                let e = 400.0 * f64::from(step);
                let (m, left) = split(&both, e);
                if left < best.0 {
                    best = (left, e);
                    hysteresis = m;
                }
            }
            activation = Some(best.1);
        } else if let Some((_, gap)) = both.first() {
            // One temperature cannot tell hysteresis and loss apart.
            hysteresis = gap.iter().map(|g| 0.6 * g).collect();
        }
        for h in &mut hysteresis {
            *h = h.max(0.0);
        }
        let loss = if activation.is_some() {
            let middle = |gap: &[f64]| {
                let left: Vec<f64> = (15..86).map(|k| gap[k] - hysteresis[k]).collect();
                median(&left).max(1e-4)
            };
            both.iter()
                .map(|(t, gap)| (t.temp_c, middle(gap)))
                .collect()
        } else {
            Vec::new()
        };
        Self {
            ocv,
            per_k,
            hysteresis,
            activation,
            loss,
        }
    }

    /// How much larger resistances are at one temperature than at another: by the slow losses where both were measured.
    fn rise(&self, from_c: f64, to_c: f64, activation: f64) -> f64 {
        let by_law = (activation * (1.0 / (to_c + KELVIN) - 1.0 / (from_c + KELVIN))).exp();
        let near = |t: f64| {
            let nearest = self
                .loss
                .iter()
                .min_by(|a, b| (a.0 - t).abs().total_cmp(&(b.0 - t).abs()));
            nearest.filter(|l| (l.0 - t).abs() < 6.0).map(|l| l.1)
        };
        match (near(from_c), near(to_c)) {
            (Some(a), Some(b)) => b / a,
            _ => by_law,
        }
    }

    fn at(&self, soc: f64, temp_c: f64) -> f64 {
        let s = soc * (POINTS - 1) as f64;
        let k = s.clamp(0.0, (POINTS - 2) as f64) as usize;
        let f = s - k as f64;
        let mix = |l: &[f64]| l[k] + f * (l[k + 1] - l[k]);
        mix(&self.ocv) + (temp_c - 25.0) * mix(&self.per_k)
    }
}

/// Hysteresis and slow loss of gaps, for one activation; and the squared misfit.
fn split(both: &[(&SlowTest, &Vec<f64>)], activation: f64) -> (Vec<f64>, f64) {
    let mut hysteresis = vec![f64::NAN; POINTS];
    let mut left = 0.0;
    for k in (10..=90).step_by(2) {
        let (mut n, mut sx, mut sy, mut sxx, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (t, gap) in both {
            let x = (activation * (1.0 / (t.temp_c + KELVIN) - 1.0 / 298.15)).exp();
            // Relative misfit: the cold shall not decide alone.
            let w = 1.0 / gap[k].max(1e-4).powi(2);
            n += w;
            sx += w * x;
            sy += w * gap[k];
            sxx += w * x * x;
            sxy += w * x * gap[k];
        }
        let slope = ((n * sxy - sx * sy) / (n * sxx - sx * sx).max(1e-12)).max(0.0);
        let mut m = (sy - slope * sx) / n;
        let mut slope = slope;
        if m < 0.0 {
            m = 0.0;
            slope = sxy / sxx;
        }
        hysteresis[k] = m;
        for (t, gap) in both {
            let x = (activation * (1.0 / (t.temp_c + KELVIN) - 1.0 / 298.15)).exp();
            // Huber's loss, so that one odd temperature does not decide.
            let e = ((m + slope * x - gap[k]) / gap[k].max(1e-4)).abs();
            left += if e < 0.1 { e * e } else { 0.2 * e - 0.01 };
        }
    }
    continue_flat(&mut hysteresis);
    (hysteresis, left)
}

/// Fits everything. Slow tests as joined recordings; `progress` is told what is being done.
pub fn fit(
    about: &About,
    slow: &[Recording],
    dynamic: &[Recording],
    mut progress: impl FnMut(&str),
) -> Result<Fitted, Wrong> {
    let mut notes = Vec::new();
    let mut tests = Vec::new();
    for r in slow {
        progress(&format!("open-circuit curve from {}", r.name));
        tests.push(SlowTest::new(r)?);
    }
    if let (true, Some(bpx)) = (tests.is_empty(), &about.bpx) {
        notes.push("the curve at rest is that of the BPX file; capacity, too".into());
        tests.push(bpx.test.clone());
    }
    tests.sort_by(|a, b| a.temp_c.total_cmp(&b.temp_c));
    let Some(reference) = tests
        .iter()
        .min_by(|a, b| (a.temp_c - 25.0).abs().total_cmp(&(b.temp_c - 25.0).abs()))
        .cloned()
    else {
        return Err(Wrong::file(
            Path::new("--ocv"),
            "no slow test given; name at least one recording of a slow discharge, or a BPX file with --bpx",
        ));
    };
    let capacity_ah = reference.capacity_ah;
    if reference.current_a / capacity_ah > 0.15 {
        notes.push(format!(
            "the slow test {} is faster than C/6; the curve is not one at rest",
            reference.name
        ));
    }
    let mut slow = Slow::new(&tests, &reference);
    if let (Some(bpx), true) = (&about.bpx, slow.per_k.iter().all(|p| *p == 0.0)) {
        let moved = 25.0 - reference.temp_c;
        slow.per_k.clone_from(&bpx.per_k);
        for (v, p) in slow.ocv.iter_mut().zip(&bpx.per_k) {
            *v += moved * p;
        }
    }
    let efficiency = reference
        .efficiency
        .map(|e| e.min(1.0))
        .filter(|e| *e > 0.97);
    let eta = efficiency.unwrap_or(1.0);

    let mut runs: Vec<Run> = Vec::new();
    for r in dynamic {
        let soc: Vec<f64> = match &r.soc {
            Some(soc) => soc.clone(),
            None => {
                let start = about.start_soc.unwrap_or_else(|| start_of(r, &slow));
                r.out_ah
                    .iter()
                    .zip(&r.in_ah)
                    .map(|(out, into)| start - (out + (1.0 - eta) * into) / capacity_ah)
                    .collect()
            }
        };
        let run = Run::new(r, &soc);
        let low = run.soc.iter().copied().fold(1.0, f64::min);
        if low < -0.06 {
            notes.push(format!("{}: {:.0} % of the capacity below empty by its ampere-hours; is it the same cell, and full at the start?", r.name, -100.0 * low));
        }
        runs.push(run);
    }
    if runs.is_empty() {
        return Err(Wrong::file(
            Path::new("--dynamic"),
            "no dynamic test given; name at least one recording with a lively current, measured or simulated",
        ));
    }
    let grid = grid_for(&runs);
    let hysteresis: Vec<f64> = grid
        .iter()
        .map(|z| along_points(&slow.hysteresis, *z))
        .collect();
    // Groups of one temperature.
    runs.sort_by(|a, b| a.mean_temp().total_cmp(&b.mean_temp()));
    let mut groups: Vec<Vec<Run>> = Vec::new();
    for run in runs {
        match groups.last_mut() {
            Some(group) if (run.mean_temp() - group[0].mean_temp()).abs() < 4.0 => group.push(run),
            _ => groups.push(vec![run]),
        }
    }
    while groups.len() > MOST {
        let close = (1..groups.len()).min_by(|a, b| {
            let gap = |k: usize| groups[k][0].mean_temp() - groups[k - 1][0].mean_temp();
            gap(*a).total_cmp(&gap(*b))
        });
        let Some(k) = close else { break };
        let group = groups.remove(k);
        groups[k - 1].extend(group);
    }
    let ocv = |z: f64, t: f64| slow.at(z, t);
    let mut given = Given {
        ocv: &ocv,
        capacity_ah,
        grid: &grid,
        hysteresis: &hysteresis,
        rate: 15.0,
        activation: slow.activation.unwrap_or(ACTIVATION),
    };
    // The rate of the hysteresis where it is best seen: the warmest recordings near the reference.
    if median(&hysteresis) > 0.002 {
        let group = groups.iter().min_by(|a, b| {
            (a[0].mean_temp() - 25.0)
                .abs()
                .total_cmp(&(b[0].mean_temp() - 25.0).abs())
        });
        if let Some(group) = group {
            let mut best = (f64::INFINITY, given.rate);
            for rate in [6.0, 15.0, 40.0] {
                progress(&format!(
                    "hysteresis that turns over {:.0} % of the capacity",
                    100.0 / rate
                ));
                let c = dynamic::fit(
                    group,
                    &Given {
                        rate,
                        ..given.clone()
                    },
                );
                if c.rms < best.0 {
                    best = (c.rms, rate);
                }
            }
            given.rate = best.1;
        }
    }
    let mut circuits = Vec::new();
    for group in &groups {
        let named: Vec<&str> = group.iter().map(|r| r.name.as_str()).collect();
        progress(&format!(
            "circuit at {:.0} °C from {}",
            group[0].mean_temp(),
            named.join(", ")
        ));
        circuits.push(dynamic::fit(group, &given));
    }
    // With several temperatures the circuits themselves say how resistances rise in the cold.
    let total = |c: &Circuit| {
        let n = c.r0.len() / 2;
        c.r0[n] + c.rk[n] + c.r.iter().map(|r| r[n]).sum::<f64>()
    };
    let activation = match (circuits.first(), circuits.last()) {
        (Some(cold), Some(warm)) if warm.temp_c - cold.temp_c > 8.0 => {
            let x = 1.0 / (cold.temp_c + KELVIN) - 1.0 / (warm.temp_c + KELVIN);
            ((total(cold) / total(warm)).ln() / x).clamp(500.0, 9000.0)
        }
        _ => slow.activation.unwrap_or(ACTIVATION),
    };
    let mut lines = Vec::new();
    let mut left_over = Vec::new();
    for (group, circuit) in groups.iter().zip(&circuits) {
        for run in group {
            let left = dynamic::residual(run, &given, circuit);
            left_over.push((
                run.name.clone(),
                run.soc.iter().copied().zip(left.iter().copied()).collect(),
            ));
            let high: Vec<f64> = left
                .iter()
                .zip(&run.soc)
                .filter(|x| *x.1 > 0.1)
                .map(|x| 1e3 * x.0)
                .collect();
            lines.push(DynamicLine {
                file: run.name.clone(),
                temperature_c: run.mean_temp(),
                soc_from: run.soc.first().copied().unwrap_or(0.0),
                soc_to: run.soc.last().copied().unwrap_or(0.0),
                residual_rms_mv: (high.iter().map(|x| x * x).sum::<f64>()
                    / high.len().max(1) as f64)
                    .sqrt(),
                residual_max_mv: high.iter().fold(0.0, |m, x| x.abs().max(m)),
            });
        }
    }
    for (circuit, group) in circuits.iter_mut().zip(&groups) {
        // A current that hardly changes cannot tell the fast from the slow: what fits it says little about a drive.
        let dull = 1.0 - (liveliness(group) / 0.2).min(1.0);
        if let Some(seen) = left_out(group, &given) {
            // What fits its own recordings says little of the next one.
            circuit.doubt = seen.clamp(circuit.doubt, MOST_DOUBT);
        }
        circuit.doubt += 0.25 * dull;
        circuit.sigma.iter_mut().for_each(|s| *s *= 1.0 + dull);
        if dull > 0.5 {
            notes.push(format!("at {:.0} °C the current hardly changes; resistances are taken to be known to {:.0} % only", circuit.temp_c, 100.0 * circuit.doubt));
        }
        for s in &mut circuit.sigma {
            *s = (OUTSIDE * *s).max(FLOOR_V);
        }
    }
    let fitted_temps: Vec<f64> = circuits.iter().map(|c| c.temp_c).collect();
    // Where users will go though no recording went: the temperatures of the slow tests, and the usual range.
    let mut more: Vec<f64> = tests.iter().map(|t| t.temp_c).collect();
    more.extend([-20.0, 0.0, 45.0]);
    let mut wanted: Vec<f64> = Vec::new();
    for t in more {
        if fitted_temps
            .iter()
            .chain(&wanted)
            .all(|f| (f - t).abs() > 7.0)
            && wanted.len() + fitted_temps.len() < MOST
        {
            wanted.push(t);
        }
    }
    for temp_c in wanted {
        let inside = fitted_temps.first().is_some_and(|f| temp_c > *f)
            && fitted_temps.last().is_some_and(|l| temp_c < *l);
        if inside {
            continue; // Interpolated anyway.
        }
        let Some(near) = circuits
            .iter()
            .filter(|c| fitted_temps.contains(&c.temp_c))
            .min_by(|a, b| {
                (a.temp_c - temp_c)
                    .abs()
                    .total_cmp(&(b.temp_c - temp_c).abs())
            })
        else {
            continue;
        };
        let factor = slow.rise(near.temp_c, temp_c, activation);
        // Diffusion, which the slow pairs stand for, rises less than charge transfer and electrolyte.
        let slower = factor.powf(0.7);
        let mut c = near.clone();
        c.temp_c = temp_c;
        let [r1, r2, r3] = &mut c.r;
        for (list, factor) in [
            (&mut c.r0, factor),
            (&mut c.rk, factor),
            (r1, factor),
            (r2, slower),
            (r3, slower),
        ] {
            list.iter_mut().for_each(|r| *r *= factor);
        }
        c.ik /= factor;
        c.doubt = (c.doubt.powi(2) + (0.3 * factor.ln()).powi(2)).sqrt();
        c.sigma
            .iter_mut()
            .for_each(|s| *s *= 1.0 + 0.5 * factor.ln().abs());
        circuits.push(c);
    }
    circuits.sort_by(|a, b| a.temp_c.total_cmp(&b.temp_c));

    let (mut square, mut many) = (0.0, 0.0);
    for line in &lines {
        square += line.residual_rms_mv.powi(2);
        many += 1.0;
    }
    let sigma = OUTSIDE * (square / f64::max(many, 1.0)).sqrt() * 1e-3;
    let half = reference.ocv[POINTS / 2];
    let chemistry = about.chemistry.clone().unwrap_or_else(|| {
        if half < 3.45 {
            "lfp".into()
        } else {
            "nmc".into()
        }
    });
    let negative = match &about.bpx {
        Some(bpx) => bpx.negative,
        None => electrodes::find(&reference.ocv, &reference.measured),
    };
    let report = Report {
        name: about.name.clone(),
        chemistry: chemistry.clone(),
        capacity_ah,
        coulombic_efficiency: efficiency,
        activation_k: activation,
        negative_electrode: negative.name,
        negative_window: negative.window,
        ocv_tests: tests
            .iter()
            .map(|t| OcvLine {
                file: t.name.clone(),
                temperature_c: t.temp_c,
                capacity_ah: t.capacity_ah,
                half_gap_mv: t.half_gap.as_ref().map(|g| 1e3 * median(g)),
            })
            .collect(),
        dynamic_tests: lines,
        circuits: circuits
            .iter()
            .map(|c| {
                let n = c.r0.len() / 2;
                CircuitLine {
                    temperature_c: c.temp_c,
                    carried_over: !fitted_temps.contains(&c.temp_c),
                    r0_mohm: 1e3 * c.r0[n],
                    total_mohm: 1e3 * total(c),
                    tau_s: c.tau,
                    hysteresis_mv: 1e3 * c.hysteresis[n],
                }
            })
            .collect(),
        notes,
    };
    let mut ocv = slow.ocv.clone();
    for k in 1..POINTS {
        ocv[k] = ocv[k].max(ocv[k - 1]);
    }
    Ok(Fitted {
        name: about.name.clone(),
        chemistry,
        capacity_ah,
        efficiency,
        ocv,
        ocv_per_k: slow.per_k.clone(),
        grid: grid.clone(),
        circuits,
        rate: given.rate,
        negative: Some(negative),
        left: left_over,
        sigma: sigma.max(FLOOR_V),
        report,
    })
}

/// Of several recordings at one temperature: what a circuit fitted to the others gets wrong of each, as a share of the
/// overvoltage. `None` when there is but one.
fn left_out(group: &[Run], given: &Given<'_>) -> Option<f64> {
    if group.len() < 2 {
        return None;
    }
    let (mut wrong, mut over) = (0.0, 0.0);
    for k in 0..group.len() {
        let mut others = group.to_vec();
        let run = others.remove(k);
        let circuit = dynamic::fit(&others, given);
        let left = dynamic::residual(&run, given, &circuit);
        let (mut w, mut o, mut n) = (0.0, 0.0, 0.0);
        for (k, left) in left.iter().enumerate() {
            if run.soc[k] > 0.1 {
                w += left * left;
                o += (run.v[k] - left - (given.ocv)(run.soc[k], run.temp[k])).powi(2);
                n += 1.0;
            }
        }
        wrong += w / f64::max(n, 1.0);
        over += o / f64::max(n, 1.0);
    }
    (over > 0.0).then(|| (wrong / over).sqrt())
}

fn along_points(values: &[f64], z: f64) -> f64 {
    let grid: Vec<f64> = (0..POINTS).map(soc_of).collect();
    along(&grid, values, z)
}

/// State of charge at the start of a recording, from the voltage at rest.
fn start_of(r: &Recording, slow: &Slow) -> f64 {
    let most = r.i.iter().fold(0.0f64, |m, i| m.max(i.abs()));
    let rest =
        r.i.iter()
            .position(|i| i.abs() > 0.02 * most)
            .unwrap_or(1)
            .max(1);
    let (v, temp) = (r.v[rest - 1], r.temp[rest - 1]);
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let mid = 0.5 * (low + high);
        if slow.at(mid, temp) < v {
            low = mid
        } else {
            high = mid
        }
    }
    let soc = 0.5 * (low + high);
    // A full cell relaxes below the voltage at which charging ended.
    if soc > 0.97 { 1.0 } else { soc }
}

/// Share of the current's square that is faster than about a minute.
fn liveliness(runs: &[Run]) -> f64 {
    let (mut fast, mut all) = (0.0, 1e-12);
    for run in runs {
        let mut slow = run.i.first().copied().unwrap_or(0.0);
        for (i, dt) in run.i.iter().zip(&run.dt) {
            slow += (1.0 - (-dt / 60.0).exp()) * (i - slow);
            fast += dt * (i - slow).powi(2);
            all += dt * i * i;
        }
    }
    fast / all
}

/// Knots where the recordings are.
fn grid_for(runs: &[Run]) -> Vec<f64> {
    let low = runs
        .iter()
        .flat_map(|r| &r.soc)
        .copied()
        .fold(1.0, f64::min);
    let high = runs
        .iter()
        .flat_map(|r| &r.soc)
        .copied()
        .fold(0.0, f64::max);
    let all = [
        0.0, 0.04, 0.08, 0.12, 0.17, 0.23, 0.3, 0.38, 0.46, 0.54, 0.62, 0.7, 0.78, 0.86, 0.93, 1.0,
    ];
    let inside: Vec<f64> = all
        .into_iter()
        .filter(|z| *z > low - 0.05 && *z < high + 0.05)
        .collect();
    if inside.len() < 2 {
        vec![0.25, 0.75]
    } else {
        inside
    }
}

impl Fitted {
    /// The parameters as the filter takes them; the same as from the file, but for its rounding.
    pub fn params(&self) -> Result<CellParams, CellError> {
        let n = self.grid.len();
        let flat = |get: &dyn Fn(&Circuit) -> Vec<f64>| -> Vec<f32> {
            self.circuits
                .iter()
                .flat_map(get)
                .map(|x| x as f32)
                .collect()
        };
        let mv = |l: &[f64]| l.iter().map(|v| 1e3 * v).collect::<Vec<f64>>();
        let single = |l: &[f64]| -> Vec<f32> { l.iter().map(|x| *x as f32).collect() };
        let name: String = self.name.chars().take(NAME_BYTES / 4).collect();
        let efficiency = self.efficiency.unwrap_or(1.0) as f32;
        let data = CellData {
            name: &name,
            capacity_mah: 1e3 * self.capacity_ah as f32,
            ocv_mv: &single(&mv(&self.ocv)),
            ocv_mv_per_k: &single(&mv(&self.ocv_per_k)),
            temps_c: &single(&self.circuits.iter().map(|c| c.temp_c).collect::<Vec<_>>()),
            soc_grid: &single(&self.grid),
            r0_mohm: &flat(&|c| mv(&c.r0)),
            r1_mohm: &flat(&|c| mv(&c.r[0])),
            tau1_s: &flat(&|c| vec![c.tau[0]; n]),
            r2_mohm: &flat(&|c| mv(&c.r[1])),
            tau2_s: &flat(&|c| vec![c.tau[1]; n]),
            hysteresis_mv: &flat(&|c| mv(&c.hysteresis)),
            hysteresis_rate: self.rate as f32,
            sigma_mv: 1e3 * self.sigma as f32,
        };
        CellParams::new(&data)?.with_extra(&CellExtra {
            rk_mohm: &flat(&|c| mv(&c.rk)),
            ik_ma: &flat(&|c| vec![1e3 * c.ik; n]),
            r3_mohm: &flat(&|c| mv(&c.r[2])),
            tau3_s: &flat(&|c| vec![c.tau[2]; n]),
            jump_mv: &flat(&|c| vec![1e3 * c.jump; n]),
            shift_mv: &flat(&|c| mv(&c.shift)),
            sigma_mv: &flat(&|c| mv(&c.sigma)),
            resistance_doubt: &flat(&|c| vec![c.doubt; n]),
            coulombic_efficiency: efficiency,
            negative_mv: &self.negative.map_or(vec![], |n| n.mv.to_vec()),
            negative_window: &self
                .negative
                .map_or(vec![], |n| n.window.map(|x| x as f32).to_vec()),
        })
    }

    /// The parameter file.
    pub fn to_toml(&self, origin: &str) -> String {
        let mut t = String::new();
        for line in origin.lines() {
            let _ = writeln!(t, "# {line}");
        }
        let _ = writeln!(t, "name = {:?}", self.name);
        let _ = writeln!(t, "chemistry = {:?}", self.chemistry);
        let _ = writeln!(t, "capacity_mah = {:.1}", 1e3 * self.capacity_ah);
        if let Some(e) = self.efficiency {
            let _ = writeln!(t, "coulombic_efficiency = {e:.5}");
        }
        let list = |values: &[f64], digits: usize| -> String {
            let rows: Vec<String> = values
                .chunks(10)
                .map(|row| {
                    row.iter()
                        .map(|v| format!("{v:.digits$}"))
                        .collect::<Vec<_>>()
                        .join(", ")
                })
                .collect();
            format!("[\n  {},\n]", rows.join(",\n  "))
        };
        let mv = |l: &[f64]| l.iter().map(|v| 1e3 * v).collect::<Vec<f64>>();
        let _ = writeln!(t, "\nocv_mv = {}", list(&mv(&self.ocv), 2));
        if self.ocv_per_k.iter().any(|p| *p != 0.0) {
            let _ = writeln!(t, "ocv_mv_per_k = {}", list(&mv(&self.ocv_per_k), 4));
        }
        let row = |values: &[f64], digits: usize| {
            values
                .iter()
                .map(|v| format!("{v:.digits$}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let temps: Vec<f64> = self.circuits.iter().map(|c| c.temp_c).collect();
        let _ = writeln!(
            t,
            "\n# One row per temperature, one column per state of charge."
        );
        let _ = writeln!(t, "temps_c = [{}]", row(&temps, 1));
        let _ = writeln!(t, "soc_grid = [{}]", row(&self.grid, 2));
        let n = self.grid.len();
        let mut table = |key: &str, digits: usize, get: &dyn Fn(&Circuit) -> Vec<f64>| {
            let rows: Vec<String> = self
                .circuits
                .iter()
                .map(|c| format!("  [{}],", row(&get(c), digits)))
                .collect();
            let _ = writeln!(t, "{key} = [\n{}\n]", rows.join("\n"));
        };
        table("r0_mohm", 4, &|c| mv(&c.r0));
        table("r1_mohm", 4, &|c| mv(&c.r[0]));
        table("tau1_s", 2, &|c| vec![c.tau[0]; n]);
        table("r2_mohm", 4, &|c| mv(&c.r[1]));
        table("tau2_s", 1, &|c| vec![c.tau[1]; n]);
        table("r3_mohm", 4, &|c| mv(&c.r[2]));
        table("tau3_s", 0, &|c| vec![c.tau[2]; n]);
        table("rk_mohm", 4, &|c| mv(&c.rk));
        table("ik_ma", 1, &|c| vec![1e3 * c.ik; n]);
        table("hysteresis_mv", 2, &|c| mv(&c.hysteresis));
        table("jump_mv", 2, &|c| vec![1e3 * c.jump; n]);
        table("shift_mv", 2, &|c| mv(&c.shift));
        table("resistance_doubt", 3, &|c| vec![c.doubt; n]);
        table("sigma_mv", 1, &|c| mv(&c.sigma));
        let _ = writeln!(t, "hysteresis_rate = {}", self.rate);
        if let Some(negative) = &self.negative {
            let mv: Vec<f64> = negative.mv.iter().map(|v| f64::from(*v)).collect();
            let _ = writeln!(
                t,
                "\n# Negative electrode over its stoichiometry ({}), for the state of health.",
                negative.name
            );
            let _ = writeln!(t, "negative_mv = {}", list(&mv, 1));
            let _ = writeln!(t, "negative_window = [{}]", row(&negative.window, 4));
        }
        t
    }
}

impl Report {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut t = String::new();
        let _ = writeln!(
            t,
            "{} ({}): {:.4} Ah",
            self.name, self.chemistry, self.capacity_ah
        );
        if let Some(e) = self.coulombic_efficiency {
            let _ = writeln!(t, "coulombic efficiency {e:.4}");
        }
        let _ = writeln!(
            t,
            "resistances rise in the cold by exp({:.0} K / T)",
            self.activation_k
        );
        let [empty, full] = self.negative_window;
        let _ = writeln!(
            t,
            "negative electrode: {}, {empty:.3} to {full:.3} of it used",
            self.negative_electrode
        );
        let _ = writeln!(
            t,
            "\nslow tests                                   °C     Ah   half gap mV"
        );
        for l in &self.ocv_tests {
            let gap = l.half_gap_mv.map_or("-".into(), |g| format!("{g:.1}"));
            let _ = writeln!(
                t,
                "  {:<40} {:>4.0} {:>6.3} {gap:>8}",
                short(&l.file, 40),
                l.temperature_c,
                l.capacity_ah
            );
        }
        let _ = writeln!(
            t,
            "\ndynamic tests                                °C  soc       left over mV: RMS   max"
        );
        for l in &self.dynamic_tests {
            let _ = writeln!(
                t,
                "  {:<40} {:>4.0}  {:.2}..{:.2} {:>13.1} {:>8.1}",
                short(&l.file, 40),
                l.temperature_c,
                l.soc_from,
                l.soc_to,
                l.residual_rms_mv,
                l.residual_max_mv
            );
        }
        let _ = writeln!(
            t,
            "\ncircuits at half charge   °C   R0 mOhm   all   tau s              hysteresis mV"
        );
        for c in &self.circuits {
            let how = if c.carried_over {
                "carried over"
            } else {
                "fitted"
            };
            let _ = writeln!(
                t,
                "  {how:<22} {:>4.0} {:>9.2} {:>7.2}   {:.1}, {:.0}, {:.0}   {:>8.1}",
                c.temperature_c,
                c.r0_mohm,
                c.total_mohm,
                c.tau_s[0],
                c.tau_s[1],
                c.tau_s[2],
                c.hysteresis_mv
            );
        }
        for note in &self.notes {
            let _ = writeln!(t, "note: {note}");
        }
        t
    }
}

fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.into()
    } else {
        text.chars().take(most - 1).chain(['…']).collect()
    }
}
