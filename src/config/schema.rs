//! The schema of the configuration, made from the types and their doc comments, and everything that follows from it: the
//! check of a file, the example file, the explanation of a key.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{
    Config, SECTIONS,
    problem::Problem,
    tree::{Node, NodeValue, Origin},
};
use crate::units::{ByteSize, Network, Period, Rate};

/// The JSON Schema of the whole configuration.
pub fn schema() -> Value {
    schemars::schema_for!(Config).to_value()
}

/// What the schema says of one key.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    root: &'a Value,
    node: &'a Value,
}

impl<'a> Schema<'a> {
    pub fn new(root: &'a Value) -> Self {
        Self { root, node: root }
    }

    /// The schema of the key at `path`.
    pub fn get(self, path: &[&str]) -> Option<Self> {
        path.iter()
            .try_fold(self, |schema, key| schema.property(key))
    }

    fn property(self, key: &str) -> Option<Self> {
        let node = self.resolve()?.get("properties")?.get(key)?;
        Some(Self {
            root: self.root,
            node,
        })
    }

    fn properties(self) -> impl Iterator<Item = (&'a String, Self)> {
        let properties = self
            .resolve()
            .and_then(|node| node.get("properties"))
            .and_then(Value::as_object);
        properties.into_iter().flatten().map(move |(key, node)| {
            (
                key,
                Self {
                    root: self.root,
                    node,
                },
            )
        })
    }

