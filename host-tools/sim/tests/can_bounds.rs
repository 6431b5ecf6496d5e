//! The arithmetic of `helio_bus::analysis::can` against the bit-exact bus: no frame is longer than
//! the longest, no response later than its bound, and a critical instant meets it.

use helio_bus::analysis::can::{CanErrors, Overload, Shape, Stream, Wire, longest, worst_response};
use helio_bus::{CanFrame, CanId, Mailbox};
use helio_sim::media::can::{CanBus, CanEvent, CanTiming};
use helio_sim::media::wire::{FrameBits, INTERMISSION, arbitration_key};
use helio_units::{Duration, Instant};
use proptest::collection::vec;
use proptest::prelude::*;

const BIT: Duration = Duration::from_micros(1);
const FAST: Duration = Duration::from_nanos(200);

fn wire(errors: CanErrors) -> Wire {
    Wire {
        bit: BIT,
        background: Duration::ZERO,
        errors,
        horizon: Duration::from_secs(10),
    }
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
            assert_eq!(
                longest(&Shape::any(id, true, bytes), BIT, FAST),
                Some(time),
                "{bytes}"
            );
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
    let messages: Vec<Stream> = frames
        .iter()
        .map(|frame| Stream {
            key: arbitration_key(frame.id),
            count: 1,
            others: Duration::ZERO,
            early: Duration::ZERO,
            missed: 0,
            length: longest(&Shape::any(frame.id, true, 64), BIT, FAST).expect("valid"),
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
        let bound = worst_response(&messages, m, &wire(CanErrors::NONE));
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
        let bound = longest(&Shape::any(id, fd, data.len()), BIT, FAST).expect("that length exists");
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
            messages.push(Stream {
                key: arbitration_key(id),
                count: 1,
                others: Duration::ZERO,
            early: Duration::ZERO,
                missed: 0,
                length: longest(&Shape::any(id, fd, bytes), BIT, FAST).expect("valid"),
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
            .map(|m| worst_response(&messages, m, &wire(errors)))
            .collect();
        // Only one instance of a message fits a mailbox: the others must be gone by then.
        let in_time = |(bound, m): (&Result<Duration, Overload>, &Stream)| {
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
