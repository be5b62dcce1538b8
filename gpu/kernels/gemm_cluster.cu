// Products of 17 to 64 rows of x by weights in bf16: see gemm.cuh.
//
// A cluster of four blocks makes a tile of COLUMNS by TOKENS, one segment each, transposed: w is the left operand of the
// tensor cores. Where that fills the GPU better, or few multiprocessors are free, two blocks make a tile, two segments each,
// or one does, segment by segment. One warp has boxes of 64 elements copied, groups of four warps multiply 64 columns each,
// four warps work out what rows are scaled by. Then each block adds up the segments of its share of the rows and does what
// follows: a gate, a sum and the first half of the norm behind it, or the heads of queries, keys and values.

// What rows are multiplied by: 1 / rms of rows with these sums of squares [m, k / 8], or `given` [m], or nothing.
struct RowScale {
    const float *squares, *given;
    float eps;
    // Of COUNT rows, `step` apart, at once: the loads of all are under way together. All lanes of a warp call it.
    template <int COUNT>
    __device__ __forceinline__ void find(float (&scale)[COUNT], int row, int step, int m, int k) const {
        float sum[COUNT] = {};
        if (squares) {
            const float* groups = squares + (u64)row * (k / 8);
#pragma unroll 4
            for (int i = threadIdx.x % 32; i < k / 8; i += 32)
#pragma unroll
                for (int j = 0; j < COUNT; j++)
                    if (row + j * step < m) sum[j] = __fadd_rn(sum[j], __ldcg(groups + (u64)j * step * (k / 8) + i));
        }
#pragma unroll
        for (int j = 0; j < COUNT; j++) {
            bool valid = row + j * step < m;
            scale[j] = squares && valid ? rsqrtf(warp_sum(sum[j]) / k + eps) : given && valid ? given[row + j * step] : 1.0f;
        }
    }
};

// BLOCKS of a tile, which share out its segments.
template <int COLUMNS, int TOKENS, int STAGES, int BLOCKS>
struct ClusterProduct {
    static constexpr int GROUPS = COLUMNS == 64 ? 2 : COLUMNS / 64, WARPS = 4 * GROUPS;  // those that multiply
    static constexpr int THREADS = 32 * (WARPS + 1 + SCALE_WARPS);
    static constexpr int GROUP_TOKENS = COLUMNS == 64 ? TOKENS / 2 : TOKENS;  // of a group
    static constexpr int W_BYTES = COLUMNS * 128, STAGE_BYTES = W_BYTES + TOKENS * 128;
    static constexpr int SHARE = TOKENS / BLOCKS;  // rows that a block finishes
    static constexpr int SEGMENTS = SPLIT_SEGMENTS / BLOCKS;  // of a block
    static constexpr int PITCH = COLUMNS + 4;      // scattered stores of a warp meet 32 banks

    const TensorMap &w, &x;
    int m, n, k, rank, row0, share0, column0, begin, count;  // rows of the tile and of the block's share; blocks of k
    u64 *full, *empty, *scaled;
    u32 ring;
    float *turned, *scales;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    __device__ __forceinline__ void produce() const {
        auto load_w = [&](int block) {
            int slot = block % STAGES;
            barrier_expect(full + slot, STAGE_BYTES);
            copy_box(ring + slot * STAGE_BYTES, w, (begin + block) * 64, column0, full + slot);
        };
        auto load_x = [&](int block) {
            int slot = block % STAGES;
            copy_box(ring + slot * STAGE_BYTES + W_BYTES, x, (begin + block) * 64, row0, full + slot);
        };
        for (int block = 0; block < STAGES && block < count; block++) load_w(block);
        wait_for_producer();
        for (int block = 0; block < STAGES && block < count; block++) load_x(block);
        for (int block = STAGES; block < count; block++) {
            barrier_wait(empty + block % STAGES, (block / STAGES & 1) ^ 1);
            load_w(block);
            load_x(block);
        }
    }

    // Of all rows of this block; warps that do not multiply call it.
    __device__ __forceinline__ void scale_rows(const RowScale& by) const {
        wait_for_producer();
        constexpr int COUNT = SHARE / SCALE_WARPS;
        float scale[COUNT];
        int own = warp - WARPS - 1;
        by.find(scale, share0 + own, SCALE_WARPS, m, k);
#pragma unroll
        for (int j = 0; j < COUNT; j++)
            if (lane == 0) scales[own + j * SCALE_WARPS] = scale[j];
        __syncwarp();
        if (lane == 0) barrier_arrive(scaled);
    }

