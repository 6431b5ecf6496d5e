//! The newest of everything, and ten minutes of the pack's figures: what the page shows.
//!
//! Messages go in by [`Store::handle_message`]; [`Store::poll_request`] says what to publish to
//! have missing records again. [`Store::view`] gives what changed since a revision: each change
//! of a slave, a tag or an event takes the next number, and whoever looks remembers up to which
//! it has seen.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use helio_bridge::topic::{Presence, Range, Topics};
use helio_link::types::{
    Data, EventRecord, Map, NodeState, PackRecord, Record, Severity, SlaveRecord, Status, TagRecord,
};
use serde::{Deserialize, Serialize};

use crate::tracker::{Arrival, Counts, Tracker};

/// Seconds of history, one point each.
pub const HISTORY: usize = 600;
/// Events kept per master.
pub const EVENTS: usize = 200;
/// Masters per site; further ones are ignored.
const MASTERS: usize = 64;

/// See the module.
pub struct Store {
    site: String,
    masters: BTreeMap<String, Master>,
    rev: u64,
    online: bool,
}

/// One master as far as we know.
struct Master {
    topics: Topics,
    tracker: Tracker,
    presence: Presence,
    status: Option<Status>,
    pack: Option<Newest<PackRecord>>,
    slaves: BTreeMap<u8, Slave>,
    tags: BTreeMap<u16, Newest<TagRecord>>,
    events: VecDeque<Event>,
    map: Option<Map>,
    map_rev: u64,
    /// With the revision of each.
    history: VecDeque<(u64, Point)>,
    /// Start of the run shown, as [`Tracker`] names it.
    boot: u64,
    /// All below was said to be gone: a viewer that has seen less starts over.
    reset_rev: u64,
}

/// Order of records: run, then number.
type Key = (u64, u64);

#[derive(Serialize)]
struct Newest<T> {
    #[serde(skip)]
    rev: u64,
    #[serde(skip)]
    key: Key,
    /// Unix time in ms, by the clock of the bridge.
    at_ms: u64,
    #[serde(flatten)]
    what: T,
}

#[derive(Serialize)]
struct Slave {
    #[serde(skip)]
    rev: u64,
    #[serde(skip)]
    key: Key,
    /// When `state` was so, since the master started.
    #[serde(skip)]
    state_us: u64,
    at_ms: u64,
    #[serde(flatten)]
    what: SlaveRecord,
    /// Luminaires or receivers; from the status.
    anchors: u8,
}

#[derive(Serialize)]
struct Event {
    #[serde(skip)]
    rev: u64,
    #[serde(skip)]
    key: Key,
    /// Distinguishes events of one master.
    id: u64,
    at_ms: u64,
    #[serde(flatten)]
    what: EventRecord,
}

/// The pack in one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Point {
    /// Unix time in s.
    pub at_s: u64,
    /// As in the record of that second that came last.
    pub voltage_mv: Option<u32>,
    /// Discharge positive.
    pub current_ma: Option<i32>,
    /// State of charge.
    pub soc_ppm: Option<u32>,
    /// Lowest cell.
    pub cell_min_mv: Option<u16>,
    /// Highest cell.
    pub cell_max_mv: Option<u16>,
    /// Bus load.
    pub load_ppm: u32,
    /// Longest time from sample to master.
    pub latency_max_us: Option<u32>,
}

/// A line of the list of masters.
#[derive(Serialize)]
pub struct Summary<'a> {
    name: &'a str,
    online: bool,
    state: Option<helio_link::types::PackState>,
    soc_ppm: Option<u32>,
    bus: Option<&'a str>,
    members: u16,
    expected: u16,
}

/// What a viewer is told: all that changed after the revision it knew.
#[derive(Serialize)]
pub struct View<'a> {
    /// To be named next time.
    pub rev: u64,
    /// Whether what the viewer knew of this master is void.
    reset: bool,
    now_ms: u64,
    site: &'a str,
    /// Whether we are connected to the broker.
    broker: bool,
    masters: Vec<Summary<'a>>,
    name: &'a str,
    /// Of the bridge.
    bridge: &'a Presence,
    records: Counts,
    bus: Option<&'a str>,
    uptime_ms: Option<u64>,
    nodes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pack: Option<&'a Newest<PackRecord>>,
    slaves: Vec<&'a Slave>,
    tags: Vec<&'a Newest<TagRecord>>,
    events: Vec<&'a Event>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map: Option<&'a Map>,
    /// Oldest first; only what is new.
    history: Vec<Point>,
}

#[derive(Deserialize)]
struct RecordTold {
    boot: u64,
    #[serde(flatten)]
    record: Record,
}

