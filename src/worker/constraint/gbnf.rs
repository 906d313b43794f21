//! GBNF, the grammars of llama.cpp, in the words of the grammar engine.
//!
//! GBNF knows characters and rules only, while the engine cuts text into the longest words that it can. So a grammar without
//! recursion becomes one expression, and in any other each character is a word of its own: both accept what the GBNF accepts.
//!
//! Source of the format: grammars/README.md of llama.cpp. Its rules for single tokens (`<[1000]>`) are refused.

use std::collections::HashMap;
use std::fmt::Write;

/// Rules of a grammar.
const MOST_RULES: usize = 500;
/// Groups inside each other.
const MOST_DEPTH: usize = 16;
/// Repetitions that a grammar may ask for.
const MOST_REPEATS: u32 = 1000;

/// A grammar for the engine with the same texts, or what can't be read and where.
pub(super) fn to_lark(gbnf: &str) -> Result<String, String> {
    let rules = Reader::new(gbnf).rules()?;
    let numbers: HashMap<&str, usize> = rules
        .iter()
        .enumerate()
        .map(|(number, rule)| (rule.name.as_str(), number))
        .collect();
    let root = numbers
        .get("root")
        .ok_or("the grammar has no rule `root`: add one, it is where the answer begins")?;
    let mut uses = vec![Vec::new(); rules.len()];
    for (rule, uses) in rules.iter().zip(&mut uses) {
        rule.body.uses(&mut |name| {
            let number = numbers.get(name).ok_or_else(|| {
                format!(
                    "line {} of the grammar: there is no rule `{name}`",
                    rule.line
                )
            })?;
            uses.push(*number);
            Ok(())
        })?;
    }
    // Rules that are not reached stay out: the engine would complain about them.
    let reached = reached(*root, &uses);
    let prefix = if recurs(&reached, &uses) {
        "rule"
    } else {
        "TEXT"
    };
    let name = |name: &str| {
        format!(
            "{prefix}_{}",
            numbers.get(name).copied().unwrap_or_default()
        )
    };
    let mut lark = format!("start: {}\n", name("root"));
    for number in reached {
        let rule = &rules[number];
        // Writing to a string can't fail.
        let _ = write!(lark, "{}: ", name(&rule.name));
        rule.body.write(&mut lark, &name);
        lark.push('\n');
    }
    Ok(lark)
}

fn reached(root: usize, uses: &[Vec<usize>]) -> Vec<usize> {
    let mut reached = vec![root];
    let mut at = 0;
    while let Some(number) = reached.get(at) {
        for used in &uses[*number] {
            if !reached.contains(used) {
                reached.push(*used);
            }
        }
        at += 1;
    }
    reached
}

/// Whether a rule uses itself: those that use nothing, or only such, are taken away until none is left.
fn recurs(reached: &[usize], uses: &[Vec<usize>]) -> bool {
    let mut left = reached.to_vec();
    loop {
        let before = left.len();
        let open = left.clone();
        left.retain(|number| uses[*number].iter().any(|used| open.contains(used)));
        if left.is_empty() || left.len() == before {
            return !left.is_empty();
        }
    }
}

struct Rule {
    name: String,
    line: usize,
    body: Node,
}

enum Node {
    /// Alternatives.
    Any(Vec<Node>),
    /// One after the other.
    All(Vec<Node>),
    Use(String),
    Text(String),
    /// A class of characters, as an expression.
    Class(String),
    Repeat(Box<Node>, u32, Option<u32>),
}

impl Node {
    fn uses(&self, each: &mut dyn FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        match self {
            Self::Any(nodes) | Self::All(nodes) => {
                nodes.iter().try_for_each(|node| node.uses(each))
            }
            Self::Use(name) => each(name),
            Self::Text(_) | Self::Class(_) => Ok(()),
            Self::Repeat(node, ..) => node.uses(each),
        }
    }

