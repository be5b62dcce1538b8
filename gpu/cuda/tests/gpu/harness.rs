use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use cuda::{CompileMode, CudaError, Device, DeviceConfig, Library};

use crate::random::Random;

pub type Outcome = Result<String, Failure>;

/// Why a test did not pass.
#[derive(Debug)]
pub struct Failure(pub String);

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        Self(error.to_string())
    }
}

/// Where compiled kernels are kept between runs.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("GPU_TEST_CACHE").map_or_else(std::env::temp_dir, PathBuf::from).join("stator-kernels")
}

/// Fails with a text unless the condition holds.
pub fn ensure(condition: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure(what())) }
}

#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Context, &mut Random) -> Outcome,
}

pub struct Context {
    pub device: Device,
    /// Small cases only.
    pub light: bool,
    seed: u64,
}

impl Context {
    pub fn open() -> Result<Self, CudaError> {
        for library in Library::ALL {
            println!("{library}: {}", if library.is_present() { "present" } else { "absent" });
        }
        Library::Driver.require()?;
        let executable = std::env::current_exe().expect("the path of this test");
        let begin = Instant::now();
        let device = Device::open(&DeviceConfig {
            ordinal: 0,
            cache_dir: cache_dir(),
            compile: CompileMode::Workers(executable),
        })?;
        println!("{:?}", device.info());
        println!("opened and compiled in {:.2} s", begin.elapsed().as_secs_f64());
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let seed = std::env::var("GPU_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(clock);
        println!("GPU_TEST_SEED={seed}");
        Ok(Self { device, light: std::env::var_os("GPU_TEST_LIGHT").is_some(), seed })
    }

    /// Runs the cases that match and prints one line each; fails if one does, or if none matches.
    pub fn run(&self, cases: &[Case], filter: &str) -> ExitCode {
        let (mut passed, mut failed) = (0, 0);
        for case in cases.iter().filter(|case| case.name.contains(filter)) {
            let begin = Instant::now();
            let outcome = (case.run)(self, &mut Random::new(self.seed)).and_then(|text| {
                self.device.synchronize()?;
                Ok(text)
            });
            let seconds = begin.elapsed().as_secs_f64();
            match outcome {
                Ok(text) => {
                    passed += 1;
                    println!("ok    {:<44} {seconds:6.2} s  {text}", case.name);
                }
                Err(Failure(text)) => {
                    failed += 1;
                    println!("FAIL  {:<44} {seconds:6.2} s  {text}", case.name);
                }
            }
        }
        if passed + failed == 0 {
            println!("no case has {filter:?} in its name");
            return ExitCode::FAILURE;
        }
        println!("{passed} passed, {failed} failed");
        if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
