// A decode step of up to 8 rows in one kernel: embedding to the residual stream after the last layer.
//
// Every block stays on its multiprocessor. Weights, keys and values run ahead through a ring, so that the memory works on
// while blocks wait for each other. The code is kept short: a warp goes through most of it once a layer, no faster than
// instructions are fetched. The order of every addition is that of the kernels that do one operation each: bits are the
// same. All blocks are on the device at once: the launch is cooperative.

#define ATTENTION_WARPS 4  // warps 0 .., then the products'
#define COPY_WARP 12       // fills the ring
#define WATCH_WARP 13      // sees inputs of products arrive; the last makes the second halves of norms

#define ATTENTION_BYTES(D) (16 * Tile<D>::STRIDE + 16 * TILE_KEYS * 2 + QUARTERS_BYTES)

template <int D>
DEVICE void persistent(const Model& m, const Step& step) {
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ __align__(8) u64 full[2 * MAX_SLOTS], empty[MAX_SLOTS];
    __shared__ __align__(8) u64 hints[KINDS], scaled[2], taken[2], settled;
    __shared__ Share shares[KINDS];
    __shared__ u32 starts[PERSISTENT_ROWS + 1], contexts[PERSISTENT_ROWS];
    __shared__ float maxima[4][16], scales[2][PERSISTENT_ROWS];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 base = shared_address(memory) + 1023 & ~1023u;
    Ring ring{base, full, empty, 1, (u32)step.ring_slots, 0xffffffffu / step.ring_slots + 1};
    u32 queries_at = base + step.ring_slots * SLOT_BYTES, parts_at = queries_at + ATTENTION_BYTES(D);
    u32 inputs_at = parts_at + PART_BYTES;
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 0; i < MAX_SLOTS; i++) {
            barrier_init(full + i, 1);
            barrier_init(full + MAX_SLOTS + i, 1);
            barrier_init(empty + i, 32 * GROUP_WARPS);
        }
#pragma unroll 1
        for (int i = 0; i < KINDS; i++) barrier_init(hints + i, 1);
#pragma unroll 1
        for (int i = 0; i < 2; i++) {
            barrier_init(scaled + i, 1);
            barrier_init(taken + i, 32 * PRODUCT_WARPS);
        }
        barrier_init(&settled, 32 * PRODUCT_WARPS);
        barrier_init_fence();
    }
    if (threadIdx.x <= step.rows) starts[threadIdx.x] = step.tile_starts[threadIdx.x];
    if (threadIdx.x < step.rows) contexts[threadIdx.x] = step.contexts[threadIdx.x];
    if (threadIdx.x < KINDS) shares[threadIdx.x] = Share::of<D>(m, threadIdx.x, step.ring_slots);
    u32 epoch = *(volatile u32*)m.epoch;
    __syncthreads();
    Items items(starts, contexts, step.rows, m.kv_heads, m.window);
    u32 tile_slots = (items.end - items.begin) * Tile<D>::SLOTS, layer_slots = tile_slots;
#pragma unroll 1
    for (int kind = 0; kind < KINDS; kind++) layer_slots += shares[kind].count * shares[kind].slots;
    if (tile_slots > 2 * Tile<D>::SLOTS) ring.in_flight = 2;  // the memory is the bound
    if (warp < ATTENTION_WARPS) {
        auto quarters = (float2*)(memory + (parts_at - QUARTERS_BYTES - shared_address(memory)));
        attend_layers<D>(m, step, items, ring, shares[QKV].count * shares[QKV].slots, layer_slots, queries_at, maxima, quarters,
                         epoch);
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
        me.parts = (float*)(memory + (parts_at - shared_address(memory))) + me.group * 4 * (WIDE_PASS + 2) * 64;
        Signals signals{hints, &settled, scaled, taken};
        multiply_layers<D>(m, step, me, shares, signals, inputs_at, scales, tile_slots, epoch);
    } else if (warp == COPY_WARP) {
        u32 n = 0, page = items.begin < items.end ? page_of(m, step, items.find(items.begin)) : MISSING;
#pragma unroll 1
        for (int layer = 0; layer < m.layer_count; layer++) {
            const u16* const* matrices = &m.layers[layer].qkv;  // and those that follow it
#pragma unroll 1
            for (int kind = 0; kind < KINDS; kind++) {
                copy_weights(ring, n, matrices[kind], shares[kind]);
                if (kind == QKV) copy_tiles<D>(m, step, items, ring, n, layer, page);
            }
        }
    } else if (warp == WATCH_WARP) {
#pragma unroll 1
        for (int layer = 0; layer < m.layer_count; layer++) {
            Messages message = Messages::of<D>(m, epoch & 1, layer);
#pragma unroll 1
            for (int kind = 0; kind < KINDS; kind++) watch(message.base + shares[kind].watched, hints + kind);
        }
    } else {
#pragma unroll 1
        for (int layer = 0; layer < m.layer_count; layer++) {
            Messages message = Messages::of<D>(m, epoch & 1, layer);
#pragma unroll 1
            for (int i = 0; i < 2; i++) {
                barrier_wait(hints + (i ? GATE_UP : QKV), layer & 1);
                if (layer) barrier_wait(taken + i, layer - 1 & 1);
                scale_rows(message.squares(i), step.rows, m.width, m.eps, scales[i], scaled + i);
            }
        }
    }
}

#define PERSISTENT_STEP(D)                                                                                      \
    extern "C" __global__ void __launch_bounds__(PERSISTENT_THREADS, 1)                                         \
        persistent_step_##D(const __grid_constant__ Model m, const u32* ids, const u32* slots,                  \
                            const u32* positions, const u32* places, const u32* tables, const u32* table_starts, \
                            const u32* contexts, const u32* tile_starts, int rows, int ring_slots) {                 \
        persistent<D>(m, Step{ids, slots, positions, places, tables, table_starts, contexts, tile_starts, rows, \
                              ring_slots});                                                                     \
    }
PERSISTENT_STEP(64)
PERSISTENT_STEP(128)
