// The warp of a decode attention block that has tiles copied.

// A tile to be copied. Every lane has a box of it: some rows of one half of the keys, and the same of the values.
struct Load {
    Tile tile;
    const u32* table;
    int kv_head;
    int row;              // the box's first in the pages, of keys
    bool valid, settled;  // holds positions of the sequence; none of them of this step
};

template <int D, bool CODES>
struct Producer {
    using Ring = TileRing<D, CODES>;
    const Work& work;
    const TensorMap& pages;
    Ring& ring;
    u32 memory;
    int lane = threadIdx.x % 32;
    u64 policy = read_once();
    int box_shift = work.page_shift < 7 ? work.page_shift : 7;  // rows of a box: a page, at most a tile
    int box_row = lane / Ring::HALVES << box_shift;             // of the tile
    int groups = (work.heads / work.kv_heads + QUERY_ROWS - 1) / QUERY_ROWS;
    static constexpr int BOX_COLUMNS = CODES ? Ring::WIDTH : Ring::WIDTH / 2;

    __device__ __forceinline__ Producer(const Work& work, const TensorMap& pages, Ring& ring, u32 memory)
        : work(work), pages(pages), ring(ring), memory(memory) {}

    __device__ __forceinline__ void find_box(Load& load) const {
        int first = load.tile.key0 + box_row;
        load.valid = box_row < TILE_KEYS && first < load.tile.context;
        load.settled = first + (1 << box_shift) < load.tile.context;
        int page = load.valid ? load.table[first >> work.page_shift] : 0;
        int in_page = first & ((1 << work.page_shift) - 1);
        load.row = ((page * 2 * work.kv_heads + load.kv_head) << work.page_shift) + in_page;
    }

    // The first tile of an item. Items of a block ascend: the search begins at the sequence of the last one.
    __device__ __forceinline__ Load begin(u32 item, int sequence) const {
        u32 run = work.run_starts[0] + item / (work.kv_heads * groups);
        int in_run = item % (work.kv_heads * groups);
        for (u32 started = FULL_WARP; started == FULL_WARP;) {
            int next = sequence + 1 + lane;
            started = __ballot_sync(FULL_WARP, next < work.sequences && work.run_starts[next] <= run);
            sequence += __popc(started);
        }
        Load load;
        Tile& tile = load.tile;
        load.table = work.tables + work.table_starts[sequence];
        load.kv_head = in_run / groups;
        int group = work.heads / work.kv_heads, query0 = in_run % groups * QUERY_ROWS;
        tile.sequence = sequence;
        tile.head = load.kv_head * group + query0;
        tile.rows = group - query0 < QUERY_ROWS ? group - query0 : QUERY_ROWS;
        tile.context = work.contexts[sequence];
        tile.part = work.tile_starts[sequence];
        tile.tiles = work.tile_starts[sequence + 1] - tile.part;
        int first_run = work.run_starts[sequence];
        tile.runs = work.run_starts[sequence + 1] - first_run;
        tile.begin = tile.number = run_begin(tile.tiles, tile.runs, run - first_run);
        tile.end = run_begin(tile.tiles, tile.runs, run - first_run + 1);
        int hidden = tile.context > work.window ? tile.context - work.window : 0;
        tile.key0 = (hidden / TILE_KEYS + tile.number) * TILE_KEYS;
        tile.ticket = (sequence * work.kv_heads * groups + in_run) * DECODE_WARPS;
        find_box(load);
        return load;
    }

    // The next tile of the run; false if there is none.
    __device__ __forceinline__ bool advance(Load& load) const {
        if (load.tile.number + 1 == load.tile.end) return false;
        load.tile.number++;
        load.tile.key0 += TILE_KEYS;
        find_box(load);
        return true;
    }

    // What a box of the whole tile counts for.
    __device__ __forceinline__ u32 box_bytes(const Load& load) const {
        return (__popc(__ballot_sync(FULL_WARP, load.valid)) << box_shift) * Ring::WIDTH;
    }

