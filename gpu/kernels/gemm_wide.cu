// Products of more rows of x than `stream` takes: see gemm.cuh.
//
// A block makes 128 columns by TOKENS rows, transposed: w is the left operand of the tensor cores, so that few rows of
// x waste none of them. One warp has tiles of 64 elements copied into a ring, two groups of four warps multiply them,
// 64 columns each. Results pass through shared memory, where they are turned. grid: column tiles times row tiles, in
// groups of ROW_GROUP row tiles so that blocks at work together share what the L2 cache holds. With SPLIT a cluster of
// SPLIT_SEGMENTS blocks makes a tile, one segment each; each adds up all parts of its share of the rows. `scales` [m],
// if given, are what a norm has left to do. With SHARED two blocks share a multiprocessor and keep its tensor cores
// busy in turn; each frees a stage at once, since its ring is short. A block of its own multiplies two at a time. Codes
// pass through registers on their way to the tensor cores; one group unpacks while the other multiplies.

#define WIDE_THREADS (32 * WIDE_WARPS + 32)
#define ROW_GROUP 16

enum Segments { WHOLE, FOLDED, SPLIT };

// Unpacks the codes of 16 rows by 64 elements for the tensor cores: four steps of 16. Rows of 64 bytes, swizzled by the
// copy engine; `scales` are those of this lane's rows g and g + 8.
DEVICE void unpack_tile(u32 (&a)[16], u32 rows, const CodeScale (&scales)[2]) {
    int lane = threadIdx.x % 32, row = lane % 16;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        int chunk = 2 * pair + lane / 16;
        uint4 raw = load_matrices(rows + row * 64 + (chunk ^ row / 2 % 4) * 16);
        u32* first = a + 8 * pair;
        unpack_codes(raw.x, scales[0], first[0], first[2]);
        unpack_codes(raw.y, scales[1], first[1], first[3]);
        unpack_codes(raw.z, scales[0], first[4], first[6]);
        unpack_codes(raw.w, scales[1], first[5], first[7]);
    }
}

