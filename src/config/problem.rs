//! What is wrong with a configuration.

use std::fmt;

use super::tree::Origin;

/// One thing that is wrong: where, which key, and what would be right.
#[derive(Clone, Debug)]
pub struct Problem {
    pub origin: Origin,
    /// The key from the top, such as `rate_limits.login`; empty for the file as a whole.
    pub key: String,
    pub text: String,
    pub severity: Severity,
}

/// Whether a server may start in spite of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

/// All that is wrong with a configuration, found at once.
#[derive(Clone, Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problem {
    pub fn new(origin: Origin, key: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            origin,
            key: key.into(),
            text: text.into(),
            severity: Severity::Error,
        }
    }

    pub fn warning(origin: Origin, key: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::new(origin, key, text)
        }
    }
}

impl Problem {
    /// The key as a path. What is wrong inside a list makes the whole list wrong.
    pub(super) fn path(&self) -> Vec<&str> {
        let key = self.key.split('[').next().unwrap_or_default();
        key.split('.').filter(|name| !name.is_empty()).collect()
    }
}

impl Problems {
    /// Whether a server must not start.
    pub fn is_fatal(&self) -> bool {
        self.0
            .iter()
            .any(|problem| problem.severity == Severity::Error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        write!(formatter, "{}: {severity}", self.origin)?;
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.text)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
