//! Half-duplex RS485 line: decides what receivers make of one driver, of several and of none.
//!
//! The owner of virtual time hands over signals with [`Line::transmit`], sleeps until
//! [`Line::poll_timeout`] and calls [`Line::handle_timeout`].
//!
//! ```text
//! driver on    at                                                 at + n characters + turnaround
//!              v                                                                               v
//! line  ______ s01234567P s01234567P ... s01234567P ~~~~~~~~~~~~ driven high: turnaround ~~~~~~ ___
//!              character = start, 8 data (lowest first), stop  ^
//!                                                              Bytes: the whole run at once
//!
//!       ______ low ...................................________   a break: driver off at its end
//!              '-- 10 bits --> Break
//!
//! one driver       its characters arrive as they are
//! several, equal   breaks with breaks, aligned equal characters: as if there were one
//! several, unequal each character that another driver overlaps arrives as garbage, Collision
//! ```
//!
//! Receivers get a run of characters as one piece at the end of its last stop bit, which is what a
//! UART with DMA reports when the line falls idle (there a character later). They notice a break
//! when it has become longer than a character, while the line is still low; a shorter one reads as
//! a character that ends with ones. Whoever drives does not listen. Propagation (5 ns/m) and the
//! skew between clocks are left out: a UART bears 2 %, crystals stray by 0.01 %.

use super::{MAX_PORTS, Port, PortSet};
use helio_bus::{BusKind, SerialSignal};
use helio_units::{Duration, Instant};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Start, 8 data, stop.
pub const CHARACTER_BITS: u64 = 10;

/// Bit time and driver of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineTiming {
    bit: Duration,
    turnaround: Duration,
}

impl LineTiming {
    /// `turnaround`: how long a driver stays on, driving high, behind the last stop bit. `None`
    /// unless the bit time is a whole number of nanoseconds.
    pub const fn new(baud: u32, turnaround: Duration) -> Option<Self> {
        match super::bit_time(baud) {
            Some(bit) => Some(Self { bit, turnaround }),
            None => None,
        }
    }

    /// Those of the project's RS485 buses, whose UARTs switch the driver off within a bit; `None`
    /// for CAN.
    pub const fn of(kind: BusKind) -> Option<Self> {
        match kind {
            BusKind::Rs485At1M => Self::new(1_000_000, Duration::from_nanos(1_000)),
            BusKind::Rs485At4M => Self::new(4_000_000, Duration::from_nanos(250)),
            // 115207 baud: the bit of 115200 is no whole number of nanoseconds.
            BusKind::Rs485At115k => Some(Self {
                bit: Duration::from_nanos(8_680),
                turnaround: Duration::from_nanos(8_680),
            }),
            BusKind::Can500k | BusKind::Can1M | BusKind::CanFd => None,
        }
    }

    fn character(self) -> Duration {
        self.bit * CHARACTER_BITS
    }

    /// Starts this close to each other count as one.
    fn tolerance(self) -> Duration {
        Duration::from_nanos(self.bit.as_nanos() / 4)
    }
}

/// Level of a driver that does not let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As a start bit or a break.
    Low,
    /// As a stop bit.
    High,
}

/// What the line tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LineEvent {
    /// A run of characters is over: end of its last stop bit.
    Bytes {
        /// The sender; of several that sent the same at once the one that was done last.
        from: Port,
        /// As handed over, by `from`.
        meta: u64,
        /// As received.
        bytes: Vec<u8>,
        /// How many of the sent characters came wrong or not at all.
        damaged: usize,
        /// Who hears it: not who drove the line meanwhile, not who is off.
        receivers: PortSet,
        /// Start of the first start bit.
        started: Instant,
        /// Now.
        at: Instant,
    },
    /// The line has been low for longer than a character. Once per low.
    Break {
        /// Who holds it low by now.
        senders: PortSet,
        /// As handed over by the lowest of them.
        meta: u64,
        /// Who notices.
        receivers: PortSet,
        /// When the line went low.
        started: Instant,
        /// Now.
        at: Instant,
    },
    /// A driver was switched on against others that drive something else.
    Collision {
        /// All of them.
        ports: PortSet,
        /// Now.
        at: Instant,
    },
}

