//! How well a map's geometry sees a tag, over its floor: dilution of precision, the error that
//! follows from the anchors' noise, and the protection level.
//!
//! With `H` the unit vectors from the anchors in sight, `(HᵀH)⁻¹` holds the squares of the
//! dilutions (R. Langley, GPS World 10 (1999) 52); ranges have no clock in common, so position
//! dilution is all there is of GDOP. At a known height the vertical row is left out.

use std::fmt::Write;

use helio_positioning::{MAX_OBSERVATIONS, Options, RangeObs, Risk, protect_2d, protect_3d};
use nalgebra::{Matrix3, Vector3};
use serde::Serialize;

use crate::input::InputError;
use crate::locate::quantile;
use crate::map::SiteMap;

/// Where and how to look.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    /// Corner with the smallest x and y, metres.
    pub from_m: [f64; 2],
    /// The opposite corner.
    pub to_m: [f64; 2],
    /// Distance of points, metres.
    pub step_m: f64,
    /// Height of the tag, metres.
    pub height_m: f64,
    /// Whether that height is known when locating.
    pub known: bool,
    /// Anchors see no farther, metres.
    pub sight_m: f64,
}

/// One place.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cell {
    /// Place, metres.
    pub x_m: f64,
    /// Place, metres.
    pub y_m: f64,
    /// Anchors in sight.
    pub anchors: usize,
    /// Of the horizontal position; `None` where there is none.
    pub hdop: Option<f64>,
    /// Of the height; `None` when it is known.
    pub vdop: Option<f64>,
    /// Of the position.
    pub gdop: Option<f64>,
    /// 1-sigma of the horizontal position with the anchors' own noise, metres.
    pub sigma_horizontal_m: Option<f64>,
    /// Horizontal protection level, metres.
    pub protection_m: Option<f64>,
}

/// What a map shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Dilution of the horizontal position.
    Hdop,
    /// Dilution of the height.
    Vdop,
    /// Dilution of the position.
    Gdop,
    /// Expected horizontal error.
    Sigma,
    /// Protection level.
    Protection,
    /// Anchors in sight.
    Anchors,
}

impl Figure {
    /// Name and unit.
    fn title(self) -> &'static str {
        match self {
            Self::Hdop => "HDOP",
            Self::Vdop => "VDOP",
            Self::Gdop => "GDOP",
            Self::Sigma => "horizontal 1-sigma, m",
            Self::Protection => "horizontal protection level, m",
            Self::Anchors => "anchors in sight",
        }
    }

    fn of(self, cell: &Cell) -> Option<f64> {
        match self {
            Self::Hdop => cell.hdop,
            Self::Vdop => cell.vdop,
            Self::Gdop => cell.gdop,
            Self::Sigma => cell.sigma_horizontal_m,
            Self::Protection => cell.protection_m,
            Self::Anchors => Some(f64::from(cell.anchors as u32)),
        }
    }
}

/// A map of the floor.
#[derive(Clone, Debug, Serialize)]
pub struct DopMap {
    /// Map file.
    pub map: String,
    /// Height of the tag, metres.
    pub height_m: f64,
    /// Whether it is known.
    pub height_known: bool,
    /// Distance of cells, metres.
    pub step_m: f64,
    /// Cells along x.
    pub columns: usize,
    /// Share of cells with a position, percent.
    pub covered_pct: f64,
    /// Median and 95 % of each figure.
    pub hdop: Option<[f64; 2]>,
    /// See there.
    pub vdop: Option<[f64; 2]>,
    /// See there.
    pub gdop: Option<[f64; 2]>,
    /// See there, metres.
    pub sigma_horizontal_m: Option<[f64; 2]>,
    /// See there, metres.
    pub protection_m: Option<[f64; 2]>,
    /// Row by row from the corner with the smallest x and y.
    pub cells: Vec<Cell>,
}

