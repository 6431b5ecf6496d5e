//! The client and the server loops against each other.

mod common;

use std::time::Duration;

use common::{Master, anchor, node};
use helio_link::types::{Command, Data, NodeState, PackState, Severity};
use helio_link::{AskError, Client, northbound, serve_serial, serve_udp};
use helio_smp::heliograph::{Fault, MAX_TUNNELLED};
use helio_smp::{Header, MAX_DATAGRAM, Op, Version};
use tokio::net::UdpSocket;

/// A master on loopback in a thread of its own, and a client of it.
async fn start(master: Master) -> Client {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (core, inbox) = northbound(8);
    std::thread::spawn(|| master.run(inbox));
    tokio::spawn(serve_udp(socket, core));
    Client::connect_udp(address).await.unwrap()
}

/// A peer that answers requests with these datagrams, and a client of it.
async fn scripted(script: fn(Header) -> Vec<Vec<u8>>) -> Client {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            let (n, from) = socket.recv_from(&mut buffer).await.unwrap();
            for answer in script(Header::decode(&buffer[..n]).unwrap()) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    Client::connect_udp(address).await.unwrap()
}

fn answer(to: Header, body: &[u8]) -> Vec<u8> {
    let mut header = to.reply();
    header.length = body.len() as u16;
    [&header.encode()[..], body].concat()
}

#[tokio::test]
async fn the_standard_groups_answer() {
    let client = start(Master::default()).await;
    assert_eq!(client.echo("Grüße").await.unwrap(), "Grüße");
    let parameters = client.parameters().await.unwrap();
    assert_eq!((parameters.buf_size, parameters.buf_count), (2048, 1));
    assert_eq!(client.stat_list().await.unwrap(), ["bus"]);
    let bus = client.stat_show("bus").await.unwrap();
    assert_eq!(bus["frames"], 123_456_789_012);
}

#[tokio::test]
async fn the_status_lists_all_nodes_though_they_fill_several_datagrams() {
    let client = start(Master::default()).await;
    let status = client.status().await.unwrap();
    assert_eq!(status.nodes, (1..=127).map(node).collect::<Vec<_>>());
    assert_eq!(status.pack.state, PackState::Ready);
    assert_eq!(status.pack.current_ma, Some(-1_200));
    assert_eq!(status.pack.temp_max_dc, None);
    assert_eq!(status.latency_max_us, None);
}

#[tokio::test]
async fn records_of_every_kind_are_read_and_unknown_ones_kept() {
    let client = start(Master::default()).await;
    let telemetry = client.telemetry(1, 100).await.unwrap();
    assert_eq!((telemetry.first, telemetry.next), (1, 6));
    let kinds: Vec<_> = telemetry
        .records
        .iter()
        .map(|r| (r.seq, r.kind()))
        .collect();
    let expected = [
        (1, "pack"),
        (2, "slave"),
        (3, "tag"),
        (4, "event"),
        (5, "weather"),
    ];
    assert_eq!(kinds, expected);
    let [pack, slave, tag, event, weather] = &telemetry.records[..] else {
        unreachable!()
    };
    assert!(matches!(&pack.data, Data::Pack(p) if p.pack.members == 127));
    let Data::Slave(slave) = &slave.data else {
        panic!("{slave:?}")
    };
    assert_eq!(slave.state, NodeState::Tripped);
    assert_eq!(slave.cells_mv, [Some(3_700), None, Some(4_301)]);
    assert_eq!(slave.temps_dc, [Some(-101), None]);
    assert!(matches!(&tag.data, Data::Tag(t) if t.x_mm == -1_500 && t.sigma_mm == 21));
    let Data::Event(event) = &event.data else {
        panic!("{event:?}")
    };
    assert_eq!((event.node, event.severity), (None, Some(Severity::Warn)));
    assert!(matches!(&weather.data, Data::Other(fields) if fields["raw"].is_bytes()));
}

#[tokio::test]
async fn all_records_come_by_asking_for_next_again_and_again() {
    let client = start(Master {
        first: 11,
        next: 1_000,
        ..Master::default()
    })
    .await;
    let (mut since, mut seen, mut asked) = (1, Vec::new(), 0);
    while since < 1_000 {
        let telemetry = client.telemetry(since, 50).await.unwrap();
        assert_eq!(telemetry.first, 11);
        assert!(telemetry.records.len() <= 50);
        seen.extend(telemetry.records.iter().map(|r| r.seq));
        since = telemetry.next;
        asked += 1;
    }
    assert_eq!(seen, (11..1_000).collect::<Vec<_>>());
    assert!(
        asked > 20,
        "a datagram holds fewer than 50 of these, {asked}"
    );
    assert_eq!(client.telemetry(1_000, 50).await.unwrap().records, []);
}

