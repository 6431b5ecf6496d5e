//! CAN 2.0B and CAN FD bus: decides who sends when, how long it takes to the bit, and what errors
//! do to it.
//!
//! The owner of virtual time submits frames with [`CanBus::submit`], sleeps until
//! [`CanBus::poll_timeout`] and calls [`CanBus::handle_timeout`]. Call it last at each instant:
//! what is submitted at an instant after it ran there misses an arbitration of that instant.
//!
//! ```text
//!            something pending,               EOF bit 6             EOF bit 7
//!            next bit boundary                Delivered             Sent
//!   Idle -----------------------> Frame ---------------> Frame ------------------.
//!    ^  ^                           | bit, stuff, form     | form error           |
//!    |  |                           | or ACK error         | in EOF bit 7         v
//!    |  |                           '------> Error <-------'                 Intermission
//!    |  '------ flags, delimiter, intermission'  (frame stays pending)            |
//!    '----------------------------------------------------------------------------'
//!                                3 bits
//!
//!   each controller:  Active <--> Passive --TEC > 255--> BusOff --128 x 11 recessive bits--> Active
//!                                              kill --> Off --revive, 11 recessive bits--> Active
//! ```
//!
//! A frame is valid for its receivers at the end of the last but one bit of EOF and for its sender
//! at the end of the last one (ISO 11898-1), so `Delivered` comes one bit before `Sent`; an error
//! in the very last bit makes the sender repeat a frame that everybody has already taken.
//!
//! Exact: frame lengths, arbitration, merging of identical frames, place and length of error
//! frames at the nominal rate, error counters, suspend after an error passive sender, recovery.
//! Simplified: receivers agree on what they see (a disturbance is seen by all; what only one
//! receiver misses is an overrun there, [`CanBus::set_receive_loss`]); after an error in the data
//! phase of an FD frame the flag starts at the end of a whole bit; a receiver that dies
//! within a frame still acknowledges it; no overload frames, remote frames or single-shot mode.

use super::wire::{self, Encoded, FrameBits, INTERMISSION};
use super::{MAX_PORTS, Port, PortSet};
use helio_bus::{BusKind, CanFrame, Mailbox};
use helio_units::{Duration, Instant};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Bits of an error flag.
const FLAG: u64 = 6;
/// Recessive bits behind the error flags.
const ERROR_DELIMITER: u64 = 8;
/// Further bits that an error passive sender waits after intermission.
const SUSPEND: u64 = 8;
/// Recessive bits in a row that say "the bus is idle": ACK delimiter, EOF and intermission, or
/// error delimiter and intermission.
const IDLE_RUN: u64 = 11;
/// How often a bus-off controller must see that.
const RECOVERY_RUNS: u64 = 128;
/// Arbitration key of nothing to send.
const NOTHING: u32 = u32::MAX;

/// Bit times of a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CanTiming {
    nominal_bit: Duration,
    fast_bit: Duration,
}

impl CanTiming {
    /// Arbitration and data phase in bit/s; classic frames use the first only. `None` unless both
    /// bit times are whole nanoseconds.
    pub const fn new(nominal_bps: u32, data_bps: u32) -> Option<Self> {
        match (super::bit_time(nominal_bps), super::bit_time(data_bps)) {
            (Some(nominal_bit), Some(fast_bit)) => Some(Self {
                nominal_bit,
                fast_bit,
            }),
            _ => None,
        }
    }

    /// Those of the project's CAN buses; `None` for RS485.
    pub const fn of(kind: BusKind) -> Option<Self> {
        match kind {
            BusKind::Can500k => Self::new(500_000, 500_000),
            BusKind::Can1M => Self::new(1_000_000, 1_000_000),
            BusKind::CanFd => Self::new(1_000_000, 5_000_000),
            BusKind::Rs485At1M | BusKind::Rs485At4M | BusKind::Rs485At115k => None,
        }
    }

    /// From SOF to the end of EOF.
    pub fn frame_time(self, frame: &CanFrame) -> Duration {
        FrameBits::of(frame, false).time(self.nominal_bit, self.fast_bit)
    }
}

/// How far a controller may take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// Fully.
    Active,
    /// TEC or REC above 127: disturbs no one with its error flags and waits after sending.
    Passive,
    /// TEC above 255: neither sends nor acknowledges until it has recovered.
    BusOff,
    /// Killed.
    Off,
}

/// What a frame died of, as its sender saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanErrorKind {
    /// Another level on the bus than driven.
    Bit,
    /// Nobody acknowledged.
    Ack,
    /// Dominant where the format is always recessive.
    Form,
    /// Six equal bits: the sender fell silent within the frame.
    Stuff,
}

/// What the bus tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanEvent {
    /// A frame is valid for its receivers: end of the last but one bit of EOF.
    Delivered {
        /// The frame.
        frame: CanFrame,
        /// As submitted, by `from`.
        meta: u64,
        /// The sender; of several that sent the same frame at once the lowest.
        from: Port,
        /// Who gets it. Not the senders; not who lost it; not who is off.
        receivers: PortSet,
        /// Start of SOF.
        started: Instant,
        /// Now.
        at: Instant,
    },
    /// A frame is done for its sender and the mailbox free: end of EOF. One for each sender.
    Sent {
        /// Whose.
        port: Port,
        /// Which.
        mailbox: Mailbox,
        /// As submitted.
        meta: u64,
        /// Now.
        at: Instant,
    },
    /// A frame was destroyed; it stays pending. `at` is the start of the error flag.
    Error {
        /// Why.
        kind: CanErrorKind,
        /// Who was sending; empty when the sender died.
        senders: PortSet,
        /// Start of the SOF of the destroyed frame.
        started: Instant,
        /// Now.
        at: Instant,
    },
    /// A controller changed its state. On [`ControllerState::BusOff`] its mailboxes are empty,
    /// without `Sent`.
    State {
        /// Whose.
        port: Port,
        /// The new one.
        state: ControllerState,
        /// Now.
        at: Instant,
    },
}

/// Why a frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// Wait for `Sent` of this mailbox, or abort what is in it.
    Occupied,
    /// The controller is bus-off or killed: wait for `State`.
    Offline,
}

/// What has been on the bus; differences of two give a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CanStats {
    /// From SOF to the end of intermission, error frames included.
    pub busy: Duration,
    /// Frames that were sent whole.
    pub frames: u64,
    /// Frames that were destroyed.
    pub errors: u64,
}

#[derive(Clone, Copy)]
struct Pending {
    frame: CanFrame,
    meta: u64,
    key: u32,
}

/// Counts runs of recessive bits until a controller may take part again.
#[derive(Clone, Copy)]
struct Recovery {
    runs_left: u64,
    since: Instant,
}

