//! Light codes in images: who a luminaire says it is, read from the stripes that a rolling shutter
//! makes of its blinking; and such images made, to try cameras and thresholds before there is a lamp.
//!
//! A row of the sensor integrates the light of its exposure, the next row a moment later: down the
//! image of a luminaire runs time. [`read`] finds the luminaires of an image and averages each along
//! its rows; [`decode`] reads one such profile:
//!
//! ```text
//! rows -> envelope taken off -> soft chips at every phase -> folded to one frame
//!      -> preamble at every rotation -> bits, CRC -> the stripes of that identity made anew
//!      -> accepted if they explain the profile
//! ```
//!
//! The frame (C-OOK with Manchester code after IEEE 802.15.7-2018, see `helio_positioning::LightCode`)
//! carries a CRC of 16 bits, which lets one wrong frame in 65 536 pass. What makes wrong identities
//! rare is the last step: a profile is believed only if the identity's own stripes account for most of
//! its variance and no bit is near a tie.

use std::path::Path;

use helio_positioning::{FRAME_CHIPS, FrequencyPlan, LightCode};
use image::{GrayImage, ImageReader, Luma};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::input::InputError;

/// Frames folded into one; more would only smear when clocks differ.
const MOST_FRAMES: usize = 4;
/// Phases of a chip that are tried.
const PHASES: usize = 5;
/// Ratios of the lamp's clock to the camera's that are tried, the likeliest first.
const RATES: [f64; 5] = [1.0, 0.9985, 1.0015, 0.997, 1.003];
/// Share of a profile's variance that the identity must explain.
const EXPLAINED: f64 = 0.6;
/// A bit weaker than this share of the mean bit is a tie.
const TIE: f64 = 0.2;
/// The envelope is the mean over so many chips, of which half are on.
const ENVELOPE_CHIPS: f64 = 20.0;
/// Rows of one chip below which stripes cannot be told.
const LEAST_ROWS: f64 = 1.6;
/// A luminaire is brighter than this share of the brightest.
const BRIGHT: f64 = 0.2;
/// Pixels of a block in which luminaires are sought.
const BLOCK: usize = 4;
/// Luminaires narrower than this are noise, pixels.
const NARROW: usize = 6;

/// How a camera and a lamp keep time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shutter {
    /// Rows of the sensor that are begun in a second.
    pub row_rate_hz: f64,
    /// How long a row is exposed, seconds.
    pub exposure_s: f64,
    /// Chips that a luminaire sends in a second.
    pub chip_rate_hz: f64,
}

/// What a lamp is asked to be read as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// The identity frame.
    Frame,
    /// A steady frequency.
    Frequency(FrequencyPlan),
}

/// Which way the sensor is read out in the image as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readout {
    /// The upper row first.
    #[default]
    Down,
    /// The lower row first.
    Up,
    /// The left column first.
    Right,
    /// The right column first.
    Left,
}

/// An identity that was read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Code {
    /// Whose.
    pub id: u16,
    /// Share of the profile's variance that its stripes explain.
    pub explained: f64,
    /// The weakest bit against the mean bit; 1 in frequency mode.
    pub margin: f64,
}

/// Why a profile has no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unread {
    /// The image of the luminaire is shorter than a frame: go nearer, or use a frequency.
    TooShort,
    /// There are no stripes: the light is steady, another lamp, or the exposure too long.
    NoStripes,
    /// There are stripes that are no frame of ours, or too noisy ones.
    NoFrame,
}

/// One luminaire of an image.
#[derive(Clone, Debug, Serialize)]
pub struct Lamp {
    /// Column and row of its middle, pixels of the image as stored.
    pub centre_px: [f64; 2],
    /// Width and height, pixels.
    pub size_px: [usize; 2],
    /// What it said.
    pub code: Option<Code>,
    /// Why not.
    pub unread: Option<Unread>,
}

impl Shutter {
    /// Refuses what cannot work, with what would.
    pub fn check(&self) -> Result<(), String> {
        let positive = |x: f64| x > 0.0 && x < 1e9;
        if !(positive(self.row_rate_hz) && positive(self.chip_rate_hz) && positive(self.exposure_s))
        {
            return Err("row rate, exposure and chip rate are numbers above 0; give them".into());
        }
        let rows = self.row_rate_hz / self.chip_rate_hz;
        if rows < LEAST_ROWS {
            return Err(format!(
                "{:.0} rows a second make {rows:.2} rows of a chip, {LEAST_ROWS} are needed; lower the chip rate to {:.0} Hz",
                self.row_rate_hz,
                self.row_rate_hz / LEAST_ROWS
            ));
        }
        let chips = self.exposure_s * self.chip_rate_hz;
        if chips > 1.6 {
            return Err(format!(
                "an exposure of {:.1} µs lasts {chips:.1} chips and blurs the stripes away; expose for {:.1} µs or less",
                self.exposure_s * 1e6,
                1.2e6 / self.chip_rate_hz
            ));
        }
        Ok(())
    }

