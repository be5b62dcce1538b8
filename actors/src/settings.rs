//! One layered scheme of configuration: defaults < TOML file < `STATOR__SECTION__KEY` environment < flags.
//!
//! [`settings!`](crate::settings!) declares a section once and makes two types of it: the resolved settings and the
//! flags, in which every field is optional so that each layer says only what it means to.

use std::path::Path;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// The sections that a configuration file may have.
pub const SECTIONS: [&str; 6] = ["process", "ingress", "tokenizer", "router", "engine", "up"];

/// A layer that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("configuration: {0}")]
pub struct SettingsError(String);

/// One section's partial settings: the flags, and what file and environment say.
pub trait Layer: Sized + Default + DeserializeOwned {
    const SECTION: &'static str;
    type Resolved;

    /// `self` where it says something, else `below`.
    #[must_use]
    fn over(self, below: Self) -> Self;

    /// Defaults for what no layer says.
    fn resolve(self) -> Self::Resolved;
}

/// Resolves one section from all layers.
///
/// # Errors
/// If the file cannot be read, or file or environment name an unknown key or give a value of the wrong type.
pub fn resolve<L: Layer>(flags: L, file: Option<&Path>) -> Result<L::Resolved, SettingsError> {
    Ok(layered(flags, file)?.resolve())
}

/// What all layers together say of one section, without its defaults.
///
/// # Errors
/// As of [`resolve`].
pub fn layered<L: Layer>(flags: L, file: Option<&Path>) -> Result<L, SettingsError> {
    let mut builder = config::Config::builder();
    if let Some(path) = file {
        builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
    }
    let environment = config::Environment::with_prefix("STATOR").prefix_separator("__").separator("__");
    let layered = builder.add_source(environment.try_parsing(true)).build();
    let layered = layered.map_err(|error| SettingsError(error.to_string()))?;
    let mut sections: std::collections::HashMap<String, config::Value> =
        layered.try_deserialize().map_err(|error| SettingsError(error.to_string()))?;
    if let Some(unknown) = sections.keys().find(|name| !SECTIONS.contains(&name.as_str())) {
        return Err(SettingsError(format!(
            "unknown section '{unknown}'; sections are {}",
            SECTIONS.join(", ")
        )));
    }
    let below = match sections.remove(L::SECTION) {
        Some(section) => section
            .try_deserialize::<L>()
            .map_err(|error| SettingsError(format!("section '{}': {error}", L::SECTION)))?,
        None => L::default(),
    };
    Ok(flags.over(below))
}

/// The help text of a setting with its default, which is given as source text.
#[doc(hidden)]
pub fn help(about: &str, default: &str) -> String {
    let literal = default.trim_end_matches(".to_owned()");
    let shown = match literal.split_once("::from(").map(|(_, argument)| argument.trim_end_matches(')')) {
        Some(argument) => argument.trim_matches('"').to_owned(),
        None if literal.starts_with('"') => literal.trim_matches('"').to_owned(),
        None if literal.starts_with(|c: char| c.is_ascii_digit()) => literal.replace('_', ""),
        None => kebab(literal.rsplit("::").next().unwrap_or(literal)),
    };
    format!("{} [default: {shown}]", about.trim())
}

/// `LeastLoaded` as `least-loaded`.
fn kebab(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// Reads a list from a list, or from comma-separated text (an environment variable).
#[doc(hidden)]
pub fn list<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum ListOrText {
        List(Vec<String>),
        Text(String),
    }
    let items = match Option::<ListOrText>::deserialize(deserializer)? {
        None => return Ok(None),
        Some(ListOrText::List(items)) => items,
        Some(ListOrText::Text(text)) => text.split(',').map(|item| item.trim().to_owned()).collect(),
    };
    let parsed: Result<Vec<T>, D::Error> =
        items.iter().map(|item| item.parse().map_err(serde::de::Error::custom)).collect();
    parsed.map(Some)
}

/// Reads a setting that is told as one word.
///
/// # Errors
/// What its parser says of the word.
pub fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// Declares a setting that is one of a few words.
///
/// ```
/// actors::choices! {
///     /// How much the example says.
///     pub enum Volume {
///         Low = "low",
///         High = "high",
///     }
/// }
/// assert_eq!("high".parse(), Ok(Volume::High));
/// assert_eq!("loud".parse::<Volume>(), Err("'loud' is none of low, high".to_owned()));
/// ```
#[macro_export]
macro_rules! choices {
    ($(#[$about:meta])+ pub enum $name:ident { $($(#[$doc:meta])* $choice:ident = $word:literal,)+ }) => {
        $(#[$about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $choice,)+ }

        impl $name {
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$choice),+];

            pub fn name(self) -> &'static str {
                match self { $(Self::$choice => $word,)+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                let known = Self::ALL.into_iter().find(|choice| choice.name() == word);
                known.ok_or_else(|| format!("'{word}' is none of {}", Self::ALL.map(Self::name).join(", ")))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::settings::word(deserializer)
            }
        }
    };
}

