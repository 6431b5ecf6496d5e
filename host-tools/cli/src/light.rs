//! `helio light`: identities of luminaires from images, and images to try it with.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use helio_locate::SiteMap;
use helio_locate::light::{self, Lamp, Mode, Readout, Scene, Shutter, Source, Unread};
use helio_positioning::{Camera, FrequencyPlan, PixelObs, locate_camera};
use serde_json::json;

use crate::BadInput;

/// What to do with light codes.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Read the identities of luminaires from images (PNG, JPEG) of a rolling shutter
    Decode(Decode),
    /// Make such an image
    Render(Render),
}

/// How camera and lamps keep time.
#[derive(clap::Args)]
struct Timing {
    /// Rows of the sensor begun in a second: rows of the image over the time of its read-out
    #[arg(long)]
    row_rate_hz: f64,
    /// Exposure of a row, microseconds
    #[arg(long)]
    exposure_us: f64,
    /// Chips that the luminaires send in a second
    #[arg(long, default_value_t = 25_000.0)]
    chip_rate_hz: f64,
    /// Frequencies instead of frames: base,step,count, the first two in Hz
    #[arg(long)]
    frequency: Option<String>,
}

impl Timing {
    fn check(&self) -> Result<(Shutter, Mode)> {
        let mut shutter = Shutter {
            row_rate_hz: self.row_rate_hz,
            exposure_s: self.exposure_us * 1e-6,
            chip_rate_hz: self.chip_rate_hz,
        };
        let mode = match &self.frequency {
            None => Mode::Frame,
            Some(text) => {
                let wrong = || {
                    BadInput::new(format!(
                        "--frequency {text} is no plan; give base,step,count, for example 2000,500,16"
                    ))
                };
                let numbers: Result<Vec<u32>, _> =
                    text.split(',').map(|x| x.trim().parse()).collect();
                let [base_hz, step_hz, count] = numbers.map_err(|_| wrong())?[..] else {
                    return Err(wrong().into());
                };
                let count = u16::try_from(count).map_err(|_| wrong())?;
                if base_hz == 0 || step_hz == 0 || count == 0 {
                    return Err(wrong().into());
                }
                // Half a period is what a chip is to the shutter.
                let fastest = f64::from(base_hz) + f64::from(step_hz) * f64::from(count);
                shutter.chip_rate_hz = 2.0 * fastest;
                Mode::Frequency(FrequencyPlan {
                    base_hz,
                    step_hz,
                    count,
                })
            }
        };
        shutter.check().map_err(BadInput::new)?;
        Ok((shutter, mode))
    }
}

