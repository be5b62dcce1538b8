use serde_json::json;

use super::*;
use crate::api::fixtures::{card, chat};

fn read(more: Value) -> Result<Common, ApiError> {
    Common::read(&mut chat(more), &card(), &Seeds::default())
}

#[test]
fn the_models_defaults_hold_until_the_request_says_otherwise() {
    let sampling = read(json!({})).unwrap().sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.2, 40, 1.0));
    let sampling = read(json!({"temperature": 0, "top_k": -1})).unwrap().sampling;
    assert_eq!((sampling.temperature, sampling.top_k), (0.0, 0));
}

#[test]
fn a_missing_seed_is_drawn_and_a_given_one_kept() {
    assert_eq!(read(json!({"seed": 7})).unwrap().sampling.seed, 7);
    assert_eq!(read(json!({"seed": -1})).unwrap().sampling.seed, u64::MAX);
    let drawn = |_| read(json!({})).unwrap().sampling.seed;
    assert_ne!(drawn(()), drawn(()));
}

#[test]
fn the_models_end_tokens_end_a_choice_unless_ignored() {
    assert_eq!(read(json!({"stop_token_ids": [5, 2]})).unwrap().sampling.stop_ids, [2, 5]);
    let ignoring = read(json!({"ignore_eos": true, "stop_token_ids": [5]})).unwrap();
    assert_eq!(ignoring.sampling.stop_ids, [5]);
}

#[test]
fn bad_values_are_400_and_named() {
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    let table = [
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 1.1}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": -0.1}), "min_p"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1000": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"n": 0}), "n"),
        (json!({"n": 129}), "n"),
        (json!({"stop": many}), "stop"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": [1]}), "stop[0]"),
        (json!({"stop_token_ids": [1000]}), "stop_token_ids[0]"),
        (json!({"seed": "x"}), "seed"),
        (json!({"priority": 1.5}), "priority"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"stream": 1}), "stream"),
        (json!({"stream_options": {}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage"),
        (json!({"guided_json": {}}), "guided_json"),
        (json!({"regex": "a+"}), "regex"),
    ];
    for (body, param) in table {
        let error = read(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
    }
}

#[test]
fn fields_without_effect_and_unknown_ones_are_tolerated() {
    let body = json!({"user": "u", "store": true, "metadata": {}, "service_tier": "auto", "invented": 1});
    assert!(read(body).is_ok());
}

#[test]
fn stop_is_one_string_or_several() {
    assert_eq!(read(json!({"stop": "a"})).unwrap().text.stop, ["a"]);
    assert_eq!(read(json!({"stop": ["a", "b"]})).unwrap().text.stop, ["a", "b"]);
}
