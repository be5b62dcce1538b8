use std::fmt;

/// Proves to both ends of a connection that the other is of the same cluster. It does not encrypt.
#[derive(Clone)]
pub struct TransferKey([u8; 32]);

impl TransferKey {
    /// Derives the key from a secret that all engines of a cluster share.
    pub fn derive(secret: &[u8]) -> Self {
        Self(blake3::derive_key("stator 2026 kv transfer", secret))
    }
}

impl fmt::Debug for TransferKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransferKey")
    }
}
