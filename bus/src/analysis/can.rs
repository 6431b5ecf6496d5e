//! Response times under fixed priorities without preemption, and how long a frame can be.
//!
//! After R. I. Davis, A. Burns, R. J. Bril, J. J. Lukkien, "Controller Area Network (CAN)
//! schedulability analysis: Refuted, revisited and revised", Real-Time Systems 35 (2007) 239-272,
//! section 3 (every instance in the busy period is looked at, not only the first), with errors as
//! in K. Tindell, A. Burns, A. Wellings, "Calculating Controller Area Network (CAN) message
//! response times" (1995), section 5. Lengths of frames are not taken from the papers' formula for
//! arbitrary bits but from [`longest`], which knows what is fixed in a frame.
//!
//! Pure arithmetic on what the caller owns: no allocation, no clock.

use crate::message::CanId;
use helio_units::Duration;

/// Periodic or sporadic messages of one kind; with `count` above one they have neighbouring
/// identifiers, and what is computed bounds the least urgent of them, which may be the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Order of urgency, lower first; no two streams share it.
    pub key: u32,
    /// How many messages; each has its own frame in each period.
    pub count: u32,
    /// Their longest frame, intermission included.
    pub length: Duration,
    /// The longest frames of all but the one where that is shortest, together.
    pub others: Duration,
    /// Least time between the events that cause one of them, but for `early`.
    pub period: Duration,
    /// From the event until the frame waits in a mailbox, at most. Part of the response. Who does
    /// not queue at a bit boundary adds a bit.
    pub jitter: Duration,
    /// By how much two events may come closer than `period`. No part of the response.
    pub early: Duration,
    /// Times that the frame, or one that it waits for in the same station, misses an arbitration
    /// because software was too slow to fill the mailbox: each costs one more blocking frame.
    pub missed: u32,
}

impl Stream {
    /// One message without jitter.
    pub const fn new(key: u32, length: Duration, period: Duration) -> Self {
        Self {
            key,
            count: 1,
            length,
            others: Duration::ZERO,
            period,
            jitter: Duration::ZERO,
            early: Duration::ZERO,
            missed: 0,
        }
    }
}

/// Frames that are destroyed: in any time `t` at most `burst + t / interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanErrors {
    /// At once.
    pub burst: u32,
    /// Between further ones.
    pub interval: Duration,
}

impl CanErrors {
    /// None at all.
    pub const NONE: Self = Self {
        burst: 0,
        interval: Duration::from_nanos(u64::MAX),
    };
    /// Flag, its answers, delimiter, intermission and what a passive sender waits: bits per error.
    pub const BITS: u64 = 31;

    fn within(self, time: u64) -> u64 {
        let further = time.checked_div(self.interval.as_nanos());
        u64::from(self.burst).saturating_add(further.unwrap_or(u64::MAX))
    }
}

/// The medium, and what is on it beside the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Nominal bit time.
    pub bit: Duration,
    /// Longest frame that is less urgent than all streams, intermission included.
    pub background: Duration,
    /// Frames destroyed.
    pub errors: CanErrors,
    /// Busy periods longer than this count as endless.
    pub horizon: Duration,
}

/// There is no bound: messages of this urgency and above need more than the bus has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload;

