//! What a cell is ([`CellParams`]) and how it answers a current ([`CellModel`], the simulator's truth).
//!
//! ```text
//!            R0        R1         R2
//!   +----###------+--###--+--+--###--+----- + v       v = OCV(soc, T) + M h - v1 - v2 - R0 i
//!   |             |  C1   |  |  C2   |                soc' = -i / Q
//!  OCV(soc, T)    +--||---+  +--||---+                vk'  = (Rk i - vk) / tauk
//!  + M h                                --> i         h'   = -gamma / Q (i + |i| h)     h in -1..1
//!   |
//!   +-------------------------------------- -         i > 0: discharge
//! ```
//!
//! R0 i is in fact R0 i + Rk Ik asinh(i / Ik): a resistance Rk that saturates where the current exceeds Ik, which is how charge
//! transfer behaves in the cold (Butler-Volmer with symmetric transfer; Ik is twice the exchange current).
//!
//! Two RC pairs and one hysteresis state: Plett, *Battery Management Systems*, vol. 1 (2015), ch. 2 ("enhanced self-correcting
//! cell"). Parameters stand in a grid over temperature and, where it pays, state of charge.

use crate::math;
use core::fmt;
use helio_units::Duration;

/// Points of the OCV curve: soc 0.00, 0.01 .. 1.00.
pub const OCV_POINTS: usize = 101;
/// Most temperatures in the grid.
pub const GRID_TEMPS: usize = 8;
/// Most states of charge in the grid.
pub const GRID_SOCS: usize = 16;
const CELLS: usize = GRID_TEMPS * GRID_SOCS;
/// Most bytes of a cell's name.
pub const NAME_BYTES: usize = 32;
/// OCV is given at this temperature [°C].
pub const OCV_TEMP_C: f32 = 25.0;

/// One cell type as a parameter file tells it, before any check. Empty slices mean "not given".
///
/// Tables are row-major, one row per temperature with one value per state of charge; without `soc_grid`, one value per
/// temperature.
#[derive(Clone, Copy, Debug)]
pub struct CellData<'a> {
    /// For people.
    pub name: &'a str,
    /// Charge between soc 0 and 1 [mAh].
    pub capacity_mah: f32,
    /// Open-circuit voltage at 25 °C, mean of charge and discharge [mV].
    pub ocv_mv: &'a [f32],
    /// dOCV/dT [mV/K], optional.
    pub ocv_mv_per_k: &'a [f32],
    /// Temperatures of the grid [°C], strictly rising.
    pub temps_c: &'a [f32],
    /// States of charge of the grid, strictly rising within 0..=1; optional.
    pub soc_grid: &'a [f32],
    /// Series resistance [mΩ], positive.
    pub r0_mohm: &'a [f32],
    /// Fast pair [mΩ].
    pub r1_mohm: &'a [f32],
    /// Fast pair [s], positive.
    pub tau1_s: &'a [f32],
    /// Slow pair [mΩ]; optional together with `tau2_s`.
    pub r2_mohm: &'a [f32],
    /// Slow pair [s], positive.
    pub tau2_s: &'a [f32],
    /// Half the gap between charge and discharge OCV [mV]; optional; a single value serves all.
    pub hysteresis_mv: &'a [f32],
    /// e-folds of `h` per full capacity moved.
    pub hysteresis_rate: f32,
    /// RMS of the model's voltage error [mV], positive.
    pub sigma_mv: f32,
}

/// Potential of the usual negative electrode [mV] over its stoichiometry 0.00, 0.01 .. 1.00.
///
/// Graphite: M. Safari, C. Delacourt, *J. Electrochem. Soc.* 158 (2011) A562.
pub const GRAPHITE_MV: [f32; OCV_POINTS] = [
    1286.8, 652.7, 526.2, 441.3, 375.5, 325.7, 288.7, 261.7, 242.0, 227.5, 216.7, 208.3, 201.6,
    195.9, 190.9, 186.2, 181.8, 177.4, 173.0, 168.7, 164.5, 160.3, 156.3, 152.4, 148.8, 145.5,
    142.4, 139.6, 137.1, 134.9, 132.9, 131.2, 129.7, 128.4, 127.3, 126.4, 125.5, 124.8, 124.1,
    123.5, 123.0, 122.5, 122.0, 121.5, 120.9, 120.4, 119.7, 119.0, 118.1, 117.2, 116.1, 114.8,
    113.3, 111.7, 110.0, 108.1, 106.1, 104.1, 102.1, 100.2, 98.3, 96.6, 95.1, 93.7, 92.5, 91.5,
    90.6, 89.8, 89.2, 88.7, 88.3, 87.9, 87.6, 87.4, 87.2, 87.0, 86.8, 86.6, 86.4, 86.2, 85.9, 85.6,
    85.3, 84.9, 84.3, 83.7, 82.9, 81.9, 80.6, 79.0, 77.0, 74.5, 71.4, 67.5, 62.8, 56.9, 49.8, 41.2,
    30.9, 18.7, 4.4,
];

/// The same for graphite with some silicon oxide (LG M50): C.-H. Chen et al., *J. Electrochem. Soc.* 167 (2020) 080534.
pub const GRAPHITE_SILICON_MV: [f32; OCV_POINTS] = [
    2383.5, 1739.4, 1304.7, 1011.3, 813.0, 678.6, 586.8, 522.8, 476.4, 439.5, 406.5, 373.5, 339.4,
    306.6, 278.3, 256.8, 241.9, 232.1, 225.5, 220.8, 217.0, 213.4, 209.6, 205.4, 200.6, 195.1,
    189.0, 182.5, 175.8, 169.2, 163.0, 157.3, 152.4, 148.3, 144.9, 142.1, 139.9, 138.3, 137.0,
    136.0, 135.2, 134.7, 134.3, 133.9, 133.7, 133.5, 133.4, 133.3, 133.2, 133.1, 133.1, 133.0,
    132.9, 132.8, 132.5, 132.0, 131.2, 129.8, 127.4, 123.8, 118.8, 112.7, 106.6, 101.5, 97.8, 95.4,
    93.9, 93.1, 92.6, 92.3, 92.2, 92.1, 92.1, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0,
    92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0, 92.0,
    92.0, 92.0, 92.0,
];

