//! A DBC of a rack's cyclic messages, for the tools that read it: cantools, SavvyCAN, CANalyzer, Busmaster.
//!
//! [`Layout`] says where each field lies. `helio-bus` spells the same in code; a test lets every field of
//! every message take values and finds them where this table says. A DBC has one entry for each
//! identifier, so it is made for a given bus and given slaves. Joining and management have identifiers
//! that no DBC can list, and are left out.

use helio_bus::{BusKind, Capabilities};

/// Where one value lies and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// Name in the DBC.
    pub name: String,
    /// Lowest bit, little endian.
    pub start: u16,
    /// Bits.
    pub bits: u16,
    /// Two's complement.
    pub signed: bool,
    /// Value is raw times this, plus `offset`.
    pub factor: f64,
    /// See `factor`.
    pub offset: f64,
    /// Of the value.
    pub unit: &'static str,
    /// Names of raw values.
    pub names: &'static [(i64, &'static str)],
    /// The multiplexer itself, or the raw value of it with which this signal is there.
    pub multiplex: Multiplex,
}

/// Part of a signal in multiplexing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Multiplex {
    /// Always there.
    No,
    /// Tells which of the others are there.
    Selector,
    /// There when the selector has this value.
    When(u8),
}

/// One kind of message.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Upper four bits of the identifier.
    pub class: u8,
    /// Name, before the number of the node.
    pub name: String,
    /// Bytes.
    pub len: u8,
    /// In order of their places.
    pub signals: Vec<Signal>,
}

const STATES: &[(i64, &str)] = &[
    (0, "init"),
    (1, "standby"),
    (2, "active"),
    (3, "tripped"),
    (4, "isolated"),
];
const SEVERITIES: &[(i64, &str)] = &[(0, "none"), (1, "warn"), (2, "derate"), (3, "trip")];
const ORDERS: &[(i64, &str)] = &[
    (0, "gate"),
    (1, "balance"),
    (2, "clear_latch"),
    (3, "isolate"),
    (4, "quarantine_ms"),
    (5, "light"),
];
const NO_CELL: &[(i64, &str)] = &[(0x1fff, "invalid")];
const IN_STEPS: &[(i64, &str)] = &[(15, "steps_of_8_mV")];
const NO_CELL_ABOVE: &[(i64, &str)] = &[(0x3ff, "invalid")];
const NO_TEMP: &[(i64, &str)] = &[(0xff, "invalid")];
const NO_CURRENT: &[(i64, &str)] = &[(-0x2_0000, "not_measured")];
const BLOCKED: &[(i64, &str)] = &[(0xffff, "blocked")];
const NO_TAG: &[(i64, &str)] = &[(0xffff, "none")];

/// Fields one behind the other.
struct Row {
    at: u16,
    signals: Vec<Signal>,
}

