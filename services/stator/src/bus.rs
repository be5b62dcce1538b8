//! The tools' connection to NATS: to the cluster that flags, file or environment name, else to the local one.

use std::path::PathBuf;

use actors::{
    process::{ProcessFlags, ProcessSettings},
    settings::resolve,
};
use messages::Namespace;

use crate::up::home;

/// Which cluster a tool looks at.
#[derive(clap::Args)]
pub struct ClusterArgs {
    /// TOML file with settings; default: the one that a running `stator up` wrote
    #[arg(long, env = "STATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// NATS servers, comma-separated or repeated
    #[arg(long, value_delimiter = ',', value_name = "URL")]
    nats_url: Option<Vec<String>>,
    /// NATS credentials file
    #[arg(long, value_name = "FILE")]
    nats_credentials: Option<PathBuf>,
    /// First token of every subject [default: stator]
    #[arg(long)]
    namespace: Option<String>,
}

/// A tool's view of the bus.
pub struct Cluster {
    pub client: async_nats::Client,
    pub namespace: Namespace,
}

impl ClusterArgs {
    /// Connects once, without retries: the user waits.
    pub async fn connect(self) -> anyhow::Result<Cluster> {
        let settings = self.settings()?;
        let namespace: Namespace = settings.namespace.parse()?;
        let mut options = async_nats::ConnectOptions::new().name("stator tool");
        if let Some(path) = &settings.nats_credentials {
            options = options.credentials_file(path).await?;
        }
        let urls = match settings.nats_url.as_slice() {
            [] => vec!["nats://127.0.0.1:4222".to_owned()],
            urls => urls.to_vec(),
        };
        let servers: Vec<async_nats::ServerAddr> =
            urls.iter().map(|url| url.parse()).collect::<Result<_, _>>()?;
        let options = actors::bus::log_in(options, &servers);
        let client = options.connect(servers).await.map_err(|error| {
            anyhow::anyhow!(
                "no nats server answers ({error}); is a cluster up? name it with --nats-url, or with --config"
            )
        })?;
        Ok(Cluster { client, namespace })
    }

    fn settings(self) -> anyhow::Result<ProcessSettings> {
        let flags = ProcessFlags {
            nats_url: self.nats_url,
            nats_credentials: self.nats_credentials,
            namespace: self.namespace,
            ..ProcessFlags::default()
        };
        let settings = resolve(flags.clone(), self.config.as_deref())?;
        if !settings.nats_url.is_empty() || self.config.is_some() {
            return Ok(settings);
        }
        match home::running_cluster() {
            Some(file) => Ok(resolve(flags, Some(&file))?),
            None => Ok(settings),
        }
    }
}
