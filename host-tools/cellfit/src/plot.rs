//! Plots of a cell as SVG: what its file says, and what a fit leaves over.

use helio_battery::CellParams;
use std::fmt::Write as _;

use crate::fit::Fitted;

/// A named line of points.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

/// A plot with axes and legend.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below the x axis, with unit.
    pub x: &'static str,
    /// At the y axis, with unit.
    pub y: &'static str,
    /// Lines.
    pub series: Vec<Series>,
    /// Whether y is logarithmic.
    pub log: bool,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Distinguishable without red and green (M. Okabe, K. Ito, 2008).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999",
];

impl Plot {
    /// The whole file.
    pub fn to_svg(&self) -> String {
        let all = || {
            self.series
                .iter()
                .flat_map(|s| &s.points)
                .filter(|p| p.0.is_finite() && p.1.is_finite())
        };
        let range = |value: &dyn Fn(&(f64, f64)) -> f64| {
            let (low, high) = all().fold((f64::MAX, f64::MIN), |(l, h), p| {
                (l.min(value(p)), h.max(value(p)))
            });
            if low > high {
                (0.0, 1.0)
            } else if high - low < 1e-9 {
                (low - 0.5, high + 0.5)
            } else {
                (low, high)
            }
        };
        let scaled = |y: f64| if self.log { y.max(1e-6).log10() } else { y };
        let (x0, x1) = range(&|p| p.0);
        let (mut y0, mut y1) = range(&|p| scaled(p.1));
        let margin = 0.04 * (y1 - y0);
        (y0, y1) = (y0 - margin, y1 + margin);
        let px = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| HEIGHT - BOTTOM - (scaled(y) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let mut t = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>\n",
            escape(&self.title)
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for x in ticks(x0, x1) {
            let at = px(x);
            let _ = writeln!(
                t,
                "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                number(x)
            );
        }
        let marks = if self.log {
            let (a, b) = (y0.floor() as i32, y1.ceil() as i32);
            (a..=b)
                .flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)))
                .filter(|y| y.log10() >= y0 && y.log10() <= y1)
                .collect()
        } else {
            ticks(y0, y1)
        };
        for y in marks {
            let at = py(y);
            let _ = writeln!(
                t,
                "<path d=\"M{LEFT} {at:.1}H{right}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                number(y)
            );
        }
        let _ = writeln!(
            t,
            "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"#666\"/>",
            right - LEFT,
            bottom - TOP
        );
        let _ = writeln!(
            t,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            0.5 * (LEFT + right),
            HEIGHT - 12.0,
            escape(self.x)
        );
        let _ = writeln!(
            t,
            "<text transform=\"translate(16 {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            0.5 * (TOP + bottom),
            escape(self.y)
        );
        for (k, s) in self.series.iter().enumerate() {
            let colour = COLOURS[k % COLOURS.len()];
            let mut d = String::new();
            for (x, y) in s
                .points
                .iter()
                .filter(|p| p.0.is_finite() && p.1.is_finite())
            {
                let _ = write!(
                    d,
                    "{}{:.1} {:.1}",
                    if d.is_empty() { 'M' } else { 'L' },
                    px(*x),
                    py(*y)
                );
            }
            let _ = writeln!(
                t,
                "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>"
            );
            let y = TOP + 14.0 + 17.0 * k as f64;
            let _ = writeln!(
                t,
                "<path d=\"M{:.1} {:.1}h18\" stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                right + 8.0,
                y - 4.0,
                right + 30.0,
                escape(&s.name)
            );
        }
        t + "</svg>\n"
    }
}

/// Round numbers within a range, about six.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= rough)
        .unwrap_or(power);
    let first = (low / step).ceil() as i64;
    (first..)
        .map(|k| k as f64 * step)
        .take_while(|x| *x <= high + 1e-9 * step)
        .take(40)
        .collect()
}

