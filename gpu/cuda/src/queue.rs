use std::{cell::Cell, sync::Arc};

use cudarc::driver::{CudaContext, CudaStream};

use crate::{CudaError, launch::Begins};

/// Launches that follow each other.
#[derive(Debug)]
pub(crate) struct Queue {
    stream: Arc<CudaStream>,
    /// Nothing was launched since it parted from another queue or met one: an early launch would not wait for all before it.
    at_junction: Cell<bool>,
}

impl Queue {
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        Ok(Self { stream: context.new_stream()?, at_junction: Cell::new(false) })
    }

    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// What is started next on either begins once all before it on this queue has ended.
    pub fn part(&self, other: &Self) -> Result<(), CudaError> {
        other.stream.join(&self.stream)?;
        self.at_junction.set(true);
        other.at_junction.set(true);
        Ok(())
    }

    /// What is started next on this queue begins once all before it on both has ended.
    pub fn meet(&self, other: &Self) -> Result<(), CudaError> {
        self.stream.join(&other.stream)?;
        self.at_junction.set(true);
        Ok(())
    }

    /// When a launch begins that may begin at `wanted`; asked once for each.
    pub fn next(&self, wanted: Begins) -> Begins {
        if self.at_junction.replace(false) && wanted == Begins::Early { Begins::Alone } else { wanted }
    }
}
