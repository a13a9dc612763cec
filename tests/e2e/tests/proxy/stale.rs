//! What holds on to a backend that is gone, with real sockets.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use heddle_lab::traffic::{connect, datagram_socket};
use heddle_lab::{
    Cmd, Condition, Error, Place, Process, Result, await_ready, bin, eventually, patient, shipped,
};

use crate::world::{SOLO, World, status, strict};

const LIMIT: Duration = Duration::from_secs(10);

/// The helper, on a node, with no more rights than it is shipped with.
pub fn helper(world: &World, node: usize) -> Result<Process> {
    let node = world.cluster.node(node);
    let program = "proxyd-sockets";
    let process = node.spawn(Cmd::new(bin(program)).capabilities(shipped(program)))?;
    await_ready(node, &process, "proxyd-sockets")?;
    Ok(process)
}

fn failed(what: &str) -> impl Fn(io::Error) -> Error {
    move |error| Error::Oracle(format!("{what}: {error}"))
}

/// A client of one server that says who answers.
#[derive(Debug)]
pub enum Talk {
    Stream(TcpStream),
    /// Connected.
    Datagrams(UdpSocket),
    /// Not connected.
    Letters(UdpSocket, SocketAddr),
}

impl Talk {
    pub fn stream(place: &Place, to: SocketAddr) -> Result<Self> {
        let stream = place.enter(|| connect(to, None, patient(LIMIT)))?.map_err(failed("connect"))?;
        Ok(Self::Stream(stream))
    }

    pub fn datagrams(place: &Place, to: SocketAddr) -> Result<Self> {
        let open = || {
            let socket = datagram_socket(to, None, patient(LIMIT))?;
            socket.connect(to).map(|()| socket)
        };
        Ok(Self::Datagrams(place.enter(open)?.map_err(failed("connect"))?))
    }

    pub fn letters(place: &Place, to: SocketAddr) -> Result<Self> {
        let socket = place.enter(|| datagram_socket(to, None, patient(LIMIT)))?;
        Ok(Self::Letters(socket.map_err(failed("open"))?, to))
    }

    /// Who answers a question.
    pub fn ask(&self, place: &Place) -> Result<io::Result<String>> {
        place.enter(|| {
            let mut buffer = [0; 512];
            let text = match self {
                Self::Stream(stream) => {
                    (&*stream).write_all(b"ask\n")?;
                    return self.wait();
                }
                Self::Datagrams(socket) => {
                    socket.send(b"ask")?;
                    return self.wait();
                }
                Self::Letters(socket, to) => {
                    socket.send_to(b"ask", to)?;
                    let (length, from) = socket.recv_from(&mut buffer)?;
                    if from != *to {
                        return Err(io::Error::other(format!("an answer of {from}, not of {to}")));
                    }
                    &buffer[..length]
                }
            };
            Ok(server(text))
        })
    }

    /// Waits without a question: for an answer, or the end.
    pub fn wait(&self) -> io::Result<String> {
        let mut buffer = [0; 512];
        match self {
            Self::Stream(stream) => {
                let mut line = String::new();
                match BufReader::new(stream).read_line(&mut line)? {
                    0 => Err(ErrorKind::UnexpectedEof.into()),
                    _ => Ok(server(line.as_bytes())),
                }
            }
            Self::Datagrams(socket) | Self::Letters(socket, _) => {
                let length = socket.recv(&mut buffer)?;
                Ok(server(&buffer[..length]))
            }
        }
    }

    #[track_caller]
    pub fn assert_by(&self, place: &Place, name: &str) -> Result<()> {
        let who = self.ask(place)?.map_err(failed(&format!("{self:?}")))?;
        assert_eq!(who, name, "{self:?}");
        Ok(())
    }

    /// The kernel ended it, without a question.
    #[track_caller]
    pub fn assert_ended(&self) {
        let error = self.wait().expect_err("its backend is gone");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{self:?}: {error}");
    }
}

fn server(text: &[u8]) -> String {
    String::from_utf8_lossy(text).split(' ').next().unwrap_or_default().to_owned()
}

