mod contract;
mod fixtures;
mod invariance;
mod mutations;
mod rig;
mod smollm2;
