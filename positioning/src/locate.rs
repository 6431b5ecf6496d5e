//! Lateration: where the tag is, from distances to known points, with its covariance.
//!
//! [`locate_3d`] and [`locate_2d`] are pure; the master calls them with the ranges of one
//! instant.
//!
//! ```text
//! validate -> prepare (weights) -> start -----------> refine ---> choose side -> check -> Fix
//!                                  flat: both roots   Newton, damped
//! ```
//!
//! **Start.** The squared-range problem `min Σ w (|x - a|² - r²)²` is solved globally as a
//! generalised trust-region problem: A. Beck, P. Stoica, J. Li, "Exact and approximate solutions
//! of source localization problems", IEEE Trans. Signal Processing 56 (2008) 1770. With anchors
//! centred on their weighted centroid it splits into `(4S + λI) x = g` and a scalar equation in
//! `λ`, `S` being the anchors' scatter. Weights `1 / (2 r σ)²` make it agree with maximum
//! likelihood to first order.
//!
//! **Flat anchors** (a ceiling) are the hard case of that problem: the component along the
//! normal has lost its sign, not its size, so both roots are constructed, refined and reported.
//!
//! **Refinement** maximises the likelihood by Gauss-Newton while residuals are small against
//! distances, else by Newton's method: near an anchor residuals bend the likelihood so much that
//! Gauss-Newton alone swings about the minimum. Both are damped, and the Fisher information stands
//! in for a Hessian that is not positive definite. The covariance is its inverse.

use crate::math::{Real, Sym3, chi2_limit, count};
use nalgebra::Vector3;

/// Most ranges that one fix takes.
pub const MAX_OBSERVATIONS: usize = 32;

/// Coordinates and ranges beyond this (metres) are taken for garbage. Keeps `f32` from
/// overflowing in products of four lengths.
const MAX_LENGTH_M: f64 = 1e4;
/// Smallest sigma accepted, metres.
const MIN_SIGMA_M: f64 = 1e-5;
/// Evaluations of the normal equations before refinement gives up.
const MAX_EVALUATIONS: usize = 24;
/// Observations whose distances are computed together.
const BLOCK: usize = 8;
/// Below this share of the weakest direction's information the bend of the spheres is left out of
/// the Hessian: convergence is then linear, each step leaving less than this share of the one before
/// and usually far less.
const STRAIGHT: f64 = 0.3;
/// Anchors are thin when their smallest variance is below this share of the middle one.
const THIN: f64 = 0.15;
/// Thin anchors tell the side by themselves when the other side's chi-square is forecast to be worse
/// by more than this: thrice [`MIRROR_CHI2`], as the forecast is that of squared ranges.
const TOLD: f64 = 90.0;
/// A second minimum is ruled out as if the square of the tag's distance from the anchors' plane were
/// larger by this.
const WIDER: f64 = 2.5;
/// A second root whose chi-square is worse by more than this is no alternative: wrong by
/// chance once in 10⁷ (the difference of costs `D` is normal with mean `D` and variance `4 D`).
const MIRROR_CHI2: f64 = 30.0;

/// A measured distance to a known point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangeObs<T> {
    /// Where the anchor is, room frame, metres.
    pub anchor_m: [T; 3],
    /// Measured distance with its bias already taken off, metres.
    pub range_m: T,
    /// Standard deviation of the distance, metres, at least 10 µm.
    pub sigma_m: T,
}

impl<T: Real> RangeObs<T> {
    /// Fills unused places.
    pub(crate) const NONE: Self = Self {
        anchor_m: [T::ZERO; 3],
        range_m: T::ZERO,
        sigma_m: T::ZERO,
    };
}

/// Which of two mirror images to take when flat anchors leave the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Side<T> {
    /// The lower one: anchors on a ceiling.
    #[default]
    Below,
    /// The upper one: anchors on a floor.
    Above,
    /// The one nearer to this point (metres): the last position, or the middle of the room when
    /// anchors are on one wall or, in 2D, in one line.
    Near([T; 3]),
    /// The one that fits better, however little.
    BestFit,
}

/// How to locate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options<T> {
    /// Choice between mirror images.
    pub side: Side<T>,
    /// In [`locate_2d`]: standard deviation of the height, metres; zero when it is exact.
    pub height_sigma_m: T,
    /// A fix whose residuals are less likely than a normal deviate of so many sigmas is refused
    /// as [`LocateError::Inconsistent`]; infinite to accept any.
    pub consistency: T,
}

impl<T: Real> Default for Options<T> {
    fn default() -> Self {
        Self {
            side: Side::Below,
            height_sigma_m: T::zero(),
            consistency: T::of(5.0),
        }
    }
}

/// A position and how well it is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fix<T> {
    /// Position in the room frame, metres.
    pub position_m: [T; 3],
    /// Covariance of the position, square metres, from the sigmas given (inverse Fisher
    /// information). Where the geometry sees nothing (the height of a tag in the anchors'
    /// plane) it is bounded by the square of the longest range.
    pub covariance_m2: [[T; 3]; 3],
    /// Root mean square of the residuals of the ranges used, metres.
    pub residual_rms_m: T,
    /// Sum of squared residuals over their variances.
    pub chi2: T,
    /// How many ranges were used.
    pub used: u8,
    /// Bit `i` is set when observation `i` was left out as faulty.
    pub excluded: u32,
    /// The mirror image that fits about as well, when there is one.
    pub mirror: Option<[T; 3]>,
}

impl<T: Real> Fix<T> {
    /// One standard deviation of the horizontal position (root of the sum of both variances),
    /// metres.
    pub fn sigma_horizontal_m(&self) -> T {
        let [[xx, ..], [_, yy, _], _] = self.covariance_m2;
        (xx + yy).max(T::zero()).sqrt()
    }

    /// One standard deviation of the height, metres.
    pub fn sigma_vertical_m(&self) -> T {
        let [_, _, [.., zz]] = self.covariance_m2;
        zz.max(T::zero()).sqrt()
    }
}

