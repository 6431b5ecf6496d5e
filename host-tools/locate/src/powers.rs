//! How each luminaire shines, from recorded powers and the truth of where the receiver was.
//!
//! The Lambertian model of [`helio_positioning::LightObs`] in logarithms, fitted robustly to every
//! luminaire by itself:
//!
//! ```text
//! ln P = ln gain + order ln cos φ + ln cos ψ - 2 ln d + noise
//! ```
//!
//! `φ` is the angle at the luminaire from its axis, `ψ` that at the receiver from its normal (the z axis
//! of the body that the truth tracks, or straight up). Gain, order and the tilt of the axis are
//! estimated; weak priors (the map's values or straight down within 10°, order 1 within 3) decide what
//! the walk does not see.

use nalgebra::{Matrix4, Vector3, Vector4};
use serde::Serialize;

use crate::input::InputError;
use crate::locate::quantile;
use crate::map::{Light, SiteMap};
use crate::recording::{Ranges, Truth};
use crate::tukey;

/// Least powers of a luminaire.
const LEAST: usize = 30;
/// Rounds of reweighted least squares.
const ROUNDS: usize = 40;
/// Cosines below this are out of the beam.
const LEAST_COSINE: f64 = 0.05;
/// Priors, 1 sigma: order; tilt in radians.
const ORDER: f64 = 3.0;
const TILT: f64 = 0.17;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Per luminaire that was seen often enough.
    pub luminaires: Vec<Shine>,
    /// Anchors that were not.
    pub unseen: Vec<u16>,
}

/// One luminaire.
#[derive(Clone, Debug, Serialize)]
pub struct Shine {
    /// Which.
    pub id: u16,
    /// Direction of the beam, unit length.
    pub axis: [f64; 3],
    /// Standard deviation of its direction, degrees.
    pub axis_sigma_deg: f64,
    /// Lambertian order and its standard deviation.
    pub order: f64,
    /// See there.
    pub order_sigma: f64,
    /// Power one metre away on both axes, in the unit of the recording.
    pub gain: f64,
    /// Its standard deviation, percent.
    pub gain_sigma_pct: f64,
    /// Standard deviation of the logarithm of a power.
    pub sigma_ln: f64,
    /// Powers used.
    pub samples: usize,
    /// Powers left out.
    pub rejected: usize,
}

/// Where the receiver was, its normal, and the logarithm of the power.
type Sight = (Vector3<f64>, Vector3<f64>, f64);

/// Calibrates the luminaires of a map from recordings of powers, each with its truth.
pub fn calibrate(map: &mut SiteMap, runs: &[(Ranges, Truth)]) -> Result<Report, InputError> {
    let mut report = Report {
        luminaires: Vec::new(),
        unseen: Vec::new(),
    };
    for at in 0..map.anchors.len() {
        let anchor = &map.anchors[at];
        let place = Vector3::from(anchor.position_m);
        let mut sights: Vec<Sight> = Vec::new();
        for (powers, truth) in runs {
            for s in powers.samples.iter().filter(|s| s.anchor == anchor.id) {
                let pose = truth.at(s.tag, s.time_s + map.recording.time_offset_s);
                if let Some(pose) = pose {
                    let d = pose.point(map.lever(s.tag)) - place;
                    sights.push((d, pose.attitude * Vector3::z(), s.range_m.ln()));
                }
            }
        }
        match shine(anchor.light, &sights) {
            Some((light, mut found)) => {
                found.id = anchor.id;
                map.anchors[at].light = Some(light);
                report.luminaires.push(found);
            }
            None => report.unseen.push(anchor.id),
        }
    }
    if report.luminaires.is_empty() {
        let file = runs.first().map_or(&map.file, |(r, _)| &r.file);
        let what = format!(
            "no luminaire has {LEAST} powers with a truth of the same time inside its beam; check the clocks, and that the receiver is below"
        );
        return Err(InputError::whole(file, what));
    }
    map.version = map.version.saturating_add(1);
    Ok(report)
}

/// Two directions across an axis.
fn across(axis: Vector3<f64>) -> (Vector3<f64>, Vector3<f64>) {
    let other = if axis.x.abs() < 0.7 {
        Vector3::x()
    } else {
        Vector3::y()
    };
    let a = axis.cross(&other).normalize();
    (a, axis.cross(&a))
}