impl Area {
    /// The rectangle around the anchors, at the map's height.
    pub fn of(map: &SiteMap) -> Self {
        let (mut low, mut high) = ([f64::INFINITY; 3], [f64::NEG_INFINITY; 3]);
        for a in &map.anchors {
            for k in 0..3 {
                low[k] = low[k].min(a.position_m[k]);
                high[k] = high[k].max(a.position_m[k]);
            }
        }
        let longest = (high[0] - low[0]).max(high[1] - low[1]).max(1.0);
        Self {
            from_m: [low[0], low[1]],
            to_m: [high[0], high[1]],
            step_m: longest / 40.0,
            height_m: map.recording.tag_height_m.unwrap_or(1.2),
            known: map.recording.tag_height_m.is_some(),
            sight_m: f64::INFINITY,
        }
    }
}

fn cell(map: &SiteMap, area: &Area, x: f64, y: f64) -> Cell {
    let place = Vector3::new(x, y, area.height_m);
    let mut seen: Vec<RangeObs<f64>> = map
        .anchors
        .iter()
        .map(|a| RangeObs {
            anchor_m: a.position_m,
            range_m: (place - Vector3::from(a.position_m)).norm(),
            sigma_m: a.sigma(),
        })
        .filter(|o| o.range_m <= area.sight_m)
        .collect();
    let (mut plain, mut weighted) = (Matrix3::zeros(), Matrix3::zeros());
    for o in &seen {
        let u = (place - Vector3::from(o.anchor_m)) / o.range_m.max(1e-6);
        plain += u * u.transpose();
        weighted += u * u.transpose() / (o.sigma_m * o.sigma_m);
    }
    let known = area.known;
    let invert = |mut m: Matrix3<f64>| {
        if known {
            for k in 0..2 {
                (m[(2, k)], m[(k, 2)]) = (0.0, 0.0);
            }
            m[(2, 2)] = 1.0;
        }
        // Worse than a thousandfold dilution is no position.
        let inverse = m.try_inverse()?;
        let floor = m.trace().recip() * 1e-9;
        (0..3)
            .all(|k| inverse[(k, k)] > floor && inverse[(k, k)] < 1e6)
            .then_some(inverse)
    };
    let three = seen.len() >= 3;
    let dop = invert(plain).filter(|_| three);
    let sigma = invert(weighted).filter(|_| three);
    seen.sort_by(|a, b| a.range_m.total_cmp(&b.range_m));
    let anchors = seen.len();
    seen.truncate(MAX_OBSERVATIONS);
    let (options, risk) = (Options::default(), Risk::default());
    let level = if known {
        protect_2d(&seen, area.height_m, &options, &risk)
    } else {
        protect_3d(&seen, &options, &risk)
    };
    Cell {
        x_m: x,
        y_m: y,
        anchors,
        hdop: dop.map(|d| (d[(0, 0)] + d[(1, 1)]).sqrt()),
        vdop: dop.filter(|_| !known).map(|d| d[(2, 2)].sqrt()),
        gdop: dop.map(|d| {
            let up = if known { 0.0 } else { d[(2, 2)] };
            (d[(0, 0)] + d[(1, 1)] + up).sqrt()
        }),
        sigma_horizontal_m: sigma.map(|d| (d[(0, 0)] + d[(1, 1)]).sqrt()),
        protection_m: level.ok().map(|p| p.horizontal_m),
    }
}

