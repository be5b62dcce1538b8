//! The edge: what stands between a socket and a route.

pub mod body;
pub mod departure;
pub mod gate;
pub mod keys;
pub mod label;
pub mod observe;
pub mod routing;
pub mod tls;
pub mod trace;
