// Prefill: many query positions a sequence.
//
// A work is 128 query positions of one head. A block takes several, one after another. One warp has queries, keys and
// values copied into shared memory, page by page, ahead of those who compute: two groups of four warps, 64 query positions
// each, of which one makes probabilities while the other has the tensor cores; and each asks for its next scores before it
// weighs values, so that it has them while those are weighed.
//
// Keys and values in fp8, as `qkv_head` packs them, are made bf16 by all four warps of the group that copies.
//
// `works[i]` names the sequence and its first query: x = sequence, y = offset of the first query in the sequence's share
// of the step; those with the most keys come first. A sequence's queries are rows `query_starts[s] ..` of the queries, its
// first query has position contexts[s] - its query count.

#define PREFILL_ROWS 128
#define PREFILL_GROUPS 2
#define PREFILL_THREADS (128 * (PREFILL_GROUPS + 1))
// Tiles of keys, and of values, that a block holds; codes and what they become leave room for fewer.
#define PREFILL_STAGES 3
#define PREFILL_CODE_STAGES 2

// Lists that belong to the step.
struct PrefillLists {
    const u32 *tables, *table_starts, *contexts, *query_starts, *query_counts;
    const uint2* works;
    int items;  // works times heads
};

// What those who compute know of a work.
struct Work {
    u64 row0;       // its first row of the queries
    int count;      // rows
    int position0;  // of the first row
    int head, first_tile, last_tile;
};

struct PrefillBarriers {
    u64 query_full, query_empty, ragged, codes_full[2];
    u64 key_full[PREFILL_STAGES], key_empty[PREFILL_STAGES], value_full[PREFILL_STAGES], value_empty[PREFILL_STAGES];

    __device__ __forceinline__ void init() {
        constexpr u32 WARPS = 4 * PREFILL_GROUPS;
        barrier_init(&query_full, 1);
        barrier_init(&query_empty, 32 * WARPS);  // every lane has read what the work is
        barrier_init(&ragged, 1);
        barrier_init(codes_full, 1);
        barrier_init(codes_full + 1, 1);
        for (int i = 0; i < PREFILL_STAGES; i++) {
            barrier_init(key_full + i, 1);
            barrier_init(key_empty + i, WARPS);
            barrier_init(value_full + i, 1);
            barrier_init(value_empty + i, WARPS);
        }
        barrier_init_fence();
    }
};