struct Controller {
    mailboxes: [Option<Pending>; 4],
    /// The mailbox in arbitration or on the wire: that of the lowest key.
    first: usize,
    key: u32,
    tec: u32,
    rec: u32,
    /// Error passive senders do not start earlier.
    hold_until: Instant,
    state: ControllerState,
    recovery: Option<Recovery>,
    manual_recovery: bool,
    receive_loss: u64,
}

impl Controller {
    fn new() -> Self {
        Self {
            mailboxes: [None; 4],
            first: 0,
            key: NOTHING,
            tec: 0,
            rec: 0,
            hold_until: Instant::ZERO,
            state: ControllerState::Active,
            recovery: None,
            manual_recovery: false,
            receive_loss: 0,
        }
    }

    fn choose(&mut self) {
        self.key = NOTHING;
        for (i, pending) in self.mailboxes.iter().enumerate() {
            if let Some(p) = pending
                && p.key < self.key
            {
                (self.first, self.key) = (i, p.key);
            }
        }
    }
}

/// The frame on the wire. All is decided at its start; only a controller's death changes it.
struct Run {
    frame: CanFrame,
    meta: u64,
    from: Port,
    /// Who took part in its arbitration.
    contenders: PortSet,
    /// Those of them that got another frame since.
    changed: PortSet,
    senders: PortSet,
    /// Error passive senders that noticed a collision, gave up and disturbed no one.
    quitters: PortSet,
    /// Where a disturbance hits it, as a share of its bits.
    flip: Option<u64>,
    start: Instant,
    /// When receivers take it, unless they have or will not.
    deliver: Option<Instant>,
    /// Receivers have taken it.
    delivered: bool,
    /// `Sent` or, with an error, start of the flag.
    end: Instant,
    error: Option<CanErrorKind>,
    /// End of intermission.
    idle: Instant,
}

/// A bus with up to [`MAX_PORTS`] controllers.
pub struct CanBus {
    timing: CanTiming,
    rng: ChaCha8Rng,
    controllers: Vec<Controller>,
    /// Active or passive.
    online: PortSet,
    passive: PortSet,
    /// Those with a frame in a mailbox.
    pending: PortSet,
    /// Those whose `hold_until` may lie ahead.
    held: PortSet,
    /// Those with an error counter above zero.
    blamed: PortSet,
    recovering: PortSet,
    lossy: PortSet,
    corruption: u64,
    corrupt_next: u32,
    run: Option<Run>,
    /// End of the last intermission, and origin of the bit boundaries of an idle bus.
    idle: Instant,
    next_start: Option<Instant>,
    due: Option<Instant>,
    stats: CanStats,
}

impl CanBus {
    /// An idle bus without controllers. Only faults draw on `seed`.
    pub fn new(timing: CanTiming, seed: u64) -> Self {
        Self {
            timing,
            rng: ChaCha8Rng::seed_from_u64(seed),
            controllers: Vec::new(),
            online: PortSet::EMPTY,
            passive: PortSet::EMPTY,
            pending: PortSet::EMPTY,
            held: PortSet::EMPTY,
            blamed: PortSet::EMPTY,
            recovering: PortSet::EMPTY,
            lossy: PortSet::EMPTY,
            corruption: 0,
            corrupt_next: 0,
            run: None,
            idle: Instant::ZERO,
            next_start: None,
            due: None,
            stats: CanStats::default(),
        }
    }

    /// Connects a controller. `None` when [`MAX_PORTS`] are.
    pub fn attach(&mut self) -> Option<Port> {
        let port = Port(u8::try_from(self.controllers.len()).ok()?);
        if port.index() >= MAX_PORTS {
            return None;
        }
        self.controllers.push(Controller::new());
        self.online.insert(port);
        Some(port)
    }

    /// Puts a frame into a mailbox. On an idle bus it starts at the next bit boundary, together
    /// with all others submitted until then; else it joins the next arbitration. `meta` comes back
    /// in the events.
    pub fn submit(
        &mut self,
        now: Instant,
        port: Port,
        mailbox: Mailbox,
        frame: &CanFrame,
        meta: u64,
    ) -> Result<(), SubmitError> {
        if !self.online.contains(port) {
            return Err(SubmitError::Offline);
        }
        let controller = &mut self.controllers[port.index()];
        let place = &mut controller.mailboxes[mailbox as usize];
        if place.is_some() {
            return Err(SubmitError::Occupied);
        }
        *place = Some(Pending {
            frame: *frame,
            meta,
            key: wire::arbitration_key(frame.id),
        });
        self.pending.insert(port);
        match &mut self.run {
            // It stands by the frame that it began with until this one is over.
            Some(run) if run.contenders.contains(port) => run.changed.insert(port),
            Some(_) => controller.choose(),
            None => {
                controller.choose();
                let hold_until = controller.hold_until;
                let start = self.boundary(now).max(hold_until);
                self.next_start = Some(self.next_start.map_or(start, |s| s.min(start)));
                self.set_due();
            }
        }
        Ok(())
    }

    /// Whether [`Self::submit`] would take a frame.
    pub fn is_free(&self, port: Port, mailbox: Mailbox) -> bool {
        self.online.contains(port)
            && self.controllers[port.index()].mailboxes[mailbox as usize].is_none()
    }

    /// Takes a frame back. `None` when there is none or it is on the wire (then it stays).
    pub fn abort(&mut self, port: Port, mailbox: Mailbox) -> Option<(CanFrame, u64)> {
        let sending = self.is_sending(port);
        let controller = &mut self.controllers[port.index()];
        if sending && controller.first == mailbox as usize {
            return None;
        }
        let taken = controller.mailboxes[mailbox as usize].take()?;
        if !sending {
            self.settle(port);
        }
        Some((taken.frame, taken.meta))
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Does all that is due by `now`, in order. Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut impl FnMut(CanEvent)) {
        while let Some(due) = self.due
            && due <= now
        {
            match &self.run {
                Some(run) if run.deliver.is_some() => self.deliver(due, sink),
                Some(_) => self.end(due, sink),
                None => {
                    self.recover_due(due, sink);
                    if self.next_start.is_some_and(|start| start <= due) {
                        self.start(due);
                    }
                }
            }
            self.set_due();
        }
    }

    /// Busy time, frames and errors from the beginning to `now`.
    pub fn stats(&self, now: Instant) -> CanStats {
        let mut stats = self.stats;
        let start = self.run.as_ref().map(|run| run.start);
        match start {
            Some(start) => stats.busy = stats.busy + now.since(start),
            // What was counted up to the end of intermission has not all passed yet.
            None => {
                let ahead = self.idle.since(now);
                stats.busy =
                    Duration::from_nanos(stats.busy.as_nanos().saturating_sub(ahead.as_nanos()));
            }
        }
        stats
    }

