use cuda::{
    Buffer, Device,
    ops::{
        DecodeAttention, GemmMode, KvPages, KvView, PREFILL_ROWS, PrefillAttention, TILE_KEYS,
        decode_tickets, part_stats,
    },
};
use half::bf16;

use crate::{
    compare::{bound, poisoned, relative_error, same_bits, wide},
    harness::{Case, Context, Failure, Outcome},
    host,
    random::Random,
};

/// Probabilities are rounded to bf16 before they weigh the values.
const ATTENTION_BOUND: f64 = 6e-3;

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "decode attention agrees with f64", run: decode_agrees },
        Case { name: "prefill attention agrees with f64", run: prefill_agrees },
        Case { name: "prefill attention of more than fits the GPU", run: prefill_rounds },
        Case { name: "attention rows do not depend on batch or chunk", run: invariant },
        Case { name: "attention over fp8 gives the bits of bf16", run: fp8 },
        Case { name: "a crowd is decoded as each alone", run: crowd },
    ]
}

/// Shape of an attention problem.
#[derive(Clone, Copy)]
pub struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub page_size: usize,
    pub window: Option<u32>,
}

/// Sequences with keys and values in shuffled pages; what no sequence holds is NaN.
pub struct Cache {
    pub heads: Heads,
    pub contexts: Vec<usize>,
    keys: Vec<Vec<bf16>>,
    values: Vec<Vec<bf16>>,
    slab: Buffer<bf16>,
    /// The same in FP8, where the cache is `fp8`.
    codes: Option<Buffer<u8>>,
    tables: Buffer<u32>,
    table_starts: Vec<u32>,
}

impl Cache {
    pub fn new(
        device: &Device,
        random: &mut Random,
        heads: Heads,
        contexts: &[usize],
        fp8: bool,
    ) -> Result<Self, Failure> {
        let Heads { kv_heads, head_dim, page_size, .. } = heads;
        let width = kv_heads * head_dim;
        let pages: Vec<usize> = contexts.iter().map(|context| context.div_ceil(page_size)).collect();
        let order = random.shuffled(pages.iter().sum::<usize>() + 3);
        let mut slab = vec![bf16::NAN; order.len() * 2 * width * page_size];
        let (mut table_starts, mut start) = (Vec::new(), 0);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (&context, &count) in contexts.iter().zip(&pages) {
            // sharp attention: some keys matter far more than others
            let mut rows = [random.halves(context * width, 2.0), random.halves(context * width, 1.0)];
            // tiles whose scores lie a little above, far above and below those of the ones before
            for (i, key) in rows[0].iter_mut().enumerate() {
                *key *= bf16::from_f32([1.0, 2.0, 8.0, 4.0][i / width / TILE_KEYS % 4]);
            }
            if fp8 {
                rows.iter_mut()
                    .flatten()
                    .for_each(|value| *value = bf16::from_f32(host::through_fp8(*value)));
            }
            for (which, rows) in rows.iter().enumerate() {
                for position in 0..context {
                    let page = order[start + position / page_size] as usize;
                    for head in 0..kv_heads {
                        let block = (page * 2 + which) * kv_heads + head;
                        let at = (block * page_size + position % page_size) * head_dim;
                        slab[at..][..head_dim]
                            .copy_from_slice(&rows[position * width + head * head_dim..][..head_dim]);
                    }
                }
            }
            let [k, v] = rows;
            keys.push(k);
            values.push(v);
            table_starts.push(start as u32);
            start += count;
        }
        let codes = if fp8 { Some(device.upload(&host::pack_codes(&slab))?) } else { None };
        let (slab, tables) = (device.upload(&slab)?, device.upload(&order)?);
        Ok(Self { heads, contexts: contexts.to_vec(), keys, values, slab, codes, tables, table_starts })
    }

