//! Which teams are tried, and which of them is best. Pure: the measuring is done elsewhere.

use crate::device::placement::choose;
use crate::device::{Allowed, CoreSet, Placement, Team, Topology};
use serde::Serialize;

/// A larger team must be faster by this factor: it takes cores from others, and makes heat.
const WORTH: f64 = 1.03;
/// More rows cost memory, so they must be faster by this factor.
const ROWS_WORTH: f64 = 1.03;
/// Teams that are tried at most.
const MOST_TEAMS: usize = 16;

/// Rows of a step at most that are tried.
const MOST_ROWS: u32 = 512;

/// Rows of a step that are tried, those of the memory plan first.
pub fn rows_around(usual: u32) -> impl Iterator<Item = u32> {
    let more = (usual < MOST_ROWS).then_some(usual * 2);
    [usual, usual / 2].into_iter().chain(more)
}

/// What a team reached, in tokens per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The team.
    pub team: Team,
    /// Prompts, in steps of many rows.
    pub prefill: f64,
    /// One answer, in steps of one row.
    pub decode: f64,
    /// Several answers together, in steps of a few rows.
    pub decode_few: f64,
}

/// Teams that are worth trying: those of the rule first, then fewer threads on the same cores, then other sets of cores, from
/// the fastest cluster to all that is allowed. If time runs out, the first ones are what matters.
pub fn teams(topology: &Topology, allowed: &Allowed) -> Vec<Team> {
    let rule = choose(topology, allowed).team;
    let mut sets = vec![if rule.cores.is_empty() {
        allowed.cores.clone()
    } else {
        rule.cores.clone()
    }];
    let mut fastest = CoreSet::default();
    for cluster in &topology.clusters {
        fastest = fastest.or(&cluster.cores.and(&allowed.cores));
        sets.push(fastest.clone());
    }
    sets.push(allowed.cores.clone());
    let mut teams = vec![rule.clone()];
    for cores in sets.into_iter().filter(|cores| !cores.is_empty()) {
        let most = cores.count();
        // All, all but one for the rest of the system, half, one; and as many as the rule has, wherever the system puts them.
        for threads in [most, most - 1, most / 2, 1, rule.threads] {
            if threads == 0 || threads > most {
                continue;
            }
            let team = Team {
                threads,
                cores: cores.clone(),
            };
            let team = team.within(allowed);
            if !teams.contains(&team) {
                teams.push(team);
            }
        }
    }
    teams.truncate(MOST_TEAMS);
    teams
}

/// The best team for each size of step; `None` without trials.
pub fn best(trials: &[Trial]) -> Option<Placement> {
    Some(Placement {
        one: fastest(trials, |trial| trial.decode)?,
        few: fastest(trials, |trial| trial.decode_few)?,
        many: fastest(trials, |trial| trial.prefill)?,
    })
}

/// The fastest team, or one with fewer threads that is nearly as fast. Of teams with as many threads the earlier one is
/// as good unless the later one is faster by as much.
fn fastest(trials: &[Trial], speed: impl Fn(&Trial) -> f64) -> Option<Team> {
    let most = trials.iter().map(&speed).fold(0.0, f64::max);
    let good = trials.iter().filter(|trial| speed(trial) * WORTH >= most);
    let least = good.min_by_key(|trial| trial.team.threads)?;
    Some(least.team.clone())
}

/// The number of rows that is better for prompts than the first one that was tried, if there is any.
pub fn rows(tried: &[(u32, f64)]) -> Option<u32> {
    let most = tried.iter().map(|(_, speed)| *speed).fold(0.0, f64::max);
    let is_good = |(_, speed): &&(u32, f64)| *speed * ROWS_WORTH >= most;
    if tried.first().as_ref().is_none_or(is_good) {
        return None;
    }
    tried.iter().filter(is_good).map(|(rows, _)| *rows).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::topology::tests::Phone;

    fn tried(phone: &str, cores: &str, quota: Option<u32>) -> Vec<String> {
        let topology = Topology::read(Phone::new(phone).root());
        let allowed = Allowed {
            cores: cores.parse().expect("cores"),
            quota,
        };
        let teams = teams(&topology, &allowed);
        let shown = teams
            .iter()
            .map(|team| format!("{}@{}", team.threads, team.cores));
        shown.collect()
    }

    #[test]
    fn teams_begin_with_the_rule_and_reach_all_cores() {
        let teams = tried("pixel-8", "0-8", None);
        assert_eq!(
            teams,
            [
                "5@4-8", "4@4-8", "2@4-8", "1@4-8", "1@8", "9@", "8@", "4@", "1@", "5@"
            ]
        );
        assert_eq!(
            tried("raspberry-pi-5", "0-3", None),
            ["4@", "3@", "2@", "1@"]
        );
        assert_eq!(tried("pixel-3a", "0-1", None), ["2@", "1@"]);
    }

    #[test]
    fn no_team_is_larger_than_what_is_allowed() {
        for (phone, cores, quota, most) in [
            ("pixel-8", "0-8", Some(2), 2),
            ("pixel-8", "0-3", None, 4),
            ("galaxy-s24-plus", "0-9", Some(3), 3),
            ("xiaomi-13-pro", "0", None, 1),
        ] {
            let teams = tried(phone, cores, quota);
            let threads = teams
                .iter()
                .map(|team| team.split('@').next().expect("a number").parse::<u32>());
            let threads: Vec<u32> = threads.map(|threads| threads.expect("a number")).collect();
            assert!(
                threads.iter().all(|threads| (1..=most).contains(threads)),
                "{phone}: {teams:?}"
            );
            assert!(teams.len() <= MOST_TEAMS);
        }
    }

    fn trial(threads: u32, prefill: f64, decode: f64, decode_few: f64) -> Trial {
        Trial {
            team: Team {
                threads,
                cores: CoreSet::default(),
            },
            prefill,
            decode,
            decode_few,
        }
    }

    #[test]
    fn each_size_of_step_has_its_own_best_team() {
        let trials = [
            trial(4, 100.0, 10.0, 20.0),
            trial(3, 80.0, 12.0, 20.1),
            trial(2, 60.0, 11.9, 19.0),
            trial(8, 102.0, 5.0, 8.0),
        ];
        let placement = best(&trials).expect("trials");
        let threads = [
            placement.one.threads,
            placement.few.threads,
            placement.many.threads,
        ];
        // Two threads are as fast as three within 3 %, and eight are not worth it.
        assert_eq!(threads, [2, 3, 4]);
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn more_rows_must_be_worth_their_memory() {
        assert_eq!(rows(&[(128, 100.0), (64, 96.0), (256, 102.0)]), None);
        assert_eq!(rows(&[(128, 100.0), (64, 99.0), (256, 102.0)]), None);
        assert_eq!(rows(&[(128, 100.0), (64, 80.0), (256, 120.0)]), Some(256));
        assert_eq!(rows(&[(256, 96.0), (128, 99.0), (512, 100.0)]), Some(128));
        assert_eq!(rows(&[(512, 100.0)]), None, "alone it says nothing");
        assert_eq!(rows(&[]), None);
        let tried = [64, 128, 512].map(|usual| rows_around(usual).collect::<Vec<_>>());
        assert_eq!(tried[0], [64, 32, 128]);
        assert_eq!(tried[1], [128, 64, 256]);
        assert_eq!(tried[2], [512, 256]);
    }
}
