//! How many patterns may meet in one string.

use serde_json::Value;
use std::collections::HashMap;

/// Counts the patterns that may meet in one string: those of an `allOf`, at whatever depth, come together.
pub(super) struct Meeting<'a> {
    pub(super) root: &'a Value,
    /// What references lead to; 0 while it is being counted, because a cycle brings together what it has brought already.
    pub(super) known: HashMap<&'a str, usize>,
}

impl<'a> Meeting<'a> {
    pub(super) fn of(&mut self, schema: &'a Value) -> usize {
        let Value::Object(keywords) = schema else {
            return 0;
        };
        let here = ["pattern", "format"]
            .iter()
            .filter(|name| keywords.contains_key(**name));
        let mut alone = here.count();
        let mut together = 0;
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(schemas)) => {
                    alone = alone.max(self.most(schemas.values()));
                }
                ("items" | "prefixItems", Value::Array(schemas)) => {
                    alone = alone.max(self.most(schemas));
                }
                ("items" | "additionalItems" | "additionalProperties", schema) => {
                    alone = alone.max(self.of(schema));
                }
                ("allOf", Value::Array(schemas)) => {
                    together += schemas.iter().map(|schema| self.of(schema)).sum::<usize>();
                }
                ("anyOf" | "oneOf", Value::Array(schemas)) => together += self.most(schemas),
                ("$ref", Value::String(target)) => together += self.referred(target),
                _ => {}
            }
        }
        alone + together
    }

    fn most(&mut self, schemas: impl IntoIterator<Item = &'a Value>) -> usize {
        let each = schemas.into_iter().map(|schema| self.of(schema));
        each.max().unwrap_or(0)
    }

    fn referred(&mut self, target: &'a str) -> usize {
        if let Some(known) = self.known.get(target) {
            return *known;
        }
        self.known.insert(target, 0);
        let pointer = target.trim_start_matches('#').trim_end_matches('/');
        let met = self
            .root
            .pointer(pointer)
            .map_or(0, |schema| self.of(schema));
        self.known.insert(target, met);
        met
    }
}
