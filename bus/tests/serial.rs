//! Master and slaves together on an RS485 line in memory.

mod common;
use common::*;
use helio_bus::*;
use helio_units::*;

const KINDS: [BusKind; 2] = [BusKind::Rs485At1M, BusKind::Rs485At4M];
/// With the one on which 32 slaves take a quarter of a second.
const ALL: [BusKind; 3] = [BusKind::Rs485At1M, BusKind::Rs485At4M, BusKind::Rs485At115k];

/// Who sends; the master is port 0.
#[derive(Clone, Copy)]
struct Sent {
    port: usize,
    start: Instant,
    end: Instant,
    what: SerialSignal,
    sampled_at: Option<Instant>,
    told: bool,
}

/// Drivers and receivers; every slave's crystal is off by some ppm.
struct Line {
    now: Instant,
    bit: Duration,
    master: MasterLink,
    master_on: bool,
    slaves: Vec<Unit>,
    events: Vec<(Instant, MasterEvent)>,
    /// On the line or over and not yet delivered.
    sent: Vec<Sent>,
    loss: f64,
    rng: Rng,
    collisions: u64,
    frames: u64,
    worst_age: Duration,
    /// Runs are handed over one character at a time.
    by_character: bool,
    /// Seats that the master has asked for a sign of life.
    asked: Vec<u8>,
    /// A slave that is too slow to answer those.
    slow: Option<usize>,
}

struct Unit {
    link: SlaveLink,
    on: bool,
    deaf: bool,
    /// Parts per million.
    drift: i64,
    events: Vec<(Instant, SlaveEvent)>,
    state: State,
    ranges: bool,
}

impl Unit {
    fn local(&self, t: Instant) -> Instant {
        let ns = t.as_nanos() as i128;
        Instant::from_nanos((ns + ns * i128::from(self.drift) / 1_000_000) as u64)
    }
    fn global(&self, t: Instant) -> Instant {
        // The first instant at which the local clock shows `t`.
        let ns = t.as_nanos() as i128;
        let mut guess = ns - ns * i128::from(self.drift) / 1_000_000;
        while self.local(Instant::from_nanos(guess as u64)) < t {
            guess += 1;
        }
        Instant::from_nanos(guess as u64)
    }
}

impl Line {
    fn new(kind: BusKind, uids: impl IntoIterator<Item = u64>) -> Self {
        Self::with(Schedule::for_bus(kind), uids)
    }

    fn with(schedule: Schedule, uids: impl IntoIterator<Item = u64>) -> Self {
        let bit = match schedule.kind {
            BusKind::Rs485At1M => 1_000,
            BusKind::Rs485At115k => 8_681,
            _ => 250,
        };
        let mut line = Self {
            now: ms(3),
            bit: Duration::from_nanos(bit),
            master: MasterLink::new(schedule),
            master_on: true,
            slaves: vec![],
            events: vec![],
            sent: vec![],
            loss: 0.0,
            rng: Rng(1),
            collisions: 0,
            frames: 0,
            worst_age: Duration::ZERO,
            by_character: false,
            asked: vec![],
            slow: None,
        };
        for n in uids {
            line.plug(n, RACK);
        }
        line
    }

    fn plug(&mut self, n: u64, capabilities: Capabilities) -> usize {
        let i = self.slaves.len();
        self.slaves.push(Unit {
            link: SlaveLink::new(*self.master.schedule(), uid(n), capabilities),
            on: true,
            deaf: false,
            drift: [50, -50, 0, 30][i % 4],
            events: vec![],
            state: state_of(i),
            ranges: true,
        });
        i
    }

    fn unplug(&mut self, i: usize) {
        self.slaves[i].on = false;
    }

    fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            self.settle();
            let mut next = end;
            if self.master_on {
                next = next.min(self.master.poll_timeout().unwrap_or(end));
            }
            for s in self.slaves.iter().filter(|s| s.on) {
                if let Some(t) = s.link.poll_timeout() {
                    next = next.min(s.global(t));
                }
            }
            for s in self.sent.iter().filter(|s| !s.told) {
                next = next.min(self.due(s));
            }
            if next >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            self.deliver();
            let now = self.now;
            if self.master_on {
                self.master.handle_timeout(now);
            }
            for s in self.slaves.iter_mut().filter(|s| s.on) {
                let local = s.local(now);
                s.link.handle_timeout(local);
            }
        }
    }

    /// When a signal is noticed.
    fn due(&self, s: &Sent) -> Instant {
        match s.what {
            SerialSignal::Bytes { .. } => s.end,
            SerialSignal::Break(_) => s.start + self.bit * 11,
        }
    }

    /// Events and new signals of all.
    fn settle(&mut self) {
        let now = self.now;
        if self.master_on {
            while let Some(out) = self.master.poll_serial(now) {
                self.transmit(0, out.at, out);
            }
            while let Some(event) = self.master.poll_event() {
                self.events.push((now, event));
            }
        }
        for i in 0..self.slaves.len() {
            let s = &mut self.slaves[i];
            if !s.on {
                continue;
            }
            let local = s.local(now);
            while let Some(event) = s.link.poll_event() {
                match &event {
                    SlaveEvent::Sync { .. } => s.link.set_state(local, &s.state),
                    SlaveEvent::RangeNow(tag) if s.ranges => {
                        let mut range = [None; MAX_ANCHORS];
                        range[0] = Some(Millimetres(1_000 + i as i32));
                        s.link.set_ranges(local, &Ranges { tag: *tag, range });
                    }
                    SlaveEvent::RangeNow(_) => {}
                    _ => s.events.push((now, event)),
                }
            }
            let mut outs = vec![];
            while let Some(out) = s.link.poll_serial(local) {
                outs.push(out);
            }
            for out in outs {
                let at = self.slaves[i].global(out.at);
                self.transmit(i + 1, at, out);
            }
        }
    }

    fn transmit(&mut self, port: usize, at: Instant, out: SerialOut) {
        assert!(
            self.now.since(at) <= self.bit * 4,
            "port {port} is late by {} ns",
            self.now.since(at).as_nanos()
        );
        let start = at.max(self.now);
        let length = match out.what {
            SerialSignal::Bytes { len, .. } => self.bit * 10 * u64::from(len),
            SerialSignal::Break(d) => d,
        };
        self.frames += 1;
        if let SerialSignal::Bytes { buffer, len: 7 } = out.what
            && buffer[0] == 0xd1
        {
            self.asked.push(buffer[1]);
        }
        if let SerialSignal::Bytes { buffer, .. } = out.what
            && buffer[0] == 0xd2
            && self.slow.map(|i| i + 1) == Some(port)
        {
            return;
        }
        self.sent.push(Sent {
            port,
            start,
            end: start + length,
            what: out.what,
            sampled_at: out.sampled_at,
            told: false,
        });
    }

    /// Hands over what is due. Signals that met are garbage, equal ones are one.
    fn deliver(&mut self) {
        let now = self.now;
        self.sent
            .retain(|s| now <= s.end + Duration::from_millis(2));
        for i in 0..self.sent.len() {
            let s = self.sent[i];
            if s.told || self.due(&s) > now {
                continue;
            }
            self.sent[i].told = true;
            let met: Vec<usize> = (0..self.sent.len())
                .filter(|&o| o != i && self.sent[o].start < s.end && s.start < self.sent[o].end)
                .collect();
            let same = |o: &Sent| match (&o.what, &s.what) {
                (SerialSignal::Break(_), SerialSignal::Break(_)) => true,
                (a, b) => a == b && o.start.as_nanos().abs_diff(s.start.as_nanos()) < 100,
            };
            let garbled = met.iter().any(|o| !same(&self.sent[*o]));
            self.collisions += u64::from(garbled);
            let others = met.iter().map(|o| self.sent[*o]);
            let met_ports: Vec<usize> = others.map(|o| o.port).collect();
            met.iter().for_each(|o| self.sent[*o].told = true);
            let senders: Vec<usize> = met_ports.into_iter().chain([s.port]).collect();
            match s.what {
                SerialSignal::Break(_) => {
                    self.each(
                        &senders,
                        |link, local| link.handle_break(local),
                        |m, t| m.handle_break(t),
                    );
                }
                SerialSignal::Bytes { buffer, len } => {
                    let mut bytes = buffer[..usize::from(len)].to_vec();
                    if garbled {
                        for b in bytes.iter_mut().skip(2) {
                            *b ^= self.rng.next() as u8;
                        }
                    }
                    if self.by_character {
                        // The times of earlier characters are in the past; that is legal.
                        let bit = self.bit;
                        let n = bytes.len() as u64;
                        for (i, b) in bytes.iter().enumerate() {
                            let back = bit * 10 * (n - 1 - i as u64);
                            self.each(
                                &senders,
                                |link, local| link.handle_serial(local - back, &[*b]),
                                |m, t| m.handle_serial(t - back, &[*b]),
                            );
                        }
                    } else {
                        self.each(
                            &senders,
                            |link, local| link.handle_serial(local, &bytes),
                            |m, t| m.handle_serial(t, &bytes),
                        );
                    }
                    if let Some(at) = s.sampled_at.filter(|_| !garbled) {
                        let at = self.slaves[s.port - 1].global(at);
                        self.worst_age = self.worst_age.max(now.since(at));
                    }
                }
            }
        }
    }

    fn each(
        &mut self,
        senders: &[usize],
        slave: impl Fn(&mut SlaveLink, Instant),
        master: impl Fn(&mut MasterLink, Instant),
    ) {
        let now = self.now;
        if self.master_on && !senders.contains(&0) && !self.rng.chance(self.loss) {
            master(&mut self.master, now);
        }
        for (i, s) in self.slaves.iter_mut().enumerate() {
            if s.on && !s.deaf && !senders.contains(&(i + 1)) && !self.rng.chance(self.loss) {
                let local = s.local(now);
                slave(&mut s.link, local);
            }
        }
    }

    /// Until the next beacon is on the line.
    fn next_beacon(&mut self) {
        let from = self.now;
        let beacon = |s: &Sent| {
            let SerialSignal::Bytes { buffer, .. } = s.what else {
                return false;
            };
            s.port == 0 && buffer[0] == 0xa2 && s.start > from
        };
        while !self.sent.iter().any(beacon) {
            self.run_for(Duration::from_micros(20));
        }
    }

    fn joined(&self) -> usize {
        (1..=127)
            .filter(|n| self.master.member(node(*n)).is_some())
            .count()
    }
    fn count(&self, wanted: impl Fn(&MasterEvent) -> bool) -> usize {
        self.events.iter().filter(|(_, e)| wanted(e)).count()
    }
    fn when(&self, wanted: impl Fn(&MasterEvent) -> bool) -> Option<Instant> {
        self.events
            .iter()
            .find(|(_, e)| wanted(e))
            .map(|(at, _)| *at)
    }
    fn lost(&self) -> u64 {
        self.slaves.iter().map(|s| s.link.stats().overwritten).sum()
    }
}

