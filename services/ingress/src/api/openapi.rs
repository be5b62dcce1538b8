//! `/openapi.json`: the routes with the schemas of what they take.

mod schemas;

use std::sync::OnceLock;

use utoipa::{
    OpenApi,
    openapi::{
        Content, HttpMethod, PathItem, Ref, Required, path::OperationBuilder,
        request_body::RequestBodyBuilder, response::ResponseBuilder,
    },
};

pub use schemas::*;

#[derive(OpenApi)]
#[openapi(
    info(title = "stator", description = "OpenAI-compatible and SGLang-native HTTP API"),
    components(schemas(
        ChatCompletionRequest,
        CompletionRequest,
        GenerateRequest,
        SamplingParams,
        StreamOptions,
        ChatMessage,
        TokenizeRequest,
        DetokenizeRequest,
        ErrorBody,
        ErrorDetail,
        Usage,
        PromptTokensDetails
    ))
)]
struct Document;

/// Path, method, what it does, and the schema of its body.
type Entry = (&'static str, HttpMethod, &'static str, Option<&'static str>);

const ROUTES: [Entry; 14] = [
    ("/v1/chat/completions", HttpMethod::Post, "Answer a conversation", Some("ChatCompletionRequest")),
    ("/v1/completions", HttpMethod::Post, "Continue a text", Some("CompletionRequest")),
    ("/generate", HttpMethod::Post, "SGLang's native generation", Some("GenerateRequest")),
    ("/v1/models", HttpMethod::Get, "List the served models", None),
    ("/v1/models/{id}", HttpMethod::Get, "Describe a served model", None),
    ("/tokenize", HttpMethod::Post, "Turn text or a conversation into tokens", Some("TokenizeRequest")),
    ("/detokenize", HttpMethod::Post, "Turn tokens into text", Some("DetokenizeRequest")),
    ("/model_info", HttpMethod::Get, "Describe the model as SGLang does", None),
    ("/get_model_info", HttpMethod::Get, "Older name of /model_info", None),
    ("/server_info", HttpMethod::Get, "Describe the server", None),
    ("/get_server_info", HttpMethod::Get, "Older name of /server_info", None),
    ("/health", HttpMethod::Get, "Whether a chat can be answered, and why not", None),
    ("/live", HttpMethod::Get, "Whether the process is alive", None),
    ("/metrics", HttpMethod::Get, "Prometheus metrics", None),
];

/// The document, made once.
pub fn json() -> &'static str {
    static DOCUMENT: OnceLock<String> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let mut document = Document::openapi();
        document.info.version = env!("CARGO_PKG_VERSION").to_owned();
        for (path, method, summary, body) in ROUTES {
            document.paths.paths.insert(path.to_owned(), item(method, summary, body));
        }
        serde_json::to_string(&document).expect("an openapi document is plain data")
    })
}

fn item(method: HttpMethod, summary: &str, body: Option<&str>) -> PathItem {
    let schema = |name: &str| Content::new(Some(Ref::from_schema_name(name)));
    let ok = ResponseBuilder::new().description("The answer").build();
    let error = ResponseBuilder::new()
        .description("An error in OpenAI's form")
        .content("application/json", schema("ErrorBody"))
        .build();
    let operation =
        OperationBuilder::new().summary(Some(summary)).response("200", ok).response("default", error);
    let operation = match body {
        Some(name) => {
            let body = RequestBodyBuilder::new()
                .content("application/json", schema(name))
                .required(Some(Required::True))
                .build();
            operation.request_body(Some(body))
        }
        None => operation,
    };
    PathItem::new(method, operation.build())
}

#[cfg(test)]
mod tests;
