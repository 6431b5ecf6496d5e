//! Several buses of one master: numbers, trips from one to the other, and who sits where.

mod common;

use common::{RACK, node, state_of, uid};
use helio_bus::*;
use helio_units::*;
use std::collections::VecDeque;

const STEP: Duration = Duration::from_micros(100);

/// Slaves on CAN buses without length: what is in a mailbox at one step is heard by all at the next.
struct Plant<const SEATS: usize> {
    now: Instant,
    trunk: Trunk<2, SEATS>,
    /// With the bus that each is on, and the number of its id.
    slaves: Vec<(usize, SlaveLink, u64)>,
    told: Vec<(Instant, MasterEvent)>,
    seen: Vec<(usize, SlaveEvent)>,
    /// Trip frames and SYNCs of the master, by bus.
    trips: [Vec<Instant>; 2],
    syncs: [Vec<Instant>; 2],
    /// The core above is too busy to look at news.
    busy: bool,
}

fn schedule(seats: u8) -> Schedule {
    Schedule {
        seats,
        ..Schedule::for_bus(BusKind::Can1M)
    }
}

impl<const SEATS: usize> Plant<SEATS> {
    fn new(seats: [u8; 2], slaves: &[(usize, u64)]) -> Self {
        let mut trunk = Trunk::vacant();
        trunk.start(&seats.map(schedule));
        let mut plant = Self {
            now: Instant::ZERO,
            trunk,
            slaves: vec![],
            told: vec![],
            seen: vec![],
            trips: [vec![], vec![]],
            syncs: [vec![], vec![]],
            busy: false,
        };
        for (bus, id) in slaves {
            plant.plug(*bus, *id);
        }
        plant
    }

    fn plug(&mut self, bus: usize, id: u64) {
        let link = SlaveLink::new(schedule(127), uid(id), RACK);
        self.slaves.push((bus, link, id));
    }

    fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        self.trunk.handle_timeout(now);
        for (i, (_, slave, _)) in self.slaves.iter_mut().enumerate() {
            slave.handle_timeout(now);
            while let Some(event) = slave.poll_event() {
                match event {
                    SlaveEvent::Sync { .. } => slave.set_state(now, &state_of(i)),
                    event => self.seen.push((i, event)),
                }
            }
        }
        for bus in 0..2 {
            self.carry(bus);
        }
        while !self.busy
            && let Some(event) = self.trunk.poll_event()
        {
            self.told.push((now, event));
        }
    }

    fn carry(&mut self, bus: usize) {
        let now = self.now;
        let mut frames: VecDeque<(Option<usize>, Mailbox, CanFrame)> = VecDeque::new();
        for mailbox in Mailbox::ALL {
            if let Some(out) = self.trunk.poll_can(bus, now, mailbox) {
                frames.push_back((None, mailbox, out.frame));
            }
            for (i, (on, slave, _)) in self.slaves.iter_mut().enumerate() {
                if *on == bus
                    && let Some(out) = slave.poll_can(now, mailbox)
                {
                    frames.push_back((Some(i), mailbox, out.frame));
                }
            }
        }
        for (from, mailbox, frame) in frames {
            match from {
                None => {
                    self.trunk.handle_sent(bus, now, mailbox);
                    match frame.id {
                        CanId::Standard(0) => self.trips[bus].push(now),
                        CanId::Standard(0x100) => self.syncs[bus].push(now),
                        _ => {}
                    }
                }
                Some(i) => {
                    self.slaves[i].1.handle_sent(now, mailbox);
                    self.trunk.handle_can(bus, now, &frame);
                }
            }
            for (i, (on, slave, _)) in self.slaves.iter_mut().enumerate() {
                if *on == bus && from != Some(i) && slave_accepts(frame.id, slave.node()) {
                    slave.handle_can(now, &frame);
                }
            }
        }
    }

    fn sits(&self, id: u64) -> Option<u8> {
        let nodes = (1..=127).filter_map(NodeId::new);
        let mut sits = nodes.filter(|n| self.trunk.member(*n).is_some_and(|(u, _)| u == uid(id)));
        let found = sits.next();
        assert_eq!(sits.next(), None, "two seats of one device");
        found.map(NodeId::get)
    }

    fn trips_seen(&self, slave: usize) -> usize {
        let seen = self.seen.iter();
        seen.filter(|s| **s == (slave, SlaveEvent::TripSeen))
            .count()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn seats_are_numbered_through_and_every_order_and_datagram_finds_its_slave() {
    let mut plant = Plant::<8>::new([3, 4], &[(0, 1), (1, 2), (1, 3), (0, 4)]);
    plant.run_for(SECOND);
    let mut numbers: Vec<_> = (1..=4).map(|id| plant.sits(id).expect("a seat")).collect();
    assert!(numbers[0] <= 3 && numbers[3] <= 3 && numbers[1] > 3 && numbers[2] > 3);
    assert_eq!(plant.trunk.first(1), NodeId::new(4));
    assert_eq!(
        (plant.trunk.bus_of(node(3)), plant.trunk.bus_of(node(4))),
        (Some(0), Some(1))
    );
    assert_eq!(plant.trunk.bus_of(node(8)), None);
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 4, 5]);
    // What each says comes under its number.
    for i in 0..4 {
        let n = plant.sits(i as u64 + 1);
        let its = plant.told.iter().filter_map(|(_, e)| match e {
            MasterEvent::Message(Message::Summary(from, s)) if Some(from.get()) == n => s.min,
            _ => None,
        });
        let expected = state_of(i).summary.min;
        assert!(its.clone().count() > 10 && its.map(Some).all(|mv| mv == expected));
    }
    let order = |plant: &mut Plant<8>, to, order| {
        plant.seen.clear();
        plant.trunk.command(Command { to, order }).expect("room");
        plant.run_for(Duration::from_millis(40));
        let heard = plant
            .seen
            .iter()
            .filter(|(_, e)| *e == SlaveEvent::Order(order));
        heard.map(|(i, _)| *i).collect::<Vec<_>>()
    };
    let third = node(plant.sits(3).expect("as above"));
    assert_eq!(order(&mut plant, Some(third), Order::Light(5)), [2]);
    let mut all = order(&mut plant, None, Order::ClearLatch);
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3]);
    // Both ways, to seats of the same number on both buses at once.
    for id in [1, 2] {
        let to = node(plant.sits(id).expect("as above"));
        let datagram = [id as u8; 300];
        plant.trunk.send_datagram(to, &datagram).expect("idle");
        let (_, slave, _) = &mut plant.slaves[id as usize - 1];
        slave.send_datagram(&[100 + id as u8; 300]).expect("idle");
    }
    plant.run_for(Duration::from_millis(300));
    for id in [1, 2u8] {
        let got = plant.slaves[usize::from(id) - 1].1.datagram();
        assert_eq!(got, Some([id; 300].as_slice()));
    }
    let mut from = vec![];
    while let Some((node, datagram)) = plant.trunk.datagram() {
        from.push((node.get(), datagram[0]));
    }
    from.sort_unstable();
    let expected = [1, 2].map(|id| (plant.sits(id).expect("as above"), 100 + id as u8));
    assert_eq!(from, expected);
}

#[test]
fn a_trip_on_one_bus_is_said_on_the_other_once_and_never_comes_back() {
    let mut plant = Plant::<8>::new([4, 4], &[(0, 1), (0, 2), (1, 3), (1, 4)]);
    plant.run_for(SECOND);
    for from in [0, 2] {
        plant.seen.clear();
        plant.told.clear();
        plant.trips = [vec![], vec![]];
        let tripped = plant.now;
        plant.slaves[from].1.trip(tripped);
        plant.run_for(Duration::from_millis(100));
        assert_eq!(
            [0, 1, 2, 3].map(|i| plant.trips_seen(i)),
            [1; 4],
            "from {from}"
        );
        let heard = plant.told.iter().filter(|(_, e)| *e == MasterEvent::Trip);
        assert_eq!(heard.count(), 1);
        let (on, to) = (from / 2, 1 - from / 2);
        assert_eq!((plant.trips[on].len(), plant.trips[to].len()), (0, 1));
        assert!(plant.trips[to][0].since(tripped) <= STEP * 3);
    }
}

#[test]
fn of_many_trips_a_bus_hears_one_a_cycle_and_the_last_is_not_lost() {
    let mut plant = Plant::<8>::new([4, 4], &[(0, 1), (1, 2)]);
    plant.run_for(SECOND);
    let cycle = schedule(4).cycle;
    let begin = plant.now;
    for _ in 0..30 {
        let now = plant.now;
        plant.slaves[0].1.trip(now);
        plant.run_for(Duration::from_millis(5));
    }
    let last = plant.now;
    plant.run_for(cycle * 3);
    let said = &plant.trips[1];
    let cycles = plant.now.since(begin).as_nanos() / cycle.as_nanos() + 1;
    assert!(said.len() > 5 && said.len() as u64 <= cycles, "{said:?}");
    assert!(said.windows(2).all(|w| w[1].since(w[0]) >= cycle));
    assert!(said.last().expect("some") >= &(last - Duration::from_millis(5)));
    assert!(plant.trips[0].is_empty());
}

