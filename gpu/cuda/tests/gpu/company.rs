//! Requests in random company.

use std::collections::{BTreeSet, VecDeque};

use models::{
    Batch, Executor, Logprobs, OpenSlot, PLACEHOLDER, SamplingParams, SequenceStep, SlotId, StepId, Ticket,
};

use crate::{
    harness::{Failure, ensure},
    random::Random,
    setup::failure,
};

/// What is asked for.
pub struct Request {
    pub prompt: Vec<u32>,
    pub params: SamplingParams,
    /// Its number among the choices of its prompt.
    pub choice: u32,
    pub tokens: usize,
}

/// What came out of a request: tokens and their log probabilities.
pub type Text = Vec<(u32, Option<f32>)>;

pub fn random_request(random: &mut Random) -> Request {
    let prompt = (0..random.between(1, 300)).map(|_| random.below(1000) as u32).collect();
    let params = SamplingParams {
        temperature: [0.0, 0.7, 1.0][random.below(3)],
        top_p: [1.0, 0.9][random.below(2)],
        frequency_penalty: [0.0, 0.5][random.below(2)],
        repetition_penalty: [1.0, 1.2][random.below(2)],
        seed: random.word(),
        logprobs: [Logprobs::Off, Logprobs::Top(2)][random.below(2)],
        ..SamplingParams::default()
    };
    Request { prompt, params, choice: 0, tokens: random.between(1, 40) }
}

/// A request that has a slot.
struct Live {
    request: usize,
    computed: usize,
    sampled: usize,
    opened: bool,
    pages: Vec<u32>,
}

/// Drives an executor as deep as it goes without ever waiting for a token before planning the next.
pub struct Run<'a> {
    executor: &'a mut dyn Executor,
    /// Steps so far.
    pub step: u64,
    /// Of each step one in so many sequences is left out.
    pub left_out: usize,
    /// Rows of steps that only decoded.
    pub decoded: BTreeSet<usize>,
    free_pages: Vec<u32>,
    tickets: VecDeque<(Ticket, Vec<(SlotId, usize)>)>,
}

impl<'a> Run<'a> {
    pub fn new(executor: &'a mut dyn Executor) -> Self {
        let free_pages = (0..executor.spec().pages).collect();
        let (decoded, tickets) = (BTreeSet::new(), VecDeque::new());
        Self { executor, step: 0, left_out: 5, decoded, free_pages, tickets }
    }

    pub fn all(
        &mut self,
        requests: &[Request],
        random: &mut Random,
        slots: usize,
    ) -> Result<Vec<Text>, Failure> {
        let mut texts = vec![Text::new(); requests.len()];
        let mut live: Vec<Option<Live>> = (0..slots).map(|_| None).collect();
        let (mut next, mut closes) = (0, Vec::new());
        loop {
            for place in live.iter_mut() {
                if place.is_none() && next < requests.len() && (slots == 1 || random.below(3) > 0) {
                    *place = Some(Live {
                        request: next,
                        computed: 0,
                        sampled: 0,
                        opened: false,
                        pages: Vec::new(),
                    });
                    next += 1;
                }
            }
            if next == requests.len() && live.iter().all(Option::is_none) {
                break;
            }
            let mut batch = Batch {
                step: StepId(self.step + 1),
                closes: std::mem::take(&mut closes),
                ..Batch::default()
            };
            let (mut sampled, mut freed) = (Vec::new(), Vec::new());
            for (slot, place) in live.iter_mut().enumerate() {
                let Some(one) = place else { continue };
                if slots > 1 && random.below(self.left_out) == 0 {
                    continue;
                }
                self.add(&mut batch, SlotId(slot as u32), one, requests, random, slots, &mut sampled);
                if one.sampled == requests[one.request].tokens {
                    closes.push(SlotId(slot as u32));
                    freed.append(&mut one.pages);
                    *place = None;
                }
            }
            self.free_pages.append(&mut freed);
            if batch.sequences.is_empty() && batch.closes.is_empty() {
                continue;
            }
            self.step += 1;
            if batch.tokens.len() == sampled.len() {
                self.decoded.insert(sampled.len());
            }
            let ticket = self.executor.submit(&batch).map_err(failure)?;
            self.tickets.push_back((ticket, sampled));
            if self.tickets.len() == self.executor.spec().depth as usize {
                self.collect(&mut texts)?;
            }
        }
        while !self.tickets.is_empty() {
            self.collect(&mut texts)?;
        }
        if !closes.is_empty() {
            let batch = Batch { step: StepId(self.step + 1), closes, ..Batch::default() };
            let ticket = self.executor.submit(&batch).map_err(failure)?;
            self.executor.collect(ticket).map_err(failure)?;
        }
        Ok(texts)
    }

    #[expect(clippy::too_many_arguments, reason = "one step of one request, all of it")]
    fn add(
        &mut self,
        batch: &mut Batch,
        slot: SlotId,
        one: &mut Live,
        requests: &[Request],
        random: &mut Random,
        slots: usize,
        sampled: &mut Vec<(SlotId, usize)>,
    ) {
        let request = &requests[one.request];
        let spec = self.executor.spec();
        let left = spec.max_batch_tokens as usize - batch.tokens.len();
        let (start, tokens) = if one.computed < request.prompt.len() {
            let rest = &request.prompt[one.computed..];
            let most = rest.len().min(left);
            let take = if slots == 1 { most } else { random.between(1, most.max(1)).min(most) };
            (one.computed, rest[..take].to_vec())
        } else {
            (one.computed, vec![PLACEHOLDER; 1.min(left)])
        };
        if tokens.is_empty() {
            return;
        }
        if !one.opened {
            one.opened = true;
            batch.opens.push(OpenSlot {
                slot,
                params: request.params.clone(),
                choice: request.choice,
                prompt: request.prompt.clone(),
                output: Vec::new(),
            });
        }
        one.computed += tokens.len();
        while one.pages.len() * (spec.page_size as usize) < one.computed {
            let at = random.below(self.free_pages.len());
            one.pages.push(self.free_pages.swap_remove(at));
        }
        let sample = one.computed >= request.prompt.len();
        let (first, first_page) = (batch.tokens.len() as u32, batch.pages.len() as u32);
        batch.tokens.extend(&tokens);
        batch.pages.extend(&one.pages);
        batch.sequences.push(SequenceStep {
            slot,
            tokens: first..batch.tokens.len() as u32,
            start: start as u32,
            pages: first_page..batch.pages.len() as u32,
            sample,
            score: None,
        });
        if sample {
            one.sampled += 1;
            sampled.push((slot, one.request));
        }
    }

    fn collect(&mut self, texts: &mut [Text]) -> Result<(), Failure> {
        let Some((ticket, expected)) = self.tickets.pop_front() else { return Ok(()) };
        let outputs = self.executor.collect(ticket).map_err(failure)?;
        ensure(outputs.sampled.len() == expected.len(), || "as many tokens as rows".into())?;
        for (sampled, (slot, request)) in outputs.sampled.iter().zip(expected) {
            ensure(sampled.slot == slot, || "tokens in batch order".into())?;
            texts[request].push((sampled.token, sampled.logprob));
        }
        Ok(())
    }
}
