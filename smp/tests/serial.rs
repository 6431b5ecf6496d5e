//! Datagrams over a serial line.

use helio_smp::serial::{Decoder, Lines, MAX_LINE, SerialError};
use proptest::collection::vec;
use proptest::prelude::*;

fn lines(datagram: &[u8]) -> Vec<Vec<u8>> {
    let mut lines = Lines::new(datagram).unwrap();
    let mut out = [0; MAX_LINE];
    std::iter::from_fn(|| lines.next_line(&mut out).map(|n| out[..n].to_vec())).collect()
}

fn encode(datagram: &[u8]) -> Vec<u8> {
    lines(datagram).concat()
}

/// Everything that comes out, in order.
fn decode<const N: usize>(
    decoder: &mut Decoder<N>,
    octets: &[u8],
) -> Vec<Result<Vec<u8>, SerialError>> {
    let mut out = Vec::new();
    for octet in octets {
        match decoder.handle_octet(*octet) {
            Ok(None) => {}
            Ok(Some(datagram)) => out.push(Ok(datagram.to_vec())),
            Err(error) => out.push(Err(error)),
        }
    }
    out
}

fn decode_one(octets: &[u8]) -> Vec<Result<Vec<u8>, SerialError>> {
    decode(&mut Decoder::<2048>::new(), octets)
}

#[test]
fn a_short_datagram_is_the_line_that_smpclient_sends() {
    // From the documentation of PyPI's `smp`, packet.py.
    let line = b"\x06\x09AA9IZWxsbywgd29ybGQhet4=\n";
    assert_eq!(encode(b"Hello, world!"), line);
    assert_eq!(decode_one(line), [Ok(b"Hello, world!".to_vec())]);
}

#[test]
fn lines_of_any_length_are_understood() {
    // The same, cut by a client with short lines.
    let text =
        b"\x06\x09AA9I\n\x04\x14ZWxs\n\x04\x14bywg\r\n\x04\x14d29y\n\x04\x14bGQh\n\x04\x14et4=\n";
    assert_eq!(decode_one(text), [Ok(b"Hello, world!".to_vec())]);
}

#[test]
fn the_check_is_neither_torn_apart_nor_alone_in_a_line() {
    // A full line carries 93 octets: length 2, body, check 2.
    for (body, expected) in [
        (88, vec![92]),
        (89, vec![93]),
        (90, vec![90, 4]),
        (91, vec![90, 5]),
        (92, vec![93, 3]),
        (89 + 93, vec![93, 93]),
        (90 + 93, vec![93, 90, 4]),
        (91 + 93, vec![93, 90, 5]),
        (92 + 93, vec![93, 93, 3]),
    ] {
        let datagram = vec![0xc3; body];
        let lines = lines(&datagram);
        let raw: Vec<_> = lines
            .iter()
            .map(|l| {
                let text = &l[2..l.len() - 1];
                text.len() / 4 * 3 - text.iter().filter(|c| **c == b'=').count()
            })
            .collect();
        assert_eq!(raw, expected, "body of {body}");
        assert!(lines.iter().all(|l| l.len() <= MAX_LINE));
        assert_eq!(decode_one(&lines.concat()), [Ok(datagram)]);
    }
}

#[test]
fn console_text_before_between_and_behind_is_skipped() {
    let datagram: Vec<u8> = (0..200).collect();
    let mut all = b"*** Booting Zephyr ***\r\nuart:~$ ".to_vec();
    for line in lines(&datagram) {
        all.extend(line);
        all.extend(b"[00:00:01] <inf> hello\r\n");
    }
    assert_eq!(decode_one(&all), [Ok(datagram)]);
}

#[test]
fn a_new_packet_needs_no_end_of_the_old_one() {
    let whole = encode(&[7; 300]);
    for cut in 0..whole.len() {
        let all = [&whole[..cut], &encode(b"next")].concat();
        let out = decode_one(&all);
        assert_eq!(out.last(), Some(&Ok(b"next".to_vec())), "cut at {cut}");
        assert_eq!(out.len(), 1, "cut at {cut}");
    }
}

#[test]
fn a_continuation_without_a_beginning_is_skipped() {
    assert_eq!(decode_one(b"\x04\x14AAAA\n\x04\x14AAAA\n"), []);
}

#[test]
fn damage_is_named_and_the_next_packet_comes_through() {
    let with = |line: &[u8]| {
        let out = decode_one(&[line, &encode(b"next")].concat());
        assert_eq!(out.last(), Some(&Ok(b"next".to_vec())));
        out[0].clone()
    };
    let checksum = SerialError::Checksum {
        expected: 0x7ade,
        found: 0x7adf,
    };
    assert_eq!(with(b"\x06\x09AA9IZWxsbywgd29ybGQhet8=\n"), Err(checksum));
    assert_eq!(with(b"\x06\x09AA9I!\n"), Err(SerialError::Base64));
    assert_eq!(with(b"\x06\x09AA9IZW\n"), Err(SerialError::Base64));
    assert_eq!(with(b"\x06\x09AA=I\n"), Err(SerialError::Base64));
    assert_eq!(with(b"\x06\x09AAEA\n"), Err(SerialError::Length));
    assert_eq!(with(b"\x06\x09AAIAAAAA\n"), Err(SerialError::Length));
}

#[test]
fn a_datagram_longer_than_the_buffer_is_refused_at_once() {
    let mut decoder = Decoder::<16>::new();
    assert_eq!(decode(&mut decoder, &encode(&[1; 16])), [Ok(vec![1; 16])]);
    let out = decode(&mut decoder, &encode(&[1; 17]));
    assert_eq!(out, [Err(SerialError::TooLong)]);
    assert_eq!(decode(&mut decoder, &encode(&[2; 16])), [Ok(vec![2; 16])]);
}

#[test]
fn a_datagram_longer_than_the_length_field_has_no_lines() {
    assert!(Lines::new(&vec![0; 65_533]).is_some());
    assert!(Lines::new(&vec![0; 65_534]).is_none());
}

proptest! {
    #[test]
    fn a_datagram_survives_the_line(datagram in vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(decode_one(&encode(&datagram)), [Ok(datagram)]);
    }

    #[test]
    fn a_changed_octet_never_gives_another_datagram(
        datagram in vec(any::<u8>(), 1..200),
        at in any::<prop::sample::Index>(),
        octet in any::<u8>(),
    ) {
        let mut text = encode(&datagram);
        let at = at.index(text.len());
        text[at] = octet;
        for out in decode_one(&text).into_iter().flatten() {
            prop_assert_eq!(&out, &datagram);
        }
    }

    #[test]
    fn any_octets_leave_the_decoder_ready(
        noise in vec(prop_oneof![
            any::<u8>(),
            prop::sample::select(b"\x06\x09\x04\x14\n\rAB=/".to_vec()),
        ], 0..400),
        datagram in vec(any::<u8>(), 0..64),
    ) {
        let mut decoder = Decoder::<64>::new();
        decode(&mut decoder, &noise);
        let out = decode(&mut decoder, &encode(&datagram));
        prop_assert_eq!(out.last(), Some(&Ok(datagram)));
    }
}
