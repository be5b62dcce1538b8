// Decode attention: one query position a sequence.
//
// A sequence's tiles are cut into runs of equal length; an item of work is a run and up to 8 query heads of a kv head. One
// block a multiprocessor: one warp has the copy engine fill a ring of tiles, four warps work on what has come, each making
// all scores of a tile and its own columns of the values, so that they never wait for each other. A block has its first
// two items by its number and draws more from `queue` (items drawn, blocks done; zero between launches), so the grid does
// not depend on the lengths.
//
// `tile_starts[i]` and `run_starts[i]` count tiles and runs of the sequences before i. The first run of a sequence is
// folded as it goes. Tiles of later runs leave their parts in `part_values` and `part_stats`, and the last run to arrive
// folds them; with `whole_runs` a run leaves one part, which is another order of additions.
//
// Keys and values are bf16, or fp8 as `qkv_head` packs it, made bf16 on the way to the tensor cores.
//
// Lists and page tables belong to the step, and so do all keys and values but those of its own tokens: they are read
// before the producer of the queries has ended.

#define DECODE_WARPS 4  // that multiply
#define DECODE_THREADS (32 * DECODE_WARPS + 32)
#define QUERY_ROWS 8
#define RING_BYTES (192 << 10)
#define MOST_STAGES 6

struct Work {
    u16* out;
    const u16* queries;
    const u32 *tables, *table_starts, *contexts, *tile_starts, *run_starts;
    float* part_values;   // [tiles, heads, D]
    float2* part_stats;   // [tiles, heads, DECODE_WARPS]: maximum, sum
    u32 *tickets, *queue;
    int sequences, heads, kv_heads, page_shift, window;
    bool whole_runs;
    float scale;
};

// A tile, as those who copy it tell those who work on it.
struct Tile {
    int sequence, head, rows;  // its sequence (-1: there are no more), first query head and number of query heads
    int context, key0;         // positions of the sequence; the tile's first
    int number, begin, end;    // which tile of the sequence; the run's first and the one after its last
    int tiles, runs;           // of the sequence
    int part, ticket;          // where its parts and its tickets begin
};

// First tile of a run.
DEVICE int run_begin(int tiles, int runs, int run) { return tiles * run / runs; }

template <int D, bool CODES>
struct TileRing {
    // a row lies in columns of 128 bytes, or 64 if it has no more
    static constexpr int ROW_BYTES = CODES ? D : 2 * D, WIDTH = ROW_BYTES < 128 ? 64 : 128, HALVES = ROW_BYTES / WIDTH;
    static constexpr u32 HALF_BYTES = TILE_KEYS * WIDTH, TILE_BYTES = HALVES * HALF_BYTES;
    static constexpr int FIT = RING_BYTES / (2 * TILE_BYTES), STAGES = FIT < MOST_STAGES ? FIT : MOST_STAGES;
    static constexpr int QUERY_PITCH = D * 2 + 16;  // rows of a column meet all banks

    u64 keys_full[STAGES], values_full[STAGES], keys_empty[STAGES], values_empty[STAGES];
    Tile tiles[STAGES];
    alignas(16) u8 queries[STAGES][QUERY_ROWS * QUERY_PITCH];

    // Where 16 bytes of a row are, swizzled by the copy engine.
    static __device__ __forceinline__ u32 chunk(u32 tile, int row, int chunk) {
        constexpr int CHUNKS = WIDTH / 16;
        u32 within = (chunk % CHUNKS ^ (WIDTH == 128 ? row % 8 : row / 2 % 4)) * 16;
        return tile + chunk / CHUNKS * HALF_BYTES + row * WIDTH + within;
    }
    static __device__ __forceinline__ u32 keys(u32 ring, int slot) { return ring + slot * 2 * TILE_BYTES; }
    static __device__ __forceinline__ u32 values(u32 ring, int slot) { return keys(ring, slot) + TILE_BYTES; }
};

