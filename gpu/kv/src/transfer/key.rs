use std::fmt;

/// Proves to both ends of a connection that the other is of the same cluster. It does not encrypt.
#[derive(Clone)]
pub struct TransferKey([u8; 32]);

impl TransferKey {
    /// Derives the key from a secret that all engines of a cluster share.
    pub fn derive(secret: &[u8]) -> Self {
        Self(blake3::derive_key("stator 2026 kv transfer", secret))
    }

    /// Keyed BLAKE3 over `role` and fields of fixed length. Comparing it takes the same time whatever it is.
    pub(super) fn proof(&self, role: &[u8], fields: &[&[u8]]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(role);
        for field in fields {
            hasher.update(field);
        }
        hasher.finalize()
    }
}

impl fmt::Debug for TransferKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransferKey")
    }
}
