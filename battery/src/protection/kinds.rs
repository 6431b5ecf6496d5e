//! What protection watches, and the stable numbers under which the world knows it.

use core::fmt;

/// How bad; the order is the order of urgency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth a look.
    Warn,
    /// Power must be reduced.
    Derate,
    /// The gate must open.
    Trip,
}

impl Severity {
    /// All, mildest first.
    pub const ALL: [Self; 3] = [Self::Warn, Self::Derate, Self::Trip];

    /// Place in a table with one column per severity.
    pub const fn index(self) -> usize {
        self as usize
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $label:literal $unit:ident $side:ident,)*) => {
        /// What is watched. Numbers are stable: add at the end only.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All, in the order of their numbers.
            pub const ALL: [Self; KINDS] = [$(Self::$name,)*];

            /// Short name for people and logs.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Unit of its values and thresholds.
            pub const fn unit(self) -> Unit {
                match self { $(Self::$name => Unit::$unit,)* }
            }

            /// Whether low values are the bad ones.
            pub const fn falls(self) -> bool {
                match self { $(Self::$name => matches!(Side::$side, Side::Low),)* }
            }
        }

        /// How many kinds there are.
        pub const KINDS: usize = [$($label,)*].len();

        /// Name of every diagnostic code: `CODES[code]` is kind and severity. Code = 3 * kind + severity.
        pub const CODES: [(&str, &str); CODE_COUNT] = {
            let mut codes = [("", ""); CODE_COUNT];
            let mut k = 0;
            while k < KINDS {
                codes[3 * k] = (Kind::ALL[k].name(), "warn");
                codes[3 * k + 1] = (Kind::ALL[k].name(), "derate");
                codes[3 * k + 2] = (Kind::ALL[k].name(), "trip");
                k += 1;
            }
            codes
        };
    };
}

enum Side {
    Low,
    High,
}

/// Unit of a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// mV.
    Millivolts,
    /// Tenths of °C or K.
    DeciCelsius,
    /// mA.
    Milliamps,
    /// ms.
    Milliseconds,
    /// A number of things.
    Count,
    /// Thousandths.
    PerMille,
}

impl Unit {
    /// As printed behind a value.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Millivolts => "mV",
            Self::DeciCelsius => "dK",
            Self::Milliamps => "mA",
            Self::Milliseconds => "ms",
            Self::Count => "",
            Self::PerMille => "permille",
        }
    }
}

kinds! {
    /// Highest cell.
    CellOvervoltage "cell over-voltage" Millivolts High,
    /// Lowest cell.
    CellUndervoltage "cell under-voltage" Millivolts Low,
    /// Lowest cell, so low that copper may have dissolved: not to be charged again without a look.
    DeepDischarge "deep discharge" Millivolts Low,
    /// Mean of the cells.
    GroupOvervoltage "group over-voltage" Millivolts High,
    /// Mean of the cells.
    GroupUndervoltage "group under-voltage" Millivolts Low,
    /// Highest minus lowest cell.
    Imbalance "cell imbalance" Millivolts High,
    /// Hottest sensor while charging.
    OvertempCharge "over-temperature, charging" DeciCelsius High,
    /// Hottest sensor while discharging or at rest.
    OvertempDischarge "over-temperature, discharging" DeciCelsius High,
    /// Coldest sensor while charging.
    UndertempCharge "under-temperature, charging" DeciCelsius Low,
    /// Coldest sensor while discharging or at rest.
    UndertempDischarge "under-temperature, discharging" DeciCelsius Low,
    /// Hottest minus coldest sensor.
    TempSpread "temperature spread" DeciCelsius High,
    /// Fastest rise of one sensor within the last one to two rise windows.
    TempRise "temperature rise" DeciCelsius High,
    /// Charge current.
    OvercurrentCharge "over-current, charging" Milliamps High,
    /// Discharge current.
    OvercurrentDischarge "over-current, discharging" Milliamps High,
    /// Current of either sign that only a short makes.
    ShortCircuit "short circuit" Milliamps High,
    /// Heat of the recent current, in thousandths of what the rated current makes.
    Overload "overload" PerMille High,
    /// Cells without a valid measurement: broken wire or failed conversion.
    CellOpen "cell wire open" Count High,
    /// Share of sensors without a valid measurement.
    TempOpen "temperature sensor open" PerMille High,
    /// 1 while there is no valid current.
    CurrentLost "current sensor lost" Count High,
    /// How far a cell lies outside what a cell can be.
    CellImplausible "cell voltage implausible" Millivolts High,
    /// How far a temperature lies outside what a sensor can say.
    TempImplausible "temperature implausible" DeciCelsius High,
    /// How far the current lies beyond what the sensor can say.
    CurrentImplausible "current implausible" Milliamps High,
    /// For how long a cell has not moved by one step although the current did.
    CellStuck "cell voltage stuck" Milliseconds High,
    /// How far the second fastest sensor moved while another did not move by one step.
    TempStuck "temperature stuck" DeciCelsius High,
    /// How often most cells jumped together since the current last moved by one step.
    CurrentStuck "current stuck" Count High,
    /// Time without a sample.
    StaleData "stale data" Milliseconds High,
    /// Samples in a row that were not later than the one before.
    FrozenClock "frozen clock" Count High,
    /// Cells and sensors fewer than configured.
    Layout "wrong number of cells or sensors" Count High,
    /// Current while the gate is off.
    GateStuck "gate does not open" Milliamps High,
}

/// How many codes there are.
pub const CODE_COUNT: usize = 3 * KINDS;

impl Kind {
    /// The number, `0..KINDS`.
    pub const fn index(self) -> usize {
        self as usize
    }

    pub(crate) const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// A diagnostic code: what and how bad, in a byte that goes over the bus and into storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u8);

impl Code {
    /// The code of a kind at a severity.
    pub const fn new(kind: Kind, severity: Severity) -> Self {
        Self(3 * kind as u8 + severity as u8)
    }

    /// `None` for a number that no event has.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        if (raw as usize) < CODE_COUNT {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// What.
    pub fn kind(self) -> Kind {
        Kind::ALL
            .get(usize::from(self.0 / 3))
            .copied()
            .unwrap_or(Kind::CellOvervoltage)
    }

    /// How bad.
    pub const fn severity(self) -> Severity {
        match self.0 % 3 {
            0 => Severity::Warn,
            1 => Severity::Derate,
            _ => Severity::Trip,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, severity) = CODES.get(usize::from(self.0)).copied().unwrap_or(("", ""));
        write!(f, "{kind} ({severity})")
    }
}
