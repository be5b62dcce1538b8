// Work items are (tile of a sequence, kv head); a block has its first two by its number and draws more from `queue`
// (items drawn, blocks done; zero between launches), so the grid does not depend on the lengths. `tile_starts[i]` is the
// number of tiles of sequences before i. Four warps share an item: they divide the keys for the scores, then the columns
// of the values. A sequence of several tiles leaves its parts in `part_values` and `part_stats`, and the last block to
// arrive folds them.
//
// Lists and page tables belong to the step, and so do all keys and values but those of its own tokens: they are read
// before the producer of the queries has ended.

#define DECODE_THREADS 128
#define MAX_GROUP 16
#define FOLD_WEIGHTS 256  // 16-byte words that the probabilities leave for the weights of a fold

// Counts an arrival after everything this block has written; true for the last of `expected`, which sees what all
// have written and leaves the ticket at zero. One thread calls it between two barriers.
DEVICE bool arrive(u32* ticket, u32 expected) {
    u32 before;
    asm volatile("atom.add.release.gpu.u32 %0, [%1], 1;" : "=r"(before) : "l"(ticket) : "memory");
    if (before != expected - 1) return false;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    *ticket = 0;
    return true;
}

// Folds the parts of one (sequence, kv head) in ascending order. Warps first make the weights of a run of parts, which
// follow from prefix maxima, then every thread folds its columns with many loads in flight.
template <int D>
DEVICE void fold_parts(u16* out, const float* part_values, const float2* part_stats, float4* weights,
                       u64 first_item, int kv_heads, int parts, int group) {
    constexpr int OUTPUTS = MAX_GROUP * D / 4 / DECODE_THREADS;  // of four columns
    constexpr int BATCH = 8;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int run = FOLD_WEIGHTS / group < 32 ? FOLD_WEIGHTS / group : 32;
    float4 value[OUTPUTS] = {};
    float sum[OUTPUTS] = {};
    float running[MAX_GROUP / 4];
#pragma unroll
    for (int q = 0; q < MAX_GROUP / 4; q++) running[q] = NEGATIVE_INFINITY;
    for (int first = 0; first < parts; first += run) {
        int count = parts - first < run ? parts - first : run;
#pragma unroll
        for (int q = 0; q < MAX_GROUP / 4; q++) {
            int row = warp + 4 * q;
            if (row >= group) continue;
            float2 stats = make_float2(NEGATIVE_INFINITY, 0.0f);
            if (lane < count)
                stats = __ldcg(part_stats + (first_item + (u64)(first + lane) * kv_heads) * group + row);
            float before = __shfl_up_sync(FULL_WARP, stats.x, 1);
            before = lane ? before : NEGATIVE_INFINITY;
#pragma unroll
            for (int offset = 1; offset < 32; offset <<= 1) {
                float other = __shfl_up_sync(FULL_WARP, before, offset);
                if (lane >= offset) before = fmaxf(before, other);
            }
            before = fmaxf(before, running[q]);
            Fold fold(before, stats.x);
            running[q] = __shfl_sync(FULL_WARP, before, 31);
            if (lane < count) weights[row * run + lane] = make_float4(fold.old_weight, fold.new_weight, stats.y, 0.0f);
        }
        __syncthreads();
#pragma unroll
        for (int q = 0; q < OUTPUTS; q++) {
            int i = (threadIdx.x + q * DECODE_THREADS) * 4;
            if (i >= group * D) continue;
            const float4* row_weights = weights + i / D * run;
            const float* source = part_values + (first_item + (u64)first * kv_heads) * group * D + i;
            u64 stride = (u64)kv_heads * group * D;
            for (int base = 0; base < count; base += BATCH) {
                float4 v[BATCH];
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    v[b] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (base + b < count) v[b] = __ldcg((const float4*)(source + (base + b) * stride));
                }
#pragma unroll
                for (int b = 0; b < BATCH; b++) {
                    if (base + b >= count) continue;
                    float4 w = row_weights[base + b];
                    value[q].x = __fmaf_rn(value[q].x, w.x, __fmul_rn(v[b].x, w.y));
                    value[q].y = __fmaf_rn(value[q].y, w.x, __fmul_rn(v[b].y, w.y));
                    value[q].z = __fmaf_rn(value[q].z, w.x, __fmul_rn(v[b].z, w.y));
                    value[q].w = __fmaf_rn(value[q].w, w.x, __fmul_rn(v[b].w, w.y));
                    sum[q] = __fmaf_rn(sum[q], w.x, __fmul_rn(w.z, w.y));
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int q = 0; q < OUTPUTS; q++) {
        int i = (threadIdx.x + q * DECODE_THREADS) * 4;
        if (i >= group * D) continue;
        float inverse = 1.0f / sum[q];
        *(uint2*)(out + i) = make_uint2(pack_bf16(value[q].x * inverse, value[q].y * inverse),
                                        pack_bf16(value[q].z * inverse, value[q].w * inverse));
    }
}

template <int D>
DEVICE void decode(u16* out, const u16* queries, const u16* kv, const u32* tables, const u32* table_starts,
                   const u32* contexts, const u32* tile_starts, float* part_values, float2* part_stats, u32* tickets,
                   u32* queue, int sequences, int heads, int kv_heads, int page_shift, int window, float scale) {
    constexpr int CHUNKS = D / 8;
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    extern __shared__ __align__(1024) u8 memory[];
    __shared__ float maxima[4][16];
    __shared__ bool is_last;
    __shared__ u32 following;
    u32 keys = shared_address(memory), values = keys + TILE_BYTES, query_tile = values + TILE_BYTES;
    u32 probabilities = query_tile + 16 * D * 2;
    float4* weights = (float4*)(memory + 2 * TILE_BYTES + 16 * D * 2);  // where the probabilities were
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int group = heads / kv_heads;

    u32* starts = (u32*)(memory + 2 * TILE_BYTES + 16 * D * 2 + 16 * TILE_KEYS * 2);  // copy of tile_starts

    struct Item {
        int sequence, context, tile, tiles;
        Pages pages;
        u32 page_ids;
    };
    // Items of a block ascend: the search begins at the sequence of the last one.
    auto find = [&](u32 item, int from) {
        Item it;
        u32 unit = item / kv_heads;
        int low = from, high = sequences;  // the last sequence whose tiles start at or before `unit`
        while (high - low > 1) {
            int middle = (low + high) / 2;
            if (starts[middle] <= unit) low = middle;
            else high = middle;
        }
        it.sequence = low;
        it.context = contexts[low];
        int first_tile = (it.context > window ? it.context - window : 0) / TILE_KEYS;
        it.tile = first_tile + (unit - starts[low]);
        it.tiles = starts[low + 1] - starts[low];
        it.pages = Pages{kv, tables + table_starts[low], page_shift, kv_heads, (int)(item % kv_heads)};
        it.page_ids = it.pages.of_tile(it.tile * TILE_KEYS, it.context);
        return it;
    };
    auto load_keys = [&](const Item& it) {
        load_tile<D, DECODE_THREADS>(keys, it.pages, it.page_ids, 0, it.tile * TILE_KEYS, it.context);
    };
    auto load_queries = [&](const Item& it) {
        for (int i = threadIdx.x; i < 16 * CHUNKS; i += DECODE_THREADS) {
            int row = i / CHUNKS, chunk = i % CHUNKS;
            bool valid = row < group;
            u64 head = (u64)it.sequence * heads + it.pages.kv_head * group + (valid ? row : 0);
            copy_async(chunk_address<CHUNKS>(query_tile, row, chunk), queries + head * D + chunk * 8, valid);
        }
    };
    auto load_values = [&](const Item& it) {
        load_tile<D, DECODE_THREADS>(values, it.pages, it.page_ids, 1, it.tile * TILE_KEYS, it.context);
    };

    allow_consumer();
    u32 items = tile_starts[sequences] * kv_heads;
    u32 item = blockIdx.x, next_item = item + gridDim.x;
    auto leave = [&]() {
        if (threadIdx.x == 0 && arrive(queue + 1, gridDim.x)) queue[0] = 0;
    };
    if (item >= items) {
        wait_for_producer();
        return leave();
    }
    for (int i = threadIdx.x; i <= sequences; i += DECODE_THREADS) starts[i] = tile_starts[i];
    __syncthreads();
    Item it = find(item, 0);
    bool settled = (it.tile + 1) * TILE_KEYS < it.context;
    if (settled) {
        load_keys(it);
        load_values(it);
    }
    wait_for_producer();
    if (!settled) load_keys(it);
    load_queries(it);
    copy_commit();
    if (!settled) load_values(it);
    copy_commit();
    while (true) {
        bool more = next_item < items;
        u32 drawn = 0;
        if (more && threadIdx.x == 0) drawn = atomicAdd(queue, 1);  // arrives while the tile is computed
        Item next = it;
        if (more) next = find(next_item, it.sequence);
        copy_wait<1>();
        __syncthreads();
        Fragment s[4];
        scores<D, 4>(s, query_tile, 0, keys, warp * 32);
        int position = it.context - 1;
        float low_max = NEGATIVE_INFINITY, high_max = NEGATIVE_INFINITY;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int key = it.tile * TILE_KEYS + warp * 32 + i * 8 + 2 * t + j;
                if (key > position || key <= position - window)
                    s[i].c[j] = s[i].c[j + 2] = NEGATIVE_INFINITY;
                low_max = fmaxf(low_max, s[i].c[j]);
                high_max = fmaxf(high_max, s[i].c[j + 2]);
            }
        }
        low_max = quad_max(low_max);
        high_max = quad_max(high_max);
        if (t == 0) {
            maxima[warp][g] = low_max;
            maxima[warp][g + 8] = high_max;
        }
        __syncthreads();
        if (more) {
            load_keys(next);
            load_queries(next);
        }
        copy_commit();
        low_max = fmaxf(fmaxf(maxima[0][g], maxima[1][g]), fmaxf(maxima[2][g], maxima[3][g])) * scale;
        high_max = fmaxf(fmaxf(maxima[0][g + 8], maxima[1][g + 8]), fmaxf(maxima[2][g + 8], maxima[3][g + 8])) * scale;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int chunk = warp * 4 + i;
            u32 low = pack_bf16(probability(s[i].c[0], scale, low_max), probability(s[i].c[1], scale, low_max));
            u32 high = pack_bf16(probability(s[i].c[2], scale, high_max), probability(s[i].c[3], scale, high_max));
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(chunk_address<16>(probabilities, g, chunk) + 4 * t), "r"(low)
                         : "memory");
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(chunk_address<16>(probabilities, g + 8, chunk) + 4 * t),
                         "r"(high)
                         : "memory");
        }
        copy_wait<1>();
        __syncthreads();
        uint4 p[8];
