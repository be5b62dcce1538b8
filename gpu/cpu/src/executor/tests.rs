mod contract;
mod fixtures;
mod fp8;
mod invariance;
mod mutations;
mod rig;
mod smollm2;