/// Why a signal was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransmitError {
    /// This port's last signal is not over by then.
    Busy,
    /// The port is off.
    Offline,
    /// No characters, or a break of no length.
    Empty,
}

#[derive(Clone, Debug)]
enum Signal {
    Bytes(Vec<u8>),
    /// Held low until the transmission's end.
    Low,
    /// Stuck.
    High,
}

/// One driver being on.
#[derive(Clone, Debug)]
struct Transmission {
    port: Port,
    meta: u64,
    signal: Signal,
    start: Instant,
    /// Of the last stop bit, or of the low.
    end: Instant,
    /// Driver off.
    release: Instant,
    started: bool,
    released: bool,
    /// Nothing more to tell at `end`.
    told: bool,
    /// Others that sent the same.
    merged: PortSet,
}

impl Transmission {
    fn drives_within(&self, from: Instant, to: Instant) -> bool {
        self.start < to && from < self.release
    }

    /// When the next thing happens to it.
    fn due(&self) -> Option<Instant> {
        match self {
            t if !t.started => Some(t.start),
            t if !t.told => Some(t.end),
            t if !t.released => Some(t.release),
            _ => None,
        }
    }

    /// A low or high without an end, from a driver that does not let go.
    fn is_stuck(&self) -> bool {
        self.release == Instant::MAX
    }
}

/// A line with up to [`MAX_PORTS`] transceivers.
pub struct Line {
    timing: LineTiming,
    rng: ChaCha8Rng,
    attached: u8,
    online: PortSet,
    corruption: u64,
    /// Being sent or about to be, and those that some running one has met.
    transmissions: Vec<Transmission>,
    /// Since when the line is low and no driver is against it, and whether that was told.
    low: Option<(Instant, bool)>,
    /// Lows that were too short for a break: when their character ends, whose, and its value.
    strays: Vec<(Instant, Port, u8)>,
    /// All up to here has happened.
    now: Instant,
    busy: Duration,
    due: Option<Instant>,
}

impl Line {
    /// An idle line. Only garbage draws on `seed`.
    pub fn new(timing: LineTiming, seed: u64) -> Self {
        Self {
            timing,
            rng: ChaCha8Rng::seed_from_u64(seed),
            attached: 0,
            online: PortSet::EMPTY,
            corruption: 0,
            transmissions: Vec::new(),
            low: None,
            strays: Vec::new(),
            now: Instant::ZERO,
            busy: Duration::ZERO,
            due: None,
        }
    }

    /// Connects a transceiver. `None` when [`MAX_PORTS`] are.
    pub fn attach(&mut self) -> Option<Port> {
        if usize::from(self.attached) >= MAX_PORTS {
            return None;
        }
        let port = Port(self.attached);
        self.attached += 1;
        self.online.insert(port);
        Some(port)
    }

    /// Sends `signal` from `at` on; at once when that is over. `meta` comes back in the events.
    pub fn transmit(
        &mut self,
        port: Port,
        at: Instant,
        signal: &SerialSignal,
        meta: u64,
    ) -> Result<(), TransmitError> {
        let start = at.max(self.now);
        if !self.online.contains(port) {
            return Err(TransmitError::Offline);
        }
        let of_port = |t: &&Transmission| t.port == port && !t.is_stuck();
        if self
            .transmissions
            .iter()
            .filter(of_port)
            .any(|t| start < t.end)
        {
            return Err(TransmitError::Busy);
        }
        let (signal, end, tail) = match signal {
            SerialSignal::Bytes { buffer, len } => {
                let bytes = buffer.get(..usize::from(*len)).unwrap_or(buffer);
                let length = self.timing.character() * bytes.len() as u64;
                let signal = Signal::Bytes(bytes.to_vec());
                (signal, start + length, self.timing.turnaround)
            }
            SerialSignal::Break(length) => (Signal::Low, start + *length, Duration::ZERO),
        };
        if end == start {
            return Err(TransmitError::Empty);
        }
        // A driver that goes on with the next run is not switched off in between.
        for t in self
            .transmissions
            .iter_mut()
            .filter(|t| t.port == port && !t.is_stuck())
        {
            t.release = t.release.min(start);
        }
        self.push(port, meta, signal, start, end, end + tail);
        Ok(())
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Does all that is due by `now`, in order. Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut impl FnMut(LineEvent)) {
        while let Some(due) = self.due
            && due <= now
        {
            self.pass(due);
            self.end_runs(sink);
            self.switch_drivers(sink);
            self.watch_low(sink);
            self.end_strays(sink);
            self.forget();
            self.set_due();
        }
        self.pass(now.max(self.now));
    }