    fn kv(&self) -> KvPages<'_> {
        let Heads { kv_heads, head_dim, page_size, .. } = self.heads;
        let pages = self.codes.as_ref().map_or(self.slab.view().into(), |codes| KvView::Fp8(codes.view()));
        KvPages { pages, kv_heads, head_dim, page_size }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// Decodes the sequences named, one query each (its last position).
    fn decode(
        &self,
        device: &Device,
        sequences: &[usize],
        queries: &[bf16],
        mode: GemmMode,
    ) -> Result<Vec<bf16>, Failure> {
        let Heads { heads, kv_heads, head_dim, window, .. } = self.heads;
        let contexts: Vec<u32> = sequences.iter().map(|&s| self.contexts[s] as u32).collect();
        let starts: Vec<u32> = sequences.iter().map(|&s| self.table_starts[s]).collect();
        let share = device.decode_share(heads, kv_heads, window);
        let tiles: Vec<usize> = sequences.iter().map(|&s| share.tiles(self.contexts[s])).collect();
        let max_tiles: usize = tiles.iter().sum();
        let (mut tile_starts, mut run_starts) = (vec![0u32], vec![0u32]);
        for (i, &own) in tiles.iter().enumerate() {
            tile_starts.push(tile_starts[i] + own as u32);
            run_starts.push(run_starts[i] + share.runs(own, max_tiles) as u32);
        }
        let out = poisoned::<bf16>(device, sequences.len() * heads * head_dim)?;
        let tickets = device.upload(&vec![0u32; decode_tickets(sequences.len(), heads, kv_heads)])?;
        let (contexts, starts) = (device.upload(&contexts)?, device.upload(&starts)?);
        let (tile_starts, run_starts) = (device.upload(&tile_starts)?, device.upload(&run_starts)?);
        let queries = device.upload(queries)?;
        let queue = device.upload(&[0u32; 2])?;
        let part_values = poisoned::<f32>(device, max_tiles * heads * head_dim)?;
        let part_stats = poisoned::<f32>(device, part_stats(max_tiles, heads))?;
        // twice: the tickets must be back at zero
        for _ in 0..2 {
            device.decode_attention(DecodeAttention {
                out: out.view(),
                queries: queries.view(),
                kv: self.kv(),
                tables: self.tables.view(),
                table_starts: starts.view(),
                contexts: contexts.view(),
                tile_starts: tile_starts.view(),
                run_starts: run_starts.view(),
                part_values: part_values.view(),
                part_stats: part_stats.view(),
                tickets: tickets.view(),
                queue: queue.view(),
                sequences: sequences.len(),
                max_tiles,
                heads,
                window,
                scale: self.scale(),
                mode,
                half: false,
            })?;
        }
        Ok(device.read(out.view())?)
    }

    /// Attends from positions `from .. to` of each sequence named; `queries` are those rows, one sequence after another.
    fn prefill(
        &self,
        device: &Device,
        shares: &[(usize, std::ops::Range<usize>)],
        queries: &[bf16],
        mode: GemmMode,
    ) -> Result<Vec<bf16>, Failure> {
        let Heads { heads, head_dim, window, .. } = self.heads;
        let (mut query_starts, mut works, mut tokens) = (Vec::new(), Vec::new(), 0);
        for (i, (_, range)) in shares.iter().enumerate() {
            query_starts.push(tokens as u32);
            tokens += range.len();
            works.extend((0..range.len()).step_by(PREFILL_ROWS).flat_map(|first| [i as u32, first as u32]));
        }
        let out = poisoned::<bf16>(device, tokens * heads * head_dim)?;
        let upload = |values: Vec<u32>| device.upload(&values);
        device.prefill_attention(PrefillAttention {
            out: out.view(),
            queries: device.upload(queries)?.view(),
            kv: self.kv(),
            tables: self.tables.view(),
            table_starts: upload(shares.iter().map(|(s, _)| self.table_starts[*s]).collect())?.view(),
            contexts: upload(shares.iter().map(|(_, range)| range.end as u32).collect())?.view(),
            query_starts: upload(query_starts)?.view(),
            query_counts: upload(shares.iter().map(|(_, range)| range.len() as u32).collect())?.view(),
            works: upload(works.clone())?.view(),
            work_count: works.len() / 2,
            heads,
            window,
            scale: self.scale(),
            mode,
        })?;
        Ok(device.read(out.view())?)
    }

    /// What a query row at `position` of a sequence should give.
    fn reference(&self, sequence: usize, position: usize, query: &[bf16]) -> Vec<f64> {
        let Heads { heads, kv_heads, head_dim, window, .. } = self.heads;
        let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        (0..heads)
            .flat_map(|head| {
                let kv_head = head / (heads / kv_heads);
                let rows = |all: &[bf16]| -> Vec<Vec<f64>> {
                    (0..=position)
                        .map(|p| wide(&all[(p * kv_heads + kv_head) * head_dim..][..head_dim]).collect())
                        .collect()
                };
                let query: Vec<f64> = wide(&query[head * head_dim..][..head_dim]).collect();
                let (keys, values) = (rows(&self.keys[sequence]), rows(&self.values[sequence]));
                host::attend(&query, &keys, &values, first, f64::from(self.scale()))
            })
            .collect()
    }
}

fn shapes() -> Vec<Heads> {
    let shape =
        |heads, kv_heads, head_dim, page_size, window| Heads { heads, kv_heads, head_dim, page_size, window };
    vec![
        shape(4, 4, 64, 16, None),
        shape(9, 3, 64, 16, None),
        shape(4, 2, 128, 16, None),
        shape(8, 2, 128, 64, None),
        shape(16, 2, 128, 32, None),
        shape(4, 4, 128, 16, Some(100)),
        shape(8, 1, 64, 128, Some(300)),
        shape(12, 1, 64, 256, None),
        shape(11, 1, 128, 8, None),
        shape(6, 2, 64, 8, None),
        shape(6, 1, 128, 256, Some(200)),
    ]
}

