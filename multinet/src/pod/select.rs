//! Which pools an interface may be served from, in which order, and why not from the others.
//!
//! Sources, the first that names a pool of the interface's Network wins whole (no merging):
//! 1. the automatic pools of its application (`subnets`, `subnet`),
//! 2. the pod's `ippools`, 3. the pod's `ippool`, 4. its namespace, 5. the CNI configuration,
//! 6. pools with `spec.default: true`, 7. the Network's `spec.ipPools`.
//!
//! A name that belongs to another Network is not meant for this interface and is passed over with a
//! reason; so is one that does not exist, as long as the source names a pool of the interface's Network. Filters follow upstream's order. Candidates with more
//! specific affinities come first; between equals the written order holds.

use std::net::IpAddr;

use super::spider::{SUBNET, SUBNETS, ippool, ippools_for, namespace_pools};
use super::subnets::parse_subnets;
use crate::auto::{Application, pool_for};
use crate::ipam::{Candidate, Rejection, Rejections};
use crate::range::Family;
use crate::rules::{AUTO_POOL_LABEL, Checked, Home, Pool, Problem};
use crate::types::meta::{Labels, ObjectMeta};
use crate::types::network::PoolLists;

/// Label that Kubernetes puts on every namespace.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What the choice depends on.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a ObjectMeta,
    /// Its namespace, where it was found.
    pub namespace: Option<&'a ObjectMeta>,
    /// The node's name.
    pub node: &'a str,
    /// The node's labels.
    pub node_labels: &'a Labels,
    /// The interface.
    pub interface: &'a str,
    /// Its place among the pod's interfaces, for `ippools` without names.
    pub index: Option<usize>,
    /// Where it belongs.
    pub home: Home,
    /// Pools that the CNI configuration names.
    pub configured: PoolLists,
    /// Namespace and name of the NetworkAttachmentDefinition, where the call came from one.
    pub attachment_definition: Option<(&'a str, &'a str)>,
    /// The outermost controller of the pod, where it was looked up and there is one.
    pub application: Option<&'a Application>,
    /// Where only pools around the physical device's addresses may serve (`match_master_subnet`): these.
    pub master_addresses: Option<&'a [IpAddr]>,
}

/// Pools in the order in which they are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// Where the names came from, for a person.
    pub source: &'static str,
    /// Candidates of each family; each family must be served.
    pub families: Vec<(Family, Vec<Candidate>)>,
    /// Pools that were named and may not serve.
    pub rejected: Vec<Rejection>,
    /// No default route.
    pub clean_gateway: bool,
}

/// Chooses the pools of an interface.
///
/// # Errors
/// An annotation that cannot be read, or that no pool is eligible with the reason for each.
pub fn select(checked: &Checked, context: &Context<'_>) -> Result<Selection, Problem> {
    let mut elsewhere = Vec::new();
    let mut first_source = None;
    for source in sources(checked, context)? {
        let mut rejected = Vec::new();
        let mut families = Vec::new();
        for (family, names) in [(Family::V4, &source.pools.ipv4), (Family::V6, &source.pools.ipv6)]
        {
            if !names.is_empty() {
                let named = resolve(checked, context, family, names, &mut rejected);
                families.push((family, named));
            }
        }
        // A source whose every pool is another Network's says nothing about this interface. One that names
        // a pool of which nothing is known may: another source would serve what nobody asked for.
        let names_ours = families.iter().any(|(_, named)| !named.is_empty());
        if !names_ours {
            if source.names().any(|name| is_unknown(checked, name)) {
                elsewhere.append(&mut rejected);
                return Err(none_left(context, source.name, &elsewhere));
            }
            first_source = first_source.or((!families.is_empty()).then_some(source.name));
            elsewhere.append(&mut rejected);
            continue;
        }
        elsewhere.append(&mut rejected);
        return eligible(checked, context, &source, families, elsewhere);
    }
    Err(none_left(context, first_source.unwrap_or("no source"), &elsewhere))
}

struct Source {
    name: &'static str,
    pools: PoolLists,
    clean_gateway: bool,
}

impl Source {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.pools.ipv4.iter().chain(&self.pools.ipv6).map(String::as_str)
    }
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

/// A pool that does not exist, or is refused, so that it is nobody's.
fn is_unknown(checked: &Checked, name: &str) -> bool {
    !is_pattern(name) && !checked.pools.contains_key(name)
}

fn sources(checked: &Checked, context: &Context<'_>) -> Result<Vec<Source>, Problem> {
    let annotations = &context.pod.annotations;
    let mut found = Vec::with_capacity(6);
    let mut add = |name, pools: PoolLists, clean_gateway| {
        if !pools.is_empty() {
            found.push(Source { name, pools, clean_gateway });
        }
    };
    add("the application's automatic pools", automatic(checked, context)?, false);
    if let Some(choice) = ippools_for(annotations, context.interface, context.index)? {
        add("the pod's ippools", choice.pools(), choice.cleangateway);
    }
    if let Some(choice) = ippool(annotations)? {
        add("the pod's ippool", choice.pools(), choice.cleangateway);
    }
    if let Some(namespace) = context.namespace {
        add("the namespace's pools", namespace_pools(&namespace.annotations)?, false);
    }
    add("the CNI configuration", context.configured.clone(), false);
    add("the default pools", defaults(checked, context.home.domain()), false);
    if let Some(network) = checked.networks.get(context.home.domain()) {
        add("the Network's spec.ipPools", network.spec.ip_pools.clone(), false);
    }
    Ok(found)
}

