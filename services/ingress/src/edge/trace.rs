//! W3C trace context: taken from the client or begun here.

/// The `traceparent` to send on: the client's trace with this hop as parent, or a new trace.
pub fn forward(incoming: Option<&str>) -> String {
    let (trace, flags) = incoming.and_then(parse).unwrap_or_else(|| (draw(16), "01".to_owned()));
    format!("00-{trace}-{}-{flags}", draw(8))
}

/// Trace id and flags of a well-formed `traceparent`.
fn parse(header: &str) -> Option<(String, String)> {
    let mut parts = header.trim().split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    let fits = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    (fits && !zero(trace) && !zero(parent)).then(|| (trace.to_owned(), flags.to_owned()))
}

/// Random bytes in hex, not all zero.
fn draw(bytes: usize) -> String {
    let number = rand::random::<u128>() | 1;
    format!("{number:032x}").split_off(32 - 2 * bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_trace_goes_on_with_a_new_parent() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let forwarded = forward(Some(&format!("00-{trace}-b7ad6b7169203331-00")));
        let parts: Vec<&str> = forwarded.split('-').collect();
        assert_eq!((parts[1], parts[3]), (trace, "00"));
        assert_ne!(parts[2], "b7ad6b7169203331");
    }

    #[test]
    fn a_malformed_trace_is_replaced() {
        let zeros = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        for bad in [None, Some("nonsense"), Some(zeros.as_str()), Some("00-xyz-b7ad6b7169203331-01")] {
            let forwarded = forward(bad);
            assert!(parse(&forwarded).is_some(), "{forwarded}");
        }
    }
}
