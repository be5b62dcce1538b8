mod beside;
mod cache;
mod landed;

use std::time::Duration;

use models::{ExecutorSpec, SamplingBounds, SamplingParams, TokenId};
use scheduler::{
    Choice, EndReason, Goal, LPM_PATIENCE, Micros, Refusal, Request, RunKey, SchedulePolicy, SchedulerConfig,
    Usage,
};

use crate::{
    fake::{self, VOCAB},
    world::{World, cluster_key, root},
};

const TURNS: u32 = 2000;

fn config() -> SchedulerConfig {
    SchedulerConfig { step_target: Duration::ZERO, ..SchedulerConfig::new(cluster_key()) }
}

fn world(depth: u32) -> World {
    World::new(config(), fake::spec(64, 4, 8, 64, depth))
}

fn prompt(length: u32, flavour: u32) -> Vec<TokenId> {
    (0..length).map(|at| (at * 5 + flavour) % VOCAB).collect()
}

fn request(run: u64, prompt: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        run: RunKey(run),
        goal: Goal::Output,
        prompt: prompt.into(),
        choices: choices(1),
        params: SamplingParams::default(),
        max_tokens,
        priority: 0,
        deadline: None,
        root: root(""),
        score_prompt_from: None,
        arrived: Micros(run),
    }
}

fn choices(n: u32) -> Vec<Choice> {
    (0..n).map(|index| Choice { index, output: Vec::new() }).collect()
}

fn usage(world: &World, run: u64) -> Usage {
    world.runs[&RunKey(run)].usage.unwrap()
}

fn output_len(world: &World, run: u64) -> usize {
    world.runs[&RunKey(run)].outputs.values().map(Vec::len).sum()
}

#[test]
fn a_stop_token_is_put_out_and_ends_the_choice() {
    for depth in [1, 2] {
        let mut world = world(depth);
        let (full, _) = fake::alone(&prompt(6, 0), 0, &SamplingParams::default(), 20);
        let stop = full[7];
        let mut stopping = request(0, prompt(6, 0), 20);
        stopping.params.stop_ids = vec![stop];
        world.admit(stopping).unwrap();
        world.finish(TURNS);
        let witness = &world.runs[&RunKey(0)];
        assert_eq!(witness.ends[&0], EndReason::Stop(stop));
        assert_eq!(witness.outputs[&0].last(), Some(&stop));
        world.assert_clean();
    }
}

#[test]
fn higher_priority_pushes_out_lower_and_nothing_is_lost() {
    for depth in [1, 2] {
        let mut world = World::new(config(), fake::spec(64, 4, 1, 64, depth));
        world.admit(request(0, prompt(9, 0), 20)).unwrap();
        (0..6).for_each(|_| assert!(world.turn()));
        world.admit(Request { priority: 1, ..request(1, prompt(9, 1), 3) }).unwrap();
        let so_far = output_len(&world, 0);
        while world.runs[&RunKey(1)].usage.is_none() {
            world.turn();
        }
        assert!(output_len(&world, 0) <= so_far + depth as usize, "the lower one waits");
        world.finish(TURNS);
        assert_eq!(world.scheduler.load().preemptions, 1);
        world.assert_clean();
    }
}

#[test]
fn a_long_prompt_of_lower_priority_keeps_nobody_out() {
    for depth in [1, 2] {
        let config = SchedulerConfig { max_prefill_tokens: 8, ..config() };
        let mut world = World::new(config, fake::spec(64, 4, 8, 64, depth));
        world.admit(request(0, prompt(56, 0), 4)).unwrap();
        (0..2).for_each(|_| assert!(world.turn()));
        world.admit(Request { priority: 1, ..request(1, prompt(9, 1), 1) }).unwrap();
        while world.runs[&RunKey(1)].usage.is_none() {
            world.turn();
        }
        assert_eq!(output_len(&world, 0), 0, "most of its prompt is still to come");
        world.finish(TURNS);
        assert_eq!(world.scheduler.load().preemptions, 0);
        world.assert_clean();
    }
}