/// How far graphite is used in most cells.
pub const GRAPHITE_WINDOW: [f32; 2] = [0.02, 0.88];

/// A quantity of [`CellData`] by the name of its key in a parameter file.
pub type Key = &'static str;

/// Why a cell's data cannot be used. `Display` is one sentence with the remedy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellError {
    /// The name has this many bytes, more than [`NAME_BYTES`].
    Name(usize),
    /// A single number is not finite and positive (`hysteresis_rate` may be 0).
    Scalar {
        /// Which.
        key: Key,
        /// As given.
        value: f32,
    },
    /// A list has the wrong length.
    Length {
        /// Which.
        key: Key,
        /// Shortest allowed.
        min: usize,
        /// Longest allowed.
        max: usize,
        /// As given.
        found: usize,
    },
    /// Element `at` of a list is below (`strict`: not above) the one before it, or not a number.
    Order {
        /// Which.
        key: Key,
        /// Index of the element, from 0.
        at: usize,
        /// Whether equal neighbours are wrong too.
        strict: bool,
    },
    /// Element `at` of a list is not a number, or outside its range.
    Value {
        /// Which.
        key: Key,
        /// Index of the element, row-major, from 0.
        at: usize,
        /// As given.
        value: f32,
        /// What would be right.
        want: &'static str,
    },
}

impl fmt::Display for CellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Name(n) => write!(f, "name has {n} bytes; shorten it to {NAME_BYTES}"),
            Self::Scalar { key, value } => write!(f, "{key} is {value}; give a positive number"),
            Self::Length {
                key,
                min,
                max,
                found,
            } if min == max => {
                write!(f, "{key} has {found} numbers; give exactly {min}")
            }
            Self::Length {
                key,
                min,
                max,
                found,
            } => {
                write!(f, "{key} has {found} numbers; give {min} to {max}")
            }
            Self::Order { key, at, strict } => write!(
                f,
                "{key}[{at}] {} the number before it; make the list rise{}",
                if strict { "is not above" } else { "is below" },
                if strict {
                    " strictly"
                } else {
                    " (or stay level)"
                },
            ),
            Self::Value {
                key,
                at,
                value,
                want,
            } => {
                write!(f, "{key}[{at}] is {value}; give {want}")
            }
        }
    }
}

impl core::error::Error for CellError {}

/// The dynamic parameters at one temperature and state of charge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Series resistance [Ω = mV/mA].
    pub r0: f32,
    /// Fast pair [Ω].
    pub r1: f32,
    /// Fast pair [s].
    pub tau1: f32,
    /// Slow pair [Ω].
    pub r2: f32,
    /// Slow pair [s].
    pub tau2: f32,
    /// Half the gap between charge and discharge OCV [mV].
    pub hysteresis_mv: f32,
    /// Charge-transfer resistance at small currents [Ω]; 0 without kinetics.
    pub rk: f32,
    /// Current at which it begins to saturate [mA].
    pub ik: f32,
    /// Slowest pair [Ω]; 0 without one.
    pub r3: f32,
    /// Slowest pair [s].
    pub tau3: f32,
    /// Hysteresis that follows the sign of the newest current at once [mV].
    pub jump_mv: f32,
    /// Standard deviation of what the model gets wrong here [mV].
    pub sigma_mv: f32,
    /// Relative standard deviation of the resistances.
    pub doubt: f32,
}

/// Relative standard deviation of resistances of which nothing else is told.
pub const DOUBT: f32 = 0.15;

impl Point {
    const BLANK: Self = Self {
        tau1: 0.0,
        tau2: 0.0,
        ik: 0.0,
        tau3: 0.0,
        doubt: 0.0,
        ..Self::ZERO
    };

    const ZERO: Self = Self {
        r0: 0.0,
        r1: 0.0,
        tau1: 1.0,
        r2: 0.0,
        tau2: 1.0,
        hysteresis_mv: 0.0,
        rk: 0.0,
        ik: 1.0,
        r3: 0.0,
        tau3: 1.0,
        jump_mv: 0.0,
        sigma_mv: 0.0,
        doubt: DOUBT,
    };
}

/// What not every cell file has. Every table is like those of [`CellData`]: one value per temperature, or one row per
/// temperature; an empty one means "not given".
#[derive(Clone, Copy, Debug, Default)]
pub struct CellExtra<'a> {
    /// Charge-transfer resistance at small currents [mΩ]; together with `ik_ma`.
    pub rk_mohm: &'a [f32],
    /// Current at which it begins to saturate [mA].
    pub ik_ma: &'a [f32],
    /// Slowest pair [mΩ]; together with `tau3_s`.
    pub r3_mohm: &'a [f32],
    /// Slowest pair [s].
    pub tau3_s: &'a [f32],
    /// Hysteresis that follows the sign of the newest current at once [mV].
    pub jump_mv: &'a [f32],
    /// What a dynamic test shows beyond the slow test's open-circuit curve [mV], of either sign.
    pub shift_mv: &'a [f32],
    /// Standard deviation of the model's voltage error [mV], in place of the single number of [`CellData`].
    pub sigma_mv: &'a [f32],
    /// Relative standard deviation of the resistances; small where they were fitted, larger where they were carried over.
    pub resistance_doubt: &'a [f32],
    /// Charge got back over charge put in, above 0.9 and at most 1; 0 means "not given".
    pub coulombic_efficiency: f32,
    /// Potential of the negative electrode against lithium [mV] at stoichiometry 0.00, 0.01 .. 1.00; [`GRAPHITE_MV`] when empty.
    pub negative_mv: &'a [f32],
    /// Its stoichiometry at state of charge 0 and 1 of the new cell; together with `negative_mv`.
    pub negative_window: &'a [f32],
}

