//! What runs in containers: `inmate` waits for ever; `inmate PORT NAME` answers each line that a TCP client sends
//! with `NAME CLIENT line`, as the servers of the Lab do, over both families.
//!
//! The standard library alone, because build.rs compiles it by itself. As the first process of its pid namespace
//! it takes no signal but SIGKILL, which is what ends containers of no grace period; it has no children to reap.
#![forbid(unsafe_code)]

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let (Some(port), Some(name)) = (args.next(), args.next()) else {
        loop {
            thread::park();
        }
    };
    let port = port.parse().map_err(io::Error::other)?;
    // Takes IPv4, too: net.ipv6.bindv6only is 0.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    loop {
        let (stream, client) = listener.accept()?;
        let name = name.clone();
        thread::spawn(move || drop(serve(&stream, client, &name)));
    }
}

fn serve(stream: &TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    for line in BufReader::new(stream).lines() {
        let answer = format!("{name} {client} {}\n", line?);
        let mut writer = stream;
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}