/// Sockets of a pod and of the node itself whose backend is removed are ended, in their own namespace; those that go
/// to the same pod by its own address are not, and one that is not connected goes on from its own port with another
/// backend. One that merely drains ends nothing.
#[test]
fn fault_086_sockets_of_a_removed_backend_are_ended_and_no_other() -> Result<()> {
    let world = World::start(strict())?;
    let _helper = helper(&world, 3)?;
    let web1 = world.web1.pod();
    let places = [world.visitor.place(), world.cluster.node(3).place()];
    for v4 in [true, false] {
        world.publish(SOLO, &[world.web1.endpoint()])?;
        let direct = (if v4 { web1.ip4() } else { web1.ip6() }, SOLO.target).into();
        let to = SOLO.cluster(v4);
        // The node port of the client's own node: the hook knows it by another name.
        let published = SOLO.published(world.cluster.node(3).ip(v4));
        let open = |place| -> Result<_> {
            let through = [
                Talk::stream(place, to)?,
                Talk::datagrams(place, to)?,
                Talk::stream(place, published)?,
                Talk::datagrams(place, published)?,
            ];
            let beside = [Talk::stream(place, direct)?, Talk::datagrams(place, direct)?];
            Ok((place, through, beside, Talk::letters(place, to)?))
        };
        let clients: Vec<_> = places.into_iter().map(open).collect::<Result<_>>()?;
        let everybody = |name| -> Result<()> {
            clients.iter().try_for_each(|(place, through, beside, letters)| {
                through.iter().chain(beside).chain([letters]).try_for_each(|talk| talk.assert_by(place, name))
            })
        };
        everybody("web-1")?;

        // It drains: nothing of it ends, but new ones go to another.
        let leaving = world.web1.endpoint().condition(Condition::Terminating);
        world.cluster.publish(&SOLO.service(), &[leaving, world.web2.endpoint()])?;
        let wanted = world.web2.endpoint().ips.into_iter().collect();
        world.await_backends(world.cluster.node(3), SOLO, &wanted)?;
        for (place, through, beside, _) in &clients {
            through.iter().chain(beside).try_for_each(|talk| talk.assert_by(place, "web-1"))?;
            Talk::stream(place, to)?.assert_by(place, "web-2")?;
        }

        // It is gone.
        let port = |talk: &Talk| match talk {
            Talk::Letters(socket, _) => socket.local_addr().ok().map(|addr| addr.port()),
            _ => None,
        };
        let before: Vec<_> = clients.iter().map(|(.., letters)| port(letters)).collect();
        let start = Instant::now();
        world.cluster.publish(&SOLO.service(), &[world.web2.endpoint()])?;
        for (_, through, ..) in &clients {
            through.iter().for_each(Talk::assert_ended);
        }
        let took = start.elapsed();
        assert!(took < patient(Duration::from_secs(2)), "ended after {took:?}");
        for ((place, _, beside, letters), before) in clients.iter().zip(before) {
            beside.iter().try_for_each(|talk| talk.assert_by(place, "web-1"))?;
            letters.assert_by(place, "web-2")?;
            assert_eq!(port(letters), before, "it keeps its port");
        }
    }
    Ok(())
}

/// Where nobody may enter pods' namespaces proxyd works on, and says what is left; as soon as somebody may, it is put
/// right.
#[test]
fn fault_086_a_helper_that_is_missing_is_missed() -> Result<()> {
    let world = World::start(strict())?;
    let (node, place) = (world.cluster.node(3), world.visitor.place());
    let talk = Talk::datagrams(place, SOLO.cluster(true))?;
    talk.assert_by(place, "web-1")?;
    world.publish(SOLO, &[world.web2.endpoint()])?;
    let trouble = || -> Result<String> {
        let status = status(node)?;
        Ok(status["daemon"]["troubles"]["proxyd-sockets"]["what"].as_str().unwrap_or_default().to_owned())
    };
    eventually("somebody misses the helper", LIMIT, || Ok(trouble()?.contains("does proxyd-sockets run?")))?;
    Talk::datagrams(place, SOLO.cluster(true))?.assert_by(place, "web-2")?;
    let _helper = helper(&world, 3)?;
    talk.assert_ended();
    eventually("nobody misses it any more", LIMIT, || Ok(trouble()?.is_empty()))
}
