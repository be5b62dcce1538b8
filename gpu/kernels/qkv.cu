// What follows the QKV projection where the product leaves it to a kernel of its own: see qkv.cuh.
//
// `qkv` row: heads * D queries, then kv_heads * D keys, then kv_heads * D values. One warp takes one head of one token.

template <int D, bool CODES>
DEVICE void qkv_head(const u16* qkv, int tokens, const HeadOutput& to) {
    constexpr int PER = D / 64;
    allow_consumer();
    wait_for_producer();
    u32 all_heads = to.heads + 2 * to.kv_heads;
    u32 unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int token = unit / all_heads;
    int head = unit % all_heads;
    if (token >= tokens) return;
    const u16* in = qkv + ((u64)token * all_heads + head) * D + threadIdx.x % 32 * PER;
    float low[PER], high[PER];
    load_run(low, in);
    load_run(high, in + D / 2);
    HeadTables<D> tables;
    tables.load(to, token, head);
    store_head<D, CODES>(to, tables, low, high, token, head);
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
