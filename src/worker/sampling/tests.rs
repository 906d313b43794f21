#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::float_cmp,
    reason = "small numbers, and results that must be exact"
)]

use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::iter::repeat_n;

fn off() -> Sampling {
    Sampling {
        temperature: 1.0,
        seed: 7,
        ..Sampling::GREEDY
    }
}

fn tokens(ids: &[u32]) -> Vec<Token> {
    ids.iter().copied().map(Token).collect()
}

fn greedy(logits: &[f32]) -> u32 {
    let sampling = Sampling {
        temperature: 0.0,
        ..off()
    };
    Sampler::new(&sampling, &[]).sample(logits, 0).0
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(greedy(&[1.0, 3.0, 2.0, 3.0]), 1);
    assert_eq!(greedy(&[f32::NAN, -2.0, f32::NAN, -1.0]), 3);
    assert_eq!(greedy(&[0.0, f32::INFINITY, f32::NAN, f32::INFINITY]), 1);
    assert_eq!(greedy(&[f32::NEG_INFINITY, f32::MIN]), 1);
    // In the second chunk, in the filled-up last one, and twice.
    let mut logits = vec![-1.0; 2 * CHUNK + 5];
    for id in [2 * CHUNK + 4, 2 * CHUNK, CHUNK + 63, CHUNK + 2] {
        logits[id] = 0.5;
        assert_eq!(greedy(&logits) as usize, id);
    }
}

#[test]
fn logits_that_say_nothing_give_the_first_token() {
    for sampling in [
        off(),
        Sampling {
            temperature: 0.0,
            ..off()
        },
        Sampling { top_k: 3, ..off() },
    ] {
        let mut sampler = Sampler::new(&sampling, &tokens(&[1, 2]));
        assert_eq!(sampler.sample(&[], 0), Token(0));
        assert_eq!(sampler.sample(&[f32::NAN; 3], 0), Token(0));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 100], 0), Token(0));
    }
}

#[test]
fn penalties_by_hand() {
    let sampling = Sampling {
        repeat_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        repeat_last_n: 3,
        ..off()
    };
    let logits = [2.0, -1.0, 3.0, 0.0];
    let adjusted = |penalties: &Penalties| penalties.adjusted(&logits).collect::<Vec<_>>();
    // The 2 lies before the window, 900 outside the vocabulary.
    let mut penalties = Penalties::new(&sampling, &tokens(&[2, 0, 1, 0]));
    // 2 / 2 - 2 · 0.5 - 0.25, and -1 · 2 - 0.5 - 0.25.
    assert_eq!(adjusted(&penalties), [(0, -0.25), (1, -2.75)]);
    penalties.accept(Token(900));
    assert_eq!(adjusted(&penalties), [(0, 0.25), (1, -2.75)]);
    penalties.accept(Token(3));
    assert_eq!(adjusted(&penalties), [(0, 0.25), (3, -0.75)]);
    penalties.accept(Token(2));
    assert_eq!(adjusted(&penalties), [(2, 0.75), (3, -0.75)]);
    // A penalty as large as that is felt by greedy sampling.
    let greedy = Sampling {
        temperature: 0.0,
        ..sampling
    };
    assert_eq!(
        Sampler::new(&greedy, &tokens(&[2])).sample(&logits, 0),
        Token(0)
    );
}

#[test]
fn neutral_penalties_remember_nothing() {
    let mut penalties = Penalties::new(&off(), &tokens(&[1, 2, 3]));
    penalties.accept(Token(1));
    assert_eq!(penalties.adjusted(&[1.0; 8]).count(), 0);
}

