use super::ledger::Memory;

/// Where the layers of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bodies {
    /// Behind it, on the connection.
    Inline,
    /// In their slot already: the writer maps it.
    Shared,
    /// The same, in device memory.
    Device,
}

impl Bodies {
    /// Whether the writer stores without the receiver's help.
    pub fn are_stored(self) -> bool {
        self != Self::Inline
    }

    pub fn memory(self) -> Memory {
        if self == Self::Device { Memory::Device } else { Memory::Host }
    }
}
