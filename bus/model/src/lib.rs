//! Membership and quarantine on CAN as a model that is checked over every order of faults.
//!
//! It steps the real links, [`MasterLink`] and [`SlaveLink`], whole: claims, seats, probes, silence,
//! budgets, quarantine. What is abstract is the world around them:
//!
//! ```text
//! Go, something pending:  the most urgent frame goes to everybody; takes no time
//! Go, nothing pending:    half a cycle passes
//! a fault, at any time:   Miss (one receiver overruns), Twice (an error in the last bit of EOF), crash and
//!                         start of master and slaves, another device in a slave's place, Babble (for half a
//!                         cycle), Trip
//! ```
//!
//! Times count from now, in half cycles, and message counters start anew every half cycle
//! (`helio_bus::model`), so the number of states is finite although time is not. At most
//! [`Rack::faults`] faults strike, at any time, in any order.
//!
//! Safety is judged in every state ([`Rack::properties`](Model::properties)). Liveness is judged as
//! a bound: from every state in which time may pass, the links are run on without further faults,
//! and within [`Rack::within`] cycles all slaves that have power must be members again, and only they.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use helio_bus::model::Print;
use helio_bus::{
    BusKind, CanFrame, CanId, Capabilities, Command, LeaveReason, Mailbox, MasterEvent, MasterLink,
    Message, Order, Schedule, SlaveEvent, SlaveLink, State as Measured, decode_can, slave_accepts,
};
use helio_units::{Duration, Instant, NodeId, Uid};
use stateright::{Model, Property};

/// Most slaves of a model.
pub const MAX_SLAVES: usize = 6;

/// What is checked.
#[derive(Debug)]
pub struct Rack {
    /// Slaves, `1..=MAX_SLAVES`; as many seats.
    pub slaves: usize,
    /// Faults that may strike before the rack has recovered from all of them.
    pub faults: u8,
    /// Cycles within which all must be well again after the last fault.
    pub within: u32,
    /// A rule that is broken on purpose.
    pub defect: Option<Defect>,
    /// Longest recovery seen, in half cycles.
    pub slowest: AtomicU64,
}

/// Rules that can be broken, to see the checker find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A slave takes no order to be silent.
    IgnoresQuarantine,
    /// A trip waits while the slave has no seat.
    TripNeedsSeat,
    /// A slave never learns that it is to go.
    IgnoresRelease,
}

impl Rack {
    /// A sound one.
    pub fn new(slaves: usize, faults: u8) -> Self {
        Self {
            slaves: slaves.clamp(1, MAX_SLAVES),
            faults,
            within: 20,
            defect: None,
            slowest: AtomicU64::new(0),
        }
    }

    /// Half a cycle.
    fn tick(&self) -> Duration {
        Duration::from_nanos(CYCLE.as_nanos() / 2)
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            seats: self.slaves as u8,
            quarantine: CYCLE * 2,
            ..Schedule::for_bus(BusKind::Can1M).with_cycle(CYCLE)
        }
    }
}

/// Long, so that the second for which a slave keeps away that was refused a seat is few cycles.
const CYCLE: Duration = Duration::from_millis(400);
const MAILBOXES: [Mailbox; 3] = [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management];
/// A slave whose only message is its summary.
const SLAVE: Capabilities = Capabilities {
    cells: 0,
    temps: 0,
    anchors: 0,
};
/// No two slaves stay on one seat.
pub const SHARED: &str = "no seat stays with two slaves";
/// What the master delivers comes from the device that it believes to sit there.
pub const ANOTHERS: &str = "no message is taken for another device's";
/// Nothing goes out until the time of the order is over.
pub const SPEAKS: &str = "a slave in quarantine is silent";
/// Whoever trips has said so a cycle later, or when its quarantine is over.
pub const UNTOLD: &str = "a trip is said within a cycle";
/// Liveness, as a bound.
pub const BACK: &str = "all that have power are members again, and only they";
/// Half cycles for which two slaves may believe to have the same seat.
const DOUBLE: u8 = 3;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// What happens without a fault.
    Go,
    /// The next frame, and this one does not hear it: 0 the master, then the slaves.
    Miss(u8),
    /// The next frame twice: all have taken it when its sender sees an error and repeats.
    Twice,
    /// Loses power and memory.
    Crash(u8),
    /// Gets power, without memory.
    Start(u8),
    /// A dead slave's place is taken by a device that nobody knows.
    Replace(u8),
    /// A slave asks for as much as its budget gives until half a cycle has passed.
    Babble(u8),
    /// A slave opens its gate.
    Trip(u8),
}

