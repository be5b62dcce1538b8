// Products of few rows of x: see gemm.cuh.
// w is bf16 [n, k], or fp8 as in fp8.cu, which stands for the bf16 that its codes and scales give: the same bits come out.
struct Bf16Weights {
    static constexpr bool CODES = false;
    static constexpr int RUN = 8;  // elements of 16 bytes
    const u16* data;
    __device__ __forceinline__ Bf16Weights(const void* data, const u32*) : data((const u16*)data) {}
    __device__ __forceinline__ const void* at(int row, int column, int k) const { return data + (u64)row * k + column; }
};

struct Fp8Weights {
    static constexpr bool CODES = true;
    static constexpr int RUN = 16;
    const u8* data;
    const u32* scales;
    __device__ __forceinline__ Fp8Weights(const void* data, const u32* scales)
        : data((const u8*)data), scales(scales) {}
    __device__ __forceinline__ const void* at(int row, int column, int k) const { return data + (u64)row * k + column; }
    // Those of the even and the odd rows of 8, in a block of 128 columns.
    __device__ __forceinline__ const u32* scale_pair(int rows, int block, int k) const {
        return scales + ((u64)rows * ((k + 127) / 128) + block) * 2;
    }
    // Those of rows `row` and row + 8 in a block of 64 columns.
    __device__ __forceinline__ void load_scales(u32 (&words)[2], int row, int block, int n, int k) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool valid = row + 8 * i < n && 64 * block < k;
            words[i] = valid ? __ldg(scale_pair(row / 8 + i, block / 2, k) + row % 2) : 0;
        }
    }
};

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
// barrier of the block. The ring fills with weights before the producer of x has ended. A slot holds 8 rows by four
// chunks of 16 bytes, swizzled so that one chunk of 8 rows meets 32 banks: 32 elements of bf16. A slot of fp8 holds 64 and
// meets two of x; a warp's scales lie behind the rings.

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

// Bytes of a warp's scales: blocks of 128 columns that a segment of k may touch, 8 * R rows, even and odd ones.
DEVICE int stream_scale_blocks(int k, int segments) { return ((k + 63) / 64 / segments + 1) / 2 + 2; }

// An 8x8 tile of which lane 4g + t holds elements 2t, 2t + 1 of row g, turned.
DEVICE void turn(float& v0, float& v1) {
    int lane = threadIdx.x % 32, source = lane % 4 * 8 + lane / 8;
    bool odd = lane / 4 % 2;
    float a = __shfl_sync(FULL_WARP, v0, source), b = __shfl_sync(FULL_WARP, v1, source);
    float c = __shfl_sync(FULL_WARP, v0, source + 4), d = __shfl_sync(FULL_WARP, v1, source + 4);
    v0 = odd ? b : a;
    v1 = odd ? d : c;
}

// `squares` [m, k / 8], if given: rows are scaled by what a norm left, with `eps`. w is the left operand of the tensor
// cores, 16 rows at a time, so that 8 rows of x waste none of them.
template <int R, int TOKEN_TILES, int STREAM_STAGES, typename W>
DEVICE void stream(void* out, const u16* x, W w, int m, int n, int k, int segments, int output, NextNorm next,
                   const float* squares, float eps) {
    extern __shared__ uint4 ring[];
    __shared__ float scales[STREAM_ROWS];
    constexpr int PARTS = W::RUN / 8;  // slots of x that meet one of w
    constexpr int SLOTS = R + TOKEN_TILES * PARTS, STAGE = 32 * PARTS, PAIRS = (R + 1) / 2;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int g = lane / 4, t = lane % 4;
    int segment = warp % segments;
    int row0 = (blockIdx.x * (STREAM_WARPS / segments) + warp / segments) * 8 * R;
    int begin = 64 / STAGE * segment_begin(k, segment, segments);  // stages
    int count = 64 / STAGE * segment_begin(k, segment + 1, segments) - begin;

    // Up to which stage this lane's 16 bytes at `offset` elements of a stage are there.
    auto limit = [&](bool valid, int offset) {
        int left = (k - begin * STAGE - offset + STAGE - 1) / STAGE;
        return valid && left > 0 ? (left < count ? left : count) : 0;
    };
    const u8* weight[R];
    int weight_limit[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        int row = row0 + 8 * r + g;
        weight[r] = (const u8*)w.at(row < n ? row : 0, begin * STAGE + W::RUN * t, k);
        weight_limit[r] = limit(row < n, W::RUN * t);
    }
    const u16* token[TOKEN_TILES];
    int token_limit[TOKEN_TILES][PARTS];
#pragma unroll
    for (int i = 0; i < TOKEN_TILES; i++) {
        bool valid = 8 * i + g < m;
        token[i] = x + (u64)(valid ? 8 * i + g : 0) * k + begin * STAGE + 8 * t;
#pragma unroll
        for (int part = 0; part < PARTS; part++) token_limit[i][part] = limit(valid, 32 * part + 8 * t);
    }
    u32 mine = shared_address(ring) + warp * STREAM_STAGES * SLOTS * 512;
    u32 copied = mine + (4 * g + (t ^ g / 2)) * 16;
    auto slot = [](int stage, int i) { return ((stage % STREAM_STAGES) * SLOTS + i) * 512; };
    // Stage `stage` goes to the place of stage `place`, which it equals but for a multiple of the ring's length.
    auto load_weights = [&](int stage, int place) {
#pragma unroll
        for (int r = 0; r < R; r++)
            copy_async(copied + slot(place, r), weight[r] + stage * 64, stage < weight_limit[r]);
    };
    auto load_tokens = [&](int stage, int place) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++)
                copy_async_cached(copied + slot(place, R + part * TOKEN_TILES + i), token[i] + stage * STAGE + 32 * part,
                                  stage < token_limit[i][part]);
    };

