//! How a luminaire says who it is, by blinking too fast to see.
//!
//! The slave repeats [`LightCode::chip`] at its chip rate for ever. A camera whose rows are
//! exposed one after another sees the chips as stripes; [`decode_chips`] finds the identity in
//! any window as long as one frame, wherever it begins.
//!
//! ```text
//! | 0 1 1 1 0 0 | id, 16 bits | check, 16 bits |      most significant bit first
//!    preamble      Manchester: 0 -> 1 0, 1 -> 0 1
//! ```
//!
//! This is the C-OOK frame of IEEE 802.15.7-2018 with Manchester coding and its preamble for it.
//! The preamble's three chips in a row occur nowhere else. Half of all chips are on, in every
//! frame and nearly in every part of one, so that brightness tells nothing of the identity and
//! does not flicker. The check is CRC-16/IBM-3740 of the identity.
//!
//! Where the image of a luminaire is too small for a frame, [`FrequencyPlan`] gives it a steady
//! frequency instead.

use crc::{CRC_16_IBM_3740, Crc};

/// Chips that a luminaire sends in a second: 350 frames a second, far above what eyes see, and four
/// rows a chip for a sensor that reads 100 000 rows a second.
pub const CHIP_RATE_HZ: u32 = 25_000;
/// Chips of one frame.
pub const FRAME_CHIPS: usize = PREAMBLE.len() + 2 * BITS;

const PREAMBLE: [bool; 6] = [false, true, true, true, false, false];
const BITS: usize = 32;
const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_IBM_3740);

/// Bytes after which whole frames end with a whole byte: four frames.
pub const PATTERN_BYTES: usize = FRAME_CHIPS / 2;

/// The endless chips of one identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LightCode {
    bits: u32,
}

impl LightCode {
    /// The code of an anchor.
    pub fn new(id: u16) -> Self {
        let check = CRC.checksum(&id.to_be_bytes());
        Self {
            bits: u32::from(id) << 16 | u32::from(check),
        }
    }

    /// Whether the light is on in chip number `at`; frames follow each other without a gap.
    pub fn chip(&self, at: usize) -> bool {
        let at = at % FRAME_CHIPS;
        if let Some(chip) = PREAMBLE.get(at) {
            return *chip;
        }
        let at = at - PREAMBLE.len();
        let bit = self.bits >> (BITS - 1 - at / 2) & 1 == 1;
        bit == (at % 2 == 1)
    }

    /// The chips as a peripheral takes them that shifts bytes out, most significant bit first, round
    /// and round at [`CHIP_RATE_HZ`]: four frames, so that they go on without a gap.
    pub fn pattern(&self) -> [u8; PATTERN_BYTES] {
        let mut pattern = [0; PATTERN_BYTES];
        for (at, byte) in pattern.iter_mut().enumerate() {
            *byte = (0..8).fold(0, |b, bit| b << 1 | u8::from(self.chip(8 * at + bit)));
        }
        pattern
    }
}

/// The identity in consecutive chips of a repeated frame. At least [`FRAME_CHIPS`] are needed;
/// a frame may begin anywhere, its end continuing at its beginning. `None` if no preamble is
/// followed by valid Manchester code with a right check.
pub fn decode_chips(chips: &[bool]) -> Option<u16> {
    let last = chips.len().checked_sub(FRAME_CHIPS)?;
    let frames = (0..=last).filter_map(|off| chips.get(off..off + FRAME_CHIPS));
    for frame in frames.take(FRAME_CHIPS) {
        // Rotate in place of searching on: the frame repeats.
        for turn in 0..FRAME_CHIPS {
            let chip = |at: usize| frame.get((turn + at) % FRAME_CHIPS).copied();
            if let Some(id) = decode_frame(chip) {
                return Some(id);
            }
        }
    }
    None
}

fn decode_frame(chip: impl Fn(usize) -> Option<bool>) -> Option<u16> {
    for (at, wanted) in PREAMBLE.iter().enumerate() {
        if chip(at)? != *wanted {
            return None;
        }
    }
    let mut bits = 0u32;
    for at in 0..BITS {
        let first = chip(PREAMBLE.len() + 2 * at)?;
        let second = chip(PREAMBLE.len() + 2 * at + 1)?;
        if first == second {
            return None;
        }
        bits = bits << 1 | u32::from(second);
    }
    let id = (bits >> 16) as u16;
    (CRC.checksum(&id.to_be_bytes()) == bits as u16).then_some(id)
}

