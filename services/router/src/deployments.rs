//! All deployments that this router knows.

use std::{collections::HashMap, sync::Arc};

use messages::Pool;
use parking_lot::Mutex;

use crate::{deployment::Deployment, settings::RouterSettings};

pub struct Deployments {
    settings: RouterSettings,
    by_pool: Mutex<HashMap<Pool, Arc<Deployment>>>,
}

impl Deployments {
    pub fn new(settings: RouterSettings) -> Self {
        Self { settings, by_pool: Mutex::default() }
    }

    /// The deployment of a pool, which is made if it is not known.
    pub fn of(&self, pool: &Pool) -> Arc<Deployment> {
        let mut by_pool = self.by_pool.lock();
        match by_pool.get(pool) {
            Some(deployment) => deployment.clone(),
            None => {
                let deployment = Deployment::new(pool.clone(), &self.settings);
                by_pool.insert(pool.clone(), deployment.clone());
                deployment
            }
        }
    }

    pub fn all(&self) -> Vec<Arc<Deployment>> {
        self.by_pool.lock().values().cloned().collect()
    }

    /// Drops those that nobody serves any more and that no request has to do with.
    pub fn forget_dead(&self) {
        self.by_pool
            .lock()
            .retain(|_, deployment| Arc::strong_count(deployment) > 1 || deployment.lock().is_served());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use messages::Role;

    use super::*;
    use crate::fixtures::lease;

    #[test]
    fn a_revision_is_forgotten_when_nobody_serves_it_and_nobody_waits_for_it() {
        let deployments = Deployments::new(RouterSettings::default());
        let [served, computed, awaited, dead] =
            ["served", "computed", "awaited", "dead"].map(|name| Pool::of_model(name, "00"));
        deployments.of(&served).lock().decode.sync(&[lease(Role::Decode, "a")]);
        deployments.of(&computed).lock().prefill.sync(&[lease(Role::Prefill, "p")]);
        let waits = deployments.of(&awaited);
        drop(deployments.of(&dead));
        let left = || -> HashSet<Pool> {
            deployments.forget_dead();
            deployments.all().iter().map(|deployment| deployment.pool.clone()).collect()
        };
        assert_eq!(left(), [served.clone(), computed.clone(), awaited].into());
        drop(waits);
        assert_eq!(left(), [served.clone(), computed.clone()].into());
        deployments.of(&served).lock().decode.sync(&[]);
        assert_eq!(left(), [computed].into());
    }
}
