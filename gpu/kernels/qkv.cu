// What follows the QKV projection where the product leaves it to a kernel of its own: see qkv.cuh.
//
// `qkv` row: heads * D queries, then kv_heads * D keys, then kv_heads * D values. One warp takes D / 32 neighbouring heads of
// one token.

template <int D, bool CODES>
DEVICE void qkv_head(const u16* qkv, int tokens, const HeadOutput& to) {
    constexpr int HEADS = D / 32;
    using Share = HeadShare<D, HEADS>;
    allow_consumer();
    wait_for_producer();
    int all_heads = to.heads + 2 * to.kv_heads;
    u32 groups = (all_heads + HEADS - 1) / HEADS;
    u32 unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int token = unit / groups, head = unit % groups * HEADS + threadIdx.x % 32 / Share::LANES;
    if (token >= tokens) return;
    bool valid = head < all_heads;
    if (!valid) head = all_heads - 1;
    const u16* in = qkv + ((u64)token * all_heads + head) * D;
    float low[HEADS][Share::PER], high[HEADS][Share::PER];
#pragma unroll
    for (int part = 0; part < HEADS; part++) {
        load_run(low[part], in + Share::element(part));
        load_run(high[part], in + Share::element(part) + D / 2);
    }
    TokenTables<D, HEADS> of_token;
    of_token.load(to, token);
    HeadTables<D, HEADS> tables;
    tables.load(to, head);
    store_head<D, CODES, HEADS>(to, of_token, tables, low, high, token, head, valid);
}

#define QKV_HEAD(NAME, D, CODES)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256) qkv_head_##NAME(                                              \
        const __grid_constant__ HeadOutput to, const u16* qkv, int tokens) {                                        \
        qkv_head<D, CODES>(qkv, tokens, to);                                                                        \
    }
QKV_HEAD(64, 64, false)
QKV_HEAD(128, 128, false)
QKV_HEAD(64_fp8, 64, true)
QKV_HEAD(128_fp8, 128, true)
