// Draws one token a row from f32 logits. A cluster of 8 blocks shares a row: each keeps a slice in shared memory.
//
// Order: bias, min_tokens mask of stop ids, repetition penalty, presence and frequency penalty, temperature, top-k,
// top-p, min-p, one Philox4x32-10 draw with key = seed and counter = (choice, output position). Ties go to the
// lowest id. Probabilities are summed as integers of 2^-40 of the most likely one: no sum depends on an order, so a
// row's token depends on nothing but its logits and parameters. The draw picks, in id order, the first kept token
// whose cumulated probability exceeds the random fraction of the total.

#define CLUSTER 8
#define THREADS 512
#define WARPS (THREADS / 32)
#define NEGATIVE_INFINITY __int_as_float(0xff800000)
#define BINS 256
#define BIN_BITS 8
#define MASS_ONE 1099511627776.0f

// How a slot samples; the host writes one at open.
struct Params {
    float temperature, top_p, min_p;
    float presence, frequency, repetition;
    u32 top_k, min_tokens;
    u32 seed_low, seed_high, choice;
    u32 bias_count, stop_count;
    int top_logprobs;  // -1: no log probabilities
    u32 track_counts;  // penalties are on: keep counts of this slot
    u32 greedy;
};

struct Drawn {
    u32 token, finite;
    float logprob;
    u32 top_tokens[MAX_TOP];
    float top_logprobs[MAX_TOP];
};

// ---- the cluster ---------------------------------------------------------------------------------------------------

struct Shared {
    u64 warps[WARPS];
    u64 mine;  // this block's value in a cluster-wide reduction
    // `select`: weights a bin, in parts of 14 bits that sums over a slice cannot overflow, then whole
    u32 parts[3][BINS];
    u64 bins[BINS];
    u32 chosen;
    u64 above;
};

DEVICE u64 shuffle_down(u64 v, int offset) { return __shfl_down_sync(FULL_WARP, v, offset); }

// Joins one value a thread over the whole cluster with an order-free operation; every thread gets the result.
template <typename Join>
DEVICE u64 cluster_reduce(Shared& shared, u64 v, Join join) {
    for (int offset = 16; offset; offset >>= 1) v = join(v, shuffle_down(v, offset));
    if (threadIdx.x % 32 == 0) shared.warps[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < WARPS; i++) v = join(v, shared.warps[i]);
        shared.mine = v;
    }
    cluster_sync();
    v = read_peer(&shared.mine, 0);
    for (u32 rank = 1; rank < CLUSTER; rank++) v = join(v, read_peer(&shared.mine, rank));
    cluster_sync();
    return v;
}

struct Max {
    __device__ u64 operator()(u64 a, u64 b) const { return a > b ? a : b; }
};
struct Sum {
    __device__ u64 operator()(u64 a, u64 b) const { return a + b; }
};

// Exclusive sums over the cluster in the order of (rank, thread): what precedes this thread; `total` over all.
DEVICE u64 cluster_scan(Shared& shared, u64 v, u64& total) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 inclusive = v;
    for (int offset = 1; offset < 32; offset <<= 1) {
        u64 other = __shfl_up_sync(FULL_WARP, inclusive, offset);
        if (lane >= offset) inclusive += other;
    }
    if (lane == 31) shared.warps[warp] = inclusive;
    __syncthreads();
    u64 before = 0, block = 0;
    for (int i = 0; i < WARPS; i++) {
        if (i < warp) before += shared.warps[i];
        block += shared.warps[i];
    }
    if (threadIdx.x == 0) shared.mine = block;
    cluster_sync();
    total = 0;
    u32 rank = cluster_rank();
    for (u32 i = 0; i < CLUSTER; i++) {
        u64 other = read_peer(&shared.mine, i);
        if (i < rank) before += other;
        total += other;
    }
    cluster_sync();
    return before + inclusive - v;
}

// ---- numbers -------------------------------------------------------------------------------------------------------

// A logit that is no number counts as minus infinity.
DEVICE float number(float logit) { return logit == logit ? logit : NEGATIVE_INFINITY; }

