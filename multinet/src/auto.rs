//! Automatic pools: a SpiderSubnet gives each application that names it a pool of its own, one for each
//! interface and family, as large as the application needs (reference section 4).
//!
//! Declarative: [`plan_auto_pools`] compares what an application asks for with the pools that are there
//! and says what to create, change and delete. The pools themselves are the record of which addresses
//! of the subnet are given away; two controllers that act at once make overlapping pools, of which the
//! younger serves nothing ([`crate::rules::Checked`]) and is cut anew here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::pod::{
    IP_NUMBER, PoolSize, SubnetChoice, parse_pool_size, parse_reclaim, parse_subnets,
};
use crate::range::{AddressSet, Family};
use crate::rules::{
    AUTO_POOL_AFFINITY, AUTO_POOL_LABEL, Checked, Home, OWNER_SUBNET_LABEL, POOL_CIDR_LABEL, Pool,
    Problem, cidr_label, subnet_reference,
};
use crate::types::mac::stable_hash;
use crate::types::meta::{LabelSelector, Labels, ObjectMeta};
use crate::types::pool::{IPPoolSpec, PoolRoute, SpiderIPPool, annotation};

/// Labels of automatic pools beside [`AUTO_POOL_LABEL`], upstream's.
pub mod label {
    /// `apps_v1`.
    pub const APP_GROUP_VERSION: &str = "ipam.spidernet.io/owner-application-gv";
    /// `Deployment`.
    pub const APP_KIND: &str = "ipam.spidernet.io/owner-application-kind";
    /// Namespace of the application.
    pub const APP_NAMESPACE: &str = "ipam.spidernet.io/owner-application-namespace";
    /// Name of the application.
    pub const APP_NAME: &str = "ipam.spidernet.io/owner-application-name";
    /// Interface that the pool is for.
    pub const INTERFACE: &str = "ipam.spidernet.io/interface";
    /// `IPv4` or `IPv6`.
    pub const IP_VERSION: &str = "ipam.spidernet.io/ip-version";
    /// Whether the pool goes with its application.
    pub const RECLAIM: &str = "ipam.spidernet.io/ippool-reclaim";
}

/// The labels by which the pools of an application are found, whatever its UID. The one that tells most
/// applications apart comes first.
const APP_LABELS: [&str; 4] =
    [label::APP_NAME, label::APP_NAMESPACE, label::APP_KIND, label::APP_GROUP_VERSION];

/// An application: the outermost controller of pods, of any kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Application {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`, `CloneSet` …
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another one of the same name is another application.
    pub uid: String,
}

/// What an application asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Subnets per interface; none: no automatic pools.
    pub subnets: Vec<SubnetChoice>,
    /// How many addresses, if it says.
    pub size: Option<PoolSize>,
    /// How many pods it has; unknown for kinds without a number of replicas that Bowline can read.
    pub pods: Option<u32>,
    /// Whether its pools go with it.
    pub reclaim: bool,
}

impl Wanted {
    /// Reads the annotations of an application's pod template.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(annotations: &Labels, pods: Option<u32>) -> Result<Self, Problem> {
        Ok(Wanted {
            subnets: parse_subnets(annotations)?,
            size: parse_pool_size(annotations)?,
            pods,
            reclaim: parse_reclaim(annotations)?,
        })
    }

    /// How many addresses each pool holds. `spare` are those beyond the pods where the application does
    /// not say.
    ///
    /// # Errors
    /// The number of pods is not known and none is written.
    pub fn addresses(&self, spare: u32) -> Result<u32, Problem> {
        let more = match self.size {
            Some(PoolSize::Fixed(n)) => return Ok(n),
            Some(PoolSize::Flexible(n)) => n,
            None => spare,
        };
        self.pods.map(|pods| pods.saturating_add(more)).ok_or_else(|| {
            let value = self.size.map_or(String::new(), |s| s.to_string());
            let message = "must be a fixed number, like \"5\": how many pods this kind of \
                           controller makes is not known";
            Problem::error(IP_NUMBER, value, message)
        })
    }
}

