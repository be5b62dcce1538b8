use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::Deserialize;

use crate::{
    error::{Error, ErrorKind, InFile},
    map::read_small,
};

const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 4096;

/// Which shard holds which tensor.
#[derive(Deserialize)]
pub(super) struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn read(path: &Path) -> Result<Index, Error> {
    let bytes = read_small(path, MAX_INDEX_BYTES)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| ErrorKind::malformed("weight_map", e)).in_file(path)?;
    let files: BTreeSet<_> = index.files().collect();
    if files.is_empty() || files.len() > MAX_SHARDS {
        let reason = format!("{} shards, expected 1 to {MAX_SHARDS}", files.len());
        return Err(ErrorKind::malformed("weight_map", reason)).in_file(path);
    }
    // An index must not lead out of its folder.
    match files.iter().find(|file| Path::new(file).file_name() != Some(file.as_ref())) {
        Some(file) => Err(ErrorKind::malformed("weight_map", format!("{file:?} is not a plain file name")))
            .in_file(path),
        None => Ok(index),
    }
}

impl Index {
    /// Shard file names, each once, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.weight_map.values().map(String::as_str).collect::<BTreeSet<_>>().into_iter()
    }

    /// Checks that each tensor is in the shard that the index names.
    pub(super) fn check<'a>(&self, file_of: impl Fn(&str) -> Option<&'a str>) -> Result<(), ErrorKind> {
        match self.weight_map.iter().find(|(tensor, file)| file_of(tensor) != Some(file)) {
            Some((tensor, file)) => Err(ErrorKind::malformed(
                tensor,
                format!("the index places it in {file}, which does not hold it"),
            )),
            None => Ok(()),
        }
    }
}
