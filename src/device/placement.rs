//! Which cores compute, and with how many threads: pure decisions over what was read of the machine.

use super::cores::CoreSet;
use super::topology::{Cluster, Topology};
use serde::{Deserialize, Serialize};

/// What a machine gives this process now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// The affinity mask.
    pub cores: CoreSet,
    /// Whole cores that CPU quotas leave, if there is a quota.
    pub quota: Option<u32>,
}

impl Allowed {
    /// What the calling thread has now; without a mask that can be read, one core.
    pub fn here() -> Self {
        Self {
            cores: CoreSet::allowed().unwrap_or_else(|| [0].into_iter().collect()),
            quota: super::quota(),
        }
    }

    /// Threads that can run at once.
    pub fn threads(&self) -> u32 {
        self.cores
            .count()
            .min(self.quota.unwrap_or(u32::MAX))
            .max(1)
    }
}

/// Threads, and the cores that they may use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// How many.
    pub threads: u32,
    /// Which cores; none for all that are allowed.
    pub cores: CoreSet,
}

impl Team {
    /// The same team where only so much is allowed: no thread without a core of its own, and on other cores rather than on
    /// none.
    #[must_use]
    pub fn within(&self, allowed: &Allowed) -> Self {
        let mut cores = self.cores.and(&allowed.cores);
        let most = if cores.is_empty() {
            allowed.threads()
        } else {
            allowed.threads().min(cores.count())
        };
        if cores == allowed.cores {
            cores = CoreSet::default();
        }
        Self {
            threads: self.threads.clamp(1, most),
            cores,
        }
    }
}

/// A team for steps of each size: what is best for reading weights is not best for computing with them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// For steps of one row: one answer.
    pub one: Team,
    /// For steps of 2 to 16 rows: several answers, or drafts that are checked.
    pub few: Team,
    /// For larger steps: prompts.
    pub many: Team,
}

/// Steps of more rows are [`Placement::many`]'s.
pub const FEW_ROWS: usize = 16;

impl Placement {
    /// The same team for everything.
    pub fn of(team: &Team) -> Self {
        Self {
            one: team.clone(),
            few: team.clone(),
            many: team.clone(),
        }
    }

    /// [`Team::within`] for all.
    #[must_use]
    pub fn within(&self, allowed: &Allowed) -> Self {
        Self {
            one: self.one.within(allowed),
            few: self.few.within(allowed),
            many: self.many.within(allowed),
        }
    }

    /// The team for a step of so many rows.
    pub fn team(&self, rows: usize) -> &Team {
        match rows {
            0 | 1 => &self.one,
            2..=FEW_ROWS => &self.few,
            _ => &self.many,
        }
    }
}

/// A team that was not measured, and why it is that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The team.
    pub team: Team,
    /// Half a sentence for people.
    pub why: String,
}

/// The rule where nothing was measured: the performance cores, as far as they are allowed, and no more threads than a quota has whole
/// cores.
pub fn choose(topology: &Topology, allowed: &Allowed) -> Choice {
    let performance = topology.performance_cores().and(&allowed.cores);
    let little = topology.cores().count() - topology.performance_cores().count();
    let cores = if performance.is_empty() {
        &allowed.cores
    } else {
        &performance
    };
    let team = Team {
        threads: cores.count().max(1),
        cores: cores.clone(),
    };
    let team = team.within(allowed);
    let why = match allowed.quota {
        Some(quota) if quota < cores.count() => {
            format!("the CPU quota leaves {quota} of {} cores", cores.count())
        }
        _ if performance.is_empty() && little > 0 => {
            format!("only little cores ({}) are allowed now", allowed.cores)
        }
        _ if little > 0 => format!(
            "the performance cores ({}); little ones slow them down",
            described(topology, &performance)
        ),
        _ => format!("all cores that are allowed ({})", allowed.cores),
    };
    Choice { team, why }
}

