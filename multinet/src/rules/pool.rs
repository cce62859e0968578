//! Rules of one `SpiderIPPool`, and its checked form.
//!
//! Upstream's rules are kept (subnet canonical, addresses inside it, gateway not handed out, no
//! default route among the routes …); Bowline's additions are annotations with defaults.

use std::net::IpAddr;

use ipnet::IpNet;

use super::selector::check_selector;
use super::{AUTO_POOL_AFFINITY, Problem, is_auto_pool};
use crate::range::{AddressSet, Family, RangeError};
use crate::types::meta::ObjectMeta;
use crate::types::pool::{IPPoolSpec, ReservedIPSpec, SpiderIPPool, SpiderReservedIP, annotation};

/// A pool that passed its rules: what all decisions work on.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Metadata: labels, annotations, age.
    pub meta: ObjectMeta,
    /// IPv4 or IPv6.
    pub family: Family,
    /// The prefix that pods get.
    pub subnet: IpNet,
    /// What may be handed out: `ips` without `excludeIPs` and without the gateway.
    pub addresses: AddressSet,
    /// Default route.
    pub gateway: Option<IpAddr>,
    /// Further routes: destination and next hop.
    pub routes: Vec<(IpNet, IpAddr)>,
    /// Which free address is taken.
    pub strategy: Strategy,
    /// How long a released address rests.
    pub reuse_delay: ReuseDelay,
    /// Whether nodes hold blocks of it.
    pub binding: Binding,
    /// Whether what leaves `default` gets the node's source address.
    pub masquerade: bool,
    /// What a pod's link is asked before the pod starts.
    pub detection: Detection,
    /// Affinities, as written.
    pub spec: IPPoolSpec,
}

/// Which free address is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The lowest (upstream's behaviour).
    #[default]
    Lowest,
    /// Any, so that nobody can foretell it.
    Random,
    /// The one that nobody has had for the longest time.
    LeastRecentlyReleased,
}

/// How long a released address rests before it is somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReuseDelay {
    /// The time.
    pub ms: u64,
    /// An address that still rests is never taken. Otherwise it is taken, longest rest first, when
    /// the pool has no other: a full pool whose pods are replaced must not stand still.
    pub strict: bool,
}

impl Default for ReuseDelay {
    fn default() -> Self {
        ReuseDelay { ms: 30_000, strict: false }
    }
}

/// Whether nodes hold blocks of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Binding {
    /// Where the pool is large against the number of nodes.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never: every address has its own route.
    Never,
}

/// What a pod's link is asked before the pod starts. Nothing, unless the pool wants it: it takes time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Detection {
    /// Whether somebody else has the address.
    pub conflict: bool,
    /// Whether the gateway is there.
    pub gateway: bool,
}

impl Pool {
    /// Checks a pool; `None` where a problem is an error.
    pub fn check(object: &SpiderIPPool, problems: &mut Vec<Problem>) -> Option<Pool> {
        let mut found = Vec::new();
        let pool = check(object, &mut found);
        let usable = !found.iter().any(Problem::is_error);
        problems.append(&mut found);
        pool.filter(|_| usable)
    }

    /// Whether it is one of the cluster's default pools.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.spec.is_default == Some(true)
    }

    /// Whether nothing new is taken from it.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.spec.disable == Some(true)
    }
}

/// Everything that is wrong with a pool by itself.
#[must_use]
pub fn validate_pool(object: &SpiderIPPool) -> Vec<Problem> {
    let mut problems = Vec::new();
    Pool::check(object, &mut problems);
    problems
}

