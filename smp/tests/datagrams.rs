//! Requests and answers as a client sees them.

use helio_smp::standard::{self, Stat};
use helio_smp::{
    Header, HeaderError, MAX_DATAGRAM, Op, Rc, Version, accept, list, read_map, split,
};
use proptest::collection::vec;
use proptest::prelude::*;

const STATS: &[Stat<'static>] = &[
    Stat {
        name: "bus",
        fields: &[("frames", 70_000), ("lost", 0)],
    },
    Stat {
        name: "empty",
        fields: &[],
    },
];

fn header(op: Op, version: Version, group: u16, id: u8) -> Header {
    Header {
        op,
        version,
        flags: 0,
        length: 0,
        group,
        seq: 0x5a,
        id,
    }
}

fn datagram(mut header: Header, body: &[u8]) -> Vec<u8> {
    header.length = body.len() as u16;
    [&header.encode()[..], body].concat()
}

/// What a server with nothing but the standard groups answers.
fn serve(request: &[u8]) -> Vec<u8> {
    let mut out = [0; MAX_DATAGRAM];
    let n = match accept(request, &mut out) {
        Ok(request) => standard::handle(&request, &mut out, 2048, STATS)
            .unwrap_or_else(|| request.reply(&mut out).rc(Rc::NotSupported)),
        Err(n) => n,
    };
    out[..n].to_vec()
}

/// `serve`, with the header checked and taken off.
fn body_of(op: Op, version: Version, group: u16, id: u8, body: &[u8]) -> Vec<u8> {
    let asked = header(op, version, group, id);
    let answer = serve(&datagram(asked, body));
    let (got, body) = split(&answer).unwrap();
    let mut expected = asked.reply();
    expected.length = body.len() as u16;
    assert_eq!(got, expected);
    body.to_vec()
}

#[test]
fn a_header_has_the_octets_of_the_specification() {
    let header = Header {
        op: Op::WriteReply,
        version: Version::V2,
        flags: 0,
        length: 0x0102,
        group: 0x0340,
        seq: 5,
        id: 6,
    };
    assert_eq!(header.encode(), [0x0b, 0, 1, 2, 3, 0x40, 5, 6]);
    assert_eq!(Header::decode(&header.encode()), Ok(header));
}

#[test]
fn every_malformed_header_is_named() {
    assert_eq!(Header::decode(&[0; 7]), Err(HeaderError::Short));
    assert_eq!(
        Header::decode(&[0x0c, 0, 0, 0, 0, 0, 0, 0]),
        Err(HeaderError::Op(4))
    );
    assert_eq!(
        Header::decode(&[0x10, 0, 0, 0, 0, 0, 0, 0]),
        Err(HeaderError::Version(2))
    );
    for (said, found) in [(2, 1), (1, 2), (0, 1), (1, 0)] {
        let mut bytes = vec![0x08, 0, 0, said, 0, 0, 0, 0];
        bytes.resize(8 + found, 0xa0);
        let error = HeaderError::Length {
            said: said.into(),
            found,
        };
        assert_eq!(split(&bytes), Err(error));
    }
}

#[test]
fn a_malformed_request_is_refused_in_its_own_version() {
    let refused =
        |first: u8, extra: &[u8]| serve(&[&[first, 0, 0, 0, 0, 64, 9, 1][..], extra].concat());
    // Version 3 becomes version 2, an unknown operation is answered as a write.
    assert_eq!(
        refused(0x10, &[]),
        b"\x09\0\0\x05\0\x40\x09\x01\xa1\x62rc\x0d"
    );
    assert_eq!(
        refused(0x04, &[]),
        b"\x03\0\0\x05\0\x40\x09\x01\xa1\x62rc\x08"
    );
    assert_eq!(
        refused(0x02, &[0]),
        b"\x03\0\0\x05\0\x40\x09\x01\xa1\x62rc\x09"
    );
    assert_eq!(
        refused(0x08, &[0]),
        b"\x09\0\0\x05\0\x40\x09\x01\xa1\x62rc\x09"
    );
}

