use rand::Rng;

/// Costs to draw from; infinite ones are left out.
pub struct Pick<'a> {
    pub costs: &'a [f64],
    pub temperature: f64,
}

impl Pick<'_> {
    /// With temperature T the chance of cost c is proportional to `exp(-(c - least) / ((most - least) * T))`; at 0 it
    /// is the least cost, each of several equal ones as likely.
    pub fn draw<R: Rng>(&self, rng: &mut R) -> Option<usize> {
        let least = least(self.costs);
        if least == f64::INFINITY {
            return None;
        }
        let places = self.costs.iter().enumerate();
        if self.temperature <= 0.0 {
            return equal_chance(places.filter(|(_, cost)| **cost <= least).map(|(place, _)| place), rng);
        }
        let finite =
            || places.clone().map(|(place, cost)| (place, *cost)).filter(|(_, cost)| cost.is_finite());
        let most = finite().map(|(_, cost)| cost).reduce(f64::max)?;
        let scale = (most - least) * self.temperature;
        if scale <= 0.0 {
            return equal_chance(finite().filter(|(_, cost)| *cost <= least).map(|(place, _)| place), rng);
        }
        let chance = |cost: f64| (-(cost - least) / scale).exp();
        let mut left = rng.random::<f64>() * finite().map(|(_, cost)| chance(cost)).sum::<f64>();
        let drawn = finite().find(|(_, cost)| {
            left -= chance(*cost);
            left <= 0.0
        });
        drawn.or_else(|| finite().next_back()).map(|(place, _)| place)
    }
}

/// The least of many, in lanes that need not wait for each other; infinite if there is none.
fn least(costs: &[f64]) -> f64 {
    let (chunks, rest) = costs.as_chunks::<8>();
    let lower = |a: f64, b: f64| if b < a { b } else { a };
    let lanes = chunks.iter().fold([f64::INFINITY; 8], |mut lanes, chunk| {
        lanes.iter_mut().zip(chunk).for_each(|(lane, cost)| *lane = lower(*lane, *cost));
        lanes
    });
    lanes.iter().chain(rest).copied().fold(f64::INFINITY, lower)
}

fn equal_chance<R: Rng>(places: impl Iterator<Item = usize>, rng: &mut R) -> Option<usize> {
    let mut chosen = None;
    for (before, place) in places.enumerate() {
        if before == 0 || rng.random_range(0..=before) == 0 {
            chosen = Some(place);
        }
    }
    chosen
}
