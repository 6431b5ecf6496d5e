//! Follows one tag through ranges that come one by one, at any time, from any anchor.
//!
//! Ranges go in through [`Tracker::handle_range`], positions made elsewhere (a camera's pose) through
//! [`Tracker::handle_position`], measured changes of velocity through
//! [`Tracker::handle_increment`]; [`Tracker::at`] tells where the tag is at any time since.
//!
//! ```text
//!             enough recent ranges make a robust fix, or a position comes
//! Acquiring -----------------------------------------> Tracking --+ a range inside its gate:
//!     ^                            ^                      |  ^----+ filter
//!     |                            |  gates keep failing  |
//!     |                            '----------------------+  and a new fix is elsewhere
//!     |                                                   |
//!     '---------------------------------------------------'
//!                       silence for `coast`
//! ```
//!
//! The filter is an extended Kalman filter on position and velocity (white acceleration), with a
//! bias for each anchor, updated by one scalar at a time; where the tag's uncertainty makes a
//! sphere bend visibly the update is iterated (B. Bell, F. Cathey, IEEE Trans. Automatic Control
//! 38 (1993) 294). Frozen biases are considered, not estimated (Schmidt): they widen the track by
//! what is not known about them.

use crate::camera::BearingObs;
use crate::light::LightObs;
use crate::locate::{LocateError, MAX_OBSERVATIONS, Options, RangeObs};
use crate::math::{Real, Sym3, chi2_limit};
use crate::robust::{FaultModel, locate_robust_2d, locate_robust_3d};
use helio_units::{Duration, Instant};
use nalgebra::{Matrix6, SMatrix, SVector, Vector3, Vector6};

/// Refinements of the linearisation within one update.
const MAX_ITERATIONS: usize = 4;

/// How a tag moves and what to trust.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackerConfig<T> {
    /// Spectral density of acceleration along x, y, z, in m²/s³: the square of the speed gained
    /// at random in a second. Zero along z holds the height.
    pub accel_psd: [T; 3],
    /// Standard deviation of each component of velocity at acquisition, m/s.
    pub speed_sigma: T,
    /// A range further from its forecast than so many sigmas is left out.
    pub gate: T,
    /// Known height and its standard deviation, metres. `None`: the height is tracked.
    pub height_m: Option<(T, T)>,
    /// Ranges not older than this make the fix that starts the track.
    pub window: Duration,
    /// Look for a new start when so many more ranges have failed their gate than twice those
    /// that passed.
    pub patience: u8,
    /// Start anew when there was no range at all for so long.
    pub coast: Duration,
    /// Standard deviation of an anchor's bias before anything is known, metres. Zero: none.
    pub bias_sigma_m: T,
    /// Spectral density of the drift of biases, m²/s.
    pub bias_psd: T,
    /// Biases keep their values and only widen the uncertainty.
    pub bias_frozen: bool,
    /// For the fix that starts the track.
    pub options: Options<T>,
    /// For the fix that starts the track.
    pub faults: FaultModel<T>,
}

impl<T: Real> Default for TrackerConfig<T> {
    fn default() -> Self {
        Self {
            accel_psd: [T::of(0.5), T::of(0.5), T::of(0.05)],
            speed_sigma: T::of(1.0),
            gate: T::of(4.0),
            height_m: None,
            window: Duration::from_millis(200),
            patience: 12,
            coast: Duration::from_secs(2),
            bias_sigma_m: T::zero(),
            bias_psd: T::zero(),
            bias_frozen: true,
            options: Options::default(),
            faults: FaultModel::default(),
        }
    }
}

/// What became of an observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict<T> {
    /// Kept for the fix that will start the track.
    Acquiring,
    /// The track starts here, for the first time or anew.
    Acquired,
    /// Used. `nis` is the squared innovation over its variance.
    Used {
        /// Chi-square with one degree of freedom when the model is right; three for a position.
        nis: T,
    },
    /// Outside its gate and left out.
    Gated {
        /// As in [`Verdict::Used`].
        nis: T,
    },
    /// Not a number, negative, or older than the track can take.
    Invalid,
}

/// Where the tag is, how fast, and how sure that is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Track<T: Real> {
    /// Metres, room frame.
    pub position_m: [T; 3],
    /// Metres per second.
    pub velocity_m_s: [T; 3],
    /// Covariance of both, in this order.
    pub covariance: Matrix6<T>,
}

/// One tag with up to `N` anchors whose biases have a state.
#[derive(Clone, Debug)]
pub struct Tracker<T: Real, const N: usize> {
    config: TrackerConfig<T>,
    recent: [Option<Recent<T>>; MAX_OBSERVATIONS],
    /// Anchors by slot; slots are given in order of appearance.
    slots: [Option<u16>; N],
    biases: Biases<T, N>,
    state: State<T, N>,
}

/// The newest range of an anchor.
#[derive(Clone, Copy, Debug)]
struct Recent<T> {
    id: u16,
    at: Instant,
    range: RangeObs<T>,
}

