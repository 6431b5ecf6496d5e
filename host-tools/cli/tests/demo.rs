//! The demonstration as a whole: the built program, its broker beside it, and clients from outside.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{helio, shipped, text};
use helio_link::Client;
use helio_link::types::Data;
use serde_json::Value;

/// A demonstration that runs, started in an empty folder.
struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Its first line.
    started: Value,
    _folder: tempfile::TempDir,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut child = helio()
            .args(["demo", "--json", "--smp", "127.0.0.1:0"])
            .args(args)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let started = line(&mut stdout);
        Self {
            child,
            stdout,
            started,
            _folder: folder,
        }
    }

    /// Address of the first master.
    fn master(&self) -> &str {
        self.started["masters"][0].as_str().expect("an address")
    }

    fn client(&self) -> Client {
        // Three tries of ten seconds: whether it answers is asked here, not how soon.
        let runtime = tokio::runtime::Handle::current();
        let connect = Client::connect_udp(self.master());
        tokio::task::block_in_place(|| runtime.block_on(connect))
            .expect("a socket")
            .with_patience(Duration::from_secs(10), 3)
    }

    /// As Ctrl-C does.
    fn interrupt(&self) {
        signal("INT", self.child.id().into());
    }

    /// Its last line, when it has ended by itself.
    fn ended(mut self) -> Value {
        let ended = line(&mut self.stdout);
        assert!(self.child.wait().expect("it ends").success());
        ended
    }
}

impl Drop for Demo {
    /// A test that failed leaves nothing behind: the demonstration takes its broker along.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.interrupt();
            let _ = self.child.wait();
        }
    }
}

fn line(from: &mut impl BufRead) -> Value {
    let mut line = String::new();
    from.read_line(&mut line).expect("UTF-8");
    serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
}

fn signal(name: &str, pid: u64) {
    let done = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(done.expect("kill").success(), "kill -{name} {pid}");
}

/// A test that waits for ever is one that failed.
fn wait_until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Status code and body of one GET.
fn get(url: &str, path: &str) -> (u16, String) {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("the page listens");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.expect("a status code"), body.to_string())
}