fn rack(kind: BusKind) -> Line {
    let mut l = Line::new(kind, 1..=32);
    l.master.set_tags(&[TagId(7), TagId(8)]);
    l.run_until(ms(300).max(Instant::ZERO + Schedule::for_bus(kind).cycle * 24));
    assert_eq!(l.joined(), 32, "{kind:?}");
    l.events.clear();
    l.asked.clear();
    l.worst_age = Duration::ZERO;
    l.slaves.iter_mut().for_each(|s| s.events.clear());
    l
}

#[test]
fn a_cold_rack_of_32_joins_within_five_superframes() {
    for kind in ALL {
        let mut worst = Duration::ZERO;
        for seed in 0..16 {
            let mut l = Line::new(kind, (1..=32).map(|n| n + 1_000 * seed));
            l.run_until(ms(400));
            let joined = |e: &MasterEvent| matches!(e, MasterEvent::Joined { .. });
            assert_eq!(l.count(joined), 32, "{kind:?} seed {seed}");
            let last = l
                .events
                .iter()
                .rev()
                .find(|(_, e)| joined(e))
                .expect("32")
                .0;
            worst = worst.max(last.since(ms(3)));
            let mut seats: Vec<_> = l.slaves.iter().filter_map(|s| s.link.node()).collect();
            seats.sort();
            seats.dedup();
            assert_eq!(seats.len(), 32);
        }
        println!(
            "{kind:?}: 32 joined after at most {} µs of 16 trials",
            worst.as_micros()
        );
        assert!(worst <= Schedule::for_bus(kind).cycle * 5);
    }
}

#[test]
fn every_value_reaches_the_master_in_its_slot() {
    for kind in ALL {
        let mut l = rack(kind);
        let before = l.collisions;
        l.run_for(Duration::from_secs(1));
        assert_eq!(
            l.collisions, before,
            "slots do not meet although crystals differ"
        );
        assert_eq!(l.lost(), 0);
        assert_eq!(l.master.stats().lost, 0);
        println!("{kind:?}: oldest value {} µs", l.worst_age.as_micros());
        if kind == BusKind::Rs485At4M {
            assert!(l.worst_age < Duration::from_millis(10));
        }
        let cycles = 1_000_000 / Schedule::for_bus(kind).cycle.as_micros() as usize;
        let states = l.count(|e| matches!(e, MasterEvent::Message(Message::State(..))));
        let ranges = l.count(|e| matches!(e, MasterEvent::Message(Message::Ranges(..))));
        assert!(states >= 32 * (cycles - 1), "{states}");
        assert!(ranges >= 32 * (cycles - 1), "{ranges}");
        for (_, event) in &l.events {
            match event {
                MasterEvent::Message(Message::State(n, state)) => {
                    let s = l
                        .slaves
                        .iter()
                        .find(|s| s.link.node() == Some(*n))
                        .expect("seated");
                    assert_eq!(*state, s.state);
                }
                MasterEvent::Message(Message::Ranges(n, r)) => {
                    let s = l.slaves.iter().position(|s| s.link.node() == Some(*n));
                    let mm = Millimetres(1_000 + s.expect("seated") as i32);
                    assert_eq!(r.range[0], Some(mm));
                }
                e => panic!("{e:?}"),
            }
        }
    }
}

#[test]
fn characters_one_by_one_are_as_good_as_whole_runs() {
    let mut l = Line::new(BusKind::Rs485At4M, 1..=4);
    l.by_character = true;
    l.run_until(ms(200));
    assert_eq!(l.joined(), 4);
    assert_eq!(l.lost(), 0);
}

#[test]
fn a_trip_of_one_or_of_all_is_seen_within_a_millisecond_or_two_at_115200_baud() {
    for kind in ALL {
        let mut worst = Duration::ZERO;
        let mut l = rack(kind);
        for trial in 0..30u64 {
            l.run_for(l.master.schedule().cycle + Duration::from_micros(trial * 1_977));
            l.events.clear();
            l.slaves.iter_mut().for_each(|s| s.events.clear());
            let now = l.now;
            for (i, s) in l.slaves.iter_mut().enumerate() {
                if trial % 2 == 0 || i == 5 {
                    let local = s.local(now);
                    s.link.trip(local);
                }
            }
            l.run_for(Duration::from_millis(5));
            let seen = l.when(|e| *e == MasterEvent::Trip).expect("seen");
            worst = worst.max(seen.since(now));
            assert!(
                l.slaves
                    .iter()
                    .all(|s| s.events.iter().any(|e| e.1 == SlaveEvent::TripSeen))
            );
        }
        println!("{kind:?}: trip seen after at most {} µs", worst.as_micros());
        let goal = if kind == BusKind::Rs485At115k { 2 } else { 1 };
        assert!(worst < Duration::from_millis(goal));
        // Nor does the frame between whose pieces it was.
        assert_eq!(l.lost(), 0);
        assert_eq!(l.master.stats().lost, 0);
        assert_eq!(l.joined(), 32);
    }
}

