//! The flags of the services as flags of `stator up`, handed on to the processes they are meant for.

use std::ffi::OsString;

use actors::process::ProcessFlags;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, parser::ValueSource};
use engine::EngineFlags;
use ingress::IngressFlags;
use messages::Role;
use router::RouterFlags;
use tokenizer::TokenizerFlags;

/// What `stator up` sets itself for each process.
const SET_BY_UP: [&str; 3] = ["model_path", "served_model_name", "admin_bind"];
/// Secrets (a url can hold a password): children are told through their environment, which others cannot read.
const NOT_ON_COMMAND_LINES: [&str; 4] = ["nats_url", "admin_key", "cluster_key", "api_key"];

/// The flags of a service, and who wants them.
struct Section {
    heading: &'static str,
    roles: &'static [Role],
    flags: fn(Command) -> Command,
}

/// Where two sections have a flag of one name, it goes to the roles of both.
const SECTIONS: [Section; 5] = [
    Section {
        heading: "All services",
        roles: &[Role::Ingress, Role::Tokenizer, Role::Router, Role::Prefill, Role::Decode],
        flags: ProcessFlags::augment_args,
    },
    Section { heading: "Ingress", roles: &[Role::Ingress], flags: IngressFlags::augment_args },
    Section { heading: "Engine", roles: &[Role::Prefill, Role::Decode], flags: EngineFlags::augment_args },
    Section { heading: "Tokenizer", roles: &[Role::Tokenizer], flags: TokenizerFlags::augment_args },
    Section { heading: "Router", roles: &[Role::Router], flags: RouterFlags::augment_args },
];

/// Flags given for services.
#[derive(Debug, Clone)]
pub struct ServiceFlags {
    pub process: ProcessFlags,
    pub ingress: IngressFlags,
    given: Vec<Given>,
}

#[derive(Debug, Clone)]
struct Given {
    roles: Vec<Role>,
    id: String,
    arguments: Vec<OsString>,
}

impl ServiceFlags {
    /// The arguments to hand to a process of `role`.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &OsString> {
        self.given.iter().filter(move |given| given.roles.contains(&role)).flat_map(|given| &given.arguments)
    }

    /// Secrets that were given as flags, as environment variables.
    pub fn secrets(&self) -> Vec<(String, String)> {
        let keys = self.ingress.api_key.as_ref().map(|keys| keys.join(","));
        [
            ("STATOR__PROCESS__ADMIN_KEY", self.process.admin_key.clone()),
            ("STATOR__PROCESS__CLUSTER_KEY", self.process.cluster_key.clone()),
            ("STATOR__INGRESS__API_KEY", keys),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
    }

    /// Whether the flag was given, by its name in the settings.
    pub fn has(&self, id: &str) -> bool {
        self.given.iter().any(|given| given.id == id)
    }
}

fn arguments_of(section: &Section) -> Vec<Arg> {
    (section.flags)(Command::new("section")).get_arguments().cloned().collect()
}

impl Args for ServiceFlags {
    fn augment_args(mut command: Command) -> Command {
        for section in &SECTIONS {
            for argument in arguments_of(section) {
                if command.get_arguments().any(|known| known.get_id() == argument.get_id()) {
                    continue;
                }
                let hidden = SET_BY_UP.contains(&argument.get_id().as_str());
                command = command.arg(argument.help_heading(section.heading).hide(hidden));
            }
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServiceFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given: Vec<Given> = Vec::new();
        for section in &SECTIONS {
            for argument in arguments_of(section) {
                let id = argument.get_id().as_str();
                if matches.value_source(id) != Some(ValueSource::CommandLine) {
                    continue;
                }
                if SET_BY_UP.contains(&id) {
                    let flag = id.replace('_', "-");
                    let message =
                        format!("--{flag} is set by `stator up` itself; models are named by --model\n");
                    return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message));
                }
                if let Some(known) = given.iter_mut().find(|known| known.id == id) {
                    known.roles.extend(section.roles);
                } else if !NOT_ON_COMMAND_LINES.contains(&id) {
                    given.push(Given {
                        roles: section.roles.to_vec(),
                        id: id.to_owned(),
                        arguments: rewrite(&argument, matches),
                    });
                }
            }
        }
        Ok(Self {
            process: ProcessFlags::from_arg_matches(matches)?,
            ingress: IngressFlags::from_arg_matches(matches)?,
            given,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// `--flag=value`, once for each value.
fn rewrite(argument: &Arg, matches: &ArgMatches) -> Vec<OsString> {
    let flag = argument.get_long().unwrap_or(argument.get_id().as_str());
    let values = matches.get_raw(argument.get_id().as_str()).into_iter().flatten();
    values
        .map(|value| {
            let mut text = OsString::from(format!("--{flag}="));
            text.push(value);
            text
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<ServiceFlags, clap::Error> {
        let command = ServiceFlags::augment_args(Command::new("up").no_binary_name(true));
        ServiceFlags::from_arg_matches(&command.try_get_matches_from(line)?)
    }

    fn of(flags: &ServiceFlags, role: Role) -> Vec<String> {
        flags.of(role).map(|argument| argument.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn each_flag_reaches_those_it_concerns() {
        let line = ["--port", "8001", "--page-size", "32", "--log-level", "debug", "--disable-radix-cache"];
        let flags = parse(&line).unwrap();
        assert_eq!(
            of(&flags, Role::Decode),
            ["--log-level=debug", "--page-size=32", "--disable-radix-cache=true"]
        );
        assert_eq!(of(&flags, Role::Ingress), ["--log-level=debug", "--port=8001"]);
        assert_eq!(of(&flags, Role::Router), ["--log-level=debug"]);
        assert_eq!(flags.ingress.port, Some(8001));
        assert!(flags.has("page_size") && !flags.has("threads"));
    }

    #[test]
    fn secrets_stay_off_command_lines() {
        let line =
            ["--nats-url", "nats://user:secret@127.0.0.1:4222", "--api-key", "a,b", "--admin-key", "c"];
        let flags = parse(&line).unwrap();
        assert_eq!(flags.process.nats_url.as_ref().map(Vec::len), Some(1));
        let secret = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let expected = [secret("STATOR__PROCESS__ADMIN_KEY", "c"), secret("STATOR__INGRESS__API_KEY", "a,b")];
        assert_eq!(flags.secrets(), expected);
        assert!(Role::ALL.into_iter().all(|role| of(&flags, role).is_empty()));
    }

    #[test]
    fn what_up_sets_itself_cannot_be_given() {
        let error = parse(&["--model-path", "x"]).unwrap_err().to_string();
        assert!(error.contains("--model"), "{error}");
    }
}
