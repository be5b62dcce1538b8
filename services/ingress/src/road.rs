//! The client side of the road of a request: hand it over, put its frames together, repair what breaks, cancel what
//! nobody waits for.
//!
//! [`passage`] is the state machine of one request, [`strand`] that of one choice, [`repair`] decides about trouble:
//! all three are pure. [`drive`] is the task around them, [`desk`] the reader of frames, [`outlet`] the bounded
//! queue to the writer of the answer.

mod cancel;
mod desk;
mod dispatch;
mod drive;
mod holders;
mod journey;
pub mod outlet;
mod pace;
mod passage;
mod repair;
mod strand;
mod survey;
mod trip;

use std::{future::Future, pin::Pin, sync::Arc};

use messages::{
    Fault, Pool,
    generate::{Generate, ToTokenizer},
    lease::ModelCard,
    text::Answer,
};

pub use desk::Desk;
pub use journey::Journey;
pub use outlet::{Backlog, Event, Manner};
pub use survey::Survey;
pub use trip::Passenger;

/// What the HTTP routes need of the cluster.
pub trait Road: Send + Sync + 'static {
    /// Sends one request for each prompt on its way.
    fn set_out(&self, prompts: Vec<Generate>, passenger: Passenger, manner: Manner) -> Journey;

    /// Asks a tokenizer of the pool.
    fn ask(&self, pool: &Pool, question: ToTokenizer)
    -> Pin<Box<dyn Future<Output = Result<Answer, Fault>>>>;

    /// The model of that name, also for some minutes after the last of its instances is gone.
    fn model(&self, name: &str) -> Option<Arc<ModelCard>>;

    /// All served models, by name.
    fn models(&self) -> Vec<Arc<ModelCard>>;

    /// What lives in the cluster.
    fn survey(&self) -> Survey;

    /// Takes nothing new.
    fn is_draining(&self) -> bool;

    /// Renders this process's metrics.
    fn metrics(&self) -> String;
}
