//! What a sample costs on this machine, and how large a slave is:
//! `cargo run --release -p helio-slave --example bench`.

use helio_battery::Sample;
use helio_battery::protection::{Limits, Protection};
use helio_bus::{BusKind, Capabilities, Schedule, SlaveLink};
use helio_slave::{Slave, SlaveConfig, SlaveOutput};
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts, Uid};
use std::hint::black_box;
use std::mem::size_of;

/// Short enough that most batches run undisturbed; the quickest one counts.
const BATCH: u32 = 10_000;
const BATCHES: u32 = 200;

fn main() {
    for cells in [16, 18] {
        let ns = per_sample(cells, |i| (3_700 + i % 7) as u16);
        println!("handle_sample, {cells} cells, healthy: {ns:.0} ns");
    }
    let ns = per_sample(16, |i| (4_220 + i % 7) as u16);
    println!("handle_sample, 16 cells, two warnings active: {ns:.0} ns");
    println!(
        "Slave {} bytes (link {}, protection {})",
        size_of::<Slave>(),
        size_of::<SlaveLink>(),
        size_of::<Protection>()
    );
}

/// Timer, sample and outputs of one period, on the average of the quickest batch.
fn per_sample(cells: u8, mv: impl Fn(u32) -> u16) -> f64 {
    let capabilities = Capabilities {
        cells,
        temps: 4,
        anchors: 0,
    };
    let uid = Uid::new(1).expect("1 is neither 0 nor all ones");
    let config = SlaveConfig::new(uid, capabilities, Limits::nmc(5_000));
    let mut slave = Slave::new(config, Schedule::for_bus(BusKind::Can1M));
    let mut sample = Sample::EMPTY;
    sample.cell_count = cells;
    sample.temp_count = 4;
    sample.temps[..4].fill(Some(DeciCelsius(250)));
    let mut now = Instant::ZERO;
    let mut best = f64::MAX;
    for _ in 0..BATCHES {
        let mut asked = 0;
        let start = std::time::Instant::now();
        for i in 0..BATCH {
            for cell in &mut sample.cells[..usize::from(cells)] {
                *cell = Some(Millivolts(mv(i)));
            }
            sample.current = Some(Milliamps((i % 1_000) as i32));
            slave.handle_timeout(now);
            slave.handle_sample(now, black_box(&sample));
            while let Some(output) = slave.poll_output() {
                asked += u32::from(black_box(output) == SlaveOutput::SampleNow);
            }
            black_box(slave.poll_timeout());
            now += Duration::from_millis(10);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
        assert_eq!(asked, BATCH, "the grid has lost samples");
    }
    best
}
