//! The executor: memory laid out once, then step after step without allocating.

use std::{sync::Arc, time::Instant};

use models::{
    Batch, BatchChecker, Executor, ExecutorError, ExecutorSpec, KvLayout, Model, Outputs, PageSink, Sampled,
    SamplingBounds, Scored, StepId, Ticket,
};

mod buffers;
mod dimensions;
mod engine;
mod profile;
mod setup;
mod slots;
mod step;
mod task;
mod work;

pub use profile::Profile;
pub use step::PhaseKind;

use crate::{
    CpuConfig, CpuError, Isa, MemoryReport,
    kv_pool::{KvPool, PageShape},
    memory::Shared,
    rope::Rope,
    team::Team,
    weights::{LoadProgress, Weights, estimate},
};
use buffers::{Buffers, Worker};
use dimensions::Dimensions;
use engine::{Engine, State};
use setup::{check_config, check_memory, numerics_class, pages};
use slots::Slots;

/// Runs a decoder on the cores of this machine. Depth 1: the other threads begin with a step when it is submitted, the
/// caller's joins them when it collects.
pub struct CpuExecutor {
    spec: ExecutorSpec,
    team: Team<Engine>,
    checker: BatchChecker,
    memory: MemoryReport,
    running: Option<(StepId, Instant)>,
    lost: bool,
}

impl CpuExecutor {
    /// Packs the weights of `model` and lays out memory. `progress` hears of each piece that is packed.
    ///
    /// # Errors
    /// If the configuration makes no sense, the memory does not suffice (the error has the numbers), or the model's
    /// files cannot be read.
    pub fn new(
        model: &Model,
        config: &CpuConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, CpuError> {
        let isa = check_config(model, config)?;
        let spec = &model.spec;
        let shape = PageShape {
            page_size: config.page_size as usize,
            layers: spec.layers as usize,
            kv_heads: spec.kv_heads as usize,
            head_dim: spec.head_dim as usize,
            turning: spec.rope.dim as usize,
            dtype: config.kv_dtype,
        };
        let pages = pages(config, &shape)?;
        let kv = pages as u64 * shape.page_bytes() as u64;
        let positions = u64::from(pages) * u64::from(config.page_size);
        let wanted = config.context_length.unwrap_or(spec.context_length);
        let context_length = wanted.min(u32::try_from(positions).unwrap_or(u32::MAX));
        check_memory(MemoryReport { weights: estimate(model, config.precision), kv, scratch: 0 })?;

        let weights = Weights::load(model, isa, config.precision, config.threads, progress)?;
        let rope = Rope::new(spec, context_length);
        let dimensions = Dimensions::new(
            spec,
            &weights,
            config.threads,
            context_length as usize,
            config.max_batch_tokens as usize,
        );
        let formats = weights.acts_formats();
        let buffers = Buffers::new(&dimensions, config.max_batch_tokens as usize, rope.pairs(), formats, isa);
        let worker = || Worker::new(&dimensions, formats, isa);
        let scratch = buffers.bytes(&dimensions) + config.threads as u64 * worker().bytes(&dimensions);
        let workers = Shared::from_fn(config.threads, |_| worker());
        let memory = MemoryReport { weights: weights.bytes(), kv, scratch };
        let pool =
            KvPool::new(shape, pages as usize).map_err(|source| CpuError::Map { bytes: kv, source })?;
        let spec = ExecutorSpec {
            device: "cpu",
            pages,
            page_size: config.page_size,
            slots: config.slots,
            max_batch_tokens: config.max_batch_tokens,
            depth: 1,
            vocab_size: spec.vocab_size,
            context_length,
            sampling: SamplingBounds::NONE,
            kv: KvLayout {
                name: shape.arrangement().to_string(),
                layers: shape.layers as u32,
                layer_bytes: shape.layer_bytes() as u32,
            },
            numerics_class: numerics_class(model, config),
        };
        tracing::info!(
            isa = isa.name(),
            threads = config.threads,
            weights = memory.weights,
            kv = memory.kv,
            scratch = memory.scratch,
            pages,
            numerics_class = spec.numerics_class,
            "cpu executor ready"
        );
        let engine = Engine::new(
            (isa, dimensions),
            (weights, rope),
            pool,
            (buffers, workers),
            Slots::new(config.slots as usize),
        );
        Ok(Self {
            checker: BatchChecker::new(&spec),
            team: Team::new(config.threads, engine).map_err(CpuError::Thread)?,
            spec,
            memory,
            running: None,
            lost: false,
        })
    }

    /// Bytes that this executor takes.
    pub fn memory(&self) -> MemoryReport {
        self.memory
    }

    /// Instruction set of its kernels.
    pub fn isa(&self) -> Isa {
        self.team.work().isa
    }

    /// Bytes of weights that a step reads if it samples.
    pub fn weight_bytes_per_step(&self) -> u64 {
        self.team.work().weights.bytes_read()
    }

    /// Where the time of collected steps went.
    ///
    /// # Panics
    /// If a step is running.
    pub fn profile(&mut self) -> &Profile {
        &self.state().profile
    }

    /// Begins a new profile.
    ///
    /// # Panics
    /// If a step is running.
    pub fn clear_profile(&mut self) {
        self.state().profile = Profile::default();
    }

    fn state(&mut self) -> &mut State {
        assert!(self.running.is_none(), "a step is running");
        // SAFETY: no step is running, and the executor is borrowed exclusively.
        unsafe { self.team.work().state_mut() }
    }
}

impl Executor for CpuExecutor {
    fn spec(&self) -> &ExecutorSpec {
        &self.spec
    }

    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError> {
        if self.lost {
            return Err(ExecutorError::Device("a compute thread panicked".into()));
        }
        if let Some((step, _)) = self.running {
            return Err(ExecutorError::Batch(format!("step {} has not been collected", step.0)));
        }
        // SAFETY: no step is running, and the executor is borrowed exclusively.
        let state = unsafe { self.team.work().state_mut() };
        self.checker
            .check(batch, &self.spec, |slot| state.slots.state(slot))
            .map_err(ExecutorError::Batch)?;
        for &slot in &batch.closes {
            state.slots.close(slot);
        }
        for open in &batch.opens {
            state.slots.open(open, self.spec.context_length.min(self.spec.vocab_size) as usize);
        }
        if let Some(&page) = batch.pages.iter().max() {
            self.team.work().pool.uses(page);
        }
        state.step.plan(batch, &state.slots, &self.team.work().dimensions);
        state.number += 1;
        let phases = state.step.phases.len() as u32;
        self.running = Some((batch.step, Instant::now()));
        self.team.start(phases);
        Ok(Ticket(batch.step))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Outputs, ExecutorError> {
        let Some((step, since)) = self.running.take() else {
            return Err(ExecutorError::Batch(format!("step {} is not running", ticket.0.0)));
        };
        if step != ticket.0 {
            self.running = Some((step, since));
            return Err(ExecutorError::Batch(format!("step {} is running, not {}", step.0, ticket.0.0)));
        }
        if self.team.finish().is_err() {
            self.lost = true;
            return Err(ExecutorError::Device("a compute thread panicked".into()));
        }
        self.state().profile.end_step();
        Ok(self.outputs(since))
    }

    fn read_page(&mut self, page: u32, to: &mut [u8]) -> Result<(), ExecutorError> {
        to.copy_from_slice(self.page(page, to.len())?);
        Ok(())
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        self.page(page, from.len())?.copy_from_slice(from);
        Ok(())
    }

    fn export_to(&mut self, sink: Arc<dyn PageSink>) {
        self.state().sink = Some(sink);
    }
}

impl CpuExecutor {
    /// The bytes of a page, between steps.
    fn page(&mut self, page: u32, len: usize) -> Result<&mut [u8], ExecutorError> {
        let refuse = |why: String| Err(ExecutorError::Batch(why));
        if let Some((step, _)) = self.running {
            return refuse(format!("page {page} is touched while step {} runs", step.0));
        }
        if page >= self.spec.pages || len != self.spec.kv.page_bytes() {
            let (pages, bytes) = (self.spec.pages, self.spec.kv.page_bytes());
            return refuse(format!("{len} bytes of page {page}; there are {pages} pages of {bytes} bytes"));
        }
        self.team.work().pool.uses(page);
        // SAFETY: no step is running, and the executor is borrowed exclusively.
        Ok(unsafe { self.team.work().pool.page_mut(page as usize) })
    }

