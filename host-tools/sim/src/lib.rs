//! A world of cores in virtual time.
pub mod media;