#[test]
fn the_latest_arrival_gives_way_when_blocks_run_out() {
    let mut world = World::new(config(), fake::spec(10, 4, 4, 64, 2));
    for run in 0..3 {
        world.admit(request(run, prompt(4, run as u32), 32)).unwrap();
    }
    while world.runs[&RunKey(0)].usage.is_none() {
        world.turn();
    }
    assert!(world.runs[&RunKey(2)].usage.is_none());
    world.finish(TURNS);
    assert!(world.scheduler.load().preemptions > 0);
    world.assert_clean();
}

#[test]
fn a_cancel_frees_blocks_in_the_middle_of_a_prompt() {
    for depth in [1, 2] {
        let config = SchedulerConfig { chunked_prefill_size: 4, radix_cache: false, ..config() };
        let mut world = World::new(config, fake::spec(64, 4, 8, 64, depth));
        world.admit(request(0, prompt(40, 0), 5)).unwrap();
        world.submit();
        assert_eq!(world.scheduler.load().blocks_used, 10);
        assert!(world.scheduler.cancel(RunKey(0), None));
        world.submit();
        assert_eq!(world.scheduler.load().blocks_used, 0);
        assert_eq!(world.runs[&RunKey(0)].ends[&0], EndReason::Cancelled);
        assert!(!world.scheduler.cancel(RunKey(0), None));
        world.finish(TURNS);
    }
}

#[test]
fn one_choice_is_cancelled_and_the_others_go_on() {
    let mut world = world(2);
    let mut group = request(0, prompt(6, 0), 12);
    group.choices = choices(3);
    world.admit(group).unwrap();
    (0..5).for_each(|_| assert!(world.turn()));
    assert!(world.scheduler.cancel(RunKey(0), Some(1)));
    world.finish(TURNS);
    let ends: Vec<_> = world.runs[&RunKey(0)].ends.values().copied().collect();
    assert_eq!(ends, [EndReason::Length, EndReason::Cancelled, EndReason::Length]);
    world.assert_clean();
}

#[test]
fn deadlines_end_the_waiting_and_the_running() {
    let mut world = World::new(config(), fake::spec(64, 4, 1, 64, 2));
    world.executor.token_cost = 1000;
    world.admit(Request { deadline: Some(Micros(6000)), ..request(0, prompt(3, 0), 30) }).unwrap();
    world.admit(Request { deadline: Some(Micros(5000)), ..request(1, prompt(3, 1), 3) }).unwrap();
    world.finish(TURNS);
    for run in 0..2 {
        assert_eq!(world.runs[&RunKey(run)].ends[&0], EndReason::DeadlineExceeded);
    }
    assert!(output_len(&world, 0) > 0);
    assert_eq!(output_len(&world, 1), 0);
}

#[test]
fn a_repair_goes_on_from_the_given_output() {
    let mut world = world(2);
    let (full, _) = fake::alone(&prompt(7, 0), 3, &SamplingParams::default(), 9);
    let mut repair = request(0, prompt(7, 0), 9);
    repair.choices = vec![Choice { index: 3, output: full[..5].to_vec() }];
    world.admit(repair).unwrap();
    world.finish(TURNS);
    assert_eq!(usage(&world, 0).output_tokens, 9);
    assert_eq!(world.executor.computed, 7 + 5 + 3);
    world.assert_clean();
}

#[test]
fn a_prompt_can_be_scored_and_nothing_put_out() {
    let config = SchedulerConfig { chunked_prefill_size: 5, ..config() };
    let mut world = World::new(config, fake::spec(64, 4, 8, 64, 2));
    for run in 0..2 {
        world.admit(Request { score_prompt_from: Some(9), ..request(run, prompt(17, 0), 0) }).unwrap();
        world.finish(TURNS);
        assert_eq!(world.runs[&RunKey(run)].scored, fake::scores(&prompt(17, 0), 9));
        assert_eq!(world.runs[&RunKey(run)].ends[&0], EndReason::Length);
    }
    assert_eq!(usage(&world, 1).cached_tokens, 8, "what precedes the first score may come from the cache");
    world.assert_clean();
}

