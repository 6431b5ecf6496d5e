//! What the media cost: prints nanoseconds per frame. Run with `--release`.

use helio_bus::{BusKind, CanFrame, CanId, MAX_SERIAL, Mailbox, SerialSignal};
use helio_sim::media::can::{CanBus, CanEvent, CanTiming};
use helio_sim::media::rs485::{Line, LineEvent, LineTiming};
use helio_units::{Duration, Instant};

/// A master and 32 slaves, each with a frame pending whenever the last one is out: the bus is
/// always full and every arbitration has 33 candidates.
fn saturated_can(name: &str, nominal: u32, data: u32, fd: bool, len: usize, loss: f64) {
    let timing = CanTiming::new(nominal, data).expect("rates divide a second");
    let mut bus = CanBus::new(timing, 1);
    let ports: Vec<_> = (0..33).filter_map(|_| bus.attach()).collect();
    for &port in &ports {
        bus.set_receive_loss(port, loss);
    }
    let payload: Vec<u8> = (0..len as u8).map(|i| i.wrapping_mul(37)).collect();
    let frame = |n: u64, port: usize| {
        let mut data = payload.clone();
        data[0] = n as u8;
        let id = 0x100 + (n as u16 * 7 % 16) * 64 + port as u16;
        CanFrame::new(CanId::Standard(id), fd, &data).expect("valid")
    };
    for (i, &port) in ports.iter().enumerate() {
        bus.submit(Instant::ZERO, port, Mailbox::Cyclic, &frame(0, i), 0)
            .expect("free");
    }
    let (mut frames, mut delivered) = (0u64, 0u64);
    let begin = std::time::Instant::now();
    let mut done = Vec::new();
    let mut now = Instant::ZERO;
    while frames < 2_000_000 {
        let Some(due) = bus.poll_timeout() else { break };
        now = due;
        bus.handle_timeout(due, &mut |event| match event {
            CanEvent::Delivered { receivers, .. } => delivered += receivers.len() as u64,
            CanEvent::Sent { port, .. } => done.push(port),
            _ => {}
        });
        for port in done.drain(..) {
            frames += 1;
            bus.submit(
                now,
                port,
                Mailbox::Cyclic,
                &frame(frames, port.index()),
                frames,
            )
            .expect("free");
        }
    }
    let ns = begin.elapsed().as_nanos() as f64 / frames as f64;
    let load = bus.stats(now).busy.as_nanos() as f64 / now.as_nanos() as f64;
    println!(
        "{name:<28} {ns:7.0} ns/frame, {:5.1} % load, {:.1} virtual s, {:.1} receivers/frame",
        load * 100.0,
        now.as_nanos() as f64 * 1e-9,
        delivered as f64 / frames as f64,
    );
}

/// 33 slots of 48 characters each, back to back.
fn full_rs485() {
    let timing = LineTiming::of(BusKind::Rs485At4M).expect("a serial bus");
    let mut line = Line::new(timing, 1);
    let ports: Vec<_> = (0..33).filter_map(|_| line.attach()).collect();
    let signal = SerialSignal::Bytes {
        buffer: [0x5a; MAX_SERIAL],
        len: 48,
    };
    let (runs, slot) = (300_000, Duration::from_micros(121));
    let (mut received, mut now) = (0, Instant::ZERO);
    let begin = std::time::Instant::now();
    for i in 0..runs {
        line.transmit(ports[i % ports.len()], now, &signal, 0)
            .expect("its last slot is over");
        now += slot;
        while let Some(due) = line.poll_timeout().filter(|&due| due < now) {
            line.handle_timeout(due, &mut |event| {
                if let LineEvent::Bytes { damaged: 0, .. } = event {
                    received += 1;
                }
            });
        }
    }
    let ns = begin.elapsed().as_nanos() as f64 / runs as f64;
    println!(
        "{:<28} {ns:7.0} ns/run, {received} of {runs} runs whole",
        "rs485-4m, 48 bytes"
    );
}

fn main() {
    full_rs485();
    saturated_can("can-1m, 8 bytes", 1_000_000, 1_000_000, false, 8, 0.0);
    saturated_can(
        "can-1m, 8 bytes, loss 1e-3",
        1_000_000,
        1_000_000,
        false,
        8,
        1e-3,
    );
    saturated_can("canfd 1M/5M, 48 bytes", 1_000_000, 5_000_000, true, 48, 0.0);
}
