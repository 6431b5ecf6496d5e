//! PyPI's smpclient against our server loops: `tests-py/smpclient_test.py` over UDP and over a
//! pseudo-terminal.
//!
//! Runs where a Python has `smpclient[serial]` (`tests-py/requirements.txt`); `HELIO_PYTHON`
//! names another interpreter than `python3`. Elsewhere the test says that it was skipped.

mod common;

use std::process::Command;

use common::Master;
use helio_link::{northbound, serve_serial, serve_udp};
use tokio::net::{TcpListener, UdpSocket};

#[tokio::test(flavor = "multi_thread")]
async fn smpclient_understands_every_answer() {
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
    // Without the kind of record that nobody knows: smpclient is to know all.
    let master = Master {
        next: 5,
        anchors: (0..200).map(common::anchor).collect(),
        ..Master::default()
    };
    std::thread::spawn(|| master.run(inbox));
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
