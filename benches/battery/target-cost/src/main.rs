//! Follows 512 cells in 32 groups of 16 and prints what one update of the whole pack costs.
//!
//! QEMU with `-icount shift=0` lets a nanosecond pass per instruction; SysTick counts 25 MHz, so one tick is 40 instructions.
#![no_std]
#![no_main]

use core::hint::black_box;
use core::mem::size_of;
use cortex_m::peripheral::{Peripherals, SYST, syst::SystClkSource};
use cortex_m_rt::entry;
use cortex_m_semihosting::{debug, hprintln};
use helio_battery::defaults::NMC_5000MAH;
use helio_battery::{GroupFilter, HealthFilter, Moment, SocFilter, SocInit};
use helio_units::{Instant, Millivolts};
use panic_halt as _;

const INSTRUCTIONS_PER_TICK: u32 = 40;
const GROUPS: usize = 32;
const CELLS: usize = 16;
/// Updates until all are past their start, and those counted.
const WARM: u32 = 100;
const COUNTED: u32 = 100;
/// What a Cortex-M7 at 480 MHz could do in the 100 ms between updates, one instruction a cycle.
const BUDGET: u32 = 48_000_000;

fn cells(round: u32, group: u32) -> [Option<Millivolts>; CELLS] {
    core::array::from_fn(|c| {
        let mv = 3_700 + (round / 8 + group + 3 * c as u32) % 12;
        Some(Millivolts(mv as u16))
    })
}

#[entry]
fn main() -> ! {
    if let Some(mut p) = Peripherals::take() {
        p.SYST.set_clock_source(SystClkSource::Core);
        p.SYST.set_reload(0x00ff_ffff);
        p.SYST.clear_current();
        p.SYST.enable_counter();
    }
    let params = NMC_5000MAH;
    let mut groups = [GroupFilter::new(SocInit::Voltage); GROUPS];
    let mut health = [HealthFilter::NEW; GROUPS];
    let (mut total, mut most) = (0u64, 0u32);
    for round in 0..WARM + COUNTED {
        let moment = Moment {
            now: Instant::from_millis(100 * u64::from(round)),
            ma: [7_500.0, 2_000.0, -3_000.0, 0.0][(round / 10 % 4) as usize],
            temp_c: 24.3,
            bled: 0,
        };
        let mut ticks = 0;
        for (g, (group, health)) in groups.iter_mut().zip(&mut health).enumerate() {
            let mv = cells(round, g as u32);
            // A group at a time, as the counter has 24 bits.
            let before = SYST::get_current();
            let reading = group.handle(black_box(&params), &moment, CELLS, 0, black_box(&mv));
            if let Some(reading) = reading {
                health.take(&params, moment.now, reading, group.mean(), &params);
            }
            ticks += before.wrapping_sub(SYST::get_current()) & 0x00ff_ffff;
        }
        if round >= WARM {
            total += u64::from(ticks);
            most = most.max(ticks);
        }
    }
    black_box((groups[3].soc(5), &health));
    let mean = total * u64::from(INSTRUCTIONS_PER_TICK) / u64::from(COUNTED);
    let most = most * INSTRUCTIONS_PER_TICK;
    hprintln!("512 cells, one update: {} instructions, at most {}", mean, most);
    hprintln!(
        "at 10 Hz and 480 MHz: {}.{:02} % of the processor at one instruction a cycle",
        most / (BUDGET / 100),
        most % (BUDGET / 100) * 100 / (BUDGET / 100)
    );
    hprintln!(
        "memory: {} octets a group, {} of them the mean's filter; health {}",
        size_of::<GroupFilter>(),
        size_of::<SocFilter>(),
        size_of::<HealthFilter>()
    );
    debug::exit(debug::EXIT_SUCCESS);
    loop {}
}
