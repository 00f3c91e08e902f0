//! The command line. Everything is here so that the binary is thin and tests reach it.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused, 5 no server answers, 6 a check found problems, 78 the
//! configuration is wrong.

mod administer;
mod configuration;
mod db;
mod descriptors;
mod federation;
mod health;
mod keys;
mod output;
mod serve;
mod token;
mod user;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use self::output::print;
use crate::config::{Loaded, Sources};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    NoServer = 5,
    ChecksFailed = 6,
    BadConfiguration = 78,
}

/// A Matrix homeserver in one binary.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of every command.
#[derive(Debug, Args)]
struct Global {
    /// A configuration file; may be repeated, later ones win.
    #[arg(long, global = true, value_name = "PATH")]
    config: Vec<PathBuf>,
    /// Sets one key of the configuration: `-o log.filter=debug`.
    #[arg(short = 'o', global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Prints JSON instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    /// Answers yes to every question.
    #[arg(long, global = true)]
    yes: bool,
    /// Prints errors only.
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the server (the default).
    Serve(serve::Options),
    /// Shows and checks the configuration.
    #[command(subcommand)]
    Config(configuration::Command),
    /// Asks a running server whether it is ready.
    Health(health::Options),
    /// Makes and changes accounts.
    #[command(subcommand)]
    User(user::Command),
    /// Makes and revokes registration tokens.
    #[command(subcommand)]
    Token(token::Command),
    /// Looks after the database.
    #[command(subcommand)]
    Db(db::Command),
    /// Looks at other servers.
    #[command(subcommand)]
    Federation(federation::Command),
    /// Shows and changes the keys that sign what the server sends.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Prints the version.
    Version,
}

impl Global {
    fn sources(&self) -> Sources {
        #[expect(
            clippy::disallowed_methods,
            reason = "the command line is where the environment is read"
        )]
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("HEARTH_"))
            .collect();
        Sources::find(&self.config, environment, self.set.clone())
    }

    fn load(&self, sources: &Sources) -> Result<Loaded, Exit> {
        match sources.load() {
            Ok(loaded) => {
                if !self.quiet {
                    output::print_error(&loaded.warnings.to_string());
                }
                Ok(loaded)
            }
            Err(problems) => {
                output::print_error(&problems.to_string());
                Err(Exit::BadConfiguration)
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the command of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is all that can go wrong, and then nobody reads.
            let _printed = error.print().is_ok();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    let global = &cli.global;
    let exit = match cli
        .command
        .unwrap_or_else(|| Command::Serve(serve::Options::default()))
    {
        Command::Serve(options) => serve::run(global, &options),
        Command::Config(command) => configuration::run(global, &command),
        Command::Health(options) => health::run(global, &options),
        Command::User(command) => user::run(global, command),
        Command::Token(command) => token::run(global, command),
        Command::Db(command) => db::run(global, &command),
        Command::Federation(command) => federation::run(global, command),
        Command::Keys(command) => keys::run(global, &command),
        Command::Version => {
            print(&format!("hearth {}\n", env!("CARGO_PKG_VERSION")));
            Exit::Done
        }
    };
    exit.into()
}