    /// How a controller is.
    pub fn state(&self, port: Port) -> ControllerState {
        self.controllers[port.index()].state
    }

    /// Transmit and receive error counter (TEC, REC).
    pub fn error_counters(&self, port: Port) -> (u32, u32) {
        let controller = &self.controllers[port.index()];
        (controller.tec, controller.rec)
    }

    /// From now on each frame is hit with this probability by a disturbance that all see, at a
    /// random bit behind the arbitration field.
    pub fn set_corruption(&mut self, probability: f64) {
        self.corruption = super::threshold(probability);
    }

    /// So are the next `frames` frames, whatever the probability.
    pub fn corrupt_next(&mut self, frames: u32) {
        self.corrupt_next = frames;
    }

    /// From now on this receiver overruns and misses frames with this probability.
    pub fn set_receive_loss(&mut self, port: Port, probability: f64) {
        let threshold = super::threshold(probability);
        self.controllers[port.index()].receive_loss = threshold;
        if threshold == 0 {
            self.lossy.remove(port);
        } else {
            self.lossy.insert(port);
        }
    }

    /// Takes a controller off the bus at once, within a bit if need be; its mailboxes are empty.
    pub fn kill(&mut self, now: Instant, port: Port) {
        self.go_offline(port, ControllerState::Off);
        self.recovering.remove(port);
        self.controllers[port.index()].recovery = None;
        if let Some(run) = self.run.take() {
            self.run = Some(self.without(run, port, now));
        }
        self.set_due();
    }

    /// Brings a killed controller back with cleared counters: it takes part after 11 recessive
    /// bits.
    pub fn revive(&mut self, now: Instant, port: Port) {
        if self.state(port) == ControllerState::Off {
            self.begin_recovery(now, port, 1);
            self.set_due();
        }
    }

    /// Whether a bus-off controller waits for [`Self::recover`] before it counts recessive bits.
    /// At first it does not.
    pub fn set_manual_recovery(&mut self, port: Port, manual: bool) {
        self.controllers[port.index()].manual_recovery = manual;
    }

    /// Lets a bus-off controller begin to recover. No effect when it has begun or is not bus-off.
    pub fn recover(&mut self, now: Instant, port: Port) {
        if self.state(port) == ControllerState::BusOff && !self.recovering.contains(port) {
            self.begin_recovery(now, port, RECOVERY_RUNS);
            self.set_due();
        }
    }

    fn is_sending(&self, port: Port) -> bool {
        self.run
            .as_ref()
            .is_some_and(|run| run.senders.or(run.quitters).contains(port))
    }

    /// First bit boundary of an idle bus not before `now`.
    fn boundary(&self, now: Instant) -> Instant {
        let bits = now
            .since(self.idle)
            .as_nanos()
            .div_ceil(self.timing.nominal_bit.as_nanos());
        self.idle + self.timing.nominal_bit * bits
    }

    fn set_due(&mut self) {
        self.due = match &self.run {
            Some(run) => Some(run.deliver.unwrap_or(run.end)),
            None if self.recovering.is_empty() => self.next_start,
            None => self
                .recovering
                .into_iter()
                .filter_map(|port| self.recovered_at(port))
                .chain(self.next_start)
                .min(),
        };
    }

    /// When the next arbitration begins; it would be `at`, were nobody held.
    fn plan_start(&mut self, at: Instant) {
        self.next_start = if self.held.is_empty() {
            (!self.pending.is_empty()).then_some(at)
        } else {
            self.pending
                .into_iter()
                .map(|port| at.max(self.controllers[port.index()].hold_until))
                .min()
        };
    }

    /// Arbitration, and all that follows from who won it.
    fn start(&mut self, at: Instant) {
        self.next_start = None;
        let mut contenders = self.pending;
        if !self.held.is_empty() {
            self.held = self.of(self.held, |controller| controller.hold_until > at);
            contenders = contenders.without(self.held);
        }
        if contenders.is_empty() {
            // Whose frame this start was for has taken it back.
            return self.plan_start(at);
        }
        if !self.recovering.is_empty() {
            self.count_recessive(at);
        }
        let flip = self.draw_corruption();
        self.run = Some(self.begin(at, contenders, flip));
    }

    /// Those of `ports` whose controllers are so.
    fn of(&self, ports: PortSet, so: impl Fn(&Controller) -> bool) -> PortSet {
        let is_so = |port: &Port| so(&self.controllers[port.index()]);
        ports.into_iter().filter(is_so).collect()
    }

    /// What becomes of a frame when these start at once. `flip`: a disturbance at a random bit.
    fn begin(&self, at: Instant, contenders: PortSet, flip: Option<u64>) -> Run {
        let (mut lowest, mut senders, mut from) = (NOTHING, PortSet::EMPTY, Port(0));
        for port in contenders {
            let key = self.controllers[port.index()].key;
            if key < lowest {
                (lowest, senders, from) = (key, port.into(), port);
            } else if key == lowest {
                senders.insert(port);
            }
        }
        let heard = !self.online.without(senders).is_empty();
        if senders.len() == 1 && flip.is_none() && heard {
            self.whole(at, from, contenders, senders)
        } else {
            self.disturbed(at, contenders, senders, flip)
        }
    }

    fn on_the_wire(&self, port: Port) -> Pending {
        let controller = &self.controllers[port.index()];
        controller.mailboxes[controller.first]
            .expect("a pending controller's first mailbox is full")
    }

    fn whole(&self, start: Instant, from: Port, contenders: PortSet, senders: PortSet) -> Run {
        let Pending { frame, meta, .. } = self.on_the_wire(from);
        let bit = self.timing.nominal_bit;
        let bits = FrameBits::of(&frame, self.passive.contains(from));
        let end = start + bits.time(bit, self.timing.fast_bit);
        Run {
            frame,
            meta,
            from,
            contenders,
            changed: PortSet::EMPTY,
            senders,
            quitters: PortSet::EMPTY,
            flip: None,
            start,
            deliver: Some(end - bit),
            delivered: false,
            end,
            error: None,
            idle: end + bit * INTERMISSION,
        }
    }

