//! Whole slaves and a real master's link on a CAN bus in memory: every frame takes the same time,
//! the lowest identifier wins, identical frames merge.

use helio_battery::Sample;
use helio_battery::protection::{Code, Kind, Limits, Severity as Bad};
use helio_bus::*;
use helio_slave::{DIAGNOSTICS, Slave, SlaveConfig, SlaveOutput};
use helio_smp::{Header, Op, Version, split};
use helio_units::*;

const FRAME: Duration = Duration::from_micros(130);
const MAILBOXES: [Mailbox; 3] = [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management];
const OVER_VOLTAGE: Code = Code::new(Kind::CellOvervoltage, Bad::Trip);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn healthy() -> Sample {
    let mut sample = Sample::EMPTY;
    sample.cell_count = 16;
    sample.temp_count = 4;
    sample.cells[..16].fill(Some(Millivolts(3_700)));
    sample.temps[..4].fill(Some(DeciCelsius(250)));
    sample.current = Some(Milliamps(1_000));
    sample
}

fn over_voltage() -> Sample {
    let mut sample = healthy();
    sample.cells[9] = Some(Millivolts(4_300));
    sample
}

/// A controller's transmit buffers.
type Boxes = [Option<CanOut>; 3];

/// A slave and what its shell has switched and felt.
struct Module {
    core: Slave,
    boxes: Boxes,
    sample: Sample,
    gate: bool,
    sampled: Vec<Instant>,
    ranged: Vec<TagId>,
}

struct Rack {
    now: Instant,
    master: Option<(MasterLink, Boxes)>,
    modules: Vec<Module>,
    /// End and content of the frame on the wire.
    wire: Option<(Instant, CanFrame)>,
    events: Vec<(Instant, MasterEvent)>,
}

/// Smaller wins arbitration.
fn urgency(id: CanId) -> (u32, u32) {
    match id {
        CanId::Standard(id) => (id.into(), 0),
        CanId::Extended(id) => (id >> 18, 1 + (id & 0x3_ffff)),
    }
}

impl Module {
    fn new(uid: u64, anchors: u8) -> Self {
        let capabilities = Capabilities {
            cells: 16,
            temps: 4,
            anchors,
        };
        let uid = Uid::new(uid).unwrap();
        let config = SlaveConfig {
            device: true,
            ..SlaveConfig::new(uid, capabilities, Limits::nmc(5_000))
        };
        Self {
            core: Slave::new(config, Schedule::for_bus(BusKind::Can1M)),
            boxes: [None; 3],
            sample: healthy(),
            gate: false,
            sampled: vec![],
            ranged: vec![],
        }
    }

    /// Carries out what the core wants.
    fn serve(&mut self, now: Instant) {
        while let Some(output) = self.core.poll_output() {
            match output {
                SlaveOutput::Gate(on) => self.gate = on,
                SlaveOutput::SampleNow => {
                    self.sampled.push(now);
                    self.core.handle_sample(now, &self.sample);
                }
                SlaveOutput::RangeNow(tag) => {
                    self.ranged.push(tag);
                    let range = [Some(Millimetres(2_345)); MAX_ANCHORS];
                    self.core.handle_ranges(now, &Ranges { tag, range });
                }
                SlaveOutput::Balance(_) | SlaveOutput::Light(_) | SlaveOutput::Identify(_) => {}
            }
        }
        for (place, mailbox) in self.boxes.iter_mut().zip(MAILBOXES) {
            if place.is_none() {
                *place = self.core.poll_can(now, mailbox);
            }
        }
    }
}

impl Rack {
    fn new(modules: Vec<Module>) -> Self {
        Self {
            now: Instant::from_millis(1),
            master: Some((
                MasterLink::new(Schedule::for_bus(BusKind::Can1M)),
                [None; 3],
            )),
            modules,
            wire: None,
            events: vec![],
        }
    }

    /// One slave, seated.
    fn joined() -> Self {
        let mut rack = Self::new(vec![Module::new(1, 0)]);
        rack.run(ms(100));
        assert!(rack.modules[0].core.node().is_some());
        rack
    }

    fn active() -> Self {
        let mut rack = Self::joined();
        rack.order(Order::Gate(true));
        rack.run(ms(60));
        assert!(rack.modules[0].gate);
        rack
    }

