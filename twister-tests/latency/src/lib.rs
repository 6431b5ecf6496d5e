//! Counts the instructions of a slave from a sample to its gate's pin, in QEMU with `-icount`.
//!
//! ```text
//! join a master's link in memory --> gate on --> [ handle_sample --> poll_output: Gate(false) --> pin ]
//!                                                  counted, for each way in which a full group can trip
//! ```
//!
//! With `-icount shift=6` each instruction advances QEMU's clock by 64 ns, whatever the host does. The
//! reading of the clock itself is part of the count.
#![no_std]
#![deny(unsafe_code)]

use helio_battery::Sample;
use helio_battery::protection::Limits;
use helio_bus::{BusKind, Capabilities, Command, Mailbox, MasterLink, Order, Schedule, Station};
use helio_slave::{Slave, SlaveConfig, SlaveOutput};
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts, Uid};
use static_cell::StaticCell;
use zephyr::printkln;
use zephyr_shell::{Peripherals, now};

/// Of QEMU's clock, by CONFIG_QEMU_ICOUNT_SHIFT.
const NS_PER_INSTRUCTION: u64 = 64;
/// 1 ms at 48 MHz.
const ALLOWED: u64 = 48_000;
const CELLS: usize = 18;
const TEMPS: usize = 8;
const STEP: Duration = Duration::from_millis(1);
const FRAME: Duration = Duration::from_micros(130);
const MAILBOXES: [Mailbox; 3] = [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management];

/// What happens to a healthy group.
#[derive(Clone, Copy, Debug)]
enum Fault {
    OverVoltage(usize),
    UnderVoltage(usize),
    AllOver,
    HalfOverHalfUnder,
    Hot(usize),
    AllHot,
    Cold(usize),
    Charging,
    Discharging,
    LostWire(usize),
    LostAll,
    Everything,
}

fn healthy() -> Sample {
    let mut sample = Sample {
        cell_count: CELLS as u8,
        temp_count: TEMPS as u8,
        ..Sample::EMPTY
    };
    sample.cells = [Some(Millivolts(3_700)); CELLS];
    sample.temps = [Some(DeciCelsius(250)); TEMPS];
    sample.current = Some(Milliamps(1_000));
    sample
}

fn with(fault: Fault) -> Sample {
    const HIGH: Option<Millivolts> = Some(Millivolts(4_600));
    const LOW: Option<Millivolts> = Some(Millivolts(1_500));
    const HOT: Option<DeciCelsius> = Some(DeciCelsius(950));
    let mut s = healthy();
    match fault {
        Fault::OverVoltage(n) => s.cells[n % CELLS] = HIGH,
        Fault::UnderVoltage(n) => s.cells[n % CELLS] = LOW,
        Fault::AllOver => s.cells = [HIGH; CELLS],
        Fault::HalfOverHalfUnder => {
            s.cells = core::array::from_fn(|n| if n % 2 == 0 { HIGH } else { LOW });
        }
        Fault::Hot(n) => s.temps[n % TEMPS] = HOT,
        Fault::AllHot => s.temps = [HOT; TEMPS],
        Fault::Cold(n) => s.temps[n % TEMPS] = Some(DeciCelsius(-450)),
        Fault::Charging => s.current = Some(Milliamps(-500_000)),
        Fault::Discharging => s.current = Some(Milliamps(500_000)),
        Fault::LostWire(n) => s.cells[n % CELLS] = None,
        Fault::LostAll => {
            s.cells = [None; CELLS];
            s.temps = [None; TEMPS];
            s.current = None;
        }
        Fault::Everything => {
            s.cells = core::array::from_fn(|n| [HIGH, LOW, None][n % 3]);
            s.temps = core::array::from_fn(|n| [HOT, Some(DeciCelsius(-450))][n % 2]);
            s.current = Some(Milliamps(-500_000));
        }
    }
    s
}

/// Slave and master on a bus without length, one step of time after another.
struct Bench<'a> {
    slave: &'a mut Slave,
    master: MasterLink,
    parts: &'a mut Peripherals,
    now: Instant,
    sample: Sample,
    gate: bool,
}

