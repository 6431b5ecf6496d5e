//! Positioning at the desk: recordings located and compared with their truth, maps calibrated,
//! surveyed, checked, compared, plotted and exported; light codes read from images.
//!
//! The host's side of `helio-positioning`, which does the estimating; here is what needs files,
//! memory and whole recordings at once. `helio` is its caller.

pub mod bench;
pub mod calibrate;
pub mod check;
pub mod diff;
pub mod dop;
pub mod export;
pub mod input;
pub mod light;
pub mod locate;
pub mod map;
pub mod powers;
pub mod recording;
pub mod survey;
mod tukey;

pub use input::InputError;
pub use map::SiteMap;
pub use recording::{Ranges, Truth};
