// Measures what the memory can deliver: the ceiling that timings are compared with.

// Reads `count` 16-byte words once; the sum keeps the loads alive.
extern "C" __global__ void __launch_bounds__(512) read_all(const uint4* data, u64 count, u32* sink) {
    u32 sum = 0;
    u64 stride = (u64)gridDim.x * blockDim.x;
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 7 * stride < count; i += 8 * stride) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(data + i + j * stride);
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < count; i += stride) {
        uint4 v = __ldcs(data + i);
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u) *sink = sum;
}

// Fills a buffer with pseudo-random bf16 in (-scale, scale): timing data at device speed.
extern "C" __global__ void __launch_bounds__(256) fill_bf16(u16* data, u64 count, u32 seed, float scale) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        u32 h = (u32)i * 0x9e3779b9u ^ (u32)(i >> 32) * 0x85ebca6bu ^ seed;
        h = (h ^ (h >> 16)) * 0x7feb352du;
        h = (h ^ (h >> 15)) * 0x846ca68bu;
        h ^= h >> 16;
        data[i] = to_bf16(((float)h * (2.0f / 4294967296.0f) - 1.0f) * scale);
    }
}
