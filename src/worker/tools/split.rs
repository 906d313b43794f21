//! Calls apart from the text of an answer, as they are written.
//!
//! The text before a call goes out as it is, without the white space right before it; a call's arguments go out as the
//! model wrote them; what is around calls and between them goes nowhere. What only looked like a call is text. What comes
//! out does not depend on where the text that comes in is cut: everything is decided character by character. At most
//! [`MOST_SPACE`] and [`LONGEST_HEAD`] bytes are held back.

use super::{CLOSE, OPEN, Syntax};
use crate::engine::{Event, ToolChoice, Tools};

/// White space that is held back because a call may follow.
pub(super) const MOST_SPACE: usize = 256;
/// A call up to its arguments: a name of 64, the keys, and some white space.
pub(super) const LONGEST_HEAD: usize = 512;

/// Follows one answer. See the module.
#[derive(Clone, Debug)]
pub struct CallSplitter {
    syntax: Syntax,
    names: Vec<String>,
    place: Place,
    /// Text that may be none: white space, a mark or its beginning, a call up to its arguments.
    held: String,
    calls: u32,
    /// Where the text ends that was taken in, in all that was said.
    end: usize,
}

/// Where in the answer we are.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In text, with so many bytes of the opening mark at the end of what is held.
    Text { matched: usize },
    /// In text that no call follows.
    Plain,
    /// In what may be a call; its object begins at this byte of what is held.
    Head { from: usize },
    /// In a call's arguments.
    Arguments(Nesting),
    /// Behind them, with so many bytes of the closing mark seen.
    Close { matched: usize },
    /// Behind a call.
    Between,
}

/// Where in a JSON object we are.
#[derive(Clone, Copy, Debug)]
struct Nesting {
    depth: u32,
    string: bool,
    escape: bool,
}

impl CallSplitter {
    /// For an answer that may call these tools; `None` if it may not.
    pub fn new(tools: &Tools, syntax: Syntax) -> Option<Self> {
        (tools.choice != ToolChoice::None).then(|| Self {
            syntax,
            names: tools.callable().map(|tool| tool.name.clone()).collect(),
            place: match syntax {
                Syntax::Tagged => Place::Text { matched: 0 },
                Syntax::Bare(_) => Place::Head { from: 0 },
            },
            held: String::new(),
            calls: 0,
            end: 0,
        })
    }

    /// Takes text of the answer in, which begins at `from` in all that was said and goes on where the last one ended, and appends
    /// what is sure: pieces of text and of calls, without log-probabilities. Returns where each of the texts begins.
    pub fn push(&mut self, text: &str, from: usize, events: &mut Vec<Event>) -> Vec<usize> {
        let mut outlet = Outlet::new(events, from.saturating_sub(self.held.len()));
        for char in text.chars() {
            self.take(char, &mut outlet);
        }
        self.end = from + text.len();
        outlet.begins
    }

    /// Where the text begins that is not sure yet, in all that was said.
    pub fn unsure_from(&self) -> usize {
        self.end.saturating_sub(self.held.len())
    }

    /// Appends what is held back, once no more can come. If the answer was cut short, the beginning of a call behind its
    /// mark is dropped: it is neither text nor of use. Returns what [`CallSplitter::push`] does.
    pub fn finish(&mut self, cut: bool, events: &mut Vec<Event>) -> Vec<usize> {
        let mut outlet = Outlet::new(events, self.unsure_from());
        let held = std::mem::take(&mut self.held);
        let head = matches!(self.place, Place::Head { .. });
        if !(cut && head && self.syntax == Syntax::Tagged) {
            outlet.text(&held);
        }
        self.place = Place::Plain;
        outlet.begins
    }

    /// Calls so far.
    pub fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether what comes next belongs to a call, or to what is around it.
    pub fn in_call(&self) -> bool {
        matches!(
            self.place,
            Place::Arguments(_) | Place::Close { .. } | Place::Between
        )
    }

