use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn draw_one(logits: &[f32], params: &SamplingParams, history: &History, choice: u32) -> Draw {
    sample(&mut logits.to_vec(), params, history, choice, &mut Scratch::default(), &mut Vec::new())
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Probabilities of a row in f64, the obvious way.
fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|&l| f64::from(l) / f64::from(temperature)).collect();
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scaled.iter().map(|l| (l - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Token ids, most likely first, ties to the lowest id.
fn ranking(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
}

/// The set of tokens that may be drawn, the obvious way; `None` where a border is too close to call in f32.
fn naive_set(logits: &[f32], params: &SamplingParams) -> Option<BTreeSet<usize>> {
    let mut probabilities = softmax(logits, params.temperature);
    let order = ranking(logits);
    let k = if params.top_k == 0 { logits.len() } else { logits.len().min(params.top_k as usize) };
    let mut kept = &order[..k];
    let mass: f64 = kept.iter().map(|&t| probabilities[t]).sum();
    probabilities.iter_mut().for_each(|p| *p /= mass);
    if params.top_p < 1.0 {
        let mut sum = 0.0;
        let mut count = 0;
        for &token in kept {
            sum += probabilities[token];
            count += 1;
            if (sum - f64::from(params.top_p)).abs() < 1e-5 {
                return None;
            }
            if sum >= f64::from(params.top_p) {
                break;
            }
        }
        kept = &kept[..count];
    }
    let floor = f64::from(params.min_p) * probabilities[order[0]];
    if kept.iter().any(|&t| (probabilities[t] - floor).abs() < 1e-5 * floor) {
        return None;
    }
    Some(kept.iter().copied().filter(|&t| probabilities[t] >= floor).collect())
}

fn kept_set(logits: &[f32], params: &SamplingParams) -> BTreeSet<usize> {
    let mut scratch = Scratch::default();
    passes::block_maxima(logits, &mut scratch.maxima);
    let max = passes::max(&scratch.maxima);
    match keep(logits, params, max, &mut scratch) {
        Kept::All { .. } => (0..logits.len()).collect(),
        Kept::Candidates => scratch.candidates.iter().map(|c| c.token as usize).collect(),
    }
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    // Quantised logits make ties; smooth ones do not.
    prop_oneof![
        prop::collection::vec((-40i32..40).prop_map(|x| x as f32 / 8.0), 1..400),
        prop::collection::vec(-20.0f32..20.0, 1..400),
        prop::collection::vec(-3.0f32..3.0, 1..3000),
    ]
}

fn filters() -> impl Strategy<Value = SamplingParams> {
    (
        0.2f32..3.0,
        prop_oneof![Just(0u32), 2u32..500],
        prop_oneof![Just(1.0f32), 0.01f32..1.0],
        prop_oneof![Just(0.0f32), 0.001f32..0.9],
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, min_p, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            ..SamplingParams::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn greedy_takes_the_most_likely_token_of_lowest_id(row in rows()) {
        prop_assert_eq!(draw_one(&row, &greedy(), &History::default(), 0).token as usize, ranking(&row)[0]);
        let top_1 = SamplingParams { top_k: 1, ..SamplingParams::default() };
        prop_assert_eq!(draw_one(&row, &top_1, &History::default(), 0).token as usize, ranking(&row)[0]);
    }

    #[test]
    fn kept_tokens_are_those_of_the_definition(row in rows(), params in filters()) {
        if let Some(expected) = naive_set(&row, &params) {
            prop_assert_eq!(kept_set(&row, &params), expected);
        }
    }

    #[test]
    fn a_draw_inverts_the_distribution_function(row in rows(), params in filters(), choice in 0u32..4) {
        let set = naive_set(&row, &params);
        prop_assume!(set.is_some());
        let set = set.unwrap();
        let probabilities = softmax(&row, params.temperature);
        let mass: f64 = set.iter().map(|&t| probabilities[t]).sum();
        let token = draw_one(&row, &params, &History::default(), choice).token as usize;
        prop_assert!(set.contains(&token));
        let u = philox::uniform(params.seed, choice, 0);
        let before: f64 = set.range(..token).map(|&t| probabilities[t] / mass).sum();
        let after = before + probabilities[token] / mass;
        prop_assert!(before - 1e-4 <= u && u <= after + 1e-4, "{before} {u} {after}");
    }

    #[test]
    fn log_probabilities_are_those_of_the_raw_row(row in rows(), params in filters(), bias in -50.0f32..50.0) {
        let row_max = row.len() as u32 - 1;
        let params = SamplingParams {
            logprobs: Logprobs::Top(7),
            logit_bias: vec![(0, bias), (row_max, -bias), (0, bias)],
            ..params
        };
        let mut top = Vec::new();
        let draw = sample(&mut row.clone(), &params, &History::default(), 0, &mut Scratch::default(), &mut top);
        let probabilities = softmax(&row, 1.0);
        prop_assert!((f64::from(draw.logprob.unwrap()) - probabilities[draw.token as usize].ln()).abs() < 2e-4);
        let best: Vec<usize> = ranking(&row).into_iter().take(7).collect();
        prop_assert_eq!(top.iter().map(|t| t.token as usize).collect::<Vec<_>>(), best);
        for entry in &top {
            prop_assert!((f64::from(entry.logprob) - probabilities[entry.token as usize].ln()).abs() < 2e-4);
        }
        let scored = score(&row, draw.token, 7, &mut Scratch::default(), &mut top);
        prop_assert_eq!(Some(scored), draw.logprob);
    }

    #[test]
    fn penalties_follow_their_definitions(
        row in prop::collection::vec(-5.0f32..5.0, 20),
        prompt in prop::collection::vec(0u32..20, 0..30),
        before in prop::collection::vec(0u32..20, 0..10),
        since in prop::collection::vec(0u32..20, 0..10),
        repetition in prop_oneof![Just(1.0f32), 0.5f32..2.0],
        presence in prop_oneof![Just(0.0f32), -2.0f32..2.0],
        frequency in prop_oneof![Just(0.0f32), -2.0f32..2.0],
    ) {
        let params = SamplingParams {
            repetition_penalty: repetition,
            presence_penalty: presence,
            frequency_penalty: frequency,
            ..greedy()
        };
        let mut history = History::new(&params, &prompt, &before, 0);
        since.iter().for_each(|&token| history.push(token));
        prop_assert_eq!(history.output_len() as usize, before.len() + since.len());
        let mut counts = BTreeMap::new();
        before.iter().chain(&since).for_each(|&token| *counts.entry(token).or_insert(0u32) += 1);
        let expected: Vec<f32> = (0..20u32).map(|token| {
            let mut logit = row[token as usize];
            let count = counts.get(&token).copied().unwrap_or(0);
            if repetition != 1.0 && (count > 0 || prompt.contains(&token)) {
                logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
            }
            if count > 0 { logit - (presence + frequency * count as f32) } else { logit }
        }).collect();
        let mut edited = row.clone();
        let draw = sample(&mut edited, &params, &history, 0, &mut Scratch::default(), &mut Vec::new());
        prop_assert_eq!(&edited, &expected);
        prop_assert_eq!(draw.token as usize, ranking(&expected)[0]);
    }
}

#[test]
fn stop_ids_wait_for_min_tokens() {
    let row = [1.0, 9.0, 5.0, 8.0];
    let params = SamplingParams { min_tokens: 2, stop_ids: vec![1, 3, 77], ..greedy() };
    let mut history = History::new(&params, &[], &[2], 0);
    assert_eq!(draw_one(&row, &params, &history, 0).token, 2);
    history.push(2);
    assert_eq!(draw_one(&row, &params, &history, 0).token, 1);
}

#[test]
fn a_bias_comes_before_the_mask_of_stop_ids() {
    let params = SamplingParams {
        min_tokens: 1,
        stop_ids: vec![1],
        logit_bias: vec![(1, 100.0), (2, 3.0)],
        ..greedy()
    };
    assert_eq!(draw_one(&[1.0, 0.0, 0.0], &params, &History::default(), 0).token, 2);
}

#[test]
fn frequencies_match_probabilities() {
    let row: Vec<f32> = (0..200).map(|i| ((i * 37) % 19) as f32 / 4.0).collect();
    for params in [
        SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::default() },
        SamplingParams { temperature: 1.3, seed: 6, top_k: 40, ..SamplingParams::default() },
    ] {
        let draws = 40_000;
        let mut history = History::default();
        let mut counts = vec![0.0f64; row.len()];
        for _ in 0..draws {
            let token = draw_one(&row, &params, &history, 0).token;
            counts[token as usize] += 1.0;
            history.push(token);
        }
        let set = naive_set(&row, &params).unwrap();
        let probabilities = softmax(&row, params.temperature);
        let mass: f64 = set.iter().map(|&t| probabilities[t]).sum();
        let chi_squared: f64 = set
            .iter()
            .map(|&t| {
                let expected = probabilities[t] / mass * f64::from(draws);
                (counts[t] - expected).powi(2) / expected
            })
            .sum();
        let freedom = set.len() as f64 - 1.0;
        assert!(chi_squared < freedom + 5.0 * (2.0 * freedom).sqrt(), "{chi_squared} over {freedom}");
    }
}

#[test]
fn a_row_without_a_finite_maximum_says_so_and_gives_a_token_of_the_row() {
    let draw = |row: &[f32]| {
        let draw = draw_one(row, &SamplingParams::default(), &History::default(), 0);
        (draw.token, draw.finite)
    };
    for row in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::NAN, f32::NEG_INFINITY, f32::NAN]] {
        assert_eq!(draw(&row), (0, false));
    }
    assert_eq!(draw(&[0.0, f32::INFINITY, f32::NAN]), (1, false));
    assert_eq!(draw(&[f32::NAN, 0.0, f32::NEG_INFINITY]), (1, true));
}

