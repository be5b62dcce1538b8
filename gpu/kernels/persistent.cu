// A decode step of up to 8 rows in one kernel: embedding to the residual stream after the last layer.
//
// Every block stays on its multiprocessor. Weights run ahead through a ring, keys and values of the next tile too, so
// that the memory works on while blocks wait for each other. The order of every addition is that of the kernels that do one
// operation each: bits are the same. All blocks must be on the device at once.

#define ATTENTION_WARPS 4  // warps 0 .., then the products'
#define WEIGHTS_WARP 12    // copies weights
#define WATCH_WARP 13      // sees inputs of products arrive
#define KV_WARP 14         // copies keys and values
#define SCALE_WARP 15      // makes the second halves of norms
#define PERSISTENT_THREADS 512

#define ATTENTION_BYTES(D) (2 * Tile<D>::BYTES + 16 * Tile<D>::STRIDE + 16 * TILE_KEYS * 2)
// x of a product of `columns`, padded so that rows take turns in the banks
#define INPUT_BYTES(rows, columns) ((rows) * (2 * (columns) + 64))
#define PART_BYTES (2 * 4 * (WIDE_PASS + 2) * 64 * 4)

template <int D>
DEVICE void persistent(const Model& m, const Step& step) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(8) u64 full[MAX_SLOTS], empty[MAX_SLOTS];
    __shared__ __align__(8) u64 hints[KINDS], tile_barriers[4], scaled[2], gathered, settled;
    __shared__ Share shares[KINDS];
    __shared__ u32 filled[MAX_SLOTS], starts[MAX_ROWS + 1], contexts[MAX_ROWS];
    __shared__ float maxima[4][16], scales[2][MAX_ROWS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 tile_base = shared_address(memory);
    u32 parts_at = ATTENTION_BYTES(D), inputs_at = parts_at + PART_BYTES;
    Ring ring{tile_base + inputs_at + step.input_bytes, full, empty, filled, (u32)step.ring_slots,
              0xffffffffu / step.ring_slots + 1};
    Tiles tiles{tile_base,
                tile_base + Tile<D>::BYTES,
                {tile_barriers, tile_barriers + 1},
                {tile_barriers + 2, tile_barriers + 3}};
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 0; i < MAX_SLOTS; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 1);
            filled[i] = MISSING;
        }
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
            barrier_init(hints + i, 1);
            barrier_init(tile_barriers + i, i < 2 ? 32 : 1);
        }
        barrier_init(&gathered, PRODUCT_WARPS);
        barrier_init(&settled, PRODUCT_WARPS);
        barrier_init(scaled, 1);
        barrier_init(scaled + 1, 1);
        barrier_init_fence();
    }
    if (threadIdx.x <= step.rows) starts[threadIdx.x] = step.tile_starts[threadIdx.x];
    if (threadIdx.x < step.rows) contexts[threadIdx.x] = step.contexts[threadIdx.x];
    if (threadIdx.x < KINDS) shares[threadIdx.x] = Share::of<D>(m, threadIdx.x, step.ring_slots);
    u32 epoch = *(volatile u32*)m.epoch;
    __syncthreads();
    Items items{starts, contexts, step.rows, m.kv_heads, m.window, starts[step.rows] * m.kv_heads};
    if (warp < ATTENTION_WARPS) {
        attend_layers<D>(m, step, items, tiles, tile_base + 2 * Tile<D>::BYTES, maxima, epoch);
    } else if (warp < ATTENTION_WARPS + PRODUCT_WARPS) {
        Worker me;
        me.group = (warp - ATTENTION_WARPS) / GROUP_WARPS;
        me.segment = warp % GROUP_WARPS;
        me.lane = lane;
        me.g = lane / 4;
        me.t = lane % 4;
        me.rows = step.rows;
        me.slot = 0;
        me.ring = ring;
        me.parts = (float*)(memory + parts_at) + me.group * 4 * (WIDE_PASS + 2) * 64;
        Signals signals{hints, &gathered, &settled, scaled};
        multiply_layers<D>(m, step, me, shares, signals, tile_base + inputs_at, scales, epoch);
    } else if (warp == WEIGHTS_WARP) {
        u32 n = 0;
#pragma unroll 1
        for (int layer = 0; layer < m.layer_count; layer++) {
            const u16* const* matrices = &m.layers[layer].qkv;  // and those that follow it
#pragma unroll 1
            for (int kind = 0; kind < KINDS; kind++) copy_weights(ring, n, matrices[kind], shares[kind]);
        }
    } else if (warp == WATCH_WARP) {
#pragma unroll 1
        for (int layer = 0; layer < m.layer_count; layer++) {
            Messages message = Messages::of<D>(m, epoch & 1, layer);
#pragma unroll 1
            for (int kind = 0; kind < KINDS; kind++) watch(message.base + shares[kind].watched, hints + kind);
        }
    } else if (warp == KV_WARP) {
        copy_tiles<D>(m, step, items, tiles);
    } else {
#pragma unroll 1
        for (int layer = 0; layer < m.layer_count; layer++) {
            Messages message = Messages::of<D>(m, epoch & 1, layer);
            barrier_wait(hints + QKV, layer & 1);
            scale_rows(message.squares(0), step.rows, m.width, m.eps, scales[0], scaled);
            barrier_wait(hints + GATE_UP, layer & 1);
            scale_rows(message.squares(1), step.rows, m.width, m.eps, scales[1], scaled + 1);
        }
    }
}

#define PERSISTENT_STEP(D)                                                                                      \
    extern "C" __global__ void __launch_bounds__(PERSISTENT_THREADS, 1)                                         \
        persistent_step_##D(const __grid_constant__ Model m, const u32* ids, const u32* slots,                  \
                            const u32* positions, const u32* places, const u32* tables, const u32* table_starts, \
                            const u32* contexts, const u32* tile_starts, int rows, int input_bytes, int ring_slots) { \
        persistent<D>(m, Step{ids, slots, positions, places, tables, table_starts, contexts, tile_starts, rows, \
                              input_bytes, ring_slots});                                                        \
    }
PERSISTENT_STEP(64)
PERSISTENT_STEP(128)
