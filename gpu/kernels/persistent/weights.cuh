// Shares of weights, and the ring in shared memory that they, keys and values pass.

#define SLOT_BLOCKS (SLOT_COLUMNS / 32)
#define SLOT_STRIDE (2 * SLOT_COLUMNS + 16)  // bytes; rows of one chunk meet 32 banks

// A unit is 8 rows of weights. Blocks have units in runs of nearly equal length.
DEVICE int first_unit(int units, int block) { return (u32)units * block / gridDim.x; }

enum Kind { QKV, O, GATE_UP, DOWN };
#define KINDS 4

// A block's share of a product: its units, their columns and slots, units of a group that fit into the ring at once.
struct Share {
    int begin, count, columns, slots, most;
    u32 inverse;  // 2^32 / (columns / 8), rounded up
    u32 input, watched;  // offsets in a layer's messages: of x, and of a line of it
    template <int D>
    static __device__ __forceinline__ Share of(const Model& m, int kind, int ring) {
        int query_width = m.heads * D, qkv_width = query_width + 2 * m.kv_heads * D;
        bool normed = kind == QKV || kind == GATE_UP;
        int units = (kind == QKV ? qkv_width : kind == GATE_UP ? 2 * m.intermediate : m.width) / 8;
        Share s;
        s.begin = first_unit(units, blockIdx.x);
        s.count = first_unit(units, blockIdx.x + 1) - s.begin;
        s.columns = normed ? m.width : kind == O ? query_width : m.intermediate;
        s.slots = (s.columns + SLOT_COLUMNS - 1) / SLOT_COLUMNS;
        s.inverse = 0xffffffffu / (s.columns / 8) + 1;
        Messages message = Messages::of<D>(m, 0, 0);
        const u8* x = kind == QKV       ? message.weighed(0)
                      : kind == O       ? message.attended()
                      : kind == GATE_UP ? message.weighed(1)
                                        : message.gated();
        s.input = x - message.base;
        s.watched = s.input + blockIdx.x * 5 % (s.columns * 2 / 128) * 128;
        int fit = ring / (2 * s.slots), most = normed ? WIDE_PASS : 1;
        s.most = fit < 1 ? 1 : fit < most ? fit : most;
        return s;
    }
};

// What is read passes in the order of its use: of each layer the weights of the first product, tiles of keys and values, the
// other weights. Slot n holds up to SLOT_COLUMNS columns of 8 rows of weights, or 64 columns of a tile. Slots are filled in
// this order, but who waits for one may be ahead of the copies by more than a round of places, which a phase bit does not tell;
// by less than two (ops/persistent.rs). So a place has two barriers, which take turns.
struct Ring {
    u32 base;
    u64 *full, *empty;     // [2][MAX_SLOTS], [MAX_SLOTS]
    u32 in_flight;         // slots that are being filled
    u32 size, inverse;     // places, and 2^32 / size rounded up
    __device__ __forceinline__ u32 round(u32 n) const { return __umulhi(n, inverse); }
    __device__ __forceinline__ u32 place(u32 n) const { return n - round(n) * size; }
    __device__ __forceinline__ u32 address(u32 n) const { return base + place(n) * SLOT_BYTES; }
    __device__ __forceinline__ u64* filled(u32 n) const { return full + (round(n) & 1) * MAX_SLOTS + place(n); }
    __device__ __forceinline__ void wait(u32 n) const { barrier_wait(filled(n), round(n) >> 1 & 1); }
    // This thread has read slot n; all of the group of warps that uses it call it.
    __device__ __forceinline__ void release(u32 n) const { barrier_arrive(empty + place(n)); }
    // Waits until slot n may be filled, and announces what it will hold; a warp calls it.
    __device__ __forceinline__ void begin(u32 n, u32 bytes) const {
        if (n >= size) barrier_wait(empty + place(n), (round(n) - 1) & 1);
        // few at a time: what blocks tell each other would wait behind a burst of them
        if (n >= in_flight) wait(n - in_flight);
        if (threadIdx.x % 32 == 0) barrier_expect(filled(n), bytes);
        __syncwarp();
    }
};

// Copies a block's share of a matrix, from slot n on.
DEVICE void copy_weights(const Ring& ring, u32& n, const u16* w, const Share& share) {
    int lane = threadIdx.x % 32, k = share.columns;
    u64 policy = read_once();
#pragma unroll 1
    for (int unit = share.begin; unit < share.begin + share.count; unit++) {
#pragma unroll 1
        for (int column = 0; column < k; column += SLOT_COLUMNS, n++) {
            int bytes = 2 * (k - column < SLOT_COLUMNS ? k - column : SLOT_COLUMNS);
            ring.begin(n, 8 * bytes);
            if (lane < 8)
                copy_bulk(ring.address(n) + lane * SLOT_STRIDE, w + (u64)(unit * 8 + lane) * k + column, bytes,
                          ring.filled(n), policy);
        }
    }
}
