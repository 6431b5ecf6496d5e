//! The live page and its data: a few files that are part of the binary, an API in JSON, and a
//! stream of what changed.
//!
//! | path | |
//! |---|---|
//! | `/` | the page |
//! | `/api/masters` | all masters in short |
//! | `/api/state?master=NAME` | all that is known of one |
//! | `/events?master=NAME` | the same as server-sent events: first all, then what changed, 5 times a second |
//! | `/healthz` | `{"ok":true,"broker":bool}` |
//!
//! Nothing can be commanded from here, and the page loads nothing from elsewhere.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::subscriber::Shared;

/// How often a viewer is told what changed.
const PERIOD: Duration = Duration::from_millis(200);
/// Viewers at once.
const VIEWERS: usize = 64;

const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html", include_str!("../page/index.html")),
    ("/style.css", "text/css", include_str!("../page/style.css")),
    ("/app.js", JS, include_str!("../page/app.js")),
    ("/cells.js", JS, include_str!("../page/cells.js")),
    ("/charts.js", JS, include_str!("../page/charts.js")),
    ("/map.js", JS, include_str!("../page/map.js")),
    ("/ui.js", JS, include_str!("../page/ui.js")),
];
const JS: &str = "text/javascript";

/// Own scripts and styles only. Widths of bars are set by style attributes.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page, with its port taken; [`Page::run`] opens it.
pub struct Page {
    listener: TcpListener,
    router: Router,
}

#[derive(Clone)]
struct Served {
    store: Shared,
    seats: Arc<Semaphore>,
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    master: String,
}

impl Page {
    /// Takes the port. Port 0 takes any free one.
    pub async fn bind(listen: SocketAddr, store: Shared) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!(
                "the page cannot listen on {listen}; stop what uses that port or choose another"
            )
        })?;
        let mut router = Router::new()
            .route("/api/masters", get(masters))
            .route("/api/state", get(state))
            .route("/events", get(events))
            .route("/healthz", get(healthz));
        for (path, kind, text) in FILES {
            router = router.route(path, get(move || async move { file(kind, text) }));
        }
        let seats = Arc::new(Semaphore::new(VIEWERS));
        let router = router.with_state(Served { store, seats });
        Ok(Self { listener, router })
    }

    /// Where browsers find it.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until dropped.
    pub async fn run(self) -> Result<()> {
        axum::serve(self.listener, self.router)
            .await
            .context("the page stopped")
    }
}

fn file(kind: &str, text: &'static str) -> Response {
    let headers: [(HeaderName, String); 4] = [
        (header::CONTENT_TYPE, format!("{kind}; charset=utf-8")),
        (header::CACHE_CONTROL, "no-cache".into()),
        (header::CONTENT_SECURITY_POLICY, POLICY.into()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".into()),
    ];
    (headers, text).into_response()
}

fn answer(status: StatusCode, what: &impl serde::Serialize) -> Response {
    (status, axum::Json(what)).into_response()
}

async fn masters(State(served): State<Served>) -> Response {
    answer(StatusCode::OK, &served.store.lock().summaries())
}

async fn state(State(served): State<Served>, Query(which): Query<Which>) -> Response {
    let store = served.store.lock();
    match store.view(&which.master, 0, unix_ms()) {
        Some(view) => answer(StatusCode::OK, &view),
        None => {
            let names = store.names().join(", ");
            let error = format!("no master {:?}; there are: {names}", which.master);
            answer(StatusCode::NOT_FOUND, &json!({ "error": error }))
        }
    }
}

async fn healthz(State(served): State<Served>) -> Response {
    let broker = served.store.lock().online();
    answer(StatusCode::OK, &json!({"ok": true, "broker": broker}))
}

/// A viewer's stream.
struct Viewer {
    store: Shared,
    master: String,
    since: u64,
    tick: Interval,
    _seat: OwnedSemaphorePermit,
}

async fn events(State(served): State<Served>, Query(which): Query<Which>) -> Response {
    let Ok(seat) = served.seats.try_acquire_owned() else {
        let error = format!("{VIEWERS} pages are open already; close one");
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error }));
    };
    let mut tick = interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let viewer = Viewer {
        store: served.store,
        master: which.master,
        since: 0,
        tick,
        _seat: seat,
    };
    let told = stream::unfold(viewer, |mut viewer| async move {
        viewer.tick.tick().await;
        let event = Event::default().data(viewer.next());
        Some((Ok::<_, Infallible>(event), viewer))
    });
    Sse::new(told).into_response()
}

