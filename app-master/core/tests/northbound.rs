//! A client's view of a master: datagrams in, datagrams out, without a bus.

use ciborium::Value;
use helio_battery::BalanceConfig;
use helio_battery::defaults::NMC_5000MAH;
use helio_bus::{BusKind, Capabilities, LeaveReason, Mailbox, Schedule, SlaveEvent, SlaveLink};
use helio_master::pack::Topology;
use helio_master::{Master, MasterConfig};
use helio_smp::{Header, MAX_DATAGRAM, Op, Version};
use helio_units::{Duration, Instant, Uid};
use proptest::prelude::*;

type Small = Master<8, 16>;

fn master() -> Box<Small> {
    Box::new(Small::new(&MasterConfig {
        name: "test".try_into().expect("short"),
        buses: [Schedule::for_bus(BusKind::Can1M)].into_iter().collect(),
        topology: Topology {
            expected: 4,
            strings: 2,
            match_mv: 1_000,
            settle: Duration::from_millis(500),
        },
        cell: &NMC_5000MAH,
        balance: BalanceConfig::default(),
        tag_height_mm: Some(1_000),
        range_sigma_mm: 50,
        slave_period: Duration::from_secs(1),
        pack_period: Duration::from_millis(500),
    }))
}

fn value(pairs: Vec<(&str, Value)>) -> Value {
    Value::Map(
        pairs
            .into_iter()
            .map(|(k, v)| (Value::from(k), v))
            .collect(),
    )
}

fn ask(master: &mut Small, op: Op, group: u16, id: u8, body: &Value) -> Value {
    let mut octets = Vec::new();
    ciborium::into_writer(body, &mut octets).expect("a vector takes anything");
    let header = Header {
        op,
        version: Version::V2,
        flags: 0,
        length: octets.len() as u16,
        group,
        seq: 7,
        id,
    };
    let mut datagram = header.encode().to_vec();
    datagram.extend(octets);
    let mut out = [0; MAX_DATAGRAM];
    let len = master.handle_smp(Instant::from_millis(1_500), 1, &datagram, &mut out);
    let (header, body) = helio_smp::split(&out[..len]).expect("a whole datagram");
    assert_eq!((header.group, header.id, header.seq), (group, id, 7));
    ciborium::from_reader(body).expect("CBOR")
}

fn field<'v>(value: &'v Value, key: &str) -> &'v Value {
    let pairs = value.as_map().expect("a map");
    let found = pairs.iter().find(|(k, _)| k.as_text() == Some(key));
    &found.unwrap_or_else(|| panic!("no {key} in {value:?}")).1
}

fn number(value: &Value, key: &str) -> u64 {
    let integer = field(value, key).as_integer().expect("a number");
    integer.try_into().expect("not negative")
}

fn fault(value: &Value) -> u64 {
    number(field(value, "err"), "rc")
}

fn anchors(range: std::ops::Range<u64>) -> Value {
    let row = |id: u64| {
        let numbers = [id, 1 + id / 4, id % 4, 100 * id, 2_000, 6_000, 12];
        Value::Array(numbers.into_iter().map(Value::from).collect())
    };
    Value::Array(range.map(row).collect())
}

fn piece(version: u64, total: u64, off: u64, rows: Value) -> Value {
    value(vec![
        ("anchors", rows),
        ("version", version.into()),
        ("total", total.into()),
        ("off", off.into()),
    ])
}

#[test]
fn the_status_names_every_expected_seat_while_nobody_is_there() {
    let status = ask(&mut master(), Op::Read, 64, 0, &value(vec![]));
    assert_eq!(field(&status, "name").as_text(), Some("test"));
    assert_eq!(number(&status, "uptime_ms"), 1_500);
    assert_eq!(number(&status, "total"), 4);
    let nodes = field(&status, "nodes").as_array().expect("a list");
    assert_eq!(nodes.len(), 4);
    assert_eq!(
        nodes[3].as_array().expect("a row")[2].as_text(),
        Some("absent")
    );
    assert_eq!(
        field(field(&status, "pack"), "state").as_text(),
        Some("empty")
    );
}

