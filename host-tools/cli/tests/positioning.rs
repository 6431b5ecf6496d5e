//! `helio locate`, `helio map` and `helio light` as their users run them: reports, exit codes, and one
//! line with file, line and remedy when the input is wrong.

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{helio, report, text};

const ANCHORS: [[f64; 3]; 8] = [
    [0.0, 0.0, 3.0],
    [8.0, 0.0, 2.6],
    [8.0, 6.0, 3.1],
    [0.0, 6.0, 2.5],
    [4.0, 0.0, 0.4],
    [4.0, 6.0, 2.9],
    [0.0, 3.0, 0.5],
    [8.0, 3.0, 2.8],
];

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn with(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    /// A map of these anchors.
    fn map(&self, name: &str, ids: &[usize]) -> PathBuf {
        let mut text = String::from("version = 3\n");
        for id in ids {
            let [x, y, z] = ANCHORS[*id];
            let _ = writeln!(
                text,
                "[[anchor]]\nid = {id}\nnode = {}\nindex = 0\nx_m = {x}\ny_m = {y}\nz_m = {z}",
                id + 1
            );
        }
        self.with(name, &text)
    }

    /// A walk with ranges, truth and powers of lamps of order 1 and gain 5, with little noise.
    fn walk(&self) -> [PathBuf; 3] {
        let mut ranges = String::from("time_s,a0,a1,a2,a3,a4,a5,a6,a7\n");
        let mut truth = String::from("time_s,x_m,y_m,z_m\n");
        let mut powers = String::from("time_s,anchor,power\n");
        for step in 0..400u32 {
            let t = f64::from(step) * 0.2;
            let tag = [
                4.0 + 3.0 * (0.31 * t).sin(),
                3.0 + 2.2 * (0.47 * t).cos(),
                1.3 + 0.5 * (0.9 * t).sin(),
            ];
            let _ = write!(ranges, "{t:.2}");
            for (i, a) in ANCHORS.iter().enumerate() {
                let d: f64 = a
                    .iter()
                    .zip(tag)
                    .map(|(a, t)| (a - t).powi(2))
                    .sum::<f64>()
                    .sqrt();
                let noise = f64::from((step * 7 + i as u32 * 13) % 17) * 0.01 - 0.08;
                let _ = write!(ranges, ",{:.3}", d + noise);
                let down = a[2] - tag[2];
                if down > 0.3 {
                    let power = 5.0 * (down / d) * (down / d) / (d * d);
                    let _ = writeln!(powers, "{t:.2},{i},{:.6}", power * (1.0 + 0.3 * noise));
                }
            }
            ranges.push('\n');
            let [x, y, z] = tag;
            let _ = writeln!(truth, "{t:.2},{x:.4},{y:.4},{z:.4}");
        }
        [
            self.with("ranges.csv", &ranges),
            self.with("truth.csv", &truth),
            self.with("powers.csv", &powers),
        ]
    }
}

fn run(args: &[&str], files: &[(&str, &Path)]) -> Output {
    let mut command = helio();
    command.args(args);
    for (option, file) in files {
        if !option.is_empty() {
            command.arg(option);
        }
        command.arg(file);
    }
    command.output().expect("the program starts")
}