#[tokio::test]
async fn a_map_is_written_and_read_back_in_pieces() {
    let client = start(Master::default()).await;
    assert_eq!(client.map().await.unwrap().anchors, []);
    let anchors: Vec<_> = (0..500).map(anchor).collect();
    client.map_write(7, &anchors).await.unwrap();
    let map = client.map().await.unwrap();
    assert_eq!((map.version, map.total), (7, 500));
    assert_eq!(map.anchors, anchors);
    client.map_write(8, &[]).await.unwrap();
    assert_eq!(client.map().await.unwrap().version, 8);
}

#[tokio::test]
async fn a_map_that_never_comes_whole_is_given_up() {
    let client = scripted(|asked| {
        let body = b"\xa5\x67version\x01\x63crc\x01\x65total\x05\x63off\x00\x67anchors\x80";
        vec![answer(asked, body)]
    })
    .await;
    let error = client.map().await.unwrap_err();
    assert!(matches!(error, AskError::Malformed(_)), "{error}");
}

#[tokio::test]
async fn a_command_arrives_and_its_refusal_comes_back() {
    let master = Master::default();
    let commands = master.commands.clone();
    let client = start(master).await;
    client.command(&Command::Gate { on: true }).await.unwrap();
    let order = Command::Quarantine { node: 200, ms: 10 };
    let error = client.command(&order).await.unwrap_err();
    assert!(error.is(Fault::NoSuchNode), "{error}");
    assert_eq!(error.to_string(), "request refused: no such node");
    let commands = commands.lock().unwrap();
    assert_eq!(commands[..], [b"\xa2\x63cmd\x64gate\x62on\xf5".to_vec()]);
}

