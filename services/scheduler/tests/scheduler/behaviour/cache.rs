//! What is computed once, for several choices or requests.

use super::*;

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
