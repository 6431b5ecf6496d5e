//! `helio cell`: a parameter file from recordings, and how well the filter follows other recordings with it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use helio_cellfit::bpx::Bpx;
use helio_cellfit::fit::{About, fit};
use helio_cellfit::plot;
use helio_cellfit::recording::{Columns, Recording, Sign, Source, join};
use helio_cellfit::score::{self, Counting, Estimator, Helio, PlainEkf, Score, Trial, TruthUnit};
use helio_sim::files::load_cell;
use serde::Serialize;

use crate::BadInput;

/// What to do with cells.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make one parameter file for all temperatures from slow and dynamic tests
    Fit(Fit),
    /// Follow recordings with the filter and compare with the truth
    Test(Test),
    /// Draw what a parameter file says, as SVG: open circuit, resistances over charge and temperature, hysteresis
    Plot(Plot),
}

/// How recordings are to be read.
#[derive(clap::Args, Clone)]
pub struct Reading {
    /// Column map, for example time=Test_Time(s),current=I:mA,voltage=U,temperature=T1; keys: time, current, voltage,
    /// temperature, charge-ah, discharge-ah, ah, soc; usual names are known without
    #[arg(long, default_value = "")]
    columns: String,
    /// Which way the files count current; found from the data by default
    #[arg(long, value_enum, default_value = "auto")]
    sign: SignArg,
}

/// Direction of a file's current.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum SignArg {
    /// Found by how the voltage answers
    Auto,
    /// Discharge is positive
    Discharge,
    /// Charge is positive
    Charge,
}

impl Reading {
    fn load(&self, files: &[String], extra: Option<&str>) -> Result<Vec<Recording>> {
        let columns =
            Columns::parse(&self.columns).map_err(|e| BadInput::new(format!("--columns: {e}")))?;
        let sign = match self.sign {
            SignArg::Auto => Sign::Auto,
            SignArg::Discharge => Sign::Discharge,
            SignArg::Charge => Sign::Charge,
        };
        let mut all = Vec::new();
        for file in files {
            let r = Recording::load(&Source::parse(file), &columns, sign, extra)
                .map_err(BadInput::new)?;
            for note in &r.notes {
                eprintln!("{}: {note}", r.name);
            }
            all.push(r);
        }
        Ok(all)
    }
}

