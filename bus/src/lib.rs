//! The bus between the slaves and their master: what is said, how it is spelt, when, and by whom.
//!
//! [`SlaveLink`] and [`MasterLink`] are the two ends. Frames, bytes, confirmations and time go in
//! through `handle_*`; frames come out of `poll_can` and `poll_serial`, news out of `poll_event`,
//! the next wish for time out of `poll_timeout`. `docs/bus.md` is the specification.
//!
//! ```text
//! message  what is said          wire      as CAN frames          slave   one end
//! schedule when                  e2e       check and counter      master  the other end
//! join     getting a seat        seats     who sits where
//! budget   how much at most      segment   datagrams over frames
//! superframe  RS485: how it is spelt, and every place in time
//! station     what a shell needs of either end
//! trunk       several buses of one master
//! analysis    how late each message can be, and how many slaves fit
//! ```
#![no_std]

#[cfg(test)]
extern crate std;

pub mod analysis;
mod bits;
mod budget;
mod e2e;
mod join;
mod master;
pub mod message;
#[cfg(feature = "model")]
pub mod model;
mod schedule;
mod seats;
mod segment;
mod slave;
mod station;
mod superframe;
mod trunk;
mod wire;

pub use e2e::DataId;
pub use join::{PROTOCOL_VERSION, slave_accepts};
pub use master::{MasterLink, MasterStats};
pub use message::*;
pub use schedule::Schedule;
pub use segment::MAX_DATAGRAM;
pub use slave::{SlaveLink, SlaveStats};
pub use station::Station;
pub use superframe::{decode_message as decode_serial, encode_message as encode_serial};
pub use trunk::Trunk;
pub use wire::{DecodeError, Decoded, decode as decode_can, encode as encode_can};

/// Not taken: too much is under way; try again after some time. Also the answer to a datagram
/// that is empty or longer than [`MAX_DATAGRAM`], and to one for who has no seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;
