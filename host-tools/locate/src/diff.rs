//! Two maps side by side: what was added, removed, moved or changed.

use std::fmt::Write;

use serde::Serialize;

use crate::map::{SiteAnchor, SiteMap};

/// What differs.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The first map.
    pub a: Side,
    /// The second map.
    pub b: Side,
    /// Differences up to this are none, millimetres.
    pub tolerance_mm: f64,
    /// Identities that only the second has.
    pub added: Vec<u16>,
    /// Identities that only the first has.
    pub removed: Vec<u16>,
    /// Anchors of both that are elsewhere.
    pub moved: Vec<Moved>,
    /// Other properties of anchors of both.
    pub changed: Vec<Changed>,
    /// What differs in the maps as a whole, in words.
    pub whole: Vec<String>,
}

/// One of the two.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its file.
    pub file: String,
    /// Its version.
    pub version: u32,
    /// CRC of its canonical content.
    pub crc: String,
    /// How many anchors it has.
    pub anchors: usize,
}

/// An anchor that is elsewhere.
#[derive(Clone, Debug, Serialize)]
pub struct Moved {
    /// Which.
    pub id: u16,
    /// Second minus first along x, y and z, millimetres.
    pub by_mm: [f64; 3],
    /// Length of that, millimetres.
    pub distance_mm: f64,
}

/// A property of an anchor that changed.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    /// Which.
    pub id: u16,
    /// The property, with its unit.
    pub what: &'static str,
    /// In the first map.
    pub from: String,
    /// In the second map.
    pub to: String,
}

fn side(map: &SiteMap) -> Side {
    Side {
        file: map.file.display().to_string(),
        version: map.version,
        crc: format!("{:08x}", map.crc()),
        anchors: map.anchors.len(),
    }
}

/// Compares; lengths that differ by no more than `tolerance_m` are the same.
pub fn diff(a: &SiteMap, b: &SiteMap, tolerance_m: f64) -> Report {
    let missing = |from: &SiteMap, other: &SiteMap| {
        let ids = from.anchors.iter().map(|x| x.id);
        ids.filter(|id| other.get(*id).is_none())
            .collect::<Vec<_>>()
    };
    let mut report = Report {
        a: side(a),
        b: side(b),
        tolerance_mm: tolerance_m * 1e3,
        added: missing(b, a),
        removed: missing(a, b),
        moved: Vec::new(),
        changed: Vec::new(),
        whole: Vec::new(),
    };
    for old in &a.anchors {
        if let Some(new) = b.get(old.id) {
            report.compare(old, new, tolerance_m);
        }
    }
    if a.georeference != b.georeference {
        report.whole.push("the georeference differs".into());
    }
    if a.recording != b.recording {
        report.whole.push("what [recording] says differs".into());
    }
    if a.version != b.version {
        report
            .whole
            .push(format!("version {} became {}", a.version, b.version));
    }
    report
}

impl Report {
    fn compare(&mut self, old: &SiteAnchor, new: &SiteAnchor, tolerance_m: f64) {
        let by = [0, 1, 2].map(|k| new.position_m[k] - old.position_m[k]);
        let distance = by.iter().map(|d| d * d).sum::<f64>().sqrt();
        if distance > tolerance_m {
            self.moved.push(Moved {
                id: old.id,
                by_mm: by.map(|d| (d * 1e5).round() / 100.0),
                distance_mm: (distance * 1e5).round() / 100.0,
            });
        }
        let mut note = |what, from: String, to: String| {
            self.changed.push(Changed {
                id: old.id,
                what,
                from,
                to,
            });
        };
        let mm = |m: f64| format!("{:.1}", m * 1e3);
        if (old.bias_m - new.bias_m).abs() > tolerance_m {
            note("bias_mm", mm(old.bias_m), mm(new.bias_m));
        }
        if (old.sigma() - new.sigma()).abs() > tolerance_m {
            note("sigma_mm", mm(old.sigma()), mm(new.sigma()));
        }
        if old.seat != new.seat {
            let seat = |s: Option<(u8, u8)>| s.map_or("none".into(), |(n, i)| format!("{n}/{i}"));
            note("node/index", seat(old.seat), seat(new.seat));
        }
        if old.light != new.light {
            let light = |l: Option<crate::map::Light>| match l {
                Some(l) => format!("axis {:?}, order {}, gain {}", l.axis, l.order, l.gain),
                None => "none".into(),
            };
            note("light", light(old.light), light(new.light));
        }
    }

    /// Whether positions and ranges would come out the same; the version alone changes neither.
    pub fn is_same(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.moved.is_empty()
            && self.changed.is_empty()
            && self.whole.iter().all(|w| w.starts_with("version"))
    }

    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = String::new();
        for (sign, s) in [("-", &self.a), ("+", &self.b)] {
            let _ = writeln!(
                t,
                "{sign} {}: version {}, {} anchors, CRC {}",
                s.file, s.version, s.anchors, s.crc
            );
        }
        for id in &self.removed {
            let _ = writeln!(t, "removed  anchor {id}");
        }
        for id in &self.added {
            let _ = writeln!(t, "added    anchor {id}");
        }
        for m in &self.moved {
            let [x, y, z] = m.by_mm;
            let _ = writeln!(
                t,
                "moved    anchor {} by {:.1} mm ({x:+.1}, {y:+.1}, {z:+.1})",
                m.id, m.distance_mm
            );
        }
        for c in &self.changed {
            let _ = writeln!(
                t,
                "changed  anchor {}: {} {} -> {}",
                c.id, c.what, c.from, c.to
            );
        }
        for w in &self.whole {
            let _ = writeln!(t, "changed  {w}");
        }
        if self.is_same() {
            let _ = writeln!(t, "no difference above {} mm", self.tolerance_mm);
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn map(text: &str) -> SiteMap {
        SiteMap::parse(Path::new("m.toml"), text).expect("right")
    }

    #[test]
    fn what_differs_is_told_in_units_and_the_rest_is_silent() {
        let one = "[[anchor]]\nid = 1\nx_m = 0\ny_m = 0\nz_m = 3\n[[anchor]]\nid = 2\nx_m = 4\ny_m = 0\nz_m = 3\n";
        let two = "version = 2\n[[anchor]]\nid = 2\nx_m = 4.03\ny_m = -0.04\nz_m = 3\nbias_mm = 12\n[[anchor]]\nid = 3\nx_m = 4\ny_m = 5\nz_m = 3\n";
        let d = diff(&map(one), &map(two), 0.001);
        assert_eq!(
            (d.added.as_slice(), d.removed.as_slice()),
            (&[3][..], &[1][..])
        );
        assert_eq!((d.moved[0].id, d.moved[0].distance_mm), (2, 50.0));
        let text = d.to_text();
        assert!(
            text.contains("anchor 2 by 50.0 mm (+30.0, -40.0, +0.0)"),
            "{text}"
        );
        assert!(text.contains("bias_mm 0.0 -> 12.0"), "{text}");
        assert!(!d.is_same());
        let near = diff(
            &map(one),
            &map(&one.replace("x_m = 4", "x_m = 4.0004")),
            0.001,
        );
        assert!(near.is_same(), "{near:?}");
        assert!(diff(&map(one), &map(&format!("version = 9\n{one}")), 0.0).is_same());
    }
}
