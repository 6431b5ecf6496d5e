//! Master on Zephyr: feeds the core with what bus and clients say, sends what it answers.
//!
//! ```text
//! wake: driver or deadline --> each bus: Master::handle_* --> poll_serial or poll_can: each bus
//!   ^                      --> clients: handle_smp   --> poll_smp: answers of slaves
//!   '------------- wait_until(poll_timeout), watchdog fed ------------'
//! ```
//!
//! One thread, no heap, no decision: what may be decided is in `helio_master`.
#![no_std]
#![deny(unsafe_code)]

mod clients;
mod config;

use clients::Clients;
use helio_master::Master;
use helio_units::{Duration, Instant};
use static_cell::ConstStaticCell;
use zephyr::printkln;
use zephyr_shell::{BUSES, Buses, Errno, NAME_BYTES, Peripherals, WATCHDOG, now};

/// The core with as many seats and records as this image has memory for, and the buses of the devicetree.
pub type Core = Master<{ config::SEATS }, { config::RECORDS }, BUSES>;

/// Called by zephyr-lang-rust's `main`.
#[allow(
    unsafe_code,
    reason = "the symbol that zephyr-lang-rust calls, defined once"
)]
#[unsafe(no_mangle)]
extern "C" fn rust_main() {
    match start() {
        Ok(never) => match never {},
        Err(reason) => printkln!("heliograph master: {}", reason),
    }
}

fn start() -> Result<core::convert::Infallible, &'static str> {
    static CLIENTS: ConstStaticCell<Clients> = ConstStaticCell::new(Clients::new());
    let mut parts = Peripherals::take()
        .ok_or("started twice")?
        .map_err(|_| "an output of the heliograph,node does not start")?;
    let master = prepare(&mut parts)?;
    let clients = CLIENTS.try_take().ok_or("started twice")?;
    let buses = Buses::start(&mut parts)?;
    parts
        .northbound
        .start()
        .map_err(|_| "the northbound UART does not start")?;
    #[cfg(CONFIG_HELIO_NORTHBOUND_UDP)]
    if let Err(error) = parts.udp.start() {
        printkln!("heliograph master: no clients over UDP: {}", error);
    }
    if parts.watchdog.start(WATCHDOG).is_err() {
        printkln!("heliograph master: no watchdog on this board");
    }
    run(master, parts, buses, clients)
}

/// Not a part of [`start`], which never gives its stack back.
#[inline(never)]
fn prepare(parts: &mut Peripherals) -> Result<&'static mut Core, &'static str> {
    // With 32 seats 127 kB, laid out by the compiler. Built at run time it would be on the stack first.
    static MASTER: ConstStaticCell<Core> = ConstStaticCell::new(Core::vacant());
    let schedule = config::share(zephyr_shell::schedule());
    printkln!(
        "heliograph master: {} x {} seats, {}, cycle {} us",
        BUSES,
        schedule.seats,
        schedule.kind.name(),
        schedule.cycle.as_micros()
    );
    let master = MASTER.try_take().ok_or("started twice")?;
    match parts.store.start() {
        Ok(()) | Err(Errno::NO_DEVICE) => {}
        Err(error) => printkln!("heliograph master: nothing is kept over a reset: {}", error),
    }
    let mut name = [0; NAME_BYTES];
    master.start(&config::master(schedule, parts.store.name(&mut name)));
    master.set_session(zephyr_shell::session());
    let kept = parts.store.record();
    if !kept.is_empty()
        && let Err(error) = master.recall(kept)
    {
        printkln!("heliograph master: {}", error);
    }
    Ok(master)
}

fn run(master: &mut Core, mut parts: Peripherals, mut buses: Buses, clients: &mut Clients) -> ! {
    // A loop that sleeps longer than this would look hung to the watchdog.
    let longest = Duration::from_nanos(WATCHDOG.as_nanos() / 4);
    let mut told = 0;
    loop {
        hear(&mut buses, &mut parts, master);
        pass_time(master);
        // All have been heard: a trip on one goes out on the others now.
        transmit(&mut buses, &mut parts, master);
        clients.serve(&mut parts, master);
        transmit(&mut buses, &mut parts, master);
        store(master, &mut parts);
        let members = (1..=127)
            .filter_map(helio_units::NodeId::new)
            .filter(|n| master.trunk().member(*n).is_some())
            .count();
        if told != members {
            told = members;
            printkln!("heliograph master: {} members", members);
        }
        parts.watchdog.feed();
        let due = master.poll_timeout().unwrap_or(Instant::MAX);
        buses.wait_until(due.min(now() + longest));
    }
}

// Like `transmit` not parts of `run`, whose stack lies under everything.
#[inline(never)]
fn hear(buses: &mut Buses, parts: &mut Peripherals, master: &mut Core) {
    for bus in 0..BUSES {
        buses.receive(bus, parts, &mut master.on(bus));
    }
}

#[inline(never)]
fn pass_time(master: &mut Core) {
    master.handle_timeout(now());
}

fn transmit(buses: &mut Buses, parts: &mut Peripherals, master: &mut Core) {
    for bus in 0..BUSES {
        buses.transmit(bus, parts, &mut master.on(bus));
    }
}

/// What is known of the cells goes to flash when the core says so.
fn store(master: &mut Core, parts: &mut Peripherals) {
    let failed = parts.store.failed()
        || master.poll_store(now()) && {
            let save = parts.store.save(|to| master.store(to));
            // Without flash for it there is nothing to complain of.
            !matches!(save, Ok(()) | Err(Errno::NO_DEVICE))
        };
    if failed {
        printkln!("heliograph master: what it knows of the cells could not be kept");
        master.handle_not_stored();
    }
}
