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

/// Of what engines share `stator up` tells each its part ([`super::shares`]).
const DEALT: [&str; 3] = ["threads", "device", "mem_fraction_static"];

/// Flags of one name that mean something else to each of several services: section, name, and the flag that sets it for
/// that section alone.
const SECTIONS_OWN: [(&str, &str, &str); 4] = [
    ("Ingress", "hold_when_empty", "ingress.hold-when-empty"),
    ("Router", "hold_when_empty", "router.hold-when-empty"),
    ("Engine", "max_queued_requests", "engine.max-queued-requests"),
    ("Router", "max_queued_requests", "router.max-queued-requests"),
];

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
    pub engine: EngineFlags,
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

impl Section {
    /// The flag that sets this argument here and nowhere else, if another section has a namesake of it.
    fn own(&self, argument: &Arg) -> Option<&'static str> {
        let is_it =
            |(heading, name, _): &&(&str, &str, _)| *heading == self.heading && argument.get_id() == name;
        SECTIONS_OWN.iter().find(is_it).map(|(.., flag)| *flag)
    }
}

/// The flag that sets an argument in all sections that have one of that name.
fn for_all(argument: Arg) -> Arg {
    let own = SECTIONS_OWN.iter().filter(|(_, name, _)| argument.get_id() == name);
    let own: Vec<String> = own.map(|(.., flag)| format!("--{flag}")).collect();
    argument
        .help(format!("Sets {} where they are not given", own.join(" and ")))
        .help_heading("Several services")
}

fn arguments_of(section: &Section) -> Vec<Arg> {
    (section.flags)(Command::new("section")).get_arguments().cloned().collect()
}

impl Args for ServiceFlags {
    fn augment_args(mut command: Command) -> Command {
        for section in &SECTIONS {
            for argument in arguments_of(section) {
                let own = section.own(&argument);
                if let Some(flag) = own {
                    command = command.arg(argument.clone().id(flag).long(flag).help_heading(section.heading));
                }
                if command.get_arguments().any(|known| known.get_id() == argument.get_id()) {
                    continue;
                }
                let hidden = SET_BY_UP.contains(&argument.get_id().as_str());
                let headed = match own {
                    Some(_) => for_all(argument),
                    None => argument.help_heading(section.heading),
                };
                command = command.arg(headed.hide(hidden));
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
                let own = section.own(&argument);
                let is_given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
                let Some(name) = own.into_iter().chain([id]).find(is_given) else { continue };
                if SET_BY_UP.contains(&id) {
                    let flag = id.replace('_', "-");
                    let message =
                        format!("--{flag} is set by `stator up` itself; models are named by --model\n");
                    return Err(clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message));
                }
                let known = given.iter_mut().find(|known| known.id == id);
                if let Some(known) = known.filter(|_| own.is_none()) {
                    known.roles.extend(section.roles);
                } else if !NOT_ON_COMMAND_LINES.contains(&id) && !DEALT.contains(&id) {
                    given.push(Given {
                        roles: section.roles.to_vec(),
                        id: id.to_owned(),
                        arguments: rewrite(&argument, name, matches),
                    });
                }
            }
        }
        Ok(Self {
            process: ProcessFlags::from_arg_matches(matches)?,
            ingress: IngressFlags::from_arg_matches(matches)?,
            engine: EngineFlags::from_arg_matches(matches)?,
            given,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// `--flag=value`, once for each value given under `name`.
fn rewrite(argument: &Arg, name: &str, matches: &ArgMatches) -> Vec<OsString> {
    let flag = argument.get_long().unwrap_or(argument.get_id().as_str());
    let values = matches.get_raw(name).into_iter().flatten();
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
        assert!(flags.has("page_size") && !flags.has("kv_transport"));
    }

    #[test]
    fn namesakes_are_set_each_by_itself_or_all_at_once() {
        let line = ["--max-queued-requests", "5", "--router.max-queued-requests", "7"];
        let flags = parse(&[&line[..], &["--ingress.hold-when-empty", "9"]].concat()).unwrap();
        assert_eq!(of(&flags, Role::Router), ["--max-queued-requests=7"]);
        for role in [Role::Prefill, Role::Decode] {
            assert_eq!(of(&flags, role), ["--max-queued-requests=5"]);
        }
        assert_eq!(of(&flags, Role::Ingress), ["--hold-when-empty=9"]);
        let flags = parse(&["--hold-when-empty", "3", "--engine.max-queued-requests", "4"]).unwrap();
        assert_eq!(of(&flags, Role::Ingress), ["--hold-when-empty=3"]);
        assert_eq!(of(&flags, Role::Router), ["--hold-when-empty=3"]);
        assert_eq!(of(&flags, Role::Decode), ["--max-queued-requests=4"]);
    }

    /// Of a new one it has to be said whether it means the same to all.
    #[test]
    fn flags_of_several_sections_mean_the_same_or_can_be_set_apart() {
        let same = ["model_path", "served_model_name", "context_length"];
        for section in &SECTIONS {
            for argument in arguments_of(section) {
                let id = argument.get_id().as_str();
                let is_here =
                    |section: &&Section| arguments_of(section).iter().any(|other| other.get_id() == id);
                let shared = SECTIONS.iter().filter(is_here).count() > 1 && !same.contains(&id);
                assert_eq!(section.own(&argument).is_some(), shared, "{} of {}", id, section.heading);
            }
        }
    }

    #[test]
    fn help_says_what_each_namesake_means_and_what_sets_all() {
        let mut command = ServiceFlags::augment_args(Command::new("up"));
        let wrapped = command.render_long_help().to_string();
        let help = wrapped.split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            "--router.max-queued-requests <MAX_QUEUED_REQUESTS>",
            "Requests that wait for their first step",
            "Requests of one model that the router holds",
            "Sets --engine.max-queued-requests and --router.max-queued-requests where they are not given",
        ] {
            assert!(help.contains(expected), "{expected} is not in\n{wrapped}");
        }
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