impl Bench<'_> {
    fn step(&mut self) {
        self.now += STEP;
        let at = self.now;
        self.slave.handle_timeout(at);
        while let Some(output) = self.slave.poll_output() {
            match output {
                SlaveOutput::SampleNow => self.slave.handle_sample(at, &self.sample),
                SlaveOutput::Gate(on) => {
                    self.gate = on;
                    let _ = self.parts.gate.set(on);
                }
                _ => {}
            }
        }
        self.master.handle_timeout(at);
        for mailbox in MAILBOXES {
            if let Some(out) = self.master.poll_can(at, mailbox) {
                let end = at + FRAME;
                self.master.handle_sent(end, mailbox);
                if Station::accepts(self.slave, out.frame.id) {
                    self.slave.handle_can(end, &out.frame);
                }
            }
            if let Some(out) = self.slave.poll_can(at, mailbox) {
                let end = at + FRAME;
                self.slave.handle_sent(end, mailbox);
                self.master.handle_can(end, &out.frame);
            }
        }
        while self.master.poll_event().is_some() {}
    }

    /// The gate on, or a reason why not.
    fn start(&mut self) -> Result<(), &'static str> {
        for _ in 0..2_000 {
            self.step();
            if self.slave.node().is_some() {
                break;
            }
        }
        self.slave.node().ok_or("the slave did not join")?;
        for _ in 0..100 {
            self.step();
        }
        let order = Order::Gate(true);
        let told = self.master.command(Command { to: None, order });
        told.map_err(|_| "the master takes no command")?;
        for _ in 0..500 {
            self.step();
            if self.gate {
                return Ok(());
            }
        }
        Err("the gate did not close")
    }

    /// Instructions of the sample that opens the gate, and how many samples it took until then.
    fn trip(&mut self, fault: Fault) -> Option<(u64, u32)> {
        let sample = with(fault);
        for count in 1..=600 {
            // Its own samples come from here, too, so that none is between.
            self.sample = sample;
            self.now += Duration::from_millis(10);
            let begin = now();
            self.slave.handle_sample(self.now, &sample);
            let mut opened = None;
            while let Some(output) = self.slave.poll_output() {
                if output == SlaveOutput::Gate(false) {
                    let _ = self.parts.gate.set(false);
                    opened = Some(now());
                    break;
                }
            }
            if let Some(end) = opened {
                let ns = end.as_nanos().saturating_sub(begin.as_nanos());
                return Some((ns.div_ceil(NS_PER_INSTRUCTION), count));
            }
        }
        None
    }
}

fn faults() -> impl Iterator<Item = Fault> {
    let cells = (0..CELLS).flat_map(|n| {
        [
            Fault::OverVoltage(n),
            Fault::UnderVoltage(n),
            Fault::LostWire(n),
        ]
    });
    let temps = (0..TEMPS).flat_map(|n| [Fault::Hot(n), Fault::Cold(n)]);
    let whole = [
        Fault::AllOver,
        Fault::HalfOverHalfUnder,
        Fault::AllHot,
        Fault::Charging,
        Fault::Discharging,
        Fault::LostAll,
        Fault::Everything,
    ];
    cells.chain(temps).chain(whole)
}

fn measure() -> Result<(), &'static str> {
    static SLAVE: StaticCell<Slave> = StaticCell::new();
    let parts = Peripherals::take().ok_or("started twice")?;
    let mut parts = parts.map_err(|_| "an output does not start")?;
    let capabilities = Capabilities {
        cells: CELLS as u8,
        temps: TEMPS as u8,
        anchors: 0,
    };
    let uid = Uid::new(0x1001).ok_or("no id")?;
    let schedule = Schedule::for_bus(BusKind::Can1M);
    let fresh = || {
        Slave::new(
            SlaveConfig::new(uid, capabilities, Limits::nmc(5_000)),
            schedule,
        )
    };
    let slave = SLAVE.init_with(fresh);
    // Twice: the first reading warms nothing up in an emulator, but it costs the same.
    let begin = now();
    let end = now();
    let clock = end.as_nanos().saturating_sub(begin.as_nanos());
    printkln!(
        "latency: reading the clock takes {} instructions of each count",
        clock.div_ceil(NS_PER_INSTRUCTION)
    );
    let (mut worst, mut slowest, mut opened) = (0, Fault::AllOver, 0);
    for fault in faults() {
        *slave = fresh();
        let mut bench = Bench {
            slave: &mut *slave,
            master: MasterLink::new(schedule),
            parts: &mut parts,
            now: Instant::from_millis(1),
            sample: healthy(),
            gate: false,
        };
        bench.start()?;
        match bench.trip(fault) {
            Some((count, samples)) => {
                opened += 1;
                printkln!(
                    "latency: {} instructions, sample {}: {:?}",
                    count,
                    samples,
                    fault
                );
                if count > worst {
                    (worst, slowest) = (count, fault);
                }
            }
            None => printkln!("latency: no trip: {:?}", fault),
        }
    }
    let verdict = if worst <= ALLOWED && opened > 0 {
        "within"
    } else {
        "more than"
    };
    printkln!(
        "latency: worst {} instructions ({:?}, {} ways to trip), {} {}",
        worst,
        slowest,
        opened,
        verdict,
        ALLOWED
    );
    Ok(())
}

/// Called by zephyr-lang-rust's `main`.
#[allow(
    unsafe_code,
    reason = "the symbol that zephyr-lang-rust calls, defined once"
)]
#[unsafe(no_mangle)]
extern "C" fn rust_main() {
    if let Err(reason) = measure() {
        printkln!("latency: {}", reason);
    }
}