/// Arguments of `helio cell fit`.
#[derive(clap::Args)]
pub struct Fit {
    /// Slow tests (C/20 or C/30), CSV, each FILE or FILE@°C; parts named …_S1, …_S2 are put together
    #[arg(long, num_args = 1.., required_unless_present = "bpx")]
    ocv: Vec<String>,
    /// BPX file: its electrodes give the curve at rest and the capacity where there is no slow test, and what the state of
    /// health needs; the circuit still comes from dynamic tests
    #[arg(long)]
    bpx: Option<PathBuf>,
    /// Dynamic tests at all temperatures, CSV, each FILE or FILE@°C
    #[arg(long, num_args = 1.., required = true)]
    dynamic: Vec<String>,
    /// Parameter file to write
    #[arg(long)]
    out: PathBuf,
    /// Name of the cell (default: that of the file)
    #[arg(long)]
    name: Option<String>,
    /// nmc or lfp: picks default protection limits (default: found from the curve)
    #[arg(long, value_parser = ["nmc", "lfp"])]
    chemistry: Option<String>,
    #[command(flatten)]
    reading: Reading,
    /// Column map of the slow tests where theirs is another
    #[arg(long)]
    ocv_columns: Option<String>,
    /// Draw the file and what the fit leaves over into this folder, as SVG
    #[arg(long)]
    plots: Option<PathBuf>,
    /// State of charge at the start of the dynamic tests (default: from their soc column, else from the voltage at rest)
    #[arg(long)]
    start_soc: Option<f64>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `helio cell plot`.
#[derive(clap::Args)]
pub struct Plot {
    /// Cell parameter file
    #[arg(long)]
    cell: PathBuf,
    /// Folder to draw into
    #[arg(long)]
    out: PathBuf,
}

/// Arguments of `helio cell test`.
#[derive(clap::Args)]
pub struct Test {
    /// Cell parameter file
    #[arg(long)]
    cell: PathBuf,
    /// Recordings, CSV, each FILE or FILE@°C
    #[arg(long, num_args = 1.., required = true)]
    trace: Vec<String>,
    /// Column of the truth, or two columns with a minus between (disAh-chgAh); only scores, the filter never sees it
    #[arg(long)]
    truth: Option<String>,
    /// What that column counts
    #[arg(long, value_enum, default_value = "soc")]
    truth_unit: TruthArg,
    /// Where the truth starts, if it counts ampere-hours (1 is full)
    #[arg(long)]
    start_soc: Option<f64>,
    #[command(flatten)]
    reading: Reading,
    /// Added to the measured current, discharge positive [A]
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    offset_current: f64,
    /// Added to the measured temperature [K]
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    offset_temp: f64,
    /// The filter starts from a stored state of charge that is wrong by so many points (default: from the first voltage)
    #[arg(long, allow_hyphen_values = true)]
    start_soc_error: Option<f64>,
    /// Sigma that the filter is told about the stored state of charge, in points
    #[arg(long, default_value_t = 15.0)]
    start_soc_sigma: f64,
    /// Restart so often [s]
    #[arg(long)]
    restart_every: Option<f64>,
    /// Steps of the voltage sensor [mV]
    #[arg(long, default_value_t = 1.0)]
    step_mv: f64,
    /// 1 sigma of the voltage sensor's noise [mV]
    #[arg(long, default_value_t = 0.0)]
    noise_mv: f64,
    /// At least so many seconds between samples
    #[arg(long, default_value_t = 0.0)]
    period: f64,
    /// Share of samples that are lost, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    lost: f64,
    /// Errors count only so many seconds after a start
    #[arg(long, default_value_t = 0.0)]
    settle: f64,
    /// Which estimator
    #[arg(long, value_enum, default_value = "helio")]
    estimator: EstimatorArg,
    /// Write time, estimate, sigma and truth of the last recording to this CSV file
    #[arg(long)]
    track: Option<PathBuf>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a truth column counts.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum TruthArg {
    /// State of charge, 0 to 1 or 0 to 100
    Soc,
    /// Ampere-hours taken out
    AhOut,
    /// Ampere-hours put in (negative when discharged)
    AhIn,
}

/// An estimator to test.
#[derive(clap::ValueEnum, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EstimatorArg {
    /// Heliograph's filter
    Helio,
    /// Counting ampere-hours
    Counting,
    /// A textbook's extended Kalman filter
    PlainEkf,
}

#[derive(Serialize)]
struct TestReport {
    cell: String,
    estimator: EstimatorArg,
    trial: Trial,
    mean_rmse_pct: f64,
    worst_max_error_pct: f64,
    within_2_sigma_pct: f64,
    traces: Vec<Score>,
}

/// Runs the command.
pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Fit(args) => run_fit(args),
        Command::Test(args) => run_test(args),
        Command::Plot(args) => {
            let cell = load_cell(&args.cell)?;
            draw(&args.out, plot::of_cell(&cell.params))
        }
    }
}

/// Writes plots into a folder, which is made if need be.
fn draw(
    folder: &std::path::Path,
    plots: impl IntoIterator<Item = (&'static str, plot::Plot)>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| {
        BadInput::new(format!(
            "{}: {e}; name a folder that can be written",
            folder.display()
        ))
    })?;
    for (name, plot) in plots {
        let file = folder.join(format!("{name}.svg"));
        write_file(&file, &plot.to_svg())?;
        eprintln!("wrote {}", file.display());
    }
    Ok(())
}

fn write_file(file: &std::path::Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(|e| {
        BadInput::new(format!(
            "{}: {e}; name a file that can be written",
            file.display()
        ))
        .into()
    })
}

