//! The table that is printed, a line a row as it is finished.

use std::time::Duration;

use crate::verdict::Verdict;

const ROW: usize = 36;

pub fn head() {
    println!(
        "{:<ROW$} {:>8} {:>6} {:>6} {:>5} {:>8} {:>6} {:>7} {:>8} {:>7} {:>7} {:>7} {:>7}",
        "",
        "requests",
        "failed",
        "differ",
        "lost",
        "repeated",
        "leaked",
        "gap",
        "prefill",
        "allowed",
        "waited",
        "usual",
        "first"
    );
}

/// One row and what is wrong with it.
pub fn row(name: &str, verdict: &Verdict) {
    let allowed = verdict.bound.map_or("-".to_owned(), |bound| seconds(bound + verdict.prefill));
    let judged = match (verdict.clean(), verdict.in_time()) {
        (false, _) => "FAILED",
        (true, false) => "LATE",
        (true, true) => "ok",
    };
    println!(
        "{name:<ROW$} {:>8} {:>6} {:>6} {:>5} {:>8} {:>6} {:>7} {:>8} {:>7} {:>7} {:>7} {:>7}  {judged}",
        verdict.requests,
        verdict.failed,
        verdict.differ,
        verdict.lost,
        verdict.repeated,
        verdict.leaks.len(),
        seconds(verdict.gap),
        seconds(verdict.prefill),
        allowed,
        seconds(verdict.waited),
        seconds(verdict.usual),
        seconds(verdict.first),
    );
    for remark in verdict.remarks.iter().chain(&verdict.leaks) {
        println!("    {remark}");
    }
    if let Some(folder) = &verdict.logs {
        println!("    logs: {}", folder.display());
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