/// Computes the map.
pub fn compute(map: &SiteMap, area: &Area) -> Result<DopMap, InputError> {
    let size = [0, 1].map(|k| area.to_m[k] - area.from_m[k]);
    let count = size.map(|s| (s / area.step_m).floor() + 1.0);
    let cells = count[0] * count[1];
    if !(area.step_m > 0.0 && size.iter().all(|s| *s >= 0.0) && cells <= 250_000.0) {
        let what = format!(
            "an area of {:.1} by {:.1} m in steps of {} m makes no map; give --from, --to and --step-m for 1 to 250000 cells",
            size[0], size[1], area.step_m
        );
        return Err(InputError::whole(&map.file, what));
    }
    let [columns, rows] = count.map(|c| c as usize);
    let mut all = Vec::with_capacity(columns * rows);
    for row in 0..rows {
        for column in 0..columns {
            let x = area.from_m[0] + area.step_m * column as f64;
            let y = area.from_m[1] + area.step_m * row as f64;
            all.push(cell(map, area, x, y));
        }
    }
    let figures = |figure: Figure| {
        let mut values: Vec<f64> = all.iter().filter_map(|c| figure.of(c)).collect();
        Some([quantile(&mut values, 0.5)?, quantile(&mut values, 0.95)?])
    };
    let covered = all.iter().filter(|c| c.hdop.is_some()).count();
    Ok(DopMap {
        map: map.file.display().to_string(),
        height_m: area.height_m,
        height_known: area.known,
        step_m: area.step_m,
        columns,
        covered_pct: 100.0 * covered as f64 / all.len() as f64,
        hdop: figures(Figure::Hdop),
        vdop: figures(Figure::Vdop),
        gdop: figures(Figure::Gdop),
        sigma_horizontal_m: figures(Figure::Sigma),
        protection_m: figures(Figure::Protection),
        cells: all,
    })
}

impl DopMap {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = format!(
            "{}: tag at {:.2} m ({}), {} places {:.2} m apart, {:.1} % with a position\n",
            self.map,
            self.height_m,
            if self.height_known {
                "known"
            } else {
                "not known"
            },
            self.cells.len(),
            self.step_m,
            self.covered_pct
        );
        for (name, unit, figure) in [
            ("GDOP", "", self.gdop),
            ("HDOP", "", self.hdop),
            ("VDOP", "", self.vdop),
            ("horizontal 1-sigma", " m", self.sigma_horizontal_m),
            ("protection level", " m", self.protection_m),
        ] {
            if let Some([p50, p95]) = figure {
                let _ = writeln!(t, "  {name}: P50 {p50:.3}{unit}, P95 {p95:.3}{unit}");
            }
        }
        t
    }

    /// A coloured floor with the anchors on it.
    pub fn to_svg(&self, map: &SiteMap, figure: Figure) -> String {
        let mut values: Vec<f64> = self.cells.iter().filter_map(|c| figure.of(c)).collect();
        let low = quantile(&mut values, 0.0).unwrap_or(0.0);
        let high = quantile(&mut values, 0.98).unwrap_or(1.0).max(low + 1e-9);
        let rows = self.cells.len() / self.columns.max(1);
        let pixel = (720.0 / self.columns.max(rows) as f64).clamp(1.0, 40.0);
        let (width, height) = (pixel * self.columns as f64, pixel * rows as f64);
        let (left, top) = (40.0, 40.0);
        let [x0, y0] = self.cells.first().map_or([0.0; 2], |c| [c.x_m, c.y_m]);
        let sx = |x: f64| left + ((x - x0) / self.step_m + 0.5) * pixel;
        let sy = |y: f64| top + height - ((y - y0) / self.step_m + 0.5) * pixel;
        let mut t = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{left}\" y=\"24\" font-size=\"15\">{}, tag at {:.2} m</text>\n",
            left + width + 110.0,
            top + height + 40.0,
            figure.title(),
            self.height_m
        );
        for c in &self.cells {
            let colour = match figure.of(c) {
                Some(v) => colour((v - low) / (high - low)),
                None => "#dddddd".into(),
            };
            let _ = writeln!(
                t,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
                sx(c.x_m) - pixel / 2.0,
                sy(c.y_m) - pixel / 2.0,
                pixel + 0.3,
                pixel + 0.3
            );
        }
        for a in &map.anchors {
            let (x, y) = (sx(a.position_m[0]), sy(a.position_m[1]));
            let _ = writeln!(
                t,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"white\" stroke=\"black\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 7.0,
                y + 4.0,
                a.id
            );
        }
        let bar = left + width + 20.0;
        for k in 0..40 {
            let share = f64::from(k) / 39.0;
            let _ = writeln!(
                t,
                "<rect x=\"{bar:.1}\" y=\"{:.1}\" width=\"16\" height=\"6.3\" fill=\"{}\"/>",
                top + 240.0 - share * 240.0,
                colour(share)
            );
        }
        for share in [0.0, 0.5, 1.0] {
            let _ = writeln!(
                t,
                "<text x=\"{:.1}\" y=\"{:.1}\">{:.3}</text>",
                bar + 22.0,
                top + 248.0 - share * 240.0,
                low + share * (high - low)
            );
        }
        let last = self.cells.last().map_or([0.0; 2], |c| [c.x_m, c.y_m]);
        let _ = writeln!(
            t,
            "<text x=\"{left}\" y=\"{0:.1}\">{x0:.1} m</text><text x=\"{1:.1}\" y=\"{0:.1}\" text-anchor=\"end\">{2:.1} m</text>\n</svg>",
            top + height + 18.0,
            left + width,
            last[0]
        );
        t
    }
}

