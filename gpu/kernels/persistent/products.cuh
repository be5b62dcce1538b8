// Products of the persistent kernel, in the order of gemm.cu.
//
// Two groups of four warps take every other unit of a block; a warp of a group has one segment of k.

#define GROUP_WARPS 4
#define PRODUCT_WARPS 8
#define CHUNK 4  // loads of 16 bytes that a lane has under way

// Named barriers: of a group of four warps, and of all product warps.
DEVICE void group_sync(int id) { asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory"); }
DEVICE void products_sync() { asm volatile("bar.sync 4, 256;" ::: "memory"); }

// Sees from a few words that a message arrives; those who take it look at all of it.
DEVICE void watch(const u8* line, u64* hint) {
    int lane = threadIdx.x % 32;
#pragma unroll 1
    while (!__all_sync(FULL_WARP, complete(peek(line + lane % 8 * 16)))) pause();
    if (lane == 0) barrier_arrive(hint);
}

// What product warps wait for: inputs that arrive, an input that all are done with, and the scales of rows; and what tells
// that they have read those.
struct Signals {
    u64* hints;  // [KINDS]
    u64* settled;
    u64 *scaled, *taken;  // [2]
};

// A warp of a product group: one segment of k of every other unit of the block.
struct Worker {
    int group, segment, lane, g, t, rows;
    Ring ring;
    u32 slot;      // first of the current product
    float* parts;
};

// All product warps bring a message to shared memory, in rows of `stride` bytes.
DEVICE void gather(const Worker& me, const u8* message, int rows, const Share& share, u32 target, u32 stride,
                   u64* settled, u32 phase) {
    int width = share.columns / 8, chunks = rows * width, first = (me.group * GROUP_WARPS + me.segment) * 32 + me.lane;
    bool waited = false;
#pragma unroll 1
    for (int base = 0; base < chunks; base += CHUNK * PRODUCT_WARPS * 32) {
        uint4 v[CHUNK];
        bool ok[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            int c = base + j * PRODUCT_WARPS * 32 + first;
            ok[j] = c >= chunks;
            if (!ok[j]) v[j] = peek(message + (u32)c * 16);
        }
#pragma unroll 1
        while (true) {
            bool all = true;
#pragma unroll
            for (int j = 0; j < CHUNK; j++) {
                ok[j] = ok[j] || complete(v[j]);
                all = all && ok[j];
            }
            if (all) break;
            pause();
#pragma unroll
            for (int j = 0; j < CHUNK; j++)
                if (!ok[j]) v[j] = peek(message + (u32)(base + j * PRODUCT_WARPS * 32 + first) * 16);
        }
        if (!waited && phase) barrier_wait(settled, (phase - 1) & 1);
        waited = true;
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            int c = base + j * PRODUCT_WARPS * 32 + first;
            if (c >= chunks) continue;
            u32 row = __umulhi(c, share.inverse);
            asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(target + row * stride + (c - row * width) * 16),
                         "r"(v[j].x), "r"(v[j].y), "r"(v[j].z), "r"(v[j].w)
                         : "memory");
        }
    }
    __syncwarp();
}

// 32 columns of pairs of units and of x: weights are the left operand, 8 rows of each unit of a pair.
template <int PAIRS>
struct Operands {
    uint4 x, low[PAIRS], high[PAIRS];
    __device__ __forceinline__ void load(const u32 (&w)[PAIRS], u32 from) {
        x = load_shared(from);
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            low[p] = load_matrices(w[p]);
            high[p] = load_matrices(w[p] + 32);
        }
    }
    __device__ __forceinline__ void multiply(Fragment (&acc)[PAIRS]) const {
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            mma(acc[p], low[p].x, low[p].y, low[p].z, low[p].w, x.x, x.y);
            mma(acc[p], high[p].x, high[p].y, high[p].z, high[p].w, x.z, x.w);
        }
    }
};

// One segment of `units` units, whose slots lie `stride` apart. `x`: this lane's part of its row in shared memory.
template <int PAIRS>
DEVICE void multiply_segment(Fragment (&acc)[PAIRS], const Worker& me, u32 x, int k, int units, u32 slot, int stride) {
    int at = 2 * segment_begin(k, me.segment, 4), end = 2 * segment_begin(k, me.segment + 1, 4);
    u32 read = me.ring.base + me.lane % 8 * SLOT_STRIDE + me.lane / 16 * 16;
    int odd = me.lane / 8 & 1;
#pragma unroll 1
    while (at < end) {
        int s = at / SLOT_BLOCKS, run = (s + 1) * SLOT_BLOCKS < end ? (s + 1) * SLOT_BLOCKS - at : end - at;
        u32 w[PAIRS], from = x + at * 64;
#pragma unroll 1
        for (int r = 0; r < units; r++) me.ring.wait(slot + r * stride + s);
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            int unit = 2 * p + odd < units ? 2 * p + odd : 2 * p;  // a lone unit is both of its pair
            w[p] = read + me.ring.place(slot + unit * stride + s) * SLOT_BYTES + at % SLOT_BLOCKS * 64;
        }
        at += run;
        Operands<PAIRS> now, next;
        now.load(w, from);
#pragma unroll 2
        for (; run > 1; run--) {
            from += 64;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) w[p] += 64;
            next.load(w, from);  // arrives while these are multiplied
            now.multiply(acc);
            now = next;
        }
        now.multiply(acc);
    }
}

