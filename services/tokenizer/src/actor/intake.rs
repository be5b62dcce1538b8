//! From an accepted request to one in a router's custody.

use std::sync::atomic::Ordering;

use actors::{
    custody::{hand_over, in_turn, prefer},
    process::confined,
};
use messages::{
    Pool, TokenIds, codec,
    control::Cancel,
    generate::{Generate, Journal},
    submit::{ChoiceStart, Submit},
    text::{Detokenize, Tokenize},
};

use super::*;
use crate::{
    decode::{Choice, Settings, StopStrings},
    encode::Words,
    requests::{Prepared, Ticket},
};

/// How long routers are tried before the request goes back to ingress.
const SUBMIT_WITHIN: Duration = Duration::from_secs(2);

/// Work for the compute threads.
pub(super) enum Job {
    Generate(Box<Order>),
    Tokenize(Box<Tokenize>, Responder),
    Detokenize(Detokenize, Responder),
}

/// A request in this tokenizer's custody.
pub(super) struct Order {
    ticket: Ticket,
    envelope: Envelope,
    generate: Generate,
    taken: Instant,
}

impl TokenizerActor {
    /// Takes a request in, or says why not.
    pub(super) fn admit(&self, envelope: Envelope, generate: Generate) -> Result<(), Fault> {
        if self.context.life.is_draining() {
            return Err(Fault::new(FaultCode::Draining, "the tokenizer is draining"));
        }
        let (request, attempt) = (envelope.request, envelope.attempt);
        let (taken, attaches) = (Instant::now(), generate.attach.is_some());
        let ticket = {
            // A cancel is buried before it looks for the request.
            let mut requests = self.requests.lock();
            if self.tombstones.meets(request, attempt, None) {
                return Err(Fault::new(FaultCode::Cancelled, "the request was cancelled"));
            }
            requests.admit(request, attempt, &generate.ingress, attaches, taken)
        };
        let ticket =
            ticket.ok_or_else(|| Fault::new(FaultCode::Cancelled, "this attempt is held here already"))?;
        let order = Order { ticket, envelope, generate, taken };
        self.give(Job::Generate(Box::new(order))).map_err(|_| {
            let cancel = Cancel { request, attempt, run: None, choice: None };
            self.requests.lock().cancel(&cancel);
            overloaded()
        })
    }

    /// Queues a question that is answered at once.
    pub(super) fn answer(&self, job: Job) {
        if let Err(Full(Job::Tokenize(_, reply) | Job::Detokenize(_, reply))) = self.give(job) {
            metrics::counter!("stator_tokenizer_refusals_total").increment(1);
            reply.send(&Answer::Failed(overloaded()));
        }
    }

    /// What a compute thread does.
    pub(super) fn work(&self, job: Job, words: &mut Words) {
        match job {
            Job::Generate(order) => self.prepare(*order, words),
            Job::Tokenize(request, reply) => {
                let answer = confined(|| self.model.tokenize(&request, words));
                reply.send(&answer.unwrap_or_else(|| Answer::Failed(panicked(words))));
            }
            Job::Detokenize(request, reply) => reply.send(&self.model.detokenize(&request)),
        }
    }

    fn prepare(&self, order: Order, words: &mut Words) {
        if !self.requests.lock().holds(order.ticket) {
            return;
        }
        metrics::histogram!("stator_tokenizer_queue_seconds").record(order.taken.elapsed().as_secs_f64());
        let mut actions = Vec::new();
        match self.prompt(&order, words) {
            Ok((prompt, max_tokens)) => {
                let prepared = self.replay(&order.generate, &prompt);
                let submit = self.submit(&order.generate, prompt, max_tokens, &prepared.choices);
                let attaches = prepared.attach.is_some();
                let wanted = self.requests.lock().prepared(order.ticket, prepared, &mut actions);
                self.perform(actions);
                self.outbox.flush(0, None);
                if wanted && !attaches {
                    self.dispatch(order, submit);
                }
            }
            Err(fault) => {
                metrics::counter!("stator_tokenizer_requests_total", "outcome" => "invalid").increment(1);
                tracing::debug!(request = %order.ticket.request, %fault, "prompt refused");
                self.requests.lock().fail(order.ticket, fault, &mut actions);
                self.perform(actions);
                self.outbox.flush(0, None);
            }
        }
    }

