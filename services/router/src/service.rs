use std::{process::ExitCode, sync::Arc, time::Duration};

use actors::{
    lane,
    process::{self, ProcessSettings, Running, Spec},
};
use messages::{Pool, Role, block::ClusterKey};

use crate::{actor::RouterActor, settings::RouterSettings};

/// How often a drain looks whether anything is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The life of a router process.
pub fn run(settings: RouterSettings, process: ProcessSettings) -> ExitCode {
    let spec = Spec { role: Role::Router, pool: Pool::routers(), card: None };
    let key = ClusterKey::derive(&process.cluster_key);
    process::run(spec, process, |context| async move {
        let actor = RouterActor::new(context.clone(), settings, key)?;
        let explains = actor.clone();
        context.pages.add("decisions", move |name| explains.decisions_about(name));
        actor.clone().hear().await?;
        tokio::spawn(actor.clone().keep());
        // Who is asked before would take instances that live for unknown ones.
        context.directory.complete().await;
        lane::serve(&context, actor.clone()).await?;
        context.life.ready(|_| {}).await;
        Ok(Service { actor })
    })
}

struct Service {
    actor: Arc<RouterActor>,
}

impl Running for Service {
    async fn idle(&self) {
        while !self.actor.is_idle() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn abort(&self) {
        self.actor.hand_back();
    }
}
