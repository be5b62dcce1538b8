//! Model files: safetensors, GGUF, config.json, tokenizers, chat templates. No device, no bus.
//!
//! Files are untrusted. Whatever is wrong with one is an [`Error`] that names the file and the field or tensor;
//! counts and offsets are checked against the file's length before anything is allocated or read.

mod chat_template;
mod config;
mod dequant;
mod dtype;
mod error;
pub mod fp8;
mod generation;
pub mod gguf;
mod json;
mod location;
mod map;
mod model_files;
mod revision;
pub mod safetensors;
mod special_tokens;
mod tensor;
mod tokenizer;

pub use chat_template::ChatTemplates;
pub use config::{Architecture, DecoderConfig, DecoderSpec, RopeScaling, RopeSpec, limits};
pub use dequant::dequantise_row;
pub use dtype::DType;
pub use error::{Error, ErrorKind};
pub use generation::GenerationDefaults;
pub use gguf::{Gguf, Metadata};
pub use location::{CONFIG_FILE, Location, locate};
pub use model_files::{ModelCard, ModelFiles};
pub use revision::Revision;
pub use safetensors::Safetensors;
pub use special_tokens::SpecialTokens;
pub use tensor::Tensor;
