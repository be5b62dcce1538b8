//! The executor: a decoder on one GPU, two steps in flight.

use std::{collections::VecDeque, sync::Arc};

use models::{
    Batch, BatchChecker, Copying, DecoderSpec, Executor, ExecutorError, ExecutorSpec, KvLayout, Model,
    Outputs, PageMove, PageSink, SamplingBounds, Ticket,
};

mod arena;
mod block;
mod buffers;
mod captures;
mod config;
mod decoder;
mod dimensions;
mod flight;
mod float32;
mod forward;
mod head_layout;
mod layers;
mod matrix;
mod pages;
mod persistent;
mod plan;
mod slots;
mod staging;
mod stopwatch;
mod upload;
mod weights;

pub use config::{CudaConfig, KvBudget, KvFormat, WeightFormat};

use crate::{
    Buffer, CudaError, Device, memory,
    ops::{FUSED_ROWS, FillBf16, GemmMode, fused_rows},
};
use block::{Counts, Layout, Lists};
use buffers::Buffers;
use captures::Captures;
use config::Arithmetic;
use decoder::Decoder;
use dimensions::Dimensions;
use flight::Flight;
use float32::Float32;
use forward::Forward;
use pages::Pages;
use persistent::{MOST_WEIGHT_BYTES, Persistent};
use slots::Slots;
use stopwatch::Stopwatch;
use weights::Weights;

/// Steps in flight: the next is planned and submitted while one runs.
const DEPTH: usize = 2;
/// Runs a decoder on one GPU. Depth 2: tokens that a step samples reach the next one on the device.
#[derive(Debug)]
pub struct CudaExecutor {
    captures: Captures,
    flights: [Flight; DEPTH],
    /// Flights under way, oldest first.
    open: VecDeque<usize>,
    checker: BatchChecker,
    stopwatch: Stopwatch,
    slots: Slots,
    pages: Pages,
    forward: Forward,
    /// What the running step was told.
    block: Buffer<u32>,
    spec: ExecutorSpec,
    device: Device,
}

impl CudaExecutor {
    pub const SAMPLING: SamplingBounds = slots::BOUNDS;

