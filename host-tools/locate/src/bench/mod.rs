//! What positioning must hold, measured: every figure beside its goal, with a 95 % confidence interval.
//!
//! Monte Carlo runs with given seeds, one thread. [`run`] measures this project; peers are measured by
//! `benches/positioning`, which links them, calls [`speed`] for ours and prints the ratio of one run.

mod codes;
mod diagnosis;
mod lateration;
mod recorded;
mod robust;
mod tracking;
pub mod world;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use lateration::{inputs, speed};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A fiftieth of the trials: seconds instead of minutes, and wider intervals.
    pub quick: bool,
    /// Only parts of these names; empty: all.
    pub parts: Vec<String>,
    /// Where the recordings are, `positioning/uwb-planar` in it.
    pub data: PathBuf,
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// From the first to the second.
    Within(f64, f64),
    /// None was set; for comparison.
    Told,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Part of the bench.
    pub part: String,
    /// What was measured.
    pub what: String,
    /// Its unit; empty for a ratio or a count.
    pub unit: String,
    /// What it must be.
    pub goal: Goal,
    /// What it is.
    pub value: f64,
    /// 95 % confidence interval.
    pub low: f64,
    /// See there.
    pub high: f64,
    /// Trials.
    pub trials: usize,
    /// Whether the value meets its goal; `None` without one.
    pub held: Option<bool>,
}

impl Figure {
    /// A value with its interval.
    pub fn new(
        part: &str,
        what: &str,
        unit: &str,
        goal: Goal,
        value: [f64; 3],
        trials: usize,
    ) -> Self {
        let [value, low, high] = value;
        // As printed: a figure is held if what is shown is.
        let shown = (value * 1e4).round() / 1e4;
        let held = match goal {
            Goal::AtMost(most) => Some(shown <= most),
            Goal::AtLeast(least) => Some(shown >= least),
            Goal::Within(least, most) => Some((least..=most).contains(&shown)),
            Goal::Told => None,
        };
        Self {
            part: part.into(),
            what: what.into(),
            unit: unit.into(),
            goal,
            value,
            low,
            high,
            trials,
            held,
        }
    }

    /// A share in percent, with Wilson's interval (E. Wilson 1927).
    pub fn share(part: &str, what: &str, goal: Goal, hits: usize, trials: usize) -> Self {
        let (n, z) = (trials.max(1) as f64, 1.96);
        let p = hits as f64 / n;
        let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
        let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let interval = [
            100.0 * p,
            100.0 * (centre - half).max(0.0),
            100.0 * (centre + half).min(100.0),
        ];
        Self::new(part, what, "%", goal, interval, trials)
    }

    /// A count of what should not happen; above it what 95 % confidence leaves (rule of three).
    pub fn count(part: &str, what: &str, goal: Goal, hits: usize, trials: usize) -> Self {
        let n = hits as f64;
        let half = 1.96 * n.sqrt();
        let high = if hits == 0 { 3.0 } else { n + half };
        Self::new(part, what, "", goal, [n, (n - half).max(0.0), high], trials)
    }

    /// A quantile, with the interval of its order statistics. Sorts.
    pub fn quantile(
        part: &str,
        what: &str,
        unit: &str,
        goal: Goal,
        values: &mut [f64],
        p: f64,
        scale: f64,
    ) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let half = 1.96 * (p * (1.0 - p) / n.max(1.0)).sqrt();
        let at = |p: f64| {
            let place = (p.clamp(0.0, 1.0) * (n - 1.0)).round().max(0.0) as usize;
            scale * values.get(place).copied().unwrap_or(f64::NAN)
        };
        let interval = [at(p), at(p - half), at(p + half)];
        Self::new(part, what, unit, goal, interval, values.len())
    }

    fn line(&self) -> String {
        let goal = match self.goal {
            Goal::AtMost(x) => format!("<= {x}"),
            Goal::AtLeast(x) => format!(">= {x}"),
            Goal::Within(a, b) => format!("{a} to {b}"),
            Goal::Told => "-".into(),
        };
        let held = match self.held {
            Some(true) => "held",
            Some(false) => "MISSED",
            None => "",
        };
        let digits = if self.value.abs() < 20.0 { 3 } else { 1 };
        let number = |x: f64| format!("{x:.digits$}");
        format!(
            "{:<12} {:<62} {:>10} {:<3} [{}, {}]  goal {:<10} {held}\n",
            self.part,
            self.what,
            number(self.value),
            self.unit,
            number(self.low),
            number(self.high),
            goal
        )
    }
}

/// All figures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// One per line of the table.
    pub figures: Vec<Figure>,
    /// What could not be measured, and what it takes.
    pub notes: Vec<String>,
}

impl Report {
    /// Figures that miss their goal.
    pub fn missed(&self) -> usize {
        self.figures
            .iter()
            .filter(|f| f.held == Some(false))
            .count()
    }

    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t: String = self.figures.iter().map(Figure::line).collect();
        for note in &self.notes {
            t += &format!("note: {note}\n");
        }
        let goals = self.figures.iter().filter(|f| f.held.is_some()).count();
        t + &format!("{} of {goals} goals held\n", goals - self.missed())
    }
}

/// A part of the bench.
type Part = fn(&Plan, &mut Report);

/// The parts by name.
pub const PARTS: &[(&str, Part)] = &[
    ("bound", lateration::bound),
    ("speed", lateration::times),
    ("ceilings", lateration::ceilings),
    ("fuzz", lateration::fuzz),
    ("reflections", robust::reflections),
    ("integrity", robust::integrity),
    ("camera", tracking::camera),
    ("recording", recorded::trolley),
    ("tracker", tracking::tracker),
    ("diagnosis", diagnosis::diagnosis),
    ("light", codes::codes),
];

/// Measures; `progress` hears what runs.
pub fn run(plan: &Plan, mut progress: impl FnMut(&str)) -> Report {
    let mut report = Report::default();
    for (name, part) in PARTS {
        if plan.parts.is_empty() || plan.parts.iter().any(|p| p == name) {
            progress(name);
            part(plan, &mut report);
        }
    }
    report
}

impl Plan {
    /// So many trials, or a fiftieth.
    fn trials(&self, full: usize) -> usize {
        if self.quick { (full / 50).max(1) } else { full }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_held_by_its_value_and_its_interval_is_that_of_the_trials() {
        let f = Figure::share("p", "w", Goal::AtMost(0.1), 93, 100_000);
        assert_eq!(f.held, Some(true));
        assert!(
            f.low < 0.093 && f.high > 0.093 && f.high - f.low < 0.05,
            "{f:?}"
        );
        let mut values: Vec<f64> = (0..1001).map(f64::from).collect();
        let f = Figure::quantile("p", "w", "cm", Goal::AtMost(499.0), &mut values, 0.5, 1.0);
        assert_eq!((f.value, f.held), (500.0, Some(false)));
        assert!((469.0..=470.0).contains(&f.low), "{f:?}");
        assert_eq!(Figure::count("p", "w", Goal::AtMost(0.0), 0, 10).high, 3.0);
    }
}
