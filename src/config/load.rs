//! From files, environment and flags to a [`Config`], with all problems found at once.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Config,
    problem::{Problem, Problems, Severity},
    schema::{self, Schema},
    sections::{Preset, UnknownKeys},
    tree::{Node, NodeValue, Origin, parse_file, parse_value},
};

/// Where a file is looked for when none is named.
const DEFAULT_PATHS: [&str; 2] = ["/etc/hearth/hearth.toml", "hearth.toml"];
const ENV_PREFIX: &str = "HEARTH__";

/// Where a configuration comes from. Later sources win, in the order of the fields.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files in order; those in `conf.d` beside the first follow it.
    pub files: Vec<PathBuf>,
    pub environment: BTreeMap<String, String>,
    /// `section.key=value`, as given with `-o`.
    pub overrides: Vec<String>,
}

/// A configuration that may be used, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub warnings: Problems,
    /// Every value that is set, with its place.
    pub tree: Node,
}

impl Sources {
    /// The files named, or the first that exists of `$HEARTH_CONFIG`, `/etc/hearth/hearth.toml`, `./hearth.toml`.
    pub fn find(
        named: &[PathBuf],
        environment: BTreeMap<String, String>,
        overrides: Vec<String>,
    ) -> Self {
        let mut files = named.to_vec();
        if files.is_empty() {
            let from_environment = environment.get("HEARTH_CONFIG").map(PathBuf::from);
            let known = DEFAULT_PATHS
                .iter()
                .map(PathBuf::from)
                .find(|path| path.exists());
            files.extend(from_environment.or(known));
        }
        Self {
            files,
            environment,
            overrides,
        }
    }

    /// Whether nothing at all is configured.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
            && self.overrides.is_empty()
            && !self
                .environment
                .keys()
                .any(|name| name.starts_with(ENV_PREFIX))
    }

    /// Reads, merges and checks.
    ///
    /// # Errors
    /// Everything that is wrong, warnings included.
    pub fn load(&self) -> Result<Loaded, Problems> {
        let root = schema::schema();
        let schema = Schema::new(&root);
        let mut problems = Vec::new();
        let mut tree = self.read_layers(schema, &mut problems);
        apply_preset(&mut tree, schema);
        read_secret_files(&mut tree, schema, &mut Vec::new(), &mut problems);
        check_permissions(&tree, schema, "", &mut problems);
        let mut found = Vec::new();
        schema::check(&tree, schema, "", &mut found);
        soften_unknown_keys(&tree, &mut found);
        problems.extend(found);
        // What is wrong by itself is left out, so that the rest can be held against each other.
        let mut sound = tree.clone();
        for problem in &problems {
            sound.remove(&problem.path());
        }
        let config = deserialize(&sound, schema, &mut problems);
        // A file that could not be read may hold what is missing.
        let is_whole = problems.iter().all(|problem| !problem.key.is_empty());
        if let (Some(config), true) = (&config, is_whole) {
            let mut across = Vec::new();
            config.check(&tree, &mut across);
            across.retain(|new| problems.iter().all(|known| known.key != new.key));
            problems.extend(across);
        }
        let problems = Problems(problems);
        match config {
            Some(config) if !problems.is_fatal() => Ok(Loaded {
                config,
                warnings: problems,
                tree,
            }),
            _ => Err(problems),
        }
    }

    fn read_layers(&self, schema: Schema<'_>, problems: &mut Vec<Problem>) -> Node {
        let mut tree = Node::empty(Origin::BuiltIn);
        for path in self.all_files() {
            match read_file(&path) {
                Ok(layer) => tree.merge(layer),
                Err(found) => problems.extend(found),
            }
        }
        for (variable, value) in &self.environment {
            let Some(name) = variable.strip_prefix(ENV_PREFIX) else {
                continue;
            };
            let name = name.to_lowercase();
            let path: Vec<&str> = name.split("__").collect();
            let origin = Origin::Environment {
                variable: variable.as_str().into(),
            };
            problems.extend(set(&mut tree, schema, &path, &origin, value));
        }
        for flag in &self.overrides {
            match flag.split_once('=') {
                Some((key, value)) => {
                    let path: Vec<&str> = key.trim().split('.').collect();
                    problems.extend(set(&mut tree, schema, &path, &Origin::Flag, value.trim()));
                }
                None => problems.push(Problem::new(
                    Origin::Flag,
                    flag,
                    "expected section.key=value",
                )),
            }
        }
        tree
    }

    fn all_files(&self) -> Vec<PathBuf> {
        let mut files = self.files.clone();
        let folder = self
            .files
            .first()
            .and_then(|first| first.parent())
            .map(|folder| folder.join("conf.d"));
        if let Some(Ok(entries)) = folder.map(std::fs::read_dir) {
            let mut more: Vec<PathBuf> = entries
                .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                .filter(|path| {
                    path.extension()
                        .is_some_and(|extension| extension == "toml")
                })
                .collect();
            more.sort();
            files.splice(1..1, more);
        }
        files
    }
}

