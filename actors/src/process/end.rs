use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
    thread,
    time::Duration,
};

use rustix::process::{Signal, getpid, kill_process};

/// Exit code of a process of which a thread panicked, whichever it was: Rust's own for the first thread.
pub const PANICKED: i32 = 101;

/// How long handlers of the libraries of a device may run: where it hangs, they may hang too.
const EXIT_WITHIN: Duration = Duration::from_secs(2);

/// Ends the process at once, as a crash does: nothing is flushed or given back.
pub fn end(code: i32) -> ! {
    let _ = thread::Builder::new().name("end".to_owned()).spawn(|| {
        thread::sleep(EXIT_WITHIN);
        let _ = kill_process(getpid(), Signal::KILL);
    });
    std::process::exit(code)
}

/// Threads that serve HTTP connections, on which a panic ends one connection.
const HTTP_WORKERS: &str = "actix-";

thread_local! {
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what a client's input may bring to panic, in code of others; `None` if it did. What it changed may be incomplete.
pub fn confined<T>(work: impl FnOnce() -> T) -> Option<T> {
    CONFINED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    CONFINED.set(false);
    outcome.ok()
}

/// From now on a panic ends the process, unless it is [`confined`] or ends one HTTP connection: what is left after one of
/// its threads has gone would hold a lease and do no work.
pub fn end_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let thread = thread::current().name().unwrap_or("unnamed").to_owned();
            if CONFINED.get() || thread.starts_with(HTTP_WORKERS) {
                tracing::error!(thread, %panic, "one request panicked");
            } else {
                tracing::error!(thread, %panic, "a thread panicked, this process ends");
                end(PANICKED);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "run by the test below, as a process of its own"]
    fn panic_on_another_thread() {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        end_on_panic();
        assert_eq!((confined(|| panic!("bad input")), confined(|| 7)), (None::<()>, Some(7)));
        let worker = thread::Builder::new().name("worker".to_owned()).spawn(|| panic!("out of order"));
        assert!(worker.unwrap().join().is_err());
        std::process::exit(0);
    }

    #[test]
    fn a_panic_on_any_thread_ends_the_process_with_its_own_code_and_says_why() {
        let this = std::env::current_exe().unwrap();
        let arguments =
            ["--exact", "process::end::tests::panic_on_another_thread", "--ignored", "--nocapture"];
        let output = std::process::Command::new(this).args(arguments).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(PANICKED), "{log}");
        assert!(["bad input", "worker", "out of order"].iter().all(|word| log.contains(word)), "{log}");
    }
}
