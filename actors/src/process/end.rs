use std::{sync::Once, thread, time::Duration};

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

/// From now on any panic ends the process: what is left after one of its threads has gone would hold a lease and do no
/// work.
pub fn end_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let thread = thread::current().name().unwrap_or("unnamed").to_owned();
            tracing::error!(thread, %panic, "a thread panicked, this process ends");
            end(PANICKED);
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
        assert!(log.contains("worker") && log.contains("out of order"), "{log}");
    }
}
