use std::time::Duration;

use models::{SamplingParams, TokenId};
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
        alone: false,
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
fn a_long_prompt_never_holds_up_decoding() {
    for depth in [1, 2] {
        let config = SchedulerConfig { chunked_prefill_size: 4, ..config() };
        let mut world = World::new(config, fake::spec(64, 4, 8, 64, depth));
        world.admit(request(0, prompt(3, 0), 30)).unwrap();
        world.turn();
        world.admit(request(1, prompt(40, 1), 2)).unwrap();
        let mut steps = 0;
        while world.runs[&RunKey(1)].outputs[&0].is_empty() {
            if world.submit() {
                steps += 1;
                assert_eq!(world.batch.sequences.len(), 2, "one decodes, one computes a chunk");
                assert_eq!(world.batch.sequences[0].tokens, 0..1);
                assert_eq!(
                    world.batch.sequences[1].tokens.len().min(4),
                    world.batch.sequences[1].tokens.len()
                );
            } else {
                world.collect();
            }
        }
        assert!(steps >= 10);
        world.finish(TURNS);
        world.assert_clean();
    }
}

/// Tokens of the steps that compute a prompt of 40 beside some sequences that decode.
fn mixed_steps(decoding: u64, token_cost: u64) -> Vec<usize> {
    let config = SchedulerConfig { mixed_step_tokens: Some(8), ..config() };
    let mut world = World::new(config, fake::spec(128, 4, 8, 64, 1));
    world.executor.token_cost = token_cost;
    for run in 0..decoding {
        world.admit(request(run, prompt(3, run as u32), 50)).unwrap();
    }
    world.turn();
    world.turn();
    world.admit(request(9, prompt(40, 9), 2)).unwrap();
    let mut steps = Vec::new();
    while world.runs[&RunKey(9)].outputs[&0].is_empty() {
        if world.submit() {
            steps.push(world.batch.tokens.len());
        } else {
            world.collect();
        }
    }
    world.finish(TURNS);
    world.assert_clean();
    steps
}

#[test]
fn beside_those_that_decode_a_prompt_is_computed_in_small_steps() {
    const SLOW: u64 = 5000;
    assert_eq!(mixed_steps(0, SLOW), [40]);
    assert_eq!(mixed_steps(1, SLOW), [12, 12, 12, 1 + 7], "four tokens of prompt for each of two");
    assert_eq!(mixed_steps(2, SLOW), [16, 16, 2 + 12]);
    assert_eq!(mixed_steps(1, 10), [1 + 40], "a fast device is done in a moment");
}

#[test]
fn while_sequences_are_spared_a_prompt_takes_small_chunks_beside_them_and_large_ones_alone() {
    for spares in [true, false] {
        let config = SchedulerConfig { step_stretch: 2.0, ..config() };
        let mut world = World::new(config, fake::spec(64, 4, 8, 64, 1));
        world.scheduler.spare(spares);
        world.admit(request(0, prompt(40, 0), 20)).unwrap();
        assert!(world.submit());
        assert_eq!(world.batch.tokens.len(), 40, "nobody decodes");
        (0..5).for_each(|_| assert!(world.turn()));
        world.admit(request(1, prompt(40, 1), 2)).unwrap();
        while !world.submit() {
            world.collect();
        }
        assert_eq!(world.batch.tokens.len() < 20, spares, "{} tokens", world.batch.tokens.len());
        world.finish(TURNS);
        world.assert_clean();
    }
}

#[test]
fn a_prompt_that_has_landed_does_not_wait_for_a_long_one_that_is_computed_beside_spared_sequences() {
    let config = SchedulerConfig { step_stretch: 2.0, max_prefill_tokens: 16, ..config() };
    let mut world = World::new(config, fake::spec(64, 4, 8, 64, 1));
    world.scheduler.spare(true);
    world.admit(request(0, prompt(8, 0), 50)).unwrap();
    (0..6).for_each(|_| assert!(world.turn()));
    world.admit(request(1, prompt(60, 1), 2)).unwrap();
    world.turn();
    world.admit(Request { goal: Goal::OutputOnceLanded, ..request(2, prompt(18, 2), 2) }).unwrap();
    while world.land(RunKey(2)) {}
    world.release();
    while output_len(&world, 2) == 0 {
        world.turn();
        assert_eq!(output_len(&world, 1), 0, "the long one came first and is not done");
    }
    world.finish(TURNS);
    world.assert_clean();
}