fn read_file(path: &Path) -> Result<Node, Vec<Problem>> {
    let origin = Origin::File {
        path: path.into(),
        line: 1,
        column: 1,
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| vec![Problem::new(origin, "", format!("cannot be read: {error}"))])?;
    parse_file(path, &text)
}

/// Sets a key from text: as it is where the key is a text, as TOML otherwise.
fn set(
    tree: &mut Node,
    schema: Schema<'_>,
    path: &[&str],
    origin: &Origin,
    text: &str,
) -> Option<Problem> {
    // What an unknown key holds does not matter: it is reported as unknown.
    let is_text = is_secret_file(schema, path) || schema.get(path).is_none_or(Schema::is_text);
    let value = if is_text && !text.starts_with('"') {
        Ok(NodeValue::Leaf(Value::String(text.to_owned())))
    } else {
        parse_value(text, origin)
    };
    match value {
        Ok(value) => {
            tree.set(path, origin, value);
            None
        }
        Err(reason) => Some(Problem::new(
            origin.clone(),
            path.join("."),
            format!("the value is not TOML: {reason}"),
        )),
    }
}

/// `x_file` beside a secret `x`.
fn is_secret_file(schema: Schema<'_>, path: &[&str]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    let Some(name) = last.strip_suffix("_file") else {
        return false;
    };
    schema
        .get(parents)
        .and_then(|parent| parent.get(&[name]))
        .is_some_and(Schema::is_secret)
}

/// Puts the content of each `x_file` in the place of the secret `x`.
fn read_secret_files<'a>(
    node: &mut Node,
    schema: Schema<'a>,
    path: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) {
    let NodeValue::Table(table) = &mut node.value else {
        return;
    };
    let names: Vec<String> = table.keys().cloned().collect();
    for name in names {
        if is_secret_file(schema, &[&name]) {
            let Some(file) = table.remove(&name) else {
                continue;
            };
            let target = name.trim_end_matches("_file").to_owned();
            let key = [path.as_slice(), std::slice::from_ref(&name)]
                .concat()
                .join(".");
            if table.contains_key(&target) {
                problems.push(Problem::new(
                    file.origin,
                    key,
                    format!("`{target}` is set as well; keep one of the two"),
                ));
                continue;
            }
            match read_secret(&file) {
                Ok(secret) => {
                    table.insert(
                        target,
                        Node {
                            origin: file.origin,
                            value: NodeValue::Leaf(Value::String(secret)),
                        },
                    );
                }
                Err(text) => problems.push(Problem::new(file.origin, key, text)),
            }
        } else if let (Some(child), Some(property)) = (table.get_mut(&name), schema.get(&[&name])) {
            path.push(name);
            read_secret_files(child, property, path, problems);
            path.pop();
        }
    }
}

fn read_secret(file: &Node) -> Result<String, String> {
    let value = file.to_value();
    let path = value.as_str().ok_or("expected a path")?;
    let secret =
        std::fs::read_to_string(path).map_err(|error| format!("{path} cannot be read: {error}"))?;
    Ok(secret.trim_end_matches(['\r', '\n']).to_owned())
}