/// Why there is no position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LocateError {
    /// Wait for more anchors to be heard.
    TooFew {
        /// Least number for this problem.
        need: u8,
        /// How many were given.
        have: u8,
    },
    /// Pass the [`MAX_OBSERVATIONS`] best ones.
    TooMany,
    /// Drop this observation: not finite, negative, beyond 10 km, or sigma not positive.
    Invalid {
        /// Its place in the input.
        index: u8,
    },
    /// All anchors are at one point: the map is wrong.
    Coincident,
    /// All anchors are in one line: the position is somewhere on a circle around it.
    Collinear,
    /// Two positions fit, apart from each other horizontally, so that below and above do not
    /// choose: pass [`Side::Near`].
    Ambiguous,
    /// The ranges contradict each other: use [`crate::locate_robust_3d`].
    Inconsistent {
        /// Sum of squared normalised residuals.
        chi2: f32,
        /// Degrees of freedom.
        dof: u8,
    },
    /// No minimum within the bound on iterations; the ranges make no sense together.
    NotConverged,
}

/// Position from three or more ranges. With three, or with all anchors in one plane, two
/// positions fit; `options.side` chooses and [`Fix::mirror`] names the other.
pub fn locate_3d<T: Real>(
    observations: &[RangeObs<T>],
    options: &Options<T>,
) -> Result<Fix<T>, LocateError> {
    Problem::pose(observations, None, options, |problem| {
        problem.locate(problem.all(), options)
    })
}

/// Position at the known height `height_m` from three or more ranges.
pub fn locate_2d<T: Real>(
    observations: &[RangeObs<T>],
    height_m: T,
    options: &Options<T>,
) -> Result<Fix<T>, LocateError> {
    Problem::pose(observations, Some(height_m), options, |problem| {
        problem.locate(problem.all(), options)
    })
}

/// One observation, validated, relative to [`Problem::origin`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term<T> {
    anchor: Vector3<T>,
    range: T,
    /// `1 / σ²`
    pub weight: T,
    /// `1 / (r σ)²`: weight of the squared range, up to a common factor.
    share: T,
}

impl<T: Real> Term<T> {
    /// Fills unused places.
    pub const NONE: Self = Self {
        anchor: Vector3::new(T::ZERO, T::ZERO, T::ZERO),
        range: T::ZERO,
        weight: T::ZERO,
        share: T::ZERO,
    };

    /// Measured minus computed range.
    pub fn residual(&self, x: Vector3<T>) -> T {
        self.range - (x - self.anchor).norm()
    }

    /// Unit vector from the anchor to `x`; zero on the anchor itself.
    pub fn direction(&self, x: Vector3<T>) -> Vector3<T> {
        let d = x - self.anchor;
        let distance = d.norm();
        if distance > T::of(1e-9) {
            d / distance
        } else {
            Vector3::zeros()
        }
    }

    /// Squared residual over its variance.
    pub fn chi2(&self, x: Vector3<T>) -> T {
        let residual = self.residual(x);
        residual * residual * self.weight
    }
}

/// What is known about the height.
#[derive(Clone, Copy, Debug)]
enum Height<T> {
    Unknown,
    /// Value relative to the origin and `1 / σ²`; `None` when exact.
    Known(T, Option<T>),
}

/// Validated observations of one instant, from which any subset can be solved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem<'a, T> {
    origin: Vector3<T>,
    terms: &'a [Term<T>],
    height: Height<T>,
    /// `1 / (longest range)²`: nobody is further from an anchor than that.
    floor: T,
}

/// Normal equations at a point relative to the origin, on the way to a minimum or there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Minimum<T> {
    pub x: Vector3<T>,
    /// Fisher information.
    pub info: Sym3<T>,
    /// Half the Hessian of chi-square.
    hessian: Sym3<T>,
    /// The spheres hardly bend: the Hessian is the information.
    straight: bool,
    /// Inverse of the information, where the last step needed it.
    inverse: Option<Sym3<T>>,
    /// Minus half the gradient of chi-square.
    gradient: Vector3<T>,
    pub chi2: T,
    squares: T,
}

