// Products of hundreds of rows of fp8 codes by fp8 weights, on the tensor cores for fp8: see gemm_many.cuh. Rows of x are
// quantised, each 128 of their elements by a scale of their own; the sum of 128 products is multiplied by the scales of both
// sides and added in f32. k is a multiple of 128, n of 16.
//
// Weights come as rows of plain codes; of 64 rows one scale is for the even and one for the odd rows, [k / 128, n / 64, 2].
#define CODES_GROUP 64

// Four neighbouring codes.
DEVICE u32 take_codes(u32 low, u32 high) { return __byte_perm(low, high, 0x6420); }

// Packed weights (fp8.cuh) as plain codes, and their scales.
extern "C" __global__ void __launch_bounds__(256)
    codes_of_weights(uint4* codes, float* scales, const uint4* packed, u32* packed_scales, u64 runs, int n, int k) {
    constexpr float NARROW = 7.52316384526264e-37f;  // 2^-120
    allow_consumer();
    wait_for_producer();
    u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    int row = run / (k / 16), at = run % (k / 16);
    uint4 v = packed[run];
    u32 words[4] = {v.x, v.y, v.z, v.w}, low[4], high[4];
#pragma unroll
    for (int t = 0; t < 4; t++) plain_codes(words[t], low[t], high[t]);
    codes[run] = make_uint4(take_codes(low[0], low[1]), take_codes(low[2], low[3]), take_codes(high[0], high[1]),
                            take_codes(high[2], high[3]));
    if (at % 8 == 0 && row % CODES_GROUP < 2) {
        u32 scale = *scale_of(packed_scales, row, at / 8, k);
        int groups = (n + CODES_GROUP - 1) / CODES_GROUP;
        scales[((u64)(at / 8) * groups + row / CODES_GROUP) * 2 + row % 2] = (low_bf16(scale) + high_bf16(scale)) * NARROW;
    }
}

// Codes [m, k] of rows of x, and their scales [k / 128, m]: the largest of 128 elements becomes the largest code. Eight lanes
// take those.
extern "C" __global__ void __launch_bounds__(256)
    codes_of_rows(uint4* codes, float* scales, const uint4* x, u64 runs, int m, int k) {
    constexpr float LARGEST = 448.0f, LEAST = 1e-10f;
    allow_consumer();
    wait_for_producer();
    u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    bool valid = run < runs;
    float v[16];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 raw = valid ? x[2 * run + half] : make_uint4(0, 0, 0, 0);
        u32 pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[8 * half + 2 * i] = low_bf16(pairs[i]);
            v[8 * half + 2 * i + 1] = high_bf16(pairs[i]);
        }
    }
    float largest = LEAST;
#pragma unroll
    for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(v[i]));
#pragma unroll
    for (int offset = 4; offset; offset >>= 1) largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, offset));
    float inverse = LARGEST / largest;
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        words[i] = pack_e4m3(v[4 * i] * inverse, v[4 * i + 1] * inverse) |
                   (u32)pack_e4m3(v[4 * i + 2] * inverse, v[4 * i + 3] * inverse) << 16;
    if (!valid) return;
    codes[run] = make_uint4(words[0], words[1], words[2], words[3]);
    int row = run / (k / 16), at = run % (k / 16);
    if (at % 8 == 0) scales[(u64)(at / 8) * m + row] = largest / LARGEST;
}

template <int COLUMNS>
struct ScaledBlocks {
    static constexpr int BLOCK = 128, GROUPS = COLUMNS / CODES_GROUP;
    static constexpr bool EARLY = false;  // the launch before makes the codes
    const float* x_scales;
    const float2* w_scales;
    int m, n, k;
    __device__ __forceinline__ void begin() const {}
    template <typename Stages>
    __device__ __forceinline__ void sum(float (&sum)[COLUMNS / 2], Stages& ring, Tile tile) const {
        float part[COLUMNS / 2];
        int row = tile.row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, blocks = k / BLOCK;
        int first = tile.column / CODES_GROUP, groups = (n + CODES_GROUP - 1) / CODES_GROUP;
        auto row_scale = [&](int block, int half) {
            int at = row + 8 * half;
            return at < m && block < blocks ? __ldg(x_scales + (u64)block * m + at) : 0.0f;
        };
        auto group_scales = [&](int block, int group) {
            int at = first + group;
            return at < groups && block < blocks ? __ldg(w_scales + (u64)block * groups + at) : make_float2(0.0f, 0.0f);
        };
#pragma unroll
        for (int i = 0; i < COLUMNS / 2; i++) sum[i] = 0.0f;
        float rows[2];
        float2 columns[GROUPS];
        auto load = [&](int block) {
#pragma unroll
            for (int half = 0; half < 2; half++) rows[half] = row_scale(block, half);
#pragma unroll
            for (int group = 0; group < GROUPS; group++) columns[group] = group_scales(block, group);
        };
        load(0);
        for (int block = 0; block < blocks; block++) {
            ring.wait();
            u64 a = ring.x(), b = ring.w();
            matrices_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) multiply_codes(part, advance(a, i * 32), advance(b, i * 32), i > 0);
            matrices_commit();
            float scale[GROUPS][2][2];
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    scale[group][half][0] = rows[half] * columns[group].x;
                    scale[group][half][1] = rows[half] * columns[group].y;
                }
            }
            load(block + 1);
            int slot = ring.next();
            matrices_wait<0>();
            ring.release(slot);
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++) sum[i] += part[i] * scale[i / 4 / (CODES_GROUP / 8)][i / 2 % 2][i % 2];
        }
    }
};

#define CODES(NAME, COLUMNS, PAIR)                                                                               \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(MANY_THREADS, 1) gemm_codes_##NAME(   \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x,                                \
        const __grid_constant__ TensorMap x_end, const __grid_constant__ TensorMap out, int m, int n, int k,     \
        int output, const float* x_scales, const float2* w_scales) {                                              \
        many<COLUMNS, PAIR>(w, x, x_end, out, m, n, k, output, nullptr,                                          \
                            ScaledBlocks<COLUMNS>{x_scales, w_scales, m, n, k});                                 \
    }
CODES(64, 64, STACKED)
CODES(128, 128, STACKED)
CODES(192, 192, STACKED)
CODES(128_beside, 128, BESIDE)
CODES(192_beside, 192, BESIDE)
