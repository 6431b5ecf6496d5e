//! The pack's terminals as the master's sensors feel them: main contactors, precharge resistor, the link's capacitor, and what
//! breaks of them. Exact for constant sources between two moments.

use helio_master::contactor::{Drive, Terminals};
use helio_units::{Instant, Milliamps};
use serde::Deserialize;

use crate::plant::seconds;

/// `[contactors]` of a scenario: what is between the strings and the load.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parts {
    /// Capacitor at the load [mF].
    pub link_mf: f64,
    /// Precharge resistor [Ω].
    pub precharge_ohm: f64,
    /// What discharges the link [Ω].
    pub bleeder_ohm: f64,
    /// One string with its wires, for the inrush [Ω].
    pub string_ohm: f64,
}

impl Default for Parts {
    /// 1 mF charged through 50 Ω, bled in 5 s.
    fn default() -> Self {
        Self {
            link_mf: 1.0,
            precharge_ohm: 50.0,
            bleeder_ohm: 5_000.0,
            string_ohm: 0.5,
        }
    }
}

impl Parts {
    /// The number that cannot be, if there is one.
    pub fn wrong(&self) -> Option<&'static str> {
        let numbers = [
            ("link_mf", self.link_mf),
            ("precharge_ohm", self.precharge_ohm),
            ("bleeder_ohm", self.bleeder_ohm),
            ("string_ohm", self.string_ohm),
        ];
        let bad = |(_, v): &&(&str, f64)| !(*v > 0.0 && v.is_finite());
        numbers.iter().find(bad).map(|(name, _)| *name)
    }
}

/// A contact.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Main contactor.
    Negative,
    /// Relay of the resistor.
    Precharge,
    /// Main contactor.
    Positive,
}

/// Ohms of a short circuit at the link.
const SHORT_OHM: f64 = 0.05;

/// Contactors and link.
#[derive(Clone, Debug)]
pub struct Link {
    parts: Parts,
    /// What the coils are fed.
    drive: Drive,
    welded: Drive,
    stuck: Drive,
    shorted: bool,
    at: Instant,
    link_mv: f64,
    /// Through the contactors, discharge positive.
    current_ma: f64,
    /// Largest current at the moment at which both poles became one [A].
    pub inrush_max_a: f64,
}

