// Prefill attention in an order of additions of its own, faster than the canonical one: the tensor cores add up values over
// all tiles, relative to one base, which rises as in `Fold`. Queries are kept in registers.

template <int D>
struct VariantRows {
    static constexpr bool KEEPS_QUERIES = true;
    u32 row;                // this lane's of the queries
    uint4 queries[D / 16];  // 16 rows as the left operand of the tensor cores
    float base[2], sum[2], weight[2], total[D / 2];
    bool raised;

    __device__ __forceinline__ VariantRows(u32 query_tile) {
        row = query_tile + (threadIdx.x / 32 * 16 + threadIdx.x % 16) * 128;
    }

    __device__ __forceinline__ void begin() {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            u32 chunk = step % 4 * 2 + lane / 16;
            queries[step] = load_matrices(row + step / 4 * PREFILL_ROWS * 128 + (chunk ^ lane % 8) * 16);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) base[i] = NEGATIVE_INFINITY, sum[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] = 0.0f;
    }

    __device__ __forceinline__ void start_scores(float (&s)[64], u32 keys) const {
        u64 tile = matrix_descriptor(keys);
        matrices_fence();
#pragma unroll
        for (int step = 0; step < D / 16; step++)
            multiply(s, &queries[step].x, advance(tile, step / 4 * TILE_KEYS * 128 + step % 4 * 32), step > 0);
        matrices_commit();
    }

    // Sums are those of the keys of this thread alone.
    __device__ __forceinline__ void soften(float (&s)[64], float scale) {
        float maxima[2];
        row_maxima(maxima, s, scale);
        raised = __any_sync(FULL_WARP, maxima[0] > base[0] + SLACK || maxima[1] > base[1] + SLACK);
        if (raised) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                weight[half] = Fold(base[half], maxima[half]).old_weight;
                sum[half] *= weight[half];
            }
        }
#pragma unroll
        for (int i = 0; i < 64; i++) {
            s[i] = probability(s[i], scale, base[i % 4 / 2]);
            sum[i % 4 / 2] += s[i];
        }
    }

    __device__ __forceinline__ void start_weighing(const uint4 (&p)[8], u32 values) {
        ::start_weighing<D>(total, p, values, true);
    }

    __device__ __forceinline__ void fold() const {}

    // What `soften` leaves to do once the values before are added up.
    __device__ __forceinline__ void lower() {
        if (!raised) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] *= weight[i % 4 / 2];
    }

    __device__ __forceinline__ void finish(float (&sums)[2]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) sums[half] = quad_sum(sum[half]);
    }
};
