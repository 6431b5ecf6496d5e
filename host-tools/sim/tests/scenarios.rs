//! The shipped scenarios, read from their files and run in virtual time.

use std::path::{Path, PathBuf};

use helio_bus::BusKind;
use helio_bus::analysis::{Analysis, Assumptions, Kind, fits, most_slaves};
use helio_sim::World;
use helio_sim::report::{Affected, Estimates, Happening, Report};
use helio_sim::scenario::Scenario;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

fn load(name: &str) -> Scenario {
    Scenario::load(&folder().join(format!("{name}.toml"))).expect("a shipped scenario")
}

fn run(scenario: Scenario) -> Report {
    // A rack is built on the stack, which a test's thread has little of.
    let thread = std::thread::Builder::new().stack_size(32 << 20);
    let world = move || World::new(scenario).expect("it can be built").run(|_| {});
    thread.spawn(world).unwrap().join().unwrap()
}

fn run_for(name: &str, seconds: f64) -> Report {
    let mut scenario = load(name);
    scenario.set_duration_s(seconds);
    run(scenario)
}

/// All slaves of all racks came, and of those without fault nothing was lost, rejected or overwritten.
fn assert_healthy(report: &Report) {
    for rack in &report.racks {
        let (of, loss) = (
            format!("master {}: {:?}", rack.master, rack.healthy),
            rack.healthy,
        );
        assert!(rack.all_joined_at_s.is_some(), "{of}");
        assert!(loss.received > 0, "{of}");
        assert_eq!(
            (loss.lost, loss.rejected, loss.overwritten),
            (0, 0, 0),
            "{of}"
        );
    }
}

/// The one slave that is affected, and nobody else has left or tripped.
fn only_affected(report: &Report, master: u32, node: u8) -> &Affected {
    let found: Vec<_> = report
        .affected
        .iter()
        .filter(|a| a.master == master)
        .collect();
    let [affected] = found[..] else {
        panic!("not one affected at master {master}: {found:?}");
    };
    assert_eq!(affected.node, node);
    let others = of_master(report, master).find(|h| {
        let harm = [
            "left",
            "replaced",
            "duplicate",
            "quarantined",
            "isolated",
            "trip",
        ];
        harm.contains(&h.what) && h.node != Some(node)
    });
    assert!(others.is_none(), "{others:?}");
    affected
}

fn of_master(report: &Report, master: u32) -> impl Iterator<Item = &Happening> {
    report.happenings.iter().filter(move |h| h.master == master)
}

/// The affected slave was given up after its fault began, and was back after that.
fn assert_came_back(affected: &Affected) {
    let isolated = affected.isolated_at_s.expect("isolated");
    let rejoined = affected.rejoined_at_s.expect("rejoined");
    assert!(
        affected.fault_at_s <= isolated && isolated < rejoined,
        "{affected:?}"
    );
}

#[test]
fn every_shipped_scenario_loads_and_can_be_built() {
    let mut names: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    for file in names {
        let mut scenario = Scenario::load(&file).unwrap_or_else(|e| panic!("{e}"));
        let stem = file.file_stem().unwrap().to_str().unwrap();
        assert_eq!(scenario.name, stem, "a scenario is called as its file");
        scenario.set_duration_s(0.1);
        run(scenario);
    }
}

#[test]
fn a_full_rack_joins_every_bus_and_loses_nothing() {
    for kind in BusKind::ALL {
        let mut scenario = load("rack-32");
        scenario.set_bus(kind);
        scenario.set_duration_s(4.0);
        let report = run(scenario);
        assert_healthy(&report);
        let rack = &report.racks[0];
        assert_eq!(
            (report.racks.len(), rack.members),
            (1, 32),
            "{}",
            report.bus
        );
        // Joining slaves find each other by colliding on the line. On CAN identifiers decide, and
        // only the SYNC that the master sends before the first slave is up finds no acknowledgement.
        let on_can = !kind.is_serial();
        assert!(!on_can || rack.error_frames <= 1, "{}", report.bus);
        assert!(!rack.latency.is_empty(), "{}", report.bus);
        if matches!(kind, BusKind::Can1M | BusKind::CanFd) {
            for class in &rack.latency {
                assert!(class.max_us < 10_000.0, "{}: {class:?}", report.bus);
            }
        }
    }
}

