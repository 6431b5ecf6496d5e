//! What a recording with truth tells about the map: a bias and a noise of each anchor, the offset
//! between the two clocks, where each tag sits on the body that the truth tracks, how the tags
//! move and how long errors of ranges last.
//!
//! One robust least squares over all files at once:
//!
//! ```text
//! range = |p(t + offset) + R(t + offset) lever_tag - anchor| + bias_anchor + bias_tag + noise
//! ```
//!
//! Tukey's weights (J. Tukey 1960, scale from the median absolute deviation) keep reflections out.
//! Weak priors (lever arms within 30 cm of the map's, 3 cm along the body's z axis, tags' biases 10 cm,
//! the offset 0.5 s) decide what the motion cannot, such as the height of a tag that never tilts.
//! Errors of neighbouring ranges are alike: all weights are divided by as many samples as that makes
//! of one, so that thousands of them do not overrule a prior.

use std::collections::BTreeMap;

use nalgebra::{DMatrix, DVector, Vector3};
use serde::Serialize;

use crate::input::InputError;
use crate::locate::quantile;
use crate::map::SiteMap;
use crate::recording::{Ranges, Sample, Truth};
use crate::tukey;

/// Samples that the fit uses; more are thinned evenly.
const MOST: usize = 40_000;
/// Rounds of reweighted least squares.
const ROUNDS: usize = 25;
/// Priors, 1 sigma.
const LEVER_M: [f64; 3] = [0.3, 0.3, 0.03];
const TAG_BIAS_M: f64 = 0.1;
const OFFSET_S: f64 = 0.5;
const BIAS_M: f64 = 2.0;
/// Certainty that tags' biases add up to nothing, 1/m².
const SUM: f64 = 1e8;
/// Least samples of an anchor.
const LEAST: usize = 20;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Per anchor that was heard often enough.
    pub anchors: Vec<AnchorReport>,
    /// Anchors of the map that were not.
    pub unheard: Vec<u16>,
    /// Ranges used.
    pub samples: usize,
    /// Ranges whose weight vanished.
    pub rejected: usize,
    /// Spread of ranges about the truth before and after, metres (robust 1-sigma).
    pub spread_before_m: f64,
    /// See there.
    pub spread_after_m: f64,
    /// Add to a range's time to get the truth's; `None` when nothing moved.
    pub time_offset_s: Option<f64>,
    /// Place of each tag on the body; `None` when the truth has no attitude.
    pub lever_arm_m: Option<Vec<[f64; 3]>>,
    /// Further bias of each tag, metres.
    pub tag_bias_m: Vec<f64>,
    /// Height to hold, when it hardly changes and the anchors see it worse than that.
    pub tag_height_m: Option<f64>,
    /// Spectral density of acceleration, m²/s³.
    pub accel_psd: Option<[f64; 3]>,
    /// How long errors last, seconds.
    pub error_lasts_s: f64,
    /// How far errors that depend on the direction make anchors seem displaced, metres an axis.
    pub systematic_m: Option<f64>,
}

/// One anchor.
#[derive(Clone, Debug, Serialize)]
pub struct AnchorReport {
    /// Which.
    pub id: u16,
    /// Measured minus true range, metres.
    pub bias_m: f64,
    /// Standard error of the bias if errors last as long as found, metres.
    pub bias_sigma_m: f64,
    /// Of a range, metres.
    pub sigma_m: f64,
    /// Ranges used.
    pub samples: usize,
}

/// A range with the truth that goes with it.
struct Item<'a> {
    sample: Sample,
    truth: &'a Truth,
    anchor: usize,
    tag: usize,
}

/// The parameters, flat: biases, tag biases, levers, offset.
struct Layout {
    anchors: usize,
    tags: usize,
    levers: bool,
}

impl Layout {
    fn len(&self) -> usize {
        self.offset() + 1
    }
    fn tag(&self, tag: usize) -> usize {
        self.anchors + tag
    }
    fn lever(&self, tag: usize) -> usize {
        self.anchors + self.tags + 3 * tag
    }
    fn offset(&self) -> usize {
        self.anchors + self.tags + if self.levers { 3 * self.tags } else { 0 }
    }
}

