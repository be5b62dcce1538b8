//! A scheduler, a fake executor, and a witness of everything that the events promise.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use messages::block::{BlockHash, CacheScope, ClusterKey};
use models::{Batch, Executor, ExecutorSpec, Export, PageSink, Ticket, TokenId, TokenLogprob};
use scheduler::{
    EndReason, Event, Goal, KvEvent, Landing, Micros, Planned, Refusal, Request, RunKey, Scheduler,
    SchedulerConfig, Usage,
};

use crate::fake::{self, FakeExecutor};

pub fn cluster_key() -> ClusterKey {
    ClusterKey::derive("test")
}

pub fn root(salt: &str) -> BlockHash {
    cluster_key().root(&CacheScope { revision: "r", adapter: None, salt: Some(salt) })
}

pub struct World {
    pub scheduler: Scheduler,
    pub executor: FakeExecutor,
    pub batch: Batch,
    pub now: Micros,
    pub runs: BTreeMap<RunKey, Witness>,
    tickets: VecDeque<Ticket>,
    events: Vec<Event>,
    mirror: BTreeMap<BlockHash, BlockHash>,
    exported: Arc<Exported>,
    page_size: u32,
    context: u32,
    pub longest_step: std::time::Duration,
}

/// Pages that the executor handed out while a step ran.
#[derive(Default)]
struct Exported(Mutex<Vec<(Export, Vec<u8>)>>);

impl PageSink for Exported {
    fn layer(&self, export: &Export, _layer: u32, bytes: &[u8]) {
        self.0.lock().unwrap().push((*export, bytes.to_vec()));
    }
}

/// What has been seen of a run.
pub struct Witness {
    pub request: Request,
    pub outputs: BTreeMap<u32, Vec<TokenId>>,
    pub ends: BTreeMap<u32, EndReason>,
    pub scored: Vec<(f32, Vec<TokenLogprob>)>,
    pub cached_tokens: Option<u32>,
    pub usage: Option<Usage>,
    /// Leading blocks that have landed or been computed for somebody else.
    pub blocks: u32,
}

impl World {
    pub fn new(config: SchedulerConfig, spec: ExecutorSpec) -> Self {
        let exported = Arc::new(Exported::default());
        let (page_size, context) = (spec.page_size, spec.context_length);
        let scheduler = Scheduler::new(SchedulerConfig { kv_events: true, ..config }, &spec);
        let mut executor = FakeExecutor::new(spec);
        executor.export_to(exported.clone());
        Self {
            scheduler,
            executor,
            exported,
            context,
            page_size,
            batch: Batch::default(),
            now: Micros(0),
            runs: BTreeMap::new(),
            tickets: VecDeque::new(),
            events: Vec::new(),
            mirror: BTreeMap::new(),
            longest_step: std::time::Duration::ZERO,
        }
    }

    pub fn admit(&mut self, request: Request) -> Result<(), Refusal> {
        let admitted = self.scheduler.admit(request.clone())?;
        self.check();
        let witness = Witness {
            outputs: request.choices.iter().map(|choice| (choice.index, choice.output.clone())).collect(),
            ends: BTreeMap::new(),
            scored: Vec::new(),
            cached_tokens: None,
            usage: None,
            blocks: admitted.held_blocks,
            request,
        };
        assert!(self.runs.insert(witness.request.run, witness).is_none());
        Ok(())
    }

    /// Plans and submits a step; false if there is none to plan now.
    pub fn submit(&mut self) -> bool {
        let planned = self.scheduler.plan(self.now, &mut self.batch, &mut self.events);
        match planned {
            Planned::Step { .. } => self.tickets.push_back(self.executor.submit(&self.batch).unwrap()),
            Planned::Idle => assert!(self.tickets.is_empty()),
            Planned::Blocked => assert!(!self.tickets.is_empty()),
        }
        self.observe();
        matches!(planned, Planned::Step { .. })
    }

    /// Plans a step that the executor refuses.
    pub fn submit_refused(&mut self) {
        if let Planned::Step { .. } = self.scheduler.plan(self.now, &mut self.batch, &mut self.events) {
            self.scheduler.reject(&self.batch, &mut self.events);
            self.executor.skip_step();
        }
        self.observe();
    }

