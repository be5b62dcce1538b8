// Products of hundreds of rows of x: see gemm.cuh.
//
// Pairs of blocks, which stay and take tile after tile: 256 rows of x, 128 each, by COLUMNS rows of w. In a block one warp
// has blocks of 64 elements copied into a ring, its rows of x and one half of those of w, which goes to both; it runs ahead
// into the next tile while this one is stored. Two groups of four warps multiply, 64 rows each. With FOLDED segments are
// summed one by one and added, else k is one run: the order of additions of the variant kernels.

#define MANY_ROWS 128
#define MANY_THREADS 384
#define MANY_WARPS 8  // that multiply
// Tiles at work together share what the L2 cache holds: so many pairs' rows by as many columns as there are pairs left.
#define MANY_ROW_GROUP 8

struct Tile {
    int row, column;
};

// Where the n-th tile begins, for the block of this rank in its pair.
template <int COLUMNS>
DEVICE Tile nth_tile(int index, int pairs, int columns, u32 rank) {
    int group = index / (MANY_ROW_GROUP * columns), within = index % (MANY_ROW_GROUP * columns);
    int left = pairs - group * MANY_ROW_GROUP, group_rows = left < MANY_ROW_GROUP ? left : MANY_ROW_GROUP;
    int pair = group * MANY_ROW_GROUP + within % group_rows;
    return {(int)(2 * pair + rank) * MANY_ROWS, within / group_rows * COLUMNS};
}

// Words of the four lanes that share a row, turned: lane i gets word i of each.
DEVICE void turn_quad(u32 (&w)[4]) {
    auto exchange = [](u32& low, u32& high, int mask) {
        bool upper = threadIdx.x & mask;
        u32 other = __shfl_xor_sync(FULL_WARP, upper ? low : high, mask);
        if (upper) low = other;
        else high = other;
    };
    exchange(w[0], w[1], 1);
    exchange(w[2], w[3], 1);
    exchange(w[0], w[2], 2);
    exchange(w[1], w[3], 2);
}

// Stores a row of which lane t of four holds columns 8j + 2t and the next; `at` is element (row, column) of the product.
template <int OUTPUT, int COLUMNS, typename Value>
DEVICE void store_row(void* out, u64 at, int columns_left, bool valid, Value value) {
    int t = threadIdx.x % 4;
    if constexpr (OUTPUT == ADD_F32 || OUTPUT == STORE_F32) {
        float* target = (float*)out + at + 2 * t;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            float2 v = make_float2(value(j, 0), value(j, 1));
            if (!valid || 8 * j >= columns_left) continue;
            if (OUTPUT == STORE_F32) *(float2*)(target + 8 * j) = v;
            else asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(target + 8 * j), "f"(v.x), "f"(v.y) : "memory");
        }
    } else {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 4) {
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v0 = value(j + i, 0), v1 = value(j + i, 1);
                words[i] = OUTPUT == STORE_BF16 ? pack_bf16(v0, v1) : __float_as_uint(silu_mul(v0, v1));
            }
            turn_quad(words);
            if (!valid || 8 * (j + t) >= columns_left) continue;
            u64 mine = at + 8 * (j + t);
            auto gated = [&](int i) { return pack_bf16(__uint_as_float(words[i]), __uint_as_float(words[i + 1])); };
            if (OUTPUT == STORE_BF16) *(uint4*)((u16*)out + mine) = make_uint4(words[0], words[1], words[2], words[3]);
            else *(uint2*)((u16*)out + mine / 2) = make_uint2(gated(0), gated(2));
        }
    }
}

