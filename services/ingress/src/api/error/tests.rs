use super::*;

#[test]
fn faults_become_http_errors() {
    use FaultCode as Code;
    let table = [
        (Code::InvalidRequest, 400, "invalid_request_error", "invalid_value"),
        (Code::ContextLengthExceeded, 400, "invalid_request_error", "context_length_exceeded"),
        (Code::NeverFits, 400, "invalid_request_error", "kv_cache_exceeded"),
        (Code::TooLarge, 413, "invalid_request_error", "request_too_large"),
        (Code::ModelNotFound, 404, "invalid_request_error", "model_not_found"),
        (Code::Overloaded, 503, "overloaded_error", "overloaded"),
        (Code::Draining, 503, "server_error", "draining"),
        (Code::NoInstance, 503, "server_error", "no_instance"),
        (Code::Unanswered, 503, "server_error", "unanswered"),
        (Code::DeadlineExceeded, 504, "timeout_error", "deadline_exceeded"),
        (Code::SlowClient, 408, "invalid_request_error", "slow_client"),
        (Code::Cancelled, 499, "invalid_request_error", "cancelled"),
        (Code::EngineFault, 500, "server_error", "engine_fault"),
        (Code::Internal, 500, "server_error", "internal_error"),
        (Code::Unknown, 500, "server_error", "internal_error"),
    ];
    for (fault, status, kind, code) in table {
        let error = ApiError::from(Fault::new(fault, "why"));
        assert_eq!((error.status.as_u16(), error.kind, error.code), (status, kind, Some(code)));
        assert_eq!(error.error_response().headers().contains_key(header::RETRY_AFTER), status == 503);
    }
}

#[test]
fn the_body_has_exactly_the_four_fields() {
    let body = ApiError::from(Fault::invalid("messages", "too odd")).to_json();
    let expected = json!({"error": {
        "message": "too odd", "type": "invalid_request_error", "param": "messages", "code": "invalid_value",
    }});
    assert_eq!(body, expected);
}

#[test]
fn waiting_time_is_told_in_whole_seconds() {
    let fault = Fault::new(FaultCode::Overloaded, "full").retry_after(1500);
    let response = ApiError::from(fault).error_response();
    assert_eq!(response.headers().get(header::RETRY_AFTER).unwrap(), "2");
}

#[test]
fn broken_json_is_told_with_its_place() {
    let error = serde_json::from_str::<Value>("{\"a\": 1,\n  b}").unwrap_err();
    let error = ApiError::malformed(&error);
    assert!(error.message.contains("line 2 column 3"), "{}", error.message);
    assert_eq!(error.status, 400);
}
