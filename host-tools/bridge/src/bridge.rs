//! One master's way to the broker: asks the master, stores, publishes, repeats.
//!
//! ```text
//! master <--SMP--> reader --Fetched--> run: Outbox --publish--> broker
//!                                            ^-------- resend, acknowledgements
//! ```
//!
//! The reader is a task of its own, so that a silent master does not hold up what is stored; a
//! silent broker does not hold up the reader either, the [`Outbox`] takes the records.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use helio_link::AskError;
use helio_link::types::{Data, Map, Record, Status};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::mqtt::{Endpoint, Session, Signal, Will};
use crate::outbox::{Counts, Outbox, Output};
use crate::source::{Position, Seen, Source};
use crate::topic::{Presence, Range, Topics};

/// What the bridge of one master is told.
#[derive(Clone)]
pub struct Config {
    /// Name of the place, part of every topic.
    pub site: String,
    /// Name of the master, part of every topic and of the client id.
    pub master: String,
    /// The broker.
    pub broker: Endpoint,
    /// Records to keep; at some 600 bytes each.
    pub keep: usize,
    /// How often to ask a master that has nothing new.
    pub poll: Duration,
}

/// How often a status is read and published.
const STATUS: Duration = Duration::from_secs(1);
/// How often the map is read unless an event tells that it changed.
const MAP: Duration = Duration::from_secs(30);
/// Records per question; what does not fit the datagram is asked for next.
const BATCH: u32 = 64;

/// How the bridge is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Connected to the broker.
    pub online: bool,
    /// The master answers.
    pub master: bool,
    /// Times that the broker was reached.
    pub connections: u64,
    /// Of the store.
    pub counts: Counts,
    /// Records kept.
    pub kept: usize,
}

enum Fetched {
    Begin { boot: u64, first: u64 },
    Records(Vec<Record>),
    Status { boot: u64, status: Box<Status> },
    Map(Map),
    Trouble(String),
}

/// Bridges one master until dropped; tells its health at every change. Fails only when the
/// configuration can never work.
pub async fn run(config: Config, source: impl Source, health: watch::Sender<Health>) -> Result<()> {
    let topics = Topics::new(&config.site, &config.master).with_context(|| {
        format!(
            "{}/{}: no names for topics; use letters, digits and dashes",
            config.site, config.master
        )
    })?;
    let will = Will {
        topic: topics.of("bridge"),
        payload: json(&Presence::default())?,
    };
    let client_id = format!("bridge-{}-{}", config.site, config.master);
    let session = Session::start(&config.broker, &client_id, &topics.of("resend"), Some(will));
    // Few, so that a reader with much to tell waits for the store to take it.
    let (tell, mut told) = mpsc::channel(4);
    // Ends when `told` is dropped.
    tokio::spawn(Reader::new(source, config.poll, tell).run());

    let mut bridge = Bridge {
        topics,
        session,
        outbox: Outbox::new(config.keep),
        presence: Presence::default(),
        status: None,
        map: None,
        boot: 0,
        due: Due::default(),
        under_way: VecDeque::new(),
        down: None,
    };
    let mut tick = interval(STATUS);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            signal = bridge.session.next() => bridge.handle_signal(signal),
            Some(fetched) = told.recv() => bridge.handle_fetched(fetched)?,
            _ = tick.tick() => bridge.due.presence = true,
        }
        bridge.publish()?;
        health.send_if_modified(|old| {
            let new = bridge.health();
            std::mem::replace(old, new) != new
        });
    }
}

struct Bridge {
    topics: Topics,
    session: Session,
    outbox: Outbox,
    presence: Presence,
    status: Option<Status>,
    map: Option<Bytes>,
    boot: u64,
    due: Due,
    /// Whether the outbox waits for this acknowledgement, oldest first.
    under_way: VecDeque<bool>,
    /// Why there is no connection.
    down: Option<String>,
}

/// What has to be said besides the outbox.
#[derive(Default)]
struct Due {
    presence: bool,
    status: bool,
    map: bool,
}

#[derive(Serialize)]
struct Told<'a, T> {
    boot: u64,
    #[serde(flatten)]
    what: &'a T,
}

#[derive(Serialize)]
struct StatusTold<'a> {
    boot: u64,
    forwarded: u64,
    #[serde(flatten)]
    status: &'a Status,
}

