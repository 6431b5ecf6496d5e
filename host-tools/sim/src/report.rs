//! What a run has shown: figures for people, and the same as JSON.
//!
//! Everything here is computed in virtual time from counts and integers, so the same scenario and
//! seed give the same report, byte for byte.

use std::fmt::Write;

use serde::Serialize;

/// Times by the microsecond, exact in maximum and to 1 µs in quantiles.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    bins: Vec<u32>,
    count: u64,
    max_ns: u64,
}

/// Longest time that has a bin of its own; longer ones share the last.
const MAX_US: usize = 200_000;

impl Histogram {
    /// Adds one time.
    pub fn add(&mut self, ns: u64) {
        let bin = usize::try_from(ns / 1_000).unwrap_or(MAX_US).min(MAX_US);
        if bin >= self.bins.len() {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest, µs.
    pub fn max_us(&self) -> f64 {
        self.max_ns as f64 / 1e3
    }

    /// Upper edge of the bin in which the quantile lies, µs, never above the maximum.
    pub fn quantile_us(&self, q: f64) -> f64 {
        let rank = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bin, &n) in self.bins.iter().enumerate() {
            seen += u64::from(n);
            if seen >= rank {
                return (bin as f64 + 1.0).min(self.max_us());
            }
        }
        0.0
    }
}

/// A row of the latency table.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Class of message.
    pub class: &'static str,
    /// Messages that arrived.
    pub count: u64,
    /// From sample to value, µs.
    pub p99_us: f64,
    /// From sample to value, µs.
    pub max_us: f64,
}

/// Something that was decided or happened, in order.
#[derive(Clone, Debug, Serialize)]
pub struct Happening {
    /// Virtual time.
    pub at_s: f64,
    /// Rack, from 1.
    pub master: u32,
    /// `fault` and `fault-end` are the scenario's, the others the master's.
    pub what: &'static str,
    /// Seat, where it concerns one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u8>,
    /// Device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// More, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// One affected slave and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Affected {
    /// Rack, from 1.
    pub master: u32,
    /// Seat.
    pub node: u8,
    /// The fault.
    pub fault: &'static str,
    /// When it began.
    pub fault_at_s: f64,
    /// When the master no longer counted on it.
    pub isolated_at_s: Option<f64>,
    /// From fault to isolation.
    pub isolated_after_ms: Option<f64>,
    /// When it was back for good (or its successor there).
    pub rejoined_at_s: Option<f64>,
    /// When its string was connected again.
    pub reconnected_at_s: Option<f64>,
}

/// Loss at the slaves that no fault touched.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Loss {
    /// Cyclic messages of healthy slaves that the master accepted.
    pub received: u64,
    /// Of these slaves, found missing by their counters.
    pub lost: u64,
    /// Failed their check.
    pub rejected: u64,
    /// Not sent before the next one was due.
    pub overwritten: u64,
}

/// Trips.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Trips {
    /// Gates that protection opened.
    pub count: u64,
    /// Worst time from the sample that showed the fault to the decision to open, µs.
    pub decision_max_us: Option<f64>,
    /// Worst time from the beginning of the fault to that decision, µs: mostly the wait for a sample.
    pub reaction_max_us: Option<f64>,
    /// Worst time from that sample to the master hearing of it, µs.
    pub master_max_us: Option<f64>,
    /// Worst time from that sample to another slave hearing of it, on whatever bus of the master, µs.
    pub heard_max_us: Option<f64>,
    /// Slaves that were members then and have not heard of it.
    pub unheard: u64,
}

/// Charge and place, estimate against truth.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Estimates {
    /// Root mean square error of the cells' state of charge at the end, percentage points.
    pub soc_rmse_pct: Option<f64>,
    /// Largest.
    pub soc_max_pct: Option<f64>,
    /// Capacity over the new cell's as the master has it at the end, mean of the slaves, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soh_pct: Option<f64>,
    /// Largest error of a slave's, percentage points of the new cell's capacity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soh_max_error_pct: Option<f64>,
    /// Half width of the widest 95 % bounds, percentage points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soh_bound_pct: Option<f64>,
    /// Position fixes.
    pub fixes: u64,
    /// Median horizontal error, mm.
    pub position_p50_mm: Option<f64>,
    /// 95 % of the fixes are better, mm.
    pub position_p95_mm: Option<f64>,
}

/// What became of the main contactors.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ContactorFigures {
    /// Where they stand at the end.
    pub state: &'static str,
    /// When the load was first fed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at_s: Option<f64>,
    /// Largest current at the moment at which a pole closed onto the link.
    pub inrush_max_a: f64,
    /// Openings with more current than a contactor bears for long.
    pub openings_under_load: u32,
}

