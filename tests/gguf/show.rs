//! `pocket-llm show`: the program itself, on a real model and on made ones.

use crate::gguf_file::GgufFile;
use crate::models::test_model;
use crate::{Q4_0, small};
use pocket_llm::models::gguf::Gguf;

fn show(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pocket-llm"))
        .arg("show")
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn show_tells_what_a_model_is_and_needs() {
    let model = test_model("SmolLM2-135M-Instruct.Q4_1.gguf");
    let (code, shown, errors) = show(&[model.to_str().unwrap()]);
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    for line in [
        "architecture   llama",
        "licence        apache-2.0",
        "parameters     134.5 million",
        "quantisation   Q4_1",
        "vocabulary     49152 tokens",
        "context        8192 tokens",
        "template       the model's own",
    ] {
        assert!(shown.lines().any(|found| found == line), "{line}: {shown}");
    }
    assert!(
        shown.contains("norms          F32") && shown.contains("embedding      Q"),
        "{shown}"
    );
    assert!(
        shown.contains("per token, so at most ") && shown.contains("KV cache 180 MiB"),
        "{shown}"
    );

    let (code, shown, _) = show(&["--json", model.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let gguf = Gguf::read(&model).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(json["bytes_per_token"], gguf.bytes_per_decoded_token());
    assert_eq!(json["parameters"], 134_515_008);
    assert_eq!(json["memory"]["kv_bytes"], 4 * 2048 * 23_040);
    let bytes: u64 = json["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(json["size_bytes"], bytes, "every tensor is in one group");
}

#[test]
fn show_advises_where_bytes_are_wasted() {
    let folder = tempfile::tempdir().unwrap();
    let f16 = (1, 1, 2);
    let base = || GgufFile::new("llama").text("general.name", "\u{1b}[31mred");
    let layer = |file: GgufFile| file.tensor("blk.0.ffn_up.weight", &[512, 512], Q4_0);
    let cases = [
        (
            layer(base().tensor("token_embd.weight", &[512, 512], f16)),
            "the embedding is F16 and is read for every token",
        ),
        (
            layer(base().tensor("token_embd.weight", &[512, 512], f16).tensor(
                "output.weight",
                &[512, 512],
                f16,
            )),
            "the output matrix is F16",
        ),
        (
            base().tensor("token_embd.weight", &[32, 32], f16).tensor(
                "blk.0.ffn_up.weight",
                &[512, 512],
                f16,
            ),
            "the weights are not quantised",
        ),
    ];
    for (file, advice) in cases {
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file.whole()).unwrap();
        let (_, shown, _) = show(&[path.to_str().unwrap()]);
        assert!(shown.contains(advice), "{advice}: {shown}");
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        assert!(shown.contains("template       none"), "{shown}");
    }
    let quantised = layer(base().tensor("token_embd.weight", &[512, 512], Q4_0));
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, quantised.whole()).unwrap();
    let (_, shown, _) = show(&[path.to_str().unwrap()]);
    assert!(!shown.contains("faster"), "{shown}");
}

#[test]
fn show_says_in_one_sentence_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = small().whole();
    std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    let (code, shown, errors) = show(&[path.to_str().unwrap()]);
    assert_eq!((code, shown.as_str()), (Some(1), ""));
    assert!(
        errors.starts_with("pocket-llm: ") && errors.contains("it is 5 bytes shorter"),
        "{errors}"
    );
    assert_eq!(errors.lines().count(), 1, "{errors}");
}
