use messages::{
    input::{Chat, Json},
    lease::GenerationDefaults,
    submit::{Routing, Sampling},
};
use serde_json::{Value, json};

use super::*;
use crate::samples;

const TEMPLATE: &str =
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";

fn model(template: Option<&str>) -> Model {
    let card = ModelCard {
        name: "toy".to_owned(),
        revision: "0".to_owned(),
        path: String::new(),
        context_length: 100,
        vocab_size: 1300,
        architecture: "llama".to_owned(),
        has_chat_template: false,
        eos_ids: Vec::new(),
        defaults: GenerationDefaults::default(),
        created: 0,
    };
    let tokenizer = samples::byte_level(&samples::smollm(), &Value::Null);
    Model::build(card, tokenizer, template, BTreeMap::new(), 1 << 20).unwrap()
}

fn chat() -> Input {
    Input::Chat(Chat {
        messages: Json::of(&json!([{"role": "user", "content": "the lazy dog"}])),
        tools: None,
        template_kwargs: None,
        add_generation_prompt: false,
        continue_final_message: false,
    })
}

fn request(input: Input, max_tokens: Option<u32>) -> Generate {
    Generate {
        input,
        n: 1,
        sampling: Sampling::default(),
        max_tokens,
        text: TextOptions::default(),
        score_prompt_from: None,
        priority: 0,
        cache_salt: None,
        routing: Routing::default(),
        ingress: "ingress-1".parse().unwrap(),
        journal: None,
        attach: None,
        avoid: Vec::new(),
        deaths: 0,
    }
}

#[test]
fn output_is_bounded_by_what_the_context_leaves() {
    let model = model(None);
    let text = || Input::Text("x".to_owned());
    assert_eq!(model.room(&request(text(), None), 30), Ok(70));
    assert_eq!(model.room(&request(text(), Some(70)), 30), Ok(70));
    assert_eq!(model.room(&request(text(), Some(0)), 100), Ok(0));
    for (wanted, prompt, numbers) in
        [(Some(71), 30, "101 tokens (30 in the prompt, 71"), (None, 100, "100 tokens")]
    {
        let fault = model.room(&request(text(), wanted), prompt).unwrap_err();
        assert_eq!(fault.code, FaultCode::ContextLengthExceeded);
        assert!(fault.message.contains("length is 100 tokens") && fault.message.contains(numbers), "{fault}");
    }
    let empty = model.room(&request(chat(), None), 0).unwrap_err();
    assert_eq!((empty.code, empty.param.as_deref()), (FaultCode::InvalidRequest, Some("messages")));
}

#[test]
fn a_conversation_needs_a_template() {
    let fault = model(None).prompt(&chat(), true, &mut Words::default()).unwrap_err();
    assert_eq!(fault.message, "the model 'toy' has no chat template");
    let model = model(Some(TEMPLATE));
    assert!(model.card.has_chat_template);
    let prompt = model.prompt(&chat(), true, &mut Words::default()).unwrap();
    let text = TextStream::decode_all(&model.pieces, prompt.ids.into_iter(), false);
    assert_eq!(text, "<|im_start|>user\nthe lazy dog<|im_end|>\n");
}

#[test]
fn a_template_that_does_not_parse_is_told_at_start() {
    let card = model(None).card;
    let tokenizer = samples::byte_level(&samples::smollm(), &Value::Null);
    let built = Model::build(card, tokenizer, Some("{% for %}"), BTreeMap::new(), 0);
    assert!(built.err().unwrap().to_string().starts_with("chat template:"));
}

#[test]
fn token_ids_beyond_the_vocabulary_are_refused() {
    let given = Input::Tokens([5, 1300].as_slice().into());
    let fault = model(None).prompt(&given, true, &mut Words::default()).unwrap_err();
    assert_eq!(fault.message, "token id 1300 is not in the model's vocabulary of 1300 tokens");
}

#[test]
fn tokenize_and_detokenize_are_inverse() {
    let model = model(None);
    let request = Tokenize { input: Input::Text("naïve 🤖 dogs".to_owned()), add_special_tokens: true };
    let Answer::Tokenized(tokenized) = model.tokenize(&request, &mut Words::default()) else { panic!() };
    assert_eq!((tokenized.pieces.len(), tokenized.context_length), (tokenized.ids.len(), 100));
    let back = model.detokenize(&Detokenize { ids: tokenized.ids, skip_special_tokens: true });
    assert_eq!(back, Answer::Detokenized(Detokenized { text: "naïve 🤖 dogs".to_owned() }));
}

#[test]
fn an_output_begins_a_text_only_where_the_prompt_shows_none() {
    let model = model(None);
    let options = TextOptions::default();
    let ids = |text: &str| -> TokenIds {
        let prompt = model.prompt(&Input::Text(text.to_owned()), false, &mut Words::default()).unwrap();
        prompt.ids.as_slice().into()
    };
    assert!(model.shows_nothing(&ids("<|im_start|>"), &options));
    assert!(!model.shows_nothing(&ids("<|im_start|>user"), &options));
    let all = TextOptions { skip_special_tokens: false, ..options };
    assert!(!model.shows_nothing(&ids("<|im_start|>"), &all));
}
