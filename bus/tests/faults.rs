//! The faults of AUTOSAR's end-to-end list, and truncation, each against every cyclic message of CAN and
//! CAN FD in both directions. `docs/bus.md` names these tests; those of RS485 are in `serial.rs`.

mod common;
use common::{node, uid};
use helio_bus::*;
use helio_units::*;

const KINDS: [BusKind; 2] = [BusKind::Can1M, BusKind::CanFd];
const SLAVE: Capabilities = Capabilities {
    cells: 18,
    temps: 8,
    anchors: 16,
};

/// A master and its only member, on seat 1.
struct Pair {
    now: Instant,
    fd: bool,
    master: MasterLink,
    slave: SlaveLink,
}

impl Pair {
    fn new(kind: BusKind) -> Self {
        let schedule = Schedule::for_bus(kind);
        let mut pair = Self {
            now: Instant::from_millis(1),
            fd: kind == BusKind::CanFd,
            master: MasterLink::new(schedule),
            slave: SlaveLink::new(schedule, uid(1), SLAVE),
        };
        for _ in 0..8 {
            pair.exchange();
        }
        // Nothing cyclic is believed of a member before the cycle after its joining.
        pair.now += schedule.cycle;
        for _ in 0..8 {
            pair.exchange();
        }
        assert_eq!(pair.slave.node(), Some(node(1)));
        assert!(pair.master.member(node(1)).is_some());
        pair.news();
        pair
    }

    /// Everything that both have to say now.
    fn exchange(&mut self) {
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
        }
    }

    fn half_a_cycle(&mut self) {
        let cycle = self.master.schedule().cycle;
        self.now += Duration::from_nanos(cycle.as_nanos() / 2);
    }

    fn news(&mut self) -> Vec<MasterEvent> {
        while self.slave.poll_event().is_some() {}
        std::iter::from_fn(|| self.master.poll_event()).collect()
    }

    /// Whether this frame makes its receiver act: it is delivered, or obeyed.
    fn acts(&mut self, frame: &CanFrame) -> bool {
        let to_slave = matches!(frame.id, CanId::Standard(id) if (2..=3).contains(&(id >> 7)));
        if !to_slave {
            // More than that is a babbler's.
            self.half_a_cycle();
            self.master.handle_can(self.now, frame);
            let news = std::iter::from_fn(|| self.master.poll_event());
            return news.fold(false, |acts, e| acts | matches!(e, MasterEvent::Message(_)));
        }
        self.now += Duration::from_micros(300);
        if slave_accepts(frame.id, self.slave.node()) {
            self.slave.handle_can(self.now, frame);
        }
        let news = std::iter::from_fn(|| self.slave.poll_event());
        news.fold(false, |acts, e| {
            acts | matches!(e, SlaveEvent::Sync { .. } | SlaveEvent::Order(_))
        })
    }

    /// What the master found wrong with this frame.
    fn fault(&mut self, frame: &CanFrame) -> Vec<E2eFault> {
        self.half_a_cycle();
        self.master.handle_can(self.now, frame);
        let news = std::iter::from_fn(|| self.master.poll_event());
        news.filter_map(|e| match e {
            MasterEvent::Rejected { fault, .. } => Some(fault),
            _ => None,
        })
        .collect()
    }
}

/// One message of every class that this bus has, from or to the member on seat `n`.
fn messages(fd: bool, n: u8) -> Vec<Message> {
    let node = node(n);
    let mut all = vec![
        Message::Alarm(
            node,
            Alarm {
                code: 3,
                severity: Severity::Trip,
                active: true,
                index: 4,
                value: 4_250,
            },
        ),
        Message::Sync(Sync {
            cycle: 7,
            tag: Some(TagId(1)),
            previous_us: 123_456,
        }),
        Message::Command(Command {
            to: Some(node),
            order: Order::Gate(true),
        }),
    ];
    if fd {
        all.push(Message::State(node, common::state_of(1)));
        all.push(Message::Ranges(
            node,
            Ranges {
                tag: TagId(1),
                range: [Some(Millimetres(2_000)); 16],
            },
        ));
        return all;
    }
    all.push(Message::Summary(node, common::state_of(1).summary));
    for first in [0, 4, 8, 12, 16] {
        let cells = [Some(Millivolts(3_600)); 4];
        all.push(Message::CellChunk {
            node,
            first,
            cells,
            temp: Some(DeciCelsius(250)),
        });
    }
    all.push(Message::TempChunk {
        node,
        first: 5,
        temps: [Some(DeciCelsius(250)); 6],
    });
    all.push(Message::RangeChunk {
        node,
        tag: TagId(1),
        first: 0,
        range: [Some(Millimetres(2_000)); 2],
    });
    all
}

