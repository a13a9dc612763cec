//! A client of the CRI, as kubelet is one: unary gRPC calls over a Unix socket.

pub mod proto;

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// What kubelet waits for the answer to a call that starts or stops a pod (`runtimeRequestTimeout`).
const LIMIT: Duration = Duration::from_secs(120);

/// A connection to a runtime. Calls are made from as many threads as one likes.
#[derive(Debug)]
pub struct Cri {
    /// First, so that what it drives is dropped while the runtime still stands.
    sender: SendRequest<Bytes>,
    runtime: Runtime,
}

impl Cri {
    /// Connects to the socket of a runtime that serves already.
    ///
    /// # Errors
    /// The kernel's, or that of the protocol.
    pub fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| Error::new("start the client's threads", e))?;
        let what = || format!("connect to {}", socket.display());
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.map_err(|e| Error::new(what(), e))?;
            let (sender, connection) =
                h2::client::handshake(stream).await.map_err(|e| Error::new(what(), e))?;
            // Drives the connection until either side has closed it.
            tokio::spawn(connection);
            Ok::<_, Error>(sender)
        })?;
        Ok(Self { sender, runtime })
    }

    /// Calls a method of `runtime.v1.RuntimeService` and waits for the answer.
    ///
    /// # Errors
    /// [`Error::Status`] with the words of the runtime; another one when the connection broke.
    pub fn call<A: Message + Default>(&self, method: &'static str, request: &impl Message) -> Result<A> {
        let limited = async {
            timeout(LIMIT, self.unary(method, request))
                .await
                .unwrap_or_else(|_| Err(Error::new(method, format!("no answer within {LIMIT:?}"))))
        };
        self.runtime.block_on(limited)
    }

    async fn unary<A: Message + Default>(&self, method: &'static str, request: &impl Message) -> Result<A> {
        let broken = |e: h2::Error| Error::new(method, e);
        let head = http::Request::post(format!("http://runtime/runtime.v1.RuntimeService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|e| Error::new(method, e))?;
        let mut sender = self.sender.clone().ready().await.map_err(broken)?;
        let (response, mut body) = sender.send_request(head, false).map_err(broken)?;
        body.send_data(frame(request), true).map_err(broken)?;

        let (head, mut body) = response.await.map_err(broken)?.into_parts();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(broken)?;
            body.flow_control().release_capacity(chunk.len()).map_err(broken)?;
            answer.extend_from_slice(&chunk);
        }
        // An error without an answer has its status in the head.
        let trailers = body.trailers().await.map_err(broken)?.unwrap_or(head.headers);
        let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text("grpc-status") {
            "0" => {}
            code => {
                let code = code.parse().unwrap_or(-1);
                return Err(Error::Status { method, code, message: text("grpc-message").to_owned() });
            }
        }
        // One message: a byte that says whether it is compressed, four of length.
        let message = answer.get(5..).ok_or_else(|| Error::new(method, "the answer is too short"))?;
        A::decode(message).map_err(|e| Error::new(method, e))
    }
}

/// A message as gRPC frames it.
fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("a request is small"));
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}
