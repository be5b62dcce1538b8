use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Token ids as they travel: little-endian u32 bytes, no per-element coding.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TokenIds(Bytes);

impl TokenIds {
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.0.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn to_vec(&self) -> Vec<u32> {
        self.iter().collect()
    }
}

impl FromIterator<u32> for TokenIds {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self(ids.into_iter().flat_map(u32::to_le_bytes).collect())
    }
}

impl From<&[u32]> for TokenIds {
    fn from(ids: &[u32]) -> Self {
        ids.iter().copied().collect()
    }
}

impl std::fmt::Debug for TokenIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for TokenIds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_seq(self.iter())
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            return Vec::<u32>::deserialize(deserializer).map(|ids| ids.as_slice().into());
        }
        let bytes = Bytes::deserialize(deserializer)?;
        if bytes.len() % 4 == 0 {
            Ok(Self(bytes))
        } else {
            Err(de::Error::custom("token ids are not a multiple of 4 bytes"))
        }
    }
}
