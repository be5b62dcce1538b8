use std::path::Path;

use serde_json::Value;

use super::{Architecture, DecoderConfig, DecoderSpec, RopeSpec, fields::Fields, quantisation};
use crate::{
    error::{Error, ErrorKind, InFile},
    json::parse_object,
    map::read_small,
};

const MAX_CONFIG_BYTES: u64 = 4 << 20;

impl DecoderConfig {
    /// Reads a `config.json`, filling in what transformers fills in.
    ///
    /// # Errors
    /// Naming the field: an unknown architecture, a wrong type or value, a feature that is not built.
    pub fn from_config_json(path: &Path) -> Result<Self, Error> {
        Self::parse_json(&read_small(path, MAX_CONFIG_BYTES)?).in_file(path)
    }

    pub(super) fn parse_json(json: &[u8]) -> Result<Self, ErrorKind> {
        let object = parse_object(json)?;
        let fields = Fields::new(&object);
        let architecture = architecture(fields)?;
        refuse_unbuilt(fields, architecture)?;

        let or = |name: &str, default: u32| Ok::<u32, ErrorKind>(fields.u32(name)?.unwrap_or(default));
        let defaults = Defaults::of(architecture);
        let hidden_size = or("hidden_size", 4096)?;
        let heads = or("num_attention_heads", 32)?;
        let head_dim = match fields.u32("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let reason =
                    format!("missing, and hidden_size {hidden_size} is not a multiple of {heads} heads");
                return Err(fields.malformed("head_dim", reason));
            }
        };
        let kv_heads = match fields.has("num_key_value_heads") {
            true => or("num_key_value_heads", heads)?,
            false => defaults.kv_heads.unwrap_or(heads),
        };
        let layers = or("num_hidden_layers", 32)?;
        let context_length = or("max_position_embeddings", defaults.context_length)?;
        let decoder = DecoderSpec {
            vocab_size: or("vocab_size", defaults.vocab_size)?,
            hidden_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate_size: or("intermediate_size", defaults.intermediate_size)?,
            norm_eps: fields.f32("rms_norm_eps")?.unwrap_or(1e-6),
            rope: RopeSpec::from_json(fields, head_dim, context_length)?,
            context_length,
            qkv_bias: architecture == Architecture::Qwen2,
            qk_norm: architecture == Architecture::Qwen3,
            tied_embeddings: fields.bool("tie_word_embeddings")?.unwrap_or(false),
            sliding_window: sliding_window(fields, architecture, layers)?,
        };
        let (bos, eos) = (fields.u32("bos_token_id")?, fields.ids("eos_token_id")?);
        let config = Self { architecture, decoder, bos, eos };
        config.check(str::to_owned)?;
        Ok(config)
    }
}

/// What the configuration classes of transformers assume where they differ from each other. (Not their token ids:
/// those are the tokenizer's to say.)
struct Defaults {
    vocab_size: u32,
    intermediate_size: u32,
    context_length: u32,
    kv_heads: Option<u32>,
    head_dim: Option<u32>,
}

impl Defaults {
    fn of(architecture: Architecture) -> Self {
        let llama = Self {
            vocab_size: 32_000,
            intermediate_size: 11_008,
            context_length: 2048,
            kv_heads: None,
            head_dim: None,
        };
        let qwen2 = Self {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            context_length: 32_768,
            kv_heads: Some(32),
            head_dim: None,
        };
        match architecture {
            Architecture::Llama => llama,
            Architecture::Mistral => {
                Self { intermediate_size: 14_336, context_length: 131_072, kv_heads: Some(8), ..llama }
            }
            Architecture::Qwen2 => qwen2,
            Architecture::Qwen3 => Self { head_dim: Some(128), ..qwen2 },
        }
    }
}

fn architecture(fields: Fields<'_>) -> Result<Architecture, ErrorKind> {
    let name = fields.str("model_type")?.ok_or_else(|| {
        ErrorKind::missing("field model_type", "config.json must be that of a transformers model")
    })?;
    let known = Architecture::ALL.into_iter().find(|architecture| architecture.name() == name);
    let architecture = known.ok_or_else(|| {
        let names = Architecture::ALL.map(Architecture::name).join(", ");
        fields.unsupported("model_type", format!("architecture {name:?} (known: {names})"))
    })?;
    let causal = |class: &Value| class.as_str().is_some_and(|class| class.ends_with("ForCausalLM"));
    match fields.list("architectures")? {
        Some(classes) if !classes.is_empty() && !classes.iter().any(causal) => Err(fields.unsupported(
            "architectures",
            format!("a model that is not a causal language model ({})", classes[0]),
        )),
        _ => Ok(architecture),
    }
}

/// Refuses what would change the numbers and is not built, rather than compute something else.
fn refuse_unbuilt(fields: Fields<'_>, architecture: Architecture) -> Result<(), ErrorKind> {
    match fields.str("hidden_act")? {
        None | Some("silu") => {}
        Some(other) => return Err(fields.unsupported("hidden_act", format!("activation {other:?}"))),
    }
    if let Some(quantisation) = fields.object("quantization_config")? {
        quantisation::check(quantisation)?;
    }
    let biases: &[&str] = match architecture {
        Architecture::Llama => &["attention_bias", "mlp_bias"],
        Architecture::Qwen3 => &["attention_bias"],
        Architecture::Mistral | Architecture::Qwen2 => &[],
    };
    for name in biases {
        if fields.bool(name)?.unwrap_or(false) {
            return Err(fields.unsupported(name, "a bias in the output or MLP projections"));
        }
    }
    Ok(())
}

/// Mistral slides in every layer. Qwen slides, if at all, in the layers from `max_window_layers` on; only none or
/// all of them is built.
fn sliding_window(
    fields: Fields<'_>,
    architecture: Architecture,
    layers: u32,
) -> Result<Option<u32>, ErrorKind> {
    const DEFAULT: u32 = 4096;
    let window = fields.u32("sliding_window")?;
    match architecture {
        Architecture::Llama => Ok(None),
        Architecture::Mistral if fields.has("sliding_window") => Ok(window),
        Architecture::Mistral => Ok(Some(DEFAULT)),
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !fields.bool("use_sliding_window")?.unwrap_or(false) {
                return all_full_attention(fields);
            }
            let window = if fields.has("sliding_window") { window } else { Some(DEFAULT) };
            let full = match fields.list("layer_types")? {
                Some(types) => {
                    types.iter().filter(|kind| kind.as_str() != Some("sliding_attention")).count() as u32
                }
                None => fields.u32("max_window_layers")?.unwrap_or(28).min(layers),
            };
            match (window, full) {
                (None, _) => Ok(None),
                (Some(window), 0) => Ok(Some(window)),
                (Some(_), full) if full >= layers => Ok(None),
                _ => Err(fields.unsupported("layer_types", "a sliding window in some of the layers only")),
            }
        }
    }
}

fn all_full_attention(fields: Fields<'_>) -> Result<Option<u32>, ErrorKind> {
    let types = fields.list("layer_types")?.unwrap_or_default();
    match types.iter().find(|kind| kind.as_str() != Some("full_attention")) {
        Some(kind) => Err(fields.unsupported("layer_types", format!("{kind} without use_sliding_window"))),
        None => Ok(None),
    }
}
