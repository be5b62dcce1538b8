// What follows the QKV projection: bias, RMSNorm per head, rotary embedding, keys and values into their pages. A warp has
// a head of a token, each lane PER elements of either half.
//
// Pages are [page][key, value][kv head][page_size][D]; `places[token]` is page * page_size + offset, or NO_SLOT for a padding
// token. Rotation is half-split: element i turns with element i + D/2 by angle (position, i), given as tables cos, sin
// [position][D/2] in f32. Heads narrower than D are padded with zeros: `norm_width` is what they are. Keys and values are
// bf16, or fp8 e4m3 without a scale, larger ones cut to the largest: then word u of 16 bits of a run of 16 elements packs
// elements u and u + 8 (fp8.cuh).

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

struct HeadOutput {
    u16 *queries, *pages;
    const u16* bias;
    const float *q_norm, *k_norm, *cosines, *sines;
    const u32 *positions, *places;
    int heads, kv_heads, page_shift, norm_width;
    float eps;
    __device__ __forceinline__ bool is_query(int head) const { return head < heads; }
    __device__ __forceinline__ bool is_value(int head) const { return head >= heads + kv_heads; }
};

// What is known of a head and a token before the product.
template <int D>
struct HeadTables {
    static constexpr int PER = D / 64;
    float low_bias[PER], high_bias[PER], low_norm[PER], high_norm[PER], cosines[PER], sines[PER];
    __device__ __forceinline__ void load(const HeadOutput& to, int token, int head) {
        int i = threadIdx.x % 32 * PER;
        if (to.bias) {
            load_run(low_bias, to.bias + head * D + i);
            load_run(high_bias, to.bias + head * D + i + D / 2);
        }
        if (to.is_value(head)) return;
        const float* norm = to.is_query(head) ? to.q_norm : to.k_norm;
        if (norm) {
            load_run(low_norm, norm + i);
            load_run(high_norm, norm + i + D / 2);
        }
        u64 angle = (u64)to.positions[token] * (D / 2) + i;
        load_run(cosines, to.cosines + angle);
        load_run(sines, to.sines + angle);
    }
};

template <int D, bool CODES>
DEVICE void store_head(const HeadOutput& to, const HeadTables<D>& tables, float (&low)[D / 64], float (&high)[D / 64],
                       int token, int head) {
    constexpr int PER = D / 64;
    int lane = threadIdx.x % 32;
    if (to.bias) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            low[j] += tables.low_bias[j];
            high[j] += tables.high_bias[j];
        }
    }
    bool is_query = to.is_query(head), is_value = to.is_value(head);
    if (!is_value) {
        if (is_query ? to.q_norm : to.k_norm) {
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < PER; j++) sum = add_squares(sum, low[j], high[j]);
            float scale = rsqrtf(warp_sum(sum) / to.norm_width + to.eps);
#pragma unroll
            for (int j = 0; j < PER; j++) {
                low[j] *= scale * tables.low_norm[j];
                high[j] *= scale * tables.high_norm[j];
            }
        }
#pragma unroll
        for (int j = 0; j < PER; j++) turn_pair(low[j], high[j], tables.cosines[j], tables.sines[j]);
    }
    u16* out;
    bool codes = CODES && !is_query;
    if (is_query) {
        out = to.queries + ((u64)token * to.heads + head) * D;
    } else {
        u32 place = to.places[token];
        if (place == NO_SLOT) return;
        int kv_head = head - to.heads - (is_value ? to.kv_heads : 0);
        u32 page_size = 1u << to.page_shift;
        u64 block = ((u64)(place >> to.page_shift) * 2 + is_value) * to.kv_heads + kv_head;
        out = to.pages + (block * page_size + (place & (page_size - 1))) * (codes ? D / 2 : D);
    }
    if (codes) {
        store_codes(out, low);
        store_codes(out + D / 4, high);
        return;
    }
    store_run(out + lane * PER, low);
    store_run(out + lane * PER + D / 2, high);
}
