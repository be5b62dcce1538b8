//! Mutates valid model files and reads them: no panic, no allocation out of proportion to the file, and whatever is
//! accepted lies inside the file.
//!
//! `STATOR_FUZZ_SECONDS` (default 5) bounds the time, `STATOR_FUZZ_SEED` (default 1) picks the mutations; a failure
//! names the seed and iteration that repeat it.

#[path = "fuzz_readers/allocations.rs"]
mod allocations;
#[path = "fuzz_readers/corpus.rs"]
mod corpus;
#[path = "fuzz_readers/mutate.rs"]
mod mutate;

use std::{
    collections::BTreeMap,
    env, fs,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use formats::{DType, ModelFiles, gguf, safetensors};
use mutate::Random;

/// Bytes a reader may hold for each byte of the file, and at all. Strings of one byte are the worst case.
const ALLOCATED_PER_BYTE: usize = 64;
const ALLOCATED_ALWAYS: usize = 256 << 10;

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Runs `check` on mutations of the corpus for half of the time (there are two tests).
fn fuzz(corpus: &[Vec<u8>], check: impl Fn(&[u8]) -> bool) {
    let seed = setting("STATOR_FUZZ_SEED", 1);
    let end = Instant::now() + Duration::from_secs(setting("STATOR_FUZZ_SECONDS", 5)) / 2;
    let (mut iteration, mut accepted) = (0u64, 0u64);
    for sound in corpus {
        assert!(check(sound), "a file of the corpus is refused");
    }
    while iteration < 1000 || Instant::now() < end {
        let mut random = Random::new(seed, iteration);
        let mut file = corpus[random.below(corpus.len())].clone();
        mutate::mutate(&mut file, &mut random);
        match catch_unwind(AssertUnwindSafe(|| check(&file))) {
            Ok(fine) => accepted += u64::from(fine),
            Err(_) => panic!("failed at STATOR_FUZZ_SEED={seed}, iteration {iteration}"),
        }
        iteration += 1;
    }
    println!("{iteration} files, {accepted} accepted");
    assert!(
        accepted > 0 && accepted < iteration,
        "mutations that are all accepted or all refused test little"
    );
}

/// Reads with `read`, holding it to its allowance of memory.
fn bounded<T>(file: &[u8], read: impl FnOnce() -> T) -> T {
    let (result, peak) = allocations::peak_of(read);
    let allowance = ALLOCATED_PER_BYTE * file.len() + ALLOCATED_ALWAYS;
    assert!(peak <= allowance, "{peak} bytes allocated for a file of {}", file.len());
    result
}

/// Tensors lie inside the file, fit their shapes and do not overlap.
fn assert_sound<'a>(
    file: &[u8],
    tensors: impl Iterator<Item = (Option<DType>, &'a [usize], &'a Range<usize>)>,
) {
    let mut taken = BTreeMap::new();
    for (dtype, shape, bytes) in tensors {
        assert!(bytes.start <= bytes.end && bytes.end <= file.len());
        if let Some(dtype) = dtype {
            let elements: usize = shape.iter().product();
            assert_eq!(elements / dtype.block_len() * dtype.block_bytes(), bytes.len());
        }
        if !bytes.is_empty() {
            assert!(taken.insert(bytes.start, bytes.end).is_none());
        }
    }
    assert!(taken.iter().zip(taken.iter().skip(1)).all(|((_, end), (start, _))| end <= start));
}

#[test]
fn safetensors_files() {
    fuzz(&corpus::safetensors(), |file| {
        let Ok(header) = bounded(file, || safetensors::Header::parse(file)) else { return false };
        let tensors = header.tensors.values();
        assert_sound(file, tensors.map(|info| (info.dtype, info.shape.as_slice(), &info.bytes)));
        true
    });
}

#[test]
fn gguf_files_and_what_is_made_of_their_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fuzz(&corpus::gguf(), |file| {
        let Ok(header) = bounded(file, || gguf::Header::parse(file)) else { return false };
        let tensors = header.tensors.values();
        assert_sound(file, tensors.map(|info| (Some(info.dtype), info.shape.as_slice(), &info.bytes)));
        // The rest goes through a file and is slow.
        if file.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).is_multiple_of(32) {
            fs::write(&path, file).unwrap();
            let _ = ModelFiles::open(&path).and_then(|files| files.tokenizer());
        }
        true
    });
}
