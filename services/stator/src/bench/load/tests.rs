use clap::{Args, Command, FromArgMatches};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::*;

/// A server of another make: it counts a word as a token, and a connection that has carried a stream is closed instead
/// of answering on it again.
async fn serve(connection: TcpStream) -> std::io::Result<()> {
    let mut connection = BufReader::new(connection);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().unwrap();
                }
                None if line.trim_end().is_empty() => break,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await?;
        let ask: Value = serde_json::from_slice(&body).unwrap();
        let words = ask["messages"][0]["content"].as_str().unwrap().split(' ').count();
        let usage = json!({"prompt_tokens": words, "completion_tokens": 1});
        let streams = ask["stream"] == json!(true);
        let answer = if streams {
            let event = json!({"choices": [{"delta": {"content": "yes"}}], "usage": usage});
            format!("data: {event}\n\ndata: [DONE]\n\n")
        } else {
            json!({"usage": usage}).to_string()
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
        connection.write_all((head + &answer).as_bytes()).await?;
        if streams {
            connection.fill_buf().await?;
            return Ok(());
        }
    }
}

#[tokio::test]
async fn a_server_that_closes_connections_after_each_stream_is_loaded_without_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection));
        }
    });
    let report = tempfile::NamedTempFile::new().unwrap();
    let file = report.path().to_str().unwrap();
    let line = [
        "--url",
        &url,
        "--model",
        "any",
        "--isl",
        "20",
        "--num-requests",
        "5",
        "--concurrency",
        "1",
        "--json",
        file,
    ];
    let command = LoadArgs::augment_args(Command::new("bench").no_binary_name(true));
    let args = LoadArgs::from_arg_matches(&command.try_get_matches_from(line).unwrap()).unwrap();
    run(args).await.unwrap();
    let report: Value = serde_json::from_slice(&std::fs::read(report.path()).unwrap()).unwrap();
    assert_eq!((&report["requests"], &report["errors"]), (&json!(5), &json!({})));
    assert_eq!(report["prompt_tokens"], json!(100), "five prompts of 20 tokens");
}
