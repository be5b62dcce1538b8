use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::*;
use messages::{
    TokenIds,
    frame::{End, TokenLogprobs},
    submit::Submit,
};
use models::TokenLogprob;

/// Tokens of a frame at most: with all log probabilities that can be asked for they take 64 KiB. Messages are cut between
/// frames only.
const TOKENS_PER_FRAME: usize = 256;

/// What one run has put out.
#[derive(Debug)]
pub struct RunLog {
    pub request: RequestId,
    pub attempt: Attempt,
    pub run: RunId,
    /// Where frames go.
    pub inbox: InstanceId,
    pub ingress: InstanceId,
    /// Engines may die of its request.
    pub(super) maybe_poison: bool,
    /// To be told once the run begins.
    pub(super) dispatch: Option<Dispatch>,
    started: Option<(u32, u64)>,
    /// Tokens of its prompt that the cache here can have held: those computed elsewhere came later.
    pub(super) cached_here: u32,
    /// The same of the cache of whoever computed the prompt.
    pub(super) cached_elsewhere: u32,
    scores: Vec<(u32, Vec<TokenLogprobs>)>,
    choices: BTreeMap<u32, ChoiceLog>,
    pub(super) fault: Option<Fault>,
    terminal: Option<Body<TokenDelta>>,
    /// When the terminal frame was made.
    pub(super) ended: Option<Instant>,
    pub(super) last_frame: Instant,
    prompt_ids: TokenIds,
}

/// Output of one choice from `first` on; what lies before was given.
#[derive(Debug)]
struct ChoiceLog {
    first: u32,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    end: Option<End>,
}

impl ChoiceLog {
    fn reached(&self) -> u32 {
        self.first + self.ids.len() as u32
    }

    /// Output of choice `choice` from position `at` on, and its end.
    fn since(&self, choice: u32, at: u32) -> Vec<TokenDelta> {
        let mut deltas = Vec::new();
        let mut begin = (at.clamp(self.first, self.reached()) - self.first) as usize;
        loop {
            let end = self.ids.len().min(begin + TOKENS_PER_FRAME);
            let is_last = end == self.ids.len();
            deltas.push(TokenDelta {
                choice,
                at: self.first + begin as u32,
                ids: self.ids[begin..end].into(),
                logprobs: self.logprobs.get(begin..end).unwrap_or_default().to_vec(),
                end: self.end.clone().filter(|_| is_last),
            });
            if is_last {
                return deltas;
            }
            begin = end;
        }
    }
}

impl RunLog {
    pub fn new(request: RequestId, attempt: Attempt, run: RunId, submit: &Submit) -> Self {
        let choice = |first| ChoiceLog { first, ids: Vec::new(), logprobs: Vec::new(), end: None };
        Self {
            request,
            attempt,
            run,
            inbox: submit.tokenizer.clone(),
            ingress: submit.ingress.clone(),
            maybe_poison: submit.maybe_poison(),
            dispatch: submit.dispatch.clone(),
            started: None,
            cached_here: u32::MAX,
            cached_elsewhere: 0,
            scores: Vec::new(),
            choices: submit.choices.iter().map(|c| (c.index, choice(c.output.len() as u32))).collect(),
            fault: None,
            terminal: None,
            ended: None,
            last_frame: Instant::now(),
            prompt_ids: if submit.score_prompt_from.is_some() {
                submit.prompt.clone()
            } else {
                TokenIds::default()
            },
        }
    }

    /// Output tokens that came here.
    pub(super) fn computed(&self) -> usize {
        self.choices.values().map(|choice| choice.ids.len()).sum()
    }

    /// Of `tokens` that had not to be computed here, those that nobody computed for this run.
    pub(super) fn cached(&self, tokens: u32) -> u32 {
        tokens.min(self.cached_here.max(self.cached_elsewhere))
    }

    pub(super) fn started(&mut self, cached_tokens: u32, queue_time: Duration) -> Addressed {
        let queued_us = u64::try_from(queue_time.as_micros()).unwrap_or(u64::MAX);
        self.started = Some((cached_tokens, queued_us));
        self.address(Body::Started { cached_tokens, queued_us })
    }

