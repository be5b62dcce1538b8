//! The real model, through the real road, with the real client library.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{path::Path, process::Command};

use serde_json::json;
use stator_tests::{Cluster, Service, cluster::Plan, model::smollm2};

#[tokio::test(flavor = "multi_thread")]
async fn smollm2_knows_the_capital_of_france_and_the_openai_package_is_content() {
    let model = smollm2();
    let name = ["--served-model-name", "smollm2"];
    let plan = Plan::of(&model).with(Service::Decode, &name).with(Service::Tokenizer, &name);
    let cluster = Cluster::start(plan).await;
    let request = json!({
        "model": "smollm2", "temperature": 0, "max_tokens": 32,
        "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    });
    let reply = cluster.http().post("/v1/chat/completions", &request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = reply.json();
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");

    let Some(python) = std::env::var_os("STATOR_TEST_PYTHON") else {
        eprintln!("STATOR_TEST_PYTHON is not set: the openai package is left out (scripts/test sets it)");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/openai_client.py");
    let output = Command::new(python).arg(script).arg(cluster.port.to_string()).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{}", cluster.logs());
}
