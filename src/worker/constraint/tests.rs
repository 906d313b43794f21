use super::model::without_anchors;
use super::*;
use crate::engine::Format;
use crate::worker::decoder::Vocab;
use serde_json::{Value, json};

/// A vocabulary of these words; the last token is the end, the one before it is another control token.
pub(super) struct Words(Vec<Vec<u8>>);

impl Words {
    /// All bytes, then longer words.
    pub(super) fn new(longer: &[&str]) -> Self {
        let bytes = (0..=u8::MAX).map(|byte| vec![byte]);
        let longer = longer.iter().map(|word| word.as_bytes().to_vec());
        let control = [Vec::new(), Vec::new()];
        Self(bytes.chain(longer).chain(control).collect())
    }

    fn end(&self) -> Token {
        Token(self.size() - 1)
    }
}

impl Vocab for Words {
    fn size(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap()
    }
    fn tokenize(&self, _: &str, _: bool, _: bool) -> Vec<Token> {
        Vec::new()
    }
    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>) {
        bytes.extend(&self.0[token.0 as usize]);
    }
    fn is_end(&self, token: Token) -> bool {
        token == self.end()
    }
    fn control_texts(&self) -> &[String] {
        &[]
    }
    fn bos(&self) -> Option<&str> {
        None
    }
    fn eos(&self) -> Option<&str> {
        None
    }
    fn adds_bos(&self) -> bool {
        false
    }
    fn chat_template(&self) -> Option<&str> {
        None
    }
    fn longest_token_bytes(&self) -> usize {
        64
    }
}

fn compile(words: &Words, format: &Format, plan: &Plan) -> Result<Constraint, String> {
    Arc::new(Constraints::new(words).unwrap()).compile(format, plan)
}

fn after(marker: &str) -> Plan {
    Plan {
        start: Start::After(marker.into()),
        optional: false,
        again: false,
        ..Plan::WHOLE
    }
}

/// Every token that may come, by asking for the set; asking for each one must say the same.
fn allowed(constraint: &mut Constraint, words: &Words) -> Vec<u32> {
    let mask = constraint.mask().unwrap().to_vec();
    let ids = 0..words.size();
    let set: Vec<u32> = ids
        .filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1)
        .collect();
    for id in 0..words.size() {
        let may = constraint.allows(Token(id)).unwrap();
        assert_eq!(may, set.contains(&id), "token {id}");
    }
    set
}

fn say(constraint: &mut Constraint, text: &str) {
    for byte in text.bytes() {
        let token = Token(byte.into());
        assert!(
            constraint.allows(token).unwrap(),
            "{} in {text}",
            char::from(byte)
        );
        constraint.accept(token).unwrap();
    }
}

/// Whether the whole text has the form.
fn fits(format: &Format, text: &str) -> bool {
    let words = Words::new(&[]);
    let mut constraint = compile(&words, format, &Plan::WHOLE).unwrap();
    for byte in text.bytes() {
        if !constraint.allows(Token(byte.into())).unwrap() {
            return false;
        }
        constraint.accept(Token(byte.into())).unwrap();
    }
    constraint.is_complete() || constraint.allows(words.end()).unwrap()
}

#[test]
fn the_set_and_the_single_answers_agree() {
    let words = Words::new(&["{\"a\":", "true", "}}", "{\""]);
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}},
        "required": ["a"], "additionalProperties": false});
    let mut constraint = compile(&words, &Format::JsonSchema(schema), &Plan::WHOLE).unwrap();
    assert_eq!(allowed(&mut constraint, &words), [b'{'.into(), 256, 259]);
    constraint.accept(Token(256)).unwrap();
    assert_eq!(
        allowed(&mut constraint, &words),
        [b'f'.into(), b't'.into(), 257]
    );
    constraint.accept(Token(257)).unwrap();
    assert_eq!(allowed(&mut constraint, &words), [u32::from(b'}')]);
    assert!(!constraint.is_complete());
    constraint.accept(Token(b'}'.into())).unwrap();
    assert!(constraint.is_complete());
    assert_eq!(allowed(&mut constraint, &words), [words.end().0]);
}