/// Runs `check` with a fresh pair for each message.
fn each(check: impl Fn(&mut Pair, &dyn Fn(u8) -> CanFrame, &Message)) {
    for kind in KINDS {
        for message in messages(kind == BusKind::CanFd, 1) {
            let mut pair = Pair::new(kind);
            // Counters behind those of joining, which SYNC has had its part in.
            let fd = pair.fd;
            let frame = move |counter: u8| {
                let mask = if matches!(message, Message::State(..) | Message::Ranges(..)) {
                    0xff
                } else {
                    0xf
                };
                encode_can(&message, counter.wrapping_add(2) & mask, fd).expect("fits")
            };
            check(&mut pair, &frame, &message);
        }
    }
}

#[test]
fn a_repeated_message_is_dropped() {
    each(|pair, frame, message| {
        assert!(pair.acts(&frame(0)), "{message:?}");
        assert!(!pair.acts(&frame(0)), "{message:?}");
        assert!(pair.acts(&frame(1)), "{message:?}");
    });
}

#[test]
fn a_lost_message_is_counted_and_the_next_one_is_good() {
    each(|pair, frame, message| {
        assert!(pair.acts(&frame(0)), "{message:?}");
        let from_slave = !matches!(message, Message::Sync(_) | Message::Command(_));
        if from_slave {
            assert_eq!(pair.fault(&frame(3)), [E2eFault::Lost(2)], "{message:?}");
        } else {
            assert!(pair.acts(&frame(3)), "{message:?}");
        }
    });
}

#[test]
fn a_delayed_message_is_not_delivered_behind_newer_ones() {
    each(|pair, frame, message| {
        assert!(pair.acts(&frame(0)) && pair.acts(&frame(2)), "{message:?}");
        assert!(!pair.acts(&frame(1)), "{message:?}");
        assert!(pair.acts(&frame(3)), "{message:?}");
    });
}

#[test]
fn messages_that_all_come_late_end_the_membership() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let dead = pair.now + pair.master.schedule().silence * 2;
        while pair.now < dead {
            pair.now += Duration::from_millis(1);
            pair.master.handle_timeout(pair.now);
        }
        let left = |e: &MasterEvent| {
            matches!(
                e,
                MasterEvent::Left {
                    reason: LeaveReason::Silence,
                    ..
                }
            )
        };
        assert!(pair.news().iter().any(left), "{kind:?}");
        // A slave that no longer hears its master gives up its seat.
        let silent = pair.now + pair.slave.schedule().master_silence;
        pair.slave.handle_timeout(silent);
        assert_eq!(pair.slave.node(), None, "{kind:?}");
    }
}

#[test]
fn messages_in_the_wrong_order_are_dropped_until_two_are_in_order() {
    each(|pair, frame, message| {
        assert!(pair.acts(&frame(5)), "{message:?}");
        for back in [4, 2, 3, 1] {
            let in_order = back == 3;
            assert_eq!(pair.acts(&frame(back)), in_order, "{message:?} {back}");
        }
    });
}

#[test]
fn a_message_inserted_from_a_seat_without_member_is_not_delivered() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        for message in messages(pair.fd, 2) {
            if matches!(message, Message::Sync(_)) {
                continue; // has no seat: a second master, told by its counters
            }
            let frame = encode_can(&message, 1, pair.fd).expect("fits");
            assert!(!pair.acts(&frame), "{message:?}");
        }
    }
}

#[test]
fn messages_inserted_beside_those_of_a_member_are_found() {
    each(|pair, frame, message| {
        for n in 0..3 {
            assert!(pair.acts(&frame(n)), "{message:?}");
        }
        // The member goes on with its own counters, of which some are now old.
        let dropped = (0..3).filter(|n| !pair.acts(&frame(*n))).count();
        assert!(dropped >= 1, "{message:?}");
    });
}

