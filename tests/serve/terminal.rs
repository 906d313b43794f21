//! `pocket-llm run`: one prompt in a pipeline, or a chat in a terminal.

use crate::models::test_model;
use crate::program::{Finished, Program};
use crate::server::FILE;
use rustix::process::Signal;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const FRANCE: &str = "What is the capital of France? Answer in one sentence.";
const STORY: &str = "Write a very long story about a dog.";

fn settings(command: &mut Command) {
    command
        .env("POCKET_LLM_THREADS", "1")
        .env("POCKET_LLM_BATCH_SIZE", "48")
        .env("POCKET_LLM_TEMPERATURE", "0")
        .env("POCKET_LLM_CTX_SIZE", "2048");
}

fn start(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Program {
    Program::start(&["run"], |command| {
        command.arg(test_model(FILE)).args(arguments);
        settings(command);
        change(command);
    })
}

/// An answer to these arguments and this text from a pipe.
async fn run(arguments: &[&str], piped: Option<&str>) -> Finished {
    let mut program = start(arguments, |command| {
        if piped.is_some() {
            command.stdin(Stdio::piped());
        }
    });
    if let Some(text) = piped {
        program.type_in(text);
        program.close_input();
    }
    program.finished().await
}

#[tokio::test]
async fn the_answer_and_nothing_else_is_standard_output() {
    let asked = run(&[FRANCE, "--temperature", "0"], None).await;
    assert!(asked.status.success(), "{}", asked.stderr);
    assert!(
        asked.stdout.contains("Paris") && asked.stdout.ends_with('\n'),
        "{}",
        asked.stdout
    );
    assert!(!asked.stdout.contains("<|"), "{}", asked.stdout);
    assert_eq!(asked.stderr, "");
    let piped = run(&[], Some(FRANCE)).await;
    assert!(piped.status.success(), "{}", piped.stderr);
    assert_eq!(piped.stdout, asked.stdout);
}

#[tokio::test]
async fn a_pipe_comes_after_the_prompt() {
    let question = "What is this text about?";
    let text = "The Eiffel Tower is in Paris.\n";
    let both = run(&[question, "-n", "24"], Some(text)).await;
    let whole = format!("{question}\n\n{text}");
    let one = run(&[&whole, "-n", "24"], None).await;
    assert!(both.status.success() && one.status.success());
    assert!(!both.stdout.trim().is_empty());
    assert_eq!(both.stdout, one.stdout);
}

#[tokio::test]
async fn the_speed_is_told_on_standard_error_to_who_asks() {
    for (flags, value) in [(&["-v"][..], None), (&[], Some("true")), (&[], Some("1"))] {
        let program = start(&["hi", "-n", "4"], |command| {
            command.args(flags);
            if let Some(value) = value {
                command.env("POCKET_LLM_VERBOSE", value);
            }
        });
        let finished = program.finished().await;
        assert!(finished.status.success(), "{value:?}: {}", finished.stderr);
        assert!(
            finished.stderr.contains("answer 4 tokens at"),
            "{}",
            finished.stderr
        );
    }
}

/// `pocket-llm run … | head -c 1`
#[tokio::test]
async fn a_reader_that_has_enough_ends_it_quietly() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let program = start(&[STORY], |command| {
        command.stdout(writer);
    });
    let first = tokio::task::spawn_blocking(move || {
        let mut byte = [0];
        reader.read_exact(&mut byte).map(|()| byte)
    });
    assert!(first.await.unwrap().is_ok());
    let finished = program.finished().await;
    assert!(finished.status.success(), "{}", finished.stderr);
    assert_eq!(finished.stderr, "");
}

#[tokio::test]
async fn an_interrupt_ends_the_answer_with_130() {
    let program = start(&[STORY], |_| {});
    program
        .until("it speaks", |program| !program.output().is_empty())
        .await;
    program.signal(Signal::INT);
    let interrupted = Instant::now();
    let finished = program.finished().await;
    assert_eq!(finished.status.code(), Some(130), "{}", finished.stderr);
    assert!(interrupted.elapsed() < Duration::from_secs(10));
    assert_eq!(finished.stderr.trim(), "");
}

#[tokio::test]
async fn a_model_that_can_not_be_loaded_is_one_sentence() {
    for (arguments, expected) in [
        (
            ["run", "/no/such/model.gguf", "hi"],
            "/no/such/model.gguf can't be opened",
        ),
        (["run", "Cargo.toml", "hi"], "Cargo.toml is not a GGUF file"),
    ] {
        let finished = Program::start(&arguments, |_| {}).finished().await;
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
        let sentence = format!("pocket-llm: {expected}");
        assert!(
            finished.stderr.starts_with(&sentence),
            "{}",
            finished.stderr
        );
        assert_eq!(
            (finished.stderr.lines().count(), finished.stdout.as_str()),
            (1, "")
        );
    }
}

/// A chat in a pseudo-terminal, which `script` makes: what we write to its standard input is typed.
fn chat() -> Program {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let model = test_model(FILE);
    let line = [
        env!("CARGO_BIN_EXE_pocket-llm"),
        "run",
        model.to_str().unwrap(),
    ];
    // Without `exec` a shell stays before the program: Ctrl-C ends it too, and its status is what `script` returns.
    let line = format!("exec {}", line.map(quoted).join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    Program::spawn(command, |command| {
        command
            .stdin(Stdio::piped())
            .env("POCKET_LLM_MAX_TOKENS", "600");
        settings(command);
    })
}

/// Prompts that stand at the beginning of a line.
fn prompts(program: &Program) -> usize {
    program.output().matches("\n> ").count()
}

async fn asks_again(program: &Program, turns: usize) {
    program
        .until("it asks again", |program| prompts(program) == turns)
        .await;
}

#[tokio::test]
async fn a_chat_has_turns_and_ctrl_c_stops_an_answer_only() {
    let mut chat = chat();
    asks_again(&chat, 1).await;
    assert!(chat.output().contains("is ready."), "{}", chat.output());
    chat.type_in(&format!("{FRANCE}\n"));
    asks_again(&chat, 2).await;
    assert!(chat.output().contains("Paris"), "{}", chat.output());
    // The second turn knows the first.
    chat.type_in("Which city did I ask about?\n");
    asks_again(&chat, 3).await;
    let before = chat.output().len();
    chat.type_in(&format!("{STORY}\n"));
    // More than the terminal's echo.
    let speaks = before + STORY.len() + 30;
    chat.until("it speaks", |chat| chat.output().len() > speaks)
        .await;
    let interrupted = chat.output().len();
    chat.type_in("\u{3}");
    asks_again(&chat, 4).await;
    assert!(chat.output().len() < interrupted + 500, "{}", chat.output());
    chat.type_in("/clear\n");
    asks_again(&chat, 5).await;
    chat.type_in(&format!("{FRANCE}\n"));
    asks_again(&chat, 6).await;
    chat.type_in("\u{4}");
    let finished = chat.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stdout);
}

#[tokio::test]
async fn ctrl_c_ends_a_chat_that_is_not_answering() {
    let mut chat = chat();
    asks_again(&chat, 1).await;
    chat.type_in("\u{3}");
    let finished = chat.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stdout);
}
