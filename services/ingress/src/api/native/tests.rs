use serde_json::json;

use super::*;
use crate::api::fixtures::{card, fields};

fn ask(body: Value) -> Result<Ask, ApiError> {
    read(fields(json!({}), body), &card(), &Seeds::default())
}

fn form(ask: &Ask) -> &NativeForm {
    match &ask.form {
        Form::Native(form) => form,
        other => panic!("{other:?}"),
    }
}

#[test]
fn defaults_are_sglangs() {
    let ask = ask(json!({"text": "hi"})).unwrap();
    assert_eq!(ask.prompts[0].max_tokens, Some(128));
    assert!(!ask.stream && !form(&ask).batch);
}

#[test]
fn a_list_is_a_batch_whose_settings_may_differ() {
    let ask = ask(json!({
        "text": ["a", "b"],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
        "return_logprob": [true, false],
        "rid": ["x", "y"],
    }))
    .unwrap();
    assert!(form(&ask).batch);
    let limits: Vec<_> = ask.prompts.iter().map(|prompt| prompt.max_tokens).collect();
    let logprobs: Vec<_> = ask.prompts.iter().map(|prompt| prompt.sampling.logprobs).collect();
    assert_eq!(limits, [Some(1), Some(2)]);
    assert_eq!(logprobs, [Some(0), None]);
    assert_eq!(form(&ask).ids, [Some("x".to_owned()), Some("y".to_owned())]);
}

#[test]
fn prompt_scores_begin_where_asked() {
    let from = |start: Value| {
        let body = json!({"input_ids": [1, 2], "return_logprob": true, "logprob_start_len": start});
        ask(body).unwrap().prompts[0].score_prompt_from
    };
    assert_eq!((from(json!(-1)), from(json!(0)), from(json!(1))), (None, Some(0), Some(1)));
    let unasked = ask(json!({"input_ids": [1], "logprob_start_len": 0})).unwrap();
    assert_eq!(unasked.prompts[0].score_prompt_from, None);
}

#[test]
fn a_prefix_cache_is_separated_by_salt_and_key() {
    let salt = |body: Value| ask(body).unwrap().prompts[0].cache_salt.clone();
    assert_eq!(salt(json!({"text": "a", "extra_key": "k"})).as_deref(), Some("k"));
    assert_eq!(salt(json!({"text": "a", "extra_key": "k", "cache_salt": "s"})).as_deref(), Some("s/k"));
}

#[test]
fn bad_requests_are_400_and_named() {
    let table = [
        (json!({}), "text"),
        (json!({"text": 1}), "text"),
        (json!({"text": []}), "text"),
        (json!({"text": "a", "input_ids": [1]}), "input_ids"),
        (json!({"input_ids": []}), "input_ids"),
        (json!({"input_ids": [[1], 2]}), "input_ids[1]"),
        (json!({"input_ids": [1000]}), "input_ids[0]"),
        (json!({"text": "a", "image_data": "x"}), "image_data"),
        (json!({"text": "a", "sampling_params": 1}), "sampling_params"),
        (json!({"text": "a", "sampling_params": {"regex": "a"}}), "sampling_params.regex"),
        (json!({"text": "a", "sampling_params": {"top_p": 2}}), "sampling_params.top_p"),
        (
            json!({"text": "a", "sampling_params": {"max_new_tokens": 1, "min_new_tokens": 2}}),
            "sampling_params.min_new_tokens",
        ),
        (json!({"text": ["a", "b"], "return_logprob": [true]}), "return_logprob"),
        (json!({"text": "a", "rid": 3}), "rid"),
    ];
    for (body, param) in table {
        let error = ask(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
    }
}
