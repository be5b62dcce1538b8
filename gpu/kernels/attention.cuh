// Attention over paged keys and values, grouped queries, bf16 with f32 accumulation.
//
// Canonical order, the same in all kernels, so that a position's bits depend neither on its neighbours in the batch
// nor on chunking nor on who computes it: positions fall into absolute tiles of 128 keys. Within a tile scores are
// exact dot products in ascending steps of 16, probabilities are relative to the tile's own maximum. Their sum is that of
// `sum_quarters` for every r, the keys 8j + r, then of neighbouring r, pairs and fours. Rounded to bf16 they weigh values,
// which accumulate on the tensor cores in ascending steps of 16 keys from zero. Tiles are folded in ascending order by
// `Fold`. A masked key has probability 0, a wholly masked tile folds as the identity.
//
// Pages are [page][key, value][kv head][page_size][D]; a sequence's page table lies at `table_starts[sequence]` in
// `tables`. `window` is the number of latest positions that a query sees (INT_MAX: all).

#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// What a running result is relative to, in units of log2, once a tile with this maximum has joined it: it rises only where the
// tile exceeds it by more than SLACK, so that there is seldom anything to make smaller. Sums stay far within what f32 holds.
#define SLACK 8.0f
DEVICE float raise_base(float base, float maximum) { return maximum > base + SLACK ? maximum : base; }

// Weights of the running result and of the next tile when they are joined.
struct Fold {
    float old_weight, new_weight;
    __device__ __forceinline__ Fold(float& base, float tile_maximum) {
        float raised = raise_base(base, tile_maximum);
        float zero = raised == NEGATIVE_INFINITY ? 0.0f : raised;
        old_weight = exp2_fast(base - zero);
        new_weight = exp2_fast(tile_maximum - zero);
        base = raised;
    }
    __device__ __forceinline__ float operator()(float old_value, float new_value) const {
        return __fmaf_rn(new_value, new_weight, __fmul_rn(old_value, old_weight));
    }
};

// Probability of a score relative to its tile's maximum, `scaled_maximum` in units of log2.
DEVICE float probability(float score, float scale, float scaled_maximum) {
    return exp2_fast(__fmaf_rn(score, scale, -(scaled_maximum == NEGATIVE_INFINITY ? 0.0f : scaled_maximum)));
}

// Probabilities of every eighth key of a tile, j = 0 .. 15: those of a quarter in ascending order, then quarters in pairs.
DEVICE float join_quarters(float first, float second, float third, float fourth) {
    return __fadd_rn(__fadd_rn(first, second), __fadd_rn(third, fourth));
}
template <typename Probability>
DEVICE float sum_quarter(Probability p, int j) {
    return __fadd_rn(__fadd_rn(__fadd_rn(p(j), p(j + 1)), p(j + 2)), p(j + 3));
}
template <typename Probability>
DEVICE float sum_quarters(Probability p) {
    return join_quarters(sum_quarter(p, 0), sum_quarter(p, 4), sum_quarter(p, 8), sum_quarter(p, 12));
}