    fn take(&mut self, char: char, outlet: &mut Outlet<'_>) {
        match self.place {
            Place::Plain => outlet.char(char),
            Place::Text { matched } => self.text(matched, char, outlet),
            Place::Head { from } => self.head(from, char, outlet),
            Place::Arguments(nesting) => {
                outlet.arguments(self.calls - 1, None, char);
                outlet.skip(char.len_utf8());
                self.place = match nesting.after(char) {
                    Some(nesting) => Place::Arguments(nesting),
                    None => Place::Close { matched: 0 },
                };
            }
            Place::Close { matched } => {
                outlet.skip(char.len_utf8());
                self.place = self.close(matched, char);
            }
            Place::Between => self.between(char, outlet),
        }
    }

    fn text(&mut self, matched: usize, char: char, outlet: &mut Outlet<'_>) {
        if OPEN[matched..].starts_with(char) {
            self.held.push(char);
            self.place = if matched + 1 == OPEN.len() {
                let from = self.held.len();
                Place::Head { from }
            } else {
                Place::Text {
                    matched: matched + 1,
                }
            };
        } else if matched > 0 {
            // The mark's first character does not come again in it.
            self.release(outlet);
            self.place = Place::Text { matched: 0 };
            self.take(char, outlet);
        } else if char.is_ascii_whitespace() {
            self.held.push(char);
            if self.held.len() > MOST_SPACE {
                outlet.char(self.held.remove(0));
            }
        } else {
            self.release(outlet);
            outlet.char(char);
        }
    }

    fn head(&mut self, from: usize, char: char, outlet: &mut Outlet<'_>) {
        self.held.push(char);
        let head = match read_head(&self.held[from..], &self.names) {
            Head::More if self.held.len() - from >= LONGEST_HEAD => Head::Garbage,
            head => head,
        };
        match head {
            Head::More => {}
            Head::Garbage => {
                self.held.pop();
                self.release(outlet);
                self.place = match self.syntax {
                    Syntax::Tagged => Place::Text { matched: 0 },
                    Syntax::Bare(_) => Place::Plain,
                };
                self.take(char, outlet);
            }
            Head::Call { name, empty } => {
                outlet.arguments(self.calls, Some(name), '{');
                self.place = if empty {
                    outlet.arguments(self.calls, None, '}');
                    Place::Close { matched: 0 }.behind_object(self.syntax)
                } else {
                    Place::Arguments(Nesting::FIRST)
                };
                self.calls += 1;
                outlet.skip(self.held.len());
                self.held.clear();
            }
        }
    }

    fn close(&self, matched: usize, char: char) -> Place {
        match self.syntax {
            Syntax::Bare(_) if char == '}' => Place::Between,
            Syntax::Bare(_) => Place::Close { matched },
            Syntax::Tagged => {
                let matched = match char {
                    char if CLOSE[matched..].starts_with(char) => matched + 1,
                    '<' => 1,
                    _ => 0,
                };
                if matched == CLOSE.len() {
                    Place::Between
                } else {
                    Place::Close { matched }
                }
            }
        }
    }

    fn between(&mut self, char: char, outlet: &mut Outlet<'_>) {
        let bare = self.syntax != Syntax::Tagged;
        if char.is_ascii_whitespace() || (bare && char == ';') {
            outlet.skip(char.len_utf8());
            return;
        }
        self.place = match self.syntax {
            Syntax::Tagged => Place::Text { matched: 0 },
            Syntax::Bare(_) => Place::Head { from: 0 },
        };
        self.take(char, outlet);
    }

    fn release(&mut self, outlet: &mut Outlet<'_>) {
        outlet.text(&self.held);
        self.held.clear();
    }
}

impl Place {
    /// The same where the brace that ends a call's object has been read already.
    fn behind_object(self, syntax: Syntax) -> Self {
        match syntax {
            Syntax::Tagged => self,
            Syntax::Bare(_) => Self::Between,
        }
    }
}

impl Nesting {
    /// Behind the first brace.
    const FIRST: Self = Self {
        depth: 1,
        string: false,
        escape: false,
    };

