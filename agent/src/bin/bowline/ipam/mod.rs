//! `bowline ipam …`: pools, addresses and their holders, from the same objects that the agents decide
//! by.

mod import;
mod show;
mod trial;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use agent::catalog::Directory;
use anyhow::{Context, bail};
use bowline_kube::ApiStore;
use clap::Subcommand;
use multinet::ipam;
use multinet::rules::{self, Checked};
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry};
use multinet::types::meta::{LabelSelector, Resource};
use multinet::types::network::Network;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;

/// What to do, and with whose objects.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory of objects instead of the Kubernetes API.
    #[arg(long, value_name = "DIR")]
    catalog: Option<PathBuf>,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Every pool with its addresses: all, held, free.
    Pools,
    /// The free ranges of a pool.
    Free {
        /// The pool.
        pool: String,
    },
    /// Who holds an address, or what a pod or node holds.
    Who {
        /// An address, `NAMESPACE/POD`, or the name of a node.
        whom: String,
    },
    /// Which address a pod would get, and why each pool serves or not. Nothing is written.
    Try(trial::Args),
    /// Gives back an address by hand. Nothing happens if its record changes meanwhile.
    Release {
        /// The address.
        address: IpAddr,
        /// Its Network, where several have this address; `-` is the LAN.
        #[arg(long)]
        network: Option<String>,
        /// Do it: a holder that still runs loses its address.
        #[arg(long)]
        yes: bool,
    },
    /// Makes claims of what a Spiderpool installation has allocated, before the switch to Bowline.
    Import {
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Reads what is needed, and does it.
pub(crate) async fn run(args: &Args, json: bool) -> anyhow::Result<()> {
    match &args.catalog {
        Some(directory) => {
            let store = Directory::open(directory)
                .with_context(|| format!("cannot open {}", directory.display()))?;
            // The store knows files of people's once it has read them.
            let catalog = agent::catalog::Catalog::open(store)
                .with_context(|| format!("cannot read {}", directory.display()))?;
            with_store(catalog.directory(), None, &args.what, json).await
        }
        None => {
            let settings = kube::Config::infer()
                .await
                .context("no way to the Kubernetes API: set KUBECONFIG, or give --catalog DIR")?;
            let client = kube::Client::try_from(settings)?;
            with_store(&ApiStore::new(client.clone()), Some(&client), &args.what, json).await
        }
    }
}

async fn with_store<S: Store>(
    store: &S,
    client: Option<&kube::Client>,
    what: &What,
    json: bool,
) -> anyhow::Result<()> {
    let objects = Objects::read(store).await?;
    match what {
        What::Pools => show::pools(&objects, json),
        What::Free { pool } => show::free(&objects, pool, json),
        What::Who { whom } => show::who(&objects, whom, json),
        What::Try(trial) => trial::run(store, client, &objects, trial).await,
        What::Release { address, network, yes } => {
            release(store, &objects, *address, network.as_deref(), *yes).await
        }
        What::Import { dry_run } => import::run(store, &objects, *dry_run).await,
    }
}

/// Everything that addresses depend on.
struct Objects {
    checked: Checked,
    pools: Vec<SpiderIPPool>,
    blocks: Vec<AddressBlock>,
}

impl Objects {
    async fn read<S: Store>(store: &S) -> anyhow::Result<Self> {
        let pools: Vec<SpiderIPPool> = store.list(&LabelSelector::default()).await?;
        let catalog = rules::Catalog {
            networks: by_name::<Network>(store.list(&LabelSelector::default()).await?),
            pools: by_name(pools.clone()),
            reserved: by_name::<SpiderReservedIP>(store.list(&LabelSelector::default()).await?),
            subnets: by_name::<SpiderSubnet>(store.list(&LabelSelector::default()).await?),
            // Whoever runs this need not be allowed to read nodes.
            taken: Vec::new(),
        };
        let blocks = store.list(&LabelSelector::default()).await?;
        Ok(Self { checked: Checked::new(&catalog), pools, blocks })
    }

    /// Every record of an address that is held or rests, with its domain.
    fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.blocks
            .iter()
            .flat_map(|b| b.spec.entries.iter().map(move |entry| (b.spec.network.as_str(), entry)))
    }
}

fn by_name<R: Resource>(objects: Vec<R>) -> BTreeMap<String, R> {
    objects.into_iter().map(|object| (object.meta().name.clone(), object)).collect()
}

/// A domain as people write it.
fn shown(domain: &str) -> &str {
    if domain.is_empty() { "-" } else { domain }
}

async fn release<S: Store>(
    store: &S,
    objects: &Objects,
    address: IpAddr,
    network: Option<&str>,
    yes: bool,
) -> anyhow::Result<()> {
    let holds = |(domain, entry): &(&str, &Entry)| {
        entry.address == address
            && entry.state.is_held()
            && network.is_none_or(|network| network == shown(domain))
    };
    let found: Vec<_> = objects.entries().filter(holds).collect();
    let (domain, entry) = match found.as_slice() {
        [] => bail!("nobody holds {address}; see `bowline ipam who {address}`"),
        [one] => *one,
        several => {
            let domains: Vec<_> = several.iter().map(|(domain, _)| shown(domain)).collect();
            bail!("{address} is held in {}; choose by --network", domains.join(", "));
        }
    };
    let holder = entry.owner.as_ref().map(ToString::to_string).unwrap_or_default();
    if !yes {
        bail!("{address} in {} belongs to {holder}; give --yes to take it away", shown(domain));
    }
    let freed = ipam::modify(store, domain, |view| ipam::plan_free_record(view, entry, now_ms()));
    if !freed.await? {
        bail!("the record of {address} has changed since it was read; nothing was done");
    }
    println!("{address} of {holder} in {} is released", shown(domain));
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
