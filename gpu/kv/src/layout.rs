use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Arrangement;

/// What the bytes of a page mean.
///
/// A page is `page_size` tokens over all layers, layer after layer without gaps: layer `l` lies at
/// `l * layer_bytes`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageLayout {
    /// Revision of the model that computes the values.
    pub revision: String,
    /// Element type and arrangement within a layer: that of an [`Arrangement`], or an executor's own words.
    pub name: String,
    /// Tokens.
    pub page_size: u32,
    pub layers: u32,
    /// Bytes of one layer of one page, keys and values.
    pub layer_bytes: u32,
}

impl PageLayout {
    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        u64::from(self.layers) * u64::from(self.layer_bytes)
    }

    /// Where keys and values are in a layer, if the name says it.
    pub fn arrangement(&self) -> Option<Arrangement> {
        self.name.parse().ok()
    }

    /// The other layouts of which pages of this one can be made ([`crate::Rearrangement`]).
    pub fn others(&self) -> Vec<Self> {
        let own = self.arrangement();
        let all = own.into_iter().flat_map(|own| own.all_of(self.page_size));
        let others = all.filter(|other| Some(*other) != own);
        others
            .map(|other| Self {
                name: other.to_string(),
                layer_bytes: other.layer_bytes(self.page_size as usize) as u32,
                ..self.clone()
            })
            .collect()
    }

    /// # Errors
    /// Both layouts, if `theirs` differs in any field.
    pub fn check(&self, theirs: &Self) -> Result<(), Mismatch> {
        if self == theirs {
            return Ok(());
        }
        Err(Mismatch { ours: Box::new(self.clone()), theirs: Box::new(theirs.clone()) })
    }
}

impl fmt::Display for PageLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, name, page_size, layers, layer_bytes } = self;
        write!(
            f,
            "{name} of revision {revision}, {page_size} tokens a page, {layers} layers of {layer_bytes} bytes"
        )
    }
}

/// Two ends whose pages mean different things.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kv pages differ: ours are {ours}; theirs are {theirs}")]
pub struct Mismatch {
    pub ours: Box<PageLayout>,
    pub theirs: Box<PageLayout>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> PageLayout {
        PageLayout {
            revision: "r1".into(),
            name: "f16".into(),
            page_size: 16,
            layers: 30,
            layer_bytes: 12_288,
        }
    }

    #[test]
    fn any_difference_is_refused_with_both_values() {
        let changes: [fn(&mut PageLayout); 5] = [
            |layout| layout.revision = "r2".into(),
            |layout| layout.name = "bf16".into(),
            |layout| layout.page_size = 32,
            |layout| layout.layers = 31,
            |layout| layout.layer_bytes = 6_144,
        ];
        assert_eq!(layout().check(&layout()), Ok(()));
        for change in changes {
            let mut theirs = layout();
            change(&mut theirs);
            let message = layout().check(&theirs).unwrap_err().to_string();
            assert!(message.contains(&layout().to_string()), "{message}");
            assert!(message.contains(&theirs.to_string()), "{message}");
        }
    }
}
