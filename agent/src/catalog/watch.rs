//! Keeps the snapshot up to date: inotify tells when to look, and a look now and then finds what
//! inotify cannot tell (its queue overflowed, the directory is on another machine).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::{Directory, Snapshot};

/// After a change, so long is waited for more of it.
const GATHER: Duration = Duration::from_millis(3);
/// When a file was still being written, the next look follows after this time.
const SETTLE_AGAIN: Duration = Duration::from_millis(40);
/// Without any word from inotify.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The catalog in force, and the store behind it.
#[derive(Debug)]
pub struct Catalog {
    directory: Directory,
    current: watch::Sender<Arc<Snapshot>>,
    /// Looks are made one at a time, so that a later one never publishes older content.
    look: Mutex<()>,
    changed: Notify,
}

impl Catalog {
    /// Reads the directory for the first time.
    pub fn open(directory: Directory) -> io::Result<Arc<Self>> {
        let first = Snapshot::default().next(&directory)?;
        report(&Snapshot::default(), &first);
        let catalog = Self {
            directory,
            current: watch::Sender::new(Arc::new(first)),
            look: Mutex::default(),
            changed: Notify::new(),
        };
        Ok(Arc::new(catalog))
    }

    /// The store.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// What is in force now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    /// Is told each time that something in force changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Looks at the files now, and returns what is in force afterwards. It blocks on files.
    pub fn look(&self) -> io::Result<Arc<Snapshot>> {
        let _one_at_a_time = self.look.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot();
        let next = Arc::new(before.next(&self.directory)?);
        report(&before, &next);
        if before.same_objects(&next) && before.problems() == next.problems() {
            // Stamps may have changed: keep them, without waking anybody.
            self.current.send_if_modified(|current| {
                *current = next.clone();
                false
            });
        } else {
            self.current.send_replace(next.clone());
        }
        Ok(next)
    }

    /// Looks, and looks again until no file is being written, for a moment at most.
    pub fn look_settled(&self) -> io::Result<Arc<Snapshot>> {
        let mut snapshot = self.look()?;
        for _ in 0..5 {
            if !snapshot.unsettled() {
                break;
            }
            std::thread::sleep(SETTLE_AGAIN);
            snapshot = self.look()?;
        }
        Ok(snapshot)
    }

    /// Starts to follow the files. The task ends when the handle is aborted.
    pub fn follow(self: &Arc<Self>) -> notify::Result<JoinHandle<()>> {
        let told = Arc::downgrade(self);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading the files makes events of its own, which would never end.
                let only_read = event.as_ref().is_ok_and(|e| {
                    matches!(e.kind, notify::EventKind::Access(kind)
                    if kind != notify::event::AccessKind::Close(notify::event::AccessMode::Write))
                });
                if let Some(catalog) = told.upgrade().filter(|_| !only_read) {
                    catalog.changed.notify_one();
                }
            })?;
        watcher.watch(self.directory.root(), RecursiveMode::Recursive)?;
        let catalog = self.clone();
        Ok(tokio::spawn(async move {
            let _watcher = watcher; // it stops when it is dropped
            catalog.run().await;
        }))
    }

    async fn run(self: Arc<Self>) {
        let mut pause = GATHER;
        loop {
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(pause) => {}
            }
            let catalog = self.clone();
            let looked = tokio::task::spawn_blocking(move || catalog.look()).await;
            pause = match looked {
                Ok(Ok(snapshot)) if snapshot.unsettled() => SETTLE_AGAIN,
                Ok(Ok(_)) => LOOK_EVERY,
                Ok(Err(e)) => {
                    tracing::error!(
                        "the catalog {} cannot be read: {e}; what is in force stays",
                        self.directory.root().display()
                    );
                    LOOK_EVERY
                }
                Err(e) => {
                    tracing::error!("looking at the catalog failed: {e}");
                    LOOK_EVERY
                }
            };
        }
    }
}

/// Logs problems once, when they appear and when they are gone.
fn report(before: &Snapshot, next: &Snapshot) {
    for problem in next.problems().iter().filter(|p| !before.problems().contains(p)) {
        if problem.refused {
            tracing::error!("{problem}; what was in force before stays in force");
        } else {
            tracing::warn!("{problem}");
        }
    }
    for problem in before.problems().iter().filter(|p| !next.problems().contains(p)) {
        tracing::info!(file = %problem.file.display(), object = problem.object, "mended");
    }
}