#[test]
fn a_master_of_two_buses_hears_trips_on_both_and_says_them_on_the_other() {
    let scenario = load("two-buses");
    let buses = helio_sim::buses(&scenario);
    let trip = buses.iter().map(|bus| {
        let slaves = helio_sim::capabilities(&scenario).unwrap();
        let of = slaves
            .iter()
            .find(|(wanted, _)| wanted.kind == bus.schedule.kind);
        let (_, of) = of.unwrap();
        let calm = Assumptions::calm(&bus.schedule);
        let found = Analysis::new(&bus.schedule, of.iter().copied(), &calm);
        found
            .bound(Kind::Trip)
            .unwrap()
            .response
            .unwrap()
            .as_nanos() as f64
            / 1e3
    });
    let bound_us: f64 = trip.sum();
    let report = run(scenario);
    assert_healthy(&report);
    assert_eq!(report.bus, "can-1m+rs485-4m");
    let rack = &report.racks[0];
    assert_eq!(
        (rack.members, rack.trips.count, rack.trips.unheard),
        (48, 2, 0)
    );
    let heard_us = rack.trips.heard_max_us.unwrap();
    println!("a trip is heard on both buses within {heard_us} us, bound {bound_us} us");
    assert!(heard_us <= bound_us);
    // A trip is heard by the master on the bus of the slave that said it, once or, in two minislots, twice, and does not come back.
    let trips: Vec<f64> = report
        .happenings
        .iter()
        .filter(|h| h.what == "trip")
        .map(|h| h.at_s)
        .collect();
    let near = |at: f64| {
        trips
            .iter()
            .filter(|t| (0.0..0.1).contains(&(**t - at)))
            .count()
    };
    assert_eq!((near(5.0), near(10.0), trips.len()), (1, 2, 3), "{trips:?}");
    let touched = |node, fault| {
        let found = report.affected.iter().find(|a| a.node == node).unwrap();
        assert_eq!(found.fault, fault);
        found.clone()
    };
    for (node, fault) in [(3, "cell-over-voltage"), (30, "cell-over-voltage")] {
        assert!(touched(node, fault).isolated_after_ms.unwrap() < 25.0);
    }
    for (node, fault) in [(40, "slave-dead"), (7, "slave-babbling")] {
        assert_came_back(&touched(node, fault));
    }
}

#[test]
fn two_buses_of_one_kind_range_together_so_that_anchors_of_both_make_one_fix() {
    // Eight anchors in one hall, every other one on the other bus: alone, each bus sees half of them.
    let run_on = |buses: &str| {
        let text = format!(
            "name = \"x\"\nduration_s = 20\n{buses}\n[hall]\nanchors = 8\ntags = 2\nsight_m = 60.0\n"
        );
        let scenario = Scenario::parse(Path::new("x.toml"), &text, PathBuf::new()).unwrap();
        run(scenario).racks.remove(0).estimates
    };
    let one = run_on("bus = \"can-1m\"\n[pack]\nslaves = 8\nstrings = 2");
    let bus = |kind| format!("[[bus]]\nkind = \"{kind}\"\nslaves = 4\n");
    let two = run_on(&(bus("can-1m") + &bus("can-1m")));
    let mixed = run_on(&(bus("can-1m") + &bus("rs485-4m")));
    println!("{one:?}\n{two:?}\n{mixed:?}");
    let p95 = |e: Estimates| e.position_p95_mm.unwrap();
    assert!(one.fixes > 950 && one.fixes.abs_diff(two.fixes) < 5);
    assert!(p95(two) < 1.1 * p95(one));
    // Not at the same time: each bus locates with its own.
    assert!(p95(mixed) > 2.0 * p95(two));
}

#[test]
fn as_many_slaves_as_there_are_seats_join_can_fd_and_rs485_at_4_mbaud() {
    for (kind, cycle_ms) in [(BusKind::CanFd, 30.0), (BusKind::Rs485At4M, 29.0)] {
        let mut scenario = load("rack-127");
        scenario.set_bus(kind);
        scenario.set_cycle_ms(cycle_ms);
        scenario.set_duration_s(2.0);
        let report = run(scenario);
        assert_healthy(&report);
        assert_eq!(report.racks[0].members, 127, "{}", report.bus);
    }
}

