//! Slave on Zephyr: feeds the core with what the drivers have, carries out what it decides.
//!
//! ```text
//! wake: driver or deadline --> what was heard --> Slave::handle_* --> poll_output: gate, balance, sample, light
//!   ^                                                             --> poll_serial or poll_can: the bus
//!   '------------- wait_until(poll_timeout), watchdog fed ------------'
//! ```
//!
//! One thread, no heap, no decision: what may be decided is in `helio_slave`.
#![no_std]
#![deny(unsafe_code)]

mod bus;
mod cells;
mod config;

use bus::Bus;
use cells::Monitor;
use helio_bus::Ranges;
use helio_slave::{Slave, SlaveOutput};
use helio_units::{Duration, Instant};
use static_cell::StaticCell;
use zephyr::printkln;
use zephyr_shell::{Peripherals, now};

/// Called by zephyr-lang-rust's `main`.
#[allow(
    unsafe_code,
    reason = "the symbol that zephyr-lang-rust calls, defined once"
)]
#[unsafe(no_mangle)]
extern "C" fn rust_main() {
    match start() {
        Ok(never) => match never {},
        // The gate is off, and the watchdog, where it runs, tries again.
        Err(reason) => printkln!("heliograph slave: {}", reason),
    }
}

fn start() -> Result<core::convert::Infallible, &'static str> {
    static SLAVE: StaticCell<Slave> = StaticCell::new();
    let mut parts = Peripherals::take().ok_or("started twice")?.map_err(
        |_| "an output of the heliograph,node does not start; check its GPIO or PWM controller",
    )?;
    let config = config::slave()?;
    let schedule = config::schedule();
    printkln!(
        "heliograph slave {:016x}: {} cells, {} temperatures, {} anchors, {}, cycle {} us",
        config.uid.get(),
        config.capabilities.cells,
        config.capabilities.temps,
        config.capabilities.anchors,
        schedule.kind.name(),
        schedule.cycle.as_micros()
    );
    let monitor = Monitor::new(&config)?;
    let slave = SLAVE.init_with(|| Slave::new(config, schedule));
    let bus = Bus::start(&mut parts)?;
    if parts.watchdog.start(config::WATCHDOG).is_err() {
        printkln!("heliograph slave: no watchdog on this board");
    }
    run(slave, parts, bus, monitor)
}

fn run(slave: &mut Slave, mut parts: Peripherals, mut bus: Bus, mut monitor: Monitor) -> ! {
    // A loop that sleeps longer than this would look hung to the watchdog.
    let longest = Duration::from_nanos(config::WATCHDOG.as_nanos() / 4);
    let mut told = None;
    loop {
        bus.receive(&mut parts, slave);
        slave.handle_timeout(now());
        while let Some(output) = slave.poll_output() {
            carry_out(slave, &mut parts, &mut monitor, output);
        }
        bus.transmit(&mut parts, slave);
        let seen = (slave.node(), slave.state());
        if told != Some(seen) {
            told = Some(seen);
            match seen.0 {
                Some(node) => printkln!("heliograph slave: seat {}, {:?}", node.get(), seen.1),
                None => printkln!("heliograph slave: no seat, {:?}", seen.1),
            }
        }
        parts.watchdog.feed();
        let due = slave.poll_timeout().unwrap_or(Instant::MAX);
        bus.wait_until(due.min(now() + longest));
    }
}

fn carry_out(
    slave: &mut Slave,
    parts: &mut Peripherals,
    monitor: &mut Monitor,
    output: SlaveOutput,
) {
    let failed = match output {
        SlaveOutput::Gate(on) => parts.gate.set(on).is_err(),
        SlaveOutput::Balance(mask) => monitor.balance(parts, mask).is_err(),
        SlaveOutput::SampleNow => {
            // What cannot be read is missing in the sample, and protection knows what that means.
            let sample = monitor.sample(now());
            slave.handle_sample(now(), &sample);
            false
        }
        SlaveOutput::RangeNow(tag) => {
            // No receiver of light or radio is supported yet: in range of nothing.
            let range = [None; helio_bus::MAX_ANCHORS];
            slave.handle_ranges(now(), &Ranges { tag, range });
            false
        }
        SlaveOutput::Light(mask) => parts.luminaires.set(mask).is_err(),
        // No output of a board we support switches at the chip rate yet: lamps shine steadily.
        SlaveOutput::Identify(_) => false,
    };
    if failed {
        printkln!("heliograph slave: {:?} could not be carried out", output);
    }
}
