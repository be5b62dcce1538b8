//! The clients: so many at once, each asking one request after the other until told to stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use stator_tests::http::Http;
use tokio::task::JoinSet;

use crate::{answer::Answer, requests::Mix};

/// Events after which a stream counts as under way.
const UNDER_WAY: usize = 5;
/// Longest that the first answers may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(120);

/// One request and what became of it.
#[derive(Debug)]
pub struct Outcome {
    /// Which of the mix.
    pub request: usize,
    pub began: Instant,
    /// When each event of a stream came; empty for whole answers.
    pub events: Vec<Instant>,
    pub answer: anyhow::Result<Answer>,
}

/// Clients at work.
pub struct Load {
    clients: JoinSet<Vec<Outcome>>,
    under_way: Arc<AtomicUsize>,
    streams: usize,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Starts `clients` clients that ask the requests of the mix in turn.
    pub fn start(http: &Http, mix: &Mix, clients: usize) -> Self {
        let (under_way, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut set = JoinSet::new();
        let mut streams = 0;
        for first in 0..clients {
            streams += usize::from(mix.request(first, 0)["stream"] == true);
            let client = Client { http: http.clone(), mix: mix.clone(), under_way: under_way.clone() };
            let stop = stop.clone();
            set.spawn(async move {
                let mut outcomes = Vec::new();
                let mut turn = 0;
                while outcomes.is_empty() || !stop.load(Ordering::Relaxed) {
                    // Each client goes through the whole mix, beginning with a request of its own.
                    outcomes.push(client.ask((first + turn) % clients, turn).await);
                    turn += 1;
                }
                outcomes
            });
        }
        Self { clients: set, under_way, streams, stop }
    }

    /// Waits until every first stream has shown some tokens.
    ///
    /// # Errors
    /// If they do not begin.
    pub async fn under_way(&self) -> anyhow::Result<()> {
        let give_up = Instant::now() + BEGIN_WITHIN;
        while self.under_way.load(Ordering::Relaxed) < self.streams {
            anyhow::ensure!(
                Instant::now() < give_up,
                "only {} of {} streams began",
                self.under_way.load(Ordering::Relaxed),
                self.streams
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// From now on each client only finishes what it has begun.
    pub fn ask_no_more(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets each client finish what it has begun.
    pub async fn finish(mut self) -> Vec<Outcome> {
        self.ask_no_more();
        let mut all = Vec::new();
        while let Some(outcomes) = self.clients.join_next().await {
            all.extend(outcomes.unwrap_or_default());
        }
        all
    }
}

struct Client {
    http: Http,
    mix: Mix,
    under_way: Arc<AtomicUsize>,
}

impl Client {
    async fn ask(&self, request: usize, turn: usize) -> Outcome {
        let (body, first) = (self.mix.request(request, turn), turn == 0);
        let began = Instant::now();
        let (answer, events) = if body["stream"] == true {
            self.stream(&body, first).await
        } else {
            (self.whole(&body).await, Vec::new())
        };
        Outcome { request, began, events, answer }
    }

    async fn stream(&self, body: &Value, first: bool) -> (anyhow::Result<Answer>, Vec<Instant>) {
        let mut seen = 0;
        let count = |events| {
            seen = events;
            if events == UNDER_WAY && first {
                self.under_way.fetch_add(1, Ordering::Relaxed);
            }
        };
        let events = self.http.stream("/v1/chat/completions", body, count).await;
        if seen < UNDER_WAY && first {
            self.under_way.fetch_add(1, Ordering::Relaxed);
        }
        match events {
            Ok(events) => (Answer::of_stream(&events), events.iter().map(|event| event.at).collect()),
            Err(error) => (Err(error), Vec::new()),
        }
    }

    async fn whole(&self, body: &Value) -> anyhow::Result<Answer> {
        let reply = self.http.post("/v1/chat/completions", body).await?;
        anyhow::ensure!(reply.status == 200, "status {}: {}", reply.status, reply.body);
        Answer::of_whole(&reply.json())
    }
}
