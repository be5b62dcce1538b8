//! TLS from certificate and key files.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// The server's TLS configuration, or none if neither file is named.
///
/// # Errors
/// If only one is named, or either cannot be used.
pub fn load(cert: Option<&Path>, key: Option<&Path>) -> anyhow::Result<Option<ServerConfig>> {
    let (cert, key) = match (cert, key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        _ => anyhow::bail!("--tls-cert and --tls-key go together: name both or neither"),
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|error| anyhow::anyhow!("--tls-cert {}: {error}", cert.display()))?;
    anyhow::ensure!(!chain.is_empty(), "--tls-cert {} holds no certificate", cert.display());
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| anyhow::anyhow!("--tls-key {}: {error}", key.display()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("tls protocol versions")?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("--tls-key {} does not fit the certificate", key.display()))?;
    Ok(Some(config))
}