#pragma unroll
        for (int step = 0; step < 8; step++)
            p[step] = load_matrices(chunk_address<16>(probabilities, lane % 16, 2 * step + lane / 16));
        Fragment sums = row_sums(p);

        bool single = it.tiles == 1;
        u64 unit = (u64)item * group;  // row of the parts
        constexpr int WARP_COLUMNS = D == 64 ? 32 : D / 4;
        if (warp * WARP_COLUMNS < D) {
            Fragment o[4];
            weigh_values<D>(o, p, values, warp * WARP_COLUMNS);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = g + 8 * half;
                if (row >= group) continue;
                float maximum = NEGATIVE_INFINITY;
                Fold fold(maximum, half ? high_max : low_max);
                float inverse = 1.0f / fold(0.0f, sums.c[2 * half]);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int column = warp * WARP_COLUMNS + i * 8 + 2 * t;
                    float v0 = o[i].c[2 * half], v1 = o[i].c[2 * half + 1];
                    if (single) {
                        u64 head = (u64)it.sequence * heads + it.pages.kv_head * group + row;
                        *(u32*)(out + head * D + column) =
                            pack_bf16(fold(0.0f, v0) * inverse, fold(0.0f, v1) * inverse);
                    } else {
                        __stcg((float2*)(part_values + (unit + row) * D + column), make_float2(v0, v1));
                    }
                }
                if (!single && warp == 0 && t == 0)
                    __stcg(part_stats + unit + row, make_float2(half ? high_max : low_max, sums.c[2 * half]));
            }
        }
        if (threadIdx.x == 0) following = drawn + 2 * gridDim.x;
        __syncthreads();
        if (more) load_values(next);
        copy_commit();
        if (!single) {
            if (threadIdx.x == 0) is_last = arrive(tickets + it.sequence * kv_heads + it.pages.kv_head, it.tiles);
            __syncthreads();
            if (is_last) {
                u64 first_item = (u64)starts[it.sequence] * kv_heads + it.pages.kv_head;
                u64 head = (u64)it.sequence * heads + it.pages.kv_head * group;
                fold_parts<D>(out + head * D, part_values, part_stats, weights, first_item, kv_heads, it.tiles, group);
            }
        }
        if (!more) break;
        item = next_item;
        it = next;
        next_item = following;
    }
    copy_wait<0>();
    leave();
}

#define DECODE(D)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 3) attention_decode_##D(                           \
        u16* out, const u16* queries, const u16* kv, const u32* tables, const u32* table_starts,                     \
        const u32* contexts, const u32* tile_starts, float* part_values, float2* part_stats, u32* tickets,           \
        u32* queue, int sequences, int heads, int kv_heads, int page_shift, int window, float scale) {                           \
        decode<D>(out, queries, kv, tables, table_starts, contexts, tile_starts, part_values, part_stats, tickets,   \
                  queue, sequences, heads, kv_heads, page_shift, window, scale);                                            \
    }
DECODE(64)
DECODE(128)
