//! What the bus must hold, measured in virtual time on bit-exact media: one figure per line and bus.
//!
//! [`run`] gives a [`Report`]; every figure is the worst that was seen unless it says otherwise, and
//! every trial starts from a seed, so a figure can be had again. Measured are the links of
//! `helio-bus` alone, full up with cyclic traffic: 16 cells, 4 temperatures and one anchor per slave
//! that ranges in every cycle, crystals 50 ppm off, 40 m of cable.

pub mod net;

use std::path::{Path, PathBuf};

use helio_bus::analysis::{Analysis, Assumptions, Kind, fits, most_slaves};
use helio_bus::{
    Alarm, BusKind, Capabilities, LeaveReason, MasterEvent, Message, Schedule, Severity, SlaveEvent,
};
use helio_units::{Duration, Instant, NodeId, Uid};
use serde::Serialize;

use crate::report::quantile;
use crate::scenario::Scenario;
use crate::{World, schedule};
use net::{Net, NetPlan, News};

/// What one slave of the measured racks has.
pub const SLAVE: Capabilities = Capabilities {
    cells: 16,
    temps: 4,
    anchors: 1,
};

/// What to measure, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// On these buses.
    pub buses: Vec<BusKind>,
    /// Thousands of trials instead of dozens.
    pub full: bool,
    /// Of the first trial.
    pub seed: u64,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// On which bus.
    pub bus: &'static str,
    /// Unit of `value` and `goal`.
    pub unit: &'static str,
    /// Worst or, if `what` says so, a quantile or share.
    pub value: f64,
    /// At most so much, or with `at_least` at least; `None`: shown for comparison.
    pub goal: Option<f64>,
    /// The goal is a lower bound.
    pub at_least: bool,
    /// How many trials.
    pub trials: usize,
}

impl Figure {
    /// Whether the goal is met; a trial that never came to its end is infinite and misses.
    pub fn holds(&self) -> bool {
        match self.goal {
            Some(goal) if self.at_least => self.value >= goal,
            Some(goal) => self.value <= goal,
            None => true,
        }
    }
}

/// All figures.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// In order of the list of goals, bus by bus.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Whether every goal is met.
    pub fn holds(&self) -> bool {
        self.figures.iter().all(Figure::holds)
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{:<46} {:<12} {:>12} {:>12} {:>7}\n",
            "what", "bus", "measured", "goal", "trials"
        );
        for f in &self.figures {
            let goal = f.goal.map_or(String::new(), |goal| {
                format!("{} {}", if f.at_least { ">=" } else { "<=" }, number(goal))
            });
            let verdict = if f.holds() { "" } else { "  missed" };
            text += &format!(
                "{:<46} {:<12} {:>12} {:>12} {:>7}{verdict}\n",
                f.what,
                f.bus,
                format!("{} {}", number(f.value), f.unit),
                goal,
                f.trials
            );
        }
        text
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// One kind of measurement.
type Step = fn(&mut Bench);

/// Measures everything; `progress` hears what comes next.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Report {
    let mut report = Report::default();
    for &kind in &plan.buses {
        let mut bench = Bench {
            kind,
            full: plan.full,
            seed: plan.seed,
            figures: Vec::new(),
        };
        let steps: [(&str, Step); 13] = [
            ("trip", Bench::trips),
            ("two buses", Bench::trips_over_two),
            ("127 slaves", Bench::many),
            ("alarms", Bench::alarms),
            ("full state", Bench::full_state),
            ("skew", Bench::skew),
            ("cold joins", Bench::cold_joins),
            ("hot plug", Bench::hot_plug),
            ("random joins", Bench::random_joins),
            ("merged racks", Bench::merged),
            ("babbler", Bench::babbler),
            ("dead slave", Bench::dead),
            ("management", Bench::management),
        ];
        for (name, step) in steps {
            progress(&format!("{}: {name}", kind.name()));
            step(&mut bench);
        }
        report.figures.append(&mut bench.figures);
    }
    report
}

struct Bench {
    kind: BusKind,
    full: bool,
    seed: u64,
    figures: Vec<Figure>,
}

const US: f64 = 1e3;
const MS: f64 = 1e6;

