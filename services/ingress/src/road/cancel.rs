//! Telling whoever may hold a request to drop it.

use messages::{
    InstanceId, Pool, Role, RunId,
    control::{Cancel, Control},
    subject,
};

use super::{desk::Desk, passage::Passage, trip::Trip};

/// A cancel and where it goes.
#[derive(Debug, PartialEq)]
pub struct Target {
    pub role: Role,
    /// All of the pool if it is not known which instance holds the request.
    pub instance: Option<InstanceId>,
}

/// Who may hold the current attempt. Once a run is known the router has done its part. `scattered`: the request was
/// offered to several tokenizers, any of which may have taken it.
pub fn targets(passage: &Passage, scattered: bool) -> Vec<Target> {
    let holders = passage.holders();
    let known = |holder: &Option<super::holders::Holder>| {
        holder.as_ref().filter(|_| !scattered).map(|holder| holder.instance.clone())
    };
    let mut targets = vec![Target { role: Role::Tokenizer, instance: known(&holders.tokenizer) }];
    if passage.run().is_none() || scattered {
        targets.push(Target { role: Role::Router, instance: known(&holders.router) });
    }
    targets.push(Target { role: Role::Decode, instance: known(&holders.engine) });
    targets
}

impl Desk {
    /// Cancels this attempt, and all before it, wherever they are.
    pub fn cancel(&self, trip: &Trip) {
        let (cancel, targets) = {
            let passage = trip.passage();
            let cancel =
                Cancel { request: trip.request, attempt: passage.attempt(), run: None, choice: None };
            (cancel, targets(&passage, trip.is_scattered()))
        };
        for Target { role, instance } in targets {
            self.send_cancel(role, &trip.passenger.pool, instance.as_ref(), &cancel);
        }
    }

    /// Cancels a second run of an attempt: its sender passes it on; which engine computes it may not be known.
    pub(super) fn cancel_stray(&self, trip: &Trip, run: RunId, from: &InstanceId, role: Role) {
        let attempt = trip.passage().attempt();
        let cancel = Cancel { request: trip.request, attempt, run: Some(run), choice: None };
        metrics::counter!("stator_ingress_stray_runs_total").increment(1);
        self.send_cancel(role, &trip.passenger.pool, Some(from), &cancel);
        if role != Role::Decode {
            self.send_cancel(Role::Decode, &trip.passenger.pool, None, &cancel);
        }
    }

    /// A run was attached to by way of another tokenizer: the one that followed it drops the request, and the run
    /// goes on. Were both to follow it, each would ask the engine for the frames that went to the other.
    pub(super) fn release(&self, trip: &Trip, run: RunId, tokenizer: &InstanceId) {
        let is_holder = {
            let passage = trip.passage();
            let holder = passage.holders().tokenizer.as_ref();
            holder.is_some_and(|holder| holder.instance == *tokenizer)
        };
        if !is_holder {
            self.let_go(trip, run, tokenizer);
        }
    }

    /// A tokenizer that follows a run is to do so no longer.
    pub(super) fn let_go(&self, trip: &Trip, run: RunId, tokenizer: &InstanceId) {
        let attempt = trip.passage().attempt();
        let cancel = Cancel { request: trip.request, attempt, run: Some(run), choice: None };
        self.send_cancel(Role::Tokenizer, &trip.passenger.pool, Some(tokenizer), &cancel);
    }

    pub(super) fn send_cancel(
        &self,
        role: Role,
        model: &Pool,
        instance: Option<&InstanceId>,
        cancel: &Cancel,
    ) {
        let ns = self.context.bus.namespace();
        let pool = pool_of(role, model);
        let subject = match instance {
            Some(instance) => subject::instance_control(ns, role, &pool, instance),
            None => subject::pool_control(ns, role, &pool),
        };
        if let Err(error) = self.context.bus.tell(subject, None, &Control::Cancel(cancel.clone())) {
            tracing::warn!(request = %cancel.request, %error, "cancel not sent");
        }
    }
}

/// The pool that instances of a role belong to, for a model.
pub fn pool_of(role: Role, model: &Pool) -> Pool {
    match role {
        Role::Router => Pool::routers(),
        _ => model.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use messages::{
        RequestId,
        frame::{Body, Frame},
    };

    use super::*;

    fn named(name: &str) -> InstanceId {
        name.parse().unwrap()
    }

    #[test]
    fn an_unknown_holder_is_sought_in_its_whole_pool() {
        let now = Instant::now();
        let mut passage = Passage::new(RequestId::mint(), 1, None, now);
        let all: Vec<_> = targets(&passage, false).into_iter().map(|target| target.instance).collect();
        assert_eq!(all, [None, None, None]);
        passage.handed_to(&named("tok-1"), now);
        let tokenizer = targets(&passage, false).remove(0);
        assert_eq!(tokenizer.instance, Some(named("tok-1")));
        assert_eq!(targets(&passage, true).remove(0).instance, None, "a second tokenizer may have it too");
    }

    #[test]
    fn with_a_run_the_router_is_left_alone() {
        let now = Instant::now();
        let mut passage = Passage::new(RequestId::mint(), 1, None, now);
        let frame = Frame {
            request: passage.request,
            attempt: passage.attempt(),
            run: Some(RunId(1)),
            body: Body::Accepted { instance: named("decode-1"), role: Role::Decode, prefill: None },
        };
        passage.frame(&named("decode-1"), Role::Decode, frame, now);
        let roles: Vec<_> = targets(&passage, false).into_iter().map(|t| (t.role, t.instance)).collect();
        assert_eq!(roles, [(Role::Tokenizer, None), (Role::Decode, Some(named("decode-1")))]);
    }
}