#[test]
fn ends_come_where_the_form_is_complete_and_control_tokens_never() {
    let words = Words::new(&[]);
    let mut constraint = compile(&words, &Format::Regex("a+".into()), &Plan::WHOLE).unwrap();
    assert_eq!(allowed(&mut constraint, &words), [u32::from(b'a')]);
    say(&mut constraint, "aa");
    assert_eq!(
        allowed(&mut constraint, &words),
        [b'a'.into(), words.end().0]
    );
    constraint.accept(words.end()).unwrap();
    assert!(constraint.is_complete());
    // Not by number either: 256 is the control token.
    let grammar = Format::Lark("start: \"a\" <[256]>".into());
    let mut constraint = compile(&words, &grammar, &Plan::WHOLE).unwrap();
    say(&mut constraint, "a");
    assert!(!constraint.allows(Token(256)).unwrap());
    assert!(matches!(constraint.mask(), Err(EngineError::BadRequest(_))));
}

#[test]
fn tokens_with_the_same_bytes_are_all_allowed() {
    let words = Words::new(&["a", "ab", "ab"]);
    let mut constraint = compile(&words, &Format::Regex("ab".into()), &Plan::WHOLE).unwrap();
    assert_eq!(
        allowed(&mut constraint, &words),
        [b'a'.into(), 256, 257, 258]
    );
    constraint.accept(Token(257)).unwrap();
    assert!(constraint.is_complete());
}

#[test]
fn a_form_may_begin_behind_a_marker() {
    let words = Words::new(&["call>{", "l>x", "<call>"]);
    let schema = Format::JsonSchema(json!({"const": {}}));
    let mut constraint = compile(&words, &schema, &after("<call>")).unwrap();
    say(&mut constraint, "free { text <ca <");
    let open = allowed(&mut constraint, &words);
    // All bytes but 0xff, and what reaches into the form and fits it.
    assert_eq!(open.len(), 255 + 3);
    assert!(open.contains(&256) && !open.contains(&words.end().0));
    say(&mut constraint, "cal");
    let open = allowed(&mut constraint, &words);
    assert!(!open.contains(&257), "an x does not begin the form");
    constraint.accept(Token(b'l'.into())).unwrap();
    constraint.accept(Token(b'<'.into())).unwrap();
    constraint.accept(Token(256)).unwrap();
    assert_eq!(allowed(&mut constraint, &words), [u32::from(b'}')]);
    say(&mut constraint, "}");
    assert!(constraint.is_complete());
}

#[test]
fn a_form_may_come_again_or_not_at_all() {
    let words = Words::new(&[]);
    let plan = Plan {
        again: true,
        ..after("#")
    };
    let mut constraint = compile(&words, &Format::Regex("[0-9]{2};".into()), &plan).unwrap();
    assert!(
        !constraint.allows(words.end()).unwrap(),
        "once it must come"
    );
    for _ in 0..3 {
        say(&mut constraint, "text #");
        assert_eq!(allowed(&mut constraint, &words).len(), 10);
        say(&mut constraint, "42;");
        assert!(!constraint.is_complete() && constraint.allows(words.end()).unwrap());
    }
    constraint.accept(words.end()).unwrap();
    assert!(constraint.is_complete());
    let plan = Plan {
        optional: true,
        ..after("#")
    };
    let mut constraint = compile(&words, &Format::Regex("x".into()), &plan).unwrap();
    say(&mut constraint, "only text");
    constraint.accept(words.end()).unwrap();
    assert!(constraint.is_complete());
}