/// At 115 200 baud beacon and orders come in pieces of 18 characters. Whatever a piece begins with, it is no message for
/// the master.
#[test]
fn no_order_is_lost_for_what_is_in_it() {
    let mut line = Line::new(BusKind::Rs485At115k, [1, 2]);
    line.run_until(ms(3_000));
    let to = line.slaves[0].link.node();
    assert!(to.is_some());
    line.slaves[0].events.clear();
    for byte in 0..=255u32 {
        let order = Order::Balance(byte * 0x0101_0101);
        line.master.command(Command { to, order }).expect("room");
        if byte % 2 == 1 {
            line.run_for(Schedule::for_bus(BusKind::Rs485At115k).cycle);
        }
    }
    line.run_for(Duration::from_secs(1));
    let heard = line.slaves[0].events.iter();
    let orders = heard.filter(|(_, e)| matches!(e, SlaveEvent::Order(Order::Balance(_))));
    assert_eq!(orders.count(), 256);
}

#[test]
fn a_trip_between_the_pieces_of_a_beacon_is_heard_by_all_and_the_beacon_too() {
    let kind = BusKind::Rs485At115k;
    let mut l = rack(kind);
    for trial in 0..8 {
        l.next_beacon();
        // In the first piece, or in the second.
        l.run_for(l.bit * (20 + trial % 2 * 200));
        l.events.clear();
        l.slaves.iter_mut().for_each(|s| s.events.clear());
        let local = l.slaves[5].local(l.now);
        l.slaves[5].link.trip(local);
        l.run_for(l.bit * 450);
        assert!(l.count(|e| *e == MasterEvent::Trip) >= 1, "{trial}");
        let seen = |s: &Unit| s.events.iter().any(|e| e.1 == SlaveEvent::TripSeen);
        assert!(l.slaves.iter().all(seen), "{trial}");
        l.run_for(l.master.schedule().cycle);
        assert_eq!((l.lost(), l.master.stats().lost), (0, 0));
    }
    assert_eq!(l.joined(), 32);
}

#[test]
fn no_frame_is_taken_for_a_trip() {
    for kind in ALL {
        let mut l = rack(kind);
        l.loss = 0.02;
        l.run_for(Duration::from_secs(1));
        assert_eq!(l.count(|e| *e == MasterEvent::Trip), 0);
    }
}

#[test]
fn an_alarm_arrives_once_even_if_one_frame_is_lost() {
    let mut l = rack(BusKind::Rs485At4M);
    l.loss = 0.05;
    for n in 0..60 {
        let i = n % 32;
        let local = l.slaves[i].local(l.now);
        let alarm = Alarm {
            code: n as u8,
            severity: Severity::Warn,
            active: true,
            index: 3,
            value: -1,
        };
        l.slaves[i].link.alarm(local, alarm);
        l.run_for(Duration::from_millis(40));
    }
    let mut codes: Vec<_> = l
        .events
        .iter()
        .filter_map(|(_, e)| match e {
            MasterEvent::Message(Message::Alarm(_, a)) => Some(a.code),
            _ => None,
        })
        .collect();
    let before = codes.len();
    codes.sort();
    codes.dedup();
    assert_eq!(codes.len(), before, "none twice");
    assert!(codes.len() >= 59, "{}", codes.len());
}

#[test]
fn a_dead_slave_is_found_a_new_one_takes_its_seat_and_nobody_is_disturbed() {
    for kind in KINDS {
        let mut l = rack(kind);
        let seat = l.slaves[11].link.node().expect("seated");
        let at = l.now;
        l.unplug(11);
        l.run_for(Duration::from_millis(150));
        let left = |e: &MasterEvent| matches!(e, MasterEvent::Left { node, reason: LeaveReason::Silence, .. } if *node == seat);
        let found = l.when(left).expect("found");
        println!(
            "{kind:?}: dead slave found after {} µs",
            found.since(at).as_micros()
        );
        assert!(found.since(at) <= Duration::from_millis(30));
        let i = l.plug(99, RACK);
        let at = l.now;
        l.run_for(Duration::from_millis(150));
        assert_eq!(l.slaves[i].link.node(), Some(seat));
        let (when, _) = l.slaves[i].events[0];
        println!("{kind:?}: hot plug took {} µs", when.since(at).as_micros());
        assert_eq!(
            l.count(
                |e| matches!(e, MasterEvent::Joined { replaces: Some(old), .. } if *old == uid(12))
            ),
            1
        );
        assert_eq!(l.count(|e| matches!(e, MasterEvent::Left { .. })), 1);
        let others = l
            .slaves
            .iter()
            .take(32)
            .enumerate()
            .filter(|(i, _)| *i != 11);
        assert_eq!(
            others.map(|(_, s)| s.link.stats().overwritten).sum::<u64>(),
            0
        );
    }
}

#[test]
fn a_dead_slave_is_found_within_a_superframe_and_a_slot_whenever_it_dies() {
    for kind in KINDS {
        let mut worst = Duration::ZERO;
        for trial in 0..32 {
            let mut l = rack(kind);
            let cycle = l.master.schedule().cycle;
            l.run_for(Duration::from_nanos(cycle.as_nanos() / 32 * trial));
            let at = l.now;
            l.unplug((trial * 13 % 32) as usize);
            l.run_for(cycle * 4);
            let left = |e: &MasterEvent| matches!(e, MasterEvent::Left { .. });
            worst = worst.max(l.when(left).expect("found").since(at));
            assert_eq!(l.count(left), 1);
        }
        println!("{kind:?}: found after at most {} µs", worst.as_micros());
        assert!(worst <= Duration::from_millis(30));
    }
}

