//! Cells on the bench: recordings in, a parameter file out ([`mod@fit`]), and how well an estimator follows a recording with it
//! ([`score`]).
//!
//! Runs on a host only; the model and the filter themselves are `helio-battery`'s.

// Row and column numbers are what these formulas are made of.
#![allow(clippy::needless_range_loop)]

pub mod bench;
pub mod bpx;
pub mod dynamic;
pub mod electrodes;
pub mod fit;
pub mod life;
pub mod lsq;
pub mod plot;
pub mod recording;
pub mod score;
pub mod slow;