#[derive(Clone, Copy, Debug)]
enum State<T: Real, const N: usize> {
    Acquiring,
    Tracking(Filter<T, N>),
}

/// Estimates of the biases, kept when the track starts anew.
#[derive(Clone, Copy, Debug)]
struct Biases<T, const N: usize> {
    value: SVector<T, N>,
    covariance: SMatrix<T, N, N>,
}

#[derive(Clone, Copy, Debug)]
struct Filter<T: Real, const N: usize> {
    at: Instant,
    /// Rises by one with a range outside its gate, falls by two with one inside.
    doubt: u8,
    x: Vector6<T>,
    p: Matrix6<T>,
    /// Covariance of state and biases.
    cross: SMatrix<T, 6, N>,
}

/// A scalar measurement, linearised at a position.
#[derive(Clone, Copy, Debug)]
struct Linear<T: Real> {
    innovation: T,
    gradient: Vector3<T>,
    variance: T,
    /// Bias that adds to the measurement.
    slot: Option<usize>,
    /// Second derivative of the measurement, roughly.
    bend: T,
}

impl<T: Real, const N: usize> Tracker<T, N> {
    /// A tracker that has seen nothing.
    pub fn new(config: TrackerConfig<T>) -> Self {
        let variance = config.bias_sigma_m * config.bias_sigma_m;
        Self {
            config,
            recent: [None; MAX_OBSERVATIONS],
            slots: [None; N],
            biases: Biases {
                value: SVector::zeros(),
                covariance: SMatrix::identity() * variance,
            },
            state: State::Acquiring,
        }
    }

    /// A range to anchor `id`, measured at `now`.
    pub fn handle_range(&mut self, now: Instant, id: u16, range: RangeObs<T>) -> Verdict<T> {
        let finite = range.anchor_m.iter().all(|x| x.is_finite());
        let sane = range.range_m >= T::zero() && range.sigma_m > T::zero();
        if !(finite && sane && range.range_m.is_finite() && range.sigma_m.is_finite()) {
            return Verdict::Invalid;
        }
        self.remember(now, id, range);
        self.handle_timeout(now);
        let slot = self.slot(id);
        let State::Tracking(mut filter) = self.state else {
            return self.acquire(now);
        };
        let anchor = Vector3::from(range.anchor_m);
        let verdict = filter.handle(now, &self.config, &mut self.biases, |p, bias| {
            let d = p - anchor;
            let distance = d.norm().max(T::of(1e-6));
            Some(Linear {
                innovation: range.range_m - distance - slot.map_or(T::zero(), bias),
                gradient: d / distance,
                variance: range.sigma_m * range.sigma_m,
                slot,
                bend: T::one() / distance,
            })
        });
        if filter.doubt > self.config.patience {
            filter.doubt = filter.doubt.saturating_sub(4); // not at every range
            self.state = State::Tracking(filter);
            if let Verdict::Acquired = self.acquire(now) {
                return Verdict::Acquired;
            }
        } else {
            self.state = State::Tracking(filter);
        }
        verdict
    }

    /// Received power of a luminaire at `now`, for a receiver that looks along `normal`. Starts no
    /// track; [`Verdict::Acquiring`] while there is none.
    pub fn handle_light(
        &mut self,
        now: Instant,
        light: &LightObs<T>,
        normal: [T; 3],
    ) -> Verdict<T> {
        self.handle_timeout(now);
        let State::Tracking(filter) = &mut self.state else {
            return Verdict::Acquiring;
        };
        let normal = Vector3::from(normal);
        filter.handle(now, &self.config, &mut self.biases, |p, _| {
            let (innovation, gradient) = light.innovation(p, &normal)?;
            let distance = (p - Vector3::from(light.anchor_m)).norm();
            Some(Linear {
                innovation,
                gradient,
                variance: light.sigma_ln * light.sigma_ln,
                slot: None,
                bend: (light.order + T::of(3.0)) / (distance * distance),
            })
        })
    }

    /// A luminaire seen at `now` in a known direction. Starts no track;
    /// [`Verdict::Acquiring`] while there is none.
    pub fn handle_bearing(&mut self, now: Instant, bearing: &BearingObs<T>) -> Verdict<T> {
        self.handle_timeout(now);
        let State::Tracking(filter) = &mut self.state else {
            return Verdict::Acquiring;
        };
        let anchor = Vector3::from(bearing.anchor_m);
        let tiny = T::of(1e-6);
        let Some(seen) = Vector3::from(bearing.direction).try_normalize(tiny) else {
            return Verdict::Invalid;
        };
        // Two axes across the direction seen.
        let helper = if seen.z.abs() < T::of(0.9) {
            Vector3::z()
        } else {
            Vector3::x()
        };
        let first = seen.cross(&helper).normalize();
        let mut verdict = Verdict::Invalid;
        for axis in [first, seen.cross(&first)] {
            verdict = filter.handle(now, &self.config, &mut self.biases, |p, _| {
                let d = anchor - p;
                let distance = d.norm().max(tiny);
                // How far the line of sight passes from the anchor, as an angle.
                Some(Linear {
                    innovation: -axis.dot(&d) / distance,
                    gradient: -axis / distance,
                    variance: bearing.sigma_rad * bearing.sigma_rad,
                    slot: None,
                    bend: T::one() / (distance * distance),
                })
            });
            if !matches!(verdict, Verdict::Used { .. }) {
                break;
            }
        }
        verdict
    }