#[test]
fn a_second_device_with_the_same_id_on_the_other_bus_is_named_and_gets_no_seat() {
    let mut plant = Plant::<8>::new([4, 4], &[(0, 1), (1, 2)]);
    plant.run_for(SECOND);
    let sits = plant.sits(1);
    plant.told.clear();
    plant.plug(1, 1);
    plant.run_for(SECOND * 5);
    assert_eq!(plant.sits(1), sits);
    let duplicates = plant.told.iter().filter(|(_, e)| {
        *e == MasterEvent::Duplicate {
            node: node(1),
            uid: uid(1),
        }
    });
    assert!((1..=6).contains(&duplicates.count()));
    // Nor is anything told that it says, even to a core that looks late: twice it came, and spoke, while nobody did.
    plant.busy = true;
    for _ in 0..2 {
        plant.slaves.pop();
        plant.run_for(Duration::from_millis(60));
        while let Some(event) = plant.trunk.poll_event() {
            plant.told.push((plant.now, event));
        }
        plant.plug(1, 1);
        plant.run_for(Duration::from_millis(25));
    }
    plant.busy = false;
    plant.run_for(SECOND);
    assert_eq!(plant.sits(1), sits);
    // Nothing else is told of it.
    let strange = plant.told.iter().find(|(_, e)| match e {
        MasterEvent::Joined { .. } | MasterEvent::Left { .. } => true,
        MasterEvent::Message(m) => m.node().is_some_and(|n| n != node(1) && n != node(5)),
        _ => false,
    });
    assert_eq!(strange, None);
}

#[test]
fn a_device_that_is_moved_to_the_other_bus_gets_a_seat_there_when_the_old_one_is_given_up() {
    let mut plant = Plant::<8>::new([4, 4], &[(0, 1), (1, 2)]);
    plant.run_for(SECOND);
    assert_eq!(plant.sits(1), Some(1));
    plant.slaves.remove(0);
    plant.plug(1, 1);
    plant.run_for(SECOND * 2);
    assert_eq!(plant.sits(1), Some(6));
    let left = plant
        .told
        .iter()
        .position(|(_, e)| matches!(e, MasterEvent::Left { uid: u, .. } if *u == uid(1)));
    let joined = plant
        .told
        .iter()
        .rposition(|(_, e)| matches!(e, MasterEvent::Joined { uid: u, .. } if *u == uid(1)));
    assert!(left.expect("it left") < joined.expect("it came"));
}

#[test]
fn a_bus_has_no_seats_but_those_that_the_buses_before_it_leave() {
    let mut plant = Plant::<5>::new([3, 127], &[(1, 1), (1, 2), (1, 3), (0, 4)]);
    plant.run_for(SECOND);
    let sit = (1..=3).filter(|id| plant.sits(*id).is_some_and(|n| n == 4 || n == 5));
    assert_eq!((sit.count(), plant.sits(4)), (2, Some(1)));
    let mut full = Trunk::<3, 255>::vacant();
    full.start(&[schedule(100), schedule(100), schedule(100)]);
    assert_eq!(
        [0, 1, 2].map(|bus| full.first(bus).map(NodeId::get)),
        [Some(1), Some(101), None]
    );
    assert_eq!(full.bus_of(node(127)), Some(1));
    assert_eq!(full.buses(), 3);
}

#[test]
fn cycles_of_equal_length_begin_together_and_range_the_same_tag() {
    let mut plant = Plant::<8>::new([4, 4], &[(0, 1), (1, 2)]);
    plant.trunk.set_tags(&[TagId(3), TagId(5), TagId(7)]);
    // Its first word is a frame on one of them.
    let claim = CanFrame::new(CanId::Standard(0x7ff), false, &[]).expect("a frame");
    plant.now = Instant::from_micros(50);
    plant.trunk.handle_can(1, plant.now, &claim);
    plant.run_for(SECOND);
    let ranged = |slave| {
        let of = plant.seen.iter().filter(move |(i, _)| *i == slave);
        let tags = of.filter_map(|(_, e)| match e {
            SlaveEvent::RangeNow(tag) => Some(tag.0),
            _ => None,
        });
        tags.collect::<Vec<_>>()
    };
    assert_eq!(plant.syncs[0], plant.syncs[1]);
    let (a, b) = (ranged(0), ranged(1));
    let n = a.len().min(b.len());
    assert!(plant.trunk.in_step() && n > 40);
    assert_eq!(a[a.len() - n..], b[b.len() - n..]);
    let mut mixed = Trunk::<2, 8>::vacant();
    mixed.start(&[schedule(4), Schedule::for_bus(BusKind::Rs485At4M)]);
    assert!(!mixed.in_step());
}

