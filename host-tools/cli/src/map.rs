//! `helio map`: anchor maps checked, calibrated, surveyed, compared and exported.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use helio_locate::calibrate::calibrate;
use helio_locate::dop::{self, Area, Figure};
use helio_locate::{Ranges, SiteMap, Truth, export};

use crate::BadInput;
use crate::locate::{positive, write};

/// What to do with a map.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Biases, noise, clock offset and places of tags, from recordings with truth
    Calibrate(Calibrate),
    /// Dilution of precision and protection level over the floor
    Dop(Dop),
    /// The map for other programs
    Export(Export),
}

/// Arguments of `helio map calibrate`.
#[derive(clap::Args)]
pub struct Calibrate {
    /// Anchor map to start from
    #[arg(long)]
    map: PathBuf,
    /// CSV of ranges; may be given several times
    #[arg(long, required = true)]
    ranges: Vec<PathBuf>,
    /// CSV of the truth of each ranges file, in the same order
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
        Command::Calibrate(args) => run_calibrate(args),
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

fn run_calibrate(args: &Calibrate) -> Result<()> {
    let mut map = SiteMap::load(&args.map)?;
    let truths = args.truth.len() + args.at.len();
    if truths != args.ranges.len() && truths != 1 {
        let what = format!(
            "{} files of ranges have {truths} truths; give a --truth or --at for each, in the same order",
            args.ranges.len()
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
    for (at, file) in args.ranges.iter().enumerate() {
        let mut ranges = Ranges::load(file, &map)?;
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
    let report = calibrate(&mut map, &runs, args.tag, !args.keep_lever_arms)?;
    if let Some(out) = &args.out {
        save(&map, out)?;
    }
    if args.json {
        return print(&(serde_json::to_string_pretty(&report)? + "\n"));
    }
    let notes = runs.iter().flat_map(|(r, _)| &r.notes);
    print(&notes.map(|n| format!("note: {n}\n")).collect::<String>())?;
    print(&report.to_text())?;
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
