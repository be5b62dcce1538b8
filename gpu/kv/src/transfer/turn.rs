/// A slot of the grant, as far as the writer knows.
pub(super) struct Turn {
    /// The page it is for.
    pub page: u32,
    /// By layer.
    pub pushed: Vec<bool>,
    /// Layers not pushed.
    pub missing: u32,
    /// Where layers travel on the connection: those that wait to be sent, the first of them being `run_from`.
    pub run: Vec<u8>,
    pub run_from: u32,
}

impl Turn {
    pub fn new(page: u32, layers: u32) -> Self {
        let pushed = vec![false; layers as usize];
        Self { page, pushed, missing: layers, run: Vec::new(), run_from: 0 }
    }

    /// Makes way for the page that uses the slot next.
    pub fn turn_to(&mut self, page: u32) {
        self.page = page;
        self.missing = self.pushed.len() as u32;
        self.pushed.fill(false);
    }

    /// Notes layers as pushed.
    pub fn note(&mut self, layer: u32, count: u32) {
        self.pushed[layer as usize..][..count as usize].fill(true);
        self.missing -= count;
    }
}
