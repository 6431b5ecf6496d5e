//! Where a camera is that sees luminaires whose positions are known.
//!
//! [`Camera`] is a pinhole with the distortion of D. Brown (Photogrammetric Engineering 37
//! (1971) 855). [`locate_camera`] finds position and attitude from three luminaires or more:
//! Grunert's equations for three of them (R. Haralick et al., Int. J. Computer Vision 13 (1994)
//! 331) give up to four starts, each is refined on all pixels, and every minimum that explains
//! them is a pose. [`locate_bearings`] finds the position when the attitude is known.
//!
//! Camera frame: x right, y down, z along the view.

use crate::locate::LocateError;
use crate::math::{Real, Sym3, chi2_limit, count};
use nalgebra::{Matrix2x3, Matrix3, Matrix6, SMatrix, Vector2, Vector3, Vector6};

/// Most luminaires of one image.
pub const MAX_PIXELS: usize = 32;
/// Evaluations of one refinement.
const MAX_EVALUATIONS: usize = 40;
/// A second pose that explains the pixels worse by more than this in chi-square is none.
const MIRROR_CHI2: f64 = 20.0;

/// A calibrated camera; lengths in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Camera<T> {
    /// Focal lengths along x and y.
    pub focal: [T; 2],
    /// Principal point.
    pub centre: [T; 2],
    /// Radial distortion `k1, k2, k3`.
    pub radial: [T; 3],
    /// Tangential distortion `p1, p2`.
    pub tangential: [T; 2],
}

/// A luminaire seen in an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelObs<T> {
    /// Where the luminaire is, room frame, metres.
    pub anchor_m: [T; 3],
    /// Where its image is.
    pub pixel: [T; 2],
    /// Standard deviation of each coordinate, pixels.
    pub sigma_px: T,
}

/// A luminaire seen in a known direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BearingObs<T> {
    /// Where the luminaire is, room frame, metres.
    pub anchor_m: [T; 3],
    /// From the receiver towards the luminaire, room frame; need not have unit length.
    pub direction: [T; 3],
    /// Standard deviation of the direction about each axis across it, radians.
    pub sigma_rad: T,
}

/// Position and attitude of a camera.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pose<T: Real> {
    /// Room frame, metres.
    pub position_m: [T; 3],
    /// Turns room coordinates into camera coordinates.
    pub rotation: Matrix3<T>,
    /// Covariance of position (metres) and of a small turn in the camera frame (radians).
    pub covariance: Matrix6<T>,
    /// Sum of squared normalised residuals.
    pub chi2: T,
    /// Root mean square residual, pixels.
    pub residual_rms_px: T,
}

/// A pose and, when the image leaves the choice, the others that explain it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CameraFix<T: Real> {
    /// The pose that fits best.
    pub pose: Pose<T>,
    /// Other poses that fit about as well, best first: the mirror image of flat luminaires seen
    /// from afar, and up to three with only three luminaires.
    pub others: [Option<Pose<T>>; 3],
    /// Luminaires used.
    pub used: u8,
}

impl<T: Real> Camera<T> {
    /// Image of a point in the camera frame; `None` behind the camera.
    pub fn project(&self, p: &Vector3<T>) -> Option<[T; 2]> {
        self.image(p).map(|(pixel, _)| pixel.into())
    }

    /// Direction in the camera frame, unit length, that is imaged at `pixel`. `None` where the
    /// distortion cannot be undone.
    pub fn ray(&self, pixel: [T; 2]) -> Option<Vector3<T>> {
        let ([u, v], [fx, fy], [cx, cy]) = (pixel, self.focal, self.centre);
        let wanted = Vector2::new((u - cx) / fx, (v - cy) / fy);
        let mut at = wanted;
        for _ in 0..20 {
            let (found, slope) = self.distort(&at);
            let off = wanted - found;
            if off.norm_squared() < T::of(64.0) * T::default_epsilon() * T::default_epsilon() {
                break;
            }
            let [a, b, c, d] = [slope[(0, 0)], slope[(0, 1)], slope[(1, 0)], slope[(1, 1)]];
            let determinant = a * d - b * c;
            if determinant <= T::of(1e-3) {
                return None;
            }
            at += Vector2::new(d * off.x - b * off.y, a * off.y - c * off.x) / determinant;
        }
        let (found, _) = self.distort(&at);
        let ray = Vector3::new(at.x, at.y, T::one());
        let off = (wanted - found).norm();
        (off < T::of(1e-4)).then(|| ray / ray.norm())
    }

