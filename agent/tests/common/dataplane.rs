//! A stand-in for the data plane: it keeps what it is told and forwards nothing. It is as strict as
//! the contract: an interface without descriptors is refused, an older revision as well.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use api::dataplane_server::{Dataplane, DataplaneServer};
use futures::Stream;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept,
    bind, listen, recvmsg, send, socket,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

/// What the stand-in has been told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub networks: HashMap<String, api::Network>,
    pub interfaces: HashMap<String, api::Interface>,
    pub cluster_vteps: Vec<api::Ip>,
    pub local_vteps: Vec<api::Ip>,
    pub revision: u64,
    pub applies: u64,
    /// Descriptors by interface id. Raw: they are closed when the stand-in goes.
    pub descriptors: HashMap<String, Vec<RawFd>>,
    /// Offers by interface id.
    pub offers: HashMap<String, u32>,
    /// Ids that are refused, with the sentence.
    pub refuse: HashMap<String, String>,
}

impl Told {
    /// Another descriptor of an interface's first queue.
    pub(crate) fn queue(&self, id: &str) -> Option<OwnedFd> {
        let fd = *self.descriptors.get(id)?.first()?;
        // SAFETY: what is in the map is open, and is closed only by who has the map.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()
    }
}

type EventSender = mpsc::Sender<Result<api::Event, Status>>;

#[derive(Debug, Clone)]
struct Service {
    told: Arc<Mutex<Told>>,
    boot_id: String,
    vtep: [u8; 4],
    watchers: Arc<Mutex<Vec<EventSender>>>,
}

/// A running stand-in. Dropping it is the data plane's death.
#[derive(Debug)]
pub(crate) struct FakeDataplane {
    pub told: Arc<Mutex<Told>>,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Arc<AtomicBool>,
    fds_socket: PathBuf,
    socket: PathBuf,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakeDataplane {
    /// Starts behind `socket`; the node's tunnel end is `vtep`.
    pub(crate) fn start(socket: &Path, vtep: [u8; 4]) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let mut fds_socket = socket.as_os_str().to_owned();
        fds_socket.push(".fds");
        let fds_socket = PathBuf::from(fds_socket);
        for path in [socket, &fds_socket] {
            let _ = std::fs::remove_file(path);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = serve_descriptors(&fds_socket, told.clone(), stop.clone());
        let service = Service {
            told: told.clone(),
            boot_id: super::unique("boot"),
            vtep,
            watchers: Arc::default(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(
            tonic::transport::Server::builder().serve_with_incoming(
                DataplaneServer::new(service),
                UnixListenerStream::new(listener),
            ),
        );
        Self {
            told,
            runtime: Some(runtime),
            stop,
            fds_socket,
            socket: socket.to_owned(),
            thread: Some(thread),
        }
    }

    pub(crate) fn interface_ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.told.lock().unwrap().interfaces.keys().cloned().collect();
        ids.sort();
        ids
    }
}

impl Drop for FakeDataplane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = connect_once(&self.fds_socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let mut told = self.told.lock().unwrap();
        for fd in told.descriptors.drain().flat_map(|(_, fds)| fds) {
            let _ = nix::unistd::close(fd);
        }
        let _ = std::fs::remove_file(&self.socket);
        let _ = std::fs::remove_file(&self.fds_socket);
    }
}

fn connect_once(path: &Path) -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

fn serve_descriptors(
    path: &Path,
    told: Arc<Mutex<Told>>,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(16).unwrap()).unwrap();
    std::thread::spawn(move || {
        loop {
            let Ok(connection) = accept(listener.as_raw_fd()) else { return };
            if stop.load(Ordering::Relaxed) {
                let _ = nix::unistd::close(connection);
                return;
            }
            while let Some((offer, fds)) = read_offer(connection) {
                let mut told = told.lock().unwrap();
                let error = if fds.len() == offer.count as usize {
                    String::new()
                } else {
                    format!("{} descriptors where {} were announced", fds.len(), offer.count)
                };
                *told.offers.entry(offer.interface_id.clone()).or_default() += 1;
                for old in told.descriptors.insert(offer.interface_id, fds).unwrap_or_default() {
                    let _ = nix::unistd::close(old);
                }
                drop(told);
                let reply = api::DescriptorReply { error }.encode_to_vec();
                let _ = send(connection, &reply, MsgFlags::MSG_NOSIGNAL);
            }
            let _ = nix::unistd::close(connection);
        }
    })
}

fn read_offer(connection: RawFd) -> Option<(api::DescriptorOffer, Vec<RawFd>)> {
    let mut bytes = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 64]);
    let (length, fds) = {
        let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection, &mut slices, Some(&mut space), flags).ok()?;
        let mut fds = Vec::new();
        for control in message.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                fds.extend(rights);
            }
        }
        (message.bytes, fds)
    };
    if length == 0 {
        return None;
    }
    Some((api::DescriptorOffer::decode(&bytes[..length]).ok()?, fds))
}

fn needed(interface: &api::Interface) -> usize {
    match &interface.port {
        Some(api::interface::Port::Tap(tap)) => tap.queues as usize,
        _ => 1,
    }
}

