//! Any bytes as the body of a request for an answer: no panic, a refusal is a 400 with one line, and what is let through is
//! within every limit that the engine relies on.

use pocket_llm::engine::wire::{self, ToWorker};
use pocket_llm::engine::{MOST_ALTERNATIVES, Request, Work};
use pocket_llm::http::read_body;
use pocket_llm::models::SamplingDefaults;

const PATHS: [&str; 4] = [
    "/ai/text",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
];
/// Answers to one request.
const MOST_CHOICES: usize = 8;

/// The same bytes at every endpoint: what one refuses may pass another.
pub(crate) fn check(data: &[u8]) {
    let model = SamplingDefaults {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.0,
        repeat_penalty: 1.0,
    };
    for path in PATHS {
        match read_body(path, data, &model).expect("a path that exists") {
            Ok(requests) => {
                assert!((1..=MOST_CHOICES).contains(&requests.len()), "{path}");
                requests.into_iter().for_each(check_request);
            }
            Err((status, sentence)) => {
                assert_eq!(status, 400, "{path}: {sentence}");
                let is_line = !sentence.is_empty() && !sentence.contains(char::is_control);
                assert!(is_line, "{path}: {sentence:?}");
            }
        }
    }
}

fn check_request(request: Request) {
    let sampling = &request.sampling;
    let numbers = [
        (sampling.temperature, 0.0, 100.0),
        (sampling.top_p, 0.0, 1.0),
        (sampling.min_p, 0.0, 1.0),
        (sampling.repeat_penalty, 0.01, 100.0),
        (sampling.frequency_penalty, -100.0, 100.0),
        (sampling.presence_penalty, -100.0, 100.0),
    ];
    for (number, least, most) in numbers {
        // Not a number is in no range.
        assert!((least..=most).contains(&number), "{number} in {sampling:?}");
    }
    assert!(sampling.repeat_last_n <= 65_536);
    assert!(sampling.logit_bias.iter().all(|(_, bias)| bias.is_finite()));
    assert!(request.stop.len() <= 16 && request.stop.iter().all(|stop| !stop.is_empty()));
    assert!(
        request
            .logprobs
            .is_none_or(|most| most <= MOST_ALTERNATIVES)
    );
    assert!(
        request
            .deadline_ms
            .is_none_or(|ms| ms <= 24 * 60 * 60 * 1000)
    );
    let work = Work::Generate(Box::new(request));
    wire::encode(&ToWorker::Submit { id: 1, work }).expect("a body of this size fits into a frame");
}
