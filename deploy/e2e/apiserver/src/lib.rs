//! A real etcd and a real API server for tests: on free ports of the loopback interface, with
//! temporary directories, ready in a few seconds, gone when the test is.
//!
//! ```no_run
//! # async fn example() {
//! let api = testapi::TestApi::start(&[testapi::User::admin()]).await;
//! api.install_crds().await;
//! let client = api.client("admin").await;
//! # }
//! ```
//!
//! The programs come from `$BOWLINE_KUBE_CACHE/bin`, which `deploy/e2e/build.sh` fills. Every panic
//! here is a test's failure, with a sentence that says what to do.
#![forbid(unsafe_code)]

mod crds;
mod history;
mod process;
mod proxy;

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tempfile::TempDir;

use process::Process;

pub use history::History;
pub use proxy::{Loss, LossyProxy};

/// A busy machine with two cores takes a third of this.
const READY_WITHIN: Duration = Duration::from_secs(90);
/// Between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Somebody whom the API server knows by a bearer token.
#[derive(Clone, Debug)]
pub struct User {
    /// As RBAC knows it; the token is derived from it.
    pub name: String,
    /// Its groups.
    pub groups: Vec<String>,
}

impl User {
    /// `admin`, who may do everything.
    #[must_use]
    pub fn admin() -> Self {
        Self { name: "admin".into(), groups: vec!["system:masters".into()] }
    }

    /// Somebody who may do only what RBAC objects grant.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), groups: Vec::new() }
    }

    fn token(name: &str) -> String {
        format!("token-of-{}", name.replace(':', "-"))
    }
}

/// How etcd treats its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// Writes are acknowledged before they are on the disk: tests do not pull the plug.
    #[default]
    Off,
    /// As in production.
    On,
}

/// A running API server with its etcd. Both end when it is dropped, and when the test's process dies.
#[derive(Debug)]
pub struct TestApi {
    // Dropped in this order: the server before its database, both before their files.
    server: Option<Process>,
    etcd: Process,
    dir: TempDir,
    port: u16,
    etcd_port: u16,
}

impl TestApi {
    /// Starts both and waits until they serve. `users` need not name `admin`, who is always there.
    ///
    /// # Panics
    /// When the programs are missing or do not become ready.
    pub async fn start(users: &[User]) -> Self {
        Self::start_with(users, Fsync::Off).await
    }

    /// The same, with a say in how etcd treats its disk.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(users: &[User], fsync: Fsync) -> Self {
        let dir = TempDir::with_prefix("bowline-testapi-").expect("a temporary directory");
        write_certificates(dir.path());
        write_tokens(dir.path(), users);
        let (port, etcd_port) = (free_port(), free_port());
        let etcd = start_etcd(dir.path(), etcd_port, fsync);
        let mut api = Self { server: None, etcd, dir, port, etcd_port };
        api.write_kubeconfigs(users);
        api.start_server().await;
        api
    }

    /// Starts the API server (again) and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub async fn start_server(&mut self) {
        self.server = Some(start_server(self.dir.path(), self.port, self.etcd_port));
        let client = self.client("admin").await;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            if client.request_text(request).await.is_ok_and(|text| text == "ok") {
                return;
            }
            let server = self.server.as_mut().expect("just started");
            let ended = [&mut self.etcd, server].into_iter().find_map(Process::ended);
            let late = Instant::now() > deadline;
            assert!(ended.is_none() && !late, "the API server is not ready: {ended:?} {self:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Kills the API server; etcd stays.
    pub fn kill_server(&mut self) {
        self.server = None;
    }

    /// A kubeconfig of the user, for programs.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.path().join(format!("{}.kubeconfig", file_name(user)))
    }

    /// How to reach the server as the user.
    ///
    /// # Panics
    /// When the user was not named at the start.
    pub async fn config(&self, user: &str) -> Config {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(user)).expect("a known user");
        let options = KubeConfigOptions::default();
        Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("our own kubeconfig")
    }

    /// A client of its own connection and token.
    ///
    /// # Panics
    /// When the user was not named at the start.
    pub async fn client(&self, user: &str) -> Client {
        Client::try_from(self.config(user).await).expect("our own configuration")
    }

    /// Installs the resource definitions of `deploy/crds` and waits until they are served.
    ///
    /// # Panics
    /// When the server refuses one.
    pub async fn install_crds(&self) {
        crds::install(&self.client("admin").await).await;
    }

    fn write_kubeconfigs(&self, users: &[User]) {
        for name in users.iter().map(|u| u.name.as_str()).chain(["admin"]) {
            let config = serde_json::json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{"name": "test", "cluster": {
                    "server": format!("https://127.0.0.1:{}", self.port),
                    "certificate-authority": self.dir.path().join("server.crt"),
                }}],
                "users": [{"name": "user", "user": {"token": User::token(name)}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
            });
            fs::write(self.kubeconfig(name), config.to_string()).expect("write a kubeconfig");
        }
    }
}

fn file_name(user: &str) -> String {
    user.replace([':', '/'], "-")
}

/// A port that nobody uses at the moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A certificate of the server, which is its own authority, and the key of service accounts' tokens.
fn write_certificates(dir: &Path) {
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let serving = rcgen::generate_simple_self_signed(names).expect("a certificate");
    let accounts = rcgen::KeyPair::generate().expect("a key");
    for (file, pem) in [
        ("server.crt", serving.cert.pem()),
        ("server.key", serving.signing_key.serialize_pem()),
        ("accounts.key", accounts.serialize_pem()),
        ("accounts.pub", accounts.public_key_pem()),
    ] {
        fs::write(dir.join(file), pem).expect("write a key");
    }
}

fn write_tokens(dir: &Path, users: &[User]) {
    let mut lines = String::new();
    let admin = User::admin();
    for (n, user) in users.iter().filter(|u| u.name != admin.name).chain([&admin]).enumerate() {
        let groups = user.groups.join(",");
        let _ = writeln!(lines, "{},{},{n},\"{groups}\"", User::token(&user.name), user.name);
    }
    fs::write(dir.join("tokens.csv"), lines).expect("write the tokens");
}

fn start_etcd(dir: &Path, port: u16, fsync: Fsync) -> Process {
    let (client, peer) =
        (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    let mut args = vec![
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--log-level=warn".to_owned(),
    ];
    if fsync == Fsync::Off {
        args.push("--unsafe-no-fsync".to_owned());
    }
    Process::start("etcd", &args, dir)
}

fn start_server(dir: &Path, port: u16, etcd_port: u16) -> Process {
    let file = |name: &str| dir.join(name).display().to_string();
    let args = [
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={port}"),
        format!("--cert-dir={}", file("certs")),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
    ];
    Process::start("kube-apiserver", &args, dir)
}