    /// The node itself, behind a reference or the "or null" of an optional value.
    fn resolve(self) -> Option<&'a Value> {
        if let Some(name) = self.node.get("$ref").and_then(Value::as_str) {
            return self.root.pointer(name.strip_prefix('#')?);
        }
        if let Some(choices) = self.node.get("anyOf").and_then(Value::as_array) {
            let choice = choices
                .iter()
                .find(|choice| choice.get("type") != Some(&Value::from("null")))?;
            return Self {
                root: self.root,
                node: choice,
            }
            .resolve();
        }
        Some(self.node)
    }

    fn attribute(self, name: &str) -> Option<&'a Value> {
        self.node.get(name).or_else(|| self.resolve()?.get(name))
    }

    /// The doc comment.
    pub fn description(self) -> &'a str {
        self.attribute("description")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn format(self) -> &'a str {
        self.resolve()
            .and_then(|node| node.get("format"))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn types(self) -> Vec<&'a str> {
        match self.resolve().and_then(|node| node.get("type")) {
            Some(Value::String(name)) => vec![name.as_str()],
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(Value::as_str)
                .filter(|name| *name != "null")
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The texts that are allowed, if only some are.
    fn choices(self) -> Vec<&'a str> {
        let Some(node) = self.resolve() else {
            return Vec::new();
        };
        if let Some(values) = node.get("enum").and_then(Value::as_array) {
            return values.iter().filter_map(Value::as_str).collect();
        }
        let Some(variants) = node.get("oneOf").and_then(Value::as_array) else {
            return Vec::new();
        };
        variants
            .iter()
            .flat_map(|variant| {
                match (
                    variant.get("const"),
                    variant.get("enum").and_then(Value::as_array),
                ) {
                    (Some(value), _) => vec![value],
                    (None, Some(values)) => values.iter().collect(),
                    (None, None) => Vec::new(),
                }
            })
            .filter_map(Value::as_str)
            .collect()
    }

    fn is_section(self) -> bool {
        self.resolve()
            .is_some_and(|node| node.get("properties").is_some())
    }

    /// Whether a value given as bare text is that text, and not TOML.
    pub fn is_text(self) -> bool {
        !self.choices().is_empty() || self.types() == ["string"]
    }

    /// Whether the value is never shown.
    pub fn is_secret(self) -> bool {
        self.format() == "secret"
    }

    /// What kind of value this is, in words.
    pub fn kind(self) -> String {
        let choices = self.choices();
        if !choices.is_empty() {
            return format!(
                "one of {}",
                choices
                    .iter()
                    .map(|choice| format!("\"{choice}\""))
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        let words = match self.format() {
            "period" => "a period such as \"30s\", \"5m\", \"2h\" or \"7d\"",
            "byte-size" => "a size such as \"64KiB\", \"50MiB\" or \"4GiB\"",
            "rate" => "a rate such as \"10/s\" or \"100/min\"",
            "rate-limit" => "\"off\" or { rate = \"100/min\", burst = 50 }",
            "network" => "an address or a range such as \"10.0.0.0/8\"",
            "bind" => "ADDRESS:PORT or unix:PATH",
            "secret" => "a secret text",
            _ => match self.types().first().copied() {
                Some("string") => "a text in quotes",
                Some("integer") => "a whole number",
                Some("number") => "a number",
                Some("boolean") => "true or false",
                Some("array") => "a list",
                Some("object") => "a table",
                _ => "a value",
            },
        };
        words.to_owned()
    }
}

/// Everything in `node` that the schema does not allow.
pub(super) fn check(node: &Node, schema: Schema<'_>, key: &str, problems: &mut Vec<Problem>) {
    match &node.value {
        NodeValue::Table(table) if schema.is_section() => {
            for (name, child) in table {
                let child_key = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                match schema.property(name) {
                    Some(property) => check(child, property, &child_key, problems),
                    None => problems.push(unknown_key(child, schema, name, &child_key)),
                }
            }
        }
        NodeValue::Table(_) => check_value(&node.to_value(), schema, key, &node.origin, problems),
        NodeValue::Leaf(value) => check_value(value, schema, key, &node.origin, problems),
    }
}

fn unknown_key(node: &Node, schema: Schema<'_>, name: &str, key: &str) -> Problem {
    let nearest = schema
        .properties()
        .map(|(known, _)| (edit_distance(name, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3).max(2))
        .min();
    let text = match nearest {
        Some((_, known)) => format!("unknown key; did you mean `{known}`?"),
        None => "unknown key".to_owned(),
    };
    Problem::new(node.origin.clone(), key, text)
}

fn check_value(
    value: &Value,
    schema: Schema<'_>,
    key: &str,
    origin: &Origin,
    problems: &mut Vec<Problem>,
) {
    if let (Value::Array(items), Some(item_schema)) =
        (value, schema.resolve().and_then(|node| node.get("items")))
    {
        let item_schema = Schema {
            root: schema.root,
            node: item_schema,
        };
        for (index, item) in items.iter().enumerate() {
            check_value(
                item,
                item_schema,
                &format!("{key}[{index}]"),
                origin,
                problems,
            );
        }
        return;
    }
    if let (Value::Object(fields), true) = (value, schema.is_section()) {
        return check_item(fields, schema, key, origin, problems);
    }
    if !is_allowed(value, schema) {
        let shown = if schema.is_secret() {
            "the value".to_owned()
        } else {
            value.to_string()
        };
        problems.push(Problem::new(
            origin.clone(),
            key,
            format!("{shown} is not right: expected {}", schema.kind()),
        ));
    }
}

/// A table inside a list.
fn check_item(
    fields: &Map<String, Value>,
    schema: Schema<'_>,
    key: &str,
    origin: &Origin,
    problems: &mut Vec<Problem>,
) {
    for (name, value) in fields {
        let child_key = format!("{key}.{name}");
        match schema.property(name) {
            Some(property) => check_value(value, property, &child_key, origin, problems),
            None => {
                let node = Node {
                    origin: origin.clone(),
                    value: NodeValue::Leaf(value.clone()),
                };
                problems.push(unknown_key(&node, schema, name, &child_key));
            }
        }
    }
    let required = schema
        .resolve()
        .and_then(|node| node.get("required"))
        .and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            problems.push(Problem::new(
                origin.clone(),
                format!("{key}.{name}"),
                "is missing",
            ));
        }
    }
}