#[test]
fn who_lost_a_beacon_answers_when_asked_and_stays() {
    for kind in ALL {
        let mut l = rack(kind);
        for trial in 0..24 {
            // One beacon, or two in a row.
            let i = trial * 5 % 32;
            for _ in 0..1 + trial % 2 {
                l.next_beacon();
                l.slaves[i].deaf = true;
                l.run_for(l.bit * 320); // 31 characters, and not what comes behind
                l.slaves[i].deaf = false;
            }
            let before = l.master.stats().received;
            l.run_for(l.master.schedule().cycle * 3);

            assert!(l.master.stats().received > before);
        }
        assert_eq!(l.count(|e| matches!(e, MasterEvent::Left { .. })), 0);
        assert_eq!(l.joined(), 32);
        // It was asked, and each time it was the one that had been deaf.
        assert!(l.asked.len() >= 24, "{kind:?}: {:?}", l.asked.len());
        let seats: Vec<u8> = (0..24)
            .filter_map(|trial| l.slaves[trial * 5 % 32].link.node())
            .map(NodeId::get)
            .collect();
        assert!(l.asked.iter().all(|n| seats.contains(n)));
    }
}

#[test]
fn who_cannot_answer_an_ask_is_left_to_its_silence() {
    let mut l = Line::new(BusKind::Rs485At1M, 1..=4);
    l.master.set_tags(&[TagId(7)]);
    // The first says nothing after an ask.
    l.slow = Some(0);
    l.run_until(ms(400));
    assert_eq!(l.joined(), 4);
    l.next_beacon();
    l.slaves[0].deaf = true;
    l.run_for(l.bit * 320);
    l.slaves[0].deaf = false;
    l.run_for(l.master.schedule().cycle * 3);
    assert_eq!(l.count(|e| matches!(e, MasterEvent::Left { .. })), 0);
    let seat = l.slaves[0].link.node().expect("seated").get();
    assert!(l.asked.contains(&seat));
}

#[test]
fn a_slave_that_ranges_nothing_is_asked_once_and_then_let_be() {
    let mut l = rack(BusKind::Rs485At1M);
    l.slaves[4].ranges = false;
    l.run_for(Duration::from_secs(2));
    assert_eq!(l.count(|e| matches!(e, MasterEvent::Left { .. })), 0);
    assert_eq!(l.asked.len(), 1);
    // Dead all the same, by its slots for the state.
    let (at, cycle) = (l.now, l.master.schedule().cycle);
    l.unplug(4);
    l.run_for(cycle * 4);
    let left = |e: &MasterEvent| matches!(e, MasterEvent::Left { .. });
    assert!(
        l.when(left).expect("found").since(at) <= Duration::from_nanos(cycle.as_nanos() * 5 / 2)
    );
}

#[test]
fn loss_costs_frames_but_all_come_back() {
    for kind in KINDS {
        let mut l = Line::new(kind, 1..=32);
        l.loss = 0.2;
        l.run_until(ms(1_500));
        l.loss = 0.0;
        l.run_for(Duration::from_millis(400));
        assert_eq!(l.joined(), 32, "{kind:?}");
        assert!(l.slaves.iter().all(|s| s.link.node().is_some()));
    }
}

#[test]
fn without_a_master_the_line_is_silent_and_a_trip_passes_at_once() {
    for kind in KINDS {
        let mut l = rack(kind);
        l.master_on = false;
        l.run_for(Duration::from_millis(300));
        assert!(l.slaves.iter().all(|s| s.link.node().is_none()));
        let frames = l.frames;
        l.run_for(Duration::from_secs(1));
        assert_eq!(l.frames, frames);
        let (now, local) = (l.now, l.slaves[3].local(l.now));
        l.slaves[3].link.trip(local);
        l.run_for(Duration::from_millis(1));
        let seen = l.slaves[4].events.last().expect("some");
        assert_eq!(seen.1, SlaveEvent::TripSeen);
        assert!(seen.0.since(now) < Duration::from_micros(100));
        l.master_on = true;
        l.run_for(Duration::from_millis(500));
        assert_eq!(l.joined(), 32);
    }
}

#[test]
fn a_slave_gives_up_its_seat_at_the_first_beacon_of_a_new_session() {
    for kind in KINDS {
        let mut l = rack(kind);
        l.run_for(Duration::from_micros(1_234));
        l.master = MasterLink::new(*l.master.schedule());
        // The first one meets the frame under way, the second is heard.
        l.run_for(Duration::from_nanos(
            l.master.schedule().cycle.as_nanos() / 2 * 3,
        ));
        for s in &l.slaves {
            let left = SlaveEvent::Left(LeaveReason::Silence);
            assert!(s.events.iter().any(|e| e.1 == left), "{kind:?}");
        }
        let quick = if kind == BusKind::Rs485At4M { 60 } else { 100 };
        l.run_for(Duration::from_millis(quick));
        assert_eq!(l.joined(), 32, "{kind:?}");
    }
}

