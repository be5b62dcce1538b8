// Header of the products of hundreds of rows of x.
//
// Pairs of blocks, which stay and take tile after tile. A block makes 128 rows of x by COLUMNS rows of w: one warp has
// blocks of 128 bytes of each copied into a ring, of what the pair shares one half, which goes to both; it runs ahead into
// the next tile while this one is stored. Two groups of four warps multiply, 64 rows each, and leave their sums in shared
// memory, from where the copy engine stores or adds them.

#define MANY_THREADS 384
#define MANY_WARPS 8  // that multiply
// Tiles at work together share what the L2 cache holds: so many pairs' rows by as many columns as there are pairs left.
#define MANY_ROW_GROUP 8
// Up to so many rows reading weights is what takes time.
#define MANY_EARLY_ROWS 256
// What the blocks of a pair share.
enum Pair {
    STACKED,  // rows of w; one has the 128 rows of x behind those of the other
    BESIDE,   // rows of x; one has the COLUMNS rows of w behind those of the other
};

// Stages of the ring, and boxes of a group of warps behind it.
DEVICE constexpr int many_stages(int columns) {
    int fit = MANY_RING_BYTES / ((MANY_ROWS + columns) * 128);
    return columns >= 128 && fit > MANY_STAGES ? MANY_STAGES : fit;
}
DEVICE constexpr int many_buffers(int columns) {
    return (MANY_SHARED_BYTES - many_stages(columns) * (MANY_ROWS + columns) * 128) / (2 * MANY_BOX_BYTES);
}

// Columns of the product that a box holds: as many as wanted, if they divide a tile.
DEVICE constexpr int box_columns(int columns, int wanted) { return columns % wanted ? box_columns(columns, wanted / 2) : wanted; }

struct Tile {
    int row, column;
};

// A named barrier, of a group of four warps that multiply.
DEVICE void group_sync() { asm volatile("bar.sync %0, 128;" ::"r"(1 + threadIdx.x / 128) : "memory"); }

// Where the n-th tile begins, for the block of this rank in its pair.
template <int COLUMNS, Pair PAIR>
DEVICE Tile nth_tile(int index, int rows, int columns, int rank) {
    int group = index / (MANY_ROW_GROUP * columns), within = index % (MANY_ROW_GROUP * columns);
    int left = rows - group * MANY_ROW_GROUP, group_rows = left < MANY_ROW_GROUP ? left : MANY_ROW_GROUP;
    int row = group * MANY_ROW_GROUP + within % group_rows, column = within / group_rows;
    return {(PAIR == STACKED ? 2 * row + rank : row) * MANY_ROWS, (PAIR == BESIDE ? 2 * column + rank : column) * COLUMNS};
}

// Where byte `byte` of row `row` of a box lies that the copy engine takes from shared memory, rows of ROW_BYTES, swizzled.
template <int ROW_BYTES>
DEVICE u32 box_place(u32 row, u32 byte) {
    return row * ROW_BYTES + (byte ^ row * ROW_BYTES / 128 % (ROW_BYTES / 16) * 16);
}

