//! A bus in memory: controllers with three mailboxes, arbitration, frame times, random loss.
//! Not bit-exact; the frame times are those of the worst stuffing.
#![allow(dead_code)]

use helio_bus::*;
use helio_units::*;

pub fn uid(n: u64) -> Uid {
    Uid::new(0x4845_4c49_0000_0000 + n).expect("valid")
}
pub fn node(n: u8) -> NodeId {
    NodeId::new(n).expect("in range")
}
pub fn ms(n: u64) -> Instant {
    Instant::from_millis(n)
}
pub const RACK: Capabilities = Capabilities {
    cells: 16,
    temps: 4,
    anchors: 1,
};

/// A small generator, so that a failing run can be named by its seed.
pub struct Rng(pub u64);
impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
    pub fn chance(&mut self, p: f64) -> bool {
        (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < p
    }
}

/// What a slave measures.
pub fn state_of(n: usize) -> State {
    let mut state = State::default();
    for (i, cell) in state.cells.0.iter_mut().take(16).enumerate() {
        *cell = Some(Millivolts(3_000 + n as u16 * 10 + i as u16));
    }
    for t in state.temps.0.iter_mut().take(4) {
        *t = Some(DeciCelsius(200 + 10 * n as i16));
    }
    state.summary.state = SlaveState::Standby;
    state.summary.min = state.cells.0[0];
    state.summary.max = state.cells.0[15];
    state
}

pub const MAILBOXES: [Mailbox; 3] = [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management];

pub struct Slave {
    pub link: SlaveLink,
    /// Powered and plugged in.
    pub on: bool,
    /// Its receiver hears nothing.
    pub deaf: bool,
    pub events: Vec<(Instant, SlaveEvent)>,
    boxes: [Option<CanOut>; 3],
}

pub struct World {
    pub now: Instant,
    pub master: MasterLink,
    pub master_on: bool,
    pub slaves: Vec<Slave>,
    pub events: Vec<(Instant, MasterEvent)>,
    /// Age of each message with a sample when it came, by class.
    pub worst_age: [Duration; 16],
    pub loss: f64,
    pub rng: Rng,
    pub frames: u64,
    pub busy: Duration,
    pub collisions: u64,
    pub log: Vec<(Instant, CanFrame)>,
    pub keep_log: bool,
    master_boxes: [Option<CanOut>; 3],
    kind: BusKind,
}

pub fn frame_time(kind: BusKind, frame: &CanFrame) -> Duration {
    let n = frame.data().len() as u64;
    let bit = if kind == BusKind::Can500k {
        2_000
    } else {
        1_000
    };
    let (head, extended) = match frame.id {
        CanId::Standard(_) => (34, 0),
        CanId::Extended(_) => (54, 20),
    };
    if frame.fd {
        // Arbitration 30 bits or so at the slow rate, the rest at 5 Mbit/s with its stuffing.
        let slow = 30 + extended;
        let fast = (8 * n + 34) * 6 / 5;
        Duration::from_nanos(slow * bit + fast * 200)
    } else {
        let bits = head + 8 * n + 13 + (head + 8 * n - 1) / 4;
        Duration::from_nanos(bits * bit)
    }
}

/// Smaller wins arbitration.
fn urgency(id: CanId) -> (u32, u32) {
    match id {
        CanId::Standard(id) => (id.into(), 0),
        CanId::Extended(id) => (id >> 18, 1 + (id & 0x3_ffff)),
    }
}

impl World {
    pub fn new(kind: BusKind, uids: impl IntoIterator<Item = u64>) -> Self {
        Self::with(Schedule::for_bus(kind), uids)
    }

    pub fn with(schedule: Schedule, uids: impl IntoIterator<Item = u64>) -> Self {
        let mut world = Self {
            now: Instant::from_millis(3),
            master: MasterLink::new(schedule),
            master_on: true,
            slaves: vec![],
            events: vec![],
            worst_age: [Duration::ZERO; 16],
            loss: 0.0,
            rng: Rng(1),
            frames: 0,
            busy: Duration::ZERO,
            collisions: 0,
            log: vec![],
            keep_log: false,
            master_boxes: [None; 3],
            kind: schedule.kind,
        };
        for n in uids {
            world.plug(n, RACK);
        }
        world
    }

    pub fn plug(&mut self, n: u64, capabilities: Capabilities) -> usize {
        let schedule = *self.master.schedule();
        self.slaves.push(Slave {
            link: SlaveLink::new(schedule, uid(n), capabilities),
            on: true,
            deaf: false,
            events: vec![],
            boxes: [None; 3],
        });
        self.slaves.len() - 1
    }

    pub fn unplug(&mut self, i: usize) {
        self.slaves[i].on = false;
        self.slaves[i].boxes = [None; 3];
    }

