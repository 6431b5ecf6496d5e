//! `helio hub` as scripts run it.

mod common;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{helio, text};

#[test]
fn it_says_where_to_connect_joins_the_lines_and_reports_when_told_to_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut hub = helio()
        .args(["hub", "--json", "--ptys", "2", "--dir"])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut said = BufReader::new(hub.stdout.take().expect("piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("a line");
    let ready: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(ready["ready"], "rs485");
    let open = |n: usize| {
        let path = ready["ptys"][n].as_str().expect("a path");
        let mut options = OpenOptions::new();
        options.read(true).write(true).open(path).expect("a line")
    };
    let (mut a, mut b) = (open(0), open(1));
    std::thread::sleep(Duration::from_millis(100));
    a.write_all(b"hello").expect("written");
    let mut heard = [0; 5];
    b.read_exact(&mut heard).expect("read");
    assert_eq!(&heard, b"hello");

    let end = Command::new("kill").arg(hub.id().to_string()).status();
    assert!(end.expect("kill").success());
    line.clear();
    said.read_line(&mut line).expect("a line");
    let report: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(report["members"][0]["sent_bytes"], 5);
    assert_eq!(report["members"][1]["received_bytes"], 5);
    assert!(hub.wait().expect("it ends").success());
    assert_eq!(dir.path().read_dir().expect("the folder").count(), 0);
}

#[test]
fn what_no_hub_can_be_made_of_is_refused_with_the_remedy() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its number").to_string();
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("0"), "mine").expect("a file");
    let mine = dir.path().to_str().expect("UTF-8");
    for (args, remedy) in [
        (vec![], "--ptys"),
        (vec!["--listen", "0.0.0.0:1"], "127.0.0.1:1"),
        (vec!["--listen", &taken], "choose another"),
        (vec!["--can", &taken], "choose another"),
        (vec!["--can", "127.0.0.1:0", "--ptys", "1"], "--ptys"),
        (vec!["--tty", "/nowhere:fast"], "baud rate"),
        (vec!["--tty", "/nowhere"], "check the path"),
        (vec!["--ptys", "1", "--dir", mine], "choose another folder"),
        (vec!["--ptys", "1", "--seconds=-1"], "--seconds"),
    ] {
        let output = helio().arg("hub").args(&args).output().expect("it starts");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(remedy), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let mine = std::fs::read(dir.path().join("0")).expect("still there");
    assert_eq!(mine, b"mine");
}
