use serde_json::{Value, json};

use super::*;
use crate::{
    DType, Gguf,
    gguf::{self, Writer},
};

/// The configuration of Mistral 7B v0.1's kind, small.
fn mistral() -> Value {
    json!({
        "model_type": "mistral", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "rms_norm_eps": 1e-5,
    })
}

fn with(mut config: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        config[name] = value.clone();
    }
    config
}

fn read_all(config: &Value) -> Result<DecoderConfig, String> {
    DecoderConfig::parse_json(config.to_string().as_bytes()).map_err(|error| error.to_string())
}

fn read(config: &Value) -> Result<DecoderSpec, String> {
    read_all(config).map(|config| config.decoder)
}

#[test]
fn what_is_absent_is_as_in_transformers() {
    let config = read(&mistral()).unwrap();
    assert_eq!((config.sliding_window, config.context_length, config.head_dim), (Some(4096), 131_072, 16));
    assert!(!config.tied_embeddings && !config.qkv_bias && !config.qk_norm);
    let llama = read(&json!({ "model_type": "llama" })).unwrap();
    assert_eq!((llama.hidden_size, llama.kv_heads, llama.context_length), (4096, 32, 2048));
    assert_eq!((llama.norm_eps, llama.rope.theta, llama.sliding_window), (1e-6, 10_000.0, None));
    let qwen2 = read(&json!({ "model_type": "qwen2" })).unwrap();
    assert!(qwen2.qkv_bias && !qwen2.qk_norm);
    assert_eq!((qwen2.vocab_size, qwen2.kv_heads, qwen2.sliding_window), (151_936, 32, None));
    let qwen3 = read(&json!({ "model_type": "qwen3" })).unwrap();
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!(qwen3.head_dim, 128);
}

#[test]
fn null_is_not_the_same_as_absent_where_transformers_tells_them_apart() {
    let config =
        read(&with(mistral(), json!({ "sliding_window": null, "num_key_value_heads": null }))).unwrap();
    assert_eq!((config.sliding_window, config.kv_heads), (None, 4));
}

#[test]
fn qwen_slides_in_all_layers_or_none() {
    let qwen = |changes| read(&with(with(mistral(), json!({ "model_type": "qwen2" })), changes));
    let window = |changes| qwen(changes).unwrap().sliding_window;
    assert_eq!(window(json!({ "use_sliding_window": false, "sliding_window": 8 })), None);
    assert_eq!(
        window(json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0 })),
        Some(8)
    );
    assert_eq!(
        window(json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3 })),
        None
    );
    let some = qwen(json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1 }));
    assert!(some.unwrap_err().contains("layer_types: a sliding window in some of the layers only"));
}

#[test]
fn ends_are_one_id_or_a_list() {
    let eos =
        |value: Value| read_all(&with(mistral(), json!({ "eos_token_id": value }))).map(|config| config.eos);
    assert_eq!(eos(json!(2)), Ok(vec![2]));
    assert_eq!(eos(json!([2, 7])), Ok(vec![2, 7]));
    assert_eq!(eos(json!(null)), Ok(vec![]));
    assert!(eos(json!("</s>")).unwrap_err().contains("eos_token_id"));
}

#[test]
fn both_layouts_of_rope_fields_are_read() {
    let older = json!({ "rope_theta": 5e5, "rope_scaling": { "type": "linear", "factor": 2 } });
    let newer = json!({ "rope_parameters": { "rope_theta": 5e5, "rope_type": "linear", "factor": 2 } });
    let [older, newer] = [older, newer].map(|fields| read(&with(mistral(), fields)).unwrap().rope);
    assert_eq!(older, newer);
    assert_eq!((older.theta, older.scaling), (500_000.0, RopeScaling::Linear { factor: 2.0 }));
}

/// What Qwen3's FP8 checkpoints say of themselves, `changes` made to it.
fn fp8(changes: Value) -> Value {
    let config = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    });
    json!({ "quantization_config": with(config, changes) })
}

