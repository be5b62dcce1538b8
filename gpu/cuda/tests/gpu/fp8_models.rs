//! FP8 checkpoints as whole models: against the checkpoints that hold what their codes and scales stand for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cuda::{CudaConfig, CudaExecutor, KvBudget, WeightFormat};
use formats::Safetensors;
use models::{DType, DecoderSpec, Executor, Model, synthetic};

use crate::{
    checkpoint::write_plain,
    compare::same_bits,
    harness::{Case, Context, Failure, Outcome, ensure},
    lone::score,
    random::Random,
    setup::{config, failure, random_spec},
};

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "fp8 models: checkpoints give the bits of bf16", run: checkpoints },
        Case { name: "fp8 models: bf16 checkpoints are quantised on load", run: on_load },
        Case { name: "fp8 models: weights that are no numbers are refused", run: not_a_number },
    ]
}

/// A folder that is removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("stator-gpu-fp8-{name}-{}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            println!("cannot remove {}: {error}", self.0.display());
        }
    }
}

fn engine(folder: &Path, weights: WeightFormat) -> Result<CudaExecutor, Failure> {
    let model = Model::open(folder).map_err(failure)?;
    let config = CudaConfig { weights, ..config(4, 256, KvBudget::Pages(64)) };
    CudaExecutor::new(&model, &config, &mut |_| ()).map_err(failure)
}

/// Log probabilities of texts of many and of few tokens.
fn texts(executor: &mut CudaExecutor, spec: &DecoderSpec, random: &mut Random) -> Result<Vec<f32>, Failure> {
    let mut logprobs = Vec::new();
    for length in [2, 9, 17, 40, 100, 250] {
        let tokens: Vec<u32> = (0..length).map(|_| random.below(spec.vocab_size as usize) as u32).collect();
        logprobs.extend(score(executor, &tokens)?.into_iter().map(|(logprob, _)| logprob));
    }
    Ok(logprobs)
}

fn checkpoints(_: &Context, random: &mut Random) -> Outcome {
    let mut positions = 0;
    // the last has heads that the kernels widen, whose rows are not packed as they come
    for (head_dim, heads, kv_heads) in [(128, 4, 1), (64, 6, 2), (48, 4, 2)] {
        let spec = random_spec(head_dim, heads, kv_heads, None);
        let (fp8, plain) = (Folder::new("codes"), Folder::new("plain"));
        synthetic::write_random_checkpoint(&fp8.0, &spec, DType::F8E4M3, random.word()).map_err(failure)?;
        write_plain(&fp8.0, &plain.0)?;
        let (seed, mut found) = (random.word(), Vec::new());
        for folder in [&fp8.0, &plain.0] {
            let mut executor = engine(folder, WeightFormat::AsStored)?;
            let class = executor.spec().numerics_class.clone();
            let expected = match (folder == &fp8.0, head_dim) {
                (false, _) => "-bf16-",
                (true, 48) => "-bf16+fp8-",
                (true, _) => "-fp8-",
            };
            ensure(class.contains(expected), || format!("{class} does not say {expected}"))?;
            found.push(texts(&mut executor, &spec, &mut Random::new(seed))?);
        }
        same_bits(&format!("heads of {head_dim}"), &found[0], &found[1])?;
        let class = engine(&fp8.0, WeightFormat::Fp8)?.spec().numerics_class.clone();
        ensure(class.contains("-fp8-"), || format!("{class} of a checkpoint that is quantised"))?;
        positions += found[0].len();
    }
    Ok(format!("{positions} positions bit-equal"))
}

/// Weights are off by a sixteenth at most, which three random layers blow up: the texts stay recognisable.
fn on_load(_: &Context, random: &mut Random) -> Outcome {
    const SHARE: f32 = 0.5;
    let spec = random_spec(128, 4, 1, None);
    let folder = Folder::new("quantised");
    synthetic::write_random_checkpoint(&folder.0, &spec, DType::BF16, random.word()).map_err(failure)?;
    let seed = random.word();
    let mut stored = engine(&folder.0, WeightFormat::AsStored)?;
    let expected = texts(&mut stored, &spec, &mut Random::new(seed))?;
    let mut quantised = engine(&folder.0, WeightFormat::Fp8)?;
    let found = texts(&mut quantised, &spec, &mut Random::new(seed))?;
    let rms = |values: &mut dyn Iterator<Item = f32>| {
        (values.map(|v| v * v).sum::<f32>() / expected.len() as f32).sqrt()
    };
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let spread = rms(&mut expected.iter().map(|logprob| logprob - mean));
    let off = rms(&mut expected.iter().zip(&found).map(|(a, b)| a - b));
    ensure(off > 0.0 && off < SHARE * spread, || {
        format!("log probabilities, which spread by {spread}, differ by {off}")
    })?;
    let bytes = [&stored, &quantised].map(|executor| executor.weight_bytes_per_step());
    let head = 2 * u64::from(spec.vocab_size * spec.hidden_size);
    let ratio = (bytes[1] - head) as f64 / (bytes[0] - head) as f64;
    ensure((0.5..0.53).contains(&ratio), || format!("{ratio} of the bytes"))?;
    Ok(format!("log probabilities, which spread by {spread:.1}, differ by {off:.2}; {ratio:.3} of the bytes"))
}

fn not_a_number(_: &Context, random: &mut Random) -> Outcome {
    let folder = Folder::new("nan");
    let spec = random_spec(64, 6, 2, None);
    synthetic::write_random_checkpoint(&folder.0, &spec, DType::F8E4M3, random.word()).map_err(failure)?;
    let path = folder.0.join("model.safetensors");
    let mut file = fs::read(&path).map_err(failure)?;
    let at = {
        let map = Safetensors::open(&path).map_err(failure)?;
        let up = map.tensor("model.layers.1.mlp.up_proj.weight").map_err(failure)?.data.to_vec();
        file.windows(up.len()).position(|window| window == up).ok_or_else(|| failure("no such bytes"))?
    };
    file[at + 1234] = 0xff;
    fs::write(&path, file).map_err(failure)?;
    let error = engine(&folder.0, WeightFormat::AsStored).err().map(|Failure(text)| text);
    let expected = "the weight Layer(1, Up) holds values that are no numbers";
    ensure(error.as_deref() == Some(expected), || format!("{error:?}"))?;
    Ok(expected.into())
}
