use serde::{Deserialize, Serialize};

use super::fields::Fields;
use crate::error::ErrorKind;

const DEFAULT_THETA: f32 = 10_000.0;

/// Rotary position embedding over the first `dim` elements of a head, in the half-split ("NeoX") layout: element
/// `i` turns together with element `i + dim / 2`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeSpec {
    pub theta: f32,
    pub dim: u32,
    pub scaling: RopeScaling,
}

/// Frequency scalings as Hugging Face transformers defines them (`modeling_rope_utils.py`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    #[default]
    None,
    Linear {
        factor: f32,
    },
    /// NTK-aware, base grows with the sequence beyond `original_context`.
    Dynamic {
        factor: f32,
        original_context: u32,
    },
    Llama3 {
        factor: f32,
        low_freq_factor: f32,
        high_freq_factor: f32,
        original_context: u32,
    },
    Yarn {
        factor: f32,
        original_context: u32,
        beta_fast: f32,
        beta_slow: f32,
        /// Multiplies cosine and sine; `None` means `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
        truncate: bool,
    },
    /// Each inverse frequency is divided by its own factor, `dim / 2` of them (as GGUF files store Llama 3's).
    Factors {
        factors: Vec<f32>,
    },
}

impl RopeSpec {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before).
    pub(super) fn from_json(config: Fields<'_>, head_dim: u32, context: u32) -> Result<Self, ErrorKind> {
        let scaling = match config.object("rope_scaling")? {
            None => config.object("rope_parameters")?,
            given => given,
        };
        let theta = |fields: Fields<'_>| fields.f32("rope_theta");
        let partial = |fields: Fields<'_>| fields.f32("partial_rotary_factor");
        let nested = scaling.map(theta).transpose()?.flatten();
        let theta = nested.or(theta(config)?).unwrap_or(DEFAULT_THETA);
        let nested = scaling.map(partial).transpose()?.flatten();
        let partial = nested.or(partial(config)?).unwrap_or(1.0);
        Ok(Self {
            theta,
            dim: (head_dim as f32 * partial) as u32,
            scaling: scaling
                .map_or(Ok(RopeScaling::None), |scaling| RopeScaling::from_json(scaling, config, context))?,
        })
    }

    pub(super) fn check(&self, head_dim: u32) -> Result<(), ErrorKind> {
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(ErrorKind::malformed("rope_theta", format!("{} is not above 1", self.theta)));
        }
        // Two would make the exponent of dynamic scaling, dim / (dim - 2), infinite.
        if self.dim < 4 || self.dim > head_dim || !self.dim.is_multiple_of(2) {
            let reason = format!("{} is not an even number from 4 to the head's {head_dim}", self.dim);
            return Err(ErrorKind::malformed("rotary dimension", reason));
        }
        self.scaling.check(self.dim)
    }
}

impl RopeScaling {
    fn from_json(scaling: Fields<'_>, config: Fields<'_>, context: u32) -> Result<Self, ErrorKind> {
        let kind = match scaling.str("rope_type")? {
            None => scaling.str("type")?,
            given => given,
        };
        let required = |name: &str| scaling.f32(name)?.ok_or_else(|| scaling.malformed(name, "missing"));
        let original_context = || -> Result<u32, ErrorKind> {
            const NAME: &str = "original_max_position_embeddings";
            Ok(config.u32(NAME)?.or(scaling.u32(NAME)?).unwrap_or(context))
        };
        Ok(match kind.unwrap_or("default") {
            "default" => Self::None,
            "linear" => Self::Linear { factor: required("factor")? },
            "dynamic" => Self::Dynamic { factor: required("factor")?, original_context: context },
            "llama3" => Self::Llama3 {
                factor: required("factor")?,
                low_freq_factor: required("low_freq_factor")?,
                high_freq_factor: required("high_freq_factor")?,
                original_context: original_context()?,
            },
            "yarn" => {
                let original_context = original_context()?;
                let stretched = context as f32 / original_context.max(1) as f32;
                let factor = scaling.f32("factor")?.unwrap_or(stretched);
                Self::Yarn {
                    factor,
                    original_context,
                    beta_fast: scaling.f32("beta_fast")?.filter(|beta| *beta != 0.0).unwrap_or(32.0),
                    beta_slow: scaling.f32("beta_slow")?.filter(|beta| *beta != 0.0).unwrap_or(1.0),
                    attention_factor: yarn_attention_factor(scaling, factor)?,
                    truncate: scaling.bool("truncate")?.unwrap_or(true),
                }
            }
            other => return Err(scaling.unsupported("rope_type", format!("{other:?}"))),
        })
    }

    fn check(&self, dim: u32) -> Result<(), ErrorKind> {
        let positive = |field: &str, value: f32| {
            let fine = value.is_finite() && value > 0.0;
            fine.then_some(()).ok_or_else(|| ErrorKind::malformed(field, format!("{value} is not above 0")))
        };
        let context = |tokens: u32| positive("original_max_position_embeddings", tokens as f32);
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("rope factor", *factor),
            Self::Dynamic { factor, original_context } => {
                positive("rope factor", *factor)?;
                context(*original_context)
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                positive("rope factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor)?;
                context(*original_context)
            }
            Self::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, .. } => {
                positive("rope factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", attention_factor.unwrap_or(1.0))?;
                context(*original_context)
            }
            Self::Factors { factors } if factors.len() != dim as usize / 2 => {
                let reason = format!("{} factors for {} frequencies", factors.len(), dim / 2);
                Err(ErrorKind::malformed("rope_freqs.weight", reason))
            }
            Self::Factors { factors } => {
                factors.iter().try_for_each(|&factor| positive("rope_freqs.weight", factor))
            }
        }
    }
}

/// `attention_factor`, or what `mscale` and `mscale_all_dim` together make of it.
fn yarn_attention_factor(scaling: Fields<'_>, factor: f32) -> Result<Option<f32>, ErrorKind> {
    if let Some(given) = scaling.f32("attention_factor")? {
        return Ok(Some(given));
    }
    let set = |name| Ok::<_, ErrorKind>(scaling.f32(name)?.filter(|scale| *scale != 0.0));
    let magnitude =
        |scale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * f64::from(scale) * f64::from(factor).ln() + 1.0 };
    Ok(set("mscale")?
        .zip(set("mscale_all_dim")?)
        .map(|(some, all)| (magnitude(some) / magnitude(all)) as f32))
}
