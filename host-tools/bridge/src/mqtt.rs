//! One end of an MQTT 5 connection that comes back by itself.
//!
//! A task owns the socket; [`Session::next`] tells what happened, and what is published goes
//! through [`Session::publish`]. After [`Signal::Down`] nothing that was handed over is sent any
//! more: the owner knows what was not [`Signal::Acked`] and decides what to say again.
//!
//! ```text
//!            CONNACK                error
//! Connecting --------> Up ---------------------> Down (told, and acknowledged by `next`)
//!    ^ ^ '-- error --.                            |
//!    | '---- wait <--'                            |
//!    '------ wait 100 ms, 200 ms ... 2 s ---------'
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet, PubAckReason, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::ClientConfig;
use tokio::sync::{mpsc, oneshot};

/// Where the broker is and how to reach it.
#[derive(Clone)]
pub struct Endpoint {
    /// Name or address, as it stands in the broker's certificate.
    pub host: String,
    /// 8883 by custom.
    pub port: u16,
    /// From [`crate::pki::Credentials::client`].
    pub tls: Arc<ClientConfig>,
    /// Wait after a lost connection.
    pub backoff: Backoff,
}

/// Waits `first`, then twice that, and so on up to `max`; from `first` again once connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// First wait.
    pub first: Duration,
    /// Longest wait.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(100),
            max: Duration::from_secs(2),
        }
    }
}

/// What the broker says of us when we vanish.
pub struct Will {
    /// Where it says so; retained.
    pub topic: String,
    /// What it says.
    pub payload: Bytes,
}

/// What happened on the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Connected, and what was to be subscribed is.
    Up,
    /// Not connected, and why.
    Down(String),
    /// The oldest publication not yet acknowledged was.
    Acked,
    /// Something came in.
    Message {
        /// Its topic.
        topic: String,
        /// Its content.
        payload: Bytes,
    },
}

/// See the module.
pub struct Session {
    client: AsyncClient,
    told: mpsc::Receiver<Told>,
    /// Kept until the next call of `next`, so that the owner has dealt with a `Down` by then.
    down: Option<oneshot::Sender<()>>,
    up: bool,
    unacked: usize,
}

enum Told {
    Signal(Signal),
    Down(String, oneshot::Sender<()>),
}

impl Session {
    /// Publications handed over and not yet acknowledged, at most.
    pub const WINDOW: usize = 100;
    /// Longest message; a map of 2000 anchors has some 90 000 bytes.
    pub const MAX_PACKET: usize = 256 * 1024;
    /// Longest payload; topic and header take the rest.
    pub const MAX_PAYLOAD: usize = Self::MAX_PACKET - 1024;