/// A controller: link and mailboxes; `None`: no power.
#[derive(Clone, Debug, Default)]
struct Slave {
    link: Option<Arc<Link<SlaveLink>>>,
    boxes: [Option<CanFrame>; 3],
    /// Its device is the n-th in this place.
    device: u8,
    babbling: bool,
    /// Ordered to be silent until then.
    silent_until: Option<Instant>,
    /// Half cycles since it tripped and has not said so.
    untold: Option<u8>,
    /// Half cycles for which it has shared its seat.
    doubled: u8,
}

/// Links have no `Debug` of use.
#[derive(Clone)]
struct Link<T>(T);

impl<T> std::fmt::Debug for Link<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("link")
    }
}

/// Everything between two things that happen.
#[derive(Clone, Debug)]
pub struct State {
    now: Instant,
    master: Option<Arc<Link<MasterLink>>>,
    master_boxes: [Option<CanFrame>; 3],
    slaves: Vec<Slave>,
    faults: u8,
    /// What must never happen and did.
    wrong: Option<&'static str>,
    /// All are well `.0` half cycles after the last fault; `None`: never; not judged in between.
    recovery: Option<Option<u32>>,
    /// Somebody has been quarantined.
    quarantined: bool,
    print: u64,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.print);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.print == other.print
    }
}

/// Unique id of the `device`-th device in a place. The ids say nothing about the places.
fn uid(place: usize, device: u8) -> Uid {
    let raw = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(1 + place as u64 + 16 * u64::from(device));
    Uid::new(raw | 1).unwrap_or(Uid::new(1).expect("1 is an id"))
}

/// Smaller wins arbitration.
fn urgency(id: CanId) -> (u32, u32) {
    match id {
        CanId::Standard(id) => (id.into(), 0),
        CanId::Extended(id) => (id >> 18, 1 + (id & 0x3_ffff)),
    }
}

impl State {
    fn new(rack: &Rack) -> Self {
        let schedule = rack.schedule();
        let now = Instant::from_nanos(1 << 40);
        let slaves = (0..rack.slaves).map(|i| Slave {
            link: Some(Arc::new(Link(SlaveLink::new(schedule, uid(i, 0), SLAVE)))),
            ..Slave::default()
        });
        let mut state = Self {
            now,
            master: Some(Arc::new(Link(MasterLink::new(schedule)))),
            master_boxes: [None; 3],
            slaves: slaves.collect(),
            faults: rack.faults,
            wrong: None,
            recovery: None,
            quarantined: false,
            print: 0,
        };
        state.wake(rack);
        state
    }

    fn master(&mut self) -> Option<&mut MasterLink> {
        self.master.as_mut().map(|m| &mut Arc::make_mut(m).0)
    }

    fn slave(&mut self, i: usize) -> Option<&mut SlaveLink> {
        let slave = self.slaves.get_mut(i)?;
        slave.link.as_mut().map(|l| &mut Arc::make_mut(l).0)
    }

    fn node(&self, i: usize) -> Option<NodeId> {
        self.slaves.get(i)?.link.as_ref()?.0.node()
    }

    fn member(&self, node: NodeId) -> Option<Uid> {
        Some(self.master.as_ref()?.0.member(node)?.0)
    }

    fn members(&self) -> impl Iterator<Item = (NodeId, Uid)> {
        let nodes = (1..=MAX_SLAVES as u8).filter_map(NodeId::new);
        nodes.filter_map(|node| Some((node, self.member(node)?)))
    }