    // Announce a tile to those who wait for it.
    __device__ __forceinline__ void expect_keys(const Load& load, int slot) const {
        u32 bytes = box_bytes(load) + load.tile.rows * D * 2;
        if (lane == 0) {
            ring.tiles[slot] = load.tile;
            barrier_expect(ring.keys_full + slot, bytes);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void expect_values(const Load& load, int slot) const {
        u32 bytes = box_bytes(load);
        if (lane == 0) barrier_expect(ring.values_full + slot, bytes);
        __syncwarp();
    }

    __device__ __forceinline__ u32 offset() const {
        return lane % Ring::HALVES * Ring::HALF_BYTES + box_row * Ring::WIDTH;
    }

    __device__ __forceinline__ void copy_keys(const Load& load, int slot) const {
        u32 target = Ring::keys(memory, slot) + offset();
        copy_box(target, pages, lane % Ring::HALVES * BOX_COLUMNS, load.row, ring.keys_full + slot, policy);
    }

    __device__ __forceinline__ void copy_values(const Load& load, int slot) const {
        u32 target = Ring::values(memory, slot) + offset();
        int row = load.row + (work.kv_heads << work.page_shift);
        copy_box(target, pages, lane % Ring::HALVES * BOX_COLUMNS, row, ring.values_full + slot, policy);
    }

    __device__ __forceinline__ void copy_queries(const Load& load, int slot) const {
        if (lane >= load.tile.rows) return;
        const u16* source = work.queries + ((u64)load.tile.sequence * work.heads + load.tile.head + lane) * D;
        u32 target = shared_address(ring.queries[slot] + lane * Ring::QUERY_PITCH);
        copy_bulk(target, source, D * 2, ring.keys_full + slot);
    }

    __device__ __forceinline__ void run() const {
        u32 items = (work.run_starts[work.sequences] - work.run_starts[0]) * work.kv_heads * groups;
        u32 drawn = 0;
        int fixed = 0;
        auto next_item = [&]() {
            if (fixed < 2) return blockIdx.x + fixed++ * gridDim.x;
            u32 item = __shfl_sync(FULL_WARP, drawn, 0) + 2 * gridDim.x;
            if (lane == 0) drawn = atomicAdd(work.queue, 1);  // arrives while this item is copied
            return item;
        };
        Load load;
        load.tile.sequence = 0;
        auto begin_next = [&]() {
            u32 item = next_item();
            if (item >= items) return false;
            load = begin(item, load.tile.sequence);
            return true;
        };

        Load early[Ring::STAGES];
        int count = 0;
        bool more = begin_next();
#pragma unroll
        for (int i = 0; i < Ring::STAGES; i++) {
            if (!more) continue;
            early[i] = load;
            expect_keys(load, i);
            expect_values(load, i);
            if (load.valid && load.settled) {
                copy_keys(load, i);
                copy_values(load, i);
            }
            count++;
            more = advance(load) || (fixed < 2 && begin_next());
        }
        wait_for_producer();
        if (lane == 0) drawn = atomicAdd(work.queue, 1);
#pragma unroll
        for (int i = 0; i < Ring::STAGES; i++) {
            if (i >= count) continue;
            if (early[i].valid && !early[i].settled) {
                copy_keys(early[i], i);
                copy_values(early[i], i);
            }
            copy_queries(early[i], i);
        }
        Cursor cursor;
        for (int i = 0; i < count; i++) cursor.advance(Ring::STAGES);
        if (!more && fixed == 2) more = begin_next();
        while (more) {
            Load now = load;
            more = advance(load) || begin_next();  // page numbers arrive while this waits
            barrier_wait(ring.keys_empty + cursor.slot, cursor.phase ^ 1);
            expect_keys(now, cursor.slot);
            if (now.valid) copy_keys(now, cursor.slot);
            copy_queries(now, cursor.slot);
            barrier_wait(ring.values_empty + cursor.slot, cursor.phase ^ 1);
            expect_values(now, cursor.slot);
            if (now.valid) copy_values(now, cursor.slot);
            cursor.advance(Ring::STAGES);
        }
        barrier_wait(ring.keys_empty + cursor.slot, cursor.phase ^ 1);
        if (lane == 0) {
            ring.tiles[cursor.slot].sequence = -1;
            barrier_arrive(ring.keys_full + cursor.slot);
        }
    }
};
