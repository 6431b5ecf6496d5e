//! CAN frames as bits: how long one is, exactly, and which bits it has.
//!
//! [`FrameBits::of`] counts by table, for the bus, which needs only lengths. [`Encoded::of`]
//! writes every bit down, for what depends on a single bit: collisions, errors, proof.
//! ISO 11898-1:2015.
//!
//! ```text
//! classic  SOF id11 RTR IDE r0 dlc4 data crc15             | del ACK del EOF7   intermission3
//!          SOF id11 SRR IDE id18 RTR r1 r0 dlc4 data crc15 | del ACK del EOF7
//!          '------------- stuffed after five -------------'
//!
//! FD       SOF id11 RRS IDE FDF res BRS | ESI dlc4 data | F sbc4 F crc17/21 del | ACK del EOF7
//!          SOF id11 SRR IDE id18 RRS FDF res BRS | ...    '- F every four bits
//!          '------------- stuffed after five -----------'
//!          nominal rate ----------------'  data rate --------------------------'  nominal rate
//! ```
//!
//! The rate switches at the sample point of BRS and back at that of the CRC delimiter. The part of
//! BRS sent fast and the part of the delimiter sent slowly are the same share of a bit when both
//! rates sample at the same point, so here BRS counts as a nominal bit and the delimiter as a data
//! bit; the sum is exact. After five equal bits at the very end of the CRC field a classic frame
//! has one more stuff bit; at the end of an FD frame's data the fixed stuff bit `F` stands in.

use core::ops::Range;
use helio_bus::{CanFrame, CanId};
use helio_units::Duration;

/// Bit times between two frames: intermission.
pub const INTERMISSION: u64 = 3;

/// Bits of a frame from SOF to the last bit of EOF, by the rate they are sent at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameBits {
    /// At the nominal rate.
    pub nominal: u32,
    /// At the data rate; zero in a classic frame.
    pub fast: u32,
}

impl FrameBits {
    /// Counts the bits of `frame`. `passive`: its sender is error passive (an FD frame says so).
    pub fn of(frame: &CanFrame, passive: bool) -> Self {
        if frame.fd {
            fd_bits(frame, passive)
        } else {
            classic_bits(frame)
        }
    }

    /// Time on the wire at these bit times.
    pub fn time(self, nominal_bit: Duration, fast_bit: Duration) -> Duration {
        nominal_bit * u64::from(self.nominal) + fast_bit * u64::from(self.fast)
    }
}

/// CRC delimiter, ACK slot, ACK delimiter and end of frame.
const TRAILER: u32 = 10;

fn classic_bits(frame: &CanFrame) -> FrameBits {
    let (head, head_len) = classic_head(frame);
    let data = frame.data();
    let content = data
        .iter()
        .fold(u128::from(head), |acc, &byte| acc << 8 | u128::from(byte));
    let content_len = head_len + 8 * data.len() as u32;
    let all = content << 15 | u128::from(crc15(content, content_len));
    let len = content_len + 15;
    // Whole bytes for the table: alternating bits in front, the last one recessive as on an idle
    // bus, add no stuff bit and leave the run length that SOF finds.
    let pad = len.wrapping_neg() % 8;
    let padded = all | (0x55 & ((1 << pad) - 1)) << len;
    let mut stuffer = Stuffer::AFTER_RECESSIVE;
    for i in (0..(len + pad) / 8).rev() {
        stuffer.byte((padded >> (8 * i)) as u8);
    }
    FrameBits {
        nominal: len + stuffer.at_end() + TRAILER,
        fast: 0,
    }
}

fn fd_bits(frame: &CanFrame, passive: bool) -> FrameBits {
    let (head, head_len) = fd_head(frame);
    let pad = head_len.wrapping_neg() % 8;
    let padded = head | (0x55 & ((1 << pad) - 1)) << head_len;
    let mut slow = Stuffer::AFTER_RECESSIVE;
    for i in (0..(head_len + pad) / 8).rev() {
        slow.byte((padded >> (8 * i)) as u8);
    }
    // BRS is a lone recessive bit, so the fast part starts where `slow` did.
    let mut fast = Stuffer::AFTER_RECESSIVE;
    fast.byte(0b1010_0000 | u8::from(passive) << 4 | dlc(frame));
    for &byte in frame.data() {
        fast.byte(byte);
    }
    FrameBits {
        nominal: head_len + slow.count + TRAILER - 1,
        fast: 5
            + 8 * frame.data().len() as u32
            + fast.count
            + FdCrc::of(frame.data().len()).field_len()
            + 1,
    }
}

