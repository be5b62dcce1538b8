//! The executor: a decoder on one GPU, two steps in flight.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
};

use models::{
    Batch, BatchChecker, Copying, DecoderSpec, Executor, ExecutorError, ExecutorSpec, KvLayout, Model,
    Outputs, PageMove, PageSink, Ticket,
};

mod check;
mod config;
mod dimensions;
mod flight;
mod float32;
mod forward;
mod head_layout;
mod layers;
mod matrix;
mod persistent;
mod plan;
mod slots;
mod staging;
mod stopwatch;
mod upload;
mod weights;

pub use config::{CudaConfig, KvBudget, KvFormat, WeightFormat};

use crate::{
    Buffer, CudaError, Device, Graph, memory,
    ops::{FUSED_ROWS, FillBf16, GemmMode, fused_rows},
    transfer::Mover,
};
use check::check_bounds;
use dimensions::Dimensions;
use flight::Flight;
use float32::Float32;
use forward::{Buffers, Forward, Way};
use persistent::{MOST_WEIGHT_BYTES, Persistent};
use plan::{Counts, Layout, Lists, Plan};
use slots::Slots;
use staging::{Pool, Staging};
use stopwatch::Stopwatch;
use weights::Weights;

/// Steps in flight: the next is planned and submitted while one runs.
const DEPTH: usize = 2;
/// Rows of steps that may run as two halves: of each, products are made by clusters in tiles of 32 rows.
const HALVED_ROWS: RangeInclusive<usize> = 33..=64;
/// Batch sizes whose decode step is captured; a batch is filled up to the next one.
const BUCKETS: [usize; 18] = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 96, 128, 160, 192, 224, 256];

/// Runs a decoder on one GPU. Depth 2: tokens that a step samples reach the next one on the device.
#[derive(Debug)]
pub struct CudaExecutor {
    graphs: BTreeMap<(Way, usize), Graph>,
    flights: [Flight; DEPTH],
    /// Flights under way, oldest first.
    open: VecDeque<usize>,
    checker: BatchChecker,
    stopwatch: Stopwatch,
    slots: Slots,
    staging: Staging,
    mover: Mover,
    /// As in [`CudaConfig`]; `None` also for models that are slower so.
    halves_from: Option<usize>,
    forward: Forward,
    /// What the running step was told.
    block: Buffer<u32>,
    launches: u64,
    spec: ExecutorSpec,
    device: Device,
}

