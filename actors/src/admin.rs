//! The second listener of every process: figures and administration, on loopback unless told otherwise.

use std::net::SocketAddr;

use actix::Addr;
use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::Server,
    web::{self, Data},
};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::root::{Drain, Observe, Root};

/// What the routes need.
#[derive(Clone)]
struct Desk {
    root: Addr<Root>,
    metrics: PrometheusHandle,
    key: Option<String>,
}

/// Binds the listener; the returned server runs until it is stopped.
///
/// # Errors
/// If the address cannot be bound.
pub fn listen(
    bind: SocketAddr,
    key: Option<String>,
    root: Addr<Root>,
    metrics: PrometheusHandle,
) -> anyhow::Result<(Server, SocketAddr)> {
    let desk = Desk { root, metrics, key };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::new(desk.clone()))
            .route("/metrics", web::get().to(figures))
            .route("/live", web::get().to(|| async { HttpResponse::Ok().body("alive\n") }))
            .route("/admin/state", web::get().to(state))
            .route("/admin/drain", web::post().to(drain))
    })
    .workers(1)
    .disable_signals()
    .bind(bind)
    .map_err(|error| anyhow::anyhow!("admin listener on {bind}: {error}; choose another --admin-bind"))?;
    let address = server.addrs().first().copied().unwrap_or(bind);
    Ok((server.run(), address))
}

async fn figures(desk: Data<Desk>) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(desk.metrics.render())
}

async fn state(desk: Data<Desk>, request: HttpRequest) -> HttpResponse {
    if !allowed(&desk, &request) {
        return HttpResponse::Unauthorized().finish();
    }
    match desk.root.send(Observe).await {
        Ok(observed) => HttpResponse::Ok().json(observed),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

#[derive(serde::Deserialize)]
struct DrainQuery {
    #[serde(default)]
    now: bool,
}

async fn drain(desk: Data<Desk>, request: HttpRequest, query: web::Query<DrainQuery>) -> HttpResponse {
    if !allowed(&desk, &request) {
        return HttpResponse::Unauthorized().finish();
    }
    match desk.root.send(Drain { now: query.now }).await {
        Ok(()) => HttpResponse::Accepted().json(serde_json::json!({"state": "draining"})),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

fn allowed(desk: &Desk, request: &HttpRequest) -> bool {
    let Some(key) = &desk.key else { return true };
    let given = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    given.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|token| same(token, key))
}

/// Compares in time that does not depend on where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
