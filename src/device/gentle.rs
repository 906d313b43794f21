//! Work that gives way: on a thread that runs only where no other thread wants to.
//!
//! Decoding threads wait for one another several hundred times a token, spinning. A further thread that takes one of their cores in
//! turns with them makes a token take as long as all of that thread's turns, whatever its niceness; one of the policy
//! `SCHED_IDLE` (`sched(7)`) is pushed off a core at once. That policy can't be left again without privileges, so such work has
//! a thread of its own.

use std::io;
use std::thread;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

/// Does work on a thread of its own and waits for it; if `gentle`, on one that gives way.
pub fn apart<T: Send>(gentle: bool, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let with_policy = || {
        if gentle {
            give_way();
        }
        work()
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("loader".into());
        let worker = builder.spawn_scoped(scope, with_policy)?;
        worker
            .join()
            .map_err(|_| io::Error::other("a thread panicked"))
    })
}

fn give_way() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    if let Err(error) =
        set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle)
    {
        tracing::debug!(?error, "a thread keeps its usual priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SCHED_IDLE` of `sched.h`; the 41st field of `proc_pid_stat(5)`.
    const IDLE: &str = "5";

    fn policy() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("Linux");
        let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
        let policy = fields.split_whitespace().nth(38);
        policy.expect("a policy").to_owned()
    }

    #[test]
    fn only_gentle_work_gives_way_and_nobody_else() {
        let before = policy();
        assert_eq!(apart(true, policy).expect("a thread"), IDLE);
        assert_eq!(apart(false, policy).expect("a thread"), before);
        assert_eq!(policy(), before);
    }
}
