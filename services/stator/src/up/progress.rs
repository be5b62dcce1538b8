//! Progress that a service reports while it starts, read from its log.
//!
//! The contract: log lines of the target `progress` with the fields `done` and `total`, in text
//! (`… INFO progress: loading weights done=12 total=30`) or JSON. They feed the bars and are not shown as logs.

/// How far a service has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub what: String,
    pub done: u64,
    pub total: u64,
}

/// The target of progress lines.
pub const TARGET: &str = "progress";

/// Reads a log line; `None` if it is none of these.
pub fn parse(line: &str) -> Option<Progress> {
    if line.starts_with('{') { parse_json(line) } else { parse_text(line) }
}

fn parse_json(line: &str) -> Option<Progress> {
    let json: serde_json::Value = serde_json::from_str(line).ok()?;
    if json.get("target")?.as_str()? != TARGET {
        return None;
    }
    Some(Progress {
        what: json.get("message").and_then(|text| text.as_str()).unwrap_or_default().to_owned(),
        done: json.get("done")?.as_u64()?,
        total: json.get("total")?.as_u64()?,
    })
}

fn parse_text(line: &str) -> Option<Progress> {
    let (_, rest) = line.split_once(" INFO progress: ")?;
    let field = |name: &str| {
        rest.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
    };
    let what: Vec<&str> = rest.split(' ').take_while(|word| !word.contains('=')).collect();
    Some(Progress { what: what.join(" "), done: field("done")?, total: field("total")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_log_formats_are_read_and_other_lines_are_not() {
        let expected = Some(Progress { what: "loading weights".to_owned(), done: 12, total: 30 });
        let text = "2026-01-01T00:00:00.1Z  INFO progress: loading weights done=12 total=30";
        let json = r#"{"level":"INFO","message":"loading weights","done":12,"total":30,"target":"progress"}"#;
        assert_eq!(parse(text), expected);
        assert_eq!(parse(json), expected);
        assert_eq!(parse("2026-01-01T00:00:00.1Z  INFO decode: in progress: done=1 total=2"), None);
        assert_eq!(parse(r#"{"message":"x","done":1,"total":2,"target":"decode"}"#), None);
    }
}
