//! What the clients ask: a mix of greedy, seeded, several choices, stop strings, log probabilities, whole answers,
//! long and short prompts.

use serde_json::{Value, json};

const SUBJECTS: [&str; 8] =
    ["a lighthouse", "two rivers", "the moon", "a clockmaker", "bread", "an old map", "winter", "a violin"];

/// How often a long prompt says its sentence.
const SENTENCES: usize = 12;

/// Requests that differ, the i-th always the same.
#[derive(Debug, Clone)]
pub struct Mix {
    pub model: String,
    /// Output tokens of a choice.
    pub max_tokens: u32,
}

impl Mix {
    /// The i-th request, for the `turn`-th time. What is asked is the same each time, and answered the same; but no cache
    /// remembers a long prompt from one turn to the next.
    pub fn request(&self, i: usize, turn: usize) -> Value {
        let subject = SUBJECTS[i % SUBJECTS.len()];
        let is_long = matches!(i % 8, 1 | 4);
        let more = if is_long { format!(" It is about {subject} and nothing else.") } else { String::new() };
        let mut request = json!({
            "model": self.model, "stream": true, "max_tokens": self.max_tokens, "seed": i, "ignore_eos": true,
            "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": format!("Write story number {i}, about {subject}.{}", more.repeat(SENTENCES))}],
            "temperature": 0.0,
        });
        let mut set = |key: &str, value: Value| request[key] = value;
        if is_long {
            set("cache_salt", json!(format!("{i} at {turn}")));
        }
        match i % 8 {
            0 => {}
            1 => set("temperature", json!(0.8)),
            2 => {
                set("temperature", json!(0.9));
                set("n", json!(2));
            }
            3 => {
                set("temperature", json!(0.7));
                set("stop", json!(["\n\n", " and the", "ing "]));
            }
            4 => {
                set("logprobs", json!(true));
                set("top_logprobs", json!(2));
            }
            5 => {
                set("temperature", json!(0.8));
                set("stream", json!(false));
            }
            6 => {
                set("temperature", json!(1.0));
                set("n", json!(2));
                set("logprobs", json!(true));
                set("stream", json!(false));
            }
            _ => {
                set("temperature", json!(0.9));
                set("top_p", json!(0.9));
                set("frequency_penalty", json!(0.4));
            }
        }
        if request["stream"] == false {
            request.as_object_mut().map(|fields| fields.remove("stream_options"));
        }
        request
    }
}