// Steps through a ring: which slot, in which round.
struct Cursor {
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance(int stages) {
        if (++slot == stages) slot = 0, phase ^= 1;
    }
};

// ---- the warp that copies ------------------------------------------------------------------------------------------

// A tile to be copied. Every lane has a box of it: some rows of one half of the keys, and the same of the values.
struct Load {
    Tile tile;
    const u32* table;
    int kv_head;
    int row;              // the box's first in the pages, of keys
    bool valid, settled;  // holds positions of the sequence; none of them of this step
};

template <int D, bool CODES>
struct Producer {
    using Ring = TileRing<D, CODES>;
    const Work& work;
    const TensorMap& pages;
    Ring& ring;
    u32 memory;
    int lane = threadIdx.x % 32;
    int box_shift = work.page_shift < 7 ? work.page_shift : 7;  // rows of a box: a page, at most a tile
    int box_row = lane / Ring::HALVES << box_shift;             // of the tile
    int groups = (work.heads / work.kv_heads + QUERY_ROWS - 1) / QUERY_ROWS;
    static constexpr int BOX_COLUMNS = CODES ? Ring::WIDTH : Ring::WIDTH / 2;

    __device__ __forceinline__ Producer(const Work& work, const TensorMap& pages, Ring& ring, u32 memory)
        : work(work), pages(pages), ring(ring), memory(memory) {}

    __device__ __forceinline__ void find_box(Load& load) const {
        int first = load.tile.key0 + box_row;
        load.valid = box_row < TILE_KEYS && first < load.tile.context;
        load.settled = first + (1 << box_shift) < load.tile.context;
        int page = load.valid ? load.table[first >> work.page_shift] : 0;
        int in_page = first & ((1 << work.page_shift) - 1);
        load.row = ((page * 2 * work.kv_heads + load.kv_head) << work.page_shift) + in_page;
    }

    // The first tile of an item. Items of a block ascend: the search begins at the sequence of the last one.
    __device__ __forceinline__ Load begin(u32 item, int sequence) const {
        u32 run = item / (work.kv_heads * groups);
        int in_run = item % (work.kv_heads * groups);
        for (u32 started = FULL_WARP; started == FULL_WARP;) {
            int next = sequence + 1 + lane;
            started = __ballot_sync(FULL_WARP, next < work.sequences && work.run_starts[next] <= run);
            sequence += __popc(started);
        }
        Load load;
        Tile& tile = load.tile;
        load.table = work.tables + work.table_starts[sequence];
        load.kv_head = in_run / groups;
        int group = work.heads / work.kv_heads, query0 = in_run % groups * QUERY_ROWS;
        tile.sequence = sequence;
        tile.head = load.kv_head * group + query0;
        tile.rows = group - query0 < QUERY_ROWS ? group - query0 : QUERY_ROWS;
        tile.context = work.contexts[sequence];
        tile.part = work.tile_starts[sequence];
        tile.tiles = work.tile_starts[sequence + 1] - tile.part;
        int first_run = work.run_starts[sequence];
        tile.runs = work.run_starts[sequence + 1] - first_run;
        tile.begin = tile.number = run_begin(tile.tiles, tile.runs, run - first_run);
        tile.end = run_begin(tile.tiles, tile.runs, run - first_run + 1);
        int hidden = tile.context > work.window ? tile.context - work.window : 0;
        tile.key0 = (hidden / TILE_KEYS + tile.number) * TILE_KEYS;
        tile.ticket = (sequence * work.kv_heads * groups + in_run) * DECODE_WARPS;
        find_box(load);
        return load;
    }

    // The next tile of the run; false if there is none.
    __device__ __forceinline__ bool advance(Load& load) const {
        if (load.tile.number + 1 == load.tile.end) return false;
        load.tile.number++;
        load.tile.key0 += TILE_KEYS;
        find_box(load);
        return true;
    }

    // What a box of the whole tile counts for.
    __device__ __forceinline__ u32 box_bytes(const Load& load) const {
        return (__popc(__ballot_sync(FULL_WARP, load.valid)) << box_shift) * Ring::WIDTH;
    }

