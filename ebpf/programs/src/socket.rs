//! The socket hooks: a connection gets its backend once, when it is made, and its packets cost nothing.
//!
//! IPv4 and IPv6 differ only in where the kernel keeps the address. A mapped address
//! (`::ffff:a.b.c.d`) that an IPv6 socket connects to is an IPv4 frontend without further ado.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use heddle_ebpf_common::decide::{self, Found, Nodes, Refusal, Tables};
use heddle_ebpf_common::{
    ADDR_NODE, Addr, AffinityKey, BACKEND_ACTIVE, BACKEND_DRAINING, Backend, Counter, EVENT_REJECT,
    EVENT_SOCKET, FRONTEND_SOURCES, Frontend, NODE_SELF, SockChoice, SockKey, SockPeer,
};

use crate::events;
use crate::frontend::{self, Kernel, REFUSED};
use crate::maps::{SOCK_REV, SOCK_UDP, config, count, count_flow};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const EADDRNOTAVAIL: i32 = 99;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
const TCP: u32 = 6;
const UDP: u32 = 17;
/// Backends tried when the socket already has this one under another frontend.
const OTHER: u32 = 4;

/// The address fields of `struct bpf_sock_addr` (include/uapi/linux/bpf.h) for one family. The verifier
/// wants each access as one load or store of four bytes.
trait Family {
    fn addr(ctx: *mut bpf_sock_addr) -> Addr;
    fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr);
    /// The address that the socket is bound to.
    fn bound(ctx: *mut bpf_sock_addr) -> Addr;
    /// The source that a datagram is to have. In `sendmsg` only.
    fn source(ctx: *mut bpf_sock_addr) -> Addr;
}

struct V4;
struct V6;

impl Family for V4 {
    #[inline(always)]
    fn addr(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context.
        Addr::v4(unsafe { (&raw const (*ctx).user_ip4).read_volatile() })
    }

    #[inline(always)]
    fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: the kernel's context.
        unsafe { (&raw mut (*ctx).user_ip4).write_volatile(addr.as_v4()) }
    }

    #[inline(always)]
    fn bound(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context and its socket, which is always there.
        Addr::v4(unsafe { (&raw const (*(*ctx).__bindgen_anon_1.sk).src_ip4).read_volatile() })
    }

    #[inline(always)]
    fn source(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context.
        Addr::v4(unsafe { (&raw const (*ctx).msg_src_ip4).read_volatile() })
    }
}

impl Family for V6 {
    #[inline(always)]
    fn addr(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context.
        unsafe { words((&raw const (*ctx).user_ip6).cast()) }
    }

    #[inline(always)]
    fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: the kernel's context; volatile, else two words are stored at once.
        unsafe {
            let words = (&raw mut (*ctx).user_ip6).cast::<u32>();
            words.write_volatile(addr.0[0]);
            words.add(1).write_volatile(addr.0[1]);
            words.add(2).write_volatile(addr.0[2]);
            words.add(3).write_volatile(addr.0[3]);
        }
    }

    #[inline(always)]
    fn bound(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context and its socket, which is always there.
        unsafe { words((&raw const (*(*ctx).__bindgen_anon_1.sk).src_ip6).cast()) }
    }

    #[inline(always)]
    fn source(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the kernel's context.
        unsafe { words((&raw const (*ctx).msg_src_ip6).cast()) }
    }
}

/// An IPv6 address, word by word.
///
/// # Safety
/// Four words of a context or socket of the kernel's.
#[inline(always)]
unsafe fn words(at: *const u32) -> Addr {
    // SAFETY: the caller's; volatile, else two words are loaded at once.
    unsafe {
        Addr([
            at.read_volatile(),
            at.add(1).read_volatile(),
            at.add(2).read_volatile(),
            at.add(3).read_volatile(),
        ])
    }
}

#[inline(always)]
fn port(ctx: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the kernel's context.
    unsafe { (&raw const (*ctx).user_port).read_volatile() as u16 }
}

#[inline(always)]
fn set_port(ctx: *mut bpf_sock_addr, port: u16) {
    // SAFETY: the kernel's context.
    unsafe { (&raw mut (*ctx).user_port).write_volatile(u32::from(port)) }
}

/// TCP or UDP, else `None`.
#[inline(always)]
fn proto(ctx: *mut bpf_sock_addr) -> Option<u8> {
    // SAFETY: the kernel's context.
    let proto = unsafe { (&raw const (*ctx).protocol).read_volatile() };
    (proto == TCP || proto == UDP).then_some(proto as u8)
}

#[inline(always)]
fn cookie(ctx: *mut bpf_sock_addr) -> u64 {
    // SAFETY: the kernel's context.
    unsafe { bpf_get_socket_cookie(ctx.cast()) }
}

/// Counts a refusal, and tells it.
#[inline(always)]
fn refused(reason: Counter, asked: (&Addr, u16), proto: u8, service: u32) {
    count(reason);
    events::socket(EVENT_REJECT, reason, asked, (&Addr::ANY6, 0), proto, service);
}

