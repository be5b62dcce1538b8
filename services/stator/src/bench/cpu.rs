//! CPU time and memory of processes, and a fixed piece of work that shows how fast the machine is just now.

use std::{fs, str::FromStr, time::Instant};

use serde::Serialize;

/// Rounds of the probe: a tenth of a second or so.
const PROBE_ROUNDS: u64 = 50_000_000;

/// A process to be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    pub name: String,
    pub pid: u32,
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').ok_or_else(|| format!("'{text}' is no NAME=PID"))?;
        let pid = pid.parse().map_err(|_| format!("'{pid}' is no process id"))?;
        Ok(Self { name: name.to_owned(), pid })
    }
}

/// CPU seconds since a process began.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct CpuTime {
    pub user: f64,
    pub system: f64,
}

impl CpuTime {
    /// Of a process of this machine; `None` if there is no such process.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&stat, rustix::param::clock_ticks_per_second())
    }

    fn parse(stat: &str, ticks_per_second: u64) -> Option<Self> {
        // The second field, the name, may hold spaces and parentheses: fields are counted after it.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let mut seconds = || Some(fields.next()?.parse::<u64>().ok()? as f64 / ticks_per_second as f64);
        Some(Self { user: seconds()?, system: seconds()? })
    }

    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user - earlier.user, system: self.system - earlier.system }
    }

    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// Memory resident now, in MiB.
pub fn resident_mib(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Milliseconds that a fixed piece of integer work takes on one core now: compare figures of different runs only
/// where this is alike.
pub fn probe_ms() -> f64 {
    let began = Instant::now();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..PROBE_ROUNDS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    std::hint::black_box(state);
    began.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "42 (a (b) c) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(CpuTime::parse(stat, 100), Some(CpuTime { user: 2.5, system: 0.5 }));
        assert!(CpuTime::of(std::process::id()).is_some() && resident_mib(std::process::id()).is_some());
    }

    #[test]
    fn watched_processes_are_named() {
        assert_eq!("nats=7".parse(), Ok(Watched { name: "nats".to_owned(), pid: 7 }));
        assert!("7".parse::<Watched>().is_err() && "nats=x".parse::<Watched>().is_err());
    }
}
