//! PyPI's smpclient against a simulated plant: `tests-py/smpclient_test.py` over UDP and over a
//! pseudo-terminal, our server loops, the master core, the bus, a slave core.
//!
//! Runs where a Python has `smpclient[serial]` (`tests-py/requirements.txt`); `HELIO_PYTHON`
//! names another interpreter than `python3`. Elsewhere the test says that it was skipped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use helio_link::{Inbox, MAX_DATAGRAM, northbound, serve_serial, serve_udp};
use helio_sim::World;
use helio_sim::scenario::Scenario;
use helio_units::Instant;
use tokio::net::{TcpListener, UdpSocket};

/// More slaves than one datagram can list, as many as leave the bus room for the tunnel; anchors
/// and tags for every kind of record.
const PLANT: &str = r#"
name = "smpclient"
duration_s = 3600
bus = "canfd"
[pack]
slaves = 52
[hall]
anchors = 12
tags = 3
"#;

/// Lets the plant run and answers clients until all servers have gone.
fn run(mut inbox: Inbox) {
    let scenario = Scenario::parse(Path::new("smpclient"), PLANT, PathBuf::new()).unwrap();
    let mut world = World::new(scenario).unwrap();
    let mut waiting = HashMap::new();
    let (mut now_ms, mut tickets) = (5_000, 0..);
    loop {
        world.run_until(Instant::from_millis(now_ms));
        now_ms += 10;
        let rack = &mut world.racks[0];
        let mut answer = [0; MAX_DATAGRAM];
        while let Some(question) = inbox.poll() {
            let ticket = tickets.next().unwrap();
            match rack.handle_smp(ticket, &question.request, &mut answer) {
                0 => drop(waiting.insert(ticket, question)),
                n => question.answer(&answer[..n]),
            }
        }
        while let Some((ticket, n)) = rack.poll_smp(&mut answer) {
            if let Some(question) = waiting.remove(&ticket) {
                question.answer(&answer[..n]);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn smpclient_understands_every_answer_of_a_plant() {
    let python = std::env::var("HELIO_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_smpclient = Command::new(&python)
        .args(["-c", "import smpclient, serial"])
        .output();
    if !has_smpclient.is_ok_and(|o| o.status.success()) {
        println!("skipped: {python} has no smpclient; see tests-py/requirements.txt");
        return;
    }

    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let udp_address = udp.local_addr().unwrap();
    let serial = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let serial_address = serial.local_addr().unwrap();
    let (core, inbox) = northbound(8);
    // A rack is built on the stack, which a thread has little of.
    let thread = std::thread::Builder::new().stack_size(32 << 20);
    thread.spawn(|| run(inbox)).unwrap();
    tokio::spawn(serve_udp(udp, core.clone()));
    tokio::spawn(async move {
        let (line, _) = serial.accept().await.unwrap();
        serve_serial(line, core).await.unwrap();
    });

    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests-py/smpclient_test.py"
    );
    let run = tokio::task::spawn_blocking(move || {
        Command::new(&python)
            .arg(script)
            .arg(udp_address.to_string())
            .args(["--serial", &serial_address.to_string()])
            .args(["--slave", "3"])
            .output()
            .unwrap()
    });
    let output = run.await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(said.matches("... ok").count(), 22);
}