#[test]
fn a_command_is_a_map_of_documented_keys() {
    for (command, json) in [
        (Command::Gate { on: true }, r#"{"cmd":"gate","on":true}"#),
        (
            Command::Isolate { node: 3, on: false },
            r#"{"cmd":"isolate","node":3,"on":false}"#,
        ),
        (Command::Clear {}, r#"{"cmd":"clear"}"#),
        (
            Command::Balance { on: true },
            r#"{"cmd":"balance","on":true}"#,
        ),
        (
            Command::Quarantine { node: 3, ms: 500 },
            r#"{"cmd":"quarantine","node":3,"value":500}"#,
        ),
        (
            Command::Light { node: 3, mask: 5 },
            r#"{"cmd":"light","node":3,"value":5}"#,
        ),
    ] {
        assert_eq!(serde_json::to_string(&command).unwrap(), json);
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let master = Master {
        deaf: 2,
        ..Master::default()
    };
    let client = start(master).await;
    let client = client.with_patience(Duration::from_millis(100), 50);
    assert_eq!(client.echo("again").await.unwrap(), "again");
}

#[tokio::test]
async fn silence_is_a_timeout_that_names_the_peer() {
    let master = Master {
        deaf: u32::MAX,
        ..Master::default()
    };
    let client = start(master).await;
    let client = client.with_patience(Duration::from_millis(10), 2);
    let error = client.echo("hello").await.unwrap_err();
    assert!(matches!(error, AskError::Timeout { tries: 2, .. }));
    assert!(error.to_string().starts_with("127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn a_port_without_a_server_is_a_timeout_too() {
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let client = Client::connect_udp(address).await.unwrap();
    let client = client.with_patience(Duration::from_millis(10), 2);
    let error = client.echo("hello").await.unwrap_err();
    assert!(matches!(error, AskError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn an_answer_to_another_request_is_passed_over() {
    let client = scripted(|asked| {
        let body = b"\xa1\x61r\x65wrong";
        let mut other = [asked; 4];
        other[0].seq = asked.seq.wrapping_sub(1);
        other[1].id = 7;
        other[2].group = 9;
        other[3].op = Op::Read;
        let mut answers: Vec<_> = other.iter().map(|h| answer(*h, body)).collect();
        answers.push([&asked.encode()[..], body].concat());
        answers.push(answer(asked, body)[..12].to_vec());
        answers.push(answer(asked, b"\xa1\x61r\x65right"));
        answers
    })
    .await;
    for _ in 0..300 {
        assert_eq!(client.echo("?").await.unwrap(), "right");
    }
}

#[tokio::test]
async fn errors_of_both_versions_are_understood() {
    let client = scripted(|asked| vec![answer(asked, b"\xa1\x62rc\x08")]).await;
    let error = client.echo("?").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "request refused: command not supported (SMP code 8)"
    );
    // A version 1 server answers in version 1, and some say `rc: 0` when all is well.
    let client = scripted(|asked| {
        let version = Version::V1;
        vec![answer(
            Header { version, ..asked },
            b"\xa2\x62rc\x00\x61r\x61x",
        )]
    })
    .await;
    assert_eq!(client.echo("?").await.unwrap(), "x");
    let client =
        scripted(|asked| vec![answer(asked, b"\xa1\x63err\xa2\x65group\x02\x62rc\x02")]).await;
    let error = client.stat_show("?").await.unwrap_err();
    assert_eq!(error.to_string(), "request refused with code 2 of group 2");
    for nonsense in [&b""[..], b"\x80", b"\xa1\x61r\x01", b"\xff"] {
        let script: fn(Header) -> Vec<Vec<u8>> = match nonsense {
            b"" => |asked| vec![answer(asked, b"")],
            b"\x80" => |asked| vec![answer(asked, b"\x80")],
            b"\xff" => |asked| vec![answer(asked, b"\xff")],
            _ => |asked| vec![answer(asked, b"\xa1\x61r\x01")],
        };
        let error = scripted(script).await.echo("?").await.unwrap_err();
        assert!(matches!(error, AskError::Malformed(_)), "{error}");
    }
}

#[tokio::test]
async fn a_request_longer_than_a_datagram_is_not_sent() {
    let client = start(Master::default()).await;
    let longest = "x".repeat(MAX_DATAGRAM - Header::SIZE - 6);
    assert_eq!(client.echo(&longest).await.unwrap(), longest);
    let error = client.echo(&"x".repeat(MAX_DATAGRAM)).await.unwrap_err();
    assert!(matches!(error, AskError::TooLong(_)), "{error}");
}

#[tokio::test]
async fn a_full_queue_says_busy() {
    let (core, mut inbox) = northbound(1);
    let ask = b"\x0a\0\0\x04\0\0\x07\0\xa1\x61d\x60";
    let first = tokio::spawn({
        let core = core.clone();
        async move { core.ask(ask).await }
    });
    tokio::task::yield_now().await;
    let busy = core.ask(ask).await.unwrap();
    assert_eq!(busy, b"\x0b\0\0\x05\0\0\x07\0\xa1\x62rc\x0a");
    inbox.poll().unwrap().answer(b"late");
    assert_eq!(first.await.unwrap().unwrap(), b"late");
    drop(inbox);
    assert!(core.ask(ask).await.is_err());
}

#[tokio::test]
async fn nonsense_does_not_stop_a_server() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (core, inbox) = northbound(64);
    std::thread::spawn(|| Master::default().run(inbox));
    tokio::spawn(serve_udp(socket, core));
    let rude = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..40u8 {
        let datagram: Vec<_> = (0..n).map(|i| i.wrapping_mul(37) ^ n).collect();
        rude.send_to(&datagram, address).await.unwrap();
    }
    rude.send_to(&[0x0a; 5_000], address).await.unwrap();
    let client = Client::connect_udp(address).await.unwrap();
    assert_eq!(client.echo("well?").await.unwrap(), "well?");
}

#[tokio::test]
async fn a_serial_line_serves_as_well_as_udp() {
    let (ours, theirs) = tokio::io::duplex(64);
    let (core, inbox) = northbound(8);
    std::thread::spawn(|| Master::default().run(inbox));
    tokio::spawn(serve_serial(theirs, core));
    let client = Client::over_serial("a pipe", ours);
    assert_eq!(client.status().await.unwrap().nodes.len(), 127);
    let longest = "x".repeat(MAX_DATAGRAM - Header::SIZE - 6);
    assert_eq!(client.echo(&longest).await.unwrap(), longest);
}

#[tokio::test]
async fn a_slave_answers_through_its_master() {
    let client = start(Master::default()).await;
    let slave = client.to_slave(3);
    assert_eq!(slave.echo("deep").await.unwrap(), "deep");
    let room = slave.parameters().await.unwrap().buf_size as usize;
    assert_eq!(room, MAX_TUNNELLED);
    let longest = "x".repeat(room - Header::SIZE - 6);
    assert_eq!(slave.echo(&longest).await.unwrap(), longest);
    let longer = "x".repeat(room - Header::SIZE - 5);
    assert!(slave.echo(&longer).await.unwrap_err().is(Fault::OutOfRange));
    let error = slave.status().await.unwrap_err();
    assert!(matches!(error, AskError::Rc(8)), "{error}");
    // The master itself answers in between.
    assert_eq!(client.echo("near").await.unwrap(), "near");
}

#[tokio::test]
async fn a_silent_slave_is_a_timeout_and_an_absent_one_is_named() {
    let client = start(Master::default()).await;
    let silent = client.to_slave(4);
    let silent = silent.with_patience(Duration::from_millis(10), 2);
    let error = silent.echo("?").await.unwrap_err();
    assert!(error.to_string().starts_with("slave 4 of 127."), "{error}");
    assert!(matches!(error, AskError::Timeout { .. }));
    let error = client.to_slave(9).echo("?").await.unwrap_err();
    assert!(error.is(Fault::NoSuchNode), "{error}");
}
