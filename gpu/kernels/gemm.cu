// out[m, n] = sum over k of x[m, k] * w[n, k]: bf16 in, f32 accumulation, one order of additions for every m.
//
// Canonical order, a function of (n, k) alone, so that a row's bits depend on no other row: k falls into blocks of
// 32, the blocks into `segments` equal runs. In a run each block is two tensor-core steps of 16 (the first takes
// elements 8t .. 8t+3 of the block for t = 0..3, the second 8t+4 .. 8t+7), in ascending order from zero; the runs
// are added in ascending order. Two kernels follow it: `stream` for up to 16 rows of x, `tile` for more.
//
// Needs k and n to be multiples of 8. Rows of w and x beyond n, m and elements beyond k count as zero.

enum Output {
    STORE_BF16 = 0,  // out: bf16 [m, n]
    STORE_F32 = 1,   // out: f32 [m, n]
    ADD_F32 = 2,     // out: f32 [m, n], the product is added to it
    GATE_BF16 = 3,   // out: bf16 [m, n / 2]: silu(row 2i) * row 2i+1
};

// Two neighbouring columns of one row, n even.
DEVICE void store_pair(int output, void* out, int row, int column, int n, float v0, float v1) {
    u64 at = (u64)row * n + column;
    if (output == STORE_BF16) {
        *(u32*)((u16*)out + at) = pack_bf16(v0, v1);
    } else if (output == STORE_F32) {
        *(float2*)((float*)out + at) = make_float2(v0, v1);
    } else if (output == ADD_F32) {
        float2* target = (float2*)((float*)out + at);
        float2 old = *target;
        *target = make_float2(old.x + v0, old.y + v1);
    } else {
        ((u16*)out)[at / 2] = to_bf16(v0 / (1.0f + __expf(-v0)) * v1);
    }
}

DEVICE void add(Fragment& total, const Fragment& part) {
#pragma unroll
    for (int i = 0; i < 4; i++) total.c[i] += part.c[i];
}

// First block of 32 of a segment.
DEVICE int segment_begin(int blocks, int segment, int segments) { return blocks * segment / segments; }

// ---- stream: few rows of x, bound by reading w --------------------------------------------------------------------
//
// A warp owns 8 * R rows of w over one segment. Each lane copies the very 16 bytes that it feeds to the tensor
// cores into its own slots of a ring in shared memory: a deep queue of loads without any barrier. The ring fills
// with weights before the producer of x has ended.

#define STREAM_WARPS 4

