use half::bf16;

use super::{
    KvPages,
    attention::{MAX_GROUP, log2_scale, window},
    check, check_len,
};
use crate::{
    Buffer, CudaError, Device, View,
    launch::{Shape, arguments},
    sizes::{
        MAX_SLOTS, PART_BYTES, PERSISTENT_ROWS, PERSISTENT_THREADS, QUARTERS_BYTES, SLOT_BYTES, SLOT_COLUMNS,
        TILE_KEYS,
    },
    tensor_map::{SWIZZLE_ALIGNMENT, TensorMap},
};

/// Shared memory of a block, beside what the kernel declares itself.
const SHARED_BYTES: usize = 225 << 10;
/// Rows of weights that a block takes together.
const UNIT_ROWS: usize = 8;
/// Units of the residual stream that a block has room for.
const MAX_UNITS: usize = 8;

/// A decoder that runs a step of few rows in one kernel.
#[derive(Debug, Clone, Copy)]
pub struct PersistentShape {
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Elements of a head before it was padded to `head_dim`.
    pub norm_width: usize,
    pub intermediate: usize,
    pub window: Option<u32>,
    pub eps: f32,
    /// Of attention scores.
    pub scale: f32,
}

impl PersistentShape {
    fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_heads * self.head_dim
    }

    /// Units and columns of the four products of a layer.
    fn products(&self) -> [(usize, usize); 4] {
        [
            (self.qkv_width() / UNIT_ROWS, self.width),
            (self.width / UNIT_ROWS, self.query_width()),
            (2 * self.intermediate / UNIT_ROWS, self.width),
            (self.width / UNIT_ROWS, self.intermediate),
        ]
    }

    /// How many blocks share the weights most evenly, at most one a multiprocessor; the fewest of equals, each with some of a
    /// product.
    fn blocks(&self, multiprocessors: usize) -> usize {
        let longest = |blocks: usize| -> usize {
            self.products().iter().map(|(units, columns)| units.div_ceil(blocks) * columns).sum()
        };
        (1..=multiprocessors).min_by_key(|&blocks| (longest(blocks), blocks)).unwrap_or(1)
    }

    fn longest_input(&self) -> usize {
        self.products().iter().map(|&(_, columns)| columns).max().unwrap_or(0)
    }

    /// Of x, whose rows are padded so that they take turns in the banks.
    fn input_bytes(&self, rows: usize) -> usize {
        rows * (2 * self.longest_input() + 64)
    }

    fn attention_bytes(&self) -> usize {
        16 * (2 * self.head_dim + 16) + 16 * TILE_KEYS * 2 + QUARTERS_BYTES
    }

    fn bytes_beside_ring(&self, rows: usize) -> usize {
        SWIZZLE_ALIGNMENT + self.attention_bytes() + PART_BYTES + self.input_bytes(rows)
    }

    /// Places for weights beside the inputs of so many rows.
    fn ring_slots(&self, rows: usize) -> usize {
        (SHARED_BYTES.saturating_sub(self.bytes_beside_ring(rows)) / SLOT_BYTES).min(MAX_SLOTS)
    }

    /// Most rows of a step; 0: the kernel is not for this decoder.
    pub fn max_rows(&self, multiprocessors: usize) -> usize {
        let whole = [self.width, self.query_width(), self.intermediate].iter().all(|size| size % 64 == 0);
        let grouped = self.heads / self.kv_heads <= MAX_GROUP;
        let blocks = self.blocks(multiprocessors);
        if !whole || !grouped || (self.width / UNIT_ROWS).div_ceil(blocks) > MAX_UNITS {
            return 0;
        }
        let slots = |columns: usize| columns.div_ceil(SLOT_COLUMNS);
        let [(qkv_units, qkv_columns), ..] = self.products();
        let (qkv, tile) = (qkv_units.div_ceil(blocks) * slots(qkv_columns), 2 * self.head_dim / 64);
        // A unit's weights lie in the ring together, and so do keys and values of a tile. Whoever waits for the first tile of
        // a layer knows that what came before the layer was copied, and is ahead of the copies by less than two rounds.
        let least = slots(self.longest_input()).max(tile).max((qkv + tile).div_ceil(2));
        (1..=PERSISTENT_ROWS).rev().find(|&rows| self.ring_slots(rows) >= least).unwrap_or(0)
    }

    fn kernel(&self) -> Result<&'static str, CudaError> {
        match self.head_dim {
            64 => Ok("persistent_step_64"),
            128 => Ok("persistent_step_128"),
            other => Err(CudaError::Unsupported(format!("heads of {other} elements"))),
        }
    }

    /// Bytes of the messages of one layer and set.
    fn message_bytes(&self) -> usize {
        PERSISTENT_ROWS * (5 * self.width + 2 * (self.qkv_width() + self.query_width() + self.intermediate))
    }
}

