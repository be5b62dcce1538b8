//! A program that dies with whoever started it.

use std::{ffi::OsString, os::unix::process::CommandExt, process::ExitCode};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// Become another program, which is asked to stop (SIGTERM) when the process that started this one dies
#[derive(clap::Args)]
pub struct WithParentArgs {
    /// The process that must live; default: the parent
    #[arg(long)]
    parent: Option<i32>,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

impl WithParentArgs {
    /// Returns only if the program cannot be started. The death signal outlives the exec.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // It may have died before the line above.
        let parent = getppid().map(Pid::as_raw_nonzero).map(i32::from);
        if self.parent.is_some_and(|expected| parent != Some(expected)) {
            anyhow::bail!("the process that started this one is gone");
        }
        let (program, arguments) = self.command.split_first().expect("clap requires one");
        let error = std::process::Command::new(program).args(arguments).exec();
        anyhow::bail!("{}: {error}", program.display())
    }
}