// Stores the sums of a group of warps, 64 rows by COLUMNS at (row0, column0) of the product, box by box through the group's
// buffers; `buffer` is the next of them. `value(j, half, i)`: column 8j + 2t + i of row g, or of row g + 8, of a warp's 16.
template <int OUTPUT, int COLUMNS, typename Value>
DEVICE void store_group(const TensorMap& out, u32 buffers, int& buffer, int row0, int column0, Value value) {
    constexpr bool WIDE = OUTPUT == ADD_F32 || OUTPUT == STORE_F32;
    constexpr int MOST = MANY_BOX_BYTES / 64;  // bytes of a row
    constexpr int BOX = box_columns(COLUMNS, WIDE ? MOST / 4 : OUTPUT == STORE_BF16 ? MOST / 2 : MOST);
    constexpr int ROW_BYTES = WIDE ? 4 * BOX : OUTPUT == STORE_BF16 ? 2 * BOX : BOX;
    int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4, row = threadIdx.x / 32 % 4 * 16 + g;
    bool leads = threadIdx.x % 128 == 0, odd = t % 2;
#pragma unroll
    for (int first = 0; first < COLUMNS; first += BOX) {
        u32 box = buffers + buffer * MANY_BOX_BYTES;
        if (leads) store_wait_read<many_buffers(COLUMNS) - 1>();
        group_sync();
#pragma unroll
        for (int j = 0; OUTPUT == STORE_BF16 && j < BOX / 8; j += 2) {
            int matrix = threadIdx.x % 32 / 8;
            auto word = [&](int j, int half) { return pack_bf16(value(first / 8 + j, half, 0), value(first / 8 + j, half, 1)); };
            store_matrices(box + box_place<ROW_BYTES>(row - g + threadIdx.x % 8 + matrix % 2 * 8, 16 * (j + matrix / 2)),
                           make_uint4(word(j, 0), word(j, 1), word(j + 1, 0), word(j + 1, 1)));
        }
#pragma unroll
        for (int half = 0; OUTPUT != STORE_BF16 && half < 2; half++) {
            auto place = [&](u32 byte) { return box + box_place<ROW_BYTES>(row + 8 * half, byte); };
#pragma unroll
            for (int j = 0; j < BOX / 8; j++) {
                auto v = [&](int j, int i) { return value(first / 8 + j, half, i); };
                if constexpr (WIDE) {
                    store_shared(place(32 * j + 8 * t), v(j, 0), v(j, 1));
                } else if (j % 2 == 0) {
                    // lanes 2i and 2i + 1 hold neighbours: one takes those of j, the other those of j + 1
                    float low = silu_mul(v(j, 0), v(j, 1)), high = silu_mul(v(j + 1, 0), v(j + 1, 1));
                    float other = __shfl_xor_sync(FULL_WARP, odd ? low : high, 1);
                    u32 pair = odd ? pack_bf16(other, high) : pack_bf16(low, other);
                    store_shared(place(8 * (j + odd) + t / 2 * 4), pair);
                }
            }
        }
        shared_fence();
        group_sync();
        if (leads) {
            int column = column0 + first;
            if (OUTPUT == ADD_F32) add_box(out, box, column, row0);
            else store_box(out, box, OUTPUT == GATE_BF16 ? column / 2 : column, row0);
            store_commit();
        }
        if (++buffer == many_buffers(COLUMNS)) buffer = 0;
    }
}

// The ring as the warps that multiply see it. `x` and `w` are the operands of this group of warps in the stage that is next.
template <int COLUMNS>
struct Ring {
    static constexpr int STAGES = many_stages(COLUMNS);
    static constexpr u32 X_BYTES = MANY_ROWS * 128, STAGE_BYTES = X_BYTES + COLUMNS * 128;
    u32 stages;
    u64 *full, *empty;
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ Ring(u32 stages, u64* full, u64* empty) : stages(stages), full(full), empty(empty) {}
    // Returns once the next stage is filled.
    __device__ __forceinline__ void wait() const { barrier_wait(full + slot, phase); }
    __device__ __forceinline__ u64 x() const {
        return matrix_descriptor(stages + slot * STAGE_BYTES + threadIdx.x / 128 * 64 * 128);
    }
    __device__ __forceinline__ u64 w() const { return matrix_descriptor(stages + slot * STAGE_BYTES + X_BYTES); }
    // Goes on to the one after; gives this one's number, for `release`.
    __device__ __forceinline__ int next() {
        int before = slot;
        if (++slot == STAGES) slot = 0, phase ^= 1;
        return before;
    }
    // This warp has read a stage: both blocks of the pair may fill it again.
    __device__ __forceinline__ void release(int which) const {
        if (threadIdx.x % 32 < 2) barrier_arrive_peer(empty + which, threadIdx.x % 32);
    }
};

