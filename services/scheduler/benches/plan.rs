//! What the scheduler itself costs: a step of many sequences that decode, and taking a prompt in.

use std::time::Duration;

use divan::{Bencher, black_box};
use messages::block::{CacheScope, ClusterKey};
use models::{Batch, ExecutorSpec, KvLayout, Outputs, Sampled, SamplingBounds, SamplingParams};
use scheduler::{Choice, Event, Goal, Micros, Planned, Request, RunKey, Scheduler, SchedulerConfig};

fn main() {
    divan::main();
}

fn scheduler(depth: u32) -> Scheduler {
    let executor = ExecutorSpec {
        device: "none",
        pages: 65_536,
        page_size: 16,
        slots: 1024,
        max_batch_tokens: 1 << 20,
        depth,
        vocab_size: 50_000,
        context_length: 1 << 20,
        sampling: SamplingBounds::NONE,
        kv: KvLayout { name: "none".to_owned(), layers: 1, layer_bytes: 16 },
        numerics_class: "none".to_owned(),
    };
    let mut config = SchedulerConfig::new(ClusterKey::derive("bench"));
    config.step_target = Duration::ZERO;
    config.max_prefill_tokens = 1 << 20;
    Scheduler::new(config, &executor)
}

fn request(run: u64, prompt_tokens: u32) -> Request {
    Request {
        run: RunKey(run),
        goal: Goal::Output,
        prompt: (0..prompt_tokens).map(|at| (at + run as u32 * 77) % 50_000).collect(),
        choices: vec![Choice { index: 0, output: Vec::new() }],
        params: SamplingParams::default(),
        max_tokens: 500_000,
        priority: 0,
        deadline: None,
        root: ClusterKey::derive("bench").root(&CacheScope::default()),
        score_prompt_from: None,
        arrived: Micros(run),
    }
}

fn outputs(batch: &Batch) -> Outputs {
    let rows = batch.sequences.iter().filter(|row| row.sample);
    let sampled = rows
        .map(|row| Sampled { slot: row.slot, token: 7, finite: true, logprob: None, top: Vec::new() })
        .collect();
    Outputs { sampled, scored: Vec::new(), elapsed: Duration::from_millis(6), gap: None }
}

/// Plan and collect of one step, every sequence 1000 tokens long at first.
#[divan::bench(args = [1, 32, 256, 1024])]
fn decode_step(bencher: Bencher<'_, '_>, running: u64) {
    let mut scheduler = scheduler(1);
    for run in 0..running {
        scheduler.admit(request(run, 1000)).expect("there is room");
    }
    let (mut batch, mut events): (Batch, Vec<Event>) = Default::default();
    bencher.bench_local(|| {
        events.clear();
        assert!(matches!(scheduler.plan(Micros(0), &mut batch, &mut events), Planned::Step { .. }));
        scheduler.complete(outputs(black_box(&batch)), &mut events);
    });
}

/// Planning alone: the step is refused by nobody and collected outside of the measurement.
#[divan::bench(args = [1, 32, 256, 1024])]
fn plan_only(bencher: Bencher<'_, '_>, running: u64) {
    let scheduler = std::cell::RefCell::new(scheduler(1));
    for run in 0..running {
        scheduler.borrow_mut().admit(request(run, 1000)).expect("there is room");
    }
    let state = std::cell::RefCell::new((Batch::default(), Vec::<Event>::new(), false));
    bencher
        .with_inputs(|| {
            let (batch, events, in_flight) = &mut *state.borrow_mut();
            if std::mem::replace(in_flight, true) {
                scheduler.borrow_mut().complete(outputs(batch), events);
            }
            events.clear();
        })
        .bench_local_refs(|()| {
            let (batch, events, _) = &mut *state.borrow_mut();
            scheduler.borrow_mut().plan(Micros(0), batch, events)
        });
}

/// Block hashes dominate.
#[divan::bench(args = [128, 1024, 8192])]
fn admit(bencher: Bencher<'_, '_>, prompt_tokens: u32) {
    let mut scheduler = scheduler(1);
    let mut run = 0;
    let request = request(0, prompt_tokens);
    bencher.bench_local(|| {
        run += 1;
        scheduler.admit(Request { run: RunKey(run), ..request.clone() }).expect("there is room");
        scheduler.cancel(RunKey(run), None);
        scheduler.plan(Micros(0), &mut Batch::default(), &mut Vec::new());
    });
}
