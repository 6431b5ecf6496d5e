//! From the ranges of one epoch and the map to a position: who lies is left out, what may be wrong
//! unnoticed is bounded, and what came before is made use of.
//!
//! [`Locator::handle_epoch`] is called by [`crate::Master`] for every epoch.
//!
//! ```text
//! ranges -> robust fix -> protection level of what is left ----+-> figures
//!                |                                             |
//!                '-> honest ranges -> tracker of this tag -----'   of both: position, sigma
//! ```
//!
//! Up to [`TRACKS`] tags are followed; more are fixed epoch by epoch. A tag that is silent for long
//! leaves its place to the next.

use heapless::Vec;
use helio_positioning::{
    FaultModel, Fix, Options, RangeObs, Real, Risk, Tracker, TrackerConfig, locate_2d, locate_3d,
    locate_robust_2d, locate_robust_3d, protect_2d, protect_3d,
};
use helio_units::{Instant, Millimetres, TagId};

use crate::map::AnchorMap;
use crate::telemetry::{TagFigures, TrackFigures};

/// Most ranges of one fix; of more the shortest are taken, which are the least disturbed.
const MAX_RANGES: usize = helio_positioning::MAX_OBSERVATIONS;
/// Tags that are followed at a time.
pub const TRACKS: usize = 8;
/// A track farther from the fix than so many of both their sigmas has lost its tag.
const LOST: f32 = 5.0;

/// What is known of tags and ranges beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Beforehand {
    /// Height at which tags move; `None`: it is computed.
    pub height_mm: Option<i32>,
    /// 1-sigma of a range.
    pub sigma_mm: u32,
}

/// The tracks.
#[derive(Debug, Default)]
pub struct Locator {
    tracks: Vec<Followed, TRACKS>,
}

#[derive(Debug)]
struct Followed {
    tag: TagId,
    heard: Instant,
    /// Ranges carry no bias of their own here: the map's has been taken off.
    tracker: Tracker<f32, 1>,
}

fn metres(mm: i32) -> f32 {
    mm as f32 * 1e-3
}

fn root(x: f32) -> f32 {
    <f32 as Real>::root(x)
}

fn millimetres(m: f32) -> i32 {
    (m * 1e3) as i32
}

impl Locator {
    /// Nobody is followed.
    pub const fn new() -> Self {
        Self { tracks: Vec::new() }
    }

    /// Follows nobody any more.
    pub fn clear(&mut self) {
        self.tracks.clear();
    }

    /// Position in the frame of the map; `None` when the ranges do not give one.
    ///
    /// `ranges` names anchors by their place in the map.
    pub fn handle_epoch(
        &mut self,
        now: Instant,
        map: &AnchorMap,
        tag: TagId,
        ranges: &mut [(u16, Millimetres)],
        before: &Beforehand,
    ) -> Option<TagFigures> {
        ranges.sort_unstable_by_key(|&(_, range)| range);
        let sigma_m = metres(i32::try_from(before.sigma_mm).unwrap_or(i32::MAX)).max(1e-3);
        let mut ids: Vec<u16, MAX_RANGES> = Vec::new();
        let mut observations: Vec<RangeObs<f32>, MAX_RANGES> = Vec::new();
        for &(place, range) in ranges.iter().take(MAX_RANGES) {
            let Some(anchor) = map.anchors().get(usize::from(place)) else {
                continue;
            };
            let observation = RangeObs {
                anchor_m: anchor.position_mm.map(metres),
                range_m: metres(range.0.saturating_sub(anchor.bias_mm)).max(0.0),
                sigma_m,
            };
            // Both have room for as many as are taken.
            let _ = (ids.push(anchor.id), observations.push(observation));
        }
        let height_m = before.height_mm.map(metres);
        let (fix, sure) = fix(&observations, height_m)?;
        // What is left are the honest ones.
        let honest = || (0..32).map(|i| fix.excluded >> i & 1 == 0);
        let (mut of_observations, mut of_ids) = (honest(), honest());
        observations.retain(|_| of_observations.next().unwrap_or(true));
        ids.retain(|_| of_ids.next().unwrap_or(true));
        let level = sure.then(|| protection(&observations, height_m)).flatten();
        let mut figures = TagFigures {
            tag,
            position_mm: fix.position_m.map(millimetres),
            sigma_mm: (fix.sigma_horizontal_m() * 1e3) as u32,
            anchors: fix.used,
            residual_mm: (fix.residual_rms_m * 1e3) as u32,
            excluded: fix.excluded.count_ones() as u8,
            protection_mm: level.map(|m| (m * 1e3) as u32),
            track: None,
        };
        if !sure {
            return Some(figures);
        }
        let Some(followed) = self.follow(now, tag, height_m) else {
            return Some(figures);
        };
        for (id, o) in ids.iter().zip(&observations) {
            followed.tracker.handle_range(now, *id, *o);
        }
        if let Some(track) = followed.tracker.at(now) {
            let variance = track.covariance[(0, 0)] + track.covariance[(1, 1)];
            let sigma_m = root(variance.max(0.0));
            // A track that has lost its tag is not shown; the tracker finds it again by itself.
            let off = apart(track.position_m, fix.position_m);
            if off <= LOST * (sigma_m + fix.sigma_horizontal_m() + fix.sigma_vertical_m()) {
                figures.track = Some(TrackFigures {
                    position_mm: track.position_m.map(millimetres),
                    sigma_mm: (sigma_m * 1e3) as u32,
                    velocity_mm_s: track.velocity_m_s.map(millimetres),
                });
            }
        }
        Some(figures)
    }

