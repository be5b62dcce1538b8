// Attention of the persistent kernel, in the order of attention.cuh: four warps, tile after tile of the ring.

// Address of 16 bytes of a row of probabilities, swizzled so that 8 rows of one column meet 32 banks.
DEVICE u32 chunk_address(u32 base, int row, int chunk) { return base + (row * 16 + (chunk ^ (row & 7))) * 16; }

struct Item {
    int sequence, kv_head, context, tile, tiles;
    u32 number, part;
    bool begins;  // the first tile of its heads
};

template <int D>
struct Tile {
    static constexpr int STRIDE = 2 * D + 16;              // bytes of a row of queries; rows of one chunk meet 32 banks
    static constexpr int HALVES = D / 64, SLOTS = 2 * HALVES;  // slots of keys or of values, and of both
};

// Address of 16 bytes of a row of 64 columns of keys or values, swizzled by the copy engine.
DEVICE u32 half_address(u32 slot, int row, int chunk) { return slot + row * 128 + (chunk ^ row % 8) * 16; }

// Tiles of one key head after another, sequence by sequence. A block has a run of them, so that most have the queries of
// the one before.
struct Items {
    const u32 *starts, *contexts;  // in shared memory
    int rows, kv_heads, window;
    u32 begin, end;
    __device__ __forceinline__ Items(const u32* starts, const u32* contexts, int rows, int kv_heads, int window)
        : starts(starts), contexts(contexts), rows(rows), kv_heads(kv_heads), window(window) {
        u32 count = starts[rows] * kv_heads, each = count / gridDim.x, more = count % gridDim.x, block = blockIdx.x;
        begin = block * each + (block < more ? block : more);
        end = begin + each + (block < more ? 1 : 0);
    }
    __device__ __forceinline__ Item find(u32 number) const {
        Item it;
        int sequence = 0;
#pragma unroll 1
        while (sequence + 1 < rows && starts[sequence + 1] * kv_heads <= number) sequence++;
        int start = starts[sequence], own = number - start * kv_heads;
        it.tiles = starts[sequence + 1] - start;
        it.kv_head = own / it.tiles;
        int tile = own - it.kv_head * it.tiles;
        it.begins = tile == 0;
        it.part = (start + tile) * kv_heads + it.kv_head;
        it.number = number;
        it.sequence = sequence;
        it.context = contexts[sequence];
        it.tile = (it.context > window ? it.context - window : 0) / TILE_KEYS + tile;
        return it;
    }
};

// Pages of a tile, one a lane.
DEVICE u32 page_of(const Model& m, const Step& step, const Item& it) {
    int lane = threadIdx.x % 32, page = (it.tile * TILE_KEYS >> m.page_shift) + lane;
    bool valid = lane << m.page_shift < TILE_KEYS && page << m.page_shift < it.context;
    return valid ? step.tables[step.table_starts[it.sequence] + page] : MISSING;
}

// Copies a block's tiles of a layer, from slot n on; `page` is this lane's page of the first, then of the next layer's first.
template <int D>
DEVICE void copy_tiles(const Model& m, const Step& step, const Items& items, const Ring& ring, u32& n, int layer, u32& page) {
    int lane = threadIdx.x % 32, page_size = 1 << m.page_shift, rows = page_size < TILE_KEYS ? page_size : TILE_KEYS;
    u64 policy = read_once();
#pragma unroll 1
    for (u32 number = items.begin; number < items.end; number++) {
        Item it = items.find(number);
        bool valid = page != MISSING;
        u32 bytes = __popc(__ballot_sync(FULL_WARP, valid)) * rows * 128;
        int row = ((page * 2 * m.kv_heads + it.kv_head) << m.page_shift) + layer * m.layer_rows;
        if (page_size > TILE_KEYS) row += it.tile * TILE_KEYS & (page_size - 1);
        page = page_of(m, step, items.find(number + 1 < items.end ? number + 1 : items.begin));  // arrives while this waits
#pragma unroll 1
        for (int i = 0; i < Tile<D>::SLOTS; i++, n++) {
            ring.begin(n, bytes);
            if (valid)
                copy_box(ring.address(n) + lane * rows * 128, m.pages, i % Tile<D>::HALVES * 64,
                         row + (i / Tile<D>::HALVES * m.kv_heads << m.page_shift), ring.filled(n), policy);
        }
    }
}

