//! Typed access to the fields of a JSON object. `null` is the same as absent; what is wrong is named.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object that is being taken apart.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    /// A field of any type.
    pub(super) fn any(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    pub(super) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.any(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(name, "true or false", &other)),
        }
    }

    /// A number within a range.
    pub(super) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.any(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(name, "a number", &value));
        };
        if !range.contains(&number) {
            let (least, most) = range.into_inner();
            return Err(
                ApiError::bad_request(format!("`{name}` must be from {least} to {most}"))
                    .details(format!("it is {value}")),
            );
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "ranges are small; the engine computes in f32"
        )]
        let number = number as f32;
        Ok(Some(number))
    }

    /// A whole number, at least `least`. One written as `40.0` counts; one beyond 64 bits is taken for the largest.
    pub(super) fn whole(&mut self, name: &str, least: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.any(name) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(name, "a whole number", &value));
        };
        if number.fract() != 0.0 {
            return Err(
                ApiError::bad_request(format!("`{name}` must be a whole number"))
                    .details(format!("it is {value}")),
            );
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates"
        )]
        let whole = value.as_u64().unwrap_or(number as u64);
        if number < 0.0 || whole < least {
            return Err(
                ApiError::bad_request(format!("`{name}` must be at least {least}"))
                    .details(format!("it is {value}")),
            );
        }
        Ok(Some(whole))
    }
}

/// An error that names a field and both types.
pub(super) fn wrong_type(name: &str, wanted: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    ApiError::bad_request(format!("`{name}` must be {wanted}")).details(format!("it is {found}"))
}
