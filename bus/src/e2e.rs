//! End-to-end protection: a check that also covers who says what, and a counter.
//!
//! Patterned on AUTOSAR E2E: profile 2 for 8-byte CAN frames (CRC-8 of polynomial 0x2f, 4-bit
//! counter), profile 5 for CAN FD (CRC-16 of polynomial 0x1021, 8-bit counter); RS485 has
//! CRC-32C and an 8-bit counter. The check runs over a 16-bit data id, class and node, that is
//! not repeated in the payload: a good frame under a wrong identifier fails. The counter counts
//! per sender and class.
//!
//! ```text
//!             first                    1 + last .. = Lost(0 ..)
//! (nothing) --------> Counting(last) <--------------------------.
//!                        |    |  '------------------------------'
//!   same: Repeated <-----'    | too far or back: Sequence
//!                             v
//!                        Doubting(last, strange) -- 1 + strange --> Counting
//! ```

use crc::{CRC_8_AUTOSAR, CRC_16_IBM_3740, CRC_32_ISCSI, Crc, Table};

static CRC8: Crc<u8, Table<1>> = Crc::<u8, Table<1>>::new(&CRC_8_AUTOSAR);
static CRC16: Crc<u16, Table<1>> = Crc::<u16, Table<1>>::new(&CRC_16_IBM_3740);
static CRC32: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// Who says what: `class << 7 | node`. On CAN this is also the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataId(pub u16);

impl DataId {
    /// `node` 0 is the master or everybody.
    pub const fn new(class: u8, node: u8) -> Self {
        Self((class as u16 & 0xf) << 7 | node as u16 & 0x7f)
    }
    /// What.
    pub const fn class(self) -> u8 {
        (self.0 >> 7) as u8 & 0xf
    }
    /// Who.
    pub const fn node(self) -> u8 {
        self.0 as u8 & 0x7f
    }
}

/// CRC-8/AUTOSAR over the data id (low byte first) and `bytes`.
pub fn check8(id: DataId, bytes: &[u8]) -> u8 {
    let mut digest = CRC8.digest();
    digest.update(&id.0.to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// CRC-16/IBM-3740 ("CCITT-FALSE") over `bytes` and the data id, as in profile 5.
pub fn check16(id: DataId, bytes: &[u8]) -> u16 {
    let mut digest = CRC16.digest();
    digest.update(bytes);
    digest.update(&id.0.to_le_bytes());
    digest.finalize()
}

/// CRC-32C (Castagnoli, final XOR of ones) over the data id and `bytes`.
pub fn check32(id: DataId, bytes: &[u8]) -> u32 {
    let mut digest = CRC32.digest();
    digest.update(&id.0.to_le_bytes());
    digest.update(bytes);
    digest.finalize()
}

/// What a counter says about a message whose check is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver. This many are missing before it.
    Fresh { lost: u8 },
    /// Drop: this one was here already.
    Repeated,
    /// Drop: out of order. The next one is believed if it follows this one.
    Sequence,
}

/// Follows the counter of one sender and class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receiver {
    /// The next message is believed.
    #[default]
    Nothing,
    /// In step.
    Counting { last: u8 },
    /// One message was out of order.
    Doubting { last: u8, strange: u8 },
}

