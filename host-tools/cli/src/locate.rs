//! `helio locate`: positions from recorded ranges.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::BadInput;
use anyhow::Result;
use helio_locate::locate::{self, Settings, Side};
use helio_locate::{Ranges, SiteMap, Truth, export};

/// Arguments of `helio locate`.
#[derive(clap::Args)]
pub struct Args {
    /// Anchor map (TOML or CBOR), for example data/maps/uwb-planar.toml
    #[arg(long)]
    map: PathBuf,
    /// CSV of ranges: a column per anchor and tag, or rows of time_s, tag, anchor, range_m
    #[arg(long)]
    ranges: PathBuf,
    /// CSV of the truth: time_s, x_m, y_m, z_m and the attitude where the map asks for it
    #[arg(long)]
    truth: Option<PathBuf>,
    #[command(flatten)]
    tags: Tags,
    /// Anchors hang below the tags (by default above)
    #[arg(long)]
    anchors_below: bool,
    /// Ranges within so many milliseconds make one fix
    #[arg(long, default_value_t = 100.0)]
    window_ms: f64,
    /// Spectral density of the tags' acceleration, m²/s³ (default: the map's, else 0.3)
    #[arg(long)]
    accel_psd: Option<f64>,
    /// Write fixes, track and truth to this CSV file
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write the track as omlox hub locations, one JSON object a line
    #[arg(long)]
    omlox: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Which tags, and what is known of their height.
#[derive(clap::Args)]
pub struct Tags {
    /// Only this tag
    #[arg(long)]
    tag: Option<u16>,
    /// Known height of the tags in metres (default: the map's tag_height_m, else 3D)
    #[arg(long, allow_hyphen_values = true, conflicts_with = "three_d")]
    height_m: Option<f64>,
    /// Three dimensions even if the map has a tag_height_m
    #[arg(long = "3d")]
    three_d: bool,
}

impl Tags {
    /// The map's settings, but for what was asked for.
    pub fn settings(&self, map: &SiteMap) -> Result<Settings> {
        let mut settings = Settings::of(map);
        settings.tag = self.tag;
        if self.three_d {
            settings.height_m = None;
        }
        if let Some(h) = self.height_m {
            if h.is_nan() || h.abs() > 1e4 {
                return Err(BadInput::new(format!("--height-m is {h}; give metres")).into());
            }
            settings.height_m = Some(h);
        }
        Ok(settings)
    }
}

/// Writes a file, or says how it could not be.
pub fn write(file: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(file, bytes).map_err(|e| {
        let what = format!("{}: {e}; name a file that can be written", file.display());
        BadInput::new(what)
    })?;
    Ok(())
}

/// A number above zero, or what to give instead.
pub fn positive(name: &str, x: f64) -> Result<f64> {
    if x > 0.0 && x < 1e9 {
        return Ok(x);
    }
    Err(BadInput::new(format!("{name} is {x}; give a number above 0")).into())
}

/// Shows how far it is, on a terminal only; clears the line when all is done.
pub fn show(done: usize, all: usize) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    if done < all {
        eprint!("\r{done} of {all} ");
    } else {
        eprint!("\r{:40}\r", "");
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let map = SiteMap::load(&args.map)?;
    let ranges = Ranges::load(&args.ranges, &map)?;
    let order = map.recording.quaternion.as_str();
    let truth = args.truth.as_ref().map(|t| Truth::load(t, order));
    let truth = truth.transpose()?;
    let mut settings = args.tags.settings(&map)?;
    settings.window_s = positive("--window-ms", args.window_ms)? * 1e-3;
    if args.anchors_below {
        settings.side = Side::Above;
    }
    if let Some(q) = args.accel_psd {
        let q = positive("--accel-psd", q)?;
        settings.accel_psd = [q, q, q / 10.0];
    }
    let report = locate::run(&map, &ranges, truth.as_ref(), &settings, show)?;
    show(0, 0);
    if let Some(file) = &args.out {
        write(file, report.to_csv())?;
    }
    if let Some(file) = &args.omlox {
        write(file, export::omlox_locations(&map, &report))?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.to_text()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