impl<T: Real> Problem<'_, T> {
    /// Validates, then hands the problem to `solve`. The terms live on the stack, in a small
    /// place when there are few of them.
    pub fn pose<R>(
        observations: &[RangeObs<T>],
        height_m: Option<T>,
        options: &Options<T>,
        solve: impl FnOnce(&Problem<'_, T>) -> Result<R, LocateError>,
    ) -> Result<R, LocateError> {
        if observations.len() <= 8 {
            let mut room = [Term::NONE; 8];
            solve(&Problem::new(&mut room, observations, height_m, options)?)
        } else {
            let mut room = [Term::NONE; MAX_OBSERVATIONS];
            solve(&Problem::new(&mut room, observations, height_m, options)?)
        }
    }

    fn new<'a>(
        room: &'a mut [Term<T>],
        observations: &[RangeObs<T>],
        height_m: Option<T>,
        options: &Options<T>,
    ) -> Result<Problem<'a, T>, LocateError> {
        let have = observations.len();
        if have > MAX_OBSERVATIONS {
            return Err(LocateError::TooMany);
        }
        let Some(first) = observations.first().filter(|_| have >= 3) else {
            let have = have as u8;
            return Err(LocateError::TooFew { need: 3, have });
        };
        let origin = Vector3::from(first.anchor_m);
        let limit = T::of(MAX_LENGTH_M);
        let sane = |x: T| x.abs() <= limit; // false for NaN
        let mut longest = T::zero();
        for (index, (term, o)) in room.iter_mut().zip(observations).enumerate() {
            let ok = o.anchor_m.into_iter().all(sane)
                && sane(o.range_m)
                && o.range_m >= T::zero()
                && sane(o.sigma_m)
                && o.sigma_m >= T::of(MIN_SIGMA_M);
            if !ok {
                let index = index as u8;
                return Err(LocateError::Invalid { index });
            }
            longest = longest.max(o.range_m.max(o.sigma_m));
            let variance = o.sigma_m * o.sigma_m;
            let square = (o.range_m * o.range_m).max(variance);
            let share = T::one() / (variance * square);
            *term = Term {
                anchor: Vector3::from(o.anchor_m) - origin,
                range: o.range_m,
                weight: share * square,
                share,
            };
        }
        let height = match height_m {
            None => Height::Unknown,
            Some(h) if sane(h) && sane(options.height_sigma_m) => {
                let s = options.height_sigma_m;
                let weight = (s >= T::of(MIN_SIGMA_M)).then(|| T::one() / (s * s));
                Height::Known(h - origin.z, weight)
            }
            Some(_) => return Err(LocateError::Invalid { index: have as u8 }),
        };
        Ok(Problem {
            origin,
            terms: room.get(..have).ok_or(LocateError::TooMany)?,
            height,
            floor: T::one() / (longest * longest),
        })
    }

    /// Every observation, as a mask.
    pub fn all(&self) -> u32 {
        u32::MAX >> (MAX_OBSERVATIONS - self.terms.len().clamp(1, MAX_OBSERVATIONS))
    }

    /// Unknown coordinates.
    pub fn dimensions(&self) -> usize {
        match self.height {
            Height::Unknown => 3,
            Height::Known(..) => 2,
        }
    }

    /// The observations of `mask`.
    pub fn terms(&self, mask: u32) -> impl Iterator<Item = &Term<T>> {
        self.numbered(mask).map(|(_, t)| t)
    }

    /// The observations of `mask` with their places.
    pub fn numbered(&self, mask: u32) -> impl Iterator<Item = (usize, &Term<T>)> {
        let numbered = self.terms.iter().enumerate();
        numbered.filter(move |(i, _)| mask >> i & 1 == 1)
    }

    /// Globally solves the observations of `mask`.
    pub fn locate(&self, mask: u32, options: &Options<T>) -> Result<Fix<T>, LocateError> {
        let used = mask.count_ones() as usize;
        let (minimum, mirror) = self.solve(mask, options)?;
        let dof = used.saturating_sub(self.dimensions());
        if minimum.chi2 > chi2_limit(dof, options.consistency) {
            return Err(LocateError::Inconsistent {
                chi2: minimum.chi2.as_f32(),
                dof: dof as u8,
            });
        }
        self.fix(mask, &minimum, mirror)
    }

    /// The best minimum on the side asked for, and the mirror image if it is as plausible.
    pub fn solve(
        &self,
        mask: u32,
        options: &Options<T>,
    ) -> Result<(Minimum<T>, Option<Vector3<T>>), LocateError> {
        let (one, two) = self.roots(mask, false)?;
        let Some(two) = two else {
            return Ok((one, None));
        };
        let apart = (two.x - one.x).norm_squared();
        let (best, worst) = if one.chi2 <= two.chi2 {
            (one, two)
        } else {
            (two, one)
        };
        if worst.chi2 - best.chi2 > T::of(MIRROR_CHI2) {
            return Ok((best, None));
        }
        let between = two.x - one.x;
        let horizontal = between.z * between.z < T::of(1e-4) * apart;
        let first = match options.side {
            Side::Near(p) => {
                let p = Vector3::from(p) - self.origin;
                (one.x - p).norm_squared() <= (two.x - p).norm_squared()
            }
            Side::Below if !horizontal => between.z >= T::zero(),
            Side::Above if !horizontal => between.z < T::zero(),
            Side::BestFit => one.chi2 <= two.chi2,
            Side::Below | Side::Above => {
                // Nothing but the fit can tell. Roots that noise can join need no telling.
                let alike = worst.chi2 - best.chi2 < T::of(9.0);
                if alike && best.info.quadratic(&between) > T::of(36.0) {
                    return Err(LocateError::Ambiguous);
                }
                one.chi2 <= two.chi2
            }
        };
        let (chosen, other) = if first { (one, two) } else { (two, one) };
        Ok((chosen, Some(other.x)))
    }

    /// The minima on both sides of thin anchors, the first below; otherwise the only one.
    /// `suspicious` asks for both even if the ranges leave no doubt, as faulty ranges may.
    #[inline]
    pub fn roots(
        &self,
        mask: u32,
        suspicious: bool,
    ) -> Result<(Minimum<T>, Option<Minimum<T>>), LocateError> {
        let start = self.start(mask, suspicious)?;
        let Some(normal) = start.normal else {
            let found = self
                .refine(mask, start.x)
                .ok_or(LocateError::NotConverged)?;
            return Ok((found, None));
        };
        // Refine both, each from its own side, the likelier first.
        let offset = normal * start.depth;
        let below = self.normal(mask, start.x - offset);
        let above = self.normal(mask, start.x + offset);
        let below_first = below.chi2 <= above.chi2;
        let (first, second) = if below_first {
            (below, above)
        } else {
            (above, below)
        };
        let first = self.descend(mask, first, T::infinity());
        let limit = match first {
            Some(m) if !suspicious => m.chi2 + T::of(4.0 * MIRROR_CHI2),
            _ => T::infinity(),
        };
        let (first, second) = match (first, self.descend(mask, second, limit)) {
            (Some(first), Some(second)) => (first, second),
            (Some(m), None) | (None, Some(m)) => return Ok((m, None)),
            (None, None) => return Err(LocateError::NotConverged),
        };
        if (second.x - first.x).norm_squared() * self.floor < T::of(1e-6) {
            return Ok((first, None)); // one and the same
        }
        Ok(if below_first {
            (first, Some(second))
        } else {
            (second, Some(first))
        })
    }

    /// Where to start refining for the minima of `mask`: on both sides of thin anchors.
    pub fn starts(&self, mask: u32) -> [Option<Vector3<T>>; 2] {
        match self.start(mask, false) {
            Err(_) => [None; 2],
            Ok(Start {
                x, normal: None, ..
            }) => [Some(x), None],
            Ok(Start {
                x,
                normal: Some(n),
                depth,
            }) => [Some(x - n * depth), Some(x + n * depth)],
        }
    }

    /// A minimum as the caller sees it.
    pub fn fix(
        &self,
        mask: u32,
        minimum: &Minimum<T>,
        mirror: Option<Vector3<T>>,
    ) -> Result<Fix<T>, LocateError> {
        let used = mask.count_ones();
        // As it is where bounding it would change nothing.
        let known = |c: &Sym3<T>| c.trace() * self.floor < T::of(1e-3);
        let covariance = match (self.height, minimum.inverse.filter(known)) {
            (Height::Known(_, None), _) | (_, None) => self.covariance(&minimum.info),
            (_, inverse) => inverse,
        };
        let covariance = covariance.ok_or(LocateError::NotConverged)?;
        let fix = Fix {
            position_m: (minimum.x + self.origin).into(),
            covariance_m2: covariance.rows(),
            residual_rms_m: (minimum.squares / count(used.max(1) as usize)).sqrt(),
            chi2: minimum.chi2,
            used: used as u8,
            excluded: self.all() & !mask,
            mirror: mirror.map(|m| (m + self.origin).into()),
        };
        let finite = fix.position_m.iter().all(|x| x.is_finite())
            && covariance.trace().is_finite()
            && fix.chi2.is_finite();
        finite.then_some(fix).ok_or(LocateError::NotConverged)
    }

    /// Inverse of the information, bounded where it is singular.
    pub fn covariance(&self, info: &Sym3<T>) -> Option<Sym3<T>> {
        let tiny = info.trace() * T::default_epsilon() * T::of(16.0);
        let mut regular = info.scaled_plus(T::one(), self.floor.max(tiny));
        let exact = matches!(self.height, Height::Known(_, None));
        if exact {
            regular.zz = T::one();
        }
        let mut covariance = regular.factor()?.inverse();
        if exact {
            covariance.zz = T::zero();
        }
        Some(covariance)
    }

    /// Where refinement starts.
    fn start(&self, mask: u32, suspicious: bool) -> Result<Start<T>, LocateError> {
        let (zero, one, two, four) = (T::zero(), T::one(), T::of(2.0), T::of(4.0));
        // Known height: the problem is that of the shadows on the floor.
        let flatten = |t: &Term<T>| match self.height {
            Height::Unknown => (t.anchor, t.range * t.range),
            Height::Known(h, _) => {
                let dz = t.anchor.z - h;
                let flat = Vector3::new(t.anchor.x, t.anchor.y, zero);
                (flat, t.range * t.range - dz * dz)
            }
        };
        let (mut total, mut centre) = (zero, Vector3::zeros());
        for t in self.terms(mask) {
            total += t.share;
            centre += flatten(t).0 * t.share;
        }
        if total <= zero {
            return Err(LocateError::Coincident);
        }
        let scale = one / total;
        centre *= scale;
        let (mut s, mut g, mut beta) = (Sym3::zero(), Vector3::zeros(), zero);
        let mut reach = zero;
        for t in self.terms(mask) {
            let w = t.share * scale;
            let (a, r2) = flatten(t);
            let d = a - centre;
            let d2 = d.norm_squared();
            let b = r2 - d2;
            s.add_outer(w, &d);
            g -= d * (two * w * b);
            beta += w * b;
            reach = reach.max(a.norm_squared());
        }
        let trace = s.trace();
        // Differences of coordinates carry the rounding of the coordinates.
        if trace <= reach * T::default_epsilon() * four || trace <= zero {
            return Err(LocateError::Coincident);
        }
        let (smallest, largest, known) = match self.height {
            Height::Unknown => {
                let [s1, s2, s3] = s.eigenvalues();
                if s2 <= s3 * T::of(1e-6) {
                    return Err(LocateError::Collinear);
                }
                (s1, s2, None)
            }
            Height::Known(h, _) => {
                // Without a vertical part the smallest eigenvalue is the vertical one, zero.
                let [_, s2, s3] = s.eigenvalues();
                s.zz = trace;
                (s2, s3, Some(h))
            }
        };
        let mut lambda = zero;
        if smallest < largest * T::of(THIN)
            && let Some(mut normal) = s.thin_direction(smallest)
        {
            if normal.z < zero {
                normal = -normal;
            }
            // In the plane the linear equations stand (λ = 0), across it the constraint
            // |x|² = α gives the size.
            let along = normal.dot(&g);
            let mut stiff = s;
            stiff.add_outer(trace, &normal);
            let factor = stiff.scaled_plus(four, zero).factor();
            let inside = factor
                .ok_or(LocateError::Collinear)?
                .solve(&(g - normal * along));
            let room = beta - inside.norm_squared();
            // Along the normal, chi-square goes as (t² - room)² + 4 s₁ (t - t₀)², times Σw / 4;
            // `along` is 4 s₁ t₀. Its derivative has three roots when 16 (room - 2 s₁)³ > 27 along².
            let stretched = T::of(WIDER) * room - two * smallest;
            let cube = T::of(16.0) * stretched * stretched * stretched;
            let single = cube < T::of(27.0) * along * along && smallest > largest * T::of(0.01);
            // How much worse it would be: at t = -√room, less what its own descent gains.
            let room = room.max(zero);
            let (depth, scale) = (room.sqrt(), one / (room + smallest));
            let share = room * scale;
            let worse = along.abs() * depth * (one + share) / two
                - (smallest * share * smallest + along * along * scale / T::of(16.0));
            let told = worse * total > T::of(TOLD);
            if suspicious || !(single || told) {
                // Not into the plane itself: there the gradient across it vanishes.
                let least = beta.abs() * T::of(1e-4) + T::of(MIN_SIGMA_M);
                return Ok(Start {
                    x: self.raise(inside + centre, known),
                    depth: depth.max(least.sqrt()),
                    normal: Some(normal),
                });
            }
            // One step from √room to the minimum along the normal, and the λ that has it there.
            let t = depth + (along.abs() / four - smallest * depth) * scale;
            lambda = (two * (t * t - room)).max(-two * smallest);
        }
        // φ(λ) = |x(λ)|² - β - λ/2 falls and is convex right of -4 s₁; its root is the global
        // minimum. Newton with bisection towards the pole.
        let pole = -four * smallest;
        let (mut low, mut high) = (pole, T::max_value().unwrap_or(one / T::default_epsilon()));
        let mut x = Vector3::zeros();
        for _ in 0..16 {
            let Some(factor) = s.scaled_plus(four, lambda).factor() else {
                low = lambda;
                lambda = lambda + (trace + lambda.abs()) * T::of(0.1);
                continue;
            };
            x = factor.solve(&g);
            let phi = x.norm_squared() - beta - lambda / two;
            if phi > zero {
                low = lambda;
            } else {
                high = lambda;
            }
            let bend = factor.solve(&x);
            let slope = two * x.dot(&bend) + T::of(0.5);
            let mut next = lambda + phi / slope;
            if !(next > low && next < high) {
                next = (low + lambda) / two;
            }
            let change = next - lambda;
            lambda = next;
            if change.abs() <= T::of(0.2) * four * smallest {
                // The rest to first order: dx/dλ = -(4S + λI)⁻¹ x.
                x -= bend * change;
                break;
            }
        }
        Ok(Start {
            x: self.raise(x + centre, known),
            depth: zero,
            normal: None,
        })
    }

    fn raise(&self, x: Vector3<T>, height: Option<T>) -> Vector3<T> {
        match height {
            Some(h) => Vector3::new(x.x, x.y, h),
            None => x,
        }
    }

    /// The minimum next to `x`. `None` when the bound on evaluations is hit.
    pub fn refine(&self, mask: u32, x: Vector3<T>) -> Option<Minimum<T>> {
        self.descend(mask, self.normal(mask, x), T::infinity())
    }

    /// As [`Self::refine`], given up once a minimum above `limit` is foreseen.
    pub fn refine_within(&self, mask: u32, x: Vector3<T>, limit: T) -> Option<Minimum<T>> {
        self.descend(mask, self.normal(mask, x), limit)
    }

    /// The same problem with other weights.
    pub fn with_terms<'b>(&self, terms: &'b [Term<T>]) -> Problem<'b, T> {
        Problem {
            origin: self.origin,
            terms,
            height: self.height,
            floor: self.floor,
        }
    }

    /// Descends to the minimum next to `here`. `None` when the bound on evaluations is hit, or
    /// when the normal equations foresee a minimum above `limit`.
    fn descend(&self, mask: u32, mut here: Minimum<T>, limit: T) -> Option<Minimum<T>> {
        let mut damping = T::zero();
        for _ in 0..MAX_EVALUATIONS {
            let load = here.info.trace();
            let tiny = load * T::default_epsilon() * T::of(16.0);
            let damped = damping.max(tiny);
            let newton = here.hessian.scaled_plus(T::one(), damped).factor();
            let factor = match newton {
                Some(factor) => factor,
                None => here.info.scaled_plus(T::one(), damped).factor()?,
            };
            let step = factor.solve(&here.gradient);
            let gain = here.gradient.dot(&step);
            if limit.is_finite() && damping <= T::zero() {
                // The forecast is good but for the bend of the spheres, |step|² / (2 range).
                let bend = step.norm_squared() * T::of(3.0) * (self.floor * load).sqrt();
                let forecast = (here.chi2 - gain).max(T::zero()).sqrt() - bend;
                if forecast > T::zero() && forecast * forecast > limit {
                    return None;
                }
            }
            if gain <= T::of(0.01) && gain >= T::zero() {
                // A tenth of a standard deviation: what comes after is far smaller, and
                // nothing but the position needs to be computed anew.
                here.x += step;
                here.chi2 = (here.chi2 - gain).max(T::zero());
                here.inverse = (here.straight && damping <= T::zero()).then(|| factor.inverse());
                return Some(here);
            }
            let there = self.normal(mask, here.x + step);
            // Rounding of the sum must not pass for an increase.
            let slack = here.chi2 * T::default_epsilon() * T::of(64.0);
            let downhill = there.chi2 <= here.chi2 + slack; // false for NaN
            if !downhill {
                damping = (damping * T::of(8.0)).max(load * T::of(1e-3));
                continue;
            }
            here = there;
            damping = if damping > load * T::of(1e-2) {
                damping * T::of(0.1)
            } else {
                T::zero()
            };
        }
        None
    }

    /// Distance from each of up to [`BLOCK`] anchors to `x`, and its inverse.
    #[inline]
    fn spans(&self, terms: &[Term<T>], x: Vector3<T>) -> [(T, T); BLOCK] {
        let mut spans = [(T::ZERO, T::ZERO); BLOCK];
        for (t, span) in terms.iter().zip(&mut spans) {
            // On the anchor itself there is no direction; this takes it as unknown.
            let distance = (x - t.anchor).norm_squared().sqrt().max(T::of(1e-9));
            *span = (distance, T::one() / distance);
        }
        spans
    }

    /// Normal equations at `x`.
    fn normal(&self, mask: u32, x: Vector3<T>) -> Minimum<T> {
        let mut n = Minimum {
            x,
            info: Sym3::zero(),
            hessian: Sym3::zero(),
            straight: false,
            inverse: None,
            gradient: Vector3::zeros(),
            chi2: T::zero(),
            squares: T::zero(),
        };
        let (mut bend, mut bent) = (T::zero(), T::zero());
        // Roots and divisions first, so that they overlap; then what needs them.
        for (block, terms) in self.terms.chunks(BLOCK).enumerate() {
            let spans = self.spans(terms, x);
            for (i, (t, (distance, inverse))) in terms.iter().zip(spans).enumerate() {
                if mask >> (block * BLOCK + i) & 1 == 0 {
                    continue;
                }
                let u = (x - t.anchor) * inverse;
                let residual = t.range - distance;
                let pull = t.weight * residual;
                n.chi2 += pull * residual;
                n.squares += residual * residual;
                n.gradient += u * pull;
                n.info.add_outer(t.weight, &u);
                let curve = pull * inverse;
                bend += curve;
                bent += curve.abs();
            }
        }
        // The bend of the spheres matters near anchors, with faulty ranges, and along directions that
        // the anchors hardly see.
        let weakest = match self.height {
            Height::Unknown => n.info.weakest(T::zero()),
            Height::Known(_, Some(weight)) => n.info.weakest(weight),
            Height::Known(_, None) => n.info.weakest_flat(),
        };
        // Not so far when NaN.
        n.straight = bent <= weakest * T::of(STRAIGHT);
        if !n.straight {
            for (block, terms) in self.terms.chunks(BLOCK).enumerate() {
                let spans = self.spans(terms, x);
                for (i, (t, (distance, inverse))) in terms.iter().zip(spans).enumerate() {
                    if mask >> (block * BLOCK + i) & 1 == 1 {
                        let u = (x - t.anchor) * inverse;
                        let curve = t.weight * (t.range - distance) * inverse;
                        n.hessian.add_outer(curve, &u);
                    }
                }
            }
        } else {
            bend = T::zero();
        }
        match self.height {
            Height::Unknown => {}
            Height::Known(h, Some(weight)) => {
                let off = h - x.z;
                n.info.zz += weight;
                n.gradient.z += weight * off;
                n.chi2 += weight * off * off;
            }
            Height::Known(_, None) => {
                for m in [&mut n.info, &mut n.hessian] {
                    (m.xz, m.yz, m.zz) = (T::zero(), T::zero(), T::zero());
                }
                n.info.zz = (n.info.xx + n.info.yy) / T::of(2.0);
                n.gradient.z = T::zero();
            }
        }
        n.hessian = n.hessian.plus(&n.info, -bend);
        n
    }
}

