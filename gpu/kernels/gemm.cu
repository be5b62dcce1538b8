// Products of few rows of x: see gemm.cuh.

// Two neighbouring columns of one row, n even; ADD_F32 is not for it.
DEVICE void store_pair(int output, void* out, int row, int column, int n, float v0, float v1) {
    u64 at = (u64)row * n + column;
    if (output == STORE_BF16) {
        *(u32*)((u16*)out + at) = pack_bf16(v0, v1);
    } else if (output == STORE_F32) {
        *(float2*)((float*)out + at) = make_float2(v0, v1);
    } else {
        ((u16*)out)[at / 2] = to_bf16(silu_mul(v0, v1));
    }
}

DEVICE void add(Fragment& total, const Fragment& part) {
#pragma unroll
    for (int i = 0; i < 4; i++) total.c[i] += part.c[i];
}

// ---- stream: few rows of x, bound by reading w --------------------------------------------------------------------
//
// A warp owns 8 * R rows of w over one segment, and its own ring in shared memory: a deep queue of loads without any
// barrier of the block. The ring fills with weights before the producer of x has ended. A slot holds 8 rows by 32
// elements, four chunks of 16 bytes a row, swizzled so that one chunk of 8 rows meets 32 banks.

#define STREAM_WARPS 4
#define STREAM_ROWS 16
// Elements of w from which on successors may begin at once and fill their rings; earlier than that they only take the
// places that this kernel's blocks would have been dealt.
#define LONG_PRODUCT (4u << 20)

// The norm that follows a sum (ADD_F32), if `weighed` is given: its weights [n]; rows times weights [m, n] and
// sums of squares [m, n / 8] are left for the next product.
struct NextNorm {
    const float* weight;
    u16* weighed;
    float* squares;
};

// `squares` [m, k / 8], if given: rows are scaled by what a norm left, with `eps`.
template <int R, int TOKEN_TILES>
DEVICE void stream(void* out, const u16* x, const u16* w, int m, int n, int k, int segments, int output, NextNorm next,
                   const float* squares, float eps) {
    extern __shared__ uint4 ring[];
    __shared__ float scales[STREAM_ROWS];
    constexpr int SLOTS = R + TOKEN_TILES;
    constexpr int STREAM_STAGES = R == 1 ? 16 : 8;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int g = lane / 4, t = lane % 4;
    int segment = warp % segments;
    int row0 = (blockIdx.x * (STREAM_WARPS / segments) + warp / segments) * 8 * R;
    int begin = 2 * segment_begin(k, segment, segments);  // blocks of 32
    int count = 2 * segment_begin(k, segment + 1, segments) - begin;

    const u16* weight[R];
    bool weight_valid[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = row0 + 8 * r + g;
        weight_valid[r] = row < n;
        weight[r] = w + (u64)(row < n ? row : 0) * k;
    }
    const u16* token[TOKEN_TILES];
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++) token[i] = x + (u64)(8 * i + g < m ? 8 * i + g : 0) * k;
    u32 mine = shared_address(ring) + warp * STREAM_STAGES * SLOTS * 512;
    u32 copied = mine + (4 * g + (t ^ g / 2)) * 16, read = mine + (4 * (lane % 8) + (lane / 8 ^ lane % 8 / 2)) * 16;
    auto slot = [](int stage, int i) { return ((stage % STREAM_STAGES) * SLOTS + i) * 512; };
    auto load_weights = [&](int stage) {
        int at = (begin + stage) * 32 + 8 * t;
        bool valid = stage < count && at < k;
#pragma unroll
        for (int r = 0; r < R; r++)
            copy_async(copied + slot(stage, r), weight[r] + (valid ? at : 0), valid && weight_valid[r]);
    };
    auto load_tokens = [&](int stage) {
        int at = (begin + stage) * 32 + 8 * t;
        bool valid = stage < count && at < k;
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++)
            copy_async_cached(copied + slot(stage, R + i), token[i] + (valid ? at : 0), valid && 8 * i + g < m);
    };

    for (int stage = 0; stage < STREAM_STAGES - 1; stage++) load_weights(stage);
    bool early = (u64)n * k >= LONG_PRODUCT;
    bool adds = output == ADD_F32 && segment == 0;
    float2 norm_weight[R] = {}, old[R][TOKEN_TILES] = {};