    /// Runs all that happens until `end`.
    pub fn run_until(&mut self, end: Instant) {
        loop {
            self.drain();
            self.fill();
            if let Some(took) = self.transmit() {
                self.now += took;
                if self.now >= end {
                    self.drain();
                    return;
                }
                continue;
            }
            let mut next = end;
            if self.master_on {
                next = next.min(self.master.poll_timeout().unwrap_or(end));
            }
            for s in self.slaves.iter().filter(|s| s.on) {
                next = next.min(s.link.poll_timeout().unwrap_or(end));
            }
            self.now = self.now.max(next);
            let now = self.now;
            if self.master_on {
                self.master.handle_timeout(now);
            }
            for s in self.slaves.iter_mut().filter(|s| s.on) {
                s.link.handle_timeout(now);
            }
            self.drain();
            if now >= end {
                return;
            }
        }
    }

    pub fn run_for(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    /// Events of the core above.
    fn drain(&mut self) {
        let now = self.now;
        while let Some(event) = self.master.poll_event() {
            self.events.push((now, event));
        }
        for (n, slave) in self.slaves.iter_mut().enumerate().filter(|(_, s)| s.on) {
            while let Some(event) = slave.link.poll_event() {
                match &event {
                    SlaveEvent::Sync { .. } => slave.link.set_state(now, &state_of(n)),
                    SlaveEvent::RangeNow(tag) => {
                        let mut range = [None; MAX_ANCHORS];
                        range[0] = Some(Millimetres(1_000 + n as i32));
                        slave.link.set_ranges(now, &Ranges { tag: *tag, range });
                    }
                    _ => {}
                }
                if !matches!(event, SlaveEvent::Sync { .. } | SlaveEvent::RangeNow(_)) {
                    slave.events.push((now, event));
                }
            }
        }
    }

    fn fill(&mut self) {
        for (i, mailbox) in MAILBOXES.into_iter().enumerate() {
            if self.master_on && self.master_boxes[i].is_none() {
                self.master_boxes[i] = self.master.poll_can(self.now, mailbox);
            }
            for s in self.slaves.iter_mut().filter(|s| s.on) {
                if s.boxes[i].is_none() {
                    s.boxes[i] = s.link.poll_can(self.now, mailbox);
                }
            }
        }
    }

    /// The most urgent frame, from everyone who has it.
    fn transmit(&mut self) -> Option<Duration> {
        let mut best: Option<CanOut> = None;
        let mut colliding = false;
        let masters = self.master_boxes.iter().filter(|_| self.master_on);
        let slaves = self.slaves.iter().filter(|s| s.on);
        for out in masters.chain(slaves.flat_map(|s| s.boxes.iter())).flatten() {
            match &best {
                Some(b) if urgency(b.frame.id) < urgency(out.frame.id) => {}
                Some(b) if b.frame.id == out.frame.id => colliding |= b.frame != out.frame,
                _ => {
                    colliding = false;
                    best = Some(*out);
                }
            }
        }
        let out = best?;
        let took = frame_time(self.kind, &out.frame);
        let end = self.now + took;
        self.busy = self.busy + took;
        self.frames += 1;
        if colliding {
            // Same identifier, other data: both senders end in bus-off and start over.
            self.collisions += 1;
            for s in &mut self.slaves {
                s.boxes.iter_mut().for_each(|b| {
                    if b.is_some_and(|b| b.frame.id == out.frame.id) {
                        *b = None;
                    }
                });
            }
            return Some(took);
        }
        if self.keep_log {
            self.log.push((end, out.frame));
        }
        for (i, mailbox) in MAILBOXES.into_iter().enumerate() {
            let same = |b: &Option<CanOut>| b.is_some_and(|b| b.frame == out.frame);
            if same(&self.master_boxes[i]) {
                self.master_boxes[i] = None;
                self.master.handle_sent(end, mailbox);
            }
            for s in self.slaves.iter_mut().filter(|s| s.on) {
                if same(&s.boxes[i]) {
                    s.boxes[i] = None;
                    s.link.handle_sent(end, mailbox);
                } else if i == 0
                    && !s.boxes.iter().any(same)
                    && !s.deaf
                    && slave_accepts(out.frame.id, s.link.node())
                    && !self.rng.chance(self.loss)
                {
                    s.link.handle_can(end, &out.frame);
                }
            }
        }
        let from_master = matches!(decode_can(&out.frame), Ok(d)
            if matches!(d.message, Message::Sync(_) | Message::Command(_)));
        if self.master_on && !from_master && !self.rng.chance(self.loss) {
            self.master.handle_can(end, &out.frame);
            if let (CanId::Standard(id), Some(at)) = (out.frame.id, out.sampled_at) {
                let worst = &mut self.worst_age[usize::from(id >> 7)];
                *worst = (*worst).max(end.since(at));
            }
        }
        Some(took)
    }

    pub fn joined(&self) -> usize {
        (1..=127)
            .filter(|n| self.master.member(node(*n)).is_some())
            .count()
    }

    pub fn count(&self, wanted: impl Fn(&MasterEvent) -> bool) -> usize {
        self.events.iter().filter(|(_, e)| wanted(e)).count()
    }

    /// When the first such event came.
    pub fn when(&self, wanted: impl Fn(&MasterEvent) -> bool) -> Option<Instant> {
        self.events
            .iter()
            .find(|(_, e)| wanted(e))
            .map(|(at, _)| *at)
    }
}
