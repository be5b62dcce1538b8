//! The prefill service: an engine that computes blocks of prompts for decode engines and pushes them there.

use std::process::ExitCode;

use actors::process::ProcessSettings;
use engine::EngineSettings;
use messages::Role;

/// The life of a prefill process.
pub fn run(settings: EngineSettings, process: ProcessSettings) -> ExitCode {
    engine::run(Role::Prefill, settings, process)
}