// Units of a group, from its `index`th on; each warp gets the sums of one of them at most: two columns of its row.
template <int PAIRS>
DEVICE float2 multiply_pass(const Worker& me, u32 x, int k, int index, int units, u32 slot, int slots, float* parts) {
    Fragment acc[PAIRS] = {};
    multiply_segment<PAIRS>(acc, me, x, k, units, slot, 2 * slots);
    if (index > 0) group_sync(1 + me.group);  // the parts of the pass before are read
    int pitch = 2 * PAIRS * 64;  // of segments; a unit's part is [column][row]
    float* mine = parts + me.segment * pitch + me.g * 8 + 2 * me.t;
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
        *(float2*)(mine + 128 * p) = make_float2(acc[p].c[0], acc[p].c[1]);
        *(float2*)(mine + 128 * p + 64) = make_float2(acc[p].c[2], acc[p].c[3]);
    }
    group_sync(1 + me.group);
    const float* part = parts + ((me.segment - index) & 3) % (2 * PAIRS) * 64 + me.t * 16 + me.g;
    float2 sums[4];
#pragma unroll
    for (int s = 0; s < 4; s++) sums[s] = make_float2(part[s * pitch], part[s * pitch + 8]);
#pragma unroll 1
    for (int r = 0; r < units; r++)
#pragma unroll 1
        for (int s = 0; s < slots; s++) me.ring.release(slot + r * 2 * slots + s);
    float2 total = sums[0];
#pragma unroll
    for (int s = 1; s < 4; s++) {
        total.x += sums[s].x;
        total.y += sums[s].y;
    }
    return total;
}

// The residual stream of a unit's columns has changed: post it times the weights of the next norm.
DEVICE void post_residual(const Model& m, const Worker& me, float2 residual, u8* weighed, u8* squares, float2 norm,
                          int unit) {
    float sum = square_pair(residual.x, residual.y);
    sum += __shfl_xor_sync(FULL_WARP, sum, 1);
    sum += __shfl_xor_sync(FULL_WARP, sum, 2);
    if (me.g >= me.rows) return;
    u32 word = pack_bf16(residual.x * norm.x, residual.y * norm.y);
    post(weighed + (me.g * (m.width / 2) + place_of(unit * 4 + me.t)) * 4, word);
    if (me.t == 0) post(squares + (me.g * (m.width / 8) + unit) * 4, __float_as_uint(sum));
}

