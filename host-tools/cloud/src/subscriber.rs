//! The end of the line: subscribes to a site, fills the [`Store`], asks for what is missing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use helio_bridge::mqtt::{Endpoint, Session, Signal};
use tokio::time::sleep;

use crate::store::Store;

/// The store, for the subscriber that fills it and the pages that read it.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Store>>);

impl Shared {
    /// An empty store for `site`.
    pub fn new(site: &str) -> Self {
        Self(Arc::new(Mutex::new(Store::new(site))))
    }

    /// Hold it for no longer than it takes to look.
    pub fn lock(&self) -> MutexGuard<'_, Store> {
        // A panic in a reader leaves the store as good as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscribes until dropped. Fails only when the site's name can never work.
pub async fn run(site: &str, client_id: &str, broker: &Endpoint, store: Shared) -> Result<()> {
    ensure!(
        !site.is_empty() && !site.contains(['/', '+', '#', '\0']),
        "{site:?}: no name for a site; use letters, digits and dashes"
    );
    let filter = format!("heliograph/{site}/#");
    let mut session = Session::start(broker, client_id, &filter, None);
    let mut down = None;
    loop {
        let due = store.lock().poll_timeout();
        let wait = match due {
            // Without a connection nobody can be asked.
            Some(due) if session.room() > 0 => due.saturating_duration_since(Instant::now()),
            _ => Duration::from_secs(3_600),
        };
        let signal = tokio::select! {
            signal = session.next() => Some(signal),
            () = sleep(wait) => None,
        };
        let now = Instant::now();
        let mut store = store.lock();
        match signal {
            Some(Signal::Message { topic, payload }) => {
                if !store.handle_message(now, &topic, &payload) {
                    tracing::debug!("a message that we cannot use: {topic}");
                }
            }
            Some(Signal::Up) => {
                tracing::info!("subscribed to {filter}");
                store.handle_online(true);
                down = None;
            }
            Some(Signal::Down(why)) => {
                store.handle_online(false);
                if down.as_ref() != Some(&why) {
                    tracing::warn!("the broker is out of reach: {why}");
                    down = Some(why);
                }
            }
            Some(Signal::Acked) | None => {}
        }
        while session.room() > 0
            && let Some((topic, range)) = store.poll_request(now)
        {
            let payload = serde_json::to_vec(&range).context("a request as JSON")?;
            session.publish(topic, false, payload.into())?;
        }
    }
}
