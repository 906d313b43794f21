//! Takes a TOML table apart, key by key, so that each problem names its file and key. serde's errors name a line at best.

use super::CatalogueError;
use toml::{Table, Value};

/// A table of which keys are taken; what is left at the end is unknown.
pub(super) struct Fields {
    file: String,
    /// The table's own key with a dot, empty for the whole file.
    prefix: String,
    table: Table,
}

impl Fields {
    pub(super) fn parse(file: &str, text: &str) -> Result<Self, CatalogueError> {
        let table = text
            .parse::<Table>()
            .map_err(|error| CatalogueError::Syntax {
                file: file.to_owned(),
                problem: syntax(text, &error),
            })?;
        Ok(Self {
            file: file.to_owned(),
            prefix: String::new(),
            table,
        })
    }

    /// An error at a key.
    pub(super) fn wrong(&self, key: &str, problem: &str) -> CatalogueError {
        CatalogueError::Key {
            file: self.file.clone(),
            key: format!("{}{key}", self.prefix),
            problem: problem.to_owned(),
        }
    }

    /// Refuses what nobody took.
    pub(super) fn end(self) -> Result<(), CatalogueError> {
        match self.table.keys().next() {
            Some(key) => Err(self.wrong(key, "there is no such key")),
            None => Ok(()),
        }
    }

    pub(super) fn text(&mut self, key: &str) -> Result<String, CatalogueError> {
        let text = self.optional_text(key)?;
        text.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_text(&mut self, key: &str) -> Result<Option<String>, CatalogueError> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => {
                Err(self.wrong(key, "it is empty"))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(key, "a string", &other)),
        }
    }

    pub(super) fn texts(&mut self, key: &str) -> Result<Vec<String>, CatalogueError> {
        let values = match self.table.remove(key) {
            None => return Err(self.missing(key)),
            Some(Value::Array(values)) => values,
            Some(other) => return Err(self.mistyped(key, "a list of strings", &other)),
        };
        let text = |value| match value {
            Value::String(text) => Ok(text),
            other => Err(self.mistyped(key, "a list of strings", &other)),
        };
        values.into_iter().map(text).collect()
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool, CatalogueError> {
        match self.table.remove(key) {
            None => Err(self.missing(key)),
            Some(Value::Boolean(flag)) => Ok(flag),
            Some(other) => Err(self.mistyped(key, "true or false", &other)),
        }
    }

    pub(super) fn whole(
        &mut self,
        key: &str,
        least: u32,
        most: u32,
    ) -> Result<u32, CatalogueError> {
        let number = match self.table.remove(key) {
            None => return Err(self.missing(key)),
            Some(Value::Integer(number)) => number,
            Some(other) => return Err(self.mistyped(key, "a whole number", &other)),
        };
        u32::try_from(number)
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| self.wrong(key, &format!("{number} is not within {least} to {most}")))
    }

    pub(super) fn optional_bytes(&mut self, key: &str) -> Result<Option<u64>, CatalogueError> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Integer(number)) if number > 0 => Ok(u64::try_from(number).ok()),
            Some(other) => Err(self.mistyped(key, "a number of bytes", &other)),
        }
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        least: f32,
        most: f32,
    ) -> Result<f32, CatalogueError> {
        let number = self.optional_number(key, least, most)?;
        number.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_number(
        &mut self,
        key: &str,
        least: f32,
        most: f32,
    ) -> Result<Option<f32>, CatalogueError> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "sampling values are small and need no more digits"
        )]
        let number = match self.table.remove(key) {
            None => return Ok(None),
            Some(Value::Float(number)) => number as f32,
            Some(Value::Integer(number)) => number as f32,
            Some(other) => return Err(self.mistyped(key, "a number", &other)),
        };
        if (least..=most).contains(&number) {
            Ok(Some(number))
        } else {
            Err(self.wrong(key, &format!("{number} is not within {least} to {most}")))
        }
    }

    pub(super) fn table(&mut self, key: &str) -> Result<Self, CatalogueError> {
        let table = self.optional_table(key)?;
        table.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_table(&mut self, key: &str) -> Result<Option<Self>, CatalogueError> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Table(table)) => Ok(Some(Self {
                file: self.file.clone(),
                prefix: format!("{}{key}.", self.prefix),
                table,
            })),
            Some(other) => Err(self.mistyped(key, "a table", &other)),
        }
    }

    fn missing(&self, key: &str) -> CatalogueError {
        self.wrong(key, "it is missing")
    }

    fn mistyped(&self, key: &str, wanted: &str, found: &Value) -> CatalogueError {
        let problem = format!("it must be {wanted}, and is of type {}", found.type_str());
        self.wrong(key, &problem)
    }
}

/// Line and reason, in one line.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = String::from_utf8_lossy(&text.as_bytes()[..at]);
    let line = before.matches('\n').count() + 1;
    format!("line {line}: {}", error.message().replace('\n', " "))
}
