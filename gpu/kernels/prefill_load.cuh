// The warps of a prefill attention block that have queries, keys and values copied.

// Announces a work and starts copying its queries; a warp calls it.
template <int D>
DEVICE void copy_queries(PrefillBarriers& barriers, Work& shared_work, u32 query_tile, const TensorMap& query_map,
                         const Work& work) {
    if (threadIdx.x % 32) return;
    shared_work = work;
    barrier_expect(&barriers.query_full, PREFILL_ROWS * D * 2);
    for (int part = 0; part < D / 64; part++)
        copy_box(query_tile + part * PREFILL_ROWS * 128, query_map, work.head * D + part * 64, work.row0,
                 &barriers.query_full);
}

// Copies queries and keys, or values, of this block's works to `tiles`; a warp calls it for either. Blocks that share copy
// a half each, to both.
template <int D, bool VALUES>
DEVICE void prefill_load(PrefillBarriers& barriers, Work& shared_work, u32 query_tile, u32 tiles, const TensorMap& query_map,
                         const TensorMap& kv_map, const PrefillLists& lists) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2;
    u64 *full = VALUES ? barriers.value_full : barriers.key_full, *empty = VALUES ? barriers.value_empty : barriers.key_empty;
    int lane = threadIdx.x % 32;
    int page_shift = lists.page_shift, page_size = 1 << page_shift, box_rows = page_size < TILE_KEYS ? page_size : TILE_KEYS;
    int slot = 0;
    u32 phase = 1, query_phase = 1, ragged_phase = 0;
    wait_for_producer();
    for (int round = 0; nth_item(round) < lists.items; round++) {
        int sequence = lists.works[nth_item(round) / lists.heads].x, context = lists.contexts[sequence];
        Work work = work_of(lists, nth_item(round));
        if constexpr (!VALUES) {
            barrier_wait(&barriers.query_empty, query_phase);
            query_phase ^= 1;
            copy_queries<D>(barriers, shared_work, query_tile, query_map, work);
        }
        const u32* table = lists.tables + lists.table_starts[sequence];
        int head = (VALUES ? lists.kv_heads : 0) + work.head / (lists.heads / lists.kv_heads);  // of a page
        for (int tile = work.first_tile; tile <= work.last_tile; tile++) {
            int first = tile * TILE_KEYS, held = context - first < TILE_KEYS ? context - first : TILE_KEYS;
            int boxes = (held + box_rows - 1) / box_rows;
            u32 page = lane < boxes ? table[(first >> page_shift) + lane] : 0;
            int row = ((page * 2 * lists.kv_heads + head) << page_shift) + (first & page_size - 1);  // of all keys and values
            u32 target = tiles + slot * TILE_BYTES;
            bool ragged = VALUES && held < TILE_KEYS;
            u64* barrier = ragged ? &barriers.ragged : full + slot;
            barrier_wait(empty + slot, phase);
            if (lane == 0) barrier_expect(barrier, boxes * box_rows * D * 2);
            __syncwarp();
            if (lane < boxes) {
#pragma unroll
                for (int part = 0; part < D / 64; part++) {
                    u32 to = target + (part * TILE_KEYS + lane * box_rows) * 128;
                    if (lists.sharers == 1) copy_box(to, kv_map, part * 64, row, barrier);
                    else if ((D > 64 ? part : lane) % 2 == blockIdx.x % 2) copy_box_to_pair(to, kv_map, part * 64, row, barrier);
                }
            }
            if (ragged) {
                // values that weigh nothing must be numbers
                barrier_wait(&barriers.ragged, ragged_phase);
                ragged_phase ^= 1;
                for (int part = 0; part < D / 64; part++)
                    for (int i = held * 8 + lane; i < TILE_KEYS * 8; i += 32)
                        store_shared(target + part * TILE_KEYS * 128 + i * 16, make_uint4(0, 0, 0, 0));
                shared_fence();
                __syncwarp();
                if (lane == 0) barrier_arrive(full + slot);
            }
            if (++slot == PREFILL_STAGES) slot = 0, phase ^= 1;
        }
    }
}

