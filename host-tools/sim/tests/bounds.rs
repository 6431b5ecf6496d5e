//! No message is later than its bound, and the worst instants come close to it.

use helio_bus::analysis::{Kind, fits};
use helio_bus::{BusKind, Capabilities, Schedule};
use helio_sim::bounds::{Comparison, Plan, chaos, critical};

fn plan(kind: BusKind) -> Plan {
    let rack = Capabilities {
        cells: 16,
        temps: 4,
        anchors: 1,
    };
    let plan = Plan {
        schedule: Schedule::for_bus(kind),
        slaves: vec![rack; 32],
        seed: 11,
    };
    assert_eq!(fits(&plan.schedule, plan.slaves.iter().copied()), Ok(()));
    plan
}

fn show(kind: BusKind, comparison: &Comparison) {
    println!("{}: {} frames", kind.name(), comparison.frames);
    for row in &comparison.rows {
        println!(
            "  {:<8} {:<8} {:>8} timed, worst {:>6} of {:>6} us, {:.3}, {} violations",
            row.run,
            row.kind.name(),
            row.count,
            row.worst.as_micros(),
            row.bound.as_micros(),
            row.ratio(),
            row.violations
        );
    }
}

#[test]
fn no_message_is_later_than_its_bound() {
    for kind in BusKind::ALL {
        let seen = chaos(&plan(kind), 20_000, |_| {}).expect("all join");
        show(kind, &seen);
        let kinds = if matches!(kind, BusKind::Can500k | BusKind::Can1M) {
            7
        } else {
            6
        };
        assert_eq!(seen.rows.len(), kinds, "every kind was seen");
        assert!(seen.rows.iter().all(|row| row.violations == 0), "{kind:?}");
    }
}

#[test]
fn critical_instants_reach_95_percent_of_the_bounds_of_trip_alarm_and_summary() {
    for kind in [BusKind::Can500k, BusKind::Can1M, BusKind::CanFd] {
        let seen = critical(&plan(kind)).expect("all join");
        show(kind, &seen);
        let summary = match kind {
            BusKind::CanFd => Kind::State,
            _ => Kind::Summary,
        };
        for kind in [Kind::Trip, Kind::Alarm, summary] {
            let row = seen.rows.iter().find(|row| row.kind == kind).expect("seen");
            assert_eq!(row.violations, 0, "{kind:?}");
            assert!(row.ratio() >= 0.95, "{kind:?} {}", row.ratio());
        }
    }
}
