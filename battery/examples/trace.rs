//! Runs the state-of-charge filter over recordings and prints its error against the truth.
//!
//! ```text
//! cargo run --release -p helio-battery --example trace -- --cell CELL.toml [options] TRACE.csv...
//!   --columns time_s,current_a,voltage_v,temperature_c,soc    names in the header; the last two may be empty
//!   --temp C             when there is no temperature column
//!   --count SOC          no truth column: count ampere-hours from this state of charge
//!   --charge-positive    the recording's current is positive when charging
//!   --offset-ma MA       error of the current sensor
//!   --start-error PP     restart every 600 s with this error of the stored state of charge, in percentage points
//!   --sigma S            sigma that the filter is told for a stored state of charge (0.15)
//!   --step-mv MV         the voltage sensor's resolution (1)
//!   --log                print every 100th row: time, truth, estimate, sigma
//! ```

use helio_battery::{CellData, CellExtra, CellParams, SocFilter, SocInit};
use helio_units::{DeciCelsius, Instant, Milliamps, Millivolts};
use std::error::Error;

struct Row {
    t: f64,
    a: f64,
    v: f64,
    temp: f64,
    soc: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut cell = None;
    let mut columns = "time_s,current_a,voltage_v,temperature_c,soc".to_string();
    let (
        mut temp,
        mut count,
        mut sign,
        mut offset,
        mut start_error,
        mut step_mv,
        mut sigma,
        mut log,
    ) = (25.0, None, 1.0, 0.0, None, 1.0f64, 0.15f32, false);
    let mut traces = Vec::new();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--cell" => cell = Some(load_cell(&value()?)?),
            "--columns" => columns = value()?,
            "--temp" => temp = value()?.parse()?,
            "--count" => count = Some(value()?.parse::<f64>()?),
            "--charge-positive" => sign = -1.0,
            "--offset-ma" => offset = value()?.parse()?,
            "--start-error" => start_error = Some(value()?.parse::<f64>()? / 100.0),
            "--step-mv" => step_mv = value()?.parse()?,
            "--sigma" => sigma = value()?.parse()?,
            "--log" => log = true,
            _ => traces.push(arg),
        }
    }
    let params = cell.ok_or("--cell CELL.toml is missing")?;
    println!(
        "{:<28} {:>7} {:>7} {:>7} {:>9} {:>8}",
        params.name(),
        "rows",
        "RMSE %",
        "max %",
        "in 2sig %",
        "sigma %"
    );
    for name in traces {
        let mut rows = load_trace(&name, &columns, temp, sign)?;
        if let Some(soc) = count {
            let mut soc = soc;
            let mut last: Option<(f64, f64)> = None;
            for row in &mut rows {
                if let Some((t, a)) = last {
                    soc -= 0.5 * (a + row.a) * (row.t - t) / 3.6 / f64::from(params.capacity_mah());
                }
                last = Some((row.t, row.a));
                row.soc = soc;
            }
        }
        let label = name.rsplit('/').next().unwrap_or(&name).to_string();
        let mut filter = SocFilter::new(SocInit::Voltage);
        let mut restarted = rows[0].t;
        let (mut sum, mut max, mut inside, mut sigmas, mut n) =
            (0.0f64, 0.0f64, 0u32, 0.0f64, 0u32);
        let mut slowest: f64 = 0.0;
        let mut arrived = true;
        for (k, row) in rows.iter().enumerate() {
            if let Some(error) = start_error
                && (k == 0 || row.t - restarted >= 600.0)
            {
                let soc = (row.soc + error).clamp(0.0, 1.0) as f32;
                filter = SocFilter::new(SocInit::Stored { soc, sigma });
                if !arrived {
                    slowest = f64::INFINITY;
                }
                restarted = row.t;
                arrived = false;
            }
            filter.update(
                &params,
                Instant::from_nanos((row.t * 1e9) as u64),
                Milliamps((row.a * 1e3 + offset).round() as i32),
                Millivolts(((row.v * 1e3 / step_mv).round() * step_mv) as u16),
                DeciCelsius((row.temp * 10.0).round() as i16),
            );
            let error = f64::from(filter.soc()) - row.soc.clamp(0.0, 1.0);
            if start_error.is_some() {
                if error.abs() > 0.05 {
                    slowest = slowest.max(row.t - restarted);
                } else {
                    arrived = true;
                }
            }
            if log && k % 100 == 0 {
                println!(
                    "{:9.1} {:8.4} {:8.4} {:8.4}",
                    row.t,
                    row.soc,
                    filter.soc(),
                    filter.sigma()
                );
            }
            sum += error * error;
            max = max.max(error.abs());
            inside += u32::from(error.abs() <= 2.0 * f64::from(filter.sigma()));
            sigmas += f64::from(filter.sigma());
            n += 1;
        }
        let n = f64::from(n);
        print!(
            "{label:<28} {n:>7} {:>7.2} {:>7.2} {:>9.1} {:>8.2}",
            100.0 * (sum / n).sqrt(),
            100.0 * max,
            100.0 * f64::from(inside) / n,
            100.0 * sigmas / n
        );
        if start_error.is_some() {
            print!("  last beyond 5 points {slowest:.0} s after a restart");
        }
        println!();
    }
    Ok(())
}