    /// The tag's position at `now` as something else measured it, metres, and its covariance: of a
    /// camera's pose ([`crate::locate_camera`]) or another receiver. Starts the track when there is
    /// none, and anew when the track has long disagreed.
    pub fn handle_position(
        &mut self,
        now: Instant,
        position_m: [T; 3],
        covariance_m2: [[T; 3]; 3],
    ) -> Verdict<T> {
        self.handle_timeout(now);
        let seen = Vector3::from(position_m);
        let noise = Sym3::of_rows(&covariance_m2);
        let sane = position_m.iter().all(|x| x.abs() <= T::of(1e4)); // false for NaN
        let Some(factor) = noise.factor().filter(|_| sane) else {
            return Verdict::Invalid;
        };
        let State::Tracking(mut filter) = self.state else {
            let filter = Filter::start(now, &self.config, position_m, &covariance_m2, T::zero());
            self.state = State::Tracking(filter);
            return Verdict::Acquired;
        };
        let Some(nis) = filter.forecast(now, &self.config, &seen, &noise) else {
            return Verdict::Invalid;
        };
        let verdict = if nis > chi2_limit(3, self.config.gate) {
            filter.doubt = filter.doubt.saturating_add(1);
            if filter.doubt > self.config.patience {
                filter = Filter::start(now, &self.config, position_m, &covariance_m2, T::zero());
                self.state = State::Tracking(filter);
                return Verdict::Acquired;
            }
            Verdict::Gated { nis }
        } else {
            // The gate was that of all three together.
            let open = TrackerConfig {
                gate: T::infinity(),
                ..self.config
            };
            for (row, variance) in factor.apart() {
                filter.handle(now, &open, &mut self.biases, |p, _| {
                    Some(Linear {
                        innovation: row.dot(&(seen - p)),
                        gradient: row,
                        variance,
                        slot: None,
                        bend: T::zero(),
                    })
                });
            }
            Verdict::Used { nis }
        };
        self.state = State::Tracking(filter);
        verdict
    }

    /// Velocity gained since the last increment or range, m/s in the room frame, and the
    /// standard deviation of each component: an inertial sensor's output after attitude and
    /// gravity have been taken out. Replaces the random acceleration over that time.
    pub fn handle_increment(&mut self, now: Instant, gained_m_s: [T; 3], sigma_m_s: T) {
        self.handle_timeout(now);
        let sane = gained_m_s.iter().all(|x| x.is_finite()) && sigma_m_s.is_finite();
        if let State::Tracking(filter) = &mut self.state
            && sane
            && now > filter.at
        {
            let dt = T::of(f64::from(now.since(filter.at).as_secs_f32()));
            let psd = sigma_m_s * sigma_m_s / dt;
            filter.advance(now, [psd; 3]);
            let gained = Vector3::from(gained_m_s);
            let half = dt / T::of(2.0);
            for k in 0..3 {
                filter.x[k] += gained[k] * half;
                filter.x[k + 3] += gained[k];
            }
        }
    }

