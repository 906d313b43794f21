//! How often drafts came true, by how much of the text before them matched.

/// Matches are told apart up to these lengths.
const STEPS: [usize; 7] = [3, 4, 6, 9, 15, 31, usize::MAX];
/// What is believed of each before anything was seen. A long match is most likely a copy.
const PRIOR: [f32; STEPS.len()] = [0.3, 0.4, 0.5, 0.65, 0.8, 0.9, 0.95];
/// As many drafted tokens the first belief counts for, and all sequences' experience for one sequence.
const WEIGHT: f32 = 6.0;
/// Older experience counts less: by this factor with each new one.
const MEMORY: f32 = 0.97;

/// What was seen of drafts from one source.
#[derive(Clone, Debug, Default)]
pub struct Odds {
    seen: [Seen; STEPS.len()],
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    drafted: f32,
    came_true: f32,
}

impl Odds {
    /// Takes in what became of one drafted token, for which `length` tokens matched.
    pub fn learn(&mut self, length: usize, came_true: bool) {
        let seen = &mut self.seen[step(length)];
        seen.drafted = seen.drafted * MEMORY + 1.0;
        seen.came_true = seen.came_true * MEMORY + f32::from(u8::from(came_true));
    }

    /// The chance of a drafted token for which `length` tokens matched.
    pub fn chance(&self, length: usize) -> f32 {
        self.mixed(length, PRIOR[step(length)])
    }

    /// The same in the light of what others saw, for a sequence that has seen little itself.
    pub fn chance_among(&self, others: &Self, length: usize) -> f32 {
        self.mixed(length, others.chance(length))
    }

    fn mixed(&self, length: usize, belief: f32) -> f32 {
        let seen = self.seen[step(length)];
        (seen.came_true + WEIGHT * belief) / (seen.drafted + WEIGHT)
    }
}

fn step(length: usize) -> usize {
    STEPS.iter().position(|most| length <= *most).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experience_replaces_belief() {
        let mut odds = Odds::default();
        assert!(odds.chance(3) < odds.chance(8) && odds.chance(8) < odds.chance(60));
        for _ in 0..100 {
            odds.learn(60, false);
            odds.learn(3, true);
        }
        assert!(odds.chance(60) < 0.2, "{}", odds.chance(60));
        assert!(odds.chance(3) > 0.8, "{}", odds.chance(3));
        // And back.
        for _ in 0..200 {
            odds.learn(60, true);
        }
        assert!(odds.chance(60) > 0.9, "{}", odds.chance(60));
    }

    #[test]
    fn a_new_sequence_believes_the_others() {
        let mut others = Odds::default();
        for _ in 0..100 {
            others.learn(20, false);
        }
        let mut own = Odds::default();
        assert!(own.chance_among(&others, 20) < 0.2);
        for _ in 0..100 {
            own.learn(20, true);
        }
        assert!(own.chance_among(&others, 20) > 0.8);
    }
}
