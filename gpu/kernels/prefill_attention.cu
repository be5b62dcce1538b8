// A block takes 128 query positions of one head, a warp 16 of them. `works[blockIdx.x]` names the sequence and its
// first query: x = sequence, y = offset of the first query in the sequence's share of the step. A sequence's
// queries are rows `query_starts[s] ..` of `queries`, its first query has position contexts[s] - its query count.

#define PREFILL_THREADS 256
#define PREFILL_ROWS 128

template <int D>
DEVICE void prefill(u16* out, const u16* queries, const u16* kv, const u32* tables, const u32* table_starts,
                    const u32* contexts, const u32* query_starts, const u32* query_counts, const uint2* works,
                    int heads, int kv_heads, int page_shift, int window, float scale) {
    constexpr int CHUNKS = D / 8;
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    extern __shared__ __align__(1024) u8 memory[];
    u32 query_tile = shared_address(memory), tiles = query_tile + PREFILL_ROWS * D * 2;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    allow_consumer();
    wait_for_producer();
    uint2 work = works[blockIdx.x];
    int head = blockIdx.y, sequence = work.x;
    int count = query_counts[sequence] - work.y;
    count = count < PREFILL_ROWS ? count : PREFILL_ROWS;
    u64 row0 = (u64)query_starts[sequence] + work.y;
    int context = contexts[sequence];
    int position0 = context - query_counts[sequence] + work.y;
    Pages pages{kv, tables + table_starts[sequence], page_shift, kv_heads, head / (heads / kv_heads)};
    int limit = position0 + count;
    int first_tile = (position0 + 1 > window ? position0 + 1 - window : 0) / TILE_KEYS;
    int last_tile = (limit - 1) / TILE_KEYS;

    u32 page_ids = pages.of_tile(first_tile * TILE_KEYS, limit);
    auto load_pair = [&](int tile) {
        u32 at = tiles + (tile & 1) * 2 * TILE_BYTES;
        load_tile<D, PREFILL_THREADS>(at, pages, page_ids, 0, tile * TILE_KEYS, limit);
        load_tile<D, PREFILL_THREADS>(at + TILE_BYTES, pages, page_ids, 1, tile * TILE_KEYS, limit);
        page_ids = pages.of_tile((tile + 1) * TILE_KEYS, limit);  // in time for the next
    };
    for (int i = threadIdx.x; i < PREFILL_ROWS * CHUNKS; i += PREFILL_THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        bool valid = row < count;
        copy_async(chunk_address<CHUNKS>(query_tile, row, chunk),
                   queries + ((row0 + (valid ? row : 0)) * heads + head) * D + chunk * 8, valid);
    }
    load_pair(first_tile);
    copy_commit();

    Fragment total[D / 8] = {};
    float maximum[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.0f, 0.0f};
    int warp_first = position0 + warp * 16, warp_last = warp_first + 15;
    for (int tile = first_tile; tile <= last_tile; tile++) {
        if (tile < last_tile) load_pair(tile + 1);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        u32 keys = tiles + (tile & 1) * 2 * TILE_BYTES;
        int key0 = tile * TILE_KEYS;
        // a tile that the whole warp does not see folds as the identity
        if (key0 <= warp_last && key0 + TILE_KEYS > warp_first - (window - 1) && warp * 16 < count) {
            Fragment s[16];
            scores<D, 16>(s, query_tile, warp * 16, keys, 0);
            if (key0 + TILE_KEYS - 1 > warp_first || key0 <= warp_last - window) {
#pragma unroll
                for (int i = 0; i < 16; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        int key = key0 + i * 8 + 2 * t + j % 2;
                        int position = warp_first + g + 8 * (j / 2);
                        if (key > position || key <= position - window) s[i].c[j] = NEGATIVE_INFINITY;
                    }
                }
            }
            float tile_max[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
#pragma unroll
            for (int i = 0; i < 16; i++) {
                tile_max[0] = fmaxf(tile_max[0], fmaxf(s[i].c[0], s[i].c[1]));
                tile_max[1] = fmaxf(tile_max[1], fmaxf(s[i].c[2], s[i].c[3]));
            }
            tile_max[0] = quad_max(tile_max[0]) * scale;
            tile_max[1] = quad_max(tile_max[1]) * scale;
            uint4 p[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                auto low = [&](const Fragment& f) {
                    return pack_bf16(probability(f.c[0], scale, tile_max[0]), probability(f.c[1], scale, tile_max[0]));
                };
                auto high = [&](const Fragment& f) {
                    return pack_bf16(probability(f.c[2], scale, tile_max[1]), probability(f.c[3], scale, tile_max[1]));
                };
                p[i] = make_uint4(low(s[2 * i]), high(s[2 * i]), low(s[2 * i + 1]), high(s[2 * i + 1]));
            }
            Fragment sums = row_sums(p);
            Fold low_fold(maximum[0], tile_max[0]), high_fold(maximum[1], tile_max[1]);
            sum[0] = low_fold(sum[0], sums.c[0]);
            sum[1] = high_fold(sum[1], sums.c[2]);
#pragma unroll
            for (int part = 0; part < D / 32; part++) {
                Fragment o[4];
                weigh_values<D>(o, p, keys + TILE_BYTES, part * 32);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    Fragment& into = total[part * 4 + i];
                    into.c[0] = low_fold(into.c[0], o[i].c[0]);
                    into.c[1] = low_fold(into.c[1], o[i].c[1]);
                    into.c[2] = high_fold(into.c[2], o[i].c[2]);
                    into.c[3] = high_fold(into.c[3], o[i].c[3]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp * 16 + g + 8 * half;
        if (row >= count) continue;
        float inverse = 1.0f / sum[half];
        u16* target = out + ((row0 + row) * heads + head) * D;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            *(u32*)(target + i * 8 + 2 * t) =
                pack_bf16(total[i].c[2 * half] * inverse, total[i].c[2 * half + 1] * inverse);
    }
}

#define PREFILL(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(PREFILL_THREADS, 1) attention_prefill_##D(                         \
        u16* out, const u16* queries, const u16* kv, const u32* tables, const u32* table_starts,                     \
        const u32* contexts, const u32* query_starts, const u32* query_counts, const uint2* works, int heads,        \
        int kv_heads, int page_shift, int window, float scale) {                                                     \
        prefill<D>(out, queries, kv, tables, table_starts, contexts, query_starts, query_counts, works, heads,       \
                   kv_heads, page_shift, window, scale);                                                             \
    }
PREFILL(64)
PREFILL(128)
