//! Records as they are kept and passed on.

use ciborium::Value;
use helio_link::types::{Data, Record, Status, Telemetry};
use proptest::collection::vec;
use proptest::prelude::*;

fn from_json(json: &str) -> Record {
    serde_json::from_str(json).unwrap()
}

/// Through JSON as text, and through CBOR, back to JSON: the same keys in the same order.
fn both_ways(json: &str) {
    let record = from_json(json);
    assert_eq!(serde_json::to_string(&record).unwrap(), json);
    let mut cbor = Vec::new();
    ciborium::into_writer(&record, &mut cbor).unwrap();
    assert_eq!(
        ciborium::from_reader::<Record, _>(&cbor[..]).unwrap(),
        record
    );
}

#[test]
fn every_kind_has_the_documented_keys_in_json_and_in_cbor() {
    both_ways(concat!(
        r#"{"seq":1,"t_us":2,"kind":"pack","state":"degraded","voltage_mv":null,"#,
        r#""current_ma":-3,"soc_ppm":4,"soc_min_ppm":5,"soc_max_ppm":6,"soh_ppm":20,"soh_min_ppm":21,"#,
        r#""cell_min_mv":7,"cell_max_mv":8,"temp_max_dc":-9,"members":10,"expected":11,"#,
        r#""strings_connected":2,"load_ppm":12,"latency_max_us":13}"#
    ));
    both_ways(concat!(
        r#"{"seq":1,"t_us":2,"kind":"slave","node":3,"uid":"00000000000000ff","#,
        r#""state":"quarantined","severity":"derate","gate_on":false,"balancing":true,"#,
        r#""current_ma":null,"cells_mv":[1,null],"soc_ppm":[null,2],"temps_dc":[-400]}"#
    ));
    both_ways(concat!(
        r#"{"seq":1,"t_us":2,"kind":"slave","node":3,"uid":"00000000000000ff","#,
        r#""state":"active","severity":"none","gate_on":true,"balancing":false,"#,
        r#""current_ma":1,"cells_mv":[1],"soc_ppm":[2],"temps_dc":[],"#,
        r#""soh_ppm":3,"soh_sigma_ppm":4,"soh_min_ppm":5,"resistance_ppm":6,"resistance_sigma_ppm":7}"#
    ));
    both_ways(concat!(
        r#"{"seq":1,"t_us":2,"kind":"tag","tag":3,"x_mm":-4,"y_mm":5,"z_mm":6,"#,
        r#""sigma_mm":7,"anchors":8,"residual_mm":9}"#
    ));
    both_ways(concat!(
        r#"{"seq":1,"t_us":2,"kind":"tag","tag":3,"x_mm":-4,"y_mm":5,"z_mm":6,"#,
        r#""sigma_mm":7,"anchors":8,"residual_mm":9,"excluded":1,"protection_mm":310,"#,
        r#""track_mm":[-4,5,6],"track_sigma_mm":3,"velocity_mm_s":[400,-5,0]}"#
    ));
    both_ways(concat!(
        r#"{"seq":1,"t_us":2,"kind":"event","what":"alarm","node":3,"uid":"00000000000000ff","severity":"trip","#,
        r#""code":4,"index":5,"value":-6,"active":true,"text":"cell 5 too high"}"#
    ));
    both_ways(
        r#"{"seq":1,"t_us":2,"kind":"event","what":"trip","node":null,"text":"a slave tripped"}"#,
    );
    both_ways(r#"{"seq":1,"t_us":2,"deep":{"a":[1,-2]},"kind":"weather","rain":0.5}"#);
}

#[test]
fn a_known_kind_with_odd_fields_is_kept_as_it_came() {
    let record = from_json(r#"{"seq":8,"t_us":9,"kind":"tag","tag":"seven"}"#);
    assert_eq!((record.seq, record.kind()), (8, "tag"));
    let Data::Other(fields) = record.data else {
        panic!("{record:?}")
    };
    assert_eq!(fields["tag"], Value::Text("seven".into()));
}

#[test]
fn words_of_a_newer_master_are_unknown_and_not_fatal() {
    let record = from_json(
        r#"{"seq":1,"t_us":2,"kind":"event","what":"x","node":null,"severity":"doom","text":"","new":[]}"#,
    );
    assert!(matches!(record.data, Data::Event(e) if e.severity.is_some_and(|s| s as u8 == 4)));
}

proptest! {
    #[test]
    fn any_octets_are_an_answer_or_an_error(octets in vec(any::<u8>(), 0..200)) {
        let _ = ciborium::from_reader::<Telemetry, _>(&octets[..]);
        let _ = ciborium::from_reader::<Status, _>(&octets[..]);
    }

    #[test]
    fn a_damaged_answer_is_an_answer_or_an_error(
        at in any::<prop::sample::Index>(),
        octet in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let record = from_json(concat!(
            r#"{"seq":1,"t_us":2,"kind":"slave","node":3,"uid":"00000000000000ff","#,
            r#""state":"quarantined","severity":"derate","gate_on":false,"balancing":true,"#,
            r#""current_ma":null,"cells_mv":[1,null],"soc_ppm":[null,2],"temps_dc":[-400]}"#
        ));
        let telemetry = Telemetry { first: 1, next: 3, records: vec![record; 2] };
        let mut cbor = Vec::new();
        ciborium::into_writer(&telemetry, &mut cbor).unwrap();
        let at = at.index(cbor.len());
        cbor[at] = octet;
        cbor.truncate(1 + cut.index(2 * cbor.len()));
        let _ = ciborium::from_reader::<Telemetry, _>(&cbor[..]);
    }
}