/// Range that the parameters explain and its gradient; `None` where there is no truth.
fn model(
    layout: &Layout,
    map: &SiteMap,
    item: &Item<'_>,
    x: &DVector<f64>,
    levers: &[[f64; 3]],
    gradient: Option<&mut DVector<f64>>,
) -> Option<f64> {
    let t = item.sample.time_s + x[layout.offset()];
    let pose = item.truth.at(item.sample.tag, t)?;
    let lever = if layout.levers {
        let at = layout.lever(item.tag);
        [x[at], x[at + 1], x[at + 2]]
    } else {
        levers[item.tag]
    };
    let place = pose.point(lever);
    let d = place - Vector3::from(map.anchors[item.anchor].position_m);
    let distance = d.norm().max(1e-6);
    if let Some(g) = gradient {
        g.fill(0.0);
        let u = d / distance;
        g[item.anchor] = 1.0;
        g[layout.tag(item.tag)] = 1.0;
        if layout.levers {
            let along = pose.attitude.inverse() * u;
            for k in 0..3 {
                g[layout.lever(item.tag) + k] = along[k];
            }
        }
        let step = 0.05;
        let (before, after) = (
            item.truth.at(item.sample.tag, t - step),
            item.truth.at(item.sample.tag, t + step),
        );
        if let (Some(a), Some(b)) = (before, after) {
            g[layout.offset()] = u.dot(&(b.point(lever) - a.point(lever))) / (2.0 * step);
        }
    }
    Some(distance + x[item.anchor] + x[layout.tag(item.tag)])
}

fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5).unwrap_or(0.0)
}

/// Robust standard deviation about the median.
fn spread(values: &[f64]) -> f64 {
    let mut copy = values.to_vec();
    let middle = median(&mut copy);
    let mut off: Vec<f64> = values.iter().map(|v| (v - middle).abs()).collect();
    1.4826 * median(&mut off)
}

