//! `helio replay`: estimate against truth, from files to JSON.

mod common;

use std::fmt::Write;
use std::path::Path;

use common::{helio, report, shipped};

/// Rows of a trace that are enough for the filter to settle and be compared.
const ROWS: usize = 600;

#[test]
fn the_state_of_charge_of_a_recorded_drive_is_estimated_to_three_points() {
    let cell = shipped("data/cells/lg-m50.toml");
    let whole = std::fs::read_to_string(shipped("data/traces/lgm50_us06_25c.csv")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("us06.csv");
    let rows: Vec<&str> = whole.lines().take(1 + ROWS).collect();
    std::fs::write(&trace, rows.join("\n")).unwrap();

    let run = helio()
        .args(["replay", "battery", "--json", "--cell"])
        .arg(cell)
        .arg("--trace")
        .arg(&trace)
        .output();
    let report = report(&run.unwrap());
    assert_eq!(report["trace"], trace.display().to_string());
    assert!(report["points"].as_u64() >= Some(500), "{report}");
    assert!(
        report["rmse_pct"]
            .as_f64()
            .is_some_and(|points| points < 3.0),
        "{report}"
    );
}

/// Quick, so that figures miss their goals: what it needs is there, and all is measured that the repository alone has data for.
#[test]
fn the_bench_of_batteries_finds_its_cells_traces_and_lives() {
    let mut bench = helio();
    bench.args(["bench", "battery", "--quick", "--json", "--data"]);
    let output = bench.arg(shipped("data")).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let count = |of: &str| report[of].as_array().map_or(0, Vec::len);
    assert!(count("plain") >= 6, "{report}");
    assert_eq!(count("lives"), 8, "{report}");
}

/// Eight anchors around and above the floor, in millimetres, at different heights.
const ANCHORS: [[i32; 3]; 8] = [
    [0, 0, 3_000],
    [8_000, 0, 2_500],
    [8_000, 6_000, 3_200],
    [0, 6_000, 2_700],
    [4_000, -500, 1_500],
    [8_500, 3_000, 2_000],
    [4_000, 6_500, 3_500],
    [-500, 3_000, 1_800],
];

/// On a slow circle at a metre's height.
fn place(t: f64) -> [f64; 3] {
    let turn = 0.2 * t;
    [4.0 + 1.5 * turn.cos(), 3.0 + 1.5 * turn.sin(), 1.0]
}

fn range(anchor_mm: [i32; 3], at: [f64; 3]) -> f64 {
    let square = |(mm, m): (i32, f64)| (f64::from(mm) / 1e3 - m).powi(2);
    anchor_mm
        .into_iter()
        .zip(at)
        .map(square)
        .sum::<f64>()
        .sqrt()
}

fn write_recording(folder: &Path) {
    let (mut map, mut head) = (String::from("name = \"circle\"\n"), String::from("time_s"));
    for (n, [x, y, z]) in (1..).zip(ANCHORS) {
        let _ = writeln!(
            map,
            "[[anchor]]\nid = {n}\nnode = {n}\nindex = 0\nx_mm = {x}\ny_mm = {y}\nz_mm = {z}"
        );
        let _ = write!(head, ",a{n}-t0");
    }
    let (mut ranges, mut truth) = (head + "\n", String::from("time_s,x,y,z\n"));
    for row in 0..1_500 {
        let t = f64::from(row) / 100.0;
        let at = place(t);
        let each = ANCHORS.map(|anchor| format!("{:.5}", range(anchor, at)));
        let _ = writeln!(ranges, "{t},{}", each.join(","));
        let _ = writeln!(truth, "{t},{:.5},{:.5},{:.5}", at[0], at[1], at[2]);
    }
    for (name, text) in [
        ("map.toml", map),
        ("ranges.csv", ranges),
        ("truth.csv", truth),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn exact_ranges_give_positions_to_the_centimetre() {
    let folder = tempfile::tempdir().unwrap();
    write_recording(folder.path());
    for height in [&[][..], &["--height-mm", "1000"]] {
        let run = helio()
            .current_dir(&folder)
            .args(["replay", "positions", "--json", "--map", "map.toml"])
            .args(["--ranges", "ranges.csv", "--truth", "truth.csv"])
            .args(height)
            .output();
        let report = report(&run.unwrap());
        let tag = &report["tags"][0];
        assert!(tag["fixes"].as_u64() > Some(500), "{report}");
        assert!(
            tag["p95_mm"].as_f64().is_some_and(|mm| mm < 10.0),
            "{height:?}: {report}"
        );
    }
}