    // Announce a tile to those who wait for it.
    __device__ __forceinline__ void expect_keys(const Load& load, int slot) const {
        u32 bytes = box_bytes(load) + load.tile.rows * D * 2;
        if (lane == 0) {
            ring.tiles[slot] = load.tile;
            barrier_expect(ring.keys_full + slot, bytes);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void expect_values(const Load& load, int slot) const {
        u32 bytes = box_bytes(load);
        if (lane == 0) barrier_expect(ring.values_full + slot, bytes);
        __syncwarp();
    }

    __device__ __forceinline__ u32 offset() const { return lane % Ring::HALVES * Ring::HALF_BYTES + box_row * Ring::WIDTH; }

    __device__ __forceinline__ void copy_keys(const Load& load, int slot) const {
        u32 target = Ring::keys(memory, slot) + offset();
        copy_box(target, pages, lane % Ring::HALVES * BOX_COLUMNS, load.row, ring.keys_full + slot);
    }

    __device__ __forceinline__ void copy_values(const Load& load, int slot) const {
        u32 target = Ring::values(memory, slot) + offset();
        int row = load.row + (work.kv_heads << work.page_shift);
        copy_box(target, pages, lane % Ring::HALVES * BOX_COLUMNS, row, ring.values_full + slot);
    }

    __device__ __forceinline__ void copy_queries(const Load& load, int slot) const {
        if (lane >= load.tile.rows) return;
        const u16* source = work.queries + ((u64)load.tile.sequence * work.heads + load.tile.head + lane) * D;
        u32 target = shared_address(ring.queries[slot] + lane * Ring::QUERY_PITCH);
        copy_bulk(target, source, D * 2, ring.keys_full + slot);
    }

    __device__ __forceinline__ void run() const {
        u32 items = work.run_starts[work.sequences] * work.kv_heads * groups;
        u32 drawn = 0;
        int fixed = 0;
        auto next_item = [&]() {
            if (fixed < 2) return blockIdx.x + fixed++ * gridDim.x;
            u32 item = __shfl_sync(FULL_WARP, drawn, 0) + 2 * gridDim.x;
            if (lane == 0) drawn = atomicAdd(work.queue, 1);  // arrives while this item is copied
            return item;
        };
        Load load;
        load.tile.sequence = 0;
        auto begin_next = [&]() {
            u32 item = next_item();
            if (item >= items) return false;
            load = begin(item, load.tile.sequence);
            return true;
        };

        Load early[Ring::STAGES];
        int count = 0;
        bool more = begin_next();
#pragma unroll
        for (int i = 0; i < Ring::STAGES; i++) {
            if (!more) continue;
            early[i] = load;
            expect_keys(load, i);
            expect_values(load, i);
            if (load.valid && load.settled) {
                copy_keys(load, i);
                copy_values(load, i);
            }
            count++;
            more = advance(load) || (fixed < 2 && begin_next());
        }
        wait_for_producer();
        if (lane == 0) drawn = atomicAdd(work.queue, 1);
#pragma unroll
        for (int i = 0; i < Ring::STAGES; i++) {
            if (i >= count) continue;
            if (early[i].valid && !early[i].settled) {
                copy_keys(early[i], i);
                copy_values(early[i], i);
            }
            copy_queries(early[i], i);
        }
        Cursor cursor;
        for (int i = 0; i < count; i++) cursor.advance(Ring::STAGES);
        if (!more && fixed == 2) more = begin_next();
        while (more) {
            Load now = load;
            more = advance(load) || begin_next();  // page numbers arrive while this waits
            barrier_wait(ring.keys_empty + cursor.slot, cursor.phase ^ 1);
            expect_keys(now, cursor.slot);
            if (now.valid) copy_keys(now, cursor.slot);
            copy_queries(now, cursor.slot);
            barrier_wait(ring.values_empty + cursor.slot, cursor.phase ^ 1);
            expect_values(now, cursor.slot);
            if (now.valid) copy_values(now, cursor.slot);
            cursor.advance(Ring::STAGES);
        }
        barrier_wait(ring.keys_empty + cursor.slot, cursor.phase ^ 1);
        if (lane == 0) {
            ring.tiles[cursor.slot].sequence = -1;
            barrier_arrive(ring.keys_full + cursor.slot);
        }
    }
};

// ---- the warps that multiply ---------------------------------------------------------------------------------------

// Counts an arrival after everything that this warp has written; true for the last of `expected`, which sees what all
// have written and leaves the ticket at zero.
DEVICE bool arrive(u32* ticket, u32 expected) {
    u32 before = 0;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        asm volatile("atom.add.release.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(ticket) : "memory");
        if (before == expected - 1) {
            asm volatile("fence.acq_rel.gpu;" ::: "memory");
            *ticket = 0;
        }
    }
    return __shfl_sync(FULL_WARP, before, 0) == expected - 1;
}

// Codes are split into bf16 times 2^-120. Queries and probabilities times 2^80 bring the products back to where f32 holds
// them, 2^-40 of what they are.
#define CODE_PRODUCT 1.099511627776e12f  // 2^40

// Keys (or dimensions of values) are rows of the tensor cores' products, queries are columns: lane 4g + t holds rows g
// and g + 8 of queries 2t and 2t + 1.
template <int D, bool CODES>
struct Consumer {
    using Ring = TileRing<D, CODES>;
    static constexpr int COLUMNS = D / DECODE_WARPS, BLOCKS = COLUMNS / 16;  // of the values
    static constexpr int STEPS = D / 16, KEY_STEPS = TILE_KEYS / 16;

    const Work& work;
    Ring& ring;
    u32 memory;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    u32 query[STEPS][2];
    float maximum[2], sum[2];  // of the run so far
    Fragment total[BLOCKS];

    __device__ __forceinline__ Consumer(const Work& work, Ring& ring, u32 memory)
        : work(work), ring(ring), memory(memory) {}

    __device__ __forceinline__ void begin_run(int slot) {
        u32 row = shared_address(ring.queries[slot] + lane % 8 * Ring::QUERY_PITCH) + lane / 8 * 16;
#pragma unroll
        for (int step = 0; step < STEPS; step += 2) {
            uint4 v = load_matrices(row + step * 32);
            query[step][0] = v.x, query[step][1] = v.y, query[step + 1][0] = v.z, query[step + 1][1] = v.w;
        }
        if constexpr (CODES) {
#pragma unroll
            for (int step = 0; step < STEPS; step++)
                query[step][0] = shift_pair<80>(query[step][0]), query[step][1] = shift_pair<80>(query[step][1]);
        }
#pragma unroll
        for (int q = 0; q < 2; q++) maximum[q] = NEGATIVE_INFINITY, sum[q] = 0.0f;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) total[i] = Fragment{};
    }

    __device__ __forceinline__ void score(Fragment (&s)[KEY_STEPS], u32 keys) const {
#pragma unroll
        for (int i = 0; i < KEY_STEPS; i++) s[i] = Fragment{};
        if constexpr (CODES) {
#pragma unroll
            for (int step = 0; step < STEPS; step += 2) {
                u32 at = Ring::chunk(keys, lane % 16, step + lane / 16);
#pragma unroll
                for (int i = 0; i < KEY_STEPS; i++) {
                    uint4 raw = load_matrices(at + i * 16 * Ring::WIDTH), a, b;
                    split_codes(raw.x, a.x, a.z);
                    split_codes(raw.y, a.y, a.w);
                    split_codes(raw.z, b.x, b.z);
                    split_codes(raw.w, b.y, b.w);
                    mma(s[i], a.x, a.y, a.z, a.w, query[step][0], query[step][1]);
                    mma(s[i], b.x, b.y, b.z, b.w, query[step + 1][0], query[step + 1][1]);
                }
            }
        } else {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                u32 at = Ring::chunk(keys, lane % 16, 2 * step + lane / 16);
#pragma unroll
                for (int i = 0; i < KEY_STEPS; i++) {
                    uint4 a = load_matrices(at + i * 16 * Ring::WIDTH);
                    mma(s[i], a.x, a.y, a.z, a.w, query[step][0], query[step][1]);
                }
            }
        }
    }

