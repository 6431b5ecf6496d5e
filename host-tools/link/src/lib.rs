//! The way to a master: SMP over UDP and serial, both ends.
//!
//! ```text
//! Client --datagram--> serve_udp / serve_serial --Question--> Inbox -> thread with the master core
//!        <--answer---                           <--answer----
//! ```
//!
//! A [`Client`] asks and gives typed answers ([`types`]); [`Client::to_slave`] gives a client
//! whose datagrams the master forwards. The server loops know no group and no core: they hand
//! every datagram to whoever polls the [`Inbox`], in whatever thread that is.

mod client;
mod northbound;
mod server;
pub mod types;

pub use helio_smp::MAX_DATAGRAM;

pub use client::{AskError, Client};
pub use northbound::{Inbox, Northbound, Question, northbound};
pub use server::{serve_serial, serve_udp};

/// The UDP port that SMP clients try first.
pub const PORT: u16 = 1337;
