//! One prompt that another engine computes, as its decode engine sees it: how far it is, and when to stop waiting.
//!
//! Pure: news and the clock come in, a verdict comes out. Whatever has landed is kept, so taking a prompt back costs
//! nothing but what has not come.

use std::time::{Duration, Instant};

use scheduler::Landing;

/// A prefill engine that says nothing for this long is waited for no more; it speaks four times a second.
pub const SILENCE: Duration = Duration::from_millis(600);
/// How long a prompt waits for transfer slots.
pub const NO_SLOTS: Duration = Duration::from_secs(2);
/// How long a prompt that is computed waits for the next of its blocks.
pub const STALLED: Duration = Duration::from_secs(2);
/// Computing here must seem this much faster, and by this margin, before a prompt is taken back from who has begun.
const FASTER: u32 = 2;
const MARGIN: Duration = Duration::from_millis(100);

/// What computing the rest of a prompt here would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Here {
    pub takes: Duration,
    /// How much longer it may take elsewhere, because others here are spared by that.
    pub patience: Duration,
}

impl Here {
    fn is_better(&self, elsewhere: Duration) -> bool {
        elsewhere > self.takes * FASTER + MARGIN + self.patience
    }
}

/// What decode hears of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Blocks `held..wanted` are missing; a prefill engine is asked for them.
    Asked {
        held: u32,
        wanted: u32,
    },
    /// The prefill engine has it and will be done after this time; none if all is computed.
    Going {
        remaining: Duration,
    },
    /// Slots are wanted and there were some, or none.
    Slots {
        lent: bool,
    },
    /// A block has come over and waits for its turn to land.
    Came,
    /// That many blocks have come over in all; their sender has nothing more to say.
    Arrived {
        blocks: u32,
    },
    Landed(Landing),
    /// No more will come.
    Broken(Why),
    /// Time has passed.
    Tick,
}

/// Why a prompt was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Refused,
    Unanswered,
    Silent,
    Slow,
    /// Its device or the transfer failed.
    Failed,
    /// It will not do this task, for reasons of the task or because it is going away.
    GivenUp,
    Gone,
    NoSlots,
    Stalled,
    NoRoom,
    TransferBroke,
}

impl Why {
    /// As metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Failed => "failed",
            Self::GivenUp => "given_up",
            Self::Gone => "gone",
            Self::NoSlots => "no_slots",
            Self::Stalled => "stalled",
            Self::NoRoom => "no_room",
            Self::TransferBroke => "transfer_broke",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Wait,
    /// Everything has landed.
    Done,
    /// Compute the rest here.
    TakeBack(Why),
}

#[derive(Debug)]
pub struct Handover {
    pub began: Instant,
    heard: Instant,
    held: u32,
    wanted: u32,
    came: u32,
    landed: u32,
    /// Everything has come over.
    arrived: bool,
    /// When a block moved last, or none was to be expected.
    moved: Instant,
    /// Since when slots were wanted and not to be had.
    without_slots: Option<Instant>,
}

