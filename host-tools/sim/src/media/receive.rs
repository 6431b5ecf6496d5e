//! What a CAN or CAN FD controller makes of the levels that reach it, bit by bit: a frame, or
//! nothing. ISO 11898-1:2015; the counterpart of [`super::wire::Encoded`], written apart from it.
//!
//! ```text
//! Head -- length known --> Body -- last bit of data --> Check -- last bit of CRC --> Trailer --> frame
//!   '----------- six equal bits, a fixed bit that is not what it must be, a wrong CRC ----------> nothing
//! ```
//!
//! A [`Receiver`] is small and `Copy`: whoever tries many ways to damage one frame keeps the state
//! before each bit and goes on from there.

use helio_bus::{CanFrame, CanId};

/// A CRC of up to 21 bits that takes one bit at a time.
#[derive(Clone, Copy)]
struct Crc {
    value: u32,
    top: u32,
    poly: u32,
}

impl Crc {
    const fn new(width: u32, poly: u32, start: u32) -> Self {
        Self {
            value: start,
            top: 1 << (width - 1),
            poly,
        }
    }

    fn push(&mut self, bit: bool) {
        let feedback = (self.value & self.top != 0) != bit;
        self.value = self.value << 1 & (self.top * 2 - 1);
        if feedback {
            self.value ^= self.poly;
        }
    }
}

/// Where in the frame a receiver is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Up to the length code, and then the data; `left` bits once that is known.
    Content { left: Option<u16> },
    /// CRC of a classic frame, stuffed like what is before it.
    ClassicCrc { left: u8 },
    /// Fixed stuff bits, stuff bit count and CRC of an FD frame; bits of it seen.
    FdCheck { seen: u8 },
    /// From the CRC delimiter on; bits of it seen.
    Trailer { seen: u8 },
    /// Valid: the last but one bit of EOF was recessive, too.
    Done,
}

/// What became of a bit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    GoOn,
    Refused,
}

/// A controller that receives one frame.
#[derive(Clone, Copy)]
pub struct Receiver {
    part: Part,
    /// Level and length of the run that is under way.
    last: bool,
    run: u8,
    /// Bits without stuff bits so far.
    count: u16,
    /// The first 64 of them, the newest lowest.
    head: u64,
    extended: bool,
    fd: bool,
    length: u8,
    data: [u8; 64],
    stuffed: u8,
    crc15: Crc,
    crc17: Crc,
    crc21: Crc,
    /// CRC field as received.
    field: u32,
    refused: bool,
    without_crc: bool,
}

const LENGTHS: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64];

impl Default for Receiver {
    fn default() -> Self {
        Self {
            part: Part::Content { left: None },
            // The bus was idle.
            last: true,
            run: 1,
            count: 0,
            head: 0,
            extended: false,
            fd: false,
            length: 0,
            data: [0; 64],
            stuffed: 0,
            crc15: Crc::new(15, 0x4599, 0),
            crc17: Crc::new(17, 0x1_685b, 1 << 16),
            crc21: Crc::new(21, 0x10_2899, 1 << 20),
            field: 0,
            refused: false,
            without_crc: false,
        }
    }
}

impl Receiver {
    /// One that takes any CRC, to see what else would notice.
    pub fn without_crc() -> Self {
        Self {
            without_crc: true,
            ..Self::default()
        }
    }

    /// The next level, `true` recessive. `false` as soon as the controller would raise an error flag.
    pub fn push(&mut self, level: bool) -> bool {
        if self.refused || self.bit(level) == Verdict::Refused {
            self.refused = true;
        }
        !self.refused
    }

    /// The frame, once it is valid.
    pub fn frame(&self) -> Option<CanFrame> {
        if self.refused || self.part != Part::Done {
            return None;
        }
        let id = if self.extended {
            CanId::Extended(self.identifier())
        } else {
            CanId::Standard(self.identifier() as u16)
        };
        CanFrame::new(id, self.fd, self.data.get(..usize::from(self.length))?)
    }