#[test]
fn exponentials_are_close() {
    for step in 0_u16..=8700 {
        let x = -f32::from(step) / 100.0;
        let expected = f64::from(x).exp();
        let error = (f64::from(exp(x)) - expected).abs() / expected;
        assert!(error < 1e-6 || x <= -87.0, "exp({x}) is off by {error}");
    }
    let edges = [
        0.0,
        -0.0,
        f32::INFINITY,
        -87.5,
        f32::MIN,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    assert_eq!(edges.map(exp), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn random_numbers_are_those_of_split_mix() {
    // The generator's published first numbers for the seed 1234567.
    let published = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
    ];
    let mut state = 1_234_567_u64;
    for expected in published {
        state = state.wrapping_add(GAMMA);
        assert_eq!(mix(state), expected);
    }
    let numbers = (0..10_000).map(|position| random(3, position));
    assert!(numbers.clone().all(|number| (0.0..1.0).contains(&number)));
    assert!((numbers.sum::<f64>() / 10_000.0 - 0.5).abs() < 0.01);
}

/// Uneven, with ties.
fn some_logits(n_vocab: u16) -> Vec<f32> {
    (0..n_vocab)
        .map(|id| f32::from(id * 37 % 101) / 20.0)
        .collect()
}

#[test]
fn a_draw_depends_on_seed_and_position_alone() {
    let logits = some_logits(300);
    let sampling = Sampling { top_k: 50, ..off() };
    let draws =
        |sampling: &Sampling, positions: &mut dyn Iterator<Item = u32>| -> HashMap<u32, Token> {
            let mut sampler = Sampler::new(sampling, &[]);
            positions
                .map(|position| (position, sampler.sample(&logits, position)))
                .collect()
        };
    let forward = draws(&sampling, &mut (0..100));
    assert_eq!(forward, draws(&sampling, &mut (0..100).rev()));
    assert_ne!(
        forward,
        draws(
            &Sampling {
                seed: 8,
                ..sampling
            },
            &mut (0..100)
        )
    );
}

#[test]
fn what_left_the_window_is_forgotten() {
    let logits = some_logits(300);
    let sampling = Sampling {
        repeat_penalty: 1.3,
        repeat_last_n: 4,
        ..off()
    };
    let mut a = Sampler::new(&sampling, &tokens(&[1, 2, 3, 4, 5, 100, 50]));
    let mut b = Sampler::new(&sampling, &tokens(&[9]));
    for token in tokens(&[200, 100, 50, 60, 70]) {
        a.accept(token);
        b.accept(token);
    }
    let mut c = Sampler::new(&sampling, &tokens(&[70, 60, 50, 100]));
    for position in 0..200 {
        let token = a.sample(&logits, position);
        assert_eq!(token, b.sample(&logits, position));
        assert_eq!(token, c.sample(&logits, position));
    }
}

/// The survivors in order of rank with their logits: straight from the definitions. `slack` is added to top-p.
fn reference(sampling: &Sampling, recent: &[Token], logits: &[f32], slack: f64) -> Vec<(u32, f32)> {
    let window = &recent[recent.len().saturating_sub(sampling.repeat_last_n as usize)..];
    let adjust = |(id, &logit): (usize, &f32)| {
        let times = window.iter().filter(|token| token.0 as usize == id).count();
        let mut logit = logit;
        if times > 0 {
            let repeat = sampling.repeat_penalty;
            logit = if logit > 0.0 {
                logit / repeat
            } else {
                logit * repeat
            };
            logit -= times as f32 * sampling.frequency_penalty;
            logit -= sampling.presence_penalty;
        }
        (id as u32, logit.min(f32::MAX))
    };
    let adjusted = logits.iter().enumerate().map(adjust);
    // NaN became the largest number by `min`, so it is told by its own logit; no penalty makes NaN of a number.
    let mut ranked: Vec<(u32, f32)> = adjusted
        .filter(|&(id, logit)| !logits[id as usize].is_nan() && logit > f32::NEG_INFINITY)
        .collect();
    // Stable: ties stay in order of id. Unlike `total_cmp` this takes 0 and -0 for the same.
    ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
    let Some(&(_, max)) = ranked.first() else {
        return ranked;
    };
    if sampling.top_k > 0 {
        ranked.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let needed = f64::from(sampling.top_p) + slack;
        let weights: Vec<f64> = ranked
            .iter()
            .map(|&(_, logit)| (f64::from(logit) - f64::from(max)).exp())
            .collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let last = weights.iter().position(|weight| {
            sum += weight / total;
            sum >= needed
        });
        ranked.truncate(last.map_or(ranked.len(), |last| last + 1));
    }
    if sampling.min_p > 0.0 {
        let floor = (max + sampling.min_p.ln()).min(max);
        ranked.retain(|&(_, logit)| logit >= floor);
    }
    ranked
}

/// Each survivor's probability after temperature.
fn distribution(sampling: &Sampling, survivors: &[(u32, f32)]) -> Vec<(u32, f64)> {
    let max = f64::from(survivors[0].1);
    let weight = |logit: f32| ((f64::from(logit) - max) / f64::from(sampling.temperature)).exp();
    let total: f64 = survivors.iter().map(|&(_, logit)| weight(logit)).sum();
    let mut of: Vec<(u32, f64)> = survivors
        .iter()
        .map(|&(id, logit)| (id, weight(logit) / total))
        .collect();
    of.sort_by_key(|&(id, _)| id);
    of
}

/// Compares survivors and draws with the reference.
fn check(sampling: &Sampling, prompt: &[Token], logits: &[f32]) -> Result<(), TestCaseError> {
    let mut sampler = Sampler::new(sampling, prompt);
    let token = sampler.sample(logits, 5);
    let ranked = reference(
        &Sampling {
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            ..sampling.clone()
        },
        prompt,
        logits,
        0.0,
    );
    if ranked.is_empty() || sampling.temperature <= 0.0 {
        prop_assert_eq!(token.0, ranked.first().map_or(0, |first| first.0));
        return Ok(());
    }
    let mut survivors = ranked.clone();
    if !sampler.truncation.is_off(logits.len()) {
        // Sums round, so top-p may end a little sooner or later; it ends on the ranking in any case.
        let fewest = reference(sampling, prompt, logits, -1e-5).len();
        let most = reference(sampling, prompt, logits, 1e-5).len();
        let kept = sampler.kept.len();
        prop_assert!(
            (fewest..=most).contains(&kept),
            "{} not in {}..={}",
            kept,
            fewest,
            most
        );
        survivors.truncate(kept);
        let mut expected = survivors.clone();
        expected.sort_by_key(|&(id, _)| id);
        let kept = sampler
            .kept
            .iter()
            .map(|kept| (kept.id, kept.logit.min(f32::MAX)));
        prop_assert_eq!(kept.collect::<Vec<_>>(), expected);
    }
    let distribution = distribution(sampling, &survivors);
    for position in 0..20 {
        let token = sampler.sample(logits, position).0;
        let number = random(sampling.seed, position);
        let before: f64 = distribution
            .iter()
            .filter(|of| of.0 < token)
            .map(|of| of.1)
            .sum();
        let own = distribution.iter().find(|of| of.0 == token).map(|of| of.1);
        let own = own.ok_or_else(|| TestCaseError::fail("drew a token that did not survive"))?;
        let range = before - 1e-5..before + own + 1e-5;
        prop_assert!(range.contains(&number), "{} not in {:?}", number, range);
    }
    Ok(())
}

fn any_logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -12.0_f32..12.0,
        4 => (-4_i8..4).prop_map(f32::from),
        1 => prop::sample::select(&[
            f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, f32::MIN, 0.0, -0.0, 1e-40,
        ][..]),
    ]
}

