//! What the routes share.

use std::sync::Arc;

use crate::{
    api::Seeds,
    edge::{departure::Sentry, gate::Gate, keys::Keys},
    figures::Figures,
    road::Road,
    settings::IngressSettings,
};

/// What the routes need.
pub struct Front {
    pub road: Arc<dyn Road>,
    pub keys: Keys,
    pub seeds: Seeds,
    pub gate: Arc<Gate>,
    pub sentry: Arc<Sentry>,
    pub figures: Arc<Figures>,
    pub settings: IngressSettings,
    /// Largest body that also fits the bus.
    pub max_body_bytes: usize,
}

impl Front {
    /// # Errors
    /// If the keys cannot be read.
    pub fn new(
        settings: IngressSettings,
        admin_key: Option<&str>,
        road: Arc<dyn Road>,
        bus_limit: usize,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            road,
            keys: Keys::load(&settings.api_key, settings.api_key_file.as_deref(), admin_key)?,
            gate: Gate::new(settings.max_concurrent_requests),
            seeds: Seeds::new(settings.random_seed),
            sentry: Arc::default(),
            figures: Figures::new(),
            max_body_bytes: settings.max_body_bytes.min(bus_limit),
            settings,
        })
    }
}
