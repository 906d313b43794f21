//! Any bytes, cut anywhere, as a model's tokens, with any stop strings: whole characters, nothing of a stop string, and the
//! same text as a plain reference has that sees all of it at once.

use pocket_llm::worker::text::{Piece, TextStream, Think};

/// Stop strings of a case at most.
const MOST_STOPS: usize = 4;

/// First byte: kind of thinking and number of stop strings. Then each stop string behind its length, then the cuts, one byte
/// for each token; what is left is said.
pub(crate) fn check(data: &[u8]) {
    let Some((&kind, mut rest)) = data.split_first() else {
        return;
    };
    let think = match kind % 3 {
        0 => Think::Off,
        1 => Think::Watch,
        _ => Think::Inside,
    };
    let mut stops = Vec::new();
    for _ in 0..usize::from(kind / 3) % (MOST_STOPS + 1) {
        let taken = take(&mut rest, 8);
        stops.push(String::from_utf8_lossy(taken).into_owned());
    }
    let cuts = take(&mut rest, 32);
    let (whole, hit) = said(rest, &[], &stops, think);
    let (cut, hit_too) = said(rest, cuts, &stops, think);
    assert_eq!(
        (whole, hit),
        (cut.clone(), hit_too),
        "cuts change what is said"
    );
    for (_, text) in &cut {
        let found = stops
            .iter()
            .find(|stop| !stop.is_empty() && text.contains(stop.as_str()));
        assert_eq!(found, None, "a stop string got out in {text:?}");
    }
    if think == Think::Off {
        let (reference, hit_there) = reference(rest, &stops);
        assert_eq!(hit, hit_there);
        let text: String = cut.into_iter().map(|(_, text)| text).collect();
        assert_eq!(text, reference);
    }
}

/// A part behind its length.
fn take<'a>(rest: &mut &'a [u8], most: usize) -> &'a [u8] {
    let Some((&length, after)) = rest.split_first() else {
        return &[];
    };
    let length = (usize::from(length) % (most + 1)).min(after.len());
    let (taken, after) = after.split_at(length);
    *rest = after;
    taken
}

/// What goes out, neighbours of one kind joined, and whether a stop string was hit.
fn said(bytes: &[u8], cuts: &[u8], stops: &[String], think: Think) -> (Vec<(bool, String)>, bool) {
    let mut stream = TextStream::new(stops, think);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut rest = bytes;
    let mut hit = false;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() && !hit {
        let length = cuts.next().map_or(rest.len(), |cut| usize::from(cut % 7));
        let (token, after) = rest.split_at(length.clamp(1, rest.len()));
        hit = stream.push(token, &mut pieces);
        rest = after;
    }
    stream.finish(&mut pieces);
    let mut joined: Vec<(bool, String)> = Vec::new();
    for piece in pieces {
        assert!(!piece.text.is_empty(), "an empty piece");
        match joined.last_mut() {
            Some((thinking, text)) if *thinking == piece.thinking => text.push_str(&piece.text),
            _ => joined.push((piece.thinking, piece.text)),
        }
    }
    (joined, hit)
}

/// The text up to the stop string that is complete first, the longest of those that are complete together.
fn reference(bytes: &[u8], stops: &[String]) -> (String, bool) {
    // A character that is not finished is dropped; broken ones are replaced.
    let mut text = String::new();
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        let is_last = chunks.peek().is_none();
        let broken = chunk.invalid();
        let is_unfinished = is_last && is_beginning(broken);
        if !broken.is_empty() && !is_unfinished {
            text.push('\u{fffd}');
        }
    }
    let ends = |stop: &String| text.find(stop.as_str()).map(|at| (at + stop.len(), at));
    let hits = stops
        .iter()
        .filter(|stop| !stop.is_empty())
        .filter_map(ends);
    match hits.min() {
        Some((_, at)) => (text[..at].to_owned(), true),
        None => (text, false),
    }
}

/// Whether more bytes could make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
