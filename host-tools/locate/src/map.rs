//! Anchor map files: TOML for people, canonical CBOR for masters.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use helio_positioning::{Anchor, AnchorMap, Georeference, Luminaire, MapDecodeError, RangeObs};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::input::{InputError, line_of, read_bytes};

/// Most anchors of a map.
pub const MAX_ANCHORS: usize = 128;
/// Standard deviation of a range to an anchor that has not been calibrated, metres.
pub const SIGMA_M: f64 = 0.05;

/// A map with all that its file says.
#[derive(Clone, Debug, Default)]
pub struct SiteMap {
    /// Where it was read.
    pub file: PathBuf,
    /// For people.
    pub name: Option<String>,
    /// Rises with every change.
    pub version: u32,
    /// By rising identity.
    pub anchors: Vec<SiteAnchor>,
    /// Where the room is on Earth.
    pub georeference: Option<Geo>,
    /// How a recording relates to its truth.
    pub recording: Recording,
}

/// One anchor.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteAnchor {
    /// Identity, unique.
    pub id: u16,
    /// Seat of its slave, and its number there.
    pub seat: Option<(u8, u8)>,
    /// Room frame, metres.
    pub position_m: [f64; 3],
    /// Measured minus true range, metres.
    pub bias_m: f64,
    /// Of a range, metres; `None` before calibration.
    pub sigma_m: Option<f64>,
    /// How it shines.
    pub light: Option<Light>,
}

/// Lambertian parameters of a luminaire.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Light {
    /// Direction of the beam.
    pub axis: [f64; 3],
    /// Lambertian order.
    pub order: f64,
    /// Power received one metre away on the axis.
    pub gain: f64,
    /// Standard deviation of the logarithm of a power, from calibration; not part of the CBOR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigma_ln: Option<f64>,
}

/// Where the room frame lies on Earth (WGS 84).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Geo {
    /// Of the origin, north positive.
    pub latitude_deg: f64,
    /// Of the origin, east positive.
    pub longitude_deg: f64,
    /// Of the origin above the ellipsoid.
    #[serde(default)]
    pub height_m: f64,
    /// From north to the y axis, clockwise.
    #[serde(default)]
    pub bearing_deg: f64,
}

/// How a recording of ranges relates to its truth, and what moves in it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Recording {
    /// Add to a range's time to get the time of the truth that belongs to it.
    pub time_offset_s: f64,
    /// Place of each tag on the body that the truth tracks, body frame, metres.
    pub lever_arm_m: Vec<[f64; 3]>,
    /// Further bias of every range to this tag, metres.
    pub tag_bias_m: Vec<f64>,
    /// Order of the truth's attitude columns: the letters w, x, y, z.
    pub quaternion: String,
    /// Height at which the tags move; without it positions are three-dimensional.
    pub tag_height_m: Option<f64>,
    /// Spectral density of the tags' acceleration along x, y and z, m²/s³.
    pub accel_psd: Option<[f64; 3]>,
    /// How long errors of ranges last, seconds: they are alike within such a time.
    pub error_lasts_s: Option<f64>,
    /// How far errors of ranges that depend on the direction make an anchor seem displaced, metres
    /// along each axis.
    pub systematic_m: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MapFile {
    version: Option<u32>,
    name: Option<String>,
    #[serde(default)]
    anchor: Vec<Spanned<Row>>,
    georeference: Option<Geo>,
    #[serde(default)]
    recording: Recording,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: u16,
    node: Option<u8>,
    index: Option<u8>,
    x_mm: Option<f64>,
    y_mm: Option<f64>,
    z_mm: Option<f64>,
    x_m: Option<f64>,
    y_m: Option<f64>,
    z_m: Option<f64>,
    bias_mm: Option<f64>,
    bias_m: Option<f64>,
    sigma_mm: Option<f64>,
    sigma_m: Option<f64>,
    light: Option<Light>,
}

