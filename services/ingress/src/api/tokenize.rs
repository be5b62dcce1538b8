//! `/tokenize` and `/detokenize`: reading the requests and writing the answers.

use messages::{
    TokenIds,
    generate::ToTokenizer,
    input::Input,
    lease::ModelCard,
    text::{Detokenize, Tokenize, Tokenized},
};
use serde_json::{Value, json};

use super::{chat, error::ApiError, fields::Fields};

/// What the answer shows beside the ids.
#[derive(Debug)]
pub struct TokenizeAsk {
    pub question: ToTokenizer,
    pub pieces: bool,
}

/// `{"text" | "prompt" | "messages"}`.
///
/// # Errors
/// 400 that names the field.
pub fn read(mut fields: Fields, card: &ModelCard) -> Result<TokenizeAsk, ApiError> {
    let add_special_tokens = fields.flag("add_special_tokens")?.unwrap_or(true);
    let pieces = fields.flag("return_token_strs")?.unwrap_or(false);
    let given: Vec<&str> =
        ["text", "prompt", "messages"].into_iter().filter(|name| fields.has(name)).collect();
    let input = match given.as_slice() {
        ["messages"] => Input::Chat(chat::conversation(&mut fields, card)?),
        [name] => Input::Text(fields.text(name)?.unwrap_or_default()),
        [] => return Err(ApiError::missing("text")),
        _ => {
            let message = "Give one of 'text', 'prompt' and 'messages'.";
            return Err(ApiError::invalid(given[1], "invalid_value", message));
        }
    };
    Ok(TokenizeAsk { question: ToTokenizer::Tokenize(Tokenize { input, add_special_tokens }), pieces })
}

pub fn tokenized(answer: &Tokenized, pieces: bool) -> Value {
    let mut body = json!({
        "tokens": answer.ids.iter().collect::<Vec<u32>>(),
        "count": answer.ids.len(),
        "max_model_len": answer.context_length,
    });
    if pieces {
        body["token_strs"] = json!(answer.pieces);
    }
    body
}

/// `{"tokens"}`.
///
/// # Errors
/// 400 that names the field.
pub fn read_detokenize(mut fields: Fields, card: &ModelCard) -> Result<ToTokenizer, ApiError> {
    let ids = fields.token_ids("tokens", card.vocab_size)?.ok_or_else(|| ApiError::missing("tokens"))?;
    let skip_special_tokens = fields.flag("skip_special_tokens")?.unwrap_or(false);
    Ok(ToTokenizer::Detokenize(Detokenize { ids: TokenIds::from(ids.as_slice()), skip_special_tokens }))
}
