//! What to do about trouble: bounds and preferences, no I/O.

use std::time::{Duration, Instant};

use messages::{Fault, FaultCode, InstanceId, Role, generate::RunAt};

use super::passage::{Passage, Trouble, Unwatched};

/// Attempts at one request, the first included.
pub const ATTEMPTS: u32 = 5;
/// A request that was aboard this many engines when they died fails, if it got no further in between.
const DEATHS: usize = 3;
/// A request that got so many tokens further did not kill the engines before: it goes on where it stopped there.
const HARMLESS: u32 = 16;
/// Replays in a row that may bring no new output.
const REPLAYS: u32 = 3;
/// Pause before an attempt that follows a refusal; doubles with each.
const BACK_OFF: Duration = Duration::from_millis(50);
const BACK_OFF_AT_MOST: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq)]
pub enum Remedy {
    /// The run lives: have its frames sent again, by way of a tokenizer.
    Replay(RunAt),
    /// Send the journal as a new attempt.
    Again {
        wait: Duration,
    },
    GiveUp(Fault),
}

/// What has been done for one request so far.
#[derive(Debug)]
pub struct Record {
    /// Since it last got further.
    attempts: u32,
    /// Tokens of output from which on that is told.
    output_at_attempt: u32,
    /// Engines that died with the request aboard, since it last got further.
    graves: Vec<InstanceId>,
    /// Tokens of output when the last of them died.
    output_at_death: u32,
    /// Engines that may have it, and were not found dead yet.
    unwatched: Vec<Unwatched>,
    /// Instances to be avoided.
    avoid: Vec<InstanceId>,
    replays: u32,
    output: u32,
    /// Nobody is asked to take the request after this.
    hold_until: Instant,
    hold: Duration,
}

impl Record {
    pub fn new(now: Instant, hold: Duration) -> Self {
        Self {
            attempts: 1,
            output_at_attempt: 0,
            graves: Vec::new(),
            output_at_death: 0,
            unwatched: Vec::new(),
            avoid: Vec::new(),
            replays: 0,
            output: 0,
            hold_until: now + hold,
            hold,
        }
    }

    pub fn avoid(&self) -> &[InstanceId] {
        &self.avoid
    }

    /// Engines that died with it, perhaps of it.
    pub fn deaths(&self) -> u32 {
        u32::try_from(self.graves.len()).unwrap_or(u32::MAX)
    }

    /// These engines may have the request, which has put out so many tokens by now: they are to be asked whether they live
    /// when there is trouble with an engine, until it got further without them. Those that were offered it and did not
    /// answer are to be avoided. Returns all that are to be asked about this trouble.
    pub fn unwatched(&mut self, engines: Vec<Unwatched>, trouble: &Trouble, output: u32) -> Vec<Unwatched> {
        for engine in engines {
            if engine.role == Role::Decode {
                self.shun(&engine.instance);
            }
            self.unwatched.retain(|known| known.instance != engine.instance);
            self.unwatched.push(engine);
        }
        self.unwatched.retain(|engine| output < engine.output + HARMLESS);
        let of_engines = match trouble {
            Trouble::Dead { role, .. } => *role == Role::Decode,
            Trouble::Failed(fault) => {
                matches!(fault.code, FaultCode::EngineFault | FaultCode::NoInstance | FaultCode::Unanswered)
            }
            Trouble::Lost | Trouble::Forgotten => false,
        };
        if of_engines { self.unwatched.clone() } else { Vec::new() }
    }

    /// This engine is dead, and may have had the request before it died, which has put out so many tokens by now.
    pub fn died(&mut self, engine: &InstanceId, output: u32) {
        self.unwatched.retain(|unwatched| unwatched.instance != *engine);
        self.shun(engine);
        if output >= self.output_at_death + HARMLESS {
            self.graves.clear();
        }
        self.output_at_death = output;
        if !self.graves.contains(engine) {
            self.graves.push(engine.clone());
        }
    }

    pub fn hold_until(&self) -> Instant {
        self.hold_until
    }

