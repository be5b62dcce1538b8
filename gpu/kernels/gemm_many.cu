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
    __device__ __forceinline__ int blocks(int segment) const {
        return segment_begin(k, segment + 1, segments) - segment_begin(k, segment, segments);
    }
    // Starts the sum of a run of k of so many blocks, without waiting for its end. `pending`: the stage that is read last, -1
    // if none is.
    template <typename Stages>
    __device__ __forceinline__ void start(float (&sum)[COLUMNS / 2], Stages& ring, int count, int& pending) {
        for (int block = 0; block < count; block++) {
            ring.wait();
            u64 a = ring.x(), b = ring.w();
            matrices_fence();
#pragma unroll
            for (int i = 0; i < 4; i++) multiply(sum, advance(a, i * 32), advance(b, i * 32), block > 0 || i > 0);
            matrices_commit();
            if (pending >= 0) {
                matrices_wait<1>();
                ring.release(pending);
            }
            if (block == MANY_LAG) let_follow();
            pending = ring.next();
        }
    }
    template <typename Stages>
    __device__ __forceinline__ void finish(const Stages& ring, int& pending) {
        matrices_wait<0>();
        if (pending >= 0) ring.release(pending);
        pending = -1;
    }
    template <typename Stages>
    __device__ __forceinline__ void sum(float (&sum)[COLUMNS / 2], Stages& ring, Tile) {
        int pending = -1, segment = 0;
        while (blocks(segment) == 0) segment++;  // an empty run adds nothing
        start(sum, ring, blocks(segment), pending);
        if constexpr (FOLDED) {
            float part[COLUMNS / 2];
            for (segment++; segment < segments; segment++) {
                int count = blocks(segment);
                if (count == 0) continue;
                start(part, ring, count, pending);
                finish(ring, pending);
#pragma unroll
                for (int i = 0; i < COLUMNS / 2; i++) sum[i] += part[i];
            }
        }
        finish(ring, pending);
        let_follow();
    }
};

#define MANY(NAME, COLUMNS, PAIR, FOLDED)                                                                        \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(MANY_THREADS, 1) gemm_many_##NAME(    \
        const __grid_constant__ TensorMap w, const __grid_constant__ TensorMap x,                                \
        const __grid_constant__ TensorMap x_end, const __grid_constant__ TensorMap out, int m, int n, int k,     \
        int segments, int output, const float* scales) {                                                         \
        many<COLUMNS, PAIR>(w, x, x_end, out, m, n, k, output, scales, Segments<COLUMNS, FOLDED>(k, segments));  \
    }
MANY(64_fold, 64, STACKED, true)
MANY(96_fold, 96, STACKED, true)
MANY(128_fold, 128, STACKED, true)
MANY(192_fold, 192, STACKED, true)
MANY(128_fold_beside, 128, BESIDE, true)
MANY(192_fold_beside, 192, BESIDE, true)
MANY(192, 192, STACKED, false)
MANY(256, 256, STACKED, false)
MANY(192_beside, 192, BESIDE, false)