/// Every bit pattern: `any` alone gives neither NaN nor infinities.
fn any_float() -> impl Strategy<Value = f32> {
    let special = prop::sample::select(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1.0][..]);
    prop_oneof![special, any::<u32>().prop_map(f32::from_bits)]
}

fn any_sampling() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![
        0.05_f32..3.0,
        prop::sample::select(&[0.0_f32, 1.0, 1e-3, 50.0][..])
    ];
    let top_k = prop_oneof![Just(0_u32), 1_u32..12, 1_u32..400, Just(u32::MAX)];
    let top_p = prop_oneof![Just(1.0_f32), 0.0_f32..1.0, 0.9_f32..1.0];
    let min_p = prop_oneof![Just(0.0_f32), 0.0_f32..0.3, 0.0_f32..1.5];
    let penalties = prop_oneof![
        Just((1.0_f32, 0.0_f32, 0.0_f32)),
        (0.5_f32..2.0, -1.0_f32..2.0, -1.0_f32..2.0),
    ];
    (
        temperature,
        top_k,
        top_p,
        min_p,
        penalties,
        0_u32..80,
        any::<u64>(),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, penalties, repeat_last_n, seed)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repeat_penalty: penalties.0,
                repeat_last_n,
                frequency_penalty: penalties.1,
                presence_penalty: penalties.2,
                logit_bias: Vec::new(),
                seed,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn small_vocabularies_equal_the_reference(
        sampling in any_sampling(),
        prompt in prop::collection::vec((0_u32..220).prop_map(Token), 0..90),
        logits in prop::collection::vec(any_logit(), 1..200),
    ) {
        check(&sampling, &prompt, &logits)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Large enough that floors have to be searched for: from nearly flat to a few tokens that stand out.
    #[test]
    fn large_vocabularies_equal_the_reference(
        sampling in any_sampling(),
        spread in prop::sample::select(&[0.0, 0.1, 2.0, 20.0, 200.0][..]),
        n_vocab in 6000_u32..9000,
        prompt in prop::collection::vec((0_u32..9000).prop_map(Token), 0..70),
    ) {
        let normal = |id| (0..6).map(|part| random(part, id)).sum::<f64>() - 3.0;
        let logits: Vec<f32> = (0..n_vocab).map(|id| (normal(id) * spread) as f32).collect();
        check(&sampling, &prompt, &logits)?;
    }

    #[test]
    fn nothing_panics(
        floats in prop::array::uniform6(any_float()),
        numbers in any::<(u32, u32, u64, u32)>(),
        prompt in prop::collection::vec(any::<u32>().prop_map(Token), 0..9),
        logits in prop::collection::vec(any_float(), 0..150),
    ) {
        let [temperature, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty] = floats;
        let (top_k, repeat_last_n, seed, position) = numbers;
        let sampling = Sampling {
            temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, frequency_penalty, presence_penalty, seed,
            logit_bias: Vec::new(),
        };
        let mut sampler = Sampler::new(&sampling, &prompt);
        for token in prompt.iter().rev() {
            sampler.accept(*token);
        }
        let token = sampler.sample(&logits, position);
        prop_assert!((token.0 as usize) < logits.len().max(1));
    }
}