    fn order(&mut self, order: Order) {
        let (master, _) = self.master.as_mut().unwrap();
        master.command(Command { to: None, order }).unwrap();
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.settle();
            let mut next = self.wire.as_ref().map_or(Instant::MAX, |(t, _)| *t);
            if let Some((master, _)) = &self.master {
                next = next.min(master.poll_timeout().unwrap_or(Instant::MAX));
            }
            for m in &self.modules {
                next = next.min(m.core.poll_timeout().unwrap_or(Instant::MAX));
            }
            if next > end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let now = self.now;
            if let Some((_, frame)) = self.wire.take_if(|(t, _)| *t <= now) {
                self.deliver(&frame);
            }
            if let Some((master, _)) = &mut self.master {
                master.handle_timeout(now);
            }
            for m in &mut self.modules {
                m.core.handle_timeout(now);
            }
        }
    }

    /// Everybody does what is to do now, then the bus arbitrates if it is free.
    fn settle(&mut self) {
        let now = self.now;
        for m in &mut self.modules {
            m.serve(now);
        }
        if let Some((master, boxes)) = &mut self.master {
            for (place, mailbox) in boxes.iter_mut().zip(MAILBOXES) {
                if place.is_none() {
                    *place = master.poll_can(now, mailbox);
                }
            }
            while let Some(event) = master.poll_event() {
                self.events.push((now, event));
            }
        }
        if self.wire.is_none() {
            let boxes = self.master.iter().map(|(_, b)| b);
            let boxes = boxes.chain(self.modules.iter().map(|m| &m.boxes));
            let frames = boxes.flatten().flatten().map(|out| out.frame);
            let next = frames.min_by_key(|f| urgency(f.id));
            self.wire = next.map(|frame| (now + FRAME, frame));
        }
    }

    fn deliver(&mut self, frame: &CanFrame) {
        let now = self.now;
        let sent = |boxes: &mut Boxes| -> Option<Mailbox> {
            let mut places = boxes.iter_mut().zip(MAILBOXES);
            let (place, mailbox) = places.find(|(p, _)| p.is_some_and(|o| o.frame == *frame))?;
            *place = None;
            Some(mailbox)
        };
        if let Some((master, boxes)) = &mut self.master {
            match sent(boxes) {
                Some(mailbox) => master.handle_sent(now, mailbox),
                None => master.handle_can(now, frame),
            }
        }
        for m in &mut self.modules {
            match sent(&mut m.boxes) {
                Some(mailbox) => m.core.handle_sent(now, mailbox),
                None if slave_accepts(frame.id, m.core.node()) => m.core.handle_can(now, frame),
                None => {}
            }
        }
    }

    /// The newest summary of the only slave.
    fn summary(&self) -> Summary {
        let summaries = self.events.iter().rev().find_map(|(_, e)| match e {
            MasterEvent::Message(Message::Summary(_, s)) => Some(*s),
            _ => None,
        });
        summaries.expect("a summary has come")
    }

    /// Alarms since then.
    fn alarms(&self, since: Instant) -> Vec<Alarm> {
        let events = self.events.iter().filter(|(t, _)| *t >= since);
        let alarms = events.filter_map(|(_, e)| match e {
            MasterEvent::Message(Message::Alarm(_, a)) => Some(*a),
            _ => None,
        });
        alarms.collect()
    }

    fn trips(&self) -> usize {
        let trip = |e: &&(Instant, MasterEvent)| matches!(e.1, MasterEvent::Trip);
        self.events.iter().filter(trip).count()
    }

    /// Sends a request to the first slave over the management plane.
    fn request(&mut self, group: u16, id: u8, op: Op, body: &[u8]) -> NodeId {
        let header = Header {
            op,
            version: Version::V2,
            flags: 0,
            length: body.len() as u16,
            group,
            seq: 9,
            id,
        };
        let node = self.modules[0].core.node().unwrap();
        let request = [&header.encode()[..], body].concat();
        let (master, _) = self.master.as_mut().unwrap();
        master.send_datagram(node, &request).unwrap();
        self.run(ms(1_000));
        node
    }

    /// Asks the first slave over the management plane.
    fn ask(&mut self, group: u16, id: u8, op: Op, body: &[u8]) -> String {
        let node = self.request(group, id, op, body);
        let (master, _) = self.master.as_mut().unwrap();
        let (from, reply) = master.datagram().expect("an answer within a second");
        assert_eq!(from, node);
        let (header, body) = split(reply).unwrap();
        assert_eq!(header.seq, 9);
        minicbor::display(body).to_string()
    }
}