fn load_trace(name: &str, columns: &str, temp: f64, sign: f64) -> Result<Vec<Row>, Box<dyn Error>> {
    let text = std::fs::read_to_string(name).map_err(|e| format!("{name}: {e}"))?;
    let mut lines = text.lines();
    let head: Vec<_> = lines
        .next()
        .unwrap_or("")
        .split(',')
        .map(str::trim)
        .collect();
    let place = |wanted: &str| head.iter().position(|h| *h == wanted);
    let names: Vec<_> = columns.split(',').collect();
    let at: Vec<Option<usize>> = names.iter().map(|w| place(w)).collect();
    let mut rows = Vec::new();
    for (k, line) in lines.enumerate() {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let get = |n: usize| -> Result<f64, Box<dyn Error>> {
            let column = at
                .get(n)
                .copied()
                .flatten()
                .ok_or(format!("{name}: no column {:?}", names.get(n)))?;
            let text = cells
                .get(column)
                .ok_or(format!("{name}:{}: too few columns", k + 2))?;
            Ok(text
                .parse()
                .map_err(|_| format!("{name}:{}: {text:?} is no number", k + 2))?)
        };
        rows.push(Row {
            t: get(0)?,
            a: sign * get(1)?,
            v: get(2)?,
            temp: get(3).unwrap_or(temp),
            soc: get(4).unwrap_or(0.0),
        });
    }
    let t0 = rows.first().ok_or(format!("{name}: no rows"))?.t;
    rows.iter_mut().for_each(|r| r.t -= t0);
    Ok(rows)
}

fn load_cell(name: &str) -> Result<CellParams, Box<dyn Error>> {
    let text = std::fs::read_to_string(name).map_err(|e| format!("{name}: {e}"))?;
    let table: toml::Table = text.parse()?;
    fn flat(value: Option<&toml::Value>, out: &mut Vec<f32>) {
        match value {
            Some(toml::Value::Array(list)) => list.iter().for_each(|v| flat(Some(v), out)),
            Some(toml::Value::Float(x)) => out.push(*x as f32),
            Some(toml::Value::Integer(x)) => out.push(*x as f32),
            _ => {}
        }
    }
    let list = |key: &str| {
        let mut out = Vec::new();
        flat(table.get(key), &mut out);
        out
    };
    let one = |key: &str, or: f32| list(key).first().copied().unwrap_or(or);
    let params = CellParams::new(&CellData {
        name: table.get("name").and_then(|v| v.as_str()).unwrap_or(""),
        capacity_mah: one("capacity_mah", 0.0),
        ocv_mv: &list("ocv_mv"),
        ocv_mv_per_k: &list("ocv_mv_per_k"),
        temps_c: &list("temps_c"),
        soc_grid: &list("soc_grid"),
        r0_mohm: &list("r0_mohm"),
        r1_mohm: &list("r1_mohm"),
        tau1_s: &list("tau1_s"),
        r2_mohm: &list("r2_mohm"),
        tau2_s: &list("tau2_s"),
        hysteresis_mv: &list("hysteresis_mv"),
        hysteresis_rate: one("hysteresis_rate", 30.0),
        sigma_mv: one("sigma_mv", 5.0),
    })?;
    let tables = [
        "rk_mohm", "ik_ma", "r3_mohm", "tau3_s", "jump_mv", "shift_mv", "sigma_mv",
    ]
    .map(list);
    let [rk_mohm, ik_ma, r3_mohm, tau3_s, jump_mv, shift_mv, sigma_mv] = &tables;
    Ok(params.with_extra(&CellExtra {
        rk_mohm,
        ik_ma,
        r3_mohm,
        tau3_s,
        jump_mv,
        shift_mv,
        sigma_mv: if sigma_mv.len() > 1 { sigma_mv } else { &[] },
        coulombic_efficiency: one("coulombic_efficiency", 1.0),
    })?)
}
