//! Open-circuit curve, capacity and coulombic efficiency from a slow test (C/20 or C/30).
//!
//! ```text
//!  full --- slow discharge ---> empty [--- rest, sweep to truly empty ---] --- slow charge ---> full [--- sweep ---]
//! ```
//!
//! Only the discharge is needed. With both ways the curve is their mean and half their gap is hysteresis and slow loss
//! (Plett, *Battery Management Systems*, vol. 1, 2015, ch. 2.10). The test may stand in parts, see
//! [`crate::recording::join`]; the parts at 25 °C of a test in the cold find the true ends.

use crate::recording::{Recording, Wrong};
use std::path::Path;

/// Points of a curve: state of charge 0.00, 0.01 .. 1.00.
pub const POINTS: usize = 101;

/// What a slow test at one temperature tells.
#[derive(Clone, Debug)]
pub struct SlowTest {
    /// Name of its file.
    pub name: String,
    /// Temperature of the slow part [°C].
    pub temp_c: f64,
    /// Charge between state of charge 1 and 0 [Ah].
    pub capacity_ah: f64,
    /// Charge out over charge in, where the test ends as full as it began.
    pub efficiency: Option<f64>,
    /// Current of the discharge [A].
    pub current_a: f64,
    /// Open-circuit voltage at each point [V].
    pub ocv: Vec<f64>,
    /// Half the gap between charge and discharge at each point [V]; `None` without a charge.
    pub half_gap: Option<Vec<f64>>,
    /// Points that were measured, not continued.
    pub measured: Vec<bool>,
}

/// State of charge of a curve's point.
pub fn soc_of(point: usize) -> f64 {
    point as f64 / (POINTS - 1) as f64
}

/// A stretch of steady current.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    from: usize,
    to: usize,
    charge_ah: f64,
}

fn longest(r: &Recording, sign: f64) -> Option<Stretch> {
    let most = r.i.iter().fold(0.0f64, |m, i| m.max(i.abs()));
    let (mut best, mut now): (Option<Stretch>, Option<Stretch>) = (None, None);
    for k in 1..r.t.len() {
        let steady = sign * r.i[k] > 1e-3 * most
            && (r.i[k] - r.i[k - 1]).abs() < 0.1 * r.i[k].abs()
            && r.t[k] > r.t[k - 1];
        if !steady {
            now = None;
            continue;
        }
        let mut stretch = now.unwrap_or(Stretch {
            from: k - 1,
            to: k,
            charge_ah: 0.0,
        });
        stretch.to = k;
        stretch.charge_ah = (r.out_ah[k] - r.out_ah[stretch.from]).abs();
        now = Some(stretch);
        if best.is_none_or(|b| stretch.charge_ah > b.charge_ah) {
            best = now;
        }
    }
    best
}

