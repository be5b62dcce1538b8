//! `/tokenize` and `/detokenize`.

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Payload},
};
use messages::text::Answer;
use serde_json::json;

use crate::{
    api::{ApiError, model, tokenize as api},
    front::Front,
};

pub async fn tokenize(
    request: HttpRequest,
    payload: Payload,
    front: Data<Front>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = super::fields(&request, payload, &front).await?;
    let card = model::named_or_only(&mut fields, &*front.road)?;
    let ask = api::read(fields, &card)?;
    match front.road.ask(&card.pool(), ask.question).await? {
        Answer::Tokenized(answer) => Ok(HttpResponse::Ok().json(api::tokenized(&answer, ask.pieces))),
        _ => Err(ApiError::internal("the tokenizer answered another question")),
    }
}

pub async fn detokenize(
    request: HttpRequest,
    payload: Payload,
    front: Data<Front>,
) -> Result<HttpResponse, ApiError> {
    let mut fields = super::fields(&request, payload, &front).await?;
    let card = model::named_or_only(&mut fields, &*front.road)?;
    let question = api::read_detokenize(fields, &card)?;
    match front.road.ask(&card.pool(), question).await? {
        Answer::Detokenized(answer) => {
            Ok(HttpResponse::Ok().json(json!({"prompt": answer.text, "text": answer.text})))
        }
        _ => Err(ApiError::internal("the tokenizer answered another question")),
    }
}
