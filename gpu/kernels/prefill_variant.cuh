// Prefill attention in an order of additions of its own, faster than the canonical one: the tensor cores add up values over
// all tiles, relative to one base, which rises as in `Fold`. Queries are kept in registers.

template <int D>
struct VariantRows {
    float base[2], sum[2], weight[2], total[D / 2];
    bool raised;

    __device__ __forceinline__ VariantRows() {
#pragma unroll
        for (int i = 0; i < 2; i++) base[i] = NEGATIVE_INFINITY, sum[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] = 0.0f;
    }

    // Scores to probabilities. Sums are those of the keys of this thread alone.
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

    // What `soften` leaves to do once the values before are added up.
    __device__ __forceinline__ void lower() {
        if (!raised) return;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] *= weight[i % 4 / 2];
    }
};

// 16 rows of queries as the left operand of the tensor cores.
template <int D>
DEVICE void load_queries(uint4 (&q)[D / 16], u32 rows) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        int chunk = step % 4 * 2 + lane / 16;
        q[step] = load_matrices(rows + step / 4 * PREFILL_ROWS * 128 + lane % 16 * 128 + (chunk ^ lane % 8) * 16);
    }
}

template <int D>
DEVICE void start_scores(float (&s)[64], const uint4 (&q)[D / 16], u32 keys) {
    u64 tile = matrix_descriptor(keys);
    matrices_fence();
#pragma unroll
    for (int step = 0; step < D / 16; step++)
        multiply(s, &q[step].x, advance(tile, step / 4 * TILE_KEYS * 128 + step % 4 * 32), step > 0);
    matrices_commit();
}

// A group of four warps: attention of 64 rows of each work.
template <int D, int STAGES>
DEVICE void prefill_compute_variant(PrefillBarriers& barriers, const Work& shared_work, u16* out, u32 query_tile, u32 keys,
                                    u32 values, const PrefillLists& lists, float scale) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    int warp_row = threadIdx.x / 32 * 16;
    Release release(barriers, lists.sharers);
    int slot = 0;
    u32 phase = 0, query_phase = 0;
    for (int round = 0; nth_item(round) < lists.items; round++) {
        barrier_wait(&barriers.query_full, query_phase);
        query_phase ^= 1;
        Work work = shared_work;
        uint4 q[D / 16], p[8];
        load_queries<D>(q, query_tile + warp_row * 128);
        barrier_arrive(&barriers.query_empty);
        VariantRows<D> rows;
        float s[64];
        auto soften = [&](int tile) {
            mask_scores(s, tile * TILE_KEYS, work.position0 + warp_row, lists.window);
            rows.soften(s, scale);
        };

        barrier_wait(barriers.key_full + slot, phase);
        start_scores<D>(s, q, keys + slot * TILE_BYTES);
        matrices_wait<0>();
        release.keys(slot);
        soften(work.first_tile);
        for (int tile = work.first_tile; tile < work.last_tile; tile++) {
            pack_probabilities(p, s);
            int next = slot + 1 == STAGES ? 0 : slot + 1;
            u32 next_phase = next ? phase : phase ^ 1;
            barrier_wait(barriers.key_full + next, next_phase);
            start_scores<D>(s, q, keys + next * TILE_BYTES);
            barrier_wait(barriers.value_full + slot, phase);
            start_weighing<D>(rows.total, p, values + slot * TILE_BYTES, true);
            matrices_wait<1>();
            release.keys(next);
            soften(tile + 1);
            matrices_wait<0>();
            release.values(slot);
            rows.lower();
            slot = next;
            phase = next_phase;
        }
        pack_probabilities(p, s);
        barrier_wait(barriers.value_full + slot, phase);
        start_weighing<D>(rows.total, p, values + slot * TILE_BYTES, true);
#pragma unroll
        for (int half = 0; half < 2; half++) rows.sum[half] = quad_sum(rows.sum[half]);
        matrices_wait<0>();
        release.values(slot);
        if (++slot == STAGES) slot = 0, phase ^= 1;
        store_rows<D>(out, work, lists.heads, warp_row, rows.total, rows.sum);
    }
}
