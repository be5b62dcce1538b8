use messages::frame::{TextLogprobs, TokenLogprobs, TopLogprob};
use serde_json::json;

use super::*;
use crate::{
    api::{
        ask::{ChatForm, CompletionForm, NativeForm},
        fixtures::card,
    },
    road::outlet::Delta,
};

fn heading(n: u32, prompts: usize) -> Heading {
    Heading { created: 1, ..Heading::new("req-1".to_owned(), &card(), n, prompts, false) }
}

fn said(index: u32, text: &str) -> Delta {
    Delta { index, text: text.to_owned(), ids: vec![7], tokens: 1, ..Delta::default() }
}

fn ended(index: u32, text: &str, end: End) -> Delta {
    Delta { end: Some(end), ..said(index, text) }
}

fn scored(token: &[u8], logprob: f32) -> TextLogprobs {
    let top = vec![TopLogprob { id: 7, token: token.to_vec(), logprob }];
    TextLogprobs { id: 7, token: token.to_vec(), logprob: Some(logprob), top }
}

fn closed(prompt: usize) -> Event {
    let usage = Usage { prompt_tokens: 3, cached_tokens: 2, output_tokens: 2 };
    Event::Closed { prompt, usage }
}

/// The data of each event of a stream, `[DONE]` last.
fn stream(form: &Form, heading: Heading, prelude: Prelude, events: Vec<Event>) -> Vec<Value> {
    let (mut script, mut out) = (Script::new(form, heading, prelude), BytesMut::new());
    events.iter().for_each(|event| script.event(event, &mut out));
    script.finish(&mut out);
    let text = String::from_utf8(out.to_vec()).unwrap();
    let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
    events.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

fn chat(include_usage: bool, logprobs: bool) -> Form {
    Form::Chat(ChatForm { include_usage, logprobs })
}

#[test]
fn a_chat_stream_begins_with_the_role_and_ends_with_a_reason_and_done() {
    let events =
        vec![Event::Delta(said(0, "He\"y\n")), Event::Delta(ended(0, " you", End::StopToken(2))), closed(0)];
    let chunks = stream(&chat(false, false), heading(1, 1), Prelude::default(), events);
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!(*deltas[0], json!({"role": "assistant", "content": ""}));
    assert_eq!(*deltas[1], json!({"content": "He\"y\n"}));
    assert_eq!(*deltas[2], json!({"content": " you"}));
    assert_eq!(*deltas[3], json!({}));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks[4], "[DONE]");
    let expected = json!({
        "id": "chatcmpl-req-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny/llama",
        "system_fingerprint": "fp_0123456789",
        "choices": [{"index": 0, "delta": {"content": "He\"y\n"}, "logprobs": null, "finish_reason": null}],
    });
    assert_eq!(chunks[1], expected);
}