/// Tells that a socket was given this backend.
#[inline(always)]
fn given(asked: (&Addr, u16), backend: &Backend, proto: u8, service: u32) {
    let to = (&backend.addr, backend.port);
    events::socket(EVENT_SOCKET, Counter::SocketTranslated, asked, to, proto, service);
}

#[inline(always)]
fn fail(errno: i32) -> i32 {
    // SAFETY: a number.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

/// Whether the socket is in the node's own network namespace. `None`: that one is not known.
#[inline(always)]
fn is_of_node(ctx: *mut bpf_sock_addr) -> Option<bool> {
    let host = config()?.host_netns;
    // SAFETY: the kernel's context.
    (host != 0).then(|| unsafe { bpf_get_netns_cookie(ctx.cast()) } == host)
}

/// Copies the frontend that a socket asks for. `Err`: what the hook answers without one.
#[inline(always)]
fn find(ctx: *mut bpf_sock_addr, addr: &Addr, port: u16, proto: u8, copy: &mut Frontend) -> Result<(), i32> {
    if addr.is_loopback() {
        // A pod's loopback is its own.
        let found = is_of_node(ctx) == Some(true) && decide::find_loopback(Kernel, addr, port, proto, copy);
        return if found { Ok(()) } else { Err(ALLOW) };
    }
    match decide::find(Kernel, addr, port, proto, Nodes::All, copy) {
        Found::Frontend => {}
        Found::Undefined => {
            refused(Counter::RejectUndefined, (addr, port), proto, 0);
            return Err(fail(ECONNREFUSED));
        }
        Found::Nothing => return Err(ALLOW),
    }
    if copy.flags & FRONTEND_SOURCES != 0 {
        // A pod's packets say what its address is; the hook of its veth looks at them.
        if is_of_node(ctx) != Some(true) {
            return Err(ALLOW);
        }
        let Some(config) = config() else { return Err(ALLOW) };
        let own = if addr.is_v4() { &config.underlay4 } else { &config.underlay6 };
        if !Kernel.allows(copy.service, own) {
            refused(Counter::DropSource, (addr, port), proto, copy.service);
            return Err(fail(EHOSTUNREACH));
        }
    }
    Ok(())
}

#[inline(always)]
fn remember(key: &SockKey, addr: &Addr, port: u16) {
    let mut peer = SockPeer { addr: *addr, port, zero: 0, check: 0 };
    peer.check = peer.sum(key);
    // SAFETY: only compared.
    if unsafe { SOCK_REV.get(key) }.is_some_and(|old| *old == peer) {
        return;
    }
    // A failure (no memory) leaves the connection as it is; the application sees the backend's address.
    let _ = SOCK_REV.insert(key, peer, 0);
}

/// Is the entry that this socket has for this backend another frontend's?
#[inline(always)]
fn taken(key: &SockKey, addr: &Addr, port: u16) -> bool {
    // SAFETY: copied out and checked.
    match unsafe { SOCK_REV.get(key) } {
        Some(peer) => peer.check == peer.sum(key) && (peer.addr != *addr || peer.port != port),
        None => false,
    }
}

/// A backend for this socket. Of a service with session affinity all sockets of a network namespace have one. `Err`: the
/// hook's answer.
#[inline(always)]
fn choose(ctx: *mut bpf_sock_addr, frontend: &Frontend, asked: (&Addr, u16), proto: u8) -> Result<u32, i32> {
    let v4 = asked.0.is_v4();
    let Some(config) = config() else { return Err(ALLOW) };
    let client = if frontend.affinity == 0 {
        Addr::ANY6
    } else {
        // SAFETY: the kernel's context.
        AffinityKey::namespace(unsafe { bpf_get_netns_cookie(ctx.cast()) }, v4)
    };
    let choice = frontend::choose_inside(frontend, &client, v4, config);
    if choice & REFUSED != 0 {
        return Err(if choice as u32 == Refusal::Drop as u32 {
            refused(Counter::DropNoBackend, asked, proto, frontend.service);
            fail(EHOSTUNREACH)
        } else {
            refused(Counter::RejectNoBackend, asked, proto, frontend.service);
            fail(ECONNREFUSED)
        });
    }
    if frontend.affinity == 0 {
        return Ok(choice as u32);
    }
    Ok(frontend::settle(frontend, &client, choice as u32, config))
}

/// Is this a pod's socket, and the backend neither a pod nor on this node? What the pod sends there needs
/// an address of the node as its source, as in any network that does not know the pods: `pod` gives it one, to
/// a packet that still names the service.
#[inline(always)]
fn is_left_to_pod(ctx: *mut bpf_sock_addr, backend: &Backend) -> bool {
    if backend.node == NODE_SELF {
        return false;
    }
    let outside = backend.node == 0 || frontend::known(&backend.addr).is(ADDR_NODE);
    outside && is_of_node(ctx) == Some(false)
}

#[inline(always)]
fn connect<F: Family>(ctx: *mut bpf_sock_addr) -> i32 {
    let Some(proto) = proto(ctx) else { return ALLOW };
    let (addr, port) = (F::addr(ctx), port(ctx));
    let mut found = Frontend::default();
    if let Err(answer) = find(ctx, &addr, port, proto, &mut found) {
        return answer;
    }
    if addr.is_loopback() && F::bound(ctx).is_loopback() {
        // What has a loopback address as its source never leaves the node.
        return fail(EADDRNOTAVAIL);
    }
    let index = match choose(ctx, &found, (&addr, port), proto) {
        Ok(index) => index,
        Err(answer) => return answer,
    };
    let Some(backend) = frontend::backend(index) else { return fail(ECONNREFUSED) };
    if is_left_to_pod(ctx, backend) {
        return ALLOW;
    }
    remember(
        &SockKey { cookie: cookie(ctx), addr: backend.addr, port: backend.port, proto, zero: [0; 5] },
        &addr,
        port,
    );
    F::set_addr(ctx, &backend.addr);
    set_port(ctx, backend.port);
    count(Counter::SocketTranslated);
    count_flow(index);
    given((&addr, port), backend, proto, found.service);
    ALLOW
}

/// The backend that this socket has for this frontend, if it still takes datagrams.
#[inline(always)]
fn kept(key: &SockKey, service: u32) -> Option<&'static Backend> {
    // SAFETY: copied out and checked.
    let choice = unsafe { *SOCK_UDP.get(key)? };
    if choice.check != choice.sum(key) || choice.service != service {
        return None;
    }
    let backend = frontend::backend(choice.backend)?;
    let alive = backend.generation == choice.generation
        // One that drains keeps what it has.
        && (backend.state == BACKEND_ACTIVE || backend.state == BACKEND_DRAINING)
        && (backend.node == 0 || decide::is_up(Kernel, backend.node));
    alive.then_some(backend)
}