/// SOF up to the DLC and how many bits that is.
fn classic_head(frame: &CanFrame) -> (u64, u32) {
    let dlc = u64::from(dlc(frame));
    match frame.id {
        CanId::Standard(id) => (u64::from(id) << 7 | dlc, 19),
        CanId::Extended(id) => {
            let (base, rest) = (u64::from(id >> 18), u64::from(id & 0x3_ffff));
            (base << 27 | 0b11 << 25 | rest << 7 | dlc, 39)
        }
    }
}

/// SOF up to BRS and how many bits that is.
fn fd_head(frame: &CanFrame) -> (u64, u32) {
    match frame.id {
        CanId::Standard(id) => (u64::from(id) << 5 | 0b00101, 17),
        CanId::Extended(id) => {
            let (base, rest) = (u64::from(id >> 18), u64::from(id & 0x3_ffff));
            (base << 24 | 0b11 << 22 | rest << 4 | 0b0101, 36)
        }
    }
}

/// Data length code.
pub(super) fn dlc(frame: &CanFrame) -> u8 {
    let len = frame.data().len();
    LENGTHS.iter().take_while(|&&l| l < len).count() as u8
}

/// Bytes by data length code.
const LENGTHS: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64];

/// What arbitration compares, most significant bit first, dominant as 0: identifier, RTR/SRR and
/// IDE. Lower wins. `u32::MAX` belongs to no frame.
pub fn arbitration_key(id: CanId) -> u32 {
    match id {
        CanId::Standard(id) => u32::from(id) << 21,
        CanId::Extended(id) => (id >> 18) << 21 | 0b11 << 19 | (id & 0x3_ffff) << 1,
    }
}

/// CRC-15 of the low `len` bits. Leading zeros do not change it, so whole bytes do.
fn crc15(content: u128, len: u32) -> u16 {
    static CRC: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_15_CAN);
    let bytes = content.to_be_bytes();
    let used = len.div_ceil(8) as usize;
    CRC.checksum(&bytes[bytes.len() - used..])
}

#[derive(Clone, Copy)]
struct FdCrc {
    width: u32,
    poly: u32,
}

impl FdCrc {
    /// For so many bytes of data.
    const fn of(bytes: usize) -> Self {
        if bytes <= 16 { CRC17 } else { CRC21 }
    }

    /// Stuff bit count and CRC with a fixed stuff bit before every fourth bit.
    const fn field_len(self) -> u32 {
        let bits = 4 + self.width;
        bits + bits.div_ceil(4)
    }

    /// Over these bits, from the initial value of the standard: a one, then zeros.
    fn over(self, bits: impl Iterator<Item = bool>) -> u32 {
        let top = 1 << (self.width - 1);
        bits.fold(top, |crc, bit| {
            let feedback = (crc & top != 0) != bit;
            let shifted = crc << 1 & (2 * top - 1);
            if feedback {
                shifted ^ self.poly
            } else {
                shifted
            }
        })
    }
}

const CRC17: FdCrc = FdCrc {
    width: 17,
    poly: 0x1_685b,
};
const CRC21: FdCrc = FdCrc {
    width: 21,
    poly: 0x10_2899,
};

/// Counts stuff bits a byte at a time.
///
/// State `5 * level + run - 1`: the last bit on the wire and how many equal bits end there. At
/// run 5 a stuff bit is due but counted only when a further bit comes.
struct Stuffer {
    state: u8,
    count: u32,
}

impl Stuffer {
    const AFTER_RECESSIVE: Self = Self { state: 5, count: 0 };

    fn byte(&mut self, byte: u8) {
        let step = STUFFING[usize::from(self.state)][usize::from(byte)];
        self.state = step & 0xf;
        self.count += u32::from(step >> 4);
    }

