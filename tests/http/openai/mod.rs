//! OpenAI's API: every shape as its official clients read it.

mod chat;
mod completions;
mod errors;
mod resources;
mod responses;

use crate::support::Server;
use crate::support::client::Response;
use serde_json::Value;

/// The answer to a body.
async fn post(server: &Server, path: &str, body: &Value) -> Response {
    server.post(path, body.to_string()).await
}

/// The objects of a stream, and whether it ended with `[DONE]`.
fn objects(stream: &str) -> (Vec<Value>, bool) {
    let mut objects = Vec::new();
    let mut lines = stream.split("\n\n").filter(|event| !event.is_empty());
    loop {
        let Some(event) = lines.next() else {
            return (objects, false);
        };
        if event.starts_with(':') {
            continue;
        }
        let data = event.strip_prefix("data: ").expect(event);
        if data == "[DONE]" {
            assert_eq!(lines.next(), None, "nothing follows the end");
            return (objects, true);
        }
        objects.push(serde_json::from_str(data).expect(data));
    }
}

/// What differs from run to run, taken out wherever it stands.
fn stable(mut value: Value) -> Value {
    settle(&mut value);
    value
}

fn settle(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                match name.as_str() {
                    "id" | "item_id" | "call_id" | "tool_call_id" => {
                        if let Some((prefix, _)) =
                            value.as_str().and_then(|id| id.split_once(['-', '_']))
                        {
                            *value = format!("[{prefix}]").into();
                        }
                    }
                    "created" | "created_at" if value.is_u64() => *value = "[seconds]".into(),
                    "system_fingerprint" if value.is_string() => *value = "[build]".into(),
                    "queue_ms" | "ttft_ms" => *value = "[ms]".into(),
                    _ => settle(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(settle),
        _ => {}
    }
}