/// From the event to the end of intermission after the frame, at most. Receivers have the frame
/// four bits earlier.
pub fn worst_response(streams: &[Stream], of: &Stream, wire: &Wire) -> Result<Duration, Overload> {
    // The others of its own kind are more urgent than the last one.
    let rivals = |m: &Stream| match m.key.cmp(&of.key) {
        core::cmp::Ordering::Less => m.others.as_nanos().saturating_add(m.length.as_nanos()),
        core::cmp::Ordering::Equal => m.others.as_nanos(),
        core::cmp::Ordering::Greater => 0,
    };
    let more_urgent = || streams.iter().filter(|m| rivals(m) > 0);
    let once = streams
        .iter()
        .filter(|m| m.key > of.key)
        .map(|m| m.length.as_nanos())
        .fold(wire.background.as_nanos(), u64::max);
    let blocking = once.saturating_mul(u64::from(of.missed) + 1);
    let bit = wire.bit.as_nanos();
    let (length, period) = (of.length.as_nanos(), of.period.as_nanos());
    let (jitter, early) = (of.jitter.as_nanos(), of.early.as_nanos());
    // A destroyed frame, that of the message itself included, is sent again.
    let again = more_urgent()
        .map(|m| m.length.as_nanos())
        .fold(length, u64::max);
    let per_error = again.saturating_add(bit.saturating_mul(CanErrors::BITS));
    let lost = |time: u64| wire.errors.within(time).saturating_mul(per_error);
    let demand = |m: &Stream, once: u64, time: u64| instances(m, time).saturating_mul(once);
    let settle =
        |start: u64, next: &dyn Fn(u64) -> u64| settle(start, wire.horizon.as_nanos(), next);

    // The busy period at this urgency: how many instances of the message can fall into one.
    let busy = settle(length, &|time| {
        more_urgent()
            .map(|m| demand(m, rivals(m), time))
            .fold(demand(of, length, time), u64::saturating_add)
            .saturating_add(blocking)
            .saturating_add(lost(time))
    })?;
    let mut worst = 0;
    let mut waiting = blocking;
    for instance in 0..instances(of, busy) {
        let before = instance.saturating_mul(length);
        // Until the frame starts. What is queued in the bit of its SOF still goes first.
        waiting = settle(waiting.max(blocking.saturating_add(before)), &|time| {
            more_urgent()
                .map(|m| demand(m, rivals(m), time.saturating_add(bit)))
                .fold(blocking, u64::saturating_add)
                .saturating_add(before)
                .saturating_add(lost(time.saturating_add(length)))
        })?;
        let sooner = if instance > 0 { early } else { 0 };
        let end = waiting.saturating_add(length).saturating_add(jitter);
        let end = end.saturating_add(sooner);
        worst = worst.max(end.saturating_sub(instance.saturating_mul(period)));
    }
    Ok(Duration::from_nanos(worst))
}

/// How often a message can be queued within `time` of the critical instant.
fn instances(m: &Stream, time: u64) -> u64 {
    let apart = m.jitter.as_nanos().saturating_add(m.early.as_nanos());
    let span = time.saturating_add(apart);
    match m.period.as_nanos() {
        0 => u64::MAX,
        // Nearly always; a small processor divides 64 bits slowly.
        period if span <= period => u64::from(span > 0),
        period => span.div_ceil(period),
    }
}

/// Least fixed point of `next` from `start` up.
fn settle(start: u64, horizon: u64, next: &dyn Fn(u64) -> u64) -> Result<u64, Overload> {
    let mut time = start;
    loop {
        let later = next(time);
        if later <= time {
            return Ok(time);
        }
        if later > horizon {
            return Err(Overload);
        }
        time = later;
    }
}

/// Share of the bus that the streams take when none is lost, in parts per million.
pub fn load_ppm(streams: &[Stream]) -> u64 {
    let of = |m: &Stream| {
        let once = u128::from(m.length.as_nanos()) + u128::from(m.others.as_nanos());
        let scaled = once * 1_000_000;
        scaled.checked_div(u128::from(m.period.as_nanos()))
    };
    let sum: u128 = streams
        .iter()
        .map(|m| of(m).unwrap_or(u128::MAX >> 16))
        .sum();
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// What is fixed in a frame, so that its longest stuffing can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Identifier.
    pub id: CanId,
    /// So many of its last bits can be anything.
    pub free_id: u32,
    /// FD format with bit-rate switch.
    pub fd: bool,
    /// Data bytes.
    pub bytes: usize,
    /// Data bits from this one on, counted from the lowest of the first byte, are zero.
    pub used: usize,
    /// And so is this one.
    pub spare: Option<usize>,
}

impl Shape {
    /// A frame with this identifier and any data.
    pub const fn any(id: CanId, fd: bool, bytes: usize) -> Self {
        Self {
            id,
            free_id: 0,
            fd,
            bytes,
            used: usize::MAX,
            spare: None,
        }
    }
}

