//! CAN: controllers in other processes on one bus that is exact to the bit, in real time.
//!
//! ```text
//! driver --SEND--> mailboxes --arbitration by identifier--> CanBus --FRAME--> all other drivers
//!        <--SENT--------------------------------------------'  '--STATE--> whose counters moved
//! ```
//!
//! The bus is [`CanBus`], the one that scenarios run on; here the wall clock drives it. So a frame takes
//! as long as on a wire, the lowest identifier that waits goes next, nobody acknowledges one who
//! is alone, and errors count until bus-off. The first member sets the bit rates; who starts with
//! others is refused and told why.
//!
//! Simplified: no remote frames; a member that takes no FD frames does not destroy
//! them, it just does not hear them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use helio_bus::Mailbox;
use helio_sim::media::Port;
use helio_sim::media::can::{CanBus, CanEvent, CanTiming, ControllerState};
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;

use crate::record::{Framed, RecordError, Request, Start, Told};
use crate::{Address, Door, SetupError, Stream, ask_for_sharp_timers, interest, is_later};
use crate::{is_ready, sleep};

/// Octets that wait for a member to read them; further frames are lost to it.
const QUEUE: usize = 64 * 1024;

/// What a run saw.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Always `can`.
    pub bus: &'static str,
    /// How long it ran.
    pub seconds: f64,
    /// Rate of the arbitration phase, bit/s; of the last time that someone took part.
    pub nominal_bps: Option<u32>,
    /// Rate of the data phase, bit/s.
    pub data_bps: Option<u32>,
    /// Frames that were sent whole.
    pub frames: u64,
    /// Frames that were destroyed or not acknowledged.
    pub errors: u64,
    /// Share of the time in which the bus was busy, parts per million.
    pub load_ppm: u64,
    /// Everyone who was there, in order of coming.
    pub members: Vec<MemberReport>,
}

/// One member's share.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemberReport {
    /// Where it came from.
    pub name: String,
    /// Frames that it sent.
    pub sent_frames: u64,
    /// Frames that it was given.
    pub received_frames: u64,
    /// Frames that it did not fetch in time.
    pub lost_frames: u64,
    /// Attempts to send that failed.
    pub errors: u64,
    /// How often it went bus-off.
    pub bus_off: u64,
    /// Whether it was still there at the end.
    pub present: bool,
}

struct Member {
    stream: Stream,
    input: Vec<u8>,
    queue: VecDeque<u8>,
    /// How it takes part, if it does.
    start: Option<Start>,
    /// Its controller, unless it only listens.
    port: Option<Port>,
    /// Frames for a controller that is not ready for them yet.
    waiting: [Option<Framed>; Mailbox::ALL.len()],
    told: (ControllerState, u32, u32),
    gone: bool,
    /// Place in the report.
    number: usize,
}

/// A bus with its members; see the module.
pub struct Hub {
    doors: Vec<Door>,
    members: Vec<Member>,
    report: Vec<MemberReport>,
    bus: Option<Bus>,
    /// Frames, errors and busy time of buses before this one.
    past: (u64, u64, Duration),
    rates: Option<(u32, u32)>,
    started: Instant,
}

/// From the first who takes part to the last.
struct Bus {
    can: CanBus,
    rates: (u32, u32),
    /// Controllers whose members have left.
    spare: Vec<Port>,
    began: Instant,
}

