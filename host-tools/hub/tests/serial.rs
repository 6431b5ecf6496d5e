//! The RS485 hub, seen from its lines.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use helio_hub::Address;
use helio_hub::serial::{Config, Hub, Report};

struct Running {
    stop: UnixStream,
    thread: JoinHandle<Report>,
}

fn run(mut hub: Hub) -> Running {
    let (stop, stopped) = UnixStream::pair().expect("a pair");
    let thread = std::thread::spawn(move || {
        hub.run(stopped.as_fd(), None).expect("it runs");
        hub.report()
    });
    Running { stop, thread }
}

impl Running {
    fn end(mut self) -> Report {
        self.stop.write_all(b"x").expect("it listens");
        self.thread.join().expect("it did not panic")
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).expect("a line")
}

/// Reads so many bytes in another thread and gives them within 10 s.
fn read(mut from: impl Read + Send + 'static, n: usize) -> Vec<u8> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = vec![0; n];
        if from.read_exact(&mut bytes).is_ok() {
            let _ = send.send(bytes);
        }
    });
    let patience = Duration::from_secs(10);
    receive
        .recv_timeout(patience)
        .expect("as many bytes as asked for")
}

fn clone(file: &File) -> File {
    file.try_clone().expect("a descriptor")
}

/// The hub notices within some ms that a line was opened.
fn settle() {
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn every_byte_reaches_all_others_unchanged_and_not_its_sender() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config {
        ptys: 3,
        dir: Some(dir.path().join("bus")),
        listen: vec![Address::Tcp(([127, 0, 0, 1], 0).into())],
        ..Config::default()
    };
    let hub = Hub::open(&config).expect("a hub");
    let paths = hub.ptys().to_vec();
    assert_eq!(paths[2], dir.path().join("bus/2"));
    let Address::Tcp(at) = hub.addresses()[0].clone() else {
        panic!("not TCP");
    };
    let lines: Vec<File> = paths.iter().map(|p| open(p)).collect();
    let running = run(hub);
    let mut tcp = TcpStream::connect(at).expect("it listens");
    settle();
    // All octets: nothing in between may take one for a control character.
    let all: Vec<u8> = (0..=255).collect();
    (&lines[0]).write_all(&all).expect("written");
    for line in &lines[1..] {
        assert_eq!(read(clone(line), 256), all);
    }
    assert_eq!(read(tcp.try_clone().expect("a socket"), 256), all);
    tcp.write_all(b"pong").expect("written");
    for line in &lines {
        // The first gets this only: not its own bytes.
        assert_eq!(read(clone(line), 4), b"pong");
    }
    let report = running.end();
    let figures: Vec<_> = report
        .members
        .iter()
        .map(|m| (m.sent_bytes, m.received_bytes))
        .collect();
    assert_eq!(figures, [(256, 4), (0, 260), (0, 260), (4, 256)]);
    assert!(!dir.path().join("bus/0").exists(), "links go with the hub");
}

#[test]
fn with_echo_a_sender_hears_itself() {
    let config = Config {
        ptys: 1,
        echo: true,
        ..Config::default()
    };
    let hub = Hub::open(&config).expect("a hub");
    let line = open(&hub.ptys()[0]);
    let running = run(hub);
    settle();
    (&line).write_all(b"self").expect("written");
    assert_eq!(read(clone(&line), 4), b"self");
    running.end();
}

#[test]
fn a_line_can_be_opened_again_and_finds_nothing_old() {
    let config = Config {
        ptys: 2,
        ..Config::default()
    };
    let hub = Hub::open(&config).expect("a hub");
    let paths = hub.ptys().to_vec();
    let running = run(hub);
    let talker = open(&paths[0]);
    for round in [b'a', b'b', b'c'] {
        let listener = open(&paths[1]);
        settle();
        (&talker).write_all(&[round; 3]).expect("written");
        assert_eq!(read(clone(&listener), 2), [round; 2], "one stays unread");
        drop(listener);
        settle();
        (&talker).write_all(b"to nobody").expect("written");
        settle();
    }
    running.end();
}

#[test]
fn who_does_not_read_loses_bytes_and_holds_up_nobody() {
    let config = Config {
        ptys: 3,
        ..Config::default()
    };
    let hub = Hub::open(&config).expect("a hub");
    let lines: Vec<File> = hub.ptys().iter().map(|p| open(p)).collect();
    let running = run(hub);
    settle();
    let total = 300_000;
    let reader = clone(&lines[1]);
    let reading = std::thread::spawn(move || read(reader, total));
    for chunk in vec![0x55; total].chunks(500) {
        (&lines[0]).write_all(chunk).expect("written");
        // About what a fast bus carries; the reader can follow.
        std::thread::sleep(Duration::from_micros(500));
    }
    assert_eq!(reading.join().expect("all came").len(), total);
    let report = running.end();
    let deaf = &report.members[2];
    assert!(deaf.lost_bytes > 200_000, "{deaf:?}");
    assert_eq!(deaf.lost_bytes + deaf.received_bytes, total as u64);
    assert_eq!(report.members[1].lost_bytes, 0);
}

/// Printed, not asserted: half of it is this machine.
#[test]
fn how_long_a_byte_takes_there_and_back() {
    let config = Config {
        ptys: 2,
        ..Config::default()
    };
    let hub = Hub::open(&config).expect("a hub");
    let (a, b) = (open(&hub.ptys()[0]), open(&hub.ptys()[1]));
    let running = run(hub);
    settle();
    let answering = clone(&b);
    std::thread::spawn(move || {
        let mut byte = [0];
        while (&answering).read_exact(&mut byte).is_ok() {
            let _ = (&answering).write_all(&byte);
        }
    });
    let mut times: Vec<Duration> = (0..200u8)
        .map(|n| {
            let start = Instant::now();
            (&a).write_all(&[n]).expect("written");
            let mut byte = [0];
            (&a).read_exact(&mut byte).expect("read");
            assert_eq!(byte, [n]);
            start.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "there and back: median {:?}, 99 % {:?}",
        times[100], times[198]
    );
    running.end();
}

#[test]
fn an_address_that_others_could_reach_is_refused() {
    let said = "0.0.0.0:5000".parse::<Address>().unwrap_err();
    assert!(said.contains("127.0.0.1:5000"), "{said}");
    assert!("5000".parse::<Address>().is_err());
    assert_eq!("/tmp/x".parse(), Ok(Address::Unix("/tmp/x".into())));
}