    fn write(&self, lark: &mut String, name: &impl Fn(&str) -> String) {
        match self {
            Self::Any(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    lark.push_str(if index == 0 { "(" } else { " | " });
                    node.write(lark, name);
                }
                lark.push(')');
            }
            Self::All(nodes) if nodes.is_empty() => lark.push_str("\"\""),
            Self::All(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    lark.push_str(if index == 0 { "" } else { " " });
                    node.write(lark, name);
                }
            }
            Self::Use(used) => lark.push_str(&name(used)),
            Self::Text(text) if text.is_empty() => lark.push_str("\"\""),
            Self::Text(text) => {
                for (index, character) in text.chars().enumerate() {
                    let space = if index == 0 { "" } else { " " };
                    let _ = write!(lark, "{space}/[{}]/", in_class(character));
                }
            }
            Self::Class(expression) => {
                let _ = write!(lark, "/{expression}/");
            }
            Self::Repeat(node, least, most) => {
                lark.push('(');
                node.write(lark, name);
                let _ = match (least, most) {
                    (0, None) => write!(lark, ")*"),
                    (1, None) => write!(lark, ")+"),
                    (0, Some(1)) => write!(lark, ")?"),
                    (least, None) => write!(lark, "){{{least},}}"),
                    (least, Some(most)) => write!(lark, "){{{least},{most}}}"),
                };
            }
        }
    }
}

/// A character in the brackets of an expression.
fn in_class(character: char) -> String {
    format!("\\x{{{:x}}}", u32::from(character))
}

