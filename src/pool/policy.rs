//! Who must go so that another model fits. Pure: from plain data to a choice; no clock, no channel, no files.

/// A loaded model, or one that is being loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    /// Memory that it takes.
    pub(super) bytes: u64,
    /// Whether requests run or wait in it.
    pub(super) busy: bool,
    /// When it was last used: a larger number is later.
    pub(super) last_used: u64,
}

/// The seats (by index, in the order in which they should go) that must be free before a model of `needed` bytes may take one
/// of `most` seats, so that all together hold no more than `total` bytes. `None`: it does not fit even when it is alone.
///
/// Idle models go before busy ones, and the least recently used first. Nobody goes whose place is not needed.
pub(super) fn make_room(
    seats: &[Seat],
    needed: u64,
    total: u64,
    most: usize,
) -> Option<Vec<usize>> {
    if needed > total || most == 0 {
        return None;
    }
    let mut order: Vec<usize> = (0..seats.len()).collect();
    order.sort_by_key(|&index| (seats[index].busy, seats[index].last_used));
    let fits = |gone: &[usize]| {
        let stay = || (0..seats.len()).filter(|index| !gone.contains(index));
        let bytes = stay().fold(needed, |sum, index| sum.saturating_add(seats[index].bytes));
        bytes <= total && stay().count() < most
    };
    let enough = (0..=order.len()).find(|&count| fits(&order[..count]))?;
    let mut gone = order[..enough].to_vec();
    // The last one to go is needed; one before it may have been too small to matter. Whoever was used latest stays first.
    for index in (0..gone.len()).rev() {
        let mut without = gone.clone();
        without.remove(index);
        if fits(&without) {
            gone = without;
        }
    }
    Some(gone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seat(bytes: u64, busy: bool, last_used: u64) -> Seat {
        Seat {
            bytes,
            busy,
            last_used,
        }
    }

    #[test]
    fn the_least_recently_used_idle_model_goes_first() {
        let seats = [seat(40, false, 7), seat(40, false, 3), seat(10, true, 1)];
        for (needed, total, most, gone) in [
            (10, 100, 4, Some(vec![])),
            (20, 100, 4, Some(vec![1])),
            (60, 100, 4, Some(vec![1, 0])),
            (100, 100, 4, Some(vec![1, 0, 2])),
            (101, 100, 4, None),
            (1, 1000, 3, Some(vec![1])),
            (1, 1000, 1, Some(vec![1, 0, 2])),
            (1, 1000, 0, None),
        ] {
            assert_eq!(
                make_room(&seats, needed, total, most),
                gone,
                "{needed} of {total}, {most} seats"
            );
        }
    }

    #[test]
    fn nobody_goes_in_vain() {
        // The small one is older, but only the large one makes room.
        let seats = [seat(5, false, 1), seat(80, false, 2)];
        assert_eq!(make_room(&seats, 50, 100, 4), Some(vec![1]));
    }

    proptest! {
        #[test]
        fn what_is_chosen_fits_and_is_needed(
            seats in proptest::collection::vec((0u64..100, any::<bool>(), 0u64..10), 0..6),
            needed in 0u64..150, total in 0u64..300, most in 0usize..6,
        ) {
            let seats: Vec<Seat> = seats.into_iter().map(|(bytes, busy, last)| seat(bytes, busy, last)).collect();
            let fits = |gone: &[usize]| {
                let stay: Vec<_> = (0..seats.len()).filter(|i| !gone.contains(i)).collect();
                needed + stay.iter().map(|&i| seats[i].bytes).sum::<u64>() <= total && stay.len() < most
            };
            match make_room(&seats, needed, total, most) {
                None => prop_assert!(needed > total || most == 0),
                Some(gone) => {
                    prop_assert!(fits(&gone));
                    for skipped in 0..gone.len() {
                        let mut fewer = gone.clone();
                        fewer.remove(skipped);
                        prop_assert!(!fits(&fewer));
                    }
                }
            }
        }
    }
}