fn shine(light: Option<Light>, sights: &[Sight]) -> Option<(Light, Shine)> {
    let down = -Vector3::z();
    let prior_axis = light.map_or(down, |l| Vector3::from(l.axis).normalize());
    let prior_order = light.map_or(1.0, |l| l.order);
    let (e1, e2) = across(prior_axis);
    // ln gain, order, tilts along both directions.
    let mut x = Vector4::new(0.0, prior_order, 0.0, 0.0);
    let axis_of = |x: &Vector4<f64>| (prior_axis + e1 * x[2] + e2 * x[3]).normalize();
    let model = |x: &Vector4<f64>, (d, normal, _): &Sight| {
        let far = d.norm();
        let (out, seen) = (axis_of(x).dot(d) / far, -normal.dot(d) / far);
        (far > 0.05 && out > LEAST_COSINE && seen > LEAST_COSINE).then(|| {
            (
                x[0] + x[1] * out.ln() + seen.ln() - 2.0 * far.ln(),
                out,
                far,
            )
        })
    };
    let residuals = |x: &Vector4<f64>| -> Vec<f64> {
        sights
            .iter()
            .map(|s| model(x, s).map_or(f64::NAN, |m| s.2 - m.0))
            .collect()
    };
    let spread = |values: &[f64]| {
        let mut off: Vec<f64> = values
            .iter()
            .filter(|r| r.is_finite())
            .map(|r| r.abs())
            .collect();
        1.4826 * quantile(&mut off, 0.5).unwrap_or(0.0)
    };
    let mut first: Vec<f64> = residuals(&x)
        .into_iter()
        .filter(|r| r.is_finite())
        .collect();
    if first.len() < LEAST {
        return None;
    }
    x[0] = quantile(&mut first, 0.5)?;
    let mut now = residuals(&x);
    let mut scale = spread(&now).max(1e-4);
    let certainty = Vector4::new(0.0, ORDER.powi(-2), TILT.powi(-2), TILT.powi(-2));
    let prior = Vector4::new(0.0, prior_order, 0.0, 0.0);
    let mut covariance = Matrix4::identity();
    for round in 0..ROUNDS {
        let mut normal = Matrix4::from_diagonal(&certainty);
        let mut right = certainty.component_mul(&(prior - x));
        for (s, r) in sights.iter().zip(&now) {
            let z = r / (tukey::REACH * scale);
            let w = tukey::weight(z) / (scale * scale);
            let Some((_, out, far)) = model(&x, s) else {
                continue;
            };
            if w.is_nan() || w <= 0.0 {
                continue;
            }
            let slope = x[1] / (out * far);
            let g = Vector4::new(1.0, out.ln(), slope * e1.dot(&s.0), slope * e2.dot(&s.0));
            normal += g * g.transpose() * w;
            right += g * (w * r);
        }
        let factor = normal.cholesky()?;
        let step = factor.solve(&right);
        covariance = factor.inverse();
        x += step;
        x[1] = x[1].clamp(0.1, 60.0);
        for k in 2..4 {
            x[k] = x[k].clamp(-1.0, 1.0);
        }
        now = residuals(&x);
        scale = spread(&now).max(1e-4);
        if round > 8 && step.amax() < 1e-7 {
            break;
        }
    }
    let (mut squares, mut samples, mut rejected) = (0.0, 0, 0);
    for r in now.iter().filter(|r| r.is_finite()) {
        if r.abs() < tukey::REACH * scale {
            samples += 1;
            squares += r * r;
        } else {
            rejected += 1;
        }
    }
    if samples < LEAST {
        return None;
    }
    let sigma_ln = (squares / samples as f64).sqrt().max(1e-3);
    let light = Light {
        axis: axis_of(&x).into(),
        order: x[1],
        gain: x[0].exp(),
        sigma_ln: Some(sigma_ln),
    };
    let sigma = |k: usize| covariance[(k, k)].max(0.0).sqrt();
    let found = Shine {
        id: 0,
        axis: light.axis,
        axis_sigma_deg: sigma(2).hypot(sigma(3)).to_degrees(),
        order: light.order,
        order_sigma: sigma(1),
        gain: light.gain,
        gain_sigma_pct: 100.0 * sigma(0),
        sigma_ln,
        samples,
        rejected,
    };
    Some((light, found))
}