#pragma unroll
    for (int stage = 0; stage < STREAM_STAGES - 1; stage++) load_weights(stage, stage);
    // codes: [block of 128 columns][r][even and odd rows] of this warp
    int block0 = begin * STAGE / 128, blocks = stream_scale_blocks(k, segments);
    u32 code_scales = shared_address(ring) + STREAM_WARPS * STREAM_STAGES * SLOTS * 512 + warp * blocks * R * 16;
    if constexpr (W::CODES) {
        for (int i = lane; i < 2 * R * blocks; i += 32) {
            int r = i / 2 % R, block = block0 + i / 2 / R;
            bool valid = row0 + 8 * r < n && block * 128 < k;
            store_shared(code_scales + i * 8, CodeScale(valid ? __ldg(w.scale_pair(row0 / 8 + r, block, k) + i % 2) : 0));
        }
        __syncwarp();
    }
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
#pragma unroll
    for (int stage = 0; stage < STREAM_STAGES - 1; stage++) {
        load_tokens(stage, stage);
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

    // x: chunks 0 .. 3 of 8 rows. w: chunks 2h, 2h + 1 of two slots, or of the only one and of nothing.
    u32 token_read = mine + (4 * (lane % 8) + (lane / 8 ^ lane % 8 / 2)) * 16;
    u32 weight_read = R == 1 ? token_read
                             : mine + lane / 8 % 2 * 512 + (4 * (lane % 8) + (lane / 16 ^ lane % 8 / 2)) * 16;
    u32 scale_read = code_scales + g % 2 * 8;
    Fragment acc[PAIRS][TOKEN_TILES] = {};
    auto multiply_stage = [&](int stage, int place) {
        uint4 b[PARTS][TOKEN_TILES];
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++)
                b[part][i] = load_matrices(token_read + slot(place, R + part * TOKEN_TILES + i));
        u32 block_scales = scale_read + ((begin + stage) / 2 - block0) * R * 16;
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            uint4 chunks[2];  // of both slots: low 2h, high 2h, low 2h + 1, high 2h + 1
            if constexpr (R == 1) {
                uint4 all = load_matrices(weight_read + slot(place, 0));
                chunks[0] = make_uint4(all.x, 0, all.y, 0);
                chunks[1] = make_uint4(all.z, 0, all.w, 0);
            } else {
                chunks[0] = load_matrices(weight_read + slot(place, 2 * p));
                chunks[1] = load_matrices((weight_read ^ 32) + slot(place, 2 * p));
            }
            if constexpr (W::CODES) {
                CodeScale low = load_code_scale(block_scales + 2 * p * 16);
                CodeScale high = R == 1 ? low : load_code_scale(block_scales + (2 * p + 1) * 16);
#pragma unroll
                for (int step = 0; step < 4; step++) {
                    const uint4& v = chunks[step / 2];
                    u32 a[4] = {};
                    unpack_codes(step % 2 ? v.z : v.x, low, a[0], a[2]);
                    if (R > 1) unpack_codes(step % 2 ? v.w : v.y, high, a[1], a[3]);
#pragma unroll
                    for (int i = 0; i < TOKEN_TILES; i++) {
                        const uint4& to = b[step / 2 * (PARTS - 1)][i];
                        mma(acc[p][i], a[0], a[1], a[2], a[3], step % 2 ? to.z : to.x, step % 2 ? to.w : to.y);
                    }
                }
            } else {
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    const uint4& v = chunks[step];
#pragma unroll
                    for (int i = 0; i < TOKEN_TILES; i++)
                        mma(acc[p][i], v.x, v.y, v.z, v.w, step ? b[0][i].z : b[0][i].x, step ? b[0][i].w : b[0][i].y);
                }
            }
        }
    };
    for (int first = 0; first < count; first += STREAM_STAGES) {
#pragma unroll
        for (int place = 0; place < STREAM_STAGES; place++) {
            int stage = first + place;
            if (stage >= count) break;
            copy_wait<STREAM_STAGES - 2>();
            __syncwarp();
            multiply_stage(stage, place);
            load_weights(stage + STREAM_STAGES - 1, place + STREAM_STAGES - 1);
            load_tokens(stage + STREAM_STAGES - 1, place + STREAM_STAGES - 1);
            copy_commit();
        }
    }

    copy_wait<0>();
    __syncthreads();
    if (segments > 1) {
        constexpr int PER_WARP = PAIRS * TOKEN_TILES * 32;
        float4* parts = (float4*)ring + lane;
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++) {
                const float* c = acc[p][i].c;
                parts[warp * PER_WARP + (p * TOKEN_TILES + i) * 32] = make_float4(c[0], c[1], c[2], c[3]);
            }
        __syncthreads();
        if (segment != 0) return;
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
#pragma unroll
            for (int i = 0; i < TOKEN_TILES; i++)
                for (int s = 1; s < segments; s++) {
                    float4 part = parts[(warp + s) * PER_WARP + (p * TOKEN_TILES + i) * 32];
                    add(acc[p][i], Fragment{{part.x, part.y, part.z, part.w}});
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
            float v0 = acc[r / 2][i].c[r % 2 * 2], v1 = acc[r / 2][i].c[r % 2 * 2 + 1];
            turn(v0, v1);
            v0 *= scale;
            v1 *= scale;
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

#define STREAM_OF(NAME, R, TILES, STAGES, WEIGHTS)                                                                  \
    extern "C" __global__ void __launch_bounds__(STREAM_WARPS * 32) gemm_stream_##NAME(                             \
        void* out, const u16* x, const void* w, const u32* w_scales, int m, int n, int k, int segments, int output,  \
        const float* next_weight, u16* weighed, float* next_squares, const float* squares, float eps) {              \
        stream<R, TILES, STAGES>(out, x, WEIGHTS(w, w_scales), m, n, k, segments, output,                            \
                                 NextNorm{next_weight, weighed, next_squares}, squares, eps);                        \
    }
