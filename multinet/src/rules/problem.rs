//! What is wrong with an object, said so that a person can act on it.

use std::fmt;

/// Whether an object can be used in spite of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A later object may cure it, or it merely deserves a word: the object is used.
    Warning,
    /// No later object can cure it: the object is refused, or serves nothing.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Path of the field, `spec.vni`, or the object itself where no field is to blame.
    pub field: String,
    /// The value found, cut to [`Problem::VALUE_CHARS`]; empty where a value is missing.
    pub value: String,
    /// What is allowed and what to do.
    pub message: String,
}

impl Problem {
    /// Longest value that is repeated to the reader.
    pub const VALUE_CHARS: usize = 120;

    /// A problem for which the object is refused.
    pub fn error(
        field: impl Into<String>,
        value: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        let mut value = value.to_string();
        if value.chars().count() > Self::VALUE_CHARS {
            value = value.chars().take(Self::VALUE_CHARS).chain(['…']).collect();
        }
        Problem { severity: Severity::Error, field: field.into(), value, message: message.into() }
    }

    /// A problem that is only mentioned.
    pub fn warning(
        field: impl Into<String>,
        value: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Problem { severity: Severity::Warning, ..Problem::error(field, value, message) }
    }

    /// Whether the object is refused for it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.value.is_empty() {
            write!(f, "{}: {}", self.field, self.message)
        } else {
            write!(f, "{}: \"{}\": {}", self.field, self.value, self.message)
        }
    }
}

impl std::error::Error for Problem {}
