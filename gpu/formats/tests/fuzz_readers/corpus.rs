//! Valid files to start from.

use formats::{
    DType,
    gguf::{Array, Value, Writer},
};
use serde_json::json;

pub fn safetensors() -> Vec<Vec<u8>> {
    let headers = [
        (json!({ "w": { "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] } }), 24),
        (
            json!({
                "__metadata__": { "format": "pt" },
                "model.embed_tokens.weight": { "dtype": "BF16", "shape": [8, 4], "data_offsets": [0, 64] },
                "model.norm.weight": { "dtype": "F16", "shape": [4], "data_offsets": [64, 72] },
                "ids": { "dtype": "I64", "shape": [], "data_offsets": [72, 80] },
                "scale": { "dtype": "F8_E4M3", "shape": [1, 1, 1, 4], "data_offsets": [80, 84] },
            }),
            84,
        ),
    ];
    let file = |(header, data): &(serde_json::Value, usize)| {
        let header = header.to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data, 7);
        file
    };
    headers.iter().map(file).collect()
}

pub fn gguf() -> Vec<Vec<u8>> {
    vec![byte_level(), sentencepiece()]
}

fn model(architecture: &str) -> Writer {
    let mut writer = Writer::new();
    writer.text("general.architecture", architecture);
    for (key, number) in [
        ("context_length", 64),
        ("embedding_length", 32),
        ("block_count", 1),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("rope.dimension_count", 16),
    ] {
        writer.number(&format!("{architecture}.{key}"), number);
    }
    writer.pair(&format!("{architecture}.attention.layer_norm_rms_epsilon"), &Value::Float(1e-5));
    writer.pair(&format!("{architecture}.rope.freq_base"), &Value::Float(1e4));
    writer
}

fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::Strings(texts.iter().map(|&text| text.into()).collect()))
}

fn byte_level() -> Vec<u8> {
    let mut writer = model("qwen2");
    writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2");
    writer.pair("tokenizer.ggml.tokens", &strings(&["a", "b", "c", "ab", "abc", "<|im_end|>"]));
    writer.pair("tokenizer.ggml.token_type", &Value::Array(Array::Ints(vec![1, 1, 1, 1, 1, 3])));
    writer.pair("tokenizer.ggml.merges", &strings(&["a b", "ab c"]));
    writer.number("tokenizer.ggml.eos_token_id", 5).pair("tokenizer.ggml.add_bos_token", &Value::Bool(false));
    writer.text("tokenizer.chat_template", "{{ messages }}");
    writer.tensor("token_embd.weight", DType::Q8_0, &[6, 32], &[3; 6 * 34]);
    writer.tensor("output_norm.weight", DType::F32, &[32], &[0; 128]);
    writer.tensor("blk.0.attn_q.weight", DType::Q4_1, &[32, 32], &[1; 32 * 20]);
    writer.finish()
}

fn sentencepiece() -> Vec<u8> {
    let mut writer = model("llama");
    writer.text("tokenizer.ggml.model", "llama");
    writer.pair("tokenizer.ggml.tokens", &strings(&["<unk>", "<s>", "</s>", "<0x41>", "▁", "a", "▁a"]));
    writer.pair("tokenizer.ggml.scores", &Value::Array(Array::Floats(vec![0., 0., 0., 0., -2., -1., -0.5])));
    writer.pair("tokenizer.ggml.token_type", &Value::Array(Array::Ints(vec![2, 3, 3, 6, 1, 1, 1])));
    writer.number("tokenizer.ggml.bos_token_id", 1).number("tokenizer.ggml.eos_token_id", 2);
    writer.number("tokenizer.ggml.unknown_token_id", 0).number("general.alignment", 32);
    writer.pair("general.tags", &Value::Array(Array::Bytes(vec![1, 2, 3])));
    writer.tensor("token_embd.weight", DType::Q4_K, &[1, 256], &[3; 144]);
    writer.tensor("rope_freqs.weight", DType::F32, &[8], &1f32.to_le_bytes().repeat(8));
    writer.finish()
}