template <int TOKENS, int STAGES, Segments HOW, bool SHARED, typename W>
DEVICE void wide(const TensorMap& w, const TensorMap& x, W weights, void* out, int m, int n, int k, int segments,
                 int output, const float* scales) {
    extern __shared__ u8 memory[];
    __shared__ u64 full[STAGES], empty[STAGES];
    constexpr u32 W_BYTES = WIDE_COLUMNS * 64 * 16 / W::RUN, STAGE_BYTES = W_BYTES + TOKENS * 128;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int tile = HOW == SPLIT ? blockIdx.x / SPLIT_SEGMENTS : blockIdx.x;
    int columns = (n + WIDE_COLUMNS - 1) / WIDE_COLUMNS, rows = (m + TOKENS - 1) / TOKENS;
    int group = tile / (ROW_GROUP * columns), in_group = tile % (ROW_GROUP * columns);
    int group_rows = rows - group * ROW_GROUP < ROW_GROUP ? rows - group * ROW_GROUP : ROW_GROUP;
    int row0 = (group * ROW_GROUP + in_group % group_rows) * TOKENS;
    int column0 = in_group / group_rows * WIDE_COLUMNS;
    int first = HOW == SPLIT ? cluster_rank() : 0, last = HOW == SPLIT ? first + 1 : segments;
    u32 ring = shared_address(memory) + 1023 & ~1023u;

    allow_consumer();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, WIDE_WARPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    auto load_weights = [&](int slot, int block) {
        barrier_expect(full + slot, STAGE_BYTES);
        copy_box(ring + slot * STAGE_BYTES, w, block * 64, column0, full + slot);
    };
    auto load_tokens = [&](int slot, int block) {
        copy_box(ring + slot * STAGE_BYTES + W_BYTES, x, block * 64, row0, full + slot);
    };
    float acc[TOKENS / 2], total[HOW == FOLDED ? TOKENS / 2 : 1];
    if (warp == WIDE_WARPS) {
        if (lane == 0) {
            int begin = segment_begin(k, first, segments), end = segment_begin(k, last, segments);
            int ahead = end - begin < STAGES ? end : begin + STAGES;
            for (int block = begin; block < ahead; block++) load_weights(block - begin, block);
            wait_for_producer();
            for (int block = begin; block < ahead; block++) load_tokens(block - begin, block);
            for (int block = ahead; block < end; block++) {
                int slot = (block - begin) % STAGES;
                barrier_wait(empty + slot, ((block - begin) / STAGES & 1) ^ 1);
                load_weights(slot, block);
                load_tokens(slot, block);
            }
        }
        __syncwarp();
    } else {
        u32 offset = W::CODES ? warp * 16 * 64 : warp / 4 * 64 * 128;
        int slot = 0;
        // codes: scales of rows g and g + 8 of this warp's 16, in the present block of 128 elements and in the next
        u32 scale_words[2], next_words[2];
        int scale_row = column0 + 16 * warp + lane / 4;
        u32 phase = 0;
        for (int segment = first; segment < last; segment++) {
            int begin = segment_begin(k, segment, segments), count = segment_begin(k, segment + 1, segments) - begin;
            if constexpr (W::CODES) weights.load_scales(next_words, scale_row, begin, n, k);
            if (count == 0) {
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) acc[i] = 0.0f;
            }
            int previous = -1;
            for (int block = 0; block < count; block++) {
                barrier_wait(full + slot, phase);
                u32 stage = ring + slot * STAGE_BYTES;
                if constexpr (W::CODES) {
                    if (block == 0 || (begin + block) % 2 == 0) {
                        scale_words[0] = next_words[0], scale_words[1] = next_words[1];
                        weights.load_scales(next_words, scale_row, (begin + block) / 2 * 2 + 2, n, k);
                    }
                    u32 a[16];
                    CodeScale code_scales[2] = {CodeScale(scale_words[0]), CodeScale(scale_words[1])};
                    unpack_tile(a, stage + offset, code_scales);
                    matrices_fence();
#pragma unroll
                    for (int step = 0; step < 4; step++)
                        multiply(acc, a + 4 * step, matrix_descriptor(stage + W_BYTES + step * 32), block > 0 || step > 0);
                } else {
                    matrices_fence();
#pragma unroll
                    for (int step = 0; step < 4; step++) {
                        u64 a = matrix_descriptor(stage + offset + step * 32);
                        u64 b = matrix_descriptor(stage + W_BYTES + step * 32);
                        multiply(acc, a, b, block > 0 || step > 0);
                    }
                }
                matrices_commit();
                if (!SHARED && !W::CODES) {
                    if (previous >= 0) {
                        matrices_wait<1>();
                        if (lane == 0) barrier_arrive(empty + previous);
                    }
                    previous = slot;
                } else {
                    matrices_wait<0>();
                    if (lane == 0) barrier_arrive(empty + slot);
                }
                if (++slot == STAGES) slot = 0, phase ^= 1;
            }
            matrices_wait<0>();
            if (previous >= 0 && lane == 0) barrier_arrive(empty + previous);
            if constexpr (HOW == FOLDED) {
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) total[i] = segment == 0 ? acc[i] : total[i] + acc[i];
            }
        }
        wait_for_producer();
    }
    constexpr int SHARE = HOW == SPLIT ? TOKENS / SPLIT_SEGMENTS : TOKENS;
    int token0 = HOW == SPLIT ? first * SHARE : 0;
    // of this warp's tokens, one a lane
    int scaled = row0 + token0 + warp + lane * WIDE_WARPS;
    float scale = scales && lane < SHARE / WIDE_WARPS && scaled < m && warp < WIDE_WARPS ? scales[scaled] : 1.0f;

    constexpr int PITCH = WIDE_COLUMNS + 4;  // scattered stores of a warp meet 32 banks
    float* turned = (float*)(memory + (ring - shared_address(memory)));
    __syncthreads();
    if (warp < WIDE_WARPS) {
        float* mine = turned + 2 * (lane % 4) * PITCH + warp * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++)
            mine[(i / 4 * 8 + i % 2) * PITCH + i % 4 / 2 * 8] = HOW == FOLDED ? total[HOW == FOLDED ? i : 0] : acc[i];
    }
    int column = column0 + 4 * lane;
    if constexpr (HOW == SPLIT) cluster_sync();
    else __syncthreads();
    if (warp < WIDE_WARPS) {
        constexpr int COUNT = SHARE / WIDE_WARPS, MOST = !SHARED ? 8 : HOW == SPLIT ? 2 : 4, BATCH = COUNT < MOST ? COUNT : MOST;
        for (int begin = 0; begin < COUNT; begin += BATCH) {
            // all loads of a batch before its first store, which they could not pass
            float4 old[BATCH], parts[BATCH][HOW == SPLIT ? SPLIT_SEGMENTS : 1];
            auto row_of = [&](int i) { return row0 + token0 + warp + (begin + i) * WIDE_WARPS; };
            auto valid = [&](int i) { return row_of(i) < m && column < n; };
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                old[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (output == ADD_F32 && valid(i))
                    old[i] = __ldcg((float4*)((float*)out + (u64)row_of(i) * n + column));
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const float4* at = (const float4*)(turned + (row_of(i) - row0) * PITCH) + lane;
                if constexpr (HOW == SPLIT) {
#pragma unroll
                    for (int s = 0; s < SPLIT_SEGMENTS; s++) parts[i][s] = read_peer(at, s);
                } else {
                    parts[i][0] = *at;
                }
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                float4 v = parts[i][0];
#pragma unroll
                for (int s = 1; s < (HOW == SPLIT ? SPLIT_SEGMENTS : 1); s++) v = add(v, parts[i][s]);
                float by = __shfl_sync(FULL_WARP, scale, begin + i);
                v = make_float4(v.x * by, v.y * by, v.z * by, v.w * by);
                if (valid(i)) store_four(output, out, (u64)row_of(i) * n + column, v, old[i]);
            }
        }
    }
    if constexpr (HOW == SPLIT) cluster_sync();
}

