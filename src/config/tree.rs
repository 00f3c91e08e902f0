//! Values with the place they come from: what the layers of a configuration are merged in, and how a layer is read.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::Problem;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    Preset,
    File {
        path: Arc<Path>,
        line: usize,
        column: usize,
    },
    Environment {
        variable: Arc<str>,
    },
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => formatter.write_str("built-in"),
            Self::Preset => formatter.write_str("preset"),
            Self::File { path, line, column } => {
                write!(formatter, "{}:{line}:{column}", path.display())
            }
            Self::Environment { variable } => formatter.write_str(variable),
            Self::Flag => formatter.write_str("-o"),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub struct Node {
    pub origin: Origin,
    pub value: NodeValue,
}

/// A table is merged key by key; everything else is replaced as a whole.
#[derive(Clone, Debug)]
pub enum NodeValue {
    Table(BTreeMap<String, Node>),
    Leaf(Value),
}

impl Node {
    /// A table without keys.
    pub fn empty(origin: Origin) -> Self {
        Self {
            origin,
            value: NodeValue::Table(BTreeMap::new()),
        }
    }

    /// Takes over what `newer` sets.
    pub fn merge(&mut self, newer: Self) {
        match (&mut self.value, newer.value) {
            (NodeValue::Table(old), NodeValue::Table(new)) => {
                for (key, node) in new {
                    match old.get_mut(&key) {
                        Some(known) => known.merge(node),
                        None => {
                            old.insert(key, node);
                        }
                    }
                }
            }
            (_, value) => {
                self.value = value;
                self.origin = newer.origin;
            }
        }
    }

    /// Sets the value at `path`, making the tables on the way.
    pub fn set(&mut self, path: &[&str], origin: &Origin, value: NodeValue) {
        let Some((first, rest)) = path.split_first() else {
            self.origin = origin.clone();
            self.value = value;
            return;
        };
        if !matches!(self.value, NodeValue::Table(_)) {
            self.value = NodeValue::Table(BTreeMap::new());
        }
        if let NodeValue::Table(table) = &mut self.value {
            let child = table
                .entry((*first).to_owned())
                .or_insert_with(|| Self::empty(origin.clone()));
            child.set(rest, origin, value);
        }
    }

    /// The node at `path`.
    pub fn get(&self, path: &[&str]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else {
            return Some(self);
        };
        match &self.value {
            NodeValue::Table(table) => table.get(*first)?.get(rest),
            NodeValue::Leaf(_) => None,
        }
    }

    /// Takes away what is at `path`; the whole tree stays if the path is empty.
    pub(super) fn remove(&mut self, path: &[&str]) {
        let NodeValue::Table(table) = &mut self.value else {
            return;
        };
        match path {
            [] => {}
            [last] => drop(table.remove(*last)),
            [first, rest @ ..] => {
                if let Some(child) = table.get_mut(*first) {
                    child.remove(rest);
                }
            }
        }
    }

    /// The same without origins.
    pub fn to_value(&self) -> Value {
        match &self.value {
            NodeValue::Leaf(value) => value.clone(),
            NodeValue::Table(table) => {
                let fields: Map<String, Value> = table
                    .iter()
                    .map(|(key, node)| (key.clone(), node.to_value()))
                    .collect();
                Value::Object(fields)
            }
        }
    }
}

/// Reads a file of TOML text.
///
/// # Errors
/// Every place where the text is not TOML.
pub(super) fn parse_file(path: &Path, text: &str) -> Result<Node, Vec<Problem>> {
    let path: Arc<Path> = path.into();
    let lines = Lines::new(text);
    let origin = |offset| {
        let (line, column) = lines.locate(offset);
        Origin::File {
            path: Arc::clone(&path),
            line,
            column,
        }
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: toml::de::Error| {
            let offset = error.span().map_or(0, |span| span.start);
            Problem::new(
                origin(offset),
                "",
                format!("this is not TOML: {}", error.message()),
            )
        };
        return Err(errors.into_iter().map(problem).collect());
    }
    let start = table.span().start;
    Ok(table_node(table.get_ref(), origin(start), &origin))
}

/// Reads one value of TOML text: what an environment variable or `-o` gives to a key that is no text.
pub(super) fn parse_value(text: &str, origin: &Origin) -> Result<NodeValue, String> {
    let value = DeValue::parse(text).map_err(|error| error.message().to_owned())?;
    Ok(value_node(&value, &|_offset| origin.clone()).value)
}

fn table_node(table: &DeTable<'_>, origin: Origin, locate: &impl Fn(usize) -> Origin) -> Node {
    let mut fields = BTreeMap::new();
    for (key, value) in table {
        let mut node = value_node(value, locate);
        node.origin = locate(key.span().start);
        fields.insert(key.get_ref().to_string(), node);
    }
    Node {
        origin,
        value: NodeValue::Table(fields),
    }
}

fn value_node(value: &Spanned<DeValue<'_>>, locate: &impl Fn(usize) -> Origin) -> Node {
    let origin = locate(value.span().start);
    match value.get_ref() {
        DeValue::Table(table) => table_node(table, origin, locate),
        DeValue::Array(array) => {
            let values = array
                .iter()
                .map(|item| value_node(item, locate).to_value())
                .collect();
            Node {
                origin,
                value: NodeValue::Leaf(Value::Array(values)),
            }
        }
        scalar => Node {
            origin,
            value: NodeValue::Leaf(scalar_value(scalar)),
        },
    }
}

fn scalar_value(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.to_string()), Value::from),
        DeValue::Float(number) => number
            .as_str()
            .parse::<f64>()
            .map_or(Value::Null, Value::from),
        other => Value::String(format!("{other:?}")),
    }
}

/// Where the lines of a text begin.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        let breaks = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(index, _)| index + 1);
        Self(std::iter::once(0).chain(breaks).collect())
    }

    /// Line and column of an offset in bytes, both from 1.
    fn locate(&self, offset: usize) -> (usize, usize) {
        let line = self.0.partition_point(|start| *start <= offset);
        let start = self.0.get(line.saturating_sub(1)).copied().unwrap_or(0);
        (line, offset - start + 1)
    }
}
