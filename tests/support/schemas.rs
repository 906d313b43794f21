//! Random JSON Schemas, bounded in depth and width, of all keywords that can be kept while sampling.

use serde_json::{Map, Value, json};

/// Random numbers (xorshift): the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        let index = self.below(choices.len() as u64);
        &choices[usize::try_from(index).expect("an index")]
    }

    fn sometimes(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// A schema whose answers are short enough to be completed.
pub(crate) fn schema(random: &mut Random) -> Value {
    let mut schema = object(random, 2);
    if random.below(4) == 0 {
        schema["$defs"] = json!({"shared": leaf(random)});
        schema["properties"]["shared"] = json!({"$ref": "#/$defs/shared"});
    }
    schema
}

fn any(random: &mut Random, depth: u64) -> Value {
    if depth == 0 {
        return leaf(random);
    }
    match random.below(8) {
        0 => object(random, depth - 1),
        1 => array(random, depth - 1),
        2 => json!({"anyOf": [any(random, depth - 1), leaf(random)]}),
        3 => json!({"oneOf": [branch("a", random), branch("b", random)]}),
        4 => json!({"allOf": [number(random, "minimum"), number(random, "maximum")]}),
        _ => leaf(random),
    }
}

fn branch(kind: &str, random: &mut Random) -> Value {
    json!({
        "type": "object",
        "properties": {"kind": {"const": kind}, "of": leaf(random)},
        "required": ["kind", "of"],
        "additionalProperties": false,
    })
}

fn object(random: &mut Random, depth: u64) -> Value {
    let names = ["name", "age", "ünïcode", "a b", "x\"y", "z\\", "1"];
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for _ in 0..=random.below(3) {
        let name = *random.one_of(&names);
        properties.insert(name.into(), any(random, depth));
        if random.sometimes() && !required.contains(&name) {
            required.push(name);
        }
    }
    let mut schema = json!({"type": "object", "properties": properties, "required": required});
    schema["additionalProperties"] = match random.below(6) {
        0 => leaf(random),
        1 => return schema,
        _ => json!(false),
    };
    schema
}

fn array(random: &mut Random, depth: u64) -> Value {
    let least = random.below(3);
    let mut schema = json!({
        "type": "array",
        "items": any(random, depth),
        "minItems": least,
        "maxItems": least + random.below(3),
    });
    if random.below(4) == 0 {
        schema["prefixItems"] = json!([leaf(random)]);
    }
    schema
}

fn leaf(random: &mut Random) -> Value {
    match random.below(10) {
        0 => json!({"type": "string", "maxLength": 1 + random.below(12)}),
        1 => json!({"type": "string", "minLength": 2, "maxLength": 5}),
        2 => {
            let patterns = [
                "^[a-z]{2,6}$",
                "^\\d{3}-\\w+$",
                "[0-9]$",
                "^(yes|no)?$",
                "^.{0,4}é$",
            ];
            json!({"type": "string", "pattern": random.one_of(&patterns), "maxLength": 20})
        }
        3 => {
            let formats = [
                "date",
                "time",
                "date-time",
                "uuid",
                "ipv4",
                "ipv6",
                "email",
                "hostname",
                "duration",
                "uri",
            ];
            json!({"type": "string", "format": random.one_of(&formats)})
        }
        4 => json!({"type": "integer", "minimum": -5, "maximum": random.below(1000)}),
        5 => json!({"type": "number", "exclusiveMinimum": 0.5, "maximum": 1e3}),
        6 => {
            let values = [
                json!("a"),
                json!("b\n\"c\""),
                json!(7),
                json!(1.5),
                json!(null),
                json!([1, {"k": true}]),
            ];
            json!({"enum": [random.one_of(&values), random.one_of(&values)]})
        }
        7 => json!({"type": ["boolean", "null"]}),
        8 => json!({"type": "integer", "multipleOf": 1 + random.below(9)}),
        _ => json!({"type": *random.one_of(&["number", "integer", "boolean", "null", "string"])}),
    }
}

fn number(random: &mut Random, bound: &str) -> Value {
    let number = random.below(50);
    let number = if bound == "minimum" {
        number
    } else {
        number + 50
    };
    json!({"type": "integer", bound: number})
}