impl Bench {
    fn add(&mut self, what: impl Into<String>, unit: &'static str, value: f64, trials: usize) {
        self.figures.push(Figure {
            what: what.into(),
            bus: self.kind.name(),
            unit,
            value,
            goal: None,
            at_least: false,
            trials,
        });
    }

    fn goal(&mut self, goal: Option<f64>) {
        if let Some(figure) = self.figures.last_mut() {
            figure.goal = goal;
        }
    }

    fn of<T>(&self, [can_500k, can_1m, canfd, rs485_1m, rs485_4m, rs485_115k]: [T; 6]) -> T {
        match self.kind {
            BusKind::Can500k => can_500k,
            BusKind::Can1M => can_1m,
            BusKind::CanFd => canfd,
            BusKind::Rs485At1M => rs485_1m,
            BusKind::Rs485At4M => rs485_4m,
            BusKind::Rs485At115k => rs485_115k,
        }
    }

    fn is_can(&self) -> bool {
        !self.kind.is_serial()
    }

    fn trials(&self, few: usize, full: usize) -> usize {
        if self.full { full } else { few }
    }

    fn plan(&self, slaves: usize, seed: u64) -> NetPlan {
        NetPlan {
            schedule: schedule(self.kind, slaves, None),
            slaves: vec![SLAVE; slaves],
            seed: self.seed + seed,
            crystal_ppm: 50.0,
            cable_m: 40.0,
            boot: Duration::ZERO,
            ranging: true,
        }
    }

    /// The shortest cycle, in tenths of the usual one and not below it, in which so many slaves fit.
    fn roomy(&self, slaves: usize) -> Option<Schedule> {
        let usual = schedule(self.kind, slaves, None);
        let cycles = (10..=60).map(|tenth| usual.cycle.as_nanos() / 10 * tenth);
        let all = || core::iter::repeat_n(SLAVE, slaves);
        cycles
            .map(|cycle| usual.with_cycle(Duration::from_nanos(cycle)))
            .find(|schedule| fits(schedule, all()).is_ok())
    }

    /// A rack in its stride, every slave a member.
    fn rack(&self, slaves: usize, seed: u64) -> Net {
        self.stride(&self.plan(slaves, seed))
    }

    fn stride(&self, plan: &NetPlan) -> Net {
        let mut net = Net::new(plan);
        let end = Instant::from_millis(5_000);
        while !net.agrees() && net.now < end {
            net.run_for(Duration::from_millis(20));
        }
        net.run_for(Duration::from_millis(100).max(plan.schedule.cycle * 4));
        net.take_log();
        net
    }

    /// Lets a random while pass, so that the next thing falls anywhere in a cycle.
    fn drift(&self, net: &mut Net) {
        let cycle = net.master.schedule().cycle.as_nanos();
        let part = net.uniform() * cycle as f64;
        net.run_for(Duration::from_nanos(2 * cycle + part as u64));
        net.take_log();
    }

    /// Until the master hears of a trip.
    fn trips(&mut self) {
        let goal = self.of([500.0, 500.0, 500.0, 1_000.0, 1_000.0, 2_000.0]);
        for slaves in [1, 8, 32, 64, 127] {
            let mut plan = self.plan(slaves, 100);
            // Where so many never fit, those who have no seat trip, too.
            plan.schedule = self.roomy(slaves).unwrap_or(plan.schedule);
            let mut net = self.stride(&plan);
            let trials = self.trials(40, 2_000);
            let mut worst: f64 = 0.0;
            for _ in 0..trials {
                self.drift(&mut net);
                let at = net.now;
                for i in 0..slaves {
                    net.ask(i, |link, now| link.trip(now));
                }
                let trip = |e: &MasterEvent| matches!(e, MasterEvent::Trip);
                worst = worst.max(until(&mut net, at, trip) / US);
            }
            self.add(format!("trip heard, {slaves} at once"), "us", worst, trials);
            self.goal(Some(goal));
        }
    }

