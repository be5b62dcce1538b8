use std::{collections::HashMap, sync::Arc};

use messages::Pool;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Repairs of a pool that are sent at once, so that one death does not become a storm.
const AT_ONCE: usize = 32;

/// Lets repairs go, each pool's apart: those of one may wait long for a tokenizer.
#[derive(Debug, Default)]
pub struct Pace {
    pools: Mutex<HashMap<Pool, Arc<Semaphore>>>,
}

impl Pace {
    /// Waits for the turn of a repair in a pool, which ends when the answer is dropped.
    pub async fn turn(&self, pool: &Pool) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut pools = self.pools.lock();
            pools.entry(pool.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone()
        };
        turns.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn repairs_of_one_pool_wait_for_each_other_and_not_for_those_of_another() {
        let (pace, one, other) = (Pace::default(), Pool::of_model("a", "00"), Pool::of_model("b", "00"));
        let mut taken: Vec<_> = (0..AT_ONCE).map(|_| pace.turn(&one).now_or_never().unwrap()).collect();
        assert!(pace.turn(&one).now_or_never().is_none());
        assert!(pace.turn(&other).now_or_never().is_some());
        taken.pop();
        assert!(pace.turn(&one).now_or_never().is_some());
    }
}
