use std::time::Duration;

use models::{Logprobs, SamplingParams, TokenId};
use proptest::prelude::*;
use scheduler::{Choice, Goal, Micros, Refusal, Request, RunKey, SchedulePolicy, SchedulerConfig};

use crate::{
    fake::{self, VOCAB},
    world::{World, cluster_key, root},
};

#[derive(Debug, Clone)]
struct Setup {
    pages: u32,
    page_size: u32,
    slots: u32,
    max_batch_tokens: u32,
    depth: u32,
    chunk: u32,
    prefill: u32,
    mixed: Option<u32>,
    lpm: bool,
    cache: bool,
    push_out: bool,
    spares: bool,
    token_cost: u64,
}

fn setup() -> impl Strategy<Value = Setup> {
    let executor = (6_u32..30, 1_u32..6, 1_u32..8, 4_u32..40, 1_u32..4);
    let config = (
        1_u32..20,
        1_u32..40,
        prop::option::of(1_u32..40),
        any::<bool>(),
        prop::bool::weighted(0.8),
        any::<(bool, bool)>(),
        1_u64..40_000,
    );
    (executor, config).prop_map(|((pages, page_size, slots, max_batch_tokens, depth), config)| {
        let (chunk, prefill, mixed, lpm, cache, (push_out, spares), token_cost) = config;
        Setup {
            pages,
            page_size,
            slots,
            max_batch_tokens,
            depth,
            chunk,
            prefill,
            mixed,
            lpm,
            cache,
            push_out,
            spares,
            token_cost,
        }
    })
}

impl Setup {
    fn world(&self) -> World {
        let config = SchedulerConfig {
            chunked_prefill_size: self.chunk,
            max_prefill_tokens: self.prefill,
            mixed_step_tokens: self.mixed,
            schedule_policy: if self.lpm { SchedulePolicy::Lpm } else { SchedulePolicy::Fcfs },
            radix_cache: self.cache,
            priority_preemption: self.push_out,
            step_stretch: 2.0,
            ..SchedulerConfig::new(cluster_key())
        };
        let spec = fake::spec(self.pages, self.page_size, self.slots, self.max_batch_tokens, self.depth);
        let mut world = World::new(config, spec);
        world.scheduler.spare(self.spares);
        world.executor.token_cost = self.token_cost;
        world
    }
}

#[derive(Debug, Clone)]
enum Op {
    Admit(Arrival),
    Cancel {
        run: usize,
        choice: Option<u32>,
    },
    /// The next block of that run lands.
    Land(usize),
    /// What waits for blocks goes on, what holds blocks for others gives them up.
    Release,
    Submit,
    Collect,
    Turns(u8),
    Refuse,
    Flush,
}

#[derive(Debug, Clone)]
struct Arrival {
    /// Which shared prefix, and how much of it.
    prefix: (u8, usize),
    suffix: Vec<TokenId>,
    choices: u32,
    /// Output that each choice has already, in percent of all it will have.
    given: Vec<u8>,
    max_tokens: u32,
    stops: Vec<TokenId>,
    min_tokens: u32,
    seed: u64,
    priority: i32,
    deadline: Option<u64>,
    salt: &'static str,
    score_from: Option<u32>,
    goal: Goal,
}

fn goal() -> impl Strategy<Value = Goal> {
    prop_oneof![
        4 => Just(Goal::Output),
        2 => Just(Goal::OutputOnceLanded),
        1 => (0_u32..3).prop_map(|from| Goal::Blocks { from }),
    ]
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let prompt = ((0_u8..3, 0_usize..24), prop::collection::vec(0..VOCAB, 0..8));
    let given = prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(0_u8..=100, 4)];
    let output = (1_u32..5, given, 0_u32..16, prop::collection::vec(0..VOCAB, 0..3), 0_u32..4, 0_u64..2);
    let order = (
        -1_i32..2,
        prop_oneof![4 => Just(None), 1 => (0_u64..3_000_000).prop_map(Some)],
        prop_oneof![3 => Just(""), 1 => Just("a"), 1 => Just("b")],
        prop_oneof![3 => Just(None), 1 => (0_u32..30).prop_map(Some)],
        goal(),
    );
    (prompt, output, order).prop_map(|((prefix, suffix), output, order)| {
        let (choices, given, max_tokens, stops, min_tokens, seed) = output;
        let (priority, deadline, salt, score_from, goal) = order;
        Arrival {
            prefix,
            suffix,
            choices,
            given,
            max_tokens,
            stops,
            min_tokens,
            seed,
            priority,
            deadline,
            salt,
            score_from,
            goal,
        }
    })
}