#[test]
fn a_stream_that_was_broken_off_is_not_held_up_for_the_sake_of_others() {
    let mut world =
        World::new(SchedulerConfig { step_stretch: 2.0, ..config() }, fake::spec(64, 4, 8, 64, 1));
    world.scheduler.spare(true);
    world.admit(request(0, prompt(8, 0), 30)).unwrap();
    (0..6).for_each(|_| assert!(world.turn()));
    let (full, _) = fake::alone(&prompt(30, 1), 0, &SamplingParams::default(), 12);
    let mut repair = request(1, prompt(30, 1), 12);
    repair.choices = vec![Choice { index: 0, output: full[..10].to_vec() }];
    world.admit(repair).unwrap();
    while !world.submit() {
        world.collect();
    }
    assert_eq!(world.batch.tokens.len(), 1 + 40);
    world.finish(TURNS);
    world.assert_clean();
}

#[test]
fn choices_compute_their_prompt_once() {
    for depth in [1, 2] {
        for length in [1, 4, 13, 16] {
            let mut world = world(depth);
            let mut group = request(0, prompt(length, 0), 2);
            group.choices = choices(5);
            world.admit(group).unwrap();
            world.finish(TURNS);
            // Each choice decodes one token; the other four run the prompt's last token again.
            assert_eq!(
                world.executor.computed,
                u64::from(length + 4 + 5),
                "prompt of {length}, depth {depth}"
            );
            world.assert_clean();
        }
    }
}

#[test]
fn choices_share_their_prompt_without_a_cache() {
    let mut world =
        World::new(SchedulerConfig { radix_cache: false, ..config() }, fake::spec(64, 4, 8, 64, 2));
    let mut group = request(0, prompt(14, 0), 2);
    group.choices = choices(3);
    world.admit(group).unwrap();
    world.finish(TURNS);
    assert_eq!(world.executor.computed, 14 + 2 + 3);
    world.assert_clean();
}

#[test]
fn a_second_prompt_starts_where_the_first_was_computed() {
    let mut world = world(1);
    world.admit(request(0, prompt(18, 0), 3)).unwrap();
    world.finish(TURNS);
    let computed = world.executor.computed;
    world.admit(request(1, prompt(18, 0), 1)).unwrap();
    world.finish(TURNS);
    assert_eq!(usage(&world, 1), Usage { prompt_tokens: 18, cached_tokens: 16, output_tokens: 1 });
    assert_eq!(world.executor.computed - computed, 2);
    // A prompt of whole blocks still computes its last token.
    world.admit(request(2, prompt(16, 0), 1)).unwrap();
    world.finish(TURNS);
    assert_eq!(usage(&world, 2).cached_tokens, 12);
}

#[test]
fn a_conversation_reuses_its_answers() {
    let mut world = world(2);
    world.admit(request(0, prompt(10, 0), 11)).unwrap();
    world.finish(TURNS);
    let turn: Vec<_> = [&prompt(10, 0)[..], &world.runs[&RunKey(0)].outputs[&0], &[1, 2, 3]].concat();
    world.admit(request(1, turn, 1)).unwrap();
    world.finish(TURNS);
    assert_eq!(usage(&world, 1).cached_tokens, 20, "five of the blocks of 10 + 10 computed tokens");
}

#[test]
fn caches_of_different_salts_are_apart() {
    let mut world = world(1);
    world.admit(request(0, prompt(18, 0), 1)).unwrap();
    world.finish(TURNS);
    world.admit(Request { root: root("a"), ..request(1, prompt(18, 0), 1) }).unwrap();
    world.finish(TURNS);
    assert_eq!(usage(&world, 1).cached_tokens, 0);
}

#[test]
fn a_prefix_that_is_being_computed_is_waited_for() {
    for depth in [1, 2] {
        let config = SchedulerConfig { chunked_prefill_size: 8, ..config() };
        let mut world = World::new(config, fake::spec(64, 4, 8, 64, depth));
        for run in 0..4 {
            let own = [&prompt(32, 0)[..], &[run as TokenId + 1; 3]].concat();
            world.admit(request(run, own, 1)).unwrap();
        }
        world.finish(TURNS);
        assert_eq!(world.executor.computed, 35 + 3 * 3);
        world.assert_clean();
    }
}