    /// Pixel and its derivative by the point.
    fn image(&self, p: &Vector3<T>) -> Option<(Vector2<T>, Matrix2x3<T>)> {
        if p.z <= T::of(1e-3) {
            return None;
        }
        let inverse = T::one() / p.z;
        let flat = Vector2::new(p.x * inverse, p.y * inverse);
        let (bent, slope) = self.distort(&flat);
        let ([fx, fy], [cx, cy]) = (self.focal, self.centre);
        let pixel = Vector2::new(fx * bent.x + cx, fy * bent.y + cy);
        let zero = T::zero();
        let perspective = Matrix2x3::new(
            inverse,
            zero,
            -flat.x * inverse,
            zero,
            inverse,
            -flat.y * inverse,
        );
        let mut derivative = slope * perspective;
        derivative.row_mut(0).scale_mut(fx);
        derivative.row_mut(1).scale_mut(fy);
        Some((pixel, derivative))
    }

    /// Distorted coordinates on the plane one unit away, and their derivative.
    fn distort(&self, at: &Vector2<T>) -> (Vector2<T>, nalgebra::Matrix2<T>) {
        let ([k1, k2, k3], [p1, p2]) = (self.radial, self.tangential);
        let (x, y) = (at.x, at.y);
        let (two, six) = (T::of(2.0), T::of(6.0));
        let r2 = x * x + y * y;
        let radial = T::one() + r2 * (k1 + r2 * (k2 + r2 * k3));
        let slope = two * (k1 + r2 * (two * k2 + T::of(3.0) * r2 * k3));
        let bent = Vector2::new(
            x * radial + two * p1 * x * y + p2 * (r2 + two * x * x),
            y * radial + p1 * (r2 + two * y * y) + two * p2 * x * y,
        );
        let across = x * y * slope + two * (p1 * x + p2 * y);
        let derivative = nalgebra::Matrix2::new(
            radial + x * x * slope + two * p1 * y + six * p2 * x,
            across,
            across,
            radial + y * y * slope + six * p1 * y + two * p2 * x,
        );
        (bent, derivative)
    }
}

/// Pose of a camera from three luminaires or more; residuals rarer than a normal deviate of
/// `consistency` sigmas are refused.
pub fn locate_camera<T: Real>(
    observations: &[PixelObs<T>],
    camera: &Camera<T>,
    consistency: T,
) -> Result<CameraFix<T>, LocateError> {
    let have = observations.len();
    if have < 3 {
        let have = have as u8;
        return Err(LocateError::TooFew { need: 3, have });
    }
    if have > MAX_PIXELS {
        return Err(LocateError::TooMany);
    }
    let mut rays = [Vector3::zeros(); MAX_PIXELS];
    for (i, (ray, o)) in rays.iter_mut().zip(observations).enumerate() {
        let sane = |x: &T| x.abs() <= T::of(1e5);
        let ok = o.anchor_m.iter().chain(&o.pixel).all(sane)
            && o.sigma_px >= T::of(1e-4)
            && sane(&o.sigma_px);
        let found = camera.ray(o.pixel).filter(|_| ok);
        *ray = found.ok_or(LocateError::Invalid { index: i as u8 })?;
    }
    let triple = widest(observations).ok_or(LocateError::Collinear)?;
    let places = triple.map(|i| observations.get(i).map(|o| Vector3::from(o.anchor_m)));
    let seen = triple.map(|i| rays.get(i).copied());
    let ([Some(p0), Some(p1), Some(p2)], [Some(r0), Some(r1), Some(r2)]) = (places, seen) else {
        return Err(LocateError::Collinear);
    };
    let mut minima: [Option<Pose<T>>; 4] = [None; 4];
    for start in three_point([p0, p1, p2], [r0, r1, r2])
        .into_iter()
        .flatten()
    {
        let Some(found) = refine(observations, camera, start) else {
            continue;
        };
        let same = |m: &Pose<T>| {
            let apart = Vector3::from(m.position_m) - Vector3::from(found.position_m);
            let turned = (m.rotation - found.rotation).norm_squared();
            apart.norm_squared() < T::of(1e-4) && turned < T::of(1e-3)
        };
        if minima.iter().flatten().any(same) {
            continue;
        }
        // Sorted insertion; at most four starts, at most four minima.
        let place = minima
            .iter()
            .position(|m| m.is_none_or(|m| found.chi2 < m.chi2));
        if let Some(tail) = place.and_then(|at| minima.get_mut(at..)) {
            tail.rotate_right(1);
            if let Some(slot) = tail.first_mut() {
                *slot = Some(found);
            }
        }
    }
    let [Some(pose), others @ ..] = minima else {
        return Err(LocateError::NotConverged);
    };
    let dof = 2 * have - 6;
    if dof > 0 && pose.chi2 > chi2_limit(dof, consistency) {
        return Err(LocateError::Inconsistent {
            chi2: pose.chi2.as_f32(),
            dof: dof as u8,
        });
    }
    Ok(CameraFix {
        pose,
        others: others.map(|m| m.filter(|m| m.chi2 - pose.chi2 < T::of(MIRROR_CHI2))),
        used: have as u8,
    })
}

