//! What the executor reached, and which share of the machine's best that is.

use models::Model;
use serde::Serialize;

pub const GIGA: f64 = 1e9;

/// What a step has to do.
#[derive(Debug)]
pub struct Work {
    /// Weights that a step reads.
    pub weight_bytes: f64,
    /// Keys and values of one token.
    pub kv_token_bytes: f64,
    /// Weights that every input token is multiplied with: the layers' matrices.
    layers: f64,
    /// The same for a token that is sampled: the output head.
    head: f64,
}

impl Work {
    pub fn of(model: &Model, weight_bytes: u64, kv_token_bytes: f64) -> Self {
        let spec = &model.spec;
        let [hidden, heads, kv_heads, head_dim, inner, layers, vocab] = [
            spec.hidden_size,
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.intermediate_size,
            spec.layers,
            spec.vocab_size,
        ]
        .map(f64::from);
        let layer = hidden * (2.0 * heads * head_dim + 2.0 * kv_heads * head_dim + 3.0 * inner);
        let weight_bytes = weight_bytes as f64;
        Self { weight_bytes, kv_token_bytes, layers: layers * layer, head: hidden * vocab }
    }
}

/// What the machine can do a second.
#[derive(Debug)]
pub struct Limits {
    /// Bytes read from memory.
    pub read: f64,
    /// Integer operations of byte dot products, where it has such an instruction.
    pub int8: Option<f64>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    name: String,
    /// Median.
    tokens_per_s: f64,
    /// Of the prompt, or of a step; at the median.
    milliseconds: f64,
    /// All measurements, sorted.
    measured: Vec<f64>,
    /// Weights, keys and values read per second, as a share of what the machine can read; decoding only.
    share_of_read_rate: Option<f64>,
    /// Multiplications and additions in the matrices, 10^9 a second.
    gops: f64,
    /// The same, as a share of what the machine can do on bytes.
    share_of_int8_peak: Option<f64>,
}

impl Figure {
    /// A prompt of `length` tokens, at `measured` tokens a second (sorted, not empty).
    pub fn of_prompt(length: u32, measured: Vec<f64>, work: &Work, limits: &Limits) -> Self {
        let a_token = work.layers + work.head / f64::from(length);
        Self::new(format!("pp{length}"), length, measured, a_token, limits)
    }

    /// Decoding `batch` sequences at once that hold `kv_tokens` together, at `measured` tokens a second (sorted, not empty).
    pub fn of_output(batch: u32, kv_tokens: f64, measured: Vec<f64>, work: &Work, limits: &Limits) -> Self {
        let name = format!("tg batch {batch}");
        let figure = Self::new(name, batch, measured, work.layers + work.head, limits);
        let bytes = work.weight_bytes + kv_tokens * work.kv_token_bytes;
        let steps = figure.tokens_per_s / f64::from(batch);
        Self { share_of_read_rate: Some(steps * bytes / limits.read), ..figure }
    }

    /// `tokens` are measured at once.
    fn new(name: String, tokens: u32, measured: Vec<f64>, weights_a_token: f64, limits: &Limits) -> Self {
        let tokens_per_s = measured[measured.len() / 2];
        let operations = 2.0 * weights_a_token * tokens_per_s;
        Self {
            name,
            tokens_per_s,
            milliseconds: f64::from(tokens) / tokens_per_s * 1e3,
            measured,
            share_of_read_rate: None,
            gops: operations / GIGA,
            share_of_int8_peak: limits.int8.map(|peak| operations / peak),
        }
    }
}

/// Prints the figures as a table.
pub fn print(figures: &[Figure]) {
    println!(
        "{:14}{:>12}{:>12}{:>12}{:>10}{:>14}{:>10}{:>14}",
        "", "token/s", "slowest", "fastest", "ms", "of read rate", "GOP/s", "of int8 peak"
    );
    let percent =
        |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| format!("{:.0} %", s * 100.0));
    for figure in figures {
        println!(
            "{:14}{:>12.1}{:>12.1}{:>12.1}{:>10.3}{:>14}{:>10.0}{:>14}",
            figure.name,
            figure.tokens_per_s,
            figure.measured.first().copied().unwrap_or_default(),
            figure.measured.last().copied().unwrap_or_default(),
            figure.milliseconds,
            percent(figure.share_of_read_rate),
            figure.gops,
            percent(figure.share_of_int8_peak),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORK: Work = Work { weight_bytes: 100.0, kv_token_bytes: 2.0, layers: 30.0, head: 20.0 };
    const LIMITS: Limits = Limits { read: 1000.0, int8: Some(8000.0) };

    #[test]
    fn a_batch_reads_the_weights_once_and_multiplies_them_for_each_of_its_tokens() {
        let figure = Figure::of_output(4, 10.0, vec![10.0, 20.0, 30.0], &WORK, &LIMITS);
        assert_eq!(figure.share_of_read_rate, Some(0.6), "five steps a second of 100 + 20 bytes");
        assert_eq!(figure.milliseconds, 200.0);
        assert_eq!(figure.share_of_int8_peak, Some(0.25), "20 tokens a second of 100 operations");
    }

    #[test]
    fn a_prompt_is_multiplied_with_the_head_once() {
        let figure = Figure::of_prompt(2, vec![100.0], &WORK, &LIMITS);
        assert_eq!(figure.share_of_int8_peak, Some(1.0), "(30 + 20 / 2) weights, two operations each");
    }
}
