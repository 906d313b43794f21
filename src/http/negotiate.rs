//! Which shape an answer takes: the body's `stream` decides, else the header `Accept`.

use axum::http::{HeaderMap, header};

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One JSON object at the end.
    Json,
    /// As it is made.
    Stream(Format),
}

/// How a stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Server-sent events, one JSON object each.
    Sse,
    /// One JSON object per line.
    Ndjson,
    /// The bare text.
    Plain,
}

impl Format {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream; charset=utf-8",
            Self::Ndjson => "application/x-ndjson; charset=utf-8",
            Self::Plain => "text/plain; charset=utf-8",
        }
    }
}

/// Decides. Of the types that `Accept` names, the one that it likes best counts; the first of equals. A client that
/// takes anything gets one JSON object, or server-sent events if it asked for a stream.
pub(super) fn shape(stream: Option<bool>, headers: &HeaderMap) -> Shape {
    let wanted = preferred(headers);
    match (stream, wanted) {
        (Some(false), _) | (None, None) => Shape::Json,
        (_, Some(format)) => Shape::Stream(format),
        (Some(true), None) => Shape::Stream(Format::Sse),
    }
}

/// The stream format that is liked best; none if JSON, or anything, is liked as much and named first.
fn preferred(headers: &HeaderMap) -> Option<Format> {
    let mut best = (0.0, None);
    let lines = headers.get_all(header::ACCEPT).iter();
    let ranges = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    for range in ranges {
        let mut parts = range.split(';').map(str::trim);
        let format = match parts
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase()
            .as_str()
        {
            "text/event-stream" => Some(Format::Sse),
            "application/x-ndjson" | "application/ndjson" => Some(Format::Ndjson),
            "text/plain" => Some(Format::Plain),
            "application/json" | "application/*" | "*/*" => None,
            _ => continue,
        };
        let quality = parts
            .find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")))
            .map_or(1.0, |quality| quality.parse::<f32>().unwrap_or(0.0));
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_decides_and_then_accept() {
        use Format::{Ndjson, Plain, Sse};
        let json = Shape::Json;
        let table = [
            (None, "", json),
            (None, "*/*", json),
            (None, "application/json", json),
            (None, "text/html,application/xhtml+xml,*/*;q=0.8", json),
            (None, "text/event-stream", Shape::Stream(Sse)),
            (None, "Text/Plain; charset=utf-8", Shape::Stream(Plain)),
            (
                None,
                "application/x-ndjson, */*;q=0.1",
                Shape::Stream(Ndjson),
            ),
            (None, "application/json, text/plain, */*", json),
            (
                None,
                "text/plain;q=0.2, text/event-stream;q=0.9",
                Shape::Stream(Sse),
            ),
            (None, "text/event-stream;q=0", json),
            (None, "text/event-stream;q=nonsense", json),
            (Some(false), "text/event-stream", json),
            (Some(true), "", Shape::Stream(Sse)),
            (Some(true), "application/json", Shape::Stream(Sse)),
            (
                Some(true),
                "application/json, text/plain, */*",
                Shape::Stream(Sse),
            ),
            (Some(true), "application/x-ndjson", Shape::Stream(Ndjson)),
            (Some(true), "text/plain", Shape::Stream(Plain)),
        ];
        for (stream, accept, expected) in table {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            assert_eq!(shape(stream, &headers), expected, "{stream:?} {accept}");
        }
    }
}