/// Identities as frequencies: `base_hz + id * step_hz` for `id < count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrequencyPlan {
    /// Frequency of identity 0. Above 1 kHz nobody sees it.
    pub base_hz: u32,
    /// Distance between neighbours; more than a camera's resolution, row rate over rows seen.
    pub step_hz: u32,
    /// How many identities there are.
    pub count: u16,
}

impl FrequencyPlan {
    /// The frequency of an identity; `None` outside the plan.
    pub fn frequency_hz(&self, id: u16) -> Option<u32> {
        let above = u32::from(id).checked_mul(self.step_hz)?;
        let hz = self.base_hz.checked_add(above)?;
        (id < self.count).then_some(hz)
    }

    /// The identity whose frequency is nearest, if it is within a quarter of a step.
    pub fn identify(&self, hz: u32) -> Option<u16> {
        let above = i64::from(hz) - i64::from(self.base_hz);
        let step = i64::from(self.step_hz.max(1));
        let nearest = (2 * above + step).div_euclid(2 * step);
        let off = (above - nearest * step).abs();
        let id = u16::try_from(nearest).ok()?;
        (id < self.count && 4 * off <= step).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn window(id: u16, from: usize, len: usize) -> Vec<bool> {
        let code = LightCode::new(id);
        (from..from + len).map(|at| code.chip(at)).collect()
    }

    #[test]
    fn every_identity_is_read_wherever_the_window_begins() {
        for id in 0..=u16::MAX {
            let from = usize::from(id) % FRAME_CHIPS;
            assert_eq!(decode_chips(&window(id, from, FRAME_CHIPS)), Some(id));
        }
    }

    #[test]
    fn the_light_is_on_half_of_the_time_and_never_dark_for_long() {
        for id in 0..=u16::MAX {
            let chips = window(id, 0, 2 * FRAME_CHIPS);
            let on = chips.iter().take(FRAME_CHIPS).filter(|c| **c).count();
            assert_eq!(on, FRAME_CHIPS / 2);
            let longest = chips.chunk_by(|a, b| a == b).map(<[bool]>::len).max();
            assert!(longest <= Some(4), "{id}: {longest:?}");
        }
    }

    #[test]
    fn shifted_out_round_and_round_the_pattern_is_the_code() {
        for id in [0, 1, 0x5a3c, u16::MAX] {
            let code = LightCode::new(id);
            let bytes = code.pattern();
            let bits = bytes
                .iter()
                .cycle()
                .flat_map(|b| (0..8).rev().map(move |i| b >> i & 1));
            for (at, bit) in bits.take(3 * 8 * PATTERN_BYTES).enumerate() {
                assert_eq!(bit == 1, code.chip(at), "{id} {at}");
            }
        }
    }

    #[test]
    fn one_or_two_wrong_chips_never_make_another_identity() {
        let chips = window(0x5a3c, 11, FRAME_CHIPS);
        for a in 0..FRAME_CHIPS {
            for b in a..FRAME_CHIPS {
                let mut broken = chips.clone();
                broken[a] = !broken[a];
                if b != a {
                    broken[b] = !broken[b];
                }
                assert_eq!(decode_chips(&broken), None, "{a} {b}");
            }
        }
    }

    proptest! {
        #[test]
        fn noise_is_no_identity(chips in prop::collection::vec(any::<bool>(), 0..300)) {
            prop_assert_eq!(decode_chips(&chips), None);
        }

        #[test]
        fn a_frequency_is_that_of_one_identity(id in 0u16..40, off in -30i64..=30) {
            let plan = FrequencyPlan { base_hz: 1_500, step_hz: 120, count: 32 };
            let hz = plan.frequency_hz(id);
            prop_assert_eq!(hz.is_some(), id < 32);
            if let Some(hz) = hz {
                let heard = (i64::from(hz) + off) as u32;
                prop_assert_eq!(plan.identify(heard), Some(id));
                prop_assert_eq!(plan.identify(hz + 31), None);
            }
        }
    }
}
