//! Batches that break the contract are refused and change nothing.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use models::{
    Batch, Executor, ExecutorError, Export, Logprobs, Model, OpenSlot, PLACEHOLDER, PageCopy, PageSink,
    SamplingParams, Score, SequenceStep, SlotId, StepId, Ticket, fixtures, synthetic::write_toy,
};

use super::rig::{Random, Rig, Sequence, Work, f32_config, greedy};
use crate::{CpuConfig, CpuError, CpuExecutor, KvBudget};

fn toy() -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().unwrap();
    write_toy(folder.path()).unwrap();
    let model = Model::open(folder.path()).unwrap();
    (folder, model)
}

/// Slot 0 is open with 20 tokens in pages 0 and 1 and has sampled; slot 1 is open with nothing.
fn rig() -> (tempfile::TempDir, Rig, Sequence) {
    let (folder, model) = toy();
    let mut rig = Rig::new(&model, &f32_config());
    let mut first = rig.open(0, greedy(), 0, &[]);
    rig.open(1, greedy(), 0, &[]);
    rig.run_one(&mut first, &[5; 20]);
    (folder, rig, first)
}

fn open(slot: u32, params: SamplingParams) -> OpenSlot {
    OpenSlot { slot: SlotId(slot), params, choice: 0, prompt: vec![], output: vec![] }
}

/// Slot 0 decodes.
fn valid() -> Batch {
    Batch {
        step: StepId(9),
        sequences: vec![SequenceStep {
            slot: SlotId(0),
            tokens: 0..1,
            start: 20,
            pages: 0..2,
            sample: true,
            score: None,
        }],
        tokens: vec![PLACEHOLDER],
        pages: vec![0, 1],
        ..Batch::default()
    }
}