/// Three luminaires spanning a large triangle: the two farthest apart and the one farthest from
/// their line. `None` if all are in one line.
fn widest<T: Real>(observations: &[PixelObs<T>]) -> Option<[usize; 3]> {
    let place = |i: usize| observations.get(i).map(|o| Vector3::from(o.anchor_m));
    let mut pair = (T::zero(), 0, 0);
    for i in 0..observations.len() {
        for j in i + 1..observations.len() {
            let apart = (place(i)? - place(j)?).norm_squared();
            if apart > pair.0 {
                pair = (apart, i, j);
            }
        }
    }
    let (length, i, j) = pair;
    let along = place(j)? - place(i)?;
    let mut third = (T::zero(), 0);
    for k in 0..observations.len() {
        let area = along.cross(&(place(k)? - place(i)?)).norm_squared();
        if area > third.0 {
            third = (area, k);
        }
    }
    (third.0 > T::of(1e-6) * length * length).then_some([i, j, third.1])
}

/// Attitude and position.
type Start<T> = (Matrix3<T>, Vector3<T>);

/// Up to four poses from which three points are seen along three rays.
fn three_point<T: Real>(points: [Vector3<T>; 3], rays: [Vector3<T>; 3]) -> [Option<Start<T>>; 4] {
    let ([p1, p2, p3], [r1, r2, r3]) = (points, rays);
    let (one, two, four) = (T::one(), T::of(2.0), T::of(4.0));
    let (ca, cb, cg) = (r2.dot(&r3), r1.dot(&r3), r1.dot(&r2));
    let b2 = (p1 - p3).norm_squared();
    let (a, c) = ((p2 - p3).norm_squared() / b2, (p1 - p2).norm_squared() / b2);
    let (minus, plus) = (a - c, a + c);
    let quartic = [
        (one + minus) * (one + minus) - four * a * cg * cg,
        four * (two * a * cg * cg * cb - minus * (one + minus) * cb - (one - plus) * ca * cg),
        two * (minus * minus - one + two * minus * minus * cb * cb + two * (one - c) * ca * ca
            - four * plus * ca * cb * cg
            + two * (one - a) * cg * cg),
        four * (minus * (one - minus) * cb - (one - plus) * ca * cg + two * c * ca * ca * cb),
        (minus - one) * (minus - one) - four * c * ca * ca,
    ];
    roots(&quartic).map(|v| {
        let v = v.filter(|v| *v > T::zero())?;
        let below = two * (cg - v * ca);
        let s1 = (b2 / (one + v * v - two * v * cb)).sqrt();
        let u = if below.abs() > T::of(1e-6) {
            ((minus - one) * v * v - two * minus * cb * v + one + minus) / below
        } else {
            one
        };
        if !(s1.is_finite() && u > T::zero()) {
            return None;
        }
        let seen = [r1 * s1, r2 * (u * s1), r3 * (v * s1)];
        let room = frame(&points)?;
        let camera = frame(&seen)?;
        let rotation = camera * room.transpose();
        let [q1, ..] = seen;
        Some((rotation, p1 - rotation.tr_mul(&q1)))
    })
}