    /// Gives the track up when nothing has come for too long. Early and repeated calls are
    /// harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| now > at) {
            self.state = State::Acquiring;
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Acquiring => None,
            State::Tracking(filter) => Some(filter.at + self.config.coast),
        }
    }

    /// The track at `when`; `None` while there is none, or for times before the last range.
    pub fn at(&self, when: Instant) -> Option<Track<T>> {
        let State::Tracking(mut filter) = self.state else {
            return None;
        };
        if when < filter.at {
            return None;
        }
        filter.advance(when, self.config.accel_psd);
        let [x, y, z, vx, vy, vz] = filter.x.into();
        Some(Track {
            position_m: [x, y, z],
            velocity_m_s: [vx, vy, vz],
            covariance: filter.p,
        })
    }

    /// Estimated bias of an anchor and its standard deviation, metres, beyond what its map entry
    /// says.
    pub fn bias(&self, id: u16) -> Option<(T, T)> {
        let slot = self.slots.iter().position(|s| *s == Some(id))?;
        let variance = *self.biases.covariance.get((slot, slot))?;
        let value = *self.biases.value.get(slot)?;
        Some((value, variance.max(T::zero()).sqrt()))
    }

    /// Biases stop or resume being estimated.
    pub fn freeze_biases(&mut self, frozen: bool) {
        self.config.bias_frozen = frozen;
    }

    fn slot(&mut self, id: u16) -> Option<usize> {
        if self.config.bias_sigma_m <= T::zero() {
            return None;
        }
        let found = self.slots.iter().position(|s| *s == Some(id));
        found.or_else(|| {
            let free = self.slots.iter().position(Option::is_none)?;
            *self.slots.get_mut(free)? = Some(id);
            Some(free)
        })
    }

    /// Keeps the newest range per anchor; a new anchor takes a free place or the oldest one.
    fn remember(&mut self, at: Instant, id: u16, range: RangeObs<T>) {
        let age = |r: &Option<Recent<T>>| match r {
            Some(r) if r.id == id => (0, Instant::ZERO),
            None => (1, Instant::ZERO),
            Some(r) => (2, r.at),
        };
        if let Some(place) = self.recent.iter_mut().min_by_key(|r| age(r)) {
            *place = Some(Recent { id, at, range });
        }
    }

    /// Starts the track if the recent ranges agree on a position.
    fn acquire(&mut self, now: Instant) -> Verdict<T> {
        let mut ranges = [RangeObs::NONE; MAX_OBSERVATIONS];
        let mut count = 0;
        for r in self.recent.iter().flatten() {
            if now.since(r.at) <= self.config.window
                && let Some(place) = ranges.get_mut(count)
            {
                let slot = self.slots.iter().position(|s| *s == Some(r.id));
                let bias = slot.and_then(|s| self.biases.value.get(s)).copied();
                *place = r.range;
                place.range_m = (place.range_m - bias.unwrap_or(T::zero())).max(T::zero());
                let unsure = slot.and_then(|s| self.biases.covariance.get((s, s)));
                let unsure = unsure.copied().unwrap_or(T::zero());
                place.sigma_m = (place.sigma_m * place.sigma_m + unsure).sqrt();
                count += 1;
            }
        }
        let ranges = ranges.get(..count).unwrap_or(&[]);
        let TrackerConfig {
            options, faults, ..
        } = self.config;
        // One range more than a bare solution, so that it has been confirmed.
        let confirmed = |needed: usize| {
            let have = count as u8;
            let need = needed as u8;
            let few = LocateError::TooFew { need, have };
            if count < needed { Err(few) } else { Ok(()) }
        };
        let fix = match self.config.height_m {
            Some((h, sigma)) => confirmed(4).and_then(|()| {
                let options = Options {
                    height_sigma_m: sigma,
                    ..options
                };
                locate_robust_2d(ranges, h, &options, &faults)
            }),
            None => confirmed(5).and_then(|()| locate_robust_3d(ranges, &options, &faults)),
        };
        let Ok(fix) = fix else {
            return Verdict::Acquiring;
        };
        if let State::Tracking(filter) = &mut self.state {
            // Where the track is already: the ranges outside their gates are the faulty ones.
            let near = fix.position_m.iter().enumerate().all(|(k, x)| {
                let off = *x - filter.x[k];
                let variance = filter.p[(k, k)] + fix.covariance_m2[k][k];
                off * off <= T::of(9.0) * variance
            });
            if near {
                filter.doubt = 0;
                return Verdict::Acquiring;
            }
        }
        // Ranges of the window are up to `window` old; the tag has moved on since.
        let window = T::of(f64::from(self.config.window.as_secs_f32()));
        let moved = self.config.speed_sigma * window;
        let moved = moved * moved / T::of(3.0);
        let filter = Filter::start(now, &self.config, fix.position_m, &fix.covariance_m2, moved);
        self.state = State::Tracking(filter);
        Verdict::Acquired
    }
}

impl<T: Real, const N: usize> Filter<T, N> {
    /// A tag of unknown speed at a position; `moved` widens it along the axes it moves on, m².
    fn start(
        now: Instant,
        config: &TrackerConfig<T>,
        position_m: [T; 3],
        covariance_m2: &[[T; 3]; 3],
        moved: T,
    ) -> Self {
        let mut filter = Self {
            at: now,
            doubt: 0,
            x: Vector6::zeros(),
            p: Matrix6::zeros(),
            cross: SMatrix::zeros(),
        };
        for (r, row) in covariance_m2.iter().enumerate() {
            for (c, value) in row.iter().enumerate() {
                filter.p[(r, c)] = *value;
            }
            let still = config.accel_psd[r] <= T::zero();
            if !still {
                filter.p[(r, r)] += moved;
                filter.p[(r + 3, r + 3)] = config.speed_sigma * config.speed_sigma;
            }
            filter.x[r] = position_m[r];
        }
        filter
    }