impl Receiver {
    /// Judges a counter that runs `0..=mask` (15 or 255).
    pub fn check(&mut self, counter: u8, mask: u8) -> Verdict {
        let counter = counter & mask;
        let last = match *self {
            Self::Nothing => {
                *self = Self::Counting { last: counter };
                return Verdict::Fresh { lost: 0 };
            }
            Self::Doubting { strange, .. } if counter == strange.wrapping_add(1) & mask => {
                *self = Self::Counting { last: counter };
                return Verdict::Fresh { lost: 0 };
            }
            Self::Counting { last } | Self::Doubting { last, .. } => last,
        };
        let step = counter.wrapping_sub(last) & mask;
        if step == 0 {
            Verdict::Repeated
        } else if step <= mask / 2 {
            *self = Self::Counting { last: counter };
            Verdict::Fresh { lost: step - 1 }
        } else {
            *self = Self::Doubting {
                last,
                strange: counter,
            };
            Verdict::Sequence
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::vec::Vec;
    use std::{println, vec};

    #[test]
    fn checks_are_the_published_ones() {
        // "123456789" of the CRC catalogue, with the data id taken out of it.
        assert_eq!(CRC8.checksum(b"123456789"), 0xdf);
        assert_eq!(CRC16.checksum(b"123456789"), 0x29b1);
        assert_eq!(CRC32.checksum(b"123456789"), 0xe306_9283);
        let id = DataId(u16::from_le_bytes(*b"12"));
        assert_eq!(check8(id, b"3456789"), 0xdf);
        assert_eq!(check32(id, b"3456789"), 0xe306_9283);
        assert_eq!(
            check16(DataId(u16::from_le_bytes(*b"89")), b"1234567"),
            0x29b1
        );
    }

    #[test]
    fn the_data_id_is_class_and_node() {
        let id = DataId::new(12, 127);
        assert_eq!((id.0, id.class(), id.node()), (0x67f, 12, 127));
    }

    #[test]
    fn each_fault_of_a_counter_has_its_verdict() {
        let mut r = Receiver::default();
        assert_eq!(r.check(14, 15), Verdict::Fresh { lost: 0 });
        assert_eq!(r.check(15, 15), Verdict::Fresh { lost: 0 });
        assert_eq!(r.check(0, 15), Verdict::Fresh { lost: 0 });
        assert_eq!(r.check(0, 15), Verdict::Repeated);
        assert_eq!(r.check(7, 15), Verdict::Fresh { lost: 6 });
        assert_eq!(r.check(6, 15), Verdict::Sequence, "an older one, delayed");
        assert_eq!(r.check(8, 15), Verdict::Fresh { lost: 0 });
        assert_eq!(r.check(0, 15), Verdict::Sequence, "eight on is too far");
        assert_eq!(r.check(1, 15), Verdict::Fresh { lost: 0 }, "believed again");
    }

    /// What a lone wrong bit does to a CRC-32C, for every bit of a frame of so many bytes, check
    /// included. A pattern of errors goes unnoticed exactly if these add up to zero.
    fn syndromes(bytes: usize) -> Vec<u32> {
        let body = bytes - 4;
        let good = CRC32.checksum(&vec![0; body]);
        let data = (0..body * 8).map(|bit| {
            let mut damaged = vec![0; body];
            damaged[bit / 8] = 1 << (bit % 8);
            CRC32.checksum(&damaged) ^ good
        });
        data.chain((0..32).map(|bit| 1 << bit)).collect()
    }

    #[test]
    fn fewer_than_six_wrong_bits_in_a_serial_frame_are_always_noticed() {
        // The longest frame but the beacon of 127 seats: 55 bytes.
        let single = syndromes(55);
        let mut pairs = HashSet::new();
        for (i, a) in single.iter().enumerate() {
            assert_ne!(*a, 0, "one wrong bit");
            for b in &single[..i] {
                assert_ne!(a, b, "two");
                // Two pairs of the same sum are four.
                assert!(pairs.insert(a ^ b), "four");
            }
        }
        let known: HashSet<u32> = single.iter().copied().collect();
        assert!(pairs.iter().all(|sum| !known.contains(sum)), "three");
        for (i, a) in single.iter().enumerate() {
            for (j, b) in single[..i].iter().enumerate() {
                for c in &single[..j] {
                    assert!(!pairs.contains(&(a ^ b ^ c)), "five");
                }
            }
        }
    }

    #[test]
    fn undetected_corruption_of_a_full_line_at_4_mbaud_is_rarer_than_1e_9_per_hour() {
        // Independent wrong bits, bit error rate 1e-5, nothing but frames of 55 bytes, 8N1. At
        // least six are needed; every such pattern is counted as if the check were random, and as
        // if it were of 2^-32 only (Koopman 2002: weights of good CRCs are near that).
        let (bits, ber) = (55 * 8, 1e-5f64);
        let mut many = 0.0;
        let mut ways = 1.0;
        for wrong in 1..=20u32 {
            ways *= f64::from(bits - wrong as i32 + 1) / f64::from(wrong);
            if wrong >= 6 {
                many += ways * ber.powi(wrong as i32) * (1.0 - ber).powi(bits - wrong as i32);
            }
        }
        let frames_per_hour = 4e6 / 550.0 * 3_600.0;
        let per_hour = frames_per_hour * many / 4_294_967_296.0;
        println!(
            "{per_hour:.1e} undetected per hour; {:.1e} if no such pattern were noticed",
            frames_per_hour * many
        );
        // Even a check that notices none of those patterns would do.
        assert!(frames_per_hour * many <= 1e-9);
    }

    proptest! {
        #[test]
        fn losses_up_to_half_the_range_are_counted_exactly(
            start: u8, gaps in proptest::collection::vec(0..7u8, 1..100),
        ) {
            let (mut r, mut counter) = (Receiver::default(), start);
            r.check(counter, 15);
            for lost in gaps {
                counter = counter.wrapping_add(1 + lost);
                prop_assert_eq!(r.check(counter, 15), Verdict::Fresh { lost });
            }
        }

        #[test]
        fn an_older_message_is_never_delivered(start: u8, age in 1..127u8) {
            let mut r = Receiver::default();
            r.check(start, 255);
            prop_assert_eq!(r.check(start.wrapping_sub(age), 255), Verdict::Sequence);
        }

        #[test]
        fn two_in_order_resynchronise(start: u8, jump: u8) {
            let mut r = Receiver::default();
            r.check(start, 15);
            r.check(jump, 15);
            r.check(jump.wrapping_add(1), 15);
            let v = r.check(jump.wrapping_add(2), 15);
            prop_assert_eq!(v, Verdict::Fresh { lost: 0 });
        }
    }
}
