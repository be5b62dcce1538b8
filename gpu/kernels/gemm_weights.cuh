// Header of the products that read weights in two forms.
//
// w is bf16 [n, k], or fp8 as in fp8.cu, which stands for the bf16 that its codes and scales give: the same bits come out.
struct Bf16Weights {
    static constexpr bool CODES = false;
    static constexpr int RUN = 8;  // elements of 16 bytes
    const u16* data;
    __device__ __forceinline__ Bf16Weights(const void* data, const u32*) : data((const u16*)data) {}
    __device__ __forceinline__ const void* at(int row, int column, int k) const { return data + (u64)row * k + column; }
};

struct Fp8Weights {
    static constexpr bool CODES = true;
    static constexpr int RUN = 16;
    const u8* data;
    const u32* scales;
    __device__ __forceinline__ Fp8Weights(const void* data, const u32* scales)
        : data((const u8*)data), scales(scales) {}
    __device__ __forceinline__ const void* at(int row, int column, int k) const { return data + (u64)row * k + column; }
    // Those of the even and the odd rows of 8, in a block of 128 columns.
    __device__ __forceinline__ const u32* scale_pair(int rows, int block, int k) const {
        return scales + ((u64)rows * ((k + 127) / 128) + block) * 2;
    }
    // Those of rows `row` and row + 8 in a block of 64 columns.
    __device__ __forceinline__ void load_scales(u32 (&words)[2], int row, int block, int n, int k) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool valid = row + 8 * i < n && 64 * block < k;
            words[i] = valid ? __ldg(scale_pair(row / 8 + i, block / 2, k) + row % 2) : 0;
        }
    }
};