/// Whether 20,000 draws are spread as the reference says: Pearson's statistic, bounded at five standard deviations.
fn check_spread(sampling: &Sampling, logits: &[f32]) {
    const DRAWS: u32 = 20_000;
    let survivors = reference(sampling, &[], logits, 0.0);
    let mut sampler = Sampler::new(sampling, &[]);
    let mut drawn: HashMap<u32, f64> = HashMap::new();
    for position in 0..DRAWS {
        *drawn.entry(sampler.sample(logits, position).0).or_default() += 1.0;
    }
    let mut statistic = 0.0;
    let mut cells = 0.0;
    for (id, probability) in distribution(sampling, &survivors) {
        let expected = probability * f64::from(DRAWS);
        assert!(expected > 5.0, "the test needs more draws");
        statistic += (drawn.remove(&id).unwrap_or_default() - expected).powi(2) / expected;
        cells += 1.0;
    }
    assert!(drawn.is_empty(), "drew what must not be drawn: {drawn:?}");
    let freedom: f64 = cells - 1.0;
    assert!(
        statistic < freedom + 5.0 * (2.0 * freedom).sqrt(),
        "{statistic} for {cells} cells"
    );
}

#[test]
fn draws_are_spread_like_the_distribution() {
    let logits = some_logits(200);
    check_spread(
        &Sampling {
            temperature: 2.0,
            ..off()
        },
        &logits,
    );
    check_spread(
        &Sampling {
            temperature: 0.7,
            top_k: 12,
            ..off()
        },
        &logits,
    );
    check_spread(
        &Sampling {
            temperature: 1.3,
            top_p: 0.6,
            ..off()
        },
        &logits,
    );
    check_spread(
        &Sampling {
            temperature: 1.3,
            min_p: 0.2,
            seed: u64::MAX,
            ..off()
        },
        &logits,
    );
}

#[test]
fn rounding_never_draws_what_has_no_weight() {
    assert_eq!(pick([0.0, 1.0, 0.0, 2.0, 0.0].into_iter(), &mut 0.0), 1);
    assert_eq!(pick([0.0, 1.0, 0.0, 2.0, 0.0].into_iter(), &mut 1.0), 3);
    assert_eq!(pick([0.0, 1.0, 0.0, 2.0, 0.0].into_iter(), &mut 3.0), 3);
    assert_eq!(pick(repeat_n(0.0, 3), &mut 0.0), 0);
}

/// One bit for each of these tokens.
fn mask_of(ids: &[u32], n_vocab: usize) -> Vec<u32> {
    let mut mask = vec![0; n_vocab.div_ceil(32)];
    for id in ids {
        mask[*id as usize / 32] |= 1 << (id % 32);
    }
    mask
}

/// What a constrained sequence does.
fn choose(sampler: &mut Sampler, logits: &[f32], position: u32, mask: &[u32]) -> Token {
    let token = sampler.sample(logits, position);
    if is_set(mask, token.0 as usize) {
        return token;
    }
    sampler.sample_among(logits, position, mask)
}

