use kv::turning_places;
use models::RopeSpec;

/// Where the elements of a query or key head go in the kernels' heads of `width` elements, in which element `i` turns
/// together with element `i + width / 2`: pairs keep their partner, elements that do not turn take what is left (their
/// angle is zero), the rest is zero. Scores do not change, since queries and keys are laid out alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeadLayout {
    places: Vec<usize>,
    pub width: usize,
}

impl HeadLayout {
    /// Heads of `elements` that turn as `rope` says, in `width`.
    pub fn rotated(elements: usize, width: usize, rope: &RopeSpec) -> Self {
        Self { places: turning_places(elements, width, rope.dim as usize), width }
    }

    /// Heads that keep their order: values.
    pub fn plain(elements: usize, width: usize) -> Self {
        Self { places: (0..elements).collect(), width }
    }

    /// Elements of a head of the model.
    pub fn elements(&self) -> usize {
        self.places.len()
    }

    /// Lays out whole heads of `unit` values an element (a weight matrix has its row length, a vector 1).
    pub fn spread<T: Copy + Default>(&self, heads: &[T], unit: usize) -> Vec<T> {
        let count = heads.len() / (self.elements() * unit);
        let mut out = vec![T::default(); count * self.width * unit];
        for (from, to) in
            heads.chunks_exact(self.elements() * unit).zip(out.chunks_exact_mut(self.width * unit))
        {
            for (element, &place) in from.chunks_exact(unit).zip(&self.places) {
                to[place * unit..][..unit].copy_from_slice(element);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use models::RopeScaling;

    use super::*;

    fn rope(dim: u32) -> RopeSpec {
        RopeSpec { theta: 1e4, dim, scaling: RopeScaling::None }
    }

    #[test]
    fn a_full_head_stays_as_it_is() {
        let layout = HeadLayout::rotated(64, 64, &rope(64));
        let head: Vec<u32> = (0..64).collect();
        assert_eq!(layout.spread(&head, 1), head);
    }

    #[test]
    fn pairs_of_a_narrow_head_stay_partners() {
        let spread = HeadLayout::rotated(6, 16, &rope(6)).spread(&[1, 2, 3, 11, 12, 13], 1);
        assert_eq!(spread, [1, 2, 3, 0, 0, 0, 0, 0, 11, 12, 13, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn elements_that_do_not_turn_take_what_is_left() {
        let spread = HeadLayout::rotated(8, 8, &rope(4)).spread(&[1, 2, 11, 12, 5, 6, 7, 8], 1);
        assert_eq!(spread, [1, 2, 5, 6, 11, 12, 7, 8]);
    }

    #[test]
    fn rows_of_a_matrix_move_whole() {
        let spread = HeadLayout::plain(1, 2).spread(&[1, 2, 3, 4], 2);
        assert_eq!(spread, [1, 2, 0, 0, 3, 4, 0, 0]);
    }
}