    /// Whoever has power is a member under its own id, and nobody else.
    fn well(&self) -> bool {
        let alive = (0..self.slaves.len()).filter(|&i| self.slaves[i].link.is_some());
        let right = |i: &usize| {
            let seat = self.node(*i).and_then(|node| self.member(node));
            seat == Some(uid(*i, self.slaves[*i].device))
        };
        let expected = alive.clone().count();
        self.members().count() == expected && alive.filter(right).count() == expected
    }

    /// The frame that wins arbitration, and in which mailboxes it is: 0 the master's, then the slaves'.
    fn next_frame(&self) -> Option<(CanFrame, u32)> {
        let mut best: Option<(CanFrame, u32)> = None;
        for (who, boxes) in self.all_boxes() {
            for frame in boxes.iter().flatten() {
                match &mut best {
                    Some((b, who_has)) if b.id == frame.id => *who_has |= 1 << who,
                    Some((b, _)) if urgency(b.id) < urgency(frame.id) => {}
                    _ => best = Some((*frame, 1 << who)),
                }
            }
        }
        // Nobody acknowledges what nobody else can hear.
        let (_, senders) = best.as_ref()?;
        let powered = u32::from(self.master.is_some())
            | (0..self.slaves.len())
                .filter(|&i| self.slaves[i].link.is_some())
                .fold(0, |set, i| set | 2 << i);
        (powered & !senders != 0).then_some(best?)
    }

    fn all_boxes(&self) -> impl Iterator<Item = (usize, &[Option<CanFrame>; 3])> {
        let slaves = self.slaves.iter().enumerate();
        std::iter::once((0, &self.master_boxes)).chain(slaves.map(|(i, s)| (i + 1, &s.boxes)))
    }

    /// The next frame, missed by `missed`, `times` over.
    fn transmit(&mut self, rack: &Rack, missed: Option<u8>, times: u8) {
        let Some((frame, who)) = self.next_frame() else {
            return;
        };
        if self.collides(&frame) {
            // Same identifier, other data: bit errors until the senders are bus-off and come back
            // with empty mailboxes.
            for i in 0..self.slaves.len() {
                for place in &mut self.slaves[i].boxes {
                    if place.is_some_and(|f| f.id == frame.id) {
                        *place = None;
                    }
                }
            }
            self.speak(u32::MAX, rack);
            return;
        }
        for _ in 0..times {
            if missed != Some(0) && who & 1 == 0 {
                self.hand_to_master(&frame, who);
            }
            for i in 0..self.slaves.len() {
                if missed != Some(i as u8 + 1) && who & 2 << i == 0 {
                    self.hand_to_slave(rack, i, &frame);
                }
            }
        }
        let now = self.now;
        for (n, mailbox) in MAILBOXES.into_iter().enumerate() {
            if self.master_boxes[n] == Some(frame) {
                self.master_boxes[n] = None;
                if let Some(master) = self.master() {
                    master.handle_sent(now, mailbox);
                }
            }
            for i in 0..self.slaves.len() {
                if self.slaves[i].boxes[n] == Some(frame) {
                    self.slaves[i].boxes[n] = None;
                    if frame.id == CanId::Standard(0) {
                        self.slaves[i].untold = None;
                    }
                    if let Some(link) = self.slave(i) {
                        link.handle_sent(now, mailbox);
                    }
                }
            }
        }
        self.speak(u32::MAX, rack);
    }

    fn collides(&self, frame: &CanFrame) -> bool {
        let mut same = self
            .all_boxes()
            .flat_map(|(_, boxes)| boxes.iter().flatten());
        same.any(|f| f.id == frame.id && f != frame)
    }

    fn hand_to_master(&mut self, frame: &CanFrame, from: u32) {
        let now = self.now;
        let senders: Vec<Uid> = (0..self.slaves.len())
            .filter(|i| from & 2 << i != 0)
            .map(|i| uid(i, self.slaves[i].device))
            .collect();
        let Some(master) = self.master() else { return };
        master.handle_can(now, frame);
        let mut events = Vec::new();
        while let Some(event) = master.poll_event() {
            events.push(event);
        }
        for event in events {
            match event {
                MasterEvent::Left {
                    reason: LeaveReason::Babbling,
                    ..
                } => self.quarantined = true,
                MasterEvent::Message(Message::Summary(node, _) | Message::Alarm(node, _)) => {
                    let taken_for = self.member(node);
                    if !senders.iter().any(|uid| Some(*uid) == taken_for) {
                        self.wrong = Some(ANOTHERS);
                    }
                }
                _ => {}
            }
        }
    }