// Four warps: what the copy engine brings of codes, keys to `codes` and values behind them, becomes tiles of bf16.
template <int D>
DEVICE void prefill_load_codes(PrefillBarriers& barriers, Work& shared_work, u32 query_tile, u32 keys, u32 values, u32 codes,
                               const TensorMap& query_map, const TensorMap& kv_map, const PrefillLists& lists) {
    constexpr u32 TILE_BYTES = TILE_KEYS * D * 2, CODE_BYTES = TILE_KEYS * D;
    constexpr int RUNS = D / 16, ROWS = 128 / RUNS;  // 16 bytes of codes a thread, so many rows at once
    int thread = threadIdx.x % 128, lane = threadIdx.x % 32;
    bool copies = thread < 32;
    int row0 = thread / RUNS, run = thread % RUNS;
    u32 from = row0 * D + (run ^ (D == 128 ? row0 % 8 : row0 / 2 % 4)) * 16;
    u32 to = (run / 4 * TILE_KEYS + row0) * 128 + (run % 4 * 2 ^ row0 % 8) * 16;
    int page_shift = lists.page_shift, kv_heads = lists.kv_heads;
    int page_size = 1 << page_shift, box_rows = page_size < TILE_KEYS ? page_size : TILE_KEYS;
    int slot = 0;
    u32 phase = 1, query_phase = 1, codes_phase = 0;
    wait_for_producer();
    for (int round = 0; nth_item(round) < lists.items; round++) {
        int sequence = lists.works[nth_item(round) / lists.heads].x, context = lists.contexts[sequence];
        Work work = work_of(lists, nth_item(round));
        const u32* table = lists.tables + lists.table_starts[sequence];
        int kv_head = work.head / (lists.heads / kv_heads);
        auto request = [&](int part, int tile) {
            int first = tile * TILE_KEYS, held = context - first < TILE_KEYS ? context - first : TILE_KEYS;
            int boxes = (held + box_rows - 1) / box_rows;
            u32 page = lane < boxes ? table[(first >> page_shift) + lane] : 0;
            int row = ((page * 2 * kv_heads + part * kv_heads + kv_head) << page_shift) + (first & page_size - 1);
            if (lane == 0) barrier_expect(barriers.codes_full + part, boxes * box_rows * D);
            __syncwarp();
            if (lane < boxes)
                copy_box(codes + part * CODE_BYTES + lane * box_rows * D, kv_map, 0, row, barriers.codes_full + part);
        };
        if (copies) {
            request(0, work.first_tile);
            request(1, work.first_tile);
            barrier_wait(&barriers.query_empty, query_phase);
            copy_queries<D>(barriers, shared_work, query_tile, query_map, work);
        }
        query_phase ^= 1;
        for (int tile = work.first_tile; tile <= work.last_tile; tile++) {
            int held = context - tile * TILE_KEYS;
#pragma unroll
            for (int part = 0; part < 2; part++) {
                u32 target = (part ? values : keys) + slot * TILE_BYTES, source = codes + part * CODE_BYTES;
                barrier_wait((part ? barriers.value_empty : barriers.key_empty) + slot, phase);
                barrier_wait(barriers.codes_full + part, codes_phase);
#pragma unroll 2
                for (int i = 0; i < TILE_KEYS / ROWS; i++) {
                    uint4 v = load_shared(source + from + i * ROWS * D), low, high;
                    unpack_values(v.x, low.x, high.x);
                    unpack_values(v.y, low.y, high.y);
                    unpack_values(v.z, low.z, high.z);
                    unpack_values(v.w, low.w, high.w);
                    // values that weigh nothing must be numbers
                    if (row0 + i * ROWS >= held) low = high = make_uint4(0, 0, 0, 0);
                    store_shared(target + to + i * ROWS * 128, low);
                    store_shared(target + (to ^ 16) + i * ROWS * 128, high);
                }
                shared_fence();
                asm volatile("bar.sync 3, 128;" ::: "memory");
                if (thread == 0) barrier_arrive((part ? barriers.value_full : barriers.key_full) + slot);
                if (copies && tile < work.last_tile) request(part, tile + 1);
            }
            codes_phase ^= 1;
            if (++slot == PREFILL_CODE_STAGES) slot = 0, phase ^= 1;
        }
    }
}
