use actors::settings::Layer;
use clap::{Args, Command, FromArgMatches};

use super::*;
use crate::up::UpFlags;

fn intent(line: &[&str]) -> Intent {
    let command = UpFlags::augment_args(Command::new("up").no_binary_name(true));
    let matches = ServiceFlags::augment_args(command).try_get_matches_from(line).unwrap();
    let flags = ServiceFlags::from_arg_matches(&matches).unwrap();
    Intent {
        settings: UpFlags::from_arg_matches(&matches).unwrap().resolve(),
        process: ProcessSettings::default(),
        ingress: IngressSettings::default(),
        engine: flags.engine.clone(),
        flags,
        config: None,
    }
}

fn plan(line: &[&str]) -> Vec<Job> {
    plan_on(&[], line)
}

fn plan_on(gpus: &[usize], line: &[&str]) -> Vec<Job> {
    let (intent, urls) = (intent(line), ["nats://u:secret@127.0.0.1:1".to_owned()]);
    jobs(&intent, &intent.settings.model, &urls, || gpus.to_vec()).unwrap()
}

fn line(job: &Job) -> Vec<&str> {
    job.arguments.iter().map(|argument| argument.to_str().unwrap()).collect()
}

fn names(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| job.name.as_str()).collect()
}

#[test]
fn one_process_a_service_by_default() {
    assert_eq!(names(&plan(&["--model", "a"])), ["ingress-0", "tokenizer-0", "router-0", "decode-0"]);
}

#[test]
fn replicas_and_models_multiply() {
    let jobs = plan(&["--model", "a", "--model", "b=bee", "--replicas", "decode=2,tokenizer=1"]);
    let expected = [
        "ingress-0",
        "tokenizer-m0-0",
        "tokenizer-m1-0",
        "router-0",
        "decode-m0-0",
        "decode-m0-1",
        "decode-m1-0",
        "decode-m1-1",
    ];
    assert_eq!(names(&jobs), expected);
    let last = line(&jobs[7]);
    assert_eq!(last[..5], ["decode", "--model-path", "b", "--served-model-name", "bee"]);
    assert!(last[5].starts_with("--threads="), "engines share the cores: {last:?}");
}

#[test]
fn prefill_runs_only_where_it_is_asked_for() {
    let jobs = plan(&["--model", "a", "--replicas", "prefill=1", "--page-size", "32"]);
    assert_eq!(names(&jobs), ["ingress-0", "tokenizer-0", "router-0", "prefill-0", "decode-0"]);
    for engine in &jobs[3..] {
        let has =
            |text: &str| engine.arguments.iter().any(|argument| argument.to_str().unwrap().starts_with(text));
        assert!(has("--page-size=32") && has("--threads="), "{:?}", engine.arguments);
    }
}

#[test]
fn each_engine_gets_a_gpu_of_its_own_where_it_may_choose() {
    let engines = ["--model", "a", "--replicas", "decode=2,prefill=1"];
    for (line_of, expected) in [
        (&[][..], ["--device=cuda:1", "--device=cuda:2", "--device=cuda:5"]),
        (&["--device", "auto"][..], ["--device=cuda:1", "--device=cuda:2", "--device=cuda:5"]),
        (&["--device", "cpu"][..], ["--device=cpu"; 3]),
    ] {
        let jobs = plan_on(&[1, 2, 5, 6], &[&engines[..], line_of].concat());
        assert_eq!(names(&jobs)[3..], ["prefill-0", "decode-0", "decode-1"]);
        for (job, device) in jobs[3..].iter().zip(expected) {
            let told = line(job).into_iter().filter(|argument| argument.starts_with("--device"));
            assert_eq!(told.collect::<Vec<_>>(), [device]);
        }
        assert!(jobs[..3].iter().all(|job| !line(job).concat().contains("--device")));
    }
}

#[test]
fn no_password_is_on_a_command_line() {
    for job in plan(&["--model", "a"]) {
        assert!(job.arguments.iter().all(|argument| !argument.to_str().unwrap().contains("secret")));
        assert!(job.environment.iter().any(|(_, value)| value.contains("secret")));
    }
}

#[test]
fn choices_are_read_from_text() {
    let choice = |text: &str| ModelChoice::from_str(text);
    assert_eq!(choice("a=b").unwrap(), ModelChoice { path: "a".into(), name: Some("b".to_owned()) });
    assert!(choice("=b").is_err() && choice("a=").is_err());
    assert_eq!(Replicas::from_str("decode=2").unwrap(), Replicas { role: Role::Decode, count: 2 });
    assert_eq!(Replicas::from_str("prefill=0").unwrap(), Replicas { role: Role::Prefill, count: 0 });
    for wrong in ["decode", "decode=0", "planner=1", "decode=x"] {
        assert!(Replicas::from_str(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_door_closes_first_and_the_bus_last() {
    let jobs = plan(&["--model", "a"]);
    assert_eq!(jobs[0].stage(), Stage::Door);
    assert!(Stage::Door < Stage::House && Stage::House < Stage::Bus);
}

#[test]
fn a_missing_model_says_how_to_get_one() {
    let error = models(&intent(&["--model", "/no/such.gguf"]).settings).unwrap_err().to_string();
    assert!(error.contains("/no/such.gguf") && error.contains("scripts/model"), "{error}");
}