/// Calibrates a map from recordings, each with its truth, and enters the result. Unless
/// `fit_levers` the places of the tags stay as the map has them.
pub fn calibrate(
    map: &mut SiteMap,
    runs: &[(Ranges, Truth)],
    only: Option<u16>,
    fit_levers: bool,
) -> Result<Report, InputError> {
    let mut tags: Vec<u16> = runs.iter().flat_map(|(r, _)| r.tags()).collect();
    tags.sort_unstable();
    tags.dedup();
    tags.retain(|t| only.is_none_or(|o| o == *t));
    let mut items = Vec::new();
    for (ranges, truth) in runs {
        for sample in &ranges.samples {
            let anchor = map.anchors.iter().position(|a| a.id == sample.anchor);
            let tag = tags.binary_search(&sample.tag);
            let there = truth.at(sample.tag, sample.time_s + map.recording.time_offset_s);
            if let (Some(anchor), Ok(tag), true) = (anchor, tag, there.is_some()) {
                items.push(Item {
                    sample: *sample,
                    truth,
                    anchor,
                    tag,
                });
            }
        }
    }
    if items.len() > MOST {
        // A stride that is no multiple of the columns keeps every anchor and tag.
        let mut stride = items.len() / MOST + 1;
        let columns = map.anchors.len() * tags.len();
        while gcd(stride, columns) > 1 {
            stride += 1;
        }
        items = items.into_iter().step_by(stride).collect();
    }
    let heard = |anchor: usize| items.iter().filter(|i| i.anchor == anchor).count();
    let counts: Vec<usize> = (0..map.anchors.len()).map(heard).collect();
    items.retain(|i| counts[i.anchor] >= LEAST);
    if items.is_empty() {
        let file = runs.first().map_or(&map.file, |(r, _)| &r.file);
        let what = format!(
            "no anchor has {LEAST} ranges with a truth of the same time; check the clocks of both files and the tag"
        );
        return Err(InputError::whole(file, what));
    }
    let layout = Layout {
        anchors: map.anchors.len(),
        tags: tags.len(),
        levers: fit_levers && runs.iter().any(|(_, t)| t.has_attitude),
    };
    let levers: Vec<[f64; 3]> = tags.iter().map(|t| map.lever(*t)).collect();
    let moved = items.iter().any(|i| {
        let t = i.sample.time_s;
        let at = |t| i.truth.at(i.sample.tag, t).map(|p| p.position);
        matches!((at(t - 0.2), at(t + 0.2)), (Some(a), Some(b)) if (a - b).norm() > 0.02)
    });
    let mut prior = DVector::zeros(layout.len());
    let mut certainty = DVector::from_element(layout.len(), 1.0 / (BIAS_M * BIAS_M));
    for (tag, lever) in levers.iter().enumerate() {
        let at = layout.tag(tag);
        let free = if tags.len() > 1 { TAG_BIAS_M } else { 1e-6 };
        certainty[at] = 1.0 / (free * free);
        if layout.levers {
            for (k, m) in lever.iter().enumerate() {
                prior[layout.lever(tag) + k] = *m;
                certainty[layout.lever(tag) + k] = 1.0 / (LEVER_M[k] * LEVER_M[k]);
            }
        }
    }
    prior[layout.offset()] = map.recording.time_offset_s;
    let free = if moved { OFFSET_S } else { 1e-9 };
    certainty[layout.offset()] = 1.0 / (free * free);

    let residuals = |x: &DVector<f64>| -> Vec<Option<f64>> {
        let one = |i: &Item<'_>| Some(i.sample.range_m - model(&layout, map, i, x, &levers, None)?);
        items.iter().map(one).collect()
    };
    let mut x = prior.clone();
    let mut start = residuals(&x);
    for anchor in 0..layout.anchors {
        let mine = items.iter().zip(&start);
        let mut mine: Vec<f64> = mine
            .filter(|(i, _)| i.anchor == anchor)
            .filter_map(|(_, r)| *r)
            .collect();
        x[anchor] = median(&mut mine);
    }
    let before: Vec<f64> = start.iter().flatten().copied().collect();
    let spread_before_m = spread(&before);
    start = residuals(&x);
    let mut scale = spread(&start.iter().flatten().copied().collect::<Vec<_>>()).max(1e-3);
    let mut now = start;
    let mut covariance = DMatrix::identity(layout.len(), layout.len());
    // So many samples say as much as one.
    let mut alike = 1.0;
    for round in 0..ROUNDS {
        let mut normal = DMatrix::from_diagonal(&certainty);
        let mut right = DVector::from_fn(layout.len(), |k, _| certainty[k] * (prior[k] - x[k]));
        // A bias of all tags is one of all anchors: theirs add up to nothing.
        let mean: f64 = (0..layout.tags).map(|t| x[layout.tag(t)]).sum();
        for a in 0..layout.tags {
            right[layout.tag(a)] -= SUM * mean;
            for b in 0..layout.tags {
                normal[(layout.tag(a), layout.tag(b))] += SUM;
            }
        }
        let mut g = DVector::zeros(layout.len());
        for (item, residual) in items.iter().zip(&now) {
            let Some(residual) = residual else { continue };
            let z = residual / (tukey::REACH * scale);
            let weight = tukey::weight(z) / (scale * scale * alike);
            if weight == 0.0 {
                continue;
            }
            if model(&layout, map, item, &x, &levers, Some(&mut g)).is_none() {
                continue;
            }
            let active: Vec<usize> = (0..g.len()).filter(|k| g[*k] != 0.0).collect();
            for &a in &active {
                right[a] += weight * g[a] * residual;
                for &b in &active {
                    normal[(a, b)] += weight * g[a] * g[b];
                }
            }
        }
        let Some(factor) = normal.cholesky() else {
            break;
        };
        let step = factor.solve(&right);
        covariance = factor.inverse();
        x += &step;
        now = residuals(&x);
        scale = spread(&now.iter().flatten().copied().collect::<Vec<_>>()).max(1e-3);
        if round >= 2 && round % 4 == 2 {
            alike = 1.0 + 2.0 * correlation(&items, &now, scale).1;
        }
        if round > 7 && step.amax() < 1e-6 {
            break;
        }
    }
    let lasts = correlation(&items, &now, scale);
    let mut report = Report {
        anchors: Vec::new(),
        unheard: Vec::new(),
        samples: 0,
        rejected: 0,
        spread_before_m,
        spread_after_m: scale,
        time_offset_s: moved.then(|| x[layout.offset()]),
        lever_arm_m: None,
        tag_bias_m: Vec::new(),
        tag_height_m: None,
        accel_psd: acceleration(runs),
        error_lasts_s: lasts.0,
        systematic_m: systematic(map, &items, &now, &x, &layout, &levers, (scale, alike)),
    };
    let most = tags.iter().max().map_or(0, |t| usize::from(*t) + 1);
    if layout.levers {
        let mut all = map.recording.lever_arm_m.clone();
        all.resize(most.max(all.len()), [0.0; 3]);
        for (tag, id) in tags.iter().enumerate() {
            let at = layout.lever(tag);
            all[usize::from(*id)] = [x[at], x[at + 1], x[at + 2]];
        }
        report.lever_arm_m = Some(all.clone());
        map.recording.lever_arm_m = all;
    }
    if tags.len() > 1 {
        let mut all = vec![0.0; most];
        for (tag, id) in tags.iter().enumerate() {
            all[usize::from(*id)] = x[layout.tag(tag)];
        }
        report.tag_bias_m.clone_from(&all);
        map.recording.tag_bias_m = all;
    }
    map.recording.time_offset_s = x[layout.offset()];
    map.recording.accel_psd = report.accel_psd.or(map.recording.accel_psd);
    map.recording.error_lasts_s = Some(report.error_lasts_s);
    map.recording.systematic_m = report.systematic_m.or(map.recording.systematic_m);
    for anchor in 0..layout.anchors {
        let mine: Vec<f64> = items
            .iter()
            .zip(&now)
            .filter(|(i, _)| i.anchor == anchor)
            .filter_map(|(_, r)| *r)
            .collect();
        let good: Vec<f64> = mine
            .iter()
            .copied()
            .filter(|r| r.abs() < tukey::REACH * scale)
            .collect();
        report.rejected += mine.len() - good.len();
        report.samples += good.len();
        if good.len() < LEAST {
            report.unheard.push(map.anchors[anchor].id);
            continue;
        }
        let square = good.iter().map(|r| r * r).sum::<f64>() / good.len() as f64;
        let sigma_m = square.sqrt().max(1e-3);
        map.anchors[anchor].bias_m = x[anchor];
        map.anchors[anchor].sigma_m = Some(sigma_m);
        report.anchors.push(AnchorReport {
            id: map.anchors[anchor].id,
            bias_m: x[anchor],
            bias_sigma_m: covariance[(anchor, anchor)].max(0.0).sqrt(),
            sigma_m,
            samples: good.len(),
        });
    }
    report.tag_height_m = height(map, &items, &x, &layout, &levers);
    if report.tag_height_m.is_some() && map.recording.tag_height_m.is_none() {
        map.recording.tag_height_m = report.tag_height_m;
    }
    map.version = map.version.saturating_add(1);
    Ok(report)
}