    /// With the stuff bit still due, if any.
    fn at_end(&self) -> u32 {
        self.count + u32::from(self.state % 5 == 4)
    }
}

/// One bit further: the new state and whether a stuff bit came before it.
const fn stuff_step(state: u8, bit: u8) -> (u8, bool) {
    let (level, run) = (state / 5, state % 5 + 1);
    match (run, bit == level) {
        (5, true) => (bit * 5, true),
        (5, false) => (bit * 5 + 1, true),
        (_, true) => (state + 1, false),
        (_, false) => (bit * 5, false),
    }
}

/// Per state and byte: the state after it in the low half, stuff bits in the high half.
static STUFFING: [[u8; 256]; 10] = {
    let mut table = [[0; 256]; 10];
    let mut start = 0;
    while start < 10 {
        let mut byte = 0;
        while byte < 256 {
            let (mut state, mut count, mut i) = (start as u8, 0, 8);
            while i > 0 {
                i -= 1;
                let (next, stuffed) = stuff_step(state, (byte >> i & 1) as u8);
                state = next;
                count += stuffed as u8;
            }
            table[start][byte] = count << 4 | state;
            byte += 1;
        }
        start += 1;
    }
    table
};

/// A frame bit by bit as its sender drives it; `true` is recessive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// From SOF to the last bit of EOF, the ACK slot recessive.
    pub bits: Vec<bool>,
    /// Those at the data rate; empty in a classic frame.
    pub fast: Range<usize>,
    /// First bit behind the arbitration field, where a bit that reads differently is an error.
    pub control: usize,
    /// CRC delimiter; from here on no bit is stuffed. The ACK slot is the next one.
    pub crc_delimiter: usize,
}

impl Encoded {
    /// Writes the bits of `frame`. `passive`: its sender is error passive (an FD frame says so).
    pub fn of(frame: &CanFrame, passive: bool) -> Self {
        let mut writer = Writer::default();
        let (head, head_len) = if frame.fd {
            fd_head(frame)
        } else {
            classic_head(frame)
        };
        // Up to RTR or RRS.
        let arbitration = match frame.id {
            CanId::Standard(_) => 13,
            CanId::Extended(_) => 33,
        };
        writer.number(head >> (head_len - arbitration), arbitration);
        let control = writer.bits.len();
        writer.number(head, head_len - arbitration);
        let fast_from = writer.bits.len();
        if frame.fd {
            writer.number(u64::from(passive), 1);
            writer.number(u64::from(dlc(frame)), 4);
        }
        for &byte in frame.data() {
            writer.number(u64::from(byte), 8);
        }
        if frame.fd {
            writer.fd_crc_field(FdCrc::of(frame.data().len()));
        } else {
            let content = writer
                .plain
                .iter()
                .fold(0, |acc, &bit| acc << 1 | u128::from(bit));
            let crc = crc15(content, writer.plain.len() as u32);
            writer.number(u64::from(crc), 15);
            writer.stuff_if_due();
        }
        let mut bits = writer.bits;
        let crc_delimiter = bits.len();
        bits.extend([true; TRAILER as usize]);
        Self {
            bits,
            fast: if frame.fd {
                fast_from..crc_delimiter + 1
            } else {
                0..0
            },
            control,
            crc_delimiter,
        }
    }

    /// Time from the start of SOF to the start of bit `index`.
    pub fn offset(&self, index: usize, nominal_bit: Duration, fast_bit: Duration) -> Duration {
        let fast = index.clamp(self.fast.start, self.fast.end) - self.fast.start;
        nominal_bit * (index - fast) as u64 + fast_bit * fast as u64
    }
}

/// How long a receiver that has seen the bits `shown` of a frame, the last of them wrong, takes to
/// notice when the level stays at `then`: bits up to the CRC delimiter, and nominal bits behind it.
pub fn notices_after(shown: &[bool], then: bool) -> (u64, u64) {
    let mut decoder = Decoder::default();
    if shown.iter().any(|&bit| decoder.push(bit)) {
        return (0, 0);
    }
    let (mut bits, mut behind) = (0, 0);
    loop {
        match decoder.trailer {
            0 => bits += 1,
            _ => behind += 1,
        }
        if decoder.push(then) {
            return (bits, behind);
        }
    }
}

