// What follows the QKV projection: bias, RMSNorm per head, rotary embedding, keys and values into their pages.
//
// `qkv` row: heads * D queries, then kv_heads * D keys, then kv_heads * D values. One warp takes one head of one
// token. Pages are [page][key, value][kv head][page_size][D]; `places[token]` is page * page_size + offset, or
// NO_SLOT for a padding token. Rotation is half-split: element i turns with element i + D/2 by angle
// (position, i), given as tables cos, sin [position][D/2] in f32. Heads narrower than D are padded with zeros:
// `norm_width` is what they are. Keys and values are bf16, or fp8 e4m3 without a scale, larger ones cut to the largest:
// then word u of 16 bits of a run of 16 elements packs elements u and u + 8 (fp8.cuh).

// Neighbouring elements, as many as a lane holds of each half of a head.
DEVICE void load_run(float (&v)[1], const u16* at) { v[0] = from_bf16(*at); }
DEVICE void load_run(float (&v)[2], const u16* at) {
    u32 pair = *(const u32*)at;
    v[0] = low_bf16(pair);
    v[1] = high_bf16(pair);
}
DEVICE void load_run(float (&v)[1], const float* at) { v[0] = *at; }
DEVICE void load_run(float (&v)[2], const float* at) {
    float2 pair = *(const float2*)at;
    v[0] = pair.x;
    v[1] = pair.y;
}
DEVICE void store_run(u16* at, const float (&v)[1]) { *at = to_bf16(v[0]); }
DEVICE void store_run(u16* at, const float (&v)[2]) { *(u32*)at = pack_bf16(v[0], v[1]); }

// Stores a half of a head's elements in fp8: this lane's, and those 8 further of a run, which another lane holds.
template <int PER>
DEVICE void store_codes(u16* half, const float (&mine)[PER]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < PER; j++) {
        float other = __shfl_xor_sync(FULL_WARP, mine[j], 8 / PER);
        int at = lane * PER + j;
        u32 codes = pack_e4m3(mine[j], other);
        if (at % 16 < 8) half[at / 16 * 8 + at % 16] = pack_codes(codes & 0xff, 0, codes >> 8, 0);
    }
}

template <int D, bool CODES>
DEVICE void qkv_head(u16* queries, u16* pages, const u16* qkv, const u16* bias, const float* q_norm,
                     const float* k_norm, const float* cosines, const float* sines, const u32* positions,
                     const u32* places, int tokens, int heads, int kv_heads, int page_shift, int norm_width, float eps) {
    constexpr int PER = D / 64;  // elements of each half that a lane holds
    allow_consumer();
    wait_for_producer();
    int lane = threadIdx.x % 32;
    u32 all_heads = heads + 2 * kv_heads;
    u32 unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int token = unit / all_heads;
    int head = unit % all_heads;
    if (token >= tokens) return;
    u64 width = (u64)all_heads * D;
    const u16* in = qkv + token * width + (u64)head * D + lane * PER;
    float low[PER], high[PER];
    load_run(low, in);
    load_run(high, in + D / 2);
    if (bias) {
        float low_bias[PER], high_bias[PER];
        load_run(low_bias, bias + head * D + lane * PER);
        load_run(high_bias, bias + head * D + lane * PER + D / 2);
#pragma unroll
        for (int j = 0; j < PER; j++) {
            low[j] += low_bias[j];
            high[j] += high_bias[j];
        }
    }
    bool is_query = head < heads;
    bool is_value = head >= heads + kv_heads;
    const float* norm = is_query ? q_norm : k_norm;
    if (!is_value) {
        if (norm) {
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < PER; j++) sum = add_squares(sum, low[j], high[j]);
            float scale = rsqrtf(warp_sum(sum) / norm_width + eps);
            float low_weight[PER], high_weight[PER];
            load_run(low_weight, norm + lane * PER);
            load_run(high_weight, norm + lane * PER + D / 2);
#pragma unroll
            for (int j = 0; j < PER; j++) {
                low[j] *= scale * low_weight[j];
                high[j] *= scale * high_weight[j];
            }
        }
        u64 angle = (u64)positions[token] * (D / 2) + lane * PER;
        float c[PER], s[PER];
        load_run(c, cosines + angle);
        load_run(s, sines + angle);
#pragma unroll
        for (int j = 0; j < PER; j++) turn_pair(low[j], high[j], c[j], s[j]);
    }
    u16* out;
    bool codes = CODES && !is_query;
    if (is_query) {
        out = queries + ((u64)token * heads + head) * D;
    } else {
        u32 place = places[token];
        if (place == NO_SLOT) return;
        int kv_head = head - heads - (is_value ? kv_heads : 0);
        u32 page_size = 1u << page_shift;
        u64 block = ((u64)(place >> page_shift) * 2 + is_value) * kv_heads + kv_head;
        out = pages + (block * page_size + (place & (page_size - 1))) * (codes ? D / 2 : D);
    }
    if (codes) {
        store_codes(out, low);
        store_codes(out + D / 4, high);
        return;
    }
    store_run(out + lane * PER, low);
    store_run(out + lane * PER + D / 2, high);
}

#define QKV_HEAD(NAME, D, CODES)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) qkv_head_##NAME(                                              \
        u16* queries, u16* pages, const u16* qkv, const u16* bias, const float* q_norm, const float* k_norm,         \
        const float* cosines, const float* sines, const u32* positions, const u32* places, int tokens, int heads,    \
        int kv_heads, int page_shift, int norm_width, float eps) {                                                   \
        qkv_head<D, CODES>(queries, pages, qkv, bias, q_norm, k_norm, cosines, sines, positions, places, tokens,     \
                           heads, kv_heads, page_shift, norm_width, eps);                                            \
    }
QKV_HEAD(64, 64, false)
QKV_HEAD(128, 128, false)
QKV_HEAD(64_fp8, 64, true)
QKV_HEAD(128_fp8, 128, true)
