//! Whose turn it is: of the downloads beside a server, one at a time asks and receives, first come first served.
//!
//! A download that pauses before another try gives its turn to the next one; when its pause is over, it comes before those that were
//! asked for later.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The line of downloads. Clones are the same line.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    // A lock, because each download has a thread. It is held for no input or output.
    line: Mutex<Line>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    /// The number of the next download that is asked for.
    next: u64,
    /// Who has the turn.
    first: Option<u64>,
    waiting: BTreeSet<u64>,
}

impl Line {
    /// Whether this one has the turn now; it waits for it from now on, if not.
    fn ask(&mut self, number: u64) -> bool {
        if self.first != Some(number) {
            self.waiting.insert(number);
        }
        if self.first.is_none() && self.waiting.first() == Some(&number) {
            self.first = self.waiting.pop_first();
        }
        self.first == Some(number)
    }

    /// Neither waits nor has the turn.
    fn leave(&mut self, number: u64) {
        self.waiting.remove(&number);
        self.first.take_if(|first| *first == number);
    }
}

/// A download's place in the line, which it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    turns: Turns,
    number: u64,
}

impl Turns {
    /// A place at the end.
    pub(super) fn queue(&self) -> Ticket {
        let mut line = self.line();
        let number = line.next;
        line.next += 1;
        line.waiting.insert(number);
        Ticket {
            turns: self.clone(),
            number,
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // The line is whole after each statement.
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits until it has the turn; whether it got it before `stop` said yes, which is asked again after each [`Ticket::wake`].
    pub(super) fn take(&self, stop: impl Fn() -> bool) -> bool {
        let mut line = self.turns.line();
        while !stop() {
            if line.ask(self.number) {
                return true;
            }
            let moved = self.turns.0.moved.wait(line);
            line = moved.unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Lets the next one have the turn.
    pub(super) fn give_back(&self) {
        let mut line = self.turns.line();
        line.leave(self.number);
        drop(line);
        self.turns.0.moved.notify_all();
    }

    /// Lets it ask whether to stop.
    pub(super) fn wake(&self) {
        // Under the lock: it is either about to ask, or waits.
        let _line = self.turns.line();
        self.turns.0.moved.notify_all();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_pauses_lets_the_next_one_in_and_comes_before_later_ones() {
        let mut line = Line::default();
        assert!(line.ask(0) && !line.ask(1) && !line.ask(2));
        line.leave(0);
        // The third one is awake first, and is not the next.
        assert!(!line.ask(2) && line.ask(1));
        assert!(!line.ask(0) && line.ask(1));
        line.leave(1);
        assert!(!line.ask(2) && line.ask(0));
        // One that gives up while it waits holds up nobody.
        line.leave(2);
        line.leave(0);
        assert!(line.ask(3));
    }
}