impl Point {
    /// Overvoltage that is there at once: series resistance and charge transfer [mV].
    #[inline]
    pub fn instant_mv(&self, current_ma: f32) -> f32 {
        let ohmic = self.r0 * current_ma;
        if self.rk > 0.0 {
            ohmic + self.rk * self.ik * math::asinh(current_ma / self.ik)
        } else {
            ohmic
        }
    }

    /// Slope of [`Self::instant_mv`] [Ω].
    #[inline]
    pub fn instant_slope(&self, current_ma: f32) -> f32 {
        if self.rk > 0.0 {
            let x = current_ma / self.ik;
            self.r0 + self.rk / math::sqrt(1.0 + x * x)
        } else {
            self.r0
        }
    }
}

/// A checked cell type. Plain data, 8.5 kB; made once per type and lent to every cell's model and filter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellParams {
    name: [u8; NAME_BYTES],
    name_len: u8,
    temps: u8,
    socs: u8,
    capacity_mah: f32,
    hysteresis_rate: f32,
    sigma_mv: f32,
    efficiency: f32,
    shifted: bool,
    ocv_mv: [f32; OCV_POINTS],
    ocv_mv_per_k: [f32; OCV_POINTS],
    temps_c: [f32; GRID_TEMPS],
    soc_grid: [f32; GRID_SOCS],
    grid: [[Point; GRID_SOCS]; GRID_TEMPS],
    shift_mv: [[f32; GRID_SOCS]; GRID_TEMPS],
    negative_mv: [f32; OCV_POINTS],
    negative_window: [f32; 2],
    negative_doubt: f32,
}

/// `?` for const functions.
macro_rules! check {
    ($result:expr) => {
        match $result {
            Ok(v) => v,
            Err(e) => return Err(e),
        }
    };
}

impl CellParams {
    /// Of no cell, for a place that is filled later: all zeros, so that it takes no flash.
    pub const BLANK: Self = Self {
        name: [0; NAME_BYTES],
        name_len: 0,
        temps: 0,
        socs: 0,
        capacity_mah: 0.0,
        hysteresis_rate: 0.0,
        sigma_mv: 0.0,
        efficiency: 0.0,
        shifted: false,
        ocv_mv: [0.0; OCV_POINTS],
        ocv_mv_per_k: [0.0; OCV_POINTS],
        temps_c: [0.0; GRID_TEMPS],
        soc_grid: [0.0; GRID_SOCS],
        grid: [[Point::BLANK; GRID_SOCS]; GRID_TEMPS],
        shift_mv: [[0.0; GRID_SOCS]; GRID_TEMPS],
        negative_mv: [0.0; OCV_POINTS],
        negative_window: [0.0; 2],
        negative_doubt: 0.0,
    };

    /// Checks everything and copies it. Usable in a `const`, see [`crate::defaults`].
    pub const fn new(data: &CellData<'_>) -> Result<Self, CellError> {
        // With `while` and indices because `for` and `get` are not const; every index is below a length checked before.
        let bytes = data.name.as_bytes();
        if bytes.len() > NAME_BYTES {
            return Err(CellError::Name(bytes.len()));
        }
        let mut name = [0; NAME_BYTES];
        let mut i = 0;
        while i < bytes.len() {
            name[i] = bytes[i];
            i += 1;
        }

        check!(check_scalar("capacity_mah", data.capacity_mah, false));
        check!(check_scalar("hysteresis_rate", data.hysteresis_rate, true));
        check!(check_scalar("sigma_mv", data.sigma_mv, false));

        let ocv_mv: [f32; OCV_POINTS] = check!(copy_list(
            "ocv_mv",
            data.ocv_mv,
            OCV_POINTS,
            0.0,
            0.0,
            10_000.0,
            "0 to 10000 mV"
        ));
        check!(check_order("ocv_mv", &ocv_mv, OCV_POINTS, false));
        if ocv_mv[OCV_POINTS - 1] <= ocv_mv[0] {
            return Err(CellError::Order {
                key: "ocv_mv",
                at: OCV_POINTS - 1,
                strict: true,
            });
        }
        let ocv_mv_per_k = if data.ocv_mv_per_k.is_empty() {
            [0.0; OCV_POINTS]
        } else {
            check!(copy_list(
                "ocv_mv_per_k",
                data.ocv_mv_per_k,
                OCV_POINTS,
                0.0,
                -5.0,
                5.0,
                "-5 to 5 mV/K"
            ))
        };

        let temps_c: [f32; GRID_TEMPS] = check!(copy_list(
            "temps_c",
            data.temps_c,
            1,
            0.0,
            -100.0,
            200.0,
            "-100 to 200 °C"
        ));
        let temps = data.temps_c.len();
        check!(check_order("temps_c", &temps_c, temps, true));
        let (soc_grid, socs): ([f32; GRID_SOCS], usize) = if data.soc_grid.is_empty() {
            ([0.0; GRID_SOCS], 1)
        } else {
            (
                check!(copy_list(
                    "soc_grid",
                    data.soc_grid,
                    1,
                    0.0,
                    0.0,
                    1.0,
                    "0 to 1"
                )),
                data.soc_grid.len(),
            )
        };
        check!(check_order("soc_grid", &soc_grid, socs, true));

        let n = temps * socs;
        const MOHM: &str = "a resistance above 0 mOhm";
        const MOHM0: &str = "a resistance of 0 mOhm or more";
        const SECONDS: &str = "a time constant above 0 s";
        let r0 = check!(copy_table(
            "r0_mohm",
            data.r0_mohm,
            n,
            0.0,
            f32::MIN_POSITIVE,
            MOHM
        ));
        let r1 = check!(copy_table("r1_mohm", data.r1_mohm, n, 0.0, 0.0, MOHM0));
        let tau1 = check!(copy_table(
            "tau1_s",
            data.tau1_s,
            n,
            0.0,
            f32::MIN_POSITIVE,
            SECONDS
        ));
        let no_second = data.r2_mohm.is_empty() && data.tau2_s.is_empty();
        let (r2, tau2) = if no_second {
            ([0.0; CELLS], [1.0; CELLS])
        } else {
            (
                check!(copy_table("r2_mohm", data.r2_mohm, n, 0.0, 0.0, MOHM0)),
                check!(copy_table(
                    "tau2_s",
                    data.tau2_s,
                    n,
                    0.0,
                    f32::MIN_POSITIVE,
                    SECONDS
                )),
            )
        };
        let hysteresis = match data.hysteresis_mv {
            [] => [0.0; CELLS],
            [one] => check!(copy_table(
                "hysteresis_mv",
                &[*one],
                1,
                *one,
                0.0,
                "0 mV or more"
            )),
            more => check!(copy_table(
                "hysteresis_mv",
                more,
                n,
                0.0,
                0.0,
                "0 mV or more"
            )),
        };

        let mut grid = [[Point::ZERO; GRID_SOCS]; GRID_TEMPS];
        let mut t = 0;
        while t < temps {
            let mut s = 0;
            while s < socs {
                let k = t * socs + s;
                grid[t][s] = Point {
                    r0: r0[k] * 1e-3,
                    r1: r1[k] * 1e-3,
                    tau1: tau1[k],
                    r2: r2[k] * 1e-3,
                    tau2: tau2[k],
                    hysteresis_mv: hysteresis[k],
                    sigma_mv: data.sigma_mv,
                    ..Point::ZERO
                };
                s += 1;
            }
            t += 1;
        }
        Ok(Self {
            name,
            name_len: bytes.len() as u8,
            temps: temps as u8,
            socs: socs as u8,
            capacity_mah: data.capacity_mah,
            hysteresis_rate: data.hysteresis_rate,
            sigma_mv: data.sigma_mv,
            efficiency: 1.0,
            shifted: false,
            ocv_mv,
            ocv_mv_per_k,
            temps_c,
            soc_grid,
            grid,
            shift_mv: [[0.0; GRID_SOCS]; GRID_TEMPS],
            negative_mv: GRAPHITE_MV,
            negative_window: GRAPHITE_WINDOW,
            negative_doubt: 0.25,
        })
    }