/// A device claims a seat and, if it is given one, confirms it: what it was told at last.
fn plug(m: &mut Small, now: Instant, uid: u64, anchors: u8) -> Option<SlaveEvent> {
    let all = Capabilities {
        cells: 18,
        temps: 8,
        anchors,
    };
    let schedule = Schedule::for_bus(BusKind::Can1M);
    let mut slave = SlaveLink::new(schedule, Uid::new(uid).expect("valid"), all);
    let boxes = [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management];
    for step in 0..3 {
        let now = now + Duration::from_micros(step * 300);
        for mailbox in boxes {
            if let Some(out) = slave.poll_can(now, mailbox) {
                m.handle_can(0, now, &out.frame);
                slave.handle_sent(now, mailbox);
            }
        }
        for mailbox in boxes {
            while let Some(out) = m.poll_can(0, now, mailbox) {
                m.handle_sent(0, now, mailbox);
                slave.handle_can(now, &out.frame);
            }
        }
    }
    std::iter::from_fn(|| slave.poll_event()).last()
}

#[test]
fn who_is_refused_for_want_of_room_is_named_with_the_message_that_would_be_late() {
    let mut m = master();
    let at = |n| Instant::from_millis(2_000 + n * 2);
    // Sixteen ranges each: the bus takes five such devices.
    for n in 1..=5 {
        let told = plug(&mut m, at(n), n, 16);
        assert!(matches!(told, Some(SlaveEvent::Joined(_))), "{n}: {told:?}");
    }
    let status = |m: &mut Small| ask(m, Op::Read, 64, 0, &value(vec![]));
    assert!(field(&status(&mut m), "refused").is_null());
    let told = plug(&mut m, at(6), 6, 16);
    assert_eq!(told, Some(SlaveEvent::Left(LeaveReason::Full)));
    let refused = status(&mut m);
    let refused = field(&refused, "refused").as_array().expect("a row");
    assert_eq!(refused[0].as_text(), Some("0000000000000006"));
    assert_eq!(refused[1].as_text(), Some("ranges"));
    let us = |v: &Value| u64::try_from(v.as_integer().expect("a number")).expect("positive");
    assert!(us(&refused[2]) > us(&refused[3]), "{refused:?}");
    let records = ask(&mut m, Op::Read, 64, 1, &value(vec![]));
    let records = field(&records, "records").as_array().expect("a list");
    let text = |r: &Value| {
        let what = r
            .as_map()?
            .iter()
            .find(|(k, _)| k.as_text() == Some("what"))?;
        (what.1.as_text() == Some("refused"))
            .then(|| field(r, "text").as_text().map(String::from))?
    };
    let texts: Vec<String> = records.iter().filter_map(text).collect();
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("a device gets no seat: ranges (48 of them) would take "));
    assert!(texts[0].ends_with(" us is the most"), "{}", texts[0]);
    // With fewer of them it fits, and then nobody is refused any more.
    let told = plug(&mut m, at(7), 6, 0);
    assert!(matches!(told, Some(SlaveEvent::Joined(_))), "{told:?}");
    assert!(field(&status(&mut m), "refused").is_null());
}

#[test]
fn telemetry_continues_where_the_last_answer_ended() {
    let mut m = master();
    for ms in (500..=5_000).step_by(500) {
        m.handle_timeout(Instant::from_millis(ms));
    }
    let (mut since, mut seen) = (1, Vec::new());
    loop {
        let body = value(vec![("since", since.into()), ("max", 3.into())]);
        let answer = ask(&mut m, Op::Read, 64, 1, &body);
        let records = field(&answer, "records").as_array().expect("a list");
        assert!(records.len() <= 3);
        seen.extend(records.iter().map(|r| number(r, "seq")));
        since = number(&answer, "next");
        if records.is_empty() {
            break;
        }
    }
    assert_eq!(seen, (1..=10).collect::<Vec<u64>>());
    let future = value(vec![("since", 1_000.into())]);
    assert_eq!(number(&ask(&mut m, Op::Read, 64, 1, &future), "next"), 11);
}