impl Application {
    /// The values of [`APP_LABELS`] on its pools.
    fn label_values(&self) -> [String; 4] {
        [
            label_value(&self.name),
            self.namespace.clone(),
            self.kind.clone(),
            self.api_version.replace('/', "_"),
        ]
    }

    /// Whether a pool was made for an application of this kind and name, whatever its UID.
    #[must_use]
    pub fn owns(&self, pool: &ObjectMeta) -> bool {
        pool.labels.contains_key(AUTO_POOL_LABEL)
            && APP_LABELS
                .iter()
                .zip(self.label_values())
                .all(|(k, v)| pool.labels.get(*k) == Some(&v))
    }

    /// What `spec.podAffinity` of its pools says.
    fn affinity(&self) -> LabelSelector {
        let (group, version) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        let values = [group, version, &self.kind, &self.namespace, &label_value(&self.name)];
        let pairs = AUTO_POOL_AFFINITY.into_iter().zip(values);
        LabelSelector {
            match_labels: pairs.map(|(key, value)| (key.into(), value.into())).collect(),
            ..LabelSelector::default()
        }
    }

    /// Whether an automatic pool serves this application's pods.
    #[must_use]
    pub fn is_served_by(&self, pool: &Pool) -> bool {
        pool.spec.pod_affinity.as_ref() == Some(&self.affinity())
    }

    /// The name of its pool: `auto4-web-eth0-1a2b3`.
    #[must_use]
    pub fn pool_name(&self, family: Family, interface: &str) -> String {
        let part = self.uid.rsplit('-').next().unwrap_or_default();
        let uid: String = part.chars().take(5).collect();
        let rest = format!("-{interface}-{uid}");
        let room = 253usize.saturating_sub("auto4-".len() + rest.len());
        let app: String = self.name.chars().take(room).collect();
        let name = format!("auto{}-{app}{rest}", family.number()).to_lowercase();
        let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        name.chars().map(allowed).collect::<String>().trim_end_matches(['-', '.']).into()
    }
}

/// A text as the value of a label: at most 63 bytes, the end of a longer one replaced by its hash.
fn label_value(text: &str) -> String {
    if text.len() <= 63 {
        return text.into();
    }
    let head: String = text.chars().take(46).collect();
    format!("{head}-{:016x}", stable_hash(&[text]))
}

/// What to do about an automatic pool.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create this one.
    Create(Box<SpiderIPPool>),
    /// Write this one over the one of its name, if that has not changed since.
    Update(Box<SpiderIPPool>),
    /// Delete this one, if it has not changed since: nobody needs it.
    Delete(Box<SpiderIPPool>),
    /// Look again when an address of this pool becomes free: it holds more than it should.
    Shrink(String),
}

/// Automatic pools by the application that each was made for: thousands of applications do not each
/// look at the pools of all.
#[derive(Clone, Debug, Default)]
pub struct AppPools(BTreeMap<[String; 4], BTreeMap<String, SpiderIPPool>>);

impl AppPools {
    /// The automatic ones among all pools.
    #[must_use]
    pub fn among(pools: &BTreeMap<String, SpiderIPPool>) -> Self {
        let mut own = AppPools::default();
        for pool in pools.values() {
            own.insert(pool.clone());
        }
        own
    }

    /// Adds a pool, or replaces the one of its name. One that no application has is left out.
    pub fn insert(&mut self, pool: SpiderIPPool) {
        let labels = &pool.metadata.labels;
        if labels.contains_key(AUTO_POOL_LABEL) {
            let app = APP_LABELS.map(|key| labels.get(key).cloned().unwrap_or_default());
            self.0.entry(app).or_default().insert(pool.metadata.name.clone(), pool);
        }
    }