    /// From a sample that trips a slave until the last slave on the other bus of the same master hears of it. 32 slaves on
    /// each, every one trips once, at any time in a cycle.
    fn trips_over_two(&mut self) {
        let schedule = schedule(self.kind, 32, None);
        let calm = Assumptions::calm(&schedule);
        let analysis = Analysis::new(&schedule, core::iter::repeat_n(SLAVE, 32), &calm);
        let bound = analysis.bound(Kind::Trip).and_then(|b| b.response);
        let bound = bound.map_or(f64::INFINITY, |d| 2.0 * d.as_nanos() as f64 / US);
        let trials = self.trials(16, 64);
        let bus = format!("[[bus]]\nkind = \"{}\"\nslaves = 32\n", self.kind.name());
        // Far enough apart that none waits for the one before.
        let apart_s = schedule.cycle.as_nanos() as f64 * 2.37 / 1e9;
        let faults: String = (0..trials)
            .map(|n| {
                let (at_s, slave) = (1.0 + apart_s * n as f64, 1 + n * 64 / trials);
                format!(
                    "[[fault]]\nkind = \"cell-over-voltage\"\nat_s = {at_s}\nslave = {slave}\ncell = 0\nmv = 4500\n"
                )
            })
            .collect();
        let text = format!(
            "name = \"two\"\nseed = {}\nduration_s = {}\n{bus}{bus}[hall]\nanchors = 64\ntags = 1\n{faults}",
            self.seed,
            2.0 + apart_s * trials as f64
        );
        let scenario = Scenario::parse(Path::new("two"), &text, PathBuf::new());
        let report = scenario
            .and_then(World::new)
            .map(|mut world| world.run(|_| {}));
        let heard = report.ok().and_then(|mut report| {
            let trips = report.racks.pop()?.trips;
            let all = trips.unheard == 0 && trips.count == trials as u64;
            trips.heard_max_us.filter(|_| all)
        });
        let heard = heard.unwrap_or(f64::INFINITY);
        self.add("trip heard on both of two buses", "us", heard, trials);
        self.goal(Some(bound));
    }

    /// As many slaves as there are seats, in the shortest cycle that has room for them.
    fn many(&mut self) {
        let one = schedule(self.kind, 1, None);
        let most = f64::from(most_slaves(&one, &[SLAVE]));
        self.add("slaves that fit the usual cycle", "", most, 1);
        let Some(schedule) = self.roomy(127) else {
            return;
        };
        let cycle = schedule.cycle.as_nanos() as f64 / MS;
        self.add("cycle that 127 slaves fit", "ms", cycle, 1);
        let assumed = Assumptions::storm(&schedule);
        let analysis = Analysis::new(&schedule, core::iter::repeat_n(SLAVE, 127), &assumed);
        let bound = |kind| analysis.bound(kind).and_then(|b| b.response);
        let us = |d: Option<Duration>| d.map_or(f64::INFINITY, |d| d.as_nanos() as f64 / US);
        let (trip, alarm) = (bound(Kind::Trip), bound(Kind::Alarm));
        self.add("bound of a trip, 127 slaves", "us", us(trip), 1);
        self.goal(Some(
            self.of([500.0, 500.0, 500.0, 1_000.0, 1_000.0, 2_000.0]),
        ));
        self.add("bound of 127 alarms", "ms", us(alarm) / 1e3, 1);
        let trials = self.trials(3, 100);
        let mut plan = self.plan(127, 1_100);
        plan.schedule = schedule;
        let mut took = |seed: u64| {
            plan.seed = self.seed + 1_100 + seed;
            let mut left = 127;
            let all = |event: &MasterEvent| {
                left -= i32::from(matches!(event, MasterEvent::Joined { .. }));
                left == 0
            };
            until(&mut Net::new(&plan), Instant::ZERO, all) / MS
        };
        let joins = (0..trials as u64).map(&mut took).fold(0.0, f64::max);
        self.add("127 cold joins", "ms", joins, trials);
        let mut net = self.stride(&plan);
        let alarms = (0..trials).map(|_| self.alarm_storm(&mut net, 0..127));
        let alarms = alarms.fold(0.0, f64::max);
        self.add("127 trips with their reasons", "ms", alarms / MS, trials);
        net.log_samples = true;
        net.take_log();
        net.run_for(schedule.cycle * 12);
        let of_one = part(schedule.cycle, 0.5);
        let full = full_state(&net.take_log(), 127, of_one, |_| true);
        self.add("full state of 127 slaves", "ms", full / MS, 1);
        net.log_samples = false;
        let dead = (0..trials).map(|trial| {
            self.drift(&mut net);
            let node = net.units[trial].link.node();
            let at = net.now;
            net.power_off(trial);
            let left = |e: &MasterEvent| matches!(e, MasterEvent::Left { node: n, .. } if Some(*n) == node);
            until(&mut net, at, left)
        });
        let dead = dead.fold(0.0, f64::max);
        self.add("dead slave among 127 found", "ms", dead / MS, trials);
    }