impl Arrival {
    fn request(&self, run: RunKey, now: Micros) -> Request {
        let shared = (0..self.prefix.1).map(|at| (at as u32 * 7 + u32::from(self.prefix.0) * 5) % VOCAB);
        let mut prompt: Vec<TokenId> = shared.chain(self.suffix.iter().copied()).collect();
        if prompt.is_empty() {
            prompt.push(1);
        }
        let params = SamplingParams {
            stop_ids: self.stops.clone(),
            min_tokens: self.min_tokens,
            seed: self.seed,
            logprobs: if self.seed == 1 { Logprobs::Top(2) } else { Logprobs::Off },
            repetition_penalty: 1.1,
            ..SamplingParams::default()
        };
        let choices = (0..self.choices).map(|index| {
            let (mut output, _) = fake::alone(&prompt, index, &params, self.max_tokens);
            let given = self.given.get(index as usize).copied().unwrap_or(0);
            output.truncate(output.len() * usize::from(given) / 100);
            Choice { index, output }
        });
        let mut choices: Vec<Choice> = choices.collect();
        let (mut max_tokens, mut score_prompt_from) = (self.max_tokens, self.score_from);
        if matches!(self.goal, Goal::Blocks { .. }) {
            choices = vec![Choice { index: 0, output: Vec::new() }];
            (max_tokens, score_prompt_from) = (0, None);
        }
        Request {
            run,
            goal: self.goal,
            choices,
            prompt: prompt.into(),
            params,
            max_tokens,
            priority: self.priority,
            deadline: self.deadline.map(|after| Micros(now.0 + after)),
            root: root(self.salt),
            score_prompt_from,
            arrived: now,
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => arrival().prop_map(Op::Admit),
        1 => (any::<usize>(), prop::option::of(0_u32..4)).prop_map(|(run, choice)| Op::Cancel { run, choice }),
        4 => any::<usize>().prop_map(Op::Land),
        1 => Just(Op::Release),
        3 => Just(Op::Submit),
        3 => Just(Op::Collect),
        4 => (1_u8..12).prop_map(Op::Turns),
        1 => prop::bool::weighted(0.2).prop_map(|refuse| if refuse { Op::Refuse } else { Op::Flush }),
    ]
}

/// Turns that no mix of the requests above can need.
const MANY_TURNS: u32 = 20_000;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    /// Whatever comes together, every choice puts out what it would put out alone, every run ends once, and nothing
    /// stays behind. [`World`] and its witness hold the assertions.
    #[test]
    fn every_request_runs_as_if_alone(setup in setup(), ops in prop::collection::vec(op(), 1..40)) {
        let mut world = setup.world();
        let mut next = 0;
        for op in ops {
            match op {
                Op::Admit(arrival) => {
                    let request = arrival.request(RunKey(next), world.now);
                    next += 1;
                    let whole_blocks = setup.cache && (request.prompt.len() as u32).is_multiple_of(setup.page_size);
                    let fits = request.prompt.len() as u32 + request.max_tokens <= world.scheduler.longest_sequence();
                    match world.admit(request) {
                        Ok(()) => {}
                        Err(Refusal::NeverFits { .. } | Refusal::TooLong { .. }) => prop_assert!(!fits),
                        Err(Refusal::NoBlocks { .. }) => prop_assert!(!whole_blocks),
                        Err(other) => prop_assert!(false, "refused: {}", other),
                    }
                }
                Op::Cancel { run, choice } => {
                    let run = RunKey(run as u64 % (next + 1));
                    let live = world.runs.get(&run).is_some_and(|witness| {
                        witness.usage.is_none() && match choice {
                            None => true,
                            Some(choice) => witness.outputs.contains_key(&choice) && !witness.ends.contains_key(&choice),
                        }
                    });
                    prop_assert_eq!(world.scheduler.cancel(run, choice), live);
                }
                Op::Land(run) => { world.land(RunKey(run as u64 % (next + 1))); }
                Op::Release => { world.release(); }
                Op::Submit => { world.submit(); }
                Op::Collect => { world.collect(); }
                Op::Turns(turns) => (0..turns).for_each(|_| { world.turn(); }),
                Op::Refuse => world.submit_refused(),
                Op::Flush => world.scheduler.flush_cache(),
            }
        }
        world.finish(MANY_TURNS);
        world.assert_clean();
        prop_assert!(world.executor.open_slots() <= setup.slots as usize);
    }

    /// The same calls give the same batches.
    #[test]
    fn plans_are_reproducible(setup in setup(), arrivals in prop::collection::vec(arrival(), 1..12)) {
        let trace = || {
            let mut world = setup.world();
            for (run, arrival) in arrivals.iter().enumerate() {
                let request = arrival.request(RunKey(run as u64), Micros(run as u64));
                let _refused = world.admit(request);
            }
            let mut trace = Vec::new();
            while world.turn() {
                trace.push(format!("{:?}", world.batch));
            }
            trace
        };
        prop_assert_eq!(trace(), trace());
    }

    /// With a device of steady speed, steps keep to their target once it is known.
    #[test]
    fn steps_keep_to_their_target(token_cost in 100_u64..10_000, lengths in prop::collection::vec(1_usize..60, 1..20)) {
        let mut world = World::new(SchedulerConfig::new(cluster_key()), fake::spec(400, 4, 8, 4096, 2));
        world.executor.token_cost = token_cost;
        let warm_up = arrival_of(vec![1; 8]).request(RunKey(1000), Micros(0));
        world.admit(warm_up).unwrap();
        world.finish(MANY_TURNS);
        world.longest_step = Duration::ZERO;
        for (run, length) in lengths.into_iter().enumerate() {
            let suffix = (0..length).map(|at| (at * run) as u32 % VOCAB).collect();
            world.admit(arrival_of(suffix).request(RunKey(run as u64), world.now)).unwrap();
        }
        world.finish(MANY_TURNS);
        prop_assert!(world.longest_step <= Duration::from_millis(250), "{:?}", world.longest_step);
    }
}

fn arrival_of(suffix: Vec<TokenId>) -> Arrival {
    Arrival {
        prefix: (0, 0),
        suffix,
        choices: 1,
        given: Vec::new(),
        max_tokens: 4,
        stops: Vec::new(),
        min_tokens: 0,
        seed: 0,
        priority: 0,
        deadline: None,
        salt: "",
        score_from: None,
        goal: Goal::Output,
    }
}
