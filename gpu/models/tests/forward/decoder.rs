use std::{collections::HashMap, path::Path};

use models::{DecoderSpec, LayerWeight, Model, RopeTable, TokenId, WeightId, rope_frequencies};

/// Input tokens of the longest case of the fixtures.
pub const LONGEST_CASE: u32 = 40 + 23;

/// A decoder in f32, a vector for each weight.
pub struct Decoder {
    pub spec: DecoderSpec,
    pub rope: RopeTable,
    pub weights: HashMap<WeightId, Vec<f32>>,
}

/// Keys and values of one layer, by position.
#[derive(Default)]
struct Memory {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl Decoder {
    pub fn open(path: &Path) -> Self {
        let model = Model::open(path).expect("a model");
        let ids = WeightId::all(&model.spec).chain([WeightId::Head]);
        let weights =
            ids.map(|id| (id, model.weights.get(id).expect("a weight of the spec").to_f32())).collect();
        let rope = rope_frequencies(&model.spec.rope, model.spec.context_length);
        Self { spec: model.spec, rope, weights }
    }

    /// Logits after each token.
    pub fn logits(&self, tokens: &[TokenId]) -> Vec<Vec<f32>> {
        let mut memories: Vec<_> = (0..self.spec.layers).map(|_| Memory::default()).collect();
        let width = self.spec.hidden_size as usize;
        let step = |(position, &token): (usize, &TokenId)| {
            let mut state = self.weights[&WeightId::Embedding][token as usize * width..][..width].to_vec();
            for (layer, memory) in memories.iter_mut().enumerate() {
                self.layer(layer as u32, position, &mut state, memory);
            }
            multiply(&self.weights[&WeightId::Head], &self.norm(&state, WeightId::FinalNorm))
        };
        tokens.iter().enumerate().map(step).collect()
    }

    fn layer(&self, layer: u32, position: usize, state: &mut [f32], memory: &mut Memory) {
        let weight = |weight| self.weights[&WeightId::Layer(layer, weight)].as_slice();
        let input = self.norm(state, WeightId::Layer(layer, LayerWeight::AttentionNorm));
        let project = |matrix, bias| {
            let mut output = multiply(weight(matrix), &input);
            if self.spec.qkv_bias {
                add(&mut output, weight(bias));
            }
            output
        };
        let turn = |mut heads: Vec<f32>, norm| {
            for head in heads.chunks_exact_mut(self.spec.head_dim as usize) {
                if self.spec.qk_norm {
                    let normed = self.norm(head, WeightId::Layer(layer, norm));
                    head.copy_from_slice(&normed);
                }
                self.rotate(head, position);
            }
            heads
        };
        let query = turn(project(LayerWeight::Q, LayerWeight::QBias), LayerWeight::QNorm);
        memory.keys.push(turn(project(LayerWeight::K, LayerWeight::KBias), LayerWeight::KNorm));
        memory.values.push(project(LayerWeight::V, LayerWeight::VBias));

        let attended: Vec<f32> =
            (0..self.spec.heads).flat_map(|head| self.attend(head, &query, memory)).collect();
        add(state, &multiply(weight(LayerWeight::O), &attended));
        let input = self.norm(state, WeightId::Layer(layer, LayerWeight::MlpNorm));
        let gate = multiply(weight(LayerWeight::Gate), &input);
        let up = multiply(weight(LayerWeight::Up), &input);
        let gated = |(gate, up): (&f32, &f32)| gate / (1.0 + (-gate).exp()) * up;
        let product: Vec<f32> = gate.iter().zip(&up).map(gated).collect();
        add(state, &multiply(weight(LayerWeight::Down), &product));
    }

    fn attend(&self, head: u32, query: &[f32], memory: &Memory) -> Vec<f32> {
        let dim = self.spec.head_dim as usize;
        let part = |heads: &[f32], head: u32| heads[head as usize * dim..][..dim].to_vec();
        let query = part(query, head);
        let kv_head = head / (self.spec.heads / self.spec.kv_heads);
        let seen = memory.keys.len();
        let first = self.spec.sliding_window.map_or(0, |window| seen.saturating_sub(window as usize));
        let keys = memory.keys[first..].iter().map(|heads| part(heads, kv_head));
        let scores: Vec<f32> = keys.map(|key| dot(&query, &key) / (dim as f32).sqrt()).collect();
        let max = scores.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = scores.iter().map(|score| (score - max).exp()).sum();
        let mut output = vec![0.0; dim];
        for (heads, score) in memory.values[first..].iter().zip(scores) {
            let share = (score - max).exp() / total;
            let value: Vec<f32> = part(heads, kv_head).iter().map(|value| value * share).collect();
            add(&mut output, &value);
        }
        output
    }

    fn rotate(&self, head: &mut [f32], position: usize) {
        let half = self.rope.inverse_frequencies.len();
        for (i, frequency) in self.rope.inverse_frequencies.iter().enumerate() {
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            let (sin, cos) = (sin * self.rope.attention_factor, cos * self.rope.attention_factor);
            let (a, b) = (head[i], head[i + half]);
            (head[i], head[i + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }

    fn norm(&self, state: &[f32], id: WeightId) -> Vec<f32> {
        let mean = dot(state, state) / state.len() as f32;
        let scale = 1.0 / (mean + self.spec.norm_eps).sqrt();
        state.iter().zip(&self.weights[&id]).map(|(x, weight)| x * scale * weight).collect()
    }
}

fn multiply(matrix: &[f32], input: &[f32]) -> Vec<f32> {
    matrix.chunks_exact(input.len()).map(|row| dot(row, input)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn add(state: &mut [f32], change: &[f32]) {
    state.iter_mut().zip(change).for_each(|(x, change)| *x += change);
}
