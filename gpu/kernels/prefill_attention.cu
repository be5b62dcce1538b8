// Prefill: many query positions a sequence.
//
// A work is 128 query positions of one head. Blocks come in pairs; each takes several works, one after another. One warp has
// queries, keys and values copied into shared memory, page by page, ahead of those who compute: two groups of four warps,
// 64 query positions each, of which one makes probabilities while the other has the tensor cores; and each asks for its next
// scores before it weighs values, so that it has them while those are weighed. Works of a pair are two heads of the same
// positions: if they share keys and values each block copies half of them, to both.
//
// Keys and values in fp8, as `qkv_head` packs them, are made bf16 by all four warps of the group that copies.
//
// `works[i]` names the sequence and its first query: x = sequence, y = offset of the first query in the sequence's share
// of the step; those with the most keys come first. A sequence's queries are rows `query_starts[s] ..` of the queries, its
// first query has position contexts[s] - its query count.

enum PrefillKind {
    CANONICAL,
    VARIANT,  // in another order of additions
    CODES,    // keys and values in fp8
};

// `query_map`: rows of all heads, boxes of PREFILL_ROWS; `kv_map`: rows of D, boxes of a page or a tile.
template <int D, PrefillKind KIND>
DEVICE void prefill(const TensorMap& query_map, const TensorMap& kv_map, u16* out, PrefillLists lists, float scale) {
    extern __shared__ u8 memory[];
    __shared__ PrefillBarriers barriers;
    __shared__ Work work;
    u32 query_tile = shared_address(memory) + 1023 & ~1023u;
    constexpr bool FULL = D == 128 && KIND == CANONICAL;  // needs every register
    constexpr int STAGES = KIND == CODES ? PREFILL_CODE_STAGES : PREFILL_STAGES;
    u32 keys = query_tile + PREFILL_ROWS * D * 2, values = keys + STAGES * TILE_KEYS * D * 2;
    lists.sharers = KIND != CODES && lists.heads / lists.kv_heads % 2 == 0 ? 2 : 1;
    allow_consumer();
    if (threadIdx.x == 0) barriers.init(lists.sharers);
    cluster_sync();
    if (threadIdx.x >= 128 * PREFILL_GROUPS) {
        if constexpr (KIND == CODES) {
            GIVE_REGISTERS(40);
            u32 codes = values + STAGES * TILE_KEYS * D * 2;
            prefill_load_codes<D>(barriers, work, query_tile, keys, values, codes, query_map, kv_map, lists);
        } else {
            if constexpr (FULL) GIVE_REGISTERS(24);
            else GIVE_REGISTERS(40);
            int warp = threadIdx.x / 32 - 4 * PREFILL_GROUPS;
            if (warp == 0) prefill_load<D, false>(barriers, work, query_tile, keys, query_map, kv_map, lists);
            if (warp == 1) prefill_load<D, true>(barriers, work, query_tile, values, query_map, kv_map, lists);
        }
    } else {
        if constexpr (FULL) TAKE_REGISTERS(240);
        else TAKE_REGISTERS(232);
        wait_for_producer();
        if constexpr (KIND == VARIANT)
            prefill_compute<D, STAGES, VariantRows<D>>(barriers, work, out, query_tile, keys, values, lists, scale);
        else
            prefill_compute<D, STAGES, CanonicalRows<D>>(barriers, work, out, query_tile, keys, values, lists, scale);
    }
    // a block's shared memory must be there as long as the other copies to it
    cluster_sync();
}

#define PREFILL(NAME, D, KIND)                                                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(PREFILL_THREADS, 1)                       \
        attention_prefill_##NAME(const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap kv_map, \
                                 u16* out, const u32* tables, const u32* table_starts, const u32* contexts,          \
                                 const u32* query_starts, const u32* query_counts, const uint2* works,               \
                                 int work_count, int heads, int kv_heads, int page_shift, int window, float scale) { \
        PrefillLists lists{tables, table_starts, contexts, query_starts, query_counts, works, work_count * heads,    \
                           heads, kv_heads, page_shift, window};                                                     \
        prefill<D, KIND>(query_map, kv_map, out, lists, scale);                                                      \
    }
PREFILL(64, 64, CANONICAL)
PREFILL(128, 128, CANONICAL)
PREFILL(64_variant, 64, VARIANT)
PREFILL(128_variant, 128, VARIANT)
PREFILL(64_fp8, 64, CODES)
PREFILL(128_fp8, 128, CODES)
