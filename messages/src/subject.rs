//! The subjects of the bus, all below `<namespace>.v1`, so that two wire versions can run side by side.

use crate::id::{InstanceId, Namespace, Pool, Role};

const VERSION: &str = "v1";

/// Requests to one instance.
pub fn instance_requests(ns: &Namespace, role: Role, pool: &Pool, instance: &InstanceId) -> String {
    format!("{ns}.{VERSION}.{role}.{pool}.{instance}.req")
}

/// Control messages to one instance: never behind work.
pub fn instance_control(ns: &Namespace, role: Role, pool: &Pool, instance: &InstanceId) -> String {
    format!("{ns}.{VERSION}.{role}.{pool}.{instance}.ctl")
}

/// Control messages to every instance of a pool.
pub fn pool_control(ns: &Namespace, role: Role, pool: &Pool) -> String {
    format!("{ns}.{VERSION}.{role}.{pool}.ctl")
}

/// All reply streams of one instance.
pub fn frames(ns: &Namespace, instance: &InstanceId) -> String {
    format!("{ns}.{VERSION}.inbox.{instance}.frames")
}

/// Load reports of one engine.
pub fn load(ns: &Namespace, pool: &Pool, instance: &InstanceId) -> String {
    format!("{ns}.{VERSION}.ev.load.{pool}.{instance}")
}

/// Load reports of all engines.
pub fn all_loads(ns: &Namespace) -> String {
    format!("{ns}.{VERSION}.ev.load.*.*")
}

/// Changes of one engine's prefix cache.
pub fn kv_events(ns: &Namespace, pool: &Pool, instance: &InstanceId) -> String {
    format!("{ns}.{VERSION}.ev.kv.{pool}.{instance}")
}

/// Changes of all prefix caches.
pub fn all_kv_events(ns: &Namespace) -> String {
    format!("{ns}.{VERSION}.ev.kv.*.*")
}

/// Everything of a namespace.
pub fn everything(ns: &Namespace) -> String {
    format!("{ns}.{VERSION}.>")
}

/// Name of the JetStream key-value bucket that holds the leases.
pub fn lease_bucket(ns: &Namespace) -> String {
    format!("{ns}-instances")
}

/// Key of an instance's lease within the bucket.
pub fn lease_key(role: Role, pool: &Pool, instance: &InstanceId) -> String {
    format!("lease.{role}.{pool}.{instance}")
}

/// What a subject of the bus carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Requests(Role),
    Control(Role),
    Frames(InstanceId),
    Load(Pool),
    Kv(Pool),
}

/// Reads a subject back; `None` if it is not one of these.
pub fn parse(subject: &str) -> Option<Kind> {
    let mut tokens = subject.split('.');
    let (_ns, version) = (tokens.next()?, tokens.next()?);
    if version != VERSION {
        return None;
    }
    let rest: Vec<&str> = tokens.collect();
    match rest.as_slice() {
        ["inbox", instance, "frames"] => Some(Kind::Frames(instance.parse().ok()?)),
        ["ev", "load", pool, _instance] => Some(Kind::Load(pool.parse().ok()?)),
        ["ev", "kv", pool, _instance] => Some(Kind::Kv(pool.parse().ok()?)),
        [role, _pool, _instance, "req"] => Some(Kind::Requests(role.parse().ok()?)),
        [role, _pool, "ctl"] | [role, _pool, _, "ctl"] => Some(Kind::Control(role.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_read_back() {
        let ns: Namespace = "stator".parse().unwrap();
        let pool = Pool::of_model("HuggingFaceTB/SmolLM2-135M", "9f86d081884c7d65");
        let instance = InstanceId::draw(Role::Decode);
        assert_eq!(pool.as_str(), "huggingfacetb-smollm2-135m-9f86d081");
        let cases = [
            (instance_requests(&ns, Role::Decode, &pool, &instance), Kind::Requests(Role::Decode)),
            (instance_control(&ns, Role::Decode, &pool, &instance), Kind::Control(Role::Decode)),
            (pool_control(&ns, Role::Decode, &pool), Kind::Control(Role::Decode)),
            (frames(&ns, &instance), Kind::Frames(instance.clone())),
            (load(&ns, &pool, &instance), Kind::Load(pool.clone())),
            (kv_events(&ns, &pool, &instance), Kind::Kv(pool.clone())),
        ];
        for (subject, kind) in cases {
            assert_eq!(parse(&subject), Some(kind), "{subject}");
        }
        assert_eq!(parse("stator.v2.decode.p.req"), None);
    }
}
