//! The API's server: turns calls into [`Ask`]s and hands the answers back.

use std::pin::Pin;
use std::task::{Context, Poll};

use api::dataplane_server::{Dataplane, DataplaneServer};
use futures::Stream;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use super::Ask;
use super::observing::{Started, Wanted};
use crate::observe::Record;

/// Bytes of a traced head that are sent; also of a captured frame unless the caller says more.
const SNAP_BYTES: usize = 256;
/// A state of 1,000 networks with 1,000 routes each fits.
const MESSAGE_BYTES: usize = 256 << 20;

/// Serves until the runtime ends.
pub async fn serve(
    listener: UnixListener,
    ask: mpsc::Sender<Ask>,
) -> Result<(), tonic::transport::Error> {
    let service = DataplaneServer::new(Api { ask })
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
}

#[derive(Debug, Clone)]
struct Api {
    ask: mpsc::Sender<Ask>,
}

impl Api {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Status> {
        let gone = || Status::unavailable("the data plane is stopping");
        let (reply, answer) = oneshot::channel();
        self.ask.send(ask(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Dataplane for Api {
    async fn hello(&self, request: Request<api::HelloRequest>) -> Answer<api::HelloReply> {
        self.ask(|reply| Ask::Hello(request.into_inner(), reply)).await?.map(Response::new)
    }

    async fn apply(&self, request: Request<api::ApplyRequest>) -> Answer<api::ApplyReply> {
        let request = Box::new(request.into_inner());
        self.ask(|reply| Ask::Apply(request, reply)).await?.map(Response::new)
    }

    async fn get_state(&self, _: Request<api::GetStateRequest>) -> Answer<api::ActualState> {
        Ok(Response::new(self.ask(Ask::State).await?))
    }

    async fn get_counters(&self, _: Request<api::GetCountersRequest>) -> Answer<api::Counters> {
        Ok(Response::new(self.ask(Ask::Counters).await?))
    }

    async fn get_neighbours(
        &self,
        _: Request<api::GetNeighboursRequest>,
    ) -> Answer<api::Neighbours> {
        Ok(Response::new(self.ask(Ask::Neighbours).await?))
    }

    async fn get_copy_engines(
        &self,
        _: Request<api::GetCopyEnginesRequest>,
    ) -> Answer<api::CopyEngines> {
        Ok(Response::new(self.ask(Ask::CopyEngines).await?))
    }

    type WatchStream = Streamed<api::Event>;

    async fn watch(&self, _: Request<api::WatchRequest>) -> Answer<Self::WatchStream> {
        let events: broadcast::Receiver<_> = self.ask(Ask::Watch).await?;
        let stream = futures::StreamExt::map(BroadcastStream::new(events), |event| {
            event.map_err(|lagged| {
                Status::data_loss(format!("{lagged}: events were missed; read the state again"))
            })
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type TraceStream = Streamed<api::TraceRecord>;

    async fn trace(&self, request: Request<api::TraceRequest>) -> Answer<Self::TraceStream> {
        let request = request.into_inner();
        let wanted = Wanted {
            filter: request.filter.unwrap_or_default(),
            count: if request.count == 0 { 16 } else { request.count },
            trace: true,
            snap_bytes: SNAP_BYTES,
        };
        let started = self.ask(|reply| Ask::Observe(wanted, reply)).await??;
        Ok(Response::new(Box::pin(Records::new(self.ask.clone(), started, traced))))
    }

    type CaptureStream = Streamed<api::CapturedFrame>;

    async fn capture(&self, request: Request<api::CaptureRequest>) -> Answer<Self::CaptureStream> {
        let request = request.into_inner();
        let snap = request.snap_bytes as usize;
        let wanted = Wanted {
            filter: request.filter.unwrap_or_default(),
            count: request.count,
            trace: false,
            snap_bytes: if snap == 0 { SNAP_BYTES } else { snap },
        };
        let started = self.ask(|reply| Ask::Observe(wanted, reply)).await??;
        Ok(Response::new(Box::pin(Records::new(self.ask.clone(), started, captured))))
    }
}

fn traced(record: Record) -> api::TraceRecord {
    let step = |(stage, note): (crate::path::Stage, String)| api::TraceStep {
        stage: stage.name().into(),
        note,
    };
    api::TraceRecord {
        time_ns: record.time_ns,
        interface_id: record.iface.into(),
        head: record.head,
        length_bytes: record.length_bytes,
        steps: record.steps.into_iter().map(step).collect(),
        verdict: record.verdict,
    }
}

fn captured(record: Record) -> api::CapturedFrame {
    api::CapturedFrame {
        time_ns: record.time_ns,
        interface_id: record.iface.into(),
        outbound: record.outbound,
        length_bytes: record.length_bytes,
        data: record.head,
    }
}

/// A session's records as a stream; the session ends with it.
struct Records<T> {
    ask: mpsc::Sender<Ask>,
    started: Started,
    given: u32,
    convert: fn(Record) -> T,
}

impl<T> Records<T> {
    fn new(ask: mpsc::Sender<Ask>, started: Started, convert: fn(Record) -> T) -> Self {
        Self { ask, started, given: 0, convert }
    }
}

impl<T> Stream for Records<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.started.count != 0 && self.given == self.started.count {
            return Poll::Ready(None);
        }
        let record = std::task::ready!(self.started.records.poll_recv(cx));
        self.given = self.given.wrapping_add(1);
        let convert = self.convert;
        Poll::Ready(record.map(|record| Ok(convert(record))))
    }
}

impl<T> Drop for Records<T> {
    fn drop(&mut self) {
        let (ask, id) = (self.ask.clone(), self.started.id);
        // The control thread may be busy: a task waits for it. Without a runtime the process ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = ask.send(Ask::Unobserve(id)).await;
            });
        }
    }
}