#[test]
fn an_old_member_does_not_confirm_the_seat_of_a_new_device() {
    for kind in KINDS {
        let cycle = Schedule::for_bus(kind).cycle;
        let mut offers = 0;
        for twentieth in 0..20 {
            let mut l = Line::new(kind, 1..=1);
            l.run_until(ms(300) + Duration::from_nanos(cycle.as_nanos() / 20 * twentieth));
            assert_eq!(l.slaves[0].link.node(), NodeId::new(1));
            // The master is back within a superframe, without memory, and the old member misses
            // the beacon that says so.
            l.master = MasterLink::new(*l.master.schedule());
            l.events.clear();
            l.slaves[0].deaf = true;
            let new = l.plug(2, RACK);
            l.run_for(Duration::from_micros(500));
            l.slaves[0].deaf = false;
            // The new one is offered that seat, and never heard again.
            let end = l.now + cycle;
            while l.slaves[new].link.node().is_none() && l.now < end {
                l.run_for(Duration::from_micros(10));
            }
            offers += u32::from(l.slaves[new].link.node() == NodeId::new(1));
            l.unplug(new);
            l.run_for(cycle * 20);
            let new =
                |e: &MasterEvent| matches!(e, MasterEvent::Joined { uid: u, .. } if *u == uid(2));
            assert_eq!(l.count(new), 0, "{kind:?}, {twentieth} twentieths");
            let own = l.slaves[0].link.node().and_then(|n| l.master.member(n));
            assert_eq!(own.map(|(uid, _)| uid), Some(uid(1)), "{kind:?}");
        }
        assert!(offers >= 10, "{kind:?}: {offers}");
    }
}

#[test]
fn a_superframe_takes_as_many_slaves_as_the_analysis_and_refuses_the_next() {
    let kinds = [(18, 8, 16), (16, 4, 1), (0, 0, 16), (18, 8, 0), (4, 2, 4)];
    for kind in ALL {
        for (turn, cycle_us) in [
            (0, 9_000),
            (1, 12_000),
            (2, 20_000),
            (3, 7_500),
            (4, 27_600),
        ] {
            let schedule = Schedule {
                cycle: Duration::from_micros(cycle_us),
                ..Schedule::for_bus(kind)
            };
            let schedule = schedule.with_cycle(schedule.cycle);
            let (cells, temps, anchors) = kinds[turn];
            let big = Capabilities {
                cells,
                temps,
                anchors,
            };
            let fit = |n| analysis::fits(&schedule, std::iter::repeat_n(big, n)).is_ok();
            let most = (0..=32).take_while(|n| fit(*n)).last().unwrap_or(0);
            let mut l = Line::with(schedule, []);
            (1..=32).for_each(|n| {
                l.plug(n, big);
            });
            l.run_until(ms(900));
            println!("{kind:?} {cycle_us} us: {most} fit");
            assert_eq!(l.joined(), most, "{kind:?} {cycle_us} {big:?}");
            let full = |s: &&Unit| {
                let full = SlaveEvent::Left(LeaveReason::Full);
                s.events.iter().any(|e| e.1 == full)
            };
            assert_eq!(l.slaves.iter().filter(full).count(), 32 - most, "{kind:?}");
            // The reason is the analysis's own.
            let reason = analysis::fits(&schedule, std::iter::repeat_n(big, most + 1)).err();
            let mut told = 0;
            for (_, event) in &l.events {
                if let MasterEvent::Refused { breaks, .. } = event {
                    assert_eq!(Some(*breaks), reason, "{kind:?} {cycle_us}");
                    told += 1;
                }
            }
            assert_eq!(told > 0, most < 32);
        }
    }
}

/// One message of each class that slaves say cyclically, as the member on the first seat would.
fn serial_messages() -> [Message; 3] {
    let ranges = |anchors: usize| {
        let mut range = [None; MAX_ANCHORS];
        range[..anchors].fill(Some(Millimetres(2_000)));
        Message::Ranges(
            node(1),
            Ranges {
                tag: TagId(7),
                range,
            },
        )
    };
    [Message::State(node(1), state_of(1)), ranges(4), ranges(16)]
}

/// Whether the master delivers these bytes, and what it finds wrong with them.
fn judged(l: &mut Line, bytes: &[u8]) -> (bool, Vec<E2eFault>) {
    l.events.clear();
    while l.master.poll_event().is_some() {}
    // More than one state in a cycle is a babbler's.
    l.now += l.master.schedule().cycle;
    l.master.handle_serial(l.now, bytes);
    let events: Vec<_> = std::iter::from_fn(|| l.master.poll_event()).collect();
    let delivered = events.iter().any(|e| matches!(e, MasterEvent::Message(_)));
    let faults = events.iter().filter_map(|e| match e {
        MasterEvent::Rejected { fault, .. } => Some(*fault),
        _ => None,
    });
    (delivered, faults.collect())
}

#[test]
fn repetition_loss_delay_and_wrong_order_are_found_on_rs485() {
    for kind in ALL {
        for message in serial_messages() {
            let mut l = rack(kind);
            let seats = l.master.schedule().seats;
            let frame = |n: u8| encode_serial(&message, n, seats).expect("RS485 says so");
            // In step, whatever the member's own counter was.
            for n in [100, 101, 102] {
                judged(&mut l, &frame(n));
            }
            assert_eq!(judged(&mut l, &frame(103)), (true, vec![]), "{message:?}");
            assert_eq!(
                judged(&mut l, &frame(103)),
                (false, vec![E2eFault::Repeated])
            );
            assert_eq!(judged(&mut l, &frame(106)), (true, vec![E2eFault::Lost(2)]));
            assert_eq!(
                judged(&mut l, &frame(105)),
                (false, vec![E2eFault::Sequence])
            );
        }
    }
}

