// Weights [n, k] in fp8 as the products read them: codes and their scales. k is a multiple of 16, n of 8.
//
// A run of 16 codes of a row is four words, word t holding codes 2t, 2t + 1, 2t + 8, 2t + 9 (`pack_codes`): what lane t of
// a quad needs for a tensor-core step of 16. Scales are [n / 8][ceil(k / 128)][2] words (`pack_scale`): of 8 rows by 128
// columns one for the even and one for the odd rows, since gate and up alternate.

DEVICE u32 byte_of(const uint4& v, int i) {
    u32 words[4] = {v.x, v.y, v.z, v.w};
    return words[i / 4] >> (i % 4 * 8) & 0xff;
}

DEVICE uint4 pack_run(const uint4& codes) {
    u32 words[4];
#pragma unroll
    for (int t = 0; t < 4; t++)
        words[t] = pack_codes(byte_of(codes, 2 * t), byte_of(codes, 2 * t + 1), byte_of(codes, 2 * t + 8),
                              byte_of(codes, 2 * t + 9));
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Packs rows of plain codes [rows, k] whose blocks of 128 x 128 have scales [ceil(rows / 128), ceil(k / 128)]; row i becomes
// row first + step * i. `step` is 1 or 2, `first` a multiple of 8, plus 1 for odd rows. Counts codes that are no number.
extern "C" __global__ void __launch_bounds__(256)
    fp8_pack(u8* packed, u32* scales, u32* faults, const uint4* codes, const float* block_scales, u64 runs, int k,
             int first, int step) {
    u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    int row = run / (k / 16), at = run % (k / 16), target = first + step * row;
    uint4 v = codes[run];
    bool fault = false;
#pragma unroll
    for (int i = 0; i < 16; i++) fault |= (byte_of(v, i) & 0x7f) == 0x7f;
    if (fault) atomicAdd(faults, 1);
    *(uint4*)(packed + (u64)target * k + at * 16) = pack_run(v);
    if (at % 8 == 0) {
        int blocks = (k + 127) / 128;
        *scale_of(scales, target, at / 8, k) = pack_scale(block_scales[(u64)(row / 128) * blocks + at / 8]);
    }
}

// Quantises weights [n, k]: a scale takes the largest of 32 x 128 elements, the even or the odd rows of 64, to the largest
// code. A block takes those.
extern "C" __global__ void __launch_bounds__(256) fp8_quantise(u8* packed, u32* scales, const u16* w, int n, int k) {
    constexpr float LARGEST = 448.0f, MOST = 255.0f;
    __shared__ float warps[8];
    int blocks = (k + 127) / 128, block = blockIdx.x % blocks, rows = blockIdx.x / blocks;
    int row = rows / 2 * 64 + threadIdx.x / 8 * 2 + rows % 2, column = block * 128 + threadIdx.x % 8 * 16;
    bool valid = column < k && row < n;
    float v[16];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 raw = valid ? *(const uint4*)(w + (u64)row * k + column + 8 * half) : make_uint4(0, 0, 0, 0);
        u32 pairs[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[8 * half + 2 * i] = low_bf16(pairs[i]);
            v[8 * half + 2 * i + 1] = high_bf16(pairs[i]);
        }
    }
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; i++) largest = fmaxf(largest, fabsf(v[i]));
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, warps[i]);
    float scale = fminf(from_bf16(to_bf16(largest / LARGEST)), MOST);
    u32 words[4] = {};
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
        float low = scale > 0.0f ? v[i] / scale : 0.0f, high = scale > 0.0f ? v[i + 1] / scale : 0.0f;
        words[i / 4] |= (u32)pack_e4m3(low, high) << (i % 4 * 8);
    }
    if (!valid) return;
    *(uint4*)(packed + (u64)row * k + column) = pack_run(make_uint4(words[0], words[1], words[2], words[3]));
    if (threadIdx.x % 8 == 0) *scale_of(scales, row, block, k) = pack_scale(scale);
}

// out [n, k] = the bf16 that packed weights stand for.
extern "C" __global__ void __launch_bounds__(256)
    fp8_unpack(uint4* out, const uint4* packed, u32* scales, u64 runs, int k) {
    wait_for_producer();
    u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    int row = run / (k / 16), at = run % (k / 16);
    CodeScale scale(*scale_of(scales, row, at / 8, k));
    uint4 v = packed[run], first, second;
    unpack_codes(v.x, scale, first.x, second.x);
    unpack_codes(v.y, scale, first.y, second.y);
    unpack_codes(v.z, scale, first.z, second.z);
    unpack_codes(v.w, scale, first.w, second.w);
    out[2 * run] = first;
    out[2 * run + 1] = second;
}