/// Follows a frame that is known to be wrong as a receiver does, until it notices.
#[derive(Default)]
struct Decoder {
    /// Without stuff bits, up to the end of what is stuffed after five.
    plain: Vec<bool>,
    last: bool,
    run: u8,
    /// Bits seen of an FD frame's CRC field.
    field: u32,
    /// Bits seen from the CRC delimiter on.
    trailer: u32,
}

/// What follows from a header.
#[derive(Clone, Copy)]
struct Shape {
    /// Bits that are stuffed after five.
    stuffed: usize,
    /// Bits of an FD frame's CRC field; zero in a classic frame.
    field: u32,
}

impl Decoder {
    /// Whether this bit shows that something is wrong.
    fn push(&mut self, level: bool) -> bool {
        let shape = self.shape();
        if let Some(shape) = shape.filter(|shape| shape.stuffed == self.plain.len()) {
            if self.field < shape.field {
                let fixed = self.field.is_multiple_of(5);
                let wrong = fixed && level == self.last;
                self.field += 1;
                self.last = level;
                return wrong;
            }
            if shape.field > 0 || self.run < 5 {
                self.trailer += 1;
                return match self.trailer {
                    1 => !level,
                    2 => false,
                    // A wrong CRC is signalled behind the ACK delimiter.
                    _ => true,
                };
            }
        }
        let stuff = self.run == 5;
        if stuff && level == self.last {
            return true;
        }
        self.run = if level == self.last { self.run + 1 } else { 1 };
        self.last = level;
        if !stuff {
            self.plain.push(level);
        }
        false
    }

    /// `None` until the length code is known.
    fn shape(&self) -> Option<Shape> {
        let fdf_at = if *self.plain.get(13)? { 33 } else { 14 };
        let fd = *self.plain.get(fdf_at)?;
        let dlc_at = match (fd, fdf_at) {
            (true, _) => fdf_at + 4,
            (false, 14) => 15,
            (false, _) => 35,
        };
        let dlc = self.plain.get(dlc_at..dlc_at + 4)?;
        let code = dlc.iter().fold(0, |n, &bit| n << 1 | usize::from(bit));
        let data_at = dlc_at + 4;
        Some(if fd {
            let bytes = LENGTHS[code];
            Shape {
                stuffed: data_at + 8 * bytes,
                field: FdCrc::of(bytes).field_len(),
            }
        } else {
            Shape {
                stuffed: data_at + 8 * code.min(8) + 15,
                field: 0,
            }
        })
    }
}

#[derive(Default)]
struct Writer {
    /// As on the wire.
    bits: Vec<bool>,
    /// Without stuff bits.
    plain: Vec<bool>,
    /// Equal bits at the end of `bits`.
    run: u8,
    stuffed: u32,
}

impl Writer {
    /// The low `len` bits, most significant first.
    fn number(&mut self, value: u64, len: u32) {
        for i in (0..len).rev() {
            self.stuff_if_due();
            let bit = value >> i & 1 == 1;
            self.plain.push(bit);
            self.wire(bit);
        }
    }

    fn stuff_if_due(&mut self) {
        if self.run == 5 {
            let last = self.last();
            self.stuffed += 1;
            self.wire(!last);
        }
    }

    fn wire(&mut self, bit: bool) {
        self.run = if !self.bits.is_empty() && self.last() == bit {
            self.run + 1
        } else {
            1
        };
        self.bits.push(bit);
    }

    fn last(&self) -> bool {
        self.bits.last().copied().unwrap_or(true)
    }

