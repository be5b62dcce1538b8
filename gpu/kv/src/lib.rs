//! The KV cache's bookkeeping: which page belongs to whom. No device memory lives here; a page is a number that an
//! executor and a scheduler agree on.

mod pool;

pub use pool::{PageId, PagePool};
