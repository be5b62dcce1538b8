use std::time::Duration;

use super::*;

fn reading(began: Instant) -> Reading {
    Reading { sample: Sample::default(), began, last: None }
}

#[test]
fn only_text_counts_as_a_token() {
    let began = Instant::now();
    let mut reading = reading(began);
    let unix = UNIX_EPOCH + Duration::from_micros(2_000_500);
    let chunks: [(&str, u64); 5] = [
        (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, 1),
        (r#"{"choices":[{"delta":{"content":"a\n"}}],"stator":{"sampled_us":2000000}}"#, 10),
        (r#"{"choices":[{"delta":{"content":"b"}}]}"#, 14),
        (r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#, 15),
        (
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,
                "prompt_tokens_details":{"cached_tokens":4}}}"#,
            16,
        ),
    ];
    for (chunk, at) in chunks {
        reading.take(chunk.as_bytes(), began + Duration::from_millis(at), unix).unwrap();
    }
    let sample = reading.sample;
    assert_eq!(sample.ttft, Some(0.010));
    assert_eq!(sample.gaps.len(), 1);
    assert!((sample.gaps[0] - 0.004).abs() < 1e-9 && (sample.transits[0] - 0.0005).abs() < 1e-6);
    assert_eq!((sample.prompt_tokens, sample.cached_tokens, sample.output_tokens), (7, 4, 2));
}

#[test]
fn an_error_within_the_stream_is_told_by_its_code() {
    let now = Instant::now();
    let event = br#"{"error":{"message":"m","type":"server_error","code":"engine_fault"}}"#;
    let failure = reading(now).take(event, now, SystemTime::now()).unwrap_err();
    assert_eq!(failure, Failure::InStream("engine_fault".to_owned()));
}
