use super::*;

/// Tokens 0 to 255 are bytes, 256 to 511 the same byte twice, and 512 is a control token.
pub(super) struct Doubles;

impl Vocab for Doubles {
    fn size(&self) -> u32 {
        513
    }
    fn tokenize(&self, _: &str, _: bool, _: bool) -> Vec<Token> {
        Vec::new()
    }
    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>) {
        let byte = u8::try_from(token.0 & 255).expect("a byte");
        let times = match token.0 {
            0..=255 => 1,
            256..=511 => 2,
            _ => 0,
        };
        bytes.extend(std::iter::repeat_n(byte, times));
    }
    fn is_end(&self, _: Token) -> bool {
        false
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
        2
    }
}

fn tokens(ids: &[u32]) -> Vec<Token> {
    ids.iter().copied().map(Token).collect()
}

fn anywhere(_: SeqId) -> RangeInclusive<Position> {
    0..=Position::MAX
}

const GENEROUS: Rules = Rules {
    bytes: 1 << 20,
    bytes_per_token: 1,
    apart: false,
    forgets: false,
};

fn wanted<'a>(client: &'a str, prompt: &'a [Token]) -> Wanted<'a> {
    Wanted {
        client,
        prompt,
        reuse: true,
        longest: 4096,
    }
}

fn choose_in(
    cache: &Cache,
    prompt: &[u32],
    cuttable: &dyn Fn(SeqId) -> RangeInclusive<Position>,
) -> Option<Choice> {
    let prompt = tokens(prompt);
    let facts = Facts {
        cuttable,
        bytes: &|seq| cache.len(seq) as u64,
        vocab: &Doubles,
    };
    cache.choose(wanted("a", &prompt), facts)
}

/// Takes a sequence for a prompt.
fn take(cache: &mut Cache, prompt: &[u32]) -> Choice {
    let choice = choose_in(cache, prompt, &anywhere).expect("an idle sequence");
    cache.begin("a", &tokens(prompt), &choice);
    if !matches!(choice.start, Start::Follow { .. }) {
        cache.got(choice.seq, choice.start.length());
    }
    choice
}

/// Decodes what is left of a prompt and says an answer.
fn answer(cache: &mut Cache, choice: &Choice, prompt: &[u32], answer: &[u32]) {
    cache.advance(choice.seq, prompt.len() - choice.start.length() as usize);
    for token in tokens(answer) {
        cache.push(choice.seq, token);
    }
}

/// Lets a request run through.
fn serve(cache: &mut Cache, prompt: &[u32], said: &[u32]) -> Choice {
    let choice = take(cache, prompt);
    answer(cache, &choice, prompt, said);
    cache.release(choice.seq);
    choice
}

fn long(from: u32) -> Vec<u32> {
    (from..from + 100).collect()
}

#[test]
fn the_next_turn_continues_where_the_last_one_ended() {
    let mut cache = Cache::new(2, GENEROUS);
    let first = serve(&mut cache, &[1, 2, 3], &[4, 5]);
    assert_eq!(first.start, Start::Keep(0));
    let other = serve(&mut cache, &[9, 8, 7], &[6]);
    assert_ne!(other.seq, first.seq, "the empty sequence is taken first");
    let second = serve(&mut cache, &[1, 2, 3, 4, 5, 6], &[7]);
    assert_eq!((second.seq, second.start), (first.seq, Start::Keep(5)));
    assert_eq!(cache.len(first.seq), 7);
}

#[test]
fn an_answer_that_comes_back_cut_otherwise_is_continued() {
    let mut cache = Cache::new(1, GENEROUS);
    let (a, double_a, turn) = (97, 353, 512);
    serve(&mut cache, &[turn, 1], &[double_a, 98, a]);
    let prompt = [turn, 1, a, a, 98, a, turn, 2];
    let choice = choose_in(&cache, &prompt, &anywhere).expect("idle");
    assert_eq!(choice.start, Start::Keep(5));
    let aligned = cache
        .aligned(&choice, &tokens(&prompt))
        .expect("other tokens");
    assert_eq!(aligned, tokens(&[turn, 1, double_a, 98, a, turn, 2]));
    // And so again in the turn after that.
    cache.begin("a", &aligned, &choice);
    cache.got(choice.seq, 5);
    cache.advance(choice.seq, 2);
    cache.push(choice.seq, Token(double_a));
    cache.release(choice.seq);
    let choice = choose_in(
        &cache,
        &[turn, 1, a, a, 98, a, turn, 2, a, a, turn],
        &anywhere,
    )
    .expect("idle");
    assert_eq!(choice.start, Start::Keep(8));
}

#[test]
fn what_a_client_wrote_is_compared_by_tokens() {
    let mut cache = Cache::new(1, GENEROUS);
    serve(&mut cache, &[512, 353], &[1]);
    let choice = choose_in(&cache, &[512, 97, 97, 1], &anywhere).expect("idle");
    assert_eq!(choice.start, Start::Keep(1));
}

