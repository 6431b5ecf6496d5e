//! Corruption: frames of each format, damaged as lines damage them, put before the receiver that a
//! controller or UART is and then before the end-to-end check. What passes both and is not what was
//! sent is a wrong acceptance.
//!
//! ```text
//! CAN, CAN FD  bits on the wire --damage--> stuffing, form, CRC-15/17/21 --> check, layout --> accepted?
//! RS485        characters       --damage--> start and stop bits          --> check, layout --> accepted?
//! ```
//!
//! Patterns, in turn: every pair of wrong bits of a frame, three to eight wrong bits at random, a burst of
//! up to 64 bits, a bit lost or doubled (a receiver out of step), another good frame's end behind this
//! one's start, and on RS485 a character lost, doubled or cut off.
//!
//! [`residual`] turns what was seen of the rarest into a rate per hour.

use helio_bus::{
    CanFrame, CanId, Command, Message, Order, Ranges, State, Summary, Sync, decode_can,
    decode_serial, encode_can, encode_serial,
};
use helio_units::{DeciCelsius, Milliamps, Millimetres, Millivolts, NodeId, TagId};
use serde::Serialize;

use crate::media::receive::Receiver;
use crate::media::wire::Encoded;
use crate::plant::Noise;

/// How a frame is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Format {
    /// CAN 2.0, 8 bytes.
    #[serde(rename = "can")]
    Can,
    /// CAN FD, 48 bytes.
    #[serde(rename = "canfd")]
    CanFd,
    /// RS485, 55 bytes.
    #[serde(rename = "rs485")]
    Serial,
}

impl Format {
    /// As figures name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Can => "can",
            Self::CanFd => "canfd",
            Self::Serial => "rs485",
        }
    }
}

/// What became of damaged frames.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Tally {
    /// Damaged frames, each damaged in another way.
    pub frames: u64,
    /// Of these, pairs of wrong bits.
    pub pairs: u64,
    /// What controller or UART took for a frame, though it was not the one that was sent.
    pub passed: u64,
    /// Of these, pairs of wrong bits.
    pub passed_pairs: u64,
    /// What the end-to-end check took, too.
    pub accepted: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.pairs += other.pairs;
        self.passed += other.passed;
        self.passed_pairs += other.passed_pairs;
        self.accepted += other.accepted;
    }
}

/// One format's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Which.
    pub format: &'static str,
    /// What became of the frames.
    #[serde(flatten)]
    pub tally: Tally,
    /// Millions of damaged frames per second and thread.
    pub million_per_second: f64,
}

/// How much to damage.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Damaged frames of CAN, CAN FD and RS485.
    pub frames: [u64; 3],
    /// Of everything random.
    pub seed: u64,
    /// At once.
    pub threads: usize,
}

/// Damages frames and counts.
pub fn run(plan: &Plan, progress: impl Fn(&str) + core::marker::Sync) -> Vec<Figures> {
    let formats = [Format::Can, Format::CanFd, Format::Serial];
    let each = formats.iter().zip(plan.frames).map(|(&format, frames)| {
        progress(format.name());
        let threads = plan.threads.max(1) as u64;
        let started = std::time::Instant::now();
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|t| scope.spawn(move || work(format, frames.div_ceil(threads), plan.seed, t)))
                .collect();
            for worker in workers {
                if let Ok(part) = worker.join() {
                    tally.add(&part);
                }
            }
        });
        let spent = started.elapsed().as_secs_f64() * threads as f64;
        Figures {
            format: format.name(),
            tally,
            million_per_second: tally.frames as f64 / spent.max(1e-9) / 1e6,
        }
    });
    each.collect()
}

fn work(format: Format, frames: u64, seed: u64, thread: u64) -> Tally {
    let mut noise = Noise::new(seed, 9_000 + thread);
    let mut tally = Tally::default();
    while tally.frames < frames {
        match format {
            Format::Can | Format::CanFd => damage_can(format, &mut noise, &mut tally),
            Format::Serial => damage_serial(&mut noise, &mut tally),
        }
    }
    tally
}

