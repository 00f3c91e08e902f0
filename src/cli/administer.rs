//! Carries an administrator's command to a running server, or runs it on the database when no server does.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::Value;

use super::{
    Exit, Global,
    output::{print, print_error},
};
use crate::{
    admin::{self, Command},
    clock::Clock,
    config::Config,
    server::Server,
};

/// Deactivating somebody in many rooms takes its time.
const TIMEOUT: Duration = Duration::from_secs(300);
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// How a command ended.
enum Outcome {
    Done(Value),
    Failed(Exit, String),
}

/// Does what `command` says, wherever that is possible, and prints the answer.
pub(super) fn administer(global: &Global, command: &Command) -> Exit {
    let config = match global.load(&global.sources()) {
        Ok(loaded) => loaded.config,
        Err(exit) => return exit,
    };
    let outcome = match UnixStream::connect(config.admin_socket()) {
        Ok(stream) => ask(stream, command),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            run_offline(config, command.clone())
        }
        Err(error) => {
            let socket = config.admin_socket();
            Outcome::Failed(
                Exit::NoServer,
                format!("{} cannot be reached: {error}", socket.display()),
            )
        }
    };
    match outcome {
        Outcome::Done(answer) => {
            print(&if global.json {
                format!("{answer:#}\n")
            } else {
                as_text(&answer)
            });
            Exit::Done
        }
        Outcome::Failed(exit, reason) => {
            print_error(&format!("{reason}\n"));
            exit
        }
    }
}

/// Asks before something that cannot be undone. `false` without a terminal to ask on.
pub(super) fn is_confirmed(global: &Global, what: &str) -> bool {
    if global.yes {
        return true;
    }
    print_error(&format!("{what}\nGo on? [y/N] "));
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).is_ok();
    read && matches!(line.trim(), "y" | "Y" | "yes")
}

/// The text of a file, or of standard input for `-`, without the line break at its end.
pub(super) fn read_secret(path: &Path) -> Result<String, Exit> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map(|_bytes| text)
    } else {
        std::fs::read_to_string(path)
    };
    match read {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => {
            print_error(&format!("{} cannot be read: {error}\n", path.display()));
            Err(Exit::Failed)
        }
    }
}

fn ask(mut stream: UnixStream, command: &Command) -> Outcome {
    let no_answer = |error: std::io::Error| {
        Outcome::Failed(
            Exit::NoServer,
            format!("the server does not answer: {error}"),
        )
    };
    let body = serde_json::to_string(command).unwrap_or_default();
    let request = format!(
        "POST /_hearth/v1/command HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    if let Err(error) = stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.write_all(request.as_bytes()))
    {
        return no_answer(error);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer) {
        return no_answer(error);
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).unwrap_or_default();
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    match status {
        "200" => Outcome::Done(body),
        _ => failed(&body),
    }
}

fn failed(body: &Value) -> Outcome {
    let text = |key: &str| {
        body.get(key)
            .and_then(Value::as_str)
            .unwrap_or("the server does not answer as it should")
    };
    let exit = match text("errcode") {
        "M_NOT_FOUND" => Exit::NotFound,
        "CHAT.HEARTH.CONFLICT" => Exit::Refused,
        "CHAT.HEARTH.PROBLEMS" => Exit::ChecksFailed,
        _ => Exit::Failed,
    };
    let problems = body.get("problems").and_then(Value::as_array);
    let reason = match problems {
        Some(problems) => problems
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join("\n"),
        None => text("error").to_owned(),
    };
    Outcome::Failed(exit, reason)
}

fn run_offline(config: Config, command: Command) -> Outcome {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return Outcome::Failed(
                Exit::Failed,
                format!("the runtime cannot be started: {error}"),
            );
        }
    };
    runtime.block_on(async {
        let server = match Server::open(config, Clock::system()).await {
            Ok(server) => server,
            Err(error) => {
                return Outcome::Failed(Exit::NoServer, format!("no server answers, and {error}"));
            }
        };
        let outcome = admin::run(&server, command).await;
        if let Err(error) = server.close().await {
            return Outcome::Failed(Exit::Failed, error.to_string());
        }
        match outcome {
            Ok(answer) => Outcome::Done(answer),
            Err(error) => Outcome::Failed(exit_of(&error), error.to_string()),
        }
    })
}

fn exit_of(error: &admin::Error) -> Exit {
    match error {
        admin::Error::NotFound(_) => Exit::NotFound,
        admin::Error::Refused(_) => Exit::Refused,
        admin::Error::Problems(_) => Exit::ChecksFailed,
        admin::Error::Failed(_) => Exit::Failed,
    }
}

/// An object as lines of `key: value`, a list of objects as a table.
fn as_text(answer: &Value) -> String {
    match answer {
        Value::Array(rows) => {
            let heads: Vec<&String> = rows
                .first()
                .and_then(Value::as_object)
                .into_iter()
                .flat_map(|row| row.keys())
                .collect();
            let mut lines = vec![
                heads
                    .iter()
                    .map(|head| head.as_str())
                    .collect::<Vec<_>>()
                    .join("\t"),
            ];
            for row in rows {
                let cells = heads
                    .iter()
                    .map(|head| row.get(head.as_str()).map(cell).unwrap_or_default());
                lines.push(cells.collect::<Vec<_>>().join("\t"));
            }
            lines.join("\n") + "\n"
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| format!("{key}: {}\n", cell(value)))
            .collect(),
        other => format!("{other}\n"),
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
