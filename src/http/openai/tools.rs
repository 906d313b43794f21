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
const CHOICES: &str = "these are the kinds of choices beside a mode";
const ALLOWED: &str = "those that the model may call in this answer, of all that it is told of";
const ALLOWED_MODE: Field = needed(
    "mode",
    Shape::Choice(&["auto", "required"]),
    "`required` wants one call at least",
);

/// One of the allowed tools.
const CHOSEN: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[(
        "function",
        &[needed(
            "function",
            Shape::Object(&[needed("name", NAME, "the tool")]),
            "the tool",
        )],
    )],
    default: None,
    otherwise: "this server calls nothing itself",
});

/// As [`CHOSEN`], in the form of responses.
const FLAT_CHOSEN: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[("function", &[needed("name", NAME, "the tool")])],
    default: None,
    otherwise: "this server calls nothing itself",
});

#[rustfmt::skip] // A table reads best as one.
pub(super) const FIELDS: &[Field] = &[
    optional("tools", Shape::List { of: &TOOL, least: 0, most: MOST_TOOLS }, "programs that the model may call"),
    optional("tool_choice", Shape::Either(&[MODE, Shape::Tagged(&Tagged {
        tag: "type",
        of: &[
            ("function", &[needed("function", Shape::Object(&[needed("name", NAME, "the tool")]), "the one to call")]),
            ("allowed_tools", &[needed("allowed_tools", Shape::Object(&[
                ALLOWED_MODE,
                needed("tools", Shape::List { of: &CHOSEN, least: 1, most: MOST_TOOLS }, ALLOWED),
            ]), ALLOWED)]),
        ],
        default: None,
        otherwise: CHOICES,
    })]), "whether and what the model calls; `auto` if absent"),
    PARALLEL,
];

/// As [`FIELDS`], in the form of responses.
#[rustfmt::skip] // A table reads best as one.
pub(super) const FLAT_FIELDS: &[Field] = &[
    optional("tools", Shape::List { of: &FLAT_TOOL, least: 0, most: MOST_TOOLS }, "programs that the model may call"),
    optional("tool_choice", Shape::Either(&[MODE, Shape::Tagged(&Tagged {
        tag: "type",
        of: &[
            ("function", &[needed("name", NAME, "the one to call")]),
            ("allowed_tools", &[
                ALLOWED_MODE,
                needed("tools", Shape::List { of: &FLAT_CHOSEN, least: 1, most: MOST_TOOLS }, ALLOWED),
            ]),
        ],
        default: None,
        otherwise: CHOICES,
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
    let (choice, allowed) = choice(body.any("tool_choice"));
    let parallel = body.flag("parallel_tool_calls").unwrap_or(true);
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let error = format!("the tool {:?} is given twice", tool.name);
            return Err(ApiError::bad_request(error).param(format!("tools[{index}]")));
        }
    }
    let known = |name: &String| tools.iter().any(|tool| tool.name == *name);
    let named = match &choice {
        _ if !allowed.iter().flatten().all(known) => false,
        ToolChoice::Named(name) => known(name),
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
        allowed,
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

/// A choice in either form, and the tools that may be called if those are not all.
fn choice(asked: Option<Value>) -> (ToolChoice, Option<Vec<String>>) {
    let mode = |mode: Option<&str>| match mode {
        Some("none") => ToolChoice::None,
        Some("required") => ToolChoice::Required,
        _ => ToolChoice::Auto,
    };
    let Some(named @ Value::Object(_)) = asked else {
        return (mode(asked.as_ref().and_then(Value::as_str)), None);
    };
    let mut named = Body::of(named);
    if named
        .text("type")
        .is_some_and(|kind| kind == "allowed_tools")
    {
        let mut allowed = named.object("allowed_tools").unwrap_or(named);
        let names = allowed.list("tools").into_iter().map(name);
        let names = names.collect();
        return (mode(allowed.text("mode").as_deref()), Some(names));
    }
    (ToolChoice::Named(function_name(named)), None)
}

fn name(tool: Value) -> String {
    function_name(Body::of(tool))
}

/// The name of a tool that is referred to in either form.
fn function_name(mut tool: Body) -> String {
    let mut function = tool.object("function").unwrap_or(tool);
    function.text("name").unwrap_or_default()
}
