mod behaviour;
mod fake;
mod properties;
mod world;
