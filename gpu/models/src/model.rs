use std::path::{Path, PathBuf};

use formats::{Architecture, DType, DecoderConfig, Gguf};

use crate::{DecoderSpec, WeightId, Weights, weights::MAX_SCALE};

/// A decoder ready to be loaded onto a device: what it is made of, and its weights in their files.
#[derive(Debug)]
pub struct Model {
    pub spec: DecoderSpec,
    pub weights: Weights,
    pub architecture: Architecture,
    pub path: PathBuf,
}

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Files(#[from] formats::Error),
    #[error("tensor {tensor} has shape {found:?}, the configuration calls for {expected:?}")]
    Shape { tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("tensor {tensor} is stored as {dtype}, which no executor runs for it")]
    Dtype { tensor: String, dtype: DType },
    #[error("tensor {tensor} holds the scale {value} at {at:?}; scales are at least 0 and below {MAX_SCALE}")]
    Scale { tensor: String, at: [usize; 2], value: f32 },
    #[error("the weight {0:?} holds values that are no numbers")]
    NotANumber(WeightId),
    #[error("this model has no weight {0:?}")]
    NoSuchWeight(WeightId),
    #[error("cannot make up a checkpoint: {0}")]
    Synthetic(String),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

impl Model {
    /// Opens a Hugging Face folder (config.json and safetensors), a GGUF file, or a folder that holds just one.
    /// Maps the weights and checks them all against the configuration; reads none of them.
    ///
    /// # Errors
    /// If a file is missing, malformed or asks for what is not built: the error names the file and the field or
    /// tensor.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let path = formats::locate(path)?;
        let (config, weights);
        match &path {
            formats::Location::Gguf(file) => {
                let file = Gguf::open(file)?;
                config = DecoderConfig::from_gguf(&file)?;
                weights = Weights::open_gguf(file, &config.decoder, config.architecture)?;
            }
            formats::Location::Folder(folder) => {
                config = DecoderConfig::from_config_json(&folder.join(formats::CONFIG_FILE))?;
                weights = Weights::open_safetensors(folder, &config.decoder)?;
            }
        }
        Ok(Self {
            spec: config.decoder,
            weights,
            architecture: config.architecture,
            path: path.path().to_owned(),
        })
    }
}
