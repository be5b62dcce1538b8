//! An engine without a bus: what its settings say of scheduler and executor, to be measured.

use std::{collections::VecDeque, time::Instant};

use anyhow::Context;
use messages::block::{CacheScope, ClusterKey};
use models::{Batch, Executor, ExecutorSpec, PageCopy, SamplingParams, Ticket, TokenId};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use scheduler::{Choice, Event, Goal, Micros, Planned, Request, RunKey, Scheduler};

use crate::{
    executor::{Built, Target},
    service::card,
    settings::EngineSettings,
};

pub struct Offline {
    executor: Box<dyn Executor>,
    scheduler: Scheduler,
    key: ClusterKey,
    /// Weights that a step reads.
    pub weight_bytes: u64,
    /// Bytes a second that a GPU reads at best; nothing is said of other devices.
    pub read_rate: Option<f64>,
    /// Where the executor keeps each of the scheduler's pages: in no order, as in a pool that has long been in use.
    places: Vec<u32>,
    batch: Batch,
    tickets: VecDeque<Ticket>,
    began: Instant,
    runs: u64,
}

impl Offline {
    /// # Errors
    /// If the model cannot be read, or the device cannot compute it.
    pub fn new(settings: &EngineSettings) -> anyhow::Result<Self> {
        let (card, key) = (card(settings)?, ClusterKey::derive("offline"));
        let target = Target::resolve(settings.device);
        // While its memory is free.
        let read_rate = target.read_rate(settings)?;
        let Built { executor, weight_bytes, .. } = target.build(settings, &card, 0)?;
        let config = settings.scheduler(key.clone(), target.step_limits(settings));
        let scheduler = Scheduler::new(config, executor.spec());
        let mut places: Vec<u32> = (0..executor.spec().pages).collect();
        places.shuffle(&mut StdRng::seed_from_u64(0));
        let (batch, tickets, began, runs) = (Batch::default(), VecDeque::new(), Instant::now(), 0);
        Ok(Self { executor, scheduler, key, weight_bytes, read_rate, places, batch, tickets, began, runs })
    }

    pub fn spec(&self) -> &ExecutorSpec {
        self.executor.spec()
    }

    /// Takes in a greedy request that ends by its length.
    ///
    /// # Errors
    /// If it is refused.
    pub fn admit(&mut self, prompt: Vec<TokenId>, max_tokens: u32) -> anyhow::Result<RunKey> {
        self.runs += 1;
        let run = RunKey(self.runs);
        let request = Request {
            run,
            goal: Goal::Output,
            prompt: prompt.into(),
            choices: vec![Choice { index: 0, output: Vec::new() }],
            params: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            max_tokens,
            priority: 0,
            deadline: None,
            root: self.key.root(&CacheScope { revision: "", adapter: None, salt: None }),
            score_prompt_from: None,
            arrived: self.now(),
        };
        self.scheduler.admit(request).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        Ok(run)
    }

    /// Starts as many steps as may be in flight and waits for one; false if there was nothing to compute.
    ///
    /// # Errors
    /// If the executor refuses a step or is lost.
    pub fn step(&mut self, events: &mut Vec<Event>) -> anyhow::Result<bool> {
        loop {
            let now = self.now();
            match self.scheduler.plan(now, &mut self.batch, events) {
                Planned::Step { .. } => {
                    self.place_pages();
                    self.tickets.push_back(self.executor.submit(&self.batch)?);
                }
                Planned::Blocked => break,
                Planned::Idle => return Ok(false),
            }
        }
        let ticket = self.tickets.pop_front().context("the scheduler waits for no step")?;
        let outputs = self.executor.collect(ticket)?;
        self.scheduler.complete(outputs, events);
        Ok(true)
    }

    fn place_pages(&mut self) {
        let place = |page: &mut u32| *page = self.places[*page as usize];
        self.batch.pages.iter_mut().for_each(place);
        for PageCopy { from, to } in &mut self.batch.copies {
            place(from);
            place(to);
        }
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}
