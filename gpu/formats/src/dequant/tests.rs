use std::fs;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    bytes: usize,
    elements: usize,
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(format!("{}/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn every_type_reads_as_the_gguf_package_reads_it() {
    let entries: Vec<Entry> = serde_json::from_slice(&fixture("quants.json")).unwrap();
    let blob = fixture("quants.bin");
    let mut rest = blob.as_slice();
    for entry in &entries {
        let dtype = DType::ALL.into_iter().find(|dtype| dtype.name() == entry.dtype).unwrap();
        let (stored, after) = rest.split_at(entry.bytes);
        let (expected, after) = after.split_at(4 * entry.elements);
        rest = after;
        let mut values = vec![0.0; entry.elements];
        dequantise_row(dtype, stored, &mut values);
        let expected = expected.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        for (i, (value, expected)) in values.iter().zip(expected).enumerate() {
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{dtype} element {i}: {value}, expected {expected}"
            );
        }
    }
    assert!(rest.is_empty());
    let tested = entries.len();
    assert_eq!(tested, DType::ALL.len() - 1, "all but F8E4M3, which GGUF does not have");
}

#[test]
fn eight_bit_floats_have_the_values_of_their_definition() {
    let value = |bits: u8| {
        let mut out = [0.0];
        dequantise_row(DType::F8E4M3, &[bits], &mut out);
        out[0]
    };
    assert_eq!(value(0x38), 1.0);
    assert_eq!(value(0xb8), -1.0);
    assert_eq!(value(0x7e), 448.0);
    assert_eq!(value(0x01), 2f32.powi(-9));
    assert_eq!(value(0x08), 2f32.powi(-6));
    assert_eq!(value(0x80).to_bits(), (-0.0f32).to_bits());
    assert!(value(0x7f).is_nan() && value(0xff).is_nan());
}

#[test]
#[should_panic(expected = "Q4_0 row of 64 elements")]
fn a_row_of_another_length_is_a_bug_of_the_caller() {
    dequantise_row(DType::Q4_0, &[0; 18], &mut [0.0; 64]);
}
