// What the warps of a prefill attention block share: the lists of the step, works, and the barriers between them.

#define PREFILL_THREADS (128 * (PREFILL_GROUPS + 1))

// Lists that belong to the step.
struct PrefillLists {
    const u32 *tables, *table_starts, *contexts, *query_starts, *query_counts;
    const uint2* works;
    int items;  // works times heads
    int heads, kv_heads, page_shift, window;
    // Blocks that share what they copy: both of a pair, if their heads have the same keys and values.
    int sharers;
};

// What those who compute know of a work.
struct Work {
    u64 row0;       // its first row of the queries
    int count;      // rows
    int position0;  // of the first row
    int head, first_tile, last_tile;
};

struct PrefillBarriers {
    u64 query_full, query_empty, ragged, codes_full[2];
    u64 key_full[PREFILL_STAGES], key_empty[PREFILL_STAGES], value_full[PREFILL_STAGES], value_empty[PREFILL_STAGES];

    __device__ __forceinline__ void init(int sharers) {
        constexpr u32 WARPS = 4 * PREFILL_GROUPS;
        barrier_init(&query_full, 1);
        barrier_init(&query_empty, 32 * WARPS);  // every lane has read what the work is
        barrier_init(&ragged, 1);
        barrier_init(codes_full, 1);
        barrier_init(codes_full + 1, 1);
        for (int i = 0; i < PREFILL_STAGES; i++) {
            barrier_init(key_full + i, 1);
            barrier_init(key_empty + i, WARPS * sharers);
            barrier_init(value_full + i, 1);
            barrier_init(value_empty + i, WARPS * sharers);
        }
        barrier_init_fence();
    }
};

// Tells all who share a tile that this warp has read it: a lane tells a block.
struct Release {
    u32 first;  // barrier of keys, in the block that this lane tells
    int between;  // from those of keys to those of values
    bool tells;
    __device__ __forceinline__ Release(PrefillBarriers& barriers, int sharers) {
        u32 lane = threadIdx.x % 32;
        tells = lane < sharers;
        first = peer_address(barriers.key_empty, sharers > 1 && tells ? lane : cluster_rank());
        between = (u8*)barriers.value_empty - (u8*)barriers.key_empty;
    }
    __device__ __forceinline__ void keys(int slot) const {
        if (tells) barrier_arrive_at(first + slot * 8);
    }
    __device__ __forceinline__ void values(int slot) const {
        if (tells) barrier_arrive_at(first + between + slot * 8);
    }
};

// The item that a block takes in its n-th round: neighbours for the blocks of a pair. Rounds run to and fro over the pairs,
// which evens out their sums.
DEVICE int nth_item(int round) {
    int pairs = gridDim.x / 2, pair = blockIdx.x / 2;
    return 2 * (round * pairs + (round % 2 ? pairs - 1 - pair : pair)) + blockIdx.x % 2;
}

DEVICE Work work_of(const PrefillLists& lists, int item) {
    uint2 named = lists.works[item / lists.heads];
    int sequence = named.x, queries = lists.query_counts[sequence];
    Work work;
    work.head = item % lists.heads;
    work.row0 = (u64)lists.query_starts[sequence] + named.y;
    work.count = queries - named.y < PREFILL_ROWS ? queries - named.y : PREFILL_ROWS;
    work.position0 = lists.contexts[sequence] - queries + named.y;
    work.first_tile = (work.position0 + 1 > lists.window ? work.position0 + 1 - lists.window : 0) / TILE_KEYS;
    work.last_tile = (work.position0 + work.count - 1) / TILE_KEYS;
    return work;
}
