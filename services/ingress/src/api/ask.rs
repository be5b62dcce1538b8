//! What a client asked for, checked and ready for the road.

use messages::{
    InstanceId,
    generate::{Generate, TextOptions},
    input::Input,
    lease::ModelCard,
    submit::{Routing, Sampling},
};

/// Prompts in one request.
pub const MAX_PROMPTS: usize = 256;
/// Choices of one prompt.
pub const MAX_CHOICES: i64 = 128;

/// A checked request of any generating route.
#[derive(Debug)]
pub struct Ask {
    /// One for each prompt.
    pub prompts: Vec<Generate>,
    pub stream: bool,
    pub form: Form,
}

/// How the answer is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    Chat(ChatForm),
    Completion(CompletionForm),
    Native(NativeForm),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChatForm {
    /// A streamed answer ends with its usage.
    pub include_usage: bool,
    pub logprobs: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct CompletionForm {
    pub include_usage: bool,
    pub logprobs: Option<u8>,
    /// Each choice begins with its prompt.
    pub echo: bool,
    /// Only the prompt is wanted: the one token that has to be computed is not shown.
    pub no_output: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct NativeForm {
    /// The answer is an array.
    pub batch: bool,
    pub logprobs: bool,
    pub top_logprobs: bool,
    /// Name the text of each token beside its log probability.
    pub text_in_logprobs: bool,
    pub no_output: bool,
    /// The client's own ids, one a prompt.
    pub ids: Vec<Option<String>>,
}

impl Form {
    /// The answer shows token ids.
    pub fn shows_ids(&self) -> bool {
        matches!(self, Self::Native(_))
    }
}

/// A request for one prompt with nothing special about it. `ingress` is filled in when it sets out.
pub fn generate(input: Input, n: u32, sampling: Sampling, text: TextOptions) -> Generate {
    Generate {
        input,
        n,
        sampling,
        max_tokens: None,
        text,
        score_prompt_from: None,
        priority: 0,
        cache_salt: None,
        routing: Routing::default(),
        ingress: InstanceId::draw(messages::Role::Ingress),
        journal: None,
        attach: None,
        avoid: Vec::new(),
        deaths: 0,
    }
}

/// The fingerprint of what computes the answer.
pub fn fingerprint(card: &ModelCard) -> String {
    format!("fp_{}", card.revision.chars().take(10).collect::<String>())
}
