use serde_json::json;

use super::*;
use crate::api::fixtures::{card, completion};

fn ask(more: Value) -> Result<Ask, ApiError> {
    read(completion(more), &card(), &Seeds::default())
}

#[test]
fn a_prompt_has_four_forms() {
    let ids = |ids: &[u32]| Input::Tokens(TokenIds::from(ids));
    let table = [
        (json!("a"), vec![Input::Text("a".to_owned())]),
        (json!(["a", "b"]), vec![Input::Text("a".to_owned()), Input::Text("b".to_owned())]),
        (json!([1, 2]), vec![ids(&[1, 2])]),
        (json!([[1], [2, 3]]), vec![ids(&[1]), ids(&[2, 3])]),
    ];
    for (prompt, inputs) in table {
        let ask = ask(json!({"prompt": prompt})).unwrap();
        assert_eq!(ask.prompts.into_iter().map(|p| p.input).collect::<Vec<_>>(), inputs);
    }
}

#[test]
fn bad_requests_are_400_and_named() {
    let table = [
        (json!({"prompt": null}), "prompt"),
        (json!({"prompt": 3}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt[0]"),
        (json!({"prompt": [1000]}), "prompt[0]"),
        (json!({"prompt": ["a", 1]}), "prompt[1]"),
        (json!({"prompt": [[1], [1000]]}), "prompt[1][0]"),
        (json!({"prompt": vec!["x"; 257]}), "prompt"),
        (json!({"suffix": "end"}), "suffix"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"logprobs": 21}), "logprobs"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
    ];
    for (body, param) in table {
        let error = ask(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
    }
}

#[test]
fn the_default_length_is_openais() {
    assert_eq!(ask(json!({})).unwrap().prompts[0].max_tokens, Some(16));
}

#[test]
fn best_of_may_repeat_n() {
    assert_eq!(ask(json!({"n": 2, "best_of": 2})).unwrap().prompts[0].n, 2);
}

#[test]
fn scoring_a_prompt_computes_one_token_that_is_not_shown() {
    let ask = ask(json!({"echo": true, "logprobs": 0, "max_tokens": 0})).unwrap();
    let Form::Completion(form) = ask.form else { panic!("a completion") };
    assert!(form.echo && form.no_output);
    assert_eq!((ask.prompts[0].max_tokens, ask.prompts[0].score_prompt_from), (Some(1), Some(0)));
}
