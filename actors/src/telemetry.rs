//! Logs by `tracing`, figures by `metrics` with fixed histogram buckets.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Seconds: bus hops and steps are fractions of a millisecond, long answers take minutes.
const SECONDS: [f64; 22] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5,
    0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];
/// Seconds of CPU time, names ending in `_cpu_seconds`: single decisions take microseconds.
const CPU_SECONDS: [f64; 16] = [
    0.000_005, 0.000_01, 0.000_02, 0.000_03, 0.000_04, 0.000_05, 0.000_06, 0.000_08, 0.0001, 0.000_12,
    0.000_15, 0.0002, 0.0003, 0.0005, 0.001, 0.01,
];
/// Counts of tokens or sequences.
const COUNTS: [f64; 14] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0];

crate::choices! {
    /// How logs are written.
    pub enum LogFormat {
        Text = "text",
        Json = "json",
    }
}

/// Starts logging to standard error. `level` is a filter such as `info` or `info,router=debug`.
///
/// # Errors
/// If the filter does not parse.
pub fn start_logs(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// Starts the metrics recorder. Names end in `_seconds` or in what they count.
///
/// # Errors
/// If a recorder runs already.
pub fn start_metrics() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_cpu_seconds".to_owned()), &CPU_SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets(&COUNTS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| anyhow::anyhow!("metrics recorder: {error}"))?;
    Ok(handle)
}

/// Histograms grow until they are folded: does so every few seconds, for ever.
pub async fn keep_metrics(handle: PrometheusHandle) {
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    loop {
        tick.tick().await;
        handle.run_upkeep();
    }
}
