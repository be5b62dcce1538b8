//! Model files: safetensors, GGUF, config.json, tokenizers, chat templates. No device, no bus.
//!
//! Files are untrusted. Whatever is wrong with one is an [`Error`] that names the file and the field or tensor;
//! counts and offsets are checked against the file's length before anything is allocated or read.

mod config;
mod dequant;
mod dtype;
mod error;
pub mod gguf;
mod location;
mod map;
pub mod safetensors;
mod tensor;

pub use config::{Architecture, DecoderConfig, RopeConfig, RopeScaling, limits};
pub use dequant::dequantise_row;
pub use dtype::DType;
pub use error::{Error, ErrorKind};
pub use gguf::{Gguf, Metadata};
pub use location::{CONFIG_FILE, Location, locate};
pub use safetensors::Safetensors;
pub use tensor::Tensor;
