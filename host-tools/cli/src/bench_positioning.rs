//! `helio bench positioning`: the table that positioning must hold, ours and its peers in one run.
//!
//! Peers are not part of this program: `locate-rs` is LGPL. They live in `benches/positioning`, a
//! program of its own that this one runs where it finds it, built or with cargo to build it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;
use helio_locate::bench::{self, Plan, Report};

use crate::BadInput;

/// Arguments of `helio bench positioning`.
#[derive(clap::Args)]
pub struct Args {
    /// A fiftieth of the trials: half a minute instead of minutes, and wider intervals
    #[arg(long)]
    quick: bool,
    /// Only this part; may be given several times
    #[arg(long)]
    part: Vec<String>,
    /// Folder of the recordings
    #[arg(long, default_value = "../shared/data")]
    data: PathBuf,
    /// Folder of the bench that links the peers
    #[arg(long, default_value = "benches/positioning")]
    peers: PathBuf,
    /// Leave the peers out
    #[arg(long)]
    no_peers: bool,
    /// Count instructions on an emulated Cortex-M4F, too (benches/positioning/target-cost/run.sh)
    #[arg(long)]
    target: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let names: Vec<&str> = bench::PARTS.iter().map(|(name, _)| *name).collect();
    if let Some(wrong) = args.part.iter().find(|p| !names.contains(&p.as_str())) {
        let what = format!("--part {wrong} is none; choose {}", names.join(", "));
        return Err(BadInput::new(what).into());
    }
    let plan = Plan {
        quick: args.quick,
        parts: args.part.clone(),
        data: args.data.clone(),
    };
    let mut report = bench::run(&plan, show);
    let wanted = args.part.is_empty() || args.part.iter().any(|p| p == "speed");
    if wanted && !args.no_peers {
        show("peers");
        peers(&args.peers, &mut report);
    }
    if args.target {
        show("target");
        target(&args.peers.join("target-cost"), &mut report);
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r{:40}\r", "");
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    let missed = report.missed();
    anyhow::ensure!(
        missed == 0,
        "{missed} of {} figures miss their goal",
        report.figures.len()
    );
    Ok(())
}

fn show(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{what:40}\r");
    }
}

/// Standard output of a program that ended well.
fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let out = command
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(text
        .lines()
        .rev()
        .find(|l| !l.trim().is_empty())
        .unwrap_or("it failed")
        .to_string())
}

/// Figures of the bench that links the peers.
fn peers(folder: &Path, report: &mut Report) {
    let manifest = folder.join("Cargo.toml");
    let built = folder.join("target/release/bench-positioning");
    let ran = if manifest.is_file() {
        let mut cargo = Command::new("cargo");
        cargo
            .args(["run", "--release", "--quiet", "--manifest-path"])
            .arg(&manifest)
            .args(["--", "--json"]);
        output(&mut cargo).or_else(|e| match built.is_file() {
            true => output(Command::new(&built).arg("--json")),
            false => Err(e),
        })
    } else {
        Err(format!("there is no {}", manifest.display()))
    };
    let parsed =
        ran.and_then(|bytes| serde_json::from_slice::<Report>(&bytes).map_err(|e| e.to_string()));
    match parsed {
        Ok(theirs) => {
            report.figures.extend(theirs.figures);
            report.notes.extend(theirs.notes);
        }
        Err(e) => report.notes.push(format!(
            "no peer was measured: {e}; run from the project's folder with cargo, or give --peers"
        )),
    }
}

/// What fixes and tracks cost on the target.
fn target(folder: &Path, report: &mut Report) {
    use bench::{Figure, Goal};
    let script = folder.join("run.sh");
    let ran =
        output(Command::new("sh").arg(&script)).map(|o| String::from_utf8_lossy(&o).into_owned());
    let text = match ran {
        Ok(text) => text,
        Err(e) => {
            report.notes.push(format!(
                "the target was not measured: {}: {e}",
                script.display()
            ));
            return;
        }
    };
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(": ") else {
            continue;
        };
        let numbers: Vec<f64> = rest
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .collect();
        let goal = if name.starts_with("6 anchors 3D") {
            Goal::AtMost(15_000.0)
        } else if name.starts_with("tracker") {
            Goal::AtMost(30_000.0)
        } else if name == "flash" {
            Goal::AtMost(48.0 * 1024.0)
        } else {
            Goal::Told
        };
        match numbers[..] {
            [mean, most] if rest.contains("instructions") => {
                let what = format!("Cortex-M4F, f32: {name}, mean");
                report
                    .figures
                    .push(Figure::new("target", &what, "ins", goal, [mean; 3], 200));
                let what = format!("Cortex-M4F, f32: {name}, at most");
                report
                    .figures
                    .push(Figure::new("target", &what, "ins", goal, [most; 3], 200));
            }
            [bytes] if name == "flash" => {
                let what = "Cortex-M4F, f32: flash of all these with start-up code";
                report
                    .figures
                    .push(Figure::new("target", what, "B", goal, [bytes; 3], 1));
            }
            _ => {}
        }
    }
}