    /// From the first bits: SOF id11 RTR IDE ..., or SOF id11 SRR IDE id18 RTR ...
    fn identifier(&self) -> u32 {
        // `head` ends where the length code does.
        if self.extended {
            let behind = if self.fd { 9 } else { 7 };
            let low = self.head >> behind & 0x3_ffff;
            let high = self.head >> (behind + 20) & 0x7ff;
            (high << 18 | low) as u32
        } else {
            let behind = if self.fd { 10 } else { 7 };
            (self.head >> behind & 0x7ff) as u32
        }
    }

    fn bit(&mut self, level: bool) -> Verdict {
        match self.part {
            Part::FdCheck { seen } => return self.fd_check(seen, level),
            Part::Trailer { seen } => return self.trailer(seen, level),
            Part::Done => return Verdict::GoOn,
            // After five equal bits at its very end a classic frame has one more stuff bit.
            Part::ClassicCrc { left: 0 } if self.run < 5 => {
                self.part = Part::Trailer { seen: 0 };
                return self.trailer(0, level);
            }
            Part::Content { .. } | Part::ClassicCrc { .. } => {}
        }
        if self.run == 5 {
            if level == self.last {
                return Verdict::Refused;
            }
            (self.last, self.run) = (level, 1);
            self.stuffed = self.stuffed.wrapping_add(1);
            // Only that of an FD frame covers them.
            self.crc17.push(level);
            self.crc21.push(level);
            if matches!(self.part, Part::ClassicCrc { left: 0 }) {
                self.part = Part::Trailer { seen: 0 };
            }
            return Verdict::GoOn;
        }
        self.run = if level == self.last { self.run + 1 } else { 1 };
        self.last = level;
        self.plain(level)
    }

    fn plain(&mut self, level: bool) -> Verdict {
        match self.part {
            Part::Content { left: None } => self.head_bit(level),
            Part::Content { left: Some(left) } => {
                self.cover(level);
                let at = usize::from(self.length) * 8 - usize::from(left);
                if let Some(byte) = self.data.get_mut(at / 8) {
                    *byte = *byte << 1 | u8::from(level);
                }
                self.after_content(left - 1);
                Verdict::GoOn
            }
            Part::ClassicCrc { left } => {
                self.field = self.field << 1 | u32::from(level);
                self.part = Part::ClassicCrc {
                    left: left.saturating_sub(1),
                };
                Verdict::GoOn
            }
            _ => Verdict::Refused,
        }
    }

    fn cover(&mut self, level: bool) {
        if self.fd {
            self.crc17.push(level);
            self.crc21.push(level);
        } else {
            self.crc15.push(level);
        }
    }

    fn head_bit(&mut self, level: bool) -> Verdict {
        self.count += 1;
        self.head = self.head << 1 | u64::from(level);
        // Which kind it is shows late: until then all checks run.
        self.crc15.push(level);
        self.crc17.push(level);
        self.crc21.push(level);
        let n = self.count;
        if n == 1 && level {
            return Verdict::Refused;
        }
        if n == 14 {
            self.extended = level;
        }
        let (fdf_at, rtr_at) = if n < 14 {
            return Verdict::GoOn;
        } else if self.extended {
            (34, 33)
        } else {
            (15, 13)
        };
        if n == fdf_at {
            self.fd = level;
            // A remote frame, and there is none here.
            let rtr = self.head >> (fdf_at - rtr_at) & 1 != 0;
            if rtr {
                return Verdict::Refused;
            }
        }
        if n < fdf_at {
            return Verdict::GoOn;
        }
        // classic: r0 dlc4 behind IDE, or r1 r0 dlc4; FD: FDF res BRS ESI dlc4.
        if self.fd && n == fdf_at + 1 && level {
            return Verdict::Refused;
        }
        let dlc_end = match (self.fd, self.extended) {
            (true, _) => fdf_at + 7,
            (false, true) => fdf_at + 5,
            (false, false) => fdf_at + 4,
        };
        if n < dlc_end {
            return Verdict::GoOn;
        }
        let code = (self.head & 0xf) as usize;
        let length = LENGTHS.get(code).copied().unwrap_or(8);
        self.length = if self.fd { length } else { length.min(8) };
        self.after_content(u16::from(self.length) * 8);
        Verdict::GoOn
    }

