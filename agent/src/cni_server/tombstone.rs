//! DELs that came while the agent was away: the plugin leaves them as files, and they are served
//! before the next ADD and at the start.

use std::path::PathBuf;

use cni::rpc::{CallMode, Command};

use super::server::{CniServer, pod_failure};
use super::{coordinator, lan, remove};
use crate::journal::AttachmentKey;

/// Serves what lies there. A file that is no request is set aside.
pub(super) async fn replay(server: &CniServer) {
    let state_dir = server.settings.tombstone_dir.clone();
    let read = server.blocking(move || cni::tombstone::read_all(&state_dir)).await;
    let found = match read {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => {
            tracing::error!("tombstones cannot be read: {e}");
            return;
        }
        Err(e) => {
            tracing::error!("tombstones cannot be read: {e}");
            return;
        }
    };
    for (path, request) in found {
        match request {
            Ok(request) if request.command == Command::Del => {
                let key = AttachmentKey {
                    container_id: request.container_id.clone(),
                    ifname: request.ifname.clone(),
                };
                if key.is_valid() {
                    tracing::info!(attachment = %key, "served a DEL that came while we were away");
                    let _lock = server.lock(&key.container_id).await;
                    match request.mode {
                        CallMode::Interface => remove::del(server, &key).await,
                        CallMode::Ipam => {
                            if let Err(e) = lan::release(server, &request, &key).await {
                                tracing::warn!(attachment = %key, "released later: {e}");
                                continue;
                            }
                        }
                        CallMode::Coordinator => {
                            let done =
                                coordinator::del(&request, &key).map_err(|e| pod_failure(&e));
                            if let Err(e) = done.and(coordinator::follow::forget(server, &key)) {
                                tracing::warn!(attachment = %key, "removed later: {}", e.msg);
                                continue;
                            }
                        }
                        CallMode::Ifacer => {} // leaves no DEL
                    }
                }
                remove_file(&path);
            }
            Ok(_) => remove_file(&path),
            Err(e) => {
                tracing::error!("{} is no request ({e}); set aside", path.display());
                let aside = path.with_extension("bad");
                if let Err(e) = std::fs::rename(&path, aside) {
                    tracing::error!("{} cannot be renamed: {e}", path.display());
                }
            }
        }
    }
}

fn remove_file(path: &PathBuf) {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!("{} cannot be removed: {e}", path.display());
        }
        _ => {}
    }
}