// Scores of 16 query rows against 32 keys, from `key0` on, of the tile in slot n and those that follow it.
template <int D>
DEVICE void tile_scores(Fragment (&s)[4], u32 queries, const Ring& ring, u32 n, int key0) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = Fragment{};
#pragma unroll
    for (int half = 0; half < Tile<D>::HALVES; half++) {
        u32 keys = ring.address(n + half);
#pragma unroll
        for (int step = 0; step < 4; step += 2) {
            u32 at = queries + lane % 16 * Tile<D>::STRIDE + (8 * half + 2 * step + lane / 16) * 16;
            uint4 a0 = load_matrices(at), a1 = load_matrices(at + 32);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint4 b = load_matrices(half_address(keys, key0 + 8 * i + lane % 8, 2 * step + lane / 8));
                mma(s[i], a0.x, a0.y, a0.z, a0.w, b.x, b.y);
                mma(s[i], a1.x, a1.y, a1.z, a1.w, b.z, b.w);
            }
        }
    }
}

// Product of 16 rows of probabilities over 128 keys with 32 columns of values, from 16 bytes `chunk` of a slot on.
DEVICE void tile_values(Fragment (&o)[4], u32 probabilities, u32 values, int chunk) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) o[i] = Fragment{};
#pragma unroll
    for (int step = 0; step < 8; step++) {
        uint4 p = load_matrices(chunk_address(probabilities, lane % 16, 2 * step + lane / 16));
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            uint4 b = load_matrices_transposed(half_address(values, step * 16 + lane % 16, chunk + i + lane / 16));
            mma(o[i], p.x, p.y, p.z, p.w, b.x, b.y);
            mma(o[i + 1], p.x, p.y, p.z, p.w, b.z, b.w);
        }
    }
}

// Where a warp leaves what the probabilities of its quarter of a tile add up to, a pair of floats a lane: row g + 8 half.
DEVICE float2* quarter_place(float2* quarters, int warp, int half) {
    return quarters + (warp * 16 + half * 8) * 4 + threadIdx.x % 32;
}

// The sum of a row, from all quarters.
DEVICE float row_sum(float2* quarters, int half) {
    float2 q[4];
#pragma unroll
    for (int warp = 0; warp < 4; warp++) q[warp] = *quarter_place(quarters, warp, half);
    return quad_sum(join_quarters(q[0].x, q[1].x, q[2].x, q[3].x) + join_quarters(q[0].y, q[1].y, q[2].y, q[3].y));
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
    // A row of the tile whose first slot is n.
    __device__ __forceinline__ void to_slots(const Ring& ring, u32 n, int row) const {
        int lane = threadIdx.x % 32;
        if (PER == 2) {
            u32 within = lane % 4 * 4;
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(half_address(ring.address(n), row, lane / 4) + within),
                         "r"(pack_bf16(low[0], low[PER - 1]))
                         : "memory");
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(half_address(ring.address(n + 1), row, lane / 4) + within),
                         "r"(pack_bf16(high[0], high[PER - 1]))
                         : "memory");
        } else {
            u32 within = lane % 8 * 2;
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(half_address(ring.address(n), row, lane / 8) + within),
                         "h"(to_bf16(low[0]))
                         : "memory");
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(half_address(ring.address(n), row, 4 + lane / 8) + within),
                         "h"(to_bf16(high[0]))
                         : "memory");
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
    constexpr int BATCH = 12;  // 1,536 positions at once
    int lane = threadIdx.x % 32;
    u32 step = task.stride * (D / 2);
    float value0 = 0.0f, value1 = 0.0f, sum = 0.0f, running = NEGATIVE_INFINITY;
