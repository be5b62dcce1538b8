// Whole pages between the pool and places elsewhere in device memory (or in page-locked host memory), with checksums:
// the sum of all 8-byte words, each mixed by SplitMix64 with a seed and its place, from 1 on. A sum can be made in any
// order.

struct Move {
    u64 place, seed, page, unused;
};

struct Span {
    u64 begin, words, seed, unused;
};

DEVICE u64 mixed(u64 word, u64 seed, u64 place) {
    u64 x = word + seed + place * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// Of 16 bytes, the `index`th from where the checksum begins.
DEVICE u64 mixed_pair(uint4 pair, u64 seed, u64 index) {
    u64 low = (u64)pair.y << 32 | pair.x, high = (u64)pair.w << 32 | pair.z;
    return mixed(low, seed, 2 * index + 1) + mixed(high, seed, 2 * index + 2);
}

// Adds what all threads of the block have.
DEVICE void add_to(u64* total, u64 sum) {
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, other);
    if (threadIdx.x % 32 == 0) atomicAdd(total, sum);
}

// Block (x, y, z) moves a part of layer y of move z. A page has `part` words of 16 bytes in each layer, and layers lie
// `stride` words apart in the pool, without gaps elsewhere.
DEVICE void move_pages(bool out, uint4* pool, const Move* moves, u64* sums, u64 part, u64 stride) {
    const Move move = moves[blockIdx.z];
    u64 before = blockIdx.y * part;
    uint4* in_pool = pool + blockIdx.y * stride + move.page * part;
    uint4* elsewhere = (uint4*)move.place + before;
    const uint4* from = out ? in_pool : elsewhere;
    uint4* to = out ? elsewhere : in_pool;
    u64 sum = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < part; i += (u64)gridDim.x * blockDim.x) {
        uint4 words = from[i];
        to[i] = words;
        sum += mixed_pair(words, move.seed, before + i);
    }
    add_to(sums + blockIdx.z, sum);
}

extern "C" __global__ void __launch_bounds__(256)
    pages_out(uint4* pool, const Move* moves, u64* sums, u64 part, u64 stride) {
    move_pages(true, pool, moves, sums, part, stride);
}

extern "C" __global__ void __launch_bounds__(256)
    pages_in(uint4* pool, const Move* moves, u64* sums, u64 part, u64 stride) {
    move_pages(false, pool, moves, sums, part, stride);
}

// Block (x, y) adds up a part of span y, whose length is in words of 16 bytes.
extern "C" __global__ void __launch_bounds__(256) pages_sum(const Span* spans, u64* sums) {
    const Span span = spans[blockIdx.y];
    const uint4* from = (const uint4*)span.begin;
    u64 sum = 0;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < span.words; i += (u64)gridDim.x * blockDim.x)
        sum += mixed_pair(from[i], span.seed, i);
    add_to(sums + blockIdx.y, sum);
}
