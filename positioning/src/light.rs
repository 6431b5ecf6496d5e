//! How bright a luminaire looks from a point, and where a receiver is that sees several.
//!
//! The Lambertian model of a luminaire (J. Kahn, J. Barry, Proceedings of the IEEE 85 (1997)
//! 265), in logarithms because noise and calibration errors are relative:
//!
//! ```text
//! ln P = ln gain + m ln cos φ + ln cos ψ - 2 ln d
//! ```
//!
//! `φ` is the angle at the luminaire from its axis, `ψ` that at the receiver from its normal, `m`
//! the order, `gain` the power received one metre away on both axes.

use crate::locate::{Fix, LocateError, Options, Problem, RangeObs};
use crate::math::{Real, Sym3, count};
use nalgebra::Vector3;

/// Evaluations before a fix is given up.
const MAX_EVALUATIONS: usize = 30;
/// Cosines below this are out of the beam.
const LEAST_COSINE: f64 = 0.02;

/// How a luminaire shines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Luminaire {
    /// Direction of the beam, room frame; need not have unit length.
    pub axis: [f32; 3],
    /// Lambertian order: 1 for a plain emitter, higher for narrower beams.
    pub order: f32,
    /// Received power one metre away on the axis, in the unit of the measurements.
    pub gain: f32,
    /// Standard deviation of the logarithm of a power (0.1 is 10 %), if that was measured.
    pub sigma_ln: Option<f32>,
}

impl Luminaire {
    pub(crate) fn is_sane(&self) -> bool {
        let squares: f32 = self.axis.iter().map(|x| x * x).sum();
        (1e-6..1e6).contains(&squares)
            && (0.0..=100.0).contains(&self.order)
            && (1e-30..1e30).contains(&self.gain)
            && self.sigma_ln.is_none_or(|s| (1e-4..=10.0).contains(&s))
    }
}

/// Received power of one luminaire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LightObs<T> {
    /// Where the luminaire is, room frame, metres.
    pub anchor_m: [T; 3],
    /// Direction of its beam.
    pub axis: [T; 3],
    /// Lambertian order.
    pub order: T,
    /// Power received one metre away on the axis.
    pub gain: T,
    /// Power received, same unit.
    pub power: T,
    /// Standard deviation of the logarithm of the power (0.1 is 10 %).
    pub sigma_ln: T,
}

impl<T: Real> LightObs<T> {
    /// Measured minus computed logarithm of the power at `x`, and the gradient of the computed
    /// one, for a receiver that looks along `normal`. `None` outside the beam or behind the
    /// receiver.
    pub(crate) fn innovation(&self, x: Vector3<T>, normal: &Vector3<T>) -> Option<(T, Vector3<T>)> {
        let d = x - Vector3::from(self.anchor_m);
        let d2 = d.norm_squared();
        let axis = Vector3::from(self.axis);
        let (out, seen) = (axis.dot(&d), -normal.dot(&d));
        let reach = d2.sqrt() * T::of(LEAST_COSINE);
        if !(out > reach * axis.norm() && seen > reach * normal.norm()) {
            return None;
        }
        let cosines = out / (axis.norm() * d2.sqrt());
        let seen_cosine = seen / (normal.norm() * d2.sqrt());
        let computed = self.gain.ln() + self.order * cosines.ln() + seen_cosine.ln() - d2.ln();
        let gradient =
            axis * (self.order / out) - *normal / seen - d * ((self.order + T::of(3.0)) / d2);
        Some((self.power.ln() - computed, gradient))
    }

    fn is_sane(&self) -> bool {
        let within = |x: &T| x.abs() <= T::of(1e4);
        self.anchor_m.iter().chain(&self.axis).all(within)
            && within(&self.order)
            && self.order >= T::zero()
            && self.gain > T::zero()
            && self.power > T::zero()
            && self.gain.is_finite()
            && self.power.is_finite()
            && self.sigma_ln >= T::of(1e-4)
            && within(&self.sigma_ln)
    }
}

