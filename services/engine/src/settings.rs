mod choice;

use std::path::PathBuf;

use messages::block::ClusterKey;
use scheduler::{SchedulePolicy, SchedulerConfig};

pub use choice::{DeviceChoice, Dtype, KvCacheDtype, Quantization, Transport};

actors::settings! {
    /// How an engine serves its model. Names are SGLang's where they mean the same.
    pub struct EngineSettings, EngineFlags in "engine" {
        /// Hugging Face folder or GGUF file.
        optional model_path: PathBuf;
        /// Name that clients ask for; default: that of the folder or file.
        optional served_model_name: String;
        /// What computes: auto (a GPU if there is one), cpu, cuda:N, or sim (a timing model instead of arithmetic).
        value device: DeviceChoice = DeviceChoice::Auto;
        /// Compute threads; 0 takes all cores.
        value threads: usize = 0;
        /// Tokens per KV block.
        value page_size: u32 = 16;
        /// Element type of the KV cache: f16 (what auto means), bf16 or f32 on the CPU, bf16 (auto) or fp8_e4m3 on a GPU.
        value kv_cache_dtype: KvCacheDtype = KvCacheDtype::Auto;
        /// Type of weights and arithmetic: auto, or float32, in which a GPU computes slowly (no tensor cores), to check others
        /// against.
        value dtype: Dtype = Dtype::Auto;
        /// GPU: fp8 quantises the weights of layers on load, unless the checkpoint holds them in FP8; default: as stored.
        optional quantization: Quantization;
        /// Tokens of KV; default: what the memory budget holds.
        optional max_total_tokens: u32;
        /// CPU: memory for the KV cache in MiB, if max_total_tokens is not given.
        value kv_cache_mib: u64 = 1024;
        /// GPU: share of its memory for weights and KV cache, if max_total_tokens is not given.
        value mem_fraction_static: f64 = 0.88;
        /// GPU: the fastest kernels, whose results may depend on what else is in the batch.
        switch batch_variant_kernels;
        /// GPU: folder of compiled kernels; default: stator/kernels in the user's cache.
        optional kernel_cache: PathBuf;
        /// Sequences that run at once; default: 64, on a GPU 256.
        optional max_running_requests: u32;
        /// Requests that wait for their first step.
        value max_queued_requests: u32 = 512;
        /// Prompt tokens of one sequence in one step; default: 512, on a GPU 2048.
        optional chunked_prefill_size: u32;
        /// Prompt tokens of all sequences in one step; default: 1024, on a GPU 8192.
        optional max_prefill_tokens: u32;
        /// Tokens of a step in which prompts stand beside sequences that decode, these included; grows with the number of
        /// those, and on fast devices; 0 is no bound. Default: none, on a GPU 512.
        optional mixed_step_tokens: u32;
        /// Order of waiting requests: fcfs or lpm (longest prefix match).
        value schedule_policy: SchedulePolicy = SchedulePolicy::Fcfs;
        /// Longest sequence; default: what the model was made for.
        optional context_length: u32;
        /// Keep no prefix cache.
        switch disable_radix_cache;
        /// How KV pages travel between engines: cuda-ipc (GPUs of one host), shm (same host), tcp, or auto (the best that
        /// reaches).
        value kv_transport: Transport = Transport::Auto;
        /// Where KV pages are received over TCP; port 0 picks one, at 127.0.0.1 only this host is served.
        value kv_listen: String = "127.0.0.1:0".to_owned();
        /// Address that other hosts reach --kv-listen at; default: that of the default route if it names none.
        optional kv_advertise: String;
        /// Connections of one hand-over over TCP. One fills a loopback; more may be needed to fill a fast network.
        value kv_tcp_streams: u32 = 1;
        /// Folder of the sockets over which shared memory is lent; default: stator-kv-UID in the temporary folder.
        optional kv_socket_folder: PathBuf;
        /// Decode: KV pages that may be on their way here at once; 0 computes every prompt here.
        value transfer_slots: u32 = 128;
        /// Decode: take KV pages also from prefill engines of another numerics class, such as a GPU's on a CPU, rearranged and
        /// rounded to what is kept here. What comes out may then depend on who computed a prompt.
        switch foreign_prefill;
        /// Decode, while prefill instances live: how many times as long as otherwise a step may take because of prompts
        /// that are computed here all the same, beside tokens for others; 0: as long as without prefill instances.
        value step_stretch: f64 = 1.5;
        /// Least milliseconds of a step: slows any executor down, to rehearse faults with a small model.
        value step_floor_ms: f64 = 0.0;
        /// Sim: milliseconds of a step that only decodes.
        value sim_step_ms: f64 = 6.0;
        /// Sim: prompt tokens per second; 0 takes no time.
        value sim_prefill_rate: f64 = 0.0;
        /// Sim: engines in this process, each an instance of its own.
        value sim_engines: u32 = 1;
    }
}

