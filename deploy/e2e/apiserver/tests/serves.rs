//! The server that other crates' tests rely on.

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use testapi::{TestApi, User};

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_and_tells_users_apart() {
    let mut api = TestApi::start(&[User::named("nobody")]).await;
    api.install_crds().await;
    let namespaces = Api::<Namespace>::all(api.client("admin").await);
    assert!(namespaces.get("default").await.is_ok());
    let forbidden = Api::<Namespace>::all(api.client("nobody").await);
    let error = forbidden.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{error}");
    api.kill_server();
    assert!(namespaces.get("default").await.is_err());
    api.start_server().await;
    let again = Api::<Namespace>::all(api.client("admin").await);
    assert!(again.get("default").await.is_ok(), "etcd kept everything");
}
