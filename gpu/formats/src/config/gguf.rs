use super::{Architecture, DecoderConfig, DecoderSpec, RopeScaling, RopeSpec};
use crate::{
    DType, Metadata,
    dequant::dequantise_row,
    error::{Error, ErrorKind, InFile},
    gguf::Gguf,
};

/// Keys that would change the numbers in a way that is not built.
const UNBUILT: [&str; 8] = [
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.clamp_kqv",
    "attention.temperature_scale",
];

impl DecoderConfig {
    /// Reads the configuration of a GGUF file: its metadata, and from its tensors whether there is a separate head,
    /// biases and a table of RoPE factors.
    ///
    /// # Errors
    /// Naming the metadata key: an unknown architecture, a missing or wrong value, a feature that is not built.
    pub fn from_gguf(file: &Gguf) -> Result<Self, Error> {
        Self::of_gguf(file).in_file(file.path())
    }

    fn of_gguf(file: &Gguf) -> Result<Self, ErrorKind> {
        let metadata = file.metadata();
        let architecture = architecture(metadata)?;
        let keys = Keys { metadata, prefix: architecture.name() };
        refuse_unbuilt(file, keys)?;

        let hidden_size = keys.required("embedding_length")?;
        let heads = keys.required("attention.head_count")?;
        let head_dim = match keys.u32("attention.key_length")? {
            Some(length) => length,
            None => hidden_size.checked_div(heads).unwrap_or(0),
        };
        if keys.u32("attention.value_length")?.is_some_and(|length| length != head_dim) {
            return Err(ErrorKind::unsupported(
                keys.name("attention.value_length"),
                "another length than the keys'",
            ));
        }
        let context_length = keys.required("context_length")?;
        let decoder = DecoderSpec {
            vocab_size: vocab_size(keys)?,
            hidden_size,
            layers: keys.required("block_count")?,
            heads,
            kv_heads: keys.u32("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            intermediate_size: keys.required("feed_forward_length")?,
            norm_eps: keys
                .f32("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| keys.missing("attention.layer_norm_rms_epsilon"))?,
            rope: RopeSpec {
                theta: keys.f32("rope.freq_base")?.unwrap_or(10_000.0),
                dim: keys.u32("rope.dimension_count")?.unwrap_or(head_dim),
                scaling: rope_scaling(file, keys, context_length)?,
            },
            context_length,
            qkv_bias: file.contains("blk.0.attn_q.bias"),
            qk_norm: architecture == Architecture::Qwen3,
            tied_embeddings: !file.contains("output.weight"),
            sliding_window: keys.u32("attention.sliding_window")?.filter(|window| *window > 0),
        };
        // Files of this architecture store query and key rows in pairs for the whole head.
        if architecture == Architecture::Llama && decoder.rope.dim != head_dim {
            return Err(ErrorKind::unsupported(
                keys.name("rope.dimension_count"),
                "RoPE over a part of the head",
            ));
        }
        let (bos, eos) = (metadata.u32("tokenizer.ggml.bos_token_id")?, end_tokens(metadata)?);
        let config = Self { architecture, decoder, bos, eos };
        config.check(|field| keys.name(gguf_name(field)))?;
        Ok(config)
    }
}

/// Every id that the file declares to end a sequence, a turn or a message.
fn end_tokens(metadata: &Metadata) -> Result<Vec<u32>, ErrorKind> {
    let mut ids = Vec::new();
    for key in ["eos", "eot", "eom"] {
        if let Some(id) = metadata.u32(&format!("tokenizer.ggml.{key}_token_id"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

#[derive(Clone, Copy)]
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
}

impl Keys<'_> {
    fn name(self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn u32(self, key: &str) -> Result<Option<u32>, ErrorKind> {
        self.metadata.u32_or_uniform(&self.name(key))
    }

    fn f32(self, key: &str) -> Result<Option<f32>, ErrorKind> {
        self.metadata.f32(&self.name(key))
    }

    fn required(self, key: &str) -> Result<u32, ErrorKind> {
        self.u32(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(self, key: &str) -> ErrorKind {
        ErrorKind::missing(
            format!("metadata key {}", self.name(key)),
            "convert the model again with current tools",
        )
    }
}

fn architecture(metadata: &Metadata) -> Result<Architecture, ErrorKind> {
    const KEY: &str = "general.architecture";
    match metadata.string(KEY)? {
        Some("llama") => Ok(Architecture::Llama),
        Some("qwen2") => Ok(Architecture::Qwen2),
        Some("qwen3") => Ok(Architecture::Qwen3),
        Some(other) => {
            Err(ErrorKind::unsupported(KEY, format!("architecture {other:?} (known: llama, qwen2, qwen3)")))
        }
        None => Err(ErrorKind::missing(
            format!("metadata key {KEY}"),
            "the file does not say what model it holds",
        )),
    }
}

fn refuse_unbuilt(file: &Gguf, keys: Keys<'_>) -> Result<(), ErrorKind> {
    if keys.u32("expert_count")?.unwrap_or(0) > 0 {
        return Err(ErrorKind::unsupported(keys.name("expert_count"), "a mixture of experts"));
    }
    if let Some(key) = UNBUILT.iter().map(|key| keys.name(key)).find(|key| keys.metadata.get(key).is_some()) {
        return Err(ErrorKind::unsupported(key, "this change of the computation"));
    }
    for tensor in
        ["blk.0.attn_output.bias", "blk.0.ffn_gate.bias", "blk.0.ffn_up.bias", "blk.0.ffn_down.bias"]
    {
        if file.contains(tensor) {
            return Err(ErrorKind::unsupported(tensor, "a bias in the output or MLP projections"));
        }
    }
    Ok(())
}

fn vocab_size(keys: Keys<'_>) -> Result<u32, ErrorKind> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    // The tokens are what the embedding is built for; the number is sometimes absent or that of another file.
    match keys.metadata.strings(TOKENS)? {
        Some(tokens) => Ok(tokens.len() as u32),
        None => keys.required("vocab_size"),
    }
}

fn rope_scaling(file: &Gguf, keys: Keys<'_>, context: u32) -> Result<RopeScaling, ErrorKind> {
    const TABLE: &str = "rope_freqs.weight";
    let kind = keys.name("rope.scaling.type");
    let factor = match keys.f32("rope.scaling.factor")? {
        None => keys.f32("rope.scale_linear")?,
        given => given,
    };
    let original = keys.u32("rope.scaling.original_context_length")?.unwrap_or(context);
    let scaling = match (keys.metadata.string(&kind)?, factor) {
        (Some("none"), _) | (None, None) => RopeScaling::None,
        (Some("linear") | None, Some(factor)) if factor == 0.0 || factor == 1.0 => RopeScaling::None,
        (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor },
        (Some("yarn"), Some(factor)) => yarn(keys, factor, original)?,
        (Some("linear" | "yarn"), None) => return Err(keys.missing("rope.scaling.factor")),
        (Some(other), _) => return Err(ErrorKind::unsupported(kind, format!("{other:?}"))),
    };
    if !file.contains(TABLE) {
        return Ok(scaling);
    }
    if scaling != RopeScaling::None {
        return Err(ErrorKind::unsupported(TABLE, "a table of RoPE factors beside another scaling"));
    }
    let table = file.tensor(TABLE).map_err(|error| error.kind)?;
    match (table.dtype, table.shape) {
        (DType::F32, &[length]) => {
            let mut factors = vec![0.0; length];
            dequantise_row(DType::F32, table.data, &mut factors);
            Ok(RopeScaling::Factors { factors })
        }
        (dtype, shape) => {
            Err(ErrorKind::malformed(TABLE, format!("{dtype} of shape {shape:?}, expected one row of F32")))
        }
    }
}

fn yarn(keys: Keys<'_>, factor: f32, original_context: u32) -> Result<RopeScaling, ErrorKind> {
    if keys.f32("rope.scaling.yarn_log_multiplier")?.is_some_and(|multiplier| multiplier != 0.0) {
        let key = keys.name("rope.scaling.yarn_log_multiplier");
        return Err(ErrorKind::unsupported(key, "an attention factor from a log multiplier"));
    }
    // The file's factor multiplies the usual one.
    let usual = if factor > 1.0 { (0.1 * f64::from(factor).ln() + 1.0) as f32 } else { 1.0 };
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: keys.f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
        beta_slow: keys.f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
        attention_factor: keys.f32("rope.scaling.attn_factor")?.map(|given| given * usual),
        truncate: true,
    })
}

fn gguf_name(field: &'static str) -> &'static str {
    match field {
        "hidden_size" => "embedding_length",
        "num_hidden_layers" => "block_count",
        "num_attention_heads" => "attention.head_count",
        "num_key_value_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "intermediate_size" => "feed_forward_length",
        "max_position_embeddings" => "context_length",
        "rms_norm_eps" => "attention.layer_norm_rms_epsilon",
        "sliding_window" => "attention.sliding_window",
        other => other,
    }
}