    /// Rows of one chip.
    fn chip_rows(&self) -> f64 {
        self.row_rate_hz / self.chip_rate_hz
    }
}

/// Sums up to each row, for means over any stretch.
struct Sums(Vec<f64>);

impl Sums {
    fn new(values: &[f64]) -> Self {
        let mut sums = vec![0.0];
        let mut sum = 0.0;
        for v in values {
            sum += v;
            sums.push(sum);
        }
        Self(sums)
    }

    /// The integral up to a place between rows.
    fn to(&self, at: f64) -> f64 {
        let last = self.0.len() - 1;
        let at = at.clamp(0.0, last as f64);
        let row = (at as usize).min(last.saturating_sub(1));
        let below = self.0[row];
        let above = self.0[(row + 1).min(last)];
        below + (above - below) * (at - row as f64)
    }

    fn mean(&self, from: f64, to: f64) -> f64 {
        (self.to(to) - self.to(from)) / (to - from).max(1e-9)
    }
}

/// The profile over its envelope, less one: about zero, on and off equally far.
fn level(profile: &[f64], window: f64) -> Vec<f64> {
    let sums = Sums::new(profile);
    let n = profile.len() as f64;
    let half = window / 2.0;
    let of = |(row, y): (usize, &f64)| {
        // At the ends the window stays whole and leans inwards.
        let middle = (row as f64 + 0.5).clamp(half.min(n / 2.0), (n - half).max(n / 2.0));
        let mean = sums.mean((middle - half).max(0.0), (middle + half).min(n));
        if mean > 1e-9 { y / mean - 1.0 } else { 0.0 }
    };
    profile.iter().enumerate().map(of).collect()
}

/// The identity in a profile: mean brightness of each row of a luminaire, first exposed first.
pub fn decode(profile: &[f64], shutter: &Shutter) -> Result<Code, Unread> {
    let nominal = shutter.chip_rows();
    let frame = FRAME_CHIPS as f64 * nominal;
    if (profile.len() as f64) < frame {
        return Err(Unread::TooShort);
    }
    let most = (MOST_FRAMES as f64 * frame) as usize;
    let from = profile.len().saturating_sub(most) / 2;
    let levelled = level(profile, ENVELOPE_CHIPS * nominal);
    let x = levelled
        .get(from..(from + most).min(levelled.len()))
        .unwrap_or(&levelled);
    let power = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    if power < 1e-4 {
        return Err(Unread::NoStripes);
    }
    let sums = Sums::new(x);
    let exposure = shutter.exposure_s * shutter.row_rate_hz;
    let mut best: Option<(Code, f64, f64)> = None;
    for rate in RATES {
        let rows = nominal * rate;
        for phase in 0..PHASES {
            let start = phase as f64 / PHASES as f64 * rows;
            let Some(soft) = fold(&sums, x.len() as f64, rows, start) else {
                continue;
            };
            let Some((id, turn, margin)) = frame_of(&soft) else {
                continue;
            };
            // Where a frame begins, as the middles of exposures show it.
            let origin = start + turn as f64 * rows;
            let explained = explain(x, id, rows, origin, exposure);
            if best.is_none_or(|(code, ..)| explained > code.explained) {
                best = Some((
                    Code {
                        id,
                        explained,
                        margin,
                    },
                    rows,
                    origin,
                ));
            }
        }
        if best.is_some_and(|(code, ..)| code.explained > EXPLAINED) {
            break;
        }
    }
    let (mut code, rows, origin) = best.ok_or(Unread::NoFrame)?;
    if code.explained < EXPLAINED {
        // The phase to a fraction of what was tried.
        for part in [-0.12, -0.06, 0.06, 0.12] {
            let finer = explain(x, code.id, rows, origin + part * rows, exposure);
            code.explained = code.explained.max(finer);
        }
    }
    if code.explained < EXPLAINED || code.margin < TIE {
        return Err(Unread::NoFrame);
    }
    Ok(code)
}

/// Soft chips from `start` on, those a frame apart averaged; `None` unless a whole frame is there.
fn fold(sums: &Sums, len: f64, rows: f64, start: f64) -> Option<[f64; FRAME_CHIPS]> {
    let mut soft = [0.0; FRAME_CHIPS];
    let mut times = [0u32; FRAME_CHIPS];
    let chips = ((len - start) / rows + 0.2) as usize;
    for chip in 0..chips {
        let middle = start + (chip as f64 + 0.5) * rows;
        let value = sums.mean(middle - 0.3 * rows, (middle + 0.3 * rows).min(len));
        soft[chip % FRAME_CHIPS] += value;
        times[chip % FRAME_CHIPS] += 1;
    }
    for (s, n) in soft.iter_mut().zip(times) {
        if n == 0 {
            return None;
        }
        *s /= f64::from(n);
    }
    Some(soft)
}

