// Private header of every kernel file: scalar types, bf16 and fp8 conversions, tensor-core and asynchronous-copy
// instructions, reductions. Includes nothing, so that kernels compile wherever NVRTC is found; sizes that the host shares are
// defined by it (sizes.rs).
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

DEVICE float2 load_shared_pair(u32 address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}
DEVICE void store_shared(u32 address, u32 v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory"); }
DEVICE void store_shared(u32 address, float v0, float v1) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(v0), "f"(v1) : "memory");
}
DEVICE void store_shared(u32 address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
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

// The other way: lane 4g + t has columns 2t, 2t + 1 of row g of each.
DEVICE void store_matrices(u32 address, uint4 v) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
}

// An 8x8 matrix turned: lane 4g + t has columns 2t, 2t + 1 of row g, gets rows 2t, 2t + 1 of column g.
DEVICE u32 transpose(u32 pair) {
    u32 turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
    return turned;
}

// ---- warpgroups: products of whole tiles -----------------------------------------------------------------------------

// Copies between proxies and threads complete on a barrier in shared memory; it has a phase bit that each round flips.
DEVICE void barrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_expect(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
DEVICE void barrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Returns once the round of parity `phase` is complete.
DEVICE void barrier_wait(u64* barrier, u32 phase) {
    asm volatile(
        "{.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;}"
        ::"r"(shared_address(barrier)), "r"(phase)
        : "memory");
}

// How the copy engine finds boxes of a matrix; made on the host.
struct __align__(64) TensorMap {
    u64 words[16];
};

// Starts copying the box at (row, column) to shared memory, swizzled in rows of 128 bytes; what lies outside of the
// matrix becomes zeros. The whole box counts on `barrier`. One thread calls it; `target` is a multiple of 1024.
DEVICE void copy_box(u32 target, const TensorMap& map, int column, int row, u64* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(target), "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// The other way: starts storing the box that lies at `source`, or adding it to f32, as `__fadd_rn` does; what lies outside
// of the matrix is left out. One thread calls it, after `shared_fence` of those that wrote the box.
DEVICE void store_box(const TensorMap& map, u32 source, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                 "r"(column), "r"(row), "r"(source)
                 : "memory");
}
DEVICE void add_box(const TensorMap& map, u32 source, int column, int row) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                 "r"(column), "r"(row), "r"(source)
                 : "memory");
}
// Of the boxes that a thread stores: closes a batch; waits until shared memory of all but the last PENDING batches may be
// written again; waits until all are stored.
DEVICE void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int PENDING>
DEVICE void store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
DEVICE void store_wait() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Starts copying `bytes` (a multiple of 16) that lie together; they count on `barrier`. One thread calls it.
DEVICE void copy_bulk(u32 target, const void* source, u32 bytes, u64* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
                 "l"(source), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// How the L2 cache keeps what is read once: it leaves before anything else.
DEVICE u64 read_once() {
    u64 policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
DEVICE void copy_box(u32 target, const TensorMap& map, int column, int row, u64* barrier, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%2, %3}], [%4], %5;"
        ::"r"(target), "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "l"(policy)
        : "memory");
}
DEVICE void copy_bulk(u32 target, const void* source, u32 bytes, u64* barrier, u64 policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        ::"r"(target), "l"(source), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
        : "memory");
}

// The same to the same place in both blocks of a pair; each one's barrier counts what comes to it.
DEVICE void copy_box_to_pair(u32 target, const TensorMap& map, int column, int row, u64* barrier) {
    constexpr u16 BOTH = 3;
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
        "l"(&map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(BOTH)
        : "memory");
}

// A tile of rows of 128 bytes, swizzled; 16 elements from `address` on are one step.
DEVICE u64 matrix_descriptor(u32 address) {
    constexpr u64 SWIZZLE_128 = 1, GROUP_OF_ROWS = 1024;
    return (u64)(address >> 4 & 0x3fff) | (u64)1 << 16 | (GROUP_OF_ROWS >> 4) << 32 | SWIZZLE_128 << 62;
}

// A tile of rows of 128 bytes, swizzled, that is read turned: rows are what is summed over. Tiles `stride` bytes apart
// continue to the right.
DEVICE u64 turned_descriptor(u32 address, u32 stride) {
    return matrix_descriptor(address) & ~((u64)0x3fff << 16) | (u64)(stride >> 4) << 16;
}