/// Waits until all slaves have joined. A demonstration that ends before answers no more.
async fn all_joined(client: &Client, slaves: u16) {
    loop {
        let status = client.status().await.expect("the master answers");
        assert_eq!(status.pack.expected, slaves);
        if status.pack.members == slaves {
            assert_eq!(status.nodes.len(), usize::from(slaves));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the subscriber behind the page has heard of all these masters.
async fn all_seen(url: &str, masters: &[&str]) {
    loop {
        let (code, body) = get(url, "/api/masters");
        assert_eq!(code, 200);
        let _: Value = serde_json::from_str(&body).expect("JSON");
        if masters.iter().all(|name| body.contains(name)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn without_a_page_the_demo_runs_its_time_and_reports() {
    let demo = Demo::start(&["--headless", "--slaves", "2", "--seconds", "2"]);
    assert!(demo.started["page"].is_null());
    let ended = demo.ended();
    assert_eq!(ended["broker_starts"], 1);
    assert_eq!(ended["plant"]["racks"][0]["members"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missing_after_the_broker_was_killed() {
    let demo = Demo::start(&["--seconds", "12", "--page", "127.0.0.1:0"]);
    let client = demo.client();
    all_joined(&client, 32).await;

    let telemetry = client.telemetry(0, 10).await.expect("records");
    assert_eq!((telemetry.first, telemetry.next), (1, 11));
    let of_joining = |data: &Data| matches!(data, Data::Event(e) if e.what == "joined");
    assert!(
        telemetry.records.iter().any(|r| of_joining(&r.data)),
        "{telemetry:?}"
    );
    let echo = client.to_slave(1).echo("down there?").await;
    assert_eq!(echo.expect("through the tunnel"), "down there?");

    // In the middle of what flows, not before.
    let url = demo.started["page"].as_str().expect("an address");
    all_seen(url, &["master-1"]).await;
    signal(
        "KILL",
        demo.started["broker_pid"].as_u64().expect("a process"),
    );
    let ended = demo.ended();
    assert_eq!(ended["broker_starts"], 2, "{ended}");
    let (bridge, seen) = (&ended["bridges"][0], &ended["subscriber"][0]);
    assert_eq!(bridge["master"], "master-1");
    assert_eq!(seen["master"], "master-1");
    assert!(bridge["connections"].as_u64() >= Some(2), "{bridge}");
    assert!(bridge["taken"].as_u64() > Some(100), "{bridge}");
    assert_eq!(bridge["lost"], 0, "{bridge}");
    assert_eq!(
        (&seen["missing"], &seen["lost"]),
        (&0.into(), &0.into()),
        "{seen}"
    );
    assert_eq!(seen["received"], bridge["taken"], "{ended}");
    assert_eq!(ended["plant"]["racks"][0]["members"], 32);
    assert_eq!(ended["plant"]["racks"][0]["healthy"]["lost"], 0);
}

#[test]
fn a_killed_demo_leaves_no_broker_behind() {
    let mut demo = Demo::start(&["--headless", "--slaves", "2", "--seconds", "600"]);
    let broker = demo.started["broker"]
        .as_str()
        .expect("an address")
        .to_string();
    let listens = || TcpStream::connect(&broker).is_ok();
    wait_until(listens);
    signal("KILL", demo.child.id().into());
    demo.child.wait().expect("it was killed");
    wait_until(|| !listens());
}

#[test]
fn a_demo_that_is_told_to_terminate_reports_and_cleans_up() {
    let demo = Demo::start(&["--headless", "--slaves", "2", "--seconds", "600"]);
    let certificates = demo.started["certificates"].as_str().expect("a folder");
    let certificates = std::path::PathBuf::from(certificates);
    signal("TERM", demo.child.id().into());
    assert_eq!(demo.ended()["broker_starts"], 1);
    assert!(!certificates.exists(), "private keys stay behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_out_of_the_binary_and_an_interrupt_ends_everything_with_a_report() {
    // Far longer than the test takes: the interrupt ends it.
    let demo = Demo::start(&[
        "--slaves",
        "4",
        "--masters",
        "2",
        "--seconds",
        "600",
        "--page",
        "127.0.0.1:0",
    ]);
    all_joined(&demo.client(), 4).await;
    let url = demo.started["page"].as_str().expect("an address");
    let (code, page) = get(url, "/");
    assert_eq!(code, 200);
    assert!(page.trim_end().ends_with("</html>"), "{page}");
    all_seen(url, &["master-1", "master-2"]).await;
    assert_eq!(get(url, "/nothing").0, 404);

    let certificates = demo.started["certificates"]
        .as_str()
        .map(std::path::PathBuf::from);
    let certificates = certificates.expect("a folder");
    assert!(certificates.is_dir());
    demo.interrupt();
    let ended = demo.ended();
    assert_eq!(
        ended["subscriber"].as_array().map(Vec::len),
        Some(2),
        "{ended}"
    );
    assert_eq!(ended["broker_starts"], 1);
    assert!(!certificates.exists(), "private keys stay behind");
}

#[test]
fn smpclient_of_pypi_understands_the_running_demo() {
    let Ok(python) = std::env::var("HELIO_PYTHON") else {
        println!("skipped: set HELIO_PYTHON to a Python with tests-py/requirements.txt");
        return;
    };
    let demo = Demo::start(&["--headless", "--seconds", "600"]);
    // It asks for what is known only when everybody is there.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::connect_udp(demo.master()).await.unwrap();
        all_joined(&client, 32).await;
    });
    let output = Command::new(python)
        .arg(shipped("tests-py/smpclient_test.py"))
        .args([demo.master(), "--slave", "1"])
        .output()
        .expect("HELIO_PYTHON is a program");
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert_eq!(said.matches("... ok").count(), 11, "{said}");
}