impl SlowTest {
    /// Takes a recording (parts joined) apart.
    pub fn new(r: &Recording) -> Result<Self, Wrong> {
        let wrong = |what: &str| Wrong::file(Path::new(&r.name), what);
        let Some(out) = longest(r, 1.0) else {
            return Err(wrong(
                "there is no steady discharge; an OCV test begins full and is discharged slowly",
            ));
        };
        let back =
            longest(r, -1.0).filter(|b| b.from > out.to && b.charge_ah > 0.5 * out.charge_ah);
        let full_ah = r.out_ah[out.from];
        let empty_ah = r
            .out_ah
            .iter()
            .skip(out.to)
            .take(back.map_or(r.t.len(), |b| b.from) - out.to)
            .copied()
            .fold(r.out_ah[out.to], f64::max);
        let middle = (out.from + out.to) / 2;
        let current_a = r.i[middle];
        let mut capacity_ah = empty_ah - full_ah;
        // The test's end counts as full when it reached the voltage at which it was taken to be full.
        let last = r.t.len() - 1;
        let v_full = r.v[..=out.from].iter().copied().fold(0.0, f64::max);
        let in_ah = |a: usize, b: usize| r.in_ah[b] - r.in_ah[a];
        let efficiency = back
            .filter(|b| {
                b.to < last && r.v[b.to..].iter().copied().fold(0.0, f64::max) > v_full - 0.005
            })
            .map(|_| {
                let into = in_ah(out.from, last);
                (r.out_ah[last] - full_ah + into) / into
            });
        let efficiency = efficiency.filter(|e| (0.9..1.05).contains(e));
        let eta = efficiency.unwrap_or(1.0).min(1.0);
        let soc: Vec<f64> = if let Some(soc) = &r.soc {
            let dz = soc[out.from] - soc[out.to];
            if dz < 0.3 {
                return Err(wrong(
                    "the soc column falls by less than 0.3 over the slow discharge; check it, or leave soc out of --columns",
                ));
            }
            capacity_ah = out.charge_ah / dz;
            soc.clone()
        } else {
            let back_from = back.map_or(usize::MAX, |b| b.from);
            (0..r.t.len())
                .map(|k| {
                    if k < back_from {
                        1.0 - (r.out_ah[k] - full_ah) / capacity_ah
                    } else {
                        (empty_ah - r.out_ah[back_from] + eta * (r.out_ah[back_from] - r.out_ah[k]))
                            / capacity_ah
                    }
                })
                .collect()
        };
        if capacity_ah < 0.01 {
            return Err(wrong(
                "less than 10 mAh were discharged; an OCV test goes from full to empty",
            ));
        }
        let rate = current_a / capacity_ah;
        let branch = |s: Stretch| -> Vec<(f64, f64)> {
            let mut b: Vec<(f64, f64)> = (s.from + 1..=s.to).map(|k| (soc[k], r.v[k])).collect();
            b.sort_by(|a, b| a.0.total_cmp(&b.0));
            b
        };
        let at =
            |b: &[(f64, f64)]| -> Vec<f64> { (0..POINTS).map(|k| lookup(b, soc_of(k))).collect() };
        let down = at(&branch(out));
        let up = back.map(|b| at(&branch(b)));
        // A single way: the loss is at least what the first step shows.
        let step = {
            let (a, b) = (out.from.saturating_sub(1), (out.from + 1).min(last));
            (r.v[a] - r.v[b]).clamp(0.0, 0.02)
        };
        let mut half: Vec<f64> = match &up {
            Some(up) => up.iter().zip(&down).map(|(u, d)| 0.5 * (u - d)).collect(),
            None => vec![0.5 * step; POINTS],
        };
        continue_flat(&mut half);
        let mut ocv: Vec<f64> = (0..POINTS)
            .map(|k| match &up {
                _ if down[k].is_finite() => down[k] + half[k],
                Some(up) => up[k] - half[k],
                None => f64::NAN,
            })
            .collect();
        let measured: Vec<bool> = ocv.iter().map(|v| v.is_finite()).collect();
        if measured.iter().filter(|m| **m).count() < 50 {
            return Err(wrong(
                "the slow discharge covers less than half of the capacity; an OCV test goes from full to empty",
            ));
        }
        continue_straight(&mut ocv);
        for k in 1..POINTS {
            ocv[k] = ocv[k].max(ocv[k - 1]);
        }
        let mut test = Self {
            name: r.name.clone(),
            temp_c: r.temp[middle],
            capacity_ah,
            efficiency,
            current_a,
            ocv,
            half_gap: up.map(|_| half),
            measured,
        };
        if rate > 0.15 {
            test.name += " (faster than C/6: its curve is not at rest)";
        }
        Ok(test)
    }
}

/// Linear between sorted points; NaN outside by more than half a point.
fn lookup(points: &[(f64, f64)], x: f64) -> f64 {
    let k = points.partition_point(|p| p.0 < x);
    match (k.checked_sub(1).and_then(|k| points.get(k)), points.get(k)) {
        (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (x - a.0) / (b.0 - a.0).max(1e-12),
        (None, Some(b)) if b.0 - x < 0.005 => b.1,
        (Some(a), None) if x - a.0 < 0.005 => a.1,
        _ => f64::NAN,
    }
}

/// Missing values become their nearest known neighbour's.
pub fn continue_flat(list: &mut [f64]) {
    let known: Vec<usize> = (0..list.len()).filter(|k| list[*k].is_finite()).collect();
    for k in 0..list.len() {
        if !list[k].is_finite() {
            let nearest = known.iter().min_by_key(|n| n.abs_diff(k));
            list[k] = nearest.map_or(0.0, |n| list[*n]);
        }
    }
}

fn continue_straight(list: &mut [f64]) {
    let known: Vec<usize> = (0..list.len()).filter(|k| list[*k].is_finite()).collect();
    let (Some(&first), Some(&last)) = (known.first(), known.last()) else {
        return;
    };
    let slope = |a: usize, b: usize| (list[b] - list[a]) / (b as f64 - a as f64);
    let (low, high) = (slope(first, first + 1), slope(last - 1, last));
    for k in 0..list.len() {
        if k < first {
            list[k] = list[first] - low * (first - k) as f64;
        } else if k > last {
            list[k] = list[last] + high * (k - last) as f64;
        }
    }
    // Holes inside.
    for pair in known.windows(2) {
        for k in pair[0] + 1..pair[1] {
            let f = (k - pair[0]) as f64 / (pair[1] - pair[0]) as f64;
            list[k] = list[pair[0]] + f * (list[pair[1]] - list[pair[0]]);
        }
    }
}
