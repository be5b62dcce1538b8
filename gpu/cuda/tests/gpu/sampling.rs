use cuda::{
    Device,
    ops::{BiasEntry, Drawn, MAX_TOP, Sample, SampleParams, Score},
};
use models::{
    Logprobs, SamplingParams,
    sampler::{self, History, Scratch},
};

use crate::{
    compare::poisoned,
    harness::{Case, Context, Failure, Outcome, ensure},
    random::Random,
};

const MAX_BIAS: usize = 8;
const MAX_STOPS: usize = 4;
const LOGPROB_BOUND: f32 = 2e-4;

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "sampling follows the reference sampler", run: follows },
        Case { name: "sampling draws by weight", run: distribution },
        Case { name: "scores are log probabilities", run: scores },
    ]
}

/// A choice as both samplers see it.
struct Choice {
    params: SamplingParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    number: u32,
}

fn random_choice(random: &mut Random, vocab: usize) -> Choice {
    let mut params = SamplingParams { seed: random.word(), ..SamplingParams::default() };
    let token = |random: &mut Random| random.below(vocab) as u32;
    params.temperature = [0.0, 0.3, 0.8, 1.0, 1.7][random.below(5)];
    params.top_k = [0, 0, 1, 5, 50, vocab as u32][random.below(6)];
    params.top_p = [1.0, 1.0, 0.9, 0.5][random.below(4)];
    params.min_p = [0.0, 0.0, 0.05][random.below(3)];
    if random.below(2) == 0 {
        params.presence_penalty = random.float(2.0);
        params.frequency_penalty = random.float(1.0);
        params.repetition_penalty = 1.0 + random.float(0.4);
    }
    let mut ids: Vec<u32> = (0..random.below(MAX_BIAS)).map(|_| token(random)).collect();
    ids.sort_unstable();
    ids.dedup();
    params.logit_bias = ids.into_iter().map(|id| (id, random.float(20.0))).collect();
    params.stop_ids = (0..random.below(MAX_STOPS)).map(|_| token(random)).collect();
    params.min_tokens = random.below(6) as u32;
    params.logprobs = [Logprobs::Off, Logprobs::Top(0), Logprobs::Top(5), Logprobs::Top(20)][random.below(4)];
    let prompt = (0..random.below(40)).map(|_| token(random)).collect();
    let output = (0..random.below(10)).map(|_| token(random)).collect();
    Choice { params, prompt, output, number: random.below(3) as u32 }
}

/// Rows [rows, vocab] as [rows, columns]; what lies behind a row's logits would win if it counted.
fn padded(logits: &[f32], vocab: usize, columns: usize) -> Vec<f32> {
    let padding = vec![f32::MAX; columns - vocab];
    logits.chunks_exact(vocab).flat_map(|row| row.iter().chain(&padding)).copied().collect()
}

/// Makes one logit of twenty no number.
fn spoil(logits: &mut [f32], random: &mut Random) {
    logits.iter_mut().filter(|_| random.below(20) == 0).for_each(|logit| *logit = f32::NAN);
}

/// Whether two log probabilities are about the same, or mean nothing both.
fn near(a: f32, b: f32) -> bool {
    a == b || a.is_nan() && b.is_nan() || (a - b).abs() < LOGPROB_BOUND
}