/// Arguments of `helio light decode`.
#[derive(clap::Args)]
pub struct Decode {
    /// Images
    #[arg(required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    timing: Timing,
    /// Which way the sensor is read out in the image: down, up, right or left
    #[arg(long, value_parser = readout, default_value = "down")]
    readout: Readout,
    /// Anchor map: tells strangers, and with --focal-px where the camera was
    #[arg(long)]
    map: Option<PathBuf>,
    /// Focal length in pixels: with a map and three luminaires the camera's pose is computed
    #[arg(long, requires = "map")]
    focal_px: Option<f64>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio light render`.
#[derive(clap::Args)]
pub struct Render {
    /// A luminaire: id@right,down,ahead of the camera in metres; may be given several times
    #[arg(long, required = true, allow_hyphen_values = true)]
    lamp: Vec<String>,
    /// Edge of a luminaire (diameter with --round), metres
    #[arg(long, default_value_t = 0.6)]
    size_m: f64,
    /// Round luminaires instead of square ones
    #[arg(long)]
    round: bool,
    #[command(flatten)]
    timing: Timing,
    /// Width of the image
    #[arg(long, default_value_t = 1600)]
    width_px: u32,
    /// Height of the image
    #[arg(long, default_value_t = 1200)]
    height_px: u32,
    /// Focal length
    #[arg(long, default_value_t = 3000.0)]
    focal_px: f64,
    /// Noise of a pixel, 1 sigma, share of full scale
    #[arg(long, default_value_t = 0.02)]
    noise: f64,
    /// Blur of the lens, 1 sigma
    #[arg(long, default_value_t = 1.0)]
    blur_px: f64,
    /// Brightness of a lamp that is on, share of full scale
    #[arg(long, default_value_t = 0.8)]
    brightness: f64,
    /// Seed of noise and phases
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the image here (.png or .jpg)
    #[arg(long)]
    out: PathBuf,
}

fn readout(name: &str) -> Result<Readout, String> {
    Ok(match name {
        "down" => Readout::Down,
        "up" => Readout::Up,
        "right" => Readout::Right,
        "left" => Readout::Left,
        _ => return Err("choose down, up, right or left".into()),
    })
}

/// Runs the command.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Decode(args) => run_decode(args),
        Command::Render(args) => run_render(args),
    }
}

fn why(unread: Unread) -> &'static str {
    match unread {
        Unread::TooShort => {
            "its image is shorter than a frame; go nearer, raise --chip-rate-hz of the lamps, or use --frequency"
        }
        Unread::NoStripes => "it does not blink, or the exposure is too long",
        Unread::NoFrame => {
            "its stripes are no frame: noise, another chip rate or another read-out; check --row-rate-hz and --readout"
        }
    }
}

/// Where the camera was, from the lamps of one image.
fn pose(map: &SiteMap, focal: f64, size: [u32; 2], lamps: &[Lamp]) -> serde_json::Value {
    let camera = Camera {
        focal: [focal; 2],
        centre: size.map(|s| f64::from(s) / 2.0),
        radial: [0.0; 3],
        tangential: [0.0; 2],
    };
    let seen: Vec<PixelObs<f64>> = lamps
        .iter()
        .filter_map(|l| {
            let anchor = map.get(l.code?.id)?;
            Some(PixelObs {
                anchor_m: anchor.position_m,
                pixel: l.centre_px,
                sigma_px: 4.0,
            })
        })
        .collect();
    if seen.len() < 3 {
        return json!(null);
    }
    match locate_camera(&seen, &camera, 5.0) {
        Ok(fix) => {
            let sigma = [0, 1, 2].map(|k| fix.pose.covariance[(k, k)].max(0.0).sqrt());
            let others: Vec<[f64; 3]> = fix.others.iter().flatten().map(|p| p.position_m).collect();
            json!({
                "position_m": fix.pose.position_m,
                "sigma_m": sigma,
                "luminaires": seen.len(),
                "others_m": others,
            })
        }
        Err(e) => json!({ "refused": format!("{e:?}") }),
    }
}

fn run_decode(args: &Decode) -> Result<()> {
    let (shutter, mode) = args.timing.check()?;
    let map = args.map.as_ref().map(|m| SiteMap::load(m)).transpose()?;
    let (mut text, mut all, mut read) = (String::new(), Vec::new(), 0);
    for file in &args.images {
        let (lamps, size) = light::read(file, &shutter, &mode, args.readout)?;
        text += &format!("{}: {} luminaires\n", file.display(), lamps.len());
        for l in &lamps {
            let [x, y] = l.centre_px;
            let [w, h] = l.size_px;
            text += &match (l.code, l.unread) {
                (Some(c), _) => {
                    read += 1;
                    let known = match &map {
                        Some(map) if map.get(c.id).is_none() => ", not in the map",
                        _ => "",
                    };
                    format!(
                        "  id {} at {x:.0}, {y:.0} px, {w} x {h} px{known}; stripes explained {:.0} %, weakest bit {:.0} %\n",
                        c.id,
                        c.explained * 100.0,
                        c.margin * 100.0
                    )
                }
                (None, Some(u)) => {
                    format!("  unread at {x:.0}, {y:.0} px, {w} x {h} px: {}\n", why(u))
                }
                (None, None) => String::new(),
            };
        }
        let camera = match (&map, args.focal_px) {
            (Some(map), Some(focal)) => pose(map, focal, size, &lamps),
            _ => json!(null),
        };
        if let Some(p) = camera.get("position_m") {
            text += &format!("  camera at {p} m, 1 sigma {} m\n", camera["sigma_m"]);
        }
        all.push(
            json!({ "image": file.display().to_string(), "luminaires": lamps, "camera": camera }),
        );
    }
    if args.json {
        text = serde_json::to_string_pretty(&all)? + "\n";
    }
    std::io::stdout().write_all(text.as_bytes())?;
    anyhow::ensure!(
        read > 0,
        "no identity was read in {} images",
        args.images.len()
    );
    Ok(())
}

fn source(text: &str, args: &Render) -> Result<Source> {
    let wrong = || {
        BadInput::new(format!(
            "--lamp {text} is no luminaire; give id@right,down,ahead in metres, for example 7@0.5,-0.2,3"
        ))
    };
    let (id, place) = text.split_once('@').ok_or_else(wrong)?;
    let id: u16 = id.trim().parse().map_err(|_| wrong())?;
    let place: Result<Vec<f64>, _> = place.split(',').map(|x| x.trim().parse::<f64>()).collect();
    let [x, y, z] = place.map_err(|_| wrong())?[..] else {
        return Err(wrong().into());
    };
    if !(x.abs() < 1e3 && y.abs() < 1e3 && z > 0.05 && z < 1e3) {
        return Err(wrong().into());
    }
    Ok(Source {
        id,
        place_m: [x, y, z],
        size_m: args.size_m,
        round: args.round,
    })
}

fn run_render(args: &Render) -> Result<()> {
    let (shutter, mode) = args.timing.check()?;
    let sources: Result<Vec<Source>> = args.lamp.iter().map(|l| source(l, args)).collect();
    let pixels = u64::from(args.width_px) * u64::from(args.height_px);
    if !(16..=100_000_000).contains(&pixels) || args.width_px < 4 || args.height_px < 4 {
        return Err(
            BadInput::new("give --width-px and --height-px for 16 to 100 million pixels").into(),
        );
    }
    let sane = args.size_m > 0.0
        && args.focal_px > 0.0
        && (0.0..=1.0).contains(&args.noise)
        && (0.0..=50.0).contains(&args.blur_px)
        && (0.0..=1.0).contains(&args.brightness);
    if !sane {
        return Err(BadInput::new("size and focal length are above 0, noise and brightness up to 1, blur up to 50 px; correct them").into());
    }
    let scene = Scene {
        size_px: [args.width_px, args.height_px],
        focal_px: args.focal_px,
        sources: sources?,
        brightness: args.brightness,
        background: 0.02,
        noise: args.noise,
        blur_px: args.blur_px,
        clock_ppm: 50.0,
    };
    light::write(
        &args.out,
        &light::render(&scene, &shutter, &mode, args.seed),
    )?;
    Ok(())
}
