//! Scripted answers with calls and log-probabilities, and answers to questions. Here each character is a token.

use super::{accepted, finished, text};
use pocket_llm::engine::{
    Answer, Embedded, EngineError, Event, FinishReason, Likelihood, Logprob, Prompt, Question,
    Request, Role, Token,
};
use std::fmt::Write;

/// One call, or two and a word before them.
pub(super) fn calls(two: bool) -> Vec<Event> {
    let piece = |index, name: Option<&str>, arguments: &str| Event::ToolCall {
        index,
        name: name.map(str::to_owned),
        arguments: arguments.into(),
    };
    let mut events = vec![accepted(), Event::Started { cached_tokens: 2 }];
    if two {
        events.push(text("Wait."));
    }
    events.push(piece(0, Some("weather"), ""));
    events.push(piece(0, None, r#"{"place":"#));
    events.push(piece(0, None, r#""Köln"}"#));
    if two {
        events.push(piece(1, Some("clock"), "{}"));
    }
    events.push(finished(FinishReason::ToolCalls));
    events
}

/// `Höh` as after some thought, in tokens that cut the `ö`.
pub(super) fn with_thoughts(request: &Request) -> Vec<Event> {
    let mut events = with_logprobs(request);
    events.insert(2, super::thought("Hm."));
    events
}

/// `Höh` in tokens that cut the `ö`, after the prompt if that is echoed.
pub(super) fn with_logprobs(request: &Request) -> Vec<Event> {
    let most = request.logprobs;
    let mut events = vec![accepted(), Event::Started { cached_tokens: 2 }];
    if request.echo {
        let prompt = match &request.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(tokens) => detokenized(tokens),
            Prompt::Messages(_) => String::new(),
        };
        let mut logprobs: Vec<Logprob> = prompt
            .chars()
            .map(|c| logprob(c.to_string().as_bytes(), most))
            .collect();
        if let Some(first) = logprobs.first_mut() {
            first.chosen.logprob = 0.0;
            first.top.clear();
        }
        events.push(piece(&prompt, logprobs, most));
    }
    if request.max_tokens == Some(0) {
        events.push(finished(FinishReason::Length));
        return events;
    }
    let said: [(&str, &[&[u8]]); 3] = [("H", &[b"H"]), ("ö", &[b"\xc3", b"\xb6"]), ("h", &[b"h"])];
    for (said, tokens) in said {
        let logprobs = tokens.iter().map(|bytes| logprob(bytes, most)).collect();
        events.push(piece(said, logprobs, most));
    }
    events.push(finished(FinishReason::Stop));
    events
}

fn piece(text: &str, logprobs: Vec<Logprob>, wanted: Option<u32>) -> Event {
    Event::Text {
        text: text.into(),
        thinking: false,
        logprobs: wanted.map(|_| logprobs).unwrap_or_default(),
    }
}

fn logprob(bytes: &[u8], most: Option<u32>) -> Logprob {
    let likelihood = |bytes: &[u8], logprob| Likelihood {
        token: Token(u32::from(bytes[0])),
        bytes: bytes.into(),
        logprob,
    };
    let top = [(bytes, -0.25), (b"x".as_slice(), -1.5), (b"y", f32::MIN)];
    let top = top.into_iter().take(most.unwrap_or(0) as usize);
    Logprob {
        chosen: likelihood(bytes, -0.25),
        top: top.map(|(bytes, log)| likelihood(bytes, log)).collect(),
    }
}

fn detokenized(tokens: &[Token]) -> String {
    let character = |token: &Token| char::from_u32(token.0).unwrap_or('?');
    tokens.iter().map(character).collect()
}

/// What is said to a question.
pub(super) fn answer(question: &Question) -> Event {
    Event::Answered(match question {
        Question::Tokenize { text, .. } => {
            let token = |c: char| (Token(u32::from(c)), c.to_string().into_bytes());
            let mut tokens: Vec<_> = text.chars().map(token).collect();
            if let Some(cut) = tokens.iter_mut().find(|(_, bytes)| bytes.len() > 1) {
                cut.1.truncate(1);
            }
            Answer::Tokens(tokens)
        }
        Question::Detokenize { tokens } => Answer::Text(detokenized(tokens)),
        Question::Render { messages, tools } => {
            let mut prompt = String::new();
            for message in messages {
                let who = match message.role {
                    Role::System => "system",
                    Role::User => "user",
                    Role::Assistant => "assistant",
                    Role::Tool => "tool",
                };
                write!(prompt, "<{who}>{}", message.content).unwrap();
            }
            if let Some(tools) = tools {
                write!(prompt, "<tools>{}", tools.tools.len()).unwrap();
            }
            Answer::Text(prompt)
        }
        Question::Embed { inputs, .. } => {
            let mut embedded = Embedded::default();
            for input in inputs {
                let tokens = match input {
                    Prompt::Text(text) => text.chars().count(),
                    Prompt::Tokens(tokens) => tokens.len(),
                    Prompt::Messages(_) => {
                        let error = "a chat has no embedding".into();
                        return Event::Failed(EngineError::BadRequest(error));
                    }
                };
                embedded.prompt_tokens += u32::try_from(tokens).unwrap();
                embedded.vectors.push(vec![0.5, -0.5, 0.5, 0.5]);
            }
            Answer::Embeddings(embedded)
        }
    })
}
