//! What a model makes of texts, in llama-server's shapes: `/tokenize`, `/detokenize`, `/apply-template`.

use super::embeddings::unanswered;
use super::{Asked, accept, messages, tools};
use crate::engine::{Answer, Question, Token};
use crate::http::app::App;
use crate::http::caller::Caller;
use crate::http::error::ApiError;
use crate::http::json;
use crate::http::schema::{self, Field, Shape, Table, needed, optional, token_ids};
use crate::http::tracked::Tracker;
use crate::pool::Lease;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::json;

/// Where a text becomes tokens.
pub(in crate::http) const TOKENIZE: &str = "/tokenize";
/// Where tokens become a text.
pub(in crate::http) const DETOKENIZE: &str = "/detokenize";
/// Where a chat becomes a prompt.
pub(in crate::http) const APPLY_TEMPLATE: &str = "/apply-template";

const MODEL: Field = optional(
    "model",
    Shape::TEXT,
    "one of the names in /v1/models, or an alias; the default model if absent",
);

#[rustfmt::skip] // A table reads best as one.
pub(in crate::http) const TOKENIZE_TABLE: Table = &[&[
    needed("content", Shape::TEXT, "the text"),
    optional("add_special", Shape::Flag, "true begins with the model's begin-of-sequence token, if it wants one"),
    optional("parse_special", Shape::Flag, "false takes the names of control tokens for text; true if absent"),
    optional("with_pieces", Shape::Flag, "true gives the text of each token too"),
    MODEL,
]];

const IDS: Shape = Shape::list(&Shape::between(0, u32::MAX));

pub(in crate::http) const DETOKENIZE_TABLE: Table = &[&[needed("tokens", IDS, "token ids"), MODEL]];

pub(in crate::http) const APPLY_TEMPLATE_TABLE: Table = &[
    &[needed("messages", messages::MESSAGES, "the chat"), MODEL],
    tools::FIELDS,
];

impl Asked for Wanted {
    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

/// A question, to which model, and whether the answer tells the pieces.
struct Wanted {
    model: Option<String>,
    question: Question,
    with_pieces: bool,
}

/// `POST /tokenize`
pub(in crate::http) async fn tokenize(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let tracker = Tracker::of(&app, TOKENIZE, caller);
    answer(&app, tracker, (&headers, body), |body| {
        let mut body = schema::Body::parse(body, TOKENIZE_TABLE)?;
        Ok(Wanted {
            model: body.text("model"),
            question: Question::Tokenize {
                text: body.text("content").unwrap_or_default(),
                add_special: body.flag("add_special").unwrap_or(false),
                parse_special: body.flag("parse_special").unwrap_or(true),
            },
            with_pieces: body.flag("with_pieces").unwrap_or(false),
        })
    })
    .await
}

/// `POST /detokenize`
pub(in crate::http) async fn detokenize(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let tracker = Tracker::of(&app, DETOKENIZE, caller);
    answer(&app, tracker, (&headers, body), |body| {
        let mut body = schema::Body::parse(body, DETOKENIZE_TABLE)?;
        Ok(Wanted {
            model: body.text("model"),
            question: Question::Detokenize {
                tokens: token_ids(&body.list("tokens")),
            },
            with_pieces: false,
        })
    })
    .await
}

/// `POST /apply-template`
pub(in crate::http) async fn apply_template(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let tracker = Tracker::of(&app, APPLY_TEMPLATE, caller);
    answer(&app, tracker, (&headers, body), |body| {
        let mut body = schema::Body::parse(body, APPLY_TEMPLATE_TABLE)?;
        Ok(Wanted {
            model: body.text("model"),
            question: Question::Render {
                messages: messages::chat(body.list("messages"))?,
                tools: tools::take(&mut body)?,
            },
            with_pieces: false,
        })
    })
    .await
}

async fn answer(
    app: &App,
    mut tracker: Tracker,
    body: (&HeaderMap, Body),
    parse: fn(&[u8]) -> Result<Wanted, ApiError>,
) -> Result<Response, ApiError> {
    let (asked, lease) = accept(app, &mut tracker, body, parse).await?;
    let answered = ask(&mut tracker, &lease, asked).await;
    answered.inspect_err(|error| tracker.failed(error))
}

async fn ask(tracker: &mut Tracker, lease: &Lease, asked: Wanted) -> Result<Response, ApiError> {
    tracker.goes_to(&lease.facts().model.name, 1);
    let is_prompt = matches!(asked.question, Question::Render { .. });
    let question = asked.question;
    let answer = lease.engine().ask_fairly(tracker.client(), question).await;
    let answer = answer.map_err(|error| ApiError::from(&error))?;
    tracker.answered(0);
    let shown = match answer {
        Answer::Tokens(tokens) => {
            let tokens = Tokens {
                tokens: &tokens,
                with_pieces: asked.with_pieces,
            };
            return Ok(json::compact(StatusCode::OK, &tokens));
        }
        Answer::Text(prompt) if is_prompt => json!({"prompt": prompt}),
        Answer::Text(content) => json!({"content": content}),
        Answer::Embeddings(_) => return Err(unanswered()),
    };
    Ok(json::compact(StatusCode::OK, &shown))
}

/// `{"tokens": […]}`, written from the answer as it is: a tree of values would take a kilobyte for each token.
struct Tokens<'a> {
    tokens: &'a [(Token, Vec<u8>)],
    with_pieces: bool,
}

impl Serialize for Tokens<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        if self.with_pieces {
            map.serialize_entry("tokens", &Listed(self.tokens, piece))?;
        } else {
            map.serialize_entry("tokens", &Listed(self.tokens, id))?;
        }
        map.end()
    }
}

/// A list whose items are made while they are written.
struct Listed<'a, T, F>(&'a [T], F);

impl<'a, T, U: Serialize, F: Fn(&'a T) -> U> Serialize for Listed<'a, T, F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(&self.1))
    }
}

#[derive(serde::Serialize)]
struct Spelt<'a> {
    id: u32,
    piece: Piece<'a>,
}

/// A text, or bytes where it is no whole characters.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Piece<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

fn id((token, _): &(Token, Vec<u8>)) -> u32 {
    token.0
}

fn piece((token, bytes): &(Token, Vec<u8>)) -> Spelt<'_> {
    Spelt {
        id: token.0,
        piece: std::str::from_utf8(bytes).map_or(Piece::Bytes(bytes), Piece::Text),
    }
}
