//! The webhooks' certificate is replaced while they answer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{Api, Client};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::common::{Controller, NAMESPACE, SOON, cluster, create, delete, network};

const VALIDITY: Duration = Duration::from_secs(18);

/// Each certificate lives eighteen seconds: after forty-five, two have expired, and a caller that looks at dates
/// still finds a good one.
#[tokio::test(flavor = "multi_thread")]
async fn an_expiring_certificate_is_replaced_while_the_webhooks_answer() {
    let (api, client) = cluster().await;
    let controller = Controller::start(&api, "one", &["--certificate-validity=18s"]).await;
    create(&client, network("first", json!({"vni": 77}))).await.unwrap();
    let (started, mut seen) = (Instant::now(), BTreeSet::new());
    let mut rounds = tokio::time::interval(Duration::from_millis(250));
    while started.elapsed() < VALIDITY * 5 / 2 {
        rounds.tick().await;
        let why = create(&client, network("second", json!({"vni": 77}))).await.expect_err("taken");
        assert!(why.contains("first"), "the webhook's own sentence: {why}");
        seen.insert(served(controller.webhook, &authorities(&client).await).await);
    }
    assert!(seen.len() >= 3, "{} certificates", seen.len());
    controller.stop().await;
}

/// Somebody deletes the Secret. API servers hear of the new authority a moment after it is named, and so long they
/// are shown the old certificate, which they must still trust.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_authority_is_named_before_it_is_served() {
    let (api, client) = cluster().await;
    let controller = Controller::start(&api, "one", &["--certificate-validity=40s"]).await;
    create(&client, network("first", json!({"vni": 77}))).await.unwrap();
    let named_before = bundle(&client).await;
    let served_before = served(controller.webhook, &authorities(&client).await).await;
    delete(&client, &format!("/api/v1/namespaces/{NAMESPACE}/secrets/bowline-webhook"))
        .await
        .unwrap();
    let (mut named, mut rounds) = (None, tokio::time::interval(Duration::from_millis(50)));
    let deadline = Instant::now() + SOON;
    loop {
        rounds.tick().await;
        assert!(Instant::now() < deadline, "no other certificate");
        if named.is_none() && bundle(&client).await != named_before {
            named = Some(Instant::now());
        }
        let why = create(&client, network("second", json!({"vni": 77}))).await.expect_err("taken");
        assert!(why.contains("first"), "the webhook's own sentence: {why}");
        let trusted = authorities(&client).await;
        if served(controller.webhook, &trusted).await != served_before {
            break;
        }
    }
    // It waits for a tenth of the validity, four seconds.
    let ahead = named.expect("named before it is shown").elapsed();
    assert!(ahead > Duration::from_secs(2), "only {ahead:?} after it was named");
    controller.stop().await;
}

/// What the API server is told to trust.
async fn bundle(client: &Client) -> Vec<u8> {
    let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
    let found = api.get("bowline").await.unwrap();
    found.webhooks.unwrap().remove(0).client_config.ca_bundle.unwrap().0
}

async fn authorities(client: &Client) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&bundle(client).await) {
        roots.add(authority.unwrap()).unwrap();
    }
    roots
}

/// The certificate that a caller is shown, who trusts these authorities and looks at names and dates.
async fn served(port: u16, roots: &RootCertStore) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(roots.clone());
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let name = ServerName::from(Ipv4Addr::LOCALHOST);
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let stream = connector.connect(name, stream).await.expect("a certificate that is good now");
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}