impl Row {
    /// Behind check and counter.
    fn new(check: u16, counter: u16) -> Self {
        let row = Self {
            at: 0,
            signals: Vec::new(),
        };
        row.put("Check", check).put("Counter", counter)
    }
    fn put(mut self, name: impl Into<String>, bits: u16) -> Self {
        self.signals.push(Signal {
            name: name.into(),
            start: self.at,
            bits,
            signed: false,
            factor: 1.0,
            offset: 0.0,
            unit: "",
            names: &[],
            multiplex: Multiplex::No,
        });
        self.at += bits;
        self
    }
    fn last(mut self, change: impl FnOnce(&mut Signal)) -> Self {
        if let Some(signal) = self.signals.last_mut() {
            change(signal);
        }
        self
    }
    fn named(self, names: &'static [(i64, &'static str)]) -> Self {
        self.last(|s| s.names = names)
    }
    fn unit(self, unit: &'static str) -> Self {
        self.last(|s| s.unit = unit)
    }
    fn skip(mut self, bits: u16) -> Self {
        self.at += bits;
        self
    }
    fn back_to(mut self, at: u16) -> Self {
        self.at = at;
        self
    }
    /// Where four cells begin: they count from there.
    fn base(self) -> Self {
        self.put("Base", 4)
            .unit("mV")
            .named(IN_STEPS)
            .last(|s| s.factor = 512.0)
    }
    fn above(self, n: usize) -> Self {
        self.put(format!("Above{n}"), 10)
            .unit("mV")
            .named(NO_CELL_ABOVE)
    }
    fn when(self, value: u8) -> Self {
        self.last(|s| s.multiplex = Multiplex::When(value))
    }
    fn cell(self, n: usize) -> Self {
        self.put(format!("Cell{n}"), 13).unit("mV").named(NO_CELL)
    }
    fn temperature(self, n: usize) -> Self {
        self.put(format!("Temperature{n}"), 8)
            .unit("degC")
            .named(NO_TEMP)
            .last(|s| s.offset = -60.0)
    }
    fn range(self, n: usize) -> Self {
        self.put(format!("Range{n}"), 16).unit("mm").named(BLOCKED)
    }
    fn tag(self) -> Self {
        self.put("Tag", 16).named(NO_TAG)
    }
    fn summary(self) -> Self {
        self.put("State", 3)
            .named(STATES)
            .put("Severity", 2)
            .named(SEVERITIES)
            .put("GateOn", 1)
            .put("Balancing", 1)
            .skip(1)
            .put("Current", 18)
            .unit("A")
            .named(NO_CURRENT)
            .last(|s| (s.signed, s.factor) = (true, 0.01))
            .put("LowestCell", 13)
            .unit("mV")
            .named(NO_CELL)
            .put("HighestCell", 13)
            .unit("mV")
            .named(NO_CELL)
    }
}

impl Layout {
    fn new(class: u8, name: &str, len: u8, row: Row) -> Self {
        Self {
            class,
            name: name.into(),
            len,
            signals: row.signals,
        }
    }

    /// What the master says: SYNC, and an order to each node or, to 0, to all.
    pub fn of_master() -> Vec<Self> {
        let sync = Row::new(8, 4)
            .put("Cycle", 8)
            .tag()
            .put("PreviousClock", 28)
            .unit("us");
        let order = Row::new(8, 4)
            .put("What", 4)
            .named(ORDERS)
            .put("Argument", 32);
        vec![
            Self::new(2, "Sync", 8, sync),
            Self::new(3, "Order", 8, order),
        ]
    }

    /// What a slave says on this kind of bus.
    pub fn of_slave(fd: bool, c: Capabilities) -> Vec<Self> {
        let alarm = Row::new(8, 4)
            .put("Code", 8)
            .put("Severity", 2)
            .named(SEVERITIES)
            .put("Active", 1)
            .put("Place", 5)
            .put("Value", 16)
            .last(|s| s.signed = true);
        let mut all = vec![Self::new(1, "Alarm", 8, alarm)];
        if fd {
            let state = (0..18).fold(Row::new(16, 8).summary(), Row::cell);
            let state = (0..8).fold(state, Row::temperature);
            all.push(Self::new(12, "State", 48, state));
            if c.anchors > 0 {
                // In the short frame when only the first four have a range; that of more is always full.
                let (len, anchors) = if c.anchors <= 4 { (16, 4) } else { (48, 16) };
                let ranges = (0..anchors).fold(Row::new(16, 8).tag(), Row::range);
                all.push(Self::new(13, "Ranges", len, ranges));
            }
            return all;
        }
        all.push(Self::new(4, "Summary", 8, Row::new(8, 4).summary()));
        let fours = c.cells.div_ceil(4);
        for chunk in 0..fours {
            let first = usize::from(chunk) * 4;
            let temperature = Row::new(8, 4).temperature(chunk.into()).base();
            let cells = (first..(first + 4).min(18)).fold(temperature, Row::above);
            all.push(Self::new(5 + chunk, &format!("Cells{first}"), 8, cells));
        }
        if c.temps > fours {
            let row = Row::new(8, 4)
                .back_to(60)
                .put("First", 4)
                .last(|s| s.multiplex = Multiplex::Selector);
            let row = (fours..c.temps).step_by(6).fold(row, |row, first| {
                let some = first.into()..(first + 6).min(8).into();
                some.fold(row.back_to(12), |row, n| row.temperature(n).when(first))
            });
            all.push(Self::new(10, "Temperatures", 8, row));
        }
        if c.anchors > 0 {
            let row = Row::new(8, 4)
                .tag()
                .put("Pair", 4)
                .last(|s| s.multiplex = Multiplex::Selector);
            let row = (0..8u8).fold(row, |row, pair| {
                let first = usize::from(pair) * 2;
                let row = row.back_to(32).range(first).when(pair);
                row.range(first + 1).when(pair)
            });
            all.push(Self::new(11, "Ranges", 8, row));
        }
        all
    }
}