/// `7: Cortex-X3, 4-6: Cortex-A715`.
fn described(topology: &Topology, cores: &CoreSet) -> String {
    let named = |cluster: &Cluster| {
        let here = cluster.cores.and(cores);
        let name = cluster.design.map(|name| format!(": {name}"));
        (!here.is_empty()).then(|| format!("{here}{}", name.unwrap_or_default()))
    };
    let all: Vec<String> = topology.clusters.iter().filter_map(named).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::topology::tests::Phone;

    fn set(text: &str) -> CoreSet {
        text.parse().expect("a list of cores")
    }

    fn allowed(cores: &str, quota: Option<u32>) -> Allowed {
        Allowed {
            cores: set(cores),
            quota,
        }
    }

    fn chosen(phone: &str, cores: &str, quota: Option<u32>) -> (u32, String, String) {
        let topology = Topology::read(Phone::new(phone).root());
        let Choice { team, why } = choose(&topology, &allowed(cores, quota));
        (team.threads, team.cores.to_string(), why)
    }

    #[test]
    fn the_rule_takes_performance_cores_within_what_is_allowed() {
        let table = [
            ("pixel-8", "0-8", None, 5, "4-8"),
            ("pixel-2-xl", "0-7", None, 4, "4-7"),
            // Android in the foreground of a Pixel 2: four little, two large ones. In the background: two little ones.
            ("pixel-2-xl", "0-5", None, 2, "4-5"),
            ("pixel-2-xl", "0-1", None, 2, ""),
            ("pixel-8", "4-8", None, 5, ""),
            ("pixel-8", "0-8", Some(2), 2, "4-8"),
            ("pixel-8", "0-3", Some(1), 1, ""),
            ("raspberry-pi-5", "0-3", None, 4, ""),
            // Nothing is known of the cores.
            ("pixel-3a", "0-7", None, 8, ""),
            ("pixel-3a", "0-7", Some(3), 3, ""),
            ("snapdragon-695", "0-7", None, 2, "6-7"),
        ];
        for (phone, cores, quota, threads, pinned) in table {
            let (found, on, why) = chosen(phone, cores, quota);
            assert_eq!(
                (found, on.as_str()),
                (threads, pinned),
                "{phone}, {cores}: {why}"
            );
        }
    }

    #[test]
    fn the_reason_is_told() {
        assert_eq!(
            chosen("oneplus-9-pro", "0-7", None).2,
            "the performance cores (7: Cortex-X1, 4-6: Cortex-A78); little ones slow them down"
        );
        assert_eq!(
            chosen("oneplus-9-pro", "0-7", Some(2)).2,
            "the CPU quota leaves 2 of 4 cores"
        );
        assert_eq!(
            chosen("oneplus-9-pro", "0-3", None).2,
            "only little cores (0-3) are allowed now"
        );
        assert_eq!(
            chosen("raspberry-pi-5", "0-3", None).2,
            "all cores that are allowed (0-3)"
        );
    }

    #[test]
    fn a_team_follows_what_is_allowed() {
        let team = Team {
            threads: 4,
            cores: set("4-7"),
        };
        let within = |cores: &str, quota| {
            let team = team.within(&allowed(cores, quota));
            (team.threads, team.cores.to_string())
        };
        assert_eq!(within("0-7", None), (4, "4-7".into()));
        assert_eq!(within("0-5", None), (2, "4-5".into()));
        assert_eq!(within("0-1", None), (2, String::new()));
        assert_eq!(within("4-7", None), (4, String::new()));
        assert_eq!(within("0-7", Some(3)), (3, "4-7".into()));
        let anywhere = Team {
            threads: 8,
            cores: CoreSet::default(),
        };
        assert_eq!(anywhere.within(&allowed("0-3", None)).threads, 4);
        assert_eq!(anywhere.within(&allowed("", None)).threads, 1);
    }

    #[test]
    fn steps_have_teams_by_their_rows() {
        let team = |threads| Team {
            threads,
            cores: CoreSet::default(),
        };
        let placement = Placement {
            one: team(1),
            few: team(2),
            many: team(3),
        };
        let of = [1, 2, 16, 17, 512].map(|rows| placement.team(rows).threads);
        assert_eq!(of, [1, 2, 2, 3, 3]);
    }
}
