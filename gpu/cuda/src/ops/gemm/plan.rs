//! Which kernel makes a product.

use super::{
    Gemm, GemmMode, GemmOutput, Weights,
    cluster::Cluster,
    fused_rows,
    many::{self, Many},
    segments,
    stream::Stream,
    wide::{Cut, Wide},
};
use crate::{
    ops::{KvView, fp8::Fp8View},
    sizes::{STREAM_ROWS, WIDE_COLUMNS},
};

/// From so many rows on FP8 weights are unpacked once, in place of by every block, or rows become codes as well.
const UNPACKED_ROWS: usize = 384;
/// Rows of x from which on pairs of blocks take tiles.
const PAIRED_ROWS: usize = 129;
/// Warps that the streaming kernel wants in flight, about four a multiprocessor.
const BUSY_WARPS: usize = 528;
/// Blocks of 128 rows of the wide kernel from which on they fill the GPU without being split.
const ENOUGH_BLOCKS: usize = 132;
/// Up to this k, blocks of 64 rows that are not split are faster, if they nearly fill the GPU, and once.
const SHORT_K: usize = 3072;
const NARROW_BLOCKS: std::ops::RangeInclusive<usize> = 96..=ENOUGH_BLOCKS;

/// What a product is, its sizes aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub mode: GemmMode,
    pub weights: WeightKind,
    pub output: OutputKind,
    /// As in [`Gemm`].
    pub half: bool,
    /// Whether cuBLASLt was found.
    pub library: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightKind {
    Bf16,
    Fp8(Room),
}

/// What there is room for beside FP8 weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Nothing,
    /// The weights unpacked.
    Weights,
    /// Also plain codes of weights and rows.
    Codes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputKind {
    Plain,
    Gate,
    /// Heads of so many elements, with keys and values in bf16.
    Heads(usize),
}

