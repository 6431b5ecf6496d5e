//! Prints what the hot functions cost on this machine: `cargo run --release -p helio-battery --example speed`.

use helio_battery::defaults::NMC_5000MAH;
use helio_battery::power::{self, HORIZONS, PowerLimits};
use helio_battery::protection::{Limits, Protection};
use helio_battery::{CellModel, GroupFilter, Sample, SocFilter, SocInit};
use helio_units::{DeciCelsius, Duration, Instant, Milliamps, Millivolts};
use std::hint::black_box;

fn main() {
    let params = black_box(NMC_5000MAH);

    let mut cells = [CellModel::new(0.9); 512];
    time("cell model, one step of 10 ms", 4_000_000, |k| {
        let current = if k & 0x80000 == 0 { 5_000.0 } else { -4_000.0 };
        let cell = &mut cells[(k & 511) as usize];
        black_box(cell.step(&params, Duration::from_millis(10), current, 24.3));
    });

    let mut filters = [SocFilter::new(SocInit::Voltage); 512];
    time(
        "state of charge filter, one sample of 100 ms",
        4_000_000,
        |k| {
            let round = k / 512;
            let now = Instant::from_millis(round * 100);
            let filter = &mut filters[(k & 511) as usize];
            let mv = 3_700 + (round % 7) as u16;
            filter.update(
                &params,
                now,
                Milliamps(1_000 + (round % 100) as i32),
                Millivolts(mv),
                DeciCelsius(243),
            );
        },
    );
    black_box(filters[7].soc());

    let mut groups: Vec<_> = (0..32)
        .map(|_| Protection::new(Limits::nmc(5_000)))
        .collect();
    let mut sample = Sample {
        cell_count: 16,
        temp_count: 8,
        ..Sample::EMPTY
    };
    time(
        "protection, one healthy sample of 16 cells",
        4_000_000,
        |k| {
            let round = k / 32;
            for (n, cell) in sample.cells[..16].iter_mut().enumerate() {
                *cell = Some(Millivolts(3_700 + ((round + n as u64) & 7) as u16));
            }
            sample.temps = [Some(DeciCelsius(250)); 8];
            sample.current = Some(Milliamps((round % 4_000) as i32));
            groups[(k & 31) as usize].handle_sample(Instant::from_millis(round * 10), &sample);
        },
    );
    assert!(groups.iter().all(|g| !g.must_open()));
    time("of which making the sample", 4_000_000, |k| {
        let round = k / 32;
        for (n, cell) in sample.cells[..16].iter_mut().enumerate() {
            *cell = Some(Millivolts(3_700 + ((round + n as u64) & 7) as u16));
        }
        sample.temps = [Some(DeciCelsius(250)); 8];
        sample.current = Some(Milliamps((round % 4_000) as i32));
        black_box(&sample);
    });
    let mut filters: Vec<_> = (0..32)
        .map(|_| GroupFilter::new(SocInit::Voltage))
        .collect();
    time("group filter, one sample of 16 cells", 400_000, |k| {
        let round = k / 32;
        for (n, cell) in sample.cells[..16].iter_mut().enumerate() {
            *cell = Some(Millivolts(3_700 + ((round + n as u64) & 7) as u16));
        }
        sample.current = Some(Milliamps((round % 4_000) as i32));
        filters[(k & 31) as usize].update(&params, Instant::from_millis(round * 100), &sample);
    });
    let state = filters[3].state(&params, 3).expect("samples have come");
    let bounds = PowerLimits {
        min_mv: 2_800.0,
        max_mv: 4_200.0,
        discharge_ma: 50_000.0,
        charge_ma: 15_000.0,
        min_soc: 0.05,
        max_soc: 1.0,
    };
    time("state of power, one cell, one horizon", 400_000, |k| {
        black_box(power::limits(
            &params,
            black_box(&state),
            &bounds,
            HORIZONS[(k % 3) as usize],
        ));
    });
    println!("protection of one group: {} bytes", size_of::<Protection>());
    println!("filter of one cell: {} bytes", size_of::<SocFilter>());
    println!(
        "parameters of one cell type: {} bytes",
        size_of_val(&params)
    );
}

fn time(what: &str, times: u64, mut f: impl FnMut(u64)) {
    // Best of five, so that a neighbour on the machine does not count.
    let mut best = f64::MAX;
    for run in 0..5 {
        let start = std::time::Instant::now();
        for k in 0..times / 5 {
            f(run * (times / 5) + k);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / (times / 5) as f64);
    }
    println!("{what:<48} {best:8.1} ns");
}