/// Samples each row with the choice of the same number; slots are dealt backwards.
fn draw(device: &Device, logits: &[f32], vocab: usize, choices: &[Choice]) -> Result<Vec<Drawn>, Failure> {
    let (rows, columns) = (choices.len(), vocab.next_multiple_of(8));
    let slot = |row: usize| rows - 1 - row;
    let mut params = vec![None; rows];
    let mut bias = vec![BiasEntry { token: 0, value: 0.0 }; rows * MAX_BIAS];
    let mut stops = vec![0u32; rows * MAX_STOPS];
    let mut counts = vec![0u16; rows * vocab];
    let mut prompts = vec![0u32; rows * vocab.div_ceil(32)];
    for (row, choice) in choices.iter().enumerate() {
        let (slot, p) = (slot(row), &choice.params);
        let (biases, ends) = (p.logit_bias.len() as u32, p.stop_ids.len() as u32);
        params[slot] = Some(SampleParams::new(p, choice.number, biases, ends));
        for (entry, &(token, value)) in bias[slot * MAX_BIAS..].iter_mut().zip(&p.logit_bias) {
            *entry = BiasEntry { token, value };
        }
        stops[slot * MAX_STOPS..][..p.stop_ids.len()].copy_from_slice(&p.stop_ids);
        for &token in &choice.output {
            counts[slot * vocab + token as usize] += 1;
        }
        if p.repetition_penalty != 1.0 {
            for &token in &choice.prompt {
                prompts[slot * vocab.div_ceil(32) + token as usize / 32] |= 1 << (token % 32);
            }
        }
    }
    let params: Vec<SampleParams> = params.into_iter().flatten().collect();
    let drawn = poisoned::<Drawn>(device, rows)?;
    let last = poisoned::<u32>(device, rows)?;
    let counts_before = counts.clone();
    let counts = device.upload(&counts)?;
    let slots: Vec<u32> = (0..rows).map(|row| slot(row) as u32).collect();
    let positions: Vec<u32> = choices.iter().map(|choice| choice.output.len() as u32).collect();
    device.sample(Sample {
        drawn: drawn.view(),
        last_tokens: last.view(),
        logits: device.upload(&padded(logits, vocab, columns))?.view(),
        slots: device.upload(&slots)?.view(),
        positions: device.upload(&positions)?.view(),
        params: device.upload(&params)?.view(),
        bias: device.upload(&bias)?.view(),
        stops: device.upload(&stops)?.view(),
        counts: counts.view(),
        prompts: device.upload(&prompts)?.view(),
        rows,
        vocab,
        columns,
        max_bias: MAX_BIAS,
        max_stops: MAX_STOPS,
    })?;
    let drawn = device.read(drawn.view())?;
    let (last, counts) = (device.read(last.view())?, device.read(counts.view())?);
    for (row, drawn) in drawn.iter().enumerate() {
        ensure(last[slot(row)] == drawn.token, || format!("row {row}: last token not kept"))?;
        let tracked = params[slot(row)].track_counts as u16;
        let at = slot(row) * vocab + drawn.token as usize;
        ensure(counts[at] == counts_before[at] + tracked, || format!("row {row}: count not kept"))?;
    }
    Ok(drawn)
}

fn follows(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let (mut draws, mut others) = (0, 0);
    let vocabs: &[usize] = if context.light { &[515] } else { &[13, 515, 49_152, 151_936] };
    for &vocab in vocabs {
        let rows = if context.light { 12 } else { 60 };
        let mut logits: Vec<f32> = random
            .floats(rows * vocab, 12.0)
            .into_iter()
            // coarse steps, so that ties are common
            .map(|logit| if logit > 4.0 { (logit * 16.0).round() / 16.0 } else { logit })
            .collect();
        spoil(&mut logits, random);
        logits[..vocab].fill(f32::NAN);
        let choices: Vec<Choice> = (0..rows).map(|_| random_choice(random, vocab)).collect();
        let drawn = draw(device, &logits, vocab, &choices)?;
        let (mut scratch, mut top) = (Scratch::default(), Vec::new());
        for (row, choice) in choices.iter().enumerate() {
            let mut logits = logits[row * vocab..][..vocab].to_vec();
            let history = History::new(&choice.params, &choice.prompt, &choice.output, 1);
            let reference =
                sampler::sample(&mut logits, &choice.params, &history, choice.number, &mut scratch, &mut top);
            draws += 1;
            let found = &drawn[row];
            ensure((found.finite != 0) == reference.finite, || {
                format!("vocab {vocab}: row {row} is finite {}", found.finite)
            })?;
            let agrees = found.token == reference.token;
            if !agrees {
                ensure(!choice.params.is_greedy(), || {
                    format!("vocab {vocab}: greedy {} against {}", found.token, reference.token)
                })?;
                others += 1;
            }
            if let (Some(logprob), true) = (reference.logprob, agrees) {
                ensure(near(logprob, found.logprob), || {
                    format!("vocab {vocab}: log probability {} against {logprob}", found.logprob)
                })?;
            }
            for (i, top) in top.iter().enumerate() {
                ensure(found.top_tokens[i] == top.token, || {
                    format!("vocab {vocab}: place {i} is {} against {}", found.top_tokens[i], top.token)
                })?;
                ensure(near(found.top_logprobs[i], top.logprob), || {
                    format!("vocab {vocab}: place {i} has {} against {}", found.top_logprobs[i], top.logprob)
                })?;
            }
        }
    }
    // sums are rounded differently: a draw at the edge of two tokens may fall to the neighbour
    ensure(others * 50 <= draws, || format!("{others} of {draws} draws differ from the reference"))?;
    Ok(format!("{draws} draws, {others} at an edge"))
}