    fn hand_to_slave(&mut self, rack: &Rack, i: usize, frame: &CanFrame) {
        let now = self.now;
        let node = self.node(i);
        let decoded = decode_can(frame).ok().map(|d| d.message);
        let order = match decoded {
            Some(Message::Command(Command { to, order })) if to.is_some() && to == node => {
                Some(order)
            }
            _ => None,
        };
        let is_join = matches!(frame.id, CanId::Extended(id) if id & 0x1e00_0000 == 0x1e00_0000 || id >> 24 == 5);
        let deaf = match rack.defect {
            Some(Defect::IgnoresQuarantine) => matches!(order, Some(Order::Quarantine(_))),
            Some(Defect::IgnoresRelease) => {
                is_join && matches!(frame.id, CanId::Extended(id) if id >> 7 & 0xf != 0)
            }
            _ => false,
        };
        if let (Some(Order::Quarantine(hold)), Some(slave)) = (order, self.slaves.get_mut(i)) {
            slave.silent_until = Some(now + hold);
        }
        if deaf || !slave_accepts(frame.id, node) {
            return;
        }
        if let Some(link) = self.slave(i) {
            link.handle_can(now, frame);
        }
    }

    /// Everybody in the set does what its link decided: 1 the master, 2 the first slave, ...
    fn speak(&mut self, who: u32, rack: &Rack) {
        let now = self.now;
        if who & 1 != 0 {
            for (n, mailbox) in MAILBOXES.into_iter().enumerate() {
                if self.master_boxes[n].is_none()
                    && let Some(master) = self.master()
                {
                    self.master_boxes[n] = master.poll_can(now, mailbox).map(|out| out.frame);
                }
            }
            // What is not a message is of no interest here.
            let mut quarantined = self.quarantined;
            while let Some(event) = self.master().and_then(MasterLink::poll_event) {
                quarantined |= matches!(
                    event,
                    MasterEvent::Left {
                        reason: LeaveReason::Babbling,
                        ..
                    }
                );
            }
            self.quarantined = quarantined;
        }
        for i in 0..self.slaves.len() {
            if who & 2 << i == 0 {
                continue;
            }
            if let Some(link) = self.slave(i) {
                while let Some(event) = link.poll_event() {
                    if let SlaveEvent::Sync { .. } = event {
                        link.set_state(now, &Measured::default());
                    }
                }
            }
            for (n, mailbox) in MAILBOXES.into_iter().enumerate() {
                if self.slaves[i].boxes[n].is_some() {
                    continue;
                }
                let Some(link) = self.slave(i) else { break };
                let Some(out) = link.poll_can(now, mailbox) else {
                    continue;
                };
                let slave = &mut self.slaves[i];
                if rack.defect == Some(Defect::TripNeedsSeat)
                    && out.frame.id == CanId::Standard(0)
                    && slave.link.as_ref().is_some_and(|l| l.0.node().is_none())
                {
                    continue;
                }
                if slave.silent_until.is_some_and(|until| now < until) {
                    self.wrong = Some(SPEAKS);
                }
                slave.boxes[n] = Some(out.frame);
            }
        }
    }

    /// Everybody looks at the clock.
    fn wake(&mut self, rack: &Rack) {
        let now = self.now;
        if let Some(master) = self.master() {
            master.handle_timeout(now);
        }
        for i in 0..self.slaves.len() {
            if let Some(link) = self.slave(i) {
                link.handle_timeout(now);
            }
        }
        self.speak(u32::MAX, rack);
    }

