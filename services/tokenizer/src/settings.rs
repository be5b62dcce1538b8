use std::path::PathBuf;

actors::settings! {
    /// How a model's text is made to tokens and back. Names are SGLang's where they mean the same.
    pub struct TokenizerSettings, TokenizerFlags in "tokenizer" {
        /// Hugging Face folder or GGUF file; its weights are not read.
        optional model_path: PathBuf;
        /// Name that clients ask for; default: that of the folder or file.
        optional served_model_name: String;
        /// Longest sequence; default: what the model was made for.
        optional context_length: u32;
        /// Jinja file to be used instead of the model's chat template.
        optional chat_template: PathBuf;
        /// Threads that render and encode prompts.
        value tokenizer_worker_num: usize = 2;
        /// Requests that wait to be rendered and encoded.
        value max_queued_prompts: usize = 1024;
        /// Memory for encoded parts of prompts, in MiB.
        value prompt_cache_mib: usize = 16;
    }
}
