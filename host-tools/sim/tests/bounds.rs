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
        tries: 1_000,
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
        let seen = chaos(&plan(kind), 6_000, |_| {}).expect("all join");
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

/// Worst over bound of trip, alarm and summary (on CAN FD state) at their critical instants.
fn ratios(kind: BusKind, tries: usize) -> [f64; 3] {
    let plan = Plan {
        tries,
        ..plan(kind)
    };
    let seen = critical(&plan).expect("all join");
    show(kind, &seen);
    let summary = match kind {
        BusKind::CanFd => Kind::State,
        _ => Kind::Summary,
    };
    [Kind::Trip, Kind::Alarm, summary].map(|kind| {
        let row = seen.rows.iter().find(|row| row.kind == kind).expect("seen");
        assert_eq!(row.violations, 0, "{kind:?}");
        row.ratio()
    })
}

#[test]
fn critical_instants_reach_the_bounds_on_can_fd() {
    let ratios = ratios(BusKind::CanFd, 1_000);
    assert!(ratios.into_iter().all(|r| r >= 0.95), "{ratios:?}");
}

/// `cargo test --release -p helio-sim --test bounds -- --ignored --nocapture`, a minute.
#[test]
#[ignore = "a long search for payloads that stuff most"]
fn critical_instants_reach_95_percent_of_the_bounds_on_every_can() {
    for kind in [BusKind::Can500k, BusKind::Can1M, BusKind::CanFd] {
        let ratios = ratios(kind, 100_000);
        assert!(ratios.into_iter().all(|r| r >= 0.95), "{kind:?} {ratios:?}");
    }
}