#[test]
fn checkpoints_in_fp8_blocks_are_those_of_the_same_decoder() {
    assert_eq!(read(&with(mistral(), fp8(json!({})))), read(&mistral()));
}

#[test]
fn errors_name_the_field() {
    let scaling = |value: Value| json!({ "rope_scaling": value });
    let cases = [
        (json!({ "model_type": null }), "field model_type is missing"),
        (
            json!({ "model_type": "gemma3" }),
            "model_type: architecture \"gemma3\" (known: llama, mistral, qwen2, qwen3)",
        ),
        (
            json!({ "architectures": ["MistralForSequenceClassification"] }),
            "architectures: a model that is not a causal",
        ),
        (json!({ "hidden_size": "64" }), "hidden_size: expected an integer"),
        (json!({ "hidden_size": -64 }), "hidden_size: expected an integer"),
        (json!({ "hidden_size": 1e3 }), "hidden_size: expected an integer"),
        (json!({ "hidden_size": 66 }), "head_dim: missing, and hidden_size 66"),
        (json!({ "num_attention_heads": 0, "head_dim": 16 }), "num_attention_heads: 0 is not within"),
        (
            json!({ "num_hidden_layers": 4_000_000_000u32 }),
            "num_hidden_layers: 4000000000 is not within 1 to 4096",
        ),
        (json!({ "num_key_value_heads": 3 }), "num_key_value_heads: 3 key-value heads do not divide 4 heads"),
        (json!({ "head_dim": 15 }), "head_dim: 15 is odd"),
        (json!({ "rms_norm_eps": 0 }), "rms_norm_eps: 0 is not above 0"),
        (json!({ "hidden_act": "gelu" }), "hidden_act: activation \"gelu\" is not supported"),
        (
            json!({ "quantization_config": { "quant_method": "gptq" } }),
            "quantization_config.quant_method: quantisation by \"gptq\"",
        ),
        (json!({ "quantization_config": {} }), "quantization_config.quant_method: missing"),
        (json!({ "quantization_config": "fp8" }), "quantization_config: expected an object"),
        (fp8(json!({ "fmt": "e5m2" })), "quantization_config.fmt: the FP8 format \"e5m2\""),
        (fp8(json!({ "activation_scheme": "static" })), "quantization_config.activation_scheme: \"static\""),
        (fp8(json!({ "weight_block_size": [64, 128] })), "weight_block_size: [64,128], other than [128,128]"),
        (fp8(json!({ "weight_block_size": null })), "weight_block_size: [], other than"),
        (fp8(json!({ "weight_block_size": 128 })), "weight_block_size: expected a list, found 128"),
        (json!({ "model_type": "llama", "attention_bias": true }), "attention_bias: a bias"),
        (json!({ "eos_token_id": 100 }), "eos_token_id: 100 is not in the vocabulary of 100"),
        (json!({ "rope_theta": 0 }), "rope_theta: 0 is not above 1"),
        (json!({ "partial_rotary_factor": 2.0 }), "rotary dimension: 32"),
        (scaling(json!({ "type": "longrope" })), "rope_scaling.rope_type: \"longrope\" is not supported"),
        (scaling(json!({ "type": "linear" })), "rope_scaling.factor: missing"),
        (scaling(json!({ "type": "linear", "factor": -1 })), "rope factor: -1 is not above 0"),
        (
            scaling(json!({ "type": "yarn", "factor": [] })),
            "rope_scaling.factor: expected a finite number, found a list",
        ),
        (scaling(json!("yarn")), "rope_scaling: expected an object"),
    ];
    for (changes, expected) in cases {
        let error = read(&with(mistral(), changes)).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
}

/// Metadata of a llama file, `change`d; `tensors` are empty but for their names.
fn gguf(tensors: &[&str], change: impl FnOnce(&mut Writer)) -> Result<DecoderConfig, String> {
    let mut writer = Writer::new();
    writer.text("general.architecture", "llama");
    for (key, number) in [
        ("vocab_size", 100),
        ("context_length", 512),
        ("embedding_length", 64),
        ("block_count", 3),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        writer.number(&format!("llama.{key}"), number);
    }
    writer.pair("llama.attention.layer_norm_rms_epsilon", &gguf::Value::Float(1e-5));
    for name in tensors {
        writer.tensor(name, DType::F32, &[8], &[0; 32]);
    }
    change(&mut writer);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), writer.finish()).unwrap();
    DecoderConfig::from_gguf(&Gguf::open(file.path()).unwrap()).map_err(|error| error.kind.to_string())
}

