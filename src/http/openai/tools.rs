//! The programs that a model may call.

use crate::engine::{Tool, ToolChoice, Tools};
use crate::http::error::ApiError;
use crate::http::schema::{Body, Field, Shape, Tagged, needed, optional};
use serde_json::Value;

const MOST_TOOLS: usize = 128;
const NAME: Shape = Shape::Name;

#[rustfmt::skip] // A table reads best as one.
const FUNCTION: &[Field] = &[
    needed("name", NAME, "letters, digits, `_` and `-`"),
    optional("description", Shape::TEXT, "what it does, for the model to read"),
    optional("parameters", Shape::AnyObject, "JSON Schema of the arguments, an object"),
    optional("strict", Shape::Flag, "accepted; arguments always follow the schema"),
];

const TOOL: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[(
        "function",
        &[needed("function", Shape::Object(FUNCTION), "the program")],
    )],
    default: None,
    otherwise: "this server calls nothing itself",
});

/// As [`TOOL`], in the form of responses.
const FLAT_TOOL: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[("function", FUNCTION)],
    default: None,
    otherwise: "this server calls nothing itself",
});

const MODE: Shape = Shape::Choice(&["none", "auto", "required"]);

#[rustfmt::skip] // A table reads best as one.
pub(super) const FIELDS: &[Field] = &[
    optional("tools", Shape::List { of: &TOOL, least: 0, most: MOST_TOOLS }, "programs that the model may call"),
    optional("tool_choice", Shape::Either(&[MODE, Shape::Tagged(&Tagged {
        tag: "type",
        of: &[("function", &[needed("function", Shape::Object(&[needed("name", NAME, "the tool")]), "the one to call")])],
        default: None,
        otherwise: "it is \"function\"",
    })]), "whether and what the model calls; `auto` if absent"),
    PARALLEL,
];

/// As [`FIELDS`], in the form of responses.
#[rustfmt::skip] // A table reads best as one.
pub(super) const FLAT_FIELDS: &[Field] = &[
    optional("tools", Shape::List { of: &FLAT_TOOL, least: 0, most: MOST_TOOLS }, "programs that the model may call"),
    optional("tool_choice", Shape::Either(&[MODE, Shape::Tagged(&Tagged {
        tag: "type",
        of: &[("function", &[needed("name", NAME, "the one to call")])],
        default: None,
        otherwise: "it is \"function\"",
    })]), "whether and what the model calls; `auto` if absent"),
    PARALLEL,
];

const PARALLEL: Field = optional(
    "parallel_tool_calls",
    Shape::Flag,
    "false allows one call in an answer; true if absent",
);

/// Takes the tools from a checked body.
pub(super) fn take(body: &mut Body) -> Result<Option<Tools>, ApiError> {
    let listed = body.list("tools");
    let tools: Vec<Tool> = listed.into_iter().map(tool).collect();
    let choice = choice(body.any("tool_choice"));
    let parallel = body.flag("parallel_tool_calls").unwrap_or(true);
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let error = format!("the tool {:?} is given twice", tool.name);
            return Err(ApiError::bad_request(error).param(format!("tools[{index}]")));
        }
    }
    let named = match &choice {
        ToolChoice::Named(name) => tools.iter().any(|tool| tool.name == *name),
        ToolChoice::Required => !tools.is_empty(),
        ToolChoice::None | ToolChoice::Auto => true,
    };
    if !named {
        return Err(
            ApiError::bad_request("`tool_choice` asks for a tool that is not in `tools`")
                .param("tool_choice"),
        );
    }
    Ok((!tools.is_empty()).then_some(Tools {
        tools,
        choice,
        parallel,
    }))
}

/// A tool in either form.
fn tool(tool: Value) -> Tool {
    let mut tool = Body::of(tool);
    let mut function = tool.object("function").unwrap_or(tool);
    Tool {
        name: function.text("name").unwrap_or_default(),
        description: function.text("description"),
        parameters: function.any("parameters"),
    }
}

/// A choice in either form.
fn choice(asked: Option<Value>) -> ToolChoice {
    match asked {
        Some(Value::String(mode)) if mode == "none" => ToolChoice::None,
        Some(Value::String(mode)) if mode == "required" => ToolChoice::Required,
        Some(named @ Value::Object(_)) => {
            let mut named = Body::of(named);
            let mut function = named.object("function").unwrap_or(named);
            ToolChoice::Named(function.text("name").unwrap_or_default())
        }
        _ => ToolChoice::Auto,
    }
}