/// A cyclic message as plants have them.
fn any_message(format: Format, noise: &mut Noise) -> Message {
    let node = NodeId::new(1 + below(noise, 127) as u8).unwrap_or(NodeId::MAX);
    let mv = |noise: &mut Noise| Some(Millivolts(2_500 + below(noise, 1_800) as u16));
    let dc = |noise: &mut Noise| Some(DeciCelsius(below(noise, 900) as i16 - 300));
    let mm = |noise: &mut Noise| Some(Millimetres(below(noise, 60_000) as i32));
    let summary = Summary {
        gate_on: below(noise, 2) == 0,
        current: Some(Milliamps(below(noise, 400_000) as i32 - 200_000)),
        min: mv(noise),
        max: mv(noise),
        ..Summary::default()
    };
    let state = |noise: &mut Noise| {
        let mut state = State {
            summary,
            ..State::default()
        };
        let cells = below(noise, 19);
        state
            .cells
            .0
            .iter_mut()
            .take(cells)
            .for_each(|c| *c = mv(noise));
        let temps = below(noise, 9);
        state
            .temps
            .0
            .iter_mut()
            .take(temps)
            .for_each(|t| *t = dc(noise));
        state
    };
    let ranges = |noise: &mut Noise| {
        let mut range = [None; 16];
        let anchors = 5 + below(noise, 12);
        range.iter_mut().take(anchors).for_each(|r| *r = mm(noise));
        Ranges {
            tag: TagId(below(noise, 64) as u16),
            range,
        }
    };
    match (format, below(noise, 6)) {
        (Format::CanFd | Format::Serial, 0) => Message::Ranges(node, ranges(noise)),
        (Format::CanFd | Format::Serial, _) => Message::State(node, state(noise)),
        (_, 0) => Message::Sync(Sync {
            cycle: noise.bits() as u8,
            tag: Some(TagId(below(noise, 64) as u16)),
            previous_us: noise.bits() as u32 & 0xfff_ffff,
        }),
        (_, 1) => Message::Command(Command {
            to: Some(node),
            order: Order::Balance(noise.bits() as u32 & 0x3_ffff),
        }),
        (_, 2) => Message::Summary(node, summary),
        (_, 3) => Message::RangeChunk {
            node,
            tag: TagId(below(noise, 64) as u16),
            first: 0,
            range: [mm(noise), mm(noise)],
        },
        (_, 4) => Message::TempChunk {
            node,
            first: 4,
            temps: [dc(noise), dc(noise), dc(noise), dc(noise), None, None],
        },
        _ => {
            // Neighbours are not far apart.
            let least = 2_500 + below(noise, 1_700) as u16;
            let near = |noise: &mut Noise| Some(Millivolts(least + below(noise, 100) as u16));
            Message::CellChunk {
                node,
                first: 4 * below(noise, 4) as u8,
                cells: [near(noise), near(noise), near(noise), near(noise)],
                temp: dc(noise),
            }
        }
    }
}

fn below(noise: &mut Noise, n: usize) -> usize {
    ((u128::from(noise.bits()) * n as u128) >> 64) as usize
}

/// Levels on the wire up to the last but one bit of EOF, acknowledged.
fn levels(frame: &CanFrame) -> Vec<bool> {
    let wire = Encoded::of(frame, false);
    let mut bits = wire.bits;
    bits.pop();
    if let Some(ack) = bits.get_mut(wire.crc_delimiter + 1) {
        *ack = false;
    }
    bits
}

/// The rest of a frame from a receiver that has seen its start.
fn finish(mut receiver: Receiver, rest: impl IntoIterator<Item = bool>) -> Option<CanFrame> {
    for level in rest {
        if !receiver.push(level) {
            return None;
        }
    }
    // What is missing at the end is an idle bus.
    for _ in 0..4 {
        receiver.push(true);
    }
    receiver.frame()
}

fn count(tally: &mut Tally, sent: &CanFrame, got: Option<CanFrame>, is_pair: bool) {
    tally.frames += 1;
    tally.pairs += u64::from(is_pair);
    let Some(got) = got.filter(|got| got != sent) else {
        return;
    };
    tally.passed += 1;
    tally.passed_pairs += u64::from(is_pair);
    // An identifier of 29 bits leads elsewhere: joining and management have their own checks.
    let standard = matches!(got.id, CanId::Standard(_));
    tally.accepted += u64::from(standard && decode_can(&got).is_ok());
}

