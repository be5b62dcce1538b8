//! Blocks that are computed elsewhere, or for others.

use super::*;

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