/// Position from the powers of three or more luminaires (four in 3D), for a receiver that looks
/// along `normal` (straight up: `[0, 0, 1]`), at a known height or not.
///
/// Each power bounds a distance if the height is assumed; heights from near the floor to near
/// the luminaires are tried in 3D, and the start that fits best is refined on the powers
/// themselves.
pub fn locate_light<T: Real>(
    observations: &[LightObs<T>],
    normal: [T; 3],
    height_m: Option<T>,
    options: &Options<T>,
) -> Result<Fix<T>, LocateError> {
    let dimensions = if height_m.is_some() { 2 } else { 3 };
    let (need, have) = (dimensions as u8 + 1, observations.len().min(255) as u8);
    if have < need {
        return Err(LocateError::TooFew { need, have });
    }
    if observations.len() > crate::locate::MAX_OBSERVATIONS {
        return Err(LocateError::TooMany);
    }
    if let Some(index) = observations.iter().position(|o| !o.is_sane()) {
        let index = index as u8;
        return Err(LocateError::Invalid { index });
    }
    let normal = Vector3::from(normal);
    let mut lowest = T::infinity();
    for o in observations {
        let [.., z] = o.anchor_m;
        lowest = lowest.min(z);
    }
    let mut best: Option<(State<T>, T)> = None;
    let drops = [0.3, 0.7, 1.2, 1.8, 2.5, 3.5, 5.0, 8.0];
    for drop in drops {
        let height = height_m.unwrap_or(lowest - T::of(drop));
        if let Some(start) = start(observations, height, options)
            && let Some(found) = refine(observations, &normal, start, height_m.is_some())
            && best.as_ref().is_none_or(|(_, chi2)| found.chi2 < *chi2)
        {
            let chi2 = found.chi2;
            best = Some((found, chi2));
        }
        if height_m.is_some() {
            break;
        }
    }
    let (found, chi2) = best.ok_or(LocateError::NotConverged)?;
    let dof = observations.len() - dimensions;
    if chi2 > crate::math::chi2_limit(dof, options.consistency) {
        return Err(LocateError::Inconsistent {
            chi2: chi2.as_f32(),
            dof: dof as u8,
        });
    }
    let mut info = found.info;
    if height_m.is_some() {
        (info.xz, info.yz, info.zz) = (T::zero(), T::zero(), T::one());
    }
    let mut covariance = info.factor().ok_or(LocateError::Collinear)?.inverse();
    if height_m.is_some() {
        covariance.zz = T::zero();
    }
    Ok(Fix {
        position_m: found.x.into(),
        covariance_m2: covariance.rows(),
        residual_rms_m: (found.range_squares / count(observations.len())).sqrt(),
        chi2,
        used: have,
        excluded: 0,
        mirror: None,
    })
}

struct State<T> {
    x: Vector3<T>,
    info: Sym3<T>,
    gradient: Vector3<T>,
    chi2: T,
    /// Residuals as errors of distance, squared and added.
    range_squares: T,
}

/// Ranges that the powers imply for luminaires and receiver that face each other across the
/// vertical distance, `P d² = gain cos^(m+1)`, and the position they meet in.
fn start<T: Real>(
    observations: &[LightObs<T>],
    height: T,
    options: &Options<T>,
) -> Option<Vector3<T>> {
    let mut ranges = [RangeObs {
        anchor_m: [T::zero(); 3],
        range_m: T::zero(),
        sigma_m: T::zero(),
    }; crate::locate::MAX_OBSERVATIONS];
    for (range, o) in ranges.iter_mut().zip(observations) {
        let [.., z] = o.anchor_m;
        let drop = (z - height).max(T::of(0.05));
        let power = o.order + T::of(3.0);
        let ln = o.gain.ln() - o.power.ln() + (power - T::of(2.0)) * drop.ln();
        let distance = (ln / power).exp().max(drop).min(T::of(1e3));
        *range = RangeObs {
            anchor_m: o.anchor_m,
            range_m: distance,
            sigma_m: (distance * o.sigma_ln / power).max(T::of(1e-3)),
        };
    }
    let ranges = ranges.get(..observations.len())?;
    let found = Problem::pose(ranges, Some(height), options, |p| p.roots(p.all(), false));
    let (minimum, _) = found.ok()?;
    let [first, ..] = ranges else { return None };
    let mut x = minimum.x + Vector3::from(first.anchor_m);
    x.z = height;
    Some(x)
}

