// Header of the files that read or write fp8 weights: how codes and scales are packed, and bf16 made of them.

// Eight bits of fp8 e4m3 fill, of the sixteen of a bf16, the sign and what is next to the sign of the exponent: they mean
// the value times 2^-120, subnormals included. Four codes are packed so that little is left to do: the halves of the word
// hold in the places of a bf16 (0x87f0) codes 0 and 1, and in the others codes 2 and 3.

DEVICE u32 pack_codes(u32 c0, u32 c1, u32 c2, u32 c3) {
    u32 first = c0 | c1 << 16, second = c2 | c3 << 16;
    return (first & 0x00800080u) << 8 | (first & 0x007f007fu) << 4 | (second & 0x00800080u) << 4 |
           (second & 0x00700070u) << 8 | (second & 0x000f000fu);
}

// The way back: codes 0 and 1, and 2 and 3, in the lower bytes of the halves of a word.
DEVICE void plain_codes(u32 word, u32& first, u32& second) {
    first = (word >> 8 & 0x00800080u) | (word >> 4 & 0x007f007fu);
    second = (word >> 4 & 0x00800080u) | (word >> 8 & 0x00700070u) | (word & 0x000f000fu);
}

// Where the scale of a row's block of 128 columns is.
DEVICE u32* scale_of(u32* scales, int row, int block, int k) {
    return scales + ((u64)(row / 8) * ((k + 127) / 128) + block) * 2 + row % 2;
}

// What a block of codes is multiplied by, widened by 2^120: a bf16 and what that lacks, again in bf16.
DEVICE u32 pack_scale(float scale) {
    constexpr float WIDEN = 1.329227995784916e36f;  // 2^120
    float wide = scale * WIDEN;
    u32 high = pack_bf16(wide, 0.0f);
    return high | pack_bf16(wide - low_bf16(high), 0.0f) << 16;
}

struct CodeScale {
    u32 high, low;
    __device__ __forceinline__ CodeScale(u32 high, u32 low) : high(high), low(low) {}
    __device__ __forceinline__ explicit CodeScale(u32 packed)
        : high(__byte_perm(packed, 0, 0x1010)), low(__byte_perm(packed, 0, 0x3232)) {}
    // Two codes in the places of bf16, times the scale: rounded once but for what the lower part of the scale loses.
    __device__ __forceinline__ u32 operator()(u32 codes) const {
        u32 product;
        asm("{.reg .b32 rest; mul.rn.bf16x2 rest, %1, %3; fma.rn.bf16x2 %0, %1, %2, rest;}"
            : "=r"(product)
            : "r"(codes), "r"(high), "r"(low));
        return product;
    }
};

// Codes 0 and 1, and 2 and 3 of a word as pairs of bf16, each times 2^-120.
DEVICE void split_codes(u32 word, u32& first, u32& second) {
    first = word & 0x87f087f0u;
    second = (word << 4 & 0x80f080f0u) | (word >> 4 & 0x07000700u);
}

// The same with a scale: weights.
DEVICE void unpack_codes(u32 word, const CodeScale& scale, u32& first, u32& second) {
    split_codes(word, first, second);
    first = scale(first);
    second = scale(second);
}

// A pair of bf16 times 2^POWER.
template <int POWER>
DEVICE u32 shift_pair(u32 pair) {
    constexpr u32 FACTOR = (127 + POWER) << 7;
    u32 shifted;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(shifted) : "r"(pair), "r"(FACTOR << 16 | FACTOR));
    return shifted;
}

// The same without a scale: keys and values.
DEVICE void unpack_values(u32 word, u32& first, u32& second) {
    split_codes(word, first, second);
    first = shift_pair<120>(first);
    second = shift_pair<120>(second);
}

DEVICE CodeScale load_code_scale(u32 address) {
    u32 high, low;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(high), "=r"(low) : "r"(address) : "memory");
    return CodeScale(high, low);
}
DEVICE void store_shared(u32 address, const CodeScale& scale) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(scale.high), "r"(scale.low) : "memory");
}
