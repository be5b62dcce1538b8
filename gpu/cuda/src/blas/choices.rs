//! Algorithms that are better than those which the library proposes first, measured in steps of models on a card and printed
//! by `gpu library` of the tests. A running engine measures nothing, so that all of them compute alike.

use super::{Algorithm, Product};

/// What was found on a card.
#[derive(Debug)]
pub(super) struct Choices {
    gpu: &'static str,
    /// Of the library, major and minor, as in 1301 for 13.1.
    version: usize,
    rows: &'static [Row],
}

#[derive(Debug)]
struct Row {
    product: Product,
    algorithm: Algorithm,
}

impl Row {
    /// As many rows of x as were measured, or some less, which take as many tiles; more of prompts that are large anyway.
    fn is_for(&self, Product { m, n, k, wide }: Product) -> bool {
        let measured = self.product;
        let rows =
            if measured.m < LARGE { m <= measured.m && 4 * m > 3 * measured.m } else { 2 * m > measured.m };
        rows && (n, k, wide) == (measured.n, measured.k, measured.wide)
    }
}

/// Rows of x of a large prompt.
const LARGE: usize = 8192;

/// Sizes m, n and k; whether the product comes as f32; id, tile, stages, split, reduction, swizzle, custom option, inner and
/// cluster shape.
const fn row([m, n, k]: [usize; 3], wide: bool, numbers: [u16; 9]) -> Row {
    let [id, tile, stages, split, reduction, swizzle, custom, inner, cluster] = numbers;
    let algorithm = Algorithm {
        id: id as u32,
        tile: tile as u32,
        stages: stages as u32,
        split: split as u32,
        reduction: reduction as u32,
        swizzle: swizzle as u32,
        custom: custom as u32,
        inner,
        cluster,
    };
    Row { product: Product { m, n, k, wide }, algorithm }
}

const CHOICES: &[Choices] = &[Choices {
    gpu: "NVIDIA H100 80GB HBM3",
    version: 1301,
    rows: &[
        // Qwen3-0.6B: down at 256 rows, head at 128, QKV, O and down of prompts
        row([256, 1024, 3072], true, [66, 12, 35, 1, 0, 0, 0, 0, 2]),
        row([128, 151_936, 1024], true, [66, 20, 35, 1, 0, 0, 1, 0, 3]),
        row([8192, 4096, 1024], false, [66, 201, 35, 1, 0, 0, 2, 0, 5]),
        row([8192, 1024, 2048], true, [66, 20, 35, 1, 0, 0, 1, 0, 3]),
        row([8192, 1024, 3072], true, [66, 20, 35, 1, 0, 1, 1, 0, 3]),
        // Qwen3-8B: down at 256 rows, head at 128 and 256, QKV, O and down of prompts
        row([256, 4096, 12_288], true, [66, 135, 35, 1, 0, 0, 2, 0, 7]),
        row([128, 151_936, 4096], true, [66, 20, 35, 1, 0, 0, 1, 0, 3]),
        row([256, 151_936, 4096], true, [66, 31, 35, 1, 0, 1, 7, 0, 5]),
        row([8192, 6144, 4096], false, [66, 201, 35, 1, 0, 0, 2, 0, 5]),
        row([8192, 4096, 4096], true, [66, 24, 35, 1, 0, 1, 7, 0, 5]),
        row([8192, 4096, 12_288], true, [66, 24, 35, 1, 0, 1, 7, 0, 5]),
    ],
}];

impl Choices {
    /// For a GPU of this name and a version of the library.
    pub fn find(gpu: &str, version: usize) -> Option<&'static Self> {
        CHOICES.iter().find(|choices| choices.gpu == gpu && choices.version == version / 100)
    }

    /// The algorithm for a product, if one is known to be better than the library's first proposal.
    pub fn algorithm(&self, product: Product) -> Option<Algorithm> {
        self.rows.iter().find(|row| row.is_for(product)).map(|row| row.algorithm)
    }

    /// Products that they are for.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_for_its_card_its_version_and_about_its_rows() {
        let gpu = CHOICES[0].gpu;
        let choices = Choices::find(gpu, 130_105).unwrap();
        let found = |m| choices.algorithm(Product { m, n: 4096, k: 12_288, wide: true }).is_some();
        assert!([193, 224, 256].into_iter().all(found));
        assert!(![192, 257].into_iter().any(found));
        assert!(Choices::find("another card", 130_105).is_none() && Choices::find(gpu, 130_205).is_none());
    }
}