    fn after_content(&mut self, left: u16) {
        self.part = match (left, self.fd) {
            (0, false) => Part::ClassicCrc { left: 15 },
            (0, true) => Part::FdCheck { seen: 0 },
            _ => Part::Content { left: Some(left) },
        };
    }

    /// A fixed bit, the opposite of the one before, then four others; and so on.
    fn fd_check(&mut self, seen: u8, level: bool) -> Verdict {
        let width: u32 = if self.length <= 16 { 17 } else { 21 };
        let bits = 4 + width;
        let total = bits + bits.div_ceil(4);
        let fixed = seen.is_multiple_of(5);
        if fixed && level == self.last {
            return Verdict::Refused;
        }
        self.last = level;
        if !fixed {
            let nth = u32::from(seen) - u32::from(seen) / 5 - 1;
            if nth < 4 {
                // The stuff bit count is covered by the CRC.
                self.crc17.push(level);
                self.crc21.push(level);
                self.head = self.head << 1 | u64::from(level);
            } else {
                self.field = self.field << 1 | u32::from(level);
            }
        }
        let seen = seen + 1;
        self.part = Part::FdCheck { seen };
        if u32::from(seen) == total {
            self.part = Part::Trailer { seen: 0 };
            // Gray code of the count modulo 8, and even parity; then `head` is as it was.
            let told = (self.head & 0xf) as u8;
            self.head >>= 4;
            let n = self.stuffed & 7;
            let gray = n ^ n >> 1;
            let expected = gray << 1 | (gray.count_ones() as u8 & 1);
            if told != expected {
                return Verdict::Refused;
            }
        }
        Verdict::GoOn
    }

    /// CRC delimiter, ACK slot, ACK delimiter, EOF.
    fn trailer(&mut self, seen: u8, level: bool) -> Verdict {
        let seen = seen + 1;
        self.part = Part::Trailer { seen };
        let crc = match (self.fd, self.length <= 16) {
            (false, _) => self.crc15.value,
            (true, true) => self.crc17.value,
            (true, false) => self.crc21.value,
        };
        if seen == 1 && self.field != crc && !self.without_crc {
            return Verdict::Refused;
        }
        if seen != 2 && !level {
            return Verdict::Refused;
        }
        // The last but one bit of EOF.
        if seen == 9 {
            self.part = Part::Done;
        }
        Verdict::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::wire::Encoded;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = CanFrame> {
        let id = prop_oneof![
            (0..0x800u16).prop_map(CanId::Standard),
            (0..1u32 << 29).prop_map(CanId::Extended)
        ];
        let bytes = prop_oneof![any::<u8>(), Just(0), Just(0xff)];
        let data = proptest::collection::vec(bytes, 64);
        (id, any::<bool>(), 0..16usize, data)
            .prop_filter_map("lengths beyond 8 are FD's", |(id, fd, code, data)| {
                CanFrame::new(id, fd, &data[..LENGTHS[code].into()])
            })
    }

    proptest! {
        #[test]
        fn every_frame_is_received_as_it_was_sent(frame in any_frame()) {
            let sent = Encoded::of(&frame, false);
            let mut receiver = Receiver::default();
            for (i, bit) in sent.bits.iter().enumerate() {
                prop_assert!(receiver.push(*bit && i != sent.crc_delimiter + 1), "bit {i}");
            }
            prop_assert_eq!(receiver.frame(), Some(frame));
        }

        #[test]
        fn one_wrong_bit_before_the_end_is_always_noticed(frame in any_frame(), at: prop::sample::Index) {
            let mut sent = Encoded::of(&frame, false);
            // Not the ACK slot, nor the last bit of EOF.
            let at = at.index(sent.crc_delimiter + 1);
            sent.bits[at] = !sent.bits[at];
            let mut receiver = Receiver::default();
            for (i, bit) in sent.bits.iter().enumerate() {
                receiver.push(*bit && i != sent.crc_delimiter + 1);
            }
            prop_assert_eq!(receiver.frame(), None);
        }
    }
}
