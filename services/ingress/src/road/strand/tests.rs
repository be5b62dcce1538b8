use messages::frame::TextDelta;
use proptest::prelude::*;

use super::*;

fn delta(at: u32, ids: &[u32], offset: u64, text: &str) -> TextDelta {
    TextDelta {
        choice: 0,
        at,
        ids: ids.into(),
        offset,
        text: text.to_owned(),
        logprobs: Vec::new(),
        end: None,
    }
}

fn text_of(taken: Taken) -> Option<String> {
    match taken {
        Taken::New(piece) => Some(piece.text),
        Taken::Known | Taken::Gap => None,
    }
}

#[test]
fn what_overlaps_is_cut() {
    let mut strand = Strand::default();
    assert_eq!(text_of(strand.take(delta(0, &[1, 2], 0, "hé"))), Some("hé".to_owned()));
    assert_eq!(text_of(strand.take(delta(1, &[2, 3], 1, "é!"))), Some("!".to_owned()));
    assert_eq!(strand.ids(), [1, 2, 3]);
    assert_eq!(strand.take(delta(0, &[1], 0, "h")), Taken::Known);
}

#[test]
fn a_gap_in_tokens_or_text_takes_nothing() {
    let mut strand = Strand::default();
    strand.take(delta(0, &[1], 0, "a"));
    assert_eq!(strand.take(delta(2, &[3], 1, "c")), Taken::Gap);
    assert_eq!(strand.take(delta(1, &[2], 2, "c")), Taken::Gap);
    assert_eq!(strand.ids(), [1]);
}

#[test]
fn a_cut_inside_a_character_is_a_gap() {
    let mut strand = Strand::default();
    strand.take(delta(0, &[1], 0, "a"));
    assert_eq!(strand.take(delta(0, &[1], 0, "é")), Taken::Gap);
}

#[test]
fn a_journal_ends_where_log_probabilities_are_missing() {
    let scored = |id| TextLogprobs { id, token: Vec::new(), logprob: Some(-1.0), top: Vec::new() };
    let mut strand = Strand::default();
    strand.take(TextDelta { logprobs: vec![scored(7)], ..delta(0, &[7], 0, "a") });
    // Half a character: its log probability comes with the other half.
    strand.take(delta(1, &[7], 1, ""));
    assert_eq!(strand.journal(0, false).output.len(), 2);
    let journal = strand.journal(0, true);
    assert_eq!((journal.output.len(), journal.delivered), (1, 1));

    let again = TextDelta { logprobs: vec![scored(7), scored(8)], ..delta(1, &[7, 8], 1, "é") };
    let Taken::New(piece) = strand.take(again) else { panic!("it is new") };
    assert_eq!((piece.tokens, piece.logprobs.len(), piece.text.as_str()), (1, 2, "é"));
}

#[test]
fn nothing_follows_an_end() {
    let mut strand = Strand::default();
    let mut last = delta(0, &[1], 0, "a");
    last.end = Some(End::StopString { matched: "x".to_owned(), tokens: 1 });
    strand.take(last);
    assert_eq!(strand.take(delta(1, &[2], 1, "b")), Taken::Known);
    assert_eq!(strand.output_tokens(), 1);
}

#[test]
fn log_probabilities_of_a_repeated_token_come_once() {
    let score = |id| TextLogprobs { id, token: vec![b'a'], logprob: Some(-0.5), top: Vec::new() };
    let mut strand = Strand::default();
    let mut first = delta(0, &[7, 8], 0, "ab");
    first.logprobs = vec![score(7), score(8)];
    strand.take(first.clone());
    assert_eq!(strand.take(first), Taken::Known);
    let mut both = delta(1, &[8, 9], 1, "bc");
    both.logprobs = vec![score(8), score(9)];
    let Taken::New(piece) = strand.take(both) else { panic!("the second token is new") };
    assert_eq!(piece.logprobs, vec![score(9)]);
}

/// A finished output as a tokenizer would cut it into frames.
fn output() -> impl Strategy<Value = Vec<(u32, String)>> {
    prop::collection::vec((0..9u32, "[a-cé漢]{0,3}"), 1..24)
}

proptest! {
    /// The network loses, repeats and reorders, frames are cut at random places; a gap is repaired by a replay from
    /// what is here. What comes out is a prefix at every moment, and the whole in the end.
    #[test]
    fn whatever_the_network_does_the_text_is_whole(
        tokens in output(),
        cuts in prop::collection::vec(1usize..4, 1..24),
        fates in prop::collection::vec((0usize..40, 0u8..4), 0..60),
    ) {
        let whole: String = tokens.iter().map(|(_, text)| text.as_str()).collect();
        let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
        let frames = cut(&tokens, &cuts);
        let mut sequence: Vec<TextDelta> = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            match fates.get(index) {
                Some((_, 0)) => {}
                Some((_, 1)) => sequence.extend([frame.clone(), frame.clone()]),
                Some((back, 2)) => sequence.insert(sequence.len().saturating_sub(*back), frame.clone()),
                _ => sequence.push(frame.clone()),
            }
        }
        let (mut strand, mut got, mut taken) = (Strand::default(), String::new(), 0);
        let mut sequence: std::collections::VecDeque<TextDelta> = sequence.into();
        while !strand.ended() {
            // Silence is a gap too.
            let next = sequence.pop_front();
            let outcome = next.map_or(Taken::Gap, |frame| strand.take(frame));
            match outcome {
                Taken::New(piece) => {
                    got.push_str(&piece.text);
                    taken += piece.tokens;
                }
                Taken::Known => {}
                Taken::Gap => {
                    let journal = strand.journal(0, false);
                    let done = journal.output.len();
                    let mut rest = delta(
                        done as u32, &ids[done..], journal.delivered, &whole[journal.delivered as usize..],
                    );
                    rest.end = Some(End::Length);
                    sequence.push_back(rest);
                }
            }
            prop_assert!(whole.starts_with(&got));
        }
        prop_assert_eq!(got, whole);
        prop_assert_eq!(strand.ids(), ids.as_slice());
        prop_assert_eq!(taken, ids.len());
    }
}

fn cut(tokens: &[(u32, String)], sizes: &[usize]) -> Vec<TextDelta> {
    let (mut frames, mut at, mut offset) = (Vec::new(), 0, 0u64);
    let mut sizes = sizes.iter().cycle();
    while at < tokens.len() {
        let size = (*sizes.next().unwrap()).min(tokens.len() - at);
        let part = &tokens[at..at + size];
        let text: String = part.iter().map(|(_, text)| text.as_str()).collect();
        let ids: Vec<u32> = part.iter().map(|(id, _)| *id).collect();
        let mut frame = delta(at as u32, &ids, offset, &text);
        at += size;
        offset += text.len() as u64;
        frame.end = (at == tokens.len()).then_some(End::Length);
        frames.push(frame);
    }
    frames
}
