use cudarc::driver::{
    CudaGraph,
    sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
};

use crate::{CudaError, Device};

/// Launches recorded once and replayed as one. Keeps the addresses that it was recorded with: buffers must outlive it.
pub struct Graph(CudaGraph);

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

impl Graph {
    /// Records what `work` launches on the device's stream; nothing runs.
    pub fn record(device: &Device, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Self, CudaError> {
        let stream = device.stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let outcome = work();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0));
        outcome?;
        let graph = graph?.ok_or_else(|| CudaError::Shape("a graph of no launches".into()))?;
        graph.upload()?;
        Ok(Self(graph))
    }

    pub fn launch(&self) -> Result<(), CudaError> {
        Ok(self.0.launch()?)
    }
}
