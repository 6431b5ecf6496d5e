//! From recordings to an estimate, on the traces of this repository.

use std::path::Path;

use helio_cellfit::fit::{About, fit};
use helio_cellfit::recording::{Columns, Recording, Sign, Source, join};
use helio_cellfit::score::{Counting, Helio, Trial, TruthUnit, run, truth};

fn load(name: &str) -> Recording {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/traces")
        .join(name);
    let source = Source::parse(&path.to_string_lossy());
    Recording::load(&source, &Columns::default(), Sign::Auto, None).expect("a trace")
}

fn about() -> About {
    About {
        name: "LG M50".into(),
        chemistry: None,
        start_soc: None,
        bpx: None,
    }
}

#[test]
fn a_cell_fitted_on_one_drive_is_followed_through_another() {
    let slow = join(vec![load("lgm50_ocv_25c.csv")]);
    let fitted = fit(&about(), &slow, &[load("lgm50_udds_25c.csv")], |_| ()).expect("a fit");
    assert_eq!(fitted.chemistry, "nmc");
    assert!((fitted.capacity_ah - 4.967).abs() < 0.02);
    let params = fitted.params().expect("valid parameters");

    let drive = load("lgm50_us06_25c.csv");
    let (soc, _) = truth(&drive, TruthUnit::Soc, None, &params).expect("a truth");
    let offset = Trial {
        offset_a: 0.17,
        ..Trial::default()
    };
    let (plain, _) = run(&mut Helio::new(&params), &drive, &soc, &Trial::default());
    assert!(
        plain.rmse_pct < 0.8 && plain.max_error_pct < 3.0,
        "{plain:?}"
    );
    assert!(plain.within_2_sigma_pct > 90.0, "{plain:?}");
    let (ours, _) = run(&mut Helio::new(&params), &drive, &soc, &offset);
    let (counted, _) = run(&mut Counting::new(&params), &drive, &soc, &offset);
    assert!(ours.rmse_pct < 1.5, "{ours:?}");
    assert!(
        ours.rmse_pct < 0.3 * counted.rmse_pct,
        "{ours:?} {counted:?}"
    );
}

#[test]
fn a_start_thirty_points_wrong_is_mended_in_three_minutes() {
    let slow = join(vec![load("lgm50_ocv_25c.csv")]);
    let fitted = fit(&about(), &slow, &[load("lgm50_udds_25c.csv")], |_| ()).expect("a fit");
    let params = fitted.params().expect("valid parameters");
    let drive = load("lgm50_us06_25c.csv");
    let (soc, _) = truth(&drive, TruthUnit::Soc, None, &params).expect("a truth");
    for error in [-0.3, 0.3] {
        let trial = Trial {
            start_error: Some(error),
            restart_s: Some(900.0),
            ..Trial::default()
        };
        let (score, _) = run(&mut Helio::new(&params), &drive, &soc, &trial);
        let slowest = score.within_5_points_after_s;
        assert!(slowest.is_some_and(|s| s < 180.0), "{error}: {slowest:?}");
    }
}

#[test]
fn recordings_that_do_not_agree_with_each_other_make_the_resistances_doubtful() {
    let slow = join(vec![load("lgm50_ocv_25c.csv")]);
    let udds = load("lgm50_udds_25c.csv");
    let doubt = |second: Recording| {
        let fitted = fit(&about(), &slow, &[udds.clone(), second], |_| ()).expect("a fit");
        let params = fitted.params().expect("valid parameters");
        params.point(0.5, 25.0).doubt
    };
    let same = doubt(load("lgm50_us06_25c.csv"));
    // The same drive on a cell of half as much again.
    let mut other = load("lgm50_us06_25c.csv");
    let p = fit(&about(), &slow, std::slice::from_ref(&udds), |_| ()).expect("a fit");
    let p = p.params().expect("valid parameters");
    let soc = other.soc.clone().expect("a truth");
    for (v, z) in other.v.iter_mut().zip(soc) {
        let rest = f64::from(p.ocv_mv(z as f32, 25.0)) * 1e-3;
        *v = rest + 1.5 * (*v - rest);
    }
    let other = doubt(other);
    assert!(same < 0.12 && other > 1.5 * same, "{same} {other}");
}
