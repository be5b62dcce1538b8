// out[m, n] = sum over k of x[m, k] * w[n, k]: bf16 in, f32 accumulation, one order of additions for every m.
//
// Canonical order, a function of (n, k) alone, so that a row's bits depend on no other row: k falls into blocks of
// 64, the blocks into `segments` equal runs. A run is summed by tensor-core steps of 16 elements, in ascending order
// from zero; the runs are added in ascending order. Four kernels follow it: `stream` for up to 16 rows of x, `cluster`
// for up to 64, `wide` for more and for weights in fp8, `many` for hundreds.
//
// Rows of the product may be scaled: what a norm has left to do. Needs k and n to be multiples of 8. Rows of w and x
// beyond n, m and elements beyond k count as zero.

enum Output {
    STORE_BF16 = 0,  // out: bf16 [m, n]
    STORE_F32 = 1,   // out: f32 [m, n]
    ADD_F32 = 2,     // out: f32 [m, n], the product is added to it
    GATE_BF16 = 3,   // out: bf16 [m, n / 2]: silu(row 2i) * row 2i+1
};

// An exponential too small to be normal changes nothing beside 1.
DEVICE float silu_mul(float gate, float up) {
    constexpr float LOG2_E = 1.4426950408889634f;
    return __fdividef(gate, 1.0f + exp2_fast(-LOG2_E * gate)) * up;
}

// First block of 64 of a segment.
DEVICE int segment_begin(int k, int segment, int segments) { return (k + 63) / 64 * segment / segments; }

// The norm that follows a sum (ADD_F32), if `weighed` is given: its weights [n]; rows times weights [m, n] and
// sums of squares [m, n / 8] are left for the next product.
struct NextNorm {
    const float* weight;
    u16* weighed;
    float* squares;
};

// Four neighbouring columns of one row, at element `at` of the product; `old` is what ADD_F32 adds them to.
DEVICE void store_four(int output, void* out, u64 at, float4 v, float4 old) {
    if (output == STORE_BF16) {
        *(uint2*)((u16*)out + at) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    } else if (output == STORE_F32) {
        *(float4*)((float*)out + at) = v;
    } else if (output == ADD_F32) {
        *(float4*)((float*)out + at) = make_float4(__fadd_rn(old.x, v.x), __fadd_rn(old.y, v.y),
                                                    __fadd_rn(old.z, v.z), __fadd_rn(old.w, v.w));
    } else {
        *(u32*)((u16*)out + at / 2) = pack_bf16(silu_mul(v.x, v.y), silu_mul(v.z, v.w));
    }
}

DEVICE float add(float a, float b) { return a + b; }
DEVICE float4 add(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