/// From dark blue over green to yellow: five stops of viridis (S. van der Walt, N. Smith 2015).
fn colour(share: f64) -> String {
    const STOPS: [[f64; 3]; 5] = [
        [68.0, 1.0, 84.0],
        [59.0, 82.0, 139.0],
        [33.0, 145.0, 140.0],
        [94.0, 201.0, 98.0],
        [253.0, 231.0, 37.0],
    ];
    let at = share.clamp(0.0, 1.0) * 4.0;
    let i = (at as usize).min(3);
    let part = at - i as f64;
    let [r, g, b] = [0, 1, 2].map(|k| STOPS[i][k] + part * (STOPS[i + 1][k] - STOPS[i][k]));
    format!("#{:02x}{:02x}{:02x}", r as u8, g as u8, b as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn square() -> SiteMap {
        let corner = |(id, x, y): (u16, f64, f64)| {
            format!("[[anchor]]\nid = {id}\nx_m = {x}\ny_m = {y}\nz_m = 1.0\nsigma_m = 0.1\n")
        };
        let corners = [(1, 0.0, 0.0), (2, 4.0, 0.0), (3, 4.0, 4.0), (4, 0.0, 4.0)];
        let text = corners.map(corner).concat() + "[recording]\ntag_height_m = 1.0\n";
        SiteMap::parse(Path::new("m.toml"), &text).expect("right")
    }

    #[test]
    fn in_the_middle_of_a_square_the_dilution_is_one() {
        // Four anchors in the plane: HᵀH is twice the identity, so HDOP² = 1/2 + 1/2.
        let map = square();
        let area = Area {
            from_m: [2.0, 2.0],
            to_m: [2.0, 2.0],
            ..Area::of(&map)
        };
        let one = compute(&map, &area).expect("a place").cells[0];
        assert!((one.hdop.expect("seen") - 1.0).abs() < 1e-9);
        assert!((one.sigma_horizontal_m.expect("seen") - 0.1).abs() < 1e-9);
        assert_eq!(one.vdop, None);
    }

    #[test]
    fn out_of_sight_there_is_no_position() {
        let map = square();
        let area = Area {
            sight_m: 1.0,
            ..Area::of(&map)
        };
        let dop = compute(&map, &area).expect("a map");
        assert_eq!((dop.covered_pct, dop.hdop), (0.0, None));
        assert!(dop.to_svg(&map, Figure::Hdop).ends_with("</svg>\n"));
    }

    #[test]
    fn an_area_that_makes_no_map_is_refused() {
        let map = square();
        let area = Area {
            step_m: 1e-6,
            ..Area::of(&map)
        };
        let e = compute(&map, &area).expect_err("too fine").to_string();
        assert!(e.contains("give --from, --to and --step-m"), "{e}");
    }
}