/// Every shape in bf16 and in FP8.
fn formats() -> impl Iterator<Item = (Heads, bool)> {
    shapes().into_iter().flat_map(|shape| [(shape, false), (shape, true)])
}

fn decode_agrees(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    for (shape, fp8) in formats() {
        let mut contexts = vec![1, 2, 127, 128, 129, 256];
        contexts.push(random.between(3, 700));
        contexts.push(random.between(300, 1100));
        let cache = Cache::new(device, random, shape, &contexts, fp8)?;
        let width = shape.heads * shape.head_dim;
        let queries = random.halves(contexts.len() * width, 2.0);
        let sequences: Vec<usize> = (0..contexts.len()).collect();
        for mode in [GemmMode::BatchInvariant, GemmMode::BatchVariant] {
            let out = cache.decode(device, &sequences, &queries, mode)?;
            for (i, &context) in contexts.iter().enumerate() {
                let row = i * width..(i + 1) * width;
                let expected = cache.reference(i, context - 1, &queries[row.clone()]);
                let error = relative_error(wide(&out[row]), &expected);
                let (group, dim) = (shape.heads / shape.kv_heads, shape.head_dim);
                let what = format!("{mode:?}, context {context}, group {group}, head_dim {dim}");
                bound(&what, error, ATTENTION_BOUND)?;
                worst = worst.max(error);
            }
        }
    }
    Ok(format!("error {worst:.1e}"))
}

fn prefill_agrees(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    for (shape, fp8) in formats() {
        let contexts = vec![5, 130, random.between(129, 500)];
        let cache = Cache::new(device, random, shape, &contexts, fp8)?;
        let width = shape.heads * shape.head_dim;
        let shares: Vec<(usize, std::ops::Range<usize>)> =
            contexts.iter().enumerate().map(|(i, &context)| (i, random.below(context)..context)).collect();
        let tokens: usize = shares.iter().map(|(_, range)| range.len()).sum();
        let queries = random.halves(tokens * width, 2.0);
        let modes = [GemmMode::BatchInvariant, GemmMode::BatchVariant];
        let outs = [
            cache.prefill(device, &shares, &queries, modes[0])?,
            cache.prefill(device, &shares, &queries, modes[1])?,
        ];
        let mut row = 0;
        for (sequence, range) in shares {
            for position in range.clone() {
                // all rows of short shares, some of long ones: the reference is slow
                if range.len() < 20 || random.below(8) == 0 || position + 1 == range.end {
                    let at = row * width..(row + 1) * width;
                    let expected = cache.reference(sequence, position, &queries[at.clone()]);
                    for (mode, out) in modes.iter().zip(&outs) {
                        let error = relative_error(wide(&out[at.clone()]), &expected);
                        let what = format!("{mode:?}, position {position} of {range:?}");
                        bound(&what, error, ATTENTION_BOUND)?;
                        worst = worst.max(error);
                    }
                }
                row += 1;
            }
        }
    }
    Ok(format!("error {worst:.1e}"))
}

/// Every block takes several works, one after another.
fn prefill_rounds(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let contexts = if context.light { [1100, 300] } else { [2900, 900] };
    let mut worst: f64 = 0.0;
    for (heads, kv_heads, head_dim) in [(32, 8, 128), (24, 8, 64)] {
        let heads = Heads { heads, kv_heads, head_dim, page_size: 16, window: None };
        let cache = Cache::new(device, random, heads, &contexts, false)?;
        let width = heads.heads * heads.head_dim;
        let queries = random.halves(contexts.iter().sum::<usize>() * width, 2.0);
        let shares = [(0, 0..contexts[0]), (1, 0..contexts[1])];
        let whole = cache.prefill(device, &shares, &queries, GemmMode::BatchInvariant)?;
        let variant = cache.prefill(device, &shares, &queries, GemmMode::BatchVariant)?;
        let cut = random.between(1, contexts[0] - 1);
        for range in [0..cut, cut..contexts[0]] {
            let rows = range.start * width..range.end * width;
            let part =
                cache.prefill(device, &[(0, range)], &queries[rows.clone()], GemmMode::BatchInvariant)?;
            same_bits(&format!("rows {rows:?}"), &part, &whole[rows])?;
        }
        for _ in 0..12 {
            let position = random.below(contexts[0]);
            let at = position * width..(position + 1) * width;
            let expected = cache.reference(0, position, &queries[at.clone()]);
            for out in [&whole, &variant] {
                let error = relative_error(wide(&out[at.clone()]), &expected);
                bound(&format!("position {position}"), error, ATTENTION_BOUND)?;
                worst = worst.max(error);
            }
        }
    }
    Ok(format!("error {worst:.1e}"))
}

