//! The cluster as the routes see it: models, and who serves them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use actors::bus::AskError;
use messages::{
    Envelope, Fault, FaultCode, Pool, RequestId, Role,
    generate::{Generate, ToTokenizer},
    lease::ModelCard,
    subject,
    text::Answer,
};
use serde::Serialize;

use super::{
    Road,
    desk::Desk,
    drive,
    journey::Journey,
    outlet::{Manner, Outlet},
    trip::{Passenger, Trip},
};

/// How long one tokenizer may take over a tokenize or detokenize.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Who is alive.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Survey {
    pub models: Vec<ModelState>,
    /// Instances alive, by role.
    pub instances: std::collections::BTreeMap<String, usize>,
    pub bus_connected: bool,
    pub draining: bool,
    pub requests_live: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct ModelState {
    pub model: String,
    pub ready: bool,
    /// Roles of which no instance is ready.
    pub missing: Vec<&'static str>,
}

impl Survey {
    /// Why no chat can be answered; empty if one can.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.draining {
            reasons.push("this ingress is draining".to_owned());
        }
        if !self.bus_connected {
            reasons.push("not connected to nats".to_owned());
        }
        if self.models.is_empty() {
            reasons.push("no model is served: no tokenizer or engine is alive".to_owned());
        } else if !self.models.iter().any(|model| model.ready) {
            reasons.extend(self.models.iter().map(|model| {
                format!("model '{}' has no ready instance of: {}", model.model, model.missing.join(", "))
            }));
        }
        reasons
    }
}

impl Road for Arc<Desk> {
    fn set_out(&self, prompts: Vec<Generate>, passenger: Passenger, manner: Manner) -> Journey {
        let choices: usize = prompts.iter().map(|generate| generate.n as usize).sum();
        let outlet = Arc::new(Outlet::new(prompts.len(), choices, manner, self.backlog.clone()));
        let mut requests = Vec::with_capacity(prompts.len());
        let mut choices_before = 0;
        for (prompt, mut generate) in prompts.into_iter().enumerate() {
            generate.ingress = self.context.me.instance.clone();
            let n = generate.n;
            let trip = Trip::new(generate, prompt, choices_before, passenger.clone(), outlet.clone());
            let trip = Arc::new(trip);
            choices_before += n;
            requests.push(trip.request);
            self.enter(trip.clone());
            self.context.tasks.spawn_on(drive::drive(self.clone(), trip), &self.runtime);
        }
        Journey::new(outlet, requests)
    }

    fn ask(
        &self,
        pool: &Pool,
        question: ToTokenizer,
    ) -> Pin<Box<dyn Future<Output = Result<Answer, Fault>>>> {
        let (desk, pool) = (self.clone(), pool.clone());
        Box::pin(async move { desk.ask_tokenizer(&pool, question).await })
    }

    fn model(&self, name: &str) -> Option<Arc<ModelCard>> {
        self.context.directory.model(name)
    }

    fn models(&self) -> Vec<Arc<ModelCard>> {
        self.context.directory.models().to_vec()
    }

    fn survey(&self) -> Survey {
        let directory = &self.context.directory;
        let models = directory.models();
        let models = models.iter().map(|card| {
            let pool = card.pool();
            let lacks = |role: Role, pool: &Pool| directory.instances(role, pool).is_empty();
            let needs = [(Role::Tokenizer, &pool), (Role::Router, &Pool::routers()), (Role::Decode, &pool)];
            let missing: Vec<_> = needs
                .into_iter()
                .filter(|(role, pool)| lacks(*role, pool))
                .map(|(r, _)| r.as_str())
                .collect();
            ModelState { model: card.name.clone(), ready: missing.is_empty(), missing }
        });
        let models = models.collect();
        let mut instances = std::collections::BTreeMap::new();
        for lease in directory.all() {
            *instances.entry(lease.role.to_string()).or_insert(0) += 1;
        }
        Survey {
            models,
            instances,
            bus_connected: self.context.bus.cut_off().is_none(),
            draining: self.is_draining(),
            requests_live: self.live(),
        }
    }

    fn is_draining(&self) -> bool {
        self.context.life.is_draining()
    }

    fn metrics(&self) -> String {
        self.context.metrics.render()
    }
}

impl Desk {
    async fn ask_tokenizer(&self, pool: &Pool, question: ToTokenizer) -> Result<Answer, Fault> {
        let (bus, envelope) = (&self.context.bus, Envelope::new(RequestId::mint()));
        let mut last =
            Fault::new(FaultCode::NoInstance, "no tokenizer of this model is alive").retry_after(1000);
        let (mut tokenizers, suspects) = (self.tokenizers(pool), &self.suspects);
        tokenizers.sort_by_key(|tokenizer| suspects.is_suspect(tokenizer));
        for tokenizer in tokenizers {
            let subject = subject::instance_requests(bus.namespace(), Role::Tokenizer, pool, &tokenizer);
            match bus.ask(subject, Some(&envelope), &question, ANSWER_WITHIN).await {
                Ok(Answer::Failed(fault)) if fault.retryable() => last = fault,
                Ok(Answer::Failed(fault)) => return Err(fault),
                Ok(answer) => return Ok(answer),
                Err(AskError::TooLarge { size, limit }) => {
                    let text =
                        format!("the request takes {size} bytes on the bus, which carries {limit} at most");
                    return Err(Fault::new(FaultCode::TooLarge, text));
                }
                Err(error) => {
                    suspects.mark(&tokenizer);
                    last = Fault::new(FaultCode::NoInstance, error.to_string()).retry_after(1000);
                }
            }
        }
        Err(last)
    }
}
