// Attention over paged keys and values, grouped queries, bf16 with f32 accumulation.
//
// Canonical order, the same in both kernels, so that a position's bits depend neither on its neighbours in the batch
// nor on chunking nor on who computes it: positions fall into absolute tiles of 128 keys. Within a tile scores are
// exact dot products in ascending steps of 16, probabilities are relative to the tile's own maximum and rounded
// to bf16, sums and values accumulate on the tensor cores in ascending steps of 16 keys from zero. Tiles are folded
// in ascending order by `Fold`. A masked key has probability 0, a wholly masked tile folds as the identity.
//
// Pages are [page][key, value][kv head][page_size][D]; a sequence's page table lies at `table_starts[sequence]` in
// `tables`. `window` is the number of latest positions that a query sees (INT_MAX: all).

#define TILE_KEYS 128
#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// Weights of the running result and of the next tile when their maxima (in units of log2) are joined.
struct Fold {
    float old_weight, new_weight;
    __device__ __forceinline__ Fold(float& maximum, float tile_maximum) {
        float joined = fmaxf(maximum, tile_maximum);
        float base = joined == NEGATIVE_INFINITY ? 0.0f : joined;
        old_weight = exp2_fast(maximum - base);
        new_weight = exp2_fast(tile_maximum - base);
        maximum = joined;
    }
    __device__ __forceinline__ float operator()(float old_value, float new_value) const {
        return __fmaf_rn(old_value, old_weight, __fmul_rn(new_value, new_weight));
    }
};

// Probability of a score relative to its tile's maximum, `scaled_maximum` in units of log2.
DEVICE float probability(float score, float scale, float scaled_maximum) {
    return exp2_fast(__fmaf_rn(score, scale, -(scaled_maximum == NEGATIVE_INFINITY ? 0.0f : scaled_maximum)));
}
