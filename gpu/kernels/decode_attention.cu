// Decode attention: one query position a sequence.
//
// A sequence's tiles are cut into runs of equal length; an item of work is a run and up to 8 query heads of a kv head.
// One block a multiprocessor: one warp has the copy engine fill a ring of tiles, four warps work on what has come, each
// making all scores of a tile and its own columns of the values, so that they never wait for each other. A block has
// its first two items by its number and draws more from `queue` (items drawn, blocks done; zero between launches), so
// the grid does not depend on the lengths.
//
// `tile_starts[i]` and `run_starts[i]` count tiles and runs of the sequences before i, those of another launch included.
// The first run of a sequence is folded as it goes. Tiles of later runs leave their parts in `part_values` and
// `part_stats`, and the last run to arrive folds them; with `whole_runs` a run leaves one part, which is another order of
// additions.
//
// Keys and values are bf16, or fp8 as `qkv_head` packs it, made bf16 on the way to the tensor cores.
//
// `beside` the products of other rows the successor is not let in early: it would wait where they could run.
//
// Lists and page tables belong to the step, and so do all keys and values but those of its own tokens: they are read
// before the producer of the queries has ended.

template <int D, bool CODES>
DEVICE void decode(const TensorMap& pages, const Work& work) {
    extern __shared__ u8 bytes[];
    u32 memory = shared_address(bytes) + 1023 & ~1023u;
    auto& ring = *(TileRing<D, CODES>*)(bytes + (memory - shared_address(bytes)) + DECODE_RING_BYTES);
    if (!work.beside) allow_consumer();
    if (threadIdx.x == 0) {
        // every lane of a warp arrives: a tool that looks for races does not follow one that does for all, and it is as fast
        for (int i = 0; i < TileRing<D, CODES>::STAGES; i++) {
            barrier_init(ring.keys_full + i, 1);
            barrier_init(ring.values_full + i, 1);
            barrier_init(ring.keys_empty + i, 32 * DECODE_WARPS);
            barrier_init(ring.values_empty + i, 32 * DECODE_WARPS);
        }
        barrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x / 32 < DECODE_WARPS) {
        Consumer<D, CODES>(work, ring, memory).run();
    } else {
        Producer<D, CODES>(work, pages, ring, memory).run();
        if (work.beside) allow_consumer();
        if (arrive(work.queue + 1, gridDim.x) && threadIdx.x % 32 == 0) work.queue[0] = 0;
    }
}

#define DECODE(NAME, D, CODES)                                                                                       \
    extern "C" __global__ void __launch_bounds__(DECODE_THREADS, 1) attention_decode_##NAME(                         \
        const __grid_constant__ TensorMap pages, u16* out, const u16* queries, const u32* tables,                    \
        const u32* table_starts, const u32* contexts, const u32* tile_starts, const u32* run_starts,                 \
        float* part_values, float2* part_stats, u32* tickets, u32* queue, int sequences, int heads, int kv_heads,    \
        int page_shift, int window, int whole_runs, int beside, float scale) {                                       \
        decode<D, CODES>(pages, Work{out, queries, tables, table_starts, contexts, tile_starts, run_starts,          \
                                     part_values, part_stats, tickets, queue, sequences, heads, kv_heads, page_shift,\
                                     window, whole_runs != 0, beside != 0, CODES ? scale * CODE_PRODUCT : scale});    \
    }
DECODE(64, 64, false)
DECODE(128, 128, false)
DECODE(64_fp8, 64, true)
DECODE(128_fp8, 128, true)