impl Report {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = String::new();
        for l in &self.luminaires {
            let [x, y, z] = l.axis;
            t += &format!(
                "luminaire {}: order {:.2} ± {:.2}, gain {:.4} ± {:.1} %, axis {x:.3}, {y:.3}, {z:.3} ± {:.1}°; powers scatter by {:.1} %, {} used, {} left out\n",
                l.id,
                l.order,
                l.order_sigma,
                l.gain,
                l.gain_sigma_pct,
                l.axis_sigma_deg,
                l.sigma_ln * 100.0,
                l.samples,
                l.rejected
            );
        }
        for id in &self.unseen {
            t += &format!(
                "anchor {id}: fewer than {LEAST} powers inside its beam, left as it was\n"
            );
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

    #[test]
    fn a_walk_under_the_lamps_tells_how_each_shines() {
        let dir = tempfile::tempdir().expect("room");
        let lamps = [
            ([1.0, 1.0, 3.0], [0.0, 0.0, -1.0], 1.0, 4.0),
            ([4.0, 1.0, 3.0], [0.15, 0.0, -1.0], 2.5, 7.0),
            ([2.5, 3.5, 2.8], [0.0, -0.1, -1.0], 1.6, 2.0),
        ];
        let text: String = (0..3)
            .map(|i| {
                let [x, y, z] = lamps[i].0;
                format!("[[anchor]]\nid = {i}\nx_m = {x}\ny_m = {y}\nz_m = {z}\n")
            })
            .collect();
        let mut map = SiteMap::parse(Path::new("m.toml"), &text).expect("right");
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut powers = String::from("time_s,anchor,power\n");
        let mut truth = String::from("time_s,x_m,y_m,z_m\n");
        for step in 0..1500 {
            let t = f64::from(step) * 0.05;
            let p = Vector3::new(
                2.5 + 2.2 * (0.7 * t).sin(),
                2.0 + 1.8 * (1.1 * t).cos(),
                0.9 + 0.5 * (0.3 * t).sin(),
            );
            let _ = writeln!(truth, "{t:.3},{:.4},{:.4},{:.4}", p.x, p.y, p.z);
            for (id, (place, axis, order, gain)) in lamps.iter().enumerate() {
                let d = p - Vector3::from(*place);
                let far = d.norm();
                let out = Vector3::from(*axis).normalize().dot(&d) / far;
                let noise: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                let shade = if rng.random::<f64>() < 0.05 { 0.3 } else { 1.0 };
                let power = gain * out.powf(*order) * (-d.z / far) / (far * far);
                let _ = writeln!(
                    powers,
                    "{t:.3},{id},{:.6}",
                    shade * power * (0.05 * noise).exp()
                );
            }
        }
        let (a, b) = (dir.path().join("p.csv"), dir.path().join("t.csv"));
        std::fs::write(&a, powers).expect("writable");
        std::fs::write(&b, truth).expect("writable");
        let runs = [(
            Ranges::load_powers(&a, &map).expect("right"),
            Truth::load(&b, "").expect("right"),
        )];
        let report = calibrate(&mut map, &runs).expect("enough");
        for (found, (_, axis, order, gain)) in report.luminaires.iter().zip(lamps) {
            assert!((found.order - order).abs() < 0.1, "{found:?}");
            assert!((found.gain / gain - 1.0).abs() < 0.03, "{found:?}");
            let axis = Vector3::from(axis).normalize();
            let off = axis.angle(&Vector3::from(found.axis)).to_degrees();
            assert!(off < 1.5, "{off} {found:?}");
            assert!((0.045..0.056).contains(&found.sigma_ln), "{found:?}");
            assert!(found.rejected > 40, "{found:?}");
        }
        assert!(map.anchors.iter().all(|a| a.light.is_some()));
        let again = SiteMap::parse(Path::new("m.toml"), &map.to_toml()).expect("written by us");
        assert_eq!(again.anchors[1].light.map(|l| l.order > 2.3), Some(true));
    }
}
