// Row-wise kernels: embedding gather, RMSNorm, copies of rows and pages.

// Eight columns of a row times those of the norm's weights, a and b, and a scale, in bf16.
DEVICE uint4 weigh(float4 low, float4 high, float4 a, float4 b, float scale) {
    return make_uint4(pack_bf16(low.x * scale * a.x, low.y * scale * a.y),
                      pack_bf16(low.z * scale * a.z, low.w * scale * a.w),
                      pack_bf16(high.x * scale * b.x, high.y * scale * b.y),
                      pack_bf16(high.z * scale * b.z, high.w * scale * b.w));
}

DEVICE float square_group(float4 low, float4 high) {
    return __fadd_rn(__fadd_rn(square_pair(low.x, low.y), square_pair(low.z, low.w)),
                     __fadd_rn(square_pair(high.x, high.y), square_pair(high.z, high.w)));
}

// hidden[token] = table[id], widened to f32, the type of the residual stream. An id of PLACEHOLDER takes the token
// that the token's slot sampled last.
// If `weighed` is given, the norm that follows is left half done: `weight` [width], `squares` [tokens, width / 8].
extern "C" __global__ void __launch_bounds__(128)
    embed(float* hidden, const u16* table, const u32* ids, const u32* slots, const u32* last_tokens,
          const float* weight, u16* weighed, float* squares, int width) {
    allow_consumer();
    wait_for_producer();
    int token = blockIdx.x;
    u32 id = ids[token];
    if (id == PLACEHOLDER) id = last_tokens[slots[token]];
    const uint4* row = (const uint4*)(table + (u64)id * width);
    float4* out = (float4*)(hidden + (u64)token * width);
    for (int i = threadIdx.x; i < width / 8; i += blockDim.x) {
        uint4 v = row[i];
        float4 low = make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y));
        float4 high = make_float4(low_bf16(v.z), high_bf16(v.z), low_bf16(v.w), high_bf16(v.w));
        out[2 * i] = low;
        out[2 * i + 1] = high;
        if (!weighed) continue;
        const float4* by = (const float4*)weight + 2 * i;
        ((uint4*)(weighed + (u64)token * width))[i] = weigh(low, high, by[0], by[1], 1.0f);
        squares[(u64)token * (width / 8) + i] = square_group(low, high);
    }
}

// out[r] = hidden[rows[r]] * weight / rms in bf16 (rows == nullptr: row r itself), a thread for every eight columns: all that a
// block reads is under way at once, the weights, which no launch writes, first. If `scales` is given, the division is left to
// others: scales[r] = 1 / rms.
extern "C" __global__ void __launch_bounds__(MAX_NORM_WIDTH / 8) rms_norm(
    u16* out, const float* hidden, const float* weight, const u32* rows, float* scales, int width, float eps) {
    __shared__ float groups[MAX_NORM_WIDTH / 8];
    allow_consumer();
    int i = threadIdx.x;
    bool valid = i < width / 8;
    float4 low, high, a, b;
    if (valid) a = ((const float4*)weight)[2 * i], b = ((const float4*)weight)[2 * i + 1];
    wait_for_producer();
    u64 row = rows ? rows[blockIdx.x] : blockIdx.x;
    const float4* in = (const float4*)(hidden + row * width);
    uint4* target = (uint4*)(out + (u64)blockIdx.x * width);
    if (valid) {
        low = in[2 * i], high = in[2 * i + 1];
        groups[i] = square_group(low, high);
        if (scales) target[i] = weigh(low, high, a, b, 1.0f);
    }
    __syncthreads();
    if (scales && i >= 32) return;
    float scale = rms_scale([](int i) { return groups[i]; }, width, eps);
    if (scales && i == 0) scales[blockIdx.x] = scale;
    if (!scales && valid) target[i] = weigh(low, high, a, b, scale);
}

// Copies rows `rows` of two matrices, `words` of 16 bytes wide, one after the other: a block has a row of each.
extern "C" __global__ void __launch_bounds__(256) gather_rows(uint4* hidden, const uint4* all_hidden, int hidden_words,
                                                              uint4* attended, const uint4* all_attended,
                                                              int attended_words, const u32* rows) {
    allow_consumer();
    wait_for_producer();
    u64 to = blockIdx.x, from = rows[blockIdx.x];
    for (int i = threadIdx.x; i < hidden_words; i += blockDim.x)
        hidden[to * hidden_words + i] = all_hidden[from * hidden_words + i];
    for (int i = threadIdx.x; i < attended_words; i += blockDim.x)
        attended[to * attended_words + i] = all_attended[from * attended_words + i];
}

// Copies whole pages in every layer: block (x, y, z) moves a part of pair y in layer z. `pairs` holds from, to.
extern "C" __global__ void __launch_bounds__(256)
    copy_pages(uint4* kv, const u32* pairs, u64 page_words, u64 layer_words) {
    wait_for_producer();
    uint4* layer = kv + blockIdx.z * layer_words;
    const uint4* from = layer + pairs[2 * blockIdx.y] * page_words;
    uint4* to = layer + pairs[2 * blockIdx.y + 1] * page_words;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < page_words; i += (u64)gridDim.x * blockDim.x)
        to[i] = from[i];
}