/// A datagram of a socket that is not connected. The socket keeps its backend from datagram to datagram.
#[inline(always)]
fn sendmsg<F: Family>(ctx: *mut bpf_sock_addr) -> i32 {
    let (addr, port) = (F::addr(ctx), port(ctx));
    let proto = UDP as u8;
    let mut found = Frontend::default();
    if let Err(answer) = find(ctx, &addr, port, proto, &mut found) {
        return answer;
    }
    if addr.is_loopback() && F::source(ctx).is_loopback() {
        return fail(EADDRNOTAVAIL);
    }
    let cookie = cookie(ctx);
    let key = SockKey { cookie, addr, port, proto, zero: [0; 5] };
    let mut rev = SockKey { cookie, addr, port, proto, zero: [0; 5] };
    let mut fresh = 0;
    let backend = match kept(&key, found.service) {
        Some(backend) => backend,
        None => {
            // Two frontends of one socket at one backend: its answers could not be told apart.
            for _ in 0..OTHER {
                fresh = match choose(ctx, &found, (&addr, port), proto) {
                    Ok(index) => index,
                    Err(answer) => return answer,
                };
                let Some(backend) = frontend::backend(fresh) else { break };
                rev.addr = backend.addr;
                rev.port = backend.port;
                if !taken(&rev, &addr, port) {
                    break;
                }
            }
            let Some(backend) = frontend::backend(fresh) else { return fail(ECONNREFUSED) };
            let mut choice = SockChoice {
                backend: fresh,
                generation: backend.generation,
                service: found.service,
                check: 0,
            };
            choice.check = choice.sum(&key);
            let _ = SOCK_UDP.insert(&key, choice, 0);
            backend
        }
    };
    if is_left_to_pod(ctx, backend) {
        return ALLOW;
    }
    rev.addr = backend.addr;
    rev.port = backend.port;
    remember(&rev, &addr, port);
    F::set_addr(ctx, &backend.addr);
    set_port(ctx, backend.port);
    count(Counter::SocketTranslated);
    if fresh != 0 {
        count_flow(fresh);
        given((&addr, port), backend, proto, found.service);
    }
    ALLOW
}

/// Gives the application the address that it asked for in place of the backend's.
#[inline(always)]
fn restore<F: Family>(ctx: *mut bpf_sock_addr) -> i32 {
    let Some(proto) = proto(ctx) else { return ALLOW };
    let key = SockKey { cookie: cookie(ctx), addr: F::addr(ctx), port: port(ctx), proto, zero: [0; 5] };
    // SAFETY: copied out and checked.
    let Some(peer) = unsafe { SOCK_REV.get(&key) }.copied() else { return ALLOW };
    if peer.check == peer.sum(&key) && peer.addr.is_v4() == key.addr.is_v4() {
        F::set_addr(ctx, &peer.addr);
        set_port(ctx, peer.port);
    }
    ALLOW
}

macro_rules! hook { ($($name:ident: $body:expr;)*) => { $(
    #[cgroup_sock_addr($name)]
    pub fn $name(ctx: SockAddrContext) -> i32 {
        $body(ctx.as_ptr().cast())
    }
)* } }

hook! {
    connect4: connect::<V4>;
    connect6: connect::<V6>;
    sendmsg4: sendmsg::<V4>;
    sendmsg6: sendmsg::<V6>;
    recvmsg4: restore::<V4>;
    recvmsg6: restore::<V6>;
    getpeername4: restore::<V4>;
    getpeername6: restore::<V6>;
}