#[test]
fn usage_is_null_in_every_chunk_and_whole_in_the_last() {
    let events = vec![Event::Delta(ended(0, "a", End::Length)), closed(0)];
    let chunks = stream(&chat(true, false), heading(1, 1), Prelude::default(), events);
    assert!(chunks[..3].iter().all(|chunk| chunk.as_object().unwrap().get("usage") == Some(&Value::Null)));
    assert_eq!(chunks[3]["choices"], json!([]));
    let usage = json!({
        "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    });
    assert_eq!(chunks[3]["usage"], usage);
}

#[test]
fn chat_log_probabilities_carry_the_bytes_of_each_token() {
    let delta = Delta { logprobs: vec![scored(b"\xc3", -0.1)], ..said(0, "") };
    let chunks = stream(&chat(false, true), heading(1, 1), Prelude::default(), vec![Event::Delta(delta)]);
    let expected = json!({"content": [{
        "token": "\u{fffd}", "logprob": -0.1, "bytes": [195],
        "top_logprobs": [{"token": "\u{fffd}", "logprob": -0.1, "bytes": [195]}],
    }], "refusal": null});
    assert_eq!(chunks[1]["choices"][0]["logprobs"], expected);
}

#[test]
fn the_time_of_sampling_is_told_where_asked() {
    let heading = Heading { timing: true, ..heading(1, 1) };
    let events = vec![Event::Delta(Delta { sampled_us: 42, ..said(0, "a") })];
    let chunks = stream(&chat(false, false), heading, Prelude::default(), events);
    assert_eq!(chunks[1]["stator"], json!({"sampled_us": 42}));
    assert!(chunks[0].get("stator").is_none());
}

#[test]
fn a_whole_chat_has_its_choices_in_order() {
    let deltas = [ended(1, "b", End::Length), ended(0, "a", End::StopToken(2))];
    let events = deltas.into_iter().map(Event::Delta).chain([closed(0)]).collect();
    let body = whole(&chat(false, false), &heading(2, 1), &Prelude::default(), events);
    let contents: Vec<_> = (0..2).map(|at| body["choices"][at]["message"]["content"].clone()).collect();
    assert_eq!(contents, ["a", "b"]);
    assert_eq!(body["choices"][1]["finish_reason"], "length");
    assert_eq!(
        (body["object"].as_str(), body["usage"]["total_tokens"].as_u64()),
        (Some("chat.completion"), Some(5))
    );
}

fn completion(form: CompletionForm) -> Form {
    Form::Completion(form)
}

/// A prelude of one prompt `ab` of two tokens.
fn echoed() -> Prelude {
    let token = |id, logprob| TokenLogprobs { id, logprob, top: vec![(9, -0.25)] };
    let mut scored = Scored::new(vec![token(1, None), token(5, Some(-0.5))]);
    assert_eq!(scored.ids().to_vec(), [1, 5, 9]);
    scored.name(vec!["a".to_owned(), "b".to_owned(), "z".to_owned()]);
    Prelude { echoes: vec!["ab".to_owned()], scores: vec![Some(scored)] }
}

#[test]
fn an_echo_comes_first_with_the_scores_of_the_prompt() {
    let form = CompletionForm { logprobs: Some(1), echo: true, ..CompletionForm::default() };
    let delta = Delta { logprobs: vec![scored(b"c", -0.75)], ..ended(0, "c", End::Length) };
    let body =
        whole(&completion(form.clone()), &heading(1, 1), &echoed(), vec![Event::Delta(delta), closed(0)]);
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "abc");
    let expected = json!({
        "tokens": ["a", "b", "c"],
        "token_logprobs": [null, -0.5, -0.75],
        "top_logprobs": [null, {"z": -0.25, "b": -0.5}, {"c": -0.75}],
        "text_offset": [0, 1, 2],
    });
    assert_eq!(choice["logprobs"], expected);
    let delta = Delta { logprobs: vec![scored(b"c", -0.75)], ..ended(0, "c", End::Length) };
    let chunks = stream(&completion(form), heading(1, 1), echoed(), vec![Event::Delta(delta)]);
    assert_eq!(chunks[0]["choices"][0]["text"], "ab");
    assert_eq!(chunks[1]["choices"][0]["logprobs"]["text_offset"], json!([2]));
}

#[test]
fn a_scored_prompt_without_output_shows_and_counts_none() {
    let form = CompletionForm { logprobs: Some(0), echo: true, no_output: true, ..CompletionForm::default() };
    let delta = Delta { logprobs: vec![scored(b"c", -0.75)], ..ended(0, "c", End::StopToken(2)) };
    let body = whole(&completion(form), &heading(1, 1), &echoed(), vec![Event::Delta(delta), closed(0)]);
    let choice = &body["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("ab"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["a", "b"]));
    assert_eq!(body["usage"]["completion_tokens"], 0);
}

#[test]
fn tokens_that_are_no_characters_are_named_by_their_bytes() {
    let form = CompletionForm { logprobs: Some(0), ..CompletionForm::default() };
    let delta = Delta { logprobs: vec![scored(b"\xc3", f32::NEG_INFINITY)], ..said(0, "") };
    let chunks = stream(&completion(form), heading(1, 1), Prelude::default(), vec![Event::Delta(delta)]);
    let logprobs = &chunks[0]["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["bytes:\\xc3"]));
    assert_eq!(logprobs["token_logprobs"], json!([-9999.0]));
}

#[test]
fn choices_of_several_prompts_are_numbered_through() {
    let form = CompletionForm { echo: true, ..CompletionForm::default() };
    let prelude = Prelude { echoes: vec!["p".to_owned(), "q".to_owned()], scores: Vec::new() };
    let events = (0..4).map(|index| Event::Delta(ended(index, "!", End::Length))).collect();
    let body = whole(&completion(form), &heading(2, 2), &prelude, events);
    let texts: Vec<_> = (0..4).map(|at| body["choices"][at]["text"].clone()).collect();
    assert_eq!(texts, ["p!", "p!", "q!", "q!"]);
}

#[test]
fn native_streams_are_cumulative() {
    let form =
        Form::Native(NativeForm { logprobs: true, ids: vec![Some("mine".to_owned())], ..Default::default() });
    let first = Delta { logprobs: vec![scored(b"a", -0.5)], ..said(0, "a") };
    let events = vec![
        Event::Begun { prompt: 0, prompt_tokens: 3, cached_tokens: 1 },
        Event::Delta(first),
        Event::Delta(ended(0, "b", End::StopString { matched: "x".to_owned(), tokens: 2 })),
        closed(0),
    ];
    let objects = stream(&form, heading(1, 1), Prelude::default(), events);
    let texts: Vec<_> = objects[..2].iter().map(|object| object["text"].clone()).collect();
    assert_eq!(texts, ["a", "ab"]);
    assert_eq!(objects[1]["output_ids"], json!([7, 7]));
    let meta = &objects[1]["meta_info"];
    assert_eq!(meta["id"], "mine");
    assert_eq!(meta["finish_reason"], json!({"type": "stop", "matched": "x"}));
    assert_eq!((&meta["prompt_tokens"], &meta["cached_tokens"]), (&json!(3), &json!(1)));
    assert_eq!(meta["output_token_logprobs"], json!([[-0.5, 7, null]]));
    assert_eq!(objects[0]["meta_info"]["finish_reason"], Value::Null);
    assert_eq!(objects[2], "[DONE]");
}

#[test]
fn a_native_batch_is_an_array_and_a_single_prompt_an_object() {
    let events = || vec![Event::Delta(ended(0, "a", End::Length)), closed(0)];
    let single = NativeForm::default();
    let batch = NativeForm { batch: true, ..NativeForm::default() };
    let body = whole(&Form::Native(single), &heading(1, 1), &Prelude::default(), events());
    assert_eq!(body["meta_info"]["finish_reason"], json!({"type": "length", "length": 1}));
    assert!(whole(&Form::Native(batch), &heading(1, 1), &Prelude::default(), events()).is_array());
}
