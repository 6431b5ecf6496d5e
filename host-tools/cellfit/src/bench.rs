//! What the battery room must hold, measured: estimates on recordings that the cell files were not fitted to, under the
//! sensor errors of the McMaster blind benchmark, beside coulomb counting and a plain extended Kalman filter; and capacity
//! over a cell's life.

use helio_battery::{CellParams, HealthFilter};
use serde::Serialize;
use std::fmt::Write as _;

use crate::life::{self, LifeScore, Sensors};
use crate::recording::Recording;
use crate::score::{Counting, Estimator, Helio, PlainEkf, Score, Trial, run};

/// Which goals a recording is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// NMC by PyBaMM.
    NmcModel,
    /// A123 LFP, measured.
    A123,
    /// NMC of About:Energy, measured.
    NmcMeasured,
    /// LFP of About:Energy, measured.
    LfpMeasured,
}

impl Group {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::NmcModel => "NMC, PyBaMM",
            Self::A123 => "A123 LFP",
            Self::NmcMeasured => "About:Energy NMC",
            Self::LfpMeasured => "About:Energy LFP",
        }
    }

    /// Whether the voltage tells the state of charge everywhere.
    fn is_telling(self) -> bool {
        matches!(self, Self::NmcModel | Self::NmcMeasured)
    }
}

/// A recording with its truth and the cell it is followed with.
#[derive(Debug)]
pub struct Case {
    /// Goals.
    pub group: Group,
    /// Cell, fitted on other recordings.
    pub params: CellParams,
    /// Recording.
    pub recording: Recording,
    /// True state of charge, one per row.
    pub truth: Vec<f64>,
}

/// A life with its truth.
#[derive(Debug)]
pub struct Life {
    /// New cell.
    pub params: CellParams,
    /// Recording.
    pub recording: Recording,
    /// True state of charge, one per row.
    pub soc: Vec<f64>,
    /// True capacity, one per row [Ah].
    pub capacity_ah: Vec<f64>,
}

/// One figure beside its goal.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Of what.
    pub what: String,
    /// Measured.
    pub value: f64,
    /// Smallest value that holds.
    pub least: Option<f64>,
    /// Largest value that holds.
    pub most: Option<f64>,
    /// Unit.
    pub unit: &'static str,
    /// Whether it holds.
    pub held: bool,
}

/// One line of the recipe: an error of the sensors, and what the estimators make of it over all recordings of a group.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Recordings.
    pub group: Group,
    /// Error.
    pub trial: &'static str,
    /// Estimator.
    pub estimator: &'static str,
    /// Root mean square error over everything, points.
    pub rmse_pct: f64,
    /// Largest error, points.
    pub max_error_pct: f64,
    /// Time within two sigma (0 for what states none).
    pub within_2_sigma_pct: f64,
    /// More than five points wrong and further than two sigma off.
    pub wrong_and_sure_pct: f64,
}

/// Everything measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Goals.
    pub figures: Vec<Figure>,
    /// The recipe.
    pub recipe: Vec<Line>,
    /// Every recording without sensor errors.
    pub plain: Vec<Score>,
    /// Lives.
    pub lives: Vec<LifeScore>,
    /// What was not there.
    pub skipped: Vec<String>,
}

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Only the goals.
    Quick,
    /// The whole recipe with all estimators.
    Whole,
}

fn trials(one_c: f64, extent: Extent) -> Vec<(&'static str, Trial, u32)> {
    let plain = Trial::default();
    let offset = |share: f64| Trial {
        offset_a: share * one_c,
        ..plain
    };
    let restart = |error: f64| Trial {
        start_error: Some(error),
        restart_s: Some(900.0),
        ..plain
    };
    let mut list = vec![
        ("as recorded", plain, 1),
        ("current +2 % of 1C", offset(0.02), 1),
        ("current -2 % of 1C", offset(-0.02), 1),
        ("restarts +30 points", restart(0.3), 1),
        ("restarts -30 points", restart(-0.3), 1),
    ];
    if extent == Extent::Whole {
        list.extend([
            (
                "temperature +3 K",
                Trial {
                    temp_offset_k: 3.0,
                    ..plain
                },
                1,
            ),
            (
                "temperature -3 K",
                Trial {
                    temp_offset_k: -3.0,
                    ..plain
                },
                1,
            ),
            (
                "voltage in 5 mV",
                Trial {
                    step_mv: 5.0,
                    ..plain
                },
                1,
            ),
            ("sampled at 10 Hz", plain, 10),
            ("20 % of samples lost", Trial { lost: 0.2, ..plain }, 1),
            (
                "all at once",
                Trial {
                    offset_a: 0.01 * one_c,
                    temp_offset_k: 2.0,
                    step_mv: 5.0,
                    noise_mv: 2.0,
                    lost: 0.05,
                    start_error: Some(0.1),
                    ..plain
                },
                1,
            ),
        ]);
    }
    list
}

