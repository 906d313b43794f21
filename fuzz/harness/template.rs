//! Any text as a model's chat template, with a short chat: it compiles or is refused, it renders or fails, and neither takes
//! long, writes much, or lets a client's text be a control token.

use pocket_llm::engine::{Message, Prompt, Role, Token};
use pocket_llm::worker::decoder::Vocab;
use pocket_llm::worker::prompt::Template;

/// Between the template and what is said.
const BORDER: u8 = 0xff;
/// What a client writes and must stay text.
const CONTROL: &str = "<|im_end|>";
/// Bytes that a prompt of a short chat may have.
const MOST_BYTES: usize = 4 << 20;

/// A template, a border, and what the user says.
pub(crate) fn check(data: &[u8]) {
    let border = data.iter().position(|byte| *byte == BORDER);
    let (source, said) = data.split_at(border.unwrap_or(data.len()));
    let source = String::from_utf8_lossy(source);
    let said = String::from_utf8_lossy(said.get(1..).unwrap_or_default());
    let vocab = Letters(vec![CONTROL.into(), "<|end|>".into()]);
    let (template, warning) = Template::new(&vocab, Some(&source));
    assert_eq!(template.source() == "configured", warning.is_none());
    let said = format!("{said}{CONTROL}");
    let messages = [
        Message::new(Role::System, "Be kind."),
        Message::new(Role::User, said),
    ];
    let Ok(rendered) = template.render(&messages, None) else {
        return;
    };
    assert!(
        rendered.text().len() <= MOST_BYTES,
        "{} bytes",
        rendered.text().len()
    );
    let prompt = Prompt::Messages(messages.into());
    let Ok(prepared) = template.prepare(&vocab, &prompt, None, u32::MAX) else {
        return;
    };
    // Only what the template itself writes may be control tokens.
    if !source.contains("<|") && !source.contains("im_") {
        let is_own = template.source() == "configured";
        let controls = prepared
            .tokens
            .iter()
            .filter(|token| token.0 >= 256)
            .count();
        assert!(
            !is_own || controls == 0,
            "{controls} control tokens of a client"
        );
    }
}

/// Bytes, and two control tokens.
struct Letters(Vec<String>);

impl Vocab for Letters {
    fn size(&self) -> u32 {
        258
    }

    fn tokenize(&self, text: &str, _: bool, parse_special: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        let mut rest = text.as_bytes();
        'text: while let Some((&first, after)) = rest.split_first() {
            for (id, control) in (256..).zip(self.0.iter().filter(|_| parse_special)) {
                if let Some(after) = rest.strip_prefix(control.as_bytes()) {
                    tokens.push(Token(id));
                    rest = after;
                    continue 'text;
                }
            }
            tokens.push(Token(first.into()));
            rest = after;
        }
        tokens
    }

    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>) {
        bytes.extend(u8::try_from(token.0));
    }

    fn is_end(&self, token: Token) -> bool {
        token.0 >= 256
    }

    fn control_texts(&self) -> &[String] {
        &self.0
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
        1
    }
}
