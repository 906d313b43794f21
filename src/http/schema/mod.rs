//! What a request may look like, declared once: bodies are checked by it, and `/openapi.json` shows it.
//!
//! A declaration is plain static data ([`Field`], [`Shape`]). [`Body`] checks an object by it and is then taken apart without
//! further errors of type or range; rules between fields are the reader's. An optional field that is `null` is an absent one;
//! fields without a declaration are skipped.

mod check;
mod document;

use super::error::ApiError;
use super::json;
use serde_json::{Map, Value};

pub(super) use document::object;

/// What a value may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// A string of so many characters.
    Text { least: usize, most: usize },
    /// True or false.
    Flag,
    /// A number within limits, both included.
    Number { least: f64, most: f64 },
    /// A whole number within limits; `i64::MIN` and `i64::MAX` are none. What is written as `40.0` counts.
    Whole { least: i64, most: i64 },
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// A list of so many values.
    List {
        of: &'static Shape,
        least: usize,
        most: usize,
    },
    /// An object with these fields.
    Object(&'static [Field]),
    /// A name of 1 to 64 letters, digits, `_` and `-`.
    Name,
    /// An object whose names are token ids, so many at most.
    ByToken { of: &'static Shape, most: usize },
    /// An object whose fields depend on one of them, a string.
    Tagged(&'static Tagged),
    /// One of several.
    Either(&'static [Shape]),
    /// Any JSON object.
    AnyObject,
    /// Nothing, or an empty text: a field that other servers have, and why this one has not.
    Absent(&'static str),
}

/// See [`Shape::Tagged`].
#[derive(Debug)]
pub(super) struct Tagged {
    /// The deciding field.
    pub(super) tag: &'static str,
    /// Its values, and the other fields that each brings.
    pub(super) of: &'static [(&'static str, &'static [Field])],
    /// The value that an object without the deciding field has.
    pub(super) default: Option<&'static str>,
    /// What is said about another value.
    pub(super) otherwise: &'static str,
}

/// A field of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// Whether it must be there.
    pub(super) needed: bool,
    pub(super) about: &'static str,
}

/// The fields of a request, in groups that requests share.
pub(super) type Table = &'static [&'static [Field]];

impl Shape {
    /// Any string.
    pub(super) const TEXT: Self = Self::Text {
        least: 0,
        most: usize::MAX,
    };
    /// Token ids.
    pub(super) const TOKENS: Self = Self::List {
        of: &Self::between(0, u32::MAX),
        least: 1,
        most: usize::MAX,
    };

    /// A whole number within limits.
    pub(super) const fn between(least: u32, most: u32) -> Self {
        Self::Whole {
            least: least as i64,
            most: most as i64,
        }
    }

    /// A whole number of at least this.
    pub(super) const fn at_least(least: i64) -> Self {
        Self::Whole {
            least,
            most: i64::MAX,
        }
    }

    /// A list of any length.
    pub(super) const fn list(of: &'static Self) -> Self {
        Self::List {
            of,
            least: 0,
            most: usize::MAX,
        }
    }
}

/// A field that may be absent.
pub(super) const fn optional(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field {
        name,
        shape,
        needed: false,
        about,
    }
}

/// A field that must be there.
pub(super) const fn needed(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field {
        needed: true,
        ..optional(name, shape, about)
    }
}

/// An object that was checked, to be taken apart.
#[derive(Debug)]
pub(super) struct Body(Map<String, Value>);

impl Body {
    /// Parses and checks the body of a request.
    pub(super) fn parse(body: &[u8], table: Table) -> Result<Self, ApiError> {
        Self::checked(json::parse_strictly(body, &names(table, &[]))?, table)
    }

    /// The same, with the allowances of [`json::parse_object`], and some fields that are kept unchecked.
    pub(super) fn parse_kindly(
        body: &[u8],
        table: Table,
        unchecked: &[&'static str],
    ) -> Result<Self, ApiError> {
        Self::checked(json::parse_object(body, &names(table, unchecked))?, table)
    }

    fn checked(object: Map<String, Value>, table: Table) -> Result<Self, ApiError> {
        check::object(&object, table.iter().copied().flatten()).map_err(ApiError::from)?;
        Ok(Self(object))
    }

    /// An object within a value that was checked; empty for anything else.
    pub(super) fn of(value: Value) -> Self {
        match value {
            Value::Object(object) => Self(object),
            _ => Self(Map::new()),
        }
    }

    /// A field of any type.
    pub(super) fn any(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A copy of a field that stays.
    pub(super) fn peek(&self, name: &str) -> Option<Value> {
        self.0.get(name).filter(|value| !value.is_null()).cloned()
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.any(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        self.any(name)?.as_bool()
    }

    pub(super) fn number(&mut self, name: &str) -> Option<f32> {
        let number = self.any(name)?.as_f64()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "limits are small; the engine computes in f32"
        )]
        let number = number as f32;
        Some(number)
    }

    pub(super) fn whole(&mut self, name: &str) -> Option<i128> {
        whole(&self.any(name)?)
    }

    /// A whole number that is a count: what is too large is the largest.
    pub(super) fn count(&mut self, name: &str) -> Option<u32> {
        let whole = self.whole(name)?;
        Some(u32::try_from(whole.max(0)).unwrap_or(u32::MAX))
    }

    pub(super) fn list(&mut self, name: &str) -> Vec<Value> {
        match self.any(name) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        }
    }

    /// A text, or a list of them.
    pub(super) fn texts(&mut self, name: &str) -> Vec<String> {
        let text = |value: Value| value.as_str().map(str::to_owned);
        match self.any(name) {
            Some(Value::Array(list)) => list.into_iter().filter_map(text).collect(),
            Some(one) => text(one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> Option<Self> {
        self.any(name).map(Self::of)
    }

    /// The names of the fields that are left.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn names(table: Table, others: &[&'static str]) -> Vec<&'static str> {
    let fields = table.iter().copied().flatten();
    fields
        .map(|field| field.name)
        .chain(others.iter().copied())
        .collect()
}

/// A whole number; what is beyond 64 bits saturates.
pub(super) fn whole(value: &Value) -> Option<i128> {
    let exact = value.as_i64().map(i128::from);
    let exact = exact.or_else(|| value.as_u64().map(i128::from));
    #[expect(clippy::cast_possible_truncation, reason = "the cast saturates")]
    let near = || value.as_f64().map(|number| i128::from(number as i64));
    exact.or_else(near)
}

/// A list of token ids that was checked.
pub(super) fn token_ids(list: &[Value]) -> Vec<crate::engine::Token> {
    let ids = list.iter().filter_map(whole);
    ids.filter_map(|id| u32::try_from(id).ok())
        .map(crate::engine::Token)
        .collect()
}