/// Weights of one layer.
#[derive(Debug, Clone, Copy)]
pub struct PersistentLayer<'a> {
    /// As in [`super::Gemm`], gate and up interleaved.
    pub qkv: View<'a, bf16>,
    pub o: View<'a, bf16>,
    pub gate_up: View<'a, bf16>,
    pub down: View<'a, bf16>,
    pub qkv_bias: Option<View<'a, bf16>>,
    /// Of a query head and a key head, [head_dim].
    pub head_norms: Option<[View<'a, f32>; 2]>,
    /// [pages, keys and values, kv_heads, page_size, head_dim]
    pub pages: View<'a, bf16>,
}

/// What a persistent kernel keeps on the device. The weights and pages that it was made of must outlive it.
#[derive(Debug)]
pub struct PersistentState {
    /// [layers, 8 addresses]
    layers: Buffer<u64>,
    /// Two sets.
    messages: Buffer<u8>,
    /// Parts of sequences of several tiles: two floats of [max_tiles, heads, head_dim] in 16 bytes, and their sums.
    part_values: Buffer<u64>,
    part_stats: Buffer<u64>,
    epoch: Buffer<u32>,
    max_tiles: usize,
    /// Steps since the epoch was 0, without those of captures.
    steps: u32,
    most_steps: u32,
}

impl PersistentState {
    /// Room for steps of at most `max_tiles` attention tiles.
    pub fn new(
        device: &Device,
        shape: &PersistentShape,
        layers: &[PersistentLayer<'_>],
        max_tiles: usize,
    ) -> Result<Self, CudaError> {
        check(layers.len() == shape.layers, || format!("{} layers of {}", layers.len(), shape.layers))?;
        let mut addresses = Vec::with_capacity(8 * layers.len());
        for layer in layers {
            for ((name, matrix), (units, columns)) in
                [("qkv", layer.qkv), ("o", layer.o), ("gate_up", layer.gate_up), ("down", layer.down)]
                    .into_iter()
                    .zip(shape.products())
            {
                check_len(name, matrix, units * UNIT_ROWS * columns)?;
                addresses.push(matrix.address());
            }
            let [q_norm, k_norm] = layer.head_norms.map_or([0; 2], |norms| norms.map(|norm| norm.address()));
            addresses.extend([
                layer.qkv_bias.map_or(0, |bias| bias.address()),
                q_norm,
                k_norm,
                layer.pages.address(),
            ]);
        }
        let parts = max_tiles * shape.heads;
        let mut state = Self {
            layers: device.upload(&addresses)?,
            messages: device.allocate(2 * shape.layers * shape.message_bytes())?,
            part_values: device.allocate(parts * shape.head_dim)?,
            part_stats: device.allocate(2 * parts)?,
            epoch: device.allocate(1)?,
            max_tiles,
            steps: 0,
            most_steps: most_steps(shape.layers),
        };
        state.restart(device)?;
        Ok(state)
    }

    /// Before each step. Parts of attention carry the number of their step and layer: all are wiped before numbers come again.
    pub fn begin_step(&mut self, device: &Device) -> Result<(), CudaError> {
        if self.steps == self.most_steps {
            self.restart(device)?;
        }
        self.steps += 1;
        Ok(())
    }

    /// As if no step had been.
    fn restart(&mut self, device: &Device) -> Result<(), CudaError> {
        device.fill_bytes(self.messages.view(), 0xff)?;
        device.fill_bytes(self.part_values.view(), 0)?;
        device.fill_bytes(self.part_stats.view(), 0)?;
        device.fill_bytes(self.epoch.view(), 0)?;
        self.steps = 0;
        Ok(())
    }

    /// Attention tiles that a step may have.
    pub fn max_tiles(&self) -> usize {
        self.max_tiles
    }
}

/// Steps of so many layers that 32 bits can number: half of them, which leaves room for those of captures.
fn most_steps(layers: usize) -> u32 {
    u32::MAX / (2 * layers as u32)
}

/// A decode step from token ids to the residual stream after the last layer.
#[derive(Debug, Clone, Copy)]
pub struct PersistentStep<'a> {
    pub shape: PersistentShape,
    pub state: &'a PersistentState,
    /// [rows, width]
    pub hidden: View<'a, f32>,
    /// [vocab, width]
    pub embedding: View<'a, bf16>,
    /// [layers, before attention and before the gated product, width]
    pub norms: View<'a, f32>,
    /// [positions, head_dim / 2]
    pub cosines: View<'a, f32>,
    pub sines: View<'a, f32>,
    /// Of all layers.
    pub kv: KvPages<'a>,
    /// As in [`super::Embed`].
    pub ids: View<'a, u32>,
    pub slots: View<'a, u32>,
    pub last_tokens: View<'a, u32>,
    /// As in [`super::QkvHead`].
    pub positions: View<'a, u32>,
    pub places: View<'a, u32>,
    /// As in [`super::DecodeAttention`]; at most [`PersistentState::max_tiles`] tiles.
    pub tables: View<'a, u32>,
    pub table_starts: View<'a, u32>,
    pub contexts: View<'a, u32>,
    pub tile_starts: View<'a, u32>,
    pub rows: usize,
}

