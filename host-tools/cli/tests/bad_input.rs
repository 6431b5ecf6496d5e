//! Wrong input: exit code 2, nothing on stdout, and one line on stderr that says where, what and
//! what to do.

mod common;

use std::ffi::OsStr;
use std::fmt::Write;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use common::{helio, shipped, text};
use tempfile::TempDir;

/// A folder of input files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// A file with this text; without one it is not there.
    fn with(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    fn missing(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Runs and gives the one line that it said.
fn refused<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> String {
    let output = helio().args(args).output().expect("the program starts");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(text(&output.stdout), "", "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // After the sentence comes the remedy.
    assert!(said.starts_with("helio: ") && said.contains("; "), "{said}");
    said.trim_end().to_string()
}

/// `said` is about this line of this file, or about the file when it has no line.
fn assert_place(said: &str, file: &Path, line: Option<usize>) {
    let place = match line {
        Some(line) => format!("helio: {}:{line}: ", file.display()),
        None => format!("helio: {}: ", file.display()),
    };
    assert!(
        said.starts_with(&place),
        "{said:?} should start with {place:?}"
    );
}

/// A cell that is right, its open-circuit voltage rising by 12 mV for each percent.
fn cell(ocv_mv: impl Iterator<Item = u32>) -> String {
    let ocv: Vec<String> = ocv_mv.map(|mv| mv.to_string()).collect();
    let mut file = String::from("name = \"straight\"\nchemistry = \"nmc\"\ncapacity_mah = 5000\n");
    let _ = writeln!(file, "ocv_mv = [{}]", ocv.join(", "));
    file += "temps_c = [25]\nr0_mohm = 20\nr1_mohm = 10\ntau1_s = 30\n";
    file
}

const OCV_LINE: usize = 4;

fn straight() -> impl Iterator<Item = u32> {
    (0..=100).map(|n| 3_000 + 12 * n)
}

/// Replays a trace through a cell.
fn battery(cell: &Path, trace: &Path) -> String {
    let (replay, options) = (["replay", "battery"], ["--cell", "--trace"]);
    let mut args: Vec<&OsStr> = replay.iter().map(OsStr::new).collect();
    for (option, file) in options.iter().zip([cell, trace]) {
        args.extend([OsStr::new(option), file.as_os_str()]);
    }
    refused(args)
}

fn sim(scenario: &Path) -> String {
    refused([OsStr::new("sim"), scenario.as_os_str()])
}

#[test]
fn the_cell_that_the_other_tests_break_is_right() {
    let files = Files::new();
    let cell = files.with("cell.toml", &cell(straight()));
    let trace = files.with(
        "t.csv",
        "time_s,current_a,voltage_v,soc\n0,0,3.6,0.5\n5,0,3.6,0.5\n",
    );
    let run = helio()
        .args(["replay", "battery", "--settle", "1", "--json", "--cell"])
        .args([cell.as_os_str(), OsStr::new("--trace"), trace.as_os_str()])
        .output()
        .expect("the program starts");
    assert_eq!(common::report(&run)["cell"], cell.display().to_string());
}

#[test]
fn a_scenario_that_is_not_there_is_named() {
    let file = Files::new().missing("nowhere.toml");
    let said = sim(&file);
    assert_place(&said, &file, None);
    assert!(
        said.contains("there is no such file; check the path"),
        "{said}"
    );
}

#[test]
fn a_scenario_that_is_wrong_is_named_with_its_line() {
    let head = "name = \"x\"\nduration_s = 1\n";
    let cases = [
        ("bus = \"can-2m\"\n", 3, "choose one of can-500k, can-1m"),
        ("[pack\n", 3, "correct this line"),
        ("[pack]\ncels = 3\n", 4, "unknown field `cels`"),
        (
            "[pack]\nslaves = 32\n\n[[fault]]\nat_s = 1\nkind = \"slave-dead\"\nslave = 40\n",
            6,
            "there is no slave 40; choose 1 to 32",
        ),
    ];
    let files = Files::new();
    for (body, line, expected) in cases {
        let file = files.with("rack.toml", &format!("{head}{body}"));
        let said = sim(&file);
        assert_place(&said, &file, Some(line));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_cell_file_that_is_wrong_is_named_with_its_line() {
    let files = Files::new();
    let trace = files.with("trace.csv", "time_s,current_a,voltage_v,soc\n0,0,3.6,0.5\n");

    let missing = files.missing("no-cell.toml");
    assert_place(&battery(&missing, &trace), &missing, None);

    // The 50th point lies below the 49th.
    let falling = straight()
        .enumerate()
        .map(|(n, mv)| if n == 50 { mv - 24 } else { mv });
    let short = straight().take(100);
    for (name, text) in [("falling", cell(falling)), ("short", cell(short))] {
        let file = files.with(&format!("{name}.toml"), &text);
        let said = battery(&file, &trace);
        assert_place(&said, &file, Some(OCV_LINE));
        assert!(said.contains("ocv_mv"), "{said}");
    }
}

#[test]
fn a_trace_row_that_is_wrong_is_named_with_its_line() {
    let files = Files::new();
    let cell = files.with("cell.toml", &cell(straight()));
    let head = "time_s,current_a,voltage_v,soc\n0,0,3.6,0.5\n";
    let cases = [
        (
            "1,much,3.6,0.5\n",
            "\"much\" in column current_a is not a number",
        ),
        ("1,0,3.6\n", "the row has 3 fields where the header has 4"),
        ("-1,0,3.6,0.5\n", "the time is before that of the row above"),
    ];
    for (row, expected) in cases {
        let file = files.with("trace.csv", &format!("{head}{row}"));
        let said = battery(&cell, &file);
        assert_place(&said, &file, Some(3));
        assert!(said.contains(expected), "{said}");
    }
    let missing = files.missing("no-trace.csv");
    assert_place(&battery(&cell, &missing), &missing, None);
}

#[test]
fn a_map_with_an_anchor_twice_is_named_with_its_line() {
    let files = Files::new();
    let anchor = |node| {
        format!("[[anchor]]\nid = 1\nnode = {node}\nindex = 0\nx_mm = 0\ny_mm = 0\nz_mm = 0\n")
    };
    let map = files.with("map.toml", &format!("{}{}", anchor(1), anchor(2)));
    let rows = files.with("rows.csv", "0,1,1,1\n");
    let mut args: Vec<&OsStr> = ["replay", "positions"].iter().map(OsStr::new).collect();
    for (option, file) in [("--map", &map), ("--ranges", &rows), ("--truth", &rows)] {
        args.extend([OsStr::new(option), file.as_os_str()]);
    }
    let said = refused(args);
    assert_place(&said, &map, Some(8));
    let expected = "anchor 1: the id stands twice; give each anchor its own";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_bus_that_does_not_exist_is_refused_with_those_that_do() {
    let scenario = shipped("scenarios/rack-32.toml");
    let said = refused([
        OsStr::new("sim"),
        scenario.as_os_str(),
        OsStr::new("--bus"),
        OsStr::new("token-ring"),
    ]);
    for word in [
        "token-ring",
        "--bus",
        "can-500k",
        "can-1m",
        "canfd",
        "rs485-4m",
        "rs485-115k",
    ] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn arguments_that_are_missing_are_all_named_in_one_line() {
    let said = refused(["replay", "battery"]);
    assert!(
        said.contains("--cell") && said.contains("--trace"),
        "{said}"
    );
}

#[test]
fn a_port_of_the_page_that_is_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let said = refused([
        "demo",
        "--slaves",
        "1",
        "--seconds",
        "1",
        "--smp",
        "127.0.0.1:0",
        "--page",
        &at,
    ]);
    assert!(said.contains("--page") && said.contains(&at), "{said}");
}

#[test]
fn a_port_of_a_master_that_is_in_use_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let said = refused([
        "demo",
        "--headless",
        "--slaves",
        "1",
        "--seconds",
        "1",
        "--smp",
        &at,
    ]);
    assert!(said.contains("--smp") && said.contains(&at), "{said}");
}
