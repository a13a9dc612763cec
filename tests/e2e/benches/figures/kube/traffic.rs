//! What is measured between two pods: requests and responses on one connection, and one stream.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use heddle_lab::Pod;
use nix::libc;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{Shutdown, setsockopt, shutdown};

/// For one sample.
const LONG: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(5);
/// What a request and its response are long; the first byte of a connection says which it is for.
const REQUEST: usize = 64;
const BLOCK: usize = 128 << 10;
const ECHO: u8 = b'e';
const SINK: u8 = b's';

fn connect(to: SocketAddr, kind: u8) -> Result<TcpStream> {
    let mut stream =
        TcpStream::connect_timeout(&to, LIMIT).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// Requests answered a second, on one connection, one after the other.
pub fn requests(to: SocketAddr) -> Result<f64> {
    let mut stream = connect(to, ECHO)?;
    let mut block = [0; REQUEST];
    let start = Instant::now();
    let mut count = 0u32;
    while start.elapsed() < LONG {
        for _ in 0..16 {
            stream.write_all(&block)?;
            stream.read_exact(&mut block).with_context(|| format!("{to} does not answer"))?;
        }
        count += 16;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// Bytes a second of one stream, from the first that the server has read to the last.
pub fn stream(to: SocketAddr) -> Result<f64> {
    let mut stream = connect(to, SINK)?;
    let block = vec![0; BLOCK];
    let start = Instant::now();
    let mut sent = 0u64;
    while start.elapsed() < LONG {
        stream.write_all(&block)?;
        sent += BLOCK as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // The server tells that it has read all.
    stream.read_exact(&mut [0]).with_context(|| format!("{to} does not end"))?;
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

/// Echoes or swallows in a pod, until it is dropped.
pub struct Peer {
    listener: TcpListener,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Peer {
    pub fn start(pod: &Pod, port: u16) -> Result<Self> {
        let listener = pod.enter(|| TcpListener::bind(("::", port)))?.context("cannot listen in the pod")?;
        let accepting = listener.try_clone()?;
        // Ends with the first error: the listener's being shut down.
        let thread = pod.thread("peer", move || {
            while let Ok((stream, _)) = accepting.accept() {
                // A client that has gone ends its connection, not the server.
                let _ = serve(stream);
            }
        })?;
        Ok(Self { listener, thread: Some(thread) })
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    let mut block = vec![0; BLOCK];
    loop {
        let read = stream.read(&mut block)?;
        if read == 0 {
            return stream.write_all(&kind);
        }
        if kind[0] == ECHO {
            stream.write_all(&block[..read])?;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
