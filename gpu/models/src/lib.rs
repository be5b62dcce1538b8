//! Decoder families as data, sampling parameters, and the contract between a scheduler and an executor.
//!
//! Nothing here knows a device or the bus. A model is a [`DecoderSpec`] and a set of named weights; an
//! [`Executor`] runs any decoder that the spec can describe.

mod contract;
mod executor;
#[doc(hidden)]
pub mod fixtures;
mod matrix;
mod model;
pub mod philox;
mod rope;
pub mod sampler;
mod sampling;
pub mod synthetic;
mod weights;

pub use contract::{BatchChecker, SlotState};
pub use executor::{
    Batch, Copying, Executor, ExecutorError, ExecutorSpec, Export, KvLayout, OpenSlot, Outputs, PageCopy,
    PageMove, PageSink, Sampled, Score, Scored, SequenceStep, SlotId, StepId, Ticket, TokenLogprob,
};
pub use formats::{DType, DecoderSpec, RopeScaling, RopeSpec};
pub use matrix::{BlockScales, Matrix};
pub use model::{Model, ModelError};
pub use rope::{RopeTable, rope_frequencies};
pub use sampling::{Logprobs, SamplingBounds, SamplingError, SamplingParams};
pub use weights::{LayerWeight, WeightId, Weights};

/// A token id of the model's vocabulary.
pub type TokenId = u32;

/// In a [`Batch`], stands for "the token that the previous step sampled for this slot", which the host may not
/// have seen yet when it plans ahead. Not a valid id: vocabularies are far smaller.
pub const PLACEHOLDER: TokenId = TokenId::MAX;