impl Viewer {
    /// What changed since the last time, as JSON. Who asks for no master sees the first one.
    fn next(&mut self) -> String {
        let store = self.store.lock();
        if self.master.is_empty() {
            self.master = store.names().into_iter().next().unwrap_or_default();
        }
        let text = match store.view(&self.master, self.since, unix_ms()) {
            Some(view) => {
                self.since = view.rev;
                serde_json::to_string(&view)
            }
            None => serde_json::to_string(&json!({
                "broker": store.online(),
                "masters": store.summaries(),
            })),
        };
        text.unwrap_or_default()
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    fn store() -> Shared {
        let store = Shared::new("plant");
        let presence = br#"{"online":true,"master":true}"#;
        let topic = "heliograph/plant/rack/bridge";
        assert!(store.lock().handle_message(Instant::now(), topic, presence));
        store
    }

    async fn open(store: Shared) -> SocketAddr {
        let page = Page::bind(([127, 0, 0, 1], 0).into(), store).await;
        let page = page.expect("a port");
        let addr = page.local_addr().expect("an address");
        tokio::spawn(page.run());
        addr
    }

    /// The answer up to and with `end`.
    async fn get_until(addr: SocketAddr, path: &str, end: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.expect("open");
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = Vec::new();
        let mut byte = [0; 1024];
        while !String::from_utf8_lossy(&answer).contains(end) {
            let n = stream.read(&mut byte).await.expect("answered");
            assert!(n > 0, "ended: {}", String::from_utf8_lossy(&answer));
            answer.extend(&byte[..n]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn the_page_and_its_data_are_served() {
        let addr = open(store()).await;
        let page = get_until(addr, "/", "</html>").await;
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("default-src 'self'"));
        let masters = get_until(addr, "/api/masters", "]").await;
        assert!(masters.contains(r#""name":"rack""#), "{masters}");
        let state = get_until(addr, "/api/state?master=rack", "\"history\"").await;
        assert!(state.contains(r#""reset":true"#), "{state}");
        let health = get_until(addr, "/healthz", "}").await;
        assert!(health.contains(r#""broker":false"#), "{health}");
    }

    #[tokio::test]
    async fn a_master_that_is_not_there_is_named_with_those_that_are() {
        let addr = open(store()).await;
        let answer = get_until(addr, "/api/state?master=none", "}").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        assert!(answer.contains("there are: rack"), "{answer}");
    }

    #[tokio::test]
    async fn a_stream_begins_with_all_and_goes_on_with_what_changed() {
        let addr = open(store()).await;
        let told = get_until(addr, "/events", r#""reset":false"#).await;
        let first = told.find(r#""reset":true"#).expect("all first");
        assert!(first < told.find(r#""reset":false"#).expect("then changes"));
    }

    #[tokio::test]
    async fn a_page_that_opens_before_any_master_waits() {
        let addr = open(Shared::new("plant")).await;
        let told = get_until(addr, "/events", "}").await;
        assert!(told.contains(r#""masters":[]"#), "{told}");
    }

    #[test]
    fn the_page_loads_nothing_that_is_not_part_of_the_binary() {
        for (path, _, text) in FILES {
            for (i, _) in text.match_indices("://") {
                let around = &text[i - 5..i + 20];
                assert!(around.contains("http://www.w3.org/"), "{path}: {around}");
            }
            let quoted = text.split('"').skip(1).step_by(2);
            for name in quoted.filter(|q| q.ends_with(".js") || q.ends_with(".css")) {
                let name = name.trim_start_matches('.').trim_start_matches('/');
                let served = FILES.iter().any(|(path, ..)| path[1..] == *name);
                assert!(served, "{path} wants {name}");
            }
        }
    }

    #[tokio::test]
    async fn a_port_in_use_is_one_sentence_with_a_remedy() {
        let addr = open(store()).await;
        let error = match Page::bind(addr, store()).await {
            Ok(_) => panic!("the port was taken"),
            Err(e) => e.to_string(),
        };
        assert!(
            error.contains(&addr.to_string()) && error.contains("choose another"),
            "{error}"
        );
    }
}