    /// The track of a tag; a new one takes a free place, or that of a tag long silent.
    // A tracker is large: what its making takes of the stack shall not lie under its use.
    #[inline(never)]
    fn follow(&mut self, now: Instant, tag: TagId, height_m: Option<f32>) -> Option<&mut Followed> {
        let config = TrackerConfig {
            height_m: height_m.map(|h| (h, 0.01)),
            ..TrackerConfig::default()
        };
        let known = self.tracks.iter().position(|f| f.tag == tag);
        let followed = match known {
            Some(known) => self.tracks.get_mut(known)?,
            None => {
                let begun = Followed {
                    tag,
                    heard: now,
                    tracker: Tracker::new(config),
                };
                match self.tracks.push(begun) {
                    Ok(()) => self.tracks.last_mut()?,
                    Err(begun) => {
                        let silent = |f: &&mut Followed| now.since(f.heard) > config.coast;
                        let place = self.tracks.iter_mut().find(silent)?;
                        *place = begun;
                        place
                    }
                }
            }
        };
        followed.heard = now;
        Some(followed)
    }
}

fn apart(a: [f32; 3], b: [f32; 3]) -> f32 {
    let squares: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    root(squares)
}

/// The fix, and whether its ranges agree. Ranges that contradict each other whatever is left out give
/// a fix all the same, told by its residual.
#[inline(never)]
fn fix(observations: &[RangeObs<f32>], height_m: Option<f32>) -> Option<(Fix<f32>, bool)> {
    let (options, faults) = (Options::default(), FaultModel::default());
    let robust = match height_m {
        Some(h) => locate_robust_2d(observations, h, &options, &faults),
        None => locate_robust_3d(observations, &options, &faults),
    };
    if let Ok(fix) = robust {
        return Some((fix, true));
    }
    let any = Options {
        consistency: f32::INFINITY,
        ..options
    };
    let found = match height_m {
        Some(h) => locate_2d(observations, h, &any),
        None => locate_3d(observations, &any),
    };
    found.ok().map(|fix| (fix, false))
}

