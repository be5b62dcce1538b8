// Attention over paged keys and values, grouped queries, bf16 with f32 accumulation.
//
// Canonical order, the same in both kernels, so that a position's bits depend neither on its neighbours in the batch
// nor on chunking nor on who computes it: positions fall into absolute tiles of 128 keys. Within a tile scores are
// exact dot products in ascending steps of 16, probabilities are relative to the tile's own maximum and rounded
// to bf16, sums and values accumulate on the tensor cores in ascending steps of 16 keys from zero. Tiles are folded
// in ascending order by `Fold`. A masked key has probability 0, a wholly masked tile folds as the identity.
//
// Pages are [page][key, value][kv head][page_size][D]; a sequence's page table lies at `table_starts[sequence]` in
// `tables`. `window` is the number of latest positions that a query sees (INT_MAX: all).

#define TILE_KEYS 128
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// ---- the running result of a row -------------------------------------------------------------------------------

// Weights of the running result and of the next tile when their maxima (in units of log2) are joined.
struct Fold {
    float old_weight, new_weight;
    __device__ __forceinline__ Fold(float& maximum, float tile_maximum) {
        float joined = fmaxf(maximum, tile_maximum);
        float base = joined == NEGATIVE_INFINITY ? 0.0f : joined;
        old_weight = exp2_fast(maximum - base);
        new_weight = exp2_fast(tile_maximum - base);
        maximum = joined;
    }
    __device__ __forceinline__ float operator()(float old_value, float new_value) const {
        return __fmaf_rn(old_value, old_weight, __fmul_rn(new_value, new_weight));
    }
};

// Probability of a score relative to its tile's maximum, `scaled_maximum` in units of log2.
DEVICE float probability(float score, float scale, float scaled_maximum) {
    return exp2_fast(__fmaf_rn(score, scale, -(scaled_maximum == NEGATIVE_INFINITY ? 0.0f : scaled_maximum)));
}

// ---- tiles in shared memory ------------------------------------------------------------------------------------

// Address of a 16-byte chunk of a row; rows of WIDTH chunks, swizzled so that 8 rows of one chunk meet 32 banks.
template <int WIDTH>
DEVICE u32 chunk_address(u32 base, int row, int chunk) {
    return base + (row * WIDTH + (chunk ^ (row & 7))) * 16;
}

// Where a layer's pages and a sequence's page table are.
struct Pages {
    const u16* pages;
    const u32* table;
    int shift, kv_heads, kv_head;

    // The pages of the tile at position `first`, one a lane; those from position `limit` on are not looked up. A tile
    // has no more pages than a warp has lanes.
    __device__ __forceinline__ u32 of_tile(int first, int limit) const {
        int lane = threadIdx.x % 32;
        int page = (first >> shift) + lane;
        return (lane << shift) < TILE_KEYS && (page << shift) < limit ? table[page] : 0;
    }
};

// Starts copying keys or values of positions `first ..` of a tile, whose pages are `ids`; those from `limit` on become
// zeros.
template <int D, int THREADS>
DEVICE void load_tile(u32 target, const Pages& pages, u32 ids, int is_value, int first, int limit) {
    constexpr int CHUNKS = D / 8;
    int chunk = threadIdx.x % CHUNKS;
    int mask = (1 << pages.shift) - 1;
    u64 head = (u64)is_value * pages.kv_heads + pages.kv_head;
    u64 page_heads = 2 * pages.kv_heads;
#pragma unroll
    for (int i = 0; i < TILE_KEYS * CHUNKS / THREADS; i++) {
        int row = threadIdx.x / CHUNKS + i * (THREADS / CHUNKS);
        int offset = (first & mask) + row;
        u64 page = __shfl_sync(FULL_WARP, ids, offset >> pages.shift);
        const u16* source = pages.pages + (((page * page_heads + head) << pages.shift) + (offset & mask)) * D + chunk * 8;
        bool valid = first + row < limit;
        copy_async(chunk_address<CHUNKS>(target, row, chunk), valid ? source : pages.pages, valid);
    }
}

// Scores of 16 query rows against 8 * N keys from `key0` on.
template <int D, int N>
DEVICE void scores(Fragment (&s)[N], u32 queries, int query0, u32 keys, int key0) {
    constexpr int CHUNKS = D / 8;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < N; i++) s[i] = Fragment{};
#pragma unroll
    for (int step = 0; step < D / 16; step += 2) {
        int query_row = query0 + lane % 16;
        uint4 a0 = load_matrices(chunk_address<CHUNKS>(queries, query_row, 2 * step + lane / 16));
        uint4 a1 = load_matrices(chunk_address<CHUNKS>(queries, query_row, 2 * step + 2 + lane / 16));
#pragma unroll
        for (int i = 0; i < N; i++) {
            uint4 b = load_matrices(chunk_address<CHUNKS>(keys, key0 + 8 * i + lane % 8, 2 * step + lane / 8));
            mma(s[i], a0.x, a0.y, a0.z, a0.w, b.x, b.y);
            mma(s[i], a1.x, a1.y, a1.z, a1.w, b.z, b.w);
        }
    }
}

// Product of 16 rows of probabilities over 128 keys with 32 columns of values from `column0` on.
template <int D>
DEVICE void weigh_values(Fragment (&o)[4], const uint4 (&p)[8], u32 values, int column0) {
    constexpr int CHUNKS = D / 8;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) o[i] = Fragment{};
#pragma unroll
    for (int step = 0; step < 8; step++) {
        int row = step * 16 + lane % 16;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            uint4 b = load_matrices_transposed(chunk_address<CHUNKS>(values, row, column0 / 8 + i + lane / 16));
            mma(o[i], p[step].x, p[step].y, p[step].z, p[step].w, b.x, b.y);
            mma(o[i + 1], p[step].x, p[step].y, p[step].z, p[step].w, b.z, b.w);
        }
    }
}

// Sums of 16 rows of probabilities over 128 keys; c[0] is that of row g, c[2] that of row g + 8.
DEVICE Fragment row_sums(const uint4 (&p)[8]) {
    constexpr u32 ONES = 0x3f803f80u;
    Fragment sums = {};
#pragma unroll
    for (int step = 0; step < 8; step++) mma(sums, p[step].x, p[step].y, p[step].z, p[step].w, ONES, ONES);
    return sums;
}
