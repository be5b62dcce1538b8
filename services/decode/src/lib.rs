//! The decode service: an engine that owns requests to their end. Alone it is a complete deployment.

use std::process::ExitCode;

use actors::process::ProcessSettings;
use engine::EngineSettings;
use messages::Role;

/// The life of a decode process.
pub fn run(settings: EngineSettings, process: ProcessSettings) -> ExitCode {
    engine::run(Role::Decode, settings, process)
}
