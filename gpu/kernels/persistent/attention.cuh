// Attention of the persistent kernel, in the order of attention.cuh: four warps, tile after tile.

// Address of 16 bytes of a row of probabilities, swizzled so that 8 rows of one column meet 32 banks.
DEVICE u32 chunk_address(u32 base, int row, int chunk) { return base + (row * 16 + (chunk ^ (row & 7))) * 16; }

struct Item {
    int sequence, kv_head, context, tile, tiles;
    u32 number;
};

template <int D>
struct Tile {
    static constexpr int STRIDE = 2 * D + 16;  // bytes; rows of one chunk meet 32 banks
    static constexpr int BYTES = TILE_KEYS * STRIDE;
};

// Where a block's keys and values lie, and who may touch them.
struct Tiles {
    u32 keys, values;
    u64* full[2];
    u64* empty[2];
};

// The next item of a block in this layer or the first of the next layer.
struct Items {
    const u32 *starts, *contexts;  // in shared memory
    int rows, kv_heads, window;
    u32 count;
    __device__ __forceinline__ Item find(u32 number) const {
        Item it;
        u32 unit = number / kv_heads;
        int sequence = 0;
#pragma unroll 1
        while (sequence + 1 < rows && starts[sequence + 1] <= unit) sequence++;
        it.number = number;
        it.sequence = sequence;
        it.context = contexts[sequence];
        it.kv_head = number - unit * kv_heads;
        it.tile = (it.context > window ? it.context - window : 0) / TILE_KEYS + (unit - starts[sequence]);
        it.tiles = starts[sequence + 1] - starts[sequence];
        return it;
    }
};

// Copies the keys and values of earlier steps, item after item.
template <int D>
DEVICE void copy_tiles(const Model& m, const Step& step, const Items& items, const Tiles& tiles) {
    int lane = threadIdx.x % 32;
    u32 n = 0;
#pragma unroll 1
    for (int layer = 0; layer < m.layer_count; layer++) {
        const u16* layer_pages = m.layers[layer].pages;
#pragma unroll 1
        for (u32 number = blockIdx.x; number < items.count; number += gridDim.x, n++) {
            Item it = items.find(number);
            int first = it.tile * TILE_KEYS, rows = it.context - 1 - first;
            rows = rows < TILE_KEYS ? rows : TILE_KEYS;
            // the tile's pages, one a lane
            const u32* table = step.tables + step.table_starts[it.sequence];
            int page = (first >> m.page_shift) + lane;
            u32 ids = lane << m.page_shift < TILE_KEYS && page << m.page_shift < it.context ? table[page] : 0;
#pragma unroll
            for (int is_value = 0; is_value < 2; is_value++) {
                if (n) barrier_wait(tiles.empty[is_value], (n - 1) & 1);
                u32 target = is_value ? tiles.values : tiles.keys;
                u64 head = (u64)is_value * m.kv_heads + it.kv_head;
                constexpr int ROWS = 256 / D;  // that a warp copies at once
                int page_size = 1 << m.page_shift, at = first & (page_size - 1);  // tiles begin within a page if that is large
                int run = page_size < TILE_KEYS ? page_size : TILE_KEYS, sub = lane / (D / 8), chunk = lane % (D / 8);
#pragma unroll 1
                for (int row0 = 0; row0 < rows; row0 += run) {
                    u64 page = __shfl_sync(FULL_WARP, ids, (at + row0) >> m.page_shift);
                    u64 offset = ((page * 2 * m.kv_heads + head) << m.page_shift) + ((at + row0) & (page_size - 1)) + sub;
                    const u16* source = layer_pages + offset * D + chunk * 8;
                    u32 to = target + (row0 + sub) * Tile<D>::STRIDE + chunk * 16;
                    int left = (run < rows - row0 ? run : rows - row0) - sub;
#pragma unroll 1
                    for (; left > 0; left -= 8 * ROWS) {
#pragma unroll
                        for (int i = 0; i < 8; i++)
                            if (i * ROWS < left) copy_async(to + i * ROWS * Tile<D>::STRIDE, source + i * ROWS * D, true);
                        source += 8 * ROWS * D;
                        to += 8 * ROWS * Tile<D>::STRIDE;
                    }
                    __syncwarp();
                    copy_commit();
                    if (number == blockIdx.x) copy_wait<1>();  // nobody waits for them yet: no burst
                }
                asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(tiles.full[is_value]))
                             : "memory");
            }
        }
    }
    copy_commit();
    copy_wait<0>();
}

