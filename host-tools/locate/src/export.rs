//! Maps and positions for other programs: GeoJSON (RFC 7946) and omlox hub messages (API 2.0).

use serde_json::{Value, json};

use crate::input::InputError;
use crate::locate::Report;
use crate::map::{Geo, SiteMap};

/// WGS 84: semi-major axis in metres, and flattening.
const AXIS_M: f64 = 6_378_137.0;
const FLATTENING: f64 = 1.0 / 298.257_223_563;

impl Geo {
    /// Longitude and latitude in degrees, height in metres, of a point of the room: the tangent
    /// plane with the ellipsoid's two radii of curvature (off by under 1 mm within 300 m).
    pub fn place(&self, [x, y, z]: [f64; 3]) -> [f64; 3] {
        let (sin, cos) = self.bearing_deg.to_radians().sin_cos();
        let (east, north) = (x * cos + y * sin, y * cos - x * sin);
        let latitude = self.latitude_deg.to_radians();
        let e2 = FLATTENING * (2.0 - FLATTENING);
        let w2 = 1.0 - e2 * latitude.sin().powi(2);
        let across = AXIS_M / w2.sqrt() + self.height_m;
        let along = AXIS_M * (1.0 - e2) / w2.powf(1.5) + self.height_m;
        let tidy = |degrees: f64| (degrees * 1e9).round() / 1e9;
        [
            tidy(self.longitude_deg + (east / (across * latitude.cos())).to_degrees()),
            tidy(self.latitude_deg + (north / along).to_degrees()),
            ((self.height_m + z) * 1e4).round() / 1e4,
        ]
    }
}

fn needs_geo(map: &SiteMap) -> Result<Geo, InputError> {
    map.georeference.ok_or_else(|| {
        let what = "the map does not say where the room is; add [georeference] with latitude_deg, longitude_deg, height_m and bearing_deg";
        InputError::whole(&map.file, what)
    })
}

/// Anchors as GeoJSON points in WGS 84; the room's coordinates are among the properties.
pub fn geojson(map: &SiteMap) -> Result<Value, InputError> {
    let geo = needs_geo(map)?;
    let features = map.anchors.iter().map(|a| {
        json!({
            "type": "Feature",
            "id": a.id,
            "geometry": { "type": "Point", "coordinates": geo.place(a.position_m) },
            "properties": {
                "anchor": a.id,
                "room_m": a.position_m,
                "bias_m": a.bias_m,
                "sigma_m": a.sigma_m,
                "light": a.light,
            },
        })
    });
    Ok(json!({ "type": "FeatureCollection", "features": features.collect::<Vec<_>>() }))
}

/// Zone that the map makes in an omlox hub, and a provider for each anchor. The zone's ground
/// control points are the corners of the field of anchors in both frames.
pub fn omlox(map: &SiteMap) -> Result<Value, InputError> {
    let geo = needs_geo(map)?;
    let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
    for a in &map.anchors {
        for k in 0..2 {
            low[k] = low[k].min(a.position_m[k]);
            high[k] = high[k].max(a.position_m[k]);
        }
    }
    let point = |c: &[f64]| json!({ "type": "Point", "coordinates": c });
    let corners = [
        [low[0], low[1]],
        [high[0], low[1]],
        [high[0], high[1]],
        [low[0], high[1]],
    ];
    let controls = corners.map(|[x, y]| {
        let [lon, lat, _] = geo.place([x, y, 0.0]);
        json!({ "local": point(&[x, y]), "wgs84": point(&[lon, lat]) })
    });
    let middle = [
        f64::midpoint(low[0], high[0]),
        f64::midpoint(low[1], high[1]),
    ];
    let [lon, lat, _] = geo.place([middle[0], middle[1], 0.0]);
    let providers = map.anchors.iter().map(|a| {
        json!({
            "id": provider(a.id),
            "type": "virtual",
            "name": format!("anchor {}", a.id),
            "properties": { "anchor": a.id, "room_m": a.position_m },
        })
    });
    Ok(json!({
        "zone": {
            "foreign_id": zone(map),
            "name": map.name.as_deref().unwrap_or("room"),
            "type": "uwb",
            "position": point(&[lon, lat]),
            "radius": (high[0] - low[0]).hypot(high[1] - low[1]) / 2.0,
            "ground_control_points": controls,
            "properties": { "map_version": map.version, "map_crc": format!("{:08x}", map.crc()) },
        },
        "providers": providers.collect::<Vec<_>>(),
    }))
}

