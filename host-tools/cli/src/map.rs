//! `helio map`: anchor maps checked, calibrated, surveyed, plotted, compared and exported.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use helio_locate::calibrate::calibrate;
use helio_locate::check::{self, Severity};
use helio_locate::dop::{self, Area, Figure};
use helio_locate::locate::Side;
use helio_locate::{Ranges, SiteMap, Truth, diff, export, powers, survey};

use crate::BadInput;
use crate::locate::{Tags, positive, write};

/// What to do with a map.
#[derive(clap::Subcommand)]
pub enum Command {
    /// What is wrong with a map, by itself and against a recording; exit code 1 when something is
    Check(Check),
    /// Biases, noise, clock offset, places of tags, light, from recordings with truth
    Calibrate(Calibrate),
    /// Places of unknown anchors, from a walk among them and some known ones
    Survey(Survey),
    /// What differs between two maps; exit code 1 when something does
    Diff(Diff),
    /// Dilution of precision and protection level over the floor
    Dop(Dop),
    /// The map for other programs
    Export(Export),
}

/// Arguments of `helio map check`.
#[derive(clap::Args)]
pub struct Check {
    /// Anchor map
    #[arg(long)]
    map: PathBuf,
    /// CSV of ranges to check it against; may be given several times
    #[arg(long)]
    ranges: Vec<PathBuf>,
    #[command(flatten)]
    tags: Tags,
    /// Warnings fail, too
    #[arg(long)]
    strict: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio map survey`.
#[derive(clap::Args)]
pub struct Survey {
    /// Map of the known anchors
    #[arg(long)]
    map: PathBuf,
    /// CSV of ranges; may be given several times. Anchors in it that the map lacks are surveyed
    #[arg(long, required = true)]
    ranges: Vec<PathBuf>,
    /// CSV of the truth of each ranges file, if there is one: then no known anchor is needed
    #[arg(long)]
    truth: Vec<PathBuf>,
    /// Survey these anchors of the map again, with commas between
    #[arg(long, value_delimiter = ',')]
    unknown: Vec<u16>,
    #[command(flatten)]
    tags: Tags,
    /// Unknown anchors hang below the tags (by default above)
    #[arg(long)]
    anchors_below: bool,
    /// Write the map with the surveyed anchors here (.toml or .cbor)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio map diff`.
#[derive(clap::Args)]
pub struct Diff {
    /// The first map (TOML or CBOR)
    a: PathBuf,
    /// The second map
    b: PathBuf,
    /// Lengths that differ by no more are the same, millimetres
    #[arg(long, default_value_t = 0.1)]
    tolerance_mm: f64,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio map calibrate`.
#[derive(clap::Args)]
pub struct Calibrate {
    /// Anchor map to start from
    #[arg(long)]
    map: PathBuf,
    /// CSV of ranges; may be given several times
    #[arg(long, required_unless_present = "powers")]
    ranges: Vec<PathBuf>,
    /// CSV of received powers, for the Lambertian parameters; may be given several times
    #[arg(long)]
    powers: Vec<PathBuf>,
    /// CSV of the truth of each file of ranges, then of powers, in the same order; or one for all
    #[arg(long, conflicts_with = "at")]
    truth: Vec<PathBuf>,
    /// Where the body stood during each ranges file: x,y,z in metres and, perhaps, yaw in degrees
    #[arg(long, allow_hyphen_values = true)]
    at: Vec<String>,
    /// Only this tag
    #[arg(long)]
    tag: Option<u16>,
    /// Use only this share of each recording, from its start
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// Leave the places of the tags on the body as the map has them
    #[arg(long)]
    keep_lever_arms: bool,
    /// Write the calibrated map here (.toml or .cbor)
    #[arg(long)]
    out: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio map dop`.
#[derive(clap::Args)]
pub struct Dop {
    /// Anchor map
    #[arg(long)]
    map: PathBuf,
    /// Height of the tag in metres (default: the map's tag_height_m, else 1.2)
    #[arg(long, allow_hyphen_values = true)]
    height_m: Option<f64>,
    /// The height is not known when locating, even if the map has a tag_height_m
    #[arg(long = "3d")]
    three_d: bool,
    /// Corner of the floor, x,y in metres (default: around the anchors)
    #[arg(long, allow_hyphen_values = true)]
    from: Option<String>,
    /// Opposite corner, x,y in metres
    #[arg(long, allow_hyphen_values = true)]
    to: Option<String>,
    /// Distance of places in metres (default: a fortieth of the floor)
    #[arg(long)]
    step_m: Option<f64>,
    /// Anchors see no farther, metres
    #[arg(long)]
    sight_m: Option<f64>,
    /// What the plot shows
    #[arg(long, value_parser = figure, default_value = "hdop")]
    show: Figure,
    /// Write the plot here (SVG)
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print the figures of all places as JSON
    #[arg(long)]
    json: bool,
}

fn figure(name: &str) -> Result<Figure, String> {
    Ok(match name {
        "hdop" => Figure::Hdop,
        "vdop" => Figure::Vdop,
        "gdop" => Figure::Gdop,
        "sigma" => Figure::Sigma,
        "protection" => Figure::Protection,
        "anchors" => Figure::Anchors,
        _ => return Err("choose hdop, vdop, gdop, sigma, protection or anchors".into()),
    })
}

/// Arguments of `helio map export`.
#[derive(clap::Args)]
pub struct Export {
    /// Anchor map
    #[arg(long)]
    map: PathBuf,
    /// geojson, omlox, cbor, toml or csv
    #[arg(long, value_parser = ["geojson", "omlox", "cbor", "toml", "csv"])]
    format: String,
    /// Write here instead of standard output
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Check(args) => run_check(args),
        Command::Calibrate(args) => run_calibrate(args),
        Command::Survey(args) => run_survey(args),
        Command::Diff(args) => run_diff(args),
        Command::Dop(args) => run_dop(args),
        Command::Export(args) => run_export(args),
    }
}

/// Writes a map in the format of its name.
fn save(map: &SiteMap, file: &std::path::Path) -> Result<()> {
    if file.extension().is_some_and(|e| e == "cbor") {
        return write(file, map.to_cbor());
    }
    write(file, map.to_toml())
}

fn numbers(name: &str, text: &str, least: usize) -> Result<Vec<f64>> {
    let all: Result<Vec<f64>, _> = text.split(',').map(|x| x.trim().parse::<f64>()).collect();
    match all {
        Ok(all) if all.len() >= least && all.iter().all(|x| x.is_finite()) => Ok(all),
        _ => {
            let what =
                format!("{name} {text} is no place; give {least} numbers with commas between");
            Err(BadInput::new(what).into())
        }
    }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What the map says, and what the command line says otherwise.
fn run_check(args: &Check) -> Result<()> {
    let map = SiteMap::load(&args.map)?;
    let settings = args.tags.settings(&map)?;
    let runs = args.ranges.iter().map(|file| Ranges::load(file, &map));
    let runs: Vec<Ranges> = runs.collect::<Result<_, _>>()?;
    let report = check::check(&map, &runs, &settings)?;
    if args.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&report.to_text())?;
    }
    let bad = if args.strict {
        Severity::Warning
    } else {
        Severity::Fault
    };
    let count = report
        .complaints
        .iter()
        .filter(|c| c.severity >= bad)
        .count();
    anyhow::ensure!(
        count == 0,
        "{}: {count} complaints; the report says what to do about each",
        args.map.display()
    );
    Ok(())
}