fn check(object: &SpiderIPPool, problems: &mut Vec<Problem>) -> Option<Pool> {
    let spec = &object.spec;
    check_affinities(spec, problems);
    if is_auto_pool(object) {
        check_application(spec, problems);
    }
    let subnet = check_subnet(&spec.subnet, problems)?;
    let family = Family::of_net(&subnet);
    check_version(spec.ip_version, family, problems);
    let ips = check_ranges("spec.ips", &spec.ips, &subnet, problems);
    let excluded = check_ranges("spec.excludeIPs", &spec.exclude_ips, &subnet, problems);
    let mut addresses = ips.minus(&excluded);
    let gateway = spec.gateway.as_deref().filter(|g| !g.is_empty());
    let gateway = gateway.and_then(|g| check_gateway(g, &subnet, problems));
    if let Some(gateway) = gateway {
        if addresses.contains(gateway) {
            problems.push(Problem::error(
                "spec.gateway",
                gateway,
                "is in spec.ips, so that a pod could get it; put it into spec.excludeIPs too",
            ));
        }
        addresses = addresses.minus(&AddressSet::from_addresses(family, [gateway]));
    }
    let (strategy, reuse_delay, binding) = check_annotations(&object.metadata, problems);
    Some(Pool {
        name: object.metadata.name.clone(),
        meta: object.metadata.clone(),
        family,
        subnet,
        addresses,
        gateway,
        routes: check_routes(spec, &subnet, problems),
        strategy,
        reuse_delay,
        binding,
        masquerade: check_flag(&object.metadata, annotation::MASQUERADE, true, problems),
        detection: Detection {
            conflict: check_flag(&object.metadata, annotation::DETECT_CONFLICT, false, problems),
            gateway: check_flag(&object.metadata, annotation::DETECT_GATEWAY, false, problems),
        },
        spec: spec.clone(),
    })
}

fn check_subnet(text: &str, problems: &mut Vec<Problem>) -> Option<IpNet> {
    let Ok(subnet) = text.parse::<IpNet>() else {
        let message = "is not a prefix; write it like 10.0.0.0/24 or fd00:1::/64";
        problems.push(Problem::error("spec.subnet", text, message));
        return None;
    };
    if subnet.trunc().to_string() != text {
        problems.push(Problem::error(
            "spec.subnet",
            text,
            format!("is not in its plain form; write {}", subnet.trunc()),
        ));
        return None;
    }
    Some(subnet)
}

fn check_version(version: Option<i64>, family: Family, problems: &mut Vec<Problem>) {
    if let Some(version) = version.filter(|v| *v != family.number()) {
        problems.push(Problem::error(
            "spec.ipVersion",
            version,
            format!("spec.subnet is {family}; write {} or leave it out", family.number()),
        ));
    }
}

fn check_ranges(
    field: &str,
    texts: &[String],
    subnet: &IpNet,
    problems: &mut Vec<Problem>,
) -> AddressSet {
    let family = Family::of_net(subnet);
    let set = match AddressSet::parse(family, texts) {
        Ok(set) => set,
        Err((text, error)) => {
            problems.push(Problem::error(field, text, error.to_string()));
            return AddressSet::empty(family);
        }
    };
    let outside = set.minus(&AddressSet::of_net(subnet));
    if !outside.is_empty() {
        let message =
            format!("is outside spec.subnet {subnet}; remove it or choose a wider subnet");
        problems.push(Problem::error(field, outside, message));
    }
    set
}

fn check_gateway(text: &str, subnet: &IpNet, problems: &mut Vec<Problem>) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(gateway) if subnet.contains(&gateway) => Some(gateway),
        Ok(_) => {
            let message = format!("is outside spec.subnet {subnet}; choose an address of it");
            problems.push(Problem::error("spec.gateway", text, message));
            None
        }
        Err(_) => {
            problems.push(Problem::error("spec.gateway", text, "is not an address"));
            None
        }
    }
}