    // Leaves this block's segment, or the sum of its segments, in shared memory, and the last of two behind what precedes it
    // where those of another block come before both; all blocks of the cluster have when it returns.
    __device__ __forceinline__ void multiply_segments() const {
        float acc[GROUP_TOKENS / 2], total[GROUP_TOKENS / 2];
#pragma unroll
        for (int i = 0; i < GROUP_TOKENS / 2; i++) acc[i] = 0.0f;
        int group = warp / 4, slot = 0;
        u32 phase = 0;
        u32 w_at = COLUMNS == 64 ? 0 : group * 64 * 128, x_at = W_BYTES + (COLUMNS == 64 ? group * GROUP_TOKENS * 128 : 0);
        auto end_of = [&](int segment) { return segment_begin(k, rank * SEGMENTS + segment + 1, SPLIT_SEGMENTS) - begin; };
        int segment = 0, first = 0, next = end_of(0);
        auto end_segment = [&]() {
#pragma unroll
            for (int i = 0; i < GROUP_TOKENS / 2; i++) {
                total[i] = segment ? add(total[i], acc[i]) : acc[i];
                acc[i] = 0.0f;
            }
            first = next;
            next = end_of(++segment);
        };
        for (int block = 0; block < count; block++) {
            while (SEGMENTS > 1 && block == next) end_segment();
            barrier_wait(full + slot, phase);
            u32 stage = ring + slot * STAGE_BYTES;
            matrices_fence();
#pragma unroll
            for (int step = 0; step < 4; step++)
                multiply(acc, matrix_descriptor(stage + w_at + step * 32), matrix_descriptor(stage + x_at + step * 32),
                         block > first || step > 0);
            matrices_commit();
            matrices_wait<0>();
            if (lane == 0) barrier_arrive(empty + slot);
            if (++slot == STAGES) slot = 0, phase ^= 1;
        }
        bool apart = BLOCKS == 2 && rank == 1;
        while (SEGMENTS > 1 && segment < SEGMENTS - apart) end_segment();
        asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory");  // the ring is free
        int column = (COLUMNS == 64 ? warp % 4 : warp) * 16 + lane / 4;
        int token = (COLUMNS == 64 ? group * GROUP_TOKENS : 0) + 2 * (lane % 4);
        float* mine = turned + token * PITCH + column;
        auto leave = [&](float* at, const float (&part)[GROUP_TOKENS / 2]) {
#pragma unroll
            for (int i = 0; i < GROUP_TOKENS / 2; i++) at[(i / 4 * 8 + i % 2) * PITCH + i % 4 / 2 * 8] = part[i];
        };
        leave(mine, SEGMENTS > 1 ? total : acc);
        if (apart) leave(mine + TOKENS * PITCH, acc);
        barrier_wait(scaled, 0);
        cluster_sync();
    }

    // Sum of all segments at a place in the tile, in their order.
    template <typename T>
    __device__ __forceinline__ T sum_segments(int row, int column) const {
        const T* at = (const T*)(turned + (share0 - row0 + row) * PITCH + column);
        if (BLOCKS == 1) return *at;
        T v = read_peer(at, 0);
#pragma unroll
        for (int s = 1; s < BLOCKS; s++) v = add(v, read_peer(at, s));
        return BLOCKS == 2 ? add(v, read_peer(at + TOKENS * PITCH * sizeof(float) / sizeof(T), 1)) : v;
    }

