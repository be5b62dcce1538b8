//! The life of a tokenizer process.

use std::{process::ExitCode, sync::Arc, time::Duration};

use actors::{
    frames, lane,
    process::{self, ProcessSettings, Running, Spec},
};
use messages::{Role, frame::TokenDelta};

use crate::{actor::TokenizerActor, model::Model, settings::TokenizerSettings};

/// How often a drain looks whether any request is left.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Exit code of settings or model files that will not work the next time either.
const UNUSABLE: u8 = 2;

/// Serves one model until the process is told to stop.
pub fn run(settings: TokenizerSettings, process: ProcessSettings) -> ExitCode {
    let model = match Model::load(&settings) {
        Ok(model) => model,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(UNUSABLE);
        }
    };
    let card = model.card.clone();
    let spec = Spec { role: Role::Tokenizer, pool: card.pool(), card: Some(card) };
    process::run(spec, process, |context| async move {
        let (name, fast) = (model.card.name.clone(), model.encodes_fast());
        let actor = TokenizerActor::start(context.clone(), model, &settings)?;
        frames::read_frames::<TokenDelta, _>(&context.bus, &context.me.instance, actor.clone()).await?;
        tokio::spawn(actor.clone().keep());
        lane::serve(&context, actor.clone()).await?;
        context.life.ready(|_| {}).await;
        tracing::info!(model = name, fast_encoder = fast, "tokenizer serves");
        Ok(Service { actor })
    })
}

struct Service {
    actor: Arc<TokenizerActor>,
}

impl Running for Service {
    /// Streams that outlast the grace are taken over by another tokenizer once this one's lease is gone.
    async fn idle(&self) {
        while !self.actor.is_idle() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