/// The DBC of a bus with these slaves on the seats from 1 on. `None` for RS485.
pub fn dbc(kind: BusKind, slaves: &[Capabilities]) -> Option<String> {
    let fd = match kind {
        BusKind::Can500k | BusKind::Can1M => false,
        BusKind::CanFd => true,
        _ => return None,
    };
    let mut text = String::from("VERSION \"\"\n\nNS_ :\n\nBS_:\n\nBU_: Master");
    for node in 1..=slaves.len() {
        text += &format!(" Slave{node}");
    }
    text += "\n\n";
    let mut out = Out {
        fd,
        text,
        names: String::new(),
        formats: String::new(),
    };
    out.message(0, "Trip", 0, false, "Vector__XXX", &[]);
    let master = Layout::of_master();
    for layout in &master {
        let nodes = if layout.class == 3 { slaves.len() } else { 0 };
        for node in 0..=nodes {
            out.layout(layout, node, "Master");
        }
    }
    for (i, capabilities) in slaves.iter().enumerate() {
        for layout in Layout::of_slave(fd, *capabilities) {
            out.layout(&layout, i + 1, &format!("Slave{}", i + 1));
        }
    }
    let Out {
        mut text,
        names,
        formats,
        ..
    } = out;
    text += "CM_ \"Cyclic messages of a Heliograph rack. Raw values with the names invalid, blocked, none and \
             not_measured are no measurements. A cell is Base + Above; where Base is steps_of_8_mV, eight times \
             Above.\";\n";
    text += "BA_DEF_ BO_ \"VFrameFormat\" ENUM \"StandardCAN\",\"ExtendedCAN\"";
    for reserved in 2..14 {
        text += &format!(",\"reserved{reserved}\"");
    }
    text += ",\"StandardCAN_FD\",\"ExtendedCAN_FD\";\n";
    text += "BA_DEF_ \"BusType\" STRING ;\nBA_DEF_DEF_ \"VFrameFormat\" \"StandardCAN\";\nBA_DEF_DEF_ \"BusType\" \"CAN\";\n";
    text += if fd {
        "BA_ \"BusType\" \"CAN FD\";\n"
    } else {
        "BA_ \"BusType\" \"CAN\";\n"
    };
    Some(text + &formats + &names)
}

struct Out {
    fd: bool,
    text: String,
    names: String,
    formats: String,
}

impl Out {
    fn layout(&mut self, layout: &Layout, node: usize, sender: &str) {
        let id = u32::from(layout.class) << 7 | node as u32;
        let name = match (layout.class, node) {
            (2, _) => layout.name.clone(),
            (3, 0) => "OrderToAll".into(),
            _ => format!("{}_{node}", layout.name),
        };
        self.message(id, &name, layout.len, self.fd, sender, &layout.signals);
    }

    fn message(&mut self, id: u32, name: &str, len: u8, fd: bool, from: &str, signals: &[Signal]) {
        self.text += &format!("BO_ {id} {name}: {len} {from}\n");
        for s in signals {
            let multiplex = match s.multiplex {
                Multiplex::No => String::new(),
                Multiplex::Selector => " M".into(),
                Multiplex::When(value) => format!(" m{value}"),
            };
            let (low, high) = if s.signed {
                (-(1i64 << (s.bits - 1)), (1i64 << (s.bits - 1)) - 1)
            } else {
                (0, (1i64 << s.bits) - 1)
            };
            let value = |raw: i64| raw as f64 * s.factor + s.offset;
            self.text += &format!(
                " SG_ {}{multiplex} : {}|{}@1{} ({},{}) [{}|{}] \"{}\" Vector__XXX\n",
                s.name,
                s.start,
                s.bits,
                if s.signed { '-' } else { '+' },
                s.factor,
                s.offset,
                value(low),
                value(high),
                s.unit
            );
            if !s.names.is_empty() {
                self.names += &format!("VAL_ {id} {}", s.name);
                for (raw, name) in s.names {
                    self.names += &format!(" {raw} \"{name}\"");
                }
                self.names += " ;\n";
            }
        }
        self.text += "\n";
        if fd {
            self.formats += &format!("BA_ \"VFrameFormat\" BO_ {id} 14;\n");
        }
    }
}

