//! The routes of the main listener.

mod generate;
mod prelude;
mod status;
mod text;

use actix_web::{
    HttpRequest, HttpResponse, Resource, Responder, Route,
    web::{self, Data, Payload, ServiceConfig},
};

use crate::{
    api::{ApiError, Fields},
    edge::body,
    front::Front,
};
use generate::Asked;

/// Every route, by path. Another method on one of them is 405, another path 404.
pub fn configure(config: &mut ServiceConfig) {
    let (get, post) = (web::get, web::post);
    let chat = |request, payload, front| generate::serve(Asked::Chat, request, payload, front);
    let completions = |request, payload, front| generate::serve(Asked::Completions, request, payload, front);
    let native = |request, payload, front| generate::serve(Asked::Native, request, payload, front);
    config
        .service(at("/v1/chat/completions", [post().to(chat)]))
        .service(at("/v1/completions", [post().to(completions)]))
        .service(at("/generate", [post().to(native), web::put().to(native)]))
        .service(at("/v1/models", [get().to(status::models)]))
        .service(at("/v1/models/{id:.+}", [get().to(status::model)]))
        .service(at("/tokenize", [post().to(text::tokenize)]))
        .service(at("/v1/tokenize", [post().to(text::tokenize)]))
        .service(at("/detokenize", [post().to(text::detokenize)]))
        .service(at("/v1/detokenize", [post().to(text::detokenize)]))
        .service(at("/health", [get().to(status::health)]))
        .service(at("/live", [get().to(status::live)]))
        .service(at("/openapi.json", [get().to(status::openapi)]))
        .service(at("/metrics", [get().to(status::metrics)]));
    for path in ["/model_info", "/get_model_info"] {
        config.service(at(path, [get().to(status::model_info)]));
    }
    for path in ["/server_info", "/get_server_info"] {
        config.service(at(path, [get().to(status::server_info)]));
    }
    config.default_service(web::to(unknown));
}

fn at<const N: usize>(path: &str, routes: [Route; N]) -> Resource {
    let resource = web::resource(path).default_service(web::to(wrong_method));
    routes.into_iter().fold(resource, Resource::route)
}

async fn unknown(request: HttpRequest) -> impl Responder {
    Err::<HttpResponse, _>(ApiError::unknown_route(request.method().as_str(), request.path()))
}

async fn wrong_method(request: HttpRequest) -> impl Responder {
    Err::<HttpResponse, _>(ApiError::wrong_method(request.method().as_str(), request.path()))
}

/// Reads a JSON body.
async fn fields(request: &HttpRequest, payload: Payload, front: &Data<Front>) -> Result<Fields, ApiError> {
    let wait = std::time::Duration::from_secs(front.settings.body_timeout);
    Fields::parse(&body::read(request, payload, front.max_body_bytes, wait).await?)
}

#[cfg(test)]
mod tests;