/// So many rows instead of one, straight lines between them.
fn denser(r: &Recording, truth: &[f64], times: u32) -> (Recording, Vec<f64>) {
    if times <= 1 {
        return (r.clone(), truth.to_vec());
    }
    let mut d = Recording {
        soc: None,
        extra: None,
        ..r.clone()
    };
    let fill = |list: &[f64]| -> Vec<f64> {
        let mut out = Vec::with_capacity(list.len() * times as usize);
        for pair in list.windows(2) {
            for k in 0..times {
                out.push(pair[0] + (pair[1] - pair[0]) * f64::from(k) / f64::from(times));
            }
        }
        out.extend(list.last());
        out
    };
    for list in [
        &mut d.t,
        &mut d.i,
        &mut d.v,
        &mut d.temp,
        &mut d.out_ah,
        &mut d.in_ah,
    ] {
        *list = fill(list);
    }
    (d, fill(truth))
}

#[derive(Default)]
struct Sum {
    square: f64,
    n: f64,
    max: f64,
    within: f64,
    wrong: f64,
}

impl Sum {
    fn add(&mut self, s: &Score) {
        let n = s.points as f64;
        self.n += n;
        self.square += n * s.rmse_pct * s.rmse_pct;
        self.within += n * s.within_2_sigma_pct;
        self.wrong += n * s.wrong_and_sure_pct;
        self.max = self.max.max(s.max_error_pct);
    }
}

/// Measures; `progress` hears what.
pub fn measure(
    cases: &[Case],
    lives: &[Life],
    skipped: Vec<String>,
    extent: Extent,
    mut progress: impl FnMut(&str),
) -> Report {
    let mut report = Report {
        skipped,
        ..Report::default()
    };
    let groups = [
        Group::NmcModel,
        Group::A123,
        Group::NmcMeasured,
        Group::LfpMeasured,
    ];
    for group in groups {
        let of: Vec<&Case> = cases.iter().filter(|c| c.group == group).collect();
        if of.is_empty() {
            continue;
        }
        of_group(group, &of, extent, &mut report, &mut progress);
    }
    for life in lives {
        for sensors in Sensors::USUAL {
            progress(&format!("life {}", life.recording.name));
            let (score, _) = life::follow(
                0,
                HealthFilter::NEW,
                &life.params,
                &life.recording,
                &life.capacity_ah,
                &life.soc,
                &sensors,
            );
            report.lives.push(score);
        }
    }
    if !report.lives.is_empty() {
        let lives = &report.lives;
        let n = lives.len() as f64;
        let rms = (lives.iter().map(|l| l.rmse_pct.powi(2)).sum::<f64>() / n).sqrt();
        let within = lives.iter().map(|l| l.within_bounds_pct).sum::<f64>() / n;
        let worst = lives.iter().map(|l| l.rmse_pct).fold(0.0, f64::max);
        let figures = [
            figure(
                "capacity over all lives, RMSE".into(),
                rms,
                None,
                Some(1.0),
                "%",
            ),
            figure(
                "capacity of the worst life, RMSE".into(),
                worst,
                None,
                Some(1.0),
                "%",
            ),
            figure(
                "capacity within its 95 % bounds".into(),
                within,
                Some(95.0),
                None,
                "%",
            ),
        ];
        report.figures.extend(figures);
    }
    report
}

fn figure(
    what: String,
    value: f64,
    least: Option<f64>,
    most: Option<f64>,
    unit: &'static str,
) -> Figure {
    let held = least.is_none_or(|l| value >= l) && most.is_none_or(|m| value <= m);
    Figure {
        what,
        value,
        least,
        most,
        unit,
        held,
    }
}

