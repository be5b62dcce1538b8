/// What remains of an old measurement with each new one.
const MEMORY: f64 = 0.7;

/// A quotient of fading sums.
#[derive(Debug, Default)]
pub(super) struct Rate {
    seconds: f64,
    units: f64,
}

impl Rate {
    pub fn add(&mut self, seconds: f64, units: u32) {
        self.blend(seconds, units, MEMORY);
    }

    pub fn blend(&mut self, seconds: f64, units: u32, memory: f64) {
        self.seconds = self.seconds * memory + seconds;
        self.units = self.units * memory + f64::from(units);
    }

    /// Lets a new measurement count for more.
    pub fn fade(&mut self, memory: f64) {
        self.blend(0.0, 0, memory);
    }

    /// Forgets what it knew if that many units took less time than it says.
    pub fn at_most(&mut self, seconds: f64, units: u32) {
        if self.get().is_some_and(|rate| rate * f64::from(units) > seconds) {
            *self = Self { seconds, units: f64::from(units) };
        }
    }

    /// Seconds per unit.
    pub fn get(&self) -> Option<f64> {
        (self.units > 0.0).then(|| self.seconds / self.units)
    }
}
