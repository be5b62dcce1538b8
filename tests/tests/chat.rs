//! A chat over the whole road: HTTP, ingress, tokenizer, router, decode and back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use serde_json::json;
use stator_tests::{Cluster, Service, cluster::Plan, http::assemble, model::toy};

fn chat(text: &str) -> serde_json::Value {
    json!({
        "model": "toy", "messages": [{"role": "user", "content": text}],
        "temperature": 0, "max_tokens": 24, "ignore_eos": true
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_streamed_and_whole_with_the_same_text() {
    let mut cluster = Cluster::start(Plan::of(toy())).await;
    let http = cluster.http();
    let whole = http.post("/v1/chat/completions", &chat("hello")).await.unwrap();
    assert_eq!(whole.status, 200, "{}", whole.body);
    let whole = whole.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 24);

    let mut streamed = chat("hello");
    streamed["stream"] = json!(true);
    let events = http.stream("/v1/chat/completions", &streamed, |_| {}).await.unwrap();
    assert_eq!(events.last().unwrap().data, "[DONE]");
    let choices = assemble(&events).unwrap();
    assert_eq!(choices[0].0, whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(choices[0].1.as_deref(), Some("length"));
    cluster.settled(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seeded_choices_differ_from_each_other_and_repeat_with_the_seed() {
    let cluster = Cluster::start(Plan::of(toy())).await;
    let mut request = chat("tell me");
    request["temperature"] = json!(1.0);
    request["seed"] = json!(7);
    request["n"] = json!(3);
    let ask = async || {
        let reply = cluster.http().post("/v1/chat/completions", &request).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.body);
        let reply = reply.json();
        let text = |choice: &serde_json::Value| choice["message"]["content"].as_str().unwrap().to_owned();
        reply["choices"].as_array().unwrap().iter().map(text).collect::<Vec<_>>()
    };
    let (first, second) = (ask().await, ask().await);
    assert_eq!(first, second);
    assert_eq!(first.len(), 3);
    assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_openai_form() {
    let cluster = Cluster::start(Plan::of(toy())).await;
    let http = cluster.http();
    let mut unknown = chat("hello");
    unknown["model"] = json!("nothing");
    let reply = http.post("/v1/chat/completions", &unknown).await.unwrap();
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json()["error"]["code"], "model_not_found");

    let mut long = chat(&"word ".repeat(20_000));
    long["max_tokens"] = json!(8);
    let reply = http.post("/v1/chat/completions", &long).await.unwrap();
    assert_eq!(reply.status, 400, "{}", reply.body);
    assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");

    let mut hot = chat("hello");
    hot["temperature"] = json!(9);
    let reply = http.post("/v1/chat/completions", &hot).await.unwrap();
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("temperature")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_identical_prompt_is_served_from_the_prefix_cache() {
    let cluster = Cluster::start(Plan::of(toy()).with(Service::Decode, &["--page-size", "16"])).await;
    let request = chat(&"the same long prompt again ".repeat(8));
    let ask = async || cluster.http().post("/v1/chat/completions", &request).await.unwrap().json();
    let (first, second) = (ask().await, ask().await);
    let cached =
        |reply: &serde_json::Value| reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(&first), Some(0));
    assert!(cached(&second).unwrap() >= 16, "{second}");
    assert_eq!(first["choices"][0]["message"], second["choices"][0]["message"]);
}
