use messages::Role;
use serde_json::Value;

use super::{Asked, Ids, message::Decoded, role_of};

/// Which messages to show.
pub struct Filter {
    pub request: Option<String>,
    pub role: Option<Role>,
    pub pool: Option<String>,
    /// Empty: all.
    pub kinds: Vec<String>,
}

impl Filter {
    /// Judges a message; a batch of frames is cut down to the wanted request's.
    pub fn lets_through(&self, subject: &str, ids: &Ids, decoded: &mut Decoded) -> bool {
        self.kind(decoded)
            && self.pool.as_ref().is_none_or(|pool| subject.contains(pool.as_str()))
            && self.role.is_none_or(|role| self.concerns(role, subject, decoded))
            && self.request.as_ref().is_none_or(|id| ids.has(id) || keep_only(id, &mut decoded.body))
    }

    pub fn lets_reply_through(&self, asked: &Asked, decoded: &Decoded) -> bool {
        self.kind(decoded)
            && self.pool.as_ref().is_none_or(|pool| asked.subject.contains(pool.as_str()))
            && self.role.is_none_or(|role| self.concerns(role, &asked.subject, decoded))
            && self.request.as_ref().is_none_or(|id| asked.ids.has(id))
    }

    fn kind(&self, decoded: &Decoded) -> bool {
        self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == decoded.kind)
    }

    fn concerns(&self, role: Role, subject: &str, decoded: &Decoded) -> bool {
        let to = subject.split('.').any(|token| {
            token == role.as_str() || token.parse().is_ok_and(|instance| role_of(&instance) == Some(role))
        });
        to || decoded.from.as_ref().and_then(role_of) == Some(role)
    }
}

/// Drops the entries of other requests from a batch; true if any of `id` is left, or the body itself names it.
fn keep_only(id: &str, body: &mut Value) -> bool {
    if names(id, body) {
        return true;
    }
    let mut found = false;
    for list in ["frames", "alive"] {
        if let Some(entries) = body.get_mut(list).and_then(Value::as_array_mut) {
            entries.retain(|entry| names(id, entry));
            found |= !entries.is_empty();
        }
    }
    found
}

/// Ids are shown with or without hyphens.
fn names(id: &str, value: &Value) -> bool {
    let plain = |text: &str| text.replace('-', "");
    value.get("request").and_then(Value::as_str).is_some_and(|found| plain(found) == plain(id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn all() -> Filter {
        Filter { request: None, role: None, pool: None, kinds: Vec::new() }
    }

    fn batch() -> Decoded {
        let body = json!({"frames": [{"request": "0a-1b"}, {"request": "ff"}], "alive": [{"request": "ff"}]});
        Decoded { kind: "frames", from: Some("decode-00ff".parse().unwrap()), body }
    }

    const INBOX: &str = "stator.v1.inbox.tokenizer-0001.frames";

    #[test]
    fn a_batch_is_cut_down_to_the_request() {
        let filter = Filter { request: Some("0a1b".to_owned()), ..all() };
        let mut message = batch();
        assert!(filter.lets_through(INBOX, &Ids::default(), &mut message));
        assert_eq!(message.body, json!({"frames": [{"request": "0a-1b"}], "alive": []}));
        let other = Filter { request: Some("77".to_owned()), ..all() };
        assert!(!other.lets_through(INBOX, &Ids::default(), &mut batch()));
    }

    #[test]
    fn a_role_is_that_of_sender_or_receiver() {
        for (role, shown) in [(Role::Decode, true), (Role::Tokenizer, true), (Role::Router, false)] {
            let filter = Filter { role: Some(role), ..all() };
            assert_eq!(filter.lets_through(INBOX, &Ids::default(), &mut batch()), shown, "{role}");
        }
    }

    #[test]
    fn kinds_are_those_named() {
        let filter = Filter { kinds: vec!["load".to_owned()], ..all() };
        assert!(!filter.lets_through(INBOX, &Ids::default(), &mut batch()));
    }
}
