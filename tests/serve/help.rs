//! What the program says about itself.

use crate::program::{Finished, Program};
use std::process::Stdio;

async fn run(arguments: &[&str]) -> Finished {
    Program::start(arguments, |_| {}).finished().await
}

#[tokio::test]
async fn the_version_names_llama_cpp_and_the_cpu_features() {
    let finished = run(&["--version"]).await;
    assert!(finished.status.success());
    let version = finished.stdout;
    assert!(
        version.starts_with(&format!("pocket-llm {}\n", env!("CARGO_PKG_VERSION"))),
        "{version}"
    );
    assert!(
        version.contains("llama.cpp: llama-cpp-sys-2 0."),
        "{version}"
    );
    let features = version
        .lines()
        .find_map(|line| line.strip_prefix("CPU features compiled in: "));
    let features: Vec<&str> = features.expect(&version).split(' ').collect();
    let expected = [
        ("avx2", cfg!(target_feature = "avx2")),
        ("neon", cfg!(target_feature = "neon")),
    ];
    for (feature, compiled) in expected {
        assert_eq!(
            features.contains(&feature),
            compiled,
            "{feature}: {version}"
        );
    }
}

/// Each flag of a help text with all that is said about it, in one line.
fn flags(help: &str) -> Vec<String> {
    let mut flags: Vec<String> = Vec::new();
    let mut in_flag = false;
    for line in help.lines() {
        let text = line.trim_start();
        // Flags stand two or six columns in, what is said about them further right, headings at the margin.
        let column = line.len() - text.len();
        if text.starts_with('-') && column <= 6 {
            flags.push(text.into());
            in_flag = true;
        } else if !text.is_empty() && column <= 6 {
            in_flag = false;
        } else if in_flag && let Some(flag) = flags.last_mut() {
            flag.push(' ');
            flag.push_str(text);
        }
    }
    flags
}

#[tokio::test]
async fn every_flag_names_its_environment_variable() {
    let help = run(&["--help"]).await.stdout;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(
        commands,
        [
            "serve", "run", "pull", "list", "show", "verify", "rm", "bench", "tune", "help"
        ],
        "the engine is not for people"
    );
    let mut texts = vec![(String::new(), help.clone())];
    for command in commands.iter().filter(|command| **command != "help") {
        let finished = run(&[command, "--help"]).await;
        assert!(finished.status.success());
        texts.push((format!("{}_", command.to_uppercase()), finished.stdout));
    }
    for (command, text) in &texts {
        let flags = flags(text);
        assert!(flags.len() > 3, "{text}");
        for flag in flags {
            let (_, name) = flag.split_once("--").unwrap();
            let name = name.split([' ', '=']).next().unwrap();
            // What replaces files is typed each time.
            if ["help", "version", "force"].contains(&name) {
                continue;
            }
            let name = name.to_uppercase().replace('-', "_");
            let variables = ["", command].map(|of| format!("[env: POCKET_LLM_{of}{name}"));
            assert!(
                variables.iter().any(|variable| flag.contains(variable)),
                "{variables:?}: {flag}"
            );
        }
        assert!(!text.contains("engine-launcher"));
    }
    assert!(
        flags(&texts[1].1).len() > 15,
        "the walk misses some: {}",
        texts[1].1
    );
}

#[tokio::test]
async fn the_engine_refuses_to_be_started_by_a_person() {
    for piped in [false, true] {
        let program = Program::start(&["engine"], |command| {
            if piped {
                command.stdin(Stdio::piped());
            }
        });
        let finished = program.finished().await;
        assert_eq!(finished.status.code(), Some(1));
        assert!(
            finished
                .stderr
                .starts_with("pocket-llm: `engine` is started by"),
            "{}",
            finished.stderr
        );
        assert_eq!(
            (finished.stderr.lines().count(), finished.stdout.as_str()),
            (1, "")
        );
    }
}