/// Right-handed axes attached to a triangle.
fn frame<T: Real>([a, b, c]: &[Vector3<T>; 3]) -> Option<Matrix3<T>> {
    let tiny = T::of(1e-9);
    let x = (b - a).try_normalize(tiny)?;
    let z = x.cross(&(c - a)).try_normalize(tiny)?;
    Some(Matrix3::from_columns(&[x, z.cross(&x), z]))
}

/// Real parts of the roots of a quartic (constant first) that are real or nearly so: noise
/// parts double roots. Simultaneous iteration (E. Durand; I. Kerner, Numerische Mathematik 8
/// (1966) 290).
fn roots<T: Real>(coefficients: &[T; 5]) -> [Option<T>; 4] {
    let [c0, c1, c2, c3, c4] = *coefficients;
    if c4.abs() <= T::of(1e-12) {
        return [None; 4];
    }
    let monic = [c0 / c4, c1 / c4, c2 / c4, c3 / c4];
    type Complex<T> = (T, T);
    fn times<T: Real>(a: Complex<T>, b: Complex<T>) -> Complex<T> {
        (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
    }
    let reach = monic.iter().fold(T::one(), |m, c| m.max(c.abs())).sqrt();
    let mut z = [(0.4, 0.9), (-0.65, 0.72), (-0.9, -0.4), (0.5, -0.8)]
        .map(|(re, im)| (T::of(re) * reach, T::of(im) * reach));
    for _ in 0..60 {
        let mut moved = T::zero();
        for i in 0..4 {
            let Some(&at) = z.get(i) else { continue };
            let mut value = (T::one(), T::zero());
            for c in monic.iter().rev() {
                let next = times(value, at);
                value = (next.0 + *c, next.1);
            }
            let mut below = (T::one(), T::zero());
            for (j, other) in z.iter().enumerate() {
                if j != i {
                    below = times(below, (at.0 - other.0, at.1 - other.1));
                }
            }
            let size = below.0 * below.0 + below.1 * below.1;
            if size <= T::zero() {
                continue;
            }
            let step = times(value, (below.0 / size, -below.1 / size));
            if let Some(place) = z.get_mut(i) {
                *place = (at.0 - step.0, at.1 - step.1);
            }
            moved = moved.max(step.0.abs() + step.1.abs());
        }
        if moved <= reach * T::default_epsilon() * T::of(16.0) {
            break;
        }
    }
    z.map(|(re, im)| (im.abs() <= T::of(0.1) * (re.abs() + im.abs())).then_some(re))
}

fn refine<T: Real>(
    observations: &[PixelObs<T>],
    camera: &Camera<T>,
    (rotation, position): Start<T>,
) -> Option<Pose<T>> {
    struct Normal<T: Real> {
        info: Matrix6<T>,
        gradient: Vector6<T>,
        chi2: T,
        squares: T,
    }
    let evaluate = |rotation: &Matrix3<T>, position: &Vector3<T>| {
        let mut n = Normal {
            info: Matrix6::zeros(),
            gradient: Vector6::zeros(),
            chi2: T::zero(),
            squares: T::zero(),
        };
        for o in observations {
            let p = rotation * (Vector3::from(o.anchor_m) - position);
            let (pixel, slope) = camera.image(&p)?;
            let residual = Vector2::from(o.pixel) - pixel;
            let mut jacobian = SMatrix::<T, 2, 6>::zeros();
            jacobian
                .fixed_view_mut::<2, 3>(0, 0)
                .copy_from(&(-(slope * rotation)));
            jacobian
                .fixed_view_mut::<2, 3>(0, 3)
                .copy_from(&(-(slope * p.cross_matrix())));
            let weight = T::one() / (o.sigma_px * o.sigma_px);
            n.info += jacobian.tr_mul(&jacobian) * weight;
            n.gradient += jacobian.tr_mul(&residual) * weight;
            n.chi2 += residual.norm_squared() * weight;
            n.squares += residual.norm_squared();
        }
        n.chi2.is_finite().then_some(n)
    };
    let (mut rotation, mut position) = (rotation, position);
    let mut here = evaluate(&rotation, &position)?;
    let mut damping = T::of(1e-4);
    let mut settled = false;
    for _ in 0..MAX_EVALUATIONS {
        let mut damped = here.info;
        for k in 0..6 {
            damped[(k, k)] *= T::one() + damping;
        }
        let step = damped.cholesky()?.solve(&here.gradient);
        let gain = step.dot(&here.gradient);
        let turn = Vector3::new(step[3], step[4], step[5]);
        let turned = nalgebra::Rotation3::new(turn).into_inner() * rotation;
        let moved = position + Vector3::new(step[0], step[1], step[2]);
        match evaluate(&turned, &moved) {
            Some(there) if there.chi2 <= here.chi2 * (T::one() + T::of(1e-6)) => {
                (rotation, position, here) = (turned, moved, there);
                damping *= T::of(0.1);
                if gain <= T::of(1e-3) {
                    settled = true;
                    break;
                }
            }
            _ if gain <= T::of(1e-3) => {
                settled = true;
                break;
            }
            _ => damping = (damping * T::of(10.0)).max(T::of(1e-4)),
        }
    }
    let covariance = here.info.cholesky()?.inverse();
    settled.then(|| Pose {
        position_m: position.into(),
        rotation,
        covariance,
        chi2: here.chi2,
        residual_rms_px: (here.squares / count(observations.len())).sqrt(),
    })
}

/// Position from two or more luminaires seen in known directions, with its covariance.
pub fn locate_bearings<T: Real>(
    observations: &[BearingObs<T>],
) -> Result<([T; 3], [[T; 3]; 3]), LocateError> {
    if observations.len() < 2 {
        let have = observations.len() as u8;
        return Err(LocateError::TooFew { need: 2, have });
    }
    for (i, o) in observations.iter().enumerate() {
        let sane = |x: &T| x.abs() <= T::of(1e4);
        let ok = o.anchor_m.iter().chain(&o.direction).all(sane)
            && Vector3::from(o.direction).norm_squared() > T::of(1e-12)
            && o.sigma_rad >= T::of(1e-6)
            && sane(&o.sigma_rad);
        if !ok {
            let index = i.min(255) as u8;
            return Err(LocateError::Invalid { index });
        }
    }
    // Nearest to all lines, each weighted by how far away it is seen; distances settle quickly.
    let mut x: Option<Vector3<T>> = None;
    let mut info = Sym3::zero();
    for _ in 0..6 {
        (info, x) = {
            let (mut info, mut pull) = (Sym3::zero(), Vector3::zeros());
            for o in observations {
                let anchor = Vector3::from(o.anchor_m);
                let direction = Vector3::from(o.direction).normalize();
                let distance = x.map_or(T::one(), |x| (anchor - x).norm().max(T::of(0.01)));
                let weight = T::one() / (o.sigma_rad * distance * o.sigma_rad * distance);
                let mut across = Sym3::diagonal(weight);
                across.add_outer(-weight, &direction);
                pull += across.mul(&anchor);
                info = info.plus(&across, T::zero());
            }
            let factor = info.factor().ok_or(LocateError::Collinear)?;
            (info, Some(factor.solve(&pull)))
        };
    }
    let covariance = info.factor().ok_or(LocateError::Collinear)?.inverse();
    match x.filter(|x| x.iter().all(|c| c.is_finite())) {
        Some(x) => Ok((x.into(), covariance.rows())),
        None => Err(LocateError::NotConverged),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{World, distance};
    use std::vec::Vec;

    fn camera() -> Camera<f64> {
        Camera {
            focal: [800.0, 810.0],
            centre: [640.0, 360.0],
            radial: [-0.12, 0.03, 0.001],
            tangential: [0.0008, -0.0005],
        }
    }

    fn lamps(n: usize) -> Vec<[f64; 3]> {
        let all = [
            [1.0, 1.0, 3.0],
            [4.5, 1.2, 3.0],
            [2.8, 4.0, 3.0],
            [1.2, 3.6, 3.0],
            [4.2, 3.5, 3.0],
            [2.6, 0.4, 3.0],
            [0.4, 2.2, 3.0],
            [5.2, 2.4, 3.0],
        ];
        all[..n].to_vec()
    }

    /// A camera near the floor that looks up, tilted a little.
    fn pose(world: &mut World) -> (Matrix3<f64>, [f64; 3]) {
        let tilt = Vector3::new(0.3 * world.normal(), 0.3 * world.normal(), world.normal());
        let position = world.point([2.0, 1.5, 0.3], [3.5, 3.0, 0.8]);
        (nalgebra::Rotation3::new(tilt).into_inner(), position)
    }

    fn see(
        world: &mut World,
        lamps: &[[f64; 3]],
        (rotation, position): &(Matrix3<f64>, [f64; 3]),
        sigma_px: f64,
    ) -> Option<Vec<PixelObs<f64>>> {
        let image = |&anchor_m: &[f64; 3]| {
            let p = rotation * (Vector3::from(anchor_m) - Vector3::from(*position));
            let [u, v] = camera().project(&p).filter(|_| p.xy().norm() < 1.2 * p.z)?;
            Some(PixelObs {
                anchor_m,
                pixel: [u + sigma_px * world.normal(), v + sigma_px * world.normal()],
                sigma_px,
            })
        };
        lamps.iter().map(image).collect()
    }

    #[test]
    fn a_ray_is_imaged_where_it_came_from() {
        let mut world = World::new(1);
        for _ in 0..1_000 {
            let p = Vector3::from(world.point([-0.8, -0.6, 1.0], [0.8, 0.6, 1.0001]));
            let pixel = camera().project(&p).expect("in front");
            let ray = camera().ray(pixel).expect("invertible");
            assert!((ray - p.normalize()).norm() < 1e-9);
        }
        assert_eq!(camera().project(&Vector3::new(0.0, 0.0, -1.0)), None);
    }

    #[test]
    fn the_pose_is_as_exact_as_the_bound_and_both_are_told_when_there_are_two() {
        for n in 3..=8 {
            let mut world = World::new(n as u64);
            let (mut squares, mut told, mut ambiguous, mut all) = (0.0, 0.0, 0, 0);
            while all < 400 {
                let truth = pose(&mut world);
                let Some(seen) = see(&mut world, &lamps(n), &truth, 1.0) else {
                    continue;
                };
                all += 1;
                let fix = locate_camera(&seen, &camera(), 5.0).expect("in view");
                let near = |p: &Pose<f64>| distance(p.position_m, truth.1);
                let others = fix.others.into_iter().flatten();
                ambiguous += usize::from(fix.others[0].is_some());
                let best = others.fold(fix.pose, |best, other| {
                    if near(&other) < near(&best) {
                        other
                    } else {
                        best
                    }
                });
                squares += near(&best).powi(2);
                told += best.covariance.fixed_view::<3, 3>(0, 0).trace();
            }
            let ratio = (squares / told).sqrt();
            assert!((0.85..1.15).contains(&ratio), "{n}: {ratio}");
            assert!(
                n > 3 || ambiguous > 100,
                "three lamps leave a choice: {ambiguous}"
            );
            assert!(n < 6 || ambiguous < 40, "{n}: {ambiguous}");
        }
    }

    #[test]
    fn lamps_in_a_row_are_refused() {
        let row: Vec<_> = (0..4)
            .map(|i| PixelObs {
                anchor_m: [f64::from(i), 0.0, 3.0],
                pixel: [200.0 * f64::from(i), 300.0],
                sigma_px: 1.0,
            })
            .collect();
        assert_eq!(
            locate_camera(&row, &camera(), 5.0),
            Err(LocateError::Collinear)
        );
    }

    #[test]
    fn bearings_locate_as_well_as_their_covariance_says() {
        let mut world = World::new(9);
        let (mut squares, mut told) = (0.0, 0.0);
        for _ in 0..2_000 {
            let x = world.point([1.0, 1.0, 0.5], [5.0, 4.0, 1.5]);
            let bearings: Vec<_> = lamps(4)
                .into_iter()
                .map(|anchor_m| {
                    let d = (Vector3::from(anchor_m) - Vector3::from(x)).normalize();
                    let noise = Vector3::new(world.normal(), world.normal(), world.normal());
                    let across = noise - d * d.dot(&noise);
                    BearingObs {
                        anchor_m,
                        direction: (d + across * 0.01).into(),
                        sigma_rad: 0.01,
                    }
                })
                .collect();
            let (found, covariance) = locate_bearings(&bearings).expect("four lamps");
            squares += distance(found, x).powi(2);
            told += (0..3).map(|k| covariance[k][k]).sum::<f64>();
        }
        let ratio = (squares / told).sqrt();
        assert!((0.95..1.05).contains(&ratio), "{ratio}");
    }
}