fn refine<T: Real>(
    observations: &[LightObs<T>],
    normal: &Vector3<T>,
    start: Vector3<T>,
    flat: bool,
) -> Option<State<T>> {
    let evaluate = |x: Vector3<T>| {
        let mut s = State {
            x,
            info: Sym3::zero(),
            gradient: Vector3::zeros(),
            chi2: T::zero(),
            range_squares: T::zero(),
        };
        for o in observations {
            let (residual, mut gradient) = o.innovation(x, normal)?;
            let d = (x - Vector3::from(o.anchor_m)).norm();
            let error = residual * d / (o.order + T::of(3.0));
            if flat {
                gradient.z = T::zero();
            }
            let weight = T::one() / (o.sigma_ln * o.sigma_ln);
            s.info.add_outer(weight, &gradient);
            s.gradient += gradient * (weight * residual);
            s.chi2 += weight * residual * residual;
            s.range_squares += error * error;
        }
        s.chi2.is_finite().then_some(s)
    };
    let mut here = evaluate(start)?;
    let mut damping = T::of(1e-3);
    for _ in 0..MAX_EVALUATIONS {
        let load = here.info.trace();
        let mut damped = here.info.scaled_plus(T::one(), damping * load);
        if flat {
            damped.zz = load;
        }
        let step = damped.factor()?.solve(&here.gradient);
        let moved = here.info.quadratic(&step);
        match evaluate(here.x + step) {
            Some(there) if there.chi2 <= here.chi2 => {
                here = there;
                damping *= T::of(0.1);
                if moved <= T::of(1e-5) {
                    return Some(here);
                }
            }
            _ if damping > T::of(1e3) => return Some(here),
            _ => damping = (damping * T::of(8.0)).max(T::of(1e-4)),
        }
    }
    Some(here)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{World, distance};
    use std::vec::Vec;

    fn lamp(anchor_m: [f64; 3], axis: [f64; 3]) -> LightObs<f64> {
        LightObs {
            anchor_m,
            axis,
            order: 1.4,
            gain: 3.0,
            power: 1.0,
            sigma_ln: 0.05,
        }
    }

    fn ceiling() -> Vec<LightObs<f64>> {
        let tilt = |i: usize| [0.1 * (i as f64).sin(), 0.1 * (i as f64).cos(), -1.0];
        (0..6)
            .map(|i| {
                lamp(
                    [1.0 + 2.0 * (i % 3) as f64, 1.0 + 3.0 * (i / 3) as f64, 3.0],
                    tilt(i),
                )
            })
            .collect()
    }

    fn see(world: &mut World, lamps: &mut [LightObs<f64>], x: [f64; 3], up: [f64; 3]) {
        for o in lamps {
            o.power = 1.0;
            let (ln, _) = o.innovation(x.into(), &up.into()).expect("in the beam");
            o.power = (-ln + o.sigma_ln * world.normal()).exp();
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_model() {
        let (up, x) = (Vector3::new(0.1, -0.05, 1.0), Vector3::new(2.0, 1.5, 0.8));
        for o in ceiling() {
            let (_, gradient) = o.innovation(x, &up).expect("in the beam");
            for k in 0..3 {
                let mut step = Vector3::zeros();
                step[k] = 1e-6;
                let ahead = o.innovation(x + step, &up).expect("in the beam").0;
                let behind = o.innovation(x - step, &up).expect("in the beam").0;
                assert!((gradient[k] + (ahead - behind) / 2e-6).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn one_metre_under_a_lamp_its_gain_is_received() {
        let mut o = lamp([0.0, 0.0, 3.0], [0.0, 0.0, -2.0]);
        o.power = 3.0;
        let under = Vector3::new(0.0, 0.0, 2.0);
        let (innovation, _) = o.innovation(under, &Vector3::z()).expect("in the beam");
        assert!(innovation.abs() < 1e-12);
        assert_eq!(
            o.innovation(Vector3::new(0.0, 0.0, 3.5), &Vector3::z()),
            None
        );
    }

    #[test]
    fn powers_locate_as_well_as_their_covariance_says() {
        let mut world = World::new(1);
        for known in [true, false] {
            let (mut squares, mut told) = (0.0, 0.0);
            for _ in 0..1_000 {
                let x = world.point([1.5, 1.5, 0.5], [4.5, 3.5, 1.5]);
                let mut lamps = ceiling();
                let up = [0.05, 0.02, 1.0];
                see(&mut world, &mut lamps, x, up);
                let height = known.then_some(x[2]);
                let fix = locate_light(&lamps, up, height, &Options::default());
                let fix = fix.expect("six lamps in sight");
                squares += distance(fix.position_m, x).powi(2);
                told += (0..3).map(|k| fix.covariance_m2[k][k]).sum::<f64>();
            }
            let ratio = (squares / told).sqrt();
            assert!((0.93..1.07).contains(&ratio), "{known}: {ratio}");
        }
    }

    #[test]
    fn garbage_is_named_by_its_place() {
        let mut lamps = ceiling();
        lamps[3].power = 0.0;
        assert_eq!(
            locate_light(&lamps, [0.0, 0.0, 1.0], Some(1.0), &Options::default()),
            Err(LocateError::Invalid { index: 3 })
        );
        assert_eq!(
            locate_light(&lamps[..2], [0.0, 0.0, 1.0], Some(1.0), &Options::default()),
            Err(LocateError::TooFew { need: 3, have: 2 })
        );
    }
}
