//! How late a CAN message can be: response-time analysis for fixed priorities without preemption.
//!
//! After R. I. Davis, A. Burns, R. J. Bril, J. J. Lukkien, "Controller Area Network (CAN)
//! schedulability analysis: Refuted, revisited and revised", Real-Time Systems 35 (2007) 239-272,
//! section 3 (sufficient and, without jitter and errors, exact), with errors as in section 5 of
//! K. Tindell, A. Burns, A. Wellings (1995). Lengths of frames are not taken from its formula for
//! arbitrary bits but from [`longest`], which knows the identifier and the length code.
//!
//! Pure arithmetic on what the caller owns: no allocation, no clock.

use helio_bus::CanId;
use helio_units::Duration;

/// A periodic or sporadic message, the only one of its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanMessage {
    /// Order of urgency, lower first: [`crate::media::wire::arbitration_key`].
    pub key: u32,
    /// Its longest frame, intermission included.
    pub length: Duration,
    /// Least time between the events that cause it.
    pub period: Duration,
    /// From the event until the frame waits in a mailbox, at most. Who does not queue at a bit
    /// boundary adds a bit.
    pub jitter: Duration,
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

/// There is no bound: messages of this urgency and above need more than the bus has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overload;

/// Busy periods longer than this count as endless.
const HORIZON: u64 = 3_600_000_000_000;

/// From the event to the end of intermission after the frame, at most. Receivers have the frame
/// four bits earlier. `bit` is a nominal bit time.
pub fn worst_response(
    messages: &[CanMessage],
    of: &CanMessage,
    bit: Duration,
    errors: CanErrors,
) -> Result<Duration, Overload> {
    let more_urgent = || messages.iter().filter(|m| m.key < of.key);
    let blocking = messages
        .iter()
        .filter(|m| m.key > of.key)
        .map(|m| m.length.as_nanos())
        .max()
        .unwrap_or(0);
    let bit = bit.as_nanos();
    let (length, period, jitter) = (
        of.length.as_nanos(),
        of.period.as_nanos(),
        of.jitter.as_nanos(),
    );
    // A destroyed frame, that of the message itself included, is sent again.
    let again = more_urgent()
        .map(|m| m.length.as_nanos())
        .fold(length, u64::max);
    let per_error = again.saturating_add(bit.saturating_mul(CanErrors::BITS));
    let lost = |time: u64| errors.within(time).saturating_mul(per_error);
    let demand = |m: &CanMessage, time: u64| instances(m, time).saturating_mul(m.length.as_nanos());

    // The busy period at this urgency: how many instances of the message can fall into one.
    let busy = settle(length, |time| {
        more_urgent()
            .map(|m| demand(m, time))
            .fold(demand(of, time), u64::saturating_add)
            .saturating_add(blocking)
            .saturating_add(lost(time))
    })?;
    let mut worst = 0;
    let mut waiting = blocking;
    for instance in 0..instances(of, busy) {
        let before = instance.saturating_mul(length);
        // Until the frame starts. What is queued in the bit of its SOF still goes first.
        waiting = settle(waiting.max(blocking.saturating_add(before)), |time| {
            more_urgent()
                .map(|m| demand(m, time.saturating_add(bit)))
                .fold(blocking, u64::saturating_add)
                .saturating_add(before)
                .saturating_add(lost(time.saturating_add(length)))
        })?;
        let end = waiting.saturating_add(length).saturating_add(jitter);
        worst = worst.max(end.saturating_sub(instance.saturating_mul(period)));
    }
    Ok(Duration::from_nanos(worst))
}

/// How often a message can be queued within `time` of the critical instant.
fn instances(m: &CanMessage, time: u64) -> u64 {
    let span = time.saturating_add(m.jitter.as_nanos());
    match m.period.as_nanos() {
        0 => u64::MAX,
        period => span.div_ceil(period),
    }
}

/// Least fixed point of `next` from `start` up.
fn settle(start: u64, next: impl Fn(u64) -> u64) -> Result<u64, Overload> {
    let mut time = start;
    loop {
        let later = next(time);
        if later <= time {
            return Ok(time);
        }
        if later > HORIZON {
            return Err(Overload);
        }
        time = later;
    }
}

