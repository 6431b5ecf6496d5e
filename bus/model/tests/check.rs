//! The checker over small racks. Larger ones take minutes: in release mode, `--ignored --nocapture`, with
//! `SLAVES`, `FAULTS` and `THREADS` in the environment.

use std::sync::atomic::Ordering;
use std::time::Instant;

use helio_bus_model::{BACK, Defect, Rack, SPEAKS, UNTOLD};
use stateright::{Checker, Model};

fn check(rack: Rack, what: &str) {
    let started = Instant::now();
    let threads = std::env::var("THREADS").map_or(2, |n| n.parse().unwrap_or(2));
    let checker = rack.checker().threads(threads).spawn_bfs().join();
    println!(
        "{what}: {} states, {} steps, depth {}, slowest recovery {} half cycles, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        checker.model().slowest.load(Ordering::Relaxed),
        started.elapsed().as_secs_f32()
    );
    checker.assert_properties();
}

#[test]
fn one_master_and_two_to_four_slaves_survive_every_fault() {
    for slaves in 2..=4 {
        check(Rack::new(slaves, 1), &format!("{slaves} slaves, 1 fault"));
    }
}

#[test]
#[ignore = "minutes; the size comes from the environment"]
fn one_master_and_four_slaves_survive_several_faults() {
    let number = |name: &str, or: usize| {
        std::env::var(name).map_or(or, |value| value.parse().expect("a number"))
    };
    let (slaves, faults) = (number("SLAVES", 4), number("FAULTS", 2));
    check(
        Rack::new(slaves, faults as u8),
        &format!("{slaves} slaves, {faults} faults"),
    );
}

/// Which property a rack with this rule broken violates.
fn found(defect: Defect, faults: u8) -> Vec<&'static str> {
    let rack = Rack {
        defect: Some(defect),
        ..Rack::new(2, faults)
    };
    let checker = rack.checker().threads(2).spawn_bfs().join();
    let discoveries = checker.discoveries();
    let broken = checker.model().properties().into_iter().filter(|p| {
        matches!(p.expectation, stateright::Expectation::Always) && discoveries.contains_key(p.name)
    });
    broken.map(|p| p.name).collect()
}

#[test]
fn a_slave_that_speaks_in_quarantine_is_found() {
    let names = found(Defect::IgnoresQuarantine, 1);
    assert!(names.contains(&SPEAKS), "{names:?}");
}

#[test]
#[ignore = "a minute: it takes two faults"]
fn a_trip_that_waits_for_a_seat_is_found() {
    let names = found(Defect::TripNeedsSeat, 2);
    assert!(names.contains(&UNTOLD), "{names:?}");
}

#[test]
fn a_slave_that_never_learns_that_it_is_to_go_is_found() {
    let names = found(Defect::IgnoresRelease, 1);
    assert!(names.contains(&BACK), "{names:?}");
}