fn run_fit(args: Fit) -> Result<()> {
    let ocv_reading = Reading {
        columns: args
            .ocv_columns
            .unwrap_or_else(|| args.reading.columns.clone()),
        ..args.reading.clone()
    };
    let slow = join(ocv_reading.load(&args.ocv, None)?);
    let dynamic = join(args.reading.load(&args.dynamic, None)?);
    let stem = args
        .out
        .file_stem()
        .map_or_else(|| "cell".into(), |s| s.to_string_lossy().to_string());
    let bpx = match &args.bpx {
        None => None,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|e| BadInput::new(format!("{}: {e}; name a BPX file", file.display())))?;
            let bpx =
                Bpx::parse(&text).map_err(|e| BadInput::new(format!("{}: {e}", file.display())))?;
            Some(bpx)
        }
    };
    let about = About {
        bpx,
        name: args.name.unwrap_or(stem),
        chemistry: args.chemistry,
        start_soc: args.start_soc,
    };
    let fitted = fit(&about, &slow, &dynamic, |what| eprintln!("{what}")).map_err(BadInput::new)?;
    let files = |list: &[Recording]| {
        list.iter()
            .map(|r| r.name.clone())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let curve = match &about.bpx {
        Some(bpx) if slow.is_empty() => format!("BPX, {}", bpx.title),
        _ => files(&slow),
    };
    let origin = format!(
        "Made by helio cell fit.\nOCV: {}\nDynamic: {}",
        curve,
        files(&dynamic)
    );
    write_file(&args.out, &fitted.to_toml(&origin))?;
    // What was written must be what a master can read.
    let written = load_cell(&args.out)?;
    if let Some(folder) = &args.plots {
        let mut plots = plot::of_cell(&written.params);
        plots.push(("residuals", plot::residuals(&fitted)));
        draw(folder, plots)?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&fitted.report)? + "\n"
    } else {
        fitted.report.to_text() + &format!("wrote {}\n", args.out.display())
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn run_test(args: Test) -> Result<()> {
    let cell = load_cell(&args.cell)?;
    let params = cell.params;
    let trial = Trial {
        offset_a: args.offset_current,
        temp_offset_k: args.offset_temp,
        step_mv: args.step_mv,
        noise_mv: args.noise_mv,
        period_s: args.period,
        lost: args.lost,
        start_error: args.start_soc_error.map(|e| e / 100.0),
        start_sigma: args.start_soc_sigma / 100.0,
        restart_s: args.restart_every,
        settle_s: args.settle,
        seed: 1,
    };
    let unit = match args.truth_unit {
        TruthArg::Soc => TruthUnit::Soc,
        TruthArg::AhOut => TruthUnit::AhOut,
        TruthArg::AhIn => TruthUnit::AhIn,
    };
    let recordings = args.reading.load(&args.trace, args.truth.as_deref())?;
    let (mut scores, mut track) = (Vec::new(), String::from("time_s,soc,sigma,truth\n"));
    for r in &recordings {
        let (truth, _) = score::truth(r, unit, args.start_soc, &params)
            .map_err(|e| BadInput::new(format!("{}: {e}", r.name)))?;
        let mut helio = Helio::new(&params);
        let mut counting = Counting::new(&params);
        let mut plain = PlainEkf::new(&params);
        let estimator: &mut dyn Estimator = match args.estimator {
            EstimatorArg::Helio => &mut helio,
            EstimatorArg::Counting => &mut counting,
            EstimatorArg::PlainEkf => &mut plain,
        };
        let (score, points) = score::run(estimator, r, &truth, &trial);
        scores.push(score);
        track.truncate("time_s,soc,sigma,truth\n".len());
        for p in &points {
            track += &format!("{:.2},{:.5},{:.5},{:.5}\n", p.t, p.soc, p.sigma, p.truth);
        }
    }
    if let Some(file) = &args.track {
        write_file(file, &track)?;
    }
    let n = scores.len().max(1) as f64;
    let report = TestReport {
        cell: params.name().to_string(),
        estimator: args.estimator,
        trial,
        mean_rmse_pct: scores.iter().map(|s| s.rmse_pct).sum::<f64>() / n,
        worst_max_error_pct: scores.iter().map(|s| s.max_error_pct).fold(0.0, f64::max),
        within_2_sigma_pct: scores.iter().map(|s| s.within_2_sigma_pct).sum::<f64>() / n,
        traces: scores,
    };
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        to_text(&report)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn to_text(report: &TestReport) -> String {
    let mut t = format!(
        "{:<34} {:>5} {:>7} {:>7} {:>7} {:>7} {:>8} {:>8} {:>9}\n",
        report.cell, "°C", "RMSE %", "max %", "mean %", "at 1 h", "in 2sig", "sigma %", "within 5"
    );
    for s in &report.traces {
        let hour = s.error_at_1h_pct.map_or("-".into(), |e| format!("{e:.2}"));
        let after = s
            .within_5_points_after_s
            .map_or("never".into(), |a| format!("{a:.0} s"));
        t += &format!(
            "{:<34} {:>5.0} {:>7.2} {:>7.2} {:>7.2} {hour:>7} {:>8.1} {:>8.2} {after:>9}\n",
            s.trace,
            s.temperature_c,
            s.rmse_pct,
            s.max_error_pct,
            s.mean_error_pct,
            s.within_2_sigma_pct,
            s.mean_sigma_pct
        );
    }
    t + &format!(
        "mean RMSE {:.2} %, worst error {:.2} %, truth within 2 sigma {:.1} % of the time\n",
        report.mean_rmse_pct, report.worst_max_error_pct, report.within_2_sigma_pct
    )
}
