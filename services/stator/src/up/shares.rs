//! What each engine of the cluster gets of the machine: cores, a GPU, memory of that.

use std::ffi::OsString;

use engine::{EngineFlags, EngineSettings, settings::DeviceChoice};

/// What one engine is told; where nothing is said the engine's own default holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    threads: Option<usize>,
    device: Option<DeviceChoice>,
    mem_fraction_static: Option<f64>,
}

impl Share {
    pub fn arguments(&self) -> impl Iterator<Item = OsString> {
        let threads = self.threads.map(|threads| format!("--threads={threads}"));
        let device = self.device.map(|device| format!("--device={device}"));
        let memory = self.mem_fraction_static.map(|share| format!("--mem-fraction-static={share}"));
        [threads, device, memory].into_iter().flatten().map(OsString::from)
    }
}

/// Deals the machine to `engines` engines. What the user `asked` for holds for each; where that leaves the device open,
/// they take turns with the usable GPUs, which are looked for only if there are several engines.
///
/// # Errors
/// If those on one GPU are to have more than all of its memory.
pub fn deal(
    asked: &EngineFlags,
    engines: usize,
    gpus: impl FnOnce() -> Vec<usize>,
) -> anyhow::Result<Vec<Share>> {
    let is_open = asked.device.unwrap_or(DeviceChoice::Auto) == DeviceChoice::Auto;
    let gpus = (is_open && engines > 1).then(gpus);
    let device = |engine: usize| match gpus.as_deref() {
        None => asked.device,
        Some([]) => Some(DeviceChoice::Cpu),
        Some(gpus) => Some(DeviceChoice::Cuda(gpus[engine % gpus.len()])),
    };
    let devices: Vec<_> = (0..engines).map(device).collect();
    let threads = asked.threads.or_else(|| (engines > 1).then(|| threads_each(engines)));
    let share = |&device: &Option<DeviceChoice>| -> anyhow::Result<Share> {
        let together = devices.iter().filter(|other| **other == device).count();
        let mem_fraction_static = match device {
            Some(gpu @ DeviceChoice::Cuda(_)) => memory(asked, gpu, together)?,
            _ => asked.mem_fraction_static,
        };
        Ok(Share { threads, device, mem_fraction_static })
    };
    devices.iter().map(share).collect()
}

fn threads_each(engines: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).div_euclid(engines).max(1)
}

/// The share of a GPU's memory of each of `together` engines.
fn memory(asked: &EngineFlags, gpu: DeviceChoice, together: usize) -> anyhow::Result<Option<f64>> {
    /// No share is told more finely.
    const STEPS: f64 = 1000.0;
    let Some(given) = asked.mem_fraction_static else {
        let each = EngineSettings::default().mem_fraction_static / together as f64;
        return Ok((together > 1).then(|| (each * STEPS).floor() / STEPS));
    };
    anyhow::ensure!(
        asked.max_total_tokens.is_some() || together == 1 || given * together as f64 <= 1.0,
        "{together} engines on {gpu} cannot have --mem-fraction-static {given} each: give them less, or leave it out \
         to have the memory shared out among them"
    );
    Ok(Some(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(asked: &EngineFlags, engines: usize, gpus: &[usize]) -> anyhow::Result<Vec<String>> {
        let shares = deal(asked, engines, || gpus.to_vec())?;
        let line = |share: &Share| {
            let told = share.arguments().map(|argument| argument.into_string().unwrap());
            // How many cores there are depends on the machine.
            told.filter(|argument| !argument.starts_with("--threads")).collect::<Vec<_>>().join(" ")
        };
        Ok(shares.iter().map(line).collect())
    }

    fn on(device: DeviceChoice) -> EngineFlags {
        EngineFlags { device: Some(device), ..EngineFlags::default() }
    }

    #[test]
    fn engines_take_a_usable_gpu_each() {
        for asked in [EngineFlags::default(), on(DeviceChoice::Auto)] {
            assert_eq!(dealt(&asked, 2, &[0, 3, 5]).unwrap(), ["--device=cuda:0", "--device=cuda:3"]);
        }
    }

    #[test]
    fn engines_without_a_gpu_each_share_memory_too() {
        let (half, third) = ("--mem-fraction-static=0.44", "--mem-fraction-static=0.293");
        let (first, second) = (format!("--device=cuda:0 {half}"), "--device=cuda:1".to_owned());
        assert_eq!(dealt(&EngineFlags::default(), 3, &[0, 1]).unwrap(), [&*first, &*second, &*first]);
        let named = dealt(&on(DeviceChoice::Cuda(2)), 3, &[]).unwrap();
        assert_eq!(named, vec![format!("--device=cuda:2 {third}"); 3]);
    }

    #[test]
    fn memory_that_is_given_is_each_engines_and_never_more_than_all() {
        let asked = |given| EngineFlags { mem_fraction_static: Some(given), ..EngineFlags::default() };
        let fits = dealt(&asked(0.4), 2, &[0]).unwrap();
        assert_eq!(fits, ["--device=cuda:0 --mem-fraction-static=0.4"; 2]);
        let error = dealt(&asked(0.88), 2, &[0]).unwrap_err().to_string();
        assert!(error.contains("2 engines on cuda:0") && error.contains("0.88"), "{error}");
        assert!(dealt(&asked(0.88), 2, &[0, 1]).is_ok(), "one each");
        let tokens = EngineFlags { max_total_tokens: Some(4096), ..asked(0.88) };
        assert!(dealt(&tokens, 2, &[0]).is_ok(), "the pool's size is given");
    }

    #[test]
    fn one_engine_or_one_device_leaves_nothing_to_deal() {
        let never = || -> Vec<usize> { panic!("no need to look for gpus") };
        let alone = deal(&EngineFlags::default(), 1, never).unwrap();
        assert_eq!(alone, [Share { threads: None, device: None, mem_fraction_static: None }]);
        let cpu = deal(&on(DeviceChoice::Cpu), 2, never).unwrap();
        assert!(cpu.iter().all(|share| share.device == Some(DeviceChoice::Cpu)), "{cpu:?}");
        assert_eq!(dealt(&EngineFlags::default(), 2, &[]).unwrap(), ["--device=cpu"; 2]);
    }

    #[test]
    fn engines_share_the_cores_unless_told_otherwise() {
        let threads = |asked: &EngineFlags| deal(asked, 2, Vec::new).unwrap()[1].threads;
        assert!(threads(&EngineFlags::default()).is_some());
        assert_eq!(threads(&EngineFlags { threads: Some(7), ..EngineFlags::default() }), Some(7));
    }
}
