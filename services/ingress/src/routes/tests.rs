//! The routes over a road that answers from a script.

use std::{future::Future, pin::Pin, sync::Arc};

use actix_web::{
    body::to_bytes,
    http::{Method, StatusCode, header},
    test::{self, TestRequest},
    web::Data,
};
use messages::{
    Fault, FaultCode, Pool,
    frame::{End, Usage},
    generate::{Generate, ToTokenizer},
    lease::ModelCard,
    text::{Answer, Detokenized, Tokenized},
};
use serde_json::{Value, json};

use crate::{
    IngressSettings,
    api::fixtures,
    front::Front,
    road::{
        Backlog, Event, Journey, Manner, Passenger, Road, Survey,
        outlet::{Delta, Outlet},
    },
    server::app,
};

/// Answers every request with two tokens, or with a fault before or after the first.
#[derive(Default)]
struct ScriptedRoad {
    refuse: Option<Fault>,
    break_off: Option<Fault>,
    draining: bool,
    nobody: bool,
}

impl Road for ScriptedRoad {
    fn set_out(&self, prompts: Vec<Generate>, _: Passenger, manner: Manner) -> Journey {
        let choices = prompts.iter().map(|prompt| prompt.n as usize).sum();
        let backlog = Arc::new(Backlog::new(1 << 20, 1 << 20));
        let outlet = Arc::new(Outlet::new(prompts.len(), choices, manner, backlog));
        if let Some(fault) = &self.refuse {
            outlet.fail(fault.clone());
            return Journey::new(outlet, Vec::new());
        }
        let mut index = 0;
        for (prompt, generate) in prompts.iter().enumerate() {
            outlet.open();
            for _ in 0..generate.n {
                let said = |text: &str, end| Delta {
                    index,
                    text: text.to_owned(),
                    tokens: 1,
                    end,
                    ..Delta::default()
                };
                outlet.push(Event::Delta(said("Hel", None)));
                if let Some(fault) = &self.break_off {
                    outlet.fail(fault.clone());
                }
                outlet.push(Event::Delta(said("lo", Some(End::Length))));
                index += 1;
            }
            let usage = Usage { prompt_tokens: 1, cached_tokens: 0, output_tokens: 2 * generate.n };
            outlet.push(Event::Closed { prompt, usage });
        }
        Journey::new(outlet, prompts.iter().map(|_| messages::RequestId::mint()).collect())
    }

    fn ask(&self, _: &Pool, question: ToTokenizer) -> Pin<Box<dyn Future<Output = Result<Answer, Fault>>>> {
        Box::pin(std::future::ready(Ok(match question {
            ToTokenizer::Detokenize(_) => Answer::Detokenized(Detokenized { text: "text".to_owned() }),
            _ => Answer::Tokenized(Tokenized {
                ids: [1, 2].into_iter().collect(),
                pieces: vec!["a".to_owned(), "b".to_owned()],
                context_length: 2048,
            }),
        })))
    }

    fn model(&self, name: &str) -> Option<Arc<ModelCard>> {
        self.models().into_iter().find(|card| card.name == name)
    }

    fn models(&self) -> Vec<Arc<ModelCard>> {
        if self.nobody { Vec::new() } else { vec![Arc::new(fixtures::card())] }
    }

    fn survey(&self) -> Survey {
        Survey { bus_connected: true, draining: self.draining, ..Survey::default() }
    }

    fn is_draining(&self) -> bool {
        self.draining
    }

    fn metrics(&self) -> String {
        "stator_ingress_in_flight 0\n".to_owned()
    }
}

struct Reply {
    status: StatusCode,
    headers: header::HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn error(&self) -> (u16, Value, Value) {
        let body = self.json();
        let mut fields: Vec<&String> = body["error"].as_object().unwrap().keys().collect();
        fields.sort();
        assert_eq!(fields, ["code", "message", "param", "type"]);
        (self.status.as_u16(), body["error"]["code"].clone(), body["error"]["param"].clone())
    }
}

async fn call_with(road: ScriptedRoad, settings: IngressSettings, request: TestRequest) -> Reply {
    let front = Data::new(Front::new(settings, Some("root"), Arc::new(road), 1 << 20).unwrap());
    let service = test::init_service(app(front)).await;
    let response = test::call_service(&service, request.to_request()).await;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = to_bytes(response.into_body()).await.unwrap_or_else(|_| panic!("the body breaks off"));
    Reply { status, headers, text: String::from_utf8(body.to_vec()).unwrap() }
}

