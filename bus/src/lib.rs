//! The bus between slaves and master: what is said, how it is spelt, when, and by whom.
#![no_std]

mod master;
pub mod message;
mod schedule;
mod slave;

pub use master::{MasterLink, MasterStats};
pub use message::*;
pub use schedule::Schedule;
pub use slave::{SlaveLink, SlaveStats, slave_accepts};

/// The queue is full; try again after some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;