#[test]
fn a_batch_that_breaks_the_contract_is_refused() {
    let (_folder, mut rig, first) = rig();
    assert_eq!(first.pages, [0, 1]);
    let nan = || SamplingParams { temperature: f32::NAN, ..greedy() };
    type Mistake<'a> = (&'a str, Box<dyn Fn(&mut Batch) + 'a>);
    let mistakes: Vec<Mistake<'_>> = vec![
        ("closes slot 7, which is not open", Box::new(|b| b.closes.push(SlotId(7)))),
        ("closes slot 99, which is not open", Box::new(|b| b.closes.push(SlotId(99)))),
        ("closes slot 1 twice", Box::new(|b| b.closes.extend([SlotId(1), SlotId(1)]))),
        ("steps slot 0, which is not open", Box::new(|b| b.closes.push(SlotId(0)))),
        ("opens slot 1, which is open", Box::new(|b| b.opens.push(open(1, greedy())))),
        ("opens slot 99 of 16", Box::new(|b| b.opens.push(open(99, greedy())))),
        ("opens slot 3, which is open", Box::new(|b| b.opens.extend([open(3, greedy()), open(3, greedy())]))),
        ("no finite number", Box::new(|b| b.opens.push(open(3, nan())))),
        (
            "repetition_penalty: 0 is not above 0",
            Box::new(|b| b.opens.push(open(3, SamplingParams { repetition_penalty: 0.0, ..greedy() }))),
        ),
        (
            "beyond the vocabulary",
            Box::new(|b| b.opens.push(OpenSlot { prompt: vec![1_000_000], ..open(3, greedy()) })),
        ),
        ("copy names page 96", Box::new(|b| b.copies.push(PageCopy { from: 0, to: 96 }))),
        (
            "page 5 is copied to twice",
            Box::new(|b| b.copies.extend([3, 4].map(|from| PageCopy { from, to: 5 }))),
        ),
        (
            "page 4 is copied from and to",
            Box::new(|b| b.copies.extend([(4, 5), (3, 4)].map(|(from, to)| PageCopy { from, to }))),
        ),
        ("steps slot 2, which is not open", Box::new(|b| b.sequences[0].slot = SlotId(2))),
        ("steps slot 400 of 16", Box::new(|b| b.sequences[0].slot = SlotId(400))),
        ("steps slot 0 twice", Box::new(|b| b.sequences.push(b.sequences[0].clone()))),
        ("has no tokens", Box::new(|b| b.sequences[0].tokens = 1..1)),
        ("has no tokens", Box::new(|b| b.sequences[0].tokens = 1..9)),
        ("has no tokens", Box::new(|b| b.sequences[0].tokens = Range { start: 1, end: 0 })),
        ("token 1000000, beyond", Box::new(|b| b.tokens[0] = 1_000_000)),
        ("no page table", Box::new(|b| b.sequences[0].pages = 0..1)),
        ("no page table", Box::new(|b| b.sequences[0].pages = 0..7)),
        ("no page table", Box::new(|b| b.sequences[0].pages = Range { start: 2, end: 0 })),
        ("page 96 of 96", Box::new(|b| b.pages[1] = 96)),
        ("reaches", Box::new(|b| b.sequences[0].start = u32::MAX)),
        ("is scored from 2 of 1", Box::new(|b| b.sequences[0].score = Some(Score { from: 2, next: None }))),
        (
            "is scored for a token beyond",
            Box::new(|b| b.sequences[0].score = Some(Score { from: 0, next: Some(PLACEHOLDER) })),
        ),
        (
            "placeholder among several",
            Box::new(|b| {
                b.tokens = vec![1, PLACEHOLDER];
                b.sequences[0].tokens = 0..2;
            }),
        ),
        (
            "sampled nothing",
            Box::new(|b| {
                b.sequences[0] =
                    SequenceStep { slot: SlotId(1), start: 0, pages: 2..3, ..b.sequences[0].clone() };
                b.pages.push(2);
            }),
        ),
        (
            "97 input tokens are more than 96",
            Box::new(|b| {
                b.tokens = vec![1; 97];
                b.sequences[0].tokens = 0..97;
                b.sequences[0].pages = 0..8;
                b.pages = vec![0, 1, 2, 3, 4, 5, 6, 7];
            }),
        ),
        (
            "page 1 is written twice",
            Box::new(|b| {
                b.tokens.push(1);
                b.sequences.push(SequenceStep { slot: SlotId(1), tokens: 1..2, ..b.sequences[0].clone() });
            }),
        ),
        (
            "page 1 of slot 1 is written by another",
            Box::new(|b| {
                b.tokens.push(1);
                b.pages.push(2);
                let reader = SequenceStep {
                    slot: SlotId(1),
                    tokens: 1..2,
                    start: 32,
                    pages: 0..3,
                    ..b.sequences[0].clone()
                };
                b.sequences.push(reader);
            }),
        ),
    ];
    for (expected, mistake) in mistakes {
        let mut batch = valid();
        mistake(&mut batch);
        match rig.cpu.submit(&batch) {
            Err(ExecutorError::Batch(text)) => assert!(text.contains(expected), "{expected}: {text}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let ticket = rig.cpu.submit(&valid()).unwrap();
    assert_eq!(rig.cpu.collect(ticket).unwrap().sampled.len(), 1);
}

#[test]
fn one_step_runs_at_a_time_and_is_collected_by_its_ticket() {
    let (_folder, mut rig, _) = rig();
    assert!(matches!(rig.cpu.collect(Ticket(StepId(3))), Err(ExecutorError::Batch(_))));
    let ticket = rig.cpu.submit(&valid()).unwrap();
    assert!(matches!(rig.cpu.submit(&valid()), Err(ExecutorError::Batch(_))));
    assert!(matches!(rig.cpu.collect(Ticket(StepId(3))), Err(ExecutorError::Batch(_))));
    assert_eq!(rig.cpu.collect(ticket).unwrap().sampled[0].slot, SlotId(0));
}

#[test]
fn scores_are_the_log_probabilities_of_the_tokens_that_follow() {
    let (_folder, mut rig, _) = rig();
    let params = SamplingParams { logprobs: Logprobs::Top(3), ..greedy() };
    let prompt: Vec<u32> = (40..52).collect();
    let mut scores = Vec::new();
    for (slot, from, next) in [(2, 0, None), (3, 4, Some(77))] {
        let mut sequence = rig.open(slot, params.clone(), 0, &[]);
        rig.add(&mut sequence, Work { tokens: &prompt, sample: true, score: Some(Score { from, next }) });
        let outputs = rig.run();
        assert_eq!(outputs.scored[0].slot, SlotId(slot));
        assert_eq!(outputs.sampled[0].top[0].token, outputs.sampled[0].token);
        assert_eq!(Some(outputs.sampled[0].top[0].logprob), outputs.sampled[0].logprob);
        scores.push(outputs.scored[0].tokens.clone());
    }
    assert_eq!((scores[0].len(), scores[1].len()), (11, 8));
    assert_eq!(scores[0][4..], scores[1][..7]);
    assert!(scores.iter().flatten().all(|(logprob, top)| top.len() == 3 && *logprob <= top[0].logprob));
}

#[test]
fn logits_that_are_not_finite_are_marked_and_harm_no_other_sequence() {
    const SPOILED: u32 = 7;
    let folder = tempfile::tempdir().unwrap();
    fixtures::write_spoiled_toy(folder.path(), SPOILED);
    let model = Model::open(folder.path()).unwrap();
    let mut rig = Rig::new(&model, &f32_config());
    let mut alone = rig.open(0, greedy(), 0, &[]);
    let expected = rig.run_one(&mut alone, &[5; 20]);
    let [mut sound, mut spoiled] = [1, 2].map(|slot| rig.open(slot, greedy(), 0, &[]));
    for (tokens, others) in
        [([5; 20].as_slice(), [5, SPOILED].repeat(10)), (&[PLACEHOLDER], vec![PLACEHOLDER])]
    {
        rig.add(&mut sound, Work { tokens, sample: true, score: None });
        rig.add(&mut spoiled, Work { tokens: &others, sample: true, score: None });
        let outputs = rig.run();
        assert_eq!([0, 1].map(|place| outputs.sampled[place].finite), [true, false]);
        assert!(tokens.len() == 1 || outputs.sampled[0].token == expected);
    }
    let pages = spoiled.pages.clone();
    rig.close(spoiled, 0);
    let mut later = rig.open(3, greedy(), 0, &[]);
    assert_eq!(rig.run_one(&mut later, &[5; 20]), expected);
    assert!(later.pages.iter().all(|page| pages.contains(page)), "what it left there counts for nobody");
}

#[test]
fn a_batch_may_only_close_copy_or_open() {
    let (_folder, mut rig, first) = rig();
    rig.close(first, 0);
    rig.open(0, greedy(), 0, &[]);
    let outputs = rig.run();
    assert!(outputs.sampled.is_empty() && outputs.scored.is_empty());
    assert!(rig.run().sampled.is_empty());
}

#[test]
fn configurations_that_cannot_work_say_why() {
    let (_folder, model) = toy();
    let refuse = |config: CpuConfig| CpuExecutor::new(&model, &config, &mut |_| {}).err().unwrap();
    let text = refuse(CpuConfig { page_size: 24, ..f32_config() }).to_string();
    assert_eq!(text, "page_size is 24, which must be a power of two, at least 16");
    assert!(matches!(refuse(CpuConfig { threads: 0, ..f32_config() }), CpuError::Config { .. }));
    let small = refuse(CpuConfig { kv: KvBudget::Bytes(1000), ..f32_config() });
    // Two layers of two heads, 16 keys and values of 16 f32.
    assert!(matches!(small, CpuError::KvBudget { budget: 1000, page_bytes: 8192, .. }), "{small}");
    let large = refuse(CpuConfig { kv: KvBudget::Pages(1 << 31), ..f32_config() });
    assert!(matches!(large, CpuError::Memory { .. }), "{large}");
    assert!(large.to_string().contains(&(8192u64 << 31).to_string()), "{large}");
}

#[test]
fn loading_reports_each_piece_and_the_memory_it_took() {
    let (_folder, model) = toy();
    let mut heard = Vec::new();
    let cpu = CpuExecutor::new(&model, &f32_config(), &mut |progress| heard.push(progress)).unwrap();
    assert_eq!(heard.iter().map(|progress| progress.done).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(heard.iter().all(|progress| progress.total == 3));
    let memory = cpu.memory();
    assert_eq!(memory.kv, 96 * 8192);
    assert!(memory.weights >= 100_000 && memory.scratch > 0, "{memory:?}");
    assert_eq!(cpu.spec().kv.page_bytes(), 8192);
    assert_eq!(cpu.spec().numerics_class, "cpu1/f32/kv-f32");
}

/// Layers as they came, by block.
#[derive(Default)]
struct Blocks(Mutex<[Vec<u8>; 2]>);

impl PageSink for Blocks {
    fn layer(&self, export: &Export, layer: u32, bytes: &[u8]) {
        let block = &mut self.0.lock().unwrap()[export.block as usize];
        assert_eq!(block.len(), layer as usize * bytes.len(), "layers come in order");
        block.extend_from_slice(bytes);
    }
}

#[test]
fn pages_that_another_executor_computed_continue_as_if_computed_here() {
    let (_folder, model) = toy();
    let mut random = Random(5);
    let prompt = random.tokens(40, model.spec.vocab_size as usize);
    let blocks = Arc::new(Blocks::default());
    let mut there = Rig::new(&model, &f32_config());
    there.cpu.export_to(blocks.clone());
    let mut sequence = there.open(0, greedy(), 0, &[]);
    there.add(&mut sequence, Work { tokens: &prompt, sample: true, score: None });
    let pages = [sequence.pages[0], sequence.pages[1]];
    (0..).zip(pages).for_each(|(block, page)| there.export(page, block));
    let expected = there.run().sampled[0].token;

    let mut here = Rig::new(&model, &f32_config());
    let mut continued = here.open(0, greedy(), 0, &[]);
    continued.pages = vec![7, 3];
    continued.len = 32;
    for (block, page) in pages.into_iter().enumerate() {
        let mut read = vec![0; there.cpu.spec().kv.page_bytes()];
        there.cpu.read_page(page, &mut read).unwrap();
        assert!(read == blocks.0.lock().unwrap()[block], "what came in the step is what the page holds");
        here.cpu.write_page(continued.pages[block], &read).unwrap();
    }
    assert_eq!(here.run_one(&mut continued, &prompt[32..]), expected);
    assert!(here.cpu.read_page(96, &mut []).is_err(), "there is no page 96");
}
