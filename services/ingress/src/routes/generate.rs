//! The routes that generate: chat, completions, and SGLang's native one.

use std::time::{Duration, Instant};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header,
    web::{Data, Payload},
};
use messages::{generate::Generate, lease::ModelCard};
use serde_json::Value;

use super::prelude::Wants;
use crate::{
    answer::{self, EventStream, Heading, Script},
    api::{self, ApiError, Ask, Fields, Form, model},
    edge::{
        departure::{ClientSocket, Watch},
        gate::Pass,
        label::Label,
        routing, trace,
    },
    figures::Stopwatch,
    front::Front,
    road::{Journey, Manner, Passenger},
};

/// How long a client is willing to wait, milliseconds.
const DEADLINE: &str = "x-request-deadline-ms";
/// `1` asks for the time at which each token was sampled.
const TIMING: &str = "x-stator-timing";

/// The form of what is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Asked {
    Chat,
    Completions,
    Native,
}

impl Asked {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Native => "/generate",
        }
    }

    fn read(self, mut fields: Fields, front: &Front) -> Result<(Ask, std::sync::Arc<ModelCard>), ApiError> {
        let card = match self {
            Self::Native => model::named_or_only(&mut fields, &*front.road)?,
            Self::Chat | Self::Completions => model::named(&mut fields, &*front.road)?,
        };
        let ask = match self {
            Self::Chat => api::chat::read(fields, &card, &front.seeds)?,
            Self::Completions => api::completion::read(fields, &card, &front.seeds)?,
            Self::Native => api::native::read(fields, &card, &front.seeds)?,
        };
        Ok((ask, card))
    }
}

/// What lasts as long as the answer is being written.
type Guard = (Pass, Option<Watch>);

enum Answer {
    Whole(Value),
    Stream(Box<(Journey, Script, Guard)>),
}

pub async fn serve(
    route: Asked,
    request: HttpRequest,
    payload: Payload,
    front: Data<Front>,
) -> Result<HttpResponse, ApiError> {
    let mut stopwatch = Stopwatch::start(&front.figures, route.path(), &Label::of(&request).0);
    match answer(route, &request, payload, &front, &mut stopwatch).await {
        Ok(Answer::Whole(body)) => {
            stopwatch.finish(200);
            Ok(HttpResponse::Ok().json(body))
        }
        Ok(Answer::Stream(parts)) => {
            let (journey, script, guard) = *parts;
            Ok(HttpResponse::Ok()
                .content_type("text/event-stream; charset=utf-8")
                .insert_header((header::CACHE_CONTROL, "no-cache"))
                .insert_header(("x-accel-buffering", "no"))
                .streaming(EventStream::new(journey, script, stopwatch, guard)))
        }
        Err(error) => {
            stopwatch.finish(error.status.as_u16());
            metrics::counter!("stator_ingress_refusals_total", "code" => error.code.unwrap_or(""))
                .increment(1);
            Err(error)
        }
    }
}

async fn answer(
    route: Asked,
    request: &HttpRequest,
    payload: Payload,
    front: &Data<Front>,
    stopwatch: &mut Stopwatch,
) -> Result<Answer, ApiError> {
    let arrived = Instant::now();
    if front.road.is_draining() {
        return Err(ApiError::draining());
    }
    let pass = front.gate.enter()?;
    let fields = super::fields(request, payload, front).await?;
    let (ask, card) = route.read(fields, front)?;
    let Ask { mut prompts, stream, form } = ask;
    let hints = routing::read(request)?;
    prompts.iter_mut().for_each(|prompt| prompt.routing = hints.clone());
    let label = Label::of(request);
    let n = prompts.first().map_or(1, |prompt| prompt.n);
    if prompts.iter().any(|prompt| prompt.n != n) {
        let message = "Invalid 'sampling_params': 'n' must be the same for all prompts.";
        return Err(ApiError::invalid("sampling_params", "invalid_value", message));
    }
    check_priority(&prompts, front.settings.max_priority)?;
    let timing = request.headers().get(TIMING).is_some_and(|value| value == "1");
    let heading = Heading::new(label.0.clone(), &card, n, prompts.len(), timing);
    let wants = Wants::of(&form, &prompts);
    let passenger = passenger(request, &card, &label, arrived)?;
    let manner = Manner { stream, ids: form.shows_ids() };
    let mut journey = front.road.set_out(prompts, passenger, manner);
    routing::keep(request, journey.requests());
    let socket = request.conn_data::<ClientSocket>();
    let watch = socket.map(|socket| front.sentry.watch(socket, journey.done().clone()));
    if stream {
        journey.opened().await?;
        let prelude = wants.before(&mut journey, &card, front).await?;
        let script = Script::new(&form, heading, prelude);
        return Ok(Answer::Stream(Box::new((journey, script, (pass, watch)))));
    }
    let whole = collect(journey, &form, &heading, wants, &card, front, stopwatch).await;
    drop((pass, watch));
    whole.map(Answer::Whole)
}

/// Priorities are strict: whoever may ask for any can keep everybody else waiting.
fn check_priority(prompts: &[Generate], most: i32) -> Result<(), ApiError> {
    match prompts.iter().map(|prompt| prompt.priority).find(|priority| *priority > most) {
        Some(priority) => {
            let message = format!(
                "Invalid 'priority': integer above maximum value. Expected a value <= {most}, but got {priority} instead."
            );
            Err(ApiError::invalid("priority", "integer_above_max_value", message))
        }
        None => Ok(()),
    }
}

async fn collect(
    mut journey: Journey,
    form: &Form,
    heading: &Heading,
    wants: Wants,
    card: &ModelCard,
    front: &Data<Front>,
    stopwatch: &mut Stopwatch,
) -> Result<Value, ApiError> {
    let mut events = Vec::new();
    while journey.more(&mut events).await? {}
    events.iter().for_each(|event| stopwatch.event(event));
    let prelude = wants.resolve(&mut events, card, front).await?;
    Ok(answer::whole(form, heading, &prelude, events))
}

fn passenger(
    request: &HttpRequest,
    card: &ModelCard,
    label: &Label,
    arrived: Instant,
) -> Result<Passenger, ApiError> {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let deadline = match header(DEADLINE).map(str::parse::<u64>) {
        None => None,
        Some(Ok(ms)) if ms > 0 => arrived.checked_add(Duration::from_millis(ms)),
        Some(_) => {
            let message = format!("Invalid header '{DEADLINE}': expected a positive number of milliseconds.");
            return Err(ApiError::invalid(DEADLINE, "invalid_value", message));
        }
    };
    Ok(Passenger {
        pool: card.pool(),
        deadline,
        traceparent: Some(trace::forward(header("traceparent"))),
        label: Some(label.0.clone()),
    })
}
