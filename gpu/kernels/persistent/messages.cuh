// Messages between the blocks of the persistent kernel.
//
// Whoever needs a message waits for its words themselves: a set of messages is filled with MISSING, which no arithmetic
// makes, and each word is written once. So neither fences nor counters stand between a store and those who wait for it.
// There are two sets, for steps of even and odd number; what one step used the next clears. Parts of attention, which
// are many, carry the number of their layer and step instead (`tag`).

#define MISSING 0xffffffffu  // neither an f32 nor two bf16 that were computed
#define POLL_NANOSECONDS 100  // waiting without a pause keeps the L2 cache from those who write

// The weights of one layer, and its keys and values. `bias` and the norms of heads may be null.
struct LayerWeights {
    const u16 *qkv, *o, *gate_up, *down, *bias;
    const float *q_norm, *k_norm;
    u16* pages;
};

struct Model {
    TensorMap pages;  // of all layers: rows of a head at a position
    const LayerWeights* layers;
    const float* norms;  // [layers][before attention, before the gated product][width]
    const u16* embedding;
    const float *cosines, *sines;
    float* hidden;      // result: [rows][width]
    u8* messages;       // two sets
    ulonglong2 *part_values, *part_stats;  // [tiles][kv_heads][queries][D / 2], [tiles][kv_heads][queries]
    u32* epoch;         // number of steps so far
    const u32* last_tokens;
    int layer_count, width, heads, kv_heads, intermediate, page_shift, window, norm_width;
    int layer_rows;  // rows of the pages of one layer
    float eps, scale;
};

// What one step is told: see block.rs.
struct Step {
    const u32 *ids, *slots, *positions, *places, *tables, *table_starts, *contexts, *tile_starts;
    int rows, ring_slots;
};

// Reads what another block may be writing; a message is there once no word of it is MISSING.
DEVICE uint4 peek(const void* p) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
DEVICE u32 peek_word(const void* p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}
DEVICE ulonglong2 peek_pair(const void* p) {
    ulonglong2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p));
    return v;
}
DEVICE void post(void* p, u32 v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory"); }
DEVICE void post_pair(void* p, float a, float b, u32 tag) {
    u64 x = (u64)tag << 32 | __float_as_uint(a), y = (u64)tag << 32 | __float_as_uint(b);
    asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1,%2};" ::"l"(p), "l"(x), "l"(y) : "memory");
}
DEVICE void pause() { __nanosleep(POLL_NANOSECONDS); }
DEVICE bool complete(const uint4& v) { return v.x != MISSING && v.y != MISSING && v.z != MISSING && v.w != MISSING; }

// Where pair `word` of a row lies, so that a lane finds its fragments of 32 elements in 16 bytes.
DEVICE int place_of(int word) { return (word & ~15) | (word & 3) << 2 | (word >> 2 & 3); }

// The messages of one layer, rows of PERSISTENT_ROWS sequences: residual stream times norm weights and its sums of squares,
// twice; the QKV product; attention; the gated product.
struct Messages {
    u8* base;
    u32 width, qkv_width, query_width;
    template <int D>
    static __device__ __forceinline__ Messages of(const Model& m, int set, int layer) {
        u32 query_width = m.heads * D, qkv_width = query_width + 2 * m.kv_heads * D;
        u64 bytes = PERSISTENT_ROWS * (5 * (u64)m.width + 2 * (qkv_width + query_width + m.intermediate));
        return Messages{m.messages + (u64)(set * m.layer_count + layer) * bytes, (u32)m.width, qkv_width, query_width};
    }
    __device__ __forceinline__ u8* weighed(int i) const { return base + i * (PERSISTENT_ROWS * 5 / 2) * width; }
    __device__ __forceinline__ u8* squares(int i) const { return weighed(i) + PERSISTENT_ROWS * 2 * width; }
    __device__ __forceinline__ u8* qkv() const { return base + PERSISTENT_ROWS * 5 * width; }
    __device__ __forceinline__ u8* attended() const { return qkv() + PERSISTENT_ROWS * 2 * qkv_width; }
    __device__ __forceinline__ u8* gated() const { return attended() + PERSISTENT_ROWS * 2 * query_width; }
    __device__ __forceinline__ u32 bytes(int intermediate) const { return gated() - base + PERSISTENT_ROWS * 2 * intermediate; }
};

