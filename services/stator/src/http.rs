//! A small HTTP/1.1 client for stator's own tools: keep-alive, streaming, no redirects, no TLS.

pub mod sse;

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// An error body longer than this is not read to its end.
const ERROR_BODY_AT_MOST: usize = 64 * 1024;

/// Where a server is.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerArgs {
    /// The server
    #[arg(long, env = "STATOR_URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// API key, if the server wants one
    #[arg(long, env = "STATOR_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
}

impl ServerArgs {
    /// # Errors
    /// If the url is not `http://host[:port][/prefix]`.
    pub fn server(&self) -> anyhow::Result<Server> {
        Server::new(&self.url, self.api_key.clone())
    }
}

/// A server that speaks plain HTTP, and the key it wants.
#[derive(Debug, Clone)]
pub struct Server {
    /// host:port
    authority: String,
    /// What comes before the route; empty for most.
    prefix: String,
    key: Option<String>,
}

impl Server {
    /// # Errors
    /// If `url` is not `http://host[:port][/prefix]`.
    pub fn new(url: &str, key: Option<String>) -> anyhow::Result<Self> {
        let uri: hyper::Uri = url.parse().with_context(|| format!("'{url}' is no url"))?;
        if uri.scheme_str() != Some("http") {
            bail!("'{url}' must begin with http:// (this tool does not speak TLS)");
        }
        let host = uri.host().with_context(|| format!("'{url}' names no host"))?;
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        Ok(Self { authority, prefix: uri.path().trim_end_matches('/').to_owned(), key })
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let stream = tokio::time::timeout(CONNECT_WITHIN, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| anyhow::anyhow!("no connection to {} within {CONNECT_WITHIN:?}", self.authority))?
            .with_context(|| format!("no server at {}", self.authority))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { server: self.clone(), sender })
    }
}

/// One connection, used for one request at a time.
pub struct Connection {
    server: Server,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub fn is_usable(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request; the body of the answer is still to be read.
    pub async fn send(
        &mut self,
        method: Method,
        route: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{route}", self.server.prefix))
            .header(header::HOST, &self.server.authority);
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.server.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.sender.ready().await?;
        Ok(self.sender.send_request(request.body(Full::new(body))?).await?)
    }

    /// Sends a request and reads its answer as JSON.
    ///
    /// # Errors
    /// If the status is not 2xx (with the server's message), or the body is no such JSON.
    pub async fn json<T: serde::de::DeserializeOwned>(
        &mut self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let response = self.send(method, route, &[], body).await?;
        if !response.status().is_success() {
            return Err(Refused::read(response).await.into());
        }
        let body = response.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("{route} answered something unexpected"))
    }
}

/// An answer with an error status.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub message: String,
}

impl Refused {
    /// Reads what the server says: `error.message` where the body has it, else the body itself.
    pub async fn read(response: Response<Incoming>) -> Self {
        let status = response.status().as_u16();
        let body = http_body_util::Limited::new(response.into_body(), ERROR_BODY_AT_MOST);
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let message = serde_json::from_slice::<serde_json::Value>(&body)
            .ok()
            .and_then(|json| Some(json.get("error")?.get("message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        Self { status, message }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}: {}", self.status, self.message)
    }
}

impl std::error::Error for Refused {}