#define WIDE(NAME, TOKENS, STAGES, HOW, BLOCKS, WEIGHTS, CLUSTER)                                                    \
    extern "C" __global__ void CLUSTER __launch_bounds__(WIDE_THREADS, BLOCKS) gemm_wide_##NAME(                    \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, const u32* w_scales, void* out,    \
        int m, int n, int k, int segments, int output, const float* scales) {                                        \
        wide<TOKENS, STAGES, HOW, (BLOCKS > 1)>(w, x, WEIGHTS(nullptr, w_scales), out, m, n, k, segments, output,    \
                                                scales);                                                             \
    }
#define CLUSTER_SPLIT __cluster_dims__(SPLIT_SEGMENTS, 1, 1)
WIDE(32, 32, 5, WHOLE, 2, Bf16Weights, )
WIDE(64, 64, 4, WHOLE, 2, Bf16Weights, )
WIDE(64_fold, 64, 4, FOLDED, 2, Bf16Weights, )
WIDE(128_fold, 128, 6, FOLDED, 1, Bf16Weights, )
WIDE(128_split, 128, 3, SPLIT, 2, Bf16Weights, CLUSTER_SPLIT)
WIDE(32_fp8, 32, 8, WHOLE, 2, Fp8Weights, )
WIDE(64_fp8, 64, 6, WHOLE, 2, Fp8Weights, )
WIDE(64_fold_fp8, 64, 10, FOLDED, 1, Fp8Weights, )
WIDE(128_fold_fp8, 128, 8, FOLDED, 1, Fp8Weights, )
WIDE(32_split_fp8, 32, 8, SPLIT, 2, Fp8Weights, CLUSTER_SPLIT)
WIDE(64_split_fp8, 64, 6, SPLIT, 2, Fp8Weights, CLUSTER_SPLIT)
WIDE(128_split_fp8, 128, 8, SPLIT, 1, Fp8Weights, CLUSTER_SPLIT)