#[test]
fn gguf_metadata_and_tensors_make_a_configuration() {
    let config = gguf(&[], |_| {}).unwrap().decoder;
    assert_eq!((config.head_dim, config.kv_heads, config.rope.theta, config.rope.dim), (16, 2, 10_000.0, 16));
    assert!(config.tied_embeddings && !config.qkv_bias);
    let config = gguf(&["output.weight", "blk.0.attn_q.bias"], |writer| {
        writer.number("llama.attention.sliding_window", 128);
        writer.number("tokenizer.ggml.eos_token_id", 2).number("tokenizer.ggml.eot_token_id", 7);
    });
    let config = config.unwrap();
    assert!(!config.decoder.tied_embeddings && config.decoder.qkv_bias);
    assert_eq!((config.decoder.sliding_window, config.eos), (Some(128), vec![2, 7]));
}

#[test]
fn gguf_rope_scalings_are_read() {
    let scaling = |kind: &str| {
        gguf(&[], |writer| {
            writer.text("llama.rope.scaling.type", kind);
            writer.pair("llama.rope.scaling.factor", &gguf::Value::Float(4.0));
            writer.number("llama.rope.scaling.original_context_length", 128);
        })
    };
    assert_eq!(scaling("none").unwrap().decoder.rope.scaling, RopeScaling::None);
    assert_eq!(scaling("linear").unwrap().decoder.rope.scaling, RopeScaling::Linear { factor: 4.0 });
    let yarn = scaling("yarn").unwrap().decoder.rope.scaling;
    assert!(matches!(
        yarn,
        RopeScaling::Yarn { factor: 4.0, original_context: 128, attention_factor: None, .. }
    ));
    assert!(
        scaling("longrope").unwrap_err().contains("llama.rope.scaling.type: \"longrope\" is not supported")
    );
    let error = gguf(&["rope_freqs.weight"], |_| {}).unwrap_err();
    assert!(error.contains("rope_freqs.weight: 0 is not above 0"), "{error}");
    let table = gguf(&[], |writer| {
        let ones: Vec<u8> = [1f32; 8].iter().flat_map(|one| one.to_le_bytes()).collect();
        writer.tensor("rope_freqs.weight", DType::F32, &[8], &ones);
    });
    assert_eq!(table.unwrap().decoder.rope.scaling, RopeScaling::Factors { factors: vec![1.0; 8] });
}

#[test]
fn gguf_errors_name_the_key() {
    let cases = [
        (gguf(&[], |w| _ = w.number("llama.expert_count", 8)), "llama.expert_count: a mixture of experts"),
        (
            gguf(&[], |w| _ = w.number("llama.attention.key_length", 0)),
            "llama.attention.key_length: 0 is not within",
        ),
        (gguf(&[], |w| _ = w.number("llama.attention.value_length", 8)), "llama.attention.value_length"),
        (
            gguf(&[], |w| _ = w.number("llama.rope.dimension_count", 8)),
            "llama.rope.dimension_count: RoPE over a part",
        ),
        (gguf(&[], |w| _ = w.number("llama.attention.scale", 1)), "llama.attention.scale"),
        (gguf(&["blk.0.attn_output.bias"], |_| {}), "blk.0.attn_output.bias: a bias"),
        (
            gguf(&[], |w| _ = w.text("llama.rope.freq_base", "x")),
            "llama.rope.freq_base: expected a finite number",
        ),
    ];
    for (config, expected) in cases {
        let error = config.unwrap_err();
        assert!(error.contains(expected), "{error:?} does not contain {expected:?}");
    }
}