/// Reads GBNF by recursive descent.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn new(gbnf: &'a str) -> Self {
        Self {
            rest: gbnf,
            line: 1,
            depth: 0,
        }
    }

    fn wrong<T>(&self, why: &str) -> Result<T, String> {
        Err(format!("line {} of the grammar: {why}", self.line))
    }

    fn rules(mut self) -> Result<Vec<Rule>, String> {
        let mut rules: Vec<Rule> = Vec::new();
        self.skip(true);
        while !self.rest.is_empty() {
            let line = self.line;
            let Some(name) = self.name() else {
                return self.wrong("expected the name of a rule");
            };
            self.skip(true);
            if !self.take("::=") {
                return self.wrong("expected `::=`");
            }
            if rules.len() >= MOST_RULES {
                return Err(format!("the grammar has more than {MOST_RULES} rules"));
            }
            if rules.iter().any(|rule| rule.name == name) {
                return self.wrong(&format!("there are two rules `{name}`"));
            }
            self.skip(true);
            let body = self.alternatives()?;
            rules.push(Rule { name, line, body });
            self.skip(true);
        }
        Ok(rules)
    }

    fn alternatives(&mut self) -> Result<Node, String> {
        let mut alternatives = vec![self.sequence()?];
        while self.take("|") {
            self.skip(true);
            alternatives.push(self.sequence()?);
        }
        Ok(Node::Any(alternatives))
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut nodes = Vec::new();
        loop {
            self.skip(self.depth > 0);
            let Some(next) = self.rest.chars().next() else {
                break;
            };
            let node = match next {
                '"' => Node::Text(self.text()?),
                '[' => Node::Class(self.class()?),
                '(' => self.group()?,
                '.' => {
                    self.advance(1);
                    Node::Class("(?s:.)".into())
                }
                '<' | '!' => return self.wrong("single tokens can't be named: use their text"),
                '|' | ')' | '\n' | '\r' => break,
                _ => match self.name() {
                    Some(name) => Node::Use(name),
                    None => return self.wrong(&format!("`{next}` is not expected here")),
                },
            };
            nodes.push(self.repeated(node)?);
        }
        Ok(Node::All(nodes))
    }

    fn group(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return self.wrong(&format!("more than {MOST_DEPTH} groups inside each other"));
        }
        self.advance(1);
        self.skip(true);
        let node = self.alternatives()?;
        self.skip(true);
        if !self.take(")") {
            return self.wrong("a group is not closed");
        }
        self.depth -= 1;
        Ok(node)
    }

    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let mut node = node;
        // Repeats of repeats would nest without bound.
        for round in 0.. {
            let Some((least, most)) = self.repeats()? else {
                return Ok(node);
            };
            if round > 0 {
                return self.wrong("two repetitions in a row: use a group");
            }
            node = Node::Repeat(Box::new(node), least, most);
        }
        Ok(node)
    }

    fn repeats(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        self.skip(self.depth > 0);
        Ok(if self.take("*") {
            Some((0, None))
        } else if self.take("+") {
            Some((1, None))
        } else if self.take("?") {
            Some((0, Some(1)))
        } else if self.take("{") {
            Some(self.range()?)
        } else {
            None
        })
    }

    /// `m}`, `m,}`, `m,n}` or `,n}`.
    fn range(&mut self) -> Result<(u32, Option<u32>), String> {
        let least = self.number()?;
        self.skip(true);
        let range = if self.take(",") {
            (least.unwrap_or(0), self.number()?)
        } else {
            let Some(exactly) = least else {
                return self.wrong("expected a number behind `{`");
            };
            (exactly, least)
        };
        self.skip(true);
        if !self.take("}") {
            return self.wrong("expected `}`");
        }
        if range.0.max(range.1.unwrap_or(0)) > MOST_REPEATS {
            return self.wrong(&format!("more than {MOST_REPEATS} repetitions"));
        }
        if range.1.is_some_and(|most| most < range.0) {
            return self.wrong("a repetition from more to less");
        }
        Ok(range)
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        self.skip(true);
        let digits = self.rest.len()
            - self
                .rest
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .len();
        if digits == 0 {
            return Ok(None);
        }
        let number = self.rest[..digits].parse().ok();
        if number.is_none() {
            return self.wrong("a number is too large");
        }
        self.advance(digits);
        Ok(number)
    }

    fn text(&mut self) -> Result<String, String> {
        self.advance(1);
        let mut text = String::new();
        loop {
            match self.character()? {
                (Some('"'), false) => return Ok(text),
                (Some(character), _) => text.push(character),
                (None, _) => return self.wrong("a text is not closed"),
            }
        }
    }

    fn class(&mut self) -> Result<String, String> {
        self.advance(1);
        let mut class = String::from(if self.take("^") { "[^" } else { "[" });
        let mut is_empty = true;
        loop {
            let first = match self.character()? {
                (Some(']'), false) if is_empty => return self.wrong("a class is empty"),
                (Some(']'), false) => break,
                (Some(character), _) => character,
                (None, _) => return self.wrong("a class is not closed"),
            };
            is_empty = false;
            class.push_str(&in_class(first));
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.advance(1);
                let (Some(last), _) = self.character()? else {
                    return self.wrong("a class is not closed");
                };
                if last < first {
                    return self.wrong(&format!("a class from `{first}` back to `{last}`"));
                }
                class.push('-');
                class.push_str(&in_class(last));
            }
        }
        class.push(']');
        Ok(class)
    }

    /// The next character of a text or class, and whether a backslash made it.
    fn character(&mut self) -> Result<(Option<char>, bool), String> {
        let Some(character) = self.rest.chars().next() else {
            return Ok((None, false));
        };
        if character == '\n' {
            return self.wrong("a text or class is not closed");
        }
        self.advance(character.len_utf8());
        if character != '\\' {
            return Ok((Some(character), false));
        }
        let Some(escape) = self.rest.chars().next() else {
            return Ok((None, true));
        };
        self.advance(escape.len_utf8());
        let meant = match escape {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '\\' | '"' | '[' | ']' | '-' | '^' | '/' => escape,
            'x' => self.hexadecimal(2)?,
            'u' => self.hexadecimal(4)?,
            'U' => self.hexadecimal(8)?,
            other => return self.wrong(&format!("`\\{other}` is no escape")),
        };
        Ok((Some(meant), true))
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<char, String> {
        let number = self.rest.get(..digits);
        let number = number.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let Some(character) = number.and_then(char::from_u32) else {
            return self.wrong(&format!(
                "expected {digits} hexadecimal digits of a character"
            ));
        };
        self.advance(digits);
        Ok(character)
    }

    fn name(&mut self) -> Option<String> {
        let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let length = self.rest.len() - self.rest.trim_start_matches(part).len();
        let name = self.rest[..length].to_owned();
        self.advance(length);
        (length > 0).then_some(name)
    }

    fn take(&mut self, what: &str) -> bool {
        let is_next = self.rest.starts_with(what);
        if is_next {
            self.advance(what.len());
        }
        is_next
    }

    /// Passes over white space and comments; over line ends only with `lines`.
    fn skip(&mut self, lines: bool) {
        while let Some(next) = self.rest.chars().next() {
            match next {
                ' ' | '\t' => self.advance(1),
                '\n' | '\r' if lines => self.advance(1),
                '#' => self.advance(self.rest.find('\n').unwrap_or(self.rest.len())),
                _ => return,
            }
        }
    }

    fn advance(&mut self, bytes: usize) {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.rest = rest;
    }
}
