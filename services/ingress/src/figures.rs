//! What is measured of each request.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use messages::frame::Usage;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::road::Event;

/// Handles of metrics that are recorded for every token.
#[derive(Debug)]
pub struct Figures {
    ttft: Histogram,
    itl: Histogram,
    transit: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    output_tokens: Counter,
    in_flight: Gauge,
}

impl Figures {
    /// Call after the recorder has started.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            ttft: histogram!("stator_ingress_ttft_seconds"),
            itl: histogram!("stator_ingress_itl_seconds"),
            transit: histogram!("stator_ingress_token_transit_seconds"),
            prompt_tokens: counter!("stator_ingress_prompt_tokens_total"),
            cached_tokens: counter!("stator_ingress_cached_tokens_total"),
            output_tokens: counter!("stator_ingress_output_tokens_total"),
            in_flight: gauge!("stator_ingress_in_flight"),
        })
    }

    fn used(&self, usage: &Usage) {
        self.prompt_tokens.increment(usage.prompt_tokens.into());
        self.cached_tokens.increment(usage.cached_tokens.into());
        self.output_tokens.increment(usage.output_tokens.into());
    }
}

/// Measures one generating request from its arrival to its end.
#[derive(Debug)]
pub struct Stopwatch {
    figures: Arc<Figures>,
    route: &'static str,
    label: String,
    started: Instant,
    last_token: Option<Instant>,
    usage: Usage,
    finished: bool,
}

impl Stopwatch {
    pub fn start(figures: &Arc<Figures>, route: &'static str, label: &str) -> Self {
        figures.in_flight.increment(1.0);
        Self {
            figures: figures.clone(),
            route,
            label: label.to_owned(),
            started: Instant::now(),
            last_token: None,
            usage: Usage::default(),
            finished: false,
        }
    }

    /// A token has come.
    pub fn has_begun(&self) -> bool {
        self.last_token.is_some()
    }

    /// Takes note of an event as it is written.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Delta(delta) if delta.tokens > 0 => {
                let now = Instant::now();
                match self.last_token.replace(now) {
                    None => self.figures.ttft.record(now.duration_since(self.started)),
                    Some(last) => self.figures.itl.record(now.duration_since(last)),
                }
                self.transit(delta.sampled_us);
            }
            Event::Closed { usage, .. } => {
                self.figures.used(usage);
                self.usage.prompt_tokens += usage.prompt_tokens;
                self.usage.cached_tokens += usage.cached_tokens;
                self.usage.output_tokens += usage.output_tokens;
            }
            _ => {}
        }
    }

    fn transit(&self, sampled_us: u64) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_us = u64::try_from(since_epoch.as_micros()).unwrap_or(0);
        // Clocks of two hosts may differ by more than a token takes.
        if sampled_us > 0 && now_us >= sampled_us {
            self.figures.transit.record((now_us - sampled_us) as f64 / 1e6);
        }
    }

    /// The request ended as this status says; a failed stream counts by the status that its fault would have had.
    pub fn finish(&mut self, status: u16) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let (route, seconds) = (self.route, self.started.elapsed().as_secs_f64());
        counter!("stator_ingress_requests_total", "route" => route, "status" => status.to_string())
            .increment(1);
        histogram!("stator_ingress_request_seconds", "route" => route).record(seconds);
        self.figures.in_flight.decrement(1.0);
        let Usage { prompt_tokens, cached_tokens, output_tokens } = self.usage;
        let label = &self.label;
        tracing::info!(label, route, status, seconds, prompt_tokens, cached_tokens, output_tokens, "request");
    }
}

impl Drop for Stopwatch {
    fn drop(&mut self) {
        // Neither answered nor failed: nobody waited for the end.
        self.finish(499);
    }
}
