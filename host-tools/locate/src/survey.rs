//! Where anchors hang that nobody has surveyed: from a walk among them and some anchors that are
//! known.
//!
//! One robust least squares over the places of the unknown anchors, a bias of each and the position
//! of the tag at every epoch:
//!
//! ```text
//! range = |position(epoch) - anchor| + bias + noise
//! ```
//!
//! Positions are eliminated epoch by epoch (Schur complement; B. Triggs et al., "Bundle
//! Adjustment: A Modern Synthesis", 2000, section 6.1), so a walk of any length costs a matrix of the
//! unknown anchors only. The start is global: the tag is located by the known anchors, then each
//! unknown anchor is located by those positions as if they were anchors. Tukey's weights keep
//! reflections out, also those that had misled the first fixes: once the unknown anchors are placed
//! roughly the tag is located by all of them. A tag that always moves at one height leaves the mirror image of an anchor open;
//! it is reported, and the side asked for is taken.

use std::collections::BTreeMap;

use helio_positioning::{FaultModel, MAX_OBSERVATIONS, Options, RangeObs, Side, locate_robust_3d};
use nalgebra::{DMatrix, DVector, Matrix3, Matrix4, Vector3, Vector4};
use serde::Serialize;

use crate::input::InputError;
use crate::locate::{Settings, fix, observe, quantile};
use crate::map::{MAX_ANCHORS, SIGMA_M, SiteAnchor, SiteMap};
use crate::recording::{Epoch, Ranges, Truth};
use crate::tukey;

/// Epochs that the fit uses; more are thinned evenly.
const MOST: usize = 5_000;
/// Rounds of reweighted least squares.
const ROUNDS: usize = 40;
/// After these rounds the tag is located anew, by surveyed anchors, too: where the few known ones had a
/// reflection among them it may have begun at a wrong place, which the weights then defend.
const AGAIN: [usize; 3] = [3, 8, 15];
/// Least ranges of an unknown anchor.
const LEAST: usize = 20;
/// How well a truth holds the tag, metres.
const TRUTH_M: f64 = 0.01;
/// Bias of an unknown anchor about the mean of the known ones if those have none to compare, metres.
const BIAS_M: f64 = 0.05;
/// A side of a tag's plane is sure when the anchor is so many sigmas away from it.
const SURE: f64 = 6.0;

/// How to survey.
#[derive(Clone, Debug)]
pub struct Plan {
    /// These anchors of the map are taken as unknown, too.
    pub unknown: Vec<u16>,
    /// Unknown anchors hang below the tags (by default above).
    pub below: bool,
    /// Known height of the tags, window of an epoch.
    pub settings: Settings,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The anchors surveyed.
    pub anchors: Vec<Surveyed>,
    /// Anchors heard too seldom.
    pub unheard: Vec<u16>,
    /// Known anchors used.
    pub known: Vec<u16>,
    /// Epochs used.
    pub epochs: usize,
    /// Ranges used and those whose weight vanished.
    pub samples: usize,
    /// See there.
    pub rejected: usize,
    /// Robust spread of all residuals, metres.
    pub spread_m: f64,
}

/// One anchor.
#[derive(Clone, Debug, Serialize)]
pub struct Surveyed {
    /// Which.
    pub id: u16,
    /// Room frame, metres.
    pub position_m: [f64; 3],
    /// Covariance of the position, square metres.
    pub covariance_m2: [[f64; 3]; 3],
    /// Measured minus true range, metres.
    pub bias_m: f64,
    /// Standard deviation of a range, metres.
    pub sigma_m: f64,
    /// Ranges used.
    pub samples: usize,
    /// The mirror image in the plane of the walk, if the walk cannot tell.
    pub mirror_m: Option<[f64; 3]>,
    /// Where the map had it, and how far off that was, metres.
    pub before_m: Option<[f64; 3]>,
    /// See there.
    pub moved_m: Option<f64>,
}

/// A range of an epoch, to an anchor of either kind.
#[derive(Clone, Copy)]
struct Item {
    /// Place among the unknown, or the anchor itself.
    unknown: Option<usize>,
    anchor: Vector3<f64>,
    range: f64,
    sigma: f64,
}

impl Item {
    /// An unknown anchor has the sigma that its residuals tell.
    fn sigma(&self, guesses: &[Guess]) -> f64 {
        self.unknown.map_or(self.sigma, |at| guesses[at].sigma)
    }
}