    /// The prompt in tokens, and how many a choice may have.
    fn prompt(&self, order: &Order, words: &mut Words) -> Result<(TokenIds, u32), Fault> {
        let generate = &order.generate;
        if let Some(journal) = &generate.journal {
            let max_tokens = self.model.room(generate, journal.prompt.len())?;
            return Ok((journal.prompt.clone(), max_tokens));
        }
        let began = Instant::now();
        let encode = || self.model.prompt(&generate.input, generate.text.add_special_tokens, words);
        let prompt = confined(encode).unwrap_or_else(|| Err(panicked(words)))?;
        metrics::histogram!("stator_tokenizer_encode_seconds").record(began.elapsed().as_secs_f64());
        metrics::histogram!("stator_tokenizer_prompt_tokens").record(prompt.ids.len() as f64);
        metrics::counter!("stator_tokenizer_prompt_tokens_total").increment(prompt.ids.len() as u64);
        metrics::counter!("stator_tokenizer_cached_tokens_total").increment(prompt.cached as u64);
        let max_tokens = self.model.room(generate, prompt.ids.len())?;
        Ok((prompt.ids.as_slice().into(), max_tokens))
    }

    /// Makes the choices and brings them to where the journal left them.
    fn replay(&self, generate: &Generate, prompt: &TokenIds) -> Prepared {
        let stops = StopStrings::new(&generate.text.stop);
        let settings = Settings {
            text: &generate.text,
            stops: &stops,
            min_tokens: generate.sampling.min_tokens,
            begins: self.model.shows_nothing(prompt, &generate.text),
        };
        let pieces = &self.model.pieces;
        let fresh = |index| Choice::new(index, pieces, &settings);
        let mut replayed = Vec::new();
        let choices = match &generate.journal {
            None => (0..generate.n).map(fresh).collect(),
            Some(Journal { choices, .. }) => choices
                .iter()
                .map(|journal| {
                    let mut choice = fresh(journal.index);
                    replayed.extend(choice.replay(pieces, &journal.output, journal.delivered));
                    choice
                })
                .collect(),
        };
        Prepared {
            rendered: generate.journal.is_none().then(|| prompt.clone()),
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            choices,
            replayed,
            attach: generate.attach.clone(),
        }
    }

    fn submit(&self, generate: &Generate, prompt: TokenIds, max_tokens: u32, choices: &[Choice]) -> Submit {
        let journal = generate.journal.as_ref().map(|journal| journal.choices.as_slice()).unwrap_or_default();
        let output = |index| journal.iter().find(|choice| choice.index == index).map(|c| c.output.clone());
        let live = choices.iter().filter(|choice| !choice.ended());
        Submit {
            run: None,
            pool: self.context.me.pool.clone(),
            prompt,
            choices: live
                .map(|c| ChoiceStart { index: c.index, output: output(c.index).unwrap_or_default() })
                .collect(),
            sampling: generate.sampling.clone(),
            max_tokens,
            open_ended: generate.max_tokens.is_none(),
            score_prompt_from: generate.score_prompt_from,
            priority: generate.priority,
            cache_salt: generate.cache_salt.clone(),
            routing: generate.routing.clone(),
            dispatch: None,
            prefill: None,
            prefill_patience_ms: 0,
            tokenizer: self.context.me.instance.clone(),
            ingress: generate.ingress.clone(),
            avoid: generate.avoid.clone(),
            deaths: generate.deaths,
        }
    }

    fn dispatch(&self, order: Order, submit: Submit) {
        let Some(itself) = self.itself.upgrade() else { return };
        let task = async move { itself.hand_on(order, submit).await };
        self.context.tasks.spawn_on(task, &self.runtime);
    }

    /// Gives the request into a router's custody.
    async fn hand_on(&self, order: Order, submit: Submit) {
        let mut envelope = order.envelope;
        let spent = u64::try_from(order.taken.elapsed().as_millis()).unwrap_or(u64::MAX);
        envelope.deadline_ms = envelope.deadline_ms.map(|ms| ms.saturating_sub(spent));
        let outcome = self.offer(&envelope, &submit).await;
        let is_taken = matches!(&outcome, Ok(_) | Err(Fault { code: FaultCode::Cancelled, .. }));
        let held = {
            let mut requests = self.requests.lock();
            if is_taken {
                requests.handed_on(order.ticket);
            }
            requests.holds(order.ticket)
        };
        let name = match outcome {
            Ok(router) => {
                tracing::debug!(request = %envelope.request, label = envelope.label, %router, "submitted");
                if !held {
                    // Cancelled while it was on its way; if it has ended instead, there is nothing left to cancel.
                    self.cancel_at_router(&router, &envelope);
                }
                "submitted"
            }
            // An earlier offer that seemed to fail was taken, or a cancel overtook it.
            Err(Fault { code: FaultCode::Cancelled, .. }) => "submitted",
            Err(fault) => {
                tracing::debug!(request = %envelope.request, label = envelope.label, %fault, "no router took it");
                let mut actions = Vec::new();
                self.requests.lock().fail(order.ticket, fault, &mut actions);
                self.perform(actions);
                self.outbox.flush(0, None);
                "failed"
            }
        };
        metrics::counter!("stator_tokenizer_requests_total", "outcome" => name).increment(1);
    }