impl Bus {
    fn now(&self) -> helio_units::Instant {
        let ns = self.began.elapsed().as_nanos();
        helio_units::Instant::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

impl Hub {
    /// Opens the doors; the bus begins with the first who takes part.
    pub fn open(listen: &[Address]) -> Result<Self, SetupError> {
        Ok(Self {
            doors: listen.iter().map(Door::open).collect::<Result<_, _>>()?,
            members: Vec::new(),
            report: Vec::new(),
            bus: None,
            past: (0, 0, Duration::ZERO),
            rates: None,
            started: Instant::now(),
        })
    }

    /// Where members may connect, with the ports that were taken.
    pub fn addresses(&self) -> Vec<Address> {
        self.doors.iter().map(Door::address).collect()
    }

    /// Carries frames until `stop` is readable or `time` is over.
    pub fn run(&mut self, stop: BorrowedFd<'_>, time: Option<Duration>) -> io::Result<()> {
        ask_for_sharp_timers();
        self.started = Instant::now();
        let until = time.map(|time| self.started + time);
        loop {
            self.carry();
            let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN)];
            fds.extend(self.doors.iter().map(|d| PollFd::new(d, PollFlags::IN)));
            fds.extend(
                self.members
                    .iter()
                    .map(|m| PollFd::new(&m.stream, interest(!m.queue.is_empty()))),
            );
            let due = self.bus.as_ref().and_then(|bus| {
                let due = bus.can.poll_timeout()?;
                Some(bus.began + Duration::from_nanos(due.as_nanos()))
            });
            sleep(&mut fds, until.into_iter().chain(due).min())?;
            let (knocked, ready) = fds[1..].split_at(self.doors.len());
            let stopped = is_ready(&fds[0]) || until.is_some_and(|at| Instant::now() >= at);
            let knocked: Vec<bool> = knocked.iter().map(is_ready).collect();
            let ready: Vec<bool> = ready.iter().map(is_ready).collect();
            if stopped {
                return Ok(());
            }
            // What ended before these requests came has ended before they are heard.
            self.carry();
            for n in (0..ready.len()).filter(|n| ready[*n]) {
                self.read(n);
            }
            for (door, _) in knocked.iter().enumerate().filter(|(_, k)| **k) {
                self.accept(door)?;
            }
            self.part();
        }
    }

