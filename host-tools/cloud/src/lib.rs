//! The end of the line.
pub mod store;
pub mod subscriber;
pub mod tracker;