// Scores of 16 query rows against 32 keys.
template <int D>
DEVICE void tile_scores(Fragment (&s)[4], u32 queries, u32 keys) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = Fragment{};
#pragma unroll
    for (int step = 0; step < D / 16; step += 2) {
        uint4 a0 = load_matrices(queries + lane % 16 * Tile<D>::STRIDE + (2 * step + lane / 16) * 16);
        uint4 a1 = load_matrices(queries + lane % 16 * Tile<D>::STRIDE + (2 * step + 2 + lane / 16) * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4 b = load_matrices(keys + (8 * i + lane % 8) * Tile<D>::STRIDE + (2 * step + lane / 8) * 16);
            mma(s[i], a0.x, a0.y, a0.z, a0.w, b.x, b.y);
            mma(s[i], a1.x, a1.y, a1.z, a1.w, b.z, b.w);
        }
    }
}

// Product of 16 rows of probabilities over 128 keys with 32 columns of values, and their sums.
template <int D>
DEVICE void tile_values(Fragment (&o)[4], Fragment& sums, u32 probabilities, u32 values) {
    constexpr u32 ONES = 0x3f803f80u;
    int lane = threadIdx.x % 32;
    sums = Fragment{};
#pragma unroll
    for (int i = 0; i < 4; i++) o[i] = Fragment{};
#pragma unroll
    for (int step = 0; step < 8; step++) {
        uint4 p = load_matrices(chunk_address(probabilities, lane % 16, 2 * step + lane / 16));
        mma(sums, p.x, p.y, p.z, p.w, ONES, ONES);
        u32 row = values + (step * 16 + lane % 16) * Tile<D>::STRIDE;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            uint4 b = load_matrices_transposed(row + (i + lane / 16) * 16);
            mma(o[i], p.x, p.y, p.z, p.w, b.x, b.y);
            mma(o[i + 1], p.x, p.y, p.z, p.w, b.z, b.w);
        }
    }
}

// Two halves of a head as a lane holds them.
template <int D>
struct Head {
    static constexpr int PER = D / 64;
    float low[PER], high[PER];

    // Waits for the head's elements of the QKV product.
    __device__ __forceinline__ void take(const u8* message) {
        int lane = threadIdx.x % 32, word = lane * PER / 2;
        u32 a, b;
#pragma unroll 1
        do {
            a = peek_word(message + word * 4);
            b = peek_word(message + (word + D / 4) * 4);
            if (__all_sync(FULL_WARP, a != MISSING && b != MISSING)) break;
            pause();
        } while (true);
        if (PER == 2) {
            low[0] = low_bf16(a), low[PER - 1] = high_bf16(a);
            high[0] = low_bf16(b), high[PER - 1] = high_bf16(b);
        } else {
            low[0] = lane % 2 ? high_bf16(a) : low_bf16(a);
            high[0] = lane % 2 ? high_bf16(b) : low_bf16(b);
        }
    }
    // What is known before them: their bias, norm and angles.
    struct Tables {
        float bias[2 * PER], norm[2 * PER], cosines[PER], sines[PER];
        bool biased, normed, turned;
        __device__ __forceinline__ Tables(const u16* bias_row, const float* norm_row, const float* cosine_row,
                                          const float* sine_row, bool turned)
            : biased(bias_row != nullptr), normed(turned && norm_row != nullptr), turned(turned) {
            int lane = threadIdx.x % 32;
#pragma unroll
            for (int j = 0; j < PER; j++) {
                int i = lane * PER + j;
                if (biased) bias[j] = from_bf16(bias_row[i]), bias[PER + j] = from_bf16(bias_row[i + D / 2]);
                if (normed) norm[j] = norm_row[i], norm[PER + j] = norm_row[i + D / 2];
                if (turned) cosines[j] = cosine_row[i], sines[j] = sine_row[i];
            }
        }
    };
    __device__ __forceinline__ void make(const Tables& tables, int norm_width, float eps) {
        if (tables.biased) {
#pragma unroll
            for (int j = 0; j < PER; j++) {
                low[j] += tables.bias[j];
                high[j] += tables.bias[PER + j];
            }
        }
        if (!tables.turned) return;
        if (tables.normed) {
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < PER; j++) sum = add_squares(sum, low[j], high[j]);
            float scale = rsqrtf(warp_sum(sum) / norm_width + eps);
#pragma unroll
            for (int j = 0; j < PER; j++) {
                low[j] *= scale * tables.norm[j];
                high[j] *= scale * tables.norm[PER + j];
            }
        }
#pragma unroll
        for (int j = 0; j < PER; j++) turn_pair(low[j], high[j], tables.cosines[j], tables.sines[j]);
    }
    __device__ __forceinline__ void to_tile(u32 tile, int row) const {
        int i = threadIdx.x % 32 * PER;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 at = tile + row * Tile<D>::STRIDE + (i + half * D / 2) * 2;
            const float* v = half ? high : low;
            if (PER == 2)
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(pack_bf16(v[0], v[PER - 1])) : "memory");
            else
                asm volatile("st.shared.u16 [%0], %1;" ::"r"(at), "h"(to_bf16(v[0])) : "memory");
        }
    }
    __device__ __forceinline__ void to_page(u16* out) const {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            out[lane * PER + j] = to_bf16(low[j]);
            out[lane * PER + j + D / 2] = to_bf16(high[j]);
        }
    }
};

