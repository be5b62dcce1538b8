// The warps of a prefill attention block that compute: products, probabilities, and what becomes of them. A thread of a warp
// has two rows: lane 4g + t has rows g and g + 8, of scores those of keys 8j + 2t and 8j + 2t + 1.

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

// A group of four warps: attention of 64 rows of each work. `Rows` are the two of a thread, in an order of additions: it starts
// products with keys and with values, makes scores probabilities (`soften`), and joins what was weighed to the result, between
// the start of the next scores and that of the next values (`fold`), once values are weighed (`lower`), and in the end (`finish`).
template <int D, int STAGES, typename Rows>
DEVICE void prefill_compute(PrefillBarriers& barriers, const Work& shared_work, u16* out, u32 query_tile, u32 keys, u32 values,
                            const PrefillLists& lists, float scale) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    int warp_row = threadIdx.x / 32 * 16;
    Release release(barriers, lists.sharers);
    Rows rows(query_tile);
    int slot = 0;
    u32 phase = 0, query_phase = 0;
    for (int round = 0; nth_item(round) < lists.items; round++) {
        barrier_wait(&barriers.query_full, query_phase);
        query_phase ^= 1;
        Work work = shared_work;
        rows.begin();
        if (Rows::KEEPS_QUERIES) barrier_arrive(&barriers.query_empty);
        float s[64];
        uint4 p[8];
        auto soften = [&](int tile) {
            mask_scores(s, tile * TILE_KEYS, work.position0 + warp_row, lists.window);
            rows.soften(s, scale);
        };

        barrier_wait(barriers.key_full + slot, phase);
        rows.start_scores(s, keys + slot * TILE_BYTES);
        matrices_wait<0>();
        release.keys(slot);
        soften(work.first_tile);
        for (int tile = work.first_tile; tile < work.last_tile; tile++) {
            pack_probabilities(p, s);
            int next = slot + 1 == STAGES ? 0 : slot + 1;
            u32 next_phase = next ? phase : phase ^ 1;
            barrier_wait(barriers.key_full + next, next_phase);
            rows.start_scores(s, keys + next * TILE_BYTES);
            rows.fold();
            barrier_wait(barriers.value_full + slot, phase);
            rows.start_weighing(p, values + slot * TILE_BYTES);
            matrices_wait<1>();
            release.keys(next);
            soften(tile + 1);
            matrices_wait<0>();
            release.values(slot);
            rows.lower();
            slot = next;
            phase = next_phase;
        }
        if (!Rows::KEEPS_QUERIES) barrier_arrive(&barriers.query_empty);
        pack_probabilities(p, s);
        rows.fold();
        barrier_wait(barriers.value_full + slot, phase);
        rows.start_weighing(p, values + slot * TILE_BYTES);
        matrices_wait<0>();
        release.values(slot);
        float sums[2];
        rows.finish(sums);
        if (++slot == STAGES) slot = 0, phase ^= 1;
        store_rows<D>(out, work, lists.heads, warp_row, rows.total, sums);
    }
}