fn is_allowed(value: &Value, schema: Schema<'_>) -> bool {
    let choices = schema.choices();
    if !choices.is_empty() {
        return value.as_str().is_some_and(|text| choices.contains(&text));
    }
    match (schema.format(), value) {
        ("period", Value::String(text)) => text.parse::<Period>().is_ok(),
        ("byte-size", Value::String(text)) => text.parse::<ByteSize>().is_ok(),
        ("rate", Value::String(text)) => text.parse::<Rate>().is_ok(),
        ("rate-limit", value) => {
            serde_json::from_value::<super::rate_limits::Limit>(value.clone()).is_ok()
        }
        ("network", Value::String(text)) => text.parse::<Network>().is_ok(),
        ("bind", value) => serde_json::from_value::<super::sections::Bind>(value.clone()).is_ok(),
        _ => is_of_type(value, schema),
    }
}

fn is_of_type(value: &Value, schema: Schema<'_>) -> bool {
    let types = schema.types();
    let within = |name: &str, is_inside: fn(f64, f64) -> bool| match (
        schema.attribute(name),
        value.as_f64(),
    ) {
        (Some(bound), Some(number)) => bound.as_f64().is_none_or(|bound| is_inside(number, bound)),
        _ => true,
    };
    let is_type = types.is_empty()
        || types.iter().any(|name| match *name {
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            _ => false,
        });
    is_type
        && within("minimum", |number, bound| number >= bound)
        && within("maximum", |number, bound| number <= bound)
}

/// A file with every key, its text and its default, all commented out.
pub fn example() -> String {
    let root = schema();
    let schema = Schema::new(&root);
    let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
    let mut text = String::from(
        "# The configuration of Hearth. Every key is here with its default, commented out.\n\
         # `hearth config default` prints this file; `hearth config check` tells what is wrong with yours.\n",
    );
    for section in SECTIONS {
        let (Some(property), Some(default)) = (schema.property(section), defaults.get(*section))
        else {
            continue;
        };
        write_section(&mut text, section, property, default);
    }
    text
}

fn write_section(text: &mut String, path: &str, schema: Schema<'_>, default: &Value) {
    text.push('\n');
    write_comment(text, schema.description());
    let Value::Object(fields) = default else {
        let name = path.rsplit('.').next().unwrap_or(path);
        write_key(text, name, schema, default);
        return;
    };
    // Writing to a text cannot fail.
    let _written = writeln!(text, "[{path}]").is_ok();
    let (tables, keys): (Vec<_>, Vec<_>) = schema
        .properties()
        .map(|(name, property)| (name, property, fields.get(name).unwrap_or(&Value::Null)))
        .partition(|(_, property, default)| default.is_object() && property.is_section());
    for (name, property, default) in keys {
        write_comment(text, property.description());
        write_key(text, name, property, default);
    }
    for (name, property, default) in tables {
        write_section(text, &format!("{path}.{name}"), property, default);
    }
}

fn write_key(text: &mut String, name: &str, schema: Schema<'_>, default: &Value) {
    let line = if default.is_null() {
        format!("#{name} = … ({})", schema.kind())
    } else {
        format!("#{name} = {}", inline(default))
    };
    text.push_str(&line);
    text.push('\n');
}

fn write_comment(text: &mut String, description: &str) {
    for line in description.lines() {
        text.push_str("# ");
        text.push_str(line);
        text.push('\n');
    }
}

/// A value as TOML text on one line.
pub fn inline(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(inline).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key} = {}", inline(value)))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        scalar => scalar.to_string(),
    }
}

/// Insertions, deletions and replacements from one text to another.
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, letter) in one.chars().enumerate() {
        let mut before = index;
        let mut left = index + 1;
        for (slot, wanted) in row.iter_mut().skip(1).zip(&other) {
            let above = *slot;
            *slot = (above + 1)
                .min(left + 1)
                .min(before + usize::from(letter != *wanted));
            left = *slot;
            before = above;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
