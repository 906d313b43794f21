//! Calls of tools, from a chat to events: the real worker with a scripted model, without llama.cpp.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/scripted.rs"]
mod scripted;

use pocket_llm::engine::{
    Answer, EngineError, EngineHandle, EngineState, Event, FinishReason, Message, Prompt, Question,
    Request, Role, Tool, ToolChoice, Tools,
};
use scripted::{Script, options, read, request};
use serde_json::{Value, json};
use std::sync::Arc;

/// Bytes and control tokens between what the user says and what the model says, in the scripted model's format: the
/// script counts them as said already.
const BETWEEN: &str = ".............";

/// A template that knows tools, in the manner of Llama 3: a call is the whole answer.
const BARE: &str = r#"{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}{% endfor %}<|im_end|>
{% endfor %}<|im_start|>{{ 'assistant\n' }}"#;

/// A template of a model that thinks.
const THINKING: &str = r"{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|im_end|>
{% endfor %}<|im_start|>{{ 'assistant\n' }}";

/// Room for a description of tools, a token for each byte.
const CONTEXT: u32 = 4096;

async fn with_template(template: impl Into<Option<&'static str>>) -> EngineHandle {
    let mut options = options(&Arc::new(Script::default()), 1, 1);
    options.config.ctx_size = Some(CONTEXT);
    options.config.chat_template = template.into().map(Into::into);
    let engine = EngineHandle::start(options).unwrap();
    engine.loaded().await;
    engine
}

async fn plain() -> EngineHandle {
    with_template(None).await
}

fn tools(choice: ToolChoice) -> Tools {
    let tool = |name: &str, parameters: Option<Value>| Tool {
        name: name.into(),
        description: Some(format!("What {name} does")),
        parameters,
    };
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    Tools {
        tools: vec![tool("get_weather", Some(city)), tool("clock", None)],
        choice,
        allowed: None,
        parallel: true,
    }
}

/// A chat with tools that the scripted model answers so.
fn answered(answer: &str) -> Request {
    let said = format!("say:{BETWEEN}{answer}|");
    Request {
        prompt: Prompt::Messages(vec![Message::new(Role::User, said)]),
        tools: Some(tools(ToolChoice::Auto)),
        ..request("")
    }
}

/// What a client makes of the events.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    text: String,
    thinking: String,
    calls: Vec<(String, String)>,
}

fn heard(events: &[Event]) -> Heard {
    let mut heard = Heard::default();
    for event in events {
        match event {
            Event::Text { text, thinking, .. } if *thinking => heard.thinking += text,
            Event::Text { text, .. } => heard.text += text,
            Event::ToolCall {
                index,
                name,
                arguments,
            } => {
                let index = *index as usize;
                if let Some(name) = name {
                    assert_eq!(
                        index,
                        heard.calls.len(),
                        "calls come in order, each named once"
                    );
                    heard.calls.push((name.clone(), String::new()));
                }
                heard.calls[index].1 += arguments;
            }
            _ => {}
        }
    }
    heard
}

async fn ask(engine: &EngineHandle, request: Request) -> (Heard, FinishReason) {
    let told = read(engine.submit(request).unwrap()).await;
    (heard(&told.events), told.outcome().reason)
}

