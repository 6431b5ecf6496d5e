//! Masters to MQTT over TLS 1.3, with nothing lost on the way.
//!
//! ```text
//! master --SMP--> bridge::run --MQTT 5, TLS 1.3--> broker --> subscribers
//!                     ^----------- resend ------------------------'
//! ```
//!
//! [`outbox`] keeps records and repeats what was not acknowledged. That is not enough: a broker
//! that dies takes along what it had acknowledged but not yet delivered. So every record carries
//! its number, subscribers see gaps, and ask the bridge for them by `resend`; see [`topic`].

pub mod bridge;
pub mod broker;
pub mod mqtt;
pub mod outbox;
pub mod pki;
pub mod source;
pub mod topic;

pub use bridge::{Config, Health, run};
