//! Sizes that kernels are compiled with and launches count on: macros of these names are defined for every kernel file.

macro_rules! sizes {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: usize = $value;)*

        /// All of them, with their names.
        pub const ALL: &[(&str, usize)] = &[$((stringify!($name), $name)),*];
    };
}

sizes! {
    /// Keys of one attention tile, at absolute positions: part of the canonical order.
    TILE_KEYS = 128;

    /// Query heads that share an item of work of the decode kernel.
    QUERY_ROWS = 8;
    /// Warps of its blocks that multiply.
    DECODE_WARPS = 4;
    /// Bytes of its ring of tiles.
    DECODE_RING_BYTES = 192 << 10;

    /// Query positions of one work of the prefill kernel.
    PREFILL_ROWS = 128;
    /// Groups of four warps that compute.
    PREFILL_GROUPS = 2;
    /// Tiles of keys, and of values, that a block holds.
    PREFILL_STAGES = 3;
    /// The same of codes: they and what they become leave room for fewer.
    PREFILL_CODE_STAGES = 2;

    /// Runs of k that a cluster of blocks shares out.
    SPLIT_SEGMENTS = 4;
    /// Most rows of x that the streaming kernel takes.
    STREAM_ROWS = 16;
    /// Warps of its blocks.
    STREAM_WARPS = 4;
    /// Columns of a tile of the wide kernel.
    WIDE_COLUMNS = 128;
    /// Warps of its blocks that multiply.
    WIDE_WARPS = 8;
    /// Warps of the cluster kernel that work out what rows are scaled by.
    SCALE_WARPS = 4;

    /// Rows of x that a block of the kernel of many rows has at a time.
    MANY_ROWS = 128;
    /// Where x ends within a tile its rows are copied in boxes of so many, and those beyond are left alone: to fill them
    /// with zeros takes the copy engine longer than to copy rows.
    MANY_PART_ROWS = 32;
    /// Its ring has as many stages as fit, of tiles of 128 columns and more at most so many.
    MANY_RING_BYTES = 200 << 10;
    MANY_STAGES = 5;
    /// What a group of its warps stores at once, 64 rows; boxes fill what the ring leaves of the shared memory.
    MANY_BOX_BYTES = 8192;
    MANY_SHARED_BYTES = 224 << 10;

    /// Most rows of a persistent step: columns of one tensor-core product.
    PERSISTENT_ROWS = 8;
    PERSISTENT_THREADS = 480;
    /// Columns of eight rows of weights that a place of its ring holds.
    SLOT_COLUMNS = 1024;
    /// Its bytes: those of 64 columns of a tile fit too, which begins at a multiple of 1024.
    SLOT_BYTES = 17 << 10;
    /// Most places.
    MAX_SLOTS = 12;
    /// Units that a group of its warps multiplies at once.
    WIDE_PASS = 4;
    /// Sums of products on their way between warps.
    PART_BYTES = 2 * 4 * (WIDE_PASS + 2) * 64 * 4;
    /// Sums of probabilities on their way between warps.
    QUARTERS_BYTES = 4 * 16 * 8 * 4;

    /// Widest row that is normalised: a thread for eight columns.
    MAX_NORM_WIDTH = 8192;

    /// Most likely tokens that a row of logits can report.
    MAX_TOP = 20;
}