// 64 columns of one query head, whose parts are to be folded.
struct FoldTask {
    const ulonglong2 *values, *stats;  // the lane's of the first part
    u32 stride;                        // from part to part
    int parts;                         // 0: nothing to do
    u32 place;                         // the lane's word of the result
    template <int D>
    static __device__ __forceinline__ FoldTask of(const Model& m, const Items& items, int number) {
        int lane = threadIdx.x % 32, group = m.heads / m.kv_heads;
        int unit = number / (D / 64), half = number % (D / 64), sequence = unit / m.heads, head = unit - sequence * m.heads;
        u32 start = items.starts[sequence];
        u64 part = ((u64)start * m.kv_heads + head / group) * group + head % group;
        FoldTask task;
        task.values = m.part_values + part * (D / 2) + half * 32 + lane;
        task.stats = m.part_stats + part;
        task.stride = m.kv_heads * group;
        task.parts = items.starts[sequence + 1] - start;
        task.place = sequence * m.heads * (D / 2) + place_of(head * (D / 2) + half * 32 + lane);
        return task;
    }
};

template <int D>
DEVICE void fold_parts_of(const FoldTask& task, u8* attended, u32 tag) {
    constexpr int BATCH = 10;
    int lane = threadIdx.x % 32, tiles = task.parts;
    float value0 = 0.0f, value1 = 0.0f, sum = 0.0f, running = NEGATIVE_INFINITY;
#pragma unroll 1
    for (int first = 0; first < tiles; first += 30) {
        int count = tiles - first < 30 ? tiles - first : 30;
        float2 stats = make_float2(NEGATIVE_INFINITY, 0.0f);
        float w_olds = 0.0f, w_news = 0.0f;
#pragma unroll 1
        for (int base = 0; base < count; base += BATCH) {
            ulonglong2 v[BATCH], s = {};
            bool ok;
#pragma unroll 1
            while (true) {
                if (base == 0 && lane < count) s = peek_pair(task.stats + (first + lane) * task.stride);
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (base + b < count) v[b] = peek_pair(task.values + (u64)(first + base + b) * task.stride * (D / 2));
                ok = base > 0 || lane >= count || ((u32)(s.x >> 32) == tag && (u32)(s.y >> 32) == tag);
#pragma unroll
                for (int b = 0; b < BATCH; b++)
                    if (base + b < count) ok = ok && (u32)(v[b].x >> 32) == tag && (u32)(v[b].y >> 32) == tag;
                if (__all_sync(FULL_WARP, ok)) break;
                pause();
            }
            if (base == 0) {
                if (lane < count) stats = make_float2(__uint_as_float((u32)s.x), __uint_as_float((u32)s.y));
                float before = __shfl_up_sync(FULL_WARP, stats.x, 1);
                before = lane ? before : NEGATIVE_INFINITY;
#pragma unroll
                for (int offset = 1; offset < 32; offset <<= 1) {
                    float other = __shfl_up_sync(FULL_WARP, before, offset);
                    if (lane >= offset) before = fmaxf(before, other);
                }
                before = fmaxf(before, running);
                Fold fold(before, stats.x);
                running = __shfl_sync(FULL_WARP, before, 31);
                w_olds = fold.old_weight;
                w_news = fold.new_weight;
            }
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (base + b >= count) break;
                float w_old = __shfl_sync(FULL_WARP, w_olds, base + b);
                float w_new = __shfl_sync(FULL_WARP, w_news, base + b);
                float part = __shfl_sync(FULL_WARP, stats.y, base + b);
                sum = __fmaf_rn(sum, w_old, __fmul_rn(part, w_new));
                value0 = __fmaf_rn(value0, w_old, __fmul_rn(__uint_as_float((u32)v[b].x), w_new));
                value1 = __fmaf_rn(value1, w_old, __fmul_rn(__uint_as_float((u32)v[b].y), w_new));
            }
        }
    }
    float inverse = tiles ? 1.0f / sum : 0.0f;
    post(attended + task.place * 4, pack_bf16(value0 * inverse, value1 * inverse));
}