/// The frame in folded chips: identity, where it begins, and its weakest bit against the mean one.
fn frame_of(soft: &[f64; FRAME_CHIPS]) -> Option<(u16, usize, f64)> {
    let preamble: [bool; 6] = std::array::from_fn(|at| LightCode::new(0).chip(at));
    let mut best: Option<(u16, usize, f64)> = None;
    for turn in 0..FRAME_CHIPS {
        let at = |chip: usize| soft[(turn + chip) % FRAME_CHIPS];
        if preamble
            .iter()
            .enumerate()
            .any(|(chip, on)| (at(chip) > 0.0) != *on)
        {
            continue;
        }
        let mut chips = [false; FRAME_CHIPS];
        chips[..6].copy_from_slice(&preamble);
        let (mut weakest, mut sum, mut bits) = (f64::INFINITY, 0.0, 0u32);
        for bit in 0..32 {
            let (first, second) = (at(6 + 2 * bit), at(7 + 2 * bit));
            let strength = (second - first).abs();
            weakest = weakest.min(strength);
            sum += strength;
            chips[6 + 2 * bit] = second <= first;
            chips[7 + 2 * bit] = second > first;
            bits = bits << 1 | u32::from(second > first);
        }
        let margin = weakest / (sum / 32.0).max(1e-12);
        let id = (bits >> 16) as u16;
        let wanted = LightCode::new(id);
        let right = (6..FRAME_CHIPS).all(|c| wanted.chip(c) == chips[c]);
        if right && best.is_none_or(|(_, _, m)| margin > m) {
            best = Some((id, turn, margin));
        }
    }
    best
}

/// Share of the variance of `x` that the stripes of `id` explain: their own, and those half a chip
/// before and behind, which is what the blur of a lens adds.
fn explain(x: &[f64], id: u16, rows: f64, origin: f64, exposure: f64) -> f64 {
    let code = LightCode::new(id);
    let frame = FRAME_CHIPS as f64 * rows;
    // Light sent from the beginning of a frame to each chip's end.
    let mut sent = [0.0; FRAME_CHIPS + 1];
    for chip in 0..FRAME_CHIPS {
        sent[chip + 1] = sent[chip] + if code.chip(chip) { rows } else { -rows };
    }
    let integral = |at: f64| {
        let frames = (at / frame).floor();
        let chip = (at - frames * frame) / rows;
        let whole = (chip as usize).min(FRAME_CHIPS - 1);
        frames * sent[FRAME_CHIPS]
            + sent[whole]
            + (sent[whole + 1] - sent[whole]) * (chip - whole as f64)
    };
    let stripe = |row: f64| (integral(row + exposure) - integral(row)) / exposure;
    // Row r is exposed from its own time on; its light was sent then.
    let half = rows / 2.0;
    let (mut aa, mut ab, mut bb, mut ay, mut by, mut yy) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    for (row, y) in x.iter().enumerate() {
        let at = row as f64 - origin - exposure / 2.0 + 0.5;
        let a = stripe(at);
        let b = stripe(at - half) + stripe(at + half);
        aa += a * a;
        ab += a * b;
        bb += b * b;
        ay += a * y;
        by += b * y;
        yy += y * y;
    }
    let det = aa * bb - ab * ab;
    if det <= 1e-9 * aa * bb || yy <= 0.0 {
        return 0.0;
    }
    let (p, q) = ((ay * bb - by * ab) / det, (by * aa - ay * ab) / det);
    // Blur is a mean: it takes from the stripe's own weight, never turns it over.
    if p + 2.0 * q <= 0.0 || p <= 0.0 {
        return 0.0;
    }
    (p * ay + q * by) / yy
}

/// The identity whose frequency a profile blinks with.
pub fn decode_frequency(
    profile: &[f64],
    shutter: &Shutter,
    plan: &FrequencyPlan,
) -> Result<Code, Unread> {
    let n = profile.len();
    if n < 32 {
        return Err(Unread::TooShort);
    }
    let x = level(
        profile,
        shutter.row_rate_hz / f64::from(plan.base_hz.max(1)) * 4.0,
    );
    let power = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
    if power < 1e-4 {
        return Err(Unread::NoStripes);
    }
    // Hann's window keeps neighbours out.
    let window = |i: usize| 0.5 - 0.5 * (std::f64::consts::TAU * (i as f64 + 0.5) / n as f64).cos();
    let energy = |hz: f64| {
        let turn = std::f64::consts::TAU * hz / shutter.row_rate_hz;
        let (mut re, mut im) = (0.0, 0.0);
        for (i, x) in x.iter().enumerate() {
            let (s, c) = (turn * i as f64).sin_cos();
            re += window(i) * x * c;
            im += window(i) * x * s;
        }
        re * re + im * im
    };
    let resolution = shutter.row_rate_hz / n as f64;
    let (from, to) = (
        f64::from(plan.base_hz) - f64::from(plan.step_hz),
        f64::from(plan.base_hz) + f64::from(plan.step_hz) * f64::from(plan.count),
    );
    if f64::from(plan.step_hz) < 2.0 * resolution {
        return Err(Unread::TooShort);
    }
    let step = (resolution / 8.0).min(f64::from(plan.step_hz) / 16.0);
    let mut best = (0.0, 0.0);
    let mut hz = from.max(resolution * 3.0);
    while hz <= to {
        let e = energy(hz);
        if e > best.1 {
            best = (hz, e);
        }
        hz += step;
    }
    // Share of the windowed variance that a sine of this frequency and strength has.
    let windowed: f64 = x
        .iter()
        .enumerate()
        .map(|(i, x)| (window(i) * x).powi(2))
        .sum();
    let (sum, squares) = (0..n).fold((0.0, 0.0), |(s, q), i| {
        (s + window(i), q + window(i).powi(2))
    });
    let explained = 2.0 * best.1 * squares / (sum * sum * windowed).max(1e-12);
    let id = plan
        .identify(best.0.round() as u32)
        .ok_or(Unread::NoFrame)?;
    if explained < 0.5 {
        return Err(Unread::NoFrame);
    }
    Ok(Code {
        id,
        explained,
        margin: 1.0,
    })
}

