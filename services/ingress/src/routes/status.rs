//! What is served and how it is doing.

use std::sync::Arc;

use actix_web::{
    HttpRequest, HttpResponse,
    web::{Data, Path, Query},
};
use messages::lease::ModelCard;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::{ApiError, model as api, openapi as document},
    front::Front,
};

pub async fn models(front: Data<Front>) -> HttpResponse {
    let data: Vec<Value> = front.road.models().iter().map(|card| api::describe(card)).collect();
    HttpResponse::Ok().json(json!({"object": "list", "data": data}))
}

pub async fn model(front: Data<Front>, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let card = listed(&front, &id)?;
    Ok(HttpResponse::Ok().json(api::describe(&card)))
}

fn listed(front: &Front, name: &str) -> Result<Arc<ModelCard>, ApiError> {
    let found = front.road.models().into_iter().find(|card| card.name == name);
    found.ok_or_else(|| ApiError::model_not_found(name))
}

#[derive(Deserialize)]
pub struct Which {
    model: Option<String>,
}

pub async fn model_info(front: Data<Front>, which: Query<Which>) -> Result<HttpResponse, ApiError> {
    let card = match &which.model {
        Some(name) => listed(&front, name)?,
        None => api::only(&*front.road)?,
    };
    Ok(HttpResponse::Ok().json(api::info(&card)))
}

pub async fn server_info(front: Data<Front>) -> HttpResponse {
    let settings = &front.settings;
    let models: Vec<Value> = front.road.models().iter().map(|card| api::info(card)).collect();
    HttpResponse::Ok().json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "models": models,
        "cluster": front.road.survey(),
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_body_bytes": front.max_body_bytes,
        "hold_when_empty": settings.hold_when_empty,
    }))
}

/// 200 if a chat can be answered, else 503 with the reasons.
pub async fn health(front: Data<Front>) -> HttpResponse {
    let survey = front.road.survey();
    let reasons = survey.reasons();
    let (mut response, status) = match reasons.is_empty() {
        true => (HttpResponse::Ok(), "ready"),
        false => (HttpResponse::ServiceUnavailable(), "not ready"),
    };
    response.json(json!({"status": status, "reasons": reasons, "cluster": survey}))
}

pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "alive"}))
}

pub async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(document::json())
}

pub async fn metrics(front: Data<Front>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    if front.settings.no_public_metrics {
        return Err(ApiError::unknown_route("GET", request.path()));
    }
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(front.road.metrics()))
}
