use serde_json::{Value, json};

use super::*;
use crate::api::{self, fixtures};

fn document() -> Value {
    serde_json::from_str(json()).unwrap()
}

#[test]
fn every_route_is_described_and_every_schema_resolves() {
    let document = document();
    for (path, ..) in ROUTES {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

/// A field that the document names must be one that the parser reads: with a value of an impossible type, each is
/// refused by its name.
#[test]
fn described_fields_are_read() {
    let odd = json!({"an": ["impossible", {"value": 1}]});
    let card = fixtures::card();
    // Any object may stand in these, or nothing is checked before the model is known.
    let free = ["model", "chat_template_kwargs"];
    let checked = |fields: &'static [&'static str]| fields.iter().filter(move |field| !free.contains(field));
    for field in checked(ChatCompletionRequest::FIELDS) {
        let error = api::chat::read(fixtures::chat(json!({(*field): odd})), &card, &api::Seeds::default())
            .expect_err(field);
        assert!(error.param.unwrap().starts_with(field), "{field}");
    }
    for field in checked(CompletionRequest::FIELDS) {
        let error = api::completion::read(
            fixtures::completion(json!({(*field): odd})),
            &card,
            &api::Seeds::default(),
        )
        .expect_err(field);
        assert!(error.param.unwrap().starts_with(field), "{field}");
    }
    for field in checked(SamplingParams::FIELDS) {
        let body = fixtures::fields(json!({"text": "a"}), json!({"sampling_params": {(*field): odd}}));
        let error = api::native::read(body, &card, &api::Seeds::default()).expect_err(field);
        assert!(error.param.unwrap().starts_with(&format!("sampling_params.{field}")), "{field}");
    }
}
