//! `hearth config`: what can be set, what is set, and what is wrong with it.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    Exit, Global,
    output::{print, print_error},
};
use crate::config::{Config, Node, NodeValue, Origin, Schema, example, inline, schema};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Prints a file with every key, its text and its default.
    Default,
    /// Tells everything that is wrong.
    Check,
    /// Prints the values in use and where each was set.
    Show,
    /// Explains one key, such as `log.filter`.
    Explain(Explain),
    /// Prints the JSON Schema.
    Schema,
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    key: String,
}

pub(super) fn run(global: &Global, command: &Command) -> Exit {
    match command {
        Command::Default => {
            print(&example());
            Exit::Done
        }
        Command::Check => check(global),
        Command::Show => show(global),
        Command::Explain(explain) => explain_key(&explain.key),
        Command::Schema => {
            print(&format!("{:#}\n", schema()));
            Exit::Done
        }
    }
}

fn check(global: &Global) -> Exit {
    let sources = global.sources();
    let exit = match global.load(&sources) {
        Ok(_loaded) => Exit::Done,
        Err(exit) => exit,
    };
    if exit == Exit::Done && !global.quiet {
        print_error("The configuration is right.\n");
    }
    exit
}

fn show(global: &Global) -> Exit {
    let loaded = match global.load(&global.sources()) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    // Secrets are masked where the configuration is written.
    let values = serde_json::to_value(&loaded.config).unwrap_or_default();
    let mut rows = Vec::new();
    flatten(&values, &loaded.tree, &mut Vec::new(), &mut rows);
    for (key, value, origin) in rows {
        if global.json {
            print(&format!(
                "{}\n",
                json!({ "key": key, "value": value, "source": origin.to_string() })
            ));
        } else {
            print(&format!("{key} = {}  # {origin}\n", inline(&value)));
        }
    }
    Exit::Done
}

/// Each value with its key and its place, in order.
fn flatten(
    value: &Value,
    tree: &Node,
    path: &mut Vec<String>,
    rows: &mut Vec<(String, Value, Origin)>,
) {
    let keys: Vec<&str> = path.iter().map(String::as_str).collect();
    let node = tree.get(&keys);
    let is_leaf =
        node.is_some_and(|node| matches!(node.value, NodeValue::Leaf(_))) || path.len() >= 2;
    match value {
        Value::Object(fields) if !is_leaf => {
            for (name, value) in fields {
                path.push(name.clone());
                flatten(value, tree, path, rows);
                path.pop();
            }
        }
        value => {
            let origin = node.map_or(Origin::BuiltIn, |node| node.origin.clone());
            rows.push((path.join("."), value.clone(), origin));
        }
    }
}

fn explain_key(key: &str) -> Exit {
    let root = schema();
    let path: Vec<&str> = key.split('.').collect();
    let Some(found) = Schema::new(&root).get(&path) else {
        print_error(&format!("There is no key {key}.\n"));
        return Exit::NotFound;
    };
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let default = path
        .iter()
        .try_fold(&defaults, |value, name| value.get(*name));
    print(&format!("{key}: {}\n", found.kind()));
    if let Some(default) = default.filter(|default| !default.is_object()) {
        print(&format!("default: {}\n", inline(default)));
    }
    print(&format!("\n{}\n", found.description()));
    Exit::Done
}
