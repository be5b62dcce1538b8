//! The cluster as the routes see it: models, and who serves them.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

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

/// How long one tokenizer may take over a tokenize or detokenize in the first round.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// The same in any round.
const ANSWER_WITHIN_AT_MOST: Duration = Duration::from_secs(10);
/// Pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

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
            bus_connected: self.context.bus.epochs().is_some(),
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
        let mut rounds = Rounds::new(self.hold, Instant::now());
        loop {
            match self.ask_round(pool, &question, rounds.wait).await {
                Err(fault) if rounds.go_on(&fault, Instant::now()) => tokio::time::sleep(ROUND_PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// Asks one tokenizer after the other, each for so long.
    async fn ask_round(&self, pool: &Pool, question: &ToTokenizer, wait: Duration) -> Result<Answer, Fault> {
        let (bus, envelope) = (&self.context.bus, Envelope::new(RequestId::mint()));
        let mut last =
            Fault::new(FaultCode::NoInstance, "no tokenizer of this model is alive").retry_after(1000);
        let (mut tokenizers, suspects) = (self.tokenizers(pool), &self.suspects);
        tokenizers.sort_by_key(|tokenizer| suspects.is_suspect(tokenizer));
        for tokenizer in tokenizers {
            let subject = subject::instance_requests(bus.namespace(), Role::Tokenizer, pool, &tokenizer);
            match bus.ask(subject, Some(&envelope), question, wait).await {
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

/// How a question goes round the tokenizers. It changes nothing there: where it or its answer may have got lost, it is
/// asked again.
#[derive(Debug)]
struct Rounds {
    /// No round begins later.
    until: Instant,
    /// How long each tokenizer may take; doubles with each round, for it may only be slow.
    wait: Duration,
}

impl Rounds {
    fn new(hold: Duration, now: Instant) -> Self {
        Self { until: now + hold, wait: ANSWER_WITHIN }
    }

    /// Whether there is another round after one that ended with `fault`.
    fn go_on(&mut self, fault: &Fault, now: Instant) -> bool {
        self.wait = (self.wait * 2).min(ANSWER_WITHIN_AT_MOST);
        // More of the same would not help those that have too much to do.
        fault.retryable() && fault.code != FaultCode::Overloaded && now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(30);

    #[test]
    fn a_question_without_answer_is_asked_for_as_long_as_requests_are_held() {
        let (start, lost) = (Instant::now(), Fault::new(FaultCode::NoInstance, "no answer"));
        let mut rounds = Rounds::new(HOLD, start);
        assert!(rounds.go_on(&lost, start + ANSWER_WITHIN));
        assert_eq!(rounds.wait, 2 * ANSWER_WITHIN);
        for _ in 0..100 {
            assert!(rounds.go_on(&lost, start + HOLD / 2), "nobody was there to ask");
        }
        assert_eq!(rounds.wait, ANSWER_WITHIN_AT_MOST);
        assert!(!rounds.go_on(&lost, start + HOLD));
    }

    #[test]
    fn what_would_be_answered_alike_is_not_asked_again() {
        let start = Instant::now();
        for code in [FaultCode::Overloaded, FaultCode::TooLarge, FaultCode::Internal] {
            assert!(!Rounds::new(HOLD, start).go_on(&Fault::new(code, "no"), start), "{code:?}");
        }
    }
}
