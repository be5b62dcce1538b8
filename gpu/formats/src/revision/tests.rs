use super::*;

/// Just above what is hashed in full.
const LARGE: usize = FULL_BYTES + (1 << 20);

fn revision(name: &str, dtype: &str, shape: &[usize], data: &[u8]) -> Revision {
    let mut hasher = Hasher::new();
    hasher.weights([(name, dtype, shape, data)].into_iter());
    hasher.finish()
}

#[test]
fn any_byte_of_small_weights_counts() {
    let mut data = vec![0; 300_000];
    let plain = revision("w", "F32", &[75_000], &data);
    data[150_001] = 1;
    assert_ne!(revision("w", "F32", &[75_000], &data), plain);
}

#[test]
fn name_type_and_shape_count() {
    let data = [0; 16];
    let plain = revision("w", "F32", &[4], &data);
    for other in [
        revision("v", "F32", &[4], &data),
        revision("w", "I32", &[4], &data),
        revision("w", "F32", &[2, 2], &data),
    ] {
        assert_ne!(other, plain);
    }
}

#[test]
fn chunks_of_large_weights_count_first_and_last_bytes_among_them() {
    let mut data = vec![0; LARGE];
    let shape = [LARGE];
    let plain = revision("w", "F8E4M3", &shape, &data);
    for at in [0, LARGE - 1, chunk_start(LARGE - CHUNK_BYTES, 7)] {
        data[at] = 1;
        assert_ne!(revision("w", "F8E4M3", &shape, &data), plain, "byte {at}");
        data[at] = 0;
    }
}
