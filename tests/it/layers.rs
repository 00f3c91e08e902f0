//! Who may use whom. A module uses only modules that stand before it in the table.

use std::{collections::BTreeSet, fs, path::Path};

/// Each module and what it uses, from the foundation up. A new edge is a line in a review.
#[rustfmt::skip]
const MAY_USE: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("units", &[]),
    ("telemetry", &["units"]),
    ("tasks", &["telemetry"]),
    ("outbound", &["clock", "units", "telemetry", "tasks"]),
    ("storage", &["clock", "units", "telemetry", "tasks"]),
    ("events", &[]),
    ("accounts", &["clock", "units", "telemetry", "tasks", "storage", "events"]),
    ("rooms", &["clock", "units", "telemetry", "tasks", "storage", "events", "accounts"]),
    ("ephemeral", &["clock", "units", "telemetry", "tasks", "storage", "events", "accounts", "rooms"]),
    ("encryption", &["clock", "units", "telemetry", "tasks", "storage", "events", "accounts", "rooms"]),
    ("push", &["storage", "accounts"]),
    ("sync", &["clock", "units", "telemetry", "tasks", "storage", "events", "accounts", "rooms", "ephemeral", "encryption"]),
    ("federation", &["clock", "units", "telemetry", "tasks", "outbound", "storage", "events", "accounts", "rooms", "ephemeral", "encryption"]),
    ("config", &["units", "telemetry", "outbound", "storage", "accounts", "rooms", "ephemeral", "sync", "federation"]),
    ("server", &["clock", "telemetry", "tasks", "outbound", "storage", "events", "accounts", "rooms", "ephemeral", "encryption", "push", "sync", "federation", "config"]),
    ("admin", &["clock", "telemetry", "tasks", "storage", "accounts", "rooms", "federation", "config", "server"]),
    ("api", &["clock", "units", "telemetry", "tasks", "storage", "events", "accounts", "rooms", "ephemeral", "encryption", "push", "sync", "federation", "config", "server", "admin"]),
    ("run", &["clock", "telemetry", "accounts", "tasks", "storage", "federation", "config", "server", "admin", "api"]),
    ("cli", &["clock", "units", "telemetry", "accounts", "config", "server", "admin", "run"]),
];

/// Modules that name the `http` crate: nothing below them knows a status code.
const KNOW_HTTP: &[&str] = &["outbound", "federation", "api", "config"];

#[test]
fn the_table_points_downwards_only() {
    for (index, (module, uses)) in MAY_USE.iter().enumerate() {
        let below: Vec<&str> = MAY_USE.iter().take(index).map(|(name, _)| *name).collect();
        for used in *uses {
            assert!(
                below.contains(used),
                "{module} may not use {used}, which does not stand before it"
            );
        }
    }
}

#[test]
fn every_module_uses_only_what_it_may() {
    let mut wrong = Vec::new();
    each_source(|module, path, code| {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{path}: module {module} is not in the table"));
            return;
        };
        for used in modules_used(code) {
            if used != module && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{path}: {module} may not use {used}"));
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_edge_knows_http() {
    let mut wrong = Vec::new();
    each_source(|module, path, code| {
        let names_http = ["use http::", "http::StatusCode", "use hyper"]
            .iter()
            .any(|name| code.contains(name));
        if names_http && !KNOW_HTTP.contains(&module) && module != "run" {
            wrong.push(format!("{path}: {module} may not know HTTP"));
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn events_are_pure() {
    let mut wrong = Vec::new();
    each_source(|module, path, code| {
        let impure = [
            "async ",
            "std::fs",
            "std::net",
            "tokio",
            "Instant",
            "SystemTime",
        ];
        let found = impure.iter().find(|word| code.contains(**word));
        if let (true, Some(word)) = (module == "events" && !path.ends_with("tests.rs"), found) {
            wrong.push(format!("{path}: {word}"));
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Calls `look` with the top-level module, the path and the code of each file of the library.
fn each_source(mut look: impl FnMut(&str, &str, &str)) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in super::tidy::rust_files(&root) {
        let relative = path
            .strip_prefix(&root)
            .expect("it is inside")
            .to_string_lossy()
            .into_owned();
        let module = relative
            .split(['/', '.'])
            .next()
            .unwrap_or_default()
            .to_owned();
        if module == "main" || module == "lib" {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source file");
        look(&module, &relative, &code_only(&text));
    }
}

/// The modules that `code` names by `crate::x`, also in lists: `crate::{a, b::c}`.
fn modules_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let is_ours = !code[..at]
            .ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':');
        let rest = &code[at + "crate::".len()..];
        if !is_ours {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(list) => used.extend(top_level_names(list)),
            None => used.extend(leading_name(rest)),
        }
    }
    used
}

fn leading_name(text: &str) -> Option<String> {
    let name: String = text
        .chars()
        .take_while(|letter| letter.is_ascii_lowercase() || *letter == '_')
        .collect();
    (!name.is_empty()).then_some(name)
}

/// The first names of the items of a list in braces, of which the opening one is already gone.
fn top_level_names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut is_start = true;
    for (index, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_start = true,
            letter if depth == 0 && is_start && !letter.is_whitespace() => {
                names.extend(leading_name(&list[index..]));
                is_start = false;
            }
            _ => {}
        }
    }
    names
}

/// `text` without comments and without what stands in strings.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.starts_with("//") {
            continue;
        }
        let mut is_inside = false;
        let mut before = ' ';
        for letter in line.chars() {
            if letter == '"' && before != '\\' && before != '\'' {
                is_inside = !is_inside;
            }
            if !is_inside {
                code.push(letter);
            }
            before = letter;
        }
        code.push('\n');
    }
    code
}
