use super::{Rate, Work};

/// Prompt tokens that a step beside sequences that are spared takes at least: a prompt goes on, however long steps become
/// by that.
const LEAST_SPARING_CHUNK: u32 = 4;
/// What remains of an old measurement with each new one: the noise of single steps is large in a difference.
const LONG_MEMORY: f64 = 0.95;
/// Steps with prompts after which one without is wanted, where others decode: only those tell what decoding takes.
const MIXED_AT_MOST: u32 = 16;

/// Learns how much longer prompts make steps that also decode.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    /// Steps that only decode.
    plain: Rate,
    /// Steps with prompts beside sequences that decode, since the last of those.
    mixed: u32,
    /// Prompt tokens in steps that decode nothing, fixed costs included; no more than any step has shown.
    alone: Rate,
    /// Prompt tokens in steps that also decode: what they add to [`Self::plain`], or seem to take away.
    beside: Rate,
    /// Most prompt tokens that lately went beside sequences that decode.
    proven: u32,
}

impl Stretch {
    /// Takes in a step that took so many seconds.
    pub fn observe(&mut self, work: Work, seconds: f64) {
        if work.prefill_tokens == 0 {
            self.plain.blend(seconds, 1, LONG_MEMORY);
            self.mixed = 0;
            return;
        }
        self.alone.at_most(seconds, work.prefill_tokens);
        if work.decodes == 0 {
            self.alone.add(seconds, work.prefill_tokens);
        } else if let Some(plain) = self.plain.get() {
            self.beside.blend(seconds - plain, work.prefill_tokens, LONG_MEMORY);
            self.proven = work.prefill_tokens.max(self.proven - self.proven / 8);
            self.plain.fade(LONG_MEMORY);
            self.mixed += 1;
        }
    }

    /// Seconds of a step that only decodes.
    pub fn plain(&self) -> Option<f64> {
        self.plain.get()
    }

    /// Prompt tokens that make a step about `stretch` times as long as one that only decodes. At least
    /// [`LEAST_SPARING_CHUNK`], and no more than twice what was tried lately: what many tokens cost shows only then. None at
    /// all if it must be seen first what decoding takes: where prompts never cease, that of long ago would be believed.
    pub fn budget(&self, stretch: f64) -> u32 {
        let Some(plain) = self.plain.get().filter(|_| self.mixed < MIXED_AT_MOST) else { return 0 };
        let Some(beside) = self.beside.get() else { return LEAST_SPARING_CHUNK };
        let added = plain * (stretch - 1.0).max(0.0);
        let tokens = added / beside.max(f64::MIN_POSITIVE);
        // Noise may make tokens look as if they cost nothing. What they cost alone bounds that, loosely: a share of fixed
        // costs is in there, which makes a few tokens look as dear as a step.
        let at_most =
            self.alone.get().map_or(f64::INFINITY, |alone| 2.0 * plain / alone.max(f64::MIN_POSITIVE));
        let tokens = tokens.min(at_most) as u32;
        tokens.min(self.proven.saturating_mul(2)).max(LEAST_SPARING_CHUNK)
    }
}
