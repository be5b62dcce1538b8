use serde_json::json;

use super::*;

fn fields(value: Value) -> Fields {
    Fields::parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn null_is_absent() {
    let mut fields = fields(json!({"a": null}));
    assert!(!fields.has("a"));
    assert_eq!(fields.text("a").unwrap(), None);
}

#[test]
fn a_wrong_type_is_named() {
    let cases: [(Value, &str); 5] = [
        (json!({"x": "1"}), "Invalid type for 'x': expected an integer, but got a string instead."),
        (json!({"x": 1.5}), "Invalid type for 'x': expected an integer, but got a decimal instead."),
        (json!({"x": true}), "Invalid type for 'x': expected an integer, but got a boolean instead."),
        (json!({"x": []}), "Invalid type for 'x': expected an integer, but got an array instead."),
        (json!({"x": {}}), "Invalid type for 'x': expected an integer, but got an object instead."),
    ];
    for (body, message) in cases {
        let error = fields(body).integer("x", 0..=9).unwrap_err();
        assert_eq!((error.message.as_str(), error.param.as_deref()), (message, Some("x")));
    }
}

#[test]
fn ranges_are_inclusive_and_told() {
    assert_eq!(fields(json!({"x": 2})).decimal("x", 0.0..=2.0).unwrap(), Some(2.0));
    let error = fields(json!({"x": 2.5})).decimal("x", 0.0..=2.0).unwrap_err();
    let message = "Invalid 'x': decimal above maximum value. Expected a value <= 2, but got 2.5 instead.";
    assert_eq!((error.message.as_str(), error.code), (message, Some("decimal_above_max_value")));
    let error = fields(json!({"x": 0})).integer("x", 1..=2).unwrap_err();
    assert_eq!(error.code, Some("integer_below_min_value"));
}

#[test]
fn whole_decimals_are_integers_and_seeds_may_be_any_64_bits() {
    assert_eq!(fields(json!({"x": 3.0})).integer("x", 0..=9).unwrap(), Some(3));
    let seed = fields(json!({"x": u64::MAX})).integer("x", i64::MIN..=i64::MAX).unwrap();
    assert_eq!(seed, Some(-1));
    assert!(fields(json!({"x": u64::MAX})).integer("x", 0..=i64::MAX).is_err());
}

#[test]
fn nested_names_carry_their_path() {
    let mut outer = fields(json!({"sampling_params": {"n": "x"}}));
    let error = outer.object("sampling_params").unwrap().unwrap().integer("n", 1..=2).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("sampling_params.n"));
}

#[test]
fn a_token_outside_the_vocabulary_is_named_by_place() {
    let error = fields(json!({"p": [1, 99]})).token_ids("p", 50).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("p[1]"));
    assert!(fields(json!({"p": [-1]})).token_ids("p", 50).is_err());
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for body in [&b"[]"[..], b"3", b"\"x\"", b"null"] {
        assert_eq!(Fields::parse(body).unwrap_err().status, 400);
    }
    let deep = "[".repeat(5000);
    assert!(Fields::parse(deep.as_bytes()).is_err());
}
