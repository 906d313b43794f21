use super::think::MARGIN;
use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

/// Feeds the parts and returns the pieces of each push and of the end, and whether a stop string was hit.
fn feed<'a>(
    stop: &[String],
    think: Think,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Piece>, bool) {
    let mut stream = TextStream::new(stop, think);
    let mut pieces = Vec::new();
    let mut hit = false;
    let mut said = Vec::new();
    for part in parts {
        said.extend_from_slice(part);
        hit = stream.push(part, &mut pieces);
        if hit {
            break;
        }
    }
    stream.finish(&mut pieces);
    assert!(pieces.iter().all(|piece| !piece.text.is_empty()));
    let said = String::from_utf8_lossy(&said);
    for piece in &pieces {
        let there = said.get(piece.from..piece.from + piece.text.len());
        assert_eq!(there, Some(piece.text.as_str()), "in {said:?}");
    }
    (pieces, hit)
}

/// Thinking and answer, each joined.
fn joined(pieces: &[Piece]) -> (String, String) {
    let of = |thinking| {
        let own = pieces.iter().filter(|piece| piece.thinking == thinking);
        own.map(|piece| piece.text.as_str()).collect()
    };
    (of(true), of(false))
}

fn answer(stop: &[&str], parts: &[&str]) -> (String, bool) {
    let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
    let (pieces, hit) = feed(&stop, Think::Off, parts.iter().map(|part| part.as_bytes()));
    (joined(&pieces).1, hit)
}

fn split(think: Think, parts: &[&str]) -> (String, String) {
    joined(&feed(&[], think, parts.iter().map(|part| part.as_bytes())).0)
}

#[test]
fn characters_arrive_whole() {
    let text = "한국어, 日本語, é, 👩‍🚀";
    let mut stream = TextStream::new(&[], Think::Off);
    let mut pieces = Vec::new();
    for byte in text.bytes() {
        assert!(!stream.push(&[byte], &mut pieces));
    }
    let characters: Vec<String> = text.chars().map(String::from).collect();
    let arrived: Vec<&str> = pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(arrived, characters);
}

#[test]
fn broken_bytes_are_replaced_as_soon_as_they_are_broken() {
    let mut stream = TextStream::new(&[], Think::Off);
    let mut pieces = Vec::new();
    // Three bytes of four, then a letter.
    for (bytes, expected) in [
        (&b"\xf0\x9f\x98"[..], ""),
        (b"a", "\u{fffd}a"),
        (b"\xff", "\u{fffd}"),
        (b"\xe2\x82", ""),
        (b"\xf0", "\u{fffd}"),
        (b"\x9f\x98\x80", "😀"),
        (b"\xe2\x82", ""),
    ] {
        pieces.clear();
        stream.push(bytes, &mut pieces);
        assert_eq!(joined(&pieces).1, expected, "after {bytes:x?}");
    }
    pieces.clear();
    stream.finish(&mut pieces);
    assert_eq!(pieces, [], "the unfinished character is dropped");
}

#[test]
fn stop_strings_end_the_text_before_them() {
    for (stop, parts, expected, expected_hit) in [
        (&["END"][..], &["so E", "N", "D and more"][..], "so ", true),
        (&["END"], &["so E", "N", "E", "N"], "so ENEN", false),
        (&["aab"], &["aaa", "aab"], "aaa", true),
        (&["\n\n"], &["a\n", "b\n", "\nc"], "a\nb", true),
        // The one that completes first counts, even if a longer one began before it …
        (&["xabc", "ab"], &["1xabc"], "1x", true),
        // … and of those that complete together the one that began first.
        (&["b", "xab", "ab"], &["1xa", "b"], "1", true),
        (&["b", "abc"], &["1a", "bc"], "1a", true),
        (&["é", ""], &["cafe", "caf", "é"], "cafecaf", true),
        (&["stop"], &["stop"], "", true),
    ] {
        let got = answer(stop, parts);
        assert_eq!(
            got,
            (expected.to_owned(), expected_hit),
            "{stop:?} in {parts:?}"
        );
    }
}