fn number(x: f64) -> String {
    let text = format!("{x:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".into()
    } else {
        text.into()
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// What a cell file says: name of a plot's file, and the plot.
pub fn of_cell(params: &CellParams) -> Vec<(&'static str, Plot)> {
    let socs = || (0..=100).map(|k| f64::from(k) * 0.01);
    let temps: Vec<f32> = params.temps_c().to_vec();
    let name = params.name();
    let over_soc = |f: &dyn Fn(f32) -> f32| -> Vec<(f64, f64)> {
        socs()
            .map(|z| (100.0 * z, f64::from(f(z as f32))))
            .collect()
    };
    let by_temp = |f: &dyn Fn(f32, f32) -> f32| -> Vec<Series> {
        temps
            .iter()
            .map(|t| Series {
                name: format!("{t:.0} °C"),
                points: over_soc(&|z| f(z, *t)),
            })
            .collect()
    };
    let mut ocv = by_temp(&|z, t| 1e-3 * params.ocv_mv(z, t));
    ocv.push(Series {
        name: "negative, V vs Li".into(),
        points: over_soc(&|z| 1e-3 * params.negative_mv(z)),
    });
    let all = |z: f32, t: f32| {
        let p = params.point(z, t);
        1e3 * (p.r0 + p.rk + p.r1 + p.r2 + p.r3)
    };
    let (low, high) = (
        temps.first().copied().unwrap_or(25.0),
        temps.last().copied().unwrap_or(25.0),
    );
    let over_temp = |f: &dyn Fn(f32) -> f32| -> Vec<(f64, f64)> {
        (0..=60)
            .map(|k| low + (high - low) * k as f32 / 60.0)
            .map(|t| (f64::from(t), f64::from(f(t))))
            .collect()
    };
    let parts = [("R0", 0), ("Rk", 1), ("R1", 2), ("R2", 3), ("R3", 4)];
    let part = |t: f32, which: usize| {
        let p = params.point(0.5, t);
        1e3 * [p.r0, p.rk, p.r1, p.r2, p.r3][which]
    };
    vec![
        (
            "ocv",
            Plot {
                title: format!("{name}: open circuit"),
                x: "state of charge [%]",
                y: "voltage [V]",
                series: ocv,
                log: false,
            },
        ),
        (
            "r0",
            Plot {
                title: format!("{name}: series resistance and charge transfer at small currents"),
                x: "state of charge [%]",
                y: "R0 + Rk [mΩ]",
                series: by_temp(&|z, t| {
                    let p = params.point(z, t);
                    1e3 * (p.r0 + p.rk)
                }),
                log: true,
            },
        ),
        (
            "resistance",
            Plot {
                title: format!("{name}: all resistances together at small currents"),
                x: "state of charge [%]",
                y: "resistance [mΩ]",
                series: by_temp(&all),
                log: true,
            },
        ),
        (
            "temperature",
            Plot {
                title: format!("{name}: resistances at half charge"),
                x: "temperature [°C]",
                y: "resistance [mΩ]",
                series: parts
                    .into_iter()
                    .filter(|(_, which)| part(25.0, *which) > 0.0)
                    .map(|(name, which)| Series {
                        name: name.into(),
                        points: over_temp(&|t| part(t, which)),
                    })
                    .collect(),
                log: true,
            },
        ),
        (
            "hysteresis",
            Plot {
                title: format!("{name}: hysteresis, either side of the mean"),
                x: "state of charge [%]",
                y: "voltage [mV]",
                series: by_temp(&|z, t| {
                    let p = params.point(z, t);
                    p.hysteresis_mv + p.jump_mv
                }),
                log: false,
            },
        ),
    ]
}

/// What a fit leaves over, over state of charge.
pub fn residuals(fitted: &Fitted) -> Plot {
    Plot {
        title: format!("{}: measured less modelled voltage", fitted.name),
        x: "state of charge [%]",
        y: "left over [mV]",
        series: fitted
            .left
            .iter()
            .map(|(name, rows)| Series {
                name: name.chars().take(18).collect(),
                points: rows
                    .iter()
                    .step_by((rows.len() / 1500).max(1))
                    .map(|(z, v)| (100.0 * z, 1e3 * v))
                    .collect(),
            })
            .collect(),
        log: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use helio_battery::defaults::LFP_2500MAH;

    #[test]
    fn every_plot_is_whole_and_its_numbers_are_numbers() {
        for (name, plot) in of_cell(&LFP_2500MAH) {
            let svg = plot.to_svg();
            assert!(
                svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
                "{name}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
            assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        }
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert!(ticks(3.21, 4.17).iter().all(|t| (3.21..=4.17).contains(t)));
    }
}