#[test]
fn the_last_prompt_token_is_always_decoded() {
    let mut cache = Cache::new(1, GENEROUS);
    serve(&mut cache, &[1, 2, 3], &[4]);
    assert_eq!(serve(&mut cache, &[1, 2, 3], &[4]).start, Start::Keep(2));
    assert_eq!(serve(&mut cache, &[1], &[]).start, Start::Keep(0));
}

#[test]
fn a_window_that_forgot_is_not_continued() {
    let mut cache = Cache::new(1, GENEROUS);
    serve(&mut cache, &[1, 2, 3, 4, 5], &[6, 7]);
    let choice = choose_in(&cache, &[1, 2, 3, 9], &|_| 5..=7).expect("idle");
    assert_eq!(choice.start, Start::Keep(0));
    let choice = choose_in(&cache, &[1, 2, 3, 4, 5, 6, 7, 9], &|_| 7..=7).expect("idle");
    assert_eq!(
        choice.start,
        Start::Keep(7),
        "going on at the end is always possible"
    );
}

#[test]
fn a_greeting_does_not_cost_a_long_conversation() {
    let mut cache = Cache::new(2, GENEROUS);
    let conversation = serve(&mut cache, &long(0), &[]);
    let stranger = serve(&mut cache, &[0, 1, 500], &[501]);
    assert_ne!(stranger.seq, conversation.seq);
    assert_eq!(serve(&mut cache, &[0, 1, 500, 777], &[]).seq, stranger.seq);
}

#[test]
fn the_least_recently_used_goes_first_and_busy_ones_never() {
    let mut cache = Cache::new(2, GENEROUS);
    let a = serve(&mut cache, &[1, 2], &[]);
    let b = serve(&mut cache, &[3, 4], &[]);
    assert_eq!(take(&mut cache, &[5, 6]).seq, a.seq);
    assert_eq!(take(&mut cache, &[1, 2, 3]).seq, b.seq);
    assert_eq!(choose_in(&cache, &[3], &anywhere), None);
    assert!(!cache.any_idle());
}

#[test]
fn busy_sequences_stay_neighbours() {
    let mut cache = Cache::new(4, GENEROUS);
    let taken: Vec<u32> = (0..3).map(|n| take(&mut cache, &[100 + n]).seq.0).collect();
    assert_eq!(taken, [0, 1, 2]);
    for seq in [0, 1, 2] {
        cache.advance(SeqId(seq), 1);
    }
    cache.release(SeqId(0));
    cache.release(SeqId(2));
    assert_eq!(
        take(&mut cache, &[7]).seq.0,
        0,
        "2 would do as well, 3 is empty but lies apart"
    );
    let choice = choose_in(&cache, &[102, 1], &anywhere).expect("idle");
    assert_eq!((choice.seq, choice.start), (SeqId(2), Start::Keep(1)));
}

#[test]
fn reuse_can_be_refused() {
    let mut cache = Cache::new(1, GENEROUS);
    serve(&mut cache, &[1, 2, 3], &[]);
    let prompt = tokens(&[1, 2, 3, 4]);
    let facts = Facts {
        cuttable: &anywhere,
        bytes: &|_| 0,
        vocab: &Doubles,
    };
    let wanted = Wanted {
        reuse: false,
        ..wanted("a", &prompt)
    };
    assert_eq!(
        cache.choose(wanted, facts).expect("idle").start,
        Start::Keep(0)
    );
}

#[test]
fn a_prefix_is_copied_where_taking_it_over_would_cost_a_conversation() {
    let mut cache = Cache::new(2, GENEROUS);
    let mut chat = long(0);
    let first = serve(&mut cache, &chat, &long(1000));
    chat.truncate(60);
    chat.extend([7, 7, 7]);
    let second = take(&mut cache, &chat);
    assert_ne!(second.seq, first.seq);
    assert_eq!(
        second.start,
        Start::Copy {
            from: first.seq,
            length: 60
        }
    );
    // A busy one is copied from as well.
    let mut cache = Cache::new(2, GENEROUS);
    let first = take(&mut cache, &long(0));
    cache.advance(first.seq, 100);
    assert_eq!(
        take(&mut cache, &chat).start,
        Start::Copy {
            from: first.seq,
            length: 60
        }
    );
}

#[test]
fn nothing_is_copied_for_little_or_without_room() {
    let mut cache = Cache::new(2, GENEROUS);
    let first = take(&mut cache, &(0..4000).collect::<Vec<_>>());
    cache.advance(first.seq, 4000);
    let mut prompt: Vec<u32> = (0..40).collect();
    prompt.extend([9, 9, 9]);
    let choice = choose_in(&cache, &prompt, &anywhere).expect("idle");
    assert_eq!(
        choice.start,
        Start::Keep(0),
        "4,000 tokens would be copied for 40"
    );
    let mut cache = Cache::new(
        2,
        Rules {
            bytes: 99,
            ..GENEROUS
        },
    );
    let first = take(&mut cache, &long(0));
    cache.advance(first.seq, 100);
    assert_eq!(
        choose_in(&cache, &long(0), &anywhere).expect("idle").start,
        Start::Keep(0)
    );
}