#[test]
fn an_answer_is_never_answered() {
    for first in [1, 3, 5, 7, 9, 11] {
        assert_eq!(serve(&[first, 0, 0, 0, 0, 0, 0, 0])[..].get(..1), {
            match first {
                // Operations 5 and 7 exist in no version; they are requests that nobody knows.
                5 | 7 => Some(&[3][..]),
                _ => None,
            }
        });
    }
    assert_eq!(serve(&[8, 0, 0]), []);
}

#[test]
fn an_echo_returns_its_text_whether_read_or_written() {
    for op in [Op::Read, Op::Write] {
        let body = body_of(op, Version::V1, 0, 0, b"\xa1\x61d\x65hello");
        assert_eq!(body, b"\xa1\x61r\x65hello");
    }
    // Indefinite length, and a key nobody asked for, as zcbor and others send.
    let body = body_of(
        Op::Write,
        Version::V2,
        0,
        0,
        b"\xbf\x61x\x82\x01\x02\x61d\x61a\xff",
    );
    assert_eq!(body, b"\xa1\x61r\x61a");
}

#[test]
fn an_echo_without_text_is_invalid() {
    for body in [
        &b""[..],
        b"\xa0",
        b"\xa1\x61d\x01",
        b"\xa1\x61d\x62\xff\xff",
        b"\xa1\x61d\x65hell",
        b"\xa1\x61d\x61a\x00",
        b"\xbf\x61d\x61a",
        b"\x80",
    ] {
        let answer = body_of(Op::Write, Version::V2, 0, 0, body);
        assert_eq!(answer, b"\xa1\x62rc\x03", "{body:02x?}");
    }
}

#[test]
fn the_longest_echo_fits_and_a_longer_one_cannot_come() {
    let text = vec![b'a'; MAX_DATAGRAM - Header::SIZE - 6];
    let body = [
        &b"\xa1\x61d\x79"[..],
        &(text.len() as u16).to_be_bytes(),
        &text,
    ]
    .concat();
    assert_eq!(body.len() + Header::SIZE, MAX_DATAGRAM);
    let answer = body_of(Op::Write, Version::V2, 0, 0, &body);
    assert_eq!(&answer[6..], &text);
}

#[test]
fn the_parameters_are_those_of_the_caller() {
    let body = body_of(Op::Read, Version::V2, 0, 6, b"\xa0");
    assert_eq!(body, b"\xa2\x68buf_size\x19\x08\x00\x69buf_count\x01");
}

#[test]
fn stat_lists_and_shows_the_callers_table() {
    let body = body_of(Op::Read, Version::V2, 2, 1, b"");
    assert_eq!(body, b"\xa1\x69stat_list\x82\x63bus\x65empty");
    let body = body_of(Op::Read, Version::V1, 2, 0, b"\xa1\x64name\x63bus");
    let expected = b"\xa2\x64name\x63bus\x66fields\xa2\x66frames\x1a\0\x01\x11\x70\x64lost\0";
    assert_eq!(body, expected);
    let body = body_of(Op::Read, Version::V1, 2, 0, b"\xa1\x64name\x65empty");
    assert_eq!(body, b"\xa2\x64name\x65empty\x66fields\xa0");
}

#[test]
fn an_error_of_a_group_has_the_shape_of_the_requests_version() {
    let ask = b"\xa1\x64name\x63who";
    let v1 = body_of(Op::Read, Version::V1, 2, 0, ask);
    assert_eq!(v1, b"\xa1\x62rc\x05");
    let v2 = body_of(Op::Read, Version::V2, 2, 0, ask);
    assert_eq!(v2, b"\xa1\x63err\xa2\x65group\x02\x62rc\x02");
}

#[test]
fn an_unknown_command_or_operation_is_not_supported() {
    for (op, group, id) in [
        (Op::Read, 77, 0),
        (Op::Read, 0, 200),
        (Op::Write, 0, 6),
        (Op::Write, 2, 0),
        (Op::Write, 2, 1),
    ] {
        let body = body_of(op, Version::V2, group, id, b"\xa0");
        assert_eq!(body, b"\xa1\x62rc\x08");
    }
}

