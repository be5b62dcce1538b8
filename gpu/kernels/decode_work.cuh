// What the warps of a decode attention block share: the work of the launch, tiles, and the ring that they pass through.

#define DECODE_THREADS (32 * DECODE_WARPS + 32)
#define MOST_STAGES 6

struct Work {
    u16* out;
    const u16* queries;
    const u32 *tables, *table_starts, *contexts, *tile_starts, *run_starts;
    float* part_values;   // [tiles, heads, D]
    float2* part_stats;   // [tiles, heads, DECODE_WARPS]: maximum, sum
    u32 *tickets, *queue;
    int sequences, heads, kv_heads, page_shift, window;
    bool whole_runs, beside;
    float scale;
};

// A tile, as those who copy it tell those who work on it.
struct Tile {
    int sequence, head, rows;  // its sequence (-1: there are no more), first query head and number of query heads
    int context, key0;         // positions of the sequence; the tile's first
    int number, begin, end;    // which tile of the sequence; the run's first and the one after its last
    int tiles, runs;           // of the sequence
    int part, ticket;          // where its parts and its tickets begin
};

// First tile of a run.
DEVICE int run_begin(int tiles, int runs, int run) { return tiles * run / runs; }

template <int D, bool CODES>
struct TileRing {
    // a row lies in columns of 128 bytes, or 64 if it has no more
    static constexpr int ROW_BYTES = CODES ? D : 2 * D, WIDTH = ROW_BYTES < 128 ? 64 : 128, HALVES = ROW_BYTES / WIDTH;
    static constexpr u32 HALF_BYTES = TILE_KEYS * WIDTH, TILE_BYTES = HALVES * HALF_BYTES;
    static constexpr int FIT = DECODE_RING_BYTES / (2 * TILE_BYTES), STAGES = FIT < MOST_STAGES ? FIT : MOST_STAGES;
    static constexpr int QUERY_PITCH = D * 2 + 16;  // rows of a column meet all banks

    u64 keys_full[STAGES], values_full[STAGES], keys_empty[STAGES], values_empty[STAGES];
    Tile tiles[STAGES];
    alignas(16) u8 queries[STAGES][QUERY_ROWS * QUERY_PITCH];

    // Where 16 bytes of a row are, swizzled by the copy engine.
    static __device__ __forceinline__ u32 chunk(u32 tile, int row, int chunk) {
        constexpr int CHUNKS = WIDTH / 16;
        u32 within = (chunk % CHUNKS ^ (WIDTH == 128 ? row % 8 : row / 2 % 4)) * 16;
        return tile + chunk / CHUNKS * HALF_BYTES + row * WIDTH + within;
    }
    static __device__ __forceinline__ u32 keys(u32 ring, int slot) { return ring + slot * 2 * TILE_BYTES; }
    static __device__ __forceinline__ u32 values(u32 ring, int slot) { return keys(ring, slot) + TILE_BYTES; }
};

// Steps through a ring: which slot, in which round.
struct Cursor {
    int slot = 0;
    u32 phase = 0;
    __device__ __forceinline__ void advance(int stages) {
        if (++slot == stages) slot = 0, phase ^= 1;
    }
};