    fn fd_crc_field(&mut self, crc: FdCrc) {
        let count = self.stuffed % 8;
        let gray = count ^ count >> 1;
        let field = gray << 1 | gray.count_ones() & 1;
        let field_bits = (0..4).rev().map(|i| field >> i & 1 == 1);
        // Unlike in a classic frame the CRC covers the stuff bits, and the count of them.
        let sum = crc.over(self.bits.iter().copied().chain(field_bits.clone()));
        let sum_bits = (0..crc.width).rev().map(|i| sum >> i & 1 == 1);
        for (i, bit) in field_bits.chain(sum_bits).enumerate() {
            if i % 4 == 0 {
                let fixed = !self.last();
                self.wire(fixed);
            }
            self.wire(bit);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn classic(id: CanId, data: &[u8]) -> CanFrame {
        CanFrame::new(id, false, data).expect("a valid classic frame")
    }
    fn fd(id: CanId, data: &[u8]) -> CanFrame {
        CanFrame::new(id, true, data).expect("a valid FD frame")
    }
    fn text(frame: &CanFrame, passive: bool) -> String {
        let bits = Encoded::of(frame, passive).bits;
        bits.iter().map(|&b| if b { '1' } else { '0' }).collect()
    }

    #[test]
    fn checks_are_those_of_the_crc_catalogue() {
        let bits = || {
            let bytes = b"123456789".iter();
            bytes.flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1 == 1))
        };
        let number = bits().fold(0, |acc, bit| acc << 1 | u128::from(bit));
        assert_eq!(crc15(number, 72), 0x059e);
        // The catalogue starts from zero, ISO from a one in front: fed to itself it is gone.
        let from_zero = |crc: FdCrc| {
            let initial = (0..crc.width).map(|i| i == 0);
            crc.over(initial.chain(bits()))
        };
        assert_eq!(from_zero(CRC17), 0x0_4f03);
        assert_eq!(from_zero(CRC21), 0x0e_d841);
    }

    #[test]
    fn the_frame_of_zeros_is_as_worked_out_by_hand() {
        // 19 zeros have CRC zero: 34 zeros, a stuff bit after each fifth; the trailer is ones.
        let frame = classic(CanId::Standard(0), &[]);
        let expected = "000001".repeat(6) + "0000" + "1111111111";
        assert_eq!(text(&frame, false), expected);
    }

    #[test]
    fn classic_lengths_are_those_of_can_utils() {
        // canframelen.c, exact mode, which includes intermission.
        for (id, data, length) in [
            (
                CanId::Standard(0x62c),
                &[0xff, 0xf8, 0xff, 0x55, 0x00][..],
                92,
            ),
            (CanId::Standard(0x114), &[0xe0, 0xe0, 0x1f, 0xf8], 85),
            (CanId::Standard(0x000), &[0x07, 0x06, 0x00, 0xe0, 0x46], 95),
            (CanId::Extended(0x4956d65), &[0x88, 0x00, 0xe0, 0x00], 103),
            (
                CanId::Extended(0x1fff_ffff),
                &[0xff, 0xff, 0x07, 0xf8, 0xc4, 0xe0, 0xff, 0x0f],
                144,
            ),
        ] {
            let bits = FrameBits::of(&classic(id, data), false);
            assert_eq!(bits.nominal + INTERMISSION as u32, length, "{id:?}");
        }
    }

    #[test]
    fn fd_bits_are_those_of_molinaros_generator() {
        // github.com/pierremolinaro/codes-can, CANFDFrameGenerator.h, ISO, less intermission.
        for (id, passive, data, bits) in [
            (
                CanId::Standard(0x38a),
                false,
                &[0xf8, 0x00, 0x9d, 0x07][..],
                "0011100010100010100100111110000010000010010011101000001111011001111100\
                 0101011011111001111111111",
            ),
            (
                CanId::Standard(0x7ff),
                true,
                &[0x07, 0x55],
                "0111110111110100101100100000101110101010100101010001111010001001010111\
                 11111111",
            ),
            (
                CanId::Extended(0x100),
                true,
                &[
                    0xe0, 0x00, 0xf8, 0x0f, 0x55, 0x4e, 0x55, 0x1f, 0xe0, 0x0f, 0x28, 0x00, 0x55,
                    0x0f, 0x5f, 0xf8, 0x0f, 0x07, 0x0f, 0x33,
                ],
                "0000010000010011000001000010000010000101110111110000010000010000111110\
                 0000100011110101010101001110010101010001111101110000010000111100101000\
                 0010000010010101010000111101011111011111000001000111100000111100001111\
                 00110011000110101100011011110101011001011111111111",
            ),
        ] {
            assert_eq!(text(&fd(id, data), passive), bits, "{id:?}");
        }
    }

