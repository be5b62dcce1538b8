// What follows the QKV projection: bias, RMSNorm per head, rotary embedding, keys and values into their pages.
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

// How a head of D elements is shared out: to 32 / PARTS lanes, each of which has PARTS runs of PER neighbours in either half.
template <int D, int PARTS>
struct HeadShare {
    static constexpr int PER = D / 64, LANES = 32 / PARTS;
    __device__ __forceinline__ static int lane() { return threadIdx.x % LANES; }
    // First element of a run, in its half.
    __device__ __forceinline__ static int element(int part) { return (LANES * part + lane()) * PER; }
};

// Stores a half of a head's elements in fp8: this lane's, and those 8 further of a run of 16, which another lane holds.
template <int D, int PARTS>
DEVICE void store_codes(u16* half, const float (&mine)[PARTS][D / 64]) {
    using Share = HeadShare<D, PARTS>;
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
        for (int j = 0; j < Share::PER; j++) {
            float other = __shfl_xor_sync(FULL_WARP, mine[part][j], 8 / Share::PER);
            int at = Share::element(part) + j;
            u32 codes = pack_e4m3(mine[part][j], other);
            if (half && at % 16 < 8) half[at / 16 * 8 + at % 16] = pack_codes(codes & 0xff, 0, codes >> 8, 0);
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

// What is known of a token before the product, and of a head.
template <int D, int PARTS>
struct TokenTables {
    using Share = HeadShare<D, PARTS>;
    float cosines[PARTS][Share::PER], sines[PARTS][Share::PER];
    u32 place;
    __device__ __forceinline__ void load(const HeadOutput& to, int token) {
        u64 angle = (u64)to.positions[token] * (D / 2);
        place = to.places[token];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            load_run(cosines[part], to.cosines + angle + Share::element(part));
            load_run(sines[part], to.sines + angle + Share::element(part));
        }
    }
};

template <int D, int PARTS>
struct HeadTables {
    using Share = HeadShare<D, PARTS>;
    float low_bias[PARTS][Share::PER], high_bias[PARTS][Share::PER], low_norm[PARTS][Share::PER], high_norm[PARTS][Share::PER];
    __device__ __forceinline__ void load(const HeadOutput& to, int head) {
        const float* norm = to.is_query(head) ? to.q_norm : to.k_norm;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            int i = Share::element(part);
            if (to.bias) {
                load_run(low_bias[part], to.bias + head * D + i);
                load_run(high_bias[part], to.bias + head * D + i + D / 2);
            }
            if (norm && !to.is_value(head)) {
                load_run(low_norm[part], norm + i);
                load_run(high_norm[part], norm + i + D / 2);
            }
        }
    }
};

// All lanes of a warp call it; `valid` is the same in all that share a head.
template <int D, bool CODES, int PARTS>
DEVICE void store_head(const HeadOutput& to, const TokenTables<D, PARTS>& of_token, const HeadTables<D, PARTS>& tables,
                       float (&low)[PARTS][D / 64], float (&high)[PARTS][D / 64], int token, int head, bool valid) {
    using Share = HeadShare<D, PARTS>;
    constexpr int PER = Share::PER;
    if (to.bias) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int j = 0; j < PER; j++) {
                low[part][j] += tables.low_bias[part][j];
                high[part][j] += tables.high_bias[part][j];
            }
    }
    bool is_query = to.is_query(head), is_value = to.is_value(head);
    if (to.q_norm) {
        // the order of `warp_sum`, whatever PARTS is
        float sums[PARTS];
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            sums[part] = 0.0f;
#pragma unroll
            for (int j = 0; j < PER; j++) sums[part] = add_squares(sums[part], low[part][j], high[part][j]);
        }
#pragma unroll
        for (int distance = PARTS / 2; distance; distance /= 2)
#pragma unroll
            for (int part = 0; part < distance; part++) sums[part] += sums[part + distance];
#pragma unroll
        for (int offset = Share::LANES / 2; offset; offset /= 2) sums[0] += __shfl_xor_sync(FULL_WARP, sums[0], offset);
        float scale = rsqrtf(sums[0] / to.norm_width + to.eps);
        if (!is_value) {
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int j = 0; j < PER; j++) {
                    low[part][j] *= scale * tables.low_norm[part][j];
                    high[part][j] *= scale * tables.high_norm[part][j];
                }
        }
    }
    if (!is_value) {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int j = 0; j < PER; j++)
                turn_pair(low[part][j], high[part][j], of_token.cosines[part][j], of_token.sines[part][j]);
    }
    u16* out = nullptr;
    bool codes = CODES && !is_query;
    if (is_query) {
        out = to.queries + ((u64)token * to.heads + head) * D;
    } else if (of_token.place != NO_SLOT) {
        int kv_head = head - to.heads - (is_value ? to.kv_heads : 0);
        u32 page_size = 1u << to.page_shift;
        u64 block = ((u64)(of_token.place >> to.page_shift) * 2 + is_value) * to.kv_heads + kv_head;
        out = to.pages + (block * page_size + (of_token.place & (page_size - 1))) * (codes ? D / 2 : D);
    }
    if (!valid) out = nullptr;
    if constexpr (CODES) {
        u16* half = codes ? out : nullptr;
        store_codes<D, PARTS>(half, low);
        store_codes<D, PARTS>(half ? half + D / 4 : nullptr, high);
    }
    if (codes || !out) return;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        store_run(out + Share::element(part), low[part]);
        store_run(out + Share::element(part) + D / 2, high[part]);
    }
}