template <int D>
DEVICE void multiply_layers(const Model& m, const Step& step, Worker& me, const Share* shares, const Signals& signals,
                            u32 inputs, const float (*scales)[PERSISTENT_ROWS], u32 tile_slots, u32 epoch) {
    int set = epoch & 1;
    int units = m.width / 8, own = first_unit(units, blockIdx.x) + 2 * me.segment + me.group;
    bool owner = own < first_unit(units, blockIdx.x + 1);
    int column = owner ? own * 8 + 2 * me.t : 0;
    float2 residual = make_float2(0, 0);
    if (owner) {
        int row = me.g < me.rows ? me.g : 0;
        u32 id = step.ids[row];
        if (id == PLACEHOLDER) id = m.last_tokens[step.slots[row]];
        u32 pair = *(const u32*)(m.embedding + (u64)id * m.width + column);
        residual = make_float2(low_bf16(pair), high_bf16(pair));
        Messages first = Messages::of<D>(m, set, 0);
        post_residual(m, me, residual, first.weighed(0), first.squares(0), *(const float2*)(m.norms + column), own);
    }
#pragma unroll 1
    for (int layer = 0; layer < m.layer_count; layer++) {
        Messages message = Messages::of<D>(m, set, layer);
        bool last = layer + 1 == m.layer_count;
        float2 mlp_norm = *(const float2*)(m.norms + (2 * layer + 1) * m.width + column), next_norm = make_float2(0, 0);
        if (!last) next_norm = *(const float2*)(m.norms + (2 * layer + 2) * m.width + column);
#pragma unroll 1
        for (int kind = 0; kind < 4; kind++) {
            bool normed = kind == QKV || kind == GATE_UP;
            const Share& share = shares[kind];
            int k = share.columns, begin = share.begin, slots = share.slots, most = share.most;
            int mine = (share.count + 1 - me.group) / 2;
            barrier_wait(signals.hints + kind, layer & 1);
            u32 phase = 4 * layer + kind, stride = 2 * k + 64;
            gather(me, message.base + share.input, me.rows, share, inputs, stride, signals.settled, phase);
            products_sync();
            u32 lane_x = inputs + (me.g < me.rows ? me.g : 0) * stride + me.t * 16;
            float* parts = me.parts + (normed ? 0 : 4 * WIDE_PASS * 64);
#pragma unroll 1
            for (int i = 0; i < mine;) {
                int now = mine - i < most ? mine - i : most;
                u32 slot = me.slot + (2 * i + me.group) * slots;
                float2 v = now > 2 ? multiply_pass<2>(me, lane_x, k, i, now, slot, slots, parts)
                                   : multiply_pass<1>(me, lane_x, k, i, now, slot, slots, parts);
                if (i + now == mine) barrier_arrive(signals.settled);
                int r = (me.segment - i) & 3, unit = begin + 2 * (i + r) + me.group;
                i += now;
                if (r >= now) continue;
                if (normed) {
                    barrier_wait(signals.scaled + kind / 2, layer & 1);
                    float scale = scales[kind / 2][me.g];
                    v.x *= scale;
                    v.y *= scale;
                }
                if (kind == QKV) {
                    if (me.g < me.rows)
                        post(message.qkv() + (me.g * (message.qkv_width / 2) + unit * 4 + me.t) * 4,
                             pack_bf16(v.x, v.y));
                } else if (kind == GATE_UP) {
                    float y = silu_mul(v.x, v.y), other = __shfl_down_sync(FULL_WARP, y, 1);
                    if (me.g < me.rows && me.t % 2 == 0)
                        post(message.gated() + (me.g * (m.intermediate / 2) + place_of(unit * 2 + me.t / 2)) * 4,
                             pack_bf16(y, other));
                } else {
                    residual.x = __fadd_rn(residual.x, v.x);
                    residual.y = __fadd_rn(residual.y, v.y);
                    if (kind == O) {
                        post_residual(m, me, residual, message.weighed(1), message.squares(1), mlp_norm, unit);
                    } else if (!last) {
                        Messages next = Messages::of<D>(m, set, layer + 1);
                        post_residual(m, me, residual, next.weighed(0), next.squares(0), next_norm, unit);
                    } else {
                        if (me.g < me.rows) *(float2*)(m.hidden + me.g * m.width + column) = residual;
                        // every other block has long read it
                        if (blockIdx.x == gridDim.x - 1 && me.lane == 0) *m.epoch = epoch + 1;
                    }
                }
            }
            if (mine == 0) barrier_arrive(signals.settled);
            if (normed) barrier_arrive(signals.taken + kind / 2);
            me.slot += share.count * slots + (kind == QKV ? tile_slots : 0);
        }
    }
}

// 1 / rms of all rows, from the sums of squares of a message; the loads of all rows are under way together. A function of its
// own, so that it takes no registers from the other warps' code.
static __device__ __noinline__ void scale_rows(const u8* squares, int rows, int width, float eps, float* scales,
                                               u64* scaled) {
    int lane = threadIdx.x % 32, groups = width / 8;
    float sum[PERSISTENT_ROWS] = {};
#pragma unroll 1
    for (int first = lane; first - lane < groups; first += 128) {
        u32 group[PERSISTENT_ROWS][4];
#pragma unroll 1
        while (true) {
            bool ok = true;
#pragma unroll
            for (int row = 0; row < PERSISTENT_ROWS; row++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    bool valid = row < rows && first + 32 * j < groups;
                    group[row][j] = valid ? peek_word(squares + (row * groups + first + 32 * j) * 4) : 0;
                }
            }
#pragma unroll
            for (int row = 0; row < PERSISTENT_ROWS; row++) {
#pragma unroll
                for (int j = 0; j < 4; j++) ok = ok && group[row][j] != MISSING;
            }
            if (__all_sync(FULL_WARP, ok)) break;
            pause();
        }
#pragma unroll
        for (int row = 0; row < PERSISTENT_ROWS; row++) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (first + 32 * j < groups) sum[row] = __fadd_rn(sum[row], __uint_as_float(group[row][j]));
        }
    }
#pragma unroll
    for (int row = 0; row < PERSISTENT_ROWS; row++) {
        float scale = rsqrtf(warp_sum(sum[row]) / width + eps);
        if (lane == 0) scales[row] = scale;
    }
    if (lane == 0) barrier_arrive(scaled);
}