fn of_group(
    group: Group,
    cases: &[&Case],
    extent: Extent,
    report: &mut Report,
    progress: &mut impl FnMut(&str),
) {
    let name = group.name();
    let mut plain = Vec::new();
    let mut pooled = Sum::default();
    let mut slowest: Vec<(f64, Option<f64>)> = Vec::new();
    let mut offset_hour: Vec<(f64, f64)> = Vec::new();
    let one_c = cases
        .first()
        .map_or(1.0, |c| f64::from(c.params.capacity_mah()) * 1e-3);
    for (what, trial, times) in trials(one_c, extent) {
        let mut sums: [Sum; 3] = Default::default();
        for case in cases {
            progress(&format!("{name}: {what}, {}", case.recording.name));
            let (r, truth) = denser(&case.recording, &case.truth, times);
            let mut helio = Helio::new(&case.params);
            let (score, _) = run(&mut helio, &r, &truth, &trial);
            sums[0].add(&score);
            pooled.add(&score);
            let temp = case.recording.start_temp();
            if trial.restart_s.is_some() {
                slowest.push((temp, score.within_5_points_after_s));
            }
            if what == "as recorded" {
                plain.push(score);
            }
            if extent == Extent::Whole {
                let mut counting = Counting::new(&case.params);
                let mut ekf = PlainEkf::new(&case.params);
                let others: [&mut dyn Estimator; 2] = [&mut counting, &mut ekf];
                for (sum, estimator) in sums.iter_mut().skip(1).zip(others) {
                    sum.add(&run(estimator, &r, &truth, &trial).0);
                }
            }
        }
        for (sum, estimator) in sums.iter().zip(["helio", "counting", "plain EKF"]) {
            if sum.n > 0.0 {
                report.recipe.push(Line {
                    group,
                    trial: what,
                    estimator,
                    rmse_pct: (sum.square / sum.n).sqrt(),
                    max_error_pct: sum.max,
                    within_2_sigma_pct: sum.within / sum.n,
                    wrong_and_sure_pct: sum.wrong / sum.n,
                });
            }
        }
    }
    // The offset: +0.1 A on 3 Ah.
    for case in cases {
        let trial = Trial {
            offset_a: one_c / 30.0,
            ..Trial::default()
        };
        let (score, _) = run(
            &mut Helio::new(&case.params),
            &case.recording,
            &case.truth,
            &trial,
        );
        pooled.add(&score);
        if let Some(error) = score.error_at_1h_pct {
            offset_hour.push((case.recording.start_temp(), error));
        }
    }
    let figures = &mut report.figures;
    let max_at = |warm: f64| {
        plain
            .iter()
            .filter(|s| s.temperature_c >= warm)
            .map(|s| s.max_error_pct)
            .fold(0.0, f64::max)
    };
    let worst = |list: &[&Score]| list.iter().map(|s| s.rmse_pct).fold(0.0, f64::max);
    match group {
        Group::NmcModel => {
            let mean = plain.iter().map(|s| s.rmse_pct).sum::<f64>() / plain.len().max(1) as f64;
            figures.push(figure(
                format!("{name}: mean RMSE, -10 to 40 °C"),
                mean,
                None,
                Some(0.8),
                "%",
            ));
            figures.push(figure(
                format!("{name}: largest error from 0 °C"),
                max_at(-3.0),
                None,
                Some(3.0),
                "%",
            ));
        }
        Group::A123 => {
            let (warm, rest): (Vec<&Score>, Vec<&Score>) =
                plain.iter().partition(|s| s.temperature_c > 2.0);
            let cold: Vec<&Score> = rest
                .into_iter()
                .filter(|s| s.temperature_c < -15.0)
                .collect();
            figures.push(figure(
                format!("{name}: worst RMSE, 5 to 35 °C"),
                worst(&warm),
                None,
                Some(2.0),
                "%",
            ));
            figures.push(figure(
                format!("{name}: largest error, 5 to 35 °C"),
                max_at(2.0),
                None,
                Some(3.0),
                "%",
            ));
            if !cold.is_empty() {
                figures.push(figure(
                    format!("{name}: RMSE, -25 °C"),
                    worst(&cold),
                    None,
                    Some(3.0),
                    "%",
                ));
            }
        }
        Group::NmcMeasured | Group::LfpMeasured => {
            let goal = if group == Group::NmcMeasured {
                1.0
            } else {
                2.5
            };
            let all: Vec<&Score> = plain.iter().collect();
            figures.push(figure(
                format!("{name}: RMSE"),
                worst(&all),
                None,
                Some(goal),
                "%",
            ));
        }
    }
    if group.is_telling() {
        for (what, low, high, goal) in [("from 10 °C", 9.0, 99.0, 0.7), ("0 °C", -5.0, 9.0, 1.3)]
        {
            let of = offset_hour.iter().filter(|o| o.0 >= low && o.0 < high);
            if let Some(error) = of.map(|o| o.1).reduce(f64::max) {
                figures.push(figure(
                    format!("{name}: current +C/30, after 1 h, {what}"),
                    error,
                    None,
                    Some(goal),
                    "%",
                ));
            }
        }
        for (what, low, high, goal) in [
            ("from 10 °C", 9.0, 99.0, 120.0),
            ("below", -99.0, 9.0, 600.0),
        ] {
            let of: Vec<_> = slowest
                .iter()
                .filter(|s| s.0 >= low && s.0 < high)
                .collect();
            if !of.is_empty() {
                let never = f64::INFINITY;
                let worst = of.iter().map(|s| s.1.unwrap_or(never)).fold(0.0, f64::max);
                figures.push(figure(
                    format!("{name}: restarts ±30 points within 5, {what}"),
                    worst,
                    None,
                    Some(goal),
                    "s",
                ));
            }
        }
    } else if pooled.n > 0.0 {
        figures.push(figure(
            format!("{name}: over 5 points wrong and sure of it"),
            pooled.wrong / pooled.n,
            None,
            Some(5.0),
            "%",
        ));
    }
    if pooled.n > 0.0 {
        figures.push(figure(
            format!("{name}: truth within 2 sigma, over all trials"),
            pooled.within / pooled.n,
            Some(90.0),
            Some(99.0),
            "%",
        ));
    }
    report.plain.extend(plain);
}