#[test]
fn those_who_come_together_wait_for_the_first() {
    let mut cache = Cache::new(3, GENEROUS);
    let first = take(&mut cache, &long(0));
    let mut other = long(0);
    other[80..].fill(7);
    let follow = Start::Follow {
        leader: first.seq,
        length: 80,
    };
    assert_eq!(take(&mut cache, &other).start, follow);
    // The third could follow the second, which has more of its prompt but waits itself.
    let third = take(&mut cache, &other);
    assert_eq!(third.start, follow);
    // Half of it is there: the rest is worth waiting for.
    cache.advance(first.seq, 40);
    let prompt = tokens(&other);
    let facts = Facts {
        cuttable: &anywhere,
        bytes: &|_| 0,
        vocab: &Doubles,
    };
    assert_eq!(
        cache.choose_again(third.seq, wanted("a", &prompt), facts),
        follow
    );
    cache.release(first.seq);
    let copy = Start::Copy {
        from: first.seq,
        length: 40,
    };
    assert_eq!(
        cache.choose_again(third.seq, wanted("a", &prompt), facts),
        copy
    );
}

#[test]
fn what_is_taken_over_is_kept_aside() {
    let mut cache = Cache::new(
        1,
        Rules {
            bytes: 250,
            ..GENEROUS
        },
    );
    let save = |cache: &mut Cache, number: u64| {
        assert!(cache.would_save(SeqId(0), 100));
        cache.save(SeqId(0), StateId(number), 100, 0..=100)
    };
    for (number, from) in [(1, 0), (2, 1000)] {
        serve(&mut cache, &long(from), &[]);
        let next = choose_in(&cache, &long(from + 1000), &anywhere).expect("idle");
        assert!(next.save);
        assert_eq!(save(&mut cache, number), [] as [StateId; 0]);
        assert!(!cache.would_save(SeqId(0), 100), "it is there already");
    }
    serve(&mut cache, &long(2000), &[]);
    let mut next = long(0);
    next.push(5);
    let choice = choose_in(&cache, &next, &anywhere).expect("idle");
    assert_eq!(
        choice.start,
        Start::Restore {
            state: StateId(1),
            length: 100
        }
    );
    cache.touch(StateId(1));
    assert_eq!(
        save(&mut cache, 3),
        [StateId(2)],
        "the least recently used makes room"
    );
    assert_eq!(cache.saved_bytes(), 200);
    assert_eq!(cache.make_room(200), [StateId(1), StateId(3)]);
}

#[test]
fn models_that_forget_are_saved_where_prompts_part() {
    let rules = Rules {
        forgets: true,
        ..GENEROUS
    };
    let mut cache = Cache::new(2, rules);
    let only_the_end = |_| 100..=100;
    let mut first = long(0);
    serve(&mut cache, &first, &[]);
    first[70..].fill(5);
    let choice = choose_in(&cache, &first, &only_the_end).expect("idle");
    assert_eq!((choice.start, choice.mark), (Start::Keep(0), Some(70)));
    cache.begin("a", &tokens(&first), &choice);
    cache.advance(choice.seq, 70);
    cache.save(choice.seq, StateId(1), 70, 70..=70);
    first[70..].fill(6);
    let third = choose_in(&cache, &first, &only_the_end).expect("idle");
    assert_eq!(
        (third.start, third.mark),
        (
            Start::Restore {
                state: StateId(1),
                length: 70
            },
            None
        )
    );
}

#[test]
fn clients_can_be_kept_apart() {
    let rules = Rules {
        apart: true,
        forgets: true,
        ..GENEROUS
    };
    let mut cache = Cache::new(3, rules);
    let first = serve(&mut cache, &long(0), &[]);
    cache.save(first.seq, StateId(1), 100, 0..=100);
    let busy = take(&mut cache, &long(0));
    let prompt = tokens(&long(0));
    let facts = Facts {
        cuttable: &anywhere,
        bytes: &|_| 0,
        vocab: &Doubles,
    };
    let stranger = cache.choose(wanted("b", &prompt), facts).expect("idle");
    assert_eq!((stranger.start, stranger.mark), (Start::Keep(0), None));
    assert_eq!(
        cache.choose_again(stranger.seq, wanted("b", &prompt), facts),
        Start::Keep(0)
    );
    let same = cache.choose(wanted("a", &prompt), facts).expect("idle");
    assert_ne!(same.start, Start::Keep(0), "{busy:?}");
}
