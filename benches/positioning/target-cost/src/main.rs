//! Runs fixes and tracker steps in single precision and prints what each costs.
//!
//! QEMU with `-icount shift=0` lets a nanosecond pass per instruction; SysTick counts 25 MHz, so
//! one tick is 40 instructions. Each piece runs often enough to make that fine.
#![no_std]
#![no_main]

use core::hint::black_box;
use cortex_m::peripheral::{Peripherals, SYST, syst::SystClkSource};
use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, hprintln};
use helio_positioning::{
    FaultModel, Options, RangeObs, Risk, Tracker, TrackerConfig, locate_2d, locate_3d,
    locate_robust_3d, protect_2d,
};
use helio_units::Instant;
use panic_halt as _;

const INSTRUCTIONS_PER_TICK: u32 = 40;
const ANCHORS: [[f32; 3]; 8] = [
    [0.0, 0.0, 2.8],
    [10.0, 0.0, 0.4],
    [10.0, 8.0, 2.9],
    [0.0, 8.0, 0.3],
    [5.0, 0.0, 1.5],
    [5.0, 8.0, 1.2],
    [0.0, 4.0, 2.7],
    [10.0, 4.0, 0.6],
];

/// Ranges from a tag that differs with `n`, errors of some centimetres.
fn ranges(n: u32) -> [RangeObs<f32>; 8] {
    let t = n as f32 * 0.37;
    let tag = [3.0 + t % 4.0, 2.0 + t % 3.5, 0.8 + t % 1.1];
    core::array::from_fn(|i| {
        let d: [f32; 3] = core::array::from_fn(|k| tag[k] - ANCHORS[i][k]);
        let square = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
        let mut root = square * 0.25 + 1.0;
        for _ in 0..12 {
            root = 0.5 * (root + square / root);
        }
        let noise = ((n * 7 + i as u32 * 13) % 17) as f32 / 100.0 - 0.08;
        RangeObs {
            anchor_m: ANCHORS[i],
            range_m: root + noise,
            sigma_m: 0.05,
        }
    })
}

fn cost(name: &str, times: u32, mut piece: impl FnMut(u32)) {
    let (mut total, mut most) = (0u64, 0);
    for n in 0..times {
        let before = SYST::get_current();
        piece(n);
        let ticks = before.wrapping_sub(SYST::get_current()) & 0x00ff_ffff;
        total += u64::from(ticks);
        most = most.max(ticks);
    }
    let mean = total * u64::from(INSTRUCTIONS_PER_TICK) / u64::from(times);
    hprintln!("{}: {} instructions, at most {}", name, mean, most * INSTRUCTIONS_PER_TICK);
}

#[entry]
fn main() -> ! {
    if let Some(mut p) = Peripherals::take() {
        p.SYST.set_clock_source(SystClkSource::Core);
        p.SYST.set_reload(0x00ff_ffff);
        p.SYST.clear_current();
        p.SYST.enable_counter();
    }
    let options = Options::default();
    cost("nothing", 200, |n| {
        black_box(ranges(n));
    });
    cost("6 anchors 3D with covariance", 200, |n| {
        let _ = black_box(locate_3d(&black_box(ranges(n))[..6], &options));
    });
    cost("6 anchors at a known height", 200, |n| {
        let _ = black_box(locate_2d(&black_box(ranges(n))[..6], 1.0, &options));
    });
    cost("8 anchors robust, none faulty", 200, |n| {
        let model = FaultModel::default();
        let _ = black_box(locate_robust_3d(&black_box(ranges(n)), &options, &model));
    });
    cost("8 anchors robust, two faulty", 50, |n| {
        let mut ranges = ranges(n);
        ranges[1].range_m += 1.5;
        ranges[6].range_m += 0.8;
        let model = FaultModel::default();
        let _ = black_box(locate_robust_3d(&black_box(ranges), &options, &model));
    });
    cost("8 anchors with protection level", 200, |n| {
        let risk = Risk::default();
        let _ = black_box(protect_2d(&black_box(ranges(n)), 1.0, &options, &risk));
    });
    let mut tracker = Tracker::<f32, 8>::new(TrackerConfig {
        bias_sigma_m: 0.1,
        ..TrackerConfig::default()
    });
    let still = ranges(3);
    let mut at = 0u32;
    let mut step = |tracker: &mut Tracker<f32, 8>| {
        at += 1;
        let i = at as usize % 8;
        let now = Instant::from_millis(10 * u64::from(at));
        black_box(tracker.handle_range(now, i as u16, still[i]));
    };
    for _ in 0..50 {
        step(&mut tracker);
    }
    cost("tracker, one range, eight bias states", 200, |_| step(&mut tracker));
    debug::exit(debug::EXIT_SUCCESS);
    loop {}
}
