use std::sync::{Arc, LazyLock};

use messages::{
    TokenIds,
    frame::{End, TextDelta, TokenDelta, TokenLogprobs},
    generate::TextOptions,
};
use proptest::prelude::*;
use serde_json::json;
use tokenizers::Tokenizer;

use super::*;
use crate::samples::{self, BYTE_LEVEL, bytes_of};

static SENTENCE_PIECE: LazyLock<Pieces> = LazyLock::new(|| Pieces::new(Arc::new(samples::sentence_piece())));
static OPAQUE: LazyLock<Pieces> = LazyLock::new(|| {
    let mut json = serde_json::to_value(samples::sentence_piece()).unwrap();
    json["decoder"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    Pieces::new(Arc::new(Tokenizer::from_bytes(json.to_string()).unwrap()))
});

fn stream(pieces: &Pieces, ids: &[u32], skip_special: bool) -> String {
    TextStream::decode_all(pieces, ids.iter().copied(), skip_special)
}

/// The whole output of a choice, frame by frame.
#[derive(Debug, Default, PartialEq)]
struct Read {
    text: String,
    ids: Vec<u32>,
    logprobs: Vec<u32>,
    end: Option<End>,
}

impl Read {
    fn take(&mut self, delta: TextDelta) {
        assert_eq!(delta.offset, self.text.len() as u64, "text goes on where it ended");
        assert_eq!(delta.at, self.ids.len() as u32, "tokens go on where they ended");
        assert!(self.end.is_none(), "nothing follows an end");
        self.text += &delta.text;
        self.ids.extend(delta.ids.iter());
        self.logprobs.extend(delta.logprobs.iter().map(|l| l.id));
        self.end = delta.end;
    }
}

fn choice(pieces: &Pieces, text: &TextOptions, min_tokens: u32) -> Choice {
    let stops = StopStrings::new(&text.stop);
    Choice::new(0, pieces, &Settings { text, stops: &stops, min_tokens, begins: true })
}

fn options(stop: &[&str]) -> TextOptions {
    TextOptions { stop: stop.iter().map(ToString::to_string).collect(), ..TextOptions::default() }
}

fn frame(at: usize, ids: &[u32], end: Option<End>) -> TokenDelta {
    let logprobs =
        ids.iter().map(|id| TokenLogprobs { id: *id, logprob: Some(-0.5), top: vec![(*id, -0.5)] });
    TokenDelta { choice: 0, at: at as u32, ids: ids.into(), logprobs: logprobs.collect(), end }
}

/// Feeds frames of the given sizes and reads what comes out.
fn run(pieces: &Pieces, text: &TextOptions, min_tokens: u32, ids: &[u32], size: usize, end: End) -> Read {
    let mut choice = choice(pieces, text, min_tokens);
    let mut read = Read::default();
    let last = ids.len().saturating_sub(1) / size;
    for (index, chunk) in ids.chunks(size).enumerate() {
        let end = (index == last).then(|| end.clone());
        match choice.accept(pieces, frame(index * size, chunk, end)) {
            Outcome::Text(delta) => read.take(delta),
            Outcome::Stopped(delta) => {
                read.take(delta);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    read
}

fn encode(pieces: &Pieces, text: &str) -> Vec<u32> {
    pieces.tokenizer().encode_fast(text, false).unwrap().get_ids().to_vec()
}

/// Where the answer ends by a plain reading: after each token, does the text hold a stop string?
fn naive(text: &TextOptions, min_tokens: u32, ids: &[u32]) -> Option<(String, u32)> {
    let decode = |ids: &[u32]| {
        let mut stream = TextStream::new(&BYTE_LEVEL, text.skip_special_tokens, true);
        let mut out = String::new();
        ids.iter().for_each(|id| stream.push(&BYTE_LEVEL, *id, &mut out));
        out
    };
    // Text before the token that min_tokens waits for is not searched.
    let from = decode(&ids[..ids.len().min(min_tokens.saturating_sub(1) as usize)]).len();
    for tokens in 1..=ids.len() {
        let whole = decode(&ids[..tokens]);
        if (tokens as u32) < min_tokens {
            continue;
        }
        let found = text.stop.iter().filter(|stop| !stop.is_empty());
        let found = found.filter_map(|stop| whole[from..].find(stop.as_str()).map(|at| (from + at, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            let cut = if text.include_stop { at + stop.len() } else { at };
            return Some((whole[..cut].to_owned(), tokens as u32));
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_tokens_read_as_if_decoded_at_once(ids in prop::collection::vec(0u32..1300, 0..60), skip in any::<bool>()) {
        let whole = BYTE_LEVEL.tokenizer().decode(&ids, skip).unwrap();
        prop_assert_eq!(stream(&BYTE_LEVEL, &ids, skip), whole);
    }

    #[test]
    fn encoded_text_reads_back_with_every_kind_of_decoder(text in samples::text(), skip in any::<bool>()) {
        for pieces in [&*SENTENCE_PIECE, &*OPAQUE] {
            let ids = encode(pieces, &text);
            let whole = pieces.tokenizer().decode(&ids, skip).unwrap();
            prop_assert_eq!(stream(pieces, &ids, skip), whole);
        }
    }

    #[test]
    fn stop_strings_cut_where_a_plain_reading_cuts(
        text in "[ab é]{0,60}",
        stop in prop::collection::vec("[ab é]{1,5}", 1..4),
        include_stop in any::<bool>(),
        min_tokens in 0u32..8,
        size in 1usize..5,
    ) {
        let options = TextOptions { stop, include_stop, ..TextOptions::default() };
        let ids = encode(&BYTE_LEVEL, &text);
        let read = run(&BYTE_LEVEL, &options, min_tokens, &ids, size, End::Length);
        match naive(&options, min_tokens, &ids) {
            Some((expected, tokens)) => {
                prop_assert_eq!(read.text, expected);
                prop_assert_eq!(read.ids.len() as u32, tokens);
                let stopped = matches!(read.end, Some(End::StopString { tokens: at, .. }) if at == tokens);
                prop_assert!(stopped);
            }
            None => prop_assert_eq!((read.text, read.ids), (text, ids)),
        }
    }

    #[test]
    fn lost_repeated_and_reordered_frames_make_the_same_text(
        ids in prop::collection::vec(0u32..1300, 1..80),
        stop in prop::collection::vec("[a-e ]{1,3}", 0..3),
        sends in prop::collection::vec((0usize..80, 1usize..12), 0..60),
    ) {
        let options = TextOptions { stop, ..TextOptions::default() };
        let straight = run(&BYTE_LEVEL, &options, 0, &ids, 1, End::Length);
        let mut choice = choice(&BYTE_LEVEL, &options, 0);
        let mut read = Read::default();
        // Frames from anywhere in the run's log, then (as after an attach) the rest in order.
        let rest = |at: usize| (at, ids.len());
        for (at, count) in sends {
            let (at, end) = (at.min(ids.len()), (at + count).min(ids.len()));
            deliver(&mut choice, &ids, (at, end), &mut read);
        }
        let from = choice.at() as usize;
        deliver(&mut choice, &ids, rest(from), &mut read);
        prop_assert_eq!(read, straight);
    }

    #[test]
    fn another_tokenizer_goes_on_where_the_first_was_lost(
        ids in prop::collection::vec(0u32..1300, 1..60),
        stop in prop::collection::vec("[a-e ]{1,3}", 0..3),
        lost_at in 0usize..60,
    ) {
        let options = TextOptions { stop, ..TextOptions::default() };
        let straight = run(&BYTE_LEVEL, &options, 0, &ids, 1, End::Length);
        let mut read = Read::default();
        let mut first = choice(&BYTE_LEVEL, &options, 0);
        deliver(&mut first, &ids, (0, lost_at.min(ids.len() - 1)), &mut read);
        if !first.ended() {
            let mut second = choice(&BYTE_LEVEL, &options, 0);
            let journal: TokenIds = read.ids.as_slice().into();
            prop_assert_eq!(second.replay(&BYTE_LEVEL, &journal, read.text.len() as u64), None);
            deliver(&mut second, &ids, (read.ids.len(), ids.len()), &mut read);
        }
        prop_assert_eq!((read.text, read.ids, read.end), (straight.text, straight.ids, straight.end));
    }
}

fn deliver(choice: &mut Choice, ids: &[u32], (at, end): (usize, usize), read: &mut Read) {
    let last = (end == ids.len()).then_some(End::Length);
    match choice.accept(&BYTE_LEVEL, frame(at, &ids[at..end], last)) {
        Outcome::Text(delta) | Outcome::Stopped(delta) => read.take(delta),
        Outcome::Known | Outcome::Gap => {}
    }
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let mut choice = choice(&BYTE_LEVEL, &options(&[]), 0);
    let texts: Vec<String> = bytes_of("é🤖")
        .iter()
        .enumerate()
        .map(|(at, id)| match choice.accept(&BYTE_LEVEL, frame(at, &[*id], None)) {
            Outcome::Text(delta) => delta.text,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(texts, ["", "é", "", "", "", "🤖"]);
}

#[test]
fn a_character_left_unfinished_shows_as_broken() {
    let ids = &bytes_of("a🤖")[..3];
    assert_eq!(run(&BYTE_LEVEL, &options(&[]), 0, ids, 1, End::Length).text, "a\u{fffd}");
}

#[test]
fn only_what_may_become_a_stop_string_is_held_back() {
    let mut choice = choice(&BYTE_LEVEL, &options(&["abc"]), 0);
    let texts: Vec<String> = bytes_of("xabxab")
        .iter()
        .enumerate()
        .map(|(at, id)| match choice.accept(&BYTE_LEVEL, frame(at, &[*id], None)) {
            Outcome::Text(delta) => delta.text,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(texts, ["x", "", "", "abx", "", ""]);
    let ended = choice.accept(&BYTE_LEVEL, frame(6, &[], Some(End::Length)));
    assert!(matches!(ended, Outcome::Text(delta) if delta.text == "ab" && delta.logprobs.len() == 2));
}

#[test]
fn log_probabilities_end_with_the_text() {
    let ids = bytes_of("xyabcz");
    let read = run(&BYTE_LEVEL, &options(&["abc"]), 0, &ids, 2, End::Length);
    assert_eq!((read.text.as_str(), &read.logprobs[..], &read.ids[..]), ("xy", &ids[..2], &ids[..5]));
    assert_eq!(read.end, Some(End::StopString { matched: "abc".to_owned(), tokens: 5 }));
}

#[test]
fn a_stop_tokens_text_is_left_out_unless_asked_for() {
    let end = encode(&BYTE_LEVEL, "<|im_end|>")[0];
    let ids = [bytes_of("hi"), vec![end]].concat();
    let read = |options: &TextOptions| run(&BYTE_LEVEL, options, 0, &ids, 3, End::StopToken(end));
    let plain = read(&options(&[]));
    assert_eq!((plain.text.as_str(), plain.ids.len(), plain.logprobs.len()), ("hi", 3, 2));
    assert_eq!(read(&TextOptions { skip_special_tokens: false, ..options(&[]) }).text, "hi<|im_end|>");
}

#[test]
fn a_journal_that_holds_an_unseen_end_ends_the_choice() {
    let mut choice = choice(&BYTE_LEVEL, &options(&["lo"]), 0);
    let ids = bytes_of("hello w");
    let delta = choice.replay(&BYTE_LEVEL, &ids.as_slice().into(), 1).unwrap();
    assert_eq!((delta.offset, delta.text.as_str()), (1, "el"));
    assert_eq!(delta.end, Some(End::StopString { matched: "lo".to_owned(), tokens: 5 }));
    assert!(choice.ended());
}

#[test]
fn output_that_goes_on_with_a_prompt_keeps_its_first_space() {
    let ids = encode(&SENTENCE_PIECE, " over the lazy");
    let text = options(&[]);
    let stops = StopStrings::default();
    let read = |begins| {
        let mut choice =
            Choice::new(0, &SENTENCE_PIECE, &Settings { text: &text, stops: &stops, min_tokens: 0, begins });
        match choice.accept(&SENTENCE_PIECE, frame(0, &ids, Some(End::Length))) {
            Outcome::Text(delta) => delta.text,
            other => panic!("{other:?}"),
        }
    };
    assert!(read(false).starts_with(' '));
    assert_eq!(read(true), SENTENCE_PIECE.tokenizer().decode(&ids, true).unwrap());
}
