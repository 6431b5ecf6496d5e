//! `helio bench battery`: finds cells and recordings, has them measured, prints.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use helio_battery::CellParams;
use helio_cellfit::bench::{Case, Extent, Group, Life, measure};
use helio_cellfit::recording::{Columns, Recording, Sign, Source, join};
use helio_cellfit::score::{TruthUnit, truth};
use helio_sim::files::load_cell;

use crate::BadInput;

/// Arguments of `helio bench battery`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder with fitted cells, traces and ageing
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// Folder with measured recordings of others (battery/a123-lfp, battery/about-energy); left out when it is not there
    #[arg(long, default_value = "../shared/data")]
    shared: PathBuf,
    /// Only what the goals need: no other estimators, no further sensor errors
    #[arg(long)]
    quick: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let cells = args.data.join("cells");
    if !cells.is_dir() {
        return Err(BadInput::new(format!(
            "{}: no such folder; run from the repository or name its data folder with --data",
            cells.display()
        ))
        .into());
    }
    let mut skipped = Vec::new();
    let cases = cases(args, &mut skipped)?;
    let lives = lives(args, &mut skipped)?;
    let extent = if args.quick {
        Extent::Quick
    } else {
        Extent::Whole
    };
    let report = measure(&cases, &lives, skipped, extent, show);
    if std::io::stderr().is_terminal() {
        eprint!("\r{:76}\r", "");
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    anyhow::ensure!(
        report.missed() == 0,
        "{} of {} figures miss their goal",
        report.missed(),
        report.figures.len()
    );
    Ok(())
}

fn show(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r{what:76.76}\r");
    }
}

fn load(path: &Path, extra: Option<&str>) -> Result<Recording> {
    parsed(&path.to_string_lossy(), extra)
}

/// `FILE` or `FILE@°C`.
fn parsed(source: &str, extra: Option<&str>) -> Result<Recording> {
    let source = Source::parse(source);
    Recording::load(&source, &Columns::default(), Sign::Auto, extra)
        .map_err(|e| BadInput::new(e).into())
}

/// Files of a folder whose name begins and ends so, sorted.
fn files(folder: &Path, begin: &str, end: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().map(|n| n.to_string_lossy().to_string());
            name.is_some_and(|n| n.starts_with(begin) && n.ends_with(end))
        })
        .collect();
    found.sort();
    found
}

fn case(group: Group, params: CellParams, r: Recording, start: Option<f64>) -> Result<Case> {
    let (truth, _) = truth(&r, TruthUnit::Soc, start, &params)
        .map_err(|e| BadInput::new(format!("{}: {e}", r.name)))?;
    Ok(Case {
        group,
        params,
        recording: r,
        truth,
    })
}

fn cases(args: &Args, skipped: &mut Vec<String>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let cell =
        |name: &str| Ok::<_, anyhow::Error>(load_cell(&args.data.join("cells").join(name))?.params);
    let lg = cell("lg-m50.toml")?;
    for file in files(&args.data.join("traces"), "lgm50_us06_", ".csv") {
        cases.push(case(Group::NmcModel, lg, load(&file, None)?, None)?);
    }
    let a123 = args.shared.join("battery/a123-lfp");
    if a123.is_dir() {
        let params = cell("a123-lfp-26650.toml")?;
        let mut parts = Vec::new();
        for file in files(&a123, "A123_DYN_", ".csv") {
            // The one at 25 °C is what the cell file was fitted to.
            let name = file.to_string_lossy();
            if name.contains("P25") {
                continue;
            }
            // Only the first script runs at the file's temperature, the others at 25 °C (G. L. Plett, *Battery Management Systems*,
            // vol. 1, 2015, ch. 2.11).
            let chamber = if name.ends_with("_s1.csv") { "" } else { "@25" };
            parts.push(parsed(&format!("{name}{chamber}"), None)?);
        }
        for r in join(parts) {
            cases.push(case(Group::A123, params, r, Some(1.0))?);
        }
    } else {
        skipped.push(format!("A123: no {}", a123.display()));
    }
    for (group, name, folder, drive) in [
        (
            Group::NmcMeasured,
            "nmc-pouch.toml",
            "NMC",
            "NMC_25degC_Drive",
        ),
        (
            Group::LfpMeasured,
            "lfp-18650.toml",
            "LFP",
            "LFP_25degC_Drive",
        ),
    ] {
        let folder = args
            .shared
            .join("battery/about-energy")
            .join(folder)
            .join("data/validation");
        let found = files(&folder, drive, ".csv");
        if found.is_empty() {
            skipped.push(format!(
                "{}: no {drive}*.csv in {}",
                group.name(),
                folder.display()
            ));
        }
        for file in found {
            cases.push(case(group, cell(name)?, load(&file, None)?, Some(1.0))?);
        }
    }
    Ok(cases)
}

fn lives(args: &Args, skipped: &mut Vec<String>) -> Result<Vec<Life>> {
    let folder = args.data.join("ageing");
    let cell = folder.join("lgm50.toml");
    if !cell.is_file() {
        skipped.push(format!("lives: no {}", cell.display()));
        return Ok(Vec::new());
    }
    let params = load_cell(&cell)?.params;
    let mut lives = Vec::new();
    for file in files(&folder, "lgm50_life_", ".csv") {
        let r = load(&file, Some("capacity_ah"))?;
        let (Some(soc), Some(capacity_ah)) = (r.soc.clone(), r.extra.clone()) else {
            return Err(BadInput::new(format!(
                "{}: a life needs columns soc and capacity_ah; make it with data/make_ageing.py",
                r.name
            ))
            .into());
        };
        lives.push(Life {
            params,
            recording: r,
            soc,
            capacity_ah,
        });
    }
    Ok(lives)
}