#[test]
fn masquerade_wrong_address_corruption_and_truncation_are_found_on_rs485() {
    let seats = 32;
    for message in serial_messages() {
        let good = encode_serial(&message, 9, seats).expect("RS485 says so");
        assert!(decode_serial(&good, seats).is_some());
        for at in 0..2 {
            for other in 0..=255u8 {
                let mut posing = good.clone();
                if posing[at] != other {
                    posing[at] = other;
                    assert!(decode_serial(&posing, seats).is_none(), "{at} {other}");
                }
            }
        }
        for a in 0..good.len() * 8 {
            for b in a..good.len() * 8 {
                let mut damaged = good.clone();
                damaged[a / 8] ^= 1 << (a % 8);
                if b != a {
                    damaged[b / 8] ^= 1 << (b % 8);
                }
                assert!(decode_serial(&damaged, seats).is_none(), "{a} {b}");
            }
        }
        for len in 0..good.len() {
            assert!(decode_serial(&good[..len], seats).is_none());
        }
        let mut longer = good.clone();
        longer.push(0).expect("room");
        assert!(decode_serial(&longer, seats).is_none());
    }
}

#[test]
fn a_message_inserted_from_a_seat_without_member_is_not_delivered_on_rs485() {
    for kind in ALL {
        let mut l = Line::new(kind, []);
        l.run_for(Duration::from_millis(100));
        let seats = l.master.schedule().seats;
        for message in serial_messages() {
            let frame = encode_serial(&message, 1, seats).expect("RS485 says so");
            assert_eq!(judged(&mut l, &frame), (false, vec![]));
        }
    }
}

#[test]
fn a_babbler_says_so_in_a_call_and_is_quarantined_within_10_ms() {
    for kind in KINDS {
        let mut worst = Duration::ZERO;
        for offset in 0..30u64 {
            let mut l = rack(kind);
            l.run_for(Duration::from_micros(offset * 6_553));
            let (at, i) = (l.now, offset as usize);
            let seat = l.slaves[i].link.node().expect("seated");
            let collisions = l.collisions;
            l.slaves[i].link.babble(true);
            // A second one, whose call may meet the first one's, is found in its own slot at the latest.
            l.slaves[i + 1].link.babble(offset % 5 == 0);
            l.run_for(Schedule::for_bus(kind).cycle * 2);
            let left: Vec<_> = l
                .events
                .iter()
                .filter_map(|(at, e)| match e {
                    MasterEvent::Left { node, reason, .. } => Some((*at, *node, *reason)),
                    _ => None,
                })
                .collect();
            assert!(left.iter().all(|(.., why)| *why == LeaveReason::Babbling));
            assert_eq!(left.len(), if offset % 5 == 0 { 2 } else { 1 });
            assert_eq!(l.lost(), 0);
            if offset % 5 > 0 {
                assert_eq!(l.collisions, collisions);
                assert_eq!(left[0].1, seat);
                worst = worst.max(left[0].0.since(at));
            }
        }
        println!(
            "{kind:?}: quarantined after at most {} us",
            worst.as_micros()
        );
        assert!(worst < Duration::from_millis(10), "{kind:?}");
    }
}

#[test]
fn a_babbler_is_contained_at_once_and_quarantined() {
    for kind in KINDS {
        let mut l = rack(kind);
        let (at, seat) = (l.now, l.slaves[7].link.node().expect("seated"));
        let collisions = l.collisions;
        l.slaves[7].link.babble(true);
        l.run_for(Duration::from_millis(600));
        let left = l
            .when(|e| matches!(e, MasterEvent::Left { node, reason: LeaveReason::Babbling, .. } if *node == seat))
            .expect("found");
        println!(
            "{kind:?}: babbler quarantined after {} µs",
            left.since(at).as_micros()
        );
        assert!(left.since(at) <= Schedule::for_bus(kind).cycle * 2);
        assert_eq!(l.collisions, collisions);
        let others = l.slaves.iter().enumerate().filter(|(i, _)| *i != 7);
        assert_eq!(
            others.map(|(_, s)| s.link.stats().overwritten).sum::<u64>(),
            0
        );
        assert!(
            l.slaves[7]
                .events
                .iter()
                .any(|e| e.1 == SlaveEvent::Left(LeaveReason::Babbling))
        );
        l.slaves[7].link.babble(false);
        l.run_for(Duration::from_millis(1_000));
        assert_eq!(l.slaves[7].link.node(), Some(seat));
    }
}

#[test]
fn a_trip_in_quarantine_is_said_when_that_is_over() {
    for kind in KINDS {
        let mut l = rack(kind);
        let (now, seat) = (l.now, l.slaves[3].link.node().expect("seated"));
        let hold = Duration::from_millis(150);
        l.master.quarantine(now, seat, hold);
        l.run_for(Duration::from_millis(60));
        let local = l.slaves[3].local(l.now);
        l.slaves[3].link.trip(local);
        l.run_for(Duration::from_millis(80));
        assert_eq!(l.when(|e| *e == MasterEvent::Trip), None, "{kind:?}");
        l.run_for(Duration::from_millis(60));
        let told = l.when(|e| *e == MasterEvent::Trip).expect("said");
        assert!(told > now + hold, "{kind:?}");
    }
}

#[test]
fn a_duplicate_is_named_and_gets_no_seat() {
    for kind in KINDS {
        let mut l = rack(kind);
        let seat = l.slaves[4].link.node().expect("seated");
        let twin = l.plug(5, RACK);
        l.run_for(Duration::from_millis(400));
        assert!(
            l.when(|e| *e
                == MasterEvent::Duplicate {
                    node: seat,
                    uid: uid(5)
                })
            .is_some()
        );
        assert_eq!(l.slaves[twin].link.node(), None);
        let refused = SlaveEvent::Left(LeaveReason::DuplicateUid);
        assert_eq!(l.slaves[twin].events[0].1, refused);
        assert_eq!(l.slaves[4].link.node(), Some(seat));
        assert_eq!(l.count(|e| matches!(e, MasterEvent::Left { .. })), 0);
    }
}