// The same, so many bytes further.
DEVICE u64 advance(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }

DEVICE void matrices_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void matrices_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
DEVICE void matrices_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// d (64 x N) = a (64 x 16) * b (16 x N), added to d if `add`, by four warps; both operands in shared memory, bf16, rows
// along k. Lane 4g + t of warp w holds in d[4j .. 4j+3] row 16w + g, columns 8j + 2t, 8j + 2t + 1, and row 16w + g + 8.
#define ACCUMULATORS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ACCUMULATORS_8(d, i) ACCUMULATORS_4(d, i), ACCUMULATORS_4(d, i + 4)
#define ACCUMULATORS_16(d, i) \
    ACCUMULATORS_4(d, i), ACCUMULATORS_4(d, i + 4), ACCUMULATORS_4(d, i + 8), ACCUMULATORS_4(d, i + 12)
#define ACCUMULATORS_32(d, i) ACCUMULATORS_16(d, i), ACCUMULATORS_16(d, i + 16)
#define ACCUMULATORS_48(d, i) ACCUMULATORS_32(d, i), ACCUMULATORS_16(d, i + 32)
#define ACCUMULATORS_64(d, i) ACCUMULATORS_32(d, i), ACCUMULATORS_32(d, i + 32)
#define ACCUMULATORS_96(d, i) ACCUMULATORS_64(d, i), ACCUMULATORS_32(d, i + 64)
#define ACCUMULATORS_128(d, i) ACCUMULATORS_64(d, i), ACCUMULATORS_64(d, i + 64)


#define OPERANDS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define OPERANDS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define OPERANDS_32 OPERANDS_16 ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define OPERANDS_48 OPERANDS_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define OPERANDS_64 OPERANDS_48 ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define OPERANDS_96 OPERANDS_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
    "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define OPERANDS_128 OPERANDS_96 ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// Arguments: name, N, elements and kinds of a step, what follows the factors, how many of d a thread holds, and numbers of the
// operands that follow.
#define MULTIPLY_KIND(NAME, N, KIND, TURNS, COUNT, A, B, ADD)                                                    \
    DEVICE void NAME(float (&d)[COUNT], u64 a, u64 b, bool add) {                                                \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N          \
                     KIND " {" OPERANDS_##COUNT "}, %" #A ", %" #B ", p, 1, 1" TURNS ";}"                        \
                     : ACCUMULATORS_##COUNT(d, 0)                                                                \
                     : "l"(a), "l"(b), "r"((int)add));                                                           \
    }
#define MULTIPLY(N, COUNT, A, B, ADD) MULTIPLY_KIND(multiply, N, "k16.f32.bf16.bf16", ", 0, 0", COUNT, A, B, ADD)
MULTIPLY(16, 8, 8, 9, 10)
MULTIPLY(32, 16, 16, 17, 18)
MULTIPLY(64, 32, 32, 33, 34)
MULTIPLY(96, 48, 48, 49, 50)
MULTIPLY(128, 64, 64, 65, 66)
MULTIPLY(192, 96, 96, 97, 98)
MULTIPLY(256, 128, 128, 129, 130)

// The same of fp8 codes, 32 a step.
#define MULTIPLY_CODES(N, COUNT, A, B, ADD) MULTIPLY_KIND(multiply_codes, N, "k32.f32.e4m3.e4m3", "", COUNT, A, B, ADD)
MULTIPLY_CODES(64, 32, 32, 33, 34)
MULTIPLY_CODES(128, 64, 64, 65, 66)
MULTIPLY_CODES(192, 96, 96, 97, 98)