template <int R, int TOKEN_TILES>
DEVICE void stream(void* out, const u16* x, const u16* w, int m, int n, int k, int segments, int output) {
    extern __shared__ uint4 ring[];
    constexpr int SLOTS = R + TOKEN_TILES;
    constexpr int STREAM_STAGES = R == 1 ? 16 : 8;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int g = lane / 4, t = lane % 4;
    int segment = warp % segments;
    int row0 = (blockIdx.x * (STREAM_WARPS / segments) + warp / segments) * 8 * R;
    int blocks = (k + 31) / 32;
    int begin = segment_begin(blocks, segment, segments);
    int count = segment_begin(blocks, segment + 1, segments) - begin;

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
    u32 mine = shared_address(ring) + (warp * STREAM_STAGES * SLOTS * 32 + lane) * 16;
    auto slot = [&](int stage, int i) { return mine + ((stage % STREAM_STAGES) * SLOTS + i) * 512; };
    auto load_weights = [&](int stage) {
        int at = (begin + stage) * 32 + 8 * t;
        bool valid = stage < count && at < k;
#pragma unroll
        for (int r = 0; r < R; r++) copy_async(slot(stage, r), weight[r] + (valid ? at : 0), valid && weight_valid[r]);
    };
    auto load_tokens = [&](int stage) {
        int at = (begin + stage) * 32 + 8 * t;
        bool valid = stage < count && at < k;
#pragma unroll
        for (int i = 0; i < TOKEN_TILES; i++)
            copy_async_cached(slot(stage, R + i), token[i] + (valid ? at : 0), valid && 8 * i + g < m);
    };

    for (int stage = 0; stage < STREAM_STAGES - 1; stage++) load_weights(stage);
    wait_for_producer();
    allow_consumer();
    for (int stage = 0; stage < STREAM_STAGES - 1; stage++) {
        load_tokens(stage);
        copy_commit();
    }
    Fragment acc[R] = {};
    for (int stage = 0; stage < count; stage++) {
        copy_wait<STREAM_STAGES - 2>();
        uint4 a = load_shared(slot(stage, R));
        uint4 a8 = TOKEN_TILES > 1 ? load_shared(slot(stage, R + TOKEN_TILES - 1)) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int r = 0; r < R; r++) {
            uint4 b = load_shared(slot(stage, r));
            mma(acc[r], a.x, a8.x, a.y, a8.y, b.x, b.y);
            mma(acc[r], a.z, a8.z, a.w, a8.w, b.z, b.w);
        }
        load_weights(stage + STREAM_STAGES - 1);
        load_tokens(stage + STREAM_STAGES - 1);
        copy_commit();
    }

    if (segments > 1) {
        copy_wait<0>();
        __syncthreads();
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
    for (int r = 0; r < R; r++) {
        int column = row0 + 8 * r + 2 * t;
        if (column >= n) continue;
        if (g < m) store_pair(output, out, g, column, n, acc[r].c[0], acc[r].c[1]);
        if (TOKEN_TILES > 1 && g + 8 < m) store_pair(output, out, g + 8, column, n, acc[r].c[2], acc[r].c[3]);
    }
}

#define STREAM(R, TILES)                                                                                     \
    extern "C" __global__ void __launch_bounds__(STREAM_WARPS * 32) gemm_stream_##R##_##TILES(              \
        void* out, const u16* x, const u16* w, int m, int n, int k, int segments, int output) {              \
        stream<R, TILES>(out, x, w, m, n, k, segments, output);                                              \
    }
STREAM(1, 1)
STREAM(2, 1)
STREAM(4, 1)
STREAM(1, 2)
STREAM(2, 2)
STREAM(4, 2)

// ---- tile: many rows of x ------------------------------------------------------------------------------------------
//
// A block makes 128 columns by 16 * MT * WARPS_M rows; a warp 32 columns by 16 * MT rows. Shared memory holds
// 8-row by 32-element blocks of 512 bytes in lane order, so that one 16-byte read a lane is one operand.
// grid: (row tiles, column tiles, 1). With SPLIT a cluster of SEGMENTS blocks along z makes a tile, one segment each,
// and adds the parts up through its shared memory: block z finishes every warp's fragments of column z.

#define TILE_COLUMNS 128
#define TILE_STAGES 4
#define SPLIT_SEGMENTS 4

enum Segments { ONE, FOLDED, SPLIT };

// A place in the list of 64-element stages over a range of segments.
struct Cursor {
    int blocks, segments, segment, last_segment, block, end;
    __device__ __forceinline__ Cursor(int blocks, int segments, int first, int last)
        : blocks(blocks), segments(segments), segment(first), last_segment(last) {
        enter();
    }
    __device__ __forceinline__ void enter() {
        block = segment_begin(blocks, segment, segments);
        end = segment_begin(blocks, segment + 1, segments);
    }
    __device__ __forceinline__ bool done() const { return segment >= last_segment; }
    __device__ __forceinline__ bool ends_segment() const { return block + 2 >= end; }
    __device__ __forceinline__ void advance() {
        block += 2;
        if (block >= end) {
            segment++;
            enter();
        }
    }
};