fn calls(calls: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, arguments): &(&str, &str)| ((*name).into(), (*arguments).into());
    calls.iter().map(owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_streamed_as_they_are_written() {
    let engine = plain().await;
    let answer = "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Ås\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";
    let told = read(engine.submit(answered(answer)).unwrap()).await;
    let expected = Heard {
        text: "Let me see.".into(),
        thinking: String::new(),
        calls: calls(&[("get_weather", "{\"city\": \"Ås\"}"), ("clock", "{}")]),
    };
    assert_eq!(heard(&told.events), expected);
    assert_eq!(told.outcome().reason, FinishReason::ToolCalls);
    // The scripted model's tokens are bytes, so there is a piece for each character of the arguments.
    let of_first = |event: &&Event| matches!(event, Event::ToolCall { index: 0, .. });
    let pieces = told.events.iter().filter(of_first).count();
    assert_eq!(pieces, expected.calls[0].1.chars().count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_off_in_a_call_says_what_there_is() {
    let engine = plain().await;
    let answer = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let arguments = answer.find("{\"city").unwrap();
    for (tokens, expected) in [
        (arguments, calls(&[])),
        (arguments + 1, calls(&[("get_weather", "{")])),
        (arguments + 9, calls(&[("get_weather", "{\"city\": ")])),
    ] {
        let request = Request {
            max_tokens: Some(u32::try_from(tokens).unwrap()),
            ..answered(answer)
        };
        let (heard, reason) = ask(&engine, request).await;
        assert_eq!((heard.text.as_str(), heard.calls), ("", expected));
        assert_eq!(reason, FinishReason::Length);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_call_is_text() {
    let engine = plain().await;
    let call = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";
    let with_choice = |choice| Request {
        tools: Some(tools(choice)),
        ..answered(call)
    };
    let without = Request {
        tools: None,
        ..answered(call)
    };
    for (request, said) in [(with_choice(ToolChoice::None), call), (without, call)] {
        let (heard, reason) = ask(&engine, request).await;
        assert_eq!((heard.text.as_str(), heard.calls), (said, vec![]));
        assert_eq!(reason, FinishReason::Stop);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_begins_as_a_call_becomes_one() {
    let engine = plain().await;
    for answer in [
        "<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>",
        "I would <tool_call> a friend. ",
    ] {
        let (heard, _) = ask(&engine, answered(answer)).await;
        let names: Vec<&str> = heard.calls.iter().map(|(name, _)| &**name).collect();
        assert!(
            matches!(names[..], ["clock" | "get_weather", ..]),
            "{names:?}"
        );
        assert!(!heard.text.contains("<tool_call>"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_object_is_a_call_where_the_template_writes_them_so() {
    let engine = with_template(BARE).await;
    let EngineState::Ready(info) = engine.state() else {
        panic!("{:?}", engine.state())
    };
    assert!(info.template_knows_tools);
    let call = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}";
    let (heard, reason) = ask(&engine, answered(call)).await;
    let expected = calls(&[("get_weather", "{\"city\": \"Paris\"}")]);
    assert_eq!((heard.text.as_str(), heard.calls), ("", expected));
    assert_eq!(reason, FinishReason::ToolCalls);
    // What begins as an object is a call.
    let (heard, _) = ask(&engine, answered("{\"city\": \"Paris\"}")).await;
    assert_eq!((heard.text.as_str(), heard.calls.len()), ("", 1));
    let (heard, reason) = ask(&engine, answered("In Paris.")).await;
    assert_eq!((heard.text.as_str(), heard.calls), ("In Paris.", vec![]));
    assert_eq!(reason, FinishReason::Stop);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_only_thought_of_is_none() {
    let engine = with_template(THINKING).await;
    let EngineState::Ready(info) = engine.state() else {
        panic!("{:?}", engine.state())
    };
    assert!(info.thinks && !info.template_knows_tools);
    let call = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";
    let answer = format!("<think>Perhaps {call}?</think>\n\nWell. {call}");
    let (heard, reason) = ask(&engine, answered(&answer)).await;
    let expected = Heard {
        text: "Well.".into(),
        thinking: format!("Perhaps {call}?"),
        calls: calls(&[("clock", "{}")]),
    };
    assert_eq!((heard, reason), (expected, FinishReason::ToolCalls));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_are_those_of_the_text() {
    let engine = plain().await;
    let request = Request {
        logprobs: Some(0),
        ..answered("Hi.<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call> Bye")
    };
    let told = read(engine.submit(request).unwrap()).await;
    let mut before_call = Vec::new();
    let mut called = false;
    for event in &told.events {
        match event {
            Event::Text { logprobs, .. } if !called => {
                before_call.extend(
                    logprobs
                        .iter()
                        .flat_map(|logprob| logprob.chosen.bytes.clone()),
                );
            }
            Event::ToolCall { .. } => called = true,
            _ => {}
        }
    }
    assert_eq!(String::from_utf8(before_call).unwrap(), "Hi.");
    let all = told.events.iter().filter_map(|event| match event {
        Event::Text { logprobs, .. } => Some(logprobs.len()),
        _ => None,
    });
    assert_eq!(all.sum::<usize>(), "Hi.".len() + "Bye".len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_that_can_not_be_used_are_refused() {
    let engine = plain().await;
    let mut nameless = tools(ToolChoice::Auto);
    nameless.tools[0].name = "no name".into();
    for (request, reason) in [
        (
            Request {
                tools: Some(nameless.clone()),
                ..answered("x")
            },
            "is no name for a tool",
        ),
        (
            Request {
                tools: Some(tools(ToolChoice::Named("other".into()))),
                ..answered("x")
            },
            "no tool is called",
        ),
        (
            Request {
                tools: Some(tools(ToolChoice::Auto)),
                ..request("say:x|")
            },
            "only a chat has tools",
        ),
    ] {
        let told = read(engine.submit(request).unwrap()).await;
        let Some(Event::Failed(EngineError::BadRequest(error))) = told.events.last() else {
            panic!("{told:?}")
        };
        assert!(error.contains(reason), "{error}");
    }
    let render = |tools| Question::Render {
        messages: vec![Message::new(Role::User, "Hi")],
        tools: Some(tools),
    };
    let refused = engine.ask(render(nameless)).await;
    assert!(
        matches!(refused, Err(EngineError::BadRequest(_))),
        "{refused:?}"
    );
    let Ok(Answer::Text(text)) = engine.ask(render(tools(ToolChoice::Auto))).await else {
        panic!("no prompt")
    };
    assert!(
        text.contains("{\"name\": \"clock\", \"description\": \"What clock does\"}"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_a_stop_string_cuts_off_is_not_to_be_made() {
    let engine = plain().await;
    let answer = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    for stop in ["}", "Par", "get_w"] {
        let request = Request {
            stop: vec![stop.into()],
            ..answered(answer)
        };
        let (heard, reason) = ask(&engine, request).await;
        assert_eq!(
            (heard.text.as_str(), reason),
            ("", FinishReason::Stop),
            "{stop}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_allowed_tools_are_called_and_all_are_told_of() {
    let engine = plain().await;
    let answer = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let mut prompts = Vec::new();
    for (allowed, call) in [
        (None, ("get_weather", "{\"city\": \"Paris\"}")),
        (Some(vec!["clock".into()]), ("clock", "{}")),
    ] {
        let mut asked = answered(answer);
        asked.tools = asked.tools.map(|tools| Tools {
            allowed,
            parallel: false,
            ..tools
        });
        let Prompt::Messages(messages) = asked.prompt.clone() else {
            panic!("a chat")
        };
        let tools = asked.tools.clone();
        let render = Question::Render { messages, tools };
        prompts.push(engine.ask(render).await.unwrap());
        let (heard, reason) = ask(&engine, asked).await;
        assert_eq!(
            (heard.calls, reason),
            (calls(&[call]), FinishReason::ToolCalls)
        );
    }
    assert_eq!(
        prompts[0], prompts[1],
        "so that it is continued from the cache"
    );
    let mut asked = answered(answer);
    asked.tools = asked.tools.map(|tools| Tools {
        allowed: Some(vec!["nobody".into()]),
        ..tools
    });
    let told = read(engine.submit(asked).unwrap()).await;
    let last = told.events.last();
    assert!(
        matches!(last, Some(Event::Failed(EngineError::BadRequest(why))) if why.contains("\"nobody\"")),
        "{last:?}"
    );
}