#[test]
fn only_what_may_be_a_stop_string_is_held_back() {
    let stop = ["<|end|>".to_owned(), "User:".to_owned()];
    let mut stream = TextStream::new(&stop, Think::Off);
    let mut pieces = Vec::new();
    for (token, expected) in [
        ("Hello", "Hello"),
        (" <", " "),
        ("|end", ""),
        ("ing", "<|ending"),
        (" U", " "),
        ("ser ", "User "),
        ("<|end|", ""),
    ] {
        pieces.clear();
        assert!(!stream.push(token.as_bytes(), &mut pieces));
        assert_eq!(joined(&pieces).1, expected, "after {token:?}");
    }
    pieces.clear();
    assert!(stream.push(b">more", &mut pieces));
    assert!(stream.push(b"and more", &mut pieces));
    stream.finish(&mut pieces);
    assert_eq!(pieces, []);
}

#[test]
fn finishing_twice_says_nothing_twice() {
    let mut stream = TextStream::new(&["abc".to_owned()], Think::Inside);
    let mut pieces = Vec::new();
    stream.push(b"</thab", &mut pieces);
    stream.finish(&mut pieces);
    stream.finish(&mut pieces);
    assert_eq!(
        joined(&pieces),
        ("</thab".to_owned(), String::new()),
        "{pieces:?}"
    );
}

#[test]
fn pieces_of_other_pushes_are_left_alone() {
    let mut stream = TextStream::new(&[], Think::Watch);
    let mut pieces = Vec::new();
    stream.push(b"<think>a</think>\n\nb", &mut pieces);
    stream.push(b"c", &mut pieces);
    let piece = |text: &str, thinking, from| Piece {
        text: text.to_owned(),
        thinking,
        from,
    };
    assert_eq!(
        pieces,
        [
            piece("a", true, 7),
            piece("b", false, 18),
            piece("c", false, 19)
        ]
    );
}

#[test]
fn thinking_is_told_from_the_answer() {
    use Think::{Inside, Off, Watch};
    let wide = " ".repeat(MARGIN);
    let too_wide = format!("{wide} <think>a</think>b");
    let wide = format!("{wide}<think>a</think>b");
    for (think, parts, thinking, answer) in [
        (Off, &["<think>a</think>b"][..], "", "<think>a</think>b"),
        (Watch, &["<think>a</think>b"], "a", "b"),
        (
            Watch,
            &["\n <thi", "nk>\na<", "/think>", "\r\n", "\n b\n"],
            "\na",
            " b\n",
        ),
        (Watch, &["a<think>b</think>c"], "", "a<think>b</think>c"),
        (Watch, &[" <thin", "g>"], "", " <thing>"),
        (Watch, &[" <th"], "", " <th"),
        (Watch, &["<think>a</thi"], "a</thi", ""),
        (
            Watch,
            &["<think>a<</", "think>b</think>"],
            "a<",
            "b</think>",
        ),
        (Watch, &["<think>a</think>\n<think>b"], "a", "<think>b"),
        (Inside, &["a</", "thin", "</think>b"], "a</thin", "b"),
        (Inside, &["</think>"], "", ""),
        (Watch, &[&wide], "a", "b"),
        (Watch, &[&too_wide], "", &too_wide),
    ] {
        let expected = (thinking.to_owned(), answer.to_owned());
        assert_eq!(split(think, parts), expected, "{think:?} {parts:?}");
    }
}

#[test]
fn stop_strings_end_thinking_too() {
    let stop = ["k>b".to_owned()];
    let (pieces, hit) = feed(&stop, Think::Watch, [&b"<think>a</think>b"[..]]);
    assert!(hit);
    assert_eq!(joined(&pieces), ("a</thin".to_owned(), String::new()));
}

/// Cuts the bytes at the given places.
fn cut<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut begin = 0;
    let part = |end| {
        let part = &bytes[begin..end];
        begin = end;
        part
    };
    ends.into_iter().map(part).collect()
}

/// `from_utf8_lossy` over the whole, without an unfinished character at the end.
fn reference_characters(bytes: &[u8]) -> String {
    let unfinished = (1..=3.min(bytes.len())).find(|&len| {
        let error = str::from_utf8(&bytes[bytes.len() - len..]).err();
        error.is_some_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    });
    let kept = &bytes[..bytes.len() - unfinished.unwrap_or(0)];
    String::from_utf8_lossy(kept).into_owned()
}