struct Stop {
    /// The tag.
    x: Vector3<f64>,
    /// What else is known of it, and how well (1/m²).
    prior: Vector3<f64>,
    certainty: Vector3<f64>,
    items: Vec<Item>,
}

/// Anchors as they are estimated: place and bias.
#[derive(Clone, Copy)]
struct Guess {
    place: Vector3<f64>,
    bias: f64,
    sigma: f64,
}

/// Surveys the anchors of the recordings that the map does not have, and enters them.
pub fn survey(
    map: &mut SiteMap,
    runs: &[(Ranges, Option<Truth>)],
    plan: &Plan,
) -> Result<Report, InputError> {
    let before: BTreeMap<u16, SiteAnchor> = map
        .anchors
        .iter()
        .filter(|a| plan.unknown.contains(&a.id))
        .map(|a| (a.id, a.clone()))
        .collect();
    if let Some(stranger) = plan.unknown.iter().find(|id| {
        map.get(**id).is_none()
            && !runs
                .iter()
                .any(|(r, _)| r.samples.iter().any(|s| s.anchor == **id))
    }) {
        let what =
            format!("anchor {stranger} is neither in the map nor in a recording; check its id");
        return Err(InputError::whole(&map.file, what));
    }
    let mut known = map.clone();
    known.anchors.retain(|a| !plan.unknown.contains(&a.id));
    let mut counts: BTreeMap<u16, usize> = BTreeMap::new();
    for (ranges, _) in runs {
        for s in &ranges.samples {
            if known.get(s.anchor).is_none() {
                *counts.entry(s.anchor).or_default() += 1;
            }
        }
    }
    let unheard: Vec<u16> = counts
        .iter()
        .filter(|(_, n)| **n < LEAST)
        .map(|(id, _)| *id)
        .collect();
    counts.retain(|_, n| *n >= LEAST);
    let ids: Vec<u16> = counts.into_keys().collect();
    let first = runs.first().map_or(&map.file, |(r, _)| &r.file);
    if ids.is_empty() {
        let what = format!(
            "no anchor is unknown: every anchor with {LEAST} ranges is in the map; name those to survey again with --unknown"
        );
        return Err(InputError::whole(first, what));
    }
    if known.anchors.len() + ids.len() > MAX_ANCHORS {
        let what = format!("a map has at most {MAX_ANCHORS} anchors; split it");
        return Err(InputError::whole(&map.file, what));
    }
    let stops = stops(&known, runs, plan, &ids);
    if stops.len() < LEAST {
        let what = format!(
            "the tag is located at {} places only; a survey needs {LEAST}, each seen by 3 known anchors (2 are not enough) or given by --truth",
            stops.len()
        );
        return Err(InputError::whole(first, what));
    }
    let lasting = lasting(map, &stops, runs);
    let biases: Vec<f64> = known.anchors.iter().map(|a| a.bias_m).collect();
    let mean = biases.iter().sum::<f64>() / biases.len().max(1) as f64;
    let spread =
        biases.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / biases.len().max(1) as f64;
    let prior = (mean, spread.sqrt().max(BIAS_M));
    let mut guesses = Vec::new();
    for (at, id) in ids.iter().enumerate() {
        let Some(place) = start(&stops, at, mean, plan) else {
            let what = format!(
                "anchor {id} cannot be placed: its ranges agree with no place; walk around it, not along one line, or give its map position and leave it out"
            );
            return Err(InputError::whole(first, what));
        };
        guesses.push(Guess {
            place,
            bias: mean,
            sigma: SIGMA_M,
        });
    }
    let mut fitted = adjust(stops, guesses, prior, lasting, &plan.settings);
    // The start may have taken the wrong side of a walk that hardly rises and sinks.
    for at in 0..ids.len() {
        if let Some((image, worse)) = image(&fitted.stops, &fitted.guesses[at], at, prior)
            && worse < -SURE * SURE
        {
            fitted.guesses[at] = image;
            fitted = adjust(fitted.stops, fitted.guesses, prior, lasting, &plan.settings);
        }
    }
    let mut report = Report {
        anchors: Vec::new(),
        unheard,
        known: known.ids().into_iter().collect(),
        epochs: fitted.stops.len(),
        samples: fitted.samples,
        rejected: fitted.rejected,
        spread_m: fitted.spread,
    };
    for (at, (id, g)) in ids.iter().zip(&fitted.guesses).enumerate() {
        let c = fitted.covariance.fixed_view::<3, 3>(4 * at, 4 * at);
        let row = |r: usize| [c[(r, 0)], c[(r, 1)], c[(r, 2)]];
        let was = before.get(id);
        let anchor = SiteAnchor {
            id: *id,
            seat: was.and_then(|w| w.seat),
            position_m: g.place.into(),
            bias_m: g.bias,
            sigma_m: Some(g.sigma),
            light: was.and_then(|w| w.light),
        };
        report.anchors.push(Surveyed {
            id: *id,
            position_m: anchor.position_m,
            covariance_m2: [row(0), row(1), row(2)],
            bias_m: g.bias,
            sigma_m: g.sigma,
            samples: fitted.counts[at],
            mirror_m: mirror(&fitted.stops, g, at, prior),
            before_m: was.map(|w| w.position_m),
            moved_m: was.map(|w| (g.place - Vector3::from(w.position_m)).norm()),
        });
        map.anchors.retain(|a| a.id != *id);
        map.anchors.push(anchor);
    }
    map.anchors.sort_by_key(|a| a.id);
    map.version = map.version.saturating_add(1);
    Ok(report)
}

