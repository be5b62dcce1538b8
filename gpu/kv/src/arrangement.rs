//! Where the elements of keys and values lie in a page. An executor's layout has a name that says so; a receiver that
//! understands the name makes pages of its own of what others computed.

use std::{fmt, str::FromStr};

/// Element type of stored keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDtype {
    #[default]
    F16,
    Bf16,
    F32,
}

impl KvDtype {
    pub const ALL: [Self; 3] = [Self::F16, Self::Bf16, Self::F32];

    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// Positions of a group of keys, and what values are padded to multiples of ([`Order::Grouped`]).
pub const GROUP: usize = 16;
/// Widths of rows that executors use.
const WIDTHS: [u32; 2] = [64, 128];

/// In which order elements follow each other in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    /// Head by head the keys and then the values of that head: keys in groups of 16 positions, a group element by
    /// element, `[group][element][position]`; values position by position, padded to multiples of 16 elements.
    Grouped,
    /// All keys, then all values, `[head][position][width]`. In keys, element `i` of a row turns together with element
    /// `i + width / 2`.
    Rows { width: u32 },
}

/// What a layer of a page holds, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Arrangement {
    pub order: Order,
    pub dtype: KvDtype,
    pub kv_heads: u32,
    /// Elements of a key and of a value.
    pub head_dim: u32,
    /// Leading elements of a key that turn with its position, `i` together with `i + turning / 2`.
    pub turning: u32,
}

impl Arrangement {
    /// Every way in which the same keys and values may be laid out in pages of `page_size`.
    pub fn all_of(self, page_size: u32) -> impl Iterator<Item = Self> {
        let grouped = (page_size as usize).is_multiple_of(GROUP).then_some(Order::Grouped);
        let rows = WIDTHS.into_iter().filter(move |width| *width >= self.head_dim);
        let orders = grouped.into_iter().chain(rows.map(|width| Order::Rows { width }));
        orders.flat_map(move |order| KvDtype::ALL.map(|dtype| Self { order, dtype, ..self }))
    }

    /// Elements of a layer of a page, padding included.
    pub fn layer_elements(self, page_size: usize) -> usize {
        self.kv_heads as usize * page_size * (self.key_stride() + self.value_stride())
    }

    pub fn layer_bytes(self, page_size: usize) -> usize {
        self.layer_elements(page_size) * self.dtype.bytes()
    }

    /// Elements from the keys of a position to those of the next, if they lie together; as many as one takes, if not.
    fn key_stride(self) -> usize {
        match self.order {
            Order::Grouped => self.head_dim as usize,
            Order::Rows { width } => width as usize,
        }
    }

    /// Elements from a value to the next.
    pub fn value_stride(self) -> usize {
        match self.order {
            Order::Grouped => (self.head_dim as usize).next_multiple_of(GROUP),
            Order::Rows { width } => width as usize,
        }
    }

    /// Where the elements of a key and those of a value are in a layer, by their number in the model.
    pub(crate) fn places(self, page_size: usize, head: usize, position: usize) -> (Vec<usize>, Vec<usize>) {
        let (head_dim, heads) = (self.head_dim as usize, self.kv_heads as usize);
        let elements = 0..head_dim;
        match self.order {
            Order::Grouped => {
                let keys = head * page_size * (head_dim + self.value_stride());
                let (first, lane) = (position / GROUP * GROUP, position % GROUP);
                let value = keys + page_size * head_dim + position * self.value_stride();
                let key = keys + first * head_dim + lane;
                let key = elements.clone().map(|element| key + element * GROUP).collect();
                (key, elements.map(|element| value + element).collect())
            }
            Order::Rows { width } => {
                let width = width as usize;
                let key = (head * page_size + position) * width;
                let value = ((heads + head) * page_size + position) * width;
                let places = turning_places(head_dim, width, self.turning as usize);
                let key = places.into_iter().map(|place| key + place).collect();
                (key, elements.map(|element| value + element).collect())
            }
        }
    }
}

/// Where the elements of a key or query go in a row of `width`, in which element `i` turns together with element
/// `i + width / 2`: pairs keep their partner, elements that do not turn take what is left.
pub fn turning_places(elements: usize, width: usize, turning: usize) -> Vec<usize> {
    let (pairs, half) = (turning / 2, width / 2);
    let free = (pairs..half).chain(half + pairs..width);
    (0..pairs).chain(half..half + pairs).chain(free).take(elements).collect()
}

impl fmt::Display for Arrangement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { order, dtype, kv_heads, head_dim, turning } = self;
        write!(f, "{} {kv_heads}x{head_dim}, {turning} turning, ", dtype.name())?;
        match order {
            Order::Grouped => write!(f, "keys in groups of {GROUP}"),
            Order::Rows { width } => write!(f, "rows of {width}"),
        }
    }
}

/// A name that says nothing of where elements are.
#[derive(Debug, PartialEq, Eq)]
pub struct Opaque;

impl FromStr for Arrangement {
    type Err = Opaque;

    fn from_str(name: &str) -> Result<Self, Opaque> {
        let parse = || {
            let (dtype, rest) = name.split_once(' ')?;
            let (heads, rest) = rest.split_once(", ")?;
            let (kv_heads, head_dim) = heads.split_once('x')?;
            let (turning, order) = rest.split_once(" turning, ")?;
            Some(Self {
                order: match order.strip_prefix("rows of ") {
                    Some(width) => Order::Rows { width: width.parse().ok()? },
                    None => Order::Grouped,
                },
                dtype: KvDtype::ALL.into_iter().find(|known| known.name() == dtype)?,
                kv_heads: kv_heads.parse().ok()?,
                head_dim: head_dim.parse().ok()?,
                turning: turning.parse().ok()?,
            })
        };
        // Whatever is said otherwise means something else.
        parse().filter(|parsed| parsed.to_string() == name).ok_or(Opaque)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_no_other_is() {
        let shape = Arrangement {
            order: Order::Grouped,
            dtype: KvDtype::F16,
            kv_heads: 3,
            head_dim: 64,
            turning: 32,
        };
        let all: Vec<_> = shape.all_of(16).collect();
        assert_eq!(all.len(), 9, "three orders of three types");
        assert!(all.iter().all(|one| one.to_string().parse() == Ok(*one)));
        assert_eq!(shape.all_of(8).count(), 6, "groups of 16 positions do not fit");
        for other in ["sim", "", "f8 3x64, 32 turning, rows of 64", "f16 3x64, 32 turning, rows of +64"] {
            assert_eq!(other.parse::<Arrangement>(), Err(Opaque), "{other}");
        }
    }

    #[test]
    fn pairs_of_a_narrow_key_stay_partners_in_a_row() {
        assert_eq!(turning_places(6, 16, 6), [0, 1, 2, 8, 9, 10]);
        assert_eq!(
            turning_places(8, 8, 4),
            [0, 1, 4, 5, 2, 3, 6, 7],
            "what does not turn takes what is left"
        );
    }
}
