//! RS485: the beacon fixes every place, so the bounds are read off the plan that both ends use.
//!
//! Looked at are all plans that the master can announce for these members: with none to two
//! orders behind the beacon, with or without asks, and with one pair of management windows or more.

use super::{Analysis, Bound, Census, Kind, Overfull};
use crate::Schedule;
use crate::message::{Capabilities, Sync};
use crate::slave::RANGING;
use crate::superframe::{Beacon, LENGTHS, MAX_ORDERS, MAX_PAIRS, Place, Plan, Role, Timing};
use helio_units::{Duration, Instant};

/// Join slots that every superframe keeps: they are never given to datagrams.
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
    let asks = timing.head_asks();
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
    // A minislot that was just missed, and the first of the next superframe.
    let next = end + cycle + worst.latest_first;
    let gap = worst.gap.max(next.since(worst.last_minislot));
    // Whoever trips holds the line for this long, and clocks differ by less than a guard.
    let trip = gap + timing.brk + timing.guard;
    let fixed = |span: Duration| span + timing.guard;
    let mut bounds = heapless::Vec::new();
    let mut add = |kind, count, response| {
        let _ = bounds.push(Bound {
            kind,
            count,
            response: Some(response),
            deadline: None,
        });
    };
    add(Kind::Trip, 1, trip);
    // Beacon and orders come in one run, which receivers take at its end.
    add(Kind::Sync, 1, fixed(head + worst.spans.orders));
    let order = cycle + head + worst.latest_head;
    add(Kind::Order, MAX_ORDERS as u32, fixed(order));
    let [alarm, state, ranges] = worst.spans.bounds(schedule, &timing, count);
    if let Some(alarm) = alarm {
        let _ = bounds.insert(1, alarm);
    }
    bounds.extend([state, ranges].into_iter().flatten());
    let load = u128::from(busy.as_nanos()) * 1_000_000;
    let load = load.checked_div(u128::from(cycle.as_nanos()));
    Analysis {
        bounds,
        load_ppm: load.map_or(u32::MAX, |l| u32::try_from(l).unwrap_or(u32::MAX)),
    }
}

/// Whether these slaves fit: what [`analyse`] finds in the plans, reckoned from how many there are.
pub fn judge(schedule: &Schedule, census: Census) -> Result<(), Overfull> {
    let timing = Timing::of(schedule);
    let Census {
        slaves,
        detailed,
        ranging,
        many,
        ..
    } = census;
    let slots = |each: Duration, count: u32| (each + timing.mini()) * count.into();
    let [summary, state, few, all] = LENGTHS.map(|len| timing.run(len));
    let behind_states = if slaves > 0 {
        timing.call()
    } else {
        Duration::ZERO
    };
    let calls = timing.call() * timing.calls_at_states(slaves);
    let states =
        slots(state, detailed) + slots(summary, slaves - detailed) + less(calls, timing.call());
    let ranges = slots(few, ranging - many)
        + slots(all, many)
        + timing.call() * timing.calls_at_ranges(ranging);
    let pair = behind_states + timing.pair();
    let orders = timing.orders(schedule.seats);
    // Behind the beacon, or none.
    let asks = match timing.head_asks() {
        0 => Duration::ZERO,
        asks => timing.ask() * asks.into() - timing.guard + timing.mini(),
    };
    let shift = orders + asks;
    let spans = Spans {
        orders,
        shift,
        state_end: shift + states,
        longest_state: if detailed > 0 { state } else { summary },
        ranges_end: match ranging {
            0 => Duration::ZERO,
            _ => shift + states + pair + ranges,
        },
        ranging: less(timing.mini() + states + pair, RANGING),
        ranging_slots: ranging,
    };
    let bounds = spans.bounds(schedule, &timing, slaves);
    let late = bounds.into_iter().flatten().find(|b| !b.holds());
    late.map_or(Ok(()), |bound| Err(Overfull(bound)))
}

fn less(a: Duration, b: Duration) -> Duration {
    Duration::from_nanos(a.as_nanos().saturating_sub(b.as_nanos()))
}

/// What decides whether slaves fit; spans from the end of the beacon.
struct Spans {
    /// All orders behind a beacon.
    orders: Duration,
    /// How much later the same slot can be in another plan.
    shift: Duration,
    /// End of the latest slot of a state.
    state_end: Duration,
    longest_state: Duration,
    /// End of the latest slot of ranges.
    ranges_end: Duration,
    /// When ranges are taken, at the earliest.
    ranging: Duration,
    ranging_slots: u32,
}