/// Puts the defaults of the preset where nothing is set.
fn apply_preset(tree: &mut Node, schema: Schema<'_>) {
    let Some(preset) = tree
        .get(&["server", "preset"])
        .and_then(|node| serde_json::from_value(node.to_value()).ok())
    else {
        return;
    };
    for (key, value) in preset_values(preset) {
        let path: Vec<&str> = key.split('.').collect();
        if schema.get(&path).is_some() && tree.get(&path).is_none() {
            tree.set(&path, &Origin::Preset, NodeValue::Leaf(value.clone()));
        }
    }
}

/// What a preset sets. Keys of sections that are not built yet are passed over.
fn preset_values(preset: Preset) -> Vec<(&'static str, Value)> {
    let (presence, limit) = match preset {
        Preset::Team => ((true, false), (100, 50)),
        Preset::Messenger => ((true, true), (100, 50)),
        Preset::Community => ((true, false), (60, 30)),
    };
    let (rate, burst) = limit;
    vec![
        ("registration.mode", "token".into()),
        ("presence.enabled", presence.0.into()),
        ("presence.federate_in", presence.1.into()),
        ("presence.federate_out", presence.1.into()),
        (
            "rooms.protect_last_admin",
            (preset != Preset::Messenger).into(),
        ),
        (
            "rooms.encrypt_private_by_default",
            (preset == Preset::Messenger).into(),
        ),
        (
            "rate_limits.message",
            serde_json::json!({ "rate": format!("{rate}/min"), "burst": burst }),
        ),
    ]
}

/// Secrets in files that others can read. A warning, unless the configuration is strict.
fn check_permissions(tree: &Node, schema: Schema<'_>, key: &str, problems: &mut Vec<Problem>) {
    let strict = tree.get(&["config", "strict_permissions"]);
    let is_strict = strict.is_some_and(|node| node.to_value() == Value::Bool(true));
    let mut open = Vec::new();
    secrets_in_open_files(tree, schema, key, &mut open);
    for (origin, key, path) in open {
        let text = format!(
            "others can read {}, which holds a secret; chmod 600 it",
            path.display()
        );
        problems.push(match is_strict {
            true => Problem::new(origin, key, text),
            false => Problem::warning(origin, key, text),
        });
    }
}

fn secrets_in_open_files(
    node: &Node,
    schema: Schema<'_>,
    key: &str,
    open: &mut Vec<(Origin, String, PathBuf)>,
) {
    match (&node.value, &node.origin) {
        (NodeValue::Table(table), _) => {
            for (name, child) in table {
                if let Some(property) = schema.get(&[name]) {
                    let key = if key.is_empty() {
                        name.clone()
                    } else {
                        format!("{key}.{name}")
                    };
                    secrets_in_open_files(child, property, &key, open);
                }
            }
        }
        (NodeValue::Leaf(_), Origin::File { path, .. }) if schema.is_secret() => {
            let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode());
            if mode.is_ok_and(|mode| mode & 0o077 != 0) {
                open.push((node.origin.clone(), key.to_owned(), path.to_path_buf()));
            }
        }
        (NodeValue::Leaf(_), _) => {}
    }
}

fn soften_unknown_keys(tree: &Node, problems: &mut [Problem]) {
    let mode = tree.get(&["config", "unknown_keys"]).map(Node::to_value);
    if mode.and_then(|mode| serde_json::from_value(mode).ok()) == Some(UnknownKeys::Warn) {
        for problem in problems
            .iter_mut()
            .filter(|problem| problem.text.starts_with("unknown key"))
        {
            problem.severity = Severity::Warning;
        }
    }
}

/// Reads section by section, so that each that serde refuses is named.
fn deserialize(tree: &Node, schema: Schema<'_>, problems: &mut Vec<Problem>) -> Option<Config> {
    let NodeValue::Table(sections) = &tree.value else {
        return None;
    };
    let known = sections
        .iter()
        .filter(|(name, _)| schema.get(&[name]).is_some());
    for (name, node) in known.clone() {
        let alone = Value::Object([(name.clone(), node.to_value())].into_iter().collect());
        if let Err(error) = serde_json::from_value::<Config>(alone) {
            problems.push(Problem::new(node.origin.clone(), name, error.to_string()));
        }
    }
    let all = known
        .map(|(name, node)| (name.clone(), node.to_value()))
        .collect();
    serde_json::from_value(Value::Object(all)).ok()
}
