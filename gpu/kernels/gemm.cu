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
// barrier of the block. The ring fills with weights before the producer of x has ended. A slot holds 8 rows by four
// chunks of 16 bytes, swizzled so that one chunk of 8 rows meets 32 banks: 32 elements of bf16. A slot of fp8 holds 64 and
// meets two of x; a warp's scales lie behind the rings.

// Elements of w from which on successors may begin at once and fill their rings; earlier than that they only take the
// places that this kernel's blocks would have been dealt.
#define LONG_PRODUCT (4u << 20)

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
            v0 = __fadd_rn(old[r][i].x, v0);
            v1 = __fadd_rn(old[r][i].y, v1);
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