/// A start, and for thin anchors the direction and distance of the two roots from their plane.
struct Start<T> {
    x: Vector3<T>,
    normal: Option<Vector3<T>>,
    depth: T,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{World, distance, single};
    use proptest::prelude::*;
    use std::vec::Vec;

    const SIGMA: f64 = 0.05;

    fn options() -> Options<f64> {
        Options::default()
    }

    /// Six anchors spread over walls and ceiling of a 10 x 8 x 3 m room.
    const SPREAD: [[f64; 3]; 6] = [
        [0.0, 0.0, 2.8],
        [10.0, 0.0, 0.4],
        [10.0, 8.0, 2.9],
        [0.0, 8.0, 0.3],
        [5.0, 0.0, 1.5],
        [5.0, 8.0, 1.2],
    ];

    fn ceiling(stagger: f64) -> Vec<[f64; 3]> {
        (0..6)
            .map(|i| {
                let (column, row) = (i % 3, i / 3);
                let z = 3.0 + if i % 2 == 0 { stagger } else { -stagger };
                [1.0 + 4.0 * f64::from(column), 1.0 + 6.0 * f64::from(row), z]
            })
            .collect()
    }

    /// Cramer-Rao bound of the position, trace, at `tag`.
    fn bound(tag: [f64; 3], anchors: &[[f64; 3]], sigma: f64) -> f64 {
        let mut info = Sym3::zero();
        for &a in anchors {
            let d = Vector3::from(tag) - Vector3::from(a);
            info.add_outer(1.0 / (sigma * sigma), &(d / d.norm()));
        }
        info.factor().expect("regular").inverse().trace()
    }