// The item that a block takes in its n-th round. Rounds run to and fro over the blocks, which evens out their sums.
DEVICE int nth_item(int round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

DEVICE Work work_of(const PrefillLists& lists, int item, int heads, int window) {
    uint2 named = lists.works[item / heads];
    int sequence = named.x, queries = lists.query_counts[sequence];
    Work work;
    work.head = item % heads;
    work.row0 = (u64)lists.query_starts[sequence] + named.y;
    work.count = queries - named.y < PREFILL_ROWS ? queries - named.y : PREFILL_ROWS;
    work.position0 = lists.contexts[sequence] - queries + named.y;
    work.first_tile = (work.position0 + 1 > window ? work.position0 + 1 - window : 0) / TILE_KEYS;
    work.last_tile = (work.position0 + work.count - 1) / TILE_KEYS;
    return work;
}

// Announces a work and starts copying its queries; a warp calls it.
template <int D>
DEVICE void copy_queries(PrefillBarriers& barriers, Work& shared_work, u32 query_tile, const TensorMap& query_map,
                         const Work& work) {
    if (threadIdx.x % 32) return;
    shared_work = work;
    barrier_expect(&barriers.query_full, PREFILL_ROWS * D * 2);
    for (int part = 0; part < D / 64; part++)
        copy_box(query_tile + part * PREFILL_ROWS * 128, query_map, work.head * D + part * 64, work.row0,
                 &barriers.query_full);
}

// One warp: copies what the works of this block need.
template <int D>
DEVICE void prefill_load(PrefillBarriers& barriers, Work& shared_work, u32 query_tile, u32 keys, u32 values, const TensorMap& query_map,
                         const TensorMap& kv_map, const PrefillLists& lists, int heads, int kv_heads, int page_shift,
                         int window) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    int lane = threadIdx.x % 32;
    int page_size = 1 << page_shift, box_rows = page_size < TILE_KEYS ? page_size : TILE_KEYS;
    int slot = 0;
    u32 phase = 1, query_phase = 1, ragged_phase = 0;
    wait_for_producer();
    for (int round = 0; nth_item(round) < lists.items; round++) {
        int sequence = lists.works[nth_item(round) / heads].x, context = lists.contexts[sequence];
        Work work = work_of(lists, nth_item(round), heads, window);
        barrier_wait(&barriers.query_empty, query_phase);
        query_phase ^= 1;
        copy_queries<D>(barriers, shared_work, query_tile, query_map, work);
        const u32* table = lists.tables + lists.table_starts[sequence];
        int kv_head = work.head / (heads / kv_heads);
        for (int tile = work.first_tile; tile <= work.last_tile; tile++) {
            int first = tile * TILE_KEYS, held = context - first < TILE_KEYS ? context - first : TILE_KEYS;
            int boxes = (held + box_rows - 1) / box_rows;
            u32 page = lane < boxes ? table[(first >> page_shift) + lane] : 0;
            int row = ((page * 2 * kv_heads + kv_head) << page_shift) + (first & page_size - 1);  // of all keys and values
            auto load = [&](u32 target, int from, u64* barrier) {
                if (lane == 0) barrier_expect(barrier, boxes * box_rows * D * 2);
                __syncwarp();
                if (lane >= boxes) return;
#pragma unroll
                for (int part = 0; part < D / 64; part++)
                    copy_box(target + (part * TILE_KEYS + lane * box_rows) * 128, kv_map, part * 64, from, barrier);
            };
            barrier_wait(barriers.key_empty + slot, phase);
            load(keys + slot * TILE_BYTES, row, barriers.key_full + slot);
            barrier_wait(barriers.value_empty + slot, phase);
            u32 target = values + slot * TILE_BYTES;
            bool ragged = held < TILE_KEYS;
            load(target, row + (kv_heads << page_shift), ragged ? &barriers.ragged : barriers.value_full + slot);
            if (ragged) {
                // values that weigh nothing must be numbers
                barrier_wait(&barriers.ragged, ragged_phase);
                ragged_phase ^= 1;
                for (int part = 0; part < D / 64; part++)
                    for (int i = held * 8 + lane; i < TILE_KEYS * 8; i += 32)
                        store_shared(target + part * TILE_KEYS * 128 + i * 16, make_uint4(0, 0, 0, 0));
                shared_fence();
                __syncwarp();
                if (lane == 0) barrier_arrive(barriers.value_full + slot);
            }
            if (++slot == PREFILL_STAGES) slot = 0, phase ^= 1;
        }
    }
}