#[test]
fn a_bus_that_is_too_full_for_its_slaves_takes_those_that_fit_and_names_the_others() {
    let mut scenario = load("rack-127");
    scenario.set_bus(BusKind::Can1M);
    scenario.set_duration_s(1.5);
    let (_, slaves) = helio_sim::capabilities(&scenario).unwrap().remove(0);
    let schedule = helio_sim::schedule(BusKind::Can1M, slaves.len(), None);
    let most = most_slaves(&schedule, &slaves);
    let alike = std::iter::repeat_n(slaves[0], usize::from(most) + 1);
    let reason = fits(&schedule, alike).expect_err("one too many");
    let report = run(scenario);
    let rack = &report.racks[0];
    assert_eq!(rack.members, most);
    let refused: Vec<_> = of_master(&report, 1)
        .filter(|h| h.what == "refused")
        .collect();
    assert!(refused.len() >= slaves.len() - usize::from(most));
    let text = format!("no seat: {reason}");
    assert!(refused.iter().all(|h| h.text == text), "{:?}", refused[0]);
}

#[test]
fn without_a_fault_slaves_join_and_are_connected_and_nothing_else_happens() {
    let report = run_for("rack-32", 8.0);
    assert_healthy(&report);
    assert_eq!(report.racks[0].trips.count, 0);
    assert!(report.affected.is_empty(), "{:?}", report.affected);
    let joined = report.happenings.iter().filter(|h| h.what == "joined");
    assert_eq!(joined.count(), 32);
    let quiet = ["joined", "released", "map", "command"];
    let other = report.happenings.iter().find(|h| !quiet.contains(&h.what));
    assert!(other.is_none(), "{other:?}");
}

#[test]
fn the_same_seed_gives_the_same_report_and_another_seed_another() {
    let with_seed = |seed| {
        let mut scenario = load("rack-32");
        scenario.set_duration_s(2.0);
        scenario.seed = seed;
        let mut report = run(scenario);
        // That the seeds themselves differ is no merit.
        report.seed = 0;
        serde_json::to_string(&report).unwrap()
    };
    let first = with_seed(7);
    assert_eq!(first, with_seed(7));
    assert_ne!(first, with_seed(8));
}

#[test]
fn another_module_on_the_seat_is_taken_for_the_one_that_was_pulled_out() {
    let report = run_for("hot-swap", 14.0);
    assert_healthy(&report);
    let affected = only_affected(&report, 1, 7);
    assert_came_back(affected);
    assert_eq!(report.racks[0].members, 32);
    let uid_at = |what: &str| {
        let mut found = of_master(&report, 1).filter(|h| h.what == what && h.node == Some(7));
        found.next().and_then(|h| h.uid.clone())
    };
    let (first, second) = (uid_at("joined"), uid_at("replaced"));
    assert!(first.is_some() && second.is_some(), "{first:?} {second:?}");
    assert_ne!(first, second);
}

#[test]
fn a_babbler_is_shut_up_and_nobody_else_loses_a_message() {
    let report = run_for("babbler", 30.0);
    assert_healthy(&report);
    assert_came_back(only_affected(&report, 1, 20));
    let shut_up = of_master(&report, 1).find(|h| h.what == "quarantined");
    assert_eq!(shut_up.and_then(|h| h.node), Some(20));
}

#[test]
fn a_slave_without_power_is_missed_and_comes_back_to_its_seat() {
    let report = run_for("dead-slave", 18.0);
    assert_healthy(&report);
    let affected = only_affected(&report, 1, 12);
    assert_came_back(affected);
    // It has power again 5 s after it lost it.
    assert!(affected.rejoined_at_s > Some(affected.fault_at_s + 5.0));
    assert_eq!(report.racks[0].members, 32);
}

#[test]
fn a_cell_over_voltage_opens_the_gate_on_the_very_sample_with_a_master_and_without() {
    // Before the master dies, only the first of the two faults.
    let before = run_for("over-voltage", 11.0);
    assert_eq!(before.racks[0].trips.count, 1);
    let report = run_for("over-voltage", 22.0);
    assert_healthy(&report);
    let death = report.happenings.iter().find(|h| h.text == "master-dead");
    assert!(death.is_some_and(|h| h.at_s < 21.0), "{death:?}");
    let trips = &report.racks[0].trips;
    assert_eq!(trips.count, 2, "{trips:?}");
    assert!(
        trips.decision_max_us.is_some_and(|us| us < 1_000.0),
        "{trips:?}"
    );
    let sample_us = f64::from(*load("over-voltage").pack.sample_period_ms.get_ref()) * 1e3;
    assert!(
        trips
            .reaction_max_us
            .is_some_and(|us| us <= sample_us + 1_000.0),
        "{trips:?}"
    );
    let nodes: Vec<u8> = report.affected.iter().map(|a| a.node).collect();
    assert_eq!(nodes, [3, 25]);
}