/// The value of a signal in a frame; `None` when the selector says that it is not there.
pub fn read(layout: &Layout, signal: &Signal, data: &[u8]) -> Option<f64> {
    if let Multiplex::When(value) = signal.multiplex {
        let selector = layout
            .signals
            .iter()
            .find(|s| s.multiplex == Multiplex::Selector)?;
        if raw(selector, data) != i64::from(value) {
            return None;
        }
    }
    Some(raw(signal, data) as f64 * signal.factor + signal.offset)
}

fn raw(signal: &Signal, data: &[u8]) -> i64 {
    let bit = |i: u16| {
        data.get(usize::from(i / 8))
            .map_or(0, |byte| byte >> (i % 8) & 1)
    };
    let all = (0..signal.bits).fold(0i64, |raw, i| raw | i64::from(bit(signal.start + i)) << i);
    if signal.signed && all >> (signal.bits - 1) & 1 == 1 {
        all - (1 << signal.bits)
    } else {
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helio_bus::{
        Alarm, CanFrame, CanId, Command, Message, Order, Ranges, Severity, SlaveState, State,
        Summary, Sync, encode_can,
    };
    use helio_units::{DeciCelsius, Duration, Milliamps, Millimetres, Millivolts, NodeId, TagId};
    use proptest::prelude::*;

    const FULL: Capabilities = Capabilities {
        cells: 18,
        temps: 8,
        anchors: 16,
    };

    /// All values of a frame as the table reads them.
    fn table(frame: &CanFrame, fd: bool, c: Capabilities) -> Vec<(String, f64)> {
        let CanId::Standard(id) = frame.id else {
            panic!("no cyclic message")
        };
        let mut layouts = Layout::of_master();
        layouts.extend(Layout::of_slave(fd, c));
        let layout = layouts
            .iter()
            .find(|l| u16::from(l.class) == id >> 7)
            .expect("every class has a layout");
        assert_eq!(
            usize::from(layout.len),
            frame.data().len(),
            "{}",
            layout.name
        );
        let signals = layout.signals.iter().skip(2);
        signals
            .filter_map(|s| Some((s.name.clone(), read(layout, s, frame.data())?)))
            .collect()
    }

    fn summary_values(s: &Summary) -> Vec<(String, f64)> {
        let mv = |mv: Option<Millivolts>| f64::from(mv.map_or(0x1fff, |mv| mv.0));
        let current = s.current.map_or(-1310.72, |i| f64::from(i.0) / 1e3);
        vec![
            ("State".into(), s.state as u8 as f64),
            ("Severity".into(), s.severity as u8 as f64),
            ("GateOn".into(), f64::from(u8::from(s.gate_on))),
            ("Balancing".into(), f64::from(u8::from(s.balancing))),
            ("Current".into(), current),
            ("LowestCell".into(), mv(s.min)),
            ("HighestCell".into(), mv(s.max)),
        ]
    }

    fn cells(cells: &[Option<Millivolts>], first: usize) -> Vec<(String, f64)> {
        let each = cells.iter().enumerate().take(18 - first);
        each.map(|(n, mv)| {
            (
                format!("Cell{}", first + n),
                f64::from(mv.map_or(0x1fff, |mv| mv.0)),
            )
        })
        .collect()
    }

    fn temps(temps: &[Option<DeciCelsius>], first: usize) -> Vec<(String, f64)> {
        let each = temps.iter().enumerate().take(8 - first);
        each.map(|(n, t)| {
            (
                format!("Temperature{}", first + n),
                t.map_or(195.0, |t| f64::from(t.0) / 10.0),
            )
        })
        .collect()
    }

    fn ranges(tag: TagId, range: &[Option<Millimetres>], first: usize) -> Vec<(String, f64)> {
        let mut all = vec![("Tag".into(), f64::from(tag.0))];
        all.extend(range.iter().enumerate().map(|(n, r)| {
            (
                format!("Range{}", first + n),
                f64::from(r.map_or(0xffff, |mm| mm.0)),
            )
        }));
        all
    }

    fn check(message: Message, fd: bool, c: Capabilities, mut expected: Vec<(String, f64)>) {
        let frame = encode_can(&message, 5, fd).expect("fits");
        let mut found = table(&frame, fd, c);
        found.retain(|(name, _)| name != "First" && name != "Pair");
        let by_name = |a: &(String, f64), b: &(String, f64)| a.0.cmp(&b.0);
        found.sort_by(by_name);
        expected.sort_by(by_name);
        assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
        for ((name, a), (other, b)) in found.iter().zip(&expected) {
            assert!(
                name == other && (a - b).abs() < 1e-6,
                "{name} {a}, {other} {b}: {message:?}"
            );
        }
    }

    /// As the comment in the DBC says: base and what is above it, or steps.
    fn check_cells(
        message: Message,
        first: usize,
        cells: &[Option<Millivolts>],
        temp: Option<DeciCelsius>,
    ) {
        let frame = encode_can(&message, 5, false).expect("fits");
        let found = table(&frame, false, FULL);
        let value = |name: &str| {
            let found = found.iter().find(|(n, _)| n == name);
            found.expect("in the table").1
        };
        let told = temp.map_or(195.0, |t| f64::from(t.0) / 10.0);
        assert!((value(&format!("Temperature{}", first / 4)) - told).abs() < 1e-6);
        let base = value("Base");
        let (base, step, exact) = match base / 512.0 {
            15.0 => (0.0, 8.0, 14.0),
            _ => (base, 1.0, 0.0),
        };
        let there = cells.iter().enumerate().take(18 - first);
        for (n, mv) in there {
            let above = value(&format!("Above{}", first + n));
            match mv {
                None => assert_eq!(above, 1_023.0),
                Some(mv) => {
                    let error = (base + step * above - f64::from(mv.0)).abs();
                    assert!(error <= exact, "{message:?}: {error}");
                }
            }
        }
    }

    prop_compose! {
        fn any_summary()(
            state in 0..5u8, severity in 0..4u8, gate_on: bool, balancing: bool,
            current in proptest::option::of(-130_000..130_000i32),
            min in proptest::option::of(0..8_191u16), max in proptest::option::of(0..8_191u16),
        ) -> Summary {
            Summary {
                state: [SlaveState::Init, SlaveState::Standby, SlaveState::Active, SlaveState::Tripped,
                    SlaveState::Isolated][usize::from(state)],
                severity: [Severity::None, Severity::Warn, Severity::Derate, Severity::Trip][usize::from(severity)],
                gate_on,
                balancing,
                current: current.map(|i| Milliamps(i * 10)),
                min: min.map(Millivolts),
                max: max.map(Millivolts),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_table_finds_every_value_where_the_bus_puts_it(
            summary in any_summary(),
            mv in proptest::collection::vec(proptest::option::of(0..8_191u16), 18),
            deg in proptest::collection::vec(proptest::option::of(-60..195i16), 8),
            mm in proptest::collection::vec(proptest::option::of(0..0xffffi32), 16),
            tag: u16, bits: u32, value: i16, code: u8, node in 1..=127u8,
        ) {
            let node = NodeId::new(node).expect("in range");
            let mv: Vec<_> = mv.into_iter().map(|mv| mv.map(Millivolts)).collect();
            let deg: Vec<_> = deg.into_iter().map(|t| t.map(|t| DeciCelsius(t * 10))).collect();
            let mm: Vec<_> = mm.into_iter().map(|r| r.map(Millimetres)).collect();
            let tag_id = TagId(tag);
            check(Message::Summary(node, summary), false, FULL, summary_values(&summary));
            for first in [0, 4, 8, 12, 16u8] {
                let n = usize::from(first);
                let mut four = [None; 4];
                for (to, from) in four.iter_mut().zip(&mv[n..]) {
                    *to = *from;
                }
                let temp = deg[n / 4];
                let message = Message::CellChunk { node, first, cells: four, temp };
                check_cells(message, n, &four, temp);
                // Near each other.
                let near = four.map(|mv| mv.map(|mv| Millivolts(3_000 + mv.0 % 512)));
                let message = Message::CellChunk { node, first, cells: near, temp };
                check_cells(message, n, &near, temp);
            }
            for few in [FULL, Capabilities { cells: 0, ..FULL }, Capabilities { cells: 4, ..FULL }] {
                for first in (few.cells.div_ceil(4)..8).step_by(6) {
                    let mut six = [None; 6];
                    for (to, from) in six.iter_mut().zip(&deg[usize::from(first)..]) {
                        *to = *from;
                    }
                    let message = Message::TempChunk { node, first, temps: six };
                    check(message, false, few, temps(&six, first.into()));
                }
            }
            for first in (0..16u8).step_by(2) {
                let pair = [mm[usize::from(first)], mm[usize::from(first) + 1]];
                let message = Message::RangeChunk { node, tag: tag_id, first, range: pair };
                check(message, false, FULL, ranges(tag_id, &pair, first.into()));
            }
            let mut state = State { summary, ..State::default() };
            state.cells.0.copy_from_slice(&mv);
            state.temps.0.copy_from_slice(&deg);
            let mut expected = summary_values(&summary);
            expected.extend(cells(&mv, 0));
            expected.extend(temps(&deg, 0));
            check(Message::State(node, state), true, FULL, expected);
            let mut all = Ranges { tag: tag_id, range: [None; 16] };
            all.range.copy_from_slice(&mm);
            all.range[15] = Some(Millimetres(7));
            check(Message::Ranges(node, all), true, FULL, ranges(tag_id, &all.range, 0));
            all.range[4..].fill(None);
            let few = Capabilities { anchors: 4, ..FULL };
            check(Message::Ranges(node, all), true, few, ranges(tag_id, &all.range[..4], 0));
            for fd in [false, true] {
                let sync = Sync { cycle: code, tag: Some(tag_id), previous_us: bits & 0xfff_ffff };
                check(Message::Sync(sync), fd, FULL, vec![
                    ("Cycle".into(), code.into()),
                    ("Tag".into(), tag.into()),
                    ("PreviousClock".into(), (bits & 0xfff_ffff).into()),
                ]);
                let alarm = Alarm { code, severity: summary.severity, active: summary.gate_on, index: code & 31, value };
                check(Message::Alarm(node, alarm), fd, FULL, vec![
                    ("Code".into(), code.into()),
                    ("Severity".into(), summary.severity as u8 as f64),
                    ("Active".into(), f64::from(u8::from(alarm.active))),
                    ("Place".into(), f64::from(code & 31)),
                    ("Value".into(), value.into()),
                ]);
                for (what, argument, order) in [
                    (0, 1, Order::Gate(true)),
                    (1, bits, Order::Balance(bits)),
                    (2, 0, Order::ClearLatch),
                    (3, 0, Order::Isolate(false)),
                    (4, bits & 0xffff, Order::Quarantine(Duration::from_millis((bits & 0xffff).into()))),
                    (5, tag.into(), Order::Light(tag)),
                ] {
                    check(Message::Command(Command { to: Some(node), order }), fd, FULL, vec![
                        ("What".into(), f64::from(what)),
                        ("Argument".into(), argument.into()),
                    ]);
                }
            }
        }
    }

    #[test]
    fn a_dbc_names_every_message_once_and_serial_has_none() {
        let slaves = [FULL; 3];
        let text = dbc(BusKind::Can1M, &slaves).expect("CAN");
        // Trip, SYNC, orders to all and to three; nine kinds from each slave.
        assert_eq!(text.matches("\nBO_ ").count(), 6 + 3 * 9);
        assert!(text.contains("BO_ 515 Summary_3: 8 Slave3"));
        assert!(
            text.contains(" SG_ Current : 20|18@1- (0.01,0) [-1310.72|1310.71] \"A\" Vector__XXX")
        );
        assert_eq!(
            dbc(BusKind::CanFd, &slaves)
                .expect("CAN")
                .matches("\nBO_ ")
                .count(),
            6 + 3 * 3
        );
        assert_eq!(dbc(BusKind::Rs485At1M, &slaves), None);
    }
}