/// On RS485 a trip of another bus is shown in minislots, and who hears itself does not take it for a slave's.
#[test]
fn on_rs485_a_trip_is_a_break_in_a_minislot_and_its_echo_is_none() {
    let mut trunk = Trunk::<2, 8>::vacant();
    let serial = Schedule {
        seats: 4,
        ..Schedule::for_bus(BusKind::Rs485At1M)
    };
    trunk.start(&[schedule(4), serial]);
    let trip = CanFrame::new(CanId::Standard(0), false, &[]).expect("a frame");
    let (mut now, mut breaks, mut told) = (Instant::ZERO, vec![], 0);
    let tripped = Instant::from_millis(50);
    while now < Instant::from_millis(150) {
        now += Duration::from_micros(5);
        trunk.handle_timeout(now);
        if now == tripped {
            trunk.handle_can(0, now, &trip);
        }
        while let Some(event) = trunk.poll_event() {
            told += u32::from(event == MasterEvent::Trip);
        }
        while let Some(out) = trunk.poll_serial(1, now) {
            if let SerialSignal::Break(length) = out.what {
                breaks.push(out.at);
                trunk.handle_break(1, out.at + length);
            }
        }
        for mailbox in Mailbox::ALL {
            if trunk.poll_can(0, now, mailbox).is_some() {
                trunk.handle_sent(0, now, mailbox);
            }
        }
    }
    assert_eq!((breaks.len(), told), (2, 1));
    assert!(
        breaks[0] >= tripped && breaks[1].since(tripped) < Duration::from_millis(2),
        "{breaks:?}"
    );
}

/// Devices come, go, restart, are moved and meet their twins at random: what is told fits together, nobody is told
/// of on two seats, and in the end each has one.
#[test]
fn whatever_moves_between_buses_each_device_has_one_seat_and_the_news_tell_it() {
    for seed in 1..=200 {
        let mut rng = common::Rng(seed);
        let mut pick = |n: u64| (rng.next() >> 32) % n;
        let mut plant = Plant::<12>::new([6, 6], &[]);
        let mut at = [0, 0, 1, 1];
        let all = |at: &[usize; 4]| at.iter().copied().zip(1..).collect::<Vec<_>>();
        for (bus, id) in all(&at) {
            plant.plug(bus, id);
        }
        for _ in 0..12 {
            plant.run_for(Duration::from_micros(500 + pick(60_000)));
            let device = pick(4) as usize;
            let id = device as u64 + 1;
            plant.slaves.retain(|(.., its)| *its != id);
            match pick(4) {
                0 => {}
                1 => plant.plug(at[device], id),
                2 => {
                    at[device] = 1 - at[device];
                    plant.plug(at[device], id);
                }
                _ => {
                    plant.plug(0, id);
                    plant.plug(1, id);
                }
            }
            if let Some((_, slave, _)) = plant.slaves.first_mut() {
                slave.trip(plant.now);
            }
        }
        plant.slaves.clear();
        plant.run_for(Duration::from_millis(1));
        for (bus, id) in all(&at) {
            plant.plug(bus, id);
        }
        plant.run_for(SECOND * 3);
        let mut seats = [None; 13];
        for (_, event) in &plant.told {
            match *event {
                MasterEvent::Joined { node, uid, .. } => {
                    assert!(
                        !seats.contains(&Some(uid)),
                        "seed {seed}: {uid} joins twice"
                    );
                    seats[node.index()] = Some(uid);
                }
                MasterEvent::Left { node, uid, .. } => {
                    assert_eq!(seats[node.index()].take(), Some(uid), "seed {seed}");
                }
                MasterEvent::Message(ref message) => {
                    let from = message.node().expect("of a slave").index();
                    assert!(seats[from].is_some(), "seed {seed}: {message:?} of nobody");
                }
                _ => {}
            }
        }
        for (bus, id) in all(&at) {
            let sits = plant
                .sits(id)
                .unwrap_or_else(|| panic!("seed {seed}: {id} has no seat"));
            assert_eq!(seats[usize::from(sits) - 1], Some(uid(id)), "seed {seed}");
            assert_eq!(usize::from(sits > 6), bus, "seed {seed}");
        }
    }
}
