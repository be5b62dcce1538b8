#![allow(clippy::unwrap_used, reason = "a test that unwraps fails with the place")]

mod behaviour;
mod fake;
mod properties;
mod world;
