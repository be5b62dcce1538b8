//! The listener: what every worker runs, and where it is reached.

use std::time::Duration;

use actix_cors::Cors;
use actix_web::{
    App, HttpServer,
    body::MessageBody,
    dev::{Server, ServiceFactory, ServiceRequest, ServiceResponse},
    middleware::{Condition, from_fn},
    web::Data,
};
use anyhow::Context;
use rustls::ServerConfig;

use crate::{
    edge::{departure::ClientSocket, observe::observe, tls},
    front::Front,
    routes,
};

/// How long a client may take to send the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
/// Idle connections are closed after this.
const KEEP_CONNECTION: Duration = Duration::from_secs(75);
/// How long connections may take to end once no request is left.
const CLOSE_WITHIN: u64 = 1;
const MAX_AGE_OF_PREFLIGHT: usize = 3600;

/// The application as every worker runs it.
pub fn app(
    front: Data<Front>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    let origins = &front.settings.cors_origin;
    let cross_origin = Condition::new(!origins.is_empty(), cors(origins));
    App::new().app_data(front).configure(routes::configure).wrap(from_fn(observe)).wrap(cross_origin)
}

fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default().allow_any_method().allow_any_header().max_age(MAX_AGE_OF_PREFLIGHT);
    if origins.iter().any(|origin| origin == "*") {
        return cors.allow_any_origin().send_wildcard();
    }
    origins.iter().fold(cors, |cors, origin| cors.allowed_origin(origin))
}

/// Half of the cores unless a number is set: the other half reads frames and does the rest.
fn workers(set: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if set > 0 { set } else { (cores / 2).max(1) }
}

/// Binds the listener; the returned server runs until it is stopped.
///
/// # Errors
/// If the address cannot be bound or the TLS files cannot be used.
pub fn listen(front: Data<Front>) -> anyhow::Result<(Server, std::net::SocketAddr, bool)> {
    let settings = &front.settings;
    let config: Option<ServerConfig> = tls::load(settings.tls_cert.as_deref(), settings.tls_key.as_deref())?;
    let secure = config.is_some();
    let (address, workers) = ((settings.host.clone(), settings.port), workers(settings.http_workers));
    let server = HttpServer::new(move || app(front.clone()))
        .workers(workers)
        .on_connect(ClientSocket::keep)
        .tcp_nodelay(true)
        .h1_allow_half_closed(false)
        .client_request_timeout(HEAD_WITHIN)
        .keep_alive(KEEP_CONNECTION)
        .shutdown_timeout(CLOSE_WITHIN)
        .disable_signals();
    let server = match config {
        Some(config) => server.bind_rustls_0_23(address.clone(), config),
        None => server.bind(address.clone()),
    };
    let (host, port) = address;
    let server =
        server.with_context(|| format!("cannot listen on {host}:{port}; choose another --host or --port"))?;
    let bound = server.addrs().first().copied().context("the listener has no address")?;
    Ok((server.run(), bound, secure))
}