fn run_survey(args: &Survey) -> Result<()> {
    let mut map = SiteMap::load(&args.map)?;
    if !(args.truth.is_empty() || args.truth.len() == args.ranges.len() || args.truth.len() == 1) {
        let what = format!(
            "{} files of ranges have {} truths; give a --truth for each, in the same order, or none",
            args.ranges.len(),
            args.truth.len()
        );
        return Err(BadInput::new(what).into());
    }
    let mut settings = args.tags.settings(&map)?;
    settings.side = Side::Below;
    let mut runs = Vec::new();
    for (at, file) in args.ranges.iter().enumerate() {
        let ranges = Ranges::load(file, &map)?;
        let truth = args.truth.get(at).or(args.truth.first());
        let truth = truth.map(|f| Truth::load(f, &map.recording.quaternion));
        runs.push((ranges, truth.transpose()?));
    }
    let plan = survey::Plan {
        unknown: args.unknown.clone(),
        below: args.anchors_below,
        settings,
    };
    let report = survey::survey(&mut map, &runs, &plan)?;
    if let Some(out) = &args.out {
        save(&map, out)?;
    }
    if args.json {
        return print(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    print(&report.to_text())?;
    if args.out.is_none() {
        print("nothing written; give --out FILE to keep the map\n")?;
    }
    Ok(())
}

fn run_diff(args: &Diff) -> Result<()> {
    if !(args.tolerance_mm >= 0.0 && args.tolerance_mm < 1e6) {
        let what = format!("--tolerance-mm is {}; give 0 or more", args.tolerance_mm);
        return Err(BadInput::new(what).into());
    }
    let (a, b) = (SiteMap::load(&args.a)?, SiteMap::load(&args.b)?);
    let report = diff::diff(&a, &b, args.tolerance_mm * 1e-3);
    if args.json {
        print(&(serde_json::to_string_pretty(&report)? + "\n"))?;
    } else {
        print(&report.to_text())?;
    }
    anyhow::ensure!(
        report.is_same(),
        "the maps differ: {} added, {} removed, {} moved, {} changed",
        report.added.len(),
        report.removed.len(),
        report.moved.len(),
        report.changed.len() + report.whole.len()
    );
    Ok(())
}

fn run_calibrate(args: &Calibrate) -> Result<()> {
    let mut map = SiteMap::load(&args.map)?;
    let truths = args.truth.len() + args.at.len();
    let files = args.ranges.len() + args.powers.len();
    if truths != files && truths != 1 {
        let what = format!(
            "{files} files of ranges and powers have {truths} truths; give a --truth or --at for each, in the same order"
        );
        return Err(BadInput::new(what).into());
    }
    if !(args.share > 0.0 && args.share <= 1.0) {
        let what = format!(
            "--share is {}; give a number above 0 and up to 1",
            args.share
        );
        return Err(BadInput::new(what).into());
    }
    let mut runs = Vec::new();
    for (at, file) in args.ranges.iter().chain(&args.powers).enumerate() {
        let mut ranges = if at < args.ranges.len() {
            Ranges::load(file, &map)?
        } else {
            Ranges::load_powers(file, &map)?
        };
        let truth = match (
            args.truth.get(at).or(args.truth.first()),
            args.at.get(at).or(args.at.first()),
        ) {
            (Some(file), _) => Truth::load(file, &map.recording.quaternion)?,
            (None, Some(place)) => {
                let p = numbers("--at", place, 3)?;
                let yaw = p.get(3).copied().unwrap_or(0.0).to_radians();
                Truth::standing([p[0], p[1], p[2]], yaw)
            }
            (None, None) => {
                return Err(BadInput::new("there is no truth; give --truth or --at").into());
            }
        };
        if let (Some(first), Some(last)) = (ranges.samples.first(), ranges.samples.last()) {
            let end = first.time_s + args.share * (last.time_s - first.time_s);
            ranges.samples.retain(|s| s.time_s <= end);
        }
        runs.push((ranges, truth));
    }
    let seen = runs.split_off(args.ranges.len());
    // Clocks and lever arms that the ranges tell hold for the powers, too.
    let report = match runs.is_empty() {
        true => None,
        false => Some(calibrate(&mut map, &runs, args.tag, !args.keep_lever_arms)?),
    };
    let shine = match seen.is_empty() {
        true => None,
        false => Some(powers::calibrate(&mut map, &seen)?),
    };
    if let Some(out) = &args.out {
        save(&map, out)?;
    }
    if args.json {
        let mut all = serde_json::to_value(&report)?;
        if let (Some(fields), Some(shine)) = (all.as_object_mut(), &shine) {
            fields.insert("light".into(), serde_json::to_value(shine)?);
        } else if let Some(shine) = &shine {
            all = serde_json::json!({ "light": shine });
        }
        return print(&(serde_json::to_string_pretty(&all)? + "\n"));
    }
    let notes = runs.iter().chain(&seen).flat_map(|(r, _)| &r.notes);
    print(&notes.map(|n| format!("note: {n}\n")).collect::<String>())?;
    if let Some(report) = &report {
        print(&report.to_text())?;
    }
    if let Some(shine) = &shine {
        print(&shine.to_text())?;
    }
    if args.out.is_none() {
        print("nothing written; give --out FILE to keep the calibrated map\n")?;
    }
    Ok(())
}

fn run_dop(args: &Dop) -> Result<()> {
    let map = SiteMap::load(&args.map)?;
    let mut area = Area::of(&map);
    area.height_m = args.height_m.unwrap_or(area.height_m);
    area.known = (area.known || args.height_m.is_some()) && !args.three_d;
    for (name, given, corner) in [
        ("--from", &args.from, &mut area.from_m),
        ("--to", &args.to, &mut area.to_m),
    ] {
        if let Some(text) = given {
            let p = numbers(name, text, 2)?;
            *corner = [p[0], p[1]];
        }
    }
    if let Some(step) = args.step_m {
        area.step_m = positive("--step-m", step)?;
    }
    if let Some(sight) = args.sight_m {
        area.sight_m = positive("--sight-m", sight)?;
    }
    let dop = dop::compute(&map, &area)?;
    if let Some(plot) = &args.plot {
        write(plot, dop.to_svg(&map, args.show))?;
    }
    if args.json {
        return print(&(serde_json::to_string_pretty(&dop)? + "\n"));
    }
    print(&dop.to_text())
}

fn run_export(args: &Export) -> Result<()> {
    let map = SiteMap::load(&args.map)?;
    let bytes = match args.format.as_str() {
        "geojson" => (serde_json::to_string_pretty(&export::geojson(&map)?)? + "\n").into_bytes(),
        "omlox" => (serde_json::to_string_pretty(&export::omlox(&map)?)? + "\n").into_bytes(),
        "cbor" => map.to_cbor(),
        "csv" => export::csv(&map).into_bytes(),
        _ => map.to_toml().into_bytes(),
    };
    match &args.out {
        Some(file) => write(file, bytes),
        None => Ok(std::io::stdout().write_all(&bytes)?),
    }
}