/// A picture in linear brightness, 0 to 1, read-out row first.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<f32>,
}

impl Picture {
    fn row(&self, y: usize) -> &[f32] {
        self.pixels
            .get(y * self.width..(y + 1) * self.width)
            .unwrap_or(&[])
    }

    fn of(image: &GrayImage, readout: Readout) -> Self {
        let (w, h) = (image.width() as usize, image.height() as usize);
        let mut linear = [0.0f32; 256];
        for (level, l) in linear.iter_mut().enumerate() {
            // IEC 61966-2-1.
            let v = level as f32 / 255.0;
            *l = if v <= 0.04045 {
                v / 12.92
            } else {
                ((v + 0.055) / 1.055).powf(2.4)
            };
        }
        let raw = image.as_raw();
        let at = |x: usize, y: usize| linear[usize::from(raw[y * w + x])];
        let (width, height) = match readout {
            Readout::Down | Readout::Up => (w, h),
            Readout::Left | Readout::Right => (h, w),
        };
        let mut pixels = Vec::with_capacity(w * h);
        for y in 0..height {
            for x in 0..width {
                pixels.push(match readout {
                    Readout::Down => at(x, y),
                    Readout::Up => at(x, h - 1 - y),
                    Readout::Right => at(y, x),
                    Readout::Left => at(w - 1 - y, x),
                });
            }
        }
        Self {
            width,
            height,
            pixels,
        }
    }
}

/// Writes an image in the format of its name.
pub fn write(file: &Path, image: &GrayImage) -> Result<(), InputError> {
    image.save(file).map_err(|e| {
        InputError::whole(
            file,
            format!("{e}; name a .png or .jpg file that can be written"),
        )
    })
}

/// Reads an image file: the luminaires in it, and its width and height.
pub fn read(
    file: &Path,
    shutter: &Shutter,
    mode: &Mode,
    readout: Readout,
) -> Result<(Vec<Lamp>, [u32; 2]), InputError> {
    let open = ImageReader::open(file).map_err(|e| {
        let what = match e.kind() {
            std::io::ErrorKind::NotFound => "there is no such file; check the path".to_string(),
            _ => format!("{e}; check that the file can be read"),
        };
        InputError::whole(file, what)
    })?;
    let wrong = |e: &dyn std::fmt::Display| {
        InputError::whole(
            file,
            format!("this is no PNG or JPEG that can be read ({e}); convert it"),
        )
    };
    let image = open
        .with_guessed_format()
        .map_err(|e| wrong(&e))?
        .decode()
        .map_err(|e| wrong(&e))?;
    let image = image.into_luma8();
    let size = [image.width(), image.height()];
    Ok((read_image(&image, shutter, mode, readout), size))
}

/// The luminaires of an image, the largest first.
pub fn read_image(
    image: &GrayImage,
    shutter: &Shutter,
    mode: &Mode,
    readout: Readout,
) -> Vec<Lamp> {
    let picture = Picture::of(image, readout);
    let stripe = match mode {
        Mode::Frame => 6.0 * shutter.chip_rows(),
        Mode::Frequency(plan) => 2.0 * shutter.row_rate_hz / f64::from(plan.base_hz.max(1)),
    };
    let mut lamps = Vec::new();
    for spot in spots(&picture, stripe.ceil() as usize) {
        let profile = spot.profile(&picture);
        let found = match mode {
            Mode::Frame => decode(&profile, shutter),
            Mode::Frequency(plan) => decode_frequency(&profile, shutter, plan),
        };
        let (w, h) = (image.width() as f64, image.height() as f64);
        let [cx, cy] = spot.centre;
        let (size, centre) = match readout {
            Readout::Down => (spot.size(), [cx, cy]),
            Readout::Up => (spot.size(), [cx, h - cy]),
            Readout::Right => ([spot.size()[1], spot.size()[0]], [cy, cx]),
            Readout::Left => ([spot.size()[1], spot.size()[0]], [w - cy, cx]),
        };
        lamps.push(Lamp {
            centre_px: centre,
            size_px: size,
            code: found.ok(),
            unread: found.err(),
        });
    }
    lamps
}