    /// Until the master knows every reason when all slaves trip at once.
    fn alarms(&mut self) {
        let goal = self.of([Some(10.0), Some(5.0), Some(2.5), None, None, None]);
        let trials = self.trials(20, 500);
        let mut net = self.rack(32, 200);
        let worst = (0..trials)
            .map(|_| self.alarm_storm(&mut net, 0..32))
            .fold(0.0, f64::max);
        self.add("32 trips with their reasons", "ms", worst / MS, trials);
        self.goal(goal);
    }

    /// All of these trip at once: nanoseconds until the last reason.
    fn alarm_storm(&self, net: &mut Net, who: std::ops::Range<usize>) -> f64 {
        self.drift(net);
        let at = net.now;
        for i in who.clone() {
            net.ask(i, |link, now| {
                link.trip(now);
                link.alarm(now, alarm(i));
            });
        }
        let mut left: Vec<NodeId> = who.filter_map(|i| net.units[i].link.node()).collect();
        let last = |event: &MasterEvent| {
            if let MasterEvent::Message(Message::Alarm(node, _)) = event {
                left.retain(|n| n != node);
            }
            left.is_empty()
        };
        until(net, at, last)
    }

    /// From a SYNC until everything that the slaves measured at it is at the master; and until everything
    /// there is no older.
    fn full_state(&mut self) {
        let goal = self.of([None, Some(26.0), Some(5.0), None, Some(5.0), None]);
        let trials = self.trials(10, 200);
        // On CAN 2.0 everything is said at once in a snapshot, else one after the other.
        let in_turn = self.of([true, true, false, false, false, false]);
        let mut plan = self.plan(32, 300);
        if in_turn {
            let renewed = self.worst_state(&plan, trials, 12, 1.0, |_| true);
            self.add("every value renewed, in turn", "ms", renewed, trials);
            plan.schedule = plan.schedule.with_snapshots();
        }
        let schedule = plan.schedule;
        let every = u64::from(schedule.snapshot_cycles());
        let cycles = if in_turn { every + 8 } else { 12 };
        let at_once = |cycle| !in_turn || schedule.is_snapshot(cycle);
        let of_one = 0.5 / cycles as f64;
        let together = self.worst_state(&plan, trials, cycles, of_one, at_once);
        if in_turn {
            let period = every as f64 * schedule.cycle.as_nanos() as f64 / MS;
            self.add("with snapshots: from one to the next", "ms", period, 1);
        }
        self.add("full state of 32 slaves", "ms", together, trials);
        self.goal(goal);
    }

    /// Worst milliseconds of so many stretches of so many cycles from one of these SYNCs until all states are in that were measured
    /// within this share of the stretch after it.
    fn worst_state(
        &self,
        plan: &NetPlan,
        trials: usize,
        cycles: u64,
        within: f64,
        syncs: impl Fn(u8) -> bool,
    ) -> f64 {
        let mut net = self.stride(plan);
        net.log_samples = true;
        let stretch = plan.schedule.cycle * cycles;
        let mut worst = 0.0f64;
        for _ in 0..trials {
            net.take_log();
            net.run_for(stretch);
            let found = full_state(&net.take_log(), 32, part(stretch, within), &syncs);
            worst = worst.max(found / MS);
        }
        worst
    }

