//! Parses the command line, starts logging, runs the subcommand, prints the error chain and chooses the exit code.

use clap::Parser;
use pocket_llm::cli::Cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match pocket_llm::cli::main(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pocket-llm: {error:#}");
            ExitCode::FAILURE
        }
    }
}