    /// Where we are behind another character; `None` behind the object's last one.
    fn after(mut self, char: char) -> Option<Self> {
        if self.string {
            let escaped = self.escape;
            self.escape = !escaped && char == '\\';
            self.string = escaped || char != '"';
            return Some(self);
        }
        match char {
            '"' => self.string = true,
            // More than 2³² braces are more than an answer has room for.
            '{' | '[' => self.depth = self.depth.saturating_add(1),
            '}' | ']' => self.depth -= 1,
            _ => {}
        }
        (self.depth > 0).then_some(self)
    }
}

/// What a text is that may be a call up to its arguments.
enum Head {
    /// The beginning of one.
    More,
    /// None.
    Garbage,
    /// One, up to the brace that opens the arguments, or to the end of an object without any.
    Call { name: String, empty: bool },
}

/// Reads `{"name": NAME, "arguments": {`. Called again with each character: a head is short.
fn read_head(text: &str, names: &[String]) -> Head {
    let mut reader = Reader(text);
    match reader.head(names) {
        Ok(call) => call,
        Err(head) => head,
    }
}

/// Reads from the front of a text; the error is what the text is if it can't go on.
struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    fn head(&mut self, names: &[String]) -> Result<Head, Head> {
        self.one_of(&["{"])?;
        self.one_of(&["\"name\""])?;
        self.one_of(&[":"])?;
        self.one_of(&["\""])?;
        let name = self.name(names)?.to_owned();
        let empty = self.one_of(&[",", "}"])? == "}";
        if !empty {
            self.one_of(&["\"arguments\"", "\"parameters\""])?;
            self.one_of(&[":"])?;
            self.one_of(&["{"])?;
        }
        Ok(Head::Call { name, empty })
    }

    /// White space, then one of these texts.
    fn one_of(&mut self, texts: &[&'static str]) -> Result<&'static str, Head> {
        let rest = self
            .0
            .trim_start_matches(|char: char| char.is_ascii_whitespace());
        for text in texts {
            if let Some(rest) = rest.strip_prefix(text) {
                self.0 = rest;
                return Ok(text);
            }
        }
        Err(begins_one(rest, texts.iter().copied()))
    }

    /// The name of a tool, and the quotation mark behind it.
    fn name(&mut self, names: &[String]) -> Result<&'a str, Head> {
        match self.0.split_once('"') {
            Some((name, rest)) if names.iter().any(|other| other == name) => {
                self.0 = rest;
                Ok(name)
            }
            Some(_) => Err(Head::Garbage),
            None => Err(begins_one(self.0, names.iter().map(String::as_str))),
        }
    }
}

fn begins_one<'a>(text: &str, mut texts: impl Iterator<Item = &'a str>) -> Head {
    if texts.any(|other| other.starts_with(text)) {
        Head::More
    } else {
        Head::Garbage
    }
}

/// Appends to the caller's events, joining what is of one kind, but never to events that were there before.
struct Outlet<'a> {
    events: &'a mut Vec<Event>,
    first: usize,
    /// Where what comes next begins in all that was said.
    at: usize,
    /// Where each text begins.
    begins: Vec<usize>,
}

impl<'a> Outlet<'a> {
    fn new(events: &'a mut Vec<Event>, at: usize) -> Self {
        let first = events.len();
        Self {
            events,
            first,
            at,
            begins: Vec::new(),
        }
    }

    /// Passes over what is no text.
    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn char(&mut self, char: char) {
        self.text(char.encode_utf8(&mut [0; 4]));
    }

    fn text(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        if let Some(Event::Text { text, .. }) = self.events[self.first..].last_mut() {
            text.push_str(more);
        } else {
            self.begins.push(self.at);
            self.events.push(Event::Text {
                text: more.to_owned(),
                thinking: false,
                logprobs: Vec::new(),
            });
        }
        self.at += more.len();
    }

    /// A character of a call's arguments, with the name if it is the first one.
    fn arguments(&mut self, index: u32, name: Option<String>, char: char) {
        match self.events[self.first..].last_mut() {
            Some(Event::ToolCall { arguments, .. }) if name.is_none() => arguments.push(char),
            _ => self.events.push(Event::ToolCall {
                index,
                name,
                arguments: char.into(),
            }),
        }
    }
}
