//! Masters to MQTT over TLS 1.3.

pub mod broker;
pub mod mqtt;
pub mod outbox;
pub mod pki;
