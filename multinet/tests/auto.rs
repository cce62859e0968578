//! Automatic pools: create, scale, keep, reclaim, and which pod they serve.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use common::catalog;
use multinet::auto::{
    Action, AppPools, Application, Present, Wanted, label, plan_auto_pools, plan_orphans,
};
use multinet::pod::{Context, select};
use multinet::rules::{AUTO_POOL_LABEL, Catalog, Checked, Home, validate_pool_update};
use multinet::types::meta::{Labels, ObjectMeta};
use multinet::types::network::PoolLists;
use multinet::types::pool::SpiderIPPool;

const SUBNETS: &str = "kind: SpiderSubnet
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: s4, uid: s4-uid}
spec: {subnet: 10.6.0.0/16, ips: [10.6.0.10-10.6.0.19], gateway: 10.6.0.1, routes: [{dst: 10.9.0.0/16, gw: 10.6.0.2}]}
---
kind: SpiderSubnet
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: s6}
spec: {subnet: 'fd00:6::/64', ips: ['fd00:6::10-fd00:6::19']}
---
kind: SpiderReservedIP
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: r}
spec: {ips: [10.6.0.11]}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: by-hand}
spec: {subnet: 10.6.0.0/16, ips: [10.6.0.10]}
";

struct World {
    catalog: Catalog,
    held: RefCell<BTreeSet<IpAddr>>,
    made: u32,
}

impl World {
    fn new() -> Self {
        World { catalog: catalog(SUBNETS), held: RefCell::default(), made: 0 }
    }

    fn with<T>(&self, use_it: impl FnOnce(Present<'_>) -> T) -> T {
        let checked = Checked::new(&self.catalog);
        let is_held = |_: &Home, address| self.held.borrow().contains(&address);
        let pools = AppPools::among(&self.catalog.pools);
        let present = Present { checked: &checked, pools: &pools, is_held: &is_held, spare: 1 };
        use_it(present)
    }

    fn plan(&self, app: &Application, wanted: &Wanted) -> Result<Vec<Action>, String> {
        self.with(|present| plan_auto_pools(app, wanted, present)).map_err(|p| p.to_string())
    }

    fn apply(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Create(pool) | Action::Update(pool) => {
                    // What the controller writes is never refused.
                    let old = self.catalog.pools.get(&pool.metadata.name).unwrap_or(pool);
                    assert_eq!(validate_pool_update(old, pool, &[]), []);
                    let mut pool = pool.as_ref().clone();
                    self.made += 1;
                    let time = format!("2026-01-01T00:00:{:02}Z", self.made);
                    pool.metadata.creation_timestamp.get_or_insert(time);
                    self.catalog.pools.insert(pool.metadata.name.clone(), pool);
                }
                Action::Delete(pool) => {
                    self.catalog.pools.remove(&pool.metadata.name);
                }
                Action::Shrink(_) => {}
            }
        }
    }

    /// Plans until nothing is left to do; what an application's pools hold then, by name.
    fn settle(&mut self, app: &Application, wanted: &Wanted) -> Vec<(String, String)> {
        let actions = self.plan(app, wanted).unwrap();
        self.apply(&actions);
        let again = self.plan(app, wanted).unwrap();
        let idle = again.iter().all(|a| matches!(a, Action::Shrink(_)));
        assert!(idle, "a second run does something: {again:?}");
        let checked = Checked::new(&self.catalog);
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        let own = checked.pools.values().filter(|(_, p)| app.owns(&p.meta));
        own.map(|(_, p)| (p.name.clone(), p.addresses.to_string())).collect()
    }
}

fn app(kind: &str, uid: &str) -> Application {
    Application {
        api_version: "apps/v1".into(),
        kind: kind.into(),
        namespace: "shop".into(),
        name: "web".into(),
        uid: uid.into(),
    }
}

fn wanted(annotations: &[(&str, &str)], pods: Option<u32>) -> Wanted {
    let key = |k: &str| format!("ipam.spidernet.io/{k}");
    let annotations = annotations.iter().map(|(k, v)| (key(k), (*v).to_string())).collect();
    Wanted::read(&annotations, pods).unwrap()
}