#[test]
fn a_map_written_in_pieces_reads_back_whole_and_not_before_its_last_piece() {
    let mut m = master();
    let written = ask(&mut m, Op::Write, 64, 2, &piece(5, 8, 0, anchors(0..5)));
    assert_eq!(number(&written, "off"), 5);
    let read = ask(&mut m, Op::Read, 64, 2, &value(vec![]));
    assert_eq!((number(&read, "version"), number(&read, "total")), (0, 0));
    ask(&mut m, Op::Write, 64, 2, &piece(5, 8, 5, anchors(5..8)));
    let read = ask(&mut m, Op::Read, 64, 2, &value(vec![]));
    assert_eq!((number(&read, "version"), number(&read, "total")), (5, 8));
    assert_eq!(field(&read, "anchors"), &anchors(0..8));
    let tail = ask(&mut m, Op::Read, 64, 2, &value(vec![("off", 6.into())]));
    assert_eq!(field(&tail, "anchors"), &anchors(6..8));
}

#[test]
fn what_cannot_be_done_is_refused_with_the_right_code() {
    let mut m = master();
    let command = |pairs| value(pairs);
    let cases = [
        (
            vec![
                ("cmd", "isolate".into()),
                ("node", 3.into()),
                ("on", true.into()),
            ],
            2,
        ),
        (
            vec![
                ("cmd", "isolate".into()),
                ("node", 200.into()),
                ("on", true.into()),
            ],
            2,
        ),
        (vec![("cmd", "gate".into())], 5),
        (vec![("cmd", "dance".into())], 1),
    ];
    for (pairs, code) in cases {
        let answer = ask(&mut m, Op::Write, 64, 3, &command(pairs.clone()));
        assert_eq!(fault(&answer), code, "{pairs:?}");
    }
    let gap = ask(&mut m, Op::Write, 64, 2, &piece(5, 8, 3, anchors(3..5)));
    assert_eq!(fault(&gap), 3);
    let tunnel = value(vec![
        ("node", 2.into()),
        ("d", Value::Bytes(vec![0, 0, 0, 0, 0, 0, 0, 0])),
    ]);
    assert_eq!(fault(&ask(&mut m, Op::Write, 64, 4, &tunnel)), 2);
}

#[test]
fn images_settings_and_reset_are_for_the_device_and_refused_where_nobody_carries_them_out() {
    let mut m = master();
    let datagram = |op: u8, group: u8, id: u8| [8 | op, 0, 0, 1, 0, group, 7, id, 0xa0];
    for (op, group, id) in [(0, 1, 0), (2, 1, 1), (0, 3, 0), (2, 0, 5), (0, 0, 7)] {
        assert!(m.is_for_device(&datagram(op, group, id)), "{group} {id}");
    }
    for (op, group, id) in [(2, 0, 0), (0, 0, 6), (0, 2, 1), (0, 64, 0), (2, 64, 4)] {
        assert!(!m.is_for_device(&datagram(op, group, id)), "{group} {id}");
    }
    // An answer is no request, and a damaged datagram is nobody's.
    assert!(!m.is_for_device(&datagram(1, 1, 0)));
    assert!(!m.is_for_device(&datagram(0, 1, 0)[..8]));
    let refused = ask(&mut m, Op::Read, 1, 0, &value(vec![]));
    assert_eq!(number(&refused, "rc"), 8);
}

proptest! {
    #[test]
    fn whatever_a_client_sends_the_master_answers_or_stays_silent(
        op in 0u8..8, group in prop_oneof![Just(0u16), Just(2), Just(64), any::<u16>()], id in 0u8..6,
        body in proptest::collection::vec(any::<u8>(), 0..64), cut in 0usize..80,
    ) {
        let mut m = master();
        let mut datagram = vec![8 | op, 0, 0, body.len() as u8, (group >> 8) as u8, group as u8, 1, id];
        datagram.extend(body);
        datagram.truncate(cut.max(1));
        let mut out = [0; MAX_DATAGRAM];
        let len = m.handle_smp(Instant::ZERO, 1, &datagram, &mut out);
        prop_assert!(len == 0 || helio_smp::split(&out[..len]).is_ok());
    }
}