    /// A frame with several senders, a disturbance or nobody to acknowledge it, bit by bit.
    fn disturbed(
        &self,
        start: Instant,
        contenders: PortSet,
        mut senders: PortSet,
        flip: Option<u64>,
    ) -> Run {
        let encoded: Vec<(Port, Encoded)> = senders
            .into_iter()
            .map(|p| {
                let frame = self.on_the_wire(p).frame;
                (p, Encoded::of(&frame, self.passive.contains(p)))
            })
            .collect();
        let mut quitters = PortSet::EMPTY;
        let collision = loop {
            match collision(&encoded, senders) {
                // They stop with a recessive flag, and the others notice nothing.
                Some((_, losers)) if losers.without(self.passive).is_empty() => {
                    senders = senders.without(losers);
                    quitters = quitters.or(losers);
                }
                other => break other,
            }
        };
        let from = senders
            .first()
            .expect("whoever drove dominant where others lost is left");
        let mut run = Run {
            quitters,
            flip,
            ..self.whole(start, from, contenders, senders)
        };
        let wire = Encoded::of(&run.frame, self.passive.contains(from));
        let (ack, unheard) = (
            wire.crc_delimiter + 1,
            self.online.without(senders).without(quitters).is_empty(),
        );
        let mut levels = wire.bits.clone();
        levels[ack] = unheard;
        let mut error = None;
        let mut consider = |bit, kind| {
            if error.is_none_or(|(first, _)| bit < first) {
                error = Some((bit, kind));
            }
        };
        if let Some((bit, _)) = collision {
            // Of dominant and recessive the bus shows the dominant.
            levels[bit] = false;
            consider(bit, CanErrorKind::Bit);
        }
        if let Some(share) = flip {
            let choices = (levels.len() - wire.control) as u128;
            let bit = wire.control + ((u128::from(share) * choices) >> 64) as usize;
            levels[bit] = !levels[bit];
            match bit {
                b if b < wire.crc_delimiter => consider(bit, CanErrorKind::Bit),
                // Where nobody acknowledges, a disturbance does.
                b if b == ack && unheard => {}
                b if b == ack => consider(bit, CanErrorKind::Ack),
                _ => consider(bit, CanErrorKind::Form),
            }
        }
        if levels[ack] {
            consider(ack, CanErrorKind::Ack);
        }
        if let Some((bit, kind)) = error {
            // Senders that the first flag takes by surprise answer at their next recessive bit.
            let surprised = match collision {
                Some((b, losers)) if b == bit => encoded
                    .iter()
                    .filter(|(p, _)| senders.without(losers).without(self.passive).contains(*p))
                    .filter_map(|(_, e)| e.bits[bit + 1..].iter().position(|&r| r))
                    .max()
                    .map_or(0, |recessive| recessive as u64 + 1),
                _ => 0,
            };
            self.destroy(&mut run, &wire, &levels, bit, kind, surprised);
        }
        run
    }

    /// Ends `run` with an error that its senders notice at `bit`, or some of them, and the others
    /// so many bits later.
    fn destroy(
        &self,
        run: &mut Run,
        wire: &Encoded,
        levels: &[bool],
        bit: usize,
        kind: CanErrorKind,
        surprised: u64,
    ) {
        let (nominal, fast) = (self.timing.nominal_bit, self.timing.fast_bit);
        let active_sender = !run.senders.without(self.passive).is_empty();
        let receivers = self.online.without(run.senders).without(run.quitters);
        let active_receiver = !receivers.without(self.passive).is_empty();
        // Behind the CRC a receiver sees any error when the senders do; before, when it has seen
        // enough of their flag, dominant or passive, or at once.
        let (at_rate, nominal_more) = if bit >= wire.crc_delimiter || !active_receiver {
            (surprised, 0)
        } else {
            wire::notices_after(&levels[..=bit], !active_sender)
        };
        let rate = if wire.fast.contains(&bit) {
            fast
        } else {
            nominal
        };
        run.end = run.start + wire.offset(bit + 1, nominal, fast);
        run.idle = run.end
            + rate * at_rate
            + nominal * (nominal_more + FLAG + ERROR_DELIMITER + INTERMISSION);
        run.error = Some(kind);
        if run.deliver.is_some_and(|deliver| deliver >= run.end) {
            run.deliver = None;
        }
    }

    /// What becomes of `run` now that `dead` has fallen silent.
    fn without(&self, mut run: Run, dead: Port, now: Instant) -> Run {
        let was_sender = run.senders.contains(dead);
        for set in [&mut run.contenders, &mut run.senders, &mut run.quitters] {
            set.remove(dead);
        }
        if !was_sender || run.delivered || run.end <= now {
            return run;
        }
        let (nominal, fast) = (self.timing.nominal_bit, self.timing.fast_bit);
        let wire = Encoded::of(&run.frame, self.passive.contains(run.from));
        let sent = (0..wire.bits.len())
            .take_while(|&i| run.start + wire.offset(i + 1, nominal, fast) <= now)
            .count();
        // Whoever has sent the same up to here goes on, in arbitration or as one of several.
        let rivals: PortSet = run
            .contenders
            .and(self.pending)
            .into_iter()
            .filter(|&port| {
                let frame = self.on_the_wire(port).frame;
                let theirs = Encoded::of(&frame, self.passive.contains(port));
                theirs.bits.get(..sent) == wire.bits.get(..sent)
            })
            .collect();
        if rivals.is_empty() {
            self.cut(&mut run, &wire, sent, now);
            return run;
        }
        let same = |port: Port| self.on_the_wire(port).frame == run.frame;
        let flip = run.flip.filter(|_| rivals.into_iter().all(same));
        let goes_on = self.begin(run.start, rivals, flip);
        // Those that were out of it before have not come back.
        Run {
            changed: run.changed,
            ..goes_on
        }
    }

    /// The only sender of `run` falls silent after so many bits: recessive from there on.
    fn cut(&self, run: &mut Run, wire: &Encoded, sent: usize, now: Instant) {
        let (nominal, fast) = (self.timing.nominal_bit, self.timing.fast_bit);
        let unsent = wire.bits.get(sent..wire.crc_delimiter).unwrap_or(&[]);
        if unsent.iter().all(|&recessive| recessive) {
            // Nothing dominant was left to send: the frame is complete for its receivers.
            return;
        }
        let (at_rate, nominal_more) = wire::notices_after(&wire.bits[..sent], true);
        let rate = if wire.fast.contains(&sent) {
            fast
        } else {
            nominal
        };
        let silent = run.start + wire.offset(sent, nominal, fast);
        run.end = (silent + rate * at_rate + nominal * nominal_more).max(now);
        run.idle = run.end + nominal * (FLAG + ERROR_DELIMITER + INTERMISSION);
        run.error = Some(CanErrorKind::Stuff);
        run.deliver = None;
    }

    /// Receivers have seen enough.
    fn deliver(&mut self, at: Instant, sink: &mut impl FnMut(CanEvent)) {
        let Some(run) = &mut self.run else { return };
        run.deliver = None;
        run.delivered = true;
        let others = self.online.without(run.senders).without(run.quitters);
        let mut event = CanEvent::Delivered {
            frame: run.frame,
            meta: run.meta,
            from: run.from,
            receivers: others,
            started: run.start,
            at,
        };
        for port in self.lossy.and(others) {
            let lost = self.rng.next_u64() < self.controllers[port.index()].receive_loss;
            if let (CanEvent::Delivered { receivers, .. }, true) = (&mut event, lost) {
                receivers.remove(port);
            }
        }
        self.credit_receivers(others, at, sink);
        sink(event);
    }