/// One rack.
#[derive(Clone, Debug, Serialize)]
pub struct RackReport {
    /// From 1.
    pub master: u32,
    /// When every seat was taken first.
    pub all_joined_at_s: Option<f64>,
    /// Members at the end.
    pub members: u8,
    /// Share of time in which the bus was busy; of several, the busiest.
    pub load_pct: f64,
    /// Frames on all buses.
    pub frames: u64,
    /// Frames destroyed.
    pub error_frames: u64,
    /// Sample to value, slaves without fault.
    pub latency: Vec<Latency>,
    /// Loss of healthy slaves.
    pub healthy: Loss,
    /// Trips.
    pub trips: Trips,
    /// Estimates.
    pub estimates: Estimates,
    /// The main contactors, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contactors: Option<ContactorFigures>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: String,
    /// Which buses, with a + between two.
    pub bus: String,
    /// Seed.
    pub seed: u64,
    /// Virtual time.
    pub duration_s: f64,
    /// Per rack.
    pub racks: Vec<RackReport>,
    /// What faults did.
    pub affected: Vec<Affected>,
    /// In order.
    pub happenings: Vec<Happening>,
}

impl Report {
    /// As text for people.
    pub fn to_text(&self) -> String {
        let mut t = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut t);
        t
    }

    fn write(&self, t: &mut String) -> std::fmt::Result {
        writeln!(
            t,
            "{}: {} s virtual on {}, seed {}",
            self.scenario, self.duration_s, self.bus, self.seed
        )?;
        let opt =
            |v: Option<f64>, unit: &str| v.map_or("-".to_string(), |v| format!("{v:.3} {unit}"));
        for r in &self.racks {
            writeln!(t, "\nmaster {}", r.master)?;
            writeln!(
                t,
                "  members {}, all joined at {}",
                r.members,
                opt(r.all_joined_at_s, "s")
            )?;
            writeln!(
                t,
                "  bus load {:.1} %, {} frames, {} error frames",
                r.load_pct, r.frames, r.error_frames
            )?;
            writeln!(
                t,
                "  sample to value        messages      p99 ms      max ms"
            )?;
            for l in &r.latency {
                writeln!(
                    t,
                    "    {:<18} {:>11} {:>11.3} {:>11.3}",
                    l.class,
                    l.count,
                    l.p99_us / 1e3,
                    l.max_us / 1e3
                )?;
            }
            let h = &r.healthy;
            writeln!(
                t,
                "  slaves without fault: {} messages, {} lost, {} rejected, {} overwritten",
                h.received, h.lost, h.rejected, h.overwritten
            )?;
            let trips = &r.trips;
            writeln!(
                t,
                "  trips {}: sample to gate off {}, fault to gate off {}, sample to master {}, to all others {}",
                trips.count,
                opt(trips.decision_max_us, "us"),
                opt(trips.reaction_max_us, "us"),
                opt(trips.master_max_us, "us"),
                opt(trips.heard_max_us.filter(|_| trips.unheard == 0), "us")
            )?;
            if let Some(c) = &r.contactors {
                let at = opt(c.closed_at_s, "s");
                writeln!(
                    t,
                    "  contactors: {}, load first fed at {at}, inrush at most {:.1} A, opened under load {} times",
                    c.state, c.inrush_max_a, c.openings_under_load
                )?;
            }
            let e = &r.estimates;
            writeln!(
                t,
                "  state of charge: RMSE {}, max {}",
                opt(e.soc_rmse_pct, "points"),
                opt(e.soc_max_pct, "points")
            )?;
            if let (Some(soh), Some(error), Some(bound)) =
                (e.soh_pct, e.soh_max_error_pct, e.soh_bound_pct)
            {
                writeln!(
                    t,
                    "  state of health: {soh:.2} %, error at most {error:.2} points, 95 % bounds at most ±{bound:.2}"
                )?;
            }
            if e.fixes > 0 {
                let (p50, p95) = (opt(e.position_p50_mm, "mm"), opt(e.position_p95_mm, "mm"));
                writeln!(
                    t,
                    "  position: {} fixes, horizontal error P50 {p50}, P95 {p95}",
                    e.fixes
                )?;
            }
        }
        for a in &self.affected {
            writeln!(
                t,
                "\nslave {} of master {}: {} at {:.3} s, isolated {}, rejoined at {}, string connected again at {}",
                a.node,
                a.master,
                a.fault,
                a.fault_at_s,
                a.isolated_after_ms
                    .map_or("never".into(), |ms| format!("after {ms:.3} ms")),
                opt(a.rejoined_at_s, "s"),
                opt(a.reconnected_at_s, "s")
            )?;
        }
        if !self.happenings.is_empty() {
            writeln!(t, "\nwhat happened")?;
        }
        for h in &self.happenings {
            let node = h.node.map_or(String::new(), |n| format!(" slave {n}"));
            let uid = h.uid.as_ref().map_or(String::new(), |u| format!(" ({u})"));
            writeln!(
                t,
                "  {:>12.6} s  master {}  {}{node}{uid} {}",
                h.at_s, h.master, h.what, h.text
            )?;
        }
        Ok(())
    }
}

/// Quantile of unsorted values; `None` when there are none.
pub fn quantile(values: &mut [f64], q: f64) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
    values.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let mut h = Histogram::default();
        for us in 1..=1000u64 {
            h.add(us * 1_000 - 500);
        }
        assert_eq!(h.count(), 1000);
        assert_eq!(h.quantile_us(0.99), 990.0);
        assert_eq!(h.max_us(), 999.5);
        assert_eq!(h.quantile_us(1.0), 999.5);
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