// An integer that orders as the float does.
DEVICE u32 order_key(float v) {
    u32 bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float from_order_key(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Greater means better: by logit, then by lower id.
DEVICE u64 rank_of(float logit, u32 id) { return (u64)order_key(logit) << 32 | (0xffffffffu - id); }

// Probability relative to the most likely token, in units of 2^-40.
DEVICE u64 mass_of(float logit, float maximum) {
    return (u64)(expf(logit - maximum) * MASS_ONE);
}

// The first 53 bits of the block, as a fraction of 2^64.
DEVICE u64 philox(u32 key0, u32 key1, u32 c0, u32 c1) {
    u32 c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        u32 h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        u32 h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ key0;
        c1 = l1;
        c2 = h0 ^ c3 ^ key1;
        c3 = l0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return ((u64)c0 << 32 | c1) & ~0x7ffull;
}

// ---- the kept set ----------------------------------------------------------------------------------------------------

// Tokens with a key above `key`, and the `ties` lowest ids of those that have it.
struct Cut {
    u32 key;
    u64 ties;
};

// The best tokens of the row whose weights, added best first, first reach `wanted` (at least 1). `weight` is 1 (top-k)
// or the mass (top-p) of one token; tokens below `floor_cut` do not exist. Each pass cuts the range of keys that holds
// the last kept one into BINS parts.
template <typename Weight>
DEVICE Cut select(Shared& shared, const float* logits, int count, u64 wanted, u32 top_key, Cut floor_cut, Weight weight) {
    u64 low_key = floor_cut.key, high = (u64)top_key + 1;  // the key sought is in low_key .. high
    u64 above = 0;                                         // weight of keys from `high` on
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    while (high - low_key > 1) {
        int bits = 64 - __clzll(high - low_key - 1);
        int shift = bits > BIN_BITS ? bits - BIN_BITS : 0;
        for (int i = threadIdx.x; i < 3 * BINS; i += THREADS) shared.parts[0][i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += THREADS) {
            u32 key = order_key(logits[i]);
            if (key < low_key || key >= high) continue;
            u32 bin = key - (u32)low_key >> shift;
            u64 w = weight(logits[i]);
#pragma unroll
            for (int part = 0; part < 3; part++) {
                u32 bits = w >> 14 * part & 0x3fff;
                if (bits) atomicAdd(&shared.parts[part][bin], bits);
            }
        }
        __syncthreads();
        if (threadIdx.x < BINS) {
            u64 sum = 0;
            for (int part = 0; part < 3; part++) sum += (u64)shared.parts[part][threadIdx.x] << 14 * part;
            shared.bins[threadIdx.x] = sum;
        }
        cluster_sync();
        // a thread a bin, from the highest on
        u32 bin = BINS - 1 - threadIdx.x;
        u64 sum = 0;
        if (threadIdx.x < BINS) {
            for (u32 rank = 0; rank < CLUSTER; rank++) sum += read_peer(&shared.bins[bin], rank);
        }
        u64 inclusive = sum;
        for (int offset = 1; offset < 32; offset <<= 1) {
            u64 other = __shfl_up_sync(FULL_WARP, inclusive, offset);
            if (lane >= offset) inclusive += other;
        }
        if (lane == 31) shared.warps[warp] = inclusive;
        cluster_sync();
        u64 before = above + inclusive - sum;
        for (int i = 0; i < warp; i++) before += shared.warps[i];
        if (threadIdx.x < BINS && before < wanted && (before + sum >= wanted || bin == 0)) {
            shared.chosen = bin;
            shared.above = before;
        }
        __syncthreads();
        above = shared.above;
        u64 end = low_key + ((u64)(shared.chosen + 1) << shift);
        low_key += (u64)shared.chosen << shift;
        high = end < high ? end : high;
    }
    u32 low = low_key;
    u64 one = weight(from_order_key(low));
    u64 missing = wanted > above ? wanted - above : 1;
    u64 ties = one ? (missing + one - 1) / one : 1;
    if (low == floor_cut.key && ties > floor_cut.ties) ties = floor_cut.ties;
    return Cut{low, ties};
}

// ---- the kernel ------------------------------------------------------------------------------------------------------

// logits [rows, columns], of which the first `vocab` count; slots, positions (output position) per row. Per slot: params, `bias` [max_bias] of
// (id, value bits), `stops` [max_stops], output `counts` [vocab], bit mask `prompts` [vocab / 32] of prompt tokens.
// Writes drawn[row], last_tokens[slot] and counts.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 2)
    sample(Drawn* drawn, u32* last_tokens, const float* logits, const u32* slots, const u32* positions,
           const Params* params, const uint2* bias, const u32* stops, u16* counts, const u32* prompts, int vocab,
           int columns, int slice, int max_bias, int max_stops) {
    extern __shared__ __align__(16) float mine[];
    __shared__ Shared shared;
    allow_consumer();
    wait_for_producer();
    u32 rank = cluster_rank(), row = blockIdx.y, slot = slots[row];
    if (slot == NO_SLOT) return;
    const Params p = params[slot];
    u32 position = positions[row];
    int first = rank * slice;
    int count = vocab - first < slice ? vocab - first : slice;
    count = count > 0 ? count : 0;
    const float* source = logits + (u64)row * columns + first;
    u64 highest = 0;  // of what this thread brings
    auto take = [&](int i, float v) {
        v = number(v);
        u64 r = rank_of(v, first + i);
        if (r > highest) highest = r;
        return v;
    };
    int vectors = columns % 4 == 0 ? count / 4 : 0;
    constexpr int BATCH = 4;  // loads under way
    for (int base = threadIdx.x; base < vectors; base += BATCH * THREADS) {
        float4 v[BATCH];
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int i = base + b * THREADS;
            if (i < vectors) v[b] = __ldcg((const float4*)source + i);
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int i = base + b * THREADS;
            if (i < vectors)
                ((float4*)mine)[i] = make_float4(take(4 * i, v[b].x), take(4 * i + 1, v[b].y),
                                                 take(4 * i + 2, v[b].z), take(4 * i + 3, v[b].w));
        }
    }
    for (int i = 4 * vectors + threadIdx.x; i < count; i += THREADS) mine[i] = take(i, source[i]);
    __syncthreads();
    auto best = [&](u64 below) {
        u64 found = 0;
        for (int i = threadIdx.x; i < count; i += THREADS) {
            u64 r = rank_of(mine[i], first + i);
            if (r < below && r > found) found = r;
        }
        return cluster_reduce(shared, found, Max());
    };
    auto token_of = [](u64 r) { return 0xffffffffu - (u32)r; };
    auto logit_of = [](u64 r) { return from_order_key((u32)(r >> 32)); };

    u64 top = cluster_reduce(shared, highest, Max());
    float log_total = 0.0f;
    if (p.top_logprobs >= 0) {
        float maximum = logit_of(top);
        u64 mass = 0;
        for (int i = threadIdx.x; i < count; i += THREADS) mass += mass_of(mine[i], maximum);
        mass = cluster_reduce(shared, mass, Sum());
        log_total = maximum + logf((float)mass / MASS_ONE);
        u64 next = top;
        for (int i = 0; i < p.top_logprobs && i < MAX_TOP; i++) {
            if (rank == 0 && threadIdx.x == 0) {
                drawn[row].top_tokens[i] = token_of(next);
                drawn[row].top_logprobs[i] = logit_of(next) - log_total;
            }
            if (i + 1 < p.top_logprobs) next = best(next);
        }
    }

    // what changes logits
    const uint2* my_bias = bias + (u64)slot * max_bias;
    for (u32 i = threadIdx.x; i < p.bias_count; i += THREADS) {
        int at = (int)my_bias[i].x - first;
        if (at >= 0 && at < count) mine[at] += __uint_as_float(my_bias[i].y);
    }
    __syncthreads();
    if (position < p.min_tokens) {
        for (u32 i = threadIdx.x; i < p.stop_count; i += THREADS) {
            int at = (int)stops[(u64)slot * max_stops + i] - first;
            if (at >= 0 && at < count) mine[at] = NEGATIVE_INFINITY;
        }
        __syncthreads();
    }
    if (p.track_counts) {
        const u16* my_counts = counts + (u64)slot * vocab + first;
        const u32* prompt = prompts + (u64)slot * ((vocab + 31) / 32);
        for (int i = threadIdx.x; i < count; i += THREADS) {
            u32 times = my_counts[i];
            bool in_prompt = prompt[(first + i) / 32] >> ((first + i) % 32) & 1;
            float v = mine[i];
            if (times || in_prompt) v = v > 0.0f ? v / p.repetition : v * p.repetition;
            if (times) v -= p.presence + p.frequency * (float)times;
            mine[i] = v;
        }
        __syncthreads();
    }
    bool changed = p.bias_count || position < p.min_tokens || p.track_counts;
    if (changed) top = best(~0ull);

    u32 token = token_of(top);
    bool finite = fabsf(logit_of(top)) < -NEGATIVE_INFINITY;
    if (!p.greedy && finite) {
        float inverse = 1.0f / p.temperature;
        for (int i = threadIdx.x; i < count; i += THREADS) mine[i] *= inverse;
        float maximum = logit_of(top) * inverse;
        __syncthreads();
        u32 top_key = order_key(maximum);
        Cut cut{order_key(NEGATIVE_INFINITY) + 1, ~0ull};
        if (p.top_k && p.top_k < (u32)vocab)
            cut = select(shared, mine, count, p.top_k, top_key, cut, [](float) -> u64 { return 1; });

        // Masses of the kept tokens; the ties at the cut are kept by id. A thread owns neighbouring ids.
        int share = (slice + THREADS - 1) / THREADS;
        int begin = threadIdx.x * share < count ? threadIdx.x * share : count;
        int end = begin + share < count ? begin + share : count;
        auto ties_before = [&](Cut c) {
            if (c.ties == ~0ull) return 0ull;
            u64 ties = 0, total;
            for (int i = begin; i < end; i++) ties += order_key(mine[i]) == c.key;
            return cluster_scan(shared, ties, total);
        };
        auto kept_mass = [&](Cut c, u64& total) {
            u64 tie = ties_before(c);
            u64 mass = 0;
            for (int i = begin; i < end; i++) {
                u32 key = order_key(mine[i]);
                if (key > c.key || (key == c.key && tie++ < c.ties)) mass += mass_of(mine[i], maximum);
            }
            u64 before = cluster_scan(shared, mass, total);
            return before;
        };
        u64 total;
        u64 before = kept_mass(cut, total);
        bool narrowed = false;
        if (p.top_p < 1.0f) {
            u64 wanted = (u64)((double)total * (double)p.top_p);
            cut = select(shared, mine, count, wanted ? wanted : 1, top_key, cut,
                         [maximum](float v) { return mass_of(v, maximum); });
            narrowed = true;
        }
        if (p.min_p > 0.0f) {
            u32 least = order_key(maximum + logf(p.min_p));
            if (least > cut.key) {
                cut = Cut{least, ~0ull};
                narrowed = true;
            }
        }
        if (narrowed) before = kept_mass(cut, total);

        u64 random = philox(p.seed_low, p.seed_high, p.choice, position);
        u64 target = __umul64hi(random, total);
        u64 tie = ties_before(cut);
        u64 found = 0;
        for (int i = begin; i < end; i++) {
            u32 key = order_key(mine[i]);
            if (!(key > cut.key || (key == cut.key && tie++ < cut.ties))) continue;
            u64 mass = mass_of(mine[i], maximum);
            if (target >= before && target - before < mass) found = (u64)(first + i) + 1;
            before += mass;
        }
        found = cluster_reduce(shared, found, Max());
        if (found) token = (u32)(found - 1);
    }

    if (rank == 0 && threadIdx.x == 0) {
        drawn[row].token = token;
        drawn[row].finite = finite;
        last_tokens[slot] = token;
        float raw = logits[(u64)row * columns + token];
        drawn[row].logprob = p.top_logprobs >= 0 ? raw - log_total : 0.0f;
        if (p.track_counts) {
            u16* at = counts + (u64)slot * vocab + token;
            if (*at < 0xffffu) (*at)++;
        }
    }
    cluster_sync();
}

// ---- log probabilities of known tokens -------------------------------------------------------------------------------

// For each row: log probability of `targets[row]` and of the `top` most likely tokens. One cluster a row, as above.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    score(Drawn* scored, const float* logits, const u32* targets, const u32* tops, int vocab, int columns, int slice) {
    extern __shared__ __align__(16) float mine[];
    __shared__ Shared shared;
    allow_consumer();
    wait_for_producer();
    u32 rank = cluster_rank(), row = blockIdx.y;
    int first = rank * slice;
    int count = vocab - first < slice ? vocab - first : slice;
    count = count > 0 ? count : 0;
    for (int i = threadIdx.x; i < count; i += THREADS) mine[i] = number(logits[(u64)row * columns + first + i]);
    __syncthreads();
    auto best = [&](u64 below) {
        u64 found = 0;
        for (int i = threadIdx.x; i < count; i += THREADS) {
            u64 r = rank_of(mine[i], first + i);
            if (r < below && r > found) found = r;
        }
        return cluster_reduce(shared, found, Max());
    };
    u64 next = best(~0ull);
    float maximum = from_order_key((u32)(next >> 32));
    u64 mass = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) mass += mass_of(mine[i], maximum);
    mass = cluster_reduce(shared, mass, Sum());
    float log_total = maximum + logf((float)mass / MASS_ONE);
    int top = tops[row] < MAX_TOP ? tops[row] : MAX_TOP;
    for (int i = 0; i < top; i++) {
        if (rank == 0 && threadIdx.x == 0) {
            scored[row].top_tokens[i] = 0xffffffffu - (u32)next;
            scored[row].top_logprobs[i] = from_order_key((u32)(next >> 32)) - log_total;
        }
        if (i + 1 < top) next = best(next);
    }
    if (rank == 0 && threadIdx.x == 0) {
        scored[row].token = targets[row];
        scored[row].logprob = number(logits[(u64)row * columns + targets[row]]) - log_total;
    }
}