    /// Collects the oldest step; false if none is in flight.
    pub fn collect(&mut self) -> bool {
        let Some(ticket) = self.tickets.pop_front() else { return false };
        let outputs = self.executor.collect(ticket).unwrap();
        self.longest_step = self.longest_step.max(outputs.elapsed);
        self.now.0 += outputs.elapsed.as_micros() as u64;
        self.scheduler.complete(outputs, &mut self.events);
        self.observe();
        true
    }

    /// One turn of an engine's loop.
    pub fn turn(&mut self) -> bool {
        self.submit() || self.collect()
    }

    /// Has the next block of a waiting run's prompt land; false if it was not taken.
    pub fn land(&mut self, run: RunKey) -> bool {
        let Some(witness) = self.runs.get_mut(&run) else { return false };
        let (block, prompt) = (witness.blocks, &witness.request.prompt);
        if (block + 1) * self.page_size >= prompt.len() as u32 {
            return false;
        }
        let contents = fake::block_of(prompt, block, self.page_size);
        let executor = &mut self.executor;
        let landed = self.scheduler.land(run, block, |page| executor.write_page(page.0, &contents)).unwrap();
        let landed = landed != Landing::Refused;
        witness.blocks += u32::from(landed);
        self.observe();
        landed
    }

    /// Lets what waits for blocks go on and gives up the blocks computed for others; false if there is neither.
    pub fn release(&mut self) -> bool {
        let mut any = false;
        for (run, witness) in &self.runs {
            any |= match witness.request.goal {
                Goal::OutputOnceLanded => self.scheduler.go_on(*run),
                Goal::Blocks { .. } if witness.usage.is_none() => self.scheduler.cancel(*run, None),
                _ => false,
            };
        }
        self.check();
        any
    }

    /// Runs until nothing is left, at most `turns`.
    pub fn finish(&mut self, turns: u32) {
        for _ in 0..turns {
            if !self.turn() && !self.release() {
                assert!(self.scheduler.is_idle(), "idle with work left: {:?}", self.scheduler.load());
                return;
            }
        }
        panic!("not finished after {turns} turns: {:?}", self.scheduler.load());
    }

    /// All that must hold once nothing is left.
    pub fn assert_clean(&mut self) {
        for (run, witness) in &self.runs {
            assert!(witness.usage.is_some(), "{run:?} never closed");
        }
        let load = self.scheduler.load();
        assert_eq!((load.running, load.queued, load.waiting_choices, load.blocks_used), (0, 0, 0, 0));
        assert_eq!(load.pending_prefill_tokens, 0);
        self.scheduler.flush_cache();
        self.observe();
        assert_eq!(self.scheduler.load().blocks_cached, 0);
        assert!(self.mirror.is_empty());
    }

    fn check(&mut self) {
        if let Err(wrong) = self.scheduler.check() {
            panic!("{wrong}");
        }
    }

    fn observe(&mut self) {
        self.check();
        for (export, bytes) in self.exported.0.lock().unwrap().drain(..) {
            let request = &self.runs[&RunKey(export.run)].request;
            assert!(matches!(request.goal, Goal::Blocks { from } if from <= export.block));
            assert_eq!(bytes, fake::block_of(&request.prompt, export.block, self.page_size));
        }
        self.follow_cache();
        for event in std::mem::take(&mut self.events) {
            self.witness(event);
        }
    }