    /// How long drivers have been on until `now`, turnaround included; differences give a load.
    pub fn busy(&self, now: Instant) -> Duration {
        let running = if self.is_driven() {
            now.since(self.now)
        } else {
            Duration::ZERO
        };
        self.busy + running
    }

    /// From now on each character is hit with this probability by a disturbance of one of its
    /// bits: a data bit changes its value; without start or stop bit it does not arrive.
    pub fn set_corruption(&mut self, probability: f64) {
        self.corruption = super::threshold(probability);
    }

    /// Holds a port's driver on at this level, or lets go.
    pub fn set_stuck(&mut self, now: Instant, port: Port, level: Option<Level>) {
        let now = now.max(self.now);
        self.pass(now);
        for t in self
            .transmissions
            .iter_mut()
            .filter(|t| t.port == port && t.is_stuck())
        {
            (t.end, t.release) = (now, now);
        }
        if let Some(level) = level {
            let signal = match level {
                Level::Low => Signal::Low,
                Level::High => Signal::High,
            };
            self.push(port, 0, signal, now, Instant::MAX, Instant::MAX);
        }
        self.set_due();
    }

    /// Switches a transceiver off, driver and all; a character under way is lost.
    pub fn kill(&mut self, now: Instant, port: Port) {
        let now = now.max(self.now);
        self.pass(now);
        self.online.remove(port);
        let character = self.timing.character();
        for t in self.transmissions.iter_mut().filter(|t| t.port == port) {
            t.release = t.release.min(now);
            if t.end <= now {
                continue;
            }
            t.end = now;
            if let Signal::Bytes(bytes) = &mut t.signal {
                let whole = now.since(t.start).as_nanos() / character.as_nanos();
                bytes.truncate(whole as usize);
                t.end = t.start + character * whole;
                t.told = bytes.is_empty();
            }
        }
        self.transmissions
            .retain(|t| t.port != port || t.start < now);
        self.set_due();
    }

    /// Switches it on again.
    pub fn revive(&mut self, port: Port) {
        self.online.insert(port);
    }

    fn push(
        &mut self,
        port: Port,
        meta: u64,
        signal: Signal,
        start: Instant,
        end: Instant,
        release: Instant,
    ) {
        let told = !matches!(signal, Signal::Bytes(_));
        self.transmissions.push(Transmission {
            port,
            meta,
            signal,
            start,
            end,
            release,
            started: false,
            released: false,
            told,
            merged: PortSet::EMPTY,
        });
        self.set_due();
    }

    fn set_due(&mut self) {
        let break_due = match self.low {
            Some((since, false)) => Some(since + self.timing.character()),
            _ => None,
        };
        self.due = self
            .transmissions
            .iter()
            .filter_map(Transmission::due)
            .chain(self.strays.iter().map(|&(at, ..)| at))
            .chain(break_due)
            .min()
            // A change that was asked for late happens now.
            .map(|due| due.max(self.now));
    }

    fn pass(&mut self, to: Instant) {
        self.busy = self.busy(to);
        self.now = to;
    }

    fn driving(&self) -> impl Iterator<Item = &Transmission> {
        self.transmissions
            .iter()
            .filter(|t| t.started && !t.released)
    }

    fn is_driven(&self) -> bool {
        self.driving().next().is_some()
    }

    fn end_runs(&mut self, sink: &mut impl FnMut(LineEvent)) {
        for i in 0..self.transmissions.len() {
            let t = &self.transmissions[i];
            if !t.started || t.told || t.end > self.now {
                continue;
            }
            self.transmissions[i].told = true;
            // Of several that sent the same the one that ends last tells for all.
            let t = self.transmissions[i].clone();
            let same = (0..self.transmissions.len()).find(|&j| {
                let other = &self.transmissions[j];
                !other.told && other.started && self.equal(&t, other)
            });
            match same {
                Some(j) => {
                    let others = t.merged.or(t.port.into());
                    let other = &mut self.transmissions[j];
                    other.merged = other.merged.or(others);
                }
                None => {
                    let event = self.receive(&t);
                    sink(event);
                }
            }
        }
    }

