//! The HTTP front of stator: reads and checks requests, sends them on the road, writes answers.
//!
//! A request comes in at the [`edge`], is understood by [`api`], travels the [`road`], and is written by [`answer`];
//! [`routes`] tie the four together.

mod answer;
mod api;
mod edge;
mod figures;
mod front;
mod road;
mod routes;
mod server;
mod service;
mod settings;

pub use service::run;
pub use settings::{IngressFlags, IngressSettings};