#[test]
fn json_is_compact_and_bounded() {
    let words = Words::new(&[]);
    let mut constraint = compile(&words, &Format::JsonObject, &Plan::WHOLE).unwrap();
    say(&mut constraint, "{\"a\":");
    assert!(!constraint.allows(Token(b' '.into())).unwrap());
    say(&mut constraint, "[1e99,");
    say(&mut constraint, "12345678901234567890");
    assert!(
        !constraint.allows(Token(b'1'.into())).unwrap(),
        "a 21st digit"
    );
    say(&mut constraint, ",");
    say(&mut constraint, &"[".repeat(62));
    let open = allowed(&mut constraint, &words);
    assert!(!open.contains(&u32::from(b'[')) && open.contains(&u32::from(b']')));
    say(&mut constraint, &"]".repeat(63));
    say(&mut constraint, "}");
    assert!(constraint.is_complete());
}

#[test]
fn a_name_is_written_in_one_way() {
    let schema = json!({"type": "object", "properties": {"a": {"const": 1}},
        "additionalProperties": {"const": 2}});
    let format = Format::JsonSchema(schema);
    assert!(fits(&format, r#"{"a":1,"b":2,"c":2}"#));
    assert!(!fits(&format, r#"{"a":1,"\u0061":2}"#));
    assert!(!fits(&format, r#"{"a":1,"a":2}"#));
}

#[test]
fn patterns_mean_what_they_mean_in_json_schema() {
    let format = |pattern: &str| Format::JsonSchema(json!({"type": "string", "pattern": pattern}));
    assert!(fits(&format("^.$"), "\"é\""));
    assert!(!fits(&format("^.$"), "\"\\r\""));
    assert!(!fits(&format("^\\d$"), "\"٣\""));
    assert!(fits(&format("b"), "\"abc\""));
    let date = Format::JsonSchema(json!({"format": "date", "pattern": "^2", "type": "string"}));
    assert!(fits(&date, "\"2024-02-28\""));
    assert!(!fits(&date, "\"2024-02-30\"") && !fits(&date, "\"1999-01-01\""));
}

/// The error of a schema that is refused.
fn refusal(schema: Value) -> String {
    compile(&Words::new(&[]), &Format::JsonSchema(schema), &Plan::WHOLE)
        .err()
        .unwrap()
}

#[test]
fn refusals_say_where() {
    for (schema, at) in [
        (
            json!({"properties": {"a": {"not": {}}}}),
            "at /properties/a/not: the keyword `not`",
        ),
        (
            json!({"items": {"uniqueItems": true}}),
            "at /items/uniqueItems",
        ),
        (
            json!({"properties": {"a/b": {"if": true}}}),
            "at /properties/a~1b/if",
        ),
        (
            json!({"allOf": [{"type": "strnig"}]}),
            "at /allOf/0/type: a type is one of",
        ),
        (
            json!({"anyOf": {}}),
            "at /anyOf: expected array, not an object",
        ),
        (json!({"minLength": -1}), "at /minLength"),
        (json!({"const": 1e300}), "at /const: numbers are"),
        (json!({"format": "regex"}), "at /format"),
        (
            json!({"$ref": "#/$defs/a"}),
            "at /$ref: `$ref` leads to `#/$defs/a`",
        ),
        (json!({"$ref": "https://example.com/"}), "at /$ref"),
        (json!({"minProperties": 2}), "at /: `minProperties`"),
        (
            json!({"properties": {"a": {"minimum": "é"}}}),
            "at /properties/a/minimum",
        ),
        // What only the grammar engine finds.
        (
            json!({"properties": {"a": {"pattern": "a(?=b)"}}}),
            "at /properties/a: the expression can't be read",
        ),
        (
            json!({"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "string"}]}}}),
            "at /properties/a: the branches of `oneOf` can't be told apart",
        ),
        (
            json!({"items": {"type": "string", "minLength": 3, "maxLength": 2}, "minItems": 1, "type": "array"}),
            "at /",
        ),
    ] {
        let why = refusal(schema.clone());
        assert!(why.contains(at) && !why.contains('\n'), "{schema}: {why}");
    }
}

#[test]
fn options_of_the_engine_are_not_the_clients() {
    let schema = json!({"type": "array", "items": {"const": 1}, "x-guidance": {"whitespace_flexible": true}});
    let format = Format::JsonSchema(schema);
    assert!(fits(&format, "[1,1]") && !fits(&format, "[1, 1]"));
    let grammar = Format::Lark("start: %json {\"type\": \"object\"}".into());
    assert!(compile(&Words::new(&[]), &grammar, &Plan::WHOLE).is_err());
}

fn gbnf(grammar: &str) -> Format {
    Format::Gbnf(grammar.into())
}

#[test]
fn gbnf_accepts_what_it_says() {
    let words = gbnf(
        "root ::= greeting{1,2} [^a-z\\n]? \"x\\\"/y\" # end\ngreeting ::= \"hé\" | \"ha\"+\n",
    );
    assert!(fits(&words, "hahahéx\"/y") && fits(&words, "héAx\"/y"));
    assert!(!fits(&words, "x\"/y") && !fits(&words, "héax\"/y"));
    let nested = gbnf("root ::= sum\nsum ::= part (\"+\" part)*\npart ::= [0-9]+ | \"(\" sum\")\"");
    assert!(fits(&nested, "1+(2+34)+((5))"));
    assert!(!fits(&nested, "1+(2") && !fits(&nested, "+1"));
    // Longest words would eat the b that must follow.
    let greedy = gbnf("root ::= [a-c]+ \"b!\" | \"(\" root \")\"");
    assert!(fits(&greedy, "(abcb!)") && fits(&greedy, "bb!"));
    let any = gbnf("root ::= . .{2} \"\"");
    assert!(fits(&any, "é\n!") && !fits(&any, "ab"));
}

#[test]
fn gbnf_refusals_say_where() {
    for (grammar, why) in [
        ("a ::= \"x\"", "no rule `root`"),
        ("root ::= b", "line 1 of the grammar: there is no rule `b`"),
        (
            "root ::= \"x\"\nroot ::= \"y\"",
            "line 2 of the grammar: there are two rules `root`",
        ),
        (
            "root ::= \"x",
            "line 1 of the grammar: a text is not closed",
        ),
        ("root ::= [z-a]", "a class from `z` back to `a`"),
        ("root ::= [a", "a class is not closed"),
        ("root ::= \"a\"{9999}", "more than 1000 repetitions"),
        ("root ::= \"a\"**", "two repetitions in a row"),
        ("root ::= <[1]>", "single tokens can't be named"),
        ("root ::= (\"a\"", "a group is not closed"),
        ("root = \"a\"", "expected `::=`"),
        ("root ::= \"\\q\"", "`\\q` is no escape"),
        ("root ::= \"a\" }", "`}` is not expected here"),
    ] {
        let refused = gbnf::to_lark(grammar).unwrap_err();
        assert!(refused.contains(why), "{grammar}: {refused}");
    }
    let deep = format!("root ::= {}", "(".repeat(100));
    assert!(
        gbnf::to_lark(&deep)
            .unwrap_err()
            .contains("groups inside each other")
    );
}

#[test]
fn anchors_say_nothing_new() {
    assert_eq!(without_anchors("^a$"), "a");
    assert_eq!(without_anchors("a\\$"), "a\\$");
    assert_eq!(without_anchors("a\\\\$"), "a\\\\");
    assert!(fits(&Format::Regex("^(yes|no)$".into()), "yes"));
    assert!(fits(&Format::Regex("a/b".into()), "a/b"));
}

#[test]
fn operators_that_can_take_for_ever_stand_in_strings_only() {
    let words = Words::new(&[]);
    let lark =
        |grammar: &str| compile(&words, &Format::Lark(grammar.into()), &Plan::WHOLE).map(drop);
    for grammar in [
        "start: A\nA: /a.*/ & /.*b/",
        "start: A\nA: ~/a/",
        "// \"\nstart: A\nA: /a\\/\\\"/ & /b/",
    ] {
        let error = lark(grammar).expect_err(grammar);
        assert!(error.contains("can take for ever"), "{error}");
    }
    assert_eq!(lark("start: \"a & ~\" /[&~]/"), Ok(()));
}