impl Bridge {
    fn handle_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Up => {
                self.down = None;
                self.presence.online = true;
                self.presence.connections += 1;
                // A new broker has retained nothing.
                self.due = Due {
                    presence: true,
                    status: self.status.is_some(),
                    map: self.map.is_some(),
                };
                tracing::info!("connected to the broker");
            }
            Signal::Down(why) => {
                self.presence.online = false;
                if self.down.as_ref() != Some(&why) {
                    tracing::warn!("the broker is out of reach: {why}");
                    self.down = Some(why);
                }
                self.under_way.clear();
                self.outbox.handle_disconnect();
            }
            Signal::Acked => {
                if self.under_way.pop_front() == Some(true) {
                    self.outbox.handle_ack();
                }
            }
            Signal::Message { topic, payload } => {
                if topic == self.topics.of("resend")
                    && let Ok(Range { boot, from, to }) = serde_json::from_slice(&payload)
                {
                    self.outbox.handle_resend(boot, from, to);
                }
            }
        }
    }

    fn handle_fetched(&mut self, fetched: Fetched) -> Result<()> {
        if !matches!(fetched, Fetched::Trouble(_)) && !self.presence.master {
            self.presence.master = true;
            self.presence.trouble = None;
            self.due.presence = true;
        }
        match fetched {
            Fetched::Begin { boot, first } => {
                self.boot = boot;
                self.outbox.begin(boot, first);
            }
            Fetched::Records(records) => {
                for record in records {
                    let told = Told {
                        boot: self.boot,
                        what: &record,
                    };
                    self.outbox.push(record.seq, record.kind(), json(&told)?);
                }
            }
            Fetched::Status { boot, status } => {
                self.boot = boot;
                self.status = Some(*status);
                self.due.status = true;
            }
            Fetched::Map(map) => {
                let map = json(&map)?;
                if map.len() > Session::MAX_PAYLOAD {
                    tracing::warn!("the map is too long to be published: {} bytes", map.len());
                } else if self.map.as_ref() != Some(&map) {
                    self.map = Some(map);
                    self.due.map = true;
                }
            }
            Fetched::Trouble(why) => {
                if self.presence.trouble.as_ref() != Some(&why) {
                    tracing::warn!("the master is out of reach: {why}");
                    self.presence.master = false;
                    self.presence.trouble = Some(why);
                    self.due.presence = true;
                }
            }
        }
        Ok(())
    }

    /// Says what there is to say, as far as there is room.
    fn publish(&mut self) -> Result<()> {
        while self.session.room() > 0 {
            let due = self.next_due()?;
            let from_outbox = due.is_none();
            let (topic, retain, payload) = match due {
                Some((name, payload)) => (self.topics.of(name), true, payload),
                None => match self.outbox.poll_output() {
                    Some(Output::Record { kind, payload, .. }) => {
                        (self.topics.telemetry(&kind), false, payload)
                    }
                    Some(Output::Lost { boot, from, to }) => (
                        self.topics.of("lost"),
                        false,
                        json(&Range { boot, from, to })?,
                    ),
                    None => break,
                },
            };
            self.session.publish(topic, retain, payload)?;
            self.under_way.push_back(from_outbox);
        }
        Ok(())
    }

    fn next_due(&mut self) -> Result<Option<(&'static str, Bytes)>> {
        if std::mem::take(&mut self.due.presence) {
            self.presence.kept = self.outbox.kept() as u64;
            self.presence.lost = self.outbox.counts().lost;
            return Ok(Some(("bridge", json(&self.presence)?)));
        }
        if std::mem::take(&mut self.due.map) {
            return Ok(self.map.clone().map(|map| ("map", map)));
        }
        if std::mem::take(&mut self.due.status)
            && let Some(status) = &self.status
        {
            let forwarded = self.outbox.forwarded();
            let ours = forwarded.boot == self.boot;
            let told = StatusTold {
                boot: self.boot,
                forwarded: if ours { forwarded.seq } else { 0 },
                status,
            };
            return Ok(Some(("status", json(&told)?)));
        }
        Ok(None)
    }

    fn health(&self) -> Health {
        Health {
            online: self.presence.online,
            master: self.presence.master,
            connections: self.presence.connections,
            counts: self.outbox.counts(),
            kept: self.outbox.kept(),
        }
    }
}

fn json(what: &impl Serialize) -> Result<Bytes> {
    Ok(serde_json::to_vec(what)
        .context("a message could not be written as JSON")?
        .into())
}

struct Reader<S> {
    source: S,
    poll: Duration,
    tell: mpsc::Sender<Fetched>,
    position: Position,
    /// As of the last status.
    seq_next: u64,
    status_at: Instant,
    map_at: Instant,
}

impl<S: Source> Reader<S> {
    fn new(source: S, poll: Duration, tell: mpsc::Sender<Fetched>) -> Self {
        let now = Instant::now();
        Self {
            source,
            poll,
            tell,
            position: Position::default(),
            seq_next: 0,
            status_at: now,
            map_at: now,
        }
    }

    async fn run(mut self) {
        while !self.tell.is_closed() {
            let pause = match self.round().await {
                Ok(pause) => pause,
                Err(e) => {
                    self.status_at = Instant::now();
                    let _ = self.tell.send(Fetched::Trouble(e.to_string())).await;
                    STATUS
                }
            };
            sleep(pause).await;
        }
    }

    /// Asks what is due and gives the pause to make before the next round.
    async fn round(&mut self) -> Result<Duration, AskError> {
        let now = Instant::now();
        if now >= self.status_at {
            self.status_at = now + STATUS;
            let status = self.source.status().await?;
            self.seq_next = status.seq_next;
            if let Seen::New { boot, first } = self.position.handle_status(unix_ms(), &status) {
                self.map_at = now;
                let _ = self.tell.send(Fetched::Begin { boot, first }).await;
            }
            let boot = self.position.boot();
            let _ = self
                .tell
                .send(Fetched::Status {
                    boot,
                    status: Box::new(status),
                })
                .await;
        }
        if now >= self.map_at {
            self.map_at = now + MAP;
            match self.source.map().await {
                Ok(map) => drop(self.tell.send(Fetched::Map(map)).await),
                // A plant without tags may refuse.
                Err(AskError::Rc(_) | AskError::Group { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let batch = self.source.telemetry(self.position.since(), BATCH).await?;
        if !self.position.handle_batch(&batch) {
            self.status_at = now;
            return Ok(self.poll);
        }
        let new_map = |r: &Record| matches!(&r.data, Data::Event(e) if e.what == "map");
        if batch.records.iter().any(new_map) {
            self.map_at = now;
        }
        let many = batch.records.len() >= 4;
        let _ = self.tell.send(Fetched::Records(batch.records)).await;
        Ok(if self.position.since() < self.seq_next {
            Duration::ZERO
        } else if many {
            self.poll / 4
        } else {
            self.poll
        })
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}
