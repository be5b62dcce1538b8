//! The load: requests in a closed or an open loop, until their number or the time is up.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use tokio::task::{JoinSet, LocalSet};

use super::{
    LoadArgs,
    arrival::Poisson,
    cpu::{self, CpuTime},
    prompt::{Ask, Prompts},
    report::{Report, ServedBy, Totals},
    request::{self, Failure, Sample, Shape},
};
use crate::{
    chat::first_model,
    http::{Connection, Server},
};

const DEFAULT_REQUESTS: u64 = 100;

/// Runs the load, prints the report; exit code 1 if no request succeeded.
pub async fn run(args: LoadArgs) -> anyhow::Result<ExitCode> {
    if let Some(rate) = args.request_rate {
        ensure!(rate > 0.0 && rate.is_finite(), "--request-rate must be positive");
    }
    ensure!(args.concurrency > 0, "--concurrency must be positive");
    let server = args.server.server()?;
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(&server).await?,
    };
    let prompts = Prompts::calibrate(&server, &model, &args).await?;
    let shape = Shape { model, temperature: args.temperature, ignore_eos: args.ignore_eos };
    let run = Rc::new(Run {
        server,
        prompts,
        shape,
        idle: RefCell::default(),
        samples: RefCell::default(),
        failures: RefCell::default(),
    });
    LocalSet::new().run_until(measure(run, args)).await
}

async fn measure(run: Rc<Run>, args: LoadArgs) -> anyhow::Result<ExitCode> {
    // Numbers before 2^32 are the measured requests': warming up must not fill the prefix cache with those.
    for n in 0..args.warmup {
        run.request((1 << 32) + n, Instant::now()).await;
    }
    run.samples.borrow_mut().clear();
    let warmup_failures = std::mem::take(&mut *run.failures.borrow_mut());
    ensure!(
        warmup_failures.is_empty() || args.warmup == 0,
        "warming up failed: {}",
        warmup_failures.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
    let probe_before = cpu::probe_ms();
    let own = std::process::id();
    let cpu_before = CpuTime::of(own).unwrap_or_default();
    let watched_before: Vec<_> = args.cpu_of.iter().map(|watched| CpuTime::of(watched.pid)).collect();
    let began = Instant::now();
    let limit = Limit {
        requests: args.num_requests.unwrap_or(if args.duration.is_some() {
            u64::MAX
        } else {
            DEFAULT_REQUESTS
        }),
        until: args.duration.map(|seconds| began + Duration::from_secs_f64(seconds)),
    };
    match args.request_rate {
        Some(rate) => open_loop(&run, rate, &args, began, limit).await,
        None => closed_loop(&run, args.concurrency, limit).await,
    }
    let elapsed = began.elapsed();
    let served_by = args.cpu_of.iter().zip(watched_before).map(|(watched, before)| ServedBy {
        name: watched.name.clone(),
        cpu: before.zip(CpuTime::of(watched.pid)).map(|(before, now)| now.since(before)),
        resident_mib: cpu::resident_mib(watched.pid),
    });
    let totals = Totals {
        elapsed: elapsed.as_secs_f64(),
        client_cpu: CpuTime::of(own).unwrap_or_default().since(cpu_before),
        served_by: served_by.collect(),
        probe_ms: (probe_before, cpu::probe_ms()),
    };
    let report = Report::new(&run.samples.borrow(), &run.failures.borrow(), totals);
    print!("{}", report.table());
    if let Some(path) = &args.json {
        std::fs::write(path, format!("{:#}\n", report.json(&args, &run.shape.model)))?;
    }
    Ok(if run.samples.borrow().is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// When to begin no more requests.
#[derive(Clone, Copy)]
struct Limit {
    requests: u64,
    until: Option<Instant>,
}

impl Limit {
    fn allows(&self, number: u64, at: Instant) -> bool {
        number < self.requests && self.until.is_none_or(|until| at < until)
    }
}

struct Run {
    server: Server,
    prompts: Prompts,
    shape: Shape,
    idle: RefCell<Vec<Connection>>,
    samples: RefCell<Vec<Sample>>,
    failures: RefCell<BTreeMap<Failure, u64>>,
}

impl Run {
    /// Sends request number `n`, on a connection that is free or new.
    async fn request(&self, n: u64, began: Instant) {
        match self.attempt(n, began).await {
            Ok(sample) => self.samples.borrow_mut().push(sample),
            Err(failure) => self.fail(failure),
        }
    }

    async fn attempt(&self, n: u64, began: Instant) -> Result<Sample, Failure> {
        let ask = self.prompts.ask(n);
        let idle = self.idle.borrow_mut().pop().filter(Connection::is_usable);
        if let Some(connection) = idle {
            match self.ask_on(connection, &ask, began).await {
                // Some servers close a connection after a stream, which shows when it is used again.
                Err(Failure::Connect) => {}
                outcome => return outcome,
            }
        }
        let connection = self.server.connect().await.map_err(|_| Failure::Connect)?;
        self.ask_on(connection, &ask, began).await
    }

    async fn ask_on(&self, mut connection: Connection, ask: &Ask, began: Instant) -> Result<Sample, Failure> {
        let sample = request::send(&mut connection, &self.shape, ask, began).await?;
        if connection.is_usable() {
            self.idle.borrow_mut().push(connection);
        }
        Ok(sample)
    }

    fn fail(&self, failure: Failure) {
        *self.failures.borrow_mut().entry(failure).or_default() += 1;
    }
}

async fn closed_loop(run: &Rc<Run>, concurrency: usize, limit: Limit) {
    let next = Rc::new(RefCell::new(0u64));
    let mut workers = JoinSet::new();
    for _ in 0..concurrency {
        let (run, next) = (run.clone(), next.clone());
        workers.spawn_local(async move {
            loop {
                let (number, now) = (*next.borrow(), Instant::now());
                if !limit.allows(number, now) {
                    break;
                }
                *next.borrow_mut() += 1;
                run.request(number, now).await;
            }
        });
    }
    while workers.join_next().await.is_some() {}
}

/// Latency counts from the arrival: a request that is sent late, because the client was busy, is not flattered.
async fn open_loop(run: &Rc<Run>, rate: f64, args: &LoadArgs, began: Instant, limit: Limit) {
    let mut in_flight = JoinSet::new();
    for (number, offset) in (0u64..).zip(Poisson::new(rate, args.seed)) {
        let arrival = began + offset;
        if !limit.allows(number, arrival) {
            break;
        }
        tokio::time::sleep_until(arrival.into()).await;
        while in_flight.try_join_next().is_some() {}
        if in_flight.len() >= args.max_in_flight {
            run.fail(Failure::Shed);
            continue;
        }
        let run = run.clone();
        in_flight.spawn_local(async move { run.request(number, arrival).await });
    }
    while in_flight.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests;
