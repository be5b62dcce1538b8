// Products of hundreds of rows of x in bf16: see gemm.cuh and gemm_many.cuh. With FOLDED segments are summed one by one and
// added, else k is one run: the order of additions of the variant kernels.

// Blocks by which the second group of warps of a kernel that takes k as one run stays behind the first: one multiplies while
// the other stores.
#define MANY_LAG 2

// A named barrier that sets the groups apart.
DEVICE void lag_arrive() { asm volatile("bar.arrive 3, 256;" ::: "memory"); }
DEVICE void lag_wait() { asm volatile("bar.sync 3, 256;" ::: "memory"); }

template <int COLUMNS, bool FOLDED>
struct Segments {
    static constexpr int BLOCK = 64;
    static constexpr bool EARLY = true;
    int k, segments;
    bool ahead;
    __device__ __forceinline__ Segments(int k, int segments)
        : k(k), segments(segments), ahead(!FOLDED && threadIdx.x / 128 == 0) {}
    __device__ __forceinline__ void begin() const {
        if (!FOLDED && threadIdx.x / 128 == 1) lag_wait();
    }
    __device__ __forceinline__ void let_follow() {
        if (ahead) lag_arrive();
        ahead = false;
    }
    // the sum of a run of k
    template <typename Stages>
    __device__ __forceinline__ void sum_segment(float (&sum)[COLUMNS / 2], Stages& ring, int segment) {
        int count = segment_begin(k, segment + 1, segments) - segment_begin(k, segment, segments);
        if (count == 0) {
#pragma unroll
            for (int i = 0; i < COLUMNS / 2; i++) sum[i] = 0.0f;
        }
        int previous = -1;
        for (int block = 0; block < count; block++) {
            ring.wait();
            u64 a = ring.x(), b = ring.w();
            matrices_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) multiply(sum, advance(a, i * 32), advance(b, i * 32), block > 0 || i > 0);
            matrices_commit();
            if (previous >= 0) {
                matrices_wait<1>();
                ring.release(previous);
            }
            if (block == MANY_LAG) let_follow();
            previous = ring.next();
        }
        matrices_wait<0>();
        if (previous >= 0) ring.release(previous);
    }
    template <typename Stages>
    __device__ __forceinline__ void sum(float (&sum)[COLUMNS / 2], Stages& ring, Tile) {
        sum_segment(sum, ring, 0);
        if constexpr (FOLDED) {
            float part[COLUMNS / 2];
            for (int segment = 1; segment < segments; segment++) {
                sum_segment(part, ring, segment);
#pragma unroll
                for (int i = 0; i < COLUMNS / 2; i++) sum[i] += part[i];
            }
        }
        let_follow();
    }
};

#define MANY(NAME, COLUMNS, STAGES, BUFFERS, PAIR, FOLDED)                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(MANY_THREADS, 1) gemm_many_##NAME(    \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x,                                \
        const __grid_constant__ TensorMap x_end, const __grid_constant__ TensorMap out, int m, int n, int k,     \
        int segments, int output, const float* scales) {                                                         \
        many<COLUMNS, STAGES, BUFFERS, PAIR>(w, x, x_end, out, m, n, k, output, scales,                          \
                                             Segments<COLUMNS, FOLDED>(k, segments));                            \
    }
MANY(64_fold, 64, 8, 1, STACKED, true)
MANY(96_fold, 96, 7, 1, STACKED, true)
MANY(128_fold, 128, 6, 1, STACKED, true)
MANY(192_fold, 192, 5, 1, STACKED, true)
MANY(128_fold_beside, 128, 6, 1, BESIDE, true)
MANY(192_fold_beside, 192, 5, 1, BESIDE, true)
MANY(192, 192, 5, 1, STACKED, false)
MANY(256, 256, 4, 2, STACKED, false)
MANY(192_beside, 192, 5, 1, BESIDE, false)