    fn witness(&mut self, event: Event) {
        let (Event::Started { run, .. }
        | Event::PromptScored { run, .. }
        | Event::Token { run, .. }
        | Event::BlocksComputed { run, .. }
        | Event::Ended { run, .. }
        | Event::RunClosed { run, .. }) = event;
        let context = self.context;
        let witness = self.runs.get_mut(&run).expect("events are of admitted runs");
        assert!(witness.usage.is_none(), "an event after the close: {event:?}");
        match event {
            Event::Started { cached_tokens, .. } => {
                assert!(witness.cached_tokens.replace(cached_tokens).is_none(), "started twice");
                let whole = cached_tokens as usize == witness.request.prompt.len();
                assert!(!whole || witness.repaired() || witness.request.goal != Goal::Output);
            }
            Event::BlocksComputed { blocks, .. } => {
                let prompt = &witness.request.prompt;
                for block in 0..blocks {
                    // A run that entered and was pushed out again in the same plan holds none.
                    let Some(page) = self.scheduler.block(run, block) else { break };
                    let mut contents = vec![0; self.executor.spec().kv.page_bytes()];
                    self.executor.read_page(page.0, &mut contents).unwrap();
                    assert_eq!(contents, fake::block_of(prompt, block, self.page_size), "block {block}");
                }
                witness.blocks = blocks;
            }
            Event::PromptScored { first, tokens, .. } => {
                let from = witness.request.score_prompt_from.unwrap().max(1);
                assert_eq!(first, from + witness.scored.len() as u32);
                witness.scored.extend(tokens);
            }
            Event::Token { choice, position, token, logprob, .. } => {
                assert!(witness.cached_tokens.is_some(), "a token before the start");
                assert!(!witness.ends.contains_key(&choice), "a token after the end");
                assert_eq!(logprob.is_some(), witness.request.params.logprobs != models::Logprobs::Off);
                let output = witness.outputs.get_mut(&choice).unwrap();
                assert_eq!(position as usize, output.len());
                output.push(token);
            }
            Event::Ended { choice, reason, .. } => {
                assert!(witness.ends.insert(choice, reason).is_none(), "ended twice");
                witness.compare(choice, reason, context);
            }
            Event::RunClosed { usage, .. } => {
                witness.usage = Some(usage);
                witness.compare_run(usage);
            }
        }
    }

    /// Replays the cache's events; they must keep a tree and lead to the snapshot.
    fn follow_cache(&mut self) {
        let roots: BTreeSet<_> = ["", "a", "b"].map(root).into();
        let mut changes = Vec::new();
        assert!(self.scheduler.take_kv_events(&mut changes));
        let changed = !changes.is_empty();
        for change in changes {
            match change {
                KvEvent::Stored { parent, block } => {
                    assert!(roots.contains(&parent) || self.mirror.contains_key(&parent));
                    assert!(self.mirror.insert(block, parent).is_none(), "stored twice");
                }
                KvEvent::Removed { block } => {
                    assert!(self.mirror.remove(&block).is_some(), "removed what is not there");
                    assert!(
                        self.mirror.values().all(|parent| *parent != block),
                        "removed before its children"
                    );
                }
                KvEvent::Cleared => self.mirror.clear(),
            }
        }
        if changed {
            let snapshot = self.scheduler.kv_snapshot();
            let as_map: BTreeMap<_, _> = snapshot
                .iter()
                .map(|event| match event {
                    KvEvent::Stored { parent, block } => (*block, *parent),
                    other => panic!("{other:?} in a snapshot"),
                })
                .collect();
            assert_eq!(as_map, self.mirror);
        }
    }
}

impl Witness {
    fn repaired(&self) -> bool {
        self.request.choices.iter().any(|choice| !choice.output.is_empty())
    }

    fn compare(&self, choice: u32, reason: EndReason, context: u32) {
        let request = &self.request;
        let limit = request.max_tokens.min(context - request.prompt.len() as u32);
        let (expected, end) = fake::alone(&request.prompt, choice, &request.params, limit);
        let output = &self.outputs[&choice];
        match reason {
            EndReason::Stop(_) | EndReason::Length => {
                assert_eq!((output, reason), (&expected, end), "choice {choice} of {request:?}");
            }
            EndReason::Cancelled | EndReason::DeadlineExceeded | EndReason::Failed | EndReason::NotFinite => {
                assert!(expected.starts_with(output), "choice {choice}: {output:?} is not in {expected:?}");
            }
        }
    }

    fn compare_run(&self, usage: Usage) {
        let output: usize = self.outputs.values().map(Vec::len).sum();
        assert_eq!(usage.output_tokens as usize, output);
        assert_eq!(usage.prompt_tokens as usize, self.request.prompt.len());
        assert_eq!(usage.cached_tokens, self.cached_tokens.unwrap_or(0));
        assert_eq!(self.ends.len(), self.request.choices.len(), "closed before all choices ended");
        let Some(from) = self.request.score_prompt_from else { return };
        let expected = fake::scores(&self.request.prompt, from);
        assert!(expected.starts_with(&self.scored));
        let ended_early = |end: &EndReason| !matches!(end, EndReason::Stop(_) | EndReason::Length);
        if !self.ends.values().any(ended_early) && !self.repaired() {
            assert_eq!(self.scored, expected);
        }
    }
}