#[test]
fn a_fault_stays_in_its_rack() {
    let report = run_for("multi-rack", 27.0);
    assert_healthy(&report);
    let faults = [
        (1, 5, "slave-dead"),
        (2, 6, "sensor-stuck"),
        (3, 7, "frame-loss"),
        (4, 8, "anchor-blocked"),
    ];
    assert_eq!(report.affected.len(), faults.len(), "{:?}", report.affected);
    for (master, node, fault) in faults {
        let affected = only_affected(&report, master, node);
        assert_eq!(affected.fault, fault);
        let struck = of_master(&report, master).filter(|h| h.what == "fault");
        assert_eq!(struck.count(), 1, "master {master}");
    }
    for rack in &report.racks {
        assert_eq!(
            (rack.members, rack.trips.count),
            (32, 0),
            "master {}",
            rack.master
        );
    }
    assert_came_back(only_affected(&report, 1, 5));
}

/// What the contactors did, in order, with the second in which it was.
fn contactor_story(report: &Report) -> Vec<(&'static str, f64, &str)> {
    let own = |h: &&Happening| h.what.starts_with("contactors") || h.what == "precharging";
    let all = report.happenings.iter().filter(own);
    all.map(|h| (h.what, h.at_s, h.text.as_str())).collect()
}

fn names<'a>(story: &[(&'a str, f64, &str)]) -> Vec<&'a str> {
    story.iter().map(|(what, ..)| *what).collect()
}

#[test]
fn the_load_is_fed_without_an_inrush_keeps_one_string_and_loses_the_last() {
    let report = run(load("precharge"));
    assert_healthy(&report);
    let story = contactor_story(&report);
    assert_eq!(
        names(&story),
        [
            "precharging",
            "contactors-closed",
            "contactors-opened",
            "precharging",
            "contactors-closed",
            "contactors-dropped"
        ],
        "{story:?}"
    );
    let figures = report.racks[0].contactors.expect("there are contactors");
    assert_eq!(figures.state, "open");
    // 4 slaves with 16 cells: 3 % of 250 V over 0.25 Ohm; onto an empty link it would be 1000 A.
    assert!(figures.inrush_max_a < 35.0, "{figures:?}");
    let (_, dropped, _) = story[5];
    assert!((20.004..20.1).contains(&dropped), "{dropped}");
    assert_eq!(report.racks[0].trips.count, 2);
}

#[test]
fn a_welded_contactor_is_found_at_the_next_opening_and_again_until_it_is_mended() {
    let report = run(load("welded-contactor"));
    let story = contactor_story(&report);
    assert_eq!(
        names(&story),
        [
            "precharging",
            "contactors-closed",
            "contactors-failed",
            "contactors-failed",
            "precharging",
            "contactors-closed"
        ],
        "{story:?}"
    );
    for (_, at, text) in &story[2..4] {
        assert_eq!(
            *text, "positive contactor or precharge relay welded",
            "at {at}"
        );
    }
    assert!(story[2].1 < 9.0 && story[4].1 > 21.0, "{story:?}");
    assert_eq!(report.racks[0].trips.count, 0);
}

#[test]
fn a_sleeping_pack_protects_itself_is_looked_at_and_comes_back() {
    for bus in [BusKind::Can1M, BusKind::Rs485At4M] {
        sleeps_and_comes_back(bus);
    }
}