#[derive(Deserialize)]
struct StatusTold {
    boot: u64,
    forwarded: u64,
    #[serde(flatten)]
    status: Status,
}

impl Store {
    /// Nothing known yet of this site.
    pub fn new(site: &str) -> Self {
        Self {
            site: site.into(),
            masters: BTreeMap::new(),
            rev: 0,
            online: false,
        }
    }

    /// Whether we are connected to the broker.
    pub fn handle_online(&mut self, online: bool) {
        self.online = online;
    }

    /// As last told by [`Self::handle_online`].
    pub fn online(&self) -> bool {
        self.online
    }

    /// Takes in what the broker delivered. `false`: it was not for us or not to be understood.
    pub fn handle_message(&mut self, now: Instant, topic: &str, payload: &[u8]) -> bool {
        let Some((site, name, rest)) = Topics::split(topic) else {
            return false;
        };
        if site != self.site {
            return false;
        }
        if !self.masters.contains_key(name) {
            let Some(topics) = Topics::new(site, name).filter(|_| self.masters.len() < MASTERS)
            else {
                return false;
            };
            self.masters.insert(name.into(), Master::new(topics));
        }
        self.rev += 1;
        let rev = self.rev;
        let Some(master) = self.masters.get_mut(name) else {
            return false;
        };
        match rest {
            "status" => parse(payload).map(|told: StatusTold| master.handle_status(rev, now, told)),
            "bridge" => parse(payload).map(|presence| master.presence = presence),
            "map" => parse(payload).map(|map| (master.map, master.map_rev) = (Some(map), rev)),
            "lost" => parse(payload).map(|range| master.handle_lost(rev, now, range)),
            // Our own, or another subscriber's.
            "resend" => Some(()),
            _ if rest.starts_with("telemetry/") => {
                parse(payload).map(|told| master.handle_record(rev, now, told))
            }
            _ => None,
        }
        .is_some()
    }

    /// What to publish to have missing records again.
    pub fn poll_request(&mut self, now: Instant) -> Option<(String, Range)> {
        self.masters.values_mut().find_map(|master| {
            let range = master.tracker.poll_request(now)?;
            Some((master.topics.of("resend"), range))
        })
    }

    /// When to call [`Self::poll_request`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let masters = self.masters.values();
        masters.filter_map(|m| m.tracker.poll_timeout()).min()
    }

    /// Names of the masters heard of.
    pub fn names(&self) -> Vec<String> {
        self.masters.keys().cloned().collect()
    }

    /// Completeness of a master's records.
    pub fn counts(&self, master: &str) -> Option<Counts> {
        Some(self.masters.get(master)?.tracker.counts())
    }

    /// All masters in short.
    pub fn summaries(&self) -> Vec<Summary<'_>> {
        self.masters
            .iter()
            .map(|(name, m)| m.summary(name))
            .collect()
    }

    /// What changed of `master` after revision `since`; 0 gives all. `None`: no such master.
    pub fn view(&self, master: &str, since: u64, now_ms: u64) -> Option<View<'_>> {
        let (name, m) = self.masters.get_key_value(master)?;
        let reset = since < m.reset_rev || since == 0;
        let since = if reset { 0 } else { since };
        let status = m.status.as_ref();
        Some(View {
            rev: self.rev,
            reset,
            now_ms,
            site: &self.site,
            broker: self.online,
            masters: self.summaries(),
            name,
            bridge: &m.presence,
            records: m.tracker.counts(),
            bus: status.map(|s| s.bus.as_str()),
            uptime_ms: status.map(|s| s.uptime_ms),
            nodes: m.slaves.keys().copied().collect(),
            pack: m.pack.as_ref().filter(|pack| pack.rev > since),
            slaves: m.slaves.values().filter(|s| s.rev > since).collect(),
            tags: m.tags.values().filter(|t| t.rev > since).collect(),
            events: m.events.iter().filter(|e| e.rev > since).collect(),
            map: m.map.as_ref().filter(|_| m.map_rev > since),
            history: m
                .history
                .iter()
                .filter(|(rev, _)| *rev > since)
                .map(|(_, p)| *p)
                .collect(),
        })
    }
}

fn parse<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Option<T> {
    serde_json::from_slice(payload).ok()
}

impl Master {
    fn new(topics: Topics) -> Self {
        Self {
            topics,
            tracker: Tracker::default(),
            presence: Presence::default(),
            status: None,
            pack: None,
            slaves: BTreeMap::new(),
            tags: BTreeMap::new(),
            events: VecDeque::new(),
            map: None,
            map_rev: 0,
            history: VecDeque::new(),
            boot: 0,
            reset_rev: 0,
        }
    }

