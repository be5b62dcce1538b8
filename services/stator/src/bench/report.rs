//! What a run showed, as a table and as JSON.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    LoadArgs,
    cpu::CpuTime,
    request::{Failure, Sample},
    stats::Summary,
};

const MILLIS: f64 = 1e3;

/// What was measured beside the requests.
#[derive(Debug, Clone, Serialize)]
pub struct Totals {
    pub elapsed: f64,
    pub client_cpu: CpuTime,
    pub served_by: Vec<ServedBy>,
    /// Before and after.
    pub probe_ms: (f64, f64),
}

/// A process that was watched; figures are missing if it went away.
#[derive(Debug, Clone, Serialize)]
pub struct ServedBy {
    pub name: String,
    pub cpu: Option<CpuTime>,
    pub resident_mib: Option<f64>,
}

pub struct Report {
    /// Distributions in milliseconds.
    distributions: Vec<(&'static str, Option<Summary>)>,
    requests: usize,
    errors: BTreeMap<String, u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    totals: Totals,
}

impl Report {
    pub fn new(samples: &[Sample], failures: &BTreeMap<Failure, u64>, totals: Totals) -> Self {
        let all = |get: &dyn Fn(&Sample) -> Vec<f64>| {
            Summary::of(samples.iter().flat_map(get).map(|seconds| seconds * MILLIS).collect())
        };
        let distributions = vec![
            ("ttft", all(&|sample| sample.ttft.into_iter().collect())),
            ("itl", all(&|sample| sample.gaps.clone())),
            ("token_transit", all(&|sample| sample.transits.clone())),
            ("end_to_end", all(&|sample| vec![sample.end_to_end])),
        ];
        Self {
            distributions,
            requests: samples.len(),
            errors: failures.iter().map(|(failure, count)| (failure.to_string(), *count)).collect(),
            prompt_tokens: samples.iter().map(|sample| sample.prompt_tokens).sum(),
            cached_tokens: samples.iter().map(|sample| sample.cached_tokens).sum(),
            output_tokens: samples.iter().map(|sample| sample.output_tokens).sum(),
            totals,
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.totals.elapsed.max(f64::MIN_POSITIVE)
    }

    /// CPU seconds of all watched processes for a million output tokens.
    fn cpu_per_million_tokens(&self) -> Option<f64> {
        let seconds: f64 =
            self.totals.served_by.iter().filter_map(|process| process.cpu).map(CpuTime::total).sum();
        let known = !self.totals.served_by.is_empty() && self.output_tokens > 0;
        known.then(|| seconds / self.output_tokens as f64 * 1e6)
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut text);
        text
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:16}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "ms", "p50", "p90", "p99", "mean", "max", "samples"
        )?;
        for (name, summary) in &self.distributions {
            match summary {
                Some(s) => writeln!(
                    out,
                    "{name:16}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>10}",
                    s.p50, s.p90, s.p99, s.mean, s.max, s.count
                )?,
                None => writeln!(out, "{name:16}{:>10}", "-")?,
            }
        }
        let errors: u64 = self.errors.values().sum();
        writeln!(
            out,
            "\n{} requests in {:.2} s: {:.2} request/s, {:.1} output token/s, {:.1} input token/s; {errors} errors",
            self.requests,
            self.totals.elapsed,
            self.per_second(self.requests as u64),
            self.per_second(self.output_tokens),
            self.per_second(self.prompt_tokens),
        )?;
        writeln!(
            out,
            "tokens: {} input ({} from a cache), {} output",
            self.prompt_tokens, self.cached_tokens, self.output_tokens
        )?;
        for (kind, count) in &self.errors {
            writeln!(out, "error: {count} × {kind}")?;
        }
        for process in &self.totals.served_by {
            match process.cpu {
                Some(cpu) => writeln!(
                    out,
                    "{}: {:.2} s user, {:.2} s system, {:.0} MiB resident",
                    process.name,
                    cpu.user,
                    cpu.system,
                    process.resident_mib.unwrap_or_default()
                )?,
                None => writeln!(out, "{}: gone", process.name)?,
            }
        }
        if let Some(seconds) = self.cpu_per_million_tokens() {
            writeln!(out, "all of these: {seconds:.1} CPU seconds a million output tokens")?;
        }
        writeln!(
            out,
            "this client: {:.2} s user, {:.2} s system; CPU probe {:.0} ms before, {:.0} ms after",
            self.totals.client_cpu.user,
            self.totals.client_cpu.system,
            self.totals.probe_ms.0,
            self.totals.probe_ms.1
        )
    }

    /// The same for programs, with what was asked for.
    pub fn json(&self, args: &LoadArgs, model: &str) -> Value {
        let distributions: serde_json::Map<String, Value> =
            self.distributions.iter().map(|(name, summary)| (format!("{name}_ms"), json!(summary))).collect();
        json!({
            "load": {
                "model": model,
                "concurrency": args.request_rate.is_none().then_some(args.concurrency),
                "request_rate": args.request_rate,
                "isl": [args.isl.0.start(), args.isl.0.end()],
                "osl": [args.osl.0.start(), args.osl.0.end()],
                "ignore_eos": args.ignore_eos,
                "prefix_groups": args.prefix_groups,
                "prefix_tokens": args.prefix_tokens,
                "temperature": args.temperature,
                "seed": args.seed,
            },
            "requests": self.requests,
            "errors": self.errors,
            "elapsed_s": self.totals.elapsed,
            "requests_per_s": self.per_second(self.requests as u64),
            "output_tokens_per_s": self.per_second(self.output_tokens),
            "input_tokens_per_s": self.per_second(self.prompt_tokens),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "latency": distributions,
            "cpu_s_per_million_output_tokens": self.cpu_per_million_tokens(),
            "served_by": self.totals.served_by,
            "client_cpu_s": self.totals.client_cpu,
            "cpu_probe_ms": self.totals.probe_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ttft: f64, output_tokens: u64) -> Sample {
        Sample { ttft: Some(ttft), end_to_end: 1.0, output_tokens, ..Sample::default() }
    }

    #[test]
    fn figures_come_from_samples_and_time() {
        let totals = Totals {
            elapsed: 2.0,
            client_cpu: CpuTime::default(),
            served_by: vec![ServedBy {
                name: "nats".to_owned(),
                cpu: Some(CpuTime { user: 0.5, system: 0.25 }),
                resident_mib: None,
            }],
            probe_ms: (1.0, 1.0),
        };
        let failures = BTreeMap::from([(Failure::Status(503), 2)]);
        let report = Report::new(&[sample(0.010, 100), sample(0.030, 300)], &failures, totals);
        assert_eq!(report.per_second(report.output_tokens), 200.0);
        assert_eq!(report.distributions[0].1.map(|summary| summary.max), Some(30.0));
        assert_eq!(report.cpu_per_million_tokens(), Some(0.75 / 400.0 * 1e6));
        let table = report.table();
        assert!(table.contains("2 × status 503") && table.contains("1.00 request/s"), "{table}");
        assert!(table.contains("token_transit"), "shown even when unknown");
    }
}