fn provider(anchor: u16) -> String {
    format!("heliograph-anchor-{anchor}")
}

fn zone(map: &SiteMap) -> String {
    format!("heliograph-{}", map.name.as_deref().unwrap_or("room"))
}

/// Tracks as omlox hub `Location` objects, one a line, in the coordinates of the zone.
pub fn omlox_locations(map: &SiteMap, report: &Report) -> String {
    let mut text = String::new();
    for row in &report.rows {
        let Some(track) = &row.track else { continue };
        let [vx, vy, _] = track.velocity_m_s;
        let mut location = json!({
            "position": { "type": "Point", "coordinates": track.position_m },
            "crs": "local",
            "source": zone(map),
            "provider_type": "uwb",
            "provider_id": format!("heliograph-tag-{}", row.tag),
            "timestamp_generated": utc(row.time_s),
            "accuracy": track.sigma_horizontal_m,
            "speed": vx.hypot(vy),
        });
        if let (Some(geo), Some(object)) = (&map.georeference, location.as_object_mut()) {
            let course = vx.atan2(vy).to_degrees() + geo.bearing_deg;
            object.insert("course".into(), json!(course.rem_euclid(360.0)));
        }
        text += &location.to_string();
        text.push('\n');
    }
    text
}

/// Seconds since 1970 as ISO 8601 in UTC with milliseconds.
fn utc(seconds: f64) -> String {
    let ms = (seconds * 1e3).round() as i64;
    let (days, ms) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Civil from days (Hinnant 2013).
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day = z.rem_euclid(146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let d = day - (153 * month + 2) / 5 + 1;
    let m = if month < 10 { month + 3 } else { month - 9 };
    let y = year + era * 400 + i64::from(m <= 2);
    format!(
        "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:03}Z",
        ms / 3_600_000,
        ms / 60_000 % 60,
        ms / 1_000 % 60,
        ms % 1_000
    )
}

/// Anchors as CSV.
pub fn csv(map: &SiteMap) -> String {
    let mut t = String::from("id,x_m,y_m,z_m,bias_m,sigma_m\n");
    for a in &map.anchors {
        let [x, y, z] = a.position_m;
        let sigma = a.sigma_m.map_or(String::new(), |s| format!("{s:.4}"));
        t += &format!("{},{x:.4},{y:.4},{z:.4},{:.4},{sigma}\n", a.id, a.bias_m);
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_room_that_looks_east_lies_where_its_bearing_says() {
        let geo = Geo {
            latitude_deg: 50.0,
            longitude_deg: 8.0,
            height_m: 100.0,
            bearing_deg: 90.0,
        };
        // One hundred metres along y are one hundred metres east: 1.39476 mdeg at 50° N and this height (WGS 84).
        let [lon, lat, h] = geo.place([0.0, 100.0, 2.0]);
        assert!((lon - 8.001_394_76).abs() < 2e-8, "{lon}");
        assert!((lat - 50.0).abs() < 1e-9 && (h - 102.0).abs() < 1e-9);
        // x then points south: 0.8991 mdeg of a meridian.
        let [_, lat, _] = geo.place([100.0, 0.0, 0.0]);
        assert!((lat - (50.0 - 0.000_899_1)).abs() < 2e-7, "{lat}");
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(utc(1_660_556_544.766), "2022-08-15T09:42:24.766Z");
        assert_eq!(utc(0.0), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(951_782_400.0), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn without_a_georeference_the_remedy_is_named() {
        let text = "[[anchor]]\nid = 1\nx_m = 0\ny_m = 0\nz_m = 0\n";
        let map = SiteMap::parse(Path::new("m.toml"), text).expect("right");
        let e = geojson(&map).expect_err("nowhere").to_string();
        assert!(e.contains("add [georeference]"), "{e}");
    }
}
