//! TLS connections with the certificate in force.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::Material;

/// Whoever does not finish the handshake by then is no API server.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Connections that wait to be served.
const WAITING: usize = 64;

/// The certificate that new connections get. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Current {
    key: Arc<ArcSwapOption<CertifiedKey>>,
}

impl Current {
    /// Takes a certificate into use.
    ///
    /// # Errors
    /// What is wrong with it; the one before stays.
    pub fn set(&self, material: &Material) -> Result<(), String> {
        let chain = CertificateDer::pem_slice_iter(material.certificate.as_bytes());
        let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|e| format!("tls.crt: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(material.key.as_bytes())
            .map_err(|e| format!("tls.key: {e}"))?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|e| e.to_string())?;
        self.key.store(Some(Arc::new(key)));
        Ok(())
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.key.load().is_some()
    }

    fn acceptor(&self) -> Result<TlsAcceptor, rustls::Error> {
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key.load_full()
    }
}

/// Accepts connections; handshakes run beside each other, so that a silent peer holds nobody up.
#[derive(Debug)]
pub struct Listener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Listener {
    /// Starts accepting.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the socket has no address.
    pub fn start(socket: TcpListener, current: &Current) -> anyhow::Result<Listener> {
        let acceptor = current.acceptor()?;
        let address = socket.local_addr()?;
        let (done, ready) = mpsc::channel(WAITING);
        tokio::spawn(accept(socket, acceptor, done));
        Ok(Listener { ready, address })
    }
}

async fn accept(
    socket: TcpListener,
    acceptor: TlsAcceptor,
    done: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = done.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others close theirs soon.
                tracing::warn!("a connection to the webhooks was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, done) = (acceptor.clone(), done.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                // Nobody to serve it any more: the daemon stops.
                Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!("TLS with {peer} failed: {error}"),
                Err(_) => tracing::debug!("TLS with {peer} took too long"),
            }
        });
    }
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The accepting task ends only after this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}