fn distribution(context: &Context, _: &mut Random) -> Outcome {
    let (vocab, rows) = (40, if context.light { 60 } else { 4000 });
    let logits: Vec<f32> = (0..vocab).map(|i| i as f32 * 0.1).collect();
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
    let total: f64 = weights.iter().sum();
    let choices: Vec<Choice> = (0..rows)
        .map(|i| Choice {
            params: SamplingParams { seed: 1000 + i as u64, ..SamplingParams::default() },
            prompt: Vec::new(),
            output: Vec::new(),
            number: 0,
        })
        .collect();
    let drawn = draw(&context.device, &logits.repeat(rows), vocab, &choices)?;
    let mut chi_squared = 0.0;
    for (token, weight) in weights.iter().enumerate() {
        let expected = weight / total * rows as f64;
        let found = drawn.iter().filter(|drawn| drawn.token as usize == token).count() as f64;
        chi_squared += (found - expected).powi(2) / expected;
    }
    // 39 degrees of freedom: seeds are fixed, so this is one number, not a lottery
    ensure(chi_squared < 73.0, || format!("chi squared {chi_squared:.1}"))?;
    Ok(format!("chi squared {chi_squared:.1} of 39 degrees"))
}

fn scores(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let (vocab, rows) = (5003, 9);
    let mut logits = random.floats(rows * vocab, 10.0);
    spoil(&mut logits, random);
    let targets: Vec<u32> = (0..rows).map(|_| random.below(vocab) as u32).collect();
    logits[targets[0] as usize] = f32::NAN;
    let tops: Vec<u32> = (0..rows).map(|_| random.below(MAX_TOP + 1) as u32).collect();
    let scored = poisoned::<Drawn>(device, rows)?;
    device.score(Score {
        scored: scored.view(),
        logits: device.upload(&padded(&logits, vocab, vocab + 5))?.view(),
        targets: device.upload(&targets)?.view(),
        tops: device.upload(&tops)?.view(),
        rows,
        vocab,
        columns: vocab + 5,
    })?;
    let (mut scratch, mut top) = (Scratch::default(), Vec::new());
    for (row, scored) in device.read(scored.view())?.iter().enumerate() {
        let logits = &logits[row * vocab..][..vocab];
        let expected = sampler::score(logits, targets[row], tops[row] as usize, &mut scratch, &mut top);
        ensure(near(scored.logprob, expected), || {
            format!("row {row}: {} against {expected}", scored.logprob)
        })?;
        for (i, top) in top.iter().enumerate() {
            let same = scored.top_tokens[i] == top.token && near(scored.top_logprobs[i], top.logprob);
            ensure(same, || format!("row {row}, place {i}"))?;
        }
    }
    Ok(format!("{rows} rows"))
}