#pragma unroll 1
    for (int first = 0; first < task.parts; first += BATCH) {
        int count = task.parts - first < BATCH ? task.parts - first : BATCH;
        const ulonglong2* at = task.values + (u64)first * step;
        ulonglong2 v[BATCH], s;
#pragma unroll 1
        while (true) {
            s = peek_pair(task.stats + (first + (lane < count ? lane : 0)) * task.stride);
            u32 other = (u32)(s.x >> 32) ^ tag | (u32)(s.y >> 32) ^ tag;
#pragma unroll
            for (int b = 0; b < BATCH; b++) v[b] = peek_pair(at + (b < count ? b * step : 0));
#pragma unroll
            for (int b = 0; b < BATCH; b++) other |= (u32)(v[b].x >> 32) ^ tag | (u32)(v[b].y >> 32) ^ tag;
            if (__all_sync(FULL_WARP, other == 0)) break;
            pause();
        }
        // of part first + lane
        float own = lane < count ? __uint_as_float((u32)s.x) : NEGATIVE_INFINITY, own_sum = __uint_as_float((u32)s.y);
        // the base before each part: parts that raise it one after another, which are few
        float before = running;
        int from = 0;
#pragma unroll 1
        while (true) {
            u32 raising = __ballot_sync(FULL_WARP, lane >= from && raise_base(before, own) != before);
            if (!raising) break;
            int part = __ffs(raising) - 1;
            running = __shfl_sync(FULL_WARP, own, part);
            if (lane > part) before = running;
            from = part + 1;
        }
        Fold fold(before, own);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            if (b >= count) break;
            float w_old = __shfl_sync(FULL_WARP, fold.old_weight, b);
            float w_new = __shfl_sync(FULL_WARP, fold.new_weight, b);
            float part = __shfl_sync(FULL_WARP, own_sum, b);
            sum = __fmaf_rn(part, w_new, __fmul_rn(sum, w_old));
            value0 = __fmaf_rn(__uint_as_float((u32)v[b].x), w_new, __fmul_rn(value0, w_old));
            value1 = __fmaf_rn(__uint_as_float((u32)v[b].y), w_new, __fmul_rn(value1, w_old));
        }
    }
    float inverse = task.parts ? 1.0f / sum : 0.0f;
    post(attended + task.place * 4, pack_bf16(value0 * inverse, value1 * inverse));
}

template <int D>
DEVICE void attend_layers(const Model& m, const Step& step, const Items& items, const Ring& ring, u32 slot, u32 layer_slots,
                          u32 query_tile, float (*maxima)[16], float2* quarters, u32 epoch) {
    u32 probabilities = query_tile + 16 * Tile<D>::STRIDE;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int set = epoch & 1, group = m.heads / m.kv_heads, qkv_width = (m.heads + 2 * m.kv_heads) * D;
#pragma unroll 1
    for (int i = threadIdx.x; i < 16 * Tile<D>::STRIDE / 16; i += 128)
        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(query_tile + i * 16), "r"(0) : "memory");
    group_sync(3);
    constexpr int HALVES = Tile<D>::HALVES;
    Item first = items.find(items.begin);
    int tasks = step.rows * m.heads * (D / 64), own_task = gridDim.x - 1 - blockIdx.x + gridDim.x * warp;
    FoldTask own_fold = FoldTask::of<D>(m, items, own_task < tasks ? own_task : 0);
#pragma unroll 1
    for (int layer = 0; layer < m.layer_count; layer++, slot += layer_slots) {
        Messages message = Messages::of<D>(m, set, layer);
        const LayerWeights& weights = m.layers[layer];
        u32 tag = epoch * m.layer_count + layer + 1;
        Item it = first;
#pragma unroll 1
        for (u32 n = slot; it.number < items.end; n += Tile<D>::SLOTS) {
            const u8* row = message.qkv() + (u64)it.sequence * qkv_width * 2;
            u64 angle = (u64)step.positions[it.sequence] * (D / 2);
            int newest = it.context - 1 - it.tile * TILE_KEYS, is_value = warp & 1;
            bool makes = newest < TILE_KEYS && warp >= 2;  // the newest key or value
            Head<D> own;
            u32 place = NO_SLOT;
            // a warp's queries, then its newest key or value
#pragma unroll 1
            for (int q = (it.begins || it.number == items.begin) ? warp : group; q < group || makes; q += 4) {
                bool query = q < group;
                int number = query ? it.kv_head * group + q : m.heads + is_value * m.kv_heads + it.kv_head;
                typename Head<D>::Tables tables(weights.bias ? weights.bias + number * D : nullptr,
                                                query ? weights.q_norm : weights.k_norm, m.cosines + angle,
                                                m.sines + angle, query || !is_value);
                own.take(row + number * D * 2);
                own.make(tables, m.norm_width, m.eps);
                if (!query) {
                    place = step.places[it.sequence];
                    break;
                }
                own.to_tile(query_tile, q);
            }
#pragma unroll
            for (int half = 0; half < HALVES; half++) ring.wait(n + half);
            if (makes && !is_value) {
                own.to_slots(ring, n, newest);
                shared_fence();
            }
            group_sync(3);
            if (place != NO_SLOT) {
                u64 block = ((u64)(place >> m.page_shift) * 2 + is_value) * m.kv_heads + it.kv_head;
                own.to_page(weights.pages + ((block << m.page_shift) + (place & ((1u << m.page_shift) - 1))) * D);
            }
            Fragment s[4];
            tile_scores<D>(s, query_tile, ring, n, warp * 32);
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
#pragma unroll
            for (int half = 0; half < HALVES; half++) ring.release(n + half);
            low_max = fmaxf(fmaxf(maxima[0][g], maxima[1][g]), fmaxf(maxima[2][g], maxima[3][g])) * m.scale;
            high_max = fmaxf(fmaxf(maxima[0][g + 8], maxima[1][g + 8]), fmaxf(maxima[2][g + 8], maxima[3][g + 8])) * m.scale;
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) s[i].c[j] = probability(s[i].c[j], m.scale, j < 2 ? low_max : high_max);
                int chunk = warp * 4 + i;
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(chunk_address(probabilities, g, chunk) + 4 * t),
                             "r"(pack_bf16(s[i].c[0], s[i].c[1]))
                             : "memory");
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(chunk_address(probabilities, g + 8, chunk) + 4 * t),
                             "r"(pack_bf16(s[i].c[2], s[i].c[3]))
                             : "memory");
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                auto sum = [&](int rank) { return sum_quarter([&](int i) { return s[i].c[2 * half + rank]; }, 0); };
                *quarter_place(quarters, warp, half) = make_float2(sum(0), sum(1));
            }