// Four warps: what the copy engine brings of codes, keys to `codes` and values behind them, becomes tiles of bf16.
template <int D>
DEVICE void prefill_load_codes(PrefillBarriers& barriers, Work& shared_work, u32 query_tile, u32 keys, u32 values, u32 codes,
                               const TensorMap& query_map, const TensorMap& kv_map, const PrefillLists& lists, int heads,
                               int kv_heads, int page_shift, int window) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2, CODE_BYTES = TILE_KEYS * D;
    constexpr int RUNS = D / 16, ROWS = 128 / RUNS;  // 16 bytes of codes a thread, so many rows at once
    int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    bool copies = thread < 32;
    int row0 = thread / RUNS, run = thread % RUNS;
    u32 from = row0 * D + (run ^ (D == 128 ? row0 % 8 : row0 / 2 % 4)) * 16;
    u32 to = (run / 4 * TILE_KEYS + row0) * 128 + (run % 4 * 2 ^ row0 % 8) * 16;
    int page_size = 1 << page_shift, box_rows = page_size < TILE_KEYS ? page_size : TILE_KEYS;
    int slot = 0;
    u32 phase = 1, query_phase = 1, codes_phase = 0;
    wait_for_producer();
    for (int round = 0; nth_item(round) < lists.items; round++) {
        int sequence = lists.works[nth_item(round) / heads].x, context = lists.contexts[sequence];
        Work work = work_of(lists, nth_item(round), heads, window);
        const u32* table = lists.tables + lists.table_starts[sequence];
        int kv_head = work.head / (heads / kv_heads);
        auto request = [&](int part, int tile) {
            int first = tile * TILE_KEYS, held = context - first < TILE_KEYS ? context - first : TILE_KEYS;
            int boxes = (held + box_rows - 1) / box_rows;
            u32 page = lane < boxes ? table[(first >> page_shift) + lane] : 0;
            int row = ((page * 2 * kv_heads + part * kv_heads + kv_head) << page_shift) + (first & page_size - 1);
            if (lane == 0) barrier_expect(barriers.codes_full + part, boxes * box_rows * D);
            __syncwarp();
            if (lane < boxes)
                copy_box(codes + part * CODE_BYTES + lane * box_rows * D, kv_map, 0, row, barriers.codes_full + part);
        };
        if (copies) {
            request(0, work.first_tile);
            request(1, work.first_tile);
            barrier_wait(&barriers.query_empty, query_phase);
            copy_queries<D>(barriers, shared_work, query_tile, query_map, work);
        }
        query_phase ^= 1;
        for (int tile = work.first_tile; tile <= work.last_tile; tile++) {
            int held = context - tile * TILE_KEYS;
#pragma unroll
            for (int part = 0; part < 2; part++) {
                u32 target = (part ? values : keys) + slot * TILE_BYTES, source = codes + part * CODE_BYTES;
                barrier_wait((part ? barriers.value_empty : barriers.key_empty) + slot, phase);
                barrier_wait(barriers.codes_full + part, codes_phase);
#pragma unroll 2
                for (int i = 0; i < TILE_KEYS / ROWS; i++) {
                    uint4 v = load_shared(source + from + i * ROWS * D), low, high;
                    unpack_values(v.x, low.x, high.x);
                    unpack_values(v.y, low.y, high.y);
                    unpack_values(v.z, low.z, high.z);
                    unpack_values(v.w, low.w, high.w);
                    // values that weigh nothing must be numbers
                    if (row0 + i * ROWS >= held) low = high = make_uint4(0, 0, 0, 0);
                    store_shared(target + to + i * ROWS * 128, low);
                    store_shared(target + (to ^ 16) + i * ROWS * 128, high);
                }
                shared_fence();
                asm volatile("bar.sync 3, 128;" ::: "memory");
                if (thread == 0) barrier_arrive((part ? barriers.value_full : barriers.key_full) + slot);
                if (copies && tile < work.last_tile) request(part, tile + 1);
            }
            codes_phase ^= 1;
            if (++slot == PREFILL_CODE_STAGES) slot = 0, phase ^= 1;
        }
    }
}

// Starts the products of 64 rows of queries with the keys of a tile.
template <int D>
DEVICE void start_scores(float (&s)[64], u32 queries, u32 keys) {
    matrices_fence();
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        u32 part = step / 4 * 128, within = step % 4 * 32;
        multiply(s, matrix_descriptor(queries + part * PREFILL_ROWS + within),
                 matrix_descriptor(keys + part * TILE_KEYS + within), step > 0);
    }
    matrices_commit();
}

// Starts the products of 64 rows of probabilities with the values of a tile.
template <int D>
DEVICE void start_weighing(float (&o)[D / 2], const uint4 (&p)[8], u32 values) {
    matrices_fence();
#pragma unroll
    for (int step = 0; step < 8; step++)
        multiply_turned(o, p[step], turned_descriptor(values + step * 16 * 128, TILE_KEYS * 128), step > 0);
    matrices_commit();
}

// Sums of 16 rows of probabilities over 128 keys; c[0] is that of row g, c[2] that of row g + 8.
DEVICE Fragment row_sums(const uint4 (&p)[8]) {
    constexpr u32 ONES = 0x3f803f80u;
    Fragment sums = {};
#pragma unroll
    for (int step = 0; step < 8; step++) mma(sums, p[step].x, p[step].y, p[step].z, p[step].w, ONES, ONES);
    return sums;
}

// Two rows of a thread in the running result; lane 4g + t of a warp has rows g and g + 8.
template <int D>
struct RunningRows {
    float maximum[2], sum[2], total[D / 2];

