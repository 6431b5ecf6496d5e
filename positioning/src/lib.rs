//! Where a tag is: lateration, integrity, tracking and the map of anchors.
//!
//! Pure functions and small states; the master core drives them with ranges as they come off
//! the bus, the host tools with recorded ones. Nothing here owns a clock, allocates, loops
//! without a bound or panics.
//!
//! Lengths are metres in the room frame (z up) unless a name says otherwise. Everything is
//! generic over `f32` (target) and `f64` (host) by [`Real`].
#![no_std]

#[cfg(test)]
extern crate std;

mod calibrate;
mod camera;
mod code;
mod diagnose;
mod integrity;
mod light;
mod locate;
mod map;
mod math;
mod robust;
#[cfg(test)]
mod sample;
mod tracker;

pub use calibrate::{Calibrated, Calibration};
pub use camera::{
    BearingObs, Camera, CameraFix, MAX_PIXELS, PixelObs, Pose, locate_bearings, locate_camera,
};
pub use code::{CHIP_RATE_HZ, FRAME_CHIPS, FrequencyPlan, LightCode, PATTERN_BYTES, decode_chips};
pub use diagnose::{Diagnosis, DiagnosisConfig, Finding};
pub use integrity::{Protected, Risk, protect_2d, protect_3d};
pub use light::{LightObs, Luminaire, locate_light};
pub use locate::{
    Fix, LocateError, MAX_OBSERVATIONS, Options, RangeObs, Side, locate_2d, locate_3d,
};
pub use map::{Anchor, AnchorMap, Georeference, MapDecodeError, MapError, StageError, Staging};
pub use math::Real;
pub use robust::{EXHAUSTIVE, FaultModel, locate_robust_2d, locate_robust_3d};
pub use tracker::{Track, Tracker, TrackerConfig, Verdict};