/// A bright patch: for every row the columns it covers.
struct Spot {
    top: usize,
    rows: Vec<(usize, usize)>,
    centre: [f64; 2],
}

impl Spot {
    fn size(&self) -> [usize; 2] {
        let left = self.rows.iter().map(|r| r.0).min().unwrap_or(0);
        let right = self.rows.iter().map(|r| r.1).max().unwrap_or(0);
        [right.saturating_sub(left), self.rows.len()]
    }

    /// Smoothing has lit up to half a stripe above and below the lamp: begins and ends with a row
    /// that is lit.
    fn trim(&mut self, picture: &Picture) {
        let profile = self.profile(picture);
        let mut sorted = profile.clone();
        sorted.sort_by(f64::total_cmp);
        let lit = sorted
            .get(sorted.len() * 9 / 10)
            .map_or(0.0, |bright| 0.4 * bright);
        let first = profile.iter().position(|y| *y >= lit).unwrap_or(0);
        let last = profile.iter().rposition(|y| *y >= lit).unwrap_or(0);
        self.rows.truncate(last + 1);
        self.rows.drain(..first.min(self.rows.len()));
        self.top += first;
    }

    /// Mean brightness of each row.
    fn profile(&self, picture: &Picture) -> Vec<f64> {
        let mean = |(i, (from, to)): (usize, &(usize, usize))| {
            let row = picture.row(self.top + i).get(*from..*to).unwrap_or(&[]);
            row.iter().map(|v| f64::from(*v)).sum::<f64>() / row.len().max(1) as f64
        };
        self.rows.iter().enumerate().map(mean).collect()
    }
}

/// Bright patches once stripes as high as `stripe` rows are smoothed away, the largest first.
fn spots(picture: &Picture, stripe: usize) -> Vec<Spot> {
    let (w, h) = (picture.width / BLOCK, picture.height / BLOCK);
    if w == 0 || h == 0 {
        return Vec::new();
    }
    let mut blocks = vec![0.0f32; w * h];
    for y in 0..h * BLOCK {
        let row = picture.row(y);
        for x in 0..w {
            let sum: f32 = row[x * BLOCK..(x + 1) * BLOCK].iter().sum();
            blocks[y / BLOCK * w + x] += sum / (BLOCK * BLOCK) as f32;
        }
    }
    // Means over one stripe, along the read-out.
    let half = (stripe / BLOCK / 2).max(1);
    let mut smooth = vec![0.0f32; w * h];
    for x in 0..w {
        let column: Vec<f64> = (0..h).map(|y| f64::from(blocks[y * w + x])).collect();
        let sums = Sums::new(&column);
        for y in 0..h {
            let (from, to) = (y.saturating_sub(half), (y + half + 1).min(h));
            smooth[y * w + x] = sums.mean(from as f64, to as f64) as f32;
        }
    }
    let mut sorted = smooth.clone();
    sorted.sort_by(f32::total_cmp);
    let (dark, bright) = (
        sorted[sorted.len() / 10],
        sorted[sorted.len() - 1 - sorted.len() / 2000],
    );
    // An image full of light has no dark of its own.
    let dark = if dark > 0.5 * bright { 0.0 } else { dark };
    let limit = dark + BRIGHT as f32 * (bright - dark);
    if bright < 0.002 {
        return Vec::new();
    }
    let mut label = vec![false; w * h];
    let mut found = Vec::new();
    for seed in 0..w * h {
        if label[seed] || smooth[seed] < limit {
            continue;
        }
        let mut extent: std::collections::BTreeMap<usize, (usize, usize)> = Default::default();
        let mut open = vec![seed];
        label[seed] = true;
        let (mut mass, mut mx, mut my) = (0.0, 0.0, 0.0);
        while let Some(at) = open.pop() {
            let (x, y) = (at % w, at / w);
            let span = extent.entry(y).or_insert((x, x + 1));
            *span = (span.0.min(x), span.1.max(x + 1));
            mass += 1.0;
            mx += x as f64 + 0.5;
            my += y as f64 + 0.5;
            let mut visit = |next: usize| {
                if !label[next] && smooth[next] >= limit {
                    label[next] = true;
                    open.push(next);
                }
            };
            if x > 0 {
                visit(at - 1);
            }
            if x + 1 < w {
                visit(at + 1);
            }
            if y > 0 {
                visit(at - w);
            }
            if y + 1 < h {
                visit(at + w);
            }
        }
        let top = extent.keys().next().copied().unwrap_or(0);
        let mut rows = Vec::new();
        for (from, to) in extent.values() {
            // The rim is half lit.
            let (from, to) = (from * BLOCK, to * BLOCK);
            let rim = ((to - from) / 8).min(2 * BLOCK);
            rows.extend(std::iter::repeat_n((from + rim, to - rim), BLOCK));
        }
        let mut spot = Spot {
            top: top * BLOCK,
            rows,
            centre: [mx / mass * BLOCK as f64, my / mass * BLOCK as f64],
        };
        spot.trim(picture);
        let [width, height] = spot.size();
        if width >= NARROW && height >= NARROW {
            found.push(spot);
        }
    }
    found.sort_by_key(|s| std::cmp::Reverse(s.size()[0] * s.size()[1]));
    found
}

