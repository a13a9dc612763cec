use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Hello;

impl Site for Hello {
    async fn answer(&self, path: &str) -> Answer {
        match path {
            "/hello" => Answer::json(StatusCode::OK, "{}".into()),
            _ => Answer::not_found(),
        }
    }
}

async fn start() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (at, tokio::spawn(serve(listener, Arc::new(Hello))))
}

/// What comes back until the server closes.
async fn say(at: SocketAddr, words: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_client_is_answered_once_and_the_connection_ends() {
    runtime().block_on(async {
        let (at, _task) = start().await;
        let answer = say(at, "GET /hello?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").await.to_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok\r\n") && answer.ends_with("\r\n\r\n{}"), "{answer}");
        for header in ["application/json", "nosniff", "connection: close", "content-length: 2"] {
            assert!(answer.contains(header), "{header}: {answer}");
        }
        let head = say(at, "HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(say(at, "GET / HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 404"));
        let post = say(at, "POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
        assert!(say(at, "nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
        assert!(!say(at, &long).await.starts_with("HTTP/1.1 200"));
    });
}

/// More clients than there is room for, all of them silent: whoever asks is answered at once all the same.
#[test]
fn silent_clients_keep_nobody_out() {
    runtime().block_on(async {
        let (at, _task) = start().await;
        let mut silent = Vec::new();
        for _ in 0..4 * MOST {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"GET /hel").await.unwrap();
            silent.push(stream);
        }
        let start = Instant::now();
        let answer = say(at, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(start.elapsed() < LIMIT / 2, "after {:?}", start.elapsed());
        // The first of them was let go.
        let mut byte = [0];
        assert_eq!(silent[0].read(&mut byte).await.unwrap_or(0), 0);
    });
}

#[test]
fn a_port_in_use_is_told_and_taken_when_it_is_free() {
    runtime().block_on(async {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = holder.local_addr().unwrap();
        let (tell, mut told) = tokio::sync::watch::channel(None);
        let server = tokio::spawn(async move {
            listen(at, "name another", Arc::new(Hello), |trouble| drop(tell.send_replace(trouble))).await;
        });
        let what = told.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(what, Some(format!("cannot listen on {at}: another program does (name another)")));
        drop(holder);
        told.wait_for(Option::is_none).await.unwrap();
        assert!(say(at, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        server.abort();
        let closed = async { while TcpStream::connect(at).await.is_ok() {} };
        timeout(LIMIT, closed).await.unwrap();
    });
}

#[test]
fn where_to_listen_is_an_address_or_off() {
    assert_eq!("off".parse(), Ok(Listen(None)));
    for text in ["127.0.0.1:10249", "[::1]:1", "off"] {
        assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
    }
    for wrong in ["", "10249", ":10249", "localhost:1"] {
        assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
    }
}
