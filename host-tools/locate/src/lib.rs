//! Positioning at the desk: recordings located and compared with their truth, maps calibrated,
//! surveyed, checked and exported, luminaires identified in images.
//!
//! The host's side of `helio-positioning`, which does the estimating; here is what needs files,
//! memory and whole recordings at once. `helio` is its caller.

pub mod calibrate;
pub mod dop;
pub mod export;
pub mod input;
pub mod locate;
pub mod map;
pub mod recording;

pub use input::InputError;
pub use map::SiteMap;
pub use recording::{Ranges, Truth};