    fn skew(&mut self) {
        let goal = self.of([
            None,
            Some(2.0),
            Some(2.0),
            Some(10.0),
            Some(10.0),
            Some(10.0),
        ]);
        let cycles = self.trials(100, 2_000);
        let mut net = self.rack(32, 400);
        // From then on slaves know how their crystals differ from the master's.
        net.run_for(Duration::from_secs(1));
        net.take_log();
        net.log_samples = true;
        net.run_for(Duration::from_nanos(
            net.master.schedule().cycle.as_nanos() * cycles as u64,
        ));
        let log = net.take_log();
        let sync = |e: &SlaveEvent| matches!(e, SlaveEvent::Sync { .. });
        let range = |e: &SlaveEvent| matches!(e, SlaveEvent::RangeNow(_));
        let half = Duration::from_nanos(net.master.schedule().cycle.as_nanos() / 2);
        self.add(
            "skew of samples after SYNC",
            "us",
            skew(&log, half, sync),
            cycles,
        );
        self.goal(goal);
        self.add("skew of ranging", "us", skew(&log, half, range), cycles);
        self.goal(goal);
    }

    /// From power to the last seat, master and slaves switched on together.
    fn cold_joins(&mut self) {
        let trials = self.trials(20, 1_000);
        let mut took: Vec<f64> = (0..trials)
            .map(|trial| {
                let mut net = Net::new(&self.plan(32, 500 + trial as u64));
                let mut left = 32;
                let all = |event: &MasterEvent| {
                    left -= i32::from(matches!(event, MasterEvent::Joined { .. }));
                    left == 0
                };
                until(&mut net, Instant::ZERO, all) / MS
            })
            .collect();
        let p99 = quantile(&mut took, 0.99).unwrap_or(f64::INFINITY);
        let p50 = quantile(&mut took, 0.5).unwrap_or(f64::INFINITY);
        self.add("32 cold joins, median", "ms", p50, trials);
        self.add("32 cold joins, p99", "ms", p99, trials);
        self.goal(self.of([
            Some(25.0),
            Some(25.0),
            Some(25.0),
            Some(50.0),
            Some(50.0),
            None,
        ]));
    }

    /// From plugging one in to its seat, and what it cost the others.
    fn hot_plug(&mut self) {
        let trials = self.trials(30, 1_000);
        let mut net = self.rack(32, 600);
        let (mut worst, mut cost): (f64, u64) = (0.0, 0);
        for _ in 0..trials {
            net.power_off(31);
            net.run_for(Duration::from_millis(200));
            self.drift(&mut net);
            let before = lost(&net, 31);
            let uid = net.fresh_uid();
            let at = net.now;
            net.power_on(31, Some(uid));
            let joined =
                |e: &MasterEvent| matches!(e, MasterEvent::Joined { uid: u, .. } if *u == uid);
            worst = worst.max(until(&mut net, at, joined) / MS);
            net.run_for(Duration::from_millis(100));
            cost += lost(&net, 31) - before;
        }
        self.add("one hot plug", "ms", worst, trials);
        self.goal(self.of([Some(5.0), Some(5.0), Some(5.0), None, None, None]));
        self.add("frames of others lost by it", "", cost as f64, trials);
        self.goal(Some(0.0));
    }

    /// Seats are one to one, whatever is plugged and unplugged.
    fn random_joins(&mut self) {
        let trials = self.trials(300, 100_000);
        let mut net = self.rack(32, 700);
        let mut doubles = 0;
        for _ in 0..trials {
            let i = (net.uniform() * 32.0) as usize;
            if net.units[i].alive {
                net.power_off(i);
            } else {
                let other = net.uniform() < 0.5;
                let uid = other.then(|| net.fresh_uid());
                net.power_on(i, uid);
            }
            let wait = net.uniform() * 2e7;
            net.run_for(Duration::from_nanos(wait as u64));
            net.take_log();
            doubles += shared_seats(&net, None);
        }
        self.add(
            "seats shared in random joins and removals",
            "",
            doubles as f64,
            trials,
        );
        self.goal(Some(0.0));
    }

    /// The slaves of two racks, each on the seats of its own master and one device of each with the
    /// same id, are put on one bus with one of the masters: until each but one of those two has a seat,
    /// and until that pair is named.
    fn merged(&mut self) {
        let trials = self.trials(10, 500);
        let (mut joined, mut named, mut shared): (f64, f64, usize) = (0.0, 0.0, 0);
        for trial in 0..trials as u64 {
            let m = merge(
                self.rack(16, 1_200 + 2 * trial),
                self.rack(16, 1_201 + 2 * trial),
            );
            joined = joined.max(m.joined);
            named = named.max(m.named);
            shared += m.shared;
        }
        self.add(
            "two racks of 16 merged, all seated",
            "ms",
            joined / MS,
            trials,
        );
        self.add("the same id in both named", "ms", named / MS, trials);
        self.add("seats shared meanwhile", "", shared as f64, trials);
        self.goal(Some(0.0));
    }