/// Declares a section of the configuration.
///
/// ```
/// actors::settings! {
///     /// How the example works.
///     pub struct ExampleSettings, ExampleFlags in "up" {
///         /// Port to listen on.
///         value port: u16 = 8000;
///         /// Certificate, if any.
///         optional cert: std::path::PathBuf;
///         /// Keys; may be repeated.
///         list key: String;
///         /// Say less.
///         switch quiet;
///     }
/// }
/// let flags = ExampleFlags { port: Some(1), ..Default::default() };
/// let settings = actors::settings::resolve(flags, None).expect("valid");
/// assert_eq!((settings.port, settings.quiet), (1, false));
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $about:expr])*
        pub struct $resolved:ident, $flags:ident in $section:literal { $($body:tt)* }
    ) => {
        $crate::settings!(@munch [$(#[doc = $about])*] $resolved $flags $section
            {} {} {} {} $($body)*);
    };
    (@munch $about:tt $resolved:ident $flags:ident $section:literal
        {$($p:tt)*} {$($r:tt)*} {$($o:tt)*} {$($d:tt)*}
        $(#[doc = $doc:expr])+ value $name:ident : $ty:ty = $default:expr; $($rest:tt)*
    ) => {
        $crate::settings!(@munch $about $resolved $flags $section
            {$($p)* #[arg(long, help = $crate::settings::help(concat!($($doc),+), stringify!($default)))]
                pub $name: Option<$ty>,}
            {$($r)* $(#[doc = $doc])+ pub $name: $ty,}
            {$($o)* $name,}
            {$($d)* ($name, |given: Option<$ty>| given.unwrap_or_else(|| $default)),}
            $($rest)*);
    };
    (@munch $about:tt $resolved:ident $flags:ident $section:literal
        {$($p:tt)*} {$($r:tt)*} {$($o:tt)*} {$($d:tt)*}
        $(#[doc = $doc:expr])+ optional $name:ident : $ty:ty; $($rest:tt)*
    ) => {
        $crate::settings!(@munch $about $resolved $flags $section
            {$($p)* #[arg(long, help = concat!($($doc),+))] pub $name: Option<$ty>,}
            {$($r)* $(#[doc = $doc])+ pub $name: Option<$ty>,}
            {$($o)* $name,}
            {$($d)* ($name, |given: Option<$ty>| given),}
            $($rest)*);
    };
    (@munch $about:tt $resolved:ident $flags:ident $section:literal
        {$($p:tt)*} {$($r:tt)*} {$($o:tt)*} {$($d:tt)*}
        $(#[doc = $doc:expr])+ list $name:ident : $ty:ty; $($rest:tt)*
    ) => {
        $crate::settings!(@munch $about $resolved $flags $section
            {$($p)* #[arg(long, value_delimiter = ',', help = concat!($($doc),+))]
                #[serde(default, deserialize_with = "actors::settings::list")] pub $name: Option<Vec<$ty>>,}
            {$($r)* $(#[doc = $doc])+ pub $name: Vec<$ty>,}
            {$($o)* $name,}
            {$($d)* ($name, |given: Option<Vec<$ty>>| given.unwrap_or_default()),}
            $($rest)*);
    };
    (@munch $about:tt $resolved:ident $flags:ident $section:literal
        {$($p:tt)*} {$($r:tt)*} {$($o:tt)*} {$($d:tt)*}
        $(#[doc = $doc:expr])+ switch $name:ident; $($rest:tt)*
    ) => {
        $crate::settings!(@munch $about $resolved $flags $section
            {$($p)* #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL",
                help = concat!($($doc),+, " [default: false]"))] pub $name: Option<bool>,}
            {$($r)* $(#[doc = $doc])+ pub $name: bool,}
            {$($o)* $name,}
            {$($d)* ($name, |given: Option<bool>| given.unwrap_or(false)),}
            $($rest)*);
    };
    (@munch [$(#[doc = $about:expr])*] $resolved:ident $flags:ident $section:literal
        {$($p:tt)*} {$($r:tt)*} {$($o:ident,)*} {$(($name:ident, $default:expr),)*}
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone)]
        pub struct $resolved { $($r)* }

        /// The same, every field optional: one layer of the configuration.
        #[derive(Debug, Clone, Default, clap::Args, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $flags { $($p)* }

        impl $crate::settings::Layer for $flags {
            const SECTION: &'static str = $section;
            type Resolved = $resolved;

            fn over(self, below: Self) -> Self {
                Self { $($o: self.$o.or(below.$o),)* }
            }

            fn resolve(self) -> $resolved {
                $resolved { $($name: ($default)(self.$name),)* }
            }
        }

        impl Default for $resolved {
            fn default() -> Self {
                $crate::settings::Layer::resolve($flags::default())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::help;

    #[test]
    fn defaults_are_shown_as_one_would_type_them() {
        let shown = |default| help(" About.", default);
        assert_eq!(shown("\"127.0.0.1\".to_owned()"), "About. [default: 127.0.0.1]");
        assert_eq!(shown("PathBuf::from(\"nats-server\")"), "About. [default: nats-server]");
        assert_eq!(shown("Policy::LeastLoaded"), "About. [default: least-loaded]");
        assert_eq!(shown("8_388_608"), "About. [default: 8388608]");
        assert_eq!(shown("-1.5"), "About. [default: -1.5]");
    }
}