    /// Opens the GPU, copies the weights there and lays out its memory. `progress` hears the number of layers done.
    ///
    /// # Errors
    /// If there is no such GPU, the model needs what is not built, or its memory does not suffice.
    pub fn new(
        model: &Model,
        config: &CudaConfig,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, CudaError> {
        let device = Device::open(&config.device)?;
        let dimensions = Dimensions::new(&model.spec)?;
        let context_length = config.context_length.unwrap_or(model.spec.context_length);
        if config.is_f32() {
            let weights = Weights::without_matrices(&device, model, &dimensions, context_length)?;
            let tokens = config.max_batch_tokens as usize;
            let float32 = Float32::load(&device, model, &dimensions, tokens, progress)?;
            return Self::with_weights(device, (weights, Some(float32)), dimensions, &model.spec, config);
        }
        let weights = Weights::load(&device, model, &dimensions, context_length, config.weights, progress)?;
        Self::with_weights(device, (weights, None), dimensions, &model.spec, config)
    }

    /// The same with random weights of a decoder's shape: for timing.
    pub fn dummy(spec: &DecoderSpec, config: &CudaConfig) -> Result<Self, CudaError> {
        if config.is_f32() {
            return Err(CudaError::Unsupported("random weights in f32".to_owned()));
        }
        let device = Device::open(&config.device)?;
        let dimensions = Dimensions::new(spec)?;
        let context_length = config.context_length.unwrap_or(spec.context_length);
        let weights = Weights::dummy(&device, spec, &dimensions, context_length, config.weights)?;
        Self::with_weights(device, (weights, None), dimensions, spec, config)
    }

    fn with_weights(
        device: Device,
        (weights, float32): (Weights, Option<Float32>),
        dimensions: Dimensions,
        model: &DecoderSpec,
        config: &CudaConfig,
    ) -> Result<Self, CudaError> {
        if !config.page_size.is_power_of_two() {
            return Err(CudaError::Shape(format!("pages of {} tokens, no power of two", config.page_size)));
        }
        let wanted = config.context_length.unwrap_or(model.context_length);
        let (tokens, slots) = (config.max_batch_tokens as usize, config.slots as usize);
        let weight_bytes = memory::allocated();
        let buffers = Buffers::new(&device, &dimensions, tokens, slots, weights.room())?;
        let slot_tables = Slots::new(&device, slots, dimensions.vocab)?;

        let layer_bytes = dimensions.page_elements(config.page_size as usize) * config.kv_bytes();
        let page_bytes = dimensions.layers * layer_bytes;
        // all lists at their longest, and a page table for every slot
        let tables = slots * wanted.div_ceil(config.page_size) as usize;
        let words = Layout::new(Counts::most(tokens, slots)).words() + tables;
        let block = device.allocate(words)?;
        let flight = || Flight::new(&device, words, &slot_tables, tokens);
        let flights = [flight()?, flight()?];
        let transfer_bytes = u64::from(config.transfer_slots) * page_bytes as u64;
        let pages = pages::count(&device, config, page_bytes as u64, transfer_bytes)?;
        let buffer_bytes = memory::allocated() - weight_bytes;
        let kv = device.allocate(pages as usize * page_bytes)?;
        device.fill_bytes(kv.view(), 0)?;
        let positions = u64::from(pages) * u64::from(config.page_size);
        let context_length = wanted.min(u32::try_from(positions).unwrap_or(u32::MAX));
        let spec = ExecutorSpec {
            device: "cuda",
            pages,
            page_size: config.page_size,
            slots: config.slots,
            max_batch_tokens: config.max_batch_tokens,
            depth: DEPTH as u32,
            vocab_size: model.vocab_size,
            context_length,
            sampling: Self::SAMPLING,
            kv: KvLayout {
                name: config.layout_name(model, &dimensions),
                layers: dimensions.layers as u32,
                layer_bytes: layer_bytes as u32,
            },
            numerics_class: config.numerics_class(Arithmetic {
                gpu: device.info(),
                kernels: device.digest(),
                library: device.library_version(),
                weights: if float32.is_some() { "f32" } else { weights.name() },
            }),
        };
        let carried = Pages::new(&device, &spec)?;
        if config.gemm == GemmMode::BatchVariant && !config.is_f32() {
            device.log_library();
        }
        let halves = !config.is_f32() && config.kv_format == KvFormat::Bf16;
        let persistent = if config.persistent && halves {
            Persistent::new(&device, &dimensions, &weights, kv.view().cast())?
        } else {
            None
        };
        let fused_rows = fused_rows(dimensions.widest(), weights.holds_fp8());
        let halved = fused_rows == FUSED_ROWS
            && config.kv_format == KvFormat::Bf16
            && weights.bytes_per_step() <= MOST_WEIGHT_BYTES;
        let forward = Forward {
            decoder: Decoder {
                dimensions,
                weights,
                buffers,
                kv,
                kv_format: config.kv_format,
                page_size: config.page_size as usize,
                page_bytes: layer_bytes,
            },
            float32,
            persistent,
            halves_from: config.halves_from.filter(|_| halved),
            mode: config.gemm,
            fused_rows,
        };
        let captures = if config.graphs && !config.is_f32() {
            let most = config.slots.min(config.max_batch_tokens) as usize;
            Captures::record(&device, &forward, &slot_tables, block.view(), most)?
        } else {
            Captures::default()
        };
        let executor = Self {
            captures,
            flights,
            open: VecDeque::with_capacity(DEPTH),
            checker: BatchChecker::new(&spec),
            stopwatch: Stopwatch::new(&device)?,
            slots: slot_tables,
            pages: carried,
            forward,
            block,
            spec,
            device,
        };
        let (free, total) = executor.device.memory()?;
        tracing::info!(
            gpu = executor.device.info().name,
            weight_bytes,
            buffer_bytes,
            pages,
            kv_bytes = u64::from(pages) * page_bytes as u64,
            kv_tokens = positions,
            transfer_bytes,
            free = free.saturating_sub(transfer_bytes),
            total,
            launches_per_decode_step = executor.captures.launches(),
            numerics_class = executor.spec.numerics_class,
            "cuda executor ready"
        );
        Ok(executor)
    }

    /// Launches of a decode step at batch 1.
    pub fn launches_per_decode_step(&self) -> u64 {
        self.captures.launches()
    }

    /// Bytes of weights that a decode step reads.
    pub fn weight_bytes_per_step(&self) -> u64 {
        let float32 = self.forward.float32.as_ref();
        float32.map_or_else(|| self.forward.decoder.weights.bytes_per_step(), Float32::bytes_per_step) as u64
    }

    /// Fills the KV pool with random numbers, as if the sequences that come had been computed: for timing.
    pub fn fill_kv(&self) -> Result<(), CudaError> {
        self.device.fill_bf16(FillBf16 {
            out: self.forward.decoder.kv.view().cast(),
            seed: 7,
            scale: 1.0,
        })?;
        self.device.synchronize()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The first `rows` rows of logits of the last step that was collected, [rows, vocab]: for tests. A step holds no
    /// more than the first [`buffers::LOGIT_ROWS`]; sampling changes its rows.
    #[doc(hidden)]
    pub fn logits(&self, rows: usize) -> Result<Vec<f32>, CudaError> {
        let Decoder { buffers, dimensions, .. } = &self.forward.decoder;
        let columns = dimensions.logit_columns();
        let padded = self.device.read(buffers.logits.slice(..rows * columns))?;
        Ok(padded.chunks_exact(columns).flat_map(|row| &row[..dimensions.vocab]).copied().collect())
    }

    fn start(&mut self, batch: &Batch) -> Result<usize, CudaError> {
        for &slot in &batch.closes {
            self.slots.close(slot);
        }
        let index = (0..DEPTH).find(|index| !self.open.contains(index)).unwrap_or(0);
        let Flight { block, arena, drawn, scored, step, plan } = &mut self.flights[index];
        arena.begin();
        for open in &batch.opens {
            self.slots.open(&self.device, arena, open)?;
        }
        let Dimensions { heads, kv_heads, window, .. } = self.forward.decoder.dimensions;
        let share = self.device.decode_share(heads, kv_heads, window);
        plan.decide(batch, &self.slots, self.forward.decoder.buffers.max_tiles, share);
        let way = self.forward.way(plan);
        self.forward.begin_step(&self.device, way)?;
        let captured = self.captures.fitting(plan, way);
        let counts = captured.map_or(plan.counts, |(rows, _)| Counts::of_decode(rows));
        let layout = Layout::new(counts);

        let words = plan.words(batch, &layout);
        plan.write(block.as_mut_slice(), &layout, batch, &mut self.slots, self.spec.page_size, share);
        self.stopwatch.begin(&self.device)?;
        self.device.write_async(self.block.view(), &block.as_slice()[..words])?;
        match captured {
            Some((_, graph)) => graph.launch()?,
            None => {
                let lists = Lists::new(self.block.view(), &layout);
                self.forward.run(&self.device, &self.slots, lists, counts, way)?;
            }
        }
        let buffers = &self.forward.decoder.buffers;
        let Counts { rows, scores, .. } = plan.counts;
        if rows > 0 {
            self.device.read_async(&mut drawn.as_mut_slice()[..rows], buffers.drawn.view())?;
        }
        if scores > 0 {
            self.device.read_async(&mut scored.as_mut_slice()[..scores], buffers.scored.view())?;
        }
        self.stopwatch.end(&self.device)?;
        *step = Some(batch.step);
        Ok(index)
    }
}

impl Executor for CudaExecutor {
    fn spec(&self) -> &ExecutorSpec {
        &self.spec
    }

    fn submit(&mut self, batch: &Batch) -> Result<Ticket, ExecutorError> {
        if self.open.len() == DEPTH {
            return Err(ExecutorError::Batch(format!("{DEPTH} steps are under way")));
        }
        self.checker.check(batch, &self.spec, |slot| self.slots.state(slot)).map_err(ExecutorError::Batch)?;
        let flight = self.start(batch)?;
        self.open.push_back(flight);
        Ok(Ticket(batch.step))
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Outputs, ExecutorError> {
        let Some(&index) = self.open.front() else {
            return Err(ExecutorError::Batch(format!("step {} is not under way", ticket.0.0)));
        };
        let flight = &mut self.flights[index];
        if flight.step != Some(ticket.0) {
            return Err(ExecutorError::Batch(format!("step {} is not the oldest under way", ticket.0.0)));
        }
        self.open.pop_front();
        Ok(flight.finish(self.stopwatch.read()?))
    }

    fn is_done(&self) -> bool {
        self.stopwatch.is_done()
    }

    fn read_page(&mut self, page: u32, to: &mut [u8]) -> Result<(), ExecutorError> {
        self.pages.read(&self.device, &self.forward.decoder.kv, page, to)
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        self.pages.write(&self.device, &self.forward.decoder.kv, page, from)
    }

    fn has_room(&self) -> bool {
        self.pages.have_room()
    }

    fn export_to(&mut self, _sink: Arc<dyn PageSink>) {}

    fn push_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        self.pages.push(&self.device, &self.forward.decoder.kv, moves)
    }

    fn pull_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        self.pages.pull(&self.device, &self.forward.decoder.kv, moves)
    }
}