template <int D>
DEVICE void attend_layers(const Model& m, const Step& step, const Items& items, const Tiles& tiles, u32 query_tile,
                          float (*maxima)[16], u32 epoch) {
    u32 probabilities = query_tile + 16 * Tile<D>::STRIDE;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int set = epoch & 1, group = m.heads / m.kv_heads, qkv_width = (m.heads + 2 * m.kv_heads) * D;
#pragma unroll 1
    for (int i = threadIdx.x; i < 16 * Tile<D>::STRIDE / 16; i += 128)
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(query_tile + i * 16), "r"(0) : "memory");
    group_sync(3);
    u32 n = 0;
    Item first = items.find(blockIdx.x);
    int tasks = step.rows * m.heads * (D / 64), own_task = gridDim.x - 1 - blockIdx.x + gridDim.x * warp;
    FoldTask own_fold = FoldTask::of<D>(m, items, own_task < tasks ? own_task : 0);
#pragma unroll 1
    for (int layer = 0; layer < m.layer_count; layer++) {
        Messages message = Messages::of<D>(m, set, layer);
        const LayerWeights& weights = m.layers[layer];
        u32 tag = epoch * m.layer_count + layer + 1;
        Item it = first;
#pragma unroll 1
        for (; it.number < items.count; n++) {
            const u8* row = message.qkv() + (u64)it.sequence * qkv_width * 2;
            u64 angle = (u64)step.positions[it.sequence] * (D / 2);
#pragma unroll 1
            for (int q = warp; q < group; q += 4) {
                Head<D> head;
                int number = it.kv_head * group + q;
                typename Head<D>::Tables tables(weights.bias ? weights.bias + number * D : nullptr, weights.q_norm,
                                                m.cosines + angle, m.sines + angle, true);
                head.take(row + number * D * 2);
                head.make(tables, m.norm_width, m.eps);
                head.to_tile(query_tile, q);
            }
            int newest = it.context - 1 - it.tile * TILE_KEYS, is_value = warp & 1;
            bool makes = newest < TILE_KEYS && warp >= 2;  // the newest key or value
            Head<D> own;
            u32 place = NO_SLOT;
            if (makes) {
                int number = m.heads + is_value * m.kv_heads + it.kv_head;
                typename Head<D>::Tables tables(weights.bias ? weights.bias + number * D : nullptr, weights.k_norm,
                                                m.cosines + angle, m.sines + angle, !is_value);
                place = step.places[it.sequence];
                own.take(row + number * D * 2);
                own.make(tables, m.norm_width, m.eps);
                barrier_wait(tiles.full[is_value], n & 1);
                own.to_tile(is_value ? tiles.values : tiles.keys, newest);
                // what lies behind has no weight, but must be numbers
                if (is_value)
#pragma unroll 1
                    for (int i = (newest + 1) * (Tile<D>::STRIDE / 16) + lane; i < Tile<D>::BYTES / 16; i += 32)
                        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(tiles.values + i * 16), "r"(0)
                                     : "memory");
            }
            barrier_wait(tiles.full[0], n & 1);
            group_sync(3);
            if (place != NO_SLOT) {
                u64 block = ((u64)(place >> m.page_shift) * 2 + is_value) * m.kv_heads + it.kv_head;
                own.to_page(weights.pages + ((block << m.page_shift) + (place & ((1u << m.page_shift) - 1))) * D);
            }
            Fragment s[4];
            tile_scores<D>(s, query_tile, tiles.keys + warp * 32 * Tile<D>::STRIDE);
            int last = it.context - 1, first_key = it.tile * TILE_KEYS;
            bool masked = newest < TILE_KEYS - 1 || first_key <= last - m.window;
            float low_max = NEGATIVE_INFINITY, high_max = NEGATIVE_INFINITY;
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int key = it.tile * TILE_KEYS + warp * 32 + i * 8 + 2 * t + j;
                    if (masked && (key > last || key <= last - m.window)) s[i].c[j] = s[i].c[j + 2] = NEGATIVE_INFINITY;
                    low_max = fmaxf(low_max, s[i].c[j]);
                    high_max = fmaxf(high_max, s[i].c[j + 2]);
                }
            }
            low_max = quad_max(low_max);
            high_max = quad_max(high_max);
            if (t == 0) {
                maxima[warp][g] = low_max;
                maxima[warp][g + 8] = high_max;
            }
            group_sync(3);
            if (threadIdx.x == 0) barrier_arrive(tiles.empty[0]);
            low_max = fmaxf(fmaxf(maxima[0][g], maxima[1][g]), fmaxf(maxima[2][g], maxima[3][g])) * m.scale;
            high_max = fmaxf(fmaxf(maxima[0][g + 8], maxima[1][g + 8]), fmaxf(maxima[2][g + 8], maxima[3][g + 8])) * m.scale;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int chunk = warp * 4 + i;
                u32 low = pack_bf16(probability(s[i].c[0], m.scale, low_max), probability(s[i].c[1], m.scale, low_max));
                u32 high = pack_bf16(probability(s[i].c[2], m.scale, high_max), probability(s[i].c[3], m.scale, high_max));
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(chunk_address(probabilities, g, chunk) + 4 * t), "r"(low)
                             : "memory");
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(chunk_address(probabilities, g + 8, chunk) + 4 * t),
                             "r"(high)
                             : "memory");
            }
            barrier_wait(tiles.full[1], n & 1);
            group_sync(3);
            constexpr int WARP_COLUMNS = D == 64 ? 32 : D / 4;
            if (warp * WARP_COLUMNS < D) {
                Fragment o[4];
                Fragment sums;
                tile_values<D>(o, sums, probabilities, tiles.values + warp * WARP_COLUMNS * 2);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int q = g + 8 * half;
                    if (q >= group) continue;
                    float maximum = NEGATIVE_INFINITY;
                    Fold fold(maximum, half ? high_max : low_max);
                    float inverse = 1.0f / fold(0.0f, sums.c[2 * half]);
                    u64 part = (u64)it.number * group + q;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int column = warp * WARP_COLUMNS + i * 8 + 2 * t;
                        float v0 = o[i].c[2 * half], v1 = o[i].c[2 * half + 1];
                        if (it.tiles == 1) {
                            int word = ((it.kv_head * group + q) * D + column) / 2;
                            post(message.attended() + ((u64)it.sequence * m.heads * (D / 2) + place_of(word)) * 4,
                                 pack_bf16(fold(0.0f, v0) * inverse, fold(0.0f, v1) * inverse));
                        } else {
                            post_pair(m.part_values + part * (D / 2) + column / 2, v0, v1, tag);
                        }
                    }
                    if (it.tiles > 1 && warp == 0 && t == 0)
                        post_pair(m.part_stats + part, half ? high_max : low_max, sums.c[2 * half], tag);
                }
            }
            group_sync(3);
            if (threadIdx.x == 0) barrier_arrive(tiles.empty[1]);
            it = items.find(it.number + gridDim.x);
        }
        if (own_task < tasks && own_fold.parts != 1) fold_parts_of<D>(own_fold, message.attended(), tag);
#pragma unroll 1
        for (int number = own_task + 4 * gridDim.x; number < tasks; number += 4 * gridDim.x) {
            FoldTask task = FoldTask::of<D>(m, items, number);
            if (task.parts != 1) fold_parts_of<D>(task, message.attended(), tag);
        }
        // what the step before last read, for the next
        u32 words = message.bytes(m.intermediate) / 16;
        uint4* old = (uint4*)Messages::of<D>(m, set ^ 1, layer).base;
#pragma unroll 1
        for (u32 i = blockIdx.x * 128 + threadIdx.x; i < words; i += gridDim.x * 128)
            old[i] = make_uint4(MISSING, MISSING, MISSING, MISSING);
    }
}

