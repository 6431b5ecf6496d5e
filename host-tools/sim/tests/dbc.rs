//! What cantools makes of a simulated bus is what was on it: a log by python-can, decoded by the generated
//! DBC, value by value. Runs where `python3` (or what `HELIO_PYTHON` names) has the modules `can` and
//! `cantools`; says so and passes where it has not.

use std::process::Command;
use std::sync::{Arc, Mutex};

use helio_bus::{BusKind, CanFrame, CanId};
use helio_sim::World;
use helio_sim::dbc::{Layout, dbc, read};
use helio_sim::media::can::CanEvent;
use helio_sim::media::log::{CanLog, LogFormat};
use helio_sim::scenario::Scenario;

/// Prints identifier, name and values of every cyclic message.
const DECODE: &str = r"
import sys, can, cantools
db = cantools.database.load_file(sys.argv[1])
for m in can.LogReader(sys.argv[2]):
    if m.is_error_frame or m.is_extended_id:
        continue
    what = db.get_message_by_frame_id(m.arbitration_id)
    assert what.is_fd == m.is_fd, what
    values = what.decode(m.data, decode_choices=False, scaling=True)
    told = ' '.join(f'{k}={float(v):.4f}' for k, v in sorted(values.items()))
    print(f'{m.timestamp:.6f} {m.arbitration_id:x} {what.name} {told}')
";

const SCENARIO: &str = r#"
name = "dbc"
bus = "can-1m"
duration_s = 1.0
seed = 3

[pack]
slaves = 3
strings = 1
cells = 18
temps = 8

[hall]
anchors = 12
tags = 2

[[fault]]
at_s = 0.5
kind = "cell-over-voltage"
slave = 2
cell = 3
mv = 4400
"#;

#[test]
fn cantools_and_python_can_read_the_values_that_were_on_the_bus() {
    let python = std::env::var("HELIO_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python)
        .args(["-c", "import can, cantools"])
        .output();
    if !has.is_ok_and(|output| output.status.success()) {
        println!("not run: {python} has not both modules `can` and `cantools`");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("dbc.toml");
    std::fs::write(&path, SCENARIO).expect("the file can be written");
    for kind in [BusKind::Can1M, BusKind::CanFd] {
        let mut scenario = Scenario::load(&path).expect("a good scenario");
        scenario.set_bus(kind);
        let (_, slaves) = helio_sim::capabilities(&scenario)
            .expect("as above")
            .remove(0);
        let mut layouts = Layout::of_master();
        layouts.extend(Layout::of_slave(kind == BusKind::CanFd, slaves[0]));
        let dbc_path = dir.path().join("rack.dbc");
        let text = dbc(kind, &slaves).expect("CAN");
        std::fs::write(&dbc_path, text).expect("the file can be written");
        for (format, name) in [(LogFormat::Candump, "bus.log"), (LogFormat::Asc, "bus.asc")] {
            let log_path = dir.path().join(name);
            let file = std::fs::File::create(&log_path).expect("a new file");
            let log = CanLog::new(format, file).expect("the file can be written");
            let both = Arc::new(Mutex::new((Some(log), String::new())));
            let mut world = World::new(scenario.clone()).expect("as above");
            let (tap, layouts) = (Arc::clone(&both), layouts.clone());
            world.racks[0].tap_can(Box::new(move |bus, event| {
                let mut both = tap.lock().expect("one thread");
                let (log, told) = &mut *both;
                if let Some(log) = log {
                    log.record(bus, event).expect("the file can be written");
                }
                if let CanEvent::Delivered { frame, at, .. } = event {
                    *told += &line(&layouts, frame, at.as_micros());
                }
            }));
            world.run(|_| {});
            let mut both = both.lock().expect("one thread");
            let log = both.0.take().expect("once");
            log.finish().expect("the file can be written");
            let output = Command::new(&python)
                .args(["-c", DECODE])
                .args([&dbc_path, &log_path])
                .output()
                .expect("it ran before");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{kind:?} {name}: {errors}");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.lines().count() > 300, "{kind:?} {name}");
            for (found, expected) in text.lines().zip(both.1.lines()) {
                assert_eq!(found, expected, "{kind:?} {name}");
            }
            assert_eq!(text.lines().count(), both.1.lines().count());
            // Nothing that slaves say is missing: an alarm and a trip, too.
            assert!(
                text.contains(" Trip") && text.contains(" Alarm_2 "),
                "{kind:?}"
            );
        }
    }
}

/// As `DECODE` prints it.
fn line(layouts: &[Layout], frame: &CanFrame, us: u64) -> String {
    let CanId::Standard(id) = frame.id else {
        return String::new();
    };
    let head = format!("{:.6} {id:x}", us as f64 * 1e-6);
    let (class, node) = ((id >> 7) as u8, id & 0x7f);
    let Some(layout) = layouts.iter().find(|l| l.class == class) else {
        return format!("{head} Trip \n");
    };
    let name = match (class, node) {
        (2, _) => layout.name.clone(),
        (3, 0) => "OrderToAll".into(),
        _ => format!("{}_{node}", layout.name),
    };
    let values = layout.signals.iter();
    let mut values: Vec<String> = values
        .filter_map(|s| Some(format!("{}={:.4}", s.name, read(layout, s, frame.data())?)))
        .collect();
    values.sort_by(|a, b| a.split('=').next().cmp(&b.split('=').next()));
    format!("{head} {name} {}\n", values.join(" "))
}
