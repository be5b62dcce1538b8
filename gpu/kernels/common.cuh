// Private header of every kernel file: scalar types, bf16 and fp8 conversions, tensor-core and asynchronous-copy
// instructions, reductions. Includes nothing, so that kernels compile wherever NVRTC is found.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define FULL_WARP 0xffffffffu
// A token id that stands for "what the previous step sampled in this slot".
#define PLACEHOLDER 0xffffffffu
// A token without a place in the KV pages (padding of a captured batch).
#define NO_SLOT 0xffffffffu

// ---- launches ----------------------------------------------------------------------------------------------------

// Programmatic dependent launch: everything read or written by an earlier kernel lies after `wait_for_producer`.
DEVICE void wait_for_producer() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void allow_consumer() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- numbers -----------------------------------------------------------------------------------------------------

DEVICE float from_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }
DEVICE float low_bf16(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Two floats as a pair of bf16, round to nearest even; `low` takes the lower half.
DEVICE u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

DEVICE u16 to_bf16(float value) { return (u16)pack_bf16(value, 0.0f); }

// Two floats as a pair of fp8 e4m3, saturating.
DEVICE u16 pack_e4m3(float low, float high) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

// A pair of fp8 e4m3 as a pair of f16.
DEVICE u32 unpack_e4m3(u16 pair) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
    return halves;
}

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- asynchronous copies -----------------------------------------------------------------------------------------

DEVICE u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Copies 16 bytes to shared memory, or zeros if `valid` is false; `source` must be readable only if valid.
DEVICE void copy_async(u32 target, const void* source, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes)
                 : "memory");
}

// The same through L1, for data that neighbouring warps read too.
DEVICE void copy_async_cached(u32 target, const void* source, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes)
                 : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE uint4 load_shared(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// ---- tensor cores ------------------------------------------------------------------------------------------------

struct Fragment {
    float c[4];
};

// d += a (16x16, row) * b (16x8, column), bf16 with f32 accumulation. Lane l = 4g + t holds
// a0 (row g, k 2t), a1 (row g+8, k 2t), a2 (row g, k 2t+8), a3 (row g+8, k 2t+8); b0 (k 2t, column g),
// b1 (k 2t+8, column g); c0, c1 (row g, columns 2t, 2t+1), c2, c3 (row g+8).
DEVICE void mma(Fragment& d, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d.c[0]), "+f"(d.c[1]), "+f"(d.c[2]), "+f"(d.c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit elements; lanes 8i..8i+7 give the row addresses of matrix i.
DEVICE uint4 load_matrices(u32 address) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

DEVICE uint4 load_matrices_transposed(u32 address) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

// ---- clusters ----------------------------------------------------------------------------------------------------

DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Reads another block's shared memory at the address that `local` has here.
DEVICE u64 read_peer(const u64* local, u32 rank) {
    u64 value;
    asm volatile("{.reg .u32 peer; mapa.shared::cluster.u32 peer, %1, %2; ld.shared::cluster.u64 %0, [peer];}"
                 : "=l"(value)
                 : "r"(shared_address(local)), "r"(rank)
                 : "memory");
    return value;
}

DEVICE float4 read_peer(const float4* local, u32 rank) {
    float4 v;
    asm volatile(
        "{.reg .u32 peer; mapa.shared::cluster.u32 peer, %4, %5; ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [peer];}"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "r"(shared_address(local)), "r"(rank)
        : "memory");
    return v;
}

// ---- reductions --------------------------------------------------------------------------------------------------

DEVICE float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
    for (int offset = 16; offset; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, offset));
    return v;
}

// Greatest and sum over the four lanes that share a fragment row.
DEVICE float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 2));
}