#define STREAM(R, TILES, STAGES)                            \
    STREAM_OF(R##_##TILES, R, TILES, STAGES, Bf16Weights)    \
    STREAM_OF(R##_##TILES##_fp8, R, TILES, 5, Fp8Weights)
STREAM(1, 1, 24)
STREAM(2, 1, 16)
STREAM_OF(2_1_short, 2, 1, 12, Bf16Weights)
STREAM(1, 2, 16)
STREAM(2, 2, 8)
STREAM(4, 2, 8)

// ---- wide: many rows of x --------------------------------------------------------------------------------------------
//
// A block makes 128 columns by TOKENS rows, transposed: w is the left operand of the tensor cores, so that few rows of
// x waste none of them. One warp has tiles of 64 elements copied into a ring, two groups of four warps multiply them,
// 64 columns each. Results pass through shared memory, where they are turned. grid: column tiles times row tiles, in
// groups of ROW_GROUP row tiles so that blocks at work together share what the L2 cache holds. With SPLIT a cluster of
// SPLIT_SEGMENTS blocks makes a tile, one segment each; each adds up all parts of its share of the rows. `scales` [m],
// if given, are what a norm has left to do. With SHARED two blocks share a multiprocessor and keep its tensor cores
// busy in turn; each frees a stage at once, since its ring is short. A block of its own multiplies two at a time. Codes
// pass through registers on their way to the tensor cores; one group unpacks while the other multiplies.

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
WIDE(32_split, 32, 5, SPLIT, 2, Bf16Weights, CLUSTER_SPLIT)
WIDE(64_split, 64, 4, SPLIT, 2, Bf16Weights, CLUSTER_SPLIT)
WIDE(128_split, 128, 3, SPLIT, 2, Bf16Weights, CLUSTER_SPLIT)
WIDE(32_fp8, 32, 8, WHOLE, 2, Fp8Weights, )
WIDE(64_fp8, 64, 6, WHOLE, 2, Fp8Weights, )
WIDE(64_fold_fp8, 64, 10, FOLDED, 1, Fp8Weights, )
WIDE(128_fold_fp8, 128, 8, FOLDED, 1, Fp8Weights, )
WIDE(32_split_fp8, 32, 8, SPLIT, 2, Fp8Weights, CLUSTER_SPLIT)
WIDE(64_split_fp8, 64, 6, SPLIT, 2, Fp8Weights, CLUSTER_SPLIT)
WIDE(128_split_fp8, 128, 8, SPLIT, 1, Fp8Weights, CLUSTER_SPLIT)