/// The bits of a position are the same alone and in a batch, by the decode and by the prefill kernel, in one
/// chunk and in several.
fn invariant(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut compared = 0;
    for (shape, fp8) in formats() {
        let long = if context.light { 200 } else { 777 };
        let contexts = vec![long, 130, 64, random.between(1, 400)];
        let cache = Cache::new(device, random, shape, &contexts, fp8)?;
        let width = shape.heads * shape.head_dim;
        let all: Vec<(usize, std::ops::Range<usize>)> =
            contexts.iter().enumerate().map(|(i, &context)| (i, 0..context)).collect();
        let queries = random.halves(contexts.iter().sum::<usize>() * width, 2.0);
        let whole = cache.prefill(device, &all, &queries, GemmMode::BatchInvariant)?;

        let cuts = [0, random.between(1, 127), 128, random.between(129, long - 1), long];
        for pair in cuts.windows(2) {
            let rows = pair[0] * width..pair[1] * width;
            let (share, mode) = ([(0, pair[0]..pair[1])], GemmMode::BatchInvariant);
            let part = cache.prefill(device, &share, &queries[rows.clone()], mode)?;
            same_bits(&format!("chunk {pair:?}"), &part, &whole[rows])?;
            compared += 1;
        }

        let ends: Vec<usize> = contexts
            .iter()
            .scan(0, |end, context| {
                *end += context;
                Some(*end - 1)
            })
            .collect();
        let row = |rows: &[bf16], i: usize| rows[ends[i] * width..][..width].to_vec();
        let last: Vec<bf16> = (0..contexts.len()).flat_map(|i| row(&queries, i)).collect();
        let together = cache.decode(device, &[0, 1, 2, 3], &last, GemmMode::BatchInvariant)?;
        for i in 0..contexts.len() {
            let alone = cache.decode(device, &[i], &last[i * width..][..width], GemmMode::BatchInvariant)?;
            same_bits(&format!("decode alone at {}", contexts[i]), &alone, &together[i * width..][..width])?;
            same_bits(&format!("decode against prefill at {}", contexts[i]), &alone, &row(&whole, i))?;
            compared += 2;
        }
    }
    Ok(format!("{compared} comparisons bit-equal"))
}

/// Codes give what the bf16 that they stand for gives, subnormals and the largest included.
fn fp8(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut compared = 0;
    for shape in shapes() {
        let contexts = vec![1, 200, random.between(129, 600)];
        let mut cache = Cache::new(device, random, shape, &contexts, true)?;
        let width = shape.heads * shape.head_dim;
        let shares: Vec<(usize, std::ops::Range<usize>)> =
            contexts.iter().enumerate().map(|(i, &context)| (i, 0..context)).collect();
        let queries = random.halves(contexts.iter().sum::<usize>() * width, 2.0);
        let last = &queries[..contexts.len() * width];
        let run = |cache: &Cache| -> Result<_, Failure> {
            let decoded = cache.decode(device, &[0, 1, 2], last, GemmMode::BatchInvariant)?;
            Ok((decoded, cache.prefill(device, &shares, &queries, GemmMode::BatchInvariant)?))
        };
        let codes = run(&cache)?;
        cache.codes = None;
        let halves = run(&cache)?;
        same_bits("decode", &codes.0, &halves.0)?;
        same_bits("prefill", &codes.1, &halves.1)?;
        compared += 2;
    }
    Ok(format!("{compared} comparisons bit-equal"))
}

/// More sequences than the GPU has blocks, long ones among short ones: every block draws work several times.
fn crowd(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let heads = Heads { heads: 8, kv_heads: 4, head_dim: 128, page_size: 16, window: None };
    let (crowd, long) = if context.light { (90, 400) } else { (250, 3000) };
    let contexts: Vec<usize> =
        (0..crowd).map(|i| if i % 50 == 7 { long } else { random.between(1, 300) }).collect();
    let cache = Cache::new(device, random, heads, &contexts, false)?;
    let width = heads.heads * heads.head_dim;
    let queries = random.halves(crowd * width, 2.0);
    let all: Vec<usize> = (0..crowd).collect();
    let together = cache.decode(device, &all, &queries, GemmMode::BatchInvariant)?;
    for (i, context) in contexts.iter().enumerate() {
        let row = i * width..(i + 1) * width;
        let alone = cache.decode(device, &[i], &queries[row.clone()], GemmMode::BatchInvariant)?;
        same_bits(&format!("sequence {i} of {context} positions"), &alone, &together[row])?;
    }
    Ok(format!("{crowd} sequences bit-equal"))
}
