//! How often guesses came true, by what spoke for them.

/// Matches are told apart up to these lengths.
const LENGTHS: [usize; 7] = [3, 4, 6, 9, 15, 31, usize::MAX];
/// Confidences are told apart up to these probabilities.
const CONFIDENCES: [f32; 6] = [0.3, 0.5, 0.7, 0.85, 0.95, f32::INFINITY];
/// Where all confidences are counted together.
const ALL: usize = LENGTHS.len() + CONFIDENCES.len();
/// What is believed of each before anything was seen. A long match is most likely a copy; a smaller model is not as sure as it
/// believes to be; and one whose makers offer it for this is right most of the time.
const PRIOR: [f32; ALL + 1] = [
    0.3, 0.4, 0.55, 0.7, 0.85, 0.95, 0.97, // by length
    0.25, 0.4, 0.55, 0.7, 0.85, 0.95, // by confidence
    0.8,  // of all confidences
];
/// As many drafted tokens the first belief counts for: tokens of one copy come true one after the other, so that one copy says little about
/// the next.
const WEIGHT: f32 = 14.0;
/// As many the experience of all sequences counts for in one of them.
const OTHERS: f32 = 10.0;
/// Both, for what a smaller model guesses: each of its tokens is a guess of its own.
const OF_MODEL: f32 = 6.0;
/// Older experience counts less: by this factor with each new one.
const MEMORY: f32 = 0.985;
/// The same of what a smaller model guesses.
const MEMORY_OF_MODEL: f32 = 0.97;
/// By this factor with each step in which nothing was tried.
const FADING: f32 = 0.999;

/// What speaks for a guessed token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Evidence {
    /// So many tokens before it are the same as where it was said before.
    Match(usize),
    /// The draft model finds it so likely, from 0 to 1.
    Confidence(f32),
}

impl Evidence {
    /// The weight of a belief in a match, or of one in a smaller model.
    fn or_of_model(self, of_match: f32) -> f32 {
        match self {
            Self::Match(_) => of_match,
            Self::Confidence(_) => OF_MODEL,
        }
    }

    fn class(self) -> usize {
        match self {
            Self::Match(length) => LENGTHS.iter().position(|most| length <= *most).unwrap_or(0),
            Self::Confidence(confidence) => {
                let class = CONFIDENCES.iter().position(|most| confidence <= *most);
                LENGTHS.len() + class.unwrap_or(0)
            }
        }
    }
}

/// What was seen of drafts from one source.
#[derive(Clone, Debug, Default)]
pub struct Odds {
    seen: [Seen; ALL + 1],
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    drafted: f32,
    came_true: f32,
}

impl Odds {
    /// Takes in what became of one guessed token.
    pub fn learn(&mut self, evidence: Evidence, came_true: bool) {
        let (classes, memory) = match evidence {
            Evidence::Match(_) => (&[evidence.class()][..], MEMORY),
            Evidence::Confidence(_) => (&[evidence.class(), ALL][..], MEMORY_OF_MODEL),
        };
        for class in classes {
            let seen = &mut self.seen[*class];
            seen.drafted = seen.drafted * memory + 1.0;
            seen.came_true = seen.came_true * memory + f32::from(u8::from(came_true));
        }
    }

    /// Forgets a little: what was not tried for long is tried again.
    pub fn fade(&mut self) {
        for seen in &mut self.seen {
            seen.drafted *= FADING;
            seen.came_true *= FADING;
        }
    }

    /// The chance of a guessed token.
    pub fn chance(&self, evidence: Evidence) -> f32 {
        let class = evidence.class();
        self.mixed(class, PRIOR[class], evidence.or_of_model(WEIGHT))
    }

    /// The same in the light of what others saw, for a sequence that has seen little itself.
    pub fn chance_among(&self, others: &Self, evidence: Evidence) -> f32 {
        let weight = evidence.or_of_model(OTHERS);
        self.mixed(evidence.class(), others.chance(evidence), weight)
    }

    /// The chance of a draft model's next token, before it is known.
    pub fn usual_among(&self, others: &Self) -> f32 {
        let belief = others.mixed(ALL, PRIOR[ALL], OF_MODEL);
        self.mixed(ALL, belief, OF_MODEL)
    }

    fn mixed(&self, class: usize, belief: f32, weight: f32) -> f32 {
        let seen = self.seen[class];
        (seen.came_true + weight * belief) / (seen.drafted + weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experience_replaces_belief() {
        let mut odds = Odds::default();
        assert!(
            odds.chance(Evidence::Match(3)) < odds.chance(Evidence::Match(8))
                && odds.chance(Evidence::Match(8)) < odds.chance(Evidence::Match(60))
        );
        for _ in 0..100 {
            odds.learn(Evidence::Match(60), false);
            odds.learn(Evidence::Match(3), true);
        }
        assert!(
            odds.chance(Evidence::Match(60)) < 0.25,
            "{}",
            odds.chance(Evidence::Match(60))
        );
        assert!(
            odds.chance(Evidence::Match(3)) > 0.8,
            "{}",
            odds.chance(Evidence::Match(3))
        );
        // And back.
        for _ in 0..200 {
            odds.learn(Evidence::Match(60), true);
        }
        assert!(
            odds.chance(Evidence::Match(60)) > 0.9,
            "{}",
            odds.chance(Evidence::Match(60))
        );
    }

    #[test]
    fn a_new_sequence_believes_the_others() {
        let mut others = Odds::default();
        for _ in 0..100 {
            others.learn(Evidence::Match(20), false);
        }
        let mut own = Odds::default();
        assert!(own.chance_among(&others, Evidence::Match(20)) < 0.4);
        for _ in 0..20 {
            own.learn(Evidence::Match(20), false);
        }
        assert!(own.chance_among(&others, Evidence::Match(20)) < 0.2);
        for _ in 0..100 {
            own.learn(Evidence::Match(20), true);
        }
        assert!(own.chance_among(&others, Evidence::Match(20)) > 0.8);
    }

    #[test]
    fn confidence_is_believed_as_far_as_it_was_right() {
        let (mut all, own) = (Odds::default(), Odds::default());
        let (sure, unsure) = (Evidence::Confidence(0.99), Evidence::Confidence(0.4));
        assert!(all.chance(sure) > 0.9 && all.chance(unsure) < 0.5);
        for _ in 0..100 {
            all.learn(sure, false);
            all.learn(unsure, true);
        }
        assert!(all.chance(sure) < 0.2 && all.chance(unsure) > 0.8);
        let usual = own.usual_among(&all);
        assert!((0.4..0.6).contains(&usual), "half of all: {usual}");
        // Not a number is no confidence.
        all.learn(Evidence::Confidence(f32::NAN), false);
        assert!(all.chance(Evidence::Match(20)) > 0.9, "matches are apart");
        for _ in 0..5000 {
            all.fade();
        }
        assert!(all.chance(sure) > 0.9, "as if nothing had been seen");
    }
}
