//! Capacity over the lives of this repository, from partial cycles.

use std::path::Path;

use helio_battery::{HealthFilter, Modes};
use helio_cellfit::fit::{About, fit};
use helio_cellfit::life::{Sensors, follow};
use helio_cellfit::recording::{Columns, Recording, Sign, Source, join};

fn load(name: &str, extra: Option<&str>) -> Recording {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/ageing")
        .join(name);
    let source = Source::parse(&path.to_string_lossy());
    Recording::load(&source, &Columns::default(), Sign::Auto, extra).expect("a recording")
}

#[test]
fn capacity_is_followed_within_a_percent_and_its_bounds_hold() {
    let about = About {
        name: "LG M50".into(),
        chemistry: None,
        start_soc: None,
        bpx: None,
    };
    let slow = join(vec![load("lgm50_ocv_25c.csv", None)]);
    let fitted = fit(&about, &slow, &[load("lgm50_pulses_25c.csv", None)], |_| ()).expect("a fit");
    let params = fitted.params().expect("valid parameters");
    let mut within = Vec::new();
    for life in ["sei", "lam", "plating", "mixed"] {
        let r = load(&format!("lgm50_life_{life}.csv"), Some("capacity_ah"));
        let (soc, capacity) = (
            r.soc.clone().expect("truth"),
            r.extra.clone().expect("truth"),
        );
        for sensors in Sensors::USUAL {
            let (score, _) = follow(0, HealthFilter::NEW, &params, &r, &capacity, &soc, &sensors);
            assert!(score.rests > 150, "{score:?}");
            assert!(score.rmse_pct < 1.0, "{score:?}");
            within.push(score.within_bounds_pct);
            // A master is told nothing of the age of the cells that it meets.
            let (late, unknown) = (r.t.len() * 9 / 10, HealthFilter::since(Modes::NEW, 0.08));
            let (score, _) = follow(late, unknown, &params, &r, &capacity, &soc, &sensors);
            assert!(score.rests > 15 && score.rmse_pct < 3.5, "{score:?}");
            assert!(score.within_bounds_pct >= 95.0, "{score:?}");
        }
    }
    let mean = within.iter().sum::<f64>() / within.len() as f64;
    assert!(mean >= 95.0, "{within:?}");
}