impl Link {
    /// Everything open, the link empty.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            drive: Drive::default(),
            welded: Drive::default(),
            stuck: Drive::default(),
            shorted: false,
            at: Instant::ZERO,
            link_mv: 0.0,
            current_ma: 0.0,
            inrush_max_a: 0.0,
        }
    }

    /// Other coils are fed.
    pub fn set_drive(&mut self, drive: Drive) {
        self.drive = drive;
    }

    /// A contact welds, or is mended.
    pub fn weld(&mut self, part: Part, on: bool) {
        *place(&mut self.welded, part) = on;
    }

    /// A contact does not close any more, or is mended.
    pub fn stick(&mut self, part: Part, on: bool) {
        *place(&mut self.stuck, part) = on;
    }

    /// The link is shorted, or mended.
    pub fn short(&mut self, on: bool) {
        self.shorted = on;
    }

    /// Current through the contactors, mA.
    pub fn current_ma(&self) -> f64 {
        self.current_ma
    }

    /// Lets time pass. `pack_mv`: of the strings that conduct, `None` when none does; `load_ma`: what the load takes when it is
    /// fed.
    pub fn advance(&mut self, now: Instant, pack_mv: Option<f64>, strings: usize, load_ma: f64) {
        let dt = seconds(now) - seconds(self.at);
        self.at = now;
        let one = |fed: bool, stuck: bool, welded: bool| (fed && !stuck) || welded;
        let negative = one(
            self.drive.negative,
            self.stuck.negative,
            self.welded.negative,
        );
        let precharge = one(
            self.drive.precharge,
            self.stuck.precharge,
            self.welded.precharge,
        );
        let positive = one(
            self.drive.positive,
            self.stuck.positive,
            self.welded.positive,
        );
        let leak_ohm = if self.shorted {
            SHORT_OHM
        } else {
            self.parts.bleeder_ohm
        };
        let load_ma = if self.link_mv > 1_000.0 { load_ma } else { 0.0 };
        match pack_mv {
            Some(pack_mv) if negative && positive => {
                let ohm = self.parts.string_ohm / strings.max(1) as f64;
                self.inrush_max_a = self
                    .inrush_max_a
                    .max((pack_mv - self.link_mv).abs() / ohm / 1e3);
                self.link_mv = pack_mv;
                self.current_ma = load_ma + pack_mv / leak_ohm;
            }
            _ => {
                let source = pack_mv.filter(|_| negative && precharge);
                // i = C dv/dt, so many mS and mA meet at the link.
                let siemens =
                    1.0 / leak_ohm + source.map_or(0.0, |_| 1.0 / self.parts.precharge_ohm);
                let inflow = source.map_or(0.0, |mv| mv / self.parts.precharge_ohm) - load_ma;
                let end = inflow / siemens;
                let fade = (-dt * siemens / (self.parts.link_mf * 1e-3)).exp();
                self.link_mv = (end + (self.link_mv - end) * fade).max(0.0);
                self.current_ma =
                    source.map_or(0.0, |mv| (mv - self.link_mv) / self.parts.precharge_ohm);
            }
        }
    }

    /// What sensors show.
    pub fn terminals(&self, pack_mv: Option<f64>) -> Terminals {
        Terminals {
            pack_mv: Some(pack_mv.unwrap_or(0.0).round() as u32),
            link_mv: Some(self.link_mv.round() as u32),
            current: Some(Milliamps(self.current_ma.round() as i32)),
            feedback: None,
        }
    }
}

fn place(drive: &mut Drive, part: Part) -> &mut bool {
    match part {
        Part::Negative => &mut drive.negative,
        Part::Precharge => &mut drive.precharge,
        Part::Positive => &mut drive.positive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    const PRECHARGING: Drive = Drive {
        negative: true,
        precharge: true,
        positive: false,
    };

    #[test]
    fn the_link_charges_through_the_resistor_as_an_rc_does_in_steps_of_any_length() {
        for step in [1, 7, 50] {
            let mut link = Link::new(Parts {
                bleeder_ohm: 1e9,
                ..Parts::default()
            });
            link.set_drive(PRECHARGING);
            for t in (0..=350).step_by(step) {
                link.advance(ms(t), Some(400_000.0), 1, 0.0);
                let expected = 400_000.0 * (1.0 - (-(t as f64) / 50.0).exp());
                assert!((link.link_mv - expected).abs() < 1.0, "{t} ms");
            }
        }
    }

    #[test]
    fn closing_onto_an_empty_link_is_an_inrush_and_onto_a_full_one_is_none() {
        let mut link = Link::new(Parts::default());
        link.set_drive(Drive {
            positive: true,
            ..PRECHARGING
        });
        link.advance(ms(1), Some(400_000.0), 2, 0.0);
        assert!((link.inrush_max_a - 1_600.0).abs() < 1.0);
        let mut link = Link::new(Parts::default());
        link.weld(Part::Precharge, true);
        link.weld(Part::Negative, true);
        link.advance(ms(1_000), Some(400_000.0), 2, 0.0);
        link.weld(Part::Positive, true);
        link.advance(ms(1_001), Some(400_000.0), 2, 0.0);
        assert!(link.inrush_max_a < 100.0, "{}", link.inrush_max_a);
        link.short(true);
        link.weld(Part::Positive, false);
        link.advance(ms(2_000), Some(400_000.0), 2, 0.0);
        assert!(link.link_mv < 1_000.0 && link.current_ma() > 7_900.0);
    }
}
