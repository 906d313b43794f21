use super::{CallSplitter, Key, Syntax, ToolPlan, plan};
use crate::engine::{Event, Tool, ToolChoice, Tools};
use crate::worker::constraint::Form;
use proptest::prelude::*;
use serde_json::{Value, json};

const BARE: Syntax = Syntax::Bare(Key::Parameters);

fn tools(choice: ToolChoice, parallel: bool) -> Tools {
    let tool = |name: &str, parameters: Option<Value>| Tool {
        name: name.into(),
        description: None,
        parameters,
    };
    let city = json!({"properties": {"city": {"type": "string"}}, "required": ["city"]});
    Tools {
        tools: vec![tool("get_weather", Some(city)), tool("get", None)],
        choice,
        parallel,
        allowed: None,
    }
}

/// What comes out: text, then each call's name and arguments, and text behind them, in order.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Text(String),
    Call(u32, String, String),
}

fn text(text: &str) -> Said {
    Said::Text(text.into())
}

fn call(index: u32, name: &str, arguments: &str) -> Said {
    Said::Call(index, name.into(), arguments.into())
}

/// Splits an answer that comes in these pieces, and checks that a name comes with the first piece of each call only.
fn split<'a>(syntax: Syntax, cut: bool, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Said> {
    let mut splitter =
        CallSplitter::new(&tools(ToolChoice::Auto, true), syntax).expect("calls are allowed");
    let mut events = Vec::new();
    let (mut whole, mut begins) = (String::from("thoughts"), Vec::new());
    for piece in pieces {
        begins.extend(splitter.push(piece, whole.len(), &mut events));
        whole.push_str(piece);
    }
    begins.extend(splitter.finish(cut, &mut events));
    let texts = events.iter().filter_map(|event| match event {
        Event::Text { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let there = begins.iter().map(|at| &whole[*at..]);
    let mut pairs = texts.clone().zip(there);
    assert!(
        pairs.all(|(text, there)| there.starts_with(text)),
        "{events:?}"
    );
    assert_eq!(texts.count(), begins.len());
    let mut said: Vec<Said> = Vec::new();
    for event in events {
        match (event, said.last_mut()) {
            (Event::Text { text, .. }, Some(Said::Text(before))) => before.push_str(&text),
            (Event::Text { text, .. }, _) => said.push(Said::Text(text)),
            (
                Event::ToolCall {
                    index,
                    name: None,
                    arguments,
                },
                Some(Said::Call(at, _, before)),
            ) => {
                assert_eq!(index, *at);
                before.push_str(&arguments);
            }
            (
                Event::ToolCall {
                    index,
                    name,
                    arguments,
                },
                _,
            ) => {
                said.push(Said::Call(
                    index,
                    name.expect("a call's first piece names it"),
                    arguments,
                ));
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    let calls = said.iter().filter(|said| matches!(said, Said::Call(..)));
    assert_eq!(splitter.calls() as usize, calls.count());
    said
}

/// Answers, and what they say if they end by themselves.
fn examples() -> Vec<(Syntax, &'static str, Vec<Said>)> {
    [calls_in_tags(), text_with_marks(), bare_calls()].concat()
}

const WEATHER: &str = r#"{"city": "Paris"}"#;

fn calls_in_tags() -> Vec<(Syntax, &'static str, Vec<Said>)> {
    vec![
        (Syntax::Tagged, "", vec![]),
        (Syntax::Tagged, "Hello.\n", vec![text("Hello.\n")]),
        (
            Syntax::Tagged,
            "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
            vec![call(0, "get_weather", WEATHER)],
        ),
        (
            Syntax::Tagged,
            "Let me  see.\n\n<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\": \"Paris\"}}</tool_call>\n",
            vec![text("Let me  see."), call(0, "get_weather", WEATHER)],
        ),
        (
            Syntax::Tagged,
            "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"parameters\": {\"a\": [{}, \"}\\\"]\\\\\"], \"b\": {\"c\": 1}}}\n</tool_call>\n Done. ",
            vec![
                call(0, "get", "{}"),
                call(1, "get_weather", r#"{"a": [{}, "}\"]\\"], "b": {"c": 1}}"#),
                text("Done. "),
            ],
        ),
        (
            Syntax::Tagged,
            "<tool_call>{ \"name\" : \"get\" }</tool_call>",
            vec![call(0, "get", "{}")],
        ),
    ]
}

/// What only looks like a call, and what is in one besides.
fn text_with_marks() -> Vec<(Syntax, &'static str, Vec<Said>)> {
    vec![
        (
            Syntax::Tagged,
            "a <tool_cal> <<tool_call",
            vec![text("a <tool_cal> <<tool_call")],
        ),
        (
            Syntax::Tagged,
            "Write <tool_call> before a call, like <tool_call>{\"name\": \"other\"} or <tool_call><tool_call>{\"name\": \"get\"}</tool_call>",
            vec![
                text(
                    "Write <tool_call> before a call, like <tool_call>{\"name\": \"other\"} or <tool_call>",
                ),
                call(0, "get", "{}"),
            ],
        ),
        (
            Syntax::Tagged,
            "<tool_call>\n{\"name\": \"get\", \"arguments\": \"none\"}\n</tool_call>",
            vec![text(
                "<tool_call>\n{\"name\": \"get\", \"arguments\": \"none\"}\n</tool_call>",
            )],
        ),
        (
            Syntax::Tagged,
            " <tool_call>\n{\"na",
            vec![text(" <tool_call>\n{\"na")],
        ),
        // More in a call than belongs there is dropped, up to its end.
        (
            Syntax::Tagged,
            "<tool_call>{\"name\": \"get\", \"arguments\": {}, \"x\": \"<</tool_call>} é</tool_call>é",
            vec![call(0, "get", "{}"), text("} é</tool_call>é")],
        ),
    ]
}

fn bare_calls() -> Vec<(Syntax, &'static str, Vec<Said>)> {
    vec![
        (BARE, "Hello {.", vec![text("Hello {.")]),
        (
            BARE,
            "\n{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
            vec![call(0, "get_weather", WEATHER)],
        ),
        (
            BARE,
            "{\"name\": \"get\"}; {\"name\": \"get\", \"parameters\": {\"é\": 1}}\n{\"name\": 1}",
            vec![
                call(0, "get", "{}"),
                call(1, "get", "{\"é\": 1}"),
                text("{\"name\": 1}"),
            ],
        ),
        (BARE, "  {\"answer\": 1}", vec![text("  {\"answer\": 1}")]),
        (BARE, "{\"name\": \"get", vec![text("{\"name\": \"get")]),
    ]
}

#[test]
fn calls_are_told_from_text() {
    for (syntax, answer, expected) in examples() {
        assert_eq!(split(syntax, false, [answer]), expected, "{answer}");
    }
}

#[test]
fn a_call_that_is_cut_short_says_what_there_is() {
    let whole = "I look. <tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let arguments = whole.find("{\"city").expect("it is there");
    let head = whole.find("<tool_call>").expect("it is there") + "<tool_call>".len();
    for cut in head..=whole.len() {
        let said = split(Syntax::Tagged, true, [&whole[..cut]]);
        assert_eq!(said[0], text("I look."), "{cut}");
        if cut <= arguments {
            assert_eq!(
                said.len(),
                1,
                "nothing of a call without arguments: {said:?}"
            );
        } else {
            let so_far = &whole[arguments..cut.min(arguments + 17)];
            assert_eq!(said[1..], [call(0, "get_weather", so_far)]);
        }
    }
}

#[test]
fn little_is_held_back() {
    let mut splitter = CallSplitter::new(&tools(ToolChoice::Auto, true), Syntax::Tagged)
        .expect("calls are allowed");
    let mut events = Vec::new();
    splitter.push(&" \n".repeat(10_000), 0, &mut events);
    let released = |events: &[Event]| match events {
        [Event::Text { text, .. }] => text.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(released(&events), 20_000 - super::split::MOST_SPACE);
    events.clear();
    splitter.push(
        &format!("<tool_call>{}", " ".repeat(10_000)),
        0,
        &mut events,
    );
    assert!(released(&events) > 10_000 - super::split::LONGEST_HEAD);
}

#[test]
fn who_may_not_call_is_not_listened_to() {
    assert!(CallSplitter::new(&tools(ToolChoice::None, true), Syntax::Tagged).is_none());
}

/// Parts of calls, in any order.
fn answers() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "<",
        "\n",
        " ",
        "{",
        "}",
        "\"",
        "\\",
        ":",
        ",",
        ";",
        "é",
        "text",
        "{\"name\": \"get\"",
        "\"get_weather\"",
        ", \"arguments\": {",
        "\"parameters\"",
        "{\"name\": \"get\", \"arguments\": {",
        "<tool_call>\n{\"name\": \"get_weather\", \"parameters\": {\"city\": \"<tool_call>\"}}\n</tool_call>",
    ]);
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn what_comes_out_does_not_depend_on_cuts(answer in answers(), bare: bool, cut: bool) {
        let syntax = if bare { BARE } else { Syntax::Tagged };
        let whole = split(syntax, cut, [answer.as_str()]);
        let mut characters: Vec<&str> = answer.split("").collect();
        prop_assert_eq!(&split(syntax, cut, characters.iter().copied()), &whole);
        // Two pieces each: characters in pairs that begin at either place.
        for skip in [0, 1] {
            characters.truncate(answer.chars().count() + 2);
            let pairs: Vec<String> = characters[skip..].chunks(2).map(<[&str]>::concat).collect();
            prop_assert_eq!(&split(syntax, cut, pairs.iter().map(String::as_str)), &whole);
        }
    }

    #[test]
    fn text_without_calls_comes_out_whole(answer in "[ \n<>{}a-zé\":]{0,40}") {
        let expected: Vec<Said> = (!answer.is_empty()).then(|| text(&answer)).into_iter().collect();
        prop_assert_eq!(split(Syntax::Tagged, false, [answer.as_str()]), expected);
    }

    #[test]
    fn arguments_come_out_as_they_were_written(texts in prop::collection::vec(".{0,6}", 0..4), nested: bool) {
        let mut arguments = json!({"texts": texts});
        if nested {
            arguments = json!({"}": [arguments, {}]});
        }
        let arguments = arguments.to_string();
        let answer = format!("<tool_call>\n{{\"name\": \"get\", \"arguments\": {arguments}}}\n</tool_call>");
        prop_assert_eq!(split(Syntax::Tagged, false, [answer.as_str()]), vec![call(0, "get", &arguments)]);
    }
}

fn lark(plan: &ToolPlan) -> &str {
    match &plan.form {
        Form::Calls { grammar, .. } => grammar,
        other @ Form::Asked(_) => panic!("{other:?}"),
    }
}

const CALLS: &str = concat!(
    "call: call_0 | call_1\n",
    "call_0: \"{\\\"name\\\": \\\"get_weather\\\", \\\"KEY\\\": \" arguments_0 \"}\"\n",
    "arguments_0: %json SCHEMA\n",
    "call_1: \"{\\\"name\\\": \\\"get\\\", \\\"KEY\\\": {}}\"\n",
);
const TAGGED: &str = "tagged: \"<tool_call>\\n\" call \"\\n</tool_call>\"\n";

#[test]
fn a_grammar_holds_calls_to_their_tools() {
    let schema = super::plan::schema(
        &json!({"properties": {"city": {"type": "string"}}, "required": ["city"]}),
    );
    let schema = schema.expect("a good schema");
    assert_eq!(schema["type"], "object");
    assert_eq!(schema["x-guidance"]["item_separator"], ", ");
    let calls = |key: &str| {
        CALLS
            .replace("KEY", key)
            .replace("SCHEMA", &schema.to_string())
    };
    let arguments = calls("arguments");
    for (choice, parallel, expected, start_after, again) in [
        (
            ToolChoice::Auto,
            false,
            format!("start: \"\\n\" call \"\\n</tool_call>\"\n{arguments}"),
            Some("<tool_call>"),
            false,
        ),
        (
            ToolChoice::Auto,
            true,
            format!("start: \"\\n\" call \"\\n</tool_call>\"\n{arguments}"),
            Some("<tool_call>"),
            true,
        ),
        (
            ToolChoice::Required,
            false,
            format!("start: tagged\n{TAGGED}{arguments}"),
            None,
            false,
        ),
        (
            ToolChoice::Required,
            true,
            format!("start: tagged (\"\\n\" tagged){{0,15}}\n{TAGGED}{arguments}"),
            None,
            false,
        ),
        (
            ToolChoice::Named("get".into()),
            true,
            format!(
                "start: tagged\n{TAGGED}call: call_0\ncall_0: \"{{\\\"name\\\": \\\"get\\\", \\\"arguments\\\": {{}}}}\"\n"
            ),
            None,
            false,
        ),
    ] {
        let plan = plan(&tools(choice, parallel), Syntax::Tagged, None).expect("a plan");
        assert_eq!(lark(&plan), expected);
        assert_eq!((plan.start_after, plan.again), (start_after, again));
    }
    let parameters = calls("parameters");
    for (choice, start) in [
        (
            ToolChoice::Auto,
            "start: call | TEXT\nTEXT: /[ \\t\\r\\n]*[^{ \\t\\r\\n](.|\\n)*/\n",
        ),
        (ToolChoice::Required, "start: call\n"),
    ] {
        let plan = plan(&tools(choice, true), BARE, None).expect("a plan");
        assert_eq!(lark(&plan), format!("{start}{parameters}"));
        assert_eq!((plan.start_after, plan.again), (None, false));
    }
}

#[test]
fn tools_that_can_not_be_used_are_told_why() {
    let good = tools(ToolChoice::Auto, true);
    let with = |change: &dyn Fn(&mut Tools)| {
        let mut tools = good.clone();
        change(&mut tools);
        tools.check()
    };
    assert_eq!(good.check(), Ok(()));
    let named = |name: &str| {
        let name = name.to_owned();
        move |tools: &mut Tools| tools.tools[0].name.clone_from(&name)
    };
    let renamed = |name: &str| with(&named(name));
    assert_eq!(renamed(&"x".repeat(64)), Ok(()));
    for name in ["", "a b", "é", "a\"", &"x".repeat(65)] {
        let error = renamed(name).expect_err(name);
        assert!(error.contains("is no name for a tool"), "{error}");
        assert!(error.len() < 200, "{error}");
    }
    assert!(renamed("get").is_err_and(|error| error.contains("two tools are called get")));
    assert!(with(&|tools| tools.tools.clear()).is_err());
    let many = |count: usize| {
        with(&|tools| {
            let tool = |index| Tool {
                name: format!("t{index}"),
                description: None,
                parameters: None,
            };
            tools.tools = (0..count).map(tool).collect();
        })
    };
    assert_eq!(many(128), Ok(()));
    assert!(many(129).is_err_and(|error| error.contains("send 1 to 128")));
    let big = |bytes| with(&|tools| tools.tools[0].description = Some("x".repeat(bytes)));
    assert_eq!(big(60_000), Ok(()));
    assert!(big(65_536).is_err_and(|error| error.contains("send at most 65536")));
    for (schema, good) in [
        (json!({}), true),
        (json!({"type": "object"}), true),
        (json!({"type": "array"}), false),
        (json!({"type": ["object", "null"]}), false),
        (json!(true), false),
    ] {
        let checked = with(&|tools| tools.tools[0].parameters = Some(schema.clone()));
        assert_eq!(checked.is_ok(), good, "{schema}");
    }
    let chosen = |name: &str| with(&|tools| tools.choice = ToolChoice::Named(name.into()));
    assert_eq!(chosen("get"), Ok(()));
    assert!(chosen("other").is_err_and(|error| error.contains("no tool is called \"other\"")));
}