/// What the horizontal error stays below, one undetected fault included.
#[inline(never)]
fn protection(honest: &[RangeObs<f32>], height_m: Option<f32>) -> Option<f32> {
    let (options, risk) = (Options::default(), Risk::default());
    let found = match height_m {
        Some(h) => protect_2d(honest, h, &options, &risk),
        None => protect_3d(honest, &options, &risk),
    };
    found
        .ok()
        .map(|p| p.horizontal_m)
        .filter(|m| m.is_finite() && *m < 1e6)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::map::{MAX_MAP, MapAnchor};
    use helio_units::NodeId;

    const BEFORE: Beforehand = Beforehand {
        height_mm: Some(1_200),
        sigma_mm: 50,
    };

    fn map() -> AnchorMap {
        let mut map = AnchorMap::default();
        for i in 0..8u16 {
            let anchor = MapAnchor {
                id: 100 + i,
                node: NodeId::new(1 + i as u8).expect("small"),
                index: 0,
                position_mm: [4_000 * i32::from(i % 4), 8_000 * i32::from(i / 4), 3_000],
                bias_mm: 20,
            };
            map.stage(1, 8, usize::from(i), anchor).expect("room");
        }
        map
    }

    /// Ranges with errors of some centimetres that average out; `lies` are added to some.
    fn ranges(
        map: &AnchorMap,
        at: [f64; 3],
        n: u64,
        lies: &[(usize, i32)],
    ) -> Vec<(u16, Millimetres), MAX_MAP> {
        let mut out = Vec::new();
        for (i, a) in map.anchors().iter().enumerate() {
            let d: f64 = a
                .position_mm
                .iter()
                .zip(at)
                .map(|(a, t)| (f64::from(*a) * 1e-3 - t).powi(2))
                .sum();
            // Even noise of 128 mm, of another seed for every epoch and anchor.
            let mix = (n * 131 + i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let noise = ((mix ^ mix >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) % 129;
            let noise = noise as f64 - 64.0;
            let lie: i32 = lies.iter().filter(|l| l.0 == i).map(|l| l.1).sum();
            let mm = (d.sqrt() * 1e3 + noise) as i32 + a.bias_mm + lie;
            out.push((i as u16, Millimetres(mm))).expect("room");
        }
        out
    }

    fn off(mm: [i32; 3], at: [f64; 3]) -> f64 {
        (f64::from(mm[0]) * 1e-3 - at[0]).hypot(f64::from(mm[1]) * 1e-3 - at[1])
    }

    fn error(f: &TagFigures, at: [f64; 3]) -> f64 {
        off(f.position_mm, at)
    }

    #[test]
    fn a_reflection_is_left_out_and_the_level_bounds_the_error() {
        let map = map();
        let mut locator = Locator::default();
        let at = [5.0, 3.0, 1.2];
        for n in 0..50 {
            let now = Instant::from_millis(100 * n);
            let mut ranges = ranges(&map, at, n, &[(2, 1_500)]);
            let f = locator
                .handle_epoch(now, &map, TagId(1), &mut ranges, &BEFORE)
                .expect("a fix");
            assert_eq!((f.excluded, f.anchors), (1, 7), "{f:?}");
            let level = f.protection_mm.expect("checked");
            assert!(error(&f, at) * 1e3 < f64::from(level), "{f:?}");
        }
    }

    #[test]
    fn a_moving_tag_is_followed_with_its_velocity_and_better_than_by_fixes() {
        let map = map();
        let mut locator = Locator::default();
        let (mut followed, mut fixed, mut along, mut across) = (0.0, 0.0, 0, 0);
        for n in 0..200u64 {
            let now = Instant::from_millis(100 * n);
            let at = [2.0 + 0.04 * n as f64, 3.0, 1.2];
            let mut ranges = ranges(&map, at, n, &[]);
            let f = locator
                .handle_epoch(now, &map, TagId(1), &mut ranges, &BEFORE)
                .expect("a fix");
            if n > 20 {
                let track = f.track.expect("followed");
                followed += off(track.position_mm, at).powi(2);
                fixed += error(&f, at).powi(2);
                let [vx, vy, _] = track.velocity_mm_s;
                (along, across) = (along + vx, across + vy);
            }
        }
        let n = 200 - 21;
        assert!(
            (along / n - 400).abs() < 60 && (across / n).abs() < 60,
            "{along} {across}"
        );
        assert!(followed < 0.9 * fixed, "{followed} {fixed}");
    }

    #[test]
    fn ranges_that_contradict_each_other_have_no_level_and_start_no_track() {
        let map = map();
        let mut locator = Locator::default();
        let lies = [
            (0, 900),
            (1, 2_100),
            (2, 400),
            (3, 2_900),
            (4, 1_300),
            (5, 600),
        ];
        let mut ranges = ranges(&map, [5.0, 3.0, 1.2], 0, &lies);
        let now = Instant::from_millis(0);
        if let Some(f) = locator.handle_epoch(now, &map, TagId(1), &mut ranges, &BEFORE)
            && f.residual_mm > 300
        {
            assert_eq!((f.protection_mm, f.track), (None, None), "{f:?}");
        }
    }

    #[test]
    fn more_tags_than_tracks_are_all_located() {
        let map = map();
        let mut locator = Locator::default();
        for n in 0..40u64 {
            for tag in 0..(TRACKS + 4) as u16 {
                let at = [1.0 + f64::from(tag) * 0.5, 4.0, 1.2];
                let now = Instant::from_millis(100 * n + u64::from(tag));
                let f = locator.handle_epoch(
                    now,
                    &map,
                    TagId(tag),
                    &mut ranges(&map, at, n, &[]),
                    &BEFORE,
                );
                assert!(error(&f.expect("a fix"), at) < 0.25, "{tag}: {f:?}");
            }
        }
        let late = Instant::from_millis(10_000);
        let at = [3.0, 3.0, 1.2];
        let _ = locator.handle_epoch(
            late,
            &map,
            TagId(99),
            &mut ranges(&map, at, 0, &[]),
            &BEFORE,
        );
        assert!(locator.tracks.iter().any(|f| f.tag == TagId(99)));
    }
}