/// The pools that the controller made for this interface of the pod's application.
fn automatic(checked: &Checked, context: &Context<'_>) -> Result<PoolLists, Problem> {
    let annotations = &context.pod.annotations;
    let mut lists = PoolLists::default();
    let choices = parse_subnets(annotations)?;
    if choices.is_empty() {
        return Ok(lists);
    }
    let key = if annotations.contains_key(SUBNETS) { SUBNETS } else { SUBNET };
    let Some(app) = context.application else {
        let message = "makes a pool for an application, and no controller of this pod is known; \
                       name pools by ipam.spidernet.io/ippool";
        return Err(Problem::error(key, &annotations[key], message));
    };
    for choice in choices.iter().filter(|c| c.interface == context.interface) {
        for (family, subnet) in choice.families() {
            let Some(pool) = pool_for(checked, &context.home, app, &choice.interface, family)
            else {
                let message = format!(
                    "has no {family} pool for {} of {} {} yet; the controller makes it, \
                     see the events there",
                    choice.interface, app.kind, app.name
                );
                return Err(Problem::error(key, subnet, message));
            };
            let list = if family == Family::V4 { &mut lists.ipv4 } else { &mut lists.ipv6 };
            list.push(pool.name.clone());
        }
    }
    Ok(lists)
}

fn defaults(checked: &Checked, domain: &str) -> PoolLists {
    let names = |family| {
        let pools = checked.pools_of(domain).filter(|p| p.is_default() && p.family == family);
        pools.map(|p| p.name.clone()).collect()
    };
    PoolLists { ipv4: names(Family::V4), ipv6: names(Family::V6) }
}

/// The pools that names and wildcards stand for, in order, each once.
fn resolve<'a>(
    checked: &'a Checked,
    context: &Context<'_>,
    family: Family,
    names: &[String],
    rejected: &mut Vec<Rejection>,
) -> Vec<&'a Pool> {
    let mut found: Vec<&Pool> = Vec::with_capacity(names.len());
    let mut reject = |pool: &str, why: String| rejected.push(Rejection { pool: pool.into(), why });
    for name in names {
        if is_pattern(name) {
            let all = checked.pools_of(context.home.domain()).filter(|p| p.family == family);
            let matching = all.filter(|p| glob(name.as_bytes(), p.name.as_bytes()));
            let before = found.len();
            for pool in matching {
                if !found.iter().any(|f| f.name == pool.name) {
                    found.push(pool);
                }
            }
            if found.len() == before {
                reject(name, format!("matches no further {family} pool of {}", context.home));
            }
            continue;
        }
        match checked.pools.get(name) {
            Some((home, pool)) if *home == context.home => {
                if !found.iter().any(|f| f.name == pool.name) {
                    found.push(pool);
                }
            }
            Some((home, _)) => reject(name, format!("belongs to {home}, not to {}", context.home)),
            None => {
                let mut problems = checked.problems_of("SpiderIPPool", name);
                let why = problems.find(|p| p.is_error());
                reject(name, why.map_or("does not exist".into(), |p| format!("is refused: {p}")));
            }
        }
    }
    found
}

fn eligible(
    checked: &Checked,
    context: &Context<'_>,
    source: &Source,
    families: Vec<(Family, Vec<&Pool>)>,
    mut rejected: Vec<Rejection>,
) -> Result<Selection, Problem> {
    let mut served = Vec::with_capacity(families.len());
    for (family, named) in families {
        let mut pools: Vec<&Pool> = Vec::with_capacity(named.len());
        for pool in named {
            match refuse(pool, family, context) {
                None => pools.push(pool),
                Some(why) => rejected.push(Rejection { pool: pool.name.clone(), why }),
            }
        }
        if pools.is_empty() {
            return Err(none_left(context, source.name, &rejected));
        }
        pools.sort_by_key(|p| std::cmp::Reverse(specificity(p)));
        let candidates = pools.iter().map(|p| Candidate::new(checked, &context.home, p)).collect();
        served.push((family, candidates));
    }
    Ok(Selection {
        source: source.name,
        families: served,
        rejected,
        clean_gateway: source.clean_gateway,
    })
}

