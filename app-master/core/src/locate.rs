//! From the ranges of one epoch and the map to a position.

use heapless::Vec;
use helio_positioning::{Fix, Options, RangeObs, locate_2d, locate_3d};
use helio_units::{Millimetres, TagId};

use crate::map::{AnchorMap, MAX_MAP};
use crate::telemetry::TagFigures;

/// Most ranges of one fix; of more the shortest are taken, which are the least disturbed.
const MAX_RANGES: usize = helio_positioning::MAX_OBSERVATIONS;

/// Position in the frame of the map; `None` when the ranges do not give one.
///
/// `ranges` names anchors by their place in the map. With `height_mm` the tag moves at that height.
pub fn locate(
    map: &AnchorMap,
    tag: TagId,
    ranges: &mut Vec<(u16, Millimetres), MAX_MAP>,
    height_mm: Option<i32>,
    sigma_mm: u32,
) -> Option<TagFigures> {
    ranges.sort_unstable_by_key(|&(_, range)| range);
    let metres = |mm: i32| mm as f32 * 1e-3;
    let observed = ranges
        .iter()
        .take(MAX_RANGES)
        .filter_map(|&(place, range)| {
            let anchor = map.anchors().get(usize::from(place))?;
            Some(RangeObs {
                anchor_m: anchor.position_mm.map(metres),
                range_m: metres(range.0.saturating_sub(anchor.bias_mm)),
                sigma_m: metres(i32::try_from(sigma_mm).unwrap_or(i32::MAX)),
            })
        });
    let observations: Vec<RangeObs<f32>, MAX_RANGES> = observed.collect();
    // Any fit is reported with its residual; robust exclusion is the positioning crate's to offer.
    let options = Options {
        consistency: f32::INFINITY,
        ..Options::default()
    };
    let fix: Fix<f32> = match height_mm {
        Some(mm) => locate_2d(&observations, metres(mm), &options),
        None => locate_3d(&observations, &options),
    }
    .ok()?;
    let millimetres = |m: f32| (m * 1e3) as i32;
    Some(TagFigures {
        tag,
        position_mm: fix.position_m.map(millimetres),
        sigma_mm: (fix.sigma_horizontal_m() * 1e3) as u32,
        anchors: fix.used,
        residual_mm: (fix.residual_rms_m * 1e3) as u32,
    })
}