/// The horizontal displacement of each anchor that would best explain what is left of its ranges:
/// root mean square over the anchors, less what noise alone would do. It is what keeps
/// [`crate::check`] from taking reflections off a wall for an anchor that moved.
fn systematic(
    map: &SiteMap,
    items: &[Item<'_>],
    residuals: &[Option<f64>],
    x: &DVector<f64>,
    layout: &Layout,
    levers: &[[f64; 3]],
    (scale, alike): (f64, f64),
) -> Option<f64> {
    let n = layout.anchors;
    let mut info = vec![nalgebra::Matrix2::from_diagonal_element(25.0); n];
    let mut pull = vec![nalgebra::Vector2::zeros(); n];
    for (item, residual) in items.iter().zip(residuals) {
        let Some(r) = residual.filter(|r| r.abs() < tukey::REACH * scale) else {
            continue;
        };
        let t = item.sample.time_s + x[layout.offset()];
        let Some(pose) = item.truth.at(item.sample.tag, t) else {
            continue;
        };
        let lever = if layout.levers {
            let at = layout.lever(item.tag);
            [x[at], x[at + 1], x[at + 2]]
        } else {
            levers[item.tag]
        };
        let d = pose.point(lever) - Vector3::from(map.anchors[item.anchor].position_m);
        let u = d.xy() / d.norm().max(1e-6);
        let w = 1.0 / (scale * scale * alike);
        info[item.anchor] += u * u.transpose() * w;
        pull[item.anchor] -= u * (w * r);
    }
    let (mut square, mut seen) = (0.0, 0);
    for (info, pull) in info.iter().zip(&pull) {
        let Some(covariance) = info.try_inverse() else {
            continue;
        };
        // Only anchors seen from many sides, to 5 cm, say something.
        if covariance.trace().sqrt() > 0.07 {
            continue;
        }
        let by = covariance * pull;
        square += by.norm_squared() - covariance.trace();
        seen += 1;
    }
    (seen > 0).then(|| (square.max(0.0) / f64::from(2 * seen)).sqrt())
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Anchor, tag and the truth of one recording.
type Series = (usize, usize, *const Truth);

/// How long errors of one anchor and tag last: the sum of their autocorrelation up to where it
/// falls below a tenth, in seconds and in samples.
fn correlation(items: &[Item<'_>], residuals: &[Option<f64>], scale: f64) -> (f64, f64) {
    let mut series: BTreeMap<Series, Vec<(f64, f64)>> = BTreeMap::new();
    for (item, residual) in items.iter().zip(residuals) {
        if let Some(r) = residual.filter(|r| r.abs() < tukey::REACH * scale) {
            let key = (item.anchor, item.tag, std::ptr::from_ref(item.truth));
            series.entry(key).or_default().push((item.sample.time_s, r));
        }
    }
    let (mut variance, mut n) = (0.0, 0usize);
    for s in series.values_mut() {
        // What an anchor and a tag have in common all along is no error that lasts.
        let mean = s.iter().map(|(_, r)| r).sum::<f64>() / s.len() as f64;
        for (_, r) in s.iter_mut() {
            *r -= mean;
        }
        variance += s.iter().map(|(_, r)| r * r).sum::<f64>();
        n += s.len();
    }
    let spans: f64 = series
        .values()
        .filter_map(|s| Some(s.last()?.0 - s.first()?.0))
        .sum();
    let every = spans / n.max(1) as f64;
    if n < 200 || variance <= 0.0 {
        return (0.0, 0.0);
    }
    variance /= n as f64;
    let mut sum = 0.0;
    for lag in 1..2_000 {
        let (mut c, mut pairs) = (0.0, 0usize);
        for s in series.values() {
            for (a, b) in s.iter().zip(s.iter().skip(lag)) {
                c += a.1 * b.1;
                pairs += 1;
            }
        }
        let rho = c / (pairs.max(1) as f64 * variance);
        if rho < 0.1 || pairs < 100 {
            break;
        }
        sum += rho;
    }
    (sum * every, sum)
}

/// Spectral density of acceleration: the variance of the velocity gained in half a second, per
/// second, along the horizontal and the vertical.
fn acceleration(runs: &[(Ranges, Truth)]) -> Option<[f64; 3]> {
    const STEP_S: f64 = 0.5;
    let (mut sum, mut n) = ([0.0; 3], 0usize);
    for (ranges, truth) in runs {
        let Some(tag) = ranges.tags().into_iter().next() else {
            continue;
        };
        let (from, to) = truth.span();
        let mut t = from;
        while t < to && n < 100_000 {
            let at = |t| truth.at(tag, t).map(|p| p.position);
            if let (Some(a), Some(b), Some(c)) = (at(t), at(t + STEP_S), at(t + 2.0 * STEP_S)) {
                let gained = (c - 2.0 * b + a) / STEP_S;
                for (s, v) in sum.iter_mut().zip(gained.iter()) {
                    *s += v * v;
                }
                n += 1;
            }
            t += STEP_S;
        }
    }
    if n < 10 {
        return None;
    }
    // The difference of two mean velocities, each over one step, of white acceleration has two
    // thirds of the variance gained in a step.
    let per = 1.5 / (n as f64 * STEP_S);
    let [x, y, z] = sum.map(|s| s * per);
    let flat = (f64::midpoint(x, y)).max(1e-3);
    let tidy = |q: f64| (q * 1e4).round() / 1e4;
    Some([tidy(flat), tidy(flat), tidy(z.max(1e-4))])
}

/// The mean height, where it changes less than a third of what fixes would know of it.
fn height(
    map: &SiteMap,
    items: &[Item<'_>],
    x: &DVector<f64>,
    layout: &Layout,
    levers: &[[f64; 3]],
) -> Option<f64> {
    let (mut heights, mut sigmas) = (Vec::new(), Vec::new());
    for item in items.iter().step_by(items.len() / 500 + 1) {
        if !item.truth.has_height {
            return None;
        }
        let pose = item.truth.at(item.sample.tag, item.sample.time_s)?;
        let lever = if layout.levers {
            let at = layout.lever(item.tag);
            [x[at], x[at + 1], x[at + 2]]
        } else {
            levers[item.tag]
        };
        let p = pose.point(lever);
        heights.push(p.z);
        let mut info = nalgebra::Matrix3::identity() * 1e-2;
        for a in &map.anchors {
            let u = (p - Vector3::from(a.position_m)).normalize();
            info += u * u.transpose() / a.sigma().powi(2);
        }
        sigmas.push(
            info.try_inverse()
                .map_or(f64::INFINITY, |c| c[(2, 2)].sqrt()),
        );
    }
    let scatter = spread(&heights);
    let middle = median(&mut heights);
    (scatter < median(&mut sigmas) / 3.0).then_some(middle)
}

impl Report {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = format!(
            "{} ranges, {} rejected; spread about the truth {:.1} cm before, {:.1} cm after\n",
            self.samples,
            self.rejected,
            self.spread_before_m * 100.0,
            self.spread_after_m * 100.0
        );
        t += "  anchor   bias mm    ± mm  sigma mm   ranges\n";
        for a in &self.anchors {
            t += &format!(
                "  {:>6} {:>9.1} {:>7.1} {:>9.1} {:>8}\n",
                a.id,
                a.bias_m * 1e3,
                a.bias_sigma_m * 1e3,
                a.sigma_m * 1e3,
                a.samples
            );
        }
        if !self.unheard.is_empty() {
            t += &format!("not heard often enough, unchanged: {:?}\n", self.unheard);
        }
        if let Some(offset) = self.time_offset_s {
            t += &format!(
                "clocks: the truth of a range is {:.1} ms later\n",
                offset * 1e3
            );
        }
        for (tag, lever) in self.lever_arm_m.iter().flatten().enumerate() {
            let [x, y, z] = lever;
            t += &format!("tag {tag} sits at {x:.3}, {y:.3}, {z:.3} m of the body\n");
        }
        if let Some(h) = self.tag_height_m {
            t += &format!(
                "tags move at a height of {h:.3} m that the anchors see badly: held from now on\n"
            );
        }
        if let Some([x, _, z]) = self.accel_psd {
            t += &format!("acceleration {x} m²/s³ horizontally, {z} m²/s³ vertically\n");
        }
        t += &format!("errors of ranges last {:.0} ms\n", self.error_lasts_s * 1e3);
        if let Some(s) = self.systematic_m {
            t += &format!(
                "errors that depend on the direction look like displacements of {:.0} mm an axis\n",
                s * 1e3
            );
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locate::{Settings, run};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::fmt::Write;
    use std::path::Path;

    const ANCHORS: [[f64; 3]; 6] = [
        [-3.0, -3.0, 1.0],
        [4.0, -3.0, 1.0],
        [4.0, 3.0, 1.0],
        [-3.0, 3.0, 1.0],
        [0.5, -3.2, 1.0],
        [0.5, 3.2, 1.0],
    ];
    const BIASES: [f64; 6] = [0.25, 0.10, 0.18, -0.05, 0.30, 0.0];
    const LEVER: [f64; 3] = [0.10, -0.15, 0.0];
    const OFFSET_S: f64 = 0.06;

    /// A body that turns as it drives, at the height of all anchors but for 5 cm; some ranges are
    /// reflections. Ranges and truth are files, their clocks apart.
    fn record(dir: &Path) -> (SiteMap, std::path::PathBuf, std::path::PathBuf) {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut toml = String::new();
        for (id, [x, y, z]) in (1..).zip(ANCHORS) {
            let _ = write!(
                toml,
                "[[anchor]]\nid = {id}\nx_m = {x}\ny_m = {y}\nz_m = {z}\n"
            );
        }
        toml += "[recording]\nlever_arm_m = [[0.0, 0.0, 0.0]]\n";
        let map = SiteMap::parse(Path::new("m.toml"), &toml).expect("right");
        let path = |t: f64| {
            let place = Vector3::new(2.0 * (0.3 * t).sin(), 1.8 * (0.43 * t).cos(), 0.95);
            (place, 0.7 * t.sin() + 0.2 * t)
        };
        let mut truth = String::from("time_s,x_m,y_m,z_m,yaw_rad\n");
        let mut ranges = String::from("time_s,a1,a2,a3,a4,a5,a6\n");
        for step in 0..3_000 {
            let t = f64::from(step) * 0.02;
            let (p, yaw) = path(t);
            let _ = writeln!(truth, "{t:.3},{:.5},{:.5},{:.5},{yaw:.6}", p.x, p.y, p.z);
            let (p, yaw) = path(t + OFFSET_S);
            let turn = nalgebra::Rotation3::from_axis_angle(&Vector3::z_axis(), yaw);
            let tag = p + turn * Vector3::from(LEVER);
            let _ = write!(ranges, "{t:.3}");
            for (anchor, bias) in ANCHORS.iter().zip(BIASES) {
                let noise: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                let far = if rng.random::<f64>() < 0.03 { 1.5 } else { 0.0 };
                let range = (tag - Vector3::from(*anchor)).norm() + bias + far + 0.05 * noise;
                let _ = write!(ranges, ",{range:.3}");
            }
            ranges.push('\n');
        }
        let (a, b) = (dir.join("ranges.csv"), dir.join("truth.csv"));
        std::fs::write(&a, ranges).expect("writable");
        std::fs::write(&b, truth).expect("writable");
        (map, a, b)
    }

    #[test]
    fn a_drive_tells_biases_clocks_and_where_the_tag_sits_and_positions_follow() {
        let dir = tempfile::tempdir().expect("room");
        let (mut map, ranges, truth) = record(dir.path());
        let load = |map: &SiteMap| {
            let ranges = Ranges::load(&ranges, map).expect("right");
            (ranges, Truth::load(&truth, "").expect("right"))
        };
        let runs = [load(&map)];
        let found = calibrate(&mut map, &runs, None, true).expect("enough");
        for (a, bias) in found.anchors.iter().zip(BIASES) {
            assert!((a.bias_m - bias).abs() < 0.02, "{found:?}");
            assert!((0.045..0.06).contains(&a.sigma_m), "{found:?}");
        }
        let lever = found.lever_arm_m.expect("an attitude")[0];
        for (l, wanted) in lever.iter().zip(LEVER) {
            assert!((l - wanted).abs() < 0.03, "{lever:?}");
        }
        let offset = found.time_offset_s.expect("it moved");
        assert!((offset - OFFSET_S).abs() < 0.01, "{offset}");
        // The anchors hardly see the height: it is held.
        let held = found.tag_height_m.expect("flat");
        assert!((held - 0.95).abs() < 0.04, "{held}");

        let (ranges, truth) = load(&map);
        let report = run(&map, &ranges, Some(&truth), &Settings::of(&map), |_, _| {});
        let report = report.expect("located");
        let fix = report.tags[0].fix_error.expect("compared");
        let track = report.tags[0].track_error.expect("compared");
        assert!(fix.p50_m < 0.06 && fix.p95_m < 0.12, "{fix:?}");
        assert!(track.p50_m < 0.03 && track.p95_m < 0.06, "{track:?}");
    }

    #[test]
    fn clocks_that_never_meet_are_an_error_with_a_remedy() {
        let dir = tempfile::tempdir().expect("room");
        let (mut map, ranges, _) = record(dir.path());
        let late = dir.path().join("late.csv");
        let text = "time_s,x_m,y_m,z_m\n1000,0,0,1\n1000.5,0,0,1\n";
        std::fs::write(&late, text).expect("writable");
        let ranges = Ranges::load(&ranges, &map).expect("right");
        let late = Truth::load(&late, "").expect("right");
        let e = calibrate(&mut map, &[(ranges, late)], None, true).expect_err("apart");
        assert!(e.to_string().contains("check the clocks"), "{e}");
    }
}