/// Where the tag was, as the known anchors or the truth say.
fn stops(known: &SiteMap, runs: &[(Ranges, Option<Truth>)], plan: &Plan, ids: &[u16]) -> Vec<Stop> {
    let mut stops = Vec::new();
    for (ranges, truth) in runs {
        for tag in ranges.tags() {
            if plan.settings.tag.is_some_and(|only| only != tag) {
                continue;
            }
            let epochs = ranges.epochs(tag, plan.settings.window_s);
            let stride = epochs.len().div_ceil(MOST).max(1);
            for epoch in epochs.iter().step_by(stride) {
                let true_place = truth.as_ref().and_then(|t| {
                    let pose = t.at(tag, epoch.time_s() + known.recording.time_offset_s)?;
                    Some(pose.point(known.lever(tag)))
                });
                if let Some(stop) = stop(known, epoch, tag, true_place, plan, ids) {
                    stops.push(stop);
                }
            }
        }
    }
    stops
}

fn stop(
    known: &SiteMap,
    epoch: &Epoch,
    tag: u16,
    true_place: Option<Vector3<f64>>,
    plan: &Plan,
    ids: &[u16],
) -> Option<Stop> {
    let (_, observations) = observe(known, epoch);
    let (x, prior, certainty) = match true_place {
        Some(p) => (p, p, Vector3::repeat(TRUTH_M.powi(-2))),
        None => {
            let x = Vector3::from(fix(&observations, &plan.settings).ok()?.position_m);
            let mut certainty = Vector3::zeros();
            let mut prior = x;
            if let Some(h) = plan.settings.height_m {
                prior.z = h;
                certainty.z = plan.settings.height_sigma_m.max(1e-3).powi(-2);
            }
            (x, prior, certainty)
        }
    };
    let mut items: Vec<Item> = observations
        .iter()
        .map(|o| Item {
            unknown: None,
            anchor: Vector3::from(o.anchor_m),
            range: o.range_m,
            sigma: o.sigma_m,
        })
        .collect();
    for s in &epoch.samples {
        if let Ok(at) = ids.binary_search(&s.anchor) {
            items.push(Item {
                unknown: Some(at),
                anchor: Vector3::zeros(),
                range: s.range_m - known.tag_bias(tag),
                sigma: SIGMA_M,
            });
        }
    }
    Some(Stop {
        x,
        prior,
        certainty,
        items,
    })
}

/// So many epochs say as much as one, because errors last.
fn lasting(map: &SiteMap, stops: &[Stop], runs: &[(Ranges, Option<Truth>)]) -> f64 {
    let span: f64 = runs
        .iter()
        .filter_map(|(r, _)| Some(r.samples.last()?.time_s - r.samples.first()?.time_s))
        .sum();
    let every = span / stops.len().max(1) as f64;
    let lasts = map.recording.error_lasts_s.unwrap_or(0.0);
    if every > 0.0 {
        1.0 + 2.0 * lasts / every
    } else {
        1.0
    }
}

