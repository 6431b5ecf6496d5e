//! The CAN hub, seen through its sockets as controllers see it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use helio_bus::{CanFrame, CanId};
use helio_hub::Address;
use helio_hub::can::{Hub, Report};
use helio_hub::record::{Framed, RecordError, Request, Start, Told};

const CLASSIC: Start = Start {
    fd: false,
    listen_only: false,
    manual_recovery: false,
    nominal_bps: 500_000,
    data_bps: 500_000,
};
const FD: Start = Start {
    fd: true,
    data_bps: 2_000_000,
    ..CLASSIC
};

/// A hub in a thread of its own.
struct Running {
    path: PathBuf,
    stop: UnixStream,
    thread: JoinHandle<Report>,
    _dir: tempfile::TempDir,
}

fn hub() -> Running {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("bus");
    let mut hub = Hub::open(&[Address::Unix(path.clone())]).expect("a hub");
    let (stop, stopped) = UnixStream::pair().expect("a pair");
    let thread = std::thread::spawn(move || {
        hub.run(stopped.as_fd(), None).expect("it runs");
        hub.report()
    });
    Running {
        path,
        stop,
        thread,
        _dir: dir,
    }
}

impl Running {
    fn connect(&self) -> Member {
        let stream = UnixStream::connect(&self.path).expect("the hub listens");
        let patience = Some(Duration::from_secs(10));
        stream.set_read_timeout(patience).expect("a timeout");
        Member {
            stream,
            input: Vec::new(),
        }
    }

    /// Connects and takes part.
    fn join(&self, start: Start) -> Member {
        let mut member = self.connect();
        member.ask(&Request::Start(start));
        assert!(matches!(member.hear(), Told::Started(_)));
        member
    }

    fn end(mut self) -> Report {
        self.stop.write_all(b"x").expect("it listens");
        self.thread.join().expect("it did not panic")
    }
}

struct Member {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Member {
    fn ask(&mut self, request: &Request) {
        self.ask_all(&[*request]);
    }

    /// In one write, so that the hub hears them at once.
    fn ask_all(&mut self, requests: &[Request]) {
        let mut octets = Vec::new();
        requests.iter().for_each(|r| r.encode(&mut octets));
        self.stream.write_all(&octets).expect("the hub reads");
    }

    fn hear(&mut self) -> Told {
        loop {
            match Told::decode(&self.input) {
                Ok((told, size)) => {
                    self.input.drain(..size);
                    return told;
                }
                Err(RecordError::Incomplete) => {}
                Err(RecordError::Malformed) => panic!("malformed: {:?}", self.input),
            }
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).expect("the hub talks");
            assert!(n > 0, "the hub hung up");
            self.input.extend(&buffer[..n]);
        }
    }

    /// The next that is no news of counters.
    fn hear_frame(&mut self) -> Told {
        loop {
            match self.hear() {
                Told::State(..) => {}
                told => return told,
            }
        }
    }
}

fn frame(id: u16, data: &[u8]) -> Framed {
    let frame = CanFrame::new(CanId::Standard(id), false, data).expect("a frame");
    Framed {
        frame,
        switch: false,
    }
}

#[test]
fn a_frame_reaches_all_others_and_its_sender_is_told_that_it_was_sent() {
    let hub = hub();
    let mut all: Vec<Member> = (0..3).map(|_| hub.join(CLASSIC)).collect();
    all[0].ask(&Request::Send(1, frame(0x123, &[1, 2, 3])));
    assert_eq!(all[1].hear(), Told::Frame(0, frame(0x123, &[1, 2, 3])));
    assert_eq!(all[2].hear(), Told::Frame(0, frame(0x123, &[1, 2, 3])));
    assert_eq!(all[0].hear(), Told::Sent(1));
    let report = hub.end();
    assert_eq!((report.frames, report.errors), (1, 0));
}

#[test]
fn of_frames_that_wait_the_lowest_identifier_goes_first() {
    let hub = hub();
    let (mut a, mut b) = (hub.join(CLASSIC), hub.join(CLASSIC));
    // The first is on the wire for 200 us, while the others come to wait.
    a.ask_all(&[
        Request::Send(2, frame(0x700, &[0; 8])),
        Request::Send(1, frame(0x300, &[])),
        Request::Send(0, frame(0x020, &[])),
    ]);
    let heard: Vec<Told> = (0..3).map(|_| b.hear()).collect();
    let id = |told: &Told| match told {
        Told::Frame(_, framed) => framed.frame.id,
        other => panic!("{other:?}"),
    };
    // All three were there before the first bit.
    assert_eq!(
        heard.iter().map(id).collect::<Vec<_>>(),
        [0x020, 0x300, 0x700].map(CanId::Standard)
    );
    assert_eq!(
        [a.hear(), a.hear(), a.hear()],
        [Told::Sent(0), Told::Sent(1), Told::Sent(2)]
    );
    hub.end();
}

