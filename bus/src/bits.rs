//! Little-endian bit packing: the first field takes the lowest bits of the first byte.
//!
//! Layouts are written as a row of `put` and read as the same row of `take`. Neither can
//! fail: what does not fit is dropped, what is missing reads as zero. The tests of each layout
//! show that it fits.

/// Writes fields into a zeroed buffer.
pub struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    held: u64,
    bits: u32,
}

impl<'a> Writer<'a> {
    /// Starts at the first byte of `out`.
    pub fn new(out: &'a mut [u8]) -> Self {
        Self {
            out,
            at: 0,
            held: 0,
            bits: 0,
        }
    }

    /// Appends the lowest `bits` (at most 32) of `value`.
    pub fn put(&mut self, value: u32, bits: u32) {
        let mask = (1u64 << bits.min(32)) - 1;
        self.held |= (u64::from(value) & mask) << self.bits;
        self.bits += bits;
        while self.bits >= 8 {
            self.byte();
        }
    }

    /// Writes out the last, partly filled byte.
    pub fn finish(mut self) {
        if self.bits > 0 {
            self.byte();
        }
    }

    fn byte(&mut self) {
        if let Some(byte) = self.out.get_mut(self.at) {
            *byte = self.held as u8;
        }
        self.at += 1;
        self.held >>= 8;
        self.bits = self.bits.saturating_sub(8);
    }
}

/// Reads fields in the order in which they were written.
pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    held: u64,
    bits: u32,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            held: 0,
            bits: 0,
        }
    }

    /// The next `bits`, at most 32.
    pub fn take(&mut self, bits: u32) -> u32 {
        while self.bits < bits {
            let byte = self.data.get(self.at).copied().unwrap_or(0);
            self.at += 1;
            self.held |= u64::from(byte) << self.bits;
            self.bits += 8;
        }
        let value = self.held & ((1u64 << bits.min(32)) - 1);
        self.held >>= bits;
        self.bits -= bits;
        value as u32
    }

    /// The next bit as a truth value.
    pub fn flag(&mut self) -> bool {
        self.take(1) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn the_first_field_takes_the_lowest_bits() {
        let mut out = [0; 3];
        let mut w = Writer::new(&mut out);
        w.put(0b101, 3);
        w.put(0x1ff, 9);
        w.put(1, 8);
        w.finish();
        assert_eq!(out, [0b1111_1101, 0b0001_1111, 0]);
    }

    proptest! {
        #[test]
        fn what_was_put_is_taken(fields in vec((any::<u32>(), 1..=32u32), 0..16)) {
            let mut out = [0; 64];
            let mut w = Writer::new(&mut out);
            for (value, bits) in &fields {
                w.put(*value, *bits);
            }
            w.finish();
            let mut r = Reader::new(&out);
            for (value, bits) in fields {
                prop_assert_eq!(u64::from(r.take(bits)), u64::from(value) & ((1 << bits) - 1));
            }
        }

        #[test]
        fn overlong_rows_are_cut_without_panic(fields in vec((any::<u32>(), 1..=32u32), 0..16)) {
            let mut out = [0; 2];
            let mut w = Writer::new(&mut out);
            for (value, bits) in &fields {
                w.put(*value, *bits);
            }
            w.finish();
            let mut r = Reader::new(&out);
            for (_, bits) in fields {
                r.take(bits);
            }
        }
    }
}