/// An unknown anchor from places of the tag spread as far as they go.
fn start(stops: &[Stop], at: usize, bias: f64, plan: &Plan) -> Option<Vector3<f64>> {
    let seen: Vec<(Vector3<f64>, f64)> = stops
        .iter()
        .filter_map(|s| {
            let item = s.items.iter().find(|i| i.unknown == Some(at))?;
            Some((s.x, (item.range - bias).max(0.0)))
        })
        .collect();
    if seen.len() < LEAST {
        return None;
    }
    // Farthest points: each next place is the one farthest from all chosen.
    let mut chosen = vec![0];
    let mut gap: Vec<f64> = seen.iter().map(|p| (p.0 - seen[0].0).norm()).collect();
    while chosen.len() < MAX_OBSERVATIONS.min(seen.len()) {
        let far = (0..seen.len()).max_by(|a, b| gap[*a].total_cmp(&gap[*b]))?;
        chosen.push(far);
        for (g, p) in gap.iter_mut().zip(&seen) {
            *g = g.min((p.0 - seen[far].0).norm());
        }
    }
    let observations: Vec<RangeObs<f64>> = chosen
        .iter()
        .map(|i| RangeObs {
            anchor_m: seen[*i].0.into(),
            range_m: seen[*i].1,
            // The place of the tag is no better than its fix.
            sigma_m: 2.0 * SIGMA_M,
        })
        .collect();
    let options = Options {
        side: if plan.below { Side::Below } else { Side::Above },
        consistency: f64::INFINITY,
        ..Options::default()
    };
    let faults = FaultModel::default();
    let found = locate_robust_3d(&observations, &options, &faults).or_else(|_| {
        // Biases of the fixes may be alike in one corner; any fit is a start.
        helio_positioning::locate_3d(&observations, &options)
    });
    let found = found.ok()?;
    let place = Vector3::from(found.position_m);
    // All places of the tag tell the side better than those few, unless both fit alike.
    let cost = |p: Vector3<f64>| -> f64 {
        let sigma = 2.0 * SIGMA_M;
        let off = |(x, range): &(Vector3<f64>, f64)| ((range - (x - p).norm()) / sigma).powi(2);
        seen.iter().map(|s| off(s).min(9.0)).sum()
    };
    match found.mirror.map(Vector3::from) {
        Some(other) if cost(other) + SURE * SURE < cost(place) => Some(other),
        _ => Some(place),
    }
}

struct Fitted {
    stops: Vec<Stop>,
    guesses: Vec<Guess>,
    covariance: DMatrix<f64>,
    samples: usize,
    rejected: usize,
    counts: Vec<usize>,
    spread: f64,
}

