use std::collections::BTreeMap;

use messages::{
    FaultCode,
    input::{Chat, Json},
};
use serde_json::{Value, json};

use super::*;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/templates");

fn frozen() -> NaiveDateTime {
    "2026-03-04T05:06:07".parse().unwrap()
}

fn compile(source: &str) -> Template {
    let tokens =
        [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    Template::compile(source, BTreeMap::from(tokens), frozen).unwrap()
}

fn fixture(name: &str) -> Template {
    compile(&std::fs::read_to_string(format!("{FOLDER}/{name}.jinja")).unwrap())
}

fn conversation(fields: &Value) -> Conversation {
    let flag = |name, default| fields.get(name).and_then(Value::as_bool).unwrap_or(default);
    Conversation::read(&Chat {
        messages: Json::of(&fields["messages"]),
        tools: fields.get("tools").map(Json::of),
        template_kwargs: fields.get("kwargs").map(Json::of),
        add_generation_prompt: flag("add_generation_prompt", true),
        continue_final_message: flag("continue_final_message", false),
    })
    .unwrap()
}

/// A loop over null ends there instead of failing as in Python: a turn with tool calls has no content.
const LENIENT: [(&str, &str); 1] = [("mistral-small-3.2", "null content")];

#[test]
fn templates_render_as_transformers_renders_them() {
    let read = |name| -> Value {
        serde_json::from_slice(&std::fs::read(format!("{FOLDER}/{name}")).unwrap()).unwrap()
    };
    let (conversations, expected) = (read("conversations.json"), read("rendered.json"));
    let mut wrong = Vec::new();
    for (template, texts) in expected.as_object().unwrap() {
        let compiled = fixture(template);
        for fields in conversations.as_array().unwrap() {
            let name = fields["name"].as_str().unwrap();
            let rendered = compiled.render(&conversation(fields));
            let same = match (texts[name].as_str(), &rendered) {
                (Some(expected), Ok(text)) => text == expected,
                (None, Ok(_)) => LENIENT.contains(&(template.as_str(), name)),
                (None, Err(fault)) => fault.code == FaultCode::InvalidRequest,
                _ => false,
            };
            if !same {
                wrong.push(format!("{template}: {name}\nexpected {:?}\nrendered {rendered:?}", texts[name]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_a_template_raises_reaches_the_client() {
    let fault = fixture("mistral-7b")
        .render(&conversation(&json!({"messages": [{"role": "critic", "content": "no"}]})))
        .unwrap_err();
    assert_eq!(fault.message, "Conversation roles must alternate user/assistant/user/assistant/...");
    assert_eq!((fault.code, fault.param.as_deref()), (FaultCode::InvalidRequest, Some("messages")));
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let endless = compile(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = b %}{% endfor %}{% endfor %}",
    );
    assert!(endless.render(&conversation(&json!({"messages": []}))).is_err());
    let vast = compile("{% for a in range(99999) %}{{ 'x' * 100000 }}{% endfor %}");
    assert!(vast.render(&conversation(&json!({"messages": []}))).is_err());
}

#[test]
fn parts_of_text_become_a_string_where_the_template_wants_one() {
    let parts = json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]});
    let rendered = fixture("smollm2").render(&conversation(&parts)).unwrap();
    assert!(rendered.contains("<|im_start|>user\none\ntwo<|im_end|>"), "{rendered}");
    let native = fixture("mistral-small-3.2").render(&conversation(&parts)).unwrap();
    assert!(native.contains("onetwo"), "{native}");
}

#[test]
fn a_string_becomes_parts_where_the_template_takes_nothing_else() {
    let template =
        compile("{% for m in messages %}{% for p in m.content %}{{ p.text + '.' }}{% endfor %}{% endfor %}");
    let rendered =
        template.render(&conversation(&json!({"messages": [{"role": "user", "content": "hi"}]}))).unwrap();
    assert_eq!(rendered, "hi.");
}

#[test]
fn a_part_that_is_no_text_is_refused() {
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    let fault = fixture("smollm2").render(&conversation(&image)).unwrap_err();
    assert_eq!(fault.message, "messages[0].content: this model takes only parts of type text");
}

#[test]
fn arguments_of_tool_calls_may_be_json_text() {
    let call = |arguments: Value| {
        let calls = json!([{"id": "abcdef123", "type": "function",
            "function": {"name": "f", "arguments": arguments}}]);
        conversation(&json!({"messages": [{"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": calls}]}))
    };
    for name in ["llama-3.1", "qwen3", "mistral-nemo"] {
        let template = fixture(name);
        let object = template.render(&call(json!({"x": 1, "y": "é"}))).unwrap();
        assert_eq!(template.render(&call(json!("{\"x\":1,\"y\":\"é\"}"))).unwrap(), object);
    }
}

#[test]
fn a_continued_message_needs_text() {
    let fields = json!({"continue_final_message": true, "add_generation_prompt": false,
        "messages": [{"role": "assistant", "content": null}]});
    let fault = fixture("smollm2").render(&conversation(&fields)).unwrap_err();
    assert_eq!(fault.param.as_deref(), Some("continue_final_message"));
    let both = Chat {
        messages: Json::of(&json!([])),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: true,
        continue_final_message: true,
    };
    assert!(Conversation::read(&both).is_err());
}

#[test]
fn the_clients_variables_cannot_replace_the_conversation() {
    let chat = Chat {
        messages: Json::of(&json!([])),
        tools: None,
        template_kwargs: Some(Json::of(&json!({"messages": []}))),
        add_generation_prompt: true,
        continue_final_message: false,
    };
    assert_eq!(Conversation::read(&chat).unwrap_err().param.as_deref(), Some("chat_template_kwargs"));
}
