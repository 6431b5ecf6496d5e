//! A broker is killed and started again, several times, while a master talks: at the subscriber
//! no number is missing in the end. With our own broker and, where it is installed, with
//! Debian's mosquitto.

#[path = "common/plant.rs"]
mod plant;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use helio_bridge::broker;
use helio_bridge::mqtt::{Backoff, Endpoint};
use helio_bridge::pki::{Demo, Files};
use helio_cloud::subscriber::{self, Shared};
use plant::{Control, Plant};
use tokio::sync::watch;
use tokio::time::sleep;

/// Names the folder and port for the process that is the broker.
const DIR: &str = "HELIOGRAPH_TEST_BROKER_DIR";
const PORT: &str = "HELIOGRAPH_TEST_BROKER_PORT";

/// Not a test by itself: the process that gets killed. Does nothing in an ordinary run.
#[test]
fn the_broker_in_a_process_of_its_own() {
    let (Some(dir), Ok(port)) = (std::env::var_os(DIR), std::env::var(PORT)) else {
        return;
    };
    let port: u16 = port.parse().expect("a port");
    let credentials = Files::of(Path::new(&dir), "broker").load().expect("loaded");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = runtime
        .expect("a runtime")
        .block_on(broker::run(([127, 0, 0, 1], port).into(), &credentials));
    served.expect("a broker runs until it is killed");
}

/// A broker that can be killed and started again on the same port.
struct Killable {
    start: Box<dyn Fn() -> Option<Child> + Send>,
    running: Option<Child>,
}

impl Killable {
    fn ours(dir: PathBuf, port: u16) -> Self {
        Self::new(move || {
            let executable = std::env::current_exe().ok()?;
            Command::new(executable)
                .args(["--exact", "the_broker_in_a_process_of_its_own"])
                .env(DIR, &dir)
                .env(PORT, port.to_string())
                .stdout(Stdio::null())
                .spawn()
                .ok()
        })
    }

    fn mosquitto(dir: PathBuf, port: u16) -> Self {
        let files = Files::of(&dir, "broker");
        let config = dir.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n\
             tls_version tlsv1.3\nrequire_certificate true\nuse_identity_as_username true\n\
             allow_anonymous false\nuser root\n",
            files.ca.display(),
            files.cert.display(),
            files.key.display()
        );
        std::fs::write(&config, text).expect("written");
        Self::new(move || {
            let mut command = Command::new("mosquitto");
            command
                .arg("-c")
                .arg(&config)
                .stderr(Stdio::null())
                .spawn()
                .ok()
        })
    }

    fn new(start: impl Fn() -> Option<Child> + Send + 'static) -> Self {
        let running = start();
        Self {
            start: Box::new(start),
            running,
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }

    fn start(&mut self) {
        self.running = (self.start)();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        self.kill();
    }
}

fn endpoint(dir: &Path, port: u16, party: &str) -> Endpoint {
    let credentials = Files::of(dir, party).load().expect("loaded");
    Endpoint {
        host: "localhost".into(),
        port,
        tls: credentials.client().expect("a configuration"),
        backoff: Backoff::default(),
    }
}

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

async fn nothing_is_missing_after_kills(start: impl FnOnce(PathBuf, u16) -> Killable) {
    let dir = tempfile::tempdir().expect("a folder");
    let demo = Demo::new().expect("certificates");
    demo.write(dir.path()).expect("written");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a free port")
        .port();
    let mut broker = start(dir.path().into(), port);
    if broker.running.is_none() {
        println!("skipped: mosquitto is not installed");
        return;
    }

    let store = Shared::new("test");
    let viewer = endpoint(dir.path(), port, "viewer");
    let reader = store.clone();
    tokio::spawn(async move { subscriber::run("test", "viewer", &viewer, reader).await });

    let control = Control::default();
    let (tell, health) = watch::channel(helio_bridge::Health::default());
    let config = helio_bridge::Config {
        site: "test".into(),
        master: "rack".into(),
        broker: endpoint(dir.path(), port, "bridge"),
        keep: 20_000,
        poll: Duration::from_millis(20),
    };
    let source = Plant::new("rack", control.clone());
    tokio::spawn(helio_bridge::run(config, source, tell));

    let received = || store.lock().counts("rack").map_or(0, |c| c.received);
    until("records come", || received() > 100).await;
    for kill in 1..=3u64 {
        broker.kill();
        until("the bridge notices", || !health.borrow().online).await;
        let made = control.made.load(Ordering::Relaxed);
        let outage = || control.made.load(Ordering::Relaxed) > made + 60;
        until("the master has gone on talking", outage).await;
        broker.start();
        until("the bridge is back", || {
            health.borrow().connections == 1 + kill
        })
        .await;
        let before = received();
        until("records come again", || received() > before + 50).await;
    }
    control.stopped.store(true, Ordering::Relaxed);
    // What is being made at this moment is made after that.
    sleep(Duration::from_millis(100)).await;
    let made = control.made.load(Ordering::Relaxed);
    until("all have come", || received() >= made).await;

    let counts = store.lock().counts("rack").expect("heard of");
    println!(
        "{made} made, {counts:?}, bridge {:?}",
        health.borrow().counts
    );
    assert_eq!((counts.received, counts.missing, counts.lost), (made, 0, 0));
    assert_eq!(health.borrow().counts.lost, 0);
}

#[tokio::test]
async fn no_number_is_missing_when_our_broker_is_killed() {
    nothing_is_missing_after_kills(Killable::ours).await;
}

#[tokio::test]
async fn no_number_is_missing_when_mosquitto_is_killed() {
    nothing_is_missing_after_kills(Killable::mosquitto).await;
}