#[test]
fn a_member_that_restarts_has_its_seat_again_in_the_first_superframe_that_it_hears() {
    for kind in KINDS {
        let cycle = Schedule::for_bus(kind).cycle;
        let mut l = rack(kind);
        // All have shown that they answer.
        l.run_for(cycle * 24);
        for turn in 0..8 {
            l.run_for(cycle * 4 + Duration::from_nanos(cycle.as_nanos() / 8 * turn));
            let old = turn as usize;
            let seat = l.slaves[old].link.node().expect("seated");
            l.slaves[old].on = false;
            let new = l.plug(turn + 1, RACK);
            l.run_for(cycle * 2);
            assert_eq!(l.slaves[new].link.node(), Some(seat), "{kind:?} {turn}");
        }
        let named = |e: &MasterEvent| matches!(e, MasterEvent::Duplicate { .. });
        assert_eq!(l.count(named), 0, "{kind:?}");
    }
}

#[test]
fn two_of_one_uid_that_start_together_do_not_both_stay() {
    for kind in KINDS {
        let mut l = Line::new(kind, [1, 2, 3, 3]);
        l.run_until(ms(2_500));
        let seated = [2, 3].map(|i: usize| l.slaves[i].link.node().is_some());
        assert_ne!(seated, [true, true], "{kind:?}");
        assert!(l.slaves[0].link.node().is_some());
    }
}

/// Whether a member was lost, as happens when every tenth frame is, and is back: its datagrams died
/// with its membership, and whoever sends asks again.
fn back_again(l: &mut Line, seat: NodeId) -> bool {
    let left = |e: &MasterEvent| matches!(e, MasterEvent::Left { node, .. } if *node == seat);
    let back =
        l.count(left) > 0 && l.master.member(seat).is_some() && l.slaves[1].link.node().is_some();
    if back {
        l.events.retain(|(_, e)| !left(e));
    }
    back
}

#[test]
fn datagrams_pass_both_ways_under_loss() {
    for (kind, loss) in [
        (BusKind::Rs485At4M, 0.0),
        (BusKind::Rs485At4M, 0.1),
        (BusKind::Rs485At1M, 0.03),
    ] {
        let mut l = Line::new(kind, 1..=4);
        l.run_until(ms(300));
        l.loss = loss;
        for round in 0..5usize {
            let to = l.slaves[1].link.node().expect("seated");
            let question: Vec<u8> = (0..2048 - round).map(|i| (i * 7 + round) as u8).collect();
            l.master.send_datagram(to, &question).expect("free");
            let at = l.now;
            while !l.slaves[1]
                .events
                .iter()
                .any(|e| e.1 == SlaveEvent::Datagram)
            {
                l.run_for(Duration::from_millis(5));
                if back_again(&mut l, to) {
                    let _ = l.master.send_datagram(to, &question);
                }
                assert!(l.now.since(at) < Duration::from_secs(5), "{kind:?} {round}");
            }
            l.slaves[1].events.clear();
            let asked = l.now.since(at);
            assert_eq!(l.slaves[1].link.datagram(), Some(&question[..]));
            let answer: Vec<u8> = question.iter().rev().copied().collect();
            l.slaves[1].link.send_datagram(&answer).expect("free");
            let at = l.now;
            while l.when(|e| *e == MasterEvent::Datagram(to)).is_none() {
                l.run_for(Duration::from_millis(5));
                if back_again(&mut l, to) {
                    let _ = l.slaves[1].link.send_datagram(&answer);
                }
                assert!(l.now.since(at) < Duration::from_secs(5), "{kind:?} {round}");
            }
            l.events.clear();
            println!(
                "{kind:?} loss {loss}: 2 KiB in {} ms, back in {} ms",
                asked.as_millis(),
                l.now.since(at).as_millis()
            );
            assert_eq!(l.master.datagram(), Some((to, &answer[..])));
        }
    }
}

#[test]
fn orders_reach_one_or_all() {
    let mut l = rack(BusKind::Rs485At4M);
    let to = l.slaves[9].link.node();
    for mask in 0..6 {
        l.master
            .command(Command {
                to,
                order: Order::Balance(mask),
            })
            .expect("room");
    }
    l.master
        .command(Command {
            to: None,
            order: Order::Gate(true),
        })
        .expect("room");
    l.run_for(Duration::from_millis(100));
    let orders = |i: usize| {
        let of = |e: &(Instant, SlaveEvent)| match e.1 {
            SlaveEvent::Order(order) => Some(order),
            _ => None,
        };
        l.slaves[i].events.iter().filter_map(of).collect::<Vec<_>>()
    };
    let mut expected: Vec<_> = (0..6).map(Order::Balance).collect();
    expected.push(Order::Gate(true));
    assert_eq!(orders(9), expected);
    assert_eq!(orders(10), [Order::Gate(true)]);
}

#[test]
fn slaves_know_the_masters_time() {
    for kind in KINDS {
        let l = rack(kind);
        for s in &l.slaves {
            let told = s.link.master_time(s.local(l.now)).expect("known");
            let error = told.as_nanos().abs_diff(l.now.as_nanos());
            assert!(error <= 5_000, "{error} ns");
        }
    }
}
