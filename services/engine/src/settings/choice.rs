//! Settings that are one of a few words.

use std::{fmt, str::FromStr};

actors::choices! {
    /// Type of weights and arithmetic.
    pub enum Dtype {
        /// As the device likes.
        Auto = "auto",
        Float32 = "float32",
    }
}

actors::choices! {
    /// Element type of the KV cache.
    pub enum KvCacheDtype {
        /// As the device likes.
        Auto = "auto",
        F16 = "f16",
        Bf16 = "bf16",
        F32 = "f32",
        Fp8E4m3 = "fp8_e4m3",
    }
}

actors::choices! {
    /// What weights become on load.
    pub enum Quantization {
        Fp8 = "fp8",
    }
}

actors::choices! {
    /// How KV pages travel.
    pub enum Transport {
        /// The best that reaches.
        Auto = "auto",
        CudaIpc = "cuda-ipc",
        Shm = "shm",
        Tcp = "tcp",
    }
}

/// What is to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is one.
    Auto,
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
    Sim,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let gpu = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "sim" => Ok(Self::Sim),
            _ => gpu.map(Self::Cuda).ok_or_else(|| format!("'{name}' is none of auto, cpu, cuda:N, sim")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Sim => f.write_str("sim"),
        }
    }
}

impl<'de> serde::Deserialize<'de> for DeviceChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        actors::settings::word(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_by_name() {
        let known = [("auto", DeviceChoice::Auto), ("cpu", DeviceChoice::Cpu), ("sim", DeviceChoice::Sim)];
        for (name, device) in known.into_iter().chain([("cuda:3", DeviceChoice::Cuda(3))]) {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string(), name);
        }
        for name in ["gpu", "cuda", "cuda:", "cuda:x"] {
            assert_eq!(
                name.parse::<DeviceChoice>(),
                Err(format!("'{name}' is none of auto, cpu, cuda:N, sim"))
            );
        }
    }
}
