//! RS485: the beacon fixes every place, so the bounds are read off the plan that both ends use.
//!
//! Looked at are all plans that the master can announce for these members: with none to two
//! orders behind the beacon, with or without asks, and with one pair of management windows or more.

use super::{Analysis, Bound, Kind};
use crate::Schedule;
use crate::message::{Capabilities, Sync};
use crate::superframe::{Beacon, HEAD_ASKS, MAX_ORDERS, MAX_PAIRS, Place, Plan, Role, Timing};
use helio_units::{Duration, Instant};

/// Join slots that every superframe keeps.
pub const JOINS: u16 = 2;

pub fn analyse(schedule: &Schedule, slaves: impl Iterator<Item = Capabilities>) -> Analysis {
    let timing = Timing::of(schedule);
    let mut beacon = Beacon {
        sync: Sync {
            cycle: 0,
            tag: None,
            previous_us: 0,
        },
        orders: 0,
        pairs: 1,
        asks: 0,
        depth: 0,
        stretched: false,
        roles: [Role::default(); 127],
    };
    let mut count = 0u32;
    for (role, c) in beacon.roles.iter_mut().zip(slaves) {
        *role = Role::of(c);
        count += 1;
    }
    let cycle = schedule.cycle;
    let seats = schedule.seats;
    let head = timing.beacon(seats);
    // A beacon ends here; all instants below are differences to it.
    let end = Instant::ZERO + cycle;
    let mut worst = Worst::default();
    let mut busy = head;
    let asks = if timing.asks_in_pair() > 0 {
        HEAD_ASKS
    } else {
        0
    };
    let heads = (0..=MAX_ORDERS as u8).flat_map(|orders| [(orders, 0), (orders, asks)]);
    for (orders, asks) in heads {
        for pairs in 1..=MAX_PAIRS {
            (beacon.orders, beacon.asks, beacon.pairs) = (orders, asks, pairs);
            let plan = Plan::new(schedule, &beacon, end);
            // The master announces a second pair only when joining keeps its places.
            if pairs > 1 && plan.joins < JOINS {
                break;
            }
            worst.see(&plan, end, &timing);
        }
        if (orders, asks) == (0, 0) {
            beacon.pairs = 1;
            busy = head + busy_time(&Plan::new(schedule, &beacon, end), &timing);
        }
    }
    // A minislot that was just missed, and the first of the next superframe with all its orders.
    let next_head = end + cycle + worst.latest_head;
    let gap = worst.gap.max(next_head.since(worst.last_minislot));
    // Whoever trips holds the line for this long, and clocks differ by less than a guard.
    let trip = gap + timing.brk + timing.guard;
    let fixed = |span: Duration| span + timing.guard;
    let state = worst.state_end;
    // A second before what is left: windows, places to join, the next beacon. Asks take from those to join.
    let room = {
        let tail = timing.tail(JOINS, seats);
        let room = Duration::from_nanos(cycle.as_nanos().saturating_sub(tail.as_nanos()));
        room + worst.shift - worst.orders
    };
    let ranges = worst.ranges_end > Duration::ZERO;
    let mut bounds = heapless::Vec::new();
    let mut add = |kind, count, response, deadline| {
        let _ = bounds.push(Bound {
            kind,
            count,
            response: Some(response),
            deadline,
        });
    };
    add(Kind::Trip, 1, trip, None);
    if count > 0 {
        let alarm = cycle + worst.shift + worst.longest_state;
        add(Kind::Alarm, count, fixed(alarm), Some(cycle * 2));
    }
    // Beacon and orders come in one run, which receivers take at its end.
    add(Kind::Sync, 1, fixed(head + worst.orders), None);
    let order = cycle + head + worst.latest_head;
    add(Kind::Order, MAX_ORDERS as u32, fixed(order), None);
    if count > 0 {
        let deadline = (!ranges).then_some(room);
        add(Kind::State, count, fixed(state), deadline);
    }
    if ranges {
        let taken = worst.ranging;
        let response =
            Duration::from_nanos((worst.ranges_end.as_nanos()).saturating_sub(taken.as_nanos()));
        // The windows stand before them.
        let room = room + timing.pair();
        let left = Duration::from_nanos(room.as_nanos().saturating_sub(taken.as_nanos()));
        add(
            Kind::Ranges,
            worst.ranging_slots,
            fixed(response),
            Some(left),
        );
    }
    let load = u128::from(busy.as_nanos()) * 1_000_000;
    let load = load.checked_div(u128::from(cycle.as_nanos()));
    Analysis {
        bounds,
        load_ppm: load.map_or(u32::MAX, |l| u32::try_from(l).unwrap_or(u32::MAX)),
    }
}

/// What the plans have in common at worst; spans from the end of the beacon.
struct Worst {
    /// Between the starts of two minislots that follow each other.
    gap: Duration,
    /// Start of the earliest last minislot.
    last_minislot: Instant,
    /// Start of the latest first minislot.
    latest_head: Duration,
    /// End of the latest slot of a state.
    state_end: Duration,
    longest_state: Duration,
    /// All orders behind a beacon.
    orders: Duration,
    /// How much later the same slot can be in another plan.
    shift: Duration,
    ranges_end: Duration,
    /// When ranges are taken, at the earliest.
    ranging: Duration,
    ranging_slots: u32,
}

impl Default for Worst {
    fn default() -> Self {
        Self {
            gap: Duration::ZERO,
            last_minislot: Instant::MAX,
            latest_head: Duration::ZERO,
            state_end: Duration::ZERO,
            longest_state: Duration::ZERO,
            orders: Duration::ZERO,
            shift: Duration::ZERO,
            ranges_end: Duration::ZERO,
            ranging: Duration::from_nanos(u64::MAX),
            ranging_slots: 0,
        }
    }
}

impl Worst {
    fn see(&mut self, plan: &Plan, end: Instant, timing: &Timing) {
        let mut before: Option<Instant> = None;
        let mut slots = 0;
        for (place, start, minislot) in plan.places() {
            let frame_end = minislot - timing.guard;
            match place {
                Place::Head => {
                    self.latest_head = self.latest_head.max(minislot.since(end));
                    self.orders = self.orders.max(plan.origin().since(end));
                    self.shift = self.shift.max(self.orders);
                }
                Place::Asks => {
                    let over = minislot + timing.brk + timing.guard;
                    let usual = timing.guard * 2 + timing.brk;
                    self.shift = self.shift.max(over.since(end) - usual);
                }
                Place::State(_) => {
                    self.state_end = self.state_end.max(frame_end.since(end));
                    self.longest_state = self.longest_state.max(frame_end.since(start));
                }
                Place::Ranges(_) => {
                    slots += 1;
                    self.ranges_end = self.ranges_end.max(frame_end.since(end));
                }
                Place::ToSlave | Place::ToMaster | Place::Join => {}
            }
            if let Some(before) = before {
                self.gap = self.gap.max(minislot.since(before));
            }
            before = Some(minislot);
        }
        self.ranging_slots = self.ranging_slots.max(slots);
        let taken = (plan.ranges - crate::slave::RANGING).max(end);
        self.ranging = self.ranging.min(taken.since(end));
        if let Some(last) = before {
            self.last_minislot = self.last_minislot.min(last);
        }
    }
}

/// Time in which somebody speaks every superframe.
fn busy_time(plan: &Plan, timing: &Timing) -> Duration {
    let spoken = plan.places().filter(|(place, ..)| *place != Place::Join);
    spoken.fold(Duration::ZERO, |sum, (_, start, minislot)| {
        let span = (minislot - timing.guard).since(start);
        sum + span
    })
}