    /// What receivers make of a run of characters.
    fn receive(&mut self, run: &Transmission) -> LineEvent {
        let sent: &[u8] = match &run.signal {
            Signal::Bytes(bytes) => bytes,
            Signal::Low | Signal::High => &[],
        };
        let senders = run.merged.or(run.port.into());
        let against: Vec<&Transmission> = self
            .transmissions
            .iter()
            .filter(|t| t.drives_within(run.start, run.end))
            .filter(|t| t.is_stuck() || !senders.contains(t.port))
            .collect();
        let deaf: PortSet = against.iter().map(|t| t.port).collect();
        let (mut bytes, mut damaged) = (Vec::with_capacity(sent.len()), 0);
        for (i, &byte) in sent.iter().enumerate() {
            let start = run.start + self.timing.character() * i as u64;
            if against
                .iter()
                .any(|t| disturbs(self.timing, t, start, byte))
            {
                damaged += 1;
                bytes.push(self.rng.next_u32() as u8);
            } else if self.corruption > 0 && self.rng.next_u64() < self.corruption {
                damaged += 1;
                if let bit @ 1..=8 = super::below(&mut self.rng, CHARACTER_BITS) {
                    bytes.push(byte ^ 1 << (bit - 1));
                }
            } else {
                bytes.push(byte);
            }
        }
        LineEvent::Bytes {
            from: run.port,
            meta: run.meta,
            bytes,
            damaged,
            receivers: self.online.without(senders).without(deaf),
            started: run.start,
            at: self.now,
        }
    }

    fn switch_drivers(&mut self, sink: &mut impl FnMut(LineEvent)) {
        for t in &mut self.transmissions {
            t.released |= t.release <= self.now;
        }
        for i in 0..self.transmissions.len() {
            let t = &self.transmissions[i];
            if t.started || t.start > self.now {
                continue;
            }
            let ports: PortSet = self
                .driving()
                .filter(|other| !self.equal(t, other))
                .map(|other| other.port)
                .collect();
            if !ports.is_empty() {
                let ports = ports.or(t.port.into());
                sink(LineEvent::Collision {
                    ports,
                    at: self.now,
                });
            }
            self.transmissions[i].started = true;
        }
    }

    /// Whether both drivers put the same on the line, all the time that both are on.
    fn equal(&self, a: &Transmission, b: &Transmission) -> bool {
        let aligned = a.start.since(b.start).max(b.start.since(a.start)) <= self.timing.tolerance();
        match (&a.signal, &b.signal) {
            (Signal::Bytes(x), Signal::Bytes(y)) => aligned && x == y,
            (Signal::Low, Signal::Low) | (Signal::High, Signal::High) => true,
            _ => false,
        }
    }

    /// Follows whether the line is low with nobody against it.
    fn watch_low(&mut self, sink: &mut impl FnMut(LineEvent)) {
        let character = self.timing.character();
        let is_low = |t: &Transmission| matches!(t.signal, Signal::Low);
        let senders: PortSet = self.driving().map(|t| t.port).collect();
        let low = !senders.is_empty() && self.driving().all(is_low);
        match self.low {
            None if low => self.low = Some((self.now, false)),
            Some((since, told)) if !low => {
                self.low = None;
                if !told && senders.is_empty() {
                    self.add_stray(since);
                }
            }
            Some((since, false)) if self.now.since(since) >= character => {
                self.low = Some((since, true));
                let meta = self.driving().min_by_key(|t| t.port).map_or(0, |t| t.meta);
                sink(LineEvent::Break {
                    senders,
                    meta,
                    receivers: self.online.without(senders),
                    started: since,
                    at: self.now,
                });
            }
            _ => {}
        }
    }