    __device__ __forceinline__ RunningRows() {
#pragma unroll
        for (int i = 0; i < 2; i++) maximum[i] = NEGATIVE_INFINITY, sum[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] = 0.0f;
    }

    // The sums of a tile, then what it weighs: between them other products run, which leave few registers.
    __device__ __forceinline__ void fold_sums(const float (&tile_maximum)[2], const float (&tile_sum)[2]) {
#pragma unroll
        for (int row = 0; row < 2; row++) {
            float joined = maximum[row];
            sum[row] = Fold(joined, tile_maximum[row])(sum[row], tile_sum[row]);
        }
    }
    __device__ __forceinline__ void fold_values(const float (&tile_maximum)[2], const float (&o)[D / 2]) {
        Fold low(maximum[0], tile_maximum[0]), high(maximum[1], tile_maximum[1]);
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] = (i % 4 < 2 ? low : high)(total[i], o[i]);
    }
};

// A group of four warps: attention of 64 rows of each work.
template <int D, int STAGES>
DEVICE void prefill_compute(PrefillBarriers& barriers, const Work& shared_work, u16* out, u32 query_tile, u32 keys, u32 values, int items, int heads,
                            int window, float scale) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int warp_row = threadIdx.x / 128 * 64 + threadIdx.x / 32 % 4 * 16;
    u32 queries = query_tile + threadIdx.x / 128 * 64 * 128;
    int slot = 0;
    u32 phase = 0, query_phase = 0;
    auto arrive = [&](u64* barrier) {
        if (lane == 0) barrier_arrive(barrier);
    };
    for (int round = 0; nth_item(round) < items; round++) {
        barrier_wait(&barriers.query_full, query_phase);
        query_phase ^= 1;
        Work work = shared_work;
        int warp_first = work.position0 + warp_row, warp_last = warp_first + 15;
        RunningRows<D> rows;
        float s[64], o[D / 2], tile_maximum[2], next_maximum[2];
        uint4 p[8];
        // scores to probabilities, in place
        auto soften = [&](int tile) {
            int key0 = tile * TILE_KEYS;
            if (key0 + TILE_KEYS - 1 > warp_first || key0 <= warp_last - window) {
#pragma unroll
                for (int i = 0; i < 64; i++) {
                    int key = key0 + i / 4 * 8 + 2 * t + i % 2, position = warp_first + g + i % 4 / 2 * 8;
                    if (key > position || key <= position - window) s[i] = NEGATIVE_INFINITY;
                }
            }
            float low = NEGATIVE_INFINITY, high = NEGATIVE_INFINITY;
#pragma unroll
            for (int i = 0; i < 64; i += 4) {
                low = fmaxf(low, fmaxf(s[i], s[i + 1]));
                high = fmaxf(high, fmaxf(s[i + 2], s[i + 3]));
            }
            next_maximum[0] = quad_max(low) * scale;
            next_maximum[1] = quad_max(high) * scale;
#pragma unroll
            for (int i = 0; i < 64; i++) s[i] = probability(s[i], scale, next_maximum[i % 4 / 2]);
        };
        // they become what weighs values, once the values before are weighed
        auto pack = [&] {
            auto pair = [&](int i) { return pack_bf16(s[i], s[i + 1]); };
#pragma unroll
            for (int i = 0; i < 8; i++)
                p[i] = make_uint4(pair(8 * i), pair(8 * i + 2), pair(8 * i + 4), pair(8 * i + 6));
#pragma unroll
            for (int i = 0; i < 2; i++) tile_maximum[i] = next_maximum[i];
            Fragment sums = row_sums(p);
            rows.fold_sums(tile_maximum, {sums.c[0], sums.c[2]});
        };

        barrier_wait(barriers.key_full + slot, phase);
        start_scores<D>(s, queries, keys + slot * TILE_BYTES);
        matrices_wait<0>();
        arrive(barriers.key_empty + slot);
        soften(work.first_tile);
        for (int tile = work.first_tile; tile < work.last_tile; tile++) {
            pack();
            int next = slot + 1 == STAGES ? 0 : slot + 1;
            u32 next_phase = next ? phase : phase ^ 1;
            barrier_wait(barriers.key_full + next, next_phase);
            start_scores<D>(s, queries, keys + next * TILE_BYTES);
            barrier_wait(barriers.value_full + slot, phase);
            start_weighing<D>(o, p, values + slot * TILE_BYTES);
            matrices_wait<1>();
            arrive(barriers.key_empty + next);
            soften(tile + 1);
            matrices_wait<0>();
            arrive(barriers.value_empty + slot);
            rows.fold_values(tile_maximum, o);
            slot = next;
            phase = next_phase;
        }
        barrier_arrive(&barriers.query_empty);
        pack();
        barrier_wait(barriers.value_full + slot, phase);
        start_weighing<D>(o, p, values + slot * TILE_BYTES);
        matrices_wait<0>();
        arrive(barriers.value_empty + slot);
        rows.fold_values(tile_maximum, o);
        if (++slot == STAGES) slot = 0, phase ^= 1;

#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = warp_row + g + 8 * half;
            if (row >= work.count) continue;
            float inverse = 1.0f / rows.sum[half];
            u16* target = out + ((work.row0 + row) * heads + work.head) * D + 2 * t;
#pragma unroll
            for (int i = 0; i < D / 8; i++)
                *(u32*)(target + i * 8) = pack_bf16(rows.total[4 * i + 2 * half] * inverse,
                                                    rows.total[4 * i + 2 * half + 1] * inverse);
        }
    }
}