/// Places of anchors and of the tag together.
fn adjust(
    mut stops: Vec<Stop>,
    mut guesses: Vec<Guess>,
    bias: (f64, f64),
    lasting: f64,
    settings: &Settings,
) -> Fitted {
    let n = guesses.len();
    let residual = |item: &Item, x: &Vector3<f64>, guesses: &[Guess]| {
        let (anchor, off) = match item.unknown {
            Some(at) => (guesses[at].place, guesses[at].bias),
            None => (item.anchor, 0.0),
        };
        let d = x - anchor;
        let distance = d.norm().max(1e-6);
        (item.range - off - distance, d / distance)
    };
    // With Tukey's weight.
    let weighed = |item: &Item, x: &Vector3<f64>, guesses: &[Guess], scale: f64| {
        let (e, u) = residual(item, x, guesses);
        let sigma = item.sigma(guesses);
        let z = e / (tukey::REACH * scale * sigma);
        let w = tukey::weight(z) / (sigma * sigma);
        (e, u, w)
    };
    let mut covariance = DMatrix::identity(4 * n, 4 * n);
    let mut scale = 3.0; // of all sigmas, falling to what residuals say
    for round in 0..ROUNDS {
        let mut s = DMatrix::<f64>::zeros(4 * n, 4 * n);
        let mut r = DVector::<f64>::zeros(4 * n);
        for (at, g) in guesses.iter().enumerate() {
            let certainty = lasting * bias.1.powi(-2);
            s[(4 * at + 3, 4 * at + 3)] += certainty;
            r[4 * at + 3] += certainty * (bias.0 - g.bias);
        }
        // Of each epoch, to find its own step once the anchors' is known.
        let mut kept = Vec::with_capacity(stops.len());
        for stop in &stops {
            let mut own = Matrix3::from_diagonal(&stop.certainty);
            let mut pull = stop.certainty.component_mul(&(stop.prior - stop.x));
            let mut cross: Vec<(usize, nalgebra::Matrix4x3<f64>)> = Vec::new();
            for item in &stop.items {
                let (e, u, w) = weighed(item, &stop.x, &guesses, scale);
                if w == 0.0 {
                    continue;
                }
                own += u * u.transpose() * w;
                pull += u * (w * e);
                if let Some(at) = item.unknown {
                    let g = Vector4::new(-u.x, -u.y, -u.z, 1.0);
                    let mut block = s.fixed_view_mut::<4, 4>(4 * at, 4 * at);
                    block += g * g.transpose() * w;
                    let mut right = r.fixed_rows_mut::<4>(4 * at);
                    right += g * (w * e);
                    cross.push((at, g * u.transpose() * w));
                }
            }
            let Some(inverse) = (own + Matrix3::identity() * 1e-3).try_inverse() else {
                kept.push(None);
                continue;
            };
            for (a, ca) in &cross {
                let t = ca * inverse;
                let mut right = r.fixed_rows_mut::<4>(4 * a);
                right -= t * pull;
                for (b, cb) in &cross {
                    let mut block = s.fixed_view_mut::<4, 4>(4 * a, 4 * b);
                    block -= t * cb.transpose();
                }
            }
            kept.push(Some((inverse, pull, cross)));
        }
        // Nothing is farther than a hall: keeps directions that the walk does not see finite.
        for k in 0..4 * n {
            s[(k, k)] += 1e-4;
        }
        let Some(factor) = s.cholesky() else { break };
        let mut step = factor.solve(&r);
        covariance = factor.inverse() * lasting;
        let longest = (0..n)
            .map(|a| step.fixed_rows::<3>(4 * a).norm())
            .fold(0.0, f64::max);
        if longest > 1.0 {
            step /= longest;
        }
        let mut inverses = Vec::with_capacity(stops.len());
        for (stop, kept) in stops.iter_mut().zip(kept) {
            inverses.push(kept.as_ref().map(|k| k.0));
            if let Some((inverse, mut pull, cross)) = kept {
                for (at, c) in &cross {
                    pull -= c.transpose() * step.fixed_rows::<4>(4 * at);
                }
                let mut own = inverse * pull;
                if own.norm() > 1.0 {
                    own /= own.norm();
                }
                stop.x += own;
            }
        }
        for (at, g) in guesses.iter_mut().enumerate() {
            g.place += step.fixed_rows::<3>(4 * at);
            g.bias += step[4 * at + 3];
        }
        // Noise of each unknown anchor from its residuals, and how all agree with their sigmas. A
        // residual is smaller than its error by what the tag's place gave way to it.
        let mut own: Vec<Vec<f64>> = vec![Vec::new(); n];
        let mut normal = Vec::new();
        for (stop, inverse) in stops.iter().zip(&inverses) {
            let Some(inverse) = inverse else { continue };
            for item in &stop.items {
                let (e, u) = residual(item, &stop.x, &guesses);
                let sigma = item.sigma(&guesses);
                let given = u.dot(&(inverse * u)) / (sigma * sigma);
                let e = e.abs() / (1.0 - given).max(0.05).sqrt();
                match item.unknown {
                    Some(at) => own[at].push(e),
                    None => normal.push(e / item.sigma),
                }
            }
        }
        for (g, mut e) in guesses.iter_mut().zip(own) {
            g.sigma = (1.4826 * quantile(&mut e, 0.5).unwrap_or(SIGMA_M)).max(5e-3);
        }
        let known = 1.4826 * quantile(&mut normal, 0.5).unwrap_or(1.0);
        scale = known.clamp(1.0, 3.0);
        if round > AGAIN[2] && step.amax() < 1e-5 {
            break;
        }
        if AGAIN.contains(&round) {
            for stop in stops.iter_mut().filter(|s| s.certainty.x == 0.0) {
                let cost = |x: &Vector3<f64>| -> f64 {
                    let each = stop.items.iter().map(|item| {
                        let (e, _) = residual(item, x, &guesses);
                        let sigma = item.sigma(&guesses);
                        tukey::cost(e / (tukey::REACH * scale * sigma))
                    });
                    each.sum()
                };
                let all: Vec<RangeObs<f64>> = stop
                    .items
                    .iter()
                    .map(|item| match item.unknown {
                        Some(at) => RangeObs {
                            anchor_m: guesses[at].place.into(),
                            range_m: (item.range - guesses[at].bias).max(0.0),
                            sigma_m: guesses[at].sigma,
                        },
                        None => RangeObs {
                            anchor_m: item.anchor.into(),
                            range_m: item.range,
                            sigma_m: item.sigma,
                        },
                    })
                    .collect();
                if let Ok(found) = fix(&all, settings) {
                    let x = Vector3::from(found.position_m);
                    if cost(&x) < cost(&stop.x) {
                        stop.x = x;
                    }
                }
            }
        }
    }
    let (mut samples, mut rejected, mut counts) = (0, 0, vec![0; n]);
    let mut all = Vec::new();
    for stop in &stops {
        for item in &stop.items {
            let (e, _) = residual(item, &stop.x, &guesses);
            let sigma = item.sigma(&guesses);
            let used = e.abs() < tukey::REACH * scale * sigma;
            all.push(e.abs());
            samples += usize::from(used);
            rejected += usize::from(!used);
            if let (Some(at), true) = (item.unknown, used) {
                counts[at] += 1;
            }
        }
    }
    let spread = 1.4826 * quantile(&mut all, 0.5).unwrap_or(0.0);
    Fitted {
        stops,
        guesses,
        covariance,
        samples,
        rejected,
        counts,
        spread,
    }
}