impl Kind {
    /// `codes`: there is room for them.
    pub fn of(op: &Gemm<'_>, codes: bool, library: bool) -> Self {
        let weights = match op.w {
            Weights::Bf16(_) => WeightKind::Bf16,
            Weights::Fp8(Fp8View { room: None, .. }) => WeightKind::Fp8(Room::Nothing),
            Weights::Fp8(_) if codes => WeightKind::Fp8(Room::Codes),
            Weights::Fp8(_) => WeightKind::Fp8(Room::Weights),
        };
        let output = match op.output {
            GemmOutput::Gate(_) => OutputKind::Gate,
            GemmOutput::Heads(heads) if matches!(heads.kv.pages, KvView::Bf16(_)) => {
                OutputKind::Heads(heads.kv.head_dim)
            }
            _ => OutputKind::Plain,
        };
        Self { mode: op.mode, weights, output, half: op.half, library }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// FP8 weights are unpacked first: to the kernel they are bf16.
    pub unpacks: bool,
    pub kernel: Kernel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// Warps each take some rows of w over one segment.
    Stream(Stream),
    /// A cluster of blocks makes a tile.
    Cluster(Cluster),
    /// The same, and what follows of queries, keys and values.
    Heads(Cluster),
    /// A block, or one for each segment, makes a tile of 128 columns.
    Wide(Wide),
    /// Pairs of blocks take tile after tile.
    Many(Many),
    /// The same of codes of weights and rows.
    Codes(Many),
    /// cuBLASLt.
    Library,
}

/// The kernel for sizes m, n and k.
pub(super) fn choose([m, n, k]: [usize; 3], kind: Kind) -> Plan {
    if m >= UNPACKED_ROWS
        && kind.mode == GemmMode::BatchVariant
        && kind.weights == WeightKind::Fp8(Room::Codes)
    {
        return Plan { unpacks: false, kernel: Kernel::Codes(Many::codes(m, n, k)) };
    }
    let unpacks = m >= UNPACKED_ROWS && matches!(kind.weights, WeightKind::Fp8(Room::Weights | Room::Codes));
    let fp8 = kind.weights != WeightKind::Bf16 && !unpacks;
    let kernel = if m <= STREAM_ROWS {
        Kernel::Stream(stream([m, n], fp8))
    } else if m <= fused_rows(n, fp8) {
        match kind.output {
            OutputKind::Heads(head_dim) => Kernel::Heads(Cluster::of_heads(m, head_dim, kind.half)),
            _ if kind.half => Kernel::Cluster(Cluster::of_half(m, n)),
            _ => Kernel::Cluster(Cluster::new(m, n)),
        }
    } else {
        match kind.mode {
            GemmMode::BatchInvariant => canonical([m, n, k], fp8, kind.output),
            GemmMode::BatchVariant => quickest([m, n, k], fp8, kind),
        }
    };
    Plan { unpacks, kernel }
}

fn stream([m, n]: [usize; 2], fp8: bool) -> Stream {
    let enough = |blocks: usize| n / (8 * blocks) * segments(n) >= BUSY_WARPS;
    let token_tiles = m.div_ceil(8);
    // one tile of x leaves room for deep rings, which read faster than wide ones
    let blocks = if token_tiles > 1 && enough(if fp8 { 4 } else { 8 }) {
        4
    } else if enough(2) {
        2
    } else {
        1
    };
    Stream::new(blocks, token_tiles, n, fp8)
}

/// Of the kernels of more rows those that follow the canonical order.
fn canonical([m, n, k]: [usize; 3], fp8: bool, output: OutputKind) -> Kernel {
    let whole = segments(n) == 1;
    let blocks = |rows: usize| m.div_ceil(rows) * n.div_ceil(WIDE_COLUMNS);
    // the copy engine stores rows of multiples of 16 bytes
    let stores = output != OutputKind::Gate || n.is_multiple_of(16);
    let (rows, cut) = match m {
        ..=32 => (32, if whole { Cut::Whole } else { Cut::Split }),
        33..=64 => (64, if whole { Cut::Whole } else { Cut::Split }),
        PAIRED_ROWS.. if !fp8 && (whole || !many::too_few(m, n)) => {
            if stores {
                return Kernel::Many(Many::folded(m, n, k));
            }
            (128, Cut::Folded)
        }
        _ if !whole && k <= SHORT_K && NARROW_BLOCKS.contains(&blocks(64)) => (64, Cut::Folded),
        _ if whole || blocks(128) > ENOUGH_BLOCKS => (128, Cut::Folded),
        _ => (128, Cut::Split),
    };
    Kernel::Wide(Wide::new(rows, cut, fp8))
}

/// The fastest, whatever its order.
fn quickest([m, n, k]: [usize; 3], fp8: bool, kind: Kind) -> Kernel {
    match (canonical([m, n, k], fp8, kind.output), kind.output) {
        // the library would leave the gate to a kernel of its own
        (Kernel::Many(_), OutputKind::Gate) => Kernel::Many(Many::whole(m, n, k)),
        (kernel, OutputKind::Gate) => kernel,
        // of the wide kernels those that cut nothing read as fast as the library
        (kernel @ Kernel::Wide(Wide { cut: Cut::Whole, .. }), _) => kernel,
        (kernel, _) if fp8 || !kind.library => kernel,
        _ => Kernel::Library,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BF16: Kind = Kind {
        mode: GemmMode::BatchInvariant,
        weights: WeightKind::Bf16,
        output: OutputKind::Plain,
        half: false,
        library: true,
    };
    const FP8: Kind = Kind { weights: WeightKind::Fp8(Room::Codes), ..BF16 };
    const VARIANT: Kind = Kind { mode: GemmMode::BatchVariant, ..BF16 };

    fn kernel(sizes: [usize; 3], kind: Kind) -> &'static str {
        match choose(sizes, kind).kernel {
            Kernel::Stream(stream) => stream.name,
            Kernel::Cluster(cluster) | Kernel::Heads(cluster) => cluster.name,
            Kernel::Wide(wide) => wide.name,
            Kernel::Many(many) | Kernel::Codes(many) => many.name,
            Kernel::Library => "cublaslt",
        }
    }

    fn expect(kind: Kind, cases: &[([usize; 3], &str)]) {
        let found: Vec<_> = cases.iter().map(|&(sizes, _)| (sizes, kernel(sizes, kind))).collect();
        assert_eq!(found, cases, "{kind:?}");
    }

    #[test]
    fn few_rows_stream_and_more_multiply_tiles() {
        expect(
            BF16,
            &[
                ([1, 1024, 4096], "gemm_stream_1_1"),
                ([1, 4096, 4096], "gemm_stream_2_1"),
                ([8, 6144, 4096], "gemm_stream_2_1_short"),
                ([9, 1024, 4096], "gemm_stream_1_2"),
                ([16, 24_576, 4096], "gemm_stream_4_2"),
                ([17, 4096, 4096], "gemm_cluster_64_32_two"),
                ([64, 24_576, 4096], "gemm_cluster_192_64_one"),
                ([128, 4096, 4096], "gemm_wide_128_split"),
                ([128, 6144, 1024], "gemm_wide_64_fold"),
                ([128, 24_576, 4096], "gemm_wide_128_fold"),
                ([256, 1024, 3072], "gemm_wide_128_split"),
                ([256, 4096, 4096], "gemm_many_64_fold"),
                ([512, 1024, 3072], "gemm_many_64_fold"),
                ([1024, 24_576, 4096], "gemm_many_192_fold"),
            ],
        );
    }

    #[test]
    fn many_columns_are_not_cut() {
        expect(
            BF16,
            &[
                ([17, 151_936, 4096], "gemm_wide_32"),
                ([64, 151_936, 4096], "gemm_wide_64"),
                ([128, 151_936, 4096], "gemm_wide_128_fold"),
                ([256, 151_936, 4096], "gemm_many_192_fold"),
            ],
        );
    }

    #[test]
    fn fp8_weights_are_unpacked_for_many_rows_if_there_is_room() {
        expect(
            FP8,
            &[
                ([8, 51_200, 5120], "gemm_stream_2_1_fp8"),
                ([16, 5120, 8192], "gemm_stream_4_2_fp8"),
                ([17, 4096, 4096], "gemm_wide_32_split_fp8"),
                ([64, 51_200, 5120], "gemm_wide_64_fp8"),
                ([256, 51_200, 5120], "gemm_wide_128_fold_fp8"),
                ([512, 4096, 4096], "gemm_many_128_fold"),
            ],
        );
        let roomless = Kind { weights: WeightKind::Fp8(Room::Nothing), ..FP8 };
        expect(roomless, &[([512, 4096, 4096], "gemm_wide_128_split_fp8")]);
        let unpacks = |m, kind| choose([m, 4096, 4096], kind).unpacks;
        assert!(unpacks(384, FP8) && !unpacks(383, FP8) && !unpacks(384, roomless) && !unpacks(384, BF16));
    }

    #[test]
    fn the_library_makes_what_is_cut_in_the_variant_mode() {
        expect(
            VARIANT,
            &[
                ([16, 24_576, 4096], "gemm_stream_4_2"),
                ([64, 24_576, 4096], "gemm_cluster_192_64_one"),
                ([64, 151_936, 4096], "gemm_wide_64"),
                ([128, 4096, 4096], "cublaslt"),
                ([256, 24_576, 4096], "cublaslt"),
            ],
        );
        expect(Kind { library: false, ..VARIANT }, &[([256, 4096, 4096], "gemm_many_64_fold")]);
        let fp8 = Kind { mode: GemmMode::BatchVariant, ..FP8 };
        expect(
            fp8,
            &[
                ([256, 51_200, 5120], "gemm_wide_128_fold_fp8"),
                ([512, 4096, 4096], "gemm_codes_128"),
                ([2048, 51_200, 5120], "gemm_codes_192"),
            ],
        );
        let narrow = Kind { weights: WeightKind::Fp8(Room::Weights), ..fp8 };
        expect(narrow, &[([512, 4096, 4096], "cublaslt")]);
    }

    #[test]
    fn a_gate_is_left_to_no_library_and_stored_in_whole_words() {
        let gate = |kind| Kind { output: OutputKind::Gate, ..kind };
        expect(
            gate(BF16),
            &[([300, 2192, 328], "gemm_many_96_fold"), ([300, 2200, 328], "gemm_wide_128_fold")],
        );
        expect(
            gate(VARIANT),
            &[
                ([128, 4096, 4096], "gemm_wide_128_split"),
                ([256, 24_576, 4096], "gemm_many_192"),
                ([300, 2200, 328], "gemm_wide_128_fold"),
            ],
        );
    }

    #[test]
    fn clusters_make_heads_and_halves() {
        let heads = Kind { output: OutputKind::Heads(128), ..BF16 };
        expect(
            heads,
            &[
                ([16, 4096, 1024], "gemm_stream_2_2"),
                ([17, 4096, 1024], "gemm_heads_128_32"),
                ([64, 4096, 1024], "gemm_heads_128_64"),
                ([65, 4096, 1024], "gemm_wide_128_split"),
            ],
        );
        assert!(matches!(choose([64, 4096, 1024], heads).kernel, Kernel::Heads(_)));
        expect(
            Kind { output: OutputKind::Heads(64), ..FP8 },
            &[([64, 4096, 1024], "gemm_wide_64_split_fp8")],
        );
        expect(Kind { half: true, ..heads }, &[([32, 4096, 1024], "gemm_heads_128_32_half")]);
        expect(
            Kind { half: true, ..BF16 },
            &[
                ([32, 6144, 1024], "gemm_cluster_128_32_one"),
                ([20, 1024, 3072], "gemm_cluster_128_32"),
                ([16, 1024, 3072], "gemm_stream_1_2"),
            ],
        );
    }
}
