// Row-wise kernels: embedding gather, RMSNorm, SiLU gate, row gather, page copy.

// hidden[token] = table[id], widened to f32, the type of the residual stream. An id of PLACEHOLDER takes the token
// that the token's slot sampled last.
extern "C" __global__ void __launch_bounds__(128)
    embed(float* hidden, const u16* table, const u32* ids, const u32* slots, const u32* last_tokens, int width) {
    allow_consumer();
    wait_for_producer();
    int token = blockIdx.x;
    u32 id = ids[token];
    if (id == PLACEHOLDER) id = last_tokens[slots[token]];
    const uint4* row = (const uint4*)(table + (u64)id * width);
    float4* out = (float4*)(hidden + (u64)token * width);
    for (int i = threadIdx.x; i < width / 8; i += blockDim.x) {
        uint4 v = row[i];
        out[2 * i] = make_float4(low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y));
        out[2 * i + 1] = make_float4(low_bf16(v.z), high_bf16(v.z), low_bf16(v.w), high_bf16(v.w));
    }
}

DEVICE float block_sum(float v, float* scratch) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : 0.0f;
    return warp_sum(v);
}

// out[r] = hidden[rows[r]] / rms * weight in bf16 (rows == nullptr: row r itself). If `delta` is given, it is first
// added to the row, which keeps the sum: hidden += delta.
extern "C" __global__ void __launch_bounds__(256) rms_norm(
    u16* out, float* hidden, const u16* delta, const float* weight, const u32* rows, int width, float eps) {
    __shared__ float scratch[8];
    allow_consumer();
    wait_for_producer();
    u64 row = rows ? rows[blockIdx.x] : blockIdx.x;
    float4* in = (float4*)(hidden + row * width);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        float4 v = in[i];
        if (delta) {
            uint2 d = ((const uint2*)(delta + row * width))[i];
            v.x += low_bf16(d.x), v.y += high_bf16(d.x), v.z += low_bf16(d.y), v.w += high_bf16(d.y);
            in[i] = v;
        }
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float scale = rsqrtf(block_sum(sum, scratch) / width + eps);
    uint2* target = (uint2*)(out + (u64)blockIdx.x * width);
    for (int i = threadIdx.x; i < width / 4; i += blockDim.x) {
        float4 v = in[i];
        float4 w = ((const float4*)weight)[i];
        target[i] = make_uint2(pack_bf16(v.x * scale * w.x, v.y * scale * w.y),
                               pack_bf16(v.z * scale * w.z, v.w * scale * w.w));
    }
}

// out[r, i] = silu(gate) * up, where in[r] interleaves gate_0, up_0, gate_1, up_1, ... One thread makes 4 outputs.
extern "C" __global__ void __launch_bounds__(256) silu_mul(u16* out, const u16* in, u64 groups) {
    allow_consumer();
    wait_for_producer();
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= groups) return;
    uint4 v = ((const uint4*)in)[i];
    u32 pairs[4] = {v.x, v.y, v.z, v.w};
    float y[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float gate = low_bf16(pairs[j]);
        y[j] = gate / (1.0f + __expf(-gate)) * high_bf16(pairs[j]);
    }
    ((uint2*)out)[i] = make_uint2(pack_bf16(y[0], y[1]), pack_bf16(y[2], y[3]));
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