    /// A low shorter than a character: start bit, zeros, then ones.
    fn add_stray(&mut self, since: Instant) {
        let half_bit = self.timing.bit.as_nanos() / 2;
        let bits = (self.now.since(since).as_nanos() + half_bit) / self.timing.bit.as_nanos();
        let from = self
            .transmissions
            .iter()
            .filter(|t| t.start <= since && t.release == self.now)
            .map(|t| t.port)
            .min();
        // Under half a bit a UART takes it for noise.
        if let (Some(from), 1..) = (from, bits) {
            let value = 0xff_u8.checked_shl(bits as u32 - 1).unwrap_or(0);
            self.strays
                .push((since + self.timing.character(), from, value));
        }
    }

    fn end_strays(&mut self, sink: &mut impl FnMut(LineEvent)) {
        let (now, online) = (self.now, self.online);
        let character = self.timing.character();
        self.strays.retain(|&(at, from, value)| {
            if at > now {
                return true;
            }
            sink(LineEvent::Bytes {
                from,
                meta: 0,
                bytes: vec![value],
                damaged: 1,
                receivers: online.without(from.into()),
                started: at - character,
                at: now,
            });
            false
        });
    }

    /// Keeps what is not over and what somebody's running characters have met.
    fn forget(&mut self) {
        let oldest = self
            .transmissions
            .iter()
            .filter(|t| t.started && !t.told)
            .map(|t| t.start)
            .min();
        self.transmissions
            .retain(|t| t.due().is_some() || oldest.is_some_and(|oldest| oldest < t.release));
    }
}

