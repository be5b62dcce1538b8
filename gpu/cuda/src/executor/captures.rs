//! Decode steps as graphs.

use std::collections::BTreeMap;

use super::{
    block::{Counts, Layout, Lists},
    forward::{Forward, Way},
    plan::Plan,
    slots::Slots,
};
use crate::{CudaError, Device, Graph, View};

/// Batch sizes whose decode step is captured, and most rows of one; a batch is filled up to the next one.
const BUCKETS: [usize; 17] = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 96, 128, 160, 192, 224];
const LAST_BUCKET: usize = 256;

/// Those for steps of up to `most` rows: where there are no more than are captured, each of them fits.
fn buckets(most: usize) -> impl Iterator<Item = usize> {
    let last = most.min(LAST_BUCKET);
    BUCKETS.into_iter().filter(move |&rows| rows < last).chain([last])
}

/// Captured steps, by their way through the layers and their rows.
#[derive(Debug, Default)]
pub(super) struct Captures {
    graphs: BTreeMap<(Way, usize), Graph>,
    /// Of the step of one row.
    launches: u64,
}

impl Captures {
    /// Captures steps of up to `most` rows, which are told what they are in `block`.
    pub fn record(
        device: &Device,
        forward: &Forward,
        slots: &Slots,
        block: View<'_, u32>,
        most: usize,
    ) -> Result<Self, CudaError> {
        let mut captures = Self::default();
        for rows in buckets(most) {
            for way in forward.ways(rows) {
                captures.add(device, forward, slots, block, way, rows)?;
            }
        }
        Ok(captures)
    }

    fn add(
        &mut self,
        device: &Device,
        forward: &Forward,
        slots: &Slots,
        block: View<'_, u32>,
        way: Way,
        rows: usize,
    ) -> Result<(), CudaError> {
        let counts = Counts::of_decode(rows);
        let layout = Layout::new(counts);
        let lists = Lists::new(block, &layout);
        let run = || forward.run(device, slots, lists, counts, way);
        // once in the open: the library's first call for a shape may allocate, which a capture forbids
        let mut idle = vec![0; layout.words()];
        Plan::default().write_padding(&mut idle, &layout);
        device.write(block, &idle)?;
        let before = device.launches();
        run()?;
        if rows == 1 {
            self.launches = device.launches() - before;
        }
        device.synchronize()?;
        self.graphs.insert((way, rows), Graph::record(device, run)?);
        Ok(())
    }

    /// The rows of the smallest captured step that a plan fits into, and its graph.
    pub fn fitting(&self, plan: &Plan, way: Way) -> Option<(usize, &Graph)> {
        if !plan.is_plain_decode() {
            return None;
        }
        let fitting = self.graphs.range((way, plan.counts.tokens)..=(way, usize::MAX)).next();
        fitting.map(|(&(_, rows), graph)| (rows, graph))
    }

    /// Launches of a decode step at batch 1.
    pub fn launches(&self) -> u64 {
        self.launches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bucket_is_what_slots_allow() {
        let last = |most| buckets(most).skip(1).collect::<Vec<_>>();
        assert!(last(1).is_empty());
        assert_eq!(last(3), [2, 3]);
        assert_eq!(last(100)[10..], [64, 96, 100]);
        assert_eq!(last(256), last(1000));
        assert_eq!(last(256)[15..], [224, 256]);
    }
}
