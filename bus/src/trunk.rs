//! Several buses of one master, as if they were one: seats are numbered through, and a trip on one is said on all.
//!
//! ```text
//!  bus 0 -- MasterLink: seats 1..=a --.                  nodes 1 ..= a
//!  bus 1 -- MasterLink: seats 1..=b --+-- Trunk -------- nodes a + 1 ..= a + b
//!             ^                       |
//!             '-------- trip ---------'
//! ```
//!
//! On each wire a seat keeps its own number, so frames, slaves and bounds are those of a single bus. Cycles of
//! equal length begin together, on CAN for good.

use crate::{
    Busy, CanFrame, CanOut, Capabilities, Command, Mailbox, MasterEvent, MasterLink, Schedule,
    SerialOut,
};
use helio_units::{Duration, Instant, NodeId, TagId, Uid};

/// The master's end of up to `BUSES` buses with `SEATS` slaves in all, at most 127.
///
/// What carries frames names the bus, counted from 0; calls for a bus that there is not do nothing. All else
/// speaks of nodes.
///
/// ```
/// use helio_bus::{BusKind, MasterEvent, Schedule, Trunk};
/// use helio_units::{Instant, NodeId};
///
/// let of = |kind, seats| Schedule { seats, ..Schedule::for_bus(kind) };
/// let mut trunk = Trunk::<2, 24>::vacant();
/// trunk.start(&[of(BusKind::Can1M, 16), of(BusKind::Rs485At4M, 8)]);
/// assert_eq!(trunk.first(1), NodeId::new(17)); // seat 1 of the RS485 bus
/// trunk.handle_timeout(Instant::ZERO);
/// assert!(trunk.poll_serial(1, Instant::ZERO).is_some()); // its first beacon
/// ```
pub struct Trunk<const BUSES: usize, const SEATS: usize> {
    links: [MasterLink<SEATS>; BUSES],
    /// Buses that there are.
    buses: u8,
    /// The bus whose news come next.
    turn: u8,
}

/// A seat of one bus.
type Seat = (usize, NodeId);

impl<const BUSES: usize, const SEATS: usize> Trunk<BUSES, SEATS> {
    /// To be started by [`Self::start`]; all zeros.
    pub const fn vacant() -> Self {
        Self {
            links: [const { MasterLink::vacant() }; BUSES],
            buses: 0,
            turn: 0,
        }
    }

    /// Starts the buses, one for each schedule, without members. A bus has the seats of its schedule, as far as the
    /// buses before it leave any of `SEATS`; schedules beyond `BUSES` are left out.
    pub fn start(&mut self, schedules: &[Schedule]) {
        let mut room = SEATS.min(NodeId::MAX.get().into());
        for (link, schedule) in self.links.iter_mut().zip(schedules) {
            link.start_with(*schedule, room);
            room = room.saturating_sub(link.seats());
        }
        self.buses = schedules.len().min(BUSES) as u8;
    }

    /// How many buses there are.
    pub fn buses(&self) -> usize {
        self.buses.into()
    }

    /// The node on seat 1 of a bus; `None` when there is no such bus or it has no seat.
    pub fn first(&self, bus: usize) -> Option<NodeId> {
        self.node((bus, NodeId::new(1)?))
    }

    /// The bus that a node is on; `None` when no bus has a seat for it.
    pub fn bus_of(&self, node: NodeId) -> Option<usize> {
        Some(self.seat(node)?.0)
    }

    /// The timing of a bus.
    pub fn schedule(&self, bus: usize) -> Option<&Schedule> {
        Some(self.links().get(bus)?.schedule())
    }

    /// Whether all buses range the same tag at the same time: only then do ranges of two buses belong together.
    pub fn in_step(&self) -> bool {
        let mut schedules = self.links().iter().map(MasterLink::schedule);
        let first = schedules.next();
        schedules.all(|s| s.can() && Some(s.cycle) == first.filter(|f| f.can()).map(|f| f.cycle))
    }