#[test]
fn a_message_under_another_identifier_is_no_message() {
    // Masquerade, and wrong address: the data id in the check is the identifier's.
    for kind in KINDS {
        let fd = kind == BusKind::CanFd;
        for message in messages(fd, 1) {
            let good = encode_can(&message, 1, fd).expect("fits");
            let CanId::Standard(own) = good.id else {
                panic!("cyclic messages have short identifiers")
            };
            for id in (0x80..0x800).filter(|id| *id != own) {
                let posing = CanFrame::new(CanId::Standard(id), fd, good.data()).expect("fits");
                let told = decode_can(&posing).ok();
                // Of 1919 other identifiers an 8-bit check takes about seven; that one bit or two
                // lead to none of them is what counts.
                let near = (id ^ own).count_ones() <= 2;
                assert!(told.is_none() || !near, "{message:?} as {id:x}");
            }
        }
    }
}

#[test]
fn an_order_for_another_slave_is_not_obeyed() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let order = Message::Command(Command {
            to: Some(node(2)),
            order: Order::Gate(true),
        });
        let frame = encode_can(&order, 1, pair.fd).expect("fits");
        // Even past the acceptance filter.
        pair.slave.handle_can(pair.now, &frame);
        let events: Vec<_> = std::iter::from_fn(|| pair.slave.poll_event()).collect();
        assert!(!events.iter().any(|e| matches!(e, SlaveEvent::Order(_))));
    }
}

#[test]
fn every_corruption_of_one_or_two_bits_is_noticed() {
    for kind in KINDS {
        let fd = kind == BusKind::CanFd;
        for message in messages(fd, 1) {
            let good = encode_can(&message, 1, fd).expect("fits");
            let bits = good.data().len() * 8;
            for a in 0..bits {
                for b in a..bits {
                    let mut data = good.data().to_vec();
                    data[a / 8] ^= 1 << (a % 8);
                    if b != a {
                        data[b / 8] ^= 1 << (b % 8);
                    }
                    let damaged = CanFrame::new(good.id, fd, &data).expect("fits");
                    assert!(decode_can(&damaged).is_err(), "{message:?} {a} {b}");
                }
            }
        }
    }
}

#[test]
fn a_truncated_or_lengthened_message_is_noticed() {
    for kind in KINDS {
        let fd = kind == BusKind::CanFd;
        for message in messages(fd, 1) {
            let good = encode_can(&message, 1, fd).expect("fits");
            for len in [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24, 32, 48, 64] {
                let mut data = good.data().to_vec();
                data.resize(len, 0);
                if len != good.data().len()
                    && let Some(frame) = CanFrame::new(good.id, fd, &data)
                {
                    assert!(decode_can(&frame).is_err(), "{message:?} {len}");
                }
            }
        }
    }
}

#[test]
fn a_trip_is_empty_or_none() {
    let trip = |data: &[u8], fd| CanFrame::new(CanId::Standard(0), fd, data).expect("fits");
    assert!(decode_can(&trip(&[], false)).is_ok());
    assert!(decode_can(&trip(&[], true)).is_err());
    assert!(decode_can(&trip(&[0], false)).is_err());
}

#[test]
fn a_trip_has_a_mailbox_when_frames_of_its_own_slave_fill_the_others() {
    for kind in KINDS {
        let mut pair = Pair::new(kind);
        let (now, slave) = (pair.now, &mut pair.slave);
        slave.send_datagram(&[7; 100]).expect("it sits");
        slave.alarm(
            now,
            Alarm {
                code: 1,
                severity: Severity::Warn,
                active: true,
                index: 0,
                value: 0,
            },
        );
        let sync = loop {
            pair.half_a_cycle();
            pair.master.handle_timeout(pair.now);
            if let Some(out) = pair.master.poll_can(pair.now, Mailbox::Urgent) {
                break out.frame;
            }
        };
        let (now, slave) = (pair.now, &mut pair.slave);
        slave.handle_can(now, &sync);
        slave.set_state(now, &State::default());
        for mailbox in [Mailbox::Urgent, Mailbox::Cyclic, Mailbox::Management] {
            assert!(
                slave.poll_can(now, mailbox).is_some(),
                "{kind:?} {mailbox:?}"
            );
        }
        assert_eq!(slave.poll_can(now, Mailbox::Trip), None);
        slave.trip(now);
        let trip = slave.poll_can(now, Mailbox::Trip).expect("its own").frame;
        assert!(matches!(
            decode_can(&trip).map(|d| d.message),
            Ok(Message::Trip)
        ));
        // Where no mailbox is kept for it, it takes the first that is free again.
        slave.handle_sent(now, Mailbox::Trip);
        slave.trip(now);
        slave.handle_sent(now, Mailbox::Cyclic);
        let out = slave.poll_can(now, Mailbox::Cyclic).map(|out| out.frame);
        assert_eq!(out, Some(trip), "{kind:?}");
    }
}
