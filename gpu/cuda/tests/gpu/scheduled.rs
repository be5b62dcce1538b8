//! Steps as the scheduler plans them: prompts in chunks beside sequences that decode, cached prefixes, choices that fork,
//! preemptions, cancels. Each choice must have the bits that it has alone, computed from scratch.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use cuda::{CudaConfig, CudaExecutor, KvBudget, KvFormat, WeightFormat};
use messages::block::{CacheScope, ClusterKey};
use models::{Batch, DType, Executor, Model, Ticket, synthetic};
use scheduler::{Choice, Event, Goal, Micros, Planned, RunKey, Scheduler, SchedulerConfig};

use crate::{
    company::{Request, Run, Text, random_request},
    harness::{Case, Context, Failure, Outcome, ensure},
    random::Random,
    setup::{config, failure, random_spec},
};

pub fn cases() -> Vec<Case> {
    vec![Case { name: "scheduler: its steps give what computing from scratch gives", run: scheduled }]
}

/// No bucket of the captured steps.
const SLOTS: u32 = 27;
/// Too few for that many sequences, so that some are pushed out.
const PAGES: u32 = 60;
const REQUESTS: usize = 60;
const COMPARED: usize = 25;
const LEAST_STEPS: u64 = 2000;
const SHARED_PREFIX: usize = 200;

/// A scheduler and its executor, and what has come of it.
pub struct Served<'a> {
    executor: &'a mut dyn Executor,
    scheduler: Scheduler,
    key: ClusterKey,
    batch: Batch,
    tickets: VecDeque<Ticket>,
    events: Vec<Event>,
    now: Micros,
    steps: u64,
    runs: u64,
    live: BTreeSet<RunKey>,
    cancelled: BTreeSet<RunKey>,
    /// By run and choice.
    pub texts: BTreeMap<(RunKey, u32), Text>,
    cached_tokens: u32,
}

impl<'a> Served<'a> {
    pub fn new(executor: &'a mut dyn Executor) -> Self {
        let key = ClusterKey::derive("test");
        let config = SchedulerConfig {
            chunked_prefill_size: 100,
            max_prefill_tokens: 200,
            step_target: Duration::ZERO,
            ..SchedulerConfig::new(key.clone())
        };
        Self {
            scheduler: Scheduler::new(config, executor.spec()),
            executor,
            key,
            batch: Batch::default(),
            tickets: VecDeque::new(),
            events: Vec::new(),
            now: Micros(0),
            steps: 0,
            runs: 0,
            live: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            texts: BTreeMap::new(),
            cached_tokens: 0,
        }
    }

    fn admit(&mut self, request: &Request, choices: u32, random: &mut Random) -> Result<RunKey, Failure> {
        self.runs += 1;
        let run = RunKey(self.runs);
        let scope = CacheScope { revision: "test", adapter: None, salt: None };
        let admitted = self.scheduler.admit(scheduler::Request {
            run,
            goal: Goal::Output,
            prompt: request.prompt.as_slice().into(),
            choices: (0..choices).map(|index| Choice { index, output: Vec::new() }).collect(),
            params: request.params.clone(),
            max_tokens: request.tokens as u32,
            // those that matter more push others out
            priority: random.below(3) as i32,
            deadline: None,
            root: self.key.root(&scope),
            score_prompt_from: (random.below(4) == 0).then_some(0),
            arrived: self.now,
        });
        admitted.map_err(failure)?;
        self.live.insert(run);
        Ok(run)
    }

    /// One turn of an engine's loop; false if there is nothing to do.
    fn turn(&mut self) -> Result<bool, Failure> {
        let planned = self.scheduler.plan(self.now, &mut self.batch, &mut self.events);
        match planned {
            Planned::Step { .. } => {
                self.steps += 1;
                self.now.0 += 1000;
                self.tickets.push_back(self.executor.submit(&self.batch).map_err(failure)?);
            }
            Planned::Blocked => {
                let ticket = self.tickets.pop_front().ok_or_else(|| failure("blocked by nothing"))?;
                let outputs = self.executor.collect(ticket).map_err(failure)?;
                self.scheduler.complete(outputs, &mut self.events);
            }
            Planned::Idle => {}
        }
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Token { run, choice, position, token, logprob, .. } => {
                    let text = self.texts.entry((run, choice)).or_default();
                    ensure(text.len() == position as usize, || format!("position {position} of {run:?}"))?;
                    text.push((token, logprob));
                }
                Event::Started { cached_tokens, .. } => self.cached_tokens += cached_tokens,
                Event::RunClosed { run, .. } => {
                    self.live.remove(&run);
                }
                _ => {}
            }
        }
        Ok(planned != Planned::Idle)
    }

    /// Serves requests that come and go at random; the run of each.
    pub fn serve(
        &mut self,
        requests: &[(Request, u32)],
        random: &mut Random,
    ) -> Result<Vec<RunKey>, Failure> {
        let mut runs = Vec::new();
        loop {
            while runs.len() < requests.len() && (self.live.is_empty() || random.below(3) == 0) {
                let (request, choices) = &requests[runs.len()];
                runs.push(self.admit(request, *choices, random)?);
            }
            if random.below(60) == 0
                && let Some(&run) = self.live.iter().nth(random.below(self.live.len().max(1)))
            {
                self.scheduler.cancel(run, None);
                self.cancelled.insert(run);
            }
            if !self.turn()? && runs.len() == requests.len() {
                self.scheduler.check().map_err(failure)?;
                return Ok(runs);
            }
        }
    }
}