#[test]
fn a_slave_joins_and_reports_standby_with_what_it_measures() {
    let rack = Rack::joined();
    assert!(rack.events.iter().any(|(_, e)| matches!(
        e,
        MasterEvent::Joined { uid, capabilities, .. } if uid.get() == 1 && capabilities.cells == 16
    )));
    let s = rack.summary();
    assert_eq!(s.state, SlaveState::Standby);
    assert_eq!((s.severity, s.gate_on), (Severity::None, false));
    assert_eq!(s.current, Some(Milliamps(1_000)));
    assert_eq!(s.min, Some(Millivolts(3_700)));
}

#[test]
fn an_order_switches_the_gate_on_and_the_summary_says_so() {
    let mut rack = Rack::active();
    let s = rack.summary();
    assert_eq!((s.state, s.gate_on), (SlaveState::Active, true));
    rack.order(Order::Gate(false));
    rack.run(ms(60));
    assert!(!rack.modules[0].gate);
    assert_eq!(rack.summary().state, SlaveState::Standby);
}

#[test]
fn a_trip_opens_the_gate_at_once_and_reaches_the_master_with_its_reason() {
    let mut rack = Rack::active();
    let before = rack.now;
    rack.modules[0].sample = over_voltage();
    rack.modules[0].core.handle_sample(before, &over_voltage());
    assert_eq!(
        rack.modules[0].core.poll_output(),
        Some(SlaveOutput::Gate(false))
    );
    rack.run(ms(40));
    let trip = rack.events.iter().find(|(_, e)| *e == MasterEvent::Trip);
    let latency = trip.expect("the master hears it").0.since(before);
    assert!(latency <= FRAME * 2, "{latency:?}: not the next frame");
    assert_eq!(rack.trips(), 1, "said once");
    let alarms = rack.alarms(before);
    assert_eq!(
        alarms.first(),
        Some(&Alarm {
            code: OVER_VOLTAGE.get(),
            severity: Severity::Trip,
            active: true,
            index: 9,
            value: 4_300,
        }),
        "{alarms:?}"
    );
    let s = rack.summary();
    assert_eq!(
        (s.state, s.severity, s.gate_on, s.max),
        (
            SlaveState::Tripped,
            Severity::Trip,
            false,
            Some(Millivolts(4_300))
        )
    );
}

#[test]
fn with_the_master_gone_a_slave_still_trips_and_tells_who_comes_back() {
    let mut rack = Rack::active();
    rack.master = None;
    rack.run(ms(2_000));
    assert!(rack.modules[0].gate, "kept without a master");
    assert_eq!(rack.modules[0].core.node(), None, "seat given up");
    rack.modules[0].sample = over_voltage();
    rack.run(ms(10)); // one sample
    assert!(!rack.modules[0].gate);
    rack.run(ms(500));

    let back = rack.now;
    let link = MasterLink::new(Schedule::for_bus(BusKind::Can1M));
    rack.master = Some((link, [None; 3]));
    rack.run(ms(300));
    assert_eq!(rack.summary().state, SlaveState::Tripped);
    let alarms = rack.alarms(back);
    let reason = |a: &Alarm| a.code == OVER_VOLTAGE.get() && a.active && a.index == 9;
    assert!(alarms.iter().any(reason), "{alarms:?}");
}

#[test]
fn a_cleared_slave_needs_a_new_order() {
    let mut rack = Rack::active();
    rack.modules[0].sample = over_voltage();
    rack.run(ms(60));
    rack.order(Order::Gate(true));
    rack.order(Order::ClearLatch);
    rack.run(ms(60));
    assert_eq!(
        rack.summary().state,
        SlaveState::Tripped,
        "cause still there"
    );
    rack.modules[0].sample = healthy();
    rack.run(ms(60));
    let before = rack.now;
    rack.order(Order::ClearLatch);
    rack.run(ms(60));
    assert_eq!(rack.summary().state, SlaveState::Standby);
    let ended = |a: &Alarm| a.code == OVER_VOLTAGE.get() && !a.active;
    assert!(rack.alarms(before).iter().any(ended));
    assert!(!rack.modules[0].gate);
    rack.order(Order::Gate(true));
    rack.run(ms(60));
    assert!(rack.modules[0].gate);
}