template <int WARPS_M, int MT, Segments HOW>
DEVICE void tile(void* out, const u16* x, const u16* w, int m, int n, int k, int segments, int output) {
    extern __shared__ uint4 ring[];
    constexpr bool FOLD = HOW == FOLDED;
    constexpr int WARPS = 4 * WARPS_M;
    constexpr int ROWS = 16 * MT * WARPS_M;
    constexpr int W_BLOCKS = TILE_COLUMNS / 8 * 2, X_BLOCKS = ROWS / 8 * 2;
    constexpr int STAGE_BYTES = (W_BLOCKS + X_BLOCKS) * 512;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int g = lane / 4, t = lane % 4;
    int warp_n = warp % 4, warp_m = warp / 4;
    int row0 = blockIdx.x * ROWS, column0 = blockIdx.y * TILE_COLUMNS;
    int blocks = (k + 31) / 32;
    int first = HOW == SPLIT ? blockIdx.z : 0, last = HOW == SPLIT ? blockIdx.z + 1 : segments;
    u32 base = shared_address(ring) + lane * 16;

    // A lane always copies the same rows, and its warp always the same half of a stage.
    constexpr int W_COPIES = W_BLOCKS / WARPS, X_COPIES = X_BLOCKS / WARPS;
    int half = warp % 2;
    const u16* w_rows[W_COPIES];
    const u16* x_rows[X_COPIES];
    u32 w_valid = 0, x_valid = 0;
#pragma unroll
    for (int i = 0; i < W_COPIES; i++) {
        int row = column0 + (warp + i * WARPS) / 2 * 8 + g;
        w_valid |= (row < n) << i;
        w_rows[i] = w + (u64)(row < n ? row : 0) * k + 8 * t;
    }
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) {
        int row = row0 + (warp + i * WARPS) / 2 * 8 + g;
        x_valid |= (row < m) << i;
        x_rows[i] = x + (u64)(row < m ? row : 0) * k + 8 * t;
    }
    auto load_weights = [&](int slot, const Cursor& at) {
        int element = (at.block + half) * 32;
        bool inside = at.block + half < at.end && element + 8 * t < k;
        u32 target = base + slot * STAGE_BYTES + warp * 512;
#pragma unroll
        for (int i = 0; i < W_COPIES; i++) {
            bool valid = inside && (w_valid >> i & 1);
            copy_async(target + i * WARPS * 512, valid ? w_rows[i] + element : w, valid);
        }
    };
    auto load_tokens = [&](int slot, const Cursor& at) {
        int element = (at.block + half) * 32;
        bool inside = at.block + half < at.end && element + 8 * t < k;
        u32 target = base + slot * STAGE_BYTES + (W_BLOCKS + warp) * 512;
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            bool valid = inside && (x_valid >> i & 1);
            copy_async(target + i * WARPS * 512, valid ? x_rows[i] + element : x, valid);
        }
    };

    Cursor ahead(blocks, segments, first, last);
    {
        Cursor weights = ahead;
        for (int s = 0; s < TILE_STAGES - 1 && !weights.done(); s++, weights.advance()) load_weights(s, weights);
    }
    wait_for_producer();
    allow_consumer();
    for (int s = 0; s < TILE_STAGES - 1; s++) {
        if (!ahead.done()) {
            load_tokens(s, ahead);
            ahead.advance();
        }
        copy_commit();
    }

    Fragment acc[4][MT] = {};
    Fragment total[FOLD ? 4 : 1][FOLD ? MT : 1] = {};
    int slot = 0;
    for (Cursor at(blocks, segments, first, last); !at.done(); at.advance()) {
        copy_wait<TILE_STAGES - 2>();
        __syncthreads();
        if (!ahead.done()) {
            int free = (slot + TILE_STAGES - 1) % TILE_STAGES;
            load_weights(free, ahead);
            load_tokens(free, ahead);
            ahead.advance();
        }
        copy_commit();
        u32 stage = base + slot * STAGE_BYTES;
#pragma unroll
        for (int part = 0; part < 2; part++) {
            if (at.block + part >= at.end) continue;
            uint4 b[4], a[MT][2];
#pragma unroll
            for (int i = 0; i < 4; i++) b[i] = load_shared(stage + ((warp_n * 4 + i) * 2 + part) * 512);
#pragma unroll
            for (int j = 0; j < MT; j++) {
#pragma unroll
                for (int h = 0; h < 2; h++)
                    a[j][h] = load_shared(stage + (W_BLOCKS + ((warp_m * MT + j) * 2 + h) * 2 + part) * 512);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < MT; j++) mma(acc[i][j], a[j][0].x, a[j][1].x, a[j][0].y, a[j][1].y, b[i].x, b[i].y);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < MT; j++) mma(acc[i][j], a[j][0].z, a[j][1].z, a[j][0].w, a[j][1].w, b[i].z, b[i].w);
            }
        }
        if (FOLD && at.ends_segment()) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < MT; j++) {
                    if (at.segment == 0) {
                        total[FOLD ? i : 0][FOLD ? j : 0] = acc[i][j];
                    } else {
                        add(total[FOLD ? i : 0][FOLD ? j : 0], acc[i][j]);
                    }
                    acc[i][j] = Fragment{};
                }
            }
        }
        slot = (slot + 1) % TILE_STAGES;
    }
    if (FOLD) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < MT; j++) acc[i][j] = total[FOLD ? i : 0][FOLD ? j : 0];
        }
    }

    auto finish = [&](int i, int j, const float* c) {
        int column = column0 + warp_n * 32 + i * 8 + 2 * t;
        int row = row0 + (warp_m * MT + j) * 16 + g;
        if (column >= n) return;
        if (row < m) store_pair(output, out, row, column, n, c[0], c[1]);
        if (row + 8 < m) store_pair(output, out, row + 8, column, n, c[2], c[3]);
    };
    if constexpr (HOW == SPLIT) {
        copy_wait<0>();
        __syncthreads();
        float4* mine = (float4*)ring + threadIdx.x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < MT; j++) {
                const float* c = acc[i][j].c;
                mine[(i * MT + j) * WARPS * 32] = make_float4(c[0], c[1], c[2], c[3]);
            }
        }
        cluster_sync();
        int column = blockIdx.z;
        float4 parts[MT][SPLIT_SEGMENTS];
