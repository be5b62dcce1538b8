//! The task that looks after one request: hands it over, watches its holders, repairs, and cancels it in the end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use messages::{Fault, FaultCode};
use tokio::time::sleep_until;

use super::{
    desk::Desk,
    passage::{Check, Trouble},
    repair::{self, Record, Remedy},
    trip::Trip,
};

/// Being so much later than planned shows that this process stood still, and could hear nobody.
pub(super) const STOOD_STILL: Duration = Duration::from_millis(500);

/// Drives a trip until it has ended one way or the other.
pub async fn drive(desk: Arc<Desk>, trip: Arc<Trip>) {
    let deadline = trip.passenger.deadline;
    let outcome = tokio::select! {
        biased;
        outcome = travel(&desk, &trip) => outcome,
        () = trip.outlet.done().cancelled() => Err(Fault::new(FaultCode::Cancelled, "nobody waits for it any more")),
        () = until(deadline) => Err(Fault::new(FaultCode::DeadlineExceeded, "the request's deadline has passed")),
    };
    if let Err(fault) = outcome
        && !trip.passage().is_over()
    {
        tracing::debug!(request = %trip.request, label = trip.passenger.label, %fault, "cancelled");
        desk.cancel(&trip);
        trip.passage().end();
        trip.fail(fault);
    }
    desk.leave(trip.request);
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn travel(desk: &Arc<Desk>, trip: &Arc<Trip>) -> Result<(), Fault> {
    let mut record = Record::new(Instant::now(), desk.hold);
    let bus = &desk.context.bus;
    let mut epochs = bus.epochs();
    desk.send(trip, &record, None).await?;
    loop {
        let now = Instant::now();
        let seen = bus.epochs();
        let check = {
            let mut passage = trip.passage();
            if passage.is_over() {
                drop(passage);
                if trip.is_scattered() {
                    // Another tokenizer may have taken the request and be at work for nobody.
                    desk.cancel(trip);
                }
                return Ok(());
            }
            if seen.is_none() || seen != epochs {
                epochs = seen;
                passage.give_time(now);
            }
            passage.check(now)
        };
        match check {
            Check::At(when) => {
                tokio::select! {
                    () = trip.woken() => {}
                    () = sleep_until(when.into()) => {}
                }
                let now = Instant::now();
                if now.saturating_duration_since(when) > STOOD_STILL {
                    trip.passage().give_time(now);
                }
            }
            Check::Ask(questions) => {
                for question in questions {
                    tokio::spawn(desk.clone().ask(trip.clone(), question));
                }
            }
            Check::Trouble => repair(desk, trip, &mut record).await?,
        }
    }
}

async fn repair(desk: &Desk, trip: &Trip, record: &mut Record) -> Result<(), Fault> {
    let (trouble, unwatched, output) = {
        let mut passage = trip.passage();
        let Some(trouble) = passage.take_trouble() else { return Ok(()) };
        (trouble, passage.take_unwatched(), passage.output_tokens())
    };
    let asked = record.unwatched(unwatched, &trouble, output);
    for engine in desk.dead_of(&asked, trip).await {
        record.died(&engine, trip.passage().output_tokens());
    }
    let (remedy, attempt) = {
        let passage = trip.passage();
        (record.remedy(&trouble, &passage, Instant::now()), passage.attempt())
    };
    if let Trouble::Dead { instance, .. } = &trouble {
        desk.suspects.mark(instance);
    }
    let cause = repair::cause(&trouble);
    let mut follower = None;
    let attach = match remedy {
        Remedy::GiveUp(fault) => return Err(fault),
        Remedy::Replay(run_at) => {
            let mut passage = trip.passage();
            passage.mend(Instant::now());
            let tokenizer = passage.holders().tokenizer.as_ref();
            follower = tokenizer.map(|holder| (holder.instance.clone(), run_at.run));
            Some(run_at)
        }
        Remedy::Again { wait } => {
            desk.cancel(trip);
            trip.passage().next_attempt(Instant::now());
            tokio::time::sleep(wait).await;
            None
        }
    };
    let way = if attach.is_some() { "replay" } else { "again" };
    metrics::counter!("stator_ingress_repairs_total", "cause" => cause, "way" => way).increment(1);
    tracing::info!(request = %trip.request, label = trip.passenger.label, %attempt, cause, way, "repair");
    let _paced = desk.repairs.turn(&trip.passenger.pool).await;
    desk.send(trip, record, attach).await?;
    if let Some((tokenizer, run)) = follower {
        desk.release(trip, run, &tokenizer);
    }
    Ok(())
}