/// A luminaire before the camera.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Source {
    /// Who it is.
    pub id: u16,
    /// Right of, below and before the camera, metres.
    pub place_m: [f64; 3],
    /// Its edge, or its diameter when round, metres.
    pub size_m: f64,
    /// Round instead of square.
    pub round: bool,
}

/// A camera's picture of blinking luminaires.
#[derive(Clone, Debug)]
pub struct Scene {
    /// Pixels across and down.
    pub size_px: [u32; 2],
    /// Focal length, pixels.
    pub focal_px: f64,
    /// What is in sight.
    pub sources: Vec<Source>,
    /// Brightness of a lamp that is on, 0 to 1 of what the sensor holds.
    pub brightness: f64,
    /// Brightness of everything else.
    pub background: f64,
    /// Standard deviation of a pixel, 0 to 1.
    pub noise: f64,
    /// Standard deviation of the lens's blur, pixels.
    pub blur_px: f64,
    /// By how much the lamps' clocks are fast, parts per million.
    pub clock_ppm: f64,
}

/// Light that a row collects, 0 to 1, with the frame beginning `phase` chips before row 0.
pub fn row_light(code: &Mode, id: u16, row: f64, phase: f64, shutter: &Shutter, ppm: f64) -> f64 {
    let rate = shutter.chip_rate_hz * (1.0 + ppm * 1e-6);
    let (from, to) = (
        row / shutter.row_rate_hz,
        row / shutter.row_rate_hz + shutter.exposure_s,
    );
    match code {
        Mode::Frame => {
            let code = LightCode::new(id);
            let (from, to) = (from * rate + phase, to * rate + phase);
            let (mut at, mut lit) = (from, 0.0);
            while at < to {
                let next = (at.floor() + 1.0).min(to);
                if code.chip(at as usize) {
                    lit += next - at;
                }
                at = next;
            }
            lit / (to - from)
        }
        Mode::Frequency(plan) => {
            let hz = f64::from(plan.frequency_hz(id).unwrap_or(plan.base_hz)) * (1.0 + ppm * 1e-6);
            // Square wave: on in the first half of each period.
            let lit = |t: f64| {
                let periods = t * hz + phase;
                periods.floor() * 0.5 + (periods.fract()).min(0.5)
            };
            (lit(to) - lit(from)) / ((to - from) * hz)
        }
    }
}

/// Normal deviate (Box and Muller).
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u = 1.0 - rng.random::<f64>();
    let v = rng.random::<f64>();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Takes the picture.
pub fn render(scene: &Scene, shutter: &Shutter, mode: &Mode, seed: u64) -> GrayImage {
    let [w, h] = scene.size_px.map(|x| x as usize);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut light = vec![scene.background; w * h];
    for source in &scene.sources {
        let [x, y, z] = source.place_m;
        let scale = scene.focal_px / z.max(0.05);
        let (cx, cy) = (w as f64 / 2.0 + x * scale, h as f64 / 2.0 + y * scale);
        let half = source.size_m * scale / 2.0;
        let phase = rng.random::<f64>() * FRAME_CHIPS as f64;
        let rows = (cy - half).max(0.0) as usize..((cy + half).max(0.0) as usize).min(h);
        for row in rows {
            let reach = if source.round {
                (half * half - (row as f64 + 0.5 - cy).powi(2))
                    .max(0.0)
                    .sqrt()
            } else {
                half
            };
            let lit = row_light(mode, source.id, row as f64, phase, shutter, scene.clock_ppm);
            let columns = (cx - reach).max(0.0) as usize..((cx + reach).max(0.0) as usize).min(w);
            for column in columns {
                light[row * w + column] += scene.brightness * lit;
            }
        }
    }
    blur(&mut light, w, h, scene.blur_px);
    let mut image = GrayImage::new(w as u32, h as u32);
    for (i, l) in light.iter().enumerate() {
        let noisy = (l + scene.noise * normal(&mut rng)).clamp(0.0, 1.0);
        let v = if noisy <= 0.003_130_8 {
            12.92 * noisy
        } else {
            1.055 * noisy.powf(1.0 / 2.4) - 0.055
        };
        let pixel = Luma([(v * 255.0).round() as u8]);
        image.put_pixel((i % w) as u32, (i / w) as u32, pixel);
    }
    image
}