#[test]
fn logits_that_are_not_finite_end_their_run_and_no_other() {
    for depth in [1, 2] {
        let mut world = world(depth);
        world.executor.spoiled = Some(VOCAB - 1);
        let mut spoiled = prompt(6, 0);
        spoiled[5] = VOCAB - 1;
        let sound = |run| request(run, vec![run as TokenId; 6], 5);
        world.admit(sound(0)).unwrap();
        world.admit(Request { choices: choices(2), ..request(1, spoiled, 5) }).unwrap();
        world.finish(TURNS);
        assert_eq!(world.runs[&RunKey(0)].ends[&0], EndReason::Length);
        for choice in 0..2 {
            assert_eq!(world.runs[&RunKey(1)].ends[&choice], EndReason::NotFinite);
        }
        assert_eq!(output_len(&world, 1), 0);
        world.assert_clean();
    }
}

#[test]
fn a_refused_step_fails_its_runs_and_no_others() {
    for depth in [1, 2] {
        let mut world = World::new(config(), fake::spec(64, 4, 2, 64, depth));
        for run in 0..3 {
            world.admit(request(run, prompt(6, run as u32), 5)).unwrap();
        }
        world.submit_refused();
        assert_eq!(world.runs[&RunKey(0)].ends[&0], EndReason::Failed);
        assert_eq!(world.runs[&RunKey(1)].ends[&0], EndReason::Failed);
        world.finish(TURNS);
        assert_eq!(world.runs[&RunKey(2)].ends[&0], EndReason::Length);
        world.assert_clean();
    }
}

#[test]
fn sampling_beyond_the_executors_bounds_is_refused_and_fails_nobody_else() {
    let sampling = SamplingBounds { logit_bias: 2, ..SamplingBounds::NONE };
    let mut world = World::new(config(), ExecutorSpec { sampling, ..fake::spec(64, 4, 8, 64, 2) });
    let biased = |run, count| {
        let params = SamplingParams { logit_bias: vec![(1, 1.0); count], ..SamplingParams::default() };
        Request { params, ..request(run, prompt(6, run as u32), 5) }
    };
    world.admit(biased(0, 2)).unwrap();
    let refusal = world.admit(biased(1, 3)).unwrap_err();
    assert_eq!(refusal.to_string(), "logit_bias: 3 are more than the 2 that the engine takes");
    world.finish(TURNS);
    assert_eq!(world.runs[&RunKey(0)].ends[&0], EndReason::Length);
    world.assert_clean();
}

#[test]
fn refusals_name_both_numbers() {
    let mut world =
        World::new(SchedulerConfig { max_queued_requests: 1, ..config() }, fake::spec(10, 4, 1, 64, 1));
    assert_eq!(world.scheduler.longest_sequence(), 40);
    let refused = |world: &mut World, request| world.admit(request).unwrap_err();
    assert_eq!(
        refused(&mut world, request(0, prompt(30, 0), 12)),
        Refusal::NeverFits { needed_tokens: 41, capacity_tokens: 40 }
    );
    assert_eq!(
        refused(&mut world, request(0, prompt(64, 0), 1)),
        Refusal::TooLong { tokens: 64, context: 64 }
    );
    assert_eq!(refused(&mut world, request(0, vec![], 1)), Refusal::EmptyPrompt);
    assert_eq!(
        refused(&mut world, request(0, vec![VOCAB], 1)),
        Refusal::UnknownToken { token: VOCAB, vocab_size: VOCAB }
    );
    world.admit(request(0, prompt(30, 0), 11)).unwrap();
    assert_eq!(refused(&mut world, request(0, prompt(3, 0), 1)), Refusal::DuplicateRun(RunKey(0)));
    assert_eq!(refused(&mut world, request(1, prompt(3, 0), 1)), Refusal::QueueFull { queued: 1, limit: 1 });
    world.finish(TURNS);
    world.assert_clean();
}

#[test]
fn load_tells_what_is_left_to_compute() {
    let config = SchedulerConfig { chunked_prefill_size: 8, max_prefill_tokens: 8, ..config() };
    let mut world = World::new(config, fake::spec(64, 4, 8, 64, 1));
    world.admit(request(0, prompt(20, 0), 2)).unwrap();
    world.admit(request(1, prompt(10, 1), 2)).unwrap();
    assert_eq!(world.scheduler.load().pending_prefill_tokens, 30);
    assert_eq!(world.scheduler.load().queued, 2);
    world.turn();
    assert_eq!(world.scheduler.load().pending_prefill_tokens, 22);
    world.finish(TURNS);
    let load = world.scheduler.load();
    assert_eq!((load.blocks_used, load.blocks_cached, load.blocks_total), (0, 5 + 2, 64));
}