// Terms say how a tile is summed:
//   BLOCK          elements of 128 bytes of an operand
//   EARLY          whether weights may be asked for before the launch before has ended
//   begin()        what the warps that multiply do before their first tile
//   sum(sum, ring, tile)   sums a tile in them
template <int COLUMNS, Pair PAIR, typename Terms>
DEVICE void many(const TensorMap& w, const TensorMap& x, const TensorMap& x_end, const TensorMap& out, int m, int n, int k,
                 int output, const float* scales, Terms terms) {
    extern __shared__ u8 memory[];
    using Stages = Ring<COLUMNS>;
    constexpr int BLOCK = Terms::BLOCK, STAGES = Stages::STAGES;
    static_assert(many_buffers(COLUMNS) > 0);
    __shared__ u64 full[STAGES], empty[STAGES];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    constexpr int TILE_ROWS = PAIR == STACKED ? 2 * MANY_ROWS : MANY_ROWS;
    constexpr int TILE_COLUMNS = PAIR == BESIDE ? 2 * COLUMNS : COLUMNS;
    int rank = cluster_rank();
    int columns = (n + TILE_COLUMNS - 1) / TILE_COLUMNS, rows = (m + TILE_ROWS - 1) / TILE_ROWS;
    int first = blockIdx.x / 2, tiles = rows * columns, step = gridDim.x / 2;
    u32 stages = shared_address(memory) + 1023 & ~1023u;
    allow_consumer();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, 2 * MANY_WARPS);
        }
        barrier_init_fence();
    }
    cluster_sync();
    if (warp >= MANY_WARPS) {
        GIVE_REGISTERS(40);
        if (warp == MANY_WARPS && lane == 0) {
            int slot = 0, early = 0;  // blocks of the first tile whose weights are asked for before x is there
            u32 phase = 1;
            constexpr int OWN_ROWS = PAIR == BESIDE ? MANY_ROWS / 2 : MANY_ROWS;  // of x that this block copies, at most
            int own = PAIR == BESIDE ? rank * OWN_ROWS : 0;
            // rows of a tile that are copied
            auto rows_of = [&](Tile tile) {
                int left = m - tile.row;
                return left <= 0 ? 0 : left < MANY_ROWS ? (left + MANY_PART_ROWS - 1) / MANY_PART_ROWS * MANY_PART_ROWS : MANY_ROWS;
            };
            auto load_weights = [&](int slot, Tile tile, int at) {
                u32 target = stages + slot * Stages::STAGE_BYTES + Stages::X_BYTES;
                barrier_expect(full + slot, (COLUMNS + rows_of(tile)) * 128);
                if constexpr (PAIR == STACKED) {
                    int half = rank * (COLUMNS / 2);
                    copy_box_to_pair(target + half * 128, w, at, tile.column + half, full + slot);
                } else {
                    copy_box(target, w, at, tile.column, full + slot);
                }
            };
            auto load_rows = [&](int slot, Tile tile, int at) {
                int count = rows_of(tile) - own;
                auto load = [&](const TensorMap& map, int row) {
                    u32 target = stages + slot * Stages::STAGE_BYTES + (own + row) * 128;
                    if constexpr (PAIR == STACKED) copy_box(target, map, at, tile.row + own + row, full + slot);
                    else copy_box_to_pair(target, map, at, tile.row + own + row, full + slot);
                };
                if (count >= OWN_ROWS) return load(x, 0);
                for (int row = 0; row < count; row += MANY_PART_ROWS) load(x_end, row);
            };
            if (Terms::EARLY && m <= MANY_EARLY_ROWS) {
                Tile tile = nth_tile<COLUMNS, PAIR>(first, rows, columns, rank);
                for (; early < STAGES && BLOCK * early < k; early++) load_weights(early, tile, BLOCK * early);
            }
            wait_for_producer();
            for (int index = first; index < tiles; index += step) {
                Tile tile = nth_tile<COLUMNS, PAIR>(index, rows, columns, rank);
                for (int at = 0; at < k; at += BLOCK) {
                    if (index > first || at >= BLOCK * early) {
                        barrier_wait(empty + slot, phase);
                        load_weights(slot, tile, at);
                    }
                    load_rows(slot, tile, at);
                    if (++slot == STAGES) slot = 0, phase ^= 1;
                }
            }
        }
        __syncwarp();
    } else {
        TAKE_REGISTERS(232);
        int warp_row = warp * 16 + lane / 4;
        float sum[COLUMNS / 2];
        Stages ring(stages, full, empty);
        int group = warp / 4, buffer = 0;
        u32 buffers = stages + STAGES * Stages::STAGE_BYTES + group * many_buffers(COLUMNS) * MANY_BOX_BYTES;
        auto store = [&](Tile tile, const float (&sum)[COLUMNS / 2], const float (&scale)[2]) {
            auto value = [&](int j, int half, int i) { return sum[4 * j + 2 * half + i] * scale[half]; };
            int row = tile.row + 64 * group;
            switch (output) {
                case STORE_BF16: return store_group<STORE_BF16, COLUMNS>(out, buffers, buffer, row, tile.column, value);
                case STORE_F32: return store_group<STORE_F32, COLUMNS>(out, buffers, buffer, row, tile.column, value);
                case ADD_F32: return store_group<ADD_F32, COLUMNS>(out, buffers, buffer, row, tile.column, value);
                default: store_group<GATE_BF16, COLUMNS>(out, buffers, buffer, row, tile.column, value);
            }
        };
        wait_for_producer();
        terms.begin();
        for (int index = first; index < tiles; index += step) {
            Tile tile = nth_tile<COLUMNS, PAIR>(index, rows, columns, rank);
            float scale[2];  // asked for before they are needed
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = tile.row + warp_row + 8 * half;
                scale[half] = scales && row < m ? scales[row] : 1.0f;
            }
            terms.sum(sum, ring, tile);
            store(tile, sum, scale);
        }
        store_wait();
    }
    cluster_sync();
}