/// Whether driver `other` spoils a character of value `byte` that starts at `start`.
fn disturbs(timing: LineTiming, other: &Transmission, start: Instant, byte: u8) -> bool {
    let (character, tolerance) = (timing.character(), timing.tolerance());
    if !other.drives_within(start + tolerance, start + character - tolerance) {
        return false;
    }
    let Signal::Bytes(theirs) = &other.signal else {
        return true;
    };
    let offset = (start + tolerance).since(other.start).as_nanos();
    let (index, skew) = (offset / character.as_nanos(), offset % character.as_nanos());
    let aligned = start + tolerance >= other.start && skew <= 2 * tolerance.as_nanos();
    !aligned || theirs.get(index as usize) != Some(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use helio_bus::MAX_SERIAL;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// 1 Mbaud: a bit is a microsecond.
    fn line(ports: usize) -> (Line, Vec<Port>) {
        let timing = LineTiming::new(1_000_000, Duration::from_micros(2)).expect("whole ns");
        let mut line = Line::new(timing, 3);
        let ports = (0..ports)
            .map(|_| line.attach().expect("room for this many"))
            .collect();
        (line, ports)
    }
    fn at(us: u64) -> Instant {
        Instant::from_micros(us)
    }
    fn bytes(text: &[u8]) -> SerialSignal {
        let mut buffer = [0; MAX_SERIAL];
        buffer[..text.len()].copy_from_slice(text);
        SerialSignal::Bytes {
            buffer,
            len: text.len() as u8,
        }
    }
    fn low(us: u64) -> SerialSignal {
        SerialSignal::Break(Duration::from_micros(us))
    }
    fn run(line: &mut Line, until: Instant) -> Vec<LineEvent> {
        let mut events = Vec::new();
        while let Some(due) = line.poll_timeout().filter(|&due| due <= until) {
            line.handle_timeout(due, &mut |event| events.push(event));
        }
        events
    }
    /// Bytes with their damage, `!` for collisions, `_` for breaks; and when (µs).
    fn short(events: &[LineEvent]) -> Vec<(String, u64)> {
        let of = |event: &LineEvent| match event {
            LineEvent::Bytes {
                bytes, damaged, at, ..
            } => match damaged {
                0 => (String::from_utf8_lossy(bytes).into_owned(), *at),
                n => (format!("{n} bad of {}", bytes.len()), *at),
            },
            LineEvent::Break { at, .. } => ("_".into(), *at),
            LineEvent::Collision { at, .. } => ("!".into(), *at),
        };
        let in_us = |(s, at): (String, Instant)| (s, at.as_micros());
        events.iter().map(of).map(in_us).collect()
    }
    fn expect(events: &[LineEvent], expected: &[(&str, u64)]) {
        let expected: Vec<_> = expected.iter().map(|&(s, at)| (s.to_owned(), at)).collect();
        assert_eq!(short(events), expected);
    }

    #[test]
    fn a_run_arrives_whole_at_the_end_of_its_last_stop_bit() {
        let (mut line, p) = line(3);
        line.transmit(p[1], at(100), &bytes(b"abc"), 9)
            .expect("free");
        assert_eq!(line.poll_timeout(), Some(at(100)));
        let events = run(&mut line, at(1_000));
        expect(&events, &[("abc", 130)]);
        let LineEvent::Bytes {
            receivers,
            from,
            meta,
            started,
            ..
        } = &events[0]
        else {
            panic!("bytes came")
        };
        assert_eq!((*from, *meta, *started), (p[1], 9, at(100)));
        assert_eq!(receivers.into_iter().collect::<Vec<_>>(), [p[0], p[2]]);
        assert_eq!(line.busy(at(2_000)), Duration::from_micros(32));
    }

    #[test]
    fn slots_that_keep_the_turnaround_do_not_disturb_each_other() {
        let (mut line, p) = line(3);
        line.transmit(p[0], at(0), &bytes(b"ab"), 0).expect("free");
        line.transmit(p[1], at(22), &bytes(b"cd"), 0).expect("free");
        line.transmit(p[1], at(42), &bytes(b"e"), 0)
            .expect("own driver goes on");
        expect(
            &run(&mut line, at(100)),
            &[("ab", 20), ("cd", 42), ("e", 52)],
        );
    }

    #[test]
    fn a_driver_that_is_still_on_spoils_the_next_ones_first_character() {
        let (mut line, p) = line(3);
        line.transmit(p[0], at(0), &bytes(b"ab"), 0).expect("free");
        line.transmit(p[1], at(21), &bytes(b"cd"), 0).expect("free");
        expect(
            &run(&mut line, at(100)),
            &[("ab", 20), ("!", 21), ("1 bad of 2", 41)],
        );
    }

    #[test]
    fn overlapped_characters_are_garbage_and_the_others_are_not() {
        let (mut line, p) = line(3);
        line.transmit(p[0], at(0), &bytes(b"abcdef"), 0)
            .expect("free");
        line.transmit(p[1], at(35), &bytes(b"x"), 0).expect("free");
        let events = run(&mut line, at(100));
        // `x` is on from 35 to 47: the characters from 30 and 40.
        expect(
            &events,
            &[("!", 35), ("1 bad of 1", 45), ("2 bad of 6", 60)],
        );
        let LineEvent::Bytes {
            bytes, receivers, ..
        } = &events[2]
        else {
            panic!("bytes came last")
        };
        assert_eq!((&bytes[..3], &bytes[5..]), (&b"abc"[..], &b"f"[..]));
        assert_eq!(*receivers, p[2].into());
    }

    #[test]
    fn equal_aligned_characters_merge() {
        let (mut line, p) = line(3);
        let late = Instant::from_nanos(250);
        line.transmit(p[0], at(0), &bytes(b"abc"), 0).expect("free");
        line.transmit(p[1], late, &bytes(b"abc"), 0).expect("free");
        expect(&run(&mut line, at(100)), &[("abc", 30)]);
        let half = Instant::from_nanos(200_500);
        line.transmit(p[0], at(200), &bytes(b"abc"), 0)
            .expect("free");
        line.transmit(p[1], half, &bytes(b"abc"), 0).expect("free");
        let events = run(&mut line, at(300));
        expect(
            &events,
            &[("!", 200), ("3 bad of 3", 230), ("3 bad of 3", 230)],
        );
        // Equal but for the second character.
        line.transmit(p[0], at(400), &bytes(b"abc"), 0)
            .expect("free");
        line.transmit(p[1], at(400), &bytes(b"axc"), 0)
            .expect("free");
        let events = run(&mut line, at(500));
        expect(
            &events,
            &[("!", 400), ("1 bad of 3", 430), ("1 bad of 3", 430)],
        );
    }

    #[test]
    fn a_break_is_noticed_when_it_outlasts_a_character() {
        let (mut line, p) = line(3);
        line.transmit(p[0], at(5), &low(12), 4).expect("free");
        let events = run(&mut line, at(100));
        expect(&events, &[("_", 15)]);
        let LineEvent::Break {
            senders,
            meta,
            receivers,
            started,
            ..
        } = &events[0]
        else {
            panic!("a break came")
        };
        assert_eq!((*senders, *meta, *started), (p[0].into(), 4, at(5)));
        assert_eq!(receivers.len(), 2);
    }

    #[test]
    fn breaks_that_overlap_are_one_break() {
        let (mut line, p) = line(4);
        // Neither of the first two is long enough alone.
        line.transmit(p[0], at(0), &low(8), 0).expect("free");
        line.transmit(p[1], at(6), &low(8), 0).expect("free");
        line.transmit(p[2], at(13), &low(30), 0).expect("free");
        let events = run(&mut line, at(100));
        expect(&events, &[("_", 10)]);
        line.transmit(p[0], at(200), &low(20), 0).expect("free");
        expect(&run(&mut line, at(300)), &[("_", 210)]);
    }

    #[test]
    fn a_short_low_reads_as_a_character() {
        let (mut line, p) = line(2);
        line.transmit(p[0], at(0), &low(5), 0).expect("free");
        let events = run(&mut line, at(100));
        let LineEvent::Bytes { bytes, at: end, .. } = &events[0] else {
            panic!("a character came")
        };
        assert_eq!((&bytes[..], *end), (&[0xf0][..], at(10)));
    }

    #[test]
    fn a_break_against_characters_counts_from_when_they_are_over() {
        let (mut line, p) = line(3);
        line.transmit(p[0], at(0), &bytes(b"ab"), 0).expect("free");
        line.transmit(p[1], at(15), &low(40), 0).expect("free");
        let events = run(&mut line, at(100));
        expect(&events, &[("!", 15), ("1 bad of 2", 20), ("_", 32)]);
    }

    #[test]
    fn a_stuck_driver_spoils_all_until_it_lets_go() {
        let (mut line, p) = line(3);
        line.set_stuck(at(0), p[2], Some(Level::Low));
        line.transmit(p[0], at(50), &bytes(b"ab"), 0).expect("free");
        expect(&run(&mut line, at(60)), &[("_", 10), ("!", 50)]);
        line.set_stuck(at(65), p[2], None);
        line.transmit(p[1], at(80), &bytes(b"cd"), 0).expect("free");
        expect(&run(&mut line, at(200)), &[("2 bad of 2", 70), ("cd", 100)]);
        line.set_stuck(at(200), p[2], Some(Level::High));
        line.transmit(p[2], at(250), &bytes(b"e"), 0).expect("free");
        expect(&run(&mut line, at(300)), &[("!", 250), ("1 bad of 1", 260)]);
    }

    #[test]
    fn a_killed_sender_ends_with_its_last_whole_character() {
        let (mut line, p) = line(2);
        line.transmit(p[0], at(0), &bytes(b"abcd"), 0)
            .expect("free");
        run(&mut line, at(27));
        line.kill(at(27), p[0]);
        let refused = line.transmit(p[0], at(40), &bytes(b"x"), 0);
        assert_eq!(refused, Err(TransmitError::Offline));
        expect(&run(&mut line, at(100)), &[("ab", 27)]);
        line.revive(p[0]);
        line.transmit(p[0], at(140), &bytes(b"x"), 0).expect("free");
        line.kill(at(135), p[0]);
        expect(&run(&mut line, at(200)), &[]);
        line.revive(p[0]);
        // A break that was told and ended by death does not hide the next one.
        line.transmit(p[0], at(300), &low(50), 0).expect("free");
        expect(&run(&mut line, at(320)), &[("_", 310)]);
        line.kill(at(320), p[0]);
        line.transmit(p[1], at(330), &low(50), 0).expect("free");
        expect(&run(&mut line, at(400)), &[("_", 340)]);
    }

    #[test]
    fn corruption_changes_or_swallows_characters() {
        let (mut line, p) = line(2);
        line.set_corruption(1.0);
        line.transmit(p[0], at(0), &bytes(&[0x55; 100]), 0)
            .expect("free");
        let events = run(&mut line, at(10_000));
        let LineEvent::Bytes { bytes, damaged, .. } = &events[0] else {
            panic!("bytes came")
        };
        assert_eq!(*damaged, 100);
        assert!((60..100).contains(&bytes.len()), "{}", bytes.len());
        assert!(bytes.iter().all(|b| (b ^ 0x55).count_ones() == 1));
    }

    #[test]
    fn a_port_says_one_thing_at_a_time() {
        let (mut line, p) = line(2);
        line.transmit(p[0], at(0), &bytes(b"ab"), 0).expect("free");
        let refused = line.transmit(p[0], at(19), &bytes(b"c"), 0);
        assert_eq!(refused, Err(TransmitError::Busy));
        let refused = line.transmit(p[1], at(0), &bytes(b""), 0);
        assert_eq!(refused, Err(TransmitError::Empty));
    }

    /// When, who, characters or a low, and how long that is (µs).
    type Plan = (u64, usize, Option<Vec<u8>>, u64);

    /// Around the length of a character, few ports and values, so that much overlaps and agrees.
    fn any_plans() -> impl Strategy<Value = Vec<Plan>> {
        let content = prop::option::weighted(0.7, vec(prop::sample::select(&b"ab"[..]), 1..6));
        vec((1..400u64, 0..4usize, content, 1..25u64), 1..25)
    }

    proptest! {
        #[test]
        fn a_run_arrives_once_and_clean_only_where_all_drivers_agree(
            mut plans in any_plans(), seed: u64,
        ) {
            plans.sort_by_key(|&(us, ..)| us);
            let timing = LineTiming::new(1_000_000, Duration::from_micros(2)).expect("whole ns");
            let mut line = Line::new(timing, seed);
            let ports: Vec<Port> = (0..5).map(|_| line.attach().expect("room")).collect();
            // What each driver does in each microsecond.
            let mut drives: Vec<[Option<bool>; 4]> = vec![[None; 4]; 700];
            let (mut runs, mut events) = (Vec::new(), Vec::new());
            for (us, port, content, length) in plans {
                events.extend(run(&mut line, at(us)));
                let signal = content.as_deref().map_or(low(length), bytes);
                if line.transmit(ports[port], at(us), &signal, us).is_err() {
                    continue;
                }
                let mut levels = Vec::new();
                if let Some(text) = content {
                    for byte in &text {
                        levels.push(false);
                        levels.extend((0..8).map(|i| byte >> i & 1 == 1));
                        levels.push(true);
                    }
                    levels.extend([true; 2]);
                    runs.push((us, port, text));
                } else {
                    levels.extend((0..length).map(|_| false));
                }
                // What a port says anew takes its driver over, which may still be on from before.
                for drive in drives.iter_mut().skip(us as usize) {
                    drive[port] = None;
                }
                for (i, level) in levels.into_iter().enumerate() {
                    drives[us as usize + i][port] = Some(level);
                }
            }
            events.extend(run(&mut line, at(10_000)));
            let driven = |d: &&[Option<bool>; 4]| d.iter().any(Option::is_some);
            let busy = Duration::from_micros(drives.iter().filter(driven).count() as u64);
            prop_assert_eq!(line.busy(at(10_000)), busy);
            let agreed = |us: usize| {
                let mut levels = drives[us].iter().flatten();
                let first = levels.next();
                levels.all(|level| Some(level) == first)
            };
            for event in &events {
                let LineEvent::Bytes { from, meta, bytes, damaged, started, at: end, .. } = event
                else {
                    continue;
                };
                if *meta == 0 {
                    continue; // a short low
                }
                let index = runs
                    .iter()
                    .position(|(us, port, _)| us == meta && ports[*port] == *from);
                prop_assert!(index.is_some(), "arrived twice or was never sent: {:?}", event);
                let (us, _, text) = runs.swap_remove(index.expect("just seen"));
                prop_assert_eq!((*started, *end), (at(us), at(us + 10 * text.len() as u64)));
                prop_assert_eq!(bytes.len(), text.len());
                // Those that sent the same at the same time are in this event.
                runs.retain(|(other, _, content)| (*other, content) != (us, &text));
                let spoiled = (0..text.len())
                    .filter(|i| !(0..10).all(|bit| agreed(us as usize + 10 * i + bit)))
                    .count();
                prop_assert!(*damaged >= spoiled);
                if *damaged == 0 {
                    prop_assert_eq!(bytes, &text);
                }
            }
            prop_assert!(runs.is_empty(), "never arrived: {:?}", runs);
        }
    }
}
