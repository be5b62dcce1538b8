// The warps of a prefill attention block that compute: products, probabilities, and what becomes of them in the canonical
// order. A thread of a warp has two rows: lane 4g + t has rows g and g + 8, of scores those of keys 8j + 2t and 8j + 2t + 1.

// Starts the products of 64 rows of queries with the keys of a tile.
template <int D>
DEVICE void start_scores(float (&s)[64], u64 queries, u32 keys) {
    u64 tile = matrix_descriptor(keys);
    matrices_fence();
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        u32 part = step / 4 * 128, within = step % 4 * 32;
        multiply(s, advance(queries, part * PREFILL_ROWS + within), advance(tile, part * TILE_KEYS + within), step > 0);
    }
    matrices_commit();
}

// Starts the products of 64 rows of probabilities with the values of a tile, added to `o` if `add`.
template <int D>
DEVICE void start_weighing(float (&o)[D / 2], const uint4 (&p)[8], u32 values, bool add) {
    u64 tile = turned_descriptor(values, TILE_KEYS * 128);
    matrices_fence();
#pragma unroll
    for (int step = 0; step < 8; step++) multiply_turned(o, p[step], advance(tile, step * 16 * 128), add || step > 0);
    matrices_commit();
}

// Scores of keys that a query may not see: `position` is that of the warp's first row.
DEVICE void mask_scores(float (&s)[64], int key0, int position, int window) {
    if (key0 + TILE_KEYS - 1 <= position && key0 > position + 15 - window) return;
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 64; i++) {
        int key = key0 + i / 4 * 8 + 2 * t + i % 2, query = position + g + i % 4 / 2 * 8;
        if (key > query || key <= query - window) s[i] = NEGATIVE_INFINITY;
    }
}

// Greatest score of each row, in units of log2.
DEVICE void row_maxima(float (&maxima)[2], const float (&s)[64], float scale) {
    float low = NEGATIVE_INFINITY, high = NEGATIVE_INFINITY;
#pragma unroll
    for (int i = 0; i < 64; i += 4) {
        low = fmaxf(low, fmaxf(s[i], s[i + 1]));
        high = fmaxf(high, fmaxf(s[i + 2], s[i + 3]));
    }
    maxima[0] = quad_max(low) * scale;
    maxima[1] = quad_max(high) * scale;
}

// Probabilities as the left operand of the tensor cores.
DEVICE void pack_probabilities(uint4 (&p)[8], const float (&s)[64]) {
    auto pair = [&](int i) { return pack_bf16(s[i], s[i + 1]); };
#pragma unroll
    for (int i = 0; i < 8; i++) p[i] = make_uint4(pair(8 * i), pair(8 * i + 2), pair(8 * i + 4), pair(8 * i + 6));
}

// Stores 16 rows of the result.
template <int D>
DEVICE void store_rows(u16* out, const Work& work, int heads, int warp_row, const float (&o)[D / 2], const float (&sum)[2]) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp_row + g + 8 * half;
        if (row >= work.count) continue;
        float inverse = 1.0f / sum[half];
        u16* target = out + ((work.row0 + row) * heads + work.head) * D + 2 * t;
#pragma unroll
        for (int i = 0; i < D / 8; i++)
            *(u32*)(target + i * 8) = pack_bf16(o[4 * i + 2 * half] * inverse, o[4 * i + 2 * half + 1] * inverse);
    }
}

// Two rows of a thread in the running result.
template <int D>
struct RunningRows {
    float base[2], sum[2], total[D / 2];

    __device__ __forceinline__ RunningRows() {
#pragma unroll
        for (int i = 0; i < 2; i++) base[i] = NEGATIVE_INFINITY, sum[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 2; i++) total[i] = 0.0f;
    }

    __device__ __forceinline__ void fold(const float (&tile_maximum)[2], const float (&tile_sum)[2], const float (&o)[D / 2]) {
        Fold low(base[0], tile_maximum[0]), high(base[1], tile_maximum[1]);
        sum[0] = low(sum[0], tile_sum[0]);
        sum[1] = high(sum[1], tile_sum[1]);
        // nothing to make smaller where no base has risen
        if (__all_sync(FULL_WARP, low.old_weight == 1.0f && high.old_weight == 1.0f)) {
#pragma unroll
            for (int i = 0; i < D / 2; i++) total[i] = __fmaf_rn(o[i], (i % 4 < 2 ? low : high).new_weight, total[i]);
        } else {
#pragma unroll
            for (int i = 0; i < D / 2; i++) total[i] = (i % 4 < 2 ? low : high)(total[i], o[i]);
        }
    }
};

// A group of four warps: attention of 64 rows of each work.
template <int D, int STAGES>
DEVICE void prefill_compute(PrefillBarriers& barriers, const Work& shared_work, u16* out, u32 query_tile, u32 keys, u32 values,
                            const PrefillLists& lists, float scale) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    int group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp_row = threadIdx.x / 32 * 16;
    u64 queries = matrix_descriptor(query_tile + group * 64 * 128);
    Release release(barriers, lists.sharers);
    int slot = 0;
    u32 phase = 0, query_phase = 0;
    for (int round = 0; nth_item(round) < lists.items; round++) {
        barrier_wait(&barriers.query_full, query_phase);
        query_phase ^= 1;
        Work work = shared_work;
        RunningRows<D> rows;
        // of a tile; its values are folded when its successor's scores are under way
        float s[64], o[D / 2], maxima[2], sums[2];
        float weighed_maxima[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, weighed_sums[2] = {};
        uint4 p[8];
#pragma unroll
        for (int i = 0; i < D / 2; i++) o[i] = 0.0f;
        auto fold = [&] {
            rows.fold(weighed_maxima, weighed_sums, o);
#pragma unroll
            for (int half = 0; half < 2; half++) weighed_maxima[half] = maxima[half], weighed_sums[half] = sums[half];
        };
        // scores to probabilities
        auto soften = [&](int tile) {
            mask_scores(s, tile * TILE_KEYS, work.position0 + warp_row, lists.window);
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
        };

        barrier_wait(barriers.key_full + slot, phase);
        start_scores<D>(s, queries, keys + slot * TILE_BYTES);
        matrices_wait<0>();
        release.keys(slot);
        soften(work.first_tile);
        for (int tile = work.first_tile; tile < work.last_tile; tile++) {
            pack_probabilities(p, s);
            int next = slot + 1 == STAGES ? 0 : slot + 1;
            u32 next_phase = next ? phase : phase ^ 1;
            barrier_wait(barriers.key_full + next, next_phase);
            start_scores<D>(s, queries, keys + next * TILE_BYTES);
            fold();
            barrier_wait(barriers.value_full + slot, phase);
            start_weighing<D>(o, p, values + slot * TILE_BYTES, false);
            matrices_wait<1>();
            release.keys(next);
            soften(tile + 1);
            matrices_wait<0>();
            release.values(slot);
            slot = next;
            phase = next_phase;
        }
        barrier_arrive(&barriers.query_empty);
        pack_probabilities(p, s);
        fold();
        barrier_wait(barriers.value_full + slot, phase);
        start_weighing<D>(o, p, values + slot * TILE_BYTES, false);
        matrices_wait<0>();
        release.values(slot);
        fold();
        if (++slot == STAGES) slot = 0, phase ^= 1;
        store_rows<D>(out, work, lists.heads, warp_row, rows.total, rows.sum);
    }
}
