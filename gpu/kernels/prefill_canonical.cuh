// Prefill attention in the canonical order: each tile's values are weighed by themselves, and folded when its successor's
// scores are under way. All four lanes of a quad know the same of its two rows: even ones keep what the first is about, odd
// ones the second, since registers are what there is least of.

template <int D>
struct CanonicalRows {
    static constexpr bool KEEPS_QUERIES = false;
    u64 queries;
    float total[D / 2], weighed[D / 2];
    float base, sum;
    // of the last tile, and of the one whose values are in `weighed`
    float maximum, tile_sum, weighed_maximum, weighed_sum;

    __device__ __forceinline__ CanonicalRows(u32 query_tile) {
        int group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
        queries = matrix_descriptor(query_tile + group * 64 * 128);
    }

    static __device__ __forceinline__ float own(float first, float second) { return threadIdx.x % 2 ? second : first; }
    // Those of both rows, from the lane's own.
    static __device__ __forceinline__ void both(float (&rows)[2], float mine) {
        float other = __shfl_xor_sync(FULL_WARP, mine, 1);
        rows[0] = own(mine, other);
        rows[1] = own(other, mine);
    }

    __device__ __forceinline__ void begin() {
        base = weighed_maximum = NEGATIVE_INFINITY;
        sum = weighed_sum = 0.0f;
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
        float maxima[2], sums[2];
        row_maxima(maxima, s, scale);
        maximum = own(maxima[0], maxima[1]);
#pragma unroll
        for (int i = 0; i < 64; i++) s[i] = probability(s[i], scale, maxima[i % 4 / 2]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float ranks[2];
#pragma unroll
            for (int rank = 0; rank < 2; rank++)
                ranks[rank] = sum_quarters([&](int j) { return s[4 * j + 2 * half + rank]; });
            sums[half] = ranks[0] + ranks[1];
        }
        // as `quad_sum`, of the lane's row
        float pair = own(sums[0], sums[1]) + __shfl_xor_sync(FULL_WARP, own(sums[1], sums[0]), 1);
        tile_sum = pair + __shfl_xor_sync(FULL_WARP, pair, 2);
    }

    __device__ __forceinline__ void start_weighing(const uint4 (&p)[8], u32 values) {
        ::start_weighing<D>(weighed, p, values, false);
    }

    __device__ __forceinline__ void fold() {
        Fold fold(base, weighed_maximum);
        sum = fold(sum, weighed_sum);
        float weights[2];
        both(weights, fold.new_weight);
        // nothing to make smaller where no base has risen
        if (__all_sync(FULL_WARP, fold.old_weight == 1.0f)) {
#pragma unroll
            for (int i = 0; i < D / 2; i++) total[i] = __fmaf_rn(weighed[i], weights[i % 4 / 2], total[i]);
        } else {
            float old_weights[2];
            both(old_weights, fold.old_weight);
#pragma unroll
            for (int i = 0; i < D / 2; i++)
                total[i] = __fmaf_rn(weighed[i], weights[i % 4 / 2], __fmul_rn(total[i], old_weights[i % 4 / 2]));
        }
        weighed_maximum = maximum;
        weighed_sum = tile_sum;
    }

    __device__ __forceinline__ void lower() const {}
    __device__ __forceinline__ void finish(float (&sums)[2]) {
        fold();
        both(sums, sum);
    }
};