    /// The frame on the wire is over, well or not.
    fn end(&mut self, at: Instant, sink: &mut impl FnMut(CanEvent)) {
        let Some(run) = self.run.take() else { return };
        let others = self.online.without(run.senders).without(run.quitters);
        self.idle = run.idle;
        self.stats.busy = self.stats.busy + run.idle.since(run.start);
        match run.error {
            None => self.confirm(&run, at, sink),
            Some(kind) => self.fail(&run, kind, others, at, sink),
        }
        for port in run.quitters {
            self.blame(port, 8, 0, at, sink);
        }
        for port in run.senders.or(run.quitters) {
            if self.passive.contains(port) {
                self.held.insert(port);
                self.controllers[port.index()].hold_until =
                    run.idle + self.timing.nominal_bit * SUSPEND;
            }
        }
        for port in run.senders.or(run.quitters).or(run.changed) {
            self.settle(port);
        }
        self.plan_start(run.idle);
    }

    fn confirm(&mut self, run: &Run, at: Instant, sink: &mut impl FnMut(CanEvent)) {
        self.stats.frames += 1;
        for port in run.senders {
            let controller = &mut self.controllers[port.index()];
            let place = controller.first;
            let Some(sent) = controller.mailboxes[place].take() else {
                continue;
            };
            if controller.tec > 0 {
                controller.tec -= 1;
                self.judge(port, at, sink);
            }
            sink(CanEvent::Sent {
                port,
                mailbox: Mailbox::ALL[place],
                meta: sent.meta,
                at,
            });
        }
    }

    fn fail(
        &mut self,
        run: &Run,
        kind: CanErrorKind,
        others: PortSet,
        at: Instant,
        sink: &mut impl FnMut(CanEvent),
    ) {
        self.stats.errors += 1;
        sink(CanEvent::Error {
            kind,
            senders: run.senders,
            started: run.start,
            at,
        });
        for port in run.senders {
            // A lone passive sender on an empty bus would otherwise go bus-off.
            if kind != CanErrorKind::Ack || !self.passive.contains(port) {
                self.blame(port, 8, 0, at, sink);
            }
        }
        if !run.delivered {
            for port in others {
                self.blame(port, 0, 1, at, sink);
            }
        }
    }

    /// A frame came well: receive error counters fall.
    fn credit_receivers(&mut self, who: PortSet, at: Instant, sink: &mut impl FnMut(CanEvent)) {
        for port in self.blamed.and(who) {
            let controller = &mut self.controllers[port.index()];
            controller.rec = match controller.rec {
                0 => continue,
                1..=127 => controller.rec - 1,
                _ => 127,
            };
            self.judge(port, at, sink);
        }
    }

    fn blame(
        &mut self,
        port: Port,
        tec: u32,
        rec: u32,
        at: Instant,
        sink: &mut impl FnMut(CanEvent),
    ) {
        let controller = &mut self.controllers[port.index()];
        controller.tec += tec;
        // Above 127 the exact number has no meaning any more.
        controller.rec = (controller.rec + rec).min(128);
        self.blamed.insert(port);
        self.judge(port, at, sink);
    }

    /// Draws the consequence of a changed error counter.
    fn judge(&mut self, port: Port, at: Instant, sink: &mut impl FnMut(CanEvent)) {
        let controller = &mut self.controllers[port.index()];
        let state = match (controller.tec, controller.rec) {
            (256.., _) => ControllerState::BusOff,
            (0..=127, 0..=127) => ControllerState::Active,
            _ => ControllerState::Passive,
        };
        if (controller.tec, controller.rec) == (0, 0) {
            self.blamed.remove(port);
        }
        if state == controller.state {
            return;
        }
        controller.state = state;
        let manual = controller.manual_recovery;
        match state {
            ControllerState::Active => self.passive.remove(port),
            ControllerState::Passive => self.passive.insert(port),
            ControllerState::BusOff | ControllerState::Off => {
                self.go_offline(port, state);
                if !manual {
                    self.begin_recovery(at, port, RECOVERY_RUNS);
                }
            }
        }
        sink(CanEvent::State { port, state, at });
    }

    fn go_offline(&mut self, port: Port, state: ControllerState) {
        let controller = &mut self.controllers[port.index()];
        controller.state = state;
        controller.mailboxes = [None; 4];
        controller.key = NOTHING;
        for set in [
            &mut self.online,
            &mut self.passive,
            &mut self.pending,
            &mut self.held,
            &mut self.blamed,
        ] {
            set.remove(port);
        }
    }

    fn begin_recovery(&mut self, now: Instant, port: Port, runs_left: u64) {
        self.recovering.insert(port);
        self.controllers[port.index()].recovery = Some(Recovery {
            runs_left,
            since: now,
        });
    }

    /// When the controller has seen enough if the bus stays idle.
    fn recovered_at(&self, port: Port) -> Option<Instant> {
        let recovery = self.controllers[port.index()].recovery?;
        let run = self.timing.nominal_bit * IDLE_RUN;
        Some((self.idle - run).max(recovery.since) + run * recovery.runs_left)
    }

    fn recover_due(&mut self, now: Instant, sink: &mut impl FnMut(CanEvent)) {
        for port in self.recovering {
            let Some(at) = self.recovered_at(port).filter(|&at| at <= now) else {
                continue;
            };
            self.recovering.remove(port);
            self.online.insert(port);
            let controller = &mut self.controllers[port.index()];
            *controller = Controller {
                manual_recovery: controller.manual_recovery,
                receive_loss: controller.receive_loss,
                ..Controller::new()
            };
            sink(CanEvent::State {
                port,
                state: ControllerState::Active,
                at,
            });
        }
    }

    /// A frame starts: the recessive run before it is over.
    fn count_recessive(&mut self, start: Instant) {
        let run = self.timing.nominal_bit * IDLE_RUN;
        for port in self.recovering {
            if let Some(recovery) = &mut self.controllers[port.index()].recovery {
                let begin = (self.idle - run).max(recovery.since);
                let seen = start.since(begin).as_nanos() / run.as_nanos();
                recovery.runs_left = recovery.runs_left.saturating_sub(seen).max(1);
            }
        }
    }

    /// After a mailbox was emptied or its controller stopped sending.
    fn settle(&mut self, port: Port) {
        let controller = &mut self.controllers[port.index()];
        controller.choose();
        if controller.key == NOTHING {
            self.pending.remove(port);
        }
    }