fn damage_can(format: Format, noise: &mut Noise, tally: &mut Tally) {
    let fd = format == Format::CanFd;
    let message = any_message(format, noise);
    let Some(sent) = encode_can(&message, noise.bits() as u8, fd) else {
        return;
    };
    let bits = levels(&sent);
    // The receiver before each bit.
    let mut before = vec![Receiver::default()];
    for bit in &bits {
        let mut next = before[before.len() - 1];
        next.push(*bit);
        before.push(next);
    }
    for (a, start) in before.iter().enumerate().take(bits.len()) {
        let mut one = *start;
        if !one.push(!bits[a]) {
            // Noticed at once, whatever follows.
            tally.frames += (bits.len() - a) as u64;
            tally.pairs += (bits.len() - a - 1) as u64;
            continue;
        }
        count(
            tally,
            &sent,
            finish(one, bits[a + 1..].iter().copied()),
            false,
        );
        for b in a + 1..bits.len() {
            let mut two = one;
            two.push(!bits[b]);
            count(
                tally,
                &sent,
                finish(two, bits[b + 1..].iter().copied()),
                true,
            );
            if !one.push(bits[b]) {
                // Noticed before the second one comes.
                let left = (bits.len() - b - 1) as u64;
                tally.frames += left;
                tally.pairs += left;
                break;
            }
        }
    }
    let other = encode_can(&any_message(format, noise), noise.bits() as u8, fd);
    let other = other.map(|frame| levels(&frame)).unwrap_or_default();
    for _ in 0..bits.len() * 4 {
        let mut damaged = bits.clone();
        let at = below(noise, bits.len());
        match below(noise, 5) {
            0 => {
                for _ in 0..3 + below(noise, 6) {
                    let at = below(noise, bits.len());
                    damaged[at] = !damaged[at];
                }
            }
            1 => {
                let burst = noise.bits();
                for (i, bit) in damaged[at..]
                    .iter_mut()
                    .take(1 + below(noise, 64))
                    .enumerate()
                {
                    *bit ^= burst >> i & 1 != 0;
                }
            }
            2 => drop(damaged.remove(at)),
            3 => damaged.insert(at, bits[at]),
            _ => {
                damaged.truncate(at);
                damaged.extend(other.iter().skip(at));
            }
        }
        // Another frame's end from its first bit on is that frame.
        if damaged != bits && damaged != other {
            count(tally, &sent, finish(Receiver::default(), damaged), false);
        }
    }
}

/// Seats of the bus whose frames are damaged; they fix the length of a beacon.
const SEATS: u8 = 32;

fn damage_serial(noise: &mut Noise, tally: &mut Tally) {
    let message = any_message(Format::Serial, noise);
    let Some(sent) = encode_serial(&message, noise.bits() as u8, SEATS) else {
        return;
    };
    let other = encode_serial(&any_message(Format::Serial, noise), 0, SEATS).unwrap_or_default();
    let mut judge = |damaged: &[u8], is_pair: bool| {
        tally.frames += 1;
        tally.pairs += u64::from(is_pair);
        if damaged != &sent[..] && damaged != &other[..] {
            // A UART notices a wrong start or stop bit only, and that is a character lost.
            tally.passed += 1;
            tally.passed_pairs += u64::from(is_pair);
            tally.accepted += u64::from(decode_serial(damaged, SEATS).is_some());
        }
    };
    let bits = sent.len() * 8;
    let mut damaged = sent.clone();
    for a in 0..bits {
        damaged[a / 8] ^= 1 << (a % 8);
        judge(&damaged, false);
        // Pairs are few of the patterns that matter here: every 16th.
        for b in (a + 1..bits).step_by(16) {
            damaged[b / 8] ^= 1 << (b % 8);
            judge(&damaged, true);
            damaged[b / 8] ^= 1 << (b % 8);
        }
        damaged[a / 8] ^= 1 << (a % 8);
    }
    for _ in 0..bits * 20 {
        let mut damaged = sent.clone();
        let at = below(noise, sent.len());
        match below(noise, 8) {
            0..=2 => {
                for _ in 0..3 + below(noise, 10) {
                    let at = below(noise, bits);
                    damaged[at / 8] ^= 1 << (at % 8);
                }
            }
            3 | 4 => {
                let burst = noise.bits();
                let start = below(noise, bits);
                for i in 0..(1 + below(noise, 64)).min(bits - start) {
                    damaged[(start + i) / 8] ^= ((burst >> i & 1) as u8) << ((start + i) % 8);
                }
            }
            // A character lost, and what comes next in its place, or nothing.
            5 => {
                damaged.remove(at);
                if noise.bits() & 1 == 0 {
                    let _ = damaged.push(noise.bits() as u8);
                }
            }
            6 => {
                damaged.truncate(at);
                let tail = other.get(at..).unwrap_or(&[]);
                let _ = damaged.extend_from_slice(tail);
            }
            _ => damaged.truncate(at),
        }
        judge(&damaged, false);
    }
}

