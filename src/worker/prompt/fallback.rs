//! Prompt formats for models without a chat template of their own. They are templates too, so that all prompts take one
//! way; none of them refuses a conversation.

/// A prompt format.
pub(super) struct Fallback {
    /// What `source` says.
    pub(super) name: &'static str,
    /// The control text that gives the format away.
    sign: &'static str,
    /// Jinja.
    pub(super) template: &'static str,
    /// Strings that end an answer.
    pub(super) stops: &'static [&'static str],
}

/// The last one has no sign: it fits any vocabulary.
const FALLBACKS: [Fallback; 4] = [
    Fallback {
        name: "fallback:chatml",
        sign: "<|im_start|>",
        template: CHATML,
        stops: &[],
    },
    Fallback {
        name: "fallback:gemma",
        sign: "<start_of_turn>",
        template: GEMMA,
        stops: &[],
    },
    Fallback {
        name: "fallback:llama3",
        sign: "<|start_header_id|>",
        template: LLAMA3,
        stops: &[],
    },
    Fallback {
        name: "fallback:plain",
        sign: "",
        template: PLAIN,
        stops: &["\nUser:"],
    },
];

const CHATML: &str = r"
{%- for message in messages -%}
    {{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n' }}";

/// Gemma knows no system role: standing instructions lead the next thing that the user says.
const GEMMA: &str = r"
{%- set ns = namespace(lead='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.lead = ns.lead + message.content | trim + '\n\n' -%}
    {%- elif message.role == 'user' -%}
        {{ '<start_of_turn>user\n' + ns.lead + message.content | trim + '<end_of_turn>\n' }}
        {%- set ns.lead = '' -%}
    {%- else -%}
        {{ '<start_of_turn>model\n' + message.content | trim + '<end_of_turn>\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if ns.lead -%}
    {{ '<start_of_turn>user\n' + ns.lead | trim + '<end_of_turn>\n' }}
{%- endif -%}
{{ '<start_of_turn>model\n' }}";

const LLAMA3: &str = r"
{%- for message in messages -%}
    {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}";

const PLAIN: &str = r"
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {{ message.content + '\n\n' }}
    {%- elif message.role == 'user' -%}
        {{ 'User: ' + message.content + '\n' }}
    {%- else -%}
        {{ 'Assistant: ' + message.content + '\n' }}
    {%- endif -%}
{%- endfor -%}
{{ 'Assistant:' }}";

impl Fallback {
    /// The format whose control text the vocabulary has.
    pub(super) fn choose(control_texts: &[String]) -> &'static Self {
        let [signed @ .., plain] = &FALLBACKS;
        signed
            .iter()
            .find(|fallback| control_texts.iter().any(|text| text == fallback.sign))
            .unwrap_or(plain)
    }
}