    fn draw_corruption(&mut self) -> Option<u64> {
        let hit = if self.corrupt_next > 0 {
            self.corrupt_next -= 1;
            true
        } else {
            self.corruption > 0 && self.rng.next_u64() < self.corruption
        };
        hit.then(|| self.rng.next_u64())
    }
}

/// First bit where some of the senders drive recessive and others dominant, and the former.
fn collision(encoded: &[(Port, Encoded)], senders: PortSet) -> Option<(usize, PortSet)> {
    let of = || encoded.iter().filter(|(port, _)| senders.contains(*port));
    let (_, first) = of().next()?;
    let bit = of()
        .filter_map(|(_, other)| first.bits.iter().zip(&other.bits).position(|(a, b)| a != b))
        .min()?;
    let losers = of()
        .filter(|(_, e)| e.bits[bit])
        .map(|(port, _)| *port)
        .collect();
    Some((bit, losers))
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::any_frame;
    use super::*;
    use helio_bus::CanId;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const US: u64 = 1_000;

    fn bus(ports: usize) -> (CanBus, Vec<Port>) {
        let timing = CanTiming::new(1_000_000, 5_000_000).expect("whole nanoseconds");
        let mut bus = CanBus::new(timing, 7);
        let ports = (0..ports)
            .map(|_| bus.attach().expect("room for this many"))
            .collect();
        (bus, ports)
    }
    fn at(us: u64) -> Instant {
        Instant::from_micros(us)
    }
    fn frame(id: u16, data: &[u8]) -> CanFrame {
        CanFrame::new(CanId::Standard(id), false, data).expect("a valid classic frame")
    }
    fn send(bus: &mut CanBus, us: u64, port: Port, frame: &CanFrame) {
        let meta = u64::from(wire::arbitration_key(frame.id));
        bus.submit(at(us), port, Mailbox::Cyclic, frame, meta)
            .expect("mailbox is free");
    }
    /// Everything that happens up to `us`.
    fn run(bus: &mut CanBus, us: u64) -> Vec<CanEvent> {
        let mut events = Vec::new();
        while let Some(due) = bus.poll_timeout().filter(|&due| due <= at(us)) {
            bus.handle_timeout(due, &mut |event| events.push(event));
        }
        events
    }
    /// What happened in short: `>` delivered, `.` sent, `!` error, `s` state; and when (µs).
    fn short(events: &[CanEvent]) -> Vec<(char, u64)> {
        let of = |event: &CanEvent| match *event {
            CanEvent::Delivered { at, .. } => ('>', at),
            CanEvent::Sent { at, .. } => ('.', at),
            CanEvent::Error { at, .. } => ('!', at),
            CanEvent::State { at, .. } => ('s', at),
        };
        let in_us = |(c, at): (char, Instant)| (c, at.as_nanos() / US);
        events.iter().map(of).map(in_us).collect()
    }
    fn senders(events: &[CanEvent]) -> Vec<usize> {
        let of = |event: &CanEvent| match *event {
            CanEvent::Sent { port, .. } => Some(port.index()),
            _ => None,
        };
        events.iter().filter_map(of).collect()
    }

    #[test]
    fn a_frame_is_valid_one_bit_before_its_sender_is_done() {
        let (mut bus, p) = bus(3);
        // 53 bits with intermission: worked by hand in `wire`.
        send(&mut bus, 10, p[1], &frame(0, &[]));
        let events = run(&mut bus, 1_000);
        assert_eq!(short(&events), [('>', 59), ('.', 60)]);
        let CanEvent::Delivered { receivers, .. } = events[0] else {
            panic!("delivered first")
        };
        assert_eq!(receivers.into_iter().collect::<Vec<_>>(), [p[0], p[2]]);
        assert_eq!(bus.stats(at(35)).busy, Duration::from_micros(25));
        assert_eq!(bus.stats(at(62)).busy, Duration::from_micros(52));
        assert_eq!(bus.stats(at(90)).busy, Duration::from_micros(53));
    }

    #[test]
    fn an_idle_bus_starts_at_the_next_bit_boundary() {
        let (mut bus, p) = bus(2);
        let now = Instant::from_nanos(10_001);
        bus.submit(now, p[0], Mailbox::Urgent, &frame(0, &[]), 0)
            .expect("free");
        assert_eq!(bus.poll_timeout(), Some(at(11)));
    }

    #[test]
    fn the_lowest_identifier_pending_at_the_end_of_intermission_wins() {
        let (mut bus, p) = bus(4);
        send(&mut bus, 0, p[0], &frame(0x300, &[]));
        run(&mut bus, 0);
        send(&mut bus, 1, p[1], &frame(0x200, &[]));
        send(&mut bus, 2, p[2], &frame(0x100, &[]));
        let low = CanFrame::new(CanId::Extended(0x100 << 18), false, &[]).expect("valid");
        send(&mut bus, 3, p[3], &low);
        assert_eq!(senders(&run(&mut bus, 10_000)), [0, 2, 3, 1]);
    }

    #[test]
    fn a_controller_sends_its_own_lowest_first() {
        let (mut bus, p) = bus(2);
        for (mailbox, id) in [
            (Mailbox::Urgent, 3),
            (Mailbox::Cyclic, 1),
            (Mailbox::Management, 2),
        ] {
            bus.submit(at(0), p[0], mailbox, &frame(id, &[]), u64::from(id))
                .expect("free");
            assert!(!bus.is_free(p[0], mailbox));
        }
        let refused = bus.submit(at(0), p[0], Mailbox::Urgent, &frame(9, &[]), 9);
        assert_eq!(refused, Err(SubmitError::Occupied));
        let order: Vec<u64> = run(&mut bus, 10_000)
            .iter()
            .filter_map(|event| match event {
                CanEvent::Sent { meta, .. } => Some(*meta),
                _ => None,
            })
            .collect();
        assert_eq!(order, [1, 2, 3]);
    }

    #[test]
    fn identical_frames_that_start_together_are_one_frame() {
        let (mut bus, p) = bus(3);
        send(&mut bus, 0, p[0], &frame(0, &[]));
        send(&mut bus, 0, p[2], &frame(0, &[]));
        let events = run(&mut bus, 10_000);
        assert_eq!(short(&events), [('>', 49), ('.', 50), ('.', 50)]);
        assert_eq!(senders(&events), [0, 2]);
        let CanEvent::Delivered { receivers, .. } = events[0] else {
            panic!("delivered first")
        };
        assert_eq!(receivers, p[1].into());
    }

    #[test]
    fn different_data_under_one_identifier_destroys_both_until_bus_off() {
        let (mut bus, p) = bus(3);
        send(&mut bus, 0, p[0], &frame(0x55, &[0x55]));
        send(&mut bus, 0, p[1], &frame(0x55, &[0xaa]));
        let events = run(&mut bus, 100_000);
        let errors = events
            .iter()
            .filter(|e| matches!(e, CanEvent::Error { .. }))
            .count();
        // Active at first: 16 error frames take both to 128. Then passive flags: the one that
        // loses a bit quits silently and the other gets through.
        assert_eq!(errors, 16);
        assert_eq!(senders(&events), [0, 1]);
        assert_eq!(bus.error_counters(p[0]), (127, 0));
        assert_eq!(bus.error_counters(p[1]), (135, 0));
        assert_eq!(bus.state(p[1]), ControllerState::Passive);
    }

    #[test]
    fn a_lone_sender_repeats_for_ever_without_going_bus_off() {
        let (mut bus, p) = bus(2);
        bus.kill(at(0), p[1]);
        send(&mut bus, 0, p[0], &frame(0, &[]));
        let events = run(&mut bus, 20_000);
        let errors: Vec<u64> = short(&events)
            .into_iter()
            .filter_map(|(c, at)| (c == '!').then_some(at))
            .collect();
        // ACK slot is bit 41; flag, delimiter and intermission are 17 bits.
        assert_eq!(errors[..3], [42, 42 + 59, 42 + 2 * 59]);
        // Passive from the 16th on: suspended for 8 bits more.
        assert_eq!(errors[16] - errors[15], 59 + 8);
        assert_eq!(bus.error_counters(p[0]), (128, 0));
        assert_eq!(bus.state(p[0]), ControllerState::Passive);
        bus.revive(at(20_000), p[1]);
        let events = run(&mut bus, 21_000);
        assert_eq!(senders(&events), [0]);
        assert_eq!(bus.error_counters(p[0]), (127, 0));
        assert_eq!(bus.state(p[0]), ControllerState::Active);
    }

    #[test]
    fn a_passive_sender_lets_a_later_frame_of_lower_urgency_go_first() {
        let (mut bus, p) = bus(3);
        bus.corrupt_next(20);
        send(&mut bus, 0, p[0], &frame(0, &[]));
        run(&mut bus, 5_000);
        assert_eq!(bus.state(p[0]), ControllerState::Passive);
        assert_eq!(bus.error_counters(p[0]), (159, 0));
        send(&mut bus, 6_000, p[0], &frame(0, &[]));
        run(&mut bus, 6_000);
        bus.submit(at(6_001), p[0], Mailbox::Urgent, &frame(1, &[]), 0)
            .expect("free");
        send(&mut bus, 6_054, p[1], &frame(0x7ff, &[]));
        assert_eq!(senders(&run(&mut bus, 10_000)), [0, 1, 0]);
    }

    #[test]
    fn bus_off_ends_after_128_recessive_runs() {
        let (mut bus, p) = bus(3);
        bus.corrupt_next(32);
        send(&mut bus, 0, p[0], &frame(0, &[]));
        let events = run(&mut bus, 2_000);
        let Some(CanEvent::State { state, at: off, .. }) = events.last() else {
            panic!("32 errors are enough")
        };
        assert_eq!(*state, ControllerState::BusOff);
        assert!(!bus.is_free(p[0], Mailbox::Cyclic));
        // Flag, then the first recessive run: delimiter and intermission. The frame of 53 bits in
        // between has but one recessive run, at its end, and breaks another one off.
        let runs_from = off.as_micros() + 6;
        send(&mut bus, runs_from + 3 * 11 + 5, p[1], &frame(0, &[]));
        let events = run(&mut bus, 60_000);
        let back = runs_from + 128 * 11 + 53 - 11 + 5;
        assert_eq!(senders(&events), [1]);
        assert_eq!(short(&events).last(), Some(&('s', back)));
        assert_eq!(bus.error_counters(p[0]), (0, 0));
        assert!(bus.is_free(p[0], Mailbox::Cyclic), "its frame is gone");
    }

    #[test]
    fn manual_recovery_waits_to_be_asked() {
        let (mut bus, p) = bus(2);
        bus.set_manual_recovery(p[0], true);
        bus.corrupt_next(32);
        send(&mut bus, 0, p[0], &frame(0, &[]));
        run(&mut bus, 100_000);
        assert_eq!(bus.state(p[0]), ControllerState::BusOff);
        let refused = bus.submit(at(100_000), p[0], Mailbox::Urgent, &frame(0, &[]), 0);
        assert_eq!(refused, Err(SubmitError::Offline));
        bus.recover(at(100_000), p[0]);
        assert_eq!(short(&run(&mut bus, 200_000)), [('s', 100_000 + 1408)]);
    }

    #[test]
    fn an_error_in_the_last_bit_delivers_the_frame_twice() {
        let mut twice = 0;
        for seed in 0..200 {
            let timing = CanTiming::new(1_000_000, 1_000_000).expect("whole nanoseconds");
            let mut bus = CanBus::new(timing, seed);
            let p = [bus.attach().expect("room"), bus.attach().expect("room")];
            bus.corrupt_next(1);
            send(&mut bus, 0, p[0], &frame(0, &[]));
            let events = run(&mut bus, 1_000);
            match short(&events)[..] {
                [('>', 49), ('!', 50), ('>', _), ('.', _)] => {
                    twice += 1;
                    assert_eq!(bus.error_counters(p[1]), (0, 0), "receivers saw no error");
                }
                [('!', _), ('>', _), ('.', _)] => {}
                ref other => panic!("{other:?}"),
            }
            assert_eq!(bus.error_counters(p[0]), (7, 0));
        }
        // One bit of the 37 behind the arbitration field.
        assert!((1..20).contains(&twice), "{twice}");
    }

    #[test]
    fn a_lossy_receiver_is_left_out_and_nobody_else() {
        let (mut bus, p) = bus(3);
        bus.set_receive_loss(p[2], 0.5);
        let mut lost = 0;
        for i in 0..400 {
            send(&mut bus, i * 100, p[0], &frame(0, &[]));
            let events = run(&mut bus, i * 100 + 99);
            let CanEvent::Delivered { receivers, .. } = events[0] else {
                panic!("delivered first")
            };
            assert!(receivers.contains(p[1]));
            lost += usize::from(!receivers.contains(p[2]));
        }
        assert!((150..250).contains(&lost), "{lost}");
        assert_eq!(bus.stats(at(50_000)).errors, 0);
    }

    #[test]
    fn what_is_on_the_wire_cannot_be_taken_back() {
        let (mut bus, p) = bus(2);
        send(&mut bus, 0, p[0], &frame(1, &[]));
        run(&mut bus, 0);
        bus.submit(at(1), p[0], Mailbox::Urgent, &frame(0, &[]), 5)
            .expect("free");
        assert_eq!(bus.abort(p[0], Mailbox::Cyclic), None);
        assert_eq!(bus.abort(p[0], Mailbox::Urgent), Some((frame(0, &[]), 5)));
        assert_eq!(senders(&run(&mut bus, 1_000)), [0]);
        // Taken back before it starts, it leaves the start to others or to nobody.
        send(&mut bus, 1_000, p[0], &frame(1, &[]));
        assert!(bus.abort(p[0], Mailbox::Cyclic).is_some());
        assert_eq!(run(&mut bus, 2_000), []);
        assert_eq!(bus.poll_timeout(), None);
    }

    #[test]
    fn fd_data_goes_at_the_data_rate_and_the_rest_does_not() {
        let (mut bus, p) = bus(2);
        let data = CanFrame::new(CanId::Standard(0x555), true, &[0x55; 64]).expect("valid");
        send(&mut bus, 0, p[0], &data);
        // No run of five: 17 + 9 nominal bits; ESI, DLC, data, CRC field and delimiter fast.
        let end = 26 * 1_000 + (5 + 512 + 32 + 1) * 200;
        let events = run(&mut bus, 10_000);
        let CanEvent::Sent { at: sent, .. } = events[1] else {
            panic!("sent second")
        };
        assert_eq!(sent, Instant::from_nanos(end));
        // The next boundary counts from there, not from zero.
        bus.submit(
            Instant::from_nanos(end + 10_500),
            p[1],
            Mailbox::Urgent,
            &data,
            0,
        )
        .expect("free");
        assert_eq!(bus.poll_timeout(), Some(Instant::from_nanos(end + 11_000)));
    }

    #[test]
    fn a_classic_and_an_fd_frame_of_one_identifier_collide() {
        let (mut bus, p) = bus(3);
        send(&mut bus, 0, p[0], &frame(0x123, &[]));
        let fd = CanFrame::new(CanId::Standard(0x123), true, &[]).expect("valid");
        send(&mut bus, 0, p[1], &fd);
        let events = run(&mut bus, 60);
        // SOF, 11 identifier bits, RTR, IDE, then FDF is recessive against r0: bit 14.
        assert_eq!(short(&events)[0], ('!', 15));
    }

    #[test]
    fn same_seed_same_events() {
        let story = |seed| {
            let timing = CanTiming::new(500_000, 500_000).expect("whole nanoseconds");
            let mut bus = CanBus::new(timing, seed);
            let p: Vec<Port> = (0..4).map(|_| bus.attach().expect("room")).collect();
            bus.set_corruption(0.2);
            bus.set_receive_loss(p[3], 0.2);
            let mut events = Vec::new();
            for i in 0..200 {
                send(
                    &mut bus,
                    i * 300,
                    p[i as usize % 3],
                    &frame(i as u16, &[i as u8]),
                );
                events.extend(run(&mut bus, i * 300 + 299));
            }
            events
        };
        assert_eq!(story(1), story(1));
        assert_ne!(story(1), story(2));
    }

    /// When, who, where and what; identifiers unlike those of every other mailbox.
    fn any_submission(ports: usize) -> impl Strategy<Value = (u64, usize, Mailbox, CanFrame)> {
        let mailbox = prop::sample::select(&Mailbox::ALL[..]);
        (0..2_000u64, 0..ports, mailbox, any_frame()).prop_map(move |(us, port, mailbox, frame)| {
            let unique = (port * 4 + mailbox as usize) as u32;
            let id = match frame.id {
                CanId::Standard(id) => CanId::Standard(id & 0x7c0 | unique as u16),
                CanId::Extended(id) => CanId::Extended(id & 0x1fff_ffc0 | unique),
            };
            let frame = CanFrame::new(id, frame.fd, frame.data()).expect("same data");
            (us, port, mailbox, frame)
        })
    }

    proptest! {
        #[test]
        fn what_is_submitted_is_sent_once_in_order_of_urgency_without_overlap(
            mut load in vec(any_submission(8), 1..60),
            seed: u64,
            corruption in prop_oneof![Just(0.0), Just(0.1)],
        ) {
            load.sort_by_key(|&(us, ..)| us);
            let timing = CanTiming::new(1_000_000, 5_000_000).expect("whole nanoseconds");
            let mut bus = CanBus::new(timing, seed);
            bus.set_corruption(corruption);
            let ports: Vec<Port> = (0..9).map(|_| bus.attach().expect("room")).collect();
            let mut waiting: Vec<(Instant, u64, u32, CanFrame)> = Vec::new();
            let (mut events, mut submitted) = (Vec::new(), 0);
            let mut drive = |bus: &mut CanBus, us| {
                while let Some(due) = bus.poll_timeout().filter(|&due| due < at(us)) {
                    bus.handle_timeout(due, &mut |event| events.push(event));
                }
            };
            for (us, port, mailbox, frame) in load {
                drive(&mut bus, us);
                if bus.submit(at(us), ports[port], mailbox, &frame, submitted).is_ok() {
                    waiting.push((at(us), submitted, wire::arbitration_key(frame.id), frame));
                    submitted += 1;
                }
            }
            drive(&mut bus, 1_000_000);
            let (mut idle, mut busy) = (Instant::ZERO, Duration::ZERO);
            for event in &events {
                match *event {
                    CanEvent::Delivered { frame, started, at, .. } => {
                        prop_assert!(started >= idle);
                        prop_assert_eq!(at + timing.nominal_bit, started + timing.frame_time(&frame));
                        let lowest = waiting
                            .iter()
                            .filter(|(since, ..)| *since <= started)
                            .map(|(_, _, key, _)| *key)
                            .min();
                        prop_assert_eq!(lowest, Some(wire::arbitration_key(frame.id)));
                    }
                    CanEvent::Sent { meta, at, .. } => {
                        idle = at + timing.nominal_bit * INTERMISSION;
                        let index = waiting.iter().position(|&(_, m, ..)| m == meta);
                        prop_assert!(index.is_some(), "sent twice or never submitted");
                        let (.., frame) = waiting.swap_remove(index.expect("just seen"));
                        busy = busy + timing.frame_time(&frame) + timing.nominal_bit * INTERMISSION;
                    }
                    CanEvent::Error { started, at, .. } => {
                        prop_assert!(started >= idle);
                        // At least a flag and its delimiter; at most a flag and its echo.
                        idle = at + timing.nominal_bit * (FLAG + ERROR_DELIMITER);
                    }
                    CanEvent::State { .. } => {}
                }
            }
            prop_assert!(waiting.is_empty(), "never sent: {waiting:?}");
            prop_assert_eq!(bus.stats(at(1_000_000)).frames, submitted);
            if corruption == 0.0 {
                prop_assert_eq!(bus.stats(at(1_000_000)).busy, busy);
            }
        }
    }
}
