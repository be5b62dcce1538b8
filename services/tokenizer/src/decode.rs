//! Token ids to text as they come, and where a choice ends.
//!
//! [`Pieces`] knows the bytes of every token, [`TextStream`] joins them to whole characters, [`StopStrings`] finds
//! where a choice ends, and [`Choice`] does all of it for the frames of one choice.

mod choice;
mod pieces;
mod stop;
mod stream;
mod utf8;

pub use choice::{Choice, Outcome, Settings};
pub use pieces::Pieces;
pub use stop::StopStrings;
pub use stream::TextStream;

#[cfg(test)]
mod tests;