    /// Whether `boot` is the run shown; a newer one becomes it.
    fn shows(&mut self, rev: u64, boot: u64) -> bool {
        if boot > self.boot {
            if self.boot != 0 {
                self.reset_rev = rev;
            }
            self.boot = boot;
            self.pack = None;
            self.slaves.clear();
            self.tags.clear();
        }
        boot == self.boot
    }

    fn handle_status(&mut self, rev: u64, now: Instant, told: StatusTold) {
        let boot = self
            .tracker
            .handle_forwarded(now, told.boot, told.forwarded);
        if !boot.is_some_and(|boot| self.shows(rev, boot)) {
            return;
        }
        let state_us = told.status.uptime_ms.saturating_mul(1_000);
        let nodes = &told.status.nodes;
        self.slaves
            .retain(|node, _| nodes.iter().any(|n| n.node == *node));
        for node in nodes {
            let slave = self
                .slaves
                .entry(node.node)
                .or_insert_with(|| Slave::unheard(rev));
            let what = &mut slave.what;
            if what.uid != node.uid {
                // Another one took the seat; what its predecessor measured is not its own.
                *slave = Slave::unheard(rev);
                slave.what.node = node.node;
                slave.what.uid.clone_from(&node.uid);
                slave.what.cells_mv = vec![None; node.cells.into()];
                slave.what.soc_ppm = vec![None; node.cells.into()];
                slave.what.temps_dc = vec![None; node.temps.into()];
            }
            let what = &mut slave.what;
            let is = (node.state, node.severity, node.gate_on);
            let was = (what.state, what.severity, what.gate_on);
            if state_us >= slave.state_us && (is != was || slave.anchors != node.anchors) {
                (what.state, what.severity, what.gate_on) = is;
                slave.anchors = node.anchors;
                slave.state_us = state_us;
                slave.rev = rev;
            }
        }
        self.status = Some(told.status);
    }

    fn handle_lost(&mut self, rev: u64, now: Instant, range: Range) {
        let before = self.tracker.counts().lost;
        self.tracker.handle_lost(now, range);
        let lost = self.tracker.counts().lost - before;
        if lost > 0 {
            let (from, to) = (range.from, range.to);
            let what = EventRecord {
                what: "lost".into(),
                node: None,
                uid: None,
                severity: Some(Severity::Warn),
                code: None,
                index: None,
                value: None,
                active: None,
                text: format!(
                    "{lost} records between {from} and {to} were lost before they could be forwarded"
                ),
            };
            let at_ms = self.pack.as_ref().map_or(range.boot, |pack| pack.at_ms);
            self.add_event(rev, (range.boot, to), at_ms, what);
        }
    }

    fn handle_record(&mut self, rev: u64, now: Instant, told: RecordTold) {
        let RecordTold { boot, record } = told;
        let (arrival, boot) = self.tracker.handle_record(now, boot, record.seq);
        if arrival == Arrival::Duplicate {
            return;
        }
        let key = (boot, record.seq);
        let at_ms = boot.saturating_add(record.t_us / 1_000);
        let shown = self.shows(rev, boot);
        match record.data {
            Data::Event(what) => self.add_event(rev, key, at_ms, what),
            Data::Pack(what) => {
                self.add_point(rev, at_ms / 1_000, &what);
                if shown && self.pack.as_ref().is_none_or(|old| old.key < key) {
                    self.pack = Some(Newest {
                        rev,
                        key,
                        at_ms,
                        what,
                    });
                }
            }
            Data::Slave(what) if shown => {
                let slave = self
                    .slaves
                    .entry(what.node)
                    .or_insert_with(|| Slave::unheard(rev));
                if slave.key >= key {
                    return;
                }
                let was = (slave.what.state, slave.what.severity, slave.what.gate_on);
                (slave.rev, slave.key, slave.at_ms, slave.what) = (rev, key, at_ms, what);
                if record.t_us >= slave.state_us {
                    slave.state_us = record.t_us;
                } else {
                    // The status knew better.
                    let what = &mut slave.what;
                    (what.state, what.severity, what.gate_on) = was;
                }
            }
            Data::Tag(what) if shown => {
                let newest = Newest {
                    rev,
                    key,
                    at_ms,
                    what,
                };
                match self.tags.get_mut(&newest.what.tag) {
                    Some(old) if old.key >= key => {}
                    Some(old) => *old = newest,
                    None => drop(self.tags.insert(newest.what.tag, newest)),
                }
            }
            Data::Slave(_) | Data::Tag(_) | Data::Other(_) => {}
        }
    }