    fn any_id() -> impl Strategy<Value = CanId> {
        let edge = |max: u32| prop_oneof![Just(0), Just(max), 0..=max];
        prop_oneof![
            edge(0x7ff).prop_map(|id| CanId::Standard(id as u16)),
            edge(0x1fff_ffff).prop_map(CanId::Extended),
        ]
    }

    /// Bytes that make long runs, and any.
    fn any_data(max: usize) -> impl Strategy<Value = Vec<u8>> {
        const RUNS: &[u8] = &[0x00, 0xff, 0x0f, 0xf0, 0xf8, 0x07, 0x83, 0x7c];
        let byte = prop_oneof![3 => prop::sample::select(RUNS), 1 => any::<u8>()];
        vec(byte, 0..=max)
    }

    /// A frame of any format.
    pub(in crate::media) fn any_frame() -> impl Strategy<Value = CanFrame> {
        (any_id(), any::<bool>(), any_data(64)).prop_map(|(id, is_fd, mut data)| {
            while CanFrame::new(id, is_fd, &data).is_none() {
                data.pop();
            }
            CanFrame::new(id, is_fd, &data).expect("just tried")
        })
    }

    /// Undoes stuffing; `None` at six equal bits.
    fn unstuff(bits: &[bool]) -> Option<Vec<bool>> {
        let (mut out, mut run, mut last) = (Vec::new(), 0, true);
        for &bit in bits {
            let stuff = run == 5;
            if stuff && bit == last {
                return None;
            }
            run = if bit == last { run + 1 } else { 1 };
            last = bit;
            if !stuff {
                out.push(bit);
            }
        }
        Some(out)
    }

    proptest! {
        #[test]
        fn counting_agrees_with_writing(frame in any_frame(), passive: bool) {
            let (bits, wire) = (FrameBits::of(&frame, passive), Encoded::of(&frame, passive));
            prop_assert_eq!((bits.nominal + bits.fast) as usize, wire.bits.len());
            prop_assert_eq!(bits.fast as usize, wire.fast.len());
            let bit = Duration::from_nanos(1);
            let fast = Duration::from_nanos(1 << 32);
            prop_assert_eq!(wire.offset(wire.bits.len(), bit, fast), bits.time(bit, fast));
        }

        #[test]
        fn a_classic_frame_is_between_the_bounds_of_davis(id in any_id(), data in any_data(8)) {
            // Davis et al. 2007: 13 unstuffed bits, intermission included, and g + 8s stuffed ones.
            let g = match id { CanId::Standard(_) => 34, CanId::Extended(_) => 54 };
            let stuffed = g + 8 * data.len() as u32;
            let length = FrameBits::of(&classic(id, &data), false).nominal + 3;
            prop_assert!(length >= stuffed + 13);
            prop_assert!(length <= stuffed + 13 + (stuffed - 1) / 4);
        }

        #[test]
        fn a_receiver_reads_back_what_was_sent(id in any_id(), data in any_data(8)) {
            let frame = classic(id, &data);
            let wire = Encoded::of(&frame, false);
            let plain = unstuff(&wire.bits[..wire.crc_delimiter]).expect("stuffed well");
            let number = plain.iter().fold(0, |acc, &bit| acc << 1 | u128::from(bit));
            let len = plain.len() as u32;
            // Dividing what was sent, CRC included, leaves nothing.
            prop_assert_eq!(crc15(number, len), 0);
            let (head, head_len) = classic_head(&frame);
            prop_assert_eq!(len, head_len + 8 * data.len() as u32 + 15);
            prop_assert_eq!(number >> (len - head_len), u128::from(head));
        }

        #[test]
        fn the_key_orders_identifiers_as_the_wire_does(a in any_id(), b in any_id()) {
            let (wire_a, wire_b) = (
                Encoded::of(&classic(a, &[]), false),
                Encoded::of(&classic(b, &[]), false),
            );
            let first_difference = wire_a.bits.iter().zip(&wire_b.bits).find(|(a, b)| a != b);
            if let (Some((&a_recessive, _)), true) = (first_difference, a != b) {
                prop_assert_eq!(arbitration_key(a) > arbitration_key(b), a_recessive);
            }
            prop_assert_eq!(arbitration_key(a) == arbitration_key(b), a == b);
        }
    }
}
