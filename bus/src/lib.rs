//! Placeholder.
#![no_std]

pub mod message;
pub use message::*;