#[test]
fn who_is_alone_is_not_acknowledged_until_another_comes() {
    let hub = hub();
    let mut a = hub.join(CLASSIC);
    a.ask(&Request::Send(0, frame(1, &[])));
    // Passive, and never bus-off: that is how CAN treats the first node that starts.
    loop {
        match a.hear() {
            Told::State(1, 128, 0) => break,
            Told::State(0, tec, 0) => assert!(tec < 128, "{tec}"),
            other => panic!("{other:?}"),
        }
    }
    let mut b = hub.join(CLASSIC);
    assert_eq!(b.hear_frame(), Told::Frame(0, frame(1, &[])));
    assert_eq!(a.hear_frame(), Told::Sent(0));
    hub.end();
}

#[test]
fn destroyed_frames_end_in_bus_off_which_lasts_until_recovery_is_asked_for() {
    let hub = hub();
    let manual = Start {
        manual_recovery: true,
        ..CLASSIC
    };
    let (mut a, mut b) = (hub.join(manual), hub.join(CLASSIC));
    b.ask(&Request::Corrupt(32));
    std::thread::sleep(Duration::from_millis(20));
    a.ask(&Request::Send(0, frame(5, &[1])));
    let off = loop {
        match a.hear() {
            Told::State(2, tec, _) => break tec,
            Told::State(..) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(off, 256);
    // Sent into the void: a controller that is bus-off takes nothing.
    a.ask(&Request::Send(0, frame(6, &[2])));
    a.ask(&Request::Recover);
    loop {
        match a.hear() {
            Told::State(0, 0, 0) => break,
            Told::State(..) => {}
            other => panic!("{other:?}"),
        }
    }
    a.ask(&Request::Send(0, frame(7, &[3])));
    loop {
        match b.hear_frame() {
            Told::Frame(0, framed) if framed == frame(7, &[3]) => break,
            // Hit in its very last bit, a frame is repeated that all have taken.
            Told::Frame(0, framed) if framed == frame(5, &[1]) => {}
            other => panic!("{other:?}"),
        }
    }
    let report = hub.end();
    assert_eq!(report.members[0].bus_off, 1);
    assert_eq!(report.errors, 32);
}

#[test]
fn fd_frames_pass_between_those_who_take_them() {
    let hub = hub();
    let (mut a, mut b, mut classic) = (hub.join(FD), hub.join(FD), hub.join(CLASSIC));
    let long = Framed {
        frame: CanFrame::new(CanId::Extended(0x1234_5678), true, &[0xa5; 64]).expect("a frame"),
        switch: true,
    };
    a.ask(&Request::Send(1, long));
    assert_eq!(b.hear(), Told::Frame(0, long));
    assert_eq!(a.hear(), Told::Sent(1));
    a.ask(&Request::Send(1, frame(2, &[])));
    assert_eq!(classic.hear(), Told::Frame(0, frame(2, &[])));
    hub.end();
}

#[test]
fn who_only_listens_hears_all_and_acknowledges_nothing() {
    let hub = hub();
    let mut ear = hub.join(Start {
        listen_only: true,
        ..CLASSIC
    });
    let mut a = hub.join(CLASSIC);
    a.ask(&Request::Send(0, frame(1, &[])));
    assert!(
        matches!(a.hear(), Told::State(_, 8.., 0)),
        "no one acknowledged"
    );
    let mut b = hub.join(CLASSIC);
    assert_eq!(b.hear_frame(), Told::Frame(0, frame(1, &[])));
    assert_eq!(ear.hear(), Told::Frame(0, frame(1, &[])));
    hub.end();
}

#[test]
fn another_bit_rate_is_refused_and_both_rates_are_named() {
    let hub = hub();
    let _a = hub.join(CLASSIC);
    let mut b = hub.connect();
    b.ask(&Request::Start(Start {
        nominal_bps: 1_000_000,
        data_bps: 1_000_000,
        ..CLASSIC
    }));
    match b.hear() {
        Told::Refused(why) => assert!(why.contains("500000") && why.contains("1000000"), "{why}"),
        other => panic!("{other:?}"),
    }
    hub.end();
}

#[test]
fn who_leaves_and_comes_back_takes_part_again() {
    let hub = hub();
    let mut a = hub.join(CLASSIC);
    for n in 0..5 {
        let mut b = hub.join(CLASSIC);
        b.ask(&Request::Send(0, frame(n, &[])));
        assert!(matches!(a.hear_frame(), Told::Frame(1, framed) if framed == frame(n, &[])));
        assert_eq!(b.hear_frame(), Told::Sent(0));
        b.ask(&Request::Stop);
        b.ask(&Request::Start(CLASSIC));
        assert!(matches!(b.hear_frame(), Told::Started(_)));
        // Dead within a frame: the bus goes on.
        b.ask(&Request::Send(0, frame(0x100 + n, &[0; 8])));
        drop(b);
        std::thread::sleep(Duration::from_millis(5));
        while !a.input.is_empty() {
            a.hear();
        }
    }
    hub.end();
}

#[test]
fn who_speaks_another_protocol_is_hung_up_on_and_hurts_no_one() {
    let hub = hub();
    let (mut a, mut b) = (hub.join(CLASSIC), hub.join(CLASSIC));
    let mut stranger = hub.connect();
    let said = stranger.stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    said.expect("the hub reads");
    let mut rest = Vec::new();
    // Either a clean end or a reset, since not all was read.
    let _ = stranger.stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    a.ask(&Request::Send(0, frame(1, &[])));
    assert_eq!(b.hear(), Told::Frame(0, frame(1, &[])));
    hub.end();
}
