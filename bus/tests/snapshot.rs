//! Details on CAN 2.0: in turn, and now and then all of one sample.

mod common;
use common::{node, uid};
use helio_bus::*;
use helio_units::*;

const SLAVE: Capabilities = Capabilities {
    cells: 16,
    temps: 8,
    anchors: 1,
};

/// A master and its only member; the bus takes a frame from the slave whenever it is asked to.
struct Pair {
    now: Instant,
    master: MasterLink,
    slave: SlaveLink,
    /// What the master was told since it was asked, and the mailbox by which it came.
    told: Vec<(Mailbox, Message)>,
}

impl Pair {
    /// Joined, at the start of the cycle of this number.
    fn new(cycle: u8) -> Self {
        let schedule = Schedule::for_bus(BusKind::Can1M).with_snapshots();
        let mut pair = Self {
            now: Instant::from_millis(1),
            master: MasterLink::new(schedule),
            slave: SlaveLink::new(schedule, uid(1), SLAVE),
            told: vec![],
        };
        pair.master.set_session(cycle.wrapping_sub(3));
        pair.master.set_tags(&[TagId(1)]);
        for _ in 0..2 {
            pair.start_cycle();
            (0..9).for_each(|_| pair.transmit());
        }
        assert_eq!(pair.slave.node(), Some(node(1)));
        pair.start_cycle();
        pair
    }

    /// SYNC, at which every cell shows the number of the cycle; nothing of the slave goes out yet.
    fn start_cycle(&mut self) {
        let cycle = self.master.schedule().cycle;
        let begun = self.now.since(Instant::from_millis(1)).as_nanos() / cycle.as_nanos();
        self.now = Instant::from_millis(1) + cycle * (begun + 1);
        self.master.handle_timeout(self.now);
        let out = self.master.poll_can(self.now, Mailbox::Urgent);
        let sync = out.expect("a cycle begins with SYNC").frame;
        self.master.handle_sent(self.now, Mailbox::Urgent);
        self.slave.handle_can(self.now, &sync);
        while let Some(event) = self.slave.poll_event() {
            if let SlaveEvent::Sync { cycle, tag } = event {
                let mut state = State::default();
                state.cells.0 = [Some(mv(cycle)); MAX_CELLS];
                self.slave.set_state(self.now, &state);
                assert_eq!(tag.is_none(), self.slave.schedule().is_snapshot(cycle));
            }
        }
        self.told.clear();
    }

    /// One frame from each mailbox of both.
    fn transmit(&mut self) {
        self.now += Duration::from_micros(200);
        for mailbox in Mailbox::ALL {
            if let Some(out) = self.slave.poll_can(self.now, mailbox) {
                self.slave.handle_sent(self.now, mailbox);
                self.master.handle_can(self.now, &out.frame);
            }
            if let Some(out) = self.master.poll_can(self.now, mailbox) {
                self.master.handle_sent(self.now, mailbox);
                self.slave.handle_can(self.now, &out.frame);
            }
            while let Some(event) = self.master.poll_event() {
                if let MasterEvent::Message(message) = event {
                    self.told.push((mailbox, message));
                }
            }
        }
    }

    /// By what mailbox each detail came, which one it is, and the cycle in which it was measured.
    fn details(&self) -> Vec<(Mailbox, u8, Option<Millivolts>)> {
        let detail = |(mailbox, message): &(Mailbox, Message)| match message {
            Message::CellChunk { first, cells, .. } => Some((*mailbox, first / 4, cells[0])),
            Message::TempChunk { first, .. } => Some((*mailbox, *first, None)),
            _ => None,
        };
        self.told.iter().filter_map(detail).collect()
    }
}

fn mv(cycle: u8) -> Millivolts {
    Millivolts(3_000 + u16::from(cycle))
}

#[test]
fn in_a_snapshot_a_slave_says_all_its_details_of_one_sample() {
    let mut pair = Pair::new(128);
    (0..5).for_each(|_| pair.transmit());
    let measured = Some(mv(128));
    let expected: Vec<_> = (0..4).map(|n| (Mailbox::Management, n, measured)).collect();
    assert_eq!(pair.details()[..4], expected);
    // Sensors of which there are more than fours of cells.
    assert_eq!(pair.details()[4..], [(Mailbox::Management, 4, None)]);
}

#[test]
fn what_is_left_of_a_snapshot_is_said_in_the_next_cycle_and_is_not_newer() {
    let mut pair = Pair::new(128);
    (0..2).for_each(|_| pair.transmit());
    assert_eq!(pair.details().len(), 2);
    pair.start_cycle();
    (0..9).for_each(|_| pair.transmit());
    let measured = Some(mv(128));
    let expected = [
        (Mailbox::Management, 2, measured),
        (Mailbox::Management, 3, measured),
        (Mailbox::Management, 4, None),
    ];
    assert_eq!(pair.details(), expected);
    // The summary of this cycle did not wait for them.
    assert!(matches!(
        pair.told[0],
        (Mailbox::Cyclic, Message::Summary(..))
    ));
    assert_eq!(pair.slave.stats().overwritten, 0);
    // From the next cycle on they come in turn again.
    for turn in 0..5 {
        pair.start_cycle();
        (0..9).for_each(|_| pair.transmit());
        let (mailbox, n, _) = pair.details()[0];
        assert_eq!(
            (mailbox, n, pair.details().len()),
            (Mailbox::Cyclic, turn, 1)
        );
    }
}

#[test]
fn datagrams_rest_from_the_cycle_before_a_snapshot_to_the_one_behind_it() {
    let mut pair = Pair::new(255);
    let datagram = [0x5a; 300];
    pair.slave.send_datagram(&datagram).expect("a member");
    for waits in [true, true, true, false] {
        (0..80).for_each(|_| pair.transmit());
        let came = pair.master.datagram().map(|(_, bytes)| bytes.to_vec());
        assert_eq!(came, (!waits).then(|| datagram.to_vec()));
        pair.start_cycle();
    }
}

#[test]
fn an_isolated_slave_says_no_details_in_a_snapshot_either() {
    let mut pair = Pair::new(127);
    let to = pair.slave.node();
    let order = Order::Isolate(true);
    pair.master.command(Command { to, order }).expect("room");
    (0..9).for_each(|_| pair.transmit());
    for _ in 0..2 {
        pair.start_cycle();
        (0..9).for_each(|_| pair.transmit());
        assert!(matches!(pair.told[..], [(_, Message::Summary(..))]));
    }
}