impl Handover {
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            heard: now,
            held: 0,
            wanted: 0,
            came: 0,
            landed: 0,
            arrived: false,
            moved: now,
            without_slots: None,
        }
    }

    /// Blocks that the prefill engine is to send.
    pub fn missing(&self) -> u32 {
        self.wanted - self.held
    }

    /// The first of them.
    pub fn first(&self) -> u32 {
        self.held
    }

    /// Blocks that have not landed.
    pub fn left(&self) -> u32 {
        self.missing() - self.landed
    }

    /// Whether blocks have come over that wait here: they hold up those that follow.
    pub fn is_behind(&self) -> bool {
        self.came > self.landed
    }

    /// Takes news. `here` is what computing what is left would mean here, if that is known.
    pub fn hear(&mut self, news: News, here: Option<Here>, now: Instant) -> Verdict {
        if news != News::Tick {
            self.heard = now;
        }
        match news {
            News::Asked { held, wanted } => {
                (self.held, self.wanted) = (held, wanted);
                if self.missing() == 0 { Verdict::Done } else { Verdict::Wait }
            }
            News::Going { remaining } if here.is_some_and(|here| here.is_better(remaining)) => {
                Verdict::TakeBack(Why::Slow)
            }
            News::Going { remaining } => {
                if !remaining.is_zero() {
                    self.moved = now;
                }
                Verdict::Wait
            }
            News::Slots { lent } => {
                self.moved = now;
                self.without_slots = if lent { None } else { self.without_slots.or(Some(now)) };
                Verdict::Wait
            }
            News::Landed(Landing::Refused) => Verdict::TakeBack(Why::NoRoom),
            News::Came => {
                (self.came, self.moved) = (self.came + 1, now);
                Verdict::Wait
            }
            News::Landed(Landing::Taken) => {
                (self.landed, self.moved) = (self.landed + 1, now);
                Verdict::Wait
            }
            News::Landed(Landing::Complete) => Verdict::Done,
            News::Broken(why) => Verdict::TakeBack(why),
            News::Arrived { blocks } => {
                self.arrived = blocks >= self.missing();
                Verdict::Wait
            }
            News::Tick if self.arrived && self.came >= self.missing() => Verdict::Wait,
            News::Tick if now.duration_since(self.heard) > SILENCE => Verdict::TakeBack(Why::Silent),
            News::Tick if self.without_slots.is_some_and(|since| now.duration_since(since) > NO_SLOTS) => {
                Verdict::TakeBack(Why::NoSlots)
            }
            News::Tick if !self.is_behind() && now.duration_since(self.moved) > STALLED => {
                Verdict::TakeBack(Why::Stalled)
            }
            News::Tick => Verdict::Wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const COMPUTED: News = News::Going { remaining: Duration::ZERO };

    fn asked(start: Instant) -> Handover {
        let mut handover = Handover::new(start);
        assert_eq!(handover.hear(News::Asked { held: 2, wanted: 5 }, None, start), Verdict::Wait);
        handover
    }

    #[test]
    fn it_is_done_when_the_last_block_has_landed() {
        let now = Instant::now();
        let mut handover = asked(now);
        for _ in 0..2 {
            assert_eq!(handover.hear(News::Landed(Landing::Taken), None, now), Verdict::Wait);
        }
        assert_eq!((handover.first(), handover.missing(), handover.left()), (2, 3, 1));
        assert_eq!(handover.hear(News::Landed(Landing::Complete), None, now), Verdict::Done);
    }

    #[test]
    fn a_prompt_that_is_cached_already_waits_for_nobody() {
        let now = Instant::now();
        let news = News::Asked { held: 5, wanted: 5 };
        assert_eq!(Handover::new(now).hear(news, None, now), Verdict::Done);
    }

    #[test]
    fn silence_ends_the_wait_and_any_news_prolongs_it() {
        let start = Instant::now();
        let mut handover = asked(start);
        assert_eq!(handover.hear(News::Tick, None, start + SILENCE), Verdict::Wait);
        let going = News::Going { remaining: MS };
        assert_eq!(handover.hear(going, None, start + SILENCE), Verdict::Wait);
        assert_eq!(handover.hear(News::Tick, None, start + 2 * SILENCE), Verdict::Wait);
        let late = start + 2 * SILENCE + MS;
        assert_eq!(handover.hear(News::Tick, None, late), Verdict::TakeBack(Why::Silent));
    }

    #[test]
    fn once_all_blocks_have_come_over_silence_means_nothing() {
        let start = Instant::now();
        let silent = Verdict::TakeBack(Why::Silent);
        for (came, blocks, verdict) in [(2, 2, silent), (2, 3, silent), (3, 3, Verdict::Wait)] {
            let mut handover = asked(start);
            for _ in 0..came {
                handover.hear(News::Came, None, start);
            }
            assert_eq!(handover.hear(News::Arrived { blocks }, None, start), Verdict::Wait);
            let told = handover.hear(News::Tick, None, start + 2 * SILENCE);
            assert_eq!(told, verdict, "{came} came and {blocks} were sent of 3");
        }
    }

    #[test]
    fn it_is_taken_back_only_when_computing_here_is_clearly_faster() {
        let now = Instant::now();
        let mut handover = asked(now);
        let here = Some(Here { takes: 100 * MS, patience: Duration::ZERO });
        let going = |ms| News::Going { remaining: ms * MS };
        assert_eq!(handover.hear(going(300), here, now), Verdict::Wait);
        assert_eq!(
            handover.hear(going(9000), None, now),
            Verdict::Wait,
            "nothing is known of computing here"
        );
        let sparing = Some(Here { takes: 100 * MS, patience: 500 * MS });
        assert_eq!(handover.hear(going(800), sparing, now), Verdict::Wait, "others are spared");
        assert_eq!(handover.hear(going(801), sparing, now), Verdict::TakeBack(Why::Slow));
        assert_eq!(handover.hear(going(301), here, now), Verdict::TakeBack(Why::Slow));
    }

    #[test]
    fn slots_are_waited_for_from_the_first_refusal_on() {
        let start = Instant::now();
        let mut handover = asked(start);
        let without = News::Slots { lent: false };
        assert_eq!(handover.hear(without, None, start), Verdict::Wait);
        let later = start + NO_SLOTS;
        assert_eq!(handover.hear(without, None, later), Verdict::Wait);
        assert_eq!(handover.hear(News::Tick, None, later + MS), Verdict::TakeBack(Why::NoSlots));
        assert_eq!(handover.hear(News::Slots { lent: true }, None, later), Verdict::Wait);
        assert_eq!(handover.hear(News::Tick, None, later + MS), Verdict::Wait);
    }

    #[test]
    fn computed_blocks_that_do_not_come_are_waited_for_no_longer() {
        let start = Instant::now();
        let late = start + STALLED + MS;
        let verdict_after = |news: News| {
            let mut handover = asked(start);
            handover.hear(News::Slots { lent: true }, None, start);
            handover.hear(news, None, late);
            handover.hear(News::Tick, None, late)
        };
        let stalled = Verdict::TakeBack(Why::Stalled);
        assert_eq!(verdict_after(COMPUTED), stalled, "a sign of life is no block");
        let computing = News::Going { remaining: MS };
        for news in [computing, News::Slots { lent: false }, News::Came, News::Landed(Landing::Taken)] {
            assert_eq!(verdict_after(news), Verdict::Wait, "{news:?}");
        }
    }

    #[test]
    fn blocks_that_wait_here_are_no_reason_to_take_a_prompt_back() {
        let start = Instant::now();
        let mut handover = asked(start);
        assert_eq!(handover.hear(News::Came, None, start), Verdict::Wait);
        let late = start + STALLED + MS;
        handover.hear(COMPUTED, None, late);
        assert_eq!(handover.hear(News::Tick, None, late), Verdict::Wait);
        assert!(handover.is_behind());
        handover.hear(News::Landed(Landing::Taken), None, late);
        assert!(!handover.is_behind());
        let later = late + STALLED + MS;
        handover.hear(COMPUTED, None, later);
        assert_eq!(handover.hear(News::Tick, None, later), Verdict::TakeBack(Why::Stalled));
    }

    #[test]
    fn a_block_that_finds_no_room_and_a_broken_transfer_end_it() {
        let now = Instant::now();
        for (news, why) in [
            (News::Landed(Landing::Refused), Why::NoRoom),
            (News::Broken(Why::TransferBroke), Why::TransferBroke),
            (News::Broken(Why::Gone), Why::Gone),
        ] {
            assert_eq!(asked(now).hear(news, None, now), Verdict::TakeBack(why));
        }
    }
}