fn check_routes(
    spec: &IPPoolSpec,
    subnet: &IpNet,
    problems: &mut Vec<Problem>,
) -> Vec<(IpNet, IpAddr)> {
    let mut routes: Vec<(IpNet, IpAddr)> = Vec::new();
    for (i, route) in spec.routes.iter().flatten().enumerate() {
        let (at_dst, at_gw) = (format!("spec.routes[{i}].dst"), format!("spec.routes[{i}].gw"));
        let dst = match route.dst.parse::<IpNet>() {
            Ok(dst) if Family::of_net(&dst) != Family::of_net(subnet) => {
                let message = format!("is not {}, as spec.subnet is", Family::of_net(subnet));
                problems.push(Problem::error(at_dst, &route.dst, message));
                continue;
            }
            Ok(dst) if dst.prefix_len() == 0 => {
                let message = "is the default route; use spec.gateway for it";
                problems.push(Problem::error(at_dst, &route.dst, message));
                continue;
            }
            Ok(dst) => dst.trunc(),
            Err(_) => {
                let message = "is not a prefix; write it like 10.1.0.0/16";
                problems.push(Problem::error(at_dst, &route.dst, message));
                continue;
            }
        };
        if routes.iter().any(|(other, _)| *other == dst) {
            let message = "is routed twice; remove one of the routes";
            problems.push(Problem::error(at_dst, &route.dst, message));
        }
        match route.gw.parse::<IpAddr>() {
            Ok(gw) if subnet.contains(&gw) => routes.push((dst, gw)),
            _ => {
                let message = format!("is not an address of spec.subnet {subnet}");
                problems.push(Problem::error(at_gw, &route.gw, message));
            }
        }
    }
    routes
}

fn check_affinities(spec: &IPPoolSpec, problems: &mut Vec<Problem>) {
    let affinities = [
        ("spec.podAffinity", &spec.pod_affinity),
        ("spec.namespaceAffinity", &spec.namespace_affinity),
        ("spec.nodeAffinity", &spec.node_affinity),
    ];
    for (field, selector) in affinities {
        if let Some(selector) = selector {
            check_selector(field, selector, problems);
        }
    }
    if spec.pod_affinity.as_ref().is_some_and(crate::types::meta::LabelSelector::is_empty) {
        let message = "is empty; name a label, or leave the affinity out to serve every pod";
        problems.push(Problem::error("spec.podAffinity", "", message));
    }
}

/// The affinity of an automatic pool is no choice of pods by their labels: it names an application.
fn check_application(spec: &IPPoolSpec, problems: &mut Vec<Problem>) {
    let Some(affinity) = &spec.pod_affinity else { return };
    if !affinity.match_expressions.is_empty() {
        let message = "cannot be set on an automatic pool, which serves one application; remove it";
        let keys: Vec<&str> = affinity.match_expressions.iter().map(|e| e.key.as_str()).collect();
        let field = "spec.podAffinity.matchExpressions";
        problems.push(Problem::error(field, keys.join(", "), message));
    }
    let allowed = |key: &&String| AUTO_POOL_AFFINITY.contains(&key.as_str());
    for key in affinity.match_labels.keys().filter(|k| !allowed(k)) {
        let message = format!(
            "does not name the application of this automatic pool; remove it, allowed are {}",
            AUTO_POOL_AFFINITY.join(", ")
        );
        problems.push(Problem::error("spec.podAffinity.matchLabels", key, message));
    }
}

fn check_annotations(
    meta: &ObjectMeta,
    problems: &mut Vec<Problem>,
) -> (Strategy, ReuseDelay, Binding) {
    let mut choose = |key: &str, message: &str, known: &[&str]| -> usize {
        let Some(value) = meta.annotations.get(key) else { return 0 };
        known.iter().position(|k| k == value).unwrap_or_else(|| {
            problems.push(Problem::error(format!("metadata.annotations[{key}]"), value, message));
            0
        })
    };
    let strategies = [Strategy::Lowest, Strategy::Random, Strategy::LeastRecentlyReleased];
    let strategy = strategies[choose(
        annotation::STRATEGY,
        "must be lowest, random or least-recently-released",
        &["lowest", "random", "least-recently-released"],
    )];
    let bindings = [Binding::Auto, Binding::Always, Binding::Never];
    let binding = bindings[choose(
        annotation::BLOCK_BINDING,
        "must be auto, always or never",
        &["auto", "always", "never"],
    )];
    let delay = meta.annotations.get(annotation::REUSE_DELAY).map(|text| {
        parse_duration_ms(text).unwrap_or_else(|| {
            problems.push(Problem::error(
                format!("metadata.annotations[{}]", annotation::REUSE_DELAY),
                text,
                "is not a time; write it like 500ms, 30s, 5m or 1h",
            ));
            0
        })
    });
    let delay = delay.map(|ms| ReuseDelay { ms, strict: true }).unwrap_or_default();
    (strategy, delay, binding)
}

