//! Slave on Zephyr: feeds the core with what the drivers have, carries out what it decides.
//!
//! ```text
//! wake: driver or deadline --> what was heard --> Slave::handle_* --> poll_output: gate, balance, sample, light
//!   ^                                                             --> poll_request: images, settings, reset
//!   |                                                             --> poll_serial or poll_can: the bus
//!   '------------- wait_until(poll_timeout), watchdog fed ------------'
//! ```
//!
//! One thread, no heap, no decision: what may be decided is in `helio_slave`.
#![no_std]
#![deny(unsafe_code)]

mod cells;
mod config;

use cells::Monitor;
use helio_bus::Ranges;
use helio_slave::{Slave, SlaveOutput};
use helio_units::{Duration, Instant};
use static_cell::ConstStaticCell;
use zephyr::printkln;
use zephyr_shell::{BUSES, Buses, Errno, Peripherals, WATCHDOG, now};

const _: () = assert!(
    BUSES == 1,
    "a slave has one bus: let `bus` of the heliograph,node name one"
);

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
    let mut parts = Peripherals::take().ok_or("started twice")?.map_err(
        |_| "an output of the heliograph,node does not start; check its GPIO or PWM controller",
    )?;
    let (slave, monitor) = prepare(&mut parts)?;
    let bus = Buses::start(&mut parts)?;
    if parts.watchdog.start(WATCHDOG).is_err() {
        printkln!("heliograph slave: no watchdog on this board");
    }
    run(slave, parts, bus, monitor)
}

/// Not a part of [`start`], which never gives its stack back: the configuration is 3 kB.
#[inline(never)]
fn prepare(parts: &mut Peripherals) -> Result<(&'static mut Slave, Monitor), &'static str> {
    // 19 kB, laid out by the compiler. Built at run time it would be on the stack first.
    static SLAVE: ConstStaticCell<Slave> = ConstStaticCell::new(Slave::vacant());
    let uid = zephyr_shell::uid().ok_or(
        "no unique id: set CONFIG_HELIO_UID or CONFIG_HELIO_UID_ADDRESS, on native_sim --uid=...",
    )?;
    let slave = SLAVE.try_take().ok_or("started twice")?;
    let mut config = config::slave(uid);
    config::limit_silence(&mut config.limits);
    let schedule = zephyr_shell::schedule();
    printkln!(
        "heliograph slave {:016x}: {} cells, {} temperatures, {} anchors, {}, cycle {} us",
        config.uid.get(),
        config.capabilities.cells,
        config.capabilities.temps,
        config.capabilities.anchors,
        schedule.kind.name(),
        schedule.cycle.as_micros()
    );
    let monitor = Monitor::new(&config, parts)?;
    match parts.store.start() {
        Ok(()) => {
            config.stores = true;
            if let Err(error) = slave.recall(&config, parts.store.record()) {
                printkln!("heliograph slave: {}", error);
            }
        }
        Err(Errno::NO_DEVICE) => {}
        Err(error) => printkln!("heliograph slave: nothing is kept over a reset: {}", error),
    }
    slave.start(&config, schedule);
    Ok((slave, monitor))
}

fn run(slave: &mut Slave, mut parts: Peripherals, mut bus: Buses, mut monitor: Monitor) -> ! {
    // A loop that sleeps longer than this would look hung to the watchdog.
    let longest = Duration::from_nanos(WATCHDOG.as_nanos() / 4);
    let mut told = None;
    loop {
        bus.receive(0, &mut parts, slave);
        slave.handle_timeout(now());
        while let Some(output) = slave.poll_output() {
            carry_out(slave, &mut parts, &mut monitor, output);
        }
        if let Some(request) = slave.poll_request() {
            // While the one before is at work it is dropped, and the client asks again.
            let _ = parts.management.request(request);
        }
        (parts.management).answer(|answer| slave.handle_answer(answer));
        store(slave, &mut parts);
        bus.transmit(0, &mut parts, slave);
        let seen = (slave.node(), slave.state());
        if told != Some(seen) {
            told = Some(seen);
            match seen.0 {
                Some(node) => say(format_args!("seat {}, {:?}", node.get(), seen.1)),
                None => say(format_args!("no seat, {:?}", seen.1)),
            }
        }
        parts.watchdog.feed();
        let due = slave.poll_timeout().unwrap_or(Instant::MAX);
        bus.wait_until(due.min(now() + longest));
    }
}

/// What protection remembers goes to flash when the core says so.
fn store(slave: &mut Slave, parts: &mut Peripherals) {
    let failed = parts.store.failed()
        || slave.poll_store(now()) && {
            let known = slave.protection().diagnostics();
            parts.store.save(|to| known.store(to)).is_err()
        };
    if failed {
        printkln!("heliograph slave: what it remembers could not be kept");
        slave.handle_not_stored(now());
    }
}

/// A line on the console, with the time since boot.
fn say(what: core::fmt::Arguments<'_>) {
    printkln!("heliograph slave: {} ms: {}", now().as_millis(), what);
}

fn carry_out(
    slave: &mut Slave,
    parts: &mut Peripherals,
    monitor: &mut Monitor,
    output: SlaveOutput,
) {
    let failed = match output {
        SlaveOutput::Gate(on) => {
            // Switched first, told after.
            let failed = parts.gate.set(on).is_err();
            say(format_args!("gate {}", if on { "on" } else { "off" }));
            failed
        }
        SlaveOutput::Balance(mask) => monitor.balance(parts, mask).is_err(),
        SlaveOutput::SampleNow => {
            // What cannot be read is missing in the sample, and protection knows what that means.
            let sample = monitor.sample();
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