    /// Squared distance of a position from its forecast over their covariance, chi-square with three
    /// degrees of freedom. `None` when it is too late, or no number.
    fn forecast(
        &mut self,
        now: Instant,
        config: &TrackerConfig<T>,
        seen: &Vector3<T>,
        noise: &Sym3<T>,
    ) -> Option<T> {
        let lag = T::of(f64::from(self.at.since(now).as_secs_f32()));
        if lag > T::one() {
            return None;
        }
        self.advance(now, config.accel_psd);
        let p = |r: usize, c: usize| {
            let crossed = self.p[(r + 3, c)] + self.p[(r, c + 3)];
            self.p[(r, c)] - lag * crossed + lag * lag * self.p[(r + 3, c + 3)]
        };
        let spread = Sym3::of_rows(&core::array::from_fn(|r| core::array::from_fn(|c| p(r, c))));
        let off = Vector3::from_fn(|k, _| seen[k] - self.x[k] + lag * self.x[k + 3]);
        let factor = spread.plus(noise, T::zero()).factor()?;
        Some(off.dot(&factor.solve(&off)))
    }

    /// Moves the state to `now` with random acceleration of the given spectral density.
    fn advance(&mut self, now: Instant, psd: [T; 3]) {
        let dt = T::of(f64::from(now.since(self.at).as_secs_f32()));
        if dt <= T::zero() {
            return;
        }
        self.at = now;
        for k in 0..3 {
            let moved = dt * self.x[k + 3];
            self.x[k] += moved;
        }
        // P <- F P F': first the rows, then the columns.
        for k in 0..3 {
            for c in 0..6 {
                let moved = dt * self.p[(k + 3, c)];
                self.p[(k, c)] += moved;
            }
            for c in 0..N {
                let moved = dt * self.cross[(k + 3, c)];
                self.cross[(k, c)] += moved;
            }
        }
        for k in 0..3 {
            for r in 0..6 {
                let moved = dt * self.p[(r, k + 3)];
                self.p[(r, k)] += moved;
            }
        }
        let (two, three) = (T::of(2.0), T::of(3.0));
        for (k, q) in psd.into_iter().enumerate() {
            self.p[(k, k)] += q * dt * dt * dt / three;
            self.p[(k, k + 3)] += q * dt * dt / two;
            self.p[(k + 3, k)] += q * dt * dt / two;
            self.p[(k + 3, k + 3)] += q * dt;
        }
    }