#pragma unroll
    for (int r = 0; r < R; r++) {
        int column = row0 + 8 * r + 2 * t;
        if (adds && next.weighed && column < n) norm_weight[r] = *(const float2*)(next.weight + column);
    }
    if (early) allow_consumer();
    wait_for_producer();
    if (!early) allow_consumer();
    for (int stage = 0; stage < STREAM_STAGES - 1; stage++) {
        load_tokens(stage);
        copy_commit();
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        int column = row0 + 8 * r + 2 * t;
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++) {
            if (adds && column < n && g + 8 * i < m)
                old[r][i] = __ldcg((const float2*)((const float*)out + (u64)(g + 8 * i) * n + column));
        }
    }
    if (squares) {
        for (int row = warp; row < m; row += STREAM_WARPS) {
            const float* groups = squares + (u64)row * (k / 8);
            float scale = rms_scale([groups](int i) { return __ldcg(groups + i); }, k, eps);
            if (lane == 0) scales[row] = scale;
        }
    }
    Fragment acc[R] = {};
    for (int stage = 0; stage < count; stage++) {
        copy_wait<STREAM_STAGES - 2>();
        __syncwarp();
        uint4 a = load_matrices(read + slot(stage, R));
        uint4 a8 = TOKEN_TILES > 1 ? load_matrices(read + slot(stage, R + TOKEN_TILES - 1)) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int r = 0; r < R; r++) {
            uint4 b = load_matrices(read + slot(stage, r));
            mma(acc[r], a.x, a8.x, a.y, a8.y, b.x, b.y);
            mma(acc[r], a.z, a8.z, a.w, a8.w, b.z, b.w);
        }
        load_weights(stage + STREAM_STAGES - 1);
        load_tokens(stage + STREAM_STAGES - 1);
        copy_commit();
    }

    copy_wait<0>();
    __syncthreads();
    if (segments > 1) {
        float4* parts = (float4*)ring;
#pragma unroll
        for (int r = 0; r < R; r++)
            parts[(warp * R + r) * 32 + lane] = make_float4(acc[r].c[0], acc[r].c[1], acc[r].c[2], acc[r].c[3]);
        __syncthreads();
        if (segment != 0) return;
#pragma unroll
        for (int r = 0; r < R; r++) {
            for (int s = 1; s < segments; s++) {
                float4 part = parts[((warp + s) * R + r) * 32 + lane];
                add(acc[r], Fragment{{part.x, part.y, part.z, part.w}});
            }
        }
    }
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++) {
        int row = g + 8 * i;
        float scale = squares ? scales[row] : 1.0f;
#pragma unroll
        for (int r = 0; r < R; r++) {
            int column = row0 + 8 * r + 2 * t;
            bool valid = row < m && column < n;
            float v0 = acc[r].c[2 * i] * scale, v1 = acc[r].c[2 * i + 1] * scale;
            if (output != ADD_F32) {
                if (valid) store_pair(output, out, row, column, n, v0, v1);
                continue;
            }
            v0 = add_flushed(old[r][i].x, v0);
            v1 = add_flushed(old[r][i].y, v1);
            u64 at = (u64)row * n + column;
            if (valid) *(float2*)((float*)out + at) = make_float2(v0, v1);
            if (!next.weighed) continue;
            float sum = square_pair(v0, v1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            if (!valid) continue;
            *(u32*)(next.weighed + at) = pack_bf16(v0 * norm_weight[r].x, v1 * norm_weight[r].y);
            if (t == 0) next.squares[at / 8] = sum;
        }
    }
}

#define STREAM(R, TILES)                                                                                     \
    extern "C" __global__ void __launch_bounds__(STREAM_WARPS * 32) gemm_stream_##R##_##TILES(              \
        void* out, const u16* x, const u16* w, int m, int n, int k, int segments, int output,                \
        const float* next_weight, u16* weighed, float* next_squares, const float* squares, float eps) {      \
        stream<R, TILES>(out, x, w, m, n, k, segments, output, NextNorm{next_weight, weighed, next_squares}, \
                         squares, eps);                                                                      \
    }
STREAM(1, 1)
STREAM(2, 1)
STREAM(4, 1)
STREAM(1, 2)
STREAM(2, 2)
STREAM(4, 2)