#[test]
fn a_body_that_does_not_fit_becomes_too_large() {
    let request = datagram(header(Op::Read, Version::V2, 0, 6), b"");
    let mut room = [0; 24];
    let request = accept(&request, &mut []).unwrap();
    let n = standard::handle(&request, &mut room, 2048, STATS).unwrap();
    assert_eq!(&room[..n], b"\x09\0\0\x05\0\0\x5a\x06\xa1\x62rc\x07");
    for room in 0..13 {
        let mut out = vec![0; room];
        assert_eq!(
            request.reply(&mut out).empty(),
            if room > 8 { 9 } else { 0 }
        );
        assert_eq!(standard::handle(&request, &mut out, 2048, STATS), Some(0));
    }
}

#[test]
fn a_list_takes_what_fits_and_leaves_the_reserve() {
    let asked = header(Op::Read, Version::V2, 64, 1);
    let request = datagram(asked, b"");
    let request = accept(&request, &mut []).unwrap();
    // Header 8, map 1, key "l" 2, array 3, items of 4, reserve 3 for "n" and a small number.
    for (room, items) in [
        (17, 0),
        (20, 0),
        (21, 1),
        (24, 1),
        (25, 2),
        (29, 3),
        (500, 3),
    ] {
        let mut out = vec![0; room];
        let n = request.reply(&mut out).body(|e| {
            e.map(2)?.str("l")?;
            let n = list(e, 3, |e, i| {
                if i == 3 {
                    return Ok(false);
                }
                e.array(2)?.u8(i as u8)?.str("x")?;
                Ok(true)
            })?;
            e.str("n")?.u8(n as u8)?.ok()
        });
        let mut expected = b"\xa2\x61l\x99\0".to_vec();
        expected.push(items);
        for i in 0..items {
            expected.extend([0x82, i, 0x61, b'x']);
        }
        expected.extend([0x61, b'n', items]);
        assert_eq!(&out[8..n], expected, "in {room}");
    }
}

fn any_header() -> impl Strategy<Value = Header> {
    (0..4u8, any::<bool>(), any::<(u8, u16, u16, u8, u8)>()).prop_map(|(op, v2, rest)| {
        let (flags, length, group, seq, id) = rest;
        Header {
            op: [Op::Read, Op::ReadReply, Op::Write, Op::WriteReply][usize::from(op)],
            version: if v2 { Version::V2 } else { Version::V1 },
            flags,
            length,
            group,
            seq,
            id,
        }
    })
}

proptest! {
    #[test]
    fn a_header_survives_the_wire(header in any_header()) {
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn whatever_comes_the_answer_is_well_formed_or_nothing(
        head in (0..16u8, 0..3u8, prop_oneof![Just(0u16), Just(2), Just(64)], 0..8u8),
        body in vec(prop_oneof![
            any::<u8>(),
            proptest::sample::select(vec![0xa0u8, 0xa1, 0xbf, 0xff, 0x61, 0x64, b'd', 0x9f, 0x5f, 0x7f, 0xbb, 0xc0]),
        ], 0..64),
        wrong in -1..=1i32,
        room in prop_oneof![0..32usize, Just(MAX_DATAGRAM)],
    ) {
        let (first, flags, group, id) = head;
        let length = (body.len() as i32 + wrong).max(0) as u16;
        let [l1, l0] = length.to_be_bytes();
        let [g1, g0] = group.to_be_bytes();
        let request = [&[first, flags, l1, l0, g1, g0, 7, id][..], &body].concat();
        let mut out = vec![0; room];
        let n = match accept(&request, &mut out) {
            Ok(r) => standard::handle(&r, &mut out, 2048, STATS)
                .unwrap_or_else(|| r.reply(&mut out).rc(Rc::NotSupported)),
            Err(n) => n,
        };
        if n > 0 {
            let (header, body) = split(&out[..n]).unwrap();
            prop_assert!(matches!(header.op, Op::ReadReply | Op::WriteReply));
            prop_assert_eq!((header.group, header.seq, header.id), (group, 7, id));
            prop_assert_eq!(read_map(body, |_, d| d.skip()), Ok(()));
        }
    }

    #[test]
    fn a_request_cut_short_is_never_accepted(body in vec(any::<u8>(), 1..40), cut in 1..40usize) {
        let whole = datagram(header(Op::Write, Version::V2, 0, 0), &body);
        let cut = whole.len() - cut.min(whole.len());
        prop_assert!(accept(&whole[..cut], &mut [0; 64]).is_err());
    }
}