    __device__ __forceinline__ void mask(Fragment (&s)[KEY_STEPS], const Tile& tile) const {
#pragma unroll
        for (int i = 0; i < KEY_STEPS; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = tile.key0 + i * 16 + g + j / 2 * 8, position = tile.context - 1;
                if (key > position || key <= position - work.window) s[i].c[j] = NEGATIVE_INFINITY;
            }
        }
    }

    // `valid` keys of the values are there: what else lies in the ring may be no number.
    template <bool WHOLE>
    __device__ __forceinline__ void weigh(Fragment (&o)[BLOCKS], const uint2 (&p)[KEY_STEPS], u32 values, int valid) const {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) o[i] = Fragment{};
        auto weigh_step = [&](int step, int i, uint4 a) {
            if (!WHOLE) {
                auto kept = [&](int key) { return (key < valid ? 0xffffu : 0u) | (key + 1 < valid ? 0xffff0000u : 0u); };
                u32 low = kept(step * 16 + 2 * t), high = kept(step * 16 + 2 * t + 8);
                a.x &= low, a.y &= low, a.z &= high, a.w &= high;
            }
            mma(o[i], a.x, a.y, a.z, a.w, p[step].x, p[step].y);
        };
        if constexpr (CODES) {
#pragma unroll
            for (int step = 0; step < KEY_STEPS; step += 2) {
#pragma unroll
                for (int i = 0; i < BLOCKS; i++) {
                    uint4 raw = load_matrices_transposed(Ring::chunk(values, step * 16 + lane, warp * BLOCKS + i)), a, b;
                    split_codes(raw.x, a.x, a.y);
                    split_codes(raw.y, a.z, a.w);
                    split_codes(raw.z, b.x, b.y);
                    split_codes(raw.w, b.z, b.w);
                    weigh_step(step, i, a);
                    weigh_step(step + 1, i, b);
                }
            }
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) o[i].c[j] *= CODE_PRODUCT;
            }
        } else {
            int row = lane % 8 + lane / 16 * 8, chunk = warp * BLOCKS * 2 + lane / 8 % 2;
#pragma unroll
            for (int step = 0; step < KEY_STEPS; step++) {
#pragma unroll
                for (int i = 0; i < BLOCKS; i++)
                    weigh_step(step, i, load_matrices_transposed(Ring::chunk(values, step * 16 + row, chunk + 2 * i)));
            }
        }
    }

    // Two query rows of a tile or run, as a part of the sequence.
    __device__ __forceinline__ void store_part(const Tile& tile, int number, const Fragment (&o)[BLOCKS], const float (&m)[2],
                                               const float (&l)[2]) const {
        u64 unit = (u64)(tile.part + number) * work.heads + tile.head;
#pragma unroll
        for (int q = 0; q < 2; q++) {
            if (2 * t + q >= tile.rows) continue;
            float* at = work.part_values + (unit + 2 * t + q) * D + warp * COLUMNS + g;
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                __stcg(at + i * 16, o[i].c[q]);
                __stcg(at + i * 16 + 8, o[i].c[q + 2]);
            }
            if (g == 0) __stcg(work.part_stats + (unit + 2 * t + q) * DECODE_WARPS + warp, make_float2(m[q], l[q]));
        }
    }

    __device__ __forceinline__ void store_result(const Tile& tile) const {
        float first = 1.0f / sum[0], second = 1.0f / sum[1];
        u16* at = work.out + ((u64)tile.sequence * work.heads + tile.head + g) * D + warp * COLUMNS + 2 * t;
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            u32 low = transpose(pack_bf16(total[i].c[0] * first, total[i].c[1] * second));
            u32 high = transpose(pack_bf16(total[i].c[2] * first, total[i].c[3] * second));
            if (g >= tile.rows) continue;
            *(u32*)(at + i * 16) = low;
            *(u32*)(at + i * 16 + 8) = high;
        }
    }

    // Folds all parts of this warp's columns in ascending order.
    __device__ __forceinline__ void fold_parts(const Tile& tile) const {
        constexpr int WORDS = COLUMNS / 4, BATCH = 16;
        int folded = run_begin(tile.tiles, tile.runs, 1);  // tiles of the first part
        int parts = work.whole_runs ? tile.runs : tile.tiles - folded + 1;
        auto number = [&](int part) {
            if (work.whole_runs) return run_begin(tile.tiles, tile.runs, part);
            return part == 0 ? 0 : folded + part - 1;
        };
        for (int row = lane / WORDS; row < tile.rows; row += 32 / WORDS) {
            u64 unit = (u64)tile.part * work.heads + tile.head + row;
            float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            float highest = NEGATIVE_INFINITY, weight = 0.0f;
            for (int first = 0; first < parts; first += BATCH) {
                float4 v[BATCH];
                float2 stats[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    if (first + i >= parts) continue;
                    u64 at = unit + (u64)number(first + i) * work.heads;
                    v[i] = __ldcg((const float4*)(work.part_values + at * D + warp * COLUMNS) + lane % WORDS);
                    stats[i] = __ldcg(work.part_stats + at * DECODE_WARPS + warp);
                }
#pragma unroll
                for (int i = 0; i < BATCH; i++) {
                    if (first + i >= parts) continue;
                    Fold fold(highest, stats[i].x);
                    weight = fold(weight, stats[i].y);
                    value.x = fold(value.x, v[i].x), value.y = fold(value.y, v[i].y);
                    value.z = fold(value.z, v[i].z), value.w = fold(value.w, v[i].w);
                }
            }
            float inverse = 1.0f / weight;
            u16* at = work.out + ((u64)tile.sequence * work.heads + tile.head + row) * D + warp * COLUMNS;
            ((uint2*)at)[lane % WORDS] =
                make_uint2(pack_bf16(value.x * inverse, value.y * inverse), pack_bf16(value.z * inverse, value.w * inverse));
        }
    }

    __device__ __forceinline__ void end_run(const Tile& tile, bool folded) const {
        if (tile.runs == 1) return store_result(tile);
        if (folded) store_part(tile, tile.begin, total, maximum, sum);
        if (arrive(work.tickets + tile.ticket + warp, tile.runs)) fold_parts(tile);
    }

    __device__ __forceinline__ void run() {
        Cursor cursor;
        while (true) {
            int slot = cursor.slot;
            barrier_wait(ring.keys_full + slot, cursor.phase);
            Tile tile = ring.tiles[slot];
            if (tile.sequence < 0) break;
            if (tile.number == tile.begin) begin_run(slot);
            Fragment s[KEY_STEPS];
            score(s, Ring::keys(memory, slot));
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.keys_empty + slot);
            int valid = tile.context - tile.key0;
            if (valid < TILE_KEYS || tile.key0 < tile.context - work.window) mask(s, tile);

            float highest[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
#pragma unroll
            for (int i = 0; i < KEY_STEPS; i++) {
#pragma unroll
                for (int q = 0; q < 2; q++) highest[q] = fmaxf(highest[q], fmaxf(s[i].c[q], s[i].c[q + 2]));
            }
#pragma unroll
            for (int q = 0; q < 2; q++) {
#pragma unroll
                for (int offset = 4; offset < 32; offset <<= 1)
                    highest[q] = fmaxf(highest[q], __shfl_xor_sync(FULL_WARP, highest[q], offset));
                highest[q] *= work.scale;
            }
            constexpr u32 ONES = 0x3f803f80u;
            uint2 p[KEY_STEPS];
            Fragment sums = {}, o[BLOCKS];
#pragma unroll
            for (int i = 0; i < KEY_STEPS; i++) {
                auto pair = [&](int j) {
                    return transpose(pack_bf16(probability(s[i].c[j], work.scale, highest[0]),
                                               probability(s[i].c[j + 1], work.scale, highest[1])));
                };
                p[i] = make_uint2(pair(0), pair(2));
                mma(sums, ONES, ONES, ONES, ONES, p[i].x, p[i].y);
            }
            barrier_wait(ring.values_full + slot, cursor.phase);
            if constexpr (CODES) {
#pragma unroll
                for (int i = 0; i < KEY_STEPS; i++) p[i] = make_uint2(shift_pair<80>(p[i].x), shift_pair<80>(p[i].y));
            }
            if (valid >= TILE_KEYS) weigh<true>(o, p, Ring::values(memory, slot), valid);
            else weigh<false>(o, p, Ring::values(memory, slot), valid);
            __syncwarp();
            if (lane == 0) barrier_arrive(ring.values_empty + slot);

            bool folded = tile.begin == 0 || work.whole_runs;
            if (folded) {
#pragma unroll
                for (int q = 0; q < 2; q++) {
                    Fold fold(maximum[q], highest[q]);
                    sum[q] = fold(sum[q], sums.c[q]);
#pragma unroll
                    for (int i = 0; i < BLOCKS; i++) {
                        total[i].c[q] = fold(total[i].c[q], o[i].c[q]);
                        total[i].c[q + 2] = fold(total[i].c[q + 2], o[i].c[q + 2]);
                    }
                }
            } else {
                float l[2] = {sums.c[0], sums.c[1]};
                store_part(tile, tile.number, o, highest, l);
            }
            if (tile.number + 1 == tile.end) end_run(tile, folded);
            cursor.advance(Ring::STAGES);
        }
    }
};