    /// See [`MasterLink::handle_can`].
    pub fn handle_can(&mut self, bus: usize, now: Instant, frame: &CanFrame) {
        if let Some(link) = self.awake(bus, now) {
            link.handle_can(now, frame);
        }
    }

    /// See [`MasterLink::handle_sent`].
    pub fn handle_sent(&mut self, bus: usize, now: Instant, mailbox: Mailbox) {
        if let Some(link) = self.awake(bus, now) {
            link.handle_sent(now, mailbox);
        }
    }

    /// See [`MasterLink::handle_serial`].
    pub fn handle_serial(&mut self, bus: usize, now: Instant, bytes: &[u8]) {
        if let Some(link) = self.awake(bus, now) {
            link.handle_serial(now, bytes);
        }
    }

    /// See [`MasterLink::handle_break`].
    pub fn handle_break(&mut self, bus: usize, now: Instant) {
        if let Some(link) = self.awake(bus, now) {
            link.handle_break(now);
        }
    }

    /// Early and repeated calls are harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        for link in self.links_mut() {
            link.handle_timeout(now);
        }
    }

    /// When to call [`Self::handle_timeout`], and then the polls of all buses, next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = self.links().iter().filter_map(MasterLink::poll_timeout);
        times.min()
    }

    /// See [`MasterLink::poll_can`].
    pub fn poll_can(&mut self, bus: usize, now: Instant, mailbox: Mailbox) -> Option<CanOut> {
        self.awake(bus, now)?.poll_can(now, mailbox)
    }

    /// See [`MasterLink::poll_serial`].
    pub fn poll_serial(&mut self, bus: usize, now: Instant) -> Option<SerialOut> {
        self.awake(bus, now)?.poll_serial(now)
    }

    /// News of all buses, for the core above; ask until there are none.
    ///
    /// A trip is passed on here. A device that joins although it is a member on another bus is turned out again, for a
    /// second: that may be one that was moved, or two with one unique id, which is said ([`MasterEvent::Duplicate`]).
    pub fn poll_event(&mut self) -> Option<MasterEvent> {
        for _ in 0..self.buses {
            let bus = usize::from(self.turn);
            if let Some(event) = self.links_mut().get_mut(bus)?.poll_event() {
                if self.buses == 1 {
                    return Some(event);
                }
                return self.look_at(bus, event);
            }
            self.turn = (self.turn + 1) % self.buses;
        }
        None
    }

    /// See [`MasterLink::set_session`].
    pub fn set_session(&mut self, number: u8) {
        self.links_mut()
            .iter_mut()
            .for_each(|l| l.set_session(number));
    }

    /// See [`MasterLink::reserve`]. A node that no bus has a seat for is passed over.
    pub fn reserve(&mut self, node: NodeId, uid: Uid, capabilities: Capabilities) {
        if let Some((link, seat)) = self.link(node) {
            link.reserve(seat, uid, capabilities);
        }
    }

    /// See [`MasterLink::set_tags`]; every bus ranges to all of them.
    pub fn set_tags(&mut self, tags: &[TagId]) {
        self.links_mut().iter_mut().for_each(|l| l.set_tags(tags));
    }

    /// See [`MasterLink::command`]. What is for all goes to all buses or none; what is for nobody is no error.
    pub fn command(&mut self, command: Command) -> Result<(), Busy> {
        let Some(node) = command.to else {
            if self.links().iter().any(|link| !link.has_room()) {
                return Err(Busy);
            }
            return self
                .links_mut()
                .iter_mut()
                .try_for_each(|l| l.command(command));
        };
        match self.link(node) {
            Some((link, seat)) => link.command(Command {
                to: Some(seat),
                ..command
            }),
            None => Ok(()),
        }
    }

    /// See [`MasterLink::quarantine`].
    pub fn quarantine(&mut self, now: Instant, node: NodeId, for_: Duration) {
        if let Some((link, seat)) = self.link(node) {
            link.quarantine(now, seat, for_);
        }
    }

    /// See [`MasterLink::send_datagram`]. Each bus carries two at once.
    pub fn send_datagram(&mut self, node: NodeId, datagram: &[u8]) -> Result<(), Busy> {
        let (link, seat) = self.link(node).ok_or(Busy)?;
        link.send_datagram(seat, datagram)
    }

    /// See [`MasterLink::datagram`].
    pub fn datagram(&mut self) -> Option<(NodeId, &[u8])> {
        let mut before = 0;
        self.links_mut().iter_mut().find_map(|link| {
            let first = before;
            before += link.seats();
            let (seat, datagram) = link.datagram()?;
            Some((numbered(first, seat)?, datagram))
        })
    }

    /// Who sits there, once confirmed.
    pub fn member(&self, node: NodeId) -> Option<(Uid, Capabilities)> {
        let (bus, seat) = self.seat(node)?;
        self.links().get(bus)?.member(seat)
    }

    fn links(&self) -> &[MasterLink<SEATS>] {
        self.links.get(..self.buses.into()).unwrap_or_default()
    }

    fn links_mut(&mut self) -> &mut [MasterLink<SEATS>] {
        self.links.get_mut(..self.buses.into()).unwrap_or_default()
    }

    /// A bus, once all beat: they begin together.
    fn awake(&mut self, bus: usize, now: Instant) -> Option<&mut MasterLink<SEATS>> {
        if self.links().iter().any(|link| link.now().is_none()) {
            self.handle_timeout(now);
        }
        self.links_mut().get_mut(bus)
    }

    /// Seats of the buses before one.
    fn before(&self, bus: usize) -> usize {
        self.links().iter().take(bus).map(MasterLink::seats).sum()
    }

    fn node(&self, (bus, seat): Seat) -> Option<NodeId> {
        let link = self.links().get(bus)?;
        let there = seat.index() < link.seats();
        numbered(self.before(bus), seat).filter(|_| there)
    }

    fn seat(&self, node: NodeId) -> Option<Seat> {
        let mut index = node.index();
        for (bus, link) in self.links().iter().enumerate() {
            match index.checked_sub(link.seats()) {
                None => return Some((bus, NodeId::new(index as u8 + 1)?)),
                Some(rest) => index = rest,
            }
        }
        None
    }

    fn link(&mut self, node: NodeId) -> Option<(&mut MasterLink<SEATS>, NodeId)> {
        let (bus, seat) = self.seat(node)?;
        Some((self.links_mut().get_mut(bus)?, seat))
    }

    /// The seat of a member with this id on another bus.
    fn elsewhere(&self, bus: usize, uid: Uid) -> Option<NodeId> {
        let nodes = (1..=NodeId::MAX.get()).filter_map(NodeId::new);
        let mut seats = nodes.filter_map(|node| Some((node, self.seat(node)?)));
        seats.find_map(|(node, (other, seat))| {
            let (sits, _) = self.links().get(other)?.member(seat)?;
            (other != bus && sits == uid).then_some(node)
        })
    }

    /// News of one of several buses: what the core above is told of it.
    fn look_at(&mut self, bus: usize, mut event: MasterEvent) -> Option<MasterEvent> {
        match &event {
            MasterEvent::Trip => {
                let now = self.links().get(bus)?.now()?;
                for (other, link) in self.links_mut().iter_mut().enumerate() {
                    if other != bus {
                        link.trip(now);
                    }
                }
            }
            MasterEvent::Joined { node, uid, .. } => {
                if let Some(sits) = self.elsewhere(bus, *uid) {
                    self.links_mut().get_mut(bus)?.turn_out(*node);
                    return Some(MasterEvent::Duplicate {
                        node: sits,
                        uid: *uid,
                    });
                }
            }
            _ => {}
        }
        if let Some(seat) = event.node_mut()
            && let Some(node) = self.node((bus, *seat))
        {
            *seat = node;
        }
        Some(event)
    }
}

/// The seat's number in the trunk.
fn numbered(before: usize, seat: NodeId) -> Option<NodeId> {
    NodeId::new(u8::try_from(before + seat.index() + 1).ok()?)
}