/// Undetected corruption of a line that carries nothing but such frames, at one receiver.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Residual {
    /// Frames per hour.
    pub frames_per_hour: f64,
    /// Bits of a frame in which a disturbance counts.
    pub bits: f64,
    /// Bit error rate.
    pub ber: f64,
    /// Frames per hour with exactly two wrong bits.
    pub pairs_per_hour: f64,
    /// Share of them that the controller takes for another frame.
    pub share_controller: f64,
    /// Share of those that the end-to-end check takes.
    pub share_check: f64,
    /// Product.
    pub per_hour: f64,
}

/// From the controller's share of pairs and the share of its misses that the check passes. More than two
/// wrong bits are rarer by `bits * ber / 3` each, and no more likely to pass.
pub fn residual(
    frames_per_second: f64,
    bits: f64,
    ber: f64,
    share_controller: f64,
    share_check: f64,
) -> Residual {
    let frames_per_hour = frames_per_second * 3_600.0;
    let pairs = bits * (bits - 1.0) / 2.0 * ber * ber;
    let pairs_per_hour = frames_per_hour * pairs;
    Residual {
        frames_per_hour,
        bits,
        ber,
        pairs_per_hour,
        share_controller,
        share_check,
        per_hour: pairs_per_hour * share_controller * share_check,
    }
}

/// Share of all pairs of wrong bits in an FD frame that shift bits between them and yet leave stuffing, form
/// and count of stuff bits right: CRC-21 alone stands between them and the end-to-end check. Pairs that
/// shift nothing are two wrong bits for that CRC, and those it always notices.
pub fn shifted_pairs_fd(frames: u64, seed: u64) -> f64 {
    let mut noise = Noise::new(seed, 9_900);
    let (mut pairs, mut shifted) = (0u64, 0u64);
    for _ in 0..frames {
        let message = any_message(Format::CanFd, &mut noise);
        let Some(sent) = encode_can(&message, noise.bits() as u8, true) else {
            continue;
        };
        let bits = levels(&sent);
        for _ in 0..2_000 {
            let mut damaged = bits.clone();
            let (a, b) = (below(&mut noise, bits.len()), below(&mut noise, bits.len()));
            if a == b {
                continue;
            }
            damaged[a] = !damaged[a];
            damaged[b] = !damaged[b];
            pairs += 1;
            let got = finish(Receiver::without_crc(), damaged);
            shifted += u64::from(got.is_some_and(|got| differing(&got, &sent) > 2));
        }
    }
    shifted as f64 / pairs.max(1) as f64
}

/// Bits of data in which two frames differ.
fn differing(a: &CanFrame, b: &CanFrame) -> u32 {
    let same_length = a.data().len() == b.data().len();
    let bits = a
        .data()
        .iter()
        .zip(b.data())
        .map(|(a, b)| (a ^ b).count_ones());
    if same_length { bits.sum() } else { u32::MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_damaged_frame_of_any_format_is_accepted() {
        let plan = Plan {
            frames: [400_000, 60_000, 400_000],
            seed: 1,
            threads: 2,
        };
        for figures in run(&plan, |_| {}) {
            println!("{figures:?}");
            assert_eq!(figures.tally.accepted, 0, "{}", figures.format);
            assert!(figures.tally.frames >= 60_000);
        }
    }

    #[test]
    fn a_check_that_checks_nothing_would_be_seen() {
        // What controllers let pass by themselves: the end-to-end check has something to do.
        let plan = Plan {
            frames: [0, 0, 100_000],
            seed: 2,
            threads: 1,
        };
        assert!(run(&plan, |_| {})[2].tally.passed > 50_000);
    }
}