    /// Starts to connect; `filter` is subscribed to on each connection.
    pub fn start(to: &Endpoint, client_id: &str, filter: &str, will: Option<Will>) -> Self {
        let mut options = MqttOptions::new(client_id, to.host.clone(), to.port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(to.tls.clone())))
            .set_keep_alive(Duration::from_secs(5))
            .set_clean_start(true)
            .set_connection_timeout(5)
            .set_max_packet_size(Some(Self::MAX_PACKET as u32))
            // The table of packet ids is allocated in full.
            .set_outgoing_inflight_upper_limit(2 * Self::WINDOW as u16);
        if let Some(will) = will {
            options.set_last_will(LastWill::new(
                will.topic,
                will.payload,
                QoS::AtLeastOnce,
                true,
                None,
            ));
        }
        // Room for a whole window and the subscription: handing over never waits.
        let (client, events) = AsyncClient::new(options, Self::WINDOW + 8);
        let (tell, told) = mpsc::channel(Self::WINDOW);
        let task = Task {
            events,
            client: client.clone(),
            filter: filter.into(),
            backoff: to.backoff,
            under_way: VecDeque::new(),
            tell,
        };
        // Ends when `told` is dropped.
        tokio::spawn(task.run());
        Self {
            client,
            told,
            down: None,
            up: false,
            unacked: 0,
        }
    }

    /// What happened next. May be dropped while it waits, without loss.
    pub async fn next(&mut self) -> Signal {
        if let Some(down) = self.down.take() {
            let _ = down.send(());
        }
        let signal = match self.told.recv().await {
            Some(Told::Signal(signal)) => signal,
            Some(Told::Down(why, done)) => {
                self.down = Some(done);
                Signal::Down(why)
            }
            // The task goes only with us.
            None => std::future::pending().await,
        };
        match &signal {
            Signal::Up => self.up = true,
            Signal::Down(_) => (self.up, self.unacked) = (false, 0),
            Signal::Acked => self.unacked = self.unacked.saturating_sub(1),
            Signal::Message { .. } => {}
        }
        signal
    }

    /// How many publications may be handed over now.
    pub fn room(&self) -> usize {
        if self.up {
            Self::WINDOW - self.unacked
        } else {
            0
        }
    }

    /// Publishes with QoS 1. An error when there is no [`Self::room`] or the payload is too long.
    pub fn publish(&mut self, topic: String, retain: bool, payload: Bytes) -> Result<()> {
        ensure!(self.room() > 0, "not connected, or too much under way");
        ensure!(
            payload.len() <= Self::MAX_PAYLOAD,
            "{topic}: message too long"
        );
        self.client
            .try_publish(topic, QoS::AtLeastOnce, retain, payload)?;
        self.unacked += 1;
        Ok(())
    }
}

struct Task {
    events: EventLoop,
    client: AsyncClient,
    filter: String,
    backoff: Backoff,
    /// Packet ids not yet acknowledged, oldest first.
    under_way: VecDeque<u16>,
    tell: mpsc::Sender<Told>,
}

impl Task {
    async fn run(mut self) {
        let mut wait = self.backoff.first;
        loop {
            // `poll` must not be dropped half way, hence a task of its own.
            let polled = tokio::select! {
                biased;
                () = self.tell.closed() => return,
                polled = self.events.poll() => polled,
            };
            let signal = match polled {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    match self.client.try_subscribe(&*self.filter, QoS::AtLeastOnce) {
                        Ok(()) => continue,
                        Err(e) => Err(e.to_string()),
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => match ack.return_codes.first() {
                    Some(SubscribeReasonCode::Success(_)) => Ok(Signal::Up),
                    refused => Err(format!("the broker refused to subscribe us: {refused:?}")),
                },
                Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                    self.under_way.push_back(id);
                    continue;
                }
                Ok(Event::Incoming(Packet::PubAck(ack))) => match ack.reason {
                    // MQTT 5.0, 4.6: acknowledged in the order of the publications.
                    _ if self.under_way.pop_front() != Some(ack.pkid) => {
                        Err("the broker acknowledges out of order".into())
                    }
                    PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                        Ok(Signal::Acked)
                    }
                    refused => Err(format!("the broker refused a message: {refused:?}")),
                },
                Ok(Event::Incoming(Packet::Publish(message))) => Ok(Signal::Message {
                    topic: String::from_utf8_lossy(&message.topic).into_owned(),
                    payload: message.payload,
                }),
                Ok(_) => continue,
                Err(e) => Err(e.to_string()),
            };
            match signal {
                Ok(signal) => {
                    if signal != Signal::Up {
                        // Not at `Up`: a broker may take us in only to throw us out.
                        wait = self.backoff.first;
                    }
                    if self.tell.send(Told::Signal(signal)).await.is_err() {
                        return;
                    }
                }
                Err(why) => {
                    let (done, seen) = oneshot::channel();
                    if self.tell.send(Told::Down(why, done)).await.is_err() {
                        return;
                    }
                    // From here on the owner hands nothing over until it hears `Up`.
                    if seen.await.is_err() {
                        return;
                    }
                    self.events.clean();
                    self.events.pending.clear();
                    self.events.state.events.clear();
                    self.under_way.clear();
                    tokio::time::sleep(wait).await;
                    wait = self.backoff.max.min(wait * 2);
                }
            }
        }
    }
}
