//! Tokenizer to router to engine: tokens to be continued.

use serde::{Deserialize, Serialize};

use crate::{
    fault::Fault,
    id::{InstanceId, Pool, RunId},
    tokens::TokenIds,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submit {
    /// Drawn by the router for each dispatch; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The engines to choose from: one model revision.
    pub pool: Pool,
    pub prompt: TokenIds,
    /// The choices to go on with; ended ones are left out.
    pub choices: Vec<ChoiceStart>,
    pub sampling: Sampling,
    /// Output tokens per choice, those already in `choices` included.
    pub max_tokens: u32,
    /// The client named no limit: `max_tokens` is what the context leaves, and less will do where an engine holds less.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_prompt_from: Option<u32>,
    #[serde(default)]
    pub priority: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// Drawn by the router: who dispatches, and the number of the dispatch. Loads name the highest one they include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dispatch: Option<(InstanceId, u64)>,
    /// Named by the router if it pays to compute the prompt there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<InstanceId>,
    /// How much later than at the engine the prompt may be done there if that spares sequences that decode at the engine.
    #[serde(default)]
    pub prefill_patience_ms: u32,
    #[serde(default)]
    pub routing: Routing,
    /// Where token frames go.
    pub tokenizer: InstanceId,
    /// Where a copy of each acceptance goes.
    pub ingress: InstanceId,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<InstanceId>,
    /// Engines that have died with this request aboard since it last got further.
    #[serde(default)]
    pub deaths: u32,
}

impl Submit {
    /// From this many deaths on it may be of the request that engines die.
    pub const POISON_AFTER: u32 = 2;

    /// Whether its engine should have no other such request.
    pub fn maybe_poison(&self) -> bool {
        self.deaths >= Self::POISON_AFTER
    }

    /// Whether somebody has received some of the output already, and waits for more.
    pub fn goes_on(&self) -> bool {
        self.choices.iter().any(|choice| !choice.output.is_empty())
    }

    /// A first attempt that asks for nothing but tokens, as drawn by default, and as yet for none of them.
    pub fn new(pool: Pool, prompt: TokenIds, tokenizer: InstanceId, ingress: InstanceId) -> Self {
        Self {
            run: None,
            pool,
            prompt,
            choices: Vec::new(),
            sampling: Sampling::default(),
            max_tokens: 0,
            open_ended: false,
            score_prompt_from: None,
            priority: 0,
            cache_salt: None,
            dispatch: None,
            prefill: None,
            prefill_patience_ms: 0,
            routing: Routing::default(),
            tokenizer,
            ingress,
            avoid: Vec::new(),
            deaths: 0,
        }
    }
}

/// What a client or its API key says of where a request should go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Routing {
    /// Requests of one session are best served by one engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Serve it by this engine and no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<InstanceId>,
    /// Whose share of the capacity it takes: a label of the API key, never the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChoiceStart {
    pub index: u32,
    /// Output so far.
    pub output: TokenIds,
}

/// How tokens are drawn. Fields mean what SGLang's sampling parameters of the same name mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    pub temperature: f32,
    pub top_p: f32,
    /// 0 keeps all.
    pub top_k: u32,
    pub min_p: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub repetition_penalty: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(u32, f32)>,
    pub min_tokens: u32,
    /// Tokens that end a choice: the model's end tokens (unless ignored) and the request's own.
    pub stop_ids: Vec<u32>,
    pub seed: u64,
    /// `Some(k)`: log probability of each token and of the k most likely ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
}

/// What a client may ask for.
impl Sampling {
    pub const MAX_BIASES: usize = 1024;
    /// Beside the model's end tokens.
    pub const MAX_STOP_IDS: usize = 256;
    pub const MAX_TOP_LOGPROBS: u8 = 20;
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            stop_ids: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// The answer to a request subject: custody has passed, or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Custody {
    Accepted { instance: InstanceId },
    Refused(Fault),
}