#pragma unroll
            for (int half = 0; half < HALVES; half++) ring.wait(n + HALVES + half);
            if (makes && is_value) {
                own.to_slots(ring, n + HALVES, newest);
                // what lies behind has no weight, but must be numbers
#pragma unroll 1
                for (int i = (newest + 1) * 8 + lane; i < TILE_KEYS * 8; i += 32)
#pragma unroll
                    for (int half = 0; half < HALVES; half++)
                        asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(ring.address(n + HALVES + half) + i * 16),
                                     "r"(0)
                                     : "memory");
                shared_fence();
            }
            group_sync(3);
            constexpr int WARP_COLUMNS = D == 64 ? 32 : D / 4;
            if (warp * WARP_COLUMNS < D) {
                Fragment o[4];
                float sums[2] = {row_sum(quarters, 0), row_sum(quarters, 1)};
                int chunk = warp * WARP_COLUMNS / 8;
                tile_values(o, probabilities, ring.address(n + HALVES + chunk / 8), chunk % 8);
#pragma unroll 1
                for (int half = 0; half * 8 < group; half++) {
                    int q = g + 8 * half;
                    if (q >= group) continue;
                    float highest = half ? high_max : low_max, sum = sums[half];
                    u64 part = (u64)it.part * group + q;
                    if (it.tiles == 1) {
                        float maximum = NEGATIVE_INFINITY;
                        Fold fold(maximum, highest);
                        float inverse = 1.0f / fold(0.0f, sum);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            int column = warp * WARP_COLUMNS + i * 8 + 2 * t;
                            float v0 = half ? o[i].c[2] : o[i].c[0], v1 = half ? o[i].c[3] : o[i].c[1];
                            int word = ((it.kv_head * group + q) * D + column) / 2;
                            post(message.attended() + ((u64)it.sequence * m.heads * (D / 2) + place_of(word)) * 4,
                                 pack_bf16(fold(0.0f, v0) * inverse, fold(0.0f, v1) * inverse));
                        }
                    } else {
                        ulonglong2* to = m.part_values + part * (D / 2) + warp * WARP_COLUMNS / 2 + t;
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            post_pair(to + 4 * i, half ? o[i].c[2] : o[i].c[0], half ? o[i].c[3] : o[i].c[1], tag);
                        if (warp == 0 && t == 0) post_pair(m.part_stats + part, highest, sum, tag);
                    }
                }
            }
            group_sync(3);
#pragma unroll
            for (int half = 0; half < HALVES; half++) ring.release(n + HALVES + half);
            it = items.find(it.number + 1);
        }
#pragma unroll 1
        for (int number = own_task; number < tasks; number += 4 * gridDim.x) {
            FoldTask task = own_fold;
            if (number != own_task) task = FoldTask::of<D>(m, items, number);
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

