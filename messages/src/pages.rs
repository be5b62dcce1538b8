//! KV pages, and who takes whose.

use std::fmt;

/// What the pages of an engine are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages<'a> {
    /// In the words of `kv::PageLayout`.
    pub layout: &'a str,
    /// Of whoever computes them, if it is known.
    pub numerics_class: Option<&'a str>,
}

impl Pages<'_> {
    /// Whether they are of use to an engine that computes `own` and takes pages of the layouts in `accepts` whoever computed
    /// them.
    pub fn are_of_use(&self, own: &Self, accepts: &[String]) -> bool {
        self == own || accepts.iter().any(|layout| layout == self.layout)
    }
}

impl fmt::Display for Pages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.layout)?;
        match self.numerics_class {
            Some(class) => write!(f, ", computed by {class}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages<'a>(layout: &'a str, class: &'a str) -> Pages<'a> {
        Pages { layout, numerics_class: Some(class) }
    }

    #[test]
    fn an_engine_takes_what_it_computes_itself_and_what_it_accepts() {
        let (own, accepts) = (pages("f16", "cpu"), ["f16", "bf16"].map(str::to_owned));
        let takes = |theirs: Pages<'_>| (theirs.are_of_use(&own, &[]), theirs.are_of_use(&own, &accepts));
        assert_eq!(takes(pages("f16", "cpu")), (true, true));
        assert_eq!(takes(pages("f16", "gpu")), (false, true), "computed by another class");
        assert_eq!(takes(pages("bf16", "gpu")), (false, true), "and laid out otherwise");
        assert_eq!(takes(pages("f32", "cpu")), (false, false));
    }

    #[test]
    fn pages_are_told_with_who_computes_them() {
        assert_eq!(pages("f16", "cpu").to_string(), "f16, computed by cpu");
        assert_eq!(Pages { layout: "f16", numerics_class: None }.to_string(), "f16");
    }
}