    /// Those made for applications of this kind and name, whatever their UIDs.
    fn of(&self, app: &Application) -> impl Iterator<Item = &SpiderIPPool> {
        self.0.get(&app.label_values()).into_iter().flat_map(BTreeMap::values)
    }

    fn all(&self) -> impl Iterator<Item = &SpiderIPPool> {
        self.0.values().flat_map(BTreeMap::values)
    }
}

/// What is there.
#[expect(missing_debug_implementations, reason = "a question is no text")]
#[derive(Clone, Copy)]
pub struct Present<'a> {
    /// Usable subnets and pools, reservations.
    pub checked: &'a Checked,
    /// The applications' pools as they were read.
    pub pools: &'a AppPools,
    /// Whether an address of a domain is in somebody's hands.
    pub is_held: &'a dyn Fn(&Home, IpAddr) -> bool,
    /// Addresses beyond the pods where an application does not say.
    pub spare: u32,
}

/// What to do so that an application has what it wants. Running it again after its actions says nothing,
/// except where somebody had edited a pool: that is undone first.
///
/// # Errors
/// What the application must change, or who must make room.
pub fn plan_auto_pools(
    app: &Application,
    wanted: &Wanted,
    present: Present<'_>,
) -> Result<Vec<Action>, Problem> {
    let mut actions = Vec::new();
    let mut needed: Vec<&str> = Vec::new();
    let own: Vec<&SpiderIPPool> = present.pools.of(app).collect();
    for choice in &wanted.subnets {
        let size = wanted.addresses(present.spare)?;
        for (family, subnet) in choice.families() {
            let want = Want { app, wanted, interface: &choice.interface, family, subnet, size };
            let existing = want.existing(&own);
            needed.extend(existing.map(|p| p.metadata.name.as_str()));
            actions.extend(want.plan(existing, present)?);
        }
    }
    let left = own.into_iter().filter(|p| !needed.contains(&p.metadata.name.as_str()));
    actions.extend(left.filter_map(|pool| retire(pool, present)));
    Ok(actions)
}

/// The pools of applications that are gone: `lives` says whether an application of this identity exists.
#[must_use]
pub fn plan_orphans(present: Present<'_>, lives: impl Fn(&Labels) -> bool) -> Vec<Action> {
    let orphans = present.pools.all().filter(|p| !lives(&p.metadata.labels));
    orphans.filter_map(|pool| retire(pool, present)).collect()
}

/// Deletes a pool that nobody needs, unless it is kept on purpose or still holds addresses.
fn retire(pool: &SpiderIPPool, present: Present<'_>) -> Option<Action> {
    let kept = pool.metadata.labels.get(label::RECLAIM).is_some_and(|v| v == "false");
    if kept || pool.metadata.is_terminating() {
        return None;
    }
    let (home, addresses) = match present.checked.pools.get(&pool.metadata.name) {
        Some((home, usable)) => (home, usable.addresses.clone()),
        // It serves nobody (it lost a race, or somebody edited it): what it says, where its subnet is.
        None => {
            let owner = pool.metadata.labels.get(OWNER_SUBNET_LABEL)?;
            let (home, subnet) = present.checked.subnets.get(owner)?;
            (home, AddressSet::parse(subnet.family, &pool.spec.ips).ok()?)
        }
    };
    // A pool is not walked address by address where it is huge: automatic ones never are.
    if addresses.iter().any(|a| (present.is_held)(home, a)) {
        return Some(Action::Shrink(pool.metadata.name.clone()));
    }
    Some(Action::Delete(Box::new(pool.clone())))
}

/// One pool that an application wants.
struct Want<'a> {
    app: &'a Application,
    wanted: &'a Wanted,
    interface: &'a str,
    family: Family,
    subnet: &'a str,
    size: u32,
}

