//! Master and slaves together on an ideal and on a lossy CAN bus.

mod common;
use common::*;
use helio_bus::*;
use helio_units::*;

const CAN: [BusKind; 3] = [BusKind::Can500k, BusKind::Can1M, BusKind::CanFd];

/// 32 slaves, joined, and the record cleared.
fn rack(kind: BusKind) -> World {
    let mut w = World::new(kind, 1..=32);
    w.master.set_tags(&[TagId(7), TagId(8)]);
    w.run_until(ms(200));
    assert_eq!(w.joined(), 32);
    w.events.clear();
    w.slaves.iter_mut().for_each(|s| s.events.clear());
    w
}

fn lost(w: &World) -> u64 {
    w.slaves.iter().map(|s| s.link.stats().overwritten).sum()
}

#[test]
fn a_cold_rack_of_32_joins_in_96_frames() {
    for kind in CAN {
        let mut w = World::new(kind, 1..=32);
        w.run_until(ms(60));
        let joined = |e: &MasterEvent| matches!(e, MasterEvent::Joined { .. });
        assert_eq!(w.count(joined), 32, "{kind:?}");
        let last = w
            .events
            .iter()
            .rev()
            .find(|(_, e)| joined(e))
            .expect("32")
            .0;
        println!(
            "{kind:?}: 32 joined after {} µs",
            last.since(ms(3)).as_micros()
        );
        // At 500 kbit/s 96 frames of the worst stuffing take 31 ms.
        let limit = match kind {
            BusKind::Can500k => 32,
            BusKind::Can1M => 17,
            _ => 25, // the first members speak already
        };
        assert!(
            last.since(ms(3)) <= Duration::from_millis(limit),
            "{kind:?}"
        );
        assert_eq!(w.collisions, 0);
        let mut seats: Vec<_> = w.slaves.iter().filter_map(|s| s.link.node()).collect();
        seats.sort();
        seats.dedup();
        assert_eq!(seats.len(), 32);
    }
}

#[test]
fn every_value_reaches_the_master_in_time_and_none_is_lost() {
    for kind in CAN {
        let mut w = rack(kind);
        let (from, frames, busy) = (w.now, w.frames, w.busy);
        w.run_for(Duration::from_secs(2));
        let span = w.now.since(from);
        assert_eq!(lost(&w), 0, "{kind:?}");
        assert_eq!(w.master.stats().lost, 0);
        assert_eq!(w.count(|e| matches!(e, MasterEvent::Rejected { .. })), 0);
        let worst = w.worst_age.iter().max().unwrap();
        println!(
            "{kind:?}: {} frames in 2 s, load {:.1} %, oldest value {} µs",
            w.frames - frames,
            100.0 * (w.busy - busy).as_secs_f32() / span.as_secs_f32(),
            worst.as_micros()
        );
        // Every frame as long as stuffing can make it.
        let cycle = w.master.schedule().cycle;
        assert!(
            *worst < Duration::from_nanos(cycle.as_nanos() / 2).max(Duration::from_millis(10)),
            "{kind:?}"
        );
        // Every cell and range of every slave was told, and told right.
        let mut cells = [[false; 16]; 32];
        let mut ranges = [false; 32];
        for (_, event) in &w.events {
            let MasterEvent::Message(m) = event else {
                continue;
            };
            match m {
                Message::CellChunk {
                    node,
                    first,
                    cells: c,
                    temp,
                } => {
                    let s = w
                        .slaves
                        .iter()
                        .position(|s| s.link.node() == Some(*node))
                        .unwrap();
                    for (i, mv) in c.iter().enumerate() {
                        let cell = usize::from(*first) + i;
                        assert_eq!(*mv, state_of(s).cells.0[cell]);
                        cells[s][cell] = true;
                    }
                    assert_eq!(*temp, state_of(s).temps.0[usize::from(*first / 4)]);
                }
                Message::State(node, state) => {
                    let s = w
                        .slaves
                        .iter()
                        .position(|s| s.link.node() == Some(*node))
                        .unwrap();
                    assert_eq!(*state, state_of(s));
                    cells[s] = [true; 16];
                }
                Message::RangeChunk {
                    node,
                    range: [r, _],
                    ..
                } => {
                    let s = w
                        .slaves
                        .iter()
                        .position(|s| s.link.node() == Some(*node))
                        .unwrap();
                    assert_eq!(*r, Some(Millimetres(1_000 + s as i32)));
                    ranges[s] = true;
                }
                Message::Ranges(node, r) => {
                    let s = w
                        .slaves
                        .iter()
                        .position(|s| s.link.node() == Some(*node))
                        .unwrap();
                    assert_eq!(r.range[0], Some(Millimetres(1_000 + s as i32)));
                    ranges[s] = true;
                }
                _ => {}
            }
        }
        assert!(cells.iter().all(|c| c.iter().all(|seen| *seen)), "{kind:?}");
        assert!(ranges.iter().all(|seen| *seen), "{kind:?}");
    }
}

