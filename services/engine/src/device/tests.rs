use std::{collections::HashMap, time::Duration};

use messages::block::{CacheScope, ClusterKey};
use models::SamplingParams;
use scheduler::{Choice, EndReason};

use super::*;
use crate::sim::{SimExecutor, Timing};

fn spec() -> ExecutorSpec {
    ExecutorSpec {
        device: "sim",
        pages: 256,
        page_size: 16,
        slots: 8,
        max_batch_tokens: 128,
        depth: 1,
        vocab_size: 5000,
        context_length: 1024,
        kv_bytes_per_token: 0,
        numerics_class: "sim".to_owned(),
    }
}

async fn device(step: Duration) -> (Device, mpsc::Receiver<Report>) {
    let build = move || {
        let timing = Timing { step, prefill_token: Duration::ZERO };
        Ok(Box::new(SimExecutor::new(spec(), timing)) as Box<dyn Executor>)
    };
    let config = SchedulerConfig::new(ClusterKey::derive("test"));
    Device::start(build, config, Duration::ZERO).await.unwrap()
}

fn request(run: u64, seed: u64, max_tokens: u32, output: &[u32]) -> Command {
    let scope = CacheScope { revision: "r", adapter: None, salt: None };
    Command::Admit(Box::new(Request {
        run: RunKey(run),
        prompt: (0..40).collect(),
        choices: vec![Choice { index: 0, output: output.to_vec() }],
        params: SamplingParams { seed, ..SamplingParams::default() },
        max_tokens,
        priority: 0,
        deadline: None,
        root: ClusterKey::derive("test").root(&scope),
        score_prompt_from: None,
        arrived: Micros(0),
        alone: false,
    }))
}

/// Tokens and end of each run, once `runs` of them have closed or were refused.
async fn outcome(
    reports: &mut mpsc::Receiver<Report>,
    runs: usize,
) -> HashMap<u64, (Vec<u32>, Option<EndReason>)> {
    let mut seen: HashMap<u64, (Vec<u32>, Option<EndReason>)> = HashMap::new();
    let mut closed = 0;
    while closed < runs {
        match reports.recv().await.unwrap() {
            Report::Refused { run, .. } => {
                seen.insert(run.0, (Vec::new(), None));
                closed += 1;
            }
            Report::Step { events, .. } => {
                for event in events {
                    match event {
                        Event::Token { run, token, .. } => seen.entry(run.0).or_default().0.push(token),
                        Event::Ended { run, reason, .. } => seen.entry(run.0).or_default().1 = Some(reason),
                        Event::RunClosed { .. } => closed += 1,
                        Event::Started { .. } | Event::PromptScored { .. } => {}
                    }
                }
            }
        }
    }
    seen
}

#[tokio::test]
async fn a_run_that_goes_on_elsewhere_puts_out_what_it_would_have() {
    let (device, mut reports) = device(Duration::ZERO).await;
    device.command(request(1, 7, 20, &[])).unwrap();
    let whole = outcome(&mut reports, 1).await[&1].0.clone();
    assert_eq!(whole.len(), 20);
    device.command(request(2, 7, 20, &whole[..12])).unwrap();
    device.command(request(3, 8, 20, &[])).unwrap();
    let later = outcome(&mut reports, 2).await;
    assert_eq!(later[&2], (whole[12..].to_vec(), Some(EndReason::Length)));
    assert_ne!(later[&3].0, whole, "another seed draws other tokens");
}

#[tokio::test]
async fn a_cancel_ends_a_run_at_the_next_step() {
    let (device, mut reports) = device(Duration::from_millis(5)).await;
    device.command(request(1, 7, 900, &[])).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    device.command(Command::Cancel { run: RunKey(1), choice: None }).unwrap();
    let ended = outcome(&mut reports, 1).await;
    assert_eq!(ended[&1].1, Some(EndReason::Cancelled));
    assert!(ended[&1].0.len() < 100);
    assert_eq!(device.load().blocks_used, 0);
}

#[tokio::test]
async fn what_can_never_fit_is_refused_and_the_thread_goes_on() {
    let (device, mut reports) = device(Duration::ZERO).await;
    device.command(request(1, 7, 100, &[6000])).unwrap();
    device.command(request(2, 7, 4, &[])).unwrap();
    let ended = outcome(&mut reports, 2).await;
    assert_eq!(ended[&1], (Vec::new(), None), "6000 is not in the vocabulary");
    assert_eq!(ended[&2].0.len(), 4);
}