#[test]
fn a_logit_that_is_no_number_counts_as_minus_infinity() {
    let row_with = |missing: f32| -> Vec<f32> {
        (0..200).map(|i| if i % 7 == 3 { missing } else { (i * 37 % 100) as f32 / 20.0 }).collect()
    };
    let (row, infinite) = (row_with(f32::NAN), row_with(f32::NEG_INFINITY));
    let draw = |row: &[f32], params: &SamplingParams| {
        let mut top = Vec::new();
        let history = History::default();
        (sample(&mut row.to_vec(), params, &history, 0, &mut Scratch::default(), &mut top), top)
    };
    for seed in 0..50 {
        let params = SamplingParams { seed, logprobs: Logprobs::Top(5), ..SamplingParams::default() };
        for params in [SamplingParams { top_p: 0.9, ..params.clone() }, params, greedy()] {
            assert_eq!(draw(&row, &params), draw(&infinite, &params));
        }
    }
    let (mut scratch, mut top) = (Scratch::default(), Vec::new());
    for token in 0..200 {
        let mut scored = |row: &[f32]| score(row, token, 5, &mut scratch, &mut top);
        assert_eq!(scored(&row), scored(&infinite));
    }
}

#[test]
fn both_compilations_of_the_exponential_are_accurate() {
    let worst = (0..870_000)
        .map(|i| -(i as f32) / 10_000.0)
        .map(|x| {
            let exact = f64::from(x).exp();
            ((f64::from(passes::exp(x)) - exact) / exact).abs()
        })
        .fold(0.0, f64::max);
    assert!(worst < 3e-7, "{worst}");
    assert_eq!(passes::exp(-87.5), 0.0);
    assert_eq!(passes::exp(f32::NEG_INFINITY), 0.0);
    let row: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 977) as f32 / 50.0).collect();
    let mut sums = Vec::new();
    passes::block_exp_sums(&row, 19.6, 0.7, &mut sums);
    let mut plain = Vec::new();
    passes::block_exp_sums_body(&row, 19.6, 0.7, &mut plain);
    assert_eq!(sums, plain);
}
