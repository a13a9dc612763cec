//! What runs in containers:
//! - `inmate` waits for ever;
//! - `inmate PORT NAME` answers, as the servers of the Lab do and over both families, each line that a TCP client sends
//!   and each datagram with `NAME CLIENT` and what it was sent;
//! - `inmate ask tcp|udp ADDRESS COUNT` asks so often, over a connection each, and prints a line for each answer:
//!   `NAME CLIENT`, or `-` and what the kernel says;
//! - `inmate load tcp|udp ADDRESS RATE` asks so often a second, for ever: a line `-` and what the kernel says for each
//!   question without an answer, now and then a line `= COUNT` of all that were answered;
//! - `inmate resolve NAME` prints its addresses, as the container's resolv.conf has them found.
//!
//! The standard library alone, because build.rs compiles it by itself. As the first process of its pid namespace
//! it takes no signal but SIGKILL, which is what ends containers of no grace period; it has no children to reap.
#![forbid(unsafe_code)]

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(2);

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["ask", proto, to, count] => {
            let to = to.parse().map_err(io::Error::other)?;
            for _ in 0..count.parse().map_err(io::Error::other)? {
                match ask(proto, to) {
                    Ok(answer) => println!("{answer}"),
                    Err(e) => println!("- {e}"),
                }
            }
            Ok(())
        }
        ["load", proto, to, rate] => {
            let to = to.parse().map_err(io::Error::other)?;
            load(proto, to, Duration::from_secs(1) / rate.parse().map_err(io::Error::other)?)
        }
        ["resolve", name] => {
            for found in (name, 0).to_socket_addrs()? {
                println!("{}", found.ip());
            }
            Ok(())
        }
        [port, name] => listen(port.parse().map_err(io::Error::other)?, name),
        _ => loop {
            thread::park();
        },
    }
}

fn ask(proto: &str, to: SocketAddr) -> io::Result<String> {
    let answer = if proto == "udp" { ask_udp(to) } else { ask_tcp(to) }?;
    let answer = answer.trim_end();
    if answer.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer.to_owned()) }
}

#[expect(clippy::disallowed_methods, reason = "so many questions a second")]
fn load(proto: &str, to: SocketAddr, pause: Duration) -> io::Result<()> {
    let mut answered = 0u64;
    loop {
        let next = Instant::now() + pause;
        match ask(proto, to) {
            Ok(_) => answered += 1,
            Err(e) => println!("- {e}"),
        }
        if answered.is_multiple_of(20) {
            println!("= {answered}");
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn ask_tcp(to: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}

fn ask_udp(to: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send_to(b"\n", to)?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from != to {
        return Err(io::Error::other(format!("{from} answered")));
    }
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn listen(port: u16, name: &str) -> io::Result<()> {
    // Take IPv4, too: net.ipv6.bindv6only is 0.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let own = name.to_owned();
    thread::spawn(move || datagrams(&socket, &own));
    loop {
        let (stream, client) = listener.accept()?;
        let name = name.to_owned();
        thread::spawn(move || drop(serve(&stream, client, &name)));
    }
}

fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

fn serve(stream: &TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    let client = canonical(client);
    for line in BufReader::new(stream).lines() {
        let answer = format!("{name} {client} {}\n", line?);
        let mut writer = stream;
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 65536];
    loop {
        // An error is the ICMP answer to an earlier reply; reading it has cleared it.
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let head = format!("{name} {} ", canonical(client));
        let _ = socket.send_to(&[head.as_bytes(), &buffer[..length]].concat(), client);
    }
}