#[test]
fn a_hot_plug_waits_for_gaps_only_and_costs_nobody_a_frame() {
    for kind in CAN {
        let mut w = rack(kind);
        for offset in 0..8 {
            w.run_for(Duration::from_micros(100_000 + 3_377 * offset));
            let at = w.now;
            let i = w.plug(100 + offset, RACK);
            w.run_for(Duration::from_millis(60));
            let (when, event) = &w.slaves[i].events[0];
            assert!(matches!(event, SlaveEvent::Joined(_)));
            println!(
                "{kind:?}: joined {} µs after plugging",
                when.since(at).as_micros()
            );
            assert!(when.since(at) < Duration::from_millis(25));
            w.unplug(i);
            w.run_for(Duration::from_millis(200));
        }
        assert_eq!(lost(&w), 0, "{kind:?}");
        assert_eq!(w.master.stats().lost, 0);
    }
}

#[test]
fn thirty_percent_loss_delays_joining_but_all_get_a_seat() {
    for seed in 0..12 {
        let mut w = World::new(BusKind::Can1M, 1..=32);
        w.rng = Rng(seed);
        w.loss = 0.3;
        w.run_until(ms(700));
        w.loss = 0.0;
        w.run_for(Duration::from_millis(300));
        assert_eq!(w.joined(), 32, "seed {seed}");
        for s in &w.slaves {
            let seat = s.link.node().expect("a seat");
            let (uid, _) = w.master.member(seat).expect("known to the master");
            let at = w.slaves.iter().position(|o| o.link.node() == Some(seat));
            assert_eq!(
                uid,
                common::uid(at.expect("this one") as u64 + 1),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn one_percent_loss_costs_no_member_its_seat() {
    for kind in CAN {
        let mut w = rack(kind);
        w.loss = 0.01;
        w.run_for(Duration::from_secs(8));
        assert_eq!(
            w.count(|e| matches!(e, MasterEvent::Left { .. })),
            0,
            "{kind:?}"
        );
        assert!(w.master.stats().lost > 0);
    }
}

#[test]
fn a_dead_slave_is_found_and_nobody_else_is_disturbed() {
    for (kind, limit) in [
        (BusKind::Can500k, 60),
        (BusKind::Can1M, 30),
        (BusKind::CanFd, 30),
    ] {
        let mut w = rack(kind);
        w.run_for(Duration::from_micros(33_333));
        let at = w.now;
        let gone = w.slaves[11].link.node().expect("seated");
        w.unplug(11);
        w.run_for(Duration::from_millis(300));
        let found = w
            .when(|e| matches!(e, MasterEvent::Left { node, reason: LeaveReason::Silence, .. } if *node == gone))
            .expect("found");
        println!(
            "{kind:?}: dead slave found after {} µs",
            found.since(at).as_micros()
        );
        assert!(found.since(at) <= Duration::from_millis(limit), "{kind:?}");
        assert_eq!(w.count(|e| matches!(e, MasterEvent::Left { .. })), 1);
        assert_eq!(lost(&w), 0);
    }
}

/// Until it has surely heard of it, or nothing at all, whoever sat there may speak on.
#[test]
fn a_seat_that_was_left_a_moment_ago_is_given_to_another_only_when_there_is_no_other() {
    for (seats, expected) in [(127, 5), (4, 2)] {
        let schedule = Schedule {
            seats,
            ..Schedule::for_bus(BusKind::CanFd)
        };
        let mut w = World::with(schedule, 1..=4);
        w.run_until(ms(200));
        let gone = (0..4).find(|i| w.slaves[*i].link.node() == Some(node(2)));
        w.unplug(gone.expect("seated"));
        w.run_for(Duration::from_millis(60));
        let new = w.plug(5, RACK);
        w.run_for(Duration::from_millis(60));
        assert_eq!(
            w.slaves[new].link.node(),
            Some(node(expected)),
            "of {seats}"
        );
    }
}

#[test]
fn a_replacement_takes_the_seat_of_its_predecessor() {
    let mut w = World::new(BusKind::Can1M, 1..=4);
    let anchors = Capabilities {
        cells: 0,
        temps: 0,
        anchors: 16,
    };
    w.plug(5, anchors);
    w.run_until(ms(100));
    let seat_of_2 = w.slaves[1].link.node();
    let seat_of_5 = w.slaves[4].link.node();
    w.unplug(1);
    w.unplug(4);
    w.run_for(Duration::from_millis(200));
    // The anchor slave's successor comes first: it may not take the seat of the cell slave.
    let a = w.plug(6, anchors);
    w.run_for(Duration::from_millis(50));
    let b = w.plug(7, RACK);
    w.run_for(Duration::from_millis(50));
    assert_eq!(w.slaves[a].link.node(), seat_of_5);
    assert_eq!(w.slaves[b].link.node(), seat_of_2);
    let replaced: Vec<_> = w
        .events
        .iter()
        .filter_map(|(_, e)| match e {
            MasterEvent::Joined {
                uid,
                replaces: Some(old),
                ..
            } => Some((*uid, *old)),
            _ => None,
        })
        .collect();
    assert_eq!(replaced, [(uid(6), uid(5)), (uid(7), uid(2))]);
    // A third kind finds no seat of its kind and gets a new one.
    w.unplug(a);
    w.run_for(Duration::from_millis(200));
    let c = w.plug(
        8,
        Capabilities {
            cells: 4,
            temps: 1,
            anchors: 0,
        },
    );
    w.run_for(Duration::from_millis(50));
    assert_eq!(w.slaves[c].link.node(), NodeId::new(6));
}

#[test]
fn a_returning_slave_gets_its_old_seat() {
    let mut w = rack(BusKind::Can1M);
    let seat = w.slaves[20].link.node();
    w.unplug(20);
    w.unplug(3);
    w.run_for(Duration::from_millis(200));
    w.plug(21, RACK); // the same unique id, restarted
    w.run_for(Duration::from_millis(50));
    assert_eq!(w.slaves[32].link.node(), seat);
    assert_eq!(
        w.count(|e| matches!(e, MasterEvent::Joined { replaces: None, .. })),
        1
    );
}

#[test]
fn a_slave_that_restarts_at_once_is_back_within_three_cycles() {
    let mut w = rack(BusKind::Can1M);
    let seat = w.slaves[20].link.node();
    w.unplug(20);
    w.plug(21, RACK);
    w.run_for(Duration::from_millis(60));
    assert_eq!(w.slaves[32].link.node(), seat);
    assert_eq!(w.count(|e| matches!(e, MasterEvent::Duplicate { .. })), 0);
    assert_eq!(w.count(|e| matches!(e, MasterEvent::Joined { .. })), 1);
}

#[test]
fn a_duplicate_is_named_and_gets_no_seat() {
    let mut w = rack(BusKind::Can1M);
    let seat = w.slaves[4].link.node().expect("seated");
    let twin = w.plug(5, RACK);
    w.run_for(Duration::from_millis(100));
    assert!(
        w.when(|e| *e
            == MasterEvent::Duplicate {
                node: seat,
                uid: uid(5)
            })
        .is_some()
    );
    assert_eq!(w.slaves[twin].link.node(), None);
    assert_eq!(
        w.slaves[twin].events[0].1,
        SlaveEvent::Left(LeaveReason::DuplicateUid)
    );
    assert_eq!(w.slaves[4].link.node(), Some(seat));
    assert_eq!(w.count(|e| matches!(e, MasterEvent::Left { .. })), 0);
    assert_eq!(lost(&w), 0);
}

#[test]
fn two_of_one_uid_that_start_together_do_not_both_stay() {
    let mut w = World::new(BusKind::Can1M, [1, 2, 3, 3]);
    w.run_until(ms(2_500));
    let seated = [2, 3].map(|i: usize| w.slaves[i].link.node().is_some());
    assert_ne!(seated, [true, true]);
    assert!(w.slaves[0].link.node().is_some());
    assert!(
        w.when(|e| matches!(e, MasterEvent::Duplicate { uid, .. } if *uid == common::uid(3)))
            .is_some()
    );
    assert!(w.collisions < 20, "{}", w.collisions);
}

#[test]
fn without_a_master_the_bus_falls_quiet_and_a_trip_still_passes() {
    for kind in CAN {
        let mut w = rack(kind);
        w.master_on = false;
        w.run_for(Duration::from_millis(200));
        assert!(w.slaves.iter().all(|s| s.link.node().is_none()
            && s.events.last().map(|e| &e.1) == Some(&SlaveEvent::Left(LeaveReason::Silence))));
        let frames = w.frames;
        w.run_for(Duration::from_secs(1));
        assert_eq!(w.frames, frames, "quiet");
        let now = w.now;
        w.slaves[3].link.trip(now);
        w.run_for(Duration::from_millis(1));
        assert!(
            w.slaves
                .iter()
                .all(|s| s.events.last().map(|e| &e.1) == Some(&SlaveEvent::TripSeen))
        );
        w.master_on = true;
        w.run_for(Duration::from_millis(200));
        assert_eq!(w.joined(), 32, "{kind:?}");
        assert!(w.slaves.iter().all(|s| s.link.node().is_some()));
    }
}

#[test]
fn a_new_master_collects_the_members_of_the_old_one() {
    let mut w = rack(BusKind::Can1M);
    w.master = MasterLink::new(*w.master.schedule());
    w.run_for(Duration::from_millis(200));
    assert_eq!(w.joined(), 32);
    w.slaves.iter().for_each(|s| {
        let seat = s.link.node().expect("seated");
        assert!(w.master.member(seat).is_some());
    });
}

#[test]
fn a_slave_gives_up_its_seat_at_the_first_sync_of_a_new_session() {
    for kind in CAN {
        let mut w = rack(kind);
        w.run_for(Duration::from_micros(1_234));
        w.master = MasterLink::new(*w.master.schedule());
        w.slaves.iter_mut().for_each(|s| s.events.clear());
        w.run_for(Duration::from_millis(1));
        for s in &w.slaves {
            let left = SlaveEvent::Left(LeaveReason::Silence);
            assert!(s.events.iter().any(|e| e.1 == left), "{kind:?}");
        }
        w.run_for(Duration::from_millis(60));
        assert_eq!(w.joined(), 32, "{kind:?}");
    }
}

#[test]
fn a_slave_that_has_a_seat_but_heard_no_sync_yet_notices_that_its_master_restarted() {
    for kind in CAN {
        let mut w = World::new(kind, []);
        w.run_until(ms(200));
        let frames = w.frames;
        while w.frames == frames {
            w.run_for(Duration::from_micros(5));
        }
        // Between two SYNCs it gets a seat; what comes next is the first SYNC of another session.
        w.run_for(Duration::from_micros(500));
        let i = w.plug(1, RACK);
        w.run_for(Duration::from_micros(3_000));
        let node = w.slaves[i].link.node();
        assert!(node.is_some(), "{kind:?}");
        w.master = MasterLink::new(*w.master.schedule());
        w.master.set_session(91);
        w.slaves[i].events.clear();
        let frames = w.frames;
        while w.frames == frames {
            w.run_for(Duration::from_micros(5));
        }
        let left = |e: &SlaveEvent| matches!(e, SlaveEvent::Left(LeaveReason::Silence));
        assert!(w.slaves[i].events.iter().any(|(_, e)| left(e)), "{kind:?}");
    }
}

#[test]
fn who_spoke_before_its_master_restarted_is_not_taken_for_the_next_on_its_seat() {
    for kind in CAN {
        let mut w = World::new(kind, 1..=1);
        w.run_until(ms(200));
        assert_eq!(w.slaves[0].link.node(), NodeId::new(1));
        // It hears nothing of the new master, and goes on to talk.
        w.slaves[0].deaf = true;
        w.master = MasterLink::new(*w.master.schedule());
        w.plug(2, RACK);
        w.events.clear();
        w.run_for(Duration::from_micros(3_000));
        let joined =
            |e: &MasterEvent| matches!(e, MasterEvent::Joined { uid: u, .. } if *u == uid(2));
        assert_eq!(w.count(joined), 1, "{kind:?}");
        let frames = w.frames;
        w.slaves[0].link.babble(true);
        w.run_for(Duration::from_micros(3_000));
        assert!(w.frames > frames);
        let told = |e: &MasterEvent| {
            matches!(
                e,
                MasterEvent::Message(Message::Summary(..) | Message::State(..))
            )
        };
        assert_eq!(w.count(told), 0, "{kind:?}");
    }
}

#[test]
fn who_hears_no_sync_says_nothing_cyclic_after_a_cycle_whatever_its_core_asks_for() {
    for kind in CAN {
        let mut w = rack(kind);
        w.run_for(Duration::from_millis(100));
        let cycle = Schedule::for_bus(kind).cycle;
        let node = w.slaves[0].link.node().expect("seated");
        w.slaves[0].deaf = true;
        w.run_for(cycle);
        w.keep_log = true;
        w.slaves[0].link.babble(true);
        w.run_for(cycle);
        let class =
            |f: &CanFrame, class: u16| f.id == CanId::Standard(class << 7 | u16::from(node.get()));
        let said = w.log.iter().filter(|(_, f)| class(f, 4) || class(f, 12));

        assert_eq!(said.count(), 0, "{kind:?}");
        // Alarms still are.
        assert!(w.log.iter().any(|(_, f)| class(f, 1)), "{kind:?}");
    }
}

#[test]
fn a_device_whose_old_seat_was_offered_to_another_has_one_seat_when_that_one_does_not_take_it() {
    for kind in CAN {
        let mut w = rack(kind);
        let old = w.slaves[3].link.node().expect("seated");
        w.unplug(3);
        w.run_for((Schedule::for_bus(kind).cycle * 8).max(Duration::from_millis(250)));
        // Somebody claims, is offered that seat, and is gone.
        let stranger = w.plug(1_000, RACK);
        while w.slaves[stranger].link.node().is_none() {
            w.run_for(Duration::from_micros(5));
        }
        assert_eq!(w.slaves[stranger].link.node(), Some(old), "{kind:?}");
        w.unplug(stranger);
        // Its owner comes meanwhile, and once more when the offer is void.
        let owner = w.plug(4, RACK);
        w.run_for(Duration::from_millis(300));
        let own = w.slaves[owner].link.node().expect("seated");
        w.unplug(owner);
        let again = w.plug(4, RACK);
        for _ in 0..400 {
            w.run_for(Duration::from_millis(1));
            let seats = (1..=127).filter(|n| {
                w.master
                    .member(node(*n))
                    .is_some_and(|(id, _)| id == uid(4))
            });
            assert!(seats.count() <= 1, "{kind:?}");
        }
        assert_eq!(w.slaves[again].link.node(), Some(own), "{kind:?}");
    }
}

#[test]
fn a_trip_of_all_costs_at_most_two_frames() {
    for kind in CAN {
        let mut w = rack(kind);
        w.keep_log = true;
        w.run_for(Duration::from_micros(12_345));
        let now = w.now;
        for (n, s) in w.slaves.iter_mut().enumerate() {
            s.link.trip(now);
            let alarm = Alarm {
                code: 3,
                severity: Severity::Trip,
                active: true,
                index: n as u8,
                value: -7,
            };
            s.link.alarm(now, alarm);
        }
        w.run_for(Duration::from_millis(20));
        let trips = w
            .log
            .iter()
            .filter(|(_, f)| f.id == CanId::Standard(0))
            .count();
        assert!((1..=2).contains(&trips), "{kind:?}: {trips}");
        let seen = w.when(|e| *e == MasterEvent::Trip).expect("seen");
        println!(
            "{kind:?}: trip of 32 seen after {} µs",
            seen.since(now).as_micros()
        );
        assert!(seen.since(now) <= Duration::from_micros(600));
        assert_eq!(
            w.count(|e| matches!(e, MasterEvent::Message(Message::Alarm(n, a))
                if w.slaves[usize::from(a.index)].link.node() == Some(*n) && a.value == -7)),
            32
        );
        assert_eq!(lost(&w), 0);
    }
}

#[test]
fn orders_reach_one_or_all_in_order() {
    let mut w = rack(BusKind::Can1M);
    let to = w.slaves[9].link.node();
    for mask in 0..20 {
        w.master
            .command(Command {
                to,
                order: Order::Balance(mask),
            })
            .expect("room");
    }
    w.master
        .command(Command {
            to: None,
            order: Order::Gate(true),
        })
        .expect("room");
    w.run_for(Duration::from_millis(100));
    let orders = |i: usize| {
        let of = |e: &(Instant, SlaveEvent)| match e.1 {
            SlaveEvent::Order(order) => Some(order),
            _ => None,
        };
        w.slaves[i].events.iter().filter_map(of).collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = (0..20).map(Order::Balance).collect();
    expected.push(Order::Gate(true));
    assert_eq!(orders(9), expected);
    assert_eq!(orders(10), [Order::Gate(true)]);
    assert_eq!(lost(&w), 0);
}

#[test]
fn an_isolated_slave_says_nothing_but_summaries() {
    let mut w = rack(BusKind::Can1M);
    let to = w.slaves[0].link.node();
    w.master
        .command(Command {
            to,
            order: Order::Isolate(true),
        })
        .expect("room");
    w.run_for(Duration::from_millis(50));
    w.events.clear();
    w.run_for(Duration::from_millis(400));
    let mine = |e: &MasterEvent, summary: bool| match e {
        MasterEvent::Message(Message::Summary(n, _)) => summary && Some(*n) == to,
        MasterEvent::Message(
            Message::CellChunk { node, .. } | Message::RangeChunk { node, .. },
        ) => !summary && Some(*node) == to,
        _ => false,
    };
    assert_eq!(w.count(|e| mine(e, true)), 20);
    assert_eq!(w.count(|e| mine(e, false)), 0);
    assert_eq!(w.count(|e| matches!(e, MasterEvent::Left { .. })), 0);
}

#[test]
fn a_slave_that_gets_no_seat_still_says_that_it_trips() {
    for kind in CAN {
        let mut w = World::with(
            Schedule {
                seats: 1,
                ..Schedule::for_bus(kind)
            },
            1..=1,
        );
        w.run_until(ms(200));
        let refused = w.plug(2, RACK);
        w.run_for(Duration::from_millis(100));
        let full = SlaveEvent::Left(LeaveReason::Full);
        assert_eq!(w.slaves[refused].events[0].1, full, "{kind:?}");
        let now = w.now;
        w.slaves[refused].link.trip(now);
        w.run_for(Duration::from_millis(1));
        assert_eq!(w.count(|e| *e == MasterEvent::Trip), 1, "{kind:?}");
    }
}

#[test]
fn a_trip_in_quarantine_is_said_when_that_is_over() {
    for kind in CAN {
        let mut w = rack(kind);
        let (now, seat) = (w.now, w.slaves[3].link.node().expect("seated"));
        let hold = Duration::from_millis(100);
        w.master.quarantine(now, seat, hold);
        w.run_for(Duration::from_millis(20));
        let at = w.now;
        w.slaves[3].link.trip(at);
        w.run_for(Duration::from_millis(60));
        assert_eq!(w.count(|e| *e == MasterEvent::Trip), 0, "{kind:?}");
        w.run_for(Duration::from_millis(40));
        let told = w.when(|e| *e == MasterEvent::Trip).expect("said");
        assert!(
            told.since(now + hold) < Duration::from_millis(2),
            "{kind:?}"
        );
    }
}

#[test]
fn a_babbler_is_quarantined_within_10_ms_returns_and_is_quarantined_for_longer() {
    for kind in CAN {
        for offset in [0, 7_000, 9_900, 19_700] {
            let mut w = rack(kind);
            w.run_for(Duration::from_micros(40_000 + offset));
            let (at, seat) = (w.now, w.slaves[15].link.node().expect("seated"));
            w.slaves[15].link.babble(true);
            w.run_for(Duration::from_secs(2));
            let left: Vec<_> = w
                .events
                .iter()
                .filter_map(|(t, e)| match e {
                    MasterEvent::Left {
                        node,
                        reason: LeaveReason::Babbling,
                        ..
                    } => Some((*t, *node)),
                    _ => None,
                })
                .collect();
            println!(
                "{kind:?}: babbler quarantined after {} µs",
                left[0].0.since(at).as_micros()
            );
            assert!(
                left[0].0.since(at) < Duration::from_millis(10),
                "{kind:?} {offset}"
            );
            assert!(left.iter().all(|(_, n)| *n == seat));
            assert_eq!(
                w.count(|e| matches!(e, MasterEvent::Left { .. })),
                left.len()
            );
            // 100, 200, 400, 800 ms, and a little to join between them.
            let gaps = left.windows(2).map(|w| w[1].0.since(w[0].0).as_millis());
            for (i, gap) in gaps.enumerate() {
                assert!(
                    (100 << i..(100 << i) + 100).contains(&gap),
                    "{kind:?} {i} {gap}"
                );
            }
            assert!((4..=5).contains(&left.len()), "{kind:?}");
            let others = w.slaves.iter().enumerate().filter(|(i, _)| *i != 15);
            assert_eq!(
                others.map(|(_, s)| s.link.stats().overwritten).sum::<u64>(),
                0
            );
            w.slaves[15].link.babble(false);
            w.run_for(Duration::from_secs(2));
            assert_eq!(w.slaves[15].link.node(), Some(seat));
            assert!(w.master.member(seat).is_some());
        }
    }
}

#[test]
fn a_removed_slave_keeps_away_and_then_returns() {
    let mut w = rack(BusKind::Can1M);
    let seat = w.slaves[2].link.node().expect("seated");
    let now = w.now;
    w.master.remove(now, seat);
    w.run_for(Duration::from_millis(500));
    assert_eq!(w.slaves[2].link.node(), None);
    assert_eq!(w.joined(), 31);
    w.run_for(Duration::from_millis(700));
    assert_eq!(w.slaves[2].link.node(), Some(seat));
}

#[test]
fn a_full_bus_refuses_with_the_reason() {
    let mut schedule = Schedule::for_bus(BusKind::Can1M);
    schedule.seats = 2;
    let mut w = World::with(schedule, 1..=3);
    w.run_until(ms(200));
    assert_eq!(w.joined(), 2);
    let refused = w
        .slaves
        .iter()
        .find(|s| s.link.node().is_none())
        .expect("one");
    assert_eq!(refused.events[0].1, SlaveEvent::Left(LeaveReason::Full));
}

/// Several kinds of slaves, drawn at random, and a cycle in which some of them fit.
fn mixed(kind: BusKind, seed: u64) -> (Schedule, Vec<Capabilities>) {
    let mut rng = Rng(seed);
    let mut below = |n: u64| rng.next() % n;
    let schedule = Schedule::for_bus(kind);
    let cycle = schedule.cycle.as_nanos() * (25 + below(60)) / 100;
    let schedule = schedule.with_cycle(Duration::from_nanos(cycle));
    let count = 10 + below(40);
    let slaves = (0..count).map(|_| {
        let (cells, temps, anchors) = [(16, 4, 1), (18, 8, 16), (0, 0, 4), (12, 2, 0)]
            [usize::try_from(below(4)).expect("small")];
        Capabilities {
            cells,
            temps,
            anchors,
        }
    });
    (schedule, slaves.collect())
}

#[test]
fn a_bus_takes_as_many_slaves_as_the_analysis_and_says_what_one_more_would_break() {
    let (mut refused, mut early, mut kinds) = (0, 0, vec![]);
    for kind in CAN {
        for seed in 1..=8 {
            let (schedule, slaves) = mixed(kind, seed);
            let mut w = World::with(schedule, []);
            slaves.iter().zip(1..).for_each(|(c, n)| {
                w.plug(n, *c);
            });
            let lost = |w: &World| -> u64 {
                let members = w.slaves.iter().filter(|s| s.link.node().is_some());
                members.map(|s| s.link.stats().overwritten).sum()
            };
            w.run_until(ms(900));
            early += lost(&w);
            let before = lost(&w);
            // Who is refused asks again after a second, and is refused again.
            w.run_until(ms(2_500));
            let seats = || (1..=127).map(node).filter_map(|n| w.master.member(n));
            let members = || seats().map(|(_, c)| c);
            let all = |c| analysis::fits(&schedule, members().chain(c));
            assert_eq!(all(None), Ok(()), "{kind:?} {seed}");
            let (mut told, mut twice) = (vec![], false);
            for (_, event) in &w.events {
                let MasterEvent::Refused {
                    uid,
                    capabilities,
                    breaks,
                } = event
                else {
                    continue;
                };
                assert!(!breaks.0.holds());
                kinds.push(breaks.0.kind);
                twice |= told.contains(uid);
                told.push(*uid);
                let seated = seats().any(|(u, _)| u == *uid);
                assert!(!seated && all(Some(*capabilities)).is_err(), "{uid}");
            }
            // So many are remembered.
            assert!(!twice || told.len() > 16, "{kind:?} {seed}");
            for (c, n) in slaves.iter().zip(1..) {
                let seated = seats().any(|(u, _)| u == uid(n));
                assert!(seated || all(Some(*c)).is_err(), "{kind:?} {seed} {c:?}");
                assert!(seated || told.contains(&uid(n)), "{kind:?} {seed} {c:?}");
                refused += u32::from(!seated);
            }
            // Those who are refused cost nobody who is not a message.
            assert_eq!(w.master.stats().rejected, 0, "{kind:?} {seed}");
            assert_eq!(lost(&w) - before, 0, "{kind:?} {seed}");
        }
    }
    kinds.sort_by_key(|k| k.name());
    kinds.dedup();
    println!("{refused} refused, for {kinds:?}; {early} messages lost when all were switched on");
    assert!(refused > 50 && kinds.len() > 2);
}

#[test]
fn room_that_a_slave_leaves_is_given_to_one_that_was_refused() {
    for kind in CAN {
        let schedule = Schedule::for_bus(kind);
        let schedule = schedule.with_cycle(Duration::from_nanos(schedule.cycle.as_nanos() / 2));
        let fit = |n: usize| analysis::fits(&schedule, std::iter::repeat_n(RACK, n)).is_ok();
        let most = (0..127).find(|n| !fit(n + 1)).expect("a limit");
        let mut w = World::with(schedule, 1..=most as u64);
        w.run_until(ms(300));
        assert!(most > 2 && w.joined() == most, "{kind:?} {most}");
        let late = w.plug(200, RACK);
        w.run_for(Duration::from_millis(1_500));
        assert_eq!((w.joined(), w.slaves[late].link.node()), (most, None));
        w.slaves[0].on = false;
        w.run_for(Duration::from_millis(1_500));
        assert!(w.slaves[late].link.node().is_some(), "{kind:?}");
        let refusals = |e: &MasterEvent| matches!(e, MasterEvent::Refused { .. });
        assert_eq!(w.count(refusals), 1, "{kind:?}");
    }
}

#[test]
fn who_takes_the_place_of_a_dead_slave_on_a_full_bus_has_a_seat_as_soon_as_that_is_given_up() {
    for kind in CAN {
        let schedule = Schedule::for_bus(kind);
        let fit = |n: usize| analysis::fits(&schedule, std::iter::repeat_n(RACK, n)).is_ok();
        let most = (0..127).find(|n| !fit(n + 1)).expect("a limit");
        let mut w = World::with(schedule, 1..=most as u64);
        w.run_until(ms(500));
        assert_eq!(w.joined(), most, "{kind:?}");
        w.slaves[0].on = false;
        let new = w.plug(200, RACK);
        w.run_for(Duration::from_millis(100));
        let full = SlaveEvent::Left(LeaveReason::Full);
        assert!(w.slaves[new].events.iter().any(|e| e.1 == full), "{kind:?}");
        assert!(w.slaves[new].link.node().is_some(), "{kind:?}");
    }
}

#[test]
fn slaves_know_the_masters_time() {
    let mut w = rack(BusKind::Can1M);
    w.run_for(Duration::from_millis(500));
    for s in &w.slaves {
        let told = s.link.master_time(w.now).expect("known");
        let error = told.as_nanos().abs_diff(w.now.as_nanos());
        assert!(error <= 1_000, "{error} ns");
    }
}

#[test]
fn datagrams_pass_both_ways_beside_full_cyclic_traffic() {
    for kind in CAN {
        let mut w = rack(kind);
        w.run_for(Duration::from_millis(600));
        let (age, to) = (w.worst_age, w.slaves[1].link.node().expect("seated"));
        w.worst_age = [Duration::ZERO; 16];
        for len in [1, 7, 8, 62, 63, 500, 2048] {
            let question: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            w.master.send_datagram(to, &question).expect("free");
            let at = w.now;
            while !w.slaves[1]
                .events
                .iter()
                .any(|e| e.1 == SlaveEvent::Datagram)
            {
                w.run_for(Duration::from_millis(1));
                assert!(w.now.since(at) < Duration::from_secs(2), "{kind:?} {len}");
            }
            w.slaves[1].events.clear();
            assert_eq!(w.slaves[1].link.datagram(), Some(&question[..]));
            assert_eq!(w.slaves[1].link.datagram(), None, "handed over once");
            let asked = w.now.since(at);
            let answer: Vec<u8> = question.iter().rev().copied().collect();
            w.slaves[1].link.send_datagram(&answer).expect("free");
            while w.when(|e| *e == MasterEvent::Datagram(to)).is_none() {
                w.run_for(Duration::from_millis(1));
                assert!(w.now.since(at) < Duration::from_secs(4), "{kind:?} {len}");
            }
            w.events.clear();
            assert_eq!(w.master.datagram(), Some((to, &answer[..])));
            if len == 2048 {
                let ms = w.now.since(at).as_millis();
                println!(
                    "{kind:?}: 2 KiB there in {} ms, both ways {ms} ms",
                    asked.as_millis()
                );
            }
        }
        assert_eq!(lost(&w), 0, "{kind:?}");
        let blocking = Duration::from_micros(if kind == BusKind::Can500k { 320 } else { 170 });
        for (class, (now, before)) in w.worst_age.iter().zip(age).enumerate() {
            let grown = (*now - before).as_micros();
            assert!(
                *now <= before + blocking,
                "{kind:?} class {class}: {grown} µs more"
            );
        }
    }
}

/// Of two that begin at once neither takes the other's first frame for an answer to its own.
#[test]
fn datagrams_that_cross_both_arrive() {
    for kind in CAN {
        let mut w = World::new(kind, 1..=2);
        w.run_until(ms(200));
        let to = w.slaves[0].link.node().expect("seated");
        let (question, own) = ([0x5a; 900], [0xa5; 700]);
        w.master.send_datagram(to, &question).expect("free");
        w.slaves[0].link.send_datagram(&own).expect("free");
        w.run_for(Duration::from_secs(1));
        assert_eq!(w.slaves[0].link.datagram(), Some(&question[..]), "{kind:?}");
        assert_eq!(w.master.datagram(), Some((to, &own[..])), "{kind:?}");
    }
}

#[test]
fn a_lost_segment_costs_the_datagram_and_never_its_truth() {
    let mut w = World::new(BusKind::Can1M, 1..=2);
    w.run_until(ms(100));
    w.loss = 0.01;
    let to = w.slaves[0].link.node().expect("seated");
    let mut came = 0;
    for round in 0..60u8 {
        let question: Vec<u8> = (0..900u32).map(|i| (i as u8).wrapping_mul(round)).collect();
        while w.master.send_datagram(to, &question).is_err() {
            w.run_for(Duration::from_millis(20));
        }
        w.run_for(Duration::from_millis(600));
        if let Some(got) = w.slaves[0].link.datagram() {
            assert_eq!(got, question);
            came += 1;
        }
    }
    println!("{came} of 60 datagrams of 131 frames came at 1 % loss");
    assert!((5..60).contains(&came));
}

/// Whatever goes wrong with a slave's message, the master does not take it.
#[test]
fn every_fault_of_transmission_is_found_and_named() {
    let mut w = rack(BusKind::Can1M);
    w.keep_log = true;
    let with = |id, data: &[u8]| CanFrame::new(CanId::Standard(id), false, data).expect("fits");
    for fault in 0..8 {
        w.log.clear();
        w.run_for(Duration::from_millis(60));
        // The last frames of a class and node, oldest first.
        let of = |class: u16, n: u16| -> Vec<CanFrame> {
            let id = CanId::Standard(class << 7 | n);
            let log = w.log.iter().map(|(_, f)| *f);
            log.filter(|f| f.id == id).collect()
        };
        let (mine, other, ranges) = (of(4, 3), of(4, 4), of(11, 3));
        let [older, newest] = mine[mine.len() - 2..] else {
            panic!("two")
        };
        let mut corrupt = newest.data().to_vec();
        corrupt[4] ^= 0x10;
        let counter = newest.data()[1] + 3;
        let jump = Message::Summary(node(3), Summary::default());
        let (name, frame, expected) = match fault {
            0 => ("repetition", newest, E2eFault::Repeated),
            1 => ("delay, wrong sequence", older, E2eFault::Sequence),
            2 => ("corruption", with(4 << 7 | 3, &corrupt), E2eFault::Check),
            3 => (
                "masquerade",
                with(4 << 7 | 3, other[0].data()),
                E2eFault::Check,
            ),
            4 => (
                "wrong address",
                with(4 << 7 | 5, newest.data()),
                E2eFault::Check,
            ),
            5 => (
                "insertion",
                with(4 << 7 | 3, ranges[0].data()),
                E2eFault::Check,
            ),
            6 => (
                "truncation",
                with(4 << 7 | 3, &newest.data()[..7]),
                E2eFault::Check,
            ),
            _ => {
                let frame = encode_can(&jump, counter & 0xf, false).expect("a frame");
                ("loss", frame, E2eFault::Lost(2))
            }
        };
        w.events.clear();
        w.master.handle_can(w.now, &frame);
        let events: Vec<_> = std::iter::from_fn(|| w.master.poll_event()).collect();
        assert!(
            matches!(events[0], MasterEvent::Rejected { fault, .. } if fault == expected),
            "{name}: {events:?}"
        );
        let delivered = events.contains(&MasterEvent::Message(jump));
        assert_eq!(delivered, name == "loss", "only what is good is delivered");
        assert_eq!(events.len(), 1 + usize::from(delivered), "{name}");
    }
}