const V4: (&str, &str) = ("subnet", r#"{"ipv4": ["s4"]}"#);

fn pair(name: &str, ips: &str) -> (String, String) {
    (name.into(), ips.into())
}

/// I00003, I00004, I00011: created, scaled and shrunk, around what others have and what is reserved.
#[test]
fn pools_follow_the_number_of_pods() {
    let (mut world, app) = (World::new(), app("Deployment", "a-b-c123456"));
    let name = "auto4-web-eth0-c1234";
    let with = |pods| wanted(&[V4], Some(pods));
    assert_eq!(world.settle(&app, &with(2)), [pair(name, "10.6.0.12-10.6.0.14")]);
    assert_eq!(world.settle(&app, &with(4)), [pair(name, "10.6.0.12-10.6.0.16")]);
    // Shrinking keeps what pods hold.
    world.held.borrow_mut().insert("10.6.0.16".parse().unwrap());
    assert_eq!(world.settle(&app, &with(1)), [pair(name, "10.6.0.12, 10.6.0.16")]);
    world.held.borrow_mut().extend(["10.6.0.12".parse::<IpAddr>().unwrap()]);
    assert_eq!(world.settle(&app, &with(0)), [pair(name, "10.6.0.12, 10.6.0.16")]);
    assert_eq!(world.plan(&app, &with(0)).unwrap(), [Action::Shrink(name.into())]);
    world.held.borrow_mut().clear();
    assert_eq!(world.settle(&app, &with(0)), [pair(name, "10.6.0.12")]);
}

#[test]
fn a_new_pool_says_all_that_upstreams_says() {
    let world = World::new();
    let app = app("Deployment", "a-b-c123456");
    let asked = wanted(&[V4, ("ippool-ip-number", "+2"), ("ippool-reclaim", "false")], Some(1));
    let actions = world.plan(&app, &asked).unwrap();
    let [Action::Create(pool)] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(pool.spec.ips, ["10.6.0.12-10.6.0.14"]);
    assert_eq!(pool.spec.gateway.as_deref(), Some("10.6.0.1"));
    assert_eq!(pool.spec.routes.as_ref().unwrap()[0].dst, "10.9.0.0/16");
    assert_eq!(pool.metadata.owner_references[0].name, "s4");
    assert_eq!(pool.metadata.annotations["ipam.spidernet.io/ippool-ip-number"], "+2");
    for (key, value) in [
        ("owner-spider-subnet", "s4"),
        ("owner-application-gv", "apps_v1"),
        ("owner-application-kind", "Deployment"),
        ("owner-application-namespace", "shop"),
        ("owner-application-name", "web"),
        ("owner-application-uid", "a-b-c123456"),
        ("interface", "eth0"),
        ("ip-version", "IPv4"),
        ("ippool-reclaim", "false"),
        ("ippool-cidr", "10-6-0-0-16"),
    ] {
        assert_eq!(pool.metadata.labels[&format!("ipam.spidernet.io/{key}")], value);
    }
    let affinity = &pool.spec.pod_affinity.as_ref().unwrap().match_labels;
    assert_eq!(affinity["ipam.spidernet.io/app-api-group"], "apps");
    assert_eq!(affinity["ipam.spidernet.io/app-api-version"], "v1");
    assert_eq!(affinity.len(), 5);
}

/// I00012: one pool per interface and family.
#[test]
fn several_interfaces_and_families() {
    let mut world = World::new();
    let asked = wanted(
        &[(
            "subnets",
            r#"[{"interface": "eth0", "ipv4": ["s4"]}, {"interface": "net1", "ipv6": ["s6"]}]"#,
        )],
        Some(1),
    );
    let app = app("Deployment", "x-12");
    let expected = [
        pair("auto4-web-eth0-12", "10.6.0.12-10.6.0.13"),
        pair("auto6-web-net1-12", "fd00:6::10-fd00:6::11"),
    ];
    assert_eq!(world.settle(&app, &asked), expected);
    // An interface that is not asked for any more loses its pool once nobody holds an address of it.
    let one = wanted(&[V4], Some(1));
    world.held.borrow_mut().insert("fd00:6::10".parse().unwrap());
    assert_eq!(world.settle(&app, &one).len(), 2);
    world.held.borrow_mut().clear();
    assert_eq!(world.settle(&app, &one).len(), 1);
}

#[test]
fn sizes() {
    let fixed = wanted(&[V4, ("ippool-ip-number", "3")], Some(9));
    assert_eq!(fixed.addresses(1), Ok(3));
    assert_eq!(wanted(&[V4, ("ippool-ip-number", "+2")], Some(4)).addresses(1), Ok(6));
    assert_eq!(wanted(&[V4], Some(4)).addresses(1), Ok(5));
    // T00002: of another kind of controller the number is not known.
    assert_eq!(wanted(&[V4, ("ippool-ip-number", "3")], None).addresses(1), Ok(3));
    let problem = wanted(&[V4], None).addresses(1).unwrap_err();
    assert!(problem.message.contains("must be a fixed number"), "{problem}");
}

#[test]
fn what_cannot_be_made_says_who_must_act() {
    let mut world = World::new();
    let app = app("Deployment", "x-12");
    let refused = |world: &World, asked: &Wanted| world.plan(&app, asked).unwrap_err();
    let many = wanted(&[V4], Some(20));
    assert!(
        refused(&world, &many)
            .contains("has 8 free addresses, 21 more are wanted for eth0 of Deployment shop/web")
    );
    let none = wanted(&[("subnet", r#"{"ipv4": ["other"]}"#)], Some(1));
    assert!(refused(&world, &none).contains("\"other\": does not exist"));
    let six = wanted(&[("subnet", r#"{"ipv4": ["s6"]}"#)], Some(1));
    assert!(refused(&world, &six).contains("is IPv6; list it as ipv6"));
    // ApplicationSubnetChanged.
    world.settle(&app, &wanted(&[V4], Some(1)));
    let mut other = world.catalog.subnets["s4"].clone();
    other.metadata.name = "t4".into();
    other.spec.subnet = "10.7.0.0/16".into();
    other.spec.ips = vec!["10.7.0.10-10.7.0.19".into()];
    (other.spec.gateway, other.spec.routes) = (None, Vec::new());
    world.catalog.subnets.insert("t4".into(), other);
    let changed = wanted(&[("subnet", r#"{"ipv4": ["t4"]}"#)], Some(1));
    assert!(refused(&world, &changed).contains("cannot replace s4 while the application lives"));
}

/// I00015, I00016, I00019, T00004, T00005.
#[test]
fn kept_pools_serve_the_next_application_of_the_same_kind_and_name() {
    let mut world = World::new();
    let kept = wanted(&[V4, ("ippool-reclaim", "false")], Some(1));
    let first = app("Deployment", "x-11111");
    world.settle(&first, &kept);
    let gone = |world: &World| world.with(|p| plan_orphans(p, |_| false));
    assert_eq!(gone(&world), [], "it is kept on purpose");
    let other = world.settle(&app("StatefulSet", "x-22222"), &kept);
    assert_eq!(other, [pair("auto4-web-eth0-22222", "10.6.0.14-10.6.0.15")]);
    let again = app("Deployment", "x-33333");
    assert_eq!(world.settle(&again, &kept), [pair("auto4-web-eth0-11111", "10.6.0.12-10.6.0.13")]);
    let pool = &world.catalog.pools["auto4-web-eth0-11111"];
    assert_eq!(pool.metadata.labels[AUTO_POOL_LABEL], "x-33333");
    // Told otherwise, it goes with the application; not before its last address.
    world.settle(&again, &wanted(&[V4], Some(1)));
    world.held.borrow_mut().insert("10.6.0.12".parse().unwrap());
    assert_eq!(gone(&world), [Action::Shrink("auto4-web-eth0-11111".into())]);
    world.held.borrow_mut().clear();
    let actions = gone(&world);
    assert!(
        matches!(actions.as_slice(), [Action::Delete(p)] if p.metadata.name == "auto4-web-eth0-11111"),
        "{actions:?}"
    );
    let lives = |labels: &Labels| labels[label::APP_KIND] == "Deployment";
    assert_eq!(world.with(|p| plan_orphans(p, lives)), []);
}

/// Admission refuses such an edit; made while no webhook is there, it must not last.
#[test]
fn an_edited_affinity_is_put_right_and_no_address_is_lost() {
    let (mut world, app) = (World::new(), app("Deployment", "x-1"));
    let asked = wanted(&[V4], Some(1));
    let name = "auto4-web-eth0-1";
    world.settle(&app, &asked);
    // Its addresses are not the subnet's lowest any more.
    world.catalog.pools.get_mut("by-hand").unwrap().spec.ips.clear();
    for edit in [r#"{"matchLabels": {"app": "web"}}"#, "null"] {
        let pool = world.catalog.pools.get_mut(name).unwrap();
        pool.spec.pod_affinity = serde_json::from_str(edit).unwrap();
        assert!(chosen(&world, Some(&app), &[V4]).is_err(), "{edit}");
        let actions = world.plan(&app, &asked).unwrap();
        world.apply(&actions);
        assert_eq!(world.settle(&app, &asked), [pair(name, "10.6.0.12-10.6.0.13")]);
        assert_eq!(chosen(&world, Some(&app), &[V4]).unwrap(), [name]);
    }
}

/// Two applications whose pools two controllers cut of the same addresses.
fn raced(world: &mut World, asked: &Wanted) -> [Application; 2] {
    let apps = [app("Deployment", "x-1"), app("StatefulSet", "x-2")];
    let both = apps.each_ref().map(|app| world.plan(app, asked).unwrap());
    both.iter().for_each(|actions| world.apply(actions));
    apps
}

/// I00009, I00022: two controllers cut the same addresses; the younger pool is cut anew.
#[test]
fn a_pool_that_lost_a_race_is_cut_anew() {
    let mut world = World::new();
    let asked = wanted(&[V4], Some(1));
    let [one, two] = raced(&mut world, &asked);
    assert_eq!(world.settle(&two, &asked), [pair("auto4-web-eth0-2", "10.6.0.14-10.6.0.15")]);
    assert_eq!(world.settle(&one, &asked), [pair("auto4-web-eth0-1", "10.6.0.12-10.6.0.13")]);
}

#[test]
fn a_pool_that_serves_nobody_goes_with_its_application() {
    let mut world = World::new();
    let asked = wanted(&[V4], Some(1));
    raced(&mut world, &asked);
    let gone =
        |world: &World| world.with(|p| plan_orphans(p, |l| l[label::APP_KIND] != "StatefulSet"));
    let name = "auto4-web-eth0-2";
    // Not while somebody holds an address of it.
    world.held.borrow_mut().insert("10.6.0.12".parse().unwrap());
    assert_eq!(gone(&world), [Action::Shrink(name.into())]);
    world.held.borrow_mut().clear();
    let actions = gone(&world);
    assert!(
        matches!(actions.as_slice(), [Action::Delete(p)] if p.metadata.name == name),
        "{actions:?}"
    );
}

/// I00017.
#[test]
fn names_are_such_as_kubernetes_takes() {
    let mut long = app("CloneSet", "0-1-ABCDEFG");
    long.name = "n".repeat(250);
    let name = long.pool_name(multinet::range::Family::V6, "net.1_x");
    assert!(multinet::rules::is_dns_name(&name.chars().take(63).collect::<String>()), "{name}");
    assert!(name.len() <= 253 && name.ends_with("-net.1-x-abcde"), "{name}");
    let world = World::new();
    let actions = world.plan(&long, &wanted(&[V4], Some(1))).unwrap();
    let [Action::Create(pool)] = actions.as_slice() else { panic!() };
    assert!(pool.metadata.labels.values().all(|v| v.len() <= 63));
    let mut other = long.clone();
    other.name.push('m');
    assert!(long.owns(&pool.metadata) && !other.owns(&pool.metadata));
}

fn chosen(
    world: &World,
    app: Option<&Application>,
    annotations: &[(&str, &str)],
) -> Result<Vec<String>, String> {
    let key = |k: &str| format!("ipam.spidernet.io/{k}");
    let mut pod = ObjectMeta::named("web-1");
    pod.namespace = Some("shop".into());
    pod.annotations = annotations.iter().map(|(k, v)| (key(k), (*v).to_string())).collect();
    let labels = Labels::new();
    let context = Context {
        pod: &pod,
        namespace: None,
        node: "n1",
        node_labels: &labels,
        interface: "eth0",
        index: Some(0),
        home: Home::Lan,
        configured: PoolLists::default(),
        attachment_definition: None,
        application: app,
        master_addresses: None,
    };
    let checked = Checked::new(&world.catalog);
    let selection = select(&checked, &context).map_err(|p| p.to_string())?;
    Ok(selection.families.iter().flat_map(|(_, c)| c.iter().map(|c| c.pool.clone())).collect())
}

/// I00020, I00021: the application's own pods, on that interface, and nobody else.
#[test]
fn an_automatic_pool_serves_its_application_alone() {
    let mut world = World::new();
    let (mine, other) = (app("Deployment", "x-1"), app("StatefulSet", "x-2"));
    let not_yet = chosen(&world, Some(&mine), &[V4]).unwrap_err();
    assert!(not_yet.contains("has no IPv4 pool for eth0 of Deployment web yet"), "{not_yet}");
    world.settle(&mine, &wanted(&[V4], Some(1)));
    let pool = "auto4-web-eth0-1";
    assert_eq!(chosen(&world, Some(&mine), &[V4]).unwrap(), [pool]);
    // The first source wins whole.
    let both = [V4, ("ippool", r#"{"ipv4": ["by-hand"]}"#)];
    assert_eq!(chosen(&world, Some(&mine), &both).unwrap(), [pool]);
    let named = ("ippool", r#"{"ipv4": ["auto4-web-eth0-1"]}"#);
    let refused = chosen(&world, Some(&other), &[named]).unwrap_err();
    assert!(refused.contains("is the automatic pool of another application"), "{refused}");
    let orphan = chosen(&world, None, &[V4]).unwrap_err();
    assert!(orphan.contains("no controller of this pod is known"), "{orphan}");
    // Another life of the application waits until the pool is its own.
    assert!(chosen(&world, Some(&app("Deployment", "x-9")), &[V4]).is_err());
}

#[test]
fn pools_that_do_not_hold_the_devices_prefix_are_passed_over() {
    let world = World::new();
    let checked = Checked::new(&world.catalog);
    let mut pod = ObjectMeta::named("a");
    let ask = r#"{"ipv4": ["by-hand"]}"#;
    pod.annotations.insert("ipam.spidernet.io/ippool".into(), ask.into());
    let labels = Labels::new();
    let with = |addresses: &[IpAddr]| {
        let context = Context {
            pod: &pod,
            namespace: None,
            node: "n1",
            node_labels: &labels,
            interface: "net1",
            index: None,
            home: Home::Lan,
            configured: PoolLists::default(),
            attachment_definition: None,
            application: None,
            master_addresses: Some(addresses),
        };
        select(&checked, &context).map(|_| ()).map_err(|p| p.to_string())
    };
    assert_eq!(with(&["10.6.3.4".parse().unwrap()]), Ok(()));
    assert!(with(&["10.7.3.4".parse().unwrap()]).unwrap_err().contains("(matchMasterSubnet)"));
}

#[test]
fn pools_made_by_hand_are_nobodys() {
    let world = World::new();
    let by_hand: &SpiderIPPool = &world.catalog.pools["by-hand"];
    assert!(!app("Deployment", "x").owns(&by_hand.metadata));
    assert_eq!(world.with(|p| plan_orphans(p, |_| false)), []);
}
