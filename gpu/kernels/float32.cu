// A decoder in f32 throughout, for checking: plain kernels without tensor cores. Every sum has one order, whatever else
// is in the batch.

#define TILE 64
#define SPAN 16

// hidden[token] = table[id]; an id of PLACEHOLDER takes the token that the token's slot sampled last.
extern "C" __global__ void __launch_bounds__(128)
    embed_f32(float* hidden, const float* table, const u32* ids, const u32* slots, const u32* last_tokens, int width) {
    allow_consumer();
    wait_for_producer();
    int token = blockIdx.x;
    u32 id = ids[token];
    if (id == PLACEHOLDER) id = last_tokens[slots[token]];
    for (int i = threadIdx.x; i < width; i += blockDim.x) hidden[(u64)token * width + i] = table[(u64)id * width + i];
}

// out[r] = hidden[rows[r]] * weight / rms (rows == nullptr: row r itself).
extern "C" __global__ void __launch_bounds__(256)
    norm_f32(float* out, const float* hidden, const float* weight, const u32* rows, int width, float eps) {
    __shared__ float warps[8];
    allow_consumer();
    wait_for_producer();
    const float* in = hidden + (u64)(rows ? rows[blockIdx.x] : blockIdx.x) * width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum = fmaf(in[i], in[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int i = 0; i < 8; i++) total += warps[i];
    float scale = 1.0f / sqrtf(total / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[(u64)blockIdx.x * width + i] = in[i] * scale * weight[i];
}

// out (m x n) = x (m x k) * w (n x k) turned, added to what is there if `add`. A block has a tile of 64 x 64, a thread
// every 16th row and column of it.
extern "C" __global__ void __launch_bounds__(256)
    gemm_f32(float* out, const float* x, const float* w, int m, int n, int k, int add) {
    __shared__ float left[SPAN][TILE + 1], right[SPAN][TILE + 1];
    allow_consumer();
    wait_for_producer();
    int row0 = blockIdx.y * TILE, column0 = blockIdx.x * TILE;
    int column = threadIdx.x % 16, row = threadIdx.x / 16;
    float sums[4][4] = {};
    for (int first = 0; first < k; first += SPAN) {
        for (int i = threadIdx.x; i < TILE * SPAN; i += blockDim.x) {
            int at = i % SPAN, line = i / SPAN;
            bool inside = first + at < k;
            left[at][line] = inside && row0 + line < m ? x[(u64)(row0 + line) * k + first + at] : 0.0f;
            right[at][line] = inside && column0 + line < n ? w[(u64)(column0 + line) * k + first + at] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int at = 0; at < SPAN; at++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[i][j] = fmaf(left[at][row + 16 * i], right[at][column + 16 * j], sums[i][j]);
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            int r = row0 + row + 16 * i, c = column0 + column + 16 * j;
            if (r >= m || c >= n) continue;
            float* to = out + (u64)r * n + c;
            *to = add ? *to + sums[i][j] : sums[i][j];
        }
    }
}

// gated[token][i] = silu(gate) * up, where a row of `both` has all gates, then all ups.
extern "C" __global__ void __launch_bounds__(256) gate_f32(float* gated, const float* both, int intermediate) {
    allow_consumer();
    wait_for_producer();
    const float* row = both + (u64)blockIdx.x * 2 * intermediate;
    for (int i = threadIdx.x; i < intermediate; i += blockDim.x) {
        float gate = row[i];
        gated[(u64)blockIdx.x * intermediate + i] = gate / (1.0f + expf(-gate)) * row[intermediate + i];
    }
}

// What follows the QKV product, as in qkv.cuh, of which rows of `qkv`, pages and tables are laid out alike: a warp takes a
// head of a token.
extern "C" __global__ void __launch_bounds__(256)
    heads_f32(float* queries, float* pages, const float* qkv, const float* bias, const float* q_norm,
              const float* k_norm, const float* cosines, const float* sines, const u32* positions, const u32* places,
              int tokens, int heads, int kv_heads, int page_shift, int dim, int norm_width, float eps) {
    allow_consumer();
    wait_for_producer();
    int all = heads + 2 * kv_heads, lane = threadIdx.x % 32, half = dim / 2;
    int unit = blockIdx.x * 8 + threadIdx.x / 32, token = unit / all, head = unit % all;
    if (token >= tokens) return;
    bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const float* in = qkv + ((u64)token * all + head) * dim;
    float low[2], high[2], sum = 0.0f;
    for (int j = 0; j < half / 32; j++) {
        int i = lane + 32 * j;
        low[j] = in[i] + (bias ? bias[head * dim + i] : 0.0f);
        high[j] = in[i + half] + (bias ? bias[head * dim + i + half] : 0.0f);
        sum = fmaf(low[j], low[j], fmaf(high[j], high[j], sum));
    }
    const float* norm = is_value ? nullptr : is_query ? q_norm : k_norm;
    float scale = 1.0f / sqrtf(warp_sum(sum) / norm_width + eps);
    float* out;
    if (is_query) {
        out = queries + ((u64)token * heads + head) * dim;
    } else {
        u32 place = places[token], page_size = 1u << page_shift;
        if (place == NO_SLOT) return;
        int kv_head = head - heads - (is_value ? kv_heads : 0);
        u64 block = ((u64)(place >> page_shift) * 2 + is_value) * kv_heads + kv_head;
        out = pages + (block * page_size + (place & (page_size - 1))) * dim;
    }
    for (int j = 0; j < half / 32; j++) {
        int i = lane + 32 * j;
        if (norm) {
            low[j] *= scale * norm[i];
            high[j] *= scale * norm[i + half];
        }
        if (!is_value) {
            u64 angle = (u64)positions[token] * half + i;
            turn_pair(low[j], high[j], cosines[angle], sines[angle]);
        }
        out[i] = low[j];
        out[i + half] = high[j];
    }
}

// Attention of query row x of sequence z, head y. The sequence's first row is `firsts[z]`, of `counts[z]`; without these
// lists it is row z alone. Warp w of four takes every fourth key, then the four are joined in order.
extern "C" __global__ void __launch_bounds__(128)
    attention_f32(float* out, const float* queries, const float* pages, const u32* tables, const u32* table_starts,
                  const u32* firsts, const u32* counts, const u32* positions, int heads, int kv_heads, int page_shift,
                  int window, int dim, float scale) {
    __shared__ float maxima[4], weights[4], values[4][128];
    allow_consumer();
    wait_for_producer();
    int sequence = blockIdx.z, head = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (counts && blockIdx.x >= counts[sequence]) return;
    u64 row = firsts ? firsts[sequence] + blockIdx.x : sequence;
    int position = positions[row], begin = position >= window ? position + 1 - window : 0;
    int kv_head = head / (heads / kv_heads), page_size = 1 << page_shift, parts = dim / 32;
    const float* query = queries + (row * heads + head) * dim;
    const u32* table = tables + table_starts[sequence];
    float q[4], value[4] = {}, maximum = __int_as_float(0xff800000), weight = 0.0f;
    for (int i = 0; i < parts; i++) q[i] = query[lane + 32 * i];
    for (int key = begin + warp; key <= position; key += 4) {
        u64 block = (u64)table[key >> page_shift] * 2 * kv_heads + kv_head;
        const float* k = pages + (block * page_size + (key & (page_size - 1))) * dim;
        const float* v = k + (u64)kv_heads * page_size * dim;
        float dot = 0.0f;
        for (int i = 0; i < parts; i++) dot = fmaf(q[i], k[lane + 32 * i], dot);
        float score = warp_sum(dot) * scale, joined = fmaxf(maximum, score);
        float kept = expf(maximum - joined), added = expf(score - joined);
        weight = weight * kept + added;
        for (int i = 0; i < parts; i++) value[i] = value[i] * kept + v[lane + 32 * i] * added;
        maximum = joined;
    }
    if (lane == 0) maxima[warp] = maximum, weights[warp] = weight;
    for (int i = 0; i < parts; i++) values[warp][lane + 32 * i] = value[i];
    __syncthreads();
    float highest = fmaxf(fmaxf(maxima[0], maxima[1]), fmaxf(maxima[2], maxima[3]));
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float total = 0.0f, sum = 0.0f;
        for (int part = 0; part < 4; part++) {
            float share = expf(maxima[part] - highest);
            total += weights[part] * share;
            sum += values[part][i] * share;
        }
        out[(row * heads + head) * dim + i] = sum / total;
    }
}