/// Prompts that share some of their beginning with others, and how many choices are wanted of each.
pub fn requests(count: usize, random: &mut Random) -> Vec<(Request, u32)> {
    let shared: Vec<u32> = (0..SHARED_PREFIX).map(|_| random.below(1000) as u32).collect();
    (0..count)
        .map(|_| {
            let mut request = random_request(random);
            if random.below(2) == 0 {
                request.prompt.splice(0..0, shared[..random.below(SHARED_PREFIX)].iter().copied());
                request.prompt.truncate(300);
            }
            (request, random.between(1, 3) as u32)
        })
        .collect()
}

/// Rounds of requests until so many steps have run on `executor`; `fresh` computes some of their choices alone.
fn compare(
    executor: &mut dyn Executor,
    fresh: &mut dyn Executor,
    count: usize,
    least_steps: u64,
    random: &mut Random,
) -> Result<Found, Failure> {
    let mut served = Served::new(executor);
    let mut found = Found::default();
    while found.steps == 0 || found.steps < least_steps {
        let asked = requests(count, random);
        let runs = served.serve(&asked, random)?;
        for _ in 0..COMPARED.min(count) {
            let number = random.below(asked.len());
            let (request, choices) = &asked[number];
            let (run, choice) = (runs[number], random.below(*choices as usize) as u32);
            let one = Request {
                prompt: request.prompt.clone(),
                params: request.params.clone(),
                choice,
                tokens: request.tokens,
            };
            let alone = Run::new(fresh).all(&[one], random, 1)?.swap_remove(0);
            let text = served.texts.get(&(run, choice)).map_or(&[][..], Vec::as_slice);
            let length = if served.cancelled.contains(&run) { text.len() } else { alone.len() };
            ensure(text == &alone[..length], || {
                let at = alone.iter().zip(text).position(|(a, b)| a != b);
                let prompt = request.prompt.len();
                format!("choice {choice} of a prompt of {prompt} differs from token {at:?} on")
            })?;
            found.texts += 1;
        }
        found.steps = served.steps;
    }
    found.cached_tokens = served.cached_tokens.into();
    found.preemptions = served.scheduler.load().preemptions;
    Ok(found)
}

#[derive(Debug, Default)]
struct Found {
    steps: u64,
    texts: u64,
    cached_tokens: u64,
    preemptions: u64,
}

fn scheduled(context: &Context, random: &mut Random) -> Outcome {
    let folder = std::env::temp_dir().join(format!("stator-gpu-scheduled-{}", std::process::id()));
    let (stored, fp8, f32) = (WeightFormat::AsStored, WeightFormat::Fp8, WeightFormat::Float32);
    let kinds = [
        (64, 6, 2, None, KvFormat::Bf16, stored),
        (128, 4, 1, None, KvFormat::Bf16, stored),
        (64, 3, 3, Some(50), KvFormat::Bf16, stored),
        (128, 4, 2, None, KvFormat::Fp8E4m3, stored),
        (64, 6, 3, Some(70), KvFormat::Fp8E4m3, stored),
        (128, 4, 1, None, KvFormat::Bf16, fp8),
        (64, 6, 2, Some(50), KvFormat::Fp8E4m3, fp8),
        (128, 4, 2, Some(60), KvFormat::Bf16, f32),
    ];
    let (count, least) = if context.light { (4, 0) } else { (REQUESTS, LEAST_STEPS) };
    let mut total = Found::default();
    for (head_dim, heads, kv_heads, window, kv_format, weights) in kinds {
        let spec = random_spec(head_dim, heads, kv_heads, window);
        synthetic::write_random_checkpoint(&folder, &spec, DType::BF16, random.word()).map_err(failure)?;
        let model = Model::open(&folder).map_err(failure)?;
        let config = CudaConfig { kv_format, weights, ..config(SLOTS, 256, KvBudget::Pages(PAGES)) };
        let mut executor = CudaExecutor::new(&model, &config, &mut |_| ())?;
        let mut fresh = CudaExecutor::new(&model, &config, &mut |_| ())?;
        let each = least.div_ceil(kinds.len() as u64);
        let found = compare(&mut executor, &mut fresh, count, each, random)?;
        total.steps += found.steps;
        total.texts += found.texts;
        total.cached_tokens += found.cached_tokens;
        total.preemptions += found.preemptions;
    }
    std::fs::remove_dir_all(&folder).map_err(failure)?;
    ensure(total.steps >= least, || format!("{} steps only", total.steps))?;
    ensure(context.light || (total.cached_tokens > 0 && total.preemptions > 0), || format!("{total:?}"))?;
    let Found { steps, texts, cached_tokens, preemptions } = total;
    Ok(format!(
        "{steps} steps, {texts} texts bit-equal from scratch, {cached_tokens} tokens cached, {preemptions} preemptions"
    ))
}