template <int D, bool CODES>
DEVICE void decode(const TensorMap& pages, const Work& work) {
    extern __shared__ u8 bytes[];
    u32 memory = shared_address(bytes) + 1023 & ~1023u;
    auto& ring = *(TileRing<D, CODES>*)(bytes + (memory - shared_address(bytes)) + RING_BYTES);
    allow_consumer();
    if (threadIdx.x == 0) {
        for (int i = 0; i < TileRing<D, CODES>::STAGES; i++) {
            barrier_init(ring.keys_full + i, 1);
            barrier_init(ring.values_full + i, 1);
            barrier_init(ring.keys_empty + i, DECODE_WARPS);
            barrier_init(ring.values_empty + i, DECODE_WARPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x / 32 < DECODE_WARPS) {
        Consumer<D, CODES>(work, ring, memory).run();
    } else {
        Producer<D, CODES>(work, pages, ring, memory).run();
        if (arrive(work.queue + 1, gridDim.x) && threadIdx.x % 32 == 0) work.queue[0] = 0;
    }
}

#define DECODE(NAME, D, CODES)                                                                                                         \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 1) attention_decode_##NAME(                                 \
        const __grid_constant__ TensorMap pages, u16* out, const u16* queries, const u32* tables,                         \
        const u32* table_starts, const u32* contexts, const u32* tile_starts, const u32* run_starts, float* part_values,  \
        float2* part_stats, u32* tickets, u32* queue, int sequences, int heads, int kv_heads, int page_shift, int window, \
        int whole_runs, float scale) {                                                                                    \
        decode<D, CODES>(pages, Work{out, queries, tables, table_starts, contexts, tile_starts, run_starts, part_values,         \
                              part_stats, tickets, queue, sequences, heads, kv_heads, page_shift, window,                 \
                              whole_runs != 0, CODES ? scale * CODE_PRODUCT : scale});                                                                   \
    }
DECODE(64, 64, false)
DECODE(128, 128, false)
DECODE(64_fp8, 64, true)
DECODE(128_fp8, 128, true)