    /// Half a cycle passes.
    fn pass(&mut self, rack: &Rack) {
        self.now += rack.tick();
        let now = self.now;
        if let Some(master) = self.master() {
            master.forget();
        }
        for i in 0..self.slaves.len() {
            let (babbling, slave) = (self.slaves[i].babbling, self.slave(i));
            if let Some(link) = slave {
                link.forget();
                if babbling {
                    link.babble(false);
                }
            }
            let held = self.slaves[i].silent_until.is_some_and(|until| now < until);
            let slave = &mut self.slaves[i];
            slave.babbling = false;
            if !held {
                slave.silent_until = None;
                slave.untold = slave.untold.map(|age| (age + 1).min(9));
            }
            if slave.untold.is_some_and(|age| age > 1) {
                self.wrong = Some(UNTOLD);
            }
        }
        self.wake(rack);
        for i in 0..self.slaves.len() {
            let node = self.node(i);
            let others = (0..self.slaves.len()).filter(|&other| other != i);
            let shared = node.is_some() && others.into_iter().any(|other| self.node(other) == node);
            let slave = &mut self.slaves[i];
            slave.doubled = if shared {
                (slave.doubled + 1).min(DOUBLE + 1)
            } else {
                0
            };
            if slave.doubled > DOUBLE {
                self.wrong = Some(SHARED);
            }
        }
    }

    /// What happens without a fault.
    fn go(&mut self, rack: &Rack) {
        if self.next_frame().is_some() {
            self.transmit(rack, None, 1);
        } else {
            self.pass(rack);
        }
    }

    /// Half cycles until all are well and stay so for a while, without further faults.
    fn recover(&self, rack: &Rack) -> Option<u32> {
        let mut state = self.clone();
        let mut well_since = None;
        let mut ticks = 0;
        for _ in 0..10_000 {
            if state.next_frame().is_none() {
                match (state.well(), well_since) {
                    (false, _) => well_since = None,
                    (true, None) => well_since = Some(ticks),
                    (true, Some(since)) if ticks >= since + 8 => return Some(since),
                    _ => {}
                }
                if ticks > rack.within * 2 + 8 {
                    return None;
                }
                ticks += 1;
            }
            state.go(rack);
        }
        None
    }

    fn seal(&mut self, rack: &Rack) {
        self.recovery = None;
        if self.next_frame().is_none() && self.master.is_some() {
            let took = self.recover(rack);
            if let Some(ticks) = took {
                rack.slowest.fetch_max(ticks.into(), Ordering::Relaxed);
            }
            self.recovery = Some(took);
        }
        self.print = self.fingerprint(rack);
    }

    fn fingerprint(&self, rack: &Rack) -> u64 {
        let mut p = Print::new(self.now, rack.tick());
        p.value(self.master.is_some().into());
        if let Some(master) = &self.master {
            master.0.print(&mut p);
        }
        for slave in &self.slaves {
            p.value(slave.link.is_some().into());
            if let Some(link) = &slave.link {
                link.0.print(&mut p);
            }
            p.value(u64::from_le_bytes([
                slave.device,
                slave.babbling.into(),
                slave.untold.map_or(0, |age| age + 1),
                slave.doubled,
                0,
                0,
                0,
                0,
            ]));
            p.maybe(slave.silent_until, Duration::ZERO);
        }
        for (_, boxes) in self.all_boxes() {
            for frame in boxes {
                let Some(frame) = frame else {
                    p.value(0);
                    continue;
                };
                let (a, b) = urgency(frame.id);
                p.value(u64::from(a) << 32 | u64::from(b) << 1 | 1);
                for chunk in frame.data().chunks(8) {
                    let mut raw = [0; 8];
                    raw[..chunk.len()].copy_from_slice(chunk);
                    p.value(u64::from_le_bytes(raw));
                }
            }
        }
        p.value(self.faults.into());
        p.value(self.wrong.is_some().into());
        p.value(self.quarantined.into());
        p.finish()
    }
}