    pub(super) fn scored(
        &mut self,
        first: u32,
        scores: &[(f32, Vec<TokenLogprob>)],
        frames: &mut Vec<Addressed>,
    ) {
        let ids = self.prompt_ids.iter().skip(first as usize);
        let tokens: Vec<TokenLogprobs> = ids
            .zip(scores)
            .map(|(id, (logprob, top))| TokenLogprobs { id, logprob: Some(*logprob), top: pairs(top) })
            .collect();
        for (first, tokens) in (first..).step_by(TOKENS_PER_FRAME).zip(tokens.chunks(TOKENS_PER_FRAME)) {
            self.scores.push((first, tokens.to_vec()));
            frames.push(self.address(Body::Prompt { first, tokens: tokens.to_vec() }));
        }
    }

    pub(super) fn token(
        &mut self,
        choice: u32,
        position: u32,
        token: u32,
        logprob: Option<f32>,
        top: &[TokenLogprob],
        frames: &mut Vec<Addressed>,
    ) {
        let Some(log) = self.choices.get_mut(&choice) else { return };
        debug_assert_eq!(position, log.reached(), "the scheduler puts tokens out in order");
        log.ids.push(token);
        let logprobs: Vec<TokenLogprobs> = logprob
            .map(|logprob| TokenLogprobs { id: token, logprob: Some(logprob), top: pairs(top) })
            .into_iter()
            .collect();
        log.logprobs.extend(logprobs.iter().cloned());
        let ids = [token].as_slice().into();
        let delta = TokenDelta { choice, at: position, ids, logprobs, end: None };
        frames.push(self.address(Body::Delta(delta)));
    }

    /// Ends a choice; joins its last token's frame if that is the newest.
    pub(super) fn end(&mut self, choice: u32, end: End, frames: &mut Vec<Addressed>) {
        let Some(log) = self.choices.get_mut(&choice) else { return };
        log.end = Some(end.clone());
        let at = log.reached();
        if let Some((_, Frame { run: Some(run), body: Body::Delta(last), .. })) = frames.last_mut()
            && *run == self.run
            && last.choice == choice
        {
            last.end = Some(end);
            return;
        }
        let delta = TokenDelta { choice, at, ids: TokenIds::default(), logprobs: Vec::new(), end: Some(end) };
        frames.push(self.address(Body::Delta(delta)));
    }

    /// The terminal frame.
    pub(super) fn close(&mut self, usage: Usage) -> Addressed {
        let body = match self.fault.take() {
            Some(fault) => Body::Failed(fault),
            None => {
                let cached_tokens = self.cached(usage.cached_tokens);
                Body::Closed { usage: Usage { cached_tokens, ..usage } }
            }
        };
        self.terminal = Some(body.clone());
        self.ended = Some(Instant::now());
        self.address(body)
    }

    /// Everything from these positions on; choices not named from their first token here.
    pub(super) fn replay(&mut self, from: &[(u32, u32)]) -> Vec<Addressed> {
        let mut bodies = Vec::new();
        bodies.extend(
            self.started.map(|(cached_tokens, queued_us)| Body::Started { cached_tokens, queued_us }),
        );
        bodies.extend(
            self.scores.iter().map(|(first, tokens)| Body::Prompt { first: *first, tokens: tokens.clone() }),
        );
        for (choice, log) in &self.choices {
            let wanted = from.iter().find(|(named, _)| named == choice).map_or(log.first, |(_, at)| *at);
            bodies.extend(log.since(*choice, wanted).into_iter().map(Body::Delta));
        }
        bodies.extend(self.terminal.clone());
        bodies.into_iter().map(|body| self.address(body)).collect()
    }

    pub(super) fn alive(&self) -> Alive {
        Alive {
            request: self.request,
            attempt: self.attempt,
            run: Some(self.run),
            reached: self.choices.iter().map(|(choice, log)| (*choice, log.reached())).collect(),
            quiet_ms: 0,
            handed_on: false,
        }
    }

    fn address(&mut self, body: Body<TokenDelta>) -> Addressed {
        self.last_frame = Instant::now();
        (
            self.inbox.clone(),
            Frame { request: self.request, attempt: self.attempt, run: Some(self.run), body },
        )
    }
}

fn pairs(top: &[TokenLogprob]) -> Vec<(u32, f32)> {
    top.iter().map(|t| (t.token, t.logprob)).collect()
}

/// How a choice that ended by itself is reported; `None` if it failed.
pub(super) fn end_of(reason: EndReason) -> Option<End> {
    match reason {
        EndReason::Stop(token) => Some(End::StopToken(token)),
        EndReason::Length => Some(End::Length),
        EndReason::Cancelled => Some(End::Cancelled),
        EndReason::DeadlineExceeded | EndReason::Failed | EndReason::NotFinite => None,
    }
}