    /// The same cell with what its file has beyond the common.
    pub const fn with_extra(mut self, extra: &CellExtra<'_>) -> Result<Self, CellError> {
        let (temps, socs) = (self.temps as usize, self.socs as usize);
        let n = temps * socs;
        const MOHM0: &str = "a resistance of 0 mOhm or more";
        const TINY: f32 = f32::MIN_POSITIVE;
        let kinetics = !(extra.rk_mohm.is_empty() && extra.ik_ma.is_empty());
        let (mut rk, mut ik) = ([0.0; CELLS], [1.0; CELLS]);
        if kinetics {
            rk = check!(copy_table("rk_mohm", extra.rk_mohm, n, 0.0, 0.0, MOHM0));
            ik = check!(copy_table(
                "ik_ma",
                extra.ik_ma,
                n,
                1.0,
                TINY,
                "a current above 0 mA"
            ));
        }
        let third = !(extra.r3_mohm.is_empty() && extra.tau3_s.is_empty());
        let (mut r3, mut tau3) = ([0.0; CELLS], [1.0; CELLS]);
        if third {
            r3 = check!(copy_table("r3_mohm", extra.r3_mohm, n, 0.0, 0.0, MOHM0));
            tau3 = check!(copy_table(
                "tau3_s",
                extra.tau3_s,
                n,
                1.0,
                TINY,
                "a time constant above 0 s"
            ));
        }
        let mut jump = [0.0; CELLS];
        if !extra.jump_mv.is_empty() {
            jump = check!(copy_table(
                "jump_mv",
                extra.jump_mv,
                n,
                0.0,
                0.0,
                "0 mV or more"
            ));
        }
        let mut sigma = [0.0; CELLS];
        if !extra.sigma_mv.is_empty() {
            sigma = check!(copy_table(
                "sigma_mv",
                extra.sigma_mv,
                n,
                0.0,
                TINY,
                "a voltage above 0 mV"
            ));
        }
        let mut doubt = [DOUBT; CELLS];
        if !extra.resistance_doubt.is_empty() {
            doubt = check!(copy_table(
                "resistance_doubt",
                extra.resistance_doubt,
                n,
                DOUBT,
                0.0,
                "0 or more"
            ));
        }
        let mut shift = [0.0; CELLS];
        if !extra.shift_mv.is_empty() {
            if extra.shift_mv.len() != n {
                return Err(CellError::Length {
                    key: "shift_mv",
                    min: n,
                    max: n,
                    found: extra.shift_mv.len(),
                });
            }
            shift = check!(copy_list(
                "shift_mv",
                extra.shift_mv,
                n,
                0.0,
                -500.0,
                500.0,
                "-500 to 500 mV"
            ));
            self.shifted = true;
        }
        if extra.coulombic_efficiency != 0.0 {
            if !(extra.coulombic_efficiency > 0.9 && extra.coulombic_efficiency <= 1.0) {
                return Err(CellError::Value {
                    key: "coulombic_efficiency",
                    at: 0,
                    value: extra.coulombic_efficiency,
                    want: "a number above 0.9 and at most 1",
                });
            }
            self.efficiency = extra.coulombic_efficiency;
        }
        if !(extra.negative_mv.is_empty() && extra.negative_window.is_empty()) {
            self.negative_mv = check!(copy_list(
                "negative_mv",
                extra.negative_mv,
                OCV_POINTS,
                0.0,
                -1_000.0,
                5_000.0,
                "-1000 to 5000 mV"
            ));
            self.negative_window = check!(copy_list(
                "negative_window",
                extra.negative_window,
                2,
                0.0,
                0.0,
                1.0,
                "0 to 1"
            ));
            self.negative_doubt = 0.1;
            check!(check_order(
                "negative_window",
                &self.negative_window,
                2,
                true
            ));
        }
        let mut k = 0;
        while k < n {
            let point = &mut self.grid[k / socs][k % socs];
            point.rk = rk[k] * 1e-3;
            point.ik = ik[k];
            point.r3 = r3[k] * 1e-3;
            point.tau3 = tau3[k];
            point.jump_mv = jump[k];
            point.doubt = doubt[k];
            if !extra.sigma_mv.is_empty() {
                point.sigma_mv = sigma[k];
            }
            self.shift_mv[k / socs][k % socs] = shift[k];
            k += 1;
        }
        Ok(self)
    }

