//! Prompts beside sequences that decode.

use super::*;

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
fn a_long_prompt_goes_on_beside_short_ones_that_never_cease() {
    let config = SchedulerConfig { step_stretch: 2.0, ..config() };
    let mut world = World::new(config, fake::spec(64, 4, 8, 64, 1));
    world.scheduler.spare(true);
    world.admit(request(0, prompt(8, 0), 50)).unwrap();
    (0..6).for_each(|_| assert!(world.turn()));
    world.admit(request(1, prompt(12, 1), 1)).unwrap();
    let mut short = 2;
    while output_len(&world, 1) == 0 {
        assert!(output_len(&world, 0) < 50, "the stream is over and nothing is spared any more");
        while world.scheduler.load().queued < 4 {
            world.admit(request(short, prompt(4, short as u32), 1)).unwrap();
            short += 1;
        }
        world.turn();
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