/// The one line of a refusal.
fn refused(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(text(&output.stdout), "", "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said.trim().to_string()
}

#[test]
fn a_map_is_calibrated_and_positions_follow() {
    let room = Room::new();
    let map = room.map("raw.toml", &[0, 1, 2, 3, 4, 5, 6, 7]);
    let [ranges, truth, powers] = room.walk();
    let out = room.path("room.toml");
    let files = [
        ("--map", map.as_path()),
        ("--ranges", &ranges),
        ("--powers", &powers),
        ("--truth", &truth),
        ("--out", &out),
    ];
    let said = report(&run(&["map", "calibrate", "--json"], &files));
    assert_eq!(said["anchors"].as_array().map(Vec::len), Some(8));
    for lamp in said["light"]["luminaires"].as_array().expect("lamps") {
        let (order, gain) = (lamp["order"].as_f64(), lamp["gain"].as_f64());
        assert!(order.is_some_and(|m| (m - 1.0).abs() < 0.1), "{lamp}");
        assert!(gain.is_some_and(|g| (g - 5.0).abs() < 0.3), "{lamp}");
    }
    let csv = room.path("positions.csv");
    let files = [
        ("--map", out.as_path()),
        ("--ranges", &ranges),
        ("--truth", &truth),
        ("--out", &csv),
    ];
    let said = report(&run(&["locate", "--json"], &files));
    let p50 = said["tags"][0]["fix_error"]["p50_m"].as_f64();
    assert!(p50.is_some_and(|p| p < 0.06), "{said}");
    assert!(
        std::fs::read_to_string(csv)
            .expect("written")
            .lines()
            .count()
            > 390
    );
    let said = run(&["locate"], &[("--map", &out), ("--ranges", &ranges)]);
    assert!(
        text(&said.stdout).contains("tag 0: 400 fixes of 400 epochs"),
        "{}",
        text(&said.stdout)
    );
}

#[test]
fn a_right_map_passes_its_check_and_a_wrong_one_fails_by_name() {
    let room = Room::new();
    let map = room.map("room.toml", &[0, 1, 2, 3, 4, 5, 6, 7]);
    let [ranges, ..] = room.walk();
    let said = report(&run(
        &["map", "check", "--json"],
        &[("--map", &map), ("--ranges", &ranges)],
    ));
    assert_eq!(said["recording"]["fixes"], 400);
    let text_of = std::fs::read_to_string(&map).expect("there");
    let wrong = room.with(
        "wrong.toml",
        &text_of.replace("x_m = 8\ny_m = 6\n", "x_m = 8\ny_m = 6.3\n"),
    );
    let output = run(
        &["map", "check"],
        &[("--map", &wrong), ("--ranges", &ranges)],
    );
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(
        text(&output.stdout).contains("fault    anchor 2 is not where the map says"),
        "{}",
        text(&output.stdout)
    );
    // A warning fails only if asked to.
    let few = room.map("few.toml", &[0, 1, 2, 3]);
    assert_eq!(
        run(&["map", "check"], &[("--map", &few)]).status.code(),
        Some(0)
    );
    assert_eq!(
        run(&["map", "check", "--strict"], &[("--map", &few)])
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn unknown_anchors_are_surveyed_and_the_maps_then_differ_by_them() {
    let room = Room::new();
    let map = room.map("some.toml", &[0, 1, 2, 3, 4]);
    let all = room.map("all.toml", &[0, 1, 2, 3, 4, 5, 6, 7]);
    let [ranges, ..] = room.walk();
    let out = room.path("surveyed.toml");
    let files = [
        ("--map", map.as_path()),
        ("--ranges", &ranges),
        ("--out", &out),
    ];
    let said = report(&run(&["map", "survey", "--json"], &files));
    assert_eq!(said["anchors"].as_array().map(Vec::len), Some(3));
    let output = run(
        &["map", "diff", "--json", "--tolerance-mm", "100"],
        &[("", &all), ("", &out)],
    );
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["moved"].as_array().map(Vec::len), Some(0), "{said}");
    let output = run(&["map", "diff"], &[("", &map), ("", &out)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stdout).contains("added    anchor 7"),
        "{}",
        text(&output.stdout)
    );
    let same = run(&["map", "diff"], &[("", &map), ("", &map)]);
    assert_eq!(same.status.code(), Some(0));
}

#[test]
fn maps_come_back_from_every_format_and_plots_are_svg() {
    let room = Room::new();
    let map = room.map("room.toml", &[0, 1, 2, 3, 4, 5, 6, 7]);
    let cbor = room.path("room.cbor");
    let output = run(
        &["map", "export", "--format", "cbor"],
        &[("--map", &map), ("--out", &cbor)],
    );
    assert!(output.status.success());
    let plot = room.path("floor.svg");
    let said = report(&run(
        &["map", "dop", "--json"],
        &[("--map", &cbor), ("--plot", &plot)],
    ));
    assert!(
        said["hdop"][0]
            .as_f64()
            .is_some_and(|h| (0.5..2.0).contains(&h)),
        "{said}"
    );
    assert!(
        std::fs::read_to_string(plot)
            .expect("written")
            .starts_with("<svg")
    );
    let mut bytes = std::fs::read(&cbor).expect("there");
    bytes[9] ^= 4;
    std::fs::write(&cbor, bytes).expect("writable");
    let said = refused(&run(&["map", "check"], &[("--map", &cbor)]));
    assert!(
        said.contains("room.cbor") && said.contains("get the map again"),
        "{said}"
    );
}

#[test]
fn a_light_code_goes_through_an_image_and_back() {
    let room = Room::new();
    let image = room.path("lamp.png");
    let camera = ["--row-rate-hz", "100000", "--exposure-us", "30"];
    let mut render = vec![
        "light",
        "render",
        "--lamp",
        "513@-0.5,0,4",
        "--lamp",
        "77@0.5,0.1,4",
        "--width-px",
        "1200",
        "--height-px",
        "700",
    ];
    render.extend(camera);
    assert!(run(&render, &[("--out", &image)]).status.success());
    let mut decode = vec!["light", "decode", "--json"];
    decode.extend(camera);
    let said = report(&run(&decode, &[("", &image)]));
    let mut ids: Vec<u64> = said[0]["luminaires"]
        .as_array()
        .expect("lamps")
        .iter()
        .filter_map(|l| l["code"]["id"].as_u64())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [77, 513], "{said}");
    // Read the wrong way round nothing is read, and that is a failure, not an identity.
    decode.extend(["--readout", "up"]);
    assert_eq!(run(&decode, &[("", &image)]).status.code(), Some(1));
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_its_place_and_remedy() {
    let room = Room::new();
    let map = room.map("room.toml", &[0, 1, 2]);
    let ranges = room.with("ranges.csv", "time_s,a0,a1,a2\n0,1,2,3\n1,1,two,3\n");
    let said = refused(&run(&["locate"], &[("--map", &map), ("--ranges", &ranges)]));
    assert!(
        said.contains("ranges.csv:3: \"two\" is not a number"),
        "{said}"
    );
    let twice = room.with("twice.toml", "[[anchor]]\nid = 1\nx_m = 0\ny_m = 0\nz_m = 0\n[[anchor]]\nid = 1\nx_m = 1\ny_m = 0\nz_m = 0\n");
    let said = refused(&run(&["map", "check"], &[("--map", &twice)]));
    assert!(
        said.contains("twice.toml:6: anchor 1: the id stands twice"),
        "{said}"
    );
    let said = refused(&run(
        &["map", "survey"],
        &[("--map", &map), ("--ranges", &room.path("none.csv"))],
    ));
    assert!(said.contains("none.csv: there is no such file"), "{said}");
    let said = refused(&run(
        &["map", "diff"],
        &[("", &map), ("", &room.path("none.toml"))],
    ));
    assert!(said.contains("none.toml"), "{said}");
    let text_file = room.with("photo.png", "no image");
    let camera = [
        "light",
        "decode",
        "--row-rate-hz",
        "100000",
        "--exposure-us",
        "30",
    ];
    let said = refused(&run(&camera, &[("", &text_file)]));
    assert!(said.contains("photo.png: this is no PNG or JPEG"), "{said}");
    let slow = [
        "light",
        "decode",
        "--row-rate-hz",
        "20000",
        "--exposure-us",
        "30",
    ];
    let said = refused(&run(&slow, &[("", &text_file)]));
    assert!(said.contains("lower the chip rate to 12500 Hz"), "{said}");
    let lamp = [
        "light",
        "render",
        "--row-rate-hz",
        "100000",
        "--exposure-us",
        "30",
        "--lamp",
        "7@1,2",
    ];
    let said = refused(&run(&lamp, &[("--out", &room.path("x.png"))]));
    assert!(
        said.contains("--lamp 7@1,2 is no luminaire; give id@right,down,ahead"),
        "{said}"
    );
    let said = refused(&run(&["bench", "positioning", "--part", "speling"], &[]));
    assert!(
        said.contains("--part speling is none; choose bound"),
        "{said}"
    );
}
