//! The form that an answer must have: OpenAI's `response_format` and `text.format`, and the extensions of other servers.

use crate::engine::Format;
use crate::http::error::ApiError;
use crate::http::schema::{Body, Field, Shape, Tagged, needed, optional};

/// Bytes of an expression or a grammar at most.
const LONGEST: usize = 64 << 10;
const SOURCE: Shape = Shape::Text {
    least: 1,
    most: LONGEST,
};

#[rustfmt::skip] // A table reads best as one.
const NAMED_SCHEMA: &[Field] = &[
    optional("name", Shape::Text { least: 1, most: 64 }, "accepted, and not looked at"),
    needed("schema", Shape::AnyObject, "JSON Schema that the answer follows"),
    optional("strict", Shape::Flag, "accepted; answers always follow the schema"),
];

const GRAMMAR: &[Field] = &[needed("grammar", SOURCE, "the grammar's text")];
const REGEX: &[Field] = &[needed(
    "pattern",
    SOURCE,
    "a regular expression that the whole answer matches",
)];

#[rustfmt::skip] // A table reads best as one.
pub(super) const FIELDS: &[Field] = &[
    optional("response_format", Shape::Tagged(&Tagged {
        tag: "type",
        of: &[
            ("text", &[]),
            ("json_object", &[optional("schema", Shape::AnyObject, "extension; as in `json_schema`")]),
            ("json_schema", &[needed("json_schema", Shape::Object(NAMED_SCHEMA), "the schema and its name")]),
            ("regex", REGEX),
            ("lark", GRAMMAR),
            ("gbnf", GRAMMAR),
        ],
        default: None,
        otherwise: "these are the forms that this server knows",
    }), "the form that the answer must have; `regex`, `lark` and `gbnf` are extensions"),
    GBNF,
    SCHEMA,
];

/// `text` of responses.
#[rustfmt::skip] // A table reads best as one.
pub(super) const FLAT_FORMAT: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[
        ("text", &[]),
        ("json_object", &[]),
        ("json_schema", NAMED_SCHEMA),
        ("regex", REGEX),
        ("lark", GRAMMAR),
        ("gbnf", GRAMMAR),
    ],
    default: None,
    otherwise: "these are the forms that this server knows",
});

/// llama-server's fields.
pub(super) const GBNF: Field = optional("grammar", SOURCE, "extension; a GBNF grammar");
pub(super) const SCHEMA: Field =
    optional("json_schema", Shape::AnyObject, "extension; a JSON Schema");

/// Takes the form from a checked body. It may be named once.
pub(super) fn take(body: &mut Body) -> Result<Option<Format>, ApiError> {
    let named = [
        body.object("response_format").and_then(of_format),
        body.text("grammar").map(Format::Gbnf),
        body.any("json_schema").map(Format::JsonSchema),
    ];
    let mut named = named.into_iter().flatten();
    let format = named.next();
    if named.next().is_some() {
        return Err(ApiError::bad_request(
            "give one of `response_format`, `grammar` and `json_schema`, not several",
        )
        .param("response_format"));
    }
    Ok(format)
}

/// A form in either of OpenAI's shapes; `None` for any text.
pub(super) fn of_format(mut format: Body) -> Option<Format> {
    let schema = |body: &mut Body| body.any("schema").map(Format::JsonSchema);
    match format.text("type").as_deref()? {
        "json_object" => Some(schema(&mut format).unwrap_or(Format::JsonObject)),
        "json_schema" => {
            let mut named = format.object("json_schema").unwrap_or(format);
            Some(schema(&mut named).unwrap_or(Format::JsonObject))
        }
        "regex" => format.text("pattern").map(Format::Regex),
        "lark" => format.text("grammar").map(Format::Lark),
        "gbnf" => format.text("grammar").map(Format::Gbnf),
        _ => None,
    }
}