/// How large steps may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Sequences that run at once.
    pub running: u32,
    /// Prompt tokens of one sequence.
    pub chunk: u32,
    /// Prompt tokens of all sequences.
    pub prefill: u32,
    /// Tokens where both prompts and outputs are computed.
    pub mixed: Option<u32>,
}

impl StepLimits {
    pub(crate) const CPU: Self = Self { running: 64, chunk: 512, prefill: 1024, mixed: None };
    /// A prompt fills the multiprocessors from about two thousand rows on; beside sequences that decode, whose weights are
    /// read anyway, a token of it costs least in steps of up to 512 rows. Products take 256 rows at a time.
    pub(crate) const GPU: Self = Self { running: 256, chunk: 2048, prefill: 8192, mixed: Some(512) };

    /// Tokens that one step may carry.
    pub fn tokens(&self) -> u32 {
        self.prefill + self.running
    }
}

impl EngineSettings {
    /// What is set, or `usual`, the default of the device.
    pub(crate) fn step_limits(&self, usual: StepLimits) -> StepLimits {
        StepLimits {
            running: self.max_running_requests.unwrap_or(usual.running),
            chunk: self.chunked_prefill_size.unwrap_or(usual.chunk),
            prefill: self.max_prefill_tokens.unwrap_or(usual.prefill),
            mixed: self.mixed_step_tokens.or(usual.mixed).filter(|&tokens| tokens > 0),
        }
    }

    /// The scheduler's share of the settings.
    pub(crate) fn scheduler(&self, key: ClusterKey, limits: StepLimits) -> SchedulerConfig {
        SchedulerConfig {
            max_running_requests: Some(limits.running),
            max_queued_requests: self.max_queued_requests,
            max_total_tokens: self.max_total_tokens,
            chunked_prefill_size: limits.chunk,
            max_prefill_tokens: limits.prefill,
            mixed_step_tokens: limits.mixed,
            schedule_policy: self.schedule_policy,
            radix_cache: !self.disable_radix_cache,
            kv_events: true,
            step_stretch: self.step_stretch,
            ..SchedulerConfig::new(key)
        }
    }
}

#[cfg(test)]
mod tests {
    use actors::settings::Layer;
    use clap::Args;

    use super::*;

    fn parse(line: &[&str]) -> Result<clap::ArgMatches, String> {
        let command = EngineFlags::augment_args(clap::Command::new("engine").no_binary_name(true));
        command.try_get_matches_from(line).map_err(|error| error.to_string())
    }

    #[test]
    fn a_word_that_is_no_choice_is_refused_with_its_flag_and_the_choices() {
        let mut help = EngineFlags::augment_args(clap::Command::new("engine")).render_long_help().to_string();
        help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for (flag, choices) in [
            ("--device", "auto, cpu, cuda:N, sim".to_owned()),
            ("--dtype", Dtype::ALL.map(Dtype::name).join(", ")),
            ("--kv-cache-dtype", KvCacheDtype::ALL.map(KvCacheDtype::name).join(", ")),
            ("--quantization", Quantization::ALL.map(Quantization::name).join(", ")),
            ("--schedule-policy", "fcfs, lpm".to_owned()),
            ("--kv-transport", Transport::ALL.map(Transport::name).join(", ")),
        ] {
            let error = parse(&[flag, "other"]).unwrap_err();
            assert!(error.contains(flag) && error.contains(&choices), "{error}");
            let (_, about) = help.split_once(&format!("{flag} <")).unwrap();
            let about = about.split(" --").next().unwrap();
            for choice in choices.split(", ") {
                assert!(about.contains(choice), "{flag} {choice} is not in {about}");
                let choice = choice.replace('N', "1");
                assert!(parse(&[flag, &choice]).is_ok(), "{flag} {choice}");
            }
        }
    }

    #[test]
    fn steps_are_as_large_as_the_device_likes_unless_they_are_set() {
        let set = EngineFlags { chunked_prefill_size: Some(7), ..EngineFlags::default() }.resolve();
        let unbound = EngineFlags { mixed_step_tokens: Some(0), ..EngineFlags::default() }.resolve();
        for usual in [StepLimits::CPU, StepLimits::GPU] {
            assert_eq!(EngineFlags::default().resolve().step_limits(usual), usual);
            assert_eq!(set.step_limits(usual), StepLimits { chunk: 7, ..usual });
            assert_eq!(unbound.step_limits(usual), StepLimits { mixed: None, ..usual });
        }
    }
}