    /// Takes in one scalar measurement given by its linearisation at a position.
    fn handle(
        &mut self,
        now: Instant,
        config: &TrackerConfig<T>,
        biases: &mut Biases<T, N>,
        linear: impl Fn(Vector3<T>, &dyn Fn(usize) -> T) -> Option<Linear<T>>,
    ) -> Verdict<T> {
        let lag = T::of(f64::from(self.at.since(now).as_secs_f32()));
        if lag > T::one() {
            return Verdict::Invalid;
        }
        let dt = T::of(f64::from(now.since(self.at).as_secs_f32()));
        if !config.bias_frozen {
            for k in 0..N {
                biases.covariance[(k, k)] += config.bias_psd * dt;
            }
        }
        self.advance(now, config.accel_psd);
        let prior = self.x;
        let known = biases.value;
        let bias = |slot: usize| known.get(slot).copied().unwrap_or(T::zero());
        let mut at = prior;
        let mut gain = Vector6::zeros();
        let (mut spread, mut spread_bias) = (Vector6::zeros(), SVector::<T, N>::zeros());
        let (mut variance, mut innovation) = (T::one(), T::zero());
        for iteration in 0..MAX_ITERATIONS {
            let position = |x: &Vector6<T>| {
                Vector3::new(x[0], x[1], x[2]) - Vector3::new(x[3], x[4], x[5]) * lag
            };
            let Some(l) = linear(position(&at), &bias) else {
                return Verdict::Invalid;
            };
            let g = l.gradient;
            let h = Vector6::new(g.x, g.y, g.z, -lag * g.x, -lag * g.y, -lag * g.z);
            spread = self.p * h;
            spread_bias = self.cross.tr_mul(&h);
            let mut own = T::zero();
            if let Some(slot) = l.slot {
                spread += self.cross.column(slot);
                spread_bias += biases.covariance.column(slot);
                own = spread_bias[slot];
            }
            variance = h.dot(&spread) + own + l.variance;
            innovation = l.innovation - h.dot(&(prior - at));
            if iteration == 0 {
                // The sphere's bend adds half the variance across over the radius.
                let across = (self.p[(0, 0)] + self.p[(1, 1)] + self.p[(2, 2)]) * l.bend;
                let wide = variance + across * across / T::of(2.0);
                let nis = innovation * innovation / wide;
                if nis > config.gate * config.gate || !nis.is_finite() {
                    self.doubt = self.doubt.saturating_add(1);
                    return Verdict::Gated { nis };
                }
                gain = spread / variance;
                at = prior + gain * innovation;
                if across * across < T::of(0.01) * l.variance {
                    break;
                }
            } else {
                gain = spread / variance;
                let next = prior + gain * innovation;
                let moved = (next - at).norm_squared();
                at = next;
                if moved < T::of(1e-4) * l.variance {
                    break;
                }
            }
        }
        self.x = prior + gain * innovation;
        self.p -= gain * spread.transpose();
        self.cross -= gain * spread_bias.transpose();
        if !config.bias_frozen {
            biases.value += spread_bias * (innovation / variance);
            biases.covariance -= spread_bias * spread_bias.transpose() / variance;
        }
        self.doubt = self.doubt.saturating_sub(2);
        Verdict::Used {
            nis: innovation * innovation / variance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{World, distance};
    use nalgebra::Matrix3;
    use std::vec::Vec;

    const SIGMA: f64 = 0.05;
    const CORNERS: [[f64; 3]; 8] = [
        [0.0, 0.0, 2.9],
        [10.0, 0.0, 2.6],
        [10.0, 8.0, 2.8],
        [0.0, 8.0, 2.7],
        [0.0, 0.0, 0.3],
        [10.0, 0.0, 0.5],
        [10.0, 8.0, 0.2],
        [0.0, 8.0, 0.4],
    ];

    fn config() -> TrackerConfig<f64> {
        TrackerConfig {
            accel_psd: [0.5, 0.5, 0.05],
            ..TrackerConfig::default()
        }
    }

    /// A tag that moves as the filter believes, ranged to one anchor in turn every 12 ms.
    struct Walk {
        world: World,
        position: [f64; 3],
        velocity: [f64; 3],
        step: u64,
    }

    impl Walk {
        fn new(seed: u64) -> Self {
            Self {
                world: World::new(seed),
                position: [5.0, 4.0, 1.5],
                velocity: [0.0; 3],
                step: 0,
            }
        }

        fn now(&self) -> Instant {
            Instant::from_millis(12 * self.step)
        }

        fn next(&mut self, psd: [f64; 3]) -> (u16, RangeObs<f64>) {
            let dt: f64 = 0.012;
            for (k, q) in psd.into_iter().enumerate() {
                let (a, b) = (self.world.normal(), self.world.normal());
                let dv = (q * dt).sqrt() * a;
                let dp = dt * dv / 2.0 + (q * dt.powi(3) / 12.0).sqrt() * b;
                self.position[k] += dt * self.velocity[k] + dp;
                self.velocity[k] += dv;
            }
            self.step += 1;
            let i = (self.step % 8) as usize;
            let range = self.world.ranges(self.position, &CORNERS[i..=i], SIGMA);
            (i as u16, range[0])
        }
    }

    fn shares(config: TrackerConfig<f64>, walks: u64, bias: f64) -> (f64, f64) {
        let (mut nis, mut nees, mut all) = (0, 0, 0);
        for seed in 0..walks {
            let mut walk = Walk::new(seed);
            let offsets: Vec<_> = (0..8).map(|_| bias * walk.world.normal()).collect();
            let mut tracker = Tracker::<f64, 8>::new(config);
            for step in 0..600 {
                let (id, mut range) = walk.next(config.accel_psd);
                range.range_m += offsets[usize::from(id)];
                let verdict = tracker.handle_range(walk.now(), id, range);
                if step < 200 {
                    continue;
                }
                all += 1;
                if let Verdict::Used { nis: n } = verdict {
                    nis += usize::from((0.000_982..5.024).contains(&n));
                }
                let track = tracker.at(walk.now()).expect("tracking since long");
                let truth = walk.position.into_iter().chain(walk.velocity);
                let told = track.position_m.into_iter().chain(track.velocity_m_s);
                let e = Vector6::from_iterator(told.zip(truth).map(|(a, b)| a - b));
                let inverse = track.covariance.try_inverse().expect("regular");
                let n = e.dot(&(inverse * e));
                nees += usize::from((1.237..14.449).contains(&n));
            }
        }
        (
            f64::from(nis as u32) / f64::from(all),
            f64::from(nees as u32) / f64::from(all),
        )
    }

    #[test]
    fn the_track_is_as_sure_of_itself_as_it_may_be() {
        let (nis, nees) = shares(config(), 60, 0.0);
        assert!((0.93..0.97).contains(&nis), "{nis}");
        assert!((0.93..0.97).contains(&nees), "{nees}");
    }

    #[test]
    fn unknown_biases_widen_the_track_by_as_much_as_they_harm() {
        for bias_frozen in [true, false] {
            let biased = TrackerConfig {
                bias_sigma_m: 0.1,
                bias_frozen,
                ..config()
            };
            let (nis, nees) = shares(biased, 150, 0.1);
            assert!((0.92..0.975).contains(&nis), "{bias_frozen}: {nis}");
            assert!((0.90..0.975).contains(&nees), "{bias_frozen}: {nees}");
        }
    }

    #[test]
    fn biases_are_found_when_they_may_move() {
        let learning = TrackerConfig {
            bias_sigma_m: 0.2,
            bias_frozen: false,
            ..config()
        };
        let mut walk = Walk::new(5);
        let mut tracker = Tracker::<f64, 8>::new(learning);
        for _ in 0..8_000 {
            let (id, mut range) = walk.next([0.05; 3]);
            for k in 0..3 {
                // Keep to the room.
                walk.velocity[k] -= 0.02 * (walk.position[k] - [5.0, 4.0, 1.5][k]);
            }
            range.range_m += if id == 3 { 0.3 } else { 0.0 };
            tracker.handle_range(walk.now(), id, range);
        }
        let (bias, sigma) = tracker.bias(3).expect("seen");
        assert!((bias - 0.3).abs() < 0.06 && sigma < 0.05, "{bias} {sigma}");
    }

    #[test]
    fn reflections_are_gated_and_do_not_move_the_track() {
        let mut walk = Walk::new(7);
        let mut tracker = Tracker::<f64, 0>::new(config());
        let (mut worst, mut gated) = (0.0f64, 0);
        for step in 0..3_000 {
            let (id, mut range) = walk.next([0.05; 3]);
            if walk.world.uniform(0.0, 1.0) < 0.2 {
                range.range_m += walk.world.uniform(0.6, 3.0);
            }
            let verdict = tracker.handle_range(walk.now(), id, range);
            gated += usize::from(matches!(verdict, Verdict::Gated { .. }));
            if step > 100 {
                let track = tracker.at(walk.now()).expect("tracking");
                worst = worst.max(distance(track.position_m, walk.position));
            }
        }
        assert!((500..700).contains(&gated), "{gated}");
        assert!(worst < 0.5, "{worst}");
    }

    #[test]
    fn a_tag_carried_away_unseen_is_found_again() {
        let mut walk = Walk::new(8);
        let mut tracker = Tracker::<f64, 0>::new(config());
        for _ in 0..500 {
            let (id, range) = walk.next([0.05; 3]);
            tracker.handle_range(walk.now(), id, range);
        }
        walk.position = [2.0, 6.0, 1.0];
        let mut acquired = None;
        for step in 0..200 {
            let (id, range) = walk.next([0.05; 3]);
            if tracker.handle_range(walk.now(), id, range) == Verdict::Acquired {
                acquired = acquired.or(Some(step));
            }
        }
        assert!(acquired.is_some_and(|step| step < 100), "{acquired:?}");
        let track = tracker.at(walk.now()).expect("tracking");
        assert!(distance(track.position_m, walk.position) < 0.3);
    }

    #[test]
    fn silence_ends_the_track() {
        let mut walk = Walk::new(9);
        let mut tracker = Tracker::<f64, 0>::new(config());
        for _ in 0..100 {
            let (id, range) = walk.next([0.05; 3]);
            tracker.handle_range(walk.now(), id, range);
        }
        let end = tracker.poll_timeout().expect("tracking");
        tracker.handle_timeout(end);
        assert!(tracker.at(end).is_some());
        tracker.handle_timeout(end + Duration::from_nanos(1));
        assert_eq!(tracker.at(end), None);
    }

    #[test]
    fn a_late_range_is_compared_with_where_the_tag_was() {
        let start = Instant::from_millis(10_000);
        let mut tracker = Tracker::<f64, 0>::new(config());
        let mut world = World::new(10);
        let place = |ms: u64| [2.0 + ms as f64 / 1000.0, 4.0, 1.5]; // 1 m/s along x
        for ms in (0..3_000).step_by(12) {
            let i = (ms / 12 % 8) as usize;
            let range = world.ranges(place(ms), &CORNERS[i..=i], 0.01)[0];
            tracker.handle_range(start + Duration::from_millis(ms), i as u16, range);
        }
        let late = world.ranges(place(2_700), &CORNERS[..1], 0.01)[0];
        let verdict = tracker.handle_range(start + Duration::from_millis(2_700), 0, late);
        assert!(
            matches!(verdict, Verdict::Used { nis } if nis < 9.0),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_measured_change_of_speed_is_believed() {
        let mut tracker = Tracker::<f64, 0>::new(TrackerConfig {
            accel_psd: [0.01; 3],
            ..config()
        });
        let mut world = World::new(11);
        let still = [4.0, 4.0, 1.5];
        for ms in (0..2_000).step_by(12) {
            let i = (ms / 12 % 8) as usize;
            let range = world.ranges(still, &CORNERS[i..=i], 0.02)[0];
            tracker.handle_range(Instant::from_millis(ms), i as u16, range);
        }
        tracker.handle_increment(Instant::from_millis(2_010), [1.0, 0.0, 0.0], 0.01);
        let track = tracker.at(Instant::from_millis(2_510)).expect("tracking");
        assert!((track.position_m[0] - 4.5).abs() < 0.1, "{track:?}");
    }

    #[test]
    fn positions_alone_start_and_keep_a_track_as_sure_of_itself_as_it_may_be() {
        let psd = [0.5, 0.5, 0.05];
        // A camera under lamps: poor along its axis, and that axis is tilted.
        let (u, across) = (Vector3::new(0.48, 0.6, 0.64), 0.02);
        let covariance = Matrix3::identity() * (across * across) + u * u.transpose() * 0.01;
        let rows = core::array::from_fn(|r| core::array::from_fn(|c| covariance[(r, c)]));
        let (mut nis, mut nees, mut all) = (0, 0, 0);
        for seed in 0..60 {
            let mut walk = Walk::new(seed);
            let mut tracker = Tracker::<f64, 0>::new(config());
            for step in 0..300 {
                for _ in 0..4 {
                    walk.next(psd);
                }
                let w = &mut walk.world;
                let noise = Vector3::new(w.normal(), w.normal(), w.normal()) * across
                    + u * (0.1 * w.normal());
                let seen = (Vector3::from(walk.position) + noise).into();
                let verdict = tracker.handle_position(walk.now(), seen, rows);
                if step == 0 {
                    assert_eq!(verdict, Verdict::Acquired);
                }
                if step < 50 {
                    continue;
                }
                all += 1;
                if let Verdict::Used { nis: n } = verdict {
                    nis += usize::from((0.216..9.348).contains(&n));
                }
                let track = tracker.at(walk.now()).expect("tracking");
                let truth = walk.position.into_iter().chain(walk.velocity);
                let told = track.position_m.into_iter().chain(track.velocity_m_s);
                let e = Vector6::from_iterator(told.zip(truth).map(|(a, b)| a - b));
                let n = e.dot(&(track.covariance.try_inverse().expect("regular") * e));
                nees += usize::from((1.237..14.449).contains(&n));
            }
        }
        let (nis, nees) = (nis as f64 / f64::from(all), nees as f64 / f64::from(all));
        assert!((0.93..0.97).contains(&nis), "{nis}");
        assert!((0.93..0.97).contains(&nees), "{nees}");
    }

    #[test]
    fn a_wrong_pose_is_left_out_and_many_alike_start_the_track_anew() {
        let mut walk = Walk::new(3);
        let mut tracker = Tracker::<f64, 0>::new(config());
        let rows = [[4e-4, 0.0, 0.0], [0.0, 4e-4, 0.0], [0.0, 0.0, 4e-4]];
        for _ in 0..200 {
            let (id, range) = walk.next([0.05; 3]);
            tracker.handle_range(walk.now(), id, range);
        }
        let [x, y, z] = walk.position;
        let there = [x + 1.5, y, z];
        let seen = (1..=20)
            .map(|_| tracker.handle_position(walk.now(), there, rows))
            .take_while(|v| matches!(v, Verdict::Gated { .. }))
            .count();
        assert_eq!(seen, usize::from(config().patience));
        let track = tracker.at(walk.now()).expect("tracking");
        assert_eq!(track.position_m, there);
        let huge = [[f64::INFINITY; 3]; 3];
        for (position, covariance) in [([f64::NAN, y, z], rows), (there, huge)] {
            let verdict = tracker.handle_position(walk.now(), position, covariance);
            assert_eq!(verdict, Verdict::Invalid);
        }
        assert_eq!(tracker.at(walk.now()), Some(track));
    }

    #[test]
    fn power_and_bearings_keep_a_track_alive_as_surely_as_they_say() {
        let mut world = World::new(12);
        let (mut inside, mut all) = (0, 0);
        for seed in 0..40 {
            let mut walk = Walk::new(seed);
            let psd = [0.05, 0.05, 0.01];
            let mut tracker = Tracker::<f64, 0>::new(TrackerConfig {
                accel_psd: psd,
                ..config()
            });
            for step in 0..400 {
                let (id, range) = walk.next(psd);
                if step < 60 {
                    tracker.handle_range(walk.now(), id, range);
                    continue;
                }
                let anchor_m = CORNERS[usize::from(id) % 4];
                let x = Vector3::from(walk.position);
                let verdict = if step % 2 == 0 {
                    let mut light = LightObs {
                        anchor_m,
                        axis: [0.0, 0.0, -1.0],
                        order: 1.0,
                        gain: 2.0,
                        power: 1.0,
                        sigma_ln: 0.05,
                    };
                    let Some((ln, _)) = light.innovation(x, &Vector3::z()) else {
                        continue;
                    };
                    light.power = (-ln + 0.05 * world.normal()).exp();
                    tracker.handle_light(walk.now(), &light, [0.0, 0.0, 1.0])
                } else {
                    let d = Vector3::from(anchor_m) - x;
                    let noise = Vector3::new(world.normal(), world.normal(), world.normal());
                    let bearing = BearingObs {
                        anchor_m,
                        direction: (d / d.norm() + noise * 0.01).into(),
                        sigma_rad: 0.01,
                    };
                    tracker.handle_bearing(walk.now(), &bearing)
                };
                if let Verdict::Used { nis } = verdict {
                    all += 1;
                    inside += usize::from((0.000_982..5.024).contains(&nis));
                }
            }
            let track = tracker.at(walk.now()).expect("tracking");
            assert!(distance(track.position_m, walk.position) < 0.5);
        }
        let share = inside as f64 / f64::from(all);
        assert!((0.92..0.98).contains(&share), "{share} of {all}");
    }
}