/// One of a length in metres or in millimetres.
fn length(metres: Option<f64>, millimetres: Option<f64>) -> Option<f64> {
    metres.or(millimetres.map(|mm| mm * 1e-3))
}

impl SiteMap {
    /// Reads and checks a map, TOML or CBOR.
    pub fn load(file: &Path) -> Result<Self, InputError> {
        let bytes = read_bytes(file)?;
        let binary = file.extension().is_some_and(|e| e == "cbor") || bytes.first() == Some(&0x82);
        if binary {
            return Self::from_cbor(file, &bytes);
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            let what = "this is neither TOML in UTF-8 nor a map in CBOR; check the path";
            InputError::whole(file, what)
        })?;
        Self::parse(file, text)
    }

    /// Checks a map's text.
    pub fn parse(file: &Path, text: &str) -> Result<Self, InputError> {
        let raw: MapFile = toml::from_str(text).map_err(|e| {
            let message = e.message().lines().collect::<Vec<_>>().join(", ");
            InputError {
                file: file.into(),
                line: e.span().map(|s| line_of(text, s.start)),
                what: format!("{message}; correct this line"),
            }
        })?;
        let mut map = Self {
            file: file.into(),
            name: raw.name,
            version: raw.version.unwrap_or(1),
            anchors: Vec::new(),
            georeference: raw.georeference,
            recording: raw.recording,
        };
        for spanned in &raw.anchor {
            let line = line_of(text, spanned.span().start);
            let row = spanned.get_ref();
            let wrong = |what: String| {
                let what = format!("anchor {}: {what}", row.id);
                InputError::at(file, line, what)
            };
            let axis = |name: &str, m, mm| {
                length(m, mm).ok_or_else(|| wrong(format!("{name}_mm is missing; give it")))
            };
            let anchor = SiteAnchor {
                id: row.id,
                seat: row.node.map(|node| (node, row.index.unwrap_or(0))),
                position_m: [
                    axis("x", row.x_m, row.x_mm)?,
                    axis("y", row.y_m, row.y_mm)?,
                    axis("z", row.z_m, row.z_mm)?,
                ],
                bias_m: length(row.bias_m, row.bias_mm).unwrap_or(0.0),
                sigma_m: length(row.sigma_m, row.sigma_mm),
                light: row.light,
            };
            if let Some(node) = row.node.filter(|n| !(1..=127).contains(n)) {
                return Err(wrong(format!("node is {node}; choose 1 to 127")));
            }
            if let Some(index) = row.index.filter(|i| *i > 15) {
                let what = format!("index is {index}; a slave has anchors 0 to 15");
                return Err(wrong(what));
            }
            if map.anchors.iter().any(|a| a.id == anchor.id) {
                return Err(wrong(
                    "the id stands twice; give each anchor its own".to_string(),
                ));
            }
            if anchor.seat.is_some() && map.anchors.iter().any(|a| a.seat == anchor.seat) {
                let what = "its node and index stand twice; give each anchor its own place";
                return Err(wrong(what.to_string()));
            }
            if map.anchors.len() == MAX_ANCHORS {
                return Err(wrong(format!(
                    "a map has at most {MAX_ANCHORS} anchors; split it"
                )));
            }
            let mut probe = AnchorMap::<1>::new(1);
            probe.insert(anchor.core()).map_err(|_| {
                wrong(
                    "a length is not finite or beyond 10 km, sigma not positive, or the light not \
                     sensible; correct it"
                        .to_string(),
                )
            })?;
            map.anchors.push(anchor);
        }
        if map.anchors.is_empty() {
            let what = "the map has no [[anchor]]; give at least one";
            return Err(InputError::whole(file, what));
        }
        map.anchors.sort_by_key(|a| a.id);
        map.check_recording()?;
        Ok(map)
    }

    fn check_recording(&self) -> Result<(), InputError> {
        let r = &self.recording;
        let wrong = |what: &str| Err(InputError::whole(&self.file, what));
        let mut letters: Vec<char> = r.quaternion.chars().collect();
        letters.sort_unstable();
        if !(letters.is_empty() || letters == ['w', 'x', 'y', 'z']) {
            return wrong(
                "quaternion names the columns w, x, y, z in their order, for example \"wxyz\"",
            );
        }
        let levers = r.lever_arm_m.iter().flatten();
        let numbers = levers.chain(&r.tag_bias_m).chain(&r.tag_height_m);
        let all = numbers
            .chain(r.accel_psd.iter().flatten())
            .chain(&r.error_lasts_s)
            .chain(&r.systematic_m);
        if !all.chain([&r.time_offset_s]).all(|x| x.abs() < 1e5) {
            return wrong("[recording] holds a number that is not finite or too large; correct it");
        }
        Ok(())
    }

    fn from_cbor(file: &Path, bytes: &[u8]) -> Result<Self, InputError> {
        let map = AnchorMap::<MAX_ANCHORS>::decode(bytes).map_err(|e| {
            let what = match e {
                MapDecodeError::Malformed => {
                    "this is no map in CBOR, or cut short; get it again".to_string()
                }
                MapDecodeError::Checksum { expected, found } => format!(
                    "the bytes changed on the way (CRC {expected:08x} written, {found:08x} found); get the map again"
                ),
                MapDecodeError::Format(n) => {
                    format!("format {n} is newer than this program; update it")
                }
                MapDecodeError::NotCanonical => {
                    "the CBOR is not canonical; write it with helio map export".to_string()
                }
                MapDecodeError::Anchor(e) => format!("an anchor is wrong ({e:?}); correct it"),
            };
            InputError::whole(file, what)
        })?;
        let wide = |x: f32| f64::from(x);
        let anchors = map.anchors().iter().map(|a| SiteAnchor {
            id: a.id,
            seat: None,
            position_m: a.position_m.map(wide),
            bias_m: wide(a.bias_m),
            sigma_m: Some(wide(a.sigma_m)),
            light: a.light.map(|l| Light {
                axis: l.axis.map(wide),
                order: wide(l.order),
                gain: wide(l.gain),
                sigma_ln: l.sigma_ln.map(wide),
            }),
        });
        Ok(Self {
            file: file.into(),
            name: None,
            version: map.version(),
            anchors: anchors.collect(),
            georeference: map.georeference().map(|g| Geo {
                latitude_deg: g.latitude_deg,
                longitude_deg: g.longitude_deg,
                height_m: g.height_m,
                bearing_deg: g.bearing_deg,
            }),
            recording: Recording::default(),
        })
    }

    /// The anchor of this identity.
    pub fn get(&self, id: u16) -> Option<&SiteAnchor> {
        self.anchors.iter().find(|a| a.id == id)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, id: u16) -> Option<&mut SiteAnchor> {
        self.anchors.iter_mut().find(|a| a.id == id)
    }

    /// As the core keeps it.
    pub fn core(&self) -> AnchorMap<MAX_ANCHORS> {
        let mut map = AnchorMap::new(self.version);
        for a in &self.anchors {
            // Every anchor was tried when it was read or surveyed, and there is room for all.
            let _ = map.insert(a.core());
        }
        map.set_georeference(self.georeference.map(|g| Georeference {
            latitude_deg: g.latitude_deg,
            longitude_deg: g.longitude_deg,
            height_m: g.height_m,
            bearing_deg: g.bearing_deg,
        }));
        map
    }

    /// Canonical CBOR.
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory cannot fail.
        let _ = self.core().encode(&mut bytes);
        bytes
    }

    /// CRC-32 of the canonical content.
    pub fn crc(&self) -> u32 {
        self.core().crc()
    }

    /// TOML that [`SiteMap::parse`] reads back.
    pub fn to_toml(&self) -> String {
        let mut t = String::new();
        if let Some(name) = &self.name {
            let _ = writeln!(t, "name = {}", toml::Value::from(name.as_str()));
        }
        let _ = writeln!(t, "version = {}", self.version);
        for a in &self.anchors {
            let _ = writeln!(t, "\n[[anchor]]\nid = {}", a.id);
            if let Some((node, index)) = a.seat {
                let _ = writeln!(t, "node = {node}\nindex = {index}");
            }
            for (axis, m) in ["x", "y", "z"].iter().zip(a.position_m) {
                let _ = writeln!(t, "{axis}_mm = {}", millimetres(m));
            }
            let _ = writeln!(t, "bias_mm = {}", millimetres(a.bias_m));
            if let Some(sigma) = a.sigma_m {
                let _ = writeln!(t, "sigma_mm = {}", millimetres(sigma.max(1e-4)));
            }
            if let Some(l) = a.light {
                let sigma = l
                    .sigma_ln
                    .map(|s| format!(", sigma_ln = {:?}", round(s, 1e4)));
                let _ = writeln!(
                    t,
                    "light = {{ axis = {:?}, order = {:?}, gain = {:?}{} }}",
                    l.axis.map(|x| round(x, 1e5)),
                    round(l.order, 1e4),
                    l.gain,
                    sigma.unwrap_or_default()
                );
            }
        }
        if let Some(g) = self.georeference {
            let _ = writeln!(
                t,
                "\n[georeference]\nlatitude_deg = {:?}\nlongitude_deg = {:?}\nheight_m = {:?}\nbearing_deg = {:?}",
                g.latitude_deg, g.longitude_deg, g.height_m, g.bearing_deg
            );
        }
        let r = &self.recording;
        if *r != Recording::default() {
            let _ = writeln!(t, "\n[recording]");
            let _ = writeln!(t, "time_offset_s = {:?}", round(r.time_offset_s, 1e4));
            if !r.quaternion.is_empty() {
                let _ = writeln!(t, "quaternion = \"{}\"", r.quaternion);
            }
            if !r.lever_arm_m.is_empty() {
                let levers: Vec<_> = r
                    .lever_arm_m
                    .iter()
                    .map(|l| l.map(|x| round(x, 1e4)))
                    .collect();
                let _ = writeln!(t, "lever_arm_m = {levers:?}");
            }
            if !r.tag_bias_m.is_empty() {
                let biases: Vec<_> = r.tag_bias_m.iter().map(|x| round(*x, 1e4)).collect();
                let _ = writeln!(t, "tag_bias_m = {biases:?}");
            }
            if let Some(h) = r.tag_height_m {
                let _ = writeln!(t, "tag_height_m = {:?}", round(h, 1e4));
            }
            if let Some(q) = r.accel_psd {
                let _ = writeln!(t, "accel_psd = {q:?}");
            }
            if let Some(s) = r.error_lasts_s {
                let _ = writeln!(t, "error_lasts_s = {:?}", round(s, 1e4));
            }
            if let Some(s) = r.systematic_m {
                let _ = writeln!(t, "systematic_m = {:?}", round(s, 1e4));
            }
        }
        t
    }

    /// Identities, for messages.
    pub fn ids(&self) -> BTreeSet<u16> {
        self.anchors.iter().map(|a| a.id).collect()
    }

    /// Lever arm of a tag; zero when the map has none.
    pub fn lever(&self, tag: u16) -> [f64; 3] {
        let levers = &self.recording.lever_arm_m;
        levers.get(usize::from(tag)).copied().unwrap_or_default()
    }

    /// Further bias of a tag.
    pub fn tag_bias(&self, tag: u16) -> f64 {
        let biases = &self.recording.tag_bias_m;
        biases.get(usize::from(tag)).copied().unwrap_or(0.0)
    }
}