    /// One slave's core asks for whatever it can as often as it can.
    fn babbler(&mut self) {
        let trials = self.trials(8, 200);
        let (mut calm, mut loud, mut silenced): (f64, f64, f64) = (0.0, 0.0, 0.0);
        let mut net = self.rack(32, 800);
        for trial in 0..trials {
            // A new rack now and then, because quarantines grow.
            if trial > 0 && trial % 8 == 0 {
                net = self.rack(32, 800 + trial as u64);
            }
            calm = calm.max(self.alarm_storm(&mut net, 1..32));
            let who = 1 + trial % 8;
            self.drift(&mut net);
            let at = net.now;
            let node = net.units[who].link.node();
            net.babble(who, true);
            let left = |e: &MasterEvent| {
                matches!(e, MasterEvent::Left { node: n, reason: LeaveReason::Babbling, .. }
                    if Some(*n) == node)
            };
            silenced = silenced.max(until(&mut net, at, left) / MS);
            net.babble(who, false);
            self.settle(&mut net);
            // The first seat is the most urgent; and everybody else trips meanwhile.
            net.babble(0, true);
            loud = loud.max(self.alarm_storm(&mut net, 1..32));
            net.babble(0, false);
            self.settle(&mut net);
        }
        self.add("babbler quarantined", "ms", silenced, trials);
        self.goal(Some(10.0));
        self.add(
            "alarms beside a babbler, growth",
            "%",
            (loud / calm - 1.0) * 100.0,
            trials,
        );
        self.goal(self.is_can().then_some(10.0));
    }

    fn settle(&self, net: &mut Net) {
        let end = net.now + Duration::from_secs(200);
        while !net.agrees() && net.now < end {
            net.run_for(Duration::from_millis(50));
        }
        net.take_log();
    }

    /// From a slave's death until the master says so.
    fn dead(&mut self) {
        let trials = self.trials(30, 1_000);
        let mut worst: f64 = 0.0;
        // Slaves whose crystals are alike speak in another order.
        for crystal_ppm in [50.0, 0.0] {
            let mut net = self.stride(&NetPlan {
                crystal_ppm,
                ..self.plan(32, 900)
            });
            for trial in 0..trials {
                let i = trial % 32;
                self.drift(&mut net);
                let node = net.units[i].link.node();
                let at = net.now;
                net.power_off(i);
                let left = |e: &MasterEvent| matches!(e, MasterEvent::Left { node: n, .. } if Some(*n) == node);
                worst = worst.max(until(&mut net, at, left) / MS);
                net.power_on(i, None);
                self.settle(&mut net);
            }
        }
        self.add("dead slave found", "ms", worst, trials * 2);
        self.goal(Some(30.0));
    }

    /// How much of what cyclic traffic leaves free datagrams can use.
    fn management(&mut self) {
        let mut net = self.rack(32, 1_000);
        let span = Duration::from_millis(self.trials(1_000, 10_000) as u64);
        let start = net.busy();
        net.run_for(span);
        let cyclic = share(&net, start, span);
        let datagram = [0x5a; 2_048];
        let (start, end) = (net.busy(), net.now + span);
        let mut bytes = 0usize;
        while net.now < end {
            // Every sender that is free starts another, both ways.
            for seat in 1..=32 {
                if let Some(node) = NodeId::new(seat) {
                    let _ = net.ask_master(|m, _| m.send_datagram(node, &datagram));
                }
            }
            for i in 0..32 {
                let _ = net.ask(i, |link, _| link.send_datagram(&datagram));
                let taken = net.ask(i, |link, _| link.datagram().map_or(0, <[u8]>::len));
                bytes += taken;
            }
            while let Some((_, datagram)) = net.master.datagram() {
                bytes += datagram.len();
            }
            net.run_for(Duration::from_micros(500));
            net.take_log();
        }
        let both = share(&net, start, span);
        self.add("load of cyclic traffic", "%", cyclic * 100.0, 1);
        let used = (both - cyclic) / (1.0 - cyclic);
        self.add("free bits that management can use", "%", used * 100.0, 1);
        if self.is_can() {
            self.goal(Some(90.0));
            if let Some(figure) = self.figures.last_mut() {
                figure.at_least = true;
            }
        }
        let per_second = bytes as f64 / (span.as_millis() as f64 / 1e3) / 1e3;
        self.add("datagrams meanwhile, both ways", "kB/s", per_second, 1);
    }
}