#[test]
fn an_isolated_slave_says_summaries_only_and_its_alarms_when_released() {
    let mut rack = Rack::active();
    rack.order(Order::Isolate(true));
    rack.run(ms(60));
    assert!(!rack.modules[0].gate);
    let before = rack.now;
    rack.modules[0].sample = over_voltage();
    rack.run(ms(200));
    let said: Vec<_> = rack.events.iter().filter(|(t, _)| *t > before).collect();
    assert!(said.len() >= 9, "{said:?}");
    for (_, event) in said {
        let MasterEvent::Message(Message::Summary(_, s)) = event else {
            panic!("not a summary: {event:?}");
        };
        assert_eq!((s.state, s.gate_on), (SlaveState::Isolated, false));
    }
    let before = rack.now;
    rack.order(Order::Isolate(false));
    rack.run(ms(100));
    assert_eq!(rack.summary().state, SlaveState::Tripped);
    let alarms = rack.alarms(before);
    assert!(alarms.iter().any(|a| a.code == OVER_VOLTAGE.get()));
}

#[test]
fn all_slaves_measure_at_the_same_instant() {
    let mut rack = Rack::new((1..=8).map(|uid| Module::new(uid, 0)).collect());
    rack.run(ms(200));
    let since = rack.now;
    rack.run(ms(200));
    let of =
        |m: &Module| -> Vec<Instant> { m.sampled.iter().copied().filter(|t| *t > since).collect() };
    let first = of(&rack.modules[0]);
    assert_eq!(first.len(), 20, "{first:?}");
    for m in &rack.modules[1..] {
        assert_eq!(of(m), first);
    }
}

#[test]
fn ranges_to_the_tag_of_the_cycle_reach_the_master() {
    let mut rack = Rack::new(vec![Module::new(1, 4)]);
    rack.master.as_mut().unwrap().0.set_tags(&[TagId(5)]);
    rack.run(ms(200));
    assert!(rack.modules[0].ranged.contains(&TagId(5)));
    let ranges = rack.events.iter().filter_map(|(_, e)| match e {
        MasterEvent::Message(Message::RangeChunk { tag, range, .. }) => Some((*tag, *range)),
        _ => None,
    });
    let expected = (TagId(5), [Some(Millimetres(2_345)); 2]);
    assert!(ranges.clone().any(|r| r == expected));
}

#[test]
fn management_reaches_the_slave_and_its_answer_the_master() {
    let mut rack = Rack::active();
    rack.modules[0].sample = over_voltage();
    rack.run(ms(50));
    let text = "x".repeat(1_900);
    let mut body = vec![0xa1, 0x61, b'd', 0x79];
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
    let reply = rack.ask(0, 0, Op::Write, &body);
    assert_eq!(reply, format!("{{\"r\": \"{text}\"}}"));

    let status = rack.ask(64, 0, Op::Read, &[]);
    assert!(status.contains(r#""state": "tripped""#), "{status}");
    assert!(status.contains(r#""cell_max_mv": 4300"#), "{status}");
    let diagnostics = rack.ask(64, DIAGNOSTICS, Op::Read, &[]);
    let event = r#"[2, "cell over-voltage", "trip", true, 1, 9, 4300"#;
    assert!(diagnostics.contains(event), "{diagnostics}");
    let stats = rack.ask(2, 0, Op::Read, b"\xa1\x64name\x65slave");
    assert!(stats.contains(r#""trips": 1"#), "{stats}");
}

#[test]
fn a_request_for_the_device_leaves_the_core_whole_and_its_answer_crosses_the_bus_whole() {
    let mut rack = Rack::active();
    // The longest there is: most of a chunk of an image.
    let body = vec![0x5a; 1_984 - Header::SIZE];
    let node = rack.request(1, 1, Op::Write, &body);
    let asked = rack.modules[0].core.poll_request().expect("for the device");
    let (header, asked) = split(asked).expect("whole");
    assert_eq!((header.group, header.id, header.seq), (1, 1, 9));
    assert!(asked == body);
    assert_eq!(rack.modules[0].core.poll_request(), None);

    // Erasing has taken a while.
    rack.run(ms(3_000));
    let answer = [&[0x0b, 0, 0, 5, 0, 1, 9, 1][..], b"\xa1\x62rc\x00"].concat();
    rack.modules[0].core.handle_answer(&answer);
    rack.run(ms(1_000));
    let (master, _) = rack.master.as_mut().expect("there");
    assert_eq!(master.datagram(), Some((node, &answer[..])));
    assert!(rack.modules[0].gate);
}

#[test]
fn a_slave_whose_gate_is_on_is_not_reset_without_force() {
    let mut rack = Rack::active();
    assert_eq!(rack.ask(0, 5, Op::Write, &[0xa0]), r#"{"rc": 6}"#);
    assert_eq!(rack.modules[0].core.poll_request(), None);
    rack.request(0, 5, Op::Write, b"\xa1\x65force\xf5");
    assert!(rack.modules[0].core.poll_request().is_some());
}
