//! Handing a request to a tokenizer, and asking holders whether they live.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actors::{
    bus::AskError,
    custody::{ACCEPT_WITHIN, hand_over, in_turn, prefer},
};
use messages::{
    Fault, FaultCode, InstanceId, Role, codec,
    control::{Control, Pong},
    generate::{RunAt, ToTokenizer},
    subject,
};

use super::{
    cancel::pool_of,
    desk::Desk,
    drive::STOOD_STILL,
    passage::{Answer, Question, Unwatched},
    repair::Record,
    trip::Trip,
};

/// How long the tokenizers alive now are offered a request before the directory is read anew.
const OFFER_FOR: Duration = Duration::from_millis(600);
/// Pause where there is no tokenizer at all.
const EMPTY_PAUSE: Duration = Duration::from_millis(100);
/// A ping that is not answered by then finds a hung instance: with the silence before it, two seconds have passed.
const PING_WITHIN: Duration = Duration::from_millis(1400);
/// Nobody listening this often, this far apart, is dead.
const DEAD_AFTER: u32 = 2;
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Desk {
    /// Hands the trip's current attempt to a tokenizer, waiting for one to appear for as long as requests are held.
    pub(super) async fn send(
        &self,
        trip: &Trip,
        record: &Record,
        attach: Option<RunAt>,
    ) -> Result<(), Fault> {
        let message = ToTokenizer::Generate(Box::new(trip.compose(record, attach)));
        let body = codec::encode(&message);
        drop(message);
        loop {
            let fault = match self.offer(trip, &body).await {
                Ok(tokenizer) => {
                    trip.passage().handed_to(&tokenizer, Instant::now());
                    return Ok(());
                }
                Err(fault) => fault,
            };
            let (may_be_refused, over) = {
                let passage = trip.passage();
                (passage.may_be_refused(), passage.is_over())
            };
            match fault.code {
                _ if over => return Ok(()),
                // An earlier offer that seemed to fail was taken.
                FaultCode::Cancelled => return Ok(()),
                FaultCode::Overloaded if may_be_refused => return Err(fault),
                _ if fault.retryable() && Instant::now() < record.hold_until() => {
                    tokio::time::sleep(EMPTY_PAUSE).await;
                }
                _ => return Err(fault),
            }
        }
    }

    async fn offer(&self, trip: &Trip, body: &bytes::Bytes) -> Result<InstanceId, Fault> {
        let (bus, pool) = (&self.context.bus, &trip.passenger.pool);
        let now = Instant::now();
        let tokenizers = self.tokenizers(pool);
        let mut offers = 0;
        let choose = |tried: &[InstanceId]| prefer(&tokenizers, tried, &self.suspects);
        let message = |tokenizer: &InstanceId| {
            offers += 1;
            if offers > 1 {
                trip.scatter();
            }
            let subject = subject::instance_requests(bus.namespace(), Role::Tokenizer, pool, tokenizer);
            (subject, body.clone())
        };
        hand_over(bus, &self.suspects, &trip.envelope(now), now + OFFER_FOR, choose, message, |_| true).await
    }

    /// The tokenizers of a pool, beginning with another one each time.
    pub(super) fn tokenizers(&self, pool: &messages::Pool) -> Vec<InstanceId> {
        let ready = self.context.directory.instances(Role::Tokenizer, pool);
        in_turn(ready.iter().map(|lease| lease.instance.clone()).collect(), self.turn())
    }

    /// Asks a holder whether it lives and still has the request.
    pub(super) async fn ask(self: Arc<Self>, trip: Arc<Trip>, question: Question) {
        let bus = &self.context.bus;
        let epochs = bus.epochs();
        let answer = self.ping(&trip, &question).await;
        let in_time = question.asked.elapsed() < PING_WITHIN + STOOD_STILL;
        let judged = in_time && epochs.is_some() && bus.epochs() == epochs;
        let answer = if judged { answer } else { Answer::Unknown };
        if !trip.passage().answered(&question, &answer, Instant::now()) {
            return;
        }
        trip.wake();
        if matches!(answer, Answer::Dead) {
            if !self.suspects.is_suspect(&question.instance) {
                tracing::warn!(instance = %question.instance, role = %question.role, "no sign of life");
            }
            self.gave_no_sign(&question.instance, question.asked);
        }
    }

    /// Those of `engines` that are dead beyond doubt: at none of them anybody listens.
    pub(super) async fn dead_of(&self, engines: &[Unwatched], trip: &Trip) -> Vec<InstanceId> {
        let asked = engines.iter().map(|engine| async move {
            let question = Question {
                role: engine.role,
                instance: engine.instance.clone(),
                request: trip.request,
                run: None,
                asked: Instant::now(),
            };
            let lost = tokio::time::timeout(ACCEPT_WITHIN, self.ping(trip, &question)).await;
            matches!(lost, Ok(Answer::Dead)).then(|| engine.instance.clone())
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn ping(&self, trip: &Trip, question: &Question) -> Answer {
        let bus = &self.context.bus;
        let pool = pool_of(question.role, &trip.passenger.pool);
        let subject = subject::instance_control(bus.namespace(), question.role, &pool, &question.instance);
        let ping = Control::Ping { request: Some(question.request), run: question.run };
        let mut nobody = 0;
        loop {
            match bus.ask::<_, Pong>(subject.clone(), None, &ping, PING_WITHIN).await {
                Ok(pong) => return Answer::Pong(pong),
                Err(AskError::TimedOut(_)) => return Answer::Dead,
                Err(AskError::NoResponders(_)) => {
                    nobody += 1;
                    if nobody == DEAD_AFTER {
                        return Answer::Dead;
                    }
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
                Err(error) => {
                    tracing::debug!(instance = %question.instance, %error, "ping");
                    return Answer::Unknown;
                }
            }
        }
    }
}
