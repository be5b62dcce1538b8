// Shares of weights, and the ring in shared memory that they pass.

#define SLOT_COLUMNS 1024
#define SLOT_BLOCKS (SLOT_COLUMNS / 32)
#define SLOT_STRIDE (2 * SLOT_COLUMNS + 16)  // bytes; rows of one chunk meet 32 banks
#define SLOT_BYTES (8 * SLOT_STRIDE)
#define MAX_SLOTS 12
#define WIDE_PASS 4  // units of a group at once

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

// Weights pass in the order of their use. Slot n holds up to SLOT_COLUMNS columns of 8 rows.
struct Ring {
    u32 base;
    u64 *full, *empty;
    volatile u32* filled;  // the slot that a place was last filled with: a phase bit only tells neighbouring rounds apart
    u32 size, inverse;     // places, and 2^32 / size rounded up
    __device__ __forceinline__ u32 round(u32 n) const { return __umulhi(n, inverse); }
    __device__ __forceinline__ u32 place(u32 n) const { return n - round(n) * size; }
    __device__ __forceinline__ void wait(u32 n) const {
        u32 p = place(n);
        while (filled[p] != n) {}
        barrier_wait(full + p, round(n) & 1);
    }
};

// Copies a block's share of a matrix, from slot n on.
DEVICE void copy_weights(const Ring& ring, u32& n, const u16* w, const Share& share) {
    int lane = threadIdx.x % 32, k = share.columns;
#pragma unroll 1
    for (int unit = share.begin; unit < share.begin + share.count; unit++) {
#pragma unroll 1
        for (int column = 0; column < k; column += SLOT_COLUMNS, n++) {
            int bytes = 2 * (k - column < SLOT_COLUMNS ? k - column : SLOT_COLUMNS);
            u32 place = ring.place(n);
            if (n >= ring.size) barrier_wait(ring.empty + place, (ring.round(n) - 1) & 1);
            // one at a time: what blocks tell each other would wait behind a burst of them
            if (n > 0) barrier_wait(ring.full + ring.place(n - 1), ring.round(n - 1) & 1);
            if (lane == 0) {
                barrier_expect(ring.full + place, 8 * bytes);
                ring.filled[place] = n;
            }
            __syncwarp();
            if (lane < 8)
                copy_bulk(ring.base + place * SLOT_BYTES + lane * SLOT_STRIDE, w + (u64)(unit * 8 + lane) * k + column,
                          bytes, ring.full + place);
        }
    }
}

