// Prefill attention in the canonical order: each tile's values are weighed by themselves, and folded when its successor's
// scores are under way.

template <int D>
struct CanonicalRows {
    static constexpr bool KEEPS_QUERIES = false;
    u64 queries;
    float base[2], sum[2], total[D / 2];
    // of the last tile, and of the one whose values are in `weighed`
    float maxima[2], sums[2], weighed_maxima[2], weighed_sums[2], weighed[D / 2];

    __device__ __forceinline__ CanonicalRows(u32 query_tile) {
        int group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
        queries = matrix_descriptor(query_tile + group * 64 * 128);
    }

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int i = 0; i < 2; i++) base[i] = weighed_maxima[i] = NEGATIVE_INFINITY, sum[i] = weighed_sums[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] = weighed[i] = 0.0f;
    }

    __device__ __forceinline__ void start_scores(float (&s)[64], u32 keys) const {
        u64 tile = matrix_descriptor(keys);
        matrices_fence();
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            u32 part = step / 4 * 128, within = step % 4 * 32;
            multiply(s, advance(queries, part * PREFILL_ROWS + within), advance(tile, part * TILE_KEYS + within), step > 0);
        }
        matrices_commit();
    }

    __device__ __forceinline__ void soften(float (&s)[64], float scale) {
        row_maxima(maxima, s, scale);
#pragma unroll
        for (int i = 0; i < 64; i++) s[i] = probability(s[i], scale, maxima[i % 4 / 2]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float ranks[2];
#pragma unroll
            for (int rank = 0; rank < 2; rank++)
                ranks[rank] = sum_quarters([&](int j) { return s[4 * j + 2 * half + rank]; });
            sums[half] = quad_sum(ranks[0] + ranks[1]);
        }
    }

    __device__ __forceinline__ void start_weighing(const uint4 (&p)[8], u32 values) {
        ::start_weighing<D>(weighed, p, values, false);
    }

    __device__ __forceinline__ void fold() {
        Fold low(base[0], weighed_maxima[0]), high(base[1], weighed_maxima[1]);
        sum[0] = low(sum[0], weighed_sums[0]);
        sum[1] = high(sum[1], weighed_sums[1]);
        // nothing to make smaller where no base has risen
        if (__all_sync(FULL_WARP, low.old_weight == 1.0f && high.old_weight == 1.0f)) {
#pragma unroll
            for (int i = 0; i < D / 2; i++) total[i] = __fmaf_rn(weighed[i], (i % 4 < 2 ? low : high).new_weight, total[i]);
        } else {
#pragma unroll
            for (int i = 0; i < D / 2; i++) total[i] = (i % 4 < 2 ? low : high)(total[i], weighed[i]);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) weighed_maxima[half] = maxima[half], weighed_sums[half] = sums[half];
    }

    __device__ __forceinline__ void lower() const {}
    __device__ __forceinline__ void finish() { fold(); }
};
