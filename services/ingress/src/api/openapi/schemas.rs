//! What requests look like, for the document only: they are read field by field, so that errors can name the field.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

macro_rules! schema {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident : $ty:ty,)* }) => {
        $(#[$about])*
        #[derive(ToSchema)]
        #[allow(dead_code, reason = "described, never built")]
        pub struct $name { $($(#[$doc])* $field: $ty,)* }

        #[cfg(test)]
        #[allow(dead_code, reason = "only the bodies of requests are held against their parsers")]
        impl $name {
            pub const FIELDS: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

schema! {
    /// One message of a conversation.
    ChatMessage {
        /// system, developer, user, assistant or tool.
        role: String,
        /// A string or an array of text parts.
        content: Option<Value>,
        name: Option<String>,
        tool_calls: Option<Vec<Value>>,
        tool_call_id: Option<String>,
    }
}

schema! {
    StreamOptions {
        /// End a stream with a chunk that holds its usage.
        include_usage: Option<bool>,
    }
}

schema! {
    /// Body of /v1/chat/completions.
    ChatCompletionRequest {
        model: String,
        messages: Vec<ChatMessage>,
        max_completion_tokens: Option<u32>,
        max_tokens: Option<u32>,
        n: Option<u32>,
        stream: Option<bool>,
        stream_options: Option<StreamOptions>,
        /// One string or up to 16.
        stop: Option<Value>,
        temperature: Option<f32>,
        top_p: Option<f32>,
        top_k: Option<i64>,
        min_p: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        repetition_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<String, f32>>,
        logprobs: Option<bool>,
        top_logprobs: Option<u8>,
        seed: Option<i64>,
        min_tokens: Option<u32>,
        ignore_eos: Option<bool>,
        stop_token_ids: Option<Vec<u32>>,
        skip_special_tokens: Option<bool>,
        include_stop_str_in_output: Option<bool>,
        tools: Option<Vec<Value>>,
        /// none or auto.
        tool_choice: Option<String>,
        /// Only {"type": "text"}.
        response_format: Option<Value>,
        chat_template_kwargs: Option<Value>,
        add_generation_prompt: Option<bool>,
        continue_final_message: Option<bool>,
        reasoning_effort: Option<String>,
        /// Separates prefix caches.
        cache_salt: Option<String>,
        priority: Option<i32>,
    }
}

schema! {
    /// Body of /v1/completions.
    CompletionRequest {
        model: String,
        /// A string, an array of strings, token ids, or an array of arrays of token ids.
        prompt: Value,
        max_tokens: Option<u32>,
        n: Option<u32>,
        best_of: Option<u32>,
        echo: Option<bool>,
        logprobs: Option<u8>,
        stream: Option<bool>,
        stream_options: Option<StreamOptions>,
        stop: Option<Value>,
        temperature: Option<f32>,
        top_p: Option<f32>,
        top_k: Option<i64>,
        min_p: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        repetition_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<String, f32>>,
        seed: Option<i64>,
        min_tokens: Option<u32>,
        ignore_eos: Option<bool>,
        stop_token_ids: Option<Vec<u32>>,
        skip_special_tokens: Option<bool>,
        add_special_tokens: Option<bool>,
        include_stop_str_in_output: Option<bool>,
        cache_salt: Option<String>,
        priority: Option<i32>,
    }
}

schema! {
    /// Sampling parameters of /generate.
    SamplingParams {
        max_new_tokens: Option<u32>,
        min_new_tokens: Option<u32>,
        n: Option<u32>,
        temperature: Option<f32>,
        top_p: Option<f32>,
        top_k: Option<i64>,
        min_p: Option<f32>,
        presence_penalty: Option<f32>,
        frequency_penalty: Option<f32>,
        repetition_penalty: Option<f32>,
        logit_bias: Option<BTreeMap<String, f32>>,
        stop: Option<Value>,
        stop_token_ids: Option<Vec<u32>>,
        ignore_eos: Option<bool>,
        skip_special_tokens: Option<bool>,
        no_stop_trim: Option<bool>,
        sampling_seed: Option<i64>,
    }
}

schema! {
    /// Body of /generate.
    GenerateRequest {
        /// May be left out where one model is served.
        model: Option<String>,
        /// A string or an array of strings.
        text: Option<Value>,
        /// Token ids, or an array of arrays of them.
        input_ids: Option<Value>,
        /// One object, or one for each prompt.
        sampling_params: Option<SamplingParams>,
        stream: Option<bool>,
        return_logprob: Option<bool>,
        logprob_start_len: Option<i32>,
        top_logprobs_num: Option<u8>,
        return_text_in_logprobs: Option<bool>,
        rid: Option<String>,
        priority: Option<i32>,
        cache_salt: Option<String>,
        extra_key: Option<String>,
    }
}

schema! {
    /// Body of /tokenize: one of text, prompt and messages.
    TokenizeRequest {
        model: Option<String>,
        text: Option<String>,
        prompt: Option<String>,
        messages: Option<Vec<ChatMessage>>,
        add_special_tokens: Option<bool>,
        return_token_strs: Option<bool>,
    }
}

schema! {
    /// Body of /detokenize.
    DetokenizeRequest {
        model: Option<String>,
        tokens: Vec<u32>,
        skip_special_tokens: Option<bool>,
    }
}

schema! {
    ErrorDetail {
        message: String,
        r#type: String,
        param: Option<String>,
        code: Option<String>,
    }
}

schema! {
    /// Every error looks like this.
    ErrorBody {
        error: ErrorDetail,
    }
}

schema! {
    PromptTokensDetails {
        cached_tokens: u32,
    }
}

schema! {
    Usage {
        prompt_tokens: u32,
        completion_tokens: u32,
        total_tokens: u32,
        prompt_tokens_details: PromptTokensDetails,
    }
}