    /// What was seen so far.
    pub fn report(&self) -> Report {
        let mut members = self.report.clone();
        for member in &self.members {
            members[member.number].present = true;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let (frames, errors, busy) = self.totals();
        Report {
            bus: "can",
            seconds,
            nominal_bps: self.rates.map(|r| r.0),
            data_bps: self.rates.map(|r| r.1),
            frames,
            errors,
            load_ppm: (busy.as_secs_f64() / seconds.max(1e-9) * 1e6) as u64,
            members,
        }
    }

    fn totals(&self) -> (u64, u64, Duration) {
        let (mut frames, mut errors, mut busy) = self.past;
        if let Some(bus) = &self.bus {
            let stats = bus.can.stats(bus.now());
            frames += stats.frames;
            errors += stats.errors;
            busy += Duration::from_nanos(stats.busy.as_nanos());
        }
        (frames, errors, busy)
    }

    fn accept(&mut self, door: usize) -> io::Result<()> {
        while let Some((stream, name)) = self.doors[door].accept()? {
            tracing::info!("{name} connects");
            self.members.push(Member {
                stream,
                input: Vec::new(),
                queue: VecDeque::new(),
                start: None,
                port: None,
                waiting: [None; Mailbox::ALL.len()],
                told: (ControllerState::Active, 0, 0),
                gone: false,
                number: self.report.len(),
            });
            self.report.push(MemberReport {
                name,
                ..MemberReport::default()
            });
        }
        Ok(())
    }

    /// Lets those go who have hung up.
    fn part(&mut self) {
        for n in (0..self.members.len()).rev() {
            if self.members[n].gone {
                self.stop(n);
                let member = self.members.remove(n);
                tracing::info!("{} leaves", self.report[member.number].name);
            }
        }
    }

    fn read(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.drain();
        let mut buffer = [0; 4096];
        match rustix::io::read(&member.stream, &mut buffer) {
            Ok(0) => member.gone = true,
            Ok(got) => member.input.extend_from_slice(&buffer[..got]),
            Err(e) if is_later(&e.into()) => {}
            Err(_) => member.gone = true,
        }
        let input = std::mem::take(&mut self.members[n].input);
        let mut rest = &input[..];
        loop {
            match Request::decode(rest) {
                Ok((request, size)) => {
                    rest = &rest[size..];
                    self.handle(n, request);
                }
                Err(RecordError::Incomplete) => break,
                Err(RecordError::Malformed) => {
                    let name = &self.report[self.members[n].number].name;
                    tracing::warn!("{name} does not speak this hub's protocol: hung up");
                    self.members[n].gone = true;
                    return;
                }
            }
        }
        self.members[n].input = rest.to_vec();
    }

    fn handle(&mut self, n: usize, request: Request) {
        match request {
            Request::Start(start) => {
                self.stop(n);
                if let Err(why) = self.start(n, start) {
                    tracing::warn!("{}: {why}", self.report[self.members[n].number].name);
                    self.members[n].tell(&Told::Refused(why));
                }
            }
            Request::Stop => self.stop(n),
            Request::Send(mailbox, framed) => {
                let off = |bus: &Bus, port| bus.can.state(port) == ControllerState::BusOff;
                if let (Some(bus), Some(port)) = (&self.bus, self.members[n].port)
                    && off(bus, port)
                {
                    return; // said before it heard that it is
                }
                if let Some(place) = self.members[n].waiting.get_mut(usize::from(mailbox)) {
                    *place = Some(framed);
                    self.submit(n);
                }
            }
            Request::Recover => {
                if let (Some(bus), Some(port)) = (&mut self.bus, self.members[n].port) {
                    let now = bus.now();
                    bus.can.recover(now, port);
                }
            }
            Request::Corrupt(frames) => {
                if let Some(bus) = &mut self.bus {
                    bus.can.corrupt_next(frames);
                }
            }
        }
    }

    fn start(&mut self, n: usize, start: Start) -> Result<(), String> {
        let rates = (start.nominal_bps, start.data_bps);
        let alone = self.members.iter().all(|m| m.start.is_none());
        // Who takes no FD frames has no say in their rate.
        let agrees = |bus: &Bus| {
            bus.rates.0 == rates.0
                && (bus.rates.1 == rates.1
                    || !start.fd
                    || !self.members.iter().any(|m| m.start.is_some_and(|s| s.fd)))
        };
        match &self.bus {
            Some(bus) if bus.rates == rates => {}
            Some(bus) if !alone && !agrees(bus) => {
                return Err(format!(
                    "the bus runs at {} and {} bit/s (data phase), you at {} and {}: \
                     give all members the same",
                    bus.rates.0, bus.rates.1, rates.0, rates.1
                ));
            }
            Some(_) if !alone => {}
            _ => {
                let timing = CanTiming::new(rates.0, rates.1).ok_or_else(|| {
                    format!(
                        "{} and {} bit/s: take rates whose bit times are whole nanoseconds",
                        rates.0, rates.1
                    )
                })?;
                self.past = self.totals();
                self.rates = Some(rates);
                self.bus = Some(Bus {
                    can: CanBus::new(timing, 1),
                    rates,
                    spare: Vec::new(),
                    began: Instant::now(),
                });
            }
        }
        let Some(bus) = &mut self.bus else {
            return Ok(());
        };
        let member = &mut self.members[n];
        if !start.listen_only {
            let port = match bus.spare.pop() {
                Some(port) => {
                    let now = bus.now();
                    bus.can.revive(now, port);
                    port
                }
                None => bus
                    .can
                    .attach()
                    .ok_or("the bus is full: it has 128 places")?,
            };
            bus.can.set_manual_recovery(port, start.manual_recovery);
            member.port = Some(port);
        }
        member.start = Some(start);
        member.told = (ControllerState::Active, 0, 0);
        let sender = member.port.map_or(u8::MAX, |p| p.index() as u8);
        member.tell(&Told::Started(sender));
        Ok(())
    }

    fn stop(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.start = None;
        member.waiting = [None; Mailbox::ALL.len()];
        if let (Some(port), Some(bus)) = (member.port.take(), &mut self.bus) {
            let now = bus.now();
            bus.can.kill(now, port);
            bus.spare.push(port);
        }
    }

    /// Gives the controller what waits for it, as far as it takes it.
    fn submit(&mut self, n: usize) {
        let member = &mut self.members[n];
        let (Some(bus), Some(port)) = (&mut self.bus, member.port) else {
            return;
        };
        let now = bus.now();
        for (place, mailbox) in member.waiting.iter_mut().zip(Mailbox::ALL) {
            if let Some(framed) = *place {
                let switch = u64::from(framed.switch);
                let taken = bus.can.submit(now, port, mailbox, &framed.frame, switch);
                if taken.is_ok() {
                    *place = None;
                }
            }
        }
    }

    /// Does what is due on the bus and tells whom it concerns.
    fn carry(&mut self) {
        let Some(bus) = &mut self.bus else {
            return;
        };
        let mut events = Vec::new();
        let now = bus.now();
        bus.can.handle_timeout(now, &mut |event| events.push(event));
        if events.is_empty() {
            return;
        }
        for event in events {
            self.tell(event);
        }
        self.tell_counters();
    }

    fn tell(&mut self, event: CanEvent) {
        let whose = |members: &[Member], port| members.iter().position(|m| m.port == Some(port));
        match event {
            CanEvent::Delivered {
                frame,
                meta,
                from,
                receivers,
                ..
            } => {
                let switch = meta & 1 != 0;
                let told = Told::Frame(from.index() as u8, Framed { frame, switch });
                for member in &mut self.members {
                    let Some(start) = member.start else { continue };
                    let hears = member.port.is_none_or(|port| receivers.contains(port));
                    if !hears || (frame.fd && !start.fd) {
                        continue;
                    }
                    let report = &mut self.report[member.number];
                    if member.queue.len() > QUEUE {
                        report.lost_frames += 1;
                    } else {
                        report.received_frames += 1;
                        member.tell(&told);
                    }
                }
            }
            CanEvent::Sent { port, mailbox, .. } => {
                if let Some(n) = whose(&self.members, port) {
                    let member = &mut self.members[n];
                    self.report[member.number].sent_frames += 1;
                    member.tell(&Told::Sent(mailbox as u8));
                    self.submit(n);
                }
            }
            CanEvent::Error { senders, .. } => {
                for member in &self.members {
                    if member.port.is_some_and(|port| senders.contains(port)) {
                        self.report[member.number].errors += 1;
                    }
                }
            }
            CanEvent::State { port, state, .. } => {
                if let Some(n) = whose(&self.members, port) {
                    match state {
                        ControllerState::BusOff => {
                            let member = &mut self.members[n];
                            member.waiting = [None; Mailbox::ALL.len()];
                            self.report[member.number].bus_off += 1;
                            // Told here, because it may be over before we look at the counters.
                            member.told = (ControllerState::BusOff, 256, 0);
                            member.tell(&Told::State(2, 256, 0));
                        }
                        _ => self.submit(n),
                    }
                }
            }
        }
    }

    fn tell_counters(&mut self) {
        let Some(bus) = &self.bus else {
            return;
        };
        for member in &mut self.members {
            let Some(port) = member.port else { continue };
            let (tec, rec) = bus.can.error_counters(port);
            let state = bus.can.state(port);
            if state != ControllerState::Off && member.told != (state, tec, rec) {
                member.told = (state, tec, rec);
                let state = match state {
                    ControllerState::Active | ControllerState::Off => 0,
                    ControllerState::Passive => 1,
                    ControllerState::BusOff => 2,
                };
                let short = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
                member.tell(&Told::State(state, short(tec), short(rec)));
            }
        }
    }
}

impl Member {
    fn tell(&mut self, told: &Told) {
        let mut record = Vec::new();
        told.encode(&mut record);
        self.queue.extend(record);
        self.drain();
    }

    fn drain(&mut self) {
        while !self.queue.is_empty() && !self.gone {
            match rustix::io::write(&self.stream, self.queue.as_slices().0) {
                Ok(n) => drop(self.queue.drain(..n)),
                Err(e) if is_later(&e.into()) => return,
                Err(_) => self.gone = true,
            }
        }
    }
}
