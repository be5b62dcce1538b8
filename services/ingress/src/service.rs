use std::{process::ExitCode, sync::Arc, time::Duration};

use actix_web::{dev::ServerHandle, web::Data};
use actors::{
    Context,
    frames::read_frames,
    process::{self, ProcessSettings, Running, Spec},
};
use messages::{Fault, FaultCode, Pool, Role, frame::TextDelta};

use crate::{
    front::Front,
    road::{Backlog, Desk},
    server,
    settings::IngressSettings,
};

/// Room on the bus for what a request carries beside its body.
const BUS_MARGIN: usize = 64 << 10;
/// How often a drain looks whether anything is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long HTTP connections may take to close.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The life of an ingress process.
pub fn run(settings: IngressSettings, process: ProcessSettings) -> ExitCode {
    let spec = Spec { role: Role::Ingress, pool: Pool::http(), card: None };
    let admin_key = process.admin_key.clone();
    process::run(spec, process, |context| start(context, settings, admin_key))
}

async fn start(
    context: Context,
    settings: IngressSettings,
    admin_key: Option<String>,
) -> anyhow::Result<Service> {
    let backlog = Backlog::new(settings.stream_backlog_bytes, settings.total_backlog_bytes);
    let desk = Desk::new(context.clone(), Duration::from_secs(settings.hold_when_empty), backlog);
    read_frames::<TextDelta, _>(&context.bus, &context.me.instance, desk.clone()).await?;
    tokio::spawn(desk.clone().keep());

    let bus_limit = context.bus.max_payload().saturating_sub(BUS_MARGIN);
    let front = Data::new(Front::new(settings, admin_key.as_deref(), Arc::new(desk.clone()), bus_limit)?);
    tokio::spawn(front.sentry.clone().patrol());
    // Who is asked before would take instances that live for unknown ones.
    context.directory.complete().await;
    let (server, address, secure) = server::listen(front.clone())?;
    let handle = server.handle();
    actix_rt::spawn(server);
    let scheme = if secure { "https" } else { "http" };
    tracing::info!(url = %format!("{scheme}://{address}"), "listening");
    context.life.ready(|_| {}).await;
    Ok(Service { desk, front, handle })
}

struct Service {
    desk: Arc<Desk>,
    front: Data<Front>,
    handle: ServerHandle,
}

impl Running for Service {
    async fn idle(&self) {
        while !self.front.gate.is_empty() || self.desk.live() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.handle.stop(true)).await;
    }

    fn abort(&self) {
        self.desk.fail_all(&Fault::new(
            FaultCode::Draining,
            "the server shut down before the answer was complete",
        ));
    }
}