impl Want<'_> {
    /// Its pool among the application's, or one that an earlier of the same kind and name left behind.
    fn existing<'p>(&self, own: &[&'p SpiderIPPool]) -> Option<&'p SpiderIPPool> {
        own.iter().copied().find(|p| {
            let get = |key: &str| p.metadata.labels.get(key).map(String::as_str);
            !p.metadata.is_terminating()
                && get(label::INTERFACE) == Some(self.interface)
                && get(label::IP_VERSION) == Some(&self.family.to_string())
        })
    }

    fn plan(
        &self,
        existing: Option<&SpiderIPPool>,
        present: Present<'_>,
    ) -> Result<Vec<Action>, Problem> {
        let field = crate::pod::SUBNETS;
        let Some((home, subnet)) = present.checked.subnets.get(self.subnet) else {
            let message = "does not exist or is refused; create the SpiderSubnet";
            return Err(Problem::error(field, self.subnet, message));
        };
        if subnet.family != self.family {
            let message = format!("is {}; list it as ipv{}", subnet.family, subnet.family.number());
            return Err(Problem::error(field, self.subnet, message));
        }
        let Some(pool) = existing else {
            let grown = self.grow(&AddressSet::empty(self.family), home, subnet, present)?;
            return Ok(vec![Action::Create(Box::new(self.pool(subnet, &grown)))]);
        };
        let had = pool.metadata.labels.get(OWNER_SUBNET_LABEL).map_or("", String::as_str);
        if had != self.subnet {
            let message = format!(
                "cannot replace {had} while the application lives; \
                 delete it and make it anew"
            );
            return Err(Problem::error(field, self.subnet, message));
        }
        self.adjust(pool, home, subnet, present)
    }

    /// The pool that is there, with the right affinity; then with the right size, owner and reclaim label.
    fn adjust(
        &self,
        pool: &SpiderIPPool,
        home: &Home,
        subnet: &Pool,
        present: Present<'_>,
    ) -> Result<Vec<Action>, Problem> {
        // Whoever edited it while no webhook was there. What the pool can serve from is known again
        // when it is put right: until then its addresses stay.
        let affinity = Some(self.app.affinity());
        if pool.spec.pod_affinity != affinity {
            let mut restored = pool.clone();
            restored.spec.pod_affinity = affinity;
            return Ok(vec![Action::Update(Box::new(restored))]);
        }
        // What the pool cannot serve from (it lost a race) is given up first.
        let usable = present.checked.pools.get(&pool.metadata.name);
        let empty = AddressSet::empty(self.family);
        let has = usable.map_or(&empty, |(_, p)| &p.addresses);
        let size = u128::from(self.size);
        let mut actions = Vec::new();
        let addresses = if has.len() < size {
            self.grow(has, home, subnet, present)?
        } else {
            let shrunk = shrink(has, size, |a| (present.is_held)(home, a));
            if shrunk.len() > size {
                actions.push(Action::Shrink(pool.metadata.name.clone()));
            }
            shrunk
        };
        let mut next = pool.clone();
        next.spec.ips = addresses.to_texts().collect();
        let labels = &mut next.metadata.labels;
        labels.insert(AUTO_POOL_LABEL.into(), self.app.uid.clone());
        labels.insert(label::RECLAIM.into(), self.wanted.reclaim.to_string());
        if next != *pool {
            actions.push(Action::Update(Box::new(next)));
        }
        Ok(actions)
    }

    /// `has` and the lowest addresses of the subnet that no pool has, up to the size.
    fn grow(
        &self,
        has: &AddressSet,
        home: &Home,
        subnet: &Pool,
        present: Present<'_>,
    ) -> Result<AddressSet, Problem> {
        let mut free = present.checked.allocatable(home, subnet);
        for pool in present.checked.pools_of(home.domain()).filter(|p| p.family == self.family) {
            free = free.minus(&pool.addresses);
        }
        let missing = u128::from(self.size).saturating_sub(has.len());
        if free.len() < missing {
            let message = format!(
                "has {} free addresses, {missing} more are wanted for {} of {} {}/{}; \
                 add addresses to spec.ips of the SpiderSubnet",
                free.len(),
                self.interface,
                self.app.kind,
                self.app.namespace,
                self.app.name
            );
            return Err(Problem::error(crate::pod::SUBNETS, self.subnet, message));
        }
        let count = usize::try_from(missing).unwrap_or(usize::MAX);
        Ok(AddressSet::from_addresses(self.family, has.iter().chain(free.iter().take(count))))
    }

    fn pool(&self, subnet: &Pool, addresses: &AddressSet) -> SpiderIPPool {
        let route = |(dst, gw): &(ipnet::IpNet, IpAddr)| PoolRoute {
            dst: dst.to_string(),
            gw: gw.to_string(),
        };
        let spec = IPPoolSpec {
            ip_version: Some(self.family.number()),
            subnet: subnet.subnet.to_string(),
            ips: addresses.to_texts().collect(),
            gateway: subnet.gateway.map(|g| g.to_string()),
            routes: Some(subnet.routes.iter().map(route).collect()),
            pod_affinity: Some(self.app.affinity()),
            ..IPPoolSpec::default()
        };
        let mut pool = SpiderIPPool::new(self.app.pool_name(self.family, self.interface), spec);
        self.describe(&mut pool.metadata, subnet);
        pool
    }

    fn describe(&self, meta: &mut ObjectMeta, subnet: &Pool) {
        let labels = &mut meta.labels;
        labels.extend(APP_LABELS.map(String::from).into_iter().zip(self.app.label_values()));
        for (key, value) in [
            (AUTO_POOL_LABEL, self.app.uid.clone()),
            (OWNER_SUBNET_LABEL, self.subnet.into()),
            (label::INTERFACE, self.interface.into()),
            (label::IP_VERSION, self.family.to_string()),
            (label::RECLAIM, self.wanted.reclaim.to_string()),
            (POOL_CIDR_LABEL, cidr_label(&subnet.subnet.to_string())),
        ] {
            labels.insert(key.into(), value);
        }
        if let Some(network) = subnet.meta.labels.get(annotation::NETWORK) {
            labels.insert(annotation::NETWORK.into(), network.clone());
        }
        for key in [annotation::DETECT_CONFLICT, annotation::DETECT_GATEWAY] {
            if let Some(value) = subnet.meta.annotations.get(key) {
                meta.annotations.insert(key.into(), value.clone());
            }
        }
        if let Some(size) = self.wanted.size {
            meta.annotations.insert(IP_NUMBER.into(), size.to_string());
        }
        if let Some(uid) = &subnet.meta.uid {
            meta.owner_references.push(subnet_reference(&subnet.name, uid));
        }
    }
}

/// The set without its highest free addresses, down to `size` or to what is held.
fn shrink(has: &AddressSet, size: u128, is_held: impl Fn(IpAddr) -> bool) -> AddressSet {
    let excess = usize::try_from(has.len().saturating_sub(size)).unwrap_or(usize::MAX);
    if excess == 0 {
        return has.clone();
    }
    let free: Vec<IpAddr> = has.iter().filter(|a| !is_held(*a)).collect();
    let dropped = free[free.len().saturating_sub(excess)..].iter().copied();
    has.minus(&AddressSet::from_addresses(has.family(), dropped))
}

/// The automatic pool that serves an interface of an application's pod.
#[must_use]
pub fn pool_for<'a>(
    checked: &'a Checked,
    home: &Home,
    app: &Application,
    interface: &str,
    family: Family,
) -> Option<&'a Pool> {
    checked.pools_of(home.domain()).find(|p| {
        app.owns(&p.meta)
            && p.family == family
            && p.meta.labels.get(label::INTERFACE).is_some_and(|i| i == interface)
            && p.meta.labels.get(AUTO_POOL_LABEL) == Some(&app.uid)
    })
}