/// The text before the first stop string to complete, reading byte by byte.
fn reference_stop<'a>(text: &'a str, stop: &[String]) -> (&'a str, bool) {
    for end in 0..=text.len() {
        let read = &text.as_bytes()[..end];
        let complete = stop
            .iter()
            .filter(|stop| !stop.is_empty() && read.ends_with(stop.as_bytes()));
        if let Some(longest) = complete.map(String::len).max() {
            return (&text[..end - longest], true);
        }
    }
    (text, false)
}

/// Thinking and answer of the whole text.
fn reference_think(text: &str, think: Think) -> (String, String) {
    let words = text.trim_start();
    let opened = match think {
        Think::Off => None,
        Think::Watch if text.len() - words.len() > MARGIN => None,
        Think::Watch => words.strip_prefix("<think>"),
        Think::Inside => Some(text),
    };
    let Some(opened) = opened else {
        return (String::new(), text.to_owned());
    };
    let (thinking, answer) = opened.split_once("</think>").unwrap_or((opened, ""));
    let answer = answer.trim_start_matches(['\n', '\r']);
    (thinking.to_owned(), answer.to_owned())
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    // Lead and continuation bytes of every kind, whole characters, and what is never UTF-8.
    let byte = prop::sample::select(
        &b"a\x80\x8f\x90\x9f\xa0\xbf\xc0\xc2\xdf\xe0\xe2\xed\xef\xf0\xf4\xf5\xff"[..],
    );
    let whole = prop::sample::select(vec!["é", "한", "😀", "ab"]);
    let part = prop_oneof![
        3 => byte.prop_map(|byte| vec![byte]),
        1 => whole.prop_map(|text| text.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

const WORDS: &[&str] = &[
    "<think>", "</think>", "<think", "think>", "<", "/", "\n", "\r\n", " ", "a", "aa", "b", "ab",
    "é", "😀",
];

fn any_text() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(WORDS), 0..24).prop_map(|words| words.concat())
}

fn any_stops() -> impl Strategy<Value = Vec<String>> {
    let stop = prop_oneof![
        "[ab]{1,6}",
        "[abé😀<]{0,3}",
        any_text().prop_map(|text| text.chars().take(12).collect()),
    ];
    prop::collection::vec(stop, 0..5)
}

fn any_think() -> impl Strategy<Value = Think> {
    prop::sample::select(&[Think::Off, Think::Watch, Think::Inside][..])
}

fn any_cuts() -> impl Strategy<Value = Vec<Index>> {
    prop::collection::vec(any::<Index>(), 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn characters_do_not_depend_on_cuts(bytes in any_bytes(), cuts in any_cuts()) {
        let (pieces, _) = feed(&[], Think::Off, cut(&bytes, &cuts));
        prop_assert_eq!(joined(&pieces).1, reference_characters(&bytes));
    }

    #[test]
    fn text_equals_the_reference(
        text in any_text(),
        stop in any_stops(),
        think in any_think(),
        cuts in any_cuts(),
    ) {
        let (pieces, hit) = feed(&stop, think, cut(text.as_bytes(), &cuts));
        let (kept, expected_hit) = reference_stop(&text, &stop);
        prop_assert_eq!(joined(&pieces), reference_think(kept, think));
        prop_assert_eq!(hit, expected_hit);
    }

    #[test]
    fn no_stop_string_gets_out(
        bytes in any_bytes(),
        text in any_text(),
        stop in any_stops(),
        think in any_think(),
        cuts in any_cuts(),
    ) {
        let whole = [text.as_bytes(), &bytes].concat();
        let (pieces, _) = feed(&stop, think, cut(&whole, &cuts));
        let (thinking, answer) = joined(&pieces);
        for stop in stop.iter().filter(|stop| !stop.is_empty()) {
            prop_assert!(!thinking.contains(stop.as_str()));
            prop_assert!(!answer.contains(stop.as_str()));
        }
    }

    #[test]
    fn no_text_waits_that_can_go(text in any_text(), stop in any_stops()) {
        let mut stream = TextStream::new(&stop, Think::Off);
        let mut pieces = Vec::new();
        let mut read = String::new();
        for character in text.chars() {
            read.push(character);
            if stream.push(character.encode_utf8(&mut [0; 4]).as_bytes(), &mut pieces) {
                break;
            }
            let waits = read.len() - joined(&pieces).1.len();
            let may_stop = stop.iter().any(|stop| stop.len() > waits && stop.starts_with(&read[read.len() - waits..]));
            prop_assert!(waits == 0 || may_stop);
        }
    }
}
