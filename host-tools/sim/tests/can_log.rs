//! A log that python-can reads says what was on the bus. Runs where `python3` (or what
//! `HELIO_PYTHON` names) has the module `can`; says so and passes where it has not.

use std::process::Command;

use helio_bus::{CanFrame, CanId, Mailbox};
use helio_sim::media::can::{CanBus, CanEvent, CanTiming};
use helio_sim::media::log::{CanLog, LogFormat};
use helio_units::Instant;

/// Prints each message as this test does.
const READ: &str = r"
import sys, can
for m in can.LogReader(sys.argv[1]):
    if m.is_error_frame:
        print(f'{m.timestamp:.6f} error')
    else:
        kind = ('x' if m.is_extended_id else '') + ('f' if m.is_fd else '')
        assert m.bitrate_switch == m.is_fd and not m.is_remote_frame
        print(f'{m.timestamp:.6f} {m.arbitration_id:x}{kind} {m.data.hex()}')
";

#[test]
fn python_can_reads_what_was_on_the_bus() {
    let python = std::env::var("HELIO_PYTHON").unwrap_or_else(|_| "python3".into());
    let has_can = Command::new(&python).args(["-c", "import can"]).output();
    if !has_can.is_ok_and(|output| output.status.success()) {
        println!("not run: {python} has no module `can`");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    for (format, name) in [(LogFormat::Candump, "bus.log"), (LogFormat::Asc, "bus.asc")] {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).expect("a new file");
        let mut log = CanLog::new(format, file).expect("the file can be written");
        let expected = run(|event| log.record(0, event).expect("the file can be written"));
        log.finish().expect("the file can be written");
        let output = Command::new(&python)
            .args(["-c", READ])
            .arg(&path)
            .output()
            .expect("it ran before");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text, expected, "{name}: {errors}");
    }
}

/// Some frames of every format, some destroyed; tells them as `READ` does.
fn run(mut see: impl FnMut(&CanEvent)) -> String {
    let timing = CanTiming::new(1_000_000, 5_000_000).expect("whole nanoseconds");
    let mut bus = CanBus::new(timing, 5);
    bus.set_corruption(0.2);
    let sender = bus.attach().expect("room");
    bus.attach().expect("room");
    let mut told = String::new();
    for i in 0..200u32 {
        let fd = i % 3 == 0;
        let id = match i % 2 {
            0 => CanId::Standard(i as u16 * 5),
            _ => CanId::Extended(i * 0x10_0001),
        };
        // python-can takes an FD frame without data in an ASC file for a remote frame.
        let len = [1, 8, 12, 20, 32, 48, 64][i as usize % 7];
        let len = if fd { len } else { i as usize % 9 };
        let frame = CanFrame::new(id, fd, &vec![i as u8; len]).expect("valid");
        let now = Instant::from_micros(u64::from(i) * 10_000);
        bus.submit(now, sender, Mailbox::Cyclic, &frame, 0)
            .expect("free");
        while let Some(due) = bus.poll_timeout() {
            bus.handle_timeout(due, &mut |event| {
                see(&event);
                let stamp = |at: Instant| format!("{:.6}", at.as_micros() as f64 * 1e-6);
                match event {
                    CanEvent::Error { at, .. } => told += &format!("{} error\n", stamp(at)),
                    CanEvent::Delivered { frame, at, .. } => {
                        let (id, kind) = match frame.id {
                            CanId::Standard(id) => (u32::from(id), ""),
                            CanId::Extended(id) => (id, "x"),
                        };
                        let fd = if frame.fd { "f" } else { "" };
                        let data: String =
                            frame.data().iter().map(|b| format!("{b:02x}")).collect();
                        told += &format!("{} {id:x}{kind}{fd} {data}\n", stamp(at));
                    }
                    _ => {}
                }
            });
        }
    }
    told
}