    __device__ __forceinline__ void finish(void* out, int output, NextNorm next) const {
        constexpr int QUADS = COLUMNS / 4, COUNT = (SHARE * QUADS + 32 * WARPS - 1) / (32 * WARPS);
        multiply_segments();
        wait_for_producer();
        float4 v[COUNT], old[COUNT];
        // four columns of a row each
        auto own_row = [&](int i) { return (i * 32 * WARPS + (int)threadIdx.x) / QUADS; };
        auto column_of = [&](int i) { return column0 + (i * 32 * WARPS + (int)threadIdx.x) % QUADS * 4; };
        auto valid = [&](int i) { return own_row(i) < SHARE && share0 + own_row(i) < m && column_of(i) < n; };
        auto place = [&](int i) { return (u64)(share0 + own_row(i)) * n + column_of(i); };
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (output == ADD_F32 && valid(i)) old[i] = __ldcg((const float4*)((const float*)out + place(i)));
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            v[i] = sum_segments<float4>(own_row(i) < SHARE ? own_row(i) : 0, column_of(i) - column0);
        cluster_arrive();  // others may end
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            float scale = scales[own_row(i) < SHARE ? own_row(i) : 0];
            v[i] = make_float4(v[i].x * scale, v[i].y * scale, v[i].z * scale, v[i].w * scale);
            if (output != ADD_F32) {
                if (valid(i)) store_four(output, out, place(i), v[i], v[i]);
                continue;
            }
            v[i] = make_float4(__fadd_rn(old[i].x, v[i].x), __fadd_rn(old[i].y, v[i].y),
                               __fadd_rn(old[i].z, v[i].z), __fadd_rn(old[i].w, v[i].w));
            if (valid(i)) *(float4*)((float*)out + place(i)) = v[i];
            if (!next.weighed) continue;
            float sum = __fadd_rn(square_pair(v[i].x, v[i].y), square_pair(v[i].z, v[i].w));
            sum = __fadd_rn(sum, __shfl_xor_sync(FULL_WARP, sum, 1));
            if (!valid(i)) continue;
            float4 weight = *(const float4*)(next.weight + column_of(i));
            *(uint2*)(next.weighed + place(i)) = make_uint2(pack_bf16(v[i].x * weight.x, v[i].y * weight.y),
                                                            pack_bf16(v[i].z * weight.z, v[i].w * weight.w));
            if (lane % 2 == 0) next.squares[place(i) / 8] = sum;
        }
        cluster_wait();
    }

    // The same where columns are heads of D elements.
    template <int D>
    __device__ __forceinline__ void finish_heads(const HeadOutput& to) const {
        constexpr int PER = D / 64, HEADS = COLUMNS / D, COUNT = (SHARE * HEADS + WARPS - 1) / WARPS;
        int all_heads = n / D;
        TokenTables<D, 1> of_tokens[COUNT];
        HeadTables<D, 1> tables[COUNT];
        // a head of a row each
        auto own_row = [&](int i) { return (i * WARPS + warp) / HEADS; };
        auto head_of = [&](int i) { return column0 / D + (i * WARPS + warp) % HEADS; };
        auto valid = [&](int i) { return own_row(i) < SHARE && share0 + own_row(i) < m && head_of(i) < all_heads; };
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (valid(i)) of_tokens[i].load(to, share0 + own_row(i)), tables[i].load(to, head_of(i));
        multiply_segments();
        wait_for_producer();
        float low[COUNT][1][PER], high[COUNT][1][PER];
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < PER; j++) {
                int row = own_row(i) < SHARE ? own_row(i) : 0, column = (i * WARPS + warp) % HEADS * D + lane * PER + j;
                low[i][0][j] = sum_segments<float>(row, column);
                high[i][0][j] = sum_segments<float>(row, column + D / 2);
            }
        cluster_arrive();
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (!valid(i)) continue;
            float scale = scales[own_row(i)];
#pragma unroll
            for (int j = 0; j < PER; j++) {
                u32 pair = pack_bf16(low[i][0][j] * scale, high[i][0][j] * scale);
                low[i][0][j] = low_bf16(pair);
                high[i][0][j] = high_bf16(pair);
            }
            store_head<D, false, 1>(to, of_tokens[i], tables[i], low[i], high[i], share0 + own_row(i), head_of(i), true);
        }
        cluster_wait();
    }
};

