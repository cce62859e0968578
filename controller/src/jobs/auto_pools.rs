//! Pools of applications, cut from SpiderSubnets: created before the first pod needs one, grown and shrunk
//! with the replicas, deleted with the application.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use bowline_kube::Severity;
use k8s_openapi::api::core::v1::ObjectReference;
use multinet::auto::{
    Action, AppPools, Application, Present, label, plan_auto_pools, plan_orphans,
};
use multinet::pod::{SUBNET, SUBNETS};
use multinet::rules::{AUTO_POOL_LABEL, Catalog, Checked, Home};
use multinet::store::{Store, StoreError};
use multinet::types::core::Pod;
use multinet::types::meta::Labels;

use super::applications::{self, BuiltIn, Found};
use super::{Job, Tools};

/// The job.
#[derive(Default)]
pub(super) struct AutoPools {
    /// What was said already of applications that cannot be served, by UID.
    said: BTreeMap<String, String>,
}

impl Job for AutoPools {
    const NAME: &'static str = "auto-pools";
    // Pods wait for it; each pass reads every application.
    const PAUSE: Duration = Duration::from_secs(1);
    const EVERY: Duration = Duration::from_secs(10);
    const WITHHELD: bool = true;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let catalog = tools.world.catalog();
        let is_auto = |labels: &Labels| labels.contains_key(AUTO_POOL_LABEL);
        if catalog.subnets.is_empty()
            && !catalog.pools.values().any(|p| is_auto(&p.metadata.labels))
        {
            return Ok(());
        }
        let client = tools.store.client();
        let built_in = BuiltIn::read(client).await?;
        let asking = asking_pods(tools);
        let others = built_in.others(client, asking.iter()).await?;
        let held = held(tools);
        let checked = Checked::new(&catalog);
        let own = AppPools::among(&catalog.pools);
        let mut known = Known { catalog, checked, own };
        for found in built_in.found.iter().chain(&others) {
            self.serve(tools, found, &mut known, &held).await?;
        }
        let all: BTreeSet<_> = built_in.found.iter().chain(&others).map(|f| &f.app.uid).collect();
        self.said.retain(|uid, _| all.contains(uid));
        let live = live_uids(tools, &known.catalog, &built_in, &others).await?;
        let lives = |labels: &Labels| labels.get(AUTO_POOL_LABEL).is_some_and(|u| live.contains(u));
        let orphans = known.with(tools, &held, |present| plan_orphans(present, lives));
        for action in orphans {
            perform(tools, action).await?;
        }
        Ok(())
    }
}

/// What is there, and what the rules say of it.
struct Known {
    catalog: Catalog,
    checked: Checked,
    own: AppPools,
}

impl Known {
    fn with<T>(
        &self,
        tools: &Tools,
        held: &BTreeSet<(String, IpAddr)>,
        plan: impl FnOnce(Present<'_>) -> T,
    ) -> T {
        let is_held = |home: &Home, address| held.contains(&(home.domain().to_owned(), address));
        let (checked, pools) = (&self.checked, &self.own);
        let spare = tools.options.auto_pool_spare;
        plan(Present { checked, pools, is_held: &is_held, spare })
    }
}

impl AutoPools {
    /// Gives one application what it asks for. What was written is known for the next one.
    async fn serve(
        &mut self,
        tools: &Tools,
        found: &Found,
        known: &mut Known,
        held: &BTreeSet<(String, IpAddr)>,
    ) -> Result<(), StoreError> {
        let planned = known.with(tools, held, |present| {
            plan_auto_pools(&found.app, &found.wanted.clone()?, present)
        });
        match planned {
            Ok(actions) => {
                self.said.remove(&found.app.uid);
                let mut is_changed = false;
                for action in actions {
                    if let Some(pool) = perform(tools, action).await? {
                        known.own.insert(pool.clone());
                        known.catalog.pools.insert(pool.name().to_owned(), pool);
                        is_changed = true;
                    }
                }
                if is_changed {
                    known.checked = Checked::new(&known.catalog);
                }
            }
            Err(problem) => self.say(tools, &found.app, &problem).await,
        }
        Ok(())
    }

    /// Says once why an application has no pool: on itself, and on the subnet that cannot give one.
    async fn say(&mut self, tools: &Tools, app: &Application, problem: &multinet::rules::Problem) {
        let note = format!("{} {}/{}: {problem}", app.kind, app.namespace, app.name);
        if self.said.insert(app.uid.clone(), note.clone()).as_ref() == Some(&note) {
            return;
        }
        tracing::warn!("no automatic pool: {note}");
        let (reason, action) = ("NoAutomaticPool", "CreatePool");
        let about = ObjectReference {
            api_version: Some(app.api_version.clone()),
            kind: Some(app.kind.clone()),
            namespace: Some(app.namespace.clone()),
            name: Some(app.name.clone()),
            uid: Some(app.uid.clone()),
            ..ObjectReference::default()
        };
        tools.events.say_of(about, Severity::Warning, reason, action, &problem.to_string()).await;
        if let Some(subnet) = tools.world.subnets.get("", &problem.value) {
            tools.events.say(&subnet, Severity::Warning, reason, action, &note).await;
        }
    }
}

/// Performs an action. The pool that was written.
async fn perform(
    tools: &Tools,
    action: Action,
) -> Result<Option<multinet::types::pool::SpiderIPPool>, StoreError> {
    let name = AutoPools::NAME;
    match action {
        Action::Create(pool) => tools.written(name, tools.store.create(&*pool).await),
        Action::Update(pool) => tools.written(name, tools.store.update(&*pool).await),
        Action::Delete(pool) => {
            tools.written(name, tools.store.delete(&*pool).await)?;
            Ok(None)
        }
        // The next pass looks again.
        Action::Shrink(_) => Ok(None),
    }
}

/// Pods that ask for automatic pools.
fn asking_pods(tools: &Tools) -> Vec<Pod> {
    let asks = |p: &&Pod| [SUBNET, SUBNETS].iter().any(|k| p.metadata.annotations.contains_key(*k));
    tools.world.pods.read().values().filter(asks).cloned().collect()
}

/// Every address in somebody's hands, with its domain.
fn held(tools: &Tools) -> BTreeSet<(String, IpAddr)> {
    let blocks = tools.world.blocks.read();
    let held = blocks.values().flat_map(|b| b.held().map(|e| (b.spec.network.clone(), e.address)));
    held.collect()
}

/// UIDs of applications that live, among those that pools were made for.
async fn live_uids(
    tools: &Tools,
    catalog: &Catalog,
    built_in: &BuiltIn,
    others: &[Found],
) -> Result<BTreeSet<String>, StoreError> {
    let mut live: BTreeSet<String> = others.iter().map(|f| f.app.uid.clone()).collect();
    for pool in catalog.pools.values() {
        let labels = &pool.metadata.labels;
        let Some(uid) = labels.get(AUTO_POOL_LABEL) else { continue };
        if live.contains(uid) {
            continue;
        }
        let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
        let version = text(label::APP_GROUP_VERSION).replacen('_', "/", 1);
        let lives = if matches!(version.as_str(), "apps/v1" | "batch/v1") {
            built_in.lives(uid)
        } else {
            let app = Application {
                api_version: version,
                kind: text(label::APP_KIND),
                namespace: text(label::APP_NAMESPACE),
                name: text(label::APP_NAME),
                uid: uid.clone(),
            };
            applications::lives(tools.store.client(), &app).await?
        };
        if lives {
            live.insert(uid.clone());
        }
    }
    Ok(live)
}
