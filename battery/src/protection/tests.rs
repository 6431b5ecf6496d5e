use super::*;
use crate::MAX_TEMPS;
use helio_units::{DeciCelsius, Milliamps, Millivolts};

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn healthy() -> Sample {
    let mut sample = Sample {
        cell_count: 16,
        temp_count: 8,
        temps: [Some(DeciCelsius(250)); MAX_TEMPS],
        current: Some(Milliamps(0)),
        ..Sample::EMPTY
    };
    for cell in &mut sample.cells[..16] {
        *cell = Some(Millivolts(3_700));
    }
    sample
}

fn protection() -> Protection {
    Protection::new(Limits::nmc(5_000))
}

#[test]
fn the_default_tables_pass_their_own_check() {
    for mah in [1, 100, 2_500, 5_000, 280_000, i32::MAX] {
        assert_eq!(Limits::nmc(mah).check(), Ok(()), "{mah}");
        assert_eq!(Limits::lfp(mah).check(), Ok(()), "{mah}");
    }
}

#[test]
fn the_gate_stays_off_until_a_sample_has_nothing_against_it() {
    let mut p = protection();
    assert!(p.must_open());
    let mut broken = healthy();
    broken.cells[3] = None;
    p.handle_sample(at(0), &broken);
    assert!(p.must_open());
    p.handle_sample(at(10), &healthy());
    assert!(!p.must_open());
}

#[test]
fn an_overvoltage_opens_the_gate_on_the_very_sample() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    assert!(!p.must_open());
    let mut high = healthy();
    high.cells[5] = Some(Millivolts(4_250));
    p.handle_sample(at(10), &high);
    assert!(p.must_open());
    let event = p.poll_event().unwrap();
    assert_eq!(event.code, Code::new(Kind::CellOvervoltage, Severity::Trip));
    assert_eq!(
        (event.active, event.index, event.value, event.at),
        (true, 5, 4_250, at(10))
    );
    let frame = p.freeze_frames().next().unwrap();
    assert_eq!((frame.event, frame.sample), (event, high));
}

#[test]
fn a_latched_trip_stays_until_it_is_cleared_and_its_cause_is_gone() {
    let mut p = protection();
    p.handle_sample(at(0), &healthy());
    let mut high = healthy();
    high.cells[5] = Some(Millivolts(4_250));
    p.handle_sample(at(10), &high);
    assert!(!p.clear_latch(at(11)) && p.must_open());
    p.handle_sample(at(20), &healthy());
    assert!(p.must_open());
    assert!(p.clear_latch(at(21)) && !p.must_open());
}

#[test]
fn silence_trips_by_the_timer() {
    let mut p = protection();
    assert_eq!(p.poll_timeout(), Some(Instant::ZERO));
    p.handle_timeout(at(0));
    p.handle_sample(at(5), &healthy());
    assert!(!p.must_open());
    let mut calls = 0;
    while !p.must_open() {
        let due = p.poll_timeout().unwrap();
        assert!(due <= at(205));
        p.handle_timeout(due);
        calls += 1;
    }
    assert_eq!(calls, 3);
    assert_eq!(
        p.record(Code::new(Kind::StaleData, Severity::Trip)).last,
        at(205)
    );
}