async fn call(request: TestRequest) -> Reply {
    call_with(ScriptedRoad::default(), IngressSettings::default(), request).await
}

fn post(path: &str, body: Value) -> TestRequest {
    TestRequest::post().uri(path).set_payload(body.to_string())
}

fn chat(more: Value) -> TestRequest {
    let mut body = json!({"model": "tiny/llama", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    post("/v1/chat/completions", body)
}

#[actix_web::test]
async fn errors_have_openais_form_and_the_right_status() {
    let raw = |body: &'static str| TestRequest::post().uri("/v1/chat/completions").set_payload(body);
    let null = Value::Null;
    let table = [
        (raw("{\"model\": "), 400, json!("invalid_json"), null.clone()),
        (raw("[]"), 400, json!("invalid_type"), null.clone()),
        (raw(""), 400, json!("invalid_json"), null.clone()),
        (raw("\u{0}\u{1}"), 400, json!("invalid_json"), null.clone()),
        (chat(json!({"model": "gpt"})), 404, json!("model_not_found"), json!("model")),
        (chat(json!({"model": null})), 400, json!("missing_required_parameter"), json!("model")),
        (chat(json!({"temperature": 3})), 400, json!("decimal_above_max_value"), json!("temperature")),
        (TestRequest::get().uri("/v1/chat/completions"), 405, json!("method_not_supported"), null.clone()),
        (TestRequest::delete().uri("/health"), 405, json!("method_not_supported"), null.clone()),
        (TestRequest::get().uri("/v2/chat"), 404, json!("unknown_url"), null.clone()),
        (TestRequest::get().uri("/v1/models/none/such"), 404, json!("model_not_found"), json!("model")),
        (
            chat(json!({})).insert_header(("x-request-deadline-ms", "soon")),
            400,
            json!("invalid_value"),
            json!("x-request-deadline-ms"),
        ),
    ];
    for (request, status, code, param) in table {
        assert_eq!(call(request).await.error(), (status, code, param));
    }
}

#[actix_web::test]
async fn a_body_beyond_the_limit_is_413_with_both_numbers() {
    let settings = || IngressSettings { max_body_bytes: 50, ..IngressSettings::default() };
    let long = || chat(json!({"user": "x".repeat(200)}));
    let reply = call_with(ScriptedRoad::default(), settings(), long()).await;
    assert_eq!(reply.error().0, 413);
    let announced =
        call_with(ScriptedRoad::default(), settings(), long().insert_header(("content-length", "300")));
    let message = announced.await.json()["error"]["message"].clone();
    assert!(
        message.as_str().unwrap().contains("300") && message.as_str().unwrap().contains("50"),
        "{message}"
    );
}

#[actix_web::test]
async fn a_chat_is_answered_whole_or_streamed() {
    let reply = call(chat(json!({"n": 2}))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json()["choices"][1]["message"]["content"], "Hello");
    assert_eq!(reply.json()["usage"]["completion_tokens"], 4);
    let reply = call(chat(json!({"stream": true}))).await;
    assert!(reply.headers.get("content-type").unwrap().to_str().unwrap().starts_with("text/event-stream"));
    assert!(reply.text.ends_with("data: [DONE]\n\n"), "{}", reply.text);
    let contents: Vec<Value> = reply
        .text
        .split_terminator("\n\n")
        .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
        .map(|chunk| chunk["choices"][0]["delta"]["content"].clone())
        .filter(Value::is_string)
        .collect();
    assert_eq!(contents, ["", "Hel", "lo"]);
}

#[actix_web::test]
async fn a_fault_before_the_first_byte_is_a_status_and_after_it_an_event() {
    let fault = || Some(Fault::new(FaultCode::ContextLengthExceeded, "5000 tokens, the context holds 2048"));
    for stream in [false, true] {
        let road = ScriptedRoad { refuse: fault(), ..ScriptedRoad::default() };
        let reply = call_with(road, IngressSettings::default(), chat(json!({"stream": stream}))).await;
        assert_eq!(reply.error().0, 400);
        assert_eq!(reply.error().1, "context_length_exceeded");
    }
    let broken = || ScriptedRoad {
        break_off: Some(Fault::new(FaultCode::EngineFault, "engines died")),
        ..ScriptedRoad::default()
    };
    let reply = call_with(broken(), IngressSettings::default(), chat(json!({"stream": true}))).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text.contains("Hel") && !reply.text.contains("[DONE]"), "{}", reply.text);
    let last = reply.text.split_terminator("\n\n").last().unwrap().strip_prefix("data: ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(last).unwrap()["error"]["code"], "engine_fault");
    assert_eq!(call_with(broken(), IngressSettings::default(), chat(json!({}))).await.error().0, 500);
}

#[actix_web::test]
async fn what_may_pass_later_says_when() {
    let full = IngressSettings { max_concurrent_requests: 0, ..IngressSettings::default() };
    let reply = call_with(ScriptedRoad::default(), full, chat(json!({}))).await;
    assert_eq!((reply.error().0, reply.error().1), (429, json!("rate_limit_exceeded")));
    assert!(reply.headers.contains_key(header::RETRY_AFTER));
    let draining = ScriptedRoad { draining: true, ..ScriptedRoad::default() };
    let reply = call_with(draining, IngressSettings::default(), chat(json!({}))).await;
    assert_eq!((reply.error().0, reply.error().1), (503, json!("draining")));
    assert!(reply.headers.contains_key(header::RETRY_AFTER));
}

#[actix_web::test]
async fn keys_are_asked_for_except_by_probes() {
    let settings = || IngressSettings { api_key: vec!["secret".to_owned()], ..IngressSettings::default() };
    let with = |request| call_with(ScriptedRoad::default(), settings(), request);
    let reply = with(TestRequest::get().uri("/v1/models")).await;
    assert_eq!((reply.error().0, reply.error().1), (401, json!("missing_api_key")));
    let wrong = TestRequest::get().uri("/v1/models").insert_header(("authorization", "Bearer guess"));
    assert_eq!(with(wrong).await.error().1, "invalid_api_key");
    let right = TestRequest::get().uri("/v1/models").insert_header(("authorization", "Bearer secret"));
    assert_eq!(with(right).await.status, 200);
    assert_eq!(with(TestRequest::get().uri("/live")).await.status, 200);
}

#[actix_web::test]
async fn a_requests_label_comes_back_and_a_missing_one_is_made() {
    let labelled =
        |label: &'static str| TestRequest::get().uri("/live").insert_header(("x-request-id", label));
    let echoed = |reply: &Reply| reply.headers.get("x-request-id").unwrap().to_str().unwrap().to_owned();
    assert_eq!(echoed(&call(labelled("abc-1")).await), "abc-1");
    assert_ne!(echoed(&call(labelled("two words")).await), "two words");
    let error = call(TestRequest::get().uri("/nowhere").insert_header(("x-request-id", "abc-2"))).await;
    assert_eq!(echoed(&error), "abc-2");
    assert!(!echoed(&call(TestRequest::get().uri("/live")).await).is_empty());
}

#[actix_web::test]
async fn an_engine_is_pinned_with_the_admin_key_only() {
    let pinned = |key: &'static str| {
        chat(json!({})).insert_header(("x-stator-instance", "decode-1")).insert_header(("authorization", key))
    };
    assert_eq!(call(pinned("Bearer somebody")).await.error().0, 403);
    assert_eq!(call(pinned("Bearer root")).await.status, 200);
}

#[actix_web::test]
async fn a_request_asks_for_no_more_priority_than_there_is() {
    let asks = |priority: i32| {
        let settings = IngressSettings { max_priority: 3, ..IngressSettings::default() };
        call_with(ScriptedRoad::default(), settings, chat(json!({"priority": priority})))
    };
    for (priority, status) in [(-1000, 200), (3, 200), (4, 400)] {
        assert_eq!(asks(priority).await.status, status, "priority {priority}");
    }
    let error = asks(4).await.error();
    assert_eq!((error.1, error.2), (json!("integer_above_max_value"), json!("priority")));
}

#[actix_web::test]
async fn an_explained_answer_names_the_requests_that_routers_know() {
    let reply = call(chat(json!({})).insert_header(("x-stator-explain", "1"))).await;
    let ids = reply.headers.get("x-stator-requests").unwrap().to_str().unwrap();
    assert!(ids.parse::<messages::RequestId>().is_ok(), "{ids}");
    assert!(!call(chat(json!({}))).await.headers.contains_key("x-stator-requests"));
}

#[actix_web::test]
async fn other_origins_are_let_in_only_where_allowed() {
    let preflight = || {
        TestRequest::default()
            .method(Method::OPTIONS)
            .uri("/v1/chat/completions")
            .insert_header(("origin", "https://app.example"))
            .insert_header(("access-control-request-method", "POST"))
    };
    let allowed =
        IngressSettings { cors_origin: vec!["https://app.example".to_owned()], ..Default::default() };
    let reply = call_with(ScriptedRoad::default(), allowed, preflight()).await;
    assert_eq!(reply.headers.get("access-control-allow-origin").unwrap(), "https://app.example");
    assert!(!call(preflight()).await.headers.contains_key("access-control-allow-origin"));
}

#[actix_web::test]
async fn models_are_listed_and_described_even_with_slashes_in_their_names() {
    let list = call(TestRequest::get().uri("/v1/models")).await.json();
    assert_eq!(list["data"][0]["id"], "tiny/llama");
    let one = call(TestRequest::get().uri("/v1/models/tiny/llama")).await.json();
    assert_eq!((one["id"].as_str(), one["object"].as_str()), (Some("tiny/llama"), Some("model")));
    for path in ["/model_info", "/get_model_info", "/get_model_info?model=tiny/llama"] {
        assert_eq!(call(TestRequest::get().uri(path)).await.json()["served_model_name"], "tiny/llama");
    }
    assert_eq!(call(TestRequest::get().uri("/server_info")).await.json()["max_concurrent_requests"], 4096);
}

#[actix_web::test]
async fn health_tells_why_no_chat_can_be_answered() {
    let reply = call(TestRequest::get().uri("/health")).await;
    assert_eq!(reply.status, 503);
    assert!(reply.json()["reasons"][0].as_str().unwrap().contains("no model"));
}

#[actix_web::test]
async fn text_and_tokens_turn_into_each_other() {
    let tokens = call(post("/tokenize", json!({"text": "ab"}))).await.json();
    assert_eq!(tokens, json!({"tokens": [1, 2], "count": 2, "max_model_len": 2048}));
    let pieces = call(post("/tokenize", json!({"prompt": "ab", "return_token_strs": true}))).await.json();
    assert_eq!(pieces["token_strs"], json!(["a", "b"]));
    assert_eq!(call(post("/detokenize", json!({"tokens": [1, 2]}))).await.json()["text"], "text");
    let both = json!({"text": "a", "prompt": "b"});
    assert_eq!(call(post("/tokenize", both)).await.error().0, 400);
    assert_eq!(call(post("/detokenize", json!({"tokens": [5000]}))).await.error().2, "tokens[0]");
}

#[actix_web::test]
async fn a_completion_echoes_its_prompt() {
    let body = json!({"model": "tiny/llama", "prompt": ["Say ", [1, 2]], "echo": true});
    let reply = call(post("/v1/completions", body)).await.json();
    assert_eq!(reply["choices"][0]["text"], "Say Hello");
    assert_eq!(reply["choices"][1]["text"], "textHello");
}

#[actix_web::test]
async fn the_native_route_needs_no_model_where_there_is_one() {
    let reply = call(post("/generate", json!({"text": "a", "sampling_params": {"max_new_tokens": 2}}))).await;
    assert_eq!(reply.json()["text"], "Hello");
    let nobody = ScriptedRoad { nobody: true, ..ScriptedRoad::default() };
    let reply = call_with(nobody, IngressSettings::default(), post("/generate", json!({"text": "a"}))).await;
    assert_eq!(reply.error().0, 503);
}

#[actix_web::test]
async fn metrics_are_on_this_port_unless_turned_off() {
    assert_eq!(call(TestRequest::get().uri("/metrics")).await.status, 200);
    let off = IngressSettings { no_public_metrics: true, ..IngressSettings::default() };
    let reply = call_with(ScriptedRoad::default(), off, TestRequest::get().uri("/metrics")).await;
    assert_eq!(reply.error().0, 404);
}