// `end_with` is what becomes of the product: it is called in the warps that multiply.
template <int COLUMNS, int TOKENS, int STAGES, int BLOCKS, typename End>
DEVICE void cluster_product(const TensorMap& w, const TensorMap& x, int m, int n, int k, const RowScale& by,
                            const End& end_with) {
    using Product = ClusterProduct<COLUMNS, TOKENS, STAGES, BLOCKS>;
    extern __shared__ u8 memory[];
    __shared__ u64 full[STAGES], empty[STAGES], scaled;
    __shared__ float scales[Product::SHARE];
    u32 ring = shared_address(memory) + 1023 & ~1023u;
    allow_consumer();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, Product::WARPS);
        }
        barrier_init(&scaled, SCALE_WARPS);
        barrier_init_fence();
    }
    __syncthreads();
    int tile = blockIdx.x / BLOCKS, rows = (m + TOKENS - 1) / TOKENS, rank = blockIdx.x % BLOCKS;
    int begin = segment_begin(k, rank, BLOCKS), end = segment_begin(k, rank + 1, BLOCKS);
    int row0 = tile % rows * TOKENS;
    Product product{w, x, m, n, k, rank, row0, row0 + rank * Product::SHARE, tile / rows * COLUMNS, begin, end - begin,
                    full, empty, &scaled, ring, (float*)(memory + (ring - shared_address(memory))), scales};
    int warp = threadIdx.x / 32;
    if (warp < Product::WARPS) {
        end_with(product);
    } else {
        if (warp > Product::WARPS) product.scale_rows(by);
        else if (threadIdx.x % 32 == 0) product.produce();
        __syncwarp();
        cluster_sync();
        cluster_sync();
    }
}

#define CLUSTER_KERNEL(COLUMNS, TOKENS, STAGES, BLOCKS)          \
    extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1)    \
        __launch_bounds__(ClusterProduct<COLUMNS, TOKENS, STAGES, BLOCKS>::THREADS, BLOCKS == 1 && COLUMNS < 192 ? 2 : 1)

struct PlainEnd {
    void* out;
    int output;
    NextNorm next;
    template <typename Product>
    __device__ __forceinline__ void operator()(const Product& product) const {
        product.finish(out, output, next);
    }
};

#define CLUSTER(NAME, COLUMNS, TOKENS, STAGES, BLOCKS)                                                               \
    CLUSTER_KERNEL(COLUMNS, TOKENS, STAGES, BLOCKS) gemm_cluster_##NAME(                                             \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x, void* out, int m, int n, int k,     \
        int output, const float* next_weight, u16* weighed, float* next_squares, const float* squares,               \
        const float* given, float eps) {                                                                             \
        cluster_product<COLUMNS, TOKENS, STAGES, BLOCKS>(                                                            \
            w, x, m, n, k, RowScale{squares, given, eps},                                                            \
            PlainEnd{out, output, NextNorm{next_weight, weighed, next_squares}});                                    \
    }
CLUSTER(64_32, 64, 32, 8, 4)
CLUSTER(128_32, 128, 32, 5, 4)
CLUSTER(192_32, 192, 32, 7, 4)
CLUSTER(256_32, 256, 32, 5, 4)
CLUSTER(64_64, 64, 64, 6, 4)
CLUSTER(128_64, 128, 64, 4, 4)
CLUSTER(192_64, 192, 64, 6, 4)
CLUSTER(256_64, 256, 64, 5, 4)
CLUSTER(64_32_two, 64, 32, 16, 2)
CLUSTER(64_64_two, 64, 64, 12, 2)
CLUSTER(128_32_one, 128, 32, 5, 1)
CLUSTER(192_32_one, 192, 32, 7, 1)
CLUSTER(192_64_one, 192, 64, 6, 1)

// The product of queries, keys and values.
struct HeadProduct {
    TensorMap w, x;
    HeadOutput to;
};

template <int D>
struct HeadEnd {
    const HeadOutput& to;
    template <typename Product>
    __device__ __forceinline__ void operator()(const Product& product) const {
        product.template finish_heads<D>(to);
    }
};

#define CLUSTER_HEADS(NAME, D, COLUMNS, TOKENS, STAGES)                                                              \
    CLUSTER_KERNEL(COLUMNS, TOKENS, STAGES, 4) gemm_heads_##NAME(const __grid_constant__ HeadProduct p, int m, int n, \
                                                                int k, const float* squares, const float* given,     \
                                                                float eps) {                                         \
        cluster_product<COLUMNS, TOKENS, STAGES, 4>(p.w, p.x, m, n, k, RowScale{squares, given, eps},                \
                                                    HeadEnd<D>{p.to});                                               \
    }
CLUSTER_HEADS(64_32, 64, 256, 32, 5)
CLUSTER_HEADS(64_64, 64, 256, 64, 5)
CLUSTER_HEADS(128_32, 128, 256, 32, 5)
CLUSTER_HEADS(128_64, 128, 256, 64, 5)
CLUSTER_HEADS(64_32_half, 64, 128, 32, 4)
CLUSTER_HEADS(128_32_half, 128, 128, 32, 4)
