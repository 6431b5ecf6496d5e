//! A master starts anew, and then its bridge dies: what the subscriber makes of it.

#[path = "common/plant.rs"]
mod plant;

use std::sync::atomic::Ordering;
use std::time::Duration;

use helio_bridge::broker::Broker;
use helio_bridge::mqtt::{Backoff, Endpoint};
use helio_bridge::pki::{Demo, Files};
use helio_cloud::subscriber::{self, Shared};
use plant::{Control, Plant};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    println!("waiting until {what}");
    for _ in 0..6_000 {
        if is() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("two minutes, and not yet: {what}");
}

#[tokio::test]
async fn a_restarted_master_is_shown_anew_with_nothing_missing_and_a_dead_bridge_is_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = Demo::new().expect("certificates");
    demo.write(dir.path()).expect("written");
    let serving = Files::of(dir.path(), "broker").load().expect("loaded");
    let broker = Broker::bind(([127, 0, 0, 1], 0).into(), &serving).await;
    let broker = broker.expect("a port");
    let port = broker.local_addr().expect("an address").port();
    tokio::spawn(broker.run());
    let endpoint = |party| Endpoint {
        host: "localhost".into(),
        port,
        tls: Files::of(dir.path(), party)
            .load()
            .and_then(|c| c.client())
            .expect("loaded"),
        backoff: Backoff::default(),
    };

    let store = Shared::new("test");
    let (viewer, reader) = (endpoint("viewer"), store.clone());
    tokio::spawn(async move { subscriber::run("test", "viewer", &viewer, reader).await });
    let control = Control::default();
    let config = helio_bridge::Config {
        site: "test".into(),
        master: "rack".into(),
        broker: endpoint("bridge"),
        keep: 20_000,
        poll: Duration::from_millis(20),
    };
    let (tell, _) = watch::channel(helio_bridge::Health::default());
    let source = Plant::new("rack", control.clone());
    let bridge = tokio::spawn(helio_bridge::run(config, source, tell));

    let view = || -> Value {
        let store = store.lock();
        let view = store.view("rack", 0, 0);
        serde_json::to_value(view).expect("JSON")
    };
    let received = || store.lock().counts("rack").map_or(0, |c| c.received);
    let made = || control.made.load(Ordering::Relaxed);

    // Seconds, so that the second run has fewer records than the first.
    until("records come", || received() > 400).await;
    control.stopped.store(true, Ordering::Relaxed);
    sleep(Duration::from_millis(100)).await;
    let first = made();
    until("all of the first run have come", || received() == first).await;
    assert_eq!(view()["bridge"]["online"], true);

    control.restart.store(true, Ordering::Relaxed);
    control.stopped.store(false, Ordering::Relaxed);
    until("records of the second run come", || received() > first + 50).await;
    control.stopped.store(true, Ordering::Relaxed);
    sleep(Duration::from_millis(100)).await;
    until("all have come", || received() == first + made()).await;
    let counts = store.lock().counts("rack").expect("heard of");
    assert_eq!((counts.missing, counts.lost), (0, 0), "{counts:?}");
    let uptime = view()["uptime_ms"].as_u64().expect("a number");
    assert!(
        uptime < 60_000 && made() < first,
        "{uptime} ms, {} records",
        made()
    );

    bridge.abort();
    until("the broker tells that the bridge is gone", || {
        view()["bridge"]["online"] == false
    })
    .await;
}