/// The image of an anchor in the plane of the walk, if its ranges fit there as well.
fn mirror(stops: &[Stop], g: &Guess, at: usize, bias: (f64, f64)) -> Option<[f64; 3]> {
    let (image, worse) = image(stops, g, at, bias)?;
    // Heights of the tag are not known to the millimetre: a tenth of the noise tells nothing.
    let seen = |s: &&Stop| s.items.iter().any(|i| i.unknown == Some(at));
    let alike = SURE * SURE + 0.1 * stops.iter().filter(seen).count() as f64;
    (worse < alike).then(|| image.place.into())
}

/// Where an anchor best fits on the other side of the walk's plane, the path being what it is, and by
/// how much worse as chi-square; `None` when it is in that plane or fits on its side only.
fn image(stops: &[Stop], g: &Guess, at: usize, bias: (f64, f64)) -> Option<(Guess, f64)> {
    let seen: Vec<(Vector3<f64>, f64)> = stops
        .iter()
        .flat_map(|s| s.items.iter().map(move |i| (s.x, i)))
        .filter(|(_, i)| i.unknown == Some(at))
        .map(|(x, i)| (x, i.range))
        .collect();
    let centre = seen.iter().map(|s| s.0).sum::<Vector3<f64>>() / seen.len().max(1) as f64;
    let off = |s: &(Vector3<f64>, f64)| s.0 - centre;
    let scatter: Matrix3<f64> = seen.iter().map(|s| off(s) * off(s).transpose()).sum();
    let eigen = scatter.symmetric_eigen();
    let thin = (0..3).min_by(|a, b| eigen.eigenvalues[*a].total_cmp(&eigen.eigenvalues[*b]))?;
    let normal: Vector3<f64> = eigen.eigenvectors.column(thin).into();
    let away = normal.dot(&(g.place - centre));
    if away.abs() <= g.sigma {
        return None;
    }
    let mut image = Guess {
        place: g.place - normal * (2.0 * away),
        ..*g
    };
    let error = |g: &Guess, s: &(Vector3<f64>, f64)| s.1 - g.bias - (s.0 - g.place).norm();
    for _ in 0..ROUNDS {
        let certainty = bias.1.powi(-2);
        let mut info = Matrix4::from_diagonal(&Vector4::new(1e-4, 1e-4, 1e-4, certainty));
        let mut pull = Vector4::new(0.0, 0.0, 0.0, certainty * (bias.0 - image.bias));
        for s in &seen {
            let e = error(&image, s);
            let u = (s.0 - image.place).normalize();
            let z = e / (tukey::REACH * g.sigma);
            let w = tukey::weight(z) / (g.sigma * g.sigma);
            let slope = Vector4::new(-u.x, -u.y, -u.z, 1.0);
            info += slope * slope.transpose() * w;
            pull += slope * (w * e);
        }
        let step = info.cholesky()?.solve(&pull);
        let short = (0.5 / step.norm()).min(1.0);
        image.place += step.xyz() * short;
        image.bias += step.w * short;
    }
    if normal.dot(&(image.place - centre)) * away > 0.0 {
        return None; // there is no minimum on the other side
    }
    let spread = |g: &Guess| {
        let mut e: Vec<f64> = seen.iter().map(|s| error(g, s).abs()).collect();
        (1.4826 * quantile(&mut e, 0.5).unwrap_or(SIGMA_M)).max(5e-3)
    };
    image.sigma = spread(&image);
    // Both by the smaller spread of the two.
    let sigma = image.sigma.min(spread(g));
    let cost = |g: &Guess| -> f64 {
        let each = (seen.iter()).map(|s| tukey::cost(error(g, s) / (tukey::REACH * sigma)));
        each.sum::<f64>() * tukey::REACH * tukey::REACH / 3.0
    };
    let worse = cost(&image) - cost(g);
    Some((image, worse))
}

