//! Around every route: the request's label, its key, and what is counted of it.

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{self, HeaderValue},
    middleware::Next,
    web::Data,
};

use super::{
    keys::Caller,
    label::{self, Label},
    routing,
};
use crate::front::Front;

pub async fn observe<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let label = Label::read(request.headers());
    request.extensions_mut().insert(label.clone());
    let front = request.app_data::<Data<Front>>().cloned();
    let key = request.headers().get(header::AUTHORIZATION);
    let caller = front.map(|front| front.keys.check(request.path(), key)).unwrap_or(Ok(Caller::Anyone));
    let refusal = caller.map(|caller| request.extensions_mut().insert(caller)).err();
    let mut response = match refusal {
        Some(error) => {
            metrics::counter!("stator_ingress_refusals_total", "code" => error.code.unwrap_or(""))
                .increment(1);
            request.into_response(error.error_response()).map_into_right_body()
        }
        None => next.call(request).await?.map_into_left_body(),
    };
    if let Ok(value) = HeaderValue::from_str(&label.0) {
        response.headers_mut().insert(label::HEADER, value);
    }
    routing::tell(&mut response);
    let route = response.request().match_pattern().unwrap_or_else(|| "unknown".to_owned());
    let status = response.status().as_u16().to_string();
    metrics::counter!("stator_ingress_responses_total", "route" => route, "status" => status).increment(1);
    Ok(response)
}