impl CudaExecutor {
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
        let words = block_words(config, tokens, slots, wanted);
        let block = device.allocate(words)?;
        let flights =
            [Flight::new(&device, words, slots, tokens)?, Flight::new(&device, words, slots, tokens)?];
        let pages = pages(&device, config, page_bytes as u64)?;
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
            kv: KvLayout {
                name: config.layout_name(model, &dimensions),
                layers: dimensions.layers as u32,
                layer_bytes: layer_bytes as u32,
            },
            numerics_class: {
                let weights = if float32.is_some() { "f32" } else { weights.name() };
                numerics_class(&device, weights, config)
            },
        };
        let staging = Staging::new(&device, spec.kv.page_bytes())?;
        let mover = Mover::new(&device)?;
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
            fused_rows,
            dimensions,
            weights,
            float32,
            buffers,
            kv,
            kv_format: config.kv_format,
            page_bytes: layer_bytes,
            persistent,
            page_size: config.page_size as usize,
            mode: config.gemm,
        };
        let mut executor = Self {
            graphs: BTreeMap::new(),
            flights,
            open: VecDeque::with_capacity(DEPTH),
            checker: BatchChecker::new(&spec),
            stopwatch: Stopwatch::new(&device)?,
            slots: slot_tables,
            staging,
            mover,
            halves_from: config.halves_from.filter(|_| halved),
            forward,
            block,
            launches: 0,
            spec,
            device,
        };
        if config.graphs && !config.is_f32() {
            executor.capture()?;
        }
        let (free, total) = executor.device.memory()?;
        tracing::info!(
            gpu = executor.device.info().name,
            weight_bytes,
            buffer_bytes,
            pages,
            kv_bytes = u64::from(pages) * page_bytes as u64,
            kv_tokens = positions,
            free,
            total,
            launches_per_decode_step = executor.launches,
            numerics_class = executor.spec.numerics_class,
            "cuda executor ready"
        );
        Ok(executor)
    }

    /// Launches of a decode step at batch 1.
    pub fn launches_per_decode_step(&self) -> u64 {
        self.launches
    }

    /// Bytes of weights that a decode step reads.
    pub fn weight_bytes_per_step(&self) -> u64 {
        let float32 = self.forward.float32.as_ref();
        float32.map_or_else(|| self.forward.weights.bytes_per_step(), Float32::bytes_per_step) as u64
    }

    /// Fills the KV pool with random numbers, as if the sequences that come had been computed: for timing.
    pub fn fill_kv(&self) -> Result<(), CudaError> {
        self.device.fill_bf16(FillBf16 { out: self.forward.kv.view().cast(), seed: 7, scale: 1.0 })?;
        self.device.synchronize()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The first `rows` rows of logits of the last step that was collected, [rows, vocab]: for tests. A step holds no
    /// more than the first [`forward::LOGIT_ROWS`]; sampling changes its rows.
    #[doc(hidden)]
    pub fn logits(&self, rows: usize) -> Result<Vec<f32>, CudaError> {
        let logits = self.forward.buffers.logits.slice(..rows * self.forward.dimensions.vocab);
        self.device.read(logits)
    }

    fn capture(&mut self) -> Result<(), CudaError> {
        for bucket in BUCKETS {
            if bucket > self.spec.slots.min(self.spec.max_batch_tokens) as usize {
                break;
            }
            self.capture_bucket(Way::Launches, bucket)?;
            if self.halves_from.is_some() && HALVED_ROWS.contains(&bucket) {
                self.capture_bucket(Way::Halves, bucket)?;
            }
            if self.forward.persistent.as_ref().is_some_and(|one| bucket <= one.max_rows()) {
                self.capture_bucket(Way::Persistent, bucket)?;
            }
        }
        Ok(())
    }

    fn capture_bucket(&mut self, way: Way, bucket: usize) -> Result<(), CudaError> {
        let counts = bucket_counts(bucket);
        let lists = Lists::new(self.block.view(), &Layout::new(counts));
        let run = || self.forward.run(&self.device, &self.slots, lists, counts, way);
        // once in the open: the library's first call for a shape may allocate, which a capture forbids
        self.idle_step(counts)?;
        let before = self.device.launches();
        run()?;
        if bucket == 1 {
            self.launches = self.device.launches() - before;
        }
        self.device.synchronize()?;
        let graph = Graph::record(&self.device, run)?;
        self.graphs.insert((way, bucket), graph);
        Ok(())
    }

    fn way(&self, plan: &Plan) -> Way {
        match &self.forward.persistent {
            Some(persistent) if persistent.takes(plan) => Way::Persistent,
            _ if self.is_halved(plan) => Way::Halves,
            _ => Way::Launches,
        }
    }

    fn is_halved(&self, plan: &Plan) -> bool {
        plan.is_plain_decode()
            && HALVED_ROWS.contains(&plan.counts.tokens)
            && self.halves_from.is_some_and(|from| plan.tiles >= from)
    }

    /// Tells the device of a step in which every row is padding.
    fn idle_step(&self, counts: Counts) -> Result<(), CudaError> {
        let layout = Layout::new(counts);
        let mut block = vec![0; layout.words()];
        Plan::default().write_padding(&mut block, &layout);
        self.device.write(self.block.view(), &block)
    }

    /// The smallest captured batch that a step fits into.
    fn bucket(&self, plan: &Plan, way: Way) -> Option<usize> {
        if !plan.is_plain_decode() {
            return None;
        }
        self.graphs
            .range((way, plan.counts.tokens)..=(way, usize::MAX))
            .next()
            .map(|(&(_, bucket), _)| bucket)
    }

    fn start(&mut self, batch: &Batch) -> Result<usize, CudaError> {
        for &slot in &batch.closes {
            self.slots.close(slot);
        }
        for open in &batch.opens {
            self.slots.open(&self.device, open)?;
        }
        let Dimensions { heads, kv_heads, window, .. } = self.forward.dimensions;
        let share = self.device.decode_share(heads, kv_heads, window);
        let plan = Plan::new(batch, &self.slots, self.forward.buffers.max_tiles, share);
        let way = self.way(&plan);
        let bucket = self.bucket(&plan, way);
        let counts = bucket.map_or(plan.counts, bucket_counts);
        let layout = Layout::new(counts);

        let index = (0..DEPTH).find(|index| !self.open.contains(index)).unwrap_or(0);
        let flight = &mut self.flights[index];
        let words = plan.words(batch, &layout);
        plan.write(flight.block.as_mut_slice(), &layout, batch, &mut self.slots, self.spec.page_size, share);
        self.stopwatch.begin(&self.device)?;
        self.device.write_async(self.block.view(), &flight.block.as_slice()[..words])?;
        match bucket.and_then(|bucket| self.graphs.get(&(way, bucket))) {
            Some(graph) => graph.launch()?,
            None => {
                let lists = Lists::new(self.block.view(), &layout);
                self.forward.run(&self.device, &self.slots, lists, counts, way)?;
            }
        }
        let buffers = &self.forward.buffers;
        let (rows, scores) = (plan.counts.rows, plan.counts.scores);
        if rows > 0 {
            self.device.read_async(&mut flight.drawn.as_mut_slice()[..rows], buffers.drawn.view())?;
        }
        if scores > 0 {
            self.device.read_async(&mut flight.scored.as_mut_slice()[..scores], buffers.scored.view())?;
        }
        self.stopwatch.end(&self.device)?;
        flight.step = Some(batch.step);
        flight.sampled = plan.sampled;
        flight.scored_by = plan.scored;
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
        self.checker
            .check(batch, &self.spec, |slot| self.slots.state(slot))
            .and_then(|()| check_bounds(batch))
            .map_err(ExecutorError::Batch)?;
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
        self.check_page(page, to.len())?;
        let pool = pool(&self.forward, &self.spec);
        Ok(self.staging.read(&self.device, pool, page as usize, to)?)
    }

    fn write_page(&mut self, page: u32, from: &[u8]) -> Result<(), ExecutorError> {
        self.check_page(page, from.len())?;
        let pool = pool(&self.forward, &self.spec);
        Ok(self.staging.write(&self.device, pool, page as usize, from)?)
    }

    fn export_to(&mut self, _sink: Arc<dyn PageSink>) {}

    fn push_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        self.check_moves(moves)?;
        let pool = pool(&self.forward, &self.spec).pages();
        Ok(Box::new(self.mover.push(&self.device, pool, moves)?))
    }

    fn pull_pages(&mut self, moves: &[PageMove]) -> Result<Box<dyn Copying>, ExecutorError> {
        self.check_moves(moves)?;
        let pool = pool(&self.forward, &self.spec).pages();
        Ok(Box::new(self.mover.pull(&self.device, pool, moves)?))
    }
}