    /// For people.
    pub fn name(&self) -> &str {
        let bytes = self.name.get(..usize::from(self.name_len)).unwrap_or(&[]);
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// Charge between soc 0 and 1 [mAh].
    pub fn capacity_mah(&self) -> f32 {
        self.capacity_mah
    }

    /// RMS of the model's voltage error over everything [mV]; what it is at one place stands in [`Point::sigma_mv`].
    pub fn sigma_mv(&self) -> f32 {
        self.sigma_mv
    }

    /// Charge got back over charge put in.
    pub fn coulombic_efficiency(&self) -> f32 {
        self.efficiency
    }

    /// Direction of the hysteresis that jumps, after this current: 1 charge, -1 discharge; as `before` where it is small.
    #[inline]
    pub fn sign(&self, current_ma: f32, before: f32) -> f32 {
        if current_ma.abs() < 0.01 * self.capacity_mah {
            before
        } else if current_ma > 0.0 {
            -1.0
        } else {
            1.0
        }
    }

    /// Temperatures for which there are parameters [°C].
    pub fn temps_c(&self) -> &[f32] {
        self.temps_c.get(..usize::from(self.temps)).unwrap_or(&[])
    }

    /// e-folds of the hysteresis state per full capacity moved.
    pub fn hysteresis_rate(&self) -> f32 {
        self.hysteresis_rate
    }

    /// The same cell with another capacity, for a cell that has aged. Not positive or not finite: unchanged.
    pub fn with_capacity_mah(mut self, capacity_mah: f32) -> Self {
        if capacity_mah.is_finite() && capacity_mah > 0.0 {
            self.capacity_mah = capacity_mah;
        }
        self
    }

    /// Open-circuit voltage [mV]: linear between the points, its end slopes beyond 0 and 1.
    #[inline]
    pub fn ocv_mv(&self, soc: f32, temp_c: f32) -> f32 {
        const LAST: f32 = (OCV_POINTS - 1) as f32;
        let s = soc * LAST;
        let k = s.clamp(0.0, LAST - 1.0) as usize;
        let f = s - k as f32;
        let at = |list: &[f32; OCV_POINTS]| match list.get(k..k + 2) {
            Some(&[a, b]) => a + f * (b - a),
            _ => 0.0,
        };
        let slow = at(&self.ocv_mv) + (temp_c - OCV_TEMP_C) * at(&self.ocv_mv_per_k);
        if self.shifted {
            slow + self.shift(soc, temp_c)
        } else {
            slow
        }
    }

    /// Potential of the negative electrode against lithium [mV] where the new cell has this state of charge; beyond 0 and 1
    /// as far as the electrode goes, its end slopes from there.
    #[inline]
    pub fn negative_mv(&self, soc: f32) -> f32 {
        const LAST: f32 = (OCV_POINTS - 1) as f32;
        let [empty, full] = self.negative_window;
        let s = (empty + soc * (full - empty)) * LAST;
        let k = s.clamp(0.0, LAST - 1.0) as usize;
        match self.negative_mv.get(k..k + 2) {
            Some(&[a, b]) => a + (s - k as f32) * (b - a),
            _ => 0.0,
        }
    }

    /// Share of a loss of capacity that the negative electrode may hide or feign by being another (1 sigma).
    pub fn negative_doubt(&self) -> f32 {
        self.negative_doubt
    }

    /// The same cell grown old: another capacity and another curve [mV] over its own state of charge, at 25 °C and without
    /// what dynamic tests show beyond it.
    pub fn age(&mut self, capacity_mah: f32, curve: impl Fn(f32) -> f32) {
        if capacity_mah.is_finite() && capacity_mah > 0.0 {
            self.capacity_mah = capacity_mah;
        }
        let mut before = 0.0f32;
        for (k, mv) in self.ocv_mv.iter_mut().enumerate() {
            let new = curve(k as f32 / (OCV_POINTS - 1) as f32);
            if new.is_finite() {
                *mv = new.max(before);
            }
            before = *mv;
        }
    }

    /// What dynamic tests show beyond the slow curve [mV]; 0 for a cell without.
    pub fn shift_mv(&self, soc: f32, temp_c: f32) -> f32 {
        if self.shifted {
            self.shift(soc, temp_c)
        } else {
            0.0
        }
    }

    /// What dynamic tests show beyond the slow curve [mV], linear both ways.
    fn shift(&self, soc: f32, temp_c: f32) -> f32 {
        let (t, wt) = place(&self.temps_c, self.temps, temp_c);
        let (s, ws) = place(&self.soc_grid, self.socs, soc);
        let row = |t: usize| {
            let row = self.shift_mv.get(t).unwrap_or(&self.shift_mv[0]);
            let a = row.get(s).copied().unwrap_or(0.0);
            a + ws * (row.get(s + 1).copied().unwrap_or(a) - a)
        };
        if wt == 0.0 {
            return row(t);
        }
        row(t) + wt * (row(t + 1) - row(t))
    }

    /// Slope of the open-circuit voltage [mV per unit of soc], averaged over ±`half` (at least half a percent).
    #[inline]
    pub fn ocv_slope_mv(&self, soc: f32, temp_c: f32, half: f32) -> f32 {
        let half = half.max(0.005);
        let (lo, hi) = ((soc - half).max(0.0), (soc + half).min(1.0));
        if hi - lo < 0.002 {
            return (self.ocv_mv(1.0, temp_c) - self.ocv_mv(0.0, temp_c)).max(1.0);
        }
        (self.ocv_mv(hi, temp_c) - self.ocv_mv(lo, temp_c)) / (hi - lo)
    }

    /// The lowest and the highest state of charge (within 0..=1) whose open-circuit voltage lies in `lo_mv..=hi_mv`.
    pub fn soc_interval(&self, lo_mv: f32, hi_mv: f32, temp_c: f32) -> (f32, f32) {
        (
            self.soc_from_ocv(lo_mv, temp_c, false),
            self.soc_from_ocv(hi_mv, temp_c, true),
        )
    }

    /// Inverts the curve by bisection; `upper` picks the upper end of a level stretch.
    fn soc_from_ocv(&self, mv: f32, temp_c: f32, upper: bool) -> f32 {
        let (mut lo, mut hi) = (0.0f32, 1.0f32);
        for _ in 0..16 {
            let mid = 0.5 * (lo + hi);
            let v = self.ocv_mv(mid, temp_c);
            if v < mv || (upper && v == mv) {
                lo = mid;
            } else {
                hi = mid;
            }
        }
        0.5 * (lo + hi)
    }

    /// The dynamic parameters at a state of charge and temperature: linear in soc, geometric in temperature (resistances and
    /// time constants follow Arrhenius' law), the edge's value beyond the grid.
    #[inline]
    pub fn point(&self, soc: f32, temp_c: f32) -> Point {
        let (t, wt) = place(&self.temps_c, self.temps, temp_c);
        let (s, ws) = place(&self.soc_grid, self.socs, soc);
        let a = self.in_row(t, s, ws);
        if wt == 0.0 {
            return a;
        }
        let b = self.in_row(t + 1, s, ws);
        let mix = |a: f32, b: f32| {
            if a == b {
                a
            } else if a > 0.0 && b > 0.0 {
                a * math::exp2(wt * math::log2(b / a))
            } else {
                a + wt * (b - a)
            }
        };
        Point {
            r0: mix(a.r0, b.r0),
            r1: mix(a.r1, b.r1),
            tau1: mix(a.tau1, b.tau1),
            r2: mix(a.r2, b.r2),
            tau2: mix(a.tau2, b.tau2),
            hysteresis_mv: a.hysteresis_mv + wt * (b.hysteresis_mv - a.hysteresis_mv),
            rk: mix(a.rk, b.rk),
            ik: mix(a.ik, b.ik),
            r3: mix(a.r3, b.r3),
            tau3: mix(a.tau3, b.tau3),
            jump_mv: mix(a.jump_mv, b.jump_mv),
            sigma_mv: mix(a.sigma_mv, b.sigma_mv),
            doubt: mix(a.doubt, b.doubt),
        }
    }

    fn in_row(&self, t: usize, s: usize, ws: f32) -> Point {
        let row = self.grid.get(t).unwrap_or(&self.grid[0]);
        let a = row.get(s).unwrap_or(&row[0]);
        let b = row.get(s + 1).unwrap_or(a);
        let mix = |a: f32, b: f32| a + ws * (b - a);
        Point {
            r0: mix(a.r0, b.r0),
            r1: mix(a.r1, b.r1),
            tau1: mix(a.tau1, b.tau1),
            r2: mix(a.r2, b.r2),
            tau2: mix(a.tau2, b.tau2),
            hysteresis_mv: mix(a.hysteresis_mv, b.hysteresis_mv),
            rk: mix(a.rk, b.rk),
            ik: mix(a.ik, b.ik),
            r3: mix(a.r3, b.r3),
            tau3: mix(a.tau3, b.tau3),
            jump_mv: mix(a.jump_mv, b.jump_mv),
            sigma_mv: mix(a.sigma_mv, b.sigma_mv),
            doubt: mix(a.doubt, b.doubt),
        }
    }
}

/// Index `k` and weight `w` in 0..=1 so that `x` is `(1 - w) * axis[k] + w * axis[k + 1]`; at an edge w = 0.
#[inline]
fn place<const N: usize>(axis: &[f32; N], used: u8, x: f32) -> (usize, f32) {
    let axis = axis.get(..usize::from(used)).unwrap_or(axis);
    let k = axis.iter().filter(|&&a| a <= x).count();
    if k == 0 {
        return (0, 0.0);
    }
    match axis.get(k - 1..=k) {
        Some(&[a, b]) => (k - 1, (x - a) / (b - a)),
        _ => (k - 1, 0.0),
    }
}

const fn check_scalar(key: Key, value: f32, zero_allowed: bool) -> Result<(), CellError> {
    if value.is_finite() && (value > 0.0 || (zero_allowed && value == 0.0)) {
        Ok(())
    } else {
        Err(CellError::Scalar { key, value })
    }
}

const fn check_order(key: Key, list: &[f32], used: usize, strict: bool) -> Result<(), CellError> {
    let mut at = 1;
    while at < used {
        if list[at] < list[at - 1] || (strict && list[at] == list[at - 1]) {
            return Err(CellError::Order { key, at, strict });
        }
        at += 1;
    }
    Ok(())
}

const fn copy_list<const N: usize>(
    key: Key,
    from: &[f32],
    min: usize,
    fill: f32,
    lo: f32,
    hi: f32,
    want: &'static str,
) -> Result<[f32; N], CellError> {
    if from.len() < min || from.len() > N {
        return Err(CellError::Length {
            key,
            min,
            max: N,
            found: from.len(),
        });
    }
    let mut to = [fill; N];
    let mut at = 0;
    while at < from.len() {
        let value = from[at];
        if !(value >= lo && value <= hi) {
            return Err(CellError::Value {
                key,
                at,
                value,
                want,
            });
        }
        to[at] = value;
        at += 1;
    }
    Ok(to)
}

/// A table of exactly `n` finite values, each at least `lo`.
const fn copy_table(
    key: Key,
    from: &[f32],
    n: usize,
    fill: f32,
    lo: f32,
    want: &'static str,
) -> Result<[f32; CELLS], CellError> {
    if from.len() != n {
        return Err(CellError::Length {
            key,
            min: n,
            max: n,
            found: from.len(),
        });
    }
    copy_list(key, from, n, fill, lo, f32::MAX, want)
}

/// A simulated cell: the truth that filters are tested against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CellModel {
    /// State of charge; may leave 0..=1 when the cell is abused. `f64`, because a 10 ms step moves it by less than an `f32` shows.
    pub soc: f64,
    /// Voltage over the fast pair [mV].
    pub v1_mv: f32,
    /// Voltage over the slow pair [mV].
    pub v2_mv: f32,
    /// Voltage over the slowest pair [mV].
    pub v3_mv: f32,
    /// Hysteresis state, -1 after long discharge, 1 after long charge.
    pub h: f32,
    /// Sign of the newest current that was not small, for the hysteresis that jumps; 1 is charge.
    pub sign: f32,
    step: Step,
}