fn check_flag(meta: &ObjectMeta, key: &str, default: bool, problems: &mut Vec<Problem>) -> bool {
    match meta.annotations.get(key).map(String::as_str) {
        None => default,
        Some("true") => true,
        Some("false") => false,
        Some(other) => {
            let field = format!("metadata.annotations[{key}]");
            problems.push(Problem::error(field, other, "must be \"true\" or \"false\""));
            default
        }
    }
}

/// Reads `500ms`, `30s`, `5m`, `1h` or `0`.
#[must_use]
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    count.parse::<u64>().ok()?.checked_mul(unit_ms)
}

/// What a change of a pool must not change. `held` are the pool's addresses in somebody's hands, with
/// their holder.
#[must_use]
pub fn validate_pool_update(
    old: &SpiderIPPool,
    new: &SpiderIPPool,
    held: &[(IpAddr, String)],
) -> Vec<Problem> {
    // What is on its way out only loses its finalizers: a change could be lost with it at any time.
    if new.metadata.is_terminating() && old.spec != new.spec {
        let message = "cannot be changed while the object is being deleted; \
                       wait until it is gone and make a new one";
        return vec![Problem::error("spec", "", message)];
    }
    let mut problems = validate_pool(new);
    if old.spec.subnet != new.spec.subnet {
        let message = format!("cannot be changed from {}; make a new one", old.spec.subnet);
        problems.push(Problem::error("spec.subnet", &new.spec.subnet, message));
    }
    if let (Some(had), Some(now)) = (old.spec.ip_version, new.spec.ip_version)
        && had != now
    {
        let message = format!("cannot be changed from {had}; make a new one");
        problems.push(Problem::error("spec.ipVersion", now, message));
    }
    let network = |p: &SpiderIPPool| p.metadata.labels.get(annotation::NETWORK).cloned();
    if !held.is_empty() && network(old) != network(new) {
        problems.push(Problem::error(
            format!("metadata.labels[{}]", annotation::NETWORK),
            network(new).unwrap_or_default(),
            format!("cannot be changed while {} addresses are in use", held.len()),
        ));
    }
    if let Some(pool) = Pool::check(new, &mut Vec::new()) {
        for (address, holder) in held.iter().filter(|(a, _)| !pool.addresses.contains(*a)) {
            let message = format!("is held by {holder} and cannot be taken out of the pool");
            problems.push(Problem::error("spec.ips", address, message));
        }
    }
    problems
}

/// The reserved addresses, and everything that is wrong.
pub fn check_reserved(
    object: &SpiderReservedIP,
    problems: &mut Vec<Problem>,
) -> Option<AddressSet> {
    let ReservedIPSpec { ip_version, ips } = &object.spec;
    let family = match ip_version {
        Some(4) => Family::V4,
        Some(6) => Family::V6,
        Some(other) => {
            problems.push(Problem::error("spec.ipVersion", other, "must be 4 or 6"));
            return None;
        }
        None => {
            let first = ips.first().map_or("", String::as_str);
            if first.contains(':') { Family::V6 } else { Family::V4 }
        }
    };
    match AddressSet::parse(family, ips) {
        Ok(set) => Some(set),
        Err((text, error)) => {
            let message = match error {
                RangeError::Family(_) => format!("is not {family}; make one object per family"),
                other => other.to_string(),
            };
            problems.push(Problem::error("spec.ips", text, message));
            None
        }
    }
}

/// Everything that is wrong with a reservation.
#[must_use]
pub fn validate_reserved(object: &SpiderReservedIP) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_reserved(object, &mut problems);
    problems
}

/// What a change of a reservation must not change.
#[must_use]
pub fn validate_reserved_update(old: &SpiderReservedIP, new: &SpiderReservedIP) -> Vec<Problem> {
    let mut problems = validate_reserved(new);
    if let (Some(had), now) = (old.spec.ip_version, new.spec.ip_version)
        && now != Some(had)
    {
        let message = format!("cannot be changed from {had}; make a new SpiderReservedIP");
        let now = now.map_or(String::new(), |v| v.to_string());
        problems.push(Problem::error("spec.ipVersion", now, message));
    }
    problems
}