impl Service {
    fn refusal(told: &Told, state: &api::State) -> Option<Status> {
        if state.revision <= told.revision {
            return Some(Status::failed_precondition("the state is older than the one in force"));
        }
        let ids = state.interfaces.iter().map(|i| &i.id);
        for name in state.networks.iter().map(|n| &n.name).chain(ids) {
            if let Some(sentence) = told.refuse.get(name) {
                return Some(Status::invalid_argument(sentence.clone()));
            }
        }
        let offered = |i: &api::Interface| told.descriptors.get(&i.id).map_or(0, Vec::len);
        let bare = state.interfaces.iter().find(|i| offered(i) != needed(i));
        bare.map(|i| Status::invalid_argument(format!("no descriptors for {}", i.id)))
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Dataplane for Service {
    async fn hello(
        &self,
        _: Request<api::HelloRequest>,
    ) -> Result<Response<api::HelloReply>, Status> {
        let [.., last] = self.vtep;
        let uplink = api::Uplink {
            name: "eth0".into(),
            driver: "none".into(),
            mtu: 1500,
            mac: vec![2, 0, 0, 0, 0, last],
            vteps: vec![api::Ip { addr: self.vtep.to_vec() }],
            link_up: true,
            ..api::Uplink::default()
        };
        Ok(Response::new(api::HelloReply {
            version: "0.0.0-test".into(),
            features: ["vxlan", "memif", "tap", "anti-spoofing"].map(str::to_owned).to_vec(),
            boot_id: self.boot_id.clone(),
            router_mac: vec![2, 0xbb, 0, 0, 0, last],
            uplinks: vec![uplink],
            workers: 1,
            state_revision: self.told.lock().unwrap().revision,
        }))
    }

    async fn apply(
        &self,
        request: Request<api::ApplyRequest>,
    ) -> Result<Response<api::ApplyReply>, Status> {
        let request = request.into_inner();
        let state = request.state.unwrap_or_default();
        let mut told = self.told.lock().unwrap();
        if let Some(refusal) = Self::refusal(&told, &state) {
            return Err(refusal);
        }
        told.revision = state.revision;
        told.applies += 1;
        if !request.partial {
            told.networks.clear();
            told.interfaces.clear();
        }
        if !request.partial || !state.cluster_vteps.is_empty() {
            told.cluster_vteps = state.cluster_vteps;
        }
        if !request.partial || !state.local_vteps.is_empty() {
            told.local_vteps = state.local_vteps;
        }
        for name in request.remove_networks {
            told.networks.remove(&name);
        }
        for id in request.remove_interfaces {
            told.interfaces.remove(&id);
            for fd in told.descriptors.remove(&id).unwrap_or_default() {
                let _ = nix::unistd::close(fd);
            }
        }
        told.networks.extend(state.networks.into_iter().map(|n| (n.name.clone(), n)));
        told.interfaces.extend(state.interfaces.into_iter().map(|i| (i.id.clone(), i)));
        let generation = told.applies;
        Ok(Response::new(api::ApplyReply { generation, interfaces: Vec::new() }))
    }

    async fn get_state(
        &self,
        _: Request<api::GetStateRequest>,
    ) -> Result<Response<api::ActualState>, Status> {
        let told = self.told.lock().unwrap();
        let status = |i: &api::Interface| api::InterfaceStatus {
            id: i.id.clone(),
            link: api::interface_status::Link::Up.into(),
            ..api::InterfaceStatus::default()
        };
        Ok(Response::new(api::ActualState {
            desired: Some(api::State {
                revision: told.revision,
                networks: told.networks.values().cloned().collect(),
                interfaces: told.interfaces.values().cloned().collect(),
                ..api::State::default()
            }),
            interfaces: told.interfaces.values().map(status).collect(),
            ..api::ActualState::default()
        }))
    }

    async fn get_counters(
        &self,
        _: Request<api::GetCountersRequest>,
    ) -> Result<Response<api::Counters>, Status> {
        Err(Status::unimplemented("nothing is counted here"))
    }

    async fn get_neighbours(
        &self,
        _: Request<api::GetNeighboursRequest>,
    ) -> Result<Response<api::Neighbours>, Status> {
        Err(Status::unimplemented("nobody is near"))
    }

    async fn get_copy_engines(
        &self,
        _: Request<api::GetCopyEnginesRequest>,
    ) -> Result<Response<api::CopyEngines>, Status> {
        Err(Status::unimplemented("nothing is copied here"))
    }

    type WatchStream = Streamed<api::Event>;

    async fn watch(
        &self,
        _: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        self.watchers.lock().unwrap().push(sender);
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type TraceStream = Streamed<api::TraceRecord>;

    async fn trace(
        &self,
        _: Request<api::TraceRequest>,
    ) -> Result<Response<Self::TraceStream>, Status> {
        Err(Status::unimplemented("nothing passes here"))
    }

    type CaptureStream = Streamed<api::CapturedFrame>;

    async fn capture(
        &self,
        _: Request<api::CaptureRequest>,
    ) -> Result<Response<Self::CaptureStream>, Status> {
        Err(Status::unimplemented("nothing passes here"))
    }
}