    #[test]
    fn the_error_is_that_of_the_cramer_rao_bound() {
        let mut world = World::new(1);
        let (mut squares, mut bounds) = (0.0, 0.0);
        for _ in 0..20_000 {
            let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.5]);
            let ranges = world.ranges(tag, &SPREAD, SIGMA);
            let fix = locate_3d(&ranges, &options()).expect("good geometry");
            squares += distance(fix.position_m, tag).powi(2);
            bounds += bound(tag, &SPREAD, SIGMA);
        }
        let ratio = (squares / bounds).sqrt();
        assert!((0.985..1.015).contains(&ratio), "{ratio}");
    }

    #[test]
    fn the_covariance_is_that_of_the_errors() {
        let mut world = World::new(2);
        let tag = [3.0, 5.0, 1.0];
        let (mut found, mut told) = ([0.0; 3], [0.0; 3]);
        for _ in 0..10_000 {
            let ranges = world.ranges(tag, &SPREAD, SIGMA);
            let fix = locate_3d(&ranges, &options()).expect("good geometry");
            for k in 0..3 {
                found[k] += (fix.position_m[k] - tag[k]).powi(2);
                told[k] += fix.covariance_m2[k][k];
            }
        }
        for (found, told) in found.into_iter().zip(told) {
            assert!((0.93..1.07).contains(&(found / told)), "{found} {told}");
        }
    }

    #[test]
    fn under_any_ceiling_the_tag_is_found_below_it_and_the_mirror_reported() {
        let mut world = World::new(3);
        for stagger in [0.0, 0.005, 0.25] {
            let anchors = ceiling(stagger);
            for _ in 0..3_000 {
                let tag = world.point([1.0, 1.0, 0.2], [9.0, 7.0, 2.0]);
                let ranges = world.ranges(tag, &anchors, SIGMA);
                let fix = locate_3d(&ranges, &options()).expect("good geometry");
                assert!(distance(fix.position_m, tag) < 1.0, "{tag:?} {fix:?}");
                if stagger < 0.1 {
                    let [x, y, z] = fix.mirror.expect("a ceiling has a mirror image");
                    assert!(distance([x, y, 6.0 - z], tag) < 1.0, "{tag:?} {fix:?}");
                }
            }
        }
    }

    /// [`Problem::roots`] saves the second side where it foresees that it is no alternative.
    #[test]
    fn a_side_that_was_not_tried_is_none_that_would_have_been_told() {
        let mut world = World::new(14);
        let (mut saved, mut wrong) = (0, 0);
        let trials = 20_000;
        for trial in 0..trials {
            let thickness = [1e-9, 0.005, 0.05, 0.15, 0.3, 0.6, 1.0, 1.6][trial % 8];
            let count = 4 + trial / 8 % 5;
            let anchors: Vec<_> = (0..count)
                .map(|_| world.point([0.0, 0.0, 3.0 - thickness], [10.0, 8.0, 3.0 + thickness]))
                .collect();
            let tag = world.point([1.0, 1.0, 0.2], [9.0, 7.0, 4.0]);
            let ranges = world.ranges(tag, &anchors, SIGMA);
            let _ = Problem::pose(&ranges, None, &options(), |problem| {
                let all = problem.all();
                let (Ok(quick), Ok(both)) = (problem.roots(all, false), problem.roots(all, true))
                else {
                    return Ok(());
                };
                let (None, Some(other)) = (quick.1, both.1) else {
                    return Ok(());
                };
                saved += 1;
                let (best, worst) = if both.0.chi2 < other.chi2 {
                    (both.0, other)
                } else {
                    (other, both.0)
                };
                // Half a sigma apart are two ends of one descent.
                let apart = best.info.quadratic(&(best.x - worst.x)).sqrt();
                let lost = worst.chi2 - best.chi2 < MIRROR_CHI2 && apart > 0.5;
                wrong += usize::from(lost || quick.0.chi2 > best.chi2 + 0.01);
                Ok(())
            });
        }
        assert!(saved > trials / 20 && wrong == 0, "{wrong} of {saved}");
    }

    #[test]
    fn the_side_asked_for_is_the_side_found() {
        let anchors = ceiling(0.0);
        let ranges = World::new(4).ranges([4.0, 3.0, 1.0], &anchors, 0.01);
        for (side, z) in [
            (Side::Below, 1.0),
            (Side::Above, 5.0),
            (Side::Near([0.0, 0.0, 9.0]), 5.0),
        ] {
            let options = Options { side, ..options() };
            let fix = locate_3d(&ranges, &options).expect("good geometry");
            assert!((fix.position_m[2] - z).abs() < 0.1, "{side:?}: {fix:?}");
        }
    }

    #[test]
    fn three_anchors_are_enough_with_a_side() {
        let anchors = [[0.0, 0.0, 3.0], [6.0, 0.0, 2.5], [0.0, 5.0, 2.8]];
        let tag = [2.0, 1.5, 1.0];
        let ranges = World::new(5).ranges(tag, &anchors, 1e-4);
        let fix = locate_3d(&ranges, &options()).expect("three spheres meet in two points");
        assert!(distance(fix.position_m, tag) < 0.01, "{fix:?}");
        assert!(fix.mirror.is_some());
    }

    #[test]
    fn a_tag_in_the_plane_of_the_anchors_is_found_in_plan() {
        let anchors = ceiling(0.0);
        let mut world = World::new(6);
        for _ in 0..1_000 {
            let tag = world.point([2.0, 2.0, 2.999], [8.0, 6.0, 3.001]);
            let fix = locate_3d(&world.ranges(tag, &anchors, SIGMA), &options());
            let fix = fix.expect("flat but solvable");
            let [x, y, _] = fix.position_m;
            assert!(distance([x, y, 3.0], tag) < 0.5, "{tag:?} {fix:?}");
            assert!(
                fix.covariance_m2[2][2] > 0.01,
                "height is not known: {fix:?}"
            );
        }
    }

    #[test]
    fn at_a_known_height_the_error_is_that_of_the_bound_in_the_plane() {
        let mut world = World::new(7);
        let anchors = ceiling(0.0);
        let (mut squares, mut told) = (0.0, 0.0);
        for _ in 0..10_000 {
            let tag = world.point([1.0, 1.0, 1.0], [9.0, 7.0, 1.000_001]);
            let fix = locate_2d(&world.ranges(tag, &anchors, SIGMA), 1.0, &options());
            let fix = fix.expect("good geometry");
            assert_eq!(fix.position_m[2], 1.0);
            squares += distance(fix.position_m, tag).powi(2);
            told += fix.sigma_horizontal_m().powi(2);
        }
        let ratio = (squares / told).sqrt();
        assert!((0.98..1.02).contains(&ratio), "{ratio}");
    }

    #[test]
    fn an_uncertain_height_widens_the_fix_and_is_itself_improved() {
        let mut world = World::new(8);
        let anchors = ceiling(0.0);
        let vague = Options {
            height_sigma_m: 0.3,
            ..options()
        };
        let (mut squares, mut told, mut height) = (0.0, 0.0, 0.0);
        for _ in 0..5_000 {
            let tag = world.point([1.0, 1.0, 1.0], [9.0, 7.0, 1.000_001]);
            let guess = 1.0 + 0.3 * world.normal();
            let fix = locate_2d(&world.ranges(tag, &anchors, SIGMA), guess, &vague);
            let fix = fix.expect("good geometry");
            let flat = [fix.position_m[0], fix.position_m[1], tag[2]];
            squares += distance(flat, tag).powi(2);
            told += fix.sigma_horizontal_m().powi(2);
            height += (fix.position_m[2] - tag[2]).powi(2);
        }
        let ratio = (squares / told).sqrt();
        assert!((0.9..1.1).contains(&ratio), "{ratio}");
        assert!((height / 5_000.0).sqrt() < 0.15, "{height}");
    }

    #[test]
    fn degenerate_geometry_has_its_own_error() {
        let tag = [2.0, 1.0, 1.0];
        let mut world = World::new(9);
        let mut locate = |anchors: &[[f64; 3]]| {
            let ranges = world.ranges(tag, anchors, 0.01);
            locate_3d(&ranges, &options()).map(|fix| fix.position_m)
        };
        assert_eq!(
            locate(&SPREAD[..2]),
            Err(LocateError::TooFew { need: 3, have: 2 })
        );
        assert_eq!(locate(&[[1.0, 2.0, 3.0]; 5]), Err(LocateError::Coincident));
        let line: Vec<_> = (0..5).map(|i| [f64::from(i), 0.0, 3.0]).collect();
        assert_eq!(locate(&line), Err(LocateError::Collinear));
        assert_eq!(locate(&[SPREAD[0]; 33]), Err(LocateError::TooMany));
        let wall = [
            [0.0, 0.0, 0.0],
            [5.0, 0.0, 0.0],
            [0.0, 0.0, 3.0],
            [5.0, 0.0, 3.0],
        ];
        assert_eq!(locate(&wall), Err(LocateError::Ambiguous));
    }

    #[test]
    fn one_line_of_lamps_leaves_left_and_right_open_at_a_known_height() {
        let line: Vec<_> = (0..5).map(|i| [2.0 * f64::from(i), 0.0, 3.0]).collect();
        let tag = [3.0, 2.0, 1.0];
        let ranges = World::new(10).ranges(tag, &line, 0.01);
        assert_eq!(
            locate_2d(&ranges, 1.0, &options()),
            Err(LocateError::Ambiguous)
        );
        let near = Options {
            side: Side::Near([0.0, 5.0, 0.0]),
            ..options()
        };
        let fix = locate_2d(&ranges, 1.0, &near).expect("the side is given");
        assert!(distance(fix.position_m, tag) < 0.1, "{fix:?}");
        let mirror = fix.mirror.expect("the other side of the line");
        assert!(distance(mirror, [3.0, -2.0, 1.0]) < 0.1, "{fix:?}");
    }

    #[test]
    fn contradicting_ranges_are_refused_unless_any_fit_is_asked_for() {
        let mut ranges = World::new(11).ranges([3.0, 4.0, 1.0], &SPREAD, SIGMA);
        ranges[2].range_m += 2.0;
        assert!(matches!(
            locate_3d(&ranges, &options()),
            Err(LocateError::Inconsistent { dof: 3, .. })
        ));
        let any = Options {
            consistency: f64::INFINITY,
            ..options()
        };
        assert!(locate_3d(&ranges, &any).expect("a fit").residual_rms_m > 0.2);
    }

    #[test]
    fn garbage_is_named_by_its_place() {
        let good = World::new(12).ranges([3.0, 4.0, 1.0], &SPREAD, SIGMA);
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e30] {
            let mut ranges = good.clone();
            ranges[4].range_m = bad;
            assert_eq!(
                locate_3d(&ranges, &options()),
                Err(LocateError::Invalid { index: 4 }),
                "{bad}"
            );
        }
        let mut ranges = good;
        ranges[1].sigma_m = 0.0;
        assert_eq!(
            locate_3d(&ranges, &options()),
            Err(LocateError::Invalid { index: 1 })
        );
    }

    #[test]
    fn single_precision_agrees_with_double_within_a_tenth_of_a_sigma() {
        let mut world = World::new(13);
        for anchors in [SPREAD.to_vec(), ceiling(0.0), ceiling(0.005), ceiling(0.25)] {
            for _ in 0..1_000 {
                let tag = world.point([1.0, 1.0, 0.3], [9.0, 7.0, 2.0]);
                let ranges = world.ranges(tag, &anchors, SIGMA);
                let double = locate_3d(&ranges, &options()).expect("good geometry");
                let found = locate_3d(&single(&ranges), &Options::default());
                let found = found.expect("good geometry").position_m.map(f64::from);
                let sigma = double.covariance_m2[2][2].sqrt();
                assert!(
                    distance(found, double.position_m) < 0.1 * sigma,
                    "{tag:?} {found:?} {double:?}"
                );
            }
        }
    }

    /// Lengths as a broken sensor, bus or map would give them.
    fn any_length() -> impl Strategy<Value = f64> {
        prop_oneof![
            4 => -10.0..10.0f64,
            2 => (-3i32..=3).prop_map(f64::from),
            1 => Just(0.0),
            1 => -1e4..1e4f64,
            1 => 0.0..1e-5f64,
            1 => prop::num::f64::ANY,
        ]
    }

    fn any_observation() -> impl Strategy<Value = RangeObs<f64>> {
        let sigma = prop_oneof![Just(0.05), 1e-5..1.0f64, any_length()];
        let anchor = prop::array::uniform3(any_length());
        let range = any_length().prop_map(|r| if r > -10.0 { r.abs() } else { r });
        (anchor, range, sigma).prop_map(|(anchor_m, range_m, sigma_m)| RangeObs {
            anchor_m,
            range_m,
            sigma_m,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        #[test]
        fn any_input_gives_an_error_or_a_finite_answer(
            observations in prop::collection::vec(any_observation(), 0..10),
            height in any_length(),
            height_sigma_m in any_length(),
        ) {
            let any = Options { consistency: f64::INFINITY, height_sigma_m, ..options() };
            for found in [
                locate_3d(&observations, &any),
                locate_2d(&observations, height, &any),
            ].into_iter().flatten() {
                prop_assert!(found.position_m.iter().all(|x| x.is_finite()));
                prop_assert!(found.covariance_m2.iter().flatten().all(|x| x.is_finite()));
                prop_assert!((0..3).all(|k| found.covariance_m2[k][k] >= 0.0));
            }
            let single_any = Options { consistency: f32::INFINITY, ..Options::default() };
            if let Ok(found) = locate_3d(&single(&observations), &single_any) {
                prop_assert!(found.position_m.iter().all(|x| x.is_finite()));
                prop_assert!(found.covariance_m2.iter().flatten().all(|x| x.is_finite()));
            }
        }

        #[test]
        fn moving_and_turning_the_room_moves_and_turns_the_fix(
            seed in 0u64..1000, turn in 0.0..core::f64::consts::TAU, shift in -100.0..100.0f64,
        ) {
            let tag = [3.0, 4.0, 1.0];
            let ranges = World::new(seed).ranges(tag, &ceiling(0.0), SIGMA);
            let place = |[x, y, z]: [f64; 3]| {
                let (s, c) = turn.sin_cos();
                [c * x - s * y + shift, s * x + c * y - shift, z + shift]
            };
            let moved: Vec<_> = ranges.iter()
                .map(|o| RangeObs { anchor_m: place(o.anchor_m), ..*o }).collect();
            let here = locate_3d(&ranges, &options());
            let there = locate_3d(&moved, &options());
            if let (Ok(here), Ok(there)) = (here, there) {
                prop_assert!(distance(place(here.position_m), there.position_m) < 1e-2);
            }
        }
    }
}
