//! From what was asked for to the processes of a cluster.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    str::FromStr,
};

use actors::process::ProcessSettings;
use anyhow::Context;
use engine::EngineFlags;
use ingress::IngressSettings;
use messages::Role;

use super::{UpSettings, flags::ServiceFlags, home, shares};

/// What is served where nothing is named: the model that scripts/model fetches.
const DEFAULT_MODEL: &str = "models/SmolLM2-135M-Instruct.Q4_1.gguf";
const REPLICAS_AT_MOST: u32 = 256;
/// Quiet, but for what the progress bars need.
const LOG_FILTER: &str = "warn,progress=info";

/// All that the user said.
pub struct Intent {
    pub settings: UpSettings,
    pub process: ProcessSettings,
    pub ingress: IngressSettings,
    /// What is said of all engines.
    pub engine: EngineFlags,
    pub flags: ServiceFlags,
    pub config: Option<PathBuf>,
}

/// PATH or PATH=NAME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChoice {
    pub path: PathBuf,
    pub name: Option<String>,
}

impl FromStr for ModelChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, name) = match text.rsplit_once('=') {
            // A path may hold an equals sign itself.
            Some(_) if Path::new(text).exists() => (text, None),
            Some((path, name)) => (path, Some(name.to_owned())),
            None => (text, None),
        };
        if path.is_empty() || name.as_ref().is_some_and(String::is_empty) {
            return Err(format!("'{text}' is no PATH or PATH=NAME"));
        }
        Ok(Self { path: PathBuf::from(path), name })
    }
}

/// ROLE=COUNT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replicas {
    pub role: Role,
    pub count: u32,
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, count) = text.split_once('=').ok_or_else(|| format!("'{text}' is no ROLE=COUNT"))?;
        let role = role
            .parse()
            .ok()
            .filter(|role| ROAD.contains(role))
            .ok_or_else(|| format!("'{role}' is none of ingress, tokenizer, router, prefill, decode"))?;
        let count = count
            .parse()
            .ok()
            .filter(|count| (least(role)..=REPLICAS_AT_MOST).contains(count))
            .ok_or_else(|| format!("'{count}' is no count from {} to {REPLICAS_AT_MOST}", least(role)))?;
        Ok(Self { role, count })
    }
}

/// The roles of a local cluster, as a request meets them.
const ROAD: [Role; 5] = [Role::Ingress, Role::Tokenizer, Role::Router, Role::Prefill, Role::Decode];

/// Processes of a role without which there is no cluster, and how many there are by default.
fn least(role: Role) -> u32 {
    u32::from(role != Role::Prefill)
}

/// One process to keep alive.
#[derive(Debug, Clone)]
pub struct Job {
    /// Such as `decode-0`; with several models `decode-smollm2-0`.
    pub name: String,
    /// `None`: the NATS server.
    pub role: Option<Role>,
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, String)>,
    /// Log lines with any of these in them are not shown.
    pub unshown: &'static [&'static str],
}

impl Job {
    /// Which are told to stop first: the door, then the rest, then the bus they end their work on.
    pub fn stage(&self) -> Stage {
        match self.role {
            Some(Role::Ingress) => Stage::Door,
            Some(_) => Stage::House,
            None => Stage::Bus,
        }
    }
}

/// A cluster stops in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Door,
    House,
    Bus,
}

impl Stage {
    pub const ALL: [Self; 3] = [Self::Door, Self::House, Self::Bus];
}

/// The models to serve.
///
/// # Errors
/// If one is not there; the message says how to get one.
pub fn models(settings: &UpSettings) -> anyhow::Result<Vec<ModelChoice>> {
    let mut models = settings.model.clone();
    if models.is_empty() {
        let path = home::cache().join(DEFAULT_MODEL);
        anyhow::ensure!(
            path.exists(),
            "no --model: name a GGUF file or Hugging Face folder, or run scripts/model"
        );
        models.push(ModelChoice { path, name: None });
    }
    for model in &mut models {
        let path = model.path.canonicalize();
        model.path = path.with_context(|| {
            format!(
                "model {} is not there (scripts/model fetches one and prints its path)",
                model.path.display()
            )
        })?;
    }
    Ok(models)
}

/// The services' processes. `gpus` finds those that engines can run on.
///
/// # Errors
/// If the ingress is to have replicas, which one port does not allow, or engines are to have more memory than there is.
pub fn jobs(
    intent: &Intent,
    models: &[ModelChoice],
    urls: &[String],
    gpus: impl FnOnce() -> Vec<usize>,
) -> anyhow::Result<Vec<Job>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let counts: BTreeMap<Role, u32> =
        intent.settings.replicas.iter().map(|replicas| (replicas.role, replicas.count)).collect();
    let count = |role| counts.get(&role).copied().unwrap_or(least(role));
    anyhow::ensure!(count(Role::Ingress) == 1, "one port takes one ingress: leave out --replicas ingress=…");
    let engines = (count(Role::Prefill) + count(Role::Decode)) as usize * models.len();
    let mut shares = shares::deal(&intent.engine, engines, gpus)?.into_iter();
    let mut jobs = Vec::new();
    for role in ROAD {
        let served: Vec<Option<&ModelChoice>> = match role {
            Role::Tokenizer | Role::Prefill | Role::Decode => models.iter().map(Some).collect(),
            _ => vec![None],
        };
        for (number, model) in served.iter().enumerate() {
            let label = if served.len() > 1 { format!("{role}-m{number}") } else { role.to_string() };
            for replica in 0..count(role) {
                let mut arguments = vec![OsString::from(role.as_str())];
                if let Some(config) = &intent.config {
                    arguments.extend([OsString::from("--config"), config.into()]);
                }
                if let Some(model) = model {
                    arguments.extend([OsString::from("--model-path"), model.path.clone().into()]);
                    if let Some(name) = &model.name {
                        arguments.extend([OsString::from("--served-model-name"), name.into()]);
                    }
                }
                if matches!(role, Role::Prefill | Role::Decode) {
                    arguments.extend(shares.next().iter().flat_map(shares::Share::arguments));
                }
                arguments.extend(intent.flags.of(role).cloned());
                jobs.push(Job {
                    name: format!("{label}-{replica}"),
                    role: Some(role),
                    program: program.clone(),
                    arguments,
                    environment: environment(intent, urls),
                    unshown: &[],
                });
            }
        }
    }
    Ok(jobs)
}

/// A url can hold a password, so it goes where other users cannot look.
fn environment(intent: &Intent, urls: &[String]) -> Vec<(String, String)> {
    let mut environment = vec![("STATOR__PROCESS__NATS_URL".to_owned(), urls.join(","))];
    let default_level = ProcessSettings::default().log_level;
    if !intent.flags.has("log_level") && intent.process.log_level == default_level {
        environment.push(("STATOR__PROCESS__LOG_LEVEL".to_owned(), LOG_FILTER.to_owned()));
    }
    environment.extend(intent.flags.secrets());
    environment
}

#[cfg(test)]
mod tests;