/// What became of two racks on one bus; nanoseconds since they were put together.
struct Merged {
    joined: f64,
    named: f64,
    /// Devices with an id of their own that the master took for members on a seat of others.
    shared: usize,
}

fn merge(mut net: Net, mut other: Net) -> Merged {
    let uid = net.units[5].uid;
    // Two masters were not switched on at the same time.
    other.master_off();
    other.power_off(7);
    other.run_for(Duration::from_millis(150));
    other.master_on();
    other.power_on(7, Some(uid));
    other.run_for(Duration::from_millis(500));
    let phase = net.uniform() * 4e7;
    net.run_for(Duration::from_nanos(phase as u64));
    let first = net.units.len();
    let all = first + other.units.len() - 1;
    net.adopt(other);
    net.take_log();
    let at = net.now;
    let mut merged = Merged {
        joined: f64::INFINITY,
        named: f64::INFINITY,
        shared: 0,
    };
    let done = |m: &Merged| m.joined.is_finite() && m.named.is_finite();
    while !done(&merged) && net.now < at + Duration::from_secs(12) {
        net.run_for(Duration::from_micros(200));
        merged.shared += shared_seats(&net, Some(uid));
        for (when, news) in net.take_log() {
            if let News::Master(MasterEvent::Duplicate { uid: twins, .. }, _) = news {
                assert_eq!(twins, uid, "no others have one id");
                merged.named = merged.named.min(when.since(at).as_nanos() as f64);
            }
        }
        let member = |n: NodeId| net.master.member(n).map(|(uid, _)| uid);
        let right = |u: &&net::Unit| u.link.node().is_some_and(|n| member(n) == Some(u.uid));
        let seated = net.units.iter().filter(right).count();
        if seated == all && merged.joined.is_infinite() {
            merged.joined = net.now.since(at).as_nanos() as f64;
        }
    }
    merged
}

/// An alarm that says why a slave tripped.
fn alarm(i: usize) -> Alarm {
    Alarm {
        code: 1,
        severity: Severity::Trip,
        active: true,
        index: (i % 18) as u8,
        value: 4_250,
    }
}

fn share(net: &Net, start: Duration, span: Duration) -> f64 {
    (net.busy() - start).as_nanos() as f64 / span.as_nanos() as f64
}

/// Nanoseconds from `at` until the master says something of this kind; infinite after 12 s.
fn until(net: &mut Net, at: Instant, mut wanted: impl FnMut(&MasterEvent) -> bool) -> f64 {
    let end = at + Duration::from_secs(12);
    while net.now < end {
        net.run_for(Duration::from_micros(200));
        for (when, news) in net.take_log() {
            if let News::Master(event, _) = news
                && when >= at
                && wanted(&event)
            {
                return when.since(at).as_nanos() as f64;
            }
        }
    }
    f64::INFINITY
}

/// Cyclic messages of the first `count` slaves that did not arrive.
fn lost(net: &Net, count: usize) -> u64 {
    let overwritten: u64 = net.units.iter().take(count).map(|u| u.overwritten()).sum();
    overwritten + net.master.stats().lost
}

/// Slaves that believe to sit where another one does, and the master agrees with both. Of two with one
/// id it cannot know before they speak.
fn shared_seats(net: &Net, twins: Option<Uid>) -> usize {
    let seats: Vec<NodeId> = net
        .units
        .iter()
        .filter(|u| u.alive && Some(u.uid) != twins)
        .filter(|u| {
            let seat = u.link.node().and_then(|n| net.master.member(n));
            seat.is_some_and(|(uid, _)| uid == u.uid)
        })
        .filter_map(|u| u.link.node())
        .collect();
    let mut once = seats.clone();
    once.sort_by_key(|n| n.get());
    once.dedup();
    seats.len() - once.len()
}

