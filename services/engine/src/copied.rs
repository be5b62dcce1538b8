use models::{Copying, ExecutorError};

/// So many pages that a device of tests has copied at once; their checksums are 0.
pub struct Copied(pub usize);

impl Copying for Copied {
    fn is_done(&self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Result<Vec<u64>, ExecutorError> {
        Ok(vec![0; self.0])
    }
}
