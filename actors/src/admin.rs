//! The second listener of every process: figures and administration, on loopback unless told otherwise.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::Server,
    web::{self, Data},
};
use futures_util::future::{join_all, try_join_all};
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::RwLock;

use crate::{
    life::Life,
    root::{Drain, Observe},
};

/// What a service shows of itself: `GET /admin/{page}/{key}`.
#[derive(Clone, Default)]
pub struct Pages(Arc<RwLock<HashMap<&'static str, Arc<Page>>>>);

/// The JSON for a key, or why there is none: a 404.
pub type Page = dyn Fn(&str) -> Result<serde_json::Value, String> + Send + Sync;

impl Pages {
    pub fn add(
        &self,
        name: &'static str,
        page: impl Fn(&str) -> Result<serde_json::Value, String> + Send + Sync + 'static,
    ) {
        self.0.write().insert(name, Arc::new(page));
    }

    fn get(&self, name: &str) -> Option<Arc<Page>> {
        self.0.read().get(name).cloned()
    }
}

/// What the routes need.
#[derive(Clone)]
struct Desk {
    /// Of each instance of this process, at least one.
    lives: Arc<[Life]>,
    pages: Pages,
    metrics: PrometheusHandle,
    key: Option<String>,
}

/// Binds the listener; the returned server runs until it is stopped. It shows the state of the first instance of
/// `lives` and drains them all.
///
/// # Errors
/// If the address cannot be bound.
pub fn listen(
    bind: SocketAddr,
    key: Option<String>,
    lives: Arc<[Life]>,
    pages: Pages,
    metrics: PrometheusHandle,
) -> anyhow::Result<(Server, SocketAddr)> {
    let desk = Desk { lives, pages, metrics, key };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::new(desk.clone()))
            .route("/metrics", web::get().to(figures))
            .route("/live", web::get().to(|| async { HttpResponse::Ok().body("alive\n") }))
            .route("/admin/state", web::get().to(state))
            .route("/admin/drain", web::post().to(drain))
            .route("/admin/{page}/{key}", web::get().to(page))
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
    match desk.lives[0].root.send(Observe).await {
        Ok(observed) => HttpResponse::Ok().json(observed),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

async fn page(desk: Data<Desk>, request: HttpRequest, path: web::Path<(String, String)>) -> HttpResponse {
    if !allowed(&desk, &request) {
        return HttpResponse::Unauthorized().finish();
    }
    let (name, key) = path.into_inner();
    let shown = match desk.pages.get(&name) {
        Some(page) => page(&key),
        None => Err(format!("this service has no page '{name}'")),
    };
    shown.map_or_else(not_found, |shown| HttpResponse::Ok().json(shown))
}

fn not_found(message: String) -> HttpResponse {
    HttpResponse::NotFound().json(serde_json::json!({"error": {
        "message": message, "type": "invalid_request_error", "param": null, "code": "not_found",
    }}))
}

#[derive(serde::Deserialize)]
struct DrainQuery {
    #[serde(default)]
    now: bool,
    /// Answer when it is done.
    #[serde(default)]
    wait: bool,
}

async fn drain(desk: Data<Desk>, request: HttpRequest, query: web::Query<DrainQuery>) -> HttpResponse {
    if !allowed(&desk, &request) {
        return HttpResponse::Unauthorized().finish();
    }
    let all = || desk.lives.iter();
    if let Err(error) = try_join_all(all().map(|life| life.root.send(Drain { now: query.now }))).await {
        return HttpResponse::InternalServerError().body(error.to_string());
    }
    if query.wait {
        join_all(all().map(Life::drained)).await;
        return HttpResponse::Ok().json(serde_json::json!({"state": "drained", "safe_to_stop": true}));
    }
    HttpResponse::Accepted().json(serde_json::json!({"state": "draining", "safe_to_stop": false}))
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