    fn add_event(&mut self, rev: u64, key: Key, at_ms: u64, what: EventRecord) {
        let at = self
            .events
            .partition_point(|e| (e.at_ms, e.key) <= (at_ms, key));
        if at == 0 && self.events.len() >= EVENTS {
            return;
        }
        self.events.insert(
            at,
            Event {
                rev,
                key,
                id: rev,
                at_ms,
                what,
            },
        );
        if self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    fn add_point(&mut self, rev: u64, at_s: u64, record: &PackRecord) {
        let pack = &record.pack;
        let point = Point {
            at_s,
            voltage_mv: pack.voltage_mv,
            current_ma: pack.current_ma,
            soc_ppm: pack.soc_ppm,
            cell_min_mv: pack.cell_min_mv,
            cell_max_mv: pack.cell_max_mv,
            load_ppm: record.load_ppm,
            latency_max_us: record.latency_max_us,
        };
        let at = self.history.partition_point(|(_, p)| p.at_s < at_s);
        let full = self.history.len() >= HISTORY;
        match self.history.get_mut(at) {
            Some(old) if old.1.at_s == at_s => *old = (rev, point),
            _ if at == 0 && full => {}
            _ => self.history.insert(at, (rev, point)),
        }
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
    }

    fn summary<'a>(&'a self, name: &'a str) -> Summary<'a> {
        let pack = self.pack.as_ref().map(|pack| &pack.what.pack);
        Summary {
            name,
            online: self.presence.online && self.presence.master,
            state: pack.map(|p| p.state),
            soc_ppm: pack.and_then(|p| p.soc_ppm),
            bus: self.status.as_ref().map(|s| s.bus.as_str()),
            members: pack.map_or(0, |p| p.members),
            expected: pack.map_or(0, |p| p.expected),
        }
    }
}

impl Slave {
    /// On the list, but nothing measured yet.
    fn unheard(rev: u64) -> Self {
        Self {
            rev,
            key: (0, 0),
            state_us: 0,
            at_ms: 0,
            what: SlaveRecord {
                node: 0,
                uid: String::new(),
                state: NodeState::Unknown,
                severity: Severity::Unknown,
                gate_on: false,
                balancing: false,
                current_ma: None,
                cells_mv: Vec::new(),
                soc_ppm: Vec::new(),
                temps_dc: Vec::new(),
                health: None,
            },
            anchors: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const BOOT: u64 = 1_700_000_000_000;

    struct Plant {
        store: Store,
        now: Instant,
    }

    impl Plant {
        fn new() -> Self {
            Self {
                store: Store::new("plant"),
                now: Instant::now(),
            }
        }
        fn tell(&mut self, rest: &str, what: Value) -> &mut Self {
            let topic = format!("heliograph/plant/rack/{rest}");
            let taken = self
                .store
                .handle_message(self.now, &topic, what.to_string().as_bytes());
            assert!(taken, "{topic} {what}");
            self
        }
        fn slave(&mut self, boot: u64, seq: u64, t_us: u64, mv: u16) -> &mut Self {
            self.tell("telemetry/slave", json!({
                "boot": boot, "seq": seq, "t_us": t_us, "kind": "slave", "node": 3,
                "uid": "00000000000000aa", "state": "active", "severity": "none", "gate_on": true,
                "balancing": false, "current_ma": -1500, "cells_mv": [mv, null],
                "soc_ppm": [500_000, null], "temps_dc": [251],
            }))
        }
        fn pack(&mut self, seq: u64, t_us: u64, mv: u32) -> &mut Self {
            self.tell(
                "telemetry/pack",
                json!({
                    "boot": BOOT, "seq": seq, "t_us": t_us, "kind": "pack", "state": "ready",
                    "voltage_mv": mv, "current_ma": 10, "soc_ppm": 1, "soc_min_ppm": 1,
                    "soc_max_ppm": 1, "cell_min_mv": 1, "cell_max_mv": 1, "temp_max_dc": null,
                    "members": 1, "expected": 1, "load_ppm": 5, "latency_max_us": 9,
                }),
            )
        }
        fn status(&mut self, boot: u64, uptime_ms: u64, uid: &str, state: &str) -> &mut Self {
            self.tell(
                "status",
                json!({
                    "boot": boot, "forwarded": 1, "name": "rack", "uptime_ms": uptime_ms,
                    "seq_first": 1, "seq_next": 1, "bus": "can-1m", "load_ppm": 0,
                    "latency_max_us": null, "total": 1, "off": 0,
                    "pack": {"state": "ready", "voltage_mv": null, "current_ma": null,
                        "soc_ppm": null, "soc_min_ppm": null, "soc_max_ppm": null,
                        "cell_min_mv": null, "cell_max_mv": null, "temp_max_dc": null,
                        "members": 1, "expected": 1},
                    "nodes": [[3, uid, state, "none", 2, 1, 0, true]],
                }),
            )
        }
        fn view(&self, since: u64) -> Value {
            let view = self.store.view("rack", since, 0).expect("heard of");
            serde_json::to_value(view).expect("JSON")
        }
    }

    #[test]
    fn an_old_record_that_comes_late_does_not_overwrite_a_newer_one() {
        let mut p = Plant::new();
        p.slave(BOOT, 1, 100, 3_600)
            .slave(BOOT, 3, 300, 3_602)
            .slave(BOOT, 2, 200, 3_601);
        assert_eq!(p.view(0)["slaves"][0]["cells_mv"], json!([3_602, null]));
        assert_eq!(p.view(0)["records"]["received"], 3);
    }

    #[test]
    fn a_viewer_is_told_only_what_changed() {
        let mut p = Plant::new();
        p.slave(BOOT, 1, 100, 3_600);
        let rev = p.view(0)["rev"].as_u64().expect("a number");
        assert_eq!(p.view(rev)["slaves"], json!([]));
        p.pack(2, 1_000_000, 50_000);
        assert_eq!(p.view(rev)["slaves"], json!([]));
        assert_eq!(p.view(rev)["pack"]["voltage_mv"], 50_000);
        assert_eq!(p.view(rev)["history"][0]["at_s"], BOOT / 1_000 + 1);
        assert_eq!(p.view(rev)["reset"], false);
    }

    #[test]
    fn a_restarted_master_voids_what_its_viewers_know() {
        let mut p = Plant::new();
        p.slave(BOOT, 1, 100, 3_600);
        let rev = p.view(0)["rev"].as_u64().expect("a number");
        p.slave(BOOT + 60_000, 1, 100, 3_500);
        let view = p.view(rev);
        assert_eq!(view["reset"], true);
        assert_eq!(view["slaves"][0]["cells_mv"][0], 3_500);
        // A late record of the old run is counted, not shown.
        p.slave(BOOT, 2, 200, 3_601);
        assert_eq!(p.view(0)["slaves"][0]["cells_mv"][0], 3_500);
    }

    #[test]
    fn the_status_knows_of_slaves_that_fell_silent_and_of_swaps() {
        let mut p = Plant::new();
        p.slave(BOOT, 1, 5_000_000, 3_600);
        p.status(BOOT, 6_000, "00000000000000aa", "absent");
        assert_eq!(p.view(0)["slaves"][0]["state"], "absent");
        // Records from before come late and change nothing of that.
        p.slave(BOOT, 2, 5_500_000, 3_601);
        assert_eq!(p.view(0)["slaves"][0]["state"], "absent");
        p.status(BOOT, 7_000, "00000000000000bb", "init");
        let view = p.view(0);
        assert_eq!(view["slaves"][0]["state"], "init");
        assert_eq!(view["slaves"][0]["cells_mv"], json!([null, null]));
    }

    #[test]
    fn history_has_a_point_a_second_in_order_and_is_bounded() {
        let mut p = Plant::new();
        for second in (0..HISTORY as u64 + 50).rev() {
            let seq = 2 * second + 1;
            p.pack(seq, second * 1_000_000, 1)
                .pack(seq + 1, second * 1_000_000 + 5, second as u32);
        }
        let view = p.view(0);
        let history = view["history"].as_array().expect("points");
        assert_eq!(history.len(), HISTORY);
        for (i, point) in history.iter().enumerate() {
            assert_eq!(point["voltage_mv"], i + 50);
        }
    }

    #[test]
    fn lost_records_are_an_event() {
        let mut p = Plant::new();
        p.pack(1, 0, 1);
        p.tell("lost", json!({"boot": BOOT, "from": 2, "to": 9}));
        let view = p.view(0);
        assert_eq!(view["records"]["lost"], 8);
        assert_eq!(view["events"][0]["what"], "lost");
    }

    #[test]
    fn what_is_not_ours_or_not_to_be_understood_is_left_alone() {
        let mut store = Store::new("plant");
        let now = Instant::now();
        for (topic, payload) in [
            ("heliograph/elsewhere/rack/status", "{}"),
            ("heliograph/plant/rack/telemetry/pack", "{\"boot\":1}"),
            ("heliograph/plant/rack/status", "no JSON"),
            ("heliograph/plant/rack/what", "{}"),
            ("other", ""),
        ] {
            assert!(
                !store.handle_message(now, topic, payload.as_bytes()),
                "{topic}"
            );
        }
    }
}
