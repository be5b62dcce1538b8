// The warps of a decode attention block that multiply.

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

// Codes are split into bf16 times 2^-120. Queries and probabilities times 2^80 bring the products back to where f32
// holds them, 2^-40 of what they are.
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
    __device__ __forceinline__ void weigh(Fragment (&o)[BLOCKS], const uint2 (&p)[KEY_STEPS], u32 values,
                                          int valid) const {
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) o[i] = Fragment{};
        auto weigh_step = [&](int step, int i, uint4 a) {
            if (!WHOLE) {
                auto kept = [&](int key) {
                    return (key < valid ? 0xffffu : 0u) | (key + 1 < valid ? 0xffff0000u : 0u);
                };
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
                    uint4 raw = load_matrices_transposed(Ring::chunk(values, step * 16 + lane, warp * BLOCKS + i));
                    uint4 a, b;
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
    __device__ __forceinline__ void store_part(const Tile& tile, int number, const Fragment (&o)[BLOCKS],
                                               const float (&m)[2], const float (&l)[2]) const {
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
            u32 low = pack_bf16(value.x * inverse, value.y * inverse);
            u32 high = pack_bf16(value.z * inverse, value.w * inverse);
            ((uint2*)at)[lane % WORDS] = make_uint2(low, high);
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
            barrier_arrive(ring.keys_empty + slot);
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
            uint2 p[KEY_STEPS];
            float sums[2];
            Fragment o[BLOCKS];
#pragma unroll
            for (int i = 0; i < KEY_STEPS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) s[i].c[j] = probability(s[i].c[j], work.scale, highest[j % 2]);
                auto pair = [&](int j) { return transpose(pack_bf16(s[i].c[j], s[i].c[j + 1])); };
                p[i] = make_uint2(pair(0), pair(2));
            }
#pragma unroll
            for (int q = 0; q < 2; q++) {
                sums[q] = sum_quarters([&](int j) { return s[j / 2].c[q + j % 2 * 2]; });
#pragma unroll
                for (int offset = 4; offset < 32; offset <<= 1)
                    sums[q] += __shfl_xor_sync(FULL_WARP, sums[q], offset);
            }
            barrier_wait(ring.values_full + slot, cursor.phase);
            if constexpr (CODES) {
#pragma unroll
                for (int i = 0; i < KEY_STEPS; i++) p[i] = make_uint2(shift_pair<80>(p[i].x), shift_pair<80>(p[i].y));
            }
            if (valid >= TILE_KEYS) weigh<true>(o, p, Ring::values(memory, slot), valid);
            else weigh<false>(o, p, Ring::values(memory, slot), valid);
            barrier_arrive(ring.values_empty + slot);

            bool folded = tile.begin == 0 || work.whole_runs;
            if (folded) {
#pragma unroll
                for (int q = 0; q < 2; q++) {
                    Fold fold(maximum[q], highest[q]);
                    sum[q] = fold(sum[q], sums[q]);
#pragma unroll
                    for (int i = 0; i < BLOCKS; i++) {
                        total[i].c[q] = fold(total[i].c[q], o[i].c[q]);
                        total[i].c[q + 2] = fold(total[i].c[q + 2], o[i].c[q + 2]);
                    }
                }
            } else {
                store_part(tile, tile.number, o, highest, sums);
            }
            if (tile.number + 1 == tile.end) end_run(tile, folded);
            cursor.advance(Ring::STAGES);
        }
    }
};