/// Share of the bus that the messages take when none is lost, in parts per million.
pub fn load_ppm(messages: &[CanMessage]) -> u64 {
    let of = |m: &CanMessage| {
        let scaled = u128::from(m.length.as_nanos()) * 1_000_000;
        scaled.checked_div(u128::from(m.period.as_nanos()))
    };
    let sum: u128 = messages
        .iter()
        .map(|m| of(m).unwrap_or(u128::MAX >> 16))
        .sum();
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// The longest frame with this identifier and so many bytes of data, intermission included: the
/// most stuff bits that any data, with any CRC, can cause. `None` for a length that the format
/// does not have.
pub fn longest(
    id: CanId,
    fd: bool,
    bytes: usize,
    nominal_bit: Duration,
    fast_bit: Duration,
) -> Option<Duration> {
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
    // SOF, identifier, RTR and IDE or what stands in their places.
    let (arbitration, len) = match id {
        CanId::Standard(id) => (u64::from(id) << 2, 14),
        CanId::Extended(id) => {
            let (base, rest) = (u64::from(id >> 18), u64::from(id & 0x3_ffff));
            (base << 21 | 0b11 << 19 | rest << 1, 33)
        }
    };
    let free = 8 * bytes as u32;
    let mut stuffing = MostStuffing::after_recessive();
    if !fd {
        stuffing.known(arbitration, len);
        // r0, of an extended frame r1 before it.
        let reserved = if len == 33 { 2 } else { 1 };
        stuffing.known(dlc, reserved + 4);
        stuffing.free(free + 15);
        let bits = len + reserved + 4 + free + 15 + stuffing.most(true) + 10 + 3;
        return Some(nominal_bit * u64::from(bits));
    }
    // FDF, res, BRS.
    stuffing.known(arbitration << 3 | 0b101, len + 3);
    let nominal = len + 3 + stuffing.most(false) + 9 + 3;
    // A lone recessive BRS stands before ESI, which depends on the sender's state.
    let mut stuffing = MostStuffing::after_recessive();
    stuffing.free(1);
    stuffing.known(dlc, 4);
    stuffing.free(free);
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
        for i in (0..len).rev() {
            self.step(&[bits >> i & 1 == 1]);
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
    use crate::media::can::{CanBus, CanEvent, CanTiming};
    use crate::media::wire::{FrameBits, INTERMISSION, arbitration_key};
    use helio_bus::{CanFrame, Mailbox};
    use helio_units::Instant;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const BIT: Duration = Duration::from_micros(1);
    const FAST: Duration = Duration::from_nanos(200);

    fn message(key: u32, length_us: u64, period_us: u64) -> CanMessage {
        CanMessage {
            key,
            length: Duration::from_micros(length_us),
            period: Duration::from_micros(period_us),
            jitter: Duration::ZERO,
        }
    }

    #[test]
    fn the_example_that_refuted_the_first_analysis_comes_out_as_published() {
        // Davis et al. 2007, table 3: 125 kbit/s, 1 ms frames. The old analysis gave C 3.0 ms.
        let set = [
            message(0, 1_000, 2_500),
            message(1, 1_000, 3_500),
            message(2, 1_000, 3_500),
        ];
        let bit = Duration::from_micros(8);
        let bound = |m| worst_response(&set, m, bit, CanErrors::NONE).map(|d| d.as_micros());
        assert_eq!(set.each_ref().map(bound), [Ok(2_000), Ok(3_000), Ok(3_500)]);
    }

    #[test]
    fn too_much_has_no_bound_and_too_many_errors_neither() {
        let set = [message(0, 60, 100), message(1, 60, 100)];
        let bound = |m, errors| worst_response(&set, m, BIT, errors);
        assert_eq!(bound(&set[1], CanErrors::NONE), Err(Overload));
        assert_eq!(
            bound(&set[0], CanErrors::NONE),
            Ok(Duration::from_micros(120))
        );
        let storm = CanErrors {
            burst: 0,
            interval: Duration::from_micros(90),
        };
        assert_eq!(bound(&set[0], storm), Err(Overload));
        assert_eq!(load_ppm(&set), 1_200_000);
    }

    #[test]
    fn each_error_costs_the_longest_frame_and_31_bits() {
        let set = [message(0, 100, 10_000), message(1, 60, 10_000)];
        let errors = CanErrors {
            burst: 2,
            ..CanErrors::NONE
        };
        let bound = worst_response(&set, &set[1], BIT, errors);
        assert_eq!(bound, Ok(Duration::from_micros(160 + 2 * 131)));
    }

    /// A byte that, repeated, makes the longest FD frame of this identifier and length.
    fn longest_frame(id: CanId, bytes: usize) -> CanFrame {
        (0..=255)
            .filter_map(|byte| CanFrame::new(id, true, &vec![byte; bytes]))
            .max_by_key(|frame| FrameBits::of(frame, false).fast)
            .expect("256 candidates")
    }

    #[test]
    fn the_longest_fd_frame_exists() {
        for id in [CanId::Standard(0x123), CanId::Extended(0x1234_5678)] {
            for bytes in [1, 5, 8, 16, 20, 64] {
                let bits = FrameBits::of(&longest_frame(id, bytes), false);
                let time = bits.time(BIT, FAST) + BIT * INTERMISSION;
                assert_eq!(longest(id, true, bytes, BIT, FAST), Some(time), "{bytes}");
            }
        }
    }

    #[test]
    fn a_critical_instant_meets_the_bound_but_for_the_bit_of_a_head_start() {
        let timing = CanTiming::new(1_000_000, 5_000_000).expect("whole nanoseconds");
        let mut bus = CanBus::new(timing, 0);
        // The last one is the least urgent and, by its runs of five, the longest.
        let frames: Vec<CanFrame> = (0x100..0x113)
            .chain([0x7c0])
            .map(|id| longest_frame(CanId::Standard(id), 64))
            .collect();
        let messages: Vec<CanMessage> = frames
            .iter()
            .map(|frame| CanMessage {
                key: arbitration_key(frame.id),
                length: longest(frame.id, true, 64, BIT, FAST).expect("valid"),
                period: Duration::from_millis(10),
                jitter: Duration::ZERO,
            })
            .collect();
        let ports: Vec<_> = (0..20).map(|_| bus.attach().expect("room")).collect();
        let mut worst = vec![Duration::ZERO; 20];
        // It starts a bit before all others are queued.
        let queue = |bus: &mut CanBus, us, i: usize| {
            let now = Instant::from_micros(us);
            bus.submit(now, ports[i], Mailbox::Cyclic, &frames[i], us)
                .expect("free");
        };
        queue(&mut bus, 0, 19);
        bus.handle_timeout(Instant::ZERO, &mut |_| {});
        for i in 0..19 {
            queue(&mut bus, 1, i);
        }
        while let Some(due) = bus.poll_timeout() {
            bus.handle_timeout(due, &mut |event| {
                if let CanEvent::Delivered { from, meta, at, .. } = event {
                    worst[from.index()] = at.since(Instant::from_micros(meta)) + BIT * 4;
                }
            });
        }
        for (m, worst) in messages.iter().zip(worst).take(19) {
            let bound = worst_response(&messages, m, BIT, CanErrors::NONE);
            assert_eq!(bound, Ok(worst + BIT));
        }
    }

    fn any_id() -> impl Strategy<Value = CanId> {
        prop_oneof![
            (0..0x800u16).prop_map(CanId::Standard),
            (0..0x2000_0000u32).prop_map(CanId::Extended),
            prop::sample::select(&[0u16, 0x7ff, 0x0f0, 0x707][..]).prop_map(CanId::Standard),
        ]
    }

    /// What a test bus carries: identifier, FD, bytes, period (µs), first release (µs), jitter.
    type Plan = (u16, bool, usize, u64, u64, u64);

    fn any_plan() -> impl Strategy<Value = Plan> {
        let bytes = prop::sample::select(&[0usize, 1, 4, 8, 16, 64][..]);
        let period = prop::sample::select(&[500u64, 1_000, 2_000, 2_500, 5_000][..]);
        let first = prop_oneof![Just(100u64), 0..1_000u64];
        let jitter = prop_oneof![Just(0u64), 0..400u64];
        (0..0x700u16, any::<bool>(), bytes, period, first, jitter)
    }

    proptest! {
        #[test]
        fn no_frame_is_longer_than_the_longest(
            id in any_id(), fd: bool, data in vec(prop::sample::select(&[0u8, 0xff, 0x0f, 0xf8,
                0x83, 0x3e][..]), 0..=64), passive: bool,
        ) {
            let mut data = data;
            let frame = loop {
                match CanFrame::new(id, fd, &data) {
                    Some(frame) => break frame,
                    None => { data.pop(); }
                }
            };
            let time = FrameBits::of(&frame, passive).time(BIT, FAST) + BIT * INTERMISSION;
            let bound = longest(id, fd, data.len(), BIT, FAST).expect("that length exists");
            prop_assert!(time <= bound, "{time:?} {bound:?}");
            if !fd {
                // And never longer than the formula for any identifier.
                let s = data.len() as u64;
                let g = match id { CanId::Standard(_) => 34, CanId::Extended(_) => 54 };
                let davis = g + 8 * s + 13 + (g + 8 * s - 1) / 4;
                prop_assert!(bound <= BIT * davis);
            }
        }

        #[test]
        fn simulated_responses_never_exceed_the_bound(
            plans in vec(any_plan(), 2..12), seed: u64, burst in 0..3u32,
        ) {
            let timing = CanTiming::new(1_000_000, 5_000_000).expect("whole nanoseconds");
            let mut bus = CanBus::new(timing, seed);
            let mut messages = Vec::new();
            let mut releases: Vec<(u64, usize)> = Vec::new();
            let mut ports = Vec::new();
            let mut frames: Vec<CanFrame> = Vec::new();
            for (i, &(id, fd, bytes, period, first, jitter)) in plans.iter().enumerate() {
                // Identifiers of their own, in any order.
                let id = CanId::Standard(id & 0x7f0 | i as u16);
                let bytes = if fd { bytes } else { bytes.min(8) };
                frames.push(CanFrame::new(id, fd, &vec![0x0f; bytes]).expect("valid"));
                messages.push(CanMessage {
                    key: arbitration_key(id),
                    length: longest(id, fd, bytes, BIT, FAST).expect("valid"),
                    period: Duration::from_micros(period),
                    // Data bits leave the bus off its microsecond grid.
                    jitter: Duration::from_micros(jitter) + BIT,
                });
                ports.push(bus.attach().expect("room"));
                releases.extend((0..).map(|n| first + n * period).take_while(|&t| t < 20_000)
                    .map(|t| (t, i)));
            }
            let errors = CanErrors { burst, ..CanErrors::NONE };
            let bounds: Vec<_> = messages
                .iter()
                .map(|m| worst_response(&messages, m, BIT, errors))
                .collect();
            // Only one instance of a message fits a mailbox: the others must be gone by then.
            let in_time = |(bound, m): (&Result<Duration, Overload>, &CanMessage)| {
                bound.is_ok_and(|bound| bound <= m.period)
            };
            prop_assume!(bounds.iter().zip(&messages).all(in_time));
            // Queued as late as jitter allows, or at once, in turns.
            let mut queue: Vec<(u64, u64, usize)> = releases
                .iter()
                .map(|&(t, i)| (t + plans[i].5 * (t / plans[i].3 % 2), t, i))
                .collect();
            queue.sort_unstable();
            let mut worst = vec![Duration::ZERO; plans.len()];
            let mut drive = |bus: &mut CanBus, until: Instant| {
                while let Some(due) = bus.poll_timeout().filter(|&due| due < until) {
                    bus.handle_timeout(due, &mut |event| {
                        if let CanEvent::Delivered { from, meta, at, .. } = event {
                            let response = at.since(Instant::from_micros(meta)) + BIT * 4;
                            let worst = &mut worst[from.index()];
                            *worst = (*worst).max(response);
                        }
                    });
                }
            };
            for (k, (at, released, i)) in queue.into_iter().enumerate() {
                drive(&mut bus, Instant::from_micros(at));
                if k == 3 {
                    bus.corrupt_next(burst);
                }
                let now = Instant::from_micros(at);
                bus.submit(now, ports[i], Mailbox::Cyclic, &frames[i], released)
                    .expect("the last one is gone within its period");
            }
            drive(&mut bus, Instant::MAX);
            for (worst, bound) in worst.into_iter().zip(bounds) {
                let bound = bound.expect("assumed");
                prop_assert!(worst <= bound, "{:?} {:?}", worst, bound);
            }
        }
    }
}