/// A Gaussian, along both axes.
fn blur(light: &mut [f64], w: usize, h: usize, sigma: f64) {
    if sigma < 0.05 {
        return;
    }
    let reach = (3.0 * sigma).ceil() as usize;
    let mut kernel: Vec<f64> = (0..=2 * reach)
        .map(|i| (-((i as f64 - reach as f64) / sigma).powi(2) / 2.0).exp())
        .collect();
    let sum: f64 = kernel.iter().sum();
    kernel.iter_mut().for_each(|k| *k /= sum);
    let mut pass = |len: usize, lines: usize, at: &dyn Fn(usize, usize) -> usize| {
        let mut line = vec![0.0; len];
        for l in 0..lines {
            for (i, v) in line.iter_mut().enumerate() {
                *v = light[at(l, i)];
            }
            for i in 0..len {
                let mut v = 0.0;
                for (k, weight) in kernel.iter().enumerate() {
                    let j = (i + k).saturating_sub(reach).min(len - 1);
                    v += weight * line[j];
                }
                light[at(l, i)] = v;
            }
        }
    };
    pass(w, h, &|l, i| l * w + i);
    pass(h, w, &|l, i| i * w + l);
}

/// A profile as a camera at `distance_m` would see it of a lamp of `size_m`, and nothing else of the
/// picture: for campaigns of millions.
pub fn profile(
    id: u16,
    shutter: &Shutter,
    rows: usize,
    blur_rows: f64,
    noise: f64,
    ppm: f64,
    rng: &mut ChaCha8Rng,
) -> Vec<f64> {
    let phase = rng.random::<f64>() * FRAME_CHIPS as f64;
    let mut y: Vec<f64> = (0..rows)
        .map(|r| row_light(&Mode::Frame, id, r as f64, phase, shutter, ppm))
        .collect();
    blur(&mut y, 1, rows, blur_rows);
    // Lamps are darker towards their rims, and there is some light besides.
    let (tilt, rim) = (0.3 * (rng.random::<f64>() - 0.5), 0.3 * rng.random::<f64>());
    for (r, y) in y.iter_mut().enumerate() {
        let at = 2.0 * (r as f64 + 0.5) / rows as f64 - 1.0;
        *y = (*y * (1.0 + tilt * at - rim * at * at) + 0.1 + noise * normal(rng)).max(0.0);
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHUTTER: Shutter = Shutter {
        row_rate_hz: 100_000.0,
        exposure_s: 30e-6,
        chip_rate_hz: 25_000.0,
    };

    fn scene(sources: Vec<Source>) -> Scene {
        Scene {
            size_px: [800, 1200],
            focal_px: 3000.0,
            sources,
            brightness: 0.8,
            background: 0.02,
            noise: 0.05,
            blur_px: 1.2,
            clock_ppm: 100.0,
        }
    }

    #[test]
    fn lamps_from_half_a_metre_to_six_are_read_from_their_images() {
        for (seed, distance) in [(1, 0.5), (2, 1.5), (3, 3.0), (4, 6.0)] {
            let id = 0x1234 + seed as u16 * 4099;
            let source = Source {
                id,
                place_m: [0.0, 0.0, distance],
                size_m: 0.7,
                round: seed == 3,
            };
            let image = render(&scene(vec![source]), &SHUTTER, &Mode::Frame, seed);
            let lamps = read_image(&image, &SHUTTER, &Mode::Frame, Readout::Down);
            assert_eq!(lamps.len(), 1, "{distance}: {lamps:?}");
            assert_eq!(
                lamps[0].code.map(|c| c.id),
                Some(id),
                "{distance}: {lamps:?}"
            );
        }
    }

    /// A photograph of a lamp whose pin is fed by a shift register from the slave's bytes.
    fn photograph(bytes: &[u8], from_s: f64) -> GrayImage {
        let on = |t: f64| {
            let chip = (t * f64::from(helio_slave::CHIP_RATE_HZ)) as usize % (8 * bytes.len());
            f64::from(bytes[chip / 8] >> (7 - chip % 8) & 1)
        };
        let steps = 60;
        GrayImage::from_fn(500, 900, |x, y| {
            if !(100..400).contains(&x) || !(50..850).contains(&y) {
                return Luma([3]);
            }
            let row = from_s + f64::from(y) / SHUTTER.row_rate_hz;
            let each = SHUTTER.exposure_s / f64::from(steps);
            let lit: f64 = (0..steps).map(|k| on(row + each * f64::from(k))).sum();
            let light = 0.02 + 0.8 * lit / f64::from(steps);
            Luma([(255.0 * light.powf(1.0 / 2.2)).round() as u8])
        })
    }

    #[test]
    fn what_a_slave_shifts_out_is_read_as_its_luminaires_identity() {
        for (first, anchor) in [(0x10, 0), (0x10, 7), (0xfff8, 9), (0x5a30, 2)] {
            let bytes = helio_slave::light_pattern(first, anchor);
            for from_s in [0.0, 0.0137, 0.4021] {
                let image = photograph(&bytes, from_s);
                let lamps = read_image(&image, &SHUTTER, &Mode::Frame, Readout::Down);
                let ids: Vec<_> = lamps.iter().map(|l| l.code.map(|c| c.id)).collect();
                let id = u16::wrapping_add(first, u16::from(anchor));
                assert_eq!(ids, [Some(id)], "{first} {anchor} {from_s}");
            }
        }
    }

    #[test]
    fn several_lamps_are_told_apart_and_found_where_they_are() {
        let lamp = |id, x, y| Source {
            id,
            place_m: [x, y, 5.0],
            size_m: 0.6,
            round: false,
        };
        let sources = vec![lamp(7, -0.35, -0.6), lamp(9, 0.35, 0.55)];
        let image = render(&scene(sources), &SHUTTER, &Mode::Frame, 5);
        for readout in [Readout::Down, Readout::Right] {
            let turned = if readout == Readout::Down {
                image.clone()
            } else {
                image::imageops::rotate270(&image)
            };
            let turned = if readout == Readout::Down {
                turned
            } else {
                image::imageops::flip_vertical(&turned)
            };
            let lamps = read_image(&turned, &SHUTTER, &Mode::Frame, readout);
            let nine = lamps
                .iter()
                .find(|l| l.code.is_some_and(|c| c.id == 9))
                .expect("read");
            let [x, y] = nine.centre_px;
            let (x, y) = if readout == Readout::Down {
                (x, y)
            } else {
                (y, x)
            };
            assert!(
                (x - 610.0).abs() < 6.0 && (y - 930.0).abs() < 16.0,
                "{readout:?} {lamps:?}"
            );
            assert!(
                lamps.iter().any(|l| l.code.is_some_and(|c| c.id == 7)),
                "{lamps:?}"
            );
        }
    }

    #[test]
    fn what_is_no_frame_is_no_identity() {
        let small = Source {
            id: 3,
            place_m: [0.0, 0.0, 9.0],
            size_m: 0.6,
            round: false,
        };
        let image = render(&scene(vec![small]), &SHUTTER, &Mode::Frame, 6);
        let lamps = read_image(&image, &SHUTTER, &Mode::Frame, Readout::Down);
        assert_eq!(lamps[0].unread, Some(Unread::TooShort), "{lamps:?}");
        let steady = vec![1.0; 600];
        assert_eq!(decode(&steady, &SHUTTER), Err(Unread::NoStripes));
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for _ in 0..300 {
            let noise: Vec<f64> = (0..600).map(|_| rng.random::<f64>()).collect();
            assert_eq!(decode(&noise, &SHUTTER), Err(Unread::NoFrame));
        }
        assert!(
            read_image(
                &GrayImage::new(64, 64),
                &SHUTTER,
                &Mode::Frame,
                Readout::Down
            )
            .is_empty()
        );
    }

    #[test]
    fn a_noisy_profile_is_read_right_or_not_at_all() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let (mut right, n) = (0, 2_000);
        for _ in 0..n {
            let id = rng.random();
            let rows = 282 + (rng.random::<f64>() * 1500.0) as usize;
            let y = profile(id, &SHUTTER, rows, 1.3, 0.06, 150.0, &mut rng);
            if let Ok(code) = decode(&y, &SHUTTER) {
                assert_eq!(code.id, id);
                right += 1;
            }
        }
        assert!(right >= n - 2, "{right} of {n}");
    }

    #[test]
    fn frequencies_are_identities_where_frames_do_not_fit() {
        let plan = FrequencyPlan {
            base_hz: 2_000,
            step_hz: 1_000,
            count: 12,
        };
        for id in 0..12 {
            let source = Source {
                id,
                place_m: [0.0, 0.0, 6.0],
                size_m: 0.6,
                round: false,
            };
            let image = render(
                &scene(vec![source]),
                &SHUTTER,
                &Mode::Frequency(plan),
                u64::from(id),
            );
            let lamps = read_image(&image, &SHUTTER, &Mode::Frequency(plan), Readout::Down);
            assert_eq!(lamps[0].code.map(|c| c.id), Some(id), "{lamps:?}");
        }
    }

    #[test]
    fn a_shutter_that_cannot_work_says_what_would() {
        let slow = Shutter {
            row_rate_hz: 30_000.0,
            ..SHUTTER
        };
        assert!(
            slow.check()
                .expect_err("slow")
                .contains("lower the chip rate to 18750 Hz")
        );
        let long = Shutter {
            exposure_s: 1e-4,
            ..SHUTTER
        };
        assert!(
            long.check()
                .expect_err("long")
                .contains("expose for 48.0 µs")
        );
        assert_eq!(SHUTTER.check(), Ok(()));
    }
}
