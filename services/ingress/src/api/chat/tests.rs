use serde_json::json;

use super::*;
use crate::api::fixtures::{card, chat};

fn request(more: Value) -> Result<messages::generate::Generate, ApiError> {
    read(chat(more), &card(), &Seeds::default()).map(|mut ask| ask.prompts.remove(0))
}

fn conversation_of(more: Value) -> Chat {
    match request(more).unwrap().input {
        Input::Chat(chat) => chat,
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_reach_the_template_as_they_were_written() {
    let messages = json!([
        {"role": "system", "content": "be brief", "name": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]);
    let chat = conversation_of(json!({"messages": messages}));
    assert_eq!(chat.messages.parse::<Value>().unwrap(), messages);
    assert!(chat.add_generation_prompt && !chat.continue_final_message);
}

#[test]
fn bad_requests_are_400_and_named() {
    let message = |message: Value| json!({"messages": [message]});
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [part]}]});
    let table = [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (message(json!("hi")), "messages[0]"),
        (message(json!({"content": "hi"})), "messages[0].role"),
        (message(json!({"role": "robot", "content": "hi"})), "messages[0].role"),
        (message(json!({"role": "user"})), "messages[0].content"),
        (message(json!({"role": "assistant", "content": null})), "messages[0].content"),
        (message(json!({"role": "user", "content": 3})), "messages[0].content"),
        (part(json!({"type": "image_url", "image_url": {}})), "messages[0].content[0].type"),
        (part(json!({"type": "text"})), "messages[0].content[0].text"),
        (part(json!("hi")), "messages[0].content[0]"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"response_format": {}}), "response_format.type"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"functions": []}), "functions"),
        (json!({"function_call": "auto"}), "function_call"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"max_tokens": 3, "min_tokens": 4}), "min_tokens"),
        (json!({"chat_template_kwargs": 1}), "chat_template_kwargs"),
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
    ];
    for (body, param) in table {
        let error = request(body.clone()).expect_err(&body.to_string());
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{body}");
    }
}

#[test]
fn the_newer_name_of_the_limit_wins() {
    assert_eq!(request(json!({})).unwrap().max_tokens, None);
    let both = json!({"max_tokens": 5, "max_completion_tokens": 6});
    assert_eq!(request(both).unwrap().max_tokens, Some(6));
}

#[test]
fn logprobs_may_come_without_alternatives() {
    assert_eq!(request(json!({})).unwrap().sampling.logprobs, None);
    assert_eq!(request(json!({"logprobs": true})).unwrap().sampling.logprobs, Some(0));
    assert_eq!(request(json!({"logprobs": true, "top_logprobs": 4})).unwrap().sampling.logprobs, Some(4));
}

#[test]
fn tools_are_shown_to_the_template_unless_none_may_be_called() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    assert!(conversation_of(json!({"tools": tools})).tools.is_some());
    assert!(conversation_of(json!({"tools": tools, "tool_choice": "none"})).tools.is_none());
    assert!(conversation_of(json!({"tools": []})).tools.is_none());
}

#[test]
fn template_variables_are_passed_on() {
    let chat = conversation_of(json!({
        "chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low",
    }));
    let variables: Value = chat.template_kwargs.unwrap().parse().unwrap();
    assert_eq!(variables, json!({"enable_thinking": false, "reasoning_effort": "low"}));
}

#[test]
fn going_on_with_the_last_message_opens_no_new_one() {
    let chat = conversation_of(json!({"continue_final_message": true}));
    assert!(chat.continue_final_message && !chat.add_generation_prompt);
}

#[test]
fn a_model_without_template_says_so() {
    let card = ModelCard { has_chat_template: false, ..card() };
    let error = read(chat(json!({})), &card, &Seeds::default()).unwrap_err();
    assert!(error.message.contains("/v1/completions"), "{}", error.message);
}