impl Spans {
    /// Of alarms, states and ranges, where there are any.
    fn bounds(&self, schedule: &Schedule, timing: &Timing, slaves: u32) -> [Option<Bound>; 3] {
        let cycle = schedule.cycle;
        let bound = |kind, count, span: Duration, deadline| {
            (count > 0).then_some(Bound {
                kind,
                count,
                response: Some(span + timing.guard),
                deadline,
            })
        };
        // A second before what is left: windows, places to join, the next beacon. Asks take from those to join.
        let room = less(cycle, timing.tail(JOINS, schedule.seats)) + self.shift - self.orders;
        let alone = self.ranging_slots == 0;
        let alarm = cycle + self.shift + self.longest_state;
        [
            bound(Kind::Alarm, slaves, alarm, Some(cycle * 2)),
            bound(Kind::State, slaves, self.state_end, alone.then_some(room)),
            bound(
                Kind::Ranges,
                self.ranging_slots,
                less(self.ranges_end, self.ranging),
                // The windows stand before them.
                Some(less(room + timing.pair(), self.ranging)),
            ),
        ]
    }
}

/// What the plans have in common at worst; spans from the end of the beacon.
struct Worst {
    /// Between the starts of two minislots that follow each other.
    gap: Duration,
    /// Start of the earliest last minislot.
    last_minislot: Instant,
    /// Start of the latest first minislot, and of the one behind beacon and orders.
    latest_first: Duration,
    latest_head: Duration,
    spans: Spans,
}

impl Default for Worst {
    fn default() -> Self {
        Self {
            gap: Duration::ZERO,
            last_minislot: Instant::MAX,
            latest_first: Duration::ZERO,
            latest_head: Duration::ZERO,
            spans: Spans {
                orders: Duration::ZERO,
                shift: Duration::ZERO,
                state_end: Duration::ZERO,
                longest_state: Duration::ZERO,
                ranges_end: Duration::ZERO,
                ranging: Duration::from_nanos(u64::MAX),
                ranging_slots: 0,
            },
        }
    }
}

impl Worst {
    fn see(&mut self, plan: &Plan, end: Instant, timing: &Timing) {
        let spans = &mut self.spans;
        let mut slots = 0;
        plan.places(&mut |place, start, minislot| {
            let frame_end = minislot - timing.guard;
            match place {
                Place::Head => {
                    self.latest_head = self.latest_head.max(minislot.since(end));
                    spans.orders = spans.orders.max(plan.origin().since(end));
                    spans.shift = spans.shift.max(spans.orders);
                }
                Place::Asks => {
                    let over = minislot + timing.brk + timing.guard;
                    spans.shift = spans.shift.max(over.since(end) - timing.mini());
                }
                Place::State(_) => {
                    spans.state_end = spans.state_end.max(frame_end.since(end));
                    spans.longest_state = spans.longest_state.max(frame_end.since(start));
                }
                Place::Ranges(_) => {
                    slots += 1;
                    spans.ranges_end = spans.ranges_end.max(frame_end.since(end));
                }
                Place::Call | Place::ToSlave | Place::ToMaster | Place::Join | Place::Idle => {}
            }
            false
        });
        spans.ranging_slots = spans.ranging_slots.max(slots);
        let taken = (plan.ranges - RANGING).max(end);
        spans.ranging = spans.ranging.min(taken.since(end));
        let mut before: Option<Instant> = None;
        plan.minislots(&mut |minislot| {
            if minislot < end {
                return false;
            }
            match before {
                Some(before) => self.gap = self.gap.max(minislot.since(before)),
                None => self.latest_first = self.latest_first.max(minislot.since(end)),
            }
            before = Some(minislot);
            false
        });
        if let Some(last) = before {
            self.last_minislot = self.last_minislot.min(last);
        }
    }
}

/// Time in which somebody speaks every superframe.
fn busy_time(plan: &Plan, timing: &Timing) -> Duration {
    let silent = [Place::Call, Place::Join, Place::Idle];
    let mut sum = Duration::ZERO;
    plan.places(&mut |place, start, minislot| {
        if !silent.contains(&place) {
            sum = sum + (minislot - timing.guard).since(start);
        }
        false
    });
    sum
}