/// Worst microseconds between the first and the last slave that does this, in groups that lie
/// further apart than `gap`.
fn skew(log: &[(Instant, News)], gap: Duration, what: impl Fn(&SlaveEvent) -> bool) -> f64 {
    let mut worst = Duration::ZERO;
    let mut first: Option<Instant> = None;
    for (at, news) in log {
        if let News::Slave(_, event) = news
            && what(event)
        {
            match first {
                Some(start) if at.since(start) < gap => worst = worst.max(at.since(start)),
                _ => first = Some(*at),
            }
        }
    }
    worst.as_nanos() as f64 / US
}

fn part(span: Duration, share: f64) -> Duration {
    Duration::from_nanos((span.as_nanos() as f64 * share) as u64)
}

/// Parts of a slave's state, one bit each: summary, then four cells and a temperature each.
fn parts(message: &Message) -> Option<(NodeId, u8)> {
    Some(match message {
        Message::Summary(node, _) => (*node, 1),
        Message::CellChunk { node, first, .. } => (*node, 2 << (first / 4)),
        Message::State(node, _) => (*node, 0x1f),
        _ => return None,
    })
}

/// Worst nanoseconds from a SYNC of these cycles until all slaves' states have come, measured within `span`
/// from it. SYNCs in whose log there may be too little behind them are left out.
fn full_state(
    log: &[(Instant, News)],
    slaves: usize,
    span: Duration,
    cycles: impl Fn(u8) -> bool,
) -> f64 {
    let of = |(at, news): &(Instant, News)| match news {
        News::Slave(0, SlaveEvent::Sync { cycle, .. }) => Some((*at, *cycle)),
        _ => None,
    };
    let syncs: Vec<(Instant, u8)> = log.iter().filter_map(of).collect();
    let whole = syncs.len().saturating_sub(6);
    let syncs = syncs.iter().take(whole).filter(|(_, cycle)| cycles(*cycle));
    // None in this piece of the log is no measurement.
    let mut worst: f64 = if syncs.clone().count() == 0 {
        f64::INFINITY
    } else {
        0.0
    };
    for &(sync, _) in syncs {
        let mut have = [0u8; 127];
        let mut complete = None;
        for (at, news) in log.iter().filter(|(at, _)| *at >= sync) {
            // A slave on a long cable hears SYNC a little before or after the first one.
            if let News::Master(MasterEvent::Message(message), Some(sampled)) = news
                && *sampled + Duration::from_micros(1) >= sync
                && *sampled < sync + span
                && let Some((node, part)) = parts(message)
            {
                have[node.index()] |= part;
                if have.iter().filter(|h| **h == 0x1f).count() == slaves {
                    complete = Some(at.since(sync).as_nanos() as f64);
                    break;
                }
            }
        }
        worst = worst.max(complete.unwrap_or(f64::INFINITY));
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_racks_on_one_bus_get_one_seat_each_and_the_id_that_both_have_is_named() {
        for kind in BusKind::ALL {
            let bench = Bench {
                kind,
                full: false,
                seed: 1,
                figures: Vec::new(),
            };
            for trial in 0..2 {
                let m = merge(bench.rack(16, 2 * trial), bench.rack(16, 2 * trial + 1));
                println!("{}: {} {} us", kind.name(), m.joined / US, m.named / US);
                assert_eq!(m.shared, 0, "{kind:?}");
                let slow = if kind == BusKind::Rs485At115k {
                    10.0
                } else {
                    1.0
                };
                assert!(m.joined < slow * 0.5e9 && m.named < slow * 4e9, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_trip_is_heard_on_both_of_two_buses_within_the_sum_of_their_bounds() {
        // A rack is built on the stack, which a test's thread has little of.
        let thread = std::thread::Builder::new().stack_size(32 << 20);
        let measure = || {
            for kind in BusKind::ALL {
                let mut bench = Bench {
                    kind,
                    full: false,
                    seed: 1,
                    figures: Vec::new(),
                };
                bench.trips_over_two();
                let figures = std::mem::take(&mut bench.figures);
                println!(
                    "{}",
                    Report {
                        figures: figures.clone()
                    }
                    .to_text()
                );
                assert!(figures.iter().all(Figure::holds));
            }
        };
        thread.spawn(measure).unwrap().join().unwrap();
    }
}