    /// Decides, and counts what it decided.
    pub fn remedy(&mut self, trouble: &Trouble, passage: &Passage, now: Instant) -> Remedy {
        if passage.output_tokens() > self.output {
            self.output = passage.output_tokens();
            self.replays = 0;
            self.hold_until = now + self.hold;
        }
        // However long it has waited, whoever it goes to next may be away for a moment. Attempts bound this.
        if !is_lack(trouble) {
            self.hold_until = self.hold_until.max(now + self.hold);
        }
        if self.output >= self.output_at_attempt + HARMLESS {
            self.output_at_attempt = self.output;
            self.attempts = 1;
        }
        let engine = || passage.holders().engine.as_ref().map(|holder| holder.instance.clone());
        let grave = match trouble {
            Trouble::Dead { role: Role::Decode, instance } => Some(instance.clone()),
            Trouble::Failed(fault) if fault.code == FaultCode::EngineFault && !passage.is_mending() => {
                engine()
            }
            _ => None,
        };
        if let Some(engine) = grave {
            self.died(&engine, passage.output_tokens());
        }
        if self.graves.len() >= DEATHS {
            let text = format!("{DEATHS} engines died with this request aboard");
            return Remedy::GiveUp(Fault::new(FaultCode::EngineFault, text));
        }
        match trouble {
            Trouble::Lost => self.replay(passage),
            Trouble::Forgotten => self.again(Duration::ZERO, "the request was lost on the way"),
            Trouble::Dead { role: Role::Tokenizer, instance } => {
                self.shun(instance);
                self.replay(passage)
            }
            Trouble::Dead { role: Role::Decode, .. } => self.again(Duration::ZERO, "the engine died"),
            Trouble::Dead { instance, .. } => {
                self.shun(instance);
                self.again(Duration::ZERO, "the router that held the request died")
            }
            Trouble::Failed(fault) => self.failed(fault, passage, now),
        }
    }

    fn replay(&mut self, passage: &Passage) -> Remedy {
        match passage.run_at().filter(|_| self.replays < REPLAYS && !passage.is_mending()) {
            Some(run_at) => {
                self.replays += 1;
                Remedy::Replay(run_at)
            }
            None => self.again(Duration::ZERO, "frames were lost"),
        }
    }

    fn failed(&mut self, fault: &Fault, passage: &Passage, now: Instant) -> Remedy {
        if passage.is_mending() && fault.code != FaultCode::InvalidRequest {
            return self.again(Duration::ZERO, "the run could not be followed");
        }
        match fault.code {
            FaultCode::EngineFault => self.again(BACK_OFF, &fault.message),
            // What nobody has taken is refused rather than tried again: a retry would add to the load.
            FaultCode::Overloaded if passage.may_be_refused() => Remedy::GiveUp(fault.clone()),
            // It had its turn, and the engine had less room than the router knew: routers let it wait in front.
            FaultCode::Overloaded if now < self.hold_until => Remedy::Again { wait: BACK_OFF },
            FaultCode::Overloaded => self.again(BACK_OFF, &fault.message),
            FaultCode::NoInstance | FaultCode::Unanswered if now < self.hold_until => {
                Remedy::Again { wait: pause(fault) }
            }
            FaultCode::Unanswered if self.attempts < ATTEMPTS => self.again(pause(fault), &fault.message),
            FaultCode::Draining | FaultCode::Cancelled => {
                let doubled = BACK_OFF * 2u32.pow(self.attempts - 1);
                self.again(doubled.min(BACK_OFF_AT_MOST), &fault.message)
            }
            _ => Remedy::GiveUp(fault.clone()),
        }
    }

    fn again(&mut self, wait: Duration, why: &str) -> Remedy {
        if self.attempts >= ATTEMPTS {
            let text = format!("the request failed {ATTEMPTS} times, at last because {why}");
            return Remedy::GiveUp(Fault::new(FaultCode::EngineFault, text));
        }
        self.attempts += 1;
        self.replays = 0;
        Remedy::Again { wait }
    }

    fn shun(&mut self, instance: &InstanceId) {
        if !self.avoid.contains(instance) {
            self.avoid.push(instance.clone());
        }
    }
}

/// Nobody who would take it is there, or has room.
fn is_lack(trouble: &Trouble) -> bool {
    let lacks = [FaultCode::NoInstance, FaultCode::Unanswered, FaultCode::Overloaded];
    matches!(trouble, Trouble::Failed(fault) if lacks.contains(&fault.code))
}

/// How long to wait after a refusal.
fn pause(fault: &Fault) -> Duration {
    fault.retry_after_ms.map_or(BACK_OFF_AT_MOST, |ms| Duration::from_millis(ms.into())).min(BACK_OFF_AT_MOST)
}

/// The name of a trouble in metrics and logs.
pub fn cause(trouble: &Trouble) -> &'static str {
    match trouble {
        Trouble::Lost => "frames_lost",
        Trouble::Forgotten => "forgotten",
        Trouble::Dead { role: Role::Tokenizer, .. } => "tokenizer_died",
        Trouble::Dead { role: Role::Router, .. } => "router_died",
        Trouble::Dead { .. } => "engine_died",
        Trouble::Failed(fault) => match fault.code {
            FaultCode::Overloaded => "overloaded",
            FaultCode::Draining => "draining",
            FaultCode::NoInstance => "no_instance",
            FaultCode::Unanswered => "unanswered",
            FaultCode::EngineFault => "engine_fault",
            FaultCode::Cancelled => "cancelled",
            _ => "failed",
        },
    }
}

#[cfg(test)]
mod tests;
