//! The byte stream of a connection: TCP, TLS over it, or a Unix socket.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_openssl::SslStream;

use crate::command::clients::Address;

/// How long the last message of TLS may take to be sent.
const CLOSING: Duration = Duration::from_millis(500);

pub enum Stream {
    Plain(TcpStream),
    Unix(UnixStream, Arc<str>),
    Tls(Box<SslStream<TcpStream>>),
}

impl Stream {
    /// The client's address, and this end's. Both ends of a Unix socket have its path, as in Redis.
    pub fn addresses(&self) -> (Option<Address>, Option<Address>) {
        let of = |tcp: &TcpStream| {
            let ends = [tcp.peer_addr(), tcp.local_addr()];
            let [peer, local] = ends.map(|end| end.ok().map(Address::Tcp));
            (peer, local)
        };
        match self {
            Stream::Plain(tcp) => of(tcp),
            Stream::Tls(tls) => of(tls.get_ref()),
            Stream::Unix(_, path) => (Some(Address::Unix(path.clone())), Some(Address::Unix(path.clone()))),
        }
    }

    /// The socket below. What is read or written there is not what the client means.
    pub fn socket(&self) -> SockRef<'_> {
        match self {
            Stream::Plain(stream) => SockRef::from(stream),
            Stream::Unix(stream, _) => SockRef::from(stream),
            Stream::Tls(stream) => SockRef::from(stream.get_ref()),
        }
    }

    /// Waits until the socket has something to read: whether the client will send no more.
    pub async fn is_read_closed(&self) -> bool {
        let ready = match self {
            Stream::Plain(stream) => stream.ready(Interest::READABLE).await,
            Stream::Unix(stream, _) => stream.ready(Interest::READABLE).await,
            Stream::Tls(stream) => stream.get_ref().ready(Interest::READABLE).await,
        };
        ready.is_ok_and(|ready| ready.is_read_closed())
    }

    /// Tells a client of TLS that the connection ends here and was not cut off.
    pub async fn close(&mut self) {
        if let Stream::Tls(stream) = self {
            let _ = tokio::time::timeout(CLOSING, stream.shutdown()).await;
        }
    }

    /// Writes what can be written at once, or fails with `WouldBlock`. Who waits for room after
    /// that has to poll again.
    #[inline]
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.try_write(bytes),
            Stream::Unix(stream, _) => stream.try_write(bytes),
            Stream::Tls(stream) => {
                let mut nobody = Context::from_waker(Waker::noop());
                match Pin::new(&mut **stream).poll_write(&mut nobody, bytes) {
                    Poll::Ready(written) => written,
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Unix(stream, _) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(stream, _) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        }
    }

    /// hyper writes the head and the body of a frame at once where it can.
    fn is_write_vectored(&self) -> bool {
        !matches!(self, Stream::Tls(_))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Stream::Unix(stream, _) => Pin::new(stream).poll_write_vectored(context, parts),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(context, parts),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Unix(stream, _) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Unix(stream, _) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        }
    }
}