// `query_map`: rows of all heads, boxes of PREFILL_ROWS; `kv_map`: rows of D, boxes of a page or a tile.
template <int D, bool CODES>
DEVICE void prefill(const TensorMap& query_map, const TensorMap& kv_map, u16* out, const PrefillLists& lists, int heads,
                    int kv_heads, int page_shift, int window, float scale) {
    extern __shared__ u8 memory[];
    __shared__ PrefillBarriers barriers;
    __shared__ Work work;
    u32 query_tile = shared_address(memory) + 1023 & ~1023u;
    constexpr int STAGES = CODES ? PREFILL_CODE_STAGES : PREFILL_STAGES;
    u32 keys = query_tile + PREFILL_ROWS * D * 2, values = keys + STAGES * TILE_KEYS * D * 2;
    allow_consumer();
    if (threadIdx.x == 0) barriers.init();
    __syncthreads();
    if (threadIdx.x >= 128 * PREFILL_GROUPS) {
        if constexpr (CODES) {
            GIVE_REGISTERS(40);
            u32 codes = values + STAGES * TILE_KEYS * D * 2;
            prefill_load_codes<D>(barriers, work, query_tile, keys, values, codes, query_map, kv_map, lists, heads, kv_heads,
                                  page_shift, window);
        } else {
            GIVE_REGISTERS(24);
            if (threadIdx.x < 128 * PREFILL_GROUPS + 32)
                prefill_load<D>(barriers, work, query_tile, keys, values, query_map, kv_map, lists, heads, kv_heads,
                                page_shift, window);
        }
    } else {
        if constexpr (CODES) TAKE_REGISTERS(232);
        else TAKE_REGISTERS(240);
        wait_for_producer();
        prefill_compute<D, STAGES>(barriers, work, out, query_tile, keys, values, lists.items, heads, window, scale);
    }
}

#define PREFILL(NAME, D, CODES)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(PREFILL_THREADS, 1) attention_prefill_##NAME(                        \
        const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap kv_map, u16* out,            \
        const u32* tables, const u32* table_starts, const u32* contexts, const u32* query_starts,                   \
        const u32* query_counts, const uint2* works, int work_count, int heads, int kv_heads, int page_shift,       \
        int window, float scale) {                                                                                  \
        PrefillLists lists{tables, table_starts, contexts, query_starts, query_counts, works, work_count * heads};  \
        prefill<D, CODES>(query_map, kv_map, out, lists, heads, kv_heads, page_shift, window, scale);                      \
    }
PREFILL(64, 64, false)
PREFILL(128, 128, false)
PREFILL(64_fp8, 64, true)
PREFILL(128_fp8, 128, true)
