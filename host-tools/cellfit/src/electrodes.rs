//! Which negative electrode a cell has, and how much of it the new cell uses: for the state of health.
//!
//! The positive electrode's curve is what remains when the negative one's is added to the cell's. Graphite's steps belong to the
//! negative electrode; placed rightly they vanish from the remainder, placed wrongly they appear in it twice. So the electrode
//! and window are sought that leave the smoothest positive curve (differential voltage analysis: I. Bloom et al., *J. Power
//! Sources* 139 (2005) 295).

use helio_battery::cell::{GRAPHITE_MV, GRAPHITE_SILICON_MV};

use crate::slow::POINTS;

/// A negative electrode.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Negative {
    /// What it is.
    pub name: &'static str,
    /// Potential [mV] over stoichiometry 0.00, 0.01 .. 1.00.
    pub mv: [f32; POINTS],
    /// Stoichiometry of the empty and of the full cell.
    pub window: [f64; 2],
}

impl Negative {
    /// Potential [V] at a state of charge of the cell.
    pub fn volts(&self, soc: f64) -> f64 {
        let [empty, full] = self.window;
        let s = (empty + soc * (full - empty)) * (POINTS - 1) as f64;
        let k = s.clamp(0.0, (POINTS - 2) as f64) as usize;
        let (a, b) = (f64::from(self.mv[k]), f64::from(self.mv[k + 1]));
        1e-3 * (a + (s - k as f64) * (b - a))
    }
}

/// Finds electrode and window by a curve at rest [V]. `measured` tells its points that are not continued.
pub fn find(ocv: &[f64], measured: &[bool]) -> Negative {
    let known = [
        ("graphite", GRAPHITE_MV),
        ("graphite with silicon", GRAPHITE_SILICON_MV),
    ];
    let mut best = (f64::INFINITY, None);
    for (name, mv) in known {
        for a in 0..=24 {
            for b in 0..=60 {
                let window = [0.005 * f64::from(a), 0.70 + 0.005 * f64::from(b)];
                let tried = Negative { name, mv, window };
                let rough = roughness(ocv, measured, &tried);
                if rough < best.0 {
                    best = (rough, Some(tried));
                }
            }
        }
    }
    best.1.unwrap_or(Negative {
        name: "graphite",
        mv: GRAPHITE_MV,
        window: [0.02, 0.88],
    })
}

/// Sum of second differences over ±4 points of what is left for the positive electrode [V].
fn roughness(ocv: &[f64], measured: &[bool], negative: &Negative) -> f64 {
    const REACH: usize = 4;
    let positive: Vec<f64> = (0..POINTS)
        .map(|k| ocv[k] + negative.volts(crate::slow::soc_of(k)))
        .collect();
    (5 + REACH..POINTS - REACH - 2)
        .filter(|k| measured[k - REACH] && measured[k + REACH])
        .map(|k| (positive[k + REACH] - 2.0 * positive[k] + positive[k - REACH]).abs())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_of_a_known_electrode_is_found_again() {
        for (name, mv, window) in [
            ("graphite", GRAPHITE_MV, [0.03, 0.85]),
            ("graphite with silicon", GRAPHITE_SILICON_MV, [0.03, 0.91]),
        ] {
            let truth = Negative { name, mv, window };
            let ocv: Vec<f64> = (0..POINTS)
                .map(|k| {
                    let z = crate::slow::soc_of(k);
                    3.55 + 0.62 * z + 0.06 * (3.0 * z).sin() - truth.volts(z)
                })
                .collect();
            let found = find(&ocv, &[true; POINTS]);
            assert_eq!(found.name, name);
            assert!((found.window[0] - window[0]).abs() < 0.011, "{found:?}");
            assert!((found.window[1] - window[1]).abs() < 0.021, "{found:?}");
        }
    }
}