impl CudaExecutor {
    fn check_moves(&self, moves: &[PageMove]) -> Result<(), ExecutorError> {
        let bytes = self.spec.kv.page_bytes();
        moves.iter().try_for_each(|moved| self.check_page(moved.page, bytes))
    }

    fn check_page(&self, page: u32, len: usize) -> Result<(), ExecutorError> {
        let (pages, bytes) = (self.spec.pages, self.spec.kv.page_bytes());
        if page < pages && len == bytes {
            return Ok(());
        }
        let why = format!("{len} bytes of page {page}; there are {pages} pages of {bytes} bytes");
        Err(ExecutorError::Batch(why))
    }
}

fn pool<'a>(forward: &'a Forward, spec: &ExecutorSpec) -> Pool<'a> {
    let (layers, layer_bytes) = (spec.kv.layers as usize, spec.kv.layer_bytes as usize);
    Pool { kv: &forward.kv, layers, layer_bytes }
}

fn bucket_counts(bucket: usize) -> Counts {
    Counts { tokens: bucket, decodes: bucket, rows: bucket, ..Counts::default() }
}

/// Words of the largest block that a step may need: all lists at their longest, and a page table for every slot.
fn block_words(config: &CudaConfig, tokens: usize, slots: usize, context_length: u32) -> usize {
    let most = Counts {
        tokens,
        decodes: slots,
        prefills: slots,
        works: tokens,
        rows: slots,
        scores: tokens,
        last: None,
        last_works: tokens,
        copies: slots,
    };
    Layout::new(most).words() + slots * context_length.div_ceil(config.page_size) as usize
}

/// Kept free of what `MemoryFraction` leaves to the pool: graphs, the library's kernels.
const RESERVE_BYTES: u64 = 256 << 20;

fn pages(device: &Device, config: &CudaConfig, page_bytes: u64) -> Result<u32, CudaError> {
    let bytes = match config.kv {
        KvBudget::Pages(pages) => return Ok(pages),
        KvBudget::Bytes(bytes) => bytes,
        KvBudget::MemoryFraction(fraction) => {
            let (free, total) = device.memory()?;
            let share = (total as f64 * fraction) as u64;
            share.saturating_sub(memory::allocated()).min(free.saturating_sub(RESERVE_BYTES))
        }
    };
    match u32::try_from(bytes / page_bytes) {
        Ok(0) => Err(CudaError::Shape(format!("{bytes} bytes hold no page of {page_bytes} bytes"))),
        Ok(pages) => Ok(pages),
        Err(_) => Ok(u32::MAX - 1),
    }
}

/// Engines of one class compute the same bits. With batch-variant kernels none but the same batches do.
fn numerics_class(device: &Device, weights: &str, config: &CudaConfig) -> String {
    let (major, minor) = device.info().capability;
    let kernels = crate::kernels::digest();
    let kv = config.kv_name();
    let mode = match config.gemm {
        GemmMode::BatchInvariant => "",
        GemmMode::BatchVariant => "-batch-variant",
    };
    format!("cuda-sm{major}{minor}-{weights}-kv{kv}-{kernels}{mode}")
}
