//! What travels on the bus: subjects, ids, block identity and one file per conversation. No I/O.
//!
//! Bodies are MessagePack maps with field names ([`codec`]), so that a reader ignores fields it does not know.
//! The road of a request: [`generate`] (ingress to tokenizer), [`submit`] (tokenizer to router to engine),
//! [`frame`] (replies on the way back), [`control`] (cancel, attach, ping, drain), [`lease`] (who is alive),
//! [`kv`] (which blocks lie where), [`prefill`] (prompts computed elsewhere), [`pages`] (who takes whose).

pub mod block;
pub mod codec;
pub mod control;
pub mod envelope;
pub mod fault;
pub mod frame;
pub mod generate;
pub mod id;
pub mod input;
pub mod kv;
pub mod lease;
pub mod load;
pub mod pages;
pub mod prefill;
pub mod subject;
pub mod submit;
pub mod text;
pub mod tokens;

pub use envelope::Envelope;
pub use fault::{Fault, FaultCode};
pub use id::{Attempt, InstanceId, Namespace, Pool, RequestId, Role, RunId};
pub use tokens::TokenIds;