impl Report {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let known: Vec<String> = self.known.iter().map(u16::to_string).collect();
        let mut t = format!(
            "{} anchors surveyed from {} places of the tag and anchors {}; {} ranges used, {} left out, spread {:.1} cm\n",
            self.anchors.len(),
            self.epochs,
            known.join(", "),
            self.samples,
            self.rejected,
            self.spread_m * 100.0
        );
        for a in &self.anchors {
            let [x, y, z] = a.position_m;
            let sigma = [0, 1, 2].map(|k| a.covariance_m2[k][k].max(0.0).sqrt() * 100.0);
            t += &format!(
                "anchor {}: {x:.3}, {y:.3}, {z:.3} m ± {:.1}, {:.1}, {:.1} cm (1 sigma); bias {:.1} cm, range sigma {:.1} cm, {} ranges",
                a.id,
                sigma[0],
                sigma[1],
                sigma[2],
                a.bias_m * 100.0,
                a.sigma_m * 100.0,
                a.samples
            );
            if let Some(m) = a.moved_m {
                t += &format!("; {:.1} cm from where the map had it", m * 100.0);
            }
            if let Some([x, y, z]) = a.mirror_m {
                t += &format!(
                    "; its mirror image {x:.2}, {y:.2}, {z:.2} m fits as well: let the tag rise and sink, or see --anchors-below"
                );
            }
            t += "\n";
        }
        for id in &self.unheard {
            t += &format!("anchor {id}: fewer than {LEAST} ranges, not surveyed\n");
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::fmt::Write;
    use std::path::Path;

    const ANCHORS: [[f64; 3]; 8] = [
        [0.0, 0.0, 3.0],
        [8.0, 0.0, 2.6],
        [8.0, 6.0, 3.1],
        [0.0, 6.0, 2.5],
        [4.0, 0.0, 0.4],
        [4.0, 6.0, 2.9],
        [0.0, 3.0, 0.5],
        [8.0, 3.0, 2.8],
    ];

    fn map() -> SiteMap {
        let anchor = |id: usize| {
            let [x, y, z] = ANCHORS[id];
            format!(
                "[[anchor]]\nid = {id}\nx_m = {x}\ny_m = {y}\nz_m = {z}\nsigma_m = 0.05\nbias_m = 0.04\n"
            )
        };
        let text: String = (0..5).map(anchor).collect();
        SiteMap::parse(Path::new("m.toml"), &text).expect("right")
    }

    fn normal(rng: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
    }

    /// A walk; `lift` is by how much the tag rises and sinks.
    fn walk(dir: &Path, seed: u64, lift: f64, map: &SiteMap) -> Ranges {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut text = String::from("time_s,a0,a1,a2,a3,a4,a5,a6,a7\n");
        for step in 0..900 {
            let t = f64::from(step) * 0.1;
            let tag = Vector3::new(
                4.0 + 3.0 * (0.31 * t).sin(),
                3.0 + 2.2 * (0.47 * t).cos(),
                1.3 + lift * (0.9 * t).sin(),
            );
            let _ = write!(text, "{t:.2}");
            for a in ANCHORS {
                let far = if rng.random::<f64>() < 0.04 { 1.2 } else { 0.0 };
                let range = (tag - Vector3::from(a)).norm() + 0.04 + far + 0.05 * normal(&mut rng);
                let _ = write!(text, ",{range:.3}");
            }
            text.push('\n');
        }
        let file = dir.join("walk.csv");
        std::fs::write(&file, text).expect("writable");
        Ranges::load(&file, map).expect("right")
    }

    fn plan(map: &SiteMap) -> Plan {
        Plan {
            unknown: Vec::new(),
            below: false,
            settings: Settings::of(map),
        }
    }

    #[test]
    fn unknown_anchors_are_found_to_a_decimetre_and_a_half_among_reflections() {
        let dir = tempfile::tempdir().expect("room");
        for seed in 0..6 {
            let mut map = map();
            let runs = [(walk(dir.path(), seed, 0.5, &map), None)];
            let plan = plan(&map);
            let report = survey(&mut map, &runs, &plan).expect("enough");
            assert_eq!(map.anchors.len(), 8);
            for a in &report.anchors {
                let off = Vector3::from(a.position_m) - Vector3::from(ANCHORS[usize::from(a.id)]);
                assert!(off.norm() < 0.15, "{seed}: {a:?}");
                assert!((0.04..0.07).contains(&a.sigma_m), "{seed}: {a:?}");
                assert_eq!(a.mirror_m, None);
            }
        }
    }

    /// Squared errors of surveyed anchors over their covariances: chi-square, three degrees of freedom.
    fn nees(seeds: std::ops::Range<u64>, lift: f64) -> Vec<f64> {
        let dir = tempfile::tempdir().expect("room");
        let mut all = Vec::new();
        for seed in seeds {
            let mut map = map();
            let runs = [(walk(dir.path(), seed, lift, &map), None)];
            let plan = plan(&map);
            let report = survey(&mut map, &runs, &plan).expect("enough");
            for a in &report.anchors {
                let off = Vector3::from(a.position_m) - Vector3::from(ANCHORS[usize::from(a.id)]);
                let c = Matrix3::from_fn(|r, c| a.covariance_m2[r][c]);
                all.push(off.dot(&(c.try_inverse().expect("regular") * off)));
            }
        }
        all
    }

    #[test]
    fn a_surveyed_anchor_is_as_far_off_as_its_covariance_says() {
        for lift in [0.5, 0.3] {
            let all = nees(0..40, lift);
            let inside = all.iter().filter(|n| **n < 7.815).count() as f64 / all.len() as f64;
            let worst = all.iter().copied().fold(0.0, f64::max);
            assert!(
                (0.90..=0.99).contains(&inside) && worst < 25.0,
                "{lift}: {inside} {worst}"
            );
        }
    }

    #[test]
    fn a_walk_at_one_height_leaves_the_mirror_image_and_says_so() {
        let dir = tempfile::tempdir().expect("room");
        for (below, z) in [(false, 2.8), (true, -0.2)] {
            let mut map = map();
            map.recording.tag_height_m = Some(1.3);
            let runs = [(walk(dir.path(), 9, 0.0, &map), None)];
            let plan = Plan {
                below,
                ..plan(&map)
            };
            let report = survey(&mut map, &runs, &plan).expect("enough");
            let seven = report.anchors.iter().find(|a| a.id == 7).expect("surveyed");
            assert!((seven.position_m[2] - z).abs() < 0.15, "{seven:?}");
            assert!(seven.mirror_m.is_some(), "{seven:?}");
        }
    }

    #[test]
    fn an_anchor_of_the_map_may_be_surveyed_again() {
        let dir = tempfile::tempdir().expect("room");
        let mut map = map();
        map.get_mut(2).expect("there").position_m[0] += 0.5;
        let runs = [(walk(dir.path(), 3, 0.5, &map), None)];
        let plan = Plan {
            unknown: vec![2],
            ..plan(&map)
        };
        let report = survey(&mut map, &runs, &plan).expect("enough");
        let two = report.anchors.iter().find(|a| a.id == 2).expect("surveyed");
        assert!(
            (two.moved_m.expect("it was there") - 0.5).abs() < 0.08,
            "{two:?}"
        );
    }

    #[test]
    fn what_cannot_be_surveyed_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().expect("room");
        let mut poor = map();
        poor.anchors.truncate(2);
        let runs = [(walk(dir.path(), 1, 0.5, &poor), None)];
        let plan = plan(&poor);
        let e = survey(&mut poor, &runs, &plan)
            .expect_err("two")
            .to_string();
        assert!(e.contains("3 known anchors"), "{e}");
        let mut all = map();
        let plan = Plan {
            unknown: vec![77],
            ..plan
        };
        let e = survey(&mut all, &runs, &plan)
            .expect_err("no such")
            .to_string();
        assert!(e.contains("anchor 77 is neither"), "{e}");
    }
}