template <int COLUMNS, int STAGES, bool FOLDED>
DEVICE void many(const TensorMap& w, const TensorMap& x, void* out, int m, int n, int k, int segments, int output,
                 const float* scales) {
    extern __shared__ u8 memory[];
    __shared__ u64 full[STAGES], empty[STAGES];
    constexpr u32 X_BYTES = MANY_ROWS * 128, STAGE_BYTES = X_BYTES + COLUMNS * 128;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 rank = cluster_rank();
    int columns = (n + COLUMNS - 1) / COLUMNS, pairs = (m + 2 * MANY_ROWS - 1) / (2 * MANY_ROWS);
    int first = blockIdx.x / 2, tiles = pairs * columns, step = gridDim.x / 2;
    u32 ring = shared_address(memory) + 1023 & ~1023u;
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
            int slot = 0;
            u32 phase = 1;
            wait_for_producer();
            for (int index = first; index < tiles; index += step) {
                Tile tile = nth_tile<COLUMNS>(index, pairs, columns, rank);
                u32 half = rank * (COLUMNS / 2);
                for (int at = 0; at < k; at += 64) {
                    barrier_wait(empty + slot, phase);
                    u32 stage = ring + slot * STAGE_BYTES;
                    barrier_expect(full + slot, STAGE_BYTES);
                    copy_box(stage, x, at, tile.row, full + slot);
                    copy_box_to_pair(stage + X_BYTES + half * 128, w, at, tile.column + half, full + slot);
                    if (++slot == STAGES) slot = 0, phase ^= 1;
                }
            }
        }
        __syncwarp();
    } else {
        TAKE_REGISTERS(232);
        int warp_row = warp * 16 + lane / 4;
        u32 offset = warp / 4 * 64 * 128;
        int slot = 0;
        u32 phase = 0;
        float acc[COLUMNS / 2], total[FOLDED ? COLUMNS / 2 : 1];
        auto release = [&](int which) {
            if (lane < 2) barrier_arrive_peer(empty + which, lane);
        };
        auto store = [&](Tile tile, float (&sum)[COLUMNS / 2]) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = tile.row + warp_row + 8 * half;
                float scale = scales && row < m ? scales[row] : 1.0f;
                auto value = [&](int j, int i) { return sum[4 * j + 2 * half + i] * scale; };
                u64 at = (u64)row * n + tile.column;
                int left = n - tile.column;
                bool valid = row < m;
                switch (output) {
                    case STORE_BF16: store_row<STORE_BF16, COLUMNS>(out, at, left, valid, value); break;
                    case STORE_F32: store_row<STORE_F32, COLUMNS>(out, at, left, valid, value); break;
                    case ADD_F32: store_row<ADD_F32, COLUMNS>(out, at, left, valid, value); break;
                    default: store_row<GATE_BF16, COLUMNS>(out, at, left, valid, value);
                }
            }
        };
        wait_for_producer();
        for (int index = first; index < tiles; index += step) {
#pragma unroll
            for (int i = 0; i < (FOLDED ? COLUMNS / 2 : 1); i++) total[i] = -0.0f;  // what is added to it stays as it is
            for (int segment = 0; segment < segments; segment++) {
                int count = segment_begin(k, segment + 1, segments) - segment_begin(k, segment, segments);
                if (count == 0) {
#pragma unroll
                    for (int i = 0; i < COLUMNS / 2; i++) acc[i] = 0.0f;
                }
                int previous = -1;
                for (int block = 0; block < count; block++) {
                    barrier_wait(full + slot, phase);
                    u32 stage = ring + slot * STAGE_BYTES;
                    matrices_fence();
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        multiply(acc, matrix_descriptor(stage + offset + i * 32), matrix_descriptor(stage + X_BYTES + i * 32),
                                 block > 0 || i > 0);
                    matrices_commit();
                    if (previous >= 0) {
                        matrices_wait<1>();
                        release(previous);
                    }
                    previous = slot;
                    if (++slot == STAGES) slot = 0, phase ^= 1;
                }
                matrices_wait<0>();
                if (previous >= 0) release(previous);
                if constexpr (FOLDED) {
#pragma unroll
                    for (int i = 0; i < COLUMNS / 2; i++) total[i] += acc[i];
                }
            }
            Tile tile = nth_tile<COLUMNS>(index, pairs, columns, rank);
            if constexpr (FOLDED) store(tile, total);
            else store(tile, acc);
        }
    }
    cluster_sync();
}

#define MANY(NAME, COLUMNS, STAGES, FOLDED)                                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(MANY_THREADS, 1) gemm_many_##NAME(     \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, void* out, int m, int n, int k, \
        int segments, int output, const float* scales) {                                                         \
        many<COLUMNS, STAGES, FOLDED>(w, x, out, m, n, k, segments, output, scales);                              \
    }
MANY(64_fold, 64, 8, true)
MANY(96_fold, 96, 7, true)
MANY(128_fold, 128, 6, true)
MANY(192_fold, 192, 5, true)
MANY(192, 192, 5, false)