/// Upstream's filters in upstream's order: the first that fails is the reason.
fn refuse(pool: &Pool, family: Family, context: &Context<'_>) -> Option<String> {
    let spec = &pool.spec;
    if pool.meta.is_terminating() {
        return Some("is being deleted".into());
    }
    if pool.is_disabled() {
        return Some("is disabled (spec.disable)".into());
    }
    if pool.family != family {
        return Some(format!("is {}, wanted is {family}", pool.family));
    }
    if !spec.node_name.is_empty() {
        if !spec.node_name.iter().any(|n| n == context.node) {
            return Some(format!("serves nodes {} only", spec.node_name.join(", ")));
        }
    } else if spec.node_affinity.as_ref().is_some_and(|s| !s.matches(context.node_labels)) {
        return Some(format!("does not serve node {} (spec.nodeAffinity)", context.node));
    }
    let namespace = context.pod.namespace.as_deref().unwrap_or("");
    if !spec.namespace_name.is_empty() {
        if !spec.namespace_name.iter().any(|n| n == namespace) {
            return Some(format!("serves namespaces {} only", spec.namespace_name.join(", ")));
        }
    } else if let Some(affinity) = &spec.namespace_affinity {
        let mut labels = context.namespace.map(|n| n.labels.clone()).unwrap_or_default();
        labels.entry(NAMESPACE_NAME_LABEL.into()).or_insert_with(|| namespace.into());
        if !affinity.matches(&labels) {
            let why = format!("does not serve namespace {namespace} (spec.namespaceAffinity)");
            return Some(why);
        }
    }
    if pool.meta.labels.contains_key(AUTO_POOL_LABEL) {
        // Its affinity speaks of the application, not of the pod's labels; nothing else is asked.
        let serves = context.application.is_some_and(|app| app.is_served_by(pool));
        return (!serves).then(|| "is the automatic pool of another application".into());
    }
    if spec.pod_affinity.as_ref().is_some_and(|s| !s.matches(&context.pod.labels)) {
        return Some("does not serve this pod (spec.podAffinity)".into());
    }
    refuse_definition(&spec.multus_name, context).or_else(|| refuse_master(pool, context))
}

/// `match_master_subnet`: the pool's prefix holds an address of the function's physical device.
fn refuse_master(pool: &Pool, context: &Context<'_>) -> Option<String> {
    let addresses = context.master_addresses?;
    if addresses.iter().any(|a| pool.subnet.contains(a)) {
        return None;
    }
    Some(format!("holds no address of the physical device in {} (matchMasterSubnet)", pool.subnet))
}

/// `[namespace/]name`; a name without namespace means that name anywhere.
fn refuse_definition(names: &[String], context: &Context<'_>) -> Option<String> {
    let serves = |listed: &String| {
        context.attachment_definition.is_some_and(|(namespace, name)| {
            listed.split_once('/').map_or(listed == name, |(ns, n)| ns == namespace && n == name)
        })
    };
    if names.is_empty() || names.iter().any(serves) {
        return None;
    }
    Some(format!("serves network definitions {} only (spec.multusName)", names.join(", ")))
}

/// Which affinities a pool has, the most specific first.
fn specificity(pool: &Pool) -> [bool; 6] {
    let spec = &pool.spec;
    [
        spec.pod_affinity.is_some(),
        !spec.node_name.is_empty(),
        spec.node_affinity.is_some(),
        !spec.namespace_name.is_empty(),
        spec.namespace_affinity.is_some(),
        !spec.multus_name.is_empty(),
    ]
}

fn none_left(context: &Context<'_>, source: &str, rejected: &[Rejection]) -> Problem {
    let ObjectMeta { namespace, name, .. } = context.pod;
    let wanted = format!(
        "{} of pod {}/{name} in {} (pools from {source})",
        context.interface,
        namespace.as_deref().unwrap_or(""),
        context.home
    );
    let rejections = Rejections { wanted, pools: rejected.to_vec() };
    Problem::error("pools", "", rejections.to_string())
}

/// Shell patterns: `*`, `?`, `[a-z]`, `[^a]`, and `\` before a literal. No name holds a `/`.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last `*` does not match.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            _ => one(&pattern[p.min(pattern.len())..], name[n]),
        };
        match (step, retry) {
            (Some(length), _) => (p, n) = (p + length, n + 1),
            (None, Some((after, from))) => {
                (p, n) = (after, from + 1);
                retry = Some((after, from + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// Length of the pattern's first element, if it matches `c`.
fn one(pattern: &[u8], c: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == c).then_some(2),
        [b'[', rest @ ..] => {
            let negated = rest.first() == Some(&b'^');
            let end = rest.iter().skip(1).position(|b| *b == b']')? + 1;
            let class = &rest[usize::from(negated)..end];
            let within = |w: &[u8]| matches!(w, [a, b'-', z] if (*a..=*z).contains(&c));
            let hit = class.contains(&c) || class.windows(3).any(within);
            (hit != negated).then_some(end + 2)
        }
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("blue-*", "blue-v4", true),
            ("blue-*", "red-v4", false),
            ("*-v?", "blue-v4", true),
            ("*-v?", "blue-v46", false),
            ("[a-c]lue", "blue", true),
            ("[^a-c]lue", "blue", false),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("[", "[", false),
            ("\\*", "*", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn noise_never_panics_and_stars_match_all() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().for_each(|(pattern, name)| {
            let _ = glob(pattern, name);
            assert!(glob(b"**", name));
        });
    }
}