// The same with the left operand in registers, as `mma` takes it, and the right one turned.
#define MULTIPLY_TURNED(N, COUNT, OUTPUTS, A0, A1, A2, A3, B, ADD)                                               \
    DEVICE void multiply_turned(float (&d)[COUNT], const uint4& a, u64 b, bool add) {                            \
        asm volatile("{.reg .pred p; setp.ne.b32 p, %" #ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N          \
                     "k16.f32.bf16.bf16 {" OPERANDS_##COUNT "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B  \
                     ", p, 1, 1, 1;}"                                                                            \
                     : OUTPUTS                                                                                   \
                     : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"((int)add));                           \
    }
MULTIPLY_TURNED(64, 32, ACCUMULATORS_32(d, 0), 32, 33, 34, 35, 36, 37)
MULTIPLY_TURNED(128, 64, ACCUMULATORS_64(d, 0), 64, 65, 66, 67, 68, 69)

// Warpgroups share out the registers of their block; all warps of one call it, with a constant.
#define TAKE_REGISTERS(count) asm volatile("setmaxnreg.inc.sync.aligned.u32 " #count ";")
#define GIVE_REGISTERS(count) asm volatile("setmaxnreg.dec.sync.aligned.u32 " #count ";")

// What this thread wrote to shared memory is there for the tensor cores and the copy engine.
DEVICE void shared_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The same with a (64 x 16) in registers, laid out as that of `mma`, warp w of the four holding rows 16w ...
DEVICE void multiply(float (&d)[16], const u32* a, u64 b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %21, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"
        ", {%16, %17, %18, %19}, %20, p, 1, 1, 0;}"
        : ACCUMULATORS_16(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

DEVICE void multiply(float (&d)[32], const u32* a, u64 b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
        ", {%32, %33, %34, %35}, %36, p, 1, 1, 0;}"
        : ACCUMULATORS_32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

DEVICE void multiply(float (&d)[64], const u32* a, u64 b, bool add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
        "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
        "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
        "%59, %60, %61, %62, %63}"
        ", {%64, %65, %66, %67}, %68, p, 1, 1, 0;}"
        : ACCUMULATORS_64(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)add));
}

// ---- clusters ----------------------------------------------------------------------------------------------------

DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
DEVICE void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Where another block of the cluster has what is at `local` here.
DEVICE u32 peer_address(const void* local, u32 rank) {
    u32 peer;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(shared_address(local)), "r"(rank));
    return peer;
}

// Arrives on another block's barrier, at the address that `local` has here.
DEVICE void barrier_arrive_at(u32 peer) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(peer) : "memory");
}
DEVICE void barrier_arrive_peer(u64* local, u32 rank) {
    asm volatile(
        "{.reg .u32 peer; mapa.shared::cluster.u32 peer, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [peer];}"
        ::"r"(shared_address(local)), "r"(rank)
        : "memory");
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

DEVICE float read_peer(const float* local, u32 rank) {
    float v;
    asm volatile("{.reg .u32 peer; mapa.shared::cluster.u32 peer, %1, %2; ld.shared::cluster.f32 %0, [peer];}"
                 : "=f"(v)
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
DEVICE float quad_sum(float v) {
    v += __shfl_xor_sync(FULL_WARP, v, 1);
    return v + __shfl_xor_sync(FULL_WARP, v, 2);
}

// ---- norms ---------------------------------------------------------------------------------------------------------
//
// RMSNorm in two halves: whoever makes a row leaves it times the norm's weights in bf16, and sums of squares of groups
// of 8 columns; the product that takes the row multiplies its own rows by `rms_scale`. The order of additions is a
// function of the width alone: a group is a tree, a lane takes every 32nd group in ascending order, lanes are a tree.

DEVICE float square_pair(float a, float b) { return __fmaf_rn(b, b, __fmul_rn(a, a)); }

// 1 / rms of a row, from sums of squares of its groups; a warp calls it, every lane gets the result.
template <typename Group>
DEVICE float rms_scale(Group group, int width, float eps) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = threadIdx.x % 32; i < width / 8; i += 32) sum = __fadd_rn(sum, group(i));
    return rsqrtf(warp_sum(sum) / width + eps);
}

// ---- what several kernels compute alike ------------------------------------------------------------------------------

// Adds the squares of a pair, for the norm of a head.
DEVICE float add_squares(float sum, float low, float high) { return __fmaf_rn(low, low, __fmaf_rn(high, high, sum)); }

// Turns a pair by an angle.
DEVICE void turn_pair(float& low, float& high, float cosine, float sine) {
    float l = low;
    low = __fmaf_rn(l, cosine, -__fmul_rn(high, sine));
    high = __fmaf_rn(high, cosine, __fmul_rn(l, sine));
}