/// `Model` of messages.cuh.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct ModelWords {
    pages: TensorMap,
    layers: u64,
    norms: u64,
    embedding: u64,
    cosines: u64,
    sines: u64,
    hidden: u64,
    messages: u64,
    part_values: u64,
    part_stats: u64,
    epoch: u64,
    last_tokens: u64,
    sizes: [i32; 9],
    eps: f32,
    scale: f32,
}

impl Device {
    /// Whether each multiprocessor has room for a block of a step: they run at once or not at all.
    pub fn holds_persistent(&self, shape: &PersistentShape) -> Result<bool, CudaError> {
        let kernel = self.kernels().get(shape.kernel()?);
        Ok(kernel.occupancy_max_active_blocks_per_multiprocessor(
            PERSISTENT_THREADS as u32,
            SHARED_BYTES,
            None,
        )? > 0)
    }

    pub fn persistent_step(&self, op: PersistentStep<'_>) -> Result<(), CudaError> {
        let PersistentStep { shape, state, rows, .. } = op;
        let multiprocessors = self.info().multiprocessors as usize;
        check(rows > 0 && rows <= shape.max_rows(multiprocessors), || {
            format!("a persistent step of {rows} rows")
        })?;
        check_len("hidden", op.hidden, rows * shape.width)?;
        check_len("norms", op.norms, 2 * shape.layers * shape.width)?;
        for (name, list) in [
            ("ids", op.ids),
            ("slots", op.slots),
            ("positions", op.positions),
            ("places", op.places),
            ("contexts", op.contexts),
            ("table_starts", op.table_starts),
        ] {
            check_len(name, list, rows)?;
        }
        check_len("tile_starts", op.tile_starts, rows + 1)?;
        let page_shift = op.kv.page_shift()?;
        let sizes = [
            shape.layers,
            shape.width,
            shape.heads,
            shape.kv_heads,
            shape.intermediate,
            page_shift as usize,
            window(shape.window) as usize,
            shape.norm_width,
            op.kv.layer_rows(shape.layers),
        ];
        let model = ModelWords {
            pages: op.kv.pages.map(shape.head_dim, op.kv.page_size.min(TILE_KEYS))?,
            layers: state.layers.view().address(),
            norms: op.norms.address(),
            embedding: op.embedding.address(),
            cosines: op.cosines.address(),
            sines: op.sines.address(),
            hidden: op.hidden.address(),
            messages: state.messages.view().address(),
            part_values: state.part_values.view().address(),
            part_stats: state.part_stats.view().address(),
            epoch: state.epoch.view().address(),
            last_tokens: op.last_tokens.address(),
            sizes: sizes.map(|size| size as i32),
            eps: shape.eps,
            scale: log2_scale(shape.scale),
        };
        let ring_slots = shape.ring_slots(rows);
        let shared = shape.bytes_beside_ring(rows) + ring_slots * SLOT_BYTES;
        let arguments = arguments![
            op.ids,
            op.slots,
            op.positions,
            op.places,
            op.tables,
            op.table_starts,
            op.contexts,
            op.tile_starts,
            rows as i32,
            ring_slots as i32,
        ];
        let blocks = shape.blocks(multiprocessors) as u32;
        let grid = Shape::new([blocks, 1, 1], PERSISTENT_THREADS as u32).shared(shared).together();
        // SAFETY: signature of persistent_step; lengths checked here and in `PersistentState::new`, ids, positions,
        // places, tables and contexts on the device are trusted.
        unsafe { self.launch_mapped(shape.kernel()?, grid, &[model], arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::{PersistentShape, most_steps};

    fn shape(
        width: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        intermediate: usize,
    ) -> PersistentShape {
        PersistentShape {
            layers: 1,
            width,
            heads,
            kv_heads,
            head_dim,
            norm_width: head_dim,
            intermediate,
            window: None,
            eps: 1e-6,
            scale: 1.0,
        }
    }

    #[test]
    fn blocks_have_equal_shares_where_they_can() {
        assert_eq!(shape(1024, 16, 8, 128, 3072).blocks(132), 128);
        assert_eq!(shape(192, 6, 2, 64, 320).blocks(132), 80);
        assert_eq!(shape(2048, 16, 8, 128, 6144).blocks(132), 128);
    }

    #[test]
    fn layers_of_steps_are_numbered_in_32_bits() {
        for layers in [1, 28, 126] {
            let (steps, captures) = (u64::from(most_steps(layers)), 1000);
            assert!((steps + captures) * (layers as u64) < u64::from(u32::MAX));
            assert!(steps > 1 << 20);
        }
    }

    #[test]
    fn rows_are_bounded_by_what_is_left_for_weights() {
        assert_eq!(shape(1024, 16, 8, 128, 3072).max_rows(132), 8);
        assert_eq!(shape(2048, 16, 8, 128, 8192).max_rows(132), 4);
        assert_eq!(shape(960, 15, 5, 64, 2560).max_rows(132), 8);
        assert_eq!(shape(100, 2, 1, 64, 320).max_rows(132), 0, "rows of no whole blocks of 64");
    }
}