#pragma unroll
        for (int j = 0; j < MT; j++) {
#pragma unroll
            for (int s = 0; s < SPLIT_SEGMENTS; s++) parts[j][s] = read_peer(mine + (column * MT + j) * WARPS * 32, s);
        }
        cluster_sync();
#pragma unroll
        for (int j = 0; j < MT; j++) {
            float4 v = parts[j][0];
            Fragment sum{{v.x, v.y, v.z, v.w}};
#pragma unroll
            for (int s = 1; s < SPLIT_SEGMENTS; s++) {
                v = parts[j][s];
                add(sum, Fragment{{v.x, v.y, v.z, v.w}});
            }
            finish(column, j, sum.c);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < MT; j++) finish(i, j, acc[i][j].c);
        }
    }
}

#define TILE(NAME, WARPS_M, MT, HOW, CLUSTER)                                                            \
    extern "C" __global__ void CLUSTER __launch_bounds__(128 * WARPS_M) gemm_tile_##NAME(                \
        void* out, const u16* x, const u16* w, int m, int n, int k, int segments, int output) {          \
        tile<WARPS_M, MT, HOW>(out, x, w, m, n, k, segments, output);                                    \
    }
TILE(32, 2, 1, ONE, )
TILE(64, 2, 2, ONE, )
TILE(128_fold, 2, 4, FOLDED, )
TILE(32_split, 2, 1, SPLIT, __cluster_dims__(1, 1, SPLIT_SEGMENTS))
TILE(64_split, 2, 2, SPLIT, __cluster_dims__(1, 1, SPLIT_SEGMENTS))
TILE(128_split, 2, 4, SPLIT, __cluster_dims__(1, 1, SPLIT_SEGMENTS))