impl Report {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut t = String::new();
        let _ = writeln!(
            t,
            "as recorded                           °C  RMSE %   max %   in 2 sigma %  sigma %"
        );
        for s in &self.plain {
            let _ = writeln!(
                t,
                "  {:<34} {:>4.0} {:>7.2} {:>7.2} {:>12.1} {:>9.2}",
                s.trace,
                s.temperature_c,
                s.rmse_pct,
                s.max_error_pct,
                s.within_2_sigma_pct,
                s.mean_sigma_pct
            );
        }
        let _ = writeln!(
            t,
            "\nrecipe                                   helio             counting          plain EKF       in 2 sigma %"
        );
        let _ = writeln!(
            t,
            "                                         RMSE    max       RMSE    max       RMSE    max     helio   EKF"
        );
        let of = |line: &Line, estimator: &str| {
            self.recipe
                .iter()
                .find(|l| {
                    l.group == line.group && l.trial == line.trial && l.estimator == estimator
                })
                .cloned()
        };
        let pair = |l: &Option<Line>| {
            l.as_ref().map_or_else(
                || "     -      -".into(),
                |l| format!("{:>6.2} {:>6.1}", l.rmse_pct, l.max_error_pct),
            )
        };
        let within = |l: &Option<Line>| {
            l.as_ref()
                .map_or_else(|| "-".into(), |l| format!("{:.1}", l.within_2_sigma_pct))
        };
        for line in self.recipe.iter().filter(|l| l.estimator == "helio") {
            let [ours, counting, ekf] = ["helio", "counting", "plain EKF"].map(|e| of(line, e));
            let _ = writeln!(
                t,
                "  {:<18} {:<20} {}   {}   {}   {:>7} {:>5}",
                line.group.name(),
                line.trial,
                pair(&ours),
                pair(&counting),
                pair(&ekf),
                within(&ours),
                within(&ekf)
            );
        }
        if !self.lives.is_empty() {
            let _ = writeln!(
                t,
                "\nlives                      ends at %   rests   RMSE %   max %   bounds ±%   within %   soc RMSE %"
            );
        }
        for l in &self.lives {
            let sign = if l.sensors.offset_a > 0.0 { '+' } else { '-' };
            let _ = writeln!(
                t,
                "  {:<22}{sign} {:>10.1} {:>7} {:>8.2} {:>7.2} {:>11.2} {:>10.1} {:>12.2}",
                l.life,
                l.end_pct,
                l.rests,
                l.rmse_pct,
                l.max_error_pct,
                l.half_width_pct,
                l.within_bounds_pct,
                l.soc_rmse_pct
            );
        }
        let _ = writeln!(t);
        for f in &self.figures {
            let goal = match (f.least, f.most) {
                (Some(l), Some(m)) => format!("{l} to {m}"),
                (Some(l), None) => format!("at least {l}"),
                (None, Some(m)) => format!("at most {m}"),
                (None, None) => String::new(),
            };
            let value = if f.value > 1e9 {
                "never".into()
            } else {
                format!("{:.2}", f.value)
            };
            let _ = writeln!(
                t,
                "{:<58} {value:>8} {:<2} goal {goal:<14} {}",
                f.what,
                f.unit,
                if f.held { "held" } else { "MISSED" }
            );
        }
        for s in &self.skipped {
            let _ = writeln!(t, "skipped: {s}");
        }
        t
    }

    /// Goals that are missed.
    pub fn missed(&self) -> usize {
        self.figures.iter().filter(|f| !f.held).count()
    }
}