// ---- wide: many rows of x --------------------------------------------------------------------------------------------
//
// A block makes 128 columns by TOKENS rows, transposed: w is the left operand of the tensor cores, so that few rows of
// x waste none of them. One warp has tiles of 64 elements copied into a ring, two groups of four warps multiply them,
// 64 columns each. Results pass through shared memory, where they are turned. grid: column tiles times row tiles, in
// groups of ROW_GROUP row tiles so that blocks at work together share what the L2 cache holds. With SPLIT a cluster of
// SPLIT_SEGMENTS blocks makes a tile, one segment each; each adds up all parts of its share of the rows. `scales` [m],
// if given, are what a norm has left to do. With SHARED two blocks share a multiprocessor and keep its tensor cores
// busy in turn; each frees a stage at once, since its ring is short. A block of its own multiplies two at a time.

#define WIDE_COLUMNS 128
#define WIDE_WARPS 8  // that multiply
#define WIDE_THREADS (32 * WIDE_WARPS + 32)
#define ROW_GROUP 16
#define SPLIT_SEGMENTS 4

enum Segments { WHOLE, FOLDED, SPLIT };

// Four neighbouring columns of one row, at element `at` of the product; `old` is what ADD_F32 adds them to.
DEVICE void store_four(int output, void* out, u64 at, float4 v, float4 old) {
    if (output == STORE_BF16) {
        *(uint2*)((u16*)out + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    } else if (output == STORE_F32) {
        *(float4*)((float*)out + at) = v;
    } else if (output == ADD_F32) {
        *(float4*)((float*)out + at) = make_float4(add_flushed(old.x, v.x), add_flushed(old.y, v.y),
                                                    add_flushed(old.z, v.z), add_flushed(old.w, v.w));
    } else {
        *(u32*)((u16*)out + at / 2) = pack_bf16(silu_mul(v.x, v.y), silu_mul(v.z, v.w));
    }
}

DEVICE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

template <int TOKENS, int STAGES, Segments HOW, bool SHARED>
DEVICE void wide(const TensorMap& w, const TensorMap& x, void* out, int m, int n, int k, int segments, int output,
                 const float* scales) {
    extern __shared__ u8 memory[];
    __shared__ u64 full[STAGES], empty[STAGES];
    constexpr u32 W_BYTES = WIDE_COLUMNS * 128, STAGE_BYTES = W_BYTES + TOKENS * 128;
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
        u32 offset = warp / 4 * 64 * 128;
        int slot = 0;
        u32 phase = 0;
        for (int segment = first; segment < last; segment++) {
            int count = segment_begin(k, segment + 1, segments) - segment_begin(k, segment, segments);
            if (count == 0) {
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) acc[i] = 0.0f;
            }
            int previous = -1;
            for (int block = 0; block < count; block++) {
                barrier_wait(full + slot, phase);
                u32 stage = ring + slot * STAGE_BYTES;
                matrices_fence();
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    u64 a = matrix_descriptor(stage + offset + step * 32);
                    u64 b = matrix_descriptor(stage + W_BYTES + step * 32);
                    multiply(acc, a, b, block > 0 || step > 0);
                }
                matrices_commit();
                if (!SHARED) {
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
        constexpr int COUNT = SHARE / WIDE_WARPS, MOST = SHARED ? 4 : 8, BATCH = COUNT < MOST ? COUNT : MOST;
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

#define WIDE(NAME, TOKENS, STAGES, HOW, BLOCKS, CLUSTER)                                                        \
    extern "C" __global__ void CLUSTER __launch_bounds__(WIDE_THREADS, BLOCKS) gemm_wide_##NAME(                \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, void* out, int m, int n,      \
        int k, int segments, int output, const float* scales) {                                                 \
        wide<TOKENS, STAGES, HOW, (BLOCKS > 1)>(w, x, out, m, n, k, segments, output, scales);                                \
    }
WIDE(32, 32, 5, WHOLE, 2, )
WIDE(64, 64, 4, WHOLE, 2, )
WIDE(64_fold, 64, 4, FOLDED, 2, )
WIDE(128_fold, 128, 6, FOLDED, 1, )
WIDE(32_split, 32, 5, SPLIT, 2, __cluster_dims__(SPLIT_SEGMENTS, 1, 1))
WIDE(64_split, 64, 4, SPLIT, 2, __cluster_dims__(SPLIT_SEGMENTS, 1, 1))
WIDE(128_split, 128, 3, SPLIT, 2, __cluster_dims__(SPLIT_SEGMENTS, 1, 1))
