use std::fs;

use serde_json::json;

use super::*;

/// A file of this header and `data` zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

fn tensor(dtype: &str, shape: &[u64], offsets: [u64; 2]) -> serde_json::Value {
    json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets })
}

fn write_shard(folder: &Path, name: &str, tensors: &[&str]) {
    let mut header = serde_json::Map::new();
    for (i, tensor_name) in tensors.iter().enumerate() {
        let start = 4 * i as u64;
        header.insert((*tensor_name).into(), tensor("F32", &[1], [start, start + 4]));
    }
    fs::write(folder.join(name), file(&json!(header).to_string(), 4 * tensors.len())).unwrap();
}

fn write_index(folder: &Path, map: serde_json::Value) {
    fs::write(folder.join(INDEX_FILE), json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
}

#[test]
fn a_sound_file_gives_its_tensors() {
    let header = json!({ "__metadata__": { "format": "pt" }, "a": tensor("BF16", &[2, 3], [0, 12]) });
    let bytes = file(&header.to_string(), 12);
    let info = &Header::parse(&bytes).unwrap().tensors["a"];
    assert_eq!((info.dtype, info.shape.as_slice()), (Some(DType::BF16), [2, 3].as_slice()));
    assert_eq!(info.bytes, bytes.len() - 12..bytes.len());
}

#[test]
fn errors_name_what_is_wrong() {
    let one = |tensor: serde_json::Value, data| file(&json!({ "weight": tensor }).to_string(), data);
    let sound = one(tensor("F32", &[2], [0, 8]), 8);
    let mut long = sound.clone();
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut beyond = sound.clone();
    beyond[..8].copy_from_slice(&9999u64.to_le_bytes());
    let cases = [
        (sound[..5].to_vec(), "safetensors header: the file is shorter"),
        (long, "safetensors header: length 18446744073709551615 is above the limit"),
        (beyond, "safetensors header: length 9999 is beyond the end"),
        (sound[..sound.len() - 1].to_vec(), "safetensors header: tensor data does not fill"),
        (file("{\"weight\": [", 0), "safetensors header: "),
        (one(tensor("F32", &[2], [4, 12]), 12), "weight: data offsets overlap, leave a gap"),
        (one(tensor("F32", &[2], [8, 0]), 8), "weight: data offsets"),
        (one(tensor("F32", &[3], [0, 8]), 8), "safetensors header: "),
        (one(tensor("F32", &[u64::MAX, u64::MAX], [0, 8]), 8), "safetensors header: "),
        (one(tensor("X9", &[2], [0, 8]), 8), "safetensors header: "),
    ];
    for (file, expected) in cases {
        let error = Header::parse(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
    assert!(Header::parse(&sound).is_ok());
}

#[test]
fn a_tensor_of_a_type_we_lack_is_an_error_only_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let header = json!({ "ids": tensor("I64", &[1], [0, 8]), "w": tensor("F32", &[1], [8, 12]) });
    fs::write(folder.path().join(SINGLE_FILE), file(&header.to_string(), 12)).unwrap();
    let checkpoint = Safetensors::open(folder.path()).unwrap();
    assert!(checkpoint.tensor("w").is_ok());
    let error = checkpoint.tensor("ids").unwrap_err().to_string();
    assert!(error.ends_with("ids: element type I64 is not supported"), "{error}");
    let error = checkpoint.tensor("absent").unwrap_err().to_string();
    assert!(error.contains("tensor absent is missing"), "{error}");
}

#[test]
fn shards_are_read_as_one() {
    let folder = tempfile::tempdir().unwrap();
    write_shard(folder.path(), "1.safetensors", &["a", "b"]);
    write_shard(folder.path(), "2.safetensors", &["c"]);
    write_index(folder.path(), json!({ "a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors" }));
    let checkpoint = Safetensors::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.tensor("c").unwrap().shape, [1]);
}

#[test]
fn an_index_that_lies_is_refused() {
    let cases = [
        (json!({ "a": "1.safetensors", "z": "1.safetensors" }), "z: the index places it in 1.safetensors"),
        (json!({ "a": "2.safetensors", "c": "2.safetensors" }), "a: the index places it in 2.safetensors"),
        (json!({ "a": "../1.safetensors" }), "weight_map: \"../1.safetensors\" is not a plain file name"),
        (json!({ "a": "/etc/passwd" }), "weight_map: \"/etc/passwd\" is not a plain file name"),
        (json!({ "a": ".." }), "weight_map: \"..\" is not a plain file name"),
        (json!({}), "weight_map: 0 shards"),
        (json!({ "a": 1 }), "weight_map: "),
        (json!({ "a": "absent.safetensors" }), "absent.safetensors: cannot be read"),
        (json!({ "a": "1.safetensors", "b": "again.safetensors" }), "a: also in another shard"),
    ];
    for (map, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_shard(folder.path(), "1.safetensors", &["a", "b"]);
        write_shard(folder.path(), "2.safetensors", &["c"]);
        write_shard(folder.path(), "again.safetensors", &["a"]);
        write_index(folder.path(), map);
        let error = Safetensors::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
}

#[test]
fn a_folder_without_weights_says_what_to_put_there() {
    let folder = tempfile::tempdir().unwrap();
    let error = Safetensors::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("weight file is missing") && error.contains(SINGLE_FILE), "{error}");
}