    /// What the finished step has computed; sampled tokens become part of their slots' histories.
    fn outputs(&mut self, since: Instant) -> Outputs {
        let engine = self.team.work();
        // SAFETY: no step is running, and the executor is borrowed exclusively.
        let (state, results) =
            unsafe { (engine.state_mut(), engine.buffers.results.write(0..engine.buffers.results.len())) };
        let State { slots, step, .. } = state;
        let mut outputs = Outputs::default();
        let samples = step.logits.iter().filter(|row| row.sample).count();
        outputs.sampled.reserve_exact(samples);
        for (row, result) in step.logits.iter().zip(results.iter_mut()) {
            if let (Some(draw), Some(slot)) = (result.draw.take(), slots.get_mut(row.slot)) {
                slot.history.push(draw.token);
                slot.last = Some(draw.token);
                outputs.sampled.push(Sampled {
                    slot: row.slot,
                    token: draw.token,
                    finite: draw.finite,
                    logprob: draw.logprob,
                    top: std::mem::take(&mut result.top),
                });
            }
        }
        for slot in step.scored.iter().copied() {
            let rows = step.logits.iter().zip(results.iter_mut()).filter(|(row, _)| row.slot == slot);
            let tokens = rows
                .filter_map(|(_, result)| {
                    Some((result.scored.take()?, std::mem::take(&mut result.scored_top)))
                })
                .collect();
            outputs.scored.push(Scored { slot, tokens });
        }
        outputs.elapsed = since.elapsed();
        outputs
    }
}

#[cfg(test)]
impl CpuExecutor {
    /// A row of logits of the last step, in batch order, as sampling has left it; the step had no more rows than are
    /// held at once.
    fn logits(&mut self, index: usize) -> &[f32] {
        assert!(index < self.state().step.logits.len());
        let engine = self.team.work();
        let vocab = engine.dimensions.vocab;
        // SAFETY: no step is running, and the executor is borrowed exclusively.
        unsafe { engine.buffers.logits.read(index * vocab..(index + 1) * vocab) }
    }
}

#[cfg(test)]
mod tests;
