//! How many generating requests may be in progress.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::api::ApiError;

#[derive(Debug)]
pub struct Gate {
    limit: usize,
    inside: AtomicUsize,
}

/// A place inside, given back when dropped.
#[derive(Debug)]
pub struct Pass(Arc<Gate>);

impl Gate {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, inside: AtomicUsize::new(0) })
    }

    /// # Errors
    /// 429 if it is full.
    pub fn enter(self: &Arc<Self>) -> Result<Pass, ApiError> {
        let enter = |inside| (inside < self.limit).then_some(inside + 1);
        match self.inside.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter) {
            Ok(_) => Ok(Pass(self.clone())),
            Err(_) => Err(ApiError::too_many(self.limit)),
        }
    }

    /// Nobody is inside.
    pub fn is_empty(&self) -> bool {
        self.inside.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gate_lets_in_again_when_someone_leaves() {
        let gate = Gate::new(1);
        let pass = gate.enter().unwrap();
        assert_eq!(gate.enter().unwrap_err().status, 429);
        drop(pass);
        assert!(gate.is_empty());
        assert!(gate.enter().is_ok());
    }
}