#[test]
fn drawing_twice_gives_the_allowed_tokens_their_shares() {
    let logits: Vec<f32> = (0..100_u8).map(|id| f32::from(id % 7) / 2.0).collect();
    let allowed = [3, 4, 5, 40, 41, 99];
    let mask = mask_of(&allowed, logits.len());
    let mut sampler = Sampler::new(&off(), &[]);
    let mut counts: HashMap<u32, u32> = HashMap::new();
    let draws = 60_000;
    for position in 0..draws {
        *counts
            .entry(choose(&mut sampler, &logits, position, &mask).0)
            .or_default() += 1;
    }
    let weight = |id: u32| f64::from(logits[id as usize]).exp();
    let total: f64 = allowed.iter().map(|id| weight(*id)).sum();
    assert_eq!(counts.len(), allowed.len());
    for id in allowed {
        let expected = weight(id) / total;
        let share = f64::from(counts[&id]) / f64::from(draws);
        assert!(
            (share - expected).abs() < 0.01,
            "{id}: {share} for {expected}"
        );
    }
}

#[test]
fn forbidden_tokens_are_never_drawn() {
    let n_vocab = 2 * CHUNK + 13;
    let logits: Vec<f32> = (0..n_vocab)
        .map(|id| (id * 37 % 101) as f32 / 20.0)
        .collect();
    let settings = [
        Sampling {
            temperature: 0.0,
            ..off()
        },
        off(),
        Sampling { top_k: 5, ..off() },
        Sampling {
            top_p: 0.5,
            min_p: 0.1,
            ..off()
        },
        Sampling {
            repeat_penalty: 0.5,
            presence_penalty: -50.0,
            ..off()
        },
        Sampling {
            logit_bias: vec![(Token(1), 100.0), (Token(140), -100.0)],
            ..off()
        },
    ];
    for sampling in settings {
        let mut sampler = Sampler::new(&sampling, &tokens(&[1, 2, 3]));
        for position in 0..200 {
            let allowed = [position % 141, (position * 29 + 7) % 141, 140];
            let mask = mask_of(&allowed, n_vocab);
            let token = sampler.sample_among(&logits, position, &mask);
            assert!(
                allowed.contains(&token.0),
                "{sampling:?}: {token:?} of {allowed:?}"
            );
        }
    }
    // Nor where nothing else has a logit.
    let mut sampler = Sampler::new(&off(), &[]);
    let mask = mask_of(&[2], 3);
    assert_eq!(
        sampler.sample_among(&[1.0, 1.0, f32::NEG_INFINITY], 0, &mask),
        Token(2)
    );
    assert_eq!(
        sampler.sample_among(&[1.0, 1.0, f32::NAN], 0, &mask),
        Token(2)
    );
}

#[test]
fn greedy_takes_the_largest_that_is_allowed() {
    let logits = some_logits(300);
    let allowed = [7, 64, 200, 299];
    let mask = mask_of(&allowed, logits.len());
    let mut sampler = Sampler::new(
        &Sampling {
            temperature: 0.0,
            ..off()
        },
        &[],
    );
    let best = allowed.iter().copied().reduce(|a, b| {
        if logits[b as usize] > logits[a as usize] {
            b
        } else {
            a
        }
    });
    assert_eq!(choose(&mut sampler, &logits, 0, &mask).0, best.unwrap());
}

#[test]
fn biases_come_before_penalties() {
    let sampling = Sampling {
        repeat_penalty: 2.0,
        repeat_last_n: 1,
        logit_bias: vec![(Token(2), -5.0), (Token(0), 2.0)],
        ..off()
    };
    let logits = [2.0, -1.0, 3.0, 0.0];
    let adjusted = |penalties: &Penalties| penalties.adjusted(&logits).collect::<Vec<_>>();
    let mut penalties = Penalties::new(&sampling, &tokens(&[0]));
    // (2 + 2) / 2, and 3 - 5 without a penalty.
    assert_eq!(adjusted(&penalties), [(0, 2.0), (2, -2.0)]);
    penalties.accept(Token(3));
    // A bias stays when its token drops out of the window.
    assert_eq!(adjusted(&penalties), [(0, 4.0), (2, -2.0), (3, 0.0)]);
    penalties.accept(Token(2));
    assert_eq!(adjusted(&penalties), [(0, 4.0), (2, -4.0)]);
}