fn sleeps_and_comes_back(bus: BusKind) {
    let run_for = |seconds: f64| {
        let mut scenario = load("sleep");
        scenario.set_bus(bus);
        scenario.set_duration_s(seconds);
        run(scenario)
    };
    let report = run_for(36.0);
    let told = ["asleep", "awake", "alarm", "left", "joined"];
    let later = report.happenings.iter().filter(|h| h.at_s > 2.0);
    let story: Vec<(&str, _, f64)> = later
        .filter(|h| told.contains(&h.what))
        .map(|h| (h.what, h.node, h.at_s))
        .collect();
    let find = |what: &str| {
        let mut found = story.iter().filter(|s| s.0 == what);
        (found.next(), found.count())
    };
    let (Some(asleep), 0) = find("asleep") else {
        panic!("{story:?}")
    };
    assert!((3.0..3.2).contains(&asleep.2), "{story:?}");
    // Nobody left or joined by resting, but the dead one.
    let (Some(&("left", Some(4), missed)), 0) = find("left") else {
        panic!("{story:?}")
    };
    assert!((25.0..26.2).contains(&missed), "{story:?}");
    assert_eq!(find("joined").0, None, "{story:?}");
    let (Some(alarm), _) = find("alarm") else {
        panic!("{story:?}")
    };
    assert_eq!(alarm.1, Some(3));
    assert!((25.0..25.3).contains(&alarm.2), "{story:?}");
    let (Some(awake), 0) = find("awake") else {
        panic!("{story:?}")
    };
    assert!((30.0..30.1).contains(&awake.2), "{story:?}");
    let rack = &report.racks[0];
    assert_eq!((rack.trips.count, rack.members), (1, 7));
    // It sleeps, so the sample that shows the fault may come a second later; with it the decision.
    assert!(
        rack.trips.reaction_max_us <= Some(1_010_000.0),
        "{:?}",
        rack.trips
    );
    assert!(
        rack.trips.decision_max_us <= Some(1_000.0),
        "{:?}",
        rack.trips
    );
    let frames = |s| run_for(s).racks[0].frames;
    assert_eq!(frames(3.2), frames(13.0), "the bus is not quiet");
}

#[test]
fn a_shorted_link_is_tried_three_times_and_then_left_alone() {
    let report = run(load("link-short"));
    let story = contactor_story(&report);
    let of = |what: &str| story.iter().filter(|(w, ..)| *w == what).count();
    assert_eq!(
        (
            of("contactors-retry"),
            of("contactors-failed"),
            of("contactors-closed")
        ),
        (2, 1, 1),
        "{story:?}"
    );
    let short = |(what, _, text): &&(&str, f64, &str)| {
        *what == "contactors-failed" && *text == "short circuit at the link"
    };
    assert!(story.iter().any(|s| short(&s)), "{story:?}");
    let figures = report.racks[0].contactors.expect("there are contactors");
    assert!(figures.closed_at_s.is_some_and(|t| t > 22.0) && figures.inrush_max_a < 35.0);
}

#[test]
fn each_sensor_fault_ends_as_the_table_says_and_stays_with_its_slave() {
    let report = run(load("sensor-faults"));
    assert_healthy(&report);
    assert_eq!(report.racks[0].trips.count, 6);
    let expected = [
        (1, "trip: cell wire open"),
        (2, "trip: temperature sensor open"),
        (3, "trip: over-temperature, discharging"),
        (4, "trip: current sensor lost"),
        (5, "trip: stale data"),
        (6, "trip: cell over-voltage"),
    ];
    for (node, alarm) in expected {
        let found =
            |h: &&Happening| h.what == "alarm" && h.node == Some(node) && h.text.starts_with(alarm);
        assert!(
            report.happenings.iter().any(|h| found(&h)),
            "slave {node}: {alarm}"
        );
    }
    let spared =
        |h: &&Happening| h.node == Some(7) && (h.what == "isolated" || h.text.starts_with("trip"));
    assert!(!report.happenings.iter().any(|h| spared(&h)));
}

/// The master believes the cells new, which have lost a tenth: after six cycles it knows, and so it knows how full they are.
#[test]
fn a_master_that_restarts_knows_the_cells_that_it_knew() {
    let file = folder().join("aged.toml");
    let dead = "[[fault]]\nat_s = 79000\nkind = \"master-dead\"\nfor_s = 2\n";
    let text = std::fs::read_to_string(&file).expect("a shipped scenario") + "\n" + dead;
    let scenario = Scenario::parse(&file, &text, folder()).expect("a scenario");
    let report = run(scenario);
    let e = report.racks[0].estimates;
    // No rest is left that could tell anything anew.
    let soh = e.soh_pct.expect("known");
    assert!(soh < 95.0, "{soh}");
}

#[test]
fn partial_cycles_tell_the_health_of_aged_cells_over_the_bus() {
    let report = run(load("aged"));
    let e = report.racks[0].estimates;
    let (soh, error, bound) = (
        e.soh_pct.expect("known"),
        e.soh_max_error_pct.expect("known"),
        e.soh_bound_pct.expect("known"),
    );
    assert!(soh < 95.0, "{soh}");
    // Nothing tells it of the lowest quarter, which is not used, or of the age before.
    assert!(error < bound.min(3.5), "{error} of {bound}");
}