#[test]
fn the_longest_match_goes_first_but_not_for_ever() {
    let lpm = SchedulerConfig { schedule_policy: SchedulePolicy::Lpm, ..config() };
    for (patience, first) in [(Duration::ZERO, 2), (LPM_PATIENCE, 1)] {
        let mut world = World::new(lpm.clone(), fake::spec(64, 4, 1, 64, 1));
        world.admit(request(0, prompt(12, 0), 1)).unwrap();
        world.finish(TURNS);
        world.now = Micros(patience.as_micros() as u64 + 10);
        world.admit(request(1, prompt(12, 1), 4)).unwrap();
        world.admit(Request { arrived: world.now, ..request(2, prompt(12, 0), 4) }).unwrap();
        world.turn();
        assert!(world.runs[&RunKey(first)].cached_tokens.is_some(), "run {first} starts first");
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
fn a_suspect_runs_alone() {
    let mut world = world(1);
    world.admit(request(0, prompt(5, 0), 6)).unwrap();
    world.turn();
    world.admit(Request { alone: true, ..request(1, prompt(5, 1), 6) }).unwrap();
    world.admit(request(2, prompt(5, 2), 6)).unwrap();
    while !world.scheduler.is_idle() {
        if world.submit() {
            assert_eq!(world.batch.sequences.len(), 1);
        } else {
            world.collect();
        }
    }
    world.assert_clean();
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

#[test]
fn blocks_that_landed_are_not_computed_again_and_are_never_evicted_before() {
    let mut world = World::new(config(), fake::spec(12, 4, 8, 64, 1));
    let waiting = Request { goal: Goal::OutputOnceLanded, ..request(0, prompt(18, 0), 4) };
    world.admit(waiting).unwrap();
    for _ in 0..4 {
        assert!(world.land(RunKey(0)));
    }
    assert!(!world.land(RunKey(0)), "the tokens after the fourth block are computed here");
    // Others come and go meanwhile, more than fit beside the four blocks.
    for run in 1..6 {
        world.admit(request(run, prompt(20, run as u32), 4)).unwrap();
        while world.turn() {}
    }
    assert_eq!(world.scheduler.load().blocks_used, 4);
    let before = world.executor.computed;
    world.release();
    world.finish(TURNS);
    assert_eq!(usage(&world, 0).cached_tokens, 16);
    assert_eq!(world.executor.computed - before, 2 + 3, "the rest of the prompt and all but the last output");
    world.assert_clean();
}

#[test]
fn a_run_that_waits_for_blocks_can_be_cancelled_and_outlives_no_deadline() {
    let mut world = world(1);
    let waiting = |run| Request { goal: Goal::OutputOnceLanded, ..request(run, prompt(18, run as u32), 4) };
    world.admit(waiting(0)).unwrap();
    world.admit(Request { deadline: Some(Micros(5)), ..waiting(1) }).unwrap();
    assert!(world.land(RunKey(0)) && world.land(RunKey(1)));
    world.now = Micros(9);
    assert!(world.scheduler.cancel(RunKey(0), None));
    while world.turn() {}
    assert_eq!(world.runs[&RunKey(0)].ends[&0], EndReason::Cancelled);
    assert_eq!(world.runs[&RunKey(1)].ends[&0], EndReason::DeadlineExceeded);
    assert!(!world.land(RunKey(0)));
    world.assert_clean();
}

#[test]
fn runs_that_fill_the_pool_with_landed_blocks_do_not_lock_each_other_out() {
    let mut world = World::new(config(), fake::spec(12, 4, 8, 64, 1));
    for run in 0..2 {
        world
            .admit(Request { goal: Goal::OutputOnceLanded, ..request(run, prompt(26, run as u32), 12) })
            .unwrap();
    }
    for block in 0..12 {
        assert!(world.land(RunKey(block % 2)), "block {block}");
    }
    world.release();
    world.finish(TURNS);
    assert!((0..2).all(|run| output_len(&world, run) == 12));
    world.assert_clean();
}

#[test]
fn a_prompt_that_is_scored_takes_no_blocks_that_it_could_not_share() {
    let mut world = World::new(config(), fake::spec(7, 4, 8, 64, 1));
    let scored = Request { score_prompt_from: Some(0), ..request(0, prompt(27, 0), 1) };
    world.admit(Request { goal: Goal::OutputOnceLanded, ..scored }).unwrap();
    assert!(!world.land(RunKey(0)), "it would lack the page that this fills");
    world.finish(TURNS);
    assert_eq!(output_len(&world, 0), 1);
    world.assert_clean();
}

#[test]
fn blocks_for_another_engine_are_computed_once_and_held_until_given_up() {
    let mut world = World::new(config(), fake::spec(64, 4, 8, 64, 1));
    let blocks = |run, from| Request { goal: Goal::Blocks { from }, ..request(run, prompt(24, 0), 0) };
    world.admit(blocks(0, 2)).unwrap();
    world.admit(blocks(1, 0)).unwrap();
    while world.turn() {}
    assert_eq!(world.executor.computed, 24, "the second finds what the first computed");
    assert_eq!((world.runs[&RunKey(0)].blocks, world.runs[&RunKey(1)].blocks), (6, 6));
    assert_eq!(world.scheduler.load().blocks_used, 6);
    assert_eq!(world.scheduler.load().running, 0, "what waits to be fetched takes no slot");
    world.finish(TURNS);
    world.assert_clean();
}
