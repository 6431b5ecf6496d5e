//! The worked examples of `docs/bus.md` are what the code says, byte for byte.

mod common;
use common::node;
use helio_bus::*;
use helio_units::*;

const DOC: &str = include_str!("../../docs/bus.md");

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    bytes.join(" ")
}

fn can(message: &Message, counter: u8, fd: bool) -> String {
    let frame = encode_can(message, counter, fd).expect("fits");
    let told = decode_can(&frame).expect("our own");
    assert_eq!((told.message, told.counter), (*message, counter));
    let CanId::Standard(id) = frame.id else {
        panic!("cyclic messages have short identifiers")
    };
    format!("    {id:03x}  {}\n", hex(frame.data()))
}

fn serial(message: &Message, counter: u8) -> String {
    let bytes = encode_serial(message, counter, 32).expect("RS485 says so");
    let told = decode_serial(&bytes, 32).expect("our own");
    assert_eq!((told.message, told.counter), (*message, counter));
    format!("    {}\n", hex(&bytes))
}

#[test]
fn the_examples_in_the_specification_are_what_is_on_the_wire() {
    let summary = Summary {
        state: SlaveState::Active,
        severity: Severity::Warn,
        gate_on: true,
        balancing: false,
        current: Some(Milliamps(-12_340)),
        min: Some(Millivolts(3_612)),
        max: Some(Millivolts(3_655)),
    };
    let sync = Sync {
        cycle: 200,
        tag: Some(TagId(7)),
        previous_us: 1_234_567,
    };
    let mut range = [None; MAX_ANCHORS];
    range[0] = Some(Millimetres(1_500));
    range[2] = Some(Millimetres(2_750));
    let ranges = Ranges {
        tag: TagId(7),
        range,
    };
    let mv = |mv| Some(Millivolts(mv));
    let cells = |cells: [u16; 2], last| Message::CellChunk {
        node: node(1),
        first: 4,
        cells: [mv(cells[0]), mv(cells[1]), None, mv(last)],
        temp: Some(DeciCelsius(310)),
    };
    let order = Command {
        to: Some(node(3)),
        order: Order::Quarantine(Duration::from_millis(100)),
    };
    let lines = [
        can(&Message::Sync(sync), 3, false),
        can(&Message::Summary(node(1), summary), 5, false),
        can(&Message::Ranges(node(1), ranges), 129, true),
        can(&cells([3_612, 3_655], 3_580), 5, false),
        can(&cells([3_616, 3_656], 2_792), 5, false),
        serial(&Message::Command(order), 9),
        serial(&Message::Ranges(node(1), ranges), 129),
    ];
    let missing: Vec<String> = lines.into_iter().filter(|l| !DOC.contains(l)).collect();
    assert!(
        missing.is_empty(),
        "docs/bus.md lacks\n{}",
        missing.concat()
    );
}

#[test]
fn every_test_that_the_specification_names_exists() {
    let tests = [
        include_str!("faults.rs"),
        include_str!("can.rs"),
        include_str!("serial.rs"),
        include_str!("../src/e2e.rs"),
    ];
    let table = DOC.split("## Faults").nth(1).expect("the list of faults");
    let table = table.split("\n## ").next().expect("its end");
    let named: Vec<&str> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.contains('_') && !name.contains(' '))
        .collect();
    assert!(named.len() >= 12, "{named:?}");
    for name in named {
        let found = tests.iter().any(|t| t.contains(&format!("fn {name}(")));
        assert!(found, "docs/bus.md names {name}, and there is no such test");
    }
}