fn round(x: f64, per: f64) -> f64 {
    (x * per).round() / per + 0.0
}

/// Millimetres, whole where they are.
fn millimetres(m: f64) -> String {
    let mm = round(m * 1e3, 100.0);
    if mm.fract() == 0.0 {
        format!("{mm:.0}")
    } else {
        format!("{mm}")
    }
}

impl SiteAnchor {
    /// As the core keeps it.
    pub fn core(&self) -> Anchor {
        let narrow = |x: f64| x as f32;
        Anchor {
            id: self.id,
            position_m: self.position_m.map(narrow),
            bias_m: narrow(self.bias_m),
            sigma_m: narrow(self.sigma()),
            light: self.light.map(|l| Luminaire {
                axis: l.axis.map(narrow),
                order: narrow(l.order),
                gain: narrow(l.gain),
                sigma_ln: l.sigma_ln.map(narrow),
            }),
        }
    }

    /// Standard deviation of a range, metres.
    pub fn sigma(&self) -> f64 {
        self.sigma_m.unwrap_or(SIGMA_M)
    }

    /// A measured range as an observation.
    pub fn observe(&self, measured_m: f64, tag_bias_m: f64) -> RangeObs<f64> {
        RangeObs {
            anchor_m: self.position_m,
            range_m: (measured_m - self.bias_m - tag_bias_m).max(0.0),
            sigma_m: self.sigma(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name = \"lab\"\nversion = 4\n\
        [[anchor]]\nid = 7\nx_m = 1.5\ny_mm = -20.5\nz_mm = 3000\nbias_mm = 12\nsigma_mm = 40\n\
        light = { axis = [0.0, 0.0, -1.0], order = 1.0, gain = 2.0, sigma_ln = 0.07 }\n\
        [[anchor]]\nid = 2\nnode = 3\nindex = 1\nx_mm = 0\ny_mm = 0\nz_mm = 0\n\
        [georeference]\nlatitude_deg = 50.0\nlongitude_deg = 8.5\n\
        [recording]\ntag_height_m = 1.2\nquaternion = \"wxyz\"\nlever_arm_m = [[0.1, 0.0, 0.0]]\n";

    fn parse(text: &str) -> Result<SiteMap, InputError> {
        SiteMap::parse(Path::new("m.toml"), text)
    }

    #[test]
    fn a_map_comes_back_from_toml_and_from_cbor() {
        let map = parse(TEXT).expect("right");
        assert_eq!(map.anchors[1].position_m, [1.5, -0.0205, 3.0]);
        assert_eq!(map.anchors[0].seat, Some((3, 1)));
        let again = parse(&map.to_toml()).expect("written by us");
        assert_eq!(again.anchors, map.anchors);
        assert_eq!(again.recording, map.recording);
        assert_eq!(again.crc(), map.crc());
        let bytes = map.to_cbor();
        let core = SiteMap::from_cbor(Path::new("m.cbor"), &bytes).expect("written by us");
        assert_eq!(core.to_cbor(), bytes);
        let sigma = core.get(7).and_then(|a| a.light?.sigma_ln);
        assert_eq!(sigma, Some(f64::from(0.07f32)));
        let mut broken = bytes;
        broken[20] ^= 1;
        assert!(SiteMap::from_cbor(Path::new("m.cbor"), &broken).is_err());
    }

    #[test]
    fn a_wrong_map_is_named_by_anchor_line_and_remedy() {
        let e = |text: &str| parse(text).expect_err("wrong").to_string();
        let one = "[[anchor]]\nid = 1\nx_mm = 0\ny_mm = 0\nz_mm = 0\n";
        assert_eq!(
            e(&format!("{one}{one}")),
            "m.toml:6: anchor 1: the id stands twice; give each anchor its own"
        );
        assert_eq!(
            e(&one.replace("y_mm = 0\n", "")),
            "m.toml:1: anchor 1: y_mm is missing; give it"
        );
        assert!(e(&format!("{one}sigma_mm = -1\n")).contains("sigma not positive"));
        assert!(e("version = 2\n").contains("no [[anchor]]"));
        assert!(e(&format!("{one}[recording]\nquaternion = \"wxyy\"\n")).contains("wxyz"));
    }
}