/// Everything of a step that changes slowly, kept until state of charge, temperature or step length have moved.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    dt: Duration,
    soc: f32,
    temp_c: f32,
    point: Point,
    fade1: f32,
    fade2: f32,
    fade3: f32,
    soc_per_ma: f64,
}

impl CellModel {
    /// A rested cell at this state of charge, half way between charge and discharge curve.
    pub fn new(soc: f64) -> Self {
        Self {
            soc,
            v1_mv: 0.0,
            v2_mv: 0.0,
            v3_mv: 0.0,
            h: 0.0,
            sign: 0.0,
            step: Step {
                dt: Duration::ZERO,
                soc: f32::NAN,
                temp_c: f32::NAN,
                point: Point::ZERO,
                fade1: 0.0,
                fade2: 0.0,
                fade3: 0.0,
                soc_per_ma: 0.0,
            },
        }
    }

    /// Lets `current_ma` flow for `dt` and returns the terminal voltage at the end of it [mV], the current still flowing.
    ///
    /// Exact for a constant current as long as the parameters stay; they are looked up again whenever state of charge has
    /// moved by 0.1 % or temperature by 0.1 K.
    pub fn step(&mut self, params: &CellParams, dt: Duration, current_ma: f32, temp_c: f32) -> f32 {
        let soc = self.soc as f32;
        let s = &self.step;
        let fresh = dt == s.dt && (soc - s.soc).abs() < 0.001 && (temp_c - s.temp_c).abs() < 0.1;
        if !fresh {
            let point = params.point(soc, temp_c);
            let seconds = dt.as_secs_f32();
            self.step = Step {
                dt,
                soc,
                temp_c,
                point,
                fade1: math::one_minus_exp(seconds / point.tau1),
                fade2: math::one_minus_exp(seconds / point.tau2),
                fade3: math::one_minus_exp(seconds / point.tau3),
                soc_per_ma: dt.as_nanos() as f64 / (3.6e12 * f64::from(params.capacity_mah)),
            };
        }
        let Step {
            point,
            fade1,
            fade2,
            fade3,
            soc_per_ma,
            ..
        } = self.step;
        let efficiency = if current_ma < 0.0 {
            params.efficiency
        } else {
            1.0
        };
        let moved = f64::from(current_ma * efficiency) * soc_per_ma;
        self.soc -= moved;
        self.v3_mv += fade3 * (point.r3 * current_ma - self.v3_mv);
        self.sign = params.sign(current_ma, self.sign);
        self.v1_mv += fade1 * (point.r1 * current_ma - self.v1_mv);
        self.v2_mv += fade2 * (point.r2 * current_ma - self.v2_mv);
        if point.hysteresis_mv > 0.0 {
            let x = params.hysteresis_rate * moved as f32;
            self.h -= math::one_minus_exp(x.abs()) * (if x > 0.0 { 1.0 } else { -1.0 } + self.h);
        }
        params.ocv_mv(self.soc as f32, temp_c)
            + point.hysteresis_mv * self.h
            + point.jump_mv * self.sign
            - self.v1_mv
            - self.v2_mv
            - self.v3_mv
            - point.instant_mv(current_ma)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::defaults::{LFP_2500MAH, NMC_5000MAH, NMC_5000MAH_DATA};
    use std::string::ToString;
    use std::vec::Vec;

    #[test]
    fn wrong_data_is_refused_with_the_place_and_the_remedy() {
        let good = NMC_5000MAH_DATA;
        let mut ocv: Vec<f32> = good.ocv_mv.to_vec();
        ocv[40] = 3000.0;
        let mut r0: Vec<f32> = good.r0_mohm.to_vec();
        r0[2] = -1.0;
        let mut nan = good.ocv_mv.to_vec();
        nan[7] = f32::NAN;
        let cases: [(CellData<'_>, &str); 12] = [
            (
                CellData {
                    ocv_mv: &ocv,
                    ..good
                },
                "ocv_mv[40] is below the number before it; make the list rise (or stay level)",
            ),
            (
                CellData {
                    ocv_mv: &nan,
                    ..good
                },
                "ocv_mv[7] is NaN; give 0 to 10000 mV",
            ),
            (
                CellData {
                    ocv_mv: &[3.7; 101],
                    ..good
                },
                "ocv_mv[100] is not above the number before it; make the list rise strictly",
            ),
            (
                CellData {
                    ocv_mv: &good.ocv_mv[1..],
                    ..good
                },
                "ocv_mv has 100 numbers; give exactly 101",
            ),
            (
                CellData {
                    r0_mohm: &r0,
                    ..good
                },
                "r0_mohm[2] is -1; give a resistance above 0 mOhm",
            ),
            (
                CellData {
                    r1_mohm: &[],
                    ..good
                },
                "r1_mohm has 0 numbers; give exactly 6",
            ),
            (
                CellData {
                    temps_c: &[0.0, 0.0],
                    ..good
                },
                "temps_c[1] is not above the number before it; make the list rise strictly",
            ),
            (
                CellData {
                    temps_c: &[],
                    ..good
                },
                "temps_c has 0 numbers; give 1 to 8",
            ),
            (
                CellData {
                    capacity_mah: f32::INFINITY,
                    ..good
                },
                "capacity_mah is inf; give a positive number",
            ),
            (
                CellData {
                    tau2_s: &[],
                    ..good
                },
                "tau2_s has 0 numbers; give exactly 6",
            ),
            (
                CellData {
                    soc_grid: &[0.5, 1.5],
                    ..good
                },
                "soc_grid[1] is 1.5; give 0 to 1",
            ),
            (
                CellData {
                    name: "a name that is much too long for a label",
                    ..good
                },
                "name has 40 bytes; shorten it to 32",
            ),
        ];
        for (data, sentence) in cases {
            assert_eq!(CellParams::new(&data).unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn the_grid_gives_its_own_points_back_and_edges_hold() {
        let data = CellData {
            temps_c: &[0.0, 20.0],
            soc_grid: &[0.1, 0.5],
            r0_mohm: &[40.0, 20.0, 10.0, 5.0],
            r1_mohm: &[4.0, 2.0, 0.0, 1.0],
            tau1_s: &[1.0; 4],
            r2_mohm: &[],
            tau2_s: &[],
            hysteresis_mv: &[30.0],
            ..NMC_5000MAH_DATA
        };
        let p = CellParams::new(&data).unwrap();
        let r0 = |soc, t| p.point(soc, t).r0 * 1000.0;
        for (soc, t, want) in [
            (0.1, 0.0, 40.0),
            (0.5, 0.0, 20.0),
            (0.1, 20.0, 10.0),
            (0.5, 20.0, 5.0),
        ] {
            assert!((r0(soc, t) - want).abs() < 1e-4);
        }
        assert!((r0(-1.0, -40.0) - 40.0).abs() < 1e-4 && (r0(2.0, 90.0) - 5.0).abs() < 1e-4);
        assert!((r0(0.3, 0.0) - 30.0).abs() < 1e-4, "linear in soc");
        assert!(
            (r0(0.1, 10.0) - 20.0).abs() < 1e-3,
            "geometric in temperature"
        );
        assert!(
            (p.point(0.1, 10.0).r1 * 1000.0 - 2.0).abs() < 1e-4,
            "linear where a value is zero"
        );
        assert_eq!(p.point(0.3, 5.0).r2, 0.0);
        assert_eq!(p.point(0.3, 5.0).hysteresis_mv, 30.0);
    }

    #[test]
    fn charge_transfer_saturates_in_the_cold() {
        let p = NMC_5000MAH
            .with_extra(&CellExtra {
                rk_mohm: &[30.0, 20.0, 10.0, 5.0, 2.0, 1.0],
                ik_ma: &[1e3, 2e3, 4e3, 8e3, 16e3, 3e4],
                ..CellExtra::default()
            })
            .unwrap();
        let cold = p.point(0.5, -20.0);
        assert!((cold.instant_mv(10.0) - 10.0 * 0.105).abs() < 1e-3);
        assert!((cold.instant_mv(-5e3) + 375.0 + 30.0 * 5f32.asinh()).abs() < 0.01);
        assert!((cold.instant_slope(5e3) - 0.075 - 0.03 / 26f32.sqrt()).abs() < 1e-5);
        let refused = NMC_5000MAH
            .with_extra(&CellExtra {
                rk_mohm: &[1.0; 6],
                ik_ma: &[0.0; 6],
                ..CellExtra::default()
            })
            .unwrap_err();
        assert_eq!(
            refused.to_string(),
            "ik_ma[0] is 0; give a current above 0 mA"
        );
        assert_eq!(NMC_5000MAH.point(0.5, -20.0).instant_mv(1e3), 75.0);
    }

    #[test]
    fn the_curve_and_its_inverse_agree_on_every_point() {
        for p in [NMC_5000MAH, LFP_2500MAH] {
            for k in 0..=1000 {
                let soc = k as f32 / 1000.0;
                let v = p.ocv_mv(soc, 10.0);
                let (lo, hi) = p.soc_interval(v - 0.01, v + 0.01, 10.0);
                assert!(lo <= soc + 1e-4 && hi >= soc - 1e-4, "{soc}: {lo}..{hi}");
            }
        }
    }

    #[test]
    fn a_constant_current_draws_the_capacity_and_the_analytic_overvoltage() {
        let p = NMC_5000MAH;
        let mut cell = CellModel::new(1.0);
        let mut v = 0.0;
        for _ in 0..360_000 {
            v = cell.step(&p, Duration::from_millis(10), 2_500.0, 25.0);
        }
        assert!((cell.soc - 0.5).abs() < 1e-9);
        let point = p.point(0.5, 25.0);
        let want = p.ocv_mv(0.5, 25.0) - 2_500.0 * (point.r0 + point.r1 + point.r2);
        assert!((v - want).abs() < 0.5, "{v} {want}");
    }

    #[test]
    fn hysteresis_holds_charge_above_discharge() {
        let p = LFP_2500MAH;
        let rest = |sign: f32| {
            let mut cell = CellModel::new(0.5 + 0.2 * f64::from(sign));
            for _ in 0..1440 {
                cell.step(&p, Duration::from_secs(1), sign * 1_250.0, 25.0);
            }
            assert!((cell.soc - 0.5).abs() < 1e-6);
            for _ in 0..20 {
                cell.step(&p, Duration::from_secs(3600), 0.0, 25.0);
            }
            cell.step(&p, Duration::from_secs(1), 0.0, 25.0)
        };
        let gap = rest(-1.0) - rest(1.0);
        let full = 2.0 * p.point(0.5, 25.0).hysteresis_mv;
        assert!(gap > 0.9 * full && gap <= full, "{gap} of {full}");
    }

    #[test]
    fn step_length_does_not_change_the_answer() {
        let p = LFP_2500MAH;
        let run = |ms: u64| {
            let mut cell = CellModel::new(0.8);
            let mut v = 0.0;
            for k in 0..(600_000 / ms) {
                let t = k * ms / 30_000;
                v = cell.step(
                    &p,
                    Duration::from_millis(ms),
                    if t.is_multiple_of(3) {
                        5_000.0
                    } else {
                        -1_000.0
                    },
                    10.0,
                );
            }
            v
        };
        assert!((run(10) - run(1000)).abs() < 0.1);
    }
}