    async fn offer(&self, envelope: &Envelope, submit: &Submit) -> Result<InstanceId, Fault> {
        let now = Instant::now();
        if envelope.deadline_ms == Some(0) {
            return Err(Fault::new(FaultCode::DeadlineExceeded, "the deadline of the request has passed"));
        }
        let (bus, body) = (&self.context.bus, codec::encode(submit));
        let left = envelope.deadline_ms.map_or(SUBMIT_WITHIN, Duration::from_millis);
        let choose = |tried: &[InstanceId]| prefer(&self.routers(submit), tried, &self.suspects);
        let message = |router: &InstanceId| {
            let pool = Pool::routers();
            (subject::instance_requests(bus.namespace(), Role::Router, &pool, router), body.clone())
        };
        hand_over(bus, &self.suspects, envelope, now + left.min(SUBMIT_WITHIN), choose, message, |_| true)
            .await
    }

    fn routers(&self, submit: &Submit) -> Vec<InstanceId> {
        let ready = self.context.directory.instances(Role::Router, &Pool::routers());
        let routers = ready.iter().map(|lease| lease.instance.clone()).collect();
        ordered(routers, self.turn.fetch_add(1, Ordering::Relaxed), submit)
    }

    fn cancel_at_router(&self, router: &InstanceId, envelope: &Envelope) {
        let cancel = Cancel { request: envelope.request, attempt: envelope.attempt, run: None, choice: None };
        if self.tombstones.meets(cancel.request, cancel.attempt, None) {
            let pool = Pool::routers();
            let subject =
                subject::instance_control(self.context.bus.namespace(), Role::Router, &pool, router);
            let _ = self.context.bus.tell(subject, None, &Control::Cancel(cancel));
        }
    }
}

/// Routers beginning with another one each turn, those to be avoided last. What engines may die of goes to the same one from
/// every tokenizer: an engine has one such request at a time, and until it reports that, only the router knows which sent it.
fn ordered(routers: Vec<InstanceId>, turn: usize, submit: &Submit) -> Vec<InstanceId> {
    let mut routers = in_turn(routers, turn);
    if submit.maybe_poison() {
        routers.sort();
    }
    routers.sort_by_key(|router| submit.avoid.contains(router));
    routers
}

/// What it left half done of the thread's words goes with it.
fn panicked(words: &mut Words) -> Fault {
    *words = Words::default();
    Fault::new(
        FaultCode::Internal,
        "the prompt cannot be turned into tokens: its template or vocabulary fails on it",
    )
}

fn overloaded() -> Fault {
    Fault::new(FaultCode::Overloaded, "too many prompts wait to be tokenized").retry_after(RETRY_AFTER_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: [&str; 3]) -> Vec<InstanceId> {
        names.map(|name| name.parse().expect("a name")).into()
    }

    #[test]
    fn routers_take_turns_but_for_what_engines_may_die_of() {
        let known = named(["router-2", "router-3", "router-1"]);
        let [tokenizer, ingress, ..] = &named(["tokenizer-1", "ingress-1", "x-1"])[..] else {
            unreachable!()
        };
        let pool = Pool::of_model("m", "00");
        let mut submit = Submit::new(pool, TokenIds::default(), tokenizer.clone(), ingress.clone());
        submit.deaths = Submit::POISON_AFTER - 1;
        let first =
            |submit: &Submit| [0, 1, 2].map(|turn| ordered(known.clone(), turn, submit)[0].to_string());
        assert_eq!(first(&submit), ["router-2", "router-3", "router-1"]);
        submit.deaths = Submit::POISON_AFTER;
        assert_eq!(first(&submit), ["router-1"; 3]);
        submit.avoid = vec!["router-1".parse().expect("a name")];
        assert_eq!(first(&submit), ["router-2"; 3]);
    }
}