/// The longest frame of this shape, intermission included: the most stuff bits that any data, with
/// any CRC, can cause. `None` for a length that the format does not have.
pub fn longest(shape: &Shape, nominal_bit: Duration, fast_bit: Duration) -> Option<Duration> {
    let Shape { id, fd, bytes, .. } = *shape;
    let dlc = match bytes {
        n @ 0..=8 => n as u64,
        12 if fd => 9,
        16 if fd => 10,
        20 if fd => 11,
        24 if fd => 12,
        32 if fd => 13,
        48 if fd => 14,
        64 if fd => 15,
        _ => return None,
    };
    // SOF, identifier, RTR and IDE or what stands in their places; bits set in `any` are free.
    let mask = (1u64 << shape.free_id.min(29)) - 1;
    let place = |id: CanId, raw: u64| match id {
        CanId::Standard(_) => raw << 2,
        CanId::Extended(_) => (raw >> 18) << 21 | (raw & 0x3_ffff) << 1,
    };
    let (arbitration, len) = match id {
        CanId::Standard(raw) => (place(id, raw.into()), 14),
        CanId::Extended(raw) => (place(id, raw.into()) | 0b11 << 19, 33),
    };
    let any = place(id, mask);
    let mut stuffing = MostStuffing::after_recessive();
    let data = |stuffing: &mut MostStuffing| {
        for at in 0..bytes {
            for bit in (0..8).rev() {
                let index = at * 8 + bit;
                if index < shape.used && shape.spare != Some(index) {
                    stuffing.free(1);
                } else {
                    stuffing.known(0, 1);
                }
            }
        }
    };
    let free = 8 * bytes as u32;
    stuffing.partly(arbitration, any, len);
    if !fd {
        // r0, of an extended frame r1 before it.
        let reserved = if len == 33 { 2 } else { 1 };
        stuffing.known(dlc, reserved + 4);
        data(&mut stuffing);
        stuffing.free(15);
        let bits = len + reserved + 4 + free + 15 + stuffing.most(true) + 10 + 3;
        return Some(nominal_bit * u64::from(bits));
    }
    // FDF, res, BRS.
    stuffing.known(0b101, 3);
    let nominal = len + 3 + stuffing.most(false) + 9 + 3;
    // A lone recessive BRS stands before ESI, which depends on the sender's state.
    let mut stuffing = MostStuffing::after_recessive();
    stuffing.free(1);
    stuffing.known(dlc, 4);
    data(&mut stuffing);
    let crc = if bytes <= 16 { 27 } else { 32 };
    let fast = 5 + free + stuffing.most(false) + crc + 1;
    Some(nominal_bit * u64::from(nominal) + fast_bit * u64::from(fast))
}

/// Per state of the stuffing (last level, length of its run) the most stuff bits on any way there;
/// `None`: no way. A stuff bit counts when the next bit comes.
struct MostStuffing([Option<u32>; 10]);

impl MostStuffing {
    fn after_recessive() -> Self {
        let mut most = [None; 10];
        most[5] = Some(0);
        Self(most)
    }

    /// The low `len` bits.
    fn known(&mut self, bits: u64, len: u32) {
        self.partly(bits, 0, len);
    }

    /// The low `len` bits; those set in `any` have any value.
    fn partly(&mut self, bits: u64, any: u64, len: u32) {
        for i in (0..len).rev() {
            if any >> i & 1 == 1 {
                self.free(1);
            } else {
                self.step(&[bits >> i & 1 == 1]);
            }
        }
    }

    /// So many bits of any value.
    fn free(&mut self, len: u32) {
        for _ in 0..len {
            self.step(&[false, true]);
        }
    }

    fn step(&mut self, choices: &[bool]) {
        let mut next = [None; 10];
        for (state, most) in self.0.iter().enumerate() {
            let Some(most) = *most else { continue };
            let (level, run) = (state >= 5, state % 5 + 1);
            for &bit in choices {
                let (run, count) = match (run, bit == level) {
                    (5, true) => (1, most + 1),
                    (5, false) => (2, most + 1),
                    (run, true) => (run + 1, most),
                    (_, false) => (1, most),
                };
                let place = usize::from(bit) * 5 + run - 1;
                if let Some(slot) = next.get_mut(place) {
                    *slot = (*slot).max(Some(count));
                }
            }
        }
        self.0 = next;
    }