impl Model for Rack {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::new(self);
        state.seal(self);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Go);
        let pending = state.next_frame();
        if pending.is_none() {
            // Power comes back when it likes; within a cycle that makes no difference.
            for i in 0..=self.slaves as u8 {
                let dead = match usize::from(i).checked_sub(1) {
                    None => state.master.is_none(),
                    Some(slave) => state.slaves[slave].link.is_none(),
                };
                if dead {
                    actions.push(Action::Start(i));
                    if i > 0 && state.slaves[usize::from(i) - 1].device == 0 {
                        actions.push(Action::Replace(i));
                    }
                }
            }
        }
        if state.faults == 0 {
            return;
        }
        if let Some((frame, senders)) = pending {
            actions.push(Action::Twice);
            let hears = |i: &u8| match usize::from(*i).checked_sub(1) {
                _ if senders & 1 << i != 0 => false,
                None => state.master.is_some(),
                Some(slave) => {
                    state.slaves[slave].link.is_some() && slave_accepts(frame.id, state.node(slave))
                }
            };
            actions.extend((0..=self.slaves as u8).filter(hears).map(Action::Miss));
        }
        if state.master.is_some() {
            actions.push(Action::Crash(0));
        }
        for i in 1..=self.slaves as u8 {
            let slave = &state.slaves[usize::from(i) - 1];
            if slave.link.is_none() {
                continue;
            }
            actions.push(Action::Crash(i));
            if pending.is_none() {
                if !slave.babbling {
                    actions.push(Action::Babble(i));
                }
                if slave.untold.is_none() {
                    actions.push(Action::Trip(i));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        if !matches!(action, Action::Go | Action::Start(_) | Action::Replace(_)) {
            state.faults -= 1;
        }
        let (now, schedule) = (state.now, self.schedule());
        match action {
            Action::Go => state.go(self),
            Action::Miss(who) => state.transmit(self, Some(who), 1),
            Action::Twice => state.transmit(self, None, 2),
            Action::Crash(0) => {
                state.master = None;
                state.master_boxes = [None; 3];
            }
            Action::Crash(i) => {
                let slave = &mut state.slaves[usize::from(i) - 1];
                *slave = Slave {
                    device: slave.device,
                    ..Slave::default()
                };
            }
            Action::Start(0) => {
                state.master = Some(Arc::new(Link(MasterLink::new(schedule))));
                state.wake(self);
            }
            Action::Start(i) | Action::Replace(i) => {
                let place = usize::from(i) - 1;
                let slave = &mut state.slaves[place];
                slave.device += u8::from(action == Action::Replace(i));
                let link = SlaveLink::new(schedule, uid(place, slave.device), SLAVE);
                slave.link = Some(Arc::new(Link(link)));
                state.wake(self);
            }
            Action::Babble(i) => {
                let place = usize::from(i) - 1;
                state.slaves[place].babbling = true;
                if let Some(link) = state.slave(place) {
                    link.babble(true);
                }
                state.speak(2 << place, self);
            }
            Action::Trip(i) => {
                let place = usize::from(i) - 1;
                state.slaves[place].untold = Some(0);
                if let Some(link) = state.slave(place) {
                    link.trip(now);
                }
                state.speak(2 << place, self);
            }
        }
        state.seal(self);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let all_seated =
            |rack: &Self, state: &State| state.well() && state.members().count() == rack.slaves;
        vec![
            Property::always("a device has one seat", |_, state: &State| {
                let mut uids: Vec<Uid> = state.members().map(|(_, uid)| uid).collect();
                uids.sort();
                uids.windows(2).all(|pair| pair[0] != pair[1])
            }),
            Property::always(SHARED, |_, state: &State| state.wrong != Some(SHARED)),
            Property::always(ANOTHERS, |_, state: &State| state.wrong != Some(ANOTHERS)),
            Property::always(SPEAKS, |_, state: &State| state.wrong != Some(SPEAKS)),
            Property::always(UNTOLD, |_, state: &State| state.wrong != Some(UNTOLD)),
            Property::always(BACK, |rack: &Self, state: &State| {
                state
                    .recovery
                    .is_none_or(|took| took.is_some_and(|ticks| ticks <= rack.within * 2))
            }),
            Property::sometimes("all are seated", all_seated),
            Property::sometimes("a babbler is quarantined", |rack: &Self, state: &State| {
                state.quarantined || rack.faults == 0
            }),
        ]
    }
}