    /// `last_too`: a stuff bit due behind the last bit is sent.
    fn most(&self, last_too: bool) -> u32 {
        let of = |(state, most): (usize, &Option<u32>)| {
            most.map(|most| most + u32::from(last_too && state % 5 == 4))
        };
        self.0.iter().enumerate().filter_map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: Wire = Wire {
        bit: Duration::from_micros(8),
        background: Duration::ZERO,
        errors: CanErrors::NONE,
        horizon: Duration::from_secs(10),
    };

    fn message(key: u32, length_us: u64, period_us: u64) -> Stream {
        let us = Duration::from_micros;
        Stream::new(key, us(length_us), us(period_us))
    }

    #[test]
    fn the_example_that_refuted_the_first_analysis_comes_out_as_published() {
        // Davis et al. 2007, table 3: 125 kbit/s, 1 ms frames. The old analysis gave C 3.0 ms.
        let set = [
            message(0, 1_000, 2_500),
            message(1, 1_000, 3_500),
            message(2, 1_000, 3_500),
        ];
        let bound = |m| worst_response(&set, m, &WIRE).map(|d| d.as_micros());
        assert_eq!(set.each_ref().map(bound), [Ok(2_000), Ok(3_000), Ok(3_500)]);
    }

    #[test]
    fn a_stream_of_many_is_bounded_like_its_least_urgent_message() {
        let single: [Stream; 6] = core::array::from_fn(|i| message(i as u32, 100, 1_000));
        let many = [Stream {
            count: 6,
            others: Duration::from_micros(500),
            ..message(0, 100, 1_000)
        }];
        assert_eq!(
            worst_response(&many, &many[0], &WIRE),
            worst_response(&single, &single[5], &WIRE)
        );
    }

    #[test]
    fn too_much_has_no_bound_and_too_many_errors_neither() {
        let set = [message(0, 60, 100), message(1, 60, 100)];
        let us = Duration::from_micros;
        let bound = |m, errors| {
            let wire = Wire {
                bit: us(1),
                errors,
                ..WIRE
            };
            worst_response(&set, m, &wire)
        };
        assert_eq!(bound(&set[1], CanErrors::NONE), Err(Overload));
        assert_eq!(bound(&set[0], CanErrors::NONE), Ok(us(120)));
        let storm = CanErrors {
            burst: 0,
            interval: us(90),
        };
        assert_eq!(bound(&set[0], storm), Err(Overload));
        assert_eq!(load_ppm(&set), 1_200_000);
    }

    #[test]
    fn each_error_costs_the_longest_frame_and_31_bits() {
        let set = [message(0, 100, 10_000), message(1, 60, 10_000)];
        let wire = Wire {
            bit: Duration::from_micros(1),
            errors: CanErrors {
                burst: 2,
                ..CanErrors::NONE
            },
            ..WIRE
        };
        let bound = worst_response(&set, &set[1], &wire);
        assert_eq!(bound, Ok(Duration::from_micros(160 + 2 * 131)));
    }

    #[test]
    fn a_mailbox_filled_too_late_costs_a_blocking_frame_each_time() {
        let slow = Stream {
            missed: 2,
            ..message(1, 60, 10_000)
        };
        let set = [message(0, 100, 10_000), slow, message(2, 90, 10_000)];
        let bound = worst_response(&set, &slow, &WIRE);
        assert_eq!(bound, Ok(Duration::from_micros(3 * 90 + 100 + 60)));
    }

    #[test]
    fn bits_known_to_be_zero_leave_less_to_stuff() {
        let bit = Duration::from_micros(1);
        let any = Shape::any(CanId::Standard(0x123), false, 8);
        let of = |shape: &Shape| longest(shape, bit, bit).expect("valid").as_micros();
        // 111 bits and 24 stuff bits is the formula's worst for 8 bytes.
        assert!(of(&any) <= 135);
        let padded = Shape { used: 44, ..any };
        assert!(of(&padded) < of(&any));
        let free = Shape { free_id: 7, ..any };
        assert!(of(&free) >= of(&any) && of(&free) <= 135);
    }
}
